//! Many threads on the real machine: a driver that is there all the time is in every answer, once.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use cabrank_geo::{
    DriverKey, Filter, IndexConfig, LiveIndex, Near, Placed, Placement, Point, Polygon, Query,
    Slot, Status,
};
use rand::{Rng, SeedableRng, rngs::SmallRng};

const MIDDLE: (f64, f64) = (37.77, -122.42);

fn middle() -> Point {
    Point::new(MIDDLE.0, MIDDLE.1).unwrap()
}

fn filter() -> Filter {
    Filter {
        now_ms: 0,
        ping_ttl_ms: i64::MAX / 2,
        status: Some(Status::Free),
        classes: 1,
    }
}

fn enter_free(index: &LiveIndex, key: u64, at: Point) -> Slot {
    let slot = index.enter(DriverKey(key)).unwrap();
    index.place(
        slot,
        Placement {
            at,
            time_ms: 0,
            seq: 0,
        },
    );
    index.set_status(slot, Status::Free, 1, 1);
    slot
}

/// Sets the flag when dropped, so that a failing assertion ends the other threads too.
struct EndOthers<'a>(&'a AtomicBool);

impl Drop for EndOthers<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Drivers of `spread_m` about the middle move without pause; every answer holds each once.
fn present_drivers_are_seen_once(drivers: u64, spread_m: f64, queries: u32) {
    let index = LiveIndex::new(IndexConfig {
        drivers_max: drivers as u32 * 2,
        patch_m: 200.0,
    });
    let slots: Vec<Slot> = (0..drivers)
        .map(|key| enter_free(&index, key, middle()))
        .collect();
    let done = AtomicBool::new(false);
    let outline: Vec<Point> = [(-2.0, -2.0), (-2.0, 2.0), (2.0, 2.0), (2.0, -2.0)]
        .map(|(north, east)| middle().offset_m(north * spread_m, east * spread_m))
        .to_vec();
    let outline = Polygon::new(&outline).unwrap();
    std::thread::scope(|scope| {
        let _end = EndOthers(&done);
        for seed in 0..2 {
            let (index, slots, done) = (&index, &slots, &done);
            // Both threads write all drivers: the races for one slot are wanted.
            scope.spawn(move || {
                let mut rng = SmallRng::seed_from_u64(seed);
                for time_ms in 1.. {
                    let slot = slots[rng.random_range(0..slots.len())];
                    let (north, east) = (
                        rng.random_range(-spread_m..spread_m),
                        rng.random_range(-spread_m..spread_m),
                    );
                    let ping = Placement {
                        at: middle().offset_m(north, east),
                        time_ms,
                        seq: seed as u32,
                    };
                    assert_ne!(index.place(slot, ping), Placed::Gone);
                    if done.load(Ordering::Acquire) {
                        break;
                    }
                }
            });
        }
        // A third thread has passers-by come and go, so that slots are reused.
        scope.spawn(|| {
            let mut rng = SmallRng::seed_from_u64(9);
            while !done.load(Ordering::Acquire) {
                let keys: Vec<u64> = (0..8)
                    .map(|one| drivers + one + rng.random_range(0..4) * 8)
                    .collect();
                let at = middle().offset_m(rng.random_range(-spread_m..spread_m), 0.0);
                let slots: Vec<Slot> = keys
                    .iter()
                    .map(|&key| enter_free(&index, key, at))
                    .collect();
                slots.into_iter().for_each(|slot| index.leave(slot));
            }
        });
        let mut out: Vec<Near> = Vec::new();
        for turn in 0..queries {
            let all = Query {
                at: middle(),
                radius_m: 2.0 * spread_m,
                k: 4_000,
                filter: filter(),
            };
            match turn % 3 {
                0 => index.within_radius(all.at, all.radius_m, &all.filter, |_| true, &mut out),
                1 => index.nearest(&all, |_| true, &mut out),
                _ => index.inside_polygon(&outline, &filter(), |_| true, &mut out),
            }
            let mut seen: Vec<u64> = out
                .iter()
                .map(|near| near.key.0)
                .filter(|&key| key < drivers)
                .collect();
            seen.sort_unstable();
            assert_eq!(seen, (0..drivers).collect::<Vec<_>>(), "query {turn}");
        }
    });
}

#[test]
fn drivers_all_over_town_are_never_absent_and_never_double() {
    present_drivers_are_seen_once(300, 2_000.0, 3_000);
}

#[test]
fn drivers_crowded_about_a_corner_of_patches_are_never_absent_and_never_double() {
    present_drivers_are_seen_once(60, 30.0, 20_000);
}

