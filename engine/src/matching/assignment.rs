//! Which row gets which column, on plain numbers?
//!
//! Rows are rides, columns drivers, edges candidates. [`exact`] is a shortest-augmenting-path solver in the manner
//! of Jonker and Volgenant for sparse costs: rows first bid for columns, in large contested problems by an auction that
//! finds good prices quickly, then those left over search, each by Dijkstra's algorithm over reduced costs.
//!
//! Holds in between: `price <= 0`, and 0 for a column nobody has; a row's column is its cheapest after prices. So
//! what is assigned is the best for the rows settled so far, and giving up at any moment leaves a valid result.
//!
//! Every row also has a way out of its own, to stay unserved, at a price above all that can be saved elsewhere.
//! That makes every problem solvable, and the largest number of served rows come first. A row that owns an edge (a
//! ride whose driver is on the way) has no such way out: it is always served, which its own edge makes possible.

mod lift;

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Candidates by row, the cheapest first.
pub(super) struct Costs {
    columns: usize,
    /// Row to its first edge; one more than there are rows.
    starts: Vec<u32>,
    column: Vec<u32>,
    cost: Vec<i64>,
    /// Row to the edge it has already, or [`NONE`]. No two rows own one column.
    own: Vec<u32>,
    /// Row to what it costs to leave it unserved besides what that costs anybody; [`NEVER`]: it must be served.
    out: Vec<i64>,
    /// The row before, sorted: kept for its memory.
    row: Vec<(i64, u32)>,
    /// Column to the last row (plus one) that named it.
    named_by: Vec<u32>,
}

impl Costs {
    /// No rows yet.
    pub(super) fn new(columns: usize) -> Self {
        Costs {
            columns,
            starts: vec![0],
            column: Vec::new(),
            cost: Vec::new(),
            own: Vec::new(),
            out: Vec::new(),
            row: Vec::new(),
            named_by: vec![0; columns],
        }
    }

    /// Adds a row of (column, cost) in any order. Of a column named twice the cheaper edge stays, and edges beyond
    /// the numbers of `u32` are left out. `own` is the column that the row has already: it must be among the edges.
    pub(super) fn push_row(&mut self, edges: impl Iterator<Item = (u32, i64)>, own: Option<u32>) {
        self.row.clear();
        self.row.extend(edges.map(|(column, cost)| (cost, column)));
        self.row.sort_unstable();
        let this = self.starts.len() as u32;
        let mut own_edge = NONE;
        for (cost, column) in &self.row {
            let named_by = &mut self.named_by[*column as usize];
            if *named_by != this && self.column.len() < NONE as usize {
                *named_by = this;
                if own == Some(*column) {
                    own_edge = self.column.len() as u32;
                }
                self.column.push(*column);
                self.cost.push(*cost);
            }
        }
        self.own.push(own_edge);
        self.out.push(if own_edge == NONE { 0 } else { NEVER });
        self.starts.push(self.column.len() as u32);
    }

    /// The row pushed last may lose what it has, if that saves more than `ms`.
    pub(super) fn may_lose(&mut self, ms: i64) {
        if let Some(out) = self.out.last_mut() {
            *out = ms;
        }
    }

    /// Must this row be served?
    pub(super) fn is_kept(&self, row: usize) -> bool {
        self.out[row] == NEVER
    }

    /// An edge's column and cost.
    pub(super) fn edge(&self, edge: u32) -> (u32, i64) {
        (self.column[edge as usize], self.cost[edge as usize])
    }

    /// The edge a row has already.
    pub(super) fn own_edge(&self, row: usize) -> Option<u32> {
        Some(self.own[row]).filter(|edge| *edge != NONE)
    }

    fn rows(&self) -> usize {
        self.starts.len() - 1
    }

    fn edges_of(&self, row: u32) -> std::ops::Range<usize> {
        self.starts[row as usize] as usize..self.starts[row as usize + 1] as usize
    }
}

/// What was decided.
pub(super) struct Served {
    /// Row to the edge it is served by.
    pub(super) edges: Vec<Option<u32>>,
    pub(super) steps: u64,
    pub(super) exhausted: bool,
}

impl Served {
    /// Larger is better: rows served, then what they cost.
    pub(super) fn worth(&self, costs: &Costs) -> (usize, i64) {
        let served = self.edges.iter().flatten();
        (
            served.clone().count(),
            -served.map(|edge| costs.cost[*edge as usize]).sum::<i64>(),
        )
    }
}

