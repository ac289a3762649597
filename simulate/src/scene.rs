//! Who asks for a ride, where and when, and which cars there are: read from recorded days.
//!
//! Cars begin where and when the data first shows them: in a file of positions at their first report, else (New York)
//! where the taxi's first ride of the file began, from the beginning on. A thinner fleet is every n-th cab in the order
//! of first appearance, or a seeded choice of `n`.

use std::collections::{BTreeMap, HashMap};
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use cabrank_events::{DriverId, Time};
use cabrank_geo::Point;
use cabrank_loadgen::trace::{EveryNth, Reports, TraceError, Trips, Window, by_cab};
use flate2::read::MultiGzDecoder;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

/// One wish to ride.
#[derive(Clone, Debug, PartialEq)]
pub struct Wish {
    /// When it is asked.
    pub at: Time,
    /// Where to be fetched.
    pub pickup: Point,
    /// Where to; without it the car stays at the pickup.
    pub dropoff: Option<Point>,
    /// How long the real ride lasted, ms; without it the straight line counts.
    pub ride_ms: Option<u64>,
    /// The rider calls the ride off if nobody has come so long after asking, ms.
    pub patience_ms: Option<u64>,
}

/// One car.
#[derive(Clone, Debug, PartialEq)]
pub struct Shift {
    /// Its driver.
    pub driver: DriverId,
    /// Where it begins.
    pub start: Point,
    /// When.
    pub from: Time,
    /// When it goes home, once free; `None`: never.
    pub until: Option<Time>,
}

/// A day to be played: the same for every policy.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scene {
    /// In the order of time.
    pub wishes: Vec<Wish>,
    /// In the order of first appearance.
    pub cars: Vec<Shift>,
    /// Rows that could not be used.
    pub bad_rows: u64,
}

/// How many of the recorded cars drive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fleet {
    /// All of them.
    #[default]
    Whole,
    /// Every n-th in the order of first appearance.
    Every(u32),
    /// A seeded choice of so many.
    Choice(usize),
}

/// Which day.
#[derive(Clone, Debug)]
pub struct Source {
    /// `sf_trips_*` or `nyc_*`.
    pub trips: PathBuf,
    /// `sf_gps_*`; without it cars begin where their first ride does.
    pub gps: Option<PathBuf>,
    /// Part of the day.
    pub window: Window,
    /// How many cars.
    pub fleet: Fleet,
    /// Cars stay until the end instead of going home with their last report.
    pub stay: bool,
    /// Every n-th wish only, 1 = all: for thinned cases.
    pub wishes_every: u32,
    /// Each wish is moved by up to so much in both directions, ms: the sources know the pick-up, not when it was asked.
    pub jitter_ms: u64,
    /// How riders give up: (seconds of waiting, share of riders who have gone by then), growing in both.
    pub cancel_shape: Vec<(f64, f64)>,
}

/// Why there is nothing to play.
#[derive(Debug, thiserror::Error)]
pub enum SceneError {
    /// A file cannot be read.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// A file without positions needs to know which vehicle served each trip.
    #[error("{}: {why}: give --gps FILE, or a trips file with vehicle_id", path.display())]
    NoCars {
        /// The trips file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The cancel shape cannot be read.
    #[error("--cancel-shape {}: {why}: two columns are expected, wait_s,share, both growing, share at most 1", path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// Nothing is left.
    #[error("no {what} in the window asked for: check --from, --to and the fleet")]
    Nothing {
        /// Of what.
        what: &'static str,
    },
}

impl Scene {
    /// Reads the day. `seed` chooses cars, jitter and patience; everything else is as recorded.
    pub fn read(source: &Source, seed: u64) -> Result<Scene, SceneError> {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut rows = Trips::open(&source.trips, source.window)?;
        let keep = source.wishes_every.max(1) as usize;
        let mut wishes: Vec<Wish> = rows
            .by_ref()
            .step_by(keep)
            .map(|trip| Wish {
                at: trip.time,
                pickup: trip.pickup.0,
                dropoff: trip.dropoff.map(|place| place.0),
                ride_ms: trip.ride_ms,
                patience_ms: None,
            })
            .collect();
        for wish in &mut wishes {
            let jitter = i64::try_from(source.jitter_ms).unwrap_or(0);
            wish.at.0 += rng.random_range(-jitter..=jitter);
            wish.patience_ms = patience_ms(&source.cancel_shape, rng.random());
        }
        wishes.sort_by_key(|wish| wish.at);
        let mut bad_rows = rows.tally().bad;
        let (Some(first), Some(_)) = (wishes.first(), wishes.last()) else {
            return Err(SceneError::Nothing { what: "rides" });
        };
        let begins = first.at;
        let mut cars = match &source.gps {
            Some(gps) => {
                let (cars, bad) = cars_of_reports(gps, source)?;
                bad_rows += bad;
                cars
            }
            None => cars_of_trips(&source.trips, source, begins)?,
        };
        if let Fleet::Choice(count) = source.fleet {
            cars.shuffle(&mut rng);
            cars.truncate(count);
        }
        cars.sort_by(|a, b| (a.from, a.driver.as_str()).cmp(&(b.from, b.driver.as_str())));
        if cars.is_empty() {
            return Err(SceneError::Nothing { what: "cars" });
        }
        Ok(Scene {
            wishes,
            cars,
            bad_rows,
        })
    }

