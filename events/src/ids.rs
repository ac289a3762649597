//! Who and what a message is about. Every type here is checked when it is made, from JSON too.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use cabrank_geo::Point;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Longest text accepted for a driver, a rider or an idempotency key, in bytes.
pub const ID_BYTES_MAX: usize = 64;
/// Longest command id: an issuer's id, a kind and a message id joined.
pub const COMMAND_ID_BYTES_MAX: usize = 3 * ID_BYTES_MAX;

/// Why a text is no id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadId {
    /// Nothing was there.
    #[error("{what} is empty: send 1 to {max} characters")]
    Empty { what: &'static str, max: usize },
    /// Longer than the bound of its kind.
    #[error("{what} has {bytes} bytes: send at most {max}")]
    TooLong {
        what: &'static str,
        bytes: usize,
        max: usize,
    },
    /// A character outside the allowed set.
    #[error("{what} contains {found:?}: use letters, digits and . _ - : @")]
    BadCharacter { what: &'static str, found: char },
    /// The parts of a composed id do not parse.
    #[error("{what} {found:?} is malformed: expected {expected}")]
    Malformed {
        what: &'static str,
        found: String,
        expected: &'static str,
    },
}

fn check_text(what: &'static str, text: &str, max: usize, extra: &str) -> Result<(), BadId> {
    if text.is_empty() {
        return Err(BadId::Empty { what, max });
    }
    if text.len() > max {
        return Err(BadId::TooLong {
            what,
            bytes: text.len(),
            max,
        });
    }
    match text
        .chars()
        .find(|c| !(c.is_ascii_alphanumeric() || "._-:@".contains(*c) || extra.contains(*c)))
    {
        Some(found) => Err(BadId::BadCharacter { what, found }),
        None => Ok(()),
    }
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $what:literal, $max:expr, $extra:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks and keeps `text`. Errors name what is wrong and what to send instead.
            pub fn new(text: &str) -> Result<Self, BadId> {
                check_text($what, text, $max, $extra)?;
                Ok(Self(text.into()))
            }

            /// The text as it was given.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = BadId;
            fn from_str(text: &str) -> Result<Self, BadId> {
                Self::new(text)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
                Self::new(&text).map_err(de::Error::custom)
            }
        }

        impl JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "minLength": 1, "maxLength": $max })
            }
        }
    };
}

text_id!(
    /// A driver, as the fleet names them.
    DriverId, "driver id", ID_BYTES_MAX, ""
);
text_id!(
    /// A rider, as the business names them.
    RiderId, "rider id", ID_BYTES_MAX, ""
);
text_id!(
    /// The rider's name for one wish to ride: retries carry the same key and cannot make a second ride.
    IdempotencyKey, "idempotency key", ID_BYTES_MAX, ""
);
text_id!(
    /// A node, as whoever started it named it (`cabrank matcher --name`); one for each living node.
    NodeName, "node name", ID_BYTES_MAX, ""
);
text_id!(
    /// One command of one issuer (`driver/d7/42`). The same id always gets the same outcome.
    CommandId, "command id", COMMAND_ID_BYTES_MAX, "/"
);

/// Longest reason a person may give, in bytes.
pub const REASON_BYTES_MAX: usize = 200;

/// Why a person at the operator's desk did something, in their own words: kept, shown, never interpreted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Reason(Arc<str>);

impl Reason {
    /// Checks and keeps `text`: 1 to [`REASON_BYTES_MAX`] bytes without control characters.
    pub fn new(text: &str) -> Result<Self, BadId> {
        let (what, max) = ("reason", REASON_BYTES_MAX);
        match text.len() {
            0 => Err(BadId::Empty { what, max }),
            bytes if bytes > max => Err(BadId::TooLong { what, bytes, max }),
            _ if text.chars().any(char::is_control) => Err(BadId::Malformed {
                what,
                found: text.chars().take(ID_BYTES_MAX).collect(),
                expected: "one line of text without control characters",
            }),
            _ => Ok(Self(text.into())),
        }
    }

    /// As much of `text` as fits, on one line: for words of others, which would be refused whole. `None` for nothing.
    pub fn fitted(text: &str) -> Option<Self> {
        let mut line: String = text
            .trim()
            .chars()
            .map(|letter| if letter.is_control() { ' ' } else { letter })
            .collect();
        while line.len() > REASON_BYTES_MAX {
            line.pop();
        }
        Self::new(&line).ok()
    }

    /// The text as it was given.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Reason {
    type Error = BadId;
    fn try_from(text: String) -> Result<Self, BadId> {
        Self::new(&text)
    }
}

impl From<Reason> for String {
    fn from(reason: Reason) -> String {
        reason.0.as_ref().into()
    }
}

