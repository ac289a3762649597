//! `cabrank load`: the load generator, what it prints, and when it fails. The processes it starts are in `own`, the search for
//! the highest rate in `search`, a restart under load in `storm`, the whole table in `suite`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cabrank_gateway::token::{Role, mint};
use cabrank_loadgen::audit::AuditReport;
use cabrank_loadgen::client;
use cabrank_loadgen::load::conditions::{self, Phases};
use cabrank_loadgen::load::conduct::{Crew, Measured, Status, conduct};
use cabrank_loadgen::load::ghosts::ghosts;
use cabrank_loadgen::load::plan::{Area, Frames, Plan, Shares, Target, TraceFiles};
use cabrank_loadgen::load::report::{Bounds, report as build_report};
use cabrank_loadgen::load::schedule::{Arrivals, Burst, Rate};
use cabrank_loadgen::report::Report;
use clap::{Args, Subcommand, ValueEnum};
use futures_util::StreamExt;

use super::{audit, block_on, shutdown_signal};
use crate::report::Scratch;
use crate::{AnyError, Common};

mod index;
mod own;
mod search;
mod storm;
mod suite;

use own::OwnServer;
pub use own::{ServerArgs, SinkArgs, run_load_part, run_raw_sink, run_server};

/// Drivers of the look for ghosts.
const GHOSTS_MAX: u32 = 1_000;

/// What an overload offers, measured in what the server can take; and what is offered before and after it.
const OVERLOAD_TIMES: f64 = 2.0;
const CALM_TIMES: f64 = 0.5;
/// Seconds after an overload, in the first [`conditions::RECOVERY_S`] of which it may recover.
const AFTER_S: f64 = 15.0;
/// Wishes called off at the same time when a run ends.
const CALLS_OFF_AT_ONCE: usize = 64;

/// What else there is below `load`.
#[derive(Subcommand, Clone)]
enum LoadCommand {
    /// Measure every row of the table of what must be reached, and print it.
    Suite(suite::SuiteArgs),
    /// What the index alone costs, a row of the table.
    #[command(hide = true)]
    Index(index::IndexArgs),
}

