//! What a log is, whoever keeps it: topics, records, transactions, and the two traits.
//!
//! Not here: any store. `embedded` keeps a file, `kafka` talks to brokers.

use std::time::Duration;

use bytes::Bytes;

/// Largest key plus value of one record, in bytes. Larger ones are refused before anything is stored.
pub const RECORD_MAX_BYTES: usize = 1 << 20;
/// Most records one [`EventLog::read`] returns, whatever was asked for.
pub const READ_MAX: usize = 10_000;
/// Most commands one [`ShardOwner::poll`] hands out, whatever was asked for.
pub const POLL_MAX: usize = 10_000;

/// A stream of records. Each topic has one partition per shard and keeps its order within a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Topic {
    /// Inputs of the engine, messages between shards included. Key: entity.
    RideCommands = 1,
    /// The life of rides. Key: ride id.
    RideEvents = 2,
    /// The life of drivers and riders. Key: person id.
    PersonEvents = 3,
    /// Last state of each live entity; compacted. Read it with [`EventLog::snapshot`], not with `read`.
    ShardState = 4,
    /// Which node owns a shard. Key: shard.
    ShardOwners = 5,
    /// Accepted pings, short retention. Key: driver id.
    DriverLocations = 6,
    /// Pings from partners, an input. Key: driver id.
    DriverPings = 7,
    /// Expected demand. Key: cell.
    DemandForecasts = 8,
}

impl Topic {
    /// All topics, in the order of their numbers.
    pub const ALL: [Topic; 8] = [
        Topic::RideCommands,
        Topic::RideEvents,
        Topic::PersonEvents,
        Topic::ShardState,
        Topic::ShardOwners,
        Topic::DriverLocations,
        Topic::DriverPings,
        Topic::DemandForecasts,
    ];

    /// The fixed name, the same in every home.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Topic::RideCommands => "ride-commands",
            Topic::RideEvents => "ride-events",
            Topic::PersonEvents => "person-events",
            Topic::ShardState => "shard-state",
            Topic::ShardOwners => "shard-owners",
            Topic::DriverLocations => "driver-locations",
            Topic::DriverPings => "driver-pings",
            Topic::DemandForecasts => "demand-forecasts",
        }
    }

    /// The topic of that name, or `None`.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Topic> {
        Topic::ALL.into_iter().find(|topic| topic.name() == name)
    }
}

impl std::fmt::Display for Topic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// One committed entry of a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Position in its partition, from 0. Rises from record to record, by more than one where the home put a mark between.
    pub offset: u64,
    /// Append time in milliseconds of the domain clock; never smaller than that of the record before it.
    pub time_ms: i64,
    /// The entity it is about.
    pub key: Bytes,
    /// What is said about it.
    pub value: Bytes,
}

/// A shard's position and bookkeeping, committed with everything that led there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// Offset of the first command not yet consumed.
    pub next_input: u64,
    /// Engine time of the shard in milliseconds.
    pub time_ms: i64,
    /// Counts the owners of the shard. The log writes the committing owner's epoch, whatever the caller put here.
    pub epoch: u64,
    /// Name of the owner. The log writes the committing owner's name, whatever the caller put here.
    pub owner: String,
    /// The engine's own part: event sequence, counters of messages sent and received.
    pub engine: Bytes,
}

/// A record to be written; its offset and append time are given by the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Append {
    /// Where to. In [`Transaction::commands`] it is [`Topic::RideCommands`], in `events` any other log topic.
    pub topic: Topic,
    /// Partition.
    pub shard: u16,
    /// The entity it is about.
    pub key: Bytes,
    /// What is said about it.
    pub value: Bytes,
}

/// The new last state of an entity, or its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateChange {
    /// The shard that owns the entity.
    pub shard: u16,
    /// Entity.
    pub key: Bytes,
    /// `None` removes it (a tombstone).
    pub value: Option<Bytes>,
}

/// Everything that one step of a node changes. It happens whole or not at all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transaction {
    /// Facts, in order. Their shards must have a header below.
    pub events: Vec<Append>,
    /// Messages to shards through the log, in order. They come out of `poll` after the commit.
    pub commands: Vec<Append>,
    /// Changed entities; the last change of a key wins. Their shards must have a header below.
    pub states: Vec<StateChange>,
    /// One header for each shard touched, refusals and timers included.
    pub headers: Vec<(u16, Header)>,
}