impl JsonSchema for Reason {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Reason".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "minLength": 1, "maxLength": REASON_BYTES_MAX })
    }
}

/// Milliseconds since the Unix epoch on the domain clock (which a replay may set to the past).
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    JsonSchema,
)]
#[serde(transparent)]
pub struct Time(pub i64);

impl Time {
    /// The instant `ms` later; saturates, so that no message can overflow it.
    pub fn plus_ms(self, ms: u64) -> Time {
        Time(self.0.saturating_add(i64::try_from(ms).unwrap_or(i64::MAX)))
    }

    /// Milliseconds from `earlier` to `self`; negative when it is later.
    pub fn since(self, earlier: Time) -> i64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// A unit of ownership: one partition of the log's topics.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(transparent)]
pub struct ShardId(pub u16);

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A ride. Its text form `3-5-1042` reads: lives in shard 3, minted by shard 5 at its input offset 1042
/// (PROTOCOL 10), so every later command finds the ride without a directory.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RideId {
    /// The place shard: where the ride lives.
    pub place: ShardId,
    /// The rider's shard, which minted the id.
    pub minted_by: ShardId,
    /// The input offset of the `RequestRide` that made it.
    pub offset: u64,
}

impl fmt::Display for RideId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{}", self.place, self.minted_by, self.offset)
    }
}

impl fmt::Debug for RideId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for RideId {
    type Err = BadId;
    fn from_str(text: &str) -> Result<Self, BadId> {
        let malformed = || BadId::Malformed {
            what: "ride id",
            found: text.chars().take(ID_BYTES_MAX).collect(),
            expected: "three numbers like 3-5-1042",
        };
        let mut parts = text.split('-');
        let mut part = || parts.next().ok_or_else(malformed);
        let id = RideId {
            place: ShardId(part()?.parse().map_err(|_| malformed())?),
            minted_by: ShardId(part()?.parse().map_err(|_| malformed())?),
            offset: part()?.parse().map_err(|_| malformed())?,
        };
        // One text per ride: "03-5-1" and "3-5-1" must not be two keys for one thing.
        if parts.next().is_some() || id.to_string() != text {
            return Err(malformed());
        }
        Ok(id)
    }
}

impl Serialize for RideId {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for RideId {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
        text.parse().map_err(de::Error::custom)
    }
}

impl JsonSchema for RideId {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "RideId".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^[0-9]{1,5}-[0-9]{1,5}-[0-9]{1,20}$" })
    }
}

/// Counts the claims of one ride, from 1; never reused.
pub type Attempt = u32;

/// A hold's name: this ride's this attempt (PROTOCOL 1). Whatever carries another one changes nothing.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
pub struct HoldId {
    /// The ride that asked.
    pub ride: RideId,
    /// Which of its claims.
    pub attempt: Attempt,
}

impl fmt::Display for HoldId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.ride, self.attempt)
    }
}

/// One stretch of a driver being at work; later sessions have larger numbers (PROTOCOL 21).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(transparent)]
pub struct SessionId(pub u64);

/// What kind of car is asked for.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum VehicleClass {
    /// Any ordinary car with four seats.
    #[default]
    Economy,
    /// A better car.
    Comfort,
    /// Six seats or more.
    Xl,
    /// Takes a wheelchair with its rider in it.
    Wheelchair,
}

impl VehicleClass {
    /// All classes, in the order of their bits.
    pub const ALL: [VehicleClass; 4] = [Self::Economy, Self::Comfort, Self::Xl, Self::Wheelchair];

    /// The class's bit in a [`ClassSet`].
    pub fn bit(self) -> u8 {
        match self {
            Self::Economy => 1,
            Self::Comfort => 2,
            Self::Xl => 4,
            Self::Wheelchair => 8,
        }
    }

    /// The name used in messages and queries.
    pub fn name(self) -> &'static str {
        match self {
            Self::Economy => "economy",
            Self::Comfort => "comfort",
            Self::Xl => "xl",
            Self::Wheelchair => "wheelchair",
        }
    }
}

impl FromStr for VehicleClass {
    type Err = BadId;
    fn from_str(text: &str) -> Result<Self, BadId> {
        Self::ALL
            .into_iter()
            .find(|class| class.name() == text)
            .ok_or_else(|| BadId::Malformed {
                what: "vehicle class",
                found: text.chars().take(ID_BYTES_MAX).collect(),
                expected: "economy, comfort, xl or wheelchair",
            })
    }
}

/// The classes one driver serves. Never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClassSet(u8);

impl ClassSet {
    /// The set of `classes`; `None` when there are none.
    pub fn of(classes: &[VehicleClass]) -> Option<ClassSet> {
        let bits = classes.iter().fold(0, |bits, class| bits | class.bit());
        (bits != 0).then_some(ClassSet(bits))
    }

