//! Who counts, and who of them is near?
//!
//! A search walks patches in growing windows around its place and gathers drivers by their entries: those that seem to
//! count and are not too far. Then it looks at the slots of the nearest, and of others only as long as they may be
//! nearer than the last of the answer. It ends when the
//! window holds the circle through the last of the answer, or the whole radius; when a window would touch more patches
//! than there are slots in use, it scans the slots instead. So it is bounded wherever nobody is near.
//!
//! The scan of all slots is also what a query does that gets no pin or loses it (`readers`): each driver has one slot.

use crate::buckets::{GATHERED_MAX, Gathered, Home, Wanted, offset_of, slot_of};
use crate::cell::{Cell, Resolution};
use crate::index::{DriverKey, Filter, LiveIndex, Near, Query};
use crate::patch::{Grid, OFFSET_BITS, Patch, Stretch, Window, east_e7, narrowest_cos, south_e7};
use crate::point::{M_PER_E7, Origin, Point, TURN_E7};
use crate::polygon::Polygon;
use crate::readers::Pin;
use crate::slots::{Asked, Found};

/// Patches asked for together, so that their lines come together.
const PATCHES_AT_ONCE: usize = 32;

/// Answers up to this long are kept sorted while they grow; longer ones are sorted at the end.
const SORTED_MAX: usize = 64;

/// Cells counted before equal ones are put together.
const COUNTS_APART: usize = 4_096;

impl LiveIndex {
    /// Replaces what is in `out` by the nearest drivers that count and that `keep` wants, sorted by distance,
    /// then key. `keep` may be asked about a driver more than once, and about some that do not make it.
    pub fn nearest(&self, query: &Query, keep: impl FnMut(&Near) -> bool, out: &mut Vec<Near>) {
        out.clear();
        if query.k == 0 {
            return;
        }
        let k = if query.k <= SORTED_MAX {
            query.k
        } else {
            usize::MAX
        };
        let mut answer = Answer {
            middle: query.at,
            from: Origin::new(query.at),
            filter: &query.filter,
            who: Who::new(&query.filter),
            keep,
            k,
            reach_m: query.radius_m,
            out,
        };
        self.search(query.at, query.radius_m, &mut answer);
        if k == usize::MAX {
            sort_by_distance(out);
            out.truncate(query.k);
        }
    }

    /// Replaces what is in `out` by every driver within a radius that counts and that `keep` wants, sorted by
    /// distance, then key. `keep` may be asked about a driver more than once.
    pub fn within_radius(
        &self,
        at: Point,
        radius_m: f64,
        filter: &Filter,
        keep: impl FnMut(&Near) -> bool,
        out: &mut Vec<Near>,
    ) {
        self.nearest(
            &Query {
                at,
                radius_m,
                k: usize::MAX,
                filter: *filter,
            },
            keep,
            out,
        );
    }

    /// Replaces what is in `out` by every driver inside an outline that counts and that `keep` wants, sorted by
    /// key. `keep` may be asked about a driver more than once.
    pub fn inside_polygon(
        &self,
        outline: &Polygon,
        filter: &Filter,
        mut keep: impl FnMut(&Near) -> bool,
        out: &mut Vec<Near>,
    ) {
        out.clear();
        let who = Who::new(filter);
        let mut look = |slot: u32, out: &mut Vec<Near>| {
            let near = self.counting(slot, &who);
            let near = near.map(|(found, at)| who.near(&found, at, 0.0));
            out.extend(near.filter(|near| outline.contains(near.at) && keep(near)));
        };
        let wanted = Wanted::new(filter.status, filter.classes);
        let window = Window::of_bounds(outline.bounds_e7());
        if !self.walk_window(&window, wanted, |slot| look(slot, out)) {
            out.clear();
            (0..self.slots_used() as u32).for_each(|slot| look(slot, out));
        }
        out.sort_unstable_by_key(|near| near.key);
        out.dedup_by_key(|near| near.key);
    }

    /// Replaces what is in `out` by the number of drivers that count in each cell that has any, sorted by cell.
    ///
    /// Looks at every driver and asks H3 for each that counts: for a map of the market, not for each ride.
    pub fn count_per_cell(&self, res: Resolution, filter: &Filter, out: &mut Vec<(Cell, u32)>) {
        out.clear();
        let who = Who::new(filter);
        let mut apart = 0;
        for slot in 0..self.slots_used() as u32 {
            let Some((_, at)) = self.counting(slot, &who) else {
                continue;
            };
            out.push((Cell::at(at, res), 1));
            if out.len() - apart >= COUNTS_APART.max(apart) {
                put_together(out);
                apart = out.len();
            }
        }
        put_together(out);
    }

