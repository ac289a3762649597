//! `cabrank`: a whole city on a laptop.
//!
//! Thin: parses, builds, prints. What happens is in the crates.

#![forbid(unsafe_code)]

mod cluster;
mod commands;
mod report;
mod server;
mod settings;
mod store;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::LazyLock;

use cabrank_eventlog::FORMAT_VERSION;
use cabrank_matcher::versions::{STATE_VERSION, WIRE_VERSION};
use clap::{Args, Parser, Subcommand};
use settings::{Preset, Settings};

/// What a command may fail with: printed with its causes, exit code 2.
pub type AnyError = Box<dyn std::error::Error + Send + Sync>;

/// The release, and who it can work beside: the same for the same source, wherever it was built.
static VERSION: LazyLock<String> = LazyLock::new(|| {
    let (release, wire, state) = (env!("CARGO_PKG_VERSION"), WIRE_VERSION, STATE_VERSION);
    format!("{release} (wire {wire}, state {state}, store {FORMAT_VERSION})")
});

/// A real-time ride-dispatch engine: drivers stream positions, riders ask, nothing is lost.
#[derive(Parser)]
#[command(name = "cabrank", version = VERSION.as_str(), arg_required_else_help = true)]
struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

/// Flags every command understands.
#[derive(Args, Clone)]
pub struct Common {
    /// Configuration file (TOML); `cabrank config` prints one with every knob.
    #[arg(long, global = true, env = "CABRANK_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// What kind of fleet the defaults suit.
    #[arg(long, global = true, value_enum)]
    preset: Option<Preset>,
    /// What is logged to standard error, e.g. `info` or `cabrank_matcher=debug`.
    #[arg(
        long,
        global = true,
        env = "CABRANK_LOG",
        default_value = "warn",
        value_name = "FILTER"
    )]
    log: String,
    /// Log as JSON lines.
    #[arg(long, global = true)]
    log_json: bool,
}

impl Common {
    /// Reads and checks the configuration; `flags` has the last word.
    pub fn settings(&self, flags: impl FnOnce(&mut Settings)) -> Result<Settings, AnyError> {
        Ok(Settings::load(self.config.as_deref(), self.preset, flags)?)
    }
}

