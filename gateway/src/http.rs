//! The calls: opening, reading and cancelling rides, cars near, health and metrics; and the door to the sockets.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{ConnectInfo, DefaultBodyLimit, Path, Request, State};
use axum::http::{HeaderMap, StatusCode, Uri, header, request};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post, put};
use cabrank_events::command::{CancelledBy, Outcome};
use cabrank_events::wire::{Nearby, RideOpened, RideRequest, RideView, WireResult};
use cabrank_events::{
    Command, CommandId, IdempotencyKey, Place, Reason, RideId, Time, TraceParent, VehicleClass,
    ZoneFinding,
};
use cabrank_geo::Point;
use cabrank_matcher::api::{CarsNear, NearbyQuery};
use cabrank_spans::Span;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use crate::access::{Endpoint, choose_protocol, rider_for};
use crate::desk;
use crate::destination;
use crate::dispatch;
use crate::driver::DriverSession;
use crate::edge::{Edge, refused};
use crate::forecasts;
use crate::frames::Outbound;
use crate::listener::Conn;
use crate::logging;
use crate::map;
use crate::marks;
use crate::meters;
use crate::nodes;
use crate::outcomes::Answer;
use crate::page;
use crate::people::TooManyPeople;
use crate::problem::Problem;
use crate::query::{self, Asked};
use crate::quote;
use crate::rider::RiderSession;
use crate::shutout;
use crate::socket::{Codec, Socket, command_name, count_command};
use crate::stream;
use crate::threads::{Arrived, Client};
use crate::token::{Caller, LIFE_MAX, Verified};
use crate::upgrade::{Handshake, Raw};
use crate::zones;

/// Room made for an ordinary answer, and for each car of a search.
const ANSWER_BYTES: usize = 512;
const CAR_BYTES: usize = 128;
/// Cars in an answer when `k` is not given.
const NEARBY_K_DEFAULT: usize = 10;
/// Metres when `radius` is not given.
const NEARBY_RADIUS_DEFAULT_M: f64 = 2_000.0;

pub type Shared = State<Arc<Edge>>;

/// All routes.
pub fn router(edge: Arc<Edge>) -> Router {
    Router::new()
        .route("/v1/driver", get(driver_socket))
        .route("/v1/rider", get(rider_socket))
        .route("/v1/rides", post(open_ride))
        .route("/v1/rides/{ride}", get(read_ride))
        .route("/v1/rides/{ride}/cancel", post(cancel_ride))
        .route("/v1/rides/{ride}/destination", put(destination::change))
        .route("/v1/cancel", post(cancel_by_key))
        .route("/v1/drivers/{driver}/suspend", post(marks::suspend))
        .route("/v1/drivers/{driver}/reinstate", post(marks::reinstate))
        .route("/v1/drivers/{driver}/blocks", post(marks::block))
        .route(
            "/v1/drivers/{driver}/blocks/{rider}",
            delete(marks::unblock),
        )
        .route(
            "/v1/drivers/{driver}/heading",
            put(marks::head_for).delete(marks::head_anywhere),
        )
        .route("/v1/rides/{ride}/history", get(desk::ride_history))
        .route("/v1/rides/{ride}/redispatch", post(desk::redispatch))
        .route("/v1/drivers/{driver}", get(desk::driver))
        .route("/v1/drivers/{driver}/history", get(desk::driver_history))
        .route("/v1/riders/{rider}", get(desk::rider))
        .route("/v1/riders/{rider}/history", get(desk::rider_history))
        .route("/v1/dispatch", get(dispatch::read).put(dispatch::set))
        .route("/v1/dispatch/history", get(desk::market_history))
        .route("/v1/nodes", get(nodes::list))
        .route("/v1/nodes/{node}/drain", post(nodes::drain))
        .route("/v1/map", get(map::map))
        .route("/v1/map/area", get(map::area))
        .route("/v1/map/forecast", get(forecasts::forecast))
        .route("/v1/map/film", get(map::film))
        .route("/v1/map/drivers/{key}", get(map::name))
        .route("/", get(page::index))
        .route("/map.js", get(page::script))
        .route("/map.css", get(page::style))
        .route("/api", get(page::api))
        .route("/api.js", get(page::api_script))
        .route("/openapi.json", get(page::openapi))
        .route("/v1/nearby", get(nearby))
        .route("/v1/quote", post(quote::quote))
        .route("/v1/zones", get(zones::zones))
        .route("/v1/events", get(stream::events))
        .route("/v1/revocations", post(shutout::revoke))
        .route(
            "/v1/revocations/{role}/{subject}",
            delete(shutout::lift_revocation),
        )
        .route("/v1/log-level", get(show_log_level).put(set_log_level))
        .route("/healthz", get(alive))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .fallback(async || {
            let detail = "see docs/protocol.md for what there is";
            Problem::new(404, "unknown_path", "No such path", detail)
        })
        .method_not_allowed_fallback(async || {
            let detail = "see docs/protocol.md for the method";
            Problem::new(405, "wrong_method", "Wrong method for this path", detail)
        })
        .layer(DefaultBodyLimit::max(edge.config.limits.frame_bytes_max))
        .layer(axum::middleware::from_fn_with_state(edge.clone(), count))
        .with_state(edge)
}

