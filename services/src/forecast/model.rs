//! How many rides will be asked for in each cell?
//!
//! A cell's own counts are few and noisy, the whole city's are not. So the level is the city's (a fast average), its
//! distribution over the cells a slower one, and a cell's own last three quarter hours have a vote, because cells do change by
//! themselves (a concert ends). Uncertainty is a negative binomial whose variance is a multiple of its mean; the multiple
//! is learned from the errors made so far, for each horizon and each size of cell (a busy cell errs with the whole city, a
//! quiet one by chance), so the intervals have earned what they claim.
//!
//! Pure: told the counts of a quarter hour when it is over, nothing else. `evaluate` judges it on recorded demand.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A step: a quarter hour, in ms.
pub const QUARTER_MS: i64 = 900_000;
/// Horizons in quarter hours: the next 15, 30 and 60 minutes.
pub const HORIZONS: [usize; 3] = [1, 2, 4];
/// The probability that an interval claims.
pub const CONFIDENCE: f64 = 0.9;
/// Quarter hours until a cell's own average may vote.
const OWN: usize = 3;
/// Sizes of cells that learn how wrong they are by themselves: expected requests of a quarter hour below each of these, and
/// above the last.
const SIZES: [f64; 3] = [0.5, 2.0, 6.0];
/// How fast the dispersion follows, per judged prediction.
const DISPERSION_RATE: f64 = 0.02;
/// Before anything was judged, for each horizon and size: cautious, for busy cells above what three evenings taught
/// (`evaluate::choose` prints it).
const DISPERSION_FIRST: [[f64; SIZES.len() + 1]; 3] = [
    [1.3, 1.6, 2.0, 3.0],
    [1.5, 2.0, 3.0, 5.0],
    [1.8, 3.0, 5.0, 10.0],
];
/// The learned multiple is widened by this: what was seen in some hours is not all that can happen.
const CAUTION: f64 = 1.2;
/// No count is more regular than chance, and it must stay above one to be a negative binomial.
const DISPERSION_MIN: f64 = 1.1;
/// One surprise may not blow all intervals up: its square counts as so many times the mean at most.
const SURPRISE_MAX: f64 = 60.0;
/// Believed of a cell that has hardly any demand.
const MEAN_MIN: f64 = 0.05;
/// Most cells remembered; beyond it the quietest go.
pub const CELLS_MAX: usize = 20_000;
/// From this mean on an interval is computed and no longer counted out: from some hundreds on the probability of 0 is too
/// small for a number, and there would be as many to add.
const MANY: f64 = 500.0;
/// What the standard normal distribution exceeds with half of what [`CONFIDENCE`] leaves.
const TAIL_Z: f64 = 1.644_854;
/// Beyond this no count is looked at: wider than any interval of a city's cell.
const COUNT_MAX: u32 = 1_000_000;

/// How the mean follows what was seen: chosen on recorded evenings, see `evaluate::choose`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Weights {
    /// How fast the distribution over the cells follows, a quarter hour, 0 to 1.
    pub share_rate: f64,
    /// How fast the city's level follows, a quarter hour, 0 to 1.
    pub level_rate: f64,
    /// The weight of a cell's own last quarter hours, 0 to 1.
    pub own_weight: f64,
}

impl Default for Weights {
    fn default() -> Weights {
        Weights {
            share_rate: 0.3,
            level_rate: 0.85,
            own_weight: 0.3,
        }
    }
}

/// A count to come: mean and variance as a multiple of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Expected {
    /// The mean.
    pub mean: f64,
    /// Variance over mean, above 1.
    pub dispersion: f64,
}

impl Expected {
    /// Probabilities of 0, 1, 2, ... one after the other.
    fn probabilities(self) -> impl Iterator<Item = f64> {
        // Negative binomial with size r and success probability 1 / dispersion.
        let r = self.mean / (self.dispersion - 1.0);
        let ratio = (self.dispersion - 1.0) / self.dispersion;
        let first = (-r * self.dispersion.ln()).exp();
        (0..COUNT_MAX).scan(first, move |probability, k| {
            let now = *probability;
            *probability *= (r + f64::from(k)) / f64::from(k + 1) * ratio;
            Some(now)
        })
    }

    /// The probability of a count below `y`, and of `y` or less.
    pub fn below_and_at(self, y: u32) -> (f64, f64) {
        let mut sum = 0.0;
        for (k, probability) in (0..).zip(self.probabilities()) {
            if k == y {
                return (sum, (sum + probability).min(1.0));
            }
            sum += probability;
        }
        (1.0, 1.0)
    }

    /// The narrowest interval between equal tails that holds at least [`CONFIDENCE`].
    pub fn interval(self) -> (u32, u32) {
        if self.mean >= MANY {
            return self.interval_of_many();
        }
        self.interval_counted()
    }

