//! The nodes as a gateway process of its own sees them: commands into the log, events out of it, pings and questions to
//! the nodes.
//!
//! Holds: handing in a ping never waits; nobody is told of an event that is not committed; what gateways show of rides
//! and people is the fold of the log's events, so it is the same at every gateway.
//! `nearby` costs one question to the node that owns the place: the halo makes its answer whole. `position` of a driver
//! who pings here is known here; of another, all nodes are asked, and the one that owns the place answers. A map's
//! question, everybody's position, is kept answered while somebody looks (`watched`).

mod partners;
mod routes;
mod silence;
mod tracks;
mod watched;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use cabrank_engine::fold::Entities;
use cabrank_engine::ride::Bounds;
use cabrank_engine::travel::TravelTime;
use cabrank_engine::{DispatchRules, EngineConfig};
use cabrank_eventlog::{EventLog, OwnerRecord, Topic};
use cabrank_events::command::EntityId;
use cabrank_events::wire::{NearCar, Ping, QueueView, RideView};
use cabrank_events::{
    CommandRecord, DriverId, EventRecord, Place, RideId, RiderId, SessionId, ShardId, Time,
};
use cabrank_geo::{Placement, Point, Resolution};
use cabrank_ring::Ring;
use serde::{Deserialize, Serialize};
use tonic::Code;
use tracing::{error, warn};

use crate::api::{
    CarsNear, Committed, Dispatch, DriverSeen, DriverView, EventCursor, EventsUnreadable, History,
    Listener, MarketView, NearbyQuery, NodeSeen, NotAnswered, NotTaken, Pinged, Position,
    ReadEvent, Soon,
};
use crate::clock::DomainClock;
use crate::config::NodeConfig;
use crate::follower::{Follower, Following, Sink, What};
use crate::heart::{Hearts, Wedged};
use crate::node::Failure;
use crate::rings::Rings;
use crate::rpc::{self, LinkConfig, v1};
use crate::tls::{ClusterTls, Side};
use crate::views::Views;
use crate::{cursor, history, route};

use routes::{Route, Routes};
use silence::Silence;
use tracks::Tracks;
use watched::Watched;

/// A position that came by this gateway is good for so long without asking a node: the driver may have moved on to
/// another gateway meanwhile.
const OWN_POSITION_MS: i64 = 10_000;
/// A log that has not answered for so long (and for two looks at it) counts as out of reach.
const LOG_SILENT: Duration = Duration::from_secs(1);
/// A gateway whose log has not answered for so long takes no new clients; those it has stay, and are told what is known.
const LOG_GONE: Duration = Duration::from_secs(10);
/// Events handed to listeners at once.
const LISTEN_MAX: usize = 256;

/// A gateway's knobs towards the nodes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RemoteConfig {
    /// Drivers whose newest ping may wait for one node that is slow or gone; beyond it the oldest is dropped (1 to 10,000,000).
    pub pings_waiting_max: usize,
    /// Pings in one message to a node (1 to 10,000).
    pub ping_batch_max: usize,
    /// A message that is not full waits so long for more pings, ms (1 to 1,000).
    pub ping_flush_ms: u64,
    /// Longest wait for a node's answer, ms (10 to 60,000).
    pub answer_ms: u64,
    /// How often to look who owns the shards, ms (10 to 60,000); also done at once when a node says it does not.
    pub owners_every_ms: u64,
    /// Are accepted pings published to `driver-locations`?
    pub publish_locations: bool,
    /// Partitions of `driver-pings` whose pings enter by this gateway; each belongs to one gateway. Partners without a
    /// socket publish there.
    pub partner_partitions: Vec<u16>,
}

impl Default for RemoteConfig {
    fn default() -> Self {
        Self {
            pings_waiting_max: 200_000,
            ping_batch_max: 512,
            ping_flush_ms: 2,
            answer_ms: 1_000,
            owners_every_ms: 200,
            publish_locations: true,
            partner_partitions: Vec::new(),
        }
    }
}

