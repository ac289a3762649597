//! The node as gateways see it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use cabrank_engine::travel::{StraightLine, TravelTime};
use cabrank_eventlog::{ReadError, SubmitError, Topic};
use cabrank_events::command::EntityId;
use cabrank_events::wire::{NearCar, RideView};
use cabrank_events::{CommandRecord, DriverId, Place, RideId, RiderId, SessionId, Time};
use cabrank_geo::{Filter, Near, Placement, Query, Status};
use cabrank_ring::Kind;

use super::{Node, Shared};
use crate::api::{
    Dispatch, DriverView, EventCursor, EventsUnreadable, Listener, NearbyQuery, NotTaken, Pinged,
    Position, ReadEvent,
};

/// Most cars one `nearby` may ask for.
const NEARBY_MAX: usize = 100;

impl Shared {
    fn shard_of(&self, entity: &EntityId) -> u16 {
        match entity {
            // A ride id from outside may name a shard that never was: any shard answers "unknown".
            EntityId::Ride(ride) => ride.place.0 % self.ring.shards(),
            EntityId::Driver(id) => self.ring.shard_of_person(Kind::Driver, id.as_str()),
            EntityId::Rider(id) => self.ring.shard_of_person(Kind::Rider, id.as_str()),
        }
    }

    pub(super) fn submit(&self, record: &CommandRecord) -> Result<(), NotTaken> {
        let entity = record.command.entity();
        let key = Bytes::from(entity.to_string());
        let taken = self
            .log
            .submit(self.shard_of(&entity), key, record.to_json());
        self.bell.ring();
        taken.map_err(|why| match why {
            SubmitError::Full { .. } | SubmitError::FullBytes { .. } => NotTaken::Busy,
            SubmitError::DiskFull
            | SubmitError::TooLarge { .. }
            | SubmitError::NoSuchShard { .. }
            | SubmitError::Unavailable(_) => NotTaken::Closed,
        })
    }

    fn cursor(&self, pick: impl Fn(cabrank_eventlog::Bounds) -> u64) -> EventCursor {
        let offsets = |topic| {
            (0..self.log.shards())
                .map(|shard| self.log.bounds(topic, shard).map_or(0, &pick))
                .collect()
        };
        EventCursor {
            ride_events: offsets(Topic::RideEvents),
            person_events: offsets(Topic::PersonEvents),
        }
    }
}

impl Dispatch for Node {
    fn now(&self) -> Time {
        self.shared.clock.now()
    }

    fn is_ready(&self) -> bool {
        let shared = &self.shared;
        shared.ready.load(Ordering::SeqCst) && !shared.draining.load(Ordering::SeqCst)
    }

    fn submit(&self, record: CommandRecord) -> Result<(), NotTaken> {
        if self.shared.stopping.load(Ordering::SeqCst) || !self.shared.ready.load(Ordering::SeqCst)
        {
            return Err(NotTaken::Closed);
        }
        self.shared.submit(&record)
    }

    fn ping(&self, driver: &DriverId, at: Place, time: Time, seq: u32) -> Pinged {
        let shared = &self.shared;
        let placement = Placement {
            at: at.0,
            time_ms: time.0,
            seq,
        };
        let heard = shared.people.ping(driver, placement, shared.clock.now());
        // Relaxed: a ride that became hungry a moment ago is looked at by its own round; the next ping sees it.
        if heard.may_serve && shared.hungry.load(Ordering::Relaxed) > 0 {
            if shared.wakes.0.try_send(driver.clone()).is_err() {
                shared.wakes_lost.store(true, Ordering::Relaxed);
            }
            shared.bell.ring();
        }
        heard.pinged
    }

    fn sign_of_life(&self, driver: &DriverId, _session: SessionId) {
        self.shared
            .people
            .sign_of_life(driver, self.shared.clock.now());
    }

    fn nearby(&self, query: &NearbyQuery, out: &mut Vec<NearCar>) {
        let shared = &self.shared;
        let mut near: Vec<Near> = Vec::with_capacity(query.k.min(NEARBY_MAX));
        let asked = Query {
            at: query.at.0,
            radius_m: query.radius_m.min(f64::from(shared.engine.radius_max_m)),
            k: query.k.min(NEARBY_MAX),
            filter: Filter {
                now_ms: shared.clock.now().0,
                ping_ttl_ms: shared.config.ping_ttl_ms,
                status: Some(Status::Free),
                classes: query.class.map_or(0, |class| class.bit()),
            },
        };
        shared.people.index().nearest(&asked, |_| true, &mut near);
        out.extend(near.iter().map(|car| NearCar {
            at: Place(car.at),
            age_ms: car.age_ms,
            distance_m: car.distance_m,
        }));
    }

