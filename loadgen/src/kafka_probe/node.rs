//! A node without an engine: batches in, one transaction each out.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerGroupMetadata};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, ToBytes};
use rdkafka::producer::{BaseRecord, Producer, ProducerContext, ThreadedProducer};
use rdkafka::{ClientContext, Message, Offset, TopicPartitionList};

use super::shape::{COMMAND_BYTES, Command, EVENT_BYTES, HEADER_BYTES, LAST_AT, STATE_BYTES};
use super::{ANSWER, LOOK, ProbeError, ProbePlan, Topics, Window, client, consumer, read_on};
use crate::load::clock::now_ns;
use crate::load::tally::Times;

/// Commands in one transaction, as a node's.
const BATCH_MAX: usize = 1_000;

/// What a node did in the time that counts.
pub(super) struct Work {
    /// From begin to commit.
    pub took: Times,
    pub commands: u64,
}

/// Counts what is under way.
#[derive(Default)]
struct Deliveries {
    state: Mutex<State>,
    done: Condvar,
}

#[derive(Default)]
struct State {
    under_way: usize,
    failure: Option<KafkaError>,
}

impl ClientContext for Deliveries {}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.under_way -= 1;
        if let Err((why, _)) = result {
            state.failure.get_or_insert_with(|| why.clone());
        }
        if state.under_way == 0 {
            self.done.notify_all();
        }
    }
}

/// A transactional producer.
struct Writer {
    producer: ThreadedProducer<Deliveries>,
}

impl Writer {
    fn start(plan: &ProbePlan, topics: &Topics, id: &str) -> Result<Writer, KafkaError> {
        let config = client(plan)
            .set("acks", "all")
            .set("enable.idempotence", "true")
            .set("linger.ms", "0")
            .set("message.timeout.ms", "5000")
            .set("transaction.timeout.ms", "10000")
            .set("transactional.id", id)
            .clone();
        let producer = ThreadedProducer::from_config_and_context(&config, Deliveries::default())?;
        producer
            .client()
            .fetch_metadata(Some(&topics.states), ANSWER)?;
        producer.init_transactions(ANSWER)?;
        Ok(Writer { producer })
    }

    fn send(
        &self,
        topic: &str,
        shard: u16,
        key: &(impl ToBytes + ?Sized),
        value: &[u8],
    ) -> Result<(), KafkaError> {
        let context = self.producer.context();
        // Before: it may be delivered before the call returns.
        context
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .under_way += 1;
        let record = BaseRecord::to(topic)
            .partition(i32::from(shard))
            .key(key)
            .payload(value);
        self.producer.send(record).map_err(|(why, _)| why)
    }

    fn acknowledged(&self) -> Result<(), KafkaError> {
        let context = self.producer.context();
        let state = context.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut state, waited) = context
            .done
            .wait_timeout_while(state, ANSWER, |state| state.under_way > 0)
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(why) = state.failure.take() {
            return Err(why);
        }
        if waited.timed_out() {
            return Err(KafkaError::Flush(RDKafkaErrorCode::OperationTimedOut));
        }
        drop(state);
        // A commit that finds anything under way waits a fixed 100 ms.
        while self.producer.in_flight_count() > 0 {
            std::thread::yield_now();
        }
        Ok(())
    }
}

/// Some of the partitions, and two producers that take turns.
pub(super) struct Node {
    number: u16,
    nodes: u16,
    commands: BaseConsumer,
    metadata: ConsumerGroupMetadata,
    writers: [Writer; 2],
    topics: [String; 4],
}

