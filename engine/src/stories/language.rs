//! The table language of the stories: one [`check`] owns the engine's API.
//!
//! A line is `command => what happens`, both in domain words; `?` after the arrow prints what happens. Places `A` and
//! `B` and people are put on three shards: rides at `A` and `B` in shard 0, riders in shard 1, drivers in shard 2.
//! All shards live on one host unless a line says `apart`: then each has its own, and every message waits in the log
//! until `read rides`, `read riders` or `read drivers` takes the next one of that shard. `together` moves them back.
//! A person's command is read at once, before what waits in the log, unless its line ends with `unread`.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::sync::Arc;

use cabrank_events::command::{CancelledBy, EntityId, GrowthStep, MARKET_SHARD, Outcome};
use cabrank_events::event::Move;
use cabrank_events::{
    ClassSet, Command, CommandId, CommandRecord, DriverId, Event, EventRecord, HoldId,
    IdempotencyKey, NodeName, PickupPoint, Place, QueuePlace, Reason, RideId, RiderId, SessionId,
    ShardId, Time, VehicleClass, ZoneFinding, ZoneName,
};
use cabrank_geo::{Cell, Point, Resolution};
use cabrank_ring::{Kind, Ring};

use crate::EngineConfig;
use crate::host::{Batch, Host};
use crate::matching::{GivesUp, Pair, RoundResult, Swap};
use crate::sabotage::Sabotage;
use crate::shard::{EntityState, Shard};

const RIDES: ShardId = ShardId(0);
const RIDERS: ShardId = ShardId(1);
const DRIVERS: ShardId = ShardId(2);
const START: Time = Time(1_000_000_000);

/// Tells a story and compares what happens, line by line.
pub fn check(story: &str) {
    check_with(EngineConfig::default(), story);
}

/// The same with other settings.
pub fn check_with(config: EngineConfig, story: &str) {
    if let Err(why) = tell(&config, None, story) {
        panic!("{why}");
    }
}

/// A story that holds, and no longer holds when its rule is taken out.
pub fn check_rule(rule: Sabotage, story: &str) {
    check_rule_with(EngineConfig::default(), rule, story);
}

/// The same with other settings.
pub fn check_rule_with(config: EngineConfig, rule: Sabotage, story: &str) {
    check_with(config.clone(), story);
    assert!(
        tell(&config, Some(rule), story).is_err(),
        "the story holds although {rule:?} took its rule out"
    );
}

fn tell(config: &EngineConfig, broken: Option<Sabotage>, story: &str) -> Result<(), String> {
    config.check().map_err(|why| why.to_string())?;
    let lines = story.lines().map(str::trim).filter(|line| !line.is_empty());
    let mut world = World::new(config, broken);
    let (mut told, mut differs) = (String::new(), false);
    for line in lines {
        let (said, expected) = line.split_once("=>").unwrap_or((line, ""));
        let words: Vec<&str> = said.split_whitespace().collect();
        world.act(&words);
        let happened = world.happened();
        let expected = expected.split_whitespace().collect::<Vec<_>>().join(" ");
        let same = happened == expected;
        differs |= !same;
        let mark = if same { ' ' } else { '!' };
        let _ = writeln!(told, "{mark} {:<34} => {happened}", words.join(" "));
        if !same {
            let _ = writeln!(told, "  {:<34}    expected: {expected}", "");
        }
    }
    if differs {
        return Err(format!("the story went otherwise:\n{told}"));
    }
    Ok(())
}

struct World {
    config: Arc<EngineConfig>,
    ring: Arc<Ring>,
    hosts: Vec<Host>,
    apart: bool,
    broken: Option<Sabotage>,
    now: Time,
    offsets: [u64; 3],
    log: [VecDeque<(Time, CommandRecord)>; 3],
    rides: BTreeMap<String, (RideId, Time)>,
    names: BTreeMap<RideId, String>,
    people: BTreeMap<String, String>,
    places: BTreeMap<&'static str, Place>,
    commands: u32,
    happened: Vec<EventRecord>,
}

