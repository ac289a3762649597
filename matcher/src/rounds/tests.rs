//! Rounds on a small map: who is left out, what a pair costs, when a round is put off.

use cabrank_engine::EngineConfig;
use cabrank_engine::driver::{Driver, Held, Presence};
use cabrank_engine::matching::PolicyKind;
use cabrank_engine::matching::price::Prices;
use cabrank_events::event::{DeclinedBecause, DriverAssigned, OfferDeclined};
use cabrank_events::{ClassSet, Event, HoldId, Place, SessionId, ShardId};
use cabrank_geo::Placement;

use super::*;

const START: Time = Time(1_700_000_000_000);
/// At 6 m/s along the straight line: some 19 s.
const STEP: f64 = 0.001;

struct Town {
    solver: Solver,
    /// Who brings a rider to how many steps north of the middle.
    brings: Vec<(&'static str, f64)>,
    rules: Arc<DispatchRules>,
    rides: u64,
}

fn at(north: f64) -> Point {
    Point::new(37.77 + north * STEP, -122.42).expect("on the map")
}

fn id(name: &str) -> DriverId {
    DriverId::new(name).expect("a good id")
}

impl Town {
    fn new(change: impl FnOnce(&mut EngineConfig)) -> Town {
        let mut engine = EngineConfig::default();
        change(&mut engine);
        engine.check().expect("sound settings");
        Town {
            solver: Solver {
                people: Arc::new(People::new(1_000)),
                config: NodeConfig::default(),
                promises: Mutex::default(),
                others: Mutex::default(),
                roads: None,
            },
            rules: Arc::new(DispatchRules::configured(PolicyKind::Batched, &engine)),
            brings: Vec::new(),
            rides: 0,
        }
    }

    /// A free car, `north` steps from the middle.
    fn car(&self, name: &str, north: f64, now: Time, change: impl FnOnce(&mut Driver)) {
        let mut driver = Driver::unseen(id(name), now.0 as u64);
        driver.session = SessionId(1);
        driver.presence = Presence::Online {
            classes: ClassSet::default(),
        };
        change(&mut driver);
        let people = &self.solver.people;
        people.committed(&driver, now).expect("room for it");
        let placement = Placement {
            at: at(north),
            time_ms: now.0,
            seq: 1,
        };
        people.ping(&driver.id, placement, now);
    }

    fn ride(&mut self, north: f64, since: Time) -> Asking {
        self.rides += 1;
        let ride = RideId {
            place: ShardId(0),
            minted_by: ShardId(0),
            offset: self.rides,
        };
        Asking {
            ask: RideAsk {
                ride,
                version: 1,
                since,
            },
            rider: RiderId::new(&format!("r{}", self.rides)).expect("a good id"),
            pickup: at(north),
            dropoff: None,
            radius_m: 5_000,
            class: VehicleClass::Economy,
            airport: None,
            asked: BTreeSet::new(),
            avoid: BTreeMap::new(),
        }
    }

    fn finishing(&self) -> Vec<Finishing> {
        let brings = self.brings.iter().map(|(name, north)| Finishing {
            driver: id(name),
            dropoff: at(*north),
        });
        brings.collect()
    }

    fn look(&self, rides: Vec<Asking>, now: Time, last_round: Option<Time>) -> Solved {
        self.look_beside(OtherRides::default(), rides, now, last_round)
    }

    fn look_beside(
        &self,
        others: OtherRides,
        rides: Vec<Asking>,
        now: Time,
        last_round: Option<Time>,
    ) -> Solved {
        self.solver.solve(Job {
            now,
            rules: Arc::clone(&self.rules),
            rides,
            going: Vec::new(),
            others,
            finishing: self.finishing(),
            last_round,
        })
    }

    /// Ride number and car of each pair.
    fn pairs(&self, rides: Vec<Asking>, now: Time) -> Vec<(u64, String)> {
        match self.look(rides, now, None) {
            Solved::Round(done) => {
                let pairs = done.result.pairs.iter();
                let told = pairs.map(|pair| (pair.ride.offset, pair.driver.to_string()));
                told.collect()
            }
            Solved::PutOff { .. } => panic!("nobody asked to put it off"),
        }
    }

