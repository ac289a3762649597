//! More shards while everything goes on (PROTOCOL 30): nobody is lost, doubled or left behind.

use cabrank_events::SessionId;
use cabrank_events::command::{EntityId, Growth, GrowthStep};
use cabrank_matcher::NodeConfig;
use cabrank_matcher::api::Past;

use super::*;

const GROWN: u16 = 8;

/// Somebody who wants more shards, and how far that is.
struct Operator {
    said: Option<GrowthStep>,
    reached: Option<GrowthStep>,
}

impl Operator {
    fn new() -> Operator {
        Operator {
            said: None,
            reached: None,
        }
    }

    fn hear(&mut self, event: &Committed) {
        if let Event::RingGrows(grows) = &event.record.event {
            let growth = Growth {
                from: SHARDS,
                to: GROWN,
            };
            assert_eq!(grows.growth, growth);
            self.reached = Some(grows.step);
        }
    }

    /// The next step, if the one before it is reached.
    fn go_on(&mut self, cluster: &mut Cluster) {
        let next = match (self.said, self.reached) {
            (None, _) => GrowthStep::Announced,
            (Some(GrowthStep::Announced), Some(GrowthStep::Announced)) => {
                cluster.home.grow(GROWN);
                for shard in SHARDS..GROWN {
                    cluster.give(shard, usize::from(shard) % cluster.nodes.len());
                }
                for shard in SHARDS..GROWN {
                    cluster.settle(shard, usize::from(shard) % cluster.nodes.len());
                }
                GrowthStep::Begun
            }
            _ => return,
        };
        self.said = Some(next);
        let command = Command::GrowRing {
            to: GROWN,
            step: next,
        };
        cluster.submit("ops/alice", command);
    }
}

#[test]
fn a_city_gets_more_shards_while_it_works_and_nothing_is_lost_or_doubled() {
    const RIDES: usize = 240;
    const GROWS_FROM: usize = 60;
    for (seed, moves_every) in [(1, usize::MAX), (2, 5)] {
        let mut rng = SmallRng::seed_from_u64(seed);
        let (mut cluster, drivers, ears) = Cluster::working();
        let places = cluster.places();
        let mut operator = Operator::new();
        let mut rides = Rides::default();
        let mut deadline = Instant::now() + PATIENCE;
        let mut asked = 0;
        while rides.ended.len() < RIDES || !rides.wishes.is_empty() {
            // Few enough at once that nobody waits too long for a car.
            while asked < RIDES && asked < rides.ended.len() + 16 {
                let at = places[asked % places.len()];
                rides
                    .wishes
                    .insert(cluster.request(&format!("r{asked}"), at));
                asked += 1;
                if asked >= GROWS_FROM {
                    operator.go_on(&mut cluster);
                }
                if asked % moves_every == 0 {
                    let shards = cluster.home.shards();
                    let (shard, to) = (rng.random_range(0..shards), rng.random_range(0..3));
                    cluster.give(shard, to);
                }
            }
            match ears.heard.recv_timeout(Duration::from_millis(200)) {
                Ok(event) => {
                    operator.hear(&event);
                    rides.hear(&event);
                    deadline = Instant::now() + PATIENCE;
                }
                Err(_) => {
                    operator.go_on(&mut cluster);
                    for (driver, at) in &drivers {
                        cluster.ping(driver, *at);
                    }
                }
            }
            assert!(
                Instant::now() < deadline,
                "seed {seed}: {} of {RIDES} rides ended; {}",
                rides.ended.len(),
                cluster.describe(&rides)
            );
        }
        while operator.reached != Some(GrowthStep::Settled) {
            operator.go_on(&mut cluster);
            let wait = Duration::from_millis(200);
            ears.heard
                .recv_timeout(wait)
                .iter()
                .for_each(|event| operator.hear(event));
            assert!(Instant::now() < deadline, "seed {seed}: it never settles");
        }
        until("all messages have arrived", || {
            (0..GROWN)
                .all(|shard| cluster.home.pending(shard).is_empty())
                .then_some(())
        });
        assert_eq!(rides.acknowledged.len(), RIDES);
        assert_eq!(rides.acknowledged, rides.ended, "seed {seed}");
        let is_new = |ride: &&RideId| ride.place.0 >= SHARDS;
        assert!(
            rides.acknowledged.iter().any(|ride| is_new(&ride)),
            "rides go to new shards"
        );
        let moved = everybody_is_at_home(&cluster);
        assert!(moved > 0, "people go to new shards");
        // Whoever asks either gateway is told the same of everybody, wherever they live by now.
        for (driver, at) in &drivers {
            until("both gateways know the driver", || {
                let views = cluster
                    .gateways
                    .iter()
                    .map(|gateway| gateway.driver(driver));
                let views: Vec<_> = views.flatten().collect();
                (views.len() == 2 && views[0] == views[1] && views[0].session.is_some())
                    .then_some(())
            });
            cluster.ping(driver, *at);
        }
        // Also of what they did before they moved.
        for (driver, _) in &drivers {
            let entity = EntityId::Driver(driver.clone());
            let history = cluster.gateways[0].history(&entity, 10_000).unwrap();
            let is_begin = |past: &Past| !past.is_command && is_online(&past.json);
            assert_eq!(history.past.iter().filter(|past| is_begin(past)).count(), 1);
            assert!(!history.is_cut, "{driver}");
        }
        cluster.audit(&rides.acknowledged);
        cluster.stop();
    }
}

