//! What do the zones of a city say about a place?
//!
//! A [`Zone`] is one or more areas with a kind and a name. [`Zones`] holds all of a city and answers for a place: is it
//! served, is it at an airport, and is it fetched at a pickup point instead?
//! Holds: names are unique; a zone that is not a service area touches one, if there is any; a pickup point lies in or near
//! its zone. Cost: the tree of the areas' bounds gives the few that may hold the place (`benches/zones.rs`).
//! Not here: the files zones come from (`gateway`), what is done about a request outside (`engine`).

use rstar::primitives::{GeomWithData, Rectangle};
use rstar::{AABB, RTree};

use crate::point::{M_PER_E7, Point, RAD_PER_E7, TURN_E7};
use crate::polygon::Polygon;

/// What a zone means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ZoneKind {
    /// Rides begin here. Without any such zone they may begin anywhere.
    ServiceArea,
    /// An airport.
    Airport,
    /// A place where cars cannot stop anywhere: a station, a street for people on foot.
    PickupZone,
}

impl ZoneKind {
    /// All of them.
    pub const ALL: [ZoneKind; 3] = [Self::ServiceArea, Self::Airport, Self::PickupZone];

    /// The name in files and answers.
    pub fn name(self) -> &'static str {
        match self {
            Self::ServiceArea => "service_area",
            Self::Airport => "airport",
            Self::PickupZone => "pickup_zone",
        }
    }
}

/// An outline without what its holes leave out.
#[derive(Clone, Debug, PartialEq)]
pub struct Area {
    outer: Polygon,
    holes: Vec<Polygon>,
}

/// A hole that has a corner outside of the outline it is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("hole {0} does not lie inside of its outline")]
pub struct HoleOutside(pub usize);

impl Area {
    /// An outline and its holes. Holes may overlap each other: what lies in one is outside.
    pub fn new(outer: Polygon, holes: Vec<Polygon>) -> Result<Self, HoleOutside> {
        for (number, hole) in holes.iter().enumerate() {
            // An outline around its hole's corners may still cross the hole; then the rest of the hole leaves nothing out.
            if !hole.corners().all(|corner| outer.contains(corner)) {
                return Err(HoleOutside(number));
            }
        }
        Ok(Self { outer, holes })
    }

    /// Is a place in it?
    pub fn contains(&self, at: Point) -> bool {
        self.outer.contains(at) && !self.holes.iter().any(|hole| hole.contains(at))
    }

    /// The outline.
    pub fn outer(&self) -> &Polygon {
        &self.outer
    }

    /// What is left out.
    pub fn holes(&self) -> &[Polygon] {
        &self.holes
    }
}

/// A place where riders of a zone are fetched.
#[derive(Clone, Debug, PartialEq)]
pub struct Spot {
    /// As people call it.
    pub name: Box<str>,
    /// Where.
    pub at: Point,
}

/// Areas with a meaning.
#[derive(Clone, Debug, PartialEq)]
pub struct Zone {
    /// As people call it; unique among the zones of a city.
    pub name: Box<str>,
    /// What it means.
    pub kind: ZoneKind,
    /// Where it is; at least one.
    pub areas: Vec<Area>,
    /// Where riders in it are fetched; none: where they ask. A [`ZoneKind::PickupZone`] has at least one.
    pub spots: Vec<Spot>,
}

impl Zone {
    /// Is a place in it?
    pub fn contains(&self, at: Point) -> bool {
        self.areas.iter().any(|area| area.contains(at))
    }
}

