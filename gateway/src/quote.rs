//! When would a car be there, and how sure is that?
//!
//! A quote is the nearest free car's driving time, corrected by what became of rides asked for lately: for each the gateway
//! notes what it would have said, and when the car arrives, by how much that was wrong. The interval is the estimate plus
//! the quantiles of those errors, kept apart by how long the estimate is (split conformal prediction by group: Vovk et
//! al., Algorithmic Learning in a Random World, 2005, chapter 4). That holds while rides are alike; a city changes by the
//! hour, so each end moves out when more rides than it should have missed it, and back (adaptive conformal inference:
//! Gibbs and Candes, NeurIPS 2021). It promises a share of rides, not a bound, and only of those that are fetched; how
//! many are is told beside it.
//! Cost: one search of the live index for a quote, and for at most [`LEARN_PER_SECOND`] rides a second one more.
//! Bounds: [`NOTED_MAX`] rides under way and [`KEPT`] errors for each of [`GROUPS`] groups.
//! How often it is right in the end is counted (`cabrank_quotes_checked_total`) and is what `cabrank replay` checks.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use cabrank_events::command::RefusedBecause;
use cabrank_events::wire::{PickupTime, Quote, QuoteRequest};
use cabrank_events::zone::ZoneFinding;
use cabrank_events::{Event, Place, RideId, VehicleClass};
use cabrank_matcher::api::{Committed, NearbyQuery};
use tokio::task::JoinHandle;

use crate::access::Endpoint;
use crate::edge::Edge;
use crate::http::{Shared, body, json};
use crate::problem::Problem;
use crate::token::Caller;

/// Cars counted for a quote.
const CARS_MAX: usize = 20;
/// Rides a second from which is learned; they cost a search each.
const LEARN_PER_SECOND: u32 = 20;
/// Rides under way whose quote is remembered; nothing is learned of more.
const NOTED_MAX: usize = 20_000;
/// Errors kept of each group: the newest.
const KEPT: usize = 300;
/// Errors from which an interval may be taken.
const ENOUGH: usize = 30;
/// The share of rides the interval is to hold.
const SHARE: f64 = 0.8;
/// How far one ride moves the ends of the interval, as a part of all rides: some hundred to follow the city, each by little.
const STEP: f64 = 0.01;
/// Estimates from so many seconds on make a group of their own; the last group is for no car near.
const GROUPS_FROM_S: [f64; 5] = [0.0, 60.0, 120.0, 240.0, 480.0];
/// See [`GROUPS_FROM_S`].
const GROUPS: usize = GROUPS_FROM_S.len() + 1;

/// What is known before a ride is asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// Driving time of the nearest free car; absent: none is near.
    drive_s: Option<f64>,
    /// Free cars near, at most [`CARS_MAX`].
    cars: usize,
}

impl Estimate {
    fn group(self) -> usize {
        let Some(drive_s) = self.drive_s else {
            return GROUPS - 1;
        };
        let groups = GROUPS_FROM_S.iter().rposition(|from_s| drive_s >= *from_s);
        groups.unwrap_or(0)
    }

    /// What errors are counted from.
    fn base_s(self) -> f64 {
        self.drive_s.unwrap_or(0.0)
    }
}

/// What became of rides with estimates of one group, newest last; `None`: nobody fetched the rider.
#[derive(Default)]
struct Group(VecDeque<Option<f64>>);

impl Group {
    fn push(&mut self, error_s: Option<f64>) {
        if self.0.len() >= KEPT {
            self.0.pop_front();
        }
        self.0.push_back(error_s);
    }

    fn errors(&self) -> impl Iterator<Item = f64> + '_ {
        self.0.iter().copied().flatten()
    }
}

struct Noted {
    estimate: Estimate,
    told: Option<PickupTime>,
}

/// The parts of rides beyond each end of the interval, as the errors are asked for them: what makes the promise hold.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Beyond {
    sooner: f64,
    later: f64,
}

/// The part of rides that may be beyond each end.
const BEYOND: f64 = (1.0 - SHARE) / 2.0;

impl Default for Beyond {
    fn default() -> Self {
        Self {
            sooner: BEYOND,
            later: BEYOND,
        }
    }
}

impl Beyond {
    /// Moves both ends by what became of a ride: out when it was beyond, in by a little when it was not.
    fn learn(&mut self, was_sooner: bool, was_later: bool) {
        let moved = |part: f64, was_beyond: bool| {
            let missed = if was_beyond { 1.0 } else { 0.0 };
            (part + STEP * (BEYOND - missed)).clamp(0.0, 0.5 - STEP)
        };
        self.sooner = moved(self.sooner, was_sooner);
        self.later = moved(self.later, was_later);
    }
}

