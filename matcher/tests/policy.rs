//! A node's policy, changed while it runs, and the swaps of `rematch` over the embedded log.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use cabrank_engine::EngineConfig;
use cabrank_engine::matching::PolicyKind;
use cabrank_eventlog::{EmbeddedLog, Options};
use cabrank_events::event::OfferMade;
use cabrank_events::{
    ClassSet, Command, CommandId, CommandRecord, DriverId, Event, HoldId, IdempotencyKey, NodeName,
    Place, RideId, RiderId, SessionId, VehicleClass,
};
use cabrank_geo::Point;
use cabrank_matcher::api::{Committed, Dispatch};
use cabrank_matcher::clock::DomainClock;
use cabrank_matcher::{Node, NodeConfig, Parts, RoadsConfig};
use cabrank_ring::Ring;
use serde_json::json;

const PATIENCE: Duration = Duration::from_secs(20);

/// A street in San Francisco; `north` in steps of 111 m.
fn at(north: f64) -> Place {
    Place(Point::new(37.77 + north / 1_000.0, -122.42).unwrap())
}

fn driver(name: &str) -> DriverId {
    DriverId::new(name).unwrap()
}

struct City {
    node: Node,
    events: Receiver<Committed>,
    commands: u64,
}

impl City {
    fn open(dir: &Path, engine: EngineConfig) -> City {
        City::with(dir, NodeConfig::default(), engine)
    }

    fn with(dir: &Path, config: NodeConfig, engine: EngineConfig) -> City {
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
            engine,
        };
        let node = Node::start(parts, |_| {});
        let (heard, events) = sync_channel(10_000);
        node.listen(Box::new(move |committed| {
            for event in committed {
                heard
                    .try_send(event.clone())
                    .expect("the test reads fast enough");
            }
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

    fn say(&mut self, command: Command) {
        self.commands += 1;
        let id = CommandId::new(&format!("test/{}", self.commands)).unwrap();
        let record = CommandRecord::external(id.clone(), self.node.now(), command);
        self.node.submit(record).unwrap();
    }

    /// The desk changes how rounds choose.
    fn set(&mut self, settings: serde_json::Value) {
        self.say(Command::SetDispatch { settings });
        self.until(|event| matches!(event, Event::DispatchSet(_)).then_some(()));
    }

    fn until<T>(&self, wanted: impl Fn(&Event) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let event = self.events.recv_timeout(left);
            let event = event.expect("the event never came");
            if let Some(found) = wanted(&event.record.event) {
                return found;
            }
        }
    }

    /// Comes to work and says where; the first ping only once the node knows of it.
    fn online(&mut self, name: &str, north: f64) {
        let id = driver(name);
        self.say(Command::GoOnline {
            driver: id.clone(),
            session: SessionId(1),
            classes: ClassSet::default(),
        });
        self.until(|event| match event {
            Event::DriverOnline(e) if e.driver == id => Some(()),
            _ => None,
        });
        self.node.ping(&id, at(north), self.node.now(), 1);
    }

    /// Asks for a ride and waits until a round has looked for a car in vain.
    fn wait_in_vain(&mut self, rider: &str, north: f64) -> RideId {
        self.ask(rider, north);
        self.until(|event| match event {
            Event::SearchedInVain(e) => Some(e.ride),
            _ => None,
        })
    }

    fn ask(&mut self, rider: &str, north: f64) {
        self.say(Command::RequestRide {
            rider: RiderId::new(rider).unwrap(),
            key: IdempotencyKey::new("k1").unwrap(),
            pickup: at(north),
            dropoff: None,
            class: VehicleClass::Economy,
            zone: None,
            airport: None,
        });
    }

    fn offer(&self) -> OfferMade {
        self.until(|event| match event {
            Event::OfferMade(offer) => Some(offer.clone()),
            _ => None,
        })
    }
}

#[test]
fn another_policy_counts_from_the_next_round_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut city = City::open(dir.path(), EngineConfig::default());
    assert_eq!(city.node.policy(), PolicyKind::Batched);
    let far = city.wait_in_vain("far", 10.0);
    let near = city.wait_in_vain("near", 1.0);
    // One car for two: `batched` saves time, `first_come` keeps to the queue.
    city.online("d1", 0.0);
    assert_eq!(city.offer().ride, near);
    city.set(json!({ "policy": "first_come" }));
    assert_eq!(city.node.policy(), PolicyKind::FirstCome);
    city.wait_in_vain("nearer", 0.5);
    city.online("d2", 0.0);
    assert_eq!(city.offer().ride, far);
    city.node.stop().unwrap();
    drop(city);

    // It is in the log: a node that comes back goes on so, until the desk lets the configuration count again.
    let mut city = City::open(dir.path(), EngineConfig::default());
    let market = city.node.market();
    assert_eq!(
        (market.seq, market.rules.policy),
        (1, PolicyKind::FirstCome)
    );
    city.set(json!({}));
    assert_eq!(city.node.policy(), PolicyKind::Batched);
    city.node.stop().unwrap();
}

/// A nearer car comes free while another is on the way; the policy changes to `rematch` only then.
#[test]
fn a_swap_over_a_node_names_both_drivers_and_what_it_gains() {
    let dir = tempfile::tempdir().unwrap();
    let mut city = City::open(dir.path(), EngineConfig::default());
    city.online("slow", 15.0);
    city.ask("r1", 0.0);
    let offer = city.offer();
    city.say(Command::AcceptOffer {
        hold: HoldId {
            ride: offer.ride,
            attempt: offer.attempt,
        },
        driver: driver("slow"),
    });
    city.until(|event| match event {
        Event::DriverAssigned(e) if e.driver == driver("slow") => Some(()),
        _ => None,
    });
    city.online("quick", 5.0);
    city.set(json!({
        "policy": "rematch",
        "swaps": { "every_ms": 1_000, "gain_min_ms": 60_000 },
    }));
    let swap = city.until(|event| match event {
        Event::DriverReassigned(e) => Some(e.clone()),
        _ => None,
    });
    assert_eq!(
        (swap.before, swap.driver.clone(), swap.instead_of),
        (driver("slow"), driver("quick"), None)
    );
    // Ten steps of 111 m at 6 m/s.
    assert!((180..=190).contains(&swap.gained_s), "{}", swap.gained_s);
    city.until(|event| match event {
        Event::DriverReleased(e) if e.driver == driver("slow") => Some(()),
        _ => None,
    });
    // Both phones read the same of it.
    let view = city.node.ride(swap.ride).expect("the ride is known");
    let told = view.swap.as_ref().expect("the swap is told");
    assert_eq!(
        (&told.before, told.gained_s),
        (&driver("slow"), swap.gained_s)
    );
    assert_eq!(view.driver, Some(driver("quick")));
    city.node.stop().unwrap();
}

#[test]
fn rides_that_want_the_same_car_wait_for_each_other_as_long_as_configured() {
    let dir = tempfile::tempdir().unwrap();
    let mut engine = EngineConfig::default();
    engine.pace.most_ms = 800;
    let mut city = City::open(dir.path(), engine);
    city.wait_in_vain("far", 10.0);
    // Its round begins 800 ms after the first one's, and the round of both as long after that.
    let began = Instant::now();
    let near = city.wait_in_vain("near", 1.0);
    city.online("d1", 0.0);
    assert_eq!(city.offer().ride, near);
    let waited = began.elapsed();
    assert!(waited >= Duration::from_millis(1_300), "{waited:?}");
    city.node.stop().unwrap();
}

/// The road network hangs: it takes connections and never answers.
#[test]
fn the_commit_loop_never_waits_for_roads() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let config = NodeConfig {
        roads: RoadsConfig {
            url: format!("http://{}", silent.local_addr().unwrap()),
            wait_ms: 3_000,
            answer_ms: 60_000,
            ..RoadsConfig::default()
        },
        ..NodeConfig::default()
    };
    let mut city = City::with(dir.path(), config, EngineConfig::default());
    city.online("d1", 0.0);
    let began = Instant::now();
    city.ask("r1", 1.0);
    // While the round waits for the roads, others are served.
    for n in 0..20 {
        city.online(&format!("busy{n}"), 40.0);
    }
    let others = began.elapsed();
    assert!(others < Duration::from_millis(3_000), "{others:?}");
    // And it does not wait for ever.
    let offer = city.offer();
    assert_eq!(offer.driver, driver("d1"));
    assert!(
        began.elapsed() >= Duration::from_millis(3_000),
        "it did not ask"
    );
    city.node.stop().unwrap();
}