/// Why zones do not make sense together.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum BadZones {
    /// More than [`Zones::ZONES_MAX`].
    #[error("a city has at most {max} zones, got {0}", max = Zones::ZONES_MAX)]
    TooMany(usize),
    /// Two zones of one name.
    #[error("two zones are called {0:?}: give each a name of its own")]
    SameName(Box<str>),
    /// A zone without an outline.
    #[error("zone {0:?} has no outline")]
    Empty(Box<str>),
    /// A pickup zone that could fetch nobody.
    #[error("zone {0:?} is a pickup_zone without a pickup_point: add one with \"zone\": {0:?}")]
    NoSpots(Box<str>),
    /// A service area that would move every rider.
    #[error("zone {0:?} is a service_area and has pickup points: draw a pickup_zone around them")]
    SpotsOfServiceArea(Box<str>),
    /// A pickup point far from its zone.
    #[error(
        "pickup point {spot:?} at {at} lies farther than {max} m from its zone {zone:?}: GeoJSON writes longitude first, \
         then latitude",
        max = Zones::SPOT_BESIDE_M
    )]
    SpotElsewhere {
        /// The zone.
        zone: Box<str>,
        /// The point.
        spot: Box<str>,
        /// Where it is said to be.
        at: Point,
    },
    /// A zone where nobody could ask for a ride.
    #[error(
        "zone {0:?} touches no service_area, so no ride could begin there: GeoJSON writes longitude first, then latitude"
    )]
    OutsideServiceAreas(Box<str>),
}

/// What zones say about the place of a request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Finding<'a> {
    /// There are service areas, and it lies in none.
    OutOfArea,
    /// It is fetched where it asks.
    Served {
        /// The airport it lies at, if so.
        airport: Option<&'a Zone>,
    },
    /// It is fetched at a pickup point: the nearest of the zones around it.
    Snapped {
        /// The zone.
        zone: &'a Zone,
        /// Which of its points.
        spot: &'a Spot,
    },
}

/// Corners of an area's bounds in 1e-7 degrees, and the numbers of its zone and of itself. In f64, which holds them exactly:
/// the tree multiplies sides, and those products leave 63 bits.
type Bounds = GeomWithData<Rectangle<[f64; 2]>, (usize, usize)>;

/// All zones of a city.
#[derive(Clone, Debug, Default)]
pub struct Zones {
    zones: Vec<Zone>,
    tree: RTree<Bounds>,
    has_service_area: bool,
}

impl Zones {
    /// Zones of one city.
    pub const ZONES_MAX: usize = 1_000;
    /// So far from the bounds of its zone a pickup point may lie, in metres.
    pub const SPOT_BESIDE_M: f64 = 2_000.0;

    /// Puts zones together; the first that makes no sense among the others is named.
    pub fn new(zones: Vec<Zone>) -> Result<Self, BadZones> {
        if zones.len() > Self::ZONES_MAX {
            return Err(BadZones::TooMany(zones.len()));
        }
        let mut names: Vec<&str> = zones.iter().map(|zone| &*zone.name).collect();
        names.sort_unstable();
        if let Some(same) = names.windows(2).find(|two| two[0] == two[1]) {
            return Err(BadZones::SameName(same[0].into()));
        }
        let areas_of = |wanted: bool| {
            zones
                .iter()
                .filter(move |zone| (zone.kind == ZoneKind::ServiceArea) == wanted)
        };
        let has_service_area = areas_of(true).next().is_some();
        for zone in &zones {
            check(zone)?;
        }
        if has_service_area {
            for zone in areas_of(false) {
                if !areas_of(true).any(|area| touch(area, zone)) {
                    return Err(BadZones::OutsideServiceAreas(zone.name.clone()));
                }
            }
        }
        let mut bounds = Vec::new();
        for (number, zone) in zones.iter().enumerate() {
            for (part, area) in zone.areas.iter().enumerate() {
                let (south, north, west, east) = area.outer.bounds_e7();
                let corners = ([south as f64, west as f64], [north as f64, east as f64]);
                let rectangle = Rectangle::from_corners(corners.0, corners.1);
                bounds.push(GeomWithData::new(rectangle, (number, part)));
            }
        }
        Ok(Self {
            tree: RTree::bulk_load(bounds),
            zones,
            has_service_area,
        })
    }

    /// All of them, as they were given.
    pub fn all(&self) -> &[Zone] {
        &self.zones
    }

