//! How does a node that takes a shard over come by its states at once? By having read most of them before.
//!
//! Every node keeps the stored states of all shards, whoever owns them, as far as it has read them, and reads what is new
//! every [`KEEP_EVERY`]; a node reads all there is before it joins the group. A takeover reads the rest. Without this it
//! takes as long as reading everything that was written since the topic was last compacted: at 100 rides a second that
//! grows by a megabyte each second, for every shard that moves.
//!
//! Holds: what is kept is what reading from the beginning to the same offset would give. Only committed records are read,
//! up to a stable end, and those never change; only compaction takes records out, and what is kept is not used when it is
//! older than compaction lets a reader be ([`AGE_MAX`]). A log that was cut and written anew is noticed by the last header
//! that was read, which must still be where it was; otherwise everything is read again.
//! As large as the shards' states: what a node's followers hold, too.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::Thread;
use std::time::Duration;

use tracing::debug;

use super::client::Isolation;
use super::config::SHARDS_MAX;
use super::inbox::Inward;
use super::lease::now_ns;
use super::log::Shared;
use super::reader::unavailable;
use super::stored::ShardImage;
use super::takeover::READERS;
use crate::{ReadError, Topic};

/// Between two looks for what is new.
const KEEP_EVERY: Duration = Duration::from_secs(1);
/// What was read longer ago is not built upon. Less than `min.compaction.lag.ms`, so that a header that was read is still
/// there, and far less than tombstones are kept.
const AGE_MAX: Duration = Duration::from_secs(300);

/// The states of all shards, each as far as it was read.
pub(super) struct Images(Vec<Mutex<Kept>>);

#[derive(Default)]
struct Kept {
    image: ShardImage,
    /// Everything before this is in the image.
    read_to: u64,
    /// When that was so, on a clock that counts the machine's sleep.
    read_ns: u64,
    /// The newest header in the image.
    header_at: Option<u64>,
}

impl Default for Images {
    fn default() -> Images {
        // There may be more shards later, and an empty place costs next to nothing.
        Images((0..SHARDS_MAX).map(|_| Mutex::default()).collect())
    }
}

impl Kept {
    fn is_usable(&self, to: u64) -> bool {
        let age_ns = now_ns().saturating_sub(self.read_ns);
        self.read_to <= to && u128::from(age_ns) < AGE_MAX.as_nanos()
    }

    /// Reads on up to `to`, a stable end.
    fn read_on(&mut self, shared: &Shared, shard: u16, to: u64) -> Result<(), ReadError> {
        if !self.is_usable(to) {
            *self = Kept::default();
        }
        if self.read_to < to {
            let is_as_it_was = self.read_from_header(shared, shard, to)?;
            if !is_as_it_was {
                debug!(
                    shard,
                    "the states are not what they were: they are read again"
                );
                *self = Kept::default();
                self.read_from_header(shared, shard, to)?;
            }
        }
        self.read_to = to;
        self.read_ns = now_ns();
        Ok(())
    }

    /// False: the header that was read last is not where it was. If it fails, what was read is kept: a beginning is one.
    fn read_from_header(
        &mut self,
        shared: &Shared,
        shard: u16,
        to: u64,
    ) -> Result<bool, ReadError> {
        let (from, expected) = (self.header_at.unwrap_or(0), self.image.note.clone());
        let mut is_first = self.header_at.is_some();
        let (mut is_as_it_was, mut broken) = (true, None);
        let partition = (Topic::ShardState, shard);
        shared
            .reader
            .scan(Isolation::Committed, partition, from, to, |inward| {
                let Inward::Record { offset, .. } = &inward else {
                    return ControlFlow::Continue(());
                };
                let (offset, was_first) = (*offset, std::mem::take(&mut is_first));
                match self.image.take(inward) {
                    Ok(true) => self.header_at = Some(offset),
                    Ok(false) => {}
                    Err(why) => {
                        broken = Some(why);
                        return ControlFlow::Break(());
                    }
                }
                if was_first && (offset != from || self.image.note != expected) {
                    is_as_it_was = false;
                    return ControlFlow::Break(());
                }
                ControlFlow::Continue(())
            })?;
        match broken {
            Some(why) => Err(ReadError::Corrupt(format!("shard {shard}: {why}"))),
            None => Ok(is_as_it_was),
        }
    }
}