fn is_online(json: &[u8]) -> bool {
    let record = cabrank_events::EventRecord::from_json(json).unwrap();
    matches!(record.event, Event::DriverOnline(_))
}

#[test]
fn nobody_who_gives_signs_of_life_is_silent_because_the_ring_grows() {
    const SILENT: Duration = Duration::from_millis(3_000);
    let mut cluster = Cluster::start_with(
        2,
        1,
        NodeConfig {
            ping_ttl_ms: SILENT.as_millis() as i64,
            silent_after_ms: SILENT.as_millis() as i64,
            ..NodeConfig::default()
        },
    );
    let ears = ears(&cluster.gateways[0]);
    let place = cluster.places()[0];
    let drivers: Vec<DriverId> = (0..24).map(driver).collect();
    for driver in &drivers {
        cluster.online(driver, place);
    }
    let mut operator = Operator::new();
    // They stand still: from now on only their home hears of them, which is another node's shard for half of those who move.
    let began = Instant::now();
    let mut next_signs = began;
    let mut settled_at = None;
    until(
        "the ring has grown, and all could have been missed since",
        || {
            if Instant::now() >= next_signs {
                next_signs += SILENT / 2;
                for driver in &drivers {
                    cluster.gateways[0].sign_of_life(driver, SessionId(1));
                }
            }
            for event in ears.heard.try_iter() {
                operator.hear(&event);
                let left = matches!(event.record.event, Event::DriverOffline(_));
                assert!(!left, "{:?}", event.record.event);
            }
            if began.elapsed() > SILENT * 7 / 4 {
                operator.go_on(&mut cluster);
            }
            if operator.reached == Some(GrowthStep::Settled) {
                settled_at.get_or_insert_with(Instant::now);
            }
            settled_at.filter(|at| at.elapsed() > SILENT)
        },
    );
    assert!(
        everybody_is_at_home(&cluster) > 0,
        "people go to new shards"
    );
    cluster.stop();
}

/// How many people live in new shards; all of them, and all others, where the ring says.
fn everybody_is_at_home(cluster: &Cluster) -> usize {
    let ring = Ring::new(GROWN).unwrap();
    let mut moved = 0;
    for shard in 0..GROWN {
        for (key, _) in cluster.home.snapshot(shard).unwrap().states {
            let entity: EntityId = std::str::from_utf8(&key).unwrap().parse().unwrap();
            let home = match &entity {
                EntityId::Driver(id) => {
                    ring.shard_of_person(cabrank_ring::Kind::Driver, id.as_str())
                }
                EntityId::Rider(id) => ring.shard_of_person(cabrank_ring::Kind::Rider, id.as_str()),
                EntityId::Ride(_) | EntityId::Market => continue,
            };
            assert_eq!(home, shard, "{entity}");
            moved += usize::from(shard >= SHARDS);
        }
    }
    moved
}
