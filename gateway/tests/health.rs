//! Does a process say when it is not well? And can what it logs be changed while it runs?

mod support;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use cabrank_gateway::token::{KeysConfig, Role, mint};
use cabrank_gateway::{Health, keep_beating, start_health, start_logging};
use cabrank_matcher::api::Dispatch;
use cabrank_matcher::heart::Hearts;
use reqwest::{Method, Response};
use serde_json::json;
use support::{City, OPS, answered, refusal, until};
use tokio_util::sync::CancellationToken;

/// Where somebody stands still until they are let go.
#[derive(Clone, Default)]
struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    fn stand(&self) {
        let (open, opened) = &*self.0;
        let open = open.lock().unwrap();
        drop(opened.wait_while(open, |open| !*open).unwrap());
    }

    fn open(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_loop_stands_still_fails_the_gateways_liveness_and_recovers_when_it_goes_on() {
    let city = City::built(|knobs| knobs.node.wedged_after_ms = 500).await;
    let healthy = async || city.get("/healthz", None).await.status() == 200;
    assert!(healthy().await);
    let gate = Gate::default();
    let stands = gate.clone();
    city.node.listen(Box::new(move |_| stands.stand()));
    // The first commit that is told of wedges the node's thread; the gateway and its sockets go on.
    let address = city.address;
    let token = city.token(Role::Rider, "r1");
    let asked = tokio::spawn(async move {
        let call = reqwest::Client::new().post(format!("http://{address}/v1/rides"));
        let call = call.bearer_auth(token).header("Idempotency-Key", "k1");
        call.json(&support::wish()).send().await.unwrap().status()
    });
    until("the wedge", async || (!healthy().await).then_some(())).await;
    let said = refusal(city.get("/healthz", None).await).await;
    said.is(503, "wedged", "the node has not gone round");
    gate.open();
    until("the recovery", async || healthy().await.then_some(())).await;
    // Its outcome came, or came too late to be waited for.
    let status = asked.await.unwrap();
    assert!(status == 201 || status == 503, "{status}");
    city.end().await;
}

/// A process without a gateway.
struct Plain {
    address: SocketAddr,
    stop: CancellationToken,
    thread: JoinHandle<std::io::Result<()>>,
}

impl Plain {
    fn start(hearts: &Hearts, is_ready: &Arc<AtomicBool>) -> Plain {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let (hearts, is_ready) = (hearts.clone(), is_ready.clone());
        let health = Health {
            ready: Arc::new(move || is_ready.load(Ordering::SeqCst)),
            wedged: Arc::new(move || hearts.wedged()),
            keys: KeysConfig::default(),
        };
        let thread = start_health(listener, health, stop.clone()).unwrap();
        Plain {
            address,
            stop,
            thread,
        }
    }

    async fn get(&self, path: &str) -> (u16, String) {
        let url = format!("http://{}{path}", self.address);
        let answer = reqwest::get(url).await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    }

    fn end(self) {
        self.stop.cancel();
        self.thread.join().unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_runtime_that_is_wedged_is_told_of_by_a_thread_that_is_not() {
    let (hearts, is_ready) = (Hearts::default(), Arc::new(AtomicBool::new(false)));
    let plain = Plain::start(&hearts, &is_ready);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_time()
        .build()
        .unwrap();
    let heart = hearts.add("the runtime", Duration::from_secs(1));
    runtime.spawn(keep_beating(heart));
    let alive = async || plain.get("/healthz").await.0 == 200;
    until("life", async || alive().await.then_some(())).await;
    let (status, said) = plain.get("/readyz").await;
    assert!(status == 503 && said.contains("not ready"), "{said}");
    is_ready.store(true, Ordering::SeqCst);
    assert_eq!(plain.get("/readyz").await.0, 200);

    let gate = Gate::default();
    let stands = gate.clone();
    runtime.spawn(async move { stands.stand() });
    until("the wedge", async || (!alive().await).then_some(())).await;
    let (status, said) = plain.get("/healthz").await;
    assert!(
        status == 503 && said.starts_with("wedged: the runtime has not gone round"),
        "{said}"
    );
    gate.open();
    until("the recovery", async || alive().await.then_some(())).await;
    runtime.shutdown_background();
    plain.end();
}

async fn set(address: SocketAddr, token: &str, log: &str) -> Response {
    let call = reqwest::Client::new().put(format!("http://{address}/v1/log-level"));
    let call = call.bearer_auth(token).json(&json!({ "log": log }));
    call.send().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_changes_what_a_running_process_logs_and_nonsense_changes_nothing() {
    start_logging("error", true).unwrap();
    let is_debug = || tracing::enabled!(target: "cabrank_matcher", tracing::Level::DEBUG);
    let city = City::start().await;
    let ops = city.token(Role::Ops, "o");
    let shown = async || answered(city.get("/v1/log-level", OPS).await, 200).await["log"].clone();
    assert_eq!(shown().await, "error");
    assert!(!is_debug());
    let wanted = "warn,cabrank_matcher=debug";
    let told = answered(set(city.address, &ops, wanted).await, 200).await;
    assert_eq!(told["log"], wanted);
    assert!(is_debug());
    let long = "info,".repeat(400);
    for (bad, remedy) in [
        ("inof", "info,cabrank_matcher=debug"),
        ("cabrank_matcher=loud", "cabrank_matcher=loud"),
        (long.as_str(), "at most 1024"),
    ] {
        let refused = refusal(set(city.address, &ops, bad).await).await;
        refused.is(422, "bad_log_level", remedy);
    }
    assert_eq!(shown().await, wanted);
    let rider = city.token(Role::Rider, "r1");
    let refused = refusal(set(city.address, &rider, "info").await).await;
    refused.is(403, "forbidden", "use one with the role ops");
    let call = city.call(Method::PUT, "/v1/log-level", OPS);
    let call = call.json(&json!({"level":"info"}));
    let refused = refusal(call.send().await.unwrap()).await;
    refused.is(422, "bad_body", "unknown field");

    // A node is asked where it answers for its health, with a token of the same issuer.
    let plain = Plain::start(&Hearts::default(), &Arc::default());
    let forged = mint(
        "another secret of more than 32 bytes",
        Role::Ops,
        "o",
        Duration::from_secs(60),
    )
    .unwrap();
    refusal(set(plain.address, &forged, "info").await).await.is(
        401,
        "unauthorized",
        "signed with this server's key",
    );
    refusal(set(plain.address, &rider, "info").await).await.is(
        403,
        "forbidden",
        "use one with the role ops",
    );
    answered(set(plain.address, &ops, "error").await, 200).await;
    assert!(!is_debug());
    plain.end();
    city.end().await;
}