/// Each row in turn takes its cheapest free column.
pub(super) fn first_come(costs: &Costs) -> Served {
    let mut taken = vec![false; costs.columns];
    let mut steps = 0;
    let edges = (0..costs.rows() as u32)
        .map(|row| {
            let edge = costs.edges_of(row).find(|edge| {
                steps += 1;
                !taken[costs.column[*edge] as usize]
            })?;
            taken[costs.column[edge] as usize] = true;
            Some(edge as u32)
        })
        .collect();
    Served {
        edges,
        steps,
        exhausted: false,
    }
}

/// The cheapest edge of all first. Rows that own an edge keep it.
pub(super) fn greedy(costs: &Costs) -> Served {
    let own = |edge: &u32| (*edge != NONE).then_some(*edge);
    let mut served = Served {
        edges: costs.own.iter().map(own).collect(),
        steps: 0,
        exhausted: false,
    };
    fill_greedily(costs, &mut served);
    served
}

/// Serves rows that have nothing from columns that are free, the cheapest edge first, then the earlier row.
pub(super) fn fill_greedily(costs: &Costs, served: &mut Served) {
    let mut taken = vec![false; costs.columns];
    for edge in served.edges.iter().flatten() {
        taken[costs.column[*edge as usize] as usize] = true;
    }
    let mut open: Vec<(i64, u32, u32)> = Vec::new();
    for row in 0..costs.rows() as u32 {
        if served.edges[row as usize].is_none() {
            open.extend(
                costs
                    .edges_of(row)
                    .map(|edge| (costs.cost[edge], row, edge as u32)),
            );
        }
    }
    // Edges of a row are numbered cheapest first, by column among equals.
    open.sort_unstable();
    served.steps += open.len() as u64;
    for (_, row, edge) in open {
        let column = costs.column[edge as usize] as usize;
        if !taken[column] && served.edges[row as usize].is_none() {
            taken[column] = true;
            served.edges[row as usize] = Some(edge);
        }
    }
}

/// Where a search may begin that has been made before on nearly the same: prices and who had what. Any prices do, good
/// ones save work; the result is the best in any case.
#[derive(Default)]
pub(super) struct Start {
    /// What it cost to leave a row unserved.
    pub(super) unserved: i64,
    /// Column to its price; those left out have none.
    pub(super) prices: Vec<i64>,
    /// Row to the column it had, or [`NONE`].
    pub(super) had: Vec<u32>,
    /// Row to what its column cost it with its price, or staying unserved; [`NEW_ROW`] where that is not known.
    pub(super) pays: Vec<i64>,
}

/// A row that no search has settled before.
pub(super) const NEW_ROW: i64 = i64::MIN;

/// The most rows served, at the least cost; or what is found when `budget_steps` are used up.
pub(super) fn exact(costs: &Costs, budget_steps: u64) -> Served {
    exact_from(costs, budget_steps, &Start::default()).0
}

/// The same, beginning at `start`; also gives where the next search may begin, unless the budget ended.
pub(super) fn exact_from(costs: &Costs, budget_steps: u64, start: &Start) -> (Served, Start) {
    let mut solver = Solver::new(costs, budget_steps, start.unserved);
    let unsettled = solver.begin(start);
    // Most prices of the last round are right still: what a haggle would find is nearly known, and it would unsettle many.
    let is_new = unsettled.len() > costs.rows() / 2;
    let mut left = solver.bid(unsettled);
    // Where few are left searching is quick, and where most are there is nothing to haggle about.
    let is_contested = (costs.rows() / 16..costs.rows() / 2).contains(&left.len());
    if is_new && is_contested && costs.rows() >= HAGGLE_ROWS_LEAST {
        left = solver.haggle(left);
        left = solver.bid(left);
    }
    let exhausted = left
        .into_iter()
        .any(|row| solver.search(row) == Outcome::OutOfBudget)
        || solver.lift_prices() == Outcome::OutOfBudget;
    let next = match exhausted {
        true => Start::default(),
        false => solver.next_start(),
    };
    (finish(costs, &solver, exhausted), next)
}

/// Fills in what a budget left over, and gives the longest wait its due.
fn finish(costs: &Costs, solver: &Solver<'_>, exhausted: bool) -> Served {
    let mut served = solver.served();
    if exhausted {
        served.exhausted = true;
        let keeps_all =
            (0..costs.rows()).all(|row| costs.own[row] == NONE || served.edges[row].is_some());
        if keeps_all {
            fill_greedily(costs, &mut served);
        }
        let mut plain = greedy(costs);
        served.steps += plain.steps;
        if !keeps_all || plain.worth(costs) > served.worth(costs) {
            plain.steps = served.steps;
            plain.exhausted = true;
            served = plain;
        }
    }
    oldest_first(costs, &mut served);
    served
}

