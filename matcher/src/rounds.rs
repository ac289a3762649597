//! Rounds: the candidates of waiting rides from the live index, priced and solved beside the commit loop.
//!
//! A round is data (PROTOCOL 18): a job goes out with the rides as they are, a result comes back, and the engine takes
//! from it what still holds. Under the policy `rematch` some jobs also carry the rides whose drivers are on the way.
//!
//! Who may not ride with whom is left out before anything is priced; then each pair costs what `engine.prices` says. Rides
//! on the way change cars for the drive alone. If waiting for each other pays (`engine.pace`), a round is put off.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use cabrank_engine::EngineConfig;
use cabrank_engine::matching::price::{Facts, classes_above};
use cabrank_engine::matching::{
    Candidate, OnTheWay, PolicyKind, RideAsk, Round, RoundResult, pace,
};
use cabrank_engine::ride::{Ride, Stage};
use cabrank_engine::travel::StraightLine;
use cabrank_events::{DriverId, RideId, RiderId, Time, VehicleClass};
use cabrank_geo::{DriverKey, Filter, Near, Point, Query, Status};

use crate::config::NodeConfig;
use crate::people::People;

#[cfg(test)]
mod tests;

/// A ride as a round sees it.
#[derive(Debug)]
pub(crate) struct Asking {
    ask: RideAsk,
    rider: RiderId,
    pickup: Point,
    radius_m: u32,
    class: VehicleClass,
    asked: BTreeSet<DriverId>,
    avoid: BTreeMap<DriverId, u64>,
}

impl Asking {
    pub fn of(ride: &Ride) -> Asking {
        Asking {
            ask: RideAsk {
                ride: ride.id,
                version: ride.seq,
                since: ride.issued_at,
            },
            rider: ride.rider.clone(),
            pickup: ride.pickup.0,
            radius_m: ride.radius_m,
            class: ride.class,
            asked: ride.asked.clone(),
            avoid: ride.avoid.clone(),
        }
    }

    fn may_ask(&self, driver: &DriverId, driver_seq: u64) -> bool {
        !self.asked.contains(driver) && self.avoid.get(driver).is_none_or(|at| driver_seq > *at)
    }
}

/// A ride whose driver is on the way, as a round sees it.
#[derive(Debug)]
pub(crate) struct Going {
    asking: Asking,
    driver: DriverId,
    swaps: u32,
}

impl Going {
    /// `None`: nobody is on the way.
    pub fn of(ride: &Ride) -> Option<Going> {
        let Stage::EnRoute { driver, .. } = &ride.stage else {
            return None;
        };
        Some(Going {
            asking: Asking::of(ride),
            driver: driver.clone(),
            swaps: ride.swaps,
        })
    }
}

/// What the solver is given.
pub(crate) struct Job {
    pub now: Time,
    pub policy: PolicyKind,
    pub rides: Vec<Asking>,
    /// Rides that may change their driver; none unless the policy makes use of them.
    pub going: Vec<Going>,
    /// When the last round was; `None`: this one is not to be put off.
    pub last_round: Option<Time>,
}

/// What comes back.
pub(crate) enum Solved {
    /// The round's result.
    Round(Done),
    /// It pays to wait for other rides and cars: these rides are to be looked at again then, or when more are.
    PutOff { rides: Vec<RideId>, until: Time },
}

/// A round that was solved.
pub(crate) struct Done {
    pub now: Time,
    pub result: RoundResult,
    pub rides: Vec<RideId>,
    pub took_s: f64,
}

/// Finds candidates and solves.
pub(crate) struct Solver {
    pub people: Arc<People>,
    pub config: NodeConfig,
    pub engine: Arc<EngineConfig>,
    pub promises: Mutex<Promises>,
}

/// How long a promise is remembered while its ride takes part in no round.
const PROMISE_MEMORY_MS: u64 = 60_000;

/// When riders were first told to expect their car. Not in the log: after a restart the next estimate counts. Bounded by
/// the rides on the way within [`PROMISE_MEMORY_MS`].
#[derive(Default)]
pub(crate) struct Promises(HashMap<RideId, Promise>);

