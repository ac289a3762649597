//! The embedded home: one process, one file, all shards.
//!
//! A submitted command waits in memory, in a bounded queue. `poll` gives it its offset and hands it out; the next
//! commit stores it together with what it led to, in one write transaction with one fsync. While a commit is under
//! way the next commands gather, so the group grows with the load and the latency stays that of one or two fsyncs.
//!
//! **redb, and not fjall:** both were measured with fsync before the choice, 250-byte events and 200-byte states, 1
//! and 1,000 of each a commit: redb 0.15 and 2.2 ms, fjall 0.08 and 2.3 ms. The difference does not matter beside a
//! target of 5 ms, and redb is one file with a checksum on every page, its readers see one moment without blocking
//! the writer, and it does nothing in the background.
//!
//! **Figures** (`cargo run --release -p cabrank-eventlog --example commit_latency`, 2 cores): commits of 1 / 10 / 100 /
//! 1,000 commands, each with an event and a state, take 0.11 / 0.26 / 0.86 / 5.5 ms at the median on a file system in
//! memory; a disk adds one fdatasync. While other work held both cores (load average 10), 21,000 to 48,000 commands a
//! second went through in groups of 1,000 with everything beyond 10,000 records trimmed meanwhile.
//!
//! **After a failed commit** memory and file may differ, so the owner must throw its memory away and recover every
//! shard (PROTOCOL 26); the first `recover` opens the file again. Reads wait for one opening and then go on. Commands
//! that were never stored are still in memory and are handed out again with the offsets that are free then.
//!
//! **Opening** checks every page of the file and repairs what a kill left half-written: 0.4 s for 128 MiB on the busy
//! machine above. After that, each record read is checked against its own checksum and its neighbours.
//!
//! **The file** reuses the room of what was trimmed and so stops growing under a steady load (`tests/retention.rs`).
//! It gives room back when it is opened: if it is larger than 64 MiB and more than half empty, it is
//! compacted then, never while it serves.

mod codec;
mod disk;
#[cfg(test)]
mod full_disk;
mod keep;
mod lock;
#[cfg(test)]
mod opening;
mod owner;
mod store;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::{
    Bounds, EventLog, LogError, RECORD_MAX_BYTES, ReadError, Record, Recovered, SubmitError, Topic,
};
use disk::Disk;
use lock::{Holder, LockFailure, StoreLock};
use store::{Fault, LOGS, Store};

pub use owner::EmbeddedOwner;
pub use store::FORMAT_VERSION;

/// The one file of the store, in its directory.
pub const STORE_FILE: &str = "cabrank.redb";
/// Says which process has the store. Delete it together with the store file only.
pub const LOCK_FILE: &str = "cabrank.lock";

/// Longest name of an owner, in bytes.
const OWNER_MAX: usize = 256;

const READ_ONLY: &str = "it was opened for reading only";

/// Longest wait in one call, whatever was asked for.
const WAIT_MAX: Duration = Duration::from_secs(3_600);

/// The domain clock, in milliseconds. It must not go back.
pub type Clock = Arc<dyn Fn() -> i64 + Send + Sync>;

/// How much of the past is kept per partition of an event topic; whichever bound is met first counts. Never trimmed:
/// commands not yet consumed, and events that the oldest retained snapshot needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Records. Of the event topic that fills first, at least half is kept.
    pub records: u64,
    /// Bytes of keys, values and 16 bytes each.
    pub bytes: u64,
    /// Age by append time, in milliseconds.
    pub age_ms: i64,
}

impl Default for Retention {
    /// A million records, 256 MiB or a week.
    fn default() -> Self {
        Retention {
            records: 1_000_000,
            bytes: 256 << 20,
            age_ms: 7 * 24 * 3_600_000,
        }
    }
}

