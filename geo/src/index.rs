//! Who is near a place, right now?
//!
//! Many readers, many writers, no lock and no waiting. A reader sees a position as it was published, never half of one.
//! A driver that moves while a query runs is in its answer exactly once: its new entry is made before the old one
//! goes stale, a stale one stays until the queries of that moment have gone, and an answer holds a key once.
//!
//! Costs: an update that stays in its patch touches two cache lines, a query the patches around the place and the
//! slots of those near enough. Memory is reserved when the index is made and does not grow with the places visited.
//!
//! Elsewhere: one driver's line (`slots`), who may be in a patch (`buckets`), when an old entry may be overwritten
//! (`readers`), the walk of a query (`search`), which driver has which slot (`directory`): asked when a session begins
//! or ends, not by pings and queries.

use crate::buckets::{About, Buckets, Home, NO_PLACE, SLOTS_MAX, is_overflow};
use crate::directory::Directory;
use crate::patch::Grid;
use crate::point::Point;
use crate::readers::Readers;
use crate::reserved::Reserved;
use crate::slots::{Letter, NotTaken, STATUS_N_MAX, SlotBack, SlotLine, Taken};

/// A driver as the index knows it: an opaque number the caller gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DriverKey(pub u64);

/// A driver's place in the index: cheap to copy, and dead once the driver has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Slot {
    pub(crate) number: u32,
    pub(crate) generation: u32,
}

/// What an index is made for.
#[derive(Clone, Copy, Debug)]
pub struct IndexConfig {
    /// Drivers known at one time. Beyond it `enter` refuses. Memory is reserved for it at once. More than
    /// [`LiveIndex::DRIVERS_MAX`] is taken as that many.
    pub drivers_max: u32,
    /// Wished side of a patch in metres (rounded to a power of two of 1e-7 degrees, 91 m to 23 km). Smaller: fewer
    /// drivers looked at by a query, more crossings, more patches to walk when nobody is near..
    pub patch_m: f64,
}

impl IndexConfig {
    /// For a city of this many drivers at most.
    pub fn city(drivers_max: u32) -> Self {
        Self {
            drivers_max,
            patch_m: 500.0,
        }
    }
}

/// The index knows `drivers_max` drivers already. Nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the index holds its maximum of {drivers_max} drivers")]
pub struct IndexFull {
    /// The configured bound.
    pub drivers_max: u32,
}

/// One position of one driver. Ordered by (time, sequence): the newest wins, whatever the order of arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Where.
    pub at: Point,
    /// When the phone measured it, in milliseconds since the Unix epoch.
    pub time_ms: i64,
    /// Decides between two of the same time.
    pub seq: u32,
}

impl Placement {
    /// Whether this one wins over another of the same driver.
    #[inline]
    pub fn is_newer_than(&self, other: &Placement) -> bool {
        (self.time_ms, self.seq) > (other.time_ms, other.seq)
    }
}

/// What became of a placement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placed {
    /// The driver's first position.
    First,
    /// The driver has moved; `crossed` tells whether into another patch.
    Moved {
        /// Into another patch.
        crossed: bool,
    },
    /// Not newer than what is known. Nothing has changed.
    Stale,
    /// Another thread is writing the same driver at this very moment and takes this one along: it is applied, or
    /// found stale, before that thread's call returns.
    HandedOver,
    /// The slot belongs to nobody any more. Nothing has changed.
    Gone,
}

/// What the index knows of a driver's readiness.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Never in an answer.
    Offline,
    /// May be offered a ride.
    Free,
    /// Held by a ride or on one.
    Busy,
}

/// Who counts in an answer. Offline drivers never do, nor those never given a status.
#[derive(Clone, Copy, Debug)]
pub struct Filter {
    /// Now, in milliseconds since the Unix epoch.
    pub now_ms: i64,
    /// Positions older than this do not count.
    pub ping_ttl_ms: i64,
    /// `Some` asks for one status, `None` for `Free` and `Busy`. `Some(Offline)` finds nobody.
    pub status: Option<Status>,
    /// Vehicle classes, one bit each: a driver counts that has one of them; 0 asks for none in particular.
    pub classes: u8,
}

