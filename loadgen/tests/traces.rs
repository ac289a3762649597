//! The real traces are read as they are described: nothing lost, nothing invented.
//!
//! They are found by `CABRANK_TRACES` (default `../shared/data` beside the workspace). Where they are missing, one line says
//! that these tests did not run; with `CABRANK_REQUIRE_TRACES=1` that is a failure.

use std::path::{Path, PathBuf};

use cabrank_events::Time;
use cabrank_loadgen::trace::{Reports, Trips, Window, by_cab, traces_dir};

fn traces(test: &str) -> Option<PathBuf> {
    let dir = traces_dir(&Path::new(env!("CARGO_MANIFEST_DIR")).join(".."));
    if dir.join("sf_gps_2008-05-22_17-22.csv.gz").exists() {
        return Some(dir);
    }
    let required = std::env::var("CABRANK_REQUIRE_TRACES").is_ok_and(|value| value == "1");
    assert!(
        !required,
        "{test}: no traces in {}, but they are required",
        dir.display()
    );
    eprintln!(
        "{test} did not run: no traces in {} (set CABRANK_TRACES)",
        dir.display()
    );
    None
}

#[test]
fn every_row_of_every_file_is_used() {
    let Some(dir) = traces("every_row_of_every_file_is_used") else {
        return;
    };
    for (file, rows) in [
        ("sf_gps_2008-05-22_17-22.csv.gz", 123_100),
        ("sf_gps_2008-05-20_06-10_outage.csv.gz", 50_783),
    ] {
        let mut reports = Reports::open(&dir.join(file), Window::default(), 1).unwrap();
        assert_eq!(reports.by_ref().count(), rows, "{file}");
        assert_eq!(reports.tally().bad, 0, "{:?}", reports.tally().bad_rows);
    }
    for (file, rows) in [
        ("sf_trips_2008-05-22_17-22.csv.gz", 5_640),
        ("sf_trips_2008-05-20_06-10_outage.csv.gz", 1_509),
        ("nyc_taxi_2013-01-01_0000-0055.csv.gz", 25_258),
        ("nyc_taxi_sample_2011-02-01_16-24.csv.gz", 14_495),
        ("nyc_uber_2014-04-10.csv.gz", 7_329),
    ] {
        let mut trips = Trips::open(&dir.join(file), Window::default()).unwrap();
        assert_eq!(trips.by_ref().count(), rows, "{file}");
        assert_eq!(trips.tally().bad, 0, "{:?}", trips.tally().bad_rows);
    }
}

#[test]
fn the_evening_has_its_fleet_and_every_second_cab_is_half_of_it() {
    let Some(dir) = traces("the_evening_has_its_fleet") else {
        return;
    };
    let file = dir.join("sf_gps_2008-05-22_17-22.csv.gz");
    let fleet = |every| by_cab(Reports::open(&file, Window::default(), every).unwrap());
    let (whole, half) = (fleet(1), fleet(2));
    assert!((450..530).contains(&whole.len()), "{} cabs", whole.len());
    assert_eq!(half.len(), whole.len().div_ceil(2));
    assert!(
        half.keys().all(|cab| half[cab] == whole[cab]),
        "a cab is kept whole or not at all"
    );
    for reports in whole.values() {
        assert!(reports.is_sorted_by_key(|report| report.time));
    }
}

#[test]
fn the_outage_is_silent_for_94_minutes() {
    let Some(dir) = traces("the_outage_is_silent_for_94_minutes") else {
        return;
    };
    let file = dir.join("sf_gps_2008-05-20_06-10_outage.csv.gz");
    let times: Vec<Time> = Reports::open(&file, Window::default(), 1)
        .unwrap()
        .map(|report| report.time)
        .collect();
    let silence = times
        .windows(2)
        .map(|pair| pair[1].since(pair[0]))
        .max()
        .unwrap();
    assert_eq!(silence, (93 * 60 + 33) * 1000);
}
