//! The services beside a run (`demo`): order, payment, forecast and a provider of their own, in this process.
//!
//! They talk to the city and to each other as everywhere: by its event stream, its calls and their feeds; over Kafka by
//! topics.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cabrank_eventlog::kafka::KafkaConfig;
use cabrank_eventlog::{EventLog, Topic};
use cabrank_events::business::DemandForecast;
use cabrank_services::audit::{ServicesAudit, ServicesReport};
use cabrank_services::consumer::Consumer;
use cabrank_services::database::Database;
use cabrank_services::forecast::{self, Config as ForecastConfig, ForecastService};
use cabrank_services::host::{self, Hosted, Peer, Peers, Place};
use cabrank_services::order::fare::Tariff;
use cabrank_services::order::saga_counts;
use cabrank_services::payment::open_calls;
use cabrank_services::payment::provider::HttpProvider;
use cabrank_services::provider_sim::{Faults, Movement, ProviderSim, read_ledger};
use cabrank_services::source::{LogSource, Source, StreamSource};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::service::{Business, guard, said_by, tokens};
use crate::settings::Settings;
use crate::{AnyError, store};

/// How long money may take to come to rest when the rides have ended, and how often that is looked at.
const SETTLE_WITHIN: Duration = Duration::from_secs(30);
const SETTLE_LOOK: Duration = Duration::from_millis(50);
/// Share of the demo's riders whose means of payment is declined.
const DECLINED: f64 = 0.01;
/// Cells of the forecast that a summary shows.
const CELLS_SHOWN: usize = 5;

/// Files of a run's services in its data directory.
pub struct Files {
    /// The order service's database.
    pub order: PathBuf,
    /// The payment service's.
    pub payment: PathBuf,
    /// The forecast service's.
    pub forecast: PathBuf,
    /// The provider's ledger.
    pub ledger: PathBuf,
}

impl Files {
    /// Those of the run in `dir`.
    pub fn of(dir: &Path) -> Files {
        Files::in_dir(&dir.join("services"))
    }

    /// Those that lie in `dir` itself.
    pub fn in_dir(dir: &Path) -> Files {
        Files {
            order: dir.join("order.db"),
            payment: dir.join("payment.db"),
            forecast: dir.join("forecast.db"),
            ledger: dir.join("ledger.jsonl"),
        }
    }
}

/// Running services.
pub struct Beside {
    order: Hosted,
    payment: Hosted,
    forecast: Hosted,
    stop: CancellationToken,
    stop_provider: CancellationToken,
}

impl Beside {
    /// Starts them for the city at `url`, with their files in `dir`; over `brokers`, if that is where the city's log is.
    /// Forecasts are answered at `forecast`, which the gateways were told of before.
    pub async fn start(
        settings: &Settings,
        url: &str,
        dir: &Path,
        brokers: Option<&KafkaConfig>,
        forecast: TcpListener,
    ) -> Result<Beside, AnyError> {
        let files = Files::of(dir);
        if let Some(dir) = files.order.parent() {
            std::fs::create_dir_all(dir)?;
        }
        let (stop, stop_provider) = (CancellationToken::new(), CancellationToken::new());
        let faults = Faults {
            decline: DECLINED,
            ..Faults::default()
        };
        let sim = ProviderSim::new(faults, 1, Some(files.ledger))?;
        let provider = TcpListener::bind("127.0.0.1:0").await?;
        let provider_url = format!("http://{}", provider.local_addr()?);
        tokio::spawn(sim.serve(provider, stop_provider.clone()));
        let order = TcpListener::bind("127.0.0.1:0").await?;
        let payment = TcpListener::bind("127.0.0.1:0").await?;
        let said_by = |of, listener: &TcpListener, who| -> Result<Arc<dyn Source>, AnyError> {
            let url = match brokers {
                Some(_) => None,
                None => Some(format!("http://{}", listener.local_addr()?)),
            };
            let source = said_by(of, url.as_ref(), brokers, tokens(settings, who));
            Ok(source.ok_or("a service is asked or read")?)
        };
        if let Some(brokers) = brokers {
            cabrank_services::kafka::create_topics(brokers).await?;
        }
        let rides = |who, topics: &[Topic]| -> Result<Arc<dyn Source>, AnyError> {
            let Some(brokers) = brokers else {
                return Ok(Arc::new(StreamSource::new(url, tokens(settings, who))));
            };
            let log = Arc::new(store::kafka(brokers.clone())?);
            Ok(Arc::new(LogSource::new(log, topics, false)))
        };
        let for_order = vec![
            rides("order", &[Topic::RideEvents])?,
            said_by("payment", &payment, "order")?,
        ];
        let for_payment = vec![said_by("order", &order, "payment")?];
        let business = Business::default();
        let at = |database: &Path, listener| -> Result<Place, AnyError> {
            Ok(Place {
                database: database.display().to_string(),
                listener,
                guard: guard(settings)?,
                brokers: brokers.cloned(),
                stop: stop.clone(),
            })
        };
        let peers = Peers {
            gateway: Some(Peer {
                base: url.to_owned(),
                token: tokens(settings, "order"),
            }),
            forecast: None,
        };
        let order = host::start_order(
            at(&files.order, order)?,
            business.policy,
            for_order,
            peers,
            false,
        )
        .await?;
        let provider = HttpProvider::new(
            &provider_url,
            Duration::from_millis(business.payment.timeout_ms),
        )?;
        let payment = at(&files.payment, payment)?;
        let (payment, _) =
            host::start_payment(payment, business.payment, Arc::new(provider), for_payment).await?;
        let rides = rides("forecast", &[Topic::RideEvents, Topic::PersonEvents])?;
        let service =
            ForecastService::new(ForecastConfig::default()).ok_or("a resolution that exists")?;
        let forecast =
            host::start_forecast(at(&files.forecast, forecast)?, service, vec![rides]).await?;
        println!(
            "orders: {}/v1/orders, forecasts: {}/v1/forecasts",
            order.url(),
            forecast.url()
        );
        Ok(Beside {
            order,
            payment,
            forecast,
            stop,
            stop_provider,
        })
    }