impl World {
    fn new(config: &EngineConfig, broken: Option<Sabotage>) -> World {
        let ring = Arc::new(Ring::new(3).expect("three is allowed"));
        let config = Arc::new(config.clone());
        let resolution =
            Resolution::try_from(config.ownership_resolution).expect("the settings were checked");
        let here =
            |north: i32| Point::new(37.0 + f64::from(north) * 0.3, -122.0).expect("on the earth");
        let mut places = (0..)
            .map(here)
            .filter(|point| ring.shard_of_cell(Cell::at(*point, resolution).into()) == RIDES.0);
        let places = ["A", "B"]
            .into_iter()
            .map(|name| (name, Place(places.next().expect("every shard owns cells"))))
            .collect();
        let mut world = World {
            hosts: Vec::new(),
            apart: false,
            broken,
            now: START,
            offsets: [0; 3],
            log: Default::default(),
            rides: BTreeMap::new(),
            names: BTreeMap::new(),
            people: BTreeMap::new(),
            places,
            commands: 0,
            happened: Vec::new(),
            config,
            ring,
        };
        world.build(|id, world| Shard::new(id, world.config.clone(), world.ring.clone()));
        world.clock();
        world
    }

    fn build(&mut self, shard: impl Fn(ShardId, &World) -> Shard) {
        let shards: Vec<Shard> = [RIDES, RIDERS, DRIVERS]
            .into_iter()
            .map(|id| shard(id, self))
            .collect();
        self.hosts = match self.apart {
            true => shards
                .into_iter()
                .map(|shard| Host::new([shard], 8))
                .collect(),
            false => vec![Host::new(shards, 8)],
        };
        if let Some(broken) = self.broken {
            self.hosts.iter_mut().for_each(|host| host.sabotage(broken));
        }
    }

    fn shard(&self, id: ShardId) -> &Shard {
        let mut found = self.hosts.iter().filter_map(|host| host.shard(id));
        found.next().expect("every shard lives somewhere")
    }

    /// The clock moves on, for the hosts that have read all their input (PROTOCOL 15).
    fn clock(&mut self) {
        for mut host in std::mem::take(&mut self.hosts) {
            let caught_up = host
                .shards()
                .all(|shard| self.log[usize::from(shard.id().0)].is_empty());
            let mut batch = Batch::default();
            if caught_up {
                host.handle_time(&mut batch, self.now);
            }
            self.hosts.push(host);
            self.commit(batch);
        }
    }

    /// Every shard is dropped and read back from the JSON of its header and states.
    fn restart(&mut self) {
        self.build(|id, world| {
            let old = world.shard(id);
            let entities = old
                .rides()
                .map(|ride| EntityId::Ride(ride.id))
                .chain(old.drivers().map(|d| EntityId::Driver(d.id.clone())))
                .chain(old.riders().map(|r| EntityId::Rider(r.id.clone())))
                .chain(old.market().map(|_| EntityId::Market));
            let states = entities.map(|entity| -> EntityState {
                let json = serde_json::to_string(&old.state_of(&entity)).expect("states are JSON");
                serde_json::from_str(&json).expect("states read back")
            });
            let (config, ring) = (world.config.clone(), world.ring.clone());
            Shard::restore(id, config, ring, old.time(), old.counters().clone(), states)
        });
    }

    /// The id of somebody of this name who lives in the shard the story wants.
    fn person(&mut self, kind: Kind, name: &str) -> String {
        let home = match kind {
            Kind::Rider => RIDERS,
            Kind::Driver => DRIVERS,
        };
        let ring = &self.ring;
        let id = (0..)
            .map(|n| format!("{name}.{n}"))
            .find(|id| ring.shard_of_person(kind, id) == home.0)
            .expect("every shard has people");
        self.people.insert(id.clone(), name.to_string());
        id
    }

    fn rider(&mut self, name: &str) -> RiderId {
        RiderId::new(&self.person(Kind::Rider, name)).expect("a good id")
    }

