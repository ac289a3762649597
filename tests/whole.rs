//! The whole program as a user runs it: the demo, tools on its log, signals, kill -9 in mid-replay, the outage.
//!
//! Tests on real traces need `CABRANK_TRACES` (default `../shared/data`). Without it they say in one line that they did not
//! run; with `CABRANK_REQUIRE_TRACES=1` that is a failure.

#[allow(dead_code, reason = "each test binary uses its own part of this")]
mod support;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

use support::{cabrank, until};

fn run(arguments: &[&str]) -> Output {
    cabrank().args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[track_caller]
fn expect(output: &Output, code: i32) -> String {
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(
        output.status.code(),
        Some(code),
        "stdout:\n{out}\nstderr:\n{err}"
    );
    out
}

/// A server process that ends with the test.
struct Server {
    child: Child,
    url: String,
}

impl Server {
    fn start(arguments: &[&str], environment: &[(&str, &str)]) -> Server {
        let mut child = cabrank()
            .arg("serve")
            .args(arguments)
            .envs(environment.iter().copied())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut first = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut first)
            .unwrap();
        let url = first.trim().to_owned();
        assert!(
            url.starts_with("http://127.0.0.1:"),
            "the first line is the address, not {url:?}"
        );
        let server = Server { child, url };
        until("the server's readiness", || {
            let ready = reqwest::blocking::get(format!("{}/readyz", server.url)).ok()?;
            ready.status().is_success().then_some(())
        });
        server
    }

    fn port(&self) -> String {
        self.url.rsplit_once(':').unwrap().1.to_owned()
    }

    fn kill(mut self) {
        self.child.kill().unwrap(); // SIGKILL
        self.child.wait().unwrap();
    }

    fn terminate(mut self) -> i32 {
        let pid = self.child.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-TERM", &pid])
                .status()
                .unwrap()
                .success()
        );
        until("the end after SIGTERM", || self.child.try_wait().unwrap())
            .code()
            .unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It has ended already where the test ended it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn token(role: &str, subject: &str) -> String {
    let minted = run(&["token", "--role", role, "--subject", subject]);
    expect(&minted, 0).trim().to_owned()
}

fn get(url: &str, token: &str) -> Value {
    let answer = reqwest::blocking::Client::new()
        .get(url)
        .bearer_auth(token)
        .send()
        .unwrap();
    assert!(answer.status().is_success(), "{url}: {}", answer.status());
    answer.json().unwrap()
}

/// A file of the real traces, or a line that says the test did not run.
fn trace(name: &str) -> Option<String> {
    let dir = std::env::var_os("CABRANK_TRACES").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data"),
        PathBuf::from,
    );
    let file = dir.join(name);
    if file.is_file() {
        return Some(file.to_str().unwrap().to_owned());
    }
    assert!(
        std::env::var_os("CABRANK_REQUIRE_TRACES").is_none(),
        "{} is missing and CABRANK_REQUIRE_TRACES is set",
        file.display()
    );
    eprintln!(
        "NOT RUN: {} is missing (set CABRANK_TRACES)",
        file.display()
    );
    None
}

fn events(data_dir: &str) -> Vec<Value> {
    let log = cabrank_eventlog::EmbeddedLog::open(Path::new(data_dir), Default::default()).unwrap();
    let mut found = Vec::new();
    use cabrank_eventlog::{EventLog, Topic};
    for topic in [Topic::RideEvents, Topic::PersonEvents] {
        for shard in 0..log.shards() {
            let mut next = 0;
            while let Some(last) = {
                let records = log.read(topic, shard, next, 1_000).unwrap();
                found.extend(
                    records
                        .iter()
                        .map(|r| serde_json::from_slice(&r.value).unwrap()),
                );
                records.last().map(|record| record.offset)
            } {
                next = last + 1;
            }
        }
    }
    found
}

