//! A day in virtual time: riders ask, the engine decides, drivers drive.
//!
//! One queue of things to come, ordered by time and then by when they were planned, so the same scene and seed give the
//! same day. Everything that passes between people and the engine is a command or an event of the real ones; phones have
//! no delays of their own beyond [`Habits`].

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use cabrank_engine::film::Camera;
use cabrank_events::command::{CancelledBy, EntityId};
use cabrank_events::{
    ClassSet, Command, DriverId, Event, EventRecord, HoldId, IdempotencyKey, Place, RideId,
    RiderId, Time, VehicleClass,
};
use cabrank_geo::Point;
use cabrank_loadgen::audit::{Audit, AuditOptions};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::car::{Car, Job, Work};
use crate::dispatch::{BadNode, Dispatch, NodeRules, external};
use crate::scene::Scene;
use crate::tally::{Day, RideDay};

/// How the people of the day are.
#[derive(Clone, Debug)]
pub struct Habits {
    /// Share of offers that drivers accept, 0 to 1.
    pub accept: f64,
    /// Between an offer and its answer, ms; spread by half of it in both directions.
    pub answer_ms: u64,
    /// Between the arrival and the rider sitting in the car, ms.
    pub board_ms: u64,
    /// A ping every so many ms, and at every change.
    pub ping_every_ms: u64,
    /// How fast cars are along straight lines.
    pub speeds: Speeds,
}

/// Metres a second along straight lines, by the hour of the day.
#[derive(Clone, Debug, PartialEq)]
pub struct Speeds {
    /// From 0 to 23 h.
    pub by_hour_mps: [f64; 24],
    /// What the local clock is ahead of UTC, ms.
    pub clock_ahead_ms: i64,
}

impl Speeds {
    /// The same at every hour.
    pub fn constant(mps: f64) -> Speeds {
        Speeds {
            by_hour_mps: [mps; 24],
            clock_ahead_ms: 0,
        }
    }

    /// In the fastest hour.
    pub fn fastest_mps(&self) -> f64 {
        self.by_hour_mps.iter().copied().fold(0.0, f64::max)
    }

    /// In the slowest hour.
    pub fn slowest_mps(&self) -> f64 {
        self.by_hour_mps
            .iter()
            .copied()
            .fold(f64::INFINITY, f64::min)
    }

    /// At this time.
    pub fn at(&self, now: Time) -> f64 {
        let hour = (now.0 + self.clock_ahead_ms).div_euclid(3_600_000);
        self.by_hour_mps[hour.rem_euclid(24) as usize]
    }
}

/// What is planned: for a wish or a car, those about rides with the car's turn they are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Plan {
    Ask(u32),
    GiveUp(u32),
    Begin(u32),
    Ping(u32),
    Leave(u32),
    Answer(u32, u32),
    Consent(u32, u32),
    Arrive(u32, u32),
    Start(u32, u32),
    Complete(u32, u32),
}

struct World<'a> {
    scene: &'a Scene,
    habits: &'a Habits,
    node: Dispatch,
    cars: Vec<Car>,
    rides: Vec<RideDay>,
    ride_of: Vec<Option<RideId>>,
    wish_of: HashMap<RideId, u32>,
    plans: BinaryHeap<Reverse<(Time, u64, Plan)>>,
    planned: u64,
    said: u64,
    unasked: usize,
    open: usize,
    rng: SmallRng,
    audit: Option<Audit>,
    events: u64,
    offer_gap_min_ms: Option<i64>,
    camera: Option<&'a mut Camera>,
}

/// Told how far a run is: virtual time, rides asked for so far.
pub type OnProgress<'a> = &'a mut dyn FnMut(Time, usize);

/// Plays the scene to its end: until nobody asks any more and every ride has ended.
pub fn play(
    scene: &Scene,
    rules: NodeRules,
    habits: &Habits,
    seed: u64,
    audited: bool,
    progress: OnProgress<'_>,
) -> Result<Day, BadNode> {
    play_filmed(scene, rules, habits, seed, audited, progress, None)
}

