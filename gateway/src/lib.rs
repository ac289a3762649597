//! The edge: sockets of drivers and riders, HTTP calls, the event stream, limits, health and metrics.
//!
//! A gateway decides nothing. It proves who is calling, checks pings, hands commands to the node through
//! [`Dispatch`], waits for committed outcomes, and tells people what was committed. The contract with phones and
//! services is `docs/protocol.md`.
//!
//! - [`Gateway::bind`] opens the port, [`Gateway::run`] serves until it is told to stop, then drains.
//! - `socket` is the life of any WebSocket; `driver` and `rider` say what messages mean; `news` what events concern whom.
//! - `upgrade` takes a socket out of HTTP, `threads` moves its bytes, `frames` reads and writes them as RFC 6455 says; `ping_json` reads most.
//! - `ingest` is the way of every ping, whoever brings it.
//! - `http`, `stream` are the calls; `access` who may call what; `query` what is asked; `problem` what errors say; `openapi` describes them all.
//! - `map` what the live map draws, `pulse` what happened in the last minute, `desk` what an operator sees and does, `dispatch` how rounds choose,
//!   `page` what a browser is served.
//! - `forecasts` how many rides are expected where, `hints` which idle drivers are told of it.
//! - `zones` where rides may begin, [`zone_file`] what a file of them holds; `quote` when a car would be there.
//! - [`start_health`]: health and metrics of a process without a gateway; [`start_logging`]: what it logs, changed while it runs.
//! - `token` who is calling, `keys` and `jwks` which keys are believed (`fetch` asks for them), `revoke` who was shut out, `files` what is read again.
//! - `tls` what is between a connection and us, `addresses` how much may come from one.
//! - `people`, `outcomes`, `admission`, `rate`, `counters` keep who is connected, who waits, how many new rides may come, who calls too often,
//!   what was counted.
//!
//! Not here: who gets a ride (`engine`), what is durable (`matcher`, `eventlog`).

#![forbid(unsafe_code)]

mod access;
mod addresses;
mod admission;
mod config;
mod counters;
mod desk;
mod destination;
mod dispatch;
mod driver;
mod edge;
mod fetch;
mod files;
mod film;
mod first_offer;
mod forecasts;
mod frames;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod health;
mod hints;
mod http;
mod ingest;
mod jwks;
mod keys;
mod listener;
mod logging;
mod map;
mod marks;
mod meters;
mod news;
mod nodes;
mod openapi;
mod outcomes;
mod page;
mod people;
pub mod ping_json;
mod problem;
mod pulse;
mod query;
mod quote;
mod rate;
mod revoke;
mod rider;
mod shutout;
mod socket;
mod steps;
mod stream;
mod threads;
mod tls;
pub mod token;
mod upgrade;
mod waiting;
pub mod watch;
pub mod zone_file;
mod zones;

use std::future::IntoFuture;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cabrank_matcher::api::Dispatch;
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;

pub use access::Endpoint;
pub use cabrank_engine::ingest::IngestConfig;
pub use config::{BadGatewayConfig, GatewayConfig, Limits, MapConfig, Sockets, Timing};
pub use counters::{IngestCounters, IngestSnapshot};
pub use forecasts::ForecastsConfig;
pub use health::{Health, keep_beating, start_health};
pub use hints::HintsConfig;
pub use ingest::PartnerPings;
pub use logging::{BadLog, start_logging};
pub use openapi::openapi;
pub use stream::{cursor_from_text, cursor_to_text};
pub use tls::{BadTls, TlsConfig};
pub use zones::{BadZoneFiles, ZonesConfig, read_zones};

use edge::Edge;
use fetch::Fetcher;
use listener::BoundedListener;
use threads::Threads;
use zones::ZoneBook;

/// Why a gateway could not serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Nothing was opened.
    #[error(transparent)]
    Config(#[from] BadGatewayConfig),
    /// The address is taken or not ours.
    #[error("cannot listen on {listen}: {source}; choose another address with gateway.listen")]
    Bind {
        /// The address.
        listen: SocketAddr,
        /// What the system says.
        source: std::io::Error,
    },
    /// The threads for the sockets.
    #[error("the threads for the sockets could not be started: {0}")]
    Threads(std::io::Error),
    /// The listener failed while serving.
    #[error("the listener failed: {0}")]
    Listener(#[from] std::io::Error),
}

/// How a drain went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Served {
    /// Sockets and calls that had to be cut because the time to drain was over.
    pub cut_off: usize,
}

/// Ends the sockets' threads however serving ends: a socket keeps the edge alive, which keeps the threads.
struct StopThreads(Arc<Edge>);

impl Drop for StopThreads {
    fn drop(&mut self) {
        self.0.threads.stop();
    }
}

/// A gateway with its port open.
pub struct Gateway {
    edge: Arc<Edge>,
    listener: BoundedListener,
    address: SocketAddr,
    /// The way to the provider of keys, if there is one.
    fetcher: Option<Fetcher>,
    /// The way to the forecast service, if there is one.
    forecaster: Option<Fetcher>,
}

