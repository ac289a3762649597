//! What a driver does: pings, answers offers, fetches and brings riders. A [`Brain`] without socket or clock.
//!
//! Three kinds of movement. *Driven*: the car goes where the work is, in straight lines, and (in the demo) wanders to hot
//! spots while idle. *Recorded*: the car goes where the trace went, and every report is sent as it stands; the phone
//! reports arrival and end by rule, although the car is elsewhere:
//!
//! - A recorded cab is online while its reports say `occupied=0` and offline while they say 1. A report that ends
//!   availability is sent before `offline`, one that begins it after `online`; reports while offline are sent, too
//!   (and refused as `not_online`). With a ride of ours the flag is ignored until the ride's end.
//! - It arrives after the straight line from its last report to the pickup at `speed_m_s`; the rider gets in after `board_ms`.
//! - The ride lasts as recorded, else its straight line at `speed_m_s`.
//! - After its last report, and without a ride, it goes offline and hangs up.
//!
//! Who has just lost a ride by an exchange waits [`SWAP_NEWS_MS`] before going home: the ride that takes its place is told
//! in the next message.

use std::sync::Arc;

use cabrank_events::wire::{Ping, RideStage};
use cabrank_events::{HoldId, Place, Time};
use cabrank_geo::Point;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::city::City;
use crate::client::phone::{Brain, Do, Heard, Say, is_under_way};
use crate::trace::Report;

/// How long a ride from here to there lasts, in ms, where that is recorded.
pub type RideLength = Arc<dyn Fn(Place, Option<Place>) -> Option<u64> + Send + Sync>;

/// After an exchange took a ride away, another one may follow for so long: a round's rhythm, in domain time.
pub const SWAP_NEWS_MS: i64 = 10_000;

/// What a driver is like. Shares are 0 to 1.
#[derive(Clone, Debug)]
pub struct Manners {
    /// Offers declined.
    pub decline: f64,
    /// Offers left unanswered (half of them not even received).
    pub ignore: f64,
    /// Accepted rides given back on the way to the pickup.
    pub give_back: f64,
    /// Between an offer and its answer, ms.
    pub think_ms: std::ops::RangeInclusive<u64>,
    /// Between the arrival and the rider sitting in the car, ms.
    pub board_ms: std::ops::RangeInclusive<u64>,
    /// Mean time between two losses of signal, ms; 0 = never.
    pub lose_signal_every_ms: u64,
    /// How long a loss lasts, ms.
    pub lose_signal_ms: std::ops::RangeInclusive<u64>,
    /// Speed on the road, metres a second.
    pub speed_m_s: std::ops::RangeInclusive<f64>,
}

impl Manners {
    /// Takes every ride at once and never errs: for replays.
    pub fn obliging(speed_m_s: f64) -> Manners {
        Manners {
            decline: 0.0,
            ignore: 0.0,
            give_back: 0.0,
            think_ms: 0..=0,
            board_ms: 0..=0,
            lose_signal_every_ms: 0,
            lose_signal_ms: 0..=0,
            speed_m_s: speed_m_s..=speed_m_s,
        }
    }
}

/// How a car moves.
pub enum Movement {
    /// As its work takes it.
    Driven {
        /// Where it starts.
        start: Point,
        /// Where it wanders while idle; without a city it waits where it is.
        city: Option<Arc<City>>,
        /// A ping every so many ms (a taxi feed: 60,000), from 1,
        ping_every_ms: u64,
        /// ... and also at each change of the work (as a taxi's meter does).
        ping_at_changes: bool,
        /// Goes home at this time, or never.
        until: Option<Time>,
    },
    /// As a trace went. The reports are in order of time.
    Recorded {
        /// What is sent.
        reports: Vec<Report>,
    },
}

/// A straight way.
#[derive(Clone, Copy, Debug)]
struct Leg {
    from: Point,
    to: Point,
    depart: i64,
    arrive: i64,
}

impl Leg {
    fn standing(at: Point) -> Leg {
        Leg {
            from: at,
            to: at,
            depart: 0,
            arrive: 0,
        }
    }

