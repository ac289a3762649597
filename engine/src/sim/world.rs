//! The world around the engine: hosts, partitions, saved states, phones, a clock; and what is checked at each step.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};

use cabrank_events::command::{EntityId, MARKET_SHARD, Outcome, RefusedBecause};
use cabrank_events::event::Move;
use cabrank_events::{
    Command, CommandId, CommandRecord, DriverId, Event, EventRecord, Place, RideId, RiderId,
    ShardId, Time,
};
use cabrank_geo::{Cell, Point, Resolution};
use cabrank_ring::{Kind, Ring};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::Fault;
use super::checks::fold;
use super::growth::{GROWN_MAX, Growths};
use super::model::{DriverFacts, Model, Outcomes, WishFacts};
use super::queues::Places;
use crate::EngineConfig;
use crate::config::SwapConsent;
use crate::host::{Batch, Host};
use crate::matching::{GivesUp, Pair, RoundResult, Swap, SwapRules};
use crate::queues::{AfterDecline, QueueRules};
use crate::ride::{Bounds, Ride, Stage};
use crate::shard::{Counters, EntityState, Message, Shard};

const START: Time = Time(1_000_000_000);
const SHARDS_MAX: u16 = 4;
/// Open rides of a shard in the tight seeds.
const FULL: usize = 2;
/// How many steps before a failure are told.
const TOLD_MAX: usize = 60;
/// Outcomes of one id are compared if they are no further apart: drivers are remembered longer than this.
const SAME_OUTCOME_MS: i64 = 20_000;

pub(super) type States = BTreeMap<EntityId, EntityState>;

/// One shard's input in the log.
#[derive(Default)]
pub(super) struct Partition {
    pub(super) records: Vec<(Time, CommandRecord)>,
    pub(super) read: usize,
    pub(super) skew_ms: i64,
}

/// What `shard-state` holds of a shard.
pub(super) struct Saved {
    pub(super) header: String,
    pub(super) time: Time,
    pub(super) states: BTreeMap<EntityId, String>,
    pub(super) parsed: States,
}

#[derive(Clone, Debug)]
pub(super) enum Input {
    Command(ShardId, u64, Time, CommandRecord),
    Round(ShardId, RoundResult),
    Clock(Time),
}

pub struct World {
    pub(super) rng: SmallRng,
    pub(super) fault: Fault,
    pub(super) clean: bool,
    /// Many rides under way in one place, so that cars are exchanged.
    pub(super) busy: bool,
    pub(super) config: Arc<EngineConfig>,
    /// By which gateways send.
    pub(super) ring: Arc<Ring>,
    /// That of before the newest growth: what a shard goes by that has not heard of it.
    pub(super) base_ring: Arc<Ring>,
    pub(super) growths: Growths,
    pub(super) places: Vec<Place>,
    pub(super) hosts: Vec<Host>,
    pub(super) hops_max: Vec<usize>,
    pub(super) home: Vec<usize>,
    pub(super) log: Vec<Partition>,
    pub(super) saved: Vec<Saved>,
    pub(super) fold: Vec<States>,
    /// Messages the log holds back, in dirty mode.
    pub(super) late: Vec<(Time, ShardId, CommandRecord)>,
    pub(super) agenda: BTreeMap<(Time, u32), CommandRecord>,
    pub(super) rounds: Vec<(ShardId, RoundResult)>,
    pub(super) drivers: Vec<DriverId>,
    pub(super) riders: Vec<RiderId>,
    pub(super) sessions: u64,
    pub(super) wishes: Vec<CommandRecord>,
    pub(super) issued: BTreeMap<CommandId, Command>,
    pub(super) model: Model,
    pub(super) queues: Places,
    pub(super) outcomes: Outcomes,
    /// Engine times after the last transaction, by shard.
    pub(super) times: Vec<Time>,
    /// Rides whose timer was due at the last look, by shard.
    pub(super) overdue: Vec<BTreeSet<(RideId, Time)>>,
    pub(super) now: Time,
    pub(super) number: u32,
    pub(super) step: u32,
    /// How often each event happened, by its name.
    pub(super) seen: BTreeMap<&'static str, u32>,
    pub(super) told: Option<Vec<String>>,
}

