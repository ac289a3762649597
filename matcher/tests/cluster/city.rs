//! Nodes and gateways over one log, the phones of their drivers, and what a gateway tells of the rides.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use cabrank_engine::EngineConfig;
use cabrank_eventlog::{EventLog, Topic};
use cabrank_events::command::{EntityId, Outcome};
use cabrank_events::wire::NearCar;
use cabrank_events::{
    ClassSet, Command, CommandId, CommandRecord, DriverId, Event, HoldId, IdempotencyKey, Place,
    RideId, RiderId, SessionId, VehicleClass,
};
use cabrank_geo::{Cell, Point, Resolution};
use cabrank_loadgen::audit::{Audit, AuditOptions};
use cabrank_matcher::api::{CarsNear, Committed, Dispatch, NearbyQuery, NotAnswered, Pinged};
use cabrank_matcher::clock::DomainClock;
use cabrank_matcher::{Node, NodeConfig, Parts, Remote, RemoteConfig, RemoteParts, rpc};
use cabrank_ring::Ring;
use tokio_util::sync::CancellationToken;

use crate::support::{Home, PATIENCE, until};

pub const SHARDS: u16 = 4;

pub struct TestNode {
    pub name: String,
    pub node: Node,
    pub address: SocketAddr,
    pub may_answer: Arc<AtomicBool>,
    pub stop: CancellationToken,
}

/// Nodes, gateways, and the log between them.
pub struct Cluster {
    pub runtime: tokio::runtime::Runtime,
    pub home: Home,
    pub clock: DomainClock,
    pub ring: Arc<Ring>,
    pub nodes: Vec<TestNode>,
    pub gateways: Vec<Remote>,
    config: NodeConfig,
    commands: u64,
    pings: u32,
}

pub fn driver(n: usize) -> DriverId {
    DriverId::new(&format!("d{n}")).unwrap()
}

pub fn resolution() -> Resolution {
    Resolution::try_from(EngineConfig::default().ownership_resolution).unwrap()
}

impl Cluster {
    pub fn start(nodes: usize, gateways: usize) -> Cluster {
        Cluster::start_with(nodes, gateways, NodeConfig::default())
    }

    pub fn start_with(nodes: usize, gateways: usize, config: NodeConfig) -> Cluster {
        let clock = DomainClock::wall();
        let mut cluster = Cluster {
            runtime: tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .unwrap(),
            home: Home::new(SHARDS, clock.clone()),
            clock,
            ring: Arc::new(Ring::new(SHARDS).unwrap()),
            nodes: Vec::new(),
            gateways: Vec::new(),
            config,
            commands: 0,
            pings: 0,
        };
        (0..nodes).for_each(|_| cluster.add_node());
        for shard in 0..SHARDS {
            let to = usize::from(shard) % nodes;
            cluster.give(shard, to);
        }
        (0..gateways).for_each(|_| cluster.add_gateway());
        cluster
    }

    pub fn add_node(&mut self) {
        let name = format!("n{}", self.nodes.len());
        let listening = tokio::net::TcpListener::bind("127.0.0.1:0");
        let listener = self.runtime.block_on(listening).unwrap();
        let address = listener.local_addr().unwrap();
        let seat = self.home.seat(&name, &address.to_string());
        let may_answer = seat.may_answer();
        let parts = Parts {
            log: Arc::new(self.home.clone()),
            owner: Box::new(seat),
            ring: Arc::clone(&self.ring),
            clock: self.clock.clone(),
            config: self.config.clone(),
            engine: EngineConfig::default(),
        };
        let node = Node::start(parts, |_| {});
        let stop = CancellationToken::new();
        let serving = rpc::serve(node.clone(), name.clone(), listener, None, stop.clone());
        self.runtime.spawn(serving);
        self.nodes.push(TestNode {
            name,
            node,
            address,
            may_answer,
            stop,
        });
    }

    pub fn add_gateway(&mut self) {
        let gateway = Remote::start(
            RemoteParts {
                log: Arc::new(self.home.clone()),
                ring: Arc::clone(&self.ring),
                clock: self.clock.clone(),
                engine: EngineConfig::default(),
                node: NodeConfig::default(),
                config: RemoteConfig {
                    owners_every_ms: 20,
                    answer_ms: 500,
                    partner_partitions: vec![2],
                    ..RemoteConfig::default()
                },
                tls: None,
                runtime: self.runtime.handle().clone(),
            },
            |why| panic!("a gateway failed: {why}"),
        );
        until("a gateway is ready", || gateway.is_ready().then_some(()));
        self.gateways.push(gateway);
    }

    pub fn give(&self, shard: u16, to: usize) {
        self.home.give(shard, &self.nodes[to].name);
    }