    fn driver(&mut self, name: &str) -> DriverId {
        DriverId::new(&self.person(Kind::Driver, name)).expect("a good id")
    }

    fn ride(&self, name: &str) -> RideId {
        let unknown = RideId {
            place: RIDES,
            minted_by: RIDERS,
            offset: 999,
        };
        self.rides.get(name).map_or(unknown, |(ride, _)| *ride)
    }

    /// `R1` is the hold the ride has, or its newest claim; `R1#2` a certain one.
    fn hold(&self, word: &str) -> HoldId {
        let (name, attempt) = word.split_once('#').unwrap_or((word, ""));
        let ride = self.ride(name);
        let newest = || {
            self.shard(RIDES)
                .ride(ride)
                .map(|known| known.hold().attempt)
        };
        let attempt = attempt.parse().ok().or_else(newest).unwrap_or(1);
        HoldId { ride, attempt }
    }

    fn act(&mut self, words: &[&str]) {
        let after = |word: &str| {
            words
                .iter()
                .position(|w| *w == word)
                .map(|at| words[at + 1])
        };
        let by = after("by").unwrap_or_default();
        match *words {
            ["apart"] => self.live(true),
            ["together"] => self.live(false),
            ["restart"] => self.restart(),
            ["wait", time] => {
                self.now = self.now.plus_ms(ms(time));
                self.clock();
            }
            // Time passes for the log only: the nodes are down.
            ["sleep", time] => self.now = self.now.plus_ms(ms(time)),
            ["read", whose] => self.read(shard_named(whose)),
            // A message overtakes the others: the log never does that, the hold ids stand it all the same.
            ["read-newest", whose] => self.read_last(shard_named(whose)),
            ["round", ref pairs @ ..] => self.round(pairs),
            ["stale-round", ref pairs @ ..] => self.stale_round(pairs),
            ["swap", ref moves @ ..] => self.swap(moves),
            ["head", driver, where_to, ..] => {
                let driver = self.driver(driver);
                let to = (where_to == "home").then(|| self.places["A"]);
                self.say(words, Command::SetHeading { driver, to });
            }
            [what @ ("enter" | "leave"), driver, airport, ..] => {
                let driver = self.driver(driver);
                let session =
                    SessionId(after("session").map_or(1, |s| s.parse().expect("a number")));
                let airport = ZoneName::new(airport).expect("a good name");
                let command = match what {
                    "enter" => Command::EnterQueue {
                        driver,
                        session,
                        airport,
                    },
                    _ => Command::LeaveQueue {
                        driver,
                        session,
                        airport,
                    },
                };
                self.say(words, command);
            }
            // What the market is set to, as JSON without blanks.
            ["set", json, ..] => {
                let settings = serde_json::from_str(json).expect("settings are JSON");
                self.say(words, Command::SetDispatch { settings });
            }
            // More shards, which nobody in these stories is put on.
            [what @ ("announce" | "begin"), to, ..] => {
                let to = to.parse().expect("a number");
                let step = match what {
                    "announce" => GrowthStep::Announced,
                    _ => GrowthStep::Begun,
                };
                self.say(words, Command::GrowRing { to, step });
            }
            ["drain", node, ..] => {
                let node = NodeName::new(node).expect("a good name");
                self.say(words, Command::DrainNode { node });
            }
            ["suspend", driver, ..] => {
                let driver = self.driver(driver);
                let reason = Reason::new(after("for").unwrap_or("complaint")).expect("a reason");
                self.say(words, Command::SuspendDriver { driver, reason });
            }
            ["reinstate", driver, ..] => {
                let driver = self.driver(driver);
                self.say(words, Command::ReinstateDriver { driver });
            }
            ["block", rider, ..] => {
                let (rider, driver) = (self.rider(rider), self.driver(by));
                self.say(words, Command::BlockRider { driver, rider });
            }
            ["unblock", rider, ..] => {
                let (rider, driver) = (self.rider(rider), self.driver(by));
                self.say(words, Command::UnblockRider { driver, rider });
            }
            ["request", name, ..] => self.request(name, words),
            ["cancel-key", key, ..] => {
                let key = IdempotencyKey::new(key).expect("a good key");
                let rider = self.rider(by);
                self.say(words, Command::CancelByKey { rider, key });
            }
            ["cancel", ride, ..] => {
                let ride = self.ride(ride);
                let reason = after("for").map(|why| Reason::new(why).expect("a reason"));
                let (by, rider) = match by {
                    "ops" => (CancelledBy::Ops, None),
                    rider => (CancelledBy::Rider, Some(self.rider(rider))),
                };
                self.say(
                    words,
                    Command::CancelRide {
                        ride,
                        by,
                        rider,
                        reason,
                    },
                );
            }
            ["lead", ride, "to", place, ..] => {
                let (ride, to) = (self.ride(ride), self.places[place]);
                let rider = (by != "ops").then(|| self.rider(by));
                self.say(words, Command::ChangeDestination { ride, to, rider });
            }
            ["online", driver, ..] => {
                let driver = self.driver(driver);
                let session =
                    SessionId(after("session").map_or(1, |s| s.parse().expect("a number")));
                let class =
                    after("class").map_or(VehicleClass::Economy, |c| c.parse().expect("a class"));
                let classes = ClassSet::of(&[class]).expect("one class");
                self.say(
                    words,
                    Command::GoOnline {
                        driver,
                        session,
                        classes,
                    },
                );
            }
            ["offline", driver, ..] => {
                let driver = self.driver(driver);
                let session =
                    SessionId(after("session").map_or(1, |s| s.parse().expect("a number")));
                self.say(words, Command::GoOffline { driver, session });
            }
            ["silent", driver, ..] => {
                let driver = self.driver(driver);
                let session =
                    SessionId(after("session").map_or(1, |s| s.parse().expect("a number")));
                let silent = Command::DriverSilent { driver, session };
                let record = CommandRecord::internal(DRIVERS, self.now, silent);
                self.append(CommandRecord {
                    from: None,
                    ..record
                });
                self.read_last(DRIVERS);
            }
            [what, ride, ..] => {
                let (hold, driver) = (self.hold(ride), self.driver(by));
                let command = match what {
                    "receive" => Command::ReceiveOffer { hold, driver },
                    "accept" => Command::AcceptOffer { hold, driver },
                    "decline" => Command::DeclineOffer { hold, driver },
                    "arrive" => Command::Arrive { hold, driver },
                    "start" => Command::StartRide { hold, driver },
                    "complete" => Command::CompleteRide { hold, driver },
                    "give-back" => Command::GiveBack { hold, driver },
                    other => panic!("the language has no {other:?}"),
                };
                self.say(words, command);
            }
            [] | [_] => panic!("the language has no {words:?}"),
        }
    }

