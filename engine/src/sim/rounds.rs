//! Rounds as the policy `rematch` solves them, on what the simulation knows of its drivers.
//!
//! Cars have no place here: what a way takes is drawn from ride, driver and the quarter of a minute, so that it changes as
//! cars move and the policy finds chains and circles of all kinds. Other rounds, careless ones too, are made in `world`.

use cabrank_events::{ShardId, Time};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::world::World;
use crate::matching::{Candidate, OnTheWay, Policy, Rematch, RideAsk, Round, RoundResult, Swap};
use crate::ride::{Consent, Ride, Stage};
use crate::shard::Shard;

/// What the policy is to come up with again and again.
pub(super) const BY_POLICY: [&str; 6] = [
    "policy: a free car for a ride on the way",
    "policy: a circle",
    "policy: a chain of three",
    "policy: a ride that waits gets a car on the way",
    "policy: a ride gives its car up",
    "policy: a chain ends at a border",
];

/// No way takes longer.
const WAY_MAX_MS: i64 = 300_000;

fn ask(ride: &Ride) -> RideAsk {
    RideAsk {
        ride: ride.id,
        version: ride.seq,
        since: ride.issued_at,
    }
}

/// Milliseconds from a driver to a ride's pickup, as things are now.
fn way_ms(ride: &Ride, driver: usize, now: Time) -> i64 {
    let quarter = now.0 as u64 / 15_000;
    let seed = ride.id.offset << 32 | quarter << 8 | driver as u64;
    SmallRng::seed_from_u64(seed).random_range(0..WAY_MAX_MS)
}

impl World {
    /// A round of the policy; its result may be handed in much later. Every other one sees the rides of all shards, and
    /// decides for those of one.
    pub(super) fn rematch(&mut self, shard: usize) {
        let id = ShardId(shard as u16);
        let (round, budget) = {
            let Some(owner) = self.hosts[self.home[shard]].shard(id) else {
                return;
            };
            let all = || {
                (0..self.home.len())
                    .filter_map(|at| self.hosts[self.home[at]].shard(ShardId(at as u16)))
            };
            let owners = match self.step.is_multiple_of(2) {
                true => vec![owner],
                false => all().collect(),
            };
            let budget = [40, u64::MAX, u64::MAX][self.now.0 as usize % 3];
            (self.round_of(&owners), budget)
        };
        let result = Rematch.solve(&round, budget).of_place(id);
        if let Some(owner) = self.hosts[self.home[shard]].shard(id) {
            all_begin(owner, &round, &result);
        }
        for swap in &result.swaps {
            gains_are_true(&round, swap);
            for (name, happens) in BY_POLICY.iter().zip(kinds(&round, swap)) {
                *self.seen.entry(*name).or_insert(0) += u32::from(happens);
            }
        }
        self.tell(|| format!("rematch of shard {shard}: {:?}", result.swaps));
        if !round.rides.is_empty() || !result.swaps.is_empty() {
            self.hand_in(id, result);
        }
    }

    fn round_of(&self, owners: &[&Shard]) -> Round {
        let waiting = || owners.iter().flat_map(|owner| owner.waiting());
        let going: Vec<&Ride> = owners.iter().flat_map(|owner| owner.on_the_way()).collect();
        let place_of = |ride: &Ride| self.drivers.iter().position(|d| Some(d) == ride.driver());
        let cars_for = |ride: &Ride| {
            let mut cars = Vec::new();
            for (at, driver) in self.drivers.iter().enumerate() {
                let Some(facts) = self.model.drivers.get(driver) else {
                    continue;
                };
                let serves = facts
                    .online
                    .is_some_and(|classes| classes.contains(ride.class));
                let comes = going.iter().any(|other| other.driver() == Some(driver));
                let is_there = !facts.leaving && (facts.held.is_none() || comes);
                if serves && is_there && ride.may_ask(driver, facts.seq) {
                    cars.push(Candidate {
                        driver: at as u32,
                        cost: way_ms(ride, at, self.now),
                    });
                }
            }
            cars
        };
        let on_the_way = going.iter().filter_map(|ride| {
            let driver = place_of(ride)?;
            let remaining_ms = way_ms(ride, driver, self.now);
            Some(OnTheWay {
                ask: ask(ride),
                driver: driver as u32,
                remaining_ms,
                promised_ms: remaining_ms,
                swaps: ride.swaps,
                lost: ride.redispatches,
                candidates: cars_for(ride),
            })
        });
        Round {
            rides: waiting().map(ask).collect(),
            drivers: self.drivers.clone(),
            candidates: waiting().map(cars_for).collect(),
            on_the_way: on_the_way.collect(),
            rules: self.config.swaps,
            now: self.now,
        }
    }
}

