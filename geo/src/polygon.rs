//! Is a place inside a zone's outline?
//!
//! An outline is a closed ring of corners joined by straight lines in latitude and longitude, as GeoJSON has
//! them. It may cross the antimeridian: each edge takes the shorter way round. It must not hold a pole.

use crate::point::{Point, TURN_E7};

/// A simple ring of corners. Holding one proves it has at least three and bounds an area.
#[derive(Clone, Debug, PartialEq)]
pub struct Polygon {
    /// (lat, lon) in 1e-7 degrees; longitudes unrolled from the first corner, so that they may leave +-180.
    corners: Vec<(i64, i64)>,
    lat: (i64, i64),
    lon: (i64, i64),
}

/// Why corners are not an outline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadPolygon {
    /// Fewer than three different corners.
    #[error("an outline needs at least 3 corners, got {0}")]
    TooFew(usize),
    /// More corners than [`Polygon::CORNERS_MAX`].
    #[error("an outline has at most {max} corners, got {0}", max = Polygon::CORNERS_MAX)]
    TooMany(usize),
    /// All corners on one line.
    #[error("the outline bounds no area")]
    Flat,
    /// The ring goes round the Earth, so that it holds a pole.
    #[error("the outline goes round a pole")]
    RoundAPole,
    /// Two edges cross, so that inside has no meaning.
    #[error("edges {0} and {1} of the outline cross")]
    Crossing(usize, usize),
}

impl Polygon {
    /// Corners of one outline. Validation compares each pair of edges, `inside` walks all of them.
    pub const CORNERS_MAX: usize = 1_000;

    /// An outline from its corners in order; the last may repeat the first.
    pub fn new(corners: &[Point]) -> Result<Self, BadPolygon> {
        let mut ring: Vec<Point> = corners.to_vec();
        ring.dedup();
        while ring.len() > 1 && ring.first() == ring.last() {
            ring.pop();
        }
        if ring.len() < 3 {
            return Err(BadPolygon::TooFew(ring.len()));
        }
        if ring.len() > Self::CORNERS_MAX {
            return Err(BadPolygon::TooMany(ring.len()));
        }
        let corners = unroll(&ring)?;
        if doubled_area(&corners) == 0 {
            return Err(BadPolygon::Flat);
        }
        if let Some((a, b)) = crossing_edges(&corners) {
            return Err(BadPolygon::Crossing(a, b));
        }
        let lat = bounds(corners.iter().map(|corner| corner.0));
        let lon = bounds(corners.iter().map(|corner| corner.1));
        Ok(Self { corners, lat, lon })
    }

    /// Whether a place is inside. A place on an edge may count either way, but of two outlines that share the
    /// edge exactly one holds it.
    pub fn contains(&self, at: Point) -> bool {
        let lat = i64::from(at.lat_e7());
        if lat < self.lat.0 || lat > self.lat.1 {
            return false;
        }
        let lon = i64::from(at.lon_e7());
        // The unrolled ring may lie a turn away from the place.
        (-1..=1).any(|turn| self.contains_unrolled(lat, lon + turn * TURN_E7))
    }

    /// The corners in the order they were given, without a repeated first one.
    pub fn corners(&self) -> impl Iterator<Item = Point> + '_ {
        self.corners.iter().map(|(lat, lon)| {
            // Latitudes came from points, and longitudes are rolled up again.
            Point::from_packed(*lat as i32, crate::point::wrap_lon_e7(*lon))
        })
    }

    /// South, north, west and east bounds in 1e-7 degrees; the longitudes may leave +-180 degrees.
    pub(crate) fn bounds_e7(&self) -> (i64, i64, i64, i64) {
        (self.lat.0, self.lat.1, self.lon.0, self.lon.1)
    }

    fn contains_unrolled(&self, lat: i64, lon: i64) -> bool {
        if lon < self.lon.0 || lon > self.lon.1 {
            return false;
        }
        let mut inside = false;
        for (a, b) in edges(&self.corners) {
            if (a.0 > lat) != (b.0 > lat) {
                let (low, high) = if a.0 < b.0 { (a, b) } else { (b, a) };
                inside ^= side(low, high, (lat, lon)) < 0;
            }
        }
        inside
    }
}

fn unroll(ring: &[Point]) -> Result<Vec<(i64, i64)>, BadPolygon> {
    let mut corners = Vec::with_capacity(ring.len());
    let mut lon = i64::from(ring[0].lon_e7());
    for point in ring {
        lon += shorter_way(i64::from(point.lon_e7()) - lon);
        corners.push((i64::from(point.lat_e7()), lon));
    }
    let back = lon + shorter_way(corners[0].1 - lon);
    if back != corners[0].1 {
        return Err(BadPolygon::RoundAPole);
    }
    Ok(corners)
}

fn shorter_way(lon: i64) -> i64 {
    (lon + TURN_E7 / 2).rem_euclid(TURN_E7) - TURN_E7 / 2
}

fn edges(corners: &[(i64, i64)]) -> impl Iterator<Item = ((i64, i64), (i64, i64))> + '_ {
    (0..corners.len()).map(|i| (corners[i], corners[(i + 1) % corners.len()]))
}

/// Positive when `p` is left of the way from `a` to `b`. In i128: the products leave 63 bits.
fn side(a: (i64, i64), b: (i64, i64), p: (i64, i64)) -> i128 {
    i128::from(b.0 - a.0) * i128::from(p.1 - a.1) - i128::from(b.1 - a.1) * i128::from(p.0 - a.0)
}

fn doubled_area(corners: &[(i64, i64)]) -> i128 {
    edges(corners)
        .map(|(a, b)| i128::from(a.0) * i128::from(b.1) - i128::from(b.0) * i128::from(a.1))
        .sum()
}

fn crossing_edges(corners: &[(i64, i64)]) -> Option<(usize, usize)> {
    let edges: Vec<_> = edges(corners).collect();
    for (i, &(a, b)) in edges.iter().enumerate() {
        for (j, &(c, d)) in edges.iter().enumerate().skip(i + 1) {
            let (ab_c, ab_d) = (side(a, b, c).signum(), side(a, b, d).signum());
            let (cd_a, cd_b) = (side(c, d, a).signum(), side(c, d, b).signum());
            if ab_c * ab_d < 0 && cd_a * cd_b < 0 {
                return Some((i, j));
            }
        }
    }
    None
}

fn bounds(values: impl Iterator<Item = i64>) -> (i64, i64) {
    values.fold((i64::MAX, i64::MIN), |(low, high), value| {
        (low.min(value), high.max(value))
    })
}
