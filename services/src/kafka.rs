//! The services over Apache Kafka: what one says goes to topics, and others hear it from there.
//!
//! - [`create_topics`]: the services' own topics, beside the city's.
//! - [`relay`]: copies the outbox to the topics, in order, each message once: a transaction holds a batch of messages and,
//!   as the offset of a group of the relay's own, the number to go on from. A process that dies in between leaves nothing,
//!   or everything; a second one fences the first.
//! - [`TopicSource`]: reads such a topic, committed messages only, from positions that the reader keeps in its database.
//!
//! Who reads should de-duplicate by the event's `id` all the same: if the brokers have forgotten where a relay was (a group
//! that was silent for longer than `offsets.retention.minutes`), what the outbox still holds is said again.
//!
//! Not here: the ride events, which the log of the city reads (`source::LogSource`).

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use cabrank_eventlog::kafka::KafkaConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, Message as _, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer as _, ThreadedProducer};
use rdkafka::{Offset, TopicPartitionList};
use sqlx::Row;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::consumer::{Consumer, DEAD_LETTERS, RunError};
use crate::source::{
    BATCH_MAX, BATCHES_MAX, Batch, Batches, Positions, Source, SourceError, backoff,
};

/// Topics that only services write, beside `demand-forecasts`, which is the city's.
pub const TOPICS: [&str; 3] = ["order-events", "payment-events", DEAD_LETTERS];
/// Longest a request to the brokers may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a look for news takes before it is seen whether anybody still listens.
const LOOK: Duration = Duration::from_millis(200);
/// What every message carries, as the engine's events do: the value is a whole CloudEvent.
const CLOUD_EVENT: (&str, &str) = (
    "content-type",
    "application/cloudevents+json; charset=UTF-8",
);

/// Why the brokers were of no use.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// They refused or did not answer.
    #[error("the brokers: {0}")]
    Kafka(#[from] KafkaError),
    /// They refused one topic.
    #[error("topic {0}: {1}")]
    Topic(String, RDKafkaErrorCode),
}

/// Makes the services' topics that are missing, and returns their names. As many partitions as the city has shards; kept
/// as long as its events.
pub async fn create_topics(config: &KafkaConfig) -> Result<Vec<String>, BrokerError> {
    let admin: AdminClient<DefaultClientContext> = config.client().create()?;
    let names = TOPICS.map(|topic| format!("{}{topic}", config.prefix));
    let kept = config.events_retention_ms.to_string();
    let topics = names.each_ref().map(|name| {
        let copies = TopicReplication::Fixed(i32::from(config.replication));
        let topic = NewTopic::new(name, i32::from(config.shards), copies)
            .set("cleanup.policy", "delete")
            .set("retention.ms", &kept);
        if config.replication >= 3 {
            topic.set("min.insync.replicas", "2")
        } else {
            topic
        }
    });
    let options = AdminOptions::new()
        .request_timeout(Some(PATIENCE))
        .operation_timeout(Some(PATIENCE));
    let mut made = Vec::new();
    for done in admin.create_topics(&topics, &options).await? {
        match done {
            Ok(name) => made.push(name),
            Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((name, why)) => return Err(BrokerError::Topic(name, why)),
        }
    }
    Ok(made)
}

/// One row of the outbox.
struct Said {
    seq: i64,
    topic: String,
    key: String,
    body: String,
}

/// The way to the topics, for one life of a relay. Every call waits for the brokers.
struct Desk {
    producer: ThreadedProducer<DefaultProducerContext>,
    /// Only names the group in which the relay's place is kept; never joins it.
    place_keeper: BaseConsumer,
    /// The one place that is kept: it exists wherever the city does, and nothing of it is read.
    place: String,
    prefix: String,
}

