//! The commit loop: read commands, let the engine decide, write one transaction, tell the world, next.
//!
//! One thread owns the engine. Another one solves rounds meanwhile. Nothing is published before its transaction is
//! durable; after a failed commit memory is thrown away and read back from the log (PROTOCOL 26).

mod dispatch;
mod measure;
mod run;
mod steps;
mod warm;

pub use measure::Measured;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;

use cabrank_engine::matching::PolicyKind;
use cabrank_engine::{DispatchRules, EngineConfig, Market};
use cabrank_eventlog::{EventLog, Lease, ShardOwner, Waker};
use cabrank_events::{DriverId, Time};
use cabrank_ring::Ring;
use crossbeam_channel::{Receiver, Sender, bounded};
use tracing::{error, info};

use crate::api::Listener;
use crate::clock::DomainClock;
use crate::config::NodeConfig;
use crate::elsewhere::Elsewhere;
use crate::follower::Following;
use crate::heart::{Heart, Hearts};
use crate::people::People;
use crate::rings::Rings;
use crate::views::Views;

/// Cars that came free or moved, waiting to be looked at; beyond it all waiting rides are looked at instead.
const WAKES_MAX: usize = 8_192;

/// Why a node stopped by itself.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// Another owner has taken the shards.
    #[error("another node has taken over (epoch {by}); this one stopped and has lost nothing")]
    Fenced {
        /// The newer owner's epoch.
        by: u64,
    },
    /// A command of our own in the log cannot be read, or the engine broke an assertion (PROTOCOL 9).
    #[error("stopped rather than guess: {0}")]
    Broken(String),
    /// The log cannot be read back.
    #[error("the log failed: {0}")]
    Log(String),
}

/// How a node ended.
pub type Stopped = Result<(), Failure>;

/// What gateways' threads and the node's threads share.
pub(crate) struct Shared {
    pub(crate) log: Arc<dyn EventLog>,
    pub(crate) rings: Rings,
    /// Is somebody looking for new partitions?
    is_growing: AtomicBool,
    clock: DomainClock,
    config: NodeConfig,
    /// Who is told when the desk asks this node to leave.
    leave: Mutex<Option<Leave>>,
    /// How rounds choose by the configuration.
    configured: DispatchRules,
    /// How they do: `configured`, and what the desk has set.
    rules: Mutex<InForce>,
    pub(crate) engine: Arc<EngineConfig>,
    people: Arc<People>,
    views: Views,
    listeners: RwLock<Vec<Listener>>,
    bell: Bell,
    ready: AtomicBool,
    draining: AtomicBool,
    stopping: AtomicBool,
    /// Rides that were looked at in vain: only then do pings need to wake anybody.
    hungry: AtomicUsize,
    wakes: (Sender<DriverId>, Receiver<DriverId>),
    wakes_lost: AtomicBool,
    /// The shards this node has, as the commit loop last said.
    table: Mutex<BTreeMap<u16, Holding>>,
    /// Shards of other nodes, whose drivers the index must know.
    pub(crate) foreign: Following,
    /// Their rides, as far as rounds look at them.
    elsewhere: Elsewhere,
    others_failed: Mutex<Option<Failure>>,
    is_warming: AtomicBool,
    warm_again: AtomicBool,
    pub(crate) lease: Lease,
    /// Of the node's loops.
    hearts: Hearts,
}

/// What a node does that is asked to leave.
struct Leave {
    name: String,
    /// What was asked before concerned another node of this name.
    since: Time,
    tell: Box<dyn FnOnce() + Send>,
}

/// How rounds choose, by the market's events up to a number.
struct InForce {
    seq: u64,
    settings: serde_json::Value,
    rules: Arc<DispatchRules>,
}

/// A shard that lives here.
#[derive(Clone, Debug)]
pub(crate) struct Holding {
    pub epoch: u64,
    pub next_input: u64,
    pub open_rides: usize,
    pub waiting_rides: usize,
    pub taken_at: Time,
    pub takeover_ms: u64,
}

