//! `cabrank provider-sim`: a payment provider that misbehaves as told.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use cabrank_services::provider_sim::{Faults, ProviderSim};
use clap::Args;
use tokio::net::TcpListener;

use super::{block_on, shutdown_signal};
use crate::AnyError;

/// Flags of `provider-sim`.
#[derive(Args)]
pub struct ProviderSimArgs {
    /// Address to answer on; port 0 takes a free one.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Keep the ledger in this file, one JSON line a movement.
    #[arg(long, value_name = "FILE")]
    ledger: Option<PathBuf>,
    /// Shortest time to an answer, ms.
    #[arg(long, default_value_t = 5)]
    latency_min_ms: u64,
    /// Longest time to an answer, ms.
    #[arg(long, default_value_t = 40)]
    latency_max_ms: u64,
    /// Chance of a 503 with nothing done, 0 to 1.
    #[arg(long, default_value_t = 0.0, value_parser = chance)]
    errors: f64,
    /// Chance that a call is done and its answer lost.
    #[arg(long, default_value_t = 0.0, value_parser = chance)]
    lost: f64,
    /// Chance that a call hangs and does nothing.
    #[arg(long, default_value_t = 0.0, value_parser = chance)]
    hangs: f64,
    /// Chance that a call arrives twice.
    #[arg(long, default_value_t = 0.0, value_parser = chance)]
    duplicates: f64,
    /// Share of means of payment that are declined.
    #[arg(long, default_value_t = 0.0, value_parser = chance)]
    declines: f64,
    /// Repeats the same misbehaviour.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn chance(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|why| format!("{why}"))?;
    if (0.0..=1.0).contains(&value) {
        Ok(value)
    } else {
        Err("choose from 0 to 1".to_owned())
    }
}

/// Serves until SIGTERM or Ctrl-C, then prints the ledger's sums.
pub fn run(args: &ProviderSimArgs) -> Result<ExitCode, AnyError> {
    let faults = Faults {
        latency_ms: (args.latency_min_ms, args.latency_max_ms),
        error: args.errors,
        lost: args.lost,
        hang: args.hangs,
        duplicate: args.duplicates,
        decline: args.declines,
        ..Faults::default()
    };
    let sim = ProviderSim::new(faults, args.seed, args.ledger.clone())?;
    block_on(async {
        let stop = shutdown_signal()?;
        let listener = TcpListener::bind(args.listen).await?;
        println!("http://{}", listener.local_addr()?);
        sim.clone().serve(listener, stop).await?;
        Ok(())
    })?;
    println!("{}", serde_json::to_string(&sim.sums())?);
    Ok(ExitCode::SUCCESS)
}