impl RemoteConfig {
    /// Checks ranges.
    pub fn check(&self) -> Result<(), cabrank_engine::BadSetting> {
        let knobs = [
            (
                "pings_waiting_max",
                self.pings_waiting_max as u64,
                1,
                10_000_000,
            ),
            ("ping_batch_max", self.ping_batch_max as u64, 1, 10_000),
            ("ping_flush_ms", self.ping_flush_ms, 1, 1_000),
            ("answer_ms", self.answer_ms, 10, 60_000),
            ("owners_every_ms", self.owners_every_ms, 10, 60_000),
        ];
        let ranges = [
            ("remote.pings_waiting_max", "choose 1 to 10000000"),
            ("remote.ping_batch_max", "choose 1 to 10000"),
            ("remote.ping_flush_ms", "choose 1 to 1000"),
            ("remote.answer_ms", "choose 10 to 60000"),
            ("remote.owners_every_ms", "choose 10 to 60000"),
        ];
        for ((_, value, least, most), (key, remedy)) in knobs.into_iter().zip(ranges) {
            if !(least..=most).contains(&value) {
                return Err(cabrank_engine::BadSetting {
                    key,
                    value: value.to_string(),
                    remedy,
                });
            }
        }
        Ok(())
    }

    fn link(&self) -> LinkConfig {
        LinkConfig {
            waiting_max: self.pings_waiting_max,
            batch_max: self.ping_batch_max,
            flush: Duration::from_millis(self.ping_flush_ms),
            answer: Duration::from_millis(self.answer_ms),
        }
    }
}

/// What a gateway's view of the nodes is made of.
pub struct RemoteParts {
    /// Commands and events.
    pub log: Arc<dyn EventLog>,
    /// Where things live, as the city was made; the same as the nodes'. If that has grown, the log says so.
    pub ring: Arc<Ring>,
    /// Domain time.
    pub clock: DomainClock,
    /// The engine's knobs; the same as the nodes'.
    pub engine: EngineConfig,
    /// The nodes' knobs: the policy and the speeds are shown here, too.
    pub node: NodeConfig,
    /// The gateway's knobs.
    pub config: RemoteConfig,
    /// What connections to nodes are secured with; plain text without it.
    pub tls: Option<Arc<ClusterTls>>,
    /// Where connections to nodes live.
    pub runtime: tokio::runtime::Handle,
}

struct Shared {
    parts: RemoteParts,
    resolution: Resolution,
    views: Views,
    listeners: RwLock<Vec<Listener>>,
    routes: Routes,
    tracks: Tracks,
    rings: Arc<Rings>,
    /// Those who ping elsewhere, while somebody looks at a map.
    watched: Watched,
    following: Following,
    draining: AtomicBool,
    /// Rung to look for owners at once, and to stop.
    look: Look,
    /// Of its loops.
    hearts: Hearts,
    /// Whether the log says who owns what.
    silence: Silence,
}

/// Wakes the thread that looks who owns what.
#[derive(Default)]
struct Look {
    state: Mutex<LookState>,
    rung: Condvar,
}

#[derive(Default)]
struct LookState {
    now: bool,
    stop: bool,
}

/// The nodes, from a gateway process. Dropping it does not stop it; [`Remote::stop`] does.
#[derive(Clone)]
pub struct Remote {
    shared: Arc<Shared>,
    threads: Arc<Mutex<Vec<JoinHandle<()>>>>,
}