/// Where an unserved row could have the column of a later row at the same cost, it takes it: neither the number
/// served nor the total changes. One pass is enough, as the row that loses comes later and columns move forwards.
fn oldest_first(costs: &Costs, served: &mut Served) {
    let mut row_of = vec![NONE; costs.columns];
    for (row, edge) in served.edges.iter().enumerate() {
        if let Some(edge) = edge {
            row_of[costs.column[*edge as usize] as usize] = row as u32;
        }
    }
    for row in 0..costs.rows() as u32 {
        if served.edges[row as usize].is_some() {
            continue;
        }
        served.steps += costs.edges_of(row).len() as u64;
        let latest = costs
            .edges_of(row)
            .filter_map(|edge| {
                let later = row_of[costs.column[edge] as usize];
                let its = (*served.edges.get(later as usize)?)? as usize;
                let may_wait = costs.own[later as usize] == NONE;
                (later > row && may_wait && costs.cost[its] == costs.cost[edge])
                    .then_some((later, edge))
            })
            .max();
        if let Some((later, edge)) = latest {
            served.edges[later as usize] = None;
            served.edges[row as usize] = Some(edge as u32);
            row_of[costs.column[edge] as usize] = row;
        }
    }
}

/// No row, no edge.
pub(super) const NONE: u32 = u32::MAX;

/// What no way may cost: that of a row out that has none.
const NEVER: i64 = 1 << 61;

/// How many times over the bids may look at all edges. More bidding leaves fewer rows to search for, but two rows
/// that want one column may outbid each other for long by very little.
const BIDS_LOOKS_MAX: u64 = 8;

/// Smaller problems are searched through as quickly as haggled over. In tests all are large, so that the oracles see it.
const HAGGLE_ROWS_LEAST: usize = if cfg!(test) { 2 } else { 256 };

/// How many times over the haggling may look at all edges.
const HAGGLE_LOOKS_MAX: u64 = 60;

/// The least raises of a haggle, as parts of the spread of a row's costs.
const RAISES: [i64; 3] = [4, 16, 64];

/// So many spreads above its cheapest candidate a row gives up the haggle. Whether it stays unserved, a search decides.
const PATIENCE_SPREADS: i64 = 25;

#[derive(PartialEq)]
enum Outcome {
    /// The row has a column or stays unserved for good.
    Settled,
    /// The row has neither, and nothing else has changed.
    OutOfBudget,
}

/// All that a search asks of a column, in one half of a cache line.
#[derive(Clone, Copy)]
#[repr(align(32))]
struct Column {
    /// What its owner is asked to pay less: at most 0.
    price: i64,
    /// Its row.
    row: u32,
    /// The last search that has seen it; what follows is that search's own.
    seen: u32,
    distance: i64,
    /// The edge it was reached by, and whose.
    edge: u32,
    from: u32,
}

struct Solver<'a> {
    costs: &'a Costs,
    budget_steps: u64,
    steps: u64,
    /// What staying unserved costs.
    unserved: i64,
    columns: Vec<Column>,
    /// Row to its edge.
    edge_of: Vec<u32>,
    /// The number of the search.
    search: u32,
    queue: Frontier,
    settled: Vec<u32>,
}

/// Columns that a search has reached and not looked at, the nearest first.
#[derive(Default)]
struct Frontier {
    heap: BinaryHeap<Reverse<(i64, u32)>>,
    /// Those as near as the last that was given out: many are, and need no heap.
    level: Vec<u32>,
    distance: i64,
}

impl Frontier {
    fn clear(&mut self) {
        self.heap.clear();
        self.level.clear();
        self.distance = i64::MIN;
    }

    fn push(&mut self, distance: i64, column: u32) {
        if distance == self.distance {
            self.level.push(column);
        } else {
            self.heap.push(Reverse((distance, column)));
        }
    }

    fn pop(&mut self) -> Option<(i64, u32)> {
        if let Some(column) = self.level.pop() {
            return Some((self.distance, column));
        }
        let Reverse((distance, column)) = self.heap.pop()?;
        self.distance = distance;
        Some((distance, column))
    }
}

/// Where a search ends.
#[derive(Clone, Copy)]
enum End {
    Column(u32),
    Unserved(u32),
}

