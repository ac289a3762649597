//! What does a search over HTTP cost beside a server that does nothing?
//!
//! `GET /v1/nearby` (2 km, the 10 nearest) over HTTP/1.1 keep-alive, 8 connections that ask again as soon as they are
//! answered; 50,000 and 100,000 free cars over 39 x 34 km, put there by a node over the embedded log. `hello` is a
//! bare axum router that answers a prepared body of the same size: what the framework, the kernel and this client cost
//! alone. Client and servers share the machine's cores; the client is one thread.
//!
//! Closed loop, so these are rates for comparison; `cabrank load --nearby-per-second` measures latencies.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::http::header;
use axum::routing::get;
use cabrank_engine::EngineConfig;
use cabrank_eventlog::{EmbeddedLog, EventLog, Options};
use cabrank_events::{
    ClassSet, Command, CommandId, CommandRecord, DriverId, Place, SessionId, VehicleClass,
};
use cabrank_gateway::token::{DEVELOPMENT_SECRET, Role, mint};
use cabrank_gateway::{Gateway, GatewayConfig};
use cabrank_geo::Point;
use cabrank_matcher::api::{Dispatch, NotTaken, Pinged};
use cabrank_matcher::clock::DomainClock;
use cabrank_matcher::{Node, NodeConfig, Parts};
use cabrank_ring::Ring;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

const SEED: u64 = 20_080_522;
const CONNECTIONS: usize = 8;
const PLACES: usize = 4_096;
/// The bench outlasts any position's ordinary life.
const DAY_MS: i64 = 24 * 3_600_000;
const PATIENCE: Duration = Duration::from_secs(120);

/// The full size when benched, a thousandth when tested.
fn scaled(size: u32) -> u32 {
    if std::env::args().any(|arg| arg == "--bench") {
        size
    } else {
        size / 1_000
    }
}

fn place(random: &mut SmallRng) -> Point {
    let corner = Point::new(37.5, -122.6).expect("on the earth");
    corner
        .offset_m(random.random_range(0.0..34_000.0), 0.0)
        .offset_m(0.0, random.random_range(0.0..39_000.0))
}

/// A node with so many free cars.
fn node(dir: &std::path::Path, drivers: u32) -> Node {
    let clock = DomainClock::wall();
    let for_log = clock.clone();
    let options = Options {
        clock: Arc::new(move || for_log.now().0),
        ..Options::default()
    };
    let log = EmbeddedLog::open(dir, options).expect("a store");
    let owner = Box::new(log.own("bench").expect("ownership"));
    let ring = Arc::new(Ring::new(log.shards()).expect("a possible ring"));
    let config = NodeConfig {
        ping_ttl_ms: DAY_MS,
        silent_after_ms: DAY_MS,
        ..NodeConfig::default()
    };
    let parts = Parts {
        log: Arc::new(log),
        owner,
        ring,
        clock,
        config,
        engine: EngineConfig::default(),
    };
    let node = Node::start(parts, |_| {});
    let deadline = Instant::now() + PATIENCE;
    let wait = |what: &str| {
        assert!(Instant::now() < deadline, "{what} took too long");
        std::thread::yield_now();
    };
    while !node.is_ready() {
        wait("opening");
    }
    let driver = |n: u32| DriverId::new(&format!("driver-{n}")).expect("a good id");
    for n in 0..drivers {
        let id = CommandId::new(&format!("driver/driver-{n}/1")).expect("a good id");
        let command = Command::GoOnline {
            driver: driver(n),
            session: SessionId(1),
            classes: ClassSet::of(&[VehicleClass::Economy]).expect("one class"),
        };
        let record = CommandRecord::external(id, node.now(), command);
        while node.submit(record.clone()) == Err(NotTaken::Busy) {
            wait("coming online");
        }
    }
    let mut random = SmallRng::seed_from_u64(SEED);
    for n in 0..drivers {
        let at = Place(place(&mut random));
        while node.ping(&driver(n), at, node.now(), 0) != Pinged::Accepted {
            wait("coming online");
        }
    }
    node
}

async fn cabrank(node: Node) -> SocketAddr {
    let config = GatewayConfig {
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        ..GatewayConfig::default()
    };
    let gateway = Gateway::bind(config, Arc::new(node)).await.expect("a port");
    let address = gateway.local_addr();
    tokio::spawn(gateway.run(CancellationToken::new()));
    address
}

