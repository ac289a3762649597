//! kill -9 at random moments under load: nothing acknowledged is lost, nothing happens twice, and the states are the
//! fold of the events.
//!
//! The test runs its own binary again as the victim. The victim's engine is as small as one can be: a command adds to
//! a counter of its shard, a hop for every third, one event each. What it acknowledges it writes to its output, after
//! the commit; the parent believes only that.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use cabrank_eventlog::{
    Append, EmbeddedLog, EventLog, Header, Options, Record, Retention, ShardOwner, StateChange,
    Topic, Transaction,
};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

const SHARDS: u16 = 3;
const KILLS: u64 = 50;
const COUNTERS: u64 = 40;
/// What one life submits at most, in commands: by the millisecond, so that a fast disk is under load to the end of it,
/// and in all, so that a parent that was slow to kill still finds everything. A third of each shard's share goes on as
/// hops: 15,000 / 3 * 4 / 3 is some 6,700 records a shard.
const LIFE_MAX: u64 = 15_000;
const SUBMITTED_PER_MS: u64 = 15;
const VICTIM_DIR: &str = "CABRANK_EVENTLOG_VICTIM";

fn open(dir: &Path) -> EmbeddedLog {
    EmbeddedLog::open(
        dir,
        Options {
            shards: SHARDS,
            // Small enough to be trimmed before the last kill, larger than what one life writes to a shard (see
            // LIFE_MAX), so that the check after it sees every record of that life.
            retention: Retention {
                records: 8_000,
                ..Retention::default()
            },
            ..Options::default()
        },
    )
    .unwrap()
}

/// What the toy engine knows of one shard.
#[derive(Default)]
struct Shard {
    next_input: u64,
    counters: BTreeMap<Bytes, u64>,
}

impl Shard {
    fn recover(owner: &mut impl ShardOwner, shard: u16) -> Shard {
        let recovered = owner.recover(shard).unwrap();
        Shard {
            next_input: recovered.header.map_or(0, |header| header.next_input),
            counters: recovered
                .states
                .into_iter()
                .map(|(key, value)| (key, number(&value)))
                .collect(),
        }
    }

    /// One command: the counter rises, an event says to what, every third goes on to the next shard as a hop.
    fn handle(&mut self, shard: u16, record: &Record, tx: &mut Transaction) {
        assert_eq!(
            record.offset, self.next_input,
            "no command is left out or repeated"
        );
        self.next_input += 1;
        let counter = self.counters.entry(record.key.clone()).or_default();
        *counter += 1;
        let text = format!("{counter} {}", String::from_utf8_lossy(&record.value));
        tx.events.push(Append {
            topic: Topic::RideEvents,
            shard,
            key: record.key.clone(),
            value: Bytes::from(text),
        });
        tx.states.push(StateChange {
            shard,
            key: record.key.clone(),
            value: Some(Bytes::from(counter.to_string())),
        });
        if counter.is_multiple_of(3) && !record.value.starts_with(b"hop") {
            tx.commands.push(Append {
                topic: Topic::RideCommands,
                shard: (shard + 1) % SHARDS,
                key: record.key.clone(),
                value: Bytes::from(format!("hop {}", String::from_utf8_lossy(&record.value))),
            });
        }
    }
}

fn number(value: &[u8]) -> u64 {
    std::str::from_utf8(value).unwrap().parse().unwrap()
}

