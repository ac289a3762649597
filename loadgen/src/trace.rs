//! What did the cars and riders of a recorded day do?
//!
//! Reads `sf_gps_*` (reports of cabs) and `sf_trips_*`, `nyc_*` (demand) CSV files, gzip or plain, row by row: nothing
//! but the current row is kept. A bad row is skipped, counted and named by file, line and reason; it never ends the
//! reading. Columns are found by their names, so their order does not matter and optional ones may be absent.
//! Not here: when a row is played (`replay`), whether a position is plausible (the gateway's ingest decides that, so
//! teleports and places far away pass as they stand).

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use cabrank_events::{DriverId, Place, RiderId, Time};
use cabrank_geo::Point;
use flate2::read::MultiGzDecoder;

/// Bad rows kept by name; more are only counted.
pub const BAD_ROWS_NAMED_MAX: usize = 100;
/// Where traces are looked for when no path is given.
pub const TRACES_VARIABLE: &str = "CABRANK_TRACES";
/// The default of [`TRACES_VARIABLE`], relative to the workspace.
pub const TRACES_DEFAULT: &str = "../shared/data";

/// Why a file is no trace. Nothing of it was used.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// It cannot be opened.
    #[error("{}: {source}: give the path of a trace, or set {TRACES_VARIABLE} to the directory that holds it", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The header line lacks a column that is needed.
    #[error("{}: the header has no column {column:?} (it has {found}): is this the right kind of file?", path.display())]
    NoColumn {
        /// The file.
        path: PathBuf,
        /// What is missing.
        column: &'static str,
        /// What is there.
        found: String,
    },
    /// The header line cannot be read at all (for example a broken gzip stream).
    #[error("{}: the header cannot be read: {source}", path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// What the reader said.
        #[source]
        source: csv::Error,
    },
}

/// A row that was skipped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadRow {
    /// The file.
    pub file: PathBuf,
    /// Its line, from 1, the header included.
    pub line: u64,
    /// What is wrong with it.
    pub reason: String,
}

impl fmt::Display for BadRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file.display(), self.line, self.reason)
    }
}

/// Which rows are wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Window {
    /// From this instant on (included).
    pub from: Option<Time>,
    /// Up to this instant (excluded).
    pub to: Option<Time>,
}

impl Window {
    /// Is `time` inside?
    pub fn holds(self, time: Time) -> bool {
        self.from.is_none_or(|from| time >= from) && self.to.is_none_or(|to| time < to)
    }
}

/// One report of one cab, as it was received.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// The cab.
    pub vehicle: DriverId,
    /// When it was measured.
    pub time: Time,
    /// Degrees north as published: finite, but perhaps nowhere on Earth (the gateway says so then).
    pub lat: f64,
    /// Degrees east as published.
    pub lon: f64,
    /// A passenger was aboard.
    pub occupied: bool,
}

/// One wish to ride.
#[derive(Clone, Debug, PartialEq)]
pub struct Trip {
    /// Who asks: `rider-<request_id>`. One rider asks once.
    pub rider: RiderId,
    /// When.
    pub time: Time,
    /// Where to be fetched.
    pub pickup: Place,
    /// Where to, if recorded.
    pub dropoff: Option<Place>,
    /// How long the real ride lasted in ms, if recorded; never negative.
    pub ride_ms: Option<u64>,
}

/// What became of the rows read so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Rows handed out.
    pub used: u64,
    /// Good rows outside the window or of cabs left out.
    pub left_out: u64,
    /// Rows that could not be used.
    pub bad: u64,
    /// The first [`BAD_ROWS_NAMED_MAX`] of them.
    pub bad_rows: Vec<BadRow>,
}

/// Picks every `n`-th cab in the order of first appearance, for a thinner fleet.
///
/// The order is that of the *file*, so the choice does not depend on the window.
#[derive(Clone, Debug)]
pub struct EveryNth {
    n: u32,
    seen: BTreeMap<DriverId, bool>,
}

impl EveryNth {
    /// `n` of 1 keeps the whole fleet; 0 counts as 1.
    pub fn new(n: u32) -> Self {
        Self {
            n: n.max(1),
            seen: BTreeMap::new(),
        }
    }

    /// Is this cab in the fleet?
    pub fn keeps(&mut self, vehicle: &DriverId) -> bool {
        if let Some(kept) = self.seen.get(vehicle) {
            return *kept;
        }
        let kept = (self.seen.len() as u64).is_multiple_of(u64::from(self.n));
        self.seen.insert(vehicle.clone(), kept);
        kept
    }
}

