//! Does a key still live where the log of an older build says it lives?
//!
//! If this fails, the ring has changed under data that exists: restore the ring, not the numbers (see `SCHEME`).
//! They were computed by a second implementation, written in another language from the published hash.

use cabrank_ring::{Kind, Ring};

/// The sizes of ring that the tables below have a column for.
const SHARDS: [u16; 3] = [8, 9, 16];

fn check(what: &str, expected: [u16; 3], shard_of: impl Fn(&Ring) -> u16) {
    let found = SHARDS.map(|shards| shard_of(&Ring::new(shards).unwrap()));
    assert_eq!(found, expected, "{what} at {SHARDS:?} shards");
}

#[test]
fn cells_live_where_they_lived() {
    for (cell, shards) in [
        (0x0852_8308_3fff_ffff, [0, 0, 0]),
        (0x0852_8308_7fff_ffff, [5, 5, 5]),
        (0x0852_a107_3fff_ffff, [0, 0, 14]),
        (0x0851_94ad_3fff_ffff, [5, 5, 5]),
        (0x0851_fb46_7fff_ffff, [3, 3, 9]),
        (0x0872_8308_28ff_ffff, [5, 5, 5]),
        (0x0892_8308_280f_ffff, [3, 3, 3]),
        (0x0852_f5a3_3fff_ffff, [3, 3, 3]),
        (0, [7, 7, 15]),
    ] {
        check(&format!("cell {cell:#018x}"), shards, |ring| {
            ring.shard_of_cell(cell)
        });
    }
}

#[test]
fn people_live_where_they_lived() {
    let longest = "x".repeat(64);
    for (id, as_driver, as_rider) in [
        ("d7", [7, 7, 7], [6, 8, 8]),
        ("d8", [4, 4, 4], [4, 8, 13]),
        ("r1", [7, 7, 7], [2, 2, 2]),
        ("upthin", [5, 5, 9], [2, 2, 12]),
        ("a", [1, 1, 1], [3, 3, 3]),
        ("0", [3, 3, 11], [4, 4, 4]),
        ("1", [7, 7, 7], [7, 7, 7]),
        ("1000000", [4, 4, 4], [0, 0, 11]),
        ("a-longer-id:0123@fleet", [4, 4, 11], [6, 6, 6]),
        (&longest, [2, 8, 8], [5, 5, 14]),
    ] {
        check(&format!("driver {id}"), as_driver, |ring| {
            ring.shard_of_person(Kind::Driver, id)
        });
        check(&format!("rider {id}"), as_rider, |ring| {
            ring.shard_of_person(Kind::Rider, id)
        });
    }
}

#[test]
fn versions_are_what_the_log_holds() {
    assert_eq!(Ring::new(8).unwrap().version(), 0x0001_0008);
    assert_eq!(Ring::new(9).unwrap().version(), 0x0001_0009);
}
