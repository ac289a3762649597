//! Who may call what? The table of `docs/protocol.md` is read from the page and tried, cell by cell.

mod support;

use cabrank_gateway::token::{DEVELOPMENT_SECRET, Role};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use reqwest::{Method, Response};
use serde_json::{Value, json};
use support::{City, OPS, Who, answered, refusal, wish};

const DOCUMENT: &str = include_str!("../../docs/protocol.md");
const ROLES: [Role; 4] = [Role::Driver, Role::Rider, Role::Service, Role::Ops];

/// One line of the table: what is called, and what each role may, in the page's words.
struct Row {
    method: Method,
    path: String,
    cells: Vec<&'static str>,
}

/// The table under "Sessions and tokens".
fn table() -> Vec<Row> {
    let (_, section) = DOCUMENT.split_once("## Sessions and tokens").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let mut rows = Vec::new();
    for line in section.lines().filter(|line| line.starts_with("| `")) {
        let mut cells = line.trim_matches('|').split('|').map(str::trim);
        let called = cells.next().unwrap();
        let cells: Vec<&str> = cells.collect();
        for called in called.split('`').skip(1).step_by(2) {
            let (method, path) = called.split_once(' ').unwrap_or(("GET", called));
            let (before, after) = match path.split_once('{') {
                Some((before, rest)) => (before, rest.split_once('}').unwrap().1),
                None => (path, ""),
            };
            let is_named = before.len() < path.len();
            let path = format!("{before}{}{after}", if is_named { "0-0-1" } else { "" });
            rows.push(Row {
                method: method.parse().unwrap(),
                path,
                cells: cells.clone(),
            });
        }
    }
    rows
}

