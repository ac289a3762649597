//! What does the live index cost, beside plain baselines?
//!
//! The city of `geo/tests/city`: 100,000 drivers over 39 x 34 km, moves of 50 m, seed fixed. Queries ask for the 10
//! nearest free drivers of a class (three of eight drivers are that).
//!
//! - `rstar`: an R-tree under a `RwLock`. `dashmap`: a sharded map from 500 m squares to drivers.
//! - `bare_store`: one atomic store to a random line of as much memory as the index takes: the floor of an update.
//! - `bare_swap`: the same with a read-modify-write, which any index with several writers needs. Unlike stores, these
//!   wait for each other's cache misses, and so does an update.
//!
//! What is written is made before the clock starts, for all of them alike. The index asks for large pages; the bare
//! memory has ordinary ones, as any program's.
//!
//! `cargo bench --bench geo_index` takes below two minutes. Under `cargo test` each workload runs once, small: a
//! hundredth of the drivers and of the moves.

use std::collections::HashMap;
use std::hint::black_box;
use std::sync::RwLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use cabrank_geo::{LiveIndex, Near, Placement, Point, Query, Slot, Status};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use dashmap::DashMap;
use rstar::primitives::GeomWithData;
use rstar::{PointDistance, RTree};

#[path = "../geo/tests/city/mod.rs"]
mod city;
use city::{City, Move, filter, ready};

const K: usize = 10;
const RADIUS_M: f64 = 5_000.0;
const BATCH: usize = 64;
/// What `geo/tests/memory.rs` measures for a driver, rounded up to lines.
const LINES_PER_DRIVER: usize = 3;

/// The full size when benched, a hundredth when tested.
fn scaled(size: u32) -> u32 {
    if std::env::args().any(|arg| arg == "--bench") {
        size
    } else {
        size / 100
    }
}

/// A city, everybody in it, and an endless row of moves.
struct Running {
    city: City,
    index: LiveIndex,
    slots: Vec<Slot>,
    /// Every move as its driver's slot gets it; the time is that of the first round.
    pings: Vec<(Slot, Placement)>,
}

/// Which of the pings comes next. No division for each: it would cost as much as a tenth of an update.
#[derive(Default)]
struct Turn {
    next: usize,
    round: usize,
}

impl Turn {
    fn of(&mut self, count: usize) -> usize {
        if self.next == count {
            *self = Turn {
                next: 0,
                round: self.round + 1,
            };
        }
        self.next += 1;
        self.next - 1
    }
}

impl Running {
    fn new(drivers: u32) -> Self {
        let city = City::new(drivers, scaled(1_000_000) as usize);
        let (index, slots) = city.index();
        let ping = |(turn, one): (usize, &Move)| {
            let ping = Placement {
                at: one.at,
                time_ms: turn as i64 + 1,
                seq: 0,
            };
            (slots[one.driver as usize], ping)
        };
        let pings = city.moves.iter().enumerate().map(ping).collect();
        Self {
            city,
            index,
            slots,
            pings,
        }
    }

    fn ping(&self, turn: &mut Turn) -> (Slot, Placement) {
        let (slot, mut ping) = self.pings[turn.of(self.pings.len())];
        ping.time_ms += (turn.round * self.pings.len()) as i64;
        (slot, ping)
    }

    fn driver(&self, turn: &mut Turn) -> u32 {
        self.city.moves[turn.of(self.city.moves.len())].driver
    }

    fn query(&self, turn: usize, now_ms: i64, out: &mut Vec<Near>) {
        let at = self.city.pickups[turn % self.city.pickups.len()];
        let query = Query {
            at,
            radius_m: RADIUS_M,
            k: K,
            filter: filter(now_ms),
        };
        self.index.nearest(&query, |_| true, out);
        debug_assert_eq!(out.len(), K);
    }
}

type Cab = GeomWithData<[f64; 2], u32>;

/// Metres on a plane, as generous to the baselines as can be: they do no trigonometry.
fn planar(at: Point) -> [f64; 2] {
    [at.lat_deg() * 111_195.0, at.lon_deg() * 111_195.0 * 0.79]
}

struct Tree {
    tree: RwLock<RTree<Cab>>,
    at: Vec<AtomicPair>,
}

/// The position a driver has in the tree; written under the tree's lock.
#[derive(Default)]
struct AtomicPair(AtomicU64, AtomicU64);