/// Flags of `load`.
#[derive(Args, Clone)]
#[command(args_conflicts_with_subcommands = true)]
pub struct LoadArgs {
    #[command(subcommand)]
    command: Option<LoadCommand>,
    /// A running server; several for several gateways of a cluster. Without it a server is started on a directory that is
    /// thrown away, as a process of its own.
    #[arg(long, value_name = "URL")]
    url: Vec<String>,
    /// What is measured: `cabrank`; `raw`, a bare WebSocket server that only reads (started here); or redis://HOST:PORT, a
    /// running Redis that gets GEOADD and GEOSEARCH.
    #[arg(long, default_value = "cabrank")]
    target: String,
    /// With `--target raw`: it also parses each frame.
    #[arg(long, requires = "target")]
    decode: bool,
    /// Signs the tokens; default: the configured secret.
    #[arg(
        long,
        value_name = "SECRET",
        env = "CABRANK_SECRET",
        hide_env_values = true
    )]
    secret: Option<String>,
    /// The server's process, if it runs on this machine: its CPU and memory go into the report.
    #[arg(long, value_name = "PID")]
    server_pid: Vec<u32>,
    /// Position reports a second, all drivers together.
    #[arg(long, value_name = "RATE", default_value_t = 0.0)]
    pings_per_second: f64,
    /// Rides asked for a second, each driven to its end.
    #[arg(long, value_name = "RATE", default_value_t = 0.0)]
    rides_per_second: f64,
    /// Searches for cars a second.
    #[arg(long, value_name = "RATE", default_value_t = 0.0)]
    nearby_per_second: f64,
    /// A rate that rises or falls in a straight line: [pings=|rides=|nearby=]FROM:TO:SECONDS.
    #[arg(long, value_name = "RAMP")]
    ramp: Vec<String>,
    /// How the moments of sending are drawn.
    #[arg(long, value_enum, default_value = "poisson")]
    arrivals: ArrivalsArg,
    /// Only for comparisons: N requesters who each send again as soon as they can, instead of a schedule.
    #[arg(long, value_name = "N")]
    closed_loop: Option<u32>,
    /// Drivers.
    #[arg(long, default_value_t = 1_000)]
    drivers: u32,
    /// Sockets of drivers; more drivers than that come online, report once and hang up. Default: one each.
    #[arg(long)]
    connections: Option<u32>,
    /// Keep-alive connections for searches.
    #[arg(long, default_value_t = 8)]
    nearby_connections: u32,
    /// Keep-alive connections for ride requests.
    #[arg(long, default_value_t = 64)]
    ride_connections: u32,
    /// Measured time.
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// Time before it, under the same load (none before a ramp).
    #[arg(long, value_name = "SECONDS", default_value_t = 2.0)]
    warmup: f64,
    /// Repeats places, choices and moments.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Generator processes.
    #[arg(long, default_value_t = 1)]
    processes: u32,
    /// Threads of each.
    #[arg(long, default_value_t = 1)]
    threads: u32,
    /// How messages are written.
    #[arg(long, value_enum, default_value = "json")]
    frames: FramesArg,
    /// Pings of one frame.
    #[arg(long, default_value_t = 1)]
    pings_per_frame: u32,
    /// Frames of one socket that share a write.
    #[arg(long, default_value_t = 1)]
    frames_per_write: u32,
    /// Share of offers declined.
    #[arg(long, default_value_t = 0.0)]
    decline: f64,
    /// Share of offers left unanswered.
    #[arg(long, default_value_t = 0.0)]
    ignore: f64,
    /// Share of rides called off by the rider at once.
    #[arg(long, default_value_t = 0.0)]
    cancel: f64,
    /// Between an offer and its answer, ms.
    #[arg(long, default_value_t = 0)]
    think_ms: u64,
    /// Between accept, arrival, start and completion, ms each.
    #[arg(long, default_value_t = 0)]
    step_ms: u64,
    /// Spread people evenly over so many km (39x34) instead of over the demo's city.
    #[arg(long, value_name = "EASTxNORTH")]
    area_km: Option<String>,
    /// Radius of a search, metres.
    #[arg(long, default_value_t = 2_000.0)]
    radius: f64,
    /// Cars wanted by a search.
    #[arg(long, default_value_t = 10)]
    k: u32,
    /// Do not measure how soon a ping is visible.
    #[arg(long)]
    no_probe: bool,
    /// Probe these brokers before and after the load, at the same rate of rides, and say how many times the probe's
    /// median request to offer took. Shards and copies are `kafka.shards` and `kafka.replication`.
    #[arg(long, value_name = "HOST:PORT,...", requires = "url")]
    kafka_probe: Option<String>,
    /// Find the highest rate of one kind that keeps `--p99-below`; begins with the rate given for it, `--seconds` a trial.
    #[arg(long, value_enum, value_name = "KIND")]
    find_max: Option<MaxKind>,
    /// The bound of `--find-max`: pings until a search shows them, rides until the offer, searches until answered.
    #[arg(long, value_name = "MS", requires = "find_max")]
    p99_below: Option<String>,
    /// Afterwards all drivers of a place move 5 km and then go offline: what a search still shows is stale.
    #[arg(long)]
    ghosts: bool,
    /// The rates are the highest the server keeps: after `--seconds` of half of them, twice as much is offered, then half
    /// again for 15 s. What must be kept meanwhile and afterwards is judged.
    #[arg(long, conflicts_with_all = ["ramp", "find_max", "closed_loop", "storm"])]
    overload: bool,
    /// How long an overload lasts.
    #[arg(long, value_name = "SECONDS", default_value_t = 30.0)]
    overload_seconds: f64,
    /// The server is started again after a third of `--seconds`: all sockets come back at once. What must be kept is judged.
    #[arg(long, conflicts_with_all = ["url", "find_max", "closed_loop"])]
    storm: bool,
    /// Recorded cabs whose ways the drivers drive; several files lie over each other.
    #[arg(long, value_name = "FILE")]
    gps: Vec<PathBuf>,
    /// Recorded trips the riders ask for, in their order; several files lie over each other.
    #[arg(long, value_name = "FILE")]
    trips: Vec<PathBuf>,
    /// The run does not count if the generator's own lateness exceeds this (p99).
    #[arg(long, value_name = "MS", default_value_t = 5.0)]
    lateness_p99_ms: f64,
    /// Write the report (cabrank.report/1 JSON) here.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Write the report as one page with pictures here.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// How far the server started here stands back behind the generator when both want the processors, as `nice` counts:
    /// beyond what the machine can do a generator that waits for a processor measures itself.
    #[arg(long, value_name = "0-19", default_value_t = 0, conflicts_with = "url", value_parser = clap::value_parser!(u8).range(0..=19))]
    server_nice: u8,
    /// Keep the log of the server started here in this directory.
    #[arg(long, value_name = "DIR", conflicts_with = "url")]
    data_dir: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum MaxKind {
    Pings,
    Rides,
    Nearby,
}

