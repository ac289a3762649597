//! One shard becomes two: what the new one does while the old one's people are on their way to it.
//!
//! The simulation plays growths of all kinds; here is what it does not look at: sizes, and what a shard says of whom it lacks.

use std::sync::Arc;

use cabrank_events::command::{EntityId, GrowthStep, Outcome, RefusedBecause, RingWord};
use cabrank_events::{
    Command, CommandId, CommandRecord, DriverId, Event, HoldId, Reason, RideId, RiderId, ShardId,
    Time, VehicleClass,
};
use cabrank_ring::{Kind, Ring};

use crate::EngineConfig;
use crate::shard::{Counters, Effects, Message, Shard};

const OLD: ShardId = ShardId(0);
const NEW: ShardId = ShardId(1);
const NOW: Time = Time(1_000_000_000);
/// A header is a record of the log: `RECORD_MAX_BYTES` of `eventlog`.
const RECORD_BYTES_MAX: usize = 1024 * 1024;

struct City {
    shards: [Shard; 2],
    config: Arc<EngineConfig>,
    /// What shards have said and nobody has heard yet, in order.
    under_way: Vec<Message>,
    offset: u64,
}

impl City {
    fn new(config: EngineConfig) -> City {
        config.check().expect("sound settings");
        let (config, ring) = (Arc::new(config), Arc::new(Ring::new(1).expect("a ring")));
        let shard = |id| Shard::new(id, config.clone(), ring.clone());
        City {
            shards: [shard(OLD), shard(NEW)],
            config: config.clone(),
            under_way: Vec::new(),
            offset: 0,
        }
    }

    /// A city whose new shard has asked for its people, and the old one has not heard it yet.
    fn asked(config: EngineConfig) -> City {
        let mut city = City::new(config);
        for step in [GrowthStep::Announced, GrowthStep::Begun] {
            assert_eq!(city.grow(2, step), Outcome::Done);
        }
        let is_asking = |message: &Message| {
            let said = &message.record.command;
            matches!(
                said,
                Command::Ring {
                    said: RingWord::Give,
                    ..
                }
            )
        };
        while let Some(next) = city.under_way.iter().position(|said| !is_asking(said)) {
            let Message { to, record } = city.under_way.remove(next);
            city.hears(to, &record);
        }
        assert_eq!(city.under_way.len(), 1, "the new shard has asked once");
        city
    }

    /// Everybody hears all there is to hear.
    fn settle(&mut self) {
        while !self.under_way.is_empty() {
            let Message { to, record } = self.under_way.remove(0);
            self.hears(to, &record);
        }
    }

    fn hears(&mut self, shard: ShardId, record: &CommandRecord) -> Effects {
        let owner = &mut self.shards[usize::from(shard.0)];
        self.offset += 1;
        owner.handle_command(self.offset, NOW, record);
        let effects = owner.take_effects();
        self.under_way.extend(effects.messages.iter().cloned());
        effects
    }

    /// Somebody says it, and the shard answers, or lets it wait.
    fn says(&mut self, shard: ShardId, command: Command) -> (Option<Outcome>, Effects) {
        let id = CommandId::new(&format!("c{}", self.offset)).expect("a good id");
        let effects = self.hears(shard, &CommandRecord::external(id, NOW, command));
        let mut answers = effects
            .events
            .iter()
            .filter_map(|record| match &record.event {
                Event::CommandOutcome(answer) => Some(answer.outcome.clone()),
                _ => None,
            });
        (answers.next_back(), effects)
    }

    fn grow(&mut self, to: u16, step: GrowthStep) -> Outcome {
        let (outcome, _) = self.says(OLD, Command::GrowRing { to, step });
        outcome.expect("the market answers at once")
    }

    fn header(&self, shard: ShardId) -> String {
        let counters = self.shards[usize::from(shard.0)].counters();
        serde_json::to_string(counters).expect("counters are JSON")
    }

    fn waiting(&self) -> usize {
        let growing = self.shards[1].counters().growing.as_ref();
        growing.map_or(0, |growing| growing.waiting().count())
    }

    /// The new shard is dropped and read back from its header.
    fn restart(&mut self) {
        let counters: Counters = serde_json::from_str(&self.header(NEW)).expect("it reads back");
        let ring = Arc::new(Ring::new(1).expect("a ring"));
        self.shards[1] = Shard::restore(NEW, self.config.clone(), ring, NOW, counters, []);
    }
}

