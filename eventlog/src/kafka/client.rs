//! How clients are made: the settings that have only one right value, each with its reason.

use rdkafka::ClientConfig;

use super::config::{KafkaConfig, SecurityProtocol};
use super::members;

/// Longest a request may take before it counts as failed, in ms; also the longest a read waits for a broker.
pub(super) const REQUEST_MS: u32 = 5_000;
/// How long a broker holds a fetch that finds nothing, in ms. Records end the wait at once, so it decides only how soon
/// the end of a partition is noticed and how many empty answers a second an idle client gets.
const FETCH_WAIT_MS: &str = "100";
/// The same for one who follows partitions: an end means nothing to it. New partitions wait for the fetch under way.
const FOLLOW_FETCH_WAIT_MS: &str = "250";
/// The same for a reader of a range: it fetches only while somebody waits for the range's end.
const RANGE_FETCH_WAIT_MS: &str = "2";
/// Largest batch the brokers take, in bytes: a record of [`crate::RECORD_MAX_BYTES`] and what goes around it.
pub(super) const MESSAGE_MAX_BYTES: &str = "2097152";
/// How often a client asks what partitions its topics have, in ms: how soon nodes hear of new ones.
const METADATA_MS: &str = "2000";
/// Records a consumer fetches ahead.
const FETCH_AHEAD: &str = "20000";

fn base(config: &KafkaConfig) -> ClientConfig {
    let mut client = ClientConfig::new();
    client
        .set("bootstrap.servers", &config.brokers)
        .set("client.id", format!("{}cabrank", config.prefix))
        // A broker that listens on 127.0.0.1 only must not be looked for at ::1 first.
        .set("broker.address.family", "v4")
        .set("socket.nagle.disable", "true")
        .set("socket.timeout.ms", REQUEST_MS.to_string())
        // A broker that comes back is to be found again within a second.
        .set("reconnect.backoff.ms", "50")
        .set("reconnect.backoff.max.ms", "500")
        .set("retry.backoff.ms", "20")
        // When there are more partitions than before, every client is to know it soon.
        .set("topic.metadata.refresh.interval.ms", METADATA_MS)
        .set("log.connection.close", "false")
        .set("message.max.bytes", MESSAGE_MAX_BYTES);
    if config.security.protocol != SecurityProtocol::Plaintext {
        secure(&mut client, config);
    }
    client
}

fn secure(client: &mut ClientConfig, config: &KafkaConfig) {
    let security = &config.security;
    client.set("security.protocol", security.protocol.name());
    for (key, file) in [
        ("ssl.ca.location", &security.ca_file),
        ("ssl.certificate.location", &security.certificate_file),
        ("ssl.key.location", &security.key_file),
    ] {
        if let Some(file) = file {
            client.set(key, file.display().to_string());
        }
    }
    if let Some(mechanism) = &security.sasl_mechanism {
        client.set("sasl.mechanism", mechanism);
    }
    if let Some(user) = &security.username {
        client.set("sasl.username", user);
    }
    // That the file can be read was checked; one that has gone since gives no password, and the broker says so.
    if let Some(file) = &security.password_file
        && let Ok(password) = std::fs::read_to_string(file)
    {
        client.set("sasl.password", password.trim_end());
    }
}

impl KafkaConfig {
    /// What all clients of these brokers have in common, for programs that use them beside the log: where they are, how
    /// the connection is secured, how soon they are found again.
    #[must_use]
    pub fn client(&self) -> ClientConfig {
        base(self)
    }
}

/// For asking about topics and making them.
pub(super) fn admin(config: &KafkaConfig) -> ClientConfig {
    base(config)
}

fn consumer(config: &KafkaConfig) -> ClientConfig {
    let mut client = base(config);
    client
        // Positions are in the headers and in transactions: a consumer commits nothing by itself and is never told
        // where to begin by anybody else (PROTOCOL 27).
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("auto.offset.reset", "error")
        .set("enable.partition.eof", "true")
        .set("check.crcs", "true")
        .set("fetch.wait.max.ms", FETCH_WAIT_MS)
        .set("fetch.error.backoff.ms", "50")
        // The queue is one fetch deep behind this many records; a fetch is bounded in bytes.
        .set("queued.min.messages", FETCH_AHEAD)
        .set("queued.max.messages.kbytes", "16384")
        .set("fetch.message.max.bytes", "4194304");
    client
}

