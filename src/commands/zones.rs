//! `cabrank zones`: are the zones' files right?

use std::path::PathBuf;
use std::process::ExitCode;

use cabrank_gateway::read_zones;
use clap::Args;

use crate::{AnyError, Common};

/// Flags of `zones`.
#[derive(Args)]
pub struct ZonesArgs {
    /// Directory with `*.geojson` files; without it that of the configuration, `gateway.zones.dir`.
    dir: Option<PathBuf>,
}

/// Prints the zones, or what is wrong with them; exit code 1 then.
pub fn run(common: &Common, args: ZonesArgs) -> Result<ExitCode, AnyError> {
    let dir = match args.dir {
        Some(dir) => dir,
        None => common.settings(|_| {})?.gateway.zones.dir.into(),
    };
    if dir.as_os_str().is_empty() {
        return Err("no zones are configured: name a directory, or set gateway.zones.dir".into());
    }
    let zones = match read_zones(&dir) {
        Ok(zones) => zones,
        Err(bad) => {
            eprintln!("{bad}");
            return Ok(ExitCode::FAILURE);
        }
    };
    for zone in zones.all() {
        println!("{:<13} {}", zone.kind.name(), zone.name);
        for spot in &zone.spots {
            println!("{:<13}   {} at {}", "pickup_point", spot.name, spot.at);
        }
    }
    Ok(ExitCode::SUCCESS)
}
