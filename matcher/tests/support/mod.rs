//! A log for several nodes in one process, whose shards the test moves as it likes. It keeps the promises of a broker's
//! home: one owner of a shard at a time, counted by epochs; a transaction whole or not at all; commands from the header's
//! position on. It loses everything when the test ends.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use cabrank_eventlog::{
    Bounds, CommitError, EventLog, Header, Lease, LogError, OwnerRecord, PollError, Polled,
    ReadError, Record, RecoverError, Recovered, ShardOwner, SubmitError, Topic, Transaction, Waker,
};
use cabrank_matcher::clock::DomainClock;

/// The longest a test waits for something.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits for a condition; the name says what never came.
#[track_caller]
pub fn until<T>(what: &str, mut is_so: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = is_so() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}: never");
        std::thread::park_timeout(Duration::from_millis(1));
    }
}

/// The log.
#[derive(Clone)]
pub struct Home(Arc<Inner>);

struct Inner {
    shards: AtomicU16,
    clock: DomainClock,
    state: Mutex<State>,
    changed: Condvar,
}

/// That a shard was given to a node. Giving it again, also to the same node, is another grant.
#[derive(Clone, PartialEq)]
struct Grant {
    node: String,
    number: u64,
}

#[derive(Default)]
struct State {
    records: BTreeMap<(Topic, u16), Vec<Record>>,
    states: BTreeMap<u16, BTreeMap<Bytes, Bytes>>,
    headers: BTreeMap<u16, Header>,
    /// Who has a shard now; nobody while it is on its way.
    given: BTreeMap<u16, Grant>,
    epochs: BTreeMap<u16, u64>,
    announced: BTreeMap<u16, OwnerRecord>,
    commits: u64,
    grants: u64,
    woken: BTreeSet<String>,
    /// Shards that cannot be read back.
    damaged: BTreeSet<u16>,
    is_down: bool,
    /// Nobody learns from the log who owns what.
    owners_unknown: bool,
    owners_told: u64,
}

impl State {
    fn append(&mut self, topic: Topic, shard: u16, now_ms: i64, key: Bytes, value: Bytes) {
        let records = self.records.entry((topic, shard)).or_default();
        let last_ms = records.last().map_or(i64::MIN, |record| record.time_ms);
        records.push(Record {
            offset: records.len() as u64,
            time_ms: now_ms.max(last_ms),
            key,
            value,
        });
    }

    fn end(&self, topic: Topic, shard: u16) -> u64 {
        self.records
            .get(&(topic, shard))
            .map_or(0, |records| records.len() as u64)
    }

    fn snapshot(&self, shard: u16) -> Recovered {
        let states = self.states.get(&shard).into_iter().flatten();
        Recovered {
            header: self.headers.get(&shard).cloned(),
            states: states.map(|(k, v)| (k.clone(), v.clone())).collect(),
            event_ends: [Topic::RideEvents, Topic::PersonEvents]
                .map(|topic| (topic, self.end(topic, shard)))
                .to_vec(),
        }
    }
}

impl Home {
    /// Can it be learned from the log who owns what?
    pub fn tell_owners(&self, does: bool) {
        self.change(|state| state.owners_unknown = !does);
    }

    /// How often somebody was told who owns what.
    pub fn owners_told(&self) -> u64 {
        self.state().owners_told
    }

    /// Somebody who answers nobody is the newest owner of every shard.
    pub fn announce_others(&self) {
        self.change(|state| {
            let owners = state.announced.values_mut();
            owners.for_each(|owner| owner.epoch += 1);
        });
    }

    pub fn new(shards: u16, clock: DomainClock) -> Home {
        Home(Arc::new(Inner {
            shards: AtomicU16::new(shards),
            clock,
            state: Mutex::default(),
            changed: Condvar::new(),
        }))
    }

    /// From now on there are so many shards; nobody has the new ones yet.
    pub fn grow(&self, shards: u16) {
        self.0.shards.store(shards, Ordering::SeqCst);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let changed = change(&mut self.state());
        self.0.changed.notify_all();
        changed
    }

    /// The seat of a node that gateways reach at `address`.
    pub fn seat(&self, node: &str, address: &str) -> Seat {
        Seat {
            home: self.clone(),
            node: node.to_owned(),
            address: address.to_owned(),
            next_out: BTreeMap::new(),
            epochs: BTreeMap::new(),
            known: BTreeMap::new(),
            may_answer: Arc::new(AtomicBool::new(true)),
        }
    }

    /// Gives the shard to a node. Whoever had it can commit to it no more.
    pub fn give(&self, shard: u16, node: &str) {
        self.change(|state| {
            state.grants += 1;
            let grant = Grant {
                node: node.to_owned(),
                number: state.grants,
            };
            state.given.insert(shard, grant);
        });
    }

