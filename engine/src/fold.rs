//! State = fold of events: what a shard's entities are after its events, for whoever only listens.
//!
//! The shard itself publishes an event and folds it in by the same function, so a listener that folds every event of a
//! shard in order has what the shard has. One thing differs: an ended ride is forgotten without an event, by time
//! ([`Entities::forget_ended`]).

use std::collections::BTreeMap;

use cabrank_events::command::EntityId;
use cabrank_events::{DriverId, Event, EventRecord, RideId, RiderId, Time};
use serde::Deserialize;
use serde_json::Value;

use crate::config::EngineConfig;
use crate::driver::Driver;
use crate::market::Market;
use crate::ride::{Bounds, Ride, Stage};
use crate::rider::Rider;
use crate::shard::EntityState;

impl Bounds {
    /// What the configuration says.
    pub fn of(config: &EngineConfig) -> Bounds {
        Bounds {
            asked_max: config.asked_max,
            outcomes_max: config.outcomes_max,
        }
    }
}

/// The entities of one shard, or of several.
#[derive(Clone, Debug, Default)]
pub struct Entities {
    /// Rides, open or still remembered.
    pub rides: BTreeMap<RideId, Ride>,
    /// Drivers.
    pub drivers: BTreeMap<DriverId, Driver>,
    /// Riders.
    pub riders: BTreeMap<RiderId, Rider>,
    /// What the desk has set for the market, if anything.
    pub market: Option<Market>,
}

impl Entities {
    /// Takes in a stored state.
    pub fn insert(&mut self, state: EntityState) {
        match state {
            EntityState::Ride(ride) => {
                self.rides.insert(ride.id, ride);
            }
            EntityState::Driver(driver) => {
                self.drivers.insert(driver.id.clone(), driver);
            }
            EntityState::Rider(rider) => {
                self.riders.insert(rider.id.clone(), rider);
            }
            EntityState::Market(market) => self.market = Some(market),
        }
    }

    /// Folds an event in. Events of a shard must come in the order of their numbers, those of an entity suffice.
    pub fn apply(&mut self, record: &EventRecord, bounds: &Bounds) {
        let Entities {
            rides,
            drivers,
            riders,
            market,
        } = self;
        fold(rides, drivers, riders, market, record, bounds);
    }

    /// Forgets the rides whose end is no longer remembered at `now`, and returns them.
    pub fn forget_ended(&mut self, now: Time) -> Vec<RideId> {
        let over = |ride: &Ride| matches!(ride.stage, Stage::Ended { keep_until, .. } if keep_until <= now);
        self.rides
            .extract_if(.., |_, ride| over(ride))
            .map(|(id, _)| id)
            .collect()
    }
}

/// What a shard has given to another one (PROTOCOL 30), or a part of it.
pub(crate) fn parse_state<'a, T: Deserialize<'a>>(stored: &'a Value) -> T {
    // PROTOCOL 9: what cannot be read stops the shard loudly; a shard of this program wrote it.
    T::deserialize(stored).expect("a state is as it was given")
}

/// Folds one event into its entity.
pub(crate) fn fold(
    rides: &mut BTreeMap<RideId, Ride>,
    drivers: &mut BTreeMap<DriverId, Driver>,
    riders: &mut BTreeMap<RiderId, Rider>,
    market: &mut Option<Market>,
    record: &EventRecord,
    bounds: &Bounds,
) {
    match (record.event.entity(), &record.event) {
        (EntityId::Ride(id), Event::RideRequested(opened)) => {
            rides.insert(id, Ride::opened(opened));
        }
        (EntityId::Ride(id), event) => {
            if let Some(ride) = rides.get_mut(&id) {
                ride.apply(event, bounds);
            }
        }
        (EntityId::Driver(id), Event::DriverForgotten(_) | Event::DriverHandedOver(_)) => {
            drivers.remove(&id);
        }
        (EntityId::Driver(id), event @ Event::CommandOutcome(_)) => {
            if let Some(driver) = drivers.get_mut(&id) {
                driver.apply(event, bounds);
            }
        }
        (EntityId::Driver(id), event) => drivers
            .entry(id)
            .or_insert_with_key(|id| Driver::unseen(id.clone(), record.seq))
            .apply(event, bounds),
        (EntityId::Rider(id), Event::RiderForgotten(_) | Event::RiderHandedOver(_)) => {
            riders.remove(&id);
        }
        (EntityId::Rider(_), Event::CommandOutcome(_)) => {}
        (EntityId::Rider(id), event) => riders
            .entry(id)
            .or_insert_with_key(|id| Rider::unseen(id.clone(), record.seq))
            .apply(event, record.time),
        (EntityId::Market, event) => {
            let market = market.get_or_insert_default();
            market.apply(event, record.time, bounds);
        }
    }
}
