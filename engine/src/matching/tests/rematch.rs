//! Stories of cars that change rides, and the policy against an oracle that tries everything.

use super::*;

const SECOND: i64 = 1_000;

/// A ride on the way: who comes in how many seconds, and what others would need.
fn going(number: usize, driver: u32, remaining_s: i64, others: &[(u32, i64)]) -> OnTheWay {
    OnTheWay {
        ask: RideAsk {
            ride: ride(number),
            version: 7,
            since: Time(number as i64),
        },
        driver,
        remaining_ms: remaining_s * SECOND,
        promised_ms: remaining_s * SECOND,
        swaps: 0,
        lost: 0,
        candidates: cars(others),
    }
}

fn cars(list: &[(u32, i64)]) -> Vec<Candidate> {
    let candidate = |(driver, seconds): &(u32, i64)| Candidate {
        driver: *driver,
        cost: seconds * SECOND,
    };
    list.iter().map(candidate).collect()
}

fn drivers(count: usize) -> Vec<DriverId> {
    (0..count)
        .map(|n| DriverId::new(&format!("d{n:04}")).unwrap())
        .collect()
}

fn round_of(count: usize, on_the_way: Vec<OnTheWay>, waiting: &[(usize, &[(u32, i64)])]) -> Round {
    Round {
        rides: waiting
            .iter()
            .map(|(number, _)| RideAsk {
                ride: ride(*number),
                version: 1,
                since: Time(*number as i64),
            })
            .collect(),
        candidates: waiting.iter().map(|(_, list)| cars(list)).collect(),
        drivers: drivers(count),
        on_the_way,
        rules: SwapRules {
            give_up_from_ms: 0,
            late_ms: 0,
            ..SwapRules::default()
        },
        now: Time(0),
    }
}

/// "0<2 1<0": ride 0 gets driver 2, then ride 1 gets driver 0. Swaps first, then pairs.
fn told(result: &RoundResult) -> String {
    let number = |driver: &DriverId| driver.as_str()[1..].parse::<u32>().unwrap();
    let swaps = result.swaps.iter().map(|swap| {
        let moves = swap.moves.iter();
        let moves = moves.map(|next| format!("{}<{}", next.ride.offset, number(&next.driver)));
        let moves = moves.collect::<Vec<_>>().join(" ");
        match &swap.gives_up {
            Some(gives_up) => format!("{moves} from {}", gives_up.ride.offset),
            None => moves,
        }
    });
    let pairs = result.pairs.iter();
    let pairs = pairs.map(|pair| format!("{}={}", pair.ride.offset, number(&pair.driver)));
    swaps.chain(pairs).collect::<Vec<_>>().join("; ")
}

fn check_swaps(round: &Round, expected: &str) {
    let result = Rematch.solve(round, ENDLESS);
    assert_sound(round, &result, expected);
    assert_eq!(told(&result), expected);
}

#[test]
fn two_cars_that_cross_change_rides() {
    let round = round_of(
        2,
        vec![going(0, 0, 400, &[(1, 100)]), going(1, 1, 400, &[(0, 100)])],
        &[],
    );
    check_swaps(&round, "0<1 1<0");
}

#[test]
fn a_swap_pays_for_every_ride_that_changes() {
    let saves = |seconds: i64| {
        let (a, b) = (going(0, 0, 400, &[(1, 300)]), 500 - seconds);
        round_of(2, vec![a, going(1, 1, 400, &[(0, b)])], &[])
    };
    check_swaps(&saves(239), "");
    check_swaps(&saves(241), "0<1 1<0");
}

#[test]
fn a_free_car_that_is_much_nearer_takes_over() {
    let round = round_of(2, vec![going(0, 0, 400, &[(1, 100)])], &[]);
    check_swaps(&round, "0<1");
    let near_enough = round_of(2, vec![going(0, 0, 400, &[(1, 300)])], &[]);
    check_swaps(&near_enough, "");
}

#[test]
fn a_ride_that_waits_gets_the_car_on_the_way_and_that_ride_the_free_one() {
    let round = round_of(
        2,
        vec![going(0, 0, 500, &[(1, 300)])],
        &[(1, &[(0, 60), (1, 700)])],
    );
    check_swaps(&round, "0<1 1<0");
    // The others do not touch what is on the way.
    for kind in [
        PolicyKind::FirstCome,
        PolicyKind::Greedy,
        PolicyKind::Batched,
    ] {
        assert_eq!(told(&kind.policy().solve(&round, ENDLESS)), "1=1", "{kind}");
    }
}