    /// Nothing of the shard can be read back any more, until mended.
    pub fn damage(&self, shard: u16, is_damaged: bool) {
        self.change(|state| match is_damaged {
            true => state.damaged.insert(shard),
            false => state.damaged.remove(&shard),
        });
    }

    /// Says that a node owns the shard, as an announcement of an older owner would that arrives late.
    pub fn announce(&self, owner: OwnerRecord) {
        self.change(|state| state.announced.insert(owner.shard, owner));
    }

    /// Everything in a partition.
    pub fn all(&self, topic: Topic, shard: u16) -> Vec<Record> {
        let state = self.state();
        state
            .records
            .get(&(topic, shard))
            .cloned()
            .unwrap_or_default()
    }

    /// Commands that are in the log and not yet consumed.
    pub fn pending(&self, shard: u16) -> Vec<Record> {
        let state = self.state();
        let next = state
            .headers
            .get(&shard)
            .map_or(0, |header| header.next_input);
        let commands = state.records.get(&(Topic::RideCommands, shard));
        commands
            .into_iter()
            .flatten()
            .filter(|record| record.offset >= next)
            .cloned()
            .collect()
    }
}

impl EventLog for Home {
    fn shards(&self) -> u16 {
        self.0.shards.load(Ordering::SeqCst)
    }

    fn submit(&self, shard: u16, key: Bytes, value: Bytes) -> Result<(), SubmitError> {
        let now_ms = self.0.clock.now().0;
        self.change(|state| {
            if state.is_down {
                return Err(SubmitError::Unavailable("down".into()));
            }
            state.append(Topic::RideCommands, shard, now_ms, key, value);
            Ok(())
        })
    }

    fn sync(&self) -> Result<(), LogError> {
        Ok(())
    }

    fn read(
        &self,
        topic: Topic,
        shard: u16,
        from: u64,
        max: usize,
    ) -> Result<Vec<Record>, ReadError> {
        let state = self.state();
        let records = state.records.get(&(topic, shard));
        let from = usize::try_from(from).unwrap_or(usize::MAX);
        let found = records.into_iter().flatten().skip(from).take(max);
        Ok(found.cloned().collect())
    }

    fn bounds(&self, topic: Topic, shard: u16) -> Result<Bounds, ReadError> {
        let end = self.state().end(topic, shard);
        Ok(Bounds { first: 0, end })
    }

    fn snapshot(&self, shard: u16) -> Result<Recovered, ReadError> {
        Ok(self.state().snapshot(shard))
    }

    fn base(&self, _: u16) -> Result<Recovered, ReadError> {
        Ok(Recovered::default())
    }

    fn wait_committed(&self, seen: u64, timeout: Duration) -> u64 {
        let state = self.state();
        let (state, _) = self
            .0
            .changed
            .wait_timeout_while(state, timeout, |state| state.commits == seen)
            .unwrap_or_else(PoisonError::into_inner);
        state.commits
    }

    fn owners(&self) -> Result<Vec<OwnerRecord>, ReadError> {
        let mut state = self.state();
        if state.owners_unknown {
            return Err(ReadError::Unavailable("nobody answers".into()));
        }
        state.owners_told += 1;
        Ok(state.announced.values().cloned().collect())
    }

    fn publish(&self, topic: Topic, shard: u16, key: Bytes, value: Bytes) -> bool {
        let now_ms = self.0.clock.now().0;
        self.change(|state| state.append(topic, shard, now_ms, key, value));
        true
    }
}

/// A node's right to write.
pub struct Seat {
    home: Home,
    node: String,
    address: String,
    next_out: BTreeMap<u16, u64>,
    epochs: BTreeMap<u16, u64>,
    /// Shards this node was told of, by the grants' numbers.
    known: BTreeMap<u16, u64>,
    may_answer: Arc<AtomicBool>,
}

impl Seat {
    /// The switch of the node's lease.
    pub fn may_answer(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.may_answer)
    }

    fn given(&self, state: &State) -> BTreeMap<u16, u64> {
        let given = state.given.iter();
        given
            .filter(|(_, grant)| grant.node == self.node)
            .map(|(shard, grant)| (*shard, grant.number))
            .collect()
    }

    /// Is the shard this node's, by the grant it was told of?
    fn owns(&self, state: &State, shard: u16) -> bool {
        let told = self.known.get(&shard);
        told.is_some() && told == self.given(state).get(&shard)
    }
}

impl ShardOwner for Seat {
    fn shards(&self) -> Vec<u16> {
        let state = self.home.state();
        let known = self.known.keys().copied();
        known.filter(|shard| self.owns(&state, *shard)).collect()
    }

