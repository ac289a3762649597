//! What became of this ride, step by step, for a tracing backend (OpenTelemetry over OTLP/HTTP).
//!
//! A trace begins where a rider asks for a ride, if that one is sampled; it goes on with the [`TraceParent`] that commands and
//! events carry, so whoever handles one of those adds a span without knowing who is before and after. Positions are never
//! traced. The pure crates see the opaque header at most.
//!
//! Off by default: then [`is_on`] is one relaxed load, and nothing else is done. Bounds: at most [`SPANS_WAITING_MAX`] spans wait
//! for the collector, more are dropped; a collector that does not answer slows nobody.
//! One tracer for each process: the first [`start`] counts.

#[cfg(feature = "testing")]
pub mod testing;

use std::num::{NonZeroU64, NonZeroU128};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use cabrank_events::TraceParent;
use opentelemetry::trace::{
    Span as _, SpanContext, SpanId, SpanKind, TraceContextExt, TraceFlags, TraceId, TraceState,
    Tracer, TracerProvider,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracer, SdkTracerProvider,
};
use serde::{Deserialize, Serialize};

/// Spans that wait for the collector; more are dropped.
pub const SPANS_WAITING_MAX: usize = 8_192;
/// How often what waits is sent.
const SEND_EVERY: Duration = Duration::from_secs(1);
/// Longest wait for the collector.
const ANSWER: Duration = Duration::from_secs(3);
/// Where traces are posted, behind the collector's address.
const PATH: &str = "/v1/traces";

/// Traces of rides.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SpansConfig {
    /// Address of an OTLP collector that speaks HTTP, `http://collector:4318`; empty: no traces. Reached without TLS: beside
    /// the process or inside the cluster.
    pub otlp_url: String,
    /// The part of rides that is traced, 0 to 1, decided where the rider asks. Each traced ride costs some 20 spans of about
    /// 300 bytes.
    pub sampled: f64,
    /// A call that comes with a sampled `traceparent` is traced as part of that trace, whatever `sampled` says. Only where callers
    /// are trusted: it lets them decide what is recorded.
    pub follow_callers: bool,
}

impl Default for SpansConfig {
    fn default() -> Self {
        Self {
            otlp_url: String::new(),
            sampled: 0.01,
            follow_callers: false,
        }
    }
}

/// Why there are no traces.
#[derive(Debug, thiserror::Error)]
pub enum BadSpans {
    /// The address.
    #[error("spans.otlp_url = {0:?}: write http://HOST:PORT of an OTLP collector, or nothing")]
    Url(String),
    /// The part.
    #[error("spans.sampled = {0}: choose 0 to 1")]
    Sampled(f64),
    /// The exporter.
    #[error("traces cannot be sent: {0}")]
    Exporter(String),
}

impl SpansConfig {
    /// Checks ranges.
    ///
    /// # Errors
    /// With what to choose.
    pub fn check(&self) -> Result<(), BadSpans> {
        let is_url = self
            .otlp_url
            .strip_prefix("http://")
            .is_some_and(|host| !host.is_empty() && !host.contains(char::is_whitespace));
        if !self.otlp_url.is_empty() && !is_url {
            return Err(BadSpans::Url(self.otlp_url.clone()));
        }
        if !(0.0..=1.0).contains(&self.sampled) {
            return Err(BadSpans::Sampled(self.sampled));
        }
        Ok(())
    }
}

/// The process's tracer.
struct Tracing {
    tracer: SdkTracer,
    config: SpansConfig,
    /// Rides asked for, for sampling.
    asked: AtomicU64,
}

static TRACING: OnceLock<Tracing> = OnceLock::new();
static IS_ON: AtomicBool = AtomicBool::new(false);

/// Sends what waits when it is dropped.
pub struct Sending(SdkTracerProvider);

impl Sending {
    /// Sends what waits, now.
    pub fn flush(&self) {
        // A collector that is away loses its spans; that is no reason to fail.
        let _ = self.0.force_flush();
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        IS_ON.store(false, Ordering::Relaxed);
        let _ = self.0.shutdown_with_timeout(ANSWER);
    }
}