/// What a run logged at INFO names nobody, no ride and no place of which its events tell.
fn names_nobody_of(log: &str, events: &[Value]) {
    assert!(log.lines().count() >= 3, "nothing was logged: {log}");
    support::quiet::names_nobody(log);
    let mut looked_for = std::collections::BTreeSet::new();
    for event in events {
        // As `driver/driver-17`, `ride/3-5-1042`.
        let (_, id) = event["subject"].as_str().unwrap().split_once('/').unwrap();
        looked_for.insert(id.to_owned());
        if let Some(lat) = event["data"]["pickup"]["lat"].as_f64() {
            looked_for.insert(format!("{lat:.4}"));
        }
    }
    assert!(looked_for.len() > 150, "{}", looked_for.len());
    for id in looked_for.iter().filter(|id| id.len() > 4) {
        let line = log.lines().find(|line| line.contains(id));
        assert_eq!(line, None, "{id} is named in the log");
    }
}

#[test]
fn a_small_city_lives_and_its_log_passes_the_audit() {
    let dir = tempfile::tempdir().unwrap();
    let (data, report) = (dir.path().join("data"), dir.path().join("report.json"));
    let (data, report) = (data.to_str().unwrap(), report.to_str().unwrap());
    let arguments = [
        "demo",
        "--drivers",
        "150",
        "--requests-per-minute",
        "240",
        "--seconds",
        "6",
        "--listen",
        "127.0.0.1:0",
        "--data-dir",
        data,
        "--report",
        report,
    ];
    let demo = cabrank()
        .args(arguments)
        .env("CABRANK_LOG", "info")
        .output()
        .unwrap();
    let said = expect(&demo, 0);
    assert!(
        said.starts_with("http://127.0.0.1:") && said.contains("0 violations"),
        "{said}"
    );
    names_nobody_of(&text(&demo.stderr), &events(data));
    let report: Value = serde_json::from_str(&std::fs::read_to_string(report).unwrap()).unwrap();
    assert_eq!(report["schema"], "cabrank.report/1");
    assert_eq!(report["valid"], true);
    let (rides, pings) = (&report["rides"], &report["pings"]);
    assert!(
        rides["acknowledged"].as_u64().unwrap() > 0 && rides["completed"].as_u64().unwrap() > 0
    );
    assert_eq!(rides["open"], 0);
    assert_eq!(pings["unaccounted"], 0);
    assert_eq!(report["audit"]["rides"], rides["acknowledged"]);

    let audited = expect(
        &run(&["audit", "--data-dir", data, "--complete", "--json"]),
        0,
    );
    let audited: Value = serde_json::from_str(&audited).unwrap();
    assert_eq!(audited["violations_total"], 0);
    let lines = expect(&run(&["events", "--data-dir", data]), 0);
    let ride = lines
        .split("ride=")
        .nth(1)
        .unwrap()
        .split_whitespace()
        .next()
        .unwrap();
    let of_ride = expect(&run(&["events", "--data-dir", data, "--ride", ride]), 0);
    assert!(of_ride.lines().count() < lines.lines().count());
    assert!(
        of_ride.contains("ride.requested") && of_ride.contains("ride.completed")
            || of_ride.contains("ride.cancelled"),
        "{of_ride}"
    );
}

#[test]
fn a_log_that_was_made_wrong_fails_the_audit() {
    use cabrank_eventlog::{Append, EmbeddedLog, Header, ShardOwner, Topic, Transaction};
    let dir = tempfile::tempdir().unwrap();
    let log = EmbeddedLog::open(dir.path(), Default::default()).unwrap();
    let mut owner = log.own("a forger").unwrap();
    for shard in owner.shards() {
        owner.recover(shard).unwrap();
    }
    // An end for a ride that was never requested, numbered as if nothing were missing.
    let event = r#"{"specversion":"1.0","id":"0-1","source":"/cabrank/shards/0","type":"cabrank.ride.unfulfilled.v1",
        "subject":"ride/0-1-1","time":"2008-05-23T00:00:00.000Z","datacontenttype":"application/json",
        "data":{"ride":"0-1-1","ride_seq":2,"why":"deadline","keep_until":1}}"#;
    let forged = Append {
        topic: Topic::RideEvents,
        shard: 0,
        key: "ride/0-1-1".into(),
        value: event.into(),
    };
    let header = Header {
        engine: "{}".into(),
        ..Header::default()
    };
    owner
        .commit(&Transaction {
            events: vec![forged],
            headers: vec![(0, header)],
            ..Transaction::default()
        })
        .unwrap();
    drop(owner);
    drop(log);
    let said = expect(
        &run(&["audit", "--data-dir", dir.path().to_str().unwrap()]),
        1,
    );
    assert!(
        said.contains("0-1-1"),
        "the violation names its ride: {said}"
    );
}

