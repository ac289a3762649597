//! Where are drivers, and where do riders ask? One city for all processes of a run, drawn from its seed; or recorded days,
//! several of them laid over each other, each from its own beginning on.

use cabrank_geo::Point;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::plan::{Area, TraceFiles};
use crate::city::City;
use crate::trace::{self, Reports, TraceError, Trips, Window};

/// Cars drive so fast, metres a second.
const SPEED_M_S: std::ops::Range<f64> = 8.0..14.0;

/// The places of a run.
pub struct Places {
    city: City,
    area: Area,
    centre: Point,
    tracks: Vec<Track>,
    trips: Vec<(Point, Option<Point>)>,
}

/// One recorded cab: where it was, ms after the beginning of its day's recording.
struct Track(Vec<(i64, Point)>);

/// A recorded day cannot be used. Nothing was started.
#[derive(Debug, thiserror::Error)]
pub enum NoTrace {
    /// As the reader says.
    #[error(transparent)]
    Read(#[from] TraceError),
    /// Nothing in it.
    #[error("{0}: nothing in it can be used")]
    Empty(String),
}

impl Places {
    /// The places of `seed`, with what is recorded in `traces` instead as far as they go.
    pub fn new(area: Area, seed: u64, traces: &TraceFiles) -> Result<Places, NoTrace> {
        let mut tracks = Vec::new();
        for file in &traces.gps {
            let reports = Reports::open(file, Window::default(), 1)?;
            let before = tracks.len();
            tracks.extend(tracks_of(trace::by_cab(reports)));
            if tracks.len() == before {
                return Err(NoTrace::Empty(file.display().to_string()));
            }
        }
        let mut trips = Vec::new();
        for file in &traces.trips {
            let read: Vec<trace::Trip> = Trips::open(file, Window::default())?.collect();
            if read.is_empty() {
                return Err(NoTrace::Empty(file.display().to_string()));
            }
            let first = read.iter().map(|trip| trip.time.0).min().unwrap_or(0);
            trips.extend(read.iter().map(|trip| {
                (
                    trip.time.0 - first,
                    trip.pickup.0,
                    trip.dropoff.map(|to| to.0),
                )
            }));
        }
        // Several days at once: whoever asked first after the beginning comes first.
        trips.sort_by_key(|(after, ..)| *after);
        Ok(Places {
            tracks,
            trips: trips.into_iter().map(|(_, from, to)| (from, to)).collect(),
            city: City::new(&mut SmallRng::seed_from_u64(seed)),
            area,
            centre: Point::new(37.765, -122.435).expect("a constant inside the ranges"),
        })
    }

    /// The way of a driver: its recorded cab's, or from wish to wish.
    pub fn way(&self, driver: u32, now_ms: i64, rng: &mut SmallRng) -> Way {
        match self.tracks.len() {
            0 => Way::standing(self.wish(now_ms, rng)),
            count => Way {
                track: Some(driver % count as u32),
                ..Way::standing(self.centre)
            },
        }
    }

    /// From where to where the n-th rider goes.
    pub fn trip(&self, nth: u64, now_ms: i64, rng: &mut SmallRng) -> (Point, Point) {
        let (from, to) = match self.trips.len() as u64 {
            0 => (self.wish(now_ms, rng), None),
            count => self.trips[(nth % count) as usize],
        };
        (from, to.unwrap_or_else(|| self.destination(from, rng)))
    }

    /// Where somebody wants to be at that time.
    pub fn wish(&self, at_ms: i64, rng: &mut SmallRng) -> Point {
        if !self.trips.is_empty() {
            return self.trips[rng.random_range(0..self.trips.len())].0;
        }
        match self.area {
            Area::City => self.city.wish(at_ms, rng),
            Area::Even { east_km, north_km } => {
                let mut side = |km: f64| rng.random_range(-0.5..0.5) * km * 1_000.0;
                let (north, east) = (side(north_km), side(east_km));
                self.centre.offset_m(north, east)
            }
        }
    }

    /// Where a rider fetched at `pickup` wants to go.
    pub fn destination(&self, pickup: Point, rng: &mut SmallRng) -> Point {
        self.city.destination(pickup, rng)
    }
}

/// One car's way: straight lines from wish to wish.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    from: Point,
    to: Point,
    depart_ms: i64,
    arrive_ms: i64,
    /// A recorded cab's way instead.
    track: Option<u32>,
}

impl Way {
    /// Standing.
    pub fn standing(at: Point) -> Way {
        Way {
            from: at,
            to: at,
            depart_ms: 0,
            arrive_ms: 0,
            track: None,
        }
    }

