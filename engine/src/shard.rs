//! One shard: its riders, drivers and rides, and what each command does to them.
//!
//! Call a `handle_*`, then [`Shard::take_effects`]. Same inputs in the same order give the same effects on any
//! machine: no clock, no randomness, no iteration over unordered maps. Time comes with the inputs and never goes
//! back; due timers fire before the command that moves time past them, ordered by (due, entity) (PROTOCOL 15, 16).
//! Every handler is total: each command in each state ends in a named outcome or a named no-op.
//! Not here: which messages hop and which go through the log (`host`), choosing drivers (`matching`).

mod driver_side;
mod exchange;
mod market_side;
mod ride_side;
mod rider_side;
mod ring_side;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cabrank_events::command::{EntityId, Growth, MARKET_SHARD, Outcome};
use cabrank_events::event::CommandOutcome;
use cabrank_events::{
    Command, CommandId, CommandRecord, DriverId, Event, EventRecord, PickupPoint, RideId, RiderId,
    ShardId, Time,
};
use cabrank_ring::{Kind, Ring, SHARDS_MAX};
use serde::{Deserialize, Serialize};

use crate::config::EngineConfig;
use crate::driver::Driver;
use crate::fold::fold;
use crate::market::Market;
use crate::queues::Queues;
use crate::ride::{Bounds, Ride, Stage};
use crate::rider::Rider;
use crate::sabotage::{self, Sabotage};
use ring_side::Goes;
pub use ring_side::Growing;

/// A message from one entity to another, not yet routed.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// The shard of the entity it is for.
    pub to: ShardId,
    /// What is said.
    pub record: CommandRecord,
}

impl Message {
    /// May it go past the log? A request's place in the log is part of its ride's name.
    pub(crate) fn may_hop(&self) -> bool {
        let command = &self.record.command;
        !matches!(command, Command::Ring { .. } | Command::RequestRide { .. })
    }
}

/// What a `handle_*` brought about, in order.
#[derive(Clone, Debug, Default)]
pub struct Effects {
    /// Facts to publish.
    pub events: Vec<EventRecord>,
    /// Messages to other entities (also of this shard).
    pub messages: Vec<Message>,
    /// Entities whose state changed or ended.
    pub changed: BTreeSet<EntityId>,
}

/// What a shard keeps besides its entities: stored in its header.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Counters {
    /// The number of the shard's newest event.
    pub seq: u64,
    /// Messages sent through the log, by receiving shard.
    pub sent: Vec<u64>,
    /// Messages received through the log, by sending shard.
    pub received: Vec<u64>,
    /// Shards of the ring it works by, once that has grown; else it is as the city was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ring: Option<u16>,
    /// The largest number of an event that somebody may have had elsewhere before they came here.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub floor: u64,
    /// How far it is with a growth of the ring, if one is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub growing: Option<Box<Growing>>,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Counters {
    /// By the new ring from now on.
    fn adopt(&mut self, growth: Growth) {
        self.ring = Some(growth.to);
        self.growing = Some(Box::new(Growing::new(growth)));
        self.know_peers(usize::from(growth.to));
    }

    /// There are so many shards at least, whatever ring this one goes by: a new one may speak to it before it has heard of a growth.
    pub(crate) fn know_peers(&mut self, peers: usize) {
        let peers = peers.max(self.sent.len());
        self.sent.resize(peers, 0);
        self.received.resize(peers, 0);
    }
}

/// An entity's state as `shard-state` keeps it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "entity", rename_all = "snake_case")]
pub enum EntityState {
    /// A ride.
    Ride(Ride),
    /// A driver.
    Driver(Driver),
    /// A rider.
    Rider(Rider),
    /// What the desk has set for the market.
    Market(Market),
}

/// How many waits of one entity can end at one instant: an offer, the deadline or a step of the search, the memory
/// of the end.
const SAME_INSTANT_MAX: u32 = 4;

