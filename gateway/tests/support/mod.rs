//! A real gateway over a real node and log in a directory of its own, and clients that wait with deadlines.

#![allow(dead_code, reason = "each test binary uses its own part of this")]

#[path = "../../../tests/support/authority.rs"]
pub mod authority;
pub mod log;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use cabrank_engine::EngineConfig;
use cabrank_eventlog::{EmbeddedLog, EventLog, Options};
use cabrank_gateway::token::{Role, mint};
use cabrank_gateway::{Gateway, GatewayConfig, IngestCounters, PartnerPings, ServeError, Served};
use cabrank_matcher::api::Dispatch;
use cabrank_matcher::clock::DomainClock;
use cabrank_matcher::{Node, NodeConfig, Parts};
use cabrank_ring::Ring;
use futures_util::{SinkExt, StreamExt};
use reqwest::{Method, RequestBuilder, Response};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinHandle;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::error::Error as WsError;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};
use tokio_util::sync::CancellationToken;

/// Nothing here takes this long unless it is broken.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Everything a test may turn.
pub struct Knobs {
    pub gateway: GatewayConfig,
    pub engine: EngineConfig,
    pub node: NodeConfig,
    pub log: Options,
}

/// Somebody who calls: a role and a name.
pub type Who<'a> = Option<(Role, &'a str)>;

/// An operator.
pub const OPS: Who<'static> = Some((Role::Ops, "o"));

/// A ride from Market Street to the north.
pub fn wish() -> Value {
    json!({"pickup":{"lat":37.7749,"lon":-122.4194},"dropoff":{"lat":37.79,"lon":-122.40}})
}

/// A refusal as the caller reads it.
#[derive(Debug)]
pub struct Refusal {
    pub status: u16,
    pub name: String,
    pub detail: String,
    pub retry_after_s: Option<u64>,
}

/// Reads a refusal; its body must be a whole problem document.
pub async fn refusal(answer: Response) -> Refusal {
    let status = answer.status().as_u16();
    // What is no refusal may be a stream without an end: it is not read.
    assert!(status >= 400, "{} was answered with {status}", answer.url());
    let header = |name: &str| Some(answer.headers().get(name)?.to_str().unwrap().to_owned());
    let retry_after_s = header("retry-after").map(|seconds| seconds.parse().unwrap());
    let content_type = header("content-type");
    let text = answer.text().await.unwrap();
    assert_eq!(
        content_type.as_deref(),
        Some("application/problem+json"),
        "{status} {text}"
    );
    let body: Value = serde_json::from_str(&text).unwrap();
    let field = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
    assert_eq!(body["status"], status);
    assert!(
        !field("title").is_empty() && !field("detail").is_empty(),
        "{body}"
    );
    let kind = field("type");
    let name = kind.strip_prefix("urn:cabrank:problem:").unwrap();
    Refusal {
        status,
        name: name.to_owned(),
        detail: field("detail"),
        retry_after_s,
    }
}

impl Refusal {
    /// The same as expected, and its remedy says `remedy`.
    #[track_caller]
    pub fn is(&self, status: u16, name: &str, remedy: &str) {
        assert_eq!(
            (self.status, self.name.as_str()),
            (status, name),
            "{self:?}"
        );
        assert!(self.detail.contains(remedy), "no {remedy:?} in {self:?}");
    }
}

/// The body of an answer that is no refusal.
pub async fn answered(answer: Response, status: u16) -> Value {
    let (found, text) = (answer.status().as_u16(), answer.text().await.unwrap());
    assert_eq!(found, status, "{text}");
    serde_json::from_str(&text).unwrap()
}

/// A running server.
pub struct City {
    pub address: SocketAddr,
    pub node: Node,
    pub clock: DomainClock,
    pub stop: CancellationToken,
    pub serving: JoinHandle<Result<Served, ServeError>>,
    pub config: GatewayConfig,
    pub counters: Arc<IngestCounters>,
    pub partners: PartnerPings,
    _dir: tempfile::TempDir,
}

impl City {
    /// A server with the default knobs on a free port.
    pub async fn start() -> City {
        Self::with(|_, _| {}).await
    }

    /// A server with other knobs of the gateway and the engine.
    pub async fn with(change: impl FnOnce(&mut GatewayConfig, &mut EngineConfig)) -> City {
        Self::built(|knobs| change(&mut knobs.gateway, &mut knobs.engine)).await
    }

    /// A server with any other knobs.
    pub async fn built(change: impl FnOnce(&mut Knobs)) -> City {
        Self::behind(change, |node, _| Arc::new(node)).await
    }

