//! The one who may commit, over Kafka: a member of the group of nodes.
//!
//! Everything happens on the thread that calls [`ShardOwner::poll`] and [`ShardOwner::commit`]: what the group says is
//! taken in by `poll` only, when no transaction is open, so a revocation always joins the commit before it (PROTOCOL
//! 24). An assignment is one life: its group metadata, its transactional ids and the memory recovered under it begin
//! and end together. Between assignments nothing is kept, however few shards moved.
//!
//! What holds:
//! - A shard is read and committed only after [`ShardOwner::recover`] under the assignment that gave it.
//! - The first transaction after a recovery announces: epoch + 1 and the transactional ids in the header, the address in
//!   `shard-owners`. Its headers are acknowledged before it writes anything else.
//! - Every transaction sends an offset for every shard it touches, with the metadata of the assignment; the broker
//!   checks the generation there.
//! - After any failure the memory is gone and the producers are new.

mod clock;
mod transaction;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use rdkafka::consumer::{Consumer, ConsumerGroupMetadata};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use tracing::{debug, info, warn};

use self::clock::LogClock;
use super::client;
use super::images::Keeper;
use super::inbox::{Inbox, Inward, membership};
use super::lease::{NodeLease, now_ns};
use super::log::Shared;
use super::producing::{Pair, retire};
use super::standstill::Standstill;
use super::stored::{EVENTS, Note, ShardImage};
use super::takeover::{Taken, Takeover};
use crate::{
    CommitError, Lease, POLL_MAX, PollError, Polled, Record, RecoverError, Recovered, ShardOwner,
    Topic, Transaction, Waker,
};

/// How much engine time stays behind the clock (PROTOCOL 15): the brokers' clocks may be this far off ours. One that is
/// further off gives its engine no time (PROTOCOL 16).
const CLOCK_MARGIN_MS: i64 = 500;
/// Longest wait between two looks at lease and clock.
const SLICE: Duration = Duration::from_millis(100);
/// Between two attempts to make producers.
const PRODUCERS_AGAIN: Duration = Duration::from_millis(200);
/// Longest wait for producers that are being made.
const PRODUCERS_WAIT: Duration = Duration::from_secs(2);
/// How long `recover` waits for shards that have just begun to come: nearly always they are here by then.
const TAKEOVER_WAIT: Duration = Duration::from_secs(2);
/// How long it waits for a shard whose takeover takes longer: the caller asks again, and does other things between.
const TAKEOVER_LOOK: Duration = Duration::from_millis(20);
/// Between two looks at shards that are on their way.
const TAKEOVER_SLICE: Duration = Duration::from_millis(2);
/// Longest wait of one `poll`.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// A rule taken out, for the tests that show what it is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sabotage {
    /// All rules hold.
    #[default]
    Nothing,
    /// PROTOCOL 28: a takeover does not fence the owner before.
    NoFence,
    /// PROTOCOL 28: a takeover neither fences nor waits until the past is decided.
    NoFenceNoWait,
    /// PROTOCOL 24: memory survives its assignment and is committed under the next one's metadata.
    FreshGeneration,
    /// PROTOCOL 24: metadata without generation and member, as of a consumer that is in no group, is used.
    NoMembership,
    /// PROTOCOL 26: after a commit that failed the memory from before it is gone on with.
    UndoAfterCommit,
    /// PROTOCOL 23: the lease has no end.
    EndlessLease,
    /// PROTOCOL 15: the clock is given out without looking for the end of the commands.
    ClockWithoutEnd,
}

/// A moment inside a commit at which a test may stop the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// Everything is produced and acknowledged; the group has not been asked yet.
    BeforeOffsets,
    /// The group has agreed; only the commit is missing.
    BeforeCommit,
}

/// What a test does at a [`Moment`].
pub type AtMoment = Box<dyn FnMut(Moment) + Send>;

