//! What a gateway can be told: every knob with its meaning, range and cost.
//!
//! Plain values, as they stand in the TOML file; [`GatewayConfig::check`] names the first bad one and its remedy.
//! Durations are in milliseconds of the wall clock unless the knob says domain time.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use cabrank_engine::ingest::IngestConfig;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::forecasts::ForecastsConfig;
use crate::hints::HintsConfig;
use crate::tls::TlsConfig;
use crate::token::{KeysConfig, TokenVerifier};
use crate::zones::ZonesConfig;

/// Everything about the edge.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct GatewayConfig {
    /// Where to listen. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// Which tokens are believed.
    pub keys: KeysConfig,
    /// The certificate shown to clients.
    pub tls: TlsConfig,
    /// How much of everything.
    pub limits: Limits,
    /// How long everything.
    pub timing: Timing,
    /// Who moves the sockets' bytes.
    pub sockets: Sockets,
    /// What a ping must satisfy.
    pub ingest: IngestConfig,
    /// The live map.
    pub map: MapConfig,
    /// Where rides may begin, airports, pickup points.
    pub zones: ZonesConfig,
    /// Where more rides are expected.
    pub forecasts: ForecastsConfig,
    /// Advice to idle drivers.
    pub hints: HintsConfig,
}

impl Default for GatewayConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)),
            keys: KeysConfig::default(),
            tls: TlsConfig::default(),
            limits: Limits::default(),
            timing: Timing::default(),
            sockets: Sockets::default(),
            ingest: IngestConfig::default(),
            map: MapConfig::default(),
            zones: ZonesConfig::default(),
            forecasts: ForecastsConfig::default(),
            hints: HintsConfig::default(),
        }
    }
}

/// Named bounds. When one is reached the client is told so (`docs/protocol.md`, "Limits and close codes").
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// WebSockets and event streams at once; more get 503. 0 takes seven eighths of the open-file limit less a
    /// reserve for the log; the rest is for calls. Each costs about 5 KiB.
    pub connections_max: usize,
    /// The largest WebSocket message and HTTP body, in bytes (1,024 to 1,048,576). A ping takes about 100 bytes.
    pub frame_bytes_max: usize,
    /// Messages that wait for one phone (8 to 65,536). More means the phone does not read: it is closed with 4409.
    pub session_queue_max: usize,
    /// Commands of one socket that wait for their outcome (1 to 1,024); more are answered `unknown` at once.
    pub session_waiting_max: usize,
    /// Messages in a row that are not understood before the socket is closed with 1007 (1 to 1,000).
    pub misunderstood_max: u32,
    /// Commands of all clients that wait for their outcome (16 to 1,000,000); more get 503 `busy`.
    pub waiting_outcomes_max: usize,
    /// New rides among them (1 to 1,000,000); more get 503 `busy`. Smaller, so that under too much load it is new riders who
    /// are asked to come back, and the commands of open rides still find a short queue.
    pub waiting_requests_max: usize,
    /// While no command is answered within so many ms (or within four times the quickest answer there was lately), more comes
    /// than can be done, and new rides are let in more slowly until some are; the others get 503 `busy` (1 to 60,000). 0: all are
    /// let in, up to the bounds above.
    pub answers_late_ms: u64,
    /// Calls a minute and rider that open or cancel rides or look for cars; 0 is no limit.
    pub requests_per_minute: u32,
    /// Drivers whose last ping is remembered over a reconnection, and riders whose rate is counted (1,000 up). When
    /// full, those without a socket are forgotten first. About 200 bytes each.
    pub people_remembered_max: usize,
    /// Frames of one socket in a second (10 to 1,000,000; 0 is no limit); more close it with 4429. Several pings may share one.
    pub frames_per_second: u32,
    /// Sockets a minute and person (4 to 100,000; 0 is no limit); more get 429.
    pub sockets_per_minute: u32,
    /// Connections from one address at once (16 up); more are cut as they come. 0 takes an eighth of all. People behind
    /// one router or mobile network share an address.
    pub address_connections_max: usize,
    /// Requests a second from one address, twice as many at once (10 to 1,000,000; 0 is no limit); more get 429.
    pub address_requests_per_second: u32,
    /// Requests a minute from one address whose token is not believed (4 to 100,000; 0 is no limit). Further ones get 429
    /// and lose their connection; right tokens are heard as before.
    pub address_failed_logins_per_minute: u32,
    /// Addresses whose requests are counted (1,000 up). When there is no room, new ones share one count. About 60 bytes each.
    pub addresses_remembered_max: usize,
    /// Networks that are not held to the limits of an address, such as a load balancer's: `["10.0.0.0/8"]`.
    #[schemars(with = "Vec<String>")]
    pub exempt_addresses: Vec<IpNet>,
    /// Networks of proxies whose header `X-Forwarded-For` is believed. What comes through them counts for the address that
    /// the outermost of them was called from; their connections are theirs to bound.
    #[schemars(with = "Vec<String>")]
    pub trusted_proxies: Vec<IpNet>,
    /// Cars in one answer of `GET /v1/nearby` (1 to 100).
    pub nearby_max: usize,
    /// Cars a waiting rider is shown (0 to 100).
    pub cars_near_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 0,
            frame_bytes_max: 65_536,
            session_queue_max: 256,
            session_waiting_max: 64,
            misunderstood_max: 16,
            waiting_outcomes_max: 16_384,
            waiting_requests_max: 512,
            answers_late_ms: 10,
            requests_per_minute: 30,
            people_remembered_max: 200_000,
            frames_per_second: 1_000,
            sockets_per_minute: 60,
            address_connections_max: 0,
            address_requests_per_second: 500,
            address_failed_logins_per_minute: 60,
            addresses_remembered_max: 100_000,
            exempt_addresses: vec![
                IpNet::new_assert(Ipv4Addr::new(127, 0, 0, 0).into(), 8),
                IpNet::new_assert(Ipv6Addr::LOCALHOST.into(), 128),
            ],
            trusted_proxies: Vec::new(),
            nearby_max: 100,
            cars_near_max: 8,
        }
    }
}

