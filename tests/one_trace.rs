//! A ride is one trace through real processes: gateway, two nodes, order and payment service over a real Apache Kafka, a driver's
//! phone and a rider's call; what they send over OTLP is received here.
//!
//! With `CABRANK_OTELCOL`, an OpenTelemetry Collector, they send to that one, which reads `deploy/otel.yaml` and passes on to us
//! what it takes (`deploy/collector.sh`). Without a JDK and Maven it says so in one line and counts as not run; with `CI=true`
//! that is a failure.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use cabrank_eventlog::kafka::testing;
use cabrank_ring::{Kind, Ring};
use cabrank_spans::testing::{PROCESS, Receiver as Spans, Span, tree};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(60);
const SHARDS: u16 = 4;

/// A process and what it says, line by line; killed when dropped.
struct Process {
    child: Child,
    lines: Receiver<String>,
    said: Vec<String>,
}

impl Process {
    fn start(command: &mut Command) -> Process {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let (send, lines) = channel();
        let out = BufReader::new(child.stdout.take().expect("stdout is a pipe"));
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    return;
                }
            }
        });
        Process {
            child,
            lines,
            said: Vec::new(),
        }
    }

    /// The next line that holds `text`; others are passed over.
    #[track_caller]
    fn says(&mut self, text: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(line) = self.lines.recv_timeout(left) else {
                panic!("no {text:?} came; said: {:#?}", self.said);
            };
            self.said.push(line.clone());
            if line.contains(text) {
                return line;
            }
        }
    }

    /// A line is typed and answered.
    #[track_caller]
    fn does(&mut self, line: &str, answer: &str) {
        let stdin = self.child.stdin.as_mut().expect("stdin is a pipe");
        writeln!(stdin, "{line}").expect("it reads");
        self.says(answer);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[track_caller]
fn until<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what} within {PATIENCE:?}");
        std::thread::park_timeout(Duration::from_millis(50));
    }
}

fn get(url: &str) -> Option<String> {
    let answer = reqwest::blocking::get(url).ok()?.error_for_status().ok()?;
    answer.text().ok()
}

/// A real collector with the compose file's configuration, on free ports.
struct Collector {
    url: String,
    metrics: String,
    _process: Process,
}

impl Collector {
    fn start(program: &OsStr, dir: &Path, passes_on_to: &str) -> Collector {
        let free = || {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
            listener.local_addr().expect("it is bound").port()
        };
        let (grpc, http, health, metrics) = (free(), free(), free(), free());
        let ours = format!(
            "\
receivers: {{otlp: {{protocols: {{grpc: {{endpoint: '127.0.0.1:{grpc}'}}, http: {{endpoint: '127.0.0.1:{http}'}}}}}}}}
extensions: {{health_check: {{endpoint: '127.0.0.1:{health}'}}}}
exporters: {{otlp_http: {{endpoint: '{passes_on_to}', compression: none}}}}
service:
  telemetry: {{metrics: {{readers: [{{pull: {{exporter: {{prometheus: {{host: 127.0.0.1, port: {metrics}}}}}}}}}]}}}}
  pipelines: {{traces: {{exporters: [debug, otlp_http]}}}}
"
        );
        let override_file = dir.join("otel.yaml");
        std::fs::write(&override_file, ours).expect("a file of ours");
        let config = concat!("--config=", env!("CARGO_MANIFEST_DIR"), "/deploy/otel.yaml");
        let mut command = Command::new(program);
        command
            .arg(config)
            .arg(format!("--config={}", override_file.display()));
        let process = Process::start(&mut command);
        let health = format!("http://127.0.0.1:{health}/");
        until("the collector's health", || get(&health));
        Collector {
            url: format!("http://127.0.0.1:{http}"),
            metrics: format!("http://127.0.0.1:{metrics}/metrics"),
            _process: process,
        }
    }
}

