//! Transactions that the brokers have lost: decided, and yet open for ever.
//!
//! Who asks the coordinator is told that the transaction is over, but its end was never written to the partitions, so
//! no reader of committed records gets past it and no fence helps. Apache Kafka 4.1 to 4.3 do that when a broker comes
//! back while nobody leads the partitions (KAFKA-20734: "these partitions are likely deleted already and hence can be
//! skipped"): a single broker that is restarted with a transaction open.
//!
//! What ends it: the next end of a transaction of the same producer in the same partition, because a partition knows one
//! open transaction of each producer. So a transaction under the same transactional id writes one record without a value
//! to each of the partitions and ends as the lost one was to end. How that was is in the coordinator's own log, the topic
//! `__transaction_state`; without it nothing is done, since a guess could undo what somebody was told is done.
//!
//! Records without a value mean nothing in any of our topics; readers pass over them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerGroupMetadata};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::{Message, Offset, TopicPartitionList};
use tracing::{info, warn};

use super::client::{self, Isolation};
use super::config::KafkaConfig;
use super::log::Shared;
use super::producing::{Outward, Transactor, retire};
use super::stored::EVENTS;
use crate::Topic;

/// The coordinators' log.
const COORDINATOR: &str = "__transaction_state";
/// The groups' log: what is pending there ends with the group's offsets.
const GROUPS: &str = "__consumer_offsets";
/// Records of the coordinator's log that are looked through, from its end.
const LOOK_BACK: i64 = 500_000;
/// ... for a transaction that may be open: it began seconds ago at most, or nobody has written since.
const LOOK_BACK_OPEN: i64 = 5_000;
/// Longest wait for one of its records.
const PATIENCE: Duration = Duration::from_secs(2);
/// Between two looks at a partition: a transaction of somebody who works takes some tens of ms.
const STANDS_STILL: Duration = Duration::from_millis(300);
/// The key of a record that only carries a transaction to a partition.
const FILLER: &[u8] = b"\0filler";

/// How a transaction was to end, and where.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Decision {
    is_commit: bool,
    partitions: BTreeSet<(String, i32)>,
}

/// Ends what is hanging of this id, if this node is the one to do it: of the nodes that wait for the same transaction the
/// one with the lowest shard. `waiting` are this node's shards in which something is still open.
pub(super) fn end(
    shared: &Shared,
    id: &str,
    waiting: &BTreeSet<u16>,
    metadata: Option<&Arc<ConsumerGroupMetadata>>,
) {
    match try_end(shared, id, waiting, metadata) {
        Ok(true) => info!(id, "a transaction that the brokers had lost is ended"),
        Ok(false) => {}
        Err(why) => warn!(
            id,
            %why,
            "a transaction hangs and could not be ended: see `kafka-transactions.sh find-hanging`"
        ),
    }
}

/// What the coordinator says about the last transaction of this id.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Standing {
    /// There was none, or what is known of it does not say how it ended.
    Unknown,
    /// Begun, not decided.
    Open,
    /// Somebody is ending a lost one just now. To fence that would decide the lost one anew, and perhaps otherwise.
    BeingEnded,
    /// Decided and, as the coordinator believes, over.
    Decided(Decision),
}

/// May it be fenced? What is decided needs no fence, and while somebody ends a lost one a fence would decide it anew, and
/// otherwise: what was committed in some partitions would be aborted in the rest. Where nobody says, it may.
pub(super) fn may_be_fenced(shared: &Shared, id: &str) -> bool {
    let standing = standing(&shared.config, id, LOOK_BACK_OPEN).unwrap_or(Standing::Unknown);
    matches!(standing, Standing::Open | Standing::Unknown)
}

