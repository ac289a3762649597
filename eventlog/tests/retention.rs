//! Trimming under tiny bounds: whatever is trimmed, base + events = states, and nothing unconsumed goes.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use cabrank_eventlog::{
    Append, EmbeddedLog, EmbeddedOwner, EventLog, Header, Options, ReadError, Recovered, Retention,
    STORE_FILE, ShardOwner, StateChange, Topic, Transaction,
};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

const SHARDS: u16 = 2;
const EVENTS: [Topic; 2] = [Topic::RideEvents, Topic::PersonEvents];

/// A store whose clock stands in the test's hands.
struct City {
    dir: tempfile::TempDir,
    clock: Arc<AtomicI64>,
    retention: Retention,
    log: EmbeddedLog,
    owner: EmbeddedOwner,
    next_input: Vec<u64>,
    /// Every event there ever was, per shard and topic: what the store itself forgets.
    past: BTreeMap<(u16, Topic), Vec<(Bytes, Bytes)>>,
}

fn open(dir: &Path, clock: &Arc<AtomicI64>, retention: Retention) -> (EmbeddedLog, EmbeddedOwner) {
    let clock = Arc::clone(clock);
    let log = EmbeddedLog::open(
        dir,
        Options {
            shards: SHARDS,
            retention,
            // Relaxed: a number by itself, set by the same thread.
            clock: Arc::new(move || clock.load(Ordering::Relaxed)),
            ..Options::default()
        },
    )
    .unwrap();
    let mut owner = log.own("node").unwrap();
    for shard in 0..SHARDS {
        owner.recover(shard).unwrap();
    }
    (log, owner)
}

impl City {
    fn new(retention: Retention) -> City {
        let dir = tempfile::tempdir().unwrap();
        let clock = Arc::new(AtomicI64::new(1_000));
        let (log, owner) = open(dir.path(), &clock, retention);
        City {
            dir,
            clock,
            retention,
            log,
            owner,
            next_input: vec![0; usize::from(SHARDS)],
            past: BTreeMap::new(),
        }
    }

    fn reopen(self) -> City {
        let City {
            dir,
            clock,
            retention,
            log,
            owner,
            next_input,
            past,
        } = self;
        drop((log, owner));
        let (log, owner) = open(dir.path(), &clock, retention);
        City {
            dir,
            clock,
            retention,
            log,
            owner,
            next_input,
            past,
        }
    }

    fn pass(&self, ms: i64) {
        // Relaxed: a number by itself, read by the same thread.
        self.clock.fetch_add(ms, Ordering::Relaxed);
    }

    /// Some commands arrive, some are consumed, some entities change: one event per change, which tells the change.
    fn step(&mut self, dice: &mut SmallRng, entities: u32) {
        for _ in 0..dice.random_range(0..6) {
            let shard = dice.random_range(0..SHARDS);
            self.log
                .submit(shard, Bytes::new(), Bytes::from(vec![1; 40]))
                .unwrap();
        }
        for (shard, record) in self.owner.poll(Duration::ZERO, 100).unwrap().commands {
            self.next_input[usize::from(shard)] = record.offset + 1;
        }
        let mut tx = Transaction::default();
        for shard in 0..SHARDS {
            for _ in 0..dice.random_range(0..30) {
                let entity = dice.random_range(0..entities);
                // An entity keeps to one topic, as rides and people do.
                let topic = EVENTS[entity as usize % 2];
                let key = Bytes::from(format!("entity-{entity}"));
                let ends = dice.random_range(0..3) == 0;
                let value = (!ends).then(|| Bytes::from(dice.random::<u64>().to_string()));
                self.past
                    .entry((shard, topic))
                    .or_default()
                    .push((key.clone(), value.clone().unwrap_or_default()));
                tx.events.push(Append {
                    topic,
                    shard,
                    key: key.clone(),
                    value: value.clone().unwrap_or_default(),
                });
                tx.states.push(StateChange { shard, key, value });
            }
            let header = Header {
                next_input: self.next_input[usize::from(shard)],
                ..Header::default()
            };
            tx.headers.push((shard, header));
        }
        self.owner.commit(&tx).unwrap();
    }

    fn events(&self, topic: Topic, shard: u16, from: u64) -> Vec<(Bytes, Bytes)> {
        let mut events = Vec::new();
        loop {
            let page = self
                .log
                .read(topic, shard, from + events.len() as u64, 5_000)
                .unwrap();
            if page.is_empty() {
                return events;
            }
            events.extend(page.into_iter().map(|r| (r.key, r.value)));
        }
    }

    /// Invariant 5 of the design, from the oldest retained snapshot.
    fn check(&self, what: &str) {
        for shard in 0..SHARDS {
            let base = self.log.base(shard).unwrap();
            let now = self.log.snapshot(shard).unwrap();
            let mut fold: BTreeMap<Bytes, Bytes> = BTreeMap::new();
            for (topic, end) in &base.event_ends {
                let past = self.past.get(&(shard, *topic)).map_or(&[][..], |p| p);
                apply(&mut fold, &past[..usize::try_from(*end).unwrap()]);
            }
            let copied: BTreeMap<Bytes, Bytes> = base.states.iter().cloned().collect();
            assert!(
                copied == fold,
                "{what}: the base is not of the moment it says"
            );
            for (topic, end) in &base.event_ends {
                let bounds = self.log.bounds(*topic, shard).unwrap();
                assert!(
                    bounds.first <= *end,
                    "{what}: {topic} trimmed beyond the base"
                );
                apply(&mut fold, &self.events(*topic, shard, *end));
            }
            let states: BTreeMap<Bytes, Bytes> = now.states.into_iter().collect();
            assert!(fold == states, "{what}: base + events are not the states");
            let commands = self.log.bounds(Topic::RideCommands, shard).unwrap();
            assert!(commands.first <= now.header.unwrap().next_input, "{what}");
        }
    }

