//! A ride: from the request to exactly one end.
//!
//! Lives in its place shard. Every change is an event; [`Ride::apply`] is the only place that changes anything.
//! Holds follow PROTOCOL 1 to 4: at most one claim or hold at a time, attempts never reused.
//! Not here: who is near (`matching`), who is free (`driver`), sending anything (`shard`).

use std::collections::{BTreeMap, BTreeSet};

use cabrank_events::command::CancelledBy;
use cabrank_events::event::{
    CompletedBecause, DeclinedBecause, EndOfRide, ExpiredBecause, LostBecause, RideRequested,
    UnfulfilledBecause,
};
use cabrank_events::wire::{RideStage, RideView};
use cabrank_events::{
    Attempt, DriverId, Event, HoldId, IdempotencyKey, Place, RideId, RiderId, Time, VehicleClass,
};
use serde::{Deserialize, Serialize};

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
    },
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
    /// How often it lost its driver.
    pub redispatches: u32,
    /// Drivers who were asked and did not come: never again.
    pub asked: BTreeSet<DriverId>,
    /// Drivers whose entity refused: left out while the index knows nothing newer (PROTOCOL 4).
    pub avoid: BTreeMap<DriverId, u64>,
    /// Where it stands.
    #[serde(flatten)]
    pub stage: Stage,
    /// Outcomes of its newest commands.
    pub recent: Recent,
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
            class: event.class,
            issued_at: event.issued_at,
            deadline: event.deadline,
            radius_m: event.radius_m,
            widen_at: event.widen_at,
            looked: false,
            attempt: 0,
            redispatches: 0,
            asked: BTreeSet::new(),
            avoid: BTreeMap::new(),
            stage: Stage::Waiting,
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
                self.attempt = e.attempt;
                self.stage = Stage::Claiming {
                    driver: e.driver.clone(),
                    until: e.answer_by,
                };
            }
            Event::ClaimDenied(e) => {
                self.seq = e.ride_seq;
                if self.avoid.len() >= bounds.asked_max {
                    self.avoid.pop_first();
                }
                self.avoid.insert(e.driver.clone(), e.driver_seq);
                self.stage = Stage::Waiting;
            }
            Event::ClaimAbandoned(e) => {
                self.seq = e.ride_seq;
                self.stage = Stage::Waiting;
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
                self.asked.insert(e.driver.clone());
                self.deadline = e.deadline;
                self.redispatches = e.redispatches;
                self.stage = Stage::Waiting;
            }
            Event::DriverArrived(e) => {
                self.seq = e.ride_seq;
                self.stage = Stage::Arrived {
                    driver: e.driver.clone(),
                    hold_number: self.hold_number().unwrap_or(0),
                    until: e.start_by,
                };
            }
            Event::RideStarted(e) => {
                self.seq = e.ride_seq;
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
                );
            }
            Event::RideCancelled(e) => {
                self.seq = e.ride_seq;
                self.end(
                    EndOfRide::Cancelled,
                    Some(e.by),
                    e.driver.clone(),
                    e.keep_until,
                );
            }
            Event::RideUnfulfilled(e) => {
                self.seq = e.ride_seq;
                self.end(EndOfRide::Unfulfilled, None, None, e.keep_until);
            }
            Event::DriverOnline(_)
            | Event::DriverHeld(_)
            | Event::DriverReleased(_)
            | Event::DriverLeaving(_)
            | Event::DriverOffline(_)
            | Event::DriverForgotten(_)
            | Event::RiderBusy(_)
            | Event::RideConfirmed(_)
            | Event::RideNotOpened(_)
            | Event::RequestRefused(_)
            | Event::KeyCancelled(_)
            | Event::RiderFree(_)
            | Event::RiderForgotten(_) => unreachable!("events are applied to their own entity"),
        }
    }

    fn end(
        &mut self,
        end: EndOfRide,
        by: Option<CancelledBy>,
        driver: Option<DriverId>,
        keep_until: Time,
    ) {
        self.asked.clear();
        self.avoid.clear();
        self.stage = Stage::Ended {
            end,
            by,
            driver,
            keep_until,
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

    /// The name of its newest claim or hold.
    pub fn hold(&self) -> HoldId {
        HoldId {
            ride: self.id,
            attempt: self.attempt,
        }
    }

    /// Does it hold `driver` under `hold`, or ask for it?
    pub fn holds(&self, hold: HoldId, driver: &DriverId) -> bool {
        self.hold() == hold && self.driver() == Some(driver)
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
            Stage::EnRoute { until, .. }
            | Stage::Arrived { until, .. }
            | Stage::Started { until, .. } => *until,
            Stage::Ended { keep_until, .. } => *keep_until,
        }
    }

    /// The ride as the people in it see it.
    pub fn view(&self) -> RideView {
        let (stage, held, cancelled_by) = match &self.stage {
            Stage::Waiting | Stage::Claiming { .. } => (RideStage::Waiting, None, None),
            Stage::Offered { driver, .. } => (RideStage::Offered, Some(driver), None),
            Stage::EnRoute { driver, .. } => (RideStage::EnRoute, Some(driver), None),
            Stage::Arrived { driver, .. } => (RideStage::Arrived, Some(driver), None),
            Stage::Started { driver, .. } => (RideStage::Started, Some(driver), None),
            Stage::Ended {
                end, by, driver, ..
            } => ((*end).into(), driver.as_ref(), *by),
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
            attempt: held.map(|_| self.attempt),
            cancelled_by,
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Brought there.
    Completed(CompletedBecause),
    /// Called off.
    Cancelled(CancelledBy),
    /// Nobody came.
    Unfulfilled(UnfulfilledBecause),
}
