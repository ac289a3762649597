//! More shards while everything goes on (PROTOCOL 30): who lives where meanwhile, and how people come to their new shard.
//!
//! Consistent hashing moves people from old shards to new ones only, so all is said between an old shard `o` and a new one `n`:
//!
//! 1. Adopt: every shard sends by the new ring. `n` sends what comes for people of `o` on to `o`, who handles it as before.
//! 2. Adopted: when every old shard has said so to `o`, nothing for those who move comes to `o` but by `n`, and `n` may ask.
//! 3. Give: `n` asks `o`. What comes for people of `o` from now on waits in `n`'s header; what `n` had sent on before is before
//!    the asking in `o`'s log.
//! 4. People, Given: `o` gives them all. What waited is handled, in order; from now on `n` is their home.
//! 5. Finished: `o` tells all that it has given everybody. Who has heard it of every old shard is through.
//!
//! So what one shard has sent for a person is handled in the order in which it was sent, wherever the person lives, and nobody is
//! made up by `n` while `o` may have them. Until a shard is through, its messages go through the log only: a message that hopped could
//! overtake one that an old shard had sent for the same person. A stray command, of a gateway that has not heard of the new ring,
//! is sent on by whoever is not its person's home. Rides stay where they are: their id says where.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cabrank_events::command::{
    EntityId, Growth, GrowthStep, MARKET_SHARD, Outcome, RefusedBecause, RingWord,
};
use cabrank_events::event::{
    DriverHandedOver, DriverTakenOver, RiderHandedOver, RiderTakenOver, RingGrows,
};
use cabrank_events::{Command, CommandRecord, DriverId, RiderId, ShardId};
use cabrank_ring::{Kind, Ring};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;

use super::{EntityState, Message, Shard};
use crate::fold::parse_state;
use crate::sabotage::Sabotage;

/// People given away in one step: so much is one transaction.
const GIVEN_AT_ONCE: usize = 1_000;
/// People in one message, and what their states may take there, in bytes: a record has a bound.
const PART_PEOPLE: usize = 64;
const PART_BYTES: usize = 256 * 1024;