impl Desk {
    /// Fences whoever relayed for this service before, and says from which number on is not yet told, if the brokers know.
    fn open(config: &KafkaConfig, service: &str) -> Result<(Desk, Option<i64>), KafkaError> {
        let name = format!("{}service-{service}-relay", config.prefix);
        let producer: ThreadedProducer<DefaultProducerContext> = config
            .client()
            .set("acks", "all")
            .set("enable.idempotence", "true")
            .set("transactional.id", &name)
            .set(
                "transaction.timeout.ms",
                config.transaction_timeout_ms.to_string(),
            )
            .set("message.timeout.ms", config.delivery_timeout_ms.to_string())
            // The partition of a key is what every other client library says, too.
            .set("partitioner", "murmur2_random")
            .set("linger.ms", "1")
            .create()?;
        producer.init_transactions(PATIENCE)?;
        let place_keeper: BaseConsumer = config
            .client()
            .set("group.id", &name)
            .set("isolation.level", "read_committed")
            .set("enable.auto.commit", "false")
            .create()?;
        let place = format!("{}{}", config.prefix, TOPICS[0]);
        let mut asked = TopicPartitionList::new();
        asked.add_partition(&place, 0);
        let kept = place_keeper.committed_offsets(asked, PATIENCE)?;
        let next = match kept.find_partition(&place, 0).map(|kept| kept.offset()) {
            Some(Offset::Offset(next)) => Some(next),
            _ => None,
        };
        let prefix = config.prefix.clone();
        Ok((
            Desk {
                producer,
                place_keeper,
                place,
                prefix,
            },
            next,
        ))
    }

    /// Tells all of `said`, or nothing.
    fn tell(&self, said: &[Said]) -> Result<(), KafkaError> {
        let Some(last) = said.last() else {
            return Ok(());
        };
        self.producer.begin_transaction()?;
        for one in said {
            let topic = format!("{}{}", self.prefix, one.topic);
            let value = Some(CLOUD_EVENT.1);
            let header = Header {
                key: CLOUD_EVENT.0,
                value,
            };
            let mut record = BaseRecord::to(&topic).key(&one.key).payload(&one.body);
            // A dead letter wraps what may be anything: it is JSON of ours, no CloudEvent.
            if one.topic != DEAD_LETTERS {
                record = record.headers(OwnedHeaders::new().insert(header));
            }
            self.producer.send(record).map_err(|(why, _)| why)?;
        }
        let mut place = TopicPartitionList::new();
        place.add_partition_offset(&self.place, 0, Offset::Offset(last.seq + 1))?;
        let group = self
            .place_keeper
            .group_metadata()
            .ok_or(KafkaError::Canceled)?;
        // All is acknowledged before the end is asked for: a commit that finds messages under way waits a fixed 100 ms.
        self.producer.flush(PATIENCE)?;
        self.producer
            .send_offsets_to_transaction(&place, &group, PATIENCE)?;
        self.producer.commit_transaction(PATIENCE)
    }
}

/// Copies what `consumer`'s service says to the topics, until `stop`. Ends with an error when another process has taken the
/// service over, or when messages were dropped from the outbox before they were told.
pub async fn relay(
    consumer: &Consumer,
    config: &KafkaConfig,
    stop: &CancellationToken,
) -> Result<(), RunError> {
    let service = consumer.service();
    let mut retries = backoff();
    while !stop.is_cancelled() {
        match relay_once(consumer, config, stop).await {
            Ok(()) => return Ok(()),
            Err(Ended::ForGood(why)) => return Err(why),
            Err(Ended::Brokers { why, has_worked }) => {
                if has_worked {
                    retries = backoff();
                }
                warn!(service, %why, "what is said waits in the outbox: the brokers are asked again");
            }
        }
        // Nobody who was replaced may fence the successor.
        drop(match consumer.begin().await {
            Err(RunError::Database(_)) => None,
            begun => Some(begun?),
        });
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(retries.next().unwrap_or(LOOK)) => {}
        }
    }
    Ok(())
}

enum Ended {
    ForGood(RunError),
    Brokers { why: String, has_worked: bool },
}

impl From<sqlx::Error> for Ended {
    fn from(why: sqlx::Error) -> Ended {
        Ended::Brokers {
            why: why.to_string(),
            has_worked: false,
        }
    }
}