/// First offset still there and where the next record will be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bounds {
    /// Offset of the oldest record that was not trimmed.
    pub first: u64,
    /// No committed record is here or beyond; the next one comes here or later.
    pub end: u64,
}

/// A shard as committed: its header and its live entities, of one and the same moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// `None` for a shard nobody has ever committed to.
    pub header: Option<Header>,
    /// Entity and state, ordered by key.
    pub states: Vec<(Bytes, Bytes)>,
    /// Where each event topic of the shard stood at that moment: the fold of the events before these offsets
    /// gives these states.
    pub event_ends: Vec<(Topic, u64)>,
}

/// What `poll` found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Polled {
    /// Commands in the order of their partition, each with its shard.
    pub commands: Vec<(u16, Record)>,
    /// Present when these commands were all there was a moment ago: after handling them, engine time may move on to this.
    /// It was sampled before the end was looked for, and the home's safety margin (embedded: none, broker: 500 ms) is
    /// already taken off, so no command with an earlier append time can still come. Over a broker commands with a later
    /// time may be under way to this or another shard, so no shard's time may be moved beyond this.
    pub clock_ms: Option<i64>,
    /// Shards that became this node's: `recover` each before anything else. Always empty in the embedded home,
    /// where [`ShardOwner::shards`] says it all at the start. A shard in both lists was given back and given again:
    /// others may have owned it between.
    pub gained: Vec<u16>,
    /// Shards that are this node's no more: drop their memory, before looking at those gained.
    pub lost: Vec<u16>,
}

/// Why a command was not taken. Nothing was stored.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// Ordinary under overload: answer 503 with Retry-After.
    #[error("{queued} commands are waiting already (bound {max})")]
    Full {
        /// Waiting now.
        queued: usize,
        /// The bound, in commands.
        max: usize,
    },
    /// The waiting commands fill their memory: answer 503 with Retry-After.
    #[error("waiting commands take {bytes} bytes already (bound {max})")]
    FullBytes {
        /// Bytes waiting now.
        bytes: usize,
        /// The bound, in bytes.
        max: usize,
    },
    /// The disk is full: commands are refused until a recovery finds room; reads go on.
    #[error("the disk is full")]
    DiskFull,
    /// The record is larger than [`RECORD_MAX_BYTES`].
    #[error("{bytes} bytes in one record (bound {max})")]
    TooLarge {
        /// Size of key and value.
        bytes: usize,
        /// The bound.
        max: usize,
    },
    /// A caller's mistake.
    #[error("shard {shard} of {shards}")]
    NoSuchShard {
        /// Asked for.
        shard: u16,
        /// There are.
        shards: u16,
    },
    /// The store failed and has not been recovered yet, or was opened for reading only.
    #[error("the log takes no commands now: {0}")]
    Unavailable(String),
}

/// Why a read gave nothing. The log is unchanged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// Retention took what was asked for: start again from `first`, or say 410.
    #[error("trimmed: the first record still there is {first}")]
    TooOld {
        /// Oldest offset still there.
        first: u64,
    },
    /// A caller's mistake, or a topic that is not a log.
    #[error("no partition {shard} of {topic}")]
    NoSuchPartition {
        /// Asked for.
        topic: Topic,
        /// Asked for.
        shard: u16,
    },
    /// What is stored is not what was written. No record after this point is returned.
    #[error("{0}")]
    Corrupt(String),
    /// The store cannot be read just now.
    #[error("the log cannot be read now: {0}")]
    Unavailable(String),
}

/// Why the log could not do it. Nothing that was durable before is lost.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// No room on the disk.
    #[error("the disk is full")]
    DiskFull,
    /// The store failed; the owner has to recover.
    #[error("the log failed: {0}")]
    Failed(String),
}

