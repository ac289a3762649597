//! The load a city carries while it is broken: the open-loop generator of `cabrank load`, and the end of its rides.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cabrank_events::RideId;
use cabrank_loadgen::client::{self, Mint, Role};
use cabrank_loadgen::load::conduct::{ConductError, Crew, Measured, Status, conduct};
use cabrank_loadgen::load::plan::{Plan, Shares};
use cabrank_loadgen::load::schedule::Rate;
use cabrank_loadgen::load::tally::{Kind, Second, Tally, Times};
use serde::Serialize;
use tokio::task::{JoinHandle, JoinSet};

use crate::AnyError;

/// The generator is told to stop; this is only its bound.
const SECONDS_MAX: f64 = 7_200.0;
/// Searches a second, beside the probers'.
const SEARCHES: f64 = 20.0;
/// Connections for ride requests: as many as wait when nothing is answered for five seconds at a hundred a second.
const RIDE_CONNECTIONS: u32 = 512;
/// Between an offer and its answer, and between the steps of a ride, ms.
const THINK_MS: u64 = 300;
const STEP_MS: u64 = 400;
/// Between two looks whether the load has begun.
const LOOK: Duration = Duration::from_millis(100);
/// Rides called off at once, and how long that may take.
const CALLS_AT_ONCE: usize = 32;
const CALL_OFF_WITHIN: Duration = Duration::from_secs(40);

/// What is offered.
#[derive(Clone, Debug, Serialize)]
pub struct Offered {
    /// Drivers, each with a socket.
    pub drivers: u32,
    /// Rides asked for a second.
    pub rides_per_second: f64,
    /// Pings a second, all drivers together.
    pub pings_per_second: f64,
}

/// What a part of the run was offered and did.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Served {
    /// How long, seconds.
    pub seconds: f64,
    /// Rides asked for a second.
    pub rides_offered: f64,
    /// ... and promised.
    pub rides_promised: f64,
    /// Wait for the promise, ms.
    pub promise_p50_ms: f64,
    /// Wait for the promise, ms.
    pub promise_p99_ms: f64,
    /// Pings due a second.
    pub pings_offered: f64,
    /// ... and taken by the sockets.
    pub pings_sent: f64,
}

/// The running generator.
pub struct Load {
    stop: Arc<AtomicBool>,
    has_begun: Arc<AtomicBool>,
    work: JoinHandle<Result<Measured, ConductError>>,
    url: String,
    mint: Mint,
}

/// What it left behind.
pub struct Ended {
    /// Every count.
    pub tally: Tally,
    /// Promised rides.
    pub acknowledged: Vec<String>,
}

impl Load {
    /// Drivers come online at `url` and the load begins.
    pub fn start(
        url: &str,
        secret: &str,
        mint: Mint,
        offered: &Offered,
        seed: u64,
    ) -> Result<Load, AnyError> {
        let mut plan = Plan::new(url, secret);
        plan.drivers = offered.drivers;
        plan.connections = offered.drivers;
        plan.pings = Rate::steady(offered.pings_per_second);
        plan.rides = Rate::steady(offered.rides_per_second);
        plan.nearby = Rate::steady(SEARCHES);
        plan.ride_connections = RIDE_CONNECTIONS;
        plan.warmup_s = 0.0;
        plan.seconds = SECONDS_MAX;
        plan.seed = seed;
        plan.think_ms = THINK_MS;
        plan.step_ms = STEP_MS;
        plan.shares = Shares {
            decline: 0.05,
            ignore: 0.01,
            cancel: 0.03,
        };
        // It looks without a pause for a ping that is not shown, which an outage would turn into a flood.
        plan.probe = false;
        plan.tick_us = 1_000;
        plan.check()?;
        let stop = Arc::new(AtomicBool::new(false));
        let has_begun = Arc::new(AtomicBool::new(false));
        let begins = Arc::clone(&has_begun);
        let crew = Crew {
            program: std::env::current_exe()?,
            arguments: vec!["load-part".into()],
            server_pids: Vec::new(),
            stop: Arc::clone(&stop),
            on_status: Arc::new(move |status: &Status| {
                tracing::info!("{status}");
                if status.phase == "measuring" {
                    // Relaxed, as `stop`: each flag stands for itself.
                    begins.store(true, Ordering::Relaxed);
                }
            }),
        };
        Ok(Load {
            stop,
            has_begun,
            work: tokio::task::spawn_blocking(move || conduct(&plan, &crew)),
            url: url.to_owned(),
            mint,
        })
    }

