//! `cabrank chaos`: breaks a city over Kafka on purpose, while it works, and looks whether the promises hold.
//!
//! - [`fault`]: what can be done, and how long it may take. [`city`]: the processes it is done to, all our own children.
//! - [`load`]: what the city carries meanwhile. [`probes`]: how long each shard did not answer.
//! - [`proxy`]: a way to the brokers that can be cut. [`owners`]: do two nodes answer for one shard?
//! - [`transactions`]: in which moment of a commit was a node hit?
//!
//! The faults and their order come from the seed. The end is the audit of the log against what clients were acknowledged.

mod city;
mod fault;
mod load;
mod owners;
mod probes;
mod proxy;
mod transactions;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cabrank_eventlog::kafka::testing::Broker;
use cabrank_geo::Resolution;
use cabrank_loadgen::audit::AuditReport;
use cabrank_loadgen::load::clock::now_ns;
use cabrank_matcher::tls::ClusterTls;
use cabrank_ring::Ring;
use clap::Args;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde::Serialize;

use super::{audit, block_on, shutdown_signal, token::minter};
use crate::cluster::Launch;
use crate::settings::Settings;
use crate::{AnyError, Brokers, Common, store};
use city::{City, Suffered};
use fault::Fault;
use load::{Load, Offered, Served, served};
use owners::Owners;
use probes::{Answers, Probes};
use transactions::Moment;

/// After this long without a fault the next one comes.
const CALM: Duration = Duration::from_secs(5);
/// The city works this long before the first fault: a broker is slow at first.
const WARM_UP: Duration = Duration::from_secs(10);
/// While brokers are away at least this share of the pings is believed.
const PINGS_GO_ON: f64 = 0.8;
/// While brokers are away a search may wait so long.
const SEARCH_PAUSE: Duration = Duration::from_secs(1);

/// Flags of `chaos`.
#[derive(Args)]
pub struct ChaosArgs {
    // Without --brokers they are started here (needs a JDK 17; Maven the first time).
    #[command(flatten)]
    brokers: Brokers,
    /// How many brokers are started here: 1, or 3 with three copies of everything.
    #[arg(long, default_value_t = 1, conflicts_with = "brokers", value_parser = one_or_three)]
    own_brokers: usize,
    /// Faults and their order come from it.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How long, in minutes; the last fault may take a little longer.
    #[arg(long, default_value_t = 5.0)]
    minutes: f64,
    /// Only these faults, in turn, instead of all at random.
    #[arg(long, value_enum, value_delimiter = ',')]
    faults: Vec<Fault>,
    /// Matcher nodes.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(2..=16))]
    nodes: u16,
    /// Gateways.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=16))]
    gateways: u16,
    /// Drivers, each with a socket.
    #[arg(long, default_value_t = 2_000)]
    drivers: u32,
    /// Rides asked for a second, each driven to its end.
    #[arg(long, value_name = "RATE", default_value_t = 100.0)]
    rides_per_second: f64,
    /// Position reports a second, all drivers together.
    #[arg(long, value_name = "RATE", default_value_t = 5_000.0)]
    pings_per_second: f64,
    /// How long a node may be silent before its shards go to others, ms. A stock broker takes 6000 at least.
    #[arg(long, value_name = "MS", default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(500..=60_000))]
    session_timeout_ms: u32,
    /// Bounds of gaps are multiplied by this, for machines that are busy with something else.
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0)]
    gap_slack: f64,
    /// Write what happened (JSON) here.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

fn one_or_three(text: &str) -> Result<usize, String> {
    match text {
        "1" => Ok(1),
        "3" => Ok(3),
        _ => Err("choose 1 or 3".to_owned()),
    }
}

