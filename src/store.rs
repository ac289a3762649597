//! Reading a log to its end: a stopped server's store, or a city over Kafka.

use std::path::Path;

use cabrank_eventlog::kafka::{self, KafkaConfig, KafkaLog, KafkaOpenError};
use cabrank_eventlog::{EmbeddedLog, EventLog, READ_MAX, Topic};
use cabrank_events::command::GrowthStep;
use cabrank_matcher::market_in;

use crate::{AnyError, Common};

// Else a ring could begin to grow to shards that the log cannot have, and neither finish nor go back.
const _: () = assert!(cabrank_ring::SHARDS_MAX == kafka::SHARDS_MAX);

/// Opens the store in `dir` for reading. A directory without one is an error, not a new store.
pub fn open(dir: &Path) -> Result<EmbeddedLog, AnyError> {
    if !dir.join("cabrank.redb").is_file() {
        return Err(format!("{} holds no log: check --data-dir", dir.display()).into());
    }
    Ok(EmbeddedLog::open_read_only(dir)?)
}

/// The log of a city over Kafka; prefix and shards are the configuration's.
pub fn over_kafka(common: &Common, brokers: &str) -> Result<KafkaLog, AnyError> {
    let settings = common.settings(|settings| brokers.clone_into(&mut settings.kafka.brokers))?;
    Ok(kafka(settings.kafka)?)
}

/// The log over Kafka of a city that may have grown (`reshard`): more partitions than configured are right if the log says so.
pub fn kafka(config: KafkaConfig) -> Result<KafkaLog, KafkaOpenError> {
    KafkaLog::open_grown(config, |stored| {
        let (growth, step) = market_in(stored)?.ring?;
        Some(match step {
            GrowthStep::Announced => growth.from..=growth.to,
            GrowthStep::Begun | GrowthStep::Settled => growth.to..=growth.to,
        })
    })
}

/// Calls `each` with (shard, offset, value) of every record of `topic` from `from(shard)` on.
pub fn read_all(
    log: &dyn EventLog,
    topic: Topic,
    from: impl Fn(u16) -> Option<u64>,
    mut each: impl FnMut(u16, u64, &[u8]),
) -> Result<(), AnyError> {
    for shard in 0..log.shards() {
        let first = log.bounds(topic, shard)?.first;
        let mut next = from(shard).unwrap_or(first).max(first);
        loop {
            let records = log.read(topic, shard, next, READ_MAX)?;
            let Some(last) = records.last() else { break };
            next = last.offset + 1;
            records
                .iter()
                .for_each(|record| each(shard, record.offset, &record.value));
        }
    }
    Ok(())
}