/// What the group gave, and with what proof.
struct Assignment {
    shards: Vec<u16>,
    metadata: Arc<ConsumerGroupMetadata>,
    generation: i32,
    member: String,
    /// When it was taken in, on the lease's clock.
    since_ns: u64,
    /// The brokers say it is over; the group has not said so yet.
    is_over: bool,
}

/// A shard that was recovered under the present assignment.
struct Lane {
    /// What its header says, with this owner's epoch.
    note: Note,
    /// The engine's part of it.
    engine: bytes::Bytes,
    is_announced: bool,
    /// First command not yet consumed.
    consumed: u64,
    /// First command not yet handed out.
    next_out: u64,
    /// Everything before this was seen, by records and by the partition's end.
    seen_to: u64,
    /// Where the next event of each topic will be, as far as that is known: whoever else wrote last was not asked.
    next_event: [Option<u64>; EVENTS.len()],
}

/// A node's place in the group, and the shards it owns by it.
pub struct KafkaOwner {
    shared: Arc<Shared>,
    inbox: Arc<Inbox>,
    node: String,
    address: String,
    woken: Arc<AtomicBool>,
    assignment: Option<Assignment>,
    lanes: BTreeMap<u16, Lane>,
    /// Shards on their way here, by when they were asked for.
    takeovers: Vec<Takeover>,
    /// Shards whose memory was thrown away here: the caller has to recover them.
    forgotten: BTreeSet<u16>,
    /// The consumer is not reading what `lanes` says.
    is_moved: bool,
    /// Fetched, not handed out.
    waiting: VecDeque<(u16, Record)>,
    gained: Vec<u16>,
    lost: Vec<u16>,
    /// Reads the states of all shards, so that takeovers need not.
    _keeper: Keeper,
    standstill: Standstill,
    producers: Option<Pair>,
    /// Producers that are being made.
    making: Option<JoinHandle<KafkaResult<Pair>>>,
    clock: LogClock,
    /// The brokers' clock was too far off ours at the last commit.
    is_skewed: bool,
    lease: NodeLease,
    renewed: Instant,
    epoch: u64,
    fenced: Option<u64>,
    sabotage: Sabotage,
    at_moment: Option<AtMoment>,
}

impl std::fmt::Debug for KafkaOwner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KafkaOwner")
            .field("node", &self.node)
            .field("shards", &self.shards())
            .finish_non_exhaustive()
    }
}

impl Drop for KafkaOwner {
    fn drop(&mut self) {
        self.lease.end();
        if let Some(pair) = self.producers.take() {
            retire(pair);
        }
        // The consumer leaves the group when the inbox is dropped; a waker only borrows it.
    }
}

/// A name no producer of anybody ever had.
fn fresh_name(shared: &Shared, node: &str) -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    // Relaxed: only the number counts.
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_nanos());
    format!(
        "{}{}.{node}.{}.{now:x}.{count}",
        shared.config.prefix,
        shared.config.group,
        std::process::id()
    )
}

/// The wall clock in ms, as the brokers' append times count.
fn wall_ms() -> i64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .ok()
        .and_then(|since| i64::try_from(since.as_millis()).ok())
        .unwrap_or(0)
}

impl KafkaOwner {
    pub(super) fn join(shared: &Arc<Shared>, node: &str, address: &str) -> KafkaResult<KafkaOwner> {
        // Before the others have to wait for this node.
        let keeper = Keeper::start(shared);
        let inbox = Inbox::new(
            &client::named_member(&shared.config, node, address),
            &shared.names,
        )?;
        let commands = shared.names.of(Topic::RideCommands);
        inbox
            .consumer()
            .fetch_metadata(Some(commands), Duration::from_secs(5))?;
        inbox.consumer().subscribe(&[commands])?;
        let mut owner = KafkaOwner {
            shared: Arc::clone(shared),
            inbox: Arc::new(inbox),
            node: node.to_owned(),
            address: address.to_owned(),
            woken: Arc::default(),
            assignment: None,
            lanes: BTreeMap::new(),
            takeovers: Vec::new(),
            forgotten: BTreeSet::new(),
            is_moved: false,
            waiting: VecDeque::new(),
            gained: Vec::new(),
            lost: Vec::new(),
            _keeper: keeper,
            standstill: Standstill::start(shared),
            producers: None,
            making: None,
            clock: LogClock::new(shared),
            is_skewed: false,
            lease: NodeLease::default(),
            renewed: Instant::now(),
            epoch: 0,
            fenced: None,
            sabotage: Sabotage::Nothing,
            at_moment: None,
        };
        owner.make_producers();
        Ok(owner)
    }

