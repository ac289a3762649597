//! What zones does a GeoJSON file draw, and what is wrong with it?
//!
//! Pure: text in, zones or complaints out, so that it can be fuzzed. A complaint names the file, the feature (counted
//! from 1, and by its name) and the ring and position (counted from 1), because a person has to find it there.
//! All complaints are told at once, up to [`COMPLAINTS_MAX`]. The format is in `docs/protocol.md`, "Zones".
//! RFC 7946 winds outlines counterclockwise but asks readers not to insist: here they may run either way.
//! Not here: whether the zones of all files make sense together (`geo`), when files are read (`zones`).

use std::collections::BTreeMap;
use std::fmt;

use cabrank_events::ZoneName;
use cabrank_geo::{Area, BadPolygon, Point, Polygon, Spot, Zone, ZoneKind};
use geojson::{Feature, GeometryValue, Position};
use serde_json::Value;

/// Complaints about one file; more are not told.
pub const COMPLAINTS_MAX: usize = 20;
/// Features of a file.
pub const FEATURES_MAX: usize = 10_000;
/// Areas of a zone, holes of an area and pickup points of a zone.
pub const PARTS_MAX: usize = 200;

/// What is wrong in a file. Nothing of the file is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadZoneFile {
    /// Which.
    pub file: String,
    /// Which feature, from 1, and its name; absent: the file as a whole.
    pub feature: Option<(usize, Option<String>)>,
    /// What, where in the feature, and what to do.
    pub why: String,
}

impl fmt::Display for BadZoneFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.file)?;
        match &self.feature {
            None => {}
            Some((number, None)) => write!(f, "feature {number}: ")?,
            Some((number, Some(name))) => write!(f, "feature {number} ({name:?}): ")?,
        }
        f.write_str(&self.why)
    }
}

/// What a feature draws.
enum Drawn {
    Zone(Zone),
    Spot { zone: ZoneName, spot: Spot },
}

/// The zones of one file, in its order; each pickup point is with its zone.
pub fn zones_of(file: &str, text: &str) -> Result<Vec<Zone>, Vec<BadZoneFile>> {
    let whole = |why: String| {
        vec![BadZoneFile {
            file: file.to_owned(),
            feature: None,
            why,
        }]
    };
    let mut root: Value = serde_json::from_str(text)
        .map_err(|error| whole(format!("{error}: the file is no JSON")))?;
    if root["type"] != "FeatureCollection" {
        return Err(whole(
            "the file must hold a GeoJSON FeatureCollection".into(),
        ));
    }
    let Value::Array(features) = root["features"].take() else {
        return Err(whole("\"features\" must be a list".into()));
    };
    if features.len() > FEATURES_MAX {
        let (count, most) = (features.len(), FEATURES_MAX);
        return Err(whole(format!(
            "{count} features: a file has at most {most}"
        )));
    }
    let mut complaints = Vec::new();
    let mut zones: Vec<Zone> = Vec::new();
    let mut spots: Vec<(usize, ZoneName, Spot)> = Vec::new();
    for (number, feature) in (1..).zip(features) {
        let name = feature["properties"]["name"].as_str().map(str::to_owned);
        match drawn(feature) {
            Ok(Drawn::Zone(zone)) => zones.push(zone),
            Ok(Drawn::Spot { zone, spot }) => spots.push((number, zone, spot)),
            Err(why) => complaints.push(BadZoneFile {
                file: file.to_owned(),
                feature: Some((number, name.map(|name| name.chars().take(80).collect()))),
                why,
            }),
        }
        if complaints.len() >= COMPLAINTS_MAX {
            return Err(complaints);
        }
    }
    let numbers: BTreeMap<Box<str>, usize> = (0..)
        .zip(&zones)
        .map(|(number, zone)| (zone.name.clone(), number))
        .collect();
    for (number, zone, spot) in spots {
        let found = numbers.get(zone.as_str()).copied();
        let why = match found {
            // The zone itself may have been complained about: then it is no news that it is missing.
            None if complaints.is_empty() => {
                format!("no zone of this file is called {:?}", zone.as_str())
            }
            None => continue,
            Some(found) if zones[found].spots.len() >= PARTS_MAX => {
                let zone = zone.as_str();
                format!("zone {zone:?} has more than {PARTS_MAX} pickup points")
            }
            Some(found) => {
                zones[found].spots.push(spot);
                continue;
            }
        };
        complaints.push(BadZoneFile {
            file: file.to_owned(),
            feature: Some((number, Some(spot.name.into()))),
            why,
        });
        if complaints.len() >= COMPLAINTS_MAX {
            break;
        }
    }
    if complaints.is_empty() {
        Ok(zones)
    } else {
        Err(complaints)
    }
}

