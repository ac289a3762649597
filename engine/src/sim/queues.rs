//! What must hold of the places at airports, told by plain maps that are built from the published events only; and rounds that
//! call the drivers whose turn it is, against a look at everybody.

use std::collections::{BTreeMap, BTreeSet};

use cabrank_events::event::LostBecause;
use cabrank_events::{DriverId, Event, EventRecord, HoldId, QueuePlace, RideId, ShardId, ZoneName};

use super::world::World;
use crate::matching::{Pair, RideAsk, RoundResult};
use crate::queues::{AfterDecline, Queues};
use crate::ride::Ride;

/// Where rides of the simulation may begin.
pub(super) const AIRPORTS: [&str; 2] = ["SFO", "OAK"];

pub(super) fn airport(at: usize) -> ZoneName {
    ZoneName::new(AIRPORTS[at % AIRPORTS.len()]).expect("a good name")
}

/// What the events say of places.
#[derive(Debug, Default)]
pub struct Places {
    after_decline: AfterDecline,
    /// Messages arrive once and in order. Else a grant that is read twice is given back for its own sake, and may be so before
    /// the ride's answer arrives: the driver keeps a place that was to be lost.
    clean: bool,
    /// Drivers' places, those of held drivers among them.
    of: BTreeMap<DriverId, QueuePlace>,
    held: BTreeSet<DriverId>,
    /// Holds by which a ride was taken, and by which it was turned down.
    taken: BTreeSet<(DriverId, HoldId)>,
    turned_down: BTreeSet<(DriverId, HoldId)>,
    at_airport: BTreeSet<RideId>,
    /// Rides that were called off, and whom they had then.
    called_off: BTreeSet<(DriverId, RideId)>,
}

macro_rules! demand {
    ($ok:expr, $($why:tt)*) => {
        if !$ok {
            return Err(format!($($why)*));
        }
    };
}

/// Time and number grow within a shard, so a place of this very event is behind all that the shard has given before.
fn is_at_end(place: &QueuePlace, record: &EventRecord) -> bool {
    (place.since, place.number) == (record.time, record.seq)
}

impl Places {
    pub fn new(after_decline: AfterDecline, clean: bool) -> Places {
        Places {
            after_decline,
            clean,
            ..Places::default()
        }
    }

    /// Takes the next event; says what is wrong with it.
    pub fn take(&mut self, record: &EventRecord) -> Result<(), String> {
        let hold = |ride: RideId, attempt| HoldId { ride, attempt };
        match &record.event {
            Event::RideRequested(e) if e.airport.is_some() => {
                self.at_airport.insert(e.ride);
            }
            Event::DriverAssigned(e) => {
                let taken = (e.driver.clone(), hold(e.ride, e.attempt));
                self.taken.insert(taken);
            }
            Event::DriverReassigned(e) => {
                demand!(
                    e.driver == e.before || !self.at_airport.contains(&e.ride),
                    "{} of an airport is exchanged",
                    e.ride
                );
                let taken = (e.driver.clone(), hold(e.ride, e.attempt));
                self.taken.insert(taken);
            }
            Event::OfferDeclined(e) => {
                let said = (e.driver.clone(), hold(e.ride, e.attempt));
                self.turned_down.insert(said);
            }
            Event::OfferExpired(e) => {
                let said = (e.driver.clone(), hold(e.ride, e.attempt));
                self.turned_down.insert(said);
            }
            Event::DriverLost(e) if e.why == LostBecause::Moved => {
                let at_airport = self.at_airport.contains(&e.ride);
                demand!(!at_airport, "{} of an airport gives its car up", e.ride);
            }
            Event::RideCancelled(e) => {
                let driver = e.driver.clone();
                self.called_off
                    .extend(driver.map(|driver| (driver, e.ride)));
            }
            Event::DriverHeld(e) => {
                self.held.insert(e.driver.clone());
                // An old claim that is read twice holds by a name that was used before.
                let by = (e.driver.clone(), hold(e.ride, e.attempt));
                self.taken.remove(&by);
                self.turned_down.remove(&by);
            }
            Event::DriverLeaving(e) => {
                self.of.remove(&e.driver);
            }
            Event::DriverOffline(e) => {
                self.of.remove(&e.driver);
            }
            Event::DriverQueued(e) => {
                demand!(is_at_end(&e.place, record), "{} jumps the queue", e.driver);
                demand!(!self.held.contains(&e.driver), "{} has a ride", e.driver);
                let before = self.of.insert(e.driver.clone(), e.place.clone());
                let same = before.is_some_and(|before| before.airport == e.place.airport);
                demand!(!same, "{} loses the place by asking again", e.driver);
            }
            Event::DriverUnqueued(e) => {
                let before = self.of.remove(&e.driver);
                let had = before.is_some_and(|before| before.airport == e.airport);
                demand!(had, "{} did not wait at {}", e.driver, e.airport);
            }
            Event::DriverReleased(e) => {
                self.held.remove(&e.driver);
                let before = self.of.remove(&e.driver);
                let by = (e.driver.clone(), hold(e.ride, e.attempt));
                let is_airport = self.at_airport.contains(&e.ride);
                let called_off =
                    is_airport && self.called_off.contains(&(e.driver.clone(), e.ride));
                let loses = self.taken.contains(&by) && !called_off;
                let turned_down = is_airport && self.turned_down.contains(&by);
                let to_end = turned_down && self.after_decline == AfterDecline::End;
                match (before, &e.queue) {
                    (None, None) => {}
                    (None, Some(_)) => return Err(format!("{} gets a place", e.driver)),
                    (Some(before), Some(now)) if !self.clean && before == *now => {}
                    (Some(_), None) => demand!(loses, "{} loses the place by {by:?}", e.driver),
                    (Some(before), Some(now)) if to_end => {
                        let fits = is_at_end(now, record) && now.airport == before.airport;
                        demand!(fits, "{} turned {by:?} down and is not last", e.driver);
                    }
                    (Some(before), Some(now)) => {
                        demand!(before == *now, "{} changes places", e.driver);
                        demand!(!loses, "{} took {by:?} and still waits", e.driver);
                    }
                }
                self.of
                    .extend(e.queue.clone().map(|place| (e.driver.clone(), place)));
            }
            _ => {}
        }
        Ok(())
    }
}

