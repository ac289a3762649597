//! Rounds at random: rides and cars in a city of 39 by 34 km with five hot spots, a fixed seed.

use cabrank_engine::matching::{Candidate, RideAsk, Round};
use cabrank_events::{DriverId, RideId, ShardId, Time};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

const SEED: u64 = 20_080_522;
/// Cars each ride may have.
pub const CANDIDATES: usize = 16;

/// Metres east and north.
type Spot = (f64, f64);

fn spot(random: &mut SmallRng) -> Spot {
    let middle = [
        (9e3, 8e3),
        (12e3, 20e3),
        (20e3, 17e3),
        (28e3, 9e3),
        (31e3, 27e3),
    ];
    if random.random_bool(0.4) {
        return (
            random.random_range(0.0..39e3),
            random.random_range(0.0..34e3),
        );
    }
    let (x, y) = middle[random.random_range(0..middle.len())];
    let mut scatter = || {
        (0..4)
            .map(|_| random.random_range(-1_500.0..1_500.0))
            .sum::<f64>()
    };
    (x + scatter(), y + scatter())
}

/// Who is where: a number that stays the same from round to round, and the place.
type Crowd = Vec<(usize, Spot)>;

fn crowds(rides: usize, cars: usize) -> (Crowd, Crowd, SmallRng) {
    let mut random = SmallRng::seed_from_u64(SEED);
    let cars = (0..cars).map(|n| (n, spot(&mut random))).collect();
    let rides = (0..rides).map(|n| (n, spot(&mut random))).collect();
    (rides, cars, random)
}

/// A round with the nearest cars of each ride, priced by the straight line at 8 m/s.
pub fn city(rides: usize, cars: usize) -> Round {
    let (rides, cars, _) = crowds(rides, cars);
    round_of(&rides, &cars)
}

/// The same city when a tenth of the rides and of the cars have gone and others have come.
#[allow(dead_code, reason = "not every bench looks at what follows")]
pub fn city_a_tenth_later(rides: usize, cars: usize) -> Round {
    let (mut rides, mut cars, mut random) = crowds(rides, cars);
    for crowd in [&mut rides, &mut cars] {
        let all = crowd.len();
        for one in crowd.iter_mut() {
            if random.random_bool(0.1) {
                *one = (one.0 + all, spot(&mut random));
            }
        }
    }
    round_of(&rides, &cars)
}

fn round_of(rides: &[(usize, Spot)], cars: &[(usize, Spot)]) -> Round {
    let candidates = rides
        .iter()
        .map(|(_, at)| {
            let mut near: Vec<Candidate> = cars
                .iter()
                .enumerate()
                .map(|(driver, (_, car))| Candidate {
                    driver: driver as u32,
                    cost: ((car.0 - at.0).hypot(car.1 - at.1) / 8.0 * 1_000.0) as i64,
                })
                .collect();
            if near.len() > CANDIDATES {
                near.select_nth_unstable_by_key(CANDIDATES, |candidate| candidate.cost);
                near.truncate(CANDIDATES);
            }
            near.sort_unstable_by_key(|candidate| candidate.cost);
            near
        })
        .collect();
    Round {
        rides: rides
            .iter()
            .map(|(n, _)| RideAsk {
                ride: RideId {
                    place: ShardId(0),
                    minted_by: ShardId(0),
                    offset: *n as u64,
                },
                version: 1,
                since: Time(*n as i64),
            })
            .collect(),
        drivers: cars
            .iter()
            .map(|(n, _)| DriverId::new(&format!("driver-{n}")).expect("a valid id"))
            .collect(),
        candidates,
        ..Round::default()
    }
}
