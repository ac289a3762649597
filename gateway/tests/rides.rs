//! A ride over real sockets, from request to completion, and what comes back to those who lost theirs.

mod support;

use cabrank_gateway::token::Role;
use serde_json::json;
use support::City;

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