/// Named durations.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Timing {
    /// How often each socket is pinged (100 to 600,000). Shorter finds dead sockets sooner and costs traffic.
    pub heartbeat_ms: u64,
    /// A socket nothing was heard from for so long is closed with 4408; longer than `heartbeat_ms`.
    pub silence_ms: u64,
    /// How long an outcome is waited for before the answer is `unknown` (10 to 60,000).
    pub outcome_timeout_ms: u64,
    /// How far a request's `issued_at` may lie ahead of the domain clock (0 to 60,000), domain time.
    pub issued_ahead_ms_max: u64,
    /// How often a waiting rider is shown the cars near (100 up; 0 never). One index query each.
    pub cars_near_ms: u64,
    /// How often a rider is told where the assigned driver is, at most (100 up; 0 never).
    pub driver_at_ms: u64,
    /// A driver's live socket is reported to the node so often (1,000 to 600,000); well below the node's patience
    /// with silent drivers.
    pub sign_of_life_ms: u64,
    /// How long a new connection may take to send a request, a request may take, and an idle connection is kept; longer
    /// than `outcome_timeout_ms`.
    pub http_idle_ms: u64,
    /// How long the last frames of a closing socket may take (10 to 60,000).
    pub close_ms: u64,
    /// How long clients are given after `move` before they are closed (0 to 60,000).
    pub move_ms: u64,
    /// The whole drain takes at most so long (at least `move_ms` + 100).
    pub drain_ms: u64,
    /// How often files are looked at that may change while the gateway runs: `keys.jwks_file`, `keys.revocations_file`,
    /// certificates (100 to 3,600,000).
    pub files_ms: u64,
    /// A thread of sockets that stands still for longer is wedged, and `/healthz` says so (500 to 3,600,000).
    pub wedged_after_ms: u64,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            heartbeat_ms: 30_000,
            silence_ms: 60_000,
            outcome_timeout_ms: 5_000,
            issued_ahead_ms_max: 5_000,
            cars_near_ms: 5_000,
            driver_at_ms: 1_000,
            sign_of_life_ms: 10_000,
            http_idle_ms: 60_000,
            close_ms: 2_000,
            move_ms: 500,
            drain_ms: 5_000,
            files_ms: 5_000,
            wedged_after_ms: 30_000,
        }
    }
}

