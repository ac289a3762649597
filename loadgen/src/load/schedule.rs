//! When should each message leave? Open loop: the moments are drawn beforehand and know nothing of the answers.
//!
//! A [`Rate`] is a straight line from one rate to another, then flat; or flat with one [`Burst`] in it. Messages are numbered by a process of rate one
//! (every whole number, or exponential gaps), and a message leaves when the expected count has reached its number. So
//! a ramp costs nothing special, and whoever handles a message late knows by how much.

use rand::Rng;
use rand::rngs::SmallRng;
use serde::{Deserialize, Serialize};

/// A time in which a flat rate is several times itself.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Burst {
    /// Begins so long after the start, seconds.
    pub from_s: f64,
    /// Lasts, seconds.
    pub lasts_s: f64,
    /// The rate is multiplied by this.
    pub times: f64,
}

/// Messages a second over time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Rate {
    /// At the start.
    pub from: f64,
    /// From `ramp_s` on.
    pub to: f64,
    /// How long it takes from one to the other, seconds.
    pub ramp_s: f64,
    /// Only of a rate without a ramp.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<Burst>,
}

/// How the gaps between messages are drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Arrivals {
    /// Independent of each other, as people are.
    #[default]
    Poisson,
    /// All the same.
    Fixed,
}

impl Rate {
    /// Nothing.
    pub fn zero() -> Rate {
        Rate::default()
    }

    /// The same all the time.
    pub fn steady(per_second: f64) -> Rate {
        Rate {
            from: per_second,
            to: per_second,
            ramp_s: 0.0,
            burst: None,
        }
    }

    /// Reads `FROM:TO:SECONDSs`, for example `1000:20000:30s`.
    pub fn parse_ramp(text: &str) -> Result<Rate, String> {
        let bad =
            || format!("{text:?} is no ramp: give FROM:TO:SECONDS, for example 1000:20000:30s");
        let mut parts = text.split(':');
        let mut next = || parts.next().ok_or_else(bad);
        let (from, to, lasts) = (next()?, next()?, next()?);
        let number = |text: &str| text.trim().parse::<f64>().map_err(|_| bad());
        let rate = Rate {
            from: number(from)?,
            to: number(to)?,
            ramp_s: number(lasts.trim_end_matches('s'))?,
            burst: None,
        };
        if parts.next().is_some() || !rate.is_sensible() || rate.is_zero() {
            return Err(bad());
        }
        Ok(rate)
    }

    /// Is nothing ever sent?
    pub fn is_zero(&self) -> bool {
        self.from <= 0.0 && self.to <= 0.0
    }

    /// Finite and within what a machine can mean.
    pub fn is_sensible(&self) -> bool {
        let rate = 0.0..=1e7;
        rate.contains(&self.from)
            && rate.contains(&self.to)
            && (0.0..=86_400.0).contains(&self.ramp_s)
    }

    /// A share of it.
    pub fn scaled(&self, by: f64) -> Rate {
        Rate {
            from: self.from * by,
            to: self.to * by,
            ramp_s: self.ramp_s,
            burst: self.burst,
        }
    }

    /// Messages expected in the first `seconds`.
    pub fn count_at(&self, seconds: f64) -> f64 {
        let ramp = seconds.clamp(0.0, self.ramp_s);
        let slope = if self.ramp_s > 0.0 {
            (self.to - self.from) / self.ramp_s
        } else {
            0.0
        };
        let more = self.burst.map_or(0.0, |burst| {
            let within = (seconds - burst.from_s).clamp(0.0, burst.lasts_s);
            within * self.to * (burst.times - 1.0)
        });
        self.from * ramp
            + slope * ramp * ramp / 2.0
            + self.to * (seconds - self.ramp_s).max(0.0)
            + more
    }

    /// When so many messages are expected to have left; `None` if never.
    pub fn time_of(&self, count: f64) -> Option<f64> {
        if let Some(burst) = self.burst.filter(|_| self.to > 0.0) {
            let ends = burst.from_s + burst.lasts_s;
            let (before, until) = (self.count_at(burst.from_s), self.count_at(ends));
            return Some(if count <= before {
                count / self.to
            } else if count <= until {
                burst.from_s + (count - before) / (self.to * burst.times)
            } else {
                ends + (count - until) / self.to
            });
        }
        let in_ramp = self.count_at(self.ramp_s);
        if count > in_ramp || self.ramp_s <= 0.0 {
            return (self.to > 0.0).then(|| self.ramp_s + (count - in_ramp) / self.to);
        }
        let slope = (self.to - self.from) / self.ramp_s;
        // slope/2 t^2 + from t = count, in the form that does not cancel for small slopes.
        let root = (self.from * self.from + 2.0 * slope * count)
            .max(0.0)
            .sqrt();
        let below = self.from + root;
        Some(if below > 0.0 {
            2.0 * count / below
        } else {
            0.0
        })
    }
}

/// The moments of one kind of message, in order.
#[derive(Clone, Debug)]
pub struct Schedule {
    rate: Rate,
    arrivals: Arrivals,
    number: f64,
    /// Nanoseconds after the start.
    next: Option<u64>,
}

impl Schedule {
    /// The moments of `rate` from 0 on. A fixed one begins at `phase` (0 to 1) of a gap, so that several generators
    /// do not send in one breath.
    pub fn new(rate: Rate, arrivals: Arrivals, phase: f64, rng: &mut SmallRng) -> Schedule {
        let mut schedule = Schedule {
            rate,
            arrivals,
            number: match arrivals {
                Arrivals::Fixed => phase.clamp(0.0, 1.0) - 1.0,
                Arrivals::Poisson => 0.0,
            },
            next: None,
        };
        schedule.advance(rng);
        schedule
    }