    /// That of the gamma distribution with the same mean and variance, by the cube root of Wilson and Hilferty (1931).
    fn interval_of_many(self) -> (u32, u32) {
        let shape = self.mean / self.dispersion;
        let at = |z: f64| {
            let root = 1.0 - 1.0 / (9.0 * shape) + z / (3.0 * shape.sqrt());
            self.mean * root.max(0.0).powi(3)
        };
        // A cast of a float saturates.
        (at(-TAIL_Z).floor() as u32, at(TAIL_Z).ceil() as u32)
    }

    fn interval_counted(self) -> (u32, u32) {
        let tail = (1.0 - CONFIDENCE) / 2.0;
        let (mut sum, mut low) = (0.0, None);
        for (k, probability) in (0..).zip(self.probabilities()) {
            sum += probability;
            if low.is_none() && sum > tail {
                low = Some(k);
            }
            if sum >= 1.0 - tail {
                return (low.unwrap_or(k), k);
            }
        }
        (low.unwrap_or(0), COUNT_MAX)
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Cell {
    /// Demand with older quarter hours weighing less.
    weight: f64,
    /// The last quarter hours, oldest first.
    own: Vec<u32>,
    /// Predictions whose time is not over: (quarter hours left, which horizon, mean, seen so far).
    open: Vec<(usize, usize, f64, u32)>,
}

/// What has been learned.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Model {
    cells: BTreeMap<u64, Cell>,
    total: f64,
    level: Option<f64>,
    dispersion: [[f64; SIZES.len() + 1]; 3],
    /// Not learned.
    #[serde(skip)]
    weights: Weights,
}

impl Default for Model {
    fn default() -> Model {
        Model::with(Weights::default())
    }
}

/// The size of a cell with this many expected requests a quarter hour.
fn size(mean: f64) -> usize {
    SIZES.iter().filter(|size| mean >= **size).count()
}

impl Model {
    /// Knows nothing, and follows with these weights.
    pub fn with(weights: Weights) -> Model {
        Model {
            cells: BTreeMap::new(),
            total: 0.0,
            level: None,
            dispersion: DISPERSION_FIRST,
            weights,
        }
    }

    /// How wrong it has been lately: variance over mean, for each horizon and each size of cell.
    pub fn dispersion(&self) -> [[f64; SIZES.len() + 1]; 3] {
        self.dispersion
    }

    /// A quarter hour is over, with so many requests in each cell that had any.
    pub fn learn(&mut self, counts: &BTreeMap<u64, u32>) {
        for cell in counts.keys() {
            self.cells.entry(*cell).or_default();
        }
        let Weights {
            share_rate,
            level_rate,
            ..
        } = self.weights;
        let all: u32 = counts.values().sum();
        self.total = self.total * (1.0 - share_rate) + f64::from(all);
        let level = self.level.unwrap_or(f64::from(all));
        self.level = Some(level + level_rate * (f64::from(all) - level));
        for (id, cell) in &mut self.cells {
            let count = counts.get(id).copied().unwrap_or(0);
            for open in &mut cell.open {
                open.0 -= 1;
                open.3 += count;
            }
            for (_, horizon, mean, seen) in cell.open.extract_if(.., |open| open.0 == 0) {
                let error = (f64::from(seen) - mean).powi(2) / mean;
                let size = size(mean / HORIZONS[horizon] as f64);
                let dispersion = &mut self.dispersion[horizon][size];
                *dispersion += DISPERSION_RATE * (error.min(SURPRISE_MAX) - *dispersion);
                *dispersion = dispersion.max(DISPERSION_MIN);
            }
            cell.weight = cell.weight * (1.0 - share_rate) + f64::from(count);
            if cell.own.len() == OWN {
                cell.own.remove(0);
            }
            cell.own.push(count);
        }
        while self.cells.len() > CELLS_MAX {
            let quietest = self
                .cells
                .iter()
                .min_by(|a, b| a.1.weight.total_cmp(&b.1.weight))
                .map(|(id, _)| *id);
            quietest.and_then(|id| self.cells.remove(&id));
        }
        self.cells
            .retain(|_, cell| cell.weight > 1e-4 || !cell.open.is_empty());
        let predicted: Vec<(u64, f64)> =
            self.cells.keys().map(|id| (*id, self.mean(*id))).collect();
        for (id, mean) in predicted {
            if let Some(cell) = self.cells.get_mut(&id) {
                let open = HORIZONS
                    .iter()
                    .enumerate()
                    .map(|(n, quarters)| (*quarters, n, mean * *quarters as f64, 0));
                cell.open.extend(open);
            }
        }
    }

    /// The feed was silent or a day went by: levels are not today's any more. What was learned of distribution and
    /// dispersion stays.
    pub fn forget_level(&mut self) {
        self.level = None;
        for cell in self.cells.values_mut() {
            cell.own.clear();
            cell.open.clear();
        }
    }

    /// Cells with demand.
    pub fn cells(&self) -> impl Iterator<Item = u64> {
        self.cells.keys().copied()
    }

