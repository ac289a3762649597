//! Driving times from a road network: the table service of an OSRM server.
//!
//! A round asks for all its drives at once. What was asked lately is known (by squares of some 100 m); the rest is fetched in
//! as few requests as the server's limit allows, by a thread of its own. A round waits for that no longer than `wait_ms`, and what is not
//! here by then takes as long as the straight line says; the answer is kept for the next round all the same. **The commit
//! loop never waits**: with roads, every round runs on the solver's thread.
//!
//! A server that fails several times in a row is left alone for a while (the breaker), so that rounds do not wait in vain;
//! after that one request tries it. An answer that cannot be true counts as a failure, and none of it is believed.

use std::collections::{HashMap, HashSet};
use std::io::Read;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cabrank_engine::BadSetting;
use cabrank_engine::travel::{StraightLine, TravelTime};
use cabrank_geo::Point;
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

/// Side of a square within which all points count as one, degrees: 111 m north, less east.
const SIDE_DEG: f64 = 0.001;
/// Nobody drives faster than this along a straight line, metres a second: an answer that says so is wrong.
const SPEED_MPS_MAX: f64 = 70.0;
/// A distance that may be driven in no time: points are moved to the nearest road.
const SNAP_M: f64 = 2_000.0;
/// No drive to a pickup takes longer; an answer that says so is wrong.
const DRIVE_S_MAX: f64 = 86_400.0;
/// An answer is read no further than this.
const ANSWER_BYTES_MAX: u64 = 64 << 20;
/// Rounds whose drives wait to be fetched; when there are more, a round's are not fetched and take the straight line.
const ORDERS_MAX: usize = 2;

/// Where driving times come from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RoadsConfig {
    /// Address of an OSRM server, e.g. `http://127.0.0.1:5000`; empty: drives are straight lines at `node.speeds`.
    pub url: String,
    /// The server's profile.
    pub profile: String,
    /// How long a round waits for times it does not know, ms, 0 to 5,000; 0: it never waits, and the next round has them.
    pub wait_ms: u64,
    /// How long the server may take, ms, 10 to 60,000; what comes after `wait_ms` is kept for the next round.
    pub answer_ms: u64,
    /// Places in one request, 2 to 10,000; at most the server's own `--max-table-size`.
    pub places_max: usize,
    /// Times that are remembered, 1,000 to 10,000,000, some 100 bytes each.
    pub known_max: usize,
    /// How long a time is good for, s, 1 to 86,400: traffic changes.
    pub known_s: u64,
    /// So many failures in a row, and the server is left alone for a while; 1 to 1,000.
    pub failures_max: u32,
    /// How long it is left alone, ms, 100 to 600,000.
    pub pause_ms: u64,
}

impl Default for RoadsConfig {
    fn default() -> Self {
        RoadsConfig {
            url: String::new(),
            profile: "driving".into(),
            wait_ms: 200,
            answer_ms: 2_000,
            places_max: 100,
            known_max: 500_000,
            known_s: 300,
            failures_max: 3,
            pause_ms: 10_000,
        }
    }
}

impl RoadsConfig {
    /// Is there a server to ask?
    pub fn is_set(&self) -> bool {
        !self.url.is_empty()
    }

    /// Checks ranges.
    pub fn check(&self) -> Result<(), BadSetting> {
        let is_http = self.url.starts_with("http://") || self.url.starts_with("https://");
        if self.is_set() && !(is_http && self.url.parse::<reqwest::Url>().is_ok()) {
            return Err(BadSetting {
                key: "node.roads.url",
                value: self.url.clone(),
                remedy: "give http://host:port of an OSRM server, or nothing",
            });
        }
        let ranges = [
            (
                "node.roads.wait_ms",
                self.wait_ms,
                0,
                5_000,
                "choose 0 to 5000",
            ),
            (
                "node.roads.answer_ms",
                self.answer_ms,
                10,
                60_000,
                "choose 10 to 60000",
            ),
            (
                "node.roads.places_max",
                self.places_max as u64,
                2,
                10_000,
                "choose 2 to 10000",
            ),
            (
                "node.roads.known_max",
                self.known_max as u64,
                1_000,
                10_000_000,
                "choose 1000 to 10000000",
            ),
            (
                "node.roads.known_s",
                self.known_s,
                1,
                86_400,
                "choose 1 to 86400",
            ),
            (
                "node.roads.failures_max",
                u64::from(self.failures_max),
                1,
                1_000,
                "choose 1 to 1000",
            ),
            (
                "node.roads.pause_ms",
                self.pause_ms,
                100,
                600_000,
                "choose 100 to 600000",
            ),
        ];
        for (key, value, least, most, remedy) in ranges {
            if !(least..=most).contains(&value) {
                let value = value.to_string();
                return Err(BadSetting { key, value, remedy });
            }
        }
        Ok(())
    }
}