    /// Waits until all drivers are online and the load has begun, or has failed.
    pub async fn begun(&self) {
        while !self.has_begun.load(Ordering::Relaxed) && !self.has_ended() {
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Has it ended by itself? Then it has failed.
    pub fn has_ended(&self) -> bool {
        self.work.is_finished()
    }

    /// Stops asking, waits until drivers have done what they were about, and calls off what is left, `also` included.
    pub async fn end(self, also: &[String]) -> Result<Ended, AnyError> {
        self.stop.store(true, Ordering::Relaxed);
        let tally = self.work.await??.tally;
        let rides = || {
            tally
                .rides
                .iter()
                .filter(|(_, ride)| ride.promised.is_some())
        };
        let open = rides().filter(|(_, ride)| !ride.completed && !ride.cancelled);
        let mut open: Vec<RideId> = open.map(|(ride, _)| *ride).collect();
        for ride in also {
            open.push(ride.parse()?);
        }
        let acknowledged = rides().map(|(ride, _)| ride.to_string()).collect();
        let context = client::Context::new(&self.url, self.mint, 1.0)?;
        let give_up = tokio::time::Instant::now() + CALL_OFF_WITHIN;
        let mut calls = JoinSet::new();
        for ride in open {
            make_room(&mut calls).await;
            let context = Arc::clone(&context);
            calls.spawn(async move {
                // It has ended meanwhile or is under way, or the audit will say that it is open.
                let _ = client::rider::cancel_as_ops(&context, ride, give_up).await;
            });
        }
        // Wishes without an answer may have opened rides.
        for (rider, key) in tally.unclear.clone() {
            make_room(&mut calls).await;
            let context = Arc::clone(&context);
            calls.spawn(async move {
                let token = (context.mint)(Role::Rider, &rider);
                while tokio::time::Instant::now() < give_up {
                    let call = context
                        .http
                        .post(format!("{}/v1/cancel", context.url))
                        .bearer_auth(&token)
                        .timeout(client::CALL_WITHIN)
                        .json(&serde_json::json!({ "key": key }));
                    let status = call.send().await.map(|answer| answer.status().as_u16());
                    if status.is_ok_and(|status| status < 500 && status != 429) {
                        return;
                    }
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            });
        }
        while calls.join_next().await.is_some() {}
        Ok(Ended {
            tally,
            acknowledged,
        })
    }
}

async fn make_room(calls: &mut JoinSet<()>) {
    while calls.len() >= CALLS_AT_ONCE {
        calls.join_next().await;
    }
}

/// What was offered and served in these windows of the shared clock, ns, in whole seconds.
pub fn served(tally: &Tally, windows: &[(u64, u64)]) -> Served {
    let second = |at: u64| (at.saturating_sub(tally.began) / 1_000_000_000) as usize;
    let seconds: Vec<&Second> = windows
        .iter()
        .flat_map(|(from, to)| {
            let last = second(*to).min(tally.seconds.len());
            tally.seconds.get(second(*from)..last).unwrap_or_default()
        })
        .collect();
    if seconds.is_empty() {
        return Served::default();
    }
    let length = seconds.len() as f64;
    let (mut offered, mut done) = ([0_u64; 2], [0_u64; 2]);
    let mut promises = Times::default();
    for second in seconds {
        for (n, kind) in [Kind::Request, Kind::Ping].iter().enumerate() {
            if let Some(count) = second.kinds.get(kind) {
                offered[n] += count.offered;
                done[n] += count.done;
                if *kind == Kind::Request {
                    promises.merge(&count.times);
                }
            }
        }
    }
    Served {
        seconds: length,
        rides_offered: offered[0] as f64 / length,
        rides_promised: done[0] as f64 / length,
        promise_p50_ms: promises.ms_at(0.5),
        promise_p99_ms: promises.ms_at(0.99),
        pings_offered: offered[1] as f64 / length,
        pings_sent: done[1] as f64 / length,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_served_in_a_window_is_read_from_its_seconds() {
        const SECOND: u64 = 1_000_000_000;
        let mut tally = Tally::new(10 * SECOND, 100 * SECOND);
        for n in 0..50 {
            let due = 10 * SECOND + n * SECOND / 10;
            tally.offered(Kind::Request, due, 1);
            if n >= 30 {
                tally.done(Kind::Request, due, due + 20_000_000, 1);
            }
        }
        let quiet = served(&tally, &[(10 * SECOND, 13 * SECOND)]);
        assert_eq!((quiet.rides_offered, quiet.rides_promised), (10.0, 0.0));
        let busy = served(&tally, &[(13 * SECOND, 15 * SECOND)]);
        assert_eq!((busy.rides_offered, busy.rides_promised), (10.0, 10.0));
        assert!((busy.promise_p50_ms - 20.0).abs() < 1.0);
        let whole = served(
            &tally,
            &[(10 * SECOND, 11 * SECOND), (13 * SECOND, 14 * SECOND)],
        );
        assert_eq!((whole.seconds, whole.rides_promised), (2.0, 5.0));
        assert_eq!(
            served(&tally, &[(200 * SECOND, 300 * SECOND)]),
            Served::default()
        );
    }
}
