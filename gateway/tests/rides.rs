//! A ride over real sockets, from request to completion, and what comes back to those who lost theirs.

mod support;

use cabrank_gateway::token::Role;
use reqwest::{Method, Response};
use serde_json::{Value, json};
use support::{City, OPS, Who, answered, refusal};

#[tokio::test(flavor = "multi_thread")]
async fn a_ride_over_real_sockets() {
    let city = City::start().await;
    let mut driver = city.driver("d1").await;
    driver
        .say(json!({"type":"online","id":"m1","classes":["economy"]}))
        .await;
    let online = driver.hear("outcome").await;
    assert_eq!(
        (&online["result"], online["session"].is_u64()),
        (&json!("done"), true)
    );
    driver
        .say(json!({"type":"ping","lat":37.7751,"lon":-122.4190,"seq":1}))
        .await;
    let mut rider = city.rider("ann").await;
    let asked = reqwest::Client::new()
        .post(city.url("/v1/rides"))
        .bearer_auth(city.token(Role::Rider, "ann"))
        .header("Idempotency-Key", "k1")
        .json(&json!({"pickup":{"lat":37.7749,"lon":-122.4194},"dropoff":{"lat":37.79,"lon":-122.40}}))
        .send()
        .await
        .unwrap();
    assert_eq!(asked.status(), 201);
    let ride = asked.json::<serde_json::Value>().await.unwrap()["ride"].clone();
    let offer = driver.hear("offer").await;
    assert_eq!(offer["ride"], ride);
    for (kind, id, stage) in [
        ("received", "m2", "offered"),
        ("accept", "m3", "en_route"),
        ("arrived", "m4", "arrived"),
        ("started", "m5", "started"),
        ("completed", "m6", "completed"),
    ] {
        driver
            .say(json!({"type":kind,"id":id,"ride":ride,"attempt":offer["attempt"]}))
            .await;
        let outcome = driver.hear("outcome").await;
        assert_eq!(
            (&outcome["id"], &outcome["result"]),
            (&json!(id), &json!("done"))
        );
        while rider.hear("ride").await["stage"] != stage {}
    }
    city.end().await;
}

