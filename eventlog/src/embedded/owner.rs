//! The one who may commit: recovery, handing out commands, the commit itself, fencing.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::lock::StoreLock;
use super::store::{Batch, Fault, Store};
use super::{
    Desk, OWNER_MAX, OwnError, READ_ONLY, Shared, State, WAIT_MAX, Waiting, damage_text, lanes_of,
    locked,
};
use crate::transaction::{LaneState, check_transaction};
use crate::{
    CommitError, POLL_MAX, PollError, Polled, Record, RecoverError, Recovered, ShardOwner, Topic,
    Transaction,
};

/// The owner of all shards of an embedded log, until a newer one is made.
pub struct EmbeddedOwner {
    shared: Arc<Shared>,
    name: String,
    epoch: u64,
    /// The shard whose past the next commit looks after.
    in_turn: u16,
}

impl std::fmt::Debug for EmbeddedOwner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EmbeddedOwner")
            .field("name", &self.name)
            .field("epoch", &self.epoch)
            .finish_non_exhaustive()
    }
}

impl EmbeddedOwner {
    pub(super) fn take(shared: &Arc<Shared>, name: &str) -> Result<EmbeddedOwner, OwnError> {
        if name.len() > OWNER_MAX {
            return Err(OwnError::NameTooLong(name.len()));
        }
        // Held to the end: no commit of the owner before can run beside this.
        let mut lock = locked(&shared.writing);
        reopen_if_failed(shared, &mut lock).map_err(|fault| own_error(&fault))?;
        let epoch = locked(&shared.desk).epoch + 1;
        let commits = shared
            .with_store(|store| store.set_epoch(epoch))
            .map_err(|fault| {
                shared.note_failure(&fault);
                own_error(&fault)
            })?;
        let mut desk = locked(&shared.desk);
        desk.epoch = epoch;
        (0..shared.options.shards).for_each(|shard| desk.take_back(shard));
        drop(desk);
        shared.work.notify_all();
        shared.announce(&mut lock, commits);
        Ok(EmbeddedOwner {
            shared: Arc::clone(shared),
            name: name.to_owned(),
            epoch,
            in_turn: 0,
        })
    }

    fn hand_out_stored(&self, max: usize) -> Result<Vec<(u16, Record)>, PollError> {
        let backlog: Vec<(u16, u64)> = {
            let desk = locked(&self.shared.desk);
            (0_u16..)
                .zip(&desk.lanes)
                .filter_map(|(shard, lane)| {
                    let next = lane.next_out?;
                    (next < lane.stored_end).then_some((shard, next))
                })
                .collect()
        };
        let mut commands = Vec::new();
        for (shard, next) in backlog {
            let left = max - commands.len();
            if left == 0 {
                break;
            }
            let records = self
                .shared
                .with_store(|store| store.read(Topic::RideCommands, shard, next, left))
                .map_err(|fault| self.shared.read_error(fault))?;
            let mut desk = locked(&self.shared.desk);
            self.check_epoch(&desk)?;
            let lane = &mut desk.lanes[usize::from(shard)];
            if lane.next_out != Some(next) {
                // A `sync` on another thread failed meanwhile: the shard is to be recovered first.
                return Err(PollError::NotRecovered(shard));
            }
            lane.next_out = Some(next + records.len() as u64);
            commands.extend(records.into_iter().map(|record| (shard, record)));
        }
        Ok(commands)
    }

    fn check_epoch(&self, desk: &Desk) -> Result<(), PollError> {
        if desk.epoch == self.epoch {
            Ok(())
        } else {
            Err(PollError::Fenced { by: desk.epoch })
        }
    }

    /// What is to be written: commands that arrived, hops with their offsets, and the time.
    fn prepare(&self, tx: &Transaction) -> Result<Prepared, CommitError> {
        let mut desk = locked(&self.shared.desk);
        if desk.epoch != self.epoch {
            return Err(CommitError::Fenced { by: desk.epoch });
        }
        if let Some(shard) = (0_u16..)
            .zip(&desk.lanes)
            .find_map(|(shard, lane)| lane.next_out.is_none().then_some(shard))
        {
            return Err(CommitError::NotRecovered(shard));
        }
        check_transaction(tx, self.shared.options.shards, |shard| {
            let lane = desk.lanes.get(usize::from(shard))?;
            Some(LaneState {
                consumed: lane.consumed,
                next_out: lane.next_out,
            })
        })?;
        let now_ms = (self.shared.options.clock)();
        // Commands still in the queue follow the hops in offset, so the hops' time must not be later than theirs.
        let hop_ms = desk
            .queue
            .front()
            .map_or(now_ms, |(_, waiting)| waiting.time_ms.min(now_ms));
        let arrived = std::mem::take(&mut desk.arrived);
        let mut hops = Vec::with_capacity(tx.commands.len());
        for hop in &tx.commands {
            let lane = &mut desk.lanes[usize::from(hop.shard)];
            let record = Record {
                offset: lane.next_offset,
                time_ms: hop_ms.max(lane.last_ms),
                key: hop.key.clone(),
                value: hop.value.clone(),
            };
            lane.next_offset += 1;
            lane.last_ms = record.time_ms;
            hops.push((hop.shard, record));
        }
        Ok(Prepared {
            arrived,
            hops,
            now_ms,
        })
    }
}

