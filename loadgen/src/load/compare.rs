//! Is one run better than another, or is that noise? Reports side by side.
//!
//! A side is several runs of one thing. A difference counts only if every run of one side lies beyond every run of the
//! other, and both sides have [`RUNS_MIN`] runs: with three against three, chance alone does that once in ten times,
//! with five against five once in 126.

use std::fmt::Write as _;

use crate::report::Report;

/// Fewer runs of a side say nothing about its noise.
pub const RUNS_MIN: usize = 3;

/// Several runs of one thing.
#[derive(Clone, Debug)]
pub struct Side {
    /// What it is called in the table.
    pub name: String,
    /// Its runs.
    pub runs: Vec<Report>,
}

/// What can be said of a difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All runs of the second side are larger.
    Larger,
    /// All are smaller.
    Smaller,
    /// The runs overlap.
    WithinNoise,
    /// Not enough runs to know.
    TooFewRuns,
}

impl Verdict {
    fn words(self) -> &'static str {
        match self {
            Verdict::Larger => "larger",
            Verdict::Smaller => "smaller",
            Verdict::WithinNoise => "within the noise",
            Verdict::TooFewRuns => "too few runs",
        }
    }
}

fn span(values: &[f64]) -> (f64, f64) {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    (least, most)
}

/// The middle value; the mean of the middle two.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
    }
}

/// How the second side's values stand to the first's.
pub fn verdict(first: &[f64], second: &[f64]) -> Verdict {
    if first.len() < RUNS_MIN || second.len() < RUNS_MIN {
        return Verdict::TooFewRuns;
    }
    let (first, second) = (span(first), span(second));
    if second.0 > first.1 {
        Verdict::Larger
    } else if second.1 < first.0 {
        Verdict::Smaller
    } else {
        Verdict::WithinNoise
    }
}

/// One number of a run, if it has it.
type Measure = fn(&Report) -> Option<f64>;

fn kind(report: &Report, name: &str, of: fn(&super::report::KindReport) -> f64) -> Option<f64> {
    let kind = report.load.as_ref()?.kinds.get(name)?;
    (kind.done > 0).then(|| of(kind))
}

/// Microseconds of server CPU a ping.
fn cpu_per_ping(report: &Report) -> Option<f64> {
    let load = report.load.as_ref()?;
    let pings = load.pings_taken_per_second.filter(|rate| *rate > 0.0)? * load.measured_s;
    Some(load.server.as_ref()?.cpu_s * 1e6 / pings)
}

const MEASURES: [(&str, Measure); 23] = [
    ("pings taken a second", |r| {
        r.load
            .as_ref()?
            .pings_taken_per_second
            .filter(|rate| *rate > 0.0)
    }),
    ("ping p50 ms", |r| kind(r, "ping", |k| k.latency_ms.p50)),
    ("ping p99 ms", |r| kind(r, "ping", |k| k.latency_ms.p99)),
    ("ping to visible p50 ms", |r| {
        kind(r, "ping_to_visible", |k| k.latency_ms.p50)
    }),
    ("ping to visible p99 ms", |r| {
        kind(r, "ping_to_visible", |k| k.latency_ms.p99)
    }),
    ("searches a second", |r| {
        kind(r, "nearby", |k| k.done_per_second)
    }),
    ("search p50 ms", |r| kind(r, "nearby", |k| k.latency_ms.p50)),
    ("search p99 ms", |r| kind(r, "nearby", |k| k.latency_ms.p99)),
    ("ride requests a second", |r| {
        kind(r, "request", |k| k.done_per_second)
    }),
    ("request p50 ms", |r| {
        kind(r, "request", |k| k.latency_ms.p50)
    }),
    ("request p99 ms", |r| {
        kind(r, "request", |k| k.latency_ms.p99)
    }),
    ("request to offer p50 ms", |r| {
        kind(r, "request_to_offer", |k| k.latency_ms.p50)
    }),
    ("request to offer p99 ms", |r| {
        kind(r, "request_to_offer", |k| k.latency_ms.p99)
    }),
    ("command p50 ms", |r| {
        kind(r, "command", |k| k.latency_ms.p50)
    }),
    ("command p99 ms", |r| {
        kind(r, "command", |k| k.latency_ms.p99)
    }),
    ("rides completed", |r| {
        (r.rides.completed > 0).then_some(r.rides.completed as f64)
    }),
    ("server cores", |r| {
        Some(r.load.as_ref()?.server.as_ref()?.cores)
    }),
    ("server us a ping", cpu_per_ping),
    ("server memory MiB, end", |r| {
        Some(r.load.as_ref()?.server.as_ref()?.memory_end_mib)
    }),
    ("server memory MiB, most", |r| {
        Some(r.load.as_ref()?.server.as_ref()?.memory_max_mib)
    }),
    ("generator cores", |r| {
        Some(r.load.as_ref()?.generator.cores)
    }),
    ("cores given to other guests", |r| {
        r.load.as_ref()?.host_took_cores
    }),
    ("generator lateness p99 ms", |r| {
        kind(r, "lateness", |k| k.latency_ms.p99)
    }),
];

/// The table for people. Each further side is compared with the first.
pub fn table(sides: &[Side]) -> String {
    let mut text = String::new();
    for side in sides {
        let invalid = side.runs.iter().filter(|run| !run.valid).count();
        let _ = writeln!(text, "{}: {} run(s)", side.name, side.runs.len());
        if let Some(load) = side.runs.first().and_then(|run| run.load.as_ref()) {
            let _ = writeln!(text, "  {}", load.workload);
        }
        if invalid > 0 {
            let _ = writeln!(text, "  NOT VALID: {invalid} of them; see their reports");
        }
    }
    let _ = write!(text, "\n{:<28}", "median [least, most]");
    for side in sides {
        let _ = write!(text, "{:>32}", side.name);
    }
    let _ = writeln!(text);
    for (name, measure) in MEASURES {
        let columns: Vec<Vec<f64>> = sides
            .iter()
            .map(|side| side.runs.iter().filter_map(measure).collect())
            .collect();
        if columns.iter().all(Vec::is_empty) {
            continue;
        }
        let _ = write!(text, "{name:<28}");
        for values in &columns {
            let shown = if values.is_empty() {
                "-".to_owned()
            } else {
                let (least, most) = span(values);
                format!(
                    "{} [{}, {}]",
                    number(median(values)),
                    number(least),
                    number(most)
                )
            };
            let _ = write!(text, "{shown:>32}");
        }
        let base = &columns[0];
        for values in &columns[1..] {
            if !values.is_empty() && !base.is_empty() && median(base) != 0.0 {
                let ratio = median(values) / median(base);
                let _ = write!(text, "   x {ratio:.3} {}", verdict(base, values).words());
            }
        }
        let _ = writeln!(text);
    }
    text
}

fn number(value: f64) -> String {
    match value.abs() {
        large if large >= 1_000.0 => format!("{value:.0}"),
        middle if middle >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_counts_only_beyond_all_repetitions() {
        let steady = [100.0, 102.0, 98.0];
        assert_eq!(verdict(&steady, &[120.0, 119.0, 125.0]), Verdict::Larger);
        assert_eq!(verdict(&steady, &[90.0, 91.0, 97.9]), Verdict::Smaller);
        assert_eq!(
            verdict(&steady, &[101.0, 130.0, 140.0]),
            Verdict::WithinNoise
        );
        assert_eq!(
            verdict(&steady, &[200.0]),
            Verdict::TooFewRuns,
            "one run may be anything"
        );
        assert_eq!(verdict(&[1.0], &steady), Verdict::TooFewRuns);
    }

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&[]).is_nan());
    }
}