impl Shared {
    pub(crate) fn table(&self) -> MutexGuard<'_, BTreeMap<u16, Holding>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How rounds choose from now on.
    fn rules(&self) -> Arc<DispatchRules> {
        let in_force = self.rules.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&in_force.rules)
    }

    /// The desk has asked for something, or it was read back. It may come late and twice: the newest counts.
    fn heed(&self, market: &Market) {
        self.rings.heed(market);
        self.views.market(market);
        self.leave_if_asked(market);
        let mut in_force = self.rules.lock().unwrap_or_else(PoisonError::into_inner);
        if market.seq <= in_force.seq {
            return;
        }
        in_force.seq = market.seq;
        if in_force.settings == market.settings {
            return;
        }
        in_force.settings.clone_from(&market.settings);
        match self.configured.with(&market.settings) {
            Ok(rules) => {
                info!(policy = %rules.policy, settings = %market.settings, "the market was set");
                in_force.rules = Arc::new(rules);
            }
            // The engine has checked them, so a newer program did.
            Err(why) => {
                error!(%why, settings = %market.settings, "these settings are not understood")
            }
        }
    }

    fn leave_if_asked(&self, market: &Market) {
        let mut leave = self.leave.lock().unwrap_or_else(PoisonError::into_inner);
        let asked = leave.as_ref().and_then(|leave| {
            let asked_at = market.drain_of(&leave.name)?;
            (asked_at > leave.since).then_some(())
        });
        if asked.is_some()
            && let Some(leave) = leave.take()
        {
            info!(node = leave.name, "the desk asks this node to leave");
            (leave.tell)();
        }
    }

    /// For a loop of the node.
    fn heart(&self, name: &str) -> Heart {
        let patience = Duration::from_millis(self.config.wedged_after_ms);
        self.hearts.add(name, patience)
    }

    fn take_others_failed(&self) -> Option<Failure> {
        self.others_failed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    /// A car has moved or come free: rides that were looked at in vain may want it.
    fn wake_rides_for(&self, driver: &DriverId) {
        // Relaxed: a ride that became hungry a moment ago is looked at by its own round; the next ping sees it.
        if self.hungry.load(Ordering::Relaxed) > 0
            && self.people.begin_wake(driver, self.clock.now())
        {
            if self.wakes.0.try_send(driver.clone()).is_err() {
                self.people.end_wake(driver, self.clock.now());
                self.wakes_lost.store(true, Ordering::Relaxed);
            }
            self.bell.ring();
        }
    }
}

/// A node in this process. Dropping it does not stop it; [`Node::stop`] does.
#[derive(Clone)]
pub struct Node {
    shared: Arc<Shared>,
    thread: Arc<Mutex<Option<JoinHandle<Stopped>>>>,
}

/// What a node is made of.
pub struct Parts {
    /// Commands and events.
    pub log: Arc<dyn EventLog>,
    /// The right to write.
    pub owner: Box<dyn ShardOwner>,
    /// Where things live, as the city was made; if that has grown, the log says so.
    pub ring: Arc<Ring>,
    /// Domain time; the log's append times come from the same clock.
    pub clock: DomainClock,
    /// The node's knobs.
    pub config: NodeConfig,
    /// The engine's knobs.
    pub engine: EngineConfig,
}

