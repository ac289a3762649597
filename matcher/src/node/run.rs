//! The thread that owns the engine.

mod others;
mod shards;

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use cabrank_engine::matching::PolicyKind;
use cabrank_engine::ride::Stage;
use cabrank_engine::{Batch, EntityState, Host, Shard};
use cabrank_eventlog::{
    Append, CommitError, Header, PollError, ShardOwner, StateChange, Topic, Transaction,
};
use cabrank_events::command::EntityId;
use cabrank_events::{Command, CommandRecord, DriverId, Event, RideId, ShardId, Time};
use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded};
use tracing::{error, warn};

use super::steps::{Mark, Steps};
use super::{Failure, Shared, Stopped};
use crate::api::Committed;
use crate::people::People;
use crate::reach::Reach;
use crate::roads::Roads;
use crate::rounds::{Asking, Finishing, Going, Job, Promises, Solved, Solver};
use crate::{route, versions};

/// The loop wakes at least this often, for silent drivers and gauges.
const TICK: Duration = Duration::from_millis(500);
/// How long to wait before reading a failed log back again.
const RETRY: Duration = Duration::from_millis(500);
/// Where engine time comes from a broker, timers are looked at no more often than this.
const TIMERS_PAUSE: Duration = Duration::from_millis(20);
/// Waiting rides that a car which comes free or moves puts before the next round: so many of the nearest, and of the ones
/// that have waited longest if it could serve them.
const WOKEN_NEAREST: usize = 12;
const WOKEN_LONGEST: usize = 4;
/// Cars that one pass looks at rides for, some 10 us each.
const WAKES_PER_PASS: usize = 64;
/// Cars with a rider in them that one round looks at, for forward dispatch; others count once they are free.
const FINISHING_MAX: usize = 1_000;

pub(super) fn run(shared: &Arc<Shared>, owner: Box<dyn ShardOwner>) -> Stopped {
    let (jobs, to_solve) = bounded::<Job>(1);
    let (solved, results) = bounded::<Solved>(1);
    let solver = Arc::new(Solver {
        people: Arc::clone(&shared.people),
        config: shared.config.clone(),
        promises: Mutex::new(Promises::default()),
        others: Mutex::default(),
        roads: {
            let roads = &shared.config.roads;
            roads.is_set().then(|| Roads::start(roads.clone()))
        },
    });
    let small_rounds = Arc::clone(&solver);
    let bell = Arc::clone(shared);
    let solving = std::thread::Builder::new()
        .name("cabrank-rounds".into())
        .spawn(move || {
            let heart = bell.heart("the solver of rounds");
            heart.rest();
            for job in to_solve {
                heart.beat();
                if solved.send(solver.solve(job)).is_err() {
                    return;
                }
                bell.bell.ring();
                heart.rest();
            }
        })
        .expect("a process that cannot start a thread at its start cannot work");
    let waker = owner.waker();
    // Where one process owns all shards there is nobody to follow.
    let following = waker.is_some().then(|| others::follow_others(shared));
    shared.bell.also_wake(waker);
    // PROTOCOL 9: a panic in a handler stops the shard loudly; the log still holds what was committed.
    let looped = catch_unwind(AssertUnwindSafe(|| {
        Loop::new(Arc::clone(shared), owner, small_rounds, jobs, results).run()
    }));
    let stopped = looped.unwrap_or_else(|panic| {
        let said = panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
        Err(Failure::Broken(
            said.unwrap_or_else(|| "a handler panicked".into()),
        ))
    });
    if let Err(why) = &stopped {
        error!(%why, "the node stopped");
    }
    shared.foreign.stop();
    shared.table().clear();
    if following.is_some_and(|thread| thread.join().is_err()) {
        error!("the follower panicked");
    }
    if solving.join().is_err() {
        error!("the solver panicked");
    }
    stopped
}

