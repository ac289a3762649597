//! Does a transaction nobody ends keep the commands of a shard from their owner? They are written, as messages, by all
//! nodes. One that is frozen with nothing but a message written, or a transaction that the brokers have lost (`hanging`),
//! is in no partition that a takeover waits for, and yet nobody would read on behind it. The same holds for the
//! announcements, which gateways read.
//!
//! So the owner of a shard looks, once a second, whether the committed end of its commands moves while something is
//! behind it; the owner of shard 0 does the same for the announcements. The record at which it stands says under which
//! transactional id it was written. If the coordinator says that it is open, it is fenced, which ends it; if it says that
//! it is over, it was lost. While somebody else is ending a lost one nothing is done: a fence would decide it anew.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use rdkafka::consumer::ConsumerGroupMetadata;
use tracing::{debug, warn};

use super::client::Isolation;
use super::hanging;
use super::inbox::Inward;
use super::log::Shared;
use super::producing::{Transactor, retire};
use crate::{ReadError, Topic};

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// What stands still for a session time-out, but at least so long, is ended: a transaction of somebody who works takes
/// some tens of ms. Also the time between two attempts.
const STANDS_STILL_MIN: Duration = Duration::from_millis(1_500);

/// What is watched now; empty between two assignments.
#[derive(Clone, Default)]
struct Watched {
    shards: Vec<u16>,
    metadata: Option<Arc<ConsumerGroupMetadata>>,
}

/// The watch of one node. It ends when this is dropped.
pub(super) struct Standstill {
    watched: Arc<Mutex<Watched>>,
}

impl Standstill {
    pub(super) fn start(shared: &Arc<Shared>) -> Standstill {
        let watched = Arc::new(Mutex::new(Watched::default()));
        let (shared, of) = (Arc::clone(shared), Arc::downgrade(&watched));
        // If no thread can be had nothing is watched, as before there was a watch.
        drop(
            std::thread::Builder::new()
                .name("cabrank-stands".into())
                .spawn(move || watch(&shared, &of)),
        );
        Standstill { watched }
    }

    /// These shards are this node's now, under this assignment.
    pub(super) fn watch(&self, shards: Vec<u16>, metadata: Option<Arc<ConsumerGroupMetadata>>) {
        *self.watched.lock().unwrap_or_else(PoisonError::into_inner) = Watched { shards, metadata };
    }
}

/// Since when a partition's committed end has been where it is, with something behind it.
type StillSince = BTreeMap<(Topic, u16), (u64, Instant)>;

fn watch(shared: &Shared, of: &Weak<Mutex<Watched>>) {
    let mut standing = StillSince::new();
    loop {
        let deadline = Instant::now() + LOOK_EVERY;
        while let Some(left) = deadline.checked_duration_since(Instant::now()) {
            std::thread::park_timeout(left);
        }
        let Some(watched) = of.upgrade() else {
            return;
        };
        let watched = watched
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        if let Err(why) = look(shared, &watched, &mut standing) {
            // While brokers are away or leaders change: looked at again in a second.
            debug!(%why, "nobody says whether something stands still");
        }
    }
}

fn partitions(shards: &[u16]) -> Vec<(Topic, u16)> {
    let commands = shards.iter().map(|shard| (Topic::RideCommands, *shard));
    let announcements = shards.contains(&0).then_some((Topic::ShardOwners, 0));
    commands.chain(announcements).collect()
}

fn look(shared: &Shared, watched: &Watched, standing: &mut StillSince) -> Result<(), ReadError> {
    let partitions = partitions(&watched.shards);
    if partitions.is_empty() {
        standing.clear();
        return Ok(());
    }
    let reader = &shared.reader;
    // Asked for first: what is appended between the two questions does not look open.
    let high = reader.ends_now(Isolation::Everything, &partitions)?;
    let stable = reader.ends_now(Isolation::Committed, &partitions)?;
    let session = Duration::from_millis(u64::from(shared.config.session_timeout_ms));
    let limit = session.max(STANDS_STILL_MIN);
    for partition in still(
        standing,
        &partitions,
        (&stable, &high),
        limit,
        Instant::now(),
    ) {
        let Some((at, _)) = standing.get(&partition) else {
            continue;
        };
        let id = written_by(shared, partition, *at)?;
        let (topic, shard) = partition;
        warn!(%topic, shard, at, id, "a transaction keeps readers waiting: it is ended");
        let Some(id) = id else {
            continue;
        };
        if hanging::may_be_fenced(shared, &id) {
            match Transactor::start(&shared.config, &shared.names, &id) {
                Ok(fence) => retire(fence),
                Err(why) => warn!(id, %why, "could not fence"),
            }
        }
        let waiting = BTreeSet::from([shard]);
        hanging::end(shared, &id, &waiting, watched.metadata.as_ref());
    }
    Ok(())
}

/// The partitions that have stood still for long; they are named again after as long.
fn still(
    standing: &mut StillSince,
    partitions: &[(Topic, u16)],
    (stable, high): (&[u64], &[u64]),
    limit: Duration,
    now: Instant,
) -> Vec<(Topic, u16)> {
    let mut still = Vec::new();
    let before = std::mem::take(standing);
    for ((partition, stable), high) in partitions.iter().zip(stable).zip(high) {
        if stable >= high {
            continue;
        }
        let same = before.get(partition).filter(|(at, _)| at == stable);
        let mut since = same.map_or(now, |(_, since)| *since);
        if now.duration_since(since) >= limit {
            still.push(*partition);
            since = now;
        }
        standing.insert(*partition, (*stable, since));
    }
    still
}

/// The transactional id under which a message or an announcement was written.
fn written_by(
    shared: &Shared,
    partition: (Topic, u16),
    offset: u64,
) -> Result<Option<String>, ReadError> {
    let mut id = None;
    shared.reader.scan(
        Isolation::Everything,
        partition,
        offset,
        offset + 1,
        |inward| {
            if let Inward::Record {
                note: Some(note), ..
            } = inward
            {
                id = String::from_utf8(note.to_vec()).ok();
            }
            ControlFlow::Break(())
        },
    )?;
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_behind_an_end_that_does_not_move_stands_still() {
        let began = Instant::now();
        let at = |ms: u64| began + Duration::from_millis(ms);
        let two = partitions(&[0]);
        assert_eq!(
            two,
            [(Topic::RideCommands, 0), (Topic::ShardOwners, 0)],
            "and nobody but shard 0's owner looks at the announcements"
        );
        assert_eq!(partitions(&[3]), [(Topic::RideCommands, 3)]);
        let mut standing = StillSince::new();
        let mut look = |stable: [u64; 2], high: [u64; 2], ms| {
            let limit = Duration::from_millis(1_500);
            still(&mut standing, &two, (&stable, &high), limit, at(ms))
        };
        assert_eq!(look([5, 2], [9, 2], 0), []);
        assert_eq!(look([6, 2], [9, 2], 1_000), [], "it moves");
        assert_eq!(look([6, 2], [9, 4], 2_000), [], "not for long");
        assert_eq!(look([6, 2], [12, 4], 3_000), two[..1]);
        assert_eq!(look([6, 4], [12, 4], 4_000), [], "not at once again");
        assert_eq!(look([6, 4], [12, 6], 4_600), two[..1]);
        assert_eq!(look([12, 4], [12, 6], 9_000), two[1..], "both looks count");
    }
}
