//! The rules a transaction must keep in every home, checked before anything is written.

use crate::{CommitError, RECORD_MAX_BYTES, Topic, Transaction};

/// Where an owned shard is with its commands.
pub(crate) struct LaneState {
    /// First command not yet consumed.
    pub(crate) consumed: u64,
    /// First command not yet handed out; `None` until recovered.
    pub(crate) next_out: Option<u64>,
}

/// The rules a transaction must keep, checked before anything is written.
pub(crate) fn check_transaction(
    tx: &Transaction,
    shards: u16,
    lane_of: impl Fn(u16) -> Option<LaneState>,
) -> Result<(), CommitError> {
    let invalid = |why: String| Err(CommitError::Invalid(why));
    let mut headed = vec![false; usize::from(shards)];
    for (shard, header) in &tx.headers {
        let Some(lane) = lane_of(*shard) else {
            return invalid(format!("a header of shard {shard}, which is not owned"));
        };
        if std::mem::replace(&mut headed[usize::from(*shard)], true) {
            return invalid(format!("two headers of shard {shard}"));
        }
        if header.next_input < lane.consumed || Some(header.next_input) > lane.next_out {
            return invalid(format!(
                "shard {shard} says next input {} with {} consumed and commands handed out up to {:?}",
                header.next_input, lane.consumed, lane.next_out
            ));
        }
        if header.engine.len() > RECORD_MAX_BYTES {
            return invalid(format!("a header of {} bytes", header.engine.len()));
        }
    }
    let has_header = |shard: u16| headed.get(usize::from(shard)) == Some(&true);
    for event in &tx.events {
        if matches!(event.topic, Topic::RideCommands | Topic::ShardState) {
            return invalid(format!("an event in {}", event.topic));
        }
        if !has_header(event.shard) {
            return invalid(format!(
                "an event of shard {} without its header",
                event.shard
            ));
        }
    }
    for state in &tx.states {
        if !has_header(state.shard) {
            return invalid(format!(
                "a state of shard {} without its header",
                state.shard
            ));
        }
    }
    for command in &tx.commands {
        if command.topic != Topic::RideCommands {
            return invalid(format!("a command in {}", command.topic));
        }
        if command.shard >= shards {
            return invalid(format!("a command to shard {}", command.shard));
        }
    }
    let sizes = tx
        .events
        .iter()
        .chain(&tx.commands)
        .map(|append| append.key.len() + append.value.len())
        .chain(
            tx.states
                .iter()
                .map(|state| state.key.len() + state.value.as_ref().map_or(0, |v| v.len())),
        );
    match sizes.max() {
        Some(bytes) if bytes > RECORD_MAX_BYTES => invalid(format!(
            "a record of {bytes} bytes (bound {RECORD_MAX_BYTES})"
        )),
        _ => Ok(()),
    }
}