    /// The driver of a slot and where it is, if it counts.
    #[inline]
    fn counting(&self, slot: u32, who: &Who) -> Option<(Found, Point)> {
        let slot = slot as usize;
        let found = self.lines[slot].read(&self.backs[slot])?;
        let at = found.at()?;
        (who.asked.fits(&found) && who.age_ms(&found) <= who.ping_ttl_ms).then_some((found, at))
    }

    fn search<K: FnMut(&Near) -> bool>(
        &self,
        at: Point,
        radius_m: f64,
        answer: &mut Answer<'_, K>,
    ) {
        if !self.walk(at, radius_m, answer) {
            answer.begin_again(radius_m);
            for slot in 0..self.slots_used() as u32 {
                answer.look(self, slot);
            }
        }
    }

    /// Patches beyond which a scan of the slots is cheaper than a walk.
    fn patches_max(&self) -> u64 {
        (self.slots_used() as u64).max(PATCHES_ALWAYS)
    }

    /// Walks patches until the answer is found. False: it may be incomplete, or would have cost more than a scan.
    fn walk<K: FnMut(&Near) -> bool>(
        &self,
        at: Point,
        radius_m: f64,
        answer: &mut Answer<'_, K>,
    ) -> bool {
        let Some(pin) = self.readers.pin() else {
            return false;
        };
        let patches_max = self.patches_max();
        let cos = narrowest_cos(at, radius_m);
        let mut walk = Walk::new(self, at, radius_m, cos, answer.filter, &pin);
        let mut window_m = self.grid.row_m() * FIRST_WINDOW_ROWS;
        let mut before_m = None;
        loop {
            window_m = window_m.min(radius_m);
            let edge_m = window_m * REACH_MARGIN + EDGE_M;
            let window = Window::around(at, edge_m, cos);
            if self.grid.patches_in(&window) > patches_max {
                pin.unpin();
                return false;
            }
            for_each_stretch(&self.grid, &window, |row, columns| {
                walk.stretch(row, columns, (before_m, edge_m), answer);
            });
            walk.visit_patches(answer);
            walk.look_at_gathered(answer);
            if window_m >= answer.reach_m {
                break;
            }
            window_m = if answer.is_full() {
                answer.reach_m
            } else {
                window_m * WINDOW_GROWTH
            };
            before_m = Some(edge_m);
        }
        if walk.met_departed {
            // So that the queries after this one may skip what it had to look at.
            self.readers.move_on();
        }
        pin.unpin()
    }

    /// Calls `look` with every slot that may be inside a window, some more than once. False: see `walk`.
    fn walk_window(&self, window: &Window, wanted: Wanted, mut look: impl FnMut(u32)) -> bool {
        let Some(pin) = self.readers.pin() else {
            return false;
        };
        let bounded = self.grid.patches_in(window) <= self.patches_max();
        if bounded {
            let mut gathered = Gathered::new();
            for_each_stretch(&self.grid, window, |row, columns| {
                for column in columns.first..=columns.last {
                    let home = self.buckets.home(Patch { row, column });
                    self.buckets.visit(home, &pin, |bucket| {
                        gathered.count = 0;
                        bucket.gather((home, 0), &pin, wanted, &mut gathered, &mut look);
                        let words = &gathered.words[..gathered.count];
                        words.iter().for_each(|&word| look(slot_of(word)));
                    });
                }
            });
        }
        pin.unpin() && bounded
    }
}

/// So few patches are walked however few slots there are: a handful of cache lines.
const PATCHES_ALWAYS: u64 = 64;

const FIRST_WINDOW_ROWS: f64 = 1.0;
const WINDOW_GROWTH: f64 = 1.7;

/// Who counts, worked out once for a query.
#[derive(Clone, Copy)]
struct Who {
    asked: Asked,
    now_ms: i64,
    ping_ttl_ms: i64,
}

impl Who {
    fn new(filter: &Filter) -> Self {
        Self {
            asked: Asked::new(filter.status, filter.classes),
            now_ms: filter.now_ms,
            ping_ttl_ms: filter.ping_ttl_ms,
        }
    }

    #[inline]
    fn age_ms(&self, found: &Found) -> i64 {
        // Saturating: a position's time is the caller's, whatever it is.
        self.now_ms.saturating_sub(found.time_ms())
    }

    #[inline]
    fn near(&self, found: &Found, at: Point, distance_m: f64) -> Near {
        let (status, classes, n) = found.status();
        Near {
            key: DriverKey(found.key),
            at,
            distance_m,
            age_ms: self.age_ms(found),
            time_ms: found.time_ms(),
            status,
            classes,
            n,
        }
    }
}

