//! How many calls a minute may one rider make?

use cabrank_events::RiderId;
use dashmap::DashMap;
use dashmap::mapref::entry::Entry;

/// What one call costs in a bucket that gains `per_minute` each millisecond.
const CALL_COST: u64 = 60_000;

#[derive(Clone, Copy)]
struct Bucket {
    level: u64,
    at_ms: u64,
}

/// A bucket per rider that fills in a minute. Riders with a full bucket are forgotten when room is needed; when
/// everybody is busy, strangers are turned away.
pub struct RequestRates {
    buckets: DashMap<RiderId, Bucket>,
    per_minute: u64,
    max: usize,
}

impl RequestRates {
    /// `per_minute` 0 is no limit; at most `max` riders are remembered.
    pub fn new(per_minute: u32, max: usize) -> Self {
        Self {
            buckets: DashMap::new(),
            per_minute: u64::from(per_minute),
            max,
        }
    }

    /// Takes one call; the error says after how many seconds the next is allowed.
    pub fn take(&self, rider: &RiderId, wall_ms: u64) -> Result<(), u32> {
        if self.per_minute == 0 {
            return Ok(());
        }
        if self.buckets.len() >= self.max && !self.buckets.contains_key(rider) {
            self.buckets
                .retain(|_, bucket| self.level(bucket, wall_ms) < self.full());
            if self.buckets.len() >= self.max {
                return Err(60);
            }
        }
        match self.buckets.entry(rider.clone()) {
            Entry::Vacant(entry) => {
                entry.insert(Bucket {
                    level: self.full() - CALL_COST,
                    at_ms: wall_ms,
                });
                Ok(())
            }
            Entry::Occupied(mut entry) => {
                let level = self.level(entry.get(), wall_ms);
                let left = level.checked_sub(CALL_COST);
                entry.insert(Bucket {
                    level: left.unwrap_or(level),
                    at_ms: wall_ms,
                });
                left.map(|_| ()).ok_or_else(|| {
                    let missing_ms = (CALL_COST - level).div_ceil(self.per_minute);
                    u32::try_from(missing_ms.div_ceil(1_000)).unwrap_or(60)
                })
            }
        }
    }

    fn full(&self) -> u64 {
        self.per_minute * CALL_COST
    }

    fn level(&self, bucket: &Bucket, wall_ms: u64) -> u64 {
        let gained = wall_ms
            .saturating_sub(bucket.at_ms)
            .saturating_mul(self.per_minute);
        bucket.level.saturating_add(gained).min(self.full())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rider_has_so_many_calls_a_minute_and_others_are_not_touched() {
        let rates = RequestRates::new(30, 10);
        let (one, two) = (RiderId::new("r1").unwrap(), RiderId::new("r2").unwrap());
        for _ in 0..30 {
            assert_eq!(rates.take(&one, 5), Ok(()));
        }
        assert_eq!(
            rates.take(&one, 5),
            Err(2),
            "one call comes back every two seconds"
        );
        assert_eq!(rates.take(&two, 5), Ok(()));
        assert_eq!(rates.take(&one, 2_005), Ok(()));
        assert_eq!(rates.take(&one, 2_006), Err(2));
    }

    #[test]
    fn the_idle_are_forgotten_when_room_is_needed() {
        let rates = RequestRates::new(30, 2);
        let rider = |n: u32| RiderId::new(&format!("r{n}")).unwrap();
        rates.take(&rider(1), 0).unwrap();
        rates.take(&rider(2), 0).unwrap();
        assert_eq!(rates.take(&rider(3), 1), Err(60));
        assert_eq!(rates.take(&rider(3), 60_000), Ok(()));
        assert_eq!(rates.buckets.len(), 1);
    }
}