/// Why there is no state to start from.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecoverError {
    /// A newer owner exists: stop.
    #[error("fenced by epoch {by}")]
    Fenced {
        /// The newest owner's epoch.
        by: u64,
    },
    /// Still no room on the disk: try again later, reads go on meanwhile.
    #[error("the disk is full")]
    DiskFull,
    /// The header and the log do not fit together: refuse to start, an operator must look.
    #[error("{0}")]
    Inconsistent(String),
    /// What is stored is not what was written: refuse to start, an operator must look.
    #[error("{0}")]
    Corrupt(String),
    /// A caller's mistake.
    #[error("no shard {0}")]
    NoSuchShard(u16),
    /// The store cannot be opened just now.
    #[error("the log cannot be opened: {0}")]
    Unavailable(String),
}

/// Why there were no commands.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PollError {
    /// A newer owner exists: stop.
    #[error("fenced by epoch {by}")]
    Fenced {
        /// The newest owner's epoch.
        by: u64,
    },
    /// A shard has not been recovered since the start or since a commit failed.
    #[error("shard {0} is not recovered")]
    NotRecovered(u16),
    /// The log cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// Why a transaction was not acknowledged. After each of these but `Fenced` and `Invalid` the owner must throw its
/// memory away and recover every shard it still owns before it polls or commits again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    /// A newer owner exists. Nothing was written; stop.
    #[error("fenced by epoch {by}")]
    Fenced {
        /// The newest owner's epoch.
        by: u64,
    },
    /// The transaction breaks a rule of this interface. Nothing was written; a bug of the caller.
    #[error("not a transaction: {0}")]
    Invalid(String),
    /// No room on the disk. Nothing is acknowledged; recover.
    #[error("the disk is full")]
    DiskFull,
    /// A shard has not been recovered since the start or since a commit failed. Nothing was written.
    #[error("shard {0} is not recovered")]
    NotRecovered(u16),
    /// The shards are being given to others, or given out anew. Nothing was written: poll, and recover what it says is
    /// gained.
    #[error("the shards are moving: {0}")]
    Moved(String),
    /// It is not known whether the transaction was written: recovery finds out, whole or not at all.
    #[error("commit failed, its outcome is unknown until recovered: {0}")]
    Ambiguous(String),
}

/// Which node owns a shard, as announced in `shard-owners`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnerRecord {
    /// The shard.
    pub shard: u16,
    /// Counts the owners of the shard: of two records the one with the larger epoch is true.
    pub epoch: u64,
    /// The node's name.
    pub node: String,
    /// Where the node answers gateways, as `host:port`. Empty when it answers nobody.
    pub address: String,
}

/// Committed records of several partitions as they come.
pub trait EventTail: Send {
    /// Follows a partition from offset `from` on; one that is followed already is moved there.
    fn follow(&mut self, topic: Topic, shard: u16, from: u64);

    /// Follows the partition no longer; none of its records comes out of a later [`EventTail::next`].
    fn leave(&mut self, topic: Topic, shard: u16);

    /// At most `max` new records, in order within each partition and none left out. Waits for the first one, at most
    /// `timeout`. An error of one partition names it; the others go on with the next call.
    fn next(&mut self, timeout: Duration, max: usize) -> Result<Vec<Followed>, TailError>;
}

/// A record and where it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Followed {
    /// The topic.
    pub topic: Topic,
    /// The partition.
    pub shard: u16,
    /// The record.
    pub record: Record,
}

/// Why a partition cannot be followed: follow it again from another place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{topic} of shard {shard}: {why}")]
pub struct TailError {
    /// The topic.
    pub topic: Topic,
    /// The partition.
    pub shard: u16,
    /// What is wrong with it.
    pub why: ReadError,
}

/// Makes a waiting [`ShardOwner::poll`] return; callable from any thread, at any time, cheap.
pub type Waker = std::sync::Arc<dyn Fn() + Send + Sync>;

/// Whether the owner may still answer for its shards at this moment; callable from any thread, cheap. Once false it means
/// that another may own them already, whatever this owner still believes (PROTOCOL 23).
pub type Lease = std::sync::Arc<dyn Fn() -> bool + Send + Sync>;

/// What gateways, tails and tools use. Readers see committed records only.
pub trait EventLog: Send + Sync {
    /// Number of shards, that is of partitions per topic. It may grow while the log is open, and never shrinks.
    fn shards(&self) -> u16;

    /// Looks whether there are more shards than at the last look, and says how many there are. The default is for a home whose number
    /// never changes while it is open.
    fn look_for_shards(&self) -> u16 {
        self.shards()
    }

