//! Which waiting rides a car could serve that has just come free or moved.
//!
//! A grid of squares over the pickups of rides that were looked at in vain: a car's ping asks its own square and the
//! neighbours within the largest radius, not every ride. Squares are planar per latitude band; distances are checked
//! by the round, so a square too many costs time and nothing else.

use std::collections::{BTreeSet, HashMap};

use cabrank_events::RideId;
use cabrank_geo::Point;

/// Degrees of latitude of a square's side, about 2.2 km.
const SIDE_DEG: f64 = 0.02;
const METRES_PER_DEGREE: f64 = 111_000.0;

type Square = (i32, i32);

/// Rides that wait for a car to come within reach.
#[derive(Debug, Default)]
pub(crate) struct Reach {
    squares: HashMap<Square, BTreeSet<RideId>>,
    where_is: HashMap<RideId, Square>,
}

fn row(point: Point) -> i32 {
    (point.lat_deg() / SIDE_DEG).floor() as i32
}

/// Columns a full turn has: longitudes wrap.
const COLUMNS: i32 = (360.0 / SIDE_DEG) as i32;

fn column(point: Point) -> i32 {
    (((point.lon_deg() + 180.0) / SIDE_DEG).floor() as i32).rem_euclid(COLUMNS)
}

impl Reach {
    pub fn insert(&mut self, ride: RideId, pickup: Point) {
        let square = (row(pickup), column(pickup));
        if self.where_is.insert(ride, square).is_none() {
            self.squares.entry(square).or_default().insert(ride);
        }
    }

    pub fn remove(&mut self, ride: RideId) {
        if let Some(square) = self.where_is.remove(&ride)
            && let Some(rides) = self.squares.get_mut(&square)
        {
            rides.remove(&ride);
            if rides.is_empty() {
                self.squares.remove(&square);
            }
        }
    }

    pub fn len(&self) -> usize {
        self.where_is.len()
    }

    /// Rides whose pickup may lie within `radius_m` of `car`.
    pub fn near(&self, car: Point, radius_m: f64, mut found: impl FnMut(RideId)) {
        let rows = (radius_m / METRES_PER_DEGREE / SIDE_DEG).ceil() as i32;
        // The narrowest parallel of the band decides how many columns the radius may cover; at a pole, all of them.
        let lat = car.lat_deg().abs() + f64::from(rows) * SIDE_DEG;
        let columns = if lat < 89.0 {
            radius_m / (METRES_PER_DEGREE * lat.to_radians().cos()) / SIDE_DEG
        } else {
            f64::from(COLUMNS)
        };
        let columns = (columns.ceil() as i32).min(COLUMNS / 2);
        // Near a pole the ring of squares is longer than the list of rides.
        let squares = (2 * i64::from(rows) + 1) * (2 * i64::from(columns) + 1);
        let (r, c) = (row(car), column(car));
        if squares > self.squares.len() as i64 {
            for ((row, column), rides) in &self.squares {
                let apart = (column - c).rem_euclid(COLUMNS);
                if (row - r).abs() <= rows && apart.min(COLUMNS - apart) <= columns {
                    rides.iter().for_each(|ride| found(*ride));
                }
            }
            return;
        }
        for dr in -rows..=rows {
            for dc in -columns..=columns {
                let square = (r + dr, (c + dc).rem_euclid(COLUMNS));
                if let Some(rides) = self.squares.get(&square) {
                    rides.iter().for_each(|ride| found(*ride));
                }
            }
        }
    }
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

    fn near(reach: &Reach, car: Point, radius_m: f64) -> BTreeSet<RideId> {
        let mut found = BTreeSet::new();
        reach.near(car, radius_m, |ride| {
            found.insert(ride);
        });
        found
    }

    #[test]
    fn a_car_finds_every_ride_within_its_reach_also_over_the_antimeridian_and_near_a_pole() {
        for (lat, lon) in [
            (37.77, -122.42),
            (0.0, 179.999),
            (-16.5, -179.99),
            (89.95, 10.0),
        ] {
            let pickup = Point::new(lat, lon).unwrap();
            let mut reach = Reach::default();
            reach.insert(ride(1), pickup);
            // Enough others, far away, that the squares are walked and not the list.
            for n in 0..2_000 {
                let far = Point::new(-60.0 + (n as f64) * 0.03, 60.0).unwrap();
                reach.insert(ride(10 + n), far);
            }
            for bearing in 0..16 {
                let angle = f64::from(bearing) * std::f64::consts::TAU / 16.0;
                let car = pickup.offset_m(4_900.0 * angle.cos(), 4_900.0 * angle.sin());
                if car.distance_m(pickup) <= 5_000.0 {
                    assert!(
                        near(&reach, car, 5_000.0).contains(&ride(1)),
                        "{lat} {lon} {bearing}"
                    );
                }
            }
            let far = Point::new(lat - 1.0, lon).unwrap();
            assert!(!near(&reach, far, 5_000.0).contains(&ride(1)));
            reach.remove(ride(1));
            assert!(!near(&reach, pickup, 5_000.0).contains(&ride(1)));
        }
    }
}