/// One shard of the engine.
#[derive(Clone)]
pub struct Shard {
    id: ShardId,
    config: Arc<EngineConfig>,
    ring: Arc<Ring>,
    /// Of before a growth that is under way.
    old_ring: Option<Arc<Ring>>,
    bounds: Bounds,
    time: Time,
    pub(crate) counters: Counters,
    rides: BTreeMap<RideId, Ride>,
    drivers: BTreeMap<DriverId, Driver>,
    riders: BTreeMap<RiderId, Rider>,
    market: Option<Market>,
    due: BTreeSet<(Time, EntityId)>,
    due_of: BTreeMap<EntityId, Time>,
    waiting: BTreeSet<(Time, RideId)>,
    open_rides: usize,
    marked_drivers: usize,
    /// Of the drivers who live here.
    queues: Queues,
    effects: Effects,
    sabotage: Option<Sabotage>,
}

impl Shard {
    /// An empty shard. `ring` is the one of before a growth that is under way: a shard hears of it by its log.
    pub fn new(id: ShardId, config: Arc<EngineConfig>, ring: Arc<Ring>) -> Shard {
        let bounds = Bounds {
            asked_max: config.asked_max,
            outcomes_max: config.outcomes_max,
        };
        let peers = usize::from(ring.shards());
        Shard {
            id,
            config,
            ring,
            old_ring: None,
            bounds,
            time: Time(i64::MIN),
            counters: Counters {
                seq: 0,
                sent: vec![0; peers],
                received: vec![0; peers],
                ..Counters::default()
            },
            rides: BTreeMap::new(),
            drivers: BTreeMap::new(),
            riders: BTreeMap::new(),
            market: None,
            due: BTreeSet::new(),
            due_of: BTreeMap::new(),
            waiting: BTreeSet::new(),
            open_rides: 0,
            marked_drivers: 0,
            queues: Queues::default(),
            effects: Effects::default(),
            sabotage: None,
        }
    }

    /// A shard as its header (`time`, `counters`) and states left it. The states may come in any order; timers and
    /// queues follow from them. No effects: what was due meanwhile fires with the next input. `ring` is that of [`Shard::new`], or
    /// the one the header names.
    pub fn restore(
        id: ShardId,
        config: Arc<EngineConfig>,
        ring: Arc<Ring>,
        time: Time,
        counters: Counters,
        states: impl IntoIterator<Item = EntityState>,
    ) -> Shard {
        let mut shard = Shard::new(id, config, ring);
        shard.time = time;
        shard.counters = counters;
        let of = |shards: u16| Ring::new(shards).ok().map(Arc::new);
        let its = shard.counters.ring.unwrap_or(shard.ring.shards());
        if its != shard.ring.shards() {
            // It was in force when the header was written, so it is possible.
            shard.ring = of(its).unwrap_or(shard.ring);
        }
        let growing = shard.counters.growing.as_ref();
        shard.old_ring = growing.and_then(|growing| of(growing.growth.from));
        shard.counters.know_peers(usize::from(shard.ring.shards()));
        for state in states {
            let entity = match state {
                EntityState::Ride(ride) => {
                    let entity = EntityId::Ride(ride.id);
                    shard.rides.insert(ride.id, ride);
                    entity
                }
                EntityState::Driver(driver) => {
                    let entity = EntityId::Driver(driver.id.clone());
                    shard.drivers.insert(driver.id.clone(), driver);
                    entity
                }
                EntityState::Rider(rider) => {
                    let entity = EntityId::Rider(rider.id.clone());
                    shard.riders.insert(rider.id.clone(), rider);
                    entity
                }
                EntityState::Market(market) => {
                    shard.market = Some(market);
                    EntityId::Market
                }
            };
            shard.reindex(&entity);
        }
        shard.open_rides = shard.rides.values().filter(|ride| !ride.is_ended()).count();
        shard.marked_drivers = shard.drivers.values().filter(|d| d.is_marked()).count();
        shard
    }

    /// Breaks the engine on purpose; only test builds can.
    pub fn sabotage(&mut self, how: Sabotage) {
        self.sabotage = Some(how);
    }

    pub(crate) fn is_sabotaged(&self, how: Sabotage) -> bool {
        self.broken(how)
    }

    fn broken(&self, how: Sabotage) -> bool {
        sabotage::POSSIBLE && self.sabotage == Some(how)
    }

    /// Its number.
    pub fn id(&self) -> ShardId {
        self.id
    }

    /// Engine time: the largest append time handled, or the clock it was moved on to.
    pub fn time(&self) -> Time {
        self.time
    }

