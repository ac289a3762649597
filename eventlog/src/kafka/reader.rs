//! Reading what the brokers have, whoever wrote it: ends of partitions, ranges of records.
//!
//! Offsets are Kafka's: the markers that end transactions take offsets, too, so records come in order and none is left
//! out, but their offsets have gaps. A range is read to an end that was asked for before; that end is reached by a
//! record just below it or by the partition's end at or beyond it, never by a position.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::{Offset, TopicPartitionList};
use tracing::warn;

use super::client::{self, Isolation, REQUEST_MS};
use super::config::KafkaConfig;
use super::inbox::{Inbox, Inward};
use super::members::Member;
use super::names::Names;
use super::producing::retire;
use crate::{Bounds, ReadError, Topic};

/// Consumers kept for the next read: a takeover's four and the keeper's. More are made and closed when more threads read
/// at once.
const IDLE_MAX: usize = 5;
/// Longest wait for one answer, in ms: a question to a broker that died is asked again, of its successor.
const ATTEMPT_MS: u64 = 700;
/// Between a question that failed and the next one.
const RETRY: Duration = Duration::from_millis(100);
/// Between two looks at something that is about to change.
pub(super) const LOOK: Duration = Duration::from_millis(5);

fn request() -> Duration {
    Duration::from_millis(REQUEST_MS.into())
}

/// Asks and reads. Shared by all of a process that have the log open.
pub(super) struct Reader {
    config: KafkaConfig,
    names: Names,
    /// For questions only; never assigned anything.
    stable: Mutex<Arc<Inbox>>,
    high: Mutex<Arc<Inbox>>,
    idle: Mutex<Vec<Inbox>>,
    /// Ends that transactions of this process reached. A commit is answered before its markers are everywhere; whoever
    /// committed and then reads here must find it.
    floors: Mutex<HashMap<(Topic, u16), u64>>,
}

pub(super) fn unavailable(why: impl std::fmt::Display) -> ReadError {
    ReadError::Unavailable(why.to_string())
}

fn new_asker(
    config: &KafkaConfig,
    names: &Names,
    isolation: Isolation,
) -> Result<Mutex<Arc<Inbox>>, KafkaError> {
    let asker = Inbox::new(&client::reader(config, isolation), names)?;
    Ok(Mutex::new(Arc::new(asker)))
}

impl Reader {
    pub(super) fn new(config: &KafkaConfig, names: &Names) -> Result<Reader, KafkaError> {
        Ok(Reader {
            config: config.clone(),
            names: names.clone(),
            stable: new_asker(config, names, Isolation::Committed)?,
            high: new_asker(config, names, Isolation::Everything)?,
            idle: Mutex::new(Vec::new()),
            floors: Mutex::new(HashMap::new()),
        })
    }

    /// Reads of this process wait until the partition is stable up to here.
    pub(super) fn raise_floor(&self, topic: Topic, partition: u16, end: u64) {
        let mut floors = self.floors.lock().unwrap_or_else(PoisonError::into_inner);
        let floor = floors.entry((topic, partition)).or_default();
        *floor = end.max(*floor);
    }

    fn asker_of(&self, isolation: Isolation) -> &Mutex<Arc<Inbox>> {
        match isolation {
            Isolation::Committed => &self.stable,
            Isolation::Everything => &self.high,
        }
    }