#[derive(Default)]
struct Book {
    groups: [Group; GROUPS],
    beyond: Beyond,
    under_way: HashMap<RideId, Noted>,
    /// The second, and how many rides were taken to learn from in it.
    second: (u64, u32),
}

/// What is learned of rides.
#[derive(Default)]
pub struct Quotes(Mutex<Book>);

/// The value at a part of sorted ones, by the rank that makes a conformal bound hold for one more of the same kind:
/// `ceil((n + 1) x part)` from below, or from above for the lower end.
fn quantile(sorted: &[f64], part: f64) -> f64 {
    let rank = (sorted.len() as f64 + 1.0) * part;
    // A part such as (1 - 0.8) / 2 is not quite a tenth: a whole rank must not fall to the next one by that.
    let rank = if part < 0.5 {
        (rank + 1e-9).floor()
    } else {
        (rank - 1e-9).ceil()
    };
    let at = (rank as usize).clamp(1, sorted.len()) - 1;
    sorted[at]
}

impl Book {
    /// Seconds until a car is there. Without a car near and without enough rides that were in the same place nothing
    /// honest can be said.
    fn pickup_time(&self, estimate: Estimate) -> Option<PickupTime> {
        let base_s = estimate.base_s();
        let own = &self.groups[estimate.group()];
        let mut errors: Vec<f64> = own.errors().collect();
        let mut outcomes = own.0.len();
        if errors.len() < ENOUGH {
            estimate.drive_s?;
            // All rides with a car near are a better guess than none.
            let near = &self.groups[..GROUPS - 1];
            errors = near.iter().flat_map(Group::errors).collect();
            outcomes = near.iter().map(|group| group.0.len()).sum();
        }
        if errors.len() < ENOUGH {
            let seconds = |value: f64| value.round() as u32;
            return Some(PickupTime {
                likely_s: seconds(base_s + 45.0),
                low_s: seconds(base_s * 0.7),
                high_s: seconds(base_s * 2.5 + 240.0),
                share: SHARE,
                rides: 0,
                fetched: None,
            });
        }
        errors.sort_unstable_by(f64::total_cmp);
        // The cast saturates; nobody is fetched before they ask.
        let at = |part: f64| (base_s + quantile(&errors, part)).max(0.0).round() as u32;
        Some(PickupTime {
            likely_s: at(0.5),
            low_s: at(self.beyond.sooner),
            high_s: at(1.0 - self.beyond.later),
            share: SHARE,
            rides: errors.len() as u32,
            fetched: Some(errors.len() as f64 / outcomes as f64),
        })
    }

    fn settle(&mut self, ride: RideId, took_s: Option<f64>) {
        let Some(noted) = self.under_way.remove(&ride) else {
            return;
        };
        let error_s = took_s.map(|took_s| took_s - noted.estimate.base_s());
        self.groups[noted.estimate.group()].push(error_s);
        let (Some(told), Some(took_s)) = (noted.told, took_s) else {
            return;
        };
        let (was_sooner, was_later) = (
            took_s < f64::from(told.low_s),
            took_s > f64::from(told.high_s),
        );
        // A wide guess says nothing about the errors.
        if told.rides > 0 {
            self.beyond.learn(was_sooner, was_later);
        }
        let within = match (was_sooner, was_later) {
            (true, _) => "sooner",
            (_, true) => "later",
            _ => "yes",
        };
        let basis = if told.rides == 0 { "guess" } else { "rides" };
        metrics::counter!("cabrank_quotes_checked_total", "within" => within, "basis" => basis)
            .increment(1);
    }
}

impl Quotes {
    fn book(&self) -> MutexGuard<'_, Book> {
        // What a panic leaves behind is as good as before: errors are whole or not there.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// May something be learned of one more ride? Asked before the ride is.
    pub fn takes(&self, wall_ms: u64) -> bool {
        let mut book = self.book();
        let second = wall_ms / 1_000;
        if book.second.0 != second {
            book.second = (second, 0);
        }
        book.second.1 += 1;
        book.second.1 <= LEARN_PER_SECOND && book.under_way.len() < NOTED_MAX
    }

    /// Remembers what would have been said before this ride was asked for.
    pub fn note(&self, ride: RideId, estimate: Estimate) {
        let mut book = self.book();
        if book.under_way.len() < NOTED_MAX {
            let told = book.pickup_time(estimate);
            book.under_way.insert(ride, Noted { estimate, told });
        }
    }