#[derive(Clone, Copy, ValueEnum)]
enum ArrivalsArg {
    Poisson,
    Fixed,
}

#[derive(Clone, Copy, ValueEnum)]
enum FramesArg {
    Json,
    Protobuf,
}

impl LoadArgs {
    /// What is measured, as far as the flag makes sense; [`LoadArgs::plan`] complains.
    fn target(&self) -> Target {
        match self.target.as_str() {
            "raw" => Target::Raw,
            url if url.contains("://") => Target::Redis,
            _ => Target::Cabrank,
        }
    }

    /// The seconds of an overload's phases.
    fn phases(&self) -> Phases {
        let normal = self.seconds.floor() as usize;
        let overload = normal + self.overload_seconds.floor() as usize;
        Phases {
            normal: 0..normal,
            overload: normal..overload,
            after: overload..overload + AFTER_S as usize,
        }
    }

    fn plan(&self, urls: Vec<String>, secret: String) -> Result<Plan, AnyError> {
        let mut plan = Plan::new("", &secret);
        plan.urls = urls
            .iter()
            .map(|url| url.trim_end_matches('/').to_owned())
            .collect();
        plan.target = self.target();
        if plan.target == Target::Cabrank && self.target != "cabrank" {
            return Err(format!(
                "--target {}: choose cabrank, raw or redis://HOST:PORT",
                self.target
            )
            .into());
        }
        if let Some(missing) = self
            .gps
            .iter()
            .chain(&self.trips)
            .find(|file| !file.is_file())
        {
            return Err(format!("{}: there is no such file", missing.display()).into());
        }
        plan.traces = TraceFiles {
            gps: self.gps.clone(),
            trips: self.trips.clone(),
        };
        plan.pings = Rate::steady(self.pings_per_second);
        plan.rides = Rate::steady(self.rides_per_second);
        plan.nearby = Rate::steady(self.nearby_per_second);
        plan.warmup_s = self.warmup;
        for ramp in &self.ramp {
            let (kind, ramp) = ramp.split_once('=').unwrap_or(("pings", ramp));
            let ramp = Rate::parse_ramp(ramp).map_err(|why| format!("--ramp: {why}"))?;
            match kind {
                "pings" => plan.pings = ramp,
                "rides" => plan.rides = ramp,
                "nearby" => plan.nearby = ramp,
                other => {
                    return Err(format!("--ramp {other}=: choose pings, rides or nearby").into());
                }
            }
            plan.warmup_s = 0.0;
        }
        plan.arrivals = match self.arrivals {
            ArrivalsArg::Poisson => Arrivals::Poisson,
            ArrivalsArg::Fixed => Arrivals::Fixed,
        };
        plan.closed_loop = self.closed_loop;
        plan.drivers = self.drivers;
        plan.connections = self.connections.unwrap_or(self.drivers);
        plan.nearby_connections = self.nearby_connections;
        plan.ride_connections = self.ride_connections;
        plan.seconds = self.seconds;
        plan.seed = self.seed;
        plan.parts = self.processes;
        plan.threads = self.threads;
        plan.frames = match self.frames {
            FramesArg::Json => Frames::Json,
            FramesArg::Protobuf => Frames::Protobuf,
        };
        plan.pings_per_frame = self.pings_per_frame;
        plan.frames_per_write = self.frames_per_write;
        plan.shares = Shares {
            decline: self.decline,
            ignore: self.ignore,
            cancel: self.cancel,
        };
        plan.think_ms = self.think_ms;
        plan.step_ms = self.step_ms;
        plan.area = match &self.area_km {
            None => Area::City,
            Some(text) => parse_area(text)?,
        };
        plan.radius_m = self.radius;
        plan.k = self.k;
        plan.probe = !self.no_probe;
        if self.overload {
            if self.seconds < 2.0 || self.overload_seconds < 2.0 {
                return Err("--overload: --seconds and --overload-seconds at least 2".into());
            }
            let phases = self.phases();
            for rate in [&mut plan.pings, &mut plan.rides, &mut plan.nearby] {
                *rate = rate.scaled(CALM_TIMES);
                rate.burst = Some(Burst {
                    from_s: plan.warmup_s + phases.overload.start as f64,
                    lasts_s: phases.overload.len() as f64,
                    times: OVERLOAD_TIMES / CALM_TIMES,
                });
            }
            plan.seconds = phases.after.end as f64;
        }
        if plan.pings.is_zero() && plan.rides.is_zero() && plan.nearby.is_zero() && !self.ghosts {
            return Err(
                "nothing to do: give --pings-per-second, --rides-per-second or --nearby-per-second"
                    .into(),
            );
        }
        plan.check()?;
        Ok(plan)
    }
}

