//! Evenings of an invented town: what must be true of every simulated day.

use cabrank_engine::EngineConfig;
use cabrank_engine::matching::PolicyKind;
use cabrank_events::{DriverId, Time};
use cabrank_geo::Point;
use cabrank_simulate::contender::Contender;
use cabrank_simulate::dispatch::{NodeRules, Scope};
use cabrank_simulate::rounds::RoundRules;
use cabrank_simulate::scene::{Scene, Shift, Wish};
use cabrank_simulate::tally::{Day, Outcome, Wall};
use cabrank_simulate::world::{Habits, Speeds, play};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// 15 km/h.
const SPEED_MPS: f64 = 15.0 / 3.6;
const BEGINS: Time = Time(1_211_500_000_000);

fn middle() -> Point {
    Point::new(37.77, -122.42).unwrap()
}

/// A town of some 6 km: most riders start in its middle and go anywhere, so cars end up where few ask.
fn town(seed: u64, rides: usize, cars: usize) -> Scene {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut place = |reach_m: f64| {
        let mut along = || (rng.random::<f64>() + rng.random::<f64>() - 1.0) * reach_m;
        let (north, east) = (along(), along());
        middle().offset_m(north, east)
    };
    let mut wishes: Vec<Wish> = (0..rides)
        .map(|_| Wish {
            at: BEGINS,
            pickup: place(2_000.0),
            dropoff: Some(place(3_500.0)),
            ride_ms: None,
            patience_ms: None,
        })
        .collect();
    let cars = (0..cars)
        .map(|n| Shift {
            driver: DriverId::new(&format!("cab-{n:03}")).unwrap(),
            start: place(3_500.0),
            from: BEGINS,
            until: None,
        })
        .collect();
    for wish in &mut wishes {
        wish.at = BEGINS.plus_ms(rng.random_range(0..3_600_000));
    }
    wishes.sort_by_key(|wish| wish.at);
    Scene {
        wishes,
        cars,
        bad_rows: 0,
    }
}

fn rules() -> NodeRules {
    let radius_m = (900.0 * SPEED_MPS) as u32;
    let engine = EngineConfig {
        radius_first_m: radius_m,
        radius_max_m: radius_m,
        ..EngineConfig::default()
    };
    NodeRules {
        rounds: RoundRules {
            policy: PolicyKind::Batched,
            swaps: engine.swaps,
            candidates_max: 16,
            steps_max: 5_000_000,
            ping_ttl_ms: 60_000,
        },
        round_every_ms: 0,
        rides_per_round_max: 2_000,
        hops_max: 10_000,
        shards: 1,
        scope: Scope::Node,
        engine,
    }
}

fn obliging() -> Habits {
    Habits {
        accept: 1.0,
        answer_ms: 0,
        board_ms: 0,
        ping_every_ms: 10_000,
        speeds: Speeds::constant(SPEED_MPS),
    }
}

fn played(scene: &Scene, policy: &str, rules: &NodeRules, habits: &Habits, seed: u64) -> Day {
    let contender: Contender = policy.parse().unwrap();
    let rules = contender.rules(rules);
    play(scene, rules, habits, seed, true, &mut |_, _| ()).unwrap()
}

fn outcome(scene: &Scene, policy: &str, habits: &Habits, seed: u64) -> Outcome {
    let day = played(scene, policy, &rules(), habits, seed);
    Outcome {
        wall: Wall::default(),
        ..day.outcome(policy, seed, 0.0)
    }
}

#[test]
fn one_rider_waits_as_long_as_the_only_car_drives() {
    let pickup = middle().offset_m(1_000.0, 0.0);
    let dropoff = pickup.offset_m(0.0, 2_000.0);
    let scene = Scene {
        wishes: vec![Wish {
            at: BEGINS.plus_ms(60_000),
            pickup,
            dropoff: Some(dropoff),
            ride_ms: None,
            patience_ms: None,
        }],
        cars: vec![Shift {
            driver: DriverId::new("only").unwrap(),
            start: middle(),
            from: BEGINS,
            until: None,
        }],
        bad_rows: 0,
    };
    let habits = Habits {
        answer_ms: 10_000,
        board_ms: 5_000,
        ..obliging()
    };
    let day = played(&scene, "first_come", &rules(), &habits, 1);
    let drive_s = middle().distance_m(pickup) / SPEED_MPS;
    let wait_s = day.rides[0].wait_s().unwrap();
    // The answer takes 5 to 15 s.
    let beyond = wait_s - drive_s - 5.0;
    assert!((5.0..=15.01).contains(&beyond), "{wait_s} {drive_s}");
    let meter = day.cars[0];
    assert!((meter.empty_m - middle().distance_m(pickup)).abs() < 1.0);
    assert!((meter.paid_m - pickup.distance_m(dropoff)).abs() < 1.0);
    assert_eq!(meter.online_ms(), day.ends.since(BEGINS));
}

#[test]
fn the_same_scene_and_seed_give_the_same_day() {
    let scene = town(3, 150, 25);
    let habits = Habits {
        accept: 0.8,
        answer_ms: 4_000,
        ..obliging()
    };
    let once = outcome(&scene, "rematch:60", &habits, 5);
    assert_eq!(once, outcome(&scene, "rematch:60", &habits, 5));
    assert_ne!(once, outcome(&scene, "rematch:60", &habits, 6));
}

