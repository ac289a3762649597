//! `engine.swap_consent = "ask"` on real phones: nobody loses a ride they have not agreed to lose.

mod support;

use cabrank_engine::config::SwapConsent;
use cabrank_engine::matching::PolicyKind;
use cabrank_gateway::token::Role;
use serde_json::{Value, json};
use support::{City, OPS, Socket, answered};

/// At the pickup of [`support::wish`], and an eight minutes' drive north of it.
const NEAR: f64 = 37.7751;
const FAR: f64 = 37.7999;

/// Rides on the way are looked at every second, and an exchange that saves half a minute pays.
async fn asking_city(answer_ms: u64) -> City {
    City::built(|knobs| {
        knobs.node.policy = PolicyKind::Rematch;
        let engine = &mut knobs.engine;
        engine.radius_first_m = engine.radius_max_m;
        engine.swaps.every_ms = 1_000;
        engine.swaps.gain_min_ms = 30_000;
        engine.swap_consent = SwapConsent::Ask;
        engine.swap_answer_ms = answer_ms;
    })
    .await
}

async fn comes_online(city: &City, id: &str, lat: f64) -> Socket {
    let mut driver = city.driver(id).await;
    driver.online(&["economy"]).await;
    driver.ping(lat, -122.4194, 1).await;
    driver
}

/// A driver from afar is on the way to ann when a free car comes to her door; the question that follows.
async fn asked(city: &City) -> (Socket, Socket, Socket, Value) {
    let mut far = comes_online(city, "far", FAR).await;
    let rider = city.rider("ann").await;
    city.ride("ann", "k1").await;
    let offer = far.hear("offer").await;
    far.reports(&["received", "accept"], &offer).await;
    let near = comes_online(city, "near", NEAR).await;
    let question = question(&mut far).await;
    assert!(
        question["swap_asked"]["gain_s"].as_i64().unwrap() > 300,
        "{question}"
    );
    (far, near, rider, question)
}

/// The next `ride` that asks something.
async fn question(driver: &mut Socket) -> Value {
    loop {
        let ride = driver.hear("ride").await;
        if ride.get("swap_asked").is_some() {
            return ride;
        }
    }
}

/// Answers by a message of its own: `accept` was said before under another id.
async fn answers(driver: &mut Socket, kind: &str, question: &Value) -> Value {
    let id = format!("swap-{kind}");
    let (ride, attempt) = (&question["ride"], &question["attempt"]);
    driver
        .say(json!({"type":kind,"id":id,"ride":ride,"attempt":attempt}))
        .await;
    let outcome = driver.hear("outcome").await;
    assert_eq!(outcome["id"], id);
    outcome["result"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_agrees_is_free_and_the_other_driver_and_the_rider_are_told() {
    let city = asking_city(15_000).await;
    let (mut far, mut near, mut rider, question) = asked(&city).await;
    assert_eq!(answers(&mut far, "accept", &question).await, "done");
    let released = far.hear("released").await;
    assert_eq!(
        (&released["ride"], &released["stage"]),
        (&question["ride"], &json!("en_route"))
    );
    let ride = near.hear("ride").await;
    assert_eq!(
        (&ride["driver"], &ride["swap"]["before"]),
        (&json!("near"), &json!("far"))
    );
    let told = loop {
        let told = rider.hear("ride").await;
        if told["driver"] == "near" {
            break told;
        }
    };
    assert!(told["swap"]["gained_s"].as_i64().unwrap() > 300, "{told}");
    near.reports(&["arrived", "started", "completed"], &ride)
        .await;
    // Free, and asked like anybody else.
    city.ride("bob", "k1").await;
    far.hear("offer").await;
    city.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_declines_keeps_the_ride_and_is_not_asked_again() {
    let city = asking_city(15_000).await;
    let (mut far, mut near, _rider, question) = asked(&city).await;
    assert_eq!(answers(&mut far, "decline", &question).await, "done");
    still_theirs(&city, &mut far, &mut near, &question).await;
    city.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_answer_keeps_the_ride() {
    let city = asking_city(700).await;
    let (mut far, mut near, _rider, question) = asked(&city).await;
    let ride = far.hear("ride").await;
    assert!(
        ride.get("swap_asked").is_none(),
        "the question is over: {ride}"
    );
    // Too late, and harmless: the ride had been accepted before.
    assert_eq!(answers(&mut far, "accept", &question).await, "already_done");
    still_theirs(&city, &mut far, &mut near, &question).await;
    city.end().await;
}

/// The question is over, the car at the door is anybody's, and the ride is driven by whom it was.
async fn still_theirs(city: &City, far: &mut Socket, near: &mut Socket, question: &Value) {
    let path = format!("/v1/rides/{}", question["ride"].as_str().unwrap());
    let ann = Some((Role::Rider, "ann"));
    let ride = answered(city.get(&path, ann).await, 200).await;
    assert_eq!(
        (&ride["stage"], &ride["driver"], &ride["swap_asked"]),
        (&json!("en_route"), &json!("far"), &Value::Null)
    );
    // A later round gives that car to somebody else.
    let other = city.ride("bob", "k1").await;
    assert_eq!(near.hear("offer").await["ride"], other);
    let past = answered(city.get(&format!("{path}/history"), OPS).await, 200).await;
    let times = |kind: &str| past.to_string().matches(kind).count();
    assert_eq!(
        (
            times("ride.swap_asked.v1"),
            times("ride.driver_reassigned.v1")
        ),
        (1, 0)
    );
    far.reports(&["arrived", "started", "completed"], question)
        .await;
    let ride = answered(city.get(&path, ann).await, 200).await;
    assert_eq!(
        (&ride["stage"], &ride["driver"]),
        (&json!("completed"), &json!("far"))
    );
}
