//! The file: tables, one write transaction per commit, reads that believe nothing unchecked.
//!
//! Each log topic is a table with keys (shard, offset); `shard-state` and `headers` are tables with keys
//! (shard, entity) and (shard). A partition's bounds lie beside the records, so a record that is missing is found out:
//! offsets between the bounds must follow one another. The states of a shard are counted and summed in its header.
//!
//! redb checks its pages when it opens a file, not when it reads one, and may panic on pages it does not
//! understand; every use of it goes through [`Store::contained`], which turns a panic into an error.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use bytes::Bytes;
use redb::{
    Database, ReadTransaction, ReadableDatabase, ReadableTable, Table, TableDefinition,
    WriteTransaction,
};

use super::Retention;
use super::codec::{
    Digest, LogKey, Part, StoredHeader, decode_number, encode_number, encode_state, log_key,
    offset_of, part_key, read_record, record_len, state_key, write_record,
};
use super::disk::{Disk, ROOM_PROBE_BYTES, ReadView};
use super::keep::{self, Watch};
use crate::{Append, Header, READ_MAX, Record, Recovered, StateChange, Topic};

/// Version of the layout described here. A store of another version is refused.
pub const FORMAT_VERSION: u64 = 1;

/// A file below this size is never compacted.
pub(super) const COMPACT_MIN_BYTES: u64 = 64 << 20;

/// Most bytes of keys and values one read returns; at least one record is returned whatever its size.
const READ_MAX_BYTES: usize = 16 << 20;

const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");
pub(super) const PARTS: TableDefinition<&[u8; 3], &[u8]> = TableDefinition::new("parts");
pub(super) const HEADERS: TableDefinition<&[u8; 2], &[u8]> = TableDefinition::new("headers");
/// Keys of any length, ordered byte by byte.
pub(super) type StateKey = &'static [u8];
pub(super) const STATES: TableDefinition<&[u8], &[u8]> = TableDefinition::new("shard-state");

const FORMAT: &str = "format version";
const SHARDS: &str = "number of shards";
const EPOCH: &str = "owner epoch";
const COMMITS: &str = "number of commits";

/// Topics kept as logs, that is all but `shard-state`.
pub(super) const LOGS: [Topic; 7] = [
    Topic::RideCommands,
    Topic::RideEvents,
    Topic::PersonEvents,
    Topic::ShardOwners,
    Topic::DriverLocations,
    Topic::DriverPings,
    Topic::DemandForecasts,
];

/// The topics whose fold gives the states.
pub(super) const EVENTS: [Topic; 2] = [Topic::RideEvents, Topic::PersonEvents];

pub(super) fn log_table(topic: Topic) -> TableDefinition<'static, &'static LogKey, &'static [u8]> {
    TableDefinition::new(topic.name())
}

/// What went wrong inside the store, before it is worded for the operation that met it.
#[derive(Debug)]
pub(super) enum Fault {
    DiskFull,
    /// Stored bytes are not what was written.
    Damaged(String),
    /// The file could not be read or written, for another reason than room.
    Io(String),
    /// Offset trimmed; the first one still there.
    TooOld(u64),
    /// Layout version of the file.
    Version(u64),
    /// Number of shards of the file.
    Shards(u16),
}

