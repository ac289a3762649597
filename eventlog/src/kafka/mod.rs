//! The log over Apache Kafka: many nodes, one owner for each shard.
//!
//! - [`KafkaLog`] is the log for gateways, tails and tools; [`KafkaLog::own`] makes a node's [`KafkaOwner`].
//! - `topics` makes the topics and checks them; [`KafkaConfig`] is every setting with its reason.
//!
//! How it is safe: `owner` (assignment, lease, clock), `owner/transaction` (the order inside a commit), `takeover`
//! (fencing). What is stored: `stored`. What the brokers say comes in through `inbox`.

mod client;
mod config;
mod inbox;
mod lease;
mod log;
mod names;
mod owner;
mod producing;
mod reader;
mod stored;
mod tail;
mod takeover;
#[cfg(feature = "kafka-testing")]
pub mod testing;
pub mod topics;

pub use config::{BadSetting, KafkaConfig, Security, SecurityProtocol};
pub use log::{KafkaLog, KafkaOpenError, SubmitCounts};
pub use owner::{AtMoment, KafkaOwner, Moment, Sabotage};