/// The answer as far as it is found.
struct Answer<'a, K> {
    middle: Point,
    from: Origin,
    filter: &'a Filter,
    who: Who,
    keep: K,
    /// At most this many, kept sorted; `usize::MAX`: all, sorted at the end.
    k: usize,
    /// Nobody farther than this is wanted any more.
    reach_m: f64,
    out: &'a mut Vec<Near>,
}

impl<K: FnMut(&Near) -> bool> Answer<'_, K> {
    fn is_full(&self) -> bool {
        self.out.len() >= self.k
    }

    /// How many are missing.
    fn wanted(&self) -> usize {
        self.k.saturating_sub(self.out.len())
    }

    fn begin_again(&mut self, radius_m: f64) {
        self.out.clear();
        self.reach_m = radius_m;
    }

    /// Looks at no more slots than are wanted, nearly in order.
    #[inline]
    fn fill(&mut self, index: &LiveIndex, drivers: &[u64]) {
        let mut found = [(Found::NOBODY, self.middle); SLOTS_AHEAD];
        // The middle where there is nobody: it is near.
        let mut lat = [f64::from(self.middle.lat_e7()); SLOTS_AHEAD];
        let mut lon = [f64::from(self.middle.lon_e7()); SLOTS_AHEAD];
        let mut count = 0;
        for &driver in drivers.iter().take(SLOTS_AHEAD) {
            if let Some(one) = index.counting(slot_of_driver(driver) as u32, &self.who) {
                found[count] = one;
                lat[count] = f64::from(one.1.lat_e7());
                lon[count] = f64::from(one.1.lon_e7());
                count += 1;
            }
        }
        let distances_m = self.from.distances_m(&lat, &lon);
        for ((found, at), distance_m) in found.iter().take(count).zip(distances_m) {
            if distance_m <= self.reach_m {
                self.take(self.who.near(found, *at, distance_m));
            }
        }
        self.shorten_reach();
    }

    /// Takes a driver within reach into an answer that is not full.
    #[inline]
    fn take(&mut self, near: Near) {
        if self.k == usize::MAX {
            if (self.keep)(&near) {
                self.out.push(near);
            }
            return;
        }
        // They come nearly in order, so the place is near the end.
        let mut at = self.out.len();
        while at > 0 && comes_before(&near, &self.out[at - 1]) {
            at -= 1;
        }
        if self.has(near.key) || !(self.keep)(&near) {
            return;
        }
        if at == self.out.len() {
            self.out.push(near);
        } else {
            self.out.insert(at, near);
        }
    }

    /// A driver that moved meanwhile is met by its old entry and by its new one.
    fn has(&self, key: DriverKey) -> bool {
        self.out.iter().any(|known| known.key == key)
    }

    fn shorten_reach(&mut self) {
        if self.is_full() {
            self.reach_m = self.out.last().map_or(self.reach_m, |last| last.distance_m);
        }
    }

    /// Looks at one slot.
    fn look(&mut self, index: &LiveIndex, slot: u32) {
        let Some((found, at)) = index.counting(slot, &self.who) else {
            return;
        };
        let distance_m = self.from.distance_m(at);
        if distance_m > self.reach_m {
            return;
        }
        let near = self.who.near(&found, at, distance_m);
        if self.is_full() {
            let farther = self
                .out
                .last()
                .is_none_or(|last| !comes_before(&near, last));
            if farther || self.has(near.key) || !(self.keep)(&near) {
                return;
            }
            self.out.pop();
        }
        self.take(near);
        self.shorten_reach();
    }
}

/// A walk over patches with its measures taken once.
struct Walk<'a> {
    index: &'a LiveIndex,
    pin: &'a Pin<'a>,
    south: i64,
    east: i64,
    /// Metres in a unit of longitude, never more than it is anywhere in the radius.
    east_m: f64,
    /// What the rounding of offsets may add to a distance.
    slack_m: f64,
    wanted: Wanted,
    /// Patches asked for and not yet visited.
    ahead: [Ahead; PATCHES_AT_ONCE],
    ahead_count: usize,
    /// The first `measured` words are drivers to be looked at, as `by_distance` has them; those after it are entries.
    gathered: Gathered,
    measured: usize,
    met_departed: bool,
}

/// A patch to visit: where it begins as seen from the middle, and the width of an offset's step, in metres.
#[derive(Clone, Copy)]
struct Ahead {
    home: Home,
    north_0: f64,
    east_0: f64,
    east_1: f64,
}

