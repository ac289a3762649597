//! What a driver and a rider see of the index, as stories.

use std::time::{Duration, Instant};

use cabrank_geo::{
    Cell, DriverKey, Filter, IndexConfig, IndexFull, LiveIndex, Near, Placed, Placement, Point,
    Query, Resolution, Slot, Status,
};

mod city;

const TTL_MS: i64 = 30_000;

struct Town {
    index: LiveIndex,
}

impl Town {
    fn new() -> Self {
        Self {
            index: LiveIndex::new(IndexConfig::city(1_000)),
        }
    }

    fn enters(&self, key: u64) -> Slot {
        self.index.enter(DriverKey(key)).unwrap()
    }

    fn pings(&self, slot: Slot, at: Point, time_ms: i64, seq: u32) -> Placed {
        self.index.place(slot, Placement { at, time_ms, seq })
    }

    fn free_at(&self, key: u64, at: Point, time_ms: i64) -> Slot {
        let slot = self.enters(key);
        self.pings(slot, at, time_ms, 0);
        self.index.set_status(slot, Status::Free, 1, 1);
        slot
    }

    fn near(&self, at: Point, now_ms: i64) -> Vec<Near> {
        self.near_with(at, now_ms, Some(Status::Free), 0)
    }

    fn near_with(&self, at: Point, now_ms: i64, status: Option<Status>, classes: u8) -> Vec<Near> {
        let filter = Filter {
            now_ms,
            ping_ttl_ms: TTL_MS,
            status,
            classes,
        };
        let mut out = Vec::new();
        self.index.nearest(
            &Query {
                at,
                radius_m: 5_000.0,
                k: 10,
                filter,
            },
            |_| true,
            &mut out,
        );
        out
    }

    fn keys(&self, at: Point, now_ms: i64) -> Vec<u64> {
        self.near(at, now_ms)
            .iter()
            .map(|near| near.key.0)
            .collect()
    }
}

fn market_street() -> Point {
    Point::new(37.77, -122.42).unwrap()
}

#[test]
fn a_silent_driver_leaves_the_answers_at_once_and_returns_with_a_ping() {
    let (town, here) = (Town::new(), market_street());
    let slot = town.free_at(7, here, 1_000);
    assert_eq!(town.near(here, 1_000 + TTL_MS)[0].age_ms, TTL_MS);
    assert!(town.near(here, 1_001 + TTL_MS).is_empty());
    town.pings(slot, here, 40_000, 1);
    assert_eq!(town.near(here, 41_000)[0].age_ms, 1_000);
}

#[test]
fn a_driver_gone_offline_is_not_woken_by_a_late_ping() {
    let (town, here) = (Town::new(), market_street());
    let slot = town.free_at(7, here, 1_000);
    assert!(town.index.set_status(slot, Status::Offline, 1, 5));
    town.pings(slot, here.offset_m(900.0, 0.0), 2_000, 0);
    assert!(town.near_with(here, 2_000, None, 0).is_empty());
    assert!(
        !town.index.set_status(slot, Status::Free, 1, 4),
        "an older event"
    );
    assert!(town.near(here, 2_000).is_empty());
    assert!(
        town.index.set_status(slot, Status::Free, 1, 6),
        "online again"
    );
    assert_eq!(town.keys(here, 2_000), [7]);
}

#[test]
fn a_driver_with_pings_and_no_status_yet_is_nobodys() {
    let (town, here) = (Town::new(), market_street());
    let slot = town.enters(7);
    assert_eq!(town.pings(slot, here, 1_000, 0), Placed::First);
    assert!(town.near_with(here, 1_000, None, 0).is_empty());
    town.index.set_status(slot, Status::Busy, 1, 1);
    assert!(town.near(here, 1_000).is_empty());
    assert_eq!(town.near_with(here, 1_000, Some(Status::Busy), 0).len(), 1);
}

#[test]
fn the_newest_ping_wins_whatever_the_order_of_arrival() {
    let (town, here) = (Town::new(), market_street());
    let slot = town.free_at(7, here, 1_000);
    let there = here.offset_m(0.0, 2_000.0);
    assert_eq!(
        town.pings(slot, there, 3_000, 5),
        Placed::Moved { crossed: true }
    );
    assert_eq!(town.pings(slot, here, 2_000, 9), Placed::Stale);
    assert_eq!(town.pings(slot, here, 3_000, 4), Placed::Stale);
    assert_eq!(town.pings(slot, there, 3_000, 5), Placed::Stale);
    assert_eq!(
        town.pings(slot, there.offset_m(1.0, 0.0), 3_000, 6),
        Placed::Moved { crossed: false }
    );
}

