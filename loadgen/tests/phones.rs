//! Phones against a server that misbehaves on purpose: what is repeated, with which id, and after what.

use std::sync::Arc;
use std::time::Duration;

use cabrank_events::wire::{FromDriver, Ping, RideRequest};
use cabrank_events::{DriverId, IdempotencyKey, Place, RiderId, Time, VehicleClass};
use cabrank_geo::Point;
use cabrank_loadgen::client::phone::{Brain, Do, Heard, Phone};
use cabrank_loadgen::client::rider::{Asked, Wish, ask};
use cabrank_loadgen::client::{Context, Phase};
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};

const PATIENCE: Duration = Duration::from_secs(20);

async fn listener() -> (TcpListener, Arc<Context>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let mint = Arc::new(|role: cabrank_loadgen::client::Role, subject: &str| {
        format!("{}-{subject}", role.name())
    });
    (listener, Context::new(&url, mint, 1.0).unwrap())
}

/// Goes online, pings once, and does what it is told to.
struct Simple {
    then: Vec<Do>,
}

impl Brain for Simple {
    fn begin(&mut self, now: Time, out: &mut Vec<Do>) {
        out.push(Do::Online);
        let ping = Ping {
            lat: 1.0,
            lon: 2.0,
            time: Some(now.0),
            seq: 1,
            accuracy: None,
        };
        out.push(Do::Ping(ping));
    }
    fn handle_heard(&mut self, _: Time, heard: Heard<'_>, out: &mut Vec<Do>) {
        if matches!(heard, Heard::Online) {
            out.append(&mut self.then);
        }
    }
    fn poll_time(&self) -> Option<Time> {
        None
    }
    fn handle_time(&mut self, _: Time, _: &mut Vec<Do>) {}
    fn handle_ending(&mut self, _: Time, _: &mut Vec<Do>) {}
}

type Socket = WebSocketStream<TcpStream>;

/// Takes the next phone and greets it.
#[allow(
    clippy::result_large_err,
    reason = "the callback's error type is the library's"
)]
async fn greet(listener: &TcpListener) -> Socket {
    let (stream, _) = timeout(PATIENCE, listener.accept()).await.unwrap().unwrap();
    let check = |request: &Request, response: Response| {
        assert_eq!(request.uri().path(), "/v1/driver");
        assert_eq!(request.headers()["authorization"], "Bearer driver-d1");
        Ok(response)
    };
    let mut socket = tokio_tungstenite::accept_hdr_async(stream, check)
        .await
        .unwrap();
    let welcome =
        r#"{"type":"welcome","driver":"d1","time":1000,"heartbeat_s":30,"pings_per_second":5}"#;
    socket.send(Message::text(welcome)).await.unwrap();
    socket
}

async fn hear(socket: &mut Socket) -> FromDriver {
    loop {
        let frame = timeout(PATIENCE, socket.next())
            .await
            .expect("the phone is silent");
        if let Message::Text(text) = frame.expect("the phone hung up").unwrap() {
            return serde_json::from_str(&text).unwrap();
        }
    }
}

