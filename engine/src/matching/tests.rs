//! Stories of single rounds, and the policies against oracles that are obviously right.

mod rematch;

use std::collections::{BTreeMap, BTreeSet};

use cabrank_events::{DriverId, RideId, ShardId, Time};
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

use super::*;

const ENDLESS: u64 = u64::MAX;

fn ride(number: usize) -> RideId {
    RideId {
        place: ShardId(0),
        minted_by: ShardId(0),
        offset: number as u64,
    }
}

/// The round of a table: a line per ride, in the order of waiting, `-` where a driver is no candidate. Drivers are
/// called d0, d1, ...
fn round(rows: &[Vec<Option<i64>>]) -> Round {
    let drivers = rows.iter().map(Vec::len).max().unwrap_or(0);
    Round {
        rides: (0..rows.len())
            .map(|n| RideAsk {
                ride: ride(n),
                version: 1 + n as u32,
                since: Time(n as i64),
            })
            .collect(),
        drivers: (0..drivers)
            .map(|n| DriverId::new(&format!("d{n:04}")).unwrap())
            .collect(),
        candidates: rows
            .iter()
            .map(|row| {
                let candidate = |(n, cost): (usize, &Option<i64>)| {
                    cost.map(|cost| Candidate {
                        driver: n as u32,
                        cost,
                    })
                };
                row.iter().enumerate().filter_map(candidate).collect()
            })
            .collect(),
        ..Round::default()
    }
}

/// `check("3 1 / 1 -", PolicyKind::Greedy, "1 0")`: rides are lines of costs; the answer is each ride's driver.
fn check(table: &str, kind: PolicyKind, drivers: &str) {
    let rows: Vec<Vec<Option<i64>>> = table
        .split('/')
        .map(|row| {
            row.split_whitespace()
                .map(|cost| cost.parse().ok())
                .collect()
        })
        .collect();
    let result = kind.policy().solve(&round(&rows), ENDLESS);
    let found: Vec<String> = (0..rows.len())
        .map(
            |n| match result.pairs.iter().find(|pair| pair.ride == ride(n)) {
                Some(pair) => pair.driver.as_str()[1..]
                    .parse::<u32>()
                    .unwrap()
                    .to_string(),
                None => "-".into(),
            },
        )
        .collect();
    assert_eq!(found.join(" "), drivers, "{kind} on {table}");
    assert!(!result.exhausted);
}

#[test]
fn the_policies_differ_as_they_should() {
    use PolicyKind::*;
    // The first ride takes the car that the second needs.
    check("10 11 / 20 90", FirstCome, "0 1");
    check("10 11 / 20 90", Greedy, "0 1");
    check("10 11 / 20 90", Batched, "1 0");
    // The later ride is nearer to the only car.
    check("10 / 5", FirstCome, "0 -");
    check("10 / 5", Greedy, "- 0");
    check("10 / 5", Batched, "- 0");
    // The only car of the second ride is also the nearest of the first.
    check("1 100 / 2 -", FirstCome, "0 -");
    check("1 100 / 2 -", Greedy, "0 -");
    check("1 100 / 2 -", Batched, "1 0");
}

#[test]
fn batched_serves_as_many_as_can_be_served() {
    use PolicyKind::Batched;
    check("1 1000000 / 2 -", Batched, "1 0");
    check("1 5 - / 1 - 9 / 1 - -", Batched, "1 2 0");
    check("- / -", Batched, "- -");
    check("1 2 / 1 2 / 1 2", Batched, "0 1 -");
}

#[test]
fn of_equals_the_longest_wait_is_served() {
    for kind in PolicyKind::ALL {
        check("7 / 7 / 7", kind, "0 - -");
        check("7 7 / 7 7", kind, "0 1");
    }
}