/// What was asked before a node began, or of another one, is no concern of it; a node that reads it back from the states leaves, too.
#[test]
fn a_node_is_told_to_leave_once_and_only_by_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let mut city = City::open(dir.path(), EngineConfig::default());
    let told = Arc::new(AtomicU32::new(0));
    let drain = |city: &mut City, node: &str| {
        let node = NodeName::new(node).unwrap();
        city.say(Command::DrainNode { node });
        city.until(|event| matches!(event, Event::CommandOutcome(_)).then_some(()));
    };
    let hear = |city: &City| {
        let told = told.clone();
        city.node.on_drain("n1", move || {
            told.fetch_add(1, Ordering::SeqCst);
        });
    };
    // The clock counts ms: what is asked from now on is later than what was asked before.
    let tick = |city: &City| {
        let before = city.node.now();
        while city.node.now() <= before {
            std::thread::yield_now();
        }
    };
    drain(&mut city, "n1");
    tick(&city);
    hear(&city);
    tick(&city);
    drain(&mut city, "n2");
    assert_eq!(told.load(Ordering::SeqCst), 0, "another node, or long ago");
    // Events are told after what they change was heeded.
    drain(&mut city, "n1");
    assert_eq!(told.load(Ordering::SeqCst), 1);
    drain(&mut city, "n1");
    assert_eq!(told.load(Ordering::SeqCst), 1, "once is enough");
    city.node.stop().unwrap();
    drop(city);

    let city = City::open(dir.path(), EngineConfig::default());
    hear(&city);
    assert_eq!(told.load(Ordering::SeqCst), 1, "a new node of the old name");
    city.node.stop().unwrap();
}
