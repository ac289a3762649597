//! What was last committed, for reads and for resuming sessions. Filled after each commit, never before.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use cabrank_engine::driver::Driver;
use cabrank_engine::fold::Entities;
use cabrank_engine::queues::Queues;
use cabrank_engine::ride::{Ride, Stage};
use cabrank_engine::rider::Rider;
use cabrank_engine::{EntityState, Market};
use cabrank_events::command::EntityId;
use cabrank_events::wire::{QueueView, RideView};
use cabrank_events::{DriverId, Event, EventRecord, RideId, RiderId, ShardId, Time};
use dashmap::DashMap;

use crate::api::DriverView;

/// A ride as reads see it.
#[derive(Clone)]
pub(crate) struct RideEntry {
    pub view: Arc<RideView>,
    /// Until when the open offer waits for the phone or the driver.
    pub offer_until: Option<Time>,
}

/// Committed state by id. As large as the engine's own memory, which has its own bounds.
#[derive(Default)]
pub(crate) struct Views {
    pub rides: DashMap<RideId, RideEntry>,
    pub drivers: DashMap<DriverId, DriverView>,
    pub active: DashMap<RiderId, RideId>,
    /// What the desk has set; the newest known, whoever owns the market's shard.
    market: Mutex<Option<Market>>,
    /// Who waits at airports.
    queues: RwLock<Queues>,
    moves: Mutex<Moves>,
}

/// People on their way to another shard, as far as only one of the two shards was heard. They are not read in step: what the new one
/// says may come before the last words of the old one. At most the people who move in one growth of the ring: when the next one begins,
/// those who are left of the last are forgotten.
#[derive(Default)]
struct Moves {
    handed_over: BTreeSet<EntityId>,
    taken_over: BTreeMap<EntityId, ShardId>,
}

impl Views {
    /// Drops what is not alive.
    pub fn keep(&self, alive: impl Fn(&EntityId) -> bool) {
        self.rides.retain(|id, _| alive(&EntityId::Ride(*id)));
        self.drivers
            .retain(|id, _| alive(&EntityId::Driver(id.clone())));
        self.active
            .retain(|id, _| alive(&EntityId::Rider(id.clone())));
        let mut queues = self.queues.write().unwrap_or_else(PoisonError::into_inner);
        queues.keep(|id| alive(&EntityId::Driver(id.clone())));
    }

    /// A committed state; `None`: the entity is gone.
    pub fn committed(&self, entity: &EntityId, state: Option<&EntityState>) {
        match (entity, state) {
            (_, Some(EntityState::Ride(ride))) => self.ride(ride.id, Some(ride)),
            (_, Some(EntityState::Driver(driver))) => self.driver(&driver.id, Some(driver)),
            (_, Some(EntityState::Rider(rider))) => self.rider(&rider.id, Some(rider)),
            (_, Some(EntityState::Market(market))) => self.market(market),
            (EntityId::Market, None) => {}
            (EntityId::Ride(id), None) => self.ride(*id, None),
            (EntityId::Driver(id), None) => self.driver(id, None),
            (EntityId::Rider(id), None) => self.rider(id, None),
        }
    }

    /// The entity as it is among `entities`.
    pub fn show(&self, entity: &EntityId, entities: &Entities) {
        match entity {
            EntityId::Ride(id) => self.ride(*id, entities.rides.get(id)),
            EntityId::Driver(id) => self.driver(id, entities.drivers.get(id)),
            EntityId::Rider(id) => self.rider(id, entities.riders.get(id)),
            EntityId::Market => entities
                .market
                .iter()
                .for_each(|market| self.market(market)),
        }
    }

    /// Somebody was found in a shard who lived in another one before the ring grew: the old one's last words may be heard later.
    pub fn came(&self, entity: EntityId, shard: ShardId) {
        let mut moves = self.moves.lock().unwrap_or_else(PoisonError::into_inner);
        if !moves.handed_over.remove(&entity) {
            moves.taken_over.insert(entity, shard);
        }
    }

    /// Another growth of the ring has begun, so the one before it is over.
    pub fn begin_moves(&self) {
        *self.moves.lock().unwrap_or_else(PoisonError::into_inner) = Moves::default();
    }