impl<'a> Walk<'a> {
    fn new(
        index: &'a LiveIndex,
        at: Point,
        radius_m: f64,
        cos: f64,
        filter: &Filter,
        pin: &'a Pin<'a>,
    ) -> Self {
        // Where the radius spans much of a turn the shorter way round is not the way measured here: skip nobody by it.
        let spans_much = radius_m / M_PER_E7 > cos * (TURN_E7 / 4) as f64;
        let nothing_ahead = Ahead {
            home: index.buckets.home(Patch { row: 0, column: 0 }),
            north_0: 0.0,
            east_0: 0.0,
            east_1: 0.0,
        };
        Self {
            index,
            pin,
            south: i64::from(south_e7(at)),
            east: i64::from(east_e7(at)),
            east_m: if spans_much { 0.0 } else { M_PER_E7 * cos },
            slack_m: 0.1 + 3.0 * index.grid.row_m() / f64::from(1u32 << OFFSET_BITS),
            wanted: Wanted::new(filter.status, filter.classes),
            ahead: [nothing_ahead; PATCHES_AT_ONCE],
            ahead_count: 0,
            gathered: Gathered::new(),
            measured: 0,
            met_departed: false,
        }
    }

    /// Asks for patches side by side that come within `edge_m` and did not within `before_m`.
    #[inline]
    fn stretch<K: FnMut(&Near) -> bool>(
        &mut self,
        row: u32,
        columns: Stretch,
        (before_m, edge_m): (Option<f64>, f64),
        answer: &mut Answer<'_, K>,
    ) {
        let grid = &self.index.grid;
        let shift = grid.column_shift(row);
        let (row_start, row_step) = grid.row_start(row);
        let (_, column_step) = Grid::column_start(0, shift);
        let east_m = if 1i64 << shift > TURN_E7 / 8 {
            0.0
        } else {
            self.east_m
        };
        let north_0 = row_start - self.south;
        let north_gap_m = gap(north_0, row_step * STEPS) * M_PER_E7;
        // Without a measure of the way east nobody knows which of the row were in the window before. Who is met
        // twice counts once.
        let before = before_m.filter(|_| east_m > 0.0).map_or(-1.0, squared);
        let edge = squared(edge_m);
        // The shorter way to the first, and so to the others: where a window is wider than half a turn, `east_m` is 0.
        let half = TURN_E7 / 2;
        let (first_start, _) = Grid::column_start(columns.first, shift);
        let way = (first_start - self.east + half).rem_euclid(TURN_E7) - half;
        for column in columns.first..=columns.last {
            let (column_start, _) = Grid::column_start(column, shift);
            let way_east = way + (column_start - first_start);
            // A row's last patch ends at the antimeridian.
            let width = (column_step * STEPS).min((TURN_E7 - column_start) as f64);
            let distance = squared(north_gap_m) + squared(gap(way_east, width) * east_m);
            if distance <= before || distance > edge {
                continue;
            }
            let home = self.index.buckets.home(Patch { row, column });
            self.index.buckets.prefetch_home(home);
            self.ahead[self.ahead_count] = Ahead {
                home,
                north_0: north_0 as f64 * M_PER_E7,
                east_0: way_east as f64 * east_m,
                east_1: column_step * east_m,
            };
            self.ahead_count += 1;
            if self.ahead_count == PATCHES_AT_ONCE {
                self.visit_patches(answer);
            }
        }
    }

    /// Visits the patches asked for.
    fn visit_patches<K: FnMut(&Near) -> bool>(&mut self, answer: &mut Answer<'_, K>) {
        let (index, pin, wanted) = (self.index, self.pin, self.wanted);
        for patch in 0..self.ahead_count {
            let home = self.ahead[patch].home;
            index.buckets.visit(home, pin, |bucket| {
                if self.gathered.is_full() {
                    self.measure(answer.reach_m);
                    if self.gathered.is_full() {
                        self.look_at_gathered(answer);
                    }
                }
                let met_departed = &mut self.met_departed;
                bucket.gather(
                    (home, patch as u8),
                    pin,
                    wanted,
                    &mut self.gathered,
                    |slot| {
                        *met_departed = true;
                        answer.look(index, slot);
                    },
                );
            });
        }
        self.measure(answer.reach_m);
        self.ahead_count = 0;
    }

