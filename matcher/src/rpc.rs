//! How gateways and nodes speak: gRPC, `proto/node.v1.proto`.
//!
//! - [`serve`]: a node answers gateways.
//! - `link`: a gateway's way to one node: pings, questions, reconnection.

mod link;
mod server;

pub use server::serve;

pub(crate) use link::{LinkConfig, NodeLink};

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