async fn answer(socket: &mut Socket, id: &str, more: &str) {
    let outcome = format!(r#"{{"type":"outcome","id":"{id}",{more}}}"#);
    socket.send(Message::text(outcome)).await.unwrap();
}

fn online(message: FromDriver) -> (String, Option<u64>) {
    match message {
        FromDriver::Online { id, session, .. } => (id, session.map(|session| session.0)),
        other => panic!("expected online, heard {other:?}"),
    }
}

fn launch(context: &Arc<Context>, then: Vec<Do>) -> watch::Sender<Phase> {
    let (phase, follow) = watch::channel(Phase::Running);
    let driver = DriverId::new("d1").unwrap();
    tokio::spawn(Phone::new(Arc::clone(context), driver, Simple { then }, 1).run(follow));
    phase
}

#[tokio::test]
async fn a_command_is_repeated_with_its_id_until_its_outcome_is_known() {
    let (listener, context) = listener().await;
    let _phase = launch(&context, vec![]);
    let mut socket = greet(&listener).await;
    let (first, session) = online(hear(&mut socket).await);
    assert_eq!(session, None);
    answer(&mut socket, &first, r#""result":"unknown""#).await;
    let (second, _) = online(hear(&mut socket).await);
    assert_eq!(second, first, "after `unknown` the same id");
    drop(socket);
    let mut socket = greet(&listener).await;
    let (third, _) = online(hear(&mut socket).await);
    assert_eq!(third, first, "on a new socket the same id");
    answer(&mut socket, &third, r#""result":"done","session":7"#).await;
    let ping = hear(&mut socket).await;
    assert!(
        matches!(ping, FromDriver::Ping(_)),
        "pings wait for the session, heard {ping:?}"
    );
    drop(socket);
    let mut socket = greet(&listener).await;
    let (resumed, session) = online(hear(&mut socket).await);
    assert_eq!(session, Some(7), "the session is resumed");
    assert_ne!(resumed, first, "this is another message");
    assert_eq!(context.counts().pings_sent, 1, "a ping is never repeated");
}

#[tokio::test]
async fn commands_go_one_at_a_time_and_a_refused_session_begins_anew() {
    let (listener, context) = listener().await;
    let hold = cabrank_events::HoldId {
        ride: "1-2-3".parse().unwrap(),
        attempt: 4,
    };
    use cabrank_loadgen::client::phone::Say;
    let then = vec![
        Do::Say(Say::Arrived, hold),
        Do::Say(Say::Started, hold),
        Do::HangUp,
    ];
    let _phase = launch(&context, then);
    let mut socket = greet(&listener).await;
    let (id, _) = online(hear(&mut socket).await);
    answer(&mut socket, &id, r#""result":"done","session":7"#).await;
    assert!(matches!(hear(&mut socket).await, FromDriver::Ping(_)));
    let FromDriver::Arrived {
        id: arrived,
        attempt: 4,
        ..
    } = hear(&mut socket).await
    else {
        panic!("expected arrived");
    };
    drop(socket); // the outcome is lost with it
    let mut socket = greet(&listener).await;
    let (id, session) = online(hear(&mut socket).await);
    assert_eq!(session, Some(7));
    answer(
        &mut socket,
        &id,
        r#""result":"refused","why":"old_session""#,
    )
    .await;
    let (id, session) = online(hear(&mut socket).await);
    assert_eq!(session, None, "a session that is over is not resumed again");
    answer(&mut socket, &id, r#""result":"done","session":8"#).await;
    let FromDriver::Arrived { id, .. } = hear(&mut socket).await else {
        panic!("expected arrived")
    };
    assert_eq!(id, arrived);
    answer(&mut socket, &id, r#""result":"already_done""#).await;
    let FromDriver::Started { id, .. } = hear(&mut socket).await else {
        panic!("expected started")
    };
    answer(&mut socket, &id, r#""result":"done""#).await;
    let closed = timeout(PATIENCE, async {
        while let Some(Ok(frame)) = socket.next().await {
            if matches!(frame, Message::Close(_)) {
                return true;
            }
        }
        false
    });
    assert!(
        closed.await.unwrap(),
        "the phone hangs up with a close once all is said"
    );
}

#[tokio::test]
async fn a_wish_is_repeated_with_its_key_until_it_is_answered() {
    let (listener, context) = listener().await;
    let server = tokio::spawn(async move {
        let mut keys = Vec::new();
        for answer in [
            Some(
                "HTTP/1.1 503 Busy\r\nretry-after: 0\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
            ),
            None, // the connection is cut before the answer
            Some(
                "HTTP/1.1 201 Created\r\ncontent-length: 26\r\nconnection: close\r\n\r\n{\"ride\":\"1-2-3\",\"key\":\"k\"}",
            ),
        ] {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut text = String::new();
            while !text.contains("\"class\"") {
                let mut bytes = [0; 4096];
                let count = stream.read(&mut bytes).await.unwrap();
                assert!(count > 0, "the request ended early: {text}");
                text.push_str(std::str::from_utf8(&bytes[..count]).unwrap());
            }
            let lower = text.to_lowercase();
            assert!(lower.contains("authorization: bearer rider-r1"), "{text}");
            let key = lower.split_once("idempotency-key: ").unwrap().1;
            keys.push(key.split_once('\r').unwrap().0.to_owned());
            if let Some(answer) = answer {
                stream.write_all(answer.as_bytes()).await.unwrap();
                stream.shutdown().await.unwrap();
            }
        }
        keys
    });
    let now = Instant::now();
    let wish = Wish {
        rider: RiderId::new("r1").unwrap(),
        key: IdempotencyKey::new("k").unwrap(),
        request: RideRequest {
            pickup: Place(Point::new(37.7, -122.4).unwrap()),
            dropoff: None,
            class: VehicleClass::Economy,
            issued_at: Some(Time(5)),
        },
        due: now,
        give_up: now + PATIENCE,
    };
    let asked = timeout(PATIENCE, ask(&context, &wish)).await.unwrap();
    assert_eq!(asked, Asked::Opened("1-2-3".parse().unwrap()));
    assert_eq!(server.await.unwrap(), ["k", "k", "k"]);
    let rides = context.ledger.totals().rides;
    assert_eq!(
        (rides.requested, rides.acknowledged, rides.unknown),
        (1, 1, 0)
    );
}