impl<'a> Solver<'a> {
    fn new(costs: &'a Costs, budget_steps: u64, unserved_least: i64) -> Self {
        let outs = costs.out.iter().filter(|out| **out != NEVER);
        let (least, most) = costs
            .cost
            .iter()
            .chain(outs)
            .fold((0, 0), |(least, most), cost| {
                (cost.min(&least).to_owned(), *cost.max(&most))
            });
        // Serving one row more may make every other one dearer by `most - least` and must still pay. At most twice
        // (2^33 + 1) * (2^20 + 1) + 2^33: far from the end of 64 bits, as are all sums of two such. Twice, so that the
        // next round, which may be a little larger, can go on from this one's prices.
        let unserved = (most - least + 1) * (costs.rows() as i64 + 1) + most;
        let column = Column {
            price: 0,
            row: NONE,
            seen: 0,
            distance: 0,
            edge: NONE,
            from: NONE,
        };
        Solver {
            costs,
            budget_steps,
            steps: 0,
            unserved: if unserved <= unserved_least {
                unserved_least
            } else {
                2 * unserved
            },
            columns: vec![column; costs.columns],
            edge_of: vec![NONE; costs.rows()],
            search: 0,
            queue: Frontier::default(),
            settled: Vec::new(),
        }
    }

    fn served(&self) -> Served {
        Served {
            edges: self
                .edge_of
                .iter()
                .map(|edge| (*edge != NONE).then_some(*edge))
                .collect(),
            steps: self.steps,
            exhausted: false,
        }
    }

    /// Takes over prices, and who had what where that is still the best at these prices. Returns the other rows.
    fn begin(&mut self, start: &Start) -> Vec<u32> {
        for (column, price) in self.columns.iter_mut().zip(&start.prices) {
            column.price = (*price).clamp(-2 * self.unserved, 0);
        }
        // A column that comes to rows cheaper than what they have costs as much as they would pay for it: else it would
        // unsettle them all.
        for (row, pays) in start.pays.iter().enumerate().take(self.costs.rows()) {
            if *pays != NEW_ROW {
                for edge in self.costs.edges_of(row as u32) {
                    let at = &mut self.columns[self.costs.column[edge] as usize];
                    at.price = at.price.min(self.costs.cost[edge] - pays);
                }
            }
        }
        let mut unsettled = Vec::new();
        for row in 0..self.costs.rows() as u32 {
            let had = start.had.get(row as usize).copied().unwrap_or(NONE);
            let (mut least, mut its) = (self.way_out(row), None);
            if had != NONE {
                for edge in self.costs.edges_of(row) {
                    let column = self.costs.column[edge];
                    let cost = self.costs.cost[edge] - self.columns[column as usize].price;
                    least = least.min(cost);
                    if column == had {
                        its = Some((edge as u32, cost));
                    }
                }
                self.steps += self.costs.edges_of(row).len() as u64;
            }
            match its {
                Some((edge, cost)) if cost == least && self.columns[had as usize].row == NONE => {
                    self.columns[had as usize].row = row;
                    self.edge_of[row as usize] = edge;
                }
                _ => unsettled.push(row),
            }
        }
        unsettled
    }

    fn next_start(&self) -> Start {
        let had = self.edge_of.iter().map(|edge| {
            let column = self.costs.column.get(*edge as usize);
            column.copied().unwrap_or(NONE)
        });
        let pays = self.edge_of.iter().map(|edge| {
            let column = self.costs.column.get(*edge as usize);
            column.map_or(self.unserved, |column| {
                self.costs.cost[*edge as usize] - self.columns[*column as usize].price
            })
        });
        Start {
            unserved: self.unserved,
            pays: pays.collect(),
            prices: self.columns.iter().map(|column| column.price).collect(),
            had: had.collect(),
        }
    }

    /// What it costs to leave a row unserved.
    fn way_out(&self, row: u32) -> i64 {
        match self.costs.out[row as usize] {
            NEVER => NEVER,
            more => self.unserved + more,
        }
    }

