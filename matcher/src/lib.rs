//! A node: hosts shards, feeds the index, runs rounds, commits.
//!
//! - [`api`]: what a gateway may ask; [`Node`] is the in-process answer to it.
//! - `node`: the commit loop: read commands, let the engine decide, one transaction, next.
//! - `rounds`: candidates from the index, solved beside the commit loop.
//! - [`Remote`]: the answer from a gateway process of its own: log, follower, links to nodes.
//! - [`rpc`]: how gateways and nodes speak.
//! - `follower`: what others have committed, folded from events.
//! - `roads`: driving times from a road network, asked beside the commit loop.
//! - `people`: which driver has which slot of the index, and who is silent.
//! - `hints`: what rounds like to know of drivers besides where they are.
//! - `views`: what was last committed, for reads.
//! - `history`: the commands and events that made an entity what it is.
//! - `rings`: where things live while the number of shards grows.
//! - `reach`: which waiting rides a car that comes free could serve.
//! - [`tls`]: who is believed between gateways and nodes.
//! - [`versions`]: which releases can work beside each other.
//! - [`clock`]: domain time.
//! - [`heart`]: do the loops still go round?
//!
//! It decides nothing: choices are the engine's, order and durability the log's.

#![forbid(unsafe_code)]

pub mod api;
pub mod clock;
pub mod config;
mod cursor;
mod elsewhere;
mod follower;
pub mod heart;
mod hints;
mod history;
mod node;
mod people;
mod reach;
mod remote;
mod rings;
mod roads;
mod rounds;
mod route;
pub mod rpc;
pub mod tls;
pub mod versions;
mod views;

pub use config::NodeConfig;
pub use node::{Failure, Measured, Node, Parts, Stopped};

pub use remote::{Remote, RemoteConfig, RemoteParts};
pub use rings::market_in;
pub use roads::RoadsConfig;