struct Loop {
    shared: Arc<Shared>,
    owner: Box<dyn ShardOwner>,
    host: Host,
    /// Next offset to read, by shard.
    next_input: BTreeMap<ShardId, u64>,
    /// Rides the next round looks at.
    dirty: BTreeSet<RideId>,
    /// Rides that no car was found for.
    reach: Reach,
    /// For rounds too small to be worth a thread.
    solver: Arc<Solver>,
    jobs: Sender<Job>,
    results: Receiver<Solved>,
    round_under_way: bool,
    next_round: Time,
    last_round: Time,
    /// Rides whose round was put off.
    put_off: Option<PutOff>,
    /// Since when rides of the round under way were put off.
    put_off_since: Option<Time>,
    /// When rides whose drivers are on the way are looked at again.
    next_rematch: Time,
    next_tick: Instant,
    /// Commands come from other processes: the loop waits inside `poll`.
    waits_in_poll: bool,
    /// Shards of ours that are to be read back, since when, and when to try.
    pending: BTreeMap<u16, Pending>,
    /// Shards of ours whose log makes no sense: they are left alone, loudly, while the others go on.
    refused: BTreeMap<u16, String>,
    /// Nothing was polled yet, so it is not known which shards are ours.
    is_new: bool,
    /// Shards that there are, as last seen.
    shards: u16,
    /// How far the newest time given by the log was behind the clock.
    clock_lag_ms: i64,
    /// Of rides that are traced.
    steps: Steps,
}

/// Rides that wait for each other, because they want the same cars. Bounded by the rides of a round.
struct PutOff {
    rides: Vec<RideId>,
    /// They are looked at again then, or when another ride or car comes.
    until: Time,
    /// The first time.
    since: Time,
}

/// A shard on its way here.
struct Pending {
    since: Instant,
    next_try: Instant,
    /// An operator was told that nothing says what it is for.
    is_told: bool,
}

/// How a pass through the loop went.
enum Pass {
    Worked,
    Idle,
    /// The log failed: memory is stale.
    Stale,
}

impl Loop {
    fn new(
        shared: Arc<Shared>,
        owner: Box<dyn ShardOwner>,
        solver: Arc<Solver>,
        jobs: Sender<Job>,
        results: Receiver<Solved>,
    ) -> Loop {
        let hops_max = shared.config.hops_max;
        Loop {
            waits_in_poll: owner.waker().is_some(),
            pending: BTreeMap::new(),
            refused: BTreeMap::new(),
            is_new: true,
            shards: shared.log.shards(),
            clock_lag_ms: 0,
            steps: Steps::default(),
            shared,
            owner,
            host: Host::new([], hops_max),
            next_input: BTreeMap::new(),
            dirty: BTreeSet::new(),
            reach: Reach::default(),
            solver,
            jobs,
            results,
            round_under_way: false,
            next_round: Time(i64::MIN),
            last_round: Time(i64::MIN / 2),
            put_off: None,
            put_off_since: None,
            next_rematch: Time(i64::MIN),
            next_tick: Instant::now(),
        }
    }

    fn run(mut self) -> Stopped {
        let heart = self.shared.heart("the node");
        if self.waits_in_poll && !self.read_market(&heart) {
            return Ok(());
        }
        self.throw_away();
        loop {
            heart.beat();
            if self.waits_in_poll && self.is_stopping() {
                // What is left in the log is handled by whoever has the shards next.
                return Ok(());
            }
            self.recover_pending()?;
            let is_whole = self.pending.is_empty() && self.refused.is_empty();
            if !is_whole && !self.waits_in_poll {
                // All shards are ours and are of one moment: without one of them there is nothing to do.
                if let Some((_, why)) = self.refused.pop_first() {
                    return Err(Failure::Log(why));
                }
                if self.is_stopping() {
                    return Err(Failure::Log(
                        "it could not be read back before the stop".into(),
                    ));
                }
                self.shared.bell.wait(RETRY);
                continue;
            }
            match self.pass()? {
                Pass::Worked => {}
                Pass::Stale => self.throw_away(),
                Pass::Idle if self.is_stopping() => return Ok(()),
                Pass::Idle if self.waits_in_poll => {}
                Pass::Idle => self.shared.bell.wait(self.pause()),
            }
            if let Some(why) = self.shared.take_others_failed() {
                return Err(why);
            }
        }
    }