impl AtomicPair {
    fn set(&self, at: [f64; 2]) {
        self.0.store(at[0].to_bits(), Ordering::Relaxed);
        self.1.store(at[1].to_bits(), Ordering::Relaxed);
    }

    fn get(&self) -> [f64; 2] {
        [
            self.0.load(Ordering::Relaxed),
            self.1.load(Ordering::Relaxed),
        ]
        .map(f64::from_bits)
    }
}

impl Tree {
    fn new(city: &City) -> Self {
        let cabs = city
            .start
            .iter()
            .enumerate()
            .map(|(driver, &at)| Cab::new(planar(at), driver as u32));
        let at = city.start.iter().map(|&at| {
            let pair = AtomicPair::default();
            pair.set(planar(at));
            pair
        });
        let at = at.collect();
        Self {
            tree: RwLock::new(RTree::bulk_load(cabs.collect())),
            at,
        }
    }

    fn place(&self, Move { driver, at }: Move) {
        let mut tree = self.tree.write().unwrap();
        let was = &self.at[driver as usize];
        tree.remove(&Cab::new(was.get(), driver));
        was.set(planar(at));
        tree.insert(Cab::new(planar(at), driver));
    }

    fn nearest(&self, at: Point, out: &mut Vec<(u32, f64)>) {
        out.clear();
        let at = planar(at);
        let tree = self.tree.read().unwrap();
        let near = tree
            .nearest_neighbor_iter(at)
            .filter(|cab| is_wanted(cab.data));
        out.extend(
            near.take(K)
                .map(|cab| (cab.data, cab.distance_2(&at).sqrt())),
        );
    }
}

fn is_wanted(driver: u32) -> bool {
    let (status, classes) = ready(driver);
    status == Status::Free && classes & city::CLASS != 0
}

/// A driver in a square of the baseline, and where.
type Parked = (u32, [f64; 2]);

struct Squares {
    squares: DashMap<(i32, i32), Vec<Parked>>,
    square_of: Vec<AtomicU64>,
}

const SQUARE_M: f64 = 500.0;

fn square(at: [f64; 2]) -> (i32, i32) {
    (
        (at[0] / SQUARE_M).floor() as i32,
        (at[1] / SQUARE_M).floor() as i32,
    )
}

impl Squares {
    fn new(city: &City) -> Self {
        let mut squares: HashMap<_, Vec<_>> = HashMap::new();
        let mut square_of = Vec::new();
        for (driver, &at) in city.start.iter().enumerate() {
            let at = planar(at);
            squares
                .entry(square(at))
                .or_default()
                .push((driver as u32, at));
            square_of.push(AtomicU64::new(Self::packed(square(at))));
        }
        Self {
            squares: squares.into_iter().collect(),
            square_of,
        }
    }

    fn packed((north, east): (i32, i32)) -> u64 {
        (u64::from(north as u32) << 32) | u64::from(east as u32)
    }

    fn place(&self, Move { driver, at }: Move) {
        let at = planar(at);
        let next = square(at);
        let was = self.square_of[driver as usize].swap(Self::packed(next), Ordering::Relaxed);
        let was = ((was >> 32) as i32, was as i32);
        if was != next {
            self.squares.entry(next).or_default().push((driver, at));
        }
        let mut cabs = self.squares.get_mut(&was).unwrap();
        let found = cabs.iter().position(|cab| cab.0 == driver).unwrap();
        if was == next {
            cabs[found].1 = at;
        } else {
            cabs.swap_remove(found);
        }
    }

    fn nearest(&self, at: Point, out: &mut Vec<(u32, f64)>) {
        out.clear();
        let at = planar(at);
        let (north, east) = square(at);
        for ring in 0..=(RADIUS_M / SQUARE_M) as i32 + 1 {
            for north_by in -ring..=ring {
                let step = if north_by.abs() == ring { 1 } else { 2 * ring };
                for east_by in (-ring..=ring).step_by(step.max(1) as usize) {
                    let Some(cabs) = self.squares.get(&(north + north_by, east + east_by)) else {
                        continue;
                    };
                    for &(driver, cab) in cabs.iter().filter(|cab| is_wanted(cab.0)) {
                        let distance = (cab[0] - at[0]).hypot(cab[1] - at[1]);
                        if out.len() < K || distance < out[K - 1].1 {
                            out.truncate(K - 1);
                            let place = out.partition_point(|known| known.1 < distance);
                            out.insert(place, (driver, distance));
                        }
                    }
                }
            }
            if out.len() == K && out[K - 1].1 <= f64::from(ring) * SQUARE_M {
                return;
            }
        }
    }
}