    fn at(&self, now: i64) -> Point {
        if now >= self.arrive || self.arrive <= self.depart {
            return self.to;
        }
        let part = (now - self.depart).max(0) as f64 / (self.arrive - self.depart) as f64;
        let between = |from: i32, to: i32| {
            (f64::from(from) + (f64::from(to) - f64::from(from)) * part).round() as i32
        };
        let lat = between(self.from.lat_e7(), self.to.lat_e7());
        let lon = between(self.from.lon_e7(), self.to.lon_e7());
        Point::from_e7(lat, lon).unwrap_or(self.to)
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Work {
    hold: HoldId,
    pickup: Point,
    dropoff: Option<Place>,
}

/// Where a driver is in the life of one hold.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Job {
    Free,
    /// Asked; `answer` is given at that time, if ever.
    Asked(Work, Option<(i64, Say)>),
    /// Said yes, the outcome is open.
    Accepting(Work),
    /// On the way; gives the ride back at that time, if so minded.
    ToPickup(Work, i64, Option<i64>),
    AtPickup(Work, i64),
    Riding(Work, i64),
}

/// One driver.
pub struct Cabbie {
    manners: Manners,
    movement: Movement,
    ride_length: Option<RideLength>,
    rng: SmallRng,
    job: Job,
    leg: Leg,
    next_ping: Option<i64>,
    last_ping: Option<i64>,
    next_report: usize,
    /// The last report's flag.
    is_occupied: bool,
    is_online: bool,
    is_ending: bool,
    has_left: bool,
    /// Until then a ride may follow that takes the place of the one lost by an exchange.
    swap_news_until: Option<i64>,
    lose_signal_at: Option<i64>,
    seq: u32,
    /// The last hold this driver was done with: a view of it that comes late is no news.
    done_with: Option<HoldId>,
    /// On this socket the server has not yet said that the work at hand is still ours.
    is_unconfirmed: bool,
}

impl Cabbie {
    /// A driver who has not begun yet.
    pub fn new(
        manners: Manners,
        movement: Movement,
        ride_length: Option<RideLength>,
        seed: u64,
    ) -> Cabbie {
        let start = match &movement {
            Movement::Driven { start, .. } => *start,
            Movement::Recorded { reports } => {
                reports.iter().find_map(place_of).unwrap_or_else(somewhere)
            }
        };
        Cabbie {
            manners,
            movement,
            ride_length,
            rng: SmallRng::seed_from_u64(seed),
            job: Job::Free,
            leg: Leg::standing(start),
            next_ping: None,
            last_ping: None,
            next_report: 0,
            is_occupied: false,
            is_online: false,
            is_ending: false,
            has_left: false,
            swap_news_until: None,
            lose_signal_at: None,
            seq: 0,
            done_with: None,
            is_unconfirmed: false,
        }
    }

    fn travel_ms(&mut self, metres: f64) -> i64 {
        let speed = self
            .rng
            .random_range(self.manners.speed_m_s.clone())
            .max(0.1);
        (metres / speed * 1000.0) as i64
    }

    fn is_driven(&self) -> bool {
        matches!(self.movement, Movement::Driven { .. })
    }

    /// Sets off to `to`, arriving at `arrive`. A recorded car is not led anywhere.
    fn set_off(&mut self, now: i64, to: Point, arrive: i64) {
        if self.is_driven() {
            self.leg = Leg {
                from: self.leg.at(now),
                to,
                depart: now,
                arrive,
            };
        }
    }

    fn ping(&mut self, now: i64, out: &mut Vec<Do>) {
        if self.last_ping == Some(now) {
            return; // two changes in one instant are one position
        }
        self.last_ping = Some(now);
        let place = self.leg.at(now);
        self.seq += 1;
        out.push(Do::Ping(Ping {
            lat: place.lat_deg(),
            lon: place.lon_deg(),
            time: Some(now),
            seq: self.seq,
            accuracy: None,
        }));
    }

    fn ping_at_change(&mut self, now: i64, out: &mut Vec<Do>) {
        if let Movement::Driven {
            ping_at_changes: true,
            ping_every_ms,
            ..
        } = self.movement
        {
            self.ping(now, out);
            self.next_ping = Some(now + ping_every_ms as i64);
        }
    }

