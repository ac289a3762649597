//! `cabrank simulate` as a person calls it: its flags, its report and its page, on an invented evening. And films, of a
//! simulation and of a replay, and how they are shown.

use std::fmt::Write;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

const BEGINS_S: u64 = 1_211_500_800;
const RIDES: u64 = 150;
const CABS: u64 = 40;

/// Trips and positions of half an hour in a town of some 5 km, as recorded ones are written. No two numbers of the
/// sequence are alike for long, and every run has the same ones.
fn evening(dir: &Path) -> (String, String) {
    let mut state = 7_u64;
    let mut random = |below: u64| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let mut place = || {
        let (north, east) = (random(4_000) as f64, random(5_000) as f64);
        format!("{:.5},{:.5}", 37.75 + north / 1e5, -122.45 + east / 1e5)
    };
    let mut trips = String::from(
        "request_id,time,pickup_lat,pickup_lon,dropoff_lat,dropoff_lon,dropoff_time,passengers,vehicle_id\n",
    );
    for n in 0..RIDES {
        let asked = BEGINS_S + n * 12;
        let (from, to) = (place(), place());
        writeln!(
            trips,
            "{n},{asked},{from},{to},{},,",
            asked + 300 + n % 7 * 60
        )
        .unwrap();
    }
    let mut gps = String::from("vehicle_id,time,lat,lon,occupied\n");
    let starts: Vec<String> = (0..CABS).map(|_| place()).collect();
    for time in [BEGINS_S, BEGINS_S + 1_800] {
        for (n, start) in starts.iter().enumerate() {
            writeln!(gps, "cab{n:02},{time},{start},0").unwrap();
        }
    }
    let write = |name: &str, text: &str| {
        let file = dir.join(name);
        std::fs::write(&file, text).unwrap();
        file.display().to_string()
    };
    (write("trips.csv", &trips), write("gps.csv", &gps))
}

/// The drawings of a film, one after another.
fn each_drawing(film: &[u8]) -> Vec<&[u8]> {
    let mut rest = film.strip_prefix(b"CABFILM1").unwrap();
    let mut drawings = Vec::new();
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        let (drawing, after) = after.split_at(u32::from_le_bytes(*length) as usize);
        drawings.push(drawing);
        rest = after;
    }
    drawings
}

/// Tells of a film: the time of each drawing, and how many drivers and rides are on it.
fn drawings(film: &[u8]) -> Vec<(i64, u32, u32)> {
    let of = |drawing: &[u8]| {
        let number = |at: usize| u32::from_le_bytes(drawing[at..at + 4].try_into().unwrap());
        let time = i64::from_le_bytes(drawing[8..16].try_into().unwrap());
        // Counts stand behind layout, number, time and bounds: five of drivers, the silent ones, five of rides.
        let sum = |from: usize| (from..from + 5).map(|n| number(32 + 4 * n)).sum();
        (time, sum(0), sum(6))
    };
    each_drawing(film).into_iter().map(of).collect()
}

#[test]
fn a_film_shows_the_evening_at_its_pace_and_changes_nothing_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let film = dir.path().join("film").display().to_string();
    let plain = reported(dir.path(), &[]);
    let filmed = reported(dir.path(), &["--film", &film, "--film-every-s", "20"]);
    for key in ["/wait_s", "/rides", "/events"] {
        let (plain, filmed) = (plain.pointer(key).unwrap(), filmed.pointer(key).unwrap());
        assert_eq!(plain, filmed, "{key}");
    }
    let drawings = drawings(&std::fs::read(&film).unwrap());
    // Half an hour, and as long as the last rides took.
    assert!(drawings.len() >= 90, "{}", drawings.len());
    assert!(drawings.windows(2).all(|two| two[1].0 - two[0].0 == 20_000));
    assert_eq!(drawings[0].0, BEGINS_S as i64 * 1_000);
    let (_, drivers, rides) = drawings[45];
    assert_eq!(u64::from(drivers), CABS);
    assert!(
        (10..=100).contains(&rides),
        "{rides} open rides in the middle"
    );
    assert!(drawings.last().unwrap().2 <= 3, "nearly none at the end");
}

/// The cars of a drawing: latitude and longitude.
fn cars(drawing: &[u8]) -> Vec<(f64, f64)> {
    let u16_at = |at: usize| u16::from_le_bytes(drawing[at..at + 2].try_into().unwrap());
    let u32_at = |at: usize| u32::from_le_bytes(drawing[at..at + 4].try_into().unwrap()) as usize;
    let (mut at, mut cars) = (80, Vec::new());
    for _ in 0..u32_at(76) {
        let side = |at: usize| f64::from(u16_at(at) as i16) * 0.02;
        let (south, west, count) = (side(at), side(at + 2), u32_at(at + 4));
        at += 8;
        for _ in 0..count {
            let inside = |at: usize| f64::from(u16_at(at)) / 65_536.0 * 0.02;
            cars.push((south + inside(at + 4), west + inside(at + 6)));
            at += 9;
        }
    }
    cars
}