/// A fault and what it did.
#[derive(Serialize)]
struct Done {
    fault: Fault,
    /// To whom.
    to: String,
    /// Seconds since the first fault could come.
    at_s: f64,
    /// Until the city was whole again, seconds.
    lasted_s: f64,
    /// The longest a shard gave no committed answer, ms, and how long it may.
    gap_ms: u64,
    bound_ms: u64,
    /// Which shard that was.
    shard: u16,
    /// The longest a search was not answered, ms.
    search_gap_ms: u64,
    /// What became of the probers' commands.
    answers: Answers,
    /// In which moment of a transaction the node was hit.
    #[serde(skip_serializing_if = "Option::is_none")]
    moment: Option<Moment>,
    /// Shards that have a newer owner, and the shortest time between the last answer of the old and the first of the new.
    owners_changed: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    owners_margin_ms: Option<i64>,
    /// What the load was offered and got meanwhile.
    load: Served,
    /// Pings a second that gateways believed meanwhile; not those of a gateway that was killed.
    pings_accepted: f64,
    /// Expectations that were not met.
    broken: Vec<String>,
    #[serde(skip)]
    window_ns: (u64, u64),
}

/// All faults of a kind.
#[derive(Serialize)]
struct Summary {
    count: usize,
    gap_median_ms: u64,
    gap_max_ms: u64,
    bound_ms: u64,
    search_gap_max_ms: u64,
}

