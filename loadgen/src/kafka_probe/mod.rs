//! How soon could anybody answer over this Kafka? The floor that request -> offer is measured against.
//!
//! A probe does what Kafka makes everybody do and nothing else: commands are produced by a schedule that knows nothing of
//! the answers, a node consumes them and writes, for each batch it finds, one transaction of the bytes and partitions a
//! real batch has (messages, events, states, headers, offsets), with two producers in turn, and a second client reads
//! the events read-committed. There is no engine, no index, no gateway and no phone; all is acknowledged in one go.
//! A request's latency counts from when the command *should* have left until its offer is read.
//!
//! Holds: memory is bounded by what a schedule of [`SECONDS_MAX`] at [`COMMANDS_MAX`] offers; nothing outlives a run.
//! Elsewhere: the topics, which are made by whoever runs a probe, under a prefix of its own (`cabrank probe`).

mod node;
mod shape;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::ScopedJoinHandle;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseRecord, Producer, ThreadedProducer};
use rdkafka::{Message, Offset, TopicPartitionList};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::load::clock::now_ns;
use crate::load::schedule::{Arrivals, Rate, Schedule};
use crate::load::tally::Times;
use crate::report::Quantiles;
use node::Node;
use shape::{COMMAND_BYTES, Command, Stage};

/// Longest probe, warm-up included, seconds.
pub const SECONDS_MAX: f64 = 600.0;
/// Most commands a second.
pub const COMMANDS_MAX: f64 = 50_000.0;
/// What is still under way at the end may take so long.
const DRAIN: Duration = Duration::from_secs(10);
/// Longest wait for a broker's answer.
const ANSWER: Duration = Duration::from_secs(10);
/// One attempt of it.
const RETRY: Duration = Duration::from_secs(1);
/// Longest wait of one look at a queue: how soon a thread sees that it is over.
const LOOK: Duration = Duration::from_millis(100);
/// In how many of a hundred rides the place lies in the city's main cell, as in the demo's city.
const MAIN_CELL_PERCENT: u32 = 94;

/// What to probe.
#[derive(Clone, Debug, PartialEq)]
pub struct ProbePlan {
    /// Brokers, `host:port`, separated by commas.
    pub brokers: String,
    /// What the topics and the group begin with.
    pub prefix: String,
    /// Partitions of the topics, 1 to 256.
    pub shards: u16,
    /// Nodes that share the partitions; with two or more, messages hop through the log as a ride's do. 1 to 16.
    pub nodes: u16,
    /// Requests a second.
    pub rides_per_second: f64,
    /// Are the reports of a ride's driver (received, accepted, arrived, started, completed) offered, too? Without them
    /// there are only requests.
    pub whole_rides: bool,
    /// Offered before it counts, seconds.
    pub warmup_s: f64,
    /// Counts, seconds.
    pub seconds: f64,
    /// Repeats moments and shards.
    pub seed: u64,
}

/// What a probe found.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ProbeReport {
    /// Partitions.
    pub shards: u16,
    /// Nodes.
    pub nodes: u16,
    /// Requests offered a second.
    pub requests_per_second: f64,
    /// Commands offered a second, requests included.
    pub commands_per_second: f64,
    /// From when a request's command should have left to its offer, read committed, ms.
    pub request_to_offer_ms: Quantiles,
    /// The same of a driver's reports and their events.
    pub report_ms: Quantiles,
    /// Transactions a second.
    pub transactions_per_second: f64,
    /// From the beginning of a transaction to the end of its commit, ms.
    pub transaction_ms: Quantiles,
    /// Commands in a transaction, on average.
    pub commands_per_transaction: f64,
    /// Commands whose events never came: with any, the broker could not take the rate and the latencies mean little.
    pub lost: u64,
}

/// Why a probe found nothing.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// A plan that cannot be carried out, with its remedy.
    #[error("{0}")]
    BadPlan(String),
    /// The brokers.
    #[error("kafka: {0}")]
    Kafka(#[from] KafkaError),
    /// A thread ended early.
    #[error("a thread of the probe panicked")]
    Panicked,
}

impl ProbePlan {
    /// Checks every range; the first bad one is named with its remedy.
    pub fn check(&self) -> Result<(), ProbeError> {
        let bad = |what: String| Err(ProbeError::BadPlan(what));
        if !(1..=256).contains(&self.shards) {
            return bad(format!("--shards {}: choose 1 to 256", self.shards));
        }
        if !(1..=16).contains(&self.nodes) || self.nodes > self.shards {
            return bad(format!(
                "--nodes {}: choose 1 to 16, at most one a shard",
                self.nodes
            ));
        }
        let commands = self.rides_per_second * f64::from(self.commands_per_ride());
        if !(0.1..=COMMANDS_MAX).contains(&commands) {
            return bad(format!(
                "--rate {}: choose 0.1 to {COMMANDS_MAX} commands a second",
                self.rides_per_second
            ));
        }
        let is_length = (0.5..=SECONDS_MAX).contains(&(self.seconds + self.warmup_s))
            && self.seconds >= 0.5
            && self.warmup_s >= 0.0;
        if !is_length {
            return bad(format!(
                "--seconds: choose 0.5 to {SECONDS_MAX}, the warm-up included"
            ));
        }
        Ok(())
    }