/// Rings and, for each, a place in each of its shards: the same for all seeds.
fn maps() -> &'static Vec<(Arc<Ring>, Vec<Place>)> {
    static MAPS: OnceLock<Vec<(Arc<Ring>, Vec<Place>)>> = OnceLock::new();
    MAPS.get_or_init(|| {
        let resolution = Resolution::try_from(5).expect("5 is allowed");
        (1..=GROWN_MAX)
            .map(|shards| {
                let ring = Ring::new(shards).expect("few are allowed");
                let place_in = |shard: u16| {
                    (0..)
                        .map(|n| Point::new(f64::from(n) * 0.3, 7.0).expect("on the earth"))
                        .find(|p| ring.shard_of_cell(Cell::at(*p, resolution).into()) == shard)
                        .map(Place)
                        .expect("every shard owns cells")
                };
                let places = (0..shards).map(place_in).collect();
                (Arc::new(ring), places)
            })
            .collect()
    })
}

/// The ring of so many shards, and a place in each.
pub(super) fn map_of(shards: u16) -> &'static (Arc<Ring>, Vec<Place>) {
    &maps()[usize::from(shards) - 1]
}

impl World {
    pub fn new(seed: u64, fault: Fault, tell: bool) -> World {
        let mut rng = SmallRng::seed_from_u64(seed);
        let clean = seed.is_multiple_of(2);
        let shards = rng.random_range(1..=SHARDS_MAX);
        let (ring, places) = map_of(shards).clone();
        let hosts = rng.random_range(1..=3_usize);
        let tight = rng.random_bool(0.3);
        let busy = rng.random_bool(0.5);
        let config = Arc::new(EngineConfig {
            request_patience_ms: 20_000,
            ride_deadline_ms: rng.random_range(20_000..90_000),
            claim_answer_ms: rng.random_range(1_000..5_000),
            offer_receipt_ms: 5_000,
            offer_answer_ms: 10_000,
            arrival_ms: if busy { 80_000 } else { 40_000 },
            no_show_ms: 30_000,
            longest_ride_ms: 60_000,
            redispatch_patience_ms: 20_000,
            redispatch_max: rng.random_range(0..4) + if busy { 2 } else { 0 },
            radius_step_m: 2_000,
            asked_max: if tight { 2 } else { 128 },
            key_memory_ms: 60_000,
            keys_max: if tight { 2 } else { 32 },
            ended_ride_memory_ms: 40_000,
            driver_memory_ms: 40_000,
            outcomes_max: if tight { 2 } else { 64 },
            rides_max: if tight && !busy { FULL } else { 1_000 },
            blocks_max: if tight { 1 } else { 8 },
            marked_drivers_max: if tight { 1 } else { 100 },
            moving_kib_max: if tight { 1 } else { 512 },
            swaps: SwapRules {
                swaps_max: rng.random_range(1..4),
                gain_min_ms: [0, 0, 60_000][rng.random_range(0..3)],
                close_ms: [0, 30_000][rng.random_range(0..2)],
                worsen_max_ms: [0, 60_000, 600_000][rng.random_range(0..3)],
                ..SwapRules::default()
            },
            swap_consent: match seed % 5 {
                0 => SwapConsent::Ask,
                _ => SwapConsent::Tell,
            },
            swap_answer_ms: 5_000,
            queues: QueueRules {
                after_decline: match seed % 3 {
                    0 => AfterDecline::Keep,
                    _ => AfterDecline::End,
                },
                ..QueueRules::default()
            },
            ..EngineConfig::default()
        });
        config.check().expect("the simulation's settings are sound");
        let new = |id| Shard::new(ShardId(id), config.clone(), ring.clone());
        let saved = (0..shards).map(|id| Saved {
            header: serde_json::to_string(new(id).counters()).expect("counters are JSON"),
            time: Time(i64::MIN),
            states: BTreeMap::new(),
            parsed: BTreeMap::new(),
        });
        let many = if busy { 3 } else { 0 };
        // A busy city lies in one shard, or in two.
        let crowded = places.len().min(if seed.is_multiple_of(3) { 2 } else { 1 });
        let mut world = World {
            fault,
            clean,
            busy,
            saved: saved.collect(),
            places: if busy {
                places[..crowded].to_vec()
            } else {
                places
            },
            hops_max: (0..hosts)
                .map(|_| [0, 1, 1, 2, 100][rng.random_range(0..if busy { 2 } else { 5 })])
                .collect(),
            home: (0..shards).map(|_| rng.random_range(0..hosts)).collect(),
            log: (0..shards)
                .map(|_| Partition {
                    skew_ms: rng.random_range(-200..=200),
                    ..Partition::default()
                })
                .collect(),
            fold: vec![BTreeMap::new(); usize::from(shards)],
            hosts: Vec::new(),
            late: Vec::new(),
            agenda: BTreeMap::new(),
            rounds: Vec::new(),
            drivers: (0..rng.random_range(2..6) + many).map(driver_id).collect(),
            riders: (0..rng.random_range(2..6) + many).map(rider_id).collect(),
            sessions: 0,
            wishes: Vec::new(),
            issued: BTreeMap::new(),
            model: Model::new(config.clone(), clean),
            queues: Places::new(config.queues.after_decline, clean),
            outcomes: Outcomes::default(),
            times: vec![Time(i64::MIN); usize::from(shards)],
            overdue: vec![BTreeSet::new(); usize::from(shards)],
            now: START,
            number: 0,
            step: 0,
            seen: BTreeMap::new(),
            told: tell.then(Vec::new),
            rng,
            config,
            base_ring: Arc::clone(&ring),
            growths: Growths::new(seed, Arc::clone(&ring)),
            ring,
        };
        world.hosts = (0..hosts).map(|host| world.load(host)).collect();
        world
    }

