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

use cabrank_engine::DispatchRules;
use cabrank_engine::matching::crowd::{CROWD_RIDES_LEAST, Crowd};
use cabrank_engine::matching::others::{self, Others};
use cabrank_engine::matching::price::{Facts, Prices, classes_above, leads_to};
use cabrank_engine::matching::{Candidate, OnTheWay, Pair, RideAsk, Round, RoundResult, pace};
use cabrank_engine::ride::{Ride, Stage};
use cabrank_engine::travel::{StraightLine, TravelTime};
use cabrank_events::{DriverId, RideId, RiderId, Time, VehicleClass, ZoneName};
use cabrank_geo::{DriverKey, Filter, Near, Point, Query, Status};

use crate::config::NodeConfig;
use crate::elsewhere::OtherRides;
use crate::people::People;
use crate::roads::Roads;

#[cfg(test)]
mod tests;

/// A ride as a round sees it.
#[derive(Clone, Debug)]
pub(crate) struct Asking {
    ask: RideAsk,
    rider: RiderId,
    pickup: Point,
    dropoff: Option<Point>,
    radius_m: u32,
    class: VehicleClass,
    airport: Option<ZoneName>,
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
            dropoff: ride.dropoff.map(|to| to.0),
            radius_m: ride.radius_m,
            class: ride.class,
            airport: ride.airport.clone(),
            asked: ride.asked.clone(),
            avoid: ride.avoid.clone(),
        }
    }

    pub fn pickup(&self) -> Point {
        self.pickup
    }

    fn may_ask(&self, driver: &DriverId, driver_seq: u64) -> bool {
        !self.asked.contains(driver) && self.avoid.get(driver).is_none_or(|at| driver_seq > *at)
    }
}

/// A ride whose driver is on the way, as a round sees it.
#[derive(Clone, Debug)]
pub(crate) struct Going {
    asking: Asking,
    driver: DriverId,
    swaps: u32,
    lost: u32,
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
            lost: ride.redispatches,
        })
    }

    pub fn pickup(&self) -> Point {
        self.asking.pickup
    }
}

/// A car with a rider in it, who is brought to a known place.
#[derive(Debug)]
pub(crate) struct Finishing {
    driver: DriverId,
    dropoff: Point,
}

impl Finishing {
    /// `None`: nobody is in the car, or nobody has told where to.
    pub fn of(ride: &Ride) -> Option<Finishing> {
        let Stage::Started { driver, .. } = &ride.stage else {
            return None;
        };
        Some(Finishing {
            driver: driver.clone(),
            dropoff: ride.dropoff?.0,
        })
    }
}

/// What the solver is given.
pub(crate) struct Job {
    pub now: Time,
    /// How it chooses.
    pub rules: Arc<DispatchRules>,
    pub rides: Vec<Asking>,
    /// Rides that may change their driver; none unless the policy makes use of them.
    pub going: Vec<Going>,
    /// Rides that other nodes decide for: they are looked at, and what they would get is left to them.
    pub others: OtherRides,
    /// Cars that may soon be free; none unless the market counts on them.
    pub finishing: Vec<Finishing>,
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
    /// Rides that got no car because one that is not free yet is better.
    pub held_back: usize,
    /// Rides that got the driver whose turn it was at an airport.
    pub called: usize,
    pub took_s: f64,
}

/// Finds candidates and solves.
pub(crate) struct Solver {
    pub people: Arc<People>,
    pub config: NodeConfig,
    pub promises: Mutex<Promises>,
    /// Since when other nodes' rides are as they are.
    pub others: Mutex<Others>,
    /// Knows driving times better than a straight line, and may take its time.
    pub roads: Option<Roads>,
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

/// Who may be a candidate besides the free cars of the index.
struct Gathered {
    /// Cars on their way to rides of this round.
    movers: HashSet<DriverKey>,
    /// All free cars around a large round's rides, and all its movers.
    crowds: Option<[Crowd; 2]>,
}

/// A car that a ride may get.
struct CarNear {
    key: DriverKey,
    /// Its place in [`Round::drivers`].
    driver: u32,
    drive_ms: i64,
    at: Point,
    classes: u8,
    /// What is left of the ride it is on, which ends at `at`; 0: it is free, or on the way to somebody.
    busy_ms: i64,
}

/// A ride whose driver is on the way, and what is near it.
struct Moving<'a> {
    going: &'a Going,
    /// Its place in [`Round::drivers`].
    driver: u32,
    at: Point,
    remaining_ms: i64,
    near: Vec<CarNear>,
}