    /// Does this event say how somebody is now? Not when another shard has gone on with them, nor when it only answers them.
    pub fn is_news(&self, record: &EventRecord) -> bool {
        let entity = record.event.entity();
        if !matches!(entity, EntityId::Driver(_) | EntityId::Rider(_)) {
            return true;
        }
        if matches!(record.event, Event::CommandOutcome(_)) {
            return false;
        }
        let mut moves = self.moves.lock().unwrap_or_else(PoisonError::into_inner);
        match &record.event {
            Event::DriverHandedOver(_) | Event::RiderHandedOver(_) => {
                if moves.taken_over.remove(&entity).is_none() {
                    moves.handed_over.insert(entity);
                }
                false
            }
            Event::DriverTakenOver(_) | Event::RiderTakenOver(_) => {
                if !moves.handed_over.remove(&entity) {
                    moves.taken_over.insert(entity, record.shard);
                }
                true
            }
            _ => moves
                .taken_over
                .get(&entity)
                .is_none_or(|home| *home == record.shard),
        }
    }

    /// What the desk has set, unless it is older than what is known.
    pub fn market(&self, market: &Market) {
        let mut known = self.market.lock().unwrap_or_else(PoisonError::into_inner);
        if known.as_ref().is_none_or(|known| known.seq <= market.seq) {
            *known = Some(market.clone());
        }
    }

    /// What the desk has set, if anything.
    pub fn market_set(&self) -> Option<Market> {
        let known = self.market.lock().unwrap_or_else(PoisonError::into_inner);
        known.clone()
    }

    /// A ride, or its absence.
    pub fn ride(&self, id: RideId, ride: Option<&Ride>) {
        match ride {
            Some(ride) => {
                self.rides.insert(id, RideEntry::of(ride));
            }
            None => {
                self.rides.remove(&id);
            }
        }
    }

    fn driver(&self, id: &DriverId, driver: Option<&Driver>) {
        wait(&self.queues, id, driver);
        match driver {
            Some(driver) => {
                self.drivers.insert(id.clone(), view_of(driver));
            }
            None => {
                self.drivers.remove(id);
            }
        }
    }

    fn rider(&self, id: &RiderId, rider: Option<&Rider>) {
        match rider.and_then(|rider| rider.active) {
            Some(ride) => {
                self.active.insert(id.clone(), ride);
            }
            None => {
                self.active.remove(id);
            }
        }
    }

    /// Where a driver waits for an airport's riders, and before how many others.
    pub fn queue_place(&self, id: &DriverId) -> Option<QueueView> {
        let queues = self.queues.read().unwrap_or_else(PoisonError::into_inner);
        let (airport, position) = queues.position(id)?;
        let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        Some(QueueView {
            airport: airport.clone(),
            position: Some(number(position)),
            waiting: number(queues.waiting(airport)),
            is_full: false,
        })
    }

    /// A ride as the people in it see it.
    pub fn ride_view(&self, id: RideId) -> Option<Arc<RideView>> {
        self.rides.get(&id).map(|entry| Arc::clone(&entry.view))
    }
}

impl RideEntry {
    fn of(ride: &Ride) -> RideEntry {
        let offer_until = match ride.stage {
            Stage::Offered { until, .. } => Some(until),
            Stage::Waiting
            | Stage::Claiming { .. }
            | Stage::EnRoute { .. }
            | Stage::Arrived { .. }
            | Stage::Started { .. }
            | Stage::Ended { .. } => None,
        };
        RideEntry {
            view: Arc::new(ride.view()),
            offer_until,
        }
    }
}

fn view_of(driver: &Driver) -> DriverView {
    DriverView {
        session: driver.open_session(),
        hold: driver.held.map(|held| held.hold),
        suspended: driver.suspended.clone(),
    }
}

/// Notes where a driver waits, if anywhere. Nearly nobody does, and then nothing is written.
pub(crate) fn wait(queues: &RwLock<Queues>, id: &DriverId, driver: Option<&Driver>) {
    let waits = driver.is_some_and(|driver| driver.waits_at().is_some());
    let known = queues.read().unwrap_or_else(PoisonError::into_inner);
    if !waits && !known.has(id) {
        return;
    }
    drop(known);
    let mut queues = queues.write().unwrap_or_else(PoisonError::into_inner);
    match driver {
        Some(driver) => queues.note(driver),
        None => queues.forget(id),
    }
}