/// How a store is opened. Every field has a default that suits a laptop.
#[derive(Clone)]
pub struct Options {
    /// Partitions per topic, 1 to 1,024. Fixed when the store is created.
    pub shards: u16,
    /// Commands that may wait to be polled; beyond it `submit` answers `Full`.
    pub queue_max: usize,
    /// Bytes of commands that may wait to be polled; beyond it `submit` answers `FullBytes`.
    pub queue_max_bytes: usize,
    /// How much of the past is kept.
    pub retention: Retention,
    /// Memory for pages of the file. More makes reading the past faster, commits need little.
    pub cache_bytes: usize,
    /// The file does not grow beyond this, as if the disk were full there. It grows by doubling, up to 4 GiB at a time.
    pub file_max_bytes: u64,
    /// The domain clock.
    pub clock: Clock,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            shards: 8,
            queue_max: 65_536,
            queue_max_bytes: 64 << 20,
            retention: Retention::default(),
            cache_bytes: 64 << 20,
            file_max_bytes: 64 << 30,
            clock: Arc::new(wall_clock_ms),
        }
    }
}

impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Options")
            .field("shards", &self.shards)
            .field("queue_max", &self.queue_max)
            .field("queue_max_bytes", &self.queue_max_bytes)
            .field("retention", &self.retention)
            .field("cache_bytes", &self.cache_bytes)
            .field("file_max_bytes", &self.file_max_bytes)
            .finish_non_exhaustive()
    }
}

/// Milliseconds since 1970 by the machine's clock; 0 if that is set to before.
fn wall_clock_ms() -> i64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| {
            i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
        })
}

/// Why there is no store to work with. Nothing was changed, except that a repair may have been begun.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// A store belongs to one process at a time.
    #[error(
        "{dir} is in use by process {} ({command}): stop it, or ask it through --url",
        pid.map_or_else(|| "unknown".to_owned(), |pid| pid.to_string())
    )]
    Locked {
        /// The store's directory.
        dir: String,
        /// The process, if its lock file tells.
        pid: Option<u32>,
        /// Its command line.
        command: String,
    },
    /// The file was written by a newer Cabrank.
    #[error(
        "{file} has format version {found}, this program knows up to {known}: use the newer program that wrote it, or another directory"
    )]
    Newer {
        /// The store file.
        file: String,
        /// Its version.
        found: u64,
        /// [`FORMAT_VERSION`].
        known: u64,
    },
    /// The file was written by an older Cabrank whose layout cannot be upgraded.
    #[error(
        "{file} has format version {found}, this program needs {known}: finish its rides with the program that wrote it, then start with an empty directory"
    )]
    Older {
        /// The store file.
        file: String,
        /// Its version.
        found: u64,
        /// [`FORMAT_VERSION`].
        known: u64,
    },
    /// The number of shards is fixed when a store is created.
    #[error(
        "{file} has {found} shards, not {asked}: set shards = {found}, or use another directory"
    )]
    Shards {
        /// The store file.
        file: String,
        /// In the file.
        found: u16,
        /// In the options.
        asked: u16,
    },
    /// What is stored is not what was written.
    #[error("{0}")]
    Corrupt(String),
    /// No room to create or repair the file.
    #[error("{file}: the disk is full: make room, then start again")]
    DiskFull {
        /// The store file.
        file: String,
    },
    /// An option is out of range.
    #[error("{0}")]
    BadOption(String),
    /// The files cannot be used.
    #[error(
        "{file}: {why}: check that the directory exists on a disk that works and may be written"
    )]
    Io {
        /// The file.
        file: String,
        /// What the system said.
        why: String,
    },
}

/// Why ownership was not taken. The owner before is still the owner.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OwnError {
    /// No room on the disk.
    #[error("the disk is full")]
    DiskFull,
    /// The name is longer than 256 bytes.
    #[error("an owner's name of {0} bytes (bound {OWNER_MAX})")]
    NameTooLong(usize),
    /// The store failed.
    #[error("{0}")]
    Failed(String),
}

/// A store on disk, shared by all who hold a clone of it.
#[derive(Clone)]
pub struct EmbeddedLog {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for EmbeddedLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EmbeddedLog")
            .field("path", &self.shared.path)
            .field("options", &self.shared.options)
            .finish_non_exhaustive()
    }
}

