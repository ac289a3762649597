//! For tests: a receiver takes what is sent over OTLP/HTTP, a collector has this process send to one, and a trace is drawn as a
//! tree.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
pub use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;

use crate::{Sending, SpansConfig, start};

/// The attribute by which a received span tells which process it is of (`service.name` of its resource).
pub const PROCESS: &str = "process";

/// What was received.
#[derive(Clone, Default)]
struct Received(Arc<Mutex<Vec<Span>>>);

impl Received {
    fn spans(&self) -> MutexGuard<'_, Vec<Span>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn take(State(received): State<Received>, headers: HeaderMap, body: Bytes) -> StatusCode {
    let is_protobuf = headers
        .get("content-type")
        .is_some_and(|kind| kind == "application/x-protobuf");
    match ExportTraceServiceRequest::decode(body) {
        Ok(sent) if is_protobuf => {
            for of in sent.resource_spans {
                let mut told = of.resource.into_iter().flat_map(|told| told.attributes);
                let name = told.find(|told| told.key == "service.name");
                let process = KeyValue {
                    key: PROCESS.to_owned(),
                    ..name.unwrap_or_default()
                };
                let spans = of.scope_spans.into_iter().flat_map(|scope| scope.spans);
                received.spans().extend(spans.map(|mut span| {
                    span.attributes.push(process.clone());
                    span
                }));
            }
            StatusCode::OK
        }
        _ => StatusCode::BAD_REQUEST,
    }
}

/// A receiver on a free port of loopback, as long as its runtime lives.
#[derive(Clone)]
pub struct Receiver {
    received: Received,
    address: SocketAddr,
}

impl Receiver {
    /// Starts to listen.
    ///
    /// # Panics
    /// When nothing can be opened on loopback.
    pub async fn start() -> Receiver {
        let received = Received::default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await;
        let listener = listener.expect("a port on loopback");
        let address = listener.local_addr().expect("it is bound");
        let router = Router::new()
            .route("/v1/traces", post(take))
            .with_state(received.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Receiver { received, address }
    }

    /// What `spans.otlp_url` is to be.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What was received and not taken yet.
    pub fn take(&self) -> Vec<Span> {
        std::mem::take(&mut *self.received.spans())
    }
}

/// A receiver, and this process's tracer, which sends to it.
pub struct Collector {
    receiver: Receiver,
    sending: Arc<Sending>,
}

impl Collector {
    /// Starts both; once in a process.
    ///
    /// # Panics
    /// When the process traces already, or nothing can be opened on loopback.
    pub async fn start(sampled: f64, follow_callers: bool) -> Collector {
        let receiver = Receiver::start().await;
        let config = SpansConfig {
            otlp_url: receiver.url(),
            sampled,
            follow_callers,
        };
        // The exporter brings a runtime of its own, which cannot be made inside another one.
        let started = tokio::task::spawn_blocking(move || start(&config, "test", "t1"));
        let sending = started.await.expect("it does not panic");
        let sending = sending.expect("the configuration is good");
        Collector {
            receiver,
            sending: Arc::new(sending.expect("nobody else traces in this process")),
        }
    }

    /// Everything that has ended and was not taken yet.
    ///
    /// # Panics
    /// When the sender panics.
    pub async fn take(&self) -> Vec<Span> {
        let sending = Arc::clone(&self.sending);
        let flushed = tokio::task::spawn_blocking(move || sending.flush());
        flushed.await.expect("it does not panic");
        self.receiver.take()
    }

    /// Sends no more.
    ///
    /// # Panics
    /// When the sender panics.
    pub async fn end(self) {
        let dropped = tokio::task::spawn_blocking(move || drop(self.sending));
        dropped.await.expect("it does not panic");
    }
}

/// An attribute that is a text.
pub fn attribute<'a>(span: &'a Span, key: &str) -> Option<&'a str> {
    let found = span.attributes.iter().find(|found| found.key == key)?;
    match found.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => Some(text),
        _ => None,
    }
}

/// The steps as an indented tree, each with the attributes named in `shown`; siblings in the order of their beginning.
pub fn tree(spans: &[Span], shown: &[&str]) -> String {
    let mut children: BTreeMap<&[u8], Vec<&Span>> = BTreeMap::new();
    for span in spans {
        children.entry(&span.parent_span_id).or_default().push(span);
    }
    for siblings in children.values_mut() {
        siblings.sort_by_key(|span| span.start_time_unix_nano);
    }
    let is_here = |id: &[u8]| spans.iter().any(|span| span.span_id == id);
    let mut text = String::new();
    for (parent, roots) in &children {
        if !is_here(parent) {
            for root in roots {
                write(&mut text, 0, root, &children, shown);
            }
        }
    }
    text
}

fn write(
    text: &mut String,
    depth: usize,
    span: &Span,
    children: &BTreeMap<&[u8], Vec<&Span>>,
    shown: &[&str],
) {
    *text += &format!("{}{}", "  ".repeat(depth), span.name);
    for key in shown {
        if let Some(value) = attribute(span, key) {
            *text += &format!(" {key}={value}");
        }
    }
    text.push('\n');
    for child in children.get(&*span.span_id).into_iter().flatten() {
        write(text, depth + 1, child, children, shown);
    }
}
