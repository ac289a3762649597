//! The ring grows in the middle of everything (PROTOCOL 30): more partitions, the operator's two words, gateways that hear of it late.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cabrank_events::command::{EntityId, GrowthStep, Outcome, RefusedBecause};
use cabrank_events::event::RingGrows;
use cabrank_events::{Command, CommandId, CommandRecord, ShardId, Time};
use cabrank_ring::{Kind, Ring};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::world::{Partition, Saved, World, map_of};
use crate::host::Host;
use crate::shard::Shard;

/// The largest ring here.
pub(super) const GROWN_MAX: u16 = 6;
/// After so many steps an operator says again what was not heeded.
const SAID_AGAIN: u32 = 9;

/// A growth of the simulated city.
pub(super) struct Growths {
    /// Drawn from nothing that other steps are drawn from.
    rng: SmallRng,
    /// When the next one is announced, if any more are to come.
    at: Option<u32>,
    said: u32,
    to: u16,
    step: Option<GrowthStep>,
    /// The ring of before, and until when some gateways go by it.
    stale: Option<(Arc<Ring>, Time)>,
    /// The one the city began with: whom it and the newest send home to different shards moves, or has moved.
    first: Arc<Ring>,
    has_begun: bool,
    /// Commands of those who move that the input which brought them did not answer, and how many copies of each are still to be
    /// answered at most.
    pub(super) detoured: BTreeMap<CommandId, u32>,
    pub(super) answered: BTreeSet<CommandId>,
}

impl Growths {
    pub(super) fn new(seed: u64, first: Arc<Ring>) -> Growths {
        let mut rng = SmallRng::seed_from_u64(!seed);
        let grows = (seed / 2).is_multiple_of(3);
        let at = grows.then(|| rng.random_range(5..120));
        Growths {
            rng,
            at,
            said: 0,
            to: 0,
            step: None,
            stale: None,
            first,
            has_begun: false,
            detoured: BTreeMap::new(),
            answered: BTreeSet::new(),
        }
    }
}

impl World {
    /// An operator looks after the growth.
    pub(super) fn operate(&mut self) {
        let from = self.ring.shards();
        if self.growths.at.is_some_and(|at| at <= self.step) && from < GROWN_MAX {
            self.growths.at = None;
            let to = self.growths.rng.random_range(from + 1..=GROWN_MAX);
            (self.growths.to, self.growths.step) = (to, None);
            self.base_ring = Arc::clone(&self.ring);
            self.add_partitions(to);
        }
        let to = self.growths.to;
        let is_due = self.step >= self.growths.said + SAID_AGAIN;
        let step = match self.growths.step {
            _ if to == 0 || !is_due => return,
            None => GrowthStep::Announced,
            Some(GrowthStep::Announced) => GrowthStep::Begun,
            Some(GrowthStep::Begun | GrowthStep::Settled) => return,
        };
        self.growths.said = self.step;
        self.number += 1;
        let id = CommandId::new(&format!("c{}", self.number)).expect("a good id");
        let command = Command::GrowRing { to, step };
        self.issued.insert(id.clone(), command.clone());
        self.append(CommandRecord::external(id, self.now, command));
    }

    fn add_partitions(&mut self, to: u16) {
        let places = &map_of(to).1;
        for id in self.home.len() as u16..to {
            let shard = Shard::new(ShardId(id), self.config.clone(), self.base_ring.clone());
            self.saved.push(Saved {
                header: serde_json::to_string(shard.counters()).expect("counters are JSON"),
                time: Time(i64::MIN),
                states: BTreeMap::new(),
                parsed: BTreeMap::new(),
            });
            let host = self.growths.rng.random_range(0..self.hosts.len());
            let shard = self.bent(shard);
            self.hosts[host].add(shard);
            self.home.push(host);
            self.log.push(Partition {
                skew_ms: self.growths.rng.random_range(-200..=200),
                ..Partition::default()
            });
            self.fold.push(BTreeMap::new());
            self.times.push(Time(i64::MIN));
            self.overdue.push(BTreeSet::new());
            if !self.busy {
                self.places.push(places[usize::from(id)]);
            }
        }
    }

