//! A ride leads elsewhere: `PUT /v1/rides/{ride}/destination`.
//!
//! From the request to the end, by the ride's own rider, a service or the desk. Each wish has an `Idempotency-Key`: a copy that
//! comes late, after a newer wish, changes nothing. The new destination may lie anywhere on Earth, as the first one may:
//! zones say only where rides begin. Not here: what it does to the ride (`engine`), who hears of it (`news`).

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::response::Response;
use cabrank_events::{Command, Place, Reason};
use serde::Deserialize;

use crate::access::Endpoint;
use crate::http::{Shared, ask_because, body, changed, command_id, idempotency_key, ride_id};
use crate::problem::Problem;
use crate::token::Caller;

/// Where the rider wants to be brought instead.
#[derive(Deserialize, schemars::JsonSchema)]
pub struct Destination {
    to: Place,
    /// Why the desk wants it; not read from riders.
    #[serde(default)]
    reason: Option<Reason>,
}

/// `PUT /v1/rides/{ride}/destination`
pub async fn change(
    State(edge): Shared,
    headers: HeaderMap,
    Path(ride): Path<String>,
    bytes: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let verified = edge.authorize(Endpoint::ChangeDestination, &headers)?;
    let ride = ride_id(&ride)?;
    let key = idempotency_key(&headers)?;
    let (who, rider) = match &verified.caller {
        Caller::Rider(rider) => {
            edge.count_request(rider)?;
            let known = edge.dispatch.ride(ride);
            if known.is_some_and(|known| known.rider != *rider) {
                return Err(Problem::unknown_ride());
            }
            (format!("rider/{rider}"), Some(rider.clone()))
        }
        Caller::Service(name) => (format!("service/{name}"), None),
        Caller::Ops(name) => (format!("ops/{name}"), None),
        Caller::Driver(_) => {
            return Err(Problem::forbidden("a driver goes where the rider wants"));
        }
    };
    let Destination { to, reason } = body(&edge, bytes)?;
    let reason = reason.filter(|_| rider.is_none());
    // With the place, so that a key that is used again by mistake does not answer for what was never done.
    let place = format!("{}:{}", to.0.lat_e7(), to.0.lon_e7());
    let id = command_id(format!("{who}/t/{ride}/{key}:{place}"))?;
    let command = Command::ChangeDestination { ride, to, rider };
    changed(ask_because(&edge, id, edge.dispatch.now(), command, reason).await?)
}