fn parse_area(text: &str) -> Result<Area, AnyError> {
    let bad = || format!("--area-km {text}: give EASTxNORTH in km, for example 39x34");
    let (east, north) = text.split_once('x').ok_or_else(bad)?;
    let km = |text: &str| {
        text.parse::<f64>()
            .ok()
            .filter(|km| (0.1..=2_000.0).contains(km))
            .ok_or_else(bad)
    };
    Ok(Area::Even {
        east_km: km(east)?,
        north_km: km(north)?,
    })
}

/// Measures; exit code 1 if the run is not valid or the audit finds anything.
pub fn run(common: &Common, args: LoadArgs) -> Result<ExitCode, AnyError> {
    match args.command {
        Some(LoadCommand::Suite(suite)) => return suite::run(common, suite),
        Some(LoadCommand::Index(index)) => return index::run(&index),
        None => {}
    }
    let settings = common.settings(|_| {})?;
    let secret = args
        .secret
        .clone()
        .unwrap_or_else(|| settings.gateway.keys.secret.clone());
    let scratch = Scratch::unless(args.data_dir.is_some() || !args.url.is_empty())?;
    let data_dir = args
        .data_dir
        .clone()
        .or(scratch.dir().map(Path::to_path_buf));
    // Checked before anything is started.
    let target = args.target();
    let far = match target {
        Target::Redis => vec![args.target.clone()],
        Target::Cabrank | Target::Raw => args.url.clone(),
    };
    let checked = match &far[..] {
        [] => vec!["http://checked-later".into()],
        given => given.to_vec(),
    };
    args.plan(checked, secret.clone())?;
    let own = match &far[..] {
        [] => Some(OwnServer::start(common, &args, data_dir.as_deref(), None)?),
        _ => None,
    };
    let urls = own.as_ref().map_or(far, |own| vec![own.url.clone()]);
    let plan = args.plan(urls, secret)?;
    let mut pids = args.server_pid.clone();
    pids.extend(own.as_ref().map(|own| own.child.id()));
    let floor =
        |probe: &String| super::probe::beside(&settings.kafka, probe, args.rides_per_second);
    let mut probes: Vec<_> = args
        .kafka_probe
        .iter()
        .map(floor)
        .collect::<Result<_, _>>()?;
    let (mut ran, own) = match (args.find_max, own) {
        (Some(kind), own) => (search::find_max(&args, &plan, &pids, kind)?, own),
        (None, Some(own)) if args.storm => {
            storm::run(common, &args, &plan, &pids, own, data_dir.as_deref())?
        }
        (None, own) => (Ran::of(&args, &plan, &pids, Arc::new(print_status))?, own),
    };
    if args.ghosts {
        ran.look_for_ghosts(&plan)?;
    }
    if let Some(brokers) = &args.kafka_probe {
        probes.push(floor(brokers)?);
        let offer = &ran.report.latency_ms.request_to_offer;
        let note = super::probe::note(&probes, offer.p50);
        ran.report.notes.push(note);
    }
    let is_complete = ran.report.rides.open == 0;
    let audited = match (own, target, &data_dir) {
        (Some(own), Target::Cabrank, Some(dir)) => {
            own.stop()?;
            Some(audit::of_store(dir, is_complete, &ran.acknowledged)?)
        }
        (None, Target::Cabrank, _) => Some(audit::of_server(
            common,
            &plan.urls[0],
            false,
            &ran.acknowledged,
        )?),
        (own, _, _) => {
            own.map(OwnServer::stop).transpose()?;
            None
        }
    };
    let report = judged(ran.report, audited.as_ref());
    if let Some(file) = &args.report {
        std::fs::write(file, report.to_json())
            .map_err(|why| format!("--report {}: {why}", file.display()))?;
    }
    if let Some(file) = &args.html {
        let page = cabrank_loadgen::load::html::page(&report)?;
        std::fs::write(file, page).map_err(|why| format!("--html {}: {why}", file.display()))?;
    }
    print!("{}", summary(&report));
    if let Some(audited) = &audited {
        print!("audit: {audited}");
    }
    Ok(if report.valid {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    })
}

