//! `cabrank chaos`: breaks a city over Kafka on purpose, while it works, and looks whether the promises hold.
//!
//! Every process is our own child: nodes, gateways and, without `--brokers`, the broker. The faults and their order come
//! from the seed. Beside the synthetic city one prober a shard asks for a committed answer all the time; the longest it
//! went without one is the gap a fault made. The end is the audit of the log against what the city's clients were
//! acknowledged.

use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use cabrank_eventlog::kafka::KafkaLog;
use cabrank_eventlog::kafka::testing::Broker;
use cabrank_loadgen::client::Role as TokenRole;
use cabrank_loadgen::demo::{DemoOptions, demo};
use cabrank_ring::{Kind, Ring};
use clap::{Args, ValueEnum};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde::Serialize;
use tokio::sync::watch;

use super::{audit, block_on, shutdown_signal, token::minter};
use crate::cluster::{Balancer, Launch, Process};
use crate::{AnyError, Brokers, Common};

/// A prober asks again after so long.
const PROBE_EVERY: Duration = Duration::from_millis(50);
/// ... and waits so long for an answer.
const PROBE_PATIENCE: Duration = Duration::from_secs(2);
/// A city must answer for every shard this soon after a fault is over, or the run stops as failed.
const HEAL_WITHIN: Duration = Duration::from_secs(60);
/// After this long without a fault the next one comes.
const CALM: Duration = Duration::from_secs(5);
/// How long a process is stopped or a broker is away.
const AWAY: Duration = Duration::from_secs(10);
/// The city works this long before the first fault.
const WARM_UP: Duration = Duration::from_secs(8);

/// Flags of `chaos`.
#[derive(Args)]
pub struct ChaosArgs {
    // Without --brokers a broker is started here (needs a JDK 17; Maven the first time).
    #[command(flatten)]
    brokers: Brokers,
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
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=16))]
    nodes: u16,
    /// Gateways.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=16))]
    gateways: u16,
    /// Drivers of the synthetic city.
    #[arg(long, default_value_t = 300)]
    drivers: u32,
    /// Rides asked for a minute.
    #[arg(long, default_value_t = 300.0)]
    requests_per_minute: f64,
    /// Print the faults and their gaps as JSON.
    #[arg(long)]
    json: bool,
}

/// What can be done to a city.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Fault {
    /// kill -9 of a node; another one is started later.
    KillNode,
    /// SIGSTOP of a node for ten seconds, then SIGCONT: it finds its shards with others.
    FreezeNode,
    /// SIGTERM of a node, after which another one joins.
    ReplaceNode,
    /// A node more, and one less again.
    GrowAndShrink,
    /// kill -9 of a gateway; another one is started.
    KillGateway,
    /// kill -9 of the broker (only of one started here), which is back after ten seconds.
    KillBroker,
}

/// A fault and what it did.
#[derive(Serialize)]
struct Done {
    fault: Fault,
    /// Seconds since the start.
    at_s: f64,
    /// To whom.
    to: String,
    /// The longest a shard gave no committed answer, ms.
    gap_ms: u64,
    /// Which shard that was.
    shard: u16,
}

/// When each shard last gave a committed answer, and the longest it did not.
struct Gaps {
    shards: Mutex<Vec<(Instant, Duration)>>,
}

impl Gaps {
    fn new(shards: u16) -> Arc<Gaps> {
        let start = vec![(Instant::now(), Duration::ZERO); usize::from(shards)];
        Arc::new(Gaps {
            shards: Mutex::new(start),
        })
    }

    fn answered(&self, shard: u16) {
        let mut shards = self.shards.lock().unwrap_or_else(PoisonError::into_inner);
        let (last, longest) = &mut shards[usize::from(shard)];
        *longest = (*longest).max(last.elapsed());
        *last = Instant::now();
    }

    /// Forgets what was.
    fn start_over(&self) {
        let mut shards = self.shards.lock().unwrap_or_else(PoisonError::into_inner);
        for (_, longest) in shards.iter_mut() {
            *longest = Duration::ZERO;
        }
    }

    /// The shard that was longest without an answer since it started over, the wait that still goes on included.
    fn worst(&self) -> (u16, Duration) {
        let shards = self.shards.lock().unwrap_or_else(PoisonError::into_inner);
        let waits = shards
            .iter()
            .map(|(last, longest)| (*longest).max(last.elapsed()));
        (0..)
            .zip(waits)
            .max_by_key(|(_, wait)| *wait)
            .unwrap_or_default()
    }

    /// Have all shards answered since then?
    fn all_since(&self, then: Instant) -> bool {
        let shards = self.shards.lock().unwrap_or_else(PoisonError::into_inner);
        shards.iter().all(|(last, _)| *last > then)
    }
}

