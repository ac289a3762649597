//! What made an entity what it is: its commands and events, read back from the log's end.
//!
//! An entity's commands and events lie in the partitions of its own shard, among those of others, so they are looked
//! for; of somebody who came from another shard when the ring grew, there, too. Bounds: [`WINDOW`] records in memory at once, [`SCAN_MAX`] looked at in each topic; what lies further back is
//! not shown, and the answer says so. A person asks, not a program: this is no way to read a log.

use std::collections::BTreeSet;

use cabrank_eventlog::{EventLog, ReadError, Topic};
use cabrank_events::command::EntityId;
use cabrank_events::{Event, EventRecord, Time};

use crate::api::{EventsUnreadable, History, Past};
use crate::rings::Rings;

/// Records read at once.
const WINDOW: u64 = 2_048;
/// Records of a topic that are looked at before the search ends.
const SCAN_MAX: u64 = 65_536;

/// The newest `max` commands and events of an entity; see [`Dispatch::history`](crate::api::Dispatch::history).
pub(crate) fn of(
    log: &dyn EventLog,
    rings: &Rings,
    entity: &EntityId,
    max: usize,
) -> Result<History, EventsUnreadable> {
    let events = match entity {
        EntityId::Ride(_) => Topic::RideEvents,
        EntityId::Driver(_) | EntityId::Rider(_) | EntityId::Market => Topic::PersonEvents,
    };
    let key = entity.to_string();
    let (mut past, mut is_cut) = (Vec::new(), false);
    let (mut homes, mut read) = (rings.homes(log, entity), BTreeSet::new());
    while let Some(shard) = homes.pop() {
        if !read.insert(shard) {
            continue;
        }
        for topic in [Topic::RideCommands, events] {
            let found = newest(log, topic, shard, key.as_bytes(), max)
                .map_err(|why| EventsUnreadable::Failed(why.to_string()))?;
            is_cut |= found.is_cut;
            homes.extend(found.past.iter().filter_map(came_from));
            past.extend(found.past);
        }
    }
    // A command before the events of the same millisecond: it is their cause. The sort keeps a partition's order.
    past.sort_by_key(|entry| (entry.time, !entry.is_command));
    if past.len() > max {
        is_cut = true;
        past.drain(..past.len() - max);
    }
    Ok(History { past, is_cut })
}

/// The shard that has given this person to the one where the event stands.
fn came_from(past: &Past) -> Option<u16> {
    if past.is_command {
        return None;
    }
    match EventRecord::from_json(&past.json).ok()?.event {
        Event::DriverTakenOver(e) => Some(e.from.0),
        Event::RiderTakenOver(e) => Some(e.from.0),
        _ => None,
    }
}

/// The newest `max` records under `key` of one partition, oldest first.
fn newest(
    log: &dyn EventLog,
    topic: Topic,
    shard: u16,
    key: &[u8],
    max: usize,
) -> Result<History, ReadError> {
    let bounds = log.bounds(topic, shard)?;
    let mut found = Vec::new();
    let (mut to, last) = (bounds.end, bounds.end.saturating_sub(SCAN_MAX));
    while to > bounds.first.max(last) && found.len() < max {
        let from = to.saturating_sub(WINDOW).max(bounds.first).max(last);
        let records = match log.read(topic, shard, from, WINDOW as usize) {
            Ok(records) => records,
            // Trimmed while it was looked for: what is kept was read.
            Err(ReadError::TooOld { .. }) => break,
            Err(why) => return Err(why),
        };
        let of_entity = records
            .into_iter()
            .filter(|record| record.offset < to && record.key == key);
        let mut window: Vec<Past> = of_entity
            .map(|record| Past {
                time: Time(record.time_ms),
                is_command: topic == Topic::RideCommands,
                json: record.value,
            })
            .collect();
        window.append(&mut found);
        found = window;
        to = from;
    }
    Ok(History {
        is_cut: to > 0,
        past: found,
    })
}