#[test]
fn who_would_wait_without_a_car_gets_one_even_if_nobody_gains() {
    let round = round_of(2, vec![going(0, 0, 200, &[(1, 300)])], &[(1, &[(0, 400)])]);
    check_swaps(&round, "0<1 1<0");
    // But nobody loses a car for it.
    let alone = round_of(1, vec![going(0, 0, 200, &[])], &[(1, &[(0, 10)])]);
    check_swaps(&alone, "");
}

#[test]
fn where_cars_are_scarce_one_far_away_goes_to_who_is_nearer() {
    let far = |remaining_s: i64, near_s: i64| {
        let mut round = round_of(
            1,
            vec![going(0, 0, remaining_s, &[])],
            &[(1, &[(0, near_s)])],
        );
        round.rules.give_up_from_ms = 120_000;
        round.rules.give_up_gain_ms = 60_000;
        round
    };
    check_swaps(&far(300, 100), "1<0 from 0");
    // Too little saved, too near already, lost one before.
    check_swaps(&far(300, 241), "");
    check_swaps(&far(119, 10), "");
    let mut again = far(300, 100);
    again.on_the_way[0].lost = 1;
    check_swaps(&again, "");
    // Not while there is a car for both.
    let mut enough = far(300, 100);
    enough.drivers = drivers(2);
    enough.on_the_way[0].candidates = cars(&[(1, 400)]);
    check_swaps(&enough, "0<1 1<0");
    // The one in between gets the far one's car, and the one that waits gets its.
    let mut between = round_of(
        2,
        vec![going(0, 0, 600, &[]), going(1, 1, 500, &[(0, 100)])],
        &[(2, &[(1, 60)])],
    );
    between.rules.give_up_from_ms = 550_000;
    check_swaps(&between, "1<0 2<1 from 0");
}

#[test]
fn a_second_counts_more_for_who_has_waited_long() {
    // Nobody turns round for 80 s, unless its rider has waited for 10 minutes.
    let saves = |waited_s: i64| {
        let mut round = round_of(2, vec![going(0, 0, 300, &[(1, 220)])], &[]);
        round.rules.late_ms = 600_000;
        round.now = Time(waited_s * SECOND);
        round
    };
    check_swaps(&saves(0), "");
    check_swaps(&saves(600), "0<1");
    let mut alike = saves(600);
    alike.rules.late_ms = 0;
    check_swaps(&alike, "");
    let rules = saves(0).rules;
    assert_eq!(rules.felt_ms(0, 100_000), 100_000 + 8_333);
    assert_eq!(rules.felt_ms(600_000, 100_000), 200_000 + 8_333);
    assert_eq!(rules.felt_ms(0, -5_000), -5_000);
}

#[test]
fn no_rider_is_fetched_much_later_than_promised() {
    let later = |seconds: i64| {
        round_of(
            2,
            vec![going(0, 0, 200, &[(1, 200 + seconds)])],
            &[(1, &[(0, 10)])],
        )
    };
    check_swaps(&later(180), "0<1 1<0");
    check_swaps(&later(181), "");
    // What counts is the promise, not what the last change made of it.
    let mut round = later(170);
    round.on_the_way[0].promised_ms = 150 * SECOND;
    check_swaps(&round, "");
}

#[test]
fn who_is_close_or_has_changed_enough_is_left_alone() {
    let round = || {
        round_of(
            2,
            vec![going(0, 0, 400, &[(1, 100)]), going(1, 1, 400, &[(0, 100)])],
            &[(2, &[(0, 5)])],
        )
    };
    let mut close = round();
    close.on_the_way[1].remaining_ms = 59 * SECOND;
    check_swaps(&close, "");
    let mut often = round();
    often.on_the_way[0].swaps = 3;
    check_swaps(&often, "");
}

