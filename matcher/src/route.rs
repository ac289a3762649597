//! Which shard does an entity or a place live on, and how does a command get there?

use bytes::Bytes;
use cabrank_eventlog::{EventLog, SubmitError};
use cabrank_events::command::{EntityId, MARKET_SHARD};
use cabrank_events::{CommandRecord, Place};
use cabrank_geo::{Cell, Resolution};
use cabrank_ring::{Kind, Ring};

use crate::api::NotTaken;

/// The shard of an entity.
pub(crate) fn shard_of(ring: &Ring, entity: &EntityId) -> u16 {
    match entity {
        EntityId::Ride(ride) => ride.place.0,
        EntityId::Driver(id) => ring.shard_of_person(Kind::Driver, id.as_str()),
        EntityId::Rider(id) => ring.shard_of_person(Kind::Rider, id.as_str()),
        EntityId::Market => MARKET_SHARD.0,
    }
}

/// The same, of the shards that there are.
pub(crate) fn shard_in(log: &dyn EventLog, ring: &Ring, entity: &EntityId) -> u16 {
    // A ride id from outside may name a shard that never was: any shard answers "unknown".
    shard_of(ring, entity) % log.shards().max(ring.shards())
}

/// The shard that owns a place.
pub(crate) fn shard_of_place(ring: &Ring, resolution: Resolution, at: Place) -> u16 {
    ring.shard_of_cell(Cell::at(at.0, resolution).into())
}

/// Hands a command to the log of its entity's shard.
pub(crate) fn submit(
    log: &dyn EventLog,
    ring: &Ring,
    record: &CommandRecord,
) -> Result<(), NotTaken> {
    let entity = record.command.entity();
    let key = Bytes::from(entity.to_string());
    log.submit(shard_in(log, ring, &entity), key, record.to_json())
        .map_err(|why| match why {
            SubmitError::Full { .. } | SubmitError::FullBytes { .. } => NotTaken::Busy,
            SubmitError::DiskFull
            | SubmitError::TooLarge { .. }
            | SubmitError::NoSuchShard { .. }
            | SubmitError::Unavailable(_) => NotTaken::Closed,
        })
}
