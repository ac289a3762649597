//! What did a run do, in numbers? `cabrank.report/1`.
//!
//! The schema stands in `docs/report.schema.json` and a test keeps it current. Later kinds of runs add sections; what is
//! here keeps its name and meaning. Latencies are wall time in ms, counted from when a message *should* have left;
//! waits are domain time in seconds.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The value of [`Report::schema`].
pub const REPORT_SCHEMA: &str = "cabrank.report/1";
/// Latencies above this are recorded as this (one hour).
const LATENCY_US_MAX: u64 = 3_600_000_000;
/// Waits above this are recorded as this (a week).
const SPAN_MS_MAX: u64 = 7 * 24 * 3_600_000;

/// One run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Report {
    /// `cabrank.report/1`.
    pub schema: String,
    /// The run did what its numbers claim to measure, and the audit (if there was one) found nothing.
    pub valid: bool,
    /// Why it is not valid; empty when it is.
    pub invalid_because: Vec<String>,
    /// What else a reader should know (bad rows, restarts of the server).
    pub notes: Vec<String>,
    /// Length of the run in wall seconds, without connecting and settling.
    pub duration_s: f64,
    /// Position reports.
    pub pings: PingReport,
    /// Rides.
    pub rides: RideReport,
    /// Wall-clock latencies.
    pub latency_ms: LatencyReport,
    /// From the request to the rider getting in, domain seconds, rides that were started.
    pub wait_s: SpanReport,
    /// From the assignment to the arrival of that driver, domain seconds.
    pub pickup_s: SpanReport,
    /// How often pickups came when quotes had said; absent if no rider asked for a quote.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quotes: Option<QuoteReport>,
    /// What the audit found; absent if none was run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audit: Option<AuditSummary>,
    /// What a load run measured besides; absent for other kinds of runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load: Option<crate::load::report::LoadReport>,
    /// Where it ran.
    pub machine: Machine,
    /// Version of the program.
    pub version: String,
    /// The command line or its equal.
    pub arguments: Vec<String>,
    /// The seed that repeats it.
    pub seed: u64,
}

/// Position reports of a run: accepted + refused + replaced + unaccounted = sent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PingReport {
    /// Put on the wire by the phones.
    pub sent: u64,
    /// Believed by the server.
    pub accepted: u64,
    /// Refused by the server, by reason.
    pub refused: BTreeMap<String, u64>,
    /// Overtaken by a newer one of the same driver before they were looked at.
    pub replaced: u64,
    /// Sent, but not counted by the server: lost with a socket that broke or with a server that was killed.
    pub unaccounted: i64,
    /// Sent per wall second of the run.
    pub per_second: f64,
}

impl PingReport {
    /// All refused ones.
    pub fn refused_total(&self) -> u64 {
        self.refused.values().sum()
    }
}

/// Rides of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RideReport {
    /// Wishes sent by riders.
    pub requested: u64,
    /// Acknowledged by the server: they reach exactly one end.
    pub acknowledged: u64,
    /// Refused by the server for good.
    pub refused: u64,
    /// Wishes whose fate stayed unknown up to the end of the run.
    pub unknown: u64,
    /// Rides that had a driver at least once.
    pub assigned: u64,
    /// Rides brought to their destination.
    pub completed: u64,
    /// Rides called off.
    pub cancelled: u64,
    /// Rides nobody was found for.
    pub unfulfilled: u64,
    /// Still open when the run ended.
    pub open: u64,
}

/// Latencies in ms.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LatencyReport {
    /// From when the request should have left to the (first) offer on a driver's phone.
    pub request_to_offer: Quantiles,
    /// From when the request should have left to `ride.driver_assigned` on the event stream; the driver's thinking is in it.
    pub request_to_assigned: Quantiles,
    /// From when a ping should have left to its place in the answer of `GET /v1/nearby` (sampled by one probe).
    pub ping_to_visible: Quantiles,
    /// From when a command should have left to its committed outcome.
    pub command_ack: Quantiles,
}

/// Quotes against what happened: domain seconds from the request to the arrival of the car, rides with an arrival only.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct QuoteReport {
    /// Asked for, each right before its request.
    pub asked: u64,
    /// That gave an interval; the others said that nothing honest could be said.
    pub with_interval: u64,
    /// The share of pickups that an interval is to hold, as the server says.
    pub share: f64,
    /// Pickups that had an interval.
    pub pickups: u64,
    /// Of those within it, sooner, and later.
    pub within: u64,
    /// Sooner than its beginning.
    pub sooner: u64,
    /// Later than its end.
    pub later: u64,
    /// `within` of `pickups`; the same of intervals that were learned from rides, leaving out the first wide guesses.
    pub coverage: f64,
    /// See `coverage`.
    pub learned_pickups: u64,
    /// See `coverage`.
    pub learned_coverage: f64,
    /// The mean length of a learned interval, in seconds.
    pub learned_length_s: f64,
    /// The mean distance from `likely_s`, in seconds, of learned ones.
    pub learned_error_s: f64,
}

