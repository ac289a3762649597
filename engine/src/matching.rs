//! Which waiting ride gets which car?
//!
//! Rounds are data (PROTOCOL 18): a [`Round`] is a snapshot, [`Policy::solve`] a pure function of it, and the
//! [`RoundResult`] an input of the engine, where each pair is valid only for the version of the ride it was made
//! from. So solving may run beside the commit loop, be late, or be thrown away.
//!
//! Holds: no ride and no driver is in two pairs; every pair was a candidate; the result depends on what is in the
//! snapshot, not on the order it is listed in; no ride waits while a later one (by `since`, then id) gets, at the
//! same cost, a car that it could have had. Among cars of one cost the simple policies take the driver whose id
//! sorts first; which of several equally good assignments the exact one takes is fixed, but by nothing nicer.
//!
//! Elsewhere: who is a candidate and what a pair costs (the node asks the index), what becomes of a pair
//! (`ride`), the exact assignment on plain numbers (`assignment`).

mod assignment;
pub mod crowd;
pub mod others;
pub mod pace;
pub mod price;
mod rematch;
#[cfg(test)]
mod tests;

pub use rematch::SwapRules;

use std::fmt;
use std::str::FromStr;

use cabrank_events::event::Move;
use cabrank_events::{DriverId, RideId, ShardId, Time};
use serde::{Deserialize, Serialize};

use assignment::{Costs, NEW_ROW, NONE, Served, Start};
use rematch::Holders;

/// The most rides one round looks at; the youngest beyond it wait for the next one. Keeps the exact policy's sums
/// within 64 bits.
pub const ROUND_RIDES_MAX: usize = 1 << 20;

/// The most drivers one round looks at; candidates beyond it are left out.
pub const ROUND_DRIVERS_MAX: usize = 1 << 24;

/// Costs lie within minus and plus this, some 49 days in milliseconds; a candidate outside is left out.
pub const COST_MS_MAX: i64 = 1 << 32;

/// A ride that waits for a car.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RideAsk {
    /// Which ride. Each at most once in a round.
    pub ride: RideId,
    /// The number of the ride's newest event when the snapshot was taken.
    pub version: u32,
    /// Its place in the queue: earlier comes first.
    pub since: Time,
}

/// A car that a ride may get.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Candidate {
    /// Index into [`Round::drivers`].
    pub driver: u32,
    /// Milliseconds of travel to the pickup, and whatever else the market prices in; may be negative.
    pub cost: i64,
}

/// A ride whose driver is on the way to it, which may still get another one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OnTheWay {
    /// Which ride. Each at most once in a round, and not among [`Round::rides`].
    pub ask: RideAsk,
    /// Who comes: index into [`Round::drivers`].
    pub driver: u32,
    /// How long that driver still needs, milliseconds from now.
    pub remaining_ms: i64,
    /// When the rider was told that somebody comes, milliseconds from now; `remaining_ms` if nothing was promised.
    pub promised_ms: i64,
    /// How often the ride has changed its driver by a swap.
    pub swaps: u32,
    /// How often it has lost its driver.
    #[serde(default)]
    pub lost: u32,
    /// Other cars it may get, as for a ride that waits.
    pub candidates: Vec<Candidate>,
}

/// A snapshot of who waits and who could come.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Round {
    /// The rides, in any order.
    pub rides: Vec<RideAsk>,
    /// The drivers, each once, in any order.
    pub drivers: Vec<DriverId>,
    /// Per ride its cars, in any order; of one named twice the cheaper counts. A missing list is an empty one,
    /// and candidates that name no driver are left out.
    pub candidates: Vec<Vec<Candidate>>,
    /// Rides with a driver on the way, in any order. [`Rematch`] looks at them; for the others their drivers are taken.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub on_the_way: Vec<OnTheWay>,
    /// What is asked of a swap.
    #[serde(default)]
    pub rules: SwapRules,
    /// When the snapshot was taken: [`Rematch`] counts from it how long riders have waited (see [`SwapRules::late_ms`]).
    #[serde(default)]
    pub now: Time,
}

