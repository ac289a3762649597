//! The operator's desk: suspensions and block lists, over a real server.

mod support;

use cabrank_gateway::token::Role;
use reqwest::{Method, Response};
use serde_json::{Value, json};
use support::{City, OPS, Socket, Who, answered, refusal};

const SERVICE: Who<'static> = Some((Role::Service, "complaints"));

async fn suspend(city: &City, driver: &str) -> Response {
    let reason = json!({"reason":"complaint 4711"});
    city.post(&format!("/v1/drivers/{driver}/suspend"), OPS, &reason)
        .await
}

async fn reinstate(city: &City, driver: &str) -> Response {
    city.post(&format!("/v1/drivers/{driver}/reinstate"), OPS, &json!({}))
        .await
}

async fn block(city: &City, driver: &str, rider: &str) -> Response {
    let path = format!("/v1/drivers/{driver}/blocks");
    city.post(&path, SERVICE, &json!({"rider":rider})).await
}

async fn unblock(city: &City, driver: &str, rider: &str) -> Response {
    let path = format!("/v1/drivers/{driver}/blocks/{rider}");
    let call = city.call(Method::DELETE, &path, SERVICE);
    call.send().await.unwrap()
}

/// The driver begins to work at Market Street.
async fn online(driver: &mut Socket, id: &str) -> Value {
    driver
        .say(json!({"type":"online","id":id,"classes":["economy"]}))
        .await;
    let answer = driver.hear("outcome").await;
    let at = json!({"type":"ping","lat":37.7749,"lon":-122.4194,"seq":1});
    driver.say(at).await;
    answer
}

async fn is(answer: Response, result: &str) {
    assert_eq!(answered(answer, 200).await["result"], result);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_suspended_loses_the_offer_and_does_not_work_until_reinstated() {
    let city = City::start().await;
    let mut d7 = city.driver("d7").await;
    assert_eq!(online(&mut d7, "m1").await["result"], "done");
    let ride = city.ride("ann", "k1").await;
    assert_eq!(d7.hear("offer").await["ride"], ride.as_str());
    is(suspend(&city, "d7").await, "done").await;
    is(suspend(&city, "d7").await, "already_done").await;
    // The phone has the offer no more, and cannot begin anew.
    let refused = online(&mut d7, "m2").await;
    assert_eq!(
        (&refused["result"], &refused["why"]),
        (&json!("refused"), &json!("suspended"))
    );
    assert_eq!(d7.hear("ping_refused").await["reason"], "not_online");
    is(reinstate(&city, "d7").await, "done").await;
    is(reinstate(&city, "d7").await, "already_done").await;
    // A second suspension is no copy of the first.
    is(suspend(&city, "d7").await, "done").await;
    is(reinstate(&city, "d7").await, "done").await;
    assert_eq!(online(&mut d7, "m3").await["result"], "done");
    let other = city.ride("bob", "k1").await;
    assert_eq!(d7.hear("offer").await["ride"], other.as_str());
    city.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_who_are_kept_apart_get_no_offer_of_each_other() {
    let city = City::with(|_, engine| engine.blocks_max = 1).await;
    is(block(&city, "d7", "ann").await, "done").await;
    is(block(&city, "d7", "ann").await, "already_done").await;
    let full = refusal(block(&city, "d7", "bob").await).await;
    full.is(409, "too_many_blocks", "unblock a rider first");
    let mut d7 = city.driver("d7").await;
    online(&mut d7, "m1").await;
    city.ride("ann", "k1").await;
    let ride = city.ride("cid", "k1").await;
    let offer = d7.hear("offer").await;
    assert_eq!(offer["ride"], ride.as_str(), "the first offer is cid's");
    // The remedy of the refusal, followed.
    is(unblock(&city, "d7", "ann").await, "done").await;
    is(unblock(&city, "d7", "ann").await, "already_done").await;
    is(block(&city, "d7", "bob").await, "done").await;
    city.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_makes_no_sense_is_refused_and_so_is_the_driver_too_many() {
    let city = City::with(|_, engine| engine.marked_drivers_max = 1).await;
    for (path, body) in [
        ("/v1/drivers/d7/suspend", json!({})),
        ("/v1/drivers/d7/suspend", json!({"reason":""})),
        ("/v1/drivers/d7/suspend", json!({"reason":"two\nlines"})),
        ("/v1/drivers/d7/suspend", json!({"reason":"x".repeat(201)})),
        ("/v1/drivers/d7/blocks", json!({"rider":"two words"})),
    ] {
        let refused = refusal(city.post(path, OPS, &body).await).await;
        assert_eq!((refused.status, refused.name.as_str()), (422, "bad_body"));
    }
    let nobody = suspend(&city, "two%20words").await;
    refusal(nobody).await.is(400, "bad_request", "driver id");
    // Drivers live by id: among so many some share a shard, and its one place is taken.
    let mut full = 0;
    for n in 0..20 {
        let answer = suspend(&city, &format!("d{n}")).await;
        if answer.status() == 200 {
            continue;
        }
        let refused = refusal(answer).await;
        refused.is(503, "too_many_marked", "engine.marked_drivers_max");
        full += 1;
    }
    assert!(
        full >= 20 - 8,
        "one of each of 8 shards fits, not {}",
        20 - full
    );
    city.end().await;
}
