//! What the sockets refuse, and what comes back to those who lost theirs. Each stated limit has its story.

mod support;

use cabrank_gateway::token::Role;
use futures_util::SinkExt;
use serde_json::json;
use support::{City, Socket, refusal, until};
use tokio_tungstenite::tungstenite::{Error as WsError, Message};

fn status_of(refused: Result<Socket, WsError>) -> u16 {
    match refused {
        Err(WsError::Http(answer)) => answer.status().as_u16(),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("the socket was opened"),
    }
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
    newer.online(&["economy"]).await;
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
    let session = driver.online(&["economy"]).await;
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
    let session = driver.online(&["economy"]).await;
    let ride = city.ride("ann", "k1").await;
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
        driver.online(&["economy"]).await;
        driver
            .say(json!({"type":"ping","lat":lat,"lon":-122.4194,"seq":1}))
            .await;
    }
    until("both cars", async || {
        (city.cars("lat=37.7749&lon=-122.4194").await.len() == 2).then_some(())
    })
    .await;
    let mut rider = city.rider("ann").await;
    let ride = city.ride("ann", "k1").await;
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

#[tokio::test(flavor = "multi_thread")]
async fn readiness_falls_while_draining_and_the_drain_ends_in_time() {
    let city = City::with(|gateway, _| {
        gateway.timing.move_ms = 1_500;
        gateway.timing.drain_ms = 4_000;
    })
    .await;
    assert_eq!(city.get("/readyz", None).await.status(), 200);
    let mut driver = city.driver("d1").await;
    city.stop.cancel();
    driver.hear("move").await;
    let ready = refusal(city.get("/readyz", None).await).await;
    ready.is(503, "going_down", "connect again");
    let token = city.token(Role::Driver, "d2");
    let late = city.socket("/v1/driver", Some(&token), None).await;
    assert_eq!(status_of(late), 503, "no new sockets");
    assert_eq!(driver.closed().await.0, 1012);
    let served = tokio::time::timeout(std::time::Duration::from_secs(6), city.serving)
        .await
        .unwrap();
    assert_eq!(served.unwrap().unwrap().cut_off, 0);
}
