//! A car and the phone in it: where it is, what it does, what it has driven.
//!
//! Straight lines at the speed of the hour; while free it stands. What it does is told by the engine's events only; the
//! phone has no socket, and what it says is at once in the log.

use cabrank_events::{DriverId, HoldId, SessionId, Time};
use cabrank_geo::Point;

use crate::scene::Shift;

/// A straight way.
#[derive(Clone, Copy, Debug)]
struct Leg {
    from: Point,
    to: Point,
    depart: Time,
    arrive: Time,
}

impl Leg {
    fn standing(at: Point, now: Time) -> Leg {
        Leg {
            from: at,
            to: at,
            depart: now,
            arrive: now,
        }
    }

    fn at(&self, now: Time) -> Point {
        if now >= self.arrive {
            return self.to;
        }
        let part = now.since(self.depart).max(0) as f64 / self.arrive.since(self.depart) as f64;
        let between = |from: i32, to: i32| {
            (f64::from(from) + (f64::from(to) - f64::from(from)) * part).round() as i32
        };
        let lat = between(self.from.lat_e7(), self.to.lat_e7());
        let lon = between(self.from.lon_e7(), self.to.lon_e7());
        Point::from_e7(lat, lon).unwrap_or(self.to)
    }
}

/// A ride as its driver knows it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Work {
    /// The claim.
    pub hold: HoldId,
    /// Which wish.
    pub wish: u32,
    /// Where to fetch.
    pub pickup: Point,
}

/// What a car is doing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Job {
    /// Not at work.
    Home,
    /// At work, without a ride.
    Free,
    /// Asked; the answer is still to come, or was yes.
    Asked(Work),
    /// On the way to the pickup, or waiting there.
    Fetching(Work),
    /// With a rider.
    Riding(Work),
}

impl Job {
    /// The ride, if there is one.
    pub fn work(&self) -> Option<Work> {
        match self {
            Job::Home | Job::Free => None,
            Job::Asked(work) | Job::Fetching(work) | Job::Riding(work) => Some(*work),
        }
    }
}

/// What a car has done so far. Times in ms, ways in metres of straight line.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Meter {
    /// At work without a ride, offers included.
    pub idle_ms: i64,
    /// On the way to pickups and waiting there.
    pub fetching_ms: i64,
    /// With riders.
    pub riding_ms: i64,
    /// Ways to pickups, also those given up.
    pub empty_m: f64,
    /// Ways with riders.
    pub paid_m: f64,
    /// Offers shown.
    pub offers: u64,
    /// Rides begun.
    pub rides: u64,
}

impl Meter {
    /// At work, ms.
    pub fn online_ms(&self) -> i64 {
        self.idle_ms + self.fetching_ms + self.riding_ms
    }
}

/// One car.
#[derive(Clone, Debug)]
pub struct Car {
    /// Its driver.
    pub driver: DriverId,
    /// The session of its only shift.
    pub session: SessionId,
    /// When it goes home, once free.
    pub until: Option<Time>,
    /// What it does.
    pub job: Job,
    /// Counts the changes of job: what was planned for an earlier one is void.
    pub turn: u32,
    /// Numbers its pings.
    pub pings: u32,
    /// The last offer shown.
    pub last_offer: Option<Time>,
    /// What it has done.
    pub meter: Meter,
    leg: Leg,
    since: Time,
}

impl Car {
    /// A car before its shift.
    pub fn new(shift: &Shift) -> Car {
        Car {
            driver: shift.driver.clone(),
            session: SessionId(1),
            until: shift.until,
            job: Job::Home,
            turn: 0,
            pings: 0,
            last_offer: None,
            meter: Meter::default(),
            leg: Leg::standing(shift.start, shift.from),
            since: shift.from,
        }
    }

    /// Where it is.
    pub fn at(&self, now: Time) -> Point {
        self.leg.at(now)
    }

    /// Does something else from now on, standing where it is. Answers the new turn.
    pub fn turn_to(&mut self, now: Time, job: Job) -> u32 {
        let spent = now.since(self.since).max(0);
        let here = self.leg.at(now);
        let way = self.leg.from.distance_m(here);
        match self.job {
            Job::Home => {}
            Job::Free | Job::Asked(_) => self.meter.idle_ms += spent,
            Job::Fetching(_) => {
                self.meter.fetching_ms += spent;
                self.meter.empty_m += way;
            }
            Job::Riding(_) => {
                self.meter.riding_ms += spent;
                self.meter.paid_m += way;
            }
        }
        self.job = job;
        self.since = now;
        self.leg = Leg::standing(here, now);
        self.turn += 1;
        self.turn
    }

    /// Sets off; the job stays.
    pub fn drive(&mut self, now: Time, to: Point, takes_ms: u64) {
        self.leg = Leg {
            from: self.leg.at(now),
            to,
            depart: now,
            arrive: now.plus_ms(takes_ms),
        };
    }
}
