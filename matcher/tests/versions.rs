//! Releases beside each other: one that is too far away is refused by name, counted, and disturbs nobody else. That two
//! neighbouring ones work together is shown with real binaries by `deploy/upgrade.sh`.

#[allow(
    dead_code,
    reason = "the stories of `cluster.rs` ask more of the log than these"
)]
mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use bytes::Bytes;
use cabrank_engine::EngineConfig;
use cabrank_eventlog::{EventLog, Header, OwnerRecord, ShardOwner, Transaction};
use cabrank_events::Place;
use cabrank_geo::Point;
use cabrank_matcher::api::{Dispatch, NearbyQuery, NotAnswered};
use cabrank_matcher::clock::DomainClock;
use cabrank_matcher::rpc::v1::node_client::NodeClient;
use cabrank_matcher::rpc::v1::{CarsRequest, NearbyRequest, PingBatch, PositionRequest};
use cabrank_matcher::rpc::{self, v1::StatusRequest};
use cabrank_matcher::versions::{STATE_VERSION, WIRE_VERSION};
use cabrank_matcher::{Node, NodeConfig, Parts, Remote, RemoteConfig, RemoteParts};
use cabrank_ring::Ring;
use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, SharedString, Unit};
use support::{Home, PATIENCE, until};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tonic::transport::{Channel, Endpoint, Server};

/// What the metrics of this process say: refused calls, and shards that a node has refused. So one test runs at a time.
static REFUSED: AtomicU64 = AtomicU64::new(0);
static SHARDS_REFUSED: AtomicU64 = AtomicU64::new(0);
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

struct CountRefusals;

struct ShowRefused;

impl metrics::GaugeFn for ShowRefused {
    fn increment(&self, _: f64) {}

    fn decrement(&self, _: f64) {}

    fn set(&self, value: f64) {
        SHARDS_REFUSED.store(value as u64, Ordering::SeqCst);
    }
}

impl metrics::CounterFn for CountRefusals {
    fn increment(&self, by: u64) {
        REFUSED.fetch_add(by, Ordering::SeqCst);
    }

    fn absolute(&self, _: u64) {}
}

impl metrics::Recorder for CountRefusals {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        match key.name() {
            "cabrank_releases_apart_total" => Counter::from_arc(Arc::new(CountRefusals)),
            _ => Counter::noop(),
        }
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        match key.name() {
            "cabrank_shards_refused" => Gauge::from_arc(Arc::new(ShowRefused)),
            _ => Gauge::noop(),
        }
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

/// Nobody else counts until the guard is dropped.
async fn counting() -> tokio::sync::MutexGuard<'static, ()> {
    let alone = ALONE.lock().await;
    // The other tests of this file may have done so.
    let _ = metrics::set_global_recorder(CountRefusals);
    alone
}

/// A node, and why it ended by itself.
fn node(home: &Home, clock: &DomainClock, name: &str, address: &str) -> (Node, Receiver<String>) {
    let parts = Parts {
        log: Arc::new(home.clone()),
        owner: Box::new(home.seat(name, address)),
        ring: Arc::new(Ring::new(home.shards()).unwrap()),
        clock: clock.clone(),
        config: NodeConfig::default(),
        engine: EngineConfig::default(),
    };
    let (tell, ended) = sync_channel(1);
    let node = Node::start(parts, move |stopped| {
        if let Err(why) = stopped {
            // The test may be over.
            let _ = tell.send(why.to_string());
        }
    });
    (node, ended)
}

/// A city of one shard on one node; how to call it, and what ends it.
async fn city() -> (Node, String, CancellationToken) {
    let clock = DomainClock::wall();
    let home = Home::new(1, clock.clone());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (node, _) = node(&home, &clock, "n0", &address);
    let stop = CancellationToken::new();
    tokio::spawn(rpc::serve(
        node.clone(),
        "n0".into(),
        listener,
        None,
        stop.clone(),
    ));
    home.give(0, "n0");
    until("the node serves its shard", || {
        node.is_ready().then_some(())
    });
    (node, address, stop)
}

async fn client(address: &str, user_agent: &str) -> NodeClient<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
    let endpoint = endpoint.user_agent(user_agent.to_owned()).unwrap();
    NodeClient::new(endpoint.connect().await.unwrap())
}

fn near() -> NearbyRequest {
    NearbyRequest {
        lat_e7: 377_000_000,
        lon_e7: -1_224_000_000,
        radius_m: 1_000.0,
        k: 1,
        ..NearbyRequest::default()
    }
}

