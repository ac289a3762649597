//! `cabrank`: a whole city on a laptop.
//!
//! Thin: parses, builds, prints. What happens is in the crates.

mod commands;
mod report;
mod server;
mod settings;
mod store;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use settings::{Preset, Settings};

/// What a command may fail with: printed with its causes, exit code 2.
pub type AnyError = Box<dyn std::error::Error + Send + Sync>;

/// A real-time ride-dispatch engine: drivers stream positions, riders ask, nothing is lost.
#[derive(Parser)]
#[command(name = "cabrank", version, arg_required_else_help = true)]
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

/// Where a log is read from: a stopped store, or a running server.
#[derive(Args, Clone)]
#[group(required = true, multiple = false)]
pub struct Source {
    /// Directory of a stopped server's log.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Address of a running server, e.g. http://127.0.0.1:8080.
    #[arg(long, value_name = "URL")]
    url: Option<String>,
}

#[derive(Subcommand)]
enum Command {
    /// Run a server and a synthetic city of real clients on loopback.
    Demo(commands::demo::DemoArgs),
    /// Run the server alone, until SIGTERM or Ctrl-C.
    Serve(commands::serve::ServeArgs),
    /// Replay recorded cabs and trips through the real gateway.
    Replay(commands::replay::ReplayArgs),
    /// Check invariants 1 to 5 over an event log, independently of the engine.
    Audit(commands::audit::AuditArgs),
    /// Print the event log for a person to read.
    Events(commands::events::EventsArgs),
    /// Print the effective configuration with a comment per knob.
    Config,
    /// Mint a development token.
    Token(commands::token::TokenArgs),
    /// Show how ownership resolutions would spread a trips file over shards.
    Ring(commands::ring::RingArgs),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Err(why) = start_logging(&cli.common) {
        eprintln!("cabrank: --log: {why}");
        return ExitCode::from(2);
    }
    let run = || -> Result<ExitCode, AnyError> {
        match cli.command {
            Command::Demo(args) => commands::demo::run(&cli.common, args),
            Command::Serve(args) => commands::serve::run(&cli.common, args),
            Command::Replay(args) => commands::replay::run(&cli.common, args),
            Command::Audit(args) => commands::audit::run(&cli.common, args),
            Command::Events(args) => commands::events::run(&cli.common, args),
            Command::Config => {
                print!("{}", cli.common.settings(|_| {})?.to_commented_toml());
                Ok(ExitCode::SUCCESS)
            }
            Command::Token(args) => commands::token::run(&cli.common, args),
            Command::Ring(args) => commands::ring::run(&cli.common, args),
        }
    };
    run().unwrap_or_else(|why| {
        eprintln!("cabrank: {why}");
        ExitCode::from(2)
    })
}

fn start_logging(common: &Common) -> Result<(), AnyError> {
    let filter = tracing_subscriber::EnvFilter::try_new(&common.log)?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false);
    if common.log_json {
        builder.json().init();
    } else {
        builder.init();
    }
    Ok(())
}
