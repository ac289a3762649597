//! Which cars that are on their way should change rides?
//!
//! A ride whose driver is on the way takes part in the round like one that waits, only that it keeps the car it has if it
//! gets no other. Keeping it is cheaper than any other by [`SwapRules::gain_min_ms`], so a change is made only
//! if it saves that much for every ride that changes its driver. What comes out differently than it is falls into
//! chains and circles, each a [`Swap`] (PROTOCOL 6).
//!
//! Where cars are scarce, a ride whose car is still far away may lose it to one that would get none ([`GivesUp`]): as many
//! rides have cars as before, but sooner ones.
//!
//! Holds: a swap's rides are of one place shard: a chain that goes on at another one goes on in a later round, with a car that
//! is free by then; a free car starts a chain, or one that is given up; otherwise no ride loses its car without another one, and no ride gives up twice or
//! once it has lost a driver; nobody who is close, has changed too often or is in the middle of an exchange takes part,
//! nor does their car.
//!
//! Elsewhere: what becomes of a swap (`shard::exchange`), who is a candidate at what price (the node).

use cabrank_events::event::Move;
use serde::{Deserialize, Serialize};

use super::assignment::{self, NONE, Served};
use super::{
    COST_MS_MAX, GivesUp, OnTheWay, Ordered, RideAsk, Round, RoundResult, SWAP_MOVES_MAX, Swap,
};

/// When rides whose drivers are on the way may change them. All in domain milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SwapRules {
    /// What a swap must save, for each ride that changes its driver, of all riders' waiting together, as `late_ms` counts
    /// it. More: fewer swaps and longer waits; less: drivers turn round for nothing. Swaps that give a car to a ride that
    /// would get none need not.
    pub gain_min_ms: u64,
    /// How often a ride may change its driver by a swap.
    pub swaps_max: u32,
    /// By how much later than promised a rider may be fetched because of a swap.
    pub worsen_max_ms: u64,
    /// A driver nearer to the pickup than this is left alone.
    pub close_ms: u64,
    /// How often rides on the way are looked at again.
    pub every_ms: u64,
    /// A ride whose car still needs at least this may lose it to one that would get none, once: it waits again, first in
    /// line, for `engine.redispatch_patience_ms` at least. So scarce cars go where they are soonest. 0: never.
    pub give_up_from_ms: u64,
    /// What that must save: by so much the other rider must be nearer to the car.
    pub give_up_gain_ms: u64,
    /// A second more counts double for a rider who has waited this long already, threefold after twice as long, and so on;
    /// gains count likewise. Less: fewer long waits, more swaps; 0: all seconds count alike.
    pub late_ms: u64,
}

impl Default for SwapRules {
    fn default() -> Self {
        SwapRules {
            gain_min_ms: 120_000,
            swaps_max: 3,
            worsen_max_ms: 180_000,
            close_ms: 60_000,
            every_ms: 10_000,
            give_up_from_ms: 60_000,
            give_up_gain_ms: 0,
            late_ms: 900_000,
        }
    }
}

/// Beyond this a wait counts no more than it does here, ms.
const FELT_MAX_MS: i64 = 3_600_000;

impl SwapRules {
    /// What `more_ms` count for a rider who has waited `waited_ms`: the sum of `1 + waited / late_ms` over each of them.
    pub fn felt_ms(&self, waited_ms: i64, more_ms: i64) -> i64 {
        if self.late_ms == 0 {
            return more_ms;
        }
        let late_ms = i64::try_from(self.late_ms).unwrap_or(i64::MAX).max(1_000);
        let waited_ms = waited_ms.clamp(0, FELT_MAX_MS);
        // What is priced in besides the drive may make it negative; nobody gains more than all that was waited.
        let part_ms = more_ms.clamp(-waited_ms, FELT_MAX_MS);
        let felt_ms = (2 * waited_ms + part_ms) * part_ms / 2 / late_ms;
        more_ms
            .saturating_add(felt_ms)
            .clamp(-COST_MS_MAX, COST_MS_MAX)
    }
}

