//! What does a durable commit cost?
//!
//! Groups of 1, 16 and 256 commands over eight shards, each with an event of 250 bytes and a state of 200, as the commit loop
//! writes them: submitted, handed out, and in one transaction with fsync. `bare_append` writes as many bytes to the end of a
//! plain file and calls fdatasync: what any durable answer costs on this disk at this moment. It keeps no states, no
//! offsets and no bounds, and cannot be read back by key.
//!
//! Both write to the system's directory for temporary files; set TMPDIR to measure another disk.

use std::fs::File;
use std::io::Write;
use std::time::Duration;

use bytes::Bytes;
use cabrank_eventlog::{
    Append, EmbeddedLog, EmbeddedOwner, EventLog, Header, Options, Retention, ShardOwner,
    StateChange, Topic, Transaction,
};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

const EVENT_BYTES: usize = 250;
const STATE_BYTES: usize = 200;
const COMMAND_BYTES: usize = 150;
/// Entities whose states change in turn.
const ENTITIES: u64 = 20_000;

struct Store {
    log: EmbeddedLog,
    owner: EmbeddedOwner,
    commands: u64,
}

impl Store {
    fn new(dir: &std::path::Path) -> Self {
        let options = Options {
            retention: Retention {
                records: 10_000,
                ..Retention::default()
            },
            ..Options::default()
        };
        let log = EmbeddedLog::open(dir, options).expect("a store");
        let mut owner = log.own("bench").expect("ownership");
        for shard in owner.shards() {
            owner.recover(shard).expect("a new shard");
        }
        Self {
            log,
            owner,
            commands: 0,
        }
    }

    fn commit(&mut self, group: usize) {
        for _ in 0..group {
            let n = self.commands;
            self.commands += 1;
            let shard = u16::try_from(n % u64::from(self.log.shards())).expect("small");
            let key = Bytes::from(format!("entity-{:05}", n % ENTITIES));
            let command = Bytes::from(vec![3; COMMAND_BYTES]);
            self.log.submit(shard, key, command).expect("room");
        }
        let polled = self.owner.poll(Duration::ZERO, group).expect("commands");
        assert_eq!(polled.commands.len(), group);
        let mut transaction = Transaction::default();
        let mut next = vec![None; usize::from(self.log.shards())];
        for (shard, command) in &polled.commands {
            next[usize::from(*shard)] = Some(command.offset + 1);
            transaction.events.push(Append {
                topic: Topic::RideEvents,
                shard: *shard,
                key: command.key.clone(),
                value: Bytes::from(vec![1; EVENT_BYTES]),
            });
            transaction.states.push(StateChange {
                shard: *shard,
                key: command.key.clone(),
                value: Some(Bytes::from(vec![2; STATE_BYTES])),
            });
        }
        for (shard, next_input) in (0..).zip(next) {
            if let Some(next_input) = next_input {
                let header = Header {
                    next_input,
                    ..Header::default()
                };
                transaction.headers.push((shard, header));
            }
        }
        self.owner.commit(&transaction).expect("a commit");
    }
}

fn commits(c: &mut Criterion) {
    let dir = tempfile::tempdir().expect("a directory");
    let mut store = Store::new(dir.path());
    let mut file = File::create(dir.path().join("bare")).expect("a file");
    let mut group = c.benchmark_group("commit");
    group
        .sample_size(20)
        .measurement_time(Duration::from_secs(3))
        .warm_up_time(Duration::from_millis(500));
    for commands in [1, 16, 256] {
        group.throughput(Throughput::Elements(commands as u64));
        group.bench_function(BenchmarkId::new("embedded", commands), |b| {
            b.iter(|| store.commit(commands));
        });
        let bytes = vec![7; commands * (EVENT_BYTES + STATE_BYTES + COMMAND_BYTES)];
        group.bench_function(BenchmarkId::new("bare_append", commands), |b| {
            b.iter(|| {
                file.write_all(&bytes)
                    .and_then(|()| file.sync_data())
                    .expect("a write");
            });
        });
    }
    group.finish();
}

criterion_group!(benches, commits);
criterion_main!(benches);