impl<E: Into<redb::Error>> From<E> for Fault {
    fn from(error: E) -> Self {
        match error.into() {
            redb::Error::Io(e) if is_full(&e) => Fault::DiskFull,
            redb::Error::Io(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => {
                Fault::Damaged("it ends too early".into())
            }
            redb::Error::Io(e) if e.kind() == std::io::ErrorKind::InvalidData => {
                Fault::Damaged(e.to_string())
            }
            redb::Error::Io(e) => Fault::Io(e.to_string()),
            redb::Error::Corrupted(why) => Fault::Damaged(why),
            e @ (redb::Error::TableTypeMismatch { .. }
            | redb::Error::TypeDefinitionChanged { .. }
            | redb::Error::TableIsMultimap(_)
            | redb::Error::TableDoesNotExist(_)
            | redb::Error::UpgradeRequired(_)
            | redb::Error::RepairAborted
            | redb::Error::UnorderedKey) => Fault::Damaged(e.to_string()),
            e => Fault::Io(e.to_string()),
        }
    }
}

pub(super) fn is_full(e: &std::io::Error) -> bool {
    matches!(
        e.kind(),
        std::io::ErrorKind::StorageFull
            | std::io::ErrorKind::QuotaExceeded
            | std::io::ErrorKind::FileTooLarge
    )
}

/// One commit: the caller's transaction, and what the log itself adds to it.
pub(super) struct Batch<'a> {
    /// Commands polled or synced but not stored yet; offsets follow the stored ones of their shard.
    pub arrived: &'a [(u16, Record)],
    /// Messages between shards, with the offsets they get.
    pub hops: &'a [(u16, Record)],
    pub events: &'a [Append],
    pub states: &'a [StateChange],
    pub headers: &'a [(u16, Header)],
    pub epoch: u64,
    pub owner: &'a str,
    pub now_ms: i64,
    /// The shard whose past is looked after this time, and what is to be kept of it.
    pub look_after: (u16, Retention),
}

/// An open store file.
pub(super) struct Store {
    /// `None` only while it is dropped.
    db: Option<Database>,
}

impl Drop for Store {
    fn drop(&mut self) {
        // redb tidies up when it closes a file, and may panic then on damaged pages like everywhere else.
        let db = self.db.take();
        let closed = Self::contained(|| {
            drop(db);
            Ok(())
        });
        if let Err(fault) = closed {
            tracing::error!(?fault, "closing the store");
        }
    }
}

impl Store {
    /// Opens the file, creates it when it is not there, checks every page of an existing one.
    pub(super) fn open(
        path: &Path,
        disk: &Disk,
        shards: u16,
        cache_bytes: usize,
    ) -> Result<Store, Fault> {
        Self::contained(|| {
            if !path.try_exists().map_err(redb::Error::Io)?
                || path.metadata().map_err(redb::Error::Io)?.len() == 0
            {
                Self::create(path, disk, shards, cache_bytes)?;
            }
            let mut store = Self::with_backend(disk.open(path)?, cache_bytes)?;
            if !store.check_pages()? {
                tracing::warn!(store = %path.display(), "the store was repaired");
            }
            let store = store.compacted(path, disk, cache_bytes)?;
            store.check_shards(shards)?;
            Ok(store)
        })
    }

