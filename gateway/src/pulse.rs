//! How fast does the city's heart beat? What happened in the last minute, counted as commits are heard of.
//!
//! Bounds: [`WINDOW_S`] counters of a second each, [`SAMPLES_MAX`] offers and [`WISHES_MAX`] wishes; beyond them the
//! oldest is dropped, so a percentile is then one of the newest. A gateway that has just started knows what it heard
//! since.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use cabrank_events::{Attempt, Event, Time};
use cabrank_geo::Point;
use cabrank_matcher::api::Committed;
use serde::Serialize;

/// Seconds the rates look back.
const WINDOW_S: u64 = 60;
/// Offers whose latency is kept.
const SAMPLES_MAX: usize = 20_000;
/// Wishes whose place is kept, and for how long they count as demand.
const WISHES_MAX: usize = 20_000;
const DEMAND_MS: u64 = 5 * 60_000;
/// A ride's first claim.
const FIRST: Attempt = 1;

/// What is counted.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub struct Counts {
    /// Rides asked for.
    pub requested: u32,
    /// Drivers asked.
    pub offered: u32,
    /// Drivers who took a ride.
    pub assigned: u32,
    /// Rides driven to their end.
    pub completed: u32,
    /// Rides called off.
    pub cancelled: u32,
    /// Rides for which no driver was found.
    pub unfulfilled: u32,
}

/// The last minute, for a person.
#[derive(Clone, Debug, Default, PartialEq, Serialize, schemars::JsonSchema)]
pub struct Rates {
    /// The seconds these counts cover, at most 60.
    pub seconds: u64,
    /// What happened in them.
    #[serde(flatten)]
    pub counts: Counts,
    /// Milliseconds from the request to the first offer, committed: half of them took at most so long.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offer_p50_ms: Option<u32>,
    /// 95 of a hundred.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offer_p95_ms: Option<u32>,
    /// 99 of a hundred.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offer_p99_ms: Option<u32>,
    /// Pings that became a position, a second.
    pub pings_per_second: f64,
}

#[derive(Default)]
struct Beat {
    /// Second and its counts, newest last.
    seconds: VecDeque<(u64, Counts)>,
    /// When, and how long it took.
    offers: VecDeque<(u64, u32)>,
    /// When, and where.
    wishes: VecDeque<(u64, Point)>,
}

/// The counters.
#[derive(Default)]
pub struct Pulse(Mutex<Beat>);

impl Pulse {
    fn beat(&self) -> MutexGuard<'_, Beat> {
        // A panic while holding it leaves counters behind, which are as good as before.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hears of a commit: `now` in domain time, `wall_ms` on the gateway's clock. Runs on the node's thread.
    pub fn hear(&self, commits: &[Committed], now: Time, wall_ms: u64) {
        let mut beat = self.beat();
        for committed in commits {
            match &committed.record.event {
                Event::RideRequested(e) => {
                    beat.count(wall_ms, |counts| counts.requested += 1);
                    beat.wishes.push_back((wall_ms, e.pickup.0));
                    if beat.wishes.len() > WISHES_MAX {
                        beat.wishes.pop_front();
                    }
                }
                Event::OfferMade(e) => {
                    beat.count(wall_ms, |counts| counts.offered += 1);
                    if let Some(ride) = committed.ride.as_ref().filter(|_| e.attempt == FIRST) {
                        let took = now.since(ride.requested_at).max(0);
                        let took = u32::try_from(took).unwrap_or(u32::MAX);
                        beat.offers.push_back((wall_ms, took));
                        if beat.offers.len() > SAMPLES_MAX {
                            beat.offers.pop_front();
                        }
                    }
                }
                Event::DriverAssigned(_) => beat.count(wall_ms, |counts| counts.assigned += 1),
                Event::RideCompleted(_) => beat.count(wall_ms, |counts| counts.completed += 1),
                Event::RideCancelled(_) => beat.count(wall_ms, |counts| counts.cancelled += 1),
                Event::RideUnfulfilled(_) => beat.count(wall_ms, |counts| counts.unfulfilled += 1),
                _ => {}
            }
        }
    }

    /// The last minute; pings are counted elsewhere.
    pub fn rates(&self, wall_ms: u64) -> Rates {
        let since = wall_ms.saturating_sub(WINDOW_S * 1_000);
        let (counts, mut took) = {
            let mut beat = self.beat();
            beat.forget(wall_ms);
            let counts = beat
                .seconds
                .iter()
                .fold(Counts::default(), |sum, (_, c)| Counts {
                    requested: sum.requested + c.requested,
                    offered: sum.offered + c.offered,
                    assigned: sum.assigned + c.assigned,
                    completed: sum.completed + c.completed,
                    cancelled: sum.cancelled + c.cancelled,
                    unfulfilled: sum.unfulfilled + c.unfulfilled,
                });
            let recent = beat.offers.iter().filter(|(at, _)| *at >= since);
            (counts, recent.map(|(_, took)| *took).collect::<Vec<_>>())
        };
        took.sort_unstable();
        let part = |of: usize| {
            took.get((took.len() * of / 100).min(took.len().max(1) - 1))
                .copied()
        };
        Rates {
            seconds: (wall_ms / 1_000).clamp(1, WINDOW_S),
            counts,
            offer_p50_ms: part(50),
            offer_p95_ms: part(95),
            offer_p99_ms: part(99),
            pings_per_second: 0.0,
        }
    }

    /// Where rides were asked for in the last five minutes.
    pub fn each_wish(&self, wall_ms: u64, mut see: impl FnMut(Point)) {
        let mut beat = self.beat();
        beat.forget(wall_ms);
        beat.wishes.iter().for_each(|(_, at)| see(*at));
    }
}

impl Beat {
    fn count(&mut self, wall_ms: u64, add: impl FnOnce(&mut Counts)) {
        let second = wall_ms / 1_000;
        if self.seconds.back().is_none_or(|(last, _)| *last != second) {
            self.seconds.push_back((second, Counts::default()));
            self.forget(wall_ms);
        }
        if let Some((_, counts)) = self.seconds.back_mut() {
            add(counts);
        }
    }

    fn forget(&mut self, wall_ms: u64) {
        let second = (wall_ms / 1_000).saturating_sub(WINDOW_S);
        while self.seconds.front().is_some_and(|(at, _)| *at < second) {
            self.seconds.pop_front();
        }
        let since = wall_ms.saturating_sub(DEMAND_MS);
        while self.wishes.front().is_some_and(|(at, _)| *at < since) {
            self.wishes.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_older_than_a_minute_is_forgotten_and_percentiles_are_those_of_the_window() {
        let pulse = Pulse::default();
        for n in 0..100 {
            let mut beat = pulse.beat();
            beat.count(1_000, |counts| counts.requested += 1);
            beat.offers.push_back((61_500, n));
        }
        pulse.beat().count(61_500, |counts| counts.assigned += 1);
        let rates = pulse.rates(61_600);
        assert_eq!((rates.counts.requested, rates.counts.assigned), (100, 1));
        assert_eq!(
            (rates.offer_p50_ms, rates.offer_p99_ms),
            (Some(50), Some(99))
        );
        let later = pulse.rates(63_000);
        assert_eq!((later.counts.requested, later.counts.assigned), (0, 1));
        let much_later = pulse.rates(500_000);
        assert_eq!(
            (much_later.counts, much_later.offer_p50_ms),
            (Counts::default(), None)
        );
    }
}
