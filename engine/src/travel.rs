//! How long a drive takes. A trait, so that road networks can come later; a straight line by default.

use cabrank_geo::Point;

/// Estimates driving times.
pub trait TravelTime: Send + Sync {
    /// Milliseconds of driving between two points.
    fn drive_ms(&self, from: Point, to: Point) -> i64;
}

/// A straight line at constant speed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StraightLine {
    /// Metres a second along the straight line (streets wind, so it is less than a car's speed).
    pub speed_mps: f64,
}

impl StraightLine {
    /// The same for a distance that is known already.
    pub fn drive_ms_for(&self, distance_m: f64) -> i64 {
        (distance_m / self.speed_mps * 1_000.0) as i64
    }
}

impl TravelTime for StraightLine {
    fn drive_ms(&self, from: Point, to: Point) -> i64 {
        self.drive_ms_for(from.distance_m(to))
    }
}