    /// Takes a rule out.
    #[cfg(feature = "kafka-testing")]
    pub fn sabotage(&mut self, sabotage: Sabotage) {
        self.sabotage = sabotage;
    }

    /// Calls `at` in the middle of every commit.
    #[cfg(feature = "kafka-testing")]
    pub fn at_moment(&mut self, at: AtMoment) {
        self.at_moment = Some(at);
    }

    // -- what the group and the brokers say ----------------------------------------------------------------------

    fn take_in(&mut self, inward: Inward) -> Result<(), PollError> {
        match inward {
            Inward::Record {
                partition, offset, ..
            } => {
                if let Some(lane) = self.lanes.get_mut(&partition)
                    && offset >= lane.seen_to
                    && let Some(record) = inward.into_record()
                {
                    lane.seen_to = offset + 1;
                    self.clock.heard();
                    self.waiting.push_back((partition, record));
                }
            }
            Inward::End {
                partition, offset, ..
            } => {
                if let Some(lane) = self.lanes.get_mut(&partition) {
                    lane.seen_to = lane.seen_to.max(offset);
                }
            }
            Inward::Assigned(shards) => self.assigned(shards),
            Inward::Revoked => self.revoked(),
            Inward::Committed(sent_ns, result) => self.proved(sent_ns, result),
            Inward::Failed {
                code,
                fatal,
                why,
                partition,
                ..
            } => return self.heard_of_trouble(code, fatal, partition, &why),
        }
        Ok(())
    }

    fn assigned(&mut self, shards: Vec<u16>) {
        // The generation must be the same before and after the metadata is taken, or it would belong to neither.
        let before = membership(self.inbox.consumer());
        let metadata = self.inbox.consumer().group_metadata();
        let after = membership(self.inbox.consumer());
        // Nothing is read before it is known from where.
        if let Err(why) = self.inbox.assign([]) {
            warn!(%why, "an assignment could not be taken");
        }
        let (Some((generation, member)), Some(metadata), true) =
            (before.clone(), metadata, before == after)
        else {
            debug!("an assignment was over before it began");
            return;
        };
        info!(?shards, generation, "assigned");
        if let Some(last) = shards.iter().max() {
            // The group may know of new partitions before anybody here has asked.
            self.shared.know(last + 1);
        }
        if self.sabotage != Sabotage::FreshGeneration {
            self.forget();
        }
        self.gained.clone_from(&shards);
        let metadata = Arc::new(metadata);
        self.standstill
            .watch(shards.clone(), Some(Arc::clone(&metadata)));
        self.assignment = Some(Assignment {
            shards,
            metadata,
            generation,
            member,
            since_ns: now_ns(),
            is_over: false,
        });
        // While the caller gets there: it asks for them one by one.
        self.begin_takeover();
        // At once: nobody is answered before the first proof.
        self.renew_lease(true);
    }

    fn revoked(&mut self) {
        self.lease.end();
        self.standstill.watch(Vec::new(), None);
        if let Some(assignment) = self.assignment.take() {
            info!(shards = ?assignment.shards, generation = assignment.generation, "revoked");
            // What was never told as gained need not be told as lost.
            let told = assignment
                .shards
                .iter()
                .filter(|shard| !self.gained.contains(shard));
            self.lost.extend(told);
        }
        self.gained.clear();
        if self.sabotage != Sabotage::FreshGeneration {
            self.forget();
        }
        if let Err(why) = self.inbox.consumer().unassign() {
            warn!(%why, "an assignment could not be given back");
        }
    }