    fn live(&mut self, apart: bool) {
        self.apart = apart;
        self.restart();
    }

    fn request(&mut self, name: &str, words: &[&str]) {
        let after = |word: &str| {
            words
                .iter()
                .position(|w| *w == word)
                .map(|at| words[at + 1])
        };
        let rider = self.rider(after("by").expect("by somebody"));
        let key = IdempotencyKey::new(after("key").unwrap_or(name)).expect("a good key");
        let issued_at = match after("issued") {
            Some(ago) => Time(self.now.0 - i64::try_from(ms(ago)).expect("small")),
            None => self.now,
        };
        let ride = RideId {
            place: RIDES,
            minted_by: RIDERS,
            offset: self.offsets[1],
        };
        if !self.rides.contains_key(name) {
            self.rides.insert(name.to_string(), (ride, issued_at));
        }
        let known_as = if self.rides[name].0 == ride {
            name.to_string()
        } else {
            format!("{name}'")
        };
        self.names.insert(ride, known_as);
        let command = Command::RequestRide {
            rider,
            key,
            pickup: self.places[after("at").unwrap_or("A")],
            dropoff: None,
            class: after("class").map_or(VehicleClass::Economy, |c| c.parse().expect("a class")),
            zone: after("zone").map(|found| Box::new(self.zone(found, after("at")))),
            airport: after("airport").map(|name| ZoneName::new(name).expect("a good name")),
        };
        self.say_at(words, issued_at, command);
    }

