//! What does a pair of ride and car cost?
//!
//! Everything is a rider's waiting: first the drive to the pickup, then terms that a market may turn on, in seconds. All
//! are off by default, so that a pair costs its drive. Hard conditions (class, block list, suspension) are no
//! price: they filter before this, and the driver's entity checks them again (PROTOCOL 5).

use cabrank_events::VehicleClass;
use cabrank_geo::Point;
use serde::{Deserialize, Serialize};

use super::COST_MS_MAX;

/// What a market prices in besides the drive, in seconds of a rider's waiting. Rates are in thousandths: 1,000 is a second a
/// second.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(deny_unknown_fields, default)]
pub struct Prices {
    /// What a ride's waiting so far counts. Above 0 nobody starves: a ride that has waited long comes before one with a
    /// nearer car. It decides who gets a car, not which one.
    pub age_per_mille: u32,
    /// What a driver's idle time counts in their favour: fairness at the price of longer drives.
    pub idle_per_mille: u32,
    /// Idle time beyond this counts no more.
    pub idle_max_s: u32,
    /// What a driver costs who never accepts; half of it who accepts every second offer.
    pub decline_s: u32,
    /// What each class above the one asked for costs: keeps the better cars for those who pay for them.
    pub upgrade_s: u32,
    /// What a driver with a heading (`PUT /v1/drivers/{id}/heading`) is credited with if the ride leads there.
    pub homewards_s: u32,
    /// When cars are scarce, no drive to a pickup may take longer; 0: no bound.
    pub scarce_drive_max_s: u32,
    /// Forward dispatch: a car whose ride ends within so many seconds counts as one that comes free at the drop-off. If it
    /// is the best, the ride waits for it instead of taking another, but never beyond so many seconds since it was asked
    /// for. Nobody is held before they are free. 0: only free cars count.
    pub forward_s: u32,
}

/// What is known of a pair. What is not known is left at its default and costs nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Facts {
    /// From the car to the pickup.
    pub drive_ms: i64,
    /// What is left of the ride the car is on (forward dispatch), 0 for a free one.
    pub busy_ms: i64,
    /// Since the ride was asked for.
    pub waited_ms: i64,
    /// Since the driver's last ride.
    pub idle_ms: i64,
    /// Offers out of 1,000 that the driver does not accept.
    pub declines_per_mille: u32,
    /// Classes of the car above what is asked for.
    pub classes_above: u32,
    /// The driver is going home and the ride leads there.
    pub is_homewards: bool,
    /// There are fewer cars near than rides.
    pub is_scarce: bool,
}

impl Prices {
    /// What the pair costs; `None`: it is not to be.
    pub fn cost_ms(&self, facts: &Facts) -> Option<i64> {
        let as_ms = |s: u32| (i64::from(s) * 1_000).min(COST_MS_MAX);
        let part = |of_ms: i64, per_mille: u32| {
            of_ms.clamp(0, COST_MS_MAX) * i64::from(per_mille.min(100_000)) / 1_000
        };
        let way_ms = facts.drive_ms.saturating_add(facts.busy_ms.max(0));
        let too_far = self.scarce_drive_max_s > 0 && way_ms > as_ms(self.scarce_drive_max_s);
        if facts.is_scarce && too_far {
            return None;
        }
        let idle_ms = facts.idle_ms.min(as_ms(self.idle_max_s));
        let homewards_ms = match facts.is_homewards {
            true => as_ms(self.homewards_s),
            false => 0,
        };
        let cost_ms = way_ms.clamp(-COST_MS_MAX, COST_MS_MAX)
            + part(as_ms(self.decline_s), facts.declines_per_mille.min(1_000))
            + as_ms(self.upgrade_s) * i64::from(facts.classes_above.min(100))
            - part(facts.waited_ms, self.age_per_mille)
            - part(idle_ms, self.idle_per_mille)
            - homewards_ms;
        Some(cost_ms.clamp(-COST_MS_MAX, COST_MS_MAX))
    }
}

/// Does a ride lead where its driver wants to go? It does if it brings them nearer by half of its length at least.
pub fn leads_to(heading: Point, pickup: Point, dropoff: Point) -> bool {
    let nearer_m = pickup.distance_m(heading) - dropoff.distance_m(heading);
    nearer_m > 0.0 && nearer_m >= pickup.distance_m(dropoff) / 2.0
}

/// How many of the classes that a car serves (one bit each) rank above the one asked for.
pub fn classes_above(asked: VehicleClass, car: u8) -> u32 {
    let upto = asked.bit() | (asked.bit() - 1);
    (car & !upto).count_ones()
}

#[cfg(test)]
mod tests {
    use cabrank_events::{DriverId, RideId, ShardId, Time};

    use super::super::{Batched, Candidate, Policy, RideAsk, Round};
    use super::*;

    #[test]
    fn without_settings_a_pair_costs_its_drive() {
        let facts = Facts {
            drive_ms: 120_000,
            waited_ms: 60_000,
            idle_ms: 900_000,
            declines_per_mille: 500,
            classes_above: 2,
            is_homewards: true,
            is_scarce: true,
            ..Facts::default()
        };
        assert_eq!(Prices::default().cost_ms(&facts), Some(120_000));
        assert_eq!(
            Prices::default().cost_ms(&Facts {
                busy_ms: 30_000,
                ..facts
            }),
            Some(150_000)
        );
    }

