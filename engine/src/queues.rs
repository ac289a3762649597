//! Who is next at the airport?
//!
//! A driver who waits at an airport has a place in its queue ([`QueuePlace`]). The place is a part of the driver's own state, so
//! it is in the log, and nobody has two. The queue itself is nowhere kept: it is all drivers with a place there, in the order
//! of their places, and whoever hears of all drivers (every node, every gateway) can line them up. That is this type.
//! So a queue needs no shard of its own, survives restarts and takeovers with its drivers, and may span shards.
//!
//! What it says is a hint, like everything a round knows of drivers: the driver's entity decides at the claim (PROTOCOL 5).
//! Bounded by the places that are given out ([`QueueRules::drivers_max`]).

use std::collections::{BTreeMap, BTreeSet};

use cabrank_events::{DriverId, QueuePlace, Time, ZoneName};
use serde::{Deserialize, Serialize};

use crate::driver::Driver;
use crate::matching::RideAsk;

/// Queues of drivers at airports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct QueueRules {
    /// What becomes of the place of a driver who turns an airport ride down, or does not answer.
    pub after_decline: AfterDecline,
    /// Drivers of one shard in the queue of one airport, 1 to 100,000; who comes then is refused, and tried again by the gateway.
    pub drivers_max: usize,
}

impl Default for QueueRules {
    fn default() -> Self {
        Self {
            after_decline: AfterDecline::default(),
            drivers_max: 2_000,
        }
    }
}

/// What a declined airport ride costs its driver.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum AfterDecline {
    /// The driver goes to the end.
    #[default]
    End,
    /// The driver stays where they were.
    Keep,
}

/// Before whom somebody is served.
type Order = (Time, u64, DriverId);

/// The drivers who wait at airports.
#[derive(Clone, Debug, Default)]
pub struct Queues {
    airports: BTreeMap<ZoneName, BTreeSet<Order>>,
    of: BTreeMap<DriverId, QueuePlace>,
}

impl Queues {
    /// A driver as last known. Only who is free waits.
    pub fn note(&mut self, driver: &Driver) {
        match driver.waits_at() {
            Some(place) if self.of.get(&driver.id) == Some(place) => {}
            place => {
                self.forget(&driver.id);
                if let Some(place) = place {
                    let queue = self.airports.entry(place.airport.clone()).or_default();
                    queue.insert((place.since, place.number, driver.id.clone()));
                    self.of.insert(driver.id.clone(), place.clone());
                }
            }
        }
    }

    /// The driver waits nowhere.
    pub fn forget(&mut self, driver: &DriverId) {
        let Some(place) = self.of.remove(driver) else {
            return;
        };
        if let Some(queue) = self.airports.get_mut(&place.airport) {
            queue.remove(&(place.since, place.number, driver.clone()));
            if queue.is_empty() {
                self.airports.remove(&place.airport);
            }
        }
    }

    /// Forgets who is not alive.
    pub fn keep(&mut self, alive: impl Fn(&DriverId) -> bool) {
        let gone: Vec<DriverId> = self.of.keys().filter(|id| !alive(id)).cloned().collect();
        gone.iter().for_each(|id| self.forget(id));
    }

    /// Does this driver wait?
    pub fn has(&self, driver: &DriverId) -> bool {
        self.of.contains_key(driver)
    }

    /// Does nobody wait anywhere?
    pub fn is_empty(&self) -> bool {
        self.of.is_empty()
    }

    /// How many wait, at all airports.
    pub fn len(&self) -> usize {
        self.of.len()
    }

    /// How many wait at this airport.
    pub fn waiting(&self, airport: &ZoneName) -> usize {
        self.airports.get(airport).map_or(0, BTreeSet::len)
    }

    /// Where this driver waits, in which position, from 1. Counts those before.
    pub fn position(&self, driver: &DriverId) -> Option<(&ZoneName, usize)> {
        let place = self.of.get(driver)?;
        let queue = self.airports.get(&place.airport)?;
        let theirs = (place.since, place.number, driver.clone());
        Some((&place.airport, queue.range(..&theirs).count() + 1))
    }

