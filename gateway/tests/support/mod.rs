//! A real gateway over a real node and log in a directory of its own, and clients that wait with deadlines.

#![allow(dead_code, reason = "each test binary uses its own part of this")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use cabrank_engine::EngineConfig;
use cabrank_eventlog::{EmbeddedLog, Options};
use cabrank_gateway::token::{Role, mint};
use cabrank_gateway::{Gateway, GatewayConfig, IngestCounters, ServeError, Served};
use cabrank_matcher::api::Dispatch;
use cabrank_matcher::clock::DomainClock;
use cabrank_matcher::{Node, NodeConfig, Parts};
use cabrank_ring::Ring;
use futures_util::{SinkExt, StreamExt};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::error::Error as WsError;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};
use tokio_util::sync::CancellationToken;

/// Nothing here takes this long unless it is broken.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A running server.
pub struct City {
    pub address: SocketAddr,
    pub node: Node,
    pub stop: CancellationToken,
    pub serving: JoinHandle<Result<Served, ServeError>>,
    pub config: GatewayConfig,
    pub counters: Arc<IngestCounters>,
    _dir: tempfile::TempDir,
}

impl City {
    /// A server with the default knobs on a free port.
    pub async fn start() -> City {
        Self::with(|_, _| {}).await
    }

    /// A server with other knobs.
    pub async fn with(change: impl FnOnce(&mut GatewayConfig, &mut EngineConfig)) -> City {
        let mut config = GatewayConfig {
            listen: ([127, 0, 0, 1], 0).into(),
            ..GatewayConfig::default()
        };
        let mut engine = EngineConfig::default();
        change(&mut config, &mut engine);
        let dir = tempfile::tempdir().unwrap();
        let clock = DomainClock::wall();
        let for_log = clock.clone();
        let options = Options {
            clock: Arc::new(move || for_log.now().0),
            ..Options::default()
        };
        let ring = Arc::new(Ring::new(options.shards).unwrap());
        let log = EmbeddedLog::open(dir.path(), options).unwrap();
        let owner = Box::new(log.own("test").unwrap());
        let config_of_node = NodeConfig {
            drivers_max: 10_000,
            ..NodeConfig::default()
        };
        let parts = Parts {
            log: Arc::new(log),
            owner,
            ring,
            clock,
            config: config_of_node,
            engine,
        };
        let node = Node::start(parts, |_| {});
        until("the node's readiness", async || {
            node.is_ready().then_some(())
        })
        .await;
        let gateway = Gateway::bind(config.clone(), Arc::new(node.clone()))
            .await
            .unwrap();
        let address = gateway.local_addr();
        let counters = gateway.counters();
        let stop = CancellationToken::new();
        let serving = tokio::spawn(gateway.run(stop.clone()));
        City {
            address,
            node,
            stop,
            serving,
            config,
            counters,
            _dir: dir,
        }
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
        let (stream, _) = tokio_tungstenite::connect_async(request).await?;
        Ok(Socket { stream })
    }

    /// The text of `/metrics`. The recorder belongs to the process: all cities of a test binary share it.
    pub async fn metrics(&self) -> String {
        let response = reqwest::get(self.url("/metrics")).await.unwrap();
        response.text().await.unwrap()
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
pub struct Socket {
    pub stream: WebSocketStream<MaybeTlsStream<TcpStream>>,
}

impl Socket {
    pub async fn say(&mut self, message: Value) {
        self.stream
            .send(Message::text(message.to_string()))
            .await
            .unwrap();
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
