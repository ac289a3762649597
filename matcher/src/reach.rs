//! Which waiting rides a car could serve that has just come free or moved.
//!
//! A grid of squares over the pickups of rides that were looked at in vain. A car asks its own square and then ring after
//! ring around it until it has found as many as it may wake, so it costs about the same whether ten rides wait or ten
//! thousand. Beside the nearest the ones that have waited longest are asked for, wherever they are: nobody is forgotten
//! because others are nearer. Distances decide here only who is looked at; the round prices.

use std::collections::{BTreeSet, HashMap};

use cabrank_events::{RideId, Time};
use cabrank_geo::Point;

/// Degrees of latitude of a square's side, about 550 m.
const SIDE_DEG: f64 = 0.005;
const METRES_PER_DEGREE: f64 = 111_000.0;
/// So few rides are looked through one by one.
const FEW: usize = 64;
/// A circle of more squares than this (near a pole) is no circle: all rides are looked through.
const SQUARES_MAX: i64 = 4_096;

type Square = (i32, i32);

/// Rides that wait for a car to come within reach.
#[derive(Debug, Default)]
pub(crate) struct Reach {
    squares: HashMap<Square, Vec<(RideId, Point)>>,
    /// Its place, and since when it waits.
    where_is: HashMap<RideId, (Point, Time)>,
    by_age: BTreeSet<(Time, RideId)>,
}

fn row(point: Point) -> i32 {
    (point.lat_deg() / SIDE_DEG).floor() as i32
}

/// Columns a full turn has: longitudes wrap.
const COLUMNS: i32 = (360.0 / SIDE_DEG) as i32;

fn column(point: Point) -> i32 {
    (((point.lon_deg() + 180.0) / SIDE_DEG).floor() as i32).rem_euclid(COLUMNS)
}

fn square(point: Point) -> Square {
    (row(point), column(point))
}

impl Reach {
    /// `since`: when it was asked for.
    pub fn insert(&mut self, ride: RideId, pickup: Point, since: Time) {
        if self.where_is.contains_key(&ride) {
            return;
        }
        self.where_is.insert(ride, (pickup, since));
        self.by_age.insert((since, ride));
        let here = self.squares.entry(square(pickup)).or_default();
        here.push((ride, pickup));
    }

    pub fn remove(&mut self, ride: RideId) {
        let Some((pickup, since)) = self.where_is.remove(&ride) else {
            return;
        };
        self.by_age.remove(&(since, ride));
        let square = square(pickup);
        if let Some(rides) = self.squares.get_mut(&square) {
            rides.retain(|(there, _)| *there != ride);
            if rides.is_empty() {
                self.squares.remove(&square);
            }
        }
    }

    pub fn len(&self) -> usize {
        self.where_is.len()
    }

    /// All, the one that has waited longest first.
    pub fn longest(&self) -> impl Iterator<Item = RideId> {
        self.by_age.iter().map(|(_, ride)| *ride)
    }