fn drawn(feature: Value) -> Result<Drawn, String> {
    let feature: Feature = serde_json::from_value(feature)
        .map_err(|error| format!("{error}: it is no GeoJSON Feature"))?;
    let text = |key: &str| {
        let value = feature.property(key).and_then(Value::as_str);
        value.ok_or_else(|| format!("give it the property {key:?}, a text"))
    };
    let name = |key: &str| {
        ZoneName::new(text(key)?).map_err(|error| format!("the property {key:?}: {error}"))
    };
    let geometry = feature
        .geometry
        .as_ref()
        .ok_or("it has no geometry: draw a Polygon, MultiPolygon or Point")?;
    let kind = text("kind")?;
    let zone_kind = ZoneKind::ALL.into_iter().find(|known| known.name() == kind);
    match (zone_kind, &geometry.value) {
        (None, GeometryValue::Point { coordinates }) if kind == "pickup_point" => Ok(Drawn::Spot {
            zone: name("zone")?,
            spot: Spot {
                name: name("name")?.as_str().into(),
                at: point(coordinates)?,
            },
        }),
        (None, other) if kind == "pickup_point" => Err(format!(
            "a pickup_point is a Point, not a {}",
            other.type_name()
        )),
        (None, _) => {
            let kinds: Vec<&str> = ZoneKind::ALL.into_iter().map(ZoneKind::name).collect();
            let shown: String = kind.chars().take(40).collect();
            Err(format!(
                "its kind is {shown:?}: write {} or pickup_point",
                kinds.join(", ")
            ))
        }
        (Some(kind), value) => {
            let areas = match value {
                GeometryValue::Polygon { coordinates } => vec![area(coordinates)?],
                GeometryValue::MultiPolygon { coordinates } if coordinates.len() <= PARTS_MAX => {
                    let areas = (1..).zip(coordinates).map(|(number, rings)| {
                        area(rings).map_err(|why| format!("polygon {number}, {why}"))
                    });
                    areas.collect::<Result<_, _>>()?
                }
                GeometryValue::MultiPolygon { coordinates } => {
                    let count = coordinates.len();
                    return Err(format!("{count} polygons: a zone has at most {PARTS_MAX}"));
                }
                other => {
                    let (kind, found) = (kind.name(), other.type_name());
                    return Err(format!(
                        "the kind {kind} is drawn as a Polygon or MultiPolygon, not a {found}"
                    ));
                }
            };
            Ok(Drawn::Zone(Zone {
                name: name("name")?.as_str().into(),
                kind,
                areas,
                spots: Vec::new(),
            }))
        }
    }
}

fn area(rings: &[Vec<Position>]) -> Result<Area, String> {
    if rings.len() > 1 + PARTS_MAX {
        return Err(format!("it has more than {PARTS_MAX} holes"));
    }
    let mut outlines = (1..)
        .zip(rings)
        .map(|(number, ring)| outline(ring).map_err(|why| format!("ring {number}{why}")));
    let outer = outlines.next().ok_or("the polygon has no ring")??;
    let holes = outlines.collect::<Result<Vec<_>, _>>()?;
    Area::new(outer, holes).map_err(|outside| {
        // The outline is ring 1, so hole 0 is ring 2.
        let ring = outside.0 + 2;
        format!("ring {ring}: a hole must lie inside of the outline, ring 1")
    })
}