struct Prepared {
    arrived: Vec<(u16, Record)>,
    hops: Vec<(u16, Record)>,
    now_ms: i64,
}

impl ShardOwner for EmbeddedOwner {
    fn shards(&self) -> Vec<u16> {
        (0..self.shared.options.shards).collect()
    }

    fn epoch(&self) -> u64 {
        self.epoch
    }

    fn recover(&mut self, shard: u16) -> Result<Recovered, RecoverError> {
        let shared = &self.shared;
        if shard >= shared.options.shards {
            return Err(RecoverError::NoSuchShard(shard));
        }
        let mut lock = locked(&shared.writing);
        let fenced = |desk: &Desk| match desk.epoch == self.epoch {
            true => Ok(()),
            false => Err(RecoverError::Fenced { by: desk.epoch }),
        };
        fenced(&locked(&shared.desk))?;
        reopen_if_failed(shared, &mut lock).map_err(|fault| recover_error(shared, fault))?;
        let recovered = shared
            .with_store(|store| store.snapshot(shard))
            .map_err(|fault| recover_error(shared, fault))?;
        let commands = shared
            .with_store(|store| store.part(Topic::RideCommands, shard))
            .map_err(|fault| recover_error(shared, fault))?;
        let next = recovered.header.as_ref().map_or(0, |h| h.next_input);
        if next < commands.first || next > commands.end {
            return Err(RecoverError::Inconsistent(damage_text(
                &shared.path,
                &format!(
                    "shard {shard} is to go on at command {next}, the log has {} to {}",
                    commands.first, commands.end
                ),
            )));
        }
        let mut desk = locked(&shared.desk);
        desk.take_back(shard);
        let lane = &mut desk.lanes[usize::from(shard)];
        lane.next_out = Some(next);
        lane.consumed = next;
        drop(desk);
        shared.work.notify_all();
        Ok(recovered)
    }

