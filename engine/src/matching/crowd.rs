//! Who of these cars is near?
//!
//! A large round asks for the cars near hundreds of places of one city at one moment. The live index answers each such
//! question from scratch, and where few cars are free it walks all the way to the search radius and finds nobody, again
//! and again. So a large round asks it once for the cars around all its pickups, and then asks this.
//!
//! Holds: the same cars in the same order as the index gives, by distance, then key. Cars are sorted by latitude; a
//! question goes north and south from its own place until all that are left are farther than what it has. Cost: the cars
//! on the band that is as high as the farthest answer is far, some ns each.

use cabrank_geo::{EARTH_RADIUS_M, Near, Point};

/// From so many rides on, a round gathers its cars by one question and looks here.
pub const CROWD_RIDES_LEAST: usize = 64;

/// Radians in 1e-7 degrees.
const RAD_PER_E7: f64 = std::f64::consts::PI / 180.0 / 1e7;

/// Distances that are compared in two ways differ by less than this part.
const SLACK: f64 = 1e-9;

/// Cars that stand still while a round looks.
#[derive(Debug, Default)]
pub struct Crowd {
    /// By latitude; the three lists go together.
    lats_e7: Vec<i32>,
    /// Where they are on a sphere of radius 1.
    units: Vec<[f64; 3]>,
    cars: Vec<Near>,
}

impl Crowd {
    /// Of these cars, in any order, each once.
    pub fn of(mut cars: Vec<Near>) -> Crowd {
        cars.sort_unstable_by_key(|car| (car.at.lat_e7(), car.key));
        Crowd {
            lats_e7: cars.iter().map(|car| car.at.lat_e7()).collect(),
            units: cars.iter().map(|car| unit(car.at)).collect(),
            cars,
        }
    }

    /// A circle around all these circles: where to ask for the cars. `None`: there are none.
    pub fn circle(mut places: impl Iterator<Item = (Point, f64)>) -> Option<(Point, f64)> {
        let (middle, first_m) = places.next()?;
        let farthest_m = places.map(|(at, radius_m)| middle.distance_m(at) + radius_m);
        Some((middle, farthest_m.fold(first_m, f64::max)))
    }

    /// Replaces what is in `out` by the nearest `k` that `keep` wants, nobody farther than `radius_m`.
    pub fn nearest(
        &self,
        at: Point,
        radius_m: f64,
        k: usize,
        mut keep: impl FnMut(&Near) -> bool,
        out: &mut Vec<Near>,
    ) {
        out.clear();
        if k == 0 {
            return;
        }
        let (lat_e7, from) = (at.lat_e7(), unit(at));
        let lat_m = |car: usize| {
            let e7 = (i64::from(self.lats_e7[car]) - i64::from(lat_e7)).unsigned_abs();
            e7 as f64 * RAD_PER_E7 * EARTH_RADIUS_M * (1.0 - SLACK)
        };
        let (mut reach_m, mut reach) = (radius_m, chord2(radius_m));
        let mut north = self.lats_e7.partition_point(|lat| *lat < lat_e7);
        let mut south = north;
        loop {
            let to_north = (north < self.cars.len()).then(|| lat_m(north));
            let to_south = (south > 0).then(|| lat_m(south - 1));
            let goes_north = match (to_north, to_south) {
                (Some(north_m), Some(south_m)) => north_m <= south_m,
                (Some(_), None) => true,
                (None, Some(_)) => false,
                (None, None) => return,
            };
            let (car, band_m) = match goes_north {
                true => (north, to_north),
                false => (south - 1, to_south),
            };
            if band_m > Some(reach_m) {
                return;
            }
            match goes_north {
                true => north += 1,
                false => south -= 1,
            }
            let [x, y, z] = self.units[car];
            let (x, y, z) = (x - from[0], y - from[1], z - from[2]);
            if x * x + y * y + z * z > reach {
                continue;
            }
            let known = &self.cars[car];
            let distance_m = at.distance_m(known.at);
            let comes_before = |other: &Near| {
                let order = other.distance_m.total_cmp(&distance_m);
                order.then(other.key.cmp(&known.key)).is_lt()
            };
            let is_full = out.len() == k;
            let is_last = out.last().is_some_and(comes_before);
            if distance_m > radius_m || is_full && is_last || !keep(known) {
                continue;
            }
            let place = out.partition_point(comes_before);
            if is_full {
                out.pop();
            }
            out.insert(
                place,
                Near {
                    distance_m,
                    ..*known
                },
            );
            if let (true, Some(last)) = (out.len() == k, out.last()) {
                (reach_m, reach) = (last.distance_m, chord2(last.distance_m));
            }
        }
    }
}

