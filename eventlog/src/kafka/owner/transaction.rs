//! One transaction from begin to commit, in the order that makes a takeover sound (PROTOCOL 25 to 28).
//!
//! Commands, events, states and headers are produced and acknowledged; then come the offsets, where the group's generation
//! is checked; then the commit. A header says where its shard's events end. A shard has one writer, so that is mostly known
//! beforehand; a header that turns out wrong is written again before the offsets, and the later record counts. An
//! announcement is the same with headers first and the announcement after them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use rdkafka::consumer::Consumer;
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::{Offset, TopicPartitionList};
use tracing::{debug, info, trace, warn};

use super::{KafkaOwner, Lane, Moment, Sabotage, place, wall_ms};
use crate::kafka::producing::{Meaning, Outward, Transactor, meaning, retire};
use crate::kafka::stored::{Announcement, Committed, EVENTS, HEADER_KEY, Note};
use crate::transaction::{LaneState, check_transaction};
use crate::{Append, CommitError, Header, Topic, Transaction};

/// How far a transaction came before it failed.
struct Broken {
    why: KafkaError,
    /// The commit was sent: it may have succeeded.
    is_sent: bool,
}

impl From<KafkaError> for Broken {
    fn from(why: KafkaError) -> Broken {
        Broken {
            why,
            is_sent: false,
        }
    }
}

/// A header that is about to be written.
struct NewHeader {
    shard: u16,
    note: Note,
    engine: Bytes,
    next_input: u64,
}

impl KafkaOwner {
    pub(super) fn check(&self, tx: &Transaction) -> Result<(), CommitError> {
        check_transaction(tx, self.shared.shards(), |shard| {
            self.lanes.get(&shard).map(|lane| LaneState {
                consumed: lane.consumed,
                next_out: Some(lane.next_out),
            })
        })?;
        if tx.states.iter().any(|state| state.key == HEADER_KEY) {
            return Err(CommitError::Invalid(
                "a state under the header's key".into(),
            ));
        }
        Ok(())
    }

    /// Writes the first transaction after a recovery, if it is not written yet: epoch, transactional ids, address.
    pub(super) fn announce(&mut self) -> Result<(), CommitError> {
        let new: Vec<u16> = self
            .lanes
            .iter()
            .filter(|(_, lane)| !lane.is_announced)
            .map(|(shard, _)| *shard)
            .collect();
        if new.is_empty() {
            return Ok(());
        }
        if let Err(why) = self.producers() {
            // Nothing was begun, so nothing is lost: it is announced later.
            return Err(CommitError::Ambiguous(why.to_string()));
        }
        let announced = self.announcement(&new);
        if let Err(broken) = announced {
            return Err(self.failed(broken));
        }
        for shard in &new {
            if let Some(lane) = self.lanes.get_mut(shard) {
                lane.is_announced = true;
                info!(
                    shard,
                    epoch = lane.note.epoch,
                    node = self.node,
                    "announced"
                );
            }
        }
        Ok(())
    }

    fn announcement(&mut self, new: &[u16]) -> Result<(), Broken> {
        let ids = self.producers()?.ids.clone();
        let generation = self.assignment.as_ref().map_or(-1, |a| a.generation);
        let (mut headers, mut said) = (Vec::new(), Vec::new());
        for shard in new {
            let Some(lane) = self.lanes.get_mut(shard) else {
                continue;
            };
            lane.note.ids.clone_from(&ids);
            headers.push(NewHeader {
                shard: *shard,
                note: lane.note.clone(),
                engine: lane.engine.clone(),
                next_input: lane.consumed,
            });
            let announcement = Announcement {
                shard: *shard,
                epoch: lane.note.epoch,
                node: self.node.clone(),
                address: self.address.clone(),
                generation,
            };
            said.push((shard.to_string(), json(&announcement)?));
        }
        let producer = self.producers()?.next();
        producer.begin()?;
        send_headers(producer, &headers.iter().collect::<Vec<_>>())?;
        producer.acknowledged()?;
        for (key, value) in &said {
            producer.send(&Outward {
                topic: Topic::ShardOwners,
                partition: 0,
                key: key.as_bytes(),
                value: Some(value),
                note: Some(producer.id().as_bytes()),
            })?;
        }
        producer.acknowledged()?;
        self.finish(&headers)
    }