/// Asks for a committed answer of a shard, over and over. Reinstating a driver nobody has suspended changes nothing, but
/// it is a command like any other: its outcome is committed before it is answered.
async fn probe(url: String, token: String, ring: Arc<Ring>, shard: u16, gaps: Arc<Gaps>) {
    let http = reqwest::Client::new();
    let mut number = 0_u64;
    loop {
        let driver = loop {
            let driver = format!("probe-{number}");
            number += 1;
            if ring.shard_of_person(Kind::Driver, &driver) == shard {
                break driver;
            }
        };
        let answer = http
            .post(format!("{url}/v1/drivers/{driver}/reinstate"))
            .bearer_auth(&token)
            .timeout(PROBE_PATIENCE)
            .send()
            .await;
        if answer.is_ok_and(|answer| answer.status().is_success()) {
            gaps.answered(shard);
        }
        tokio::time::sleep(PROBE_EVERY).await;
    }
}

/// The running city.
struct City {
    launch: Launch,
    front: Balancer,
    nodes: Vec<Process>,
    gateways: Vec<Process>,
    started: u32,
    broker: Option<Broker>,
}

impl City {
    fn new_name(&mut self, what: &str) -> String {
        self.started += 1;
        format!("{what}-{}", self.started)
    }

    fn add_node(&mut self) -> Result<(), AnyError> {
        let name = self.new_name("node");
        let node = self.launch.matcher(&name)?;
        self.nodes.push(node);
        Ok(())
    }

    fn add_gateway(&mut self) -> Result<(), AnyError> {
        let name = self.new_name("gateway");
        let gateway = self.launch.gateway(&name)?;
        self.gateways.push(gateway);
        let addresses: Result<Vec<_>, _> = self.gateways.iter().map(Process::address).collect();
        self.front.set(addresses?);
        Ok(())
    }

    /// A process that nobody has hurt must live.
    fn check_alive(&mut self) -> Result<(), AnyError> {
        let all = self.nodes.iter_mut().chain(&mut self.gateways);
        let dead: Vec<String> = all
            .filter_map(|process| process.has_ended().then(|| process.name.clone()))
            .collect();
        if dead.is_empty() {
            Ok(())
        } else {
            Err(format!("{} ended by itself", dead.join(", ")).into())
        }
    }

    async fn healed(&mut self, gaps: &Gaps) -> Result<(), AnyError> {
        let then = Instant::now();
        while !gaps.all_since(then) {
            if then.elapsed() > HEAL_WITHIN {
                let (shard, _) = gaps.worst();
                return Err(format!("shard {shard} did not answer within {HEAL_WITHIN:?}").into());
            }
            tokio::time::sleep(PROBE_EVERY).await;
        }
        Ok(())
    }

    /// Does it to somebody and waits until the city is whole and answers again. Says to whom.
    async fn suffer(
        &mut self,
        fault: Fault,
        dice: &mut SmallRng,
        gaps: &Gaps,
    ) -> Result<String, AnyError> {
        let victim = dice.random_range(0..self.nodes.len());
        let name = self.nodes[victim].name.clone();
        let to = match fault {
            Fault::KillNode => {
                self.nodes[victim].kill();
                self.nodes.remove(victim);
                self.healed(gaps).await?;
                self.add_node()?;
                name
            }
            Fault::FreezeNode => {
                self.nodes[victim].signal("STOP")?;
                tokio::time::sleep(AWAY).await;
                self.nodes[victim].signal("CONT")?;
                name
            }
            Fault::ReplaceNode => {
                let mut leaving = self.nodes.remove(victim);
                leaving.leave().await?;
                self.add_node()?;
                name
            }
            Fault::GrowAndShrink => {
                self.add_node()?;
                self.healed(gaps).await?;
                let mut leaving = self.nodes.remove(victim);
                leaving.leave().await?;
                name
            }
            Fault::KillGateway => {
                let victim = dice.random_range(0..self.gateways.len());
                let mut gateway = self.gateways.remove(victim);
                gateway.kill();
                self.add_gateway()?;
                gateway.name.clone()
            }
            Fault::KillBroker => {
                let broker = self.broker.as_ref().ok_or("the broker is not ours")?;
                broker.kill(0);
                tokio::time::sleep(AWAY).await;
                broker.start_again(0);
                "the broker".to_owned()
            }
        };
        self.healed(gaps).await?;
        self.check_alive()?;
        Ok(to)
    }
}

