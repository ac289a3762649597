//! What all sockets and calls of a gateway share.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use cabrank_events::{Command, CommandId, CommandRecord, Reason, RiderId, Time, TraceParent};
use cabrank_matcher::api::{Dispatch, NotTaken};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit, watch};
use tokio_util::sync::CancellationToken;

use crate::addresses::Addresses;
use crate::admission::{Admission, RETRY_AFTER_S, TooManyNewRides};
use crate::config::{BadGatewayConfig, GatewayConfig};
use crate::counters::IngestCounters;
use crate::first_offer::FirstOffers;
use crate::forecasts::Forecasts;
use crate::map::Map;
use crate::news::{DriverNews, RiderNews};
use crate::outcomes::{Outcomes, TooManyWaiting, Waiting};
use crate::people::{CloseCause, Drivers, Riders};
use crate::problem::Problem;
use crate::pulse::Pulse;
use crate::quote::Quotes;
use crate::rate::Buckets;
use crate::revoke::Revocations;
use crate::steps::Steps;
use crate::threads::Threads;
use crate::tls::Tls;
use crate::token::{Caller, TokenVerifier, Verified};
use crate::zones::ZoneBook;

/// Histories read from the log at once: each looks through many records.
const HISTORIES_MAX: usize = 2;

/// The shared state of a gateway.
pub struct Edge {
    pub config: GatewayConfig,
    pub dispatch: Arc<dyn Dispatch>,
    pub verifier: Arc<TokenVerifier>,
    pub revocations: Revocations,
    pub outcomes: Arc<Outcomes>,
    pub admission: Admission,
    pub drivers: Drivers<DriverNews>,
    pub riders: Riders<RiderNews>,
    /// Calls of riders.
    pub rates: Buckets<RiderId>,
    /// Sockets that people open.
    pub connects: Buckets<Caller>,
    pub addresses: Arc<Addresses>,
    /// None without TLS.
    pub tls: Option<Arc<Tls>>,
    pub counters: Arc<IngestCounters>,
    /// One permit per new ride whose outcome is waited for.
    pub requests: Semaphore,
    /// One permit per socket and event stream.
    pub sockets: Arc<Semaphore>,
    pub sockets_max: usize,
    /// Counts commits heard of, to wake event streams.
    pub commits: watch::Sender<u64>,
    /// Not ready any more: clients are told to move, new sockets are refused.
    pub draining: CancellationToken,
    /// Sockets and streams close now.
    pub closing: CancellationToken,
    /// Where the sockets live.
    pub threads: Threads,
    /// What open maps share.
    pub map: Map,
    /// What the forecast service expects.
    pub forecasts: Forecasts,
    /// Which zones there are.
    pub zones: ZoneBook,
    /// What is known of pickup times.
    pub quotes: Quotes,
    /// What happened in the last minute.
    pub pulse: Pulse,
    /// What is traced.
    pub steps: Steps,
    /// How long riders of this gateway wait for an offer.
    pub first_offers: FirstOffers,
    /// One permit per history that is being read; more wait.
    pub histories: Semaphore,
    started: Instant,
    /// Tells this gateway's calls from those of others and of its earlier lives.
    life: u64,
    calls: AtomicU64,
}

/// Why a command was not handed in. It has not been and will not be executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotHandedIn {
    /// Seconds after which to try again.
    pub retry_after_s: u32,
}

impl From<NotHandedIn> for Problem {
    fn from(not: NotHandedIn) -> Self {
        Problem::busy("nothing was done: repeat the same request (with the same key) after Retry-After seconds")
            .retry_after(not.retry_after_s)
    }
}