    /// What the gateway's zones say: `out` of every service area, or the place of a pickup point.
    fn zone(&self, found: &str, asked: Option<&str>) -> ZoneFinding {
        if found == "out" {
            return ZoneFinding::OutOfArea;
        }
        ZoneFinding::At(PickupPoint {
            zone: ZoneName::new("Station").expect("a good name"),
            name: ZoneName::new(found).expect("a good name"),
            at: self.places[found],
            asked: self.places[asked.unwrap_or("A")],
        })
    }

    fn say(&mut self, words: &[&str], command: Command) {
        self.say_at(words, self.now, command);
    }

    /// A person's command goes into the log, and is read at once unless the line ends with `unread`.
    fn say_at(&mut self, words: &[&str], issued_at: Time, command: Command) {
        self.commands += 1;
        let after = |word: &str| {
            words
                .iter()
                .position(|w| *w == word)
                .map(|at| words[at + 1])
        };
        let id = after("id").map_or_else(|| format!("c{}", self.commands), str::to_string);
        let id = CommandId::new(&id).expect("a good id");
        let shard = home(&command);
        self.append(CommandRecord::external(id, issued_at, command));
        if words.last() != Some(&"unread") {
            self.read_last(shard);
        }
    }

    fn append(&mut self, record: CommandRecord) {
        let shard = home(&record.command);
        self.log[usize::from(shard.0)].push_back((self.now, record));
    }

    /// Takes the shard's newest input first, as if it had come before the messages that wait there.
    fn read_last(&mut self, shard: ShardId) {
        let log = &mut self.log[usize::from(shard.0)];
        if let Some(last) = log.pop_back() {
            log.push_front(last);
            self.read(shard);
        }
    }

    fn read(&mut self, shard: ShardId) {
        let at = usize::from(shard.0);
        let Some((appended_at, record)) = self.log[at].pop_front() else {
            return;
        };
        let mut batch = Batch::default();
        let offset = self.offsets[at];
        self.offsets[at] += 1;
        for host in &mut self.hosts {
            host.handle_command(&mut batch, shard, offset, appended_at, &record);
        }
        self.commit(batch);
    }

    fn commit(&mut self, batch: Batch) {
        self.happened.extend(batch.events);
        for message in batch.messages {
            self.log[usize::from(message.to.0)].push_back((self.now, message.record));
        }
    }

    /// `R1>d7` pairs, a bare `R1` was looked at in vain.
    fn round(&mut self, pairs: &[&str]) {
        let version =
            |world: &World, ride| world.shard(RIDES).ride(ride).map_or(0, |known| known.seq);
        self.round_of(pairs, version);
    }

    /// A round whose snapshot is older than the ride's newest event.
    fn stale_round(&mut self, pairs: &[&str]) {
        let version = |world: &World, ride| {
            world
                .shard(RIDES)
                .ride(ride)
                .map_or(0, |known| known.seq - 1)
        };
        self.round_of(pairs, version);
    }

    fn round_of(&mut self, pairs: &[&str], version: impl Fn(&World, RideId) -> u32) {
        let mut result = RoundResult::default();
        for pair in pairs {
            let (name, driver) = pair.split_once('>').unwrap_or((pair, ""));
            let ride = self.ride(name);
            let version = version(self, ride);
            result.looked.push((ride, version));
            if !driver.is_empty() {
                let driver = self.driver(driver);
                result.pairs.push(Pair {
                    ride,
                    version,
                    driver,
                    cost_ms: 0,
                });
            }
        }
        let mut batch = Batch::default();
        for host in &mut self.hosts {
            host.handle_round(&mut batch, RIDES, &result);
        }
        self.commit(batch);
    }

