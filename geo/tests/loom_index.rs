//! The races of the index under every order of events that loom can find.
//!
//! `RUSTFLAGS="--cfg loom" LOOM_MAX_PREEMPTIONS=3 cargo test -p cabrank-geo --release --test loom_index`
//!
//! The models run the real code; only the capacities are small under loom (one entry a bucket, four buckets, two
//! pins), so that overflow and reuse happen within a few steps.

#![cfg(loom)]

use cabrank_geo::{
    DriverKey, Filter, IndexConfig, LiveIndex, Near, Placed, Placement, Point, Slot, Status,
};
use loom::sync::Arc;
use loom::thread::spawn;

const D7: DriverKey = DriverKey(7);
const D8: DriverKey = DriverKey(8);

fn model(check: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(2));
    builder.max_branches = 20_000;
    builder.check(check);
}

/// Places in a row, each in the next patch to the east.
fn patch(number: u32) -> Point {
    Point::new(37.7, -122.4)
        .unwrap()
        .offset_m(0.0, 120.0 * f64::from(number))
}

fn ping(number: u32, time_ms: i64) -> Placement {
    Placement {
        at: patch(number),
        time_ms,
        seq: 0,
    }
}

fn index() -> Arc<LiveIndex> {
    Arc::new(LiveIndex::new(IndexConfig {
        drivers_max: 2,
        patch_m: 100.0,
    }))
}

fn enter_free(index: &LiveIndex, key: DriverKey, number: u32) -> Slot {
    let slot = index.enter(key).unwrap();
    index.place(slot, ping(number, 1));
    index.set_status(slot, Status::Free, 1, 1);
    slot
}

/// Everybody free around the row of places. The window is small enough for a walk, not a scan of slots.
fn everybody(index: &LiveIndex) -> Vec<Near> {
    let filter = Filter {
        now_ms: 10,
        ping_ttl_ms: 100,
        status: Some(Status::Free),
        classes: 0,
    };
    let mut out = Vec::with_capacity(4);
    index.within_radius(patch(0), 170.0, &filter, |_| true, &mut out);
    out
}

#[test]
fn a_driver_that_moves_during_a_query_is_seen_once_where_it_was_or_is() {
    model(|| {
        let index = index();
        let slot = enter_free(&index, D7, 0);
        let mover = spawn({
            let index = index.clone();
            move || {
                assert_eq!(
                    index.place(slot, ping(1, 2)),
                    Placed::Moved { crossed: true }
                )
            }
        });
        let seen = everybody(&index);
        assert_eq!(seen.len(), 1, "{seen:?}");
        assert_eq!(seen[0].key, D7);
        let whole = (seen[0].at == patch(0) && seen[0].time_ms == 1)
            || (seen[0].at == patch(1) && seen[0].time_ms == 2);
        assert!(whole, "a blend: {seen:?}");
        mover.join().unwrap();
        assert_eq!(everybody(&index).len(), 1);
    });
}

#[test]
fn a_driver_that_moves_to_and_fro_during_a_query_is_seen_once() {
    model(|| {
        let index = index();
        let slot = enter_free(&index, D7, 0);
        let mover = spawn({
            let index = index.clone();
            move || {
                index.place(slot, ping(1, 2));
                index.place(slot, ping(0, 3));
                index.place(slot, ping(1, 4));
            }
        });
        assert_eq!(everybody(&index).len(), 1);
        mover.join().unwrap();
    });
}

#[test]
fn a_driver_that_moves_against_the_walk_is_seen_though_another_wants_the_word_it_left() {
    // The walk goes east. It looks at patch 0 before the driver comes there from patch 1, and at patch 1 afterwards:
    // there only the word left behind tells of the driver, and a bucket has no other word for the one who follows.
    model(|| {
        let index = index();
        let first = enter_free(&index, D7, 1);
        let follower = index.enter(D8).unwrap();
        let movers = spawn({
            let index = index.clone();
            move || {
                index.place(first, ping(0, 2));
                index.place(follower, ping(1, 2));
            }
        });
        let seen = everybody(&index);
        assert_eq!(seen.len(), 1, "{seen:?}");
        assert_eq!(seen[0].key, D7);
        movers.join().unwrap();
    });
}

#[test]
fn a_driver_that_leaves_during_a_query_is_seen_whole_or_not_at_all() {
    model(|| {
        let index = index();
        let slot = enter_free(&index, D7, 0);
        let leaver = spawn({
            let index = index.clone();
            move || index.leave(slot)
        });
        let seen = everybody(&index);
        assert!(
            seen.is_empty() || (seen.len() == 1 && seen[0].key == D7),
            "{seen:?}"
        );
        leaver.join().unwrap();
        assert!(everybody(&index).is_empty());
        assert!(index.is_empty());
    });
}

