//! What other processes have committed: the entities of a shard as its events say, without owning it.
//!
//! A shard is read once as stored (`EventLog::snapshot`) and from there on its events are folded by the engine's own
//! function (PROTOCOL 7, 20, 22). Events of a shard carry one sequence over both event topics, so they are put back into the
//! very order in which they happened, and a missing one is noticed. What cannot be decoded stops the follower loudly
//! (PROTOCOL 9): it would show a city that is not there.
//! Elsewhere: what is done with the entities (`Sink`): a gateway shows them, a node tells its index.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use cabrank_engine::EntityState;
use cabrank_engine::fold::Entities;
use cabrank_engine::ride::Bounds;
use cabrank_eventlog::{EventLog, EventTail, Followed, ReadError, Recovered, TailError, Topic};
use cabrank_events::{EventRecord, RideId};
use tracing::{error, info, warn};

use crate::Failure;
use crate::clock::DomainClock;
use crate::heart::Heart;
use crate::versions;

/// Records taken at once.
const READ_MAX: usize = 1_000;
/// Longest wait for records; also how soon a change of what is wanted is noticed.
const WAIT: Duration = Duration::from_millis(100);
/// After a shard could not be read, the next try waits so long.
const RETRY: Duration = Duration::from_millis(200);
/// How often ended rides are looked through for those to forget.
const FORGET_EVERY: Duration = Duration::from_secs(1);
/// Events of one shard that wait for an earlier one of the other topic; beyond it the shard is read anew.
const WAITING_MAX: usize = 50_000;
/// An earlier event that does not come for so long never will: the shard is read anew.
const GAP_PATIENCE: Duration = Duration::from_secs(10);

/// Which events are followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// All, in the order in which they happened.
    Everything,
    /// Those of people: all that an index needs.
    People,
}

impl What {
    fn topics(self) -> &'static [Topic] {
        match self {
            What::Everything => &[Topic::RideEvents, Topic::PersonEvents],
            What::People => &[Topic::PersonEvents],
        }
    }
}

/// Where followed entities go. Called on the follower's thread; must not block.
pub(crate) trait Sink {
    /// A shard was read as stored: everything known of it before is to be replaced.
    fn snapshot(&mut self, shard: u16, entities: &Entities);
    /// An event, already folded into `entities`.
    fn event(&mut self, record: EventRecord, json: Bytes, entities: &Entities);
    /// An ended ride is no longer remembered.
    fn forget(&mut self, ride: RideId);
    /// No more for the moment.
    fn settled(&mut self) {}
}

/// What a follower and its owner share.
#[derive(Default)]
pub(crate) struct Following {
    /// The shards to follow. While it is locked, nothing is shown.
    wanted: Mutex<BTreeSet<u16>>,
    stopping: AtomicBool,
    is_ready: AtomicBool,
    /// Domain time when all there was had been shown.
    complete_ms: AtomicI64,
}

impl Following {
    pub fn of(shards: impl IntoIterator<Item = u16>) -> Following {
        Following {
            wanted: Mutex::new(shards.into_iter().collect()),
            ..Following::default()
        }
    }

    fn wanted(&self) -> MutexGuard<'_, BTreeSet<u16>> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// After the call nothing of the shards that are not wanted is shown any more.
    pub fn set(&self, shards: BTreeSet<u16>) {
        *self.wanted() = shards;
    }

    pub fn stop(&self) {
        // SeqCst here and below: flags that are set once, read rarely.
        self.stopping.store(true, Ordering::SeqCst);
    }

    pub fn is_over(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    /// Have all wanted shards been shown once?
    pub fn is_ready(&self) -> bool {
        self.is_ready.load(Ordering::SeqCst)
    }

    /// Domain time when all there was had last been shown.
    pub fn complete_ms(&self) -> i64 {
        // Relaxed: one number by itself.
        self.complete_ms.load(Ordering::Relaxed)
    }
}

struct Followee {
    entities: Entities,
    /// The number of the newest event in `entities`.
    seq: u64,
    /// Events that wait for an earlier one.
    waiting: BTreeMap<u64, (EventRecord, Bytes)>,
    gap_since: Option<Instant>,
    is_shown: bool,
}

/// Follows shards until told to stop.
pub(crate) struct Follower<'a> {
    log: &'a dyn EventLog,
    tail: Box<dyn EventTail + 'a>,
    what: What,
    bounds: Bounds,
    clock: DomainClock,
    shards: BTreeMap<u16, Followee>,
    /// Shards that could not be read, and when to try again.
    later: BTreeMap<u16, Instant>,
    next_forget: Instant,
}