/// A ride and the car it is to ask.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pair {
    /// Which ride.
    pub ride: RideId,
    /// The version of the ride this is valid for.
    pub version: u32,
    /// Which driver.
    pub driver: DriverId,
    /// What the candidate was priced at.
    pub cost_ms: i64,
}

/// The most moves of one swap; a longer one is not begun.
pub const SWAP_MOVES_MAX: usize = 8;

/// Rides of one place shard that pass their cars on (PROTOCOL 6): each gets the car that the one before it has; the
/// first gets a free one, or the car of the last, which closes a circle. Only the last may be a ride that waits.
///
/// Or the first gets the car of a ride that gives it up, in favour of one at the end that would get none.
///
/// It begins only if all its rides are as the round saw them, and goes on to the next move only once the ride before
/// has its new car, so nobody loses a car for a swap that fails at its beginning.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Swap {
    /// The moves, at most [`SWAP_MOVES_MAX`].
    pub moves: Vec<Move>,
    /// Whose car the first ride gets, if it is neither free nor the last one's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gives_up: Option<GivesUp>,
}

/// A ride that loses its car to one that would get none, and waits again, first in line (see
/// [`SwapRules::give_up_from_ms`]). It keeps its car if anything about it has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct GivesUp {
    /// Which ride.
    pub ride: RideId,
    /// The version of the ride this is valid for.
    pub version: u32,
}

/// What a round decided.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoundResult {
    /// The rides looked at and their versions, longest wait first. Those without a pair had no car left.
    pub looked: Vec<(RideId, u32)>,
    /// The pairs, in the same order.
    pub pairs: Vec<Pair>,
    /// Exchanges between rides whose drivers are on the way: only [`Rematch`] makes them.
    #[serde(default)]
    pub swaps: Vec<Swap>,
    /// Work done: candidates looked at, each time, and entries taken from the search's queue.
    pub steps: u64,
    /// The budget ended before the best was proven; the pairs are the best found.
    pub exhausted: bool,
}

impl RoundResult {
    /// What was decided for the rides of one place shard. Across place shards only free cars move (PROTOCOL 6).
    pub fn of_place(&self, place: ShardId) -> RoundResult {
        let mut part = self.clone();
        part.looked.retain(|(ride, _)| ride.place == place);
        part.pairs.retain(|pair| pair.ride.place == place);
        let is_here = |next: &Move| next.ride.place == place;
        part.swaps.retain(|swap| swap.moves.iter().all(is_here));
        part
    }
}

/// A way to solve rounds.
pub trait Policy: Send + Sync {
    /// Decides a round. The same round gives the same result. Past `budget_steps` the search for something
    /// better ends; one look at every candidate is always taken.
    fn solve(&self, round: &Round, budget_steps: u64) -> RoundResult;

    /// The name it is configured by.
    fn name(&self) -> &'static str;
}

/// Each ride in the order of waiting takes its cheapest car that is left: the baseline everybody has.
#[derive(Debug, Clone, Copy, Default)]
pub struct FirstCome;

/// The cheapest pair of all first, then the cheapest of what is left, and so on.
#[derive(Debug, Clone, Copy, Default)]
pub struct Greedy;

/// As many rides as possible get a car, and of all ways to do that the one of least total cost: exact.
///
/// If the budget ends before, the rides not yet settled get what is left, cheapest pair first, unless plain
/// [`Greedy`] serves more rides, or as many at less cost.
#[derive(Debug, Clone, Copy, Default)]
pub struct Batched;

/// As [`Batched`], and rides whose drivers are on the way take part: their cars are exchanged where [`SwapRules`] say that
/// it pays. A ride that waits may get the car of one on the way, which then gets another one.
#[derive(Debug, Clone, Copy, Default)]
pub struct Rematch;

/// The policies by name.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum PolicyKind {
    /// [`FirstCome`].
    FirstCome,
    /// [`Greedy`].
    Greedy,
    /// [`Batched`].
    #[default]
    Batched,
    /// [`Rematch`].
    Rematch,
}

