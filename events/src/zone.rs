//! What do the zones of a city have to do with a request?
//!
//! A gateway looks zones up and writes what it found into the command; the rider's shard decides by it once, with the
//! request's key. So a retry gets the first attempt's answer, whatever the zones say meanwhile and whichever gateway
//! it comes through: the fingerprint covers the place that was asked for, not what was found.
//! Not here: outlines and their lookup (`geo`), the files they come from (`gateway`).

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::ids::{BadId, Place, Time};

/// Longest name of a zone or pickup point, in bytes.
pub const ZONE_NAME_BYTES_MAX: usize = 80;

/// The name of a zone or of a pickup point as people read it: one line of text.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ZoneName(Box<str>);

impl ZoneName {
    /// Checks and keeps `text`: 1 to [`ZONE_NAME_BYTES_MAX`] bytes without control characters.
    pub fn new(text: &str) -> Result<Self, BadId> {
        let (what, max) = ("zone name", ZONE_NAME_BYTES_MAX);
        match text.len() {
            0 => Err(BadId::Empty { what, max }),
            bytes if bytes > max => Err(BadId::TooLong { what, bytes, max }),
            _ if text.chars().any(char::is_control) => Err(BadId::Malformed {
                what,
                found: text.chars().take(ZONE_NAME_BYTES_MAX).collect(),
                expected: "one line of text without control characters",
            }),
            _ => Ok(Self(text.into())),
        }
    }

    /// The text as it was given.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for ZoneName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for ZoneName {
    type Error = BadId;
    fn try_from(text: String) -> Result<Self, BadId> {
        Self::new(&text)
    }
}

impl From<ZoneName> for String {
    fn from(name: ZoneName) -> String {
        name.0.into()
    }
}

impl JsonSchema for ZoneName {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "ZoneName".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "minLength": 1, "maxLength": ZONE_NAME_BYTES_MAX })
    }
}

/// Where riders of a zone are fetched, instead of the place that one of them asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PickupPoint {
    /// The zone that has pickup points.
    pub zone: ZoneName,
    /// Which of them.
    pub name: ZoneName,
    /// Where it is: the ride's pickup.
    pub at: Place,
    /// Where the rider had asked to be fetched.
    pub asked: Place,
}

/// A driver's place in the queue of an airport. Who came earlier is asked earlier: by `since`, then `number`, then name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct QueuePlace {
    /// The airport.
    pub airport: ZoneName,
    /// Engine time of the driver's shard when the place was given.
    pub since: Time,
    /// The number of the event that gave it, among its shard's: orders places of one instant.
    pub number: u64,
}

/// What the zones say about the place of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ZoneFinding {
    /// There are service areas and it lies in none.
    OutOfArea,
    /// It lies in a zone with pickup points.
    At(PickupPoint),
}