impl Round {
    /// See [`SwapRules::felt_ms`].
    pub(super) fn felt_ms(&self, ask: &RideAsk, more_ms: i64) -> i64 {
        self.rules.felt_ms(self.now.since(ask.since), more_ms)
    }
}

/// What a driver does at the moment, as far as a round is concerned.
#[derive(Clone, Copy)]
enum Holder {
    Nobody,
    /// A ride on the way (its place in [`Round::on_the_way`]) that takes part.
    Ride(usize),
    /// A ride that does not.
    Pinned,
}

/// Who holds each driver of the round.
pub(super) struct Holders(Vec<Holder>);

impl Holders {
    /// Nobody takes part: rides on the way only keep their cars from others.
    pub(super) fn pinned(round: &Round) -> Holders {
        let mut holders = vec![Holder::Nobody; round.drivers.len()];
        for going in &round.on_the_way {
            if let Some(holder) = holders.get_mut(going.driver as usize) {
                *holder = Holder::Pinned;
            }
        }
        Holders(holders)
    }

    fn of(round: &Round) -> Holders {
        let mut holders = vec![Holder::Nobody; round.drivers.len()];
        for (at, going) in round.on_the_way.iter().enumerate() {
            if let Some(holder) = holders.get_mut(going.driver as usize) {
                *holder = match holder {
                    Holder::Nobody if going.may_swap(&round.rules) => Holder::Ride(at),
                    Holder::Nobody | Holder::Ride(_) | Holder::Pinned => Holder::Pinned,
                };
            }
        }
        Holders(holders)
    }

    /// May another ride get this driver?
    pub(super) fn lends(&self, driver: u32) -> bool {
        match self.0.get(driver as usize) {
            Some(Holder::Nobody | Holder::Ride(_)) => true,
            Some(Holder::Pinned) | None => false,
        }
    }

    /// Does this ride on the way take part?
    pub(super) fn takes_part(&self, at: usize, driver: u32) -> bool {
        matches!(self.0.get(driver as usize), Some(Holder::Ride(its)) if *its == at)
    }
}

impl OnTheWay {
    /// May it lose its car to a ride that would get none?
    pub(super) fn may_lose(&self, rules: &SwapRules) -> bool {
        self.lost == 0
            && rules.give_up_from_ms > 0
            && self.remaining_ms >= i64::try_from(rules.give_up_from_ms).unwrap_or(i64::MAX)
    }

    fn may_swap(&self, rules: &SwapRules) -> bool {
        self.swaps < rules.swaps_max
            && self.remaining_ms >= i64::try_from(rules.close_ms).unwrap_or(i64::MAX)
            && self.remaining_ms <= COST_MS_MAX
    }

    /// What the ride's cars cost, its own among them.
    pub(super) fn edges<'a>(
        &'a self,
        round: &'a Round,
        holders: &'a Holders,
    ) -> impl Iterator<Item = (u32, i64)> + 'a {
        let as_ms = |ms: u64| i64::try_from(ms).unwrap_or(i64::MAX);
        let latest = self
            .promised_ms
            .saturating_add(as_ms(round.rules.worsen_max_ms));
        let gain = as_ms(round.rules.gain_min_ms);
        let others = self.candidates.iter().filter_map(move |other| {
            let fits = other.driver != self.driver
                && other.cost <= latest.max(self.remaining_ms)
                && (-COST_MS_MAX..=COST_MS_MAX).contains(&other.cost)
                && holders.lends(other.driver);
            let cost = round.felt_ms(&self.ask, other.cost).saturating_add(gain);
            (fits && cost <= COST_MS_MAX).then_some((other.driver, cost))
        });
        others.chain([(self.driver, round.felt_ms(&self.ask, self.remaining_ms))])
    }
}