    /// Gives rides that begin at airports the drivers whose turn it is: the ride that has waited longest chooses first, and
    /// takes the first who may be asked for it. Rides are named by their place in `rides`; those for which nobody is there
    /// are left out.
    pub fn call(
        &self,
        rides: &[(&RideAsk, &ZoneName)],
        may_ask: impl Fn(usize, &DriverId) -> bool,
    ) -> Vec<(usize, DriverId)> {
        let mut order: Vec<usize> = (0..rides.len()).collect();
        order.sort_by_key(|at| (rides[*at].0.since, rides[*at].0.ride));
        let mut called = BTreeSet::new();
        let mut pairs = Vec::new();
        for at in order {
            let queue = self.airports.get(rides[at].1).into_iter().flatten();
            let mut free = queue.map(|(_, _, driver)| driver);
            let next = free.find(|driver| !called.contains(*driver) && may_ask(at, driver));
            if let Some(driver) = next {
                called.insert(driver);
                pairs.push((at, driver.clone()));
            }
        }
        pairs
    }
}

#[cfg(test)]
mod tests {
    use cabrank_events::{ClassSet, HoldId, RideId, SessionId, ShardId};

    use super::*;
    use crate::driver::{Held, Presence};

    fn airport() -> ZoneName {
        ZoneName::new("SFO").expect("a good name")
    }

    fn driver(name: &str, since: i64, number: u64) -> Driver {
        let mut driver = Driver::unseen(DriverId::new(name).expect("a good id"), 0);
        driver.session = SessionId(1);
        driver.presence = Presence::Online {
            classes: ClassSet::default(),
        };
        driver.queue = Some(QueuePlace {
            airport: airport(),
            since: Time(since),
            number,
        });
        driver
    }

    fn ask(offset: u64, since: i64) -> RideAsk {
        let place = ShardId(0);
        RideAsk {
            ride: RideId {
                place,
                minted_by: place,
                offset,
            },
            version: 1,
            since: Time(since),
        }
    }

    fn position(queues: &Queues, driver: &Driver) -> Option<usize> {
        queues.position(&driver.id).map(|(_, position)| position)
    }

    #[test]
    fn places_of_one_instant_are_ordered_by_number_and_then_by_name() {
        let mut queues = Queues::default();
        let [late, second, first, same] = [
            driver("late", 20, 1),
            driver("second", 10, 7),
            driver("first", 10, 6),
            driver("a-same", 10, 7),
        ];
        for driver in [&late, &second, &first, &same] {
            queues.note(driver);
        }
        let positions = [&first, &same, &second, &late].map(|driver| position(&queues, driver));
        assert_eq!(positions, [Some(1), Some(2), Some(3), Some(4)]);
        assert_eq!(queues.waiting(&airport()), 4);
    }

    #[test]
    fn who_is_held_does_not_wait_and_has_the_place_again_when_free() {
        let mut queues = Queues::default();
        let (mut first, second) = (driver("first", 10, 1), driver("second", 20, 2));
        queues.note(&first);
        queues.note(&second);
        first.held = Some(Held {
            hold: HoldId {
                ride: ask(1, 0).ride,
                attempt: 1,
            },
            number: 1,
        });
        queues.note(&first);
        assert_eq!(position(&queues, &first), None);
        assert_eq!(position(&queues, &second), Some(1));
        first.held = None;
        queues.note(&first);
        assert_eq!(position(&queues, &second), Some(2));
        first.presence = Presence::Offline {
            keep_until: Time(99),
        };
        queues.note(&first);
        queues.forget(&second.id);
        assert!(queues.is_empty());
    }

    #[test]
    fn the_oldest_ride_takes_the_first_driver_and_one_who_may_not_be_asked_is_passed_over() {
        let mut queues = Queues::default();
        let all = ["d1", "d2", "d3"].map(|name| driver(name, 10, name.as_bytes()[1].into()));
        all.iter().for_each(|driver| queues.note(driver));
        let (young, old, elsewhere) = (ask(1, 50), ask(2, 40), ask(3, 30));
        let (here, there) = (airport(), ZoneName::new("OAK").expect("a good name"));
        let rides = [(&young, &here), (&old, &here), (&elsewhere, &there)];
        // The old one has asked d1 before.
        let called = queues.call(&rides, |at, driver| at != 1 || driver.as_str() != "d1");
        let called: Vec<(usize, &str)> = called.iter().map(|(at, d)| (*at, d.as_str())).collect();
        assert_eq!(called, [(1, "d2"), (0, "d1")]);
    }
}