    /// `R1>d8:90 R2>d7`: R1 gets d8, which saves 90 s; R2 then gets d7. `R3>d7 from R1`: R1 gives d7 up and waits again.
    fn swap(&mut self, moves: &[&str]) {
        let seen = |name: &str| {
            let ride = self.ride(name);
            let version = self.shard(RIDES).ride(ride).map_or(0, |known| known.seq);
            GivesUp { ride, version }
        };
        let (moves, gives_up) = match moves {
            [moves @ .., "from", name] => (moves, Some(seen(name))),
            moves => (moves, None),
        };
        let moves = moves.iter().map(|part| {
            let (name, driver) = part.split_once('>').expect("a ride and its new driver");
            let ride = self.ride(name);
            let version = self.shard(RIDES).ride(ride).map_or(0, |known| known.seq);
            let (driver, gain_s) = driver.split_once(':').unwrap_or((driver, "0"));
            let driver = self.driver(driver);
            Move {
                ride,
                version,
                driver,
                gain_s: gain_s.parse().expect("whole seconds"),
            }
        });
        let result = RoundResult {
            swaps: vec![Swap {
                moves: moves.collect(),
                gives_up,
            }],
            ..RoundResult::default()
        };
        let mut batch = Batch::default();
        for host in &mut self.hosts {
            host.handle_round(&mut batch, RIDES, &result);
        }
        self.commit(batch);
    }

    fn happened(&mut self) -> String {
        let events = std::mem::take(&mut self.happened);
        let said: Vec<String> = events
            .iter()
            .map(|e| self.words(&e.event, e.time))
            .collect();
        said.join("; ")
    }

