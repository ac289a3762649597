//! A ride: from the request to exactly one end.
//!
//! Lives in its place shard. Every change is an event; [`Ride::apply`] is the only place that changes anything.
//! Holds follow PROTOCOL 1 to 6: at most one claim at a time besides the hold a ride has, attempts never reused.
//! Not here: who is near (`matching`), who is free (`driver`), sending anything (`shard`).

use std::collections::{BTreeMap, BTreeSet};

use cabrank_events::command::{CancelledBy, ClaimRefusal};
use cabrank_events::event::{
    CompletedBecause, DeclinedBecause, EndOfRide, ExpiredBecause, LostBecause, Move, RideReport,
    RideRequested, SwapAnswer, UnfulfilledBecause,
};
use cabrank_events::wire::{RideStage, RideView, SwapAskedView, SwapView};
use cabrank_events::{
    Attempt, CommandId, DriverId, Event, HoldId, IdempotencyKey, PickupPoint, Place, Reason,
    RideId, RiderId, Time, VehicleClass, ZoneName,
};
use serde::{Deserialize, Serialize};

use crate::config::EngineConfig;
use crate::recent::Recent;

/// Where a ride stands. Each waiting names when it ends (PROTOCOL 17).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "stage", rename_all = "snake_case")]
pub enum Stage {
    /// Rounds look for a driver.
    Waiting,
    /// A driver's entity was asked to hold.
    Claiming { driver: DriverId, until: Time },
    /// A held driver is asked. `received`: the phone shows the offer.
    Offered {
        driver: DriverId,
        hold_number: u64,
        received: bool,
        until: Time,
    },
    /// On the way to the pickup.
    EnRoute {
        driver: DriverId,
        hold_number: u64,
        until: Time,
    },
    /// At the pickup.
    Arrived {
        driver: DriverId,
        hold_number: u64,
        until: Time,
    },
    /// The rider is in the car.
    Started {
        driver: DriverId,
        hold_number: u64,
        until: Time,
    },
    /// Over; kept for late commands.
    Ended {
        end: EndOfRide,
        by: Option<CancelledBy>,
        driver: Option<DriverId>,
        keep_until: Time,
        /// What the rider is told; older states lack it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<Reason>,
    },
}

/// A second hold that a ride with a driver on the way has asked for (PROTOCOL 6).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Incoming {
    /// Whose.
    pub driver: DriverId,
    /// This claim's number.
    pub attempt: Attempt,
    /// When it is abandoned, unless granted by then.
    pub until: Time,
    /// The hold number, once granted.
    pub granted: Option<u64>,
    /// Who gets the car this ride has, once it has the second: the rest of the swap.
    pub then: Vec<Move>,
    /// The ride whose car it is until the claim is granted; `None`: the car is free.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instead_of: Option<RideId>,
    /// By how many seconds the rider is fetched sooner.
    #[serde(default)]
    pub gain_s: i64,
}

/// The hold a ride has may become another ride's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outgoing {
    /// The driver's entity has not answered yet. Ends with the answer, or with the wait for the arrival.
    Asked { by: HoldId },
    /// It has: the hold is over.
    Moved,
}

/// A report that waits for the answer to a transfer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Parked {
    /// Who said it.
    pub driver: DriverId,
    /// What.
    pub report: RideReport,
    /// Who waits for the outcome.
    pub command: Option<CommandId>,
}

/// What a ride on which a driver is on the way has under way with others (PROTOCOL 6). Nothing most of the time.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Exchange {
    /// The second hold.
    pub incoming: Option<Box<Incoming>>,
    /// What becomes of the first.
    pub outgoing: Option<Outgoing>,
    /// Reports on the first; at most [`PARKED_MAX`].
    pub parked: Vec<Parked>,
}

/// May the hold of the driver on the way go to another ride? Belongs to that hold and ends with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Consent {
    /// The driver is asked.
    Asked { gain_s: i64, until: Time },
    /// Yes, until then.
    Agreed { until: Time },
    /// No; nobody asks again.
    Kept,
}

