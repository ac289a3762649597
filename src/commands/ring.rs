//! `cabrank ring`: the table an ownership resolution is chosen from.

use std::path::PathBuf;
use std::process::ExitCode;

use cabrank_geo::Point;
use cabrank_loadgen::trace::{Reports, Trips, Window};
use cabrank_ring::{Ring, table};
use clap::Args;

use crate::{AnyError, Common};

/// Flags of `ring`.
#[derive(Args)]
pub struct RingArgs {
    /// Recorded rides: their pickups are the demand.
    #[arg(long, value_name = "FILE")]
    trips: PathBuf,
    /// Recorded positions, whose copies are counted; the pickups if absent.
    #[arg(long, value_name = "FILE")]
    gps: Option<PathBuf>,
    /// Number of shards.
    #[arg(long, default_value_t = 8)]
    shards: u16,
    /// Largest search radius in metres.
    #[arg(long, default_value_t = 5_000.0)]
    halo: f64,
}

/// Prints one line a resolution.
pub fn run(common: &Common, args: RingArgs) -> Result<ExitCode, AnyError> {
    let chosen = common.settings(|_| {})?.engine.ownership_resolution;
    let window = Window::default();
    let pickups: Vec<Point> = Trips::open(&args.trips, window)?
        .map(|trip| trip.pickup.0)
        .collect();
    let pings: Vec<Point> = match &args.gps {
        Some(gps) => Reports::open(gps, window, 1)?
            .filter_map(|report| Point::new(report.lat, report.lon).ok())
            .collect(),
        None => pickups.clone(),
    };
    let ring = Ring::new(args.shards)?;
    let (rides, positions) = (pickups.len(), pings.len());
    let rows = table::ownership_table(&ring, pickups, pings, args.halo);
    println!(
        "{rides} pickups, {positions} positions, {} shards, halo {} m",
        args.shards, args.halo
    );
    print!("{}", table::render(&rows));
    println!("configured: engine.ownership_resolution = {chosen}");
    Ok(ExitCode::SUCCESS)
}
