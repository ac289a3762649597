//! What a person at the desk sees of a driver, a rider or a ride, and how a ride is dispatched anew.
//!
//! Everything the desk does is a command in the log, with who wants it in its id and why in its reason. Elsewhere:
//! suspensions and block lists (`marks`), calling a ride off (`http`), the map (`map`).

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use cabrank_events::command::EntityId;
use cabrank_events::wire::RideStage;
use cabrank_events::{
    Attempt, Command, DriverId, HoldId, Place, Reason, RideId, RiderId, SessionId,
};
use cabrank_matcher::api::History;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::access::Endpoint;
use crate::http::{Shared, ask_because, body, changed, command_id, json, json_of, ride_id};
use crate::marks::id;
use crate::problem::Problem;
use crate::token::Caller;

/// Commands and events of one entity that are shown.
const HISTORY_MAX: usize = 500;

/// Answer of `GET /v1/drivers/{driver}`.
#[derive(Serialize, schemars::JsonSchema)]
pub struct DriverState {
    driver: DriverId,
    /// At work?
    online: bool,
    /// The open session.
    #[serde(skip_serializing_if = "Option::is_none")]
    session: Option<SessionId>,
    /// The ride the driver is held for or drives.
    #[serde(skip_serializing_if = "Option::is_none")]
    ride: Option<RideId>,
    /// The hold's attempt.
    #[serde(skip_serializing_if = "Option::is_none")]
    attempt: Option<Attempt>,
    /// Where that ride is in its life.
    #[serde(skip_serializing_if = "Option::is_none")]
    stage: Option<RideStage>,
    /// Kept from work, and why.
    #[serde(skip_serializing_if = "Option::is_none")]
    suspended: Option<Reason>,
    /// The newest position.
    #[serde(skip_serializing_if = "Option::is_none")]
    at: Option<Place>,
    /// Its age in ms.
    #[serde(skip_serializing_if = "Option::is_none")]
    age_ms: Option<i64>,
}

/// Answer of `GET /v1/riders/{rider}`.
#[derive(Serialize, schemars::JsonSchema)]
pub struct RiderState {
    rider: RiderId,
    /// The open ride, if any.
    #[serde(skip_serializing_if = "Option::is_none")]
    ride: Option<RideId>,
}

/// One entry of a history.
#[derive(Serialize, schemars::JsonSchema)]
pub struct Told<'a> {
    /// When it entered the log, domain ms.
    time: i64,
    /// `command` (as it was handed in) or `event` (a CloudEvent).
    kind: &'static str,
    /// As it stands in the log.
    #[schemars(with = "serde_json::Value")]
    record: &'a RawValue,
}

/// Answer of the histories.
#[derive(Serialize, schemars::JsonSchema)]
pub struct Histories<'a> {
    /// Oldest first.
    past: Vec<Told<'a>>,
    /// There may have been more before.
    is_cut: bool,
}

/// Body of what a person wants done, and why.
#[derive(Deserialize, schemars::JsonSchema)]
pub struct Because {
    /// One line, 1 to 200 bytes.
    pub reason: Reason,
}

fn unknown_driver() -> Problem {
    let detail = "check the id; drivers who left and have no marks are forgotten";
    Problem::new(404, "unknown_driver", "No such driver", detail)
}

/// `GET /v1/drivers/{driver}`
pub async fn driver(
    State(edge): Shared,
    headers: HeaderMap,
    Path(driver): Path<String>,
) -> Result<Response, Problem> {
    edge.authorize(Endpoint::Desk, &headers)?;
    let driver: DriverId = id(&driver)?;
    let view = edge.dispatch.driver(&driver).ok_or_else(unknown_driver)?;
    // Where nobody answers for a place, the rest is still worth showing.
    let position = edge.dispatch.position(&driver).await.ok().flatten();
    let ride = view.hold.map(|hold| hold.ride);
    Ok(json(
        StatusCode::OK,
        &DriverState {
            driver,
            online: view.session.is_some(),
            session: view.session,
            ride,
            attempt: view.hold.map(|hold| hold.attempt),
            stage: ride
                .and_then(|ride| edge.dispatch.ride(ride))
                .map(|ride| ride.stage),
            suspended: view.suspended,
            at: position.map(|position| position.at),
            age_ms: position.map(|position| position.age_ms),
        },
    ))
}