    fn poll(&mut self, timeout: Duration, max: usize) -> Result<Polled, PollError> {
        let max = max.clamp(1, POLL_MAX);
        let deadline = Instant::now() + timeout.min(WAIT_MAX);
        loop {
            // Sampled before the end is looked for: what comes later gets this time or a later one.
            let clock_ms = (self.shared.options.clock)();
            let mut commands = self.hand_out_stored(max)?;
            let mut desk = locked(&self.shared.desk);
            self.check_epoch(&desk)?;
            if let Some(shard) = (0_u16..)
                .zip(&desk.lanes)
                .find_map(|(shard, lane)| lane.next_out.is_none().then_some(shard))
            {
                return Err(PollError::NotRecovered(shard));
            }
            let backlog = |desk: &Desk| {
                desk.syncing
                    || desk
                        .lanes
                        .iter()
                        .any(|lane| lane.next_out < Some(lane.stored_end))
            };
            if !backlog(&desk) {
                // A caller that polls without committing gets no more than one queue's worth.
                let room = self
                    .shared
                    .options
                    .queue_max
                    .saturating_sub(desk.arrived.len());
                let want = room.min(max - commands.len());
                for _ in 0..want {
                    let Some((shard, record)) = desk.assign_next() else {
                        break;
                    };
                    desk.lanes[usize::from(shard)].next_out = Some(record.offset + 1);
                    commands.push((shard, record));
                }
            }
            let caught_up = desk.queue.is_empty() && !backlog(&desk);
            let left = deadline.saturating_duration_since(Instant::now());
            if !commands.is_empty() || left.is_zero() {
                return Ok(Polled {
                    commands,
                    clock_ms: caught_up.then_some(clock_ms),
                    ..Polled::default()
                });
            }
            // Backlog that appeared since it was looked for is fetched at once; otherwise wait to be woken.
            if !backlog(&desk) || desk.syncing {
                let _ = self
                    .shared
                    .work
                    .wait_timeout(desk, left)
                    .unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    fn commit(&mut self, tx: &Transaction) -> Result<(), CommitError> {
        let shared = &self.shared;
        let mut lock = locked(&shared.writing);
        let prepared = self.prepare(tx)?;
        let batch = Batch {
            arrived: &prepared.arrived,
            hops: &prepared.hops,
            events: &tx.events,
            states: &tx.states,
            headers: &tx.headers,
            epoch: self.epoch,
            owner: &self.name,
            now_ms: prepared.now_ms,
            look_after: (self.in_turn, shared.options.retention),
        };
        match shared.with_store(|store| store.commit(&batch)) {
            Ok(commits) => {
                self.in_turn = (self.in_turn + 1) % shared.options.shards;
                let mut desk = locked(&shared.desk);
                for (shard, header) in &tx.headers {
                    desk.lanes[usize::from(*shard)].consumed = header.next_input;
                }
                desk.all_stored();
                drop(desk);
                shared.announce(&mut lock, commits);
                Ok(())
            }
            Err(fault) => {
                // They were not acknowledged, but they must not be forgotten: recovery hands them out again.
                locked(&shared.desk).arrived = prepared.arrived;
                Err(if shared.note_failure(&fault) {
                    CommitError::DiskFull
                } else {
                    CommitError::Ambiguous(format!("{fault:?}"))
                })
            }
        }
    }
}

impl Desk {
    /// Puts a shard's commands that were given offsets but are not stored back to the front of the queue, in order.
    fn take_back(&mut self, shard: u16) {
        let (back, kept) = std::mem::take(&mut self.arrived)
            .into_iter()
            .partition(|(of, _)| *of == shard);
        self.arrived = kept;
        let back: Vec<(u16, Record)> = back;
        for (shard, record) in back.into_iter().rev() {
            let waiting = Waiting {
                time_ms: record.time_ms,
                key: record.key,
                value: record.value,
            };
            self.queue_bytes += waiting.bytes();
            self.queue.push_front((shard, waiting));
        }
        let lane = &mut self.lanes[usize::from(shard)];
        lane.next_offset = lane.stored_end;
        lane.next_out = None;
    }
}

/// Opens the file again if a write failed, and learns from it how far the writes came. On an error the store can
/// still be read, if it could be before.
fn reopen_if_failed(shared: &Shared, lock: &mut StoreLock) -> Result<(), Fault> {
    match locked(&shared.desk).state {
        State::Up => return Ok(()),
        State::ReadOnly => return Err(Fault::Io(READ_ONLY.into())),
        State::Full | State::Failed(_) => {}
    }
    if let Some(dir) = shared.path.parent()
        && !shared.disk.has_room(dir).map_err(redb::Error::Io)?
    {
        return Err(Fault::DiskFull);
    }
    let result = reopen(shared);
    let was_full = shared.disk.take_was_full();
    match result {
        Ok(commits) => {
            shared.announce(lock, commits);
            Ok(())
        }
        Err(fault) => {
            shared.fall_back_to_reading();
            Err(if was_full { Fault::DiskFull } else { fault })
        }
    }
}

fn reopen(shared: &Shared) -> Result<u64, Fault> {
    let mut store = shared.store.write().unwrap_or_else(PoisonError::into_inner);
    // Closed first: the file can be open once.
    drop(store.take());
    let options = &shared.options;
    let opened = Store::open(
        &shared.path,
        &shared.disk,
        options.shards,
        options.cache_bytes,
    )?;
    let (commits, lanes) = Store::contained(|| {
        opened.probe_room()?;
        Ok((opened.commits()?, lanes_of(&opened, options.shards)?))
    })?;
    let known = *locked(&shared.commits);
    if commits < known {
        return Err(Fault::Damaged(format!(
            "it ends at commit {commits}, but commit {known} was made"
        )));
    }
    *store = Some(opened);
    drop(store);
    let mut desk = locked(&shared.desk);
    // What the failed commit did write is in the file; the rest is still to come.
    desk.arrived
        .retain(|(shard, record)| record.offset >= lanes[usize::from(*shard)].stored_end);
    desk.lanes = lanes;
    (0..options.shards).for_each(|shard| desk.take_back(shard));
    desk.state = State::Up;
    Ok(commits)
}

fn own_error(fault: &Fault) -> OwnError {
    match fault {
        Fault::DiskFull => OwnError::DiskFull,
        other => OwnError::Failed(format!("{other:?}")),
    }
}

fn recover_error(shared: &Shared, fault: Fault) -> RecoverError {
    match fault {
        Fault::DiskFull => RecoverError::DiskFull,
        Fault::Damaged(why) => RecoverError::Corrupt(damage_text(&shared.path, &why)),
        other => RecoverError::Unavailable(format!("{other:?}")),
    }
}
