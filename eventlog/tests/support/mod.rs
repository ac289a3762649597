//! A city of nodes as small as nodes can be, and the load on it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use cabrank_eventlog::kafka::testing::Broker;
use cabrank_eventlog::kafka::{KafkaConfig, KafkaLog, KafkaOwner};
use cabrank_eventlog::{
    Append, CommitError, EventLog, Header, PollError, RecoverError, Recovered, ShardOwner,
    StateChange, Topic, Transaction,
};

/// Between two commands of a shard.
const LOAD_EVERY: Duration = Duration::from_millis(20);
/// Before a node tries again to take a shard over.
const RETRY: Duration = Duration::from_millis(500);
/// All nodes of a city have shards within this time (three brokers on a busy machine need half a minute to warm up).
const START_WITHIN: Duration = Duration::from_secs(90);

pub fn logs() {
    // RUST_LOG=cabrank_eventlog=debug shows what the group and the brokers say.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_test_writer()
        .try_init();
}

/// Waits for a condition.
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    until_within(what, Duration::from_secs(40), &mut is_so);
}

fn until_within(what: &str, patience: Duration, is_so: &mut dyn FnMut() -> bool) {
    let deadline = Instant::now() + patience;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}: not within {patience:?}");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

/// When the shards were answered for.
pub struct Answers {
    began: Instant,
    /// By shard: the last answer, and the longest time without one since it was last asked for, in us.
    shards: Vec<(AtomicU64, AtomicU64)>,
}

impl Answers {
    fn now_us(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_micros()).unwrap()
    }

    fn answered(&self, shard: u16) {
        let now = self.now_us();
        let (last, longest) = &self.shards[usize::from(shard)];
        let before = last.swap(now, Ordering::SeqCst);
        longest.fetch_max(now.saturating_sub(before), Ordering::SeqCst);
    }
}

/// Nodes, each with a connection and a thread of its own, and a gateway that never pauses.
pub struct City {
    pub config: KafkaConfig,
    pub log: KafkaLog,
    pub answers: Arc<Answers>,
    nodes: Vec<Running>,
    is_over: Arc<AtomicBool>,
    load: Option<JoinHandle<u64>>,
}