    /// Waits until node `to` has announced itself for the shard and every gateway knows.
    pub fn settle(&self, shard: u16, to: usize) {
        let address = self.nodes[to].address.to_string();
        for gateway in &self.gateways {
            until("the new owner is known", || {
                let owners = gateway.owners();
                owners
                    .iter()
                    .any(|owner| owner.shard == shard && owner.address == address)
                    .then_some(())
            });
        }
    }

    pub fn submit(&mut self, who: &str, command: Command) -> CommandId {
        self.commands += 1;
        let id = CommandId::new(&format!("{who}/{}", self.commands)).unwrap();
        let record = CommandRecord::external(id.clone(), self.clock.now(), command);
        self.gateways[0].submit(record).unwrap();
        id
    }

    pub fn online(&mut self, driver: &DriverId, at: Place) {
        let command = Command::GoOnline {
            driver: driver.clone(),
            session: SessionId(1),
            classes: ClassSet::default(),
        };
        self.submit("driver", command);
        for gateway in &self.gateways {
            until("the driver is online at every gateway", || {
                gateway.driver(driver)?.session
            });
        }
        self.ping(driver, at);
    }

    pub fn ping(&mut self, driver: &DriverId, at: Place) {
        self.pings += 1;
        let pinged = self.gateways[0].ping(driver, at, self.clock.now(), self.pings);
        assert_eq!(pinged, Pinged::Accepted);
    }

    pub fn request(&mut self, rider: &str, at: Place) -> CommandId {
        self.submit(
            "rider",
            Command::RequestRide {
                rider: RiderId::new(rider).unwrap(),
                key: IdempotencyKey::new("k1").unwrap(),
                pickup: at,
                dropoff: None,
                class: VehicleClass::Economy,
                zone: None,
                airport: None,
            },
        )
    }

    /// The desk changes how rounds choose.
    pub fn set(&mut self, settings: serde_json::Value) {
        self.submit("ops/alice", Command::SetDispatch { settings });
    }

    pub fn nearby(&self, gateway: usize, at: Place) -> Result<Vec<NearCar>, NotAnswered> {
        self.near(gateway, at).map(|near| near.cars)
    }

    pub fn near(&self, gateway: usize, at: Place) -> Result<CarsNear, NotAnswered> {
        let query = NearbyQuery {
            at,
            radius_m: 4_000.0,
            k: 10,
            class: None,
        };
        let answer = self.gateways[gateway].nearby(&query);
        self.runtime.block_on(answer)
    }

    pub fn shard_at(&self, at: Place) -> u16 {
        self.ring.shard_of_cell(Cell::at(at.0, resolution()).into())
    }

    /// A place in each shard, in one region.
    pub fn places(&self) -> Vec<Place> {
        let start = Point::new(37.0, -122.4).unwrap();
        let places = (0..).map(|n| Place(start.offset_m(f64::from(n) * 3_000.0, 0.0)));
        let mut found = BTreeMap::new();
        for at in places {
            found.entry(self.shard_at(at)).or_insert(at);
            if found.len() == usize::from(SHARDS) {
                break;
            }
        }
        found.into_values().collect()
    }

    /// Everything in the log holds the design's promises, and all that began has ended.
    pub fn audit(&self, acknowledged: &BTreeSet<RideId>) {
        let mut audit = Audit::new(AuditOptions {
            complete: true,
            pending_known: true,
            ..AuditOptions::default()
        });
        for shard in 0..self.home.shards() {
            for topic in [Topic::RideEvents, Topic::PersonEvents] {
                for record in self.home.all(topic, shard) {
                    audit.event(topic.name(), shard, record.offset, &record.value);
                }
            }
            for (key, value) in self.home.snapshot(shard).unwrap().states {
                audit.state(shard, std::str::from_utf8(&key).unwrap(), &value);
            }
            for record in self.home.pending(shard) {
                audit.pending(&record.value);
            }
        }
        for ride in acknowledged {
            audit.acknowledged(&ride.to_string());
        }
        let report = audit.finish();
        assert!(report.is_clean(), "{report}\n{:#?}", report.violations);
        assert_eq!(report.acknowledged, acknowledged.len() as u64);
        assert_eq!(report.open, 0, "every ride has its end");
    }

    /// What is stuck, for a test that fails.
    pub fn describe(&self, rides: &Rides) -> String {
        let mut text = format!("{} wishes unanswered", rides.wishes.len());
        for ride in rides.acknowledged.difference(&rides.ended) {
            let views = self.gateways.iter().map(|gateway| gateway.ride(*ride));
            text += &format!("\n{ride}: {:?}", views.collect::<Vec<_>>());
        }
        for shard in 0..self.home.shards() {
            text += &format!(
                "\nshard {shard}: {} pending",
                self.home.pending(shard).len()
            );
        }
        for node in &self.nodes {
            text += &format!("\n{}: ready {}", node.name, node.node.is_ready());
        }
        text
    }

