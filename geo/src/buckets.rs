//! Which drivers may be in a patch?
//!
//! A table of buckets, two cache lines each, found by a hash of the patch: rows are laid out by the golden ratio, so
//! that a city's patches hardly ever share a bucket and neighbours in a row lie side by side. An entry is one word: the
//! driver's slot and its offset inside the patch, to skip the far without looking at their slots. Entries are
//! hints that are never missing: the truth is in the slot.
//!
//! A crowded patch (an airport, a stadium) overflows into further buckets anywhere in the table; the control word of
//! its home counts them. Nothing is allocated and nothing freed while the index lives: memory is bounded by construction.
//!
//! When a driver departs, its entry becomes a stale one with a stamp, for the queries under way (`readers`).

use crate::index::Status;
use crate::patch::{OFFSET_BITS, Patch};
use crate::readers::{Pin, Readers, Stamp};
use crate::reserved::Reserved;
use crate::sync::{AtomicU64, Ordering};

/// Slots an entry can name.
pub(crate) const SLOTS_MAX: u32 = 1 << SLOT_BITS;

const SLOT_BITS: u32 = 24;
const ENTRIES: usize = if cfg!(loom) { 1 } else { 15 };
/// Buckets for this many drivers at most, before rounding up to a power of two.
const DRIVERS_PER_BUCKET: u32 = 4;
const BUCKETS_MIN: u32 = if cfg!(loom) { 4 } else { 16 };
/// Overflow buckets lie together in runs of this many.
const RUN: u32 = if cfg!(loom) { 1 } else { 8 };
/// Overflow buckets looked at before the overflow grows.
const TRIES: u32 = 4;

const FREE: u64 = 0;
const LIVE: u64 = 1 << 62;
const STALE: u64 = 1 << 63;
const TAG_SHIFT: u32 = 58;
const HINT_SHIFT: u32 = 52;
const SLOT_SHIFT: u32 = 28;
const OFFSETS_MASK: u64 = (1 << SLOT_SHIFT) - 1;
const _: () = assert!(2 * OFFSET_BITS == SLOT_SHIFT && SLOT_SHIFT + SLOT_BITS == HINT_SHIFT);
const STAMP_BITS: u32 = 36;
const STAMP_MASK: u64 = (1 << STAMP_BITS) - 1;

/// Entries of a walk, as they stand in the buckets, each with the number of its patch among those under way.
///
/// Written without a branch for each word, because which words count is what no processor can foretell.
#[derive(Debug)]
pub(crate) struct Gathered {
    pub words: [u64; GATHERED_MAX],
    pub patches: [u8; GATHERED_MAX],
    pub count: usize,
}

/// A power of two, so that a number is brought into bounds by a mask.
pub(crate) const GATHERED_MAX: usize = 128;

impl Gathered {
    pub fn new() -> Self {
        Self {
            words: [0; GATHERED_MAX],
            patches: [0; GATHERED_MAX],
            count: 0,
        }
    }

    /// Whether another bucket's words may find no room.
    #[inline]
    pub fn is_full(&self) -> bool {
        self.count + ENTRIES > GATHERED_MAX
    }
}

/// The driver of an entry.
#[inline]
pub(crate) fn slot_of(word: u64) -> u32 {
    (word >> SLOT_SHIFT) as u32 & (SLOTS_MAX - 1)
}

/// Where in its patch an entry says its driver is: `Grid::offset_of`.
#[inline]
pub(crate) fn offset_of(word: u64) -> u32 {
    (word & OFFSETS_MASK) as u32
}

/// Status and classes as far as an entry has room for them: free or busy, classes folded to four bits.
///
/// Rewritten whenever the status changes, so that a driver that counts never looks as if it did not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hint(u64);

/// What a query looks for: bit h is set if an entry with the hint h counts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted(u64);

/// What an entry says of its driver: `Grid::offset_of`, and the hint.
#[derive(Clone, Copy, Debug)]
pub(crate) struct About {
    pub offset: u32,
    pub hint: Hint,
}