/// Somebody who moves, with as long a name as names may be.
fn mover() -> DriverId {
    let grown = Ring::new(2).expect("a ring");
    let mut names = (0..).map(|n| format!("{n:0>64}"));
    let moves = |id: &String| grown.shard_of_person(Kind::Driver, id) == NEW.0;
    DriverId::new(&names.find(moves).expect("somebody moves")).expect("a good id")
}

fn suspend(driver: &DriverId) -> Command {
    Command::SuspendDriver {
        driver: driver.clone(),
        reason: Reason::new(&"x".repeat(200)).expect("a reason"),
    }
}

/// What a ride of the old shard says to a driver's, as long as such messages get.
fn transfer(driver: &DriverId) -> CommandRecord {
    let ride = RideId {
        place: OLD,
        minted_by: OLD,
        offset: u64::MAX,
    };
    let hold = HoldId {
        ride,
        attempt: u32::MAX,
    };
    let command = Command::TransferHold {
        driver: driver.clone(),
        from: hold,
        hold,
        class: VehicleClass::Economy,
        rider: RiderId::new(&"r".repeat(64)).expect("a good id"),
    };
    CommandRecord::internal(OLD, NOW, command)
}

const FULL: Outcome = Outcome::Refused {
    why: RefusedBecause::ShardFull,
};

/// The header is one record, and a record has a bound: a header that outgrows it would stop one node after the other.
#[test]
fn what_waits_never_outgrows_the_header() {
    let mut city = City::asked(EngineConfig::default());
    let driver = mover();
    let mut refused = 0;
    for _ in 0..10_000 {
        refused += usize::from(city.says(NEW, suspend(&driver)).0 == Some(FULL));
    }
    let of_people = city.waiting();
    assert!(
        refused > 0 && of_people > 100,
        "{of_people} wait, {refused} refused"
    );
    for _ in 0..10_000 {
        city.hears(NEW, &transfer(&driver));
    }
    assert!(
        city.waiting() > of_people,
        "messages have room when people have none"
    );
    let full = city.header(NEW).len();
    assert!(
        full < RECORD_BYTES_MAX * 6 / 10,
        "the header takes {full} bytes"
    );
    // The others take the way by the old shard.
    let by_old = city.under_way.iter().filter(|message| message.to == OLD);
    assert_eq!(by_old.count(), 1 + 10_000 - (city.waiting() - of_people));
}

#[test]
fn a_node_that_takes_over_counts_what_waits() {
    let config = EngineConfig {
        moving_kib_max: 4,
        ..EngineConfig::default()
    };
    let mut city = City::asked(config);
    let driver = mover();
    while city.says(NEW, suspend(&driver)).0.is_none() {}
    let before = (city.waiting(), city.header(NEW));
    city.restart();
    assert_eq!(city.says(NEW, suspend(&driver)).0, Some(FULL));
    city.restart();
    assert_eq!(city.waiting(), before.0);
    city.settle();
    let suspended = city.shards[1]
        .driver(&driver)
        .map(|known| known.suspended.is_some());
    assert_eq!(
        suspended,
        Some(true),
        "what waited is handled when all have come"
    );
}

/// Who follows the new shard would take an empty state for the end of a driver who lives in the old one still.
#[test]
fn a_full_shard_says_nothing_of_the_state_of_whom_it_lacks() {
    let config = EngineConfig {
        moving_kib_max: 1,
        ..EngineConfig::default()
    };
    let mut city = City::asked(config);
    let driver = mover();
    let refused = loop {
        if let (Some(outcome), effects) = city.says(NEW, suspend(&driver)) {
            assert_eq!(outcome, FULL);
            break effects;
        }
    };
    assert!(refused.changed.is_empty(), "{:?} changed", refused.changed);
    // Of those who live there it does.
    city.settle();
    let (outcome, answered) = city.says(NEW, suspend(&driver));
    assert_eq!(outcome, Some(Outcome::AlreadyDone));
    assert!(answered.changed.contains(&EntityId::Driver(driver)));
}

/// Once announced a growth is to be finished: over Kafka a city has no more shards than that.
#[test]
fn a_ring_grows_to_its_bound_and_not_beyond() {
    let mut city = City::new(EngineConfig::default());
    let refused = Outcome::Refused {
        why: RefusedBecause::BadSettings,
    };
    assert_eq!(city.grow(257, GrowthStep::Announced), refused);
    assert_eq!(city.grow(256, GrowthStep::Announced), Outcome::Done);
}
