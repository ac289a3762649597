//! What the topics must be, how they are made, and whether they are as they must be.
//!
//! A wrong partition count, retention or cleanup policy would lose or double work days later, so a process that opens
//! the log checks them first and refuses with the remedy. What only the operator can decide is reported, not refused.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake};
use std::thread::Thread;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::admin::{
    AdminClient, AdminOptions, ConfigResource, NewPartitions, NewTopic, ResourceSpecifier,
    TopicReplication,
};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::client::{self, Isolation, MESSAGE_MAX_BYTES, REQUEST_MS};
use super::config::{BadSetting, KafkaConfig, SecurityProtocol};
use super::inbox::{Inbox, Inward, Words};
use super::names::Names;
use crate::Topic;

/// Records of `shard-state` younger than this are not compacted, in ms: a reader who reads up to the end it saw finds
/// each state as it was then, if it reads no longer than this.
const COMPACTION_LAG_MS: &str = "600000";
/// A segment of the compacted topics, in bytes. The one that is being written is never compacted: so much is read, beside
/// what is younger than the lag, by whoever reads from the beginning.
const COMPACTED_SEGMENT_BYTES: &str = "67108864";
/// Tombstones stay this long, in ms, so that a reader who began before them sees them.
const TOMBSTONES_KEPT_MS: &str = "86400000";

/// What a topic must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicPlan {
    /// Which.
    pub topic: Topic,
    /// Its name at the brokers.
    pub name: String,
    /// How many partitions, exactly: a command's partition is its shard.
    pub partitions: u16,
    /// Its settings.
    pub settings: Vec<(&'static str, String)>,
}

/// Every topic and what it must be.
#[must_use]
pub fn plan(config: &KafkaConfig) -> Vec<TopicPlan> {
    let names = Names::new(&config.prefix);
    let each = |topic: Topic| {
        let mut settings = vec![
            // Engine time is moved by the broker's append times, which never go back (PROTOCOL 15).
            ("message.timestamp.type", "LogAppendTime".to_owned()),
            ("max.message.bytes", MESSAGE_MAX_BYTES.to_owned()),
        ];
        if config.replication >= 3 {
            // With acks=all an acknowledged record survives any one broker (PROTOCOL 29).
            settings.push(("min.insync.replicas", "2".to_owned()));
        }
        let kept = |ms: u64| {
            vec![
                ("cleanup.policy", "delete".to_owned()),
                ("retention.ms", ms.to_string()),
            ]
        };
        settings.extend(match topic {
            // Compact only: with "delete" beside it states that nobody changed for long would be lost (PROTOCOL 27).
            Topic::ShardState | Topic::ShardOwners => vec![
                ("cleanup.policy", "compact".to_owned()),
                ("min.compaction.lag.ms", COMPACTION_LAG_MS.to_owned()),
                ("segment.bytes", COMPACTED_SEGMENT_BYTES.to_owned()),
                ("delete.retention.ms", TOMBSTONES_KEPT_MS.to_owned()),
            ],
            Topic::RideCommands => kept(config.commands_retention_ms),
            Topic::RideEvents | Topic::PersonEvents => kept(config.events_retention_ms),
            Topic::DriverLocations | Topic::DriverPings | Topic::DemandForecasts => {
                kept(config.pings_retention_ms)
            }
        });
        TopicPlan {
            topic,
            name: names.of(topic).to_owned(),
            partitions: partitions(topic, config.shards),
            settings,
        }
    };
    Topic::ALL.into_iter().map(each).collect()
}

pub(super) fn partitions(topic: Topic, shards: u16) -> u16 {
    if topic == Topic::ShardOwners {
        1
    } else {
        shards
    }
}

/// Why topics could not be made or looked at.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TopicsError {
    /// A setting of ours.
    #[error(transparent)]
    Setting(#[from] BadSetting),
    /// No broker answers.
    #[error("no broker at {brokers}: {why} ({})", remedy(why))]
    Unreachable {
        /// Asked.
        brokers: String,
        /// What happened.
        why: String,
    },
    /// The broker refused.
    #[error("topic {name}: {why}")]
    Refused {
        /// The topic.
        name: String,
        /// Why.
        why: String,
    },
}

/// What to look at, by what the client library said.
fn remedy(why: &str) -> &'static str {
    let says = |words: &[&str]| words.iter().any(|word| why.contains(word));
    if says(&["SASL", "uthentication"]) {
        "are kafka.security.username, password_file and sasl_mechanism what the brokers know?"
    } else if says(&[
        "alert certificate",
        "alert unknown ca",
        "alert bad certificate",
    ]) {
        "does the broker believe kafka.security.certificate_file: is it set, signed by an authority the broker knows, and of today?"
    } else if says(&["SSL", "certificate"]) {
        "does kafka.security.ca_file hold the authority that signed the brokers' certificates, are those valid now, and is kafka.brokers a name that is in them?"
    } else {
        "is it running, and are kafka.brokers and kafka.security.protocol right?"
    }
}

