//! How many in a while? Token buckets by name (governor's GCRA), with a bound on how many names are remembered.
//!
//! Names whose bucket is full again are forgotten after a while, or when room is needed; while everybody is busy, strangers
//! share one bucket.
//! So a crowd of new names is held to the rate of one, and those who were here before are not touched.

use std::hash::Hash;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dashmap::DashMap;
use governor::clock::{Clock, MonotonicClock, Reference};
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::keyed::ShrinkableKeyedStateStore;
use governor::state::{InMemoryState, NotKeyed, StateStore};
use governor::{Quota, RateLimiter};

/// Looking for names to forget costs a look at each: so often, and where there is no room ...
const SWEEP_EVERY: Duration = Duration::from_secs(60);
/// ... at most so often.
const SWEEP_EVERY_WHEN_FULL: Duration = Duration::from_secs(1);

/// Where the buckets are kept.
struct Store<K: Hash + Eq + Clone> {
    known: DashMap<K, InMemoryState>,
    /// The bucket of everybody there is no room for.
    strangers: InMemoryState,
    max: usize,
}

impl<K: Hash + Eq + Clone> StateStore for Store<K> {
    type Key = K;

    fn measure_and_replace<T, F, E>(&self, name: &K, measure: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let bucket = NotKeyed::NonKey;
        if let Some(known) = self.known.get(name) {
            return known.measure_and_replace(&bucket, measure);
        }
        if self.known.len() >= self.max {
            return self.strangers.measure_and_replace(&bucket, measure);
        }
        let new = self.known.entry(name.clone()).or_default();
        new.measure_and_replace(&bucket, measure)
    }
}

impl<K: Hash + Eq + Clone> ShrinkableKeyedStateStore<K> for Store<K> {
    fn retain_recent(&self, drop_below: Nanos) {
        self.known.retain_recent(drop_below);
    }

    fn len(&self) -> usize {
        self.known.len()
    }

    fn is_empty(&self) -> bool {
        self.known.is_empty()
    }
}

type Limiter<K, C> = RateLimiter<K, Store<K>, C, NoOpMiddleware<<C as Clock>::Instant>>;

/// A bucket for each name.
pub struct Buckets<K: Hash + Eq + Clone, C: Clock = MonotonicClock> {
    /// None: no limit.
    limiter: Option<Limiter<K, C>>,
    clock: C,
    max: usize,
    begun: C::Instant,
    /// When it is looked next whether names are to be forgotten, and when that was done last; nanoseconds since it began.
    look_at: AtomicU64,
    swept: AtomicU64,
}

impl<K: Hash + Eq + Clone> Buckets<K> {
    /// Buckets of `per_minute` that fill in a minute; 0 is no limit. At most `max` names are remembered.
    pub fn per_minute(per_minute: u32, max: usize) -> Self {
        let quota = NonZeroU32::new(per_minute).map(Quota::per_minute);
        Self::new(quota, max, MonotonicClock)
    }

    /// `per_second`, of which twice as many may come at once; 0 is no limit.
    pub fn per_second(per_second: u32, max: usize) -> Self {
        let burst = NonZeroU32::new(per_second.saturating_mul(2));
        let quota = NonZeroU32::new(per_second).map(Quota::per_second);
        let quota = quota
            .zip(burst)
            .map(|(quota, burst)| quota.allow_burst(burst));
        Self::new(quota, max, MonotonicClock)
    }
}

impl<K: Hash + Eq + Clone, C: Clock + Clone> Buckets<K, C> {
    fn new(quota: Option<Quota>, max: usize, clock: C) -> Self {
        let limiter = quota.map(|quota| {
            let store = Store {
                known: DashMap::new(),
                strangers: InMemoryState::default(),
                max,
            };
            RateLimiter::new(quota, store, clock.clone())
        });
        Self {
            limiter,
            begun: clock.now(),
            clock,
            max,
            look_at: AtomicU64::new(0),
            swept: AtomicU64::new(0),
        }
    }