    pub fn steps(&self) -> u32 {
        self.step
    }

    /// What happened before the failure.
    pub fn told(&self) -> String {
        let told = self.told.as_deref().unwrap_or_default();
        told[told.len().saturating_sub(TOLD_MAX)..].join("\n")
    }

    pub(super) fn tell(&mut self, what: impl FnOnce() -> String) {
        if let Some(told) = &mut self.told {
            told.push(format!(
                "{:>4} {:>7} {}",
                self.step,
                self.now.since(START),
                what()
            ));
        }
    }

    pub(super) fn chance(&mut self, of: f64) -> bool {
        self.rng.random_bool(of)
    }

    // -- hosts ---------------------------------------------------------------------------------------------------

    /// A host as the saved states of its shards make it, read from JSON.
    fn load(&self, host: usize) -> Host {
        self.load_at(host, None)
    }

    fn load_at(&self, host: usize, times: Option<&[Time]>) -> Host {
        let shards = (0..self.home.len()).filter(|shard| self.home[*shard] == host);
        let shards = shards.map(|at| {
            let saved = &self.saved[at];
            let counters = match self.fault {
                Fault::CountersLost => Counters::default(),
                _ => serde_json::from_str(&saved.header).expect("the header reads back"),
            };
            let states = saved.states.values();
            let states = states.map(|json| serde_json::from_str(json).expect("a state reads back"));
            let id = ShardId(at as u16);
            let (config, ring) = (self.config.clone(), self.base_ring.clone());
            let time = times.map_or(saved.time, |times| times[at]);
            Shard::restore(id, config, ring, time, counters, states)
        });
        let mut host = Host::new(shards.collect::<Vec<_>>(), self.hops_max[host]);
        if let Fault::Engine(how) = self.fault {
            host.sabotage(how);
        }
        host
    }

    /// As broken as all are.
    pub(super) fn bent(&self, mut shard: Shard) -> Shard {
        if let Fault::Engine(how) = self.fault {
            shard.sabotage(how);
        }
        shard
    }

    fn restart(&mut self) {
        let host = self.rng.random_range(0..self.hosts.len());
        self.tell(|| format!("host {host} restarts"));
        self.reload(host);
    }

    fn reload(&mut self, host: usize) {
        self.hosts[host] = self.load(host);
        for shard in self.shards_of(host) {
            self.times[shard] = self.saved[shard].time;
        }
    }

    fn move_shard(&mut self) {
        let shard = self.rng.random_range(0..self.home.len());
        let to = self.rng.random_range(0..self.hosts.len());
        let from = std::mem::replace(&mut self.home[shard], to);
        self.tell(|| format!("shard {shard} moves from host {from} to {to}"));
        self.reload(from);
        self.reload(to);
    }