/// Something that is not as it must be, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// It was never made.
    #[error("topic {name} does not exist: run `cabrank topics create`")]
    Missing {
        /// The topic.
        name: String,
    },
    /// Keys would go to other shards than the nodes think.
    #[error(
        "topic {name} has {found} partitions, not {wanted}: set kafka.shards to the number the city has, or make new topics under another kafka.prefix; adding partitions to it by hand would tear people's histories apart (`cabrank reshard` does it)"
    )]
    Partitions {
        /// The topic.
        name: String,
        /// There.
        found: usize,
        /// Configured.
        wanted: u16,
    },
    /// Fewer copies than configured.
    #[error(
        "topic {name} has {found} copies, fewer than kafka.replication = {wanted}: reassign it (kafka-reassign-partitions), or configure {found} and live with what that survives"
    )]
    Replication {
        /// The topic.
        name: String,
        /// There.
        found: usize,
        /// Configured.
        wanted: u16,
    },
    /// Another value than the one that must be.
    #[error(
        "topic {name} has {key}={found}, not {wanted}: kafka-configs --alter --entity-type topics --entity-name {name} --add-config {key}={wanted}, or configure what it has"
    )]
    Setting {
        /// The topic.
        name: String,
        /// Which setting.
        key: &'static str,
        /// There.
        found: String,
        /// Must be.
        wanted: String,
    },
    /// The nodes could not join the group.
    #[error(
        "the broker takes no session timeout below {least_ms} ms, kafka.session_timeout_ms is {wanted_ms}: lower the broker's group.min.session.timeout.ms, or configure {least_ms}"
    )]
    SessionTimeout {
        /// The broker's least.
        least_ms: u32,
        /// Configured.
        wanted_ms: u32,
    },
}

/// What [`check`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// What is wrong. Empty: a node may start.
    pub problems: Vec<Problem>,
    /// Brokers that answered for the cluster.
    pub brokers: usize,
    /// Partitions of the topics that have one for each shard: the least and the most.
    pub shards: Option<(u16, u16)>,
    /// The least session timeout the broker takes, in ms: together with the configured one it says how fast a killed
    /// node's shards are taken over.
    pub session_timeout_min_ms: Option<u32>,
    /// `min.insync.replicas` of the commands' topic.
    pub min_insync_replicas: Option<u32>,
    /// What is allowed but worth knowing.
    pub notes: Vec<String>,
}

/// Makes the topics that are missing; returns their names. Those that exist are left alone: [`check`] looks at them.
pub fn create(config: &KafkaConfig) -> Result<Vec<String>, TopicsError> {
    config.check()?;
    let admin = admin(config)?;
    let plans = plan(config);
    let new: Vec<NewTopic<'_>> = plans
        .iter()
        .map(|plan| {
            let mut topic = NewTopic::new(
                &plan.name,
                i32::from(plan.partitions),
                TopicReplication::Fixed(i32::from(config.replication)),
            );
            for (key, value) in &plan.settings {
                topic = topic.set(key, value);
            }
            topic
        })
        .collect();
    let done =
        wait(admin.create_topics(&new, &options())).map_err(|why| unreachable(config, &why))?;
    let mut made = Vec::new();
    for result in done {
        match result {
            Ok(name) => made.push(name),
            Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((name, code)) => {
                return Err(TopicsError::Refused {
                    name,
                    why: code.to_string(),
                });
            }
        }
    }
    // The brokers learn of a new topic one after the other: whoever is told "made" wants to use it.
    let deadline = Instant::now() + Duration::from_millis(REQUEST_MS.into());
    while Instant::now() < deadline {
        let missing = check(config)?
            .problems
            .iter()
            .any(|problem| matches!(problem, Problem::Missing { .. }));
        if !missing {
            break;
        }
        std::thread::park_timeout(Duration::from_millis(50));
    }
    Ok(made)
}

/// Sets settings of a topic beside those it must have. For tests.
#[cfg(feature = "kafka-testing")]
pub(super) fn alter(
    config: &KafkaConfig,
    topic: Topic,
    settings: &[(&str, String)],
) -> Result<(), TopicsError> {
    let admin = admin(config)?;
    let plans = plan(config);
    for plan in plans.iter().filter(|plan| plan.topic == topic) {
        let mut change =
            rdkafka::admin::AlterConfig::new(ResourceSpecifier::Topic(plan.name.as_str()));
        // What is not named goes back to the broker's default.
        for (key, value) in &plan.settings {
            change = change.set(key, value);
        }
        for (key, value) in settings {
            change = change.set(key, value);
        }
        let done = wait(admin.alter_configs(&[change], &options()))
            .map_err(|why| unreachable(config, &why))?;
        for result in done {
            result.map_err(|(_, why)| TopicsError::Refused {
                name: plan.name.clone(),
                why: why.to_string(),
            })?;
        }
    }
    Ok(())
}

