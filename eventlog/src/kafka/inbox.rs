//! What a consumer is told by the brokers, as plain values: records, ends of partitions, assignments, errors.
//!
//! The consumer's queue is read here and not through `BaseConsumer::poll`, for two reasons: only the event itself says
//! at which offset a partition's end was seen, which PROTOCOL 15 needs (a commit marker keeps the position below it);
//! and assignments come as values to the loop that owns the shards, not as callbacks in the middle of something.
//! Everything unsafe of this crate is in this file: rdkafka has no safe way to a queue's events, nor to a member's generation
//! and id (`membership`); ARCHITECTURE.md, "Known limits", says what of its safe API was looked at.

use std::ffi::{CStr, CString};
use std::mem::ManuallyDrop;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rdkafka::bindings as rd;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::{ClientConfig, ClientContext, Offset, TopicPartitionList};
use tracing::{debug, warn};

use super::names::Names;
use crate::{Record, Topic};

/// Kafka's header that carries our own bookkeeping beside a record's value.
pub(super) const NOTE: &CStr = c"cabrank";

/// Longest wait for the group's word that a consumer which leaves has nothing any more.
const LEAVE_MAX: Duration = Duration::from_millis(500);
/// Between two looks for it.
const LEAVE_LOOK: Duration = Duration::from_millis(10);
/// Longest wait for a consumer to leave its group and close.
const CLOSE_MAX: Duration = Duration::from_secs(3);

/// Something that came.
#[derive(Debug)]
pub(super) enum Inward {
    /// A record, with its `cabrank` header if it has one. A value of `None` is a tombstone.
    Record {
        topic: Topic,
        partition: u16,
        offset: u64,
        time_ms: i64,
        key: Bytes,
        value: Option<Bytes>,
        note: Option<Bytes>,
    },
    /// Everything before `offset` was seen; nothing is there beyond it at this moment.
    End { partition: u16, offset: u64 },
    /// The group gave this member these partitions. To be answered with an assignment.
    Assigned(Vec<u16>),
    /// The group takes all partitions back. To be answered with an unassignment.
    Revoked,
    /// The answer to [`Inbox::commit_offset`], with the mark it was given.
    Committed(u64, Result<(), RDKafkaErrorCode>),
    /// An error, of one partition or of the connection.
    Failed {
        topic: Option<Topic>,
        partition: Option<u16>,
        code: RDKafkaErrorCode,
        fatal: bool,
        why: String,
    },
}

impl Inward {
    /// The record as readers of a topic know it.
    pub(super) fn into_record(self) -> Option<Record> {
        match self {
            Inward::Record {
                offset,
                time_ms,
                key,
                value,
                ..
            } => Some(Record {
                offset,
                time_ms,
                key,
                value: value.unwrap_or_default(),
            }),
            _ => None,
        }
    }
}

/// The client library's own words, for our log.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Words;

impl ClientContext for Words {
    fn log(&self, level: rdkafka::config::RDKafkaLogLevel, facility: &str, message: &str) {
        use rdkafka::config::RDKafkaLogLevel as L;
        // Every client says of every connection that it failed; what it means is said where it is used.
        if facility == "FAIL" {
            debug!(facility, message, "kafka client");
            return;
        }
        match level {
            L::Emerg | L::Alert | L::Critical | L::Error | L::Warning => {
                warn!(facility, message, "kafka client");
            }
            L::Notice | L::Info | L::Debug => debug!(facility, message, "kafka client"),
        }
    }
    fn error(&self, error: KafkaError, reason: &str) {
        debug!(%error, reason, "kafka client");
    }
}

impl ConsumerContext for Words {}

/// A consumer and its queue.
pub(super) struct Inbox {
    queue: *mut rd::rd_kafka_queue_t,
    consumer: ManuallyDrop<BaseConsumer<Words>>,
    names: Names,
}

// SAFETY: `BaseConsumer` may be shared between threads, and so may a librdkafka queue: its operations lock it.
unsafe impl Send for Inbox {}
// SAFETY: as above.
unsafe impl Sync for Inbox {}

