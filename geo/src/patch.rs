//! Which patch holds a place, and which patches does a search touch?
//!
//! Rows are 2^s units of 1e-7 degrees high. In a row all patches are 2^(s+b) units wide, where the band b grows
//! towards the poles so that a patch stays between half and once as wide as high. A row's last patch may be
//! narrower; columns begin again at the antimeridian. At a pole a row is two patches, so nothing is special there.

use crate::point::{LAT_E7_MAX, LON_E7_MAX, M_PER_E7, Point, RAD_PER_E7, TURN_E7};

/// Bits of a place's offset inside its patch that an entry keeps, for each axis.
pub(crate) const OFFSET_BITS: u32 = 14;

const SHIFT_MIN: u32 = 14;
const SHIFT_MAX: u32 = 21;
/// The widest column: a row at the pole has two.
const COLUMN_SHIFT_MAX: u32 = 31;
const BANDS: usize = (COLUMN_SHIFT_MAX - SHIFT_MIN) as usize;

/// One planar square of the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Patch {
    pub row: u32,
    pub column: u32,
}

/// How the Earth is cut into patches.
#[derive(Debug)]
pub(crate) struct Grid {
    shift: u32,
    /// Rows away from the equator at which the next band begins.
    bands: [u32; BANDS],
}

/// A stretch of columns, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stretch {
    pub first: u32,
    pub last: u32,
}

/// The rectangle of latitude and longitude around a disc: every place of the disc is in it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    /// Latitude in 1e-7 degrees north of the south pole.
    south: i64,
    north: i64,
    /// Longitude east of the antimeridian; `west` may be below 0 and `east` a turn or more.
    west: i64,
    east: i64,
}

impl Grid {
    pub fn new(patch_m: f64) -> Self {
        let wished = (patch_m.max(1.0) / M_PER_E7).log2().round();
        let shift = (wished as u32).clamp(SHIFT_MIN, SHIFT_MAX);
        let mut bands = [u32::MAX; BANDS];
        for (band, start) in bands.iter_mut().enumerate() {
            if shift + band as u32 >= COLUMN_SHIFT_MAX {
                break;
            }
            // From this latitude on a degree of longitude is 2^-(band + 1) of one of latitude, or less.
            let lat = 0.5_f64.powi(band as i32 + 1).acos();
            *start = ((lat / RAD_PER_E7) as u64 >> shift) as u32 + 1;
        }
        Self { shift, bands }
    }

    /// Height of a patch in metres.
    pub fn row_m(&self) -> f64 {
        (1u64 << self.shift) as f64 * M_PER_E7
    }

    #[inline]
    pub fn patch_of(&self, at: Point) -> Patch {
        let row = south_e7(at) >> self.shift;
        Patch {
            row,
            column: east_e7(at) >> self.column_shift(row),
        }
    }

    /// The offset inside the patch, for an entry: north in the upper half, east in the lower.
    #[inline]
    pub fn offset_of(&self, at: Point) -> u32 {
        let (south, east) = (south_e7(at), east_e7(at));
        let north = scaled_offset(south, self.shift);
        (north << OFFSET_BITS) | scaled_offset(east, self.column_shift(south >> self.shift))
    }

    #[inline]
    pub fn column_shift(&self, row: u32) -> u32 {
        let equator = (LAT_E7_MAX as u32) >> self.shift;
        // Whole rows between this one and the equator's: the edge nearer to the equator decides.
        let away = row.abs_diff(equator);
        let mut band = 0;
        while band < BANDS && away > self.bands[band] {
            band += 1;
        }
        self.shift + band as u32
    }

    /// Latitude (1e-7 degrees north of the south pole) at which a row begins, and the height of an offset's step.
    #[inline]
    pub fn row_start(&self, row: u32) -> (i64, f64) {
        (i64::from(row) << self.shift, step(self.shift))
    }

    /// Longitude (1e-7 degrees east of the antimeridian) at which a column begins in a row of this shift.
    #[inline]
    pub fn column_start(column: u32, column_shift: u32) -> (i64, f64) {
        (i64::from(column) << column_shift, step(column_shift))
    }

    /// First and last row of a window.
    pub fn rows(&self, window: &Window) -> (u32, u32) {
        let top = 2 * i64::from(LAT_E7_MAX);
        let row = |lat: i64| (lat.clamp(0, top) >> self.shift) as u32;
        (row(window.south), row(window.north))
    }

    /// The columns of a row inside a window: one stretch, or two when it lies across the antimeridian.
    pub fn columns(&self, row: u32, window: &Window) -> (Stretch, Option<Stretch>) {
        let shift = self.column_shift(row);
        let last = ((TURN_E7 - 1) >> shift) as u32;
        let (west, east) = (window.west, window.east);
        if east - west + (2 << shift) >= TURN_E7 {
            return (Stretch { first: 0, last }, None);
        }
        let column = |lon: i64| (lon.rem_euclid(TURN_E7) >> shift) as u32;
        if west < 0 || east >= TURN_E7 {
            let start = Stretch {
                first: 0,
                last: column(east),
            };
            return (
                Stretch {
                    first: column(west),
                    last,
                },
                Some(start),
            );
        }
        (
            Stretch {
                first: column(west),
                last: column(east),
            },
            None,
        )
    }

