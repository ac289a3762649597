//! Columns that nobody has must cost nothing: how a [`Solver`] gets there from prices that say otherwise.
//!
//! Holds: a row's column stays its cheapest after prices, or staying unserved is; giving up leaves a valid result.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::{Column, Costs, NONE, Outcome, Solver};

/// For fewer dear columns a look at all others does not pay. In tests it is taken for two already.
const MAKE_CHEAPER_LEAST: usize = if cfg!(test) { 2 } else { 16 };

/// What lifting a price ends with.
#[derive(Clone, Copy)]
enum Lifted {
    /// Nobody wants this column at any price.
    Free(u32),
    /// A row that had none takes one.
    Serves { row: u32, edge: u32 },
}

/// Edges by column.
struct ByColumn {
    starts: Vec<u32>,
    /// Edge and row.
    edges: Vec<(u32, u32)>,
}

impl ByColumn {
    fn of(costs: &Costs) -> ByColumn {
        let mut starts = vec![0_u32; costs.columns + 1];
        for column in &costs.column {
            starts[*column as usize + 1] += 1;
        }
        for column in 0..costs.columns {
            starts[column + 1] += starts[column];
        }
        let mut next = starts.clone();
        let mut edges = vec![(NONE, NONE); costs.column.len()];
        for row in 0..costs.rows() as u32 {
            for edge in costs.edges_of(row) {
                let place = &mut next[costs.column[edge] as usize];
                edges[*place as usize] = (edge as u32, row);
                *place += 1;
            }
        }
        ByColumn { starts, edges }
    }

    fn edges_of(&self, column: u32) -> impl Iterator<Item = (u32, u32)> {
        let (from, to) = (
            self.starts[column as usize],
            self.starts[column as usize + 1],
        );
        self.edges[from as usize..to as usize].iter().copied()
    }
}