    pub(super) fn shards_of(&self, host: usize) -> Vec<usize> {
        (0..self.home.len())
            .filter(|shard| self.home[*shard] == host)
            .collect()
    }

    /// Where a gateway sends it.
    fn home_of(&mut self, command: &Command) -> ShardId {
        let ring = self.ring_of_some_gateway();
        match command.entity() {
            EntityId::Ride(ride) => ride.place,
            EntityId::Driver(id) => ShardId(ring.shard_of_person(Kind::Driver, id.as_str())),
            EntityId::Rider(id) => ShardId(ring.shard_of_person(Kind::Rider, id.as_str())),
            EntityId::Market => MARKET_SHARD,
        }
    }

    // -- the log ---------------------------------------------------------------------------------------------------

    pub(super) fn append(&mut self, record: CommandRecord) {
        let at = self.home_of(&record.command);
        self.append_to(at, record);
    }

    pub(super) fn append_to(&mut self, at: ShardId, record: CommandRecord) {
        // A ride id made up by a stranger may name a shard that does not exist; gateways refuse those.
        let Some(partition) = self.log.get_mut(usize::from(at.0)) else {
            return;
        };
        let newest = partition
            .records
            .last()
            .map_or(Time(i64::MIN), |(time, _)| *time);
        let time = newest.max(Time(self.now.0 + partition.skew_ms));
        partition.records.push((time, record));
    }

    pub(super) fn append_message(&mut self, Message { to, record }: Message) {
        if self.fault == Fault::MessageLost && self.chance(0.02) {
            return;
        }
        if self.clean {
            return self.append_to(to, record);
        }
        // A place that was full for the first copy of an opening may have room for the second.
        // A driver's entity may refuse the first copy of a transfer and grant the second.
        let once = matches!(record.command, Command::TransferHold { .. })
            || matches!(record.command, Command::OpenRide(_)) && self.config.rides_max == FULL;
        if self.chance(0.1) && !once {
            let copy = record.clone();
            let after = self.rng.random_range(0..8_000);
            self.late.push((self.now.plus_ms(after), to, copy));
        }
        if self.chance(0.2) {
            let after = self.rng.random_range(0..8_000);
            self.late.push((self.now.plus_ms(after), to, record));
        } else {
            self.append_to(to, record);
        }
    }

    pub(super) fn deliver(&mut self) {
        let now = self.now;
        let due;
        (due, self.late) = std::mem::take(&mut self.late)
            .into_iter()
            .partition(|(at, ..)| *at <= now);
        for (_, to, record) in due {
            self.append_to(to, record);
        }
        while let Some(first) = self
            .agenda
            .first_entry()
            .filter(|first| first.key().0 <= now)
        {
            let record = first.remove();
            self.tell(|| {
                format!(
                    "says {}: {:?}",
                    record
                        .id
                        .clone()
                        .map_or_else(String::new, |id| id.to_string()),
                    record.command
                )
            });
            self.append(record);
        }
    }

    /// Commands and messages nobody has read yet.
    pub(super) fn unread(&self) -> impl Iterator<Item = &CommandRecord> {
        let in_log = self.log.iter().flat_map(|p| p.records[p.read..].iter());
        let in_log = in_log.map(|(_, record)| record);
        let late = self.late.iter().map(|(.., record)| record);
        // What waits for people on the move is in headers.
        let shards = self.hosts.iter().flat_map(Host::shards);
        let growing = shards.filter_map(|shard| shard.counters().growing.as_ref());
        in_log
            .chain(late)
            .chain(growing.flat_map(|growing| growing.waiting()))
    }

    // -- a step --------------------------------------------------------------------------------------------------------

    pub fn step(&mut self) -> Result<(), String> {
        self.step += 1;
        let jump = match self.rng.random_range(0..100) {
            0..70 => self.rng.random_range(0..300),
            70..98 => self.rng.random_range(0..2_000),
            _ => self.rng.random_range(0..25_000),
        };
        self.now = self.now.plus_ms(jump);
        if self.chance(if self.busy { 0.8 } else { 0.5 }) {
            self.wish();
        }
        self.operate();
        self.deliver();
        if self.chance(0.02) {
            self.restart();
        }
        if self.chance(0.02) {
            self.move_shard();
        }
        if self.chance(0.5) {
            self.snapshot()?;
        }
        for _ in 0..self.rng.random_range(1..=2) {
            let host = self.rng.random_range(0..self.hosts.len());
            let inputs = self.inputs(host);
            self.transaction(host, &inputs)?;
        }
        Ok(())
    }