impl Node {
    pub fn start(plan: &ProbePlan, topics: &Topics, number: u16) -> Result<Node, ProbeError> {
        let commands = consumer(plan, &number.to_string())?;
        let mine = (0..plan.shards).filter(|shard| shard % plan.nodes == number);
        read_on(
            &commands,
            mine.map(|shard| (topics.commands.clone(), shard)),
        )?;
        let metadata = commands
            .group_metadata()
            .ok_or(KafkaError::Global(RDKafkaErrorCode::UnknownGroup))?;
        let id = |turn| format!("{}probe-{number}-{turn}-{}", plan.prefix, now_ns());
        Ok(Node {
            number,
            nodes: plan.nodes,
            commands,
            metadata,
            writers: [
                Writer::start(plan, topics, &id(0))?,
                Writer::start(plan, topics, &id(1))?,
            ],
            topics: [
                topics.commands.clone(),
                topics.rides.clone(),
                topics.people.clone(),
                topics.states.clone(),
            ],
        })
    }

    /// Works until it is over.
    pub fn work(self, window: &Window) -> Result<Work, ProbeError> {
        let mut work = Work {
            took: Times::default(),
            commands: 0,
        };
        let mut turn = 0;
        while !window.is_over() {
            let (batch, next) = self.batch()?;
            if batch.is_empty() {
                continue;
            }
            let began = now_ns();
            turn = (turn + 1) % self.writers.len();
            self.transaction(&self.writers[turn], &batch, &next)?;
            if window.counts(began) {
                work.took.record(now_ns() - began, 1);
                work.commands += batch.len() as u64;
            }
        }
        Ok(work)
    }

    /// What there is, and the offsets after it.
    fn batch(&self) -> Result<(Vec<Command>, BTreeMap<u16, i64>), KafkaError> {
        let (mut batch, mut next) = (Vec::new(), BTreeMap::new());
        let mut wait = LOOK;
        while batch.len() < BATCH_MAX
            && let Some(message) = self.commands.poll(wait)
        {
            let message = message?;
            wait = Duration::ZERO;
            if let Some(command) = message.payload().and_then(Command::from_bytes)
                && let Ok(shard) = u16::try_from(message.partition())
            {
                next.insert(shard, message.offset() + 1);
                batch.push(command);
            }
        }
        Ok((batch, next))
    }

    fn transaction(
        &self,
        writer: &Writer,
        batch: &[Command],
        next: &BTreeMap<u16, i64>,
    ) -> Result<(), KafkaError> {
        let [commands, rides, people, states] = &self.topics;
        writer.producer.begin_transaction()?;
        let mut changed = BTreeMap::new();
        let mut shards: BTreeSet<u16> = next.keys().copied().collect();
        let mut todo: Vec<Command> = batch.iter().rev().copied().collect();
        while let Some(command) = todo.pop() {
            let mut event = [0; EVENT_BYTES];
            event.copy_from_slice(&command.to_bytes()[..EVENT_BYTES]);
            let events = if command.is_of_ride() { rides } else { people };
            for n in 1..=command.events() {
                event[LAST_AT] = u8::from(n == command.events());
                writer.send(events, command.shard(), &command.key(), &event)?;
            }
            changed.insert((command.shard(), command.key()), command);
            shards.insert(command.shard());
            for message in command.next() {
                if message.shard() % self.nodes == self.number {
                    todo.push(message);
                } else {
                    let value = message.to_bytes();
                    let value = &value[..COMMAND_BYTES];
                    writer.send(commands, message.shard(), &message.key(), value)?;
                }
            }
        }
        for ((shard, key), command) in changed {
            let value: [u8; STATE_BYTES] = command.to_bytes();
            writer.send(states, shard, &key, &value)?;
        }
        for shard in shards {
            writer.send(states, shard, "header", &[b'h'; HEADER_BYTES])?;
        }
        writer.acknowledged()?;
        let mut offsets = TopicPartitionList::new();
        for (shard, offset) in next {
            offsets.add_partition_offset(commands, i32::from(*shard), Offset::Offset(*offset))?;
        }
        let producer = &writer.producer;
        producer.send_offsets_to_transaction(&offsets, &self.metadata, ANSWER)?;
        producer.commit_transaction(ANSWER)
    }
}
