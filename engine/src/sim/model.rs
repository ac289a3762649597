//! What must hold, told by plain maps that are built from the published events only.
//!
//! The model knows nothing of the engine's state: it checks each event against what the events before it said
//! (DESIGN section 9, invariants 1 and 3, and the rules a consumer may rely on). What concerns messages that are
//! still in the log is checked by the simulation (`super`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cabrank_events::command::{Outcome, RefusedBecause};
use cabrank_events::event::{CommandOutcome, EndOfRide};
use cabrank_events::{
    ClassSet, Command, CommandId, DriverId, Event, EventRecord, HoldId, IdempotencyKey, RideId,
    RiderId, SessionId, ShardId, Time, VehicleClass,
};

use crate::EngineConfig;

/// Where the events say a ride stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    Waiting,
    Claiming,
    Offered,
    Shown,
    EnRoute,
    Arrived,
    Started,
    Ended,
}

/// What the events say of a ride.
#[derive(Debug)]
pub struct RideFacts {
    pub seq: u32,
    pub rider: RiderId,
    pub class: VehicleClass,
    pub issued_at: Time,
    pub at: At,
    pub driver: Option<DriverId>,
    pub attempt: u32,
    pub asked: BTreeSet<DriverId>,
    pub until: Time,
    pub deadline: Time,
    pub widen_at: Time,
    pub radius_m: u32,
    pub looked: bool,
    pub end: Option<EndOfRide>,
}

impl RideFacts {
    /// Is `hold` of `driver` the one this open ride lives by?
    pub fn lives_by(&self, hold: HoldId, driver: &DriverId) -> bool {
        let held = matches!(
            self.at,
            At::Offered | At::Shown | At::EnRoute | At::Arrived | At::Started
        );
        held && self.attempt == hold.attempt && self.driver.as_ref() == Some(driver)
    }

    /// When something has to happen by itself.
    pub fn due(&self, radius_max_m: u32) -> Option<Time> {
        match self.at {
            At::Waiting if self.radius_m < radius_max_m => Some(self.deadline.min(self.widen_at)),
            At::Waiting => Some(self.deadline),
            At::Claiming | At::Offered | At::Shown => Some(self.deadline.min(self.until)),
            At::EnRoute | At::Arrived | At::Started => Some(self.until),
            At::Ended => None,
        }
    }
}

/// What the events say of a driver.
#[derive(Debug)]
pub struct DriverFacts {
    pub seq: u64,
    pub session: SessionId,
    /// At work with these classes.
    pub online: Option<ClassSet>,
    pub leaving: bool,
    pub held: Option<(HoldId, u64)>,
}

/// What became of a wish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WishFacts {
    Pending,
    Open,
    Settled,
}

#[derive(Debug)]
pub struct Model {
    config: Arc<EngineConfig>,
    /// Do messages arrive once and in order?
    clean: bool,
    shards: BTreeMap<ShardId, (u64, Time)>,
    pub rides: BTreeMap<RideId, RideFacts>,
    pub drivers: BTreeMap<DriverId, DriverFacts>,
    /// Active rides of the riders who have one.
    pub active: BTreeMap<RiderId, RideId>,
    pub wishes: BTreeMap<(RiderId, IdempotencyKey), WishFacts>,
    taken_up: BTreeSet<(RiderId, IdempotencyKey)>,
    holds: BTreeMap<(DriverId, u64), HoldId>,
    last_seq: BTreeMap<DriverId, u64>,
    unknown: BTreeSet<RideId>,
}

macro_rules! demand {
    ($ok:expr, $($why:tt)*) => {
        if !$ok {
            return Err(format!($($why)*));
        }
    };
}

impl Model {
    pub fn new(config: Arc<EngineConfig>, clean: bool) -> Model {
        Model {
            config,
            clean,
            shards: BTreeMap::new(),
            rides: BTreeMap::new(),
            drivers: BTreeMap::new(),
            active: BTreeMap::new(),
            wishes: BTreeMap::new(),
            taken_up: BTreeSet::new(),
            holds: BTreeMap::new(),
            last_seq: BTreeMap::new(),
            unknown: BTreeSet::new(),
        }
    }

