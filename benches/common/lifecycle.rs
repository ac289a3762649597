//! Whole rides in the engine's memory: request, offer, receipt, accept, arrive, start, complete.
//!
//! Eight shards on one node, so a ride's messages hop between its rider's, its place's and its driver's shard as they do
//! in a server. Rounds are given, not solved. Each command is a transaction of its own. The clock moves a second a ride, so
//! ended rides are forgotten as fast as new ones come.

#![allow(dead_code, reason = "each bench uses its part of it")]

use std::sync::Arc;

use cabrank_engine::matching::{Pair, RoundResult};
use cabrank_engine::{Batch, EngineConfig, Host, Shard};
use cabrank_events::command::{EntityId, MARKET_SHARD};
use cabrank_events::{
    ClassSet, Command, CommandId, CommandRecord, DriverId, Event, HoldId, IdempotencyKey, Place,
    RideId, RiderId, SessionId, ShardId, Time, VehicleClass,
};
use cabrank_geo::Point;
use cabrank_ring::{Kind, Ring};

const SHARDS: u16 = 8;
const START: Time = Time(1_211_504_400_000);
const STEP_MS: u64 = 1_000;
/// Commands of one ride that come from people.
pub const COMMANDS: u64 = 6;

/// A city without a log and without an index.
pub struct City {
    host: Host,
    ring: Arc<Ring>,
    offsets: [u64; SHARDS as usize],
    now: Time,
    drivers: Vec<DriverId>,
    rides: u64,
    commands: u64,
}

impl City {
    /// With so many drivers online.
    pub fn new(drivers: usize) -> Self {
        let ring = Arc::new(Ring::new(SHARDS).expect("a possible ring"));
        let config = Arc::new(EngineConfig::default());
        let shards = (0..SHARDS).map(|n| Shard::new(ShardId(n), config.clone(), ring.clone()));
        let driver = |n| DriverId::new(&format!("driver-{n}")).expect("a good id");
        let mut city = Self {
            host: Host::new(shards, usize::MAX),
            ring,
            offsets: [0; SHARDS as usize],
            now: START,
            drivers: (0..drivers).map(driver).collect(),
            rides: 0,
            commands: 0,
        };
        city.host.handle_time(&mut Batch::default(), START);
        for driver in city.drivers.clone() {
            let classes = ClassSet::of(&[VehicleClass::Economy]).expect("one class");
            let session = SessionId(1);
            city.say(Command::GoOnline {
                driver,
                session,
                classes,
            });
        }
        city
    }

    fn say(&mut self, command: Command) -> Batch {
        let shard = match command.entity() {
            EntityId::Ride(ride) => ride.place.0,
            EntityId::Driver(id) => self.ring.shard_of_person(Kind::Driver, id.as_str()),
            EntityId::Rider(id) => self.ring.shard_of_person(Kind::Rider, id.as_str()),
            EntityId::Market => MARKET_SHARD.0,
        };
        self.commands += 1;
        let id = CommandId::new(&format!("bench/{}", self.commands)).expect("a good id");
        let record = CommandRecord::external(id, self.now, command);
        let offset = &mut self.offsets[usize::from(shard)];
        *offset += 1;
        let mut batch = Batch::default();
        let (shard, offset) = (ShardId(shard), *offset - 1);
        self.host
            .handle_command(&mut batch, shard, offset, self.now, &record);
        batch
    }

    /// The next ride from its request to its completion; `written` is handed what each transaction would write.
    pub fn ride(&mut self, mut written: impl FnMut(&Host, Batch)) {
        let n = self.rides;
        self.rides += 1;
        self.now = self.now.plus_ms(STEP_MS);
        let driver = self.drivers[n as usize % self.drivers.len()].clone();
        let north = (n % 64) as f64 / 64.0;
        let mut batch = self.say(Command::RequestRide {
            rider: RiderId::new(&format!("rider-{}", n % 4_096)).expect("a good id"),
            key: IdempotencyKey::new(&format!("wish-{n}")).expect("a good key"),
            pickup: Place(Point::new(37.5 + north, -122.4).expect("on the earth")),
            dropoff: None,
            class: VehicleClass::Economy,
            zone: None,
            airport: None,
        });
        self.host.handle_time(&mut batch, self.now);
        let opened = batch.events.iter().find_map(|record| match &record.event {
            Event::RideRequested(e) => Some(e.ride),
            _ => None,
        });
        let ride = opened.expect("the rider is free");
        // In the same transaction, as a small round is.
        let hold = self.round(&mut batch, ride, &driver);
        written(&self.host, batch);
        let by = || driver.clone();
        for command in [
            Command::ReceiveOffer { hold, driver: by() },
            Command::AcceptOffer { hold, driver: by() },
            Command::Arrive { hold, driver: by() },
            Command::StartRide { hold, driver: by() },
            Command::CompleteRide { hold, driver: by() },
        ] {
            let batch = self.say(command);
            written(&self.host, batch);
        }
        let held = |shard: &Shard| shard.driver(&driver).is_some_and(|d| d.held.is_some());
        assert!(!self.host.shards().any(held), "the ride has not ended");
    }

    fn round(&mut self, batch: &mut Batch, ride: RideId, driver: &DriverId) -> HoldId {
        let waiting = self
            .host
            .shard(ride.place)
            .and_then(|shard| shard.ride(ride));
        let version = waiting.expect("it waits").seq;
        let result = RoundResult {
            looked: vec![(ride, version)],
            pairs: vec![Pair {
                ride,
                version,
                driver: driver.clone(),
                cost_ms: 60_000,
            }],
            ..RoundResult::default()
        };
        self.host.handle_round(batch, ride.place, &result);
        let offered = batch.events.iter().find_map(|record| match &record.event {
            Event::OfferMade(e) => Some(e.attempt),
            _ => None,
        });
        let attempt = offered.expect("the driver is free");
        HoldId { ride, attempt }
    }
}