    /// The first thing that happens.
    pub fn begins(&self) -> Time {
        let cars = self.cars.iter().map(|car| car.from);
        let wishes = self.wishes.iter().map(|wish| wish.at);
        cars.chain(wishes).min().unwrap_or_default()
    }

    /// The last wish.
    pub fn ends(&self) -> Time {
        self.wishes.last().map_or(Time(0), |wish| wish.at)
    }
}

/// How long a rider of this `share` of impatience waits; `None`: as long as it takes.
fn patience_ms(shape: &[(f64, f64)], share: f64) -> Option<u64> {
    let mut before = (0.0, 0.0);
    for &(wait_s, gone) in shape {
        if share < gone {
            let part = (share - before.1) / (gone - before.1);
            return Some(((before.0 + (wait_s - before.0) * part) * 1_000.0) as u64);
        }
        before = (wait_s, gone);
    }
    None
}

/// Reads a cancel shape: lines `wait_s,share`, a header allowed.
pub fn read_shape(path: &Path) -> Result<Vec<(f64, f64)>, SceneError> {
    let bad = |why: String| SceneError::Shape {
        path: path.to_owned(),
        why,
    };
    let text = std::fs::read_to_string(path).map_err(|why| bad(why.to_string()))?;
    let mut shape: Vec<(f64, f64)> = Vec::new();
    for (n, line) in text.lines().enumerate() {
        let fields = line.split_once(',').map(|(wait, share)| {
            (
                wait.trim().parse::<f64>().ok(),
                share.trim().parse::<f64>().ok(),
            )
        });
        let (wait, share) = match fields {
            Some((Some(wait), Some(share))) => (wait, share),
            _ if n == 0 || line.trim().is_empty() => continue,
            _ => return Err(bad(format!("line {}: {line:?}", n + 1))),
        };
        let last = shape.last().copied().unwrap_or((0.0, 0.0));
        if !(wait > last.0 && share > last.1 && share <= 1.0) {
            return Err(bad(format!("line {} does not grow", n + 1)));
        }
        shape.push((wait, share));
    }
    Ok(shape)
}

fn cars_of_reports(gps: &Path, source: &Source) -> Result<(Vec<Shift>, u64), SceneError> {
    let every = match source.fleet {
        Fleet::Every(n) => n,
        Fleet::Whole | Fleet::Choice(_) => 1,
    };
    let mut reports = Reports::open(gps, source.window, every)?;
    let cabs = by_cab(reports.by_ref());
    let cars = cabs
        .into_iter()
        .filter_map(|(driver, reports)| {
            let start = reports
                .iter()
                .find_map(|report| Point::new(report.lat, report.lon).ok())?;
            Some(Shift {
                driver,
                start,
                from: reports.first()?.time,
                until: (!source.stay).then_some(reports.last()?.time),
            })
        })
        .collect();
    Ok((cars, reports.tally().bad))
}

/// Each vehicle where its first ride of the file began, from `begins` on.
fn cars_of_trips(trips: &Path, source: &Source, begins: Time) -> Result<Vec<Shift>, SceneError> {
    let bad = |why: String| SceneError::NoCars {
        path: trips.to_owned(),
        why,
    };
    let open = |path: &Path| std::fs::File::open(path).map_err(|why| bad(why.to_string()));
    let mut magic = [0; 2];
    let is_gzip = open(trips)?.read_exact(&mut magic).is_ok() && magic == [0x1f, 0x8b];
    let file = BufReader::new(open(trips)?);
    let bytes: Box<dyn Read> = match is_gzip {
        true => Box::new(MultiGzDecoder::new(file)),
        false => Box::new(file),
    };
    let mut rows = csv::ReaderBuilder::new().flexible(true).from_reader(bytes);
    let header = rows.headers().map_err(|why| bad(why.to_string()))?;
    let columns: HashMap<&str, usize> = header.iter().enumerate().map(|(n, h)| (h, n)).collect();
    let column = |name: &str| {
        let at = columns.get(name).copied();
        at.ok_or_else(|| bad(format!("no column {name}")))
    };
    let (vehicle, lat, lon) = (
        column("vehicle_id")?,
        column("pickup_lat")?,
        column("pickup_lon")?,
    );
    let mut known: BTreeMap<DriverId, ()> = BTreeMap::new();
    let mut every = EveryNth::new(match source.fleet {
        Fleet::Every(n) => n,
        Fleet::Whole | Fleet::Choice(_) => 1,
    });
    let mut cars = Vec::new();
    for row in rows.records().map_while(Result::ok) {
        let number = |at: usize| row.get(at).and_then(|text| text.parse::<f64>().ok());
        let driver = row.get(vehicle).and_then(|id| DriverId::new(id).ok());
        let (Some(driver), Some(lat), Some(lon)) = (driver, number(lat), number(lon)) else {
            continue;
        };
        let Ok(start) = Point::new(lat, lon) else {
            continue;
        };
        if known.insert(driver.clone(), ()).is_none() && every.keeps(&driver) {
            cars.push(Shift {
                driver,
                start,
                from: begins,
                until: None,
            });
        }
    }
    Ok(cars)
}
