//! Zones as stories, and their lookup against a plain walk over all of them.

use cabrank_geo::{Area, BadZones, Finding, Point, Polygon, Spot, Zone, ZoneKind, Zones};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

fn at(lat: f64, lon: f64) -> Point {
    Point::new(lat, lon).unwrap()
}

/// A rectangle from its south-west to its north-east corner.
fn square(south: f64, west: f64, north: f64, east: f64) -> Polygon {
    let corners = [(south, west), (south, east), (north, east), (north, west)];
    let corners: Vec<Point> = corners.iter().map(|(lat, lon)| at(*lat, *lon)).collect();
    Polygon::new(&corners).unwrap()
}

fn zone(name: &str, kind: ZoneKind, outline: Polygon) -> Zone {
    Zone {
        name: name.into(),
        kind,
        areas: vec![Area::new(outline, Vec::new()).unwrap()],
        spots: Vec::new(),
    }
}

fn with_spots(zone: Zone, spots: &[(&str, f64, f64)]) -> Zone {
    let spot = |(name, lat, lon): &(&str, f64, f64)| Spot {
        name: (*name).into(),
        at: at(*lat, *lon),
    };
    Zone {
        spots: spots.iter().map(spot).collect(),
        ..zone
    }
}

/// A city of 20 km with an airport in its south-east and a station in the middle.
fn city() -> Vec<Zone> {
    let airport = zone(
        "Airport",
        ZoneKind::Airport,
        square(37.6, -122.3, 37.65, -122.25),
    );
    let station = zone(
        "Station",
        ZoneKind::PickupZone,
        square(37.7, -122.4, 37.71, -122.39),
    );
    vec![
        zone(
            "City",
            ZoneKind::ServiceArea,
            square(37.6, -122.5, 37.8, -122.25),
        ),
        with_spots(
            airport,
            &[
                ("Terminal 1", 37.62, -122.29),
                ("Terminal 2", 37.63, -122.26),
            ],
        ),
        with_spots(station, &[("North door", 37.711, -122.395)]),
    ]
}

/// What zones find, in a word or two.
fn told(zones: &Zones, lat: f64, lon: f64) -> String {
    match zones.find(at(lat, lon)) {
        Finding::OutOfArea => "out of area".into(),
        Finding::Served { airport: None } => "served".into(),
        Finding::Served {
            airport: Some(zone),
        } => format!("at {}", zone.name),
        Finding::Snapped { zone, spot } => format!("{}: {}", zone.name, spot.name),
    }
}

#[test]
fn a_pickup_is_served_refused_or_moved_to_the_nearest_pickup_point() {
    let zones = Zones::new(city()).unwrap();
    assert_eq!(told(&zones, 37.75, -122.45), "served");
    assert_eq!(told(&zones, 37.85, -122.45), "out of area");
    assert_eq!(told(&zones, 37.705, -122.395), "Station: North door");
    assert_eq!(
        told(&zones, 37.711, -122.395),
        "served",
        "at the point itself, beside the zone"
    );
    assert_eq!(told(&zones, 37.61, -122.295), "Airport: Terminal 1");
    assert_eq!(told(&zones, 37.64, -122.255), "Airport: Terminal 2");
}

#[test]
fn without_a_service_area_everywhere_is_served_and_without_pickup_points_an_airport_is_only_named()
{
    assert_eq!(told(&Zones::default(), 0.0, 0.0), "served");
    let airport = zone("Airport", ZoneKind::Airport, square(1.0, 1.0, 2.0, 2.0));
    let zones = Zones::new(vec![airport]).unwrap();
    assert_eq!(told(&zones, 1.5, 1.5), "at Airport");
    assert_eq!(told(&zones, 50.0, 50.0), "served");
}

#[test]
fn a_hole_is_outside_and_what_two_areas_share_is_inside_once() {
    let hole = square(37.7, -122.4, 37.71, -122.39);
    let area = Area::new(square(37.6, -122.5, 37.8, -122.25), vec![hole.clone()]).unwrap();
    let more = Area::new(square(37.79, -122.5, 37.9, -122.25), Vec::new()).unwrap();
    let islands = Zone {
        name: "Islands".into(),
        kind: ZoneKind::ServiceArea,
        areas: vec![area, more],
        spots: Vec::new(),
    };
    let zones = Zones::new(vec![islands]).unwrap();
    assert_eq!(told(&zones, 37.705, -122.395), "out of area");
    assert_eq!(told(&zones, 37.795, -122.4), "served");
    let outside = Area::new(hole, vec![square(0.0, 0.0, 1.0, 1.0)]).unwrap_err();
    assert_eq!(
        outside.to_string(),
        "hole 0 does not lie inside of its outline"
    );
}

#[test]
fn a_city_over_the_antimeridian_is_found_from_both_sides() {
    let fiji = zone(
        "Fiji",
        ZoneKind::ServiceArea,
        square(-18.0, 179.0, -16.0, -179.0),
    );
    let zones = Zones::new(vec![fiji]).unwrap();
    assert_eq!(told(&zones, -17.0, 179.5), "served");
    assert_eq!(told(&zones, -17.0, -179.5), "served");
    assert_eq!(told(&zones, -17.0, 178.5), "out of area");
    assert_eq!(told(&zones, -17.0, 0.0), "out of area");
}

