//! What every service answers over HTTP: its feed, its health, its metrics, its dead letters.
//!
//! Who calls is decided by the [`Guard`] it is given; this crate knows no keys. Each answer says how far behind the
//! service is: `cabrank-lag-ms` and `cabrank-behind` (see [`Gauges`](crate::gauges::Gauges)).

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Query, Request as HttpRequest, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use serde_json::value::RawValue;
use sqlx::Row;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::consumer::{Consumer, DEAD_LETTERS, Request, wall};
use crate::source::{BATCH_MAX, FeedPage};

/// Calls answered at once; more are refused with 503.
pub const CALLS_MAX: usize = 256;
/// Longest wait of a feed for news.
const FEED_WAIT_MAX_MS: u64 = 10_000;
/// Most dead letters one answer shows.
const DEAD_SHOWN_MAX: i64 = 1_000;

/// Who is calling, proven.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// A rider, by id.
    Rider(String),
    /// A driver, by id.
    Driver(String),
    /// A system.
    Service,
    /// A person at the desk.
    Ops,
}

/// Tells who a token belongs to; `None`: nobody.
pub type Guard = Arc<dyn Fn(&str) -> Option<Caller> + Send + Sync>;

/// What a service shows of its own at `/metrics`, in the words of Prometheus.
pub type OwnMetrics = Arc<dyn Fn() -> String + Send + Sync>;

/// What the calls of a service share.
#[derive(Clone)]
pub struct Web {
    /// The consumer whose service it is.
    pub consumer: Consumer,
    /// Its name.
    pub service: &'static str,
    guard: Guard,
    own_metrics: OwnMetrics,
    requests: mpsc::Sender<Request>,
    calls: Arc<Semaphore>,
}

