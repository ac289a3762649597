//! What time is it on the server's domain clock, and when will it be a given time?
//!
//! The server says its time in each `welcome`. A reading is late by the way of the message, so of all readings the most
//! advanced one is the best; only a reading far behind means that the clock stood still (the server was down), and then it
//! is followed. What [`DomainClock::now`] answers never goes back.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use cabrank_events::Time;
use tokio::time::Instant;

/// A reading that is behind ours by more than this much wall time means a clock that stood still.
const STOOD_STILL: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug)]
struct Anchor {
    wall: Instant,
    domain_ms: f64,
}

#[derive(Debug, Default)]
struct State {
    anchor: Option<Anchor>,
    last: i64,
}

/// The server's clock as its clients know it.
#[derive(Debug)]
pub struct DomainClock {
    speed: f64,
    state: Mutex<State>,
}

impl DomainClock {
    /// A clock that runs `speed` domain seconds a second; unknown until the first [`DomainClock::hear`].
    pub fn new(speed: f64) -> Self {
        let speed = if speed.is_finite() && speed > 0.0 {
            speed
        } else {
            1.0
        };
        Self {
            speed,
            state: Mutex::default(),
        }
    }

    /// Domain seconds in a wall second.
    pub fn speed(&self) -> f64 {
        self.speed
    }

    /// Takes a reading of the server's clock that arrived at `wall`.
    pub fn hear(&self, time: Time, wall: Instant) {
        let mut state = self.lock();
        let heard = time.0 as f64;
        let ours = state.anchor.map(|anchor| self.at(anchor, wall));
        let behind = STOOD_STILL.as_millis() as f64 * self.speed;
        if ours.is_none_or(|ours| heard > ours || heard < ours - behind) {
            state.anchor = Some(Anchor {
                wall,
                domain_ms: heard,
            });
        }
    }

    /// Has the server's time been heard?
    pub fn is_set(&self) -> bool {
        self.lock().anchor.is_some()
    }

    /// The server's time now; 0 before the first reading. Never goes back.
    pub fn now(&self) -> Time {
        let mut state = self.lock();
        if let Some(anchor) = state.anchor {
            state.last = state.last.max(self.at(anchor, Instant::now()) as i64);
        }
        Time(state.last)
    }

    /// When it will be, or was, `time`. Only an estimate: ask again after waiting.
    pub fn wall_of(&self, time: Time) -> Instant {
        let now = Instant::now();
        let Some(anchor) = self.lock().anchor else {
            return now;
        };
        let ms = (time.0 as f64 - anchor.domain_ms) / self.speed;
        let way = Duration::from_secs_f64((ms.abs() / 1000.0).min(1e8));
        if ms >= 0.0 {
            anchor.wall + way
        } else {
            anchor.wall.checked_sub(way).unwrap_or(now)
        }
    }

    /// Waits until the server's time is at least `time`.
    pub async fn sleep_until(&self, time: Time) {
        // Looks again at least once a second, because the clock may have been set anew meanwhile.
        while self.now() < time {
            let soon = Instant::now() + Duration::from_secs(1);
            tokio::time::sleep_until(self.wall_of(time).min(soon)).await;
        }
    }

    fn at(&self, anchor: Anchor, wall: Instant) -> f64 {
        let ahead = wall.saturating_duration_since(anchor.wall).as_secs_f64();
        let behind = anchor.wall.saturating_duration_since(wall).as_secs_f64();
        anchor.domain_ms + (ahead - behind) * 1000.0 * self.speed
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        // Two plain numbers: nothing can be half-written.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_most_advanced_reading_wins_and_time_never_goes_back() {
        let clock = DomainClock::new(60.0);
        let start = Instant::now();
        clock.hear(Time(1_000_000), start);
        // One message was under way for 100 ms: its reading is 6 s behind and tells nothing.
        clock.hear(Time(1_000_000), start + Duration::from_millis(100));
        assert_eq!(
            clock.wall_of(Time(1_060_000)),
            start + Duration::from_secs(1)
        );
        // One was faster than the first.
        clock.hear(Time(1_003_000), start);
        assert!(clock.now() >= Time(1_003_000));
        // The server was down for ten seconds, and its clock with it.
        let read = clock.now();
        clock.hear(Time(1_004_000), start + Duration::from_secs(10));
        assert!(clock.now() >= read);
        assert_eq!(
            clock.wall_of(Time(1_064_000)),
            start + Duration::from_secs(11)
        );
    }
}
