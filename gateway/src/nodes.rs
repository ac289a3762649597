//! Which nodes serve the city, and how one of them is asked to leave.
//!
//! A drain is a command in the log, with who and why; the node that is named reads it there and goes as after SIGTERM: it hands its
//! shards over, and what is open goes on with the others. Nothing here reaches into a process, so a gateway that dies in the middle
//! changes nothing. A city in one process has nobody to hand over to: it is stopped by whoever started it.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use cabrank_events::{Command, NodeName};
use cabrank_matcher::api::NodeSeen;
use serde::Serialize;

use crate::access::Endpoint;
use crate::desk::Because;
use crate::edge::Edge;
use crate::http::{Shared, ask_because, body, changed, command_id, json};
use crate::marks::id;
use crate::problem::Problem;
use crate::token::Caller;

/// A node of the city.
#[derive(Serialize, schemars::JsonSchema)]
pub struct NodeState {
    node: String,
    /// Where it answers gateways.
    address: String,
    /// Its shards; none while it stands by.
    shards: Vec<u16>,
}

/// Answer of `GET /v1/nodes`.
#[derive(Serialize, schemars::JsonSchema)]
pub struct Nodes {
    /// By name, as far as the gateway that answers knows.
    nodes: Vec<NodeState>,
    /// The city is one process and has no nodes that could leave.
    one_process: bool,
}

/// All nodes; `None`: this process is the whole city.
async fn seen(edge: &Arc<Edge>) -> Result<Option<Vec<NodeSeen>>, Problem> {
    let edge = edge.clone();
    let asked = tokio::task::spawn_blocking(move || edge.dispatch.nodes()).await;
    asked.map_err(|_| Problem::busy("the nodes could not be listed: ask again"))
}

/// `GET /v1/nodes`
pub async fn list(State(edge): Shared, headers: HeaderMap) -> Result<Response, Problem> {
    edge.authorize(Endpoint::Desk, &headers)?;
    let seen = seen(&edge).await?;
    let one_process = seen.is_none();
    let nodes = seen.unwrap_or_default().into_iter();
    let nodes = nodes.map(|seen| NodeState {
        node: seen.name,
        address: seen.address,
        shards: seen.shards,
    });
    let nodes = nodes.collect();
    Ok(json(StatusCode::OK, &Nodes { nodes, one_process }))
}

/// `POST /v1/nodes/{node}/drain`
pub async fn drain(
    State(edge): Shared,
    headers: HeaderMap,
    Path(node): Path<String>,
    bytes: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let verified = edge.authorize(Endpoint::Desk, &headers)?;
    let Caller::Ops(who) = &verified.caller else {
        return Err(Problem::forbidden("use a token with the role ops"));
    };
    let node: NodeName = id(&node)?;
    let Because { reason } = body(&edge, bytes)?;
    let Some(nodes) = seen(&edge).await? else {
        let detail = "this city is one process, which has nobody to hand its shards to: end it with SIGTERM, and it \
             drains; open rides go on when it starts again";
        let title = "No node can leave";
        return Err(Problem::new(409, "one_process", title, detail));
    };
    if !nodes.iter().any(|seen| seen.name == node.as_str()) {
        let detail = "no node has this name: see GET /v1/nodes";
        return Err(Problem::new(404, "unknown_node", "No such node", detail));
    }
    if nodes.len() == 1 {
        let detail = "nobody would take its shards over: start another node first, and ask again when it serves shards";
        return Err(Problem::new(409, "last_node", "The only node", detail));
    }
    let id = command_id(format!("ops/{who}/{}", edge.new_call()))?;
    let command = Command::DrainNode { node };
    changed(ask_because(&edge, id, edge.dispatch.now(), command, Some(reason)).await?)
}