/// As [`play`], before a camera.
pub fn play_filmed(
    scene: &Scene,
    rules: NodeRules,
    habits: &Habits,
    seed: u64,
    audited: bool,
    progress: OnProgress<'_>,
    camera: Option<&mut Camera>,
) -> Result<Day, BadNode> {
    let drivers: Vec<DriverId> = scene.cars.iter().map(|car| car.driver.clone()).collect();
    let begins = scene.begins();
    let mut world = World {
        scene,
        habits,
        node: Dispatch::new(rules, drivers, begins)?,
        cars: scene.cars.iter().map(Car::new).collect(),
        rides: scene.wishes.iter().map(RideDay::of).collect(),
        ride_of: vec![None; scene.wishes.len()],
        wish_of: HashMap::new(),
        plans: BinaryHeap::new(),
        planned: 0,
        said: 0,
        unasked: scene.wishes.len(),
        open: 0,
        rng: SmallRng::seed_from_u64(seed),
        audit: audited.then(|| {
            Audit::new(AuditOptions {
                complete: true,
                ..AuditOptions::default()
            })
        }),
        events: 0,
        offer_gap_min_ms: None,
        camera,
    };
    for (n, wish) in (0..).zip(&scene.wishes) {
        world.plan(wish.at, Plan::Ask(n));
    }
    for (n, car) in (0..).zip(&scene.cars) {
        world.plan(car.from, Plan::Begin(n));
    }
    let ends = world.run(begins, progress);
    Ok(world.day(begins, ends))
}

