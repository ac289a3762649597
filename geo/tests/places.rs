//! Points, cells and outlines: distances, halos and borders, also where the Earth's edges are.

use cabrank_geo::{
    BadPoint, BadPolygon, BadResolution, Cell, EARTH_RADIUS_M, Point, Polygon, Resolution,
    cells_within,
};
use rand::{Rng, SeedableRng, rngs::SmallRng};

fn p(lat: f64, lon: f64) -> Point {
    Point::new(lat, lon).unwrap()
}

/// The textbook's formula, with the library's trigonometry.
fn plain_haversine_m(a: Point, b: Point) -> f64 {
    let (lat_a, lat_b) = (a.lat_deg().to_radians(), b.lat_deg().to_radians());
    let dlon = (b.lon_deg() - a.lon_deg()).to_radians();
    let h = ((lat_b - lat_a) / 2.0).sin().powi(2)
        + lat_a.cos() * lat_b.cos() * (dlon / 2.0).sin().powi(2);
    2.0 * EARTH_RADIUS_M * h.min(1.0).sqrt().asin()
}

#[test]
fn what_is_not_on_earth_is_no_point() {
    assert_eq!(Point::new(90.1, 0.0), Err(BadPoint::Latitude(90.1)));
    assert_eq!(Point::new(0.0, -180.1), Err(BadPoint::Longitude(-180.1)));
    assert!(Point::new(f64::NAN, 0.0).is_err() && Point::new(0.0, f64::INFINITY).is_err());
    assert!(Point::from_e7(900_000_001, 0).is_err() && Point::from_e7(0, i32::MIN).is_err());
    assert_eq!(p(-90.0, 180.0).lat_e7(), -900_000_000);
}

#[test]
fn distances_agree_with_the_textbook_near_and_far() {
    let mut rng = SmallRng::seed_from_u64(3);
    for _ in 0..50_000 {
        let a = p(
            rng.random_range(-90.0..=90.0),
            rng.random_range(-180.0..=180.0),
        );
        let reach = 10f64.powf(rng.random_range(0.0..7.0));
        let b = a.offset_m(
            rng.random_range(-reach..reach),
            rng.random_range(-reach..reach),
        );
        let (ours, plain) = (a.distance_m(b), plain_haversine_m(a, b));
        // Near the far side of the Earth a millimetre more or less is all a f64 can tell.
        let close = 1e-6 + plain * 1e-9 + if plain > 1.9e7 { 1.0 } else { 0.0 };
        assert!((ours - plain).abs() <= close, "{a} {b}: {ours} {plain}");
        assert!(
            (ours - b.distance_m(a)).abs() <= close,
            "the way back is as long"
        );
    }
}

#[test]
fn the_antimeridian_and_the_poles_are_no_borders() {
    assert!((p(0.0, 179.9999).distance_m(p(0.0, -179.9999)) - 22.24).abs() < 0.01);
    assert_eq!(p(10.0, 180.0).distance_m(p(10.0, -180.0)), 0.0);
    assert!(p(90.0, 0.0).distance_m(p(90.0, 123.0)) < 1e-6);
    assert!((p(89.9999, 0.0).distance_m(p(89.9999, 180.0)) - 22.24).abs() < 0.01);
    let over = p(1.0, 179.9999).offset_m(0.0, 100.0);
    assert!(over.lon_deg() < -179.99 && (over.distance_m(p(1.0, 179.9999)) - 100.0).abs() < 0.1);
    assert_eq!(p(89.9999, 5.0).offset_m(1_000.0, 0.0).lat_deg(), 90.0);
}

