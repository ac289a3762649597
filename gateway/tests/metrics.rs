//! What `/metrics` shows: how many series there are does not depend on how many people come, no label names anybody, and
//! every name has its help and follows Prometheus' conventions. Alone in its process, so the metrics are its own.

mod support;

use std::collections::BTreeMap;

use cabrank_gateway::token::Role;
use serde_json::json;
use support::{City, answered, until, wish};

/// The most series of one process, as `meters` promises.
const SERIES_MAX: usize = 1_000;

/// People who come after the first ones; each has a name of their own.
const CROWD: usize = 40;

fn series(metrics: &str) -> Vec<&str> {
    let lines = metrics.lines();
    lines
        .filter(|line| !line.starts_with('#') && !line.is_empty())
        .collect()
}

/// The metrics' names and kinds, without what belongs to buckets.
fn families(metrics: &str) -> BTreeMap<&str, &str> {
    let types = metrics.lines().filter_map(|l| l.strip_prefix("# TYPE "));
    types.filter_map(|line| line.split_once(' ')).collect()
}

/// One ride from the request to its end, by a driver and a rider of these names.
async fn ride(city: &City, driver_name: &str, rider_name: &str) {
    let mut driver = city.driver(driver_name).await;
    let session = driver.online(&["economy"]).await;
    let seen = city.counters.snapshot().accepted;
    driver.ping(37.7749, -122.4194, 1).await;
    until("the ping", async || {
        (city.counters.snapshot().accepted > seen).then_some(())
    })
    .await;
    answered(city.ask(rider_name, "k1", &wish()).await, 201).await;
    let offer = driver.hear("offer").await;
    let kinds = ["received", "accept", "arrived", "started", "completed"];
    driver.reports(&kinds, &offer).await;
    // The next ride is for the next driver.
    driver
        .say(json!({"type":"offline","id":"home","session":session}))
        .await;
    assert_eq!(driver.hear("outcome").await["result"], "done");
}

/// Is refused, under a path of its own.
async fn ask_for_no_ride(city: &City, number: usize) {
    let rider = format!("zebra-rider-{number}");
    let path = format!("/v1/rides/zebra-ride-{number}");
    let answer = city.get(&path, Some((Role::Rider, &rider))).await;
    assert!(answer.status().is_client_error());
}

#[tokio::test(flavor = "multi_thread")]
async fn more_people_make_no_more_series_and_none_is_named() {
    let city = City::start().await;
    // Everything that happens below has happened once, refusals included.
    ride(&city, "zebra-driver-0", "zebra-rider-0").await;
    ask_for_no_ride(&city, 0).await;
    let before = city.metrics().await;
    for number in 1..=CROWD {
        let driver = format!("zebra-driver-{number}");
        let rider = format!("zebra-rider-{number}");
        ride(&city, &driver, &rider).await;
        ask_for_no_ride(&city, number).await;
    }
    let after = city.metrics().await;
    let (few, many) = (series(&before).len(), series(&after).len());
    // A cause or outcome may come for the first time meanwhile; a person must not bring one each.
    assert!(
        many < few + CROWD / 2,
        "{few} series became {many}:\n{after}"
    );
    assert!(many <= SERIES_MAX, "{many} series");
    assert!(!after.contains("zebra"), "somebody is named:\n{after}");

    for (name, kind) in families(&after) {
        let is_ours = name.starts_with("cabrank_") || name.starts_with("process_");
        assert!(is_ours, "{name}: whose is it?");
        assert_eq!(
            kind == "counter",
            name.ends_with("_total"),
            "{name} is a {kind}"
        );
        assert!(
            kind != "summary",
            "{name}: quantiles of several processes cannot be added"
        );
        let help = format!("# HELP {name} ");
        assert!(after.contains(&help), "{name} has no help");
    }
    let offers = "cabrank_offer_seconds_count ";
    let count = after.lines().find_map(|line| line.strip_prefix(offers));
    assert_eq!(count, Some(format!("{}", CROWD + 1).as_str()), "{after}");
    city.end().await;
}