#[test]
fn two_writers_of_one_driver_leave_the_newest_position() {
    model(|| {
        let index = index();
        let slot = enter_free(&index, D7, 0);
        let writers = [(1, 3), (0, 2)].map(|(number, time_ms)| {
            let index = index.clone();
            spawn(move || index.place(slot, ping(number, time_ms)))
        });
        for writer in writers {
            writer.join().unwrap();
        }
        let newest = index.get(slot).unwrap().placement.unwrap();
        assert_eq!(newest, ping(1, 3));
        let seen = everybody(&index);
        assert_eq!(seen.len(), 1, "{seen:?}");
        assert_eq!(seen[0].at, patch(1));
    });
}

#[test]
fn a_status_given_while_the_driver_moves_is_found_afterwards() {
    model(|| {
        let index = index();
        let slot = index.enter(D7).unwrap();
        index.place(slot, ping(0, 1));
        let mover = spawn({
            let index = index.clone();
            move || index.place(slot, ping(1, 2))
        });
        assert!(index.set_status(slot, Status::Free, 1, 1));
        mover.join().unwrap();
        let seen = everybody(&index);
        assert_eq!(seen.len(), 1, "{seen:?}");
        assert_eq!((seen[0].at, seen[0].n), (patch(1), 1));
    });
}

#[test]
fn a_late_ping_of_the_driver_before_does_not_move_the_next_one_in_the_slot() {
    model(|| {
        let index = index();
        let old = enter_free(&index, D7, 0);
        let late = spawn({
            let index = index.clone();
            move || {
                index.place(old, ping(1, 9));
                index.set_status(old, Status::Busy, 1, 9);
            }
        });
        index.leave(old);
        let new = enter_free(&index, D8, 0);
        late.join().unwrap();
        let seen = index.get(new).unwrap();
        assert_eq!(
            (seen.key, seen.placement, seen.status),
            (D8, Some(ping(0, 1)), Status::Free)
        );
        let near = everybody(&index);
        assert_eq!(near.len(), 1, "{near:?}");
        assert_eq!((near[0].key, near[0].at), (D8, patch(0)));
    });
}

#[test]
fn a_query_during_the_reuse_of_a_slot_sees_no_blend_of_two_drivers() {
    model(|| {
        let index = index();
        let old = enter_free(&index, D7, 0);
        let changer = spawn({
            let index = index.clone();
            move || {
                index.leave(old);
                let new = index.enter(D8).unwrap();
                index.place(new, ping(1, 5));
                index.set_status(new, Status::Free, 1, 5);
            }
        });
        for near in everybody(&index) {
            let expected = if near.key == D7 {
                (patch(0), 1, 1)
            } else {
                (patch(1), 5, 5)
            };
            assert_eq!((near.at, near.time_ms, near.n), expected);
        }
        changer.join().unwrap();
        let after = everybody(&index);
        assert_eq!(after.len(), 1);
        assert_eq!(after[0].key, D8);
    });
}

#[test]
fn a_driver_that_enters_twice_at_once_has_one_slot_and_no_number_is_lost() {
    model(|| {
        let index = index();
        let other = spawn({
            let index = index.clone();
            move || index.enter(D7).unwrap()
        });
        let slot = index.enter(D7).unwrap();
        assert_eq!(other.join().unwrap(), slot);
        assert_eq!((index.len(), index.slot_of(D7)), (1, Some(slot)));
        let second = index.enter(D8).expect("the index has room for two");
        assert_ne!(second, slot);
    });
}

#[test]
fn a_driver_that_leaves_while_another_enters_is_forgotten_and_the_other_is_known() {
    model(|| {
        let index = index();
        let leaving = index.enter(D7).unwrap();
        let leaver = spawn({
            let index = index.clone();
            move || index.leave(leaving)
        });
        let entered = index.enter(D8).unwrap();
        leaver.join().unwrap();
        assert_eq!(index.slot_of(D7), None);
        assert_eq!(index.slot_of(D8), Some(entered));
        assert_eq!(index.len(), 1);
        let again = index.enter(D7).expect("the number is free again");
        assert!(again != leaving && again != entered);
    });
}

#[test]
fn a_driver_that_leaves_while_it_enters_is_there_anew_or_not_at_all() {
    model(|| {
        let index = index();
        let old = index.enter(D7).unwrap();
        let leaver = spawn({
            let index = index.clone();
            move || index.leave(old)
        });
        let entered = index.enter(D7).unwrap();
        leaver.join().unwrap();
        let known = (entered != old).then_some(entered);
        assert_eq!(index.slot_of(D7), known);
        assert_eq!(index.len(), usize::from(known.is_some()));
        assert_eq!(index.get(entered).is_some(), known.is_some());
        let second = index.enter(D8).expect("no number is lost");
        assert_eq!(index.slot_of(D8), Some(second));
    });
}
