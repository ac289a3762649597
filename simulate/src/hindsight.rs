//! How far from perfect? A lower bound on the mean wait of a scene for whoever knows all wishes beforehand.
//!
//! What is bounded: plans in which each car stands where it is until it sets off for a rider who has asked, and brings that
//! rider. Such a plan gives each rider a predecessor of its own: a car where it begins, or another rider whom that car
//! brings before. If the predecessor's ride ends at its earliest (its rider did not wait at all), the wait that follows is
//! no longer than in the plan. So the cheapest choice of predecessors, each used at most once, waits no longer than any
//! plan: an assignment, solved exactly.
//!
//! For plans that serve at least so many riders, not all, staying unserved is priced at `p` ms (Lagrange): with `n`
//! riders the waits of `k` are at least `assignment(p) - p (n - k)`, whatever `p` is; the largest over `p` counts.
//! The fastest hour of the profile counts for all drives, and bounds on patience and pickups are left out, which makes the
//! bound lower, never wrong.
//!
//! Not bounded: dispatchers who send cars ahead of wishes. Turning a car round on its way gains a little of that, too.

use cabrank_engine::matching::{Batched, Candidate, Policy, RideAsk, Round};
use cabrank_events::{DriverId, RideId, ShardId, Time};
use cabrank_geo::Point;
use serde::{Deserialize, Serialize};

use crate::scene::Scene;

/// Predecessors looked at for each rider, the cheapest; one beyond costs as much as the dearest of these and is nobody's,
/// which makes the bound lower, never wrong.
const PREDECESSORS_MAX: usize = 200;

/// Prices of staying unserved are tried up to this, ms.
const PRICE_MAX_MS: i64 = 4 * 3_600_000;

/// What cannot be undercut.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Bound {
    /// Riders served at least.
    pub served: usize,
    /// Their mean wait is at least this, s.
    pub mean_wait_s: f64,
}

impl std::fmt::Display for Bound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "whoever knows all wishes beforehand and serves {} lets them wait {:.0} s on average at least",
            self.served, self.mean_wait_s
        )
    }
}

/// Where a car is free, and since when at the earliest.
struct Source {
    at: Point,
    from: Time,
}

/// Every plan that serves at least `served` riders of the scene at this speed lets them wait at least so long.
///
/// Work grows with the square of the riders: some seconds for 5,000.
pub fn bound(scene: &Scene, fastest_mps: f64, served: usize) -> Bound {
    let served = served.min(scene.wishes.len());
    let rows = predecessors(scene, fastest_mps);
    // The bound is concave in the price; its slope is how many more are left out than may be.
    let (mut low, mut high) = (0, PRICE_MAX_MS);
    let mut best_ms = 0;
    while low <= high {
        let price = low + (high - low) / 2;
        let (total_ms, left_out) = cheapest(&rows, scene.cars.len(), price);
        let may_be_left = rows.len() - served;
        best_ms = best_ms.max(total_ms - price * may_be_left as i64);
        if left_out > may_be_left {
            low = price + 1;
        } else {
            high = price - 1;
        }
    }
    Bound {
        served,
        mean_wait_s: best_ms as f64 / served.max(1) as f64 / 1_000.0,
    }
}

/// Each rider's cheapest predecessors: (source, wait in ms), cars first, then riders.
fn predecessors(scene: &Scene, fastest_mps: f64) -> Vec<Vec<(u32, i64)>> {
    let drive_ms =
        |from: Point, to: Point| (from.distance_m(to) / fastest_mps * 1_000.0).floor() as i64;
    let cars = scene.cars.iter().map(|car| Source {
        at: car.start,
        from: car.from,
    });
    let rides = scene.wishes.iter().map(|wish| {
        let to = wish.dropoff.unwrap_or(wish.pickup);
        let ride_ms = wish
            .ride_ms
            .map(|ms| i64::try_from(ms).unwrap_or(i64::MAX / 4));
        Source {
            at: to,
            from: Time(wish.at.0 + ride_ms.unwrap_or_else(|| drive_ms(wish.pickup, to))),
        }
    });
    let sources: Vec<Source> = cars.chain(rides).collect();
    let row = |(n, wish): (usize, &crate::scene::Wish)| {
        let itself = scene.cars.len() + n;
        let mut row: Vec<(u32, i64)> = (0_u32..)
            .zip(&sources)
            .filter(|(source, _)| *source as usize != itself)
            .map(|(source, its)| {
                let waits = its.from.since(wish.at).max(0);
                (source, waits + drive_ms(its.at, wish.pickup))
            })
            .filter(|(_, wait)| *wait < PRICE_MAX_MS)
            .collect();
        if row.len() > PREDECESSORS_MAX {
            row.select_nth_unstable_by_key(PREDECESSORS_MAX, |(source, wait)| (*wait, *source));
            row.truncate(PREDECESSORS_MAX + 1);
        }
        row.sort_unstable_by_key(|(source, wait)| (*wait, *source));
        row
    };
    scene.wishes.iter().enumerate().map(row).collect()
}