/// Which of [`BY_POLICY`] this is.
fn kinds(round: &Round, swap: &Swap) -> [bool; 6] {
    let waits = |at: usize| {
        round
            .rides
            .iter()
            .any(|ask| ask.ride == swap.moves[at].ride)
    };
    let last = swap.moves.len() - 1;
    let first_car = &swap.moves[0].driver;
    let is_held = round
        .on_the_way
        .iter()
        .any(|going| round.drivers[going.driver as usize] == *first_car);
    let gives_up = swap.gives_up.is_some();
    [
        last == 0 && !gives_up,
        is_held && !gives_up,
        !is_held && last >= 2,
        waits(last) && !gives_up,
        gives_up,
        ends_at_a_border(round, swap),
    ]
}

/// Would it go on, if all rides were of one place?
fn ends_at_a_border(round: &Round, swap: &Swap) -> bool {
    let home = swap.moves[0].ride.place;
    let mut one = round.clone();
    let going = one.on_the_way.iter_mut().map(|going| &mut going.ask);
    for ask in going.chain(&mut one.rides) {
        ask.ride.place = home;
    }
    one != *round
        && Rematch.solve(&one, u64::MAX).swaps.iter().any(|longer| {
            longer.moves.len() > swap.moves.len() && longer.moves.starts_with(&swap.moves)
        })
}

/// Each move says what it saves the ride's rider, and what all save is what is asked of a swap.
fn gains_are_true(round: &Round, swap: &Swap) {
    let mut all_s = 0;
    for next in &swap.moves {
        let mut going = round.on_the_way.iter();
        let Some(going) = going.find(|going| going.ask.ride == next.ride) else {
            assert_eq!(next.gain_s, 0, "{next:?} waits");
            return; // A ride that would get no car may cost the others something.
        };
        let mut cars = going.candidates.iter();
        let car = cars.find(|car| round.drivers[car.driver as usize] == next.driver);
        let needs_ms = car.expect("only candidates come").cost;
        assert_eq!(next.gain_s, (going.remaining_ms - needs_ms) / 1_000);
        let waited_ms = round.now.since(going.ask.since);
        let felt_ms = |more_ms| round.rules.felt_ms(waited_ms, more_ms);
        all_s += (felt_ms(going.remaining_ms) - felt_ms(needs_ms)) / 1_000;
    }
    let least_s = (round.rules.gain_min_ms / 1_000) as i64;
    let moves = swap.moves.len() as i64;
    // Each is rounded towards zero.
    assert!(all_s + moves >= least_s * moves, "{swap:?} saves {all_s}");
}

/// What the policy decides is what the engine takes: handed in at once, every swap begins, or its drivers are asked.
fn all_begin(owner: &Shard, round: &Round, result: &RoundResult) {
    let mut copy = owner.clone();
    copy.handle_round(result);
    for swap in &result.swaps {
        let first = &swap.moves[0];
        // A ride that waits at the end may be too old for its first look.
        let waits = |ride| round.rides.iter().any(|ask| ask.ride == ride);
        if swap.moves.iter().any(|next| waits(next.ride)) {
            continue;
        }
        let ride = copy.ride(first.ride);
        let begun = ride.is_some_and(|ride| {
            let incoming = ride.exchange.incoming.as_ref();
            matches!(ride.stage, Stage::EnRoute { .. })
                && incoming.is_some_and(|incoming| incoming.driver == first.driver)
        });
        let gives_up = swap.gives_up.iter().map(|gives_up| gives_up.ride);
        let mut rides = swap.moves.iter().map(|next| next.ride).chain(gives_up);
        let asks = rides.any(|ride| {
            let consent = copy.ride(ride).and_then(|ride| ride.consent);
            matches!(consent, Some(Consent::Asked { .. }))
        });
        assert!(begun || asks, "the engine does not begin {swap:?}");
    }
}
