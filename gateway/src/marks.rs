//! What the operator's desk decides about drivers: suspensions and block lists; and where they want to go.
//!
//! What is asked for is a state (suspended or not, kept apart or not), so a repeated call is harmless: it answers
//! `already_done`. Each call is a command of its own, or a second suspension would be taken for a copy of the first.

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::response::Response;
use cabrank_events::{Command, DriverId, Place, RiderId};
use serde::Deserialize;

use crate::access::Endpoint;
use crate::desk::Because;
use crate::edge::Edge;
use crate::http::{Shared, ask, body, changed, command_id};
use crate::problem::Problem;
use crate::token::Caller;

/// Who is kept apart from the driver.
#[derive(Deserialize, schemars::JsonSchema)]
pub struct Block {
    rider: RiderId,
}

/// Where the driver wants to go.
#[derive(Deserialize, schemars::JsonSchema)]
pub struct Heading {
    to: Place,
}

type Body = Result<Bytes, BytesRejection>;

/// Who decides, in the words of a command id; nobody but the desk and its systems may.
fn decides(edge: &Edge, headers: &HeaderMap) -> Result<String, Problem> {
    let verified = edge.authorize(Endpoint::MarkDriver, headers)?;
    match &verified.caller {
        Caller::Service(name) => Ok(format!("service/{name}")),
        Caller::Ops(name) => Ok(format!("ops/{name}")),
        Caller::Driver(_) | Caller::Rider(_) => Err(Problem::forbidden(
            "use a token with the role service or ops",
        )),
    }
}

/// An id in a path.
pub fn id<T: std::str::FromStr<Err: std::fmt::Display>>(text: &str) -> Result<T, Problem> {
    text.parse()
        .map_err(|error: T::Err| Problem::bad_request(error.to_string()))
}

async fn decide(edge: &Edge, who: &str, command: Command) -> Result<Response, Problem> {
    let id = command_id(format!("{who}/{}", edge.new_call()))?;
    changed(ask(edge, id, edge.dispatch.now(), command).await?)
}

/// `POST /v1/drivers/{driver}/suspend`
pub async fn suspend(
    State(edge): Shared,
    headers: HeaderMap,
    Path(driver): Path<String>,
    bytes: Body,
) -> Result<Response, Problem> {
    let who = decides(&edge, &headers)?;
    let driver: DriverId = id(&driver)?;
    let Because { reason } = body(&edge, bytes)?;
    decide(&edge, &who, Command::SuspendDriver { driver, reason }).await
}

/// `POST /v1/drivers/{driver}/reinstate`
pub async fn reinstate(
    State(edge): Shared,
    headers: HeaderMap,
    Path(driver): Path<String>,
) -> Result<Response, Problem> {
    let who = decides(&edge, &headers)?;
    let driver: DriverId = id(&driver)?;
    decide(&edge, &who, Command::ReinstateDriver { driver }).await
}

/// `POST /v1/drivers/{driver}/blocks`
pub async fn block(
    State(edge): Shared,
    headers: HeaderMap,
    Path(driver): Path<String>,
    bytes: Body,
) -> Result<Response, Problem> {
    let who = decides(&edge, &headers)?;
    let driver: DriverId = id(&driver)?;
    let Block { rider } = body(&edge, bytes)?;
    decide(&edge, &who, Command::BlockRider { driver, rider }).await
}

/// `PUT /v1/drivers/{driver}/heading`
pub async fn head_for(
    State(edge): Shared,
    headers: HeaderMap,
    Path(driver): Path<String>,
    bytes: Body,
) -> Result<Response, Problem> {
    let who = decides(&edge, &headers)?;
    let driver: DriverId = id(&driver)?;
    let Heading { to } = body(&edge, bytes)?;
    let to = Some(to);
    decide(&edge, &who, Command::SetHeading { driver, to }).await
}

/// `DELETE /v1/drivers/{driver}/heading`
pub async fn head_anywhere(
    State(edge): Shared,
    headers: HeaderMap,
    Path(driver): Path<String>,
) -> Result<Response, Problem> {
    let who = decides(&edge, &headers)?;
    let driver: DriverId = id(&driver)?;
    decide(&edge, &who, Command::SetHeading { driver, to: None }).await
}

/// `DELETE /v1/drivers/{driver}/blocks/{rider}`
pub async fn unblock(
    State(edge): Shared,
    headers: HeaderMap,
    Path((driver, rider)): Path<(String, String)>,
) -> Result<Response, Problem> {
    let who = decides(&edge, &headers)?;
    let (driver, rider) = (id::<DriverId>(&driver)?, id::<RiderId>(&rider)?);
    decide(&edge, &who, Command::UnblockRider { driver, rider }).await
}
