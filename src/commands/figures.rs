//! `cabrank figures`: a whole city over Kafka on this machine, measured beside a bare probe, ending in one table.
//!
//! It starts what it measures (a broker unless one is named, nodes, a gateway, generators), each city under a prefix of
//! its own, and ends all of it, whatever happens. How long it takes is known beforehand: it is printed first.
//! What the figures mean: `docs/kafka.md`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use cabrank_eventlog::kafka::{KafkaConfig, KafkaLog, topics};
use cabrank_eventlog::{EventLog, Topic};
use cabrank_loadgen::kafka_probe::{ProbePlan, ProbeReport};
use cabrank_loadgen::load::conduct::{Crew, conduct};
use cabrank_loadgen::load::plan::Plan;
use cabrank_loadgen::load::report::{Bounds, report as load_report};
use cabrank_loadgen::load::schedule::Rate;
use cabrank_loadgen::load::usage;
use cabrank_loadgen::report::{Machine, Quantiles};
use cabrank_matcher::rpc;
use cabrank_matcher::rpc::v1::StatusRequest;
use cabrank_matcher::tls::ClusterConfig;
use clap::{Args, ValueEnum};
use serde::Serialize;

use super::load::end_rides;
use super::probe::{broker_for, on_topics_of_its_own, plan_of};
use super::{audit, block_on, shutdown_signal};
use crate::cluster::{Launch, Process};
use crate::{AnyError, Brokers, Common};

/// A city answers for all its shards within this time, or the run has failed.
const READY_WITHIN: Duration = Duration::from_secs(40);
/// Between two looks at the lag.
const LOOK: Duration = Duration::from_millis(500);
/// How long idle nodes are watched, seconds.
const IDLE_S: f64 = 10.0;
/// Before that: what the load left behind is done by then.
const SETTLE: Duration = Duration::from_secs(3);
/// A trial's rate is so much above the one before.
const STEP: f64 = 1.25;
/// Records of each partition whose size is looked at.
const SIZED_MAX: usize = 1_000;

/// Flags of `figures`.
#[derive(Args)]
pub struct FiguresArgs {
    // Without --brokers a broker is started here (needs a JDK 17; Maven the first time). Shards are the figures' own: 4.
    #[command(flatten)]
    brokers: Brokers,
    /// Which figures; all but `shards` by default, which takes five minutes on its own.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Part::OneNode, Part::TwoNodes, Part::Idle, Part::Highest])]
    parts: Vec<Part>,
    /// Rides asked for a second, but for the highest rate.
    #[arg(long, value_name = "RATE", default_value_t = 200.0)]
    rate: f64,
    /// Measured time of each figure; a probe takes half of it before and half of it after.
    #[arg(long, default_value_t = 16.0)]
    seconds: f64,
    /// Drivers of the city: so many that nobody waits for a car.
    #[arg(long, default_value_t = 2_000)]
    drivers: u32,
    /// Where the search for the highest rate begins.
    #[arg(long, value_name = "RATE", default_value_t = 256.0)]
    highest_from: f64,
    /// Longest search for it. With 1 the rate it begins at is run once: `--parts highest --highest-from 400 --trials 1`.
    #[arg(long, value_name = "COUNT", default_value_t = 8)]
    trials: u16,
    /// Shards of the table that `shards` makes.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 4, 16, 64])]
    shards_of: Vec<u16>,
    /// Without the audit of each city's log.
    #[arg(long)]
    no_audit: bool,
    /// Write all figures as JSON here.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

/// A group of figures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Part {
    /// Request to offer on one node, against the probe.
    OneNode,
    /// The same on two nodes, messages between them through the log.
    TwoNodes,
    /// What two nodes cost that have nothing to do.
    Idle,
    /// The highest rate of whole rides on two nodes whose lag stays flat.
    Highest,
    /// One node with different numbers of shards.
    Shards,
}

/// One measured load.
#[derive(Clone, Debug, Serialize)]
struct Figure {
    nodes: u16,
    shards: u16,
    rides_per_second: f64,
    request_to_offer_ms: Quantiles,
    /// A driver's report until its committed outcome.
    command_ms: Quantiles,
    /// Rides completed, of those asked for.
    completed: u64,
    requested: u64,
    /// Commands not yet consumed, all shards, in the measured time: first third, last third, most.
    lag: [f64; 3],
    /// Cores used by nodes, gateway and generator.
    nodes_cores: f64,
    gateway_cores: f64,
    generator_cores: f64,
    /// Why the run does not count.
    invalid_because: Vec<String>,
    /// Probes before and after, if there were.
    probes: Vec<ProbeReport>,
}

