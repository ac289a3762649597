//! What did the city look like, a drawing every so often? A film from events and from places of cars.
//!
//! Rides and what drivers do are in the events. Where cars drive is in no log (pings are perishable): whoever knows says so by
//! [`Camera::handle_place`]. Beside that a car is where its rider was fetched or put down, which the events do say.
//!
//! Bounds: as large as the engine's memory of open rides and drivers; the film has its own ([`Film`]).

use std::collections::BTreeMap;

use cabrank_events::map::{FILM_KEYS_FROM, Film, Shown, Sketch, View};
use cabrank_events::wire::{RideStage, RideView};
use cabrank_events::{DriverId, Event, EventRecord, HoldId, RideId, Time};
use cabrank_geo::Point;

use crate::config::EngineConfig;
use crate::ride::{Bounds, Ride};

/// A driver as the film has it.
struct Car {
    key: u32,
    is_online: bool,
    hold: Option<HoldId>,
    at: Option<(Point, Time)>,
}

/// Hears what happens and draws it.
///
/// Hand in events and places in the order of their times, and call [`Camera::draw`] whenever [`Camera::poll_draw`] is due.
pub struct Camera {
    rides: BTreeMap<RideId, Ride>,
    /// Rides that no event is heard of.
    still: BTreeMap<RideId, RideView>,
    cars: BTreeMap<DriverId, Car>,
    next_key: u32,
    bounds: Bounds,
    every_ms: u64,
    /// A car whose place is older is drawn as silent, ms.
    silent_ms: u64,
    due: Time,
    film: Film,
}

impl Camera {
    /// A film of at most `bytes_max` bytes from `begins` on, a drawing every `every_ms`.
    pub fn new(begins: Time, every_ms: u64, silent_ms: u64, bytes_max: usize) -> Camera {
        Camera {
            rides: BTreeMap::new(),
            still: BTreeMap::new(),
            cars: BTreeMap::new(),
            next_key: FILM_KEYS_FROM,
            // What is remembered of a ride's past is not drawn.
            bounds: Bounds::of(&EngineConfig::default()),
            every_ms: every_ms.max(1),
            silent_ms,
            due: begins,
            film: Film::new(bytes_max),
        }
    }

    /// A driver as they were before the first event: their key on the live map, whether online, and the hold.
    pub fn knows_driver(
        &mut self,
        driver: &DriverId,
        key: u32,
        is_online: bool,
        hold: Option<HoldId>,
    ) {
        let car = Car {
            key,
            is_online,
            hold,
            at: None,
        };
        self.cars.insert(driver.clone(), car);
    }

    /// A ride of which there will be no event.
    pub fn knows_ride(&mut self, ride: RideView) {
        self.still.insert(ride.ride, ride);
    }

    fn car(&mut self, driver: &DriverId) -> &mut Car {
        if !self.cars.contains_key(driver) {
            self.next_key = self.next_key.saturating_add(1);
            self.knows_driver(driver, self.next_key - 1, false, None);
        }
        self.cars.get_mut(driver).expect("it was put there")
    }

    /// A car is or was there; of two places the newer one counts.
    pub fn handle_place(&mut self, driver: &DriverId, at: Point, time: Time) {
        let car = self.car(driver);
        if car.at.is_none_or(|(_, known)| known <= time) {
            car.at = Some((at, time));
        }
    }

    /// Something happened. Of rides whose request was not heard nothing is drawn.
    pub fn handle_event(&mut self, record: &EventRecord) {
        let event = &record.event;
        match event {
            Event::DriverOnline(e) => self.car(&e.driver).is_online = true,
            Event::DriverOffline(e) => self.car(&e.driver).is_online = false,
            Event::DriverForgotten(e) => drop(self.cars.remove(&e.driver)),
            Event::DriverHeld(e) => {
                let hold = HoldId {
                    ride: e.ride,
                    attempt: e.attempt,
                };
                self.car(&e.driver).hold = Some(hold);
            }
            Event::DriverReleased(e) => self.car(&e.driver).hold = None,
            _ => {}
        }
        if let Event::RideRequested(e) = event {
            self.rides.insert(e.ride, Ride::opened(e));
        }
        let cabrank_events::command::EntityId::Ride(id) = event.entity() else {
            return;
        };
        let Some(ride) = self.rides.get_mut(&id) else {
            return;
        };
        if !matches!(event, Event::RideRequested(_)) {
            ride.apply(event, &self.bounds);
        }
        let (pickup, dropoff) = (ride.pickup, ride.dropoff);
        let found = match event {
            Event::DriverArrived(e) => Some((&e.driver, pickup)),
            Event::RideStarted(e) => Some((&e.driver, pickup)),
            Event::RideCompleted(e) => Some((&e.driver, dropoff.unwrap_or(pickup))),
            _ => None,
        };
        if let Some((driver, place)) = found {
            self.handle_place(driver, place.0, record.time);
        }
        if event.end().is_some() {
            self.rides.remove(&id);
        }
    }

    /// When the next drawing is due.
    pub fn poll_draw(&self) -> Time {
        self.due
    }

    /// Draws the city as heard so far. The next drawing is due `every_ms` later.
    pub fn draw(&mut self, now: Time) {
        self.due = self.due.max(now).plus_ms(self.every_ms);
        let open = self.rides.values().map(Ride::view);
        let views: Vec<RideView> = open.chain(self.still.values().cloned()).collect();
        let stages: BTreeMap<RideId, RideStage> =
            views.iter().map(|ride| (ride.ride, ride.stage)).collect();
        let mut sketch = Sketch::default();
        for car in self.cars.values() {
            let stage = |ride| stages.get(&ride).copied();
            let shown = Shown::of(car.is_online, car.hold, stage);
            let age_ms = |(_, time): (Point, Time)| u64::try_from(now.since(time)).unwrap_or(0);
            let is_silent = car.at.is_some_and(|at| age_ms(at) > self.silent_ms);
            sketch.driver(car.key, shown, car.at.map(|(at, _)| at), is_silent);
        }
        for view in &views {
            let car = view.driver.as_ref().and_then(|id| self.cars.get(id));
            let at = car.and_then(|car| car.at).map(|(at, _)| at);
            sketch.ride(view, car.map(|car| car.key), at);
        }
        // Numbers of drawings matter to a page that asks for the next one only.
        let drawing = sketch.finish(0, self.every_ms, now);
        self.film.add(drawing.cut(Some(View::WHOLE), usize::MAX));
    }

    /// What was filmed.
    pub fn finish(self) -> Film {
        self.film
    }
}