fn try_end(
    shared: &Shared,
    id: &str,
    waiting: &BTreeSet<u16>,
    metadata: Option<&Arc<ConsumerGroupMetadata>>,
) -> KafkaResult<bool> {
    let Standing::Decided(decision) = standing(&shared.config, id, LOOK_BACK)? else {
        return Ok(false);
    };
    let ours: Vec<(Topic, u16)> = decision
        .partitions
        .iter()
        .filter_map(|(topic, partition)| {
            Some((shared.names.topic(topic)?, u16::try_from(*partition).ok()?))
        })
        .collect();
    let first = ends(shared, &ours)?;
    let mut looks = ours.iter().zip(&first);
    if !looks.any(|((_, shard), end)| waiting.contains(shard) && end.stable < end.high) {
        return Ok(false);
    }
    let deadline = Instant::now() + STANDS_STILL;
    while Instant::now() < deadline {
        std::thread::park_timeout(STANDS_STILL);
    }
    let second = ends(shared, &ours)?;
    if lowest_hanging(&ours, &first, &second).is_none_or(|shard| !waiting.contains(&shard)) {
        return Ok(false);
    }
    info!(id, ?decision, "a transaction hangs");
    let producer = Transactor::start(&shared.config, &shared.names, id)?;
    producer.begin()?;
    for (topic, partition) in ours {
        producer.send(&Outward {
            topic,
            partition,
            key: FILLER,
            value: None,
            // If this attempt is cut short, whoever finds it is to know under which id it was written.
            note: Some(id.as_bytes()),
        })?;
    }
    producer.acknowledged()?;
    let end = || {
        if decision.is_commit {
            producer.commit()
        } else {
            producer.abort()
        }
    };
    end()?;
    // By itself, after what matters: the group refuses offsets whose sender's generation is over, and an attempt that
    // stops there would leave the partitions open, to be aborted by the broker's time-out, whatever was decided.
    let has_offsets = decision.partitions.iter().any(|(topic, _)| topic == GROUPS);
    if has_offsets && let Some(metadata) = metadata {
        // A partition that no node reads as a member: its offset means nothing.
        let mut offsets = TopicPartitionList::new();
        offsets.add_partition_offset(shared.names.of(Topic::ShardOwners), 0, Offset::Offset(0))?;
        let ended = producer
            .begin()
            .and_then(|()| producer.send_offsets(offsets, metadata))
            .and_then(|()| end());
        if let Err(why) = ended {
            info!(id, %why, "the group refused the offsets of a lost transaction: they are dropped");
            // Open, it would look like somebody's work until the broker's time-out.
            let _ = producer.abort();
        }
    }
    retire(producer);
    Ok(true)
}

/// Where partitions end (high watermark) and how far they are decided.
#[derive(Clone, Copy, Debug)]
struct End {
    high: u64,
    stable: u64,
}

fn ends(shared: &Shared, partitions: &[(Topic, u16)]) -> KafkaResult<Vec<End>> {
    let ask = |isolation| {
        shared
            .reader
            .ends(isolation, partitions)
            .map_err(|_| KafkaError::Canceled)
    };
    let (high, stable) = (ask(Isolation::Everything)?, ask(Isolation::Committed)?);
    let both = high.into_iter().zip(stable);
    Ok(both.map(|(high, stable)| End { high, stable }).collect())
}

/// The shard whose owner is to act: the lowest one in whose partitions something was open at both looks and nothing was
/// decided between them (somebody who works there decides many times in that while). First those whose end a takeover
/// waits for; where there is none of them, the others, at which a shard's owner looks (`standstill`).
fn lowest_hanging(partitions: &[(Topic, u16)], first: &[End], second: &[End]) -> Option<u16> {
    let looks = partitions.iter().zip(first.iter().zip(second));
    looks
        .filter(|(_, (first, second))| first.stable < first.high && second.stable == first.stable)
        .map(|((topic, shard), _)| {
            let keeps_a_takeover = *topic == Topic::ShardState || EVENTS.contains(topic);
            (!keeps_a_takeover, *shard)
        })
        .min()
        .map(|(_, shard)| shard)
}