/// One ring. What is wrong begins with where in the ring it is.
fn outline(ring: &[Position]) -> Result<Polygon, String> {
    if ring.len() > Polygon::CORNERS_MAX + 1 {
        let (count, most) = (ring.len(), Polygon::CORNERS_MAX);
        return Err(format!(
            ": {count} positions: an outline has at most {most} corners; simplify it"
        ));
    }
    let mut points = Vec::with_capacity(ring.len());
    // Where in the ring each corner stands: one given twice in a row counts once.
    let mut numbers = Vec::with_capacity(ring.len());
    for (number, position) in (1..).zip(ring) {
        let at = point(position).map_err(|why| format!(", position {number} {why}"))?;
        if points.last() != Some(&at) {
            points.push(at);
            numbers.push(number);
        }
    }
    let (Some(first), Some(last)) = (points.first(), points.last()) else {
        return Err(": it has no positions".into());
    };
    if first != last {
        return Err(format!(
            " is open: its last position, {}, must repeat its first, {}",
            shown(*last),
            shown(*first)
        ));
    }
    Polygon::new(&points).map_err(|bad| match bad {
        BadPolygon::Crossing(a, b) => {
            // An edge goes from its corner to the next position; the last one's is the first again, given once more.
            let edge = |corner: usize| {
                let (from, to) = (points[corner], points[(corner + 1) % (points.len())]);
                format!(
                    "the edge after position {} ({} to {})",
                    numbers[corner],
                    shown(from),
                    shown(to)
                )
            };
            format!(": it crosses itself: {} and {}", edge(a), edge(b))
        }
        BadPolygon::TooFew(_) => {
            ": it needs three different corners, and the first again at its end".into()
        }
        BadPolygon::TooMany(_) | BadPolygon::Flat | BadPolygon::RoundAPole => format!(": {bad}"),
    })
}

fn point(position: &Position) -> Result<Point, String> {
    let [lon, lat, ..] = position.as_slice() else {
        return Err("needs two numbers, longitude and latitude".into());
    };
    Point::new(*lat, *lon).map_err(|bad| {
        let is_turned = Point::new(*lon, *lat).is_ok();
        let hint = if is_turned {
            ": latitude and longitude are in the wrong order; GeoJSON writes longitude first"
        } else {
            ""
        };
        format!("[{lon}, {lat}]: {bad}{hint}")
    })
}