impl World {
    /// A round for the rides of airports that wait in a shard: whose turn it is, is the same to a look at everybody.
    pub(super) fn call_queues(&mut self, shard: usize) -> Result<(), String> {
        let id = ShardId(shard as u16);
        let Some(owner) = self.hosts[self.home[shard]].shard(id) else {
            return Ok(());
        };
        let mut queues = Queues::default();
        let shards = self.hosts.iter().flat_map(|host| host.shards());
        shards
            .flat_map(|shard| shard.drivers())
            .for_each(|driver| queues.note(driver));
        let mut rides: Vec<(&Ride, &ZoneName)> = owner
            .waiting()
            .filter_map(|ride| Some((ride, ride.airport.as_ref()?)))
            .collect();
        let asks: Vec<RideAsk> = rides
            .iter()
            .map(|(ride, _)| RideAsk {
                ride: ride.id,
                version: ride.seq,
                since: ride.issued_at,
            })
            .collect();
        let named: Vec<(&RideAsk, &ZoneName)> = asks
            .iter()
            .zip(&rides)
            .map(|(ask, (_, airport))| (ask, *airport))
            .collect();
        let may_ask = |ride: &Ride, driver: &DriverId| {
            self.model.drivers.get(driver).is_some_and(|facts| {
                let serves = facts.online.is_some_and(|all| all.contains(ride.class));
                serves
                    && !facts.leaving
                    && !facts.away
                    && facts.held.is_none()
                    && ride.may_ask(driver, facts.seq)
            })
        };
        let called = queues.call(&named, |at, driver| may_ask(rides[at].0, driver));
        let called: BTreeMap<RideId, DriverId> = called
            .into_iter()
            .map(|(at, driver)| (asks[at].ride, driver))
            .collect();

        rides.sort_by_key(|(ride, _)| (ride.issued_at, ride.id));
        let (mut gone, mut result) = (BTreeSet::new(), RoundResult::default());
        for (ride, airport) in rides {
            let waits = |place: &&QueuePlace| place.airport == *airport;
            let turn = self.queues.of.iter().filter(|(driver, place)| {
                waits(place) && !gone.contains(*driver) && may_ask(ride, driver)
            });
            let next = turn.min_by_key(|(driver, place)| (place.since, place.number, *driver));
            let next = next.map(|(driver, _)| driver.clone());
            demand!(
                called.get(&ride.id) == next.as_ref(),
                "{} is offered to {:?}, and it is the turn of {next:?}",
                ride.id,
                called.get(&ride.id)
            );
            result.looked.push((ride.id, ride.seq));
            result.pairs.extend(next.clone().map(|driver| Pair {
                ride: ride.id,
                version: ride.seq,
                driver,
                cost_ms: 0,
            }));
            gone.extend(next);
        }
        *self.seen.entry(CALLED).or_insert(0) += result.pairs.len() as u32;
        if !result.looked.is_empty() {
            self.hand_in(id, result);
        }
        Ok(())
    }
}

/// Counted among the events: a driver was called whose turn it was.
pub(super) const CALLED: &str = "the next at an airport is called";