/// A process that ends with the test.
struct Shown(Child);

impl Drop for Shown {
    fn drop(&mut self) {
        // It has ended already where the test ended it.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_replay_is_filmed_with_every_cars_place_and_the_film_is_shown() {
    const MINUTES: u64 = 8;
    let dir = tempfile::tempdir().unwrap();
    // Each cab has a latitude of its own and drives east, 44 m a minute; every other one has stood still.
    let mut gps = String::from("vehicle_id,time,lat,lon,occupied\n");
    let lat_of = |cab: u64| 37.75 + cab as f64 / 1_000.0;
    let east = |cab: u64, minute: u64| (cab % 2 * minute) as f64 * 0.0005;
    for minute in 0..=MINUTES {
        for cab in 0..CABS {
            let (lat, lon) = (lat_of(cab), -122.45 + east(cab, minute));
            let time = BEGINS_S + 60 * minute;
            writeln!(gps, "cab{cab:02},{time},{lat:.5},{lon:.5},0").unwrap();
        }
    }
    let (trips, _) = evening(dir.path());
    let files = ["gps.csv", "film", "report.json"].map(|name| dir.path().join(name));
    let [gps_file, film, report] = files.map(|file| file.display().to_string());
    std::fs::write(&gps_file, gps).unwrap();
    let (from, to) = (BEGINS_S, BEGINS_S + 60 * MINUTES + 1);
    let done = Command::new(env!("CARGO_BIN_EXE_cabrank"))
        .args(["replay", "--trips", &trips, "--gps", &gps_file])
        .args(["--from", &from.to_string(), "--to", &to.to_string()])
        .args(["--speed", "60", "--report", &report])
        .args(["--film", &film, "--film-every-s", "20"])
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{told}");
    assert!(told.contains(&format!("cabrank watch {film}")), "{told}");
    let report: Value = serde_json::from_str(&std::fs::read_to_string(&report).unwrap()).unwrap();
    assert!(number(&report, "/rides/completed") > 5.0);
    // Each rider asked for a quote first, and each pickup is held against it.
    let quotes = |field: &str| number(&report, &format!("/quotes/{field}"));
    assert!(quotes("asked") > 20.0 && quotes("pickups") > 5.0);
    let told = ["within", "sooner", "later"].map(quotes);
    assert_eq!(told.iter().sum::<f64>(), quotes("pickups"));

    let bytes = std::fs::read(&film).unwrap();
    let told = drawings(&bytes);
    // Some have to wait for the server at the begin and on a busy machine.
    assert!(
        told.len() as u64 > MINUTES * 3 / 2,
        "{} drawings",
        told.len()
    );
    assert!(told.windows(2).all(|two| two[1].0 - two[0].0 >= 15_000));
    let is_within = |time: i64| time >= from as i64 * 1_000;
    assert!(is_within(told[0].0) && !is_within(told[0].0 - 60_000));
    assert!(
        told.iter()
            .any(|(_, drivers, rides)| u64::from(*drivers) == CABS && *rides > 5)
    );
    // Each cab that was ever drawn was where the trace has it, never between two latitudes; and those that drove have moved.
    let (mut seen, mut moved) = (0, 0.0_f64);
    for drawing in each_drawing(&bytes) {
        for (lat, lon) in cars(drawing) {
            let cab = ((lat - 37.75) * 1_000.0).round() as u64;
            assert!(cab < CABS && (lat - lat_of(cab)).abs() < 1e-5, "{lat}");
            let driven = lon + 122.45;
            let may = (0..=MINUTES).map(|minute| east(cab, minute));
            assert!(
                may.into_iter().any(|east| (driven - east).abs() < 1e-5),
                "{lon}"
            );
            (seen, moved) = (seen + 1, moved.max(driven));
        }
    }
    assert!(seen as u64 > 10 * CABS, "{seen} cars on all drawings");
    assert!(
        moved > 0.0019,
        "{moved}: four minutes and more are on the film"
    );

    let mut shown = Command::new(env!("CARGO_BIN_EXE_cabrank"))
        .args(["watch", &film])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let out = shown.stdout.take().unwrap();
    let mut shown = Shown(shown);
    BufReader::new(out).read_line(&mut line).unwrap();
    let (count, url) = line.trim().split_once(" drawings: ").unwrap();
    assert_eq!(count, told.len().to_string());
    let get = |path: &str| reqwest::blocking::get(format!("{url}{path}")).unwrap();
    let page = get("").text().unwrap();
    assert!(page.contains("map.js") && page.contains("/film"), "{page}");
    assert_eq!(get("film").bytes().unwrap(), bytes, "the film as it is");
    let elsewhere = reqwest::blocking::Client::new().get(format!("{url}film"));
    let refused = elsewhere.header("host", "evil.example").send().unwrap();
    assert_eq!(refused.status(), 403, "a page of elsewhere reads no film");
    let pid = shown.0.id().to_string();
    let ended = Command::new("kill").args(["-TERM", &pid]).status();
    assert!(ended.unwrap().success());
    assert!(shown.0.wait().unwrap().success());
}

#[test]
fn what_is_no_film_is_not_shown_and_a_film_is_shown_on_this_machine_only() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("film");
    std::fs::write(&file, "time,driver\n").unwrap();
    let refused = |listen: &str| {
        let done = Command::new(env!("CARGO_BIN_EXE_cabrank"))
            .args(["watch", "--listen", listen])
            .arg(&file)
            .output()
            .unwrap();
        assert_eq!(done.status.code(), Some(2));
        String::from_utf8(done.stderr).unwrap()
    };
    assert!(refused("127.0.0.1:0").contains("this is no film"));
    assert!(refused("0.0.0.0:0").contains("choose a loopback address"));
}