/// What the log, its clones and its owners share.
struct Shared {
    path: PathBuf,
    options: Options,
    disk: Disk,
    /// `None` after a failure, until a recovery opens the file again. Readers share it; it is closed only when no
    /// read is under way.
    store: RwLock<Option<Store>>,
    /// Held while a transaction is written, so that offsets given are offsets stored. Taken before `desk`.
    writing: Mutex<StoreLock>,
    desk: Mutex<Desk>,
    /// Something for `poll` has changed. With `desk`.
    work: Condvar,
    commits: Mutex<u64>,
    /// The number of commits has changed. With `commits`.
    committed: Condvar,
}

/// The commands on their way from `submit` to a commit. Locked for moments only, never during I/O.
struct Desk {
    /// Submitted, without offset. In the order of submission over all shards; times never go back.
    queue: VecDeque<(u16, Waiting)>,
    queue_bytes: usize,
    /// With an offset, not stored yet: the next commit stores them. Handed out unless a `sync` is under way.
    arrived: Vec<(u16, Record)>,
    lanes: Vec<Lane>,
    /// A `sync` has given offsets to commands that are neither handed out nor stored: `poll` waits for it.
    syncing: bool,
    /// The newest owner's. Older ones are fenced.
    epoch: u64,
    state: State,
}

/// One shard's commands.
#[derive(Clone, Copy, Debug)]
struct Lane {
    /// Offset of the next command to be handed out; `None` until recovered.
    next_out: Option<u64>,
    /// Where the stored commands end.
    stored_end: u64,
    /// Offset of the next command that gets one.
    next_offset: u64,
    last_ms: i64,
    /// `next_input` of the last committed header.
    consumed: u64,
}

struct Waiting {
    time_ms: i64,
    key: Bytes,
    value: Bytes,
}

impl Waiting {
    fn bytes(&self) -> usize {
        self.key.len() + self.value.len()
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Up,
    /// Opened for reading only, and that for good.
    ReadOnly,
    /// A write found no room. Reads go on.
    Full,
    Failed(String),
}

impl EmbeddedLog {
    /// Opens the store in `dir`, which is created if need be, and locks it for this process.
    pub fn open(dir: &Path, options: Options) -> Result<EmbeddedLog, OpenError> {
        check_options(&options)?;
        std::fs::create_dir_all(dir).map_err(|e| io_error(dir, &e))?;
        Self::open_as(dir, options, State::Up)
    }

    /// Opens the stopped store in `dir` for reading: the store file is not changed, not even to repair what a kill
    /// left half-written; commands and owners are refused. The number of shards is the store's own.
    pub fn open_read_only(dir: &Path) -> Result<EmbeddedLog, OpenError> {
        let path = dir.join(STORE_FILE);
        path.metadata().map_err(|e| io_error(&path, &e))?;
        let state = State::ReadOnly;
        Self::open_as(dir, Options::default(), state)
    }

    fn open_as(dir: &Path, mut options: Options, state: State) -> Result<EmbeddedLog, OpenError> {
        let path = dir.join(STORE_FILE);
        let lock_path = dir.join(LOCK_FILE);
        let (mut lock, noted) = StoreLock::take(&lock_path).map_err(|failure| match failure {
            LockFailure::Io(e) => io_error(&lock_path, &e),
            LockFailure::Held(Holder { pid, command }) => OpenError::Locked {
                dir: dir.display().to_string(),
                pid,
                command,
            },
        })?;
        let disk = Disk::new(options.file_max_bytes);
        let open = || -> Result<(Store, u64, u64, Vec<Lane>), Fault> {
            let store = match state {
                State::ReadOnly => Store::open_to_read(&path, options.cache_bytes)?,
                _ => Store::open(&path, &disk, options.shards, options.cache_bytes)?,
            };
            let commits = store.commits()?;
            if let Some(noted) = noted.filter(|noted| *noted > commits) {
                return Err(Fault::Damaged(format!(
                    "it ends at commit {commits}, but commit {noted} was made: the newest commits are lost \
                     (if this is a restored backup and the loss is meant, delete {})",
                    lock_path.display()
                )));
            }
            let epoch = store.epoch()?;
            let lanes = lanes_of(&store, store.shards()?)?;
            Ok((store, commits, epoch, lanes))
        };
        let (store, commits, epoch, lanes) =
            Store::contained(open).map_err(|fault| open_error(&path, options.shards, fault))?;
        options.shards = u16::try_from(lanes.len()).unwrap_or(options.shards);
        lock.note_commits(commits);
        Ok(EmbeddedLog {
            shared: Arc::new(Shared {
                path,
                disk,
                store: RwLock::new(Some(store)),
                writing: Mutex::new(lock),
                desk: Mutex::new(Desk {
                    queue: VecDeque::new(),
                    queue_bytes: 0,
                    arrived: Vec::new(),
                    lanes,
                    syncing: false,
                    epoch,
                    state,
                }),
                work: Condvar::new(),
                commits: Mutex::new(commits),
                committed: Condvar::new(),
                options,
            }),
        })
    }

