//! How commands and events are written and read, and what happens to versions.
//!
//! Writers write the current version. Readers accept unknown fields, upcast older versions, accept one version ahead
//! (whose additions they ignore), and name everything else as an error: a reader never guesses (PROTOCOL 9).

use bytes::Bytes;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::value::RawValue;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::command::{COMMAND_VERSION, CommandRecord};
use crate::event::{Event, EventRecord};
use crate::ids::{ShardId, Time};
use crate::traceparent::TraceParent;

/// The version of every event type this code writes.
pub const EVENT_VERSION: u16 = 1;
/// What event types begin with.
pub const EVENT_PREFIX: &str = "cabrank.";

/// Why bytes are no record. Nothing was changed by trying.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Not JSON, or a field is missing or of the wrong kind.
    #[error("{what} does not parse: {source}")]
    Malformed {
        what: &'static str,
        #[source]
        source: serde_json::Error,
    },
    /// A type nobody here knows.
    #[error(
        "unknown {what} type {found:?}: this program is older than the writer, or the record is not ours"
    )]
    UnknownType { what: &'static str, found: String },
    /// Written by a program more than one version ahead.
    #[error(
        "{what} has version {found}, this program reads up to {newest}: upgrade this program first"
    )]
    TooNew {
        what: &'static str,
        found: u16,
        newest: u16,
    },
    /// An envelope field does not hold what CloudEvents or our contract says.
    #[error("event envelope: {0}")]
    Envelope(String),
}

/// Turns an older version's data into the next version's. Applied in steps until the current version is reached.
pub type Upcast = fn(&mut serde_json::Value);

/// The steps there are: (event name, from version, step). Empty as long as every type is at its first version.
const UPCASTS: &[(&str, u16, Upcast)] = &[];

#[derive(Serialize)]
struct CloudEventOut<'a> {
    specversion: &'static str,
    id: String,
    source: String,
    #[serde(rename = "type")]
    kind: String,
    subject: String,
    time: String,
    datacontenttype: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    traceparent: Option<TraceParent>,
    data: DataOut<'a>,
}

struct DataOut<'a>(&'a Event);

impl Serialize for DataOut<'_> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        self.0.serialize_data(s)
    }
}

#[derive(Deserialize)]
struct CloudEventIn<'a> {
    specversion: std::borrow::Cow<'a, str>,
    id: std::borrow::Cow<'a, str>,
    #[serde(rename = "type")]
    kind: std::borrow::Cow<'a, str>,
    time: std::borrow::Cow<'a, str>,
    #[serde(default, deserialize_with = "crate::traceparent::lenient")]
    traceparent: Option<TraceParent>,
    #[serde(borrow)]
    data: &'a RawValue,
}

impl EventRecord {
    /// The event's id for consumers' de-duplication: shard and number, `3-1042`.
    pub fn id(&self) -> String {
        format!("{}-{}", self.shard, self.seq)
    }

    /// The CloudEvents 1.0 type, `cabrank.ride.requested.v1`.
    pub fn cloud_type(&self) -> String {
        format!("{EVENT_PREFIX}{}.v{EVENT_VERSION}", self.event.name())
    }

    /// The record as CloudEvents 1.0 JSON (structured mode).
    pub fn to_json(&self) -> Bytes {
        let out = CloudEventOut {
            specversion: "1.0",
            id: self.id(),
            source: format!("/cabrank/shards/{}", self.shard),
            kind: self.cloud_type(),
            subject: self.event.entity().to_string(),
            time: rfc3339(self.time),
            datacontenttype: "application/json",
            traceparent: self.traceparent,
            data: DataOut(&self.event),
        };
        to_bytes(&out)
    }

    /// Reads what [`EventRecord::to_json`] wrote, or an older or the next version of it.
    pub fn from_json(bytes: &[u8]) -> Result<EventRecord, DecodeError> {
        Self::from_json_with(bytes, UPCASTS)
    }

    fn from_json_with(
        bytes: &[u8],
        upcasts: &[(&str, u16, Upcast)],
    ) -> Result<EventRecord, DecodeError> {
        let raw: CloudEventIn<'_> =
            serde_json::from_slice(bytes).map_err(|source| DecodeError::Malformed {
                what: "event",
                source,
            })?;
        if raw.specversion != "1.0" {
            return Err(DecodeError::Envelope(format!(
                "specversion is {:?}, expected \"1.0\"",
                raw.specversion
            )));
        }
        let (shard, seq) = parse_event_id(&raw.id)?;
        let (name, version) = parse_event_type(&raw.kind)?;
        if version > EVENT_VERSION + 1 {
            return Err(DecodeError::TooNew {
                what: "event",
                found: version,
                newest: EVENT_VERSION + 1,
            });
        }
        let malformed = |source| DecodeError::Malformed {
            what: "event data",
            source,
        };
        let event = if version < EVENT_VERSION {
            let mut data = serde_json::from_str(raw.data.get()).map_err(malformed)?;
            upcast(name, version, &mut data, upcasts)?;
            Event::from_data(name, &data.to_string())
        } else {
            Event::from_data(name, raw.data.get())
        };
        let event = event
            .ok_or_else(|| DecodeError::UnknownType {
                what: "event",
                found: raw.kind.to_string(),
            })?
            .map_err(malformed)?;
        Ok(EventRecord {
            shard,
            seq,
            time: parse_rfc3339(&raw.time)?,
            traceparent: raw.traceparent,
            event,
        })
    }
}