#[test]
fn nothing_promised_is_broken_under_any_policy_on_one_shard_or_on_eight() {
    let seed = 1;
    let mut scene = town(seed, 120, 25);
    let mut rng = SmallRng::seed_from_u64(seed);
    for wish in &mut scene.wishes {
        wish.patience_ms = rng
            .random_bool(0.2)
            .then(|| rng.random_range(10_000..400_000));
    }
    let habits = Habits {
        accept: 0.7,
        answer_ms: 6_000,
        board_ms: 20_000,
        ..obliging()
    };
    for policy in ["first_come", "greedy", "batched", "rematch:30"] {
        for (shards, scope) in [(1, Scope::Node), (8, Scope::Node), (8, Scope::Shard)] {
            let mut rules = rules();
            rules.shards = shards;
            rules.scope = scope;
            rules.engine.ownership_resolution = 7;
            let day = played(&scene, policy, &rules, &habits, seed);
            let audit = day.audit.as_ref().unwrap();
            let told = format!("seed {seed} {policy} {shards} shards {scope:?}: {audit}");
            assert!(
                audit.is_clean() && audit.rides == 120 && audit.open == 0,
                "{told}"
            );
            let outcome = day.outcome(policy, seed, 0.0);
            assert!(outcome.valid, "{told}");
            let ends = &outcome.rides;
            assert_eq!(
                ends.completed + ends.cancelled + ends.unfulfilled,
                120,
                "{told}"
            );
            assert!(ends.completed > 60 && ends.cancelled > 0, "{told}");
            assert!(outcome.offers_a_ride > 0.7, "{told}");
            let most = rules.engine.swaps.swaps_max;
            assert!(outcome.swaps_most <= most, "{told}");
            assert_eq!(
                outcome.swaps_a_ride > 0.0,
                policy.starts_with("rematch"),
                "{told}"
            );
        }
    }
}

#[test]
fn matching_again_until_the_pickup_waits_less_and_first_come_most() {
    let (mut first_come, mut batched, mut rematch) = (0.0, 0.0, 0.0);
    for seed in 1..=3 {
        let scene = town(seed, 200, 45);
        let wait = |policy: &str| {
            let outcome = outcome(&scene, policy, &obliging(), seed);
            assert!(outcome.served_percent > 60.0, "{outcome}");
            outcome.wait_s.mean
        };
        first_come += wait("first_come");
        batched += wait("batched");
        rematch += wait("rematch:60");
    }
    assert!(
        rematch < 0.95 * batched && batched < first_come,
        "{rematch} {batched} {first_come}"
    );
}

/// Few cars for many riders: one far away goes to whoever is nearer, and those left without wait less in the end.
#[test]
fn scarce_cars_that_may_be_given_up_let_riders_wait_less() {
    let (mut keeping, mut giving) = ((0.0, 0.0), (0.0, 0.0));
    for seed in 1..=3 {
        let scene = town(seed, 400, 25);
        let run = |give_up_from_ms: u64| {
            let mut rules = rules();
            rules.engine.swaps.give_up_from_ms = give_up_from_ms;
            let day = played(&scene, "rematch:60", &rules, &obliging(), seed);
            assert!(day.audit.as_ref().unwrap().is_clean(), "seed {seed}");
            let outcome = day.outcome("rematch:60", seed, 0.0);
            assert!(outcome.valid, "seed {seed}: {outcome}");
            (outcome.served_percent, outcome.wait_s.mean)
        };
        let (kept, given) = (run(0), run(60_000));
        keeping = (keeping.0 + kept.0, keeping.1 + kept.1);
        giving = (giving.0 + given.0, giving.1 + given.1);
    }
    assert!(
        giving.1 < 0.98 * keeping.1 && giving.0 > keeping.0 - 3.0,
        "(served, mean wait) of three evenings: {giving:?} {keeping:?}"
    );
}

/// Without the idle term the nearest car drives again and again while the one beside it stands.
#[test]
fn the_idle_term_shares_rides_more_evenly() {
    let scene = town(5, 200, 60);
    let gini = |idle_per_mille: u32| {
        let mut rules = rules();
        rules.engine.prices.idle_per_mille = idle_per_mille;
        rules.engine.prices.idle_max_s = 1_800;
        let day = played(&scene, "batched", &rules, &obliging(), 5);
        let outcome = day.outcome("batched", 5, 0.0);
        outcome.fleet.idle_gini
    };
    let (without, with) = (gini(0), gini(500));
    assert!(with < without, "{with} {without}");
}

/// Mean wait of the town's riders over some evenings.
fn mean_wait_s(policy: &str, shards: u16, scope: Scope) -> f64 {
    let waits = (1..=2).map(|seed| {
        let mut rules = rules();
        rules.shards = shards;
        rules.scope = scope;
        rules.engine.ownership_resolution = 7;
        let day = played(&town(seed, 240, 30), policy, &rules, &obliging(), seed);
        let outcome = day.outcome(policy, seed, 0.0);
        assert!(outcome.valid, "{policy} {scope:?} seed {seed}");
        outcome.wait_s.mean
    });
    waits.sum::<f64>() / 2.0
}

#[test]
fn a_city_on_many_nodes_waits_hardly_longer_if_they_look_at_each_others_rides() {
    let one = mean_wait_s("rematch:60", 1, Scope::Node);
    let apart = mean_wait_s("rematch:60", 8, Scope::Shard);
    let blind = mean_wait_s("rematch:60", 8, Scope::Blind);
    let told = format!("{one:.1} s on one shard, {apart:.1} s apart, {blind:.1} s blind");
    println!("{told}");
    assert!(apart <= one * 1.03, "{told}");
    assert!(blind >= one * 1.08, "{told}");
}