#[test]
fn a_store_belongs_to_one_process_and_sigterm_ends_it_well() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().to_str().unwrap();
    let server = Server::start(&["--listen", "127.0.0.1:0", "--data-dir", data], &[]);
    let refused = run(&["events", "--data-dir", data]);
    expect(&refused, 2);
    let why = text(&refused.stderr);
    assert!(
        why.contains(&server.child.id().to_string()),
        "the holder is named: {why}"
    );
    assert!(why.contains("--url"), "the remedy is named: {why}");
    expect(&run(&["audit", "--url", &server.url]), 0);
    assert_eq!(server.terminate(), 0);
    expect(&run(&["audit", "--data-dir", data, "--complete"]), 0);
}

#[test]
fn mistakes_are_named_with_their_remedy_before_any_port_opens() {
    for (arguments, said) in [
        (vec!["audit", "--data-dir", "/nowhere"], "check --data-dir"),
        (
            vec!["serve", "--config", "/nowhere.toml"],
            "check the path given with --config",
        ),
        (vec!["serve", "--listen", "0.0.0.0:0"], "development secret"),
        (vec!["serve", "--clock", "trace"], "--clock-start"),
        (
            vec!["token", "--role", "king"],
            "choose driver, rider, service or ops",
        ),
    ] {
        let output = run(&arguments);
        expect(&output, 2);
        let why = text(&output.stderr);
        assert!(why.contains(said), "{arguments:?} says {why}");
    }
    let output = cabrank()
        .arg("config")
        .env("CABRANK_NODE__PING_TTL_MS", "5")
        .output()
        .unwrap();
    expect(&output, 2);
    assert!(
        text(&output.stderr).contains("node.ping_ttl_ms = 5"),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn kill_9_of_the_server_in_mid_replay_loses_nothing() {
    let (Some(gps), Some(trips)) = (
        trace("sf_gps_2008-05-22_17-22.csv.gz"),
        trace("sf_trips_2008-05-22_17-22.csv.gz"),
    ) else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let data = data.to_str().unwrap();
    let report = dir.path().join("report.json");
    let (from, to) = ("1211504400", "1211505000"); // ten minutes
    let clock = [
        "--clock",
        "trace",
        "--clock-start",
        from,
        "--clock-speed",
        "30",
    ];
    let preset = ["--preset", "taxi_feed", "--data-dir", data, "--listen"];
    let environment = [("CABRANK_GATEWAY__INGEST__PINGS_PER_SECOND", "0")];
    let serve = |listen: &str| {
        let arguments: Vec<&str> = clock
            .into_iter()
            .chain(preset)
            .chain(std::iter::once(listen))
            .collect();
        Server::start(&arguments, &environment)
    };
    let mut server = serve("127.0.0.1:0");
    let listen = format!("127.0.0.1:{}", server.port());
    let replaying = cabrank()
        .args([
            "replay", "--gps", &gps, "--trips", &trips, "--from", from, "--to", to,
        ])
        .args([
            "--speed",
            "30",
            "--url",
            &server.url,
            "--report",
            report.to_str().unwrap(),
        ])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let ops = token("ops", "test");
    for rides in [30, 40, 50] {
        until("enough rides in this life of the server", || {
            let metrics = reqwest::blocking::get(format!("{}/metrics", server.url))
                .ok()?
                .text()
                .ok()?;
            let count = |name: &str| {
                let line = metrics.lines().find(|line| line.starts_with(name))?;
                line.rsplit_once(' ')?.1.parse::<f64>().ok()
            };
            let events = count("cabrank_events_total{type=\"ride.requested\"}")?;
            (events >= f64::from(rides)).then_some(())
        });
        server.kill();
        server = serve(&listen);
    }
    let replayed = replaying.wait_with_output().unwrap();
    let said = expect(&replayed, 0);
    assert!(said.contains("0 violations"), "{said}");
    let report: Value = serde_json::from_str(&std::fs::read_to_string(report).unwrap()).unwrap();
    assert!(
        report["rides"]["acknowledged"].as_u64().unwrap() > 100,
        "{report}"
    );
    assert_eq!(report["rides"]["open"], 0, "{report}");
    assert!(
        get(
            &format!("{}/v1/nearby?lat=37.77&lon=-122.42&radius=3000", server.url),
            &ops
        )
        .is_object()
    );
    assert_eq!(server.terminate(), 0);
    expect(&run(&["audit", "--data-dir", data, "--complete"]), 0);
}

#[test]
fn after_94_silent_minutes_nobody_gets_a_driver_with_an_old_position() {
    let (Some(gps), Some(trips)) = (
        trace("sf_gps_2008-05-20_06-10_outage.csv.gz"),
        trace("sf_trips_2008-05-20_06-10_outage.csv.gz"),
    ) else {
        return;
    };
    // The feed is silent from 14:04:52 to 15:38:25 UTC.
    const SILENT_FROM: i64 = 1_211_292_292;
    const SILENT_TO: i64 = 1_211_297_905;
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let data = data.to_str().unwrap();
    let (from, to) = (
        (SILENT_FROM - 600).to_string(),
        (SILENT_TO + 600).to_string(),
    );
    let clock = [
        "--clock",
        "trace",
        "--clock-start",
        &from,
        "--clock-speed",
        "200",
    ];
    let rest = [
        "--preset",
        "taxi_feed",
        "--data-dir",
        data,
        "--listen",
        "127.0.0.1:0",
    ];
    let arguments: Vec<&str> = clock.into_iter().chain(rest).collect();
    // At 200 times life's speed five domain seconds are 25 ms: phones need longer to confirm an offer.
    let environment = [
        ("CABRANK_GATEWAY__INGEST__PINGS_PER_SECOND", "0"),
        ("CABRANK_ENGINE__OFFER_RECEIPT_MS", "60000"),
    ];
    let server = Server::start(&arguments, &environment);
    let replaying = cabrank()
        .args([
            "replay", "--gps", &gps, "--trips", &trips, "--from", &from, "--to", &to,
        ])
        .args(["--speed", "200", "--url", &server.url])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let rider = token("rider", "waits-in-vain");
    let nearby = format!(
        "{}/v1/nearby?lat=37.7749&lon=-122.4194&radius=5000&k=50",
        server.url
    );
    // Riders may ask only so often a minute.
    let ops = token("ops", "test");
    let cars = || get(&nearby, &ops)["cars"].as_array().unwrap().len();
    until("cars before the silence", || (cars() > 20).then_some(()));
    until("no car in the silence", || (cars() == 0).then_some(()));
    let asked = reqwest::blocking::Client::new()
        .post(format!("{}/v1/rides", server.url))
        .bearer_auth(&rider)
        .header("Idempotency-Key", "k1")
        .json(&serde_json::json!({ "pickup": { "lat": 37.7749, "lon": -122.4194 } }))
        .send()
        .unwrap();
    assert_eq!(asked.status(), 201);
    let ride = asked.json::<Value>().unwrap()["ride"]
        .as_str()
        .unwrap()
        .to_owned();
    until("the end of the wait", || {
        let view = get(&format!("{}/v1/rides/{ride}", server.url), &rider);
        (view["stage"] == "unfulfilled").then_some(())
    });
    assert_eq!(cars(), 0, "the feed is still silent");
    until("the return of the feed", || (cars() > 20).then_some(()));
    let replayed = replaying.wait_with_output().unwrap();
    assert!(expect(&replayed, 0).contains("0 violations"));
    assert_eq!(server.terminate(), 0);
    expect(&run(&["audit", "--data-dir", data, "--complete"]), 0);
    let ttl_ms = 300_000;
    for event in events(data) {
        if event["type"] == "cabrank.ride.driver_claimed.v1" {
            let at = event["time"].as_str().unwrap();
            let at = cabrank_events::codec::parse_rfc3339(at).unwrap().0;
            let silent = SILENT_FROM * 1_000 + ttl_ms < at && at < SILENT_TO * 1_000;
            assert!(!silent, "a driver was chosen in the silence: {event}");
        }
    }
}
