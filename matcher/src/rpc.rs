//! How gateways and nodes speak: gRPC, `proto/node.v1.proto`.
//!
//! - [`serve`]: a node answers gateways.
//! - `link`: a gateway's way to one node: pings, questions, reconnection.
//! - [`connect`]: somebody who asks a node now and then.
//!
//! In plain text, or under mutual TLS ([`crate::tls`]): then nobody is answered who does not show a certificate.

mod link;
mod server;

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status};

use crate::tls::{ClusterTls, Connector};
use crate::versions;
use v1::node_client::NodeClient;

pub use server::serve;

pub(crate) use link::{LinkConfig, NodeLink};

/// A node that does not take a connection for so long is tried again.
pub(crate) const CONNECT: Duration = Duration::from_millis(500);

/// The generated messages, client and server.
#[allow(
    missing_docs,
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated code; the messages are described in the .proto file"
)]
pub mod v1 {
    tonic::include_proto!("cabrank.node.v1");
}

/// A channel to the node at `address` that connects when it is first needed.
pub(crate) fn channel(endpoint: Endpoint, address: &str, tls: Option<&Arc<ClusterTls>>) -> Channel {
    match tls {
        None => endpoint.connect_timeout(CONNECT).connect_lazy(),
        // It counts what takes too long.
        Some(tls) => endpoint.connect_with_connector_lazy(Connector::new(address, tls)),
    }
}

fn endpoint(address: &str) -> Result<Endpoint, tonic::transport::Error> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?;
    Ok(endpoint
        .user_agent(versions::user_agent())?
        .tcp_nodelay(true))
}

/// Connects to the node at `address`.
pub async fn connect(
    address: &str,
    tls: Option<&Arc<ClusterTls>>,
) -> Result<NodeClient<Channel>, tonic::transport::Error> {
    let endpoint = endpoint(address)?;
    let channel = match tls {
        None => endpoint.connect().await?,
        Some(tls) => {
            let connector = Connector::new(address, tls);
            endpoint.connect_with_connector(connector).await?
        }
    };
    Ok(NodeClient::new(channel))
}

/// As [`connect`], but connects when it is first needed, and again.
pub fn connect_lazy(
    address: &str,
    tls: Option<&Arc<ClusterTls>>,
) -> Result<NodeClient<Channel>, tonic::transport::Error> {
    let endpoint = endpoint(address)?;
    Ok(NodeClient::new(channel(endpoint, address, tls)))
}

/// Asks a node, and once more when its connection ended in order before the node had begun with the question: a connection
/// has an age (`cluster.tls.connection_age_max_ms`), and a question may be on its way just then.
pub(crate) async fn ask<A, F>(question: impl Fn() -> F) -> Result<A, Status>
where
    F: Future<Output = Result<Response<A>, Status>>,
{
    let answer = match question().await {
        Err(why) if is_not_begun(&why) => question().await,
        answer => answer,
    };
    answer.map(Response::into_inner)
}

/// GOAWAY without an error: what is not answered has not been begun with (RFC 9113, section 6.8).
fn is_not_begun(status: &Status) -> bool {
    let mut cause = status.source();
    while let Some(why) = cause {
        if let Some(why) = why.downcast_ref::<h2::Error>() {
            let in_order = why.reason() == Some(h2::Reason::NO_ERROR);
            return why.is_go_away() && why.is_remote() && in_order;
        }
        cause = why.source();
    }
    false
}

/// An error and what caused it, in one line: the library's own words for the first are "transport error".
pub fn in_words(why: &dyn Error) -> String {
    let mut words = why.to_string();
    let mut cause = why.source();
    while let Some(next) = cause {
        let text = next.to_string();
        if !words.ends_with(&text) {
            words += ": ";
            words += &text;
        }
        cause = next.source();
    }
    words
}
