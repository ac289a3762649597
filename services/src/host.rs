//! Starts a service: database, consumer, calls, and what works beside them.
//!
//! A service that fails (its database was taken over, a source is gone for good) stops as a whole and says why; it is
//! started again by whoever runs it, and goes on where it was.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use cabrank_eventlog::kafka::KafkaConfig;
use cabrank_events::Reason;
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::consumer::{Consumer, Replayed, RunError, Service};
use crate::database::{Database, OpenError};
use crate::kafka;
use crate::order::saga::Policy;
use crate::order::surge::{Factors, keep_asking};
use crate::order::{self, OrderService};
use crate::payment::provider::Provider;
use crate::payment::{self, PaymentService, ProviderGauges, Worker};
use crate::source::{Source, Token, backoff};
use crate::web::{Guard, OwnMetrics, Web};

/// How often rides to be called off are looked for.
const CANCEL_LOOK: Duration = Duration::from_millis(500);
/// Rides called off in one go.
const CANCELS_MAX: i64 = 64;

/// Why a service did not start or ended.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The database.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The consumer.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The address.
    #[error("calls cannot be answered: {0}")]
    Listen(#[from] std::io::Error),
    /// A task panicked.
    #[error("a task of the service ended: {0}")]
    Task(#[from] tokio::task::JoinError),
}

impl From<sqlx::Error> for HostError {
    fn from(why: sqlx::Error) -> HostError {
        HostError::Run(RunError::Database(why))
    }
}

/// What every service needs.
pub struct Place {
    /// A file's path, or `postgres://…`.
    pub database: String,
    /// Where calls are answered: bound by the caller, because services are told of each other before they start.
    pub listener: TcpListener,
    /// Who calls.
    pub guard: Guard,
    /// The brokers to whose topics it copies what it says, if any.
    pub brokers: Option<KafkaConfig>,
    /// Ends it.
    pub stop: CancellationToken,
}

/// A running service.
pub struct Hosted {
    /// Where it answers.
    pub address: SocketAddr,
    /// What can be seen of its consumer.
    pub consumer: Consumer,
    /// Ends with the service.
    task: JoinHandle<Result<(), HostError>>,
}

impl Hosted {
    /// Waits for its end.
    pub async fn ended(self) -> Result<(), HostError> {
        let outcome = self.task.await?;
        self.consumer.database.close().await;
        outcome
    }

    /// `http://…` of it.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

/// Runs the parts of a service until the first ends; then all end.
fn together(mut parts: Parts, stop: CancellationToken) -> JoinHandle<Result<(), HostError>> {
    tokio::spawn(async move {
        let mut outcome = Ok(());
        while let Some(ended) = parts.join_next().await {
            stop.cancel();
            let ended = ended.map_err(HostError::from).and_then(|ended| ended);
            if outcome.is_ok() {
                outcome = ended;
            }
        }
        outcome
    })
}

type Parts = JoinSet<Result<(), HostError>>;

/// Nothing but what every service shows.
fn none() -> OwnMetrics {
    Arc::new(String::new)
}

/// Answers a service's calls and applies its sources, beside the `parts` it has of its own.
fn host<S: Service + 'static>(
    place: Place,
    consumer: Consumer,
    (routes, own_metrics): (axum::Router<Web>, OwnMetrics),
    mut service: S,
    sources: Vec<Arc<dyn Source>>,
    mut parts: Parts,
) -> Result<Hosted, HostError> {
    let address = place.listener.local_addr()?;
    let (web, requests) = Web::new(consumer.clone(), service.name(), place.guard, own_metrics);
    let (listener, stop) = (place.listener, place.stop.clone());
    parts.spawn(async move { Ok(web.serve(listener, routes, stop).await?) });
    if let Some(brokers) = place.brokers {
        let (said, stop) = (consumer.clone(), place.stop.clone());
        parts.spawn(async move { Ok(kafka::relay(&said, &brokers, &stop).await?) });
    }
    let (running, stop) = (consumer.clone(), place.stop.clone());
    parts.spawn(async move { Ok(running.run(&mut service, &sources, requests, stop).await?) });
    Ok(Hosted {
        address,
        consumer,
        task: together(parts, place.stop),
    })
}

/// Somebody who is asked over HTTP.
#[derive(Clone)]
pub struct Peer {
    /// `http://…` of it.
    pub base: String,
    /// A token of role `service`.
    pub token: Token,
}

/// Whom the order service asks.
#[derive(Clone, Default)]
pub struct Peers {
    /// Calls rides off. Without it nobody's ride is called off (a log that is only read).
    pub gateway: Option<Peer>,
    /// Says where rides are dear, as far as the tariff allows. Without it nowhere.
    pub forecast: Option<Peer>,
}

/// Starts the order service.
pub async fn start_order(
    mut place: Place,
    policy: Policy,
    sources: Vec<Arc<dyn Source>>,
    peers: Peers,
    rebuild: bool,
) -> Result<Hosted, HostError> {
    let database = Database::open(&place.database, order::STEPS).await?;
    let consumer = Consumer::take(database, "order").await?;
    if rebuild {
        order::rebuild(&consumer).await?;
    }
    place.stop = place.stop.child_token();
    let factors = Factors::default();
    let service = OrderService::new(policy).with_surge(factors.as_surge());
    let mut parts = Parts::new();
    if let Some(forecast) = peers.forecast {
        let asking = keep_asking(factors, forecast, place.stop.clone());
        parts.spawn(async move {
            asking.await;
            Ok(())
        });
    }
    if let Some(gateway) = peers.gateway {
        let (consumer, news, stop) = (consumer.clone(), service.cancels(), place.stop.clone());
        parts.spawn(async move { call_off(&consumer, &gateway, &news, &stop).await });
    }
    host(
        place,
        consumer,
        (order::http::routes(), none()),
        service,
        sources,
        parts,
    )
}

/// Sends what `cancels` holds to the gateway until each is taken. Repeating one is harmless: its id comes from the ride.
async fn call_off(
    consumer: &Consumer,
    gateway: &Peer,
    news: &tokio::sync::Notify,
    stop: &CancellationToken,
) -> Result<(), HostError> {
    let http = reqwest::Client::new();
    let mut retries = backoff();
    loop {
        let mut is_trouble = false;
        for (ride, reason) in order::cancels(consumer.database.pool(), CANCELS_MAX)
            .await
            .unwrap_or_default()
        {
            let url = format!(
                "{}/v1/rides/{ride}/cancel",
                gateway.base.trim_end_matches('/')
            );
            let body = serde_json::json!({ "reason": Reason::fitted(&reason) });
            let request = http
                .post(url)
                .bearer_auth((gateway.token)())
                .json(&body)
                .timeout(Duration::from_secs(5));
            let status = request.send().await.map(|answer| answer.status().as_u16());
            match status {
                // Taken, or there is nothing to call off any more.
                Ok(200..=299 | 404 | 409 | 410) => match called_off(consumer, &ride).await {
                    Ok(()) => {}
                    Err(RunError::Database(why)) => {
                        tracing::warn!(ride, %why, "a cancel that was taken is sent again");
                        is_trouble = true;
                    }
                    Err(why) => return Err(why.into()),
                },
                other => {
                    tracing::warn!(ride, status = ?other.ok(), "the gateway has not taken a cancel: it is sent again");
                    is_trouble = true;
                }
            }
        }
        let pause = if is_trouble {
            retries.next().unwrap_or(CANCEL_LOOK)
        } else {
            retries = backoff();
            CANCEL_LOOK
        };
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = news.notified() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Forgets a cancel that the gateway has taken.
async fn called_off(consumer: &Consumer, ride: &str) -> Result<(), RunError> {
    let mut work = consumer.begin().await?;
    sqlx::query("DELETE FROM cancels WHERE ride = $1")
        .bind(ride)
        .execute(work.sql())
        .await?;
    consumer.commit(work).await?;
    Ok(())
}

/// Starts the payment service.
pub async fn start_payment(
    mut place: Place,
    config: payment::Config,
    provider: Arc<dyn Provider>,
    sources: Vec<Arc<dyn Source>>,
) -> Result<(Hosted, Arc<ProviderGauges>), HostError> {
    let database = Database::open(&place.database, payment::STEPS).await?;
    let consumer = Consumer::take(database, "payment").await?;
    place.stop = place.stop.child_token();
    let service = PaymentService::default();
    let worker = Worker::new(consumer.clone(), provider, config, service.due());
    let gauges = worker.gauges();
    let shown = Arc::clone(&gauges);
    let own_metrics: OwnMetrics = Arc::new(move || shown.to_prometheus());
    let routes = (payment::http::routes(), own_metrics);
    let mut parts = Parts::new();
    let stop = place.stop.clone();
    parts.spawn(async move { Ok(worker.run(stop).await?) });
    Ok((
        host(place, consumer, routes, service, sources, parts)?,
        gauges,
    ))
}

/// Applies the dead letters of a stopped service's database again.
pub async fn replay_dead(
    database: &str,
    service: &str,
    policy: Policy,
) -> Result<Replayed, HostError> {
    async fn of<S: Service>(
        url: &str,
        steps: &[crate::database::Step],
        mut service: S,
    ) -> Result<Replayed, HostError> {
        let database = Database::open(url, steps).await?;
        let consumer = Consumer::take(database, service.name()).await?;
        let replayed = consumer.replay_dead(&mut service).await?;
        consumer.database.close().await;
        Ok(replayed)
    }
    match service {
        "payment" => of(database, payment::STEPS, PaymentService::default()).await,
        _ => of(database, order::STEPS, OrderService::new(policy)).await,
    }
}

/// Starts the forecast service.
pub async fn start_forecast(
    mut place: Place,
    service: crate::forecast::ForecastService,
    sources: Vec<Arc<dyn Source>>,
) -> Result<Hosted, HostError> {
    let database = Database::open(&place.database, crate::forecast::STEPS).await?;
    let consumer = Consumer::take(database, "forecast").await?;
    place.stop = place.stop.child_token();
    host(
        place,
        consumer,
        (crate::forecast::routes(), none()),
        service,
        sources,
        Parts::new(),
    )
}
