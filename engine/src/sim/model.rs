//! What must hold, told by plain maps that are built from the published events only.
//!
//! The model knows nothing of the engine's state: it checks each event against what the events before it said
//! (DESIGN section 9, invariants 1 and 3, and the rules a consumer may rely on). What concerns messages that are
//! still in the log is checked by the simulation (`super`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cabrank_events::command::{ClaimRefusal, EntityId, MARKET_SHARD, Outcome, RefusedBecause};
use cabrank_events::event::{CommandOutcome, EndOfRide, LostBecause, SwapAnswer};
use cabrank_events::{
    Command, CommandId, DriverId, Event, EventRecord, HoldId, IdempotencyKey, Place, RideId,
    RiderId, ShardId, Time, VehicleClass,
};

use crate::EngineConfig;
use crate::config::SwapConsent;

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
    pub dropoff: Option<Place>,
    pub issued_at: Time,
    pub at: At,
    pub driver: Option<DriverId>,
    /// The newest attempt, and the one it holds or claims its driver by.
    pub attempt: u32,
    pub held_by: u32,
    /// A second driver, the attempt, the claim's end, the hold number once granted.
    pub incoming: Option<(DriverId, u32, Time, Option<u64>)>,
    /// What the second hold was said to gain, and whose car it was.
    pub promised: (i64, Option<RideId>),
    /// The hold that its driver may go to.
    pub out: Option<HoldId>,
    /// Its driver has gone there.
    pub moved: bool,
    /// Has something been reported since its driver may go?
    pub reported: bool,
    /// Was its car asked back?
    pub asked_back: bool,
    /// The hold its driver was asked to give up, and whether they agreed.
    pub asks: Option<(u32, bool)>,
    /// How often another driver came by a swap.
    pub swaps: u32,
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
        let same = self.held_by == hold.attempt && self.driver.as_ref() == Some(driver);
        held && same && !self.moved
    }

    /// Is `hold` of `driver` its second one, granted or asked for?
    pub fn has_second(&self, hold: HoldId, driver: &DriverId) -> bool {
        self.incoming
            .as_ref()
            .is_some_and(|(second, attempt, ..)| second == driver && *attempt == hold.attempt)
    }

    /// Nothing is exchanged any more.
    fn settle(&mut self) {
        (self.incoming, self.out, self.moved) = (None, None, false);
        (self.reported, self.asked_back) = (false, false);
    }

    /// When something has to happen by itself.
    pub fn due(&self, radius_max_m: u32) -> Option<Time> {
        match self.at {
            At::Waiting if self.radius_m < radius_max_m => Some(self.deadline.min(self.widen_at)),
            At::Waiting => Some(self.deadline),
            At::Claiming | At::Offered | At::Shown => Some(self.deadline.min(self.until)),
            At::EnRoute => match &self.incoming {
                Some((_, _, until, None)) => Some(self.until.min(*until)),
                Some((_, _, _, Some(_))) | None => Some(self.until),
            },
            At::Arrived | At::Started => Some(self.until),
            At::Ended => None,
        }
    }
}

#[derive(Debug)]
pub struct Model {
    config: Arc<EngineConfig>,
    /// Do messages arrive once and in order?
    clean: bool,
    shards: BTreeMap<ShardId, (u64, Time)>,
    /// The shard whose event is being taken.
    taking: ShardId,
    pub rides: BTreeMap<RideId, RideFacts>,
    pub drivers: BTreeMap<DriverId, DriverFacts>,
    /// Active rides of the riders who have one.
    pub active: BTreeMap<RiderId, RideId>,
    pub wishes: BTreeMap<(RiderId, IdempotencyKey), WishFacts>,
    taken_up: BTreeSet<(RiderId, IdempotencyKey)>,
    /// Where riders live, and whether they are on the way there.
    riders: BTreeMap<RiderId, (ShardId, bool)>,
    /// Shards that marked drivers have come to from other ones.
    marks_came_to: BTreeSet<ShardId>,
    holds: BTreeMap<(DriverId, u64), HoldId>,
    last_seq: BTreeMap<DriverId, u64>,
    unknown: BTreeSet<RideId>,
    /// How often the market was set.
    set: u64,
    /// Commands whose outcome waits for the answer to a transfer.
    pub parked: BTreeSet<CommandId>,
}

macro_rules! demand {
    ($ok:expr, $($why:tt)*) => {
        if !$ok {
            return Err(format!($($why)*));
        }
    };
}

mod people;
pub use people::{DriverFacts, WishFacts};