impl Node {
    /// Starts the node; it is ready once it has read its state back. `on_stop` is told when it stops, for whatever reason.
    /// It answers others about its shards only while the owner's lease holds.
    pub fn start(parts: Parts, on_stop: impl FnOnce(&Stopped) + Send + 'static) -> Node {
        let lease = parts.owner.lease();
        let people = Arc::new(People::new(parts.config.drivers_max));
        let configured = DispatchRules::configured(parts.config.policy, &parts.engine);
        let shared = Arc::new(Shared {
            log: parts.log,
            rings: Rings::new(parts.ring),
            is_growing: AtomicBool::new(false),
            clock: parts.clock,
            configured,
            leave: Mutex::default(),
            rules: Mutex::new(InForce {
                seq: 0,
                settings: Market::default().settings,
                rules: Arc::new(configured),
            }),
            config: parts.config,
            elsewhere: Elsewhere::new(&parts.engine),
            engine: Arc::new(parts.engine),
            people,
            views: Views::default(),
            listeners: RwLock::default(),
            bell: Bell::default(),
            ready: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            hungry: AtomicUsize::new(0),
            wakes: bounded(WAKES_MAX),
            wakes_lost: AtomicBool::new(false),
            table: Mutex::default(),
            foreign: Following::default(),
            others_failed: Mutex::default(),
            is_warming: AtomicBool::new(false),
            warm_again: AtomicBool::new(false),
            lease,
            hearts: Hearts::default(),
        });
        let for_thread = Arc::clone(&shared);
        let owner = parts.owner;
        let thread = std::thread::Builder::new()
            .name("cabrank-node".into())
            .spawn(move || {
                let stopped = run::run(&for_thread, owner);
                // SeqCst: the flag is a signal to other threads and is set once.
                for_thread.ready.store(false, Ordering::SeqCst);
                on_stop(&stopped);
                stopped
            })
            .expect("a process that cannot start a thread at its start cannot work");
        Node {
            shared,
            thread: Arc::new(Mutex::new(Some(thread))),
        }
    }

    /// `leave` is called, once, when the desk asks the node called `name` to leave (`drain_node`) from now on. It must be
    /// quick; the node goes on until it is stopped.
    pub fn on_drain(&self, name: &str, leave: impl FnOnce() + Send + 'static) {
        let mut asked = self
            .shared
            .leave
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *asked = Some(Leave {
            name: name.to_owned(),
            since: self.shared.clock.now(),
            tell: Box::new(leave),
        });
    }

    /// Readiness falls, so that nobody new comes; everything goes on working.
    pub fn drain(&self) {
        self.shared.draining.store(true, Ordering::SeqCst);
    }

    /// Handles what was submitted, commits it and ends. Rides that are open go on at the next start.
    pub fn stop(&self) -> Stopped {
        self.drain();
        self.shared.stopping.store(true, Ordering::SeqCst);
        self.shared.bell.ring();
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        match thread.map(JoinHandle::join) {
            Some(Ok(stopped)) => stopped,
            Some(Err(_)) => Err(Failure::Broken("the node's thread panicked".into())),
            None => Ok(()),
        }
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// How this node's rounds choose.
    pub fn policy(&self) -> PolicyKind {
        self.shared.rules().policy
    }

    /// How many rides of other nodes' shards its rounds may look at.
    pub fn rides_elsewhere(&self) -> usize {
        self.shared.elsewhere.len()
    }

    /// How many drivers the node knows.
    pub fn drivers(&self) -> usize {
        self.shared.people.len()
    }
}

/// Wakes the commit loop: rung by submitters, by the solver, by cars.
#[derive(Default)]
struct Bell {
    rung: Mutex<bool>,
    heard: Condvar,
    /// Wakes the loop where it waits inside the log.
    waker: OnceLock<Waker>,
}

impl Bell {
    fn also_wake(&self, waker: Option<Waker>) {
        if let Some(waker) = waker {
            // Set once, at the start of the loop.
            let _ = self.waker.set(waker);
        }
    }

    fn ring(&self) {
        if let Some(wake) = self.waker.get() {
            wake();
        }
        let mut rung = self.rung.lock().unwrap_or_else(PoisonError::into_inner);
        if !*rung {
            *rung = true;
            self.heard.notify_one();
        }
    }

    fn wait(&self, at_most: Duration) {
        let rung = self.rung.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut rung, _) = self
            .heard
            .wait_timeout_while(rung, at_most, |rung| !*rung)
            .unwrap_or_else(PoisonError::into_inner);
        *rung = false;
    }
}