/// Reports that may wait for a transfer; more are refused as `in_transfer`.
pub const PARKED_MAX: usize = 4;

impl Exchange {
    /// Is nothing under way?
    pub fn is_idle(&self) -> bool {
        self.incoming.is_none() && self.outgoing.is_none() && self.parked.is_empty()
    }

    /// Is the first hold the ride's no more?
    pub fn is_moved(&self) -> bool {
        self.outgoing == Some(Outgoing::Moved)
    }

    /// May the first hold be another ride's at this moment?
    pub fn is_asked(&self) -> bool {
        matches!(self.outgoing, Some(Outgoing::Asked { .. }))
    }

    /// Is the second hold this one?
    pub fn has_incoming(&self, attempt: Attempt, driver: &DriverId) -> bool {
        self.incoming
            .as_ref()
            .is_some_and(|i| i.attempt == attempt && i.driver == *driver)
    }
}

/// A ride's state: the fold of its events.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ride {
    /// Its id.
    pub id: RideId,
    /// The number of its newest event. A round's pair is valid only for the number its snapshot saw.
    pub seq: u32,
    /// Who rides.
    pub rider: RiderId,
    /// The wish it came from.
    pub key: IdempotencyKey,
    /// Where to be fetched.
    pub pickup: Place,
    /// Where to.
    pub dropoff: Option<Place>,
    /// The pickup point the rider was moved to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pickup_point: Option<Box<PickupPoint>>,
    /// The airport it begins at: its queue comes first, and the ride exchanges no cars.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub airport: Option<ZoneName>,
    /// What car.
    pub class: VehicleClass,
    /// When the rider first asked: the place in the queue, also after losing a driver.
    pub issued_at: Time,
    /// When the search ends.
    pub deadline: Time,
    /// How far rounds look now.
    pub radius_m: u32,
    /// When the search grows.
    pub widen_at: Time,
    /// Has a round looked at it?
    pub looked: bool,
    /// The newest attempt; 0 before the first.
    pub attempt: Attempt,
    /// The attempt of the hold it has, if that is not the newest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<Attempt>,
    /// How often it lost its driver.
    pub redispatches: u32,
    /// How often a swap gave it another driver.
    #[serde(default, skip_serializing_if = "is_none_yet")]
    pub swaps: u32,
    /// The newest swap, told to those it concerns while the driver it brought has not arrived.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub swap: Option<Box<SwapView>>,
    /// Drivers who were asked and did not come: never again.
    pub asked: BTreeSet<DriverId>,
    /// Drivers whose entity refused: left out while the index knows nothing newer (PROTOCOL 4).
    pub avoid: BTreeMap<DriverId, u64>,
    /// Where it stands.
    #[serde(flatten)]
    pub stage: Stage,
    /// What the driver on the way says to giving the ride to another one, if asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consent: Option<Consent>,
    /// What it exchanges with other rides.
    #[serde(default, skip_serializing_if = "Exchange::is_idle")]
    pub exchange: Exchange,
    /// Outcomes of its newest commands.
    pub recent: Recent,
}

/// Keeps what happens seldom out of the stored states.
fn is_none_yet(count: &u32) -> bool {
    *count == 0
}

impl Ride {
    /// The state after `ride.requested`.
    pub fn opened(event: &RideRequested) -> Ride {
        Ride {
            id: event.ride,
            seq: event.ride_seq,
            rider: event.rider.clone(),
            key: event.key.clone(),
            pickup: event.pickup,
            dropoff: event.dropoff,
            pickup_point: event.pickup_point.clone(),
            airport: event.airport.clone(),
            class: event.class,
            issued_at: event.issued_at,
            deadline: event.deadline,
            radius_m: event.radius_m,
            widen_at: event.widen_at,
            looked: false,
            attempt: 0,
            current: None,
            redispatches: 0,
            swaps: 0,
            swap: None,
            asked: BTreeSet::new(),
            avoid: BTreeMap::new(),
            stage: Stage::Waiting,
            consent: None,
            exchange: Exchange::default(),
            recent: Recent::default(),
        }
    }

