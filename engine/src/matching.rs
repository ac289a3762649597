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
#[cfg(test)]
mod tests;

use std::fmt;
use std::str::FromStr;

use cabrank_events::event::Move;
use cabrank_events::{DriverId, RideId, Time};
use serde::{Deserialize, Serialize};

use assignment::{Costs, Served};

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
/// It begins only if all its rides are as the round saw them, and goes on to the next move only once the ride before
/// has its new car, so nobody loses a car for a swap that fails at its beginning.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Swap {
    /// The moves, at most [`SWAP_MOVES_MAX`].
    pub moves: Vec<Move>,
}

/// What a round decided.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoundResult {
    /// The rides looked at and their versions, longest wait first. Those without a pair had no car left.
    pub looked: Vec<(RideId, u32)>,
    /// The pairs, in the same order.
    pub pairs: Vec<Pair>,
    /// Exchanges between rides whose drivers are on the way. The policies here make none.
    #[serde(default)]
    pub swaps: Vec<Swap>,
    /// Work done: candidates looked at, each time, and entries taken from the search's queue.
    pub steps: u64,
    /// The budget ended before the best was proven; the pairs are the best found.
    pub exhausted: bool,
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
}

/// No policy has this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no policy {found:?}: choose first_come, greedy or batched")]
pub struct BadPolicy {
    /// The name that was given.
    pub found: String,
}

impl PolicyKind {
    /// All of them, the simplest first.
    pub const ALL: [PolicyKind; 3] = [Self::FirstCome, Self::Greedy, Self::Batched];

    /// The policy itself.
    pub fn policy(self) -> &'static dyn Policy {
        match self {
            Self::FirstCome => &FirstCome,
            Self::Greedy => &Greedy,
            Self::Batched => &Batched,
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
        Ordered::from(round).result(assignment::first_come)
    }

    fn name(&self) -> &'static str {
        "first_come"
    }
}

impl Policy for Greedy {
    fn solve(&self, round: &Round, _budget_steps: u64) -> RoundResult {
        Ordered::from(round).result(assignment::greedy)
    }

    fn name(&self) -> &'static str {
        "greedy"
    }
}

impl Policy for Batched {
    fn solve(&self, round: &Round, budget_steps: u64) -> RoundResult {
        Ordered::from(round).result(|costs| assignment::exact(costs, budget_steps))
    }

    fn name(&self) -> &'static str {
        "batched"
    }
}

/// A round as numbers in an order of its own, so that ties do not depend on how the snapshot was listed: rows are
/// the rides by (since, id), columns the drivers by id.
struct Ordered<'a> {
    round: &'a Round,
    rides: Vec<&'a RideAsk>,
    /// Column to index into [`Round::drivers`].
    drivers: Vec<u32>,
    costs: Costs,
}

impl<'a> From<&'a Round> for Ordered<'a> {
    fn from(round: &'a Round) -> Self {
        let mut rows: Vec<usize> = (0..round.rides.len()).collect();
        rows.sort_unstable_by_key(|row| {
            let ask = &round.rides[*row];
            (ask.since, ask.ride, *row)
        });
        rows.truncate(ROUND_RIDES_MAX);

        let known = round.drivers.len().min(ROUND_DRIVERS_MAX);
        let mut drivers: Vec<u32> = (0..known as u32).collect();
        drivers.sort_unstable_by_key(|driver| (round.drivers[*driver as usize].as_str(), *driver));
        let mut column_of = vec![0_u32; known];
        for (column, driver) in drivers.iter().enumerate() {
            column_of[*driver as usize] = column as u32;
        }

        let mut costs = Costs::new(known);
        for row in &rows {
            let candidates = round.candidates.get(*row).map_or(&[][..], Vec::as_slice);
            costs.push_row(candidates.iter().filter_map(|candidate| {
                let column = column_of.get(candidate.driver as usize)?;
                (-COST_MS_MAX..=COST_MS_MAX)
                    .contains(&candidate.cost)
                    .then_some((*column, candidate.cost))
            }));
        }
        let rides = rows.iter().map(|row| &round.rides[*row]).collect();
        Ordered {
            round,
            rides,
            drivers,
            costs,
        }
    }
}

impl Ordered<'_> {
    fn result(&self, solve: impl FnOnce(&Costs) -> Served) -> RoundResult {
        let served = solve(&self.costs);
        RoundResult {
            looked: self
                .rides
                .iter()
                .map(|ask| (ask.ride, ask.version))
                .collect(),
            pairs: self
                .rides
                .iter()
                .zip(&served.edges)
                .filter_map(|(ask, edge)| {
                    let (column, cost_ms) = self.costs.edge((*edge)?);
                    let driver = self.drivers[column as usize];
                    Some(Pair {
                        ride: ask.ride,
                        version: ask.version,
                        driver: self.round.drivers[driver as usize].clone(),
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