#[test]
fn across_place_shards_only_free_cars_move() {
    let two = || vec![going(0, 0, 400, &[(1, 100)]), going(1, 1, 400, &[(0, 100)])];
    let mut cross = round_of(2, two(), &[]);
    cross.on_the_way[1].ask.ride.place = ShardId(1);
    check_swaps(&cross, "");

    // Ride 1 is to have the car of ride 0, which gets a free one: that is done first, and the rest by the next round.
    let mut chain = round_of(3, two(), &[]);
    chain.on_the_way[0].candidates = cars(&[(2, 200)]);
    check_swaps(&chain, "0<2 1<0");
    chain.on_the_way[1].ask.ride.place = ShardId(1);
    check_swaps(&chain, "0<2");
    chain.on_the_way[0] = going(0, 2, 200, &[(0, 400)]);
    check_swaps(&chain, "1<0");

    // What does not pay by itself is not begun.
    chain.on_the_way[0] = going(0, 0, 400, &[(2, 300)]);
    check_swaps(&chain, "");
    chain.on_the_way[1].ask.ride.place = ShardId(0);
    check_swaps(&chain, "0<2 1<0");

    // Nobody gives a car up for a ride at another place.
    let far = vec![going(0, 0, 400, &[])];
    let mut scarce = round_of(1, far, &[(1, &[(0, 100)])]);
    scarce.rules.give_up_from_ms = 60_000;
    check_swaps(&scarce, "1<0 from 0");
    scarce.rides[0].ride.place = ShardId(1);
    check_swaps(&scarce, "");
}

/// What is left of a swap that ends where it first leaves a place; nothing, if that does not pay.
fn up_to_a_border(round: &Round, mut swap: Swap) -> Option<Swap> {
    let place = swap.moves[0].ride.place;
    let lent_by = swap.gives_up.map_or_else(
        || {
            let last = swap.moves[swap.moves.len() - 1].ride;
            let mut going = round.on_the_way.iter();
            let lender = going.find(|going| going.ask.ride == last)?;
            let is_theirs = round.drivers[lender.driver as usize] == swap.moves[0].driver;
            is_theirs.then_some(last)
        },
        |gives_up| Some(gives_up.ride),
    );
    let here = swap
        .moves
        .iter()
        .take_while(|next| next.ride.place == place);
    let here = here.count();
    if here == swap.moves.len() && lent_by.is_none_or(|ride| ride.place == place) {
        return Some(swap);
    }
    swap.moves.truncate(here);
    let saved_ms = swap.moves.iter().map(|next| {
        let mut going = round.on_the_way.iter();
        let going = going.find(|going| going.ask.ride == next.ride);
        let going = going.expect("who waits is last");
        let cars = going.candidates.iter();
        let cars = cars.filter(|car| round.drivers[car.driver as usize] == next.driver);
        let needs_ms = cars.map(|car| car.cost).min().expect("a candidate");
        let has = round.felt_ms(&going.ask, going.remaining_ms);
        has - round.felt_ms(&going.ask, needs_ms) - round.rules.gain_min_ms as i64
    });
    (lent_by.is_none() && saved_ms.sum::<i64>() >= 0).then_some(swap)
}

#[test]
fn what_is_wanted_across_borders_is_begun_as_far_as_it_pays_on_this_side() {
    for_seeds("rematch, several places", 3_000, |random, why| {
        let mut round = any_rematch(random, 8, 5, 4);
        let asks = round.on_the_way.iter_mut().map(|going| &mut going.ask);
        let mut asks: Vec<&mut RideAsk> = asks.chain(&mut round.rides).collect();
        // The order must not depend on places.
        asks.shuffle(random);
        for (at, ask) in asks.into_iter().enumerate() {
            ask.since = Time(at as i64 * SECOND);
        }
        let mut wanted = Rematch.solve(&round, ENDLESS);
        let of: BTreeMap<u64, ShardId> = (0..20)
            .map(|offset| (offset, ShardId(random.random_range(0..3))))
            .collect();
        let moved = |ride: &mut RideId| ride.place = of[&ride.offset];
        let asks = round.on_the_way.iter_mut().map(|going| &mut going.ask);
        asks.chain(&mut round.rides)
            .for_each(|ask| moved(&mut ask.ride));
        wanted
            .pairs
            .iter_mut()
            .for_each(|pair| moved(&mut pair.ride));
        for swap in &mut wanted.swaps {
            swap.moves.iter_mut().for_each(|next| moved(&mut next.ride));
            swap.gives_up
                .iter_mut()
                .for_each(|ride| moved(&mut ride.ride));
        }
        let swaps = wanted.swaps.into_iter();
        let begun: Vec<Swap> = swaps
            .filter_map(|swap| up_to_a_border(&round, swap))
            .collect();
        let result = Rematch.solve(&round, ENDLESS);
        assert_sound(&round, &result, why);
        assert_eq!(result.swaps, begun, "{why}");
        assert_eq!(result.pairs, wanted.pairs, "{why}");
    });
}