const HINT_FREE: u64 = 1;
const HINT_BUSY: u64 = 2;
const HINT_CLASSES: u32 = 2;

impl Hint {
    #[inline]
    pub fn of(status: Status, classes: u8) -> Self {
        let status = match status {
            Status::Offline => 0,
            Status::Free => HINT_FREE,
            Status::Busy => HINT_BUSY,
        };
        Self(status | folded(classes))
    }
}

impl Wanted {
    pub fn new(status: Option<Status>, classes: u8) -> Self {
        let by_status = match status {
            None => FREE_HINTS | BUSY_HINTS,
            Some(Status::Free) => FREE_HINTS,
            Some(Status::Busy) => BUSY_HINTS,
            Some(Status::Offline) => 0,
        };
        let folded = folded(classes) >> HINT_CLASSES;
        let by_class = (0..4).filter(|class| folded & (1 << class) != 0);
        let by_class = by_class.fold(0, |hints, class| hints | CLASS_HINTS[class]);
        Self(by_status & if classes == 0 { u64::MAX } else { by_class })
    }
}

/// The hints of those who are free, as a `Wanted`.
const FREE_HINTS: u64 = hints_with(0);
const BUSY_HINTS: u64 = hints_with(1);
const CLASS_HINTS: [u64; 4] = [hints_with(2), hints_with(3), hints_with(4), hints_with(5)];
const HINTS: u32 = 64;
const _: () = assert!(1 << (TAG_SHIFT - HINT_SHIFT) == HINTS);

/// All hints with a bit set.
const fn hints_with(bit: u32) -> u64 {
    let (mut hints, mut hint) = (0, 0);
    while hint < HINTS {
        if hint & (1 << bit) != 0 {
            hints |= 1 << hint;
        }
        hint += 1;
    }
    hints
}

fn folded(classes: u8) -> u64 {
    u64::from((classes | (classes >> 4)) & 0xF) << HINT_CLASSES
}

/// Where an entry is: bucket, word, and whether in the overflow. `NO_PLACE`: there is none.
pub(crate) type Place = u64;
pub(crate) const NO_PLACE: Place = u64::MAX;

/// A patch's home in the table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Home {
    bucket: u32,
    tag: u64,
}

#[derive(Debug)]
pub(crate) struct Buckets {
    buckets: Reserved<Bucket>,
    mask: u32,
    row_step: u32,
}

/// Two cache lines of entries.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct Bucket {
    entries: [AtomicU64; ENTRIES],
    /// The overflow of patches at home here. See `Overflow`.
    overflow: AtomicU64,
}

#[cfg(not(loom))]
const _: () = assert!(size_of::<Bucket>() == 128);

/// Why a bucket has no room.
enum Full {
    OfLive,
    OfStale,
}

/// Buckets beyond the home one, how many entries they hold for it, and the epoch in which the last left.
/// The depth stays while any entry is there. Without any, a query of a later epoch need not look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Overflow {
    depth: u32,
    count: u32,
    emptied: Stamp,
}

const DEPTH_BITS: u32 = 20;
const COUNT_BITS: u32 = 24;
const EMPTIED_BITS: u32 = 64 - DEPTH_BITS - COUNT_BITS;
const DEPTH_MAX: u32 = (1 << DEPTH_BITS) - 1;
const _: () = assert!(COUNT_BITS >= SLOT_BITS); // every driver may be in one overflow

impl Buckets {
    pub fn for_drivers(drivers_max: u32) -> Self {
        let wanted = drivers_max.div_ceil(DRIVERS_PER_BUCKET).max(BUCKETS_MIN);
        let count = wanted.next_power_of_two();
        let bucket = || Bucket {
            entries: std::array::from_fn(|_| AtomicU64::new(FREE)),
            overflow: AtomicU64::new(0),
        };
        // The golden ratio spreads any number of rows evenly over the table.
        let row_step = (f64::from(count) * 0.618_033_988_75) as u32 | 1;
        Self {
            buckets: Reserved::new(count as usize, bucket),
            mask: count - 1,
            row_step,
        }
    }