/// Who are the nearest?
#[derive(Clone, Copy, Debug)]
pub struct Query {
    /// The middle.
    pub at: Point,
    /// Nobody farther than this many metres.
    pub radius_m: f64,
    /// At most this many.
    pub k: usize,
    /// Who counts.
    pub filter: Filter,
}

/// A driver in an answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Near {
    /// Who.
    pub key: DriverKey,
    /// Where, when last heard of.
    pub at: Point,
    /// Metres from the middle of the question (0 when it has none).
    pub distance_m: f64,
    /// How old the position is.
    pub age_ms: i64,
    /// When the position was measured.
    pub time_ms: i64,
    /// `Free` or `Busy`.
    pub status: Status,
    /// Vehicle classes, one bit each.
    pub classes: u8,
    /// The driver's event number that gave the status.
    pub n: u64,
}

/// What the index knows of one driver.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Seen {
    /// Who.
    pub key: DriverKey,
    /// The newest position, if any came.
    pub placement: Option<Placement>,
    /// `Offline` until a status is given.
    pub status: Status,
    /// Vehicle classes, one bit each.
    pub classes: u8,
    /// The driver's event number that gave the status; 0 before any.
    pub n: u64,
}

/// The newest position and status of every driver.
#[derive(Debug)]
pub struct LiveIndex {
    drivers_max: u32,
    pub(crate) grid: Grid,
    pub(crate) lines: Reserved<SlotLine>,
    pub(crate) backs: Reserved<SlotBack>,
    pub(crate) buckets: Buckets,
    pub(crate) readers: Readers,
    directory: Directory,
}

impl LiveIndex {
    /// The largest `drivers_max` there is.
    pub const DRIVERS_MAX: u32 = SLOTS_MAX;

    /// The largest event number `set_status` takes.
    pub const EVENT_NUMBER_MAX: u64 = STATUS_N_MAX;

    /// An empty index. Reserves its memory: some 120 to 160 bytes for each of `drivers_max`.
    pub fn new(config: IndexConfig) -> Self {
        let drivers_max = config.drivers_max.min(Self::DRIVERS_MAX);
        Self {
            drivers_max,
            grid: Grid::new(config.patch_m),
            lines: Reserved::new(drivers_max as usize, SlotLine::vacant),
            backs: Reserved::new(drivers_max as usize, SlotBack::vacant),
            buckets: Buckets::for_drivers(drivers_max),
            readers: Readers::new(),
            directory: Directory::new(drivers_max),
        }
    }

    /// The driver's slot, a new one if the driver is not known.
    pub fn enter(&self, key: DriverKey) -> Result<Slot, IndexFull> {
        let occupy = |number| {
            let at = number as usize;
            let generation = self.lines[at].occupy(&self.backs[at], key.0, NO_PLACE);
            Slot { number, generation }
        };
        // Nobody knows the slot yet, so it is free to be taken, and no letter lies there.
        let vacate = |slot: Slot| {
            if let Ok(taken) = self.lines[slot.number as usize].take(slot.generation, false) {
                taken.vacate();
            }
        };
        self.directory
            .slot_or_insert(key, occupy, vacate)
            .ok_or(IndexFull {
                drivers_max: self.drivers_max,
            })
    }

    /// Records a position unless one as new or newer is known.
    #[inline]
    pub fn place(&self, slot: Slot, ping: Placement) -> Placed {
        let Some(line) = self.lines.get(slot.number as usize) else {
            return Placed::Gone;
        };
        // The two lines of an update are known before either is looked at: asked for together, they come together.
        let home = self.buckets.home(self.grid.patch_of(ping.at));
        self.buckets.prefetch_home(home);
        match line.take(slot.generation, false) {
            Ok(taken) => {
                let (placed, mail) = self.move_to(slot.number, taken, home, ping);
                if mail {
                    self.deliver(slot.number);
                }
                placed
            }
            Err(NotTaken::Gone) => Placed::Gone,
            Err(NotTaken::Busy) => {
                self.hand_over(slot, Errand::Ping(ping));
                Placed::HandedOver
            }
        }
    }

