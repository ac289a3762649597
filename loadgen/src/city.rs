//! A synthetic city: where people want to go, and when.
//!
//! A square of 12 x 12 km around San Francisco, without roads. Demand gathers in hot spots that wander around the square
//! once an hour and wax and wane meanwhile. Pure and seeded: time is an argument, chance is the caller's generator.

use cabrank_geo::Point;
use rand::Rng;
use rand::rngs::SmallRng;

/// Half the side of the square, in metres.
pub const HALF_SIDE_M: f64 = 6_000.0;
/// Hot spots of demand.
const HOT_SPOTS: usize = 6;
/// Three of four wishes come from a hot spot, the others from anywhere.
const FROM_HOT_SPOT: f64 = 0.75;
/// How wide a hot spot is (standard deviation in metres).
const SPREAD_M: f64 = 600.0;
/// Hot spots come round once in this time.
const TURN_MS: f64 = 3_600_000.0;
/// Rides are this long, in metres as the crow flies: short, so that a demo sees them end.
pub const RIDE_M: std::ops::Range<f64> = 500.0..2_200.0;

/// The city of one seed.
#[derive(Clone, Debug)]
pub struct City {
    centre: Point,
    spots: Vec<Spot>,
}

#[derive(Clone, Debug)]
struct Spot {
    radius_m: f64,
    phase: f64,
    direction: f64,
    swell: f64,
}

impl City {
    /// The city that belongs to a generator's next numbers.
    pub fn new(rng: &mut SmallRng) -> City {
        let centre = Point::new(37.765, -122.435).expect("a constant inside the ranges");
        let spots = (0..HOT_SPOTS).map(|n| Spot {
            radius_m: rng.random_range(800.0..4_500.0),
            phase: rng.random_range(0.0..std::f64::consts::TAU),
            direction: if n % 2 == 0 { 1.0 } else { -1.0 },
            swell: rng.random_range(0.0..std::f64::consts::TAU),
        });
        City {
            centre,
            spots: spots.collect(),
        }
    }

    /// Where a hot spot is at that time, and how much of the demand is there (0.2 to 1.8 of the mean).
    pub fn hot_spot(&self, n: usize, at_ms: i64) -> (Point, f64) {
        let spot = &self.spots[n % self.spots.len()];
        let turn = (at_ms as f64).rem_euclid(TURN_MS) / TURN_MS * std::f64::consts::TAU;
        let angle = spot.phase + spot.direction * turn;
        let place = self
            .centre
            .offset_m(spot.radius_m * angle.sin(), spot.radius_m * angle.cos());
        (place, 1.0 + 0.8 * (turn + spot.swell).sin())
    }

    /// Where the next wish comes from, or where an idle driver goes to find one.
    pub fn wish(&self, at_ms: i64, rng: &mut SmallRng) -> Point {
        if !rng.random_bool(FROM_HOT_SPOT) {
            return self.anywhere(rng);
        }
        let weights: Vec<f64> = (0..HOT_SPOTS).map(|n| self.hot_spot(n, at_ms).1).collect();
        let mut left = rng.random_range(0.0..weights.iter().sum());
        let mut chosen = HOT_SPOTS - 1;
        for (n, weight) in weights.iter().enumerate() {
            if left < *weight {
                chosen = n;
                break;
            }
            left -= weight;
        }
        let (place, _) = self.hot_spot(chosen, at_ms);
        self.inside(place.offset_m(SPREAD_M * bell(rng), SPREAD_M * bell(rng)))
    }

    /// Any place of the square.
    pub fn anywhere(&self, rng: &mut SmallRng) -> Point {
        let mut side = || rng.random_range(-HALF_SIDE_M..HALF_SIDE_M);
        let (north, east) = (side(), side());
        self.centre.offset_m(north, east)
    }

    /// Where a rider who is fetched at `pickup` wants to go.
    pub fn destination(&self, pickup: Point, rng: &mut SmallRng) -> Point {
        let way = rng.random_range(RIDE_M);
        let angle = rng.random_range(0.0..std::f64::consts::TAU);
        let there = pickup.offset_m(way * angle.sin(), way * angle.cos());
        // Whoever would leave the square goes the other way.
        let inside = self.inside(there);
        if inside == there {
            there
        } else {
            pickup.offset_m(-way * angle.sin(), -way * angle.cos())
        }
    }