/// Tells the connection that it is asked for something, and counts what comes from its address.
async fn count(
    State(edge): Shared,
    ConnectInfo(conn): ConnectInfo<Conn>,
    request: Request,
    next: Next,
) -> Response {
    conn.begins();
    let caller = edge.addresses.caller(conn.peer(), request.headers());
    let Some(address) = caller else {
        return next.run(request).await;
    };
    if let Err(retry_after_s) = edge.addresses.count_request(&address) {
        return Problem::busy_address(retry_after_s).into_response();
    }
    let answer = next.run(request).await;
    if answer.status() != StatusCode::UNAUTHORIZED {
        return answer;
    }
    match edge.addresses.count_failed(&address) {
        Ok(()) => answer,
        Err(retry_after_s) => {
            let close = [(header::CONNECTION, "close")];
            (close, Problem::busy_address(retry_after_s)).into_response()
        }
    }
}

async fn show_log_level(State(edge): Shared, headers: HeaderMap) -> Result<Response, Problem> {
    edge.authorize(Endpoint::LogLevel, &headers)?;
    logging::show()
}

async fn set_log_level(
    State(edge): Shared,
    headers: HeaderMap,
    bytes: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let verified = edge.authorize(Endpoint::LogLevel, &headers)?;
    let most = edge.config.limits.frame_bytes_max;
    logging::change(&verified.caller, bytes, most)
}

/// It answers, so its runtime goes round; what else must?
async fn alive(State(edge): Shared) -> Result<&'static str, Problem> {
    let wedged = edge.threads.wedged().or_else(|| edge.dispatch.wedged());
    match wedged {
        None => Ok("alive\n"),
        Some(wedged) => {
            let detail = format!("{wedged}: restart the process");
            Err(Problem::new(503, "wedged", "A loop stands still", detail))
        }
    }
}

async fn ready(State(edge): Shared) -> Result<&'static str, Problem> {
    if edge.draining.is_cancelled() {
        return Err(Problem::going_down());
    }
    if !edge.verifier.is_ready() {
        return Err(Problem::busy(
            "the keys that check tokens are not here yet: retry after Retry-After seconds",
        ));
    }
    if !edge.dispatch.is_ready() {
        return Err(Problem::busy(
            "the node recovers or drains: retry after Retry-After seconds",
        ));
    }
    Ok("ready\n")
}

async fn metrics(State(edge): Shared) -> impl IntoResponse {
    edge.publish_metrics();
    let content_type = [(header::CONTENT_TYPE, "text/plain; version=0.0.4")];
    (content_type, meters::render())
}

/// A socket that may be opened.
struct Opening {
    verified: Verified,
    codec: Codec,
    protocol: Option<&'static str>,
    handshake: Handshake,
    /// When the token is over.
    expires: Instant,
    /// Room for it.
    room: OwnedSemaphorePermit,
}

/// May this socket be opened? Who calls, what is spoken, and is there room?
fn opening(
    edge: &Edge,
    endpoint: Endpoint,
    mut request: request::Parts,
) -> Result<Opening, Problem> {
    let verified = edge.authorize(endpoint, &request.headers)?;
    let (codec, protocol) = choose_protocol(&request.headers)?;
    edge.count_socket(&verified.caller)?;
    let expires = Instant::now() + verified.remaining().min(LIFE_MAX);
    Ok(Opening {
        codec,
        protocol,
        handshake: Handshake::of(&mut request)?,
        expires,
        verified,
        room: edge.admit()?,
    })
}