/// How many partitions the topics have that have one for each shard: the least and the most.
pub fn count(config: &KafkaConfig) -> Result<(u16, u16), TopicsError> {
    let counts = counts(&admin(config)?, config)?;
    let counts = counts
        .iter()
        .filter(|(topic, _)| *topic != Topic::ShardOwners);
    let counts: Vec<u16> = counts.map(|(_, count)| *count).collect();
    let least = counts.iter().min().copied().unwrap_or(0);
    Ok((least, counts.iter().max().copied().unwrap_or(0)))
}

/// The partitions of each topic; 0 where there is no such topic.
fn counts(
    admin: &AdminClient<Words>,
    config: &KafkaConfig,
) -> Result<Vec<(Topic, u16)>, TopicsError> {
    let metadata = admin
        .inner()
        .fetch_metadata(None, Duration::from_millis(REQUEST_MS.into()))
        .map_err(|why| unreachable(config, &why))?;
    let names = Names::new(&config.prefix);
    let of = |topic: Topic| {
        let mut all = metadata.topics().iter();
        let found = all.find(|found| found.name() == names.of(topic) && found.error().is_none());
        let count = found.map_or(0, |found| found.partitions().len());
        (topic, u16::try_from(count).unwrap_or(u16::MAX))
    };
    Ok(Topic::ALL.into_iter().map(of).collect())
}

/// Adds partitions until there are `to` of each topic that has one for each shard, and returns the names of those that had fewer.
/// The commands come last: as soon as those are there, the group of nodes gives the new shards out. Whether the city knows what they are
/// for is not looked at here: `cabrank reshard` has it in the log before.
pub fn grow(config: &KafkaConfig, to: u16) -> Result<Vec<String>, TopicsError> {
    config.check()?;
    let admin = admin(config)?;
    let names = Names::new(&config.prefix);
    let is_last = |topic: Topic| topic == Topic::RideCommands;
    let mut grown = Vec::new();
    for last in [false, true] {
        let lacks = |(topic, count): &(Topic, u16)| {
            *topic != Topic::ShardOwners && is_last(*topic) == last && *count < to
        };
        let lacking: Vec<Topic> = counts(&admin, config)?
            .into_iter()
            .filter(lacks)
            .map(|(topic, _)| topic)
            .collect();
        if lacking.is_empty() {
            continue;
        }
        let more: Vec<NewPartitions<'_>> = lacking
            .iter()
            .map(|topic| NewPartitions::new(names.of(*topic), usize::from(to)))
            .collect();
        let done = wait(admin.create_partitions(&more, &options()))
            .map_err(|why| unreachable(config, &why))?;
        for result in done {
            grown.push(result.map_err(|(name, code)| TopicsError::Refused {
                name,
                why: code.to_string(),
            })?);
        }
        // The brokers learn of them one after the other.
        let deadline = Instant::now() + Duration::from_millis(REQUEST_MS.into());
        while let Some((topic, _)) = counts(&admin, config)?.into_iter().find(lacks) {
            if Instant::now() > deadline {
                return Err(TopicsError::Refused {
                    name: names.of(topic).to_owned(),
                    why: "its new partitions are still not there: run the same command again"
                        .into(),
                });
            }
            std::thread::park_timeout(Duration::from_millis(50));
        }
    }
    Ok(grown)
}

