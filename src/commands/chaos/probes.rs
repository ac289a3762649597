//! Does every shard answer, and how long did it not? Asked from outside, as clients do, in open loop.
//!
//! A *command* is answered when its outcome is committed: reinstating a driver nobody has suspended changes nothing, but
//! it is a command like any other. A *search* asks for cars near a place of the shard. Beside them a rider asks for a
//! ride now and then; its promise counts in the audit. The longest time between two answers of a shard is a gap.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cabrank_events::wire::{RideOpened, RideRequest};
use cabrank_events::{Place, VehicleClass};
use cabrank_geo::{Cell, Point, Resolution};
use cabrank_loadgen::client::{Mint, Role};
use cabrank_ring::{Kind, Ring};
use reqwest::{RequestBuilder, Response};
use serde::Serialize;
use tokio::sync::Semaphore;

use crate::AnyError;

/// Between two questions to one shard.
const ASK_EVERY: Duration = Duration::from_millis(100);
/// Between two rides.
const RIDE_EVERY: Duration = Duration::from_millis(500);
/// Longest wait for an answer: longer than a gateway's.
const ANSWER: Duration = Duration::from_secs(7);
/// Questions of one prober under way; when as many wait, the next is not asked.
const UNDER_WAY_MAX: usize = 80;
/// Where riders stand: inside the load's city.
const CITY: (f64, f64) = (37.765, -122.435);
/// Places that are looked at for one of each shard.
const PLACES_MAX: u32 = 20_000;

/// When each shard last answered, and the longest it did not.
pub struct Gaps(Mutex<Vec<(Instant, Duration)>>);

impl Gaps {
    fn new(shards: u16) -> Gaps {
        let start = vec![(Instant::now(), Duration::ZERO); usize::from(shards)];
        Gaps(Mutex::new(start))
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(Instant, Duration)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answered(&self, shard: u16) {
        let (last, longest) = &mut self.lock()[usize::from(shard)];
        *longest = (*longest).max(last.elapsed());
        *last = Instant::now();
    }

    /// Forgets what was.
    fn start_over(&self) {
        for (_, longest) in self.lock().iter_mut() {
            *longest = Duration::ZERO;
        }
    }

    /// The shard that was longest without an answer since it started over, the wait that still goes on included.
    pub fn worst(&self) -> (u16, Duration) {
        let shards = self.lock();
        // One moment for all: otherwise whoever is looked at last has waited longest.
        let now = Instant::now();
        let waits = shards
            .iter()
            .map(|(last, longest)| (*longest).max(now.saturating_duration_since(*last)));
        (0..)
            .zip(waits)
            .max_by_key(|(_, wait)| *wait)
            .unwrap_or_default()
    }

    /// Have all shards answered since then?
    pub fn all_since(&self, then: Instant) -> bool {
        self.lock().iter().all(|(last, _)| *last > then)
    }
}

/// What became of the commands and rides asked for since a moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Answers {
    /// With a committed outcome.
    pub done: u64,
    /// 503 with Retry-After.
    pub retry_later: u64,
    /// By another status.
    pub other: BTreeMap<u16, u64>,
    /// No answer: the connection broke, as with a gateway that was killed.
    pub broken: u64,
    /// No answer in seven seconds.
    pub timed_out: u64,
    /// The longest wait for any answer, ms.
    pub slowest_ms: u64,
}

impl Answers {
    /// Not done, for whatever reason.
    pub fn failed(&self) -> u64 {
        self.retry_later + self.other.values().sum::<u64>() + self.broken + self.timed_out
    }
}

struct Shared {
    url: String,
    http: reqwest::Client,
    mint: Mint,
    commands: Gaps,
    searches: Gaps,
    answers: Mutex<(Instant, Answers)>,
    /// Promised, by id.
    rides: Mutex<Vec<String>>,
    /// Riders who may wait for a promise; closed when nobody shall ask any more.
    riders: Arc<Semaphore>,
}

/// All probers of a run. They end with the runtime.
#[derive(Clone)]
pub struct Probes(Arc<Shared>);