    /// Hears what became of rides. Runs on the node's thread.
    pub fn hear(&self, commits: &[Committed]) {
        let mut book = self.book();
        if book.under_way.is_empty() {
            return;
        }
        for committed in commits {
            let (event, ride) = (&committed.record.event, committed.ride.as_ref());
            match event {
                Event::DriverArrived(e) => {
                    if let Some(ride) = ride {
                        let took_ms = committed.record.time.since(ride.requested_at);
                        book.settle(e.ride, Some(took_ms as f64 / 1_000.0));
                    }
                }
                // A driver may report the start without the arrival.
                Event::RideStarted(e) => {
                    if let Some(ride) = ride {
                        let took_ms = committed.record.time.since(ride.requested_at);
                        book.settle(e.ride, Some(took_ms as f64 / 1_000.0));
                    }
                }
                Event::RideCancelled(e) => book.settle(e.ride, None),
                Event::RideUnfulfilled(e) => book.settle(e.ride, None),
                Event::RideCompleted(e) => book.settle(e.ride, None),
                _ => {}
            }
        }
    }

    /// The pickup time for an estimate.
    pub fn pickup_time(&self, estimate: Estimate) -> Option<PickupTime> {
        self.book().pickup_time(estimate)
    }
}

/// A look for the cars near that is under way.
pub type Learning = JoinHandle<Option<Estimate>>;

impl Edge {
    /// Looks for the cars near a place.
    pub async fn estimate(
        self: &Arc<Self>,
        at: Place,
        class: VehicleClass,
    ) -> Result<Estimate, Problem> {
        let query = NearbyQuery {
            at,
            // The node draws it in to its search radius.
            radius_m: f64::MAX,
            k: CARS_MAX.min(self.config.limits.nearby_max),
            class: Some(class),
        };
        let near = self.dispatch.nearby(&query).await?;
        if near.unconfirmed {
            return Err(Problem::busy(
                "the log cannot be reached, so nobody could ask for a ride either: ask again",
            ));
        }
        let drives = near
            .cars
            .iter()
            .map(|car| self.dispatch.travel_time_s(car.at, at));
        Ok(Estimate {
            drive_s: drives.min_by(f64::total_cmp),
            cars: near.cars.len(),
        })
    }

    /// Keeps what was found for a ride when it is there; nobody waits for it.
    pub fn note_when_known(self: &Arc<Self>, ride: RideId, estimate: Learning) {
        let edge = self.clone();
        tokio::spawn(async move {
            if let Ok(Some(estimate)) = estimate.await {
                edge.quotes.note(ride, estimate);
            }
        });
    }

    /// Begins to learn of a ride that is about to be asked for; what is found goes to [`Edge::note_when_known`] once
    /// its id is known.
    pub fn learn(self: &Arc<Self>, at: Place, class: VehicleClass) -> Option<Learning> {
        if !self.quotes.takes(self.wall_ms()) {
            return None;
        }
        let edge = self.clone();
        Some(tokio::spawn(
            async move { edge.estimate(at, class).await.ok() },
        ))
    }
}

/// `POST /v1/quote`
pub async fn quote(
    State(edge): Shared,
    headers: HeaderMap,
    bytes: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let verified = edge.authorize(Endpoint::Quote, &headers)?;
    if let Caller::Rider(rider) = &verified.caller {
        edge.count_request(rider)?;
    }
    let wish: QuoteRequest = body(&edge, bytes)?;
    let pickup_point = match edge.zones.finding(wish.pickup).map(|found| *found) {
        Some(ZoneFinding::OutOfArea) => return Err(RefusedBecause::OutOfArea.into()),
        Some(ZoneFinding::At(point)) => Some(point),
        None => None,
    };
    let pickup = pickup_point.as_ref().map_or(wish.pickup, |point| point.at);
    let estimate = edge.estimate(pickup, wish.class).await?;
    let drive_s = wish
        .dropoff
        .map(|dropoff| edge.dispatch.travel_time_s(pickup, dropoff).ceil() as u32);
    let quote = Quote {
        pickup,
        pickup_point,
        airport: edge.zones.airport(wish.pickup),
        cars_near: estimate.cars as u32,
        pickup_time: edge.quotes.pickup_time(estimate),
        drive_s,
        at: edge.dispatch.now(),
    };
    Ok(json(StatusCode::OK, &quote))
}

#[cfg(test)]
mod tests {
    use super::*;
    use cabrank_events::ShardId;