    /// Folds one event of this ride into its state. `asked_max` and `outcomes_max` bound what is remembered.
    pub fn apply(&mut self, event: &Event, bounds: &Bounds) {
        match event {
            Event::CommandOutcome(e) => {
                // No step of the ride's life, so it has no ride number.
                self.recent.remember(e, bounds.outcomes_max);
            }
            Event::RideRequested(e) => {
                *self = Ride::opened(e);
            }
            Event::DestinationChanged(e) => {
                self.seq = e.ride_seq;
                self.dropoff = Some(e.to);
            }
            Event::SearchedInVain(e) => {
                self.seq = e.ride_seq;
                self.looked = true;
            }
            Event::SearchWidened(e) => {
                self.seq = e.ride_seq;
                self.radius_m = e.radius_m;
                self.widen_at = e.widen_at;
            }
            Event::DriverClaimed(e) => {
                self.seq = e.ride_seq;
                self.looked = true;
                if let Stage::EnRoute { .. } = self.stage {
                    self.current = Some(self.hold().attempt);
                    self.exchange.incoming = Some(Box::new(Incoming {
                        driver: e.driver.clone(),
                        attempt: e.attempt,
                        until: e.answer_by,
                        granted: None,
                        then: e.then.clone(),
                        instead_of: e.from.map(|hold| hold.ride),
                        gain_s: e.gain_s,
                    }));
                } else {
                    self.current = None;
                    self.stage = Stage::Claiming {
                        driver: e.driver.clone(),
                        until: e.answer_by,
                    };
                }
                self.attempt = e.attempt;
            }
            Event::ClaimDenied(e) => {
                self.seq = e.ride_seq;
                if e.why == ClaimRefusal::Blocked {
                    // Not a matter of what the index knows: these two are kept apart.
                    self.asked.insert(e.driver.clone());
                } else {
                    if self.avoid.len() >= bounds.asked_max {
                        self.avoid.pop_first();
                    }
                    self.avoid.insert(e.driver.clone(), e.driver_seq);
                }
                self.claim_is_over();
            }
            Event::ClaimAbandoned(e) => {
                self.seq = e.ride_seq;
                self.claim_is_over();
            }
            Event::SecondHoldGranted(e) => {
                self.seq = e.ride_seq;
                if let Some(incoming) = &mut self.exchange.incoming {
                    incoming.granted = Some(e.hold_number);
                }
            }
            Event::SwapAsked(e) => {
                self.seq = e.ride_seq;
                self.consent = Some(Consent::Asked {
                    gain_s: e.gain_s,
                    until: e.answer_by,
                });
            }
            Event::SwapAnswered(e) => {
                self.seq = e.ride_seq;
                self.consent = Some(match e.answer {
                    SwapAnswer::Agreed => Consent::Agreed { until: e.until },
                    SwapAnswer::Declined | SwapAnswer::NoAnswer => Consent::Kept,
                });
            }
            Event::HoldAsked(e) => {
                self.seq = e.ride_seq;
                self.exchange.outgoing = Some(Outgoing::Asked { by: e.by });
            }
            Event::HoldMoved(e) => {
                self.seq = e.ride_seq;
                self.exchange.outgoing = Some(Outgoing::Moved);
            }
            Event::HoldKept(e) => {
                self.seq = e.ride_seq;
                self.exchange.outgoing = None;
                self.exchange.parked.clear();
            }
            Event::ReportWaits(e) => {
                self.seq = e.ride_seq;
                self.exchange.parked.push(Parked {
                    driver: e.driver.clone(),
                    report: e.report,
                    command: e.command.clone(),
                });
            }
            Event::DriverReassigned(e) => {
                self.seq = e.ride_seq;
                self.current = (e.attempt != self.attempt).then_some(e.attempt);
                // A car that was brought back is no other one.
                if e.driver != e.before {
                    self.swaps += 1;
                    self.swap = Some(Box::new(SwapView {
                        before: e.before.clone(),
                        gained_s: e.gained_s,
                        instead_of: e.instead_of,
                    }));
                }
                self.exchange = Exchange::default();
                self.consent = None;
                self.stage = Stage::EnRoute {
                    driver: e.driver.clone(),
                    hold_number: e.hold_number,
                    until: e.arrive_by,
                };
            }
            Event::OfferMade(e) => {
                self.seq = e.ride_seq;
                self.stage = Stage::Offered {
                    driver: e.driver.clone(),
                    hold_number: e.hold_number,
                    received: false,
                    until: e.receipt_by,
                };
            }
            Event::OfferReceived(e) => {
                self.seq = e.ride_seq;
                if let Stage::Offered {
                    received, until, ..
                } = &mut self.stage
                {
                    *received = true;
                    *until = e.answer_by;
                }
            }
            Event::OfferDeclined(e) => {
                self.seq = e.ride_seq;
                self.asked.insert(e.driver.clone());
                self.stage = Stage::Waiting;
            }
            Event::OfferExpired(e) => {
                self.seq = e.ride_seq;
                self.asked.insert(e.driver.clone());
                self.stage = Stage::Waiting;
            }
            Event::DriverAssigned(e) => {
                self.seq = e.ride_seq;
                self.stage = Stage::EnRoute {
                    driver: e.driver.clone(),
                    hold_number: e.hold_number,
                    until: e.arrive_by,
                };
            }
            Event::DriverLost(e) => {
                self.seq = e.ride_seq;
                if e.why != LostBecause::Moved {
                    self.asked.insert(e.driver.clone());
                }
                self.exchange = Exchange::default();
                self.swap = None;
                self.consent = None;
                self.deadline = e.deadline;
                self.redispatches = e.redispatches;
                self.stage = Stage::Waiting;
            }
            Event::DriverArrived(e) => {
                self.seq = e.ride_seq;
                self.consent = None;
                self.swap = None;
                self.stage = Stage::Arrived {
                    driver: e.driver.clone(),
                    hold_number: self.hold_number().unwrap_or(0),
                    until: e.start_by,
                };
            }
            Event::RideStarted(e) => {
                self.seq = e.ride_seq;
                self.consent = None;
                self.swap = None;
                self.stage = Stage::Started {
                    driver: e.driver.clone(),
                    hold_number: self.hold_number().unwrap_or(0),
                    until: e.complete_by,
                };
            }
            Event::RideCompleted(e) => {
                self.seq = e.ride_seq;
                self.end(
                    EndOfRide::Completed,
                    None,
                    Some(e.driver.clone()),
                    e.keep_until,
                    None,
                );
            }
            Event::RideCancelled(e) => {
                self.seq = e.ride_seq;
                self.end(
                    EndOfRide::Cancelled,
                    Some(e.by),
                    e.driver.clone(),
                    e.keep_until,
                    e.reason.clone(),
                );
            }
            Event::RideUnfulfilled(e) => {
                self.seq = e.ride_seq;
                self.end(EndOfRide::Unfulfilled, None, None, e.keep_until, None);
            }
            Event::DriverOnline(_)
            | Event::DriverHeld(_)
            | Event::DriverReleased(_)
            | Event::DriverLeaving(_)
            | Event::DriverOffline(_)
            | Event::DriverSuspended(_)
            | Event::DriverReinstated(_)
            | Event::RiderBlocked(_)
            | Event::RiderUnblocked(_)
            | Event::DriverForgotten(_)
            | Event::RiderBusy(_)
            | Event::RideConfirmed(_)
            | Event::RideNotOpened(_)
            | Event::RequestRefused(_)
            | Event::KeyCancelled(_)
            | Event::RiderFree(_)
            | Event::RiderForgotten(_)
            | Event::HeadingSet(_)
            | Event::DriverQueued(_)
            | Event::DriverUnqueued(_)
            | Event::DispatchSet(_)
            | Event::DrainAsked(_)
            | Event::RingGrows(_)
            | Event::DriverHandedOver(_)
            | Event::DriverTakenOver(_)
            | Event::RiderHandedOver(_)
            | Event::RiderTakenOver(_) => unreachable!("events are applied to their own entity"),
        }
    }

