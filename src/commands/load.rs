//! `cabrank load`: the load generator, its hidden helpers (a generator process, a server of its own) and what they print.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cabrank_gateway::token::{Role, mint};
use cabrank_loadgen::audit::AuditReport;
use cabrank_loadgen::client;
use cabrank_loadgen::load::conduct::{Crew, Measured, Status, conduct};
use cabrank_loadgen::load::ghosts::ghosts;
use cabrank_loadgen::load::part::run_part;
use cabrank_loadgen::load::plan::{Area, Frames, Plan, Shares, Target};
use cabrank_loadgen::load::report::{Bounds, Trial, report as build_report};
use cabrank_loadgen::load::schedule::{Arrivals, Rate};
use cabrank_loadgen::load::search::Search;
use cabrank_loadgen::load::sink::{Sink, serve};
use cabrank_loadgen::report::Report;
use cabrank_matcher::clock::DomainClock;
use clap::{Args, ValueEnum};

use super::{audit, block_on, shutdown_signal};
use crate::report::Scratch;
use crate::server::Server;
use crate::{AnyError, Common};

/// A server of our own may take so long to say where it listens.
const SERVER_WITHIN: Duration = Duration::from_secs(30);
/// ... and so long to close its store.
const STOP_WITHIN: Duration = Duration::from_secs(60);
/// Drivers of the look for ghosts.
const GHOSTS_MAX: u32 = 1_000;

/// Flags of `load`.
#[derive(Args, Clone)]
pub struct LoadArgs {
    /// A running server; several for several gateways of a cluster. Without it a server is started on a directory that is
    /// thrown away, as a process of its own.
    #[arg(long, value_name = "URL")]
    url: Vec<String>,
    /// What is measured: a Cabrank, or `raw`, a bare WebSocket server that only reads (started here).
    #[arg(long, value_enum, default_value = "cabrank")]
    target: TargetArg,
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
    /// Find the highest rate of one kind that keeps `--p99-below`; begins with the rate given for it, `--seconds` a trial.
    #[arg(long, value_enum, value_name = "KIND")]
    find_max: Option<MaxKind>,
    /// The bound of `--find-max`: pings until a search shows them, rides until the offer, searches until answered.
    #[arg(long, value_name = "MS", requires = "find_max")]
    p99_below: Option<String>,
    /// Afterwards all drivers of a place move 5 km and then go offline: what a search still shows is stale.
    #[arg(long)]
    ghosts: bool,
    /// More is offered than can be taken, on purpose: rides left open and pings without room in their socket do not
    /// make the run invalid.
    #[arg(long)]
    overload: bool,
    /// The run does not count if the generator's own lateness exceeds this (p99).
    #[arg(long, value_name = "MS", default_value_t = 5.0)]
    lateness_p99_ms: f64,
    /// Write the report (cabrank.report/1 JSON) here.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Write the report as one page with pictures here.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Keep the log of the server started here in this directory.
    #[arg(long, value_name = "DIR", conflicts_with = "url")]
    data_dir: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum, PartialEq, Eq)]