/// Exact over waiting rides and those on the way together, within the rules.
pub(super) fn solve(round: &Round, budget_steps: u64) -> RoundResult {
    let holders = Holders::of(round);
    let ordered = Ordered::new(round, &holders, true);
    let mut served = assignment::exact(&ordered.costs, budget_steps);
    let rows = 0..ordered.rows.len();
    if rows
        .clone()
        .any(|row| served.edges[row].is_none() && ordered.costs.is_kept(row))
    {
        served = Served {
            exhausted: served.exhausted,
            ..assignment::greedy(&ordered.costs)
        };
    }
    if cut_long(&ordered, &mut served) {
        assignment::fill_greedily(&ordered.costs, &mut served);
        // What was filled in may have made another one too long.
        cut_long(&ordered, &mut served);
        let plain = assignment::greedy(&ordered.costs);
        if plain.worth(&ordered.costs) > served.worth(&ordered.costs) {
            served.edges = plain.edges;
        }
    }
    if served.exhausted {
        take_back_losses(&ordered, &mut served);
    }
    cut_at_borders(&ordered, &mut served);
    let mut result = ordered.told(&served);
    result.swaps = Changes::of(&ordered, &served)
        .all()
        .into_iter()
        .map(|change| change.swap(&ordered, &served))
        .collect();
    result
}

/// Rows that pass their cars on: each gets the car of the one before it.
struct Change {
    rows: Vec<usize>,
    /// The first gets the car of the last, else a free one.
    is_circle: bool,
}

/// What is to be otherwise than it is.
struct Changes<'a> {
    ordered: &'a Ordered<'a>,
    /// Row to the column it gets.
    gets: Vec<Option<u32>>,
    /// Column to the row that gets it.
    taker: Vec<u32>,
    /// Column to the row whose driver it is.
    owner: Vec<u32>,
}

impl<'a> Changes<'a> {
    fn of(ordered: &'a Ordered<'a>, served: &Served) -> Changes<'a> {
        let column = |edge: u32| ordered.costs.edge(edge).0;
        let mut changes = Changes {
            ordered,
            gets: served.edges.iter().map(|edge| edge.map(column)).collect(),
            taker: vec![NONE; ordered.drivers.len()],
            owner: vec![NONE; ordered.drivers.len()],
        };
        for row in 0..ordered.rows.len() {
            if let Some(column) = changes.gets[row] {
                changes.taker[column as usize] = row as u32;
            }
            if let Some(column) = changes.owns(row) {
                changes.owner[column as usize] = row as u32;
            }
        }
        changes
    }

    fn owns(&self, row: usize) -> Option<u32> {
        let edge = self.ordered.own_edge(row)?;
        Some(self.ordered.costs.edge(edge).0)
    }

    /// Who gets the car of this row, if another one does.
    fn next(&self, row: usize) -> Option<usize> {
        let taker = self.taker[self.owns(row)? as usize];
        (taker != NONE && taker as usize != row).then_some(taker as usize)
    }

    /// Every chain, from its free car on, then every circle, from its first row on.
    fn all(&self) -> Vec<Change> {
        let changed: Vec<usize> = (0..self.gets.len())
            .filter(|row| self.owns(*row).is_some() && self.owns(*row) != self.gets[*row])
            .collect();
        let mut seen = vec![false; self.gets.len()];
        let mut all = Vec::new();
        let is_free = |row: &usize| {
            let car = self.gets[*row].map_or(NONE, |column| self.owner[column as usize]);
            car == NONE
        };
        let chains = changed
            .iter()
            .filter(|row| is_free(row))
            .map(|row| (*row, false));
        let circles = changed.iter().map(|row| (*row, true));
        for (first, is_circle) in chains.chain(circles) {
            if seen[first] {
                continue;
            }
            let mut rows = Vec::new();
            let mut row = Some(first);
            while let Some(at) = row.filter(|at| !seen[*at]) {
                seen[at] = true;
                rows.push(at);
                row = self.next(at);
            }
            all.push(Change { rows, is_circle });
        }
        all
    }
}