/// What a run leaves behind.
#[derive(Serialize)]
struct ChaosReport {
    schema: &'static str,
    arguments: Vec<String>,
    seed: u64,
    cores: usize,
    session_timeout_ms: u32,
    shards: u16,
    replication: u16,
    nodes: u16,
    gateways: u16,
    offered: Offered,
    /// The whole run, faults included.
    load: Served,
    /// The calm between faults only.
    calm: Served,
    faults: Vec<Done>,
    summary: BTreeMap<Fault, Summary>,
    /// In which moments nodes were killed or frozen.
    hits: BTreeMap<Moment, usize>,
    acknowledged: usize,
    sockets_lost: u64,
    audit: AuditReport,
    /// Why the run failed; empty if it did not.
    broken: Vec<String>,
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Runs the city and breaks it; exit code 1 if a promise was broken or the city did not heal in time.
pub fn run(common: &Common, args: ChaosArgs) -> Result<ExitCode, AnyError> {
    if !(0.1..=100.0).contains(&args.minutes) {
        return Err(format!("--minutes {}: choose 0.1 to 100", args.minutes).into());
    }
    if !(1.0..=100.0).contains(&args.gap_slack) {
        return Err(format!("--gap-slack {}: choose 1 to 100", args.gap_slack).into());
    }
    let others = args.brokers.brokers.is_some();
    if let Some(fault) = args
        .faults
        .iter()
        .find(|fault| others && fault.needs_own_brokers())
    {
        return Err(format!(
            "--faults {}: only with brokers of our own: leave --brokers out, or choose --own-brokers 3",
            fault.name()
        )
        .into());
    }
    let own = match args.brokers.brokers {
        Some(_) => None,
        None => Some(Arc::new(Broker::start(args.own_brokers).ok_or(
            "no broker: install a JDK 17 and Maven, or name one with --brokers HOST:PORT",
        )?)),
    };
    let settings = common.settings(|settings| {
        let kafka = &mut settings.kafka;
        kafka.replication = if args.own_brokers == 3 { 3 } else { 1 };
        kafka.shards = 4;
        kafka.prefix = format!("chaos-{}-", std::process::id());
        kafka.session_timeout_ms = args.session_timeout_ms;
        kafka.heartbeat_ms = (args.session_timeout_ms / 5).min(1_000);
        if let Some(own) = &own {
            own.bootstrap().clone_into(&mut kafka.brokers);
        }
        args.brokers.apply(settings);
    })?;
    cabrank_eventlog::kafka::topics::create(&settings.kafka)?;
    let launch = {
        let mut launch = Launch::new(common, settings.kafka.clone());
        // A fleet of a few thousand sockets stands for a larger one: each may say more than a phone would.
        launch.variables.extend([
            ("CABRANK_GATEWAY__INGEST__PINGS_PER_SECOND", "0".to_owned()),
            (
                "CABRANK_GATEWAY__LIMITS__REQUESTS_PER_MINUTE",
                "0".to_owned(),
            ),
        ]);
        launch
    };
    let report = block_on(break_it(&args, &settings, launch, own))?;
    conclude(&report, args.report.as_deref())
}

/// From the first process to the audit.
async fn break_it(
    args: &ChaosArgs,
    settings: &Settings,
    launch: Launch,
    own: Option<Arc<Broker>>,
) -> Result<ChaosReport, AnyError> {
    let shutdown = shutdown_signal()?;
    let shards = settings.kafka.shards;
    let watched = Owners::new(shards, ClusterTls::read(&settings.cluster.tls)?);
    let brokers = own.clone().map(|own| (own, args.own_brokers));
    let mut city = City::new(launch, brokers, watched.clone()).await?;
    for _ in 0..args.nodes {
        city.add_node()?;
    }
    for _ in 0..args.gateways {
        city.add_gateway()?;
    }
    let url = city.front.url();
    eprintln!(
        "chaos, seed {}: {} nodes, {} gateways at {url}",
        args.seed, args.nodes, args.gateways
    );
    let mint = minter(settings);
    let resolution = Resolution::try_from(settings.engine.ownership_resolution)?;
    let probes = Probes::start(&url, Arc::clone(&mint), Ring::new(shards)?, resolution)?;
    city.healed(&probes).await?;
    let offered = Offered {
        drivers: args.drivers,
        rides_per_second: args.rides_per_second,
        pings_per_second: args.pings_per_second,
    };
    let secret = &settings.gateway.keys.secret;
    let load = Load::start(&url, secret, mint, &offered, args.seed)?;
    load.begun().await;
    tokio::time::sleep(WARM_UP).await;
    let mut run = Run {
        args,
        has_own_brokers: own.is_some(),
        watched,
        dice: SmallRng::seed_from_u64(args.seed),
        http: reqwest::Client::new(),
        began: Instant::now(),
        done: Vec::new(),
        broken: Vec::new(),
    };
    let began_ns = now_ns();
    let length = Duration::from_secs_f64(args.minutes * 60.0);
    while run.began.elapsed() < length && !shutdown.is_cancelled() {
        if let Err(why) = run.next_fault(&mut city, &probes).await {
            run.broken.push(why.to_string());
            break;
        }
        if load.has_ended() {
            break;
        }
        tokio::time::sleep(CALM).await;
    }
    let ended_ns = now_ns();
    let promised = probes.end_rides().await;
    let ended = load.end(&promised).await?;
    let tally = ended.tally;
    run.broken.extend(city.leave().await);
    let mut acknowledged = ended.acknowledged;
    acknowledged.extend(promised);
    if tally.online * 100 < u64::from(args.drivers) * 99 {
        run.broken.push(format!(
            "only {} of {} drivers were online at the end",
            tally.online, args.drivers
        ));
    }
    if acknowledged.is_empty() {
        run.broken.push("no ride was acknowledged".to_owned());
    }
    // The log is read now: brokers started here outlive it.
    let config = settings.kafka.clone();
    let promised = acknowledged.clone();
    let audited = tokio::task::spawn_blocking(move || {
        let log = store::kafka(config)?;
        audit::of_log(&log, false, true, &promised)
    })
    .await??;
    drop(own);
    if !audited.is_clean() {
        run.broken.push("the audit found violations".to_owned());
    }
    let mut calm_from = began_ns;
    let mut calm = Vec::new();
    for done in &mut run.done {
        done.load = served(&tally, &[done.window_ns]);
        if done.fault.is_of_brokers() && done.pings_accepted < done.load.pings_sent * PINGS_GO_ON {
            let why = format!(
                "{:.0} of {:.0} pings/s were believed",
                done.pings_accepted, done.load.pings_sent
            );
            run.broken
                .push(format!("{:.1} s, {}: {why}", done.at_s, done.fault.name()));
            done.broken.push(why);
        }
        calm.push((calm_from, done.window_ns.0));
        calm_from = done.window_ns.1;
    }
    Ok(ChaosReport {
        schema: "cabrank.chaos/1",
        arguments: std::env::args().skip(1).collect(),
        seed: args.seed,
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        session_timeout_ms: settings.kafka.session_timeout_ms,
        shards,
        replication: settings.kafka.replication,
        nodes: args.nodes,
        gateways: args.gateways,
        offered,
        load: served(&tally, &[(began_ns, ended_ns)]),
        calm: served(&tally, &calm),
        summary: summaries(&run.done),
        hits: hits(&run.done),
        faults: run.done,
        acknowledged: acknowledged.len(),
        sockets_lost: tally.sockets_lost,
        audit: audited,
        broken: run.broken,
    })
}

/// The run as far as it has come.
struct Run<'a> {
    args: &'a ChaosArgs,
    has_own_brokers: bool,
    watched: Owners,
    dice: SmallRng,
    http: reqwest::Client,
    began: Instant,
    done: Vec<Done>,
    broken: Vec<String>,
}