enum TargetArg {
    Cabrank,
    Raw,
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
    fn plan(&self, urls: Vec<String>, secret: String) -> Result<Plan, AnyError> {
        let mut plan = Plan::new("", &secret);
        plan.urls = urls
            .iter()
            .map(|url| url.trim_end_matches('/').to_owned())
            .collect();
        plan.target = match self.target {
            TargetArg::Cabrank => Target::Cabrank,
            TargetArg::Raw => Target::Raw,
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
    args.plan(vec!["http://checked-later".into()], secret.clone())?;
    let own = match (&args.url[..], args.target) {
        ([], target) => Some(OwnServer::start(
            common,
            &args,
            target,
            data_dir.as_deref(),
        )?),
        _ => None,
    };
    let urls = own
        .as_ref()
        .map_or(args.url.clone(), |own| vec![own.url.clone()]);
    let plan = args.plan(urls, secret)?;
    let mut pids = args.server_pid.clone();
    pids.extend(own.as_ref().map(|own| own.child.id()));
    let mut ran = match args.find_max {
        Some(kind) => find_max(&args, &plan, &pids, kind)?,
        None => Ran::of(&args, &plan, &pids)?,
    };
    if args.ghosts {
        ran.look_for_ghosts(&plan)?;
    }
    let is_complete = ran.report.rides.open == 0;
    let audited = match (own, args.target, &data_dir) {
        (Some(own), TargetArg::Cabrank, Some(dir)) => {
            own.stop()?;
            Some(audit::of_store(dir, is_complete, &ran.acknowledged)?)
        }
        (None, TargetArg::Cabrank, _) => Some(audit::of_server(
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
struct Ran {
    report: Report,
    acknowledged: Vec<String>,
}

impl Ran {
    fn of(args: &LoadArgs, plan: &Plan, pids: &[u32]) -> Result<Ran, AnyError> {
        let (measured, ended) = conducted(plan, pids.to_vec())?;
        let bounds = Bounds {
            lateness_p99_ms: args.lateness_p99_ms,
            is_overload: args.overload,
        };
        let mut report = build_report(plan, &measured, &bounds, arguments());
        report.rides.open = report.rides.open.saturating_sub(ended);
        report.rides.cancelled += ended;
        if report.rides.open > 0 {
            let what = format!("{} rides did not reach an end", report.rides.open);
            if measured.stopped || args.overload {
                report.notes.push(what);
            } else {
                report.invalidate(what);
            }
        }
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

/// Looks for the highest rate of one kind that keeps the bound; answers the best run, with all rides promised in all.
fn find_max(args: &LoadArgs, plan: &Plan, pids: &[u32], kind: MaxKind) -> Result<Ran, AnyError> {
    let bound = parse_ms(args.p99_below.as_deref().unwrap_or("20ms"))?;
    let first = match kind {
        MaxKind::Pings => plan.pings.to,
        MaxKind::Rides => plan.rides.to,
        MaxKind::Nearby => plan.nearby.to,
    };
    if first <= 0.0 {
        return Err("--find-max: give the rate of that kind to begin with".into());
    }
    let mut search = Search::new(first);
    let mut trials = Vec::new();
    let mut best: Option<Ran> = None;
    let mut acknowledged = Vec::new();
    while let Some(rate) = search.rate() {
        let mut trial_plan = plan.clone();
        trial_plan.run = format!("{}t{}", plan.run, trials.len());
        let steady = Rate::steady(rate);
        let (name, p99_of) = match kind {
            MaxKind::Pings => {
                trial_plan.pings = steady;
                ("ping", "ping_to_visible")
            }
            MaxKind::Rides => {
                trial_plan.rides = steady;
                ("request", "request_to_offer")
            }
            MaxKind::Nearby => {
                trial_plan.nearby = steady;
                ("nearby", "nearby")
            }
        };
        let ran = Ran::of(args, &trial_plan, pids)?;
        acknowledged.extend(ran.acknowledged.iter().cloned());
        let load = ran.report.load.clone().unwrap_or_default();
        let done = load
            .kinds
            .get(name)
            .map_or(0.0, |kind| kind.done_per_second);
        let offered = load
            .kinds
            .get(name)
            .map_or(0.0, |kind| kind.offered_per_second);
        let p99_ms = load
            .kinds
            .get(p99_of)
            .map_or(f64::INFINITY, |kind| kind.latency_ms.p99);
        let why = if p99_ms > bound {
            format!("p99 {p99_ms:.1} ms")
        } else if done < offered * 0.98 {
            format!("only {done:.0}/s of {offered:.0}/s were done")
        } else {
            ran.report.invalid_because.join("; ")
        };
        let kept = why.is_empty();
        eprintln!(
            "trial: {rate:.0}/s: p99 {p99_ms:.2} ms{}{why}",
            if kept { ", kept" } else { ", " }
        );
        trials.push(Trial {
            per_second: rate,
            done_per_second: done,
            p99_ms,
            kept,
            why,
        });
        if kept || best.is_none() {
            best = Some(ran);
        }
        search.handle(kept);
    }
    let mut best = best.ok_or("no trial was made")?;
    best.acknowledged = acknowledged;
    match search.best() {
        Some(rate) => best.report.notes.push(format!(
            "the highest rate with p99 below {bound} ms: {rate:.0}/s"
        )),
        None => best
            .report
            .invalidate(format!("no rate kept p99 below {bound} ms")),
    }
    if let Some(load) = &mut best.report.load {
        load.search = trials;
    }
    Ok(best)
}

fn parse_ms(text: &str) -> Result<f64, AnyError> {
    let number = text
        .trim()
        .trim_end_matches("ms")
        .trim()
        .parse::<f64>()
        .ok();
    Ok(number
        .filter(|ms| *ms > 0.0)
        .ok_or_else(|| format!("--p99-below {text}: give milliseconds, for example 20ms"))?)
}

/// Runs the generator; answers what it measured and how many open rides were called off afterwards.
fn conducted(plan: &Plan, server_pids: Vec<u32>) -> Result<(Measured, u64), AnyError> {
    let stop = Arc::new(AtomicBool::new(false));
    let crew = Crew {
        program: std::env::current_exe()?,
        arguments: vec!["load-part".into()],
        server_pids,
        stop: Arc::clone(&stop),
        on_status: Arc::new(|status: &Status| eprintln!("{status}")),
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
async fn end_rides(plan: &Plan, measured: &Measured) -> Result<u64, AnyError> {
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
    for (rider, key) in &tally.unclear {
        let call = context
            .http
            .post(format!("{}/v1/cancel", context.url))
            .bearer_auth((context.mint)(client::Role::Rider, rider))
            .json(&serde_json::json!({ "key": key }));
        if let Err(why) = call.send().await {
            tracing::debug!(%why, %key, "a wish could not be called off");
        }
    }
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

/// A server as a process of its own, on a free port.
struct OwnServer {
    child: Child,
    url: String,
}

impl OwnServer {
    fn start(
        common: &Common,
        args: &LoadArgs,
        target: TargetArg,
        data_dir: Option<&Path>,
    ) -> Result<OwnServer, AnyError> {
        let mut command = Command::new(std::env::current_exe()?);
        if let Some(config) = &common.config {
            command.arg("--config").arg(config);
        }
        match target {
            TargetArg::Raw => command
                .arg("raw-sink")
                .arg("--pings-per-frame")
                .arg(args.pings_per_frame.to_string()),
            TargetArg::Cabrank => command.arg("load-server"),
        };
        if args.decode {
            command.arg("--decode");
        }
        if let (TargetArg::Cabrank, Some(dir)) = (target, data_dir) {
            command.arg("--data-dir").arg(dir);
            if args
                .connections
                .is_some_and(|sockets| sockets < args.drivers)
            {
                command.arg("--parked");
            }
        }
        command
            .arg("--log")
            .arg(&common.log)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        #[cfg(unix)]
        {
            use std::os::unix::process::CommandExt;
            // Ctrl-C ends the generator first; the server is stopped by closing its standard input.
            command.process_group(0);
        }
        let mut child = command.spawn()?;
        let output = child.stdout.take().ok_or("the server has no output")?;
        let (tell, said) = std::sync::mpsc::sync_channel(1);
        std::thread::spawn(move || {
            let mut line = String::new();
            // An error is an empty line: no address.
            let _ = BufReader::new(output).read_line(&mut line);
            let _ = tell.send(line);
        });
        let url = said
            .recv_timeout(SERVER_WITHIN)
            .unwrap_or_default()
            .trim()
            .to_owned();
        let server = OwnServer { child, url };
        if !server.url.starts_with("http://") {
            return Err("the server did not start; its reason is above".into());
        }
        Ok(server)
    }

    /// Closes its store and waits for its end.
    fn stop(mut self) -> Result<(), AnyError> {
        drop(self.child.stdin.take());
        let deadline = std::time::Instant::now() + STOP_WITHIN;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return if status.success() {
                    Ok(())
                } else {
                    Err(format!("the server ended with {status}").into())
                };
            }
            if std::time::Instant::now() > deadline {
                return Err("the server does not end".into());
            }
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }
}

impl Drop for OwnServer {
    fn drop(&mut self) {
        // Already over in the ordinary case; then both do nothing.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Flags of the hidden `load-server`.
#[derive(Args)]
pub struct ServerArgs {
    #[arg(long)]
    data_dir: PathBuf,
    /// Drivers without a socket stay on the map.
    #[arg(long)]
    parked: bool,
}

/// A server for a load run: no limits that speak of single people, ends with its standard input.
pub fn run_server(common: &Common, args: ServerArgs) -> Result<ExitCode, AnyError> {
    let settings = common.settings(|settings| {
        settings.gateway.listen = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
        settings.store.data_dir = args.data_dir.clone();
        // A fleet of a thousand sockets stands for a larger one: each may say more than a phone would.
        settings.gateway.ingest.pings_per_second = 0;
        settings.gateway.limits.requests_per_minute = 0;
        if args.parked {
            settings.node.ping_ttl_ms = 3_600_000;
            settings.node.silent_after_ms = 3_600_000;
        }
    })?;
    block_on(async move {
        let shutdown = shutdown_signal()?;
        let server = Server::start(&settings, DomainClock::wall()).await?;
        println!("http://{}", server.address());
        let failed = server.failed();
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = failed.cancelled() => {}
            () = input_closed() => {}
        }
        server.stop().await?;
        Ok(ExitCode::SUCCESS)
    })
}

/// Resolves when whoever started this process has let go of it.
async fn input_closed() {
    let (tell, closed) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let mut line = String::new();
        while std::io::stdin()
            .lock()
            .read_line(&mut line)
            .is_ok_and(|n| n > 0)
        {
            line.clear();
        }
        // Nobody waits any more if the process ends otherwise.
        let _ = tell.send(());
    });
    // A dropped sender is a closed input as well.
    let _ = closed.await;
}

/// The hidden `load-part`: one generator process.
pub fn run_load_part() -> Result<ExitCode, AnyError> {
    run_part(
        BufReader::new(std::io::stdin()),
        std::io::stdout().lock(),
        minter,
    )?;
    Ok(ExitCode::SUCCESS)
}

/// Flags of the hidden `raw-sink`.
#[derive(Args)]
pub struct SinkArgs {
    /// Parse each frame.
    #[arg(long)]
    decode: bool,
    /// Pings counted for a frame that is not parsed.
    #[arg(long, default_value_t = 1)]
    pings_per_frame: u32,
}

/// The hidden `raw-sink`: a bare WebSocket server that ends with its standard input.
pub fn run_raw_sink(args: SinkArgs) -> Result<ExitCode, AnyError> {
    let sink = Arc::new(Sink::new(args.decode, u64::from(args.pings_per_frame)));
    block_on(async move {
        let shutdown = shutdown_signal()?;
        tokio::select! {
            served = serve(sink, |address| println!("http://{address}")) => served?,
            () = shutdown.cancelled() => {}
            () = input_closed() => {}
        }
        Ok(ExitCode::SUCCESS)
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
        assert_eq!(parse_ms("20ms").unwrap(), 20.0);
        assert!(parse_ms("soon").unwrap_err().to_string().contains("20ms"));
    }
}