impl Probes {
    /// Begins to ask the city at `url`.
    pub fn start(
        url: &str,
        mint: Mint,
        ring: Ring,
        resolution: Resolution,
    ) -> Result<Probes, AnyError> {
        let shards = ring.shards();
        let probes = Probes(Arc::new(Shared {
            url: url.to_owned(),
            http: reqwest::Client::new(),
            mint,
            commands: Gaps::new(shards),
            searches: Gaps::new(shards),
            answers: Mutex::new((Instant::now(), Answers::default())),
            rides: Mutex::default(),
            riders: Arc::new(Semaphore::new(UNDER_WAY_MAX)),
        }));
        let ring = Arc::new(ring);
        for (shard, place) in (0..shards).zip(places(&ring, resolution)?) {
            let (shared, ring) = (Arc::clone(&probes.0), Arc::clone(&ring));
            tokio::spawn(shared.ask_for_commands(ring, shard));
            tokio::spawn(Arc::clone(&probes.0).search(place, shard));
        }
        tokio::spawn(Arc::clone(&probes.0).ask_for_rides());
        Ok(probes)
    }

    /// Gaps of commands.
    pub fn commands(&self) -> &Gaps {
        &self.0.commands
    }

    /// Gaps of searches.
    pub fn searches(&self) -> &Gaps {
        &self.0.searches
    }

    /// Forgets what was, for the next fault.
    pub fn start_over(&self) {
        self.0.commands.start_over();
        self.0.searches.start_over();
        *self.0.answers() = (Instant::now(), Answers::default());
    }

    /// What became of what was asked since it started over, as far as it is known.
    pub fn answers(&self) -> Answers {
        self.0.answers().1.clone()
    }

