//! What did a load run show? The section `load` of `cabrank.report/1`, and when a run does not count.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::conduct::Measured;
use super::plan::{Plan, Target};
use super::tally::{Count, Kind, Second};
use super::words;
use crate::report::{
    AuditSummary, LatencyReport, Machine, PingReport, Quantiles, REPORT_SCHEMA, Report, RideReport,
    SpanReport,
};

/// A generator that used more than this share of what its threads could use was itself the limit.
pub const BUSY_MAX: f64 = 0.9;

/// A machine that lost more than this share to its host's other guests is not quiet: what is late may be theirs.
pub const HOST_TOOK_MAX: f64 = 0.05;

/// A machine of which this share is used has no more to give.
pub const MACHINE_FULL: f64 = 0.85;

/// A load run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LoadReport {
    /// What was done, in words.
    pub workload: String,
    /// `cabrank`, `raw` or `redis`.
    pub target: String,
    /// Messages left by a schedule that knows nothing of the answers.
    pub open_loop: bool,
    /// Drivers, and how many of them had a socket throughout.
    pub drivers: u32,
    /// Drivers' sockets.
    pub connections: u32,
    /// Generator processes.
    pub processes: u32,
    /// Threads of each.
    pub threads: u32,
    /// Length of the measured time, seconds.
    pub measured_s: f64,
    /// By kind: `ping`, `ping_to_visible`, `nearby`, `request`, `request_to_offer`, `command`, `lateness`.
    pub kinds: BTreeMap<String, KindReport>,
    /// Refusals by kind and reason, warm-up included.
    pub refused: BTreeMap<String, BTreeMap<String, u64>>,
    /// Second by second.
    pub series: Vec<SecondReport>,
    /// Pings the server took in the measured time, a second; absent if it does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pings_taken_per_second: Option<f64>,
    /// The server's cost in the measured time, if it ran on this machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<Cost>,
    /// Memory of the server before the first socket, if it ran on this machine, MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_memory_before_mib: Option<f64>,
    /// The generator's cost in the measured time.
    pub generator: Cost,
    /// CPU that this machine wanted in the measured time and its host gave to other guests, cores; absent if it does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_took_cores: Option<f64>,
    /// What had to be kept, and was or was not (`--overload`, `--storm`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// How all came back after a restart (`--storm`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storm: Option<Storm>,
    /// The search for the highest rate, if there was one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<Trial>,
    /// What a search still showed after all had moved and left, if that was tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ghosts: Option<Ghosts>,
}

/// One kind of message over the measured time.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct KindReport {
    /// Due in the measured time.
    pub offered: u64,
    /// Due then, and done.
    pub done: u64,
    /// Offered a second.
    pub offered_per_second: f64,
    /// Done a second.
    pub done_per_second: f64,
    /// Latency in ms, counted from when the message should have left.
    pub latency_ms: Quantiles,
    /// The whole distribution in ns: HdrHistogram's V2 form, compressed, base64.
    pub histogram: String,
}

/// One second.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SecondReport {
    /// Seconds after the measured time began.
    pub second: u32,
    /// By kind.
    pub kinds: BTreeMap<String, SecondKind>,
    /// Cores the server used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_cores: Option<f64>,
    /// Memory the server held, MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_memory_mib: Option<f64>,
    /// Cores the generator used.
    pub generator_cores: f64,
}

/// One kind in one second.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SecondKind {
    /// Due in it.
    pub offered: u64,
    /// Due in it, and done.
    pub done: u64,
    /// Half were at most this, ms.
    pub p50: f64,
    /// 99 in 100 were at most this, ms.
    pub p99: f64,
}

/// What processes cost in the measured time.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Cost {
    /// CPU seconds.
    pub cpu_s: f64,
    /// Cores used on average.
    pub cores: f64,
    /// Memory at the beginning, MiB.
    pub memory_begin_mib: f64,
    /// Memory at the end, MiB.
    pub memory_end_mib: f64,
    /// The most it ever held, MiB.
    pub memory_max_mib: f64,
}