    fn heard_of_trouble(
        &mut self,
        code: RDKafkaErrorCode,
        fatal: bool,
        partition: Option<u16>,
        why: &str,
    ) -> Result<(), PollError> {
        if fatal {
            warn!(why, "the group's connection ended for good");
            self.be_fenced();
            return Err(self.fenced_poll());
        }
        if code == RDKafkaErrorCode::AutoOffsetReset
            && let Some(shard) = partition
        {
            // What was to be read next is gone; the recovery that follows says so.
            warn!(shard, why, "the commands are not where they should be");
            self.forget();
            return Err(PollError::NotRecovered(shard));
        }
        debug!(%code, why, "kafka");
        Ok(())
    }

    fn be_fenced(&mut self) {
        self.lease.end();
        self.standstill.watch(Vec::new(), None);
        self.fenced = Some(self.epoch + 1);
        self.assignment = None;
        self.forget();
    }

    fn fenced_poll(&self) -> PollError {
        PollError::Fenced {
            by: self.fenced.unwrap_or_default(),
        }
    }

    /// Throws away everything built from the log; what is owned must be recovered again.
    fn forget(&mut self) {
        let owned = self.owned().to_vec();
        let lost = std::mem::take(&mut self.lanes).into_keys();
        self.forgotten.extend(lost);
        self.forgotten.retain(|shard| owned.contains(shard));
        self.takeovers.clear();
        self.waiting.clear();
        self.is_moved = true;
        self.clock.restart();
        if let Some(pair) = self.producers.take() {
            retire(pair);
        }
        self.make_producers();
    }

    /// Has the next producers made, beside whatever else is done until they are needed. Those that were made and never
    /// used are as good as new.
    fn make_producers(&mut self) {
        if self.making.is_some() {
            return;
        }
        let name = fresh_name(&self.shared, &self.node);
        let shared = Arc::clone(&self.shared);
        self.making = Some(std::thread::spawn(move || {
            let made = Pair::start(&shared.config, &shared.names, &name);
            if made.is_err() {
                // Whoever waits begins the next attempt at once.
                std::thread::park_timeout(PRODUCERS_AGAIN);
            }
            made
        }));
    }

    /// The producers of this assignment. They were made before it began, and the next ones are begun now: making them can
    /// take half a second, and shards would wait for it.
    fn producers(&mut self) -> KafkaResult<&mut Pair> {
        if self.producers.is_none() {
            self.make_producers();
            let deadline = Instant::now() + PRODUCERS_WAIT;
            let pair = loop {
                if self.making.as_ref().is_some_and(JoinHandle::is_finished)
                    && let Some(Ok(Ok(pair))) = self.making.take().map(JoinHandle::join)
                {
                    break pair;
                }
                // Begun when no broker answered, perhaps: once more.
                self.make_producers();
                if Instant::now() > deadline {
                    return Err(KafkaError::Global(RDKafkaErrorCode::OperationTimedOut));
                }
                std::thread::park_timeout(TAKEOVER_SLICE);
            };
            self.make_producers();
            self.producers = Some(pair);
        }
        self.producers.as_mut().ok_or(KafkaError::Canceled)
    }

    // -- taking over ---------------------------------------------------------------------------------------------

    /// Begins to take over what is owned and neither here nor on its way.
    fn begin_takeover(&mut self) {
        let is_missing = |shard: &u16| {
            !self.lanes.contains_key(shard) && !self.takeovers.iter().any(|t| t.has(*shard))
        };
        let shards: BTreeSet<u16> = self.owned().iter().copied().filter(is_missing).collect();
        if !shards.is_empty() {
            let metadata = self.inbox.consumer().group_metadata().map(Arc::new);
            let takeover = Takeover::begin(&self.shared, shards, metadata, self.sabotage);
            self.takeovers.push(takeover);
        }
    }