    fn is_stopping(&self) -> bool {
        self.shared.stopping.load(Ordering::SeqCst)
    }

    // -- one pass ----------------------------------------------------------------------------------------------

    fn pass(&mut self) -> Result<Pass, Failure> {
        let timeout = if self.waits_in_poll && !self.is_stopping() {
            self.pause()
        } else {
            Duration::ZERO
        };
        let mut polled = match self.owner.poll(timeout, self.shared.config.batch_max) {
            Ok(polled) => polled,
            Err(PollError::Fenced { by }) => return Err(Failure::Fenced { by }),
            Err(PollError::NotRecovered(shard)) if self.waits_in_poll => {
                return Ok(self.not_recovered(shard));
            }
            Err(why) => {
                warn!(%why, "the log gave no commands");
                return Ok(Pass::Stale);
            }
        };
        if std::mem::take(&mut self.is_new) {
            self.set_ready();
        }
        if !polled.lost.is_empty() || !polled.gained.is_empty() {
            polled.lost.iter().for_each(|shard| self.lose(*shard));
            polled.gained.iter().for_each(|shard| self.gain(*shard));
            self.settle_shards();
        }
        let mut batch = Batch::default();
        let is_caught_up = polled.clock_ms.is_some();
        if is_caught_up {
            // These are all the commands there are, so before each of them every shard's time may move up to it: no shard
            // has an earlier command left (PROTOCOL 15). Else a hop would find its receiver's time where it was long ago.
            polled.commands.sort_by_key(|(_, record)| record.time_ms);
        }
        for (shard, record) in &polled.commands {
            if self.host.shard(ShardId(*shard)).is_none() {
                // It left while this was under way: whoever has it now reads the command.
                continue;
            }
            if let Some(clock_ms) = polled.clock_ms {
                // No further than the clock that came with them: in another partition an earlier record may still come.
                self.host
                    .handle_time(&mut batch, Time(record.time_ms.min(clock_ms)));
            }
            // PROTOCOL 9: gateways hand in typed commands only, so what cannot be read is our own fault.
            let command = match CommandRecord::from_json(&record.value) {
                Ok(command) => command,
                Err(why) => {
                    let why = format!("command {} of shard {shard}: {why}", record.offset);
                    if !self.waits_in_poll {
                        return Err(Failure::Broken(why));
                    }
                    // What this batch has done to the other shards is not written: they are read back.
                    self.refuse(*shard, &why);
                    return Ok(Pass::Stale);
                }
            };
            let id = ShardId(*shard);
            let mark = Mark::of(&batch);
            self.host.handle_command(
                &mut batch,
                id,
                record.offset,
                Time(record.time_ms),
                &command,
            );
            self.steps.handled(&mut batch, &mark, &command);
            self.next_input.insert(id, record.offset + 1);
        }
        let mut noted = 0;
        if let Some(clock_ms) = polled.clock_ms {
            self.clock_lag_ms = self.shared.clock.now().since(Time(clock_ms)).max(0);
            self.host.handle_time(&mut batch, Time(clock_ms));
            self.take_round(&mut batch)?;
            self.wake_rides();
            noted = self.note_waiting(&batch, noted);
            self.small_round(&mut batch);
        }
        self.note_waiting(&batch, noted);
        let worked = !batch.is_empty();
        if worked && !self.commit(batch)? {
            return Ok(Pass::Stale);
        }
        self.tick();
        self.start_round();
        Ok(if worked || !polled.commands.is_empty() {
            Pass::Worked
        } else {
            Pass::Idle
        })
    }

    /// The log wants a shard to be read back before it gives anything.
    fn not_recovered(&mut self, shard: u16) -> Pass {
        if self.refused.contains_key(&shard) {
            // So that the others go on: what it hands out of this one is passed over.
            let _ = self.owner.recover(shard);
            Pass::Idle
        } else if self.pending.contains_key(&shard) {
            self.shared.bell.wait(RETRY.min(self.pause()));
            Pass::Idle
        } else {
            Pass::Stale
        }
    }