/// Looks whether topics and brokers are as they must be.
pub fn check(config: &KafkaConfig) -> Result<Report, TopicsError> {
    config.check()?;
    let admin = admin(config)?;
    let metadata = admin
        .inner()
        .fetch_metadata(None, Duration::from_millis(REQUEST_MS.into()))
        .map_err(|why| unreachable(config, &why))?;
    let mut report = Report {
        brokers: metadata.brokers().len(),
        ..Report::default()
    };
    let mut there = Vec::new();
    for plan in plan(config) {
        let found = metadata
            .topics()
            .iter()
            .find(|topic| topic.name() == plan.name && topic.error().is_none());
        let Some(found) = found.filter(|topic| !topic.partitions().is_empty()) else {
            report.problems.push(Problem::Missing { name: plan.name });
            continue;
        };
        let partitions = found.partitions();
        if plan.topic != Topic::ShardOwners {
            let here = u16::try_from(partitions.len()).unwrap_or(u16::MAX);
            let (least, most) = report.shards.unwrap_or((here, here));
            report.shards = Some((least.min(here), most.max(here)));
        }
        if partitions.len() != usize::from(plan.partitions) {
            report.problems.push(Problem::Partitions {
                name: plan.name.clone(),
                found: partitions.len(),
                wanted: plan.partitions,
            });
        }
        let copies = partitions.iter().map(|p| p.replicas().len()).min();
        if let Some(copies) = copies.filter(|copies| *copies < usize::from(config.replication)) {
            report.problems.push(Problem::Replication {
                name: plan.name.clone(),
                found: copies,
                wanted: config.replication,
            });
        }
        there.push(plan);
    }
    let broker = metadata.brokers().first().map(|broker| broker.id());
    let mut asked: Vec<ResourceSpecifier<'_>> = there
        .iter()
        .map(|plan| ResourceSpecifier::Topic(&plan.name))
        .collect();
    asked.extend(broker.map(ResourceSpecifier::Broker));
    let described = wait(admin.describe_configs(&asked, &options()))
        .map_err(|why| unreachable(config, &why))?;
    let mut described = described.into_iter();
    for plan in &there {
        if let Some(Ok(resource)) = described.next() {
            look_at(&mut report, plan, &resource);
        }
    }
    if let Some(Ok(broker)) = described.next() {
        report.session_timeout_min_ms =
            value(&broker, "group.min.session.timeout.ms").and_then(|text| text.parse().ok());
    }
    advise(&mut report, config);
    Ok(report)
}

fn look_at(report: &mut Report, plan: &TopicPlan, resource: &ConfigResource) {
    for (key, wanted) in &plan.settings {
        let found = value(resource, key).unwrap_or_default();
        if found != *wanted {
            report.problems.push(Problem::Setting {
                name: plan.name.clone(),
                key,
                found,
                wanted: wanted.clone(),
            });
        }
    }
    if plan.topic == Topic::RideCommands {
        report.min_insync_replicas =
            value(resource, "min.insync.replicas").and_then(|text| text.parse().ok());
    }
}

fn advise(report: &mut Report, config: &KafkaConfig) {
    match report.session_timeout_min_ms {
        Some(least_ms) if least_ms > config.session_timeout_ms => {
            report.problems.push(Problem::SessionTimeout {
                least_ms,
                wanted_ms: config.session_timeout_ms,
            });
        }
        Some(least_ms) if config.session_timeout_ms > 2_000 && least_ms > 2_000 => {
            report.notes.push(format!(
                "a killed node's shards are taken over after {} ms; for less, lower the broker's group.min.session.timeout.ms (it is {least_ms})",
                config.session_timeout_ms
            ));
        }
        _ => {}
    }
    if config.replication < 3 {
        report.notes.push(format!(
            "kafka.replication = {}: what was acknowledged does not survive the loss of a broker's disk",
            config.replication
        ));
    }
}

fn value(resource: &ConfigResource, key: &str) -> Option<String> {
    resource.get(key)?.value.clone()
}

fn admin(config: &KafkaConfig) -> Result<AdminClient<Words>, TopicsError> {
    use rdkafka::config::FromClientConfigAndContext;
    let settings: ClientConfig = client::admin(config);
    AdminClient::from_config_and_context(&settings, Words).map_err(|why| unreachable(config, &why))
}

/// The question that failed says only that nobody answered; why a connection was refused is told to whoever listens.
fn unreachable(config: &KafkaConfig, why: &KafkaError) -> TopicsError {
    let refused = || {
        let names = Names::new(&config.prefix);
        let listener = Inbox::new(&client::reader(config, Isolation::Committed), &names).ok()?;
        let deadline = Instant::now() + Duration::from_millis(REQUEST_MS.into());
        while Instant::now() < deadline {
            if let Some(Inward::Failed { code, why, .. }) =
                listener.next(Duration::from_millis(100))
            {
                // A broker looks at our certificate after the handshake: its refusal is an alert on an open connection.
                let is_refused = match code {
                    RDKafkaErrorCode::SSL | RDKafkaErrorCode::Authentication => true,
                    _ => why.contains("alert"),
                };
                if is_refused {
                    return Some(why);
                }
            }
        }
        None
    };
    let is_secured = config.security.protocol != SecurityProtocol::Plaintext;
    TopicsError::Unreachable {
        brokers: config.brokers.clone(),
        why: is_secured
            .then(refused)
            .flatten()
            .unwrap_or_else(|| why.to_string()),
    }
}

fn options() -> AdminOptions {
    let limit = Duration::from_millis(REQUEST_MS.into());
    AdminOptions::new()
        .request_timeout(Some(limit))
        .operation_timeout(Some(limit))
}

/// Waits for the client library's answer on this thread. The library has a request time-out of its own.
fn wait<F: Future>(future: F) -> F::Output {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Arc::new(Unpark(std::thread::current())).into();
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park(),
        }
    }
}