/// A row of rides, each much nearer to the car of the next: the free car is at the end.
fn long_chain(rides: u32) -> Round {
    let on_the_way = (0..rides).map(|n| going(n as usize, n, 500, &[(n + 1, 100)]));
    round_of(rides as usize + 1, on_the_way.collect(), &[])
}

#[test]
fn a_chain_too_long_is_begun_and_a_circle_too_long_is_not() {
    check_swaps(&long_chain(8), "7<8 6<7 5<6 4<5 3<4 2<3 1<2 0<1");
    check_swaps(&long_chain(9), "8<9 7<8 6<7 5<6 4<5 3<4 2<3");
    let circle = |rides: u32| {
        let mut round = long_chain(rides);
        round.drivers.pop();
        round.on_the_way[rides as usize - 1].candidates = cars(&[(0, 100)]);
        round
    };
    check_swaps(&circle(4), "0<1 3<0 2<3 1<2");
    check_swaps(&circle(9), "");
}

/// What would be if all is done as decided: ride to driver.
fn afterwards(round: &Round, result: &RoundResult) -> BTreeMap<RideId, DriverId> {
    let going = round.on_the_way.iter();
    let mut has: BTreeMap<RideId, DriverId> = going
        .map(|going| (going.ask.ride, round.drivers[going.driver as usize].clone()))
        .collect();
    for gives_up in result.swaps.iter().filter_map(|swap| swap.gives_up) {
        has.remove(&gives_up.ride);
    }
    for next in result.swaps.iter().flat_map(|swap| &swap.moves) {
        has.insert(next.ride, next.driver.clone());
    }
    for pair in &result.pairs {
        has.insert(pair.ride, pair.driver.clone());
    }
    has
}

/// Fails unless every swap is one that the engine would begin, within the rules, and nobody shares a car.
fn assert_sound(round: &Round, result: &RoundResult, why: &str) {
    let rules = &round.rules;
    let held: BTreeMap<&DriverId, &OnTheWay> = round
        .on_the_way
        .iter()
        .map(|going| (&round.drivers[going.driver as usize], going))
        .collect();
    let mut moved = BTreeSet::new();
    for swap in &result.swaps {
        assert!((1..=SWAP_MOVES_MAX).contains(&swap.moves.len()), "{why}");
        let mut passed_on: Option<&DriverId> = None;
        for (at, next) in swap.moves.iter().enumerate() {
            assert!(moved.insert(next.ride), "{} moves twice: {why}", next.ride);
            let is_last = at + 1 == swap.moves.len();
            match (at, passed_on) {
                (0, _) => {}
                (_, Some(car)) => assert_eq!(*car, next.driver, "{why}"),
                (_, None) => panic!("{} gets a car nobody passes on: {why}", next.ride),
            }
            let own = round
                .on_the_way
                .iter()
                .find(|going| going.ask.ride == next.ride);
            let cost = |list: &[Candidate]| {
                let named = list
                    .iter()
                    .filter(|c| round.drivers[c.driver as usize] == next.driver);
                named.map(|c| c.cost).min().expect(why)
            };
            match own {
                Some(own) => {
                    assert_eq!(own.ask.version, next.version, "{why}");
                    assert!(own.swaps < rules.swaps_max, "{why}");
                    assert!(own.remaining_ms >= rules.close_ms as i64, "{why}");
                    let latest = own.promised_ms + rules.worsen_max_ms as i64;
                    assert!(
                        cost(&own.candidates) <= latest.max(own.remaining_ms),
                        "{why}"
                    );
                }
                None => {
                    assert!(is_last, "a ride that waits passes a car on: {why}");
                    let at = round
                        .rides
                        .iter()
                        .position(|ask| ask.ride == next.ride)
                        .expect(why);
                    assert_eq!(round.rides[at].version, next.version, "{why}");
                    cost(&round.candidates[at]);
                }
            }
            if let Some(lender) = held.get(&next.driver) {
                assert_eq!(lender.ask.ride.place, next.ride.place, "{why}");
            }
            passed_on = own.map(|own| &round.drivers[own.driver as usize]);
        }
        let first = &swap.moves[0].driver;
        let lender = held.get(first);
        match &swap.gives_up {
            None => assert!(lender.is_none() || passed_on == Some(first), "{why}"),
            Some(gives_up) => {
                let lender = lender.expect(why);
                let its = (lender.ask.ride, lender.ask.version);
                assert_eq!(its, (gives_up.ride, gives_up.version), "{why}");
                assert!(lender.lost == 0 && rules.give_up_from_ms > 0, "{why}");
                assert!(lender.swaps < rules.swaps_max, "{why}");
                let least_ms = rules.give_up_from_ms.max(rules.close_ms);
                assert!(lender.remaining_ms >= least_ms as i64, "{why}");
                assert!(moved.insert(gives_up.ride), "{why}");
                assert_eq!(passed_on, None, "nobody gets a car for it: {why}");
            }
        }
    }
    for pair in &result.pairs {
        assert!(
            !held.contains_key(&pair.driver),
            "{} is on the way: {why}",
            pair.driver
        );
        assert!(moved.insert(pair.ride), "{why}");
    }
    let has = afterwards(round, result);
    let cars: BTreeSet<&DriverId> = has.values().collect();
    assert_eq!(cars.len(), has.len(), "two rides share a car: {why}");
}

