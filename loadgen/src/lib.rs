//! Clients and judges: phones that drive a server over its sockets, and the audit of what it wrote.
//!
//! - [`demo`]: a synthetic city. [`replay`]: a recorded day. Both speak HTTP and WebSocket to a server's URL, like
//!   everybody else, and end in a [`report`].
//! - [`load`]: the load generator. [`kafka_probe`]: the floor of what Kafka allows.
//! - [`audit`]: are the invariants kept? Knows nothing of the engine.
//! - [`trace`]: recorded data. [`tail`]: events for a person to read.
//! - [`client`]: the phones. [`cabbie`]: what a driver does. [`city`]: where people want to go.
//!
//! Not here: the server, its store, the command line (the root binary).

#![forbid(unsafe_code)]

pub mod audit;
pub mod cabbie;
pub mod city;
pub mod client;
pub mod demo;
pub mod kafka_probe;
pub mod load;
mod probe;
pub mod replay;
pub mod report;
pub mod run;
mod show;
pub mod sse;
pub mod tail;
pub mod trace;