#[test]
fn nobody_waits_or_nobody_drives() {
    for kind in PolicyKind::ALL {
        assert_eq!(
            kind.policy().solve(&Round::default(), 0),
            RoundResult::default()
        );
        let lonely = Round {
            drivers: Vec::new(),
            candidates: Vec::new(),
            ..round(&[vec![Some(1)]])
        };
        let result = kind.policy().solve(&lonely, ENDLESS);
        assert_eq!((result.looked.len(), result.pairs.len()), (1, 0), "{kind}");
    }
}

#[test]
fn what_cannot_be_a_candidate_is_left_out() {
    let mut round = round(&[vec![Some(5), Some(9)]]);
    round.candidates[0] = vec![
        Candidate { driver: 2, cost: 1 },
        Candidate {
            driver: u32::MAX,
            cost: 1,
        },
        Candidate {
            driver: 0,
            cost: COST_MS_MAX + 1,
        },
        Candidate {
            driver: 0,
            cost: i64::MIN,
        },
        Candidate { driver: 1, cost: 9 },
        Candidate { driver: 1, cost: 8 },
    ];
    for kind in PolicyKind::ALL {
        let pairs = kind.policy().solve(&round, ENDLESS).pairs;
        assert_eq!(pairs.len(), 1);
        assert_eq!(
            (pairs[0].driver.as_str(), pairs[0].cost_ms),
            ("d0001", 8),
            "{kind}"
        );
    }
}

#[test]
fn the_largest_costs_do_not_overflow() {
    let (low, high) = (Some(-COST_MS_MAX), Some(COST_MS_MAX));
    let rows: Vec<Vec<Option<i64>>> = (0..60)
        .map(|row| {
            (0..50)
                .map(|column| if (row + column) % 3 == 0 { low } else { high })
                .collect()
        })
        .collect();
    let result = Batched.solve(&round(&rows), ENDLESS);
    assert_eq!(worth(&result), (50, -50 * -COST_MS_MAX));
}

#[test]
fn policies_are_found_by_name() {
    for kind in PolicyKind::ALL {
        assert_eq!(kind.to_string().parse(), Ok(kind));
        assert_eq!(serde_json::to_string(&kind).unwrap(), format!("\"{kind}\""));
    }
    assert!(
        "nearest"
            .parse::<PolicyKind>()
            .unwrap_err()
            .to_string()
            .contains("first_come")
    );
}

/// Rides served, and minus what they cost: larger is better.
fn worth(result: &RoundResult) -> (usize, i64) {
    (
        result.pairs.len(),
        -result.pairs.iter().map(|pair| pair.cost_ms).sum::<i64>(),
    )
}

/// Fails unless the result could be carried out as it stands.
fn assert_possible(round: &Round, result: &RoundResult, why: &str) {
    let mut drivers = BTreeSet::new();
    let mut rides = BTreeSet::new();
    for pair in &result.pairs {
        assert!(drivers.insert(&pair.driver), "{} twice: {why}", pair.driver);
        assert!(rides.insert(pair.ride), "{} twice: {why}", pair.ride);
        let at = round
            .rides
            .iter()
            .position(|ask| ask.ride == pair.ride)
            .expect(why);
        assert_eq!(round.rides[at].version, pair.version, "{why}");
        let cheapest = round.candidates[at]
            .iter()
            .filter(|candidate| round.drivers[candidate.driver as usize] == pair.driver)
            .map(|candidate| candidate.cost)
            .min();
        assert_eq!(cheapest, Some(pair.cost_ms), "{why}");
    }
    let mut looked: Vec<_> = round
        .rides
        .iter()
        .map(|ask| (ask.since, ask.ride))
        .collect();
    looked.sort_unstable();
    assert!(
        looked
            .iter()
            .map(|ask| ask.1)
            .eq(result.looked.iter().map(|ask| ask.0)),
        "{why}"
    );
}