    /// Takes a command. It is durable no later than the commit that consumes it, or the next [`EventLog::sync`]. Over a
    /// broker its delivery may still fail after this, or it may be stored twice when a broker dies: its outcome says.
    fn submit(&self, shard: u16, key: Bytes, value: Bytes) -> Result<(), SubmitError>;

    /// Returns when everything submitted before the call is durable.
    fn sync(&self) -> Result<(), LogError>;

    /// At most `max` committed records from offset `from` on, in order and none left out; empty at the end. The next read
    /// goes on one past the last record's offset.
    fn read(
        &self,
        topic: Topic,
        shard: u16,
        from: u64,
        max: usize,
    ) -> Result<Vec<Record>, ReadError>;

    /// First and end offset of a partition.
    fn bounds(&self, topic: Topic, shard: u16) -> Result<Bounds, ReadError>;

    /// Header and states of a shard as last committed.
    fn snapshot(&self, shard: u16) -> Result<Recovered, ReadError>;

    /// The oldest retained snapshot of a shard: folding the events from its `event_ends` on gives the states of
    /// [`EventLog::snapshot`]. Empty, at offset 0, as long as no event was ever trimmed.
    fn base(&self, shard: u16) -> Result<Recovered, ReadError>;

    /// Waits until the number of commits is no longer `seen`, at most `timeout`, and returns it.
    fn wait_committed(&self, seen: u64, timeout: Duration) -> u64;

    /// Follows many partitions at once. The default reads them one by one whenever something was committed, which is
    /// right where a read is a look into memory or a file; a broker keeps one consumer instead.
    fn tail(&self) -> Box<dyn EventTail + '_> {
        Box::new(crate::tail::ReadingTail::new(self))
    }

    /// The newest announcement of each shard, ordered by shard. Empty where one process owns all shards.
    fn owners(&self) -> Result<Vec<OwnerRecord>, ReadError> {
        Ok(Vec::new())
    }

    /// The nodes that are there, whether they own shards or not, as `(name, address)`: asked of whoever gives the shards out.
    /// Empty where one process owns all shards.
    fn members(&self) -> Result<Vec<(String, String)>, ReadError> {
        Ok(Vec::new())
    }

    /// Hands over a record that may be lost ([`Topic::DriverLocations`]): never waits, nobody is told. False when it
    /// was not taken. The default keeps nothing: in one process nobody has to be warmed up by it.
    fn publish(&self, _topic: Topic, _shard: u16, _key: Bytes, _value: Bytes) -> bool {
        false
    }
}

/// What a node uses. A shard has one owner at a time; a newer one fences the older.
pub trait ShardOwner: Send {
    /// The shards owned now.
    fn shards(&self) -> Vec<u16>;

    /// The owner's epoch, larger than that of every owner before it.
    fn epoch(&self) -> u64;

    /// The epoch under which this owner owns `shard`, once recovered. Where shards move one by one it is counted shard by
    /// shard.
    fn epoch_of(&self, _shard: u16) -> u64 {
        self.epoch()
    }

    /// `None`: every command is submitted in this process, so the caller is told of each by its own means and polls
    /// without waiting. `Some`: commands come from elsewhere, so the caller waits inside `poll`; calling the waker
    /// makes the `poll` under way, or else the next one, return early with what there is, possibly nothing.
    fn waker(&self) -> Option<Waker> {
        None
    }

    /// A look at the lease. The default is for a home whose owner cannot be cut off from it.
    fn lease(&self) -> Lease {
        std::sync::Arc::new(|| true)
    }

    /// Reads a shard as committed. From here on `poll` hands out its commands from `next_input` on, those handed out
    /// before included. To be called once per shard at the start and again after a failed commit.
    fn recover(&mut self, shard: u16) -> Result<Recovered, RecoverError>;

    /// Waits at most `timeout` for commands, returns at most `max`. Returns at once when there are some.
    fn poll(&mut self, timeout: Duration, max: usize) -> Result<Polled, PollError>;

    /// Writes the transaction, whole or not at all, and returns when it is durable. Reads of this process see it from then
    /// on, reads of others some milliseconds later.
    fn commit(&mut self, tx: &Transaction) -> Result<(), CommitError>;
}
