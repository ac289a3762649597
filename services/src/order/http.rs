//! `GET /v1/orders`: the read model, for whom it concerns.
//!
//! Riders and drivers see their own orders, systems and the desk all. Pages go by a cursor that stays right while orders are
//! added: it names the last order shown, not a number of pages.

use axum::extract::{Path, Query, State};
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde_json::{Value, json};

use super::model::{self, Order, Wanted};
use super::saga::Saga;
use super::{saga_counts, saga_of};
use crate::web::{Caller, Refusal, Web};

/// Orders of a page unless asked otherwise, and at most.
const LIMIT_DEFAULT: i64 = 50;
const LIMIT_MAX: i64 = 500;

/// The calls of the order service.
pub fn routes() -> Router<Web> {
    Router::new()
        .route("/v1/orders", get(orders))
        .route("/v1/orders/{ride}", get(order))
        .route("/v1/sagas", get(sagas))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    rider: Option<String>,
    driver: Option<String>,
    state: Option<String>,
    from_ms: Option<i64>,
    to_ms: Option<i64>,
    limit: Option<i64>,
    cursor: Option<String>,
}

fn to_cursor(order: &Order) -> String {
    URL_SAFE_NO_PAD.encode(format!("{}/{}", order.requested_ms, order.ride))
}

fn from_cursor(text: &str) -> Option<(i64, String)> {
    let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
    let text = String::from_utf8(bytes).ok()?;
    let (ms, ride) = text.split_once('/')?;
    Some((ms.parse().ok()?, ride.to_owned()))
}

async fn orders(
    State(web): State<Web>,
    headers: HeaderMap,
    Query(asked): Query<Asked>,
) -> Result<Response, Refusal> {
    let (mut rider, mut driver) = (asked.rider, asked.driver);
    // Whoever asks for somebody else's is refused rather than shown their own.
    let mine = |asked: &Option<String>, id: &String| match asked {
        Some(other) if other != id => Err(Refusal::Forbidden),
        _ => Ok(Some(id.clone())),
    };
    match web.caller(&headers)? {
        Caller::Rider(id) => rider = mine(&rider, &id)?,
        Caller::Driver(id) => driver = mine(&driver, &id)?,
        Caller::Service | Caller::Ops => {}
    }
    let after = match asked.cursor {
        None => None,
        Some(text) => Some(from_cursor(&text).ok_or_else(|| {
            Refusal::Bad("cursor: send the `next` of a page received here".into())
        })?),
    };
    let limit = asked.limit.unwrap_or(LIMIT_DEFAULT);
    if !(1..=LIMIT_MAX).contains(&limit) {
        return Err(Refusal::Bad(format!("limit: ask for 1 to {LIMIT_MAX}")));
    }
    let wanted = Wanted {
        rider,
        driver,
        state: asked.state,
        from_ms: asked.from_ms,
        to_ms: asked.to_ms,
        after,
    };
    let mut found = model::find(web.consumer.database.pool(), &wanted, limit + 1).await?;
    let is_more = found.len() as i64 > limit;
    found.truncate(limit as usize);
    let next = found.last().filter(|_| is_more).map(to_cursor);
    Ok(Json(json!({ "orders": found, "next": next })).into_response())
}

fn money(saga: &Saga) -> Value {
    json!({
        "state": saga.state.name(),
        "held_minor": saga.hold_minor,
        "due_minor": saga.due_minor,
        "currency": saga.currency,
        "lines": saga.lines,
        "why": saga.why,
        "waits_for": saga.deadline.map(|(deadline, at)| json!({ "deadline": deadline.name(), "at_ms": at.0 })),
    })
}

/// `GET /v1/orders/{ride}`: one order with its history and its money.
async fn order(
    State(web): State<Web>,
    headers: HeaderMap,
    Path(ride): Path<String>,
) -> Result<Response, Refusal> {
    let caller = web.caller(&headers)?;
    let database = web.consumer.database.pool();
    let mut connection = database.acquire().await?;
    let found = model::load(&mut connection, std::slice::from_ref(&ride)).await?;
    drop(connection);
    let order = found.into_iter().next().ok_or(Refusal::NotFound)?;
    // Somebody else's ride looks like none.
    match &caller {
        Caller::Rider(id) if *id != order.rider => return Err(Refusal::NotFound),
        Caller::Driver(id) if order.driver.as_ref() != Some(id) => return Err(Refusal::NotFound),
        _ => {}
    }
    let history = model::steps(database, &ride).await?;
    let mut answer = serde_json::to_value(&order).map_err(|_| Refusal::Busy)?;
    answer["history"] = json!(history);
    // What a rider pays is not the driver's business.
    if !matches!(caller, Caller::Driver(_)) {
        answer["payment"] = saga_of(database, &ride)
            .await?
            .as_ref()
            .map_or(Value::Null, money);
    }
    Ok(Json(answer).into_response())
}

/// `GET /v1/sagas`: how many are in each state.
async fn sagas(State(web): State<Web>, headers: HeaderMap) -> Result<Response, Refusal> {
    web.insider(&headers)?;
    Ok(Json(json!(saga_counts(web.consumer.database.pool()).await?)).into_response())
}
