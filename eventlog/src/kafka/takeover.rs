//! Taking over a shard (PROTOCOL 27, 28): whoever had it can change nothing any more, and everything he did is read.
//!
//! 1. Ask where the shard's partitions end (high watermark) and how far they are decided (last stable offset).
//! 2. If they differ, somebody's transaction is open: fence him, by `init_transactions` under his transactional ids.
//!    They stand in the committed header, and in headers beyond the stable offset that nobody has committed. Without
//!    that a node that was only asleep could still commit, and one that died would hold the shard for the broker's
//!    transaction time-out.
//! 3. Wait until everything up to the high watermark is decided.
//! 4. Read the states to there; the header among them says where to go on.
//!
//! The generation is checked when a transaction's offsets are sent, and headers are acknowledged before that. So a
//! transaction of an older generation either has its header below the high watermark of step 1, or never commits.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::client::Isolation;
use super::log::Shared;
use super::owner::Sabotage;
use super::producing::{Transactor, retire};
use super::reader::LOOK;
use super::stored::{EVENTS, ShardImage, note_in};
use crate::{ReadError, RecoverError, Topic};

/// A shard that is nobody else's any more.
pub(super) struct Taken {
    pub image: ShardImage,
    /// First command not yet consumed.
    pub next_input: u64,
}

/// Fences and reads. Blocks until done or hopeless.
pub(super) fn take_over(
    shared: &Shared,
    shard: u16,
    sabotage: Sabotage,
) -> Result<Taken, RecoverError> {
    let reader = &shared.reader;
    let touched = [
        (Topic::ShardState, shard),
        (EVENTS[0], shard),
        (EVENTS[1], shard),
    ];
    let high = reader
        .ends(Isolation::Everything, &touched)
        .map_err(failed)?;
    let stable = reader
        .ends(Isolation::Committed, &touched)
        .map_err(failed)?;
    let mut image = ShardImage::default();
    let mut read_to = stable[0].min(high[0]);
    shared
        .read_image(shard, 0, read_to, &mut image)
        .map_err(failed)?;
    let is_open = |stable: &[u64]| stable.iter().zip(&high).any(|(stable, high)| stable < high);
    if is_open(&stable) {
        if !matches!(sabotage, Sabotage::NoFence | Sabotage::NoFenceNoWait) {
            fence(shared, shard, &image, read_to, high[0])?;
        }
        if sabotage != Sabotage::NoFenceNoWait {
            let limit = Duration::from_millis(u64::from(shared.config.transaction_timeout_ms) * 2);
            let deadline = Instant::now() + limit;
            while is_open(
                &reader
                    .ends(Isolation::Committed, &touched)
                    .map_err(failed)?,
            ) {
                if Instant::now() >= deadline {
                    return Err(RecoverError::Unavailable(format!(
                        "a transaction on shard {shard} is still open after {limit:?}"
                    )));
                }
                std::thread::park_timeout(LOOK);
            }
            shared
                .read_image(shard, read_to, high[0], &mut image)
                .map_err(failed)?;
            read_to = high[0];
        }
    }
    let next_input = where_to_go_on(shared, shard, &image)?;
    info!(shard, next_input, read_to, "shard read");
    Ok(Taken { image, next_input })
}

fn fence(
    shared: &Shared,
    shard: u16,
    image: &ShardImage,
    stable: u64,
    high: u64,
) -> Result<(), RecoverError> {
    let mut ids: BTreeSet<String> = BTreeSet::new();
    ids.extend(image.note.iter().flat_map(|note| note.ids.iter().cloned()));
    let mut broken = None;
    shared
        .reader
        .scan(
            Isolation::Everything,
            (Topic::ShardState, shard),
            stable,
            high,
            |inward| {
                match note_in(&inward) {
                    Some(Ok(note)) => ids.extend(note.ids),
                    Some(Err(why)) => broken = Some(why),
                    None => {}
                }
                ControlFlow::Continue(())
            },
        )
        .map_err(failed)?;
    if let Some(why) = broken {
        return Err(RecoverError::Corrupt(format!("shard {shard}: {why}")));
    }
    let began = Instant::now();
    // Side by side: an id that nobody uses any more costs a round trip, one with an open transaction some more.
    std::thread::scope(|scope| {
        for id in &ids {
            scope.spawn(
                move || match Transactor::start(&shared.config, &shared.names, id) {
                    Ok(fence) => retire(fence),
                    // Whatever it left open then ends by the broker's time-out, which is waited for.
                    Err(why) => warn!(shard, id, %why, "could not fence"),
                },
            );
        }
    });
    info!(
        shard,
        ids = ids.len(),
        took_ms = began.elapsed().as_millis() as u64,
        "fenced the owner before"
    );
    Ok(())
}

/// PROTOCOL 27: the header and the commands must fit together.
fn where_to_go_on(shared: &Shared, shard: u16, image: &ShardImage) -> Result<u64, RecoverError> {
    let commands = shared
        .reader
        .bounds(Topic::RideCommands, shard)
        .map_err(failed)?;
    let high = shared
        .reader
        .ends(Isolation::Everything, &[(Topic::RideCommands, shard)])
        .map_err(failed)?[0];
    let committed = image.note.as_ref().and_then(|note| note.committed.as_ref());
    let inconsistent = |why: String| Err(RecoverError::Inconsistent(why));
    match committed {
        None if commands.first > 0 => inconsistent(format!(
            "shard {shard} has no header, but its commands begin at offset {}: its states are lost, or the topics belong to different cities",
            commands.first
        )),
        None => Ok(0),
        Some(at) if at.next_input < commands.first => inconsistent(format!(
            "shard {shard} is to go on at command {}, but the log begins at {}: commands were lost to retention before they were handled",
            at.next_input, commands.first
        )),
        Some(at) if at.next_input > high => inconsistent(format!(
            "shard {shard} is to go on at command {}, but the log ends at {high}: commands were lost, or the topics belong to different cities",
            at.next_input
        )),
        Some(at) => Ok(at.next_input),
    }
}

fn failed(why: ReadError) -> RecoverError {
    match why {
        ReadError::Corrupt(why) => RecoverError::Corrupt(why),
        other => RecoverError::Unavailable(other.to_string()),
    }
}
