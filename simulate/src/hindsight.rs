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
//!
//! How much lower than the best plan is the bound? The same predecessors, followed from each car with all delays that add
//! up on the way, are a plan: the best one waits no longer than that. Solving again with the ends of the plan found
//! makes it better a few times. So the best plan is known to lie between the two.

use std::cmp::Ordering;

use cabrank_engine::matching::{Batched, Candidate, Policy, RideAsk, Round};
use cabrank_events::{DriverId, RideId, ShardId, Time};
use cabrank_geo::Point;
use serde::{Deserialize, Serialize};

use crate::scene::{Scene, Wish};

/// Predecessors looked at for each rider, the cheapest; one beyond costs as much as the dearest of these and is nobody's,
/// which makes the bound lower, never wrong.
const PREDECESSORS_MAX: usize = 200;

/// Prices of staying unserved are tried up to this, ms.
const PRICE_MAX_MS: i64 = 4 * 3_600_000;

/// So often a plan is made better; after a few times it no longer gets so.
const REFINEMENTS: usize = 6;

/// Between what the best plan lies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Hindsight {
    /// Riders served at least.
    pub served: u64,
    /// No plan that serves as many has a shorter mean wait, s.
    pub wait_mean_least_s: f64,
    /// Riders served by a plan that was found.
    pub plan_served: u64,
    /// Their mean wait, s.
    pub plan_wait_mean_s: f64,
}

impl std::fmt::Display for Hindsight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (least, found) = (self.wait_mean_least_s, self.plan_wait_mean_s);
        write!(
            f,
            "who knows all wishes beforehand and serves {} lets them wait {least:.0} s on average at least; a plan serves {} with {found:.0} s",
            self.served, self.plan_served
        )
    }
}

/// Where a car is free, and since when at the earliest.
struct Source {
    at: Point,
    from: Time,
}

/// Every plan that serves at least `served` riders of the scene at this speed lets them wait at least so long, and how
/// long they wait in a plan that was found.
///
/// Work grows with the square of the riders: some seconds for 5,000.
pub fn hindsight(scene: &Scene, fastest_mps: f64, served: usize) -> Hindsight {
    let served = served.min(scene.wishes.len());
    let earliest: Vec<Time> = scene
        .wishes
        .iter()
        .map(|wish| wish.at.plus_ms(ride_ms(wish, fastest_mps)))
        .collect();
    let mut rows = predecessors(scene, fastest_mps, &earliest);
    let may_be_left = rows.len() - served;
    // The bound is concave in the price; its slope is how many more are left out than may be.
    let (mut low, mut high) = (0, PRICE_MAX_MS);
    let mut best_ms = 0;
    while low <= high {
        let price = low + (high - low) / 2;
        let choice = cheapest(&rows, scene.cars.len(), price);
        best_ms = best_ms.max(choice.total_ms - price * may_be_left as i64);
        if choice.left_out > may_be_left {
            low = price + 1;
        } else {
            high = price - 1;
        }
    }
    // `low` is the least price at which no more are left out than may be.
    let mut found: Option<Plan> = None;
    for _ in 0..REFINEMENTS {
        let choice = cheapest(&rows, scene.cars.len(), low.min(PRICE_MAX_MS));
        let plan = followed(scene, fastest_mps, &choice.predecessors, &earliest);
        rows = predecessors(scene, fastest_mps, &plan.ends);
        if found.as_ref().is_none_or(|best| plan.beats(best, served)) {
            found = Some(plan);
        }
    }
    let (plan_served, plan_ms) = found.map_or((0, 0), |plan| (plan.served, plan.waits_ms));
    let mean_s = |sum_ms: i64, of: usize| sum_ms as f64 / of.max(1) as f64 / 1_000.0;
    Hindsight {
        served: served as u64,
        wait_mean_least_s: mean_s(best_ms, served),
        plan_served: plan_served as u64,
        plan_wait_mean_s: mean_s(plan_ms, plan_served),
    }
}

fn drive_ms(from: Point, to: Point, mps: f64) -> i64 {
    (from.distance_m(to) / mps * 1_000.0).floor() as i64
}

/// How long the ride lasts once its rider is in.
fn ride_ms(wish: &Wish, mps: f64) -> u64 {
    let straight = || drive_ms(wish.pickup, wish.dropoff.unwrap_or(wish.pickup), mps);
    wish.ride_ms
        .unwrap_or_else(|| u64::try_from(straight()).unwrap_or(0))
}

/// Cars that drive from rider to rider.
struct Plan {
    served: usize,
    waits_ms: i64,
    /// When each rider's ride ends; where nobody comes, at the earliest.
    ends: Vec<Time>,
}

impl Plan {
    /// Serving enough comes first, then the mean wait.
    fn beats(&self, other: &Plan, enough: usize) -> bool {
        let missing = |plan: &Plan| enough.saturating_sub(plan.served);
        let waits = |plan: &Plan, of: &Plan| i128::from(plan.waits_ms) * of.served as i128;
        match missing(self).cmp(&missing(other)) {
            Ordering::Less => true,
            Ordering::Greater => false,
            Ordering::Equal => waits(self, other) < waits(other, self),
        }
    }
}