    /// Event and message counters, for the header.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// A ride that lives here.
    pub fn ride(&self, id: RideId) -> Option<&Ride> {
        self.rides.get(&id)
    }

    /// A driver who lives here.
    pub fn driver(&self, id: &DriverId) -> Option<&Driver> {
        self.drivers.get(id)
    }

    /// A rider who lives here.
    pub fn rider(&self, id: &RiderId) -> Option<&Rider> {
        self.riders.get(id)
    }

    /// What the desk has set for the market, if that lives here.
    pub fn market(&self) -> Option<&Market> {
        self.market.as_ref()
    }

    /// All rides here.
    pub fn rides(&self) -> impl Iterator<Item = &Ride> {
        self.rides.values()
    }

    /// All drivers here.
    pub fn drivers(&self) -> impl Iterator<Item = &Driver> {
        self.drivers.values()
    }

    /// All riders here.
    pub fn riders(&self) -> impl Iterator<Item = &Rider> {
        self.riders.values()
    }

    /// The rides a round should look at, first come first.
    pub fn waiting(&self) -> impl Iterator<Item = &Ride> {
        self.waiting.iter().filter_map(|(_, id)| self.rides.get(id))
    }

    /// The rides whose drivers are on the way and may be exchanged as far as the engine is concerned, by id. Looks at
    /// every ride of the shard.
    pub fn on_the_way(&self) -> impl Iterator<Item = &Ride> {
        let rides = self.rides.values();
        rides.filter(|ride| ride.may_be_exchanged(&self.config))
    }

    fn may_change_driver(&self, ride: &Ride) -> bool {
        let changes_left = ride.swaps < self.config.swaps.swaps_max;
        ride.may_lose_driver(&self.config) && (changes_left || self.broken(Sabotage::SwapForEver))
    }

    /// How many rides wait.
    pub fn waiting_count(&self) -> usize {
        self.waiting.len()
    }

    /// Rides that have not come to their end.
    pub fn open_rides(&self) -> usize {
        self.open_rides
    }

    /// The state to store for `entity`; `None` when it is gone (a tombstone).
    pub fn state_of(&self, entity: &EntityId) -> Option<EntityState> {
        match entity {
            EntityId::Ride(id) => self.rides.get(id).cloned().map(EntityState::Ride),
            EntityId::Driver(id) => self.drivers.get(id).cloned().map(EntityState::Driver),
            EntityId::Rider(id) => self.riders.get(id).cloned().map(EntityState::Rider),
            EntityId::Market => self.market.clone().map(EntityState::Market),
        }
    }

    fn has(&self, entity: &EntityId) -> bool {
        match entity {
            EntityId::Ride(id) => self.rides.contains_key(id),
            EntityId::Driver(id) => self.drivers.contains_key(id),
            EntityId::Rider(id) => self.riders.contains_key(id),
            EntityId::Market => self.market.is_some(),
        }
    }

    /// When a timer fires next.
    pub fn poll_deadline(&self) -> Option<(Time, &EntityId)> {
        self.due.first().map(|(due, entity)| (*due, entity))
    }

    /// What has happened since the last call.
    pub fn take_effects(&mut self) -> Effects {
        std::mem::take(&mut self.effects)
    }

    /// A command from the log. `offset` names it in this shard's input, `appended_at` moves the engine's time.
    pub fn handle_command(&mut self, offset: u64, appended_at: Time, record: &CommandRecord) {
        if let Some(peer) = record.from {
            // One that is new, and of which this shard has not heard yet, is counted, too.
            if peer.0 < SHARDS_MAX {
                self.counters.know_peers(usize::from(peer.0) + 1);
                self.counters.received[usize::from(peer.0)] += 1;
            }
        }
        self.handle_time(appended_at);
        self.dispatch(Some(offset), record);
    }

    /// A message from a shard on the same node, inside the same transaction. Never moves time, so it may leave a
    /// timer that is due already; it fires with the next input.
    pub fn handle_hop(&mut self, record: &CommandRecord) {
        self.dispatch(None, record);
    }