    /// Makes a store under another name first, so that a kill never leaves half of one under its own.
    fn create(path: &Path, disk: &Disk, shards: u16, cache_bytes: usize) -> Result<(), Fault> {
        let new = path.with_extension("new");
        match std::fs::remove_file(&new) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(redb::Error::Io(e).into());
            }
            _ => {}
        }
        let store = Self::with_backend(disk.open(&new)?, cache_bytes)?;
        store.create_tables(shards)?;
        drop(store);
        std::fs::rename(&new, path).map_err(redb::Error::Io)?;
        if let Some(dir) = path.parent() {
            // The new name must survive a power cut as well as what it names.
            std::fs::File::open(dir)
                .and_then(|dir| dir.sync_all())
                .map_err(redb::Error::Io)?;
        }
        Ok(())
    }

    /// Gives room back if the file is large and mostly empty. A failure, of a disk that is full perhaps, costs nothing.
    fn compacted(mut self, path: &Path, disk: &Disk, cache_bytes: usize) -> Result<Store, Fault> {
        let len = path.metadata().map_err(redb::Error::Io)?.len();
        if len < COMPACT_MIN_BYTES {
            return Ok(self);
        }
        let tx = self.db().begin_write()?;
        let stats = tx.stats()?;
        tx.abort()?;
        if stats.allocated_pages() * stats.page_size() as u64 > len / 2 {
            return Ok(self);
        }
        match self.db.as_mut().expect("taken by drop only").compact() {
            Ok(_) => {
                let now = path.metadata().map_err(redb::Error::Io)?.len();
                tracing::info!(store = %path.display(), from = len, to = now, "compacted");
                Ok(self)
            }
            Err(error) => {
                tracing::warn!(store = %path.display(), %error, "not compacted");
                drop(self);
                disk.take_was_full();
                Self::with_backend(disk.open(path)?, cache_bytes)
            }
        }
    }

    fn with_backend(
        backend: impl redb::StorageBackend,
        cache_bytes: usize,
    ) -> Result<Store, Fault> {
        let db = Database::builder()
            .set_cache_size(cache_bytes)
            .create_with_backend(backend)?;
        Ok(Store { db: Some(db) })
    }

    fn db(&self) -> &Database {
        self.db.as_ref().expect("taken by drop only")
    }

    /// Reads every page and compares checksums; false if something had to be repaired.
    fn check_pages(&mut self) -> Result<bool, Fault> {
        Ok(self
            .db
            .as_mut()
            .expect("taken by drop only")
            .check_integrity()?)
    }

    /// Opens the file as it is for reading; what a repair would write stays in memory.
    pub(super) fn open_to_read(path: &Path, cache_bytes: usize) -> Result<Store, Fault> {
        Self::contained(|| {
            let mut store = Self::with_backend(ReadView::open(path)?, cache_bytes)?;
            store.check_pages()?;
            store.shards()?;
            Ok(store)
        })
    }

    /// Fails with `DiskFull` unless a commit of some size goes through.
    pub(super) fn probe_room(&self) -> Result<(), Fault> {
        const PROBE: &str = "room";
        let tx = self.db().begin_write()?;
        tx.open_table(META)?
            .insert_reserve(PROBE, ROOM_PROBE_BYTES)?
            .as_mut()
            .fill(0x5a);
        tx.commit()?;
        let tx = self.db().begin_write()?;
        tx.open_table(META)?.remove(PROBE)?;
        tx.commit()?;
        Ok(())
    }

    /// Runs `work` and turns a panic, of redb on damaged pages, into an error.
    pub(super) fn contained<T>(work: impl FnOnce() -> Result<T, Fault>) -> Result<T, Fault> {
        // Nothing behind `work` is used after a panic: the caller closes the store and opens it again.
        catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
            let why = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("no reason given");
            Err(Fault::Damaged(format!("the file store gave up: {why}")))
        })
    }

    fn create_tables(&self, shards: u16) -> Result<(), Fault> {
        let tx = self.db().begin_write()?;
        {
            let mut meta = tx.open_table(META)?;
            put_number(&mut meta, FORMAT, FORMAT_VERSION)?;
            put_number(&mut meta, SHARDS, u64::from(shards))?;
            put_number(&mut meta, EPOCH, 0)?;
            put_number(&mut meta, COMMITS, 0)?;
            tx.open_table(HEADERS)?;
            tx.open_table(STATES)?;
            keep::create(&tx)?;
            let mut parts = tx.open_table(PARTS)?;
            for topic in LOGS {
                tx.open_table(log_table(topic))?;
                for shard in 0..shards {
                    put_part(&mut parts, topic, shard, Part::default())?;
                }
            }
        }
        tx.commit()?;
        Ok(())
    }

    fn check_shards(&self, shards: u16) -> Result<(), Fault> {
        match self.shards()? {
            stored if stored == shards => Ok(()),
            stored => Err(Fault::Shards(stored)),
        }
    }

    /// Number of shards, of a store whose version is ours.
    pub(super) fn shards(&self) -> Result<u16, Fault> {
        let tx = self.db().begin_read()?;
        let meta = tx.open_table(META)?;
        match get_number(&meta, FORMAT)? {
            FORMAT_VERSION => {}
            version => return Err(Fault::Version(version)),
        }
        let stored = get_number(&meta, SHARDS)?;
        u16::try_from(stored).map_err(|_| Fault::Damaged(format!("it says {stored} shards")))
    }

    pub(super) fn commits(&self) -> Result<u64, Fault> {
        let tx = self.db().begin_read()?;
        get_number(&tx.open_table(META)?, COMMITS)
    }

    pub(super) fn epoch(&self) -> Result<u64, Fault> {
        let tx = self.db().begin_read()?;
        get_number(&tx.open_table(META)?, EPOCH)
    }

    /// Makes `epoch` the newest owner's.
    pub(super) fn set_epoch(&self, epoch: u64) -> Result<u64, Fault> {
        let tx = self.db().begin_write()?;
        let commits = {
            let mut meta = tx.open_table(META)?;
            put_number(&mut meta, EPOCH, epoch)?;
            let commits = get_number(&meta, COMMITS)? + 1;
            put_number(&mut meta, COMMITS, commits)?;
            commits
        };
        tx.commit()?;
        Ok(commits)
    }

    pub(super) fn part(&self, topic: Topic, shard: u16) -> Result<Part, Fault> {
        let tx = self.db().begin_read()?;
        read_part(&tx, topic, shard)
    }

    pub(super) fn read(
        &self,
        topic: Topic,
        shard: u16,
        from: u64,
        max: usize,
    ) -> Result<Vec<Record>, Fault> {
        let tx = self.db().begin_read()?;
        let part = read_part(&tx, topic, shard)?;
        if from < part.first {
            return Err(Fault::TooOld(part.first));
        }
        let wanted = part.end.saturating_sub(from);
        let max = max
            .min(READ_MAX)
            .min(usize::try_from(wanted).unwrap_or(usize::MAX));
        let mut records = Vec::with_capacity(max);
        if max == 0 {
            return Ok(records);
        }
        let table = tx.open_table(log_table(topic))?;
        let mut range = table.range::<&LogKey>(&log_key(shard, from)..&log_key(shard, part.end))?;
        let mut bytes = 0;
        let mut last_ms = i64::MIN;
        for offset in (from..).take(max) {
            let missing = || Fault::Damaged(format!("{topic} shard {shard} lacks offset {offset}"));
            let (key, stored) = range.next().ok_or_else(missing)??;
            if offset_of(key.value()) != offset {
                return Err(missing());
            }
            let record =
                read_record(topic, shard, offset, stored.value()).map_err(Fault::Damaged)?;
            if record.time_ms < last_ms {
                return Err(Fault::Damaged(format!(
                    "the append time of {topic} shard {shard} goes back at offset {offset}"
                )));
            }
            last_ms = record.time_ms;
            bytes += record.key.len() + record.value.len();
            records.push(record);
            if bytes >= READ_MAX_BYTES {
                break;
            }
        }
        Ok(records)
    }

    /// Header, states and event positions of one moment, all checked.
    pub(super) fn snapshot(&self, shard: u16) -> Result<Recovered, Fault> {
        let tx = self.db().begin_read()?;
        let place = shard.to_be_bytes();
        let header = match tx.open_table(HEADERS)?.get(&place)? {
            Some(stored) => {
                Some(StoredHeader::decode(&place, stored.value()).map_err(Fault::Damaged)?)
            }
            None => None,
        };
        let expected = header.as_ref().map(|h| h.states).unwrap_or_default();
        let states = read_states(&tx.open_table(STATES)?, &[], shard, expected)?;
        let mut event_ends = Vec::with_capacity(EVENTS.len());
        for topic in EVENTS {
            event_ends.push((topic, read_part(&tx, topic, shard)?.end));
        }
        Ok(Recovered {
            header: header.map(|h| h.header),
            states,
            event_ends,
        })
    }

    /// The oldest retained snapshot.
    pub(super) fn base(&self, shard: u16) -> Result<Recovered, Fault> {
        keep::read_base(&self.db().begin_read()?, shard)
    }

    /// Stores commands that have arrived, without consuming them.
    pub(super) fn store_commands(&self, arrived: &[(u16, Record)]) -> Result<u64, Fault> {
        self.write(|tx| write_commands(tx, arrived, &[]))
    }

    /// Writes a batch and returns the number of commits when it is durable.
    pub(super) fn commit(&self, batch: &Batch<'_>) -> Result<u64, Fault> {
        self.write(|tx| {
            write_commands(tx, batch.arrived, batch.hops)?;
            write_events(tx, batch.events, batch.now_ms)?;
            write_states(tx, batch)?;
            let written = batch.arrived.len() + batch.hops.len() + batch.events.len();
            let (shard, bounds) = batch.look_after;
            keep::look_after(tx, shard, bounds, batch.now_ms, written)
        })
    }

    fn write(
        &self,
        work: impl FnOnce(&WriteTransaction) -> Result<(), Fault>,
    ) -> Result<u64, Fault> {
        let tx = self.db().begin_write()?;
        work(&tx)?;
        let commits = {
            let mut meta = tx.open_table(META)?;
            let commits = get_number(&meta, COMMITS)? + 1;
            put_number(&mut meta, COMMITS, commits)?;
            commits
        };
        tx.commit()?;
        Ok(commits)
    }
}

