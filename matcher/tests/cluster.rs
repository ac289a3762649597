//! Several nodes and gateways over one log whose shards move: nothing is lost or doubled, and who may not answer does not.

#[path = "cluster/city.rs"]
mod city;
#[path = "cluster/connections.rs"]
mod connections;
#[path = "cluster/growth.rs"]
mod growth;
mod support;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use cabrank_engine::matching::PolicyKind;
use cabrank_eventlog::{EventLog, OwnerRecord, Topic};
use cabrank_events::wire::NearCar;
use cabrank_events::{Command, DriverId, Event, Place, RideId, RiderId};
use cabrank_geo::Point;
use cabrank_matcher::api::{Committed, Dispatch, NotAnswered, Pinged};
use cabrank_ring::Ring;
use city::*;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde_json::json;
use support::{PATIENCE, until};

#[test]
fn shards_move_and_policies_change_while_the_city_works_and_nothing_is_lost_or_doubled() {
    const RIDES: usize = 240;
    const MOVE_EVERY: usize = 6;
    const SET_EVERY: usize = 7;
    for seed in [1, 2] {
        let mut rng = SmallRng::seed_from_u64(seed);
        let (mut cluster, drivers, ears) = Cluster::working();
        let places = cluster.places();
        let mut rides = Rides::default();
        let mut moves = 0;
        let mut policy = PolicyKind::default();
        for n in 0..RIDES {
            let at = places[n % places.len()];
            rides.wishes.insert(cluster.request(&format!("r{n}"), at));
            if n % MOVE_EVERY == 0 {
                let (shard, to) = (rng.random_range(0..SHARDS), rng.random_range(0..3));
                cluster.give(shard, to);
                moves += 1;
                // A node that takes over has its cars back when they ping the next time.
                for (driver, at) in &drivers {
                    cluster.ping(driver, *at);
                }
            }
            if n % SET_EVERY == 0 {
                policy = PolicyKind::ALL[rng.random_range(0..PolicyKind::ALL.len())];
                cluster.set(json!({ "policy": policy }));
            }
            if n % 16 == 15 {
                // Keeps the load below what makes waiting rides run out of time.
                let target = rides.ended.len() + 8;
                ears.until(&format!("seed {seed}: rides end"), |event| {
                    rides.hear(event);
                    (rides.ended.len() >= target.min(n)).then_some(())
                });
            }
        }
        let mut deadline = Instant::now() + PATIENCE;
        while rides.ended.len() < RIDES || !rides.wishes.is_empty() {
            match ears.heard.recv_timeout(Duration::from_millis(200)) {
                Ok(event) => {
                    rides.hear(&event);
                    deadline = Instant::now() + PATIENCE;
                }
                Err(_) => {
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
        assert_eq!(rides.acknowledged.len(), RIDES);
        assert_eq!(
            rides.acknowledged, rides.ended,
            "each acknowledged ride ended, no other"
        );
        assert!(moves >= RIDES / MOVE_EVERY);
        until("all messages have arrived", || {
            (0..SHARDS)
                .all(|shard| cluster.home.pending(shard).is_empty())
                .then_some(())
        });
        let same = |ride: &RideId| {
            let views = cluster.gateways.iter().map(|gateway| gateway.ride(*ride));
            let views: Vec<_> = views
                .flatten()
                .map(|view| (view.stage, view.ride_seq))
                .collect();
            views.len() == 2 && views[0] == views[1]
        };
        // Whoever owns the market's shard by now, and whichever shards each has had: all follow the last of them.
        until("every node and every gateway follows the desk", || {
            let nodes = cluster.nodes.iter().map(|node| node.node.policy());
            let gateways = cluster.gateways.iter();
            let shown = gateways.map(|gateway| gateway.market().rules.policy);
            nodes
                .chain(shown)
                .all(|follows| follows == policy)
                .then_some(())
        });
        until("both gateways show the same", || {
            rides.acknowledged.iter().all(same).then_some(())
        });
        cluster.audit(&rides.acknowledged);
        cluster.stop();
    }
}

#[test]
fn nearby_is_the_same_at_every_gateway_and_sees_over_the_border_of_a_shard() {
    let mut cluster = Cluster::start(2, 2);
    // A border between two shards of different nodes: a car stands on one side, a rider on the other.
    let start = Point::new(37.0, -122.4).unwrap();
    let at = |n: u32| Place(start.offset_m(f64::from(n) * 500.0, 0.0));
    let node_of = |cluster: &Cluster, place| cluster.shard_at(place) % 2;
    let step = (0..)
        .find(|n| node_of(&cluster, at(*n)) != node_of(&cluster, at(n + 1)))
        .unwrap();
    let (car, rider) = (at(step), at(step + 1));
    cluster.online(&driver(1), car);
    for gateway in 0..2 {
        for place in [car, rider] {
            let cars = until("the car is seen", || {
                cluster.nearby(gateway, place).ok().filter(|c| c.len() == 1)
            });
            assert!(cars[0].at.0.distance_m(car.0) < 1.0);
        }
        let position = until("the car's position is known", || {
            let answer = cluster.gateways[gateway].position(&driver(1));
            cluster.runtime.block_on(answer).ok().flatten()
        });
        assert!(position.at.0.distance_m(car.0) < 1.0);
    }
    // A ride on the other side gets the car, though its node does not own the car's place or person.
    drive(&cluster.gateways[0]);
    let ears = ears(&cluster.gateways[1]);
    cluster.request("ann", rider);
    ears.until("the ride over the border is driven", |event| {
        matches!(event.record.event, Event::RideCompleted(_)).then_some(())
    });
    cluster.stop();
}

#[test]
fn a_node_that_hangs_slows_no_ping_and_the_others_answer() {
    let mut cluster = Cluster::start(2, 1);
    let places = cluster.places();
    let hung_shard = cluster.shard_at(places[0]);
    let other = places
        .iter()
        .find(|place| cluster.shard_at(**place) % 2 != hung_shard % 2)
        .copied()
        .unwrap();
    for n in 0..50 {
        cluster.online(&driver(n), places[0]);
    }
    cluster.online(&driver(99), other);
    let sees_a_car = |cars: &Vec<NearCar>| !cars.is_empty();
    until("the other shard's car is seen", || {
        cluster.nearby(0, other).ok().filter(sees_a_car)
    });
    // Takes connections and never says a word.
    let hung = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = hung.local_addr().unwrap().to_string();
    cluster.home.announce(OwnerRecord {
        shard: hung_shard,
        epoch: 50,
        node: "hung".into(),
        address: address.clone(),
    });
    until("the hung node is believed", || {
        let owners = cluster.gateways[0].owners();
        owners
            .iter()
            .any(|owner| owner.address == address)
            .then_some(())
    });
    let began = Instant::now();
    for _ in 0..200 {
        for n in 0..50 {
            cluster.ping(&driver(n), places[0]);
        }
    }
    let took = began.elapsed();
    assert!(took < Duration::from_secs(5), "10,000 pings took {took:?}");
    assert_eq!(
        cluster.nearby(0, places[0]),
        Err(NotAnswered::NodeSilent),
        "nobody else may answer for the hung node"
    );
    assert!(sees_a_car(&cluster.nearby(0, other).unwrap()));
    cluster.stop();
}

#[test]
fn what_an_older_owner_says_is_thrown_away() {
    let mut cluster = Cluster::start(2, 1);
    let at = cluster.places()[0];
    let shard = cluster.shard_at(at);
    let (first, second) = (usize::from(shard) % 2, usize::from(shard + 1) % 2);
    cluster.online(&driver(1), at);
    until("the car is seen", || {
        cluster.nearby(0, at).ok().filter(|cars| cars.len() == 1)
    });
    cluster.give(shard, second);
    cluster.settle(shard, second);
    // The old owner's announcement arrives late.
    cluster.home.announce(OwnerRecord {
        shard,
        epoch: 1,
        node: "late".into(),
        address: cluster.nodes[first].address.to_string(),
    });
    cluster.ping(&driver(1), at);
    until("the new owner has the car and is asked", || {
        cluster.nearby(0, at).ok().filter(|cars| cars.len() == 1)
    });
    let second_address = cluster.nodes[second].address.to_string();
    let owners = cluster.gateways[0].owners();
    assert!(
        owners
            .iter()
            .any(|owner| owner.shard == shard && owner.address == second_address)
    );
    // A newer owner is known than the one who answers: its answer is no answer.
    cluster.home.announce(OwnerRecord {
        shard,
        epoch: 1_000,
        node: "newer".into(),
        address: second_address,
    });
    until("the older epoch's answer is thrown away", || {
        (cluster.nearby(0, at) == Err(NotAnswered::NoOwner)).then_some(())
    });
    cluster.stop();
}

#[test]
fn a_node_without_a_lease_answers_nothing() {
    let mut cluster = Cluster::start(1, 2);
    let at = cluster.places()[0];
    cluster.online(&driver(1), at);
    until("the car is seen", || {
        cluster.nearby(0, at).ok().filter(|cars| cars.len() == 1)
    });
    cluster.nodes[0].may_answer.store(false, Ordering::SeqCst);
    assert_eq!(cluster.nearby(0, at), Err(NotAnswered::NoOwner));
    let elsewhere = cluster.gateways[1].position(&driver(1));
    assert_eq!(
        cluster.runtime.block_on(elsewhere),
        Ok(None),
        "not even where a driver is"
    );
    cluster.nodes[0].may_answer.store(true, Ordering::SeqCst);
    assert_eq!(cluster.nearby(0, at).unwrap().len(), 1);
    cluster.stop();
}

#[test]
fn while_nobody_reaches_the_log_searches_go_on_and_say_that_nobody_vouches_for_them() {
    let mut cluster = Cluster::start(1, 1);
    let at = cluster.places()[0];
    cluster.online(&driver(1), at);
    until("the car is seen", || {
        let near = cluster.near(0, at).ok();
        near.filter(|near| near.cars.len() == 1 && !near.unconfirmed)
    });
    // The node alone loses the log: the gateway, which has it, takes no answer of it.
    cluster.nodes[0].may_answer.store(false, Ordering::SeqCst);
    assert_eq!(cluster.near(0, at), Err(NotAnswered::NoOwner));
    // Now nobody has it.
    cluster.home.tell_owners(false);
    let near = until("the gateway has missed the log for a second", || {
        cluster.near(0, at).ok()
    });
    assert!(near.unconfirmed);
    assert_eq!(near.cars.len(), 1);
    // The gateway has it again, the node not yet: then nobody has the shard, and that goes on until somebody says so.
    cluster.home.tell_owners(true);
    let told = cluster.home.owners_told();
    until("the gateway has looked again", || {
        (cluster.home.owners_told() > told + 1).then_some(())
    });
    assert!(cluster.near(0, at).unwrap().unconfirmed);
    cluster.nodes[0].may_answer.store(true, Ordering::SeqCst);
    assert!(!cluster.near(0, at).unwrap().unconfirmed);
    // Another node is the next owner: what the old one says does not count any more.
    cluster.nodes[0].may_answer.store(false, Ordering::SeqCst);
    cluster.home.announce_others();
    until("nothing unconfirmed is asked for", || {
        (cluster.near(0, at) == Err(NotAnswered::NoOwner)).then_some(())
    });
    cluster.stop();
}

#[test]
fn a_shard_that_cannot_be_read_does_not_stop_the_others() {
    let mut cluster = Cluster::start(2, 1);
    let places = cluster.places();
    let damaged = cluster.shard_at(places[0]);
    let to = usize::from(damaged + 1) % 2;
    let alive = places
        .iter()
        .find(|place| usize::from(cluster.shard_at(**place)) % 2 == to)
        .copied()
        .unwrap();
    // Somebody whose own shard is well, at a place that is well.
    let person = (0..)
        .map(driver)
        .find(|id| {
            let home = cluster
                .ring
                .shard_of_person(cabrank_ring::Kind::Driver, id.as_str());
            home != damaged
        })
        .unwrap();
    cluster.home.damage(damaged, true);
    cluster.give(damaged, to);
    until("the node says that it is not whole", || {
        (!cluster.nodes[to].node.is_ready()).then_some(())
    });
    cluster.online(&person, alive);
    until("the node serves its other shards", || {
        cluster.nearby(0, alive).ok().filter(|cars| cars.len() == 1)
    });
    assert_eq!(cluster.nearby(0, places[0]), Err(NotAnswered::NoOwner));
    cluster.home.damage(damaged, false);
    cluster.give(damaged, 1 - to);
    until("another node can take it when it is mended", || {
        cluster.nearby(0, places[0]).ok()
    });
    // A command that nobody understands: that shard stops, on any node, and no other does.
    let garbage = cluster
        .home
        .submit(damaged, "x".into(), "no command".into());
    garbage.unwrap();
    for to in [1 - to, to] {
        cluster.give(damaged, to);
        until("the node says that it is not whole", || {
            (!cluster.nodes[to].node.is_ready()).then_some(())
        });
    }
    let rider = (0..)
        .map(|n| format!("r{n}"))
        .find(|id| cluster.ring.shard_of_person(cabrank_ring::Kind::Rider, id) != damaged)
        .unwrap();
    let ears = ears(&cluster.gateways[0]);
    cluster.request(&rider, alive);
    ears.until("a ride elsewhere is offered", |event| {
        matches!(event.record.event, Event::OfferMade(_)).then_some(())
    });
    cluster.stop();
}

#[test]
fn a_gateway_that_starts_later_knows_what_the_others_know() {
    let mut cluster = Cluster::start(2, 1);
    let at = cluster.places()[0];
    let ears = ears(&cluster.gateways[0]);
    cluster.online(&driver(1), at);
    let id = cluster.request("ann", at);
    let ride = ears.until("the ride is open", |event| match &event.record.event {
        Event::CommandOutcome(e) if e.command == id => e.ride,
        _ => None,
    });
    ears.until("the driver is asked", |event| {
        matches!(&event.record.event, Event::OfferMade(e) if e.ride == ride).then_some(())
    });
    cluster.add_gateway();
    let (old, new) = (&cluster.gateways[0], &cluster.gateways[1]);
    let rider = RiderId::new("ann").unwrap();
    assert_eq!(new.ride_of(&rider), Some(ride));
    assert_eq!(new.ride(ride), old.ride(ride));
    assert_eq!(new.driver(&driver(1)), old.driver(&driver(1)));
    assert_eq!(new.offer_times(ride), old.offer_times(ride));
    cluster.stop();
}

#[test]
fn a_node_that_takes_over_knows_where_the_cars_were() {
    let mut cluster = Cluster::start(1, 1);
    let at = cluster.places()[0];
    let shard = cluster.shard_at(at);
    cluster.online(&driver(1), at);
    cluster.online(&driver(2), at);
    // It was not there when they pinged.
    cluster.add_node();
    cluster.give(shard, 1);
    cluster.settle(shard, 1);
    until("the cars are back without a ping", || {
        cluster.nearby(0, at).ok().filter(|cars| cars.len() == 2)
    });
    // It does not believe a position that is older than what it hears itself.
    let (here, now) = (Place(at.0.offset_m(300.0, 0.0)), cluster.clock.now());
    let later = now.plus_ms(10);
    assert_eq!(
        cluster.gateways[0].ping(&driver(1), here, later, 9),
        Pinged::Accepted
    );
    cluster.give(shard, 0);
    cluster.settle(shard, 0);
    until("the car is where it was last", || {
        let cars = cluster.nearby(0, at).ok()?;
        cars.iter()
            .any(|car| car.at.0.distance_m(here.0) < 1.0)
            .then_some(())
    });
    cluster.stop();
}

#[test]
fn a_partner_publishes_pings_and_what_is_no_ping_is_passed_over() {
    let mut cluster = Cluster::start(1, 1);
    let at = cluster.places()[0];
    cluster.online(&driver(1), at);
    let gateway = cluster.gateways[0].clone();
    let (say, heard) = sync_channel(100);
    gateway.read_partner_pings(move |driver, ping| say.send((driver.clone(), *ping)).unwrap());
    let publish = |value: &str| {
        let (key, value) = (b"d1".to_vec(), value.as_bytes().to_vec());
        cluster
            .home
            .publish(Topic::DriverPings, 2, key.into(), value.into());
    };
    // Reading begins at the end, wherever that is when it begins: published until it is heard.
    let first = until("a ping is heard", || {
        publish(r#"{"lat":37.5,"lon":-122.0,"seq":7}"#);
        heard.recv_timeout(Duration::from_millis(20)).ok()
    });
    assert_eq!((first.0, first.1.seq), (driver(1), 7));
    assert!(first.1.time.is_some(), "the time it was written");
    publish("no ping");
    publish(r#"{"lat":37.5,"lon":-122.0,"seq":8,"time":5}"#);
    let next = until("the next good one is heard", || {
        let (_, ping) = heard.recv_timeout(PATIENCE).unwrap();
        (ping.seq == 8).then_some(ping)
    });
    assert_eq!(next.time, Some(5));
    cluster.stop();
}

#[test]
fn a_map_at_one_gateway_shows_the_cars_that_ping_at_another() {
    let mut cluster = Cluster::start(2, 2);
    let places = cluster.places();
    let drivers: Vec<(DriverId, Place)> = (0..12)
        .map(|n| (driver(n), places[n % places.len()]))
        .collect();
    for (driver, at) in &drivers {
        // They ping at gateway 0 only.
        cluster.online(driver, *at);
    }
    let seen = |cluster: &Cluster, gateway: usize| {
        let mut seen = BTreeMap::new();
        cluster.gateways[gateway].each_driver(&mut |driver| {
            seen.insert(driver.id.clone(), driver.at.map(|position| position.at));
        });
        seen
    };
    let is_where = |places: &[(DriverId, Place)], seen: &BTreeMap<DriverId, Option<Place>>| {
        places
            .iter()
            .all(|(driver, at)| seen.get(driver) == Some(&Some(*at)))
    };
    until("the other gateway shows every car", || {
        is_where(&drivers, &seen(&cluster, 1)).then_some(())
    });
    let moved: Vec<(DriverId, Place)> = drivers
        .iter()
        .map(|(driver, at)| (driver.clone(), Place(at.0.offset_m(50.0, 50.0))))
        .collect();
    for (driver, at) in &moved {
        cluster.ping(driver, *at);
    }
    until("the other gateway shows where they are now", || {
        is_where(&moved, &seen(&cluster, 1)).then_some(())
    });
    cluster.stop();
}
