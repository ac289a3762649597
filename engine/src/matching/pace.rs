//! How long should rides wait before their round?
//!
//! A round of more rides decides better, but each of them waits for it. Who has a clearly best car gains nothing by that
//! and is matched at once; where several rides want one car, or cars are scarce, waiting for the next ride or the next car
//! to come free pays more. A pure function of what a round would see; who calls it counts the wait it adds.

use serde::{Deserialize, Serialize};

use super::Round;

/// Bounds of the time between two rounds, domain milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PaceRules {
    /// Rounds are never nearer to each other.
    pub least_ms: u64,
    /// They are this far apart when there are at least as many rides as cars, and never further. 0: nobody waits for a round.
    pub most_ms: u64,
    /// A car is clearly the best if every other one needs so much longer, or if it is nobody else's best one.
    pub clear_lead_ms: u64,
}

impl Default for PaceRules {
    fn default() -> Self {
        PaceRules {
            least_ms: 0,
            most_ms: 0,
            clear_lead_ms: 120_000,
        }
    }
}

/// How long after the last round the next one should begin, at least `least_ms` and at most `most_ms`.
///
/// `round` is what it would look at now; rides on the way do not count.
pub fn wait_ms(round: &Round, rules: &PaceRules) -> u64 {
    let most_ms = rules.most_ms.max(rules.least_ms);
    let mut wanted_by = vec![0_u32; round.drivers.len()];
    let mut near = vec![false; round.drivers.len()];
    let known = round.drivers.len();
    let two_best = |at: usize| {
        let (mut best, mut second) = (None, None);
        let list = round.candidates.get(at).map_or(&[][..], Vec::as_slice);
        for car in list.iter().filter(|car| (car.driver as usize) < known) {
            if best.is_none_or(|(cost, _)| car.cost < cost) {
                (best, second) = (Some((car.cost, car.driver)), best);
            } else if second.is_none_or(|(cost, _)| car.cost < cost) {
                second = Some((car.cost, car.driver));
            }
        }
        (best, second)
    };
    for at in 0..round.rides.len() {
        if let (Some((_, driver)), _) = two_best(at) {
            wanted_by[driver as usize] += 1;
        }
        let list = round.candidates.get(at).map_or(&[][..], Vec::as_slice);
        for car in list {
            if let Some(near) = near.get_mut(car.driver as usize) {
                *near = true;
            }
        }
    }
    let lead_ms = i64::try_from(rules.clear_lead_ms).unwrap_or(i64::MAX);
    let is_clear = |at: usize| match two_best(at) {
        (Some((_, driver)), _) if wanted_by[driver as usize] == 1 => true,
        (Some((cost, _)), Some((next, _))) => next.saturating_sub(cost) >= lead_ms,
        (Some(_), None) | (None, _) => false,
    };
    let rides = round.rides.len() as u64;
    if rides == 0 || (0..round.rides.len()).any(is_clear) {
        return rules.least_ms;
    }
    let cars = near.iter().filter(|near| **near).count() as u64;
    let scarce = rides.min(cars.max(1));
    rules.least_ms + (most_ms - rules.least_ms) * scarce / cars.max(1)
}

#[cfg(test)]
mod tests {
    use cabrank_events::{DriverId, RideId, ShardId, Time};

    use super::super::{Candidate, RideAsk};
    use super::*;

    fn round(cars: usize, rides: &[&[(u32, i64)]]) -> Round {
        let ask = |n: usize| RideAsk {
            ride: RideId {
                place: ShardId(0),
                minted_by: ShardId(0),
                offset: n as u64,
            },
            version: 1,
            since: Time(0),
        };
        let cars_of = |list: &&[(u32, i64)]| {
            let car = |(driver, cost): &(u32, i64)| Candidate {
                driver: *driver,
                cost: cost * 1_000,
            };
            list.iter().map(car).collect()
        };
        Round {
            rides: (0..rides.len()).map(ask).collect(),
            drivers: (0..cars)
                .map(|n| DriverId::new(&format!("d{n}")).expect("a good id"))
                .collect(),
            candidates: rides.iter().map(cars_of).collect(),
            ..Round::default()
        }
    }

    #[test]
    fn who_has_a_clearly_best_car_does_not_wait() {
        let rules = PaceRules {
            most_ms: 10_000,
            ..PaceRules::default()
        };
        let alone = round(2, &[&[(0, 100), (1, 110)]]);
        assert_eq!(wait_ms(&alone, &rules), 0);
        let far_ahead = round(2, &[&[(0, 100), (1, 300)], &[(0, 90), (1, 100)]]);
        assert_eq!(wait_ms(&far_ahead, &rules), 0);
        assert_eq!(wait_ms(&Round::default(), &rules), 0);
    }

    #[test]
    fn the_scarcer_the_longer_within_bounds() {
        let rules = PaceRules {
            least_ms: 2_000,
            most_ms: 10_000,
            ..PaceRules::default()
        };
        let contested: &[(u32, i64)] = &[(0, 100), (1, 110), (2, 120), (3, 130)];
        assert_eq!(wait_ms(&round(4, &[contested, contested]), &rules), 6_000);
        assert_eq!(wait_ms(&round(4, &[contested; 3]), &rules), 8_000);
        assert_eq!(wait_ms(&round(4, &[contested; 9]), &rules), 10_000);
        // Nobody near at all: as scarce as can be.
        assert_eq!(wait_ms(&round(0, &[&[]]), &rules), 10_000);
        let turned = PaceRules {
            least_ms: 20_000,
            ..rules
        };
        assert_eq!(wait_ms(&round(4, &[contested; 9]), &turned), 20_000);
    }
}