fn get_number(
    meta: &impl ReadableTable<&'static str, &'static [u8]>,
    name: &str,
) -> Result<u64, Fault> {
    match meta.get(name)? {
        Some(stored) => decode_number(name, stored.value()).map_err(Fault::Damaged),
        None => Err(Fault::Damaged(format!("there is no {name}"))),
    }
}

fn put_number(
    meta: &mut Table<'_, &'static str, &'static [u8]>,
    name: &str,
    number: u64,
) -> Result<(), Fault> {
    meta.insert(name, encode_number(name, number).as_slice())?;
    Ok(())
}

pub(super) fn get_part(
    parts: &impl ReadableTable<&'static [u8; 3], &'static [u8]>,
    topic: Topic,
    shard: u16,
) -> Result<Part, Fault> {
    match parts.get(&part_key(topic, shard))? {
        Some(stored) => Part::decode(topic, shard, stored.value()).map_err(Fault::Damaged),
        None => Err(Fault::Damaged(format!(
            "there are no bounds of {topic} shard {shard}"
        ))),
    }
}

pub(super) fn put_part(
    parts: &mut Table<'_, &'static [u8; 3], &'static [u8]>,
    topic: Topic,
    shard: u16,
    part: Part,
) -> Result<(), Fault> {
    parts.insert(
        &part_key(topic, shard),
        part.encode(topic, shard).as_slice(),
    )?;
    Ok(())
}

