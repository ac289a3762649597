//! `cabrank load` as a user runs it, small: a run that counts, the bare sink beside it, what is made of the reports.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_cabrank"))
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

#[track_caller]
fn expect(output: &Output, code: i32) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(
        output.status.code(),
        Some(code),
        "stdout:\n{out}\nstderr:\n{err}"
    );
    out
}

fn read(file: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap()
}

/// A machine that is busy with other tests makes the generator late; that is not what is tested here.
const PATIENT: [&str; 2] = ["--lateness-p99-ms", "5000"];

#[test]
fn a_small_load_is_offered_answered_accounted_for_and_audited() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (report_file, page) = (path("a.json"), path("a.html"));
    let mut arguments = vec![
        "load",
        "--pings-per-second",
        "300",
        "--rides-per-second",
        "10",
        "--nearby-per-second",
        "50",
        "--drivers",
        "60",
        "--connections",
        "50",
        "--seconds",
        "3",
        "--warmup",
        "0.5",
        "--processes",
        "2",
        "--cancel",
        "0.1",
        "--decline",
        "0.1",
        "--ghosts",
        "--report",
        &report_file,
        "--html",
        &page,
    ];
    arguments.extend(PATIENT);
    let out = expect(&run(&arguments), 0);
    assert!(out.contains("0 violations"), "{out}");
    let report = read(Path::new(&report_file));
    let load = &report["load"];
    assert_eq!(report["valid"], true);
    assert_eq!(report["audit"]["violations"], 0);
    assert_eq!(report["pings"]["unaccounted"], 0);
    assert_eq!(report["rides"]["open"], 0);
    assert!(
        report["rides"]["completed"].as_u64().unwrap() > 5,
        "{}",
        report["rides"]
    );
    let done = |kind: &str| load["kinds"][kind]["done"].as_u64().unwrap_or(0);
    assert!(
        (600..1_300).contains(&done("ping")),
        "{} pings",
        done("ping")
    );
    assert!(
        (90..230).contains(&done("nearby")),
        "{} searches",
        done("nearby")
    );
    assert!(done("ping_to_visible") > 2 && done("request_to_offer") > 5 && done("command") > 20);
    assert_eq!(load["ghosts"]["stale_after_move"], 0);
    assert_eq!(load["ghosts"]["stale_after_offline"], 0);
    assert!(load["series"].as_array().unwrap().len() >= 3);
    assert_eq!(load["processes"], 2);
    let text = std::fs::read_to_string(&page).unwrap();
    assert!(text.contains("<svg") && text.contains("300 pings/s"));
    let compared = expect(&run(&["report", "compare", &report_file, &report_file]), 0);
    assert!(
        compared.contains("too few runs") && compared.contains("search p99 ms"),
        "{compared}"
    );
    let again = path("again.html");
    expect(&run(&["report", "html", &report_file, "--out", &again]), 0);
    assert_eq!(std::fs::read_to_string(&again).unwrap(), text);
}

#[test]
fn the_bare_sink_takes_the_same_frames_and_counts_all_of_them() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("raw.json");
    let mut arguments = vec![
        "load",
        "--target",
        "raw",
        "--decode",
        "--frames",
        "protobuf",
        "--pings-per-frame",
        "10",
        "--pings-per-second",
        "2000",
        "--drivers",
        "20",
        "--seconds",
        "1",
        "--warmup",
        "0",
        "--report",
        file.to_str().unwrap(),
    ];
    arguments.extend(PATIENT);
    expect(&run(&arguments), 0);
    let report = read(&file);
    assert_eq!(report["pings"]["accepted"], report["pings"]["sent"]);
    assert!(report["pings"]["sent"].as_u64().unwrap() > 1_000);
    assert_eq!(report["load"]["target"], "raw");
    assert_eq!(report["audit"], Value::Null, "there is no log");
}

#[test]
fn what_cannot_be_done_is_said_before_anything_starts() {
    for (arguments, expected) in [
        (vec!["load"], "--pings-per-second"),
        (
            vec!["load", "--pings-per-second", "5", "--ramp", "1:2"],
            "1000:20000:30s",
        ),
        (
            vec!["load", "--target", "raw", "--rides-per-second", "1"],
            "pings only",
        ),
        (
            vec!["load", "--pings-per-second", "5", "--drivers", "0"],
            "--drivers 0",
        ),
        (
            vec!["report", "compare", "no-such-file", "neither"],
            "no-such-file",
        ),
    ] {
        let output = run(&arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(expected), "{arguments:?}: {said}");
    }
}
