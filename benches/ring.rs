//! What does it cost to ask which shard?
//!
//! 4,096 cells and ids in turn, eight shards. Beside the ring stands a plain modulo of the same hash: it is the
//! floor, faster, and would move eight of nine keys when a ninth shard comes.

use std::hash::{DefaultHasher, Hasher};
use std::hint::black_box;

use cabrank_ring::{Kind, Ring};
use criterion::{Criterion, criterion_group, criterion_main};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

const SEED: u64 = 30;
const SHARDS: u16 = 8;
const KEYS: usize = 4_096;

fn lookups(c: &mut Criterion) {
    let mut random = SmallRng::seed_from_u64(SEED);
    let cells: Vec<u64> = (0..KEYS).map(|_| random.random()).collect();
    let ids: Vec<String> = (0..KEYS).map(|n| format!("driver-{n}")).collect();
    let mut turn = (0..KEYS).cycle();
    let mut next = move || turn.next().expect("a cycle does not end");

    let mut group = c.benchmark_group("ring");
    for shards in [SHARDS, 64] {
        let ring = Ring::new(shards).expect("a possible ring");
        group.bench_function(format!("cell/{shards}_shards"), |b| {
            b.iter(|| ring.shard_of_cell(black_box(cells[next()])));
        });
        group.bench_function(format!("person/{shards}_shards"), |b| {
            b.iter(|| ring.shard_of_person(Kind::Driver, black_box(&ids[next()])));
        });
    }
    group.bench_function("cell/modulo", |b| {
        b.iter(|| modulo(&black_box(cells[next()]).to_be_bytes()));
    });
    group.bench_function("person/modulo", |b| {
        b.iter(|| modulo(black_box(&ids[next()]).as_bytes()));
    });
    group.bench_function("new/8_shards", |b| b.iter(|| Ring::new(black_box(SHARDS))));
    group.finish();
}

/// std's hash, the same SipHash-1-3 today, by the number of shards.
fn modulo(key: &[u8]) -> u16 {
    let mut hasher = DefaultHasher::new();
    hasher.write(key);
    (hasher.finish() % u64::from(SHARDS)) as u16
}

criterion_group!(benches, lookups);
criterion_main!(benches);