    /// A server whose gateway reaches the node, or the node's log, by way of `door`.
    pub async fn behind(
        change: impl FnOnce(&mut Knobs),
        door: impl FnOnce(Node, Arc<dyn EventLog>) -> Arc<dyn Dispatch>,
    ) -> City {
        let mut gateway = GatewayConfig {
            listen: ([127, 0, 0, 1], 0).into(),
            ..GatewayConfig::default()
        };
        // Tests leave without a goodbye: the end of a city does not wait for theirs.
        gateway.timing.move_ms = 10;
        gateway.timing.close_ms = 500;
        // As fast as the wall clock, and a test may let time pass.
        let clock = DomainClock::trace(DomainClock::wall().now(), 1.0);
        let for_log = clock.clone();
        let mut knobs = Knobs {
            gateway,
            engine: EngineConfig::default(),
            node: NodeConfig {
                drivers_max: 10_000,
                ..NodeConfig::default()
            },
            log: Options {
                clock: Arc::new(move || for_log.now().0),
                ..Options::default()
            },
        };
        change(&mut knobs);
        let Knobs {
            gateway: config,
            engine,
            node,
            log: options,
        } = knobs;
        let dir = tempfile::tempdir().unwrap();
        let ring = Arc::new(Ring::new(options.shards).unwrap());
        let log = EmbeddedLog::open(dir.path(), options).unwrap();
        let owner = Box::new(log.own("test").unwrap());
        let log: Arc<dyn EventLog> = Arc::new(log);
        let parts = Parts {
            log: log.clone(),
            owner,
            ring,
            clock: clock.clone(),
            config: node,
            engine,
        };
        let node = Node::start(parts, |_| {});
        until("the node's readiness", async || {
            node.is_ready().then_some(())
        })
        .await;
        let gateway = Gateway::bind(config.clone(), door(node.clone(), log))
            .await
            .unwrap();
        let address = gateway.local_addr();
        let (counters, partners) = (gateway.counters(), gateway.partner_pings());
        let stop = CancellationToken::new();
        let serving = tokio::spawn(gateway.run(stop.clone()));
        City {
            address,
            node,
            clock,
            stop,
            serving,
            config,
            counters,
            partners,
            _dir: dir,
        }
    }