/// Puts what is known of roads in the place of all straight lines of a round, asked for together.
fn ask(
    travel: &impl TravelTime,
    rides: &[Asking],
    near: &mut [Vec<CarNear>],
    moving: &mut [Moving<'_>],
) {
    let mut asked: Vec<(&mut i64, (Point, Point))> = Vec::new();
    for (asking, cars) in rides.iter().zip(near) {
        let drives = cars.iter_mut();
        asked.extend(drives.map(|car| (&mut car.drive_ms, (car.at, asking.pickup))));
    }
    for one in moving {
        let pickup = one.going.asking.pickup;
        asked.push((&mut one.remaining_ms, (one.at, pickup)));
        let drives = one.near.iter_mut();
        asked.extend(drives.map(|car| (&mut car.drive_ms, (car.at, pickup))));
    }
    let drives: Vec<(Point, Point)> = asked.iter().map(|(_, drive)| *drive).collect();
    for ((drive_ms, _), told_ms) in asked.into_iter().zip(travel.drives_ms(&drives)) {
        *drive_ms = told_ms;
    }
}

impl Solver {
    /// May a round wait for somebody? Then it is not for the commit loop.
    pub fn may_wait(&self) -> bool {
        self.roads.is_some()
    }

    pub fn solve(&self, mut job: Job) -> Solved {
        // Only for the metric: what a round decides never depends on how long it takes.
        let began = Instant::now();
        let called = self.call(&mut job);
        let at_airports = called.iter().map(|(ask, _)| ask.ride);
        let waiting = job.rides.iter().map(|asking| asking.ask.ride);
        let going = job.going.iter().map(|going| going.asking.ask.ride);
        let rides: Vec<RideId> = at_airports.chain(waiting).chain(going).collect();
        let ours = job.rides.len();
        let others = self.take_in_others(&mut job);
        let straight = self.config.straight_line(job.now);
        let mut cars = Cars::default();
        let mut moving = self.moving(&job, straight, &mut cars);
        let movers: HashSet<DriverKey> = cars.places.keys().copied().collect();
        let gathered = Gathered {
            crowds: self.crowds(&job, &movers),
            movers,
        };
        let mut look =
            |asking: &Asking| self.cars_near(asking, job.now, straight, &gathered, &mut cars);
        let mut near: Vec<Vec<CarNear>> = job.rides.iter().map(&mut look).collect();
        for one in &mut moving {
            one.near = look(&one.going.asking);
        }
        self.leave_queues_alone(&called, &mut near, &mut moving);
        // Whose rides end here only this node knows.
        let soon_free = self.soon_free(&job, straight, &mut near[..ours], &mut cars);
        if !others.is_empty() {
            self.leave_what_is_left_over(&others, &job, &mut near, &mut moving);
        }
        if let Some(roads) = &self.roads {
            ask(&roads.at(straight), &job.rides, &mut near, &mut moving);
        }
        let on_the_way = self.on_the_way(moving, job.now);
        let is_scarce = cars.drivers.len() < job.rides.len() + on_the_way.len();
        let rows = job.rides.iter().zip(&near);
        let candidates = rows
            .map(|(asking, near)| self.priced(&job.rules.prices, asking, near, job.now, is_scarce))
            .collect();
        let round = Round {
            rides: job.rides.into_iter().map(|asking| asking.ask).collect(),
            drivers: cars.drivers,
            candidates,
            on_the_way,
            rules: job.rules.swaps,
            now: job.now,
        };
        // Whoever waits at an airport need not wait for others.
        if let Some(last) = job.last_round.filter(|_| called.is_empty()) {
            let until = last.plus_ms(pace::wait_ms(&round, &job.rules.pace));
            if until > job.now {
                return Solved::PutOff { rides, until };
            }
        }
        let policy = job.rules.policy.policy();
        let mut result = policy.solve(&round, self.config.round_steps_max);
        let pairs = result.pairs.len();
        // Nobody is held before they are free: who is to get such a car waits for it.
        result
            .pairs
            .retain(|pair| !soon_free.contains(&pair.driver));
        let held_back = pairs - result.pairs.len();
        let looked = called.iter().map(|(ask, _)| (ask.ride, ask.version));
        result.looked.extend(looked);
        result.pairs.extend(called.iter().map(|(ask, driver)| Pair {
            ride: ask.ride,
            version: ask.version,
            driver: driver.clone(),
            cost_ms: 0,
        }));
        Solved::Round(Done {
            now: job.now,
            held_back,
            called: called.len(),
            result,
            rides,
            took_s: began.elapsed().as_secs_f64(),
        })
    }

    /// Puts other nodes' rides beside ours; answers which they are and since when they are as they are.
    fn take_in_others(&self, job: &mut Job) -> HashMap<RideId, Time> {
        let mut known = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = job.others.waiting.iter().map(|asking| &asking.ask);
        let going = job.others.going.iter().map(|going| &going.asking.ask);
        let asks = waiting.chain(going);
        let since = asks.map(|ask| (ask.ride, known.since(ask.ride, ask.version, job.now)));
        let since = since.collect();
        known.forget_old(job.now);
        job.rides.append(&mut job.others.waiting);
        job.going.append(&mut job.others.going);
        since
    }

    /// A free car that another node could have given to its ride and has not is not for that ride.
    fn leave_what_is_left_over(
        &self,
        others: &HashMap<RideId, Time>,
        job: &Job,
        near: &mut [Vec<CarNear>],
        moving: &mut [Moving<'_>],
    ) {
        let rides = job.rides.iter().zip(near);
        let going = moving
            .iter_mut()
            .map(|one| (&one.going.asking, &mut one.near));
        for (asking, near) in rides.chain(going) {
            if let Some(since) = others.get(&asking.ask.ride) {
                near.retain(|car| {
                    let free_since = self.people.hints.of(car.key).free_since;
                    free_since.is_none_or(|free| others::may_come(*since, free, job.now))
                });
            }
        }
    }

    /// Takes the rides that begin at airports and for which somebody waits there out of the round: they get the driver whose turn
    /// it is. The others are looked at like all.
    fn call(&self, job: &mut Job) -> Vec<(RideAsk, DriverId)> {
        let people = &self.people;
        let queues = people.queues.read().unwrap_or_else(PoisonError::into_inner);
        if queues.is_empty() || job.rides.iter().all(|asking| asking.airport.is_none()) {
            return Vec::new();
        }
        let at_airports: Vec<(usize, &Asking, &ZoneName)> = job
            .rides
            .iter()
            .enumerate()
            .filter_map(|(at, asking)| Some((at, asking, asking.airport.as_ref()?)))
            .collect();
        let rides: Vec<(&RideAsk, &ZoneName)> = at_airports
            .iter()
            .map(|(_, asking, airport)| (&asking.ask, *airport))
            .collect();
        let called = queues.call(&rides, |at, driver| {
            let asking = at_airports[at].1;
            people.seen(driver).is_some_and(|seen| {
                seen.status == Status::Free
                    && seen.classes & asking.class.bit() != 0
                    && asking.may_ask(driver, seen.n)
                    && !people.is_claimed(seen.key, seen.n, job.now)
                    && !people.hints.of(seen.key).blocked.contains(&asking.rider)
            })
        });
        let mut of: HashMap<usize, DriverId> = called
            .into_iter()
            .map(|(at, driver)| (at_airports[at].0, driver))
            .collect();
        let mut taken = Vec::with_capacity(of.len());
        let mut at = 0;
        job.rides.retain(|asking| {
            let driver = of.remove(&at);
            at += 1;
            let stays = driver.is_none();
            taken.extend(driver.map(|driver| (asking.ask.clone(), driver)));
            stays
        });
        taken
    }

    /// Who was called in this round is no candidate in it, and nobody who waits at an airport gets a ride by an exchange:
    /// it would cost the place, and nobody would have asked.
    fn leave_queues_alone(
        &self,
        called: &[(RideAsk, DriverId)],
        near: &mut [Vec<CarNear>],
        moving: &mut [Moving<'_>],
    ) {
        let people = &self.people;
        if !called.is_empty() {
            let keys = called.iter().filter_map(|(_, driver)| people.seen(driver));
            let keys: HashSet<DriverKey> = keys.map(|seen| seen.key).collect();
            for row in near {
                row.retain(|car| !keys.contains(&car.key));
            }
        }
        let queues = people.queues.read().unwrap_or_else(PoisonError::into_inner);
        if !queues.is_empty() {
            let waits = |key| people.name(key).is_some_and(|id| queues.has(&id));
            for one in moving {
                one.near.retain(|car| !waits(car.key));
            }
        }
    }

    /// What each of these cars costs this ride; those that are not to be are left out.
    fn priced(
        &self,
        prices: &Prices,
        asking: &Asking,
        near: &[CarNear],
        now: Time,
        is_scarce: bool,
    ) -> Vec<Candidate> {
        let looks_at_drivers =
            prices.idle_per_mille > 0 || prices.decline_s > 0 || prices.homewards_s > 0;
        let priced = near.iter().filter_map(|car| {
            let hint = looks_at_drivers.then(|| self.people.hints.of(car.key));
            let hint = hint.unwrap_or_default();
            let cost = prices.cost_ms(&Facts {
                drive_ms: car.drive_ms,
                busy_ms: car.busy_ms,
                waited_ms: now.since(asking.ask.since),
                idle_ms: hint.free_since.map_or(0, |since| now.since(since)),
                declines_per_mille: hint.declines_per_mille,
                classes_above: classes_above(asking.class, car.classes),
                is_homewards: hint
                    .heading
                    .zip(asking.dropoff)
                    .is_some_and(|(heading, dropoff)| leads_to(heading.0, asking.pickup, dropoff)),
                is_scarce,
            })?;
            let driver = car.driver;
            Some(Candidate { driver, cost })
        });
        priced.collect()
    }

    /// Puts cars among those near a ride whose own ride ends soon enough, as if they stood at its end; says which they are.
    fn soon_free(
        &self,
        job: &Job,
        straight: StraightLine,
        near: &mut [Vec<CarNear>],
        cars: &mut Cars,
    ) -> HashSet<DriverId> {
        let forward_ms = i64::from(job.rules.prices.forward_s) * 1_000;
        let oldest_ms = job.now.0 - self.config.ping_ttl_ms;
        let mut soon_free = HashSet::new();
        for finishing in &job.finishing {
            let Some(seen) = self.people.seen(&finishing.driver) else {
                continue;
            };
            let Some(placement) = seen.placement.filter(|at| at.time_ms >= oldest_ms) else {
                continue;
            };
            let busy_ms = straight.drive_ms(placement.at, finishing.dropoff);
            if busy_ms > forward_ms {
                continue;
            }
            for (asking, near) in job.rides.iter().zip(&mut *near) {
                let distance_m = finishing.dropoff.distance_m(asking.pickup);
                let may_come = distance_m <= f64::from(asking.radius_m)
                    && job.now.since(asking.ask.since) < forward_ms
                    && seen.classes & asking.class.bit() != 0
                    && asking.may_ask(&finishing.driver, seen.n)
                    && !self
                        .people
                        .hints
                        .of(seen.key)
                        .blocked
                        .contains(&asking.rider);
                if may_come && let Some(driver) = cars.place(seen.key, &self.people) {
                    soon_free.insert(finishing.driver.clone());
                    near.push(CarNear {
                        key: seen.key,
                        driver,
                        drive_ms: straight.drive_ms_for(distance_m),
                        at: finishing.dropoff,
                        classes: seen.classes,
                        busy_ms,
                    });
                }
            }
        }
        soon_free
    }

    /// The rides on the way whose drivers were heard of lately, still without other cars.
    fn moving<'a>(&self, job: &'a Job, straight: StraightLine, cars: &mut Cars) -> Vec<Moving<'a>> {
        let oldest_ms = job.now.0 - self.config.ping_ttl_ms;
        let moving = job.going.iter().filter_map(|going| {
            let seen = self.people.seen(&going.driver)?;
            let placement = seen.placement.filter(|at| at.time_ms >= oldest_ms)?;
            Some(Moving {
                going,
                driver: cars.place(seen.key, &self.people)?,
                at: placement.at,
                remaining_ms: straight.drive_ms(placement.at, going.asking.pickup),
                near: Vec::new(),
            })
        });
        moving.collect()
    }

    fn on_the_way(&self, moving: Vec<Moving<'_>>, now: Time) -> Vec<OnTheWay> {
        let mut promises = self.promises.lock().unwrap_or_else(PoisonError::into_inner);
        let on_the_way = moving.into_iter().map(|one| {
            let ask = one.going.asking.ask.clone();
            let drive = one.near.iter().map(|car| Candidate {
                driver: car.driver,
                cost: car.drive_ms,
            });
            OnTheWay {
                driver: one.driver,
                remaining_ms: one.remaining_ms,
                promised_ms: promises.remaining_ms(ask.ride, one.remaining_ms, now),
                swaps: one.going.swaps,
                lost: one.going.lost,
                candidates: drive.collect(),
                ask,
            }
        });
        let on_the_way = on_the_way.collect();
        promises.forget_old(now);
        on_the_way
    }

    /// A large round asks the index once for all cars that its rides may get: free ones and movers.
    fn crowds(&self, job: &Job, movers: &HashSet<DriverKey>) -> Option<[Crowd; 2]> {
        let going = || job.going.iter().map(|going| &going.asking);
        if job.rides.len() + job.going.len() < CROWD_RIDES_LEAST {
            return None;
        }
        let circles = job.rides.iter().chain(going());
        let circles = circles.map(|asking| (asking.pickup, f64::from(asking.radius_m)));
        let (at, radius_m) = Crowd::circle(circles)?;
        let crowd = |status, keep: &dyn Fn(&Near) -> bool| {
            let mut near = Vec::new();
            let filter = self.filter(job.now, status, 0);
            self.people
                .index()
                .within_radius(at, radius_m, &filter, keep, &mut near);
            Crowd::of(near)
        };
        let movers = match movers.is_empty() {
            true => Crowd::default(),
            false => crowd(Status::Busy, &|car| movers.contains(&car.key)),
        };
        Some([crowd(Status::Free, &|_| true), movers])
    }

    fn filter(&self, now: Time, status: Status, classes: u8) -> Filter {
        Filter {
            now_ms: now.0,
            ping_ttl_ms: self.config.ping_ttl_ms,
            status: Some(status),
            classes,
        }
    }

    /// The free cars near a ride, and those on their way to rides of this round.
    fn cars_near(
        &self,
        asking: &Asking,
        now: Time,
        straight: StraightLine,
        gathered: &Gathered,
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
                        drive_ms: straight.drive_ms_for(car.distance_m),
                        at: car.at,
                        classes: car.classes,
                        busy_ms: 0,
                    });
                }
            }
        };
        match &gathered.crowds {
            Some(crowds) => {
                for crowd in crowds {
                    let serves = |car: &Near| car.classes & asking.class.bit() != 0;
                    let may_ask = |car: &Near| serves(car) && self.may_ask(asking, car, now);
                    let (at, radius_m) = (asking.pickup, f64::from(asking.radius_m));
                    crowd.nearest(at, radius_m, self.config.candidates_max, may_ask, &mut near);
                    take(&near);
                }
            }
            None => {
                self.find(asking, now, Status::Free, |_| true, &mut near);
                take(&near);
                if !gathered.movers.is_empty() {
                    let is_mover = |car: &Near| gathered.movers.contains(&car.key);
                    self.find(asking, now, Status::Busy, is_mover, &mut near);
                    take(&near);
                }
            }
        }
        row
    }

    /// May this ride ask this driver, as far as others are concerned?
    fn may_ask(&self, asking: &Asking, car: &Near, now: Time) -> bool {
        let hints = &self.people.hints;
        let is_blocked =
            || hints.anybody_blocks() && hints.of(car.key).blocked.contains(&asking.rider);
        let anybody = asking.asked.is_empty() && asking.avoid.is_empty();
        let by_name = || {
            let id = self.people.name(car.key);
            id.is_some_and(|id| asking.may_ask(&id, car.n))
        };
        !is_blocked() && !self.people.is_claimed(car.key, car.n, now) && (anybody || by_name())
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
            filter: self.filter(now, status, asking.class.bit()),
        };
        let may_ask = |car: &Near| is_meant(car) && self.may_ask(asking, car, now);
        self.people.index().nearest(&query, may_ask, near);
    }
}
