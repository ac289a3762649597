//! The end of a run: audit, summary for people, report for machines, exit code.

use std::path::Path;
use std::process::ExitCode;

use cabrank_loadgen::audit::AuditReport;
use cabrank_loadgen::demo::Outcome;
use cabrank_loadgen::report::Report;

use crate::commands::audit;
use crate::{AnyError, Common};

/// A directory for a run whose log nobody asked to keep; removed at the end.
pub struct Scratch(Option<tempfile::TempDir>);

impl Scratch {
    /// None when the caller has a directory of its own.
    pub fn unless(given: bool) -> Result<Scratch, AnyError> {
        let dir = if given {
            None
        } else {
            Some(tempfile::tempdir()?)
        };
        Ok(Scratch(dir))
    }

    /// Where it is.
    pub fn dir(&self) -> Option<&Path> {
        self.0.as_ref().map(tempfile::TempDir::path)
    }
}

/// Audits the stopped server's store and concludes.
pub fn conclude(
    outcome: Outcome,
    data_dir: &Path,
    file: Option<&Path>,
) -> Result<ExitCode, AnyError> {
    let audited = audit::of_store(data_dir, true, &outcome.acknowledged)?;
    finish(outcome.report, &audited, file)
}

/// Audits a running server's log and concludes.
pub fn conclude_remote(
    common: &Common,
    outcome: Outcome,
    url: &str,
    file: Option<&Path>,
) -> Result<ExitCode, AnyError> {
    let audited = audit::of_server(common, url, false, &outcome.acknowledged)?;
    finish(outcome.report, &audited, file)
}

/// Prints, writes and decides the exit code.
pub fn finish(
    report: Report,
    audited: &AuditReport,
    file: Option<&Path>,
) -> Result<ExitCode, AnyError> {
    let report = report.with_audit(audited.summary());
    if let Some(file) = file {
        std::fs::write(file, report.to_json() + "\n")
            .map_err(|why| format!("--report {}: {why}", file.display()))?;
    }
    print!("{}", summary(&report));
    print!("audit: {audited}");
    report
        .invalid_because
        .iter()
        .for_each(|why| println!("not valid: {why}"));
    report
        .notes
        .iter()
        .for_each(|note| println!("note: {note}"));
    Ok(if report.valid && audited.is_clean() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    })
}

fn summary(report: &Report) -> String {
    let (pings, rides, latency) = (&report.pings, &report.rides, &report.latency_ms);
    let refused: Vec<String> = pings
        .refused
        .iter()
        .map(|(reason, count)| format!("{reason} {count}"))
        .collect();
    let refused = if refused.is_empty() {
        String::new()
    } else {
        format!(" ({})", refused.join(", "))
    };
    let mut text = format!(
        "pings: {} sent in {:.0} s ({:.0}/s), {} accepted, {} refused{refused}, {} replaced\n",
        pings.sent,
        report.duration_s,
        pings.per_second,
        pings.accepted,
        pings.refused_total(),
        pings.replaced,
    );
    text += &format!(
        "rides: {} requested, {} acknowledged, {} assigned, {} completed, {} cancelled, {} unfulfilled\n",
        rides.requested,
        rides.acknowledged,
        rides.assigned,
        rides.completed,
        rides.cancelled,
        rides.unfulfilled,
    );
    for (name, quantiles) in [
        ("request -> offer", &latency.request_to_offer),
        ("request -> assigned", &latency.request_to_assigned),
        ("ping -> visible", &latency.ping_to_visible),
        ("command -> acknowledged", &latency.command_ack),
    ] {
        if quantiles.count > 0 {
            text += &format!(
                "{name}: p50 {:.1} ms, p90 {:.1}, p99 {:.1}, max {:.1} ({} measured)\n",
                quantiles.p50, quantiles.p90, quantiles.p99, quantiles.max, quantiles.count
            );
        }
    }
    text += &format!(
        "rider's wait: mean {:.0} s, p50 {:.0}, p95 {:.0}; pickup: mean {:.0} s, p50 {:.0}, p95 {:.0}\n",
        report.wait_s.mean,
        report.wait_s.p50,
        report.wait_s.p95,
        report.pickup_s.mean,
        report.pickup_s.p50,
        report.pickup_s.p95,
    );
    if let Some(quotes) = &report.quotes {
        text += &format!(
            "quotes: {} asked, {} with an interval for {:.0} of 100; {} pickups: {:.0} of 100 within, {} sooner, {} later; \
             of {} learned ones {:.0} of 100 within {:.0} s, {:.0} s off on average\n",
            quotes.asked,
            quotes.with_interval,
            quotes.share * 100.0,
            quotes.pickups,
            quotes.coverage * 100.0,
            quotes.sooner,
            quotes.later,
            quotes.learned_pickups,
            quotes.learned_coverage * 100.0,
            quotes.learned_length_s,
            quotes.learned_error_s,
        );
    }
    text
}