    /// About how many patches a window touches.
    pub fn patches_in(&self, window: &Window) -> u64 {
        let (first, last) = self.rows(window);
        let widest = self.column_shift(first).min(self.column_shift(last));
        let columns = ((window.east - window.west).min(TURN_E7) >> widest) as u64 + 2;
        u64::from(last - first + 1) * columns
    }
}

impl Window {
    /// Around a disc of this radius. `cos` is the `narrowest_cos` of this radius or of a larger one.
    pub fn around(at: Point, radius_m: f64, cos: f64) -> Self {
        // One unit more on each side, for rounding.
        let reach = (radius_m / M_PER_E7).min(TURN_E7 as f64) + 2.0;
        let (south, east) = (i64::from(south_e7(at)), i64::from(east_e7(at)));
        let side = if cos <= 0.0 {
            TURN_E7 as f64
        } else {
            (reach / cos).min(TURN_E7 as f64)
        };
        Self {
            south: south - reach as i64,
            north: south + reach as i64,
            west: east - side as i64,
            east: east + side as i64,
        }
    }

    /// From bounds in 1e-7 degrees: south, north, west, east, the east end not below the west end.
    pub fn of_bounds((south, north, west, east): (i64, i64, i64, i64)) -> Self {
        let pole = i64::from(LAT_E7_MAX);
        let start = (west + i64::from(LON_E7_MAX)).rem_euclid(TURN_E7);
        Self {
            south: south + pole,
            north: north + pole,
            west: start,
            east: start + (east - west),
        }
    }
}

/// The smallest cosine of latitude within a distance of a place; 0 when a pole is within it.
pub(crate) fn narrowest_cos(at: Point, radius_m: f64) -> f64 {
    let farthest = f64::from(at.lat_e7().abs()) + radius_m / M_PER_E7 + 2.0;
    if farthest >= f64::from(LAT_E7_MAX) {
        0.0
    } else {
        (farthest * RAD_PER_E7).cos()
    }
}

/// 1e-7 degrees north of the south pole.
#[inline]
pub(crate) fn south_e7(at: Point) -> u32 {
    at.lat_e7().wrapping_add(LAT_E7_MAX) as u32
}

/// 1e-7 degrees east of the antimeridian, whose two names are one here.
#[inline]
pub(crate) fn east_e7(at: Point) -> u32 {
    let east = (i64::from(at.lon_e7()) + i64::from(LON_E7_MAX)) as u32;
    if i64::from(east) == TURN_E7 { 0 } else { east }
}

#[inline]
fn scaled_offset(place: u32, shift: u32) -> u32 {
    let offset = place & ((1u32 << shift) - 1);
    if shift <= OFFSET_BITS {
        offset << (OFFSET_BITS - shift)
    } else {
        offset >> (shift - OFFSET_BITS)
    }
}

/// Units of 1e-7 degrees in one step of an offset.
#[inline]
fn step(shift: u32) -> f64 {
    f64::from(1u32 << shift) / f64::from(1u32 << OFFSET_BITS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patch_is_never_wider_than_high_nor_narrower_than_half() {
        let grid = Grid::new(500.0);
        for lat in -88..=88 {
            let at = Point::new(f64::from(lat), 10.0).unwrap();
            let width_m = (1u64 << grid.column_shift(grid.patch_of(at).row)) as f64
                * M_PER_E7
                * f64::from(lat).to_radians().cos();
            let ratio = width_m / grid.row_m();
            assert!((0.45..=1.05).contains(&ratio), "latitude {lat}: {ratio}");
        }
    }

    #[test]
    fn both_names_of_the_antimeridian_are_one_patch() {
        let grid = Grid::new(500.0);
        let (east, west) = (
            Point::new(12.0, 180.0).unwrap(),
            Point::new(12.0, -180.0).unwrap(),
        );
        assert_eq!(grid.patch_of(east), grid.patch_of(west));
    }

    #[test]
    fn the_window_of_a_disc_holds_the_patch_of_every_place_in_it() {
        use rand::{Rng, SeedableRng, rngs::SmallRng};
        let mut rng = SmallRng::seed_from_u64(7);
        for round in 0..20_000 {
            let grid = Grid::new([100.0, 500.0, 3_000.0][round % 3]);
            let lat = if round % 2 == 0 {
                90.0 - rng.random_range(0.0..0.2f64)
            } else {
                rng.random_range(-90.0..90.0)
            };
            let lon = if round % 5 == 0 {
                179.99
            } else {
                rng.random_range(-180.0..180.0)
            };
            let at = Point::new(lat, lon).unwrap();
            let radius_m = rng.random_range(1.0..20_000.0);
            let other = at.offset_m(
                rng.random_range(-radius_m..radius_m),
                rng.random_range(-radius_m..radius_m),
            );
            if at.distance_m(other) > radius_m {
                continue;
            }
            let window = Window::around(at, radius_m, narrowest_cos(at, radius_m));
            let patch = grid.patch_of(other);
            let rows = grid.rows(&window);
            assert!(
                (rows.0..=rows.1).contains(&patch.row),
                "{at} {other} {radius_m}"
            );
            let (one, two) = grid.columns(patch.row, &window);
            let holds = |stretch: Stretch| (stretch.first..=stretch.last).contains(&patch.column);
            assert!(
                holds(one) || two.is_some_and(holds),
                "{at} {other} {radius_m}"
            );
        }
    }
}
