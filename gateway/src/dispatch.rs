//! How rounds choose, read and changed by the desk while the city works.
//!
//! A change is a command in the log like any other: acknowledged when it is durable, followed by every node from its next
//! round on, kept over restarts. What is asked for is a state, so a repeated call is harmless.

use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use cabrank_engine::DispatchRules;
use cabrank_events::{Command, Reason};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::access::Endpoint;
use crate::http::{Shared, ask_because, body, changed, command_id, json_of};
use crate::problem::Problem;
use crate::token::Caller;

/// Room made for the answer.
const RULES_BYTES: usize = 2_048;

/// Answer of `GET /v1/dispatch`.
#[derive(Serialize, schemars::JsonSchema)]
pub struct Rules {
    /// The number of the market's newest event: settings, and nodes asked to leave.
    seq: u64,
    /// What was set, over the configuration; empty: all is as configured.
    settings: Value,
    /// Since when, domain ms.
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<i64>,
    /// The whole, over the configuration of the process that answers.
    rules: DispatchRules,
}

/// Body of `PUT /v1/dispatch`.
#[derive(Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SetRules {
    /// Takes the place of what was set before; what it leaves out is as configured. Some of `policy`, `swaps`, `prices` and
    /// `pace`, written as in the configuration.
    settings: Value,
    /// Why, one line, 1 to 200 bytes.
    reason: Reason,
}

/// `GET /v1/dispatch`
pub async fn read(State(edge): Shared, headers: HeaderMap) -> Result<Response, Problem> {
    edge.authorize(Endpoint::Dispatch, &headers)?;
    let market = edge.dispatch.market();
    let rules = Rules {
        seq: market.seq,
        settings: market.settings,
        since: market.since.map(|since| since.0),
        rules: market.rules,
    };
    Ok(json_of(StatusCode::OK, &rules, RULES_BYTES))
}

/// `PUT /v1/dispatch`
pub async fn set(
    State(edge): Shared,
    headers: HeaderMap,
    bytes: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let verified = edge.authorize(Endpoint::Dispatch, &headers)?;
    let Caller::Ops(who) = &verified.caller else {
        return Err(Problem::forbidden("use a token with the role ops"));
    };
    let SetRules { settings, reason } = body(&edge, bytes)?;
    // The engine decides; asked before, it can say what is wrong.
    if let Err(why) = edge.dispatch.market().configured.with(&settings) {
        let title = "These settings are none";
        return Err(Problem::new(422, "bad_settings", title, why.to_string()));
    }
    let id = command_id(format!("ops/{who}/{}", edge.new_call()))?;
    let command = Command::SetDispatch { settings };
    changed(ask_because(&edge, id, edge.dispatch.now(), command, Some(reason)).await?)
}