type Square = (i32, i32);
/// A drive, as far as it is remembered.
type Drive = (Square, Square);

fn square(at: Point) -> Square {
    let part = |deg: f64| (deg / SIDE_DEG).floor() as i32;
    (part(at.lat_deg()), part(at.lon_deg()))
}

fn drive_of(from: Point, to: Point) -> Drive {
    (square(from), square(to))
}

/// The times that are known. Two generations, so that nobody looks for the oldest: when the newer one is full, the
/// older one goes.
#[derive(Default)]
struct Known {
    newer: HashMap<Drive, (Instant, u32)>,
    older: HashMap<Drive, (Instant, u32)>,
}

impl Known {
    fn get(&self, drive: &Drive, since: Option<Instant>) -> Option<u32> {
        let found = self.newer.get(drive).or_else(|| self.older.get(drive));
        let (at, drive_ms) = found?;
        since.is_none_or(|since| *at >= since).then_some(*drive_ms)
    }

    fn put(&mut self, drive: Drive, now: Instant, drive_ms: u32, known_max: usize) {
        if self.newer.len() >= known_max / 2 {
            self.older = std::mem::take(&mut self.newer);
        }
        self.newer.insert(drive, (now, drive_ms));
    }
}

/// Drives to fetch, and whom to tell when they are here.
struct Order {
    drives: Vec<(Point, Point)>,
    done: Sender<()>,
}

/// What rounds and the fetching thread share.
struct Shared {
    config: RoadsConfig,
    known: Mutex<Known>,
}

impl Shared {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known by now of these drives.
    fn look(&self, drives: &[(Point, Point)]) -> Vec<Option<i64>> {
        let since = Instant::now().checked_sub(Duration::from_secs(self.config.known_s));
        let known = self.known();
        let times = drives.iter().map(|(from, to)| {
            let drive_ms = known.get(&drive_of(*from, *to), since);
            drive_ms.map(i64::from)
        });
        times.collect()
    }
}

/// A road network, asked over HTTP. Dropping it ends its thread after the request under way.
pub struct Roads {
    shared: Arc<Shared>,
    orders: Sender<Order>,
}

impl Roads {
    /// Starts the thread that asks. `config` was checked and names a server.
    pub fn start(config: RoadsConfig) -> Roads {
        let (orders, taken) = bounded(ORDERS_MAX);
        let shared = Arc::new(Shared {
            config,
            known: Mutex::default(),
        });
        let fetcher = Fetcher {
            shared: Arc::clone(&shared),
            client: None,
            failures: 0,
            paused_until: None,
            was_paused: false,
        };
        std::thread::Builder::new()
            .name("cabrank-roads".into())
            .spawn(move || fetcher.run(&taken))
            .expect("a process that cannot start a thread at its start cannot work");
        Roads { shared, orders }
    }

    /// Driving times at a moment when those that are not known take as long as `otherwise` says.
    pub fn at(&self, otherwise: StraightLine) -> impl TravelTime + '_ {
        RoadsNow {
            roads: self,
            otherwise,
        }
    }

    fn times(&self, drives: &[(Point, Point)]) -> Vec<Option<i64>> {
        let times = self.shared.look(drives);
        let unknown: Vec<(Point, Point)> = drives
            .iter()
            .zip(&times)
            .filter_map(|(drive, time)| time.is_none().then_some(*drive))
            .collect();
        let count = |name: &'static str, many: usize| {
            metrics::counter!("cabrank_travel_times_total", "from" => name).increment(many as u64);
        };
        count("memory", drives.len() - unknown.len());
        if unknown.is_empty() {
            return times;
        }
        let (done, is_done) = bounded(1);
        let (wanted, order) = (
            unknown.len(),
            Order {
                drives: unknown,
                done,
            },
        );
        match self.orders.try_send(order) {
            Ok(()) => {
                // Done, given up, or too late: what is known now counts.
                let _ = is_done.recv_timeout(Duration::from_millis(self.shared.config.wait_ms));
            }
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {}
        }
        let times = self.shared.look(drives);
        let missing = times.iter().filter(|time| time.is_none()).count();
        count("straight_line", missing);
        count("roads", wanted.saturating_sub(missing));
        times
    }
}

