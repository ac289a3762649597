//! One process that is a whole city: log, node and gateway, started and stopped in order.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cabrank_eventlog::{EmbeddedLog, Options, Retention};
use cabrank_gateway::Gateway;
use cabrank_matcher::api::Dispatch;
use cabrank_matcher::clock::DomainClock;
use cabrank_matcher::{Node, Parts, Stopped};
use cabrank_ring::Ring;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::commands::keep_measuring;
use crate::settings::Settings;

/// Why a server did not start or did not end well.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The store.
    #[error(transparent)]
    Open(#[from] cabrank_eventlog::OpenError),
    /// Ownership of the store.
    #[error(transparent)]
    Own(#[from] cabrank_eventlog::OwnError),
    /// The gateway.
    #[error(transparent)]
    Serve(#[from] cabrank_gateway::ServeError),
    /// The node stopped by itself.
    #[error("the node stopped: {0}")]
    Node(#[from] cabrank_matcher::Failure),
    /// The directory cannot be made.
    #[error("the data directory {dir} cannot be made: {source}")]
    Dir {
        /// Which.
        dir: String,
        /// Why.
        source: std::io::Error,
    },
    /// The node ended without a word.
    #[error("the node ended before it was ready")]
    Gone,
    /// A thread of the server panicked.
    #[error("the gateway's task ended: {0}")]
    Task(#[from] tokio::task::JoinError),
}

/// How often a starting server looks whether its node has read everything back.
const READY_LOOK: Duration = Duration::from_millis(2);

/// How long a starting server waits for a store that another process still holds, and how often it looks.
const LOCK_PATIENCE: Duration = Duration::from_secs(3);
const LOCK_LOOK: Duration = Duration::from_millis(50);

/// A running server.
pub struct Server {
    address: SocketAddr,
    node: Node,
    measuring: JoinHandle<()>,
    gateway: JoinHandle<Result<cabrank_gateway::Served, cabrank_gateway::ServeError>>,
    stop: CancellationToken,
    failed: CancellationToken,
}

/// The log's options as configured.
pub fn log_options(settings: &Settings, clock: &DomainClock) -> Options {
    let store = &settings.store;
    let clock = clock.clone();
    Options {
        shards: store.shards,
        queue_max: store.queue_max,
        retention: Retention {
            records: store.retention_records,
            bytes: store.retention_bytes,
            age_ms: store.retention_age_ms,
        },
        cache_bytes: store.cache_bytes,
        file_max_bytes: store.file_max_bytes,
        clock: Arc::new(move || clock.now().0),
        ..Options::default()
    }
}

/// Opens the store. A process that has just been killed may hold it for another moment: a short patience spares whoever
/// restarts a server at once; one that is really in use is named after it.
async fn open_when_free(
    dir: &Path,
    options: impl Fn() -> Options,
) -> Result<EmbeddedLog, cabrank_eventlog::OpenError> {
    let patience = tokio::time::Instant::now() + LOCK_PATIENCE;
    loop {
        match EmbeddedLog::open(dir, options()) {
            Err(cabrank_eventlog::OpenError::Locked { .. })
                if tokio::time::Instant::now() < patience =>
            {
                tokio::time::sleep(LOCK_LOOK).await;
            }
            opened => return opened,
        }
    }
}

impl Server {
    /// Opens the store, reads everything back and opens the port, in this order.
    pub async fn start(settings: &Settings, clock: DomainClock) -> Result<Server, ServerError> {
        let dir: &Path = &settings.store.data_dir;
        std::fs::create_dir_all(dir).map_err(|source| ServerError::Dir {
            dir: dir.display().to_string(),
            source,
        })?;
        let log = open_when_free(dir, || log_options(settings, &clock)).await?;
        let owner = Box::new(log.own("cabrank")?);
        let ring = Ring::new(settings.store.shards).expect("the number of shards was checked");
        let failed = CancellationToken::new();
        let on_stop = failed.clone();
        let node = Node::start(
            Parts {
                log: Arc::new(log),
                owner,
                ring: Arc::new(ring),
                clock,
                config: settings.node.clone(),
                engine: settings.engine.clone(),
            },
            move |_: &Stopped| on_stop.cancel(),
        );
        // Nobody may connect before everything is read back: a phone that resumes would be told its ride is over.
        while !node.is_ready() && !failed.is_cancelled() {
            tokio::time::sleep(READY_LOOK).await;
        }
        if failed.is_cancelled() {
            tokio::task::spawn_blocking(move || node.stop()).await??;
            return Err(ServerError::Gone);
        }
        let gateway = match Gateway::bind(settings.gateway.clone(), Arc::new(node.clone())).await {
            Ok(gateway) => gateway,
            Err(why) => {
                let stopping = node.clone();
                tokio::task::spawn_blocking(move || stopping.stop()).await??;
                return Err(why.into());
            }
        };
        let address = gateway.local_addr();
        let stop = CancellationToken::new();
        let gateway = tokio::spawn(gateway.run(stop.clone()));
        info!(%address, data_dir = %dir.display(), "serving");
        Ok(Server {
            address,
            measuring: tokio::spawn(keep_measuring(node.clone())),
            node,
            gateway,
            stop,
            failed,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Resolves when the node has stopped by itself.
    pub fn failed(&self) -> CancellationToken {
        self.failed.clone()
    }

    /// Drains: readiness falls, clients are told to move, what was submitted is committed, the store is closed.
    pub async fn stop(self) -> Result<(), ServerError> {
        self.measuring.abort();
        self.node.drain();
        self.stop.cancel();
        let served = self.gateway.await??;
        if served.cut_off > 0 {
            info!(
                cut_off = served.cut_off,
                "some clients did not leave in time and were cut off"
            );
        }
        let node = self.node;
        tokio::task::spawn_blocking(move || node.stop()).await??;
        info!("stopped");
        Ok(())
    }
}