/// Rides with cars, and minus what they cost with what is asked of each change: larger is better.
fn worth_after(round: &Round, result: &RoundResult) -> (usize, i64) {
    let has = afterwards(round, result);
    let price = |list: &[Candidate], driver: &DriverId| {
        let named = list
            .iter()
            .filter(|c| round.drivers[c.driver as usize] == *driver);
        named.map(|c| c.cost).min().expect("a candidate")
    };
    let going = round.on_the_way.iter().map(|going| {
        let Some(driver) = has.get(&going.ask.ride) else {
            return round.rules.give_up_gain_ms as i64;
        };
        match *driver == round.drivers[going.driver as usize] {
            true => round.felt_ms(&going.ask, going.remaining_ms),
            false => {
                let needs_ms = price(&going.candidates, driver);
                round.felt_ms(&going.ask, needs_ms) + round.rules.gain_min_ms as i64
            }
        }
    });
    let waiting = round.rides.iter().zip(&round.candidates);
    let waiting = waiting.filter_map(|(ask, list)| {
        let needs_ms = price(list, has.get(&ask.ride)?);
        Some(round.felt_ms(ask, needs_ms))
    });
    (has.len(), -going.chain(waiting).sum::<i64>())
}

/// The best there is, by trying everything: ride after ride, first those on the way.
fn best(round: &Round, at: usize, taken: u32) -> (usize, i64) {
    let rules = &round.rules;
    let takes_part = |going: &OnTheWay| {
        going.swaps < rules.swaps_max && going.remaining_ms >= rules.close_ms as i64
    };
    let lends = |driver: u32| {
        let holder = round.on_the_way.iter().find(|going| going.driver == driver);
        holder.is_none_or(takes_part)
    };
    let then = |driver: u32, cost: i64| {
        let (served, worth) = best(round, at + 1, taken | 1 << driver);
        (served + 1, worth - cost)
    };
    let is_left = |driver: u32| taken & 1 << driver == 0;
    let none = (0, i64::MIN / 2);
    if let Some(going) = round.on_the_way.get(at) {
        let mut found = none;
        if is_left(going.driver) {
            found = then(going.driver, round.felt_ms(&going.ask, going.remaining_ms));
        }
        let far = going.remaining_ms >= rules.give_up_from_ms as i64 && rules.give_up_from_ms > 0;
        if takes_part(going) && far && going.lost == 0 {
            let (served, worth) = best(round, at + 1, taken);
            found = found.max((served, worth - rules.give_up_gain_ms as i64));
        }
        if takes_part(going) {
            let latest = going.promised_ms + rules.worsen_max_ms as i64;
            for car in &going.candidates {
                let fits = car.cost <= latest.max(going.remaining_ms) && car.driver != going.driver;
                if fits && is_left(car.driver) && lends(car.driver) {
                    let felt_ms = round.felt_ms(&going.ask, car.cost);
                    found = found.max(then(car.driver, felt_ms + rules.gain_min_ms as i64));
                }
            }
        }
        return found;
    }
    let Some(list) = round.candidates.get(at - round.on_the_way.len()) else {
        return (0, 0);
    };
    let ask = &round.rides[at - round.on_the_way.len()];
    let mut found = best(round, at + 1, taken);
    for car in list {
        if is_left(car.driver) && lends(car.driver) {
            found = found.max(then(car.driver, round.felt_ms(ask, car.cost)));
        }
    }
    found
}