/// Fails if a ride waits while a later one has, at the same cost, a car that it could have had.
fn assert_oldest_first(round: &Round, result: &RoundResult, why: &str) {
    let order: BTreeMap<RideId, Time> = round.rides.iter().map(|a| (a.ride, a.since)).collect();
    for (at, ask) in round.rides.iter().enumerate() {
        if result.pairs.iter().any(|pair| pair.ride == ask.ride) {
            continue;
        }
        for candidate in &round.candidates[at] {
            let driver = &round.drivers[candidate.driver as usize];
            if let Some(pair) = result.pairs.iter().find(|pair| pair.driver == *driver) {
                let later = (order[&pair.ride], pair.ride) > (ask.since, ask.ride);
                assert!(
                    !(later && pair.cost_ms == candidate.cost),
                    "{} waits: {why}",
                    ask.ride
                );
            }
        }
    }
}

/// Tries everything: the best (served, -cost) of the rides from `at` on.
fn best_by_trying(round: &Round, at: usize, taken: u32) -> (usize, i64) {
    let Some(candidates) = round.candidates.get(at) else {
        return (0, 0);
    };
    let mut best = best_by_trying(round, at + 1, taken);
    for candidate in candidates
        .iter()
        .filter(|candidate| taken & 1 << candidate.driver == 0)
    {
        let (served, worth) = best_by_trying(round, at + 1, taken | 1 << candidate.driver);
        best = best.max((served + 1, worth - candidate.cost));
    }
    best
}

/// The textbook's dense Hungarian method, padded to a square: O(n^3), another algorithm and another shape of data.
fn best_by_dense(round: &Round) -> (usize, i64) {
    let n = round.rides.len().max(round.drivers.len());
    let forbidden = 1_i64 << 40;
    let mut cost = vec![vec![forbidden; n + 1]; n + 1];
    for (row, candidates) in round.candidates.iter().enumerate() {
        for candidate in candidates {
            let cell = &mut cost[row + 1][candidate.driver as usize + 1];
            *cell = candidate.cost.min(*cell);
        }
    }
    let (mut u, mut v) = (vec![0_i64; n + 1], vec![0_i64; n + 1]);
    let mut row_of = vec![0_usize; n + 1];
    for row in 1..=n {
        row_of[0] = row;
        let (mut least, mut way) = (vec![i64::MAX; n + 1], vec![0_usize; n + 1]);
        let mut used = vec![false; n + 1];
        let mut column = 0;
        while row_of[column] != 0 {
            used[column] = true;
            let (from, mut delta, mut next) = (row_of[column], i64::MAX, 0);
            for to in 1..=n {
                if !used[to] {
                    let reduced = cost[from][to] - u[from] - v[to];
                    if reduced < least[to] {
                        (least[to], way[to]) = (reduced, column);
                    }
                    if least[to] < delta {
                        (delta, next) = (least[to], to);
                    }
                }
            }
            for to in 0..=n {
                if used[to] {
                    u[row_of[to]] += delta;
                    v[to] -= delta;
                } else if to > 0 {
                    least[to] -= delta;
                }
            }
            column = next;
        }
        while column != 0 {
            row_of[column] = row_of[way[column]];
            column = way[column];
        }
    }
    let served = (1..=n)
        .map(|column| cost[row_of[column]][column])
        .filter(|cost| *cost < forbidden);
    (served.clone().count(), -served.sum::<i64>())
}

/// A round of up to `rides_max` by `drivers_max`: scarce or plenty, few or many ties, some costs below zero.
fn any_round(random: &mut SmallRng, rides_max: usize, drivers_max: usize) -> Round {
    let (rides, drivers) = (
        random.random_range(0..=rides_max),
        random.random_range(1..=drivers_max),
    );
    let spread = [1, 3, 20, 1_000_000][random.random_range(0..4)];
    let lowest = [0, 0, -10][random.random_range(0..3)];
    let chance = [0.05, 0.2, 0.5, 1.0][random.random_range(0..4)];
    let mut rows = Vec::new();
    for _ in 0..rides {
        let row = (0..drivers).map(|_| {
            random
                .random_bool(chance)
                .then(|| lowest + random.random_range(0..spread))
        });
        rows.push(row.collect());
    }
    let mut round = round(&rows);
    // `round` names as many drivers as the rows have: none without rows.
    for ask in &mut round.rides {
        ask.since = Time(random.random_range(0..5));
    }
    round
}

