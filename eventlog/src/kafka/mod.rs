//! The log over Apache Kafka: many nodes, one owner for each shard.
//!
//! - [`KafkaLog`] is the log for gateways, tails and tools; [`KafkaLog::own`] makes a node's [`KafkaOwner`].
//! - `topics` makes the topics and checks them; [`KafkaConfig`] is every setting with its reason.
//!
//! What a cluster must be: Apache Kafka 3.3 or later (tested with 4.3.1); `group.min.session.timeout.ms` at most the
//! configured session timeout; `transaction.max.timeout.ms` at least the transaction time-out; topics as `topics` makes
//! them. To survive a broker: three of them, replication 3, `min.insync.replicas=2`, and the same for the brokers' own
//! topics (`offsets.topic.replication.factor`, `transaction.state.log.replication.factor` 3,
//! `transaction.state.log.min.isr` 2). [`KafkaLog::open`] checks what it can see and refuses with the remedy. With access
//! control a node needs Read, Write and Describe on the prefixed topics, Read on the prefixed groups, and Write and
//! Describe on the prefixed transactional ids; and Read on `__transaction_state`, without which transactions that a
//! broker has lost (`hanging`) are left to an operator.
//!
//! What anybody may read: events in `ride-events` and `person-events`, key = entity, value = a CloudEvent as JSON, header
//! `content-type: application/cloudevents+json`; read committed. Offsets have gaps where transactions ended. A record
//! without a value means nothing (`hanging`).
//!
//! How it is safe: `owner` (assignment, lease, clock), `owner/transaction` (the order inside a commit), `takeover`
//! (fencing), `hanging` (what the brokers lost), `standstill` (what keeps readers waiting where nobody takes over). What is stored: `stored`. What the brokers say comes in through `inbox`.

mod client;
mod config;
mod hanging;
mod images;
#[expect(
    unsafe_code,
    reason = "rdkafka has no safe way to a queue's events: at which offset an end was seen (PROTOCOL 15), in which life of the group (24)"
)]
mod inbox;
mod lease;
mod log;
mod members;
mod names;
mod owner;
mod polled;
mod producing;
mod reader;
mod standstill;
mod stored;
mod tail;
mod takeover;
#[cfg(feature = "kafka-testing")]
pub mod testing;
pub mod topics;

pub use config::{BadSetting, KafkaConfig, SHARDS_MAX, Security, SecurityProtocol};
pub use log::{KafkaLog, KafkaOpenError, SubmitCounts};
pub use owner::{AtMoment, KafkaOwner, Moment, Sabotage};