/// The threads that all sockets share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Sockets {
    /// How many (0 to 256). 0 takes half of the processors. One took 98,000 pings a second, each a
    /// write of its own, beside its clients on two cores.
    pub threads: usize,
    /// How long what phones send may wait before a thread looks at its sockets again, in microseconds (0 to 20,000).
    /// Longer costs latency, shorter costs wake-ups, which are most of what a ping in a write of its own costs. Messages
    /// to phones do not wait.
    pub wait_us: u64,
}

impl Default for Sockets {
    fn default() -> Self {
        Self {
            threads: 0,
            wait_us: 250,
        }
    }
}

impl Sockets {
    /// How many, derived if configured as 0.
    pub(crate) fn threads(&self) -> usize {
        match self.threads {
            0 => std::thread::available_parallelism().map_or(1, |all| (all.get() / 2).max(1)),
            given => given,
        }
    }
}

/// The live map at `/`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct MapConfig {
    /// How often the map is drawn anew, in milliseconds (100 to 10,000). All open maps share what is drawn; nothing is
    /// drawn while nobody looks.
    pub tick_ms: u64,
    /// Drivers (and rides) in one answer (100 to 1,000,000); a view with more shows cells only.
    pub drivers_max: usize,
    /// A driver at work who has not pinged for so long is drawn as silent, ms of domain time (1,000 up).
    pub silent_ms: u64,
    /// How far back the page's slider goes, in seconds of domain time (60 to 3,600): so much is read back from the log
    /// when somebody opens the map.
    pub film_s: u64,
    /// H3 resolution of demand and supply (5 to 10). 8 is about 0.7 km2.
    pub cell_resolution: u8,
    /// Where pictures of streets come from, as `https://host/{z}/{x}/{y}.png`; empty for none. Every browser with an
    /// open map asks that server, which so learns where the city is.
    pub tile_url: String,
    /// Whom the tiles' maker wants to be named, shown on the map.
    pub tile_credit: String,
}

impl Default for MapConfig {
    fn default() -> Self {
        Self {
            tick_ms: 500,
            drivers_max: 20_000,
            silent_ms: 30_000,
            film_s: 600,
            cell_resolution: 8,
            tile_url: String::new(),
            tile_credit: String::new(),
        }
    }
}

impl MapConfig {
    fn check(&self) -> Result<(), BadGatewayConfig> {
        let is_tile_url = crate::page::origin(&self.tile_url).is_some()
            && ["{z}", "{x}", "{y}"]
                .iter()
                .all(|part| self.tile_url.contains(part));
        if self.tile_url.is_empty() || is_tile_url {
            return Ok(());
        }
        Err(BadGatewayConfig {
            key: "map.tile_url".into(),
            value: format!("{:?}", self.tile_url),
            remedy: "set https://host/{z}/{x}/{y}.png, or leave it empty".into(),
        })
    }
}

/// A value outside its range, found before any port opens.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("gateway.{key} is {value}: {remedy}")]
pub struct BadGatewayConfig {
    /// The key in the file.
    pub key: String,
    /// What stands there.
    pub value: String,
    /// What to write instead.
    pub remedy: String,
}

