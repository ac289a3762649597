//! Rides of other nodes' shards, as this node's rounds see them.
//!
//! Where a city lies on several nodes, each decides for its own rides; but if it knew of no others, a car that comes free
//! would go to the first node that has anybody waiting within reach, not to the nearest rider. So nodes follow each other's
//! rides, too, where ownership cells are small, and leave a car to a rider of another node who is to have it
//! (`cabrank_engine::matching::others`). Nothing rests on it: what is missing or late here makes a round worse, not wrong.
//!
//! Bounded by the rides that wait or whose drivers are on the way, wherever they are; a round takes the near ones.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use cabrank_engine::EngineConfig;
use cabrank_engine::ride::{Ride, Stage};
use cabrank_events::RideId;
use cabrank_geo::Point;

use crate::rounds::{Asking, Going};

/// Metres, near enough for what is near what.
const EARTH_RADIUS_M: f64 = 6_371_000.0;

/// Rides that other nodes decide for.
#[derive(Debug, Default)]
pub(crate) struct OtherRides {
    pub waiting: Vec<Asking>,
    /// Their drivers are on the way.
    pub going: Vec<Going>,
}

impl OtherRides {
    pub fn len(&self) -> usize {
        self.waiting.len() + self.going.len()
    }
}

#[derive(Debug)]
enum Other {
    Waiting(Asking),
    Going(Going),
}

impl Other {
    /// `None`: it wants no car. One that begins at an airport is called from the queue there.
    fn of(ride: &Ride, engine: &EngineConfig) -> Option<Other> {
        match ride.stage {
            Stage::Waiting if ride.airport.is_none() => Some(Other::Waiting(Asking::of(ride))),
            Stage::EnRoute { .. } if ride.may_be_exchanged(engine) => {
                Going::of(ride).map(Other::Going)
            }
            Stage::Waiting
            | Stage::EnRoute { .. }
            | Stage::Claiming { .. }
            | Stage::Offered { .. }
            | Stage::Arrived { .. }
            | Stage::Started { .. }
            | Stage::Ended { .. } => None,
        }
    }
}

/// A cube of space: what is in no neighbouring one is farther away than its side.
type Cube = [i32; 3];

/// All of them.
#[derive(Debug)]
pub(crate) struct Elsewhere {
    /// Rides farther apart want no car together.
    side_m: f64,
    rides: Mutex<BTreeMap<RideId, (Cube, Other)>>,
}

impl Elsewhere {
    pub fn new(engine: &EngineConfig) -> Elsewhere {
        Elsewhere {
            side_m: 2.0 * f64::from(engine.radius_max_m).max(1.0),
            rides: Mutex::default(),
        }
    }

    fn rides(&self) -> MutexGuard<'_, BTreeMap<RideId, (Cube, Other)>> {
        self.rides.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known of a ride now; `None`: it is forgotten.
    pub fn show(&self, id: RideId, ride: Option<&Ride>, engine: &EngineConfig) {
        let other =
            ride.and_then(|ride| Some((self.cube(ride.pickup.0), Other::of(ride, engine)?)));
        let mut rides = self.rides();
        match other {
            Some(other) => _ = rides.insert(id, other),
            None => _ = rides.remove(&id),
        }
    }

    /// Forgets the rides of all but these shards.
    pub fn keep(&self, shards: &BTreeSet<u16>) {
        self.rides().retain(|id, _| shards.contains(&id.place.0));
    }

    /// Forgets the rides of a shard.
    pub fn forget(&self, shard: u16) {
        self.rides().retain(|id, _| id.place.0 != shard);
    }

    pub fn len(&self) -> usize {
        self.rides().len()
    }

    /// Those that may want the same cars as rides at these places, at most so many that wait and as many that do not.
    pub fn near(
        &self,
        places: impl Iterator<Item = Point>,
        waiting_most: usize,
        going_most: usize,
    ) -> OtherRides {
        let rides = self.rides();
        let mut others = OtherRides::default();
        if rides.is_empty() {
            return others;
        }
        let near: HashSet<Cube> = places.flat_map(|at| around(self.cube(at))).collect();
        for (cube, other) in rides.values() {
            if near.contains(cube) {
                match other {
                    Other::Waiting(ride) if others.waiting.len() < waiting_most => {
                        others.waiting.push(ride.clone());
                    }
                    Other::Going(ride) if others.going.len() < going_most => {
                        others.going.push(ride.clone());
                    }
                    Other::Waiting(_) | Other::Going(_) => {}
                }
            }
        }
        others
    }

    fn cube(&self, at: Point) -> Cube {
        let (lat, lon) = (at.lat_deg().to_radians(), at.lon_deg().to_radians());
        let place = [lat.cos() * lon.cos(), lat.cos() * lon.sin(), lat.sin()];
        place.map(|unit| (unit * EARTH_RADIUS_M / self.side_m).floor() as i32)
    }
}

/// The cube and those that touch it.
fn around([x, y, z]: Cube) -> impl Iterator<Item = Cube> {
    (0..27).map(move |n| [x + n % 3 - 1, y + n / 3 % 3 - 1, z + n / 9 - 1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_want_the_same_car_is_near_wherever_on_earth() {
        let elsewhere = Elsewhere::new(&EngineConfig::default());
        let reach_m = f64::from(EngineConfig::default().radius_max_m);
        for (lat, lon) in [
            (37.77, -122.42),
            (0.0, 179.999),
            (64.1, -21.9),
            (-89.9, 10.0),
        ] {
            let here = Point::new(lat, lon).unwrap();
            let near: HashSet<Cube> = around(elsewhere.cube(here)).collect();
            assert_eq!(near.len(), 27);
            for bearing in 0..16 {
                let angle = f64::from(bearing) * std::f64::consts::TAU / 16.0;
                let away = |m: f64| here.offset_m(m * angle.cos(), m * angle.sin());
                let (there, far) = (away(1.9 * reach_m), away(8.0 * reach_m));
                if here.distance_m(there) <= 2.0 * reach_m {
                    assert!(
                        near.contains(&elsewhere.cube(there)),
                        "{lat} {lon} {bearing}"
                    );
                }
                if here.distance_m(far) >= 7.0 * reach_m {
                    assert!(
                        !near.contains(&elsewhere.cube(far)),
                        "{lat} {lon} {bearing}"
                    );
                }
            }
        }
    }
}