    fn least_pause(&self) -> Duration {
        if self.waits_in_poll {
            TIMERS_PAUSE
        } else {
            Duration::ZERO
        }
    }

    /// How long nothing is due.
    fn pause(&self) -> Duration {
        let now = self.shared.clock.now();
        let speed = self.shared.clock.speed();
        let until = |due: Time| {
            Duration::from_secs_f64(
                (due.since(now).max(0) as f64 / speed / 1_000.0).clamp(0.0005, 60.0),
            )
        };
        let retry = self.pending.values().map(|pending| pending.next_try);
        let retry = retry
            .min()
            .map_or(TICK, |at| at.saturating_duration_since(Instant::now()));
        let timer = self.host.poll_deadline().map_or(TICK, |due| {
            // Engine time may be behind the clock by the log's margin: looking more often than it moves is idle work.
            let due = Time(due.0.saturating_add(self.clock_lag_ms));
            until(due).max(self.least_pause())
        });
        let timer = timer.min(retry);
        let round = if self.dirty.is_empty() || self.round_under_way {
            TICK
        } else {
            until(self.next_round)
        };
        let put_off = match &self.put_off {
            Some(put_off) if !self.round_under_way => until(put_off.until.max(self.next_round)),
            Some(_) | None => TICK,
        };
        timer.min(round).min(put_off).min(TICK)
    }

    // -- committing --------------------------------------------------------------------------------------------

    /// Writes the batch and shows it. `Ok(false)`: it may or may not be written; memory is stale.
    fn commit(&mut self, mut batch: Batch) -> Result<bool, Failure> {
        self.steps.settle(&mut batch);
        let jsons: Vec<Bytes> = batch.events.iter().map(|record| record.to_json()).collect();
        let states: Vec<(ShardId, EntityId, Option<EntityState>)> = batch
            .changed
            .iter()
            .map(|(shard, entity)| {
                let state = self
                    .host
                    .shard(*shard)
                    .and_then(|owner| owner.state_of(entity));
                (*shard, entity.clone(), state)
            })
            .collect();
        let transaction = self.transaction(&batch, &jsons, &states);
        let began = Instant::now();
        let written = self.owner.commit(&transaction);
        metrics::histogram!("cabrank_commit_seconds").record(began.elapsed().as_secs_f64());
        metrics::histogram!("cabrank_commit_events").record(batch.events.len() as f64);
        match written {
            Ok(()) => {
                self.steps.committed();
                self.note_claims(&batch);
                self.show(&batch, jsons, &states);
                Ok(true)
            }
            // Where shards move, a node that slept throws its memory away and takes part again; `poll` knows what is ours.
            Err(CommitError::Fenced { by }) if !self.waits_in_poll => Err(Failure::Fenced { by }),
            Err(CommitError::Invalid(why)) => Err(Failure::Broken(why)),
            Err(why) => {
                metrics::counter!("cabrank_commits_failed_total").increment(1);
                warn!(%why, "a commit failed: memory is thrown away and read back");
                Ok(false)
            }
        }
    }

    fn transaction(
        &self,
        batch: &Batch,
        jsons: &[Bytes],
        states: &[(ShardId, EntityId, Option<EntityState>)],
    ) -> Transaction {
        let events = batch.events.iter().zip(jsons).map(|(record, json)| {
            let entity = record.event.entity();
            let topic = match entity {
                EntityId::Ride(_) => Topic::RideEvents,
                EntityId::Driver(_) | EntityId::Rider(_) | EntityId::Market => Topic::PersonEvents,
            };
            let key = Bytes::from(entity.to_string());
            Append {
                topic,
                shard: record.shard.0,
                key,
                value: json.clone(),
            }
        });
        let commands = batch.messages.iter().map(|message| Append {
            topic: Topic::RideCommands,
            shard: message.to.0,
            key: Bytes::from(message.record.command.entity().to_string()),
            value: message.record.to_json(),
        });
        let states = states.iter().map(|(shard, entity, state)| StateChange {
            shard: shard.0,
            key: Bytes::from(entity.to_string()),
            value: state.as_ref().map(to_json),
        });
        let headers = batch.touched.iter().filter_map(|id| {
            let shard = self.host.shard(*id)?;
            let header = Header {
                next_input: self.next_input.get(id).copied().unwrap_or(0),
                time_ms: shard.time().0,
                epoch: self.owner.epoch_of(id.0),
                owner: String::new(),
                engine: versions::write_header(shard.counters()),
            };
            Some((id.0, header))
        });
        Transaction {
            events: events.collect(),
            commands: commands.collect(),
            states: states.collect(),
            headers: headers.collect(),
        }
    }