/// Which records a reader is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Isolation {
    /// Those of committed transactions, up to the last stable offset.
    Committed,
    /// All that were written: only to find who wrote what nobody has committed yet.
    Everything,
}

/// For reading a range, and then nothing.
pub(super) fn range_reader(config: &KafkaConfig, isolation: Isolation) -> ClientConfig {
    let mut client = reader(config, isolation);
    client.set("fetch.wait.max.ms", RANGE_FETCH_WAIT_MS);
    client
}

/// For reading without being in a group.
pub(super) fn reader(config: &KafkaConfig, isolation: Isolation) -> ClientConfig {
    let mut client = consumer(config);
    client
        .set("fetch.wait.max.ms", FOLLOW_FETCH_WAIT_MS)
        // Never joined; the client library wants a name to hand out partitions by hand.
        .set("group.id", format!("{}cabrank-readers", config.prefix))
        .set(
            "isolation.level",
            match isolation {
                Isolation::Committed => "read_committed",
                Isolation::Everything => "read_uncommitted",
            },
        );
    client
}

/// The group of the nodes.
pub(super) fn group(config: &KafkaConfig) -> String {
    format!("{}{}", config.prefix, config.group)
}

/// For a node: as [`member`], and the group's list says who and where it is, also while it owns nothing, and that it follows a city
/// that gets more shards.
pub(super) fn named_member(config: &KafkaConfig, node: &str, address: &str) -> ClientConfig {
    let mut client = member(config);
    client.set("client.id", members::client_id(node, address));
    client
}

/// For a node: member of the group, reader of commands.
pub(super) fn member(config: &KafkaConfig) -> ClientConfig {
    let mut client = consumer(config);
    client
        .set("group.id", group(config))
        .set("isolation.level", "read_committed")
        // Eager: every change of the group takes all shards back and gives them out anew, in one round. It pauses
        // least (0.2 s), and an assignment is one life of the memory built from it (PROTOCOL 24).
        .set("partition.assignment.strategy", "range")
        .set("session.timeout.ms", config.session_timeout_ms.to_string())
        .set("heartbeat.interval.ms", config.heartbeat_ms.to_string())
        .set("max.poll.interval.ms", config.max_poll_ms.to_string());
    if let Some(instance) = &config.instance {
        client.set("group.instance.id", instance);
    }
    client
}

fn producer(config: &KafkaConfig) -> ClientConfig {
    let mut client = base(config);
    client
        // Acknowledged = on every replica in sync; and a retry is never stored twice or out of order.
        .set("acks", "all")
        .set("enable.idempotence", "true")
        .set("message.timeout.ms", config.delivery_timeout_ms.to_string());
    client
}

/// For submitting commands.
pub(super) fn submitter(config: &KafkaConfig) -> ClientConfig {
    let mut client = producer(config);
    client
        .set("linger.ms", config.linger_ms.to_string())
        .set("queue.buffering.max.messages", config.queue_max.to_string())
        .set(
            "queue.buffering.max.kbytes",
            config.queue_kib_max.to_string(),
        );
    client
}

/// For transactions under this id.
pub(super) fn transactional(config: &KafkaConfig, id: &str) -> ClientConfig {
    let mut client = producer(config);
    client
        .set("transactional.id", id)
        .set(
            "transaction.timeout.ms",
            config.transaction_timeout_ms.to_string(),
        )
        // A transaction is handed over whole and then waited for: there is nobody else to travel with.
        .set("linger.ms", "0")
        .set("queue.buffering.max.messages", "1000000")
        .set("queue.buffering.max.kbytes", "1048576");
    client
}

/// For records that may be lost.
pub(super) fn losable(config: &KafkaConfig) -> ClientConfig {
    let mut client = base(config);
    client
        .set("acks", "1")
        .set("message.timeout.ms", "2000")
        .set("linger.ms", "20")
        .set("compression.type", "zstd")
        .set("queue.buffering.max.messages", "20000")
        .set("queue.buffering.max.kbytes", "16384");
    client
}