    fn inside(&self, place: Point) -> Point {
        let corner = |sign: f64| self.centre.offset_m(sign * HALF_SIDE_M, sign * HALF_SIDE_M);
        let (low, high) = (corner(-1.0), corner(1.0));
        let lat = place.lat_e7().clamp(low.lat_e7(), high.lat_e7());
        let lon = place.lon_e7().clamp(low.lon_e7(), high.lon_e7());
        Point::from_e7(lat, lon).unwrap_or(place)
    }
}

/// Roughly normal with mean 0 and deviation 1, between -6 and 6.
fn bell(rng: &mut SmallRng) -> f64 {
    (0..12).map(|_| rng.random_range(0.0..1.0)).sum::<f64>() - 6.0
}

/// Times of wishes: independent of each other, `per_minute` on average.
#[derive(Clone, Debug)]
pub struct Arrivals {
    per_ms: f64,
    next_ms: f64,
}

impl Arrivals {
    /// Wishes from `start_ms` on.
    pub fn new(per_minute: f64, start_ms: i64) -> Arrivals {
        Arrivals {
            per_ms: per_minute.max(0.0) / 60_000.0,
            next_ms: start_ms as f64,
        }
    }

    /// When the next one comes; `None` if nobody ever asks.
    pub fn next_ms(&mut self, rng: &mut SmallRng) -> Option<i64> {
        if self.per_ms <= 0.0 {
            return None;
        }
        let chance: f64 = rng.random_range(f64::MIN_POSITIVE..1.0);
        self.next_ms += -chance.ln() / self.per_ms;
        Some(self.next_ms as i64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn the_same_seed_makes_the_same_city_and_demand() {
        let day = |seed| {
            let mut rng = SmallRng::seed_from_u64(seed);
            let city = City::new(&mut rng);
            let mut arrivals = Arrivals::new(300.0, 1_000);
            let wishes = (0..100).map(|_| {
                let at = arrivals.next_ms(&mut rng).unwrap();
                let pickup = city.wish(at, &mut rng);
                (at, pickup, city.destination(pickup, &mut rng))
            });
            wishes.collect::<Vec<_>>()
        };
        assert_eq!(day(7), day(7));
        assert_ne!(day(7), day(8));
    }

    #[test]
    fn wishes_come_at_the_rate_asked_for_and_lie_in_the_square() {
        let mut rng = SmallRng::seed_from_u64(3);
        let city = City::new(&mut rng);
        let mut arrivals = Arrivals::new(300.0, 0);
        let last = (0..30_000)
            .filter_map(|_| arrivals.next_ms(&mut rng))
            .last()
            .unwrap();
        assert!(
            (last - 6_000_000).abs() < 120_000,
            "30,000 wishes took {last} ms, not 100 min"
        );
        for n in 0..2_000 {
            let pickup = city.wish(n * 1_800, &mut rng);
            let there = city.destination(pickup, &mut rng);
            let way = pickup.distance_m(there);
            assert!(
                pickup.distance_m(city.centre) < HALF_SIDE_M * 1.5,
                "{pickup}"
            );
            assert!(
                way > RIDE_M.start * 0.99 && way < RIDE_M.end * 1.01,
                "{way}"
            );
        }
    }

    #[test]
    fn demand_gathers_in_hot_spots_that_move() {
        let mut rng = SmallRng::seed_from_u64(3);
        let city = City::new(&mut rng);
        let near = |at: i64, spots_at: i64, rng: &mut SmallRng| {
            let near = |place: Point| {
                (0..HOT_SPOTS).any(|n| city.hot_spot(n, spots_at).0.distance_m(place) < 1_500.0)
            };
            (0..1_000).filter(|_| near(city.wish(at, rng))).count()
        };
        let now = near(0, 0, &mut rng);
        let moved = near(1_500_000, 0, &mut rng);
        assert!(now > 700, "{now} of 1000 near a hot spot");
        assert!(
            moved + 100 < now,
            "{moved} of 1000 where the hot spots were, {now} where they are"
        );
    }
}