/// No policy has this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no policy {found:?}: choose first_come, greedy, batched or rematch")]
pub struct BadPolicy {
    /// The name that was given.
    pub found: String,
}

impl PolicyKind {
    /// All of them, the simplest first.
    pub const ALL: [PolicyKind; 4] = [Self::FirstCome, Self::Greedy, Self::Batched, Self::Rematch];

    /// The policy itself.
    pub fn policy(self) -> &'static dyn Policy {
        match self {
            Self::FirstCome => &FirstCome,
            Self::Greedy => &Greedy,
            Self::Batched => &Batched,
            Self::Rematch => &Rematch,
        }
    }
}

impl fmt::Display for PolicyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.policy().name())
    }
}

impl FromStr for PolicyKind {
    type Err = BadPolicy;

    fn from_str(name: &str) -> Result<Self, BadPolicy> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.policy().name() == name)
            .ok_or_else(|| BadPolicy { found: name.into() })
    }
}

impl Policy for FirstCome {
    fn solve(&self, round: &Round, _budget_steps: u64) -> RoundResult {
        for_waiting(round, assignment::first_come)
    }

    fn name(&self) -> &'static str {
        "first_come"
    }
}

impl Policy for Greedy {
    fn solve(&self, round: &Round, _budget_steps: u64) -> RoundResult {
        for_waiting(round, assignment::greedy)
    }

    fn name(&self) -> &'static str {
        "greedy"
    }
}

impl Policy for Batched {
    fn solve(&self, round: &Round, budget_steps: u64) -> RoundResult {
        for_waiting(round, |costs| assignment::exact(costs, budget_steps))
    }

    fn name(&self) -> &'static str {
        "batched"
    }
}

/// What the last round leaves for the next one: what each ride paid, and each driver's price. As large as that round.
///
/// It only saves work: whatever it holds, the result is the best. Which of several equally good ones it is may depend on
/// it, so who replays choices keeps it, too.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    unserved: i64,
    /// Drivers in the order of their names, and their prices.
    prices: Vec<(DriverId, i64)>,
    /// Rides by id, what each paid, and for whom: a place in `prices`, or [`NONE`].
    paid: Vec<(RideId, i64, u32)>,
}

impl Memory {
    /// Where to begin with a round whose drivers are in the order of their names, too.
    fn start(&self, ordered: &Ordered<'_>) -> Start {
        let columns = ordered.drivers.len();
        let mut prices = vec![0; columns];
        // Of the drivers that are known from before: where they are now.
        let mut column_of = vec![NONE; self.prices.len()];
        let mut before = self.prices.iter().enumerate().peekable();
        for column in 0..columns as u32 {
            let driver = ordered.driver(column);
            while before.next_if(|(_, (known, _))| known < driver).is_some() {}
            if let Some((at, (_, price))) = before.next_if(|(_, (known, _))| known == driver) {
                prices[column as usize] = *price;
                column_of[at] = column;
            }
        }
        let paid = |row: usize| {
            let ride = ordered.ask(row).ride;
            let at = self
                .paid
                .binary_search_by_key(&ride, |(ride, ..)| *ride)
                .ok()?;
            let (_, ms, driver) = self.paid[at];
            Some((ms, column_of.get(driver as usize).copied().unwrap_or(NONE)))
        };
        let (pays, had) = (0..ordered.rows.len())
            .map(|row| paid(row).unwrap_or((NEW_ROW, NONE)))
            .unzip();
        Start {
            unserved: self.unserved,
            prices,
            had,
            pays,
        }
    }

    /// What the next round is to know of this one.
    fn of(ordered: &Ordered<'_>, next: &Start) -> Memory {
        let drivers =
            (0..ordered.drivers.len() as u32).map(|column| ordered.driver(column).clone());
        let paid = next.pays.iter().zip(&next.had).enumerate();
        let mut paid: Vec<(RideId, i64, u32)> = paid
            .map(|(row, (pays, had))| (ordered.ask(row).ride, *pays, *had))
            .collect();
        paid.sort_unstable();
        Memory {
            unserved: next.unserved,
            prices: drivers.zip(next.prices.iter().copied()).collect(),
            paid,
        }
    }
}