/// Reads the coordinator's log.
fn standing(config: &KafkaConfig, id: &str, look_back: i64) -> KafkaResult<Standing> {
    let consumer: BaseConsumer = client::range_reader(config, Isolation::Everything).create()?;
    let metadata = consumer.fetch_metadata(Some(COORDINATOR), PATIENCE)?;
    let count = metadata
        .topics()
        .first()
        .map_or(0, |topic| topic.partitions().len());
    let Some(partition) = partition_of(id, count) else {
        return Ok(Standing::Unknown);
    };
    let (low, high) = consumer.fetch_watermarks(COORDINATOR, partition, PATIENCE)?;
    let mut list = TopicPartitionList::new();
    let from = low.max(high - look_back);
    list.add_partition_offset(COORDINATOR, partition, Offset::Offset(from))?;
    consumer.assign(&list)?;
    let mut history = History::default();
    let mut heard = Instant::now();
    let mut next = from;
    while next < high && heard.elapsed() < PATIENCE {
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(record)) => {
                heard = Instant::now();
                next = record.offset() + 1;
                if record.key().and_then(id_in).as_deref() == Some(id)
                    && let Some(entry) = record.payload().and_then(Entry::parse)
                {
                    history.add(entry);
                }
            }
            Some(Err(KafkaError::PartitionEOF(_))) => break,
            Some(Err(why)) => return Err(why),
            None => {}
        }
    }
    retire(consumer);
    Ok(history.standing())
}

/// Which partition of the coordinators' log has this id: Java's hash of the text.
fn partition_of(id: &str, count: usize) -> Option<i32> {
    let hash = id.encode_utf16().fold(0_i32, |hash, unit| {
        hash.wrapping_mul(31).wrapping_add(i32::from(unit))
    });
    let count = i32::try_from(count).ok().filter(|count| *count > 0)?;
    Some(hash.checked_abs().unwrap_or(0) % count)
}

/// What the coordinator wrote of one id, in order.
#[derive(Debug, Default)]
struct History {
    decided: Option<Decision>,
    /// Fenced since: whatever comes now is an attempt to end what hangs.
    is_past: bool,
    is_under_way: bool,
}

impl History {
    fn add(&mut self, entry: Entry) {
        self.is_under_way = !matches!(
            entry.status,
            Status::EMPTY | Status::COMPLETE_COMMIT | Status::COMPLETE_ABORT
        );
        match entry.status {
            Status::PREPARE_COMMIT | Status::PREPARE_ABORT => {
                let mut partitions = entry.partitions;
                if let Some(before) = self.decided.take().filter(|_| self.is_past) {
                    partitions.extend(before.partitions);
                }
                self.decided = Some(Decision {
                    is_commit: entry.status == Status::PREPARE_COMMIT,
                    partitions,
                });
            }
            Status::EMPTY => self.is_past = self.decided.is_some(),
            _ => {}
        }
    }

    fn standing(self) -> Standing {
        match self.decided {
            Some(_) if self.is_under_way && self.is_past => Standing::BeingEnded,
            _ if self.is_under_way => Standing::Open,
            Some(decision) => Standing::Decided(decision),
            None => Standing::Unknown,
        }
    }
}

/// The states of a transaction, as the coordinator writes them.
struct Status;

impl Status {
    const EMPTY: u8 = 0;
    const PREPARE_COMMIT: u8 = 2;
    const PREPARE_ABORT: u8 = 3;
    const COMPLETE_COMMIT: u8 = 4;
    const COMPLETE_ABORT: u8 = 5;
}

/// A record of the coordinator's log: Kafka's `TransactionLogValue`, versions 0 and 1.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    status: u8,
    partitions: BTreeSet<(String, i32)>,
}

/// The transactional id in a record's key (`TransactionLogKey`, version 0).
fn id_in(key: &[u8]) -> Option<String> {
    let mut at = Bytes(key);
    if at.i16()? != 0 {
        return None;
    }
    let length = usize::try_from(at.i16()?).ok()?;
    at.text(length)
}