    fn go_online(&mut self, out: &mut Vec<Do>) {
        if !self.is_online {
            self.is_online = true;
            out.push(Do::Online);
        }
    }

    fn go_offline(&mut self, out: &mut Vec<Do>) {
        if self.is_online {
            self.is_online = false;
            out.push(Do::Offline);
        }
    }

    /// Ready for the next one, or not: after every change of job or flag.
    fn become_free(&mut self, now: i64, out: &mut Vec<Do>) {
        self.drop_job();
        self.follow_flag(out);
        if let Movement::Driven { city: None, .. } = self.movement {
            self.leg = Leg::standing(self.leg.at(now));
        }
    }

    fn drop_job(&mut self) {
        self.done_with = self.work().map(|work| work.hold).or(self.done_with);
        self.job = Job::Free;
    }

    /// A recorded cab without a ride of ours is available as its reports say.
    fn follow_flag(&mut self, out: &mut Vec<Do>) {
        let may_get_another = self.swap_news_until.is_some();
        if self.is_driven() || self.job != Job::Free || self.is_ending || may_get_another {
            return;
        }
        if self.is_occupied {
            self.go_offline(out)
        } else {
            self.go_online(out)
        }
    }

    fn report(&mut self, report: &Report, out: &mut Vec<Do>) {
        self.seq += 1;
        if let Some(place) = place_of(report) {
            self.leg = Leg::standing(place);
        }
        self.is_occupied = report.occupied;
        let ping = Do::Ping(Ping {
            lat: report.lat,
            lon: report.lon,
            time: Some(report.time.0),
            seq: self.seq,
            accuracy: None,
        });
        if report.occupied {
            out.push(ping);
            self.follow_flag(out);
        } else {
            self.follow_flag(out);
            out.push(ping);
        }
    }

    fn asked(&mut self, now: i64, work: Work, out: &mut Vec<Do>) {
        let received = Do::Say(Say::Received, work.hold);
        match self.job {
            Job::Asked(known, answer) if known.hold == work.hold => {
                // Made again, because it leads elsewhere now.
                self.job = Job::Asked(work, answer);
                return out.push(received);
            }
            Job::Accepting(known) | Job::ToPickup(known, ..) if known.hold == work.hold => return,
            _ if self.is_ending || !self.is_online || self.has_left => {
                out.push(received);
                out.push(Do::Say(Say::Decline, work.hold));
                return;
            }
            _ => {}
        }
        let manners = &self.manners;
        let chance: f64 = self.rng.random_range(0.0..1.0);
        let think = self.rng.random_range(manners.think_ms.clone()) as i64;
        if chance < manners.ignore / 2.0 {
            self.job = Job::Asked(work, None);
            return;
        }
        out.push(received);
        if chance < manners.ignore {
            self.job = Job::Asked(work, None);
            return;
        }
        let say = if chance < manners.ignore + manners.decline {
            Say::Decline
        } else {
            Say::Accept
        };
        self.job = Job::Asked(work, Some((now + think, say)));
        if think == 0 {
            self.step_job(now, out);
        }
    }

    fn assigned(&mut self, now: i64, work: Work, out: &mut Vec<Do>) {
        let way = self.leg.at(now).distance_m(work.pickup);
        let arrive = now + self.travel_ms(way);
        let gives_back = self.rng.random_bool(self.manners.give_back.clamp(0.0, 1.0));
        let give_back = gives_back.then(|| now + self.rng.random_range(1_000..20_000));
        self.job = Job::ToPickup(work, arrive, give_back);
        self.set_off(now, work.pickup, arrive);
        self.ping_at_change(now, out);
        if self.is_ending {
            self.finish_at_once(out);
        }
    }