    /// Makes drivers with distances of the entries gathered, and drops those out of reach.
    #[inline]
    fn measure(&mut self, reach_m: f64) {
        let reach = self.reach_squared(reach_m);
        let (_, row_step) = self.index.grid.row_start(0);
        let north_1 = row_step * M_PER_E7;
        let gathered = &mut self.gathered;
        let mut kept = self.measured;
        for number in self.measured..gathered.count.min(GATHERED_MAX) {
            let word = gathered.words[number];
            let patch = &self.ahead[gathered.patches[number] as usize % PATCHES_AT_ONCE];
            let offset = offset_of(word);
            let north = patch.north_0 + f64::from(offset >> OFFSET_BITS) * north_1;
            let east = patch.east_0 + f64::from(offset & ((1 << OFFSET_BITS) - 1)) * patch.east_1;
            let squared_m = north * north + east * east;
            gathered.words[kept % GATHERED_MAX] = by_distance(squared_m, slot_of(word));
            kept += usize::from(squared_m <= reach);
        }
        gathered.count = kept;
        self.measured = kept;
    }

    /// Looks at the slots of who was measured, the nearest by their entries first, as long as they may come before the
    /// last of the answer.
    fn look_at_gathered<K: FnMut(&Near) -> bool>(&mut self, answer: &mut Answer<'_, K>) {
        let index = self.index;
        let drivers = &mut self.gathered.words[..self.measured];
        if answer.k != usize::MAX {
            drivers.sort_unstable();
        }
        let ask_for = |driver: &u64| {
            index.lines[slot_of_driver(*driver)].prefetch();
            index.backs[slot_of_driver(*driver)].prefetch();
        };
        let first = answer.wanted().min(SLOTS_AHEAD);
        drivers.iter().take(first).for_each(ask_for);
        let mut begin = 0;
        while begin < drivers.len() && !answer.is_full() {
            let now = answer.wanted().min(SLOTS_AHEAD).min(drivers.len() - begin);
            let (now, next) = drivers[begin..].split_at(now);
            next.iter().take(SLOTS_AHEAD / 4).for_each(ask_for);
            answer.fill(index, now);
            begin += now.len();
        }
        for &driver in &drivers[begin..] {
            if squared_m_of(driver) > squared(answer.reach_m * REACH_MARGIN + self.slack_m) {
                break;
            }
            answer.look(index, slot_of_driver(driver) as u32);
        }
        self.gathered.count = 0;
        self.measured = 0;
    }

    fn reach_squared(&self, reach_m: f64) -> f64 {
        squared(reach_m * REACH_MARGIN + self.slack_m)
    }
}

/// Slots looked at in one go, and asked for ahead.
const SLOTS_AHEAD: usize = 12;

/// Distances of gathered drivers are kept with 24 bits.
const REACH_MARGIN: f64 = 1.000_001;

/// More than what is lost when the distance of a patch is reckoned.
const EDGE_M: f64 = 0.1;

/// Steps of an offset in a patch.
const STEPS: f64 = (1u32 << OFFSET_BITS) as f64;

/// From 0 to a stretch of this size that begins at `start`.
#[inline]
fn gap(start: i64, size: f64) -> f64 {
    let start = start as f64;
    start.max(-(start + size)).max(0.0)
}

/// A driver as the walk looks at it: squared distance in the upper half, so that numbers sort by it; slot in the lower.
#[inline]
fn by_distance(squared_m: f64, slot: u32) -> u64 {
    // The bits of floats that are not negative sort like the floats.
    (u64::from((squared_m as f32).to_bits()) << 32) | u64::from(slot)
}

#[inline]
fn slot_of_driver(driver: u64) -> usize {
    driver as u32 as usize
}

#[inline]
fn squared_m_of(driver: u64) -> f64 {
    f64::from(f32::from_bits((driver >> 32) as u32))
}

/// Every stretch of patches of a window.
#[inline]
fn for_each_stretch(grid: &Grid, window: &Window, mut visit: impl FnMut(u32, Stretch)) {
    let (first, last) = grid.rows(window);
    for row in first..=last {
        let (one, two) = grid.columns(row, window);
        visit(row, one);
        if let Some(two) = two {
            visit(row, two);
        }
    }
}

#[inline]
fn squared(value: f64) -> f64 {
    value * value
}

#[inline]
fn comes_before(a: &Near, b: &Near) -> bool {
    a.distance_m
        .total_cmp(&b.distance_m)
        .then(a.key.cmp(&b.key))
        .is_lt()
}

fn sort_by_distance(out: &mut Vec<Near>) {
    out.sort_unstable_by_key(|near| near.key);
    out.dedup_by_key(|near| near.key);
    out.sort_unstable_by(|a, b| {
        a.distance_m
            .total_cmp(&b.distance_m)
            .then(a.key.cmp(&b.key))
    });
}

fn put_together(out: &mut Vec<(Cell, u32)>) {
    out.sort_unstable();
    out.dedup_by(|next, kept| {
        let same = next.0 == kept.0;
        kept.1 += if same { next.1 } else { 0 };
        same
    });
}
