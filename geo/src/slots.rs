//! Where a driver's newest position and status live, whole, while anybody reads and several write.
//!
//! One slot is one cache line. It holds two copies of the position; `state` says which one is valid. A writer takes
//! the slot (one compare-and-swap), writes the other copy and gives the slot back with the copies exchanged. A reader
//! copies and then looks whether `state` still names the same version: nobody waits for a writer that was put to
//! sleep half-way.
//!
//! A writer that finds the slot taken does not wait either: it leaves a letter and goes. Whoever has the slot sees
//! the mark when it gives it back, and delivers (`index.rs`). At most one letter lies at a slot: a newer one takes up
//! the older.
//!
//! The status is one word, ordered by the driver's event number; it needs no slot taken. It is tagged with the slot's
//! generation so that a late status of the driver before cannot land on the next.

use std::ptr;

use crate::buckets::Hint;
use crate::index::{Errand, Placement, Status};
use crate::point::Point;
use crate::sync::{AtomicPtr, AtomicU32, AtomicU64, Ordering};

// The bits of `state`, from below. Odd generations belong to a driver, even ones to nobody.
const TAKEN: u64 = 1;
const MAIL: u64 = 2;
const VERSION: u64 = 4;
const GENERATION_SHIFT: u32 = 32;
const VERSION_MASK: u64 = ((1 << GENERATION_SHIFT) - 1) & !(TAKEN | MAIL);

/// No position yet: a latitude that no place has.
const NOWHERE: u64 = 1 << 63;

/// The largest event number a status can carry.
pub(crate) const STATUS_N_MAX: u64 = (1 << 44) - 1;

/// What a reader finds, as it stands in the slot: most of what a query looks at needs no more.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found {
    pub generation: u32,
    pub key: u64,
    at: u64,
    time_ms: u64,
    seq: u32,
    status: u64,
}

impl Found {
    pub const NOBODY: Self = Self {
        generation: 0,
        key: 0,
        at: NOWHERE,
        time_ms: 0,
        seq: 0,
        status: 0,
    };

    /// The newest position, if any came.
    #[inline]
    pub fn placement(&self) -> Option<Placement> {
        Some(Placement {
            at: self.at()?,
            time_ms: self.time_ms(),
            seq: self.seq,
        })
    }

    #[inline]
    pub fn at(&self) -> Option<Point> {
        unpack(self.at)
    }

    #[inline]
    pub fn time_ms(&self) -> i64 {
        self.time_ms as i64
    }

    /// Status, classes, and the event number that gave them.
    #[inline]
    pub fn status(&self) -> (Status, u8, u64) {
        unpack_status(self.status)
    }
}

/// Which status and classes are asked for, as a slot has them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    /// Bit s is set if the status s counts.
    status: u64,
    /// Any of these bits.
    classes: u64,
    /// 1 if no class is asked for.
    always: u64,
}

impl Asked {
    pub fn new(status: Option<Status>, classes: u8) -> Self {
        let status = match status {
            None => (1 << Status::Free as u64) | (1 << Status::Busy as u64),
            Some(Status::Offline) => 0,
            Some(one) => 1 << one as u64,
        };
        Self {
            status,
            classes: u64::from(classes) << CLASSES_SHIFT,
            always: u64::from(classes == 0),
        }
    }

    #[inline]
    pub fn fits(&self, found: &Found) -> bool {
        let by_status = self.status >> (found.status & STATUS_MASK) & 1;
        by_status != 0 && (found.status & self.classes) | self.always != 0
    }
}

/// What was left for whoever has the slot.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Letter {
    pub generation: u32,
    pub ping: Option<Placement>,
    /// The status has changed: the entry's hint is to be rewritten.
    pub hint: bool,
    pub leave: bool,
}

/// See the file's header.
#[derive(Debug)]
#[repr(align(64))]
pub(crate) struct SlotLine {
    /// Generation, version, whether a letter lies here, whether a writer has it. The version's lowest bit names
    /// the valid copy.
    state: AtomicU64,
    status: AtomicU64,
    /// Where the driver's entry is (`buckets::Place`). Read and written by who has the slot taken.
    place: AtomicU64,
    at: [AtomicU64; 2],
    time_ms: [AtomicU64; 2],
    seq: [AtomicU32; 2],
}