    /// A few inputs of a host: records in order, perhaps the clock, perhaps a round.
    fn inputs(&mut self, host: usize) -> Vec<Input> {
        let mut inputs = Vec::new();
        let mut ahead: BTreeMap<usize, usize> = BTreeMap::new();
        let shards = self.shards_of(host);
        if shards.is_empty() {
            return inputs;
        }
        for _ in 0..self.rng.random_range(1..8) {
            let shard = shards[self.rng.random_range(0..shards.len())];
            let taken = ahead.entry(shard).or_default();
            let partition = &self.log[shard];
            let offset = partition.read + *taken;
            if let Some((time, record)) = partition.records.get(offset) {
                inputs.push(Input::Command(
                    ShardId(shard as u16),
                    offset as u64,
                    *time,
                    record.clone(),
                ));
                *taken += 1;
            }
        }
        let caught_up = shards.iter().all(|shard| {
            let partition = &self.log[*shard];
            partition.read + ahead.get(shard).copied().unwrap_or(0) == partition.records.len()
        });
        if caught_up || self.fault == Fault::ClockAhead {
            inputs.push(Input::Clock(Time(self.now.0 - 500)));
            let mine =
                |(shard, _): &(ShardId, RoundResult)| self.home[usize::from(shard.0)] == host;
            if let Some(at) = self.rounds.iter().position(mine)
                && self.rng.random_bool(0.8)
            {
                let (shard, result) = self.rounds.remove(at);
                inputs.push(Input::Round(shard, result));
            }
        }
        if self.fault == Fault::ReadTwice
            && self.rng.random_bool(0.02)
            && let Some(first) = inputs.first().cloned()
        {
            inputs.insert(0, first);
        }
        inputs
    }

