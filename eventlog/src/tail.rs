//! Following partitions where a read is cheap: each is read whenever something was committed.
//!
//! Holds: records of a partition come in order and once; a full partition does not starve the others.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::log::{EventLog, EventTail, Followed, ReadError, TailError, Topic};

/// Follows by [`EventLog::read`] and [`EventLog::wait_committed`].
pub struct ReadingTail<'a, L: ?Sized> {
    log: &'a L,
    next: BTreeMap<(u16, Topic), u64>,
    seen: u64,
    /// Where the last call stopped: the next one begins after it.
    last: Option<(u16, Topic)>,
}

impl<'a, L: EventLog + ?Sized> ReadingTail<'a, L> {
    /// Follows nothing yet.
    pub fn new(log: &'a L) -> Self {
        Self {
            log,
            next: BTreeMap::new(),
            seen: 0,
            last: None,
        }
    }

    fn read_round(&mut self, max: usize) -> Result<Vec<Followed>, TailError> {
        let mut found: Vec<Followed> = Vec::new();
        let partitions: Vec<(u16, Topic)> = self.next.keys().copied().collect();
        let begin = partitions.partition_point(|partition| Some(*partition) <= self.last);
        for (shard, topic) in partitions[begin..].iter().chain(&partitions[..begin]) {
            let left = max - found.len();
            if left == 0 {
                break;
            }
            self.last = Some((*shard, *topic));
            let Some(from) = self.next.get_mut(&(*shard, *topic)) else {
                continue;
            };
            match self.log.read(*topic, *shard, *from, left) {
                Ok(records) => {
                    if let Some(last) = records.last() {
                        *from = last.offset + 1;
                    }
                    found.extend(records.into_iter().map(|record| Followed {
                        topic: *topic,
                        shard: *shard,
                        record,
                    }));
                }
                // What was found before it must not be lost with it: it is found again by the next call.
                Err(_) if !found.is_empty() => {
                    self.last = found.last().map(|found| (found.shard, found.topic));
                    break;
                }
                // A store that is being read back: nothing new until then.
                Err(ReadError::Unavailable(_)) => {}
                Err(why) => {
                    return Err(TailError {
                        topic: *topic,
                        shard: *shard,
                        why,
                    });
                }
            }
        }
        Ok(found)
    }
}

impl<L: EventLog + ?Sized> EventTail for ReadingTail<'_, L> {
    fn follow(&mut self, topic: Topic, shard: u16, from: u64) {
        self.next.insert((shard, topic), from);
    }

    fn leave(&mut self, topic: Topic, shard: u16) {
        self.next.remove(&(shard, topic));
    }

    fn next(&mut self, timeout: Duration, max: usize) -> Result<Vec<Followed>, TailError> {
        let deadline = Instant::now() + timeout;
        let max = max.max(1);
        loop {
            // Asked before reading: a commit during the read ends the wait at once.
            let seen = self.log.wait_committed(self.seen, Duration::ZERO);
            let found = self.read_round(max)?;
            if !found.is_empty() {
                return Ok(found);
            }
            self.seen = seen;
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(found);
            }
            self.log.wait_committed(self.seen, left);
        }
    }
}
