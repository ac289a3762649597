//! Where everybody is, for those who look at a map: asked of all nodes, and only while somebody looks.
//!
//! A gateway knows the places of drivers who ping at it. For a map it asks each node twice a second for the positions that
//! are newer than those of the question before, and goes on for [`LOOKED_MS`] after the last look. So a gateway at which
//! nobody looks costs nobody anything, and one with a hundred open maps costs what one with a single map does.
//! Cost: a node walks its drivers and sends some 40 bytes for each that has moved. Newest wins by (time, sequence); the
//! bound is that of the drivers known here.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, Instant};

use cabrank_events::DriverId;
use cabrank_geo::{Placement, Point};
use dashmap::DashMap;

use super::Shared;
use crate::rpc::v1;

/// How often the nodes are asked.
const ASK_EVERY: Duration = Duration::from_millis(500);
/// How long after the last look, ms.
const LOOKED_MS: i64 = 5_000;
/// Pings reach a node at most so much later than newer ones, ms: so much is asked for again.
const AGAIN_MS: i64 = 2_000;
/// A question that is not answered in this time is given up.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// Positions of drivers who ping elsewhere.
pub(crate) struct Watched {
    places: DashMap<DriverId, Placement>,
    started: Instant,
    /// When somebody looked last, ms since `started`.
    looked_ms: AtomicI64,
    is_asking: AtomicBool,
}

impl Default for Watched {
    fn default() -> Self {
        Self {
            places: DashMap::new(),
            started: Instant::now(),
            looked_ms: AtomicI64::new(0),
            is_asking: AtomicBool::new(false),
        }
    }
}

impl Watched {
    fn now_ms(&self) -> i64 {
        i64::try_from(self.started.elapsed().as_millis()).unwrap_or(i64::MAX)
    }

    /// The newest place that a node told.
    pub fn last(&self, driver: &DriverId) -> Option<Placement> {
        self.places.get(driver).map(|place| *place)
    }

    fn take(&self, driver: DriverId, place: Placement) {
        let mut known = self.places.entry(driver).or_insert(place);
        if place.is_newer_than(&known) {
            *known = place;
        }
    }
}

impl Shared {
    /// Somebody looks at everybody: the nodes are asked from now on, for a while.
    pub(super) fn look_at_all(self: &Arc<Self>) {
        let watched = &self.watched;
        // Relaxed: a time that publishes nothing else.
        watched.looked_ms.store(watched.now_ms(), Ordering::Relaxed);
        // AcqRel: whoever begins sees what the one before left.
        if watched.is_asking.swap(true, Ordering::AcqRel) {
            return;
        }
        let shared = Arc::clone(self);
        self.parts
            .runtime
            .spawn(async move { shared.ask_where_all_are().await });
    }

    async fn ask_where_all_are(self: Arc<Self>) {
        let watched = &self.watched;
        let mut ticks = tokio::time::interval(ASK_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut after_ms = i64::MIN;
        loop {
            ticks.tick().await;
            let idle_ms = watched.now_ms() - watched.looked_ms.load(Ordering::Relaxed);
            if idle_ms > LOOKED_MS || self.following.is_over() {
                break;
            }
            let asked_at = self.parts.clock.now().0;
            if self.ask_nodes_for_cars(after_ms).await {
                after_ms = asked_at - AGAIN_MS;
            }
            let drivers = &self.views.drivers;
            watched
                .places
                .retain(|driver, _| drivers.contains_key(driver));
        }
        watched.places.clear();
        // Release: pairs with the swap of the next one who looks.
        watched.is_asking.store(false, Ordering::Release);
    }

    /// Whether all nodes have answered.
    async fn ask_nodes_for_cars(&self, after_ms: i64) -> bool {
        let mut clients = Vec::new();
        let shards: Vec<u16> = (0..self.parts.log.shards()).collect();
        self.routes
            .for_each_node(&shards, |link| clients.push(link.client()));
        let mut asked = tokio::task::JoinSet::new();
        for mut client in clients {
            asked.spawn(async move {
                let mut parts = client
                    .cars(v1::CarsRequest { after_ms })
                    .await?
                    .into_inner();
                let mut cars = Vec::new();
                while let Some(part) = parts.message().await? {
                    cars.extend(part.cars);
                }
                Ok::<_, tonic::Status>(cars)
            });
        }
        let mut is_whole = true;
        let deadline = tokio::time::Instant::now() + ANSWER_WITHIN;
        while let Ok(Some(answer)) = tokio::time::timeout_at(deadline, asked.join_next()).await {
            let Ok(Ok(cars)) = answer else {
                is_whole = false;
                continue;
            };
            for car in cars {
                let at = Point::from_e7(car.lat_e7, car.lon_e7);
                if let (Ok(driver), Ok(at)) = (DriverId::new(&car.driver), at) {
                    let place = Placement {
                        at,
                        time_ms: car.time_ms,
                        seq: car.seq,
                    };
                    self.watched.take(driver, place);
                }
            }
        }
        is_whole && asked.is_empty()
    }
}