impl Figure {
    /// How many times the probe's median.
    fn ratio(&self) -> Option<f64> {
        let of: Vec<f64> = self
            .probes
            .iter()
            .map(|probe| probe.request_to_offer_ms.p50)
            .collect();
        let mean = of.iter().sum::<f64>() / of.len() as f64;
        (mean > 0.0).then(|| self.request_to_offer_ms.p50 / mean)
    }

    /// Did the commands that wait not grow in number? Half a second's worth of commands is what batches make of it.
    fn is_flat(&self) -> bool {
        let [first, last, _] = self.lag;
        last - first < self.rides_per_second * 0.5 * 11.0
            && self.invalid_because.is_empty()
            && self.completed as f64 >= self.requested as f64 * 0.98
    }
}

/// All of them.
#[derive(Default, Serialize)]
struct Figures {
    machine: Machine,
    version: &'static str,
    arguments: Vec<String>,
    one_node: Option<Figure>,
    two_nodes: Option<Figure>,
    /// Cores a node uses that has nothing to do.
    idle_cores: Vec<f64>,
    trials: Vec<Figure>,
    /// The highest rate with flat lag, rides a second.
    highest: Option<f64>,
    by_shards: Vec<Figure>,
    audits: Vec<String>,
}

/// Measures and prints; exit code 1 if a figure does not count or an audit found anything.
pub fn run(common: &Common, args: FiguresArgs) -> Result<ExitCode, AnyError> {
    let began = Instant::now();
    let (_broker, kafka) = broker_for(common, &args.brokers)?;
    let bench = Bench::new(common, &args, kafka)?;
    let mut figures = Figures {
        machine: Machine::here(),
        version: env!("CARGO_PKG_VERSION"),
        arguments: std::env::args().skip(1).collect(),
        ..Figures::default()
    };
    let has = |part| args.parts.contains(&part);
    // A broker's first 20 s are its compiler's.
    eprintln!("figures: warming the broker up");
    bench.probe(4, 1, args.rate, 2.0 * args.seconds.min(10.0))?;
    if has(Part::OneNode) {
        figures.one_node = Some(bench.compared(4, 1, &mut figures.audits)?);
    }
    if has(Part::TwoNodes) || has(Part::Idle) || has(Part::Highest) {
        bench.two_nodes(has, &mut figures)?;
    }
    if has(Part::Shards) {
        for shards in &args.shards_of {
            let figure = bench.compared(*shards, 1, &mut figures.audits)?;
            figures.by_shards.push(figure);
        }
    }
    print!("{}", figures.table(&args));
    println!("took {:.0} s", began.elapsed().as_secs_f64());
    if let Some(file) = &args.report {
        std::fs::write(file, serde_json::to_vec_pretty(&figures)?)
            .map_err(|why| format!("--report {}: {why}", file.display()))?;
    }
    let counts = [&figures.one_node, &figures.two_nodes]
        .into_iter()
        .flatten()
        .chain(&figures.by_shards)
        .all(|figure| figure.invalid_because.is_empty());
    let is_clean = figures.audits.iter().all(|audit| audit.contains("clean"));
    Ok(ExitCode::from(u8::from(!(counts && is_clean))))
}

/// What all measurements share.
struct Bench<'a> {
    args: &'a FiguresArgs,
    kafka: KafkaConfig,
    common: Common,
    secret: String,
    stop: Arc<AtomicBool>,
    /// Holds the configuration file that all processes read.
    _scratch: tempfile::TempDir,
}

/// Processes of one city.
struct City {
    kafka: KafkaConfig,
    nodes: Vec<Process>,
    gateway: Process,
    acknowledged: Vec<String>,
    open: u64,
}