impl Edge {
    pub fn new(
        config: GatewayConfig,
        dispatch: Arc<dyn Dispatch>,
        threads: Threads,
        zones: ZoneBook,
    ) -> Result<Arc<Self>, BadGatewayConfig> {
        let bad = |key: &str, value: &str, remedy: String| BadGatewayConfig {
            key: key.into(),
            value: value.into(),
            remedy,
        };
        let verifier = TokenVerifier::new(&config.keys)
            .map_err(|why| bad("keys", "not usable", why.to_string()))?;
        let path = &config.keys.revocations_file;
        let revocations = Revocations::open(path).map_err(|why| {
            bad(
                "keys.revocations_file",
                path,
                format!("{why}: name a file that can be written"),
            )
        })?;
        let tls = Tls::new(&config.tls).map_err(|why| bad("tls", "not usable", why.to_string()))?;
        let people_max = config.limits.people_remembered_max;
        let sockets_max = config
            .limits
            .connections()
            .0
            .min(Semaphore::MAX_PERMITS >> 3);
        let edge = Arc::new(Self {
            verifier: Arc::new(verifier),
            revocations,
            outcomes: Arc::new(Outcomes::new(config.limits.waiting_outcomes_max)),
            admission: Admission::new(
                Duration::from_millis(config.limits.answers_late_ms),
                Instant::now(),
            ),
            drivers: Drivers::new(config.limits.people_remembered_max),
            riders: Riders::default(),
            rates: Buckets::per_minute(config.limits.requests_per_minute, people_max),
            connects: Buckets::per_minute(config.limits.sockets_per_minute, people_max),
            addresses: Arc::new(Addresses::new(&config.limits)),
            tls: tls.map(Arc::new),
            counters: Arc::new(IngestCounters::default()),
            requests: Semaphore::new(config.limits.waiting_requests_max),
            sockets: Arc::new(Semaphore::new(sockets_max)),
            sockets_max,
            commits: watch::Sender::new(0),
            draining: CancellationToken::new(),
            closing: CancellationToken::new(),
            threads,
            map: Map::default(),
            forecasts: Forecasts::default(),
            zones,
            quotes: Quotes::default(),
            pulse: Pulse::default(),
            steps: Steps::default(),
            first_offers: FirstOffers::default(),
            histories: Semaphore::new(HISTORIES_MAX),
            started: Instant::now(),
            life: RandomState::new().build_hasher().finish(),
            calls: AtomicU64::new(0),
            config,
            dispatch,
        });
        // Weak, because the node outlives gateways and would keep this one alive.
        let hearing = Arc::downgrade(&edge);
        edge.dispatch.listen(Box::new(move |commits| {
            if let Some(edge) = hearing.upgrade() {
                edge.hear(commits);
            }
        }));
        Ok(edge)
    }

    /// Milliseconds of the wall clock since the gateway began; monotonic.
    pub fn wall_ms(&self) -> u64 {
        self.wall_ms_at(Instant::now())
    }

