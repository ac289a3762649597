//! Is the forecast any good? Judged on recorded demand, walking forward: each prediction is made from what was over by then.
//!
//! Against three baselines, on cells that average at least one ride a quarter hour (in the file judged; which cells are
//! judged is the only thing taken from the whole file). The difference to the best baseline has a bootstrap interval over
//! quarter hours, because the errors of one quarter hour are not independent. Intervals are judged by their coverage, and,
//! since counts are small and coverage is lumpy, by the randomised probability integral transform, which is uniform if the
//! claimed distribution is the true one.
//!
//! The model's weights were chosen by [`choose`] on evenings that it is not judged on.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use h3o::{LatLng, Resolution};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::model::{CONFIDENCE, HORIZONS, Model, QUARTER_MS, Weights};

/// Quarter hours at the start of a file in which nothing is judged: the longest baseline needs them.
const WARM_UP: usize = 4;
/// Resamples of the bootstrap.
const RESAMPLES: usize = 2_000;

/// Baselines, by name.
pub const BASELINES: [&str; 3] = ["last quarter hour", "an hour ago", "moving average (3)"];

/// Why a file was not judged.
#[derive(Debug, thiserror::Error)]
pub enum EvaluateError {
    /// It cannot be read.
    #[error("{file}: {why}")]
    Unreadable {
        /// Which.
        file: String,
        /// Why.
        why: String,
    },
}

/// How one file was judged, or all together.
#[derive(Clone, Debug, Default)]
pub struct Judged {
    /// The file's name.
    pub name: String,
    /// Cells judged.
    pub cells: usize,
    /// Predictions judged.
    pub predictions: usize,
    /// Mean absolute error of the forecast.
    pub error: f64,
    /// Of the baselines.
    pub baselines: [f64; 3],
    /// Forecast less the best baseline: mean, and the 95 % interval.
    pub gain: (f64, f64, f64),
    /// Share of counts inside the intervals, for each horizon.
    pub coverage: [f64; 3],
    /// Share of the PIT in each tenth (next quarter hour).
    pub pit: [f64; 10],
    quarters: Vec<[f64; 5]>,
    inside: [(usize, usize); 3],
    tenths: [usize; 10],
}

/// Counts of one file: (first quarter hour, cell to counts).
fn read(
    path: &Path,
    resolution: Resolution,
) -> Result<(i64, BTreeMap<u64, Vec<u32>>), EvaluateError> {
    let failed = |why: String| EvaluateError::Unreadable {
        file: path.display().to_string(),
        why,
    };
    let file = std::fs::File::open(path).map_err(|why| failed(why.to_string()))?;
    let reader: Box<dyn std::io::Read> = if path.extension().is_some_and(|end| end == "gz") {
        Box::new(flate2::read::GzDecoder::new(file))
    } else {
        Box::new(file)
    };
    let mut rows = csv::Reader::from_reader(reader);
    let headers = rows
        .headers()
        .map_err(|why| failed(why.to_string()))?
        .clone();
    let column = |name: &str| {
        let at = headers.iter().position(|header| header == name);
        at.ok_or_else(|| failed(format!("no column {name}")))
    };
    let (time, lat, lon) = (
        column("time")?,
        column("pickup_lat")?,
        column("pickup_lon")?,
    );
    let mut seen = Vec::new();
    for row in rows.records() {
        let row = row.map_err(|why| failed(why.to_string()))?;
        let number = |at: usize| row.get(at).and_then(|text| text.parse::<f64>().ok());
        let (Some(time), Some(lat), Some(lon)) = (number(time), number(lat), number(lon)) else {
            continue;
        };
        let Ok(place) = LatLng::new(lat, lon) else {
            continue;
        };
        seen.push((
            (time * 1e3) as i64 / QUARTER_MS,
            u64::from(place.to_cell(resolution)),
        ));
    }
    let first = seen
        .iter()
        .map(|(quarter, _)| *quarter)
        .min()
        .ok_or_else(|| failed("no rows".to_owned()))?;
    let last = seen
        .iter()
        .map(|(quarter, _)| *quarter)
        .max()
        .unwrap_or(first);
    let quarters = usize::try_from(last - first + 1).unwrap_or(0);
    let mut counts: BTreeMap<u64, Vec<u32>> = BTreeMap::new();
    for (quarter, cell) in seen {
        counts.entry(cell).or_insert_with(|| vec![0; quarters])[(quarter - first) as usize] += 1;
    }
    Ok((first, counts))
}

