//! `--find-max`: one run a trial, until the highest rate that keeps the bound is known.

use std::sync::Arc;

use cabrank_loadgen::load::plan::Plan;
use cabrank_loadgen::load::report::Trial;
use cabrank_loadgen::load::schedule::Rate;
use cabrank_loadgen::load::search::Search;

use super::{LoadArgs, MaxKind, Ran, print_status};
use crate::AnyError;

/// Looks for the highest rate of one kind that keeps the bound; answers the best run, with all rides promised in all.
pub fn find_max(
    args: &LoadArgs,
    plan: &Plan,
    pids: &[u32],
    kind: MaxKind,
) -> Result<Ran, AnyError> {
    let bound = parse_ms(args.p99_below.as_deref().unwrap_or("20ms"))?;
    let first = match kind {
        MaxKind::Pings => plan.pings.to,
        MaxKind::Rides => plan.rides.to,
        MaxKind::Nearby => plan.nearby.to,
    };
    if first <= 0.0 {
        return Err("--find-max: give the rate of that kind to begin with".into());
    }
    let mut search = Search::new(first);
    let mut trials = Vec::new();
    let mut best: Option<Ran> = None;
    let mut acknowledged = Vec::new();
    while let Some(rate) = search.rate() {
        let mut trial_plan = plan.clone();
        trial_plan.run = format!("{}t{}", plan.run, trials.len());
        let steady = Rate::steady(rate);
        let (name, p99_of) = match kind {
            MaxKind::Pings => {
                trial_plan.pings = steady;
                ("ping", "ping_to_visible")
            }
            MaxKind::Rides => {
                trial_plan.rides = steady;
                ("request", "request_to_offer")
            }
            MaxKind::Nearby => {
                trial_plan.nearby = steady;
                ("nearby", "nearby")
            }
        };
        let ran = Ran::of(args, &trial_plan, pids, Arc::new(print_status))?;
        acknowledged.extend(ran.acknowledged.iter().cloned());
        let load = ran.report.load.clone().unwrap_or_default();
        let done = load
            .kinds
            .get(name)
            .map_or(0.0, |kind| kind.done_per_second);
        let offered = load
            .kinds
            .get(name)
            .map_or(0.0, |kind| kind.offered_per_second);
        let p99_ms = load
            .kinds
            .get(p99_of)
            .map_or(f64::INFINITY, |kind| kind.latency_ms.p99);
        let why = if p99_ms > bound {
            format!("p99 {p99_ms:.1} ms")
        } else if done < offered * 0.98 {
            format!("only {done:.0}/s of {offered:.0}/s were done")
        } else {
            ran.report.invalid_because.join("; ")
        };
        let kept = why.is_empty();
        eprintln!(
            "trial: {rate:.0}/s: p99 {p99_ms:.2} ms{}{why}",
            if kept { ", kept" } else { ", " }
        );
        trials.push(Trial {
            per_second: rate,
            done_per_second: done,
            p99_ms,
            kept,
            why,
        });
        if kept || best.is_none() {
            best = Some(ran);
        }
        search.handle(kept);
    }
    let mut best = best.ok_or("no trial was made")?;
    best.acknowledged = acknowledged;
    match search.best() {
        Some(rate) => best.report.notes.push(format!(
            "the highest rate with p99 below {bound} ms: {rate:.0}/s"
        )),
        None => best
            .report
            .invalidate(format!("no rate kept p99 below {bound} ms")),
    }
    if let Some(load) = &mut best.report.load {
        load.search = trials;
    }
    Ok(best)
}

pub fn parse_ms(text: &str) -> Result<f64, AnyError> {
    let number = text
        .trim()
        .trim_end_matches("ms")
        .trim()
        .parse::<f64>()
        .ok();
    Ok(number
        .filter(|ms| *ms > 0.0)
        .ok_or_else(|| format!("--p99-below {text}: give milliseconds, for example 20ms"))?)
}
