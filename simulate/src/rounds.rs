//! Rounds: the candidates of rides from the live index, priced and solved.
//!
//! As a node does it (`matcher/src/rounds.rs`), without its threads: the same index, the same snapshot of a ride, the same
//! policies of the engine.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use cabrank_engine::matching::crowd::{CROWD_RIDES_LEAST, Crowd};
use cabrank_engine::matching::others;
use cabrank_engine::matching::price::{Facts, Prices, classes_above};
use cabrank_engine::matching::{
    Candidate, OnTheWay, PolicyKind, RideAsk, Round, RoundResult, SwapRules,
};
use cabrank_engine::ride::{Ride, Stage};
use cabrank_engine::travel::StraightLine;
use cabrank_events::{DriverId, RideId, Time};
use cabrank_geo::{DriverKey, Filter, LiveIndex, Near, Query, Status};

/// How long a promise is remembered while its ride takes part in no round.
const PROMISE_MEMORY_MS: u64 = 60_000;

/// What a round is told besides its rides.
#[derive(Clone, Copy, Debug)]
pub struct RoundRules {
    /// How it chooses.
    pub policy: PolicyKind,
    /// What is asked of a swap.
    pub swaps: SwapRules,
    /// Cars looked at for each ride.
    pub candidates_max: usize,
    /// Steps before the best answer so far is used.
    pub steps_max: u64,
    /// Positions older than this do not count.
    pub ping_ttl_ms: i64,
}

/// What a round was, for the report.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RoundSize {
    /// Rides, those on the way included.
    pub rides: usize,
    /// Cars that were anybody's candidate.
    pub cars: usize,
    /// The search ended before the best was proven.
    pub exhausted: bool,
    /// Work of the search, the same on any machine.
    pub steps: u64,
    /// Candidates and solution together, wall time.
    pub took: Duration,
}

/// Drivers by the number they have in the index.
pub struct Roll {
    /// Number to id.
    pub ids: Vec<DriverId>,
    /// Id to number.
    pub numbers: HashMap<DriverId, u32>,
}

/// What a round likes to know of a driver besides where the car is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Hint {
    /// Free without a break since then.
    pub free_since: Option<Time>,
    /// Offers out of 1,000 that were turned down, the newest counting most.
    pub declines_per_mille: u32,
}

/// An answer to an offer counts this part of a driver's history.
const ANSWER_WEIGHT: u32 = 8;

impl Hint {
    /// An offer was answered.
    pub fn answered(&mut self, is_declined: bool) {
        let before = self.declines_per_mille;
        self.declines_per_mille = match is_declined {
            true => before + (1_000 - before) / ANSWER_WEIGHT,
            false => before - before / ANSWER_WEIGHT,
        };
    }
}

/// When riders were first told to expect their car, and when that was last looked at.
#[derive(Default)]
pub struct Promises(HashMap<RideId, (Time, Time)>);

impl Promises {
    fn remaining_ms(&mut self, ride: RideId, remaining_ms: i64, now: Time) -> i64 {
        let (arrives, used) = self
            .0
            .entry(ride)
            .or_insert((Time(now.0 + remaining_ms), now));
        *used = now;
        arrives.since(now)
    }

    fn forget_old(&mut self, now: Time) {
        self.0
            .retain(|_, (_, used)| used.plus_ms(PROMISE_MEMORY_MS) >= now);
    }
}

/// The cars of a round, each by its place in [`Round::drivers`].
struct Cars<'a> {
    roll: &'a Roll,
    drivers: Vec<DriverId>,
    places: HashMap<DriverKey, u32>,
}

/// A car that a ride may get.
struct CarNear {
    key: DriverKey,
    /// Its place in [`Round::drivers`].
    driver: u32,
    drive_ms: i64,
    classes: u8,
}

impl Cars<'_> {
    fn place(&mut self, key: DriverKey) -> u32 {
        let Cars {
            roll,
            drivers,
            places,
        } = self;
        *places.entry(key).or_insert_with(|| {
            drivers.push(roll.ids[key.0 as usize].clone());
            (drivers.len() - 1) as u32
        })
    }
}

