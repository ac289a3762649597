//! The hidden `cabrank load index`: what does the index alone cost at a size? A row of the suite; `benches/geo_index` looks
//! closer.
//!
//! Moves, places and the order of drivers are drawn before the clock starts, for the index and the bare store alike.

use std::hint::black_box;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};

use cabrank_geo::{
    DriverKey, Filter, IndexConfig, LiveIndex, Placement, Point, Query, Slot, Status,
};
use cabrank_loadgen::load::clock::now_ns;
use cabrank_loadgen::load::usage;
use clap::Args;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde_json::json;

use crate::AnyError;

const SEED: u64 = 20_080_522;
/// Drivers for whom 39 x 34 km is; other sizes are as dense.
const DENSE: f64 = 100_000.0;
const MOVES: usize = 1_000_000;
const SEARCHES: usize = 50_000;
const STEP_M: f64 = 50.0;
/// The class asked for: every second driver has it, and three of four are free.
const CLASS: u8 = 1;
/// Cache lines a driver takes in the index (`geo/tests/memory.rs`): the bare store writes into as much memory.
const LINES_PER_DRIVER: usize = 3;

/// Flags of the hidden `load index`.
#[derive(Args, Clone)]
pub struct IndexArgs {
    /// Drivers.
    #[arg(long, default_value_t = 100_000)]
    drivers: u32,
    /// Where the numbers are written.
    #[arg(long)]
    report: PathBuf,
}

#[repr(align(64))]
#[derive(Default)]
struct Line(AtomicU64);

/// Measures and writes the numbers.
pub fn run(args: &IndexArgs) -> Result<ExitCode, AnyError> {
    let drivers = args.drivers.clamp(100, 2_000_000);
    let mut rng = SmallRng::seed_from_u64(SEED);
    let scale = (f64::from(drivers) / DENSE).sqrt();
    let (north_m, east_m) = (34_000.0 * scale, 39_000.0 * scale);
    let corner = Point::new(37.5, -122.6)?;
    let mut start = Vec::new();
    for _ in 0..drivers {
        let (north, east) = (
            rng.random_range(0.0..north_m),
            rng.random_range(0.0..east_m),
        );
        start.push(corner.offset_m(north, 0.0).offset_m(0.0, east));
    }
    let memory = || usage::of(std::process::id()).map_or(0.0, |usage| usage.memory_mib);
    let mut slots: Vec<Slot> = Vec::with_capacity(drivers as usize);
    let before = memory();
    let index = LiveIndex::new(IndexConfig::city(drivers));
    for (driver, &at) in start.iter().enumerate() {
        let slot = index.enter(DriverKey(driver as u64))?;
        index.place(
            slot,
            Placement {
                at,
                time_ms: 0,
                seq: 0,
            },
        );
        let status = if driver % 4 == 3 {
            Status::Busy
        } else {
            Status::Free
        };
        index.set_status(slot, status, if driver % 8 < 4 { CLASS } else { 2 }, 1);
        slots.push(slot);
    }
    let handles_mib = (slots.capacity() * size_of::<Slot>()) as f64 / 1_048_576.0;
    let bytes = (memory() - before - handles_mib) * 1_048_576.0 / f64::from(drivers);
    let mut moves = Vec::with_capacity(MOVES);
    for turn in 0..MOVES {
        let driver = rng.random_range(0..drivers) as usize;
        let course = rng.random_range(0.0..std::f64::consts::TAU);
        start[driver] = start[driver].offset_m(STEP_M * course.sin(), STEP_M * course.cos());
        let ping = Placement {
            at: start[driver],
            time_ms: turn as i64 + 1,
            seq: 0,
        };
        moves.push((slots[driver], ping));
    }
    let began = now_ns();
    for &(slot, ping) in &moves {
        black_box(index.place(slot, ping));
    }
    let ping_ns = (now_ns() - began) as f64 / MOVES as f64;
    let lines: Vec<Line> = (0..drivers as usize * LINES_PER_DRIVER)
        .map(|n| Line(AtomicU64::new(n as u64)))
        .collect();
    let places: Vec<u32> = (0..MOVES)
        .map(|_| rng.random_range(0..lines.len() as u32))
        .collect();
    let began = now_ns();
    for (n, &place) in places.iter().enumerate() {
        // Relaxed: one thread, and the value means nothing.
        lines[place as usize].0.store(n as u64, Ordering::Relaxed);
    }
    let store_ns = (now_ns() - began) as f64 / MOVES as f64;
    let filter = Filter {
        now_ms: MOVES as i64,
        ping_ttl_ms: i64::MAX / 2,
        status: Some(Status::Free),
        classes: CLASS,
    };
    let pickups: Vec<Point> = (0..SEARCHES)
        .map(|_| start[rng.random_range(0..drivers) as usize])
        .collect();
    let mut out = Vec::with_capacity(64);
    let began = now_ns();
    for &at in &pickups {
        let query = Query {
            at,
            radius_m: 5_000.0,
            k: 10,
            filter,
        };
        index.nearest(&query, |_| true, &mut out);
        black_box(&out);
    }
    let search_us = (now_ns() - began) as f64 / SEARCHES as f64 / 1_000.0;
    let found = json!({
        "valid": true,
        "drivers": drivers,
        "bytes_per_driver": bytes,
        "ping_ns": ping_ns,
        "store_ns": store_ns,
        "search_us": search_us,
    });
    std::fs::write(&args.report, format!("{found:#}\n"))?;
    println!("{found:#}");
    Ok(ExitCode::SUCCESS)
}
