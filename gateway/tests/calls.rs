//! HTTP calls over a real server: who may call what, what each refusal says, the event stream.

mod support;

use std::time::Duration;

use cabrank_gateway::token::Role;
use cabrank_matcher::api::Dispatch;
use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};
use support::{City, PATIENCE, until};

fn wish() -> Value {
    json!({"pickup":{"lat":37.7749,"lon":-122.4194},"dropoff":{"lat":37.79,"lon":-122.40}})
}

async fn call(city: &City, method: Method, path: &str, who: Option<(Role, &str)>) -> Response {
    let mut call = reqwest::Client::new().request(method, city.url(path));
    if let Some((role, subject)) = who {
        call = call.bearer_auth(city.token(role, subject));
    }
    call.send().await.unwrap()
}

async fn ask(city: &City, rider: &str, key: &str, body: &Value) -> Response {
    reqwest::Client::new()
        .post(city.url("/v1/rides"))
        .bearer_auth(city.token(Role::Rider, rider))
        .header("Idempotency-Key", key)
        .json(body)
        .send()
        .await
        .unwrap()
}

/// The refusal's status and name; its body must be a whole problem document with a remedy.
async fn problem(answer: Response) -> (StatusCode, String) {
    let status = answer.status();
    assert_eq!(answer.headers()["content-type"], "application/problem+json");
    let body: Value = answer.json().await.unwrap();
    assert_eq!(body["status"], status.as_u16());
    assert!(
        !body["title"].as_str().unwrap().is_empty() && !body["detail"].as_str().unwrap().is_empty()
    );
    let name = body["type"]
        .as_str()
        .unwrap()
        .strip_prefix("urn:cabrank:problem:")
        .unwrap();
    (status, name.to_owned())
}