fn read_part(tx: &ReadTransaction, topic: Topic, shard: u16) -> Result<Part, Fault> {
    get_part(&tx.open_table(PARTS)?, topic, shard)
}

/// The states of a shard in a table whose keys have `before` in front; they must be those the digest says.
pub(super) fn read_states(
    table: &impl ReadableTable<&'static [u8], &'static [u8]>,
    before: &[u8],
    shard: u16,
    expected: Digest,
) -> Result<Vec<(Bytes, Bytes)>, Fault> {
    let mut states = Vec::new();
    let mut found = Digest::default();
    let prefix = [before, &shard.to_be_bytes()].concat();
    for entry in table.range::<&[u8]>(prefix.as_slice()..)? {
        let (key, stored) = entry?;
        let Some(entity) = key.value().strip_prefix(prefix.as_slice()) else {
            break;
        };
        let state = keep::found_state(&key.value()[before.len()..], stored.value(), &mut found)?;
        if let Some(state) = state {
            states.push((
                Bytes::copy_from_slice(entity),
                Bytes::copy_from_slice(state),
            ));
        }
    }
    if found == expected {
        Ok(states)
    } else {
        Err(Fault::Damaged(format!(
            "shard {shard} has {} states where {} were written, or others",
            found.count, expected.count
        )))
    }
}

/// Appends records that bring their offsets along.
fn write_commands(
    tx: &WriteTransaction,
    arrived: &[(u16, Record)],
    hops: &[(u16, Record)],
) -> Result<(), Fault> {
    if arrived.is_empty() && hops.is_empty() {
        return Ok(());
    }
    let topic = Topic::RideCommands;
    let mut parts = tx.open_table(PARTS)?;
    let mut log = tx.open_table(log_table(topic))?;
    let mut touched: Vec<Option<Part>> = Vec::new();
    for (shard, record) in arrived.iter().chain(hops) {
        let part = part_in(&mut touched, &parts, topic, *shard)?;
        if record.offset != part.end {
            return Err(Fault::Damaged(format!(
                "{topic} shard {shard} ends at {} where {} comes next",
                part.end, record.offset
            )));
        }
        append(&mut log, topic, *shard, record, part)?;
    }
    put_parts(&mut parts, topic, &touched)
}

