//! The protocol of `readers` alone, under every order of events that loom can find: what departed is kept for the
//! queries that need it, and a query that loses its pin learns so.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p cabrank-geo --release --test loom_readers`

#![cfg(loom)]

// The very file of the index, because its protocol is nobody's business outside of the crate.
#[allow(dead_code, reason = "the index uses more of it")]
#[path = "../src/readers.rs"]
mod readers;
#[allow(unused_imports, reason = "other files of the index use the rest")]
#[path = "../src/sync.rs"]
mod sync;

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU64, Ordering};
use loom::thread::spawn;
use readers::{Readers, Stamp};

const BITS: u32 = 36;
const FREE: u64 = 0;
const HERE: u64 = 1;
const REUSED: u64 = 2;
const STALE: u64 = 1 << 63;

/// A driver's entries in two patches, as the index has them: one word each.
struct Town {
    readers: Readers,
    new: AtomicU64,
    old: AtomicU64,
}

fn town() -> Arc<Town> {
    Arc::new(Town {
        readers: Readers::new(),
        new: AtomicU64::new(FREE),
        old: AtomicU64::new(HERE),
    })
}

impl Town {
    /// The driver crosses; tells the stamp of the word it leaves.
    fn cross(&self) -> Stamp {
        self.new.store(HERE, Ordering::Release);
        let stamp = self.readers.stamp();
        self.old.store(STALE | stamp.0, Ordering::Release);
        stamp
    }

    /// Another driver takes the word if no query needs it.
    fn reuse(&self, stamp: Stamp) -> bool {
        let gone = self.readers.are_gone(stamp, BITS);
        if gone {
            self.old.store(REUSED, Ordering::Release);
        }
        gone
    }

    /// A query that comes to the new patch first. `None`: it lost its pin, so that its answer does not count.
    fn query(&self) -> Option<bool> {
        let pin = self.readers.pin()?;
        let at_new = self.new.load(Ordering::Acquire) == HERE;
        let old = self.old.load(Ordering::Acquire);
        let stamp = Stamp(old & !STALE);
        let departed = old & STALE != 0 && !pin.is_after(stamp, BITS);
        // Both ways to ask agree.
        let may_need = pin.may_need(stamp) >> (BITS - 1) & 1 == 1;
        assert_eq!(departed, old & STALE != 0 && may_need);
        let seen = at_new || old == HERE || departed;
        pin.unpin().then_some(seen)
    }
}

#[test]
fn a_query_sees_a_driver_that_crosses_however_much_its_old_word_is_wanted() {
    loom::model(|| {
        let town = town();
        let writer = spawn({
            let town = town.clone();
            move || {
                let stamp = town.cross();
                town.readers.move_on();
                town.readers.move_on();
                town.reuse(stamp);
            }
        });
        assert_eq!(town.query(), Some(true), "nobody revokes here");
        writer.join().unwrap();
    });
}

#[test]
fn a_query_that_loses_its_pin_learns_so() {
    loom::model(|| {
        let town = town();
        let writer = spawn({
            let town = town.clone();
            move || {
                let stamp = town.cross();
                town.readers.move_on();
                if !town.readers.move_on() {
                    // The query holds it up: whoever needs the word does not wait for ever.
                    town.readers.revoke_old();
                    town.readers.move_on();
                }
                town.reuse(stamp);
            }
        });
        // A query that kept its pin has seen the driver.
        assert_ne!(town.query(), Some(false));
        writer.join().unwrap();
    });
}

#[test]
fn a_pin_that_was_revoked_serves_the_next_query() {
    loom::model(|| {
        let town = town();
        let writer = spawn({
            let town = town.clone();
            move || {
                town.readers.move_on();
                town.readers.revoke_old();
            }
        });
        town.query();
        assert!(town.query().is_none_or(|seen| seen));
        writer.join().unwrap();
        let (first, second) = (town.readers.pin(), town.readers.pin());
        assert!(first.is_some() && second.is_some(), "a pin was lost");
        assert!(first.is_some_and(|pin| pin.unpin()) && second.is_some_and(|pin| pin.unpin()));
    });
}