#[test]
fn a_halo_has_every_cell_that_a_place_in_it_can_be_in() {
    let mut rng = SmallRng::seed_from_u64(4);
    let middles = [
        p(37.77, -122.42),
        p(-16.8, 179.999),
        p(52.0, -180.0),
        p(90.0, 0.0),
        p(89.97, 77.0),
        p(-89.99, -120.0),
        p(0.0, 0.0),
        // A pentagon of H3 is here.
        p(64.7, 10.536),
    ];
    let mut cells = Vec::new();
    for at in middles {
        for (res, radius_m) in [
            (5, 5_000.0),
            (6, 5_000.0),
            (7, 5_000.0),
            (5, 300.0),
            (4, 40_000.0),
            (8, 0.0),
        ] {
            let res = Resolution::try_from(res).unwrap();
            cells_within(at, radius_m, res, &mut cells);
            assert_eq!(cells[0], Cell::at(at, res));
            for _ in 0..2_000 {
                // At a pole an offset goes nowhere: walk down a random meridian instead.
                let south = rng.random_range(0.0..=radius_m);
                let other = if at.lat_deg().abs() > 89.0 && rng.random_bool(0.8) {
                    let lon = rng.random_range(-180.0..=180.0);
                    p(at.lat_deg(), lon).offset_m(-south * at.lat_deg().signum(), 0.0)
                } else {
                    at.offset_m(
                        rng.random_range(-radius_m..=radius_m),
                        rng.random_range(-radius_m..=radius_m),
                    )
                };
                if at.distance_m(other) <= radius_m {
                    let cell = Cell::at(other, res);
                    assert!(
                        cells.contains(&cell),
                        "{at} {other} within {radius_m} m: {cell} is missing"
                    );
                }
            }
            // Tight: no cell whose middle is farther than the radius and a cell's own reach.
            for cell in &cells {
                let reach_m = 1_300_000.0 / 7f64.powf(f64::from(res.get()) / 2.0);
                assert!(
                    at.distance_m(cell.center()) <= radius_m + 1.3 * reach_m,
                    "{cell} is too far"
                );
            }
            let mut once = cells.clone();
            once.sort_unstable();
            once.dedup();
            assert_eq!(once.len(), cells.len(), "a cell is there twice");
        }
    }
}

#[test]
fn cells_are_numbers_that_hold_what_they_say() {
    let res = Resolution::try_from(5).unwrap();
    let cell = Cell::at(p(37.77, -122.42), res);
    assert_eq!(Cell::try_from(u64::from(cell)), Ok(cell));
    assert_eq!(cell.to_string(), format!("{:x}", u64::from(cell)));
    assert_eq!(
        (cell.resolution(), Cell::at(cell.center(), res)),
        (res, cell)
    );
    assert!(Cell::try_from(12).is_err());
    assert_eq!(Resolution::try_from(16), Err(BadResolution(16)));
}

#[test]
fn an_outline_holds_its_inside_also_over_the_antimeridian() {
    let fiji = Polygon::new(&[
        p(-17.0, 179.5),
        p(-17.0, -179.5),
        p(-16.0, -179.5),
        p(-16.0, 179.5),
    ])
    .unwrap();
    assert!(fiji.contains(p(-16.5, 179.9)) && fiji.contains(p(-16.5, -179.9)));
    assert!(fiji.contains(p(-16.5, 180.0)) && fiji.contains(p(-16.5, -180.0)));
    assert!(!fiji.contains(p(-16.5, 179.4)) && !fiji.contains(p(-16.5, 0.0)));
    let corner = [
        p(0.0, 0.0),
        p(0.0, 2.0),
        p(1.0, 2.0),
        p(1.0, 1.0),
        p(2.0, 1.0),
        p(2.0, 0.0),
        p(0.0, 0.0),
    ];
    let corner = Polygon::new(&corner).unwrap();
    assert!(corner.contains(p(1.5, 0.5)) && corner.contains(p(0.5, 1.5)));
    assert!(!corner.contains(p(1.5, 1.5)));
}

#[test]
fn of_two_outlines_that_share_an_edge_one_holds_each_place_on_it() {
    let (a, b, c, d) = (p(0.0, 0.0), p(0.0, 1.0), p(1.0, 1.0), p(1.0, 0.0));
    let (low, high) = (
        Polygon::new(&[a, b, c]).unwrap(),
        Polygon::new(&[a, c, d]).unwrap(),
    );
    for step in 1..100 {
        let at = p(f64::from(step) / 100.0, f64::from(step) / 100.0);
        assert!(low.contains(at) ^ high.contains(at), "{at}");
    }
}

#[test]
fn what_bounds_no_area_is_no_outline() {
    assert_eq!(
        Polygon::new(&[p(0.0, 0.0), p(1.0, 1.0)]),
        Err(BadPolygon::TooFew(2))
    );
    assert_eq!(
        Polygon::new(&[p(0.0, 0.0), p(1.0, 1.0), p(2.0, 2.0)]),
        Err(BadPolygon::Flat)
    );
    let bow = [p(0.0, 0.0), p(2.0, 2.0), p(2.0, 0.0), p(0.0, 3.0)];
    assert_eq!(Polygon::new(&bow), Err(BadPolygon::Crossing(0, 2)));
    let round: Vec<Point> = (0..8)
        .map(|step| p(80.0, f64::from(step) * 45.0 - 180.0))
        .collect();
    assert_eq!(Polygon::new(&round), Err(BadPolygon::RoundAPole));
    let many: Vec<Point> = (0..1_001)
        .map(|step| p(f64::from(step) / 100.0, f64::from(step % 2)))
        .collect();
    assert_eq!(Polygon::new(&many), Err(BadPolygon::TooMany(1_001)));
}