    fn words(&self, event: &Event, at: Time) -> String {
        let r = |ride: &RideId| {
            self.names
                .get(ride)
                .cloned()
                .unwrap_or_else(|| ride.to_string())
        };
        let d = |driver: &DriverId| {
            self.people
                .get(driver.as_str())
                .cloned()
                .unwrap_or_default()
        };
        let p = |rider: &RiderId| self.people.get(rider.as_str()).cloned().unwrap_or_default();
        let s = |until: Time| format!("{}s", until.since(at) as f64 / 1_000.0);
        match event {
            Event::RideRequested(e) => match &e.pickup_point {
                None => format!("open {}", r(&e.ride)),
                Some(point) => {
                    assert_eq!(point.at, e.pickup, "told one place, fetched at another");
                    format!("open {} at point {}", r(&e.ride), point.name)
                }
            },
            Event::DestinationChanged(e) => {
                let place = self.places.iter().find(|(_, place)| **place == e.to);
                format!(
                    "{} leads to {}",
                    r(&e.ride),
                    place.map_or("?", |(name, _)| name)
                )
            }
            Event::SearchedInVain(e) => format!("{} in vain", r(&e.ride)),
            Event::SearchWidened(e) => format!("{} within {}m", r(&e.ride), e.radius_m),
            Event::DriverClaimed(e) => {
                let from = e.from.map_or_else(String::new, |from| {
                    format!(" from {}#{}", r(&from.ride), from.attempt)
                });
                format!("{}#{} claims {}{from}", r(&e.ride), e.attempt, d(&e.driver))
            }
            Event::SecondHoldGranted(e) => {
                format!("{}#{} has {} too", r(&e.ride), e.attempt, d(&e.driver))
            }
            Event::HoldAsked(e) => {
                format!("{}#{} may lose {}", r(&e.ride), e.attempt, d(&e.driver))
            }
            Event::HoldMoved(e) => {
                format!("{}#{} lost {}", r(&e.ride), e.attempt, d(&e.driver))
            }
            Event::HoldKept(e) => {
                format!("{}#{} keeps {}", r(&e.ride), e.attempt, d(&e.driver))
            }
            Event::ReportWaits(e) => format!("{} waits", word(&e.report)),
            Event::DriverReassigned(e) => {
                let mut text = format!("{}#{}", r(&e.ride), e.attempt);
                text += &format!(" goes from {} to {}", d(&e.before), d(&e.driver));
                if e.gained_s != 0 {
                    let instead_of = e
                        .instead_of
                        .map(|other| format!(" leaves {} and", r(&other)));
                    let instead_of = instead_of.unwrap_or_default();
                    text += &format!(", who{instead_of} comes {}s sooner", e.gained_s);
                }
                text
            }
            Event::ClaimDenied(e) => format!(
                "{}#{} denied {}: {}",
                r(&e.ride),
                e.attempt,
                d(&e.driver),
                word(&e.why)
            ),
            Event::ClaimAbandoned(e) => {
                format!("{}#{} abandons {}", r(&e.ride), e.attempt, d(&e.driver))
            }
            Event::OfferMade(e) => format!(
                "offer {}#{} to {} for {}",
                r(&e.ride),
                e.attempt,
                d(&e.driver),
                s(e.receipt_by)
            ),
            Event::OfferReceived(e) => {
                format!("{}#{} shown for {}", r(&e.ride), e.attempt, s(e.answer_by))
            }
            Event::OfferDeclined(e) => format!(
                "{}#{} {} by {}",
                r(&e.ride),
                e.attempt,
                word(&e.why),
                d(&e.driver)
            ),
            Event::OfferExpired(e) => {
                format!("{}#{} expired: {}", r(&e.ride), e.attempt, word(&e.why))
            }
            Event::DriverAssigned(e) => {
                format!("assign {}#{} to {}", r(&e.ride), e.attempt, d(&e.driver))
            }
            Event::DriverLost(e) => format!(
                "{} loses {}: {}, {} more",
                r(&e.ride),
                d(&e.driver),
                word(&e.why),
                s(e.deadline)
            ),
            Event::DriverArrived(e) => format!("{} arrived for {}", d(&e.driver), s(e.start_by)),
            Event::RideStarted(e) => format!("{} started", r(&e.ride)),
            Event::RideCompleted(e) => format!("{} completed: {}", r(&e.ride), word(&e.why)),
            Event::RideCancelled(e) => {
                let why = e.reason.as_ref().map(|why| format!(": {}", why.as_str()));
                let by = word(&e.by);
                format!(
                    "{} cancelled by {by}{}",
                    r(&e.ride),
                    why.unwrap_or_default()
                )
            }
            Event::RideUnfulfilled(e) => format!("{} unfulfilled: {}", r(&e.ride), word(&e.why)),
            Event::DriverOnline(e) => format!("{} online", d(&e.driver)),
            Event::DriverHeld(e) => {
                format!("{} held for {}#{}", d(&e.driver), r(&e.ride), e.attempt)
            }
            Event::DriverReleased(e) => format!(
                "{} released from {}#{}{}",
                d(&e.driver),
                r(&e.ride),
                e.attempt,
                e.queue
                    .as_ref()
                    .map_or_else(String::new, |place| format!(", {}", waits(place)))
            ),
            Event::DriverQueued(e) => format!("{} {}", d(&e.driver), waits(&e.place)),
            Event::DriverUnqueued(e) => format!("{} left {}", d(&e.driver), e.airport),
            Event::DriverLeaving(e) => format!("{} leaving: {}", d(&e.driver), word(&e.why)),
            Event::DriverOffline(e) => format!("{} offline: {}", d(&e.driver), word(&e.why)),
            Event::DriverSuspended(e) => {
                format!("{} suspended: {}", d(&e.driver), e.reason.as_str())
            }
            Event::DriverReinstated(e) => format!("{} reinstated", d(&e.driver)),
            Event::RiderBlocked(e) => format!("{} without {}", d(&e.driver), p(&e.rider)),
            Event::RiderUnblocked(e) => format!("{} with {}", d(&e.driver), p(&e.rider)),
            Event::DriverForgotten(e) => format!("{} forgotten", d(&e.driver)),
            Event::RiderBusy(e) => format!("{} busy with {}", p(&e.rider), r(&e.ride)),
            Event::RideConfirmed(e) => format!("{} knows of {}", p(&e.rider), r(&e.ride)),
            Event::RideNotOpened(e) => {
                format!("{} without {}: {}", p(&e.rider), r(&e.ride), word(&e.why))
            }
            Event::RequestRefused(e) => format!("{} not again: {}", p(&e.rider), word(&e.why)),
            Event::KeyCancelled(e) => format!("{} cancelled key {}", p(&e.rider), e.key),
            Event::RiderFree(e) => format!("{} free", p(&e.rider)),
            Event::RiderForgotten(e) => format!("{} forgotten", p(&e.rider)),
            Event::SwapAsked(e) => {
                format!("ask {} for {} {}s", d(&e.driver), r(&e.ride), e.gain_s)
            }
            Event::SwapAnswered(e) => {
                format!("{} on {}: {}", d(&e.driver), r(&e.ride), word(&e.answer))
            }
            Event::HeadingSet(e) => {
                let where_to = if e.to.is_some() { "home" } else { "anywhere" };
                format!("{} heads {where_to}", d(&e.driver))
            }
            Event::DrainAsked(e) => format!("market {}: {} leaves", e.market_seq, e.node),
            Event::DispatchSet(e) => format!("market {}: {}", e.market_seq, e.settings),
            Event::RingGrows(e) => {
                let (from, to) = (e.growth.from, e.growth.to);
                format!("market {}: {from} to {to} {}", e.market_seq, word(&e.step))
            }
            Event::DriverHandedOver(e) => format!("{} goes to {}", d(&e.driver), e.to),
            Event::DriverTakenOver(e) => format!("{} comes from {}", d(&e.driver), e.from),
            Event::RiderHandedOver(e) => format!("{} goes to {}", p(&e.rider), e.to),
            Event::RiderTakenOver(e) => format!("{} comes from {}", p(&e.rider), e.from),
            Event::CommandOutcome(e) => match &e.outcome {
                Outcome::Done => format!("done{}", at_point(e)),
                Outcome::AlreadyDone => format!("already done{}", at_point(e)),
                Outcome::Refused { why } => format!("refused: {}", word(why)),
            },
        }
    }
}