    fn commands_per_ride(&self) -> u32 {
        if self.whole_rides {
            1 + shape::REPORTS + 1
        } else {
            1
        }
    }

    fn topics(&self) -> Topics {
        let name = |topic| format!("{}{topic}", self.prefix);
        Topics {
            commands: name("ride-commands"),
            rides: name("ride-events"),
            people: name("person-events"),
            states: name("shard-state"),
        }
    }
}

/// The topics' names.
struct Topics {
    commands: String,
    rides: String,
    people: String,
    states: String,
}

/// Settings every client has; the same as the log's own.
fn client(plan: &ProbePlan) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", &plan.brokers)
        .set("broker.address.family", "v4")
        .set("socket.nagle.disable", "true")
        .set("log_level", "3");
    config
}

fn consumer(plan: &ProbePlan, of: &str) -> Result<BaseConsumer, KafkaError> {
    client(plan)
        .set("group.id", format!("{}probe-{of}", plan.prefix))
        .set("enable.auto.commit", "false")
        .set("isolation.level", "read_committed")
        .set("fetch.wait.max.ms", "100")
        .create()
}

/// Reads these partitions from their present ends on.
fn read_on(
    consumer: &BaseConsumer,
    partitions: impl IntoIterator<Item = (String, u16)>,
) -> Result<(), KafkaError> {
    let mut list = TopicPartitionList::new();
    for (topic, partition) in partitions {
        let partition = i32::from(partition);
        let end = end_of(consumer, &topic, partition)?;
        list.add_partition_offset(&topic, partition, Offset::Offset(end))?;
    }
    consumer.assign(&list)
}

fn end_of(consumer: &BaseConsumer, topic: &str, partition: i32) -> Result<i64, KafkaError> {
    let give_up = now_ns() + ANSWER.as_nanos() as u64;
    loop {
        match consumer.fetch_watermarks(topic, partition, RETRY) {
            Ok((_, end)) => return Ok(end),
            Err(why) if now_ns() > give_up => return Err(why),
            // The topic was made a moment ago: not every broker knows of it yet.
            Err(_) => {
                let _ = consumer.fetch_metadata(Some(topic), RETRY);
                std::thread::park_timeout(Duration::from_millis(20));
            }
        }
    }
}

/// When what counts, and when it is over.
struct Window {
    from: u64,
    to: u64,
    /// Nobody waits for anything any more.
    is_over: AtomicBool,
    /// Commands that were offered, and whose events were read.
    offered: AtomicU64,
    read: AtomicU64,
}

impl Window {
    fn is_over(&self) -> bool {
        // Relaxed here and below: single numbers that stand for themselves.
        self.is_over.load(Ordering::Relaxed)
    }

    fn counts(&self, due: u64) -> bool {
        (self.from..self.to).contains(&due)
    }
}

/// Runs it; blocks for as long as it takes.
pub fn probe(plan: &ProbePlan) -> Result<ProbeReport, ProbeError> {
    plan.check()?;
    let topics = plan.topics();
    // Everybody reads before anything is written.
    let reader = consumer(plan, "reader")?;
    let events = [&topics.rides, &topics.people];
    let partitions = events
        .into_iter()
        .flat_map(|topic| (0..plan.shards).map(move |shard| (topic.clone(), shard)));
    read_on(&reader, partitions)?;
    let nodes: Vec<Node> = (0..plan.nodes)
        .map(|number| Node::start(plan, &topics, number))
        .collect::<Result<_, _>>()?;
    let submitter: ThreadedProducer<_> = client(plan)
        .set("acks", "all")
        .set("enable.idempotence", "true")
        .set("linger.ms", "0")
        .create()?;
    submitter
        .client()
        .fetch_metadata(Some(&topics.commands), ANSWER)?;
    let second = |s: f64| (s * 1e9) as u64;
    let began = now_ns() + 200_000_000;
    let window = Window {
        from: began + second(plan.warmup_s),
        to: began + second(plan.warmup_s + plan.seconds),
        is_over: AtomicBool::new(false),
        offered: AtomicU64::new(0),
        read: AtomicU64::new(0),
    };
    let (read, worked) = std::thread::scope(|scope| {
        let window = &window;
        let reading = scope.spawn(|| Ok(read_events(&reader, window)));
        let working: Vec<_> = nodes
            .into_iter()
            .map(|node| scope.spawn(move || node.work(window)))
            .collect();
        let submitted = submit(plan, &topics, &submitter, began, window);
        window.is_over.store(true, Ordering::Relaxed);
        let worked: Result<Vec<_>, ProbeError> = working.into_iter().map(join).collect();
        let read = join(reading);
        submitted.and(read.and_then(|read| Ok((read, worked?))))
    })?;
    let mut transactions = Times::default();
    let (mut count, mut commands) = (0, 0);
    for work in &worked {
        transactions.merge(&work.took);
        count += work.took.len();
        commands += work.commands;
    }
    let [requests, reports] = read;
    let offered = window.offered.load(Ordering::Relaxed);
    Ok(ProbeReport {
        shards: plan.shards,
        nodes: plan.nodes,
        requests_per_second: plan.rides_per_second,
        commands_per_second: plan.rides_per_second * f64::from(plan.commands_per_ride()),
        request_to_offer_ms: requests.quantiles(),
        report_ms: reports.quantiles(),
        transactions_per_second: count as f64 / plan.seconds,
        transaction_ms: transactions.quantiles(),
        commands_per_transaction: commands as f64 / (count as f64).max(1.0),
        lost: offered.saturating_sub(window.read.load(Ordering::Relaxed)),
    })
}

