//! What shall be offered to which server? The order a generator process gets, and its checks.

use serde::{Deserialize, Serialize};

use std::path::PathBuf;

use super::schedule::{Arrivals, Rate};

/// Sockets of one run: more need more source ports than a machine has.
pub const CONNECTIONS_MAX: u32 = 28_000;
/// Drivers of one run, those without a socket of their own included.
pub const DRIVERS_MAX: u32 = 1_000_000;
/// Generator processes.
pub const PROCESSES_MAX: u32 = 64;

/// How a message to a driver's socket is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Frames {
    /// Text frames of JSON.
    #[default]
    Json,
    /// Binary frames of `cabrank.v1.proto`.
    Protobuf,
}

/// What answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// A Cabrank: sessions, rides, searches, an audit at the end.
    #[default]
    Cabrank,
    /// A bare WebSocket server that reads frames and does nothing with them.
    Raw,
    /// A Redis: GEOADD for a ping, GEOSEARCH for a search.
    Redis,
}

/// How drivers answer offers. Shares are 0 to 1 and sum up to at most 1; the rest accepts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Shares {
    /// Declined.
    pub decline: f64,
    /// Received and left unanswered until the time is out.
    pub ignore: f64,
    /// Riders who call their ride off as soon as it is promised.
    pub cancel: f64,
}

/// Recorded days as a source of places. Several lie over each other, each from its own beginning on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceFiles {
    /// Cabs' reports: each driver of the run drives one recorded cab's way, round and round.
    pub gps: Vec<PathBuf>,
    /// Trips: riders ask where and whither these went, in their order.
    pub trips: Vec<PathBuf>,
}

impl TraceFiles {
    /// Is nothing recorded used?
    pub fn is_empty(&self) -> bool {
        self.gps.is_empty() && self.trips.is_empty()
    }
}

/// Where drivers are and riders ask.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Area {
    /// The demo's city: 12 x 12 km with wandering hot spots.
    #[default]
    City,
    /// Evenly over a rectangle.
    Even {
        /// West to east, km.
        east_km: f64,
        /// South to north, km.
        north_km: f64,
    },
}

/// Everything a generator process needs to know.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Servers; connections are dealt out in turn.
    pub urls: Vec<String>,
    /// What they are.
    pub target: Target,
    /// Signs tokens (HS256). Travels over a pipe only.
    pub secret: String,
    /// Names the run, so that ids and keys of two runs differ.
    pub run: String,
    /// This process, from 0,
    pub part: u32,
    /// ... of so many.
    pub parts: u32,
    /// Threads of this process.
    pub threads: u32,
    /// Drivers of the whole run.
    pub drivers: u32,
    /// Drivers' sockets of the whole run. Drivers beyond it come online, report once and hang up.
    pub connections: u32,
    /// HTTP connections for searches, whole run.
    pub nearby_connections: u32,
    /// HTTP connections for ride requests, whole run.
    pub ride_connections: u32,
    /// Pings a second, whole run.
    pub pings: Rate,
    /// Rides asked for a second, whole run.
    pub rides: Rate,
    /// Searches a second, whole run.
    pub nearby: Rate,
    /// How the moments are drawn.
    pub arrivals: Arrivals,
    /// Closed loop with so many requesters and sockets in the whole run instead of a schedule.
    pub closed_loop: Option<u32>,
    /// How frames are written.
    pub frames: Frames,
    /// Pings of one frame, oldest first.
    pub pings_per_frame: u32,
    /// Frames of one socket that share a write.
    pub frames_per_write: u32,
    /// Offered before it counts, seconds.
    pub warmup_s: f64,
    /// Counts, seconds.
    pub seconds: f64,
    /// Repeats the choices.
    pub seed: u64,
    /// How offers are answered.
    pub shares: Shares,
    /// Between an offer and its answer, ms.
    pub think_ms: u64,
    /// Between the steps of a ride (accept, arrive, start, complete), ms.
    pub step_ms: u64,
    /// Where.
    pub area: Area,
    /// Recorded days instead, as far as given.
    #[serde(default)]
    pub traces: TraceFiles,
    /// Radius of a search, metres.
    pub radius_m: f64,
    /// Cars wanted by a search.
    pub k: u32,
    /// One car far from everybody is looked for after each of its pings.
    pub probe: bool,
    /// A thread wakes up at most so often, microseconds: what became due meanwhile goes out together.
    pub tick_us: u64,
}

/// A plan that cannot be carried out. Nothing was started.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadPlan(pub String);

