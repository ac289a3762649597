//! A node in virtual time: the engine's shards, the live index, rounds. No thread, no clock, no log.
//!
//! What the commit loop of a node does with commands, timers, pings and rounds (`matcher/src/node/run.rs`), this does at
//! one instant of virtual time: a commit takes no time and never fails. With several shards either one round sees the
//! rides of all of them, as on one node, or each shard has rounds of its own, as on a node each.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use cabrank_engine::driver::Presence;
use cabrank_engine::matching::PolicyKind;
use cabrank_engine::matching::others::{self, Others};
use cabrank_engine::ride::{Ride, Stage};
use cabrank_engine::travel::StraightLine;
use cabrank_engine::{Batch, EngineConfig, Host, Shard};
use cabrank_events::command::{EntityId, MARKET_SHARD};
use cabrank_events::event::DeclinedBecause;
use cabrank_events::{
    Command, CommandId, CommandRecord, DriverId, Event, EventRecord, RideId, ShardId, Time,
};
use cabrank_geo::{DriverKey, IndexConfig, IndexFull, LiveIndex, Placement, Point, Slot, Status};
use cabrank_ring::{BadRing, Kind, Ring};

use crate::rounds::{Hint, Look, Promises, Roll, RoundRules, RoundSize};

/// Which rides one round sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scope {
    /// Those of all shards: one node has them all.
    #[default]
    Node,
    /// Those of one shard, as each shard is on a node of its own; those of the others are looked at where nodes do that
    /// (`cabrank_engine::matching::others`).
    Shard,
    /// Those of one shard, and no others.
    Blind,
}

/// What a node is made of.
#[derive(Clone, Debug)]
pub struct NodeRules {
    /// The market.
    pub engine: EngineConfig,
    /// Rounds.
    pub rounds: RoundRules,
    /// Least time between two rounds, ms.
    pub round_every_ms: u64,
    /// Rides in one round at most, and as many on the way.
    pub rides_per_round_max: usize,
    /// Messages between shards inside one transaction.
    pub hops_max: usize,
    /// Shards of the ring.
    pub shards: u16,
    /// Which rides one round sees.
    pub scope: Scope,
}

