//! The dispatch core: riders, drivers, rides, claims, offers, rounds.
//!
//! **The engine never reads a clock, a random source or the environment**: time and the results of rounds are inputs,
//! so the same inputs in the same order give the same outputs on any machine. State = fold of events.
//!
//! - [`shard`]: the state machines of one shard and every handler.
//! - [`fold`]: the same entities, for whoever only listens to events.
//! - [`host`]: the shards of one node; which messages hop and which go through the log.
//! - [`matching`]: policies that choose pairs in a round.
//! - [`market`]: how rounds choose, as configured and as an operator has changed it.
//! - [`queues`]: who is next at an airport.
//! - [`film`]: what it all looked like, drawn from the events.
//! - [`ingest`]: which pings are believed.
//! - [`travel`]: how long a drive takes.

#![forbid(unsafe_code)]

pub mod config;
pub mod driver;
pub mod film;
pub mod fold;
pub mod host;
pub mod ingest;
pub mod market;
pub mod matching;
pub mod queues;
pub mod recent;
pub mod ride;
pub mod rider;
pub mod sabotage;
pub mod shard;
#[cfg(test)]
mod sim;
#[cfg(test)]
mod stories;
pub mod travel;

pub use config::{BadSetting, EngineConfig};
pub use host::{Batch, Host};
pub use market::{DispatchRules, Market};
pub use shard::{Counters, EntityState, Growing, Message, Shard};
