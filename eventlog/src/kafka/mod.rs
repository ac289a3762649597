//! The log over Apache Kafka: many nodes, one owner for each shard.

mod client;
mod config;
mod inbox;
mod names;
#[cfg(feature = "kafka-testing")]
pub mod testing;
pub mod topics;

pub use config::{BadSetting, KafkaConfig, Security, SecurityProtocol};
