//! A city that lies on two nodes: each leaves a car to the other's rider who is nearer to it.

#[allow(dead_code, reason = "one story needs less of the log than the others")]
mod support;

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Instant;

use cabrank_engine::EngineConfig;
use cabrank_events::{
    ClassSet, Command, CommandId, CommandRecord, DriverId, Event, IdempotencyKey, Place, RideId,
    RiderId, SessionId, VehicleClass,
};
use cabrank_geo::{Cell, Point, Resolution};
use cabrank_matcher::api::{Dispatch, Pinged};
use cabrank_matcher::clock::DomainClock;
use cabrank_matcher::{Node, NodeConfig, Parts};
use cabrank_ring::Ring;
use support::{Home, PATIENCE, until};

const SHARDS: u16 = 2;

/// Small ownership cells, so that a city has several.
fn engine() -> EngineConfig {
    EngineConfig {
        ownership_resolution: 7,
        ..EngineConfig::default()
    }
}

/// One shard on each node.
struct City {
    nodes: Vec<Node>,
    ring: Ring,
    clock: DomainClock,
    events: Receiver<Event>,
    commands: u64,
}

impl City {
    fn open() -> City {
        let clock = DomainClock::wall();
        let home = Home::new(SHARDS, clock.clone());
        let (say, events): (SyncSender<Event>, _) = sync_channel(10_000);
        let nodes = (0..SHARDS).map(|shard| {
            let name = format!("n{shard}");
            let parts = Parts {
                log: Arc::new(home.clone()),
                owner: Box::new(home.seat(&name, "nowhere")),
                ring: Arc::new(Ring::new(SHARDS).unwrap()),
                clock: clock.clone(),
                config: NodeConfig::default(),
                engine: engine(),
            };
            let node = Node::start(parts, |_| {});
            let say = say.clone();
            node.listen(Box::new(move |committed| {
                for event in committed {
                    say.try_send(event.record.event.clone())
                        .expect("the test reads fast enough");
                }
            }));
            home.give(shard, &name);
            node
        });
        let nodes: Vec<Node> = nodes.collect();
        for node in &nodes {
            until("a node is ready", || node.is_ready().then_some(()));
        }
        City {
            nodes,
            ring: Ring::new(SHARDS).unwrap(),
            clock,
            events,
            commands: 0,
        }
    }

    fn shard_at(&self, at: Place) -> u16 {
        let resolution = Resolution::try_from(engine().ownership_resolution).unwrap();
        self.ring.shard_of_cell(Cell::at(at.0, resolution).into())
    }

    fn say(&mut self, command: Command) {
        self.commands += 1;
        let id = CommandId::new(&format!("test/{}", self.commands)).unwrap();
        let record = CommandRecord::external(id, self.clock.now(), command);
        self.nodes[0].submit(record).unwrap();
    }

    fn until<T>(&self, what: &str, wanted: impl Fn(&Event) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let event = self.events.recv_timeout(left);
            let event = event.unwrap_or_else(|_| panic!("{what}: never"));
            if let Some(found) = wanted(&event) {
                return found;
            }
        }
    }

    fn works(&mut self, driver: &DriverId) {
        self.say(Command::GoOnline {
            driver: driver.clone(),
            session: SessionId(1),
            classes: ClassSet::default(),
        });
    }

    /// A position, which this node alone hears of. Does it know the driver?
    fn ping(&self, node: usize, driver: &DriverId, at: Place) -> bool {
        let pinged = self.nodes[node].ping(driver, at, self.clock.now(), 1);
        pinged == Pinged::Accepted
    }

    fn request(&mut self, rider: &str, at: Place) -> RideId {
        let rider = RiderId::new(rider).unwrap();
        self.say(Command::RequestRide {
            rider: rider.clone(),
            key: IdempotencyKey::new("k").unwrap(),
            pickup: at,
            dropoff: None,
            class: VehicleClass::Economy,
            zone: None,
            airport: None,
        });
        self.until("the request is a ride", |event| match event {
            Event::RideRequested(e) if e.rider == rider => Some(e.ride),
            _ => None,
        })
    }
}

#[test]
fn a_car_goes_to_the_nearest_rider_though_another_node_hears_of_it_first() {
    let mut city = City::open();
    let start = Point::new(37.77, -122.42).unwrap();
    let at = |n: i32| Place(start.offset_m(f64::from(n) * 400.0, 0.0));
    // A rider of the second node, and 1,200 m away one of the first.
    let near = (0..).find(|n| city.shard_at(at(*n)) == 1 && city.shard_at(at(n + 3)) == 0);
    let near = near.unwrap();
    let theirs = city.request("theirs", at(near));
    until("the first node knows of the second one's ride", || {
        (city.nodes[0].rides_elsewhere() == 1).then_some(())
    });
    // A free car stands beside their rider, and only the first node has heard of it.
    let cab = DriverId::new("cab").unwrap();
    city.works(&cab);
    until("the first node knows where the car is", || {
        city.ping(0, &cab, at(near)).then_some(())
    });
    let ours = city.request("ours", at(near + 3));
    assert_eq!((theirs.place.0, ours.place.0), (1, 0));
    city.until("our rider is looked at", |event| match event {
        Event::SearchedInVain(e) if e.ride == ours => Some(()),
        Event::DriverClaimed(e) => panic!("{} goes to {}", e.driver, e.ride),
        _ => None,
    });

    let gets = until("somebody gets the car", || {
        city.ping(1, &cab, at(near));
        city.events.try_iter().find_map(|event| match event {
            Event::DriverClaimed(e) if e.driver == cab => Some(e.ride),
            _ => None,
        })
    });
    assert_eq!(gets, theirs);
    for node in &city.nodes {
        node.stop().unwrap();
    }
}