    /// The clock: fires the timers that are due by `now`, the earliest first. A `now` in the past changes nothing.
    ///
    /// Only for a shard that has read all its input appended up to `now` (PROTOCOL 15), or timers fire before
    /// answers that came in time.
    pub fn handle_time(&mut self, now: Time) {
        self.time = self.time.max(now);
        let (mut last, mut fired) = (None, 0);
        while let Some((due, entity)) = self.due.first().cloned() {
            if due > self.time {
                break;
            }
            match &entity {
                EntityId::Ride(id) => self.ride_timer(*id),
                EntityId::Driver(id) => self.driver_timer(id),
                EntityId::Rider(id) => self.rider_timer(id),
                EntityId::Market => unreachable!("the market waits for nothing"),
            }
            self.reindex(&entity);
            // One instant may end several waits of an entity (an offer runs out as the search is to grow), but a
            // timer that leaves its entity due at that instant again and again would fire for ever.
            let fires = Some((due, entity));
            fired = if fires == last { fired + 1 } else { 1 };
            last = fires;
            assert!(fired <= SAME_INSTANT_MAX, "timers do not move on: {last:?}");
        }
    }

    fn dispatch(&mut self, offset: Option<u64>, record: &CommandRecord) {
        let id = record.id.as_ref();
        let entity = record.command.entity();
        match self.goes(&entity) {
            Goes::Here => {}
            Goes::To(home) => return self.pass_on(home, record),
            Goes::Waits { old } => return self.put_aside(offset, record, old),
        }
        match &record.command {
            Command::RequestRide { .. }
            | Command::CancelByKey { .. }
            | Command::RideOpened { .. }
            | Command::OpenRefused { .. }
            | Command::RideClosed { .. } => self.handle_for_rider(offset, record),
            Command::OpenRide(_)
            | Command::CancelRide { .. }
            | Command::ChangeDestination { .. }
            | Command::ReceiveOffer { .. }
            | Command::AcceptOffer { .. }
            | Command::DeclineOffer { .. }
            | Command::Arrive { .. }
            | Command::StartRide { .. }
            | Command::CompleteRide { .. }
            | Command::GiveBack { .. }
            | Command::ClaimGranted { .. }
            | Command::ClaimRefused { .. }
            | Command::TransferAnswered { .. }
            | Command::DriverLeft { .. } => self.handle_for_ride(id, &record.command),
            Command::GoOnline { .. }
            | Command::GoOffline { .. }
            | Command::DriverSilent { .. }
            | Command::ClaimDriver { .. }
            | Command::TransferHold { .. }
            | Command::SuspendDriver { .. }
            | Command::ReinstateDriver { .. }
            | Command::BlockRider { .. }
            | Command::UnblockRider { .. }
            | Command::SetHeading { .. }
            | Command::EnterQueue { .. }
            | Command::LeaveQueue { .. }
            | Command::ReleaseDriver { .. } => self.handle_for_driver(id, &record.command),
            Command::SetDispatch { settings } => self.set_dispatch(id, settings),
            Command::DrainNode { node } => self.drain_node(id, node),
            Command::GrowRing { to, step } => self.grow_ring(id, *to, *step),
            Command::Ring { growth, said } => self.heard(record.from, *growth, said),
        }
        self.reindex(&entity);
    }

    // -- what handlers use ---------------------------------------------------------------------------------

    /// Publishes an event and folds it into its entity: the only way state changes.
    fn emit(&mut self, event: impl Into<Event>) {
        let event = event.into();
        let entity = event.entity();
        self.counters.seq += 1;
        let record = EventRecord {
            traceparent: None,
            shard: self.id,
            seq: self.counters.seq,
            time: self.time,
            event,
        };
        if let EntityId::Ride(id) = &entity {
            if matches!(record.event, Event::RideRequested(_)) {
                self.open_rides += 1;
            } else if self.rides.contains_key(id) && record.event.end().is_some() {
                self.open_rides = self.open_rides.saturating_sub(1);
            }
        }
        fold(
            &mut self.rides,
            &mut self.drivers,
            &mut self.riders,
            &mut self.market,
            &record,
            &self.bounds,
        );
        // An answer changes nobody who does not live here: that would be the end of a state that others hold.
        let is_change = !matches!(record.event, Event::CommandOutcome(_)) || self.has(&entity);
        self.effects.events.push(record);
        if is_change
            && !(self.broken(Sabotage::ForgetToSave) && matches!(entity, EntityId::Driver(_)))
        {
            self.effects.changed.insert(entity);
        }
    }

