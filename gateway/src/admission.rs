//! How many new rides may come while the engine does not keep up?
//!
//! Rides that are open must be served first: their commands are always taken. When more comes than can be done, commands
//! queue, and each waits as long as the queue is; so what is turned away is what makes more work, the *new* rides.
//!
//! The engine keeps up as long as at least one of the commands answered in each [`INTERVAL`] was answered in time. That is
//! CoDel's test (Nichols and Jacobson, "Controlling queue delay", 2012): a burst, such as all that waited for a takeover,
//! is over when a later command is quick; a standing queue makes all of them late. In an interval in which all were late
//! the rate of new rides falls by three tenths, else it rises by a twentieth, and is free again when nobody was turned away
//! for [`CALM`]. [`LEAST_PER_SECOND`] new rides are always let in.
//!
//! What is late depends on the log: an answer over a broker, or from a slow disk, takes longer without any queue. So an answer
//! is late after the configured time or after [`LATE_TIMES`] the shortest there was lately, whichever is longer.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How often is looked whether the engine keeps up.
const INTERVAL: Duration = Duration::from_millis(200);
/// The rate after an interval in which all answers were late, as a share of that before it.
const SLOWER: f64 = 0.7;
/// The same when not all were late.
const FASTER: f64 = 1.05;
/// So many new rides a second are let in whatever happens.
const LEAST_PER_SECOND: f64 = 50.0;
/// Late is what takes so many times the shortest answer there was lately.
const LATE_TIMES: f64 = 4.0;
/// The shortest answer is forgotten so slowly, a share an interval: it doubles in a minute.
const FORGOTTEN: f64 = 0.0023;
/// Without anybody turned away for so long, new rides are not counted any more.
const CALM: Duration = Duration::from_secs(5);
const NONE: u64 = u64::MAX;

/// Whoever was turned away may come again after so many seconds.
pub const RETRY_AFTER_S: u32 = 2;

/// Lets new rides in as fast as the engine can serve them.
pub struct Admission {
    late_us: u64,
    /// The shortest delay of an answer since the last look, microseconds.
    shortest_us: AtomicU64,
    state: Mutex<State>,
}

struct State {
    /// The shortest answer lately, microseconds.
    quick_us: f64,
    looked: Instant,
    /// Let in since then.
    admitted: u32,
    /// New rides a second, while they are counted.
    rate: Option<f64>,
    /// Rides that may be let in at once.
    tokens: f64,
    filled: Instant,
    turned_away: Instant,
}

/// More new rides come than can be served.
#[derive(Debug, PartialEq, Eq)]
pub struct TooManyNewRides;

impl Admission {
    /// An answer is late after `late`; zero: all rides are let in.
    pub fn new(late: Duration, now: Instant) -> Self {
        Self {
            late_us: late.as_micros() as u64,
            shortest_us: AtomicU64::new(NONE),
            state: Mutex::new(State {
                quick_us: f64::INFINITY,
                looked: now,
                admitted: 0,
                rate: None,
                tokens: 0.0,
                filled: now,
                turned_away: now,
            }),
        }
    }

    /// A command was answered so long after it was handed in.
    pub fn answered(&self, delay: Duration) {
        let delay_us = delay.as_micros() as u64;
        // Relaxed: one number, looked at now and then. The load spares the write, since most are not the shortest.
        if delay_us < self.shortest_us.load(Ordering::Relaxed) {
            self.shortest_us.fetch_min(delay_us, Ordering::Relaxed);
        }
    }

    /// May one more ride come?
    pub fn admit(&self, now: Instant) -> Result<(), TooManyNewRides> {
        if self.late_us == 0 {
            return Ok(());
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let passed = now.saturating_duration_since(state.looked);
        if passed >= INTERVAL {
            let shortest_us = self.shortest_us.swap(NONE, Ordering::Relaxed);
            state.look(shortest_us, self.late_us, passed, now);
        }
        state.take(now)
    }

    /// New rides a second that are let in now; None: all.
    pub fn rate(&self) -> Option<f64> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.rate
    }
}

impl State {
    fn look(&mut self, shortest_us: u64, late_us: u64, passed: Duration, now: Instant) {
        let came = f64::from(self.admitted) / passed.as_secs_f64();
        self.looked = now;
        self.admitted = 0;
        // Without an answer nothing is known: what waits is bounded elsewhere.
        if shortest_us == NONE {
            return;
        }
        let shortest_us = shortest_us as f64;
        self.quick_us = shortest_us.min(self.quick_us * (1.0 + FORGOTTEN));
        if shortest_us > (late_us as f64).max(self.quick_us * LATE_TIMES) {
            let rate = self.rate.map_or(came, |rate| rate.min(came));
            if self.rate.is_none() {
                self.filled = now;
                self.turned_away = now;
            }
            self.rate = Some((rate * SLOWER).max(LEAST_PER_SECOND));
        } else if let Some(rate) = self.rate {
            let is_calm = now.saturating_duration_since(self.turned_away) >= CALM;
            self.rate = (!is_calm).then_some(rate * FASTER);
        }
    }