    /// Takes the next event of its shard; says what is wrong with it.
    pub fn take(&mut self, record: &EventRecord) -> Result<(), String> {
        let (seq, time) = self
            .shards
            .entry(record.shard)
            .or_insert((0, Time(i64::MIN)));
        demand!(
            record.seq == *seq + 1,
            "event {} of shard {} after {seq}",
            record.seq,
            record.shard
        );
        demand!(
            record.time >= *time,
            "time went back in shard {}",
            record.shard
        );
        (*seq, *time) = (record.seq, record.time);
        let now = record.time;
        match &record.event {
            Event::RideRequested(e) => {
                demand!(!self.rides.contains_key(&e.ride), "{} opened twice", e.ride);
                demand!(e.ride_seq == 1, "{} begins with {}", e.ride, e.ride_seq);
                let patience = self.config.request_patience_ms;
                demand!(
                    e.issued_at.plus_ms(patience) >= now,
                    "{} opened although too old",
                    e.ride
                );
                let rides = self.rides.values();
                let open = rides
                    .filter(|r| r.rider == e.rider && r.end.is_none())
                    .count();
                demand!(open == 0, "{} has two open rides", e.rider);
                demand!(
                    !self.clean || !self.unknown.contains(&e.ride),
                    "a cancel overtook the opening of {}",
                    e.ride
                );
                let facts = RideFacts {
                    seq: 1,
                    rider: e.rider.clone(),
                    class: e.class,
                    issued_at: e.issued_at,
                    at: At::Waiting,
                    driver: None,
                    attempt: 0,
                    asked: BTreeSet::new(),
                    until: now,
                    deadline: e.deadline,
                    widen_at: e.widen_at,
                    radius_m: e.radius_m,
                    looked: false,
                    end: None,
                };
                self.rides.insert(e.ride, facts);
            }
            Event::SearchedInVain(e) => {
                self.step(e.ride, e.ride_seq, &[At::Waiting], At::Waiting)?
                    .looked = true;
            }
            Event::SearchWidened(e) => {
                let most = self.config.radius_max_m;
                let ride = self.step(e.ride, e.ride_seq, &[At::Waiting], At::Waiting)?;
                demand!(
                    e.radius_m > ride.radius_m && e.radius_m <= most,
                    "{} m is too far",
                    e.radius_m
                );
                (ride.radius_m, ride.widen_at) = (e.radius_m, e.widen_at);
            }
            Event::DriverClaimed(e) => {
                let patience = self.config.request_patience_ms;
                let ride = self.step(e.ride, e.ride_seq, &[At::Waiting], At::Claiming)?;
                demand!(
                    e.attempt == ride.attempt + 1,
                    "attempt {} after {}",
                    e.attempt,
                    ride.attempt
                );
                demand!(
                    !ride.asked.contains(&e.driver),
                    "{} is asked again",
                    e.driver
                );
                demand!(
                    ride.looked || ride.issued_at.plus_ms(patience) >= now,
                    "a ride too old at its first look is dispatched"
                );
                (ride.looked, ride.attempt, ride.until) = (true, e.attempt, e.answer_by);
                ride.driver = Some(e.driver.clone());
            }
            Event::ClaimDenied(e) => {
                let held = self.drivers.get(&e.driver).and_then(|d| d.held);
                let overtaken = held.is_some_and(|(hold, _)| hold.ride == e.ride);
                demand!(
                    !(self.clean && overtaken),
                    "a claim of {} overtook its release",
                    e.ride
                );
                let ride = self.step(e.ride, e.ride_seq, &[At::Claiming], At::Waiting)?;
                ride.names(&e.driver, e.attempt)?;
            }
            Event::ClaimAbandoned(e) => {
                let ride = self.step(e.ride, e.ride_seq, &[At::Claiming], At::Waiting)?;
                ride.names(&e.driver, e.attempt)?;
            }
            Event::OfferMade(e) => {
                let granted = self.holds.get(&(e.driver.clone(), e.hold_number)).copied();
                let hold = HoldId {
                    ride: e.ride,
                    attempt: e.attempt,
                };
                let ride = self.step(e.ride, e.ride_seq, &[At::Claiming], At::Offered)?;
                ride.names(&e.driver, e.attempt)?;
                demand!(
                    granted == Some(hold),
                    "hold number {} is {granted:?}, not {hold}",
                    e.hold_number
                );
                ride.until = e.receipt_by;
            }
            Event::OfferReceived(e) => {
                let ride = self.step(e.ride, e.ride_seq, &[At::Offered], At::Shown)?;
                ride.names(&e.driver, e.attempt)?;
                ride.until = e.answer_by;
            }
            Event::OfferDeclined(e) => {
                let ride = self.step(e.ride, e.ride_seq, &[At::Offered, At::Shown], At::Waiting)?;
                ride.names(&e.driver, e.attempt)?;
                ride.asked.insert(e.driver.clone());
            }
            Event::OfferExpired(e) => {
                let ride = self.step(e.ride, e.ride_seq, &[At::Offered, At::Shown], At::Waiting)?;
                ride.names(&e.driver, e.attempt)?;
                demand!(
                    ride.until <= now,
                    "the offer expired {} ms early",
                    ride.until.since(now)
                );
                ride.asked.insert(e.driver.clone());
            }
            Event::DriverAssigned(e) => {
                let ride = self.step(e.ride, e.ride_seq, &[At::Offered, At::Shown], At::EnRoute)?;
                ride.names(&e.driver, e.attempt)?;
                ride.until = e.arrive_by;
            }
            Event::DriverLost(e) => {
                let ride =
                    self.step(e.ride, e.ride_seq, &[At::EnRoute, At::Arrived], At::Waiting)?;
                ride.names(&e.driver, e.attempt)?;
                demand!(
                    e.deadline >= ride.deadline,
                    "the deadline of {} went back",
                    e.ride
                );
                ride.deadline = e.deadline;
                ride.asked.insert(e.driver.clone());
            }
            Event::DriverArrived(e) => {
                let ride = self.step(e.ride, e.ride_seq, &[At::EnRoute], At::Arrived)?;
                ride.names(&e.driver, e.attempt)?;
                ride.until = e.start_by;
            }
            Event::RideStarted(e) => {
                let ride =
                    self.step(e.ride, e.ride_seq, &[At::EnRoute, At::Arrived], At::Started)?;
                ride.names(&e.driver, e.attempt)?;
                ride.until = e.complete_by;
            }
            Event::RideCompleted(e) => {
                let ride = self.step(e.ride, e.ride_seq, &[At::Started], At::Ended)?;
                ride.names(&e.driver, e.attempt)?;
                ride.end = Some(EndOfRide::Completed);
            }
            Event::RideCancelled(e) => {
                let before = [
                    At::Waiting,
                    At::Claiming,
                    At::Offered,
                    At::Shown,
                    At::EnRoute,
                    At::Arrived,
                ];
                self.step(e.ride, e.ride_seq, &before, At::Ended)?.end = Some(EndOfRide::Cancelled);
            }
            Event::RideUnfulfilled(e) => {
                let before = [At::Waiting, At::Claiming, At::Offered, At::Shown];
                self.step(e.ride, e.ride_seq, &before, At::Ended)?.end =
                    Some(EndOfRide::Unfulfilled);
            }
            Event::DriverOnline(e) => {
                let known = self.drivers.get(&e.driver);
                if let Some(known) = known {
                    let open = known.online.is_some() && !known.leaving;
                    let anew = e.session > known.session;
                    demand!(
                        anew || open && e.session == known.session,
                        "{} online in an old session",
                        e.driver
                    );
                }
                let held = known.and_then(|d| d.held);
                self.driver_step(&e.driver, e.driver_seq)?;
                let facts = DriverFacts {
                    seq: e.driver_seq,
                    session: e.session,
                    online: Some(e.classes),
                    leaving: false,
                    held,
                };
                self.drivers.insert(e.driver.clone(), facts);
            }
            Event::DriverHeld(e) => {
                let hold = HoldId {
                    ride: e.ride,
                    attempt: e.attempt,
                };
                let class = self.rides.get(&e.ride).map(|ride| ride.class);
                let driver = self.driver_step(&e.driver, e.driver_seq)?;
                demand!(
                    driver.held.is_none(),
                    "{} is held by {:?} and by {hold}",
                    e.driver,
                    driver.held
                );
                demand!(
                    !driver.leaving,
                    "{} is leaving and held by {hold}",
                    e.driver
                );
                let serves = driver
                    .online
                    .zip(class)
                    .is_some_and(|(all, one)| all.contains(one));
                demand!(serves, "{} does not serve the class of {hold}", e.driver);
                driver.held = Some((hold, e.hold_number));
                let number = (e.driver.clone(), e.hold_number);
                demand!(
                    self.holds.insert(number, hold).is_none(),
                    "a hold number is used twice"
                );
            }
            Event::DriverReleased(e) => {
                let hold = HoldId {
                    ride: e.ride,
                    attempt: e.attempt,
                };
                let driver = self.driver_step(&e.driver, e.driver_seq)?;
                demand!(
                    driver.held == Some((hold, e.hold_number)),
                    "{} released from {hold}",
                    e.driver
                );
                driver.held = None;
                let lives = self
                    .rides
                    .get(&e.ride)
                    .is_some_and(|r| r.lives_by(hold, &e.driver));
                demand!(!lives, "{} is released while {hold} stands", e.driver);
            }
            Event::DriverLeaving(e) => {
                let driver = self.driver_step(&e.driver, e.driver_seq)?;
                demand!(
                    driver.session == e.session,
                    "{} leaves another session",
                    e.driver
                );
                demand!(
                    driver.held.is_some(),
                    "{} is leaving but not held",
                    e.driver
                );
                driver.leaving = true;
            }
            Event::DriverOffline(e) => {
                let driver = self.driver_step(&e.driver, e.driver_seq)?;
                demand!(driver.held.is_none(), "{} is offline and held", e.driver);
                demand!(driver.online.is_some(), "{} is offline twice", e.driver);
                demand!(
                    driver.session == e.session,
                    "{} ends another session",
                    e.driver
                );
                (driver.online, driver.leaving) = (None, false);
            }
            Event::DriverForgotten(e) => {
                let driver = self.driver_step(&e.driver, e.driver_seq)?;
                demand!(driver.online.is_none(), "{} is forgotten at work", e.driver);
                self.drivers.remove(&e.driver);
            }
            Event::RiderBusy(e) => {
                let wish = (e.rider.clone(), e.key.clone());
                demand!(
                    self.taken_up.insert(wish.clone()),
                    "key {} was taken up twice",
                    e.key
                );
                let before = self.active.insert(e.rider.clone(), e.ride);
                demand!(
                    before.is_none(),
                    "{} is in {before:?} and in {}",
                    e.rider,
                    e.ride
                );
                self.wishes.insert(wish, WishFacts::Pending);
            }
            Event::RideConfirmed(e) => {
                demand!(
                    self.rides.contains_key(&e.ride),
                    "{} confirmed, never opened",
                    e.ride
                );
                demand!(
                    self.active.get(&e.rider) == Some(&e.ride),
                    "{} is in another ride",
                    e.rider
                );
                self.wishes
                    .insert((e.rider.clone(), e.key.clone()), WishFacts::Open);
            }
            Event::RideNotOpened(e) => {
                demand!(
                    !self.rides.contains_key(&e.ride),
                    "{} refused, but open",
                    e.ride
                );
                demand!(
                    self.active.remove(&e.rider) == Some(e.ride),
                    "{} is in another ride",
                    e.rider
                );
                self.wishes
                    .insert((e.rider.clone(), e.key.clone()), WishFacts::Settled);
            }
            Event::RequestRefused(e) => self.settle(&e.rider, &e.key)?,
            Event::KeyCancelled(e) => {
                // Also a key that was forgotten since: a late copy of its request is too old by then.
                self.wishes
                    .insert((e.rider.clone(), e.key.clone()), WishFacts::Settled);
            }
            Event::RiderFree(e) => {
                let end = self.rides.get(&e.ride).and_then(|ride| ride.end);
                demand!(
                    end == Some(e.end),
                    "{} is free of {} which ended {end:?}",
                    e.rider,
                    e.ride
                );
                demand!(
                    self.active.remove(&e.rider) == Some(e.ride),
                    "{} is in another ride",
                    e.rider
                );
                self.wishes
                    .insert((e.rider.clone(), e.key.clone()), WishFacts::Settled);
            }
            Event::RiderForgotten(e) => {
                demand!(
                    !self.active.contains_key(&e.rider),
                    "{} is forgotten in a ride",
                    e.rider
                );
                self.wishes.retain(|(rider, _), _| *rider != e.rider);
            }
            Event::CommandOutcome(e) => {
                let unknown = Outcome::Refused {
                    why: RefusedBecause::UnknownRide,
                };
                if let Some(ride) = e.asked_ride.filter(|_| e.outcome == unknown) {
                    self.unknown.insert(ride);
                }
            }
        }
        Ok(())
    }