    #[inline]
    pub fn home(&self, patch: Patch) -> Home {
        let bucket = patch
            .row
            .wrapping_mul(self.row_step)
            .wrapping_add(patch.column)
            & self.mask;
        let mixed = patch.row.wrapping_mul(0x9E37_79B1) ^ patch.column.wrapping_mul(0x85EB_CA6B);
        Home {
            bucket,
            tag: u64::from(mixed >> 28) << TAG_SHIFT,
        }
    }

    /// Calls `look` with every bucket in which drivers of the patch may be.
    #[inline]
    pub fn visit(&self, home: Home, pin: &Pin<'_>, mut look: impl FnMut(&Bucket)) {
        let bucket = &self.buckets[home.bucket as usize];
        // Acquire: an entry made before this query's epoch was counted before it was made.
        let overflow = Overflow::unpack(bucket.overflow.load(Ordering::Acquire));
        look(bucket);
        if overflow.depth > 0
            && (overflow.count > 0 || !pin.is_after(overflow.emptied, EMPTIED_BITS))
        {
            for depth in 1..=overflow.depth {
                look(&self.buckets[self.overflow_bucket(home, depth) as usize]);
            }
        }
    }

    /// Makes an entry and tells where. Always finds room: there are several words for each driver, and queries that
    /// hold up stale ones are revoked in the end.
    pub fn insert(&self, home: Home, slot: u32, about: About, readers: &Readers) -> Place {
        let word = live_word(home, slot, about);
        if let Some(index) = self.buckets[home.bucket as usize].claim(word, readers) {
            return place(home.bucket, index, false);
        }
        self.insert_overflow(home, slot, word, readers)
    }

    /// Makes a second entry at the patch's home, for a driver whose entry is in the overflow, if there is room.
    #[cold]
    pub fn insert_at_home(
        &self,
        home: Home,
        slot: u32,
        about: About,
        readers: &Readers,
    ) -> Option<Place> {
        let word = live_word(home, slot, about);
        let index = self.buckets[home.bucket as usize]
            .try_claim(word, readers)
            .ok()?;
        Some(place(home.bucket, index, false))
    }

    #[cold]
    fn insert_overflow(&self, home: Home, slot: u32, word: u64, readers: &Readers) -> Place {
        let control = &self.buckets[home.bucket as usize].overflow;
        // Counted before it is made, so that a query that begins afterwards looks there.
        let mut depth = self.count_overflow(control, readers);
        let mut turn = slot.wrapping_mul(0x9E37_79B1);
        let mut tries = 0;
        loop {
            turn = turn.wrapping_mul(0x0019_660D).wrapping_add(0x3C6E_F35F);
            let bucket = self.overflow_bucket(home, 1 + (turn >> 8) % depth);
            if let Some(index) = self.buckets[bucket as usize].claim(word, readers) {
                return place(bucket, index, true);
            }
            tries += 1;
            if tries % TRIES == 0 {
                depth = self.deepen(control);
                readers.move_on();
            }
            if tries % (TRIES * 64) == 0 {
                // Stale words fill what should be free: some query has been under way for very long.
                readers.revoke_old();
            }
        }
    }

    fn count_overflow(&self, control: &AtomicU64, readers: &Readers) -> u32 {
        self.change(control, |mut overflow| {
            if overflow.count == 0 && readers.are_gone(overflow.emptied, EMPTIED_BITS) {
                overflow.depth = 0;
            }
            overflow.depth = overflow.depth.max(1);
            overflow.count += 1;
            overflow
        })
    }

    fn deepen(&self, control: &AtomicU64) -> u32 {
        let most = self.mask.min(DEPTH_MAX);
        self.change(control, |overflow| {
            let depth = (overflow.depth + overflow.depth.div_ceil(4)).min(most);
            Overflow { depth, ..overflow }
        })
    }