/// Runs the city and breaks it; exit code 1 if a promise was broken or the city did not heal.
pub fn run(common: &Common, args: ChaosArgs) -> Result<ExitCode, AnyError> {
    if !(0.1..=600.0).contains(&args.minutes) {
        return Err(format!("--minutes {}: choose 0.1 to 600", args.minutes).into());
    }
    let broker = match args.brokers.brokers {
        Some(_) => None,
        None => Some(Broker::start(1).ok_or(
            "no broker: install a JDK 17 and Maven, or name one with --brokers HOST:PORT",
        )?),
    };
    let settings = common.settings(|settings| {
        let kafka = &mut settings.kafka;
        kafka.replication = 1;
        kafka.shards = 4;
        kafka.prefix = format!("chaos-{}-", std::process::id());
        // A fast takeover; the broker started here allows it, another one's minimum is checked at the start.
        kafka.session_timeout_ms = 2_000;
        kafka.heartbeat_ms = 400;
        if let Some(broker) = &broker {
            broker.bootstrap().clone_into(&mut kafka.brokers);
        }
        args.brokers.apply(settings);
    })?;
    let all = [
        Fault::KillNode,
        Fault::FreezeNode,
        Fault::ReplaceNode,
        Fault::GrowAndShrink,
        Fault::KillGateway,
        Fault::KillBroker,
    ];
    let ours = broker.is_some();
    let possible: Vec<Fault> = if args.faults.is_empty() {
        let possible = all.into_iter();
        possible
            .filter(|fault| ours || *fault != Fault::KillBroker)
            .collect()
    } else {
        args.faults.clone()
    };
    cabrank_eventlog::kafka::topics::create(&settings.kafka)?;
    let launch = Launch::new(common, settings.kafka.clone());
    let (outcome, faults, failed) = block_on(async {
        let shutdown = shutdown_signal()?;
        let mut city = City {
            launch,
            front: Balancer::start(([127, 0, 0, 1], 0).into()).await?,
            nodes: Vec::new(),
            gateways: Vec::new(),
            started: 0,
            broker,
        };
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
        let gaps = Gaps::new(settings.kafka.shards);
        let ring = Arc::new(Ring::new(settings.kafka.shards)?);
        let mint = minter(&settings);
        for shard in 0..settings.kafka.shards {
            let token = mint(TokenRole::Ops, "chaos");
            let (ring, gaps) = (Arc::clone(&ring), Arc::clone(&gaps));
            tokio::spawn(probe(url.clone(), token, ring, shard, gaps));
        }
        let (tell, stop) = watch::channel(false);
        let options = DemoOptions {
            drivers: args.drivers,
            requests_per_minute: args.requests_per_minute,
            seed: args.seed,
            probe: false,
            show: false,
            arguments: std::env::args().skip(1).collect(),
            ..DemoOptions::new(&url, mint)
        };
        let living = tokio::spawn(demo(options, stop));
        city.healed(&gaps).await?;
        tokio::time::sleep(WARM_UP).await;
        let mut dice = SmallRng::seed_from_u64(args.seed);
        let began = Instant::now();
        let length = Duration::from_secs_f64(args.minutes * 60.0);
        let mut done: Vec<Done> = Vec::new();
        let mut failed = None;
        while began.elapsed() < length && !shutdown.is_cancelled() {
            let fault = if args.faults.is_empty() {
                possible[dice.random_range(0..possible.len())]
            } else {
                possible[done.len() % possible.len()]
            };
            let at_s = began.elapsed().as_secs_f64();
            gaps.start_over();
            match city.suffer(fault, &mut dice, &gaps).await {
                Ok(to) => {
                    let (shard, gap) = gaps.worst();
                    let gap_ms = u64::try_from(gap.as_millis()).unwrap_or(u64::MAX);
                    eprintln!(
                        "{at_s:7.1} s  {fault:?} of {to}: shard {shard} gave no answer for {gap_ms} ms"
                    );
                    done.push(Done {
                        fault,
                        at_s,
                        to,
                        gap_ms,
                        shard,
                    });
                }
                Err(why) => {
                    eprintln!("{at_s:7.1} s  {fault:?}: {why}");
                    failed = Some(why.to_string());
                    break;
                }
            }
            tokio::time::sleep(CALM).await;
        }
        // Nobody listens any more when the city has ended by itself.
        let _ = tell.send(true);
        let outcome = living.await??;
        for mut process in city.gateways.into_iter().chain(city.nodes) {
            if let Err(why) = process.leave().await {
                failed.get_or_insert(why.to_string());
            }
        }
        // The log is read below: the broker must outlive this.
        let log = tokio::task::spawn_blocking({
            let config = settings.kafka.clone();
            move || KafkaLog::open(config)
        })
        .await??;
        let acknowledged = outcome.acknowledged.clone();
        let audited =
            tokio::task::spawn_blocking(move || audit::of_log(&log, false, true, &acknowledged))
                .await??;
        drop(city.broker);
        Ok(((outcome, audited), done, failed))
    })?;
    let (outcome, audited) = outcome;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&faults)?);
    }
    eprintln!(
        "{} faults; {} rides acknowledged",
        faults.len(),
        outcome.acknowledged.len()
    );
    eprint!("{audited}");
    if let Some(why) = &failed {
        eprintln!("failed: {why}");
    }
    Ok(
        if audited.is_clean() && failed.is_none() && !outcome.acknowledged.is_empty() {
            ExitCode::SUCCESS
        } else {
            ExitCode::from(1)
        },
    )
}