    /// Brings prices near to where they will end, among `rows`, which have nothing: rows outbid each other by more than
    /// they must, by much at first, then by less (Bertsekas' auction with a scaled least raise, "Auction algorithms",
    /// 1992). Then each row keeps only what is exactly its best choice; returns the others.
    ///
    /// A look at an edge costs a quarter of what it does in a search, and searches are short where prices are good.
    fn haggle(&mut self, mut rows: Vec<u32>) -> Vec<u32> {
        if self.steps >= self.budget_steps {
            return rows;
        }
        let spread = self.spread();
        let patience = spread * PATIENCE_SPREADS;
        let looks = self.costs.column.len() as u64 * HAGGLE_LOOKS_MAX;
        let steps_max = self.budget_steps.min(self.steps + looks);
        for (at, part) in RAISES.iter().enumerate() {
            if at > 0 {
                rows = self.start_again();
            }
            self.outbid(rows, (spread / part).max(1), patience, steps_max);
            rows = Vec::new();
            if self.steps >= steps_max {
                break;
            }
        }
        self.take_back()
    }

    /// How far a row's dearest candidate is from its cheapest, on average.
    fn spread(&self) -> i64 {
        let of = |row: u32| {
            let costs = &self.costs.cost[self.costs.edges_of(row)];
            match (costs.first(), costs.last()) {
                (Some(least), Some(most)) => most - least,
                _ => 0,
            }
        };
        let sum: i64 = (0..self.costs.rows() as u32).map(of).sum();
        sum / self.costs.rows().max(1) as i64
    }

    /// All rows give back what they have, and who was wanted keeps its price.
    fn start_again(&mut self) -> Vec<u32> {
        for column in &mut self.columns {
            if column.row == NONE {
                column.price = 0;
            }
            column.row = NONE;
        }
        self.edge_of.fill(NONE);
        (0..self.costs.rows() as u32).collect()
    }

    /// Each row takes its cheapest column from whoever has it and lowers the price by `raise` more than it must; who is
    /// pushed out bids at once. Who would have to pay `patience` more than for its cheapest candidate gives up, unless it
    /// owns an edge.
    fn outbid(&mut self, mut rows: Vec<u32>, raise: i64, patience: i64, steps_max: u64) {
        rows.reverse();
        while let Some(row) = rows.pop() {
            if self.steps >= steps_max {
                return;
            }
            let edges = self.costs.edges_of(row);
            let Some(cheapest) = self.costs.cost[edges.clone()].first() else {
                continue;
            };
            let most = match self.costs.own[row as usize] {
                NONE => cheapest + patience,
                _ => NEVER,
            };
            let (mut first, mut second) = ((most, NONE), most);
            for edge in edges {
                self.steps += 1;
                let cost = self.costs.cost[edge];
                if cost >= second {
                    break; // prices only add to it, and the edges after cost more
                }
                let cost = cost - self.columns[self.costs.column[edge] as usize].price;
                if cost < first.0 {
                    (first, second) = ((cost, edge as u32), first.0);
                } else if cost < second {
                    second = cost;
                }
            }
            if first.1 == NONE {
                continue;
            }
            let column = &mut self.columns[self.costs.column[first.1 as usize] as usize];
            column.price -= second.min(first.0 + patience) - first.0 + raise;
            let out = std::mem::replace(&mut column.row, row);
            self.edge_of[row as usize] = first.1;
            if out != NONE {
                self.edge_of[out as usize] = NONE;
                rows.push(out);
            }
        }
    }

    /// Rows keep only what is exactly their best choice; returns those who have nothing.
    fn take_back(&mut self) -> Vec<u32> {
        let mut rows = Vec::new();
        for row in 0..self.costs.rows() as u32 {
            let edge = self.edge_of[row as usize];
            if edge == NONE {
                rows.push(row);
                continue;
            }
            let pays = |edge: usize| {
                self.costs.cost[edge] - self.columns[self.costs.column[edge] as usize].price
            };
            let its = pays(edge as usize);
            let mut edges = self.costs.edges_of(row);
            self.steps += edges.len() as u64;
            if its > self.way_out(row) || edges.any(|other| pays(other) < its) {
                self.columns[self.costs.column[edge as usize] as usize].row = NONE;
                self.edge_of[row as usize] = NONE;
                rows.push(row);
            }
        }
        rows
    }