    fn change(&self, control: &AtomicU64, change: impl Fn(Overflow) -> Overflow) -> u32 {
        let mut word = control.load(Ordering::Relaxed);
        loop {
            let next = change(Overflow::unpack(word));
            // AcqRel: carries the counts of others on to the queries' Acquire in `visit`.
            match control.compare_exchange_weak(
                word,
                next.pack(),
                Ordering::AcqRel,
                Ordering::Relaxed,
            ) {
                Ok(_) => return next.depth,
                Err(now) => word = now,
            }
        }
    }

    /// Rewrites the offset of an entry that stays. The caller has the slot taken.
    #[inline]
    pub fn rewrite(&self, home: Home, at: Place, slot: u32, about: About) {
        // Release: nothing but the slot is read by way of it, but it must not run ahead of the slot being taken.
        self.word(at)
            .store(live_word(home, slot, about), Ordering::Release);
    }

    /// Leaves the entry behind as a stale one. Call after the driver's new entry is made and published.
    #[inline]
    pub fn depart(&self, home: Home, at: Place, slot: u32, readers: &Readers) {
        let stamp = readers.stamp();
        // Release: a query that skips this word by its stamp sees the new entry and the slot as published.
        self.word(at).store(
            STALE | (u64::from(slot) << STAMP_BITS) | (stamp.0 & STAMP_MASK),
            Ordering::Release,
        );
        if is_overflow(at) {
            self.uncount_overflow(home, stamp);
        }
    }

    /// Frees the entry at once: the driver has left, no query needs it.
    pub fn remove(&self, home: Home, at: Place, readers: &Readers) {
        self.word(at).store(FREE, Ordering::Release);
        if is_overflow(at) {
            self.uncount_overflow(home, readers.stamp());
        }
    }

    #[cold]
    fn uncount_overflow(&self, home: Home, stamp: Stamp) {
        self.change(
            &self.buckets[home.bucket as usize].overflow,
            |mut overflow| {
                overflow.count -= 1;
                if overflow.count == 0 {
                    overflow.emptied = stamp;
                }
                overflow
            },
        );
    }

    /// Asks the processor to fetch the line of an entry.
    #[inline]
    pub fn prefetch_entry(&self, at: Place) {
        if at != NO_PLACE {
            crate::prefetch(self.word(at));
        }
    }

    /// Asks the processor to fetch a home bucket.
    #[inline]
    pub fn prefetch_home(&self, home: Home) {
        let bucket = &self.buckets[home.bucket as usize];
        crate::prefetch(&bucket.entries[0]);
        crate::prefetch(&bucket.overflow);
    }

    #[inline]
    fn word(&self, at: Place) -> &AtomicU64 {
        &self.buckets[(at >> 32) as usize].entries[at as usize & 0xFF]
    }

    /// The bucket of an overflow, 1 being the first: runs that lie side by side, the runs anywhere.
    #[inline]
    fn overflow_bucket(&self, home: Home, depth: u32) -> u32 {
        let (run, step) = ((depth - 1) / RUN, (depth - 1) % RUN);
        // The odd factor visits each run of the table once before any twice.
        let start = home.bucket.wrapping_mul(0x9E37_79B1) >> 7;
        let run = start.wrapping_add(run.wrapping_mul(0x6C8E_9CF5));
        run.wrapping_mul(RUN).wrapping_add(step) & self.mask
    }
}