/// Points of a distribution.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Quantiles {
    /// How many were measured; with 0 the others mean nothing.
    pub count: u64,
    /// Half were at most this.
    pub p50: f64,
    /// Nine in ten.
    pub p90: f64,
    /// 99 in 100.
    pub p99: f64,
    /// 999 in 1000.
    pub p999: f64,
    /// The largest.
    pub max: f64,
}

/// Domain seconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SpanReport {
    /// How many were measured; with 0 the others mean nothing.
    pub count: u64,
    /// The mean.
    pub mean: f64,
    /// Half were at most this.
    pub p50: f64,
    /// 95 in 100.
    pub p95: f64,
}

/// The audit in three numbers; `cabrank audit` prints the rest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AuditSummary {
    /// Events read.
    pub events: u64,
    /// Rides seen.
    pub rides: u64,
    /// Broken invariants.
    pub violations: u64,
}

/// Where a run ran.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Machine {
    /// As the system names it; empty if it does not.
    pub cpu: String,
    /// Cores this process may use.
    pub cores: u32,
    /// Memory in MiB; 0 if not known.
    pub memory_mib: u64,
    /// Operating system and architecture.
    pub system: String,
}

impl Machine {
    /// The machine this runs on.
    pub fn here() -> Machine {
        let field = |path: &str, name: &str| {
            let text = std::fs::read_to_string(path).unwrap_or_default();
            let line = text.lines().find(|line| line.starts_with(name));
            line.and_then(|line| line.split_once(':'))
                .map(|(_, value)| value.trim().to_owned())
        };
        let memory_kib: u64 = field("/proc/meminfo", "MemTotal")
            .and_then(|text| text.split_whitespace().next()?.parse().ok())
            .unwrap_or(0);
        Machine {
            cpu: field("/proc/cpuinfo", "model name").unwrap_or_default(),
            cores: std::thread::available_parallelism()
                .map_or(1, |cores| u32::try_from(cores.get()).unwrap_or(u32::MAX)),
            memory_mib: memory_kib / 1024,
            system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        }
    }
}

impl Report {
    /// Adds the audit's result; a violation makes the run invalid.
    pub fn with_audit(mut self, audit: AuditSummary) -> Report {
        if audit.violations > 0 {
            self.invalidate(format!("the audit found {} violation(s)", audit.violations));
        }
        self.audit = Some(audit);
        self
    }

    /// Says why the run does not count.
    pub fn invalidate(&mut self, why: String) {
        self.valid = false;
        self.invalid_because.push(why);
    }

    /// The report as it is written to a file.
    pub fn to_json(&self) -> String {
        let mut text =
            serde_json::to_string_pretty(self).expect("a report holds only JSON's own kinds");
        text.push('\n');
        text
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (pings, rides, latency) = (&self.pings, &self.rides, &self.latency_ms);
        writeln!(f, "ran {:.1} s, seed {}", self.duration_s, self.seed)?;
        writeln!(
            f,
            "pings   {} sent ({:.0}/s), {} accepted, {} refused, {} replaced, {} unaccounted",
            pings.sent,
            pings.per_second,
            pings.accepted,
            pings.refused_total(),
            pings.replaced,
            pings.unaccounted
        )?;
        for (reason, count) in pings.refused.iter().filter(|(_, count)| **count > 0) {
            writeln!(f, "        refused {reason}: {count}")?;
        }
        writeln!(
            f,
            "rides   {} requested, {} acknowledged, {} assigned, {} completed, {} cancelled, {} unfulfilled, {} open",
            rides.requested,
            rides.acknowledged,
            rides.assigned,
            rides.completed,
            rides.cancelled,
            rides.unfulfilled,
            rides.open
        )?;
        for (name, q) in [
            ("request->offer", &latency.request_to_offer),
            ("request->assigned", &latency.request_to_assigned),
            ("ping->visible", &latency.ping_to_visible),
            ("command ack", &latency.command_ack),
        ] {
            writeln!(
                f,
                "{name:<18} p50 {:.1} ms, p99 {:.1} ms, max {:.1} ms ({} measured)",
                q.p50, q.p99, q.max, q.count
            )?;
        }
        for (name, span) in [("wait", &self.wait_s), ("pickup", &self.pickup_s)] {
            writeln!(
                f,
                "{name:<18} mean {:.0} s, p50 {:.0} s, p95 {:.0} s ({} measured)",
                span.mean, span.p50, span.p95, span.count
            )?;
        }
        if let Some(audit) = &self.audit {
            writeln!(
                f,
                "audit   {} events, {} rides, {} violations",
                audit.events, audit.rides, audit.violations
            )?;
        }
        for note in &self.notes {
            writeln!(f, "note    {note}")?;
        }
        for why in &self.invalid_because {
            writeln!(f, "INVALID {why}")?;
        }
        Ok(())
    }
}