    /// A round is solved on what it sees now; its result may be handed in much later.
    fn snapshot(&mut self) -> Result<(), String> {
        let shard = match self.busy {
            true => self.step as usize / 2 % self.places.len(),
            false => self.rng.random_range(0..self.home.len()),
        };
        if self.chance(if self.busy { 0.35 } else { 0.2 }) {
            self.rematch(shard);
            return Ok(());
        }
        if self.step.is_multiple_of(3) {
            return self.call_queues(shard);
        }
        let id = ShardId(shard as u16);
        let Some(owner) = self.hosts[self.home[shard]].shard(id) else {
            return Ok(());
        };
        let mut result = RoundResult::default();
        for ride in owner.waiting() {
            result.looked.push((ride.id, ride.seq));
            let mut driver = self.drivers[self.rng.random_range(0..self.drivers.len())].clone();
            let free = |d: &DriverFacts| {
                let serves = d.online.is_some_and(|classes| classes.contains(ride.class));
                serves && !d.leaving && d.held.is_none()
            };
            let count = self.model.drivers.values().filter(|d| free(d)).count();
            if count > 0 && self.rng.random_bool(if self.busy { 0.95 } else { 0.7 }) {
                let nth = match self.busy {
                    true => self.rng.random_range(0..count),
                    false => 0,
                };
                let mut all = self.model.drivers.iter().filter(|(_, d)| free(d));
                driver = all.nth(nth).map_or(driver, |(id, _)| id.clone());
            }
            let known = self.model.drivers.get(&driver).map_or(0, |d| d.seq);
            // Sometimes the round is careless: the engine and the driver's entity must stand it.
            let fits = ride.may_ask(&driver, known) || self.rng.random_bool(0.3);
            if fits && self.rng.random_bool(0.8) {
                result.pairs.push(Pair {
                    ride: ride.id,
                    version: ride.seq,
                    driver,
                    cost_ms: 0,
                });
            }
        }
        let (mut on_the_way, waiting): (Vec<&Ride>, Vec<&Ride>) = owner
            .rides()
            .filter(|ride| matches!(ride.stage, Stage::EnRoute { .. } | Stage::Waiting))
            .partition(|ride| matches!(ride.stage, Stage::EnRoute { .. }));
        if !on_the_way.is_empty() && self.rng.random_bool(0.9) {
            let first = self.rng.random_range(0..on_the_way.len());
            on_the_way.rotate_left(first);
            on_the_way.truncate([1, 2, 2, 2, 3][self.rng.random_range(0..5)]);
            // A chain begins at any car, free or not; a circle at the car of its last ride.
            let any = self.drivers[self.rng.random_range(0..self.drivers.len())].clone();
            let free = |d: &DriverFacts| d.online.is_some() && !d.leaving && d.held.is_none();
            let free = self.model.drivers.iter().find(|(_, d)| free(d));
            let any = free.map_or(any, |(id, _)| id.clone());
            let closes = on_the_way.len() > 1 && self.rng.random_bool(0.5);
            let mut car = match on_the_way.last().and_then(|last| last.driver()) {
                Some(car) if closes => car.clone(),
                _ => any,
            };
            let last = waiting
                .first()
                .filter(|_| !closes && self.rng.random_bool(0.3));
            let mut swap = Swap::default();
            let mut going = on_the_way.into_iter();
            // Drawn from nothing that other steps are drawn from.
            let lends = |ride: &&&Ride| last.is_some() && ride.seq.is_multiple_of(3);
            if let Some(lender) = going.as_slice().first().filter(lends) {
                swap.gives_up = Some(GivesUp {
                    ride: lender.id,
                    version: lender.seq,
                });
                car = lender.driver().cloned().unwrap_or(car);
                going.next();
            }
            for ride in going.chain(last.copied()) {
                let stale = u32::from(self.rng.random_bool(0.05));
                let passes_on = ride.driver().cloned();
                swap.moves.push(Move {
                    ride: ride.id,
                    version: ride.seq - stale,
                    driver: car,
                    // Any figure will do, drawn from nothing that other steps are drawn from.
                    gain_s: i64::from(ride.seq) * 37 % 601 - 300,
                });
                car = passes_on.unwrap_or_else(|| self.drivers[0].clone());
            }
            result.swaps.push(swap);
        }
        let empty = result.looked.is_empty() && result.swaps.is_empty();
        if !empty {
            self.hand_in(id, result);
        }
        Ok(())
    }

    /// Old rounds are mostly void; a busy city does not wait for them.
    pub(super) fn hand_in(&mut self, shard: ShardId, result: RoundResult) {
        if self.rounds.len() < if self.busy { 2 } else { 8 } {
            self.rounds.push((shard, result));
        }
    }

    /// One transaction. It may crash before its commit: then it runs again from the saved states and must give the
    /// same (invariant 6).
    pub(super) fn transaction(&mut self, host: usize, inputs: &[Input]) -> Result<(), String> {
        let (mut batch, mut ends) = run(&mut self.hosts[host], inputs);
        if self.chance(0.06) {
            // A clock that brought nothing about is in no header, so after a real crash times may be a little older;
            // the same inputs are the same only from the same times.
            let real = self.chance(0.5);
            self.tell(|| format!("host {host} crashes before its commit"));
            if real {
                (batch, ends) = run(&mut self.load(host), inputs);
            }
            self.hosts[host] = self.load_at(host, (!real).then_some(&self.times[..]));
            let (again, ends_again) = run(&mut self.hosts[host], inputs);
            let same = again.events == batch.events
                && again.messages == batch.messages
                && again.changed == batch.changed
                && again.touched == batch.touched
                && ends_again == ends;
            if !same {
                return Err(format!(
                    "the same inputs gave\n{batch:?}\nand then\n{again:?}"
                ));
            }
        }
        let mut from = 0;
        for (input, to) in inputs.iter().zip(ends) {
            self.tell(|| match input {
                Input::Command(shard, offset, _, record) => format!(
                    "host {host} shard {shard} reads {offset}: {:?}",
                    record.command
                ),
                other => format!("host {host} {other:?}"),
            });
            self.judge(input, &batch.events[from..to])?;
            from = to;
        }
        self.commit(host, inputs, batch)?;
        let clock = inputs.iter().any(|input| matches!(input, Input::Clock(_)));
        self.check(host, clock)
    }