#[cfg(not(loom))]
const _: () = assert!(size_of::<SlotLine>() == 64);

/// What a query does not read for each driver it looks at.
#[derive(Debug)]
pub(crate) struct SlotBack {
    key: AtomicU64,
    letter: AtomicPtr<Letter>,
}

/// A taken slot. Ends with `publish`, `give_back` or `vacate`; each tells whether there is mail.
#[derive(Debug)]
pub(crate) struct Taken<'a> {
    line: &'a SlotLine,
    state: u64,
}

/// Why a slot was not taken.
#[derive(Debug)]
pub(crate) enum NotTaken {
    /// The driver has left.
    Gone,
    /// Another writer has it. It now knows that there is mail.
    Busy,
}

impl SlotLine {
    pub fn vacant() -> Self {
        Self {
            state: AtomicU64::new(0),
            status: AtomicU64::new(0),
            place: AtomicU64::new(0),
            at: [AtomicU64::new(NOWHERE), AtomicU64::new(NOWHERE)],
            time_ms: [AtomicU64::new(0), AtomicU64::new(0)],
            seq: [AtomicU32::new(0), AtomicU32::new(0)],
        }
    }

    /// Gives a vacant slot to a driver; the caller alone has its number. Returns the generation.
    pub fn occupy(&self, back: &SlotBack, key: u64, place: u64) -> u32 {
        let state = self.state.load(Ordering::Acquire);
        let generation = generation_of(state).wrapping_add(1);
        // Release on each: a reader of the last generation that meets one of these finds `state` changed.
        back.key.store(key, Ordering::Release);
        // A swap: it and a late `set_status` are in one order, whoever comes first.
        self.status.swap(tag_of(generation), Ordering::AcqRel);
        self.place.store(place, Ordering::Release);
        for copy in &self.at {
            copy.store(NOWHERE, Ordering::Release);
        }
        let next = (u64::from(generation) << GENERATION_SHIFT) | next_version(state);
        // Release publishes the stores above to whoever takes or reads the slot (Acquire).
        self.state.store(next, Ordering::Release);
        generation
    }

    /// Takes the slot, or tells its present owner that there is mail if `posted` (post it before).
    #[inline]
    pub fn take(&self, generation: u32, posted: bool) -> Result<Taken<'_>, NotTaken> {
        let mut state = self.state.load(Ordering::Relaxed);
        loop {
            if generation_of(state) != generation {
                return Err(NotTaken::Gone);
            }
            let wanted = match (state & TAKEN != 0, posted) {
                (false, _) => state | TAKEN,
                (true, false) => return Err(NotTaken::Busy),
                (true, true) => state | MAIL,
            };
            // Acquire pairs with the Release of the last owner's `publish`; Release hands the letter to the present one.
            match self.state.compare_exchange_weak(
                state,
                wanted,
                Ordering::AcqRel,
                Ordering::Relaxed,
            ) {
                Ok(_) if state & TAKEN == 0 => return Ok(Taken { line: self, state }),
                Ok(_) => return Err(NotTaken::Busy),
                Err(now) => state = now,
            }
        }
    }

    /// The driver here, whole. None: nobody.
    #[inline]
    pub fn read(&self, back: &SlotBack) -> Option<Found> {
        // Acquire pairs with the Release of `publish`, `occupy` and `vacate`.
        let mut state = self.state.load(Ordering::Acquire);
        loop {
            let generation = generation_of(state);
            if generation.is_multiple_of(2) {
                return None;
            }
            let copy = copy_of(state);
            // Acquire on each: if one of these is of a later version, the look at `state` below sees that version,
            // because its writer took the slot, or vacated it, before.
            let at = self.at[copy].load(Ordering::Acquire);
            let time_ms = self.time_ms[copy].load(Ordering::Acquire);
            let seq = self.seq[copy].load(Ordering::Acquire);
            let status = self.status.load(Ordering::Acquire);
            let key = back.key.load(Ordering::Acquire);
            let now = self.state.load(Ordering::Acquire);
            if (now ^ state) & !(TAKEN | MAIL) == 0 {
                return Some(Found {
                    generation,
                    key,
                    at,
                    time_ms,
                    seq,
                    status,
                });
            }
            // Somebody has published in between, so somebody gets on: the reader tries again.
            state = now;
        }
    }

    /// Sets the status if its event number is later than the known one.
    pub fn set_status(&self, generation: u32, status: Status, classes: u8, n: u64) -> bool {
        if n > STATUS_N_MAX {
            return false;
        }
        // The tag ends this loop when the driver leaves; Acquire so that the generation is not older than the word.
        let mut word = self.status.load(Ordering::Acquire);
        loop {
            let known_n = unpack_status(word).2;
            let same_driver = word & TAG_MASK == tag_of(generation)
                && generation_of(self.state.load(Ordering::Acquire)) == generation;
            if !same_driver || n <= known_n {
                return false;
            }
            let next = tag_of(generation)
                | (n << N_SHIFT)
                | (u64::from(classes) << CLASSES_SHIFT)
                | status as u64;
            // Release pairs with the Acquire of `read`: who sees the status sees what the caller did before.
            match self
                .status
                .compare_exchange_weak(word, next, Ordering::AcqRel, Ordering::Acquire)
            {
                Ok(_) => return true,
                Err(now) => word = now,
            }
        }
    }

    /// Asks the processor to fetch this line.
    #[inline]
    pub fn prefetch(&self) {
        crate::prefetch(self);
    }

    /// Where the entry is, as a hint for `prefetch`: it may be outdated.
    #[inline]
    pub fn place_hint(&self) -> u64 {
        self.place.load(Ordering::Relaxed)
    }
}