async fn relay_once(
    consumer: &Consumer,
    config: &KafkaConfig,
    stop: &CancellationToken,
) -> Result<(), Ended> {
    let brokers = |why: String| Ended::Brokers {
        why,
        has_worked: false,
    };
    // Whoever may not make topics uses those that an administrator made; without any the first message fails.
    if let Err(why) = create_topics(config).await {
        warn!(%why, "the services' topics were not made here");
    }
    let (service, opened) = (consumer.service(), config.clone());
    let opened = tokio::task::spawn_blocking(move || Desk::open(&opened, service)).await;
    let opened = opened.map_err(|why| brokers(why.to_string()))?;
    let (mut desk, known) = opened.map_err(|why| brokers(why.to_string()))?;
    let mut next = match known {
        Some(next) => next,
        None => first_kept(consumer).await?,
    };
    let mut has_worked = false;
    loop {
        // Registered before looking: what is said meanwhile rings.
        let news = consumer.news.notified();
        let said = outbox(consumer, next).await?;
        let Some(last) = said.last().map(|said| said.seq) else {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = news => {}
                () = tokio::time::sleep(LOOK) => {}
            }
            continue;
        };
        if said[0].seq > next {
            return Err(Ended::ForGood(RunError::Untold {
                from: next,
                first: said[0].seq,
            }));
        }
        let told = tokio::task::spawn_blocking(move || (desk.tell(&said), desk)).await;
        let (outcome, kept) = told.map_err(|why| brokers(why.to_string()))?;
        desk = kept;
        outcome.map_err(|why| Ended::Brokers {
            why: why.to_string(),
            has_worked,
        })?;
        has_worked = true;
        // Relaxed: a number to look at.
        consumer
            .gauges
            .told
            .fetch_add((last + 1 - next) as u64, Ordering::Relaxed);
        // Whoever is stopped tells what was said until then.
        next = last + 1;
    }
}

async fn first_kept(consumer: &Consumer) -> Result<i64, sqlx::Error> {
    let first: Option<i64> = sqlx::query_scalar("SELECT MIN(seq) FROM outbox")
        .fetch_one(consumer.database.pool())
        .await?;
    Ok(first.unwrap_or(1))
}

/// What is to be told from `next` on. A place beyond all that was ever said belongs to another database.
async fn outbox(consumer: &Consumer, next: i64) -> Result<Vec<Said>, Ended> {
    let rows = sqlx::query(
        "SELECT seq, topic, key, body FROM outbox WHERE seq >= $1 ORDER BY seq LIMIT $2",
    )
    .bind(next)
    .bind(BATCH_MAX as i64)
    .fetch_all(consumer.database.pool())
    .await?;
    if rows.is_empty() {
        let last: i64 = sqlx::query_scalar("SELECT value FROM counters WHERE name = 'outbox'")
            .fetch_one(consumer.database.pool())
            .await?;
        if next > last + 1 {
            return Err(Ended::ForGood(RunError::AnotherPast {
                told: next - 1,
                last,
            }));
        }
    }
    let said = |row: &sqlx::any::AnyRow| -> Result<Said, sqlx::Error> {
        Ok(Said {
            seq: row.try_get("seq")?,
            topic: row.try_get("topic")?,
            key: row.try_get("key")?,
            body: row.try_get("body")?,
        })
    };
    Ok(rows.iter().map(said).collect::<Result<_, _>>()?)
}

/// What a service says, from its topic: committed messages, in the order of each partition.
pub struct TopicSource {
    name: String,
    topic: &'static str,
    config: KafkaConfig,
}

impl TopicSource {
    /// Reads `topic` of the city of `config` under the name `name`.
    pub fn new(name: &str, topic: &'static str, config: &KafkaConfig) -> TopicSource {
        TopicSource {
            name: name.to_owned(),
            topic,
            config: config.clone(),
        }
    }
}

impl Source for TopicSource {
    fn name(&self) -> &str {
        &self.name
    }

