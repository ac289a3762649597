//! What does a ride cost?
//!
//! Integers of the currency's minor unit throughout. Each part is rounded to the nearest unit by itself, halves up, so a
//! receipt's lines add up to its total and anybody can recompute it from the ride's events: the places of
//! `ride.requested`, the times of `ride.started` and `ride.completed`.

use cabrank_events::business::ReceiptLine;
use cabrank_geo::Point;
use serde::{Deserialize, Serialize};

/// A market's prices.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tariff {
    /// ISO 4217.
    pub currency: String,
    /// For getting in.
    pub base_minor: i64,
    /// For a kilometre.
    pub per_km_minor: i64,
    /// For a minute between start and end.
    pub per_minute_minor: i64,
    /// No ride costs less.
    pub minimum_minor: i64,
    /// How much longer streets are than the straight line, in thousandths.
    pub detour_permille: i64,
    /// For a cancel by the rider, or a rider who did not come, after a driver was assigned.
    pub cancel_fee_minor: i64,
    /// Held at the request beyond the expected fare, in thousandths of it.
    pub hold_margin_permille: i64,
    /// Held when the rider has not said where to.
    pub hold_unknown_minor: i64,
    /// How fast a ride is expected to be, metres a minute.
    pub expected_m_per_minute: i64,
    /// The largest surge factor in thousandths; 1000 is off.
    pub surge_max_permille: i64,
}

impl Default for Tariff {
    fn default() -> Tariff {
        Tariff {
            currency: "USD".to_owned(),
            base_minor: 350,
            per_km_minor: 165,
            per_minute_minor: 42,
            minimum_minor: 700,
            detour_permille: 1_300,
            cancel_fee_minor: 500,
            hold_margin_permille: 1_500,
            hold_unknown_minor: 5_000,
            expected_m_per_minute: 400,
            surge_max_permille: 1_000,
        }
    }
}

/// A sum and what it is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fare {
    /// The sum of the lines, in the minor unit.
    pub total_minor: i64,
    /// For the receipt.
    pub lines: Vec<ReceiptLine>,
}

/// `value * times / by`, rounded to the nearest, halves up. All of them at least 0, `by` above.
fn share(value: i64, times: i64, by: i64) -> i64 {
    let (value, by) = (
        i128::from(value.max(0)) * i128::from(times.max(0)),
        i128::from(by.max(1)),
    );
    i64::try_from((2 * value + by) / (2 * by)).unwrap_or(i64::MAX)
}

fn line(what: &str, minor: i64) -> ReceiptLine {
    ReceiptLine {
        what: what.to_owned(),
        minor,
    }
}

impl Tariff {
    /// Metres that are paid for between two places; 0 where the rider never said where to.
    fn metres(&self, from: Point, to: Option<Point>) -> i64 {
        to.map_or(0, |to| {
            share(
                from.distance_m(to).round() as i64,
                self.detour_permille,
                1_000,
            )
        })
    }

    /// The fare of a ride of `ms` milliseconds; at most `hold_minor`, which the rider was promised.
    pub fn fare(
        &self,
        from: Point,
        to: Option<Point>,
        ms: i64,
        surge_permille: i64,
        hold_minor: i64,
    ) -> Fare {
        let mut lines = vec![
            line("base", self.base_minor),
            line(
                "distance",
                share(self.metres(from, to), self.per_km_minor, 1_000),
            ),
            line("time", share(ms, self.per_minute_minor, 60_000)),
        ];
        let mut total: i64 = lines.iter().map(|line| line.minor).sum();
        let surge = surge_permille.clamp(1_000, self.surge_max_permille.max(1_000));
        let more = [
            ("surge", share(total, surge, 1_000) - total),
            (
                "minimum",
                (self.minimum_minor - share(total, surge, 1_000)).max(0),
            ),
        ];
        for (what, minor) in more {
            if minor != 0 {
                lines.push(line(what, minor));
                total += minor;
            }
        }
        if total > hold_minor {
            lines.push(line("capped", hold_minor - total));
            total = hold_minor;
        }
        Fare {
            total_minor: total,
            lines,
        }
    }

    /// What is held at the request, and so the most the ride can cost.
    pub fn hold(&self, from: Point, to: Option<Point>, surge_permille: i64) -> i64 {
        if to.is_none() {
            return self.hold_unknown_minor;
        }
        let ms = share(self.metres(from, to), 60_000, self.expected_m_per_minute);
        let expected = self
            .fare(from, to, ms, surge_permille, i64::MAX)
            .total_minor;
        share(expected, self.hold_margin_permille, 1_000).max(self.cancel_fee_minor)
    }

    /// What a cancel after the assignment costs.
    pub fn cancel_fee(&self, hold_minor: i64) -> Fare {
        let total_minor = self.cancel_fee_minor.min(hold_minor);
        Fare {
            total_minor,
            lines: vec![line("cancel_fee", total_minor)],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn here() -> Point {
        Point::new(37.7749, -122.4194).unwrap()
    }

    #[test]
    fn a_ride_of_two_kilometres_and_seven_minutes() {
        let there = here().offset_m(2_000.0, 0.0);
        let fare = Tariff::default().fare(here(), Some(there), 7 * 60_000, 1_000, 100_000);
        let lines: Vec<(&str, i64)> = fare
            .lines
            .iter()
            .map(|l| (l.what.as_str(), l.minor))
            .collect();
        // 2,000 m of straight line are 2,600 m of streets: 429; seven minutes are 294.
        assert_eq!(lines, [("base", 350), ("distance", 429), ("time", 294)]);
        assert_eq!(fare.total_minor, 1_073);
    }

    #[test]
    fn no_ride_costs_more_than_was_held_or_less_than_the_minimum() {
        let tariff = Tariff::default();
        let short = tariff.fare(here(), Some(here()), 0, 1_000, 100_000);
        assert_eq!(short.total_minor, tariff.minimum_minor);
        let stuck = tariff.fare(here(), Some(here()), 3_600_000, 1_000, 2_000);
        assert_eq!(stuck.total_minor, 2_000);
        for fare in [short, stuck] {
            assert_eq!(
                fare.lines.iter().map(|l| l.minor).sum::<i64>(),
                fare.total_minor
            );
        }
    }

    #[test]
    fn surge_is_off_unless_allowed_and_never_beyond_its_bound() {
        let there = Some(here().offset_m(5_000.0, 0.0));
        let of = |max, asked| {
            let tariff = Tariff {
                surge_max_permille: max,
                ..Tariff::default()
            };
            tariff
                .fare(here(), there, 600_000, asked, 100_000)
                .total_minor
        };
        let plain = of(1_000, 1_000);
        assert_eq!(of(1_000, 3_000), plain);
        assert_eq!(of(1_500, 3_000), share(plain, 1_500, 1_000));
        assert_eq!(of(1_500, 200), plain);
    }

    #[test]
    fn halves_go_up() {
        assert_eq!(
            (
                share(1, 1, 2),
                share(3, 1, 2),
                share(1, 1, 3),
                share(2, 1, 3)
            ),
            (1, 2, 0, 1)
        );
    }
}