    /// Asks for no more rides. Answers those promised to the probers when the last answer is in.
    pub async fn end_rides(&self) -> Vec<String> {
        let all = u32::try_from(UNDER_WAY_MAX).unwrap_or(u32::MAX);
        // Nobody else closes it.
        let _all = self.0.riders.acquire_many(all).await;
        self.0.riders.close();
        let rides = self.0.rides.lock();
        rides.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Shared {
    fn answers(&self) -> MutexGuard<'_, (Instant, Answers)> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a command and counts what came of it; answers the response of one that is done.
    async fn command(&self, call: RequestBuilder) -> Option<Response> {
        let sent = Instant::now();
        let answer = call.timeout(ANSWER).send().await;
        let mut answers = self.answers();
        if sent < answers.0 {
            // Asked before the fault: it counts for its gap, not for its answers.
            return answer.ok().filter(|answer| answer.status().is_success());
        }
        let counts = &mut answers.1;
        let took = u64::try_from(sent.elapsed().as_millis()).unwrap_or(u64::MAX);
        counts.slowest_ms = counts.slowest_ms.max(took);
        match answer {
            Ok(answer) if answer.status().is_success() => {
                counts.done += 1;
                return Some(answer);
            }
            Ok(answer)
                if answer.status().as_u16() == 503
                    && answer.headers().contains_key("retry-after") =>
            {
                counts.retry_later += 1;
            }
            Ok(answer) => *counts.other.entry(answer.status().as_u16()).or_default() += 1,
            Err(why) if why.is_timeout() => counts.timed_out += 1,
            Err(_) => counts.broken += 1,
        }
        None
    }

    async fn ask_for_commands(self: Arc<Self>, ring: Arc<Ring>, shard: u16) {
        let room = Arc::new(Semaphore::new(UNDER_WAY_MAX));
        let token = (self.mint)(Role::Ops, "chaos");
        let of_shard = (0_u64..)
            .map(|number| format!("probe-{number}"))
            .filter(|driver| ring.shard_of_person(Kind::Driver, driver) == shard);
        for driver in of_shard {
            tokio::time::sleep(ASK_EVERY).await;
            let Ok(permit) = Arc::clone(&room).try_acquire_owned() else {
                continue;
            };
            let call = self
                .http
                .post(format!("{}/v1/drivers/{driver}/reinstate", self.url))
                .bearer_auth(&token);
            let shared = Arc::clone(&self);
            tokio::spawn(async move {
                if shared.command(call).await.is_some() {
                    shared.commands.answered(shard);
                }
                drop(permit);
            });
        }
    }

    async fn search(self: Arc<Self>, place: Point, shard: u16) {
        let room = Arc::new(Semaphore::new(UNDER_WAY_MAX));
        let token = (self.mint)(Role::Ops, "chaos");
        let (lat, lon) = (place.lat_deg(), place.lon_deg());
        let url = format!("{}/v1/nearby?lat={lat}&lon={lon}&radius=500&k=3", self.url);
        loop {
            tokio::time::sleep(ASK_EVERY).await;
            let Ok(permit) = Arc::clone(&room).try_acquire_owned() else {
                continue;
            };
            let call = self.http.get(&url).bearer_auth(&token).timeout(ANSWER);
            let shared = Arc::clone(&self);
            tokio::spawn(async move {
                let answer = call.send().await;
                if answer.is_ok_and(|answer| answer.status().is_success()) {
                    shared.searches.answered(shard);
                }
                drop(permit);
            });
        }
    }

    async fn ask_for_rides(self: Arc<Self>) {
        let run = std::process::id();
        let (Ok(pickup), Ok(dropoff)) = (
            Point::new(CITY.0, CITY.1),
            Point::new(CITY.0 + 0.01, CITY.1),
        ) else {
            return;
        };
        for number in 0_u64.. {
            tokio::time::sleep(RIDE_EVERY).await;
            let Ok(permit) = Arc::clone(&self.riders).acquire_owned().await else {
                return;
            };
            let rider = format!("chaos-{run}-{number}");
            let request = RideRequest {
                pickup: Place(pickup),
                dropoff: Some(Place(dropoff)),
                class: VehicleClass::Economy,
                issued_at: None,
            };
            let call = self
                .http
                .post(format!("{}/v1/rides", self.url))
                .bearer_auth((self.mint)(Role::Rider, &rider))
                .header("Idempotency-Key", &rider)
                .json(&request);
            let shared = Arc::clone(&self);
            tokio::spawn(async move {
                let _permit = permit;
                let Some(answer) = shared.command(call).await else {
                    return;
                };
                if let Ok(opened) = answer.json::<RideOpened>().await {
                    let rides = shared.rides.lock();
                    let mut rides = rides.unwrap_or_else(PoisonError::into_inner);
                    rides.push(opened.ride.to_string());
                }
            });
        }
    }
}

/// A place of every shard, the city's own where it is one.
fn places(ring: &Ring, resolution: Resolution) -> Result<Vec<Point>, AnyError> {
    let mut found: BTreeMap<u16, Point> = BTreeMap::new();
    for n in 0..PLACES_MAX {
        let (row, column) = (n / 100, n % 100);
        let lat = CITY.0 - f64::from(row) * 0.2;
        let point = Point::new(lat, CITY.1 + f64::from(column) * 0.2)?;
        let shard = ring.shard_of_cell(Cell::at(point, resolution).into());
        found.entry(shard).or_insert(point);
        if found.len() == usize::from(ring.shards()) {
            return Ok(found.into_values().collect());
        }
    }
    Err("no place was found for some shard: choose fewer shards".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_is_the_longest_wait_between_two_answers_and_goes_on_until_the_next() {
        let gaps = Gaps::new(2);
        let start = Instant::now();
        gaps.answered(0);
        gaps.answered(1);
        assert!(gaps.all_since(start));
        let later = Instant::now();
        gaps.answered(1);
        assert!(!gaps.all_since(later));
        gaps.start_over();
        let (shard, wait) = gaps.worst();
        assert_eq!(shard, 0, "it has waited longest: {wait:?}");
    }

    #[test]
    fn every_shard_has_a_place_to_ask_about() {
        for shards in [1, 4, 16] {
            let ring = Ring::new(shards).unwrap();
            let resolution = Resolution::try_from(5_u8).unwrap();
            let places = places(&ring, resolution).unwrap();
            assert_eq!(places.len(), usize::from(shards));
            for (shard, place) in (0..).zip(&places) {
                assert_eq!(
                    ring.shard_of_cell(Cell::at(*place, resolution).into()),
                    shard
                );
            }
        }
    }
}