/// Shortens chains of too many moves to what saves most, and gives up circles of too many. Was there one?
fn cut_long(ordered: &Ordered<'_>, served: &mut Served) -> bool {
    let mut was_long = false;
    for change in Changes::of(ordered, served).all() {
        if change.rows.len() <= SWAP_MOVES_MAX {
            continue;
        }
        was_long = true;
        let mut kept = 0;
        let gives_up = served.edges[change.rows[0]].is_none();
        if !change.is_circle && !gives_up {
            let (mut saved, mut best) = (0, 0);
            // One less than may be, so that a ride that waits still finds room at the end.
            for (at, row) in change.rows[..SWAP_MOVES_MAX - 1].iter().enumerate() {
                let cost = |edge: Option<u32>| edge.map_or(0, |edge| ordered.costs.edge(edge).1);
                saved += cost(ordered.own_edge(*row)) - cost(served.edges[*row]);
                if saved > best {
                    (kept, best) = (at + 1, saved);
                }
            }
        }
        for row in &change.rows[kept..] {
            served.edges[*row] = ordered.own_edge(*row);
        }
    }
    was_long
}

/// Across place shards only free cars move (PROTOCOL 6): a chain ends with the last ride of its first one's place, if that
/// pays by itself. The car that ride had is free then, and the next ride gets it in a later round. Circles and cars that
/// are given up stay at home.
fn cut_at_borders(ordered: &Ordered<'_>, served: &mut Served) {
    let place = |row: &usize| ordered.ask(*row).ride.place;
    for change in Changes::of(ordered, served).all() {
        let first = place(&change.rows[0]);
        let here = change.rows.iter().take_while(|row| place(row) == first);
        let here = here.count();
        if here == change.rows.len() {
            continue;
        }
        let begins_free = !change.is_circle && served.edges[change.rows[0]].is_some();
        let pays = saved(ordered, served, &change.rows[..here]) >= 0;
        let kept = if begins_free && pays { here } else { 0 };
        for row in &change.rows[kept..] {
            served.edges[*row] = ordered.own_edge(*row);
        }
    }
}

/// What these rows save by getting other cars than they have, with what is asked of each change.
fn saved(ordered: &Ordered<'_>, served: &Served, rows: &[usize]) -> i64 {
    let cost = |edge: Option<u32>| edge.map_or(0, |edge| ordered.costs.edge(edge).1);
    let rows = rows.iter();
    rows.map(|row| cost(ordered.own_edge(*row)) - cost(served.edges[*row]))
        .sum()
}

/// A budget that ended early may leave changes that save nothing and give no ride that waits a car: each keeps its own.
fn take_back_losses(ordered: &Ordered<'_>, served: &mut Served) {
    for change in Changes::of(ordered, served).all() {
        let mut rows = change.rows.iter();
        let one_waits = rows.any(|row| ordered.own_edge(*row).is_none());
        if !one_waits && saved(ordered, served, &change.rows) < 0 {
            for row in &change.rows {
                served.edges[*row] = ordered.own_edge(*row);
            }
        }
    }
}

impl Change {
    fn swap(&self, ordered: &Ordered<'_>, served: &Served) -> Swap {
        let gets = |row: &usize| {
            let (ask, edge) = (ordered.ask(*row), served.edges[*row]?);
            Some(Move {
                ride: ask.ride,
                version: ask.version,
                driver: ordered.driver(ordered.costs.edge(edge).0).clone(),
                gain_s: ordered.gain_s(*row, edge),
            })
        };
        let first = self.rows[0];
        let gives_up = served.edges[first].is_none().then(|| {
            let ask = ordered.ask(first);
            GivesUp {
                ride: ask.ride,
                version: ask.version,
            }
        });
        Swap {
            moves: self.rows.iter().filter_map(gets).collect(),
            gives_up,
        }
    }
}
