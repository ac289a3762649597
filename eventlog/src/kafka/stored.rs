//! What a shard's own records look like in `shard-state` and `shard-owners`.
//!
//! `shard-state` holds one record per entity (key: entity, value: state, or a tombstone), and one per shard that says
//! how far it is: key [`HEADER_KEY`], value the engine's part, and the log's part as JSON in Kafka's header `cabrank`.
//! `shard-owners` holds JSON under the shard's number. Anybody may read both.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::inbox::Inward;
use crate::{Header, OwnerRecord, Recovered, Topic};

/// The key of a shard's header in `shard-state`. No entity may have it.
pub(super) const HEADER_KEY: &[u8] = b"\0header";
/// The topics whose fold gives the states.
pub(super) const EVENTS: [Topic; 2] = [Topic::RideEvents, Topic::PersonEvents];

/// The log's part of a shard's header.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Note {
    /// Counts the owners of the shard. An announcement raises it.
    pub epoch: u64,
    /// The owner's name.
    pub node: String,
    /// The transactional ids it writes under: a successor fences them.
    pub ids: Vec<String>,
    /// The engine's last word; absent until there was one.
    pub committed: Option<Committed>,
}

/// How far the shard was when the engine last committed. An announcement carries it on unchanged.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Committed {
    pub next_input: u64,
    pub time_ms: i64,
    /// Of the owner that committed, not of one that only announced itself since.
    pub epoch: u64,
    pub owner: String,
    /// Where each topic of [`EVENTS`] stood.
    pub event_ends: [u64; EVENTS.len()],
}

/// A shard as its partition of `shard-state` has it, up to some offset.
#[derive(Clone, Debug, Default)]
pub(super) struct ShardImage {
    pub note: Option<Note>,
    pub engine: Bytes,
    states: BTreeMap<Bytes, Bytes>,
}

/// A header that is not what this program writes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the shard's header at offset {offset} is not readable: {why}")]
pub(super) struct BadHeader {
    offset: u64,
    why: String,
}

/// The note of a header record; `None` for a record of an entity.
pub(super) fn note_in(inward: &Inward) -> Option<Result<Note, BadHeader>> {
    let Inward::Record {
        key, note, offset, ..
    } = inward
    else {
        return None;
    };
    if key.as_ref() != HEADER_KEY {
        return None;
    }
    Some(
        serde_json::from_slice(note.as_deref().unwrap_or_default()).map_err(|why| BadHeader {
            offset: *offset,
            why: why.to_string(),
        }),
    )
}

impl ShardImage {
    /// Takes in the next record of the partition. Was it the shard's header?
    pub(super) fn take(&mut self, inward: Inward) -> Result<bool, BadHeader> {
        if let Some(note) = note_in(&inward) {
            self.note = Some(note?);
            if let Inward::Record { value, .. } = inward {
                self.engine = value.unwrap_or_default();
            }
            return Ok(true);
        }
        if let Inward::Record { key, value, .. } = inward {
            match value {
                Some(value) => self.states.insert(key, value),
                None => self.states.remove(&key),
            };
        }
        Ok(false)
    }

    /// As readers of the log know it.
    pub(super) fn recovered(&self) -> Recovered {
        let committed = self.note.as_ref().and_then(|note| note.committed.as_ref());
        let ends = committed.map_or([0; EVENTS.len()], |committed| committed.event_ends);
        Recovered {
            header: committed.map(|committed| Header {
                next_input: committed.next_input,
                time_ms: committed.time_ms,
                epoch: committed.epoch,
                owner: committed.owner.clone(),
                engine: self.engine.clone(),
            }),
            states: self
                .states
                .iter()
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect(),
            event_ends: EVENTS.into_iter().zip(ends).collect(),
        }
    }
}

/// The value of a record in `shard-owners`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Announcement {
    pub shard: u16,
    pub epoch: u64,
    pub node: String,
    pub address: String,
    pub generation: i32,
}

impl From<Announcement> for OwnerRecord {
    fn from(said: Announcement) -> OwnerRecord {
        OwnerRecord {
            shard: said.shard,
            epoch: said.epoch,
            node: said.node,
            address: said.address,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(offset: u64, key: &[u8], value: Option<&str>, note: Option<&Note>) -> Inward {
        Inward::Record {
            topic: Topic::ShardState,
            partition: 0,
            offset,
            time_ms: 0,
            key: Bytes::copy_from_slice(key),
            value: value.map(|value| Bytes::copy_from_slice(value.as_bytes())),
            note: note.map(|note| serde_json::to_vec(note).unwrap().into()),
        }
    }

    #[test]
    fn an_announcement_leaves_the_engines_last_word_as_it_was() {
        let mut image = ShardImage::default();
        let committed = Committed {
            next_input: 7,
            epoch: 3,
            owner: "a".into(),
            event_ends: [4, 5],
            ..Committed::default()
        };
        let mut note = Note {
            epoch: 3,
            node: "a".into(),
            ids: vec!["a1".into()],
            committed: Some(committed),
        };
        image
            .take(record(0, b"driver", Some("free"), None))
            .unwrap();
        image
            .take(record(1, HEADER_KEY, Some("engine"), Some(&note)))
            .unwrap();
        let before = image.recovered();
        note.epoch = 4;
        note.node = "b".into();
        image
            .take(record(3, HEADER_KEY, Some("engine"), Some(&note)))
            .unwrap();
        assert_eq!(image.recovered(), before);
        assert_eq!(before.header.as_ref().unwrap().owner, "a");
        assert_eq!(before.event_ends[1], (Topic::PersonEvents, 5));
        image.take(record(5, b"driver", None, None)).unwrap();
        assert_eq!(image.recovered().states, []);
        assert!(image.take(record(6, HEADER_KEY, Some(""), None)).is_err());
    }
}