impl World<'_> {
    fn run(&mut self, begins: Time, progress: OnProgress<'_>) -> Time {
        let mut now = begins;
        loop {
            let planned = self.plans.peek().map(|Reverse((at, _, _))| *at);
            let Some(next) = planned.into_iter().chain(self.node.poll_time()).min() else {
                return now;
            };
            now = now.max(next);
            self.film_until(now);
            self.node.set_speed(self.habits.speeds.at(now));
            while let Some(Reverse((at, _, plan))) = self.plans.peek().copied()
                && at <= now
            {
                self.plans.pop();
                self.carry_out(now, plan);
            }
            let events = self.node.handle_time(now);
            for record in &events {
                self.hear(now, record);
            }
            if self.unasked == 0 && self.open == 0 {
                return now;
            }
            progress(now, self.rides.len() - self.unasked);
        }
    }

    /// Draws what is due before anything else happens at `now`.
    fn film_until(&mut self, now: Time) {
        let Some(camera) = &mut self.camera else {
            return;
        };
        while camera.poll_draw() < now {
            let due = camera.poll_draw();
            for car in self.cars.iter().filter(|car| car.job != Job::Home) {
                camera.handle_place(&car.driver, car.at(due), due);
            }
            camera.draw(due);
        }
    }

    fn plan(&mut self, at: Time, plan: Plan) {
        self.planned += 1;
        self.plans.push(Reverse((at, self.planned, plan)));
    }

    fn say(&mut self, now: Time, command: Command) {
        self.said += 1;
        let record = external(self.said, now, command);
        self.node.handle_command(now, &record);
    }

    // -- what people do --------------------------------------------------------------------------------------

    fn carry_out(&mut self, now: Time, plan: Plan) {
        match plan {
            Plan::Ask(n) => self.ask(now, n),
            Plan::GiveUp(n) => self.give_up(now, n),
            Plan::Begin(n) => self.begin(now, n),
            Plan::Ping(n) => {
                if self.cars[n as usize].job != Job::Home {
                    self.ping(now, n);
                    self.plan(now.plus_ms(self.habits.ping_every_ms), Plan::Ping(n));
                }
            }
            Plan::Leave(n) => self.leave(now, n),
            Plan::Answer(n, turn) => self.answer(now, n, turn),
            Plan::Consent(n, turn) => self.consent(now, n, turn),
            Plan::Arrive(n, turn) => {
                self.report(now, n, turn, |hold, driver| Command::Arrive {
                    hold,
                    driver,
                });
            }
            Plan::Start(n, turn) => {
                self.report(now, n, turn, |hold, driver| Command::StartRide {
                    hold,
                    driver,
                });
            }
            Plan::Complete(n, turn) => {
                self.report(now, n, turn, |hold, driver| Command::CompleteRide {
                    hold,
                    driver,
                });
            }
        }
    }

    fn ask(&mut self, now: Time, n: u32) {
        self.unasked -= 1;
        let wish = &self.scene.wishes[n as usize];
        let command = Command::RequestRide {
            rider: rider(n),
            key: key(n),
            pickup: Place(wish.pickup),
            dropoff: wish.dropoff.map(Place),
            class: VehicleClass::Economy,
            zone: None,
            airport: None,
        };
        if let Some(patience_ms) = wish.patience_ms {
            self.plan(now.plus_ms(patience_ms), Plan::GiveUp(n));
        }
        self.say(now, command);
    }

    fn give_up(&mut self, now: Time, n: u32) {
        let day = &self.rides[n as usize];
        if day.started.is_some() || day.ended.is_some() {
            return;
        }
        if let Some(ride) = self.ride_of[n as usize] {
            let command = Command::CancelRide {
                ride,
                by: CancelledBy::Rider,
                reason: None,
                rider: Some(rider(n)),
            };
            self.say(now, command);
        }
    }

    fn begin(&mut self, now: Time, n: u32) {
        let car = &mut self.cars[n as usize];
        car.turn_to(now, Job::Free);
        let command = Command::GoOnline {
            driver: car.driver.clone(),
            session: car.session,
            classes: ClassSet::default(),
        };
        if let Some(until) = car.until {
            self.plan(until.max(now), Plan::Leave(n));
        }
        self.say(now, command);
        self.ping(now, n);
        // Spread over the interval, so that a fleet does not ping in one breath.
        let first = self.rng.random_range(1..=self.habits.ping_every_ms.max(1));
        self.plan(now.plus_ms(first), Plan::Ping(n));
    }

    fn leave(&mut self, now: Time, n: u32) {
        let car = &mut self.cars[n as usize];
        if car.job != Job::Free || car.until.is_none_or(|until| until > now) {
            return; // looked at again when the ride is over
        }
        car.turn_to(now, Job::Home);
        let command = Command::GoOffline {
            driver: car.driver.clone(),
            session: car.session,
        };
        self.say(now, command);
    }

    fn ping(&mut self, now: Time, n: u32) {
        let car = &mut self.cars[n as usize];
        car.pings += 1;
        let (at, seq) = (car.at(now), car.pings);
        self.node.handle_ping(n, at, now, seq);
    }

    fn answer(&mut self, now: Time, n: u32, turn: u32) {
        let car = &self.cars[n as usize];
        let Job::Asked(work) = car.job else { return };
        if car.turn != turn {
            return;
        }
        let (hold, driver) = (work.hold, car.driver.clone());
        if self.rng.random_bool(self.habits.accept.clamp(0.0, 1.0)) {
            self.say(now, Command::AcceptOffer { hold, driver });
        } else {
            self.say(now, Command::DeclineOffer { hold, driver });
            self.become_free(now, n);
        }
    }

    /// Drivers who are asked about an exchange (`swap_consent = "ask"`) agree as often as they accept offers.
    fn consent(&mut self, now: Time, n: u32, turn: u32) {
        let car = &self.cars[n as usize];
        let Job::Fetching(work) = car.job else { return };
        if car.turn != turn {
            return;
        }
        let (hold, driver) = (work.hold, car.driver.clone());
        let agrees = self.rng.random_bool(self.habits.accept.clamp(0.0, 1.0));
        let command = match agrees {
            true => Command::AcceptOffer { hold, driver },
            false => Command::DeclineOffer { hold, driver },
        };
        self.say(now, command);
    }

    fn report(
        &mut self,
        now: Time,
        n: u32,
        turn: u32,
        command: impl FnOnce(HoldId, DriverId) -> Command,
    ) {
        let car = &self.cars[n as usize];
        if car.turn == turn
            && let Some(work) = car.job.work()
        {
            let command = command(work.hold, car.driver.clone());
            self.ping(now, n);
            self.say(now, command);
        }
    }

    fn become_free(&mut self, now: Time, n: u32) {
        let car = &mut self.cars[n as usize];
        car.turn_to(now, Job::Free);
        if car.until.is_some_and(|until| until <= now) {
            self.plan(now, Plan::Leave(n));
        }
        self.ping(now, n);
    }

    // -- what people hear ------------------------------------------------------------------------------------

    fn hear(&mut self, now: Time, record: &EventRecord) {
        self.events += 1;
        if let Some(audit) = &mut self.audit {
            audit.event("events", record.shard.0, record.seq - 1, &record.to_json());
        }
        if let Some(camera) = &mut self.camera {
            camera.handle_event(record);
        }
        match &record.event {
            Event::RideRequested(e) => {
                self.open += 1;
                if let Some(n) = wish_of(&e.rider) {
                    self.ride_of[n as usize] = Some(e.ride);
                    self.wish_of.insert(e.ride, n);
                }
            }
            Event::OfferMade(e) => self.offered(now, e.ride, e.attempt, &e.driver),
            Event::DriverAssigned(e) => {
                if let Some(day) = self.ride_day(e.ride) {
                    day.assigned.get_or_insert(now);
                }
                self.set_off(now, e.ride, e.attempt, &e.driver);
            }
            Event::SwapAsked(e) => {
                if let Some((n, turn)) = self.on_ride(e.ride, &e.driver) {
                    let answer = now.plus_ms(self.answer_after_ms());
                    self.plan(answer, Plan::Consent(n, turn));
                }
            }
            Event::DriverReassigned(e) => {
                if let Some(day) = self.ride_day(e.ride) {
                    day.swaps += 1;
                }
                self.parted(now, e.ride, &e.before);
                self.set_off(now, e.ride, e.attempt, &e.driver);
            }
            Event::DriverReleased(e) => {
                let hold = HoldId {
                    ride: e.ride,
                    attempt: e.attempt,
                };
                self.released(now, hold, &e.driver);
            }
            Event::DriverArrived(e) => {
                if let Some((n, turn)) = self.on_ride(e.ride, &e.driver) {
                    self.plan(now.plus_ms(self.habits.board_ms), Plan::Start(n, turn));
                }
            }
            Event::RideStarted(e) => self.started(now, e.ride, &e.driver),
            _ => {}
        }
        if let Some(end) = record.event.end() {
            self.open -= 1;
            if let EntityId::Ride(ride) = record.event.entity()
                && let Some(day) = self.ride_day(ride)
            {
                day.ended = Some((now, end));
            }
        }
    }

    fn ride_day(&mut self, ride: RideId) -> Option<&mut RideDay> {
        let n = *self.wish_of.get(&ride)?;
        self.rides.get_mut(n as usize)
    }

    fn work(&self, ride: RideId, attempt: u32) -> Option<Work> {
        let wish = *self.wish_of.get(&ride)?;
        Some(Work {
            hold: HoldId { ride, attempt },
            wish,
            pickup: self.scene.wishes[wish as usize].pickup,
        })
    }

    /// The car of a driver whose ride this is, and its turn.
    fn on_ride(&self, ride: RideId, driver: &DriverId) -> Option<(u32, u32)> {
        let n = self.node.number(driver)?;
        let car = &self.cars[n as usize];
        let is_it = car.job.work().is_some_and(|work| work.hold.ride == ride);
        is_it.then_some((n, car.turn))
    }

    fn offered(&mut self, now: Time, ride: RideId, attempt: u32, driver: &DriverId) {
        let (Some(n), Some(work)) = (self.node.number(driver), self.work(ride, attempt)) else {
            return;
        };
        self.rides[work.wish as usize].offers += 1;
        let car = &mut self.cars[n as usize];
        if let Some(last) = car.last_offer.replace(now) {
            let gap = now.since(last);
            let least = self.offer_gap_min_ms.get_or_insert(gap);
            *least = gap.min(*least);
        }
        car.meter.offers += 1;
        let turn = car.turn_to(now, Job::Asked(work));
        let (hold, driver) = (work.hold, car.driver.clone());
        self.say(now, Command::ReceiveOffer { hold, driver });
        let answer = now.plus_ms(self.answer_after_ms());
        self.plan(answer, Plan::Answer(n, turn));
    }

    fn answer_after_ms(&mut self) -> u64 {
        let mean = self.habits.answer_ms;
        self.rng.random_range(mean / 2..=mean + mean / 2)
    }

    fn set_off(&mut self, now: Time, ride: RideId, attempt: u32, driver: &DriverId) {
        let (Some(n), Some(work)) = (self.node.number(driver), self.work(ride, attempt)) else {
            return;
        };
        let car = &mut self.cars[n as usize];
        let turn = car.turn_to(now, Job::Fetching(work));
        let takes_ms = drive_ms(car.at(now), work.pickup, self.habits.speeds.at(now));
        car.drive(now, work.pickup, takes_ms);
        self.ping(now, n);
        self.plan(now.plus_ms(takes_ms), Plan::Arrive(n, turn));
    }

    /// Another driver fetches this one's rider.
    fn parted(&mut self, now: Time, ride: RideId, driver: &DriverId) {
        if let Some((n, _)) = self.on_ride(ride, driver) {
            self.become_free(now, n);
        }
    }

    fn released(&mut self, now: Time, hold: HoldId, driver: &DriverId) {
        let Some(n) = self.node.number(driver) else {
            return;
        };
        let held = self.cars[n as usize].job.work().map(|work| work.hold);
        if held == Some(hold) {
            self.become_free(now, n);
        }
    }

    fn started(&mut self, now: Time, ride: RideId, driver: &DriverId) {
        if let Some(day) = self.ride_day(ride) {
            day.started.get_or_insert(now);
        }
        let Some((n, _)) = self.on_ride(ride, driver) else {
            return;
        };
        let car = &mut self.cars[n as usize];
        let Some(work) = car.job.work() else { return };
        let turn = car.turn_to(now, Job::Riding(work));
        car.meter.rides += 1;
        let wish = &self.scene.wishes[work.wish as usize];
        let to = wish.dropoff.unwrap_or(wish.pickup);
        let straight = drive_ms(wish.pickup, to, self.habits.speeds.at(now));
        let takes_ms = wish.ride_ms.unwrap_or(straight);
        car.drive(now, to, takes_ms);
        self.ping(now, n);
        self.plan(now.plus_ms(takes_ms), Plan::Complete(n, turn));
    }

    // -- the end ---------------------------------------------------------------------------------------------

    fn day(mut self, begins: Time, ends: Time) -> Day {
        for car in &mut self.cars {
            let job = car.job;
            car.turn_to(ends, job);
        }
        Day {
            begins,
            ends,
            rides: self.rides,
            cars: self.cars.iter().map(|car| car.meter).collect(),
            rounds: std::mem::take(&mut self.node.rounds),
            events: self.events,
            commands: self.said,
            offer_gap_min_ms: self.offer_gap_min_ms,
            audit: self.audit.map(Audit::finish),
        }
    }
}

fn drive_ms(from: Point, to: Point, speed_mps: f64) -> u64 {
    (from.distance_m(to) / speed_mps * 1_000.0) as u64
}

fn rider(n: u32) -> RiderId {
    RiderId::new(&format!("r{n}")).expect("a letter and digits are an id")
}

fn wish_of(rider: &RiderId) -> Option<u32> {
    rider.as_str().strip_prefix('r')?.parse().ok()
}

fn key(n: u32) -> IdempotencyKey {
    IdempotencyKey::new(&format!("k{n}")).expect("a letter and digits are a key")
}
