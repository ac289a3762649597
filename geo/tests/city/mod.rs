//! The canonical city of tests and benches: drivers spread over 39 x 34 km (or more at the same density), each
//! moving 50 m at a time in any direction. The same seed gives the same city.

#![allow(dead_code, reason = "each test and bench uses its part of it")]

use cabrank_geo::{DriverKey, Filter, IndexConfig, LiveIndex, Placement, Point, Slot, Status};
use rand::{Rng, SeedableRng, rngs::SmallRng};

pub const SEED: u64 = 20_080_522;
pub const TTL_MS: i64 = 30_000;
/// Drivers of the city at full size, for which 39 x 34 km is.
pub const DRIVERS: u32 = 100_000;
pub const STEP_M: f64 = 50.0;
/// The class asked for in queries; every second driver has it, and three of four are free.
pub const CLASS: u8 = 1;

/// One move of the workload.
#[derive(Clone, Copy)]
pub struct Move {
    pub driver: u32,
    pub at: Point,
}

/// Where everybody begins, and then moves one after the other.
pub struct City {
    pub start: Vec<Point>,
    pub moves: Vec<Move>,
    /// Places where riders wait.
    pub pickups: Vec<Point>,
}

impl City {
    pub fn new(drivers: u32, moves: usize) -> Self {
        let mut rng = SmallRng::seed_from_u64(SEED);
        let scale = (f64::from(drivers) / f64::from(DRIVERS)).sqrt();
        let (north_m, east_m) = (34_000.0 * scale, 39_000.0 * scale);
        let corner = Point::new(37.5, -122.6).unwrap();
        let mut at: Vec<(f64, f64)> = (0..drivers)
            .map(|_| {
                (
                    rng.random_range(0.0..north_m),
                    rng.random_range(0.0..east_m),
                )
            })
            .collect();
        let point = |(north, east)| corner.offset_m(north, 0.0).offset_m(0.0, east);
        let start = at.iter().copied().map(point).collect();
        let inside = |value: f64, size: f64| {
            if (0.0..size).contains(&value) {
                value
            } else {
                value.clamp(1.0, size - 1.0)
            }
        };
        let moves = (0..moves)
            .map(|_| {
                let driver = rng.random_range(0..drivers);
                let course = rng.random_range(0.0..std::f64::consts::TAU);
                let (north, east) = at[driver as usize];
                let next = (
                    inside(north + STEP_M * course.sin(), north_m),
                    inside(east + STEP_M * course.cos(), east_m),
                );
                at[driver as usize] = next;
                Move {
                    driver,
                    at: point(next),
                }
            })
            .collect();
        let pickups = (0..4_096)
            .map(|_| {
                point((
                    rng.random_range(0.0..north_m),
                    rng.random_range(0.0..east_m),
                ))
            })
            .collect();
        Self {
            start,
            moves,
            pickups,
        }
    }

    /// An index with everybody at the start, and the slots by driver.
    pub fn index(&self) -> (LiveIndex, Vec<Slot>) {
        let index = LiveIndex::new(IndexConfig::city(self.start.len() as u32));
        let mut slots = Vec::with_capacity(self.start.len());
        for (driver, &at) in self.start.iter().enumerate() {
            let slot = index.enter(DriverKey(driver as u64)).unwrap();
            index.place(
                slot,
                Placement {
                    at,
                    time_ms: 0,
                    seq: 0,
                },
            );
            let (status, classes) = ready(driver as u32);
            index.set_status(slot, status, classes, 1);
            slots.push(slot);
        }
        (index, slots)
    }
}

/// The status and classes of a driver, for all time.
pub fn ready(driver: u32) -> (Status, u8) {
    let status = if driver % 4 == 3 {
        Status::Busy
    } else {
        Status::Free
    };
    (status, if driver % 8 < 4 { CLASS } else { 2 })
}

/// Free, of the class, and heard of.
pub fn filter(now_ms: i64) -> Filter {
    Filter {
        now_ms,
        ping_ttl_ms: i64::MAX / 2,
        status: Some(Status::Free),
        classes: CLASS,
    }
}