/// A round with up to so many rides on the way, waiting, and free cars.
fn any_rematch(
    random: &mut SmallRng,
    going_max: usize,
    waiting_max: usize,
    free_max: usize,
) -> Round {
    let going_count = random.random_range(0..=going_max);
    let waiting_count = random.random_range(0..=waiting_max);
    let count = going_count + random.random_range(0..=free_max);
    let chance = [0.1, 0.4, 0.9][random.random_range(0..3)];
    let spread = [3, 600][random.random_range(0..2)];
    let mut list = || -> Vec<(u32, i64)> {
        let all = (0..count as u32).filter(|_| random.random_bool(chance));
        let all: Vec<u32> = all.collect();
        all.into_iter()
            .map(|car| (car, random.random_range(0..spread)))
            .collect()
    };
    let lists: Vec<Vec<(u32, i64)>> = (0..going_count + waiting_count).map(|_| list()).collect();
    let waiting: Vec<(usize, &[(u32, i64)])> = (going_count..going_count + waiting_count)
        .map(|n| (n, lists[n].as_slice()))
        .collect();
    let on_the_way = (0..going_count)
        .map(|n| going(n, n as u32, random.random_range(0..spread), &lists[n]))
        .collect();
    let mut round = round_of(count, on_the_way, &waiting);
    round.rules = SwapRules {
        gain_min_ms: [0, 1, 120][random.random_range(0..3)] * SECOND as u64,
        worsen_max_ms: [0, 60, 900][random.random_range(0..3)] * SECOND as u64,
        close_ms: [0, 60][random.random_range(0..2)] * SECOND as u64,
        give_up_from_ms: [0, 1, 200][random.random_range(0..3)] * SECOND as u64,
        late_ms: [0, 300][random.random_range(0..2)] * SECOND as u64,
        give_up_gain_ms: [0, 1, 60][random.random_range(0..3)] * SECOND as u64,
        ..SwapRules::default()
    };
    for going in &mut round.on_the_way {
        going.swaps = random.random_range(0..5) / 4 * 3;
        going.lost = random.random_range(0..4) / 3;
        going.promised_ms -= random.random_range(0..100) * SECOND;
    }
    round.now = Time(500 * SECOND);
    let asks = round.on_the_way.iter_mut().map(|going| &mut going.ask);
    for ask in asks.chain(&mut round.rides) {
        ask.since = Time(random.random_range(0..500) * SECOND);
    }
    round
}

#[test]
fn rematch_is_the_best_of_all_there_is() {
    for_seeds("rematch, trying everything", 6_000, |random, why| {
        let round = any_rematch(random, 4, 3, 3);
        let result = Rematch.solve(&round, ENDLESS);
        assert_sound(&round, &result, why);
        assert!(!result.exhausted, "{why}");
        assert_eq!(
            worth_after(&round, &result),
            best(&round, 0, 0),
            "{why}: {round:?}"
        );
    });
}

#[test]
fn large_rounds_and_small_budgets_stay_within_the_rules() {
    for_seeds("rematch, large", 600, |random, why| {
        let round = any_rematch(random, 40, 30, 20);
        let best = Rematch.solve(&round, ENDLESS);
        let nothing_done = Rematch.solve(&round, 0);
        for budget in [0, 20, best.steps / 4, best.steps / 2, ENDLESS] {
            let result = Rematch.solve(&round, budget);
            assert_sound(&round, &result, why);
            assert!(
                worth_after(&round, &result) >= worth_after(&round, &nothing_done),
                "{why}"
            );
        }
    });
}

#[test]
fn without_rides_on_the_way_it_is_batched() {
    for_seeds("rematch as batched", 500, |random, why| {
        let mut round = any_round(random, 12, 12);
        // All seconds count alike there.
        round.rules.late_ms = 0;
        assert_eq!(
            Rematch.solve(&round, ENDLESS),
            Batched.solve(&round, ENDLESS),
            "{why}"
        );
    });
}
