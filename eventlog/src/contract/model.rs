//! One long seeded history against plain lists: submits, commits, new owners, reopenings.

use std::collections::BTreeMap;

use super::{Home, Node, SHARDS, append, header, state, submit, values};
use crate::{EventLog, Record, Topic, Transaction};
use bytes::Bytes;

/// Small generator, so that a home's tests need no other crate: splitmix64.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % sides
    }
    fn shard(&mut self) -> u16 {
        u16::try_from(self.roll(u64::from(SHARDS))).unwrap_or(0)
    }
}

/// What the log must hold, as plain lists.
#[derive(Default, Clone, PartialEq, Debug)]
struct Model {
    commands: BTreeMap<u16, Vec<String>>,
    consumed: BTreeMap<u16, usize>,
    events: BTreeMap<u16, Vec<String>>,
    states: BTreeMap<u16, BTreeMap<String, String>>,
}

/// Random submits, commits, changes of owner and reopenings against plain lists.
pub fn a_seeded_history_matches_a_plain_model(home: &mut dyn Home) {
    for seed in 1..=2 {
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            seeded_history(home, seed, 120);
        }));
        if let Err(panic) = done {
            eprintln!("seed {seed} of a_seeded_history_matches_a_plain_model failed");
            std::panic::resume_unwind(panic);
        }
    }
}

fn seeded_history(home: &mut dyn Home, seed: u64, steps: u32) {
    let mut dice = Dice(seed);
    let mut log = home.log();
    let mut model = Model::default();
    // A second history starts where the first one ended, with all that was still waiting.
    log.sync().unwrap();
    for shard in 0..SHARDS {
        let records = log.read(Topic::RideCommands, shard, 0, 10_000).unwrap();
        model.commands.insert(shard, values(&records));
        let events = log.read(Topic::RideEvents, shard, 0, 10_000).unwrap();
        model.events.insert(shard, values(&events));
        let now = log.snapshot(shard).unwrap();
        let next = now.header.map_or(0, |h| h.next_input);
        let consumed = records.iter().filter(|record| record.offset < next);
        model.consumed.insert(shard, consumed.count());
        let text = |b: &Bytes| String::from_utf8_lossy(b).into_owned();
        model.states.insert(
            shard,
            now.states.iter().map(|(k, v)| (text(k), text(v))).collect(),
        );
    }
    let mut node = Node::start(home, "model");
    // Commands handed out to the present owner and not yet consumed.
    let mut inbox: BTreeMap<u16, Vec<Record>> = BTreeMap::new();
    for step in 0..steps {
        match dice.roll(10) {
            0..4 => {
                let shard = dice.shard();
                let value = format!("{seed}/{step}");
                submit(&*log, shard, &value);
                model.commands.entry(shard).or_default().push(value);
            }
            4..8 => {
                let waiting: usize = (0..SHARDS)
                    .map(|shard| {
                        model.commands[&shard].len()
                            - model.consumed[&shard]
                            - inbox.get(&shard).map_or(0, Vec::len)
                    })
                    .sum();
                for (shard, record) in node.take(waiting) {
                    inbox.entry(shard).or_default().push(record);
                }
                commit_some(&mut node, &mut model, &mut inbox, &mut dice);
            }
            8 => {
                log.sync().unwrap();
                node = Node::start(home, "next");
                inbox.clear();
            }
            _ => {
                // Only what was synced is promised to survive a closed log.
                log.sync().unwrap();
                drop(node);
                drop(log);
                home.reopen();
                log = home.log();
                node = Node::start(home, "reopened");
                inbox.clear();
            }
        }
        for shard in 0..SHARDS {
            agree(&*log, &model, shard);
        }
    }
}

/// Consumes a part of what was handed out: an event and a state per command, a hop for some.
fn commit_some(
    node: &mut Node,
    model: &mut Model,
    inbox: &mut BTreeMap<u16, Vec<Record>>,
    dice: &mut Dice,
) {
    let mut tx = Transaction::default();
    let mut hops = Vec::new();
    for (&shard, records) in inbox.iter_mut() {
        let count = usize::try_from(dice.roll(records.len() as u64 + 1)).unwrap();
        let mut next = None;
        for record in records.drain(..count) {
            let text = values(std::slice::from_ref(&record)).remove(0);
            let at = model.consumed[&shard];
            next = Some(record.offset + 1);
            assert_eq!(model.commands[&shard][at], text);
            model.consumed.insert(shard, at + 1);
            let entity = format!("e{}", dice.roll(5));
            tx.events
                .push(append(Topic::RideEvents, shard, &entity, &text));
            model.events.entry(shard).or_default().push(text.clone());
            let states = model.states.entry(shard).or_default();
            if dice.roll(4) == 0 {
                tx.states.push(state(shard, &entity, None));
                states.remove(&entity);
            } else {
                tx.states.push(state(shard, &entity, Some(&text)));
                states.insert(entity, text.clone());
            }
            if dice.roll(3) == 0 && text.len() < 30 {
                hops.push((dice.shard(), format!("{text}>")));
            }
        }
        let next = next.unwrap_or_else(|| node.next_input(shard));
        node.moved_to(shard, next);
        tx.headers.push((shard, header(next, 0, "")));
    }
    // A hop's place among commands from outside is the log's choice; with none waiting it is the next.
    for (to, text) in hops {
        tx.commands
            .push(append(Topic::RideCommands, to, "hop", &text));
        model.commands.entry(to).or_default().push(text);
    }
    node.owner.commit(&tx).unwrap();
}

fn agree(log: &dyn EventLog, model: &Model, shard: u16) {
    let events = log.read(Topic::RideEvents, shard, 0, 10_000).unwrap();
    assert_eq!(values(&events), model.events[&shard]);
    let now = log.snapshot(shard).unwrap();
    let states: BTreeMap<String, String> = now
        .states
        .iter()
        .map(|(key, value)| {
            let text = |b: &Bytes| String::from_utf8_lossy(b).into_owned();
            (text(key), text(value))
        })
        .collect();
    assert_eq!(states, model.states[&shard]);
    let next = now.header.map_or(0, |header| header.next_input);
    let stored = log.read(Topic::RideCommands, shard, 0, 10_000).unwrap();
    let consumed = stored.iter().filter(|record| record.offset < next).count();
    assert_eq!(consumed, model.consumed[&shard]);
    assert!(model.commands[&shard].starts_with(&values(&stored)));
}