/// `GET /v1/riders/{rider}`
pub async fn rider(
    State(edge): Shared,
    headers: HeaderMap,
    Path(rider): Path<String>,
) -> Result<Response, Problem> {
    edge.authorize(Endpoint::Desk, &headers)?;
    let rider: RiderId = id(&rider)?;
    let ride = edge.dispatch.ride_of(&rider);
    Ok(json(StatusCode::OK, &RiderState { rider, ride }))
}

async fn history(edge: Shared, headers: &HeaderMap, entity: EntityId) -> Result<Response, Problem> {
    let State(edge) = edge;
    edge.authorize(Endpoint::Desk, headers)?;
    // It is closed never; should it be, nothing is read.
    let _turn = edge.histories.acquire().await;
    let asked = edge.clone();
    let read = tokio::task::spawn_blocking(move || asked.dispatch.history(&entity, HISTORY_MAX));
    let unreadable = || Problem::busy("the log cannot be read: retry later");
    let History { past, is_cut } = read
        .await
        .map_err(|_| unreadable())?
        .map_err(|_| unreadable())?;
    let told = past.iter().filter_map(|entry| {
        Some(Told {
            time: entry.time.0,
            kind: if entry.is_command { "command" } else { "event" },
            // What we wrote is JSON; should it not be, it is left out rather than break the answer.
            record: serde_json::from_slice(&entry.json).ok()?,
        })
    });
    let bytes = past
        .iter()
        .map(|entry| entry.json.len() + 64)
        .sum::<usize>()
        + 64;
    let past = told.collect();
    Ok(json_of(StatusCode::OK, &Histories { past, is_cut }, bytes))
}

/// `GET /v1/drivers/{driver}/history`
pub async fn driver_history(
    edge: Shared,
    headers: HeaderMap,
    Path(driver): Path<String>,
) -> Result<Response, Problem> {
    edge.authorize(Endpoint::Desk, &headers)?;
    let driver = id(&driver)?;
    history(edge, &headers, EntityId::Driver(driver)).await
}

/// `GET /v1/riders/{rider}/history`
pub async fn rider_history(
    edge: Shared,
    headers: HeaderMap,
    Path(rider): Path<String>,
) -> Result<Response, Problem> {
    edge.authorize(Endpoint::Desk, &headers)?;
    let rider = id(&rider)?;
    history(edge, &headers, EntityId::Rider(rider)).await
}

/// `GET /v1/rides/{ride}/history`
pub async fn ride_history(
    edge: Shared,
    headers: HeaderMap,
    Path(ride): Path<String>,
) -> Result<Response, Problem> {
    edge.authorize(Endpoint::Desk, &headers)?;
    let ride = ride_id(&ride)?;
    history(edge, &headers, EntityId::Ride(ride)).await
}

/// `GET /v1/dispatch/history`: what was set for the market, and which nodes were asked to leave.
pub async fn market_history(edge: Shared, headers: HeaderMap) -> Result<Response, Problem> {
    edge.authorize(Endpoint::Desk, &headers)?;
    history(edge, &headers, EntityId::Market).await
}

/// `POST /v1/rides/{ride}/redispatch`: the driver on the way is taken off the ride, which waits again in its old place;
/// that driver is not asked again for it.
pub async fn redispatch(
    State(edge): Shared,
    headers: HeaderMap,
    Path(ride): Path<String>,
    bytes: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let verified = edge.authorize(Endpoint::Desk, &headers)?;
    let Caller::Ops(who) = &verified.caller else {
        return Err(Problem::forbidden("use a token with the role ops"));
    };
    let ride = ride_id(&ride)?;
    let Because { reason } = body(&edge, bytes)?;
    let view = edge.dispatch.ride(ride).ok_or_else(Problem::unknown_ride)?;
    let on_the_way = matches!(view.stage, RideStage::EnRoute | RideStage::Arrived);
    let held = view.driver.clone().zip(view.attempt).filter(|_| on_the_way);
    let Some((driver, attempt)) = held else {
        let detail = "only a ride whose driver is on the way can be given to another: one that waits is being \
             dispatched, one that has started is driven to its end";
        return Err(Problem::new(
            409,
            "not_assigned",
            "No driver is on the way",
            detail,
        ));
    };
    // The id comes from the hold, so that a retry is the same command.
    let id = command_id(format!("ops/{who}/d/{ride}/{attempt}"))?;
    let hold = HoldId { ride, attempt };
    let command = Command::GiveBack { hold, driver };
    changed(ask_because(&edge, id, edge.dispatch.now(), command, Some(reason)).await?)
}
