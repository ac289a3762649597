//! Following many partitions with one consumer: records come as soon as their transaction is committed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::error::RDKafkaErrorCode;

use super::inbox::{Inbox, Inward};
use super::log::Shared;
use crate::{EventTail, Followed, ReadError, TailError, Topic};

/// Longest wait of one look at the queue; also how often a tail that has no connection yet tries again.
const SLICE: Duration = Duration::from_millis(200);

/// A consumer and where it is.
pub(super) struct KafkaTail {
    shared: Arc<Shared>,
    inbox: Option<Inbox>,
    next: BTreeMap<(Topic, u16), u64>,
    /// The consumer is not yet told of the last change of `next`.
    is_moved: bool,
    /// Found behind records that had to be handed out first.
    error: Option<TailError>,
}

impl KafkaTail {
    pub(super) fn new(shared: &Arc<Shared>) -> KafkaTail {
        KafkaTail {
            shared: Arc::clone(shared),
            inbox: None,
            next: BTreeMap::new(),
            is_moved: true,
            error: None,
        }
    }

    /// The consumer, reading what is followed now; `None` while the brokers cannot be reached.
    fn reading(&mut self) -> Option<&Inbox> {
        if self.inbox.is_none() {
            self.inbox = self.shared.reader.follower().ok();
            self.is_moved = true;
        }
        let inbox = self.inbox.as_ref()?;
        if self.is_moved {
            let places = self.next.iter();
            inbox
                .assign(places.map(|((topic, shard), from)| (*topic, *shard, *from)))
                .ok()?;
            self.is_moved = false;
        }
        Some(inbox)
    }

    /// Retention overtook the place, or it was never there.
    fn lost_its_place(&mut self, topic: Topic, shard: u16) -> TailError {
        let from = self.next.remove(&(topic, shard)).unwrap_or_default();
        self.is_moved = true;
        let why = match self.shared.reader.bounds(topic, shard) {
            Ok(bounds) if from < bounds.first => ReadError::TooOld {
                first: bounds.first,
            },
            Ok(bounds) => {
                ReadError::Unavailable(format!("offset {from} is beyond the end {}", bounds.end))
            }
            Err(why) => why,
        };
        TailError { topic, shard, why }
    }
}

impl EventTail for KafkaTail {
    fn follow(&mut self, topic: Topic, shard: u16, from: u64) {
        self.next.insert((topic, shard), from);
        self.is_moved = true;
    }

    fn leave(&mut self, topic: Topic, shard: u16) {
        self.is_moved |= self.next.remove(&(topic, shard)).is_some();
    }

    fn next(&mut self, timeout: Duration, max: usize) -> Result<Vec<Followed>, TailError> {
        if let Some(error) = self.error.take() {
            return Err(error);
        }
        let deadline = Instant::now() + timeout;
        let mut found = Vec::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let wait = if found.is_empty() {
                left.min(SLICE)
            } else {
                Duration::ZERO
            };
            let came = match self.reading() {
                Some(inbox) => inbox.next(wait),
                None => {
                    std::thread::park_timeout(wait);
                    None
                }
            };
            match came {
                Some(record @ Inward::Record { .. }) => {
                    let Inward::Record {
                        topic,
                        partition: shard,
                        offset,
                        ..
                    } = record
                    else {
                        continue;
                    };
                    if let Some(next) = self.next.get_mut(&(topic, shard)) {
                        *next = offset + 1;
                        found.extend(record.into_record().map(|record| Followed {
                            topic,
                            shard,
                            record,
                        }));
                    }
                }
                Some(Inward::Failed {
                    topic: Some(topic),
                    partition: Some(shard),
                    code: RDKafkaErrorCode::AutoOffsetReset,
                    ..
                }) => {
                    let error = self.lost_its_place(topic, shard);
                    if found.is_empty() {
                        return Err(error);
                    }
                    self.error = Some(error);
                    return Ok(found);
                }
                Some(Inward::Failed { fatal: true, .. }) => self.inbox = None,
                Some(_) => {}
                None if found.is_empty() && !left.is_zero() => {}
                None => return Ok(found),
            }
            if found.len() >= max {
                return Ok(found);
            }
        }
    }
}