/// As it stands in the file: longitude first.
fn shown(at: Point) -> String {
    format!("[{}, {}]", at.lon_deg(), at.lat_deg())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn feature(kind: &str, geometry: Value) -> Value {
        json!({"type":"Feature","properties":{"kind":kind,"name":"Z","zone":"Z"},"geometry":geometry})
    }

    fn polygon(ring: Value) -> Value {
        json!({"type":"Polygon","coordinates":[ring]})
    }

    fn square() -> Value {
        json!([
            [-122.5, 37.6],
            [-122.3, 37.6],
            [-122.3, 37.8],
            [-122.5, 37.8],
            [-122.5, 37.6]
        ])
    }

    fn read(features: &[Value]) -> Result<Vec<Zone>, Vec<BadZoneFile>> {
        let file = json!({"type":"FeatureCollection","features":features});
        zones_of("a.geojson", &file.to_string())
    }

    /// What is said about a file with a good zone, then this feature.
    fn complaint(feature: Value) -> String {
        let good = json!({"type":"Feature","properties":{"kind":"airport","name":"Good"},"geometry":polygon(square())});
        let all = read(&[good, feature]).unwrap_err();
        assert_eq!(all.len(), 1, "{all:?}");
        all[0].to_string()
    }

    #[test]
    fn a_file_draws_zones_of_each_kind_with_their_pickup_points() {
        let point = json!({"type":"Point","coordinates":[-122.4, 37.7, 12.0]});
        let hole = json!([
            [-122.42, 37.7],
            [-122.4, 37.7],
            [-122.4, 37.72],
            [-122.42, 37.7]
        ]);
        let multi = json!({"type":"MultiPolygon","coordinates":[[square(), hole]]});
        let zones = read(&[feature("pickup_point", point), feature("airport", multi)]).unwrap();
        assert_eq!((zones.len(), zones[0].spots.len()), (1, 1));
        assert_eq!(zones[0].kind, ZoneKind::Airport);
        assert!(zones[0].contains(Point::new(37.65, -122.4).unwrap()));
        assert!(!zones[0].contains(Point::new(37.705, -122.405).unwrap()));
    }

    #[test]
    fn what_is_wrong_is_named_with_file_feature_and_position() {
        let ring = |ring: Value| complaint(feature("service_area", polygon(ring)));
        let open = ring(json!([
            [-122.5, 37.6],
            [-122.3, 37.6],
            [-122.3, 37.8],
            [-122.5, 37.8]
        ]));
        assert_eq!(
            open,
            "a.geojson: feature 2 (\"Z\"): ring 1 is open: its last position, [-122.5, 37.8], must repeat its first, \
             [-122.5, 37.6]"
        );
        // Its halves differ: the areas of equal ones cancel out, which is told as no area.
        let bow = json!([[0, 0], [0, 0], [2, 2], [2, 0], [0, 3], [0, 0]]);
        assert_eq!(
            ring(bow),
            "a.geojson: feature 2 (\"Z\"): ring 1: it crosses itself: the edge after position 1 ([0, 0] to [2, 2]) and the \
             edge after position 4 ([2, 0] to [0, 3])"
        );
        let turned = json!([
            [37.6, -122.5],
            [37.6, -122.3],
            [37.8, -122.3],
            [37.6, -122.5]
        ]);
        assert_eq!(
            ring(turned),
            "a.geojson: feature 2 (\"Z\"): ring 1, position 1 [37.6, -122.5]: latitude -122.5 is not within -90 to 90 \
             degrees: latitude and longitude are in the wrong order; GeoJSON writes longitude first"
        );
        let few = ring(json!([[0, 0], [1, 1], [0, 0]]));
        assert!(
            few.ends_with(
                "ring 1: it needs three different corners, and the first again at its end"
            ),
            "{few}"
        );
        let flat = ring(json!([[0, 0], [1, 1], [2, 2], [0, 0]]));
        assert!(
            flat.ends_with("ring 1: the outline bounds no area"),
            "{flat}"
        );
        let many: Vec<[f64; 2]> = (0..1_100)
            .map(|n| [f64::from(n) / 100.0, f64::from(n % 2)])
            .collect();
        let many = ring(json!(many));
        assert!(
            many.contains("1100 positions: an outline has at most 1000 corners"),
            "{many}"
        );
        let short = ring(json!([[1], [2, 2], [3, 3], [1]]));
        assert!(short.starts_with("a.geojson: feature 2"), "{short}");
        let hole = json!([[0, 0], [1, 0], [1, 1], [0, 0]]);
        let hole = json!({"type":"Polygon","coordinates":[square(), hole]});
        let hole = complaint(feature("airport", hole));
        assert!(
            hole.ends_with("ring 2: a hole must lie inside of the outline, ring 1"),
            "{hole}"
        );
    }

    #[test]
    fn a_wrong_type_kind_or_name_is_named() {
        let line = json!({"type":"LineString","coordinates":[[0, 0], [1, 1]]});
        let line = complaint(feature("airport", line));
        assert!(
            line.ends_with(
                "the kind airport is drawn as a Polygon or MultiPolygon, not a LineString"
            ),
            "{line}"
        );
        let spot = complaint(feature("pickup_point", polygon(square())));
        assert!(
            spot.ends_with("a pickup_point is a Point, not a Polygon"),
            "{spot}"
        );
        let kind = complaint(feature("airfield", polygon(square())));
        assert!(
            kind.contains("\"airfield\": write service_area, airport, pickup_zone or pickup_point"),
            "{kind}"
        );
        let lost = json!({"type":"Point","coordinates":[-122.4, 37.7]});
        let lost = complaint(feature("pickup_point", lost));
        assert!(
            lost.ends_with("no zone of this file is called \"Z\""),
            "{lost}"
        );
        let nameless =
            json!({"type":"Feature","properties":{"kind":"airport"},"geometry":polygon(square())});
        assert_eq!(
            complaint(nameless),
            "a.geojson: feature 2: give it the property \"name\", a text"
        );
        let nothing =
            complaint(json!({"type":"Feature","properties":{"kind":"airport"},"geometry":null}));
        assert!(nothing.contains("no geometry"), "{nothing}");
        for (text, says) in [
            ("{\n\"type\":", "line 2"),
            ("{}", "FeatureCollection"),
            ("{\"type\":\"FeatureCollection\"}", "must be a list"),
        ] {
            let said = zones_of("b.geojson", text).unwrap_err()[0].to_string();
            assert!(
                said.starts_with("b.geojson: ") && said.contains(says),
                "{said}"
            );
        }
    }

    #[test]
    fn all_complaints_are_told_at_once_but_not_without_end() {
        let bad = feature("airport", polygon(json!([])));
        assert_eq!(read(&vec![bad.clone(); 3]).unwrap_err().len(), 3);
        assert_eq!(read(&vec![bad; 300]).unwrap_err().len(), COMPLAINTS_MAX);
    }
}
