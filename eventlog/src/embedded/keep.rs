//! What is kept of the past, and how the rest goes without a pause.
//!
//! Events may only go when a copy of the states stands where they began: state = fold of the events since the oldest
//! retained snapshot, the *base*. So each shard has a base, and now and then a copy in the making:
//!
//! 1. When the events since the base reach half of a bound, a copy begins. It is of the moment it began, although it
//!    is made in small steps inside later commits: a state that changes before it was copied is copied just before
//!    (an empty value says that there was none).
//! 2. When the events since the base reach the bound and the copy is complete, it becomes the base. The events before
//!    it, about half of them, are trimmed in small steps, and so is the old base.
//!
//! So between half and all of a bound is kept, a little more while a copy is under way. Commands go by the same
//! bounds, but never those not yet consumed. Each commit looks after one shard, in turn; a step is at most
//! [`STEP_MIN`] entries, or as many as the commit itself wrote, and twice that when trimming, so that it cannot fall
//! behind.

use redb::{ReadableTable, Table, TableDefinition, WriteTransaction};

use super::Retention;
use super::codec::{
    Base, Digest, Keep, LogKey, NO_SLOT, Part, StoredHeader, decode_state, log_key, state_key,
};
use super::store::{
    EVENTS, Fault, HEADERS, LOGS, PARTS, STATES, StateKey, get_part, log_table, put_part,
    read_states,
};
use crate::{Recovered, Topic};

/// Entries copied, cleared or trimmed per commit, at least.
const STEP_MIN: usize = 256;

/// Bases and copies in the making, in two slots: slot, shard, entity.
const BASES: TableDefinition<&[u8], &[u8]> = TableDefinition::new("bases");
const KEEPS: TableDefinition<&[u8; 2], &[u8]> = TableDefinition::new("keeps");

type Bytewise<'tx> = Table<'tx, StateKey, &'static [u8]>;

pub(super) fn create(tx: &WriteTransaction) -> Result<(), Fault> {
    tx.open_table(BASES)?;
    tx.open_table(KEEPS)?;
    Ok(())
}

fn base_key(slot: u8, state_key: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(1 + state_key.len());
    key.push(slot);
    key.extend_from_slice(state_key);
    key
}

fn get_keep(
    keeps: &impl ReadableTable<&'static [u8; 2], &'static [u8]>,
    shard: u16,
) -> Result<Keep, Fault> {
    let place = shard.to_be_bytes();
    match keeps.get(&place)? {
        Some(stored) => Keep::decode(&place, stored.value()).map_err(Fault::Damaged),
        None => Ok(Keep::default()),
    }
}

/// Watches the changes of one shard's states during a commit, for the copy in the making.
pub(super) struct Watch<'tx> {
    bases: Bytewise<'tx>,
    keep: Keep,
    place: [u8; 2],
    changed: bool,
}

