//! `cabrank replay`: recorded cabs and trips through the real gateway.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use cabrank_events::Time;
use cabrank_loadgen::client::Role;
use cabrank_loadgen::replay::{Drive, ReplayOptions, replay};
use cabrank_loadgen::trace::Window;
use cabrank_matcher::clock::DomainClock;
use clap::{Args, ValueEnum};
use tokio::sync::watch;

use super::film::{self, Filming};
use super::{block_on, shutdown_signal, token::minter};
use crate::server::Server;
use crate::settings::Preset;
use crate::{AnyError, Common, Place, report};

/// Flags of `replay`.
#[derive(Args)]
pub struct ReplayArgs {
    /// Recorded positions (`sf_gps_*`, gzip or plain CSV).
    #[arg(long, value_name = "FILE")]
    gps: PathBuf,
    /// Recorded demand (`sf_trips_*`, `nyc_*`, gzip or plain CSV).
    #[arg(long, value_name = "FILE")]
    trips: PathBuf,
    /// How much faster than life (0.1 to 1000).
    #[arg(long, default_value_t = 60.0)]
    speed: f64,
    /// `recorded`: every report as it stands; `dispatched`: cars go where they are sent.
    #[arg(long, value_enum, default_value = "recorded")]
    drive: DriveArg,
    /// Only every n-th cab, to make cars scarce.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    fleet_every: u32,
    /// Leave out what is before this (Unix seconds).
    #[arg(long, value_name = "SECONDS")]
    from: Option<i64>,
    /// Leave out what is at or after this (Unix seconds).
    #[arg(long, value_name = "SECONDS")]
    to: Option<i64>,
    /// Repeats the phones' choices.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Write the run's report (cabrank.report/1 JSON) here.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Write a film of the map here: `cabrank watch FILE` shows it again.
    #[arg(long, value_name = "FILE")]
    film: Option<PathBuf>,
    /// From drawing to drawing of the film, seconds of the trace.
    #[arg(long, value_name = "SECONDS", default_value_t = 10, requires = "film", value_parser = clap::value_parser!(u64).range(1..=600))]
    film_every_s: u64,
    /// Use this running server (started with --clock trace) instead of starting one.
    #[arg(long, value_name = "URL", conflicts_with_all = ["data_dir", "listen"])]
    url: Option<String>,
    #[command(flatten)]
    place: Place,
}

#[derive(Clone, Copy, ValueEnum)]
enum DriveArg {
    Recorded,
    Dispatched,
}

/// Replays; exit code 1 if the audit finds anything or the run is not valid.
pub fn run(common: &Common, args: ReplayArgs) -> Result<ExitCode, AnyError> {
    if !(0.1..=1_000.0).contains(&args.speed) {
        return Err(format!("--speed {}: choose 0.1 to 1000", args.speed).into());
    }
    let scratch = report::Scratch::unless(args.place.data_dir.is_some() || args.url.is_some())?;
    // Recorded cabs report about once a minute, unless somebody says otherwise.
    let common = Common {
        preset: common.preset.or(Some(Preset::TaxiFeed)),
        ..common.clone()
    };
    let settings = common.settings(|settings| {
        if args.place.listen.is_none() {
            settings.gateway.listen.set_port(0);
        }
        args.place.apply(settings);
        if let Some(dir) = scratch.dir() {
            settings.store.data_dir = dir.to_path_buf();
        }
        // The rate is counted on the wall clock, which a fast replay outruns.
        settings.gateway.ingest.pings_per_second = 0;
        if args.film.is_some() {
            // All of the city is on it, as fresh as it is asked for.
            settings.gateway.map.drivers_max = 1_000_000;
            settings.gateway.map.tick_ms = 100;
            // Recorded cabs report once a minute: those are not silent.
            settings.gateway.map.silent_ms = settings.node.ping_ttl_ms.max(1_000).unsigned_abs();
        }
    })?;
    let data_dir = settings.store.data_dir.clone();
    let given_url = args.url.clone();
    let report_file = args.report.clone();
    let outcome = block_on(async move {
        let shutdown = shutdown_signal()?;
        let seconds = |given: Option<i64>| given.map(|s| Time(s.saturating_mul(1_000)));
        let mut options =
            ReplayOptions::new("", minter(&settings), args.gps.clone(), args.trips.clone());
        options.speed = args.speed;
        options.fleet_every = args.fleet_every;
        options.seed = args.seed;
        options.window = Window {
            from: seconds(args.from),
            to: seconds(args.to),
        };
        options.drive = match args.drive {
            DriveArg::Recorded => Drive::Recorded,
            DriveArg::Dispatched => Drive::Dispatched,
        };
        options.arguments = std::env::args().skip(1).collect();
        let server = match &args.url {
            Some(_) => None,
            None => {
                let clock = DomainClock::trace(options.begins_at()?, args.speed);
                Some(Server::start(&settings, clock).await?)
            }
        };
        options.url = match (&args.url, &server) {
            (Some(url), _) => url.clone(),
            (None, Some(server)) => format!("http://{}", server.address()),
            (None, None) => unreachable!("without a url a server was started"),
        };
        println!("{}", options.url);
        let (tell, stop) = watch::channel(false);
        let failed = server.as_ref().map(Server::failed).unwrap_or_default();
        tokio::spawn(async move {
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = failed.cancelled() => {}
            }
            // Nobody listens any more when the run has ended by itself.
            let _ = tell.send(true);
        });
        let filming = args.film.as_ref().map(|_| {
            let every_s = args.film_every_s as f64 / args.speed;
            let token = (options.mint)(Role::Ops, "film");
            // The map is drawn no more often.
            let every = Duration::from_secs_f64(every_s).max(Duration::from_millis(100));
            Filming::begin(&options.url, token, every)
        });
        let outcome = replay(options, stop).await;
        if let (Some(file), Some(filming)) = (&args.film, filming) {
            film::write(file, &filming.finish().await?)?;
        }
        if let Some(server) = server {
            server.stop().await?;
        }
        Ok(outcome?)
    })?;
    match given_url {
        Some(url) => report::conclude_remote(&common, outcome, &url, report_file.as_deref()),
        None => report::conclude(outcome, &data_dir, report_file.as_deref()),
    }
}
