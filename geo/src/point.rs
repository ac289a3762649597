//! What is a place, and how far apart are two of them?
//!
//! A `Point` is valid by construction and exact: degrees times ten million in two integers (1.1 cm or finer).
//! Distances are haversine on the mean radius, right over the antimeridian and at the poles.
//! Not here: cells (`cell`), outlines (`polygon`).

use std::fmt;

/// The Earth's mean radius in metres (IUGG R1).
pub const EARTH_RADIUS_M: f64 = 6_371_008.8;

pub(crate) const E7: f64 = 1e7;
pub(crate) const LAT_E7_MAX: i32 = 900_000_000;
pub(crate) const LON_E7_MAX: i32 = 1_800_000_000;
pub(crate) const TURN_E7: i64 = 3_600_000_000;
/// Radians in one unit of 1e-7 degrees.
pub(crate) const RAD_PER_E7: f64 = std::f64::consts::PI / 180.0 / E7;
/// Metres along a meridian in one unit of 1e-7 degrees.
pub(crate) const M_PER_E7: f64 = RAD_PER_E7 * EARTH_RADIUS_M;

/// A place on Earth (WGS84 degrees). Holding one proves it is valid.
///
/// Ordered by latitude, then longitude, which means nothing but is total.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Point {
    lat_e7: i32,
    lon_e7: i32,
}

/// Why two numbers are not a place.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum BadPoint {
    /// Not a finite number, or outside -90 to 90.
    #[error("latitude {0} is not within -90 to 90 degrees")]
    Latitude(f64),
    /// Not a finite number, or outside -180 to 180.
    #[error("longitude {0} is not within -180 to 180 degrees")]
    Longitude(f64),
}

impl Point {
    /// A place from degrees: latitude -90 to 90, longitude -180 to 180, rounded to 1e-7 degrees.
    pub fn new(lat_deg: f64, lon_deg: f64) -> Result<Self, BadPoint> {
        if !(-90.0..=90.0).contains(&lat_deg) {
            return Err(BadPoint::Latitude(lat_deg));
        }
        if !(-180.0..=180.0).contains(&lon_deg) {
            return Err(BadPoint::Longitude(lon_deg));
        }
        Ok(Self {
            lat_e7: (lat_deg * E7).round() as i32,
            lon_e7: (lon_deg * E7).round() as i32,
        })
    }

    /// A place from degrees times ten million.
    pub fn from_e7(lat_e7: i32, lon_e7: i32) -> Result<Self, BadPoint> {
        if !(-LAT_E7_MAX..=LAT_E7_MAX).contains(&lat_e7) {
            return Err(BadPoint::Latitude(f64::from(lat_e7) / E7));
        }
        if !(-LON_E7_MAX..=LON_E7_MAX).contains(&lon_e7) {
            return Err(BadPoint::Longitude(f64::from(lon_e7) / E7));
        }
        Ok(Self { lat_e7, lon_e7 })
    }

    /// A place from what another one's `lat_e7` and `lon_e7` gave.
    #[inline]
    pub(crate) fn from_packed(lat_e7: i32, lon_e7: i32) -> Self {
        debug_assert!(Self::from_e7(lat_e7, lon_e7).is_ok());
        Self { lat_e7, lon_e7 }
    }

    /// Latitude in degrees, -90 to 90.
    pub fn lat_deg(self) -> f64 {
        f64::from(self.lat_e7) / E7
    }

    /// Longitude in degrees, -180 to 180.
    pub fn lon_deg(self) -> f64 {
        f64::from(self.lon_e7) / E7
    }

    /// Latitude in degrees times ten million.
    pub fn lat_e7(self) -> i32 {
        self.lat_e7
    }

    /// Longitude in degrees times ten million.
    pub fn lon_e7(self) -> i32 {
        self.lon_e7
    }

    /// Great-circle distance in metres.
    pub fn distance_m(self, other: Point) -> f64 {
        Origin::new(self).distance_m(other)
    }

    /// The place reached by going `north_m` along the meridian and then `east_m` along the parallel.
    ///
    /// Meant for short ways. A way north that would pass a pole ends at the pole; a way east wraps at the
    /// antimeridian. At a pole itself every `east_m` stays there.
    pub fn offset_m(self, north_m: f64, east_m: f64) -> Point {
        let lat = (self.lat_e7 as f64 + north_m / M_PER_E7).round();
        let lat_e7 = lat.clamp(f64::from(-LAT_E7_MAX), f64::from(LAT_E7_MAX)) as i32;
        let cos = (f64::from(lat_e7) * RAD_PER_E7).cos();
        let turn = if cos < 1e-9 {
            0.0
        } else {
            (east_m / (M_PER_E7 * cos)).round()
        };
        Self {
            lat_e7,
            lon_e7: wrap_lon_e7(i64::from(self.lon_e7) + turn as i64),
        }
    }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.7},{:.7}", self.lat_deg(), self.lon_deg())
    }
}

