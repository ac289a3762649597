//! `cabrank demo`: a server, and a synthetic city of real clients.

use std::path::PathBuf;
use std::process::ExitCode;

use cabrank_loadgen::demo::{DemoOptions, demo};
use cabrank_matcher::clock::DomainClock;
use clap::Args;
use tokio::sync::watch;

use super::{block_on, shutdown_signal, token::minter};
use crate::server::Server;
use crate::{AnyError, Common, Place, report};

/// Flags of `demo`.
#[derive(Args)]
pub struct DemoArgs {
    /// Drivers, each with a WebSocket of its own.
    #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    drivers: u32,
    /// Rides asked for a minute, on average.
    #[arg(long, default_value_t = 300.0)]
    requests_per_minute: f64,
    /// Stop by itself after so many seconds; otherwise at Ctrl-C.
    #[arg(long)]
    seconds: Option<u64>,
    /// Repeats the same city.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Write the run's report (cabrank.report/1 JSON) here.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    #[command(flatten)]
    place: Place,
}

/// Runs the city; exit code 1 if the audit finds anything or the run is not valid.
pub fn run(common: &Common, args: DemoArgs) -> Result<ExitCode, AnyError> {
    if !(args.requests_per_minute > 0.0 && args.requests_per_minute <= 1e6) {
        return Err(format!(
            "--requests-per-minute {}: choose above 0",
            args.requests_per_minute
        )
        .into());
    }
    let scratch = report::Scratch::unless(args.place.data_dir.is_some())?;
    let settings = common.settings(|settings| {
        args.place.apply(settings);
        if let Some(dir) = scratch.dir() {
            settings.store.data_dir = dir.to_path_buf();
        }
    })?;
    let data_dir = settings.store.data_dir.clone();
    let outcome = block_on(async move {
        let shutdown = shutdown_signal()?;
        let server = Server::start(&settings, DomainClock::wall()).await?;
        let url = format!("http://{}", server.address());
        println!("{url}");
        let (tell, stop) = watch::channel(false);
        let failed = server.failed();
        tokio::spawn(async move {
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = failed.cancelled() => {}
            }
            // Nobody listens any more when the run has ended by itself.
            let _ = tell.send(true);
        });
        let options = DemoOptions {
            drivers: args.drivers,
            requests_per_minute: args.requests_per_minute,
            seconds: args.seconds,
            seed: args.seed,
            arguments: std::env::args().skip(1).collect(),
            ..DemoOptions::new(&url, minter(&settings))
        };
        let outcome = demo(options, stop).await;
        server.stop().await?;
        Ok(outcome?)
    })?;
    report::conclude(outcome, &data_dir, args.report.as_deref())
}