async fn called(city: &City, row: &Row, token: Option<&str>) -> Response {
    let mut call = city.call(row.method.clone(), &row.path, None);
    if let Some(token) = token {
        call = call.bearer_auth(token);
    }
    call.send().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_role_may_call_what_the_page_says_and_nothing_else() {
    let city = City::start().await;
    let rows = table();
    assert!(rows.len() >= 11, "the table was not read whole");
    for row in &rows {
        assert_eq!(row.cells.len(), ROLES.len(), "{}", row.path);
        for (role, cell) in ROLES.into_iter().zip(&row.cells) {
            let answer = called(&city, row, Some(&city.token(role, "somebody"))).await;
            let (status, what) = (answer.status().as_u16(), format!("{role:?} {}", row.path));
            match *cell {
                "-" => refusal(answer)
                    .await
                    .is(403, "forbidden", "use one with the role"),
                "open" => assert_eq!(status, 200, "{what}"),
                // The call itself may be refused for what it lacks, but not the caller.
                _ => assert!(status != 401 && status != 403, "{what}: {status}"),
            }
        }
    }
    city.end().await;
}

/// A token that is right but for what `change` does to it.
fn token(secret: &str, algorithm: Algorithm, change: impl FnOnce(&mut Value)) -> String {
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let mut claims = json!({"sub":"somebody","role":"ops","exp":now + 600});
    change(&mut claims);
    let key = EncodingKey::from_secret(secret.as_bytes());
    encode(&Header::new(algorithm), &claims, &key).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_not_good_opens_nothing_and_the_answer_says_what_to_do() {
    let city = City::start().await;
    let (right, hs256) = (DEVELOPMENT_SECRET, Algorithm::HS256);
    let good = token(right, hs256, |_| {});
    let (head, rest) = good.split_once('.').unwrap();
    let (claims, _) = rest.split_once('.').unwrap();
    // {"alg":"none"}, without a signature.
    let unsigned = format!("eyJhbGciOiJub25lIn0.{claims}.");
    let over = token(right, hs256, |claims| {
        claims["exp"] = json!(claims["exp"].as_u64().unwrap() - 660);
    });
    let without = |name: &'static str| {
        token(right, hs256, move |claims| {
            claims.as_object_mut().unwrap().remove(name);
        })
    };
    let king = token(right, hs256, |claims| claims["role"] = json!("king"));
    let no_id = token(right, hs256, |claims| claims["sub"] = json!("two words"));
    let other_key = token("another secret of more than 32 bytes", hs256, |_| {});
    let other_algorithm = token(right, Algorithm::HS512, |_| {});
    let cut = format!("{head}.{claims}.");
    let (sub, role, exp) = (without("sub"), without("role"), without("exp"));
    let get_new = "get one signed with this server's key";
    let bad = [
        (None, "send the header Authorization: Bearer <token>"),
        (Some(over.as_str()), "get a new one"),
        (Some(other_key.as_str()), get_new),
        (Some(other_algorithm.as_str()), get_new),
        (Some(unsigned.as_str()), get_new),
        (Some(cut.as_str()), get_new),
        (Some(sub.as_str()), get_new),
        (Some(role.as_str()), get_new),
        (Some(exp.as_str()), get_new),
        (Some(king.as_str()), get_new),
        (Some(no_id.as_str()), get_new),
        (Some("nonsense"), get_new),
    ];
    for row in table().iter().filter(|row| row.cells[0] != "open") {
        for (token, remedy) in bad {
            let answer = called(&city, row, token).await;
            let asks_for = answer.headers().get("www-authenticate").cloned();
            let refused = refusal(answer).await;
            refused.is(401, "unauthorized", remedy);
            assert_eq!(asks_for.unwrap(), "Bearer", "{}", row.path);
        }
    }
    // The same token, unspoilt, does open: it is the spoiling that was refused.
    let near = "/v1/nearby?lat=37.77&lon=-122.42";
    let call = city.call(Method::GET, near, None).bearer_auth(&good);
    answered(call.send().await.unwrap(), 200).await;
    let in_url = city.get(&format!("{near}&token={good}"), None).await;
    refusal(in_url)
        .await
        .is(401, "unauthorized", "a token in the URL is not read");
    city.end().await;
}

async fn ask_for(city: &City, who: Who<'_>, rider: Option<&str>, key: &str) -> Response {
    let mut call = city.call(Method::POST, "/v1/rides", who).json(&wish());
    if let Some(rider) = rider {
        call = call.header("X-Rider", rider);
    }
    call.header("Idempotency-Key", key).send().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_asks_and_cancels_for_the_rider_it_names() {
    let city = City::start().await;
    let (desk, ann): (Who, Who) = (Some((Role::Service, "desk")), Some((Role::Rider, "ann")));
    let mut phone = city.rider("ann").await;
    let opened = answered(ask_for(&city, desk, Some("ann"), "k1").await, 201).await;
    let ride = opened["ride"].as_str().unwrap();
    assert_eq!(
        phone.hear("ride").await["ride"],
        ride,
        "the rider's phone hears of it"
    );
    let path = format!("/v1/rides/{ride}");
    assert_eq!(
        answered(city.get(&path, ann).await, 200).await["rider"],
        "ann"
    );
    let again = answered(ask_for(&city, ann, None, "k1").await, 200).await;
    assert_eq!(
        again["ride"], ride,
        "the rider's own retry finds the same ride"
    );
    let other = answered(ask_for(&city, desk, Some("bob"), "k1").await, 201).await;
    assert_ne!(other["ride"], ride, "keys are each rider's own");

    let refused = refusal(ask_for(&city, desk, None, "k2").await).await;
    refused.is(400, "bad_request", "name the rider in the header X-Rider");
    let refused = refusal(ask_for(&city, desk, Some("a b"), "k2").await).await;
    refused.is(
        400,
        "bad_request",
        "X-Rider: rider id contains ' ': use letters, digits",
    );
    let refused = refusal(ask_for(&city, ann, Some("bob"), "k2").await).await;
    refused.is(403, "forbidden", "leave X-Rider out");
    answered(ask_for(&city, ann, Some("ann"), "k1").await, 200).await;

    let cancel = |who, rider: &'static str| {
        let call = city.call(Method::POST, "/v1/cancel", who);
        call.header("X-Rider", rider).json(&json!({"key":"k1"}))
    };
    let refused = refusal(cancel(ann, "bob").send().await.unwrap()).await;
    refused.is(403, "forbidden", "leave X-Rider out");
    let nobody = city.post("/v1/cancel", desk, &json!({"key":"k1"})).await;
    refusal(nobody)
        .await
        .is(400, "bad_request", "name the rider");
    let done = answered(cancel(desk, "bob").send().await.unwrap(), 200).await;
    assert_eq!(
        (&done["result"], &done["ride"]),
        (&json!("done"), &other["ride"])
    );
    let stage = async |path: &str| answered(city.get(path, OPS).await, 200).await["stage"].clone();
    assert_eq!(stage(&path).await, "waiting", "ann's ride is not touched");
    let by_ops = city.post(&format!("{path}/cancel"), OPS, &json!({})).await;
    assert_eq!(answered(by_ops, 200).await["result"], "done");
    let cancelled = answered(city.get(&path, ann).await, 200).await;
    assert_eq!(
        (&cancelled["stage"], &cancelled["cancelled_by"]),
        (&json!("cancelled"), &json!("ops"))
    );
    city.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rider_reads_why_a_service_called_the_ride_off_and_not_what_the_desk_wrote() {
    let city = City::start().await;
    let order: Who = Some((Role::Service, "order"));
    for (rider, who, told) in [
        ("ann", order, json!("payment refused: the card is over")),
        ("bob", OPS, Value::Null),
    ] {
        let ride = city.ride(rider, "k1").await;
        let path = format!("/v1/rides/{ride}");
        let mut phone = city.rider(rider).await;
        phone.hear("ride").await;
        let body = json!({"reason":"payment refused: the card is over"});
        answered(city.post(&format!("{path}/cancel"), who, &body).await, 200).await;
        let heard = phone.hear("ride").await;
        assert_eq!(heard["stage"], "cancelled", "{heard}");
        assert_eq!(
            (&heard["cancelled_by"], &heard["reason"]),
            (&json!("ops"), &told)
        );
        let read = answered(city.get(&path, Some((Role::Rider, rider))).await, 200).await;
        assert_eq!(read["reason"], told);
        let past = answered(city.get(&format!("{path}/history"), OPS).await, 200).await;
        let past = past["past"].as_array().unwrap();
        let of = |what: &str| {
            &past
                .iter()
                .find(|one| one["record"]["type"] == what)
                .unwrap()["record"]
        };
        assert_eq!(of("cabrank.ride.cancelled.v1")["data"]["reason"], told);
        assert_eq!(
            of("cancel_ride")["reason"],
            body["reason"],
            "kept in either case"
        );
    }
    city.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_reads_or_cancels_a_strangers_ride() {
    let city = City::start().await;
    let ride = city.ride("ann", "k1").await;
    let path = format!("/v1/rides/{ride}");
    let bob: Who = Some((Role::Rider, "bob"));
    let remedy = "check the id; you see only your own rides";
    refusal(city.get(&path, bob).await)
        .await
        .is(404, "unknown_ride", remedy);
    let cancel = format!("{path}/cancel");
    let stolen = city.post(&cancel, bob, &json!({})).await;
    refusal(stolen).await.is(404, "unknown_ride", remedy);
    // By key it is bob's own wish of that name that is taken back.
    let by_key = city.post("/v1/cancel", bob, &json!({"key":"k1"})).await;
    answered(by_key, 200).await;
    let mut phone = city.rider("bob").await;
    phone
        .say(json!({"type":"cancel","id":"c1","ride":ride}))
        .await;
    let outcome = phone.hear("outcome").await;
    assert_eq!(outcome["result"], "refused", "{outcome}");
    for nothing in ["0-0-999999", "nonsense", "03-0-1", "-"] {
        let read = city.get(&format!("/v1/rides/{nothing}"), OPS).await;
        refusal(read).await.is(404, "unknown_ride", remedy);
        let path = format!("/v1/rides/{nothing}/cancel");
        let cancelled = city.post(&path, OPS, &json!({})).await;
        refusal(cancelled).await.is(404, "unknown_ride", remedy);
    }
    assert_eq!(
        answered(city.get(&path, OPS).await, 200).await["stage"],
        "waiting"
    );
    city.end().await;
}