/// The report with the audit's word: a fast run with a violation is a failed run.
fn judged(report: Report, audited: Option<&AuditReport>) -> Report {
    match audited {
        Some(audited) => report.with_audit(audited.summary()),
        None => report,
    }
}

/// A run that is over, before the audit.
pub struct Ran {
    report: Report,
    acknowledged: Vec<String>,
}

/// Told about once a second.
pub type OnStatus = Arc<dyn Fn(&Status) + Send + Sync>;

fn print_status(status: &Status) {
    eprintln!("{status}");
}

impl Ran {
    fn of(
        args: &LoadArgs,
        plan: &Plan,
        pids: &[u32],
        on_status: OnStatus,
    ) -> Result<Ran, AnyError> {
        let (measured, ended) = conducted(plan, pids, on_status)?;
        let bounds = Bounds {
            lateness_p99_ms: args.lateness_p99_ms,
            is_overload: args.overload || args.storm,
        };
        let mut report = build_report(plan, &measured, &bounds, arguments());
        report.rides.open = report.rides.open.saturating_sub(ended);
        report.rides.cancelled += ended;
        if report.rides.open > 0 {
            let what = format!("{} rides did not reach an end", report.rides.open);
            if measured.stopped || bounds.is_overload {
                report.notes.push(what);
            } else {
                report.invalidate(what);
            }
        }
        judge_conditions(args, &mut report, &measured);
        let promised = measured
            .tally
            .rides
            .iter()
            .filter(|(_, ride)| ride.promised.is_some());
        let acknowledged = promised.map(|(ride, _)| ride.to_string()).collect();
        Ok(Ran {
            report,
            acknowledged,
        })
    }

    fn look_for_ghosts(&mut self, plan: &Plan) -> Result<(), AnyError> {
        let found = block_on(async {
            let context = client::Context::new(&plan.urls[0], minter(&plan.secret), 1.0)?;
            Ok(ghosts(&context, plan.drivers.min(GHOSTS_MAX)).await?)
        })?;
        let stale = found.stale_after_move + found.stale_after_offline;
        println!(
            "ghosts: {} stale cars in {} searches after all had moved 5 km, {} in {} after all went offline",
            found.stale_after_move,
            found.searches_after_move,
            found.stale_after_offline,
            found.searches_after_offline
        );
        if let Some(load) = &mut self.report.load {
            load.ghosts = Some(found);
        }
        if stale > 0 {
            self.report
                .invalidate(format!("{stale} stale cars were shown"));
        }
        Ok(())
    }
}