struct Promise {
    arrives: Time,
    used: Time,
}

impl Promises {
    /// What is left of the promise to this ride; made now, if there was none.
    fn remaining_ms(&mut self, ride: RideId, remaining_ms: i64, now: Time) -> i64 {
        let promise = self.0.entry(ride).or_insert(Promise {
            arrives: Time(now.0 + remaining_ms),
            used: now,
        });
        promise.used = now;
        promise.arrives.since(now)
    }

    fn forget_old(&mut self, now: Time) {
        self.0
            .retain(|_, promise| promise.used.plus_ms(PROMISE_MEMORY_MS) >= now);
    }
}

/// The cars of a round, each by its place in [`Round::drivers`].
#[derive(Default)]
struct Cars {
    drivers: Vec<DriverId>,
    places: HashMap<DriverKey, Option<u32>>,
}

impl Cars {
    fn place(&mut self, key: DriverKey, people: &People) -> Option<u32> {
        *self.places.entry(key).or_insert_with(|| {
            people.name(key).map(|id| {
                self.drivers.push(id);
                (self.drivers.len() - 1) as u32
            })
        })
    }
}

/// A car that a ride may get.
struct CarNear {
    key: DriverKey,
    /// Its place in [`Round::drivers`].
    driver: u32,
    drive_ms: i64,
    classes: u8,
}

impl Solver {
    pub fn solve(&self, job: Job) -> Solved {
        // Only for the metric: what a round decides never depends on how long it takes.
        let began = Instant::now();
        let mut cars = Cars::default();
        let on_the_way = self.on_the_way(&job, &mut cars);
        let movers: HashSet<DriverKey> = cars.places.keys().copied().collect();
        let near = job.rides.iter();
        let near: Vec<Vec<CarNear>> = near
            .map(|asking| self.cars_near(asking, job.now, &movers, &mut cars))
            .collect();
        let on_the_way: Vec<OnTheWay> = on_the_way
            .into_iter()
            .map(|(going, mut on_the_way)| {
                let near = self.cars_near(&going.asking, job.now, &movers, &mut cars);
                let drive = near.iter().map(|car| Candidate {
                    driver: car.driver,
                    cost: car.drive_ms,
                });
                on_the_way.candidates = drive.collect();
                on_the_way
            })
            .collect();
        let is_scarce = cars.drivers.len() < job.rides.len() + on_the_way.len();
        let rows = job.rides.iter().zip(&near);
        let candidates = rows
            .map(|(asking, near)| self.priced(asking, near, job.now, is_scarce))
            .collect();
        let waiting = job.rides.iter().map(|asking| asking.ask.ride);
        let going = on_the_way.iter().map(|going| going.ask.ride);
        let rides: Vec<RideId> = waiting.chain(going).collect();
        let round = Round {
            rides: job.rides.into_iter().map(|asking| asking.ask).collect(),
            drivers: cars.drivers,
            candidates,
            on_the_way,
            rules: self.engine.swaps,
        };
        if let Some(last) = job.last_round {
            let until = last.plus_ms(pace::wait_ms(&round, &self.engine.pace));
            if until > job.now {
                return Solved::PutOff { rides, until };
            }
        }
        let policy = job.policy.policy();
        let result = policy.solve(&round, self.config.round_steps_max);
        Solved::Round(Done {
            now: job.now,
            result,
            rides,
            took_s: began.elapsed().as_secs_f64(),
        })
    }