/// Runs until killed: one thread submits, this one answers and acknowledges.
#[test]
fn victim() {
    let Some(dir) = std::env::var_os(VICTIM_DIR).map(PathBuf::from) else {
        return; // An ordinary test run: only the parent below starts victims.
    };
    let log = open(&dir);
    let mut owner = log.own("victim").unwrap();
    let mut shards: Vec<Shard> = (0..SHARDS)
        .map(|shard| Shard::recover(&mut owner, shard))
        .collect();
    let submitter = log.clone();
    std::thread::spawn(move || {
        // Ids are unique over all lives of the victim: process id and number.
        let life = std::process::id();
        let mut dice = SmallRng::seed_from_u64(u64::from(life));
        let born = Instant::now();
        for n in 0..LIFE_MAX {
            while n > u64::try_from(born.elapsed().as_millis()).unwrap() * SUBMITTED_PER_MS {
                std::thread::park_timeout(Duration::from_millis(1));
            }
            let key = Bytes::from(format!("counter-{}", dice.random_range(0..COUNTERS)));
            let value = Bytes::from(format!("{life}/{n}"));
            while submitter
                .submit(dice.random_range(0..SHARDS), key.clone(), value.clone())
                .is_err()
            {
                std::thread::yield_now();
            }
            if n.is_multiple_of(200) {
                submitter.sync().unwrap();
            }
        }
    });
    let out = std::io::stdout();
    loop {
        // An idle moment is no end: only the kill is.
        let polled = owner.poll(Duration::from_secs(5), 100).unwrap();
        let mut tx = Transaction::default();
        let mut acknowledged = String::new();
        for (shard, record) in &polled.commands {
            shards[usize::from(*shard)].handle(*shard, record, &mut tx);
            acknowledged.push_str(&format!(
                "ack {shard} {} {}\n",
                record.offset,
                String::from_utf8_lossy(&record.value)
            ));
        }
        for (shard, memory) in (0..SHARDS).zip(&shards) {
            let header = Header {
                next_input: memory.next_input,
                ..Header::default()
            };
            tx.headers.push((shard, header));
        }
        owner.commit(&tx).unwrap();
        let mut out = out.lock();
        out.write_all(acknowledged.as_bytes()).unwrap();
        out.flush().unwrap();
    }
}

/// Acknowledgements that reached the parent: (shard, offset) and the command.
type Acknowledged = BTreeMap<(u16, u64), String>;

/// Starts a victim, reads its acknowledgements, kills it after `life`.
fn one_life(dir: &Path, life: Duration, acknowledged: &mut Acknowledged) {
    let mut victim = Command::new(std::env::current_exe().unwrap())
        .args(["victim", "--exact", "--nocapture", "--test-threads=1"])
        .env(VICTIM_DIR, dir)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (send, receive) = std::sync::mpsc::sync_channel(100_000);
    let output = BufReader::new(victim.stdout.take().unwrap());
    let reader = std::thread::spawn(move || {
        for line in output.lines().map_while(Result::ok) {
            if send.send(line).is_err() {
                return;
            }
        }
    });
    let mut note = |line: String| {
        let mut words = line.splitn(4, ' ');
        if words.next() != Some("ack") {
            return;
        }
        let mut word = || words.next().map(str::to_owned);
        // The last line may be cut off by the kill; a cut value is a prefix and is compared as one.
        if let (Some(shard), Some(offset), Some(value)) = (word(), word(), word())
            && let (Ok(shard), Ok(offset)) = (shard.parse(), offset.parse())
        {
            acknowledged.insert((shard, offset), value);
        }
    };
    let deadline = Instant::now() + life;
    loop {
        match receive.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => note(line),
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => break,
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => {
                panic!("the victim died by itself: {:?}", victim.wait())
            }
        }
    }
    victim.kill().unwrap(); // SIGKILL
    victim.wait().unwrap();
    receive.iter().for_each(&mut note);
    reader.join().unwrap();
}

fn read_all(log: &EmbeddedLog, topic: Topic, shard: u16, from: u64) -> Vec<Record> {
    let mut all = Vec::new();
    loop {
        let page = log
            .read(topic, shard, from + all.len() as u64, 10_000)
            .unwrap();
        if page.is_empty() {
            return all;
        }
        all.extend(page);
    }
}

/// What the parent has checked of one shard so far; each life only adds to it.
#[derive(Default)]
struct Checked {
    commands: Vec<String>,
    events: usize,
    counters: BTreeMap<Bytes, u64>,
}

