//! Was kept what must be kept when more comes than can be taken, or all come at once?
//!
//! Pure: reads what a run measured. An overload has three phases, each a range of seconds of the measured time; what is
//! normal is taken from the first.

use std::ops::Range;

use super::report::{Condition, LoadReport, Storm};
use super::tally::{Kind, NO_RETRY_AFTER, Tally, Times};

/// Open rides may be served so many times slower than normal.
const SLOWER_MAX: f64 = 3.0;
/// After the load has ended all is well again within so many seconds.
pub const RECOVERY_S: usize = 5;
/// Memory may grow by this share in the second half of an overload, or by `GROWTH_MIB`.
const GROWTH_MAX: f64 = 0.2;
const GROWTH_MIB: f64 = 64.0;
/// All is done again: this share of what is offered.
const DONE_MIN: f64 = 0.98;
/// A storm is one if fewer than this share stayed.
const STAYED_MAX: f64 = 0.1;
/// All are back within so many seconds.
const BACK_WITHIN_S: f64 = 60.0;

/// The phases of an overload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Phases {
    /// Before.
    pub normal: Range<usize>,
    /// More than can be taken.
    pub overload: Range<usize>,
    /// Afterwards.
    pub after: Range<usize>,
}

fn condition(what: &str, kept: bool, found: String) -> Condition {
    Condition {
        what: what.to_owned(),
        kept,
        found,
    }
}

/// p99 of one kind in a range of seconds; None if there was none of it.
fn p99_ms(tally: &Tally, kind: Kind, range: &Range<usize>) -> Option<f64> {
    let mut times = Times::default();
    let seconds = tally.seconds.iter().take(range.end).skip(range.start);
    seconds
        .filter_map(|second| second.kinds.get(&kind))
        .for_each(|count| times.merge(&count.times));
    (!times.is_empty()).then(|| times.ms_at(0.99))
}

/// Offered and done in a range of seconds.
fn counts(tally: &Tally, kind: Kind, range: &Range<usize>) -> (u64, u64) {
    let seconds = tally.seconds.iter().take(range.end).skip(range.start);
    let counts = seconds.filter_map(|second| second.kinds.get(&kind));
    counts.fold((0, 0), |(offered, done), count| {
        (offered + count.offered, done + count.done)
    })
}

/// What must be kept while more is offered than can be taken, and after it. `unaccounted`: pings sent less those counted.
pub fn overload(
    load: &LoadReport,
    tally: &Tally,
    phases: &Phases,
    unaccounted: i64,
) -> Vec<Condition> {
    let mut all = Vec::new();
    let lost = tally.sockets_lost;
    all.push(condition(
        "the server goes on, and no socket is lost",
        lost == 0,
        format!("{lost} sockets lost"),
    ));
    all.extend(memory(load, &phases.overload));
    let silent: u64 = refused(load, |reason| reason.ends_with(NO_RETRY_AFTER));
    let calls: u64 = refused(load, |reason| {
        reason.starts_with("429") || reason.starts_with("503")
    });
    all.push(condition(
        "who is refused is told when to come again (429 or 503 with Retry-After)",
        silent == 0,
        format!("{calls} calls refused so, {silent} of them without Retry-After"),
    ));
    let (_, done) = counts(tally, Kind::Ping, &phases.overload);
    if tally.pings_sent > 0 {
        all.push(condition(
            "no ping is lost uncounted: the newest is kept, the others are counted as replaced or refused",
            unaccounted == 0,
            format!(
                "{done} pings taken in the overload, {} not sent because their socket was full, {unaccounted} of all that were sent not \
                 counted",
                tally.pings_unsent
            ),
        ));
    }
    if let Some(normal) = p99_ms(tally, Kind::Command, &phases.normal) {
        let loaded = p99_ms(tally, Kind::Command, &phases.overload).unwrap_or(f64::INFINITY);
        all.push(condition(
            "open rides are served: p99 of their commands at most 3 times normal",
            loaded <= normal * SLOWER_MAX,
            format!("{normal:.1} ms normal, {loaded:.1} ms in the overload"),
        ));
    }
    let late = phases.after.start + RECOVERY_S..phases.after.end;
    for (kind, name) in [
        (Kind::PingToVisible, "pings until visible"),
        (Kind::Request, "ride requests"),
        (Kind::Command, "commands of rides"),
        (Kind::Nearby, "searches"),
    ] {
        let Some(normal) = p99_ms(tally, kind, &phases.normal) else {
            continue;
        };
        let (offered, done) = counts(tally, kind, &late);
        let after = p99_ms(tally, kind, &late).unwrap_or(f64::INFINITY);
        all.push(condition(
            &format!("5 s after it all is as before: {name}"),
            after <= normal * SLOWER_MAX && done as f64 >= offered as f64 * DONE_MIN,
            format!("p99 {normal:.1} ms before, {after:.1} ms after; {done} of {offered} done"),
        ));
    }
    all
}

fn refused(load: &LoadReport, which: impl Fn(&str) -> bool) -> u64 {
    let reasons = load.refused.values().flatten();
    reasons
        .filter(|(reason, _)| which(reason))
        .map(|(_, count)| count)
        .sum()
}

