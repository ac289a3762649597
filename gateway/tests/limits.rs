//! What the sockets refuse, and what comes back to those who lost theirs. Each stated limit has its story.

mod support;

use cabrank_gateway::token::Role;
use futures_util::SinkExt;
use serde_json::{Value, json};
use support::{City, Socket, until};
use tokio_tungstenite::tungstenite::{Error as WsError, Message};

async fn online(driver: &mut Socket) -> Value {
    driver
        .say(json!({"type":"online","id":"go","classes":["economy"]}))
        .await;
    let outcome = driver.hear("outcome").await;
    assert_eq!(outcome["result"], "done");
    outcome["session"].clone()
}

async fn request(city: &City, rider: &str) -> String {
    let asked = reqwest::Client::new()
        .post(city.url("/v1/rides"))
        .bearer_auth(city.token(Role::Rider, rider))
        .header("Idempotency-Key", "k1")
        .json(&json!({"pickup":{"lat":37.7749,"lon":-122.4194},"dropoff":{"lat":37.79,"lon":-122.40}}))
        .send()
        .await
        .unwrap();
    assert_eq!(asked.status(), 201);
    asked.json::<Value>().await.unwrap()["ride"]
        .as_str()
        .unwrap()
        .to_owned()
}

fn status_of(refused: Result<Socket, WsError>) -> u16 {
    match refused {
        Err(WsError::Http(answer)) => answer.status().as_u16(),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("the socket was opened"),
    }
}