    fn ride(offset: u64) -> RideId {
        RideId {
            place: ShardId(0),
            minted_by: ShardId(0),
            offset,
        }
    }

    fn near(drive_s: f64) -> Estimate {
        Estimate {
            drive_s: Some(drive_s),
            cars: 1,
        }
    }

    const NONE_NEAR: Estimate = Estimate {
        drive_s: None,
        cars: 0,
    };

    /// Rides in the order they are given, each with an estimate and what it took.
    fn learned(rides: impl IntoIterator<Item = (Estimate, Option<f64>)>) -> Quotes {
        let quotes = Quotes::default();
        for (number, (estimate, took_s)) in (0..).zip(rides) {
            quotes.note(ride(number), estimate);
            quotes.book().settle(ride(number), took_s);
        }
        quotes
    }

    #[test]
    fn before_anything_is_learned_it_is_a_wide_guess_and_without_a_car_there_is_none() {
        let quotes = Quotes::default();
        let guess = quotes.pickup_time(near(100.0)).unwrap();
        assert_eq!((guess.rides, guess.fetched), (0, None));
        assert!(guess.low_s < 100 && guess.high_s > 400, "{guess:?}");
        assert_eq!(quotes.pickup_time(NONE_NEAR), None);
    }

    #[test]
    fn the_interval_holds_eight_of_ten_of_rides_like_those_it_learned_from() {
        // Errors of 1 to 99 s: of one more such ride 80 of 100 lie from the 10th to the 90th. All were under way at once, so
        // that none could be missed by what was said after another.
        let quotes = Quotes::default();
        for number in 1..100 {
            quotes.note(ride(number), near(70.0));
        }
        for number in 1..100 {
            quotes
                .book()
                .settle(ride(number), Some(70.0 + number as f64));
        }
        let told = quotes.pickup_time(near(70.0)).unwrap();
        assert_eq!((told.low_s, told.likely_s, told.high_s), (80, 120, 160));
        assert_eq!((told.rides, told.fetched), (99, Some(1.0)));
    }

    #[test]
    fn in_a_city_that_gets_slower_the_promise_holds_all_the_same() {
        // Each ride takes half a second longer than the one before, beside what luck adds: a rule that trusts the past
        // would be late for every second one.
        let took_s = |n: u64| 100.0 + (n * 37 % 100) as f64 + n as f64 / 2.0;
        let quotes = Quotes::default();
        let (mut within, mut later) = (0, 0);
        for n in 0..2_000 {
            quotes.note(ride(n), near(70.0));
            let told = quotes.pickup_time(near(70.0)).unwrap();
            quotes.book().settle(ride(n), Some(took_s(n)));
            if n >= 1_000 {
                within += u32::from(
                    took_s(n) >= f64::from(told.low_s) && took_s(n) <= f64::from(told.high_s),
                );
                later += u32::from(took_s(n) > f64::from(told.high_s));
            }
        }
        assert!(
            within >= 750 && later <= 150,
            "{within} of 1000 within, {later} later"
        );
    }

    #[test]
    fn short_and_long_estimates_learn_apart_and_the_newest_count() {
        let short = (0..50).map(|_| (near(30.0), Some(40.0)));
        let long = (0..50).map(|_| (near(600.0), Some(1_200.0)));
        let quotes = learned(short.chain(long));
        assert_eq!(quotes.pickup_time(near(30.0)).unwrap().likely_s, 40);
        assert_eq!(quotes.pickup_time(near(500.0)).unwrap().likely_s, 1_100);
        let before = (0..KEPT).map(|_| (near(30.0), Some(40.0)));
        let since = (0..KEPT).map(|_| (near(30.0), Some(90.0)));
        let quotes = learned(before.chain(since));
        assert_eq!(quotes.pickup_time(near(30.0)).unwrap().low_s, 90);
    }

    #[test]
    fn who_was_never_fetched_widens_nothing_but_is_told() {
        let rides = (0..80).map(|n| (NONE_NEAR, (n % 2 == 0).then_some(300.0)));
        let told = learned(rides).pickup_time(NONE_NEAR).unwrap();
        assert_eq!(
            (told.likely_s, told.rides, told.fetched),
            (300, 40, Some(0.5))
        );
    }

    #[test]
    fn learning_is_bounded_by_the_second() {
        let quotes = Quotes::default();
        let taken = (0..100).filter(|_| quotes.takes(5_000)).count();
        assert_eq!(taken as u32, LEARN_PER_SECOND);
        assert!(quotes.takes(6_000));
    }
}
