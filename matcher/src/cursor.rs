//! Places in the event log, and reading events of all partitions from a place on.

use bytes::Bytes;
use cabrank_eventlog::{Bounds, EventLog, ReadError, Topic};

use crate::api::{EventCursor, EventsUnreadable, ReadEvent};

/// The end of the event log.
pub(crate) fn end(log: &dyn EventLog) -> EventCursor {
    place(log, |bounds| bounds.end)
}

/// The oldest kept place of the event log.
pub(crate) fn start(log: &dyn EventLog) -> EventCursor {
    place(log, |bounds| bounds.first)
}

fn place(log: &dyn EventLog, pick: impl Fn(Bounds) -> u64) -> EventCursor {
    let offsets = |topic| {
        (0..log.shards())
            .map(|shard| log.bounds(topic, shard).map_or(0, &pick))
            .collect()
    };
    EventCursor {
        ride_events: offsets(Topic::RideEvents),
        person_events: offsets(Topic::PersonEvents),
    }
}

/// Up to `max` committed events after `cursor`, each with the place after it; see
/// [`Dispatch::read_events`](crate::api::Dispatch::read_events).
pub(crate) fn read(
    log: &dyn EventLog,
    cursor: &EventCursor,
    max: usize,
) -> Result<Vec<ReadEvent>, EventsUnreadable> {
    let shards = usize::from(log.shards());
    if cursor.ride_events.len() != shards || cursor.person_events.len() != shards {
        return Err(EventsUnreadable::Gone);
    }
    // A little of every partition, merged. What lies beyond the last record of a partition that has more may have
    // to wait for them: it is read again next time.
    let share = (max / (2 * shards)).max(1);
    let mut found: Vec<(EventOrder, Topic, u64, Bytes)> = Vec::new();
    let mut frontier: Option<EventOrder> = None;
    for (topic, offsets) in [
        (Topic::RideEvents, &cursor.ride_events),
        (Topic::PersonEvents, &cursor.person_events),
    ] {
        for (shard, offset) in (0u16..).zip(offsets) {
            let records = log
                .read(topic, shard, *offset, share)
                .map_err(|why| match why {
                    ReadError::TooOld { .. } => EventsUnreadable::Gone,
                    other => EventsUnreadable::Failed(other.to_string()),
                })?;
            let order = |record: &cabrank_eventlog::Record| {
                (record.time_ms, shard, event_number(&record.value))
            };
            if let Some(last) = records.last().filter(|_| records.len() == share) {
                let last = order(last);
                frontier = Some(frontier.map_or(last, |least| least.min(last)));
            }
            found.extend(
                records
                    .into_iter()
                    .map(|r| (order(&r), topic, r.offset, r.value)),
            );
        }
    }
    found.retain(|(order, ..)| frontier.is_none_or(|least| *order <= least));
    found.sort_by_key(|(order, ..)| *order);
    found.truncate(max);
    let mut after = cursor.clone();
    let read = found
        .into_iter()
        .map(|((_, shard, _), topic, offset, json)| {
            let offsets = match topic {
                Topic::RideEvents => &mut after.ride_events,
                _ => &mut after.person_events,
            };
            offsets[usize::from(shard)] = offset + 1;
            ReadEvent {
                json,
                after: after.clone(),
            }
        });
    Ok(read.collect())
}

/// Where an event comes in a merged stream: append time, shard, number in its shard.
type EventOrder = (i64, u16, u64);

/// An event's number in its shard, read from the id our own encoder puts first (`{"specversion":"1.0","id":"3-1042"`).
/// It only orders what is read together; a record of another shape sorts first.
fn event_number(value: &[u8]) -> u64 {
    const BEFORE: &[u8] = br#"{"specversion":"1.0","id":""#;
    let Some(rest) = value.strip_prefix(BEFORE) else {
        return 0;
    };
    let digits = rest.iter().skip_while(|byte| **byte != b'-').skip(1);
    digits
        .take_while(|byte| byte.is_ascii_digit())
        .fold(0, |number: u64, byte| {
            number.wrapping_mul(10).wrapping_add(u64::from(byte - b'0'))
        })
}