fn write_events(tx: &WriteTransaction, events: &[Append], now_ms: i64) -> Result<(), Fault> {
    for topic in LOGS {
        if topic == Topic::RideCommands || !events.iter().any(|event| event.topic == topic) {
            continue;
        }
        let mut parts = tx.open_table(PARTS)?;
        let mut log = tx.open_table(log_table(topic))?;
        let mut touched: Vec<Option<Part>> = Vec::new();
        for event in events.iter().filter(|event| event.topic == topic) {
            let part = part_in(&mut touched, &parts, topic, event.shard)?;
            let record = Record {
                offset: part.end,
                time_ms: now_ms.max(part.last_ms),
                key: event.key.clone(),
                value: event.value.clone(),
            };
            append(&mut log, topic, event.shard, &record, part)?;
        }
        put_parts(&mut parts, topic, &touched)?;
    }
    Ok(())
}

/// The bounds of a shard, read once per transaction.
fn part_in<'a>(
    touched: &'a mut Vec<Option<Part>>,
    parts: &Table<'_, &'static [u8; 3], &'static [u8]>,
    topic: Topic,
    shard: u16,
) -> Result<&'a mut Part, Fault> {
    let index = usize::from(shard);
    if touched.len() <= index {
        touched.resize(index + 1, None);
    }
    let slot = &mut touched[index];
    match slot {
        Some(part) => Ok(part),
        None => Ok(slot.insert(get_part(parts, topic, shard)?)),
    }
}

fn put_parts(
    parts: &mut Table<'_, &'static [u8; 3], &'static [u8]>,
    topic: Topic,
    touched: &[Option<Part>],
) -> Result<(), Fault> {
    for (shard, part) in (0_u16..).zip(touched) {
        if let Some(part) = part {
            put_part(parts, topic, shard, *part)?;
        }
    }
    Ok(())
}

fn append(
    log: &mut Table<'_, &'static LogKey, &'static [u8]>,
    topic: Topic,
    shard: u16,
    record: &Record,
    part: &mut Part,
) -> Result<(), Fault> {
    let len = record_len(&record.key, &record.value);
    let mut slot = log.insert_reserve(&log_key(shard, record.offset), len)?;
    write_record(slot.as_mut(), topic, shard, record);
    part.end = record.offset + 1;
    part.last_ms = record.time_ms;
    part.bytes += len as u64;
    Ok(())
}

fn write_states(tx: &WriteTransaction, batch: &Batch<'_>) -> Result<(), Fault> {
    let mut headers = tx.open_table(HEADERS)?;
    let mut states = tx.open_table(STATES)?;
    for (shard, header) in batch.headers {
        let place = shard.to_be_bytes();
        let mut digest = match headers.get(&place)? {
            Some(stored) => {
                StoredHeader::decode(&place, stored.value())
                    .map_err(Fault::Damaged)?
                    .states
            }
            None => Digest::default(),
        };
        let mut watch = Watch::of(tx, *shard)?;
        for change in batch.states.iter().filter(|change| change.shard == *shard) {
            change_state(&mut states, change, &mut digest, watch.as_mut())?;
        }
        if let Some(watch) = watch {
            watch.finish(tx)?;
        }
        let stored = StoredHeader {
            header: Header {
                epoch: batch.epoch,
                owner: batch.owner.to_owned(),
                ..header.clone()
            },
            states: digest,
        };
        headers.insert(&place, stored.encode(&place).as_slice())?;
    }
    Ok(())
}

fn change_state(
    states: &mut Table<'_, &'static [u8], &'static [u8]>,
    change: &StateChange,
    digest: &mut Digest,
    watch: Option<&mut Watch<'_>>,
) -> Result<(), Fault> {
    let key = state_key(change.shard, &change.key);
    if let Some(watch) = watch {
        watch.before_change(&key, states)?;
    }
    let old = match &change.value {
        Some(value) => {
            let stored = encode_state(&key, value);
            digest.add(&stored);
            states.insert(key.as_slice(), stored.as_slice())?
        }
        None => states.remove(key.as_slice())?,
    };
    if let Some(old) = old {
        digest.remove(old.value());
    }
    Ok(())
}
