//! `cabrank service`: the business beside the engine.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use cabrank_eventlog::kafka::KafkaConfig;
use cabrank_eventlog::{EventLog, Topic};
use cabrank_gateway::token::{Caller as Proven, Role, TokenVerifier, mint};
use cabrank_services::forecast::evaluate::{Table, choose, evaluate};
use cabrank_services::forecast::{Config as ForecastConfig, ForecastService};
use cabrank_services::host::{self, Peer, Peers, Place};
use cabrank_services::kafka::TopicSource;
use cabrank_services::order::saga::Policy;
use cabrank_services::payment::{Config as PaymentConfig, provider::HttpProvider};
use cabrank_services::source::{FeedSource, LogSource, Source, StreamSource, Token};
use cabrank_services::web::{Caller, Guard};
use clap::{Args, Subcommand};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;

use super::{block_on, host_name, shutdown_signal};
use crate::settings::Settings;
use crate::{AnyError, Common, store};

/// How long a token of our own is good.
const TOKEN_FOR: Duration = Duration::from_secs(3_600);

/// The services.
#[derive(Subcommand)]
pub enum ServiceCommand {
    /// Rides and their money for the business: `GET /v1/orders`, and the saga.
    Order(OrderArgs),
    /// Holds, takes and gives back money at the provider.
    Payment(PaymentArgs),
    /// Expected demand of each cell, published and judged.
    Forecast(ForecastArgs),
    /// Apply the events that were set aside again.
    ReplayDead(ReplayArgs),
}

/// What all services are told.
#[derive(Args)]
pub struct Kept {
    /// Where it keeps what it knows: a SQLite file, or postgres://user@host/database.
    #[arg(long, value_name = "FILE|URL")]
    database: String,
    /// Address to answer on; port 0 takes a free one.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Settings of the services (TOML): sections `policy`, `policy.tariff`, `payment`.
    #[arg(long, value_name = "FILE")]
    settings: Option<PathBuf>,
}

/// Where rides come from.
#[derive(Args)]
#[group(required = true, multiple = false)]
pub struct Rides {
    /// A running server, e.g. http://127.0.0.1:8080: its event stream.
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// Directory of a stopped server's log: read to its end, then wait.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Brokers of a city over Kafka; prefix and shards are the configuration's. What the service says goes to topics there.
    #[arg(long, value_name = "HOST:PORT,...")]
    brokers: Option<String>,
}

/// Flags of `service order`.
#[derive(Args)]
pub struct OrderArgs {
    #[command(flatten)]
    rides: Rides,
    #[command(flatten)]
    common: Kept,
    /// Where the payment service answers. Without it its topic is read with --brokers; else nothing is known of money but
    /// what is asked.
    #[arg(long, value_name = "URL")]
    payment: Option<String>,
    /// Where a gateway takes cancels, if rides do not come from --url.
    #[arg(long, value_name = "URL")]
    gateway: Option<String>,
    /// Where the forecast service answers: rides are dear where more are expected than cars are free, up to
    /// `policy.tariff.surge_max_permille` of the settings (1000, the default, is off).
    #[arg(long, value_name = "URL")]
    forecast: Option<String>,
    /// Empty the read model first and rebuild it from the log.
    #[arg(long)]
    rebuild: bool,
}

/// Flags of `service payment`.
#[derive(Args)]
pub struct PaymentArgs {
    #[command(flatten)]
    common: Kept,
    /// Where the order service answers.
    #[arg(long, value_name = "URL", required_unless_present = "brokers")]
    order: Option<String>,
    /// Brokers of a city over Kafka: what is said goes to `payment-events` there, and without --order what the order
    /// service asks is read from `order-events`. Prefix and shards are the configuration's.
    #[arg(long, value_name = "HOST:PORT,...")]
    brokers: Option<String>,
    /// Where the provider answers.
    #[arg(long, value_name = "URL")]
    provider: String,
}

/// Flags of `service forecast`.
#[derive(Args)]
pub struct ForecastArgs {
    /// Judge the forecast on these recorded demand files (CSV, perhaps gzipped) instead, and print the table.
    #[arg(long, value_name = "FILES", num_args = 1.., required_unless_present = "database")]
    evaluate: Vec<PathBuf>,
    /// Before that choose the weights on these files, and print how all of them did; never on files they are judged on.
    #[arg(long, value_name = "FILES", num_args = 1.., requires = "evaluate")]
    choose: Vec<PathBuf>,
    /// H3 resolution of the cells.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u8).range(0..=15))]
    resolution: u8,
    /// Where it keeps what it knows: a SQLite file, or postgres://user@host/database.
    #[arg(long, value_name = "FILE|URL", conflicts_with = "evaluate")]
    database: Option<String>,
    /// Address to answer on; port 0 takes a free one.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// A running server whose event stream is followed.
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// Directory of a stopped server's log.
    #[arg(long, value_name = "DIR", conflicts_with = "url")]
    data_dir: Option<PathBuf>,
    /// Brokers of a city over Kafka; prefix and shards are the configuration's. Forecasts go to `demand-forecasts` there.
    #[arg(long, value_name = "HOST:PORT,...", conflicts_with_all = ["url", "data_dir"])]
    brokers: Option<String>,
}

