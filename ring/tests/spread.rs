//! Are shards evenly loaded, and does a new shard disturb only what it takes?

use cabrank_geo::{Cell, Point, Resolution};
use cabrank_ring::{BadRing, Kind, Ring, SHARDS_MAX};

/// 10,000 cells of the default resolution: 100 by 100 places 50 km apart, wider than any cell.
fn cells() -> Vec<u64> {
    let resolution = Resolution::try_from(5).unwrap();
    let mut cells: Vec<u64> = (0..100)
        .flat_map(|row| {
            (0..100).map(move |column| {
                let place = Point::new(
                    -20.0 + 0.45 * f64::from(row),
                    -100.0 + 0.6 * f64::from(column),
                );
                Cell::at(place.unwrap(), resolution).into()
            })
        })
        .collect();
    cells.sort_unstable();
    cells.dedup();
    assert_eq!(
        cells.len(),
        10_000,
        "the places must lie in different cells"
    );
    cells
}

/// The cells of one metropolis, which lie side by side and differ in few bits.
fn cells_side_by_side() -> Vec<u64> {
    let mut cells = Vec::new();
    let centre = Point::new(37.77, -122.42).unwrap();
    cabrank_geo::cells_within(
        centre,
        9_500.0,
        Resolution::try_from(9).unwrap(),
        &mut cells,
    );
    cells.into_iter().map(u64::from).collect()
}

fn people() -> Vec<(Kind, String)> {
    let kinds = [Kind::Driver, Kind::Rider];
    kinds
        .into_iter()
        .flat_map(|kind| (0..50_000).map(move |n| (kind, format!("{n}"))))
        .collect()
}

fn shards_of_cells(ring: &Ring, cells: &[u64]) -> Vec<u16> {
    cells.iter().map(|cell| ring.shard_of_cell(*cell)).collect()
}

fn shards_of_people(ring: &Ring, people: &[(Kind, String)]) -> Vec<u16> {
    people
        .iter()
        .map(|(kind, id)| ring.shard_of_person(*kind, id))
        .collect()
}

fn assert_even(what: &str, shards: u16, owners: &[u16]) {
    let mut load = vec![0_usize; usize::from(shards)];
    for shard in owners {
        load[usize::from(*shard)] += 1;
    }
    let largest = *load.iter().max().unwrap();
    let uneven = largest as f64 * f64::from(shards) / owners.len() as f64;
    println!("{what}: largest/mean {uneven:.3} at {shards} shards");
    assert!(
        uneven <= 1.25,
        "{what}: largest/mean {uneven:.3}, loads {load:?}"
    );
}

fn assert_only_the_new_one_gains(what: &str, new: u16, before: &[u16], after: &[u16]) {
    let mut moved = 0;
    for (old_home, home) in before.iter().zip(after) {
        if old_home != home {
            assert_eq!(*home, new, "{what}: moved between two old shards");
            moved += 1;
        }
    }
    let part = f64::from(moved) / before.len() as f64;
    println!(
        "{what}: {:.2} of a fair share moves to shard {new}",
        part * f64::from(new + 1)
    );
    assert!(moved > 0, "{what}: the new shard gets nothing");
    assert!(
        part <= 1.5 / f64::from(new + 1),
        "{what}: {part:.4} of all moves"
    );
}

#[test]
fn eight_shards_carry_about_the_same() {
    let ring = Ring::new(8).unwrap();
    assert_even("cells", 8, &shards_of_cells(&ring, &cells()));
    assert_even(
        "cells side by side",
        8,
        &shards_of_cells(&ring, &cells_side_by_side()),
    );
    assert_even("people", 8, &shards_of_people(&ring, &people()));
}

#[test]
fn a_new_shard_takes_its_part_and_nothing_else_moves() {
    let (cells, people) = (cells(), people());
    for shards in 1..=32 {
        let (old, grown) = (Ring::new(shards).unwrap(), Ring::new(shards + 1).unwrap());
        assert!(grown.version() > old.version());
        assert_only_the_new_one_gains(
            "cells",
            shards,
            &shards_of_cells(&old, &cells),
            &shards_of_cells(&grown, &cells),
        );
        assert_only_the_new_one_gains(
            "people",
            shards,
            &shards_of_people(&old, &people),
            &shards_of_people(&grown, &people),
        );
    }
}

#[test]
fn a_driver_and_a_rider_of_one_id_are_two_people() {
    let ring = Ring::new(8).unwrap();
    let apart = (0..1_000)
        .map(|n| format!("{n}"))
        .filter(|id| {
            ring.shard_of_person(Kind::Driver, id) != ring.shard_of_person(Kind::Rider, id)
        })
        .count();
    // Independent homes differ in 7 of 8 cases.
    assert!(
        (800..=950).contains(&apart),
        "{apart} of 1000 have two homes"
    );
}

#[test]
fn impossible_rings_are_refused() {
    assert_eq!(Ring::new(0).unwrap_err(), BadRing { shards: 0 });
    assert_eq!(
        Ring::new(SHARDS_MAX + 1).unwrap_err(),
        BadRing {
            shards: SHARDS_MAX + 1
        }
    );
    assert_eq!(
        Ring::new(1).unwrap().shard_of_person(Kind::Rider, "anyone"),
        0
    );
    assert!(Ring::new(SHARDS_MAX).unwrap().shard_of_cell(1) < SHARDS_MAX);
}
