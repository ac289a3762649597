//! RFC 6455 over a real driver's socket: pieces, pings between them, goodbyes, and every way to break the rules.

mod support;

use std::time::Duration;

use cabrank_gateway::token::Role;
use futures_util::{SinkExt, StreamExt};
use serde_json::json;
use support::{City, PATIENCE, Socket, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::MaybeTlsStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};

/// The bare stream of a greeted driver's socket.
async fn bare(city: &City, driver: &str) -> TcpStream {
    match city.driver(driver).await.stream.into_inner() {
        MaybeTlsStream::Plain(tcp) => tcp,
        _ => panic!("loopback is plain"),
    }
}

/// Everything the server sends until it hangs up.
async fn rest(tcp: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    let reading = tokio::time::timeout(PATIENCE, tcp.read_to_end(&mut bytes));
    // A reset ends it, too.
    let _ = reading.await.expect("the server hangs up");
    bytes
}

/// A masked frame with a mask of zeros.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    assert!(payload.len() < 126);
    let head = [first, 0x80 | payload.len() as u8, 0, 0, 0, 0];
    [&head[..], payload].concat()
}

async fn send(socket: &mut Socket, frames: Vec<Frame>) {
    for frame in frames {
        socket.stream.send(Message::Frame(frame)).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_in_pieces_is_one_and_pings_between_them_are_answered() {
    let city = City::start().await;
    let mut phone = city.driver("d1").await;
    let text = json!({"type":"online","id":"go","classes":["economy"]}).to_string();
    let (one, two) = text.as_bytes().split_at(20);
    let piece = |bytes: &[u8], opcode, is_last| {
        Frame::message(bytes.to_vec(), OpCode::Data(opcode), is_last)
    };
    let frames = vec![
        piece(one, Data::Text, false),
        Frame::ping("alive?".as_bytes().to_vec()),
        piece(two, Data::Continue, true),
    ];
    send(&mut phone, frames).await;
    let pong = phone.stream.next().await.unwrap().unwrap();
    assert_eq!(pong, Message::Pong("alive?".into()));
    assert_eq!(phone.hear("outcome").await["result"], "done");
    city.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_may_come_byte_by_byte_and_many_at_once() {
    let city = City::start().await;
    let mut tcp = bare(&city, "d1").await;
    tcp.set_nodelay(true).unwrap();
    let ping = |seq: u32| {
        let text = json!({"type":"ping","lat":37.77,"lon":-122.42,"seq":seq});
        frame(0x81, text.to_string().as_bytes())
    };
    for byte in ping(1) {
        tcp.write_all(&[byte]).await.unwrap();
        tcp.flush().await.unwrap();
        tokio::task::yield_now().await;
    }
    let many: Vec<u8> = (2..12).flat_map(ping).collect();
    tcp.write_all(&many).await.unwrap();
    until("all pings to be counted", async || {
        (city.counters.snapshot().sent == 11).then_some(())
    })
    .await;
    city.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_goodbye_is_answered_in_kind_and_the_server_hangs_up() {
    let city = City::with(|gateway, _| gateway.timing.close_ms = 60_000).await;
    for payload in [&b""[..], &[0x03, 0xe8, b'b', b'y', b'e'], &[0x0f, 0xa0]] {
        let mut tcp = bare(&city, "d1").await;
        // Nothing is heard after it.
        let more = frame(0x81, b"{\"type\":\"fly\"}");
        let all = [frame(0x88, payload), more].concat();
        tcp.write_all(&all).await.unwrap();
        let answer = [&[0x88, payload.len() as u8][..], payload].concat();
        assert_eq!(rest(&mut tcp).await, answer);
    }
    city.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_breaks_the_protocol_is_told_how_and_nobody_else_is_hurt() {
    let city = City::start().await;
    let mut neighbour = city.driver("neighbour").await;
    neighbour.online(&["economy"]).await;
    let unmasked = [&[0x81, 2][..], b"{}"].concat();
    let huge = [&[0x82, 0xff][..], &u64::MAX.to_be_bytes(), &[0; 4]].concat();
    let half = [frame(0x01, b"{"), frame(0x81, b"{}")].concat();
    for (n, (bytes, code)) in [
        (unmasked, 1002_u16),
        (frame(0xc1, b"{}"), 1002),
        (frame(0x83, b"{}"), 1002),
        (frame(0x80, b"{}"), 1002),
        (frame(0x09, b"half a ping"), 1002),
        (frame(0x88, &[3]), 1002),
        (frame(0x88, &1005_u16.to_be_bytes()), 1002),
        (half, 1002),
        (frame(0x81, &[0xff, 0xfe]), 1007),
        (huge, 1009),
    ]
    .into_iter()
    .enumerate()
    {
        let mut tcp = bare(&city, "d1").await;
        tcp.write_all(&bytes).await.unwrap();
        let told = rest(&mut tcp).await;
        assert_eq!(told[0], 0x88, "case {n}: {told:x?}");
        assert_eq!(told[2..4], code.to_be_bytes(), "case {n}: {told:x?}");
        neighbour.ping(37.77, -122.42, n as u32 + 1).await;
    }
    until("the neighbour's pings", async || {
        (city.counters.snapshot().accepted == 10).then_some(())
    })
    .await;
    city.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_hangs_up_without_a_word_makes_room_at_once() {
    let city = City::with(|gateway, _| gateway.limits.connections_max = 1).await;
    let token = city.token(Role::Driver, "d1");
    for _ in 0..3 {
        let mut phone = until("room for one", async || {
            city.socket("/v1/driver", Some(&token), None).await.ok()
        })
        .await;
        phone.hear("welcome").await;
        assert!(city.socket("/v1/driver", Some(&token), None).await.is_err());
    }
    city.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_behind_the_handshake_in_one_write_are_heard() {
    let city = City::start().await;
    let mut tcp = TcpStream::connect(city.address).await.unwrap();
    let request = format!(
        "GET /v1/driver HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Authorization: Bearer {}\r\n\r\n",
        city.token(Role::Driver, "d1")
    );
    let ping = frame(0x81, br#"{"type":"ping","lat":37.77,"lon":-122.42}"#);
    let all = [request.as_bytes(), &ping, &ping[..9]].concat();
    tcp.write_all(&all).await.unwrap();
    tcp.write_all(&ping[9..]).await.unwrap();
    until("both pings", async || {
        (city.counters.snapshot().sent == 2).then_some(())
    })
    .await;
    let mut answer = vec![0; 200];
    let read = tokio::time::timeout(Duration::from_secs(20), tcp.read(&mut answer));
    let read = read.await.unwrap().unwrap();
    let answer = String::from_utf8_lossy(&answer[..read]).to_lowercase();
    assert!(answer.starts_with("http/1.1 101"), "{answer}");
    // The key of RFC 6455, 1.3.
    assert!(
        answer.contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo="),
        "{answer}"
    );
    city.end().await;
}