impl Batched {
    /// As [`Policy::solve`], going on from where the last round ended. Pays when most of the round is as it was.
    pub fn solve_from(&self, round: &Round, budget_steps: u64, memory: &mut Memory) -> RoundResult {
        let ordered = Ordered::new(round, &Holders::pinned(round), false);
        let start = memory.start(&ordered);
        let (served, next) = assignment::exact_from(&ordered.costs, budget_steps, &start);
        *memory = Memory::of(&ordered, &next);
        ordered.told(&served)
    }
}

impl Policy for Rematch {
    fn solve(&self, round: &Round, budget_steps: u64) -> RoundResult {
        rematch::solve(round, budget_steps)
    }

    fn name(&self) -> &'static str {
        "rematch"
    }
}

/// Only rides that wait get cars, and only free ones.
fn for_waiting(round: &Round, solve: impl FnOnce(&Costs) -> Served) -> RoundResult {
    let ordered = Ordered::new(round, &Holders::pinned(round), false);
    ordered.told(&solve(&ordered.costs))
}

/// A row of the assignment.
#[derive(Clone, Copy)]
enum Row {
    /// A ride that waits: its place in [`Round::rides`].
    Waiting(usize),
    /// A ride with a driver on the way: its place in [`Round::on_the_way`].
    Going(usize),
}

impl Row {
    fn ask(self, round: &Round) -> &RideAsk {
        match self {
            Row::Waiting(at) => &round.rides[at],
            Row::Going(at) => &round.on_the_way[at].ask,
        }
    }
}

/// A round as numbers in an order of its own, so that ties do not depend on how the snapshot was listed: rows are
/// the rides by (since, id), columns the drivers by id.
struct Ordered<'a> {
    round: &'a Round,
    rows: Vec<Row>,
    /// Column to index into [`Round::drivers`].
    drivers: Vec<u32>,
    costs: Costs,
}

/// The places of drivers in the order of their names, equal ones as they were listed.
fn by_name(drivers: &[DriverId]) -> Vec<u32> {
    // Names of one city begin alike. What follows is compared as a number first: eight letters decide nearly always, and are
    // at hand where a name is elsewhere in memory.
    let names = || drivers.iter().map(|driver| driver.as_str().as_bytes());
    let first = names().next().unwrap_or_default();
    let alike = names().fold(first.len(), |alike, name| {
        let same = first[..alike].iter().zip(name).take_while(|(a, b)| a == b);
        same.count()
    });
    let head = |name: &[u8]| {
        let mut head = [0_u8; 8];
        let rest = &name[alike..];
        let letters = rest.len().min(head.len());
        head[..letters].copy_from_slice(&rest[..letters]);
        u64::from_be_bytes(head)
    };
    let mut order: Vec<(u64, u32)> = names().map(head).zip(0..).collect();
    let name = |at: u32| drivers[at as usize].as_str();
    order.sort_unstable_by(|(head_a, a), (head_b, b)| {
        head_a
            .cmp(head_b)
            .then_with(|| name(*a).cmp(name(*b)))
            .then(a.cmp(b))
    });
    order.into_iter().map(|(_, driver)| driver).collect()
}