#[test]
fn only_the_asked_vehicle_classes_come() {
    let (town, here) = (Town::new(), market_street());
    for bit in 0..8 {
        let slot = town.free_at(bit, here.offset_m(bit as f64, 0.0), 1_000);
        town.index.set_status(slot, Status::Free, 1 << bit, 2);
    }
    for classes in 1..=255u8 {
        let found: u8 = town
            .near_with(here, 1_000, None, classes)
            .iter()
            .map(|near| near.classes)
            .sum();
        assert_eq!(found, classes);
    }
}

#[test]
fn equally_near_drivers_come_by_key_and_exclusions_make_room() {
    let (town, here) = (Town::new(), market_street());
    for key in (0..20).rev() {
        town.free_at(key, here, 1_000);
    }
    assert_eq!(town.keys(here, 1_000), (0..10).collect::<Vec<_>>());
    let filter = Filter {
        now_ms: 1_000,
        ping_ttl_ms: TTL_MS,
        status: None,
        classes: 0,
    };
    let mut out = Vec::new();
    let query = Query {
        at: here,
        radius_m: 10.0,
        k: 3,
        filter,
    };
    town.index
        .nearest(&query, |near| near.key.0 % 5 == 4, &mut out);
    assert!(out.iter().map(|near| near.key.0).eq([4, 9, 14]));
}

#[test]
fn the_border_of_an_ownership_cell_is_no_border_of_an_answer() {
    let res = Resolution::try_from(5).unwrap();
    let mut at = market_street();
    let home = Cell::at(at, res);
    while Cell::at(at, res) == home {
        at = at.offset_m(0.0, 10.0);
    }
    let town = Town::new();
    town.free_at(1, at.offset_m(0.0, -30.0), 1_000);
    town.free_at(2, at.offset_m(0.0, 30.0), 1_000);
    let near = town.near(at, 1_000);
    assert_eq!(near.len(), 2);
    assert_ne!(Cell::at(near[0].at, res), Cell::at(near[1].at, res));
}

#[test]
fn a_full_index_refuses_and_has_room_again_when_a_driver_leaves() {
    let index = LiveIndex::new(IndexConfig::city(2));
    let first = index.enter(DriverKey(1)).unwrap();
    assert_eq!(index.enter(DriverKey(1)), Ok(first));
    index.enter(DriverKey(2)).unwrap();
    assert_eq!(index.enter(DriverKey(3)), Err(IndexFull { drivers_max: 2 }));
    index.leave(first);
    assert_eq!(
        (index.slot_of(DriverKey(1)), index.get(first)),
        (None, None)
    );
    let third = index.enter(DriverKey(3)).unwrap();
    assert_ne!(third, first, "an old handle stays dead");
    assert_eq!(index.len(), 2);
}

/// Debug builds on a shared machine take many times what a release build does; this is about growth without bound.
const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn fifty_thousand_drivers_in_one_patch_come_go_and_leave_no_trace() {
    let begin = Instant::now();
    let index = LiveIndex::new(IndexConfig::city(50_000));
    let stadium = market_street();
    let slots: Vec<Slot> = (0..50_000)
        .map(|key| {
            let slot = index.enter(DriverKey(key)).unwrap();
            let at = stadium.offset_m((key % 100) as f64 / 10.0, (key / 100) as f64 / 100.0);
            index.place(
                slot,
                Placement {
                    at,
                    time_ms: 1,
                    seq: 0,
                },
            );
            index.set_status(slot, Status::Free, 1, 1);
            slot
        })
        .collect();
    let filter = Filter {
        now_ms: 1,
        ping_ttl_ms: TTL_MS,
        status: Some(Status::Free),
        classes: 1,
    };
    let query = Query {
        at: stadium,
        radius_m: 1_000.0,
        k: 10,
        filter,
    };
    let mut out = Vec::new();
    index.nearest(&query, |_| true, &mut out);
    assert_eq!(out.len(), 10);
    index.within_radius(stadium, 1_000.0, &filter, |_| true, &mut out);
    assert_eq!(out.len(), 50_000);
    // The match is over: everybody drives home, all over town.
    for (number, &slot) in slots.iter().enumerate() {
        let (north, east) = (
            (number / 224) as f64 * 100.0,
            1_500.0 + (number % 224) as f64 * 100.0,
        );
        let at = stadium.offset_m(north, east);
        assert_eq!(
            index.place(
                slot,
                Placement {
                    at,
                    time_ms: 2,
                    seq: 0
                }
            ),
            Placed::Moved { crossed: true }
        );
    }
    index.within_radius(stadium, 1_000.0, &filter, |_| true, &mut out);
    assert!(out.is_empty());
    index.within_radius(stadium, 60_000.0, &filter, |_| true, &mut out);
    assert_eq!(out.len(), 50_000);
    assert!(begin.elapsed() < PATIENCE, "{:?}", begin.elapsed());
}