/// Memory does not go on growing while the overload lasts.
fn memory(load: &LoadReport, overload: &Range<usize>) -> Option<Condition> {
    let at = |second: usize| load.series.get(second)?.server_memory_mib;
    let middle = at((overload.start + overload.end) / 2)?;
    let end = at(overload.end.saturating_sub(1))?;
    let grown = end - middle;
    Some(condition(
        "memory is bounded: it hardly grows in the second half of the overload",
        grown <= (middle * GROWTH_MAX).max(GROWTH_MIB),
        format!("{middle:.0} MiB in its middle, {end:.0} at its end"),
    ))
}

/// How all came back. `online`: seconds and drivers online, whenever that changed; `sockets`: how many there are.
pub fn storm(online: &[(f64, u64)], sockets: u64) -> Storm {
    let fewest = online.iter().map(|(_, n)| *n).min().unwrap_or(sockets);
    let fell = online.iter().position(|(_, n)| *n < sockets);
    let low = online.iter().position(|(_, n)| *n == fewest);
    let back = low.and_then(|low| online[low..].iter().find(|(_, n)| *n >= sockets));
    Storm {
        sockets,
        fewest,
        back_after_s: fell
            .zip(back)
            .map(|(fell, (back, _))| back - online[fell].0),
    }
}

/// What must be kept when all sockets come at once.
pub fn storm_conditions(storm: &Storm, load: &LoadReport, tally: &Tally) -> Vec<Condition> {
    let mut all = vec![
        condition(
            "it was a storm: the restart cost nearly all sockets",
            storm.fewest as f64 <= storm.sockets as f64 * STAYED_MAX,
            format!("{} of {} stayed", storm.fewest, storm.sockets),
        ),
        condition(
            "all are back within 60 s",
            storm
                .back_after_s
                .is_some_and(|after| after <= BACK_WITHIN_S),
            storm
                .back_after_s
                .map_or("they are not".to_owned(), |after| {
                    format!("after {after:.1} s")
                }),
        ),
    ];
    let seconds = tally.seconds.len();
    let last = seconds.saturating_sub(3)..seconds;
    let (offered, done) = counts(tally, Kind::Ping, &last);
    if offered > 0 {
        all.push(condition(
            "at the end pings are taken as before",
            done as f64 >= offered as f64 * DONE_MIN,
            format!("{done} of {offered} in the last 3 s"),
        ));
    }
    let silent = refused(load, |reason| reason.ends_with(NO_RETRY_AFTER));
    all.push(condition(
        "who is refused is told when to come again",
        silent == 0,
        format!("{silent} refused without Retry-After"),
    ));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn run(command_ms: [u64; 3]) -> (LoadReport, Tally, Phases) {
        let mut tally = Tally::new(SECOND, 30 * SECOND);
        for second in 0..30u64 {
            let ms = command_ms[(second / 10) as usize];
            let due = SECOND + second * SECOND;
            tally.offered(Kind::Command, due, 1);
            tally.done(Kind::Command, due, due + ms * 1_000_000, 1);
        }
        let phases = Phases {
            normal: 0..10,
            overload: 10..20,
            after: 20..30,
        };
        (LoadReport::default(), tally, phases)
    }

    fn broken(all: &[Condition]) -> Vec<&str> {
        let broken = all.iter().filter(|one| !one.kept);
        broken.map(|one| one.what.as_str()).collect()
    }

    #[test]
    fn an_overload_that_is_weathered_breaks_nothing() {
        let (load, tally, phases) = run([10, 25, 10]);
        assert_eq!(broken(&overload(&load, &tally, &phases, 0)), [""; 0]);
    }

    #[test]
    fn each_broken_condition_is_named() {
        let (mut load, mut tally, phases) = run([10, 35, 40]);
        tally.pings_sent = 5;
        tally.sockets_lost = 1;
        let reasons = [(format!("503 busy{NO_RETRY_AFTER}"), 3)].into();
        load.refused.insert("request".into(), reasons);
        let all = overload(&load, &tally, &phases, 2);
        assert_eq!(broken(&all).len(), 5, "{all:?}");
    }

    #[test]
    fn a_storm_lasts_from_the_first_lost_socket_until_all_are_back() {
        let online = [
            (0.0, 100),
            (3.0, 40),
            (3.2, 0),
            (5.0, 60),
            (6.5, 100),
            (7.0, 99),
        ];
        let found = storm(&online, 100);
        assert_eq!((found.fewest, found.back_after_s), (0, Some(3.5)));
        let gone = storm(&online[..4], 100);
        assert_eq!(gone.back_after_s, None);
        let load = LoadReport::default();
        let tally = Tally::default();
        assert_eq!(broken(&storm_conditions(&found, &load, &tally)), [""; 0]);
        assert_eq!(broken(&storm_conditions(&gone, &load, &tally)).len(), 1);
        let calm = storm(&[(0.0, 100)], 100);
        assert_eq!(broken(&storm_conditions(&calm, &load, &tally)).len(), 2);
    }
}