    /// So many milliseconds pass at once, for the city; sockets do not notice.
    pub fn pass(&self, ms: u64) {
        self.clock.raise_to(self.clock.now().plus_ms(ms));
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub fn token(&self, role: Role, subject: &str) -> String {
        mint(
            &self.config.keys.secret,
            role,
            subject,
            Duration::from_secs(600),
        )
        .unwrap()
    }

    /// A call, to be sent.
    pub fn call(&self, method: Method, path: &str, who: Who<'_>) -> RequestBuilder {
        let call = reqwest::Client::new().request(method, self.url(path));
        match who {
            Some((role, subject)) => call.bearer_auth(self.token(role, subject)),
            None => call,
        }
    }

    pub async fn get(&self, path: &str, who: Who<'_>) -> Response {
        self.call(Method::GET, path, who).send().await.unwrap()
    }

    pub async fn post(&self, path: &str, who: Who<'_>, body: &Value) -> Response {
        let call = self.call(Method::POST, path, who).json(body);
        call.send().await.unwrap()
    }

    /// A rider asks for a ride.
    pub async fn ask(&self, rider: &str, key: &str, wish: &Value) -> Response {
        let call = self.call(Method::POST, "/v1/rides", Some((Role::Rider, rider)));
        let call = call.header("Idempotency-Key", key).json(wish);
        call.send().await.unwrap()
    }

    /// A rider gets a new ride.
    pub async fn ride(&self, rider: &str, key: &str) -> String {
        let opened = answered(self.ask(rider, key, &wish()).await, 201).await;
        opened["ride"].as_str().unwrap().to_owned()
    }

    /// The cars an operator sees.
    pub async fn cars(&self, query: &str) -> Vec<Value> {
        let path = format!("/v1/nearby?{query}");
        let near = answered(self.get(&path, OPS).await, 200).await;
        near["cars"].as_array().unwrap().clone()
    }

    /// A driver's socket, greeted.
    pub async fn driver(&self, id: &str) -> Socket {
        let mut socket = self
            .socket("/v1/driver", Some(&self.token(Role::Driver, id)), None)
            .await
            .unwrap();
        assert_eq!(socket.hear("welcome").await["driver"], id);
        socket
    }

    /// A rider's socket, greeted.
    pub async fn rider(&self, id: &str) -> Socket {
        let mut socket = self
            .socket("/v1/rider", Some(&self.token(Role::Rider, id)), None)
            .await
            .unwrap();
        assert_eq!(socket.hear("welcome").await["rider"], id);
        socket
    }

    /// Any socket; `protocol` is the value of `Sec-WebSocket-Protocol`.
    pub async fn socket(
        &self,
        path: &str,
        token: Option<&str>,
        protocol: Option<&str>,
    ) -> Result<Socket, WsError> {
        let tcp = TcpStream::connect(self.address).await?;
        self.socket_on(tcp, path, token, protocol).await
    }

    /// A socket of a client with next to no memory for what it does not read at once.
    pub async fn narrow_socket(&self, path: &str, token: &str) -> Socket {
        let tcp = TcpSocket::new_v4().unwrap();
        tcp.set_recv_buffer_size(4_096).unwrap();
        let tcp = tcp.connect(self.address).await.unwrap();
        self.socket_on(tcp, path, Some(token), None).await.unwrap()
    }

    async fn socket_on(
        &self,
        tcp: TcpStream,
        path: &str,
        token: Option<&str>,
        protocol: Option<&str>,
    ) -> Result<Socket, WsError> {
        let mut request = format!("ws://{}{path}", self.address).into_client_request()?;
        if let Some(token) = token {
            let value = format!("Bearer {token}").parse().unwrap();
            request.headers_mut().insert("authorization", value);
        }
        if let Some(protocol) = protocol {
            request
                .headers_mut()
                .insert("sec-websocket-protocol", protocol.parse().unwrap());
        }
        let tcp = MaybeTlsStream::Plain(tcp);
        let (stream, _) = tokio_tungstenite::client_async(request, tcp).await?;
        Ok(Socket { stream })
    }

    /// The text of `/metrics`. The recorder belongs to the process: all cities of a test binary share it.
    pub async fn metrics(&self) -> String {
        let response = reqwest::get(self.url("/metrics")).await.unwrap();
        response.text().await.unwrap()
    }

    /// One counter of `/metrics` by its whole name; 0 before it was first counted.
    pub async fn counter(&self, name: &str) -> u64 {
        let metrics = self.metrics().await;
        let count = metrics.lines().find_map(|line| line.strip_prefix(name));
        count.map_or(0, |count| count.trim().parse().unwrap())
    }

    /// The gateway drains and ends; the node ends after it.
    pub async fn end(self) {
        self.stop.cancel();
        tokio::time::timeout(PATIENCE, self.serving)
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        tokio::task::spawn_blocking(move || self.node.stop())
            .await
            .unwrap()
            .unwrap();
    }
}

/// A client's WebSocket.
pub struct Socket<S = MaybeTlsStream<TcpStream>> {
    pub stream: WebSocketStream<S>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Socket<S> {
    pub async fn say(&mut self, message: Value) {
        self.stream
            .send(Message::text(message.to_string()))
            .await
            .unwrap();
    }

    /// Begins to work; the session.
    pub async fn online(&mut self, classes: &[&str]) -> Value {
        self.say(json!({"type":"online","id":"go","classes":classes}))
            .await;
        let outcome = self.hear("outcome").await;
        assert_eq!(
            (&outcome["id"], &outcome["result"]),
            (&json!("go"), &json!("done"))
        );
        outcome["session"].clone()
    }

    /// A ping from a place, measured now.
    pub async fn ping(&mut self, lat: f64, lon: f64, seq: u32) {
        self.say(json!({"type":"ping","lat":lat,"lon":lon,"seq":seq}))
            .await;
    }

    /// Sends a message about an offer or the ride that came of it; its outcome.
    pub async fn report(&mut self, kind: &str, offer: &Value) -> Value {
        let (ride, attempt) = (&offer["ride"], &offer["attempt"]);
        let id = format!("{kind}-{}-{attempt}", ride.as_str().unwrap());
        self.say(json!({"type":kind,"id":id,"ride":ride,"attempt":attempt}))
            .await;
        let outcome = self.hear("outcome").await;
        assert_eq!(outcome["id"], id);
        outcome
    }

    /// Reports that are all done.
    pub async fn reports(&mut self, kinds: &[&str], offer: &Value) {
        for kind in kinds {
            assert_eq!(self.report(kind, offer).await["result"], "done", "{kind}");
        }
    }

    /// The next message of this type; others are passed over.
    pub async fn hear(&mut self, kind: &str) -> Value {
        self.hear_any(&[kind]).await
    }

    /// The next message of one of these types; others are passed over.
    pub async fn hear_any(&mut self, kinds: &[&str]) -> Value {
        let heard = async {
            loop {
                match self.stream.next().await {
                    Some(Ok(Message::Text(text))) => {
                        let message: Value = serde_json::from_str(&text).unwrap();
                        if kinds.iter().any(|kind| message["type"] == *kind) {
                            return message;
                        }
                    }
                    Some(Ok(_)) => {}
                    other => panic!("waiting for {kinds:?}: {other:?}"),
                }
            }
        };
        tokio::time::timeout(PATIENCE, heard)
            .await
            .unwrap_or_else(|_| panic!("no {kinds:?} came"))
    }

    /// Reads until the server closes: code and reason.
    pub async fn closed(&mut self) -> (u16, String) {
        let closed = async {
            loop {
                match self.stream.next().await {
                    Some(Ok(Message::Close(Some(frame)))) => {
                        return (u16::from(frame.code), frame.reason.to_string());
                    }
                    Some(Ok(_)) => {}
                    other => panic!("waiting for the close frame: {other:?}"),
                }
            }
        };
        tokio::time::timeout(PATIENCE, closed)
            .await
            .expect("no close frame came")
    }
}

/// Looks again and again until `found` says something.
pub async fn until<T>(what: &str, mut found: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let mut looks = tokio::time::interval(Duration::from_millis(5));
    loop {
        looks.tick().await;
        if let Some(found) = found().await {
            return found;
        }
        assert!(
            tokio::time::Instant::now() < deadline,
            "{what} did not happen"
        );
    }
}