    /// Records many positions, in order, and reports each by its number in `pings`. Faster than one by one when the
    /// index is larger than the processor's caches: it fetches ahead.
    pub fn place_all(&self, pings: &[(Slot, Placement)], mut report: impl FnMut(usize, Placed)) {
        /// How many pings ahead a line is asked for, and a bucket by what stands in the line.
        const LINES_AHEAD: usize = 16;
        const BUCKETS_AHEAD: usize = 8;
        for (number, &(slot, ping)) in pings.iter().enumerate() {
            if let Some((ahead, _)) = pings.get(number + LINES_AHEAD)
                && let Some(line) = self.lines.get(ahead.number as usize)
            {
                line.prefetch();
            }
            if let Some((ahead, ping)) = pings.get(number + BUCKETS_AHEAD)
                && let Some(line) = self.lines.get(ahead.number as usize)
            {
                self.buckets.prefetch_entry(line.place_hint());
                self.buckets
                    .prefetch_home(self.buckets.home(self.grid.patch_of(ping.at)));
            }
            report(number, self.place(slot, ping));
        }
    }

    /// Records a status unless one with the same or a later event number `n` is known, whatever the order of arrival.
    ///
    /// `classes` are the driver's vehicle classes, one bit each. `n` begins at 1 and is at most
    /// [`LiveIndex::EVENT_NUMBER_MAX`]; others are refused. True: recorded.
    pub fn set_status(&self, slot: Slot, status: Status, classes: u8, n: u64) -> bool {
        let Some(line) = self.lines.get(slot.number as usize) else {
            return false;
        };
        if !line.set_status(slot.generation, status, classes, n) {
            return false;
        }
        match line.take(slot.generation, false) {
            Ok(taken) => {
                self.rewrite_hint(slot.number, &taken);
                if taken.give_back() {
                    self.deliver(slot.number);
                }
            }
            Err(NotTaken::Gone) => {}
            Err(NotTaken::Busy) => self.hand_over(slot, Errand::Hint),
        }
        true
    }

    /// Forgets the driver. Its slot may soon be another driver's; this handle stays dead.
    ///
    /// A driver that went offline is not to be forgotten before `ping_ttl` is over, or a late ping wakes the dead.
    pub fn leave(&self, slot: Slot) {
        let Some(line) = self.lines.get(slot.number as usize) else {
            return;
        };
        match line.take(slot.generation, false) {
            Ok(taken) => {
                if self.remove(slot, taken) {
                    self.deliver(slot.number);
                }
            }
            Err(NotTaken::Gone) => {}
            Err(NotTaken::Busy) => self.hand_over(slot, Errand::Leave),
        }
    }

    /// The slot of a driver, if known.
    pub fn slot_of(&self, key: DriverKey) -> Option<Slot> {
        self.directory.slot_of(key)
    }

    /// What is known of the driver in a slot.
    pub fn get(&self, slot: Slot) -> Option<Seen> {
        let at = slot.number as usize;
        let found = self.lines.get(at)?.read(&self.backs[at])?;
        let (status, classes, n) = found.status();
        (found.generation == slot.generation).then_some(Seen {
            key: DriverKey(found.key),
            placement: found.placement(),
            status,
            classes,
            n,
        })
    }

    /// Drivers known, in whatever status.
    pub fn len(&self) -> usize {
        self.directory.len()
    }

    /// Whether no driver is known.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Slots that were ever in use: those a scan has to look at.
    pub(crate) fn slots_used(&self) -> usize {
        self.directory.slots_used() as usize
    }