    fn open(&self, positions: Positions) -> Batches {
        let (give, take) = mpsc::channel(BATCHES_MAX);
        let (topic, config) = (self.topic, self.config.clone());
        // The client library's calls block.
        std::thread::spawn(move || {
            let mut positions = positions;
            let mut retries = backoff();
            while !give.is_closed() {
                match follow(topic, &config, &mut positions, &give) {
                    Ok(()) => return,
                    Err(Lost::ForGood(why)) => {
                        // Nobody listens any more when the receiver is gone.
                        let _ = give.blocking_send(Err(why));
                        return;
                    }
                    Err(Lost::Brokers(why)) => {
                        warn!(topic, %why, "the brokers are asked again");
                        std::thread::park_timeout(retries.next().unwrap_or(LOOK));
                    }
                }
            }
        });
        take
    }
}

enum Lost {
    ForGood(SourceError),
    Brokers(KafkaError),
}

impl From<KafkaError> for Lost {
    fn from(why: KafkaError) -> Lost {
        Lost::Brokers(why)
    }
}

/// Hands batches out until nobody listens. `positions` keeps up, for the next try.
fn follow(
    topic: &str,
    config: &KafkaConfig,
    positions: &mut Positions,
    give: &mpsc::Sender<Result<Batch, SourceError>>,
) -> Result<(), Lost> {
    let name = format!("{}{topic}", config.prefix);
    let consumer: BaseConsumer = config
        .client()
        // Never joined; the client library wants a name to hand out partitions by hand.
        .set("group.id", format!("{}service-readers", config.prefix))
        .set("isolation.level", "read_committed")
        .set("enable.auto.commit", "false")
        .set("auto.offset.reset", "error")
        .set("fetch.wait.max.ms", "250")
        .create()?;
    let found = consumer.fetch_metadata(Some(&name), PATIENCE)?;
    let partitions = found
        .topics()
        .first()
        .map_or(0, |topic| topic.partitions().len());
    if partitions == 0 {
        // It is made by whoever speaks there.
        return Err(Lost::Brokers(KafkaError::MetadataFetch(
            RDKafkaErrorCode::UnknownTopicOrPartition,
        )));
    }
    let place = |partition: i32| format!("{topic}/{partition}");
    let mut at: BTreeMap<i32, i64> = BTreeMap::new();
    let mut assigned = TopicPartitionList::new();
    for partition in 0..partitions as i32 {
        let known: Option<i64> = positions
            .get(&place(partition))
            .and_then(|next| next.parse().ok());
        let from = match known {
            Some(from) => from,
            // Seen for the first time: from the oldest that is kept.
            None => consumer.fetch_watermarks(&name, partition, PATIENCE)?.0,
        };
        at.insert(partition, from);
        assigned.add_partition_offset(&name, partition, Offset::Offset(from))?;
    }
    consumer.assign(&assigned)?;
    loop {
        let mut batch = Batch::default();
        let mut wait = LOOK;
        while batch.messages.len() < BATCH_MAX {
            match consumer.poll(wait) {
                None => break,
                Some(Ok(message)) => {
                    at.insert(message.partition(), message.offset() + 1);
                    batch.after.insert(
                        place(message.partition()),
                        (message.offset() + 1).to_string(),
                    );
                    batch
                        .messages
                        .extend(message.payload().map(Bytes::copy_from_slice));
                    // What came together travels together.
                    wait = Duration::ZERO;
                }
                Some(Err(KafkaError::MessageConsumption(
                    RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange,
                ))) => return Err(Lost::ForGood(SourceError::TooOld(name))),
                // The client library goes on by itself.
                Some(Err(why)) => warn!(topic, %why, "the brokers"),
            }
        }
        if give.is_closed() {
            return Ok(());
        }
        if batch.after.is_empty() {
            continue;
        }
        // Asked once a full batch came: only then can more be waiting that is worth a question.
        if batch.messages.len() >= BATCH_MAX {
            let ends = at.iter().map(|(partition, next)| {
                let end = consumer
                    .fetch_watermarks(&name, *partition, PATIENCE)
                    .map(|(_, end)| end);
                end.unwrap_or(*next).saturating_sub(*next).max(0) as u64
            });
            batch.behind = Some(ends.sum());
        }
        positions.extend(batch.after.clone());
        if give.blocking_send(Ok(batch)).is_err() {
            return Ok(());
        }
    }
}