    /// Answers an external command; internal ones have no id and need no answer.
    fn answer(
        &mut self,
        command: Option<&CommandId>,
        asked: &EntityId,
        outcome: Outcome,
        ride: Option<RideId>,
    ) {
        self.answer_with(command, asked, outcome, ride, None);
    }

    /// The same, telling where the rider is fetched instead of where they asked.
    fn answer_with(
        &mut self,
        command: Option<&CommandId>,
        asked: &EntityId,
        outcome: Outcome,
        ride: Option<RideId>,
        pickup_point: Option<Box<PickupPoint>>,
    ) {
        let Some(command) = command else { return };
        let (asked_ride, asked_driver, asked_rider) = match asked {
            EntityId::Ride(id) => (Some(*id), None, None),
            EntityId::Driver(id) => (None, Some(id.clone()), None),
            EntityId::Rider(id) => (None, None, Some(id.clone())),
            EntityId::Market => (None, None, None),
        };
        let outcome = CommandOutcome {
            command: command.clone(),
            outcome,
            ride,
            asked_ride,
            asked_driver,
            asked_rider,
            pickup_point,
        };
        let is_twice = self.broken(Sabotage::AnswerTwiceOnceGrown)
            && self.counters.ring.is_some()
            && matches!(asked, EntityId::Driver(_) | EntityId::Rider(_));
        if is_twice {
            self.emit(outcome.clone());
        }
        self.emit(outcome);
    }

    fn send(&mut self, command: Command) {
        self.send_for(None, command);
    }

    /// Sends a message that carries somebody's command id on, so that its receiver answers.
    fn send_for(&mut self, id: Option<&CommandId>, command: Command) {
        let to = match command.entity() {
            EntityId::Ride(ride) => ride.place,
            EntityId::Driver(driver) => {
                ShardId(self.ring.shard_of_person(Kind::Driver, driver.as_str()))
            }
            EntityId::Rider(rider) => {
                ShardId(self.ring.shard_of_person(Kind::Rider, rider.as_str()))
            }
            EntityId::Market => MARKET_SHARD,
        };
        let mut record = CommandRecord::internal(self.id, self.time, command);
        record.id = id.cloned();
        self.effects.messages.push(Message { to, record });
    }

    fn due_of_driver(&self, driver: &Driver) -> Option<Time> {
        match self.broken(Sabotage::ForgetMarks) {
            true => driver.memory_ends(),
            false => driver.due(),
        }
    }

    /// Brings timers and the queue of waiting rides up to date with an entity's state.
    fn reindex(&mut self, entity: &EntityId) {
        let due = match entity {
            EntityId::Ride(id) => self.rides.get(id).map(|ride| match ride.stage {
                Stage::Claiming { .. } if self.broken(Sabotage::NoClaimTimer) => ride.deadline,
                _ => ride.due(self.config.radius_max_m),
            }),
            EntityId::Driver(id) => self.drivers.get(id).and_then(|d| self.due_of_driver(d)),
            EntityId::Rider(id) => self.riders.get(id).and_then(Rider::due),
            EntityId::Market => None,
        };
        let before = match due {
            Some(due) => self.due_of.insert(entity.clone(), due),
            None => self.due_of.remove(entity),
        };
        if before != due {
            if let Some(before) = before {
                self.due.remove(&(before, entity.clone()));
            }
            if let Some(due) = due {
                self.due.insert((due, entity.clone()));
            }
        }
        if let EntityId::Driver(id) = entity {
            match self.drivers.get(id) {
                Some(driver) => self.queues.note(driver),
                None => self.queues.forget(id),
            }
        }
        if let EntityId::Ride(id) = entity
            && let Some(ride) = self.rides.get(id)
        {
            let place = (ride.issued_at, ride.id);
            match ride.stage {
                Stage::Waiting => self.waiting.insert(place),
                Stage::Claiming { .. }
                | Stage::Offered { .. }
                | Stage::EnRoute { .. }
                | Stage::Arrived { .. }
                | Stage::Started { .. }
                | Stage::Ended { .. } => self.waiting.remove(&place),
            };
        }
    }
}
