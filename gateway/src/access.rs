//! Who may call what?
//!
//! The table of `docs/protocol.md`, "Sessions and tokens", as one exhaustive function, and where the token and the
//! rider's name stand in a request.

use axum::http::{HeaderMap, header};
use cabrank_events::RiderId;

use crate::edge::Edge;
use crate::problem::Problem;
use crate::socket::{Codec, JSON_PROTOCOL, PROTO_PROTOCOL};
use crate::token::{BadToken, Caller, Role, TokenVerifier, Verified};

/// What can be called with a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// `GET /v1/driver`
    DriverSocket,
    /// `GET /v1/rider`
    RiderSocket,
    /// `POST /v1/rides`
    OpenRide,
    /// `GET /v1/rides/{id}`
    ReadRide,
    /// `POST /v1/rides/{id}/cancel`
    CancelRide,
    /// `PUT /v1/rides/{id}/destination`
    ChangeDestination,
    /// `POST /v1/cancel`
    CancelByKey,
    /// `POST /v1/revocations`, `DELETE /v1/revocations/{role}/{id}`
    Revoke,
    /// `GET /v1/nearby`
    Nearby,
    /// `POST /v1/quote`
    Quote,
    /// `GET /v1/zones`
    Zones,
    /// `GET /v1/events`
    Events,
    /// `PUT` and `DELETE /v1/drivers/{id}/heading`;
    /// `POST /v1/drivers/{id}/suspend`, `.../reinstate`, `.../blocks`, `DELETE /v1/drivers/{id}/blocks/{rider}`
    MarkDriver,
    /// `GET /v1/dispatch`, `PUT /v1/dispatch`
    Dispatch,
    /// `GET /v1/log-level`, `PUT /v1/log-level`
    LogLevel,
    /// The map and the desk: `GET /v1/map`, states and histories of people, rides and the market, `POST /v1/rides/{id}/redispatch`,
    /// `GET /v1/nodes`, `POST /v1/nodes/{node}/drain`
    Desk,
}

impl Endpoint {
    /// May `role` call it at all? Whose rides it may touch is decided where the ride is known.
    pub fn allows(self, role: Role) -> bool {
        use Role::*;
        match self {
            Self::DriverSocket => matches!(role, Driver),
            Self::RiderSocket => matches!(role, Rider),
            Self::OpenRide | Self::CancelRide | Self::ChangeDestination | Self::CancelByKey => {
                matches!(role, Rider | Service | Ops)
            }
            Self::ReadRide | Self::Zones => matches!(role, Driver | Rider | Service | Ops),
            Self::Nearby | Self::Quote => matches!(role, Rider | Service | Ops),
            Self::Revoke => matches!(role, Ops),
            Self::Events | Self::MarkDriver => matches!(role, Service | Ops),
            Self::Desk | Self::Dispatch | Self::LogLevel => matches!(role, Ops),
        }
    }
}

/// Begins the subprotocol item that carries a token, for browsers, which cannot set headers on sockets.
const BEARER_ITEM: &str = "bearer.";
/// Names the rider a service or an operator speaks for.
const RIDER_HEADER: &str = "x-rider";

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// All items of all `Sec-WebSocket-Protocol` headers.
fn protocol_items(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let values = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).into_iter();
    let lists = values.map(|value| value.to_str().unwrap_or("?"));
    lists
        .flat_map(|list| list.split(','))
        .map(str::trim)
        .filter(|item| !item.is_empty())
}

/// The subprotocol to speak and its name to answer with; 400 when only others are offered.
pub fn choose_protocol(headers: &HeaderMap) -> Result<(Codec, Option<&'static str>), Problem> {
    let mut is_asked = false;
    for item in protocol_items(headers).filter(|item| !item.starts_with(BEARER_ITEM)) {
        is_asked = true;
        match item {
            JSON_PROTOCOL => return Ok((Codec::Json, Some(JSON_PROTOCOL))),
            PROTO_PROTOCOL => return Ok((Codec::Proto, Some(PROTO_PROTOCOL))),
            _ => {}
        }
    }
    if is_asked {
        let detail =
            format!("offer the subprotocol {JSON_PROTOCOL} or {PROTO_PROTOCOL}, or none for JSON");
        return Err(Problem::new(
            400,
            "wrong_subprotocol",
            "No subprotocol in common",
            detail,
        ));
    }
    Ok((Codec::Json, None))
}