impl Bench<'_> {
    fn new<'a>(
        common: &Common,
        args: &'a FiguresArgs,
        kafka: KafkaConfig,
    ) -> Result<Bench<'a>, AnyError> {
        let mut settings = common.settings(|_| {})?;
        settings.kafka = kafka.clone();
        // A thousand sockets stand for a larger fleet: each may say more than a phone would.
        settings.gateway.ingest.pings_per_second = 0;
        settings.gateway.limits.requests_per_minute = 0;
        settings.gateway.limits.frames_per_second = 0;
        // The floor beside which they are measured speaks plain text.
        settings.cluster = ClusterConfig::default();
        let scratch = tempfile::tempdir()?;
        let file = scratch.path().join("cabrank.toml");
        std::fs::write(&file, settings.to_commented_toml())?;
        let common = Common {
            config: Some(file),
            ..common.clone()
        };
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        std::thread::spawn(move || {
            let waiting = block_on(async {
                shutdown_signal()?.cancelled().await;
                Ok(())
            });
            // Relaxed: the flag stands for itself.
            stopped.store(waiting.is_ok(), Ordering::Relaxed);
        });
        Ok(Bench {
            args,
            kafka,
            common,
            secret: settings.gateway.keys.secret.clone(),
            stop,
            _scratch: scratch,
        })
    }

    fn check_on(&self) -> Result<(), AnyError> {
        if self.stop.load(Ordering::Relaxed) {
            return Err("stopped".into());
        }
        Ok(())
    }

    fn probe(
        &self,
        shards: u16,
        nodes: u16,
        rate: f64,
        seconds: f64,
    ) -> Result<ProbeReport, AnyError> {
        self.check_on()?;
        let kafka = KafkaConfig {
            shards,
            ..self.kafka.clone()
        };
        let plan = ProbePlan {
            nodes: nodes.min(shards),
            rides_per_second: rate,
            warmup_s: 1.0,
            seconds,
            ..plan_of(&kafka)
        };
        on_topics_of_its_own(&kafka, &plan)
    }

    /// A city with one load, probes before and after, and its audit.
    fn compared(
        &self,
        shards: u16,
        nodes: u16,
        audits: &mut Vec<String>,
    ) -> Result<Figure, AnyError> {
        eprintln!("figures: {nodes} node(s), {shards} shards");
        let rate = self.args.rate;
        let half = self.args.seconds / 2.0;
        let before = self.try_probe(shards, nodes, half);
        let mut city = self.city(shards, nodes)?;
        let mut figure = self.load(&mut city, rate, 4.0, self.args.seconds)?;
        self.end(city, audits)?;
        let after = self.try_probe(shards, nodes, half);
        figure.probes = before.into_iter().chain(after).collect();
        Ok(figure)
    }

    /// A broker that cannot carry even the probe leaves the figure without its ratio.
    fn try_probe(&self, shards: u16, nodes: u16, seconds: f64) -> Option<ProbeReport> {
        self.probe(shards, nodes, self.args.rate, seconds)
            .inspect_err(|why| eprintln!("figures: no probe: {why}"))
            .ok()
    }

    fn two_nodes(&self, has: impl Fn(Part) -> bool, figures: &mut Figures) -> Result<(), AnyError> {
        let args = self.args;
        if has(Part::TwoNodes) || has(Part::Idle) {
            eprintln!("figures: 2 nodes, 4 shards");
            let mut city = self.city(4, 2)?;
            let mut figure = self.load(&mut city, args.rate, 4.0, args.seconds)?;
            if has(Part::Idle) {
                figures.idle_cores = self.idle(&city)?;
            }
            self.end(city, &mut figures.audits)?;
            if has(Part::TwoNodes) {
                let probe = self.try_probe(4, 2, args.seconds / 2.0);
                figure.probes = probe.into_iter().collect();
                figures.two_nodes = Some(figure);
            }
        }
        if has(Part::Highest) {
            let mut city = self.city(4, 2)?;
            let mut rate = args.highest_from;
            for _ in 0..args.trials {
                eprintln!("figures: 2 nodes, {rate:.0} rides/s");
                let figure = self.load(&mut city, rate, 4.0, args.seconds * 0.75)?;
                let is_flat = figure.is_flat();
                figures.trials.push(figure);
                if !is_flat {
                    break;
                }
                figures.highest = Some(rate);
                rate *= STEP;
            }
            self.end(city, &mut figures.audits)?;
        }
        Ok(())
    }

    // -- one city ----------------------------------------------------------------------------------------------------

    fn city(&self, shards: u16, nodes: u16) -> Result<City, AnyError> {
        self.check_on()?;
        let kafka = KafkaConfig {
            shards,
            prefix: plan_of(&self.kafka).prefix.replace("probe-", "figures-"),
            ..self.kafka.clone()
        };
        topics::create(&kafka)?;
        let launch = Launch::new(&self.common, kafka.clone());
        let nodes: Result<Vec<Process>, AnyError> = (0..nodes)
            .map(|number| launch.matcher(&format!("node-{number}")))
            .collect();
        let city = City {
            kafka,
            nodes: nodes?,
            gateway: launch.gateway("gateway")?,
            acknowledged: Vec::new(),
            open: 0,
        };
        let log = KafkaLog::open(city.kafka.clone())?;
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            self.check_on()?;
            let (serving, owners, _) = block_on(status(&log))?;
            if serving == usize::from(shards) && owners == city.nodes.len() {
                return Ok(city);
            }
            if Instant::now() > deadline {
                return Err(format!("only {serving} of {shards} shards are served").into());
            }
            std::thread::park_timeout(LOOK / 5);
        }
    }

    fn load(
        &self,
        city: &mut City,
        rate: f64,
        warmup_s: f64,
        seconds: f64,
    ) -> Result<Figure, AnyError> {
        self.check_on()?;
        let url = format!("http://{}", city.gateway.address()?);
        let mut plan = Plan::new(&url, &self.secret);
        plan.rides = Rate::steady(rate);
        // Enough to keep every driver's position good, no load of its own.
        plan.pings = Rate::steady(f64::from(self.args.drivers) / 10.0);
        plan.probe = false;
        // A request holds its connection until it is promised: too few of them would be the limit.
        plan.ride_connections = 512;
        plan.drivers = self.args.drivers;
        plan.connections = self.args.drivers;
        plan.warmup_s = warmup_s;
        plan.seconds = seconds;
        plan.check()?;
        let pids: Vec<u32> = city.nodes.iter().map(Process::pid).collect();
        let crew = Crew {
            program: std::env::current_exe()?,
            arguments: vec!["load-part".into()],
            server_pids: pids,
            stop: Arc::clone(&self.stop),
            on_status: Arc::new(|_| {}),
        };
        let lags = Lags::watch(&city.kafka)?;
        let gateway = city.gateway.pid();
        let before = usage::of(gateway).unwrap_or_default();
        let started = Instant::now();
        let measured = conduct(&plan, &crew)?;
        let gateway_s = usage::of(gateway).unwrap_or_default().cpu_s - before.cpu_s;
        let gateway_cores = gateway_s / started.elapsed().as_secs_f64();
        let lags = lags.end();
        let ended = block_on(end_rides(&plan, &measured))?;
        // The generator's own lateness is in every latency; on two cores it shares them with all it measures.
        let bounds = Bounds {
            lateness_p99_ms: 50.0,
            is_overload: true,
        };
        let report = load_report(&plan, &measured, &bounds, Vec::new());
        city.open += report.rides.open.saturating_sub(ended);
        let promised = measured.tally.rides.iter();
        city.acknowledged.extend(
            promised
                .filter(|(_, ride)| ride.promised.is_some())
                .map(|(ride, _)| ride.to_string()),
        );
        let load = report.load.unwrap_or_default();
        let third = |n: usize| {
            // From the beginning: connecting and warm-up are before what counts, draining is after it.
            let from = lags
                .len()
                .saturating_sub((seconds / LOOK.as_secs_f64()) as usize);
            let counted = &lags[from..];
            let part = &counted[counted.len() * n / 3..counted.len() * (n + 1) / 3];
            part.iter().sum::<f64>() / (part.len() as f64).max(1.0)
        };
        let command = load.kinds.get("command");
        let figure = Figure {
            nodes: u16::try_from(city.nodes.len()).unwrap_or(u16::MAX),
            shards: city.kafka.shards,
            rides_per_second: rate,
            request_to_offer_ms: report.latency_ms.request_to_offer,
            command_ms: command
                .map(|kind| kind.latency_ms.clone())
                .unwrap_or_default(),
            completed: report.rides.completed,
            requested: report.rides.requested,
            lag: [third(0), third(2), lags.iter().copied().fold(0.0, f64::max)],
            nodes_cores: load.server.map_or(0.0, |server| server.cores),
            gateway_cores,
            generator_cores: load.generator.cores,
            invalid_because: report.invalid_because,
            probes: Vec::new(),
        };
        eprintln!("figures: {}", figure.line());
        Ok(figure)
    }

    fn idle(&self, city: &City) -> Result<Vec<f64>, AnyError> {
        std::thread::park_timeout(SETTLE);
        self.check_on()?;
        let look = || -> Vec<f64> {
            let of = |node: &Process| usage::of(node.pid()).unwrap_or_default().cpu_s;
            city.nodes.iter().map(of).collect()
        };
        let (before, began) = (look(), Instant::now());
        while began.elapsed().as_secs_f64() < IDLE_S {
            std::thread::park_timeout(LOOK);
            self.check_on()?;
        }
        let passed = began.elapsed().as_secs_f64();
        let cores = look().into_iter().zip(before);
        Ok(cores.map(|(now, then)| (now - then) / passed).collect())
    }

    /// Ends the processes, then audits what they wrote.
    fn end(&self, mut city: City, audits: &mut Vec<String>) -> Result<(), AnyError> {
        block_on(async {
            city.gateway.leave().await?;
            for node in &mut city.nodes {
                node.leave().await?;
            }
            Ok(())
        })?;
        if self.args.no_audit {
            return Ok(());
        }
        let log = KafkaLog::open(city.kafka.clone())?;
        eprintln!("figures: {}", sizes(&log)?);
        let found = audit::of_log(&log, false, city.open == 0, &city.acknowledged)?;
        let summary = found.summary();
        let verdict = if found.is_clean() { "clean" } else { "BROKEN" };
        let line = format!(
            "{verdict}: {} rides, {} events, {} violations",
            summary.rides, summary.events, summary.violations
        );
        eprintln!("figures: audit {line}");
        audits.push(line);
        Ok(())
    }
}