impl Shared {
    /// The committed states of a shard up to `to`, a stable end, or further, and how far.
    pub(super) fn image_to(&self, shard: u16, to: u64) -> Result<(ShardImage, u64), ReadError> {
        let Some(kept) = self.images.0.get(usize::from(shard)) else {
            return Err(unavailable(format!("there is no shard {shard}")));
        };
        // Two who read the same shard would read the same: the second waits and finds it done. A panic of the first leaves
        // a beginning behind, which is one.
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        let to = if kept.read_to > to {
            // Somebody has read on since `to` was asked for, or the log was cut.
            let partition = (Topic::ShardState, shard);
            to.max(self.reader.ends(Isolation::Committed, &[partition])?[0])
        } else {
            to
        };
        kept.read_on(self, shard, to)?;
        Ok((kept.image.clone(), kept.read_to))
    }

    /// Reads what is new of all shards.
    fn keep_up(&self, is_over: &AtomicBool) -> Result<(), ReadError> {
        for (shard, end) in self.state_ends()? {
            // Relaxed: it only ends the work sooner.
            if is_over.load(Ordering::Relaxed) {
                break;
            }
            self.keep(shard, end)?;
        }
        Ok(())
    }

    fn state_ends(&self) -> Result<Vec<(u16, u64)>, ReadError> {
        let shards = 0..self.shards();
        let partitions: Vec<(Topic, u16)> = shards
            .clone()
            .map(|shard| (Topic::ShardState, shard))
            .collect();
        let ends = self.reader.ends_now(Isolation::Committed, &partitions)?;
        Ok(shards.zip(ends).collect())
    }

    fn keep(&self, shard: u16, end: u64) -> Result<(), ReadError> {
        let Some(kept) = self.images.0.get(usize::from(shard)) else {
            return Ok(());
        };
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        // Asked for a moment ago: a takeover may have read further meanwhile.
        if kept.read_to < end {
            kept.read_on(self, shard, end)?;
        } else {
            kept.read_ns = now_ns().max(kept.read_ns);
        }
        Ok(())
    }

    /// Reads all there is, as many shards side by side as a takeover does. So there are as many clients afterwards that
    /// have read before: one that reads for the first time can take a second to begin.
    fn read_all(&self) -> Result<(), ReadError> {
        let left = Mutex::new(self.state_ends()?);
        let next = || left.lock().unwrap_or_else(PoisonError::into_inner).pop();
        std::thread::scope(|scope| {
            let readers: Vec<_> = (0..READERS)
                .map(|_| {
                    scope.spawn(|| {
                        while let Some((shard, end)) = next() {
                            self.keep(shard, end)?;
                        }
                        Ok(())
                    })
                })
                .collect();
            readers
                .into_iter()
                .try_for_each(|reader| reader.join().unwrap_or(Ok(())))
        })
    }
}

/// Reads what is new, until it is dropped.
pub(super) struct Keeper {
    is_over: Arc<AtomicBool>,
    thread: Option<Thread>,
}

impl Keeper {
    /// Reads all there is, then goes on beside whatever else is done. Brokers that do not answer are asked again later.
    pub(super) fn start(shared: &Arc<Shared>) -> Keeper {
        let is_over = Arc::new(AtomicBool::new(false));
        let weak = Arc::downgrade(shared);
        if let Err(why) = shared.read_all() {
            debug!(%why, "the states cannot be read yet");
        }
        let over = Arc::clone(&is_over);
        let keeping = std::thread::Builder::new()
            .name("cabrank-images".into())
            .spawn(move || {
                std::thread::park_timeout(KEEP_EVERY);
                while look(&weak, &over) {
                    std::thread::park_timeout(KEEP_EVERY);
                }
            });
        // If no thread can be had, takeovers read everything.
        let thread = keeping.ok().map(|thread| thread.thread().clone());
        Keeper { is_over, thread }
    }
}

/// One look; false when it is over.
fn look(shared: &Weak<Shared>, is_over: &AtomicBool) -> bool {
    let Some(shared) = shared.upgrade() else {
        return false;
    };
    if is_over.load(Ordering::Relaxed) {
        return false;
    }
    if let Err(why) = shared.keep_up(is_over) {
        debug!(%why, "what is new of the states cannot be read");
    }
    true
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = &self.thread {
            thread.unpark();
        }
    }
}
