//! A node over the embedded log: commands in, committed events out, and everything back after a restart.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use cabrank_engine::EngineConfig;
use cabrank_eventlog::{EmbeddedLog, Options};
use cabrank_events::command::Outcome;
use cabrank_events::event::OfferMade;
use cabrank_events::wire::RideStage;
use cabrank_events::{
    ClassSet, Command, CommandId, CommandRecord, DriverId, Event, HoldId, IdempotencyKey, Place,
    RideId, RiderId, SessionId, VehicleClass,
};
use cabrank_geo::Point;
use cabrank_matcher::api::{Committed, Dispatch, NearbyQuery, Pinged, Soon};
use cabrank_matcher::clock::DomainClock;
use cabrank_matcher::{Node, NodeConfig, Parts};
use cabrank_ring::Ring;

const PATIENCE: Duration = Duration::from_secs(20);

struct City {
    node: Node,
    events: Receiver<Committed>,
    commands: u64,
}

fn place(lat: f64, lon: f64) -> Place {
    Place(Point::new(lat, lon).unwrap())
}

fn pickup() -> Place {
    place(37.7749, -122.4194)
}

impl City {
    fn open(dir: &Path, config: NodeConfig) -> City {
        let clock = DomainClock::wall();
        let for_log = clock.clone();
        let options = Options {
            clock: Arc::new(move || for_log.now().0),
            ..Options::default()
        };
        let shards = options.shards;
        let log = EmbeddedLog::open(dir, options).unwrap();
        let owner = Box::new(log.own("test").unwrap());
        let parts = Parts {
            log: Arc::new(log),
            owner,
            ring: Arc::new(Ring::new(shards).unwrap()),
            clock,
            config,
            engine: EngineConfig::default(),
        };
        let node = Node::start(parts, |_| {});
        let (heard, events) = sync_channel(10_000);
        node.listen(Box::new(move |committed| {
            committed.iter().for_each(|event| {
                heard
                    .try_send(event.clone())
                    .expect("the test reads fast enough");
            });
        }));
        let deadline = Instant::now() + PATIENCE;
        while !node.is_ready() {
            assert!(Instant::now() < deadline, "the node never became ready");
            std::thread::yield_now();
        }
        City {
            node,
            events,
            commands: 0,
        }
    }

    fn say(&mut self, who: &str, command: Command) -> Outcome {
        self.commands += 1;
        let id = CommandId::new(&format!("{who}/{}", self.commands)).unwrap();
        self.node
            .submit(CommandRecord::external(
                id.clone(),
                self.node.now(),
                command,
            ))
            .unwrap();
        self.until(|event| match event {
            Event::CommandOutcome(e) if e.command == id => Some(e.outcome.clone()),
            _ => None,
        })
    }

    fn until<T>(&self, wanted: impl Fn(&Event) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let event = self
                .events
                .recv_timeout(left)
                .expect("the event never came");
            if let Some(found) = wanted(&event.record.event) {
                return found;
            }
        }
    }

    fn online(&mut self, driver: &DriverId, at: Place) {
        let command = Command::GoOnline {
            driver: driver.clone(),
            session: SessionId(1),
            classes: ClassSet::default(),
        };
        assert_eq!(self.say("driver", command), Outcome::Done);
        assert_eq!(
            self.node.ping(driver, at, self.node.now(), 1),
            Pinged::Accepted
        );
    }

    fn request(&mut self, rider: &str) -> RideId {
        let rider = RiderId::new(rider).unwrap();
        let command = Command::RequestRide {
            rider: rider.clone(),
            key: IdempotencyKey::new("k1").unwrap(),
            pickup: pickup(),
            dropoff: None,
            class: VehicleClass::Economy,
            zone: None,
            airport: None,
        };
        assert_eq!(self.say("rider", command), Outcome::Done);
        self.node
            .ride_of(&rider)
            .expect("an acknowledged ride is known")
    }

    fn offer(&self) -> OfferMade {
        self.until(|event| match event {
            Event::OfferMade(offer) => Some(offer.clone()),
            _ => None,
        })
    }
}