    /// Does what the job wants done by now; answers whether something was.
    fn step_job(&mut self, now: i64, out: &mut Vec<Do>) -> bool {
        match self.job {
            Job::Asked(work, Some((at, say))) if at <= now => {
                out.push(Do::Say(say, work.hold));
                if say == Say::Accept {
                    self.job = Job::Accepting(work);
                } else {
                    self.become_free(now, out);
                }
            }
            Job::ToPickup(work, arrive, Some(give_back)) if give_back <= now.min(arrive) => {
                out.push(Do::Say(Say::Cancel, work.hold));
                self.become_free(now, out);
            }
            Job::ToPickup(work, arrive, _) if arrive <= now => {
                out.push(Do::Say(Say::Arrived, work.hold));
                self.ping_at_change(now, out);
                let board = self.rng.random_range(self.manners.board_ms.clone()) as i64;
                self.job = Job::AtPickup(work, arrive + board);
            }
            Job::AtPickup(work, start) if start <= now => {
                out.push(Do::Say(Say::Started, work.hold));
                let to = work.dropoff.map_or(work.pickup, |dropoff| dropoff.0);
                let straight = self.travel_ms(work.pickup.distance_m(to));
                let recorded = self
                    .ride_length
                    .as_ref()
                    .and_then(|length| length(Place(work.pickup), work.dropoff));
                let lasts = recorded.map_or(straight, |ms| ms as i64);
                self.job = Job::Riding(work, start + lasts);
                self.set_off(now, to, start + lasts);
                self.ping_at_change(now, out);
            }
            Job::Riding(work, complete) if complete <= now => {
                out.push(Do::Say(Say::Completed, work.hold));
                self.ping_at_change(now, out);
                self.become_free(now, out);
            }
            _ => return false,
        }
        true
    }

    /// The run is over: what is open is ended without driving there.
    fn finish_at_once(&mut self, out: &mut Vec<Do>) {
        let (hold, done) = match self.job {
            Job::ToPickup(work, ..) => (work.hold, 0),
            Job::AtPickup(work, _) => (work.hold, 1),
            Job::Riding(work, _) => (work.hold, 2),
            Job::Asked(work, _) => {
                out.push(Do::Say(Say::Decline, work.hold));
                self.drop_job();
                return;
            }
            Job::Free | Job::Accepting(_) => return,
        };
        for say in [Say::Arrived, Say::Started, Say::Completed]
            .into_iter()
            .skip(done)
        {
            out.push(Do::Say(say, hold));
        }
        self.drop_job();
    }

    /// Takes over a ride the server says is this driver's and this phone knows nothing of.
    fn adopt(&mut self, now: i64, work: Work, stage: RideStage, out: &mut Vec<Do>) {
        match stage {
            RideStage::Arrived => self.job = Job::AtPickup(work, now),
            RideStage::Started => {
                let to = work.dropoff.map_or(work.pickup, |dropoff| dropoff.0);
                let complete = now + self.travel_ms(work.pickup.distance_m(to));
                self.job = Job::Riding(work, complete);
                self.set_off(now, to, complete);
            }
            _ => self.assigned(now, work, out),
        }
        if self.is_ending {
            self.finish_at_once(out);
        }
    }

    /// The rider of this very ride wants to be brought elsewhere: a car with the rider in it turns there.
    fn led_elsewhere(&mut self, now: i64, work: Work) {
        let is_news = |known: &Work| known.hold == work.hold && known.dropoff != work.dropoff;
        match self.job {
            Job::ToPickup(known, arrive, give_back) if is_news(&known) => {
                self.job = Job::ToPickup(work, arrive, give_back);
            }
            Job::AtPickup(known, start) if is_news(&known) => {
                self.job = Job::AtPickup(work, start);
            }
            Job::Riding(known, _) if is_news(&known) => {
                let to = work.dropoff.map_or(work.pickup, |dropoff| dropoff.0);
                let from = self.leg.at(now);
                let complete = now + self.travel_ms(from.distance_m(to));
                self.job = Job::Riding(work, complete);
                self.set_off(now, to, complete);
            }
            Job::Free
            | Job::Asked(..)
            | Job::Accepting(_)
            | Job::ToPickup(..)
            | Job::AtPickup(..)
            | Job::Riding(..) => {}
        }
    }

