//! The log as gateways, tails and tools use it, over Kafka.

use std::collections::BTreeMap;
use std::ops::{ControlFlow, RangeInclusive};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerGroupMetadata};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::Producer;

use super::client::{self, Isolation};
use super::config::{BadSetting, KafkaConfig};
use super::images::Images;
use super::inbox::{Words, membership};
use super::members::{self, Member};
use super::names::Names;
use super::owner::KafkaOwner;
use super::polled::Polled;
use super::producing::{self, Deliveries, Outward};
use super::reader::{LOOK, Reader};
use super::stored::{Announcement, EVENTS, ShardImage};
use super::tail::KafkaTail;
use super::topics::{self, Problem, TopicsError, partitions};
use crate::{
    Bounds, EventLog, EventTail, LogError, OwnerRecord, READ_MAX, RECORD_MAX_BYTES, ReadError,
    Record, Recovered, SubmitError, Topic,
};

/// After a command could not be delivered, one in this time is let through to see whether it can be again.
const PROBE_EVERY: Duration = Duration::from_millis(500);
/// Between two questions whether something was committed.
const COMMIT_LOOK: Duration = Duration::from_millis(20);
/// Longest wait of one call.
const WAIT_MAX: Duration = Duration::from_secs(3_600);

/// Why the log was not opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KafkaOpenError {
    /// A setting of ours, no broker, or a broker that refuses.
    #[error(transparent)]
    Topics(#[from] TopicsError),
    /// The topics are not as they must be. The text names each and what to do.
    #[error("{}", list(.0))]
    NotAsTheyMustBe(Vec<Problem>),
    /// The client library refused its settings.
    #[error("the Kafka client could not be made: {0}")]
    Client(String),
}

impl From<BadSetting> for KafkaOpenError {
    fn from(why: BadSetting) -> Self {
        KafkaOpenError::Topics(why.into())
    }
}

fn list(problems: &[Problem]) -> String {
    let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
    lines.join("\n")
}

/// What `shard-owners` said up to some offset.
#[derive(Clone, Debug, Default)]
struct Announced {
    read_to: u64,
    owners: BTreeMap<u16, OwnerRecord>,
}

pub(super) struct Shared {
    pub config: KafkaConfig,
    /// Partitions of the topics, as last seen.
    shards: AtomicU16,
    pub names: Names,
    pub reader: Reader,
    pub images: Images,
    /// Gateways ask for the owners five times a second: they are told what they knew and what is new.
    announced: Mutex<Announced>,
    submitter: Polled,
    probed: Mutex<Option<Instant>>,
    /// Made when first used: most processes publish nothing.
    losable: OnceLock<Option<Polled>>,
}

/// The log over Kafka. Cheap to clone; all clones share their connections.
///
/// A submitted command is at least once in the log: retries of the client library are recognised by the broker, but when a
/// delivery times out because a broker died, commands that were under way with it may be stored a second time. The
/// engine's keys and message ids make that harmless (PROTOCOL 14). What transactions write is there once.
#[derive(Clone)]
pub struct KafkaLog {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for KafkaLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KafkaLog")
            .field("brokers", &self.shared.config.brokers)
            .field("prefix", &self.shared.config.prefix)
            .finish_non_exhaustive()
    }
}

/// Deliveries of submitted commands since the log was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SubmitCounts {
    /// Taken by `submit`.
    pub taken: u64,
    /// Acknowledged by the brokers.
    pub delivered: u64,
    /// Given up after the delivery time-out, or refused. Whoever waits for their outcome is told "unknown, retry".
    pub failed: u64,
}

impl KafkaLog {
    /// Checks the topics and connects. Blocks for as long as the brokers take to answer, at most some seconds.
    pub fn open(config: KafkaConfig) -> Result<KafkaLog, KafkaOpenError> {
        KafkaLog::open_grown(config, |_| None)
    }