impl Model {
    pub fn new(config: Arc<EngineConfig>, clean: bool) -> Model {
        Model {
            config,
            clean,
            shards: BTreeMap::new(),
            taking: ShardId(0),
            rides: BTreeMap::new(),
            drivers: BTreeMap::new(),
            active: BTreeMap::new(),
            wishes: BTreeMap::new(),
            taken_up: BTreeSet::new(),
            riders: BTreeMap::new(),
            marks_came_to: BTreeSet::new(),
            holds: BTreeMap::new(),
            last_seq: BTreeMap::new(),
            unknown: BTreeSet::new(),
            set: 0,
            parked: BTreeSet::new(),
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
        self.taking = record.shard;
        if let Event::CommandOutcome(e) = &record.event {
            self.parked.remove(&e.command);
            let unknown = Outcome::Refused {
                why: RefusedBecause::UnknownRide,
            };
            if let Some(ride) = e.asked_ride.filter(|_| e.outcome == unknown) {
                self.unknown.insert(ride);
            }
            return Ok(());
        }
        match record.event.entity() {
            EntityId::Ride(_) => self.take_ride(&record.event, now),
            EntityId::Driver(_) => self.take_driver(&record.event),
            EntityId::Rider(_) => self.take_rider(&record.event),
            EntityId::Market => self.take_market(&record.event),
        }
    }

    /// What happens to a ride.
    fn take_ride(&mut self, event: &Event, now: Time) -> Result<(), String> {
        match event {
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
                    dropoff: e.dropoff,
                    issued_at: e.issued_at,
                    at: At::Waiting,
                    driver: None,
                    attempt: 0,
                    held_by: 0,
                    incoming: None,
                    promised: (0, None),
                    out: None,
                    moved: false,
                    reported: false,
                    asked_back: false,
                    asks: None,
                    swaps: 0,
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
            Event::DestinationChanged(e) => {
                let at = self.rides.get(&e.ride).map_or(At::Waiting, |ride| ride.at);
                let ride = self.step(e.ride, e.ride_seq, &[at], at)?;
                let before = ride.dropoff.replace(e.to);
                demand!(before != Some(e.to), "{} led there before", e.ride);
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
                if let Some(from) = e.from {
                    let lender = self.rides.get(&from.ride);
                    let goes = lender.is_some_and(|r| r.out.is_some());
                    let has_both =
                        lender.is_some_and(|r| matches!(r.incoming, Some((.., Some(_)))));
                    let closes = e.then.last().is_some_and(|last| last.ride == from.ride);
                    let comes_back = self
                        .rides
                        .get(&e.ride)
                        .is_some_and(|r| r.moved && r.reported);
                    // Or it gives its car up, so that one without gets a car.
                    let last = e.then.last().map_or(e.ride, |last| last.ride);
                    let for_one_without =
                        self.rides.get(&last).is_some_and(|r| r.at == At::Waiting);
                    demand!(
                        goes && (has_both || closes || for_one_without) || comes_back,
                        "{} loses its car before it has another",
                        from.ride
                    );
                }
                let second = self.rides.get(&e.ride).is_some_and(|r| r.at == At::EnRoute);
                let (before, after) = match second {
                    true => (At::EnRoute, At::EnRoute),
                    false => (At::Waiting, At::Claiming),
                };
                let ride = self.step(e.ride, e.ride_seq, &[before], after)?;
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
                (ride.looked, ride.attempt) = (true, e.attempt);
                if second {
                    demand!(ride.incoming.is_none(), "{} asks for a third car", e.ride);
                    ride.incoming = Some((e.driver.clone(), e.attempt, e.answer_by, None));
                    ride.promised = (e.gain_s, e.from.map(|hold| hold.ride));
                    ride.asked_back |= ride.moved && ride.reported && e.from.is_some();
                } else {
                    (ride.held_by, ride.until) = (e.attempt, e.answer_by);
                    ride.driver = Some(e.driver.clone());
                }
            }
            Event::SecondHoldGranted(e) => {
                let granted = self.holds.get(&(e.driver.clone(), e.hold_number)).copied();
                let ride = self.step(e.ride, e.ride_seq, &[At::EnRoute], At::EnRoute)?;
                let hold = HoldId {
                    ride: e.ride,
                    attempt: e.attempt,
                };
                demand!(
                    ride.has_second(hold, &e.driver) && granted == Some(hold),
                    "{hold} is no second hold"
                );
                if let Some((.., number)) = &mut ride.incoming {
                    *number = Some(e.hold_number);
                }
            }
            Event::HoldAsked(e) => {
                let asks_nobody = self.config.swap_consent == SwapConsent::Tell;
                // Their rider is in that car, so it is not for this ride's driver to say.
                let by = self.rides.get(&e.by.ride);
                let brings_back = by.is_some_and(|by| by.moved && by.reported);
                let ride = self.step(e.ride, e.ride_seq, &[At::EnRoute], At::EnRoute)?;
                ride.names(&e.driver, e.attempt)?;
                let agreed = ride.asks == Some((e.attempt, true));
                demand!(
                    asks_nobody || agreed || brings_back,
                    "nobody asked {} for {}",
                    e.driver,
                    e.ride
                );
                demand!(
                    ride.out.is_none() && !ride.moved,
                    "{} gives its car away twice",
                    e.ride
                );
                ride.out = Some(e.by);
            }
            Event::HoldMoved(e) => {
                let clean = self.clean;
                let held = self.drivers.get(&e.driver).and_then(|d| d.held);
                let ride = self.step(e.ride, e.ride_seq, &[At::EnRoute], At::EnRoute)?;
                ride.names(&e.driver, e.attempt)?;
                let hold = HoldId {
                    ride: e.ride,
                    attempt: e.attempt,
                };
                demand!(ride.out.is_some(), "the car of {hold} was never asked for");
                // A doubled claim may have held the driver by the old name again; its grant is released.
                let stands = clean && held.is_some_and(|(of, _)| of == hold);
                demand!(!stands, "{hold} stands and is said to have moved");
                (ride.out, ride.moved) = (None, true);
            }
            Event::HoldKept(e) => {
                let ride = self.step(e.ride, e.ride_seq, &[At::EnRoute], At::EnRoute)?;
                ride.names(&e.driver, e.attempt)?;
                demand!(
                    ride.out.is_some(),
                    "the car of {} was never asked for",
                    e.ride
                );
                (ride.out, ride.reported) = (None, false);
            }
            Event::ReportWaits(e) => {
                let ride = self.step(e.ride, e.ride_seq, &[At::EnRoute], At::EnRoute)?;
                ride.names(&e.driver, e.attempt)?;
                let waits = ride.out.is_some() || ride.moved && ride.reported;
                demand!(waits, "a report on {} waits for nothing", e.ride);
                ride.reported = true;
                self.parked.extend(e.command.clone());
            }
            Event::DriverReassigned(e) => {
                let swaps_max = self.config.swaps.swaps_max;
                let asks_nobody = self.config.swap_consent == SwapConsent::Tell;
                let ride = self.step(e.ride, e.ride_seq, &[At::EnRoute], At::EnRoute)?;
                demand!(ride.out.is_none(), "{} may still lose its car", e.ride);
                demand!(
                    ride.driver.as_ref() == Some(&e.before),
                    "{} was not there",
                    e.before
                );
                let second = ride.incoming.as_ref();
                let same = second.is_some_and(|(driver, attempt, _, number)| {
                    *driver == e.driver && *attempt == e.attempt && *number == Some(e.hold_number)
                });
                demand!(same, "{} is not the second driver of {}", e.driver, e.ride);
                let told = (e.gained_s, e.instead_of);
                demand!(told == ride.promised, "{} is told {told:?}", e.ride);
                let stays = !ride.reported || e.driver == e.before;
                demand!(stays, "the rider of {} is taken out of the car", e.ride);
                let may = asks_nobody || ride.asks == Some((ride.held_by, true));
                demand!(may || e.driver == e.before, "nobody asked {}", e.before);
                ride.asks = None;
                ride.swaps += u32::from(e.driver != e.before);
                demand!(ride.swaps <= swaps_max, "{} swapped too often", e.ride);
                (ride.driver, ride.held_by) = (Some(e.driver.clone()), e.attempt);
                ride.until = e.arrive_by;
                ride.settle();
            }
            Event::ClaimDenied(e) => {
                let held = self.drivers.get(&e.driver).and_then(|d| d.held);
                let overtaken = held.is_some_and(|(hold, _)| hold.ride == e.ride);
                demand!(
                    !(self.clean && overtaken),
                    "a claim of {} overtook its release",
                    e.ride
                );
                let ride = self.claim_over(e.ride, e.ride_seq, &e.driver, e.attempt)?;
                if e.why == ClaimRefusal::Blocked {
                    ride.asked.insert(e.driver.clone());
                }
            }
            Event::ClaimAbandoned(e) => {
                self.claim_over(e.ride, e.ride_seq, &e.driver, e.attempt)?;
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
            Event::SwapAsked(e) => {
                let asks = self.config.swap_consent == SwapConsent::Ask;
                let ride = self.step(e.ride, e.ride_seq, &[At::EnRoute], At::EnRoute)?;
                ride.names(&e.driver, e.attempt)?;
                let again = ride.asks == Some((e.attempt, false));
                demand!(asks && !again, "{} is asked for {}", e.driver, e.ride);
                ride.asks = Some((e.attempt, false));
            }
            Event::SwapAnswered(e) => {
                let ride = self.step(e.ride, e.ride_seq, &[At::EnRoute], At::EnRoute)?;
                let asked = ride.asks == Some((e.attempt, false));
                demand!(asked, "nobody had asked {}", e.driver);
                ride.asks = Some((e.attempt, e.answer == SwapAnswer::Agreed));
            }
            Event::DriverLost(e) => {
                let max = self.config.redispatch_max;
                let ride =
                    self.step(e.ride, e.ride_seq, &[At::EnRoute, At::Arrived], At::Waiting)?;
                ride.asks = None;
                ride.names(&e.driver, e.attempt)?;
                demand!(
                    e.deadline >= ride.deadline,
                    "the deadline of {} went back",
                    e.ride
                );
                ride.deadline = e.deadline;
                if e.why == LostBecause::Moved {
                    demand!(ride.moved, "the car of {} never moved", e.ride);
                    let tried = !ride.reported || ride.asked_back;
                    demand!(tried, "the rider of {} is in a car that left", e.ride);
                    demand!(e.redispatches <= max, "a swap costs {} its end", e.ride);
                } else {
                    ride.asked.insert(e.driver.clone());
                }
                ride.settle();
            }
            Event::DriverArrived(e) => {
                let ride = self.step(e.ride, e.ride_seq, &[At::EnRoute], At::Arrived)?;
                ride.names(&e.driver, e.attempt)?;
                ride.is_settled()?;
                ride.until = e.start_by;
            }
            Event::RideStarted(e) => {
                let ride =
                    self.step(e.ride, e.ride_seq, &[At::EnRoute, At::Arrived], At::Started)?;
                ride.names(&e.driver, e.attempt)?;
                ride.is_settled()?;
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
                let ride = self.step(e.ride, e.ride_seq, &before, At::Ended)?;
                ride.end = Some(EndOfRide::Cancelled);
                ride.settle();
            }
            Event::RideUnfulfilled(e) => {
                let before = [At::Waiting, At::Claiming, At::Offered, At::Shown];
                self.step(e.ride, e.ride_seq, &before, At::Ended)?.end =
                    Some(EndOfRide::Unfulfilled);
            }
            other => return Err(format!("{} is no event of a ride", other.name())),
        }
        Ok(())
    }

    /// What is set for the market.
    fn take_market(&mut self, event: &Event) -> Result<(), String> {
        match event {
            Event::DrainAsked(e) => {
                let is_next = self.taking == MARKET_SHARD && e.market_seq == self.set + 1;
                demand!(is_next, "the market's {} after {}", e.market_seq, self.set);
                self.set += 1;
            }
            Event::DispatchSet(e) => {
                let is_next = self.taking == MARKET_SHARD && e.market_seq == self.set + 1;
                demand!(is_next, "the market's {} after {}", e.market_seq, self.set);
                self.set += 1;
            }
            Event::RingGrows(e) => {
                let is_next = self.taking == MARKET_SHARD && e.market_seq == self.set + 1;
                demand!(is_next, "the market's {} after {}", e.market_seq, self.set);
                demand!(e.growth.from < e.growth.to, "{:?} is no growth", e.growth);
                self.set += 1;
            }
            other => return Err(format!("{} is no event of the market", other.name())),
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
            (
                Command::CancelRide {
                    ride,
                    rider: Some(rider),
                    ..
                }
                | Command::ChangeDestination {
                    ride,
                    rider: Some(rider),
                    ..
                },
                Outcome::Done,
            ) => {
                let its = self.rides.get(ride).is_none_or(|r| r.rider == *rider);
                demand!(its, "{rider} decides about somebody else's {ride}");
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

    fn claim_over(
        &mut self,
        id: RideId,
        seq: u32,
        driver: &DriverId,
        attempt: u32,
    ) -> Result<&mut RideFacts, String> {
        let hold = HoldId { ride: id, attempt };
        let known = self.rides.get(&id);
        if known.is_some_and(|ride| ride.has_second(hold, driver)) {
            let ride = self.step(id, seq, &[At::EnRoute], At::EnRoute)?;
            ride.incoming = None;
            return Ok(ride);
        }
        let ride = self.step(id, seq, &[At::Claiming], At::Waiting)?;
        ride.names(driver, attempt)?;
        Ok(ride)
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
}

impl RideFacts {
    fn names(&self, driver: &DriverId, attempt: u32) -> Result<(), String> {
        let same = self.driver.as_ref() == Some(driver) && self.held_by == attempt;
        demand!(
            same,
            "{driver}#{attempt} instead of {:?}#{}",
            self.driver,
            self.held_by
        );
        Ok(())
    }

    fn is_settled(&self) -> Result<(), String> {
        let settled = self.incoming.is_none() && self.out.is_none() && !self.moved;
        demand!(settled, "a report counts although the car may be another's");
        Ok(())
    }
}

/// Outcomes that are still due, and the first ones given.
#[derive(Debug, Default)]
pub struct Outcomes {
    pub owed: BTreeMap<CommandId, i32>,
    pub first: BTreeMap<CommandId, (Outcome, Time)>,
}