impl Remote {
    /// Starts to follow the log and to look for nodes; ready once every shard was read. `on_failure` is told when the
    /// log cannot be followed any more: then this gateway shows a city of the past and should end.
    pub fn start(parts: RemoteParts, on_failure: impl FnOnce(Failure) + Send + 'static) -> Remote {
        let resolution = Resolution::try_from(parts.engine.ownership_resolution)
            .expect("the engine's settings were checked");
        let halo_m = f64::from(parts.engine.radius_max_m);
        let shards = parts.log.shards();
        if let Some(tls) = &parts.tls {
            tls.watch(Side::Gateway, &parts.runtime);
        }
        let (tls, runtime) = (parts.tls.clone(), parts.runtime.clone());
        let routes = Routes::new(shards, parts.config.link(), tls, runtime);
        let rings = Arc::new(Rings::new(Arc::clone(&parts.ring)));
        let looks = Duration::from_millis(2 * parts.config.owners_every_ms);
        let silent_after = LOG_SILENT.max(looks);
        let shared = Arc::new(Shared {
            resolution,
            views: Views::default(),
            listeners: RwLock::default(),
            routes,
            tracks: Tracks::new(Arc::clone(&rings), resolution, halo_m),
            rings,
            watched: Watched::default(),
            following: Following::of(0..shards),
            draining: AtomicBool::new(false),
            look: Look::default(),
            hearts: Hearts::default(),
            silence: Silence::new(silent_after, Instant::now()),
            parts,
        });
        let spawn = |name: &str, body: Box<dyn FnOnce() + Send>| {
            std::thread::Builder::new()
                .name(name.into())
                .spawn(body)
                .expect("a process that cannot start a thread at its start cannot work")
        };
        let (follows, looks) = (Arc::clone(&shared), Arc::clone(&shared));
        let threads = vec![
            spawn(
                "cabrank-follow",
                Box::new(move || {
                    if let Err(why) = follows.follow() {
                        error!(%why, "the log cannot be followed");
                        follows.draining.store(true, Ordering::SeqCst);
                        on_failure(why);
                    }
                }),
            ),
            spawn("cabrank-owners", Box::new(move || looks.look_for_owners())),
        ];
        Remote {
            shared,
            threads: Arc::new(Mutex::new(threads)),
        }
    }

    /// Readiness falls, so that nobody new comes; everything goes on working.
    pub fn drain(&self) {
        // SeqCst: a flag that is set once.
        self.shared.draining.store(true, Ordering::SeqCst);
    }

    /// Follows no more.
    pub fn stop(&self) {
        self.drain();
        self.shared.following.stop();
        self.shared.look.ring(|state| state.stop = true);
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        for thread in threads.drain(..) {
            if thread.join().is_err() {
                error!("a thread of the gateway panicked");
            }
        }
    }

    /// Reads the partners' pings of the configured partitions into `hear`, on a thread of its own, until
    /// [`Remote::stop`]. Nothing is read when no partition is configured.
    pub fn read_partner_pings(&self, hear: impl FnMut(&DriverId, &Ping) + Send + 'static) {
        let partitions = self.shared.parts.config.partner_partitions.clone();
        if partitions.is_empty() {
            return;
        }
        let shared = Arc::clone(&self.shared);
        let thread = std::thread::Builder::new()
            .name("cabrank-partner".into())
            .spawn(move || {
                let log = &*shared.parts.log;
                partners::read(log, &partitions, || shared.following.is_over(), hear);
            })
            .expect("a process that cannot start a thread at its start cannot work");
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        threads.push(thread);
    }

    /// Who owns which shard, as far as this gateway knows.
    pub fn owners(&self) -> Vec<OwnerRecord> {
        (0..self.shared.parts.log.shards())
            .filter_map(|shard| {
                let Route { epoch, node, link } = self.shared.routes.to(shard)?;
                let address = link.map_or_else(String::new, |link| link.address.clone());
                Some(OwnerRecord {
                    shard,
                    epoch,
                    node,
                    address,
                })
            })
            .collect()
    }

    /// How long ago everything committed had been shown, ms.
    pub fn behind_ms(&self) -> i64 {
        self.shared.behind_ms()
    }
}

impl Look {
    fn ring(&self, change: impl FnOnce(&mut LookState)) {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
        self.rung.notify_all();
    }

    /// Waits; false when it is over.
    fn wait(&self, at_most: Duration) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut state, _) = self
            .rung
            .wait_timeout_while(state, at_most, |state| !state.now && !state.stop)
            .unwrap_or_else(PoisonError::into_inner);
        state.now = false;
        !state.stop
    }
}

