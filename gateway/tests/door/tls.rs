//! HTTP and sockets over TLS, with an authority that is thrown away: who is refused, and what a new certificate changes.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cabrank_gateway::token::Role;
use futures_util::{SinkExt, StreamExt};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::support::authority::Authority;
use crate::support::{City, PATIENCE, Socket, until, wish};

const NAME: &str = "cabrank.test";

impl Authority {
    /// Opens a connection as a phone does that believes this authority alone.
    async fn connect_with(
        &self,
        city: &City,
        name: &'static str,
        versions: &[&'static SupportedProtocolVersion],
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add(self.root.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let tcp = TcpStream::connect(city.address).await?;
        let name = ServerName::try_from(name).unwrap();
        TlsConnector::from(Arc::new(config))
            .connect(name, tcp)
            .await
    }

    async fn connect(&self, city: &City) -> std::io::Result<TlsStream<TcpStream>> {
        self.connect_with(city, NAME, &[&rustls::version::TLS13])
            .await
    }

    /// A socket over TLS; `protocol` is the subprotocol, beside the token's item.
    async fn socket(
        &self,
        city: &City,
        path: &str,
        token: &str,
        protocol: &str,
    ) -> Socket<TlsStream<TcpStream>> {
        let mut request = format!("wss://{NAME}{path}").into_client_request().unwrap();
        let offered = format!("{protocol}, bearer.{token}").parse().unwrap();
        request
            .headers_mut()
            .insert("sec-websocket-protocol", offered);
        let tls = self.connect(city).await.unwrap();
        let (stream, answer) = tokio_tungstenite::client_async(request, tls).await.unwrap();
        assert_eq!(answer.headers()["sec-websocket-protocol"], protocol);
        Socket { stream }
    }
}

/// The files a gateway reads.
struct Files {
    _dir: tempfile::TempDir,
    certificate: PathBuf,
    key: PathBuf,
}

impl Files {
    fn new((certificate, key): &(String, String)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (certificate_file, key_file) =
            (dir.path().join("cert.pem"), dir.path().join("key.pem"));
        std::fs::write(&certificate_file, certificate).unwrap();
        std::fs::write(&key_file, key).unwrap();
        Self {
            _dir: dir,
            certificate: certificate_file,
            key: key_file,
        }
    }

    async fn city(&self) -> City {
        City::with(|gateway, _| {
            gateway.tls.certificate_file = self.certificate.display().to_string();
            gateway.tls.key_file = self.key.display().to_string();
            gateway.timing.files_ms = 100;
            gateway.timing.outcome_timeout_ms = 900;
            gateway.timing.http_idle_ms = 1_000;
        })
        .await
    }
}

/// Sends a whole request and reads to the end: status and body.
async fn call(
    mut tls: TlsStream<TcpStream>,
    method: &str,
    path: &str,
    headers: &str,
    body: &str,
) -> (u16, String) {
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: {NAME}\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n{body}"
    );
    tls.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    let read = tokio::time::timeout(PATIENCE, tls.read_to_string(&mut answer));
    read.await.unwrap().unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    (status, body.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_ride_over_tls_in_json_and_protobuf() {
    let authority = Authority::new("ours");
    let city = Files::new(&authority.issue(NAME, false)).city().await;
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let tls = authority
            .connect_with(&city, NAME, &[version])
            .await
            .unwrap();
        assert_eq!(
            call(tls, "GET", "/readyz", "", "").await,
            (200, "ready\n".into())
        );
    }
    let json = "cabrank.v1.json";
    let mut driver = authority
        .socket(&city, "/v1/driver", &city.token(Role::Driver, "d1"), json)
        .await;
    let mut rider = authority
        .socket(&city, "/v1/rider", &city.token(Role::Rider, "ann"), json)
        .await;
    driver.online(&["economy"]).await;
    driver.ping(37.7751, -122.4190, 1).await;
    until("the ping to be placed", async || {
        (city.counters.snapshot().accepted == 1).then_some(())
    })
    .await;
    let headers = format!(
        "authorization: Bearer {}\r\nidempotency-key: k1\r\ncontent-type: application/json\r\n",
        city.token(Role::Rider, "ann")
    );
    let tls = authority.connect(&city).await.unwrap();
    let (status, opened) = call(tls, "POST", "/v1/rides", &headers, &wish().to_string()).await;
    assert_eq!(status, 201, "{opened}");
    let offer = driver.hear("offer").await;
    let all = ["received", "accept", "arrived", "started", "completed"];
    driver.reports(&all, &offer).await;
    while rider.hear("ride").await["stage"] != "completed" {}

    // Protobuf, and bytes in both directions that fill many records: each heartbeat comes back as it was sent.
    let token = city.token(Role::Driver, "d2");
    let mut proto = authority
        .socket(&city, "/v1/driver", &token, "cabrank.v1.proto")
        .await;
    assert!(matches!(
        proto.stream.next().await,
        Some(Ok(Message::Binary(_)))
    ));
    for number in 0..500_u16 {
        let payload = [number.to_be_bytes().as_slice(), &[7; 120]].concat();
        proto
            .stream
            .feed(Message::Ping(payload.into()))
            .await
            .unwrap();
    }
    proto.stream.flush().await.unwrap();
    let mut next = 0_u16;
    while next < 500 {
        let heard = tokio::time::timeout(PATIENCE, proto.stream.next())
            .await
            .unwrap();
        if let Some(Ok(Message::Pong(payload))) = heard {
            assert_eq!(payload[..2], next.to_be_bytes());
            next += 1;
        }
    }
    proto.stream.close(None).await.unwrap();
    let ended = tokio::time::timeout(PATIENCE, async {
        while proto.stream.next().await.is_some() {}
    });
    ended
        .await
        .expect("the goodbye is answered and the connection ends");
    // The driver is told in full before the connection ends, over TLS, too.
    city.stop.cancel();
    assert_eq!(driver.closed().await.0, 1012);
    city.end().await;
}

/// What the server answers to a first message of TLS that offers nothing newer than `minor` (TLS 1.0 is 1).
async fn old_hello(city: &City, minor: u8) -> Vec<u8> {
    let mut body = vec![3, minor];
    body.extend([9; 32]);
    // No session; two suites of that time; no compression; one extension, the signatures that are understood.
    body.extend([0, 0, 4, 0xc0, 0x14, 0x00, 0x2f, 1, 0]);
    body.extend([0, 8, 0, 13, 0, 4, 0, 2, 4, 3]);
    let mut message = vec![1, 0, 0, body.len() as u8];
    message.extend(&body);
    let mut record = vec![22, 3, 1, 0, message.len() as u8];
    record.extend(&message);
    let mut tcp = TcpStream::connect(city.address).await.unwrap();
    tcp.write_all(&record).await.unwrap();
    let mut answer = Vec::new();
    let read = tokio::time::timeout(PATIENCE, tcp.read_to_end(&mut answer));
    let _ = read.await.expect("the connection is cut");
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_certificate_a_wrong_name_a_stranger_and_old_versions_are_refused() {
    let authority = Authority::new("ours");
    let files = Files::new(&authority.issue(NAME, false));
    let city = files.city().await;
    let refused = async |authority: &Authority, name, why: &str| {
        let tried = authority
            .connect_with(&city, name, &[&rustls::version::TLS13])
            .await;
        let Err(refusal) = tried else {
            panic!("{name} is let in");
        };
        let said = format!("{refusal:?}");
        assert!(said.contains(why), "{said}");
    };
    refused(&authority, "else.test", "NotValidForName").await;
    refused(&Authority::new("ours"), NAME, "BadSignature").await;
    for minor in [1, 2] {
        let answer = old_hello(&city, minor).await;
        // A fatal alert: protocol_version, or handshake_failure for what else a client so old lacks.
        assert_eq!(answer.get(..1), Some(&[21][..]), "{answer:?}");
        assert!(matches!(answer.get(5..7), Some([2, 40 | 70])), "{answer:?}");
    }
    // Plain HTTP is not spoken here, and whoever begins and goes silent is cut.
    for begin in [
        &b"GET /readyz HTTP/1.1\r\nhost: x\r\n\r\n"[..],
        &[22, 3, 1, 2][..],
        &[],
    ] {
        let mut tcp = TcpStream::connect(city.address).await.unwrap();
        tcp.write_all(begin).await.unwrap();
        let mut answer = Vec::new();
        let read = tokio::time::timeout(PATIENCE, tcp.read_to_end(&mut answer));
        let _ = read.await.expect("the connection is cut");
        assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
    }
    let (certificate, key) = authority.issue(NAME, true);
    std::fs::write(&files.key, key).unwrap();
    std::fs::write(&files.certificate, certificate).unwrap();
    until("the expired certificate to be shown", async || {
        let tried = authority.connect(&city).await;
        let said = format!("{:?}", tried.err()?);
        assert!(said.contains("Expired"), "{said}");
        Some(())
    })
    .await;
    city.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_certificate_is_shown_without_a_restart_and_open_sockets_stay() {
    let authority = Authority::new("ours");
    let files = Files::new(&authority.issue(NAME, false));
    let city = files.city().await;
    let token = city.token(Role::Driver, "d1");
    let mut driver = authority
        .socket(&city, "/v1/driver", &token, "cabrank.v1.json")
        .await;
    driver.hear("welcome").await;
    // Nonsense, and a key that does not belong to the certificate, change nothing.
    std::fs::write(&files.certificate, "no certificate").unwrap();
    let looks = tokio::time::Instant::now() + Duration::from_millis(500);
    until("some looks at the files", async || {
        authority.connect(&city).await.unwrap();
        (tokio::time::Instant::now() > looks).then_some(())
    })
    .await;
    let (certificate, key) = authority.issue("new.test", false);
    std::fs::write(&files.certificate, certificate).unwrap();
    std::fs::write(&files.key, key).unwrap();
    until("the new certificate", async || {
        let tried = authority
            .connect_with(&city, "new.test", &[&rustls::version::TLS13])
            .await;
        tried.ok()
    })
    .await;
    assert!(
        authority.connect(&city).await.is_err(),
        "the old name is not shown any more"
    );
    let session: Value = driver.online(&["economy"]).await;
    driver
        .say(json!({"type":"offline","id":"home","session":session}))
        .await;
    assert_eq!(driver.hear("outcome").await["result"], "done");
    city.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_cannot_be_used_are_named_before_the_port_opens() {
    let authority = Authority::new("ours");
    let (good, other) = (authority.issue(NAME, false), authority.issue(NAME, false));
    let files = Files::new(&(good.0.clone(), other.1));
    for (certificate, key, why) in [
        (&files.certificate, &files.key, "cannot be used"),
        (&files.certificate, &PathBuf::new(), "or neither"),
        (
            &PathBuf::from("/nowhere"),
            &files.key,
            "/nowhere cannot be read",
        ),
    ] {
        let tls = cabrank_gateway::TlsConfig {
            certificate_file: certificate.display().to_string(),
            key_file: key.display().to_string(),
        };
        let said = tls.check().unwrap_err().to_string();
        assert!(said.contains(why), "{said}");
    }
}
