//! Who is near a place, right now?
//!
//! First version behind the final interface: a plain locked map, so that others can build on it.

use std::collections::HashMap;
use std::sync::Mutex;

use crate::cell::{Cell, Resolution};
use crate::point::Point;
use crate::polygon::Polygon;

/// A driver as the index knows it: an opaque number the caller gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DriverKey(pub u64);

/// A driver's place in the index: cheap to copy, and dead once the driver has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Slot {
    number: u32,
    generation: u32,
}

/// What an index is made for.
#[derive(Clone, Copy, Debug)]
pub struct IndexConfig {
    /// Drivers known at one time. Beyond it `enter` refuses. Memory is reserved for it at once.
    pub drivers_max: u32,
    /// Wished side of a patch in metres (rounded to a power of two of 1e-7 degrees, 91 m to 23 km).
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
    /// Another thread is placing the same driver at this very moment and takes this one along.
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
    config: IndexConfig,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    slots: Vec<(u32, Option<Seen>)>,
    free: Vec<u32>,
    keys: HashMap<DriverKey, Slot>,
}

impl LiveIndex {
    /// An empty index.
    pub fn new(config: IndexConfig) -> Self {
        Self {
            config,
            inner: Mutex::default(),
        }
    }

    /// The driver's slot, a new one if the driver is not known.
    pub fn enter(&self, key: DriverKey) -> Result<Slot, IndexFull> {
        let mut inner = self.inner.lock().expect("no panic inside");
        if let Some(&slot) = inner.keys.get(&key) {
            return Ok(slot);
        }
        if inner.keys.len() >= self.config.drivers_max as usize {
            return Err(IndexFull {
                drivers_max: self.config.drivers_max,
            });
        }
        let number = inner.free.pop().unwrap_or_else(|| {
            inner.slots.push((0, None));
            inner.slots.len() as u32 - 1
        });
        let place = &mut inner.slots[number as usize];
        place.1 = Some(Seen {
            key,
            placement: None,
            status: Status::Offline,
            classes: 0,
            n: 0,
        });
        let slot = Slot {
            number,
            generation: place.0,
        };
        inner.keys.insert(key, slot);
        Ok(slot)
    }

    /// Records a position unless a newer one is known.
    pub fn place(&self, slot: Slot, ping: Placement) -> Placed {
        let mut inner = self.inner.lock().expect("no panic inside");
        let Some((generation, Some(seen))) = inner.slots.get_mut(slot.number as usize) else {
            return Placed::Gone;
        };
        if *generation != slot.generation {
            return Placed::Gone;
        }
        match seen.placement {
            Some(known) if (known.time_ms, known.seq) >= (ping.time_ms, ping.seq) => Placed::Stale,
            known => {
                seen.placement = Some(ping);
                known.map_or(Placed::First, |_| Placed::Moved { crossed: false })
            }
        }
    }

    /// Records a status unless one with the same or a later event number `n` (from 1) is known.
    pub fn set_status(&self, slot: Slot, status: Status, classes: u8, n: u64) -> bool {
        let mut inner = self.inner.lock().expect("no panic inside");
        match inner.slots.get_mut(slot.number as usize) {
            Some((generation, Some(seen))) if *generation == slot.generation && n > seen.n => {
                (seen.status, seen.classes, seen.n) = (status, classes, n);
                true
            }
            _ => false,
        }
    }

    /// Forgets the driver.
    pub fn leave(&self, slot: Slot) {
        let mut inner = self.inner.lock().expect("no panic inside");
        let Some(place) = inner.slots.get_mut(slot.number as usize) else {
            return;
        };
        if place.0 != slot.generation {
            return;
        }
        if let Some(seen) = place.1.take() {
            place.0 += 1;
            inner.keys.remove(&seen.key);
            inner.free.push(slot.number);
        }
    }

    /// The slot of a driver, if known.
    pub fn slot_of(&self, key: DriverKey) -> Option<Slot> {
        self.inner
            .lock()
            .expect("no panic inside")
            .keys
            .get(&key)
            .copied()
    }

    /// What is known of the driver in a slot.
    pub fn get(&self, slot: Slot) -> Option<Seen> {
        let inner = self.inner.lock().expect("no panic inside");
        let (generation, seen) = inner.slots.get(slot.number as usize)?;
        if *generation == slot.generation {
            *seen
        } else {
            None
        }
    }

    /// Replaces what is in `out` by the nearest drivers that count and that `keep` wants, sorted by distance,
    /// then key.
    pub fn nearest(&self, query: &Query, keep: impl FnMut(&Near) -> bool, out: &mut Vec<Near>) {
        self.within_radius(query.at, query.radius_m, &query.filter, keep, out);
        out.truncate(query.k);
    }

    /// Replaces what is in `out` by every driver within a radius that counts and that `keep` wants, sorted by
    /// distance, then key.
    pub fn within_radius(
        &self,
        at: Point,
        radius_m: f64,
        filter: &Filter,
        mut keep: impl FnMut(&Near) -> bool,
        out: &mut Vec<Near>,
    ) {
        self.scan(filter, out, |near| {
            near.distance_m = at.distance_m(near.at);
            near.distance_m <= radius_m && keep(near)
        });
        out.sort_by(|a, b| {
            a.distance_m
                .total_cmp(&b.distance_m)
                .then(a.key.cmp(&b.key))
        });
    }

    /// Replaces what is in `out` by every driver inside an outline that counts and that `keep` wants, sorted by
    /// key.
    pub fn inside_polygon(
        &self,
        outline: &Polygon,
        filter: &Filter,
        mut keep: impl FnMut(&Near) -> bool,
        out: &mut Vec<Near>,
    ) {
        self.scan(filter, out, |near| outline.contains(near.at) && keep(near));
        out.sort_by_key(|near| near.key);
    }

    /// Replaces what is in `out` by the number of drivers that count in each cell that has any, sorted by cell.
    pub fn count_per_cell(&self, res: Resolution, filter: &Filter, out: &mut Vec<(Cell, u32)>) {
        let mut all = Vec::new();
        self.scan(filter, &mut all, |_| true);
        out.clear();
        out.extend(all.iter().map(|near| (Cell::at(near.at, res), 1)));
        out.sort_unstable();
        out.dedup_by(|next, kept| {
            let same = next.0 == kept.0;
            kept.1 += u32::from(same);
            same
        });
    }

    /// Drivers known, in whatever status.
    pub fn len(&self) -> usize {
        self.inner.lock().expect("no panic inside").keys.len()
    }

    /// Whether no driver is known.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn scan(&self, filter: &Filter, out: &mut Vec<Near>, mut keep: impl FnMut(&mut Near) -> bool) {
        out.clear();
        for (_, seen) in &self.inner.lock().expect("no panic inside").slots {
            let Some(seen) = seen else { continue };
            let Some(ping) = seen.placement else { continue };
            let age_ms = filter.now_ms - ping.time_ms;
            let counts = seen.status != Status::Offline
                && filter.status.is_none_or(|status| status == seen.status)
                && (filter.classes == 0 || filter.classes & seen.classes != 0)
                && age_ms <= filter.ping_ttl_ms;
            let mut near = Near {
                key: seen.key,
                at: ping.at,
                distance_m: 0.0,
                age_ms,
                time_ms: ping.time_ms,
                status: seen.status,
                classes: seen.classes,
                n: seen.n,
            };
            if counts && keep(&mut near) {
                out.push(near);
            }
        }
    }
}