/// Why there is no node.
#[derive(Debug, thiserror::Error)]
pub enum BadNode {
    /// The number of shards.
    #[error(transparent)]
    Ring(#[from] BadRing),
    /// The index has no room.
    #[error(transparent)]
    Index(#[from] IndexFull),
}

/// Shards whose rides meet in one round.
struct Group {
    shards: Vec<ShardId>,
    /// Rides the next round looks at.
    dirty: BTreeSet<RideId>,
    next_round: Time,
    next_rematch: Time,
    promises: Promises,
    others: Others,
}

/// The node.
pub struct Dispatch {
    rules: NodeRules,
    ring: Arc<Ring>,
    host: Host,
    index: LiveIndex,
    slots: Vec<Slot>,
    roll: Roll,
    /// By number.
    hints: Vec<Hint>,
    next_input: Vec<u64>,
    batch: Batch,
    groups: Vec<Group>,
    /// Rides that were looked at in vain and their pickups.
    hungry: BTreeMap<RideId, Point>,
    travel: StraightLine,
    /// All rounds so far.
    pub rounds: Vec<RoundSize>,
}

impl Dispatch {
    /// A node that knows these drivers; each is meant by its place in the list from here on.
    pub fn new(
        rules: NodeRules,
        drivers: Vec<DriverId>,
        begins: Time,
    ) -> Result<Dispatch, BadNode> {
        let ring = Arc::new(Ring::new(rules.shards)?);
        let config = Arc::new(rules.engine.clone());
        let ids: Vec<ShardId> = (0..rules.shards).map(ShardId).collect();
        let shards = ids
            .iter()
            .map(|id| Shard::new(*id, Arc::clone(&config), Arc::clone(&ring)));
        let host = Host::new(shards, rules.hops_max);
        let index = LiveIndex::new(IndexConfig::city(drivers.len().max(1) as u32));
        let slots = (0..drivers.len() as u64)
            .map(|key| index.enter(DriverKey(key)))
            .collect::<Result<Vec<_>, _>>()?;
        let groups = match rules.scope {
            Scope::Node => vec![ids],
            Scope::Shard | Scope::Blind => ids.iter().map(|id| vec![*id]).collect(),
        };
        // Nodes do not begin their rounds in one breath.
        let count = groups.len() as u64;
        let group = |(n, shards): (u64, Vec<ShardId>)| Group {
            shards,
            dirty: BTreeSet::new(),
            next_round: begins.plus_ms(rules.round_every_ms * n / count),
            next_rematch: begins.plus_ms(rules.engine.swaps.every_ms * n / count),
            promises: Promises::default(),
            others: Others::default(),
        };
        Ok(Dispatch {
            ring,
            host,
            index,
            slots,
            hints: vec![Hint::default(); drivers.len()],
            roll: Roll {
                numbers: drivers.iter().cloned().zip(0..).collect(),
                ids: drivers,
            },
            next_input: vec![0; usize::from(rules.shards)],
            batch: Batch::default(),
            groups: (0..).zip(groups).map(group).collect(),
            hungry: BTreeMap::new(),
            travel: StraightLine { speed_mps: 1.0 },
            rounds: Vec::new(),
            rules,
        })
    }

    /// The place of a driver in the list.
    pub fn number(&self, driver: &DriverId) -> Option<u32> {
        self.roll.numbers.get(driver).copied()
    }

    /// How fast cars are at this hour, metres a second along straight lines.
    pub fn set_speed(&mut self, speed_mps: f64) {
        self.travel = StraightLine { speed_mps };
    }

    /// A command that is in the log now.
    pub fn handle_command(&mut self, now: Time, record: &CommandRecord) {
        let shard = match record.command.entity() {
            EntityId::Ride(ride) => ride.place,
            EntityId::Driver(id) => ShardId(self.ring.shard_of_person(Kind::Driver, id.as_str())),
            EntityId::Rider(id) => ShardId(self.ring.shard_of_person(Kind::Rider, id.as_str())),
            EntityId::Market => MARKET_SHARD,
        };
        let Some(next) = self.next_input.get_mut(usize::from(shard.0)) else {
            return;
        };
        let offset = *next;
        *next += 1;
        // All commands up to now are at hand, so every shard's time may move up (PROTOCOL 15).
        self.host.handle_time(&mut self.batch, now);
        self.host
            .handle_command(&mut self.batch, shard, offset, now, record);
    }

    /// A position of a driver.
    pub fn handle_ping(&mut self, driver: u32, at: Point, now: Time, seq: u32) {
        let placement = Placement {
            at,
            time_ms: now.0,
            seq,
        };
        self.index.place(self.slots[driver as usize], placement);
        self.wake_for(driver);
    }

    /// When something is due.
    pub fn poll_time(&self) -> Option<Time> {
        let rounds = self.groups.iter().flat_map(|group| {
            let dirty = (!group.dirty.is_empty()).then_some(group.next_round);
            let rematch = self
                .rematches()
                .then(|| group.next_rematch.max(group.next_round));
            [dirty, rematch]
        });
        rounds.flatten().chain(self.host.poll_deadline()).min()
    }

    /// Timers, rounds and what comes of them; answers what happened since the last call.
    pub fn handle_time(&mut self, now: Time) -> Vec<EventRecord> {
        self.host.handle_time(&mut self.batch, now);
        self.carry(now);
        let noted = self.note_waiting(0);
        for at in 0..self.groups.len() {
            self.round(at, now);
        }
        self.carry(now);
        self.note_waiting(noted);
        let batch = std::mem::take(&mut self.batch);
        self.show(&batch, now);
        for record in &batch.events {
            self.note_answer(&record.event);
        }
        batch.events
    }

    /// Messages that may not hop go through the log.
    fn carry(&mut self, now: Time) {
        while !self.batch.messages.is_empty() {
            for message in std::mem::take(&mut self.batch.messages) {
                self.handle_command(now, &message.record);
            }
        }
    }

    fn ride(&self, id: RideId) -> Option<&Ride> {
        self.host.shard(id.place)?.ride(id)
    }

    fn waits(&self, id: RideId) -> bool {
        self.ride(id)
            .is_some_and(|ride| matches!(ride.stage, Stage::Waiting))
    }

    fn group_of(&self, ride: RideId) -> usize {
        match self.rules.scope {
            Scope::Node => 0,
            Scope::Shard | Scope::Blind => usize::from(ride.place.0),
        }
    }

    /// Marks the rides for a round that the events since `from` left in need of one.
    fn note_waiting(&mut self, from: usize) -> usize {
        let wanting: Vec<RideId> = self.batch.events[from..]
            .iter()
            .filter_map(|record| wants_a_round(&record.event))
            .filter(|ride| self.waits(*ride))
            .collect();
        for ride in wanting {
            let group = self.group_of(ride);
            self.groups[group].dirty.insert(ride);
        }
        self.batch.events.len()
    }

    /// How drivers answer offers. Who goes home has not turned one down.
    fn note_answer(&mut self, event: &Event) {
        let (driver, is_declined) = match event {
            Event::DriverAssigned(e) => (&e.driver, false),
            Event::OfferDeclined(e) if e.why == DeclinedBecause::Declined => (&e.driver, true),
            Event::OfferExpired(e) => (&e.driver, true),
            _ => return,
        };
        if let Some(number) = self.number(driver) {
            self.hints[number as usize].answered(is_declined);
        }
    }

    fn show(&mut self, batch: &Batch, now: Time) {
        for (shard, entity) in &batch.changed {
            match entity {
                EntityId::Driver(id) => {
                    let known = self.host.shard(*shard).and_then(|shard| shard.driver(id));
                    let (Some(driver), Some(number)) = (known, self.number(id)) else {
                        continue;
                    };
                    let (status, classes) = match (&driver.presence, &driver.held) {
                        (Presence::Online { classes }, None) => (Status::Free, classes.bits()),
                        (Presence::Online { classes }, Some(_)) => (Status::Busy, classes.bits()),
                        (Presence::Leaving { .. }, _) => (Status::Busy, 0),
                        (Presence::Offline { .. }, _) => (Status::Offline, 0),
                    };
                    let is_free = status == Status::Free;
                    let hint = &mut self.hints[number as usize];
                    hint.free_since = is_free.then(|| hint.free_since.unwrap_or(now));
                    let slot = self.slots[number as usize];
                    self.index.set_status(slot, status, classes, driver.seq);
                    self.wake_for(number);
                }
                EntityId::Ride(id) => {
                    if !self.waits(*id) {
                        let group = self.group_of(*id);
                        self.groups[group].dirty.remove(id);
                        self.hungry.remove(id);
                    }
                }
                EntityId::Rider(_) | EntityId::Market => {}
            }
        }
    }

    /// Marks the waiting rides this driver could serve for the next round.
    fn wake_for(&mut self, driver: u32) {
        if self.hungry.is_empty() {
            return;
        }
        let Some(seen) = self.index.get(self.slots[driver as usize]) else {
            return;
        };
        let (Some(placement), Status::Free) = (seen.placement, seen.status) else {
            return;
        };
        let id = &self.roll.ids[driver as usize];
        let could_serve = |ride: RideId, pickup: Point| {
            !self.groups[self.group_of(ride)].dirty.contains(&ride)
                && self.ride(ride).is_some_and(|ride| {
                    seen.classes & ride.class.bit() != 0
                        && placement.at.distance_m(pickup) <= f64::from(ride.radius_m)
                        && ride.may_ask(id, seen.n)
                })
        };
        let woken: Vec<RideId> = self
            .hungry
            .iter()
            .filter(|(ride, pickup)| could_serve(**ride, **pickup))
            .map(|(ride, _)| *ride)
            .collect();
        for ride in woken {
            let group = self.group_of(ride);
            self.groups[group].dirty.insert(ride);
        }
    }

    fn rematches(&self) -> bool {
        self.rules.rounds.policy == PolicyKind::Rematch
    }

    /// The round of one group, if it is due and there is something to look at.
    fn round(&mut self, at: usize, now: Time) {
        let rematches = self.rematches() && now >= self.groups[at].next_rematch;
        let group = &mut self.groups[at];
        if now < group.next_round || group.dirty.is_empty() && !rematches {
            return;
        }
        let host = &self.host;
        let mut going: Vec<&Ride> = Vec::new();
        if rematches {
            group.next_rematch = now.plus_ms(self.rules.engine.swaps.every_ms);
            let shards = || group.shards.iter().filter_map(|id| host.shard(*id));
            let waiting = shards().flat_map(Shard::waiting).map(|ride| ride.id);
            group.dirty.extend(waiting);
            let most = self.rules.rides_per_round_max;
            going.extend(shards().flat_map(Shard::on_the_way).take(most));
        }
        let mut rides: Vec<&Ride> = Vec::new();
        while rides.len() < self.rules.rides_per_round_max
            && let Some(id) = group.dirty.pop_first()
        {
            let ride = host.shard(id.place).and_then(|shard| shard.ride(id));
            if let Some(ride) = ride.filter(|ride| matches!(ride.stage, Stage::Waiting)) {
                self.hungry.insert(id, ride.pickup.0);
                rides.push(ride);
            }
        }
        if rides.is_empty() && going.is_empty() {
            return;
        }
        group.next_round = now.plus_ms(self.rules.round_every_ms);
        let mut seen: HashMap<RideId, Time> = HashMap::new();
        let ours = (rides.len(), going.len());
        if self.rules.scope == Scope::Shard
            && others::are_seen(self.rules.engine.ownership_resolution)
        {
            let elsewhere = || {
                let shards = host.shards();
                shards.filter(|shard| !group.shards.contains(&shard.id()))
            };
            rides.extend(elsewhere().flat_map(Shard::waiting));
            if rematches {
                going.extend(elsewhere().flat_map(Shard::on_the_way));
            }
            for ride in rides[ours.0..].iter().chain(&going[ours.1..]) {
                seen.insert(ride.id, group.others.since(ride.id, ride.seq, now));
            }
            group.others.forget_old(now);
        }
        let look = Look {
            others: &seen,
            index: &self.index,
            roll: &self.roll,
            rules: &self.rules.rounds,
            prices: &self.rules.engine.prices,
            hints: &self.hints,
            travel: self.travel,
            now,
        };
        let (result, size) = look.solve(&rides, &going, &mut group.promises);
        self.rounds.push(size);
        let all = rides[..ours.0].iter().chain(&going[..ours.1]);
        let places: BTreeSet<ShardId> = all.map(|ride| ride.id.place).collect();
        for place in places {
            let part = result.of_place(place);
            self.host.handle_round(&mut self.batch, place, &part);
        }
    }
}

/// Does the event leave its ride in need of a look? Having been looked at in vain does not.
fn wants_a_round(event: &Event) -> Option<RideId> {
    match event {
        Event::RideRequested(e) => Some(e.ride),
        // What a round that is under way found for the old destination does not count.
        Event::DestinationChanged(e) => Some(e.ride),
        Event::SearchWidened(e) => Some(e.ride),
        Event::ClaimDenied(e) => Some(e.ride),
        Event::ClaimAbandoned(e) => Some(e.ride),
        Event::OfferDeclined(e) => Some(e.ride),
        Event::OfferExpired(e) => Some(e.ride),
        Event::DriverLost(e) => Some(e.ride),
        _ => None,
    }
}

/// A command as people give them.
pub fn external(number: u64, now: Time, command: Command) -> CommandRecord {
    let id = CommandId::new(&format!("s{number}")).expect("letters and digits are an id");
    CommandRecord::external(id, now, command)
}