#[repr(align(64))]
#[derive(Default)]
struct Line(AtomicU64);

/// As many lines as the index has, in an order unknown to the processor.
struct Bare {
    lines: Vec<Line>,
}

impl Bare {
    fn new(drivers: usize) -> Self {
        Self {
            lines: (0..drivers * LINES_PER_DRIVER)
                .map(|_| Line::default())
                .collect(),
        }
    }

    fn line(&self, driver: u32) -> &AtomicU64 {
        let spread = u64::from(driver.wrapping_mul(0x9E37_79B1));
        &self.lines[((spread * self.lines.len() as u64) >> 32) as usize].0
    }
}

fn update(c: &mut Criterion) {
    let running = Running::new(scaled(100_000));
    let mut group = c.benchmark_group("update");
    short(&mut group);
    group.throughput(Throughput::Elements(1));
    let mut pings = Turn::default();
    group.bench_function("index", |b| {
        b.iter(|| {
            let (slot, ping) = running.ping(&mut pings);
            running.index.place(slot, ping)
        })
    });
    group.bench_function("index_in_batches", |b| {
        b.iter_custom(|times| place_in_batches(&running, &mut pings, times))
    });
    let bare = Bare::new(running.slots.len());
    let mut turn = Turn::default();
    group.bench_function("bare_store", |b| {
        b.iter(|| {
            let line = bare.line(running.driver(&mut turn));
            line.store(1, Ordering::Relaxed)
        })
    });
    group.bench_function("bare_swap", |b| {
        b.iter(|| {
            let line = bare.line(running.driver(&mut turn));
            line.swap(1, Ordering::Relaxed)
        })
    });
    drop(bare);
    let mut turn = 0;
    let squares = Squares::new(&running.city);
    group.bench_function("dashmap", |b| {
        b.iter(|| {
            turn += 1;
            squares.place(running.city.moves[turn % running.city.moves.len()])
        })
    });
    drop(squares);
    let tree = Tree::new(&running.city);
    group.bench_function("rstar", |b| {
        b.iter(|| {
            turn += 1;
            tree.place(running.city.moves[turn % running.city.moves.len()])
        })
    });
    group.finish();
}

/// Batches are gathered outside of the measure: a node has them from the network.
fn place_in_batches(running: &Running, turn: &mut Turn, times: u64) -> Duration {
    let mut spent = Duration::ZERO;
    let mut batch = Vec::with_capacity(BATCH * 16);
    let mut left = times as usize;
    while left > 0 {
        let size = left.min(BATCH * 16);
        batch.clear();
        batch.extend((0..size).map(|_| running.ping(turn)));
        let begin = Instant::now();
        for batch in batch.chunks(BATCH) {
            running.index.place_all(batch, |_, placed| {
                black_box(placed);
            });
        }
        spent += begin.elapsed();
        left -= size;
    }
    spent
}

fn nearest(c: &mut Criterion) {
    let running = Running::new(scaled(100_000));
    let mut group = c.benchmark_group("nearest_10");
    short(&mut group);
    let mut turn = 0;
    let mut out = Vec::with_capacity(64);
    group.bench_function("index", |b| {
        b.iter(|| {
            turn += 1;
            running.query(turn, 1, &mut out);
        })
    });
    let mut out = Vec::with_capacity(64);
    let squares = Squares::new(&running.city);
    group.bench_function("dashmap", |b| {
        b.iter(|| {
            turn += 1;
            squares.nearest(
                running.city.pickups[turn % running.city.pickups.len()],
                &mut out,
            )
        })
    });
    drop(squares);
    let tree = Tree::new(&running.city);
    group.bench_function("rstar", |b| {
        b.iter(|| {
            turn += 1;
            tree.nearest(
                running.city.pickups[turn % running.city.pickups.len()],
                &mut out,
            )
        })
    });
    group.finish();
}