    fn over(&mut self, now: i64, hold: HoldId, out: &mut Vec<Do>) {
        if self.work().is_some_and(|work| work.hold == hold) {
            self.become_free(now, out);
        }
    }

    fn swapped(&mut self, now: i64, hold: HoldId, out: &mut Vec<Do>) {
        if self.work().is_some_and(|work| work.hold == hold) {
            self.swap_news_until = Some(now + SWAP_NEWS_MS);
            self.become_free(now, out);
        }
    }

    fn confirm(&mut self, hold: HoldId) {
        if self.work().is_some_and(|work| work.hold == hold) {
            self.is_unconfirmed = false;
        }
    }

    fn work(&self) -> Option<Work> {
        match self.job {
            Job::Free => None,
            Job::Asked(work, _)
            | Job::Accepting(work)
            | Job::ToPickup(work, ..)
            | Job::AtPickup(work, _)
            | Job::Riding(work, _) => Some(work),
        }
    }

    fn wander(&mut self, now: i64) {
        let Movement::Driven {
            city: Some(city), ..
        } = &self.movement
        else {
            return;
        };
        if self.job == Job::Free && now >= self.leg.arrive {
            let to = city.wish(now, &mut self.rng);
            let way = self.leg.at(now).distance_m(to);
            let arrive = now + self.travel_ms(way).max(1);
            self.set_off(now, to, arrive);
        }
    }

    /// Is the day's work done?
    fn may_leave(&self, now: i64) -> bool {
        let day_is_over = match &self.movement {
            Movement::Driven { until, .. } => until.is_some_and(|until| until.0 <= now),
            Movement::Recorded { reports } => self.next_report >= reports.len(),
        };
        let may_get_another = self.swap_news_until.is_some();
        day_is_over && self.job == Job::Free && !self.has_left && !may_get_another
    }

    fn plan_signal_loss(&mut self, now: i64) {
        let every = self.manners.lose_signal_every_ms;
        self.lose_signal_at =
            (every > 0).then(|| now + self.rng.random_range(1..=2 * every.min(1 << 40)) as i64);
    }
}

impl Brain for Cabbie {
    fn begin(&mut self, now: Time, out: &mut Vec<Do>) {
        let now = now.0;
        self.plan_signal_loss(now);
        if let Movement::Driven { ping_every_ms, .. } = self.movement {
            self.go_online(out);
            self.ping(now, out);
            // Spread over the interval, so that a fleet does not ping in one breath.
            self.next_ping = Some(now + self.rng.random_range(1..=ping_every_ms.max(1)) as i64);
        }
        self.handle_time(Time(now), out);
    }

    fn poll_time(&self) -> Option<Time> {
        let job = match self.job {
            Job::Asked(_, Some((at, _))) => Some(at),
            Job::ToPickup(_, arrive, give_back) => Some(give_back.unwrap_or(arrive).min(arrive)),
            Job::AtPickup(_, at) | Job::Riding(_, at) => Some(at),
            Job::Free | Job::Asked(_, None) | Job::Accepting(_) => None,
        };
        let moves = match &self.movement {
            Movement::Recorded { reports } => {
                reports.get(self.next_report).map(|report| report.time.0)
            }
            Movement::Driven { until, city, .. } => {
                let wander = city.as_ref().filter(|_| self.job == Job::Free);
                let wander = wander.map(|_| self.leg.arrive);
                let is_done = !self.has_left && self.job == Job::Free;
                let home = until.filter(|_| is_done && self.swap_news_until.is_none());
                [wander, home.map(|home| home.0)]
                    .into_iter()
                    .flatten()
                    .min()
            }
        };
        let all = [
            job,
            moves,
            self.next_ping,
            self.lose_signal_at,
            self.swap_news_until,
        ];
        all.into_iter()
            .flatten()
            .min()
            .filter(|_| !self.is_ending)
            .map(Time)
    }

