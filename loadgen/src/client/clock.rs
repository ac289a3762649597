//! What time is it on the server's domain clock, and when will it be a given time?
//!
//! The server says its time in each `welcome`. A reading is late by the way of the message, so of all readings the most
//! advanced one is the best; only a reading far behind means that the clock stood still (the server was down), and then it
//! is followed. While the server is known to be down the clock is [stopped](DomainClock::stop), as the server's own is; with
//! the next reading it goes on from there, which may be a little earlier than where it stopped.

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
    is_stopped: bool,
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
        let is_stopped = std::mem::take(&mut state.is_stopped);
        if is_stopped || ours.is_none_or(|ours| heard > ours || heard < ours - behind) {
            state.anchor = Some(Anchor {
                wall,
                domain_ms: heard,
            });
        }
    }

    /// The server is gone: its time stands still until it is heard again.
    pub fn stop(&self) {
        let mut state = self.lock();
        if let Some(anchor) = state.anchor.filter(|_| !state.is_stopped) {
            let wall = Instant::now();
            let domain_ms = self.at(anchor, wall);
            state.anchor = Some(Anchor { wall, domain_ms });
            state.is_stopped = true;
        }
    }

    /// Has the server's time been heard?
    pub fn is_set(&self) -> bool {
        self.lock().anchor.is_some()
    }

    /// The server's time now; 0 before the first reading.
    pub fn now(&self) -> Time {
        let state = self.lock();
        let Some(anchor) = state.anchor else {
            return Time(0);
        };
        let wall = if state.is_stopped {
            anchor.wall
        } else {
            Instant::now()
        };
        Time(self.at(anchor, wall) as i64)
    }

    /// When it will be, or was, `time`. Only an estimate: ask again after waiting.
    pub fn wall_of(&self, time: Time) -> Instant {
        let now = Instant::now();
        let state = self.lock();
        let Some(mut anchor) = state.anchor else {
            return now;
        };
        if state.is_stopped {
            anchor.wall = now;
        }
        drop(state);
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
    async fn the_most_advanced_reading_wins_and_a_clock_that_stood_still_is_followed() {
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
        clock.hear(Time(1_004_000), start + Duration::from_secs(10));
        assert_eq!(
            clock.wall_of(Time(1_064_000)),
            start + Duration::from_secs(11)
        );
    }

    #[tokio::test]
    async fn while_the_server_is_gone_its_time_stands_still() {
        let clock = DomainClock::new(1e9);
        clock.hear(Time(5_000), Instant::now());
        clock.stop();
        let stopped = clock.now();
        tokio::task::yield_now().await;
        assert_eq!(
            clock.now(),
            stopped,
            "a thousand million times as fast, and still"
        );
        clock.hear(Time(4_000), Instant::now() + Duration::from_secs(3_600));
        assert!(
            clock.now() < stopped,
            "it goes on where the server's clock does"
        );
    }
}
