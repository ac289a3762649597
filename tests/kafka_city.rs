//! A city over a real Apache Kafka as a user runs it: `demo --brokers` with several nodes, one of which is killed.
//!
//! Without a JDK and Maven it says so in one line and counts as not run; with `CI=true` that is a failure.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use cabrank_eventlog::kafka::testing;
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(120);

fn cabrank() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cabrank"));
    command.stdin(Stdio::null());
    command
}

/// Looks again and again until `found` says something.
#[track_caller]
fn until<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(
            Instant::now() < deadline,
            "{what} did not happen within {PATIENCE:?}"
        );
        std::thread::park_timeout(Duration::from_millis(50));
    }
}

/// A demo that ends with the test: its nodes and gateways are its children, and SIGTERM makes it end them.
struct Demo(Child);

impl Drop for Demo {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            testing::signal(self.0.id(), "TERM");
            // Nothing depends on how it ends.
            let _ = self.0.wait();
        }
    }
}

fn status(arguments: &[&str]) -> Output {
    cabrank().args(arguments).arg("--json").output().unwrap()
}

/// Which nodes serve the shards, once all shards are served.
fn owners(arguments: &[&str]) -> Option<Vec<String>> {
    let output = status(arguments);
    let said: Value = serde_json::from_slice(&output.stdout).ok()?;
    let shards = said["shards"].as_array()?;
    let node = |shard: &Value| Some(shard["node"].as_str()?.to_owned());
    let is_served = output.status.success() && !shards.is_empty();
    is_served.then(|| shards.iter().filter_map(node).collect())
}

#[test]
fn of_three_nodes_one_is_killed_and_one_drained_during_the_demo_and_the_audit_finds_nothing() {
    let Some(broker) = testing::broker() else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let report = dir.path().join("demo.json");
    let mut child = cabrank()
        .args(["demo", "--brokers", broker.bootstrap(), "--nodes", "3"])
        .args(["--drivers", "60", "--requests-per-minute", "120"])
        .args(["--seconds", "30", "--listen", "127.0.0.1:0", "--report"])
        .arg(&report)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut demo = Demo(child);
    let mut said = Vec::new();
    let look = loop {
        let line = lines.next().expect("the demo ended at its start").unwrap();
        if let Some(look) = line.strip_prefix("look at it: cabrank ") {
            break look.to_owned();
        }
        said.push(line);
    };
    let look: Vec<&str> = look.split(' ').collect();
    let victim: u32 = said
        .iter()
        .find_map(|line| line.strip_prefix("node-1: process "))
        .expect("the demo prints its processes")
        .parse()
        .unwrap();
    until("a shard of node-1", || {
        owners(&look)?.contains(&"node-1".to_owned()).then_some(())
    });
    testing::signal(victim, "KILL");
    until("others serving every shard", || {
        (!owners(&look)?.contains(&"node-1".to_owned())).then_some(())
    });
    // Two are left, and the desk asks one of them to leave: it hands its shards over and ends by itself.
    let city = said
        .iter()
        .find_map(|line| line.strip_prefix("the city, live: "))
        .expect("the demo prints its address");
    let (url, _) = city.split_once("/#").unwrap();
    let drain = [
        "cluster", "drain", "node-2", "--reason", "a test", "--url", url,
    ];
    // Asked again while no gateway can say that it will be done: that does no harm.
    until("the desk's wish to drain node-2", || {
        let output = cabrank().args(drain).output().unwrap();
        output.status.success().then_some(())
    });
    until("one node serving every shard", || {
        let owners = owners(&look)?;
        owners.iter().all(|node| node == "node-3").then_some(())
    });
    let rest: Vec<String> = lines.map_while(Result::ok).collect();
    let ended = demo.0.wait().unwrap();
    assert!(ended.success(), "{ended}: {}", rest.join("\n"));
    for node in ["node-1", "node-2"] {
        let line = format!("{node} had ended before");
        assert!(rest.contains(&line), "no {line:?} in {rest:?}");
    }
    let report: Value = serde_json::from_slice(&std::fs::read(&report).unwrap()).unwrap();
    let acknowledged = report["rides"]["acknowledged"].as_u64();
    assert!(acknowledged > Some(10), "{acknowledged:?} rides");
}

#[test]
fn a_node_that_owns_no_shard_is_listed_and_leaves_when_the_desk_asks() {
    let Some(broker) = testing::broker() else {
        return;
    };
    let mut child = cabrank()
        .args(["demo", "--brokers", broker.bootstrap()])
        .args(["--nodes", "3", "--shards", "2", "--drivers", "20"])
        .args(["--requests-per-minute", "60", "--seconds", "20"])
        .args(["--listen", "127.0.0.1:0"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut demo = Demo(child);
    let mut city = None;
    let look = loop {
        let line = lines.next().expect("the demo ended at its start").unwrap();
        if let Some(address) = line.strip_prefix("the city, live: ") {
            city = address.split_once("/#").map(|(url, _)| url.to_owned());
        }
        if let Some(look) = line.strip_prefix("look at it: cabrank ") {
            break look.to_owned();
        }
    };
    let (look, url): (Vec<&str>, String) = (look.split(' ').collect(), city.unwrap());
    let idle = || {
        let said: Value = serde_json::from_slice(&status(&look).stdout).ok()?;
        let all = said["nodes"].as_array()?;
        let owning = owners(&look)?;
        let names: Vec<&str> = all
            .iter()
            .filter_map(|node| node["node"].as_str())
            .collect();
        let idle = names
            .iter()
            .find(|name| !owning.iter().any(|owner| owner == *name))?;
        (names.len() == 3).then(|| (*idle).to_owned())
    };
    let idle = until("three nodes, one of them without a shard", idle);
    let drain = [
        "cluster", "drain", &idle, "--reason", "too many", "--url", &url,
    ];
    until("the desk's wish", || {
        let output = cabrank().args(drain).output().unwrap();
        output.status.success().then_some(())
    });
    let rest: Vec<String> = lines.map_while(Result::ok).collect();
    let ended = demo.0.wait().unwrap();
    assert!(ended.success(), "{ended}: {}", rest.join("\n"));
    let line = format!("{idle} had ended before");
    assert!(rest.contains(&line), "no {line:?} in {rest:?}");
}

#[test]
fn brokers_that_are_not_ours_are_not_hurt() {
    for fault in ["kill-broker", "restart-broker", "cut-off-node"] {
        // Port 1: nobody is there, and nobody is asked.
        let output = cabrank()
            .args(["chaos", "--brokers", "127.0.0.1:1", "--faults", fault])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains("--own-brokers"), "{said}");
    }
}