    /// Cars that rides here have asked for: those that other nodes answer for still look free.
    fn note_claims(&self, batch: &Batch) {
        let now = self.shared.clock.now();
        let until = now.plus_ms(self.shared.engine.claim_answer_ms);
        for message in &batch.messages {
            if let Command::ClaimDriver { driver, .. } = &message.record.command {
                self.shared.people.claim(driver, now, until);
            }
        }
    }

    /// Shows what is durable now: views first, then whoever listens.
    fn show(
        &mut self,
        batch: &Batch,
        jsons: Vec<Bytes>,
        states: &[(ShardId, EntityId, Option<EntityState>)],
    ) {
        let now = self.shared.clock.now();
        let moves = batch
            .events
            .iter()
            .filter_map(|record| match &record.event {
                Event::DriverHandedOver(e) => Some(&e.driver),
                _ => None,
            });
        let moves: BTreeSet<&DriverId> = moves.collect();
        for (_, entity, state) in states {
            self.shared.views.committed(entity, state.as_ref());
            match (entity, state) {
                (EntityId::Driver(_), Some(EntityState::Driver(driver))) => {
                    show_driver(&self.shared.people, driver, now);
                    self.wake_for(&driver.id);
                }
                // Whose shard is another one from now on stays where they are.
                (EntityId::Driver(id), _) if moves.contains(id) => {}
                (EntityId::Driver(id), _) => self.shared.people.forget(id),
                (EntityId::Ride(id), state) => {
                    let waits = matches!(
                        state,
                        Some(EntityState::Ride(ride)) if matches!(ride.stage, Stage::Waiting)
                    );
                    if !waits {
                        self.dirty.remove(id);
                        self.reach.remove(*id);
                    }
                }
                (EntityId::Market, Some(EntityState::Market(set))) => self.shared.heed(set),
                (EntityId::Rider(_) | EntityId::Market, _) => {}
            }
        }
        for record in &batch.events {
            metrics::counter!("cabrank_events_total", "type" => record.event.name()).increment(1);
            self.shared.people.hear(&record.event);
            if let Event::DriverTakenOver(e) = &record.event {
                // Signs of life went to the shard before: silence is counted from here.
                self.shared.people.sign_of_life(&e.driver, now);
            }
        }
        self.shared
            .hungry
            .store(self.reach.len(), Ordering::Relaxed);
        let committed: Vec<Committed> = batch
            .events
            .iter()
            .zip(jsons)
            .map(|(record, json)| {
                let ride = match record.event.entity() {
                    EntityId::Ride(id) => self.shared.views.ride_view(id),
                    EntityId::Driver(_) | EntityId::Rider(_) | EntityId::Market => None,
                };
                Committed {
                    record: record.clone(),
                    json,
                    ride,
                }
            })
            .collect();
        let listeners = self
            .shared
            .listeners
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        listeners.iter().for_each(|listener| listener(&committed));
    }

    fn ride_waits(&self, ride: RideId) -> bool {
        self.host
            .shard(ride.place)
            .and_then(|shard| shard.ride(ride))
            .is_some_and(|ride| matches!(ride.stage, Stage::Waiting))
    }

    // -- rounds ------------------------------------------------------------------------------------------------