impl GatewayConfig {
    /// Checks every value; the first bad one is named with its remedy.
    pub fn check(&self) -> Result<(), BadGatewayConfig> {
        let (l, t) = (&self.limits, &self.timing);
        let far = u64::MAX;
        let ranges: [(&str, u64, u64, u64); 43] = [
            (
                "hints.look_every_ms",
                self.hints.look_every_ms,
                100,
                3_600_000,
            ),
            (
                "hints.driver_every_ms",
                self.hints.driver_every_ms,
                1_000,
                86_400_000,
            ),
            (
                "hints.distance_m_max",
                self.hints.distance_m_max.into(),
                100,
                100_000,
            ),
            (
                "forecasts.ask_every_ms",
                self.forecasts.ask_every_ms,
                100,
                600_000,
            ),
            ("zones.reload_ms", self.zones.reload_ms, 100, 3_600_000),
            (
                "zones.queue_grace_ms",
                self.zones.queue_grace_ms,
                0,
                3_600_000,
            ),
            (
                "limits.frame_bytes_max",
                l.frame_bytes_max as u64,
                1_024,
                1_048_576,
            ),
            (
                "limits.session_queue_max",
                l.session_queue_max as u64,
                8,
                65_536,
            ),
            (
                "limits.session_waiting_max",
                l.session_waiting_max as u64,
                1,
                1_024,
            ),
            (
                "limits.misunderstood_max",
                u64::from(l.misunderstood_max),
                1,
                1_000,
            ),
            (
                "limits.waiting_outcomes_max",
                l.waiting_outcomes_max as u64,
                16,
                1_000_000,
            ),
            (
                "limits.waiting_requests_max",
                l.waiting_requests_max as u64,
                1,
                1_000_000,
            ),
            ("limits.answers_late_ms", l.answers_late_ms, 0, 60_000),
            (
                "limits.people_remembered_max",
                l.people_remembered_max as u64,
                1_000,
                far,
            ),
            (
                "limits.frames_per_second",
                zero_or(l.frames_per_second.into(), 10),
                10,
                1_000_000,
            ),
            (
                "limits.sockets_per_minute",
                zero_or(l.sockets_per_minute.into(), 4),
                4,
                100_000,
            ),
            (
                "limits.address_connections_max",
                zero_or(l.address_connections_max as u64, 16),
                16,
                far,
            ),
            (
                "limits.address_requests_per_second",
                zero_or(l.address_requests_per_second.into(), 10),
                10,
                1_000_000,
            ),
            (
                "limits.address_failed_logins_per_minute",
                zero_or(l.address_failed_logins_per_minute.into(), 4),
                4,
                100_000,
            ),
            (
                "limits.addresses_remembered_max",
                l.addresses_remembered_max as u64,
                1_000,
                far,
            ),
            ("limits.nearby_max", l.nearby_max as u64, 1, 100),
            ("limits.cars_near_max", l.cars_near_max as u64, 0, 100),
            ("timing.heartbeat_ms", t.heartbeat_ms, 100, 600_000),
            (
                "timing.silence_ms",
                t.silence_ms,
                t.heartbeat_ms + 1,
                3_600_000,
            ),
            (
                "timing.outcome_timeout_ms",
                t.outcome_timeout_ms,
                10,
                60_000,
            ),
            (
                "timing.issued_ahead_ms_max",
                t.issued_ahead_ms_max,
                0,
                60_000,
            ),
            (
                "timing.cars_near_ms",
                zero_or(t.cars_near_ms, 100),
                100,
                far,
            ),
            (
                "timing.driver_at_ms",
                zero_or(t.driver_at_ms, 100),
                100,
                far,
            ),
            ("timing.sign_of_life_ms", t.sign_of_life_ms, 1_000, 600_000),
            (
                "timing.http_idle_ms",
                t.http_idle_ms,
                t.outcome_timeout_ms + 1,
                600_000,
            ),
            ("timing.close_ms", t.close_ms, 10, 60_000),
            ("timing.move_ms", t.move_ms, 0, 60_000),
            (
                "timing.drain_ms",
                t.drain_ms,
                t.move_ms.saturating_add(100),
                600_000,
            ),
            ("timing.files_ms", t.files_ms, 100, 3_600_000),
            ("timing.wedged_after_ms", t.wedged_after_ms, 500, 3_600_000),
            ("sockets.threads", self.sockets.threads as u64, 0, 256),
            ("sockets.wait_us", self.sockets.wait_us, 0, 20_000),
            ("map.tick_ms", self.map.tick_ms, 100, 10_000),
            (
                "map.drivers_max",
                self.map.drivers_max as u64,
                100,
                1_000_000,
            ),
            ("map.silent_ms", self.map.silent_ms, 1_000, far),
            ("map.film_s", self.map.film_s, 60, 3_600),
            (
                "map.cell_resolution",
                u64::from(self.map.cell_resolution),
                5,
                10,
            ),
            (
                "ingest.ping_burst",
                u64::from(self.ingest.ping_burst),
                0,
                1_000_000,
            ),
        ];
        for (key, value, least, most) in ranges {
            if !(least..=most).contains(&value) {
                let remedy = if most == far {
                    format!("set at least {least}")
                } else {
                    format!("set {least} to {most}")
                };
                return Err(BadGatewayConfig {
                    key: key.into(),
                    value: value.to_string(),
                    remedy,
                });
            }
        }
        if self.hints.head_to && self.forecasts.url.is_empty() {
            return Err(BadGatewayConfig {
                key: "hints.head_to".into(),
                value: "true".into(),
                remedy: "name the forecast service with gateway.forecasts.url, or leave it off"
                    .into(),
            });
        }
        self.map.check()?;
        self.ingest.check().map_err(|bad| BadGatewayConfig {
            key: format!("ingest.{}", bad.key),
            value: "out of range".into(),
            remedy: format!("set {}", bad.remedy),
        })?;
        TokenVerifier::new(&self.keys).map_err(|bad| BadGatewayConfig {
            key: "keys".into(),
            value: "not usable".into(),
            remedy: bad.to_string(),
        })?;
        self.keys
            .check_listen(self.listen)
            .map_err(|bad| BadGatewayConfig {
                key: "listen".into(),
                value: self.listen.to_string(),
                remedy: bad.to_string(),
            })
    }
}