fn upcast(
    name: &str,
    from: u16,
    data: &mut serde_json::Value,
    upcasts: &[(&str, u16, Upcast)],
) -> Result<(), DecodeError> {
    for version in from..EVENT_VERSION {
        let (_, _, step) = upcasts
            .iter()
            .find(|(of, at, _)| *of == name && *at == version)
            .ok_or_else(|| DecodeError::UnknownType {
                what: "event",
                found: format!("{EVENT_PREFIX}{name}.v{version}"),
            })?;
        step(data);
    }
    Ok(())
}

fn parse_event_id(id: &str) -> Result<(ShardId, u64), DecodeError> {
    let parsed = id
        .split_once('-')
        .and_then(|(shard, seq)| Some((ShardId(shard.parse().ok()?), seq.parse().ok()?)));
    parsed.ok_or_else(|| DecodeError::Envelope(format!("id is {id:?}, expected shard-number")))
}

pub(crate) fn parse_event_type(kind: &str) -> Result<(&str, u16), DecodeError> {
    let parsed = kind
        .strip_prefix(EVENT_PREFIX)
        .and_then(|rest| rest.rsplit_once(".v"))
        .and_then(|(name, version)| Some((name, version.parse().ok()?)));
    parsed.ok_or_else(|| DecodeError::UnknownType {
        what: "event",
        found: kind.to_string(),
    })
}

/// RFC 3339 in UTC with milliseconds. Times outside the years 0 to 9999 are drawn to the nearer end.
pub fn rfc3339(time: Time) -> String {
    const FIRST_MS: i64 = -62_167_219_200_000;
    const LAST_MS: i64 = 253_402_300_799_999;
    let ms = time.0.clamp(FIRST_MS, LAST_MS);
    let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(ms) * 1_000_000)
        .expect("clamped to the years the format can hold");
    let t = at.time();
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z",
        at.year(),
        u8::from(at.month()),
        at.day(),
        t.hour(),
        t.minute(),
        t.second(),
        t.millisecond()
    )
}

/// Reads an RFC 3339 time to the millisecond.
pub fn parse_rfc3339(text: &str) -> Result<Time, DecodeError> {
    let at = OffsetDateTime::parse(text, &Rfc3339)
        .map_err(|why| DecodeError::Envelope(format!("time is {text:?}: {why}")))?;
    let ms = at.unix_timestamp_nanos().div_euclid(1_000_000);
    Ok(Time(i64::try_from(ms).unwrap_or(i64::MAX)))
}

impl CommandRecord {
    /// The record as JSON.
    pub fn to_json(&self) -> Bytes {
        to_bytes(self)
    }

    /// Reads a command record; an unknown type or a version beyond the next is a named error.
    pub fn from_json(bytes: &[u8]) -> Result<CommandRecord, DecodeError> {
        #[derive(Deserialize)]
        struct Peek<'a> {
            v: u16,
            #[serde(rename = "type", borrow)]
            kind: std::borrow::Cow<'a, str>,
        }
        let malformed = |source| DecodeError::Malformed {
            what: "command",
            source,
        };
        match serde_json::from_slice::<CommandRecord>(bytes) {
            Ok(record) if record.v <= COMMAND_VERSION + 1 => Ok(record),
            Ok(record) => Err(DecodeError::TooNew {
                what: "command",
                found: record.v,
                newest: COMMAND_VERSION + 1,
            }),
            Err(source) => {
                let peek: Peek<'_> = serde_json::from_slice(bytes).map_err(malformed)?;
                if peek.v > COMMAND_VERSION + 1 {
                    Err(DecodeError::TooNew {
                        what: "command",
                        found: peek.v,
                        newest: COMMAND_VERSION + 1,
                    })
                } else if source.to_string().starts_with("unknown variant") {
                    Err(DecodeError::UnknownType {
                        what: "command",
                        found: peek.kind.to_string(),
                    })
                } else {
                    Err(malformed(source))
                }
            }
        }
    }
}