/// A counter of `/metrics`, by the beginning of its line.
async fn counter(city: &City, name: &str) -> f64 {
    let text = reqwest::get(city.url("/metrics"))
        .await
        .unwrap()
        .text()
        .await
        .unwrap();
    let line = text.lines().find(|line| line.starts_with(name));
    line.and_then(|line| line.rsplit_once(' '))
        .map_or(0.0, |(_, count)| count.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_right_token_opens_a_socket() {
    let city = City::start().await;
    assert_eq!(status_of(city.socket("/v1/driver", None, None).await), 401);
    assert_eq!(
        status_of(city.socket("/v1/driver", Some("nonsense"), None).await),
        401
    );
    let rider = city.token(Role::Rider, "ann");
    assert_eq!(
        status_of(city.socket("/v1/driver", Some(&rider), None).await),
        403
    );
    let driver = city.token(Role::Driver, "d1");
    assert_eq!(
        status_of(city.socket("/v1/rider", Some(&driver), None).await),
        403
    );
    assert_eq!(
        status_of(city.socket("/v1/driver", Some(&driver), Some("soap")).await),
        400
    );
    // Browsers cannot set headers: the token comes as a subprotocol item.
    let offered = format!("cabrank.v1.json, bearer.{driver}");
    let mut socket = city
        .socket("/v1/driver", None, Some(&offered))
        .await
        .unwrap();
    assert_eq!(socket.hear("welcome").await["driver"], "d1");
    city.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_ping_spoils_itself_only_and_every_ping_is_counted_once() {
    let city = City::start().await;
    let mut driver = city.driver("d1").await;
    let now = {
        use cabrank_matcher::api::Dispatch;
        city.node.now().0
    };
    let before = [
        counter(&city, "cabrank_pings_sent_total").await,
        counter(&city, "cabrank_pings_total{result=\"accepted\"").await,
        counter(&city, "cabrank_pings_total{result=\"replaced\"").await,
    ];
    let session = online(&mut driver).await;
    driver
        .say(json!({"type":"pings","pings":[
            {"lat":37.7751,"lon":-122.4190,"time":now - 3_000,"seq":1},
            {"lat":95.0,"lon":-122.4190,"time":now - 2_500,"seq":2},
            {"lat":37.7752,"lon":-122.4190,"time":now - 2_000,"seq":3},
            {"lat":37.7752,"lon":-122.4190,"time":now - 2_000,"seq":3},
            {"lat":37.7753,"lon":-122.4190,"time":now - 1_000,"seq":4,"accuracy":90_000.0},
            {"lat":34.0,"lon":-118.0,"time":now - 900,"seq":5},
            {"lat":37.7754,"lon":-122.4190,"time":now + 3_600_000,"seq":6},
            {"lat":37.7754,"lon":-122.4190,"time":now - 86_400_000,"seq":7},
            {"lat":37.7755,"lon":-122.4190,"time":now - 500,"seq":8},
        ]}))
        .await;
    let refused = driver.hear("ping_refused").await;
    assert!(refused["refused"].as_u64().unwrap() >= 1, "{refused}");
    let near = city.url("/v1/nearby?lat=37.7755&lon=-122.4190&radius=500&k=5");
    let ops = city.token(Role::Ops, "o");
    let car = until("the newest good ping", async || {
        let answer = reqwest::Client::new()
            .get(&near)
            .bearer_auth(&ops)
            .send()
            .await
            .unwrap();
        answer.json::<Value>().await.unwrap()["cars"]
            .get(0)
            .cloned()
    })
    .await;
    assert!(
        (car["at"]["lat"].as_f64().unwrap() - 37.7755).abs() < 1e-6,
        "{car}"
    );
    let sent = counter(&city, "cabrank_pings_sent_total").await - before[0];
    let accepted = counter(&city, "cabrank_pings_total{result=\"accepted\"").await - before[1];
    let replaced = counter(&city, "cabrank_pings_total{result=\"replaced\"").await - before[2];
    // Counters are the process's, and other tests of this file ping, too; this frame alone had nine.
    assert!(
        sent >= 9.0 && accepted >= 1.0 && replaced >= 2.0,
        "{sent} {accepted} {replaced}"
    );

    driver
        .say(json!({"type":"offline","id":"home","session":session}))
        .await;
    assert_eq!(driver.hear("outcome").await["result"], "done");
    driver
        .say(json!({"type":"ping","lat":37.7755,"lon":-122.4190,"seq":9}))
        .await;
    assert_eq!(driver.hear("ping_refused").await["reason"], "not_online");
    let answer = reqwest::Client::new()
        .get(&near)
        .bearer_auth(&ops)
        .send()
        .await
        .unwrap();
    assert_eq!(
        answer.json::<Value>().await.unwrap()["cars"],
        json!([]),
        "offline is never found"
    );
    city.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_too_large_garbage_and_silence_are_closed_with_their_codes() {
    let city = City::with(|gateway, _| {
        gateway.limits.frame_bytes_max = 2_048;
        gateway.timing.heartbeat_ms = 200;
        gateway.timing.silence_ms = 600;
    })
    .await;
    let mut large = city.driver("large").await;
    large
        .stream
        .send(Message::text("x".repeat(4_096)))
        .await
        .unwrap();
    assert_eq!(large.closed().await.0, 1009);

    let mut garbage = city.driver("garbage").await;
    for _ in 0..16 {
        garbage
            .stream
            .send(Message::text("{\"type\":\"fly\"}"))
            .await
            .unwrap();
    }
    assert!(
        garbage.hear("error").await["message"]
            .as_str()
            .unwrap()
            .contains("fly")
    );
    assert_eq!(garbage.closed().await.0, 1007);

    // A client that never reads answers no heartbeat: the server's view of a half-open socket.
    let silent = city.driver("silent").await;
    use tokio::io::AsyncReadExt;
    let tokio_tungstenite::MaybeTlsStream::Plain(mut tcp) = silent.stream.into_inner() else {
        panic!("loopback is plain")
    };
    let mut bytes = Vec::new();
    let read = tokio::time::timeout(support::PATIENCE, tcp.read_to_end(&mut bytes));
    read.await.expect("a silent socket is reaped").ok();
    let code = 4408u16.to_be_bytes();
    assert!(
        bytes.windows(2).any(|pair| pair == code),
        "closed as silent: {bytes:?}"
    );
    city.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_socket_of_the_same_driver_replaces_the_older() {
    let city = City::start().await;
    let mut older = city.driver("d1").await;
    let mut newer = city.driver("d1").await;
    assert_eq!(older.closed().await.0, 4410);
    online(&mut newer).await;
    city.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_beyond_the_bound_are_told_to_come_back() {
    let city = City::with(|gateway, _| gateway.limits.connections_max = 2).await;
    let (_a, _b) = (city.driver("a").await, city.driver("b").await);
    let token = city.token(Role::Driver, "c");
    match city.socket("/v1/driver", Some(&token), None).await {
        Err(WsError::Http(answer)) => {
            assert_eq!(answer.status(), 503);
            assert!(answer.headers().contains_key("retry-after"));
        }
        other => panic!("{:?}", other.err()),
    }
    city.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_repeated_gets_the_same_outcome() {
    let city = City::start().await;
    let mut driver = city.driver("d1").await;
    let session = online(&mut driver).await;
    for _ in 0..2 {
        driver
            .say(json!({"type":"offline","id":"home","session":session}))
            .await;
        let outcome = driver.hear("outcome").await;
        assert_eq!(
            (&outcome["id"], &outcome["result"]),
            (&json!("home"), &json!("done"))
        );
    }
    driver
        .say(json!({"type":"offline","id":"home-2","session":session}))
        .await;
    assert_eq!(driver.hear("outcome").await["result"], "already_done");
    city.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_reconnects_gets_what_was_missed() {
    let city = City::with(|gateway, engine| {
        gateway.timing.cars_near_ms = 100;
        gateway.timing.driver_at_ms = 100;
        engine.offer_receipt_ms = 30_000;
    })
    .await;
    let mut rider = city.rider("ann").await;
    let mut driver = city.driver("d1").await;
    let session = online(&mut driver).await;
    let ride = request(&city, "ann").await;
    assert_eq!(rider.hear("ride").await["ride"], json!(ride));
    driver
        .say(json!({"type":"ping","lat":37.7751,"lon":-122.4190,"seq":1}))
        .await;
    let offer = driver.hear("offer").await;
    drop(driver);

    let mut driver = city.driver("d1").await;
    assert_eq!(
        driver.hear("offer").await["attempt"],
        offer["attempt"],
        "the open offer comes again"
    );
    driver
        .say(json!({"type":"online","id":"again","session":session,"classes":["economy"]}))
        .await;
    assert_eq!(driver.hear("outcome").await["result"], "already_done");
    for (kind, id) in [("received", "m1"), ("accept", "m2")] {
        driver
            .say(json!({"type":kind,"id":id,"ride":ride,"attempt":offer["attempt"]}))
            .await;
        assert_eq!(driver.hear("outcome").await["result"], "done");
    }
    let at = rider.hear("driver_at").await;
    assert!(at["remaining_s"].is_u64(), "{at}");
    drop(driver);
    drop(rider);

    let mut driver = city.driver("d1").await;
    assert_eq!(
        driver.hear("ride").await["stage"],
        "en_route",
        "the held ride comes again"
    );
    let mut rider = city.rider("ann").await;
    assert_eq!(rider.hear("ride").await["stage"], "en_route");
    rider
        .say(json!({"type":"cancel","id":"c1","ride":ride}))
        .await;
    assert_eq!(rider.hear("outcome").await["result"], "done");
    assert_eq!(driver.hear("released").await["stage"], "cancelled");
    city.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_waiting_rider_sees_the_cars_near_and_a_declined_offer_goes_to_the_next() {
    let city = City::with(|gateway, _| gateway.timing.cars_near_ms = 100).await;
    let (mut near, mut far) = (city.driver("near").await, city.driver("far").await);
    for (driver, lat) in [(&mut near, 37.7751), (&mut far, 37.7800)] {
        online(driver).await;
        driver
            .say(json!({"type":"ping","lat":lat,"lon":-122.4194,"seq":1}))
            .await;
    }
    let visible = city.url("/v1/nearby?lat=37.7749&lon=-122.4194&radius=2000&k=5");
    let ops = city.token(Role::Ops, "o");
    until("both cars", async || {
        let answer = reqwest::Client::new()
            .get(&visible)
            .bearer_auth(&ops)
            .send()
            .await
            .unwrap();
        let cars = answer.json::<Value>().await.unwrap();
        (cars["cars"].as_array().unwrap().len() == 2).then_some(())
    })
    .await;
    let mut rider = city.rider("ann").await;
    let ride = request(&city, "ann").await;
    let cars = rider.hear("cars_near").await;
    assert_eq!(cars["ride"], json!(ride));
    let offer = near.hear("offer").await;
    near.say(json!({"type":"decline","id":"no","ride":ride,"attempt":offer["attempt"]}))
        .await;
    assert_eq!(near.hear("outcome").await["result"], "done");
    let next = far.hear("offer").await;
    assert_eq!(next["ride"], json!(ride));
    assert_ne!(
        next["attempt"], offer["attempt"],
        "an attempt is never used twice"
    );
    near.say(json!({"type":"accept","id":"yes","ride":ride,"attempt":offer["attempt"]}))
        .await;
    let late = near.hear("outcome").await;
    assert_eq!(
        (&late["result"], &late["why"]),
        (&json!("refused"), &json!("lapsed"))
    );
    city.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn protobuf_carries_the_same_messages() {
    use cabrank_events::proto::{decode_to_driver, encode_from_driver};
    use cabrank_events::wire::{FromDriver, Ping, ToDriver, WireResult};
    use futures_util::StreamExt;
    let city = City::start().await;
    let token = city.token(Role::Driver, "d1");
    let mut socket = city
        .socket("/v1/driver", Some(&token), Some("cabrank.v1.proto"))
        .await
        .unwrap();
    let ping = |lat: f64, seq: u32| Ping {
        lat,
        lon: -122.4190,
        time: None,
        seq,
        accuracy: None,
    };
    for message in [
        FromDriver::Online {
            id: "m1".into(),
            session: None,
            classes: Default::default(),
        },
        FromDriver::Pings {
            pings: vec![ping(37.7750, 1), ping(37.7751, 2)],
        },
    ] {
        let frame = Message::binary(encode_from_driver(&message));
        socket.stream.send(frame).await.unwrap();
        if matches!(message, FromDriver::Pings { .. }) {
            continue; // answered only when refused
        }
        let hearing = async {
            loop {
                let Some(Ok(Message::Binary(bytes))) = socket.stream.next().await else {
                    continue;
                };
                if let ToDriver::Outcome(outcome) = decode_to_driver(&bytes).unwrap() {
                    return (outcome.id, outcome.result);
                }
            }
        };
        let heard = tokio::time::timeout(support::PATIENCE, hearing)
            .await
            .expect("an outcome");
        assert_eq!(heard, ("m1".to_owned(), WireResult::Done));
    }
    let near = city.url("/v1/nearby?lat=37.7751&lon=-122.4190&radius=500&k=5");
    let ops = city.token(Role::Ops, "o");
    until("the car", async || {
        let answer = reqwest::Client::new()
            .get(&near)
            .bearer_auth(&ops)
            .send()
            .await
            .unwrap();
        let cars = answer.json::<Value>().await.unwrap();
        (cars["cars"].as_array().unwrap().len() == 1).then_some(())
    })
    .await;
    city.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_runs_out_ends_its_session() {
    let city = City::start().await;
    let secret = &city.config.keys.secret;
    let short = cabrank_gateway::token::mint(
        secret,
        Role::Driver,
        "d1",
        std::time::Duration::from_secs(1),
    );
    let mut socket = city
        .socket("/v1/driver", Some(&short.unwrap()), None)
        .await
        .unwrap();
    socket.hear("welcome").await;
    assert_eq!(socket.closed().await.0, 4401);
    city.end().await;
}