#[test]
fn asking_where_nobody_is_ends_soon_whatever_the_radius() {
    let town = Town::new();
    town.free_at(1, market_street(), 1_000);
    let begin = Instant::now();
    let sea = Point::new(-48.9, -123.4).unwrap();
    let filter = Filter {
        now_ms: 1_000,
        ping_ttl_ms: TTL_MS,
        status: None,
        classes: 0,
    };
    let mut out = Vec::new();
    for radius_m in [10.0, 5_000.0, 500_000.0, 5e6, 4e7, f64::INFINITY] {
        for _ in 0..1_000 {
            town.index.nearest(
                &Query {
                    at: sea,
                    radius_m,
                    k: 10,
                    filter,
                },
                |_| true,
                &mut out,
            );
            assert_eq!(out.len(), usize::from(radius_m > 2e7));
        }
    }
    assert!(begin.elapsed() < PATIENCE, "{:?}", begin.elapsed());
}

/// The workload of `benches/geo_index.rs`, small, so that it cannot rot.
#[test]
fn the_canonical_city_answers_as_it_was_told() {
    let city = city::City::new(2_000, 20_000);
    let (index, slots) = city.index();
    let mut at = city.start.clone();
    for (turn, one) in city.moves.iter().enumerate() {
        at[one.driver as usize] = one.at;
        let ping = Placement {
            at: one.at,
            time_ms: turn as i64 + 1,
            seq: 0,
        };
        assert!(matches!(
            index.place(slots[one.driver as usize], ping),
            Placed::Moved { .. }
        ));
    }
    let mut out = Vec::new();
    for &pickup in &city.pickups[..200] {
        let filter = city::filter(1);
        index.nearest(
            &Query {
                at: pickup,
                radius_m: 5_000.0,
                k: 10,
                filter,
            },
            |_| true,
            &mut out,
        );
        let mut plain: Vec<(f64, u64)> = (0..2_000)
            .filter(|&driver| city::ready(driver) == (Status::Free, city::CLASS))
            .map(|driver| (pickup.distance_m(at[driver as usize]), u64::from(driver)))
            .collect();
        plain.sort_by(|a, b| a.partial_cmp(b).unwrap());
        assert!(
            out.iter()
                .map(|near| (near.distance_m, near.key.0))
                .eq(plain[..10].iter().copied())
        );
    }
    // In batches it is the same.
    let late: Vec<_> = city
        .moves
        .iter()
        .map(|one| {
            (
                slots[one.driver as usize],
                Placement {
                    at: one.at,
                    time_ms: 0,
                    seq: 0,
                },
            )
        })
        .collect();
    let mut stale = 0;
    index.place_all(&late, |_, placed| {
        stale += usize::from(placed == Placed::Stale)
    });
    assert_eq!(stale, late.len());
}

#[test]
fn a_query_held_up_while_the_whole_town_moves_asks_anew_and_misses_nobody() {
    // Two patches: more than a query gathers in one go in the west, some in the east.
    let index = LiveIndex::new(IndexConfig {
        drivers_max: 400,
        patch_m: 300.0,
    });
    let west = market_street();
    let east = west.offset_m(0.0, 700.0);
    let at = |at: Point, time_ms: i64| Placement {
        at,
        time_ms,
        seq: 0,
    };
    let free_at = |key: u64, place: Point| {
        let slot = index.enter(DriverKey(key)).unwrap();
        index.place(slot, at(place, 1));
        index.set_status(slot, Status::Free, 1, 1);
        slot
    };
    let western: Vec<Slot> = (0..200).map(|key| free_at(key, west)).collect();
    let eastern: Vec<Slot> = (200..260).map(|key| free_at(key, east)).collect();
    let mut held_up = false;
    let keep = |_: &Near| {
        if !held_up {
            held_up = true;
            // Those in the east come west, where the query has been, and the west goes to and fro so often that the
            // words left behind fill the table: nobody finds room for an entry unless the query loses its pin.
            for &slot in &eastern {
                index.place(slot, at(west, 2));
            }
            for time_ms in 2..200 {
                let place = if time_ms % 2 == 0 { east } else { west };
                for &slot in &western {
                    assert_eq!(
                        index.place(slot, at(place, time_ms)),
                        Placed::Moved { crossed: true }
                    );
                }
            }
        }
        true
    };
    let filter = Filter {
        now_ms: 100,
        ping_ttl_ms: TTL_MS,
        status: Some(Status::Free),
        classes: 0,
    };
    let mut out = Vec::new();
    index.within_radius(west, 900.0, &filter, keep, &mut out);
    let mut keys: Vec<u64> = out.iter().map(|near| near.key.0).collect();
    keys.sort_unstable();
    assert!(held_up && keys.into_iter().eq(0..260));
}