fn simulate(arguments: &[&str]) -> Output {
    let done = Command::new(env!("CARGO_BIN_EXE_cabrank"))
        .arg("simulate")
        .args(arguments)
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{arguments:?}: {told}");
    done
}

/// A run and its report.
fn reported(dir: &Path, arguments: &[&str]) -> Value {
    let (trips, gps) = evening(dir);
    let file = dir.join("report.json").display().to_string();
    let day = [
        "--trips", &trips, "--gps", &gps, "--stay", "--report", &file,
    ];
    simulate(&[&day[..], arguments].concat());
    serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap()
}

#[track_caller]
fn number(report: &Value, pointer: &str) -> f64 {
    let found = report.pointer(pointer).and_then(Value::as_f64);
    found.unwrap_or_else(|| panic!("no number at {pointer}: {report:#}"))
}

#[test]
fn the_report_has_all_that_a_day_came_to() {
    let dir = tempfile::tempdir().unwrap();
    let page = dir.path().join("page.html").display().to_string();
    let arguments = ["--policy", "rematch:30", "--html", &page, "--hindsight"];
    let report = reported(dir.path(), &arguments);
    assert_eq!(report["schema"], "cabrank.simulation/1");
    assert_eq!(report["valid"], true);
    assert_eq!(report["audit"]["violations"], 0);
    let number = |pointer: &str| number(&report, pointer);
    assert_eq!(number("/rides/requested") as u64, RIDES);
    assert!(number("/served_percent") > 50.0);
    let (p50, mean, p95) = (
        number("/wait_s/p50"),
        number("/wait_s/mean"),
        number("/wait_s/p95"),
    );
    assert!(0.0 < p50 && p50 < p95 && mean < p95, "{p50} {mean} {p95}");
    // A wait is the time to a driver's yes and the pickup.
    let parts = number("/assigned_s/mean") + number("/pickup_s/mean");
    assert!((parts - mean).abs() < 0.01 * mean, "{parts} {mean}");
    assert!(number("/swaps_a_ride") > 0.0);
    assert!(number("/offers_a_ride") > 0.5);
    assert_eq!(number("/fleet/cars") as u64, CABS);
    for share in ["/fleet/idle_percent", "/fleet/fetching_percent"] {
        assert!((0.1..100.0).contains(&number(share)), "{share}");
    }
    assert!(number("/fleet/empty_km") > 1.0 && number("/fleet/paid_km") > 1.0);
    for gini in ["/fleet/income_gini", "/fleet/idle_gini"] {
        assert!((0.001..1.0).contains(&number(gini)), "{gini}");
    }
    assert!(number("/fleet/offer_gap_min_s") > 0.0);
    assert!(number("/rounds/count") > 10.0 && number("/rounds/rides_mean") > 1.0);
    assert_eq!(number("/rounds/exhausted"), 0.0);
    assert!(number("/wall/round_ms/p99") > 0.0);
    let areas = report["areas"].as_array().unwrap();
    let in_areas = |field: &str| {
        areas
            .iter()
            .map(|area| area[field].as_f64().unwrap())
            .sum::<f64>()
    };
    assert_eq!(in_areas("asked") as u64, RIDES);
    assert_eq!(in_areas("served"), number("/wait_s/count"));
    assert!(areas.len() > 3 && areas.iter().all(|area| area["wait_mean_s"].is_f64()));
    let steps = report["wait_steps"].as_array().unwrap();
    let in_steps: u64 = steps.iter().map(|step| step.as_u64().unwrap()).sum();
    assert_eq!(in_steps as f64, number("/wait_s/count"));
    // Nobody is better than whoever knows all beforehand.
    let least = number("/hindsight/mean_wait_s");
    assert!(0.0 < least && least < mean, "{least} {mean}");

    let page = std::fs::read_to_string(page).unwrap();
    for expected in [
        "How soon are riders in the car?",
        "Where do riders wait?",
        "<polygon",
        "rematch:30@10",
    ] {
        assert!(page.contains(expected), "no {expected:?} in the page");
    }
    for fetched in ["src=", "href=", "url(", "@import"] {
        assert!(
            !page.contains(fetched),
            "the page fetches something: {fetched}"
        );
    }
}