/// A town: rides and cars on a plane, each ride with its `k` nearest cars.
fn town(random: &mut SmallRng, rides: usize, drivers: usize, k: usize) -> Round {
    round(&town_table(random, rides, drivers, k))
}

fn town_table(
    random: &mut SmallRng,
    rides: usize,
    drivers: usize,
    k: usize,
) -> Vec<Vec<Option<i64>>> {
    let mut place = || {
        (
            random.random_range(0..10_000_i64),
            random.random_range(0..10_000_i64),
        )
    };
    let cars: Vec<(i64, i64)> = (0..drivers).map(|_| place()).collect();
    (0..rides)
        .map(|_| {
            let (x, y) = place();
            let costs: Vec<i64> = cars
                .iter()
                .map(|car| (car.0 - x).abs() + (car.1 - y).abs())
                .collect();
            let mut sorted = costs.clone();
            sorted.sort_unstable();
            let farthest = sorted[k.min(drivers) - 1];
            costs
                .into_iter()
                .map(|cost| (cost <= farthest).then_some(cost))
                .collect()
        })
        .collect()
}

/// The same round, listed in another order.
fn shuffled(round: &Round, random: &mut SmallRng) -> Round {
    let mut drivers: Vec<usize> = (0..round.drivers.len()).collect();
    drivers.shuffle(random);
    let renamed: BTreeMap<usize, u32> = drivers
        .iter()
        .enumerate()
        .map(|(new, old)| (*old, new as u32))
        .collect();
    let mut rides: Vec<usize> = (0..round.rides.len()).collect();
    rides.shuffle(random);
    Round {
        rides: rides.iter().map(|at| round.rides[*at].clone()).collect(),
        drivers: drivers
            .iter()
            .map(|at| round.drivers[*at].clone())
            .collect(),
        candidates: rides
            .iter()
            .map(|at| {
                let mut list: Vec<Candidate> = round.candidates[*at]
                    .iter()
                    .map(|c| Candidate {
                        driver: renamed[&(c.driver as usize)],
                        ..*c
                    })
                    .collect();
                list.shuffle(random);
                list
            })
            .collect(),
        ..Round::default()
    }
}

/// First come, first served, as one would say it.
fn first_come_told(round: &Round) -> Vec<(RideId, DriverId)> {
    let mut left: BTreeSet<&DriverId> = round.drivers.iter().collect();
    let mut queue: Vec<usize> = (0..round.rides.len()).collect();
    queue.sort_by_key(|at| (round.rides[*at].since, round.rides[*at].ride));
    let mut pairs = Vec::new();
    for at in queue {
        let nearest = round.candidates[at]
            .iter()
            .map(|c| (c.cost, &round.drivers[c.driver as usize]))
            .filter(|(_, driver)| left.contains(driver))
            .min();
        if let Some((_, driver)) = nearest {
            left.remove(driver);
            pairs.push((round.rides[at].ride, driver.clone()));
        }
    }
    pairs
}

/// Shortest pair first, as one would say it: look at all pairs again for each.
fn greedy_told(round: &Round) -> Vec<(RideId, DriverId)> {
    let mut pairs: Vec<(RideId, DriverId)> = Vec::new();
    loop {
        let nearest = (0..round.rides.len())
            .flat_map(|at| {
                let ask = &round.rides[at];
                round.candidates[at].iter().map(move |c| {
                    (
                        c.cost,
                        ask.since,
                        ask.ride,
                        &round.drivers[c.driver as usize],
                    )
                })
            })
            .filter(|(_, _, ride, driver)| {
                pairs
                    .iter()
                    .all(|pair| pair.0 != *ride && pair.1 != **driver)
            })
            .min();
        let Some((_, _, ride, driver)) = nearest else {
            break;
        };
        pairs.push((ride, driver.clone()));
    }
    let order: BTreeMap<RideId, Time> = round.rides.iter().map(|a| (a.ride, a.since)).collect();
    pairs.sort_by_key(|pair| (order[&pair.0], pair.0));
    pairs
}