impl<'a> Ordered<'a> {
    fn new(round: &'a Round, holders: &Holders, with_going: bool) -> Self {
        let mut rows: Vec<Row> = (0..round.rides.len()).map(Row::Waiting).collect();
        if with_going {
            let going = round.on_the_way.iter().enumerate();
            let takes_part = going.filter(|(at, going)| holders.takes_part(*at, going.driver));
            rows.extend(takes_part.map(|(at, _)| Row::Going(at)));
        }
        rows.sort_by_key(|row| {
            let ask = row.ask(round);
            (ask.since, ask.ride)
        });
        rows.truncate(ROUND_RIDES_MAX);

        let known = round.drivers.len().min(ROUND_DRIVERS_MAX);
        let drivers = by_name(&round.drivers[..known]);
        let mut column_of = vec![0_u32; known];
        for (column, driver) in drivers.iter().enumerate() {
            column_of[*driver as usize] = column as u32;
        }

        let mut costs = Costs::new(known);
        for row in &rows {
            match row {
                Row::Waiting(at) => {
                    let candidates = round.candidates.get(*at).map_or(&[][..], Vec::as_slice);
                    let edges = candidates.iter().filter_map(|candidate| {
                        let column = column_of.get(candidate.driver as usize)?;
                        let fits = (-COST_MS_MAX..=COST_MS_MAX).contains(&candidate.cost)
                            && holders.lends(candidate.driver);
                        let felt_ms = |cost| match with_going {
                            true => round.felt_ms(&round.rides[*at], cost),
                            false => cost,
                        };
                        fits.then(|| (*column, felt_ms(candidate.cost)))
                    });
                    costs.push_row(edges, None);
                }
                Row::Going(at) => {
                    let going = &round.on_the_way[*at];
                    let edges = going.edges(round, holders).filter_map(|(driver, cost)| {
                        Some((*column_of.get(driver as usize)?, cost))
                    });
                    costs.push_row(edges, column_of.get(going.driver as usize).copied());
                    if going.may_lose(&round.rules) {
                        costs.may_lose(i64::try_from(round.rules.give_up_gain_ms).unwrap_or(0));
                    }
                }
            }
        }
        Ordered {
            round,
            rows,
            drivers,
            costs,
        }
    }

    fn ask(&self, row: usize) -> &RideAsk {
        self.rows[row].ask(self.round)
    }

    fn driver(&self, column: u32) -> &DriverId {
        &self.round.drivers[self.drivers[column as usize] as usize]
    }

    /// The edge to the driver that is on the way to this row's ride.
    fn own_edge(&self, row: usize) -> Option<u32> {
        self.costs.own_edge(row)
    }

    /// By how many seconds a ride on the way is fetched sooner by the car of `edge` than by its own; 0 for one that waits.
    fn gain_s(&self, row: usize, edge: u32) -> i64 {
        let Row::Going(at) = self.rows[row] else {
            return 0;
        };
        // Its other cars cost the least gain more than they need (see `OnTheWay::edges`).
        let driver = self.drivers[self.costs.edge(edge).0 as usize];
        let going = &self.round.on_the_way[at];
        let needs_ms = going
            .candidates
            .iter()
            .filter(|c| c.driver == driver)
            .map(|c| c.cost)
            .min();
        (going.remaining_ms - needs_ms.unwrap_or(going.remaining_ms)) / 1_000
    }

    /// Pairs for the rides that wait and get a free car.
    fn told(&self, served: &Served) -> RoundResult {
        let waiting = || {
            let rows = self.rows.iter().enumerate();
            rows.filter(|(_, row)| matches!(row, Row::Waiting(_)))
        };
        let mut is_held = vec![false; self.drivers.len()];
        for row in 0..self.rows.len() {
            if let Some(own) = self.own_edge(row) {
                is_held[self.costs.edge(own).0 as usize] = true;
            }
        }
        RoundResult {
            looked: waiting()
                .map(|(_, row)| row.ask(self.round))
                .map(|ask| (ask.ride, ask.version))
                .collect(),
            pairs: waiting()
                .filter_map(|(at, row)| {
                    let ask = row.ask(self.round);
                    let (column, cost_ms) = self.costs.edge(served.edges[at]?);
                    (!is_held[column as usize]).then(|| Pair {
                        ride: ask.ride,
                        version: ask.version,
                        driver: self.driver(column).clone(),
                        cost_ms,
                    })
                })
                .collect(),
            swaps: Vec::new(),
            steps: served.steps,
            exhausted: served.exhausted,
        }
    }
}