impl Drop for Inbox {
    fn drop(&mut self) {
        // What the group said last is answered while it still listens: an answer given during the close can wait for
        // ever in the client library. The group is left before the close, which takes its time for other things: whoever
        // gets the shards is waiting.
        let count = |list: KafkaResult<TopicPartitionList>| list.map_or(0, |list| list.count());
        let mut is_leaving =
            count(self.consumer.subscription()) > 0 && count(self.consumer.assignment()) > 0;
        self.consumer.unsubscribe();
        let deadline = Instant::now() + LEAVE_MAX;
        loop {
            let wait = if is_leaving {
                LEAVE_LOOK
            } else {
                Duration::ZERO
            };
            let inward = self.next(wait);
            if matches!(inward, Some(Inward::Assigned(_) | Inward::Revoked)) {
                // A consumer that is beyond this is closed below all the same.
                let _ = self.consumer.unassign();
                is_leaving = false;
            }
            is_leaving &= Instant::now() < deadline;
            if inward.is_none() && !is_leaving {
                break;
            }
        }
        // SAFETY: the handle is ours and not used after this. It goes before the client it belongs to.
        unsafe { rd::rd_kafka_queue_destroy(self.queue) }
        // SAFETY: taken once, here; nothing uses it after this.
        let consumer = unsafe { ManuallyDrop::take(&mut self.consumer) };
        // Elsewhere, so that a close that never ends stops nobody; waited for, so that a node that ends has left.
        let (closed, is_closed) = std::sync::mpsc::sync_channel(1);
        let closing = std::thread::Builder::new().spawn(move || {
            drop(consumer);
            // Whoever waited may be gone.
            let _ = closed.send(());
        });
        if closing.is_ok() && is_closed.recv_timeout(CLOSE_MAX).is_err() {
            warn!("a consumer is still closing after {CLOSE_MAX:?}");
        }
    }
}

impl Inbox {
    pub(super) fn new(config: &ClientConfig, names: &Names) -> KafkaResult<Inbox> {
        let consumer: BaseConsumer<Words> = config.create_with_context(Words)?;
        // SAFETY: the client lives; a consumer with a group id, as all of ours are made, has such a queue.
        let queue = unsafe { rd::rd_kafka_queue_get_consumer(consumer.client().native_ptr()) };
        if queue.is_null() {
            return Err(KafkaError::ClientCreation("no consumer queue".into()));
        }
        Ok(Inbox {
            queue,
            consumer: ManuallyDrop::new(consumer),
            names: names.clone(),
        })
    }

    pub(super) fn consumer(&self) -> &BaseConsumer<Words> {
        &self.consumer
    }

    /// Reads these partitions from these offsets on, and no others. Nothing read before comes out afterwards.
    pub(super) fn assign(
        &self,
        positions: impl IntoIterator<Item = (Topic, u16, u64)>,
    ) -> KafkaResult<()> {
        let mut list = TopicPartitionList::new();
        for (topic, partition, offset) in positions {
            let offset = Offset::Offset(i64::try_from(offset).unwrap_or(i64::MAX));
            list.add_partition_offset(self.names.of(topic), i32::from(partition), offset)?;
        }
        self.consumer.assign(&list)
    }

    /// Commits an offset as the member this consumer is now; the answer comes out of [`Inbox::next`] with the mark.
    pub(super) fn commit_offset(
        &self,
        topic: Topic,
        partition: u16,
        offset: u64,
        mark: u64,
    ) -> Result<(), RDKafkaErrorCode> {
        let Ok(name) = CString::new(self.names.of(topic)) else {
            return Err(RDKafkaErrorCode::InvalidTopic);
        };
        // `BaseConsumer::commit` has no answer unless it waits for it.
        // SAFETY: the list is ours from its making to its destruction and is copied by the commit; client and queue live
        // as long as this; the mark is handed back as the number it is.
        let code = unsafe {
            let list = rd::rd_kafka_topic_partition_list_new(1);
            let element =
                rd::rd_kafka_topic_partition_list_add(list, name.as_ptr(), i32::from(partition));
            (*element).offset = i64::try_from(offset).unwrap_or(i64::MAX);
            let code = rd::rd_kafka_commit_queue(
                self.consumer.client().native_ptr(),
                list,
                self.queue,
                None,
                mark as usize as *mut std::ffi::c_void,
            );
            rd::rd_kafka_topic_partition_list_destroy(list);
            code
        };
        match RDKafkaErrorCode::from(code) {
            RDKafkaErrorCode::NoError => Ok(()),
            code => Err(code),
        }
    }

    /// Makes the [`Inbox::next`] under way, or else the next one that would wait, return `None`.
    pub(super) fn wake(&self) {
        // SAFETY: the queue lives as long as this.
        unsafe { rd::rd_kafka_queue_yield(self.queue) }
    }

    /// The next thing that came. Waits at most `timeout`, to the millisecond; `None` also when woken.
    pub(super) fn next(&self, timeout: Duration) -> Option<Inward> {
        // Rounded up: a wait of half a millisecond that became none would spin.
        let ms = i32::try_from(timeout.as_micros().div_ceil(1_000)).unwrap_or(i32::MAX);
        loop {
            // SAFETY: the queue lives as long as this; the event is ours until the guard destroys it.
            let event = unsafe { rd::rd_kafka_queue_poll(self.queue, ms) };
            if event.is_null() {
                return None;
            }
            let event = Event(event);
            if let Some(inward) = event.read(&self.names) {
                return Some(inward);
            }
            // The client's own words and the like: not what was waited for. A waiting caller has a loop of its own.
            if ms > 0 {
                return None;
            }
        }
    }
}