/// A column-by-name reader of one file, plain or gzip.
struct Rows {
    path: PathBuf,
    csv: csv::Reader<Box<dyn Read + Send>>,
    columns: BTreeMap<String, usize>,
    record: csv::StringRecord,
    tally: Tally,
    over: bool,
}

impl Rows {
    fn open(path: &Path, needed: &[&'static str]) -> Result<Rows, TraceError> {
        let failed = |source| TraceError::Open {
            path: path.to_owned(),
            source,
        };
        let mut file = BufReader::with_capacity(1 << 16, File::open(path).map_err(failed)?);
        let is_gzip = file.fill_buf().map_err(failed)?.starts_with(&[0x1f, 0x8b]);
        let bytes: Box<dyn Read + Send> = if is_gzip {
            Box::new(MultiGzDecoder::new(file))
        } else {
            Box::new(file)
        };
        let mut csv = csv::ReaderBuilder::new().flexible(true).from_reader(bytes);
        let header = csv.headers().map_err(|source| TraceError::Header {
            path: path.to_owned(),
            source,
        })?;
        let columns: BTreeMap<String, usize> = header
            .iter()
            .enumerate()
            .map(|(at, name)| (name.trim().to_owned(), at))
            .collect();
        if let Some(column) = needed.iter().find(|name| !columns.contains_key(**name)) {
            let found = header.iter().collect::<Vec<_>>().join(", ");
            return Err(TraceError::NoColumn {
                path: path.to_owned(),
                column,
                found,
            });
        }
        Ok(Rows {
            path: path.to_owned(),
            csv,
            columns,
            record: csv::StringRecord::new(),
            tally: Tally::default(),
            over: false,
        })
    }

    fn spoil(&mut self, line: u64, reason: String) {
        self.tally.bad += 1;
        if self.tally.bad_rows.len() < BAD_ROWS_NAMED_MAX {
            let file = self.path.clone();
            self.tally.bad_rows.push(BadRow { file, line, reason });
        }
    }

    /// Reads on until `parse` makes something of a row that `keep` wants.
    fn next_row<T>(
        &mut self,
        parse: impl Fn(&Row<'_>) -> Result<T, String>,
        mut keep: impl FnMut(&T) -> bool,
    ) -> Option<T> {
        while !self.over {
            let line = self.csv.position().line();
            match self.csv.read_record(&mut self.record) {
                Ok(false) => self.over = true,
                Ok(true) => {
                    match parse(&Row {
                        columns: &self.columns,
                        record: &self.record,
                    }) {
                        Ok(row) if keep(&row) => {
                            self.tally.used += 1;
                            return Some(row);
                        }
                        Ok(_) => self.tally.left_out += 1,
                        Err(reason) => {
                            let line = self.record.position().map_or(line, csv::Position::line);
                            self.spoil(line, reason);
                        }
                    }
                }
                Err(why) => {
                    // A broken stream stays broken: going on would read the same error for ever.
                    self.over = matches!(why.kind(), csv::ErrorKind::Io(_));
                    self.spoil(
                        why.position().map_or(line, csv::Position::line),
                        why.to_string(),
                    );
                }
            }
        }
        None
    }
}

struct Row<'a> {
    columns: &'a BTreeMap<String, usize>,
    record: &'a csv::StringRecord,
}

impl Row<'_> {
    /// The field, or `None` when the column is absent or empty (= unknown).
    fn get(&self, column: &str) -> Option<&str> {
        let text = self.record.get(*self.columns.get(column)?)?.trim();
        (!text.is_empty()).then_some(text)
    }

    fn need(&self, column: &str) -> Result<&str, String> {
        self.get(column).ok_or_else(|| format!("{column} is empty"))
    }

    fn number(&self, column: &str) -> Result<f64, String> {
        let text = self.need(column)?;
        let number: f64 = text
            .parse()
            .map_err(|_| format!("{column} is {text:?}, expected a number"))?;
        number
            .is_finite()
            .then_some(number)
            .ok_or_else(|| format!("{column} is {text:?}"))
    }

    fn seconds(&self, column: &str) -> Result<Time, String> {
        let text = self.need(column)?;
        let seconds: i64 = text
            .parse()
            .map_err(|_| format!("{column} is {text:?}, expected Unix seconds"))?;
        seconds
            .checked_mul(1000)
            .map(Time)
            .ok_or_else(|| format!("{column} {seconds} is no time"))
    }