    /// Does the outcome of a command handled for the first time agree with what the events say?
    pub fn outcome(&self, command: &Command, outcome: &CommandOutcome) -> Result<(), String> {
        match (command, &outcome.outcome) {
            (Command::RequestRide { .. }, Outcome::Done) => {
                let open = outcome
                    .ride
                    .is_some_and(|ride| self.rides.contains_key(&ride));
                demand!(
                    open,
                    "{} is acknowledged before its ride is open",
                    outcome.command
                );
            }
            (Command::GoOffline { driver, session }, Outcome::Done) => {
                let newest = self.drivers.get(driver).map(|d| d.session);
                demand!(
                    newest == Some(*session),
                    "{driver} went offline by an old session"
                );
            }
            (Command::ReceiveOffer { hold, driver }, Outcome::AlreadyDone) => {
                let shown = self.rides.get(&hold.ride);
                let new = shown.is_some_and(|r| r.at == At::Offered && r.lives_by(*hold, driver));
                demand!(!new, "the first receipt of {hold} is said to be the second");
            }
            _ => {}
        }
        Ok(())
    }

    fn settle(&mut self, rider: &RiderId, key: &IdempotencyKey) -> Result<(), String> {
        let wish = (rider.clone(), key.clone());
        demand!(
            !self.taken_up.contains(&wish),
            "key {key} was taken up before"
        );
        self.wishes.insert(wish, WishFacts::Settled);
        Ok(())
    }

