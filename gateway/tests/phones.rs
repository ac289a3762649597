//! Phones that go away, fall silent, do not read, or talk nonsense; and what phones hear when others change their mind.

mod support;

use cabrank_events::proto;
use cabrank_events::wire::{FromDriver, FromRider, Ping, RideStage, ToDriver, ToRider, WireResult};
use cabrank_gateway::token::Role;
use futures_util::stream::SplitStream;
use futures_util::{SinkExt, StreamExt};
use reqwest::Method;
use serde_json::{Value, json};
use support::{City, PATIENCE, Socket, Who, answered, refusal, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

type Reading = SplitStream<WebSocketStream<MaybeTlsStream<TcpStream>>>;

const ANN: Who<'static> = Some((Role::Rider, "ann"));

/// A free driver next to the pickup.
async fn free_driver(city: &City, id: &str) -> Socket {
    let mut driver = city.driver(id).await;
    driver.online(&["economy"]).await;
    driver.ping(37.7751, -122.4190, 1).await;
    driver
}

#[tokio::test(flavor = "multi_thread")]
async fn an_offer_that_is_over_is_withdrawn_from_the_phone() {
    let city = City::with(|_, engine| engine.offer_answer_ms = 700).await;
    let mut driver = free_driver(&city, "d1").await;
    let ride = city.ride("ann", "k1").await;
    let called_off = driver.hear("offer").await;
    assert_eq!(called_off["ride"], ride);
    let body = json!({"key":"k1"});
    answered(city.post("/v1/cancel", ANN, &body).await, 200).await;
    let over = json!({"type":"withdrawn","ride":ride,"attempt":called_off["attempt"]});
    assert_eq!(driver.hear_any(&["withdrawn", "released"]).await, over);
    let late = driver.report("accept", &called_off).await;
    assert_eq!(
        (&late["result"], &late["why"]),
        (&json!("refused"), &json!("ended"))
    );

    // The next one is received and never answered. The phone reconnects, gets it again, and hears of its end.
    city.ride("bob", "k1").await;
    let offer = driver.hear("offer").await;
    driver.reports(&["received"], &offer).await;
    let mut driver = city.driver("d1").await;
    let again = driver.hear("offer").await;
    assert_eq!(
        (&again["ride"], &again["attempt"]),
        (&offer["ride"], &offer["attempt"])
    );
    let over = json!({"type":"withdrawn","ride":offer["ride"],"attempt":offer["attempt"]});
    assert_eq!(driver.hear_any(&["withdrawn", "released"]).await, over);
    let late = driver.report("accept", &offer).await;
    assert_eq!(
        (&late["result"], &late["why"]),
        (&json!("refused"), &json!("lapsed"))
    );
    city.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_offer_nobody_confirms_is_withdrawn_and_another_car_is_asked() {
    let city = City::with(|_, engine| engine.offer_receipt_ms = 500).await;
    let mut deaf = free_driver(&city, "deaf").await;
    city.ride("ann", "k1").await;
    let offer = deaf.hear("offer").await;
    let mut awake = free_driver(&city, "awake").await;
    assert_eq!(deaf.hear("withdrawn").await["attempt"], offer["attempt"]);
    let next = awake.hear("offer").await;
    assert_eq!(next["ride"], offer["ride"]);
    awake.reports(&["received", "accept"], &next).await;
    let late = deaf.report("received", &offer).await;
    assert_eq!(
        (&late["result"], &late["why"]),
        (&json!("refused"), &json!("lapsed"))
    );
    // A rider who connects only now hears who comes.
    let ride = city.rider("ann").await.hear("ride").await;
    assert_eq!(
        (&ride["stage"], &ride["driver"]),
        (&json!("en_route"), &json!("awake"))
    );
    city.end().await;
}

/// Reads Protobuf messages until one is `wanted`.
async fn heard<Out: std::fmt::Debug, T>(
    socket: &mut Socket,
    decode: impl Fn(&[u8]) -> Out,
    mut wanted: impl FnMut(Out) -> Option<T>,
) -> T {
    let hearing = async {
        loop {
            match socket.stream.next().await {
                Some(Ok(Message::Binary(bytes))) => {
                    if let Some(found) = wanted(decode(&bytes)) {
                        return found;
                    }
                }
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                other => panic!("only Protobuf is spoken here: {other:?}"),
            }
        }
    };
    tokio::time::timeout(PATIENCE, hearing)
        .await
        .expect("the message did not come")
}

fn to_driver(bytes: &[u8]) -> ToDriver {
    proto::decode_to_driver(bytes).unwrap()
}

fn to_rider(bytes: &[u8]) -> ToRider {
    proto::decode_to_rider(bytes).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_ride_in_protobuf() {
    let city = City::with(|gateway, _| {
        gateway.timing.cars_near_ms = 100;
        gateway.timing.driver_at_ms = 100;
    })
    .await;
    let connect = async |path, token: String| {
        let socket = city
            .socket(path, Some(&token), Some("cabrank.v1.proto"))
            .await;
        socket.unwrap()
    };
    let mut driver = connect("/v1/driver", city.token(Role::Driver, "d1")).await;
    let mut rider = connect("/v1/rider", city.token(Role::Rider, "ann")).await;
    let welcome = heard(&mut driver, to_driver, |message| match message {
        ToDriver::Welcome { driver, .. } => Some(driver),
        _ => None,
    });
    assert_eq!(welcome.await.as_str(), "d1");
    let say = async |driver: &mut Socket, message: FromDriver| {
        let bytes = proto::encode_from_driver(&message);
        driver.stream.send(Message::binary(bytes)).await.unwrap();
    };
    let outcome = async |driver: &mut Socket, message: FromDriver| {
        say(driver, message).await;
        let result = |message| match message {
            ToDriver::Outcome(outcome) => Some(outcome.result),
            _ => None,
        };
        heard(driver, to_driver, result).await
    };
    let online = FromDriver::Online {
        id: "m1".into(),
        session: None,
        classes: Default::default(),
    };
    assert_eq!(outcome(&mut driver, online).await, WireResult::Done);
    let opened = city.ride("ann", "k1").await;
    let near = |message| {
        matches!(message, ToRider::CarsNear { cars, .. } if cars.is_empty()).then_some(())
    };
    heard(&mut rider, to_rider, near).await;
    let ping = |lat| Ping {
        lat,
        lon: -122.4190,
        time: None,
        seq: 1,
        accuracy: Some(5.0),
    };
    let pings = vec![ping(95.0), ping(37.7751)];
    say(&mut driver, FromDriver::Pings { pings }).await;
    let offer = |message| match message {
        ToDriver::Offer { ride, attempt, .. } => Some((ride, attempt)),
        _ => None,
    };
    let (ride, attempt) = heard(&mut driver, to_driver, offer).await;
    assert_eq!(ride.to_string(), opened);
    let id = String::from;
    for (message, stage) in [
        (
            FromDriver::Received {
                id: id("m2"),
                ride,
                attempt,
            },
            RideStage::Offered,
        ),
        (
            FromDriver::Accept {
                id: id("m3"),
                ride,
                attempt,
            },
            RideStage::EnRoute,
        ),
        (
            FromDriver::Arrived {
                id: id("m4"),
                ride,
                attempt,
            },
            RideStage::Arrived,
        ),
        (
            FromDriver::Started {
                id: id("m5"),
                ride,
                attempt,
            },
            RideStage::Started,
        ),
        (
            FromDriver::Completed {
                id: id("m6"),
                ride,
                attempt,
            },
            RideStage::Completed,
        ),
    ] {
        assert_eq!(outcome(&mut driver, message).await, WireResult::Done);
        let reached =
            |message| matches!(message, ToRider::Ride(view) if view.stage == stage).then_some(());
        heard(&mut rider, to_rider, reached).await;
        if stage == RideStage::EnRoute {
            let at = |message| {
                matches!(
                    message,
                    ToRider::DriverAt {
                        remaining_s: Some(_),
                        ..
                    }
                )
                .then_some(())
            };
            heard(&mut rider, to_rider, at).await;
        }
    }
    let cancel = FromRider::Cancel { id: id("c1"), ride };
    let bytes = proto::encode_from_rider(&cancel);
    rider.stream.send(Message::binary(bytes)).await.unwrap();
    let why = |message| match message {
        ToRider::Outcome(outcome) => Some((outcome.result, outcome.why.is_some())),
        _ => None,
    };
    assert_eq!(
        heard(&mut rider, to_rider, why).await,
        (WireResult::Refused, true)
    );

    // Text, or bytes that are no message: named, and the session goes on.
    for garbage in [Message::text("{}"), Message::binary(vec![0xff; 9])] {
        rider.stream.send(garbage).await.unwrap();
        let error = |message| match message {
            ToRider::Error { message } => Some(message),
            _ => None,
        };
        assert!(!heard(&mut rider, to_rider, error).await.is_empty());
    }
    let bytes = proto::encode_from_rider(&cancel);
    rider.stream.send(Message::binary(bytes)).await.unwrap();
    assert_eq!(
        heard(&mut rider, to_rider, why).await,
        (WireResult::Refused, true)
    );
    city.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_subprotocol_is_refused_by_name_and_no_socket_at_all_too() {
    let city = City::start().await;
    for (path, who) in [
        ("/v1/driver", Some((Role::Driver, "d1"))),
        ("/v1/rider", ANN),
    ] {
        let call = city.call(Method::GET, path, who);
        let call = call.header("Sec-WebSocket-Protocol", "soap, cabrank.v2.json");
        let refused = refusal(call.send().await.unwrap()).await;
        let remedy = "offer the subprotocol cabrank.v1.json or cabrank.v1.proto, or none for JSON";
        refused.is(400, "wrong_subprotocol", remedy);
        let refused = refusal(city.get(path, who).await).await;
        refused.is(400, "bad_request", "this is a WebSocket");
    }
    // One that is known among others is enough.
    let token = city.token(Role::Driver, "d1");
    let offered = "soap, cabrank.v1.json";
    let mut socket = city
        .socket("/v1/driver", Some(&token), Some(offered))
        .await
        .unwrap();
    socket.hear("welcome").await;
    city.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nonsense_is_named_and_the_session_goes_on_until_there_is_too_much_in_a_row() {
    let city = City::start().await;
    let mut driver = city.driver("d1").await;
    let most = city.config.limits.misunderstood_max;
    // One short of too many, then something sensible, and again: only a row counts.
    for n in 0..2 {
        for _ in 1..most {
            driver
                .stream
                .send(Message::text("{\"type\":\"fly\"}"))
                .await
                .unwrap();
            let error = driver.hear("error").await;
            let message = error["message"].as_str().unwrap();
            assert!(
                message.contains("fly") && message.contains("accept"),
                "{message}"
            );
        }
        driver
            .say(json!({"type":"online","id":format!("m{n}"),"classes":["economy"]}))
            .await;
        assert_eq!(driver.hear("outcome").await["id"], format!("m{n}"));
    }
    for (garbage, what) in [
        (Message::text("not JSON"), "expected"),
        (Message::text("{}"), "type"),
        (
            Message::text(r#"{"type":"offline","id":"a b","session":1}"#),
            "use letters, digits",
        ),
        (
            Message::text(r#"{"type":"accept","id":"m1","ride":"x","attempt":1}"#),
            "three numbers like",
        ),
        (
            Message::text(r#"{"type":"online","id":"m9","classes":[]}"#),
            "name at least one",
        ),
        (
            Message::binary(vec![1, 2, 3]),
            "send JSON text frames, or ask for cabrank.v1.proto",
        ),
    ] {
        driver.stream.send(garbage).await.unwrap();
        let error = driver.hear("error").await;
        assert!(error["message"].as_str().unwrap().contains(what), "{error}");
    }
    for _ in 0..most {
        driver.stream.send(Message::text("fly")).await.unwrap();
    }
    assert_eq!(driver.closed().await.0, 1007);
    city.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_beyond_the_bound_closes_the_socket_however_it_is_cut() {
    let city = City::with(|gateway, _| gateway.limits.frame_bytes_max = 1_024).await;
    let mut rider = city.rider("ann").await;
    rider
        .stream
        .send(Message::text("x".repeat(1_025)))
        .await
        .unwrap();
    assert_eq!(rider.closed().await.0, 1009);
    // Three fragments, none of them too large by itself.
    let mut driver = city.driver("d1").await;
    for (opcode, is_last) in [
        (Data::Text, false),
        (Data::Continue, false),
        (Data::Continue, true),
    ] {
        let part = Frame::message(vec![b'x'; 500], OpCode::Data(opcode), is_last);
        driver.stream.send(Message::Frame(part)).await.unwrap();
    }
    assert_eq!(driver.closed().await.0, 1009);
    city.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_dead_are_reaped_and_a_quiet_phone_that_answers_heartbeats_is_not() {
    let city = City::with(|gateway, _| {
        gateway.timing.heartbeat_ms = 150;
        gateway.timing.silence_ms = 1_500;
        gateway.timing.outcome_timeout_ms = 1_900;
        gateway.timing.http_idle_ms = 2_000;
    })
    .await;
    let mut quiet = city.rider("quiet").await;
    // Reading answers heartbeats; nothing else is ever said on this socket.
    let quiet = tokio::spawn(async move { quiet.hear("ride").await });
    let dead = city.driver("dead").await;
    // Half a request, and none at all: connections, but nobody there.
    let mut half = TcpStream::connect(city.address).await.unwrap();
    half.write_all(b"GET /healthz HTTP/1.1\r\nHost:")
        .await
        .unwrap();
    let mut none = TcpStream::connect(city.address).await.unwrap();
    for tcp in [&mut half, &mut none] {
        let mut bytes = Vec::new();
        let cut = tokio::time::timeout(PATIENCE, tcp.read_to_end(&mut bytes));
        cut.await.expect("an idle connection is cut").ok();
    }
    let silent = r#"cabrank_sockets_closed_total{role="driver",cause="silent"}"#;
    until("the dead phone to be reaped", async || {
        (city.counter(silent).await == 1).then_some(())
    })
    .await;
    drop(dead);
    // Older than the dead one, and alive: it still hears of its ride.
    city.ride("quiet", "k1").await;
    assert_eq!(quiet.await.unwrap()["rider"], "quiet");
    city.end().await;
}

/// Keeps asking for answers that nobody reads, until the connection ends.
fn flood(socket: Socket, sensible: &Value) -> (JoinHandle<()>, Reading) {
    let (mut sink, reading) = socket.stream.split();
    // Half a kilobyte of nonsense comes back as an error of as much.
    let nonsense = json!({"type":"\u{1f695}".repeat(140)}).to_string();
    // Something sensible now and then: nonsense in a row would close the socket for another reason.
    let sensible = sensible.to_string();
    let saying = tokio::spawn(async move {
        loop {
            for text in std::iter::repeat_n(&nonsense, 15).chain([&sensible]) {
                if sink.send(Message::text(text.as_str())).await.is_err() {
                    return;
                }
            }
        }
    });
    (saying, reading)
}

/// Waits until the server has stopped reading from `role`'s phones: its writes wait, too.
async fn stuck(city: &City, role: &str) {
    let name = format!("cabrank_misunderstood_total{{role=\"{role}\"}}");
    let (mut last, mut same) = (0, 0);
    until("the server to wait for the phone", async || {
        let count = city.counter(&name).await;
        same = if count == last && count > 0 {
            same + 1
        } else {
            0
        };
        last = count;
        (same >= 40).then_some(())
    })
    .await;
}

/// Reads what has piled up, to the close frame.
async fn goodbye(mut reading: Reading) -> (u16, String) {
    let reading = async {
        loop {
            match reading.next().await {
                Some(Ok(Message::Close(Some(frame)))) => {
                    return (u16::from(frame.code), frame.reason.to_string());
                }
                Some(Ok(_)) => {}
                other => panic!("waiting for the close frame: {other:?}"),
            }
        }
    };
    tokio::time::timeout(PATIENCE, reading)
        .await
        .expect("no close frame came")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_phone_that_does_not_read_is_closed_when_its_queue_is_full_and_nobody_else_is_hurt() {
    let city = City::with(|gateway, engine| {
        gateway.limits.session_queue_max = 8;
        gateway.limits.frames_per_second = 0;
        gateway.limits.requests_per_minute = 0;
        gateway.timing.close_ms = 20_000;
        engine.keys_max = 1_000;
    })
    .await;
    let token = city.token(Role::Rider, "ann");
    let cancel = json!({"type":"cancel","id":"c1","ride":"0-0-1"});
    let (saying, reading) = flood(city.narrow_socket("/v1/rider", &token).await, &cancel);
    stuck(&city, "rider").await;

    // Others ride as if nothing were.
    let mut driver = free_driver(&city, "d1").await;
    let mut bob = city.rider("bob").await;
    city.ride("bob", "k1").await;
    let offer = driver.hear("offer").await;
    let all = ["received", "accept", "arrived", "started", "completed"];
    driver.reports(&all, &offer).await;
    while bob.hear("ride").await["stage"] != "completed" {}

    // Each of ann's rides makes at least three pieces of news for her phone: asked for, offered, called off.
    let slow = r#"cabrank_sockets_closed_total{role="rider",cause="slow_reader"}"#;
    let mut rides = 0;
    until("the full queue to close the socket", async || {
        rides += 1;
        let key = format!("k{rides}");
        city.ride("ann", &key).await;
        let offer = driver.hear("offer").await;
        answered(city.post("/v1/cancel", ANN, &json!({"key":key})).await, 200).await;
        assert_eq!(driver.hear("withdrawn").await["ride"], offer["ride"]);
        (city.counter(slow).await == 1).then_some(())
    })
    .await;
    assert!(
        rides <= 4,
        "eight pieces of news have room, not those of {rides} rides"
    );
    saying.abort();
    assert_eq!(goodbye(reading).await, (4409, "slow reader".into()));

    // Who comes back and reads is up to date at once.
    let ride = city.ride("ann", "next").await;
    let mut ann = city.rider("ann").await;
    assert_eq!(ann.hear("ride").await["ride"], ride);
    city.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_phone_that_does_not_read_is_closed_in_time_even_without_news() {
    let city = City::with(|gateway, _| {
        gateway.limits.frames_per_second = 0;
        gateway.timing.heartbeat_ms = 300;
        gateway.timing.silence_ms = 1_000;
        gateway.timing.close_ms = 20_000;
    })
    .await;
    let token = city.token(Role::Driver, "d1");
    let ping = json!({"type":"ping","lat":37.77,"lon":-122.42});
    let (saying, reading) = flood(city.narrow_socket("/v1/driver", &token).await, &ping);
    let slow = r#"cabrank_sockets_closed_total{role="driver",cause="slow_reader"}"#;
    until("the stuck socket to be closed", async || {
        (city.counter(slow).await == 1).then_some(())
    })
    .await;
    saying.abort();
    assert_eq!(goodbye(reading).await, (4409, "slow reader".into()));
    city.end().await;
}
