//! How long a commit takes, fsync included, and how many commands a second go through.
//!
//! `cargo run --release -p cabrank-eventlog --example commit_latency [-- DIR]`. Between any
//! two commits stands a plain baseline on the same disk: one write of 4 KiB and one fdatasync.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use cabrank_eventlog::{
    Append, EmbeddedLog, EventLog, Header, Options, Retention, ShardOwner, StateChange, Topic,
    Transaction,
};

const EVENT_BYTES: usize = 250;
const STATE_BYTES: usize = 200;
const COMMAND_BYTES: usize = 150;

fn main() {
    let dir = std::env::args()
        .nth(1)
        .map_or_else(std::env::temp_dir, PathBuf::from)
        .join(format!("cabrank-commit-latency-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("the directory can be made");
    latency(&dir);
    throughput(&dir);
    std::fs::remove_dir_all(&dir).expect("the directory can be removed");
}

fn quantiles(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    let at = |q: usize| times[(times.len() - 1) * q / 1_000].as_secs_f64() * 1e3;
    format!(
        "p50 {:.3} p99 {:.3} max {:.3} ms ({} commits)",
        at(500),
        at(990),
        at(1_000),
        times.len()
    )
}

/// One write of 4 KiB and one fdatasync: what any durable answer costs at least on this disk at this moment.
struct Raw {
    file: File,
    times: Vec<Duration>,
}

impl Raw {
    fn new(dir: &Path) -> Raw {
        Raw {
            file: File::create(dir.join("raw")).expect("a file"),
            times: Vec::new(),
        }
    }

    fn write(&mut self) {
        let start = Instant::now();
        let place = SeekFrom::Start(self.times.len() as u64 % 64 * 4_096);
        self.file
            .seek(place)
            .and_then(|_| self.file.write_all(&[7; 4_096]))
            .and_then(|()| self.file.sync_data())
            .expect("a write");
        self.times.push(start.elapsed());
    }
}

/// Each command makes one event and one state, as a shard of its own would.
fn answer(commands: &[(u16, cabrank_eventlog::Record)], shards: u16) -> Transaction {
    let mut tx = Transaction::default();
    let mut next = vec![None; usize::from(shards)];
    for (shard, command) in commands {
        next[usize::from(*shard)] = Some(command.offset + 1);
        tx.events.push(Append {
            topic: Topic::RideEvents,
            shard: *shard,
            key: command.key.clone(),
            value: Bytes::from(vec![1; EVENT_BYTES]),
        });
        tx.states.push(StateChange {
            shard: *shard,
            key: command.key.clone(),
            value: Some(Bytes::from(vec![2; STATE_BYTES])),
        });
    }
    for (shard, next) in (0..shards).zip(next) {
        if let Some(next_input) = next {
            let header = Header {
                next_input,
                ..Header::default()
            };
            tx.headers.push((shard, header));
        }
    }
    tx
}

fn open(dir: &Path, name: &str, records: u64) -> EmbeddedLog {
    let options = Options {
        retention: Retention {
            records,
            ..Retention::default()
        },
        ..Options::default()
    };
    EmbeddedLog::open(&dir.join(name), options).expect("a store")
}

fn own(log: &EmbeddedLog) -> impl ShardOwner + use<> {
    let mut owner = log.own("bench").expect("ownership");
    for shard in owner.shards() {
        owner.recover(shard).expect("a new shard");
    }
    owner
}

fn submit(log: &EmbeddedLog, n: u64) -> bool {
    let key = format!("entity-{:05}", n % 20_000);
    let shard = u16::try_from(n % u64::from(log.shards())).unwrap_or(0);
    log.submit(shard, Bytes::from(key), Bytes::from(vec![3; COMMAND_BYTES]))
        .is_ok()
}

fn latency(dir: &Path) {
    let log = open(dir, "latency", 1_000_000);
    let mut owner = own(&log);
    let mut n = 0;
    for size in [1_usize, 10, 100, 1_000] {
        let mut times = Vec::new();
        let mut raw = Raw::new(dir);
        for _ in 0..(20_000 / size).clamp(100, 1_000) {
            raw.write();
            for _ in 0..size {
                assert!(submit(&log, n));
                n += 1;
            }
            let polled = owner.poll(Duration::ZERO, size).expect("commands");
            let tx = answer(&polled.commands, log.shards());
            let start = Instant::now();
            owner.commit(&tx).expect("a commit");
            times.push(start.elapsed());
        }
        println!(
            "commit of {size} commands, {size} events, {size} states: {}",
            quantiles(times)
        );
        println!(
            "    raw 4 KiB + fdatasync between them: {}",
            quantiles(raw.times)
        );
    }
}

/// Records kept per partition: so few that copying, trimming and clearing are part of what is measured.
const TRIMMED_TO: u64 = 10_000;

/// One thread submits as fast as the queue takes it, one answers. Then the store is opened again.
fn throughput(dir: &Path) {
    const COMMANDS: u64 = 200_000;
    let log = open(dir, "throughput", TRIMMED_TO);
    let mut owner = own(&log);
    let start = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0..COMMANDS {
                while !submit(&log, n) {
                    std::thread::yield_now();
                }
            }
        });
        let mut done = 0;
        let mut times = Vec::new();
        while done < COMMANDS {
            let polled = owner.poll(Duration::from_secs(1), 1_000).expect("commands");
            let tx = answer(&polled.commands, log.shards());
            let start = Instant::now();
            owner.commit(&tx).expect("a commit");
            times.push(start.elapsed());
            done += polled.commands.len() as u64;
        }
        println!("groups of up to 1,000 while trimming: {}", quantiles(times));
    });
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "{COMMANDS} commands with 3 records each, trimmed to {TRIMMED_TO} a partition: {:.0} commands/s",
        COMMANDS as f64 / seconds
    );
    drop((owner, log));
    let start = Instant::now();
    let log = open(dir, "throughput", TRIMMED_TO);
    println!(
        "opening and checking a file of {} MiB: {:.0} ms",
        std::fs::metadata(dir.join("throughput").join(cabrank_eventlog::STORE_FILE))
            .map_or(0, |m| m.len() >> 20),
        start.elapsed().as_secs_f64() * 1e3
    );
    drop(log);
}