    /// Takes ownership of all shards. Every owner before is fenced from now on.
    pub fn own(&self, name: &str) -> Result<EmbeddedOwner, OwnError> {
        EmbeddedOwner::take(&self.shared, name)
    }

    /// Changes the bound of the file's size, for example after a disk was enlarged.
    pub fn set_file_max_bytes(&self, max_bytes: u64) {
        self.shared.disk.set_max_bytes(max_bytes);
    }

    /// Commands submitted and not yet polled.
    #[must_use]
    pub fn queued(&self) -> usize {
        locked(&self.shared.desk).queue.len()
    }
}

fn io_error(file: &Path, e: &std::io::Error) -> OpenError {
    OpenError::Io {
        file: file.display().to_string(),
        why: e.to_string(),
    }
}

fn check_options(options: &Options) -> Result<(), OpenError> {
    let bad = |what: String| Err(OpenError::BadOption(what));
    if !(1..=1_024).contains(&options.shards) {
        return bad(format!("shards = {}: use 1 to 1024", options.shards));
    }
    if options.queue_max == 0 || options.queue_max_bytes < RECORD_MAX_BYTES {
        return bad(format!(
            "queue_max = {}, queue_max_bytes = {}: use at least 1 and {RECORD_MAX_BYTES}",
            options.queue_max, options.queue_max_bytes
        ));
    }
    let kept = options.retention;
    if kept.records < 2 || kept.bytes < 2 || kept.age_ms < 2 {
        return bad(format!("retention {kept:?}: use at least 2 for each bound"));
    }
    Ok(())
}

fn open_error(path: &Path, asked: u16, fault: Fault) -> OpenError {
    let file = path.display().to_string();
    match fault {
        Fault::DiskFull => OpenError::DiskFull { file },
        Fault::Damaged(why) => OpenError::Corrupt(damage_text(path, &why)),
        Fault::Io(why) => OpenError::Io { file, why },
        Fault::TooOld(first) => OpenError::Corrupt(damage_text(
            path,
            &format!("records before {first} are missing"),
        )),
        Fault::Version(found) if found > FORMAT_VERSION => OpenError::Newer {
            file,
            found,
            known: FORMAT_VERSION,
        },
        Fault::Version(found) => OpenError::Older {
            file,
            found,
            known: FORMAT_VERSION,
        },
        Fault::Shards(found) => OpenError::Shards { file, found, asked },
    }
}

/// Names the file and the remedy, as every report of damage does.
fn damage_text(path: &Path, why: &str) -> String {
    format!(
        "{} is damaged: {why}. Stop, keep a copy of the directory, restore it from a backup, or start with an empty one",
        path.display()
    )
}

/// Where each shard's commands stand in the store; nothing is handed out yet.
fn lanes_of(store: &Store, shards: u16) -> Result<Vec<Lane>, Fault> {
    (0..shards)
        .map(|shard| {
            let part = store.part(Topic::RideCommands, shard)?;
            Ok(Lane {
                next_out: None,
                stored_end: part.end,
                next_offset: part.end,
                last_ms: part.last_ms,
                consumed: 0,
            })
        })
        .collect()
}

/// No code of ours panics while it holds one of these locks in the middle of a change: a poisoned one is still whole.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Runs `work` on the open store; a panic of redb counts as damage.
    fn with_store<T>(&self, work: impl FnOnce(&Store) -> Result<T, Fault>) -> Result<T, Fault> {
        let store = self.store.read().unwrap_or_else(PoisonError::into_inner);
        match store.as_ref() {
            Some(store) => Store::contained(|| work(store)),
            None => Err(Fault::Io("it failed and is not recovered yet".into())),
        }
    }