    pub(super) fn write(&mut self, tx: &Transaction) -> Result<(), CommitError> {
        match self.transaction(tx) {
            Ok((headers, ends)) => {
                for header in headers {
                    if let Some(lane) = self.lanes.get_mut(&header.shard) {
                        lane.consumed = header.next_input;
                        lane.note = header.note;
                        lane.engine = header.engine;
                    }
                }
                for ((topic, shard), end) in ends {
                    self.shared.reader.raise_floor(topic, shard, end);
                    if let (Some(place), Some(lane)) = (place(topic), self.lanes.get_mut(&shard)) {
                        // This transaction's own marker comes between.
                        lane.next_event[place] = Some(end + 1);
                    }
                }
                Ok(())
            }
            Err(broken) => Err(self.failed(broken)),
        }
    }

    #[allow(
        clippy::type_complexity,
        reason = "what was written, for the one caller"
    )]
    fn transaction(
        &mut self,
        tx: &Transaction,
    ) -> Result<(Vec<NewHeader>, BTreeMap<(Topic, u16), u64>), Broken> {
        let (sent_ms, began) = (wall_ms(), Instant::now());
        let producer = self.producers()?.next();
        producer.begin()?;
        for append in tx.commands.iter().chain(&tx.events) {
            send(producer, append)?;
        }
        // The last change of an entity wins: only that is written.
        let mut last: BTreeMap<(u16, &Bytes), Option<&Bytes>> = BTreeMap::new();
        for state in &tx.states {
            last.insert((state.shard, &state.key), state.value.as_ref());
        }
        for ((shard, key), value) in last {
            producer.send(&Outward {
                topic: Topic::ShardState,
                partition: shard,
                key,
                value: value.map(AsRef::as_ref),
                note: None,
            })?;
        }
        // One round of acknowledgements and one request a partition less than with headers that wait for the events.
        let mut counts: BTreeMap<(Topic, u16), u64> = BTreeMap::new();
        for event in &tx.events {
            *counts.entry((event.topic, event.shard)).or_default() += 1;
        }
        let expected = self.headers(tx, |lane, topic, shard| {
            let count = counts.get(&(topic, shard))?;
            Some(lane.next_event[place(topic)?].map(|next| next + count))
        });
        let producer = self.current()?;
        let known: Vec<&NewHeader> = expected.iter().flatten().collect();
        send_headers(producer, &known)?;
        let mut ends = producer.acknowledged()?;
        let headers: Vec<NewHeader> = self
            .headers(tx, |_, topic, shard| {
                ends.get(&(topic, shard)).map(|end| Some(*end))
            })
            .into_iter()
            .flatten()
            .collect();
        let is_as_written = |header: &&NewHeader| {
            known
                .iter()
                .any(|known| known.shard == header.shard && known.note == header.note)
        };
        let wrong: Vec<&NewHeader> = headers.iter().filter(|it| !is_as_written(it)).collect();
        if !wrong.is_empty() {
            debug!(shards = wrong.len(), "headers are written again");
            send_headers(producer, &wrong)?;
            ends = producer.acknowledged()?;
        }
        let appended_ms = producer.appended_ms();
        let acknowledged = began.elapsed();
        self.compare_clocks(sent_ms, appended_ms);
        self.finish(&headers)?;
        // What docs/kafka.md says of the parts of a transaction was read off these lines.
        trace!(
            partitions = ends.len(),
            events = tx.events.len(),
            messages = tx.commands.len(),
            shards = headers.len(),
            acknowledged_us = acknowledged.as_micros(),
            took_us = began.elapsed().as_micros(),
            "committed"
        );
        Ok((headers, ends))
    }

    /// The headers of a transaction. `end_of` says where a topic's events end in a shard: nothing if none are written,
    /// nothing inside if that is not known; then the shard has no header yet.
    fn headers(
        &self,
        tx: &Transaction,
        end_of: impl Fn(&Lane, Topic, u16) -> Option<Option<u64>>,
    ) -> Vec<Option<NewHeader>> {
        let header = |shard: u16, header: &Header| {
            let lane = self.lanes.get(&shard)?;
            let before = lane.note.committed.as_ref();
            let mut event_ends = before.map(|before| before.event_ends).unwrap_or_default();
            for (end, topic) in event_ends.iter_mut().zip(EVENTS) {
                if let Some(new) = end_of(lane, topic, shard) {
                    *end = new?;
                }
            }
            Some(NewHeader {
                shard,
                note: Note {
                    committed: Some(Committed {
                        next_input: header.next_input,
                        time_ms: header.time_ms,
                        epoch: lane.note.epoch,
                        owner: self.node.clone(),
                        event_ends,
                    }),
                    ..lane.note.clone()
                },
                engine: header.engine.clone(),
                next_input: header.next_input,
            })
        };
        let headers = tx.headers.iter();
        headers.map(|(shard, it)| header(*shard, it)).collect()
    }

    /// The producer whose turn it is.
    fn current(&self) -> KafkaResult<&Transactor> {
        self.producers
            .as_ref()
            .map(|pair| pair.current())
            .ok_or(KafkaError::Canceled)
    }

    /// Offsets, then the commit. Everything is acknowledged by now.
    fn finish(&mut self, headers: &[NewHeader]) -> Result<(), Broken> {
        self.moment(Moment::BeforeOffsets);
        let mut offsets = TopicPartitionList::new();
        for header in headers {
            let offset = i64::try_from(header.next_input).unwrap_or(i64::MAX);
            offsets.add_partition_offset(
                self.shared.names.of(Topic::RideCommands),
                i32::from(header.shard),
                Offset::Offset(offset),
            )?;
        }
        let fresh = match self.sabotage {
            Sabotage::FreshGeneration => self.inbox.consumer().group_metadata(),
            Sabotage::NoMembership => self.shared.metadata_of_a_stranger()?,
            _ => None,
        }
        .map(Arc::new);
        let captured = self.assignment.as_ref().map(|a| &a.metadata);
        let metadata = fresh
            .as_ref()
            .or(captured)
            .ok_or(KafkaError::Global(RDKafkaErrorCode::IllegalGeneration))?;
        self.current()?.send_offsets(offsets, metadata)?;
        self.moment(Moment::BeforeCommit);
        self.current()?
            .commit()
            .map_err(|why| Broken { why, is_sent: true })
    }

    fn moment(&mut self, moment: Moment) {
        if let Some(at) = &mut self.at_moment {
            at(moment);
        }
    }

    /// Ends a transaction that did not come to its end. The memory behind it is gone, whatever became of it: an undo
    /// would need an abort that is confirmed and a commit that was never sent, and a recovery needs neither.
    fn failed(&mut self, broken: Broken) -> CommitError {
        let Broken { why, is_sent } = broken;
        let means = meaning(&why);
        warn!(%why, is_sent, ?means, "a transaction failed");
        if let Some(pair) = self.producers.take() {
            // Aborted, so that readers are not held up until the next owner's fence; if that fails they are.
            if !is_sent && let Err(why) = pair.current().abort() {
                warn!(%why, "the abort failed, too");
            }
            retire(pair);
        }
        if !(is_sent && self.sabotage == Sabotage::UndoAfterCommit) {
            self.forget();
        }
        match means {
            Meaning::Replaced => {
                self.be_fenced();
                CommitError::Fenced {
                    by: self.fenced.unwrap_or_default(),
                }
            }
            Meaning::Moved => {
                // The group will say so, too; until then nothing is owned.
                self.lease.end();
                if let Some(assignment) = &mut self.assignment {
                    assignment.is_over = true;
                }
                CommitError::Moved(why.to_string())
            }
            Meaning::Trouble => CommitError::Ambiguous(why.to_string()),
        }
    }
}

fn send(producer: &Transactor, append: &Append) -> KafkaResult<()> {
    // A message says under which id it was written: for `standstill`.
    let is_message = append.topic == Topic::RideCommands;
    producer.send(&Outward {
        topic: append.topic,
        partition: append.shard,
        key: &append.key,
        value: Some(&append.value),
        note: is_message.then(|| producer.id().as_bytes()),
    })
}

fn send_headers(producer: &Transactor, headers: &[&NewHeader]) -> KafkaResult<()> {
    for header in headers {
        let note = json(&header.note)?;
        producer.send(&Outward {
            topic: Topic::ShardState,
            partition: header.shard,
            key: HEADER_KEY,
            value: Some(&header.engine),
            note: Some(&note),
        })?;
    }
    Ok(())
}

fn json<T: serde::Serialize>(value: &T) -> KafkaResult<Vec<u8>> {
    serde_json::to_vec(value).map_err(|why| KafkaError::ClientCreation(why.to_string()))
}
