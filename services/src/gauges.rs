//! What can be seen of a service's consumer from outside: what it has done, and how far behind it is right now.
//!
//! How far behind is worked out when somebody asks, from the batches that were read and are not applied: a consumer whose
//! database is away ends no batch, and that is just when people must hear of it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cabrank_events::Time;

/// How late the last events were applied is shown for so long after their commit: a scrape is at most so far away.
pub const LAG_SHOWN_MS: u64 = 15_000;

/// What can be seen of a consumer from outside.
#[derive(Debug, Default)]
pub struct Gauges {
    /// Events applied.
    pub applied: AtomicU64,
    /// Events that came again.
    pub repeated: AtomicU64,
    /// Events set aside.
    pub dead: AtomicU64,
    /// Batches that had to be tried again.
    pub retries: AtomicU64,
    /// Microseconds spent applying.
    pub busy_us: AtomicU64,
    /// Own messages copied to topics.
    pub told: AtomicU64,
    /// How old the newest event of a batch was when its effect was committed, in ms: the most of all batches.
    pub lag_max_ms: AtomicI64,
    /// The same of the last batch, and when that was.
    last: Mutex<Option<(i64, Time)>>,
    /// What sources knew to lie behind the last batch that was read.
    beyond: AtomicU64,
    /// The batches read and not applied, by the number of their reading. At most one being applied, one before it and one
    /// of each source.
    waiting: Mutex<BTreeMap<u64, Waiting>>,
}

#[derive(Clone, Copy, Debug)]
struct Waiting {
    messages: u64,
    /// When the oldest of its events happened; none: none of them says.
    oldest: Option<Time>,
}

/// A batch that was read: it waits until this is dropped.
#[derive(Debug)]
pub struct Waits {
    gauges: Arc<Gauges>,
    number: u64,
}

impl Drop for Waits {
    fn drop(&mut self) {
        lock(&self.gauges.waiting).remove(&self.number);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

// Orderings of the gauges: Relaxed. Each is a number of its own for people to look at; nothing is decided by two of them.
impl Gauges {
    /// Counts `count` more.
    pub fn add(counter: &AtomicU64, count: usize) {
        counter.fetch_add(count as u64, Ordering::Relaxed);
    }

    /// `messages` were read, the oldest from `oldest`; the source knows of `beyond` more.
    pub fn read(self: &Arc<Self>, messages: usize, oldest: Option<Time>, beyond: u64) -> Waits {
        self.beyond.store(beyond, Ordering::Relaxed);
        let mut waiting = lock(&self.waiting);
        let number = waiting.last_key_value().map_or(0, |(last, _)| last + 1);
        let messages = messages as u64;
        waiting.insert(number, Waiting { messages, oldest });
        Waits {
            gauges: Arc::clone(self),
            number,
        }
    }

    /// A batch whose newest event is from `newest` was committed.
    pub fn committed(&self, newest: Time, now: Time) {
        let lag = now.since(newest).max(0);
        self.lag_max_ms.fetch_max(lag, Ordering::Relaxed);
        *lock(&self.last) = Some((lag, now));
    }

    /// How far behind it is: the age of the oldest event that was read and is not applied. While none waits: how old the
    /// newest was when it was applied, for [`LAG_SHOWN_MS`]; then 0.
    pub fn lag_ms(&self, now: Time) -> i64 {
        let oldest = lock(&self.waiting)
            .values()
            .filter_map(|of| of.oldest)
            .min();
        match (oldest, *lock(&self.last)) {
            (Some(oldest), _) => now.since(oldest).max(0),
            (None, Some((lag, at))) if now < at.plus_ms(LAG_SHOWN_MS) => lag,
            (None, _) => 0,
        }
    }

    /// Messages known to wait: read and not applied, and beyond those.
    pub fn behind(&self) -> u64 {
        let read: u64 = lock(&self.waiting).values().map(|of| of.messages).sum();
        read.saturating_add(self.beyond.load(Ordering::Relaxed))
    }

    /// In the words of Prometheus.
    pub fn to_prometheus(&self, service: &str, now: Time) -> String {
        let one = |name: &str, kind: &str, help: &str, value: String| {
            format!(
                "# HELP cabrank_{name} {help}\n# TYPE cabrank_{name} {kind}\n\
                 cabrank_{name}{{service=\"{service}\"}} {value}\n"
            )
        };
        let counters = [
            (
                "service_events_applied_total",
                "Events applied.",
                &self.applied,
            ),
            (
                "service_events_repeated_total",
                "Events that came again and changed nothing.",
                &self.repeated,
            ),
            (
                "service_dead_letters_total",
                "Events set aside because they could not be applied.",
                &self.dead,
            ),
            (
                "service_retries_total",
                "Batches that had to be tried again.",
                &self.retries,
            ),
            (
                "service_messages_told_total",
                "Own messages copied to topics.",
                &self.told,
            ),
        ];
        let counters = counters.map(|(name, help, value)| {
            one(
                name,
                "counter",
                help,
                value.load(Ordering::Relaxed).to_string(),
            )
        });
        let busy_s = self.busy_us.load(Ordering::Relaxed) as f64 / 1e6;
        let seconds = |ms: i64| (ms as f64 / 1e3).to_string();
        let rest = [
            one(
                "service_busy_seconds_total",
                "counter",
                "Time spent applying.",
                busy_s.to_string(),
            ),
            one(
                "service_behind",
                "gauge",
                "Messages known to wait.",
                self.behind().to_string(),
            ),
            one(
                "service_lag_seconds",
                "gauge",
                "Age of the oldest event read and not applied; while none waits, how old the newest was when it was applied, for 15 s, then 0.",
                seconds(self.lag_ms(now)),
            ),
            one(
                "service_lag_max_seconds",
                "gauge",
                "How old the newest event of a batch was when its effect was committed: the most so far.",
                seconds(self.lag_max_ms.load(Ordering::Relaxed)),
            ),
        ];
        counters.concat() + &rest.concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_grows_older_and_what_was_applied_late_is_shown_for_a_scrape() {
        let gauges = Arc::new(Gauges::default());
        let behind = |at: i64| (gauges.lag_ms(Time(at)), gauges.behind());
        assert_eq!(behind(1_000), (0, 0), "nothing was read yet");

        let first = gauges.read(3, Some(Time(900)), 7);
        let second = gauges.read(2, Some(Time(400)), 5);
        assert_eq!(behind(1_000), (600, 10));
        assert_eq!(behind(70_000), (69_600, 10), "nobody applies it");
        gauges.committed(Time(950), Time(70_050));
        drop(first);
        assert_eq!(behind(70_100), (69_700, 7), "the other one still waits");
        let third = gauges.read(1, None, 0);
        gauges.committed(Time(500), Time(70_200));
        drop(second);
        assert_eq!(behind(70_300), (69_700, 1), "as late as it was applied");
        drop(third);
        assert_eq!(behind(70_200 + 14_999), (69_700, 0));
        assert_eq!(behind(70_200 + 15_000), (0, 0), "all was applied");
        // A clock of somebody else's that is ahead of ours makes nothing negative.
        let _ahead = gauges.read(1, Some(Time(100_000)), 0);
        assert_eq!(behind(99_000), (0, 1));
    }
}
