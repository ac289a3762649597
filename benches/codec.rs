//! What does it cost to read a ping?
//!
//! Frames as phones send them, 4,096 different ones in turn, coordinates and times drawn with a fixed seed: one ping in JSON,
//! ten in JSON, one and ten in Protobuf. Figures are per ping. `json` and `protobuf` are the
//! gateway's ways. Baselines in the same group: `json_serde` is the derived reader of a ping, `json_tagged` lets serde find the
//! message's type wherever it stands in the object, `json_tree` reads it into a tree of values as a program without types
//! would, and `json_ignored` walks the text and keeps nothing.

use std::hint::black_box;
use std::time::Duration;

use cabrank_events::proto;
use cabrank_events::wire::{FromDriver, Ping};
use cabrank_gateway::ping_json;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

#[path = "common/pings.rs"]
mod pings;
use pings::{frames, json};

const FRAMES: usize = 4_096;

fn decoding(c: &mut Criterion) {
    let mut group = c.benchmark_group("ping");
    group
        .measurement_time(Duration::from_secs(2))
        .warm_up_time(Duration::from_millis(500));
    for count in [1, 10] {
        group.throughput(Throughput::Elements(count as u64));
        let frames = frames(FRAMES, count);
        let texts: Vec<String> = frames.iter().map(json).collect();
        let binary: Vec<_> = frames.iter().map(proto::encode_from_driver).collect();
        let mut turn = (0..FRAMES).cycle();
        let mut next = move || turn.next().expect("a cycle does not end");
        if count == 1 {
            // What the gateway tries first.
            group.bench_function(BenchmarkId::new("json", count), |b| {
                b.iter(|| ping_json::read(black_box(&texts[next()])).expect("a ping"));
            });
            group.bench_function(BenchmarkId::new("json_serde", count), |b| {
                b.iter(|| serde_json::from_str::<Ping>(black_box(&texts[next()])).expect("a ping"));
            });
        }
        group.bench_function(BenchmarkId::new("json_tagged", count), |b| {
            b.iter(|| {
                serde_json::from_str::<FromDriver>(black_box(&texts[next()])).expect("a frame")
            });
        });
        group.bench_function(BenchmarkId::new("json_tree", count), |b| {
            b.iter(|| {
                serde_json::from_str::<serde_json::Value>(black_box(&texts[next()])).expect("JSON")
            });
        });
        group.bench_function(BenchmarkId::new("json_ignored", count), |b| {
            b.iter(|| {
                serde_json::from_str::<serde::de::IgnoredAny>(black_box(&texts[next()]))
                    .expect("JSON")
            });
        });
        group.bench_function(BenchmarkId::new("protobuf", count), |b| {
            b.iter(|| proto::decode_from_driver(black_box(&binary[next()])).expect("a frame"));
        });
    }
    group.finish();
}

criterion_group!(benches, decoding);
criterion_main!(benches);