/// A knob whose zero means "off" passes its lower bound.
fn zero_or(value: u64, least: u64) -> u64 {
    if value == 0 { least } else { value }
}

/// Open files kept for the log, the store and the listener when connections are derived from the limit.
const FILES_RESERVED: usize = 64;
/// Taken when the limit cannot be read.
const CONNECTIONS_UNKNOWN_LIMIT: usize = 768;
/// Also the ceiling when files are unlimited.
const CONNECTIONS_CEILING: usize = 1_000_000;

impl Limits {
    /// Connections from one address at once, derived if configured as 0.
    pub(crate) fn address_connections(&self) -> usize {
        match self.address_connections_max {
            0 => (self.connections().1 / 8).max(16),
            given => given,
        }
    }

    /// Sockets and streams at once, derived if configured as 0, and TCP connections of all kinds at once.
    pub(crate) fn connections(&self) -> (usize, usize) {
        let files = open_files_limit().unwrap_or(CONNECTIONS_UNKNOWN_LIMIT * 2);
        let usable = files
            .saturating_sub(FILES_RESERVED)
            .clamp(16, CONNECTIONS_CEILING);
        match self.connections_max {
            0 => (usable / 8 * 7, usable),
            given => (given, usable.max(given + 16)),
        }
    }
}

/// The soft limit of open files, where the system tells it in a file.
fn open_files_limit() -> Option<usize> {
    let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"))?;
    match line.split_whitespace().nth(3)? {
        "unlimited" => Some(CONNECTIONS_CEILING),
        soft => soft.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_in_range_and_a_bad_value_is_named_with_its_remedy() {
        assert_eq!(GatewayConfig::default().check(), Ok(()));
        let mut config = GatewayConfig::default();
        config.timing.silence_ms = 10;
        let bad = config.check().unwrap_err();
        assert_eq!(
            bad.to_string(),
            "gateway.timing.silence_ms is 10: set 30001 to 3600000"
        );
        config = GatewayConfig::default();
        config.ingest.agreeing_pings = 0;
        assert_eq!(config.check().unwrap_err().key, "ingest.agreeing_pings");
        config = GatewayConfig::default();
        config.listen = "0.0.0.0:8080".parse().unwrap();
        assert!(
            config
                .check()
                .unwrap_err()
                .remedy
                .contains("development secret")
        );
        config.keys.allow_development_secret = true;
        assert_eq!(config.check(), Ok(()));
    }

    #[test]
    fn connections_follow_the_file_limit_unless_given() {
        let (sockets, all) = Limits::default().connections();
        assert!(sockets >= 14 && all > sockets);
        assert_eq!(
            Limits {
                connections_max: 3,
                ..Limits::default()
            }
            .connections()
            .0,
            3
        );
    }
}