/// Where a server listens and keeps its log.
#[derive(Args, Clone)]
pub struct Place {
    /// Address to listen on; port 0 takes a free one.
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// Directory of the log.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

impl Place {
    fn apply(&self, settings: &mut Settings) {
        if let Some(listen) = self.listen {
            settings.gateway.listen = listen;
        }
        if let Some(dir) = &self.data_dir {
            settings.store.data_dir = dir.clone();
        }
    }
}

/// Which Apache Kafka, and which city on it.
#[derive(Args, Clone)]
pub struct Brokers {
    /// Brokers of the log, `host:port`, separated by commas.
    #[arg(long, value_name = "HOST:PORT,...")]
    brokers: Option<String>,
    /// What this city's topics and groups begin with, where several cities share the brokers.
    #[arg(long, value_name = "PREFIX")]
    prefix: Option<String>,
    /// Shards = partitions of the topics, as they are made; `reshard` raises them.
    #[arg(long, value_name = "N")]
    shards: Option<u16>,
    /// Copies of each partition when topics are made and checked: 3 survives a broker, 1 is for a laptop.
    #[arg(long, value_name = "N")]
    replication: Option<u16>,
}

impl Brokers {
    fn apply(&self, settings: &mut Settings) {
        let kafka = &mut settings.kafka;
        if let Some(brokers) = &self.brokers {
            kafka.brokers.clone_from(brokers);
        }
        if let Some(prefix) = &self.prefix {
            kafka.prefix.clone_from(prefix);
        }
        kafka.shards = self.shards.unwrap_or(kafka.shards);
        kafka.replication = self.replication.unwrap_or(kafka.replication);
    }
}

/// Where a log is read from: a stopped store, a running server, or Kafka.
#[derive(Args, Clone)]
#[group(required = true, multiple = false)]
pub struct Source {
    /// Directory of a stopped server's log.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Address of a running server, e.g. http://127.0.0.1:8080.
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// Brokers of a city over Kafka, `host:port`, separated by commas; its prefix and shards are `kafka.prefix` and
    /// `kafka.shards` of the configuration (CABRANK_KAFKA__PREFIX, CABRANK_KAFKA__SHARDS).
    #[arg(long, value_name = "HOST:PORT,...")]
    brokers: Option<String>,
}

#[derive(Subcommand)]
enum Command {
    /// Run a server and a synthetic city of real clients on loopback.
    Demo(commands::demo::DemoArgs),
    /// Run the server alone, until SIGTERM or Ctrl-C.
    Serve(commands::serve::ServeArgs),
    /// Run a gateway of a city over Kafka: sockets and calls, until SIGTERM or Ctrl-C.
    Gateway(commands::gateway::GatewayArgs),
    /// Run a matcher node of a city over Kafka: shards, index, rounds, until SIGTERM or Ctrl-C.
    Matcher(commands::matcher::MatcherArgs),
    /// Ask a process whether it is well or ready: exit code 1 when not.
    Health(commands::health::HealthArgs),
    /// Make or check a city's topics.
    Topics(commands::topics::TopicsArgs),
    /// Measure the floor of what a Kafka allows: request to offer without a Cabrank.
    Probe(commands::probe::ProbeArgs),
    /// Measure a city over Kafka on this machine beside the probe, and print one table.
    Figures(commands::figures::FiguresArgs),
    /// Start an Apache Kafka to try things with: one broker on this machine, gone with its data at the end. Needs a JDK 17,
    /// and Maven the first time.
    OwnBroker,
    /// Raise the number of shards of a running city over Kafka.
    ///
    /// Every node and gateway must run a release that knows this command. While a node does not, it is refused with exit code 2
    /// and the nodes' names. Gateways leave no trace in the log, so they cannot be seen: an older one ends, with exit code 1, at
    /// the announcement, which it cannot read. Nothing is lost or done twice by that, but its phones have to go elsewhere.
    Reshard(commands::reshard::ReshardArgs),
    /// Look at a running cluster.
    Cluster(commands::cluster::ClusterArgs),
    /// Read or change how a running city's rounds choose: policy, swaps, prices, pace.
    Dispatch(commands::dispatch::DispatchArgs),
    /// Break a city over Kafka on purpose while it works, and audit it.
    Chaos(commands::chaos::ChaosArgs),
    /// Run one of the services beside the engine, until SIGTERM or Ctrl-C.
    #[command(subcommand)]
    Service(Box<commands::service::ServiceCommand>),
    /// A payment provider for tests and demos, with a ledger, that misbehaves as told.
    ProviderSim(commands::provider_sim::ProviderSimArgs),
    /// Replay recorded cabs and trips through the real gateway.
    Replay(commands::replay::ReplayArgs),
    /// Play a recorded evening under a policy, in virtual time and without sockets.
    Simulate(Box<commands::simulate::SimulateArgs>),
    /// Show a film of a simulation or a replay on the map, in a browser on this machine.
    Watch(commands::film::WatchArgs),
    /// Offer a load to a server by a schedule and measure what it takes and how soon it answers.
    Load(Box<commands::load::LoadArgs>),
    /// A process of `load`.
    #[command(hide = true)]
    LoadPart,
    /// The server `load` starts.
    #[command(hide = true)]
    LoadServer(commands::load::ServerArgs),
    /// A bare WebSocket server, what `load --target raw` measures.
    #[command(hide = true)]
    RawSink(commands::load::SinkArgs),
    /// Compare reports of runs, or show one as a page with pictures.
    #[command(subcommand)]
    Report(commands::report::ReportCommand),
    /// Check invariants 1 to 5 over an event log, independently of the engine.
    Audit(commands::audit::AuditArgs),
    /// Watch a city in the terminal: processes, shards, rates, latency, lag.
    Top(commands::top::TopArgs),
    /// Show or change what a running process logs.
    LogLevel(commands::log_level::LogLevelArgs),
    /// Print the event log for a person to read.
    Events(commands::events::EventsArgs),
    /// Print the contract of the topics as an AsyncAPI 3 document.
    Asyncapi,
    /// Print the effective configuration with a comment per knob.
    Config,
    /// Mint a development token.
    Token(commands::token::TokenArgs),
    /// Play a driver by hand: lines from the terminal or a pipe.
    Driver(commands::driver::DriverArgs),
    /// Play a rider by hand: lines from the terminal or a pipe.
    Rider(commands::rider::RiderArgs),
    /// Check the files of zones, and print what they draw.
    Zones(commands::zones::ZonesArgs),
    /// Show how ownership resolutions would spread a trips file over shards.
    Ring(commands::ring::RingArgs),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Err(why) = cabrank_gateway::start_logging(&cli.common.log, cli.common.log_json) {
        eprintln!("cabrank: --log: {why}");
        return ExitCode::from(2);
    }
    let run = || -> Result<ExitCode, AnyError> {
        match cli.command {
            Command::Demo(args) => commands::demo::run(&cli.common, args),
            Command::Serve(args) => commands::serve::run(&cli.common, args),
            Command::Gateway(args) => commands::gateway::run(&cli.common, args),
            Command::Matcher(args) => commands::matcher::run(&cli.common, args),
            Command::Health(args) => commands::health::run(args),
            Command::Topics(args) => commands::topics::run(&cli.common, args),
            Command::Probe(args) => commands::probe::run(&cli.common, args),
            Command::Figures(args) => commands::figures::run(&cli.common, args),
            Command::OwnBroker => commands::own_broker::run(),
            Command::Reshard(args) => commands::reshard::run(&cli.common, args),
            Command::Cluster(args) => commands::cluster::run(&cli.common, args),
            Command::Dispatch(args) => commands::dispatch::run(&cli.common, args),
            Command::Chaos(args) => commands::chaos::run(&cli.common, args),
            Command::Service(command) => commands::service::run(&cli.common, *command),
            Command::ProviderSim(args) => commands::provider_sim::run(&args),
            Command::Replay(args) => commands::replay::run(&cli.common, args),
            Command::Simulate(args) => commands::simulate::run(&cli.common, *args),
            Command::Watch(args) => commands::film::run(&args),
            Command::Load(args) => commands::load::run(&cli.common, *args),
            Command::LoadPart => commands::load::run_load_part(),
            Command::LoadServer(args) => commands::load::run_server(&cli.common, args),
            Command::RawSink(args) => commands::load::run_raw_sink(args),
            Command::Report(command) => commands::report::run(command),
            Command::Audit(args) => commands::audit::run(&cli.common, args),
            Command::Events(args) => commands::events::run(&cli.common, args),
            Command::Top(args) => commands::top::run(args),
            Command::LogLevel(args) => commands::log_level::run(&cli.common, args),
            Command::Asyncapi => {
                print!("{}", include_str!("../docs/asyncapi.json"));
                Ok(ExitCode::SUCCESS)
            }
            Command::Config => {
                print!("{}", cli.common.settings(|_| {})?.to_commented_toml());
                Ok(ExitCode::SUCCESS)
            }
            Command::Token(args) => commands::token::run(&cli.common, args),
            Command::Driver(args) => commands::driver::run(&cli.common, args),
            Command::Rider(args) => commands::rider::run(&cli.common, args),
            Command::Zones(args) => commands::zones::run(&cli.common, args),
            Command::Ring(args) => commands::ring::run(&cli.common, args),
        }
    };
    run().unwrap_or_else(|why| {
        eprintln!("cabrank: {why}");
        ExitCode::from(2)
    })
}