    /// The same for a time that is known already.
    pub fn wall_ms_at(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.started).as_millis() as u64
    }

    /// A name for a call that no other call has.
    pub fn new_call(&self) -> String {
        // Relaxed: only uniqueness matters.
        let call = self.calls.fetch_add(1, Ordering::Relaxed);
        format!("{:016x}/{call}", self.life)
    }

    /// Hands a command in; the waiter resolves when its outcome is committed.
    pub fn submit(
        &self,
        id: CommandId,
        issued_at: Time,
        command: Command,
    ) -> Result<Waiting, NotHandedIn> {
        self.hand_in(id, issued_at, command, None, None)
    }

    /// The same, with the words of the person at the desk who wants it, and the step of a trace it is part of.
    pub fn hand_in(
        &self,
        id: CommandId,
        issued_at: Time,
        command: Command,
        reason: Option<Reason>,
        parent: Option<TraceParent>,
    ) -> Result<Waiting, NotHandedIn> {
        let waiting = self
            .outcomes
            .wait_for(id.clone())
            .map_err(|TooManyWaiting| {
                refused("waiting_outcomes");
                NotHandedIn { retry_after_s: 1 }
            })?;
        let traceparent = self.steps.ask(&id, &command, parent);
        let record = CommandRecord::external(id, issued_at, command)
            .because(reason)
            .traced(traceparent);
        let taken = self.dispatch.submit(record);
        if taken.is_err() {
            self.steps.withdraw(&waiting);
        }
        match taken {
            Ok(()) => Ok(waiting),
            Err(NotTaken::Busy) => {
                refused("log_queue");
                Err(NotHandedIn { retry_after_s: 1 })
            }
            Err(NotTaken::Closed) => {
                refused("log_closed");
                Err(NotHandedIn { retry_after_s: 5 })
            }
        }
    }

    /// What is only worth counting when somebody looks: pings, and queues against their bounds.
    pub fn publish_metrics(&self) {
        self.counters.snapshot().publish();
        let limits = &self.config.limits;
        let used = self
            .sockets_max
            .saturating_sub(self.sockets.available_permits());
        metrics::gauge!("cabrank_sockets_used").set(used as f64);
        metrics::gauge!("cabrank_sockets_max").set(self.sockets_max as f64);
        metrics::gauge!("cabrank_outcomes_waiting").set(self.outcomes.waiting() as f64);
        metrics::gauge!("cabrank_outcomes_waiting_max").set(limits.waiting_outcomes_max as f64);
        let requests_max = limits.waiting_requests_max;
        let requests = requests_max.saturating_sub(self.requests.available_permits());
        metrics::gauge!("cabrank_requests_waiting").set(requests as f64);
        metrics::gauge!("cabrank_requests_waiting_max").set(requests_max as f64);
        let new_rides = self.admission.rate().unwrap_or(f64::INFINITY);
        metrics::gauge!("cabrank_new_rides_per_second_max").set(new_rides);
    }

    /// Room for one more socket or stream.
    pub fn admit(&self) -> Result<OwnedSemaphorePermit, Problem> {
        if self.draining.is_cancelled() {
            return Err(Problem::going_down());
        }
        self.sockets.clone().try_acquire_owned().map_err(|_| {
            refused("connections");
            Problem::busy("as many connections are open as allowed: connect again later")
                .retry_after(5)
        })
    }

    /// Room for one more new ride whose outcome is waited for.
    pub fn admit_request(&self) -> Result<SemaphorePermit<'_>, Problem> {
        self.admission
            .admit(Instant::now())
            .map_err(|TooManyNewRides| {
                refused("engine_late");
                NotHandedIn {
                    retry_after_s: RETRY_AFTER_S,
                }
            })?;
        self.requests.try_acquire().map_err(|_| {
            refused("waiting_requests");
            NotHandedIn { retry_after_s: 1 }.into()
        })
    }

    /// Ends the sockets of somebody who was shut out. Streams look by themselves.
    pub fn end_sessions(&self, caller: &Caller) {
        match caller {
            Caller::Driver(driver) => self.drivers.close(driver, CloseCause::Revoked),
            Caller::Rider(rider) => self.riders.close(rider, CloseCause::Revoked),
            Caller::Service(_) | Caller::Ops(_) => {}
        }
    }

    /// A socket is there now: was its person shut out while it was opened?
    pub fn look_again(&self, verified: &Verified) {
        if self.revocations.covers(verified) {
            self.end_sessions(&verified.caller);
        }
    }

    /// Counts a call against the rider's rate.
    pub fn count_request(&self, rider: &RiderId) -> Result<(), Problem> {
        self.rates.take(rider).map_err(|retry_after_s| {
            refused("requests");
            Problem::too_many_requests(retry_after_s)
        })
    }

    /// Counts a socket against its person's rate.
    pub fn count_socket(&self, caller: &Caller) -> Result<(), Problem> {
        self.connects.take(caller).map_err(|retry_after_s| {
            refused("sockets");
            Problem::too_many_sockets(retry_after_s)
        })
    }
}

/// Counts a refusal by a limit.
pub fn refused(limit: &'static str) {
    metrics::counter!("cabrank_limit_refusals_total", "limit" => limit).increment(1);
}