    /// Waits for a shard that is on its way, and polls meanwhile: this node stays in the group however long it takes, and
    /// hears of it when the shard goes to another.
    fn taken(&mut self, shard: u16) -> Result<Taken, RecoverError> {
        let asked = Instant::now();
        let life = self.assignment.as_ref().map(|a| a.since_ns);
        loop {
            let coming = self.takeovers.iter().position(|t| t.has(shard));
            let (Some(index), true) =
                (coming, life == self.assignment.as_ref().map(|a| a.since_ns))
            else {
                return Err(RecoverError::Unavailable(format!(
                    "shard {shard} is moving: poll until it is gained"
                )));
            };
            let takeover = &mut self.takeovers[index];
            if let Some(outcome) = takeover.take(shard) {
                if takeover.is_over() {
                    self.takeovers.remove(index);
                }
                return outcome;
            }
            if takeover.age() > TAKEOVER_WAIT && asked.elapsed() > TAKEOVER_LOOK {
                return Err(RecoverError::Unavailable(format!(
                    "what was written on shard {shard} before is not decided yet, after {} ms",
                    takeover.age().as_millis()
                )));
            }
            if self.waiting.len() >= POLL_MAX {
                // Commands of the shards that are here already: enough of them for now.
                std::thread::park_timeout(TAKEOVER_SLICE);
                continue;
            }
            match self.inbox.next(TAKEOVER_SLICE) {
                Some(inward) => self.take_in(inward).map_err(|why| match why {
                    PollError::Fenced { by } => RecoverError::Fenced { by },
                    other => RecoverError::Unavailable(other.to_string()),
                })?,
                None => self.renew_lease(false),
            }
        }
    }

    // -- the lease -----------------------------------------------------------------------------------------------

    fn session(&self) -> Duration {
        Duration::from_millis(u64::from(self.shared.config.session_timeout_ms))
    }

    /// Sends a proof of membership. To be called when nothing that the group said is left unread, so that no rebalance
    /// is known of: the broker takes commits during one, too, and then gives the shards away after `max_poll_ms`.
    fn renew_lease(&mut self, at_once: bool) {
        let Some(assignment) = &self.assignment else {
            return;
        };
        let is_due = at_once || self.renewed.elapsed() >= self.session() / 5;
        if !is_due || assignment.is_over {
            return;
        }
        self.renewed = Instant::now();
        let offset = u64::try_from(wall_ms()).unwrap_or(0);
        // The mark is the sending time, so that each answer proves what it was asked for.
        let sent = self
            .inbox
            .commit_offset(Topic::ShardOwners, 0, offset, now_ns());
        if let Err(code) = sent {
            debug!(%code, "no proof of membership could be sent");
        }
    }

    fn proved(&mut self, sent_ns: u64, result: Result<(), RDKafkaErrorCode>) {
        let Some(assignment) = &self.assignment else {
            return;
        };
        if let Err(code) = result {
            debug!(%code, "a proof of membership was refused");
            return;
        }
        // The client sends what it is at that moment: asked under this assignment and still the same member in the same
        // generation, it was that between, too.
        let now = membership(self.inbox.consumer());
        let is_same = now == Some((assignment.generation, assignment.member.clone()));
        if !is_same || assignment.is_over || sent_ns < assignment.since_ns {
            return;
        }
        let length = if self.sabotage == Sabotage::EndlessLease {
            Duration::from_secs(3_600)
        } else {
            // A quarter less: the time between a look at the lease and the answer that was based on it.
            self.session() * 3 / 4
        };
        self.lease.extend(sent_ns, length);
    }

    // -- the clock -----------------------------------------------------------------------------------------------

    fn turn_clock(&mut self) {
        self.clock.without_end = self.sabotage == Sabotage::ClockWithoutEnd;
        let lanes = self.lanes.iter();
        let seen: Vec<(u16, u64)> = lanes.map(|(shard, lane)| (*shard, lane.seen_to)).collect();
        self.clock.turn(&seen);
    }