/// What becomes of a ride, each step with the process it is of; of those under one step by name.
const STEPS: &str = "\
POST /v1/rides process=cabrank-gateway
  gateway request_ride process=cabrank-gateway
    node request_ride process=cabrank-matcher
      gateway arrive process=cabrank-gateway
        node arrive process=cabrank-matcher
          order ride.driver_arrived process=cabrank-order
      gateway complete_ride process=cabrank-gateway
        node complete_ride process=cabrank-matcher
          order ride.completed process=cabrank-order
            payment order.capture_asked process=cabrank-payment
              order payment.captured process=cabrank-order
                payment order.receipt process=cabrank-payment
              provider capture process=cabrank-payment
      gateway start_ride process=cabrank-gateway
        node start_ride process=cabrank-matcher
          order ride.started process=cabrank-order
      offer process=cabrank-matcher
        order ride.offer_made process=cabrank-order
        phone process=cabrank-gateway
          gateway accept_offer process=cabrank-gateway
            node accept_offer process=cabrank-matcher
              order ride.driver_assigned process=cabrank-order
          gateway receive_offer process=cabrank-gateway
            node receive_offer process=cabrank-matcher
              order ride.offer_received process=cabrank-order
      order ride.driver_claimed process=cabrank-order
      order ride.requested process=cabrank-order
        payment order.authorisation_asked process=cabrank-payment
          order payment.authorised process=cabrank-order
          provider authorise process=cabrank-payment
";

fn drawn(spans: &[Span]) -> String {
    let mut spans = spans.to_vec();
    spans.sort_by(|a, b| a.name.cmp(&b.name));
    for span in &mut spans {
        span.start_time_unix_nano = 0;
    }
    tree(&spans, &[PROCESS])
}

/// A ride's steps without what its shards write each other by the log, which depends on who owns which; and how much that was.
/// What came of such a message hangs under what the message came of.
fn without_messages(spans: &[Span]) -> (Vec<Span>, usize) {
    let by_id: BTreeMap<&[u8], &Span> = spans.iter().map(|of| (&*of.span_id, of)).collect();
    let is_message = |span: &Span| {
        let parent = by_id.get(&*span.parent_span_id);
        let is_asked = parent.is_some_and(|parent| parent.name.starts_with("gateway "));
        span.name.starts_with("node ") && !is_asked
    };
    let kept: Vec<Span> = spans
        .iter()
        .filter(|span| !is_message(span))
        .map(|span| {
            let mut span = span.clone();
            while let Some(parent) = by_id.get(&*span.parent_span_id)
                && is_message(parent)
            {
                span.parent_span_id = parent.parent_span_id.clone();
            }
            span
        })
        .collect();
    let messages = spans.len() - kept.len();
    (kept, messages)
}

/// The steps of each trace.
fn traces(spans: &[Span]) -> BTreeMap<Vec<u8>, Vec<Span>> {
    let mut traces: BTreeMap<Vec<u8>, Vec<Span>> = BTreeMap::new();
    for span in spans {
        let trace = traces.entry(span.trace_id.clone()).or_default();
        trace.push(span.clone());
    }
    traces
}

/// How many steps hang under one that has not come, or under none.
fn parents_missing(spans: &[Span]) -> usize {
    let here: BTreeSet<&[u8]> = spans.iter().map(|of| &*of.span_id).collect();
    let is_lost = |span: &&Span| !here.contains(&*span.parent_span_id);
    spans.iter().filter(is_lost).count()
}

/// A rider of each shard.
fn riders() -> Vec<String> {
    let ring = Ring::new(SHARDS).expect("a ring");
    let of_shard = |shard| {
        let mut names = (0..).map(|n| format!("rider-{n}"));
        names.find(|name| ring.shard_of_person(Kind::Rider, name) == shard)
    };
    (0..SHARDS).filter_map(of_shard).collect()
}