pub struct Running {
    leaves: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl City {
    pub fn start(broker: &Broker, shards: u16, nodes: usize) -> City {
        let config = broker.city(shards);
        let log = KafkaLog::open(config.clone()).unwrap();
        let answers = Arc::new(Answers {
            began: Instant::now(),
            shards: (0..shards).map(|_| Default::default()).collect(),
        });
        let is_over = Arc::new(AtomicBool::new(false));
        let load = {
            let (log, is_over) = (log.clone(), Arc::clone(&is_over));
            std::thread::spawn(move || {
                let mut refused = 0;
                let mut number = 0_u64;
                while !is_over.load(Ordering::SeqCst) {
                    for shard in 0..log.shards() {
                        number += 1;
                        let text = Bytes::from(number.to_string());
                        refused += u64::from(log.submit(shard, Bytes::new(), text).is_err());
                    }
                    std::thread::park_timeout(LOAD_EVERY);
                }
                refused
            })
        };
        let mut city = City {
            config,
            log,
            answers,
            nodes: Vec::new(),
            is_over,
            load: Some(load),
        };
        for _ in 0..nodes {
            city.join();
        }
        // Also the last of them: a node that is still joining when a test takes its broker away could not start at all.
        until_within("the nodes share the shards", START_WITHIN, &mut || {
            city.owners() == nodes
        });
        city
    }

    /// One more node.
    pub fn join(&mut self) {
        let leaves = Arc::new(AtomicBool::new(false));
        let name = format!("node-{}", self.nodes.len());
        let (config, answers, until) = (
            self.config.clone(),
            Arc::clone(&self.answers),
            Arc::clone(&leaves),
        );
        let thread = std::thread::spawn(move || {
            let log = KafkaLog::open(config).unwrap();
            let mut node = Node::new(&log, &name, answers);
            while !until.load(Ordering::SeqCst) {
                node.step();
            }
        });
        self.nodes.push(Running { leaves, thread });
    }

    /// The newest node leaves, and has left when this returns.
    pub fn leave(&mut self) {
        let node = self.nodes.pop().unwrap();
        node.leaves.store(true, Ordering::SeqCst);
        node.thread.join().unwrap();
    }

    /// How many nodes have shards.
    pub fn owners(&self) -> usize {
        let owners = self.log.owners().unwrap_or_default();
        let names: BTreeSet<String> = owners.into_iter().map(|owner| owner.node).collect();
        names.len()
    }

    /// Forgets how long nobody answered.
    pub fn count_from_now(&self) {
        for (_, longest) in &self.answers.shards {
            longest.store(0, Ordering::SeqCst);
        }
    }

    /// The longest time without an answer of any shard since [`City::count_from_now`], one that goes on included.
    pub fn longest_silence(&self) -> Duration {
        let now = self.answers.now_us();
        let longest = self.answers.shards.iter().map(|(last, longest)| {
            let open = now.saturating_sub(last.load(Ordering::SeqCst));
            longest.load(Ordering::SeqCst).max(open)
        });
        Duration::from_micros(longest.max().unwrap_or(0))
    }

    /// Waits until every shard has answered once more.
    pub fn until_all_answer(&self, what: &str, patience: Duration) -> Duration {
        let from = self.answers.now_us();
        until_within(what, patience, &mut || {
            let last = self.answers.shards.iter().map(|(last, _)| last);
            last.into_iter()
                .all(|last| last.load(Ordering::SeqCst) > from)
        });
        Duration::from_micros(self.answers.now_us() - from)
    }

    /// Stops the load, lets everything be carried out, and looks whether it was: each command once, in order, and its
    /// message.
    pub fn end(mut self) {
        self.is_over.store(true, Ordering::SeqCst);
        let refused = self.load.take().unwrap().join().unwrap();
        let _ = self.log.sync();
        let shards = self.log.shards();
        for shard in 0..shards {
            let (mut told_of, mut commands, mut events) = (Vec::new(), Vec::new(), Vec::new());
            let mut messages = Vec::new();
            until("every command and message is carried out", || {
                let before = (shard + shards - 1) % shards;
                told_of = texts(&self.log, Topic::RideCommands, before);
                told_of.retain(|command| !is_message(command));
                commands = texts(&self.log, Topic::RideCommands, shard);
                messages.clone_from(&commands);
                messages.retain(|command| is_message(command));
                events = texts(&self.log, Topic::RideEvents, shard);
                messages.len() >= told_of.len() && events.len() >= commands.len()
            });
            let tell = |command: &Bytes| Bytes::from([MESSAGE, command].concat());
            let expected: Vec<Bytes> = told_of.iter().map(tell).collect();
            let differ = messages.iter().zip(&expected).position(|(m, e)| m != e);
            assert!(
                messages == expected,
                "shard {shard}: {} messages of {} commands, different from the {differ:?}th on: {:?}, {:?}",
                messages.len(),
                expected.len(),
                messages
                    .iter()
                    .skip(differ.unwrap_or(0))
                    .take(3)
                    .collect::<Vec<_>>(),
                expected
                    .iter()
                    .skip(differ.unwrap_or(0))
                    .take(3)
                    .collect::<Vec<_>>(),
            );
            assert_eq!(events.len(), commands.len(), "shard {shard}");
            assert!(
                events == commands,
                "shard {shard}: each command once, in order"
            );
            let count = count_in(&self.log.snapshot(shard).unwrap());
            assert_eq!(count, commands.len() as u64, "as the events say");
        }
        let counts = self.log.submit_counts();
        println!("{counts:?}, {refused} refused");
        while !self.nodes.is_empty() {
            self.leave();
        }
    }
}

/// All records of a partition.
fn texts(log: &KafkaLog, topic: Topic, shard: u16) -> Vec<Bytes> {
    let mut all: Vec<Bytes> = Vec::new();
    let mut next = 0;
    while let Ok(records) = log.read(topic, shard, next, 10_000)
        && let Some(last) = records.last()
    {
        next = last.offset + 1;
        all.extend(records.into_iter().map(|record| record.value));
    }
    all
}

fn count_in(recovered: &Recovered) -> u64 {
    let count = recovered.states.iter().find(|(key, _)| key == "count");
    count.map_or(0, |(_, value)| {
        String::from_utf8_lossy(value).parse().unwrap()
    })
}

/// What a message to another shard begins with; the rest is the command it tells of.
const MESSAGE: &[u8] = b"of ";

fn is_message(command: &[u8]) -> bool {
    command.starts_with(MESSAGE)
}

/// A node: for each command one event that repeats it, a count as state, and a message to the next shard through the
/// log, which that shard treats as a command, but that it tells nobody of it.
struct Node {
    owner: KafkaOwner,
    shards: u16,
    name: String,
    answers: Arc<Answers>,
    counts: BTreeMap<u16, u64>,
    /// Ours, not read back yet: when to try.
    pending: BTreeMap<u16, Instant>,
}

impl Node {
    fn new(log: &KafkaLog, name: &str, answers: Arc<Answers>) -> Node {
        Node {
            owner: log.own(name, "").unwrap(),
            shards: log.shards(),
            name: name.to_owned(),
            answers,
            counts: BTreeMap::new(),
            pending: BTreeMap::new(),
        }
    }

