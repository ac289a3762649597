//! Which ownership cell holds a place, and which cells does a halo touch?
//!
//! Cells are H3 hexagons. H3 costs some hundred nanoseconds a point: ask when a driver has moved far enough
//! to matter, not at each ping. Not here: which shard owns a cell (`ring`).

use std::fmt;

use h3o::{CellIndex, LatLng};

use crate::point::{EARTH_RADIUS_M, Point};

/// An H3 resolution, 0 (coarse) to 15 (fine).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Resolution(u8);

/// Not a resolution: 0 to 15 are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("H3 resolution {0} is not within 0 to 15")]
pub struct BadResolution(pub u8);

/// Not the number of an H3 cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:#018x} is not an H3 cell")]
pub struct BadCell(pub u64);

/// A hexagon (at twelve places of each resolution a pentagon) of the H3 grid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Cell(CellIndex);

const _: () = assert!(size_of::<Option<Cell>>() == 8); // eight to a cache line

impl Resolution {
    /// The resolution as a number, 0 to 15.
    pub fn get(self) -> u8 {
        self.0
    }

    fn h3(self) -> h3o::Resolution {
        h3o::Resolution::try_from(self.0).expect("a Resolution is valid by construction")
    }
}

impl TryFrom<u8> for Resolution {
    type Error = BadResolution;

    fn try_from(number: u8) -> Result<Self, BadResolution> {
        if number > 15 {
            Err(BadResolution(number))
        } else {
            Ok(Self(number))
        }
    }
}

impl Cell {
    /// The cell that holds a place.
    pub fn at(point: Point, res: Resolution) -> Self {
        Self(lat_lng(point).to_cell(res.h3()))
    }

    /// The middle of the cell.
    pub fn center(self) -> Point {
        let at = LatLng::from(self.0);
        Point::new(at.lat().clamp(-90.0, 90.0), wrap_deg(at.lng()))
            .expect("a cell's centre is on Earth: clamped and wrapped just above")
    }

    /// How fine the cell is.
    pub fn resolution(self) -> Resolution {
        Resolution(u8::from(self.0.resolution()))
    }
}

impl TryFrom<u64> for Cell {
    type Error = BadCell;

    fn try_from(number: u64) -> Result<Self, BadCell> {
        CellIndex::try_from(number)
            .map(Self)
            .map_err(|_| BadCell(number))
    }
}

impl From<Cell> for u64 {
    fn from(cell: Cell) -> u64 {
        u64::from(cell.0)
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", u64::from(self.0))
    }
}

/// Replaces what is in `out` by every cell that may hold a place within `radius_m` metres of `at`, the
/// nearest first. A few cells too many are possible, one too few is not.
///
/// The work grows with the number of cells: choose `res` so that a cell is not much smaller than the radius.
pub fn cells_within(at: Point, radius_m: f64, res: Resolution, out: &mut Vec<Cell>) {
    out.clear();
    let from = Cell::at(at, res);
    // Breadth first over the grid, `out` itself being the queue. A cell that comes near enough is kept and its
    // neighbours are looked at. The cells near enough to a disc hang together, because the disc does.
    out.push(from);
    let mut next = 0;
    while next < out.len() {
        for neighbour in out[next].0.grid_disk::<Vec<_>>(1) {
            let neighbour = Cell(neighbour);
            if !out.contains(&neighbour) && neighbour.comes_within(at, radius_m) {
                out.push(neighbour);
            }
        }
        next += 1;
    }
}

impl Cell {
    /// Whether any place of the cell may be within `radius_m` of `at`.
    fn comes_within(self, at: Point, radius_m: f64) -> bool {
        let (center, mut reach) = (LatLng::from(self.0), 0.0_f64);
        for corner in self.0.boundary().iter() {
            reach = reach.max(center.distance_m(*corner));
        }
        let _ = EARTH_RADIUS_M;
        at.distance_m(self.center()) <= radius_m + reach * REACH_MARGIN
    }
}

/// Edges are arcs and our metres are not h3o's to the last digit: a little more than the farthest corner.
const REACH_MARGIN: f64 = 1.001;

fn lat_lng(point: Point) -> LatLng {
    LatLng::new(point.lat_deg(), point.lon_deg()).expect("a Point is finite by construction")
}

fn wrap_deg(lon: f64) -> f64 {
    if lon > 180.0 {
        lon - 360.0
    } else if lon < -180.0 {
        lon + 360.0
    } else {
        lon
    }
}