#[test]
fn over_kafka_a_ride_is_one_trace_through_gateway_node_phone_and_services() {
    let Some(broker) = testing::broker() else {
        return;
    };
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let received = runtime.block_on(Spans::start());
    let dir = tempfile::tempdir().expect("a scratch directory");
    let otelcol = std::env::var_os("CABRANK_OTELCOL");
    let collector = otelcol.map(|program| Collector::start(&program, dir.path(), &received.url()));
    let otlp_url = match &collector {
        Some(collector) => collector.url.clone(),
        None => received.url(),
    };

    let prefix = broker.config(1).prefix;
    let command = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cabrank"));
        command
            .args(arguments)
            .env("CABRANK_LOG", "warn")
            .env("CABRANK_KAFKA__PREFIX", &prefix)
            .env("CABRANK_KAFKA__SHARDS", SHARDS.to_string())
            .env("CABRANK_KAFKA__REPLICATION", "1")
            .env("CABRANK_SPANS__OTLP_URL", &otlp_url)
            .env("CABRANK_SPANS__SAMPLED", "1.0");
        command
    };
    let brokers = format!("--brokers={}", broker.bootstrap());
    let topics = command(&["topics", "create", &brokers]).output();
    let topics = topics.expect("the program runs");
    assert!(topics.status.success(), "{topics:?}");
    let database = |name: &str| format!("--database={}", dir.path().join(name).display());

    let mut nodes = ["--name=n1", "--name=n2"]
        .map(|name| Process::start(&mut command(&["matcher", name, &brokers])));
    for node in &mut nodes {
        node.says("answers gateways");
    }
    until("each node serving its part of the shards", || {
        let said = command(&["cluster", "status", "--json", &brokers]).output();
        let said: Value = serde_json::from_slice(&said.ok()?.stdout).ok()?;
        let owners = said["shards"].as_array()?.iter();
        let owners: Vec<&str> = owners.filter_map(|of| of["node"].as_str()).collect();
        let all = owners.len() == usize::from(SHARDS);
        (all && owners.contains(&"n1") && owners.contains(&"n2")).then_some(())
    });
    let mut gateway = Process::start(&mut command(&["gateway", "--listen=127.0.0.1:0", &brokers]));
    let url = gateway.says("http://");
    let mut provider = Process::start(&mut command(&["provider-sim"]));
    let provider_url = format!("--provider={}", provider.says("http://"));
    let order = ["service", "order", &brokers, &format!("--gateway={url}")];
    let mut order = Process::start(command(&order).arg(database("order.db")));
    order.says("http://");
    let payment = ["service", "payment", &brokers, &provider_url];
    let mut payment = Process::start(command(&payment).arg(database("payment.db")));
    payment.says("http://");

    let phone = ["driver", "--url", &url, "--id=d1", "--at=37.7749,-122.4194"];
    let mut driver = Process::start(&mut command(&phone));
    driver.says("connected as driver d1");
    driver.does("online economy", "online: done");
    let token = |role: &str, subject: &str| {
        let token = command(&["token", "--role", role, "--subject", subject]).output();
        String::from_utf8(token.expect("a token").stdout).expect("text")
    };
    let operator = token("ops", "operator");
    let client = reqwest::blocking::Client::new();
    let (mut spans, mut rides): (Vec<Span>, usize) = (Vec::new(), 0);
    for rider in riders() {
        until("the car is seen, and free", || {
            let near = format!("{url}/v1/nearby?lat=37.7749&lon=-122.4194");
            let near = client.get(near).bearer_auth(operator.trim()).send().ok()?;
            near.text().ok()?.contains("distance_m").then_some(())
        });
        let wish =
            json!({"pickup":{"lat":37.7749,"lon":-122.4194},"dropoff":{"lat":37.79,"lon":-122.40}});
        let call = client
            .post(format!("{url}/v1/rides"))
            .bearer_auth(token("rider", &rider).trim())
            .header("Idempotency-Key", "k1")
            .json(&wish);
        let opened = call.send().expect("an answer");
        assert_eq!(opened.status(), 201, "{opened:?}");
        driver.says("offer: ride ");
        driver.does("accept", "accept: done");
        driver.does("arrived", "arrived: done");
        driver.does("started", "started: done");
        until("the money is held before the ride ends", || {
            spans.extend(received.take());
            let held = |of: &Vec<Span>| of.iter().any(|of| of.name == "order payment.authorised");
            (traces(&spans).values().filter(|of| held(of)).count() > rides).then_some(())
        });
        driver.does("completed", "completed: done");
        rides += 1;
        until("every step has come", || {
            spans.extend(received.take());
            let traces = traces(&spans);
            let is_whole = |of: &Vec<Span>| {
                without_messages(of).0.len() >= STEPS.lines().count() && parents_missing(of) == 1
            };
            (traces.len() == rides && traces.values().all(is_whole)).then_some(())
        });
    }
    let mut messages = 0;
    for (_, ride) in traces(&spans) {
        let (kept, beside) = without_messages(&ride);
        assert_eq!(drawn(&kept), STEPS, "{}", drawn(&ride));
        messages += beside;
    }
    // A rider of each shard: some live on another node than the ride, and what the two write each other is in the trace.
    assert!(messages > 0);
    println!(
        "{} steps of {rides} rides, {messages} between shards by the log",
        spans.len()
    );
    if let Some(collector) = collector {
        // Where compose's Prometheus asks.
        let counted = get(&collector.metrics).expect("the collector's metrics");
        assert!(
            counted.contains("otelcol_receiver_accepted_spans"),
            "{counted}"
        );
        println!("by way of a real collector");
    }
}