impl Shared {
    fn behind_ms(&self) -> i64 {
        let now = self.parts.clock.now();
        now.since(Time(self.following.complete_ms())).max(0)
    }

    fn follow(&self) -> Result<(), Failure> {
        let mut sink = Showing {
            shared: self,
            batch: Vec::new(),
        };
        let bounds = Bounds::of(&self.parts.engine);
        let follower = Follower::new(
            &*self.parts.log,
            What::Everything,
            bounds,
            self.parts.clock.clone(),
        );
        let patience = Duration::from_millis(self.parts.node.wedged_after_ms);
        let heart = self.hearts.add("the follower of the log", patience);
        follower.run(&self.following, &heart, &mut sink)
    }

    fn look_for_owners(&self) {
        let every = Duration::from_millis(self.parts.config.owners_every_ms);
        let mut is_well = true;
        let mut followed = self.parts.log.shards();
        loop {
            let mut shards = self.parts.log.shards();
            if self.rings.shards() > shards {
                shards = self.parts.log.look_for_shards();
            }
            if shards != followed {
                followed = shards;
                self.following.set((0..shards).collect());
            }
            match self.parts.log.owners() {
                Ok(owners) => {
                    is_well = true;
                    let shards = 0..self.parts.log.shards();
                    let epochs = || shards.map(|shard| self.routes.epoch_of(shard)).collect();
                    self.silence.log_answered(Instant::now(), epochs);
                    self.routes.learn(&owners);
                }
                Err(why) => {
                    if std::mem::take(&mut is_well) {
                        warn!(%why, "the shards' owners cannot be read: the last known are used");
                    }
                }
            }
            metrics::gauge!("cabrank_shards").set(f64::from(self.parts.log.shards()));
            metrics::gauge!("cabrank_follower_behind_seconds")
                .set(self.behind_ms() as f64 / 1_000.0);
            if !self.look.wait(every) {
                return;
            }
        }
    }

    /// What a node's refusal means; the owners are looked up again.
    fn refusal(&self, status: &tonic::Status) -> NotAnswered {
        self.look.ring(|state| state.now = true);
        match status.code() {
            Code::FailedPrecondition => NotAnswered::NoOwner,
            // It is of a release that does not speak with this one; the stream of pings says so in the log.
            Code::Unimplemented => {
                metrics::counter!("cabrank_releases_apart_total").increment(1);
                NotAnswered::NodeSilent
            }
            _ => NotAnswered::NodeSilent,
        }
    }

    async fn ask_nearby(self: Arc<Self>, query: NearbyQuery) -> Result<CarsNear, NotAnswered> {
        let shard = route::shard_of_place(&self.rings.now(), self.resolution, query.at);
        let link = self.routes.to(shard).and_then(|route| route.link);
        let client = link.ok_or(NotAnswered::NoOwner)?.client();
        let asked = v1::NearbyRequest {
            shard: u32::from(shard),
            lat_e7: query.at.0.lat_e7(),
            lon_e7: query.at.0.lon_e7(),
            radius_m: query.radius_m,
            k: u32::try_from(query.k).unwrap_or(u32::MAX),
            classes: query.class.map_or(0, |class| u32::from(class.bit())),
            unconfirmed_will_do: {
                let epoch = self.routes.epoch_of(shard);
                self.silence
                    .unconfirmed_will_do(Instant::now(), shard, epoch)
            },
        };
        let answer = rpc::ask(|| {
            let mut client = client.clone();
            async move { client.nearby(asked).await }
        });
        let answer = answer.await.map_err(|why| self.refusal(&why))?;
        // PROTOCOL 22: while it was under way another node may have announced itself.
        if !answer.unconfirmed && answer.epoch < self.routes.epoch_of(shard) {
            metrics::counter!("cabrank_stale_answers_total").increment(1);
            return Err(NotAnswered::NoOwner);
        }
        let cars = answer.cars.into_iter().filter_map(|car| {
            Some(NearCar {
                at: Place(Point::from_e7(car.lat_e7, car.lon_e7).ok()?),
                age_ms: car.age_ms,
                distance_m: car.distance_m,
            })
        });
        Ok(CarsNear {
            cars: cars.collect(),
            unconfirmed: answer.unconfirmed,
        })
    }