impl<'a> Follower<'a> {
    pub fn new(
        log: &'a dyn EventLog,
        what: What,
        bounds: Bounds,
        clock: DomainClock,
    ) -> Follower<'a> {
        Follower {
            log,
            tail: log.tail(),
            what,
            bounds,
            clock,
            shards: BTreeMap::new(),
            later: BTreeMap::new(),
            next_forget: Instant::now(),
        }
    }

    /// Follows what `following` wants into `sink`.
    pub fn run(
        mut self,
        following: &Following,
        heart: &Heart,
        sink: &mut impl Sink,
    ) -> Result<(), Failure> {
        while !following.is_over() {
            let wanted = following.wanted().clone();
            // A shard is read for as long as it takes.
            heart.rest();
            self.adjust(&wanted)?;
            heart.beat();
            let found = match self.tail.next(WAIT, READ_MAX) {
                Ok(found) => found,
                Err(error) => {
                    self.lose_place(error)?;
                    continue;
                }
            };
            let (is_all, complete_ms) = (found.len() < READ_MAX, self.clock.now().0);
            let wanted = following.wanted();
            self.show_new(&wanted, sink);
            for followed in found {
                if wanted.contains(&followed.shard) {
                    self.take(followed, sink)?;
                }
            }
            self.forget_ended(sink);
            sink.settled();
            if is_all && wanted.iter().all(|shard| self.is_complete(*shard)) {
                following.complete_ms.store(complete_ms, Ordering::Relaxed);
                following.is_ready.store(true, Ordering::SeqCst);
            }
            drop(wanted);
            self.mend_gaps();
        }
        Ok(())
    }

    fn is_complete(&self, shard: u16) -> bool {
        self.shards
            .get(&shard)
            .is_some_and(|followee| followee.is_shown && followee.waiting.is_empty())
    }

    /// Begins and ends to follow as wanted.
    fn adjust(&mut self, wanted: &BTreeSet<u16>) -> Result<(), Failure> {
        let gone: Vec<u16> = self
            .shards
            .keys()
            .copied()
            .filter(|shard| !wanted.contains(shard))
            .collect();
        for shard in gone {
            self.drop_shard(shard);
        }
        self.later.retain(|shard, _| wanted.contains(shard));
        for shard in wanted {
            let due = self.later.get(shard).is_none_or(|at| *at <= Instant::now());
            if due && !self.shards.contains_key(shard) {
                self.begin(*shard)?;
            }
        }
        Ok(())
    }

    fn drop_shard(&mut self, shard: u16) {
        self.shards.remove(&shard);
        for topic in self.what.topics() {
            self.tail.leave(*topic, shard);
        }
    }

    fn begin(&mut self, shard: u16) -> Result<(), Failure> {
        let stored = match self.log.snapshot(shard) {
            Ok(stored) => stored,
            Err(why @ (ReadError::Unavailable(_) | ReadError::TooOld { .. })) => {
                warn!(shard, %why, "a shard cannot be followed yet");
                self.later.insert(shard, Instant::now() + RETRY);
                return Ok(());
            }
            Err(why) => return Err(Failure::Log(format!("shard {shard}: {why}"))),
        };
        self.later.remove(&shard);
        for topic in self.what.topics() {
            let end = stored.event_ends.iter().find(|(of, _)| of == topic);
            self.tail
                .follow(*topic, shard, end.map_or(0, |(_, offset)| *offset));
        }
        let (entities, seq) = parse(shard, &stored)?;
        info!(
            shard,
            seq,
            rides = entities.rides.len(),
            drivers = entities.drivers.len(),
            "following"
        );
        let followee = Followee {
            entities,
            seq,
            waiting: BTreeMap::new(),
            gap_since: None,
            is_shown: false,
        };
        self.shards.insert(shard, followee);
        Ok(())
    }

    fn show_new(&mut self, wanted: &BTreeSet<u16>, sink: &mut impl Sink) {
        for (shard, followee) in &mut self.shards {
            if !followee.is_shown && wanted.contains(shard) {
                followee.is_shown = true;
                sink.snapshot(*shard, &followee.entities);
            }
        }
    }

    fn take(&mut self, followed: Followed, sink: &mut impl Sink) -> Result<(), Failure> {
        let Followed {
            topic,
            shard,
            record,
        } = followed;
        let Some(followee) = self.shards.get_mut(&shard) else {
            return Ok(());
        };
        let event = EventRecord::from_json(&record.value).map_err(|why| {
            Failure::Broken(format!("{topic} {} of shard {shard}: {why}", record.offset))
        })?;
        if event.seq <= followee.seq {
            // It is in what was read as stored.
            return Ok(());
        }
        if self.what == What::Everything && event.seq != followee.seq + 1 {
            followee.waiting.insert(event.seq, (event, record.value));
            return Ok(());
        }
        followee.fold(event, record.value, &self.bounds, sink);
        while let Some(next) = followee.waiting.first_entry()
            && *next.key() == followee.seq + 1
        {
            let (event, json) = next.remove();
            followee.fold(event, json, &self.bounds, sink);
        }
        Ok(())
    }

    /// Reads a shard anew whose missing event never came.
    fn mend_gaps(&mut self) {
        let now = Instant::now();
        let mut lost = Vec::new();
        for (shard, followee) in &mut self.shards {
            if followee.waiting.is_empty() {
                followee.gap_since = None;
                continue;
            }
            let since = *followee.gap_since.get_or_insert(now);
            if now.duration_since(since) > GAP_PATIENCE || followee.waiting.len() > WAITING_MAX {
                error!(
                    shard,
                    after = followee.seq,
                    "an event is missing: the shard is read anew"
                );
                lost.push(*shard);
            }
        }
        for shard in lost {
            metrics::counter!("cabrank_follower_restarts_total").increment(1);
            self.drop_shard(shard);
        }
    }

    /// The place in a partition is no longer good: its shard is read anew.
    fn lose_place(&mut self, error: TailError) -> Result<(), Failure> {
        match error.why {
            ReadError::TooOld { .. } | ReadError::Unavailable(_) => {
                warn!(%error, "the place in the log is gone: the shard is read anew");
                metrics::counter!("cabrank_follower_restarts_total").increment(1);
                self.drop_shard(error.shard);
                self.later.insert(error.shard, Instant::now() + RETRY);
                Ok(())
            }
            ReadError::NoSuchPartition { .. } | ReadError::Corrupt(_) => {
                Err(Failure::Log(error.to_string()))
            }
        }
    }

    fn forget_ended(&mut self, sink: &mut impl Sink) {
        if Instant::now() < self.next_forget {
            return;
        }
        self.next_forget = Instant::now() + FORGET_EVERY;
        let now = self.clock.now();
        for followee in self.shards.values_mut() {
            for ride in followee.entities.forget_ended(now) {
                sink.forget(ride);
            }
        }
    }
}

impl Followee {
    fn fold(&mut self, event: EventRecord, json: Bytes, bounds: &Bounds, sink: &mut impl Sink) {
        self.seq = event.seq;
        self.gap_since = None;
        self.entities.apply(&event, bounds);
        sink.event(event, json, &self.entities);
    }
}

/// The entities of a stored shard and the number of its newest event.
fn parse(shard: u16, stored: &Recovered) -> Result<(Entities, u64), Failure> {
    let broken = |what: &str, why: serde_json::Error| {
        Failure::Broken(format!("{what} of shard {shard} does not parse: {why}"))
    };
    let seq = match &stored.header {
        Some(header) if !header.engine.is_empty() => {
            versions::read_header(&header.engine)
                .map_err(|why| Failure::Broken(format!("the header of shard {shard}: {why}")))?
                .seq
        }
        _ => 0,
    };
    let mut entities = Entities::default();
    for (_, value) in &stored.states {
        let state = serde_json::from_slice::<EntityState>(value);
        entities.insert(state.map_err(|why| broken("a state", why))?);
    }
    Ok((entities, seq))
}
