//! Do the loops of this process still go round?
//!
//! Every loop has a heart and beats it each time round; a loop that waits for as long as it takes rests meanwhile. One that
//! has done neither for longer than it may is wedged: blocked for ever, or in an endless turn. Whoever asks about the process's
//! life hears of it by name, from another thread, so that something can end the process.
//! Cost: a beat reads the clock and stores one number. Bound: as many hearts as loops; one that is dropped is forgotten.
//! Not here: who asks (`gateway`), who ends the process (Kubernetes, systemd).

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Instead of a time: the loop waits for as long as it takes.
const RESTS: u64 = u64::MAX;

/// The hearts of a process, or of a part of it. Clones are the same.
#[derive(Clone, Default)]
pub struct Hearts(Arc<Mutex<Vec<Arc<Beat>>>>);

struct Beat {
    name: String,
    /// A loop that has not beaten for so long is wedged.
    patience: Duration,
    born: Instant,
    /// When it last beat, ms since `born`, or [`RESTS`].
    last_ms: AtomicU64,
}

/// A loop's own. Dropping it says that the loop has ended.
pub struct Heart {
    hearts: Hearts,
    beat: Arc<Beat>,
}

/// A loop that does not go round any more.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("wedged: {name} has not gone round for {} s", for_ms / 1_000)]
pub struct Wedged {
    /// Which.
    pub name: String,
    /// Since when, ms.
    pub for_ms: u64,
}

impl Hearts {
    /// A heart for the loop called `name`, which goes round at least every `patience`. It has just beaten.
    pub fn add(&self, name: impl Into<String>, patience: Duration) -> Heart {
        let beat = Arc::new(Beat {
            name: name.into(),
            patience,
            born: Instant::now(),
            last_ms: AtomicU64::new(0),
        });
        self.lock().push(Arc::clone(&beat));
        Heart {
            hearts: self.clone(),
            beat,
        }
    }

    /// A loop that is wedged, if there is one: the one that stands still for longest.
    pub fn wedged(&self) -> Option<Wedged> {
        let still = |beat: &Arc<Beat>| {
            // Relaxed: one number by itself.
            let last_ms = beat.last_ms.load(Ordering::Relaxed);
            let for_ms = beat.age_ms().checked_sub(last_ms)?;
            (u128::from(for_ms) > beat.patience.as_millis()).then(|| Wedged {
                name: beat.name.clone(),
                for_ms,
            })
        };
        let hearts = self.lock();
        hearts
            .iter()
            .filter_map(still)
            .max_by_key(|wedged| wedged.for_ms)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Beat>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Beat {
    fn age_ms(&self) -> u64 {
        u64::try_from(self.born.elapsed().as_millis()).unwrap_or(RESTS - 1)
    }
}

impl Heart {
    /// The loop goes round.
    pub fn beat(&self) {
        self.beat
            .last_ms
            .store(self.beat.age_ms(), Ordering::Relaxed);
    }

    /// The loop waits now, for as long as it takes; the next beat ends it.
    pub fn rest(&self) {
        self.beat.last_ms.store(RESTS, Ordering::Relaxed);
    }
}

impl Drop for Heart {
    fn drop(&mut self) {
        let mut hearts = self.hearts.lock();
        hearts.retain(|beat| !Arc::ptr_eq(beat, &self.beat));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_neither_beats_nor_rests_is_wedged_until_it_beats_or_ends() {
        let hearts = Hearts::default();
        let (quick, patient) = (Duration::ZERO, Duration::from_secs(3_600));
        let still = hearts.add("still", quick);
        let _well = hearts.add("well", patient);
        let wedged = || {
            // Longer than no time at all must pass.
            let until = Instant::now() + Duration::from_secs(20);
            while Instant::now() < until {
                if let Some(wedged) = hearts.wedged() {
                    return Some(wedged.name);
                }
                std::thread::yield_now();
            }
            None
        };
        assert_eq!(wedged().as_deref(), Some("still"));
        still.rest();
        assert_eq!(hearts.wedged(), None, "it waits");
        still.beat();
        assert_eq!(wedged().as_deref(), Some("still"));
        drop(still);
        assert_eq!(hearts.wedged(), None, "it has ended");
    }
}