    /// The same for a city that may have more shards than it was made with. Where there are more partitions than configured, `may_be` is
    /// shown what the first shard has stored and says how many there may be; without an answer they are refused as by [`KafkaLog::open`].
    pub fn open_grown(
        config: KafkaConfig,
        may_be: impl Fn(&Recovered) -> Option<RangeInclusive<u16>>,
    ) -> Result<KafkaLog, KafkaOpenError> {
        let report = topics::check(&config)?;
        let is_more = |problem: &Problem| matches!(problem, Problem::Partitions { found, wanted, .. } if *found > usize::from(*wanted));
        if !report.problems.iter().all(is_more) {
            return Err(KafkaOpenError::NotAsTheyMustBe(report.problems));
        }
        let (least, most) = report.shards.unwrap_or((config.shards, config.shards));
        for note in &report.notes {
            tracing::info!(note, "kafka");
        }
        let names = Names::new(&config.prefix);
        let client = |why: KafkaError| KafkaOpenError::Client(why.to_string());
        let submitter =
            Polled::start(&client::submitter(&config), Deliveries::new(&names)).map_err(client)?;
        let log = KafkaLog {
            shared: Arc::new(Shared {
                reader: Reader::new(&config, &names).map_err(client)?,
                images: Images::default(),
                shards: AtomicU16::new(least),
                announced: Mutex::default(),
                config,
                names,
                submitter,
                probed: Mutex::new(None),
                losable: OnceLock::new(),
            }),
        };
        if !report.problems.is_empty() {
            let stored = log
                .snapshot(0)
                .map_err(|why| KafkaOpenError::Client(why.to_string()))?;
            let is_grown =
                may_be(&stored).is_some_and(|may| may.contains(&least) && may.contains(&most));
            if !is_grown {
                return Err(KafkaOpenError::NotAsTheyMustBe(report.problems));
            }
            tracing::info!(
                shards = least,
                configured = log.shared.config.shards,
                "the city has grown"
            );
        }
        Ok(log)
    }

    /// The settings it was opened with.
    #[must_use]
    pub fn config(&self) -> &KafkaConfig {
        &self.shared.config
    }

    /// Joins the group of nodes. `node` names this one in headers and announcements, `address` is where it answers
    /// gateways (`host:port`, empty if nowhere). The shards come with `poll`.
    pub fn own(&self, node: &str, address: &str) -> Result<KafkaOwner, KafkaOpenError> {
        KafkaOwner::join(&self.shared, node, address)
            .map_err(|why| KafkaOpenError::Client(why.to_string()))
    }

    /// What became of submitted commands.
    #[must_use]
    pub fn submit_counts(&self) -> SubmitCounts {
        let tally = self.shared.submitter.context().tally();
        SubmitCounts {
            taken: tally.sent,
            delivered: tally.done - tally.failed,
            failed: tally.failed,
        }
    }

    fn group(&self) -> Result<Vec<Member>, ReadError> {
        let shared = &self.shared;
        shared.reader.group_members(&client::group(&shared.config))
    }

    /// The nodes of this city that do not say that they follow one that gets more shards, each in words: those of releases before
    /// `cabrank reshard` say nothing. Empty also where there is no node. Gateways are in no group, so nobody knows of them.
    pub fn nodes_that_cannot_grow(&self) -> Result<Vec<String>, ReadError> {
        Ok(members::that_cannot_grow(&self.group()?, &self.owners()?))
    }

    fn check_partition(&self, topic: Topic, partition: u16) -> Result<(), ReadError> {
        // Compacted topics are read as what they mean: `snapshot` and `owners`.
        let is_log = !matches!(topic, Topic::ShardState | Topic::ShardOwners);
        if is_log && partition < partitions(topic, self.shared.shards()) {
            Ok(())
        } else {
            Err(ReadError::NoSuchPartition {
                topic,
                shard: partition,
            })
        }
    }

    fn events(&self) -> Vec<(Topic, u16)> {
        EVENTS
            .into_iter()
            .flat_map(|topic| (0..self.shared.shards()).map(move |shard| (topic, shard)))
            .collect()
    }
}

impl EventLog for KafkaLog {
    fn shards(&self) -> u16 {
        self.shared.shards()
    }

    fn look_for_shards(&self) -> u16 {
        match topics::count(&self.shared.config) {
            Ok((least, _)) => self.shared.know(least),
            Err(why) => tracing::warn!(%why, "nobody says how many shards there are"),
        }
        self.shared.shards()
    }