    /// The `most` rides nearest to `car` within `radius_m` that it could serve, nearest first; distances are good to a
    /// hundredth.
    pub fn nearest(
        &self,
        car: Point,
        radius_m: f64,
        most: usize,
        mut could_serve: impl FnMut(RideId) -> bool,
    ) -> Vec<RideId> {
        let rows = (radius_m / METRES_PER_DEGREE / SIDE_DEG).ceil() as i32;
        // The narrowest parallel of the band decides how many columns the radius may cover, and how wide a square is at least.
        let lat = car.lat_deg().abs() + f64::from(rows) * SIDE_DEG;
        let width_m = METRES_PER_DEGREE * SIDE_DEG * lat.min(90.0).to_radians().cos();
        let columns = (radius_m / width_m.max(1.0))
            .ceil()
            .min(f64::from(COLUMNS / 2)) as i32;
        let squares = (2 * i64::from(rows) + 1) * (2 * i64::from(columns) + 1);
        let is_few = self.len() <= FEW || squares > SQUARES_MAX;

        let metres_east = METRES_PER_DEGREE * car.lat_deg().to_radians().cos();
        let distance_m = |pickup: Point| {
            if is_few {
                return car.distance_m(pickup);
            }
            // Near enough in a small circle away from the poles, and a tenth of the price.
            let east = (pickup.lon_deg() - car.lon_deg() + 540.0).rem_euclid(360.0) - 180.0;
            let north = (pickup.lat_deg() - car.lat_deg()) * METRES_PER_DEGREE;
            north.hypot(east * metres_east)
        };
        let mut unasked: Vec<(f64, RideId)> = Vec::new();
        let mut found: Vec<RideId> = Vec::new();
        // Asks those that are surely nearer than all that was not looked at, the nearest first, until there are enough.
        let mut ask = |unasked: &mut Vec<(f64, RideId)>, sure_m: f64| {
            unasked.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
            let sure = unasked.partition_point(|(m, _)| *m <= sure_m);
            for (_, ride) in unasked.drain(..sure) {
                if found.len() < most && could_serve(ride) {
                    found.push(ride);
                }
            }
            found.len() >= most
        };
        if is_few {
            for rides in self.squares.values() {
                unasked.extend(rides.iter().map(|(ride, at)| (distance_m(*at), *ride)));
            }
        } else {
            let (r, c) = square(car);
            for ring in 0..=rows.max(columns) {
                for dr in -ring.min(rows)..=ring.min(rows) {
                    // The first and the last row of a ring are whole; of the others it has the two ends.
                    let step = if dr.abs() == ring { 1 } else { 2 * ring };
                    for dc in (-ring..=ring).step_by(step.max(1) as usize) {
                        let there = (r + dr, (c + dc).rem_euclid(COLUMNS));
                        if dc.abs() <= columns
                            && let Some(rides) = self.squares.get(&there)
                        {
                            unasked.extend(rides.iter().map(|(ride, at)| (distance_m(*at), *ride)));
                        }
                    }
                }
                // What was not looked at yet is at least so many squares away.
                if ask(&mut unasked, (f64::from(ring) * width_m).min(radius_m)) {
                    return found;
                }
            }
        }
        ask(&mut unasked, radius_m);
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cabrank_events::ShardId;
    use proptest::prelude::*;

    fn ride(offset: u64) -> RideId {
        RideId {
            place: ShardId(0),
            minted_by: ShardId(0),
            offset,
        }
    }

    fn near(reach: &Reach, car: Point, radius_m: f64) -> Vec<RideId> {
        reach.nearest(car, radius_m, usize::MAX, |_| true)
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
            reach.insert(ride(1), pickup, Time(0));
            // Enough others, far away, that the squares are walked and not the list.
            for n in 0..2_000 {
                let far = Point::new(-60.0 + (n as f64) * 0.03, 60.0).unwrap();
                reach.insert(ride(10 + n), far, Time(0));
            }
            for bearing in 0..16 {
                let angle = f64::from(bearing) * std::f64::consts::TAU / 16.0;
                let car = pickup.offset_m(4_900.0 * angle.cos(), 4_900.0 * angle.sin());
                if car.distance_m(pickup) <= 5_000.0 {
                    assert!(
                        near(&reach, car, 5_050.0).contains(&ride(1)),
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

    proptest! {
        #[test]
        fn the_nearest_are_those_of_a_full_scan(
            pickups in proptest::collection::vec((-9_000.0..9_000.0, -9_000.0..9_000.0), 0..400),
            car in (-3_000.0..3_000.0, -3_000.0..3_000.0),
            most in 1_usize..20,
            refused in 1_u64..5,
        ) {
            let middle = Point::new(55.75, 37.62).unwrap();
            let car = middle.offset_m(car.0, car.1);
            let mut reach = Reach::default();
            let mut all = Vec::new();
            for (n, (north, east)) in pickups.iter().enumerate() {
                let (id, pickup) = (ride(n as u64), middle.offset_m(*north, *east));
                reach.insert(id, pickup, Time(0));
                if id.offset % refused == 0 {
                    all.push((car.distance_m(pickup), id));
                }
            }
            all.sort_by(|a, b| a.0.total_cmp(&b.0));
            let found = reach.nearest(car, 5_000.0, most, |id| id.offset % refused == 0);
            let in_reach = |slack: f64| all.iter().filter(|(m, _)| *m <= 5_000.0 * slack).count();
            prop_assert!(found.len() >= most.min(in_reach(0.99)), "some are missing");
            prop_assert!(found.len() <= most.min(in_reach(1.01)), "some are too far");
            // The same distances, rank by rank, whoever of two that are as near comes first.
            for (rank, id) in found.iter().enumerate() {
                let pickup = pickups[id.offset as usize];
                let found_m = car.distance_m(middle.offset_m(pickup.0, pickup.1));
                prop_assert!((found_m - all[rank].0).abs() <= 1.0 + all[rank].0 * 0.01);
            }
        }
    }

    #[test]
    fn whoever_asked_first_has_waited_longest_also_after_an_offer_in_vain() {
        let mut reach = Reach::default();
        let pickup = Point::new(37.77, -122.42).unwrap();
        for (n, since) in [(5, 30), (3, 10), (9, 20)] {
            reach.insert(ride(n), pickup, Time(since));
        }
        reach.remove(ride(3));
        reach.insert(ride(3), pickup, Time(10));
        let longest: Vec<RideId> = reach.longest().collect();
        assert_eq!(longest, [ride(3), ride(9), ride(5)]);
        reach.remove(ride(9));
        assert_eq!((reach.len(), reach.longest().count()), (2, 2));
    }
}