    fn throw_away(&mut self) {
        self.counts.clear();
        let now = Instant::now();
        self.pending = self.owner.shards().into_iter().map(|s| (s, now)).collect();
    }

    fn recover_pending(&mut self) {
        let ours = self.owner.shards();
        self.pending.retain(|shard, _| ours.contains(shard));
        let now = Instant::now();
        let due = self.pending.iter().filter(|(_, at)| **at <= now);
        let due: Vec<u16> = due.map(|(shard, _)| *shard).collect();
        for shard in due {
            match self.owner.recover(shard) {
                Ok(recovered) => {
                    self.pending.remove(&shard);
                    self.counts.insert(shard, count_in(&recovered));
                }
                Err(RecoverError::Unavailable(why)) => {
                    println!("{}: shard {shard}, not yet: {why}", self.name);
                    self.pending.insert(shard, Instant::now() + RETRY);
                }
                Err(why) => panic!("shard {shard}: {why}"),
            }
        }
    }

    fn step(&mut self) {
        self.recover_pending();
        let polled = match self.owner.poll(Duration::from_millis(20), 500) {
            Ok(polled) => polled,
            Err(PollError::NotRecovered(shard)) if self.pending.contains_key(&shard) => {
                std::thread::park_timeout(Duration::from_millis(20));
                return;
            }
            Err(PollError::NotRecovered(_)) => return self.throw_away(),
            Err(why) => panic!("{why}"),
        };
        for shard in polled.lost {
            self.counts.remove(&shard);
            self.pending.remove(&shard);
        }
        for shard in polled.gained {
            self.counts.remove(&shard);
            self.pending.insert(shard, Instant::now());
        }
        let mut tx = Transaction::default();
        let mut headers: BTreeMap<u16, Header> = BTreeMap::new();
        for (shard, record) in polled.commands {
            let Some(count) = self.counts.get_mut(&shard) else {
                continue;
            };
            *count += 1;
            if !is_message(&record.value) {
                tx.commands.push(Append {
                    topic: Topic::RideCommands,
                    shard: (shard + 1) % self.shards,
                    key: Bytes::new(),
                    value: [MESSAGE, &record.value].concat().into(),
                });
            }
            tx.events.push(Append {
                topic: Topic::RideEvents,
                shard,
                key: Bytes::from_static(b"ride"),
                value: record.value,
            });
            tx.states.push(StateChange {
                shard,
                key: Bytes::from_static(b"count"),
                value: Some(Bytes::from(count.to_string())),
            });
            let header = headers.entry(shard).or_default();
            header.next_input = record.offset + 1;
        }
        if headers.is_empty() {
            return;
        }
        let shards: Vec<u16> = headers.keys().copied().collect();
        tx.headers = headers.into_iter().collect();
        match self.owner.commit(&tx) {
            Ok(()) => shards
                .iter()
                .for_each(|shard| self.answers.answered(*shard)),
            Err(
                why @ (CommitError::Ambiguous(_)
                | CommitError::Moved(_)
                | CommitError::NotRecovered(_)),
            ) => {
                println!("{}: {why}", self.name);
                self.throw_away();
            }
            Err(why) => panic!("{why}"),
        }
    }
}