/// How large a city's records are on average: what the probe's shape is made of.
fn sizes(log: &KafkaLog) -> Result<String, AnyError> {
    let mut text = String::from("bytes a record:");
    for topic in [Topic::RideCommands, Topic::RideEvents, Topic::PersonEvents] {
        let (mut bytes, mut count) = (0, 0);
        for shard in 0..log.shards() {
            let first = log.bounds(topic, shard)?.first;
            for record in log.read(topic, shard, first, SIZED_MAX)? {
                bytes += record.value.len();
                count += 1;
            }
        }
        text += &format!(" {topic} {},", bytes / count.max(1));
    }
    let (mut bytes, mut count) = (0, 0);
    for shard in 0..log.shards() {
        let stored = log.snapshot(shard)?;
        bytes += stored
            .states
            .iter()
            .map(|(_, state)| state.len())
            .sum::<usize>();
        count += stored.states.len();
    }
    text += &format!(" states {}", bytes / count.max(1));
    Ok(text)
}

/// Shards served, nodes that own one, commands that wait.
async fn status(log: &KafkaLog) -> Result<(usize, usize, f64), AnyError> {
    let mut addresses = BTreeMap::new();
    for owner in log.owners()? {
        addresses.insert(owner.address, owner.node);
    }
    let (mut serving, mut owners, mut lag) = (0, 0, 0.0);
    for address in addresses.keys() {
        let asked = async {
            let mut client = rpc::connect(address, None).await?;
            Ok::<_, AnyError>(client.status(StatusRequest {}).await?.into_inner())
        };
        let Ok(Ok(answer)) = tokio::time::timeout(Duration::from_secs(2), asked).await else {
            continue;
        };
        let held = answer.shards.iter().filter(|shard| shard.lease);
        let held: Vec<_> = held.collect();
        serving += held.len();
        owners += usize::from(!held.is_empty());
        for shard in held {
            lag += shard.input_end.saturating_sub(shard.next_input) as f64;
        }
    }
    Ok((serving, owners, lag))
}

