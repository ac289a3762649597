//! How long does a round take?
//!
//! Rides and cars at random in a city of 39 by 34 km with five hot spots; every ride has its 16 nearest cars as
//! candidates, a pair costs the straight line at 8 m/s in milliseconds. Seeds are fixed, every solve starts cold
//! unless it says warm, one thread. Beside the exact policy stand the simple ones, and the textbook's dense Hungarian method where it
//! can still be waited for. Before timing, each instance prints what the policies are worth on it.

use std::hint::black_box;
use std::time::Duration;

use cabrank_engine::matching::{Batched, Greedy, Memory, Policy, PolicyKind, Round};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};

#[path = "common/round.rs"]
mod round;
use round::{CANDIDATES, city, city_a_tenth_later};

const ENDLESS: u64 = u64::MAX;
const SMALL_ONLY: bool = cfg!(debug_assertions);

/// Rows to columns at the least cost, rows <= columns: O(rows^2 * columns) on a full table.
fn dense_hungarian(round: &Round) -> i64 {
    let (rows, columns) = (round.rides.len(), round.drivers.len());
    let mut cost = vec![1_i64 << 40; (rows + 1) * (columns + 1)];
    for (row, candidates) in round.candidates.iter().enumerate() {
        for candidate in candidates {
            cost[(row + 1) * (columns + 1) + candidate.driver as usize + 1] = candidate.cost;
        }
    }
    let (mut u, mut v) = (vec![0_i64; rows + 1], vec![0_i64; columns + 1]);
    let mut row_of = vec![0_usize; columns + 1];
    for row in 1..=rows {
        row_of[0] = row;
        let (mut least, mut way) = (vec![i64::MAX; columns + 1], vec![0_usize; columns + 1]);
        let mut used = vec![false; columns + 1];
        let mut column = 0;
        while row_of[column] != 0 {
            used[column] = true;
            let (from, mut delta, mut next) = (row_of[column], i64::MAX, 0);
            for to in 1..=columns {
                if !used[to] {
                    let reduced = cost[from * (columns + 1) + to] - u[from] - v[to];
                    if reduced < least[to] {
                        (least[to], way[to]) = (reduced, column);
                    }
                    if least[to] < delta {
                        (delta, next) = (least[to], to);
                    }
                }
            }
            for to in 0..=columns {
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
    -v[0]
}

fn rounds(c: &mut Criterion) {
    let sizes = [
        (50, 500),
        (500, 500),
        (500, 170),
        (2_000, 2_000),
        (10_000, 10_000),
        (10_000, 12_000),
        (10_000, 3_000),
    ];
    // Under `cargo test`, which runs each once and unoptimised, the small ones are enough.
    for (rides, cars) in sizes
        .into_iter()
        .filter(|size| !SMALL_ONLY || size.0 <= 500)
    {
        let round = city(rides, cars);
        let name = format!("{rides}x{cars}x{CANDIDATES}");
        let mut group = c.benchmark_group("round");
        group
            .sample_size(10)
            .warm_up_time(Duration::from_millis(500));
        group.measurement_time(Duration::from_secs(3));
        for kind in PolicyKind::ALL {
            let result = kind.policy().solve(&round, ENDLESS);
            let total: i64 = result.pairs.iter().map(|pair| pair.cost_ms).sum();
            println!(
                "{name} {kind}: {} served, {:.1} s mean, {} steps",
                result.pairs.len(),
                total as f64 / 1_000.0 / result.pairs.len().max(1) as f64,
                result.steps
            );
            group.bench_with_input(
                BenchmarkId::new(kind.to_string(), &name),
                &round,
                |b, round| {
                    b.iter(|| kind.policy().solve(black_box(round), ENDLESS));
                },
            );
        }
        if rides <= cars && rides * cars <= 250_000 {
            group.bench_with_input(
                BenchmarkId::new("dense_hungarian", &name),
                &round,
                |b, round| {
                    b.iter(|| dense_hungarian(black_box(round)));
                },
            );
        }
        group.finish();
    }
}

/// What a budget buys where it matters most: as many rides as cars.
fn budgets(c: &mut Criterion) {
    let size = if SMALL_ONLY { 500 } else { 10_000 };
    let round = city(size, size);
    let all = Batched.solve(&round, ENDLESS).steps;
    let mut group = c.benchmark_group("budget");
    group
        .sample_size(10)
        .warm_up_time(Duration::from_millis(500));
    group.measurement_time(Duration::from_secs(3));
    for part in [10, 50] {
        let budget = all / 100 * part;
        let result = Batched.solve(&round, budget);
        println!("{part} % of the steps: {} served", result.pairs.len());
        group.bench_function(format!("{part}_percent"), |b| {
            b.iter(|| Batched.solve(black_box(&round), budget));
        });
    }
    group.finish();
}

/// Going on from the last round, a tenth of whose rides and cars are others now; beside it the same from nothing and, as
/// what anybody would do, shortest pair first.
fn warm(c: &mut Criterion) {
    let size = if SMALL_ONLY { 500 } else { 10_000 };
    let mut memory = Memory::default();
    Batched.solve_from(&city(size, size), ENDLESS, &mut memory);
    let later = city_a_tenth_later(size, size);
    let cold = Batched.solve(&later, ENDLESS);
    let mut group = c.benchmark_group("warm");
    group
        .sample_size(30)
        .warm_up_time(Duration::from_millis(500));
    group.measurement_time(Duration::from_secs(3));
    group.bench_function("greedy", |b| {
        b.iter(|| Greedy.solve(black_box(&later), ENDLESS));
    });
    group.bench_function("cold", |b| {
        b.iter(|| Batched.solve(black_box(&later), ENDLESS));
    });
    group.bench_function("a_tenth_changed", |b| {
        b.iter_batched(
            || memory.clone(),
            |mut memory| {
                let result = Batched.solve_from(black_box(&later), ENDLESS, &mut memory);
                assert_eq!(result.pairs.len(), cold.pairs.len());
            },
            criterion::BatchSize::LargeInput,
        );
    });
    group.finish();
}

criterion_group!(benches, rounds, budgets, warm);
criterion_main!(benches);
