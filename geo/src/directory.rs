//! Which slot has a driver?
//!
//! Asked when sessions begin and end and when a status arrives by name; pings and queries carry slots. Without a lock,
//! like the rest: a thread that is put to sleep half-way holds up nobody.
//!
//! A hash table of lists (Michael, "High performance dynamic lock-free hash tables and list-based sets", 2002). Each
//! slot has one node. A new driver's node is put at the head of its list, by an exchange that fails if the head has
//! changed since the list was searched: so a key is never there twice. A driver that leaves has its node marked, then
//! unlinked by whoever comes by. Nodes are never freed, only reused, and each change of a link gives it a new tag, so
//! that an exchange which expects a link of before fails.
//!
//! Numbers that are free again lie on a stack, linked by the same nodes.

use crate::index::{DriverKey, Slot};
use crate::reserved::Reserved;
use crate::sync::{AtomicU32, AtomicU64, Ordering};

#[derive(Debug)]
pub(crate) struct Directory {
    /// One for each list; a power of two.
    heads: Reserved<AtomicU64>,
    nodes: Reserved<Node>,
    free: AtomicU64,
    used: AtomicU32,
    known: AtomicU32,
}

#[derive(Debug)]
struct Node {
    next: AtomicU64,
    key: AtomicU64,
    generation: AtomicU32,
}

/// A link as it was read. Layout: tag, node's number plus one (0: none), mark.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Link(u64);

const MARK: u64 = 1;
const NODE_BITS: u32 = 25;
const TAG_SHIFT: u32 = NODE_BITS + 1;
const HEADS_MIN: usize = 1;

impl Link {
    fn node(self) -> Option<u32> {
        ((self.0 >> 1) as u32 & ((1 << NODE_BITS) - 1)).checked_sub(1)
    }

    fn is_marked(self) -> bool {
        self.0 & MARK != 0
    }

    fn marked(self) -> Link {
        Link(self.0 | MARK)
    }

    /// The link that comes after this one, to where `other` leads.
    fn then(self, other: Link) -> Link {
        let to = other.0 & ((1 << TAG_SHIFT) - 1) & !MARK;
        Link((((self.0 >> TAG_SHIFT).wrapping_add(1)) << TAG_SHIFT) | to)
    }

    fn to(number: u32) -> Link {
        Link((u64::from(number) + 1) << 1)
    }
}

/// What a search finds.
enum Search {
    Here(Slot),
    /// Not in the list, which had this head all the while.
    Nowhere(Link),
}

impl Directory {
    pub fn new(slots_max: u32) -> Self {
        let heads = if cfg!(loom) { 1 } else { slots_max as usize };
        Self {
            heads: Reserved::new(heads.max(HEADS_MIN).next_power_of_two(), || {
                AtomicU64::new(0)
            }),
            nodes: Reserved::new(slots_max as usize, || Node {
                next: AtomicU64::new(MARK),
                key: AtomicU64::new(0),
                generation: AtomicU32::new(0),
            }),
            free: AtomicU64::new(0),
            used: AtomicU32::new(0),
            known: AtomicU32::new(0),
        }
    }