    /// The model takes the events of one input, and each external command gets what it is owed.
    fn judge(&mut self, input: &Input, events: &[EventRecord]) -> Result<(), String> {
        let mut direct = None;
        if let Input::Command(_, _, _, record) = input
            && record.from.is_none()
            && let Some(id) = &record.id
        {
            let wish = match &record.command {
                Command::RequestRide { rider, key, .. } | Command::CancelByKey { rider, key } => {
                    self.model.wish(rider, key)
                }
                _ => None,
            };
            // The pending answer resolves this retry, too, unless it asks for something else.
            let reused = Outcome::Refused {
                why: RefusedBecause::KeyReused,
            };
            let is_reused = |e: &EventRecord| matches!(&e.event, Event::CommandOutcome(o) if o.command == *id && o.outcome == reused);
            let resolved_later = matches!(record.command, Command::RequestRide { .. })
                && wish == Some(WishFacts::Pending)
                && !events.iter().any(is_reused);
            // So does what waits for the answer to a transfer; if a timer has just answered it, there are two.
            let waits = self.model.parked.contains(id);
            let elsewhere = self.may_be_elsewhere(&record.command);
            let answers = events
                .iter()
                .filter(|e| matches!(&e.event, Event::CommandOutcome(o) if o.command == *id))
                .count();
            let put_aside = events.iter().any(
                |e| matches!(&e.event, Event::ReportWaits(w) if w.command.as_ref() == Some(id)),
            );
            let is_detoured = elsewhere && answers == 0;
            if is_detoured {
                *self.growths.detoured.entry(id.clone()).or_insert(0) += 1;
            }
            let new = match waits {
                true => answers.saturating_sub(1) as i32,
                // At once, also by a shard that knows of no wish because the rider is elsewhere; or on its detour.
                false if elsewhere => i32::from(!is_detoured),
                false => i32::from(!resolved_later),
            };
            *self.outcomes.owed.entry(id.clone()).or_insert(0) += new;
            let is_rider = matches!(
                record.command,
                Command::RequestRide { .. } | Command::CancelByKey { .. }
            );
            if !is_rider && !waits && !put_aside && !is_detoured {
                direct = Some(id.clone());
            }
        }
        for record in events {
            self.tell(|| format!("     {}/{} {:?}", record.shard, record.seq, record.event));
            if let Event::CommandOutcome(outcome) = &record.event {
                self.outcome(outcome, record.time)?;
            }
            if let Event::DriverForgotten(e) = &record.event {
                // The memory of outcomes goes with the driver: a late copy is handled as new.
                let theirs = EntityId::Driver(e.driver.clone());
                let issued = &self.issued;
                self.outcomes
                    .first
                    .retain(|id, _| issued[id].entity() != theirs);
            }
            *self.seen.entry(record.event.name()).or_insert(0) += 1;
            self.model.take(record)?;
            self.queues.take(record)?;
        }
        match direct {
            Some(id) if self.outcomes.owed.get(&id) != Some(&0) => {
                Err(format!("{id} has no outcome"))
            }
            _ => Ok(()),
        }
    }

    fn outcome(
        &mut self,
        outcome: &cabrank_events::event::CommandOutcome,
        at: Time,
    ) -> Result<(), String> {
        let id = &outcome.command;
        let Some(command) = self.issued.get(id) else {
            return Err(format!("nobody issued {id}"));
        };
        let owed = self.outcomes.owed.entry(id.clone()).or_insert(0);
        *owed -= 1;
        self.growths.answered.insert(id.clone());
        if *owed < 0
            && let Some(left) = self.growths.detoured.get_mut(id)
            // On a detour between shards the log may have doubled it.
            && (*left > 0 || !self.clean)
        {
            *left = left.saturating_sub(1);
            *owed = 0;
        }
        if *owed < 0 {
            if self.clean || !matches!(command, Command::CancelByKey { .. }) {
                return Err(format!("{id} has an outcome too many"));
            }
            *owed = 0;
        }
        let by_rider = matches!(
            command,
            Command::RequestRide { .. } | Command::CancelByKey { .. }
        );
        let is_kept = by_rider || self.remembers(&command.entity(), at);
        let is_kept = is_kept && !self.is_put_off(command, &outcome.outcome);
        match self.outcomes.first.get(id) {
            None => {
                self.model.outcome(command, outcome)?;
                if is_kept {
                    let first = (outcome.outcome.clone(), at);
                    self.outcomes.first.insert(id.clone(), first);
                }
            }
            Some((first, then)) => {
                let remembered = self.config.outcomes_max > 2
                    && !by_rider
                    && is_kept
                    && at.since(*then) < SAME_OUTCOME_MS;
                if remembered && *first != outcome.outcome {
                    return Err(format!("{id} got {first:?} and then {:?}", outcome.outcome));
                }
            }
        }
        Ok(())
    }