    /// When the next message should leave, ns after the start.
    pub fn due(&self) -> Option<u64> {
        self.next
    }

    /// The next message is being handled: go on to the one after it.
    pub fn advance(&mut self, rng: &mut SmallRng) {
        self.number += match self.arrivals {
            Arrivals::Fixed => 1.0,
            Arrivals::Poisson => -rng.random_range(f64::MIN_POSITIVE..1.0).ln(),
        };
        self.next = (!self.rate.is_zero())
            .then(|| self.rate.time_of(self.number))
            .flatten()
            .map(|seconds| (seconds * 1e9) as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    fn moments(rate: Rate, arrivals: Arrivals, until_s: f64) -> Vec<u64> {
        let mut rng = SmallRng::seed_from_u64(5);
        let mut schedule = Schedule::new(rate, arrivals, 1.0, &mut rng);
        let mut moments = Vec::new();
        while let Some(due) = schedule.due().filter(|due| (*due as f64) < until_s * 1e9) {
            moments.push(due);
            schedule.advance(&mut rng);
        }
        moments
    }

    #[test]
    fn a_fixed_rate_has_equal_gaps() {
        let moments = moments(Rate::steady(200.0), Arrivals::Fixed, 1.0);
        assert_eq!(moments.len(), 199);
        assert!(
            moments
                .windows(2)
                .all(|pair| (pair[1] - pair[0]).abs_diff(5_000_000) <= 1)
        );
    }

    #[test]
    fn poisson_arrivals_have_the_rate_and_the_spread_of_chance() {
        let moments = moments(Rate::steady(1_000.0), Arrivals::Poisson, 20.0);
        assert!(moments.len().abs_diff(20_000) < 600, "{}", moments.len());
        let gaps: Vec<f64> = moments
            .windows(2)
            .map(|w| (w[1] - w[0]) as f64 / 1e6)
            .collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|g| (g - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        let spread = variance.sqrt() / mean;
        assert!(
            (spread - 1.0).abs() < 0.05,
            "exponential gaps vary by their mean: {spread}"
        );
    }

    #[test]
    fn a_ramp_rises_in_a_straight_line_and_stays() {
        let ramp = Rate::parse_ramp("100:300:10s").unwrap();
        assert_eq!(ramp.count_at(10.0), 2_000.0);
        assert_eq!(ramp.count_at(12.0), 2_600.0);
        for count in [1.0, 500.0, 1_999.0, 2_000.0, 2_599.0] {
            let at = ramp.time_of(count).unwrap();
            assert!((ramp.count_at(at) - count).abs() < 1e-6, "{count} at {at}");
        }
        let moments = moments(ramp, Arrivals::Fixed, 12.0);
        let within = |from: f64, to: f64| {
            moments
                .iter()
                .filter(|m| **m as f64 >= from * 1e9 && (**m as f64) < to * 1e9)
                .count()
        };
        assert!(within(0.0, 1.0).abs_diff(110) <= 1);
        assert!(within(9.0, 10.0).abs_diff(290) <= 1);
        assert!(within(11.0, 12.0).abs_diff(300) <= 1);
    }

    #[test]
    fn a_burst_is_several_times_the_rate_for_its_time_only() {
        let mut rate = Rate::steady(100.0);
        rate.burst = Some(Burst {
            from_s: 2.0,
            lasts_s: 3.0,
            times: 4.0,
        });
        assert_eq!(rate.count_at(7.0), 200.0 + 1_200.0 + 200.0);
        for count in [1.0, 200.0, 201.0, 1_400.0, 1_500.0] {
            let at = rate.time_of(count).unwrap();
            assert!((rate.count_at(at) - count).abs() < 1e-6, "{count} at {at}");
        }
    }

    #[test]
    fn a_ramp_may_fall_to_nothing_and_bad_ones_are_named() {
        let fall = Rate::parse_ramp("100:0:2").unwrap();
        assert_eq!(
            moments(fall, Arrivals::Fixed, 60.0).len(),
            100,
            "the hundred and first would never come"
        );
        for bad in ["", "1:2", "1:2:x", "-1:2:3s", "1:2:3:4", "0:0:5s"] {
            assert!(
                Rate::parse_ramp(bad)
                    .unwrap_err()
                    .contains("1000:20000:30s"),
                "{bad}"
            );
        }
    }

    /// Coordinated omission cannot happen: a generator that was held up for 100 ms counts it on every message that
    /// should have left meanwhile.
    #[test]
    fn a_stall_is_counted_on_every_message_it_held_up() {
        let mut rng = SmallRng::seed_from_u64(1);
        let mut schedule = Schedule::new(Rate::steady(1_000.0), Arrivals::Fixed, 1.0, &mut rng);
        let (mut now, mut late) = (0u64, Vec::new());
        while now < 1_000_000_000 {
            while let Some(due) = schedule.due().filter(|due| *due <= now) {
                late.push(now - due);
                schedule.advance(&mut rng);
            }
            now += if now == 500_000_000 {
                100_000_000
            } else {
                100_000
            };
        }
        let held_up = late.iter().filter(|late| **late > 1_000_000).count();
        assert!(held_up.abs_diff(99) <= 2, "{held_up} messages were held up");
        let total_ms: u64 = late.iter().sum::<u64>() / 1_000_000;
        assert!(
            total_ms.abs_diff(5_000) < 150,
            "100 + 99 + ... + 1 ms: {total_ms}"
        );
    }
}
