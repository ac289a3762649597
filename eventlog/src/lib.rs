//! The log: commands in, events and states out, all or nothing.
//!
//! This crate answers: what has been said to the engine, what has it decided, and who may decide now. It knows bytes
//! only; what a command or an event means is the business of `events` and `engine`.
//!
//! - [`EventLog`] is what gateways, tails and tools use: submit a command, read what is committed.
//! - [`ShardOwner`] is what a node uses: recover a shard, poll commands, commit a [`Transaction`].
//! - [`EmbeddedLog`] is the home of both for one process, a file on disk; `kafka` (behind the feature of that name) is the
//!   home for many. `contract`, another feature, is the suite of tests that both must pass unchanged.
//!
//! What holds, whichever home:
//! - **Atomic**: a transaction is seen whole or not at all, by readers and after a crash.
//! - **Ordered**: offsets of a partition (a topic and a shard) rise and append times never go back. Offsets may have gaps
//!   where a home keeps marks of its own (Kafka ends each transaction with one), but no record is left out.
//! - **Exactly once**: commands from the header's `next_input` on are handed out again after a recovery, earlier ones
//!   never; so effects and position move together.
//! - **One owner**: a newer owner's epoch fences every older one; a fenced commit changes nothing.
//! - **Bounded**: each thing that grows has a limit in [`Options`] or a named constant.
//!
//! Everything here blocks. A node runs its loop on a thread of its own.

#![deny(unsafe_code)]

#[cfg(feature = "contract")]
pub mod contract;
mod embedded;
#[cfg(feature = "kafka")]
pub mod kafka;
mod log;
mod tail;
mod transaction;

pub use embedded::{
    Clock, EmbeddedLog, EmbeddedOwner, FORMAT_VERSION, LOCK_FILE, OpenError, Options, OwnError,
    Retention, STORE_FILE,
};
pub use log::{
    Append, Bounds, CommitError, EventLog, EventTail, Followed, Header, Lease, LogError,
    OwnerRecord, POLL_MAX, PollError, Polled, READ_MAX, RECORD_MAX_BYTES, ReadError, Record,
    RecoverError, Recovered, ShardOwner, StateChange, SubmitError, TailError, Topic, Transaction,
    Waker,
};
pub use tail::ReadingTail;