#[test]
fn riders_call_off_as_the_shape_says_and_a_thin_fleet_serves_fewer() {
    let dir = tempfile::tempdir().unwrap();
    let shape = dir.path().join("shape.csv");
    std::fs::write(&shape, "wait_s,share\n60,0.4\n240,0.8\n").unwrap();
    let patient = reported(dir.path(), &["--policy", "batched"]);
    assert_eq!(number(&patient, "/rides/cancelled"), 0.0);
    let shape = shape.display().to_string();
    let arguments = ["--policy", "batched", "--cancel-shape", &shape];
    let hasty = reported(dir.path(), &arguments);
    // Some are in the car before they lose patience; of those who wait longer than four minutes most have.
    let cancelled = number(&hasty, "/rides/cancelled");
    assert!(
        (10.0..0.8 * RIDES as f64).contains(&cancelled),
        "{cancelled}"
    );
    assert!(number(&hasty, "/wait_s/p95") < number(&patient, "/wait_s/p95"));

    let thin = reported(dir.path(), &["--policy", "batched", "--fleet-every", "4"]);
    assert_eq!(number(&thin, "/fleet/cars") as u64, CABS / 4);
    assert!(number(&thin, "/served_percent") < number(&patient, "/served_percent") - 10.0);
    let chosen = reported(dir.path(), &["--policy", "batched", "--fleet", "13"]);
    assert_eq!(number(&chosen, "/fleet/cars"), 13.0);
}

#[test]
fn a_cancel_shape_that_does_not_grow_is_named_with_its_line() {
    let dir = tempfile::tempdir().unwrap();
    let (trips, gps) = evening(dir.path());
    let shape = dir.path().join("shape.csv");
    std::fs::write(&shape, "60,0.4\n50,0.8\n").unwrap();
    let shape = shape.display().to_string();
    let done = Command::new(env!("CARGO_BIN_EXE_cabrank"))
        .args([
            "simulate",
            "--trips",
            &trips,
            "--gps",
            &gps,
            "--cancel-shape",
            &shape,
        ])
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&done.stderr);
    assert!(
        !done.status.success() && told.contains("line 2 does not grow"),
        "{told}"
    );
}

#[test]
fn policies_are_compared_over_the_same_days_with_intervals() {
    let dir = tempfile::tempdir().unwrap();
    let (trips, gps) = evening(dir.path());
    let file = dir.path().join("compared.json").display().to_string();
    let done = simulate(&[
        "compare",
        "--policies",
        "first_come,batched,rematch:30",
        "--seeds",
        "3",
        "--jitter-s",
        "30",
        "--stay",
        "--trips",
        &trips,
        "--gps",
        &gps,
        "--report",
        &file,
    ]);
    let table = String::from_utf8(done.stdout).unwrap();
    let row = |policy: &str| {
        let row = table
            .lines()
            .find(|line| line.starts_with(&format!("| {policy} |")));
        row.unwrap_or_else(|| panic!("no row of {policy}: {table}"))
    };
    for policy in ["first_come@0", "batched@10", "rematch:30@10"] {
        assert!(row(policy).contains(" ± "), "{table}");
    }
    assert!(
        table.contains("Against first_come@0, day by day:"),
        "{table}"
    );
    // Nobody is at a terminal: no progress among the errors.
    assert_eq!(String::from_utf8_lossy(&done.stderr), "");
    let all: Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    let sides = all["sides"].as_array().unwrap();
    assert!(
        sides.len() == 3
            && sides
                .iter()
                .all(|side| side["days"].as_array().unwrap().len() == 3)
    );
}
