//! Every HTTP error: a status, a machine-readable name, and what to do about it (RFC 9457).

use std::fmt::Display;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use cabrank_events::command::RefusedBecause;
use cabrank_events::wire;
use cabrank_matcher::api::NotAnswered;

/// An HTTP error with its remedy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    status: StatusCode,
    name: &'static str,
    title: &'static str,
    detail: String,
    retry_after_s: Option<u32>,
}

impl Problem {
    /// A problem the caller can mend as `detail` says.
    pub fn new(
        status: u16,
        name: &'static str,
        title: &'static str,
        detail: impl Into<String>,
    ) -> Self {
        Self {
            status: StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
            name,
            title,
            detail: detail.into(),
            retry_after_s: None,
        }
    }

    /// The same, with the header `Retry-After`.
    pub fn retry_after(self, seconds: u32) -> Self {
        Self {
            retry_after_s: Some(seconds),
            ..self
        }
    }

    /// Nobody is known to be calling.
    pub fn unauthorized(why: impl Into<String>) -> Self {
        Self::new(401, "unauthorized", "No valid token", why)
    }

    /// The caller may not.
    pub fn forbidden(why: impl Into<String>) -> Self {
        Self::new(403, "forbidden", "Not allowed for this role", why)
    }

    /// The request does not make sense.
    pub fn bad_request(why: impl Into<String>) -> Self {
        Self::new(400, "bad_request", "The request is malformed", why)
    }

    /// The body does not make sense.
    pub fn bad_body(why: impl Display) -> Self {
        let detail = format!("{why}: send the JSON that docs/protocol.md shows");
        Self::new(422, "bad_body", "The body is malformed", detail)
    }

    /// No such ride, or somebody else's: the two are not told apart.
    pub fn unknown_ride() -> Self {
        let detail = "check the id; you see only your own rides, and rides that ended long ago are forgotten";
        Self::new(404, "unknown_ride", "No such ride", detail)
    }

    /// Nothing was done; there is no room at the moment.
    pub fn busy(detail: &'static str) -> Self {
        Self::new(503, "busy", "No room at the moment", detail).retry_after(1)
    }

    /// This gateway takes nothing more.
    pub fn going_down() -> Self {
        let detail = "connect again: another gateway, or this one when it is back, will answer";
        Self::new(503, "going_down", "This gateway goes down", detail).retry_after(1)
    }

    /// It may or may not happen yet.
    pub fn unknown_outcome() -> Self {
        let detail = "the outcome is not known yet: repeat the same request (with the same key), it cannot happen twice";
        Self::new(503, "unknown", "Outcome unknown", detail).retry_after(1)
    }

    /// More calls than allowed.
    pub fn too_many_requests(retry_after_s: u32) -> Self {
        let detail = format!(
            "the limit is per rider and minute: repeat the same request after {retry_after_s} seconds"
        );
        Self::new(429, "too_many_requests", "Too many requests", detail).retry_after(retry_after_s)
    }
}

impl Problem {
    /// More sockets than a person may open.
    pub fn too_many_sockets(retry_after_s: u32) -> Self {
        let detail = format!(
            "this person opens sockets too often: keep one, and connect again after {retry_after_s} seconds"
        );
        Self::new(429, "too_many_sockets", "Too many sockets", detail).retry_after(retry_after_s)
    }

    /// More than may come from one address.
    pub fn busy_address(retry_after_s: u32) -> Self {
        let detail = format!(
            "too much comes from this address: repeat the same request after {retry_after_s} seconds"
        );
        Self::new(429, "busy_address", "Too much from one address", detail)
            .retry_after(retry_after_s)
    }
}

impl From<NotAnswered> for Problem {
    fn from(why: NotAnswered) -> Self {
        let name = match why {
            NotAnswered::NoOwner => "no_owner",
            NotAnswered::NodeSilent => "node_silent",
        };
        Self::new(503, name, "No answer at the moment", why.to_string()).retry_after(1)
    }
}

