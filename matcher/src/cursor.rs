//! Places in the event log, and reading events of all partitions from a place on.

use bytes::Bytes;
use cabrank_eventlog::{Bounds, EventLog, ReadError, Topic};
use cabrank_events::Time;

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

/// A place that leaves no event at or after `time` out, and not many before it, but `most` events before the end at most; see
/// [`Dispatch::events_since`](crate::api::Dispatch::events_since).
pub(crate) fn since(log: &dyn EventLog, time: Time, most: u64) -> EventCursor {
    let ranges = |topic| -> Vec<(u64, u64)> {
        let range = |shard| {
            let Ok(bounds) = log.bounds(topic, shard) else {
                return (0, 0);
            };
            let time_at = |from| {
                let read = log.read(topic, shard, from, 1);
                read.ok().and_then(|records| Some(records.first()?.time_ms))
            };
            (back_to(bounds, time, most, time_at), bounds.end)
        };
        (0..log.shards()).map(range).collect()
    };
    let (rides, people) = (ranges(Topic::RideEvents), ranges(Topic::PersonEvents));
    let total: u64 = rides
        .iter()
        .chain(&people)
        .map(|(from, end)| end - from)
        .sum();
    let starts = |ranges: &[(u64, u64)]| {
        let start = |range: &(u64, u64)| newest_of(*range, total, most);
        ranges.iter().map(start).collect()
    };
    EventCursor {
        ride_events: starts(&rides),
        person_events: starts(&people),
    }
}

/// Where to begin in one partition: ever farther back, until what is there is older than `time`.
fn back_to(bounds: Bounds, time: Time, most: u64, time_at: impl Fn(u64) -> Option<i64>) -> u64 {
    let mut back = SINCE_FIRST;
    loop {
        let from = bounds.end.saturating_sub(back.min(most)).max(bounds.first);
        let is_before = || time_at(from).is_none_or(|first| first < time.0);
        if from == bounds.first || back >= most || is_before() {
            return from;
        }
        back = back.saturating_mul(SINCE_FACTOR);
    }
}

/// Of too many in all every partition gives up the same part, its oldest.
fn newest_of((from, end): (u64, u64), total: u64, most: u64) -> u64 {
    if total <= most {
        return from;
    }
    let part = u128::from(end - from) * u128::from(most) / u128::from(total);
    // Smaller than what it is a part of.
    end - u64::try_from(part).unwrap_or(0)
}

/// How far before the end [`since`] looks first, records of a partition, and by what it goes farther back.
const SINCE_FIRST: u64 = 1_024;
const SINCE_FACTOR: u64 = 4;

/// Up to `max` committed events after `cursor`, each with the place after it; see
/// [`Dispatch::read_events`](crate::api::Dispatch::read_events).
pub(crate) fn read(
    log: &dyn EventLog,
    cursor: &EventCursor,
    max: usize,
) -> Result<Vec<ReadEvent>, EventsUnreadable> {
    let named = cursor.ride_events.len().max(cursor.person_events.len());
    let mut shards = usize::from(log.shards());
    if named > shards {
        // Of a gateway that has heard of more shards already.
        shards = usize::from(log.look_for_shards());
    }
    if named > shards {
        return Err(EventsUnreadable::Gone);
    }
    // Of before there were more shards: those are read from their beginning.
    let mut cursor = cursor.clone();
    cursor.ride_events.resize(shards, 0);
    cursor.person_events.resize(shards, 0);
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
    let mut after = cursor;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_since_a_time_begins_before_it_and_not_far_before() {
        // A record a second.
        let begin = |first, end, time, most| {
            let bounds = Bounds { first, end };
            back_to(bounds, Time(time), most, |at| Some(at as i64 * 1_000))
        };
        let day = (0, 86_400);
        assert_eq!(begin(day.0, day.1, 86_000_000, 1 << 20), 86_400 - 1_024);
        assert_eq!(begin(day.0, day.1, 85_000_000, 1 << 20), 86_400 - 4_096);
        assert_eq!(begin(day.0, day.1, -1, 1 << 20), 0, "all there is");
        assert_eq!(
            begin(80_000, day.1, 1_000, 1 << 20),
            80_000,
            "as far as it is kept"
        );
        assert_eq!(
            begin(day.0, day.1, -1, 5_000),
            86_400 - 5_000,
            "no more than asked for"
        );
        assert_eq!(begin(7, 7, 0, 100), 7, "an empty partition");
    }

    #[test]
    fn of_too_many_events_each_partition_gives_the_newest_of_its_own() {
        assert_eq!(newest_of((100, 200), 100, 1_000), 100);
        assert_eq!(newest_of((100, 200), 400, 100), 175);
        assert_eq!(newest_of((0, 0), 400, 100), 0);
    }
}