    /// Hands the result of a finished round to the engine.
    fn take_round(&mut self, batch: &mut Batch) -> Result<(), Failure> {
        let solved = match self.results.try_recv() {
            Ok(solved) => solved,
            Err(TryRecvError::Empty) => return Ok(()),
            Err(TryRecvError::Disconnected) => {
                return Err(Failure::Broken("the solver panicked".into()));
            }
        };
        self.round_under_way = false;
        self.apply_round(batch, solved);
        Ok(())
    }

    fn apply_round(&mut self, batch: &mut Batch, solved: Solved) {
        let solved = match solved {
            Solved::Round(done) => done,
            Solved::PutOff { rides, until } => {
                let since = self.put_off_since.take();
                let since = since.unwrap_or_else(|| self.shared.clock.now());
                self.put_off = Some(PutOff {
                    rides,
                    until,
                    since,
                });
                return;
            }
        };
        self.last_round = solved.now;
        let since = self.put_off_since.take();
        let waited_ms = since.map_or(0, |since| solved.now.since(since));
        metrics::histogram!("cabrank_round_put_off_seconds").record(waited_ms as f64 / 1_000.0);
        metrics::counter!("cabrank_rounds_total").increment(1);
        metrics::histogram!("cabrank_round_seconds").record(solved.took_s);
        metrics::counter!("cabrank_rides_held_back_total").increment(solved.held_back as u64);
        metrics::counter!("cabrank_queue_calls_total").increment(solved.called as u64);
        if solved.result.exhausted {
            metrics::counter!("cabrank_rounds_exhausted_total").increment(1);
        }
        let places: BTreeSet<ShardId> = solved.rides.iter().map(|ride| ride.place).collect();
        for place in places {
            let part = solved.result.of_place(place);
            self.host.handle_round(batch, place, &part);
        }
    }

    /// Marks the rides for a round that the batch's events since `from` left in need of one.
    fn note_waiting(&mut self, batch: &Batch, from: usize) -> usize {
        for record in &batch.events[from..] {
            if let Some(ride) = wants_a_round(&record.event)
                && self.ride_waits(ride)
            {
                self.dirty.insert(ride);
            }
        }
        batch.events.len()
    }

    /// Solves a round of few rides here and now, so that a request and its offer share one transaction. It takes some
    /// microseconds a ride; larger rounds run beside the commit (PROTOCOL 18).
    fn small_round(&mut self, batch: &mut Batch) {
        let is_large = self.dirty.len() > self.shared.config.small_round_rides_max;
        if is_large || self.solver.may_wait() || self.rematch_is_due() {
            return;
        }
        if let Some(job) = self.next_job() {
            if job.others.len() > self.shared.config.small_round_rides_max {
                self.send(job);
            } else {
                let solved = self.solver.solve(job);
                self.apply_round(batch, solved);
            }
        }
    }

    /// Sends the rides that need a look to the solver, if it is free and the round's time has come.
    fn start_round(&mut self) {
        if let Some(job) = self.next_job() {
            self.send(job);
        }
    }

    fn send(&mut self, job: Job) {
        // There is room: no other round is under way.
        if self.jobs.try_send(job).is_ok() {
            self.round_under_way = true;
        }
    }