impl Taken<'_> {
    /// The newest position. Relaxed: the slot was taken with Acquire and nobody else writes.
    #[inline]
    pub fn placement(&self) -> Option<Placement> {
        let copy = copy_of(self.state);
        let at = unpack(self.line.at[copy].load(Ordering::Relaxed))?;
        let time_ms = self.line.time_ms[copy].load(Ordering::Relaxed) as i64;
        Some(Placement {
            at,
            time_ms,
            seq: self.line.seq[copy].load(Ordering::Relaxed),
        })
    }

    /// Status and classes as an entry hints at them.
    #[inline]
    pub fn hint(&self) -> Hint {
        // Acquire pairs with `set_status`: who asks for the hint to be rewritten gets his status, or a later one.
        let (status, classes, _) = unpack_status(self.line.status.load(Ordering::Acquire));
        Hint::of(status, classes)
    }

    #[inline]
    pub fn place(&self) -> u64 {
        self.line.place.load(Ordering::Relaxed)
    }

    #[inline]
    pub fn set_place(&self, place: u64) {
        self.line.place.store(place, Ordering::Relaxed);
    }

    /// Writes the other copy and makes it the valid one.
    #[inline]
    pub fn publish(self, ping: Placement) -> bool {
        let copy = copy_of(self.state) ^ 1;
        // Release on each pairs with the Acquire in `read`: a reader that meets one of them looks at `state`
        // after this slot was taken, and so at a later version than the one it began with.
        self.line.at[copy].store(pack(ping.at), Ordering::Release);
        self.line.time_ms[copy].store(ping.time_ms as u64, Ordering::Release);
        self.line.seq[copy].store(ping.seq, Ordering::Release);
        let generation = self.state & !((1 << GENERATION_SHIFT) - 1);
        self.replace_state(generation | next_version(self.state))
    }

    /// Gives the slot back as it was.
    #[inline]
    pub fn give_back(self) -> bool {
        self.replace_state(self.state & !(TAKEN | MAIL))
    }

    /// Makes the slot nobody's. Only the next `occupy` can use it.
    pub fn vacate(self) -> bool {
        let generation = generation_of(self.state).wrapping_add(1);
        self.replace_state((u64::from(generation) << GENERATION_SHIFT) | next_version(self.state))
    }

    #[inline]
    fn replace_state(&self, state: u64) -> bool {
        // AcqRel: publishes what was written, and gets the letter whose mark is met.
        self.line.state.swap(state, Ordering::AcqRel) & MAIL != 0
    }
}

impl SlotBack {
    pub fn vacant() -> Self {
        Self {
            key: AtomicU64::new(0),
            letter: AtomicPtr::new(ptr::null_mut()),
        }
    }