/// Everything that must hold of a killed store, looked at through the ordinary interface.
fn check(dir: &Path, acknowledged: &Acknowledged, checked: &mut [Checked]) {
    let log = open(dir);
    let mut hops_sent = BTreeSet::new();
    let mut hops_known = BTreeSet::new();
    for (shard, before) in (0..SHARDS).zip(checked.iter_mut()) {
        let seen = log.snapshot(shard).unwrap();
        let consumed = seen.header.map_or(0, |header| header.next_input);
        let new = read_all(
            &log,
            Topic::RideCommands,
            shard,
            before.commands.len() as u64,
        );
        before.commands.extend(
            new.iter()
                .map(|record| String::from_utf8_lossy(&record.value).into_owned()),
        );
        let commands = &before.commands;
        let distinct: BTreeSet<&String> = commands.iter().collect();
        assert_eq!(distinct.len(), commands.len(), "no command is stored twice");

        let events = read_all(&log, Topic::RideEvents, shard, before.events as u64);
        assert_eq!(
            (before.events + events.len()) as u64,
            consumed,
            "one event for each consumed command"
        );
        for event in &events {
            let counter = before.counters.entry(event.key.clone()).or_default();
            *counter += 1;
            let command = &commands[before.events];
            let expected = format!("{counter} {command}");
            assert_eq!(
                event.value, expected,
                "shard {shard} offset {}",
                event.offset
            );
            before.events += 1;
            if counter.is_multiple_of(3) && !command.starts_with("hop") {
                hops_sent.insert(format!("hop {command}"));
            }
        }
        hops_known.extend(commands.iter().filter(|c| c.starts_with("hop")).cloned());
        let states: BTreeMap<Bytes, u64> = seen
            .states
            .iter()
            .map(|(key, value)| (key.clone(), number(value)))
            .collect();
        assert_eq!(states, before.counters, "states are the fold of the events");
        check_base(&log, shard, &states);
        for (&(_, offset), value) in acknowledged.range((shard, 0)..(shard + 1, 0)) {
            assert!(
                offset < consumed,
                "acknowledged {value} of shard {shard} is lost"
            );
            let stored = &commands[usize::try_from(offset).unwrap()];
            assert!(
                stored.starts_with(value.as_str()),
                "{stored} is not {value}"
            );
        }
    }
    assert!(
        hops_sent.is_subset(&hops_known),
        "every message between shards is in the log"
    );
}

/// The oldest retained snapshot and the events after it give the states, whatever a kill cut short.
fn check_base(log: &EmbeddedLog, shard: u16, states: &BTreeMap<Bytes, u64>) {
    let base = log.base(shard).unwrap();
    let mut counters: BTreeMap<Bytes, u64> = base
        .states
        .iter()
        .map(|(key, value)| (key.clone(), number(value)))
        .collect();
    let (topic, end) = base.event_ends[0];
    for event in read_all(log, topic, shard, end) {
        *counters.entry(event.key).or_default() += 1;
    }
    assert!(counters == *states, "base + events are not the states");
}

#[test]
fn fifty_kills_lose_nothing_and_double_nothing() {
    let seed: u64 = std::env::var("CABRANK_SEED").map_or(2_026, |seed| seed.parse().unwrap());
    let mut dice = SmallRng::seed_from_u64(seed);
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged = Acknowledged::new();
    let mut checked: Vec<Checked> = (0..SHARDS).map(|_| Checked::default()).collect();
    let mut lives_that_worked = 0;
    let start = Instant::now();
    for kill in 0..KILLS {
        let before = acknowledged.len();
        let life = Duration::from_millis(dice.random_range(20..350));
        one_life(dir.path(), life, &mut acknowledged);
        lives_that_worked += u64::from(acknowledged.len() > before);
        let look = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            check(dir.path(), &acknowledged, &mut checked);
        }));
        if let Err(panic) = look {
            eprintln!("kill {kill} after {life:?}; repeat with CABRANK_SEED={seed}");
            std::panic::resume_unwind(panic);
        }
    }
    println!(
        "{KILLS} kills, {lives_that_worked} lives that acknowledged, {} commands acknowledged, {:?}",
        acknowledged.len(),
        start.elapsed()
    );
    assert!(lives_that_worked >= KILLS / 2, "the load was real");
}