    /// Is there a memory at this moment that an outcome could be kept in? A driver nobody has seen has none, nor has a ride
    /// that was never opened or whose end is long ago.
    fn remembers(&self, asked: &EntityId, at: Time) -> bool {
        match asked {
            EntityId::Driver(driver) => self.model.drivers.contains_key(driver),
            EntityId::Rider(_) => true,
            EntityId::Market => true,
            EntityId::Ride(ride) => match self.model.rides.get(ride) {
                None => false,
                Some(facts) if facts.end.is_none() => true,
                Some(_) => match self.fold[usize::from(ride.place.0)].get(asked) {
                    Some(EntityState::Ride(Ride {
                        stage: Stage::Ended { keep_until, .. },
                        ..
                    })) => *keep_until > at,
                    // It has ended in this very transaction.
                    Some(_) => true,
                    None => false,
                },
            },
        }
    }

    /// Everything becomes durable at once: states, headers, positions, messages.
    fn commit(&mut self, host: usize, inputs: &[Input], batch: Batch) -> Result<(), String> {
        let bounds = Bounds {
            asked_max: self.config.asked_max,
            outcomes_max: self.config.outcomes_max,
        };
        for record in &batch.events {
            fold(&mut self.fold[usize::from(record.shard.0)], record, &bounds);
        }
        for (shard, entity) in &batch.changed {
            if self.fault == Fault::NothingSaved {
                continue;
            }
            let saved = &mut self.saved[usize::from(shard.0)];
            let state = self.hosts[host]
                .shard(*shard)
                .and_then(|owner| owner.state_of(entity));
            match state {
                Some(state) => {
                    let json = serde_json::to_string(&state).expect("states are JSON");
                    let parsed =
                        serde_json::from_str(&json).map_err(|why| format!("{entity}: {why}"))?;
                    saved.states.insert(entity.clone(), json);
                    saved.parsed.insert(entity.clone(), parsed);
                }
                None => {
                    saved.states.remove(entity);
                    saved.parsed.remove(entity);
                }
            }
        }
        for shard in &batch.touched {
            let Some(owner) = self.hosts[host].shard(*shard) else {
                continue;
            };
            let saved = &mut self.saved[usize::from(shard.0)];
            saved.header = serde_json::to_string(owner.counters()).expect("counters are JSON");
            saved.time = owner.time();
        }
        for input in inputs {
            if let Input::Command(shard, offset, _, _) = input {
                self.log[usize::from(shard.0)].read = *offset as usize + 1;
            }
        }
        for message in batch.messages {
            self.append_message(message);
        }
        for record in &batch.events {
            if let Event::RingGrows(growth) = &record.event {
                self.hear_of_growth(growth);
            }
            self.phones(&record.event);
        }
        Ok(())
    }
}

/// Hands the inputs in, one by one; also says where the events of each end.
fn run(host: &mut Host, inputs: &[Input]) -> (Batch, Vec<usize>) {
    let mut batch = Batch::default();
    let mut ends = Vec::with_capacity(inputs.len());
    for input in inputs {
        match input {
            Input::Command(shard, offset, time, record) => {
                host.handle_command(&mut batch, *shard, *offset, *time, record);
            }
            Input::Round(shard, result) => host.handle_round(&mut batch, *shard, result),
            Input::Clock(time) => host.handle_time(&mut batch, *time),
        }
        ends.push(batch.events.len());
    }
    (batch, ends)
}

fn driver_id(n: u32) -> DriverId {
    DriverId::new(&format!("d{n}")).expect("a good id")
}

fn rider_id(n: u32) -> RiderId {
    RiderId::new(&format!("r{n}")).expect("a good id")
}