    /// Expected requests of the next quarter hour.
    fn mean(&self, id: u64) -> f64 {
        let Some(cell) = self.cells.get(&id) else {
            return MEAN_MIN;
        };
        let share = if self.total > 0.0 {
            cell.weight / self.total
        } else {
            0.0
        };
        let of_city = share * self.level.unwrap_or(0.0);
        let mean = if cell.own.len() < OWN {
            of_city
        } else {
            let own = cell.own.iter().sum::<u32>() as f64 / OWN as f64;
            let weight = self.weights.own_weight;
            (1.0 - weight) * of_city + weight * own
        };
        mean.max(MEAN_MIN)
    }

    /// Has no quarter hour been learned since the beginning, or since a gap?
    pub fn is_new(&self) -> bool {
        self.level.is_none()
    }

    /// What is expected of a cell in which `count` requests were seen in a share of its first quarter hour: so many more in
    /// the whole of it. That a few may be chance makes the intervals as wide as they must be.
    pub fn guess(count: u32, share: f64) -> [Expected; 3] {
        let mean = (f64::from(count) / share).max(MEAN_MIN);
        std::array::from_fn(|n| Expected {
            mean: mean * HORIZONS[n] as f64,
            dispersion: DISPERSION_FIRST[n][size(mean)] * CAUTION + HORIZONS[n] as f64 / share,
        })
    }

    /// What is expected of a cell in each of [`HORIZONS`].
    pub fn expect(&self, id: u64) -> [Expected; 3] {
        let mean = self.mean(id);
        std::array::from_fn(|n| Expected {
            mean: mean * HORIZONS[n] as f64,
            dispersion: self.dispersion[n][size(mean)] * CAUTION,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_add_up_and_have_the_mean_and_variance_they_say() {
        for (mean, dispersion) in [(0.05, 1.1), (3.0, 1.5), (40.0, 2.5), (900.0, 4.0)] {
            let expected = Expected { mean, dispersion };
            let (mut sum, mut first, mut second) = (0.0, 0.0, 0.0);
            for (k, p) in expected.probabilities().take(5_000).enumerate() {
                sum += p;
                first += p * k as f64;
                second += p * (k * k) as f64;
            }
            assert!((sum - 1.0).abs() < 1e-9, "{expected:?}: {sum}");
            assert!(
                (first / mean - 1.0).abs() < 1e-6,
                "{expected:?}: mean {first}"
            );
            let variance = second - first * first;
            assert!(
                (variance / (mean * dispersion) - 1.0).abs() < 1e-4,
                "{expected:?}: variance {variance}"
            );
            let (low, high) = expected.interval();
            let holds = expected.below_and_at(high).1 - expected.below_and_at(low).0;
            assert!(
                holds >= CONFIDENCE,
                "{expected:?}: {low} to {high} hold {holds}"
            );
        }
    }

    #[test]
    fn intervals_of_many_are_those_that_counting_finds_and_take_no_longer_for_more() {
        for (mean, dispersion) in [(400.0, 1.2), (400.0, 3.0), (450.0, 12.0), (499.0, 60.0)] {
            let expected = Expected { mean, dispersion };
            let (counted, computed) = (expected.interval_counted(), expected.interval_of_many());
            let wide = f64::from(counted.1 - counted.0);
            for (a, b) in [(counted.0, computed.0), (counted.1, computed.1)] {
                let apart = f64::from(a.abs_diff(b));
                assert!(
                    apart <= 1.0 + 0.02 * wide,
                    "{expected:?}: {counted:?}, {computed:?}"
                );
            }
        }
        // An hour of a city at 500 requests a second. Counted out it would begin with a probability of 0.
        let expected = Expected {
            mean: 1.8e6,
            dispersion: 12.0,
        };
        let (low, high) = expected.interval();
        assert!((1_790_000..1_800_000).contains(&low), "{low}");
        assert!((1_800_000..1_810_000).contains(&high), "{high}");
    }

    #[test]
    fn a_first_guess_is_wide_and_narrows_with_the_time_it_had() {
        let [after_a_minute, ..] = Model::guess(2, 1.0 / 15.0);
        let [after_all_of_it, ..] = Model::guess(30, 1.0);
        assert!((after_a_minute.mean - after_all_of_it.mean).abs() < 1e-9);
        let width = |(low, high): (u32, u32)| high - low;
        let (first, last) = (after_a_minute.interval(), after_all_of_it.interval());
        assert!(2 * width(first) > 3 * width(last), "{first:?} {last:?}");
        assert!(first.0 <= 8 && first.1 >= 60, "{first:?}");
    }

    #[test]
    fn a_city_that_doubles_is_followed_in_all_its_cells() {
        let mut model = Model::default();
        let quarter = |factor: u32| BTreeMap::from([(1, 10 * factor), (2, 30 * factor)]);
        (0..12).for_each(|_| model.learn(&quarter(1)));
        let [next, _, hour] = model.expect(2);
        assert!(
            (next.mean - 30.0).abs() < 0.5 && (hour.mean - 120.0).abs() < 2.0,
            "{next:?} {hour:?}"
        );
        model.learn(&quarter(2));
        assert!(model.expect(2)[0].mean > 45.0, "{:?}", model.expect(2)[0]);
        assert!(model.expect(77)[0].mean < 0.1, "a cell never heard of");
    }
}