/// Flags of `service replay-dead`.
#[derive(Args)]
#[group(required = true, multiple = false)]
pub struct ReplayArgs {
    /// A running service.
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// The database of a stopped order service.
    #[arg(long, value_name = "FILE|URL")]
    order_database: Option<String>,
    /// The database of a stopped payment service.
    #[arg(long, value_name = "FILE|URL")]
    payment_database: Option<String>,
}

/// The services' settings.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Business {
    /// Prices and patience of the saga.
    pub policy: Policy,
    /// How the provider is called.
    pub payment: PaymentConfig,
}

/// Reads the services' settings; none: the defaults.
pub fn business(file: Option<&std::path::Path>) -> Result<Business, AnyError> {
    let Some(file) = file else {
        return Ok(Business::default());
    };
    let text = std::fs::read_to_string(file)
        .map_err(|why| format!("--settings {}: {why}", file.display()))?;
    Ok(toml::from_str(&text).map_err(|why| format!("--settings {}: {why}", file.display()))?)
}

/// Tells callers by the gateway's own keys.
pub fn guard(settings: &Settings) -> Result<Guard, AnyError> {
    let verifier = TokenVerifier::new(&settings.gateway.keys)?;
    Ok(Arc::new(move |token| {
        Some(match verifier.verify(token).ok()?.caller {
            Proven::Rider(id) => Caller::Rider(id.to_string()),
            Proven::Driver(id) => Caller::Driver(id.to_string()),
            Proven::Service(_) => Caller::Service,
            Proven::Ops(_) => Caller::Ops,
        })
    }))
}

/// Tokens for calls to gateways and other services.
pub fn tokens(settings: &Settings, subject: &'static str) -> Token {
    let secret = settings.gateway.keys.secret.clone();
    Arc::new(move || {
        mint(&secret, Role::Service, subject, TOKEN_FOR)
            .expect("the secret was checked and the subject is an id")
    })
}

/// The brokers a service was told of, with all that the configuration says about them.
fn kafka(common: &Common, brokers: Option<&String>) -> Result<Option<KafkaConfig>, AnyError> {
    let Some(brokers) = brokers else {
        return Ok(None);
    };
    let settings = common.settings(|settings| settings.kafka.brokers.clone_from(brokers))?;
    Ok(Some(settings.kafka))
}

/// What the service `of` says: asked of it, or read from its topic.
pub fn said_by(
    of: &'static str,
    url: Option<&String>,
    brokers: Option<&KafkaConfig>,
    token: Token,
) -> Option<Arc<dyn Source>> {
    let topic = match of {
        "order" => "order-events",
        _ => "payment-events",
    };
    match (url, brokers) {
        (Some(url), _) => Some(Arc::new(FeedSource::new(of, url, token))),
        (None, Some(brokers)) => Some(Arc::new(TopicSource::new(of, topic, brokers))),
        (None, None) => None,
    }
}

fn rides(
    common: &Common,
    settings: &Settings,
    from: &Rides,
    topics: &[Topic],
    subject: &'static str,
) -> Result<Arc<dyn Source>, AnyError> {
    let of_log = |log: Arc<dyn EventLog>| -> Arc<dyn Source> {
        Arc::new(LogSource::new(log, topics, false))
    };
    match (&from.url, &from.data_dir, &from.brokers) {
        (Some(url), ..) => Ok(Arc::new(StreamSource::new(url, tokens(settings, subject)))),
        (_, Some(dir), _) => Ok(of_log(Arc::new(store::open(dir)?))),
        (.., Some(brokers)) => Ok(of_log(Arc::new(store::over_kafka(common, brokers)?))),
        (None, None, None) => Err("give --url, --data-dir or --brokers".into()),
    }
}

/// Runs a service until SIGTERM or Ctrl-C.
pub fn run(common: &Common, command: ServiceCommand) -> Result<ExitCode, AnyError> {
    let settings = common.settings(|_| {})?;
    let name = match &command {
        ServiceCommand::Order(_) => "order",
        ServiceCommand::Payment(_) => "payment",
        ServiceCommand::Forecast(_) => "forecast",
        ServiceCommand::ReplayDead(_) => "replay-dead",
    };
    let _sending = cabrank_spans::start(&settings.spans, name, &host_name())?;
    match command {
        ServiceCommand::Order(args) => order(common, &settings, &args),
        ServiceCommand::Payment(args) => payment(common, &settings, &args),
        ServiceCommand::Forecast(args) => forecast(common, &settings, args),
        ServiceCommand::ReplayDead(args) => replay_dead(&settings, &args),
    }
}

