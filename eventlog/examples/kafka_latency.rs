//! How long a commit over a real Apache Kafka takes, and what an idle owner costs.
//!
//! `cargo run --release -p cabrank-eventlog --features kafka-testing --example kafka_latency`
//! starts one broker on this machine, warms it up for 20 s (the JIT), and prints for 4 and 8 shards: a commit that touches
//! one shard, and one that touches all, each with two events and one state of 250 bytes a shard; the time from `submit`
//! to the command in the owner's hands; and the share of one core that an idle owner takes.

use std::time::{Duration, Instant};

use bytes::Bytes;
use cabrank_eventlog::kafka::KafkaLog;
use cabrank_eventlog::kafka::testing::{Broker, broker};
use cabrank_eventlog::{Append, EventLog, Header, ShardOwner, StateChange, Topic, Transaction};

fn main() {
    let Some(broker) = broker() else { return };
    let warm = Instant::now();
    let mut round = 0;
    while warm.elapsed() < Duration::from_secs(20) {
        round += 1;
        measure(
            broker,
            4,
            Duration::from_secs(5),
            &format!("warm-up {round}"),
        );
    }
    measure(broker, 4, Duration::from_secs(8), "4 shards");
    measure(broker, 8, Duration::from_secs(8), "8 shards");
}

fn measure(broker: &Broker, shards: u16, each: Duration, what: &str) {
    let log = KafkaLog::open(broker.city(shards)).unwrap();
    let mut owner = log.own("node", "").unwrap();
    let mut gained = 0;
    while gained < usize::from(shards) {
        let polled = owner.poll(Duration::from_millis(50), 100).unwrap();
        for shard in &polled.gained {
            owner.recover(*shard).unwrap();
        }
        gained += polled.gained.len();
    }
    owner.poll(Duration::ZERO, 1).unwrap();
    let transaction = |touched: u16, has_events: bool| {
        let text = Bytes::from(vec![b'x'; 250]);
        let mut tx = Transaction::default();
        for shard in 0..touched {
            for topic in [Topic::RideEvents, Topic::PersonEvents] {
                tx.events.push(Append {
                    topic,
                    shard,
                    key: Bytes::from_static(b"entity"),
                    value: text.clone(),
                });
            }
            tx.states.push(StateChange {
                shard,
                key: Bytes::from_static(b"entity"),
                value: Some(text.clone()),
            });
            tx.headers.push((shard, Header::default()));
        }
        if !has_events {
            tx.events.clear();
        }
        tx
    };
    let mut commits = |touched: u16, has_events: bool, name: &str| {
        let tx = transaction(touched, has_events);
        let mut took = Vec::new();
        let began = Instant::now();
        while began.elapsed() < each / 4 {
            let at = Instant::now();
            owner.commit(&tx).unwrap();
            took.push(at.elapsed());
            owner.poll(Duration::ZERO, 1).unwrap();
        }
        show(what, name, &mut took);
    };
    commits(1, true, "commit touching 1 shard");
    commits(1, false, "the same without events");
    commits(shards, true, "commit touching all shards");
    commits(shards, false, "the same without events");
    let mut took = Vec::new();
    let began = Instant::now();
    while began.elapsed() < each / 4 {
        let at = Instant::now();
        log.submit(0, Bytes::new(), Bytes::from_static(b"x"))
            .unwrap();
        while owner
            .poll(Duration::from_millis(100), 10)
            .unwrap()
            .commands
            .is_empty()
        {}
        took.push(at.elapsed());
    }
    show(what, "submit to poll", &mut took);
    let (cpu, began) = (cpu_ms(), Instant::now());
    while began.elapsed() < each / 2 {
        owner.poll(Duration::from_millis(500), 10).unwrap();
    }
    let share = (cpu_ms() - cpu) as f64 / began.elapsed().as_millis() as f64;
    println!("{what}: idle {:.1} % of a core", share * 100.0);
}

fn show(what: &str, name: &str, took: &mut [Duration]) {
    took.sort_unstable();
    let at = |share: f64| took[((took.len() - 1) as f64 * share) as usize].as_secs_f64() * 1_000.0;
    println!(
        "{what}: {name}: p50 {:.1} ms, p99 {:.1} ms ({} times)",
        at(0.5),
        at(0.99),
        took.len()
    );
}

/// User and system time of this process; Linux counts it in hundredths of a second.
fn cpu_ms() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<u64> = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .map(|field| field.parse().unwrap_or(0))
        .collect();
    10 * (fields.get(11).unwrap_or(&0) + fields.get(12).unwrap_or(&0))
}