    fn take(&mut self, now: Instant) -> Result<(), TooManyNewRides> {
        if let Some(rate) = self.rate {
            let passed = now.saturating_duration_since(self.filled).as_secs_f64();
            // No more at once than comes in an interval, and one at least.
            let most = (rate * INTERVAL.as_secs_f64()).max(1.0);
            self.tokens = (self.tokens + rate * passed).min(most);
            self.filled = now;
            if self.tokens < 1.0 {
                self.turned_away = now;
                return Err(TooManyNewRides);
            }
            self.tokens -= 1.0;
        }
        self.admitted += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LATE: Duration = Duration::from_millis(20);
    const TICK: Duration = Duration::from_millis(1);

    /// Offers `per_tick` new rides each millisecond; each answer takes `delay`. How many were let in.
    fn offer(
        admission: &Admission,
        now: &mut Instant,
        ticks: u32,
        per_tick: u32,
        delay: Duration,
    ) -> u32 {
        let mut admitted = 0;
        for _ in 0..ticks {
            *now += TICK;
            admission.answered(delay);
            for _ in 0..per_tick {
                admitted += u32::from(admission.admit(*now).is_ok());
            }
        }
        admitted
    }

    #[test]
    fn while_answers_are_in_time_all_come_in() {
        let mut now = Instant::now();
        let admission = Admission::new(LATE, now);
        assert_eq!(offer(&admission, &mut now, 2_000, 3, LATE), 6_000);
        assert_eq!(admission.rate(), None);
    }

    #[test]
    fn one_answer_in_time_shows_that_a_burst_is_over() {
        let mut now = Instant::now();
        let admission = Admission::new(LATE, now);
        for _ in 0..10 {
            let after = offer(&admission, &mut now, 10, 1, LATE / 2);
            let burst = offer(&admission, &mut now, 190, 1, LATE * 50);
            assert_eq!(burst + after, 200);
        }
    }

    #[test]
    fn a_standing_queue_turns_new_rides_away_until_it_is_gone_and_some_always_come_in() {
        let mut now = Instant::now();
        let admission = Admission::new(LATE, now);
        offer(&admission, &mut now, 1_000, 2, LATE / 2);
        offer(&admission, &mut now, 1_000, 2, LATE * 3);
        let second = offer(&admission, &mut now, 1_000, 2, LATE * 3);
        assert!(second < 1_000, "{second} of 2,000");
        offer(&admission, &mut now, 10_000, 2, LATE * 3);
        let least = offer(&admission, &mut now, 1_000, 2, LATE * 3);
        assert!((48..=52).contains(&least), "{least} in a second");
        // It is gone: within some seconds all come in again, and nobody counts.
        offer(&admission, &mut now, 30_000, 2, LATE / 2);
        assert_eq!(offer(&admission, &mut now, 1_000, 2, LATE / 2), 2_000);
        assert_eq!(admission.rate(), None);
    }

    #[test]
    fn an_engine_that_can_serve_half_of_what_comes_is_given_about_that_much() {
        let mut now = Instant::now();
        let admission = Admission::new(LATE, now);
        // A queue in front of a server of 1,000 rides a second, offered 2,000.
        let (mut queued, mut served) = (0.0f64, 0u32);
        for tick in 0..40_000 {
            now += TICK;
            for _ in 0..2 {
                queued += f64::from(u32::from(admission.admit(now).is_ok()));
            }
            let done = queued.min(1.0);
            queued -= done;
            admission.answered(Duration::from_secs_f64(queued / 1_000.0));
            if tick >= 10_000 {
                served += done as u32;
                assert!(queued < 250.0, "{queued} queued after {tick} ms");
            }
        }
        assert!(served > 24_000, "{served} of 30,000");
    }

    #[test]
    fn a_log_that_takes_long_by_nature_is_not_late() {
        let mut now = Instant::now();
        let admission = Admission::new(LATE, now);
        assert_eq!(offer(&admission, &mut now, 60_000, 1, LATE * 3), 60_000);
        // Four times as long is.
        let late = offer(&admission, &mut now, 10_000, 1, LATE * 13);
        assert!(late < 3_000, "{late} of 10,000");
    }

    #[test]
    fn it_can_be_switched_off() {
        let mut now = Instant::now();
        let admission = Admission::new(Duration::ZERO, now);
        assert_eq!(offer(&admission, &mut now, 2_000, 2, LATE * 9), 4_000);
    }
}