    /// The claim that was open is not any more: the second one of a ride that has a driver, else the only one.
    fn claim_is_over(&mut self) {
        if let Stage::EnRoute { .. } = self.stage {
            self.exchange.incoming = None;
        } else {
            self.stage = Stage::Waiting;
        }
    }

    fn end(
        &mut self,
        end: EndOfRide,
        by: Option<CancelledBy>,
        driver: Option<DriverId>,
        keep_until: Time,
        reason: Option<Reason>,
    ) {
        self.asked.clear();
        self.avoid.clear();
        self.exchange = Exchange::default();
        self.swap = None;
        self.consent = None;
        self.stage = Stage::Ended {
            end,
            by,
            driver,
            keep_until,
            reason,
        };
    }

    /// The driver this ride holds or asks to hold, if any.
    pub fn driver(&self) -> Option<&DriverId> {
        match &self.stage {
            Stage::Waiting | Stage::Ended { .. } => None,
            Stage::Claiming { driver, .. }
            | Stage::Offered { driver, .. }
            | Stage::EnRoute { driver, .. }
            | Stage::Arrived { driver, .. }
            | Stage::Started { driver, .. } => Some(driver),
        }
    }

    /// The name of the hold it has, or else of its newest claim.
    pub fn hold(&self) -> HoldId {
        HoldId {
            ride: self.id,
            attempt: self.current.unwrap_or(self.attempt),
        }
    }