fn join<T>(thread: ScopedJoinHandle<'_, Result<T, ProbeError>>) -> Result<T, ProbeError> {
    thread.join().unwrap_or(Err(ProbeError::Panicked))
}

/// Sends the commands when they are due, and waits until their events were read.
fn submit(
    plan: &ProbePlan,
    topics: &Topics,
    producer: &ThreadedProducer<
        impl rdkafka::producer::ProducerContext<DeliveryOpaque = ()> + 'static,
    >,
    began: u64,
    window: &Window,
) -> Result<(), ProbeError> {
    let mut rng = SmallRng::seed_from_u64(plan.seed);
    let per_ride = plan.commands_per_ride();
    let rate = Rate::steady(plan.rides_per_second * f64::from(per_ride));
    let mut schedule = Schedule::new(rate, Arrivals::Poisson, 0.0, &mut rng);
    let ends_at = window.to;
    while let Some(due) = schedule.due().map(|after| began + after)
        && due < ends_at
    {
        schedule.advance(&mut rng);
        let stage = match rng.random_range(0..per_ride) {
            0 => Stage::Request,
            1 if plan.whole_rides => Stage::End,
            _ => Stage::Report,
        };
        let any = |rng: &mut SmallRng| rng.random_range(0..plan.shards);
        let is_main = rng.random_range(0..100) < MAIN_CELL_PERCENT;
        let command = Command {
            stage,
            due,
            rider: any(&mut rng),
            place: if is_main { 0 } else { any(&mut rng) },
            driver: any(&mut rng),
            number: rng.random(),
        };
        while let left = due.saturating_sub(now_ns())
            && left > 0
        {
            std::thread::park_timeout(Duration::from_nanos(left));
        }
        if window.counts(due) {
            window.offered.fetch_add(1, Ordering::Relaxed);
        }
        let value = command.to_bytes();
        let key = command.key();
        let record = || {
            BaseRecord::to(&topics.commands)
                .partition(i32::from(command.shard()))
                .key(&key)
                .payload(&value[..COMMAND_BYTES])
        };
        while let Err((why, _)) = producer.send(record()) {
            if why.rdkafka_error_code() != Some(RDKafkaErrorCode::QueueFull) {
                return Err(why.into());
            }
            // Late from here on, and measured as late.
            std::thread::park_timeout(Duration::from_millis(1));
        }
    }
    let give_up = now_ns() + DRAIN.as_nanos() as u64;
    while window.read.load(Ordering::Relaxed) < window.offered.load(Ordering::Relaxed)
        && now_ns() < give_up
    {
        std::thread::park_timeout(LOOK);
    }
    Ok(())
}

/// Requests and reports that came back as events.
fn read_events(reader: &BaseConsumer, window: &Window) -> [Times; 2] {
    let [mut requests, mut reports] = [Times::default(), Times::default()];
    while !window.is_over() {
        let Some(Ok(event)) = reader.poll(LOOK) else {
            continue;
        };
        let Some((stage, due)) = event.payload().and_then(shape::answered) else {
            continue;
        };
        if !window.counts(due) {
            continue;
        }
        let times = match stage {
            Stage::Request => &mut requests,
            _ => &mut reports,
        };
        times.record(now_ns().saturating_sub(due), 1);
        window.read.fetch_add(1, Ordering::Relaxed);
    }
    [requests, reports]
}

/// Removes the topics of a probe's prefix.
pub async fn remove(plan: &ProbePlan, topics: &[String]) -> Result<(), ProbeError> {
    let admin: AdminClient<DefaultClientContext> = client(plan).create()?;
    let names: Vec<&str> = topics
        .iter()
        .map(String::as_str)
        .filter(|name| name.starts_with(&plan.prefix))
        .collect();
    let options = AdminOptions::new().request_timeout(Some(ANSWER));
    admin.delete_topics(&names, &options).await?;
    Ok(())
}

#[cfg(test)]
mod tests;