/// What had to be kept under an overload or in a storm.
fn judge_conditions(args: &LoadArgs, report: &mut Report, measured: &Measured) {
    let unaccounted = report.pings.unaccounted;
    let Some(load) = &mut report.load else { return };
    let tally = &measured.tally;
    if args.overload {
        load.conditions = conditions::overload(load, tally, &args.phases(), unaccounted);
    }
    if args.storm {
        let storm = conditions::storm(&measured.online, u64::from(load.connections));
        load.conditions = conditions::storm_conditions(&storm, load, tally);
        load.storm = Some(storm);
    }
    let broken = load.conditions.iter().filter(|one| !one.kept);
    let broken: Vec<String> = broken
        .map(|one| format!("not kept: {} ({})", one.what, one.found))
        .collect();
    for what in broken {
        report.invalidate(what);
    }
}

/// The command line as it stands in a report: without the secret.
fn arguments() -> Vec<String> {
    let mut hide = false;
    let shown = std::env::args().skip(1).map(|argument| {
        let is_value = std::mem::replace(&mut hide, argument == "--secret");
        match argument.split_once('=') {
            _ if is_value => "(hidden)".to_owned(),
            Some(("--secret", _)) => "--secret=(hidden)".to_owned(),
            _ => argument,
        }
    });
    shown.collect()
}

/// Runs the generator; answers what it measured and how many open rides were called off afterwards.
fn conducted(plan: &Plan, pids: &[u32], on_status: OnStatus) -> Result<(Measured, u64), AnyError> {
    let stop = Arc::new(AtomicBool::new(false));
    let crew = Crew {
        program: std::env::current_exe()?,
        arguments: vec!["load-part".into()],
        server_pids: pids.to_vec(),
        stop: Arc::clone(&stop),
        on_status,
    };
    block_on(async move {
        let shutdown = shutdown_signal()?;
        tokio::spawn(async move {
            shutdown.cancelled().await;
            // Relaxed: the flag stands for itself.
            stop.store(true, Ordering::Relaxed);
        });
        let work = plan.clone();
        let measured = tokio::task::spawn_blocking(move || conduct(&work, &crew)).await??;
        let ended = end_rides(plan, &measured).await?;
        Ok((measured, ended))
    })
}

/// Calls off what is still open: promised rides no phone completed, and wishes whose answer never came.
pub(super) async fn end_rides(plan: &Plan, measured: &Measured) -> Result<u64, AnyError> {
    let tally = &measured.tally;
    let open = tally
        .rides
        .iter()
        .filter(|(_, ride)| ride.promised.is_some() && !ride.completed && !ride.cancelled);
    let open: Vec<_> = open.map(|(ride, _)| *ride).collect();
    if open.is_empty() && tally.unclear.is_empty() {
        return Ok(0);
    }
    let context = client::Context::new(&plan.urls[0], minter(&plan.secret), 1.0)?;
    let give_up = tokio::time::Instant::now() + Duration::from_secs(20);
    let mut ended = 0;
    for ride in open {
        // False: it has ended meanwhile, or is under way and cannot be called off.
        if client::rider::cancel_as_ops(&context, ride, give_up)
            .await
            .is_ok_and(|called_off| called_off)
        {
            ended += 1;
        }
    }
    // After an overload there are a hundred thousand of these; the log takes what waits at the same time in one write.
    let context = &context;
    futures_util::stream::iter(&tally.unclear)
        .for_each_concurrent(CALLS_OFF_AT_ONCE, |(rider, key)| async move {
            let call = context
                .http
                .post(format!("{}/v1/cancel", context.url))
                .bearer_auth((context.mint)(client::Role::Rider, rider))
                .json(&serde_json::json!({ "key": key }));
            if let Err(why) = call.send().await {
                tracing::debug!(%why, %key, "a wish could not be called off");
            }
        })
        .await;
    Ok(ended)
}