    /// The next round, if there is something to look at, none is under way and its time has come.
    fn next_job(&mut self) -> Option<Job> {
        let now = self.shared.clock.now();
        let rematches = self.rematch_is_due();
        let is_late = self
            .put_off
            .as_ref()
            .is_some_and(|put_off| put_off.until <= now);
        let is_idle = self.dirty.is_empty() && !rematches && !is_late;
        if self.round_under_way || is_idle || now < self.next_round {
            return None;
        }
        if let Some(put_off) = self.put_off.take() {
            self.put_off_since = Some(put_off.since);
            self.dirty.extend(put_off.rides);
        }
        let going = if rematches {
            self.rides_on_the_way(now)
        } else {
            Vec::new()
        };
        let mut rides: Vec<Asking> = Vec::new();
        while rides.len() < self.shared.config.rides_per_round_max
            && let Some(id) = self.dirty.pop_first()
        {
            let ride = self.host.shard(id.place).and_then(|shard| shard.ride(id));
            if let Some(ride) = ride.filter(|ride| matches!(ride.stage, Stage::Waiting)) {
                // Before the solver looks, so that a car that comes free meanwhile is not missed.
                self.reach.insert(id, ride.pickup.0, ride.issued_at);
                rides.push(Asking::of(ride));
            }
        }
        self.shared
            .hungry
            .store(self.reach.len(), Ordering::Relaxed);
        if rides.is_empty() && going.is_empty() {
            self.put_off_since = None;
            return None;
        }
        let rules = self.shared.rules();
        let least_ms = rules.pace.least_ms;
        self.next_round = now.plus_ms(self.shared.config.round_every_ms.max(least_ms));
        // Swaps begin at free cars, so a round with rides on the way counts on no others.
        let finishing = if rules.prices.forward_s > 0 && going.is_empty() {
            let started = self.host.shards().flat_map(Shard::rides);
            started
                .filter_map(Finishing::of)
                .take(FINISHING_MAX)
                .collect()
        } else {
            Vec::new()
        };
        let going_to = going.iter().map(Going::pickup);
        let places = rides.iter().map(Asking::pickup).chain(going_to);
        let most = self.shared.config.rides_per_round_max;
        let going_most = if rematches { most } else { 0 };
        let others = self.shared.elsewhere.near(places, most, going_most);
        // Who is on the way does not wait, and beside them nobody else need.
        let may_wait = rules.pace.most_ms > 0 && going.is_empty() && !is_late;
        Some(Job {
            now,
            rules,
            rides,
            going,
            others,
            finishing,
            last_round: may_wait.then_some(self.last_round),
        })
    }

    fn rematch_is_due(&self) -> bool {
        self.shared.rules().policy == PolicyKind::Rematch
            && self.shared.clock.now() >= self.next_rematch
    }

    /// The rides that may change their driver. Those that were looked at in vain are looked at again beside them: a car
    /// on its way may be theirs.
    fn rides_on_the_way(&mut self, now: Time) -> Vec<Going> {
        self.next_rematch = now.plus_ms(self.shared.rules().swaps.every_ms);
        let waiting = self.host.shards().flat_map(Shard::waiting);
        self.dirty.extend(waiting.map(|ride| ride.id));
        let going = self.host.shards().flat_map(Shard::on_the_way);
        going
            .filter_map(Going::of)
            .take(self.shared.config.rides_per_round_max)
            .collect()
    }

    /// Looks at the cars that moved or came free since the last pass.
    fn wake_rides(&mut self) {
        if self.shared.wakes_lost.swap(false, Ordering::Relaxed) {
            metrics::counter!("cabrank_wakes_lost_total").increment(1);
            let waiting = self
                .host
                .shards()
                .flat_map(Shard::waiting)
                .map(|ride| ride.id);
            self.dirty.extend(waiting);
        }
        // Pings may come faster than they are looked at; commands wait for some of them only.
        for _ in 0..WAKES_PER_PASS {
            let Ok(driver) = self.shared.wakes.1.try_recv() else {
                return;
            };
            self.shared
                .people
                .end_wake(&driver, self.shared.clock.now());
            self.wake_for(&driver);
        }
        // The next pass need not wait for anything else.
        self.shared.bell.ring();
    }