/// What becomes of these predecessors when each car really drives from one to the next.
fn followed(scene: &Scene, mps: f64, predecessors: &[Option<u32>], earliest: &[Time]) -> Plan {
    let cars = scene.cars.len();
    let mut next = vec![None; cars + scene.wishes.len()];
    for (rider, source) in predecessors.iter().enumerate() {
        if let Some(source) = source {
            next[*source as usize] = Some(rider);
        }
    }
    let mut plan = Plan {
        served: 0,
        waits_ms: 0,
        ends: earliest.to_vec(),
    };
    // Riders who are each other's predecessors have no car: nobody reaches them from one.
    for (n, car) in scene.cars.iter().enumerate() {
        let (mut at, mut free) = (car.start, car.from);
        let mut rider = next[n];
        while let Some(n) = rider {
            let wish = &scene.wishes[n];
            let departs = free.max(wish.at);
            if car.until.is_some_and(|until| departs > until) {
                break;
            }
            let starts = Time(departs.0 + drive_ms(at, wish.pickup, mps));
            plan.served += 1;
            plan.waits_ms += starts.since(wish.at);
            free = starts.plus_ms(ride_ms(wish, mps));
            plan.ends[n] = free;
            at = wish.dropoff.unwrap_or(wish.pickup);
            rider = next[cars + n];
        }
    }
    plan
}

/// Each rider's cheapest predecessors if rides end at these times: (source, wait in ms), cars first, then riders.
fn predecessors(scene: &Scene, mps: f64, ends: &[Time]) -> Vec<Vec<(u32, i64)>> {
    let cars = scene.cars.iter().map(|car| Source {
        at: car.start,
        from: car.from,
    });
    let rides = scene.wishes.iter().zip(ends).map(|(wish, end)| Source {
        at: wish.dropoff.unwrap_or(wish.pickup),
        from: *end,
    });
    let sources: Vec<Source> = cars.chain(rides).collect();
    let row = |(n, wish): (usize, &Wish)| {
        let itself = scene.cars.len() + n;
        let mut row: Vec<(u32, i64)> = (0_u32..)
            .zip(&sources)
            .filter(|(source, _)| *source as usize != itself)
            .map(|(source, its)| {
                let waits = its.from.since(wish.at).max(0);
                (source, waits + drive_ms(its.at, wish.pickup, mps))
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

/// Predecessors of the least sum of waits.
struct Choice {
    total_ms: i64,
    left_out: usize,
    /// By rider; `None`: stays unserved, or has one that was not listed.
    predecessors: Vec<Option<u32>>,
}

/// The least sum of waits where staying unserved costs `price`, and how many do.
fn cheapest(rows: &[Vec<(u32, i64)>], cars: usize, price: i64) -> Choice {
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
    let mut choice = Choice {
        total_ms: 0,
        left_out: 0,
        predecessors: vec![None; rows.len()],
    };
    for pair in &result.pairs {
        choice.total_ms += pair.cost_ms;
        let n = pair.ride.offset as usize;
        let source = number(&pair.driver).unwrap_or(sources + n);
        if source < sources {
            choice.predecessors[n] = Some(source as u32);
        } else if way_out(&rows[n]) == price {
            choice.left_out += 1;
        }
    }
    choice
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

fn number(name: &DriverId) -> Option<usize> {
    name.as_str().parse().ok()
}

#[cfg(test)]
mod tests {
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    use super::*;
    use crate::scene::Shift;

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
    fn the_best_plan_of_tiny_days_lies_between_the_bound_and_the_plan_found() {
        let (mut reached, mut found_best, mut all) = (0, 0, 0);
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
                let found = hindsight(&scene, SPEED_MPS, served);
                let bound_s = found.wait_mean_least_s * served as f64;
                // Ways are cut to whole ms, one for each rider.
                assert!(
                    bound_s <= best_s + 0.01,
                    "seed {seed}, {served} served: {bound_s} > {best_s}"
                );
                all += 1;
                reached += u32::from(bound_s >= 0.99 * best_s - 0.01);
                if found.plan_served == served as u64 {
                    let plan_s = found.plan_wait_mean_s * served as f64;
                    assert!(
                        plan_s >= best_s - 0.01,
                        "seed {seed}, {served} served: {plan_s} < {best_s}"
                    );
                    found_best += u32::from(plan_s <= 1.01 * best_s + 0.01);
                }
            }
        }
        // The days on which nobody is fetched by a car that is late.
        assert!(reached * 3 > all, "{reached} of {all} are reached");
        assert!(found_best * 3 > all, "{found_best} of {all} are found");
    }

    #[test]
    fn who_has_a_car_at_the_door_need_not_wait() {
        let mut scene = scene(1, 1, 1, 1_000);
        scene.cars[0].start = scene.wishes[0].pickup;
        let found = hindsight(&scene, SPEED_MPS, 1);
        assert_eq!(
            (found.wait_mean_least_s, found.plan_wait_mean_s),
            (0.0, 0.0)
        );
    }
}
