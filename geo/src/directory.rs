//! Which slot has a driver?
//!
//! Keys are spread over maps under a mutex each. Asked when sessions begin and end and when a status arrives by name,
//! never by a ping or a query: those carry slots.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasherDefault, Hasher};

use crossbeam_utils::CachePadded;

use crate::index::{DriverKey, Slot};
use crate::sync::{AtomicU32, Mutex, Ordering};

const MAPS: usize = if cfg!(loom) { 1 } else { 64 };

type Map = HashMap<DriverKey, Slot, BuildHasherDefault<KeyHasher>>;

#[derive(Debug)]
pub(crate) struct Directory {
    maps: Box<[CachePadded<Mutex<Map>>]>,
    /// Numbers that are free again, the one that left first at the front: a slot rests as long as possible.
    free: Mutex<std::collections::VecDeque<u32>>,
    used: AtomicU32,
    known: AtomicU32,
}

impl Directory {
    pub fn new() -> Self {
        Self {
            maps: (0..MAPS)
                .map(|_| CachePadded::new(Mutex::new(Map::default())))
                .collect(),
            free: Mutex::new(std::collections::VecDeque::new()),
            used: AtomicU32::new(0),
            known: AtomicU32::new(0),
        }
    }

    /// The driver's slot, or what `occupy` makes of a free number. None: there is none below `slots_max`.
    pub fn slot_or_insert(
        &self,
        key: DriverKey,
        slots_max: u32,
        occupy: impl FnOnce(u32) -> Slot,
    ) -> Option<Slot> {
        let mut map = self.map(key).lock().expect(NO_PANIC);
        match map.entry(key) {
            Entry::Occupied(known) => Some(*known.get()),
            Entry::Vacant(vacant) => {
                let slot = occupy(self.take_number(slots_max)?);
                // Relaxed: a count for `len`, nothing hangs on it.
                self.known.fetch_add(1, Ordering::Relaxed);
                Some(*vacant.insert(slot))
            }
        }
    }

    /// Forgets the driver, vacates its slot and frees the number, in this order.
    pub fn remove<T>(&self, key: DriverKey, slot: Slot, vacate: impl FnOnce() -> T) -> T {
        let mut map = self.map(key).lock().expect(NO_PANIC);
        if map.get(&key) == Some(&slot) {
            map.remove(&key);
            self.known.fetch_sub(1, Ordering::Relaxed);
        }
        drop(map);
        let vacated = vacate();
        self.free.lock().expect(NO_PANIC).push_back(slot.number);
        vacated
    }

    pub fn slot_of(&self, key: DriverKey) -> Option<Slot> {
        self.map(key).lock().expect(NO_PANIC).get(&key).copied()
    }

    pub fn len(&self) -> usize {
        self.known.load(Ordering::Relaxed) as usize
    }

    /// Numbers below this one have been given out.
    pub fn slots_used(&self) -> u32 {
        // Acquire: a scan that begins after a driver entered looks at its slot.
        self.used.load(Ordering::Acquire)
    }

    fn take_number(&self, slots_max: u32) -> Option<u32> {
        let mut free = self.free.lock().expect(NO_PANIC);
        if let Some(number) = free.pop_front() {
            return Some(number);
        }
        let next = self.used.load(Ordering::Relaxed);
        if next >= slots_max {
            return None;
        }
        self.used.store(next + 1, Ordering::Release);
        Some(next)
    }

    fn map(&self, key: DriverKey) -> &Mutex<Map> {
        &self.maps[(mixed(key.0) >> 58) as usize % MAPS]
    }
}

const NO_PANIC: &str = "nothing panics while it holds the directory";

/// Keys are numbers the caller gives out, so a plain mix is enough; and it is the same in every run.
#[derive(Default)]
pub(crate) struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = mixed(self.0 ^ number).rotate_left(32);
    }
}

fn mixed(number: u64) -> u64 {
    let spread = (number ^ (number >> 32)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    spread ^ (spread >> 29)
}