    fn epoch(&self) -> u64 {
        self.epochs.values().copied().max().unwrap_or(0)
    }

    fn epoch_of(&self, shard: u16) -> u64 {
        self.epochs.get(&shard).copied().unwrap_or(0)
    }

    fn waker(&self) -> Option<Waker> {
        let (home, node) = (self.home.clone(), self.node.clone());
        Some(Arc::new(move || {
            home.change(|state| state.woken.insert(node.clone()));
        }))
    }

    fn lease(&self) -> Lease {
        let may_answer = Arc::clone(&self.may_answer);
        Arc::new(move || may_answer.load(Ordering::SeqCst))
    }

    fn recover(&mut self, shard: u16) -> Result<Recovered, RecoverError> {
        let home = self.home.clone();
        home.change(|state| {
            if state.damaged.contains(&shard) {
                return Err(RecoverError::Corrupt(format!("shard {shard} is damaged")));
            }
            if !self.owns(state, shard) {
                return Err(RecoverError::Unavailable("it is another's".into()));
            }
            let epoch = state.epochs.entry(shard).or_insert(0);
            *epoch += 1;
            let epoch = *epoch;
            self.epochs.insert(shard, epoch);
            state.announced.insert(
                shard,
                OwnerRecord {
                    shard,
                    epoch,
                    node: self.node.clone(),
                    address: self.address.clone(),
                },
            );
            let recovered = state.snapshot(shard);
            let header = recovered.header.as_ref();
            let next = header.map_or(0, |header| header.next_input);
            self.next_out.insert(shard, next);
            Ok(recovered)
        })
    }

    fn poll(&mut self, timeout: Duration, max: usize) -> Result<Polled, PollError> {
        let deadline = Instant::now() + timeout;
        let home = self.home.clone();
        let mut state = home.state();
        loop {
            let clock_ms = home.0.clock.now().0;
            let given = self.given(&state);
            let not_in = |of: &BTreeMap<u16, u64>, other: &BTreeMap<u16, u64>| -> Vec<u16> {
                let of = of.iter();
                of.filter(|(shard, grant)| other.get(shard) != Some(grant))
                    .map(|(shard, _)| *shard)
                    .collect()
            };
            let lost = not_in(&self.known, &given);
            let gained = not_in(&given, &self.known);
            self.known = given;
            lost.iter().for_each(|shard| {
                self.next_out.remove(shard);
            });
            let mut commands = Vec::new();
            let mut is_all = true;
            for (shard, next) in &mut self.next_out {
                let records = state.records.get(&(Topic::RideCommands, *shard));
                let left = max - commands.len();
                let waiting = records.map_or(&[][..], |records| &records[*next as usize..]);
                is_all &= waiting.len() <= left;
                for record in waiting.iter().take(left) {
                    *next = record.offset + 1;
                    commands.push((*shard, record.clone()));
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let woken = state.woken.remove(&self.node);
            let is_news = !commands.is_empty() || !lost.is_empty() || !gained.is_empty();
            if is_news || woken || left.is_zero() {
                return Ok(Polled {
                    commands,
                    clock_ms: is_all.then_some(clock_ms),
                    gained,
                    lost,
                });
            }
            (state, _) = home
                .0
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn commit(&mut self, tx: &Transaction) -> Result<(), CommitError> {
        let now_ms = self.home.0.clock.now().0;
        let home = self.home.clone();
        home.change(|state| {
            for (shard, header) in &tx.headers {
                let is_ours =
                    self.owns(state, *shard) && state.epochs.get(shard) == self.epochs.get(shard);
                if !is_ours {
                    self.next_out.clear();
                    return Err(CommitError::Ambiguous(format!("shard {shard} has moved")));
                }
                let before = state.headers.get(shard).map_or(0, |h| h.next_input);
                assert!(header.next_input >= before, "shard {shard} goes back");
            }
            for append in tx.events.iter().chain(&tx.commands) {
                let (key, value) = (append.key.clone(), append.value.clone());
                state.append(append.topic, append.shard, now_ms, key, value);
            }
            for change in &tx.states {
                let states = state.states.entry(change.shard).or_default();
                match &change.value {
                    Some(value) => states.insert(change.key.clone(), value.clone()),
                    None => states.remove(&change.key),
                };
            }
            for (shard, header) in &tx.headers {
                let header = Header {
                    epoch: self.epoch_of(*shard),
                    owner: self.node.clone(),
                    ..header.clone()
                };
                state.headers.insert(*shard, header);
            }
            state.commits += 1;
            Ok(())
        })
    }
}