    fn car_for_one(&mut self, now: Time) -> Option<String> {
        let ride = self.ride(0.0, now);
        let pairs = self.pairs(vec![ride], now);
        pairs.into_iter().next().map(|(_, car)| car)
    }
}

fn anyone(_: &mut Driver) {}

#[test]
fn a_driver_who_is_kept_apart_from_the_rider_is_no_candidate() {
    let mut town = Town::new(|_| {});
    town.car("near", 1.0, START, |driver| {
        driver
            .blocked
            .insert(RiderId::new("r1").expect("a good id"));
    });
    town.car("far", 5.0, START, anyone);
    // The first ride's rider is r1, the second one's r2.
    assert_eq!(town.car_for_one(START).as_deref(), Some("far"));
    assert_eq!(town.car_for_one(START).as_deref(), Some("near"));
    // Once nobody is kept apart any more nobody is left out.
    town.car("near", 1.0, START.plus_ms(1), anyone);
    assert!(!town.solver.people.hints.anybody_blocks());
    town.solver.people.forget(&id("near"));
    assert_eq!(town.car_for_one(START).as_deref(), Some("far"));
}

#[test]
fn who_has_been_idle_for_long_is_asked_first_if_that_counts() {
    let later = START.plus_ms(20_000);
    for (idle_per_mille, who) in [(0, "near"), (10_000, "idle")] {
        let mut town = Town::new(|engine| {
            engine.prices.idle_per_mille = idle_per_mille;
            engine.prices.idle_max_s = 600;
        });
        town.car("idle", 3.0, START, anyone);
        town.car("near", 1.0, later, anyone);
        assert_eq!(town.car_for_one(later).as_deref(), Some(who));
    }
}

#[test]
fn who_turns_offers_down_is_asked_later_if_that_counts() {
    let mut town = Town::new(|engine| engine.prices.decline_s = 300);
    town.car("proud", 1.0, START, anyone);
    town.car("keen", 3.0, START, anyone);
    assert_eq!(town.car_for_one(START).as_deref(), Some("proud"));
    let ride = town.ride(0.0, START).ask.ride;
    let declined = Event::OfferDeclined(OfferDeclined {
        ride,
        ride_seq: 4,
        driver: id("proud"),
        attempt: 1,
        why: DeclinedBecause::Declined,
    });
    town.solver.people.hear(&declined);
    town.solver.people.hear(&declined);
    assert_eq!(town.car_for_one(START).as_deref(), Some("keen"));
    // Who takes rides again is forgiven.
    for _ in 0..10 {
        town.solver
            .people
            .hear(&Event::DriverAssigned(DriverAssigned {
                ride,
                ride_seq: 4,
                driver: id("proud"),
                attempt: 1,
                hold_number: 1,
                arrive_by: START,
            }));
    }
    assert_eq!(town.car_for_one(START).as_deref(), Some("proud"));
}

#[test]
fn better_cars_are_kept_for_who_asks_for_them() {
    let both = [VehicleClass::Economy, VehicleClass::Comfort];
    for (upgrade_s, who) in [(0, "comfort"), (60, "plain")] {
        let mut town = Town::new(|engine| engine.prices.upgrade_s = upgrade_s);
        town.car("comfort", 1.0, START, |driver| {
            let classes = ClassSet::of(&both).expect("two classes");
            driver.presence = Presence::Online { classes };
        });
        town.car("plain", 3.0, START, anyone);
        assert_eq!(town.car_for_one(START).as_deref(), Some(who));
    }
}

#[test]
fn who_is_on_the_way_home_gets_the_ride_that_leads_there() {
    for (homewards_s, who) in [(0, "near"), (120, "homewards")] {
        let mut town = Town::new(|engine| engine.prices.homewards_s = homewards_s);
        town.car("near", 1.0, START, anyone);
        town.car("homewards", 3.0, START, |driver| {
            driver.heading = Some(Place(at(40.0)))
        });
        let mut ride = town.ride(0.0, START);
        ride.dropoff = Some(at(30.0));
        let pairs = town.pairs(vec![ride], START);
        assert_eq!(pairs, [(1, who.to_owned())]);
        // The other way, or nobody knows where to.
        for dropoff in [Some(at(-30.0)), None] {
            let mut ride = town.ride(0.0, START);
            ride.dropoff = dropoff;
            assert_eq!(town.pairs(vec![ride], START)[0].1, "near");
        }
    }
}

/// The one who brings somebody is 2 steps (37 s) from the drop-off, and that is 1 step from the pickup; the free car is 10
/// steps (185 s) away.
#[test]
fn a_ride_waits_for_a_car_that_is_soon_free_and_near_but_not_for_ever() {
    let town = |forward_s| {
        let mut town = Town::new(|engine| engine.prices.forward_s = forward_s);
        town.car("free", -10.0, START, anyone);
        town.car("brings", 3.0, START, |driver| {
            let ride = RideId {
                place: ShardId(0),
                minted_by: ShardId(0),
                offset: 99,
            };
            let hold = HoldId { ride, attempt: 1 };
            driver.held = Some(Held { hold, number: 7 });
        });
        town.brings = vec![("brings", 1.0)];
        town
    };
    assert_eq!(town(0).car_for_one(START).as_deref(), Some("free"));
    assert_eq!(town(120).car_for_one(START), None, "it waits");
    // Too far from the end of its ride to count.
    assert_eq!(town(30).car_for_one(START).as_deref(), Some("free"));
    // Whoever has waited as long takes what there is.
    let mut late = town(120);
    let ride = late.ride(0.0, Time(START.0 - 120_000));
    assert_eq!(late.pairs(vec![ride], START)[0].1, "free");
    // The free car is better.
    let mut near = town(120);
    near.car("free", -1.0, START.plus_ms(1), anyone);
    assert_eq!(near.car_for_one(START.plus_ms(1)).as_deref(), Some("free"));
    // Free at last.
    let mut free = town(120);
    free.car("brings", 1.0, START.plus_ms(1), anyone);
    free.brings.clear();
    assert_eq!(
        free.car_for_one(START.plus_ms(1)).as_deref(),
        Some("brings")
    );
}

#[test]
fn far_pickups_are_refused_when_cars_are_scarce() {
    let mut town = Town::new(|engine| engine.prices.scarce_drive_max_s = 60);
    town.car("far", 10.0, START, anyone);
    let one = vec![town.ride(0.0, START)];
    assert_eq!(town.pairs(one, START).len(), 1);
    let two = vec![town.ride(0.0, START), town.ride(1.0, START)];
    assert_eq!(town.pairs(two, START), []);
}

/// One car comes free every 20 s in the middle of town, where a new rider stands each time; another rider is far away.
/// Gives how long the longest of all waits is.
fn longest_wait_s(prices: Prices) -> i64 {
    const EVERY_MS: u64 = 20_000;
    const TURNS: u64 = 60;
    let mut town = Town::new(|engine| engine.prices = prices);
    // Steps to the north and since when.
    let mut waiting: Vec<(u64, f64, Time)> = vec![(1, 10.0, START)];
    let (mut next, mut longest_ms) = (2, 0);
    for turn in 0..TURNS {
        let now = START.plus_ms(turn * EVERY_MS);
        waiting.push((next, 0.0, now));
        next += 1;
        town.car("only", 0.0, now, anyone);
        let rides = waiting.iter().map(|(offset, north, since)| {
            town.rides = offset - 1;
            town.ride(*north, *since)
        });
        let rides = rides.collect();
        let pairs = town.pairs(rides, now);
        let (served, _) = pairs.first().expect("the car serves somebody");
        let place = waiting.iter().position(|(offset, ..)| offset == served);
        let (_, _, since) = waiting.remove(place.expect("one of those who wait"));
        longest_ms = longest_ms.max(now.since(since));
    }
    let end = START.plus_ms(TURNS * EVERY_MS);
    let still = waiting.iter().map(|(_, _, since)| end.since(*since));
    longest_ms.max(still.max().unwrap_or(0)) / 1_000
}

#[test]
fn nobody_starves_where_the_age_of_waiting_counts() {
    // 1,110 m at 6 m/s.
    let way_s = 186;
    assert_eq!(longest_wait_s(Prices::default()), 60 * 20, "for ever");
    for age_per_mille in [500, 1_000, 4_000] {
        let longest_s = longest_wait_s(Prices {
            age_per_mille,
            ..Prices::default()
        });
        // Age outweighs the way after so long; one car serves one rider a turn, so one turn more for the one who waited.
        let bound_s = way_s * 1_000 / i64::from(age_per_mille) + 2 * 20;
        assert!(longest_s <= bound_s, "{longest_s} > {bound_s}");
    }
}

#[test]
fn rides_that_want_the_same_cars_wait_for_each_other_within_bounds() {
    let mut town = Town::new(|engine| engine.pace.most_ms = 8_000);
    town.car("a", 1.0, START, anyone);
    town.car("b", 1.5, START, anyone);
    let now = START.plus_ms(3_000);
    let contested = |town: &mut Town| vec![town.ride(0.0, now), town.ride(0.5, now)];
    let rides = contested(&mut town);
    let Solved::PutOff { rides, until } = town.look(rides, now, Some(START)) else {
        panic!("both want the same car: that is worth a wait");
    };
    assert_eq!((rides.len(), until), (2, START.plus_ms(8_000)));
    // One who has a car of their own ends the wait of all; so does the end of the longest wait.
    town.car("c", 20.0, START, anyone);
    let mut rides = contested(&mut town);
    rides.push(town.ride(19.0, now));
    let at_once = |solved| matches!(solved, Solved::Round(done) if done.result.pairs.len() >= 2);
    assert!(at_once(town.look(rides, now, Some(START))));
    let rides = contested(&mut town);
    assert!(at_once(town.look(rides, until, Some(START))));
    let rides = contested(&mut town);
    assert!(at_once(town.look(rides, now, None)));
}

#[test]
fn a_round_that_takes_too_many_steps_gives_the_best_it_has_and_says_so() {
    let round = |steps_max: u64| {
        let mut town = Town::new(|_| {});
        town.solver.config.round_steps_max = steps_max;
        for n in 0..30_u8 {
            town.car(&format!("c{n}"), f64::from(n % 7) / 2.0, START, anyone);
        }
        let rides = (0..30).map(|n| town.ride(f64::from(n % 11) / 3.0, START));
        let rides = rides.collect();
        match town.look(rides, START, None) {
            Solved::Round(done) => done.result,
            Solved::PutOff { .. } => panic!("nobody asked to put it off"),
        }
    };
    let (cut, whole) = (round(1), round(5_000_000));
    assert_eq!((cut.exhausted, whole.exhausted), (true, false));
    // Whoever it served has a car of their own.
    let cars: HashSet<&DriverId> = cut.pairs.iter().map(|pair| &pair.driver).collect();
    assert_eq!((cars.len(), cut.looked.len()), (cut.pairs.len(), 30));
    assert!(!cut.pairs.is_empty() && cut.pairs.len() <= whole.pairs.len());
}

#[test]
fn a_car_is_left_to_a_nearer_rider_of_another_node_but_not_for_ever() {
    let mut town = Town::new(|_| {});
    let ours = town.ride(5.0, START);
    let mut theirs = town.ride(1.0, START);
    theirs.ask.ride.place = ShardId(1);
    let is_ours = |theirs: &Asking, after_ms: u64| {
        let now = START.plus_ms(after_ms);
        town.car("cab", 0.0, now, anyone);
        let others = OtherRides {
            waiting: vec![theirs.clone()],
            going: Vec::new(),
        };
        let Solved::Round(done) = town.look_beside(others, vec![ours.clone()], now, None) else {
            panic!("nobody asked to put it off");
        };
        assert_eq!(done.rides, [ours.ask.ride], "only these are decided");
        let pairs = done.result.pairs.iter();
        let rides: Vec<RideId> = pairs.map(|pair| pair.ride).collect();
        assert_eq!(rides.len(), 1);
        rides == [ours.ask.ride]
    };
    assert!(!is_ours(&theirs, 0));
    assert!(!is_ours(&theirs, 30_000));
    // The other node had its chance.
    assert!(is_ours(&theirs, 30_001));
    // Something has happened there: it may be that it wants a car now.
    theirs.ask.version = 2;
    assert!(!is_ours(&theirs, 30_002));
}