fn to_bytes<T: Serialize>(value: &T) -> Bytes {
    Bytes::from(serde_json::to_vec(value).expect("our records hold only JSON's own kinds"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::RideStarted;
    use crate::ids::{DriverId, RideId};

    fn started() -> EventRecord {
        let ride = RideId {
            place: ShardId(3),
            minted_by: ShardId(5),
            offset: 1042,
        };
        EventRecord {
            traceparent: None,
            shard: ShardId(3),
            seq: 77,
            time: Time(1_211_500_801_250),
            event: Event::RideStarted(RideStarted {
                ride,
                ride_seq: 6,
                driver: DriverId::new("d7").unwrap(),
                attempt: 1,
                complete_by: Time(1_211_510_000_000),
            }),
        }
    }

    fn with(field: &str, value: serde_json::Value) -> Vec<u8> {
        let mut json: serde_json::Value = serde_json::from_slice(&started().to_json()).unwrap();
        json[field] = value;
        json.to_string().into_bytes()
    }

    #[test]
    fn an_event_is_a_cloud_event_and_reads_back() {
        let json: serde_json::Value = serde_json::from_slice(&started().to_json()).unwrap();
        assert_eq!(json["specversion"], "1.0");
        assert_eq!(json["id"], "3-77");
        assert_eq!(json["source"], "/cabrank/shards/3");
        assert_eq!(json["type"], "cabrank.ride.started.v1");
        assert_eq!(json["subject"], "ride/3-5-1042");
        assert_eq!(json["time"], "2008-05-23T00:00:01.250Z");
        assert_eq!(json["data"]["ride_seq"], 6);
        assert_eq!(
            EventRecord::from_json(&started().to_json()).unwrap(),
            started()
        );
    }

    #[test]
    fn unknown_fields_pass() {
        assert_eq!(
            EventRecord::from_json(&with("traceparent", "x".into())).unwrap(),
            started()
        );
    }

    #[test]
    fn the_next_version_is_read_and_the_one_after_is_named() {
        assert_eq!(
            EventRecord::from_json(&with("type", "cabrank.ride.started.v2".into())).unwrap(),
            started()
        );
        let refused = EventRecord::from_json(&with("type", "cabrank.ride.started.v3".into()));
        assert!(matches!(
            refused,
            Err(DecodeError::TooNew {
                found: 3,
                newest: 2,
                ..
            })
        ));
    }

    #[test]
    fn an_unknown_type_is_named() {
        let refused = EventRecord::from_json(&with("type", "cabrank.ride.teleported.v1".into()));
        assert!(
            matches!(refused, Err(DecodeError::UnknownType { found, .. }) if found.contains("teleported"))
        );
        let foreign = EventRecord::from_json(&with("type", "org.example.thing".into()));
        assert!(matches!(foreign, Err(DecodeError::UnknownType { .. })));
    }

    #[test]
    fn an_older_version_is_upcast_step_by_step() {
        let rename: Upcast = |data| {
            let by = data["finish_by"].take();
            data["complete_by"] = by;
        };
        let mut old: serde_json::Value = serde_json::from_slice(&started().to_json()).unwrap();
        old["type"] = "cabrank.ride.started.v0".into();
        let by = old["data"]["complete_by"].take();
        old["data"]["finish_by"] = by;
        let old = old.to_string();
        let upcasts: &[(&str, u16, Upcast)] = &[("ride.started", 0, rename)];
        assert_eq!(
            EventRecord::from_json_with(old.as_bytes(), upcasts).unwrap(),
            started()
        );
        assert!(matches!(
            EventRecord::from_json(old.as_bytes()),
            Err(DecodeError::UnknownType { .. })
        ));
    }

    /// Stored before block lists and swaps: without a rider, without `from` and `then`.
    #[test]
    fn records_of_the_days_before_transfers_still_read() {
        let claim = br#"{"v":1,"issued_at":5,"from":2,"type":"claim_driver",
            "data":{"driver":"d7","hold":{"ride":"3-5-1042","attempt":1},"class":"economy"}}"#;
        let claim = CommandRecord::from_json(claim).unwrap().command;
        assert!(matches!(
            claim,
            crate::Command::ClaimDriver { rider: None, .. }
        ));
        let claimed = br#"{"specversion":"1.0","id":"3-4","type":"cabrank.ride.driver_claimed.v1",
            "time":"2008-05-23T00:00:01.250Z","data":{"ride":"3-5-1042","ride_seq":2,"driver":"d7",
            "attempt":1,"answer_by":9}}"#;
        let claimed = EventRecord::from_json(claimed).unwrap().event;
        assert!(matches!(
            claimed,
            Event::DriverClaimed(e) if e.from.is_none() && e.then.is_empty()
        ));
    }

    #[test]
    fn a_command_of_an_unknown_type_or_far_version_is_named() {
        let unknown = br#"{"v":1,"issued_at":5,"type":"fly","data":{}}"#;
        assert!(matches!(
            CommandRecord::from_json(unknown),
            Err(DecodeError::UnknownType { found, .. }) if found == "fly"
        ));
        let far = br#"{"v":3,"issued_at":5,"type":"fly","data":{}}"#;
        assert!(matches!(
            CommandRecord::from_json(far),
            Err(DecodeError::TooNew { found: 3, .. })
        ));
        assert!(matches!(
            CommandRecord::from_json(b"\xff"),
            Err(DecodeError::Malformed { .. })
        ));
    }
}