    fn read_error(&self, fault: Fault) -> ReadError {
        match fault {
            Fault::TooOld(first) => ReadError::TooOld { first },
            Fault::Damaged(why) => ReadError::Corrupt(damage_text(&self.path, &why)),
            Fault::DiskFull => ReadError::Unavailable("the disk is full".into()),
            Fault::Io(why) => ReadError::Unavailable(why),
            Fault::Version(_) | Fault::Shards(_) => {
                ReadError::Unavailable("the file was exchanged".into())
            }
        }
    }

    fn check_partition(&self, topic: Topic, shard: u16) -> Result<(), ReadError> {
        if shard < self.options.shards && LOGS.contains(&topic) {
            Ok(())
        } else {
            Err(ReadError::NoSuchPartition { topic, shard })
        }
    }

    /// Tells everybody who waits that a commit is visible.
    fn announce(&self, lock: &mut StoreLock, commits: u64) {
        lock.note_commits(commits);
        *locked(&self.commits) = commits;
        self.committed.notify_all();
    }

    /// Notes a failed write: no more commands until recovered, and reads from what was committed before. Returns
    /// whether it failed for want of room. To be called with `writing` held.
    fn note_failure(&self, fault: &Fault) -> bool {
        let full = self.disk.take_was_full() || matches!(fault, Fault::DiskFull);
        tracing::error!(store = %self.path.display(), full, ?fault, "a write failed");
        let mut desk = locked(&self.desk);
        desk.state = if full {
            State::Full
        } else {
            State::Failed(format!("{fault:?}"))
        };
        desk.lanes.iter_mut().for_each(|lane| lane.next_out = None);
        drop(desk);
        self.work.notify_all();
        self.fall_back_to_reading();
        full
    }

    /// redb reads nothing more after a failed write: opens the file as it is, without writing to it.
    fn fall_back_to_reading(&self) {
        let mut store = self.store.write().unwrap_or_else(PoisonError::into_inner);
        // Closed first: the file can be open once.
        drop(store.take());
        let options = &self.options;
        match Store::open_to_read(&self.path, options.cache_bytes) {
            Ok(readable) => *store = Some(readable),
            Err(fault) => {
                tracing::error!(store = %self.path.display(), ?fault, "it cannot be read either");
            }
        }
    }
}

impl Desk {
    /// Gives the frontmost waiting command its offset.
    fn assign_next(&mut self) -> Option<(u16, Record)> {
        let (shard, waiting) = self.queue.pop_front()?;
        self.queue_bytes -= waiting.bytes();
        let lane = &mut self.lanes[usize::from(shard)];
        let record = Record {
            offset: lane.next_offset,
            time_ms: waiting.time_ms.max(lane.last_ms),
            key: waiting.key,
            value: waiting.value,
        };
        lane.next_offset += 1;
        lane.last_ms = record.time_ms;
        self.arrived.push((shard, record.clone()));
        Some((shard, record))
    }

    /// Offsets up to here are stored now.
    fn all_stored(&mut self) {
        self.arrived.clear();
        for lane in &mut self.lanes {
            lane.stored_end = lane.next_offset;
        }
    }
}

impl EventLog for EmbeddedLog {
    fn shards(&self) -> u16 {
        self.shared.options.shards
    }

