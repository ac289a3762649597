//! May this node still answer for its shards? (PROTOCOL 23)
//!
//! Nobody tells a node that is cut off from the brokers that its shards went to others, so it must know by itself when
//! that may have happened. An accepted offset commit for a partition of its own (`shard-owners`, which no node reads as
//! a member) proves that the node was in the group when the broker took it, and makes the broker wait a whole session
//! timeout from then; so from the moment the commit was *sent* nobody else can own the shards for that long. The lease
//! is that time less a margin. A transaction's commit proves nothing: the generation is not checked there.
//!
//! The clock counts while the machine sleeps (`CLOCK_BOOTTIME`), as the broker's does.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// The lease of a node, shared by the loop that renews it and whoever asks.
#[derive(Clone, Debug, Default)]
pub(super) struct NodeLease(Arc<AtomicU64>);

/// Nanoseconds since the machine was started, its sleep included.
pub(super) fn now_ns() -> u64 {
    #[cfg(target_os = "linux")]
    const CLOCK: ClockId = ClockId::Boottime;
    // Elsewhere the monotonic clock is the nearest there is; production runs on Linux.
    #[cfg(not(target_os = "linux"))]
    const CLOCK: ClockId = ClockId::Monotonic;
    let time = clock_gettime(CLOCK);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    seconds * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}

impl NodeLease {
    /// Valid until `length` after `sent_ns`.
    pub(super) fn extend(&self, sent_ns: u64, length: Duration) {
        let until = sent_ns + u64::try_from(length.as_nanos()).unwrap_or(0);
        // Release: whoever sees the lease also sees what was done before it was taken. Pairs with `is_valid`.
        self.0.store(until, Ordering::Release);
    }

    /// Ends it at once.
    pub(super) fn end(&self) {
        self.0.store(0, Ordering::Release);
    }

    pub(super) fn is_valid(&self) -> bool {
        // Acquire: pairs with `extend`.
        now_ns() < self.0.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_counts_from_the_sending() {
        let lease = NodeLease::default();
        assert!(!lease.is_valid());
        lease.extend(now_ns(), Duration::from_secs(60));
        assert!(lease.is_valid());
        let long_ago = now_ns() - 2_000_000_000;
        lease.extend(long_ago, Duration::from_secs(1));
        assert!(!lease.is_valid(), "proved two seconds ago, for one");
        lease.extend(now_ns(), Duration::from_secs(60));
        lease.end();
        assert!(!lease.is_valid());
    }
}
