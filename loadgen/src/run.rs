//! What every run has: phones, a follower of the events, a reader of the counters, an end, a report.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cabrank_events::RideId;
use futures_util::StreamExt;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep, timeout};

use crate::client::counters::{self, GatewayCounters};
use crate::client::phone::{Brain, Phone};
use crate::client::{Context, ContextError, Phase, ledger, rider};
use crate::report::{LatencyReport, Machine, PingReport, REPORT_SCHEMA, Report};
use crate::sse::StreamError;
use crate::trace::TraceError;

/// Wishes whose answers are awaited at the same time; further ones are not sent, which makes the run invalid.
pub const WISHES_IN_FLIGHT_MAX: usize = 10_000;
/// Rides called off at the same time when a run ends.
const CALLING_OFF_MAX: usize = 64;
/// The counters are read so often: what a killed server counted since is lost.
const COUNTERS_EVERY: Duration = Duration::from_secs(1);
/// How long the server may take to count the last pings.
const COUNTED_WITHIN: Duration = Duration::from_secs(10);
/// How long the phones may take to hang up.
const HANG_UP_WITHIN: Duration = Duration::from_secs(15);

/// Why a run gave no report.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The clients cannot be built.
    #[error(transparent)]
    Context(#[from] ContextError),
    /// The event stream cannot be opened.
    #[error("following the rides: {0}")]
    Events(#[from] StreamError),
    /// A trace cannot be read.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// The driver's sockets cannot be opened.
    #[error("no driver can connect to {url}: {why}")]
    Connect {
        /// The server.
        url: String,
        /// What went wrong.
        why: String,
    },
    /// The server lives in another time than the trace.
    #[error(
        "the server's clock says {server}, the trace is of {trace}: start it with --clock trace --clock-start {trace} --clock-speed {speed}"
    )]
    Clock {
        /// RFC 3339.
        server: String,
        /// RFC 3339.
        trace: String,
        /// Domain seconds a second.
        speed: f64,
    },
    /// There is nothing to play.
    #[error("the traces hold nothing in the window asked for: check --from and --to")]
    Nothing,
}

/// A line of progress.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// Wall seconds since the run began.
    pub elapsed_s: f64,
    /// Drivers with an open session.
    pub drivers: u64,
    /// Pings sent in the last second.
    pub pings_per_s: f64,
    /// Open rides.
    pub open: u64,
    /// Rides that had a driver.
    pub assigned: u64,
    /// Rides completed.
    pub completed: u64,
    /// Request to offer, ms.
    pub offer_p50_ms: f64,
    /// Request to offer, ms.
    pub offer_p99_ms: f64,
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} drivers, {:.0} pings/s, {} open rides, {} assigned, {} completed, request->offer p50 {:.1} ms p99 {:.1} ms",
            self.drivers,
            self.pings_per_s,
            self.open,
            self.assigned,
            self.completed,
            self.offer_p50_ms,
            self.offer_p99_ms
        )
    }
}

/// Told once a second.
pub type OnStatus = Arc<dyn Fn(&Status) + Send + Sync>;

/// A run under way.
pub(crate) struct Run {
    pub context: Arc<Context>,
    phase: watch::Sender<Phase>,
    phones: JoinSet<()>,
    helpers: Vec<JoinHandle<()>>,
    counters: Arc<Mutex<GatewayCounters>>,
    began: Instant,
    /// How long it was measured, and the pings sent meanwhile.
    measured: (Duration, u64),
    last_status: (Instant, u64),
}

impl Run {
    /// Opens the event stream and begins to read the counters of the gateways at `counted_at`.
    pub async fn begin(context: Arc<Context>, counted_at: &[String]) -> Result<Run, RunError> {
        let (phase, follow) = watch::channel(Phase::Running);
        let counters = Arc::new(Mutex::new(GatewayCounters::at(counted_at)));
        let urls = lock(&counters).urls();
        let readings = counters::read(&context, &urls).await;
        lock(&counters).handle_readings(readings);
        let follower = ledger::follow(Arc::clone(&context), follow).await?;
        let reader = tokio::spawn(read_counters(Arc::clone(&context), Arc::clone(&counters)));
        let now = Instant::now();
        Ok(Run {
            context,
            phase,
            phones: JoinSet::new(),
            helpers: vec![follower, reader],
            counters,
            began: now,
            measured: (Duration::ZERO, 0),
            last_status: (now, 0),
        })
    }