/// The token in the header.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = text(headers, header::AUTHORIZATION.as_str())?;
    value
        .strip_prefix("Bearer ")
        .or(value.strip_prefix("bearer "))
}

/// Whose token this is.
fn believed(verifier: &TokenVerifier, token: Option<&str>) -> Result<Verified, Problem> {
    let token = token.ok_or_else(|| {
        Problem::unauthorized(
            "send the header Authorization: Bearer <token>; a token in the URL is not read",
        )
    })?;
    verifier.verify(token.trim()).map_err(|bad| match bad {
        BadToken::KeysNotHere => {
            let detail = bad.to_string();
            Problem::new(503, "keys_not_here", "Tokens cannot be checked", detail).retry_after(1)
        }
        BadToken::Over | BadToken::NotValid(_) => Problem::unauthorized(bad.to_string()),
    })
}

/// May who has this role call `endpoint`?
fn allowed(endpoint: Endpoint, role: Role) -> Result<(), Problem> {
    if endpoint.allows(role) {
        return Ok(());
    }
    let allowed = Role::ALL.into_iter().filter(|role| endpoint.allows(*role));
    let allowed: Vec<&str> = allowed.map(Role::name).collect();
    Err(Problem::forbidden(format!(
        "a token with the role {} may not call this: use one with the role {}",
        role.name(),
        allowed.join(" or "),
    )))
}

/// Who calls `endpoint` of a process without a gateway, which knows of no revocations, and may they?
pub fn admitted(
    verifier: &TokenVerifier,
    endpoint: Endpoint,
    headers: &HeaderMap,
) -> Result<Verified, Problem> {
    let verified = believed(verifier, bearer(headers))?;
    allowed(endpoint, verified.caller.role())?;
    Ok(verified)
}

impl Edge {
    /// Who calls `endpoint`, and may they?
    pub fn authorize(&self, endpoint: Endpoint, headers: &HeaderMap) -> Result<Verified, Problem> {
        let is_socket = matches!(endpoint, Endpoint::DriverSocket | Endpoint::RiderSocket);
        let from_item = || {
            let mut items = protocol_items(headers).filter(|_| is_socket);
            items.find_map(|item| item.strip_prefix(BEARER_ITEM))
        };
        let verified = believed(&self.verifier, bearer(headers).or_else(from_item))?;
        if self.revocations.covers(&verified) {
            let why = "an operator has ended this person's sessions: log in again for a new token";
            return Err(Problem::unauthorized(why));
        }
        allowed(endpoint, verified.caller.role())?;
        Ok(verified)
    }
}

/// The rider a call is for: a rider itself, or whom a service or an operator names in `X-Rider`.
pub fn rider_for(caller: &Caller, headers: &HeaderMap) -> Result<RiderId, Problem> {
    let named = text(headers, RIDER_HEADER).map(RiderId::new).transpose();
    let named = named.map_err(|error| Problem::bad_request(format!("X-Rider: {error}")))?;
    match (caller, named) {
        (Caller::Rider(rider), None) => Ok(rider.clone()),
        (Caller::Rider(rider), Some(named)) if named == *rider => Ok(named),
        (Caller::Rider(_), Some(_)) => Err(Problem::forbidden(
            "a rider speaks only for itself: leave X-Rider out",
        )),
        (Caller::Service(_) | Caller::Ops(_), Some(named)) => Ok(named),
        (Caller::Service(_) | Caller::Ops(_), None) => {
            Err(Problem::bad_request("name the rider in the header X-Rider"))
        }
        (Caller::Driver(_), _) => Err(Problem::forbidden("a driver asks for no rides")),
    }
}