    fn place(&self, lat: &str, lon: &str) -> Result<Place, String> {
        let point = Point::new(self.number(lat)?, self.number(lon)?);
        point.map(Place).map_err(|why| why.to_string())
    }
}

/// The reports of a fleet, in the file's order (time, then vehicle).
pub struct Reports {
    rows: Rows,
    window: Window,
    fleet: EveryNth,
}

impl Reports {
    /// Opens a `sf_gps_*` file.
    pub fn open(path: &Path, window: Window, fleet_every: u32) -> Result<Self, TraceError> {
        let rows = Rows::open(path, &["vehicle_id", "time", "lat", "lon"])?;
        Ok(Self {
            rows,
            window,
            fleet: EveryNth::new(fleet_every),
        })
    }

    /// What became of the rows read so far.
    pub fn tally(&self) -> &Tally {
        &self.rows.tally
    }
}

impl Iterator for Reports {
    type Item = Report;

    fn next(&mut self) -> Option<Report> {
        let Self {
            rows,
            window,
            fleet,
        } = self;
        rows.next_row(parse_report, |report| {
            let in_fleet = fleet.keeps(&report.vehicle);
            in_fleet && window.holds(report.time)
        })
    }
}

fn parse_report(row: &Row<'_>) -> Result<Report, String> {
    Ok(Report {
        vehicle: DriverId::new(row.need("vehicle_id")?).map_err(|why| why.to_string())?,
        time: row.seconds("time")?,
        lat: row.number("lat")?,
        lon: row.number("lon")?,
        occupied: match row.get("occupied") {
            None | Some("0") => false,
            Some("1") => true,
            Some(other) => return Err(format!("occupied is {other:?}, expected 0 or 1")),
        },
    })
}

/// The demand of a day, in the file's order (time).
pub struct Trips {
    rows: Rows,
    window: Window,
}

impl Trips {
    /// Opens a `sf_trips_*` or `nyc_*` file.
    pub fn open(path: &Path, window: Window) -> Result<Self, TraceError> {
        let rows = Rows::open(path, &["request_id", "time", "pickup_lat", "pickup_lon"])?;
        Ok(Self { rows, window })
    }

    /// What became of the rows read so far.
    pub fn tally(&self) -> &Tally {
        &self.rows.tally
    }
}

impl Iterator for Trips {
    type Item = Trip;

    fn next(&mut self) -> Option<Trip> {
        let window = self.window;
        self.rows
            .next_row(parse_trip, |trip| window.holds(trip.time))
    }
}

fn parse_trip(row: &Row<'_>) -> Result<Trip, String> {
    let request = row.need("request_id")?;
    let time = row.seconds("time")?;
    let dropoff = match row.get("dropoff_lat").or(row.get("dropoff_lon")) {
        Some(_) => Some(row.place("dropoff_lat", "dropoff_lon")?),
        None => None,
    };
    let ride_ms = match row.get("dropoff_time") {
        Some(_) => {
            let ms = row.seconds("dropoff_time")?.since(time);
            Some(u64::try_from(ms).map_err(|_| "dropoff_time is before time".to_owned())?)
        }
        None => None,
    };
    Ok(Trip {
        rider: RiderId::new(&format!("rider-{request}")).map_err(|why| why.to_string())?,
        time,
        pickup: row.place("pickup_lat", "pickup_lon")?,
        dropoff,
        ride_ms,
    })
}

/// Reports grouped by cab, each cab's in order of time. Cabs are in the order of their ids.
pub fn by_cab(reports: impl Iterator<Item = Report>) -> BTreeMap<DriverId, Vec<Report>> {
    let mut cabs: BTreeMap<DriverId, Vec<Report>> = BTreeMap::new();
    for report in reports {
        cabs.entry(report.vehicle.clone()).or_default().push(report);
    }
    for reports in cabs.values_mut() {
        // Stable, so reports of one instant stay in the file's order.
        reports.sort_by_key(|report| report.time);
    }
    cabs
}