    /// Does the driver serve `class`?
    pub fn contains(self, class: VehicleClass) -> bool {
        self.0 & class.bit() != 0
    }

    /// One bit per class, as the index keeps them.
    pub fn bits(self) -> u8 {
        self.0
    }

    /// The classes in the order of their bits.
    pub fn classes(self) -> Vec<VehicleClass> {
        VehicleClass::ALL
            .into_iter()
            .filter(|class| self.contains(*class))
            .collect()
    }
}

impl Default for ClassSet {
    fn default() -> Self {
        ClassSet(VehicleClass::Economy.bit())
    }
}

impl Serialize for ClassSet {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        self.classes().serialize(s)
    }
}

impl<'de> Deserialize<'de> for ClassSet {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let classes = Vec::<VehicleClass>::deserialize(d)?;
        ClassSet::of(&classes)
            .ok_or_else(|| de::Error::custom("classes is empty: name at least one"))
    }
}

impl JsonSchema for ClassSet {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "ClassSet".into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let class = generator.subschema_for::<VehicleClass>();
        json_schema!({ "type": "array", "minItems": 1, "items": class })
    }
}

/// A point on the earth in a message: `{"lat": 37.7, "lon": -122.4}`, WGS-84 degrees, seven decimals kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place(pub Point);

#[derive(Serialize, Deserialize)]
struct Degrees {
    lat: f64,
    lon: f64,
}

impl Serialize for Place {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        Degrees {
            lat: self.0.lat_deg(),
            lon: self.0.lon_deg(),
        }
        .serialize(s)
    }
}

impl<'de> Deserialize<'de> for Place {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let degrees = Degrees::deserialize(d)?;
        Point::new(degrees.lat, degrees.lon)
            .map(Place)
            .map_err(de::Error::custom)
    }
}

impl JsonSchema for Place {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Place".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "object",
            "required": ["lat", "lon"],
            "properties": {
                "lat": { "type": "number", "minimum": -90, "maximum": 90 },
                "lon": { "type": "number", "minimum": -180, "maximum": 180 }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ride_id_reads_back_and_has_one_text() {
        let id = RideId {
            place: ShardId(3),
            minted_by: ShardId(5),
            offset: 1042,
        };
        assert_eq!(id.to_string().parse::<RideId>(), Ok(id));
        for text in [
            "",
            "3-5",
            "3-5-x",
            "03-5-1",
            "3-5-1-2",
            "-3-5-1",
            "99999-1-1",
            "+3-5-1",
        ] {
            assert!(
                text.parse::<RideId>().is_err(),
                "{text:?} must not be a ride id"
            );
        }
    }

    #[test]
    fn words_of_others_are_made_to_fit() {
        let fitted = |text: &str| Reason::fitted(text).map(String::from);
        assert_eq!(
            fitted(" declined\nby the bank\u{7} "),
            Some("declined by the bank ".into())
        );
        let long = fitted(&"ü".repeat(REASON_BYTES_MAX)).unwrap();
        assert_eq!(long, "ü".repeat(REASON_BYTES_MAX / 2));
        assert_eq!(fitted(" \t"), None);
    }

    #[test]
    fn an_id_is_refused_with_its_reason() {
        assert!(matches!(DriverId::new(""), Err(BadId::Empty { .. })));
        assert!(matches!(
            DriverId::new(&"d".repeat(65)),
            Err(BadId::TooLong { bytes: 65, .. })
        ));
        assert!(matches!(
            DriverId::new("a/b"),
            Err(BadId::BadCharacter { found: '/', .. })
        ));
        assert!(CommandId::new("driver/d7/42").is_ok());
        assert!(serde_json::from_str::<RiderId>("\"bad id\"").is_err());
    }

    #[test]
    fn a_place_survives_json_to_the_seventh_decimal() {
        let place = Place(Point::new(37.7749295, -122.4194155).unwrap());
        let text = serde_json::to_string(&place).unwrap();
        assert_eq!(serde_json::from_str::<Place>(&text).unwrap(), place);
        assert!(serde_json::from_str::<Place>(r#"{"lat": 91.0, "lon": 0.0}"#).is_err());
    }

    #[test]
    fn a_driver_serves_at_least_one_class() {
        assert!(serde_json::from_str::<ClassSet>("[]").is_err());
        let set: ClassSet = serde_json::from_str(r#"["xl","economy"]"#).unwrap();
        assert!(set.contains(VehicleClass::Xl) && !set.contains(VehicleClass::Comfort));
        assert_eq!(serde_json::to_string(&set).unwrap(), r#"["economy","xl"]"#);
    }
}
