//! Damaged files: whatever is read back is right, or an error that names the file and the remedy. Never a wrong
//! answer, never a crash.

use std::fs::OpenOptions;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use cabrank_eventlog::{
    Append, EmbeddedLog, EventLog, Header, LOCK_FILE, OpenError, Options, ReadError, Record,
    Recovered, STORE_FILE, ShardOwner, StateChange, Topic, Transaction,
};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

const SHARDS: u16 = 2;
const TOPICS: [Topic; 3] = [Topic::RideCommands, Topic::RideEvents, Topic::PersonEvents];

fn options() -> Options {
    Options {
        shards: SHARDS,
        // Next to no cache, so that reading goes to the damaged file.
        cache_bytes: 64 << 10,
        ..Options::default()
    }
}

/// How many damages each test does; CABRANK_SEEDS asks for more.
fn seeds() -> u64 {
    std::env::var("CABRANK_SEEDS").map_or(300, |seeds| seeds.parse().unwrap())
}

/// Panics of redb are expected here, by the dozen, and contained; only others are worth reading.
fn hush_contained_panics() {
    let loud = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let of_redb = panic
            .location()
            .is_some_and(|place| place.file().contains("redb"));
        if !of_redb {
            loud(panic);
        }
    }));
}

/// Everything a store says of itself.
#[derive(PartialEq, Debug)]
struct Content {
    logs: Vec<Vec<Record>>,
    shards: Vec<Recovered>,
}

fn content(log: &EmbeddedLog) -> Result<Content, ReadError> {
    let mut content = Content {
        logs: Vec::new(),
        shards: Vec::new(),
    };
    for shard in 0..SHARDS {
        for topic in TOPICS {
            let mut records = Vec::new();
            let end = log.bounds(topic, shard)?.end;
            while (records.len() as u64) < end {
                let page = log.read(topic, shard, records.len() as u64, 500)?;
                assert!(!page.is_empty(), "a read before the end gives something");
                records.extend(page);
            }
            content.logs.push(records);
        }
        content.shards.push(log.snapshot(shard)?);
    }
    Ok(content)
}

/// A store with a past: commands, two topics of events, states that changed and ended.
fn write_store(dir: &Path) -> Content {
    let mut dice = SmallRng::seed_from_u64(7);
    let log = EmbeddedLog::open(dir, options()).unwrap();
    let mut owner = log.own("node").unwrap();
    for shard in 0..SHARDS {
        owner.recover(shard).unwrap();
    }
    let mut next = vec![0; usize::from(SHARDS)];
    for commit in 0..60 {
        for n in 0..20 {
            let value = Bytes::from(vec![n; dice.random_range(1..300)]);
            let key = Bytes::from(format!("rider-{n}"));
            log.submit(u16::from(n) % SHARDS, key, value).unwrap();
        }
        let polled = owner.poll(Duration::ZERO, 100).unwrap();
        let mut tx = Transaction::default();
        for (shard, record) in polled.commands {
            next[usize::from(shard)] = record.offset + 1;
            for topic in &TOPICS[1..] {
                tx.events.push(Append {
                    topic: *topic,
                    shard,
                    key: record.key.clone(),
                    value: Bytes::from(format!("{commit} {topic} {}", record.offset)),
                });
            }
            let ended = dice.random_range(0..4) == 0;
            tx.states.push(StateChange {
                shard,
                key: Bytes::from(format!("entity-{}", dice.random_range(0..100))),
                value: (!ended).then(|| record.value.clone()),
            });
        }
        for shard in 0..SHARDS {
            let header = Header {
                next_input: next[usize::from(shard)],
                ..Header::default()
            };
            tx.headers.push((shard, header));
        }
        owner.commit(&tx).unwrap();
    }
    content(&log).unwrap()
}

/// Does some damage to a file, and says which.
fn damage(path: &Path, dice: &mut SmallRng) -> String {
    let mut file = OpenOptions::new().write(true).open(path).unwrap();
    let len = file.metadata().unwrap().len();
    let whole = std::fs::read(path).unwrap();
    // Half of the time near the start, where redb keeps its own header.
    let at = match dice.random_range(0..4) {
        0 => dice.random_range(0..4_096.min(len)),
        _ => dice.random_range(0..len),
    };
    let mut overwrite = |at: u64, bytes: &[u8]| {
        file.seek(SeekFrom::Start(at)).unwrap();
        let room = usize::try_from(len - at).unwrap().min(bytes.len());
        file.write_all(&bytes[..room]).unwrap();
    };
    match dice.random_range(0..5) {
        0 => {
            let bit = dice.random_range(0..8);
            overwrite(at, &[whole[usize::try_from(at).unwrap()] ^ (1 << bit)]);
            format!("bit {bit} of byte {at} flipped")
        }
        1 => {
            let at = at / 512 * 512;
            overwrite(at, &[0; 512]);
            format!("sector at {at} zeroed")
        }
        2 => {
            let at = at / 4_096 * 4_096;
            let mut noise = [0; 4_096];
            dice.fill(&mut noise[..]);
            overwrite(at, &noise);
            format!("page at {at} filled with noise")
        }
        3 => {
            let from = dice.random_range(0..len / 4_096) * 4_096;
            let at = at / 4_096 * 4_096;
            let from_index = usize::try_from(from).unwrap();
            overwrite(at, &whole[from_index..from_index + 4_096]);
            format!("page at {from} copied over the page at {at}")
        }
        _ => {
            file.set_len(at).unwrap();
            format!("cut to {at} of {len} bytes")
        }
    }
}

