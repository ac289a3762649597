//! The last minutes as a film, from the log.
//!
//! Rides and what drivers did are read back from the events. Pings are in no log: cars are where the map last saw them while
//! somebody looked ([`Track`]), else where they fetched or put down a rider. What was before the part of the log that is read
//! is known by what is true now: a driver who is online and of whom no coming or going is read was online all the time.
//!
//! Bounds: [`EVENTS_MAX`] events, [`BYTES_MAX`] bytes of film, [`PLACES_MAX`] places; who asks too much gets the newest.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet, VecDeque};

use cabrank_engine::film::Camera;
use cabrank_events::command::EntityId;
use cabrank_events::{DriverId, Event, EventRecord, HoldId, RideId, Time};
use cabrank_geo::Point;
use cabrank_matcher::api::{Dispatch, EventsUnreadable};

use crate::config::MapConfig;

/// The newest events that are read.
const EVENTS_MAX: u64 = 200_000;
/// Read at once.
const READ_MAX: usize = 8_192;
/// Rides that began so long before the film are in it.
const LEAD_MS: u64 = 20 * 60_000;
/// From drawing to drawing.
const EVERY_MS: u64 = 5_000;
/// Of the film; beyond it drawings are left out.
const BYTES_MAX: usize = 16 << 20;
/// Places of cars that are kept, 16 bytes each; the oldest go first.
const PLACES_MAX: usize = 1_000_000;

/// Where cars were when the map was drawn, as far back as films go.
#[derive(Clone, Default)]
pub struct Track {
    /// Of cars that had moved since the entry before, oldest first.
    moves: VecDeque<(Time, Vec<(u32, Point)>)>,
    /// Where each was at the newest entry.
    last: HashMap<u32, Point>,
    places: usize,
}

impl Track {
    /// The map was drawn: takes the places in if some time has passed.
    pub fn note(&mut self, now: Time, places: HashMap<u32, Point>, kept_ms: u64) {
        let newest = self.moves.back().map(|(time, _)| *time);
        if newest.is_some_and(|newest| now < newest.plus_ms(EVERY_MS)) {
            return;
        }
        let has_moved = |(key, at): &(&u32, &Point)| self.last.get(*key) != Some(*at);
        let moved: Vec<_> = places
            .iter()
            .filter(has_moved)
            .map(|(key, at)| (*key, *at))
            .collect();
        self.places += moved.len();
        self.moves.push_back((now, moved));
        self.last = places;
        while self.moves.len() > 1
            && (self.places > PLACES_MAX
                || self
                    .moves
                    .front()
                    .is_some_and(|(time, _)| time.plus_ms(kept_ms) < now))
        {
            self.places -= self.moves.pop_front().map_or(0, |(_, moved)| moved.len());
        }
    }
}

/// What is read of a driver: how they were before.
#[derive(Default)]
struct Before {
    was_online: Option<bool>,
    hold: Option<Option<HoldId>>,
}

/// The film of the last `map.film_s` seconds. Reads the log: not for a thread that must not block.
pub fn make(
    dispatch: &dyn Dispatch,
    map: &MapConfig,
    keys: HashMap<DriverId, u32>,
    track: &Track,
) -> Result<Vec<u8>, EventsUnreadable> {
    let now = dispatch.now();
    let begins = Time(now.0.saturating_sub_unsigned(map.film_s * 1_000));
    let since = Time(begins.0.saturating_sub_unsigned(LEAD_MS));
    let events = read(dispatch, since)?;
    let mut camera = Camera::new(begins, EVERY_MS, map.silent_ms, BYTES_MAX);
    begin(&mut camera, dispatch, &events, &keys);
    let drivers: HashMap<u32, &DriverId> = keys.iter().map(|(id, key)| (*key, id)).collect();
    let mut moves = track.moves.iter().peekable();
    let mut draw_until = |camera: &mut Camera, until: Time| {
        while camera.poll_draw() <= until {
            let due = camera.poll_draw();
            while let Some((time, moved)) = moves.next_if(|(time, _)| *time <= due) {
                for (key, at) in moved {
                    if let Some(driver) = drivers.get(key) {
                        camera.handle_place(driver, *at, *time);
                    }
                }
            }
            camera.draw(due);
        }
    };
    for record in &events {
        // Drawn is what was before this event.
        draw_until(&mut camera, Time(record.time.0 - 1));
        camera.handle_event(record);
    }
    draw_until(&mut camera, now);
    Ok(camera.finish().to_bytes())
}

/// The newest events since then, in the order of time.
fn read(dispatch: &dyn Dispatch, since: Time) -> Result<Vec<EventRecord>, EventsUnreadable> {
    let mut cursor = dispatch.events_since(since, EVENTS_MAX);
    let mut events = Vec::new();
    // The log goes on growing meanwhile.
    while (events.len() as u64) < EVENTS_MAX {
        let page = dispatch.read_events(&cursor, READ_MAX)?;
        let Some(last) = page.last() else { break };
        cursor = last.after.clone();
        let records = page
            .iter()
            .filter_map(|read| EventRecord::from_json(&read.json).ok());
        events.extend(records.filter(|record| record.time >= since));
    }
    // Each shard has its own time; the sort keeps a shard's order.
    events.sort_by_key(|record| record.time);
    Ok(events)
}

/// What was before the first event.
fn begin(
    camera: &mut Camera,
    dispatch: &dyn Dispatch,
    events: &[EventRecord],
    keys: &HashMap<DriverId, u32>,
) {
    let mut drivers: HashMap<DriverId, Before> = HashMap::new();
    let mut rides: HashSet<RideId> = HashSet::new();
    for record in events {
        match record.event.entity() {
            EntityId::Ride(ride) => {
                rides.insert(ride);
            }
            EntityId::Driver(driver) => drivers.entry(driver).or_default().hear(&record.event),
            EntityId::Rider(_) | EntityId::Market => {}
        }
    }
    dispatch.each_driver(&mut |driver| {
        let Some(key) = keys.get(driver.id) else {
            return;
        };
        let before = match drivers.entry(driver.id.clone()) {
            Entry::Occupied(heard) => heard.remove(),
            Entry::Vacant(_) => Before::default(),
        };
        let was_online = before.was_online.unwrap_or(driver.view.session.is_some());
        let hold = before.hold.unwrap_or(driver.view.hold);
        camera.knows_driver(driver.id, *key, was_online, hold);
    });
    dispatch.each_ride(&mut |ride| {
        if !ride.stage.is_end() && !rides.contains(&ride.ride) {
            camera.knows_ride(ride.as_ref().clone());
        }
    });
}

impl Before {
    /// The first of each kind tells what was before it.
    fn hear(&mut self, event: &Event) {
        match event {
            Event::DriverOnline(_) => {
                self.was_online.get_or_insert(false);
            }
            Event::DriverOffline(_) => {
                self.was_online.get_or_insert(true);
            }
            Event::DriverHeld(_) => {
                self.hold.get_or_insert(None);
            }
            Event::DriverReleased(e) => {
                let hold = HoldId {
                    ride: e.ride,
                    attempt: e.attempt,
                };
                self.hold.get_or_insert(Some(hold));
            }
            _ => {}
        }
    }
}