impl Plan {
    /// An idle plan against `url`: every rate is 0.
    pub fn new(url: &str, secret: &str) -> Plan {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Plan {
            urls: vec![url.trim_end_matches('/').to_owned()],
            target: Target::Cabrank,
            secret: secret.to_owned(),
            run: format!("{:x}", since.map_or(0, |since| since.as_millis())),
            part: 0,
            parts: 1,
            threads: 1,
            drivers: 1_000,
            connections: 1_000,
            nearby_connections: 8,
            ride_connections: 64,
            pings: Rate::zero(),
            rides: Rate::zero(),
            nearby: Rate::zero(),
            arrivals: Arrivals::Poisson,
            closed_loop: None,
            frames: Frames::Json,
            pings_per_frame: 1,
            frames_per_write: 1,
            warmup_s: 2.0,
            seconds: 10.0,
            seed: 1,
            shares: Shares::default(),
            think_ms: 0,
            step_ms: 0,
            area: Area::City,
            traces: TraceFiles::default(),
            radius_m: 2_000.0,
            k: 10,
            probe: true,
            tick_us: 100,
        }
    }

    /// Checks every range; the first bad one is named with its remedy.
    pub fn check(&self) -> Result<(), BadPlan> {
        let bad = |what: String| Err(BadPlan(what));
        let ranges = [
            ("drivers", self.drivers, 1, DRIVERS_MAX),
            ("connections", self.connections, 1, CONNECTIONS_MAX),
            ("nearby-connections", self.nearby_connections, 1, 10_000),
            ("ride-connections", self.ride_connections, 1, 10_000),
            ("processes", self.parts, 1, PROCESSES_MAX),
            ("threads", self.threads, 1, 64),
            ("pings-per-frame", self.pings_per_frame, 1, 500),
            ("frames-per-write", self.frames_per_write, 1, 500),
            ("k", self.k, 1, 1_000),
            ("closed-loop", self.closed_loop.unwrap_or(1), 1, 10_000),
        ];
        for (name, value, least, most) in ranges {
            if !(least..=most).contains(&value) {
                return bad(format!("--{name} {value}: choose {least} to {most}"));
            }
        }
        for (name, rate) in [
            ("pings-per-second", &self.pings),
            ("rides-per-second", &self.rides),
            ("nearby-per-second", &self.nearby),
        ] {
            if !rate.is_sensible() {
                return bad(format!("--{name}: choose 0 to 10,000,000"));
            }
        }
        let Shares {
            decline,
            ignore,
            cancel,
        } = self.shares;
        let share = 0.0..=1.0;
        if [decline, ignore, cancel, decline + ignore]
            .iter()
            .any(|s| !share.contains(s))
        {
            return bad("--decline and --ignore: shares from 0 to 1, together at most 1".into());
        }
        if !(0.5..=86_400.0).contains(&self.seconds) || !(0.0..=3_600.0).contains(&self.warmup_s) {
            return bad("--seconds: choose 0.5 to 86400; --warmup: 0 to 3600".into());
        }
        let is_alone = self.parts == 1 && self.threads == 1;
        if self.closed_loop.is_some() && !self.rides.is_zero() && !is_alone {
            return bad(
                "--closed-loop with rides: one process with one thread, which sees all of them end"
                    .into(),
            );
        }
        if self.drivers < self.parts * self.threads {
            return bad("--drivers: at least one for each thread of each process".into());
        }
        if self.target == Target::Raw && (!self.rides.is_zero() || !self.nearby.is_zero()) {
            return bad("--target raw takes pings only".into());
        }
        if self.target == Target::Redis {
            if !self.rides.is_zero() || self.pings_per_frame > 1 {
                return bad(
                    "--target redis:// takes pings and searches, one ping a frame (--frames-per-write pipelines)"
                        .into(),
                );
            }
            if let Some(url) = self.urls.iter().find(|url| !url.starts_with("redis://")) {
                return bad(format!("--target {url}: give redis://host:port"));
            }
            return Ok(());
        }
        if let Some(url) = self.urls.iter().find(|url| !url.starts_with("http://")) {
            return bad(format!(
                "--url {url}: give http://host:port (there is no TLS here)"
            ));
        }
        if self.urls.is_empty() {
            return bad("no server: give --url".into());
        }
        Ok(())
    }

    /// Does it send more than one frame, or more than one ping in a frame, at a time?
    pub fn pings_per_write(&self) -> u32 {
        self.pings_per_frame * self.frames_per_write
    }
}