async fn lead(city: &City, who: Who<'_>, ride: &str, key: &str, body: &Value) -> Response {
    let path = format!("/v1/rides/{ride}/destination");
    let call = city.call(Method::PUT, &path, who).json(body);
    call.header("Idempotency-Key", key).send().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ride_leads_elsewhere_and_everybody_in_it_hears_of_it() {
    let city = City::start().await;
    let ann: Who = Some((Role::Rider, "ann"));
    let mut driver = city.driver("d1").await;
    driver.online(&["economy"]).await;
    driver.ping(37.7751, -122.4190, 1).await;
    let mut rider = city.rider("ann").await;
    let ride = city.ride("ann", "k1").await;
    let first = driver.hear("offer").await;
    let [museum, station, home] = [37.80, 37.81, 37.82].map(|lat| json!({"lat":lat,"lon":-122.41}));
    let to = |place: &Value| json!({"to":place});

    // While the driver thinks about it, the offer is made again.
    let changed = answered(lead(&city, ann, &ride, "c1", &to(&museum)).await, 200).await;
    assert_eq!(changed, json!({"result":"done","ride":ride}));
    let offer = driver.hear("offer").await;
    assert_eq!(
        (&offer["attempt"], &offer["dropoff"]),
        (&first["attempt"], &museum)
    );
    while rider.hear("ride").await["dropoff"] != museum {}
    driver.reports(&["received", "accept"], &offer).await;

    // The desk does it for the rider and says why; a copy of the older wish that comes late changes nothing.
    let mut by_desk = to(&station);
    by_desk["reason"] = json!("the rider called");
    answered(lead(&city, OPS, &ride, "c1", &by_desk).await, 200).await;
    let told = loop {
        let told = driver.hear("ride").await;
        if told["dropoff"] == station {
            break told;
        }
    };
    assert_eq!(told["stage"], "en_route");
    let late = answered(lead(&city, ann, &ride, "c1", &to(&museum)).await, 200).await;
    assert_eq!(late["result"], "done", "the outcome it had");
    driver.reports(&["arrived", "started"], &offer).await;
    let same = answered(lead(&city, ann, &ride, "c2", &to(&station)).await, 200).await;
    assert_eq!(same["result"], "already_done");
    // The key was used with another place: that is another wish, and not done before.
    answered(lead(&city, ann, &ride, "c2", &to(&home)).await, 200).await;
    while driver.hear("ride").await["dropoff"] != home {}
    let seen = answered(city.get(&format!("/v1/rides/{ride}"), ann).await, 200).await;
    assert_eq!(
        (&seen["stage"], &seen["dropoff"]),
        (&json!("started"), &home)
    );

    driver.reports(&["completed"], &offer).await;
    let over = refusal(lead(&city, ann, &ride, "c3", &to(&museum)).await).await;
    over.is(409, "ended", "nothing is left to do");
    let past = city.get(&format!("/v1/rides/{ride}/history"), OPS).await;
    let past = answered(past, 200).await;
    let past = past["past"].as_array().unwrap();
    let changes = past
        .iter()
        .filter(|told| told["record"]["type"] == "cabrank.ride.destination_changed.v1");
    let led: Vec<&Value> = changes.map(|told| &told["record"]["data"]["to"]).collect();
    assert_eq!(led, [&museum, &station, &home]);
    let named = past.iter().any(|told| {
        let record = &told["record"];
        let id = record["id"].as_str().unwrap_or_default();
        id.starts_with("ops/o/t/") && record["reason"] == "the rider called"
    });
    assert!(named, "who and why: {past:?}");
    city.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_rides_own_rider_leads_it_elsewhere_and_only_to_a_place() {
    let city = City::start().await;
    let ride = city.ride("ann", "k1").await;
    let (ann, bob): (Who, Who) = (Some((Role::Rider, "ann")), Some((Role::Rider, "bob")));
    let good = json!({"to":{"lat":37.8,"lon":-122.41}});
    let unknown = "check the id; you see only your own rides";
    for (who, ride) in [(bob, &*ride), (ann, "0-0-999999"), (OPS, "nonsense")] {
        let refused = refusal(lead(&city, who, ride, "c1", &good).await).await;
        refused.is(404, "unknown_ride", unknown);
    }
    for (body, what) in [
        (json!({}), "missing field `to`"),
        (json!({"to":null}), "null"),
        (json!({"to":{"lat":91,"lon":0}}), "91"),
        (json!({"to":{"lat":0,"lon":-181}}), "-181"),
    ] {
        let refused = refusal(lead(&city, ann, &ride, "c1", &body).await).await;
        refused.is(422, "bad_body", "send the JSON that docs/protocol.md shows");
        assert!(refused.detail.contains(what), "no {what:?} in {refused:?}");
    }
    let path = format!("/v1/rides/{ride}/destination");
    let keyless = city.call(Method::PUT, &path, ann).json(&good).send().await;
    let refused = refusal(keyless.unwrap()).await;
    refused.is(400, "bad_request", "send the header Idempotency-Key");
    let seen = answered(city.get(&format!("/v1/rides/{ride}"), ann).await, 200).await;
    assert_eq!(seen["dropoff"], support::wish()["dropoff"], "as it was");
    city.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rider_changes_the_destination_as_often_as_calls_are_allowed() {
    let city = City::with(|gateway, _| gateway.limits.requests_per_minute = 3).await;
    let ride = city.ride("ann", "k1").await;
    let ann: Who = Some((Role::Rider, "ann"));
    let to = |lat: f64| json!({"to":{"lat":lat,"lon":-122.41}});
    for key in ["c1", "c2"] {
        answered(lead(&city, ann, &ride, key, &to(37.8)).await, 200).await;
    }
    let refused = refusal(lead(&city, ann, &ride, "c3", &to(37.81)).await).await;
    refused.is(429, "too_many_requests", "repeat the same request after");
    answered(lead(&city, OPS, &ride, "c3", &to(37.81)).await, 200).await;
    city.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rider_who_does_not_come_is_a_no_show_and_the_driver_is_free() {
    let city = City::with(|_, engine| engine.no_show_ms = 300).await;
    let mut driver = city.driver("d1").await;
    driver.online(&["economy"]).await;
    driver.ping(37.7751, -122.4190, 1).await;
    let mut rider = city.rider("ann").await;
    city.ride("ann", "k1").await;
    let offer = driver.hear("offer").await;
    driver
        .reports(&["received", "accept", "arrived"], &offer)
        .await;
    let over = loop {
        let ride = rider.hear("ride").await;
        if ride["stage"] == "cancelled" {
            break ride;
        }
    };
    assert_eq!(over["cancelled_by"], "no_show");
    assert_eq!(driver.hear("released").await["stage"], "cancelled");
    let late = driver.report("started", &offer).await;
    assert_eq!(
        (&late["result"], &late["why"]),
        (&json!("refused"), &json!("ended"))
    );
    // Free at once: the next rider gets this car.
    city.ride("bob", "k1").await;
    driver.hear("offer").await;
    city.end().await;
}