fn drive_a_ride(config: NodeConfig) {
    let dir = tempfile::tempdir().unwrap();
    let mut city = City::open(dir.path(), config);
    let (near, far) = (
        DriverId::new("near").unwrap(),
        DriverId::new("far").unwrap(),
    );
    city.online(&far, place(37.7800, -122.4100));
    city.online(&near, place(37.7751, -122.4190));
    let ride = city.request("ann");
    let offer = city.offer();
    assert_eq!(
        (offer.ride, &offer.driver),
        (ride, &near),
        "the nearest car is asked"
    );
    let hold = HoldId {
        ride,
        attempt: offer.attempt,
    };
    let driver = near.clone();
    for (command, stage) in [
        (
            Command::ReceiveOffer {
                hold,
                driver: driver.clone(),
            },
            RideStage::Offered,
        ),
        (
            Command::AcceptOffer {
                hold,
                driver: driver.clone(),
            },
            RideStage::EnRoute,
        ),
        (
            Command::Arrive {
                hold,
                driver: driver.clone(),
            },
            RideStage::Arrived,
        ),
        (
            Command::StartRide {
                hold,
                driver: driver.clone(),
            },
            RideStage::Started,
        ),
        (Command::CompleteRide { hold, driver }, RideStage::Completed),
    ] {
        assert_eq!(city.say("driver/near", command), Outcome::Done);
        assert_eq!(city.node.ride(ride).unwrap().stage, stage);
    }
    city.until(|event| matches!(event, Event::RiderFree(e) if e.ride == ride).then_some(()));
    let query = NearbyQuery {
        at: pickup(),
        radius_m: 3_000.0,
        k: 10,
        class: None,
    };
    let Soon::Now(cars) = city.node.nearby(&query) else {
        panic!("a node in this process answers at once");
    };
    let cars = cars.into_inner().unwrap();
    assert_eq!(cars.cars.len(), 2, "both cars are free again");
    city.node.stop().unwrap();
}

#[test]
fn a_ride_from_request_to_completion() {
    drive_a_ride(NodeConfig::default());
}

#[test]
fn the_same_ride_when_every_message_goes_through_the_log() {
    drive_a_ride(NodeConfig {
        hops_max: 0,
        ..NodeConfig::default()
    });
}

#[test]
fn the_same_ride_when_rounds_run_beside_the_commit_loop() {
    drive_a_ride(NodeConfig {
        small_round_rides_max: 0,
        ..NodeConfig::default()
    });
}

#[test]
fn a_car_that_comes_into_reach_is_offered_the_ride_that_waits() {
    let dir = tempfile::tempdir().unwrap();
    let mut city = City::open(dir.path(), NodeConfig::default());
    let driver = DriverId::new("late").unwrap();
    city.online(&driver, place(37.9, -122.6));
    let ride = city.request("ann");
    city.until(|event| matches!(event, Event::SearchedInVain(e) if e.ride == ride).then_some(()));
    assert_eq!(
        city.node.ping(&driver, pickup(), city.node.now(), 2),
        Pinged::Accepted
    );
    assert_eq!(city.offer().ride, ride);
    city.node.stop().unwrap();
}

#[test]
fn a_restart_brings_back_rides_drivers_and_riders() {
    let dir = tempfile::tempdir().unwrap();
    let driver = DriverId::new("d1").unwrap();
    let (ride, hold) = {
        let mut city = City::open(dir.path(), NodeConfig::default());
        city.online(&driver, place(37.7751, -122.4190));
        let ride = city.request("ann");
        let hold = HoldId {
            ride,
            attempt: city.offer().attempt,
        };
        let accepted = Command::AcceptOffer {
            hold,
            driver: driver.clone(),
        };
        assert_eq!(city.say("driver/d1", accepted), Outcome::Done);
        city.node.stop().unwrap();
        (ride, hold)
    };
    let mut city = City::open(dir.path(), NodeConfig::default());
    assert_eq!(city.node.ride(ride).unwrap().stage, RideStage::EnRoute);
    assert_eq!(city.node.driver(&driver).unwrap().hold, Some(hold));
    let again = Command::AcceptOffer {
        hold,
        driver: driver.clone(),
    };
    assert_eq!(city.say("driver/d1/again", again), Outcome::AlreadyDone);
    let arrived = Command::Arrive { hold, driver };
    assert_eq!(city.say("driver/d1/arrive", arrived), Outcome::Done);
    let all = city
        .node
        .read_events(&city.node.events_start(), 10_000)
        .unwrap();
    assert!(all.len() > 10);
    assert_eq!(all.last().unwrap().after, city.node.events_end());
    for (n, event) in all.iter().enumerate() {
        let rest = city.node.read_events(&event.after, 10_000).unwrap();
        assert_eq!(rest, all[n + 1..], "going on after event {n}");
    }
    for at_most in [1, 2, 7, 40] {
        let (mut cursor, mut read) = (city.node.events_start(), Vec::new());
        while cursor != city.node.events_end() {
            let some = city.node.read_events(&cursor, at_most).unwrap();
            assert!(
                (1..=at_most).contains(&some.len()),
                "it goes on, and never hands out too many"
            );
            cursor = some.last().unwrap().after.clone();
            read.extend(some);
        }
        assert_eq!(read, all, "{at_most} at a time");
    }
    city.node.stop().unwrap();
}