/// Tokens from a secret, valid for a day.
fn minter(secret: &str) -> client::Mint {
    let secret = secret.to_owned();
    Arc::new(move |role, subject| {
        let role = match role {
            client::Role::Driver => Role::Driver,
            client::Role::Rider => Role::Rider,
            client::Role::Ops => Role::Ops,
        };
        mint(&secret, role, subject, Duration::from_secs(86_400)).unwrap_or_default()
    })
}

fn summary(report: &Report) -> String {
    let mut text = String::new();
    let Some(load) = &report.load else {
        return text;
    };
    text += &format!("{}\n", load.workload);
    for (name, kind) in &load.kinds {
        let q = &kind.latency_ms;
        text += &format!(
            "{name:<16} {:>10.0}/s offered {:>10.0}/s done   p50 {:.2} ms, p99 {:.2}, p99.9 {:.2}, max {:.1}\n",
            kind.offered_per_second, kind.done_per_second, q.p50, q.p99, q.p999, q.max
        );
    }
    if let Some(taken) = load.pings_taken_per_second {
        text += &format!("the server took {taken:.0} pings/s\n");
    }
    if let Some(server) = &load.server {
        text += &format!(
            "server    {:.2} cores, {:.0} -> {:.0} MiB (most {:.0})\n",
            server.cores, server.memory_begin_mib, server.memory_end_mib, server.memory_max_mib
        );
    }
    text += &format!("generator {:.2} cores\n", load.generator.cores);
    if let Some(took) = load.host_took_cores {
        text +=
            &format!("others    {took:.2} cores, given by this machine's host to other guests\n");
    }
    let rides = &report.rides;
    if rides.requested > 0 {
        text += &format!(
            "rides     {} asked for, {} promised, {} assigned, {} completed, {} called off, {} open\n",
            rides.requested,
            rides.acknowledged,
            rides.assigned,
            rides.completed,
            rides.cancelled,
            rides.open
        );
    }
    let pings = &report.pings;
    if pings.sent > 0 && load.target == "cabrank" {
        text += &format!(
            "pings     {} sent, {} accepted, {} refused, {} replaced, {} unaccounted\n",
            pings.sent,
            pings.accepted,
            pings.refused_total(),
            pings.replaced,
            pings.unaccounted
        );
    }
    for one in &load.conditions {
        let verdict = if one.kept { "pass" } else { "FAIL" };
        text += &format!("{verdict}: {}: {}\n", one.what, one.found);
    }
    report
        .notes
        .iter()
        .for_each(|note| text += &format!("note: {note}\n"));
    report
        .invalid_because
        .iter()
        .for_each(|why| text += &format!("NOT VALID: {why}\n"));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use cabrank_loadgen::audit::{Audit, AuditOptions};
    use cabrank_loadgen::load::conduct::Measured;

    #[test]
    fn a_ride_that_was_promised_and_is_not_in_the_log_fails_the_run() {
        let plan = Plan::new("http://127.0.0.1:1", "secret");
        let report = build_report(&plan, &Measured::default(), &Bounds::default(), Vec::new());
        let kept = Audit::new(AuditOptions::default()).finish();
        assert!(
            judged(report.clone(), Some(&kept)).valid,
            "{:?}",
            report.invalid_because
        );
        let mut audit = Audit::new(AuditOptions::default());
        audit.acknowledged("1-2-3");
        let failed = judged(report, Some(&audit.finish()));
        assert!(!failed.valid);
        assert!(
            failed.invalid_because[0].contains("violation"),
            "{:?}",
            failed.invalid_because
        );
    }

    #[test]
    fn areas_and_bounds_are_read_and_bad_ones_named() {
        assert_eq!(
            parse_area("39x34").unwrap(),
            Area::Even {
                east_km: 39.0,
                north_km: 34.0
            }
        );
        assert!(parse_area("39").unwrap_err().to_string().contains("39x34"));
        assert_eq!(search::parse_ms("20ms").unwrap(), 20.0);
        assert!(
            search::parse_ms("soon")
                .unwrap_err()
                .to_string()
                .contains("20ms")
        );
    }
}