    /// Engine time, if all commands up to it are handed out with this.
    fn clock_ms(&self) -> Option<i64> {
        let clock_ms = self.clock.now_ms()?;
        (!self.is_skewed && self.waiting.is_empty()).then_some(clock_ms - CLOCK_MARGIN_MS)
    }

    /// Looks whether the brokers' clock and ours agree: a record that was appended between two moments of ours.
    fn compare_clocks(&mut self, sent_ms: i64, appended_ms: Option<i64>) {
        let Some(appended_ms) = appended_ms else {
            return;
        };
        let skew_ms = skew_ms(sent_ms, wall_ms(), appended_ms);
        let was_skewed = std::mem::replace(&mut self.is_skewed, skew_ms > CLOCK_MARGIN_MS);
        if self.is_skewed && !was_skewed {
            warn!(
                skew_ms,
                "this machine's clock and the brokers' differ: no timers and no rounds until they agree"
            );
        }
    }

    // -- polling -------------------------------------------------------------------------------------------------

    /// The shards of the assignment, if it still is one.
    fn owned(&self) -> &[u16] {
        match &self.assignment {
            Some(assignment) if !assignment.is_over => &assignment.shards,
            _ => &[],
        }
    }

    /// Announces and begins to read what was recovered.
    fn settle(&mut self) -> Result<(), PollError> {
        if let Err(why) = self.announce() {
            warn!(%why, "the announcement failed");
            if self.fenced.is_some() {
                return Err(self.fenced_poll());
            }
            if self.forgotten.is_empty() {
                // It was not even begun: nothing is read before it is.
                return Ok(());
            }
        }
        if let Some(shard) = self.forgotten.first() {
            return Err(PollError::NotRecovered(*shard));
        }
        if self.is_moved && self.assignment.is_some() {
            self.waiting.clear();
            for lane in self.lanes.values_mut() {
                lane.seen_to = lane.next_out;
            }
            let places = self
                .lanes
                .iter()
                .map(|(shard, lane)| (Topic::RideCommands, *shard, lane.next_out));
            match self.inbox.assign(places) {
                Ok(()) => self.is_moved = false,
                Err(why) => warn!(%why, "the commands cannot be read yet"),
            }
        }
        Ok(())
    }

    fn hand_out(&mut self, max: usize) -> Vec<(u16, Record)> {
        let count = max.min(self.waiting.len());
        let commands: Vec<(u16, Record)> = self.waiting.drain(..count).collect();
        for (shard, record) in &commands {
            if let Some(lane) = self.lanes.get_mut(shard) {
                lane.next_out = record.offset + 1;
            }
        }
        commands
    }
}

impl ShardOwner for KafkaOwner {
    fn shards(&self) -> Vec<u16> {
        self.owned().to_vec()
    }

    fn epoch(&self) -> u64 {
        self.epoch
    }

    fn epoch_of(&self, shard: u16) -> u64 {
        self.lanes.get(&shard).map_or(0, |lane| lane.note.epoch)
    }

    fn waker(&self) -> Option<Waker> {
        // Weak: a waker that is kept for ever must not keep the node in the group.
        let inbox = Arc::downgrade(&self.inbox);
        let woken = Arc::clone(&self.woken);
        Some(Arc::new(move || {
            // Release: pairs with the swap in `poll`, so that what was done before is seen there.
            woken.store(true, Ordering::Release);
            if let Some(inbox) = inbox.upgrade() {
                inbox.wake();
            }
        }))
    }

    fn lease(&self) -> Lease {
        let lease = self.lease.clone();
        Arc::new(move || lease.is_valid())
    }