    /// Does it hold `driver` under `hold`, or ask for it? A second hold does not count until it is the only one.
    pub fn holds(&self, hold: HoldId, driver: &DriverId) -> bool {
        self.hold() == hold && self.driver() == Some(driver) && !self.exchange.is_moved()
    }

    /// Has it any use for `hold`?
    pub fn wants(&self, hold: HoldId, driver: &DriverId) -> bool {
        let second = hold.ride == self.id && self.exchange.has_incoming(hold.attempt, driver);
        second || self.holds(hold, driver)
    }

    /// Does a report that the rider is in the car wait for the answer to a transfer?
    pub fn is_start_parked(&self) -> bool {
        let parked = &self.exchange.parked;
        parked.iter().any(|p| p.report == RideReport::Started)
    }

    fn hold_number(&self) -> Option<u64> {
        match &self.stage {
            Stage::Offered { hold_number, .. }
            | Stage::EnRoute { hold_number, .. }
            | Stage::Arrived { hold_number, .. }
            | Stage::Started { hold_number, .. } => Some(*hold_number),
            Stage::Waiting | Stage::Claiming { .. } | Stage::Ended { .. } => None,
        }
    }

    /// Is it over?
    pub fn is_ended(&self) -> bool {
        matches!(self.stage, Stage::Ended { .. })
    }

    /// May it lose its driver once more, as a swap that fails in the middle makes it? Who has waited at an airport for it
    /// keeps it.
    pub(crate) fn may_lose_driver(&self, config: &EngineConfig) -> bool {
        self.airport.is_none() && self.redispatches < config.redispatch_max
    }

    /// Its driver is on the way and may be exchanged, as far as the engine is concerned.
    pub fn may_be_exchanged(&self, config: &EngineConfig) -> bool {
        matches!(self.stage, Stage::EnRoute { .. })
            && self.exchange.is_idle()
            && !matches!(self.consent, Some(Consent::Asked { .. } | Consent::Kept))
            && self.asked.len() < config.asked_max
            && self.swaps < config.swaps.swaps_max
            && self.may_lose_driver(config)
    }