    /// Three nodes and two gateways; 48 cars of drivers who drive, in every shard; and who listens to the second gateway.
    pub fn working() -> (Cluster, Vec<(DriverId, Place)>, Ears) {
        let mut cluster = Cluster::start(3, 2);
        let places = cluster.places();
        let ears = ears(&cluster.gateways[1]);
        let near = |place: Place, n: usize| Place(place.0.offset_m(n as f64 * 40.0, 0.0));
        let drivers: Vec<(DriverId, Place)> = (0..48)
            .map(|n| (driver(n), near(places[n % places.len()], n / places.len())))
            .collect();
        for (driver, at) in &drivers {
            cluster.online(driver, *at);
        }
        drive(&cluster.gateways[0]);
        (cluster, drivers, ears)
    }

    pub fn stop(self) {
        for gateway in &self.gateways {
            gateway.stop();
        }
        for node in &self.nodes {
            node.stop.cancel();
            node.node.stop().unwrap();
        }
    }
}

/// What a gateway's listener hears, as far as a test asks.
pub struct Ears {
    pub heard: Receiver<Committed>,
}

pub fn ears(gateway: &Remote) -> Ears {
    let (say, heard): (SyncSender<Committed>, _) = sync_channel(1_000_000);
    gateway.listen(Box::new(move |committed| {
        for event in committed {
            // The test may have heard enough.
            let _ = say.try_send(event.clone());
        }
    }));
    Ears { heard }
}

impl Ears {
    pub fn until<T>(&self, what: &str, mut wanted: impl FnMut(&Committed) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let event = self.heard.recv_timeout(left);
            let event = event.unwrap_or_else(|_| panic!("{what}: never"));
            if let Some(found) = wanted(&event) {
                return found;
            }
        }
    }
}

/// Phones of all drivers at one gateway: they answer offers and drive, one offer in five is declined.
pub fn drive(gateway: &Remote) -> Arc<Mutex<u64>> {
    let answered = Arc::new(Mutex::new(0));
    let (counts, phone) = (Arc::clone(&answered), gateway.clone());
    gateway.listen(Box::new(move |committed| {
        for event in committed {
            let mut count = lock(&counts);
            let mut say = |command: Command| {
                *count += 1;
                let id = CommandId::new(&format!("phone/{count}")).unwrap();
                let record = CommandRecord::external(id, phone.now(), command);
                phone.submit(record).unwrap();
            };
            match &event.record.event {
                Event::OfferMade(offer) => {
                    let (hold, driver) = (
                        HoldId {
                            ride: offer.ride,
                            attempt: offer.attempt,
                        },
                        offer.driver.clone(),
                    );
                    let declines = (offer.ride.offset + u64::from(offer.attempt)).is_multiple_of(5);
                    say(Command::ReceiveOffer {
                        hold,
                        driver: driver.clone(),
                    });
                    say(match declines {
                        true => Command::DeclineOffer { hold, driver },
                        false => Command::AcceptOffer { hold, driver },
                    });
                }
                Event::DriverAssigned(e) => {
                    let (hold, driver) = (
                        HoldId {
                            ride: e.ride,
                            attempt: e.attempt,
                        },
                        e.driver.clone(),
                    );
                    say(Command::Arrive {
                        hold,
                        driver: driver.clone(),
                    });
                    say(Command::StartRide {
                        hold,
                        driver: driver.clone(),
                    });
                    say(Command::CompleteRide { hold, driver });
                }
                _ => {}
            }
        }
    }));
    answered
}

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What became of the riders' wishes, as a gateway tells it.
#[derive(Default)]
pub struct Rides {
    /// Asked for and not yet answered.
    pub wishes: BTreeSet<CommandId>,
    pub acknowledged: BTreeSet<RideId>,
    pub ended: BTreeSet<RideId>,
}

impl Rides {
    pub fn hear(&mut self, event: &Committed) {
        match &event.record.event {
            Event::CommandOutcome(e) if self.wishes.remove(&e.command) => {
                assert_eq!(e.outcome, Outcome::Done, "{e:?}");
                let ride = e.ride.expect("a request's outcome names its ride");
                self.acknowledged.insert(ride);
            }
            other => {
                if let (Some(_), EntityId::Ride(ride)) = (other.end(), other.entity()) {
                    assert!(self.ended.insert(ride), "{ride} ended twice");
                }
            }
        }
    }
}