impl Bucket {
    /// Gathers the entries of a patch (the `patch`th of those under way) and rarely of another one that seem to count,
    /// and calls `departed` with drivers that departed while the query was under way: look where they are now.
    /// There must be room.
    #[inline]
    pub fn gather(
        &self,
        (home, patch): (Home, u8),
        pin: &Pin<'_>,
        wanted: Wanted,
        into: &mut Gathered,
        departed: impl FnMut(u32),
    ) {
        let key = LIVE | home.tag;
        let mut count = into.count;
        let mut stale = 0;
        for entry in &self.entries {
            // Acquire pairs with the Release of who made or left the entry.
            let word = entry.load(Ordering::Acquire);
            // Below the number of hints if live and of the patch: then it is the hint.
            let hint = (word ^ key) >> HINT_SHIFT;
            let counts =
                u64::from(hint < u64::from(HINTS)) & (wanted.0 >> (hint % u64::from(HINTS)));
            into.words[count % GATHERED_MAX] = word;
            into.patches[count % GATHERED_MAX] = patch;
            count += (counts & 1) as usize;
            stale |= word & (pin.may_need(Stamp(word)) << (u64::BITS - STAMP_BITS));
        }
        into.count = count;
        if stale & STALE != 0 {
            self.look_for_departed(pin, departed);
        }
    }

    /// Those of the words above that a query under way needs stay until it has gone: a second look finds them.
    #[cold]
    fn look_for_departed(&self, pin: &Pin<'_>, mut departed: impl FnMut(u32)) {
        for entry in &self.entries {
            let word = entry.load(Ordering::Acquire);
            if word & STALE != 0 && !pin.is_after(Stamp(word), STAMP_BITS) {
                departed((word >> STAMP_BITS) as u32 & (SLOTS_MAX - 1));
            }
        }
    }

    /// Takes a free word, or one whose readers have gone; begins new epochs when that may help.
    #[inline]
    fn claim(&self, new: u64, readers: &Readers) -> Option<usize> {
        match self.try_claim(new, readers) {
            Ok(index) => Some(index),
            Err(Full::OfLive) => None,
            Err(Full::OfStale) => {
                // Two epochs on, with no query under way, every stale word of now is free.
                readers.move_on();
                readers.move_on();
                self.try_claim(new, readers).ok()
            }
        }
    }

    #[inline]
    fn try_claim(&self, new: u64, readers: &Readers) -> Result<usize, Full> {
        let mut any_stale = false;
        for (index, entry) in self.entries.iter().enumerate() {
            let word = entry.load(Ordering::Relaxed);
            let claimable = word == FREE
                || (word & STALE != 0 && readers.are_gone(Stamp(word & STAMP_MASK), STAMP_BITS));
            any_stale |= word & STALE != 0;
            // AcqRel: Release publishes the entry; Acquire puts it behind whatever the readers of the old word did.
            if claimable
                && entry
                    .compare_exchange(word, new, Ordering::AcqRel, Ordering::Relaxed)
                    .is_ok()
            {
                return Ok(index);
            }
        }
        if any_stale {
            Err(Full::OfStale)
        } else {
            Err(Full::OfLive)
        }
    }
}

impl Overflow {
    fn unpack(word: u64) -> Self {
        Self {
            depth: (word >> (64 - DEPTH_BITS)) as u32,
            count: (word >> EMPTIED_BITS) as u32 & ((1 << COUNT_BITS) - 1),
            emptied: Stamp(word & ((1 << EMPTIED_BITS) - 1)),
        }
    }

    fn pack(self) -> u64 {
        (u64::from(self.depth) << (64 - DEPTH_BITS))
            | (u64::from(self.count) << EMPTIED_BITS)
            | (self.emptied.0 & ((1 << EMPTIED_BITS) - 1))
    }
}

#[inline]
fn live_word(home: Home, slot: u32, about: About) -> u64 {
    LIVE | home.tag
        | (u64::from(slot) << SLOT_SHIFT)
        | (about.hint.0 << HINT_SHIFT)
        | u64::from(about.offset)
}

#[inline]
fn place(bucket: u32, index: usize, overflow: bool) -> Place {
    (u64::from(bucket) << 32) | (u64::from(overflow) << 8) | index as u64
}

#[inline]
pub(crate) fn is_overflow(at: Place) -> bool {
    at & (1 << 8) != 0
}