/// Collects wall-clock latencies.
#[derive(Clone, Debug)]
pub struct LatencyHistogram(Histogram<u64>);

impl Default for LatencyHistogram {
    fn default() -> Self {
        Self(bounded(LATENCY_US_MAX))
    }
}

/// Collects domain spans.
#[derive(Clone, Debug)]
pub struct SpanHistogram(Histogram<u64>);

impl Default for SpanHistogram {
    fn default() -> Self {
        Self(bounded(SPAN_MS_MAX))
    }
}

fn bounded(max: u64) -> Histogram<u64> {
    Histogram::new_with_max(max, 3).expect("three digits and a constant bound above 2 are valid")
}

impl LatencyHistogram {
    /// Takes one latency.
    pub fn record(&mut self, latency: Duration) {
        self.0
            .saturating_record(u64::try_from(latency.as_micros()).unwrap_or(LATENCY_US_MAX));
    }

    /// The distribution so far.
    pub fn quantiles(&self) -> Quantiles {
        let ms = |us: u64| us as f64 / 1000.0;
        let at = |q: f64| ms(self.0.value_at_quantile(q));
        Quantiles {
            count: self.0.len(),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: ms(self.0.max()),
        }
    }
}

impl SpanHistogram {
    /// Takes one span; a negative one (clocks of two shards) counts as none.
    pub fn record_ms(&mut self, ms: i64) {
        self.0.saturating_record(u64::try_from(ms).unwrap_or(0));
    }

    /// The distribution so far.
    pub fn report(&self) -> SpanReport {
        let seconds = |ms: f64| ms / 1000.0;
        SpanReport {
            count: self.0.len(),
            mean: seconds(self.0.mean()),
            p50: seconds(self.0.value_at_quantile(0.5) as f64),
            p95: seconds(self.0.value_at_quantile(0.95) as f64),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Report {
        let mut latency = LatencyHistogram::default();
        let mut span = SpanHistogram::default();
        for n in 1..=100 {
            latency.record(Duration::from_millis(n));
            span.record_ms(n as i64 * 1000);
        }
        Report {
            schema: REPORT_SCHEMA.into(),
            valid: true,
            invalid_because: Vec::new(),
            notes: vec!["3 bad rows".into()],
            duration_s: 20.0,
            pings: PingReport {
                sent: 10,
                accepted: 8,
                refused: BTreeMap::from([("too_old".into(), 1)]),
                replaced: 1,
                unaccounted: 0,
                per_second: 0.5,
            },
            rides: RideReport {
                requested: 1,
                acknowledged: 1,
                completed: 1,
                ..Default::default()
            },
            latency_ms: LatencyReport {
                request_to_offer: latency.quantiles(),
                ..Default::default()
            },
            wait_s: span.report(),
            pickup_s: SpanHistogram::default().report(),
            quotes: None,
            audit: None,
            load: None,
            machine: Machine::here(),
            version: "0.1.0".into(),
            arguments: vec!["demo".into()],
            seed: 7,
        }
    }

    #[test]
    fn the_schema_in_docs_is_current_and_a_report_satisfies_it() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/report.schema.json");
        let schema = serde_json::to_value(schemars::schema_for!(Report)).unwrap();
        let current = serde_json::to_string_pretty(&schema).unwrap() + "\n";
        if std::env::var_os("CABRANK_WRITE_SCHEMAS").is_some() {
            std::fs::write(path, &current).unwrap();
        }
        let kept = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            kept == current,
            "{path} is not current: run with CABRANK_WRITE_SCHEMAS=1"
        );
        let validator = jsonschema::validator_for(&schema).unwrap();
        let audited = example().with_audit(AuditSummary {
            events: 5,
            rides: 1,
            violations: 0,
        });
        for report in [example(), audited] {
            let value: serde_json::Value = serde_json::from_str(&report.to_json()).unwrap();
            assert!(validator.is_valid(&value), "{value}");
            assert_eq!(serde_json::from_value::<Report>(value).unwrap(), report);
        }
        assert!(!validator.is_valid(&serde_json::json!({ "schema": REPORT_SCHEMA })));
    }

    #[test]
    fn quantiles_are_those_of_what_was_recorded() {
        let report = example();
        let q = &report.latency_ms.request_to_offer;
        assert_eq!(q.count, 100);
        assert!(
            (q.p50 - 50.0).abs() < 0.1 && (q.p99 - 99.0).abs() < 0.1,
            "{q:?}"
        );
        assert!((q.max - 100.0).abs() < 0.1);
        assert!((report.wait_s.mean - 50.5).abs() < 0.1 && (report.wait_s.p95 - 95.0).abs() < 0.1);
    }

    #[test]
    fn a_violation_makes_the_report_invalid() {
        let report = example().with_audit(AuditSummary {
            events: 5,
            rides: 1,
            violations: 2,
        });
        assert!(!report.valid);
        assert!(
            report
                .to_string()
                .contains("INVALID the audit found 2 violation(s)")
        );
    }
}