/// Answers the handshake; when the answer is written, the socket goes to a thread. `client` is made only then, so that
/// a socket that never comes about replaces nobody's.
fn open(
    edge: Arc<Edge>,
    conn: Conn,
    (handshake, protocol): (Handshake, Option<&'static str>),
    room: OwnedSemaphorePermit,
    client: impl FnOnce(Arc<Edge>) -> Result<Box<dyn Client>, TurnedAway> + Send + 'static,
) -> Response {
    let (answer, raw) = handshake.accept(protocol);
    let busy = conn.busy();
    tokio::spawn(async move {
        let raw = raw.await;
        drop(busy);
        let Some(raw) = raw else { return };
        match client(edge.clone()) {
            Ok(client) => {
                // It fails only when the stream is broken already.
                if let Ok(tcp) = raw.tcp.into_std() {
                    edge.threads.adopt(Arrived {
                        tcp,
                        tls: raw.tls,
                        first: raw.first,
                        client,
                        places: (room, raw.place),
                    });
                }
            }
            Err(TurnedAway) => {
                refused("people_remembered");
                turn_away(raw).await;
            }
        }
    });
    answer
}

/// There is no room for this person.
struct TurnedAway;

/// Closes a socket for whose person there is no room. It is new: what it is told has room on its way.
async fn turn_away(mut raw: Raw) {
    let mut goodbye = Outbound::default();
    goodbye.close(1013, "no room: connect again later");
    let mut bytes = goodbye.into_bytes();
    if let Some(tls) = &mut raw.tls {
        let plain = std::mem::take(&mut bytes);
        // Writing into memory cannot fail.
        let _ = tls.writer().write_all(&plain);
        tls.send_close_notify();
        while tls.wants_write() && tls.write_tls(&mut bytes).is_ok() {}
    }
    let _ = raw.tcp.write_all(&bytes).await;
}

async fn driver_socket(
    State(edge): Shared,
    ConnectInfo(conn): ConnectInfo<Conn>,
    request: Request,
) -> Result<Response, Problem> {
    let opening = opening(&edge, Endpoint::DriverSocket, request.into_parts().0)?;
    let verified = opening.verified;
    let Caller::Driver(driver) = verified.caller.clone() else {
        return Err(Problem::forbidden("use a driver's token"));
    };
    let handshake = (opening.handshake, opening.protocol);
    let (codec, expires) = (opening.codec, opening.expires);
    Ok(open(edge, conn, handshake, opening.room, move |edge| {
        let queue_max = edge.config.limits.session_queue_max;
        let connected = edge.drivers.connect(&driver, queue_max);
        let (slot, link) = connected.map_err(|TooManyPeople| TurnedAway)?;
        edge.look_again(&verified);
        let sign_every = Duration::from_millis(edge.config.timing.sign_of_life_ms);
        let person = DriverSession::new(driver, slot, link.clone(), sign_every);
        Ok(Box::new(Socket::new(edge, codec, person, link, expires)))
    }))
}

async fn rider_socket(
    State(edge): Shared,
    ConnectInfo(conn): ConnectInfo<Conn>,
    request: Request,
) -> Result<Response, Problem> {
    let opening = opening(&edge, Endpoint::RiderSocket, request.into_parts().0)?;
    let verified = opening.verified;
    let Caller::Rider(rider) = verified.caller.clone() else {
        return Err(Problem::forbidden("use a rider's token"));
    };
    let handshake = (opening.handshake, opening.protocol);
    let (codec, expires) = (opening.codec, opening.expires);
    Ok(open(edge, conn, handshake, opening.room, move |edge| {
        let queue_max = edge.config.limits.session_queue_max;
        let link = edge.riders.connect(&rider, queue_max);
        edge.look_again(&verified);
        let person = RiderSession::new(rider, link.clone(), &edge);
        Ok(Box::new(Socket::new(edge, codec, person, link, expires)))
    }))
}

/// Reads a JSON body; the error names what is wrong with it.
pub fn body<T: serde::de::DeserializeOwned>(
    edge: &Edge,
    bytes: Result<Bytes, BytesRejection>,
) -> Result<T, Problem> {
    body_of(bytes, edge.config.limits.frame_bytes_max)
}

/// The same where a body has at most `most` bytes.
pub fn body_of<T: serde::de::DeserializeOwned>(
    bytes: Result<Bytes, BytesRejection>,
    most: usize,
) -> Result<T, Problem> {
    let bytes = bytes.map_err(|rejection| {
        let (status, why) = (rejection.status().as_u16(), rejection.body_text());
        let detail = format!("{why}: send the whole body, at most {most} bytes");
        Problem::new(status, "bad_body", "The body cannot be read", detail)
    })?;
    serde_json::from_slice(&bytes).map_err(Problem::bad_body)
}

pub fn command_id(text: String) -> Result<CommandId, Problem> {
    CommandId::new(&text).map_err(|error| Problem::bad_request(error.to_string()))
}

/// Hands a command in and waits for its outcome.
pub async fn ask(
    edge: &Edge,
    id: CommandId,
    issued_at: Time,
    command: Command,
) -> Result<Answer, Problem> {
    hand_in(edge, id, issued_at, command, None, None).await
}

/// The same, with the words of the person at the desk who wants it.
pub async fn ask_because(
    edge: &Edge,
    id: CommandId,
    issued_at: Time,
    command: Command,
    reason: Option<Reason>,
) -> Result<Answer, Problem> {
    hand_in(edge, id, issued_at, command, reason, None).await
}

async fn hand_in(
    edge: &Edge,
    id: CommandId,
    issued_at: Time,
    command: Command,
    reason: Option<Reason>,
    parent: Option<TraceParent>,
) -> Result<Answer, Problem> {
    let kind = command_name(&command);
    let since = Instant::now();
    let waiting = edge
        .hand_in(id, issued_at, command, reason, parent)
        .inspect_err(|_| count_command(kind, None))?;
    let patience = Duration::from_millis(edge.config.timing.outcome_timeout_ms);
    let answer = waiting.answer(patience).await;
    count_command(kind, answer.as_ref());
    metrics::histogram!("cabrank_command_ack_seconds").record(since.elapsed());
    answer.ok_or_else(Problem::unknown_outcome)
}

pub fn json<T: Serialize>(status: StatusCode, body: &T) -> Response {
    json_of(status, body, ANSWER_BYTES)
}

/// The same for an answer of about `bytes`: the room is made once.
pub fn json_of<T: Serialize>(status: StatusCode, body: &T, bytes: usize) -> Response {
    let content_type = [(header::CONTENT_TYPE, "application/json")];
    let mut json = Vec::with_capacity(bytes);
    if serde_json::to_writer(&mut json, body).is_err() {
        json.clear();
    }
    (status, content_type, json).into_response()
}

/// The key that makes retries of a call harmless.
pub fn idempotency_key(headers: &HeaderMap) -> Result<IdempotencyKey, Problem> {
    let key = headers.get("idempotency-key");
    let key = key.and_then(|key| key.to_str().ok()).ok_or_else(|| {
        Problem::bad_request("send the header Idempotency-Key: 1 to 64 characters, new for each wish, the same in each retry")
    })?;
    IdempotencyKey::new(key)
        .map_err(|error| Problem::bad_request(format!("Idempotency-Key: {error}")))
}

async fn open_ride(State(edge): Shared, request: Request) -> Result<Response, Problem> {
    let (mut parts, bytes) = request.into_parts();
    let caller = parts.headers.get("traceparent");
    let mut span = cabrank_spans::begin_ride(
        "POST /v1/rides",
        caller.and_then(|caller| caller.to_str().ok()),
    );
    let verified = edge.authorize(Endpoint::OpenRide, &parts.headers)?;
    let rider = rider_for(&verified.caller, &parts.headers)?;
    let key = idempotency_key(&parts.headers)?;
    edge.count_request(&rider)?;
    let bytes = read_body(&mut parts, bytes).await;
    let wish: RideRequest = body(&edge, bytes)?;
    let now = edge.dispatch.now();
    let issued_at = wish.issued_at.unwrap_or(now);
    if issued_at > now.plus_ms(edge.config.timing.issued_ahead_ms_max) {
        let detail = format!(
            "issued_at lies ahead of the server's clock, which shows {}: leave it out or set the clock",
            now.0
        );
        return Err(Problem::new(
            422,
            "issued_in_future",
            "issued_at is in the future",
            detail,
        ));
    }
    let id = command_id(format!("rider/{rider}/{key}"))?;
    let RideRequest {
        pickup,
        dropoff,
        class,
        ..
    } = wish;
    let zone = edge.zones.finding(pickup);
    let fetched_at = match zone.as_deref() {
        None => Some(pickup),
        Some(ZoneFinding::At(point)) => Some(point.at),
        Some(ZoneFinding::OutOfArea) => None,
    };
    let command = Command::RequestRide {
        rider: rider.clone(),
        key: key.clone(),
        pickup,
        dropoff,
        class,
        zone,
        airport: edge.zones.queue_at(pickup),
    };
    let room = edge.admit_request()?;
    let estimate = fetched_at.and_then(|at| edge.learn(at, class));
    edge.first_offers.ask(&rider, &key);
    let parent = span.as_ref().map(Span::context);
    let answer = hand_in(&edge, id, issued_at, command, None, parent).await;
    drop(room);
    if let (
        Some(span),
        Ok(Answer {
            ride: Some(ride), ..
        }),
    ) = (&mut span, &answer)
    {
        span.set("ride", ride);
    }
    // What was done is measured from its events; an unknown outcome may still come, but is none of ours to wait for.
    if !matches!(&answer, Ok(answer) if answer.outcome == Outcome::Done) {
        edge.first_offers.forget(&rider, &key);
    }
    let answer = answer?;
    let status = match answer.outcome {
        Outcome::Done => StatusCode::CREATED,
        Outcome::AlreadyDone => StatusCode::OK,
        Outcome::Refused { why } => return Err(why.into()),
    };
    let ride = answer.ride.ok_or_else(Problem::unknown_outcome)?;
    if let (Outcome::Done, Some(estimate)) = (answer.outcome, estimate) {
        edge.note_when_known(ride, estimate);
    }
    let opened = RideOpened {
        ride,
        key,
        pickup_point: answer.pickup_point.map(|point| *point),
    };
    Ok(json(status, &opened))
}

/// Reads the body under the router's limit.
async fn read_body(
    parts: &mut axum::http::request::Parts,
    body: axum::body::Body,
) -> Result<Bytes, BytesRejection> {
    use axum::extract::FromRequest;
    let mut request = Request::new(body);
    *request.extensions_mut() = std::mem::take(&mut parts.extensions);
    *request.headers_mut() = std::mem::take(&mut parts.headers);
    Bytes::from_request(request, &()).await
}

pub fn ride_id(text: &str) -> Result<RideId, Problem> {
    // What is no ride id names no ride.
    text.parse().map_err(|_| Problem::unknown_ride())
}

/// May the caller see the ride?
fn sees(edge: &Edge, caller: &Caller, ride: &RideView) -> bool {
    match caller {
        Caller::Service(_) | Caller::Ops(_) => true,
        Caller::Rider(rider) => ride.rider == *rider,
        Caller::Driver(driver) => {
            let holds = || edge.dispatch.driver(driver).and_then(|view| view.hold);
            ride.driver.as_ref() == Some(driver)
                || holds().is_some_and(|hold| hold.ride == ride.ride)
        }
    }
}

async fn read_ride(
    State(edge): Shared,
    headers: HeaderMap,
    Path(ride): Path<String>,
) -> Result<Response, Problem> {
    let verified = edge.authorize(Endpoint::ReadRide, &headers)?;
    let ride = edge
        .dispatch
        .ride(ride_id(&ride)?)
        .ok_or_else(Problem::unknown_ride)?;
    if !sees(&edge, &verified.caller, &ride) {
        return Err(Problem::unknown_ride());
    }
    Ok(json(StatusCode::OK, &*ride))
}

/// What a call that changes something answers: done now, or done before.
#[derive(Serialize, schemars::JsonSchema)]
pub struct Changed {
    result: WireResult,
    #[serde(skip_serializing_if = "Option::is_none")]
    ride: Option<RideId>,
}

pub fn changed(answer: Answer) -> Result<Response, Problem> {
    let result = match answer.outcome {
        Outcome::Done => WireResult::Done,
        Outcome::AlreadyDone => WireResult::AlreadyDone,
        Outcome::Refused { why } => return Err(why.into()),
    };
    Ok(json(
        StatusCode::OK,
        &Changed {
            result,
            ride: answer.ride,
        },
    ))
}

/// What desk and services may say beside a cancel.
#[derive(Deserialize, schemars::JsonSchema)]
pub struct Why {
    #[serde(default)]
    reason: Option<Reason>,
}

async fn cancel_ride(
    State(edge): Shared,
    headers: HeaderMap,
    Path(ride): Path<String>,
    bytes: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let verified = edge.authorize(Endpoint::CancelRide, &headers)?;
    let ride = ride_id(&ride)?;
    // Only desk and services give reasons; what a rider's app may send is not read.
    let reason = match (&verified.caller, bytes) {
        (Caller::Rider(_) | Caller::Driver(_), _) => None,
        (_, Ok(bytes)) if bytes.is_empty() => None,
        (_, bytes) => body::<Why>(&edge, bytes)?.reason,
    };
    // The id comes from the ride, so that a retry is the same command.
    let (id, by, rider) = match &verified.caller {
        Caller::Rider(rider) => {
            edge.count_request(rider)?;
            let known = edge.dispatch.ride(ride);
            if known.is_some_and(|known| known.rider != *rider) {
                return Err(Problem::unknown_ride());
            }
            (
                format!("rider/{rider}/r/{ride}"),
                CancelledBy::Rider,
                Some(rider.clone()),
            )
        }
        Caller::Service(name) => (format!("service/{name}/r/{ride}"), CancelledBy::Ops, None),
        Caller::Ops(name) => (format!("ops/{name}/r/{ride}"), CancelledBy::Ops, None),
        Caller::Driver(_) => {
            return Err(Problem::forbidden(
                "a driver gives a ride back on its socket",
            ));
        }
    };
    // A service says why for the rider to read; what the desk writes stays with the desk.
    let told = match &verified.caller {
        Caller::Service(_) => reason.clone(),
        Caller::Ops(_) | Caller::Rider(_) | Caller::Driver(_) => None,
    };
    let command = Command::CancelRide {
        ride,
        by,
        rider,
        reason: told,
    };
    changed(ask_because(&edge, command_id(id)?, edge.dispatch.now(), command, reason).await?)
}

/// Which wish is taken back.
#[derive(Deserialize, schemars::JsonSchema)]
pub struct ByKey {
    key: IdempotencyKey,
}

async fn cancel_by_key(
    State(edge): Shared,
    headers: HeaderMap,
    bytes: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let verified = edge.authorize(Endpoint::CancelByKey, &headers)?;
    let rider = rider_for(&verified.caller, &headers)?;
    edge.count_request(&rider)?;
    let ByKey { key } = body(&edge, bytes)?;
    let id = command_id(format!("rider/{rider}/k/{key}"))?;
    let command = Command::CancelByKey { rider, key };
    changed(ask(&edge, id, edge.dispatch.now(), command).await?)
}

fn class(name: &str) -> Result<VehicleClass, Problem> {
    let known = VehicleClass::ALL.into_iter();
    let found = known.clone().find(|class| class.name() == name);
    found.ok_or_else(|| {
        let names: Vec<&str> = known.map(VehicleClass::name).collect();
        query::bad("class", name, &format!("ask for {}", names.join(", ")))
    })
}

async fn nearby(State(edge): Shared, headers: HeaderMap, uri: Uri) -> Result<Response, Problem> {
    let verified = edge.authorize(Endpoint::Nearby, &headers)?;
    if let Caller::Rider(rider) = &verified.caller {
        edge.count_request(rider)?;
    }
    let asked = Asked::of(&uri, &["lat", "lon", "radius", "k", "class"])?;
    let degrees = |most: f64| move |value: &f64| (-most..=most).contains(value);
    let lat = asked.needed("lat", "give degrees north, -90 to 90", degrees(90.0))?;
    let lon = asked.needed("lon", "give degrees east, -180 to 180", degrees(180.0))?;
    let at = Point::new(lat, lon)
        .map_err(|error| Problem::bad_request(format!("{error}: give degrees north and east")))?;
    let is_distance = |radius_m: &f64| radius_m.is_finite() && *radius_m > 0.0;
    let radius_m = asked.value("radius", "give metres, more than 0", is_distance)?;
    let most = edge.config.limits.nearby_max;
    let remedy = format!("ask for 1 to {most} cars");
    let k = asked.value("k", &remedy, |k| (1..=most).contains(k))?;
    let class = asked.text("class").map(class).transpose()?;
    let radius_m = radius_m.unwrap_or(NEARBY_RADIUS_DEFAULT_M);
    let k = k.unwrap_or(NEARBY_K_DEFAULT.min(most));
    let query = NearbyQuery {
        at: Place(at),
        radius_m,
        k,
        class,
    };
    let CarsNear { cars, unconfirmed } = edge.dispatch.nearby(&query).await?;
    let bytes = ANSWER_BYTES + cars.len() * CAR_BYTES;
    Ok(json_of(
        StatusCode::OK,
        &Nearby { cars, unconfirmed },
        bytes,
    ))
}
