//! Which ownership resolution suits a market?
//!
//! One city is few cells. Coarse cells put all its rides on one shard; fine ones spread them, but then a ping's
//! halo touches cells of many shards and must be copied to each, and rides of neighbouring streets live apart,
//! where their cars cannot be swapped. [`ownership_table`] shows the trade for a market's own rides.

use std::collections::BTreeSet;
use std::fmt::Write;

use cabrank_geo::{Cell, Point, Resolution, cells_within};

use crate::Ring;

/// The coarsest and the finest resolution worth looking at: about 1,770 km2 and 0.74 km2 a cell.
pub const RESOLUTIONS: std::ops::RangeInclusive<u8> = 4..=8;

/// Halos are measured at up to this many pings, taken evenly from all: fine cells make each of them costly.
pub const HALO_PINGS_MAX: usize = 2_000;

/// What one ownership resolution does to a market.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Row {
    /// The H3 resolution.
    pub resolution: Resolution,
    /// Cells with at least one pickup.
    pub cells: usize,
    /// Shards with at least one pickup.
    pub shards: usize,
    /// Part of all pickups in the busiest cell, 0 to 1.
    pub largest_cell_share: f64,
    /// Part of all pickups on the busiest shard, 0 to 1.
    pub largest_shard_share: f64,
    /// Pickups of the busiest shard over the mean of all shards: 1 is even, the number of shards is worst.
    pub largest_to_mean: f64,
    /// Shards that need a ping, in the mean: 1 is the owner alone.
    pub halo_copies: f64,
}

/// One row per resolution of [`RESOLUTIONS`]: `pickups` are the demand, `pings` the positions whose copies are
/// counted, `halo_m` the largest search radius in metres. Without pickups or pings their columns are 0.
pub fn ownership_table(
    ring: &Ring,
    pickups: impl IntoIterator<Item = Point>,
    pings: impl IntoIterator<Item = Point>,
    halo_m: f64,
) -> Vec<Row> {
    let pickups: Vec<Point> = pickups.into_iter().collect();
    let pings: Vec<Point> = pings.into_iter().collect();
    let every = pings.len().div_ceil(HALO_PINGS_MAX).max(1);
    let pings: Vec<Point> = pings.into_iter().step_by(every).collect();
    RESOLUTIONS
        .map(|resolution| {
            let resolution = Resolution::try_from(resolution).expect("4 to 8 are H3 resolutions");
            row(ring, resolution, &pickups, &pings, halo_m)
        })
        .collect()
}

fn row(
    ring: &Ring,
    resolution: Resolution,
    pickups: &[Point],
    pings: &[Point],
    halo_m: f64,
) -> Row {
    let mut cells: Vec<u64> = pickups
        .iter()
        .map(|pickup| Cell::at(*pickup, resolution).into())
        .collect();
    cells.sort_unstable();
    let mut by_shard = vec![0_usize; usize::from(ring.shards())];
    let (mut cells_with_demand, mut largest_cell) = (0, 0);
    for same in cells.chunk_by(|a, b| a == b) {
        by_shard[usize::from(ring.shard_of_cell(same[0]))] += same.len();
        cells_with_demand += 1;
        largest_cell = largest_cell.max(same.len());
    }
    let largest_shard = by_shard.iter().copied().max().unwrap_or(0);

    let mut near = Vec::new();
    let copies: usize = pings
        .iter()
        .map(|ping| {
            cells_within(*ping, halo_m, resolution, &mut near);
            near.iter()
                .map(|cell| ring.shard_of_cell((*cell).into()))
                .collect::<BTreeSet<u16>>()
                .len()
        })
        .sum();

    Row {
        resolution,
        cells: cells_with_demand,
        shards: by_shard.iter().filter(|pickups| **pickups > 0).count(),
        largest_cell_share: ratio(largest_cell, pickups.len()),
        largest_shard_share: ratio(largest_shard, pickups.len()),
        largest_to_mean: ratio(largest_shard * usize::from(ring.shards()), pickups.len()),
        halo_copies: ratio(copies, pings.len()),
    }
}

fn ratio(part: usize, whole: usize) -> f64 {
    if whole == 0 {
        0.0
    } else {
        part as f64 / whole as f64
    }
}

/// The rows as a text table with a heading, for a terminal.
pub fn render(rows: &[Row]) -> String {
    let mut text = String::from(
        "resolution  cells  shards  largest cell  largest shard  largest/mean  halo copies\n",
    );
    for row in rows {
        writeln!(
            text,
            "{:>10}  {:>5}  {:>6}  {:>10.1} %  {:>11.1} %  {:>12.2}  {:>11.2}",
            row.resolution.get(),
            row.cells,
            row.shards,
            100.0 * row.largest_cell_share,
            100.0 * row.largest_shard_share,
            row.largest_to_mean,
            row.halo_copies,
        )
        .expect("a String takes whatever is written to it");
    }
    text
}
