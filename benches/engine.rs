//! How many rides a second does the engine decide, with nothing around it?
//!
//! One thread, in memory: no log, no index, no socket. A ride is six commands of people, some twenty events over three
//! shards. `decide` is the engine alone; `decide_and_encode` also writes the JSON of every event and every changed state, as a
//! commit does. `plain_map` is the least anybody could do: two hash maps and a stage, no outcome, no repeatable command, no
//! claim, no timer, one line of JSON for each step.
//!
//! Seeds: none, everything is counted. Under `cargo test` each runs once.

use std::collections::HashMap;
use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};

#[path = "common/lifecycle.rs"]
mod lifecycle;
use lifecycle::{COMMANDS, City};

const DRIVERS: usize = if cfg!(debug_assertions) { 50 } else { 5_000 };
/// So many rides are behind the city when the clock starts: as many ended ones are remembered as later on.
const RIDES_BEFORE: usize = if cfg!(debug_assertions) { 10 } else { 2_000 };

/// Rides and drivers in maps, for comparison.
#[derive(Default)]
struct Plain {
    rides: HashMap<u64, (&'static str, String)>,
    held: HashMap<String, u64>,
    next: u64,
}

impl Plain {
    fn ride(&mut self, written: &mut Vec<Vec<u8>>) {
        let ride = self.next;
        self.next += 1;
        let driver = format!("driver-{}", ride % DRIVERS as u64);
        self.held.insert(driver.clone(), ride);
        for stage in [
            "offered",
            "received",
            "accepted",
            "arrived",
            "started",
            "completed",
        ] {
            self.rides.insert(ride, (stage, driver.clone()));
            let event = serde_json::json!({ "ride": ride, "driver": driver, "stage": stage });
            written.push(event.to_string().into_bytes());
        }
        self.held.remove(&driver);
        self.rides.remove(&ride);
    }
}

fn rides(c: &mut Criterion) {
    let mut group = c.benchmark_group("engine");
    group
        .measurement_time(Duration::from_secs(5))
        .warm_up_time(Duration::from_secs(1));
    group.throughput(Throughput::Elements(COMMANDS));
    let mut city = City::new(DRIVERS);
    (0..RIDES_BEFORE).for_each(|_| city.ride(|_, _| {}));
    group.bench_function("ride/decide", |b| {
        b.iter(|| {
            city.ride(|_, batch| {
                black_box(batch);
            });
        });
    });
    group.bench_function("ride/decide_and_encode", |b| {
        b.iter(|| {
            city.ride(|host, batch| {
                for record in &batch.events {
                    black_box(record.to_json());
                }
                for (shard, entity) in &batch.changed {
                    let state = host.shard(*shard).and_then(|shard| shard.state_of(entity));
                    black_box(serde_json::to_vec(&state).expect("states are JSON"));
                }
            });
        });
    });
    let (mut plain, mut written) = (Plain::default(), Vec::new());
    group.bench_function("ride/plain_map", |b| {
        b.iter(|| {
            written.clear();
            plain.ride(&mut written);
            black_box(&written);
        });
    });
    group.finish();
}

criterion_group!(benches, rides);
criterion_main!(benches);