    fn position(&self, driver: &DriverId) -> Option<Position> {
        let placement = self.shared.people.seen(driver)?.placement?;
        let age_ms = self
            .shared
            .clock
            .now()
            .since(Time(placement.time_ms))
            .max(0);
        Some(Position {
            at: Place(placement.at),
            age_ms,
        })
    }

    fn ride(&self, ride: RideId) -> Option<Arc<RideView>> {
        self.shared
            .views
            .rides
            .get(&ride)
            .map(|entry| Arc::clone(&entry.view))
    }

    fn ride_of(&self, rider: &RiderId) -> Option<RideId> {
        self.shared.views.active.get(rider).map(|ride| *ride)
    }

    fn driver(&self, driver: &DriverId) -> Option<DriverView> {
        self.shared
            .views
            .drivers
            .get(driver)
            .map(|view| view.clone())
    }

    fn offer_times(&self, ride: RideId) -> Option<(Time, u64)> {
        let until = self.shared.views.rides.get(&ride)?.offer_until?;
        Some((until, self.shared.engine.offer_answer_ms))
    }

    fn listen(&self, listener: Listener) {
        let mut listeners = self
            .shared
            .listeners
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        listeners.push(listener);
    }

    fn events_end(&self) -> EventCursor {
        self.shared.cursor(|bounds| bounds.end)
    }

    fn events_start(&self) -> EventCursor {
        self.shared.cursor(|bounds| bounds.first)
    }

    fn read_events(
        &self,
        cursor: &EventCursor,
        max: usize,
    ) -> Result<Vec<ReadEvent>, EventsUnreadable> {
        let shards = usize::from(self.shared.log.shards());
        if cursor.ride_events.len() != shards || cursor.person_events.len() != shards {
            return Err(EventsUnreadable::Gone);
        }
        // A little of every partition, merged. What lies beyond the last record of a partition that has more may have
        // to wait for them: it is read again next time.
        let share = (max / (2 * shards)).max(1);
        let mut found: Vec<(EventOrder, Topic, u64, Bytes)> = Vec::new();
        let mut frontier: Option<EventOrder> = None;
        for (topic, offsets) in [
            (Topic::RideEvents, &cursor.ride_events),
            (Topic::PersonEvents, &cursor.person_events),
        ] {
            for (shard, offset) in (0u16..).zip(offsets) {
                let records = self.shared.log.read(topic, shard, *offset, share).map_err(
                    |why| match why {
                        ReadError::TooOld { .. } => EventsUnreadable::Gone,
                        other => EventsUnreadable::Failed(other.to_string()),
                    },
                )?;
                let order = |record: &cabrank_eventlog::Record| {
                    (record.time_ms, shard, event_number(&record.value))
                };
                if let Some(last) = records.last().filter(|_| records.len() == share) {
                    let last = order(last);
                    frontier = Some(frontier.map_or(last, |least| least.min(last)));
                }
                found.extend(
                    records
                        .into_iter()
                        .map(|r| (order(&r), topic, r.offset, r.value)),
                );
            }
        }
        found.retain(|(order, ..)| frontier.is_none_or(|least| *order <= least));
        found.sort_by_key(|(order, ..)| *order);
        found.truncate(max);
        let mut after = cursor.clone();
        let read = found
            .into_iter()
            .map(|((_, shard, _), topic, offset, json)| {
                let offsets = match topic {
                    Topic::RideEvents => &mut after.ride_events,
                    _ => &mut after.person_events,
                };
                offsets[usize::from(shard)] = offset + 1;
                ReadEvent {
                    json,
                    after: after.clone(),
                }
            });
        Ok(read.collect())
    }

    fn travel_time_s(&self, from: Place, to: Place) -> f64 {
        let travel = StraightLine {
            speed_mps: self.shared.config.speed_mps,
        };
        travel.drive_ms(from.0, to.0) as f64 / 1_000.0
    }
}

/// Where an event comes in a merged stream: append time, shard, number in its shard.
type EventOrder = (i64, u16, u64);

/// An event's number in its shard, read from the id our own encoder puts first (`{"specversion":"1.0","id":"3-1042"`).
/// It only orders what is read together; a record of another shape sorts first.
fn event_number(value: &[u8]) -> u64 {
    const BEFORE: &[u8] = br#"{"specversion":"1.0","id":""#;
    let Some(rest) = value.strip_prefix(BEFORE) else {
        return 0;
    };
    let digits = rest.iter().skip_while(|byte| **byte != b'-').skip(1);
    digits
        .take_while(|byte| byte.is_ascii_digit())
        .fold(0, |number: u64, byte| {
            number.wrapping_mul(10).wrapping_add(u64::from(byte - b'0'))
        })
}