    async fn ask_position(
        self: Arc<Self>,
        driver: DriverId,
    ) -> Result<Option<Position>, NotAnswered> {
        let mut clients = Vec::new();
        let shards: Vec<u16> = (0..self.parts.log.shards()).collect();
        self.routes
            .for_each_node(&shards, |link| clients.push(link.client()));
        if clients.is_empty() {
            return Err(NotAnswered::NoOwner);
        }
        let mut asked = tokio::task::JoinSet::new();
        for client in clients {
            let request = v1::PositionRequest {
                driver: driver.as_str().to_owned(),
            };
            asked.spawn(rpc::ask(move || {
                let (mut client, request) = (client.clone(), request.clone());
                async move { client.position(request).await }
            }));
        }
        let (mut newest, mut refusal) = (None, None);
        while let Some(answer) = asked.join_next().await {
            let found = match answer {
                Ok(Ok(answer)) => answer.found,
                Ok(Err(why)) => {
                    refusal = Some(self.refusal(&why));
                    continue;
                }
                Err(_) => continue,
            };
            let Some(found) = found else { continue };
            let shard = u16::try_from(found.shard).unwrap_or(u16::MAX);
            let at = Point::from_e7(found.lat_e7, found.lon_e7);
            let (Ok(at), true) = (at, found.epoch >= self.routes.epoch_of(shard)) else {
                metrics::counter!("cabrank_stale_answers_total").increment(1);
                continue;
            };
            if newest.is_none_or(|(time_ms, _)| time_ms < found.time_ms) {
                let position = Position {
                    at: Place(at),
                    age_ms: found.age_ms,
                };
                newest = Some((found.time_ms, position));
            }
        }
        match (newest, refusal) {
            (Some((_, position)), _) => Ok(Some(position)),
            // The one who knows may be the one who did not answer.
            (None, Some(why)) => Err(why),
            (None, None) => Ok(None),
        }
    }
}

/// Committed events on their way into views and to listeners.
struct Showing<'a> {
    shared: &'a Shared,
    batch: Vec<Committed>,
}

impl Showing<'_> {
    fn tell(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        let listeners = self
            .shared
            .listeners
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        listeners.iter().for_each(|listener| listener(&self.batch));
        self.batch.clear();
    }
}

impl Sink for Showing<'_> {
    fn snapshot(&mut self, shard: u16, entities: &Entities) {
        self.tell();
        let Shared {
            rings,
            views,
            tracks,
            ..
        } = self.shared;
        if let Some(market) = &entities.market
            && rings.heed(market)
        {
            views.begin_moves();
            tracks.look_again();
        }
        let people = entities.drivers.keys().cloned().map(EntityId::Driver);
        let people = people.chain(entities.riders.keys().cloned().map(EntityId::Rider));
        people
            .filter(|entity| rings.home(entity) == shard && !rings.is_only_home(entity, shard))
            .for_each(|entity| views.came(entity, ShardId(shard)));
        let rides = entities.rides.keys().map(|id| EntityId::Ride(*id));
        let drivers = entities.drivers.keys().cloned().map(EntityId::Driver);
        let riders = entities.riders.keys().cloned().map(EntityId::Rider);
        rides
            .chain(drivers)
            .chain(riders)
            .chain([EntityId::Market])
            .for_each(|entity| views.show(&entity, entities));
        views.keep(|entity| {
            !rings.is_only_home(entity, shard)
                || match entity {
                    EntityId::Ride(id) => entities.rides.contains_key(id),
                    EntityId::Driver(id) => entities.drivers.contains_key(id),
                    EntityId::Rider(id) => entities.riders.contains_key(id),
                    EntityId::Market => true,
                }
        });
        tracks.keep(|driver| {
            let view = views.drivers.get(driver);
            view.is_some_and(|view| view.session.is_some())
        });
    }

    fn event(&mut self, record: EventRecord, json: Bytes, entities: &Entities) {
        let entity = record.event.entity();
        let views = &self.shared.views;
        if let (EntityId::Market, Some(market)) = (&entity, &entities.market)
            && self.shared.rings.heed(market)
        {
            views.begin_moves();
            self.shared.tracks.look_again();
        }
        if views.is_news(&record) {
            views.show(&entity, entities);
        }
        let ride = match &entity {
            EntityId::Ride(id) => views.ride_view(*id),
            EntityId::Driver(id) => {
                let is_gone = views
                    .drivers
                    .get(id)
                    .is_none_or(|view| view.session.is_none());
                if is_gone {
                    self.shared.tracks.forget(id);
                }
                None
            }
            EntityId::Rider(_) | EntityId::Market => None,
        };
        self.batch.push(Committed { record, json, ride });
        if self.batch.len() >= LISTEN_MAX {
            self.tell();
        }
    }

    fn forget(&mut self, ride: RideId) {
        self.shared.views.ride(ride, None);
    }

    fn settled(&mut self) {
        self.tell();
    }
}