    fn submit(&self, shard: u16, key: Bytes, value: Bytes) -> Result<(), SubmitError> {
        let config = &self.shared.config;
        let shards = self.shared.shards();
        if shard >= shards {
            return Err(SubmitError::NoSuchShard { shard, shards });
        }
        let bytes = key.len() + value.len();
        if bytes > RECORD_MAX_BYTES {
            return Err(SubmitError::TooLarge {
                bytes,
                max: RECORD_MAX_BYTES,
            });
        }
        self.shared.let_through()?;
        let submitter = &self.shared.submitter;
        let record = Outward {
            topic: Topic::RideCommands,
            partition: shard,
            key: &key,
            value: Some(&value),
            note: None,
        };
        producing::send(submitter, &self.shared.names, &record).map_err(|why| {
            if why.rdkafka_error_code() == Some(RDKafkaErrorCode::QueueFull) {
                SubmitError::Full {
                    queued: usize::try_from(submitter.in_flight_count()).unwrap_or(0),
                    max: config.queue_max as usize,
                }
            } else {
                SubmitError::Unavailable(why.to_string())
            }
        })
    }

    /// `Failed` also when a command submitted since the last `sync` could not be delivered.
    fn sync(&self) -> Result<(), LogError> {
        let config = &self.shared.config;
        let patience = Duration::from_millis(u64::from(config.delivery_timeout_ms) + 1_000);
        let deliveries = self.shared.submitter.context();
        let in_time = deliveries.wait(patience);
        match deliveries.tally().failure.take() {
            Some(why) => Err(LogError::Failed(why.to_string())),
            None if !in_time => Err(LogError::Failed("no acknowledgement in time".into())),
            None => Ok(()),
        }
    }

    fn read(
        &self,
        topic: Topic,
        shard: u16,
        from: u64,
        max: usize,
    ) -> Result<Vec<Record>, ReadError> {
        self.check_partition(topic, shard)?;
        let bounds = self.shared.reader.bounds(topic, shard)?;
        if from < bounds.first {
            return Err(ReadError::TooOld {
                first: bounds.first,
            });
        }
        let max = max.min(READ_MAX);
        if max == 0 {
            return Ok(Vec::new());
        }
        let mut records = Vec::new();
        self.shared.reader.scan(
            Isolation::Committed,
            (topic, shard),
            from,
            bounds.end,
            |inward| {
                records.extend(inward.into_record());
                if records.len() < max {
                    ControlFlow::Continue(())
                } else {
                    ControlFlow::Break(())
                }
            },
        )?;
        Ok(records)
    }

    fn bounds(&self, topic: Topic, shard: u16) -> Result<Bounds, ReadError> {
        self.check_partition(topic, shard)?;
        self.shared.reader.bounds(topic, shard)
    }

    /// Read from `shard-state` up to its stable end: a state in the middle of nothing, as transactions end there whole.
    fn snapshot(&self, shard: u16) -> Result<Recovered, ReadError> {
        self.check_partition(Topic::RideCommands, shard)?;
        let partition = (Topic::ShardState, shard);
        let end = self.shared.reader.stable_ends(&[partition])?[0];
        let mut image = ShardImage::default();
        self.shared.read_image(shard, 0, end, &mut image)?;
        Ok(image.recovered())
    }

    /// Kafka keeps no older snapshot than the newest. So once events were trimmed, the base is the snapshot of now, and
    /// the fold of the events after it proves nothing about those before it.
    fn base(&self, shard: u16) -> Result<Recovered, ReadError> {
        self.check_partition(Topic::RideCommands, shard)?;
        for topic in EVENTS {
            if self.shared.reader.bounds(topic, shard)?.first > 0 {
                return self.snapshot(shard);
            }
        }
        Ok(ShardImage::default().recovered())
    }

    /// The number is the sum of the events' stable ends; it is asked for every 20 ms. Whoever follows events closely
    /// uses [`EventLog::tail`].
    fn wait_committed(&self, seen: u64, timeout: Duration) -> u64 {
        let deadline = Instant::now() + timeout.min(WAIT_MAX);
        let events = self.events();
        let mut known = seen;
        loop {
            // While the brokers do not answer nothing new can be read.
            if let Ok(ends) = self.shared.reader.stable_ends(&events) {
                known = ends.iter().sum();
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if known != seen || left.is_zero() {
                return known;
            }
            std::thread::park_timeout(left.min(COMMIT_LOOK).max(LOOK));
        }
    }

    fn tail(&self) -> Box<dyn EventTail + '_> {
        Box::new(KafkaTail::new(&self.shared))
    }