async fn end(node: Node, stop: CancellationToken) {
    stop.cancel();
    let stopped = tokio::task::spawn_blocking(move || node.stop()).await;
    stopped.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_two_releases_away_is_refused_by_version_but_may_ask_how_the_node_is() {
    let _alone = counting().await;
    let (node, address, stop) = city().await;
    let far = format!("cabrank/9.0.0 wire/{}", WIRE_VERSION + 2);
    let mut far = client(&address, &far).await;
    let before = REFUSED.load(Ordering::SeqCst);
    let refused = [
        far.nearby(near()).await.unwrap_err(),
        far.position(PositionRequest::default()).await.unwrap_err(),
        far.cars(CarsRequest::default()).await.unwrap_err(),
        far.pings(tokio_stream::pending::<PingBatch>())
            .await
            .unwrap_err(),
    ];
    for refusal in &refused {
        assert_eq!(refusal.code(), Code::Unimplemented, "{refusal}");
        let both = [
            format!("wire version {}", WIRE_VERSION + 2),
            format!("this program is at {WIRE_VERSION}"),
        ];
        let said = refusal.message();
        assert!(both.iter().all(|part| said.contains(part)), "{said}");
    }
    assert!(REFUSED.load(Ordering::SeqCst) >= before + refused.len() as u64);
    let status = far.status(StatusRequest {}).await.unwrap().into_inner();
    assert_eq!(status.wire_version, u32::from(WIRE_VERSION));
    assert_eq!(status.state_version, u32::from(STATE_VERSION));
    assert_eq!(status.version, env!("CARGO_PKG_VERSION"));
    end(node, stop).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn gateways_of_the_release_before_and_of_the_next_one_are_answered() {
    let _alone = counting().await;
    let (node, address, stop) = city().await;
    // Before there were versions nobody told one.
    let says = [
        "tonic/0.14.9",
        "cabrank/0.1.0 wire/1",
        "cabrank/9.0.0 wire/2",
    ];
    for says in says {
        let mut gateway = client(&address, says).await;
        let answer = gateway.nearby(near()).await;
        assert!(answer.is_ok(), "{says}: {answer:?}");
    }
    end(node, stop).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_refuses_to_speak_is_silent_for_its_gateways_and_counted() {
    let _alone = counting().await;
    let clock = DomainClock::wall();
    let home = Home::new(1, clock.clone());
    // Knows none of our calls, and says so.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let stranger = Server::builder().add_routes(tonic::service::Routes::default());
    let stranger = tokio::spawn(stranger.serve_with_incoming(incoming));
    home.announce(OwnerRecord {
        shard: 0,
        epoch: 1,
        node: "stranger".into(),
        address: address.clone(),
    });
    let gateway = Remote::start(
        RemoteParts {
            log: Arc::new(home.clone()),
            ring: Arc::new(Ring::new(1).unwrap()),
            clock,
            engine: EngineConfig::default(),
            node: NodeConfig::default(),
            config: RemoteConfig::default(),
            runtime: tokio::runtime::Handle::current(),
            tls: None,
        },
        |why| panic!("the gateway failed: {why}"),
    );
    until("the stranger is known", || {
        gateway.owners().first().cloned()
    });
    let before = REFUSED.load(Ordering::SeqCst);
    let query = NearbyQuery {
        at: Place(Point::new(37.7, -122.4).unwrap()),
        radius_m: 1_000.0,
        k: 1,
        class: None,
    };
    assert_eq!(gateway.nearby(&query).await, Err(NotAnswered::NodeSilent));
    assert!(REFUSED.load(Ordering::SeqCst) > before);
    let stopping = gateway.clone();
    tokio::task::spawn_blocking(move || stopping.stop())
        .await
        .unwrap();
    stranger.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_written_two_releases_ahead_is_refused_and_who_only_looks_on_ends_and_says_why() {
    let _alone = counting().await;
    let clock = DomainClock::wall();
    let home = Home::new(1, clock.clone());
    let mut newer = home.seat("newer", "");
    home.give(0, "newer");
    let gained = newer.poll(Duration::ZERO, 1).unwrap().gained;
    assert_eq!(gained, [0]);
    newer.recover(0).unwrap();
    let far = STATE_VERSION + 2;
    let header = Header {
        engine: Bytes::from(format!(r#"{{"state_version":{far},"all":"is different"}}"#)),
        ..Header::default()
    };
    let written = Transaction {
        headers: vec![(0, header)],
        ..Transaction::default()
    };
    newer.commit(&written).unwrap();
    home.give(0, "n0");
    let (node, ended) = node(&home, &clock, "n0", "");
    until("the node has looked at the shard", || {
        (SHARDS_REFUSED.load(Ordering::SeqCst) == 1).then_some(())
    });
    assert!(!node.is_ready());

    // Given back, the shard is another's whose drivers are to be followed: nobody can.
    home.give(0, "newer");
    let why = tokio::task::spawn_blocking(move || ended.recv_timeout(PATIENCE)).await;
    let why = why.unwrap().expect("the node ends");
    assert!(why.contains(&format!("state version {far}")), "{why}");
    let kept = home.snapshot(0).unwrap().header.unwrap().engine;
    assert!(kept.ends_with(br#""all":"is different"}"#), "as it was");
}