#[test]
fn the_nearest_ten_of_a_short_list_are_the_ones_that_stand_there() {
    // Ten stand within 50 m; a crowd moves beyond 500 m. The answer is always the ten.
    let index = LiveIndex::new(IndexConfig {
        drivers_max: 1_000,
        patch_m: 200.0,
    });
    for key in 0..10 {
        enter_free(&index, key, middle().offset_m(5.0 * key as f64, 0.0));
    }
    let crowd: Vec<Slot> = (10..800)
        .map(|key| enter_free(&index, key, middle().offset_m(600.0, 0.0)))
        .collect();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _end = EndOthers(&done);
        scope.spawn(|| {
            let mut rng = SmallRng::seed_from_u64(1);
            for time_ms in 1.. {
                let slot = crowd[rng.random_range(0..crowd.len())];
                let at = middle().offset_m(
                    rng.random_range(510.0..900.0),
                    rng.random_range(-300.0..300.0),
                );
                index.place(
                    slot,
                    Placement {
                        at,
                        time_ms,
                        seq: 0,
                    },
                );
                if done.load(Ordering::Acquire) {
                    break;
                }
            }
        });
        let mut out = Vec::new();
        let query = Query {
            at: middle(),
            radius_m: 3_000.0,
            k: 10,
            filter: filter(),
        };
        for _ in 0..20_000 {
            index.nearest(&query, |_| true, &mut out);
            assert!(out.iter().map(|near| near.key.0).eq(0..10), "{out:?}");
        }
    });
}

#[test]
fn two_writers_of_one_driver_lose_no_newest_position() {
    let index = LiveIndex::new(IndexConfig {
        drivers_max: 1,
        patch_m: 200.0,
    });
    let slot = enter_free(&index, 1, middle());
    let handed_over = AtomicU64::new(0);
    const PINGS: i64 = 200_000;
    std::thread::scope(|scope| {
        for odd in 0..2 {
            let (index, handed_over) = (&index, &handed_over);
            scope.spawn(move || {
                for time_ms in (1 + odd..=PINGS).step_by(2) {
                    let at = middle().offset_m((time_ms % 997) as f64, 0.0);
                    if index.place(
                        slot,
                        Placement {
                            at,
                            time_ms,
                            seq: 0,
                        },
                    ) == Placed::HandedOver
                    {
                        handed_over.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let newest = index.get(slot).unwrap().placement.unwrap();
    assert_eq!(newest.time_ms, PINGS);
    assert_eq!(newest.at, middle().offset_m((PINGS % 997) as f64, 0.0));
    println!(
        "{} of {PINGS} pings were handed over",
        handed_over.load(Ordering::Relaxed)
    );
    let mut out = Vec::new();
    index.within_radius(middle(), 5_000.0, &filter(), |_| true, &mut out);
    assert_eq!(out.len(), 1);
}

#[test]
fn a_status_given_by_many_threads_ends_as_the_latest_event_says() {
    let index = LiveIndex::new(IndexConfig {
        drivers_max: 1,
        patch_m: 200.0,
    });
    let slot = enter_free(&index, 1, middle());
    std::thread::scope(|scope| {
        for first in 0..3 {
            let index = &index;
            scope.spawn(move || {
                for n in (2 + first..=30_001).step_by(3) {
                    let status = if n % 2 == 0 {
                        Status::Busy
                    } else {
                        Status::Free
                    };
                    index.set_status(slot, status, 1, n);
                    let at = middle().offset_m((n % 300) as f64, 0.0);
                    index.place(
                        slot,
                        Placement {
                            at,
                            time_ms: n as i64,
                            seq: 0,
                        },
                    );
                }
            });
        }
    });
    let seen = index.get(slot).unwrap();
    assert_eq!((seen.status, seen.n), (Status::Free, 30_001));
    let mut out = Vec::new();
    index.within_radius(middle(), 5_000.0, &filter(), |_| true, &mut out);
    assert_eq!(out.len(), 1, "its entry says free too");
}

#[test]
fn drivers_that_come_and_go_by_many_threads_are_known_once_and_no_slot_is_lost() {
    const KEYS: u64 = 24;
    let index = LiveIndex::new(IndexConfig {
        drivers_max: KEYS as u32 + 3,
        patch_m: 200.0,
    });
    std::thread::scope(|scope| {
        for seed in 0..3 {
            let index = &index;
            scope.spawn(move || {
                let mut rng = SmallRng::seed_from_u64(seed);
                for _ in 0..60_000 {
                    let key = DriverKey(rng.random_range(0..KEYS));
                    // One more number for each thread, for what it makes in vain.
                    let slot = index.enter(key).expect("there is room for all keys");
                    if let Some(seen) = index.get(slot) {
                        assert_eq!(seen.key, key);
                    }
                    if rng.random_bool(0.5) {
                        index.leave(slot);
                    }
                    if let Some(seen) = index.slot_of(key).and_then(|slot| index.get(slot)) {
                        assert_eq!(seen.key, key);
                    }
                }
            });
        }
    });
    let known: Vec<Slot> = (0..KEYS)
        .filter_map(|key| index.slot_of(DriverKey(key)))
        .collect();
    assert_eq!(index.len(), known.len());
    known.into_iter().for_each(|slot| index.leave(slot));
    assert!(index.is_empty());
    let all: std::collections::HashSet<Slot> = (0..KEYS + 3)
        .map(|key| index.enter(DriverKey(key)).expect("no slot is lost"))
        .collect();
    assert_eq!(all.len() as u64, KEYS + 3);
}