fn unit(at: Point) -> [f64; 3] {
    let (sin_lat, cos_lat) = (f64::from(at.lat_e7()) * RAD_PER_E7).sin_cos();
    let (sin_lon, cos_lon) = (f64::from(at.lon_e7()) * RAD_PER_E7).sin_cos();
    [cos_lat * cos_lon, cos_lat * sin_lon, sin_lat]
}

/// The square of the straight line between two places on the sphere of radius 1 that are so far apart, and a little more:
/// units are exact to some 1e-16, which is much where places are close to each other.
fn chord2(metres: f64) -> f64 {
    let half = (metres / EARTH_RADIUS_M / 2.0).min(std::f64::consts::FRAC_PI_2);
    let chord = 2.0 * half.sin() * (1.0 + SLACK) + 1e-14;
    chord * chord
}

#[cfg(test)]
mod tests {
    use cabrank_geo::{DriverKey, Filter, IndexConfig, LiveIndex, Placement, Point, Query, Status};
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    use super::Crowd;

    /// Everywhere on Earth, many cars on one spot among them.
    #[test]
    fn a_crowd_answers_as_the_index_does() {
        let middles = [
            (37.77, -122.42),
            (0.0, 179.999),
            (-16.5, -179.999),
            (89.99, 10.0),
            (-90.0, 0.0),
        ];
        let filter = Filter {
            now_ms: 0,
            ping_ttl_ms: 1_000,
            status: Some(Status::Free),
            classes: 0,
        };
        for (seed, (lat, lon)) in (0..).zip(middles.iter().cycle().take(25)) {
            let mut rng = SmallRng::seed_from_u64(seed);
            let middle = Point::new(*lat, *lon).unwrap();
            let spread_m = [50.0, 3_000.0, 40_000.0][seed as usize % 3];
            let spot = |rng: &mut SmallRng| {
                let north = rng.random_range(-spread_m..spread_m);
                middle.offset_m(north, rng.random_range(-spread_m..spread_m))
            };
            let count = rng.random_range(1..400);
            let index = LiveIndex::new(IndexConfig::city(count));
            let mut last = middle;
            for key in 0..u64::from(count) {
                if rng.random_bool(0.8) {
                    last = spot(&mut rng);
                }
                let slot = index.enter(DriverKey(key)).unwrap();
                let (time_ms, seq) = (0, 1);
                index.place(
                    slot,
                    Placement {
                        at: last,
                        time_ms,
                        seq,
                    },
                );
                index.set_status(slot, Status::Free, 1, 1);
            }
            let rides: Vec<(Point, f64)> = (0..20)
                .map(|_| (spot(&mut rng), rng.random_range(1.0..50_000.0)))
                .collect();
            let (at, radius_m) = Crowd::circle(rides.iter().copied()).unwrap();
            let mut all = Vec::new();
            index.within_radius(at, radius_m, &filter, |_| true, &mut all);
            let crowd = Crowd::of(all);
            for (at, radius_m) in rides {
                let k = [1, 3, 16, 500][rng.random_range(0..4)];
                let odd = rng.random_bool(0.5);
                let keep = |car: &super::Near| !odd || car.key.0 % 2 == 1;
                let (mut told, mut known) = (Vec::new(), Vec::new());
                crowd.nearest(at, radius_m, k, keep, &mut told);
                let query = Query {
                    at,
                    radius_m,
                    k,
                    filter,
                };
                index.nearest(&query, keep, &mut known);
                assert_eq!(told, known, "seed={seed} {at} {radius_m} m, {k}");
            }
        }
    }
}
