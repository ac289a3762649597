//! Is the process well, does it serve, what does it count? Of a process that has no other HTTP: a matcher node.
//!
//! Answered on a thread with a runtime of its own, so that whatever is wedged, somebody says so.

use std::future::IntoFuture;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use std::{io, thread};

use axum::Router;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use cabrank_matcher::heart::{Heart, Wedged};
use tokio_util::sync::CancellationToken;

use crate::access::{Endpoint, admitted};
use crate::fetch::Fetcher;
use crate::jwks;
use crate::keys::KeysConfig;
use crate::logging;
use crate::problem::Problem;
use crate::token::{TokenVerifier, Verified};

/// Longest body of a call.
const BODY_BYTES_MAX: usize = 4_096;
/// How often a runtime's heart beats.
const BEAT: Duration = Duration::from_millis(250);

/// What is told of the process.
#[derive(Clone)]
pub struct Health {
    /// Does it serve?
    pub ready: Arc<dyn Fn() -> bool + Send + Sync>,
    /// A loop of it that does not go round.
    pub wedged: Arc<dyn Fn() -> Option<Wedged> + Send + Sync>,
    /// Whose tokens may change what it logs.
    pub keys: KeysConfig,
}

/// Beats `heart` as long as the runtime it is spawned on goes round.
pub async fn keep_beating(heart: Heart) {
    loop {
        heart.beat();
        tokio::time::sleep(BEAT).await;
    }
}

/// Answers `/healthz`, `/readyz`, `/metrics` and `/v1/log-level` until `stop` is cancelled, on a thread of its own.
///
/// # Errors
/// When the thread cannot be started.
pub fn start_health(
    listener: std::net::TcpListener,
    health: Health,
    stop: CancellationToken,
) -> io::Result<JoinHandle<io::Result<()>>> {
    crate::meters::recorder();
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    // A node needs no keys for its work, so bad ones keep nobody from starting.
    let door = Door::open(&health.keys, address).inspect_err(
        |why| tracing::warn!(%why, "what this process logs cannot be changed by a call"),
    );
    let door = Arc::new(door.ok());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let answering = async move {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        axum::serve(listener, router(health, door))
            .with_graceful_shutdown(stop.cancelled_owned())
            .into_future()
            .await
    };
    let named = thread::Builder::new().name("cabrank-health".into());
    named.spawn(move || runtime.block_on(answering))
}

/// Who may change something here.
struct Door {
    verifier: TokenVerifier,
    /// Operators call seldom, so their provider's keys are fetched when one does, and not before.
    fetcher: Option<Fetcher>,
    retry: Duration,
    tried: tokio::sync::Mutex<Option<tokio::time::Instant>>,
}

impl Door {
    /// What is wrong with the keys is said, not what they are.
    fn open(keys: &KeysConfig, address: SocketAddr) -> Result<Door, String> {
        keys.check_listen(address).map_err(|why| why.to_string())?;
        let verifier = TokenVerifier::new(keys).map_err(|why| why.to_string())?;
        if !keys.jwks_file.is_empty() {
            jwks::read_file(keys.jwks_file.as_ref(), &verifier).map_err(|why| why.to_string())?;
        }
        let fetcher = match keys.jwks_url.as_str() {
            "" => None,
            url => {
                let fetcher = Fetcher::new(url, &keys.jwks_ca_file);
                Some(fetcher.map_err(|why| why.to_string())?)
            }
        };
        Ok(Door {
            verifier,
            fetcher,
            retry: Duration::from_secs(keys.jwks_retry_s),
            tried: tokio::sync::Mutex::new(None),
        })
    }

    async fn admit(&self, headers: &HeaderMap) -> Result<Verified, Problem> {
        if let Some(fetcher) = &self.fetcher {
            let mut tried = self.tried.lock().await;
            if tried.is_none_or(|at| at.elapsed() >= self.retry) {
                *tried = Some(tokio::time::Instant::now());
                if let Err(why) = jwks::fetch_set(fetcher, &self.verifier).await {
                    tracing::warn!(%why, "the provider's keys could not be fetched");
                }
            }
        }
        admitted(&self.verifier, Endpoint::LogLevel, headers)
    }
}

/// None: nobody.
type Doors = State<Arc<Option<Door>>>;

async fn admit(door: &Option<Door>, headers: &HeaderMap) -> Result<Verified, Problem> {
    let Some(door) = door else {
        let detail = "the keys in this process's configuration are not usable: its log says why";
        return Err(Problem::new(
            503,
            "keys_not_here",
            "Tokens cannot be checked",
            detail,
        ));
    };
    door.admit(headers).await
}

fn router(health: Health, door: Arc<Option<Door>>) -> Router {
    let Health { ready, wedged, .. } = health;
    let healthz = async move || match wedged() {
        None => (StatusCode::OK, "alive\n".to_owned()),
        Some(wedged) => (StatusCode::SERVICE_UNAVAILABLE, format!("{wedged}\n")),
    };
    let readyz = async move || {
        if ready() {
            (StatusCode::OK, "ready\n")
        } else {
            (
                StatusCode::SERVICE_UNAVAILABLE,
                "not ready: it has no shards yet, may not answer for them, or drains\n",
            )
        }
    };
    let metrics = async || {
        let content_type = [(header::CONTENT_TYPE, "text/plain; version=0.0.4")];
        (content_type, crate::meters::render()).into_response()
    };
    Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/v1/log-level", get(show).put(change))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(door)
}

async fn show(State(door): Doors, headers: HeaderMap) -> Result<Response, Problem> {
    admit(&door, &headers).await?;
    logging::show()
}

async fn change(
    State(door): Doors,
    headers: HeaderMap,
    bytes: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let who = admit(&door, &headers).await?;
    logging::change(&who.caller, bytes, BODY_BYTES_MAX)
}