impl Solver<'_> {
    /// A column that nobody has must cost nothing (what makes the result the best), but taken over prices may say
    /// otherwise: each such column is offered, cheaper and cheaper, until a row takes it, and that row's column, and
    /// so on, until one costs nothing any more or a row that had none is served.
    ///
    /// Before many are, one search backwards from all the ends there are makes every column as much cheaper as it may be:
    /// then each has a way to an end that costs nothing more, and its own search is short unless another one went there.
    pub(super) fn lift_prices(&mut self) -> Outcome {
        let mut dear = self.dear();
        if dear.is_empty() {
            return Outcome::Settled;
        }
        if dear.len() >= MAKE_CHEAPER_LEAST {
            if self.make_cheaper(dear.len()) == Outcome::OutOfBudget {
                return Outcome::OutOfBudget;
            }
            dear = self.dear();
        }
        let by_column = ByColumn::of(self.costs);
        let mut dear = dear.into_iter();
        match dear.any(|column| self.lift(column, &by_column) == Outcome::OutOfBudget) {
            true => Outcome::OutOfBudget,
            false => Outcome::Settled,
        }
    }

    /// Columns that nobody has and that cost something.
    fn dear(&self) -> Vec<u32> {
        let columns = self.columns.iter().zip(0..);
        columns
            .filter(|(column, _)| column.row == NONE && column.price < 0)
            .map(|(_, at)| at)
            .collect()
    }

    /// Makes every column as much cheaper as it may become while each row keeps what is its best choice: that is how far
    /// it is from the nearest end, a column that becomes free of any price, or a row that has none and takes one. Beyond
    /// the last of `dear` columns all are made cheaper by the same.
    fn make_cheaper(&mut self, mut dear: usize) -> Outcome {
        self.search += 1;
        self.queue.clear();
        let mut queue = std::mem::take(&mut self.queue.heap).into_vec();
        for (at, column) in self.columns.iter_mut().zip(0..) {
            (at.seen, at.distance) = (self.search, -at.price);
            queue.push(Reverse((at.distance, column)));
        }
        for row in 0..self.costs.rows() as u32 {
            if self.edge_of[row as usize] == NONE {
                let out = self.way_out(row);
                let edges = self.costs.edges_of(row);
                self.steps += edges.len() as u64;
                for edge in edges {
                    let column = self.costs.column[edge];
                    let at = &mut self.columns[column as usize];
                    let distance = self.costs.cost[edge] - at.price - out;
                    if distance < at.distance {
                        at.distance = distance;
                        queue.push(Reverse((distance, column)));
                    }
                }
            }
        }
        self.queue.heap = BinaryHeap::from(queue);
        let mut farthest = 0;
        while let Some((distance, column)) = self.queue.pop() {
            self.steps += 1;
            let at = self.columns[column as usize];
            if distance != at.distance || at.seen != self.search {
                continue;
            }
            // Equal entries are looked at once.
            self.columns[column as usize].seen = 0;
            farthest = distance;
            if at.row == NONE {
                dear -= usize::from(at.price < 0);
                if dear == 0 {
                    break;
                }
                continue;
            }
            let its = self.edge_of[at.row as usize] as usize;
            let base = distance - (self.costs.cost[its] - at.price);
            let edges = self.costs.edges_of(at.row);
            self.steps += edges.len() as u64;
            for edge in edges {
                let column = self.costs.column[edge];
                let at = &mut self.columns[column as usize];
                let distance = base + self.costs.cost[edge] - at.price;
                if distance < at.distance {
                    at.distance = distance;
                    self.queue.push(distance, column);
                }
            }
            if self.steps >= self.budget_steps {
                return Outcome::OutOfBudget;
            }
        }
        for column in &mut self.columns {
            column.price += column.distance.min(farthest);
        }
        Outcome::Settled
    }

    fn lift(&mut self, root: u32, by_column: &ByColumn) -> Outcome {
        self.search += 1;
        self.queue.clear();
        self.settled.clear();
        let at = &mut self.columns[root as usize];
        (at.seen, at.distance) = (self.search, 0);
        let (mut best, mut end) = (-at.price, Lifted::Free(root));
        let (mut column, mut base) = (root, 0);
        loop {
            self.settled.push(column);
            let price = self.columns[column as usize].price;
            for (edge, row) in by_column.edges_of(column) {
                self.steps += 1;
                let cost = self.costs.cost[edge as usize] - price;
                let its = self.edge_of[row as usize];
                if its == NONE {
                    let distance = base + cost - self.way_out(row);
                    if distance < best {
                        (best, end) = (distance, Lifted::Serves { row, edge });
                    }
                    continue;
                }
                let other = self.costs.column[its as usize];
                if other == column {
                    continue;
                }
                let at = &mut self.columns[other as usize];
                let pays = self.costs.cost[its as usize] - at.price;
                let distance = base + cost - pays;
                if distance >= best || at.seen == self.search && distance >= at.distance {
                    continue;
                }
                (at.seen, at.distance) = (self.search, distance);
                (at.edge, at.from) = (edge, row);
                if distance - at.price < best {
                    (best, end) = (distance - at.price, Lifted::Free(other));
                }
                self.queue.push(distance, other);
            }
            if self.steps >= self.budget_steps {
                return Outcome::OutOfBudget;
            }
            let Some(nearest) = self.nearest_below(best) else {
                break;
            };
            (base, column) = nearest;
        }
        for column in &self.settled {
            let at = &mut self.columns[*column as usize];
            at.price += best - at.distance;
        }
        self.hand_back(root, end);
        Outcome::Settled
    }

    /// Walks back from the end of a lift to the column it began with: each row on the way takes the column through which
    /// its own was reached.
    fn hand_back(&mut self, root: u32, end: Lifted) {
        let last = match end {
            Lifted::Free(column) => column,
            Lifted::Serves { edge, .. } => self.costs.column[edge as usize],
        };
        let mut freed = last;
        while freed != root {
            let Column { edge, from, .. } = self.columns[freed as usize];
            freed = self.costs.column[edge as usize];
            self.columns[freed as usize].row = from;
            self.edge_of[from as usize] = edge;
        }
        match end {
            Lifted::Free(_) => self.columns[last as usize].row = NONE,
            Lifted::Serves { row, edge } => {
                self.columns[last as usize].row = row;
                self.edge_of[row as usize] = edge;
            }
        }
    }
}