    fn owners(&self) -> Result<Vec<OwnerRecord>, ReadError> {
        let partition = (Topic::ShardOwners, 0);
        let reader = &self.shared.reader;
        let end = reader.stable_ends(&[partition])?[0];
        let mut known = {
            let known = &self.shared.announced;
            known.lock().unwrap_or_else(PoisonError::into_inner).clone()
        };
        if end < known.read_to {
            // A log that was cut, or made anew.
            known = Announced::default();
        }
        let mut broken = None;
        reader.scan(
            Isolation::Committed,
            partition,
            known.read_to,
            end,
            |inward| {
                if let Some(record) = inward.into_record() {
                    match serde_json::from_slice::<Announcement>(&record.value) {
                        Ok(said) => {
                            drop(known.owners.insert(said.shard, OwnerRecord::from(said)));
                        }
                        Err(why) => broken = Some(format!("offset {}: {why}", record.offset)),
                    }
                }
                ControlFlow::Continue(())
            },
        )?;
        if let Some(why) = broken {
            return Err(ReadError::Corrupt(format!("shard-owners, {why}")));
        }
        known.read_to = end;
        let owners = known.owners.values().cloned().collect();
        let mut newest = self
            .shared
            .announced
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *newest = known;
        Ok(owners)
    }

    fn members(&self) -> Result<Vec<(String, String)>, ReadError> {
        let members = self.group()?.into_iter();
        Ok(members.filter_map(|member| member.name).collect())
    }

    fn publish(&self, topic: Topic, shard: u16, key: Bytes, value: Bytes) -> bool {
        let shared = &self.shared;
        let losable = shared.losable.get_or_init(|| {
            Polled::start(
                &client::losable(&shared.config),
                Deliveries::new(&shared.names),
            )
            .ok()
        });
        let record = Outward {
            topic,
            partition: shard,
            key: &key,
            value: Some(&value),
            note: None,
        };
        losable
            .as_ref()
            .is_some_and(|producer| producing::send(producer, &shared.names, &record).is_ok())
    }
}

impl Shared {
    /// Partitions of the topics, as last seen.
    pub fn shards(&self) -> u16 {
        // Relaxed, here and below: one number by itself.
        self.shards.load(Ordering::Relaxed)
    }

    /// There are at least so many.
    pub fn know(&self, shards: u16) {
        self.shards.fetch_max(shards, Ordering::Relaxed);
    }

    /// After a failed delivery commands are refused at once and not after their time-out, but for one now and then.
    fn let_through(&self) -> Result<(), SubmitError> {
        let (is_failing, why) = {
            let tally = self.submitter.context().tally();
            let why = tally.failure.as_ref().map(ToString::to_string);
            (tally.is_failing, why)
        };
        if !is_failing {
            return Ok(());
        }
        let mut probed = self.probed.lock().unwrap_or_else(PoisonError::into_inner);
        if probed.is_some_and(|at| at.elapsed() < PROBE_EVERY) {
            return Err(SubmitError::Unavailable(
                why.unwrap_or_else(|| "the brokers do not acknowledge".into()),
            ));
        }
        *probed = Some(Instant::now());
        Ok(())
    }

    /// What a consumer says of the group of nodes that never joined it, for a test.
    pub(super) fn metadata_of_a_stranger(
        &self,
    ) -> Result<Option<ConsumerGroupMetadata>, KafkaError> {
        let stranger: BaseConsumer<Words> =
            client::member(&self.config).create_with_context(Words)?;
        debug_assert_eq!(membership(&stranger), None, "PROTOCOL 24 refuses it");
        Ok(stranger.group_metadata())
    }

    /// Takes the committed records of a shard's states from `from` to `to` into the image.
    pub(super) fn read_image(
        &self,
        shard: u16,
        from: u64,
        to: u64,
        image: &mut ShardImage,
    ) -> Result<(), ReadError> {
        let mut broken = None;
        self.reader.scan(
            Isolation::Committed,
            (Topic::ShardState, shard),
            from,
            to,
            |inward| match image.take(inward) {
                Ok(_) => ControlFlow::Continue(()),
                Err(why) => {
                    broken = Some(why);
                    ControlFlow::Break(())
                }
            },
        )?;
        match broken {
            Some(why) => Err(ReadError::Corrupt(format!("shard {shard}: {why}"))),
            None => Ok(()),
        }
    }
}