/// Something that had to be kept.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Condition {
    /// What.
    pub what: String,
    /// It was.
    pub kept: bool,
    /// What was found.
    pub found: String,
}

/// All sockets at once.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Storm {
    /// Drivers online before.
    pub sockets: u64,
    /// The fewest online that were seen.
    pub fewest: u64,
    /// From the first lost socket until all were online again, seconds; absent if that did not happen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub back_after_s: Option<f64>,
}

/// One step of a search for the highest rate.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Trial {
    /// Offered a second.
    pub per_second: f64,
    /// Done a second.
    pub done_per_second: f64,
    /// ms.
    pub p99_ms: f64,
    /// It kept the bound.
    pub kept: bool,
    /// Why not, or nothing.
    pub why: String,
}

/// Stale answers of a search.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Ghosts {
    /// Searches around the places all had left.
    pub searches_after_move: u64,
    /// Cars shown there.
    pub stale_after_move: u64,
    /// Searches around the places where all went offline.
    pub searches_after_offline: u64,
    /// Cars shown there.
    pub stale_after_offline: u64,
}

/// What makes a run invalid.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bounds {
    /// The generator's own lateness, p99.
    pub lateness_p99_ms: f64,
    /// Rides left open and unsent pings are what an overload is about.
    pub is_overload: bool,
}

impl Default for Bounds {
    fn default() -> Self {
        Bounds {
            lateness_p99_ms: 5.0,
            is_overload: false,
        }
    }
}

fn kind_report(count: &Count, seconds: f64) -> KindReport {
    KindReport {
        offered: count.offered,
        done: count.done,
        offered_per_second: count.offered as f64 / seconds,
        done_per_second: count.done as f64 / seconds,
        latency_ms: count.times.quantiles(),
        histogram: count.times.to_base64(),
    }
}

fn second_kinds(second: &Second) -> BTreeMap<String, SecondKind> {
    let kind = |count: &Count| SecondKind {
        offered: count.offered,
        done: count.done,
        p50: count.times.ms_at(0.5),
        p99: count.times.ms_at(0.99),
    };
    second
        .kinds
        .iter()
        .map(|(name, count)| (name.name().to_owned(), kind(count)))
        .collect()
}