/// How far a shard is with a growth; a part of its header.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Growing {
    /// Which.
    pub growth: Growth,
    /// Old shards that send by the new ring; kept by old shards.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    adopted: BTreeSet<u16>,
    /// New shards that have asked, and how far giving is; kept by old shards.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    giving: BTreeMap<u16, Giving>,
    /// Old shards that were asked, and what has come; kept by new shards.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    taking: BTreeMap<u16, Taking>,
    /// Old shards that have given everybody.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    finished: BTreeSet<u16>,
    /// Commands for people who are on their way here, in order.
    #[serde(default, skip_serializing_if = "WaitingRoom::is_empty")]
    waiting: WaitingRoom,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Giving {
    parts: u32,
    is_over: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Taking {
    came: BTreeSet<u32>,
    parts: Option<u32>,
}

impl Taking {
    fn is_over(&self) -> bool {
        self.parts
            .is_some_and(|parts| self.came.len() == parts as usize)
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Waiting {
    offset: Option<u64>,
    record: CommandRecord,
}

/// What waits, and what it takes in the header, which is one record and has a bound: so this has one in bytes, too.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(from = "Vec<Waiting>")]
struct WaitingRoom {
    waiting: Vec<Waiting>,
    bytes: usize,
}

impl Serialize for WaitingRoom {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.waiting.serialize(serializer)
    }
}

impl From<Vec<Waiting>> for WaitingRoom {
    fn from(waiting: Vec<Waiting>) -> WaitingRoom {
        let bytes = waiting.iter().map(encoded_bytes).sum();
        WaitingRoom { waiting, bytes }
    }
}

impl WaitingRoom {
    fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Lets somebody in unless all would take more than `most` bytes then.
    fn has_let_in(&mut self, one: Waiting, most: usize) -> bool {
        let bytes = self.bytes + encoded_bytes(&one);
        let fits = bytes <= most;
        if fits {
            self.bytes = bytes;
            self.waiting.push(one);
        }
        fits
    }
}

/// What `value` takes as JSON, with a comma.
fn encoded_bytes(value: &impl Serialize) -> usize {
    let json = serde_json::to_vec(value).expect("commands and states hold only JSON's own kinds");
    json.len() + 1
}

/// Who has come from another shard: what is to be known of a state before it is folded in.
#[derive(Deserialize)]
#[serde(tag = "entity", rename_all = "snake_case")]
enum Comes {
    Driver { id: DriverId, seq: u64 },
    Rider { id: RiderId, seq: u64 },
}

impl Growing {
    pub(super) fn new(growth: Growth) -> Growing {
        Growing {
            growth,
            adopted: BTreeSet::new(),
            giving: BTreeMap::new(),
            taking: BTreeMap::new(),
            finished: BTreeSet::new(),
            waiting: WaitingRoom::default(),
        }
    }

    /// What waits for people who are on their way, in order.
    pub fn waiting(&self) -> impl Iterator<Item = &CommandRecord> {
        self.waiting.waiting.iter().map(|one| &one.record)
    }

    /// Old shards that have given everybody.
    pub fn finished(&self) -> usize {
        self.finished.len()
    }
}

/// Where a command is handled.
pub(super) enum Goes {
    /// Here and now.
    Here,
    /// By another shard.
    To(ShardId),
    /// Here, when its person has come from this shard.
    Waits { old: ShardId },
}

impl Shard {
    /// Where is a command for `entity` handled?
    pub(super) fn goes(&self, entity: &EntityId) -> Goes {
        let (kind, id, is_here) = match entity {
            EntityId::Driver(id) => (Kind::Driver, id.as_str(), self.drivers.contains_key(id)),
            EntityId::Rider(id) => (Kind::Rider, id.as_str(), self.riders.contains_key(id)),
            EntityId::Ride(_) | EntityId::Market => return Goes::Here,
        };
        // Nobody is on the way: who is here lives here.
        if is_here && self.counters.growing.is_none() {
            return Goes::Here;
        }
        let home = self.ring.shard_of_person(kind, id);
        let old = self.old_ring.as_ref();
        let old = old.map_or(home, |ring| ring.shard_of_person(kind, id));
        match &self.counters.growing {
            Some(growing) if old != home && self.id.0 == old => {
                let is_given = growing.giving.contains_key(&home);
                if is_here || !is_given || self.broken(Sabotage::GiveUnmarked) {
                    Goes::Here
                } else {
                    Goes::To(ShardId(home))
                }
            }
            Some(growing) if old != home && self.id.0 == home => match growing.taking.get(&old) {
                Some(taking) if taking.is_over() => Goes::Here,
                _ if self.broken(Sabotage::CreateUnasked) => Goes::Here,
                Some(_) if self.broken(Sabotage::AskAndSend) => Goes::To(ShardId(old)),
                Some(_) => Goes::Waits { old: ShardId(old) },
                None => Goes::To(ShardId(old)),
            },
            Some(_) | None if home == self.id.0 => Goes::Here,
            Some(_) | None => Goes::To(ShardId(home)),
        }
    }

    /// Hands a command to the shard that handles it, as it is.
    pub(super) fn pass_on(&mut self, to: ShardId, record: &CommandRecord) {
        let record = CommandRecord {
            from: Some(self.id),
            ..record.clone()
        };
        self.effects.messages.push(Message { to, record });
    }

    /// Puts a command aside until the people of `old` have come. What waits takes `engine.moving_kib_max` at most, and only
    /// messages of shards the second half of that. Beyond it people are told to try again; a message takes the way by `old`, who
    /// sends it back after them. A later one may overtake it then (PROTOCOL 1), which settles nothing wrongly but is no rule.
    pub(super) fn put_aside(&mut self, offset: Option<u64>, record: &CommandRecord, old: ShardId) {
        let room = self.config.moving_kib_max * 1024;
        let most = match record.id {
            Some(_) => room / 2,
            None => room,
        };
        let Some(growing) = &mut self.counters.growing else {
            return;
        };
        let one = Waiting {
            offset,
            record: record.clone(),
        };
        if growing.waiting.has_let_in(one, most) {
            return;
        }
        if record.id.is_some() {
            let why = RefusedBecause::ShardFull;
            let asked = record.command.entity();
            self.answer(record.id.as_ref(), &asked, Outcome::Refused { why }, None);
        } else {
            self.pass_on(old, record);
        }
    }

    /// The largest number an event of somebody who was never seen here may follow.
    pub(super) fn newest_number(&self) -> u64 {
        if self.broken(Sabotage::BeginSmall) {
            return self.counters.seq;
        }
        self.counters.seq.max(self.counters.floor)
    }

    /// Somebody is forgotten whose numbers may be larger than the shard's, because they began elsewhere.
    pub(super) fn remember_number(&mut self, number: u64) {
        // Else it is the number of the shard's own next event, or less.
        if number > self.counters.seq + 1 {
            self.counters.floor = self.counters.floor.max(number);
        }
    }

    // -- the market's part -----------------------------------------------------------------------------------

    pub(super) fn growth_outcome(&mut self, to: u16, step: GrowthStep) -> Outcome {
        let known = self.market.as_ref().and_then(|market| market.ring);
        let growth = Growth {
            from: self.ring.shards(),
            to,
        };
        match (step, known) {
            _ if self.id != MARKET_SHARD => {}
            (GrowthStep::Announced, Some((before, _)))
            | (GrowthStep::Begun, Some((before, GrowthStep::Begun | GrowthStep::Settled)))
                if before.to == to =>
            {
                return Outcome::AlreadyDone;
            }
            (GrowthStep::Announced, None | Some((_, GrowthStep::Settled)))
                if to > growth.from && Ring::new(to).is_ok() =>
            {
                self.note_growth(growth, step);
                return Outcome::Done;
            }
            (GrowthStep::Begun, Some((announced, GrowthStep::Announced)))
                if announced == growth =>
            {
                self.note_growth(growth, step);
                self.adopt(growth);
                let own = self.id.0;
                for shard in (0..to).filter(|shard| *shard != own) {
                    self.say(ShardId(shard), growth, RingWord::Adopt);
                }
                return Outcome::Done;
            }
            _ => {}
        }
        Outcome::Refused {
            why: RefusedBecause::BadSettings,
        }
    }

    fn note_growth(&mut self, growth: Growth, step: GrowthStep) {
        self.emit(RingGrows {
            market_seq: self.market.as_ref().map_or(0, |market| market.seq) + 1,
            growth,
            step,
        });
    }

    // -- what shards say -------------------------------------------------------------------------------------

    fn say(&mut self, to: ShardId, growth: Growth, said: RingWord) {
        let command = Command::Ring { growth, said };
        let record = CommandRecord::internal(self.id, self.time, command);
        self.effects.messages.push(Message { to, record });
    }

    /// Every word brings the new ring with it, so it does not matter which is heard first.
    fn adopt(&mut self, growth: Growth) {
        let is_next = growth.from == self.ring.shards() && growth.to > growth.from;
        if !is_next || self.counters.growing.is_some() {
            return;
        }
        let Ok(ring) = Ring::new(growth.to) else {
            return;
        };
        self.old_ring = Some(std::mem::replace(&mut self.ring, Arc::new(ring)));
        self.counters.adopt(growth);
        if self.id.0 < growth.from {
            for shard in 0..growth.from {
                self.say(ShardId(shard), growth, RingWord::Adopted);
            }
        }
        if self.broken(Sabotage::GiveEarly) {
            self.offer_people(growth);
        }
    }

    pub(super) fn heard(&mut self, from: Option<ShardId>, growth: Growth, said: &RingWord) {
        let Some(from) = from else { return };
        self.adopt(growth);
        let Some(growing) = &mut self.counters.growing else {
            return;
        };
        if growing.growth != growth {
            return;
        }
        match said {
            RingWord::Adopt => {}
            RingWord::Adopted => {
                let is_new = growing.adopted.insert(from.0);
                if is_new && growing.adopted.len() == usize::from(growth.from) {
                    self.offer_people(growth);
                }
            }
            RingWord::MayGive => {
                if let Entry::Vacant(new) = growing.taking.entry(from.0) {
                    new.insert(Taking::default());
                    self.say(from, growth, RingWord::Give);
                }
            }
            RingWord::Give => {
                if let Entry::Vacant(new) = growing.giving.entry(from.0) {
                    new.insert(Giving::default());
                    self.give(growth, from);
                }
            }
            RingWord::GiveOn { to } => {
                if growing.giving.get(&to.0).is_some_and(|g| !g.is_over) {
                    self.give(growth, *to);
                }
            }
            RingWord::People { part, people } => {
                let taking = growing.taking.entry(from.0).or_default();
                if taking.came.insert(*part) {
                    people.iter().for_each(|state| self.take_in(from, state));
                    self.if_all_came(from);
                }
            }
            RingWord::Given { parts, number } => {
                let taking = growing.taking.entry(from.0).or_default();
                taking.parts = Some(*parts);
                self.counters.floor = self.counters.floor.max(*number);
                self.if_all_came(from);
            }
            RingWord::Finished => {
                growing.finished.insert(from.0);
                self.if_settled();
            }
        }
    }

    fn offer_people(&mut self, growth: Growth) {
        for shard in growth.from..growth.to {
            self.say(ShardId(shard), growth, RingWord::MayGive);
        }
    }

    /// Gives the next of those who are to live there, and says so when they were all.
    fn give(&mut self, growth: Growth, to: ShardId) {
        let moves = |kind, id: &str| self.ring.shard_of_person(kind, id) == to.0;
        let drivers = self.drivers.keys();
        let drivers = drivers.filter(|id| moves(Kind::Driver, id.as_str()));
        let riders = self.riders.keys();
        let riders = riders.filter(|id| moves(Kind::Rider, id.as_str()));
        let all = drivers.cloned().map(EntityId::Driver);
        let all = all.chain(riders.cloned().map(EntityId::Rider));
        let mut next: Vec<EntityId> = all.take(GIVEN_AT_ONCE + 1).collect();
        let has_more = next.len() > GIVEN_AT_ONCE;
        next.truncate(GIVEN_AT_ONCE);
        let (mut people, mut bytes) = (Vec::new(), 0);
        for entity in next {
            let (state, state_bytes) = self.give_away(&entity, to);
            if people.len() >= PART_PEOPLE || bytes + state_bytes > PART_BYTES {
                self.send_part(growth, to, std::mem::take(&mut people));
                bytes = 0;
            }
            bytes += state_bytes;
            people.push(state);
        }
        if !people.is_empty() {
            self.send_part(growth, to, people);
        }
        if has_more {
            self.say(self.id, growth, RingWord::GiveOn { to });
            return;
        }
        let number = self.newest_number();
        let (mut parts, mut is_over) = (0, false);
        if let Some(growing) = &mut self.counters.growing {
            let giving = growing.giving.entry(to.0).or_default();
            giving.is_over = true;
            parts = giving.parts;
            is_over = growing.giving.len() == usize::from(growth.to - growth.from)
                && growing.giving.values().all(|giving| giving.is_over);
        }
        self.say(to, growth, RingWord::Given { parts, number });
        if is_over {
            let own = self.id.0;
            for shard in (0..growth.to).filter(|shard| *shard != own) {
                self.say(ShardId(shard), growth, RingWord::Finished);
            }
            if let Some(growing) = &mut self.counters.growing {
                growing.finished.insert(self.id.0);
            }
            self.if_settled();
        }
    }

    fn send_part(&mut self, growth: Growth, to: ShardId, people: Vec<Value>) {
        let Some(growing) = &mut self.counters.growing else {
            return;
        };
        let giving = growing.giving.entry(to.0).or_default();
        let part = giving.parts;
        giving.parts += 1;
        self.say(to, growth, RingWord::People { part, people });
    }

    /// Somebody who lives here leaves for another shard, with this state; and what it takes, in bytes.
    fn give_away(&mut self, entity: &EntityId, to: ShardId) -> (Value, usize) {
        let mut state = self.state_of(entity);
        match &mut state {
            Some(EntityState::Driver(driver)) => {
                driver.seq += 1;
                self.mark(DriverHandedOver {
                    driver: driver.id.clone(),
                    driver_seq: driver.seq,
                    to,
                });
            }
            Some(EntityState::Rider(rider)) => {
                rider.seq += 1;
                self.emit(RiderHandedOver {
                    rider: rider.id.clone(),
                    rider_seq: rider.seq,
                    to,
                });
            }
            Some(EntityState::Ride(_) | EntityState::Market(_)) | None => {}
        }
        self.reindex(entity);
        let stored = serde_json::to_value(&state).expect("states hold only JSON's own kinds");
        (stored, encoded_bytes(&state))
    }

    /// Somebody has come from another shard.
    fn take_in(&mut self, from: ShardId, stored: &Value) {
        match parse_state(stored) {
            Comes::Driver { id, seq } if !self.drivers.contains_key(&id) => {
                self.mark(DriverTakenOver {
                    driver: id.clone(),
                    driver_seq: seq + 1,
                    from,
                    state: stored.clone(),
                });
                self.reindex(&EntityId::Driver(id));
            }
            Comes::Rider { id, seq } if !self.riders.contains_key(&id) => {
                self.emit(RiderTakenOver {
                    rider: id.clone(),
                    rider_seq: seq + 1,
                    from,
                    state: stored.clone(),
                });
                self.reindex(&EntityId::Rider(id));
            }
            Comes::Driver { .. } | Comes::Rider { .. } => {}
        }
    }

    /// When all people of `old` have come, what waited for them is handled.
    fn if_all_came(&mut self, old: ShardId) {
        let Some(growing) = &mut self.counters.growing else {
            return;
        };
        if !growing.taking.get(&old.0).is_some_and(Taking::is_over) {
            return;
        }
        // What waits for people of other shards is put aside again, in the same order.
        let waited = std::mem::take(&mut growing.waiting);
        if !self.broken(Sabotage::ForgetWaiting) {
            for one in waited.waiting {
                self.dispatch(one.offset, &one.record);
                if self.broken(Sabotage::HandleWaitingTwice) {
                    self.dispatch(one.offset, &one.record);
                }
            }
        }
        self.if_settled();
    }

    /// Through with it, when every old shard has given everybody and all who come here have come.
    fn if_settled(&mut self) {
        let Some(growing) = &self.counters.growing else {
            return;
        };
        let growth = growing.growth;
        let old = usize::from(growth.from);
        let came = growing.taking.values().filter(|taking| taking.is_over());
        let is_new = self.id.0 >= growth.from;
        let is_over = growing.finished.len() == old && (!is_new || came.count() == old);
        if !is_over || !growing.waiting.is_empty() {
            return;
        }
        self.counters.growing = None;
        self.old_ring = None;
        if self.id == MARKET_SHARD {
            self.note_growth(growth, GrowthStep::Settled);
        }
    }
}