    fn recover(&mut self, shard: u16) -> Result<Recovered, RecoverError> {
        if let Some(by) = self.fenced {
            return Err(RecoverError::Fenced { by });
        }
        if shard >= self.shared.shards() {
            return Err(RecoverError::NoSuchShard(shard));
        }
        if !self.owned().contains(&shard) {
            return Err(RecoverError::Unavailable(format!(
                "shard {shard} is not this node's: poll until it is gained"
            )));
        }
        self.gained.retain(|gained| *gained != shard);
        // Whatever comes of it, the caller knows.
        self.forgotten.remove(&shard);
        if self.lanes.contains_key(&shard) {
            // Again, under the same assignment: its own producers must not be the past that is fenced.
            self.forget();
            self.forgotten.remove(&shard);
        }
        self.begin_takeover();
        let taken = self.taken(shard)?;
        let ShardImage { note, engine, .. } = &taken.image;
        let mut note = note.clone().unwrap_or_default();
        note.epoch += 1;
        note.node.clone_from(&self.node);
        self.epoch = self.epoch.max(note.epoch);
        let lane = Lane {
            note,
            engine: engine.clone(),
            is_announced: false,
            consumed: taken.next_input,
            next_out: taken.next_input,
            seen_to: taken.next_input,
            next_event: [None; EVENTS.len()],
        };
        self.lanes.insert(shard, lane);
        self.is_moved = true;
        self.clock.restart();
        Ok(taken.image.recovered())
    }

    fn poll(&mut self, timeout: Duration, max: usize) -> Result<Polled, PollError> {
        if self.fenced.is_some() {
            return Err(self.fenced_poll());
        }
        let max = max.clamp(1, POLL_MAX);
        let deadline = Instant::now() + timeout.min(WAIT_MAX);
        self.settle()?;
        loop {
            let mut is_quiet = false;
            while self.waiting.len() < max && !is_quiet {
                match self.inbox.next(Duration::ZERO) {
                    Some(inward) => self.take_in(inward)?,
                    None => is_quiet = true,
                }
            }
            if is_quiet {
                self.renew_lease(false);
                self.turn_clock();
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let has_news =
                !self.waiting.is_empty() || !self.gained.is_empty() || !self.lost.is_empty();
            // Acquire: pairs with the waker's store.
            if has_news || left.is_zero() || self.woken.swap(false, Ordering::Acquire) {
                let commands = self.hand_out(max);
                return Ok(Polled {
                    clock_ms: self.clock_ms(),
                    commands,
                    gained: std::mem::take(&mut self.gained),
                    lost: std::mem::take(&mut self.lost),
                });
            }
            if let Some(inward) = self.inbox.next(left.min(SLICE)) {
                self.take_in(inward)?;
            }
        }
    }

    fn commit(&mut self, tx: &Transaction) -> Result<(), CommitError> {
        if let Some(by) = self.fenced {
            return Err(CommitError::Fenced { by });
        }
        if self.owned().is_empty() {
            return Err(CommitError::Moved("no shard is owned now".into()));
        }
        let here = |shard: &u16| self.lanes.contains_key(shard) || *shard >= self.shared.shards();
        if let Some((shard, _)) = tx.headers.iter().find(|(shard, _)| !here(shard)) {
            return Err(CommitError::NotRecovered(*shard));
        }
        self.check(tx)?;
        self.announce()?;
        self.write(tx)
    }
}

/// How far, at least, the clock that said `appended` is off the one that said `sent` before and `acked` after it.
fn skew_ms(sent: i64, acked: i64, appended: i64) -> i64 {
    (sent - appended).max(appended - acked).max(0)
}

/// The event topics' places in a note.
fn place(topic: Topic) -> Option<usize> {
    EVENTS.iter().position(|event| *event == topic)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_agree_if_the_append_can_have_been_between_the_two_moments() {
        assert_eq!(skew_ms(1_000, 1_020, 1_010), 0);
        assert_eq!(skew_ms(1_000, 9_000, 1_000), 0, "a slow answer is no skew");
        assert_eq!(skew_ms(1_000, 1_020, 400), 600, "behind");
        assert_eq!(skew_ms(1_000, 1_020, 1_720), 700, "ahead");
    }
}