/// Why a call was refused.
#[derive(Debug)]
pub enum Refusal {
    /// 400 with what is wrong and what to do.
    Bad(String),
    /// 401.
    Unknown,
    /// 403.
    Forbidden,
    /// 404.
    NotFound,
    /// 410: what is asked for is not kept any more.
    Gone,
    /// 503: try again.
    Busy,
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let (status, detail) = match self {
            Refusal::Bad(detail) => (StatusCode::BAD_REQUEST, detail),
            Refusal::Unknown => (
                StatusCode::UNAUTHORIZED,
                "send a valid token as Authorization: Bearer".to_owned(),
            ),
            Refusal::Forbidden => (
                StatusCode::FORBIDDEN,
                "this token's role may not".to_owned(),
            ),
            Refusal::NotFound => (StatusCode::NOT_FOUND, "nothing of that name".to_owned()),
            Refusal::Gone => (StatusCode::GONE, "older than what is kept".to_owned()),
            Refusal::Busy => (
                StatusCode::SERVICE_UNAVAILABLE,
                "busy: repeat the call later".to_owned(),
            ),
        };
        let body = json!({ "type": "about:blank", "title": status.canonical_reason(), "status": status.as_u16(), "detail": detail });
        let mut response = (status, Json(body)).into_response();
        let kind = HeaderValue::from_static("application/problem+json");
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        if status == StatusCode::SERVICE_UNAVAILABLE {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

impl From<sqlx::Error> for Refusal {
    fn from(why: sqlx::Error) -> Refusal {
        tracing::warn!(%why, "a call could not be answered");
        Refusal::Busy
    }
}

impl Web {
    /// The calls of `consumer`'s service; the receiver belongs to its run loop.
    pub fn new(
        consumer: Consumer,
        service: &'static str,
        guard: Guard,
        own_metrics: OwnMetrics,
    ) -> (Web, mpsc::Receiver<Request>) {
        let (requests, taken) = mpsc::channel(8);
        let web = Web {
            consumer,
            service,
            guard,
            own_metrics,
            requests,
            calls: Arc::new(Semaphore::new(CALLS_MAX)),
        };
        (web, taken)
    }

    /// What the service shows of its own, for Prometheus.
    pub fn own_metrics(&self) -> String {
        (self.own_metrics)()
    }

    /// Who calls.
    pub fn caller(&self, headers: &HeaderMap) -> Result<Caller, Refusal> {
        let token = headers
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok());
        let token = token
            .and_then(|value| value.strip_prefix("Bearer "))
            .ok_or(Refusal::Unknown)?;
        (self.guard)(token).ok_or(Refusal::Unknown)
    }

    /// Only systems and the desk.
    pub fn insider(&self, headers: &HeaderMap) -> Result<Caller, Refusal> {
        match self.caller(headers)? {
            caller @ (Caller::Service | Caller::Ops) => Ok(caller),
            Caller::Rider(_) | Caller::Driver(_) => Err(Refusal::Forbidden),
        }
    }

    /// Serves `routes` and what every service answers until `stop`.
    pub async fn serve(
        self,
        listener: TcpListener,
        routes: Router<Web>,
        stop: CancellationToken,
    ) -> std::io::Result<()> {
        let all = routes
            .route("/v1/feed", get(feed))
            .route("/v1/dead-letters", get(dead_letters))
            .route("/v1/dead-letters/replay", post(replay_dead))
            .route("/metrics", get(metrics))
            .route("/healthz", get(|| async { "ok\n" }))
            .route("/openapi.json", get(description))
            .layer(middleware::from_fn_with_state(self.clone(), around))
            .with_state(self);
        axum::serve(listener, all)
            .with_graceful_shutdown(async move { stop.cancelled().await })
            .await
    }
}

/// Bounds the calls, and says in each answer how far behind the service is.
async fn around(State(web): State<Web>, request: HttpRequest, next: Next) -> Response {
    let Ok(_permit) = Arc::clone(&web.calls).try_acquire_owned() else {
        return Refusal::Busy.into_response();
    };
    let mut response = next.run(request).await;
    let gauges = &web.consumer.gauges;
    let headers = response.headers_mut();
    headers.insert("cabrank-lag-ms", HeaderValue::from(gauges.lag_ms(wall())));
    headers.insert("cabrank-behind", HeaderValue::from(gauges.behind()));
    response
}

/// Which messages.
#[derive(Deserialize, JsonSchema)]
pub struct FeedAsked {
    /// From this number on; 1 is the first.
    #[serde(default = "one")]
    from: i64,
    /// At most so many, up to 512; 0: 512.
    #[serde(default)]
    max: usize,
    /// Wait so long for news if there is nothing yet, ms, up to 10,000.
    #[serde(default)]
    wait_ms: u64,
}

/// An event that was set aside.
#[derive(Serialize, JsonSchema)]
pub struct Dead {
    /// Where it came from.
    source: String,
    /// Its id.
    id: String,
    /// Why, for a person.
    reason: String,
    /// When, ms since the Unix epoch.
    set_aside_ms: i64,
}

/// The oldest of them, at most 1,000.
#[derive(Serialize, JsonSchema)]
pub struct DeadLetters {
    dead_letters: Vec<Dead>,
}

fn one() -> i64 {
    1
}

/// `GET /v1/feed`: the outbox from a number on, in order.
async fn feed(
    State(web): State<Web>,
    headers: HeaderMap,
    Query(asked): Query<FeedAsked>,
) -> Result<Json<FeedPage>, Refusal> {
    web.insider(&headers)?;
    let max = if asked.max == 0 {
        BATCH_MAX
    } else {
        asked.max.min(BATCH_MAX)
    };
    let until =
        tokio::time::Instant::now() + Duration::from_millis(asked.wait_ms.min(FEED_WAIT_MAX_MS));
    loop {
        // Registered before looking: what is said meanwhile rings.
        let news = web.consumer.news.notified();
        let page = feed_page(&web.consumer, asked.from, max).await?;
        if page.next > asked.from || tokio::time::timeout_at(until, news).await.is_err() {
            return Ok(Json(page));
        }
    }
}

async fn feed_page(consumer: &Consumer, from: i64, max: usize) -> Result<FeedPage, Refusal> {
    let rows =
        sqlx::query("SELECT seq, body, topic FROM outbox WHERE seq >= $1 ORDER BY seq LIMIT $2")
            .bind(from)
            .bind(max as i64)
            .fetch_all(consumer.database.pool())
            .await?;
    let (mut messages, mut next) = (Vec::with_capacity(rows.len()), from);
    for (number, row) in rows.iter().enumerate() {
        let seq: i64 = row.try_get("seq")?;
        // Numbers have no gap, so a first one beyond what was asked for means that older ones were dropped.
        if number == 0 && seq > from.max(1) {
            return Err(Refusal::Gone);
        }
        next = seq + 1;
        if row.try_get::<String, _>("topic")? != DEAD_LETTERS {
            let body = RawValue::from_string(row.try_get("body")?);
            messages.push(body.map_err(|_| Refusal::Busy)?);
        }
    }
    let last: i64 = sqlx::query_scalar("SELECT value FROM counters WHERE name = 'outbox'")
        .fetch_one(consumer.database.pool())
        .await?;
    Ok(FeedPage {
        messages,
        next,
        behind: u64::try_from(last + 1 - next).unwrap_or(0),
    })
}

/// `GET /v1/dead-letters`
async fn dead_letters(State(web): State<Web>, headers: HeaderMap) -> Result<Response, Refusal> {
    web.insider(&headers)?;
    let rows = sqlx::query(
        "SELECT source, id, reason, set_aside_ms FROM dead_letters ORDER BY set_aside_ms LIMIT $1",
    )
    .bind(DEAD_SHOWN_MAX)
    .fetch_all(web.consumer.database.pool())
    .await?;
    let mut shown = Vec::with_capacity(rows.len());
    for row in rows {
        shown.push(Dead {
            source: row.try_get("source")?,
            id: row.try_get("id")?,
            reason: row.try_get("reason")?,
            set_aside_ms: row.try_get("set_aside_ms")?,
        });
    }
    let shown = DeadLetters {
        dead_letters: shown,
    };
    Ok(Json(shown).into_response())
}

/// `POST /v1/dead-letters/replay`
async fn replay_dead(State(web): State<Web>, headers: HeaderMap) -> Result<Response, Refusal> {
    if web.caller(&headers)? != Caller::Ops {
        return Err(Refusal::Forbidden);
    }
    let (answer, replayed) = oneshot::channel();
    web.requests
        .try_send(Request::ReplayDead(answer))
        .map_err(|_| Refusal::Busy)?;
    let replayed = replayed.await.map_err(|_| Refusal::Busy)?;
    Ok(Json(replayed).into_response())
}

/// `GET /openapi.json`: what calls there are; made from the code (see `openapi`).
async fn description() -> Response {
    let kind = [(header::CONTENT_TYPE, "application/json")];
    (kind, include_str!("../../docs/openapi-services.json")).into_response()
}

/// `GET /metrics`
async fn metrics(State(web): State<Web>) -> String {
    web.consumer.gauges.to_prometheus(web.service, wall()) + &web.own_metrics()
}