    /// The zones a place lies in, each once or, if its areas overlap, more often; in no order.
    pub fn around(&self, at: Point) -> impl Iterator<Item = &Zone> {
        let (lat, lon) = (f64::from(at.lat_e7()), f64::from(at.lon_e7()));
        // Outlines over the antimeridian are unrolled, so that the place may lie a turn away from them.
        let turns = [-TURN_E7 as f64, 0.0, TURN_E7 as f64];
        let here = turns.into_iter().flat_map(move |turn| {
            let at = AABB::from_point([lat, lon + turn]);
            self.tree.locate_in_envelope_intersecting(at)
        });
        here.filter_map(move |bounds| {
            let (number, part) = bounds.data;
            let zone = &self.zones[number];
            zone.areas[part].contains(at).then_some(zone)
        })
    }

    /// What they say about a place where somebody wants to be fetched. Of pickup points at the same distance it is that of
    /// the zone whose name comes first, and in it the one that was given first.
    pub fn find(&self, at: Point) -> Finding<'_> {
        let mut is_served = !self.has_service_area;
        let mut airport = None;
        let mut best: Option<(f64, &Zone, &Spot)> = None;
        for zone in self.around(at) {
            match zone.kind {
                ZoneKind::ServiceArea => is_served = true,
                ZoneKind::Airport => airport = Some(zone),
                ZoneKind::PickupZone => {}
            }
            for spot in &zone.spots {
                let distance_m = at.distance_m(spot.at);
                // The tree gives zones in no order: equal ones are told apart by their names.
                let is_nearer = best.is_none_or(|(least_m, other, _)| {
                    distance_m < least_m || (distance_m == least_m && zone.name < other.name)
                });
                if is_nearer {
                    best = Some((distance_m, zone, spot));
                }
            }
        }
        match best {
            _ if !is_served => Finding::OutOfArea,
            Some((_, zone, spot)) => Finding::Snapped { zone, spot },
            None => Finding::Served { airport },
        }
    }
}

/// What must hold for a zone by itself.
fn check(zone: &Zone) -> Result<(), BadZones> {
    if zone.areas.is_empty() {
        return Err(BadZones::Empty(zone.name.clone()));
    }
    match zone.kind {
        ZoneKind::PickupZone if zone.spots.is_empty() => {
            return Err(BadZones::NoSpots(zone.name.clone()));
        }
        ZoneKind::ServiceArea if !zone.spots.is_empty() => {
            return Err(BadZones::SpotsOfServiceArea(zone.name.clone()));
        }
        ZoneKind::ServiceArea | ZoneKind::Airport | ZoneKind::PickupZone => {}
    }
    for spot in &zone.spots {
        if !zone.areas.iter().any(|area| is_beside(area, spot.at)) {
            return Err(BadZones::SpotElsewhere {
                zone: zone.name.clone(),
                spot: spot.name.clone(),
                at: spot.at,
            });
        }
    }
    Ok(())
}

/// Does a place lie within [`Zones::SPOT_BESIDE_M`] of an area's bounds?
fn is_beside(area: &Area, at: Point) -> bool {
    let (south, north, west, east) = area.outer.bounds_e7();
    let lat_margin = Zones::SPOT_BESIDE_M / M_PER_E7;
    let cos = (f64::from(at.lat_e7()) * RAD_PER_E7).cos().max(0.01);
    let (lat, lon) = (f64::from(at.lat_e7()), f64::from(at.lon_e7()));
    let is_within = |value: f64, least: i64, most: i64, margin: f64| {
        (least as f64 - margin..=most as f64 + margin).contains(&value)
    };
    is_within(lat, south, north, lat_margin)
        && (-1..=1).any(|turn| {
            let lon = lon + (turn * TURN_E7) as f64;
            is_within(lon, west, east, lat_margin / cos)
        })
}

/// Does one of the two have a corner in the other?
fn touch(a: &Zone, b: &Zone) -> bool {
    let has_corner_in = |inner: &Zone, outer: &Zone| {
        let mut corners = inner.areas.iter().flat_map(|area| area.outer.corners());
        corners.any(|corner| outer.contains(corner))
    };
    has_corner_in(b, a) || has_corner_in(a, b)
}
