//! The drivers of shards that live on other nodes, on their way into this node's index, and their rides, if rounds look at them.

use std::sync::{Arc, PoisonError};

use bytes::Bytes;
use cabrank_engine::fold::Entities;
use cabrank_engine::matching::others;
use cabrank_engine::ride::{Bounds, Ride};
use cabrank_events::command::EntityId;
use cabrank_events::{DriverId, Event, EventRecord, RideId};
use tracing::error;

use super::show_driver;
use crate::follower::{Follower, Sink, What};
use crate::node::Shared;

/// Keeps the index informed of the drivers of shards that live elsewhere (PROTOCOL 19). When it breaks, so does the node:
/// its rounds would offer rides to drivers who are gone.
pub(super) fn follow_others(shared: &Arc<Shared>) -> std::thread::JoinHandle<()> {
    let shared = Arc::clone(shared);
    std::thread::Builder::new()
        .name("cabrank-others".into())
        .spawn(move || {
            let mut sink = Others { shared: &shared };
            let what = match others::are_seen(shared.engine.ownership_resolution) {
                true => What::Everything,
                false => What::People,
            };
            let follower = Follower::new(
                &*shared.log,
                what,
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

/// Drivers and rides of other nodes' shards.
struct Others<'a> {
    shared: &'a Shared,
}

impl Others<'_> {
    fn show_ride(&self, id: RideId, ride: Option<&Ride>) {
        self.shared.elsewhere.show(id, ride, &self.shared.engine);
    }
}

impl Sink for Others<'_> {
    fn snapshot(&mut self, shard: u16, entities: &Entities) {
        let now = self.shared.clock.now();
        entities.market.iter().for_each(|set| self.shared.heed(set));
        self.shared.elsewhere.forget(shard);
        for (id, ride) in &entities.rides {
            self.show_ride(*id, Some(ride));
        }
        for driver in entities.drivers.values() {
            show_driver(&self.shared.people, driver, now);
        }
        let rings = &self.shared.rings;
        let elsewhere = |id: &DriverId| !rings.is_only_home(&EntityId::Driver(id.clone()), shard);
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
            EntityId::Ride(id) => {
                // Before the ride itself: it wants no car any more, and this one is not free.
                if let Event::DriverClaimed(e) = &record.event {
                    let now = self.shared.clock.now();
                    self.shared.people.claim(&e.driver, now, e.answer_by);
                }
                self.show_ride(id, entities.rides.get(&id));
                return;
            }
            EntityId::Rider(_) => return,
        };
        match entities.drivers.get(&id) {
            Some(driver) => {
                show_driver(&self.shared.people, driver, self.shared.clock.now());
                self.shared.wake_rides_for(&id);
            }
            // Another shard goes on with them, or still has them.
            None if matches!(
                record.event,
                Event::DriverHandedOver(_) | Event::CommandOutcome(_)
            ) => {}
            None => self.shared.people.forget(&id),
        }
    }

    fn forget(&mut self, ride: RideId) {
        self.show_ride(ride, None);
    }
}
