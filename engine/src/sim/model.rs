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
    ClassSet, Command, CommandId, DriverId, Event, EventRecord, HoldId, IdempotencyKey, Place,
    RideId, RiderId, SessionId, ShardId, Time, VehicleClass,
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

/// What the events say of a driver.
#[derive(Debug)]
pub struct DriverFacts {
    pub seq: u64,
    pub session: SessionId,
    /// At work with these classes.
    pub online: Option<ClassSet>,
    pub leaving: bool,
    pub held: Option<(HoldId, u64)>,
    /// Released to be held by this, and nothing else may happen between.
    pub moving: Option<HoldId>,
    pub suspended: bool,
    pub blocked: BTreeSet<RiderId>,
    pub shard: ShardId,
    /// On the way to that shard.
    pub away: bool,
}

impl DriverFacts {
    fn is_marked(&self) -> bool {
        self.suspended || !self.blocked.is_empty()
    }
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
        self.rider_step(&record.event)?;
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
                let driver = self.driver_step(&e.driver, e.driver_seq)?;
                demand!(!driver.suspended, "{} is online and suspended", e.driver);
                driver.session = e.session;
                (driver.online, driver.leaving) = (Some(e.classes), false);
            }
            Event::DriverHeld(e) => {
                let hold = HoldId {
                    ride: e.ride,
                    attempt: e.attempt,
                };
                let class = self.rides.get(&e.ride).map(|ride| ride.class);
                let rider = self.rides.get(&e.ride).map(|ride| ride.rider.clone());
                let moving = self
                    .drivers
                    .get_mut(&e.driver)
                    .and_then(|d| d.moving.take());
                demand!(
                    moving.is_none_or(|to| to == hold),
                    "{} goes to {hold} and not to {moving:?}",
                    e.driver
                );
                let driver = self.driver_step(&e.driver, e.driver_seq)?;
                let apart = rider.is_some_and(|rider| driver.blocked.contains(&rider));
                demand!(!apart, "{} is held by {hold} of a blocked rider", e.driver);
                demand!(
                    !driver.suspended,
                    "{} is suspended and held by {hold}",
                    e.driver
                );
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
                let ride = self.rides.get(&e.ride);
                if let Some(ride) = ride.filter(|r| r.lives_by(hold, &e.driver)) {
                    demand!(
                        ride.out.is_some(),
                        "{} is released while {hold} stands",
                        e.driver
                    );
                    let to = ride.out;
                    self.driver_known(&e.driver)?.moving = to;
                }
            }
            Event::DriverSuspended(e) => {
                let driver = self.driver_step(&e.driver, e.driver_seq)?;
                demand!(!driver.suspended, "{} is suspended twice", e.driver);
                driver.suspended = true;
                self.marks_fit(&e.driver)?;
            }
            Event::DriverReinstated(e) => {
                let driver = self.driver_step(&e.driver, e.driver_seq)?;
                demand!(driver.suspended, "{} was not suspended", e.driver);
                driver.suspended = false;
            }
            Event::RiderBlocked(e) => {
                let most = self.config.blocks_max;
                let driver = self.driver_step(&e.driver, e.driver_seq)?;
                let new = driver.blocked.insert(e.rider.clone());
                demand!(new, "{} is blocked twice", e.rider);
                demand!(driver.blocked.len() <= most, "{} blocks too many", e.driver);
                self.marks_fit(&e.driver)?;
            }
            Event::RiderUnblocked(e) => {
                let driver = self.driver_step(&e.driver, e.driver_seq)?;
                let known = driver.blocked.remove(&e.rider);
                demand!(known, "{} was not blocked", e.rider);
            }
            Event::HeadingSet(e) => {
                let driver = self.driver_step(&e.driver, e.driver_seq)?;
                demand!(driver.online.is_some(), "{} heads away", e.driver);
            }
            // What they say of places is looked at in `queues`.
            Event::DriverQueued(e) => {
                let driver = self.driver_step(&e.driver, e.driver_seq)?;
                demand!(driver.online.is_some(), "{} waits offline", e.driver);
            }
            Event::DriverUnqueued(e) => {
                self.driver_step(&e.driver, e.driver_seq)?;
            }
            Event::DrainAsked(e) => {
                let is_next = record.shard == MARKET_SHARD && e.market_seq == self.set + 1;
                demand!(is_next, "the market's {} after {}", e.market_seq, self.set);
                self.set += 1;
            }
            Event::DispatchSet(e) => {
                let is_next = record.shard == MARKET_SHARD && e.market_seq == self.set + 1;
                demand!(is_next, "the market's {} after {}", e.market_seq, self.set);
                self.set += 1;
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
                demand!(
                    !driver.is_marked(),
                    "{} is forgotten although marked",
                    e.driver
                );
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
            Event::DriverHandedOver(e) => {
                let driver = self.driver_step(&e.driver, e.driver_seq)?;
                (driver.shard, driver.away) = (e.to, true);
            }
            Event::DriverTakenOver(e) => {
                let taking = self.taking;
                let driver = self.driver_known(&e.driver)?;
                let comes = driver.away && driver.shard == taking;
                demand!(comes, "{} is taken and was not given", e.driver);
                driver.away = false;
                if driver.is_marked() {
                    self.marks_came_to.insert(taking);
                }
                self.driver_step(&e.driver, e.driver_seq)?;
            }
            Event::RiderHandedOver(_) | Event::RiderTakenOver(_) => {}
            Event::RingGrows(e) => {
                let is_next = record.shard == MARKET_SHARD && e.market_seq == self.set + 1;
                demand!(is_next, "the market's {} after {}", e.market_seq, self.set);
                demand!(e.growth.from < e.growth.to, "{:?} is no growth", e.growth);
                self.set += 1;
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
                self.parked.remove(&e.command);
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

    /// A rider lives in one shard.
    fn rider_step(&mut self, event: &Event) -> Result<(), String> {
        let EntityId::Rider(rider) = event.entity() else {
            return Ok(());
        };
        if matches!(event, Event::CommandOutcome(_)) {
            return Ok(());
        }
        let taking = self.taking;
        let (home, away) = self.riders.entry(rider.clone()).or_insert((taking, false));
        demand!(*home == taking, "{rider} lives in {home} and in {taking}");
        let comes = matches!(event, Event::RiderTakenOver(_));
        demand!(*away == comes, "{rider} is on the way to {home}");
        *away = false;
        match event {
            Event::RiderHandedOver(e) => (*home, *away) = (e.to, true),
            Event::RiderForgotten(_) => drop(self.riders.remove(&rider)),
            _ => {}
        }
        Ok(())
    }

    /// No shard keeps the marks of more drivers than allowed, unless a growth has brought them there.
    fn marks_fit(&self, last: &DriverId) -> Result<(), String> {
        let Some(shard) = self.drivers.get(last).map(|d| d.shard) else {
            return Ok(());
        };
        if self.marks_came_to.contains(&shard) {
            return Ok(());
        }
        let marked = |d: &&DriverFacts| d.shard == shard && !d.away && d.is_marked();
        let count = self.drivers.values().filter(marked).count();
        let most = self.config.marked_drivers_max;
        demand!(count <= most, "{count} drivers of a shard are marked");
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
        let shard = self.taking;
        let last = self.last_seq.insert(id.clone(), seq).unwrap_or(0);
        demand!(seq > last, "event {seq} of {id} after {last}");
        let driver = self.drivers.entry(id.clone()).or_insert(DriverFacts {
            seq: seq - 1,
            session: SessionId(0),
            online: None,
            leaving: false,
            held: None,
            moving: None,
            suspended: false,
            blocked: BTreeSet::new(),
            shard,
            away: false,
        });
        let home = driver.shard;
        demand!(home == shard, "{id} lives in {home} and in {shard}");
        demand!(!driver.away, "{id} is on the way to {home}");
        demand!(
            driver.moving.is_none(),
            "{id} is on the way to {:?}",
            driver.moving
        );
        demand!(
            seq == driver.seq + 1,
            "event {seq} of {id} after {}",
            driver.seq
        );
        driver.seq = seq;
        Ok(driver)
    }

    fn driver_known(&mut self, id: &DriverId) -> Result<&mut DriverFacts, String> {
        let known = self.drivers.get_mut(id);
        known.ok_or_else(|| format!("nobody knows {id}"))
    }

    /// Is a request of this wish waiting for its place shard?
    pub fn wish(&self, rider: &RiderId, key: &IdempotencyKey) -> Option<WishFacts> {
        self.wishes.get(&(rider.clone(), key.clone())).copied()
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