impl From<RefusedBecause> for Problem {
    fn from(why: RefusedBecause) -> Self {
        use RefusedBecause::*;
        // A refusal that the rider's shard remembers with its key is repeated for it: the remedy is a new key then.
        let (status, name, title, detail) = match why {
            AlreadyRiding => (
                409,
                "already_riding",
                "One ride at a time",
                "end or cancel the open ride, then ask with a new Idempotency-Key",
            ),
            KeyReused => (
                422,
                "key_reused",
                "The key was used for another request",
                "use a new Idempotency-Key for a new wish",
            ),
            OutOfArea => (
                422,
                "out_of_area",
                "Outside of the service area",
                "no rides begin there: ask with a pickup inside of a service_area of GET /v1/zones and a new Idempotency-Key",
            ),
            TooManyKeys => (
                429,
                "too_many_keys",
                "Too many requests are remembered",
                "wait until the oldest keys expire, then retry with the same key",
            ),
            TooOld => (
                410,
                "too_old",
                "The request is too old",
                "ask again with a new Idempotency-Key and issued_at",
            ),
            ShardFull => (
                503,
                "shard_full",
                "Too many open rides here",
                "nothing was opened: ask with a new Idempotency-Key after Retry-After seconds",
            ),
            CancelledBefore => (
                410,
                "cancelled_before",
                "This wish was taken back",
                "ask again with a new Idempotency-Key",
            ),
            UnknownRide | NotYours => return Self::unknown_ride(),
            Lapsed => (
                409,
                "lapsed",
                "The offer is over",
                "wait for the next offer",
            ),
            Ended => (
                409,
                "ended",
                "The ride has ended",
                "nothing is left to do for this ride",
            ),
            AlreadyStarted => (
                409,
                "already_started",
                "The ride has begun",
                "a ride can be called off only before it begins",
            ),
            NotStarted => (
                409,
                "not_started",
                "The ride has not begun",
                "report the start first",
            ),
            NotAccepted => (
                409,
                "not_accepted",
                "The offer is not accepted",
                "accept the offer first",
            ),
            AlreadyAccepted => (
                409,
                "already_accepted",
                "The offer is accepted already",
                "give the ride back with cancel instead",
            ),
            OldSession => (
                409,
                "old_session",
                "A newer session exists",
                "go on with the newest session",
            ),
            NotOnline => (
                409,
                "not_online",
                "The driver is not online",
                "go online first",
            ),
            Suspended => (
                409,
                "suspended",
                "The driver is suspended",
                "the operator must reinstate the driver first",
            ),
            TooManyBlocks => (
                409,
                "too_many_blocks",
                "The driver's block list is full",
                "unblock a rider first: DELETE /v1/drivers/{id}/blocks/{rider}",
            ),
            TooManyMarked => (
                503,
                "too_many_marked",
                "Too many suspensions and block lists here",
                "reinstate or unblock others, or raise engine.marked_drivers_max",
            ),
            BadSettings => (
                422,
                "bad_settings",
                "These settings are none",
                "give some of policy, swaps, prices and pace, written as in the configuration",
            ),
            HasRide => (
                409,
                "has_ride",
                "A ride holds the driver",
                "nobody with a ride or an offer waits in a queue: try again when it is over",
            ),
            QueueFull => (
                503,
                "queue_full",
                "The airport's queue is full",
                "try again later, or raise engine.queues.drivers_max",
            ),
            InTransfer => (
                409,
                "in_transfer",
                "The car is being exchanged with another ride",
                "repeat the report: many wait for the same answer",
            ),
        };
        let problem = Self::new(status, name, title, detail);
        match why {
            TooManyKeys => problem.retry_after(60),
            ShardFull | TooManyMarked | QueueFull => problem.retry_after(5),
            _ => problem,
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        metrics::counter!("cabrank_http_problems_total", "name" => self.name).increment(1);
        let body = wire::Problem {
            kind: format!("urn:cabrank:problem:{}", self.name),
            title: self.title.into(),
            status: self.status.as_u16(),
            detail: self.detail,
        };
        let json = serde_json::to_vec(&body).unwrap_or_default();
        let content_type = [(header::CONTENT_TYPE, "application/problem+json")];
        let mut response = (self.status, content_type, json).into_response();
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after_s {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}