    /// Rows bid for columns; returns those left without, who are neither served nor settled.
    ///
    /// A row takes its cheapest column, whoever has it, and lowers the price to where its second choice would be
    /// as good. Who is pushed out bids again at once if a price has moved, else in the next pass.
    fn bid(&mut self, rows: Vec<u32>) -> Vec<u32> {
        let looks = self.costs.column.len() as u64 * BIDS_LOOKS_MAX;
        let steps_max = self.budget_steps.min(self.steps + looks);
        let mut left = Vec::new();
        let mut row_next = None;
        let mut rows = rows.into_iter();
        while let Some(row) = row_next.take().or_else(|| rows.next()) {
            if self.steps >= steps_max {
                left.push(row);
                continue;
            }
            // The way out is a choice like any other, but never taken here: it costs nobody anything to wait.
            let out = (self.way_out(row), NONE);
            let (mut first, mut second) = (out, out);
            for edge in self.costs.edges_of(row) {
                self.steps += 1;
                let cost = self.costs.cost[edge];
                if cost >= second.0 {
                    break; // prices only add to it, and the edges after cost more
                }
                let cost = cost - self.columns[self.costs.column[edge] as usize].price;
                if cost < first.0 {
                    (first, second) = ((cost, edge as u32), first);
                } else if cost < second.0 {
                    second = (cost, edge as u32);
                }
            }
            if first.1 == NONE {
                left.push(row);
                continue;
            }
            // Without a second choice or a way out any price is true; this one keeps others away.
            second.0 = second.0.min(first.0 + self.unserved);
            let mut edge = first.1;
            let mut column = self.costs.column[edge as usize] as usize;
            let moved = first.0 < second.0;
            if moved {
                self.columns[column].price -= second.0 - first.0;
            } else if self.columns[column].row != NONE && second.1 != NONE {
                edge = second.1;
                column = self.costs.column[edge as usize] as usize;
            }
            let out = std::mem::replace(&mut self.columns[column].row, row);
            self.edge_of[row as usize] = edge;
            if out != NONE {
                self.edge_of[out as usize] = NONE;
                if moved {
                    row_next = Some(out);
                } else {
                    left.push(out);
                }
            }
        }
        left.sort_unstable();
        left
    }

    /// Finds the cheapest way to settle one more row: along a path of rows that each give their column to the one
    /// before and take another, to a free column or to a row that is better left unserved.
    fn search(&mut self, root: u32) -> Outcome {
        self.search += 1;
        self.queue.clear();
        self.settled.clear();
        let (mut best, mut end) = (self.way_out(root), End::Unserved(root));
        let (mut row, mut base) = (root, 0);
        loop {
            // What a column costs from here is at least base + cost, as prices are at most 0.
            for edge in self.costs.edges_of(row) {
                self.steps += 1;
                let distance = base + self.costs.cost[edge];
                if distance >= best {
                    break;
                }
                let column = self.costs.column[edge];
                let at = &mut self.columns[column as usize];
                let distance = distance - at.price;
                if distance >= best {
                    continue;
                }
                if at.row == NONE {
                    (best, end) = (distance, End::Column(column));
                } else if at.seen != self.search || distance < at.distance {
                    at.seen = self.search;
                    at.distance = distance;
                    self.queue.push(distance, column);
                } else {
                    continue;
                }
                (at.edge, at.from) = (edge as u32, row);
            }
            let out = base + self.way_out(row);
            if out < best {
                (best, end) = (out, End::Unserved(row));
            }
            if self.steps >= self.budget_steps {
                return Outcome::OutOfBudget;
            }
            let Some((distance, column)) = self.nearest_below(best) else {
                break;
            };
            self.settled.push(column);
            let at = &self.columns[column as usize];
            row = at.row;
            let edge = self.edge_of[row as usize] as usize;
            base = distance - (self.costs.cost[edge] - at.price);
        }
        for column in &self.settled {
            let at = &mut self.columns[*column as usize];
            at.price += at.distance - best;
        }
        self.hand_over(root, end);
        Outcome::Settled
    }

    /// Takes the nearest column out of the queue, if it is nearer than `best`.
    fn nearest_below(&mut self, best: i64) -> Option<(i64, u32)> {
        loop {
            let (distance, column) = self.queue.pop()?;
            self.steps += 1;
            if distance == self.columns[column as usize].distance {
                return Some((distance, column)).filter(|_| distance < best);
            } // else it has been reached on a shorter way since
        }
    }

    /// Walks back from the end of a search: each row on the way takes the column it was reached through.
    fn hand_over(&mut self, root: u32, end: End) {
        let mut column = match end {
            End::Column(column) => column,
            End::Unserved(row) => {
                let edge = std::mem::replace(&mut self.edge_of[row as usize], NONE);
                if row == root {
                    return;
                }
                self.costs.column[edge as usize]
            }
        };
        loop {
            let at = &mut self.columns[column as usize];
            let (edge, row) = (at.edge, at.from);
            at.row = row;
            let before = std::mem::replace(&mut self.edge_of[row as usize], edge);
            if row == root {
                return;
            }
            column = self.costs.column[before as usize];
        }
    }
}