async fn hello(body: Vec<u8>) -> SocketAddr {
    let body = bytes::Bytes::from(body);
    let answer = async move || ([(header::CONTENT_TYPE, "application/json")], body);
    let router = Router::new().route("/v1/nearby", get(answer));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("it is bound");
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

/// One keep-alive connection, and what it asks in turn.
struct Asker {
    socket: TcpStream,
    requests: Arc<Vec<Vec<u8>>>,
    turn: usize,
    buffer: Vec<u8>,
}

impl Asker {
    /// The next answer's body.
    async fn ask(&mut self) -> &[u8] {
        let request = &self.requests[self.turn % self.requests.len()];
        self.turn += 1;
        self.socket.write_all(request).await.expect("a write");
        self.buffer.clear();
        loop {
            let read = self
                .socket
                .read_buf(&mut self.buffer)
                .await
                .expect("a read");
            assert!(read > 0, "the server hung up");
            if let Some((body, length)) = body_of(&self.buffer)
                && self.buffer.len() >= body + length
            {
                assert_eq!(&self.buffer[9..12], b"200", "refused");
                return &self.buffer[body..body + length];
            }
        }
    }
}

/// Where the body begins and how long it is, once the headers are here.
fn body_of(answer: &[u8]) -> Option<(usize, usize)> {
    const LENGTH: &[u8] = b"content-length: ";
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n")?;
    let at = answer[..end]
        .windows(LENGTH.len())
        .position(|name| name == LENGTH)?;
    let digits = answer[at + LENGTH.len()..]
        .iter()
        .take_while(|byte| byte.is_ascii_digit());
    let length = digits.fold(0, |length, digit| length * 10 + usize::from(digit - b'0'));
    Some((end + 4, length))
}

/// All connections to one server, on a thread of their own.
struct Client {
    runtime: Runtime,
    askers: Vec<Asker>,
}

impl Client {
    fn new(address: SocketAddr) -> Self {
        let builder = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build();
        let runtime = builder.expect("a runtime");
        let day = Duration::from_secs(24 * 3_600);
        let token = mint(DEVELOPMENT_SECRET, Role::Service, "bench", day).expect("a token");
        let mut random = SmallRng::seed_from_u64(SEED + 1);
        let mut request = |_| {
            let at = place(&mut random);
            let (lat, lon) = (at.lat_deg(), at.lon_deg());
            format!(
                "GET /v1/nearby?lat={lat:.6}&lon={lon:.6}&radius=2000&k=10 HTTP/1.1\r\n\
                 host: {address}\r\nauthorization: Bearer {token}\r\n\r\n"
            )
            .into_bytes()
        };
        let requests: Arc<Vec<Vec<u8>>> = Arc::new((0..PLACES).map(&mut request).collect());
        let askers = runtime.block_on(async {
            let mut askers = Vec::new();
            for n in 0..CONNECTIONS {
                let socket = TcpStream::connect(address).await.expect("a connection");
                socket.set_nodelay(true).expect("the option");
                askers.push(Asker {
                    socket,
                    requests: requests.clone(),
                    turn: n * PLACES / CONNECTIONS,
                    buffer: Vec::with_capacity(16_384),
                });
            }
            askers
        });
        Self { runtime, askers }
    }

    /// `count` answers, spread over the connections.
    fn answers(&mut self, count: u64) -> Duration {
        let tasks = tokio::task::LocalSet::new();
        let share = count.div_ceil(CONNECTIONS as u64);
        let since = Instant::now();
        self.askers = self.runtime.block_on(tasks.run_until(async {
            let asked = self.askers.drain(..).map(|mut asker| {
                tokio::task::spawn_local(async move {
                    for _ in 0..share {
                        asker.ask().await;
                    }
                    asker
                })
            });
            let asked: Vec<_> = asked.collect();
            let mut askers = Vec::new();
            for one in asked {
                askers.push(one.await.expect("no panic"));
            }
            askers
        }));
        since
            .elapsed()
            .mul_f64(count as f64 / (share * CONNECTIONS as u64) as f64)
    }

    fn one_body(&mut self) -> Vec<u8> {
        let (runtime, asker) = (&self.runtime, &mut self.askers[0]);
        runtime.block_on(asker.ask()).to_vec()
    }
}

fn searches(c: &mut Criterion) {
    let servers = Runtime::new().expect("a runtime");
    let mut group = c.benchmark_group("nearby_http");
    group
        .sample_size(10)
        .measurement_time(Duration::from_secs(3))
        .warm_up_time(Duration::from_secs(1));
    group.throughput(Throughput::Elements(1));
    let mut body = Vec::new();
    for cars in [50_000, 100_000] {
        let dir = tempfile::tempdir().expect("a directory");
        let node = node(dir.path(), scaled(cars));
        let mut client = Client::new(servers.block_on(cabrank(node.clone())));
        body = client.one_body();
        let answer: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
        assert!(answer["cars"].is_array(), "{answer}");
        group.bench_function(format!("cars/{cars}"), |b| {
            b.iter_custom(|count| client.answers(count));
        });
        node.stop().expect("an orderly end");
    }
    let mut client = Client::new(servers.block_on(hello(body)));
    group.bench_function("hello", |b| b.iter_custom(|count| client.answers(count)));
    group.finish();
}

criterion_group!(benches, searches);
criterion_main!(benches);