#[test]
fn zones_that_make_no_sense_together_are_named() {
    let bad = |change: &dyn Fn(&mut Vec<Zone>)| {
        let mut zones = city();
        change(&mut zones);
        Zones::new(zones).unwrap_err()
    };
    let same = bad(&|zones| zones[2].name = "Airport".into());
    assert_eq!(same, BadZones::SameName("Airport".into()));
    let useless = bad(&|zones| zones[2].spots.clear());
    assert_eq!(useless, BadZones::NoSpots("Station".into()));
    let empty = bad(&|zones| zones[1].areas.clear());
    assert_eq!(empty, BadZones::Empty("Airport".into()));
    let service = bad(&|zones| zones[0].spots = zones[1].spots.clone());
    assert_eq!(service, BadZones::SpotsOfServiceArea("City".into()));
    let elsewhere = bad(&|zones| zones[2].spots[0].at = at(-37.0, 122.0)).to_string();
    assert!(
        elsewhere.contains("North door") && elsewhere.contains("longitude first"),
        "{elsewhere}"
    );
    // Latitude and longitude of Berlin, in the wrong order: all numbers are possible, but no ride could begin there.
    let turned = bad(&|zones| {
        let outline = square(13.3, 52.4, 13.4, 52.5);
        zones[2].areas = vec![Area::new(outline, Vec::new()).unwrap()];
        zones[2].spots[0].at = at(13.35, 52.45);
    });
    assert_eq!(turned, BadZones::OutsideServiceAreas("Station".into()));
    let many = bad(&|zones| {
        *zones = (0..=Zones::ZONES_MAX)
            .map(|n| {
                zone(
                    &n.to_string(),
                    ZoneKind::Airport,
                    square(1.0, 1.0, 2.0, 2.0),
                )
            })
            .collect();
    });
    assert_eq!(many, BadZones::TooMany(1_001));
}

/// The same question to a plain walk over all zones.
fn walked(zones: &[Zone], place: Point) -> String {
    let around = || zones.iter().filter(|zone| zone.contains(place));
    let areas = || {
        zones
            .iter()
            .filter(|zone| zone.kind == ZoneKind::ServiceArea)
    };
    if areas().next().is_some() && !areas().any(|zone| zone.contains(place)) {
        return "out of area".into();
    }
    let mut spots: Vec<_> = around()
        .flat_map(|zone| zone.spots.iter().map(move |spot| (zone, spot)))
        .collect();
    spots.sort_by(|(zone, spot), (other, another)| {
        let to = |spot: &Spot| place.distance_m(spot.at);
        to(spot)
            .total_cmp(&to(another))
            .then(zone.name.cmp(&other.name))
    });
    match spots.first() {
        Some((zone, spot)) => format!("{}: {}", zone.name, spot.name),
        None => match around().find(|zone| zone.kind == ZoneKind::Airport) {
            Some(zone) => format!("at {}", zone.name),
            None => "served".into(),
        },
    }
}

#[test]
fn the_lookup_agrees_with_a_walk_over_all_zones() {
    for seed in 0..40 {
        let mut rng = SmallRng::seed_from_u64(seed);
        // Half of the worlds lie over the antimeridian.
        let west = if seed % 2 == 0 { 10.0 } else { 179.9 };
        let lon = |part: f64| {
            let lon = west + part;
            if lon > 180.0 { lon - 360.0 } else { lon }
        };
        let mut zones = vec![zone(
            "All",
            ZoneKind::ServiceArea,
            square(0.0, lon(0.0), 0.2, lon(0.2)),
        )];
        for number in 0..30 {
            let (south, side) = (rng.random_range(0.0..0.18), rng.random_range(0.001..0.04));
            let left = rng.random_range(0.0..0.18);
            let outline = square(south, lon(left), south + side, lon(left + side));
            let spots: Vec<(String, f64, f64)> = (0..rng.random_range(1..4))
                .map(|n| {
                    let part = rng.random_range(0.0..side);
                    (format!("{n}"), south + part, lon(left + part))
                })
                .collect();
            let spots: Vec<(&str, f64, f64)> = spots
                .iter()
                .map(|(name, lat, lon)| (&**name, *lat, *lon))
                .collect();
            zones.push(match number % 3 {
                0 => zone(&format!("a{number}"), ZoneKind::Airport, outline),
                _ => {
                    let named = zone(&format!("p{number}"), ZoneKind::PickupZone, outline);
                    with_spots(named, &spots)
                }
            });
        }
        // One airport only, so that which of several is named is no question.
        let mut airports = 0;
        zones.retain(|zone| {
            airports += usize::from(zone.kind == ZoneKind::Airport);
            zone.kind != ZoneKind::Airport || airports == 1
        });
        let lookup = Zones::new(zones.clone()).unwrap_or_else(|bad| panic!("seed {seed}: {bad}"));
        for _ in 0..300 {
            let (lat, part) = (rng.random_range(-0.02..0.22), rng.random_range(-0.02..0.22));
            let place = at(lat, lon(part));
            let found = told(&lookup, place.lat_deg(), place.lon_deg());
            assert_eq!(found, walked(&zones, place), "seed {seed}, {place}");
        }
    }
}
