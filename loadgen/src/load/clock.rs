//! The clock all generator processes share, and a timer finer than a poll's millisecond.

use std::io;
use std::time::Duration;

use mio::{Events, Poll, Token};

/// Nanoseconds of the machine's monotonic clock, the same in all processes.
pub fn now_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Wall clock, ms since the Unix epoch.
pub fn wall_ms() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as i64)
}

/// The token of the timer in its poll.
pub const TIMER: Token = Token(usize::MAX);

/// Waits for sockets up to a moment, as exactly as the system can.
pub struct Waiter {
    #[cfg(target_os = "linux")]
    timer: std::os::fd::OwnedFd,
}

impl Waiter {
    /// Registers its timer in `poll` under [`TIMER`].
    pub fn new(poll: &Poll) -> io::Result<Waiter> {
        #[cfg(target_os = "linux")]
        {
            use rustix::time::{TimerfdClockId, TimerfdFlags, timerfd_create};
            use std::os::fd::AsRawFd;
            let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
            let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
            let mut source = mio::unix::SourceFd(&timer.as_raw_fd());
            poll.registry()
                .register(&mut source, TIMER, mio::Interest::READABLE)?;
            Ok(Waiter { timer })
        }
        #[cfg(not(target_os = "linux"))]
        {
            let _ = poll;
            Ok(Waiter {})
        }
    }

    /// Fills `events` with what is ready, or returns without any at `until` (now or earlier: does not wait).
    pub fn wait(&self, poll: &mut Poll, events: &mut Events, until: u64) -> io::Result<()> {
        let left = until.saturating_sub(now_ns());
        let timeout = if left == 0 {
            Some(Duration::ZERO)
        } else {
            self.arm(left)?
        };
        match poll.poll(events, timeout) {
            Err(why) if why.kind() == io::ErrorKind::Interrupted => {
                events.clear();
                Ok(())
            }
            done => done,
        }
    }

    /// The timer is registered edge-triggered and never read: setting it anew is enough for the next edge.
    #[cfg(target_os = "linux")]
    fn arm(&self, left: u64) -> io::Result<Option<Duration>> {
        use rustix::time::{Itimerspec, TimerfdTimerFlags, Timespec, timerfd_settime};
        let spec = Itimerspec {
            it_interval: Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            },
            it_value: Timespec {
                tv_sec: (left / 1_000_000_000) as i64,
                tv_nsec: (left % 1_000_000_000) as i64,
            },
        };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &spec)?;
        // A net below the timer: an edge that was missed costs no more than this.
        Ok(Some(Duration::from_nanos(left) + Duration::from_millis(50)))
    }

    #[cfg(not(target_os = "linux"))]
    fn arm(&self, left: u64) -> io::Result<Option<Duration>> {
        Ok(Some(Duration::from_nanos(left)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_ends_when_it_should_again_and_again() {
        let mut poll = Poll::new().unwrap();
        let waiter = Waiter::new(&poll).unwrap();
        let mut events = Events::with_capacity(8);
        let mut early = 0;
        let began = now_ns();
        for _ in 0..100 {
            let until = now_ns() + 300_000;
            waiter.wait(&mut poll, &mut events, until).unwrap();
            early += u32::from(now_ns() < until);
        }
        assert!(early <= 2, "{early} waits ended early");
        assert!(
            now_ns() - began < 4_000_000_000,
            "a missed edge would cost 50 ms each"
        );
    }
}
