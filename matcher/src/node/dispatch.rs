//! The node as gateways see it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use cabrank_engine::travel::TravelTime;
use cabrank_events::command::EntityId;
use cabrank_events::wire::{NearCar, QueueView, RideView};
use cabrank_events::{CommandRecord, DriverId, Place, RideId, RiderId, SessionId, Time};
use cabrank_geo::{Filter, Near, Placement, Query, Status};

use super::{Node, Shared};
use crate::api::{
    CarsNear, Dispatch, DriverSeen, DriverView, EventCursor, EventsUnreadable, History, Listener,
    MarketView, NearbyQuery, NotAnswered, NotTaken, Pinged, Position, ReadEvent, Soon,
};
use crate::heart::Wedged;
use crate::{cursor, history, route};

/// Most cars one `nearby` may ask for.
const NEARBY_MAX: usize = 100;

impl Shared {
    pub(super) fn submit(&self, record: &CommandRecord) -> Result<(), NotTaken> {
        let taken = route::submit(&*self.log, &self.rings.now(), record);
        self.bell.ring();
        taken
    }

    /// Free cars near a place, nearest first, at most [`NEARBY_MAX`] and no farther than the largest search radius.
    pub(crate) fn cars_near(
        &self,
        at: Place,
        radius_m: f64,
        k: usize,
        classes: u8,
    ) -> Vec<NearCar> {
        let mut near: Vec<Near> = Vec::with_capacity(k.min(NEARBY_MAX));
        let asked = Query {
            at: at.0,
            radius_m: radius_m.min(f64::from(self.engine.radius_max_m)),
            k: k.min(NEARBY_MAX),
            filter: Filter {
                now_ms: self.clock.now().0,
                ping_ttl_ms: self.config.ping_ttl_ms,
                status: Some(Status::Free),
                classes,
            },
        };
        let since = Instant::now();
        self.people.index().nearest(&asked, |_| true, &mut near);
        metrics::histogram!("cabrank_search_seconds").record(since.elapsed());
        near.iter()
            .map(|car| NearCar {
                at: Place(car.at),
                age_ms: car.age_ms,
                distance_m: car.distance_m,
            })
            .collect()
    }

    /// A ping that did not come with the news of its driver.
    pub(crate) fn ping_from_afar(&self, driver: &DriverId, placement: Placement) -> Pinged {
        let now = self.clock.now();
        let heard = self.people.ping_from_afar(driver, placement, now);
        if heard.may_serve {
            self.wake_rides_for(driver);
        }
        heard.pinged
    }

    /// The newest position of a driver.
    pub(crate) fn placement(&self, driver: &DriverId) -> Option<Placement> {
        self.people.seen(driver)?.placement
    }

    /// Shows where every driver at work is.
    pub(crate) fn each_place(&self, mut see: impl FnMut(&DriverId, Placement)) {
        for entry in &self.views.drivers {
            if entry.value().session.is_some()
                && let Some(place) = self.placement(entry.key())
            {
                see(entry.key(), place);
            }
        }
    }

    /// How long ago `time` was.
    pub(crate) fn age_ms(&self, time: Time) -> i64 {
        self.clock.now().since(time).max(0)
    }
}

impl Dispatch for Node {
    fn now(&self) -> Time {
        self.shared.clock.now()
    }

    fn is_ready(&self) -> bool {
        let shared = &self.shared;
        let is_up = shared.ready.load(Ordering::SeqCst) && !shared.draining.load(Ordering::SeqCst);
        // Without a lease it answers nobody about its shards; with none it has nothing to answer for.
        is_up && ((shared.lease)() || shared.table().is_empty())
    }

    fn wedged(&self) -> Option<Wedged> {
        self.shared.hearts.wedged()
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
        if heard.may_serve {
            shared.wake_rides_for(driver);
        }
        heard.pinged
    }

    fn sign_of_life(&self, driver: &DriverId, _session: SessionId) {
        self.shared
            .people
            .sign_of_life(driver, self.shared.clock.now());
    }

    fn nearby(&self, query: &NearbyQuery) -> Soon<Result<CarsNear, NotAnswered>> {
        let classes = query.class.map_or(0, |class| class.bit());
        Soon::now(Ok(CarsNear {
            cars: self
                .shared
                .cars_near(query.at, query.radius_m, query.k, classes),
            unconfirmed: false,
        }))
    }

    fn position(&self, driver: &DriverId) -> Soon<Result<Option<Position>, NotAnswered>> {
        let position = self.shared.placement(driver).map(|placement| Position {
            at: Place(placement.at),
            age_ms: self.shared.age_ms(Time(placement.time_ms)),
        });
        Soon::now(Ok(position))
    }

    fn ride(&self, ride: RideId) -> Option<Arc<RideView>> {
        self.shared.views.ride_view(ride)
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

    fn queue_place(&self, driver: &DriverId) -> Option<QueueView> {
        self.shared.views.queue_place(driver)
    }

    fn offer_times(&self, ride: RideId) -> Option<(Time, u64)> {
        let until = self.shared.views.rides.get(&ride)?.offer_until?;
        Some((until, self.shared.engine.offer_answer_ms))
    }

    fn each_driver(&self, see: &mut dyn FnMut(DriverSeen<'_>)) {
        let now = self.shared.clock.now();
        for entry in &self.shared.views.drivers {
            let at = self
                .shared
                .placement(entry.key())
                .map(|placement| Position {
                    at: Place(placement.at),
                    age_ms: now.since(Time(placement.time_ms)).max(0),
                });
            see(DriverSeen {
                id: entry.key(),
                view: entry.value(),
                at,
            });
        }
    }

    fn each_ride(&self, see: &mut dyn FnMut(&Arc<RideView>)) {
        for entry in &self.shared.views.rides {
            see(&entry.view);
        }
    }

    fn market(&self) -> MarketView {
        MarketView::of(self.shared.views.market_set(), &self.shared.configured)
    }

    fn history(&self, entity: &EntityId, max: usize) -> Result<History, EventsUnreadable> {
        history::of(&*self.shared.log, &self.shared.rings, entity, max)
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
        cursor::end(&*self.shared.log)
    }

    fn events_start(&self) -> EventCursor {
        cursor::start(&*self.shared.log)
    }

    fn events_since(&self, time: Time, most: u64) -> EventCursor {
        cursor::since(&*self.shared.log, time, most)
    }

    fn read_events(
        &self,
        cursor: &EventCursor,
        max: usize,
    ) -> Result<Vec<ReadEvent>, EventsUnreadable> {
        cursor::read(&*self.shared.log, cursor, max)
    }

    fn travel_time_s(&self, from: Place, to: Place) -> f64 {
        let travel = self.shared.config.straight_line(self.shared.clock.now());
        travel.drive_ms(from.0, to.0) as f64 / 1_000.0
    }
}