    fn step(
        &mut self,
        id: RideId,
        seq: u32,
        from: &[At],
        to: At,
    ) -> Result<&mut RideFacts, String> {
        let ride = self
            .rides
            .get_mut(&id)
            .ok_or_else(|| format!("{id} was never opened"))?;
        demand!(ride.end.is_none(), "an event follows the end of {id}");
        demand!(
            seq == ride.seq + 1,
            "event {seq} of {id} after {}",
            ride.seq
        );
        demand!(
            from.contains(&ride.at),
            "{id} is {:?} and becomes {to:?}",
            ride.at
        );
        (ride.seq, ride.at) = (seq, to);
        Ok(ride)
    }

    fn driver_step(&mut self, id: &DriverId, seq: u64) -> Result<&mut DriverFacts, String> {
        let last = self.last_seq.insert(id.clone(), seq).unwrap_or(0);
        demand!(seq > last, "event {seq} of {id} after {last}");
        let driver = self.drivers.entry(id.clone()).or_insert(DriverFacts {
            seq: seq - 1,
            session: SessionId(0),
            online: None,
            leaving: false,
            held: None,
        });
        demand!(
            seq == driver.seq + 1,
            "event {seq} of {id} after {}",
            driver.seq
        );
        driver.seq = seq;
        Ok(driver)
    }

    /// Is a request of this wish waiting for its place shard?
    pub fn wish(&self, rider: &RiderId, key: &IdempotencyKey) -> Option<WishFacts> {
        self.wishes.get(&(rider.clone(), key.clone())).copied()
    }
}

impl RideFacts {
    fn names(&self, driver: &DriverId, attempt: u32) -> Result<(), String> {
        let same = self.driver.as_ref() == Some(driver) && self.attempt == attempt;
        demand!(
            same,
            "{driver}#{attempt} instead of {:?}#{}",
            self.driver,
            self.attempt
        );
        Ok(())
    }
}

/// Outcomes that are still due, and the first ones given.
#[derive(Debug, Default)]
pub struct Outcomes {
    pub owed: BTreeMap<CommandId, i32>,
    pub first: BTreeMap<CommandId, (Outcome, Time)>,
}