    fn handle_time(&mut self, now: Time, out: &mut Vec<Do>) {
        let now = now.0;
        if self.is_ending {
            return;
        }
        while let Movement::Recorded { reports } = &self.movement {
            let Some(report) = reports.get(self.next_report).filter(|r| r.time.0 <= now) else {
                break;
            };
            let report = report.clone();
            self.next_report += 1;
            self.report(&report, out);
        }
        while self.step_job(now, out) {}
        if self.swap_news_until.is_some_and(|until| until <= now) {
            self.swap_news_until = None;
            self.follow_flag(out);
        }
        self.wander(now);
        if let (Some(at), Movement::Driven { ping_every_ms, .. }) = (self.next_ping, &self.movement)
            && at <= now
        {
            // A ping that was missed while the phone slept is worth nothing: the next one is due after the newest.
            let every = (*ping_every_ms).max(1) as i64;
            self.next_ping = Some(at + every * ((now - at) / every + 1));
            self.ping(now, out);
        }
        if self.lose_signal_at.is_some_and(|at| at <= now) {
            let ms = self.rng.random_range(self.manners.lose_signal_ms.clone()) as i64;
            out.push(Do::LoseSignal {
                until: Time(now + ms),
            });
            self.plan_signal_loss(now + ms);
        }
        if self.may_leave(now) {
            self.has_left = true;
            self.next_ping = None;
            self.go_offline(out);
            out.push(Do::HangUp);
        }
    }

    fn handle_heard(&mut self, now: Time, heard: Heard<'_>, out: &mut Vec<Do>) {
        let now = now.0;
        match heard {
            Heard::Reconnected => self.is_unconfirmed = self.work().is_some(),
            Heard::Online => {
                // An offer that ended while nobody could tell us is not mentioned any more. Everything else goes on: the
                // answer to the next message says whether it is still ours.
                if self.is_unconfirmed
                    && let Job::Asked(work, _) = self.job
                {
                    self.over(now, work.hold, out);
                }
                self.is_unconfirmed = false;
            }
            Heard::Offer {
                hold,
                pickup,
                dropoff,
            } => {
                self.confirm(hold);
                self.asked(
                    now,
                    Work {
                        hold,
                        pickup: pickup.0,
                        dropoff,
                    },
                    out,
                );
            }
            Heard::Over(hold) => self.over(now, hold, out),
            Heard::Swapped(hold) => self.swapped(now, hold, out),
            Heard::Ride(view) => {
                let Some(attempt) = view.attempt else { return };
                let hold = HoldId {
                    ride: view.ride,
                    attempt,
                };
                self.confirm(hold);
                let work = Work {
                    hold,
                    pickup: view.pickup.0,
                    dropoff: view.dropoff,
                };
                // Cabbies change rides whenever they are asked to; a repeat is as good as the first answer.
                if view.swap_asked.is_some() && self.work().is_some_and(|work| work.hold == hold) {
                    out.push(Do::Say(Say::Accept, hold));
                }
                if view.stage.is_end() {
                    self.over(now, hold, out);
                } else if is_under_way(view) {
                    match self.job {
                        Job::Accepting(known) | Job::Asked(known, _) if known.hold == hold => {
                            self.adopt(now, work, view.stage, out);
                        }
                        Job::Free if self.done_with != Some(hold) => {
                            self.adopt(now, work, view.stage, out);
                        }
                        _ => self.led_elsewhere(now, work),
                    }
                }
            }
            Heard::Done(Say::Accept, hold) => match self.job {
                Job::Accepting(work) if work.hold == hold => self.assigned(now, work, out),
                _ => {}
            },
            Heard::Done(..) => {}
            // Whatever was refused, this hold is not ours any more.
            Heard::Refused(_, hold, _) => self.over(now, hold, out),
        }
        if self.may_leave(now) && !self.is_ending {
            self.handle_time(Time(now), out);
        }
    }

    fn handle_ending(&mut self, _now: Time, out: &mut Vec<Do>) {
        self.is_ending = true;
        self.finish_at_once(out);
    }
}

/// Where a report says the car is, if that is on Earth.
fn place_of(report: &Report) -> Option<Point> {
    Point::new(report.lat, report.lon).ok()
}

fn somewhere() -> Point {
    Point::from_e7(0, 0).expect("a constant inside the ranges")
}

#[cfg(test)]
mod tests;