/// The least sum of waits where staying unserved costs `price`, and how many do.
fn cheapest(rows: &[Vec<(u32, i64)>], cars: usize, price: i64) -> (i64, usize) {
    let sources = cars + rows.len();
    // Beyond the sources each rider has a way out of its own: staying unserved, or a predecessor that was not listed.
    let way_out = |row: &Vec<(u32, i64)>| match row.get(PREDECESSORS_MAX) {
        Some((_, wait)) => price.min(*wait),
        None => price,
    };
    let candidates = rows.iter().enumerate().map(|(n, row)| {
        let out = way_out(row);
        let listed = row.iter().take(PREDECESSORS_MAX);
        let cheaper = listed.take_while(|(_, wait)| *wait < out);
        let cheaper = cheaper.map(|&(driver, cost)| Candidate { driver, cost });
        let own = Candidate {
            driver: (sources + n) as u32,
            cost: out,
        };
        cheaper.chain([own]).collect()
    });
    let round = Round {
        rides: (0..rows.len() as u64).map(ask).collect(),
        drivers: (0..sources + rows.len()).map(name).collect(),
        candidates: candidates.collect(),
        ..Round::default()
    };
    let result = Batched.solve(&round, u64::MAX);
    let total = result.pairs.iter().map(|pair| pair.cost_ms).sum();
    let left_out = result.pairs.iter().filter(|pair| {
        let n = pair.ride.offset as usize;
        pair.driver == round.drivers[sources + n] && way_out(&rows[n]) == price
    });
    (total, left_out.count())
}

fn ask(offset: u64) -> RideAsk {
    RideAsk {
        ride: RideId {
            place: ShardId(0),
            minted_by: ShardId(0),
            offset,
        },
        version: 0,
        since: Time(0),
    }
}

fn name(n: usize) -> DriverId {
    DriverId::new(&format!("{n:08}")).expect("digits are an id")
}

#[cfg(test)]
mod tests {
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    use super::*;
    use crate::scene::{Shift, Wish};

    const SPEED_MPS: f64 = 5.0;

    fn scene(seed: u64, riders: usize, cars: usize, over_ms: i64) -> Scene {
        let mut rng = SmallRng::seed_from_u64(seed);
        let middle = Point::new(37.77, -122.42).unwrap();
        let mut place = || {
            middle.offset_m(
                rng.random_range(-2_000.0..2_000.0),
                rng.random_range(-2_000.0..2_000.0),
            )
        };
        let mut wishes: Vec<Wish> = (0..riders)
            .map(|_| Wish {
                at: Time(0),
                pickup: place(),
                dropoff: Some(place()),
                ride_ms: None,
                patience_ms: None,
            })
            .collect();
        let cars = (0..cars)
            .map(|n| Shift {
                driver: name(n),
                start: place(),
                from: Time(0),
                until: None,
            })
            .collect();
        for wish in &mut wishes {
            wish.at = Time(rng.random_range(0..over_ms));
            wish.ride_ms = Some(rng.random_range(60_000..900_000));
        }
        wishes.sort_by_key(|wish| wish.at);
        Scene {
            wishes,
            cars,
            bad_rows: 0,
        }
    }

    /// The least sum of waits of `left` riders more, over all orders and cars: tries everything.
    fn least(scene: &Scene, cars: &mut Vec<(Point, i64)>, open: u32, left: usize) -> i64 {
        if left == 0 {
            return 0;
        }
        let mut best = i64::MAX;
        for (n, wish) in scene.wishes.iter().enumerate() {
            if open & 1 << n == 0 {
                continue;
            }
            for car in 0..cars.len() {
                let (at, free) = cars[car];
                let drive = (at.distance_m(wish.pickup) / SPEED_MPS * 1_000.0) as i64;
                let begins = free.max(wish.at.0) + drive;
                let ends = begins + wish.ride_ms.unwrap() as i64;
                cars[car] = (wish.dropoff.unwrap(), ends);
                let rest = least(scene, cars, open & !(1 << n), left - 1);
                cars[car] = (at, free);
                best = best.min(begins - wish.at.0 + rest);
            }
        }
        best
    }

    #[test]
    fn no_plan_of_tiny_days_undercuts_the_bound_and_many_reach_it() {
        let (mut reached, mut all) = (0, 0);
        for seed in 0..60 {
            // Many hours for four riders, or all at once.
            let over_ms = if seed % 2 == 0 {
                6 * 3_600_000
            } else {
                900_000
            };
            let scene = scene(seed, 4, 2, over_ms);
            let mut cars: Vec<(Point, i64)> = scene.cars.iter().map(|car| (car.start, 0)).collect();
            for served in 1..=4 {
                let best_s = least(&scene, &mut cars, 0b1111, served) as f64 / 1_000.0;
                let found = bound(&scene, SPEED_MPS, served);
                let bound_s = found.mean_wait_s * served as f64;
                // Ways are cut to whole ms, one for each rider.
                assert!(
                    bound_s <= best_s + 0.01,
                    "seed {seed}, {served} served: {bound_s} > {best_s}"
                );
                all += 1;
                reached += u32::from(bound_s >= 0.99 * best_s - 0.01);
            }
        }
        // The days on which nobody is fetched by a car that is late.
        assert!(reached * 3 > all, "{reached} of {all} are reached");
    }

    #[test]
    fn who_has_a_car_at_the_door_need_not_wait() {
        let mut scene = scene(1, 1, 1, 1_000);
        scene.cars[0].start = scene.wishes[0].pickup;
        assert_eq!(bound(&scene, SPEED_MPS, 1).mean_wait_s, 0.0);
    }
}