    #[test]
    fn a_better_car_is_one_that_serves_what_ranks_above() {
        use VehicleClass::{Comfort, Economy, Xl};
        let car = Economy.bit() | Comfort.bit() | Xl.bit();
        let above = [Economy, Comfort, Xl].map(|asked| classes_above(asked, car));
        assert_eq!(above, [2, 1, 0]);
        assert_eq!(classes_above(Economy, Economy.bit()), 0);
    }

    #[test]
    fn a_ride_leads_home_if_it_brings_the_driver_nearer_by_half_its_length() {
        let pickup = Point::new(37.77, -122.42).expect("on the map");
        let heading = pickup.offset_m(10_000.0, 0.0);
        let leads = |north: f64, east: f64| leads_to(heading, pickup, pickup.offset_m(north, east));
        assert!(leads(3_000.0, 0.0) && leads(3_000.0, 3_000.0) && leads(10_000.0, 0.0));
        assert!(!leads(-3_000.0, 0.0) && !leads(0.0, 3_000.0) && !leads(1_000.0, 4_000.0));
        // Past it and as far away again is no way home; nor is going nowhere.
        assert!(!leads(20_000.0, 0.0) && !leads(0.0, 0.0));
    }

    #[test]
    fn each_term_counts_as_it_says() {
        let facts = Facts {
            drive_ms: 100_000,
            ..Facts::default()
        };
        let cost = |prices: Prices, facts: Facts| prices.cost_ms(&facts);
        let idle = Prices {
            idle_per_mille: 100,
            idle_max_s: 600,
            ..Prices::default()
        };
        assert_eq!(
            cost(
                idle,
                Facts {
                    idle_ms: 300_000,
                    ..facts
                }
            ),
            Some(70_000)
        );
        assert_eq!(
            cost(
                idle,
                Facts {
                    idle_ms: 9_000_000,
                    ..facts
                }
            ),
            Some(40_000)
        );
        let decline = Prices {
            decline_s: 60,
            ..Prices::default()
        };
        assert_eq!(
            cost(
                decline,
                Facts {
                    declines_per_mille: 500,
                    ..facts
                }
            ),
            Some(130_000)
        );
        let upgrade = Prices {
            upgrade_s: 45,
            ..Prices::default()
        };
        assert_eq!(
            cost(
                upgrade,
                Facts {
                    classes_above: 2,
                    ..facts
                }
            ),
            Some(190_000)
        );
        let home = Prices {
            homewards_s: 90,
            ..Prices::default()
        };
        assert_eq!(
            cost(
                home,
                Facts {
                    is_homewards: true,
                    ..facts
                }
            ),
            Some(10_000)
        );
        let far = Prices {
            scarce_drive_max_s: 90,
            ..Prices::default()
        };
        assert_eq!(cost(far, facts), Some(100_000));
        assert_eq!(
            cost(
                far,
                Facts {
                    is_scarce: true,
                    ..facts
                }
            ),
            None
        );
    }

    /// One car comes free every 30 s, right where a new rider stands; another rider is five minutes away from it. Without
    /// the age of their waiting that one never gets a car.
    fn waits_for(prices: Prices, rounds: i64) -> Option<i64> {
        const EVERY_MS: i64 = 30_000;
        let ride = |offset: i64| RideId {
            place: ShardId(0),
            minted_by: ShardId(0),
            offset: offset as u64,
        };
        // Each ride and how far it is from where cars come free. The first one is far away.
        let mut waiting: Vec<(i64, i64, i64)> = vec![(0, 0, 300_000)];
        for turn in 0..rounds {
            let now_ms = turn * EVERY_MS;
            waiting.push((turn + 1, now_ms, 0));
            let cost = |(_, since, drive_ms): &(i64, i64, i64)| {
                let facts = Facts {
                    drive_ms: *drive_ms,
                    waited_ms: now_ms - since,
                    ..Facts::default()
                };
                prices.cost_ms(&facts).expect("nobody is too far")
            };
            let round = Round {
                rides: waiting
                    .iter()
                    .map(|(offset, since, _)| RideAsk {
                        ride: ride(*offset),
                        version: 1,
                        since: Time(*since),
                    })
                    .collect(),
                drivers: vec![DriverId::new("d").expect("a good id")],
                candidates: waiting
                    .iter()
                    .map(|one| {
                        vec![Candidate {
                            driver: 0,
                            cost: cost(one),
                        }]
                    })
                    .collect(),
                ..Round::default()
            };
            let result = Batched.solve(&round, u64::MAX);
            let served = result.pairs[0].ride;
            if served == ride(0) {
                return Some(now_ms);
            }
            waiting.retain(|(offset, _, _)| ride(*offset) != served);
        }
        None
    }

    #[test]
    fn nobody_starves_where_age_counts() {
        assert_eq!(waits_for(Prices::default(), 1_000), None);
        for age_per_mille in [500, 1_000, 2_000] {
            let prices = Prices {
                age_per_mille,
                ..Prices::default()
            };
            // Later ones are nearer by 300 s, which age outweighs after that many seconds by its rate.
            let bound_ms = 300_000 * 1_000 / i64::from(age_per_mille) + 30_000;
            let waited_ms = waits_for(prices, 1_000).expect("everybody gets a car");
            assert!(waited_ms <= bound_ms, "{waited_ms} > {bound_ms}");
        }
    }
}
