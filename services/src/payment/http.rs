//! The payment service's calls: what became of a ride's money, and giving it back.

use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use schemars::JsonSchema;
use serde::Serialize;

use super::{load, refund};
use crate::web::{Caller, Refusal, Web};

/// The calls of the payment service.
pub fn routes() -> Router<Web> {
    Router::new()
        .route("/v1/payments/{ride}", get(payment))
        .route("/v1/payments/{ride}/refund", post(give_back))
        // A part of `/metrics`, for whoever asked here when it was not yet there: a call that was released stays.
        .route("/metrics/provider", get(provider_metrics))
}

/// A refund is under way.
#[derive(Serialize, JsonSchema)]
pub struct Refunding {
    /// How much is given back, in the currency's minor unit.
    refunding_minor: i64,
}

async fn provider_metrics(State(web): State<Web>) -> String {
    web.own_metrics()
}

async fn payment(
    State(web): State<Web>,
    headers: HeaderMap,
    Path(ride): Path<String>,
) -> Result<Response, Refusal> {
    web.insider(&headers)?;
    let mut connection = web.consumer.database.pool().acquire().await?;
    let found = load(&mut connection, &ride)
        .await?
        .ok_or(Refusal::NotFound)?;
    Ok(Json(found).into_response())
}

async fn give_back(
    State(web): State<Web>,
    headers: HeaderMap,
    Path(ride): Path<String>,
) -> Result<Response, Refusal> {
    if web.caller(&headers)? != Caller::Ops {
        return Err(Refusal::Forbidden);
    }
    let minor = refund(&web.consumer, &ride)
        .await
        .map_err(|_| Refusal::Busy)?;
    let minor =
        minor.ok_or_else(|| Refusal::Bad("nothing of this ride can be given back".into()))?;
    let answer = Refunding {
        refunding_minor: minor,
    };
    Ok(Json(answer).into_response())
}