impl Entry {
    fn parse(value: &[u8]) -> Option<Entry> {
        let mut at = Bytes(value);
        let version = at.i16()?;
        if !matches!(version, 0 | 1) {
            return None;
        }
        // Producer id, its epoch, the transaction time-out.
        at.take(8 + 2 + 4)?;
        let status = at.take(1)?[0];
        let is_compact = version == 1;
        let mut partitions = BTreeSet::new();
        for _ in 0..at.count(is_compact)? {
            let length = if is_compact {
                at.count(true)?
            } else {
                usize::try_from(at.i16()?).ok()?
            };
            let topic = at.text(length)?;
            for _ in 0..at.count(is_compact)? {
                partitions.insert((topic.clone(), at.i32()?));
            }
            if is_compact {
                at.skip_tags()?;
            }
        }
        Some(Entry { status, partitions })
    }
}

/// What is left to read.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, left) = self.0.split_at_checked(count)?;
        self.0 = left;
        Some(taken)
    }

    fn i16(&mut self) -> Option<i16> {
        Some(i16::from_be_bytes(self.take(2)?.try_into().ok()?))
    }

    fn i32(&mut self) -> Option<i32> {
        Some(i32::from_be_bytes(self.take(4)?.try_into().ok()?))
    }

    fn uvarint(&mut self) -> Option<u32> {
        let mut value = 0_u32;
        for shift in (0..32).step_by(7) {
            let byte = self.take(1)?[0];
            value |= u32::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    /// The length of a list; one that is absent has none.
    fn count(&mut self, is_compact: bool) -> Option<usize> {
        if is_compact {
            usize::try_from(self.uvarint()?.saturating_sub(1)).ok()
        } else {
            usize::try_from(self.i32()?.max(0)).ok()
        }
    }

    fn text(&mut self, length: usize) -> Option<String> {
        String::from_utf8(self.take(length)?.to_vec()).ok()
    }

    fn skip_tags(&mut self) -> Option<()> {
        for _ in 0..self.uvarint()? {
            self.uvarint()?;
            let length = usize::try_from(self.uvarint()?).ok()?;
            self.take(length)?;
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A record as a broker 4.3.1 writes it, or an older one.
    fn record(version: u8, status: u8, topic: &str, partitions: &[i32]) -> Vec<u8> {
        let mut bytes = vec![0, version];
        bytes.extend(1_012_i64.to_be_bytes());
        bytes.extend(1_i16.to_be_bytes());
        bytes.extend(10_000_i32.to_be_bytes());
        bytes.push(status);
        let count = u8::try_from(partitions.len()).unwrap();
        let length = u8::try_from(topic.len()).unwrap();
        if version == 1 {
            bytes.extend([2, length + 1]);
            bytes.extend(topic.as_bytes());
            bytes.push(count + 1);
        } else {
            bytes.extend([0, 0, 0, 1, 0, length]);
            bytes.extend(topic.as_bytes());
            bytes.extend([0, 0, 0, count]);
        }
        for partition in partitions {
            bytes.extend(partition.to_be_bytes());
        }
        if version == 1 {
            bytes.push(0);
        }
        bytes.extend([0; 17]);
        bytes
    }

    fn entry(status: u8, partitions: &[i32]) -> Entry {
        Entry {
            status,
            partitions: partitions.iter().map(|p| ("t".to_owned(), *p)).collect(),
        }
    }

    #[test]
    fn both_versions_of_the_coordinators_records_are_read_and_damaged_ones_are_not() {
        for version in [0, 1] {
            let bytes = record(version, Status::PREPARE_ABORT, "t", &[0, 5]);
            let expected = entry(Status::PREPARE_ABORT, &[0, 5]);
            assert_eq!(Entry::parse(&bytes), Some(expected));
            for length in 0..bytes.len() - 18 {
                assert_eq!(Entry::parse(&bytes[..length]), None, "cut at {length}");
            }
        }
        assert_eq!(Entry::parse(&[0, 9, 0, 0]), None, "of the future");
        assert_eq!(id_in(&[0, 0, 0, 2, b'i', b'd']).as_deref(), Some("id"));
        assert_eq!(id_in(&[0, 0, 0, 3, b'i', b'd']), None);
    }

    #[test]
    fn who_acts_is_the_owner_of_the_lowest_shard_where_nothing_is_decided_any_more() {
        let partitions = [
            (Topic::ShardOwners, 0),
            (Topic::RideCommands, 1),
            (Topic::ShardState, 2),
            (Topic::RideEvents, 3),
            (Topic::PersonEvents, 4),
        ];
        let looks = |ends: [(u64, u64); 5]| ends.map(|(stable, high)| End { high, stable });
        // An announcement hangs, too, and a message; no takeover waits for these, and shard 2 has an owner at work.
        let first = looks([(5, 9), (5, 9), (5, 9), (5, 9), (5, 9)]);
        let second = looks([(5, 9), (5, 9), (9, 12), (5, 9), (5, 9)]);
        assert_eq!(lowest_hanging(&partitions, &first, &second), Some(3));
        let left = looks([(9, 9), (5, 9), (9, 9), (9, 9), (9, 9)]);
        assert_eq!(lowest_hanging(&partitions, &first, &left), Some(1));
        let ended = looks([(9, 9), (9, 9), (9, 9), (9, 9), (9, 9)]);
        assert_eq!(lowest_hanging(&partitions, &first, &ended), None);
        assert_eq!(lowest_hanging(&partitions, &ended, &ended), None);
    }

    #[test]
    fn an_id_is_where_java_puts_it() {
        // Its hash is the least number there is, which has no absolute value.
        assert_eq!(partition_of("polygenelubricants", 7), Some(0));
        assert_eq!(partition_of("a", 50), Some(97 % 50));
        assert_eq!(partition_of("ab", 50), Some((97 * 31 + 98) % 50));
        assert_eq!(partition_of("a", 0), None);
    }

    #[test]
    fn what_was_decided_last_holds_and_is_not_asked_for_while_it_is_under_way() {
        let history = |entries: &[(u8, &[i32])]| {
            let mut history = History::default();
            for (status, partitions) in entries {
                history.add(entry(*status, partitions));
            }
            history.standing()
        };
        let decided = |is_commit, partitions: &[i32]| {
            Standing::Decided(Decision {
                is_commit,
                partitions: entry(0, partitions).partitions,
            })
        };
        assert_eq!(history(&[(0, &[])]), Standing::Unknown);
        assert_eq!(history(&[(0, &[]), (1, &[1])]), Standing::Open);
        assert_eq!(
            history(&[(0, &[]), (1, &[1]), (2, &[1])]),
            Standing::Open,
            "nearly"
        );
        assert_eq!(
            history(&[(2, &[1]), (4, &[]), (1, &[2])]),
            Standing::Open,
            "the next"
        );
        let mended: &[(u8, &[i32])] = &[(2, &[1]), (4, &[]), (0, &[]), (1, &[1])];
        assert_eq!(history(mended), Standing::BeingEnded);
        let two: &[(u8, &[i32])] = &[
            (0, &[]),
            (2, &[1]),
            (4, &[]),
            (1, &[2]),
            (3, &[2]),
            (5, &[]),
        ];
        assert_eq!(history(two), decided(false, &[2]));
        // Fenced, and then an attempt to end it that was itself cut short.
        let cut: &[(u8, &[i32])] = &[(2, &[1, 2]), (4, &[]), (0, &[]), (3, &[1]), (5, &[])];
        assert_eq!(history(cut), decided(false, &[1, 2]));
    }
}
