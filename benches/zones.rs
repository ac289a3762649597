//! What do zones cost a request?
//!
//! A city of 1,000 zones (the most there may be: one service area, the others airports and pickup zones of 24 corners with
//! three points each, over 40 x 40 km) and one of 10; places anywhere in the city. Beside the lookup a plain walk over all
//! zones, which is what the tree saves.

use std::hint::black_box;

use cabrank_geo::{Area, Finding, Point, Polygon, Spot, Zone, ZoneKind, Zones};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

const SEED: u64 = 7;
const HALF_SIDE_M: f64 = 20_000.0;
const CORNERS: u32 = 24;
const PLACES: usize = 4_096;

fn centre() -> Point {
    Point::new(37.765, -122.435).expect("a constant inside the ranges")
}

/// A regular outline around a place.
fn around(at: Point, radius_m: f64) -> Vec<Area> {
    let corners: Vec<Point> = (0..CORNERS)
        .map(|n| {
            let angle = f64::from(n) / f64::from(CORNERS) * std::f64::consts::TAU;
            at.offset_m(radius_m * angle.sin(), radius_m * angle.cos())
        })
        .collect();
    let outline = Polygon::new(&corners).expect("a regular outline");
    vec![Area::new(outline, Vec::new()).expect("no holes")]
}

fn anywhere(rng: &mut SmallRng) -> Point {
    let mut metres = || rng.random_range(-HALF_SIDE_M..HALF_SIDE_M);
    centre().offset_m(metres(), metres())
}

fn city(count: usize, rng: &mut SmallRng) -> Vec<Zone> {
    let mut zones = vec![Zone {
        name: "city".into(),
        kind: ZoneKind::ServiceArea,
        areas: around(centre(), HALF_SIDE_M * 1.5),
        spots: Vec::new(),
    }];
    for number in 1..count {
        let at = anywhere(rng);
        let spots = (0..3).map(|n| Spot {
            name: format!("{n}").into(),
            at: at.offset_m(f64::from(n) * 50.0, 0.0),
        });
        zones.push(Zone {
            name: format!("{number}").into(),
            kind: if number % 10 == 0 {
                ZoneKind::Airport
            } else {
                ZoneKind::PickupZone
            },
            areas: around(at, rng.random_range(100.0..600.0)),
            spots: spots.collect(),
        });
    }
    zones
}

fn walk(zones: &[Zone], at: Point) -> usize {
    zones
        .iter()
        .filter(|zone| zone.contains(at))
        .map(|zone| zone.spots.len())
        .sum()
}

fn zones(c: &mut Criterion) {
    let mut group = c.benchmark_group("zones");
    for count in [10, 1_000] {
        let mut rng = SmallRng::seed_from_u64(SEED);
        let city = city(count, &mut rng);
        let places: Vec<Point> = (0..PLACES).map(|_| anywhere(&mut rng)).collect();
        let lookup = Zones::new(city.clone()).expect("zones that make sense");
        let mut n = 0;
        let mut next = || {
            n = (n + 1) % PLACES;
            places[n]
        };
        group.bench_function(BenchmarkId::new("find", count), |b| {
            b.iter(|| matches!(black_box(lookup.find(next())), Finding::OutOfArea));
        });
        group.bench_function(BenchmarkId::new("walk", count), |b| {
            b.iter(|| black_box(walk(&city, next())));
        });
    }
    group.finish();
}

criterion_group!(benches, zones);
criterion_main!(benches);
