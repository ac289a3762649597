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
use cabrank_events::business::ReceiptLine;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::model::{self, Order, Step, Wanted};
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

/// Which orders.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Asked {
    /// Of this rider.
    rider: Option<String>,
    /// Of this driver.
    driver: Option<String>,
    /// In this state.
    state: Option<String>,
    /// Requested at or after this, ms since the Unix epoch.
    from_ms: Option<i64>,
    /// Requested before this, ms since the Unix epoch.
    to_ms: Option<i64>,
    /// Orders of a page, 1 to 500; 50 unless asked otherwise.
    limit: Option<i64>,
    /// The `next` of a page, for the one after it.
    cursor: Option<String>,
}

/// A page of orders, newest first.
#[derive(Serialize, JsonSchema)]
pub struct Page {
    orders: Vec<Order>,
    /// The cursor of the next page; none: this was the last.
    next: Option<String>,
}

/// What a ride's money waits for.
#[derive(Serialize, JsonSchema)]
pub struct WaitsFor {
    /// `authorise_by`, `ride_by`, `cancel_by`, `settle_by`.
    deadline: &'static str,
    /// When it is over, ms since the Unix epoch.
    at_ms: i64,
}

/// The money of one ride.
#[derive(Serialize, JsonSchema)]
pub struct Money {
    /// `open`, `cancelling`, `capturing`, `voiding`; ends: `captured`, `voided`, `refused`, `unpaid`.
    state: &'static str,
    /// The most the ride can cost, in the currency's minor unit.
    held_minor: i64,
    /// What is to be paid, once known.
    due_minor: i64,
    /// ISO 4217.
    currency: String,
    /// How that sum came about.
    lines: Vec<ReceiptLine>,
    /// Why there is no money, in words for the rider.
    why: Option<String>,
    /// What is waited for.
    waits_for: Option<WaitsFor>,
}

/// One order with its steps and its money.
#[derive(Serialize, JsonSchema)]
pub struct OneOrder {
    #[serde(flatten)]
    order: Order,
    /// What happened, in order.
    history: Vec<Step>,
    /// Not told to drivers.
    #[serde(skip_serializing_if = "Option::is_none")]
    payment: Option<Money>,
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
    let orders = found;
    Ok(Json(Page { orders, next }).into_response())
}

fn money(saga: Saga) -> Money {
    Money {
        state: saga.state.name(),
        held_minor: saga.hold_minor,
        due_minor: saga.due_minor,
        currency: saga.currency,
        lines: saga.lines,
        why: saga.why,
        waits_for: saga.deadline.map(|(deadline, at)| WaitsFor {
            deadline: deadline.name(),
            at_ms: at.0,
        }),
    }
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
    // What a rider pays is not the driver's business.
    let payment = match caller {
        Caller::Driver(_) => None,
        _ => saga_of(database, &ride).await?.map(money),
    };
    let answer = OneOrder {
        order,
        history,
        payment,
    };
    Ok(Json(answer).into_response())
}

/// `GET /v1/sagas`: how many are in each state.
async fn sagas(State(web): State<Web>, headers: HeaderMap) -> Result<Response, Refusal> {
    web.insider(&headers)?;
    Ok(Json(json!(saga_counts(web.consumer.database.pool()).await?)).into_response())
}