/// A longitude in 1e-7 degrees brought into -180 (inclusive) to 180 (exclusive).
pub(crate) fn wrap_lon_e7(lon_e7: i64) -> i32 {
    let wrapped = (lon_e7 + i64::from(LON_E7_MAX)).rem_euclid(TURN_E7) - i64::from(LON_E7_MAX);
    wrapped as i32
}

/// A place to measure from, with its trigonometry done once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Origin {
    /// In 1e-7 degrees, like all places below: integers, which an f64 holds exactly.
    lat: f64,
    lon: f64,
    sin_lat: f64,
    cos_lat: f64,
}

/// Up to this angle (radians) the series below are exact to the last bits of an f64.
const SERIES_MAX_RAD: f64 = 0.02;

impl Origin {
    pub fn new(at: Point) -> Self {
        let (sin_lat, cos_lat) = (f64::from(at.lat_e7) * RAD_PER_E7).sin_cos();
        Self {
            lat: f64::from(at.lat_e7),
            lon: f64::from(at.lon_e7),
            sin_lat,
            cos_lat,
        }
    }

    /// Great-circle distance in metres.
    #[inline]
    pub fn distance_m(&self, to: Point) -> f64 {
        let [metres] = self.distances_m(&[f64::from(to.lat_e7)], &[f64::from(to.lon_e7)]);
        metres
    }

    /// Distances to many places, with the same results: without branches, so that the processor does several at once.
    #[inline]
    pub fn distances_m<const N: usize>(&self, lat: &[f64; N], lon: &[f64; N]) -> [f64; N] {
        let mut metres = [0.0; N];
        let mut all_near = true;
        for number in 0..N {
            let (dlat, dlon) = self.angles(lat[number], lon[number]);
            all_near &= (dlat.abs() <= SERIES_MAX_RAD) & (dlon <= SERIES_MAX_RAD);
            metres[number] = self.near_m(dlat, dlon);
        }
        if !all_near {
            for number in 0..N {
                let (dlat, dlon) = self.angles(lat[number], lon[number]);
                if dlat.abs() > SERIES_MAX_RAD || dlon > SERIES_MAX_RAD {
                    metres[number] = self.far_m(lat[number], dlat, dlon);
                }
            }
        }
        metres
    }

    /// Radians north (south: below 0), and east or west by the shorter way.
    #[inline]
    fn angles(&self, lat: f64, lon: f64) -> (f64, f64) {
        let turn = (lon - self.lon).abs();
        let turn = turn.min(TURN_E7 as f64 - turn);
        ((lat - self.lat) * RAD_PER_E7, turn * RAD_PER_E7)
    }

    /// The haversine formula by series.
    #[inline]
    fn near_m(&self, dlat: f64, dlon: f64) -> f64 {
        // cos(lat + dlat) by the addition theorem, so that a near place needs no call of a library.
        let square = dlat * dlat;
        let half = half_sine_squared(square);
        let sin_dlat = dlat * (1.0 - square * (1.0 / 6.0 - square * (1.0 / 120.0)));
        let cos_to = self.cos_lat * (1.0 - 2.0 * half) - self.sin_lat * sin_dlat;
        let haversine = half + self.cos_lat * cos_to.max(0.0) * half_sine_squared(dlon * dlon);
        // asin by its series.
        let series =
            1.0 + haversine * (1.0 / 6.0 + haversine * (3.0 / 40.0 + haversine * (15.0 / 336.0)));
        2.0 * EARTH_RADIUS_M * haversine.sqrt() * series
    }

    #[cold]
    fn far_m(&self, lat: f64, dlat: f64, dlon: f64) -> f64 {
        let (a, b) = ((dlat / 2.0).sin(), (dlon / 2.0).sin());
        let haversine = a * a + self.cos_lat * (lat * RAD_PER_E7).cos() * b * b;
        2.0 * EARTH_RADIUS_M * haversine.min(1.0).sqrt().asin()
    }
}

/// sin(x/2)^2 from x^2, for |x| up to `SERIES_MAX_RAD`.
#[inline]
fn half_sine_squared(xx: f64) -> f64 {
    xx * (0.25 - xx * (1.0 / 48.0 - xx * (1.0 / 1440.0 - xx * (1.0 / 80_640.0))))
}