fn named(result: &RoundResult) -> Vec<(RideId, DriverId)> {
    result
        .pairs
        .iter()
        .map(|pair| (pair.ride, pair.driver.clone()))
        .collect()
}

/// Runs `test` for each seed and names the one that fails.
fn for_seeds(what: &str, seeds: u64, test: impl Fn(&mut SmallRng, &str)) {
    for seed in 0..seeds {
        test(
            &mut SmallRng::seed_from_u64(seed),
            &format!("{what}, seed {seed} of 0..{seeds}"),
        );
    }
}

#[test]
fn batched_is_the_best_of_all_there_is() {
    for_seeds("trying everything", 5_000, |random, why| {
        let round = any_round(random, 6, 6);
        let result = Batched.solve(&round, ENDLESS);
        assert_possible(&round, &result, why);
        assert_eq!(
            worth(&result),
            best_by_trying(&round, 0, 0),
            "{why}: {round:?}"
        );
    });
}

#[test]
fn batched_agrees_with_the_dense_method() {
    for_seeds("dense, any", 3_000, |random, why| {
        let round = any_round(random, 24, 24);
        let result = Batched.solve(&round, ENDLESS);
        assert_possible(&round, &result, why);
        assert_eq!(worth(&result), best_by_dense(&round), "{why}");
    });
    for_seeds("dense, towns", 60, |random, why| {
        let (rides, drivers) = (random.random_range(20..90), random.random_range(20..90));
        let k = random.random_range(2..16);
        let round = town(random, rides, drivers, k);
        let result = Batched.solve(&round, ENDLESS);
        assert_possible(&round, &result, why);
        assert_eq!(worth(&result), best_by_dense(&round), "{why}");
    });
}

/// Round after round, each a little different: rides come and go, cars come and go, ways change.
#[test]
fn going_on_from_the_last_round_gives_the_best_as_well() {
    for_seeds("warm", 400, |random, why| {
        let mut memory = Memory::default();
        let (rides, cars) = (random.random_range(1..16), random.random_range(1..16));
        let spread = [2, 30, 1_000_000][random.random_range(0..3)];
        let mut table: Vec<Vec<Option<i64>>> = vec![vec![None; cars]; rides];
        let mut number: Vec<usize> = (0..rides).collect();
        for turn in 0..6 {
            for row in &mut table {
                for cost in row {
                    if turn == 0 || random.random_bool(0.15) {
                        let is_near = random.random_bool(0.4);
                        *cost = is_near.then(|| random.random_range(0..spread));
                    }
                }
            }
            if let Some(gone) = number.get_mut(random.random_range(0..rides * 2)) {
                *gone += 100 * (turn + 1);
            }
            let mut round = round(&table);
            for (ask, number) in round.rides.iter_mut().zip(&number) {
                ask.ride = ride(*number);
            }
            let budget = [ENDLESS, ENDLESS, ENDLESS, 10][random.random_range(0..4)];
            let result = Batched.solve_from(&round, budget, &mut memory);
            assert_possible(&round, &result, why);
            if !result.exhausted {
                assert_eq!(worth(&result), best_by_dense(&round), "{why}, round {turn}");
            }
        }
    });
}