    /// Waits until no money is under way any more, and stops them. Prints how far behind each was at worst.
    pub async fn finish(self) -> Result<(), AnyError> {
        let until = tokio::time::Instant::now() + SETTLE_WITHIN;
        loop {
            let sagas = saga_counts(self.order.consumer.database.pool()).await?;
            let open: i64 = ["open", "cancelling", "capturing", "voiding"]
                .iter()
                .filter_map(|s| sagas.get(*s))
                .sum();
            if open == 0 && open_calls(&self.payment.consumer.database).await? == 0 {
                break;
            }
            if tokio::time::Instant::now() >= until {
                println!(
                    "services: {open} rides' money was still under way after {} s",
                    SETTLE_WITHIN.as_secs()
                );
                break;
            }
            tokio::time::sleep(SETTLE_LOOK).await;
        }
        for (name, consumer) in [
            ("order", &self.order),
            ("payment", &self.payment),
            ("forecast", &self.forecast),
        ] {
            println!("{}", lag_line(name, &consumer.consumer));
        }
        print_forecasts(&forecast::newest(&self.forecast.consumer.database).await?)?;
        self.stop.cancel();
        self.order.ended().await?;
        self.payment.ended().await?;
        self.forecast.ended().await?;
        self.stop_provider.cancel();
        Ok(())
    }
}

fn lag_line(name: &str, consumer: &Consumer) -> String {
    let gauges = &consumer.gauges;
    // Relaxed: numbers to look at.
    format!(
        "service {name}: {} events applied in {:.1} s of work, at most {} ms after they happened",
        gauges.applied.load(Ordering::Relaxed),
        gauges.busy_us.load(Ordering::Relaxed) as f64 / 1e6,
        gauges.lag_max_ms.load(Ordering::Relaxed)
    )
}

fn print_forecasts(forecasts: &[String]) -> Result<(), AnyError> {
    let mut forecasts = forecasts
        .iter()
        .map(|body| serde_json::from_str::<DemandForecast>(body))
        .collect::<Result<Vec<_>, _>>()?;
    let next = |forecast: &DemandForecast| {
        forecast
            .predicted_demand
            .first()
            .map_or(0.0, |horizon| horizon.expected)
    };
    forecasts.sort_by(|a, b| next(b).total_cmp(&next(a)));
    println!(
        "forecast: {} cells; the busiest, requests of the next 15, 30, 60 min:",
        forecasts.len()
    );
    for forecast in forecasts.iter().take(CELLS_SHOWN) {
        let horizons = forecast.predicted_demand.iter();
        let shown: Vec<String> = horizons
            .map(|h| format!("{:.1} ({} to {})", h.expected, h.low, h.high))
            .collect();
        println!(
            "  {}: {}; {} free drivers",
            forecast.region_id,
            shown.join(", "),
            forecast.supply
        );
    }
    Ok(())
}

/// Audits a run's services against its ride log.
pub async fn audit(
    log: &dyn EventLog,
    files: &Files,
    tariff: &Tariff,
    is_settled: bool,
) -> Result<ServicesReport, AnyError> {
    let order = Database::open_for_reading(&files.order.display().to_string()).await?;
    let payment = Database::open_for_reading(&files.payment.display().to_string()).await?;
    let ledger: Vec<Movement> = read_ledger(&files.ledger)?;
    let mut audit = ServicesAudit::default();
    store::read_all(
        log,
        Topic::RideEvents,
        |_| None,
        |_, _, json| audit.event(json),
    )?;
    let report = audit
        .finish(&order, &payment, &ledger, tariff, is_settled)
        .await?;
    order.close().await;
    payment.close().await;
    Ok(report)
}