/// Starts to trace, as `process` (`gateway`, `matcher`, ...) called `name`; `None` when it is off, or was started before. Not
/// from within an async task: the exporter brings a runtime of its own.
///
/// # Errors
/// When the configuration makes no sense.
pub fn start(
    config: &SpansConfig,
    process: &'static str,
    name: &str,
) -> Result<Option<Sending>, BadSpans> {
    config.check()?;
    if config.otlp_url.is_empty() || TRACING.get().is_some() {
        return Ok(None);
    }
    let exporter = SpanExporter::builder()
        .with_http()
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(format!("{}{PATH}", config.otlp_url.trim_end_matches('/')))
        .with_timeout(ANSWER)
        .build()
        .map_err(|why| BadSpans::Exporter(why.to_string()))?;
    let batches = BatchConfigBuilder::default()
        .with_max_queue_size(SPANS_WAITING_MAX)
        .with_scheduled_delay(SEND_EVERY)
        .build();
    let sending = BatchSpanProcessor::builder(exporter)
        .with_batch_config(batches)
        .build();
    let resource = Resource::builder_empty()
        .with_service_name(format!("cabrank-{process}"))
        .with_attribute(KeyValue::new("service.instance.id", name.to_owned()))
        .build();
    let provider = SdkTracerProvider::builder()
        .with_span_processor(sending)
        .with_resource(resource)
        // Who is sampled is decided in `begin_ride`; what is carried is what is sampled.
        .with_sampler(Sampler::AlwaysOn)
        .build();
    let tracing = Tracing {
        tracer: provider.tracer("cabrank"),
        config: config.clone(),
        asked: AtomicU64::new(0),
    };
    if TRACING.set(tracing).is_err() {
        return Ok(None);
    }
    IS_ON.store(true, Ordering::Relaxed);
    Ok(Some(Sending(provider)))
}

/// Is anything traced in this process?
#[inline]
pub fn is_on() -> bool {
    // Relaxed: it changes at the start and the end of the process; `TRACING` orders what it stands for.
    IS_ON.load(Ordering::Relaxed)
}

fn tracing() -> Option<&'static Tracing> {
    if is_on() { TRACING.get() } else { None }
}

/// A step under way; dropping it ends it.
pub struct Span {
    inner: opentelemetry_sdk::trace::Span,
    here: TraceParent,
}

/// Which side of a step it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// It answers a call.
    Server,
    /// It asks somebody and waits for the answer.
    Client,
    /// It takes something from a log.
    Consumer,
    /// It happens inside.
    Internal,
}

impl Span {
    /// For what comes of this step.
    pub fn context(&self) -> TraceParent {
        self.here
    }

    /// Says something of the step. No places and no names of people beyond their ids.
    pub fn set(&mut self, key: &'static str, value: impl ToString) {
        self.inner
            .set_attribute(KeyValue::new(key, value.to_string()));
    }
}

/// A rider asks for a ride: begins its trace if this one is sampled. `caller` is the `traceparent` that came with the call.
pub fn begin_ride(name: &'static str, caller: Option<&str>) -> Option<Span> {
    let tracing = tracing()?;
    let caller = caller
        .filter(|_| tracing.config.follow_callers)
        .and_then(|text| text.parse::<TraceParent>().ok());
    if let Some(caller) = caller {
        return begin(name, Side::Server, Some(caller));
    }
    // Every so many, evenly: what n calls have earned is the whole part of n times the part.
    let n = tracing.asked.fetch_add(1, Ordering::Relaxed) as f64;
    let earned = |n: f64| (n * tracing.config.sampled).floor();
    if earned(n + 1.0) > earned(n) {
        open(tracing, name, Side::Server, &Context::new())
    } else {
        None
    }
}

/// A step of a trace that is recorded; none without a parent.
pub fn begin(name: impl Into<String>, side: Side, parent: Option<TraceParent>) -> Option<Span> {
    let (tracing, parent) = (tracing()?, parent?);
    let parent = SpanContext::new(
        TraceId::from_bytes(parent.trace.get().to_be_bytes()),
        SpanId::from_bytes(parent.span.get().to_be_bytes()),
        TraceFlags::SAMPLED,
        true,
        TraceState::default(),
    );
    let around = Context::new().with_remote_span_context(parent);
    open(tracing, name, side, &around)
}

fn open(tracing: &Tracing, name: impl Into<String>, side: Side, around: &Context) -> Option<Span> {
    let kind = match side {
        Side::Server => SpanKind::Server,
        Side::Client => SpanKind::Client,
        Side::Consumer => SpanKind::Consumer,
        Side::Internal => SpanKind::Internal,
    };
    let builder = tracing.tracer.span_builder(name.into()).with_kind(kind);
    let inner = tracing.tracer.build_with_context(builder, around);
    let context = inner.span_context();
    let here = TraceParent {
        trace: NonZeroU128::new(u128::from_be_bytes(context.trace_id().to_bytes()))?,
        span: NonZeroU64::new(u64::from_be_bytes(context.span_id().to_bytes()))?,
    };
    Some(Span { inner, here })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_collector_nothing_is_traced_and_nonsense_is_named() {
        assert!(
            start(&SpansConfig::default(), "test", "t")
                .unwrap()
                .is_none()
        );
        assert!(!is_on() && begin_ride("a ride", None).is_none());
        let of = |otlp_url: &str, sampled| SpansConfig {
            otlp_url: otlp_url.into(),
            sampled,
            follow_callers: false,
        };
        for bad in ["collector:4318", "https://collector", "http://"] {
            assert!(
                matches!(of(bad, 1.0).check(), Err(BadSpans::Url(_))),
                "{bad}"
            );
        }
        let part = of("http://collector:4318", 1.5).check().unwrap_err();
        assert!(part.to_string().contains("choose 0 to 1"), "{part}");
        assert!(of("http://collector:4318", 1.0).check().is_ok());
    }
}