impl Run<'_> {
    fn choose(&mut self) -> Fault {
        if !self.args.faults.is_empty() {
            return self.args.faults[self.done.len() % self.args.faults.len()];
        }
        let possible: Vec<Fault> = Fault::ALL
            .into_iter()
            .filter(|fault| self.has_own_brokers || !fault.needs_own_brokers())
            .collect();
        possible[self.dice.random_range(0..possible.len())]
    }

    async fn next_fault(&mut self, city: &mut City, probes: &Probes) -> Result<(), AnyError> {
        let fault = self.choose();
        let at_s = self.began.elapsed().as_secs_f64();
        let (then, from_ns) = (Instant::now(), now_ns());
        let known = self.watched.violations().len();
        let accepted = city.pings_accepted(&self.http).await;
        let counting = Instant::now();
        probes.start_over();
        let suffered = city.suffer(fault, &mut self.dice, probes).await;
        let (shard, gap) = probes.commands().worst();
        let (_, search_gap) = probes.searches().worst();
        let suffered = suffered.map_err(|why| {
            let why = format!("{at_s:.1} s, {}: {why}", fault.name());
            eprintln!("{why}; no committed answer of shard {shard} for {gap:?}");
            why
        })?;
        let Suffered { to, away, moment } = suffered;
        let session = Duration::from_millis(u64::from(self.args.session_timeout_ms));
        let bound = fault
            .bound(session, self.args.own_brokers, away)
            .mul_f64(self.args.gap_slack);
        let answers = probes.answers();
        let accepted = city
            .pings_accepted(&self.http)
            .await
            .saturating_sub(accepted);
        let pings_accepted = accepted as f64 / counting.elapsed().as_secs_f64();
        let mut broken: Vec<String> = self.watched.violations().into_iter().skip(known).collect();
        if gap > bound {
            broken.push(format!("a gap of {gap:?}, longer than {bound:?}"));
        }
        let search_bound = if fault.is_of_brokers() {
            SEARCH_PAUSE.mul_f64(self.args.gap_slack)
        } else {
            bound
        };
        if search_gap > search_bound {
            broken.push(format!(
                "searches were not answered for {search_gap:?}, longer than {search_bound:?}"
            ));
        }
        if matches!(fault, Fault::ReplaceNode | Fault::OneThreeTwo) && answers.failed() > 0 {
            broken.push(format!("{} commands failed", answers.failed()));
        }
        if fault.is_of_brokers() && answers.failed() > answers.retry_later {
            broken.push(format!(
                "{} of {} refusals were no 503 with Retry-After",
                answers.failed() - answers.retry_later,
                answers.failed()
            ));
        }
        let done = Done {
            fault,
            to,
            at_s,
            lasted_s: then.elapsed().as_secs_f64(),
            gap_ms: ms(gap),
            bound_ms: ms(bound),
            shard,
            search_gap_ms: ms(search_gap),
            answers,
            moment,
            owners_changed: self.watched.changes(then),
            owners_margin_ms: self.watched.margin_ms(then),
            load: Served::default(),
            pings_accepted,
            broken,
            window_ns: (from_ns, now_ns()),
        };
        eprintln!("{done}");
        let named = done.broken.iter();
        self.broken
            .extend(named.map(|why| format!("{at_s:.1} s, {}: {why}", fault.name())));
        self.done.push(done);
        Ok(())
    }
}