fn waits(place: &QueuePlace) -> String {
    let since_s = place.since.since(START) as f64 / 1_000.0;
    format!("waits at {} since {since_s}s", place.airport)
}

fn at_point(outcome: &cabrank_events::event::CommandOutcome) -> String {
    let point = outcome.pickup_point.as_ref();
    point.map_or_else(String::new, |point| format!(" at point {}", point.name))
}

fn home(command: &Command) -> ShardId {
    match command.entity() {
        EntityId::Ride(_) => RIDES,
        EntityId::Market => MARKET_SHARD,
        EntityId::Rider(_) => RIDERS,
        EntityId::Driver(_) => DRIVERS,
    }
}

fn shard_named(whose: &str) -> ShardId {
    match whose {
        "rides" => RIDES,
        "riders" => RIDERS,
        "drivers" => DRIVERS,
        other => panic!("there is no shard of {other:?}"),
    }
}

/// `5s`, `250ms` or `4m` in milliseconds.
fn ms(time: &str) -> u64 {
    let number = |text: &str| text.parse::<u64>().expect("a number");
    match (
        time.strip_suffix("ms"),
        time.strip_suffix('s'),
        time.strip_suffix('m'),
    ) {
        (Some(ms), _, _) => number(ms),
        (None, Some(s), _) => number(s) * 1_000,
        (None, None, Some(m)) => number(m) * 60_000,
        (None, None, None) => panic!("{time:?} is no time"),
    }
}

/// `NoReceipt` as `no receipt`.
fn word(value: &impl std::fmt::Debug) -> String {
    let mut words = String::new();
    for (at, letter) in format!("{value:?}").char_indices() {
        if letter.is_uppercase() && at > 0 {
            words.push(' ');
        }
        words.push(letter.to_ascii_lowercase());
    }
    words
}