async fn ride_of(answer: Response) -> String {
    let body: Value = answer.json().await.unwrap();
    body["ride"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_role_may_call_what_the_table_says() {
    let city = City::start().await;
    let ride = ride_of(ask(&city, "ann", "k1", &wish()).await).await;
    let (view, nearby) = (
        format!("/v1/rides/{ride}"),
        "/v1/nearby?lat=37.77&lon=-122.42&radius=2000&k=5",
    );
    let (yes, no, nobody) = (StatusCode::OK, StatusCode::FORBIDDEN, StatusCode::NOT_FOUND);
    let table = [
        (
            view.as_str(),
            [
                ("driver d1", nobody),
                ("rider ann", yes),
                ("rider bob", nobody),
                ("service s", yes),
                ("ops o", yes),
            ],
        ),
        (
            nearby,
            [
                ("driver d1", no),
                ("rider ann", yes),
                ("rider bob", yes),
                ("service s", yes),
                ("ops o", yes),
            ],
        ),
        (
            "/v1/events",
            [
                ("driver d1", no),
                ("rider ann", no),
                ("rider bob", no),
                ("service s", yes),
                ("ops o", yes),
            ],
        ),
        (
            "/healthz",
            [
                ("driver d1", yes),
                ("rider ann", yes),
                ("rider bob", yes),
                ("service s", yes),
                ("ops o", yes),
            ],
        ),
        (
            "/metrics",
            [
                ("driver d1", yes),
                ("rider ann", yes),
                ("rider bob", yes),
                ("service s", yes),
                ("ops o", yes),
            ],
        ),
    ];
    for (path, cells) in table {
        for (who, expected) in cells {
            let (role, subject) = who.split_once(' ').unwrap();
            let role = match role {
                "driver" => Role::Driver,
                "rider" => Role::Rider,
                "service" => Role::Service,
                _ => Role::Ops,
            };
            let answer = call(&city, Method::GET, path, Some((role, subject))).await;
            assert_eq!(answer.status(), expected, "{who} on {path}");
        }
    }
    for path in [view.as_str(), nearby, "/v1/events"] {
        let refused = problem(call(&city, Method::GET, path, None).await).await;
        assert_eq!(
            refused,
            (StatusCode::UNAUTHORIZED, "unauthorized".into()),
            "{path}"
        );
    }
    let cancel = format!("{view}/cancel");
    for (who, expected) in [
        ((Role::Driver, "d1"), no),
        ((Role::Rider, "bob"), nobody),
        ((Role::Rider, "ann"), yes),
    ] {
        let answer = call(&city, Method::POST, &cancel, Some(who)).await;
        assert_eq!(answer.status(), expected, "{who:?} cancels");
    }
    let again = call(&city, Method::POST, &cancel, Some((Role::Ops, "o"))).await;
    assert_eq!(
        again.json::<Value>().await.unwrap()["result"],
        "already_done"
    );
    city.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wish_is_answered_once_and_every_refusal_names_its_remedy() {
    let city = City::start().await;
    let first = ask(&city, "ann", "k1", &wish()).await;
    assert_eq!(first.status(), StatusCode::CREATED);
    let ride = ride_of(first).await;
    let again = ask(&city, "ann", "k1", &wish()).await;
    assert_eq!(again.status(), StatusCode::OK);
    assert_eq!(ride_of(again).await, ride);
    let other = json!({"pickup":{"lat":37.70,"lon":-122.40}});
    let refused = problem(ask(&city, "ann", "k1", &other).await).await;
    assert_eq!(
        refused,
        (StatusCode::UNPROCESSABLE_ENTITY, "key_reused".into())
    );
    let refused = problem(ask(&city, "ann", "k2", &wish()).await).await;
    assert_eq!(refused, (StatusCode::CONFLICT, "already_riding".into()));
    let mut old = wish();
    old["issued_at"] = json!(city.node.now().0 - 3_600_000);
    let refused = problem(ask(&city, "bob", "k1", &old).await).await;
    assert_eq!(refused, (StatusCode::GONE, "too_old".into()));
    for (body, status) in [
        (json!({}), StatusCode::UNPROCESSABLE_ENTITY),
        (
            json!({"pickup":{"lat":91.0,"lon":0.0}}),
            StatusCode::UNPROCESSABLE_ENTITY,
        ),
    ] {
        assert_eq!(
            problem(ask(&city, "cid", "k1", &body).await).await.0,
            status,
            "{body}"
        );
    }
    let no_key = reqwest::Client::new()
        .post(city.url("/v1/rides"))
        .bearer_auth(city.token(Role::Rider, "cid"))
        .json(&wish())
        .send()
        .await
        .unwrap();
    assert!(problem(no_key).await.0.is_client_error());
    let cancel = reqwest::Client::new()
        .post(city.url("/v1/cancel"))
        .bearer_auth(city.token(Role::Rider, "dan"))
        .json(&json!({"key":"k9"}))
        .send()
        .await
        .unwrap();
    assert_eq!(cancel.status(), StatusCode::OK);
    let refused = problem(ask(&city, "dan", "k9", &wish()).await).await;
    assert_eq!(refused, (StatusCode::GONE, "cancelled_before".into()));
    for (method, path, status) in [
        (Method::GET, "/v1/rides/nonsense", StatusCode::NOT_FOUND),
        (Method::GET, "/nowhere", StatusCode::NOT_FOUND),
        (Method::DELETE, "/v1/rides", StatusCode::METHOD_NOT_ALLOWED),
        (
            Method::GET,
            "/v1/nearby?lat=95&lon=0",
            StatusCode::BAD_REQUEST,
        ),
        (
            Method::GET,
            "/v1/events?cursor=nonsense",
            StatusCode::BAD_REQUEST,
        ),
    ] {
        let answer = call(&city, method, path, Some((Role::Ops, "o"))).await;
        assert_eq!(problem(answer).await.0, status, "{path}");
    }
    city.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rider_who_asks_too_often_is_told_when_to_come_back() {
    let city = City::with(|gateway, _| gateway.limits.requests_per_minute = 3).await;
    let ask_near = async || {
        call(
            &city,
            Method::GET,
            "/v1/nearby?lat=37.77&lon=-122.42",
            Some((Role::Rider, "ann")),
        )
        .await
    };
    let refused = until("the limit", async || {
        let answer = ask_near().await;
        (answer.status() == StatusCode::TOO_MANY_REQUESTS).then_some(answer)
    })
    .await;
    assert!(
        refused.headers()["retry-after"]
            .to_str()
            .unwrap()
            .parse::<u64>()
            .unwrap()
            >= 1
    );
    problem(refused).await;
    let other = call(
        &city,
        Method::GET,
        "/v1/nearby?lat=37.77&lon=-122.42",
        Some((Role::Rider, "bob")),
    )
    .await;
    assert_eq!(other.status(), StatusCode::OK, "others are not touched");
    city.end().await;
}

/// Reads server-sent events: (id, data) until `count` have come.
async fn read_events(city: &City, cursor: &str, count: usize) -> Vec<(String, Value)> {
    let path = format!("/v1/events?cursor={cursor}");
    let mut answer = call(city, Method::GET, &path, Some((Role::Ops, "o"))).await;
    assert_eq!(answer.status(), StatusCode::OK);
    let (mut text, mut found) = (String::new(), Vec::new());
    let reading = async {
        while found.len() < count {
            text += std::str::from_utf8(&answer.chunk().await.unwrap().unwrap()).unwrap();
            while let Some((event, rest)) = text.split_once("\n\n") {
                let field = |name: &str| {
                    event
                        .lines()
                        .find_map(|line| line.strip_prefix(name))
                        .map(|value| value.trim().to_owned())
                };
                if let (Some(id), Some(data)) = (field("id:"), field("data:")) {
                    found.push((id, serde_json::from_str(&data).unwrap()));
                }
                text = rest.to_owned();
            }
        }
    };
    tokio::time::timeout(PATIENCE, reading)
        .await
        .expect("the events came too slowly");
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn the_event_stream_resumes_anywhere_and_repeats_nothing() {
    let city = City::start().await;
    for rider in 0..20 {
        assert_eq!(
            ask(&city, &format!("rider-{rider}"), "k1", &wish())
                .await
                .status(),
            StatusCode::CREATED
        );
    }
    // Opened, looked at in vain, busy, confirmed, answered: five events a ride.
    let all = read_events(&city, "start", 100).await;
    let ids: std::collections::BTreeSet<String> = all
        .iter()
        .map(|(_, event)| event["id"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(ids.len(), all.len(), "no event twice");
    for at in [0, 1, 17, 63, 98] {
        let rest = read_events(&city, &all[at].0, 99 - at).await;
        assert_eq!(rest[..99 - at], all[at + 1..100], "after event {at}");
    }
    let tail = tokio::spawn({
        let (end, url) = (all[99].0.clone(), city.url("/v1/events"));
        let token = city.token(Role::Service, "s");
        async move {
            let ask = reqwest::Client::new()
                .get(url)
                .bearer_auth(token)
                .header("last-event-id", end);
            let mut answer = ask.send().await.unwrap();
            let mut text = String::new();
            while !text.contains("late-rider") {
                text += std::str::from_utf8(&answer.chunk().await.unwrap().unwrap()).unwrap();
            }
        }
    });
    ask(&city, "late-rider", "k1", &wish()).await;
    tokio::time::timeout(PATIENCE, tail)
        .await
        .expect("the tail hears of new events")
        .unwrap();
    city.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_falls_while_draining_and_the_drain_ends_in_time() {
    let city = City::with(|gateway, _| {
        gateway.timing.move_ms = 1_500;
        gateway.timing.drain_ms = 4_000;
    })
    .await;
    assert_eq!(
        call(&city, Method::GET, "/readyz", None).await.status(),
        StatusCode::OK
    );
    let mut driver = city.driver("d1").await;
    city.stop.cancel();
    driver.hear("move").await;
    let ready = call(&city, Method::GET, "/readyz", None).await;
    assert_eq!(ready.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(driver.closed().await.0, 1012);
    let served = tokio::time::timeout(Duration::from_secs(6), city.serving)
        .await
        .unwrap();
    assert_eq!(served.unwrap().unwrap().cut_off, 0);
}
