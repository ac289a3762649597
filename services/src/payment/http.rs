//! The payment service's calls: what became of a ride's money, and giving it back.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::json;

use super::{ProviderGauges, load, refund};
use crate::web::{Caller, Refusal, Web};

/// The calls of the payment service.
pub fn routes(gauges: Arc<ProviderGauges>) -> Router<Web> {
    Router::new()
        .route("/v1/payments/{ride}", get(payment))
        .route("/v1/payments/{ride}/refund", post(give_back))
        .route(
            "/metrics/provider",
            get(move || async move { gauges.to_prometheus() }),
        )
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
    Ok(Json(json!({ "refunding_minor": minor })).into_response())
}