impl std::fmt::Display for Done {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:6.1} s  {:<14} {:<13} gap {:>5} ms (bound {}; shard {}), searches {:>5} ms; commands {} done, {} \"retry later\"",
            self.at_s,
            self.fault.name(),
            self.to,
            self.gap_ms,
            self.bound_ms,
            self.shard,
            self.search_gap_ms,
            self.answers.done,
            self.answers.retry_later,
        )?;
        for (what, count) in [
            ("broken off", self.answers.broken),
            ("without answer", self.answers.timed_out),
        ] {
            if count > 0 {
                write!(f, ", {count} {what}")?;
            }
        }
        for (status, count) in &self.answers.other {
            write!(f, ", {count} with {status}")?;
        }
        write!(f, "; {} shards moved", self.owners_changed)?;
        if let Some(margin) = self.owners_margin_ms {
            write!(f, ", {margin} ms between two owners")?;
        }
        if let Some(moment) = self.moment {
            let words = match moment {
                Moment::Between => "hit between two transactions",
                Moment::Open => "hit inside a transaction",
                Moment::OffsetsSent => "hit after a transaction's offsets were sent",
            };
            write!(f, "; {words}")?;
        }
        for why in &self.broken {
            write!(f, "\n          NOT MET: {why}")?;
        }
        Ok(())
    }
}

fn summaries(all: &[Done]) -> BTreeMap<Fault, Summary> {
    let mut by_fault: BTreeMap<Fault, Vec<&Done>> = BTreeMap::new();
    for done in all {
        by_fault.entry(done.fault).or_default().push(done);
    }
    let summary = |of: Vec<&Done>| {
        let mut gaps: Vec<u64> = of.iter().map(|done| done.gap_ms).collect();
        gaps.sort_unstable();
        let largest = |value: fn(&Done) -> u64| of.iter().map(|done| value(done)).max();
        Summary {
            count: of.len(),
            gap_median_ms: gaps[gaps.len() / 2],
            gap_max_ms: gaps[gaps.len() - 1],
            bound_ms: largest(|done| done.bound_ms).unwrap_or_default(),
            search_gap_max_ms: largest(|done| done.search_gap_ms).unwrap_or_default(),
        }
    };
    by_fault
        .into_iter()
        .map(|(fault, of)| (fault, summary(of)))
        .collect()
}

fn hits(all: &[Done]) -> BTreeMap<Moment, usize> {
    let mut hits = BTreeMap::new();
    for moment in all.iter().filter_map(|done| done.moment) {
        *hits.entry(moment).or_default() += 1;
    }
    hits
}

/// Prints and writes the report.
fn conclude(report: &ChaosReport, file: Option<&std::path::Path>) -> Result<ExitCode, AnyError> {
    if let Some(file) = file {
        std::fs::write(file, serde_json::to_string_pretty(report)?)
            .map_err(|why| format!("--report {}: {why}", file.display()))?;
    }
    println!(
        "{:<15} {:>5} {:>10} {:>10} {:>10} {:>14}",
        "fault", "times", "median ms", "most ms", "bound ms", "searches ms"
    );
    for (fault, of) in &report.summary {
        println!(
            "{:<15} {:>5} {:>10} {:>10} {:>10} {:>14}",
            fault.name(),
            of.count,
            of.gap_median_ms,
            of.gap_max_ms,
            of.bound_ms,
            of.search_gap_max_ms
        );
    }
    let hit = |moment| report.hits.get(&moment).copied().unwrap_or(0);
    println!(
        "nodes were hit {} times between transactions, {} times inside one, {} times after its offsets were sent",
        hit(Moment::Between),
        hit(Moment::Open),
        hit(Moment::OffsetsSent)
    );
    for (when, load) in [("calm", &report.calm), ("whole run", &report.load)] {
        println!(
            "load, {when}: {:.0} of {:.0} rides/s promised (p50 {:.0} ms, p99 {:.0} ms), {:.0} of {:.0} pings/s sent",
            load.rides_promised,
            load.rides_offered,
            load.promise_p50_ms,
            load.promise_p99_ms,
            load.pings_sent,
            load.pings_offered
        );
    }
    println!(
        "{} faults; {} rides acknowledged; {} sockets lost and opened again",
        report.faults.len(),
        report.acknowledged,
        report.sockets_lost
    );
    print!("{}", report.audit);
    for why in &report.broken {
        println!("FAILED: {why}");
    }
    Ok(if report.broken.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    })
}