/// Larger ones: in each round a tenth of the rides and of the cars are others, and once in a while all are.
#[test]
fn a_town_that_changes_round_by_round_gets_the_best_as_well() {
    for_seeds("warm towns", 40, |random, why| {
        let (rides, cars) = (random.random_range(40..160), random.random_range(40..160));
        let k = random.random_range(2..12).min(cars);
        let mut memory = Memory::default();
        let mut table = town_table(random, rides, cars, k);
        let (mut ride_numbers, mut names): (Vec<usize>, Vec<usize>) =
            ((0..rides).collect(), (0..cars).collect());
        for turn in 1..6 {
            let other = town_table(random, rides, cars, k);
            let share = if random.random_bool(0.1) { 1.0 } else { 0.1 };
            let mut is_new = |of: &mut [usize]| -> Vec<bool> {
                let draw = |number: &mut usize| {
                    let is_new = random.random_bool(share);
                    *number += if is_new { 1_000 * turn } else { 0 };
                    is_new
                };
                of.iter_mut().map(draw).collect()
            };
            let (new_rides, new_cars) = (is_new(&mut ride_numbers), is_new(&mut names));
            for (row, is_new) in new_rides.iter().enumerate() {
                for column in 0..cars {
                    if *is_new || new_cars[column] {
                        table[row][column] = other[row][column];
                    }
                }
            }
            let mut round = round(&table);
            for (ask, number) in round.rides.iter_mut().zip(&ride_numbers) {
                ask.ride = ride(*number);
            }
            for (driver, name) in round.drivers.iter_mut().zip(&names) {
                *driver = DriverId::new(&format!("d{name:04}")).unwrap();
            }
            let result = Batched.solve_from(&round, ENDLESS, &mut memory);
            assert_possible(&round, &result, why);
            assert_oldest_first(&round, &result, why);
            assert_eq!(worth(&result), best_by_dense(&round), "{why}, round {turn}");
            let again = Batched.solve_from(&round, ENDLESS, &mut memory.clone());
            assert_eq!(worth(&again), worth(&result), "{why}, round {turn} again");
        }
    });
}

#[test]
fn the_simple_policies_do_what_they_say() {
    for_seeds("told", 2_000, |random, why| {
        let round = any_round(random, 10, 10);
        assert_eq!(
            named(&FirstCome.solve(&round, 0)),
            first_come_told(&round),
            "{why}"
        );
        assert_eq!(
            named(&Greedy.solve(&round, 0)),
            greedy_told(&round),
            "{why}"
        );
    });
}

#[test]
fn the_order_of_listing_changes_nothing() {
    for_seeds("shuffled", 1_000, |random, why| {
        let round = any_round(random, 20, 20);
        let other = shuffled(&round, random);
        for kind in PolicyKind::ALL {
            for budget in [0, 50, ENDLESS] {
                let (a, b) = (
                    kind.policy().solve(&round, budget),
                    kind.policy().solve(&other, budget),
                );
                assert_eq!(a, b, "{kind}, budget {budget}, {why}");
                assert_oldest_first(&round, &a, why);
            }
        }
    });
}

#[test]
fn a_budget_that_ends_leaves_a_result_no_worse_than_greedy() {
    for_seeds("budgets", 300, |random, why| {
        let round = town(random, 60, 50, 6);
        let best = Batched.solve(&round, ENDLESS);
        let greedy = Greedy.solve(&round, ENDLESS);
        let edges: u64 = round.candidates.iter().map(|list| list.len() as u64).sum();
        for part in 0..8 {
            let budget = best.steps * part / 8;
            let result = Batched.solve(&round, budget);
            assert_possible(&round, &result, why);
            assert!(worth(&result) >= worth(&greedy), "{why}, budget {budget}");
            assert!(worth(&result) <= worth(&best), "{why}, budget {budget}");
            assert!(
                result.exhausted || worth(&result) == worth(&best),
                "{why}, budget {budget}"
            );
            // One row's list, and the queue's entries that led to it, may go beyond; then two greedy passes and one for ties.
            assert!(
                result.steps <= budget + 5 * edges,
                "{why}: {} for {budget}",
                result.steps
            );
        }
        assert!(!best.exhausted);
    });
    for_seeds("budgets cut short", 20, |random, _| {
        let round = town(random, 60, 50, 6);
        assert!(Batched.solve(&round, 10).exhausted);
    });
}