impl<'tx> Watch<'tx> {
    /// `None` when no copy of the shard is in the making.
    pub(super) fn of(tx: &'tx WriteTransaction, shard: u16) -> Result<Option<Watch<'tx>>, Fault> {
        let keep = get_keep(&tx.open_table(KEEPS)?, shard)?;
        if keep.next.is_none() || keep.done {
            return Ok(None);
        }
        Ok(Some(Watch {
            bases: tx.open_table(BASES)?,
            keep,
            place: shard.to_be_bytes(),
            changed: false,
        }))
    }

    /// A state is about to change: keeps what it was, unless that is kept already.
    pub(super) fn before_change(&mut self, key: &[u8], states: &Bytewise<'_>) -> Result<(), Fault> {
        let Some(next) = &mut self.keep.next else {
            return Ok(());
        };
        if key <= self.keep.cursor.as_slice() {
            return Ok(());
        }
        let base_key = base_key(next.slot, key);
        if self.bases.get(base_key.as_slice())?.is_some() {
            return Ok(());
        }
        match states.get(key)? {
            Some(old) => {
                next.states.add(old.value());
                self.changed = true;
                self.bases.insert(base_key.as_slice(), old.value())?;
            }
            None => {
                self.bases.insert(base_key.as_slice(), [].as_slice())?;
            }
        }
        Ok(())
    }

    pub(super) fn finish(self, tx: &WriteTransaction) -> Result<(), Fault> {
        if self.changed {
            put_keep(tx, &self.place, &self.keep)?;
        }
        Ok(())
    }
}

fn put_keep(tx: &WriteTransaction, place: &[u8; 2], keep: &Keep) -> Result<(), Fault> {
    tx.open_table(KEEPS)?
        .insert(place, keep.encode(place).as_slice())?;
    Ok(())
}

/// One step for one shard, inside a commit that wrote `written` records.
pub(super) fn look_after(
    tx: &WriteTransaction,
    shard: u16,
    bounds: Retention,
    now_ms: i64,
    written: usize,
) -> Result<(), Fault> {
    let step = STEP_MIN.max(written);
    let place = shard.to_be_bytes();
    let mut keep = get_keep(&tx.open_table(KEEPS)?, shard)?;
    let before = keep.clone();
    if keep.base.taken_ms == i64::MIN {
        keep.base.taken_ms = now_ms;
    }
    let parts = event_parts(tx, shard)?;

    if keep.clearing != NO_SLOT {
        clear(tx, shard, &mut keep, step)?;
    } else if keep.next.is_none() && reached(&keep.base, &parts, bounds, 2, now_ms) {
        keep.next = Some(Base::at(1 - keep.base.slot.min(1), &parts, now_ms));
        keep.cursor.clear();
        keep.done = false;
    } else if keep.next.is_some() && !keep.done {
        copy(tx, shard, &mut keep, step)?;
    }
    if keep.done
        && reached(&keep.base, &parts, bounds, 1, now_ms)
        && let Some(next) = keep.next.take()
    {
        keep.clearing = keep.base.slot;
        keep.base = next;
        keep.done = false;
    }
    if keep != before {
        put_keep(tx, &place, &keep)?;
    }
    trim_logs(tx, shard, &keep.base, bounds, now_ms, 2 * step)
}

fn event_parts(tx: &WriteTransaction, shard: u16) -> Result<[Part; 2], Fault> {
    let parts = tx.open_table(PARTS)?;
    Ok([
        get_part(&parts, EVENTS[0], shard)?,
        get_part(&parts, EVENTS[1], shard)?,
    ])
}

/// Whether the events since the base reach a bound, or the given fraction of it.
fn reached(base: &Base, parts: &[Part; 2], bounds: Retention, fraction: u64, now_ms: i64) -> bool {
    let old = now_ms.saturating_sub(base.taken_ms) >= bounds.age_ms / fraction.cast_signed();
    parts.iter().zip(&base.ends).any(|(part, (end, bytes))| {
        let records = part.end - end;
        records >= bounds.records / fraction
            || part.bytes - bytes >= bounds.bytes / fraction
            || (old && records > 0)
    })
}

/// Copies the next states. Those that changed since the copy began are in it already.
fn copy(tx: &WriteTransaction, shard: u16, keep: &mut Keep, step: usize) -> Result<(), Fault> {
    let Some(next) = &mut keep.next else {
        return Ok(());
    };
    let states = tx.open_table(STATES)?;
    let mut bases = tx.open_table(BASES)?;
    let from = if keep.cursor.is_empty() {
        state_key(shard, &[])
    } else {
        keep.cursor.clone()
    };
    let mut looked_at = 0;
    for entry in states.range::<&[u8]>(from.as_slice()..)? {
        let (key, stored) = entry?;
        let key = key.value();
        if key == keep.cursor.as_slice() {
            continue;
        }
        if !key.starts_with(&shard.to_be_bytes()) {
            break;
        }
        if looked_at == step {
            return Ok(());
        }
        looked_at += 1;
        let base_key = base_key(next.slot, key);
        if bases.get(base_key.as_slice())?.is_none() {
            next.states.add(stored.value());
            bases.insert(base_key.as_slice(), stored.value())?;
        }
        keep.cursor = key.to_vec();
    }
    keep.done = true;
    Ok(())
}

/// Removes the next entries of the slot that is no longer needed.
fn clear(tx: &WriteTransaction, shard: u16, keep: &mut Keep, step: usize) -> Result<(), Fault> {
    let mut bases = tx.open_table(BASES)?;
    let prefix = base_key(keep.clearing, &shard.to_be_bytes());
    let mut doomed = Vec::new();
    for entry in bases.range::<&[u8]>(prefix.as_slice()..)? {
        let (key, _) = entry?;
        if !key.value().starts_with(&prefix) || doomed.len() == step {
            break;
        }
        doomed.push(key.value().to_vec());
    }
    for key in &doomed {
        bases.remove(key.as_slice())?;
    }
    if doomed.len() < step {
        keep.clearing = NO_SLOT;
    }
    Ok(())
}

fn trim_logs(
    tx: &WriteTransaction,
    shard: u16,
    base: &Base,
    bounds: Retention,
    now_ms: i64,
    step: usize,
) -> Result<(), Fault> {
    let mut parts = tx.open_table(PARTS)?;
    for topic in LOGS {
        let part = get_part(&parts, topic, shard)?;
        if part.first == part.end {
            continue;
        }
        let event = EVENTS.iter().zip(&base.ends).find(|(of, _)| **of == topic);
        let (floor, needed) = match event {
            // Below the base nothing is needed, whatever the bounds.
            Some((_, (end, _))) => (*end, 0),
            None if topic == Topic::RideCommands => (consumed(tx, shard)?, bounds.records),
            None => (part.end, bounds.records),
        };
        let trimmed = if event.is_some() {
            trim(tx, topic, shard, part, floor, step, |_, _| true)?
        } else {
            trim(tx, topic, shard, part, floor, step, |left, time_ms| {
                left.end - left.first > needed
                    || left.bytes - left.trimmed > bounds.bytes
                    || now_ms.saturating_sub(time_ms) > bounds.age_ms
            })?
        };
        if trimmed != part {
            put_part(&mut parts, topic, shard, trimmed)?;
        }
    }
    Ok(())
}

fn consumed(tx: &WriteTransaction, shard: u16) -> Result<u64, Fault> {
    let place = shard.to_be_bytes();
    match tx.open_table(HEADERS)?.get(&place)? {
        Some(stored) => Ok(StoredHeader::decode(&place, stored.value())
            .map_err(Fault::Damaged)?
            .header
            .next_input),
        None => Ok(0),
    }
}

/// Removes records from the front while they are below `floor` and `goes` says so, at most `step`.
fn trim(
    tx: &WriteTransaction,
    topic: Topic,
    shard: u16,
    mut part: Part,
    floor: u64,
    step: usize,
    goes: impl Fn(&Part, i64) -> bool,
) -> Result<Part, Fault> {
    if part.first >= floor {
        return Ok(part);
    }
    let mut log = tx.open_table(log_table(topic))?;
    let from = part.first;
    {
        let end = floor.min(from.saturating_add(step as u64));
        let (first, end) = (log_key(shard, from), log_key(shard, end));
        for entry in log.range::<&LogKey>(&first..&end)? {
            let (_, stored) = entry?;
            let stored = stored.value();
            let time_ms = super::codec::record_time(stored).unwrap_or(i64::MIN);
            if !goes(&part, time_ms) {
                break;
            }
            part.first += 1;
            part.trimmed += stored.len() as u64;
        }
    }
    if part.first > from {
        let (first, end) = (log_key(shard, from), log_key(shard, part.first));
        log.retain_in::<&LogKey, _>(&first..&end, |_, _| false)?;
    }
    Ok(part)
}

/// The base of a shard, checked.
pub(super) fn read_base(tx: &redb::ReadTransaction, shard: u16) -> Result<Recovered, Fault> {
    let base = get_keep(&tx.open_table(KEEPS)?, shard)?.base;
    let mut states = Vec::new();
    if base.slot != NO_SLOT {
        states = read_states(&tx.open_table(BASES)?, &[base.slot], shard, base.states)?;
    }
    Ok(Recovered {
        header: None,
        states,
        event_ends: EVENTS
            .iter()
            .zip(&base.ends)
            .map(|(topic, (end, _))| (*topic, *end))
            .collect(),
    })
}

/// Adds a state found at `key`; an empty one says that the entity was not there.
pub(super) fn found_state<'a>(
    key: &[u8],
    stored: &'a [u8],
    digest: &mut Digest,
) -> Result<Option<&'a [u8]>, Fault> {
    if stored.is_empty() {
        return Ok(None);
    }
    digest.add(stored);
    decode_state(key, stored).map(Some).map_err(Fault::Damaged)
}
