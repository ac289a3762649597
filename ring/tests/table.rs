//! Does the table show what a market's operator chooses by?

use cabrank_geo::{Cell, Point, Resolution};
use cabrank_ring::Ring;
use cabrank_ring::table::{Row, ownership_table, render};

/// Places of a town: 20 by 20, 500 m apart.
fn town() -> Vec<Point> {
    let centre = Point::new(37.77, -122.42).unwrap();
    (0..400)
        .map(|n| {
            centre.offset_m(
                f64::from(n / 20) * 500.0 - 5_000.0,
                f64::from(n % 20) * 500.0 - 5_000.0,
            )
        })
        .collect()
}

fn at(rows: &[Row], resolution: u8) -> Row {
    *rows
        .iter()
        .find(|row| row.resolution.get() == resolution)
        .unwrap()
}

#[test]
fn finer_cells_spread_demand_and_copy_pings() {
    let rows = ownership_table(&Ring::new(8).unwrap(), town(), town(), 3_000.0);
    assert_eq!(
        rows.iter()
            .map(|row| row.resolution.get())
            .collect::<Vec<_>>(),
        [4, 5, 6, 7, 8]
    );
    let (coarse, fine) = (at(&rows, 4), at(&rows, 8));
    assert!(coarse.cells < fine.cells, "{rows:?}");
    assert!(coarse.largest_to_mean > fine.largest_to_mean, "{rows:?}");
    assert!(coarse.halo_copies < fine.halo_copies, "{rows:?}");
    for row in rows {
        assert!((row.largest_to_mean - 8.0 * row.largest_shard_share).abs() < 1e-9);
        assert!(row.largest_cell_share <= row.largest_shard_share);
        assert!((1.0..=8.0).contains(&row.halo_copies) && row.shards <= 8.min(row.cells));
    }
}

#[test]
fn one_place_is_one_cell_and_a_halo_of_nothing_one_copy() {
    // The middle of a cell: near a border even a halo of nothing may take the neighbour along.
    let fine = Resolution::try_from(8).unwrap();
    let place = [Cell::at(Point::new(37.77, -122.42).unwrap(), fine).center()];
    let rows = ownership_table(&Ring::new(8).unwrap(), place, place, 0.0);
    assert_eq!(
        at(&rows, 8),
        Row {
            resolution: fine,
            cells: 1,
            shards: 1,
            largest_cell_share: 1.0,
            largest_shard_share: 1.0,
            largest_to_mean: 8.0,
            halo_copies: 1.0,
        }
    );
}

#[test]
fn nothing_known_is_a_table_of_zeros() {
    let rows = ownership_table(&Ring::new(8).unwrap(), [], [], 5_000.0);
    assert!(
        rows.iter()
            .all(|row| row.cells == 0 && row.largest_to_mean == 0.0)
    );
    assert_eq!(render(&rows).lines().count(), 6);
}