/// An event of the client library, destroyed when dropped.
struct Event(*mut rd::rd_kafka_event_t);

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: the event came from `rd_kafka_queue_poll` and is destroyed once, here.
        unsafe { rd::rd_kafka_event_destroy(self.0) }
    }
}

impl Event {
    fn read(&self, names: &Names) -> Option<Inward> {
        // Of the calls below and in the functions of each type: the event lives until `self` is dropped, each accessor is
        // called for the type of event it belongs to, and what it points to is copied before the function returns.
        // SAFETY: valid for every type of event.
        match unsafe { rd::rd_kafka_event_type(self.0) } {
            rd::RD_KAFKA_EVENT_FETCH => self.record(names),
            rd::RD_KAFKA_EVENT_ERROR => self.error(names),
            rd::RD_KAFKA_EVENT_REBALANCE => Some(self.rebalance(names)),
            rd::RD_KAFKA_EVENT_OFFSET_COMMIT => {
                let code = RDKafkaErrorCode::from(self.code());
                // SAFETY: an offset commit's event carries what `commit_offset` put there: a number, not an address.
                let mark = unsafe { rd::rd_kafka_event_opaque(self.0) } as usize as u64;
                let result = match code {
                    RDKafkaErrorCode::NoError => Ok(()),
                    code => Err(code),
                };
                Some(Inward::Committed(mark, result))
            }
            rd::RD_KAFKA_EVENT_LOG => {
                self.log();
                None
            }
            _ => None,
        }
    }

    fn code(&self) -> rd::rd_kafka_resp_err_t {
        // SAFETY: valid for every type of event.
        unsafe { rd::rd_kafka_event_error(self.0) }
    }

    fn record(&self, names: &Names) -> Option<Inward> {
        // SAFETY: a fetch event holds one message, which lives as long as the event.
        let message = unsafe { rd::rd_kafka_event_message_next(self.0).as_ref() }?;
        // SAFETY: a fetched message names its topic, and the name lives as long as the topic handle.
        let name = unsafe { CStr::from_ptr(rd::rd_kafka_topic_name(message.rkt)) };
        let topic = names.topic(name.to_str().ok()?)?;
        if message.payload.is_null() && topic != Topic::ShardState {
            // It only carried the end of a transaction (`hanging`); in the states it removes one that never was.
            return None;
        }
        let mut kind = rd::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
        // SAFETY: the message lives; `kind` is written to.
        let time_ms = unsafe { rd::rd_kafka_message_timestamp(message, &mut kind) };
        // SAFETY: pointer and length belong together and live as long as the message.
        let (key, value) = unsafe {
            (
                copied(message.key, message.key_len),
                copied(message.payload, message.len),
            )
        };
        Some(Inward::Record {
            topic,
            partition: u16::try_from(message.partition).ok()?,
            offset: u64::try_from(message.offset).ok()?,
            time_ms,
            key: key.unwrap_or_default(),
            value,
            note: note_of(message),
        })
    }

    fn error(&self, names: &Names) -> Option<Inward> {
        let code = RDKafkaErrorCode::from(self.code());
        let mut place = None;
        // SAFETY: an error event may name a partition; what it returns is ours to destroy.
        let named = unsafe { rd::rd_kafka_event_topic_partition(self.0) };
        // SAFETY: checked for null by `as_ref`; not used after it is destroyed.
        if let Some(partition) = unsafe { named.as_ref() } {
            // SAFETY: the list element names its topic.
            let name = unsafe { CStr::from_ptr(partition.topic) };
            let topic = name.to_str().ok().and_then(|name| names.topic(name));
            place = Some((
                topic,
                u16::try_from(partition.partition).ok(),
                u64::try_from(partition.offset).ok(),
            ));
            // SAFETY: ours, destroyed once.
            unsafe { rd::rd_kafka_topic_partition_destroy(named) };
        }
        let (topic, partition, offset) = place.unwrap_or_default();
        if code == RDKafkaErrorCode::PartitionEOF {
            return Some(Inward::End {
                partition: partition?,
                offset: offset?,
            });
        }
        // SAFETY: an error event has a text that lives as long as it; it may be null.
        let why = unsafe {
            let text = rd::rd_kafka_event_error_string(self.0);
            if text.is_null() {
                String::new()
            } else {
                CStr::from_ptr(text).to_string_lossy().into_owned()
            }
        };
        Some(Inward::Failed {
            topic,
            partition,
            code,
            // SAFETY: an error event.
            fatal: unsafe { rd::rd_kafka_event_error_is_fatal(self.0) } != 0,
            why,
        })
    }