impl Dispatch for Remote {
    fn now(&self) -> Time {
        self.shared.parts.clock.now()
    }

    fn is_ready(&self) -> bool {
        let shared = &self.shared;
        shared.following.is_ready()
            && !shared.draining.load(Ordering::SeqCst)
            && shared.silence.lasts(Instant::now()) < LOG_GONE
    }

    fn wedged(&self) -> Option<Wedged> {
        self.shared.hearts.wedged()
    }

    fn submit(&self, record: CommandRecord) -> Result<(), NotTaken> {
        let parts = &self.shared.parts;
        route::submit(&*parts.log, &self.shared.rings.now(), &record)
    }

    fn ping(&self, driver: &DriverId, at: Place, time: Time, seq: u32) -> Pinged {
        let shared = &*self.shared;
        let is_online = shared
            .views
            .drivers
            .get(driver)
            .is_some_and(|view| view.session.is_some());
        if !is_online {
            return Pinged::NotOnline;
        }
        let placement = Placement {
            at: at.0,
            time_ms: time.0,
            seq,
        };
        let Some(tracked) = shared.tracks.take(driver, placement) else {
            return Pinged::OutOfOrder;
        };
        let is_lost = shared
            .routes
            .for_each_node(&tracked.shards, |link| link.ping(driver, placement));
        if is_lost {
            metrics::counter!("cabrank_pings_unrouted_total").increment(1);
        }
        if shared.parts.config.publish_locations {
            let ping = Ping {
                lat: at.0.lat_deg(),
                lon: at.0.lon_deg(),
                time: Some(time.0),
                seq,
                accuracy: None,
            };
            let key = Bytes::copy_from_slice(driver.as_str().as_bytes());
            let value = Bytes::from(serde_json::to_vec(&ping).unwrap_or_default());
            let log = &shared.parts.log;
            if !log.publish(Topic::DriverLocations, tracked.home, key, value) {
                metrics::counter!("cabrank_locations_lost_total").increment(1);
            }
        }
        Pinged::Accepted
    }

    fn sign_of_life(&self, driver: &DriverId, session: SessionId) {
        let entity = EntityId::Driver(driver.clone());
        let home = route::shard_of(&self.shared.rings.now(), &entity);
        self.shared
            .routes
            .for_each_node(&[home], |link| link.sign(driver, session));
    }

    fn nearby(&self, query: &NearbyQuery) -> Soon<Result<CarsNear, NotAnswered>> {
        Soon::later(Arc::clone(&self.shared).ask_nearby(*query))
    }