    /// Leaves a letter; one that lies here already is taken up into it.
    pub fn post(&self, mut letter: Letter) {
        loop {
            if let Some(lying) = self.collect() {
                letter = letter.merged_with(lying);
            }
            let mine = Box::into_raw(Box::new(letter));
            // Release hands the letter over; pairs with the Acquire in `collect`.
            if self
                .letter
                .compare_exchange(ptr::null_mut(), mine, Ordering::Release, Ordering::Relaxed)
                .is_ok()
            {
                return;
            }
            // SAFETY: the exchange failed, so `mine` was never shared and is still ours alone.
            drop(unsafe { Box::from_raw(mine) });
        }
    }

    /// Takes the letter that lies here.
    pub fn collect(&self) -> Option<Letter> {
        let letter = self.letter.swap(ptr::null_mut(), Ordering::Acquire);
        // SAFETY: the pointer came from `Box::into_raw` in `post`, and the swap gave it to this thread alone.
        (!letter.is_null()).then(|| unsafe { *Box::from_raw(letter) })
    }

    pub fn key(&self) -> u64 {
        self.key.load(Ordering::Acquire)
    }

    #[inline]
    pub fn prefetch(&self) {
        crate::prefetch(self);
    }
}

impl Drop for SlotBack {
    fn drop(&mut self) {
        self.collect();
    }
}

impl Letter {
    pub fn new(generation: u32, errand: Errand) -> Self {
        let ping = if let Errand::Ping(ping) = errand {
            Some(ping)
        } else {
            None
        };
        let (hint, leave) = (
            matches!(errand, Errand::Hint),
            matches!(errand, Errand::Leave),
        );
        Self {
            generation,
            ping,
            hint,
            leave,
        }
    }

    /// One letter for two. Of different generations the later driver's counts: the earlier has left.
    fn merged_with(self, other: Letter) -> Letter {
        if self.generation != other.generation {
            let other_is_later = other.generation.wrapping_sub(self.generation) < u32::MAX / 2;
            return if other_is_later { other } else { self };
        }
        let ping = match (self.ping, other.ping) {
            (Some(mine), Some(its)) if its.is_newer_than(&mine) => Some(its),
            (mine, its) => mine.or(its),
        };
        let (hint, leave) = (self.hint || other.hint, self.leave || other.leave);
        Letter {
            generation: self.generation,
            ping,
            hint,
            leave,
        }
    }
}

fn generation_of(state: u64) -> u32 {
    (state >> GENERATION_SHIFT) as u32
}

#[inline]
fn copy_of(state: u64) -> usize {
    usize::from(state & VERSION != 0)
}

/// The version after this one, wrapping below the generation. A reader would have to sleep through half a thousand
/// million publishings of one driver to take one version for another.
#[inline]
fn next_version(state: u64) -> u64 {
    (state & VERSION_MASK).wrapping_add(VERSION) & VERSION_MASK
}

#[inline]
fn pack(at: Point) -> u64 {
    (u64::from(at.lat_e7() as u32) << 32) | u64::from(at.lon_e7() as u32)
}

#[inline]
fn unpack(word: u64) -> Option<Point> {
    (word != NOWHERE).then(|| Point::from_packed((word >> 32) as u32 as i32, word as u32 as i32))
}

// The parts of a status word, from below; the event number lies between the classes and the tag.
const STATUS_MASK: u64 = 3;
const CLASSES_SHIFT: u32 = 2;
const N_SHIFT: u32 = 10;
const _: () = assert!(Status::Free as u64 == 1 && Status::Busy as u64 == 2);
const TAG_MASK: u64 = !((1 << 54) - 1);

/// Ten bits of the generation, above the event number.
fn tag_of(generation: u32) -> u64 {
    u64::from(generation) << 54
}

#[inline]
fn unpack_status(word: u64) -> (Status, u8, u64) {
    let status = match word & STATUS_MASK {
        1 => Status::Free,
        2 => Status::Busy,
        _ => Status::Offline,
    };
    let classes = (word >> CLASSES_SHIFT) as u8;
    (status, classes, (word & !TAG_MASK) >> N_SHIFT)
}