/// The directory of the real traces: [`TRACES_VARIABLE`], else [`TRACES_DEFAULT`] beside the workspace at `workspace`.
pub fn traces_dir(workspace: &Path) -> PathBuf {
    match std::env::var_os(TRACES_VARIABLE) {
        Some(dir) => PathBuf::from(dir),
        None => workspace.join(TRACES_DEFAULT),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn file(text: &str, gzip: bool) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        if gzip {
            let mut gz = flate2::write::GzEncoder::new(&mut file, flate2::Compression::fast());
            gz.write_all(text.as_bytes()).unwrap();
            gz.finish().unwrap();
        } else {
            file.write_all(text.as_bytes()).unwrap();
        }
        file
    }

    const GPS: &str = "vehicle_id,time,lat,lon,occupied\n\
        a,100,37.1,-122.1,0\n\
        b,100,37.2,-122.2,1\n\
        a,abc,37.1,-122.1,0\n\
        c,160,,-122.3,0\n\
        a,160,90.5,-122.1,1\n\
        b,170,37.2,-122.2,2\n\
        c,200,37.3,-122.3,0\n";

    #[test]
    fn reports_are_read_plain_and_gzip_and_bad_rows_are_named() {
        for gzip in [false, true] {
            let file = file(GPS, gzip);
            let mut reports = Reports::open(file.path(), Window::default(), 1).unwrap();
            let read: Vec<_> = reports
                .by_ref()
                .map(|r| (r.vehicle.to_string(), r.time.0))
                .collect();
            let expected = [
                ("a", 100_000),
                ("b", 100_000),
                ("a", 160_000),
                ("c", 200_000),
            ];
            assert_eq!(read, expected.map(|(v, t)| (v.to_owned(), t)));
            let tally = reports.tally();
            assert_eq!((tally.used, tally.bad), (4, 3));
            let named: Vec<_> = tally
                .bad_rows
                .iter()
                .map(|bad| (bad.line, bad.reason.as_str()))
                .collect();
            assert_eq!(
                named,
                [
                    (4, "time is \"abc\", expected Unix seconds"),
                    (5, "lat is empty"),
                    (7, "occupied is \"2\", expected 0 or 1"),
                ]
            );
        }
    }

    #[test]
    fn window_and_thinned_fleet_leave_rows_out() {
        let file = file(GPS, false);
        let window = Window {
            from: Some(Time(100_000)),
            to: Some(Time(200_000)),
        };
        let mut reports = Reports::open(file.path(), window, 2).unwrap();
        let read: Vec<_> = reports.by_ref().map(|r| r.vehicle.to_string()).collect();
        assert_eq!(
            read,
            ["a", "a"],
            "b is the second cab, c's report is too late"
        );
        assert_eq!(reports.tally().left_out, 2);
    }

    #[test]
    fn trips_have_optional_columns() {
        let full = file(
            "request_id,time,pickup_lat,pickup_lon,dropoff_lat,dropoff_lon,dropoff_time\n\
             7,100,40.1,-73.9,40.2,-73.8,160\n8,101,40.1,-73.9,,,\n9,102,40.1,-73.9,40.2,-73.8,90\n",
            true,
        );
        let mut trips = Trips::open(full.path(), Window::default()).unwrap();
        let read: Vec<_> = trips.by_ref().collect();
        assert_eq!(read.len(), 2);
        assert_eq!(read[0].rider.as_str(), "rider-7");
        assert_eq!(read[0].ride_ms, Some(60_000));
        assert_eq!((read[1].dropoff, read[1].ride_ms), (None, None));
        assert_eq!(
            trips.tally().bad_rows[0].reason,
            "dropoff_time is before time"
        );
        let short = file(
            "request_id,time,pickup_lat,pickup_lon\n1,5,40.0,-73.9\n",
            false,
        );
        assert_eq!(
            Trips::open(short.path(), Window::default())
                .unwrap()
                .count(),
            1
        );
    }

    #[test]
    fn a_wrong_or_missing_or_broken_file_is_named_with_the_remedy() {
        let gps = file(GPS, false);
        let wrong = Trips::open(gps.path(), Window::default()).err().unwrap();
        assert!(
            wrong.to_string().contains("no column \"request_id\""),
            "{wrong}"
        );
        let missing = Trips::open(Path::new("/no/such.csv"), Window::default())
            .err()
            .unwrap();
        assert!(missing.to_string().contains(TRACES_VARIABLE), "{missing}");
        let whole = file(&GPS.repeat(400), true);
        let bytes = std::fs::read(whole.path()).unwrap();
        std::fs::write(whole.path(), &bytes[..bytes.len() - 12]).unwrap();
        let mut cut = Reports::open(whole.path(), Window::default(), 1).unwrap();
        assert!(cut.by_ref().count() > 0);
        let last = cut.tally().bad_rows.last().unwrap();
        assert!(cut.tally().bad > 0 && !last.reason.is_empty());
    }
}
