//! The drivers of shards that live on other nodes, on their way into this node's index.

use std::sync::{Arc, PoisonError};

use bytes::Bytes;
use cabrank_engine::fold::Entities;
use cabrank_engine::ride::Bounds;
use cabrank_events::command::EntityId;
use cabrank_events::{DriverId, EventRecord, RideId};
use tracing::error;

use super::show_driver;
use crate::follower::{Follower, Sink, What};
use crate::node::Shared;
use crate::route;

/// Keeps the index informed of the drivers of shards that live elsewhere (PROTOCOL 19). When it breaks, so does the node:
/// its rounds would offer rides to drivers who are gone.
pub(super) fn follow_others(shared: &Arc<Shared>) -> std::thread::JoinHandle<()> {
    let shared = Arc::clone(shared);
    std::thread::Builder::new()
        .name("cabrank-others".into())
        .spawn(move || {
            let mut sink = Others { shared: &shared };
            let follower = Follower::new(
                &*shared.log,
                What::People,
                Bounds::of(&shared.engine),
                shared.clock.clone(),
            );
            let heart = shared.heart("the follower of other nodes' drivers");
            if let Err(why) = follower.run(&shared.foreign, &heart, &mut sink) {
                error!(%why, "the drivers of other nodes cannot be followed");
                *shared
                    .others_failed
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner) = Some(why);
                shared.bell.ring();
            }
        })
        .expect("a process that cannot start a thread at its start cannot work")
}

/// Drivers of other nodes' shards, on their way into the index.
struct Others<'a> {
    shared: &'a Shared,
}

impl Sink for Others<'_> {
    fn snapshot(&mut self, shard: u16, entities: &Entities) {
        let now = self.shared.clock.now();
        entities.market.iter().for_each(|set| self.shared.heed(set));
        for driver in entities.drivers.values() {
            show_driver(&self.shared.people, driver, now);
        }
        let elsewhere = |id: &DriverId| {
            route::shard_of(&self.shared.ring, &EntityId::Driver(id.clone())) != shard
        };
        self.shared
            .people
            .keep(|id| elsewhere(id) || entities.drivers.contains_key(id));
    }

    fn event(&mut self, record: EventRecord, _: Bytes, entities: &Entities) {
        let id = match record.event.entity() {
            EntityId::Driver(id) => id,
            EntityId::Market => {
                entities.market.iter().for_each(|set| self.shared.heed(set));
                return;
            }
            EntityId::Rider(_) | EntityId::Ride(_) => return,
        };
        match entities.drivers.get(&id) {
            Some(driver) => {
                show_driver(&self.shared.people, driver, self.shared.clock.now());
                self.shared.wake_rides_for(&id);
            }
            None => self.shared.people.forget(&id),
        }
    }

    fn forget(&mut self, _: RideId) {}
}
