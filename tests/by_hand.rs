//! A ride played to its end by `cabrank driver` and `cabrank rider`, driven through their pipes as a person would type; with
//! zones from files, and a server that goes away in the middle.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);
/// Lines of a process that nobody has read yet; beyond it, it waits.
const LINES_MAX: usize = 1_000;

fn cabrank() -> Command {
    Command::new(env!("CARGO_BIN_EXE_cabrank"))
}

/// A process and what it says, line by line.
struct Played {
    child: Child,
    lines: Receiver<String>,
    said: Vec<String>,
    stdin: Option<ChildStdin>,
}

impl Played {
    fn start(arguments: &[&str], environment: &[(&str, &str)]) -> Played {
        let mut child = cabrank()
            .args(arguments)
            .envs(environment.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (send, lines) = sync_channel(LINES_MAX);
        let out = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    return;
                }
            }
        });
        let stdin = child.stdin.take();
        Played {
            child,
            lines,
            said: Vec::new(),
            stdin,
        }
    }

    fn types(&mut self, line: &str) {
        writeln!(self.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    /// The next line that holds `text`; others are passed over.
    #[track_caller]
    fn says(&mut self, text: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(line) = self.lines.recv_timeout(left) else {
                panic!("no {text:?} came; said: {:#?}", self.said);
            };
            self.said.push(line.clone());
            if line.contains(text) {
                return line;
            }
        }
    }

    /// The end of the input, then of the process.
    #[track_caller]
    fn ends(mut self) {
        drop(self.stdin.take());
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}; said: {:#?}", self.said);
    }
}

impl Drop for Played {
    fn drop(&mut self) {
        // It has ended already where the test ended it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn server(dir: &Path, listen: &str, zones: &str) -> (Played, String) {
    let dir = dir.display().to_string();
    let arguments = ["serve", "--listen", listen, "--data-dir", &dir];
    let mut server = Played::start(&arguments, &[("CABRANK_GATEWAY__ZONES__DIR", zones)]);
    let url = server.says("http://");
    (server, url)
}

#[test]
fn a_person_plays_driver_and_rider_through_a_whole_ride_and_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let zones = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/zones");
    let (first, url) = server(dir.path(), "127.0.0.1:0", zones);

    let mut driver = Played::start(
        &[
            "driver",
            "--url",
            &url,
            "--id",
            "d1",
            "--at",
            "37.7801,-122.3975",
        ],
        &[],
    );
    driver.says("connected as driver d1");
    driver.types("online economy");
    driver.says("online: done");
    let mut rider = Played::start(&["rider", "--url", &url, "--id", "ann"], &[]);
    rider.says("connected as rider ann");
    rider.types("request 37.9,-122.6");
    rider.says("request: refused: Outside of the service area");
    // The car is found as soon as its ping is in.
    let near = Instant::now() + PATIENCE;
    loop {
        rider.types("quote 37.778,-122.397 37.79,-122.41");
        let quote = rider.says("quote: ");
        if quote.contains("1 car near, there in ") {
            assert!(
                quote.contains("fetched at North door (Central Station)"),
                "{quote}"
            );
            break;
        }
        assert!(Instant::now() < near, "{quote}");
    }
    rider.types("request 37.778,-122.397 37.79,-122.41");
    rider.says("you are fetched at North door (Central Station)");
    driver.says("offer: ride ");
    driver.types("accept");
    driver.says("accept: done");
    rider.says("en_route, driver d1");

    // The server goes away and comes back where it was; nobody does anything.
    let address = url.strip_prefix("http://").unwrap().to_owned();
    let mut first = first;
    first.child.kill().unwrap();
    first.child.wait().unwrap();
    driver.says("connection lost");
    driver.types("arrived");
    let (second, _) = server(dir.path(), &address, zones);
    driver.says("arrived: done");
    rider.says("arrived, driver d1");
    driver.types("drive 37.7805,-122.3975 50");
    driver.types("wait there");
    driver.types("started");
    driver.says("started: done");
    // On the way the rider wants to go elsewhere, and the driver's phone says so.
    rider.says("started, driver d1");
    rider.types("to 37.795,-122.42");
    rider.says("to: done");
    driver.says("to 37.795");
    driver.types("completed");
    driver.says("completed: done");
    rider.says(": completed");
    driver.types("offline");
    driver.says("offline: done");
    driver.ends();
    rider.ends();
    drop(second);
}

fn text(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

#[test]
fn what_is_wrong_is_said_with_its_remedy() {
    let bad = cabrank()
        .args(["driver", "--at", "here"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(bad.status.code(), Some(2));
    assert!(
        text(&bad)
            .1
            .contains("--at \"here\": write latitude,longitude"),
        "{:?}",
        text(&bad)
    );

    let dir = tempfile::tempdir().unwrap();
    let (server, url) = server(dir.path(), "127.0.0.1:0", "");
    let stranger = cabrank()
        .args(["rider", "--url", &url, "--token", "no.such.token"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(stranger.status.code(), Some(2));
    assert!(
        text(&stranger).1.contains("No valid token"),
        "{:?}",
        text(&stranger)
    );
    drop(server);

    std::fs::write(
        dir.path().join("a.geojson"),
        "{\"type\":\"FeatureCollection\",\"features\":[{}]}",
    )
    .unwrap();
    let zones = cabrank().arg("zones").arg(dir.path()).output().unwrap();
    assert_eq!(zones.status.code(), Some(1));
    assert!(
        text(&zones).1.contains("a.geojson: feature 1: "),
        "{:?}",
        text(&zones)
    );
    let sample = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/zones");
    let zones = cabrank().args(["zones", sample]).output().unwrap();
    assert!(
        text(&zones).0.contains("airport       Bayside Field"),
        "{:?}",
        text(&zones)
    );
}
