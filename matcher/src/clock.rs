//! Domain time: the wall clock, or a trace's own clock that starts in the past and may run faster.
//!
//! It never goes back, also across a restart: after recovery it is raised to the newest time in the log.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use cabrank_events::Time;

/// The clock that time-outs, ping ages and waits run on. Clones share it.
#[derive(Clone, Debug)]
pub struct DomainClock {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// What the clock showed at `started`, for a trace; unused for the wall clock.
    start_ms: i64,
    /// Domain milliseconds a wall millisecond; `None`: the wall clock itself.
    speed: Option<f64>,
    started: Instant,
    /// Added after a recovery, so that a restarted trace goes on where it was.
    raised_ms: AtomicI64,
    /// The newest time shown: the wall clock may be set back under us.
    newest_ms: AtomicI64,
}

impl DomainClock {
    /// The machine's clock.
    pub fn wall() -> DomainClock {
        Self::made(0, None)
    }

    /// A trace's clock: shows `start` now and runs `speed` times as fast as the wall clock.
    pub fn trace(start: Time, speed: f64) -> DomainClock {
        Self::made(start.0, Some(speed))
    }

    fn made(start_ms: i64, speed: Option<f64>) -> DomainClock {
        DomainClock {
            inner: Arc::new(Inner {
                start_ms,
                speed,
                started: Instant::now(),
                raised_ms: AtomicI64::new(0),
                newest_ms: AtomicI64::new(i64::MIN),
            }),
        }
    }

    /// Now.
    pub fn now(&self) -> Time {
        let inner = &*self.inner;
        // Relaxed: each is one number by itself; nothing else is published through it.
        let raised = inner.raised_ms.load(Ordering::Relaxed);
        let shown = match inner.speed {
            Some(speed) => {
                inner.start_ms + (inner.started.elapsed().as_secs_f64() * 1_000.0 * speed) as i64
            }
            None => SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |since| {
                    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
                }),
        };
        let now = shown.saturating_add(raised);
        Time(inner.newest_ms.fetch_max(now, Ordering::Relaxed).max(now))
    }

    /// Makes sure the clock shows at least `time` from here on (the newest time in the log).
    pub fn raise_to(&self, time: Time) {
        let behind = time.since(self.now());
        if behind <= 0 {
            return;
        }
        match self.inner.speed {
            // A trace goes on from there.
            Some(_) => self.inner.raised_ms.fetch_add(behind, Ordering::Relaxed),
            // The wall clock waits there until the world has caught up.
            None => self.inner.newest_ms.fetch_max(time.0, Ordering::Relaxed),
        };
    }

    /// Domain milliseconds a wall millisecond.
    pub fn speed(&self) -> f64 {
        self.inner.speed.unwrap_or(1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_clock_starts_in_the_past_and_is_raised_by_the_log() {
        let clock = DomainClock::trace(Time(1_000_000), 60.0);
        let first = clock.now();
        assert!(first >= Time(1_000_000) && first < Time(2_000_000));
        clock.raise_to(Time(5_000_000));
        assert!(clock.now() >= Time(5_000_000));
        clock.raise_to(Time(10));
        assert!(clock.now() >= Time(5_000_000), "it never goes back");
    }

    #[test]
    fn the_wall_clock_waits_where_the_log_was() {
        let clock = DomainClock::wall();
        let ahead = clock.now().plus_ms(60_000);
        clock.raise_to(ahead);
        assert_eq!(clock.now(), ahead);
    }
}