/// Weights that were compared, one of each list.
const RATES: ([f64; 4], [f64; 4], [f64; 5]) = (
    [0.1, 0.2, 0.3, 0.5],
    [0.5, 0.7, 0.85, 1.0],
    [0.0, 0.15, 0.3, 0.45, 0.6],
);

/// Weights and how they did.
#[derive(Clone, Copy, Debug)]
pub struct Candidate {
    /// Which.
    pub weights: Weights,
    /// Mean absolute error of the next quarter hour on the files they were tried on.
    pub error: f64,
}

/// Tries all weights on `files` and returns them, best first, and how wrong the best one was there (variance over mean, for
/// each horizon and size of cell; the mean over the files). The files must be others than it is judged on.
pub fn choose(
    files: &[&Path],
    resolution: Resolution,
) -> Result<(Vec<Candidate>, [[f64; 4]; 3]), EvaluateError> {
    let mut random = SmallRng::seed_from_u64(1);
    let read: Result<Vec<_>, _> = files.iter().map(|path| read(path, resolution)).collect();
    let read = read?;
    let mut tried = Vec::new();
    let (shares, levels, owns) = RATES;
    for share_rate in shares {
        for level_rate in levels {
            for own_weight in owns {
                let weights = Weights {
                    share_rate,
                    level_rate,
                    own_weight,
                };
                let (mut errors, mut predictions) = (0.0, 0.0);
                for (_, counts) in &read {
                    let judged = judge("", counts, &mut Model::with(weights), &mut random);
                    errors += judged.error * judged.predictions as f64;
                    predictions += judged.predictions as f64;
                }
                let error = errors / f64::max(predictions, 1.0);
                tried.push(Candidate { weights, error });
            }
        }
    }
    tried.sort_by(|a, b| a.error.total_cmp(&b.error));
    let mut learned = [[0.0; 4]; 3];
    for (_, counts) in &read {
        let mut model = Model::with(tried[0].weights);
        judge("", counts, &mut model, &mut random);
        for (sums, more) in learned.iter_mut().zip(model.dispersion()) {
            for (sum, more) in sums.iter_mut().zip(more) {
                *sum += more / read.len() as f64;
            }
        }
    }
    Ok((tried, learned))
}

/// Judges the forecast on `files`, each from nothing: files may overlap, and none may know another's future.
pub fn evaluate(
    files: &[&Path],
    resolution: Resolution,
    seed: u64,
) -> Result<Vec<Judged>, EvaluateError> {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut all = Vec::new();
    for path in files {
        let (_, counts) = read(path, resolution)?;
        let name = path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        all.push(judge(&name, &counts, &mut Model::default(), &mut random));
    }
    if all.len() > 1 {
        let mut whole = Judged {
            name: "all".to_owned(),
            ..Judged::default()
        };
        for one in &all {
            whole.cells += one.cells;
            whole.quarters.extend(&one.quarters);
            for (sum, more) in whole.inside.iter_mut().zip(one.inside) {
                *sum = (sum.0 + more.0, sum.1 + more.1);
            }
            whole
                .tenths
                .iter_mut()
                .zip(one.tenths)
                .for_each(|(sum, more)| *sum += more);
        }
        whole.conclude(&mut random);
        all.push(whole);
    }
    Ok(all)
}

fn judge(
    name: &str,
    counts: &BTreeMap<u64, Vec<u32>>,
    model: &mut Model,
    random: &mut SmallRng,
) -> Judged {
    let quarters = counts.values().next().map_or(0, Vec::len);
    let busy: Vec<(u64, &Vec<u32>)> = counts
        .iter()
        .filter(|(_, counts)| counts.iter().sum::<u32>() as usize >= quarters)
        .map(|(cell, counts)| (*cell, counts))
        .collect();
    let mut judged = Judged {
        name: name.to_owned(),
        cells: busy.len(),
        ..Judged::default()
    };
    for now in 0..quarters {
        if now >= WARM_UP {
            let mut errors = [0.0; 5];
            for (cell, counts) in &busy {
                let y = f64::from(counts[now]);
                let expected = model.expect(*cell);
                let average = counts[now - 3..now].iter().sum::<u32>() as f64 / 3.0;
                let guesses = [
                    expected[0].mean,
                    f64::from(counts[now - 1]),
                    f64::from(counts[now - 4]),
                    average,
                ];
                errors
                    .iter_mut()
                    .zip(guesses)
                    .for_each(|(sum, guess)| *sum += (guess - y).abs());
                errors[4] += 1.0;
                for (n, quarters_ahead) in HORIZONS.into_iter().enumerate() {
                    let Some(ahead) = counts.get(now..now + quarters_ahead) else {
                        continue;
                    };
                    let seen: u32 = ahead.iter().sum();
                    let (low, high) = expected[n].interval();
                    judged.inside[n].0 += usize::from((low..=high).contains(&seen));
                    judged.inside[n].1 += 1;
                    if n == 0 {
                        let (below, at) = expected[n].below_and_at(seen);
                        let u = below + random.random::<f64>() * (at - below);
                        judged.tenths[((u * 10.0) as usize).min(9)] += 1;
                    }
                }
            }
            judged.quarters.push(errors);
        }
        let over: BTreeMap<u64, u32> = counts
            .iter()
            .filter(|(_, counts)| counts[now] > 0)
            .map(|(cell, counts)| (*cell, counts[now]))
            .collect();
        model.learn(&over);
    }
    judged.conclude(random);
    judged
}

