//! Engine time by the clock (PROTOCOL 15): "at this moment the commands ended there", and when everything up to there was
//! seen, time may move up to that moment.
//!
//! The brokers are asked on a thread of its own: the answer takes some milliseconds, which every request would wait for.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use tracing::debug;

use super::wall_ms;
use crate::kafka::client::Isolation;
use crate::kafka::log::Shared;
use crate::{ReadError, Topic};

/// Between two questions while commands come. Timers are late by up to this and the margin.
const ASK_EVERY: Duration = Duration::from_millis(100);
/// The same when none came for [`QUIET_AFTER`]: a node with nothing to do is to cost little.
const ASK_EVERY_QUIET: Duration = Duration::from_millis(400);
/// How long no command comes before that.
const QUIET_AFTER: Duration = Duration::from_secs(1);
/// A question that the commands have not reached after this long: the shard is behind, so there is no clock.
const SAMPLE_MAX: Duration = Duration::from_millis(1_500);

/// "At `clock_ms` the commands ended at `ends`".
struct Sample {
    clock_ms: i64,
    asked: Instant,
    ends: Vec<(u16, u64)>,
}

/// A question of one life of the shards here.
struct Question {
    life: u64,
    shards: Vec<u16>,
}

type Answer = (u64, Result<Sample, ReadError>);

/// Where engine time comes from.
pub(super) struct LogClock {
    asks: SyncSender<Question>,
    answers: Receiver<Answer>,
    /// Counts how often the shards here changed: what was asked before is of no use after.
    life: u64,
    is_asking: bool,
    asked: Option<Instant>,
    heard: Instant,
    sample: Option<Sample>,
    /// The newest clock whose end was reached, and when that was.
    reached: Option<(i64, Instant)>,
    /// The clock is given out without looking for the end (a test).
    pub without_end: bool,
}

impl LogClock {
    pub(super) fn new(shared: &Arc<Shared>) -> LogClock {
        let (asks, asked) = sync_channel::<Question>(1);
        let (gives, answers) = sync_channel::<Answer>(1);
        let shared = Arc::clone(shared);
        // If no thread can be had there is no clock: no rounds and no timers. It ends when nobody asks any more.
        drop(
            std::thread::Builder::new()
                .name("cabrank-ends".into())
                .spawn(move || {
                    while let Ok(Question { life, shards }) = asked.recv() {
                        if gives.send((life, ask(&shared, shards))).is_err() {
                            return;
                        }
                    }
                }),
        );
        LogClock {
            asks,
            answers,
            life: 0,
            is_asking: false,
            asked: None,
            heard: Instant::now(),
            sample: None,
            reached: None,
            without_end: false,
        }
    }

    /// The shards here are others now, or are read from elsewhere.
    pub(super) fn restart(&mut self) {
        self.life += 1;
        self.sample = None;
        self.reached = None;
    }

    /// A command came.
    pub(super) fn heard(&mut self) {
        self.heard = Instant::now();
    }

    /// Asks when it is time. `seen` says up to where the commands of each shard here were seen.
    pub(super) fn turn(&mut self, seen: &[(u16, u64)]) {
        if let Ok((life, answer)) = self.answers.try_recv() {
            self.is_asking = false;
            match answer {
                Ok(sample) if life == self.life => self.sample = Some(sample),
                Ok(_) => {}
                // While leaders change: nothing is decided by the clock until then.
                Err(why) => debug!(%why, "no ends of the commands"),
            }
        }
        let is_seen = |(shard, end): &(u16, u64)| {
            let to = seen.iter().find(|(of, _)| of == shard);
            to.is_some_and(|(_, to)| to >= end)
        };
        let is_reached = |sample: &Sample| sample.ends.iter().all(is_seen);
        if self.sample.as_ref().is_some_and(is_reached) {
            self.reached = self
                .sample
                .take()
                .map(|sample| (sample.clock_ms, sample.asked));
        }
        let every = if self.heard.elapsed() < QUIET_AFTER {
            ASK_EVERY
        } else {
            ASK_EVERY_QUIET
        };
        let is_due = self.asked.is_none_or(|at| at.elapsed() >= every);
        if self.is_asking || self.sample.is_some() || !is_due || seen.is_empty() {
            return;
        }
        let now = Instant::now();
        self.asked = Some(now);
        if self.without_end {
            self.reached = Some((wall_ms(), now));
            return;
        }
        let question = Question {
            life: self.life,
            shards: seen.iter().map(|(shard, _)| *shard).collect(),
        };
        self.is_asking = self.asks.try_send(question).is_ok();
    }

    /// The newest moment up to which every command was seen, ms; nothing if that was too long ago.
    pub(super) fn now_ms(&self) -> Option<i64> {
        let (clock_ms, asked) = self.reached?;
        (asked.elapsed() < SAMPLE_MAX).then_some(clock_ms)
    }
}

fn ask(shared: &Shared, shards: Vec<u16>) -> Result<Sample, ReadError> {
    let partitions: Vec<(Topic, u16)> = shards
        .iter()
        .map(|shard| (Topic::RideCommands, *shard))
        .collect();
    // The clock first: what is appended after it is looked at gets this time or a later one.
    let (clock_ms, asked) = (wall_ms(), Instant::now());
    let ends = shared
        .reader
        .ends_now(Isolation::Everything, &partitions)
        .inspect_err(|_| {
            shared
                .reader
                .look_for_leaders(Isolation::Everything, &partitions);
        })?;
    Ok(Sample {
        clock_ms,
        asked,
        ends: shards.into_iter().zip(ends).collect(),
    })
}