    fn position(&self, driver: &DriverId) -> Soon<Result<Option<Position>, NotAnswered>> {
        if let Some(last) = self.shared.tracks.last(driver) {
            let age_ms = self.now().since(Time(last.time_ms)).max(0);
            if age_ms <= OWN_POSITION_MS {
                let at = Place(last.at);
                return Soon::now(Ok(Some(Position { at, age_ms })));
            }
        }
        Soon::later(Arc::clone(&self.shared).ask_position(driver.clone()))
    }

    fn ride(&self, ride: RideId) -> Option<Arc<RideView>> {
        self.shared.views.ride_view(ride)
    }

    fn ride_of(&self, rider: &RiderId) -> Option<RideId> {
        self.shared.views.active.get(rider).map(|ride| *ride)
    }

    fn driver(&self, driver: &DriverId) -> Option<DriverView> {
        let view = self.shared.views.drivers.get(driver);
        view.map(|view| view.clone())
    }

    fn queue_place(&self, driver: &DriverId) -> Option<QueueView> {
        self.shared.views.queue_place(driver)
    }

    fn offer_times(&self, ride: RideId) -> Option<(Time, u64)> {
        let until = self.shared.views.rides.get(&ride)?.offer_until?;
        Some((until, self.shared.parts.engine.offer_answer_ms))
    }

    fn each_driver(&self, see: &mut dyn FnMut(DriverSeen<'_>)) {
        let now = self.now();
        self.shared.look_at_all();
        for entry in &self.shared.views.drivers {
            let own = self.shared.tracks.last(entry.key());
            let told = self.shared.watched.last(entry.key());
            let newest = match (own, told) {
                (Some(own), Some(told)) if told.is_newer_than(&own) => Some(told),
                (own, told) => own.or(told),
            };
            let at = newest.map(|last| Position {
                at: Place(last.at),
                age_ms: now.since(Time(last.time_ms)).max(0),
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

    fn nodes(&self) -> Option<Vec<NodeSeen>> {
        let mut nodes: BTreeMap<String, NodeSeen> = BTreeMap::new();
        for owner in self.owners() {
            let node = nodes.entry(owner.node.clone()).or_insert_with(|| NodeSeen {
                name: owner.node,
                address: owner.address,
                shards: Vec::new(),
            });
            node.shards.push(owner.shard);
        }
        // Those that own nothing are known to the group only.
        match self.shared.parts.log.members() {
            Ok(members) => {
                for (name, address) in members {
                    nodes.entry(name.clone()).or_insert_with(|| NodeSeen {
                        name,
                        address,
                        shards: Vec::new(),
                    });
                }
            }
            Err(why) => warn!(%why, "nodes without shards cannot be listed"),
        }
        Some(nodes.into_values().collect())
    }

    fn market(&self) -> MarketView {
        let Shared { parts, views, .. } = &*self.shared;
        let configured = DispatchRules::configured(parts.node.policy, &parts.engine);
        MarketView::of(views.market_set(), &configured)
    }

    fn history(&self, entity: &EntityId, max: usize) -> Result<History, EventsUnreadable> {
        let parts = &self.shared.parts;
        history::of(&*parts.log, &self.shared.rings, entity, max)
    }

    fn listen(&self, listener: Listener) {
        let mut listeners = self
            .shared
            .listeners
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        listeners.push(listener);
    }

    fn events_end(&self) -> EventCursor {
        cursor::end(&*self.shared.parts.log)
    }

    fn events_start(&self) -> EventCursor {
        cursor::start(&*self.shared.parts.log)
    }

    fn events_since(&self, time: Time, most: u64) -> EventCursor {
        cursor::since(&*self.shared.parts.log, time, most)
    }

    fn read_events(
        &self,
        cursor: &EventCursor,
        max: usize,
    ) -> Result<Vec<ReadEvent>, EventsUnreadable> {
        cursor::read(&*self.shared.parts.log, cursor, max)
    }

    fn travel_time_s(&self, from: Place, to: Place) -> f64 {
        let travel = self.shared.parts.node.straight_line(self.now());
        travel.drive_ms(from.0, to.0) as f64 / 1_000.0
    }
}