    /// Somebody hears that the ring grows.
    pub(super) fn hear_of_growth(&mut self, event: &RingGrows) {
        self.growths.step = Some(event.step);
        self.growths.said = self.step;
        match event.step {
            GrowthStep::Announced => {}
            GrowthStep::Begun => {
                self.growths.has_begun = true;
                let late = self.growths.rng.random_range(0..4_000);
                let grown = Arc::clone(&map_of(event.growth.to).0);
                let before = std::mem::replace(&mut self.ring, grown);
                self.growths.stale = Some((before, self.now.plus_ms(late)));
            }
            // Once more: only where words between shards are neither doubled nor late is it sure that a shard is through with one
            // growth before it hears of the next.
            GrowthStep::Settled if self.clean && self.growths.rng.random_bool(0.5) => {
                self.growths.to = 0;
                self.growths.at = Some(self.step + self.growths.rng.random_range(0..20));
            }
            GrowthStep::Settled => {}
        }
    }

    /// By which ring a gateway sends now.
    pub(super) fn ring_of_some_gateway(&mut self) -> Arc<Ring> {
        if let Some((before, until)) = &self.growths.stale
            && self.now < *until
            && self.growths.rng.random_bool(0.5)
        {
            return Arc::clone(before);
        }
        Arc::clone(&self.ring)
    }

    /// While people move, or where they did, a command of one of them may be answered by a later input. Who never moves is
    /// answered as if nothing grew.
    pub(super) fn may_be_elsewhere(&self, command: &Command) -> bool {
        let home = |ring: &Ring| match command.entity() {
            EntityId::Driver(id) => ring.shard_of_person(Kind::Driver, id.as_str()),
            EntityId::Rider(id) => ring.shard_of_person(Kind::Rider, id.as_str()),
            EntityId::Ride(_) | EntityId::Market => 0,
        };
        home(&self.growths.first) != home(&self.ring)
    }

    /// A shard whose room for those who wait is full remembers nothing of whom it refused.
    pub(super) fn is_put_off(&self, command: &Command, outcome: &Outcome) -> bool {
        let full = Outcome::Refused {
            why: RefusedBecause::ShardFull,
        };
        self.may_be_elsewhere(command) && *outcome == full
    }

    /// At rest: everybody lives where the ring says, and every command that took a way of its own was answered.
    pub(super) fn check_growth(&self) -> Result<(), String> {
        if !self.growths.has_begun {
            return Ok(());
        }
        // Another growth may be announced and never begun: its shards are there, and nobody has told them anything.
        let shards = self.hosts.iter().flat_map(Host::shards);
        for shard in shards.filter(|shard| shard.id().0 < self.ring.shards()) {
            let counters = shard.counters();
            if counters.growing.is_some() || counters.ring != Some(self.ring.shards()) {
                let (id, ring, at) = (shard.id(), counters.ring, &counters.growing);
                return Err(format!("shard {id} goes by {ring:?} and is at {at:?}"));
            }
            let home = |kind, id: &str| ShardId(self.ring.shard_of_person(kind, id));
            let drivers = shard.drivers().map(|d| (Kind::Driver, d.id.as_str()));
            let riders = shard.riders().map(|r| (Kind::Rider, r.id.as_str()));
            let stray = drivers
                .chain(riders)
                .find(|(kind, id)| home(*kind, id) != shard.id());
            if let Some((_, id)) = stray {
                return Err(format!("{id} lives on in shard {}", shard.id()));
            }
        }
        let wish = |command: &Command| match command {
            Command::RequestRide { rider, key, .. } => Some((rider.clone(), key.clone())),
            _ => None,
        };
        let answered: BTreeSet<_> = self
            .growths
            .answered
            .iter()
            .filter_map(|id| wish(&self.issued[id]))
            .collect();
        let lost = self.growths.detoured.keys().find(|id| {
            let resolved = wish(&self.issued[*id]).is_some_and(|wish| answered.contains(&wish));
            !self.growths.answered.contains(*id) && !resolved
        });
        match lost {
            Some(id) => Err(format!("{id} was lost: {:?}", self.issued[id])),
            None => Ok(()),
        }
    }
}