    /// A new client asks from here on. After a broker came back the old one may hold for good that a partition does not
    /// exist (seen with librdkafka 2.12: "Local: Unknown partition" for 40 s, while its neighbours were answered).
    fn ask_anew(&self, isolation: Isolation) {
        match Inbox::new(&client::reader(&self.config, isolation), &self.names) {
            Ok(asker) => {
                let old = {
                    let mut current = self
                        .asker_of(isolation)
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner);
                    std::mem::replace(&mut *current, Arc::new(asker))
                };
                warn!(?isolation, "questions are asked by a new client");
                retire(old);
            }
            Err(why) => warn!(%why, "no new client for questions"),
        }
    }

    fn asker(&self, isolation: Isolation) -> Arc<Inbox> {
        let asker = {
            let current = self.asker_of(isolation).lock();
            Arc::clone(&current.unwrap_or_else(PoisonError::into_inner))
        };
        // Nobody waits on its queue: what the client says of itself would pile up there.
        while asker.next(Duration::ZERO).is_some() {}
        asker
    }

    /// Asks until there is an answer or the time for a request is over; from half of it on by a new client.
    fn persist<T>(
        &self,
        isolation: Isolation,
        partitions: &[(Topic, u16)],
        ask: impl Fn() -> Result<T, ReadError>,
    ) -> Result<T, ReadError> {
        let began = Instant::now();
        let mut is_new = false;
        loop {
            match ask() {
                Ok(answer) => return Ok(answer),
                Err(why) if began.elapsed() >= request() => return Err(why),
                Err(_) if !is_new && began.elapsed() >= request() / 2 => {
                    is_new = true;
                    self.ask_anew(isolation);
                }
                Err(_) => self.look_for_leaders(isolation, partitions),
            }
        }
    }

    /// Where partitions end: the last stable offset, or the high watermark. One request per broker.
    pub(super) fn ends(
        &self,
        isolation: Isolation,
        partitions: &[(Topic, u16)],
    ) -> Result<Vec<u64>, ReadError> {
        self.persist(isolation, partitions, || {
            self.ends_now(isolation, partitions)
        })
    }

    /// After a question failed: a partition is between two leaders, or its topic was made a moment ago. The client
    /// library looks for a partition it does not read only when told to.
    pub(super) fn look_for_leaders(&self, isolation: Isolation, partitions: &[(Topic, u16)]) {
        let asker = self.asker(isolation);
        let patience = Duration::from_millis(ATTEMPT_MS);
        let mut topics: Vec<Topic> = partitions.iter().map(|(topic, _)| *topic).collect();
        topics.dedup();
        for topic in topics {
            // Whether it helped is seen by asking again.
            let _ = asker
                .consumer()
                .fetch_metadata(Some(self.names.of(topic)), patience);
        }
        std::thread::park_timeout(RETRY);
    }

    /// As [`Reader::ends`], asked once.
    pub(super) fn ends_now(
        &self,
        isolation: Isolation,
        partitions: &[(Topic, u16)],
    ) -> Result<Vec<u64>, ReadError> {
        let mut list = TopicPartitionList::new();
        for (topic, partition) in partitions {
            list.add_partition_offset(self.names.of(*topic), i32::from(*partition), Offset::End)
                .map_err(unavailable)?;
        }
        let answer = self
            .asker(isolation)
            .consumer()
            .offsets_for_times(list, Duration::from_millis(ATTEMPT_MS))
            .map_err(unavailable)?;
        offsets(&answer)
    }

    /// As [`Reader::ends`] of committed records, and at least what this process committed.
    pub(super) fn stable_ends(&self, partitions: &[(Topic, u16)]) -> Result<Vec<u64>, ReadError> {
        let deadline = Instant::now() + request();
        loop {
            let ends = self.ends(Isolation::Committed, partitions)?;
            let settled = {
                let floors = self.floors.lock().unwrap_or_else(PoisonError::into_inner);
                partitions
                    .iter()
                    .zip(&ends)
                    .all(|(partition, end)| floors.get(partition).is_none_or(|floor| end >= floor))
            };
            if settled || Instant::now() >= deadline {
                return Ok(ends);
            }
            std::thread::park_timeout(LOOK);
        }
    }

    /// The members of the nodes' group, in no order.
    pub(super) fn group_members(&self, group: &str) -> Result<Vec<Member>, ReadError> {
        let asker = self.asker(Isolation::Committed);
        let groups = asker.consumer().fetch_group_list(Some(group), request());
        let groups = groups.map_err(unavailable)?;
        let members = groups.groups().iter().flat_map(|group| group.members());
        Ok(members
            .map(|member| Member::read(member.client_id(), member.client_host()))
            .collect())
    }

    /// First offset and stable end of a partition.
    pub(super) fn bounds(&self, topic: Topic, partition: u16) -> Result<Bounds, ReadError> {
        let end = self.stable_ends(&[(topic, partition)])?[0];
        let first = self.first(topic, partition)?;
        Ok(Bounds { first, end })
    }

    /// First offset that is still there.
    pub(super) fn first(&self, topic: Topic, partition: u16) -> Result<u64, ReadError> {
        self.persist(Isolation::Committed, &[(topic, partition)], || {
            let asked = self
                .asker(Isolation::Committed)
                .consumer()
                .fetch_watermarks(
                    self.names.of(topic),
                    i32::from(partition),
                    Duration::from_millis(ATTEMPT_MS),
                );
            let (first, _) = asked.map_err(unavailable)?;
            Ok(u64::try_from(first).unwrap_or(0))
        })
    }

    /// Hands the records from `from` on to `each`, until the end `to` is reached or `each` breaks. `to` must be an
    /// end that [`Reader::ends`] gave for the same isolation.
    pub(super) fn scan(
        &self,
        isolation: Isolation,
        (topic, partition): (Topic, u16),
        from: u64,
        to: u64,
        mut each: impl FnMut(Inward) -> ControlFlow<()>,
    ) -> Result<(), ReadError> {
        if from >= to {
            return Ok(());
        }
        let inbox = self.take_inbox(isolation)?;
        inbox
            .assign([(topic, partition, from)])
            .map_err(unavailable)?;
        let mut heard = Instant::now();
        loop {
            if heard.elapsed() > request() {
                return Err(unavailable(format!(
                    "nothing came from {topic} of shard {partition} for {REQUEST_MS} ms"
                )));
            }
            let Some(inward) = inbox.next(Duration::from_millis(100)) else {
                continue;
            };
            match inward {
                Inward::Record { offset, .. } => {
                    heard = Instant::now();
                    if offset >= to || each(inward).is_break() || offset + 1 == to {
                        break;
                    }
                }
                Inward::End { offset, .. } if offset >= to => break,
                Inward::Failed {
                    code: RDKafkaErrorCode::AutoOffsetReset,
                    ..
                } => {
                    return Err(ReadError::TooOld {
                        first: self.bounds(topic, partition)?.first,
                    });
                }
                // The client connects again by itself; if it cannot, nothing comes, which is seen above.
                Inward::End { .. }
                | Inward::Failed { .. }
                | Inward::Assigned(_)
                | Inward::Revoked
                | Inward::Committed(..) => {}
            }
        }
        if inbox.consumer().unassign().is_ok() {
            self.put_back(isolation, inbox);
        }
        Ok(())
    }

    fn take_inbox(&self, isolation: Isolation) -> Result<Inbox, ReadError> {
        if isolation == Isolation::Committed
            && let Some(inbox) = self
                .idle
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .pop()
        {
            return Ok(inbox);
        }
        self.fresh_inbox(&client::range_reader(&self.config, isolation))
    }

    /// A consumer that follows partitions for long.
    pub(super) fn follower(&self) -> Result<Inbox, ReadError> {
        self.fresh_inbox(&client::reader(&self.config, Isolation::Committed))
    }

    /// A consumer of nothing yet, that knows where all partitions are.
    fn fresh_inbox(&self, client: &rdkafka::ClientConfig) -> Result<Inbox, ReadError> {
        let inbox = Inbox::new(client, &self.names).map_err(unavailable)?;
        // An assignment of a topic whose leaders are not known yet waits half a second for them.
        for topic in Topic::ALL {
            inbox
                .consumer()
                .fetch_metadata(
                    Some(self.names.of(topic)),
                    Duration::from_millis(ATTEMPT_MS),
                )
                .map_err(unavailable)?;
        }
        Ok(inbox)
    }

    fn put_back(&self, isolation: Isolation, inbox: Inbox) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if isolation == Isolation::Committed && idle.len() < IDLE_MAX {
            idle.push(inbox);
        } else {
            retire(inbox);
        }
    }
}

fn offsets(answer: &TopicPartitionList) -> Result<Vec<u64>, ReadError> {
    answer
        .elements()
        .iter()
        .map(|element| {
            element.error().map_err(unavailable)?;
            match element.offset() {
                Offset::Offset(offset) => u64::try_from(offset).map_err(unavailable),
                other => Err(unavailable(format!(
                    "no end of {}: {other:?}",
                    element.topic()
                ))),
            }
        })
        .collect()
}