    /// From here on it counts; answers when that was.
    pub fn measure(&mut self) -> Instant {
        self.began = Instant::now();
        let mut counts = self.context.counts();
        counts.is_measuring = true;
        self.measured.1 = counts.pings_sent;
        self.began
    }

    pub fn phase(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    /// Sets a phone to work.
    pub fn hire<B: Brain>(&mut self, phone: Phone<B>) {
        self.phones.spawn(phone.run(self.phase()));
    }

    /// Runs `task` beside the phones; it ends with the run.
    pub fn beside(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        let mut phase = self.phase();
        self.phones.spawn(async move {
            tokio::select! {
                () = task => {}
                _ = phase.wait_for(|phase| *phase == Phase::Over) => {}
            }
        });
    }

    /// Where the run stands; call about once a second.
    pub fn status(&mut self) -> Status {
        let totals = self.context.ledger.totals();
        let counts = self.context.counts().clone();
        let now = Instant::now();
        let since = now
            .duration_since(self.last_status.0)
            .as_secs_f64()
            .max(0.001);
        let pings = counts.pings_sent.saturating_sub(self.last_status.1);
        self.last_status = (now, counts.pings_sent);
        let offer = totals.request_to_offer.quantiles();
        Status {
            elapsed_s: now.duration_since(self.began).as_secs_f64(),
            drivers: counts.online,
            pings_per_s: pings as f64 / since,
            open: totals.rides.open,
            assigned: totals.rides.assigned,
            completed: totals.rides.completed,
            offer_p50_ms: offer.p50,
            offer_p99_ms: offer.p99,
        }
    }

    /// Brings open rides to an end: drivers finish at once, who has none is called off. Up to `within`.
    pub async fn settle(&mut self, within: Duration) {
        {
            let mut counts = self.context.counts();
            counts.is_measuring = false;
            self.measured = (self.began.elapsed(), counts.pings_sent - self.measured.1);
        }
        self.phase.send_replace(Phase::Ending);
        let deadline = Instant::now() + within;
        let half = Instant::now() + within / 2;
        let mut begun = HashSet::new();
        loop {
            let open = self.context.ledger.open();
            if open.is_empty() || Instant::now() > deadline {
                break;
            }
            // At first only those nobody drives to; later all: a driver may have lost interest.
            let call_off = if Instant::now() < half {
                self.context.ledger.open_without_driver()
            } else {
                open
            };
            let call_off = call_off
                .into_iter()
                .filter(|ride| !begun.contains(ride))
                .collect();
            begun.extend(self.call_off(call_off, deadline).await);
            sleep(Duration::from_millis(300)).await;
        }
        ledger::settle_by_asking(&self.context).await;
    }

    /// Calls rides off; answers those that cannot be called off any more.
    async fn call_off(&self, rides: Vec<RideId>, deadline: Instant) -> Vec<RideId> {
        let context = &self.context;
        let calls = rides
            .into_iter()
            .map(async |ride| (ride, rider::cancel_as_ops(context, ride, deadline).await));
        let mut calls = futures_util::stream::iter(calls).buffer_unordered(CALLING_OFF_MAX);
        let mut begun = Vec::new();
        while let Some((ride, called_off)) = calls.next().await {
            match called_off {
                Ok(true) => {}
                Ok(false) => begun.push(ride),
                Err(why) => tracing::debug!(%why, "calling a ride off"),
            }
        }
        begun
    }

    /// Waits until the server has counted all pings that were sent, and the event stream has brought what it had overtaken (it
    /// reads a shard's two partitions one after the other), then lets everybody hang up.
    pub async fn end(&mut self) {
        let deadline = Instant::now() + COUNTED_WITHIN;
        while Instant::now() < deadline {
            let urls = lock(&self.counters).urls();
            let readings = counters::read(&self.context, &urls).await;
            {
                let mut counters = lock(&self.counters);
                counters.handle_readings(readings);
                let sent = self.context.counts().pings_sent;
                if counters.counted().total() >= sent || counters.lives() > 1 {
                    break;
                }
            }
            sleep(Duration::from_millis(100)).await;
        }
        while self.context.ledger.skipped() > 0 && Instant::now() < deadline {
            sleep(Duration::from_millis(100)).await;
        }
        self.phase.send_replace(Phase::Over);
        let all = async { while self.phones.join_next().await.is_some() {} };
        let hung_up = timeout(HANG_UP_WITHIN, all).await;
        if hung_up.is_err() {
            self.phones.shutdown().await;
        }
        for helper in self.helpers.drain(..) {
            helper.abort();
        }
    }

    /// The run in numbers. Call after [`Run::end`].
    pub fn report(&self, seed: u64, arguments: Vec<String>) -> Report {
        let totals = self.context.ledger.totals();
        let counts = self.context.counts().clone();
        let (counted, lives) = {
            let counters = lock(&self.counters);
            (counters.counted(), counters.lives())
        };
        let seconds = self.measured.0.as_secs_f64();
        let unaccounted = counts.pings_sent as i64 - counted.total() as i64;
        let mut report = Report {
            schema: REPORT_SCHEMA.to_owned(),
            valid: true,
            invalid_because: Vec::new(),
            notes: Vec::new(),
            duration_s: seconds,
            pings: PingReport {
                sent: counts.pings_sent,
                accepted: counted.accepted,
                refused: counted
                    .refused
                    .into_iter()
                    .filter(|(_, count)| *count > 0)
                    .collect(),
                replaced: counted.replaced,
                unaccounted,
                per_second: self.measured.1 as f64 / seconds.max(0.001),
            },
            rides: totals.rides,
            latency_ms: LatencyReport {
                request_to_offer: totals.request_to_offer.quantiles(),
                request_to_assigned: totals.request_to_assigned.quantiles(),
                ping_to_visible: counts.ping_to_visible.quantiles(),
                command_ack: counts.command_ack.quantiles(),
            },
            wait_s: totals.wait.report(),
            pickup_s: totals.pickup.report(),
            quotes: (totals.quotes.asked > 0).then_some(totals.quotes),
            audit: None,
            load: None,
            machine: Machine::here(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            arguments,
            seed,
        };
        let way_lost = counts.sockets_lost + counts.signals_lost;
        if unaccounted != 0 {
            let what = format!("{unaccounted} pings sent were not counted by the server");
            if lives > 1 || way_lost > 0 && unaccounted > 0 {
                let lost = format!("{lives} lives of the server, {way_lost} sockets lost");
                report.notes.push(format!("{what} ({lost})"));
            } else {
                report.invalidate(what);
            }
        }
        if counts.pings_unsent > 0 {
            report.invalidate(format!(
                "{} pings were given up unsent",
                counts.pings_unsent
            ));
        }
        if report.rides.unknown > 0 {
            let why = totals.first_unknown.unwrap_or_default();
            report.invalidate(format!(
                "{} wishes stayed unknown: {why}",
                report.rides.unknown
            ));
        }
        if report.rides.open > 0 {
            report.invalidate(format!("{} rides did not reach an end", report.rides.open));
        }
        if counts.errors > 0 {
            let first = counts.first_error.unwrap_or_default();
            report.invalidate(format!("{} complaints, the first: {first}", counts.errors));
        }
        if totals.skipped > 0 {
            report.invalidate(format!(
                "the event stream left out {} events",
                totals.skipped
            ));
        }
        if totals.breaks > 0 {
            report.notes.push(format!(
                "the event stream was resumed {} time(s)",
                totals.breaks
            ));
        }
        for (kind, count) in totals.refused {
            report.notes.push(format!("{count} wishes refused: {kind}"));
        }
        if lives > 1 {
            report
                .notes
                .push(format!("the server was restarted {} time(s)", lives - 1));
        }
        if way_lost + counts.repeated + counts.connects_failed + counts.commands_refused > 0 {
            report.notes.push(format!(
                "{} sockets lost, {} signals lost, {} connects failed, {} messages repeated, {} commands refused",
                counts.sockets_lost,
                counts.signals_lost,
                counts.connects_failed,
                counts.repeated,
                counts.commands_refused
            ));
        }
        report
    }
}

async fn read_counters(context: Arc<Context>, counters: Arc<Mutex<GatewayCounters>>) {
    let urls = lock(&counters).urls();
    loop {
        sleep(COUNTERS_EVERY).await;
        let readings = counters::read(&context, &urls).await;
        lock(&counters).handle_readings(readings);
    }
}

fn lock(counters: &Mutex<GatewayCounters>) -> std::sync::MutexGuard<'_, GatewayCounters> {
    // Readings are taken as a whole: nothing can be half-written.
    counters.lock().unwrap_or_else(PoisonError::into_inner)
}