/// [`Roads::at`].
struct RoadsNow<'a> {
    roads: &'a Roads,
    otherwise: StraightLine,
}

impl TravelTime for RoadsNow<'_> {
    fn drive_ms(&self, from: Point, to: Point) -> i64 {
        self.drives_ms(&[(from, to)])[0]
    }

    fn drives_ms(&self, drives: &[(Point, Point)]) -> Vec<i64> {
        let times = self.roads.times(drives).into_iter().zip(drives);
        let times = times
            .map(|(time, (from, to))| time.unwrap_or_else(|| self.otherwise.drive_ms(*from, *to)));
        times.collect()
    }
}

/// The thread that asks the server.
struct Fetcher {
    shared: Arc<Shared>,
    /// Made at the first request.
    client: Option<reqwest::blocking::Client>,
    failures: u32,
    paused_until: Option<Instant>,
    /// It was left alone since it last answered.
    was_paused: bool,
}

/// Why a request brought nothing.
#[derive(Debug, thiserror::Error)]
enum NoTimes {
    #[error("the server cannot be asked: {0}")]
    Http(#[from] reqwest::Error),
    #[error("the answer ends early: {0}")]
    Read(#[from] std::io::Error),
    #[error("the server answers {0}")]
    Status(u16),
    #[error("the answer is no table: {0}")]
    Unreadable(#[from] serde_json::Error),
    #[error("the server says {0}")]
    Code(String),
    #[error("the answer cannot be true: {0}")]
    Wrong(&'static str),
}

/// OSRM's answer, as far as it is read.
#[derive(Deserialize)]
struct Table {
    code: String,
    #[serde(default)]
    durations: Vec<Vec<Option<f64>>>,
}

/// One request: from each of these to each of those.
#[derive(Default)]
struct Ask {
    from: Vec<Point>,
    to: Vec<Point>,
}

impl Fetcher {
    fn run(mut self, orders: &Receiver<Order>) {
        for order in orders {
            for ask in asks(&order.drives, self.shared.config.places_max) {
                if self.is_paused() {
                    break;
                }
                match self.fetch(&ask) {
                    Ok(times) => {
                        self.keep(&ask, &times);
                        self.is_well();
                    }
                    Err(why) => self.failed(&why),
                }
            }
            // The round may have gone on without it.
            let _ = order.done.try_send(());
        }
    }

    /// Is the server left alone?
    fn is_paused(&mut self) -> bool {
        match self.paused_until {
            Some(until) if Instant::now() < until => true,
            Some(_) => {
                // One failure more and it is left alone again.
                self.paused_until = None;
                self.failures = self.shared.config.failures_max - 1;
                false
            }
            None => false,
        }
    }

    fn is_well(&mut self) {
        if std::mem::take(&mut self.was_paused) {
            info!("the road network answers again");
        }
        self.failures = 0;
        metrics::counter!("cabrank_travel_requests_total", "outcome" => "done").increment(1);
        metrics::gauge!("cabrank_travel_paused").set(0.0);
    }

    fn failed(&mut self, why: &NoTimes) {
        self.failures += 1;
        metrics::counter!("cabrank_travel_requests_total", "outcome" => "failed").increment(1);
        if self.failures >= self.shared.config.failures_max {
            let pause_ms = self.shared.config.pause_ms;
            warn!(%why, pause_ms, "the road network is left alone: drives are straight lines");
            self.was_paused = true;
            self.paused_until = Some(Instant::now() + Duration::from_millis(pause_ms));
            metrics::gauge!("cabrank_travel_paused").set(1.0);
        }
    }

    fn client(&mut self) -> Result<reqwest::blocking::Client, NoTimes> {
        if let Some(client) = &self.client {
            return Ok(client.clone());
        }
        let answer = Duration::from_millis(self.shared.config.answer_ms);
        let client = reqwest::blocking::Client::builder()
            .timeout(answer)
            .connect_timeout(answer)
            .build()?;
        Ok(self.client.insert(client).clone())
    }

    fn fetch(&mut self, ask: &Ask) -> Result<Vec<Vec<Option<f64>>>, NoTimes> {
        let client = self.client()?;
        let config = &self.shared.config;
        let places = ask.from.iter().chain(&ask.to);
        let places: Vec<String> = places
            .map(|at| format!("{:.6},{:.6}", at.lon_deg(), at.lat_deg()))
            .collect();
        let numbers = |from: usize, many: usize| {
            let numbers: Vec<String> = (from..from + many).map(|n| n.to_string()).collect();
            numbers.join(";")
        };
        let url = format!(
            "{}/table/v1/{}/{}?sources={}&destinations={}&annotations=duration",
            config.url.trim_end_matches('/'),
            config.profile,
            places.join(";"),
            numbers(0, ask.from.len()),
            numbers(ask.from.len(), ask.to.len()),
        );
        let answer = client.get(url).send()?;
        let status = answer.status();
        if !status.is_success() {
            return Err(NoTimes::Status(status.as_u16()));
        }
        let mut body = Vec::new();
        answer.take(ANSWER_BYTES_MAX).read_to_end(&mut body)?;
        let table: Table = serde_json::from_slice(&body)?;
        if table.code != "Ok" {
            return Err(NoTimes::Code(table.code));
        }
        ask.believe(&table.durations)?;
        Ok(table.durations)
    }

    fn keep(&self, ask: &Ask, times: &[Vec<Option<f64>>]) {
        let now = Instant::now();
        let mut known = self.shared.known();
        for (from, row) in ask.from.iter().zip(times) {
            for (to, time) in ask.to.iter().zip(row) {
                // Where the server knows no road, the straight line has to do.
                if let Some(seconds) = time {
                    let drive = drive_of(*from, *to);
                    let drive_ms = (seconds * 1_000.0) as u32;
                    known.put(drive, now, drive_ms, self.shared.config.known_max);
                }
            }
        }
    }
}

impl Ask {
    /// Could this be the answer?
    fn believe(&self, times: &[Vec<Option<f64>>]) -> Result<(), NoTimes> {
        let is_whole =
            times.len() == self.from.len() && times.iter().all(|row| row.len() == self.to.len());
        if !is_whole {
            return Err(NoTimes::Wrong("it has another size"));
        }
        for (from, row) in self.from.iter().zip(times) {
            for (to, time) in self.to.iter().zip(row) {
                let Some(seconds) = time else { continue };
                if !(0.0..=DRIVE_S_MAX).contains(seconds) {
                    return Err(NoTimes::Wrong("a drive takes no such time"));
                }
                if seconds * SPEED_MPS_MAX + SNAP_M < from.distance_m(*to) {
                    return Err(NoTimes::Wrong("nobody drives that fast"));
                }
            }
        }
        Ok(())
    }
}

/// Packs drives into requests of at most `places_max` places each: drives to one pickup together, each square once.
fn asks(drives: &[(Point, Point)], places_max: usize) -> Vec<Ask> {
    let mut by_pickup: Vec<(Point, Vec<Point>)> = Vec::new();
    let mut pickup_of: HashMap<Square, usize> = HashMap::new();
    let mut seen: HashSet<Drive> = HashSet::new();
    for (from, to) in drives {
        if !seen.insert(drive_of(*from, *to)) {
            continue;
        }
        let at = *pickup_of.entry(square(*to)).or_insert_with(|| {
            by_pickup.push((*to, Vec::new()));
            by_pickup.len() - 1
        });
        by_pickup[at].1.push(*from);
    }
    let mut asks: Vec<Ask> = Vec::new();
    let mut here: HashSet<Square> = HashSet::new();
    for (to, cars) in &by_pickup {
        for cars in cars.chunks(places_max - 1) {
            let fresh = |here: &HashSet<Square>| {
                let new = cars.iter().filter(|car| !here.contains(&square(**car)));
                new.copied().collect::<Vec<Point>>()
            };
            let mut new = fresh(&here);
            let has_room = asks
                .last()
                .is_some_and(|ask| ask.from.len() + ask.to.len() + new.len() < places_max);
            if !has_room {
                here.clear();
                new = fresh(&here);
                asks.push(Ask::default());
            }
            if let Some(ask) = asks.last_mut() {
                here.extend(new.iter().map(|car| square(*car)));
                ask.from.extend(new);
                ask.to.push(*to);
            }
        }
    }
    asks
}

#[cfg(test)]
mod tests;
