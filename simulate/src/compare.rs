//! Several policies over the same days: one table, with 95 % intervals over days, or over the seeds of a single one.

use std::fmt::Write;

use serde::{Deserialize, Serialize};

use crate::tally::Outcome;

/// The same scenes under several policies.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// `cabrank.simulation_comparison/1`.
    pub schema: String,
    /// A policy and its days; the days of all policies are the same ones, in the same order.
    pub sides: Vec<Side>,
    /// The command line or its equal.
    pub arguments: Vec<String>,
}

/// A policy and its days.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Side {
    /// As written.
    pub policy: String,
    /// In the order of the scenes.
    pub days: Vec<Outcome>,
}

impl Side {
    fn seeds(&self) -> Vec<u64> {
        self.days.iter().map(|day| day.seed).collect()
    }
}

/// A mean and half the width of its 95 % interval; the latter is not a number with fewer than two values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// The mean.
    pub mean: f64,
    /// Half the width.
    pub half: f64,
}

/// Two-sided 97.5 % quantiles of Student's t for 1, 2, ... degrees of freedom.
const STUDENT: [f64; 30] = [
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
    2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056,
    2.052, 2.048, 2.045, 2.042,
];

impl Estimate {
    /// Of independent values.
    pub fn of(values: &[f64]) -> Estimate {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        let half = match values.len() {
            0 | 1 => f64::NAN,
            count => {
                let t = STUDENT.get(count - 2).copied().unwrap_or(1.96);
                t * (squares / (n - 1.0) / n).sqrt()
            }
        };
        Estimate { mean, half }
    }

    fn told(&self, digits: usize) -> String {
        if self.half.is_nan() || self.half < 0.5 * 10_f64.powi(-(digits as i32)) {
            return format!("{:.digits$}", self.mean);
        }
        format!("{:.digits$} ± {:.digits$}", self.mean, self.half)
    }
}

/// What may count as independent: with several scenes the mean over the seeds of each, as the seeds of one scene have nearly
/// everything in common; else each seed.
fn independent(seeds: &[u64], values: &[f64]) -> Vec<f64> {
    let mut scenes: Vec<Vec<f64>> = Vec::new();
    for (seed, value) in seeds.iter().zip(values) {
        match scenes.last_mut() {
            Some(scene) if Some(seed) != seeds.first() => scene.push(*value),
            _ => scenes.push(vec![*value]),
        }
    }
    if scenes.len() < 2 {
        return values.to_vec();
    }
    let mean = |scene: Vec<f64>| scene.iter().sum::<f64>() / scene.len() as f64;
    scenes.into_iter().map(mean).collect()
}

type Figure = (&'static str, usize, fn(&Outcome) -> f64);

/// What stands in the table: heading, digits, value.
const FIGURES: [Figure; 10] = [
    ("served %", 1, |day| day.served_percent),
    ("wait mean s", 0, |day| day.wait_s.mean),
    ("p50 s", 0, |day| day.wait_s.p50),
    ("p95 s", 0, |day| day.wait_s.p95),
    ("swaps a ride", 2, |day| day.swaps_a_ride),
    ("offers a ride", 2, |day| day.offers_a_ride),
    ("idle %", 1, |day| day.fleet.idle_percent),
    ("empty km a ride", 2, |day| {
        day.fleet.empty_km / day.wait_s.count.max(1) as f64
    }),
    ("Gini income", 3, |day| day.fleet.income_gini),
    ("Gini idle", 3, |day| day.fleet.idle_gini),
];

/// Differences to the first side: heading, value; relative ones in per cent.
const DIFFERENCES: [Figure; 3] = [
    ("served, points", 1, |day| day.served_percent),
    ("wait mean", 0, |day| day.wait_s.mean),
    ("p95", 0, |day| day.wait_s.p95),
];

impl Comparison {
    /// Markdown: the figures, then each policy against the first one, day by day.
    pub fn table(&self) -> String {
        let mut text = String::from("| policy |");
        for (name, ..) in FIGURES {
            write!(text, " {name} |").expect("a string takes all");
        }
        text += " round ms p99 |\n|---|";
        text += &"---|".repeat(FIGURES.len() + 1);
        text.push('\n');
        for side in &self.sides {
            write!(text, "| {} |", side.policy).expect("a string takes all");
            for (_, digits, of) in FIGURES {
                let values: Vec<f64> = side.days.iter().map(of).collect();
                let values = independent(&side.seeds(), &values);
                write!(text, " {} |", Estimate::of(&values).told(digits))
                    .expect("a string takes all");
            }
            let slowest = side.days.iter().map(|day| day.wall.round_ms.p99);
            let slowest = slowest.fold(0.0, f64::max);
            writeln!(text, " {slowest:.1} |").expect("a string takes all");
        }
        let Some((base, others)) = self.sides.split_first() else {
            return text;
        };
        if others.is_empty() {
            return text;
        }
        writeln!(text, "\nAgainst {}, day by day:\n", base.policy).expect("a string takes all");
        text += "| policy |";
        for (name, ..) in DIFFERENCES {
            write!(text, " {name} |").expect("a string takes all");
        }
        text += "\n|---|---|---|---|\n";
        for side in others {
            write!(text, "| {} |", side.policy).expect("a string takes all");
            for (n, (_, _, of)) in DIFFERENCES.iter().enumerate() {
                let pairs = base.days.iter().zip(&side.days);
                let differences: Vec<f64> = pairs
                    .map(|(base, day)| match n {
                        0 => of(day) - of(base),
                        _ => (of(day) / of(base) - 1.0) * 100.0,
                    })
                    .collect();
                let differences = independent(&side.seeds(), &differences);
                let unit = if n == 0 { "" } else { " %" };
                write!(text, " {}{unit} |", Estimate::of(&differences).told(1))
                    .expect("a string takes all");
            }
            text.push('\n');
        }
        text
    }

    /// As it is written to a file.
    pub fn to_json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("only JSON's own kinds");
        text.push('\n');
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_is_that_of_students_t() {
        let estimate = Estimate::of(&[10.0, 12.0, 14.0]);
        assert!((estimate.mean - 12.0).abs() < 1e-12);
        // s = 2, n = 3, t = 4.303.
        assert!((estimate.half - 4.303 * 2.0 / 3.0_f64.sqrt()).abs() < 1e-9);
        assert!(Estimate::of(&[10.0]).half.is_nan());
        assert_eq!(Estimate::of(&[10.0]).told(1), "10.0");
    }

    #[test]
    fn the_seeds_of_a_day_are_no_days_of_their_own() {
        let values = [1.0, 3.0, 10.0, 20.0];
        assert_eq!(independent(&[1, 2, 1, 2], &values), [2.0, 15.0]);
        assert_eq!(independent(&[1, 1, 1, 1], &values), values);
        assert_eq!(independent(&[1, 2, 3, 4], &values), values);
    }
}