/// Builds the report of a run; the audit comes later ([`Report::with_audit`]).
pub fn report(plan: &Plan, measured: &Measured, bounds: &Bounds, arguments: Vec<String>) -> Report {
    let load = section(plan, measured);
    let tally = &measured.tally;
    let seconds = load.measured_s;
    let counted = measured.counted_all.clone().unwrap_or_default();
    let quantiles = |kind: Kind| {
        tally
            .kinds
            .get(&kind)
            .map(|c| c.times.quantiles())
            .unwrap_or_default()
    };
    let rides = tally.rides.values().filter(|ride| ride.promised.is_some());
    let mut ride_report = RideReport {
        requested: tally.requested,
        refused: tally
            .refused
            .get(&Kind::Request)
            .map_or(0, |reasons| reasons.values().sum()),
        unknown: tally.unclear.len() as u64,
        ..RideReport::default()
    };
    for ride in rides {
        ride_report.acknowledged += 1;
        ride_report.assigned += u64::from(ride.assigned);
        match (ride.completed, ride.cancelled) {
            (true, _) => ride_report.completed += 1,
            (false, true) => ride_report.cancelled += 1,
            (false, false) => ride_report.open += 1,
        }
    }
    let has_counters = measured.counted_all.is_some();
    let unaccounted = tally.pings_sent as i64 - counted.total() as i64;
    let mut report = Report {
        schema: REPORT_SCHEMA.to_owned(),
        valid: true,
        invalid_because: Vec::new(),
        notes: Vec::new(),
        duration_s: seconds,
        pings: PingReport {
            sent: tally.pings_sent,
            accepted: counted.accepted,
            refused: counted.refused,
            replaced: counted.replaced,
            unaccounted: if has_counters { unaccounted } else { 0 },
            per_second: tally
                .kinds
                .get(&Kind::Ping)
                .map_or(0.0, |c| c.done as f64 / seconds),
        },
        rides: ride_report,
        latency_ms: LatencyReport {
            request_to_offer: quantiles(Kind::RequestToOffer),
            request_to_assigned: Quantiles::default(),
            ping_to_visible: quantiles(Kind::PingToVisible),
            command_ack: quantiles(Kind::Command),
        },
        wait_s: SpanReport::default(),
        pickup_s: SpanReport::default(),
        quotes: None,
        audit: None::<AuditSummary>,
        load: Some(load),
        machine: Machine::here(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        arguments,
        seed: plan.seed,
    };
    judge(&mut report, plan, measured, bounds);
    report
}

fn section(plan: &Plan, measured: &Measured) -> LoadReport {
    let tally = &measured.tally;
    let (first, last) = (measured.samples.first(), measured.samples.last());
    let between = match (first, last) {
        (Some(first), Some(last)) => last.at_s - first.at_s,
        _ => 0.0,
    };
    let seconds = if measured.stopped {
        between.max(0.001)
    } else {
        plan.seconds
    };
    let cost = |first: super::usage::Usage, last: super::usage::Usage| Cost {
        cpu_s: last.cpu_s - first.cpu_s,
        cores: (last.cpu_s - first.cpu_s) / between.max(0.001),
        memory_begin_mib: first.memory_mib,
        memory_end_mib: last.memory_mib,
        memory_max_mib: last.memory_max_mib,
    };
    let mut series: Vec<SecondReport> = Vec::new();
    for (n, second) in tally.seconds.iter().enumerate() {
        let pair = measured.samples.get(n).zip(measured.samples.get(n + 1));
        let (server, generator) = pair.map_or((None, 0.0), |(a, b)| {
            let since = (b.at_s - a.at_s).max(0.001);
            let server = a
                .server
                .zip(b.server)
                .map(|(a, b)| ((b.cpu_s - a.cpu_s) / since, b.memory_mib));
            (server, (b.generator.cpu_s - a.generator.cpu_s) / since)
        });
        series.push(SecondReport {
            second: n as u32,
            kinds: second_kinds(second),
            server_cores: server.map(|(cores, _)| cores),
            server_memory_mib: server.map(|(_, memory)| memory),
            generator_cores: generator,
        });
    }
    let refused = tally
        .refused
        .iter()
        .map(|(kind, reasons)| (kind.name().to_owned(), reasons.clone()));
    LoadReport {
        workload: words::workload(plan),
        target: match plan.target {
            Target::Cabrank => "cabrank",
            Target::Raw => "raw",
            Target::Redis => "redis",
        }
        .to_owned(),
        open_loop: plan.closed_loop.is_none(),
        drivers: plan.drivers,
        connections: plan.connections.min(plan.drivers),
        processes: plan.parts,
        threads: plan.threads,
        measured_s: seconds,
        kinds: tally
            .kinds
            .iter()
            .map(|(kind, count)| (kind.name().to_owned(), kind_report(count, seconds)))
            .collect(),
        refused: refused.collect(),
        series,
        pings_taken_per_second: measured
            .counted
            .as_ref()
            .map(|c| c.total() as f64 / between.max(0.001)),
        server: first
            .zip(last)
            .and_then(|(a, b)| a.server.zip(b.server))
            .map(|(a, b)| cost(a, b)),
        generator: first
            .zip(last)
            .map(|(a, b)| cost(a.generator, b.generator))
            .unwrap_or_default(),
        host_took_cores: first
            .zip(last)
            .and_then(|(a, b)| Some((b.host_took_s? - a.host_took_s?) / between.max(0.001))),
        server_memory_before_mib: measured.idle.map(|idle| idle.memory_mib),
        conditions: Vec::new(),
        storm: None,
        search: Vec::new(),
        ghosts: None,
    }
}

/// Says why a run does not count, and what else a reader should know.
fn judge(report: &mut Report, plan: &Plan, measured: &Measured, bounds: &Bounds) {
    let tally = &measured.tally;
    let load = report.load.clone().unwrap_or_default();
    if load.open_loop {
        let threads = f64::from(plan.parts * plan.threads);
        let busy = load.generator.cores / threads.min(f64::from(report.machine.cores));
        if busy > BUSY_MAX {
            report.invalidate(format!(
                "the generator itself was the limit: it used {:.0} % of the CPU its threads can use",
                busy * 100.0
            ));
        }
        let late = load
            .kinds
            .get(Kind::Lateness.name())
            .map_or(0.0, |kind| kind.latency_ms.p99);
        if late > bounds.lateness_p99_ms {
            let what = format!(
                "the generator itself was late: p99 {late:.1} ms, bound {:.1} ms",
                bounds.lateness_p99_ms
            );
            // More is offered than the machine can take, on purpose. Latency counts from when a message should have left,
            // so what is late speaks against the server: what was kept nevertheless was kept.
            if bounds.is_overload {
                report.notes.push(what);
            } else {
                report.invalidate(what);
            }
        }
    }
    // A closed loop is as fast as the slower side. Where neither that nor the machine is the server's fault:
    if let (false, Some(server)) = (load.open_loop, &load.server) {
        let threads = f64::from(plan.parts * plan.threads);
        let cores = f64::from(report.machine.cores);
        let both = load.generator.cores + server.cores;
        if load.generator.cores > BUSY_MAX * threads.min(cores) && both < MACHINE_FULL * cores {
            report.invalidate(format!(
                "the generator itself was the limit: its {:.2} cores were all its threads can use, the server used {:.2} of {cores}",
                load.generator.cores, server.cores
            ));
        }
    }
    if tally.overflowed > 0 {
        report.invalidate(format!(
            "{} messages were not sent: a bound of the generator was reached",
            tally.overflowed
        ));
    }
    if tally.complaints > 0 {
        let first = tally.complaint.clone().unwrap_or_default();
        report.invalidate(format!(
            "{} complaints, the first: {first}",
            tally.complaints
        ));
    }
    if measured.counted_all.is_some() && report.pings.unaccounted != 0 {
        let what = format!(
            "{} pings sent were not counted by the server",
            report.pings.unaccounted
        );
        if tally.sockets_lost > 0 || bounds.is_overload {
            report
                .notes
                .push(format!("{what} ({} sockets lost)", tally.sockets_lost));
        } else {
            report.invalidate(what);
        }
    }
    if tally.pings_unsent > 0 {
        let what = format!(
            "{} pings were not sent: their socket was full or gone",
            tally.pings_unsent
        );
        if bounds.is_overload || measured.stopped {
            report.notes.push(what);
        } else {
            report.invalidate(what);
        }
    }
    if tally.sockets_lost > 0 && measured.counted_all.is_some() {
        report
            .notes
            .push(format!("{} sockets were lost", tally.sockets_lost));
    }
    let took = load.host_took_cores.unwrap_or(0.0);
    if took > HOST_TOOK_MAX * f64::from(report.machine.cores) {
        report.notes.push(format!(
            "this machine's host gave {took:.2} of its {} cores to other guests meanwhile: repeat it in a quieter hour",
            report.machine.cores
        ));
    }
    if measured.stopped {
        report.notes.push("the run was ended early".into());
    }
    for (kind, reasons) in &tally.refused {
        for (reason, count) in reasons {
            report
                .notes
                .push(format!("{}: {count} x {reason}", kind.name()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::conduct::Sample;
    use super::super::schedule::Rate;
    use super::super::tally::{RideSeen, Tally};
    use super::super::usage::Usage;
    use super::*;
    use crate::client::counters::PingCounts;

    const SECOND: u64 = 1_000_000_000;

    fn example(late_ns: u64, generator_cores: f64) -> Report {
        let mut plan = Plan::new("http://127.0.0.1:1", "a secret");
        plan.pings = Rate::steady(100.0);
        plan.rides = Rate::steady(1.0);
        plan.seconds = 2.0;
        let mut tally = Tally::new(SECOND, 2 * SECOND);
        for n in 0..200 {
            let due = SECOND + n * SECOND / 100;
            tally.offered(Kind::Ping, due, 1);
            tally.done(Kind::Ping, due, due + 1_000_000, 1);
            tally.done(Kind::Lateness, due, due + late_ns, 1);
        }
        tally.pings_sent = 200;
        tally.refuse(Kind::Request, "503 busy");
        let ride = tally.ride("1-2-3".parse().unwrap()).unwrap();
        *ride = RideSeen {
            due: Some(SECOND),
            promised: Some(SECOND + 1),
            offered: Some(SECOND + 3_000_000),
            assigned: true,
            completed: true,
            cancelled: false,
        };
        tally.match_offers();
        let usage = |cpu_s| Usage {
            cpu_s,
            memory_mib: 10.0,
            memory_max_mib: 11.0,
        };
        let sample = |n: u32| Sample {
            at_s: f64::from(n),
            server: Some(usage(f64::from(n) * 0.5)),
            generator: usage(f64::from(n) * generator_cores),
            host_took_s: Some(f64::from(n) * 0.1 * f64::from(Machine::here().cores)),
        };
        let counted = PingCounts {
            accepted: 200,
            ..PingCounts::default()
        };
        let measured = Measured {
            tally,
            samples: (0..3).map(sample).collect(),
            counted: Some(counted.clone()),
            counted_all: Some(counted),
            ..Measured::default()
        };
        report(&plan, &measured, &Bounds::default(), vec!["load".into()])
    }

    #[test]
    fn a_report_satisfies_the_schema_and_says_what_was_measured() {
        let report = example(10_000, 0.3);
        let schema = serde_json::to_value(schemars::schema_for!(Report)).unwrap();
        let value: serde_json::Value = serde_json::from_str(&report.to_json()).unwrap();
        let validator = jsonschema::validator_for(&schema).unwrap();
        assert!(validator.is_valid(&value), "{value}");
        assert_eq!(serde_json::from_value::<Report>(value).unwrap(), report);
        assert!(report.valid, "{:?}", report.invalid_because);
        let load = report.load.as_ref().unwrap();
        assert_eq!(load.kinds["ping"].done_per_second, 100.0);
        assert!((load.kinds["request_to_offer"].latency_ms.max - 3.0).abs() < 0.01);
        assert_eq!(load.server.as_ref().unwrap().cores, 0.5);
        let took = load.host_took_cores.unwrap() / f64::from(report.machine.cores);
        assert!(
            (took - 0.1).abs() < 1e-9,
            "a tenth of the machine went to others: {took}"
        );
        assert!(
            report
                .notes
                .iter()
                .any(|note| note.contains("other guests"))
        );
        assert_eq!(
            (load.series.len(), load.series[1].kinds["ping"].done),
            (2, 100)
        );
        assert_eq!(load.refused["request"]["503 busy"], 1);
        assert_eq!((report.rides.completed, report.rides.open), (1, 0));
        assert!(!report.to_json().contains("a secret"));
        let page = super::super::html::page(&report).unwrap();
        assert!(
            page.matches("<svg").count() == 5
                && page.contains("503 busy")
                && page.contains("100 pings/s")
        );
        assert!(
            !page.contains("src=") && !page.contains("href="),
            "nothing is fetched"
        );
    }

    #[test]
    fn a_generator_that_was_the_limit_makes_the_run_invalid() {
        let late = example(20_000_000, 0.3);
        assert!(
            late.invalid_because[0].contains("the generator itself was late: p99 20.0 ms"),
            "{:?}",
            late.invalid_because
        );
        let busy = example(10_000, 0.97);
        assert!(
            busy.invalid_because[0].contains("the generator itself was the limit"),
            "{:?}",
            busy.invalid_because
        );
    }
}
