//! Have the readers of that moment gone?
//!
//! A driver that crosses into another patch leaves its old entry behind for the queries that are under way. The
//! entry is stamped with the epoch of the departure, taken after the new entry was made. A query pins the epoch it
//! begins in.
//!
//! - A query that pinned a later epoch than the stamp finds the new entry: it skips the old one.
//! - The epoch moves on only when every pin is of the current one, so a stamp two behind has no reader left: the
//!   word is free again.
//! - When a stalled query holds up too much, its pin is revoked. It learns so at its end and asks anew another way.
//!   No memory is ever freed while the index lives, so it reads nothing worse than an old answer.
//!
//! Why not crossbeam's epochs: they run a deferred closure some time later, which allocates and costs as much as the
//! crossing; here the question is asked of a stamp, in place, and the protocol runs under loom.

use crossbeam_utils::CachePadded;

use crate::sync::{AtomicU64, Ordering, fence};

/// Queries that can be under way with a pin. One more scans all slots instead, which needs none.
pub(crate) const PINS_MAX: usize = if cfg!(loom) { 2 } else { 64 };

const NOT_PINNED: u64 = 0;
const REVOKED: u64 = u64::MAX;

/// The epoch of a departure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Stamp(pub u64);

#[derive(Debug)]
pub(crate) struct Readers {
    epoch: CachePadded<AtomicU64>,
    pins: Box<[CachePadded<AtomicU64>]>,
}

/// A query under way. Ends with `unpin`.
#[derive(Debug)]
pub(crate) struct Pin<'a> {
    pin: &'a AtomicU64,
    epoch: u64,
}

impl Readers {
    pub fn new() -> Self {
        Self {
            epoch: CachePadded::new(AtomicU64::new(1)),
            pins: (0..PINS_MAX)
                .map(|_| CachePadded::new(AtomicU64::new(NOT_PINNED)))
                .collect(),
        }
    }

    /// Pins the current epoch, or nothing when all pins are taken.
    pub fn pin(&self) -> Option<Pin<'_>> {
        let first = first_pin();
        for turn in 0..PINS_MAX {
            let pin = &*self.pins[(first + turn) % PINS_MAX];
            let mut epoch = self.epoch.load(Ordering::Relaxed);
            // Acquire: what the last owner of this pin saw is behind us.
            if pin.load(Ordering::Relaxed) != NOT_PINNED
                || pin
                    .compare_exchange(NOT_PINNED, epoch, Ordering::Acquire, Ordering::Relaxed)
                    .is_err()
            {
                continue;
            }
            loop {
                // Pairs with the fences of `stamp` and `move_on`: either they see this pin, or the load below
                // sees their epoch.
                fence(Ordering::SeqCst);
                let now = self.epoch.load(Ordering::Acquire);
                if now == epoch {
                    return Some(Pin { pin, epoch });
                }
                // A revocation in between is overwritten: nothing has been read under it. A swap that acquires, so
                // that it and the revocation are in one order for everybody.
                pin.swap(now, Ordering::AcqRel);
                epoch = now;
            }
        }
        None
    }

    /// The epoch of a departure. Call after the driver's new entry is in place.
    pub fn stamp(&self) -> Stamp {
        // Pairs with the fence of `pin`: a query that pins a later epoch than this one sees the new entry.
        fence(Ordering::SeqCst);
        Stamp(self.epoch.load(Ordering::Relaxed))
    }

    /// Whether no query needs what departed then. Of the stamp only `bits` were kept.
    #[inline]
    pub fn are_gone(&self, departed: Stamp, bits: u32) -> bool {
        // Acquire pairs with `move_on`: the reads of those queries are behind us.
        let since = elapsed(self.epoch.load(Ordering::Acquire), departed, bits);
        (2..1 << (bits - 1)).contains(&since)
    }

    /// Begins a new epoch if every query under way belongs to the current one.
    pub fn move_on(&self) -> bool {
        let epoch = self.epoch.load(Ordering::Acquire);
        // Pairs with the fence of `pin`: see there.
        fence(Ordering::SeqCst);
        for pin in &self.pins {
            // Acquire pairs with the Release of `unpin`: its reads are over before the word is used again.
            let pinned = pin.load(Ordering::Acquire);
            if pinned != NOT_PINNED && pinned != REVOKED && pinned != epoch {
                return false;
            }
        }
        // AcqRel: whoever sees the new epoch has all that the scan above has seen.
        self.epoch
            .compare_exchange(epoch, epoch + 1, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
    }

    /// Takes the pin from queries of earlier epochs. They notice at their end.
    pub fn revoke_old(&self) {
        let epoch = self.epoch.load(Ordering::Acquire);
        for pin in &self.pins {
            let pinned = pin.load(Ordering::Relaxed);
            if pinned != NOT_PINNED && pinned != REVOKED && pinned != epoch {
                // AcqRel: the query's `unpin` sees it, and sees all that is overwritten after it as possible.
                let _ = pin.compare_exchange(pinned, REVOKED, Ordering::AcqRel, Ordering::Relaxed);
            }
        }
    }
}