    /// May a round give it this driver, whose newest event known to the index is `driver_seq`?
    pub fn may_ask(&self, driver: &DriverId, driver_seq: u64) -> bool {
        !self.asked.contains(driver)
            && self
                .avoid
                .get(driver)
                .is_none_or(|refused_at| driver_seq > *refused_at)
    }

    /// When something happens by itself, and nothing before.
    pub fn due(&self, radius_max_m: u32) -> Time {
        match &self.stage {
            Stage::Waiting if self.radius_m < radius_max_m => self.deadline.min(self.widen_at),
            Stage::Waiting => self.deadline,
            Stage::Claiming { until, .. } | Stage::Offered { until, .. } => {
                self.deadline.min(*until)
            }
            Stage::EnRoute { until, .. } => {
                let incoming = self.exchange.incoming.as_ref();
                let asking = incoming.filter(|incoming| incoming.granted.is_none());
                let claim_ends = asking.map_or(*until, |incoming| incoming.until.min(*until));
                match self.consent {
                    Some(Consent::Asked { until, .. }) => claim_ends.min(until),
                    Some(Consent::Agreed { .. } | Consent::Kept) | None => claim_ends,
                }
            }
            Stage::Arrived { until, .. } | Stage::Started { until, .. } => *until,
            Stage::Ended { keep_until, .. } => *keep_until,
        }
    }

    /// The ride as the people in it see it.
    pub fn view(&self) -> RideView {
        let (stage, held) = match &self.stage {
            Stage::Waiting | Stage::Claiming { .. } => (RideStage::Waiting, None),
            Stage::Offered { driver, .. } => (RideStage::Offered, Some(driver)),
            Stage::EnRoute { driver, .. } => (RideStage::EnRoute, Some(driver)),
            Stage::Arrived { driver, .. } => (RideStage::Arrived, Some(driver)),
            Stage::Started { driver, .. } => (RideStage::Started, Some(driver)),
            Stage::Ended { end, driver, .. } => ((*end).into(), driver.as_ref()),
        };
        let (cancelled_by, reason) = match &self.stage {
            Stage::Ended { by, reason, .. } => (*by, reason.clone()),
            Stage::Waiting
            | Stage::Claiming { .. }
            | Stage::Offered { .. }
            | Stage::EnRoute { .. }
            | Stage::Arrived { .. }
            | Stage::Started { .. } => (None, None),
        };
        RideView {
            ride: self.id,
            ride_seq: self.seq,
            stage,
            rider: self.rider.clone(),
            pickup: self.pickup,
            dropoff: self.dropoff,
            class: self.class,
            requested_at: self.issued_at,
            driver: held.cloned(),
            attempt: held.map(|_| self.hold().attempt),
            cancelled_by,
            reason,
            swap: self.swap.as_deref().cloned(),
            swap_asked: match self.consent {
                Some(Consent::Asked { gain_s, until }) => Some(Box::new(SwapAskedView {
                    gain_s,
                    answer_by: until,
                })),
                Some(Consent::Agreed { .. } | Consent::Kept) | None => None,
            },
            pickup_point: self.pickup_point.as_deref().cloned(),
        }
    }
}

/// What a fold needs to know of the configuration: how much is remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// See [`crate::EngineConfig::asked_max`].
    pub asked_max: usize,
    /// See [`crate::EngineConfig::outcomes_max`].
    pub outcomes_max: usize,
}

/// Why a ride goes back to waiting or ends, in the engine's own words: each maps to one event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parting {
    /// The offer was turned down.
    Declined(DeclinedBecause),
    /// The offer ran out.
    Expired(ExpiredBecause),
    /// An assigned driver no longer comes.
    Lost(LostBecause),
}

/// Ends in the engine's own words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Brought there.
    Completed(CompletedBecause),
    /// Called off, with what the rider is told of it.
    Cancelled(CancelledBy, Option<Reason>),
    /// Nobody came.
    Unfulfilled(UnfulfilledBecause),
}