fn names_file_and_remedy(error: &str) -> bool {
    error.contains(STORE_FILE) && (error.contains("restore") || error.contains("check that"))
}

fn copy(from: &Path, to: &Path) {
    for file in [STORE_FILE, LOCK_FILE] {
        std::fs::copy(from.join(file), to.join(file)).unwrap();
    }
}

#[test]
fn a_damaged_file_is_refused_or_reads_right() {
    hush_contained_panics();
    let original = tempfile::tempdir().unwrap();
    let expected = write_store(original.path());
    let mut refused = 0;
    for seed in 0..seeds() {
        let dir = tempfile::tempdir().unwrap();
        copy(original.path(), dir.path());
        let mut dice = SmallRng::seed_from_u64(seed);
        let done = damage(&dir.path().join(STORE_FILE), &mut dice);
        let told = |error: String| {
            assert!(
                names_file_and_remedy(&error),
                "seed {seed}, {done}: {error}"
            );
        };
        match EmbeddedLog::open(dir.path(), options()) {
            Err(OpenError::Corrupt(error)) => {
                refused += 1;
                told(error);
            }
            Err(error) => panic!("seed {seed}, {done}: {error}"),
            Ok(log) => match content(&log) {
                Ok(found) => assert!(found == expected, "seed {seed}, {done}: a wrong answer"),
                Err(ReadError::Corrupt(error)) => {
                    refused += 1;
                    told(error);
                }
                Err(error) => panic!("seed {seed}, {done}: {error}"),
            },
        }
    }
    println!(
        "{refused} of {} damages met what is in use, and were refused",
        seeds()
    );
    assert!(refused > seeds() / 4 && refused < seeds(), "{refused}");
}

#[test]
fn a_file_damaged_while_it_is_read_gives_errors_or_right_records() {
    hush_contained_panics();
    let original = tempfile::tempdir().unwrap();
    let expected = write_store(original.path());
    let mut refused = 0;
    for seed in 0..seeds() {
        let dir = tempfile::tempdir().unwrap();
        copy(original.path(), dir.path());
        let log = EmbeddedLog::open(dir.path(), options()).unwrap();
        let mut dice = SmallRng::seed_from_u64(seed);
        let done = damage(&dir.path().join(STORE_FILE), &mut dice);
        match content(&log) {
            Ok(found) => assert!(found == expected, "seed {seed}, {done}: a wrong answer"),
            Err(ReadError::Corrupt(error)) => {
                refused += 1;
                assert!(
                    names_file_and_remedy(&error),
                    "seed {seed}, {done}: {error}"
                );
            }
            // redb reads nothing more after a read that failed, of a page that was cut off.
            Err(ReadError::Unavailable(_)) => refused += 1,
            Err(error) => panic!("seed {seed}, {done}: {error}"),
        }
    }
    println!("{refused} of {} damages were met by readers", seeds());
    assert!(refused > seeds() / 20, "{refused}");
}

#[test]
fn a_store_older_than_its_lock_file_says_so() {
    let dir = tempfile::tempdir().unwrap();
    write_store(dir.path());
    let backup = std::fs::read(dir.path().join(STORE_FILE)).unwrap();
    drop(
        EmbeddedLog::open(dir.path(), options())
            .unwrap()
            .own("one more commit")
            .unwrap(),
    );
    std::fs::write(dir.path().join(STORE_FILE), backup).unwrap();
    let error = EmbeddedLog::open(dir.path(), options()).unwrap_err();
    let OpenError::Corrupt(text) = error else {
        panic!("{error}");
    };
    assert!(text.contains("the newest commits are lost"), "{text}");
    assert!(text.contains(LOCK_FILE), "{text}");
    // The remedy it names.
    std::fs::remove_file(dir.path().join(LOCK_FILE)).unwrap();
    EmbeddedLog::open(dir.path(), options()).unwrap();
}

#[test]
fn a_file_that_is_no_store_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(STORE_FILE);
    std::fs::write(&path, "rider,driver\n".repeat(1_000)).unwrap();
    let error = EmbeddedLog::open(dir.path(), options()).unwrap_err();
    assert!(names_file_and_remedy(&error.to_string()), "{error}");
    assert_eq!(
        std::fs::read(&path).unwrap(),
        "rider,driver\n".repeat(1_000).as_bytes()
    );
}
