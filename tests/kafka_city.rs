//! A city over a real Apache Kafka as a user runs it: `demo --brokers` with several nodes, one of which is killed.
//!
//! Without a JDK and Maven it says so in one line and counts as not run; with `CI=true` that is a failure.

#[allow(dead_code, reason = "each test binary uses its own part of this")]
mod support;

use std::process::Output;

use cabrank_eventlog::kafka::testing;
use serde_json::Value;

use support::{Demo, cabrank, quiet, until};

fn status(city: &[&str]) -> Output {
    let status = ["cluster", "status", "--json"];
    cabrank().args(status).args(city).output().unwrap()
}

/// Which nodes serve the shards, once all shards are served.
fn owners(city: &[&str]) -> Option<Vec<String>> {
    let output = status(city);
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
    let report = report.to_str().unwrap();
    let demo = ["--nodes", "3", "--drivers", "60", "--seconds", "30"];
    let requests = ["--requests-per-minute", "120", "--report", report];
    // Nodes and gateways are its children and log where it does.
    let log = dir.path().join("log");
    let mut logging = cabrank();
    logging.env("CABRANK_LOG", "info");
    logging.stderr(std::fs::File::create(&log).unwrap());
    let demo = Demo::by(
        logging,
        broker.bootstrap(),
        &[&demo[..], &requests].concat(),
    );
    let city = demo.city();
    until("a shard of node-1", || {
        owners(&city)?.contains(&"node-1".to_owned()).then_some(())
    });
    testing::signal(demo.pid("node-1"), "KILL");
    until("others serving every shard", || {
        (!owners(&city)?.contains(&"node-1".to_owned())).then_some(())
    });
    // Two are left, and the desk asks one of them to leave: it hands its shards over and ends by itself.
    let drain = [
        "cluster",
        "drain",
        "node-2",
        "--reason",
        "a test",
        "--url",
        demo.url(),
    ];
    // Asked again while no gateway can say that it will be done: that does no harm.
    until("the desk's wish to drain node-2", || {
        let output = cabrank().args(drain).output().unwrap();
        output.status.success().then_some(())
    });
    until("one node serving every shard", || {
        let owners = owners(&city)?;
        owners.iter().all(|node| node == "node-3").then_some(())
    });
    let rest = demo.ended();
    for node in ["node-1", "node-2"] {
        let line = format!("{node} had ended before");
        assert!(rest.contains(&line), "no {line:?} in {rest:?}");
    }
    let report: Value = serde_json::from_slice(&std::fs::read(report).unwrap()).unwrap();
    let acknowledged = report["rides"]["acknowledged"].as_u64();
    assert!(acknowledged > Some(10), "{acknowledged:?} rides");
    let log = std::fs::read_to_string(&log).unwrap();
    assert!(
        log.lines().count() > 20,
        "hardly anything was logged: {log}"
    );
    quiet::names_nobody(&log);
}

#[test]
fn a_node_that_owns_no_shard_is_listed_and_leaves_when_the_desk_asks() {
    let Some(broker) = testing::broker() else {
        return;
    };
    let demo = ["--nodes", "3", "--shards", "2", "--drivers", "20"];
    let requests = ["--requests-per-minute", "60", "--seconds", "20"];
    let demo = Demo::start(broker.bootstrap(), &[&demo[..], &requests].concat());
    let city = demo.city();
    let idle = || {
        let said: Value = serde_json::from_slice(&status(&city).stdout).ok()?;
        let all = said["nodes"].as_array()?;
        let owning = owners(&city)?;
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
        "cluster",
        "drain",
        &idle,
        "--reason",
        "too many",
        "--url",
        demo.url(),
    ];
    until("the desk's wish", || {
        let output = cabrank().args(drain).output().unwrap();
        output.status.success().then_some(())
    });
    let rest = demo.ended();
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
