//! How a process talks to the brokers: every setting with its meaning, unit, range and reason.
//!
//! Settings that have only one right value (acks, idempotence, isolation, how positions are kept) are not here but in
//! `client`, where they are made.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The most shards of a city.
pub const SHARDS_MAX: u16 = 256;

/// Settings of the log over Kafka. [`KafkaConfig::default`] is right for three brokers and eight shards.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct KafkaConfig {
    /// Brokers to ask first, `host:port`, separated by commas. The others are learned from them.
    pub brokers: String,
    /// Put before every topic's and group's name and every transactional id, so that several cities, or tests, share
    /// the brokers. Letters, digits, `.`, `_`, `-`; at most 100; empty is allowed. A cluster that uses access control
    /// needs a prefix rule for it.
    pub prefix: String,
    /// Shards = partitions of every topic but `shard-owners`. 1 to 256. Chosen when the topics are made; `cabrank reshard` raises it.
    /// Each partition in a transaction costs about 0.8 ms on a small broker: 4 shards answer twice as fast as 16.
    pub shards: u16,
    /// The consumer group of the nodes. It is what gives each shard to one node.
    pub group: String,
    /// Names this node's place in the group for ever (static membership): a second node with the same name takes its
    /// shards at once and fences it, and a short stop moves no shard. Without it (the default) shards of a node that
    /// leaves go to others at once. Never give two living nodes the same name.
    pub instance: Option<String>,
    /// How long a node may be silent before its shards go to others, in ms, 500 to 300,000. Lower = faster takeover
    /// after a kill, higher = no takeover for a short pause. The broker's `group.min.session.timeout.ms` (6,000 unless
    /// it is lowered) is the least it accepts.
    pub session_timeout_ms: u32,
    /// How often a node shows that it lives, in ms. At most a quarter of the session timeout, so that three can be lost,
    /// and so that the lease ends in time (`lease`). It is also how long shards pause when nodes come and go: a node that
    /// has given its shards back waits until the last of the others has heard of it, with its next heartbeat.
    pub heartbeat_ms: u32,
    /// How long a node may take between two polls before its shards go to others, in ms, from the session timeout to
    /// 300,000. It is the backstop for a node that hangs; a rebalance waits no longer than this for anyone.
    pub max_poll_ms: u32,
    /// After how long the broker aborts a transaction nobody ends, in ms, 1,000 to 900,000 (the broker's
    /// `transaction.max.timeout.ms`). Only the backstop: a successor fences and does not wait for it.
    pub transaction_timeout_ms: u32,
    /// How long a record may wait for its acknowledgement, in ms. At most the transaction timeout; and at most what a
    /// gateway gives a rider's request, or a command is carried out after its rider was told to retry (PROTOCOL 12).
    pub delivery_timeout_ms: u32,
    /// How long a submitted command waits for others to travel with, in ms, 0 to 100. Each is added to every answer.
    pub linger_ms: u32,
    /// Commands that may wait for acknowledgement, 1 to 1,000,000. When full, [`crate::SubmitError::Full`].
    pub queue_max: u32,
    /// Bytes that may wait for acknowledgement, in KiB, 2,048 to 2,097,151.
    pub queue_kib_max: u32,
    /// Copies of every partition, when topics are made and checked. 3 survives a broker; 1 is for a laptop.
    pub replication: u16,
    /// How long commands are kept, in ms; at least 1 hour. Unread commands older than this are lost, and a node refuses
    /// to start on such a log: it must be longer than the longest outage.
    pub commands_retention_ms: u64,
    /// How long events are kept, in ms; at least 1 hour. Consumers that were away for longer have missed some.
    pub events_retention_ms: u64,
    /// How long accepted pings, partners' pings and forecasts are kept, in ms; at least 1 minute. They warm an index.
    pub pings_retention_ms: u64,
    /// How the connection is secured.
    pub security: Security,
}