    /// What each of these cars costs this ride; those that are not to be are left out.
    fn priced(
        &self,
        asking: &Asking,
        near: &[CarNear],
        now: Time,
        is_scarce: bool,
    ) -> Vec<Candidate> {
        let prices = &self.engine.prices;
        let looks_at_drivers = prices.idle_per_mille > 0 || prices.decline_s > 0;
        let priced = near.iter().filter_map(|car| {
            let hint = looks_at_drivers.then(|| self.people.hints.of(car.key));
            let hint = hint.unwrap_or_default();
            let cost = prices.cost_ms(&Facts {
                drive_ms: car.drive_ms,
                waited_ms: now.since(asking.ask.since),
                idle_ms: hint.free_since.map_or(0, |since| now.since(since)),
                declines_per_mille: hint.declines_per_mille,
                classes_above: classes_above(asking.class, car.classes),
                is_scarce,
                ..Facts::default()
            })?;
            let driver = car.driver;
            Some(Candidate { driver, cost })
        });
        priced.collect()
    }

    fn travel(&self) -> StraightLine {
        StraightLine {
            speed_mps: self.config.speed_mps,
        }
    }

    /// The rides on the way whose drivers were heard of lately, still without other cars.
    fn on_the_way<'a>(&self, job: &'a Job, cars: &mut Cars) -> Vec<(&'a Going, OnTheWay)> {
        let mut promises = self.promises.lock().unwrap_or_else(PoisonError::into_inner);
        let oldest_ms = job.now.0 - self.config.ping_ttl_ms;
        let going = job.going.iter().filter_map(|going| {
            let seen = self.people.seen(&going.driver)?;
            let placement = seen.placement.filter(|at| at.time_ms >= oldest_ms)?;
            let distance_m = placement.at.distance_m(going.asking.pickup);
            let remaining_ms = self.travel().drive_ms_for(distance_m);
            let ask = going.asking.ask.clone();
            let on_the_way = OnTheWay {
                driver: cars.place(seen.key, &self.people)?,
                remaining_ms,
                promised_ms: promises.remaining_ms(ask.ride, remaining_ms, job.now),
                swaps: going.swaps,
                candidates: Vec::new(),
                ask,
            };
            Some((going, on_the_way))
        });
        let going = going.collect();
        promises.forget_old(job.now);
        going
    }

    /// The free cars near a ride, and those on their way to rides of this round.
    fn cars_near(
        &self,
        asking: &Asking,
        now: Time,
        movers: &HashSet<DriverKey>,
        cars: &mut Cars,
    ) -> Vec<CarNear> {
        let mut near: Vec<Near> = Vec::with_capacity(self.config.candidates_max);
        let mut row = Vec::with_capacity(self.config.candidates_max);
        let mut take = |near: &[Near]| {
            for car in near {
                if let Some(driver) = cars.place(car.key, &self.people) {
                    row.push(CarNear {
                        key: car.key,
                        driver,
                        drive_ms: self.travel().drive_ms_for(car.distance_m),
                        classes: car.classes,
                    });
                }
            }
        };
        self.find(asking, now, Status::Free, |_| true, &mut near);
        take(&near);
        if !movers.is_empty() {
            let is_mover = |car: &Near| movers.contains(&car.key);
            self.find(asking, now, Status::Busy, is_mover, &mut near);
            take(&near);
        }
        row
    }

    fn find(
        &self,
        asking: &Asking,
        now: Time,
        status: Status,
        is_meant: impl Fn(&Near) -> bool,
        near: &mut Vec<Near>,
    ) {
        let query = Query {
            at: asking.pickup,
            radius_m: f64::from(asking.radius_m),
            k: self.config.candidates_max,
            filter: Filter {
                now_ms: now.0,
                ping_ttl_ms: self.config.ping_ttl_ms,
                status: Some(status),
                classes: asking.class.bit(),
            },
        };
        near.clear();
        let hints = &self.people.hints;
        let somebody_blocks = hints.anybody_blocks();
        let anybody = asking.asked.is_empty() && asking.avoid.is_empty();
        let may_ask = |car: &Near| {
            is_meant(car)
                && !(somebody_blocks && hints.of(car.key).blocked.contains(&asking.rider))
                && !self.people.is_claimed(car.key, car.n, now)
                && (anybody
                    || self
                        .people
                        .name(car.key)
                        .is_some_and(|id| asking.may_ask(&id, car.n)))
        };
        self.people.index().nearest(&query, may_ask, near);
    }
}