    /// Marks the waiting rides for the next round that this driver could serve: the nearest, and the ones that have waited
    /// longest. A car serves one: when many wait, all would be looked at for each car that comes free, and a city with too few
    /// cars would serve fewer the more riders wait.
    fn wake_for(&mut self, driver: &DriverId) {
        if self.reach.len() == 0 {
            return;
        }
        let Some(seen) = self.shared.people.seen(driver) else {
            return;
        };
        let (Some(placement), cabrank_geo::Status::Free) = (seen.placement, seen.status) else {
            return;
        };
        let host = &self.host;
        let could_serve = |id: RideId| {
            let ride = host.shard(id.place).and_then(|shard| shard.ride(id));
            ride.is_some_and(|ride| {
                matches!(ride.stage, Stage::Waiting)
                    && seen.classes & ride.class.bit() != 0
                    && ride.may_ask(driver, seen.n)
                    && placement.at.distance_m(ride.pickup.0) <= f64::from(ride.radius_m)
            })
        };
        let radius_m = f64::from(self.shared.engine.radius_max_m);
        let nearest = self
            .reach
            .nearest(placement.at, radius_m, WOKEN_NEAREST, could_serve);
        let longest = self.reach.longest().take(WOKEN_LONGEST);
        self.dirty.extend(longest.filter(|id| could_serve(*id)));
        self.dirty.extend(nearest);
    }

    // -- now and then ------------------------------------------------------------------------------------------

    fn tick(&mut self) {
        if Instant::now() < self.next_tick {
            return;
        }
        self.next_tick = Instant::now() + TICK;
        self.look_for_shards();
        let now = self.shared.clock.now();
        let before = Time(now.0.saturating_sub(self.shared.config.silent_after_ms));
        for (driver, session) in self.shared.people.newly_silent(before) {
            // Signs of life go to the node of the driver's shard, so only that one knows (PROTOCOL 21).
            let home = EntityId::Driver(driver.clone());
            let home = ShardId(route::shard_of(&self.shared.rings.now(), &home));
            // Nor does one to whose shard the driver is still on the way.
            let lives_here = |shard: &Shard| shard.driver(&driver).is_some();
            if !self.host.shard(home).is_some_and(lives_here) {
                continue;
            }
            let command = Command::DriverSilent {
                driver: driver.clone(),
                session,
            };
            let mut record = CommandRecord::internal(ShardId(0), now, command);
            record.from = None; // from the node itself, not from a shard: no counter counts it
            if self.shared.submit(&record).is_ok() {
                self.shared.people.silence_is_reported(&driver, session);
            }
        }
        for (number, holding) in self.shared.table().iter_mut() {
            if let Some(shard) = self.host.shard(ShardId(*number)) {
                holding.next_input = self.next_input.get(&shard.id()).copied().unwrap_or(0);
                holding.open_rides = shard.open_rides();
                holding.waiting_rides = shard.waiting_count();
            }
        }
        let sum = |of: fn(&Shard) -> usize| self.host.shards().map(of).sum::<usize>() as f64;
        metrics::gauge!("cabrank_open_rides").set(sum(Shard::open_rides));
        metrics::gauge!("cabrank_waiting_rides").set(sum(Shard::waiting_count));
        metrics::gauge!("cabrank_drivers_known").set(self.shared.people.len() as f64);
        metrics::gauge!("cabrank_rides_elsewhere").set(self.shared.elsewhere.len() as f64);
        metrics::gauge!("cabrank_queued_drivers").set(self.shared.people.queued() as f64);
    }
}

/// Does the event leave its ride in need of a look? Having been looked at in vain does not.
fn wants_a_round(event: &Event) -> Option<RideId> {
    match event {
        Event::RideRequested(e) => Some(e.ride),
        // What a round that is under way found for the old destination does not count.
        Event::DestinationChanged(e) => Some(e.ride),
        Event::SearchWidened(e) => Some(e.ride),
        Event::ClaimDenied(e) => Some(e.ride),
        Event::ClaimAbandoned(e) => Some(e.ride),
        Event::OfferDeclined(e) => Some(e.ride),
        Event::OfferExpired(e) => Some(e.ride),
        Event::DriverLost(e) => Some(e.ride),
        _ => None,
    }
}

fn show_driver(people: &People, driver: &cabrank_engine::driver::Driver, now: Time) {
    if people.committed(driver, now).is_err() {
        metrics::counter!("cabrank_index_full_total").increment(1);
    }
}

fn to_json<T: serde::Serialize>(value: &T) -> Bytes {
    Bytes::from(serde_json::to_vec(value).expect("states hold only JSON's own kinds"))
}