    /// Moves the driver of a taken slot; also tells whether there is mail.
    #[inline]
    fn move_to(
        &self,
        number: u32,
        taken: Taken<'_>,
        home: Home,
        ping: Placement,
    ) -> (Placed, bool) {
        let about = About {
            offset: self.grid.offset_of(ping.at),
            hint: taken.hint(),
        };
        let Some(known) = taken.placement() else {
            taken.set_place(self.buckets.insert(home, number, about, &self.readers));
            return (Placed::First, taken.publish(ping));
        };
        if !ping.is_newer_than(&known) {
            return (Placed::Stale, taken.give_back());
        }
        let old_place = taken.place();
        let crossed = self.grid.patch_of(known.at) != self.grid.patch_of(ping.at);
        let new_place = if crossed {
            Some(self.buckets.insert(home, number, about, &self.readers))
        } else if is_overflow(old_place) {
            self.buckets
                .insert_at_home(home, number, about, &self.readers)
        } else {
            None
        };
        let Some(new_place) = new_place else {
            self.buckets.rewrite(home, old_place, number, about);
            return (Placed::Moved { crossed }, taken.publish(ping));
        };
        taken.set_place(new_place);
        let mail = taken.publish(ping);
        // Nobody but this thread knows the old entry by its place any more.
        let old_home = self.buckets.home(self.grid.patch_of(known.at));
        self.buckets
            .depart(old_home, old_place, number, &self.readers);
        (Placed::Moved { crossed }, mail)
    }

    /// Forgets the driver of a taken slot; tells whether there is mail.
    fn remove(&self, slot: Slot, taken: Taken<'_>) -> bool {
        if let Some(known) = taken.placement() {
            let home = self.buckets.home(self.grid.patch_of(known.at));
            self.buckets.remove(home, taken.place(), &self.readers);
        }
        let key = DriverKey(self.backs[slot.number as usize].key());
        self.directory.remove(key, slot, || taken.vacate())
    }

    /// Rewrites the entry of a taken slot after a change of status.
    fn rewrite_hint(&self, number: u32, taken: &Taken<'_>) {
        if let Some(known) = taken.placement() {
            let home = self.buckets.home(self.grid.patch_of(known.at));
            let about = About {
                offset: self.grid.offset_of(known.at),
                hint: taken.hint(),
            };
            self.buckets.rewrite(home, taken.place(), number, about);
        }
    }

    /// Leaves a letter for whoever has the slot, and delivers it if nobody has any more.
    #[cold]
    fn hand_over(&self, slot: Slot, errand: Errand) {
        let at = slot.number as usize;
        self.backs[at].post(Letter::new(slot.generation, errand));
        match self.lines[at].take(slot.generation, true) {
            Err(NotTaken::Busy) => return,
            Err(NotTaken::Gone) => {}
            Ok(taken) => drop(taken.give_back()),
        }
        self.deliver(slot.number);
    }

    /// Does what the letters at a slot ask, until none lies there or another thread has the slot and knows of it.
    #[cold]
    fn deliver(&self, number: u32) {
        let (line, back) = (&self.lines[number as usize], &self.backs[number as usize]);
        while let Some(letter) = back.collect() {
            let slot = Slot {
                number,
                generation: letter.generation,
            };
            let taken = match line.take(letter.generation, false) {
                Ok(taken) => taken,
                Err(NotTaken::Gone) => continue,
                Err(NotTaken::Busy) => {
                    back.post(letter);
                    match line.take(letter.generation, true) {
                        Err(NotTaken::Busy) => return,
                        Err(NotTaken::Gone) => {}
                        Ok(taken) => drop(taken.give_back()),
                    }
                    continue;
                }
            };
            // A mark met below needs no look: the letter it speaks of lies there when the loop comes round.
            if letter.leave {
                self.remove(slot, taken);
                continue;
            }
            if letter.hint {
                self.rewrite_hint(number, &taken);
            }
            match letter.ping {
                Some(ping) => {
                    let home = self.buckets.home(self.grid.patch_of(ping.at));
                    self.move_to(number, taken, home, ping);
                }
                None => drop(taken.give_back()),
            }
        }
    }
}

/// What a writer leaves to another.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Errand {
    Ping(Placement),
    Hint,
    Leave,
}
