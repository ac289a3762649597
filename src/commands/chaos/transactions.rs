//! In which moment of a transaction was a node hit? The brokers know: a transaction nobody has ended holds the stable end
//! of its partitions below their end, and its offsets make the group's committed offsets unstable.

use std::time::Duration;

use cabrank_eventlog::Topic;
use cabrank_eventlog::kafka::KafkaConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{ClientConfig, TopicPartitionList};
use serde::Serialize;

use crate::AnyError;

/// Longest wait for a broker's answer.
const ANSWER: Duration = Duration::from_secs(1);
/// Offsets that are not stable by then belong to a transaction that nobody ends.
const UNSTABLE: Duration = Duration::from_millis(250);

/// Where a node was when it was hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Moment {
    /// Nothing was open.
    Between,
    /// A transaction is open; the group was not asked yet.
    Open,
    /// A transaction is open and its offsets are sent: only the commit was missing.
    OffsetsSent,
}

/// Asks the brokers.
pub struct Look {
    stable: BaseConsumer,
    all: BaseConsumer,
    group: BaseConsumer,
    prefix: String,
}

impl Look {
    /// Looks at a city's partitions.
    pub fn new(kafka: &KafkaConfig) -> Result<Look, AnyError> {
        let client = |group: &str, isolation: &str| -> Result<BaseConsumer, AnyError> {
            Ok(ClientConfig::new()
                .set("bootstrap.servers", &kafka.brokers)
                .set("broker.address.family", "v4")
                .set("group.id", format!("{}{group}", kafka.prefix))
                .set("isolation.level", isolation)
                .set("enable.auto.commit", "false")
                .set("log_level", "0")
                .create()?)
        };
        Ok(Look {
            stable: client("chaos", "read_committed")?,
            all: client("chaos", "read_uncommitted")?,
            // Asks what the nodes' group has committed; it never joins.
            group: client(&kafka.group, "read_committed")?,
            prefix: kafka.prefix.clone(),
        })
    }

    fn name(&self, topic: Topic) -> String {
        format!("{}{topic}", self.prefix)
    }

    /// What the owner of `shards`, which does nothing any more, left behind. Blocks.
    pub fn moment(&self, shards: &[u16]) -> Result<Moment, AnyError> {
        let states = self.name(Topic::ShardState);
        let mut is_open = false;
        for shard in shards {
            // Only a shard's owner writes its states, so what is open there is the owner's.
            let end = |client: &BaseConsumer| {
                client
                    .fetch_watermarks(&states, i32::from(*shard), ANSWER)
                    .map(|(_, end)| end)
            };
            is_open |= end(&self.stable)? < end(&self.all)?;
        }
        if !is_open {
            return Ok(Moment::Between);
        }
        let commands = self.name(Topic::RideCommands);
        let mut offsets = TopicPartitionList::new();
        for shard in shards {
            offsets.add_partition(&commands, i32::from(*shard));
        }
        // The client library asks again until they are stable; so the time-out is the answer.
        let is_unstable = self.group.committed_offsets(offsets, UNSTABLE).is_err();
        Ok(if is_unstable {
            Moment::OffsetsSent
        } else {
            Moment::Open
        })
    }
}