/// What a round looks at.
pub struct Look<'a> {
    /// Where the cars are.
    pub index: &'a LiveIndex,
    /// Who they are.
    pub roll: &'a Roll,
    /// How it chooses.
    pub rules: &'a RoundRules,
    /// What a pair costs besides the drive.
    pub prices: &'a Prices,
    /// What is known of each driver, by number.
    pub hints: &'a [Hint],
    /// Rides that other nodes decide for, and since when they are as they are.
    pub others: &'a HashMap<RideId, Time>,
    /// How long drives take at this hour.
    pub travel: StraightLine,
    /// The time at hand.
    pub now: Time,
}

impl Look<'_> {
    /// Gathers the cars of these rides and decides. `going` are rides whose drivers are on the way.
    pub fn solve(
        &self,
        rides: &[&Ride],
        going: &[&Ride],
        promises: &mut Promises,
    ) -> (RoundResult, RoundSize) {
        // Only for the report: what a round decides never depends on how long it takes.
        let began = Instant::now();
        let mut cars = Cars {
            roll: self.roll,
            drivers: Vec::new(),
            places: HashMap::new(),
        };
        let on_the_way = self.on_the_way(going, promises, &mut cars);
        let movers: HashSet<DriverKey> = cars.places.keys().copied().collect();
        let crowds = self.crowds(rides, going, &movers);
        let mut look = |ride: &Ride| {
            let mut near = self.cars_near(ride, &movers, crowds.as_ref(), &mut cars);
            near.retain(|car| self.may_come(ride, car.key));
            near
        };
        let near: Vec<Vec<CarNear>> = rides.iter().map(|ride| look(ride)).collect();
        let on_the_way: Vec<OnTheWay> = on_the_way
            .into_iter()
            .map(|(ride, mut on_the_way)| {
                let near = look(ride);
                let drive = near.iter().map(|car| Candidate {
                    driver: car.driver,
                    cost: car.drive_ms,
                });
                on_the_way.candidates = drive.collect();
                on_the_way
            })
            .collect();
        let size = rides.len() + on_the_way.len();
        let is_scarce = cars.drivers.len() < size;
        let rows = rides.iter().zip(&near);
        let candidates = rows
            .map(|(ride, near)| self.priced(ride, near, is_scarce))
            .collect();
        let round = Round {
            rides: rides.iter().copied().map(ask).collect(),
            drivers: cars.drivers,
            candidates,
            on_the_way,
            rules: self.rules.swaps,
            now: self.now,
        };
        let policy = self.rules.policy.policy();
        let result = policy.solve(&round, self.rules.steps_max);
        let size = RoundSize {
            rides: size,
            cars: round.drivers.len(),
            exhausted: result.exhausted,
            steps: result.steps,
            took: began.elapsed(),
        };
        (result, size)
    }

    fn on_the_way<'a>(
        &self,
        going: &[&'a Ride],
        promises: &mut Promises,
        cars: &mut Cars<'_>,
    ) -> Vec<(&'a Ride, OnTheWay)> {
        let oldest_ms = self.now.0 - self.rules.ping_ttl_ms;
        let going = going.iter().filter_map(|ride| {
            let Stage::EnRoute { driver, .. } = &ride.stage else {
                return None;
            };
            let key = DriverKey(u64::from(*self.roll.numbers.get(driver)?));
            let seen = self.index.get(self.index.slot_of(key)?)?;
            let placement = seen.placement.filter(|at| at.time_ms >= oldest_ms)?;
            let distance_m = placement.at.distance_m(ride.pickup.0);
            let remaining_ms = self.travel.drive_ms_for(distance_m);
            let on_the_way = OnTheWay {
                driver: cars.place(key),
                remaining_ms,
                promised_ms: promises.remaining_ms(ride.id, remaining_ms, self.now),
                swaps: ride.swaps,
                lost: ride.redispatches,
                candidates: Vec::new(),
                ask: ask(ride),
            };
            Some((*ride, on_the_way))
        });
        let going = going.collect();
        promises.forget_old(self.now);
        going
    }

    /// Would another node have given this car to its ride by now?
    fn may_come(&self, ride: &Ride, key: DriverKey) -> bool {
        let free_since = self.hints[key.0 as usize].free_since;
        let since = self.others.get(&ride.id).copied();
        since
            .zip(free_since)
            .is_none_or(|(since, free_since)| others::may_come(since, free_since, self.now))
    }

    /// What each of these cars costs this ride; those that are not to be are left out.
    fn priced(&self, ride: &Ride, near: &[CarNear], is_scarce: bool) -> Vec<Candidate> {
        let priced = near.iter().filter_map(|car| {
            let hint = &self.hints[car.key.0 as usize];
            let cost = self.prices.cost_ms(&Facts {
                drive_ms: car.drive_ms,
                idle_ms: hint.free_since.map_or(0, |since| self.now.since(since)),
                declines_per_mille: hint.declines_per_mille,
                classes_above: classes_above(ride.class, car.classes),
                is_scarce,
                ..Facts::default()
            })?;

            let driver = car.driver;
            Some(Candidate { driver, cost })
        });
        priced.collect()
    }

    /// A large round asks the index once for all cars that its rides may get: free ones and movers.
    fn crowds(
        &self,
        rides: &[&Ride],
        going: &[&Ride],
        movers: &HashSet<DriverKey>,
    ) -> Option<[Crowd; 2]> {
        let all = || rides.iter().chain(going);
        if all().count() < CROWD_RIDES_LEAST {
            return None;
        }
        let circles = all().map(|ride| (ride.pickup.0, f64::from(ride.radius_m)));
        let (at, radius_m) = Crowd::circle(circles)?;
        let crowd = |status, keep: &dyn Fn(&Near) -> bool| {
            let mut near = Vec::new();
            let filter = self.filter(status, 0);
            self.index
                .within_radius(at, radius_m, &filter, keep, &mut near);
            Crowd::of(near)
        };
        let movers = match movers.is_empty() {
            true => Crowd::default(),
            false => crowd(Status::Busy, &|car| movers.contains(&car.key)),
        };
        Some([crowd(Status::Free, &|_| true), movers])
    }

    fn filter(&self, status: Status, classes: u8) -> Filter {
        Filter {
            now_ms: self.now.0,
            ping_ttl_ms: self.rules.ping_ttl_ms,
            status: Some(status),
            classes,
        }
    }

    /// The free cars near a ride, and those on their way to rides of this round.
    fn cars_near(
        &self,
        ride: &Ride,
        movers: &HashSet<DriverKey>,
        crowds: Option<&[Crowd; 2]>,
        cars: &mut Cars<'_>,
    ) -> Vec<CarNear> {
        let mut near: Vec<Near> = Vec::with_capacity(self.rules.candidates_max);
        let mut row = Vec::with_capacity(2 * self.rules.candidates_max);
        let mut take = |near: &[Near]| {
            row.extend(near.iter().map(|car| CarNear {
                key: car.key,
                driver: cars.place(car.key),
                drive_ms: self.travel.drive_ms_for(car.distance_m),
                classes: car.classes,
            }));
        };
        match crowds {
            Some(crowds) => {
                for crowd in crowds {
                    let serves = |car: &Near| car.classes & ride.class.bit() != 0;
                    let may_ask = |car: &Near| serves(car) && self.may_ask(ride, car);
                    let (at, radius_m) = (ride.pickup.0, f64::from(ride.radius_m));
                    crowd.nearest(at, radius_m, self.rules.candidates_max, may_ask, &mut near);
                    take(&near);
                }
            }
            None => {
                self.find(ride, Status::Free, |_| true, &mut near);
                take(&near);
                if !movers.is_empty() {
                    let is_mover = |car: &Near| movers.contains(&car.key);
                    self.find(ride, Status::Busy, is_mover, &mut near);
                    take(&near);
                }
            }
        }
        row
    }

    fn may_ask(&self, ride: &Ride, car: &Near) -> bool {
        let anybody = ride.asked.is_empty() && ride.avoid.is_empty();
        anybody || ride.may_ask(&self.roll.ids[car.key.0 as usize], car.n)
    }

    fn find(
        &self,
        ride: &Ride,
        status: Status,
        is_meant: impl Fn(&Near) -> bool,
        near: &mut Vec<Near>,
    ) {
        let query = Query {
            at: ride.pickup.0,
            radius_m: f64::from(ride.radius_m),
            k: self.rules.candidates_max,
            filter: self.filter(status, ride.class.bit()),
        };
        let may_ask = |car: &Near| is_meant(car) && self.may_ask(ride, car);
        self.index.nearest(&query, may_ask, near);
    }
}

fn ask(ride: &Ride) -> RideAsk {
    RideAsk {
        ride: ride.id,
        version: ride.seq,
        since: ride.issued_at,
    }
}
