//! Where are drivers, and where do riders ask? One city for all processes of a run, drawn from its seed.

use cabrank_geo::Point;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::plan::Area;
use crate::city::City;

/// Cars drive so fast, metres a second.
const SPEED_M_S: std::ops::Range<f64> = 8.0..14.0;

/// The places of a run.
pub struct Places {
    city: City,
    area: Area,
    centre: Point,
}

impl Places {
    /// The places of `seed`.
    pub fn new(area: Area, seed: u64) -> Places {
        Places {
            city: City::new(&mut SmallRng::seed_from_u64(seed)),
            area,
            centre: Point::new(37.765, -122.435).expect("a constant inside the ranges"),
        }
    }

    /// Where somebody wants to be at that time.
    pub fn wish(&self, at_ms: i64, rng: &mut SmallRng) -> Point {
        match self.area {
            Area::City => self.city.wish(at_ms, rng),
            Area::Even { east_km, north_km } => {
                let mut side = |km: f64| rng.random_range(-0.5..0.5) * km * 1_000.0;
                let (north, east) = (side(north_km), side(east_km));
                self.centre.offset_m(north, east)
            }
        }
    }

    /// Where a rider fetched at `pickup` wants to go.
    pub fn destination(&self, pickup: Point, rng: &mut SmallRng) -> Point {
        self.city.destination(pickup, rng)
    }
}

/// One car's way: straight lines from wish to wish.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    from: Point,
    to: Point,
    depart_ms: i64,
    arrive_ms: i64,
}

impl Way {
    /// Standing.
    pub fn standing(at: Point) -> Way {
        Way {
            from: at,
            to: at,
            depart_ms: 0,
            arrive_ms: 0,
        }
    }

    /// Where the car is at that time; times do not go back by more than a leg.
    pub fn at(&mut self, now_ms: i64, places: &Places, rng: &mut SmallRng) -> Point {
        if now_ms >= self.arrive_ms {
            let from = self.to;
            let to = places.wish(now_ms, rng);
            let lasts = from.distance_m(to) / rng.random_range(SPEED_M_S) * 1_000.0;
            *self = Way {
                from,
                to,
                depart_ms: now_ms,
                arrive_ms: now_ms + lasts as i64 + 1,
            };
        }
        let part =
            (now_ms - self.depart_ms).max(0) as f64 / (self.arrive_ms - self.depart_ms) as f64;
        let between = |from: i32, to: i32| {
            (f64::from(from) + (f64::from(to) - f64::from(from)) * part) as i32
        };
        let lat = between(self.from.lat_e7(), self.to.lat_e7());
        let lon = between(self.from.lon_e7(), self.to.lon_e7());
        Point::from_e7(lat, lon).unwrap_or(self.to)
    }
}