    /// Takes one; the error says after how many seconds the next is allowed.
    pub fn take(&self, name: &K) -> Result<(), u32> {
        let Some(limiter) = &self.limiter else {
            return Ok(());
        };
        self.sweep(limiter);
        limiter.check_key(name).map_err(|not_until| {
            let wait = not_until.wait_time_from(self.clock.now());
            // At most the minute a bucket takes to fill.
            (wait.as_secs_f64().ceil() as u32).max(1)
        })
    }

    /// Forgets those whose bucket is full, if that was not done lately.
    fn sweep(&self, limiter: &Limiter<K, C>) {
        let now = self.clock.now().duration_since(self.begun).as_u64();
        // Relaxed throughout: these numbers say whose turn it is and publish nothing else.
        let due = self.look_at.load(Ordering::Relaxed);
        let next = now.saturating_add(nanos(SWEEP_EVERY_WHEN_FULL));
        let is_mine = || {
            let order = Ordering::Relaxed;
            self.look_at
                .compare_exchange(due, next, order, order)
                .is_ok()
        };
        if now < due || !is_mine() {
            return;
        }
        let since = now.saturating_sub(self.swept.load(Ordering::Relaxed));
        if since >= nanos(SWEEP_EVERY) || limiter.len() >= self.max {
            self.swept.store(now, Ordering::Relaxed);
            limiter.retain_recent();
        }
    }
}

fn nanos(time: Duration) -> u64 {
    Nanos::from(time).as_u64()
}

#[cfg(test)]
mod tests {
    use super::*;
    use governor::clock::FakeRelativeClock;

    fn thirty(max: usize) -> (Buckets<u32, FakeRelativeClock>, FakeRelativeClock) {
        let clock = FakeRelativeClock::default();
        let quota = Quota::per_minute(NonZeroU32::new(30).unwrap());
        (Buckets::new(Some(quota), max, clock.clone()), clock)
    }

    #[test]
    fn a_name_has_so_many_a_minute_and_others_are_not_touched() {
        let (rates, clock) = thirty(10);
        for _ in 0..30 {
            assert_eq!(rates.take(&1), Ok(()));
        }
        assert_eq!(rates.take(&1), Err(2), "one comes back every two seconds");
        assert_eq!(rates.take(&2), Ok(()));
        clock.advance(Duration::from_secs(2));
        assert_eq!((rates.take(&1), rates.take(&1)), (Ok(()), Err(2)));
        clock.advance(Duration::from_secs(600));
        let taken = (0..100).take_while(|_| rates.take(&1).is_ok()).count();
        assert_eq!(taken, 30, "more than a minute's worth is never saved up");
    }

    #[test]
    fn strangers_share_a_bucket_while_there_is_no_room_and_the_known_keep_theirs() {
        let (rates, clock) = thirty(2);
        rates.take(&1).unwrap();
        rates.take(&2).unwrap();
        let strangers = (3..1_000)
            .take_while(|name| rates.take(name).is_ok())
            .count();
        assert_eq!(strangers, 30);
        assert_eq!(rates.take(&1), Ok(()));
        let limiter = rates.limiter.as_ref().unwrap();
        assert_eq!(limiter.len(), 2);
        // Whose bucket is full again is forgotten, and there is room for another.
        clock.advance(Duration::from_secs(60));
        rates.take(&3).unwrap();
        assert_eq!(limiter.len(), 1);
    }

    #[test]
    fn who_was_not_heard_for_a_while_is_forgotten_also_where_there_is_room() {
        let (rates, clock) = thirty(1_000);
        for name in 0..100 {
            rates.take(&name).unwrap();
        }
        clock.advance(Duration::from_secs(61));
        rates.take(&100).unwrap();
        assert_eq!(rates.limiter.as_ref().unwrap().len(), 1);
    }

    #[test]
    fn no_limit_is_none() {
        let rates = Buckets::<u32>::per_second(0, 0);
        assert!((0..10_000).all(|name| rates.take(&name).is_ok()));
    }
}