    fn rebalance(&self, names: &Names) -> Inward {
        if RDKafkaErrorCode::from(self.code()) != RDKafkaErrorCode::AssignPartitions {
            return Inward::Revoked;
        }
        // SAFETY: a rebalance event has a list, which the event owns.
        let list = unsafe { rd::rd_kafka_event_topic_partition_list(self.0).as_ref() };
        let mut partitions = Vec::new();
        if let Some(list) = list
            && !list.elems.is_null()
            && let Ok(count) = usize::try_from(list.cnt)
        {
            // SAFETY: `elems` has `cnt` elements.
            for element in unsafe { std::slice::from_raw_parts(list.elems, count) } {
                // SAFETY: each element names its topic.
                let name = unsafe { CStr::from_ptr(element.topic) };
                if name.to_str().ok().and_then(|name| names.topic(name))
                    == Some(Topic::RideCommands)
                    && let Ok(partition) = u16::try_from(element.partition)
                {
                    partitions.push(partition);
                }
            }
        }
        partitions.sort_unstable();
        Inward::Assigned(partitions)
    }

    fn log(&self) {
        let (mut facility, mut text, mut level) = (std::ptr::null(), std::ptr::null(), 0);
        // SAFETY: a log event; the three are written to, and the texts live as long as the event.
        let (facility, text) = unsafe {
            if rd::rd_kafka_event_log(self.0, &mut facility, &mut text, &mut level) != 0 {
                return;
            }
            (CStr::from_ptr(facility), CStr::from_ptr(text))
        };
        // Syslog's numbers: 4 is a warning, smaller is worse.
        let level = if level <= 4 {
            rdkafka::config::RDKafkaLogLevel::Warning
        } else {
            rdkafka::config::RDKafkaLogLevel::Debug
        };
        Words.log(level, &facility.to_string_lossy(), &text.to_string_lossy());
    }
}

/// # Safety
/// `at` is null or the start of `length` readable bytes.
unsafe fn copied(at: *const std::ffi::c_void, length: usize) -> Option<Bytes> {
    if at.is_null() {
        return None;
    }
    // SAFETY: as promised by the caller.
    let bytes = unsafe { std::slice::from_raw_parts(at.cast::<u8>(), length) };
    Some(Bytes::copy_from_slice(bytes))
}

fn note_of(message: &rd::rd_kafka_message_t) -> Option<Bytes> {
    let mut headers = std::ptr::null_mut();
    // SAFETY: the message lives and keeps its headers; `headers` is written to.
    let code = unsafe { rd::rd_kafka_message_headers(message, &mut headers) };
    if RDKafkaErrorCode::from(code) != RDKafkaErrorCode::NoError {
        return None;
    }
    let (mut at, mut length) = (std::ptr::null(), 0);
    // SAFETY: the headers live as long as the message; `at` and `length` are written to.
    let code =
        unsafe { rd::rd_kafka_header_get_last(headers, NOTE.as_ptr(), &mut at, &mut length) };
    if RDKafkaErrorCode::from(code) != RDKafkaErrorCode::NoError {
        return None;
    }
    // SAFETY: they belong together and live as long as the message.
    unsafe { copied(at, length) }
}

/// Which life in the group a consumer is in: generation and member id; `None` when it is in none.
pub(super) fn membership(consumer: &BaseConsumer<Words>) -> Option<(i32, String)> {
    // SAFETY: the client lives; the metadata is ours to destroy; the member id is copied before that.
    unsafe {
        let metadata = rd::rd_kafka_consumer_group_metadata(consumer.client().native_ptr());
        if metadata.is_null() {
            return None;
        }
        let generation = rd::rd_kafka_consumer_group_metadata_generation_id(metadata);
        let member = rd::rd_kafka_consumer_group_metadata_member_id(metadata);
        let member = if member.is_null() {
            String::new()
        } else {
            CStr::from_ptr(member).to_string_lossy().into_owned()
        };
        rd::rd_kafka_consumer_group_metadata_destroy(metadata);
        // PROTOCOL 24: the broker does not check these two, so they must never reach it.
        (generation >= 0 && !member.is_empty()).then_some((generation, member))
    }
}

#[cfg(test)]
mod tests {
    use super::super::client;
    use super::super::config::KafkaConfig;
    use super::*;

    /// PROTOCOL 24. That a broker takes such metadata is shown by `kafka_takeover.rs` (`Sabotage::NoMembership`).
    #[test]
    fn a_consumer_in_no_group_has_no_membership_though_the_client_has_metadata_for_it() {
        let config = KafkaConfig {
            // Nobody is there, and nobody is asked.
            brokers: "127.0.0.1:1".into(),
            ..KafkaConfig::default()
        };
        let inbox = Inbox::new(&client::member(&config), &Names::new("")).unwrap();
        let metadata = inbox.consumer().group_metadata();
        assert!(metadata.is_some(), "which a transaction could be given");
        assert_eq!(membership(inbox.consumer()), None);
    }
}