/// Encryption and identity towards the brokers. Everything but plaintext needs the cargo feature `kafka-tls`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Security {
    /// Which of the four.
    pub protocol: SecurityProtocol,
    /// The authorities that sign brokers' certificates, PEM. The system's if absent.
    pub ca_file: Option<PathBuf>,
    /// This process's certificate, PEM, for brokers that ask for one.
    pub certificate_file: Option<PathBuf>,
    /// Its key, PEM.
    pub key_file: Option<PathBuf>,
    /// `SCRAM-SHA-512`, `SCRAM-SHA-256` or `PLAIN`.
    pub sasl_mechanism: Option<String>,
    /// SASL user.
    pub username: Option<String>,
    /// A file that holds the SASL password: a file, so that it appears in no list of settings.
    pub password_file: Option<PathBuf>,
}

/// Kafka's four ways of talking.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SecurityProtocol {
    /// No encryption, no identity.
    #[default]
    Plaintext,
    /// Encrypted; identity by certificate, if the broker asks.
    Ssl,
    /// Identity by password, not encrypted: for closed networks.
    SaslPlaintext,
    /// Encrypted, identity by password.
    SaslSsl,
}

impl SecurityProtocol {
    pub(super) const fn name(self) -> &'static str {
        match self {
            SecurityProtocol::Plaintext => "plaintext",
            SecurityProtocol::Ssl => "ssl",
            SecurityProtocol::SaslPlaintext => "sasl_plaintext",
            SecurityProtocol::SaslSsl => "sasl_ssl",
        }
    }
}

impl Default for KafkaConfig {
    fn default() -> Self {
        const DAY_MS: u64 = 24 * 3_600_000;
        KafkaConfig {
            brokers: "127.0.0.1:9092".into(),
            prefix: String::new(),
            shards: 8,
            group: "cabrank-matcher".into(),
            instance: None,
            session_timeout_ms: 6_000,
            heartbeat_ms: 250,
            max_poll_ms: 10_000,
            transaction_timeout_ms: 10_000,
            delivery_timeout_ms: 5_000,
            linger_ms: 0,
            queue_max: 20_000,
            queue_kib_max: 64 * 1_024,
            replication: 3,
            commands_retention_ms: 7 * DAY_MS,
            events_retention_ms: 7 * DAY_MS,
            pings_retention_ms: 3_600_000,
            security: Security::default(),
        }
    }
}

/// A setting that cannot work, with its value and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("kafka.{key} = {value}: {remedy}")]
pub struct BadSetting {
    /// Which.
    pub key: &'static str,
    /// What it says.
    pub value: String,
    /// What it should say.
    pub remedy: String,
}