/// Looks at the lag beside a load.
struct Lags {
    seen: Arc<Mutex<Vec<f64>>>,
    is_over: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<()>,
}

impl Lags {
    fn watch(kafka: &KafkaConfig) -> Result<Lags, AnyError> {
        let log = KafkaLog::open(kafka.clone())?;
        let (seen, is_over) = (Arc::default(), Arc::new(AtomicBool::new(false)));
        let (into, over): (Arc<Mutex<Vec<f64>>>, _) = (Arc::clone(&seen), Arc::clone(&is_over));
        let thread = std::thread::spawn(move || {
            // Relaxed: the flag stands for itself.
            while !over.load(Ordering::Relaxed) {
                if let Ok((_, _, lag)) = block_on(status(&log)) {
                    into.lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .push(lag);
                }
                std::thread::park_timeout(LOOK);
            }
        });
        Ok(Lags {
            seen,
            is_over,
            thread,
        })
    }

    /// Every look, in order; the last one is the end of the load.
    fn end(self) -> Vec<f64> {
        self.is_over.store(true, Ordering::Relaxed);
        self.thread.thread().unpark();
        // A watcher that panicked has seen less.
        let _ = self.thread.join();
        std::mem::take(&mut *self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

// -- words -----------------------------------------------------------------------------------------------------------

impl Figure {
    fn line(&self) -> String {
        let (offer, command) = (&self.request_to_offer_ms, &self.command_ms);
        let mut line = format!(
            "{} node(s), {:>2} shards, {:>4.0} rides/s: request -> offer p50 {:.1} ms, p99 {:.1}; command p50 {:.1}, p99 {:.1}; \
             {} of {} completed; lag {:.0} -> {:.0} (most {:.0}); cores: nodes {:.2}, gateway {:.2}, generator {:.2}",
            self.nodes,
            self.shards,
            self.rides_per_second,
            offer.p50,
            offer.p99,
            command.p50,
            command.p99,
            self.completed,
            self.requested,
            self.lag[0],
            self.lag[1],
            self.lag[2],
            self.nodes_cores,
            self.gateway_cores,
            self.generator_cores,
        );
        for why in &self.invalid_because {
            line += &format!("; NOT VALID: {why}");
        }
        line
    }
}

impl Figures {
    fn table(&self, args: &FiguresArgs) -> String {
        let mut rows: Vec<[String; 3]> = Vec::new();
        let mut row = |what: &str, found: String, wanted: &str| {
            rows.push([what.to_owned(), found, wanted.to_owned()]);
        };
        let ms = |value: f64| format!("{value:.1} ms");
        let probe = |figure: &Figure| {
            let each: Vec<String> = figure
                .probes
                .iter()
                .map(|probe| format!("{:.1}", probe.request_to_offer_ms.p50))
                .collect();
            each.join(", ")
        };
        let rate = args.rate;
        if let Some(figure) = &self.one_node {
            let ratio = figure
                .ratio()
                .map_or("-".into(), |ratio| format!("{ratio:.2}"));
            row(
                &format!(
                    "1 node, 4 shards, {rate:.0} rides/s: request -> offer, times the probe's p50 ({} ms)",
                    probe(figure)
                ),
                ratio,
                "1.5",
            );
            row("  p50", ms(figure.request_to_offer_ms.p50), "30 ms");
            row("  p99", ms(figure.request_to_offer_ms.p99), "100 ms");
        }
        if let Some(figure) = &self.two_nodes {
            let what = format!(
                "2 nodes, 4 shards, {rate:.0} rides/s (probe: {} ms): p50",
                probe(figure)
            );
            row(&what, ms(figure.request_to_offer_ms.p50), "60 ms");
            row("  p99", ms(figure.request_to_offer_ms.p99), "250 ms");
        }
        if !self.trials.is_empty() {
            let found = self
                .highest
                .map_or("none kept".into(), |rate| format!("{rate:.0}/s"));
            row("2 nodes: whole rides with flat lag", found, "400/s");
        }
        for (number, cores) in self.idle_cores.iter().enumerate() {
            row(
                &format!("idle node {number}, share of a core"),
                format!("{:.1} %", cores * 100.0),
                "5 %",
            );
        }
        let mut text = format!("{:<90} {:>12} {:>10}\n", "", "measured", "wished");
        for [what, found, wanted] in rows {
            text += &format!("{what:<90} {found:>12} {wanted:>10}\n");
        }
        for figure in &self.by_shards {
            let probe = probe(figure);
            let offer = &figure.request_to_offer_ms;
            text += &format!(
                "{:>3} shards: request -> offer p50 {:.1} ms, p99 {:.1} (probe p50 {probe})\n",
                figure.shards, offer.p50, offer.p99
            );
        }
        for audit in &self.audits {
            text += &format!("audit {audit}\n");
        }
        let machine = &self.machine;
        text += &format!(
            "{}, {} cores, {}\n",
            machine.cpu, machine.cores, machine.system
        );
        text
    }
}