    /// Where the car is at that time; times do not go back by more than a leg.
    pub fn at(&mut self, now_ms: i64, places: &Places, rng: &mut SmallRng) -> Point {
        if let Some(track) = self.track.and_then(|n| places.tracks.get(n as usize)) {
            return track.at(now_ms);
        }
        if now_ms >= self.arrive_ms {
            let from = self.to;
            let to = places.wish(now_ms, rng);
            let lasts = from.distance_m(to) / rng.random_range(SPEED_M_S) * 1_000.0;
            *self = Way {
                from,
                to,
                depart_ms: now_ms,
                arrive_ms: now_ms + lasts as i64 + 1,
                track: None,
            };
        }
        between(
            (self.depart_ms, self.from),
            (self.arrive_ms, self.to),
            now_ms,
        )
    }
}

/// On the straight line from one place and time to another.
fn between(from: (i64, Point), to: (i64, Point), at_ms: i64) -> Point {
    let lasts = (to.0 - from.0).max(1) as f64;
    let part = ((at_ms - from.0) as f64 / lasts).clamp(0.0, 1.0);
    let middle =
        |from: i32, to: i32| (f64::from(from) + (f64::from(to) - f64::from(from)) * part) as i32;
    let lat = middle(from.1.lat_e7(), to.1.lat_e7());
    let lon = middle(from.1.lon_e7(), to.1.lon_e7());
    Point::from_e7(lat, lon).unwrap_or(to.1)
}

impl Track {
    /// Where the cab is. It drives its way to and fro: beginning again would be a jump no car makes.
    fn at(&self, now_ms: i64) -> Point {
        let (first, last) = (self.0[0].0, self.0[self.0.len() - 1].0);
        let lasts = (last - first).max(1);
        let turn = now_ms.rem_euclid(2 * lasts);
        let at = first + if turn < lasts { turn } else { 2 * lasts - turn };
        let next = self.0.partition_point(|(time, _)| *time <= at);
        match (
            next.checked_sub(1).and_then(|n| self.0.get(n)),
            self.0.get(next),
        ) {
            (Some(from), Some(to)) => between(*from, *to, at),
            (Some(only), None) | (None, Some(only)) => only.1,
            (None, None) => self.0[0].1,
        }
    }
}

fn tracks_of(
    cabs: std::collections::BTreeMap<cabrank_events::DriverId, Vec<trace::Report>>,
) -> Vec<Track> {
    let first = cabs
        .values()
        .flatten()
        .map(|report| report.time.0)
        .min()
        .unwrap_or(0);
    let track = |reports: Vec<trace::Report>| {
        let places = reports.iter().filter_map(|report| {
            Some((
                report.time.0 - first,
                Point::new(report.lat, report.lon).ok()?,
            ))
        });
        Track(places.collect())
    };
    let mut tracks: Vec<Track> = cabs.into_values().map(track).collect();
    tracks.retain(|track| !track.0.is_empty());
    tracks
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn recorded_days_lie_over_each_other_and_cabs_drive_to_and_fro() {
        let file = |text: &str| {
            let mut file = tempfile::NamedTempFile::with_suffix(".csv").unwrap();
            file.write_all(text.as_bytes()).unwrap();
            file
        };
        let monday =
            file("vehicle_id,time,lat,lon,occupied\na,1000,37.0,-122.0,0\na,1100,37.1,-122.0,0\n");
        let friday = file("vehicle_id,time,lat,lon,occupied\nb,5000,38.0,-122.0,0\n");
        let traces = TraceFiles {
            gps: vec![monday.path().into(), friday.path().into()],
            trips: Vec::new(),
        };
        let places = Places::new(Area::City, 1, &traces).unwrap();
        let mut rng = SmallRng::seed_from_u64(1);
        let mut lat = |driver: u32, at_ms: i64| {
            let mut way = places.way(driver, 0, &mut rng);
            way.at(at_ms, &places, &mut rng).lat_deg()
        };
        assert!((lat(0, 50_000) - 37.05).abs() < 1e-6);
        assert!((lat(0, 100_000) - 37.1).abs() < 1e-6);
        assert!((lat(0, 150_000) - 37.05).abs() < 1e-6, "on its way back");
        assert!((lat(1, 150_000) - 38.0).abs() < 1e-6);
        assert!(
            (lat(2, 50_000) - 37.05).abs() < 1e-6,
            "more drivers than cabs"
        );
        let empty = file("vehicle_id,time,lat,lon,occupied\n");
        let traces = TraceFiles {
            gps: vec![empty.path().into()],
            trips: Vec::new(),
        };
        let why = Places::new(Area::City, 1, &traces)
            .err()
            .unwrap()
            .to_string();
        assert!(why.contains("nothing in it"), "{why}");
    }
}