impl Gateway {
    /// Checks the configuration and opens the port. Calls are answered once [`Gateway::run`] runs.
    pub async fn bind(
        config: GatewayConfig,
        dispatch: Arc<dyn Dispatch>,
    ) -> Result<Self, ServeError> {
        config.check()?;
        meters::recorder();
        let zones = ZoneBook::open(&config.zones)?;
        let listen = config.listen;
        let (threads, wait_us) = (config.sockets.threads(), config.sockets.wait_us);
        let (connections_max, _) = config.limits.connections();
        let wait = Duration::from_micros(wait_us);
        tracing::info!(connections_max, threads, wait_us, "room for sockets");
        let patience = Duration::from_millis(config.timing.wedged_after_ms);
        let threads = Threads::start(threads, wait, &Handle::current(), patience)
            .map_err(ServeError::Threads)?;
        let edge = Edge::new(config, dispatch, threads, zones)?;
        let keys = &edge.config.keys;
        let unusable = |key: &str, value: &str, why: &dyn std::fmt::Display| BadGatewayConfig {
            key: key.into(),
            value: value.into(),
            remedy: why.to_string(),
        };
        if !keys.jwks_file.is_empty() {
            jwks::read_file(Path::new(&keys.jwks_file), &edge.verifier)
                .map_err(|why| unusable("keys.jwks_file", &keys.jwks_file, &why))?;
        }
        let fetcher = match keys.jwks_url.as_str() {
            "" => None,
            url => Some(
                Fetcher::new(url, &keys.jwks_ca_file)
                    .map_err(|why| unusable("keys.jwks_url", url, &why))?,
            ),
        };
        let forecast_url = &edge.config.forecasts.url;
        let forecaster = forecasts::fetcher(&edge.config.forecasts)
            .map_err(|why| unusable("forecasts.url", forecast_url, &why))?;
        let bind = |source| ServeError::Bind { listen, source };
        let listener = tokio::net::TcpListener::bind(listen).await.map_err(bind)?;
        let address = listener.local_addr().map_err(bind)?;
        let limits = &edge.config.limits;
        let idle = Duration::from_millis(edge.config.timing.http_idle_ms);
        let (addresses, tls) = (edge.addresses.clone(), edge.tls.clone());
        let most = limits.connections().1;
        let body_max = limits.frame_bytes_max;
        let listener = BoundedListener::new(listener, most, addresses, tls, idle, body_max);
        Ok(Self {
            edge,
            listener,
            address,
            fetcher,
            forecaster,
        })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// What became of the pings; stays readable while and after it runs.
    pub fn counters(&self) -> Arc<IngestCounters> {
        self.edge.counters.clone()
    }

    /// The door for pings that partners publish without a socket: they are checked, counted and placed like a phone's.
    pub fn partner_pings(&self) -> PartnerPings {
        PartnerPings {
            edge: self.edge.clone(),
        }
    }

    /// Serves until `shutdown` is cancelled, then drains: readiness falls and sockets hear `move`; after `move_ms` they
    /// are closed with 1012 and the port closes; calls under way are answered. Returns within `drain_ms`.
    pub async fn run(self, shutdown: CancellationToken) -> Result<Served, ServeError> {
        let Self {
            edge,
            listener,
            fetcher,
            forecaster,
            ..
        } = self;
        let _stop = StopThreads(edge.clone());
        let mut beside = JoinSet::new();
        if let Some(fetcher) = fetcher {
            let keys = edge.config.keys.clone();
            beside.spawn(jwks::keep_fresh(fetcher, keys, edge.verifier.clone()));
        }
        if let Some(forecaster) = forecaster {
            beside.spawn(forecasts::keep_asking(edge.clone(), forecaster));
            if edge.config.hints.head_to {
                beside.spawn(hints::keep_advising(edge.clone()));
            }
        }
        beside.spawn(files::keep_read(edge.clone()));
        beside.spawn(zones::watch(edge.clone(), edge.closing.clone()));
        let router =
            http::router(edge.clone()).into_make_service_with_connect_info::<listener::Conn>();
        let stop = edge.closing.clone();
        let serving = axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned());
        let mut serving = tokio::spawn(serving.into_future());
        tokio::select! {
            () = shutdown.cancelled() => {}
            // It ends by itself only when it failed.
            failed = &mut serving => {
                failed.map_err(std::io::Error::other)??;
            }
        }
        let timing = &edge.config.timing;
        let deadline = Instant::now() + Duration::from_millis(timing.drain_ms);
        edge.draining.cancel();
        edge.threads.wake_all();
        sleep(Duration::from_millis(timing.move_ms)).await;
        edge.closing.cancel();
        edge.threads.wake_all();
        let all = u32::try_from(edge.sockets_max).unwrap_or(u32::MAX);
        let sockets_gone = timeout_at(deadline, edge.sockets.acquire_many(all))
            .await
            .is_ok();
        let sockets_left = edge.sockets_max - edge.sockets.available_permits();
        let calls_gone = timeout_at(deadline, &mut serving).await.is_ok();
        if !calls_gone {
            serving.abort();
        }
        edge.threads.stop();
        // They are told to end, and nothing they do blocks.
        let ending = edge.clone();
        let ended = tokio::task::spawn_blocking(move || ending.threads.join());
        ended.await.map_err(std::io::Error::other)?;
        let cut_off = if sockets_gone { 0 } else { sockets_left } + usize::from(!calls_gone);
        Ok(Served { cut_off })
    }
}

/// Binds and runs; see [`Gateway`].
pub async fn serve(
    config: GatewayConfig,
    dispatch: Arc<dyn Dispatch>,
    shutdown: CancellationToken,
) -> Result<Served, ServeError> {
    Gateway::bind(config, dispatch).await?.run(shutdown).await
}