impl Judged {
    fn conclude(&mut self, random: &mut SmallRng) {
        let sum = |of: usize| self.quarters.iter().map(|errors| errors[of]).sum::<f64>();
        let predictions = sum(4).max(1.0);
        self.predictions = sum(4) as usize;
        self.error = sum(0) / predictions;
        self.baselines = std::array::from_fn(|n| sum(n + 1) / predictions);
        let best = self.best() + 1;
        let gain = |quarters: &mut dyn Iterator<Item = &[f64; 5]>| {
            let (difference, count) = quarters.fold((0.0, 0.0), |(sum, count), errors| {
                (sum + errors[0] - errors[best], count + errors[4])
            });
            difference / f64::max(count, 1.0)
        };
        let mean = gain(&mut self.quarters.iter());
        let many = self.quarters.len();
        let mut resampled: Vec<f64> = (0..if many == 0 { 0 } else { RESAMPLES })
            .map(|_| gain(&mut (0..many).map(|_| &self.quarters[random.random_range(0..many)])))
            .collect();
        resampled.sort_by(f64::total_cmp);
        let at = |share: f64| {
            resampled
                .get((share * RESAMPLES as f64) as usize)
                .copied()
                .unwrap_or(0.0)
        };
        self.gain = (mean, at(0.025), at(0.975));
        self.coverage = self
            .inside
            .map(|(inside, of)| inside as f64 / of.max(1) as f64);
        let all = self.tenths.iter().sum::<usize>().max(1);
        self.pit = self.tenths.map(|count| count as f64 / all as f64);
    }

    /// Which baseline is best here.
    pub fn best(&self) -> usize {
        (0..3)
            .min_by(|a, b| self.baselines[*a].total_cmp(&self.baselines[*b]))
            .unwrap_or(0)
    }

    /// The largest distance of the PIT's distribution from the uniform one, at its tenths.
    pub fn pit_distance(&self) -> f64 {
        let (mut sum, mut most) = (0.0, 0.0_f64);
        for (n, share) in (1..).zip(self.pit) {
            sum += share;
            most = most.max((sum - f64::from(n) / 10.0).abs());
        }
        most
    }
}

/// The table.
pub struct Table<'a>(pub &'a [Judged]);

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "mean absolute error of the next quarter hour, cells with at least one ride a quarter hour on average"
        )?;
        writeln!(
            f,
            "{:<44} {:>5} {:>7} {:>8} {:>8} {:>8} {:>8}  {:<28} {:<20} PIT off by",
            "file",
            "cells",
            "judged",
            "forecast",
            "last",
            "hour ago",
            "avg (3)",
            "difference to the best [95 %]",
            format!("inside {:.0} %: 15/30/60", CONFIDENCE * 100.0)
        )?;
        for judged in self.0 {
            let [last, hour, average] = judged.baselines;
            let (mean, low, high) = judged.gain;
            let [a, b, c] = judged.coverage.map(|share| share * 100.0);
            writeln!(
                f,
                "{:<44} {:>5} {:>7} {:>8.3} {last:>8.3} {hour:>8.3} {average:>8.3}  {:<29} {:<20} {:.3}",
                judged.name,
                judged.cells,
                judged.predictions,
                judged.error,
                format!("{mean:+.3} [{low:+.3}, {high:+.3}]"),
                format!("{a:.1} / {b:.1} / {c:.1}"),
                judged.pit_distance()
            )?;
        }
        Ok(())
    }
}