    fn submit(&self, shard: u16, key: Bytes, value: Bytes) -> Result<(), SubmitError> {
        let options = &self.shared.options;
        let bytes = key.len() + value.len();
        if shard >= options.shards {
            return Err(SubmitError::NoSuchShard {
                shard,
                shards: options.shards,
            });
        }
        if bytes > RECORD_MAX_BYTES {
            return Err(SubmitError::TooLarge {
                bytes,
                max: RECORD_MAX_BYTES,
            });
        }
        let mut desk = locked(&self.shared.desk);
        match &desk.state {
            State::Up => {}
            State::ReadOnly => return Err(SubmitError::Unavailable(READ_ONLY.into())),
            State::Full => return Err(SubmitError::DiskFull),
            State::Failed(why) => return Err(SubmitError::Unavailable(why.clone())),
        }
        if desk.queue.len() >= options.queue_max {
            return Err(SubmitError::Full {
                queued: desk.queue.len(),
                max: options.queue_max,
            });
        }
        if desk.queue_bytes + bytes > options.queue_max_bytes {
            return Err(SubmitError::FullBytes {
                bytes: desk.queue_bytes,
                max: options.queue_max_bytes,
            });
        }
        // Inside the lock, so that times in the queue never go back.
        let time_ms = (options.clock)();
        desk.queue_bytes += bytes;
        desk.queue.push_back((
            shard,
            Waiting {
                time_ms,
                key,
                value,
            },
        ));
        drop(desk);
        // All: a fenced owner may be waiting beside the present one.
        self.shared.work.notify_all();
        Ok(())
    }

    fn sync(&self) -> Result<(), LogError> {
        let shared = &self.shared;
        let mut lock = locked(&shared.writing);
        let arrived = {
            let mut desk = locked(&shared.desk);
            match &desk.state {
                State::Up => {}
                State::ReadOnly => return Err(LogError::Failed(READ_ONLY.into())),
                State::Full => return Err(LogError::DiskFull),
                State::Failed(why) => return Err(LogError::Failed(why.clone())),
            }
            while desk.assign_next().is_some() {}
            desk.syncing = true;
            desk.arrived.clone()
        };
        let result = if arrived.is_empty() {
            Ok(None)
        } else {
            shared
                .with_store(|store| store.store_commands(&arrived))
                .map(Some)
        };
        let outcome = match result {
            Ok(commits) => {
                // `poll` gives no offsets while `syncing`, and commits wait for `writing`.
                locked(&shared.desk).all_stored();
                if let Some(commits) = commits {
                    shared.announce(&mut lock, commits);
                }
                Ok(())
            }
            Err(fault) => Err(if shared.note_failure(&fault) {
                LogError::DiskFull
            } else {
                LogError::Failed(format!("{fault:?}"))
            }),
        };
        locked(&shared.desk).syncing = false;
        shared.work.notify_all();
        outcome
    }

    fn read(
        &self,
        topic: Topic,
        shard: u16,
        from: u64,
        max: usize,
    ) -> Result<Vec<Record>, ReadError> {
        self.shared.check_partition(topic, shard)?;
        self.shared
            .with_store(|store| store.read(topic, shard, from, max))
            .map_err(|fault| self.shared.read_error(fault))
    }

    fn bounds(&self, topic: Topic, shard: u16) -> Result<Bounds, ReadError> {
        self.shared.check_partition(topic, shard)?;
        let part = self
            .shared
            .with_store(|store| store.part(topic, shard))
            .map_err(|fault| self.shared.read_error(fault))?;
        Ok(Bounds {
            first: part.first,
            end: part.end,
        })
    }

    fn snapshot(&self, shard: u16) -> Result<Recovered, ReadError> {
        self.shared.check_partition(Topic::RideCommands, shard)?;
        self.shared
            .with_store(|store| store.snapshot(shard))
            .map_err(|fault| self.shared.read_error(fault))
    }

    fn base(&self, shard: u16) -> Result<Recovered, ReadError> {
        self.shared.check_partition(Topic::RideCommands, shard)?;
        self.shared
            .with_store(|store| store.base(shard))
            .map_err(|fault| self.shared.read_error(fault))
    }

    fn wait_committed(&self, seen: u64, timeout: Duration) -> u64 {
        let deadline = Instant::now() + timeout.min(WAIT_MAX);
        let mut commits = locked(&self.shared.commits);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if *commits != seen || left.is_zero() {
                return *commits;
            }
            commits = self
                .shared
                .committed
                .wait_timeout(commits, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}