    /// The driver's slot, or what `occupy` makes of a free number. None: there is none. When another thread enters the
    /// same driver at this moment, what was made is given to `vacate` again.
    pub fn slot_or_insert(
        &self,
        key: DriverKey,
        occupy: impl Fn(u32) -> Slot,
        vacate: impl Fn(Slot),
    ) -> Option<Slot> {
        let mut mine: Option<Slot> = None;
        loop {
            let head = match self.search(key) {
                Search::Here(slot) => {
                    if let Some(mine) = mine {
                        vacate(mine);
                        self.push_free(mine.number);
                    }
                    return Some(slot);
                }
                Search::Nowhere(head) => head,
            };
            let slot = match mine {
                Some(slot) => slot,
                None => {
                    let Some(number) = self.take_number() else {
                        // The last number may have gone to another thread that enters this driver.
                        return self.slot_of(key);
                    };
                    let slot = occupy(number);
                    let node = &self.nodes[number as usize];
                    // Release on both: see `search`, which reads them before it looks whether the node is linked.
                    node.key.store(key.0, Ordering::Release);
                    node.generation.store(slot.generation, Ordering::Release);
                    *mine.insert(slot)
                }
            };
            let node = &self.nodes[slot.number as usize];
            // Relaxed: until the exchange below the node is this thread's alone.
            let old = Link(node.next.load(Ordering::Relaxed));
            // Release, so that a search that meets this link finds the lists changed since it came to this node.
            node.next.store(old.then(head).0, Ordering::Release);
            let linked = head.then(Link::to(slot.number));
            // Release publishes the node and the slot. Acquire is the search's, when it fails.
            if self
                .head(key)
                .compare_exchange(head.0, linked.0, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
            {
                // Relaxed: a count for `len`, nothing hangs on it.
                self.known.fetch_add(1, Ordering::Relaxed);
                return Some(slot);
            }
        }
    }

    /// Forgets the driver, vacates its slot and frees the number, in this order. To be called once for a slot.
    pub fn remove<T>(&self, key: DriverKey, slot: Slot, vacate: impl FnOnce() -> T) -> T {
        let node = &self.nodes[slot.number as usize];
        let mut next = Link(node.next.load(Ordering::Relaxed));
        // AcqRel: the mark is one of the changes a search hangs on.
        while let Err(now) =
            node.next
                .compare_exchange(next.0, next.marked().0, Ordering::AcqRel, Ordering::Relaxed)
        {
            next = Link(now);
        }
        self.known.fetch_sub(1, Ordering::Relaxed);
        // A whole search leaves no marked node in the list, so this one is out of it.
        self.unlink_marked(key);
        let vacated = vacate();
        self.push_free(slot.number);
        vacated
    }

    pub fn slot_of(&self, key: DriverKey) -> Option<Slot> {
        match self.search(key) {
            Search::Here(slot) => Some(slot),
            Search::Nowhere(_) => None,
        }
    }

    pub fn len(&self) -> usize {
        self.known.load(Ordering::Relaxed) as usize
    }

    /// Numbers below this one have been given out.
    pub fn slots_used(&self) -> u32 {
        // Acquire: a scan that begins after a driver entered looks at its slot.
        self.used.load(Ordering::Acquire)
    }

    fn search(&self, key: DriverKey) -> Search {
        self.walk(key, |found| found == key.0)
    }

    fn unlink_marked(&self, key: DriverKey) {
        self.walk(key, |_| false);
    }

    /// Walks the list of a key to the first node that `is_it`, and unlinks marked ones on the way.
    fn walk(&self, key: DriverKey, is_it: impl Fn(u64) -> bool) -> Search {
        'anew: loop {
            let mut previous = self.head(key);
            // Acquire here and below: who follows a link sees the node it leads to as it was when the link was made.
            let head = Link(previous.load(Ordering::Acquire));
            let mut link = head;
            loop {
                let Some(number) = link.node() else {
                    return Search::Nowhere(head);
                };
                let node = &self.nodes[number as usize];
                let next = Link(node.next.load(Ordering::Acquire));
                // Acquire on both: if one is of a later owner of the node, the look below finds the link changed.
                let found = node.key.load(Ordering::Acquire);
                let generation = node.generation.load(Ordering::Acquire);
                // While the link to it is the same, the node is in the list, and all of the above is of one driver.
                if previous.load(Ordering::Acquire) != link.0 {
                    continue 'anew;
                }
                if next.is_marked() {
                    let past = link.then(next);
                    // AcqRel: as where it was linked.
                    if previous
                        .compare_exchange(link.0, past.0, Ordering::AcqRel, Ordering::Relaxed)
                        .is_err()
                    {
                        continue 'anew;
                    }
                    if std::ptr::eq(previous, self.head(key)) {
                        // The head is not the one of before, and is not to be handed out as it.
                        continue 'anew;
                    }
                    link = past;
                    continue;
                }
                if is_it(found) {
                    return Search::Here(Slot { number, generation });
                }
                previous = &node.next;
                link = next;
            }
        }
    }

    /// A number that nobody has.
    fn take_number(&self) -> Option<u32> {
        // Acquire on each: what the last owner of the number did is behind us.
        let mut top = Link(self.free.load(Ordering::Acquire));
        while let Some(number) = top.node() {
            // It may be taken and linked elsewhere at this moment: then the exchange fails by its tag.
            let below = Link(self.nodes[number as usize].next.load(Ordering::Acquire));
            match self.free.compare_exchange(
                top.0,
                top.then(below).0,
                Ordering::AcqRel,
                Ordering::Acquire,
            ) {
                Ok(_) => return Some(number),
                Err(now) => top = Link(now),
            }
        }
        let slots_max = self.nodes.len() as u32;
        // AcqRel: see `slots_used`.
        self.used
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, |used| {
                (used < slots_max).then_some(used + 1)
            })
            .ok()
    }

    /// Gives back a number whose node is in no list.
    fn push_free(&self, number: u32) {
        let next = &self.nodes[number as usize].next;
        let mut top = Link(self.free.load(Ordering::Relaxed));
        loop {
            // Relaxed: the node is this thread's alone. It stays marked while it is free, so that no search that
            // still stands on it takes it for a link to go on from.
            let old = Link(next.load(Ordering::Relaxed));
            next.store(old.then(top).marked().0, Ordering::Release);
            // Release hands over the node and all that was done to the slot.
            match self.free.compare_exchange(
                top.0,
                top.then(Link::to(number)).0,
                Ordering::AcqRel,
                Ordering::Relaxed,
            ) {
                Ok(_) => return,
                Err(now) => top = Link(now),
            }
        }
    }

    fn head(&self, key: DriverKey) -> &AtomicU64 {
        &self.heads[mixed(key.0) as usize & (self.heads.len() - 1)]
    }
}

/// Keys are numbers the caller gives out, so a plain mix is enough; and it is the same in every run.
fn mixed(number: u64) -> u64 {
    let spread = (number ^ (number >> 32)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    spread ^ (spread >> 29)
}
