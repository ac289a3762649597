//! The shards of one node, and how their messages travel.
//!
//! Messages between two shards are never reordered (PROTOCOL 1): a message hops inside the transaction only while
//! everything sent to that shard through the log has been received there; otherwise it goes through the log, too.
//! At most `hops_max` hops in one transaction; 0 sends everything through the log.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use cabrank_events::command::EntityId;
use cabrank_events::{CommandRecord, EventRecord, ShardId, Time};

use crate::matching::RoundResult;
use crate::sabotage::{self, Sabotage};
use crate::shard::{Effects, Message, Shard};

/// What one transaction has to write.
#[derive(Debug, Default)]
pub struct Batch {
    /// Events in order, of all shards.
    pub events: Vec<EventRecord>,
    /// Messages through the log, in order.
    pub messages: Vec<Message>,
    /// Changed entities by shard.
    pub changed: BTreeSet<(ShardId, EntityId)>,
    /// Shards that need a new header.
    pub touched: BTreeSet<ShardId>,
}

impl Batch {
    /// Is there nothing to write?
    pub fn is_empty(&self) -> bool {
        self.touched.is_empty()
    }
}

/// The shards that live on one node.
///
/// For one transaction: hand in the commands that were read, in the order of each shard's log; then, if all shards
/// here are caught up, the clock and the results of rounds; all into one [`Batch`]. Write the batch, the states of
/// what changed ([`Shard::state_of`]) and the headers of touched shards (time, [`Shard::counters`], input position)
/// at once. If that fails, the host's memory is ahead of the log: throw it away and restore it from what is written.
/// A clock that brings nothing about touches no shard and need not be written.
#[derive(Clone)]
pub struct Host {
    shards: BTreeMap<ShardId, Shard>,
    hops_max: usize,
}

impl Host {
    /// A node with these shards.
    pub fn new(shards: impl IntoIterator<Item = Shard>, hops_max: usize) -> Host {
        Host {
            shards: shards
                .into_iter()
                .map(|shard| (shard.id(), shard))
                .collect(),
            hops_max,
        }
    }

    /// A shard that lives here from now on; it takes the place of an older self.
    pub fn add(&mut self, shard: Shard) {
        self.shards.insert(shard.id(), shard);
    }

    /// A shard that lives here no more.
    pub fn remove(&mut self, id: ShardId) -> Option<Shard> {
        self.shards.remove(&id)
    }

    /// One of its shards.
    pub fn shard(&self, id: ShardId) -> Option<&Shard> {
        self.shards.get(&id)
    }

    /// All its shards.
    pub fn shards(&self) -> impl Iterator<Item = &Shard> {
        self.shards.values()
    }

    /// Breaks all its shards on purpose; only test builds can.
    pub fn sabotage(&mut self, how: Sabotage) {
        self.shards
            .values_mut()
            .for_each(|shard| shard.sabotage(how));
    }

    /// A command from the log of `shard`; false when the shard does not live here.
    pub fn handle_command(
        &mut self,
        batch: &mut Batch,
        shard: ShardId,
        offset: u64,
        appended_at: Time,
        record: &CommandRecord,
    ) -> bool {
        let Some(owner) = self.shards.get_mut(&shard) else {
            return false;
        };
        owner.handle_command(offset, appended_at, record);
        batch.touched.insert(shard);
        self.settle(batch, shard);
        true
    }

    /// A round's result for `shard`.
    pub fn handle_round(&mut self, batch: &mut Batch, shard: ShardId, result: &RoundResult) {
        if let Some(owner) = self.shards.get_mut(&shard) {
            owner.handle_round(result);
            self.settle(batch, shard);
        }
    }

    /// The clock, once all shards here are caught up with their input (PROTOCOL 15).
    pub fn handle_time(&mut self, batch: &mut Batch, now: Time) {
        let ids: Vec<ShardId> = self.shards.keys().copied().collect();
        for id in ids {
            if let Some(owner) = self.shards.get_mut(&id) {
                owner.handle_time(now);
                self.settle(batch, id);
            }
        }
    }

    /// When the next timer of any shard fires.
    pub fn poll_deadline(&self) -> Option<Time> {
        self.shards
            .values()
            .filter_map(Shard::poll_deadline)
            .map(|(due, _)| due)
            .min()
    }

    /// Carries messages until none is left that may hop.
    fn settle(&mut self, batch: &mut Batch, first: ShardId) {
        let mut under_way: VecDeque<(ShardId, Message)> = VecDeque::new();
        let mut hops = 0;
        self.collect(batch, first, &mut under_way);
        while let Some((from, message)) = under_way.pop_front() {
            if hops < self.hops_max && message.may_hop() && self.may_hop(from, message.to) {
                hops += 1;
                let sender_time = self.shards[&from].time();
                let to = message.to;
                let receiver = self.shards.get_mut(&to).expect("may_hop has seen it");
                if sabotage::POSSIBLE && receiver.is_sabotaged(Sabotage::HopMovesTime) {
                    receiver.handle_time(sender_time);
                }
                receiver.handle_hop(&message.record);
                self.collect(batch, to, &mut under_way);
            } else {
                let sender = self.shards.get_mut(&from).expect("it has just sent");
                sender.counters.know_peers(usize::from(message.to.0) + 1);
                sender.counters.sent[usize::from(message.to.0)] += 1;
                batch.touched.insert(from);
                batch.messages.push(message);
            }
        }
    }

    fn may_hop(&self, from: ShardId, to: ShardId) -> bool {
        let (Some(sender), Some(receiver)) = (self.shards.get(&from), self.shards.get(&to)) else {
            return false;
        };
        // While people move from shard to shard only the log's order is everybody's (PROTOCOL 30).
        let grows = sender.counters().growing.is_some() || receiver.counters().growing.is_some();
        if grows && !(sabotage::POSSIBLE && sender.is_sabotaged(Sabotage::HopWhileMoving)) {
            return false;
        }
        let sent = sender.counters().sent.get(usize::from(to.0));
        let received = receiver.counters().received.get(usize::from(from.0));
        sent.unwrap_or(&0) == received.unwrap_or(&0)
            || sabotage::POSSIBLE && sender.is_sabotaged(Sabotage::HopAlways)
    }

    fn collect(
        &mut self,
        batch: &mut Batch,
        shard: ShardId,
        under_way: &mut VecDeque<(ShardId, Message)>,
    ) {
        let Some(owner) = self.shards.get_mut(&shard) else {
            return;
        };
        let Effects {
            events,
            messages,
            changed,
        } = owner.take_effects();
        if !events.is_empty() || !changed.is_empty() {
            batch.touched.insert(shard);
        }
        batch.events.extend(events);
        batch
            .changed
            .extend(changed.into_iter().map(|entity| (shard, entity)));
        under_way.extend(messages.into_iter().map(|message| (shard, message)));
    }
}