fn order(common: &Common, settings: &Settings, args: &OrderArgs) -> Result<ExitCode, AnyError> {
    let business = business(args.common.settings.as_deref())?;
    let rides = rides(common, settings, &args.rides, &[Topic::RideEvents], "order")?;
    let guard = guard(settings)?;
    let brokers = kafka(common, args.rides.brokers.as_ref())?;
    let base = args.gateway.clone().or_else(|| args.rides.url.clone());
    let peer = |base: String| Peer {
        base,
        token: tokens(settings, "order"),
    };
    let peers = Peers {
        gateway: base.map(peer),
        forecast: args.forecast.clone().map(peer),
    };
    block_on(async {
        let stop = shutdown_signal()?;
        let mut sources = vec![rides];
        let token = tokens(settings, "order");
        sources.extend(said_by(
            "payment",
            args.payment.as_ref(),
            brokers.as_ref(),
            token,
        ));
        let place = Place {
            database: args.common.database.clone(),
            listener: TcpListener::bind(args.common.listen).await?,
            guard,
            brokers,
            stop,
        };
        let hosted =
            host::start_order(place, business.policy, sources, peers, args.rebuild).await?;
        println!("{}", hosted.url());
        Ok(hosted.ended().await?)
    })?;
    Ok(ExitCode::SUCCESS)
}

fn payment(common: &Common, settings: &Settings, args: &PaymentArgs) -> Result<ExitCode, AnyError> {
    let business = business(args.common.settings.as_deref())?;
    let guard = guard(settings)?;
    let brokers = kafka(common, args.brokers.as_ref())?;
    let token = tokens(settings, "payment");
    let order = said_by("order", args.order.as_ref(), brokers.as_ref(), token);
    let order = order.ok_or("give --order or --brokers")?;
    block_on(async {
        let stop = shutdown_signal()?;
        let patience = Duration::from_millis(business.payment.timeout_ms);
        let provider = Arc::new(HttpProvider::new(&args.provider, patience)?);
        let place = Place {
            database: args.common.database.clone(),
            listener: TcpListener::bind(args.common.listen).await?,
            guard,
            brokers,
            stop,
        };
        let (hosted, _) =
            host::start_payment(place, business.payment, provider, vec![order]).await?;
        println!("{}", hosted.url());
        Ok(hosted.ended().await?)
    })?;
    Ok(ExitCode::SUCCESS)
}

fn forecast(
    common: &Common,
    settings: &Settings,
    args: ForecastArgs,
) -> Result<ExitCode, AnyError> {
    if !args.evaluate.is_empty() {
        let files: Vec<&std::path::Path> = args.evaluate.iter().map(PathBuf::as_path).collect();
        let resolution = h3o::Resolution::try_from(args.resolution)?;
        if !args.choose.is_empty() {
            let on: Vec<&std::path::Path> = args.choose.iter().map(PathBuf::as_path).collect();
            let (tried, learned) = choose(&on, resolution)?;
            for candidate in &tried {
                println!("{:.4} {:?}", candidate.error, candidate.weights);
            }
            println!("variance over mean learned there, for 15, 30 and 60 minutes: {learned:.2?}");
        }
        let judged = evaluate(&files, resolution, 1)?;
        print!("{}", Table(&judged));
        return Ok(ExitCode::SUCCESS);
    }
    let database = args
        .database
        .ok_or("give --database, or --evaluate FILES")?;
    let brokers = kafka(common, args.brokers.as_ref())?;
    let from = Rides {
        url: args.url,
        data_dir: args.data_dir,
        brokers: args.brokers,
    };
    let rides = rides(
        common,
        settings,
        &from,
        &[Topic::RideEvents, Topic::PersonEvents],
        "forecast",
    )?;
    let config = ForecastConfig {
        resolution: args.resolution,
        ..ForecastConfig::default()
    };
    let service = ForecastService::new(config).ok_or("--resolution: choose 0 to 15")?;
    let guard = guard(settings)?;
    block_on(async {
        let stop = shutdown_signal()?;
        let place = Place {
            database,
            listener: TcpListener::bind(args.listen).await?,
            guard,
            brokers,
            stop,
        };
        let hosted = host::start_forecast(place, service, vec![rides]).await?;
        println!("{}", hosted.url());
        Ok(hosted.ended().await?)
    })?;
    Ok(ExitCode::SUCCESS)
}

fn replay_dead(settings: &Settings, args: &ReplayArgs) -> Result<ExitCode, AnyError> {
    let replayed: cabrank_services::consumer::Replayed = block_on(async {
        Ok(
            match (&args.url, &args.order_database, &args.payment_database) {
                (Some(url), ..) => {
                    let secret = &settings.gateway.keys.secret;
                    let token = mint(secret, Role::Ops, "replay-dead", TOKEN_FOR)?;
                    let url = format!("{}/v1/dead-letters/replay", url.trim_end_matches('/'));
                    let answer = reqwest::Client::new()
                        .post(url)
                        .bearer_auth(token)
                        .send()
                        .await?;
                    answer.error_for_status()?.json().await?
                }
                (_, Some(database), _) => {
                    host::replay_dead(database, "order", Policy::default()).await?
                }
                (.., Some(database)) => {
                    host::replay_dead(database, "payment", Policy::default()).await?
                }
                (None, None, None) => {
                    return Err("give --url, --order-database or --payment-database".into());
                }
            },
        )
    })?;
    println!("{} applied, {} left", replayed.applied, replayed.left.len());
    for (id, reason) in &replayed.left {
        println!("  {id}: {reason}");
    }
    Ok(if replayed.left.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    })
}