impl Pin<'_> {
    /// Whether this query finds the new entry of whoever departed then, so that it may skip the old one.
    #[inline]
    pub fn is_after(&self, departed: Stamp, bits: u32) -> bool {
        (1..=1 << (bits - 1)).contains(&elapsed(self.epoch, departed, bits))
    }

    /// The same for many at once, without a branch: the uppermost bit of those kept of the stamp is set unless
    /// `is_after`. The bits above that one mean nothing.
    #[inline]
    pub fn may_need(&self, departed: Stamp) -> u64 {
        self.epoch.wrapping_sub(1).wrapping_sub(departed.0)
    }

    /// Ends the query. False: the pin was revoked, so a driver that moved may have been missed.
    pub fn unpin(self) -> bool {
        // Release: the query's reads stay before; pairs with the Acquire in `move_on`.
        self.pin.swap(NOT_PINNED, Ordering::AcqRel) != REVOKED
    }
}

/// Epochs since a stamp of which `bits` were kept. A stamp that a pinned query may need is at most two epochs away, so
/// it is never taken for an old one. One so old that it wrapped looks new, which costs a look and is never wrong.
#[inline]
fn elapsed(epoch: u64, stamp: Stamp, bits: u32) -> u64 {
    epoch.wrapping_sub(stamp.0) & ((1 << bits) - 1)
}

/// Threads begin at different pins, so that they do not fight for one cache line.
#[cfg(not(loom))]
fn first_pin() -> usize {
    use std::cell::Cell;
    use std::sync::atomic::AtomicUsize;
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local!(static MINE: Cell<usize> = const { Cell::new(usize::MAX) });
    MINE.with(|mine| {
        if mine.get() == usize::MAX {
            // Relaxed: only the number counts.
            mine.set(NEXT.fetch_add(1, Ordering::Relaxed) % PINS_MAX);
        }
        mine.get()
    })
}

#[cfg(loom)]
fn first_pin() -> usize {
    0
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn both_ways_to_ask_whether_a_stamp_is_needed_agree() {
        const BITS: u32 = 36;
        let word = AtomicU64::new(0);
        for epoch in [
            1,
            2,
            3,
            1 << 20,
            (1 << 35) - 1,
            1 << 35,
            1 << 36,
            (1 << 36) + 7,
        ] {
            let pin = Pin { pin: &word, epoch };
            for back in [
                0,
                1,
                2,
                3,
                (1 << 35) - 1,
                1 << 35,
                (1 << 35) + 1,
                (1 << 36) - 1,
            ] {
                let stamp = Stamp(epoch.wrapping_sub(back) & ((1 << BITS) - 1));
                let garbage_above = Stamp(stamp.0 | (0xABC << BITS));
                let needed = !pin.is_after(stamp, BITS);
                for stamp in [stamp, garbage_above] {
                    let bit = pin.may_need(stamp) >> (BITS - 1) & 1;
                    assert_eq!(bit == 1, needed, "epoch {epoch}, {back} back");
                }
            }
        }
    }

    #[test]
    fn a_stalled_query_holds_up_the_second_epoch_until_its_pin_is_revoked() {
        let readers = Readers::new();
        let stalled = readers.pin().unwrap();
        let departed = readers.stamp();
        assert!(readers.move_on(), "every pin is of the current epoch");
        let fresh = readers.pin().unwrap();
        assert!(!readers.move_on(), "the stalled query is of an earlier one");
        assert!(!readers.are_gone(departed, 36));
        assert!(!stalled.is_after(departed, 36) && fresh.is_after(departed, 36));
        readers.revoke_old();
        assert!(readers.move_on());
        assert!(readers.are_gone(departed, 36));
        assert!(
            !stalled.unpin(),
            "it learns that it may have missed somebody"
        );
        assert!(fresh.unpin(), "a query of the current epoch keeps its pin");
    }

    #[test]
    fn a_query_beyond_the_pins_gets_none_and_revoked_pins_come_back() {
        let readers = Readers::new();
        let pins: Vec<_> = (0..PINS_MAX).map(|_| readers.pin().unwrap()).collect();
        assert!(readers.pin().is_none());
        readers.move_on();
        readers.revoke_old();
        assert!(pins.into_iter().all(|pin| !pin.unpin()));
        let pins: Vec<_> = (0..PINS_MAX).map(|_| readers.pin().unwrap()).collect();
        readers.revoke_old();
        assert!(pins.into_iter().all(Pin::unpin));
    }
}
