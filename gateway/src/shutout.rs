//! The operator's desk shuts a person out: the calls behind `revoke`.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use cabrank_events::Reason;
use serde::{Deserialize, Serialize};

use crate::access::Endpoint;
use crate::edge::Edge;
use crate::http::{Shared, body, json};
use crate::problem::Problem;
use crate::revoke::{Entry, NotTaken};
use crate::token::{Caller, Role, now_s};

/// Whose tokens are void, and why.
#[derive(Deserialize, schemars::JsonSchema)]
pub struct Revoke {
    role: Role,
    /// The person's id.
    subject: String,
    /// One line, 1 to 200 bytes.
    reason: Reason,
}

/// What a revocation answers.
#[derive(Serialize, schemars::JsonSchema)]
pub struct Revoked {
    /// Tokens issued until then are void, seconds since the Unix epoch; 0 when the revocation was lifted.
    until_s: u64,
}

fn keep(edge: Arc<Edge>, entry: Entry) -> Result<(), NotTaken> {
    edge.revocations
        .add(&entry, |caller| edge.end_sessions(caller))
}

/// Revocations are no commands of the engine, which knows no tokens: their record is their own file.
async fn revoked(
    edge: Arc<Edge>,
    who: &Caller,
    entry: Entry,
    until_s: u64,
) -> Result<Response, Problem> {
    tracing::info!(
        by = who.role().name(),
        lifted = until_s == 0,
        "a revocation"
    );
    let kept = tokio::task::spawn_blocking(move || keep(edge, entry)).await;
    match kept {
        Ok(Ok(())) => Ok(json(StatusCode::OK, &Revoked { until_s })),
        Ok(Err(NotTaken::Full)) => Err(Problem::busy(
            "as many people are shut out as there is room for: lift revocations whose tokens are over",
        )),
        Ok(Err(NotTaken::File(_))) | Err(_) => Err(Problem::busy(
            "the revocation could not be written to gateway.keys.revocations_file: mend that, then repeat the request",
        )),
    }
}

fn named(role: Role, subject: &str) -> Result<Caller, Problem> {
    Caller::new(role, subject).map_err(|error| Problem::bad_request(error.to_string()))
}

/// `POST /v1/revocations`: no token the person has is believed any more, and their sessions end.
pub async fn revoke(
    State(edge): Shared,
    headers: HeaderMap,
    bytes: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let who = edge.authorize(Endpoint::Revoke, &headers)?.caller;
    let Revoke {
        role,
        subject,
        reason,
    } = body(&edge, bytes)?;
    let (person, until_s) = (named(role, &subject)?, now_s());
    let entry = Entry::new(
        &person,
        until_s,
        format!("ops/{}", who.subject()),
        Some(reason),
    );
    revoked(edge, &who, entry, until_s).await
}

/// `DELETE /v1/revocations/{role}/{subject}`: the person's tokens are believed again as long as they last.
pub async fn lift_revocation(
    State(edge): Shared,
    headers: HeaderMap,
    Path((role, subject)): Path<(String, String)>,
) -> Result<Response, Problem> {
    let who = edge.authorize(Endpoint::Revoke, &headers)?.caller;
    let role: Role = role
        .parse()
        .map_err(|why: String| Problem::bad_request(why))?;
    let person = named(role, &subject)?;
    let entry = Entry::new(&person, 0, format!("ops/{}", who.subject()), None);
    revoked(edge, &who, entry, 0).await
}