impl KafkaConfig {
    /// The first setting that cannot work, if any.
    pub fn check(&self) -> Result<(), BadSetting> {
        let bad = |key, value: &dyn std::fmt::Display, remedy: &str| {
            Err(BadSetting {
                key,
                value: value.to_string(),
                remedy: remedy.to_owned(),
            })
        };
        let plain = |text: &str| {
            text.len() <= 100
                && text
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
        };
        if self.brokers.trim().is_empty() {
            return bad("brokers", &self.brokers, "name at least one host:port");
        }
        if !plain(&self.prefix) {
            return bad(
                "prefix",
                &self.prefix,
                "letters, digits, '.', '_', '-', at most 100",
            );
        }
        if self.group.is_empty() || !plain(&self.group) {
            return bad(
                "group",
                &self.group,
                "letters, digits, '.', '_', '-', 1 to 100",
            );
        }
        if !(1..=SHARDS_MAX).contains(&self.shards) {
            return bad("shards", &self.shards, "1 to 256");
        }
        if !(500..=300_000).contains(&self.session_timeout_ms) {
            return bad(
                "session_timeout_ms",
                &self.session_timeout_ms,
                "500 to 300000",
            );
        }
        if self.heartbeat_ms == 0 || self.heartbeat_ms > self.session_timeout_ms / 4 {
            return bad(
                "heartbeat_ms",
                &self.heartbeat_ms,
                "1 to a quarter of session_timeout_ms",
            );
        }
        if !(self.session_timeout_ms..=300_000).contains(&self.max_poll_ms) {
            return bad(
                "max_poll_ms",
                &self.max_poll_ms,
                "session_timeout_ms to 300000",
            );
        }
        if !(1_000..=900_000).contains(&self.transaction_timeout_ms) {
            return bad(
                "transaction_timeout_ms",
                &self.transaction_timeout_ms,
                "1000 to 900000",
            );
        }
        if !(100..=self.transaction_timeout_ms).contains(&self.delivery_timeout_ms) {
            return bad(
                "delivery_timeout_ms",
                &self.delivery_timeout_ms,
                "100 to transaction_timeout_ms",
            );
        }
        if self.linger_ms > 100 {
            return bad("linger_ms", &self.linger_ms, "0 to 100");
        }
        if !(1..=1_000_000).contains(&self.queue_max) {
            return bad("queue_max", &self.queue_max, "1 to 1000000");
        }
        if !(2_048..=2_097_151).contains(&self.queue_kib_max) {
            return bad("queue_kib_max", &self.queue_kib_max, "2048 to 2097151");
        }
        if self.replication == 0 {
            return bad(
                "replication",
                &self.replication,
                "1 to the brokers there are",
            );
        }
        for (key, value, least) in [
            (
                "commands_retention_ms",
                self.commands_retention_ms,
                3_600_000,
            ),
            ("events_retention_ms", self.events_retention_ms, 3_600_000),
            ("pings_retention_ms", self.pings_retention_ms, 60_000),
        ] {
            if value < least || i64::try_from(value).is_err() {
                return bad(key, &value, &format!("at least {least}"));
            }
        }
        if self.security.protocol != SecurityProtocol::Plaintext && !cfg!(feature = "kafka-tls") {
            return bad(
                "security.protocol",
                &self.security.protocol.name(),
                "this program was built without the feature kafka-tls: build it with it, or use plaintext",
            );
        }
        self.security.check()
    }
}

impl Security {
    /// What could only fail later, with words of somebody else.
    fn check(&self) -> Result<(), BadSetting> {
        let bad = |key, value: String, remedy: &str| {
            Err(BadSetting {
                key,
                value,
                remedy: remedy.to_owned(),
            })
        };
        for (key, file) in [
            ("security.ca_file", &self.ca_file),
            ("security.certificate_file", &self.certificate_file),
            ("security.key_file", &self.key_file),
            ("security.password_file", &self.password_file),
        ] {
            if let Some(file) = file
                && let Err(why) = std::fs::read(file)
            {
                let remedy = format!("it cannot be read: {why}");
                return bad(key, file.display().to_string(), &remedy);
            }
        }
        use SecurityProtocol as P;
        if !matches!(self.protocol, P::SaslPlaintext | P::SaslSsl) {
            return Ok(());
        }
        let mechanism = self.sasl_mechanism.as_deref().unwrap_or_default();
        if !["SCRAM-SHA-512", "SCRAM-SHA-256", "PLAIN"].contains(&mechanism) {
            let known = "SCRAM-SHA-512, SCRAM-SHA-256 or PLAIN";
            return bad("security.sasl_mechanism", mechanism.to_owned(), known);
        }
        if self.username.is_none() || self.password_file.is_none() {
            return bad(
                "security.protocol",
                self.protocol.name().to_owned(),
                "it needs security.username and security.password_file",
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_password_needs_is_named_before_a_broker_is_asked() {
        let mut security = Security {
            protocol: SecurityProtocol::SaslSsl,
            ..Security::default()
        };
        let why = |security: &Security| security.check().unwrap_err().to_string();
        assert!(why(&security).contains("SCRAM-SHA-512"));
        security.sasl_mechanism = Some("GSSAPI".into());
        assert!(why(&security).contains("SCRAM-SHA-512"));
        security.sasl_mechanism = Some("PLAIN".into());
        assert!(why(&security).contains("security.password_file"));
        security.username = Some("cabrank".into());
        security.password_file = Some("/nowhere/password".into());
        assert!(why(&security).contains("/nowhere/password"));
    }
}
