//! May a search be answered by a node that nobody vouches for?
//!
//! A node answers for its shards under a lease which only the brokers can prolong (PROTOCOL 23). While a gateway sees for
//! itself that the log is silent no node anywhere can have one, so an answer that nobody vouches for is as good as there
//! is; it says so. When the log is back the nodes take their shards anew, which takes seconds: until a shard's next owner
//! has announced itself, or for [`TAKING_OVER_MAX`], the same holds for that shard. A gateway that reaches the log all the
//! time never takes such an answer: a node cut off by itself answers nothing.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// After a silence owners may take so long to announce themselves.
const TAKING_OVER_MAX: Duration = Duration::from_secs(15);

/// What a gateway has seen of the log.
pub(super) struct Silence {
    after: Duration,
    seen: Mutex<Seen>,
}

struct Seen {
    /// When it last answered. Nothing else proves that it can be reached: where nothing happens, reading finds as little
    /// as where nobody answers.
    answered: Instant,
    /// The end of the last silence, and the shards' epochs then.
    ended: Option<(Instant, Vec<u64>)>,
}

impl Silence {
    /// A log that has not answered for `after` is silent.
    pub fn new(after: Duration, now: Instant) -> Silence {
        Silence {
            after,
            seen: Mutex::new(Seen {
                answered: now,
                ended: None,
            }),
        }
    }

    /// The log has answered. `epochs` are the newest of each shard that were known before.
    pub fn log_answered(&self, now: Instant, epochs: impl FnOnce() -> Vec<u64>) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if now.duration_since(seen.answered) > self.after {
            seen.ended = Some((now, epochs()));
        }
        seen.answered = now;
    }

    /// How long the log has not answered.
    pub fn lasts(&self, now: Instant) -> Duration {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        now.saturating_duration_since(seen.answered)
    }

    /// Will an unconfirmed answer do for a shard whose newest known epoch this is?
    pub fn unconfirmed_will_do(&self, now: Instant, shard: u16, epoch: u64) -> bool {
        // A panic while holding it leaves two moments behind, which are as good as before.
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let is_silent = now.duration_since(seen.answered) > self.after;
        is_silent
            || seen.ended.as_ref().is_some_and(|(ended, epochs)| {
                now.duration_since(*ended) < TAKING_OVER_MAX
                    && epochs
                        .get(usize::from(shard))
                        .is_some_and(|then| epoch <= *then)
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_silence_nobody_need_vouch_until_the_next_owner_is_known() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let silence = Silence::new(Duration::from_secs(1), start);
        let epochs = || vec![3, 7];
        silence.log_answered(at(900), epochs);
        assert!(!silence.unconfirmed_will_do(at(1_800), 0, 3), "it answers");
        assert!(silence.unconfirmed_will_do(at(2_000), 0, 3), "it is silent");
        assert_eq!(silence.lasts(at(2_000)), Duration::from_millis(1_100));
        silence.log_answered(at(5_000), epochs);
        assert_eq!(silence.lasts(at(5_000)), Duration::ZERO);
        silence.log_answered(at(5_200), || vec![4, 7]);
        assert!(
            !silence.unconfirmed_will_do(at(5_300), 0, 4),
            "its new owner vouches for itself"
        );
        assert!(
            silence.unconfirmed_will_do(at(5_300), 1, 7),
            "it has no owner yet"
        );
        assert!(
            !silence.unconfirmed_will_do(at(5_300), 2, 0),
            "no such shard"
        );
        silence.log_answered(at(6_100), || vec![4, 7]);
        // It keeps answering; whoever has no owner by then will not have one soon.
        (0..20).for_each(|n| silence.log_answered(at(6_900 + n * 800), || vec![4, 7]));
        assert!(!silence.unconfirmed_will_do(at(20_100), 1, 7));
    }
}
