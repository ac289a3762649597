//! How rounds choose, read and changed by the desk; and where drivers want to go.

mod support;

use cabrank_gateway::token::Role;
use reqwest::Method;
use serde_json::{Value, json};
use support::{City, OPS, Who, answered, refusal, until};

const PATH: &str = "/v1/dispatch";
const ALICE: Who<'static> = Some((Role::Ops, "alice"));

async fn set(city: &City, who: Who<'_>, body: &Value) -> reqwest::Response {
    let call = city.call(Method::PUT, PATH, who).json(body);
    call.send().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_desk_changes_how_rounds_choose_and_goes_back() {
    let city = City::start().await;
    let before = answered(city.get(PATH, OPS).await, 200).await;
    assert_eq!(
        (&before["seq"], &before["settings"]),
        (&json!(0), &json!({}))
    );
    assert_eq!(before["rules"]["policy"], "batched");

    let evening = json!({ "policy": "rematch", "swaps": { "gain_min_ms": 60_000 } });
    let body = json!({ "settings": evening, "reason": "evening" });
    let done = answered(set(&city, ALICE, &body).await, 200).await;
    assert_eq!(done["result"], "done");
    let again = answered(set(&city, ALICE, &body).await, 200).await;
    assert_eq!(again["result"], "already_done");
    let now = answered(city.get(PATH, OPS).await, 200).await;
    assert_eq!((&now["seq"], &now["settings"]), (&json!(1), &evening));
    assert_eq!(now["rules"]["swaps"]["gain_min_ms"], 60_000);
    assert_eq!(
        now["rules"]["prices"], before["rules"]["prices"],
        "as configured"
    );
    assert!(now["since"].is_i64());

    let back = json!({ "settings": {}, "reason": "night" });
    answered(set(&city, ALICE, &back).await, 200).await;
    let after = answered(city.get(PATH, OPS).await, 200).await;
    assert_eq!(
        (&after["seq"], &after["rules"]),
        (&json!(2), &before["rules"])
    );
    city.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_setting_is_named_and_nobody_but_the_desk_may() {
    let city = City::start().await;
    for (settings, named) in [
        (json!({ "policy": "psychic" }), "psychic"),
        (json!({ "prices": { "agee": 1 } }), "agee"),
        (
            json!({ "pace": { "most_ms": 600_000 } }),
            "engine.pace.most_ms",
        ),
    ] {
        let body = json!({ "settings": settings, "reason": "a try" });
        let refused = refusal(set(&city, ALICE, &body).await).await;
        refused.is(422, "bad_settings", named);
    }
    let silent = refusal(set(&city, ALICE, &json!({ "settings": {} })).await).await;
    silent.is(422, "bad_body", "reason");
    for role in [Role::Rider, Role::Driver, Role::Service] {
        let who = Some((role, "somebody"));
        let body = json!({ "settings": {}, "reason": "a try" });
        let refused = refusal(set(&city, who, &body).await).await;
        refused.is(403, "forbidden", "ops");
        refusal(city.get(PATH, who).await)
            .await
            .is(403, "forbidden", "ops");
    }
    city.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_who_is_online_may_want_to_go_somewhere() {
    let city = City::start().await;
    let path = "/v1/drivers/d1/heading";
    let home = json!({ "to": { "lat": 37.8, "lon": -122.4 } });
    let put = async || {
        city.call(Method::PUT, path, ALICE)
            .json(&home)
            .send()
            .await
            .unwrap()
    };
    refusal(put().await).await.is(409, "not_online", "online");
    let mut driver = city.driver("d1").await;
    driver.online(&["economy"]).await;
    assert_eq!(answered(put().await, 200).await["result"], "done");
    assert_eq!(answered(put().await, 200).await["result"], "already_done");
    let delete = async || city.call(Method::DELETE, path, ALICE).send().await.unwrap();
    assert_eq!(answered(delete().await, 200).await["result"], "done");
    assert_eq!(
        answered(delete().await, 200).await["result"],
        "already_done"
    );
    until("it is in the driver's history", async || {
        let history = answered(city.get("/v1/drivers/d1/history", OPS).await, 200).await;
        history
            .to_string()
            .contains("driver.heading_set.v1")
            .then_some(())
    })
    .await;
    city.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_city_in_one_process_has_no_node_that_could_leave_and_says_what_to_do() {
    let city = City::start().await;
    let nodes = answered(city.get("/v1/nodes", ALICE).await, 200).await;
    assert_eq!(nodes, json!({"nodes":[],"one_process":true}));
    let drain = async |node: &str, who, body: &Value| {
        city.post(&format!("/v1/nodes/{node}/drain"), who, body)
            .await
    };
    let because = json!({"reason":"an update"});
    let refused = refusal(drain("node-1", ALICE, &because).await).await;
    refused.is(409, "one_process", "end it with SIGTERM");
    let silent = refusal(drain("node-1", ALICE, &json!({})).await).await;
    silent.is(422, "bad_body", "reason");
    let named = refusal(drain("node%201", ALICE, &because).await).await;
    named.is(400, "bad_request", "use letters, digits");
    for role in [Role::Rider, Role::Driver, Role::Service] {
        let who = Some((role, "somebody"));
        let refused = refusal(drain("node-1", who, &because).await).await;
        refused.is(403, "forbidden", "ops");
    }
    let past = answered(city.get("/v1/dispatch/history", ALICE).await, 200).await;
    assert_eq!(past["past"], json!([]), "nothing of it was done");
    city.end().await;
}
