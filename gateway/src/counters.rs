//! What became of the pings: sent = accepted + refused by reason + replaced, exactly.

use std::sync::atomic::{AtomicU64, Ordering};

use cabrank_events::wire::PingRefusal;
use serde::{Deserialize, Serialize};

const REASONS: usize = PingRefusal::ALL.len();

/// Counters of one gateway, added to by every driver's socket.
///
/// All orderings are relaxed: each counter stands for itself. A snapshot taken while pings arrive may be torn by those
/// on their way; once they are answered the sum holds exactly.
#[derive(Debug, Default)]
pub struct IngestCounters {
    sent: AtomicU64,
    accepted: AtomicU64,
    replaced: AtomicU64,
    refused: [AtomicU64; REASONS],
}

/// The counters at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IngestSnapshot {
    /// Pings that reached the gateway.
    pub sent: u64,
    /// Pings that became a driver's position.
    pub accepted: u64,
    /// Good pings that a newer one of the same frame made needless.
    pub replaced: u64,
    /// Refused ones, in the order of [`PingRefusal::ALL`].
    pub refused: [u64; REASONS],
}

fn place(why: PingRefusal) -> usize {
    match why {
        PingRefusal::BadCoordinates => 0,
        PingRefusal::FromTheFuture => 1,
        PingRefusal::TooOld => 2,
        PingRefusal::OutOfOrder => 3,
        PingRefusal::ImpossibleSpeed => 4,
        PingRefusal::BadAccuracy => 5,
        PingRefusal::TooMany => 6,
        PingRefusal::NotOnline => 7,
        PingRefusal::IndexFull => 8,
    }
}

impl IngestCounters {
    pub(crate) fn add_sent(&self, n: usize) {
        self.sent.fetch_add(n as u64, Ordering::Relaxed);
    }

    pub(crate) fn add_accepted(&self) {
        self.accepted.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn add_replaced(&self) {
        self.replaced.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn add_refused(&self, why: PingRefusal) {
        self.refused[place(why)].fetch_add(1, Ordering::Relaxed);
    }

    /// All counters now.
    pub fn snapshot(&self) -> IngestSnapshot {
        IngestSnapshot {
            sent: self.sent.load(Ordering::Relaxed),
            accepted: self.accepted.load(Ordering::Relaxed),
            replaced: self.replaced.load(Ordering::Relaxed),
            refused: std::array::from_fn(|n| self.refused[n].load(Ordering::Relaxed)),
        }
    }
}

impl IngestSnapshot {
    /// How many were refused for `why`.
    pub fn refused_for(&self, why: PingRefusal) -> u64 {
        self.refused[place(why)]
    }

    /// Refused for whatever reason.
    pub fn refused_total(&self) -> u64 {
        self.refused.iter().sum()
    }

    /// Hands the counters to the process's metrics recorder (`cabrank_pings_total{result,reason}`).
    pub(crate) fn publish(&self) {
        let set = |result: &'static str, reason: &'static str, value: u64| {
            metrics::counter!("cabrank_pings_total", "result" => result, "reason" => reason)
                .absolute(value);
        };
        metrics::counter!("cabrank_pings_sent_total").absolute(self.sent);
        set("accepted", "", self.accepted);
        set("replaced", "", self.replaced);
        for why in PingRefusal::ALL {
            set("refused", why.name(), self.refused_for(why));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_the_counter_of_its_place() {
        let counters = IngestCounters::default();
        for (n, why) in PingRefusal::ALL.into_iter().enumerate() {
            assert_eq!(place(why), n);
            for _ in 0..=n {
                counters.add_refused(why);
            }
        }
        assert_eq!(counters.snapshot().refused, [1, 2, 3, 4, 5, 6, 7, 8, 9]);
    }
}