/// From 10,000 to 1,000,000 drivers at the same density.
fn sizes(c: &mut Criterion) {
    let mut group = c.benchmark_group("size");
    short(&mut group);
    for drivers in [10_000, 100_000, 1_000_000] {
        let running = Running::new(scaled(drivers));
        let mut pings = Turn::default();
        group.bench_function(BenchmarkId::new("update", drivers), |b| {
            b.iter(|| {
                let (slot, ping) = running.ping(&mut pings);
                running.index.place(slot, ping)
            })
        });
        group.bench_function(BenchmarkId::new("update_in_batches", drivers), |b| {
            b.iter_custom(|times| place_in_batches(&running, &mut pings, times))
        });
        let mut turn = 0;
        let mut out = Vec::with_capacity(64);
        group.bench_function(BenchmarkId::new("nearest_10", drivers), |b| {
            b.iter(|| {
                turn += 1;
                running.query(turn, 1, &mut out);
            })
        });
        let bare = Bare::new(running.slots.len());
        let mut turn = Turn::default();
        group.bench_function(BenchmarkId::new("bare_store", drivers), |b| {
            b.iter(|| {
                let line = bare.line(running.driver(&mut turn));
                line.store(1, Ordering::Relaxed)
            })
        });
        group.bench_function(BenchmarkId::new("bare_swap", drivers), |b| {
            b.iter(|| {
                let line = bare.line(running.driver(&mut turn));
                line.swap(1, Ordering::Relaxed)
            })
        });
    }
    group.finish();
}

/// One and two threads, each with its half of the drivers; the time is that of all updates together.
fn threads(c: &mut Criterion) {
    let running = Running::new(scaled(100_000));
    let halves: [Vec<Move>; 2] = [0, 1].map(|half| {
        running
            .city
            .moves
            .iter()
            .copied()
            .filter(|one| one.driver % 2 == half)
            .collect()
    });
    let mut group = c.benchmark_group("threads");
    short(&mut group);
    group.throughput(Throughput::Elements(1));
    let time = AtomicU64::new(1);
    for threads in [1, 2] {
        group.bench_function(BenchmarkId::new("update", threads), |b| {
            b.iter_custom(|times| {
                let begin_ms = time.fetch_add(times + 1, Ordering::Relaxed) as i64;
                let gate = std::sync::Barrier::new(threads);
                let work = |half: usize| {
                    gate.wait();
                    let begin = Instant::now();
                    for turn in 0..times as usize / threads {
                        let Move { driver, at } = halves[half][turn % halves[half].len()];
                        let ping = Placement {
                            at,
                            time_ms: begin_ms + turn as i64,
                            seq: 0,
                        };
                        black_box(running.index.place(running.slots[driver as usize], ping));
                    }
                    begin.elapsed()
                };
                std::thread::scope(|scope| {
                    let work = &work;
                    let running: Vec<_> = (0..threads)
                        .map(|half| scope.spawn(move || work(half)))
                        .collect();
                    running
                        .into_iter()
                        .map(|thread| thread.join().unwrap())
                        .max()
                        .unwrap()
                })
            })
        });
    }
    group.finish();
}

/// Queries alone, and while another thread moves drivers as fast as it can.
fn under_writes(c: &mut Criterion) {
    let running = Running::new(scaled(100_000));
    let mut group = c.benchmark_group("nearest_10_beside");
    short(&mut group);
    let mut out = Vec::with_capacity(64);
    let mut turn = 0;
    group.bench_function("no_writes", |b| {
        b.iter(|| {
            turn += 1;
            running.query(turn, 1, &mut out);
        })
    });
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let begin = Instant::now();
            let (mut turn, mut count) = (Turn::default(), 0_u32);
            while !done.load(Ordering::Relaxed) {
                for _ in 0..1_024 {
                    let (slot, ping) = running.ping(&mut turn);
                    running.index.place(slot, ping);
                }
                count += 1_024;
            }
            f64::from(count) / begin.elapsed().as_secs_f64()
        });
        group.bench_function("full_speed_writes", |b| {
            b.iter(|| {
                turn += 1;
                running.query(turn, 1, &mut out);
            })
        });
        done.store(true, Ordering::Relaxed);
        println!(
            "the writer beside: {:.2} million updates/s",
            writer.join().unwrap() / 1e6
        );
    });
    group.finish();
}

fn short(group: &mut criterion::BenchmarkGroup<'_, criterion::measurement::WallTime>) {
    group
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(1_200));
}

criterion_group!(benches, update, nearest, threads, under_writes, sizes);
criterion_main!(benches);