    fn kept(&self, topic: Topic, shard: u16) -> u64 {
        let bounds = self.log.bounds(topic, shard).unwrap();
        bounds.end - bounds.first
    }
}

fn apply(states: &mut BTreeMap<Bytes, Bytes>, events: &[(Bytes, Bytes)]) {
    for (key, value) in events {
        match value.is_empty() {
            true => states.remove(key),
            false => states.insert(key.clone(), value.clone()),
        };
    }
}

fn bound_by_records(records: u64) -> Retention {
    Retention {
        records,
        ..Retention::default()
    }
}

#[test]
fn base_and_events_are_the_states_whatever_was_trimmed() {
    for seed in 0..4 {
        let mut dice = SmallRng::seed_from_u64(seed);
        // More entities than one step copies, so that states change while a copy is under way.
        let entities = [40, 4_000][usize::from(seed % 2 == 1)];
        let mut city = City::new(bound_by_records(600));
        for step in 0..300 {
            city.step(&mut dice, entities);
            if dice.random_range(0..40) == 0 {
                city = city.reopen();
            }
            if step % 9 == 0 {
                city.check(&format!("seed {seed} step {step}"));
            }
        }
        for shard in 0..SHARDS {
            for topic in EVENTS {
                let bounds = city.log.bounds(topic, shard).unwrap();
                assert!(
                    bounds.first > 1_000,
                    "seed {seed}: {topic} is trimmed: {bounds:?}"
                );
                assert!(city.kept(topic, shard) < 1_000, "seed {seed}: {bounds:?}");
            }
            // The topic that fills first decides for both.
            let fuller = EVENTS
                .map(|topic| city.kept(topic, shard))
                .into_iter()
                .max();
            assert!(
                fuller >= Some(200),
                "seed {seed}: {fuller:?} events kept of 600"
            );
            assert!(city.kept(Topic::RideCommands, shard) <= 620);
        }
    }
}

#[test]
fn bytes_and_age_are_bounds_too() {
    let bounds = [
        Retention {
            bytes: 40_000,
            ..Retention::default()
        },
        Retention {
            age_ms: 60_000,
            ..Retention::default()
        },
    ];
    for retention in bounds {
        let mut dice = SmallRng::seed_from_u64(3);
        let mut city = City::new(retention);
        for _ in 0..400 {
            city.pass(1_000);
            city.step(&mut dice, 50);
        }
        city.check("after 400 steps");
        for topic in EVENTS {
            let oldest = city.log.bounds(topic, 0).unwrap().first;
            let oldest = city.log.read(topic, 0, oldest, 1).unwrap()[0].time_ms;
            let age = 1_000 + 400_000 - oldest;
            assert!(city.kept(topic, 0) < 2_000, "{retention:?}");
            assert!(age < 120_000, "{retention:?}: the oldest is {age} ms old");
        }
    }
}

#[test]
fn commands_wait_for_their_consumer_however_many_they_are() {
    let mut city = City::new(bound_by_records(50));
    for _ in 0..500 {
        city.log
            .submit(0, Bytes::new(), Bytes::from_static(b"wait"))
            .unwrap();
    }
    let polled = city.owner.poll(Duration::ZERO, 1_000).unwrap();
    assert_eq!(polled.commands.len(), 500);
    let consume = |city: &mut City, next_input| {
        for _ in 0..4 {
            let header = Header {
                next_input,
                ..Header::default()
            };
            city.owner
                .commit(&Transaction {
                    headers: vec![(0, header)],
                    ..Transaction::default()
                })
                .unwrap();
        }
    };
    consume(&mut city, 100);
    let bounds = city.log.bounds(Topic::RideCommands, 0).unwrap();
    assert_eq!((bounds.first, bounds.end), (100, 500));
    assert_eq!(
        city.log.read(Topic::RideCommands, 0, 99, 1),
        Err(ReadError::TooOld { first: 100 })
    );
    consume(&mut city, 500);
    assert_eq!(city.log.bounds(Topic::RideCommands, 0).unwrap().first, 450);
    let city = city.reopen();
    assert_eq!(city.kept(Topic::RideCommands, 0), 50);
}

#[test]
fn a_log_that_was_never_trimmed_has_an_empty_base() {
    let mut city = City::new(Retention::default());
    city.step(&mut SmallRng::seed_from_u64(1), 10);
    let empty = Recovered {
        event_ends: EVENTS.iter().map(|topic| (*topic, 0)).collect(),
        ..Recovered::default()
    };
    assert_eq!(city.log.base(0), Ok(empty));
}

#[test]
fn the_file_stops_growing_under_a_steady_load() {
    let mut dice = SmallRng::seed_from_u64(9);
    let mut city = City::new(bound_by_records(500));
    let mut size = |steps: usize| {
        for _ in 0..steps {
            city.step(&mut dice, 100);
        }
        std::fs::metadata(city.dir.path().join(STORE_FILE))
            .unwrap()
            .len()
    };
    let early = size(300);
    let late = size(600);
    assert!(
        late <= early * 2,
        "{early} bytes after 300 commits, {late} after 900"
    );
}
