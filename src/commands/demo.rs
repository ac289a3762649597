//! `cabrank demo`: a server, and a synthetic city of real clients.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use cabrank_eventlog::EventLog;
use cabrank_loadgen::client::Role;
use cabrank_loadgen::demo::{DemoOptions, demo};
use cabrank_matcher::clock::DomainClock;
use cabrank_services::order::fare::Tariff;
use clap::Args;
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::service_beside::{self, Beside, Files};
use super::{audit, block_on, host_name, shutdown_signal, token::minter};
use crate::cluster::{Balancer, Launch};
use crate::server::Server;
use crate::settings::Settings;
use crate::{AnyError, Brokers, Common, Place, report, store};

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
    /// Run the engine alone, without the services beside it: orders, payments (with a provider of their own), forecasts.
    #[arg(long)]
    without_services: bool,
    #[command(flatten)]
    place: Place,
    // With --brokers the city runs over Kafka, with nodes and gateways as processes of their own. Its topics are made
    // under a prefix of its own unless --prefix is given.
    #[command(flatten)]
    brokers: Brokers,
    /// Matcher nodes, with --brokers.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=64), requires = "brokers")]
    nodes: u16,
    /// Gateways, with --brokers.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=16), requires = "brokers")]
    gateways: u16,
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
    if args.brokers.brokers.is_some() {
        return over_kafka(common, &args);
    }
    let scratch = report::Scratch::unless(args.place.data_dir.is_some())?;
    let mut settings = common.settings(|settings| {
        args.place.apply(settings);
        if let Some(dir) = scratch.dir() {
            settings.store.data_dir = dir.to_path_buf();
        }
    })?;
    let data_dir = settings.store.data_dir.clone();
    let _sending = cabrank_spans::start(&settings.spans, "demo", &host_name())?;
    let outcome = block_on(async move {
        let shutdown = shutdown_signal()?;
        let forecast = TcpListener::bind("127.0.0.1:0").await?;
        if !args.without_services {
            settings.gateway.forecasts.url = format!("http://{}", forecast.local_addr()?);
        }
        let server = Server::start(&settings, DomainClock::wall()).await?;
        let url = format!("http://{}", server.address());
        println!("{url}");
        println!("{}", map_address(&url, &settings));
        let services = if args.without_services {
            None
        } else {
            let dir = &settings.store.data_dir;
            Some(Beside::start(&settings, &url, dir, None, forecast).await?)
        };
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
        if let Some(services) = services {
            services.finish().await?;
        }
        server.stop().await?;
        Ok(outcome?)
    })?;
    let concluded = report::conclude(outcome, &data_dir, args.report.as_deref())?;
    if args.without_services {
        return Ok(concluded);
    }
    with_money(&store::open(&data_dir)?, &data_dir, concluded)
}

/// Audits the services that ran beside the city and prints what they did; the run's exit code then.
fn with_money(
    log: &dyn EventLog,
    data_dir: &Path,
    concluded: ExitCode,
) -> Result<ExitCode, AnyError> {
    let (files, tariff) = (Files::of(data_dir), Tariff::default());
    let audited = block_on(service_beside::audit(log, &files, &tariff, true))?;
    print!("services: {audited}");
    Ok(if audited.is_clean() {
        concluded
    } else {
        ExitCode::from(1)
    })
}

/// Where a browser finds the live map. The token stands in the fragment, which browsers send to nobody.
fn map_address(url: &str, settings: &Settings) -> String {
    let token = minter(settings)(Role::Ops, "demo");
    format!("the city, live: {url}/#token={token}")
}

/// The city over Kafka: nodes, gateways, one address in front of them. Kill one of the printed process ids and watch.
fn over_kafka(common: &Common, args: &DemoArgs) -> Result<ExitCode, AnyError> {
    let scratch = report::Scratch::unless(args.place.data_dir.is_some())?;
    let settings = common.settings(|settings| {
        args.place.apply(settings);
        if let Some(dir) = scratch.dir() {
            settings.store.data_dir = dir.to_path_buf();
        }
        // One broker on a laptop is the usual case here; a configuration or a flag says otherwise.
        settings.kafka.replication = 1;
        settings.kafka.prefix = format!("demo-{}-", std::process::id());
        args.brokers.apply(settings);
    })?;
    cabrank_eventlog::kafka::topics::create(&settings.kafka)?;
    let mut launch = Launch::new(common, settings.kafka.clone());
    let outcome = block_on(async {
        let shutdown = shutdown_signal()?;
        let forecast = TcpListener::bind("127.0.0.1:0").await?;
        if !args.without_services {
            let url = format!("http://{}", forecast.local_addr()?);
            launch
                .variables
                .push(("CABRANK_GATEWAY__FORECASTS__URL", url));
        }
        let front = Balancer::start(settings.gateway.listen).await?;
        println!("{}", front.url());
        println!("{}", map_address(&front.url(), &settings));
        let mut processes = Vec::new();
        for number in 1..=args.nodes {
            processes.push(launch.matcher(&format!("node-{number}"))?);
        }
        let mut addresses = Vec::new();
        for number in 1..=args.gateways {
            let gateway = launch.gateway(&format!("gateway-{number}"))?;
            addresses.push(gateway.address()?);
            processes.push(gateway);
        }
        let counted_at = addresses.iter().map(|at| format!("http://{at}")).collect();
        front.set(addresses);
        for process in &processes {
            println!("{}: process {}", process.name, process.pid());
        }
        println!(
            "look at it: cabrank cluster status --brokers {} --prefix {} --shards {} --replication {}",
            settings.kafka.brokers,
            settings.kafka.prefix,
            settings.kafka.shards,
            settings.kafka.replication
        );
        let services = if args.without_services {
            None
        } else {
            let dir = &settings.store.data_dir;
            let (url, kafka) = (front.url(), Some(&settings.kafka));
            Some(Beside::start(&settings, &url, dir, kafka, forecast).await?)
        };
        let (tell, stop) = watch::channel(false);
        tokio::spawn(async move {
            shutdown.cancelled().await;
            // Nobody listens any more when the run has ended by itself.
            let _ = tell.send(true);
        });
        let options = DemoOptions {
            counted_at,
            drivers: args.drivers,
            requests_per_minute: args.requests_per_minute,
            seconds: args.seconds,
            seed: args.seed,
            arguments: std::env::args().skip(1).collect(),
            ..DemoOptions::new(&front.url(), minter(&settings))
        };
        let outcome = demo(options, stop).await?;
        if let Some(services) = services {
            services.finish().await?;
        }
        // Gateways first: what they were told is committed before the nodes leave.
        while let Some(mut process) = processes.pop() {
            if process.has_ended() {
                println!("{} had ended before", process.name);
            } else {
                process.leave().await?;
            }
        }
        Ok(outcome)
    })?;
    let log = store::kafka(settings.kafka)?;
    let audited = audit::of_log(&log, false, true, &outcome.acknowledged)?;
    let concluded = report::finish(outcome.report, &audited, args.report.as_deref())?;
    if args.without_services {
        return Ok(concluded);
    }
    with_money(&log, &settings.store.data_dir, concluded)
}
