//! Which shard does an entity or a place live on?

use cabrank_events::Place;
use cabrank_events::command::EntityId;
use cabrank_geo::{Cell, Resolution};
use cabrank_ring::{Kind, Ring};

/// The shard of an entity.
pub(crate) fn shard_of(ring: &Ring, entity: &EntityId) -> u16 {
    match entity {
        // A ride id from outside may name a shard that never was: any shard answers "unknown".
        EntityId::Ride(ride) => ride.place.0 % ring.shards(),
        EntityId::Driver(id) => ring.shard_of_person(Kind::Driver, id.as_str()),
        EntityId::Rider(id) => ring.shard_of_person(Kind::Rider, id.as_str()),
    }
}

/// The shard that owns a place.
pub(crate) fn shard_of_place(ring: &Ring, resolution: Resolution, at: Place) -> u16 {
    ring.shard_of_cell(Cell::at(at.0, resolution).into())
}
