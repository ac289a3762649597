//! A driver: at work or not, held by a ride or not. The only thing that can grant a hold.
//!
//! Lives by id. Every change is an event. `seq` begins at the shard's event number when the driver is first seen, so
//! that a driver who was forgotten and comes back has larger numbers than before (the index and rides' memories
//! compare them).

use cabrank_events::command::ClaimRefusal;
use cabrank_events::event::LeaveReason;
use cabrank_events::{ClassSet, DriverId, Event, HoldId, SessionId, Time, VehicleClass};
use serde::{Deserialize, Serialize};

use crate::recent::Recent;
use crate::ride::Bounds;

/// Is the driver at work?
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "presence", rename_all = "snake_case")]
pub enum Presence {
    /// May be offered rides.
    Online { classes: ClassSet },
    /// Held, and will be offline once released.
    Leaving { why: LeaveReason },
    /// Not at work.
    Offline { keep_until: Time },
}

/// A granted claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// By which ride and attempt.
    pub hold: HoldId,
    /// Orders the driver's holds.
    pub number: u64,
}

/// A driver's state: the fold of its events.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Driver {
    /// Its id.
    pub id: DriverId,
    /// The number of its newest event.
    pub seq: u64,
    /// The newest session seen, open or ended.
    pub session: SessionId,
    /// At work?
    #[serde(flatten)]
    pub presence: Presence,
    /// The hold, if any.
    pub held: Option<Held>,
    /// Outcomes of the newest commands.
    pub recent: Recent,
}

impl Driver {
    /// A driver nobody has seen before, `seq` being the shard's newest event number.
    pub fn unseen(id: DriverId, seq: u64) -> Driver {
        Driver {
            id,
            seq,
            session: SessionId(0),
            presence: Presence::Offline {
                keep_until: Time(i64::MAX),
            },
            held: None,
            recent: Recent::default(),
        }
    }

    /// Folds one event of this driver into its state.
    pub fn apply(&mut self, event: &Event, bounds: &Bounds) {
        match event {
            Event::DriverOnline(e) => {
                self.seq = e.driver_seq;
                self.session = e.session;
                self.presence = Presence::Online { classes: e.classes };
            }
            Event::DriverHeld(e) => {
                self.seq = e.driver_seq;
                let hold = HoldId {
                    ride: e.ride,
                    attempt: e.attempt,
                };
                self.held = Some(Held {
                    hold,
                    number: e.hold_number,
                });
            }
            Event::DriverReleased(e) => {
                self.seq = e.driver_seq;
                self.held = None;
            }
            Event::DriverLeaving(e) => {
                self.seq = e.driver_seq;
                self.presence = Presence::Leaving { why: e.why };
            }
            Event::DriverOffline(e) => {
                self.seq = e.driver_seq;
                self.presence = Presence::Offline {
                    keep_until: e.keep_until,
                };
            }
            Event::CommandOutcome(e) => self.recent.remember(e, bounds.outcomes_max),
            Event::DriverForgotten(_) => {}
            Event::RideRequested(_)
            | Event::SearchedInVain(_)
            | Event::SearchWidened(_)
            | Event::DriverClaimed(_)
            | Event::ClaimDenied(_)
            | Event::ClaimAbandoned(_)
            | Event::OfferMade(_)
            | Event::OfferReceived(_)
            | Event::OfferDeclined(_)
            | Event::OfferExpired(_)
            | Event::DriverAssigned(_)
            | Event::DriverLost(_)
            | Event::DriverArrived(_)
            | Event::RideStarted(_)
            | Event::RideCompleted(_)
            | Event::RideCancelled(_)
            | Event::RideUnfulfilled(_)
            | Event::RiderBusy(_)
            | Event::RideConfirmed(_)
            | Event::RideNotOpened(_)
            | Event::RequestRefused(_)
            | Event::KeyCancelled(_)
            | Event::RiderFree(_)
            | Event::RiderForgotten(_) => unreachable!("events are applied to their own entity"),
        }
    }

    /// Can the driver be held for a ride of `class`? The hard conditions, checked at the claim (PROTOCOL 5).
    pub fn can_be_held(&self, class: VehicleClass) -> Result<(), ClaimRefusal> {
        match (&self.presence, self.held) {
            (Presence::Offline { .. }, _) => Err(ClaimRefusal::Offline),
            (Presence::Leaving { .. }, _) => Err(ClaimRefusal::Leaving),
            (Presence::Online { .. }, Some(_)) => Err(ClaimRefusal::Held),
            (Presence::Online { classes }, None) if !classes.contains(class) => {
                Err(ClaimRefusal::WrongClass)
            }
            (Presence::Online { .. }, None) => Ok(()),
        }
    }

    /// The open session, if at work.
    pub fn open_session(&self) -> Option<SessionId> {
        match self.presence {
            Presence::Online { .. } | Presence::Leaving { .. } => Some(self.session),
            Presence::Offline { .. } => None,
        }
    }

    /// When the driver is forgotten, if offline.
    pub fn due(&self) -> Option<Time> {
        match (&self.presence, self.held) {
            (Presence::Offline { keep_until }, None) => Some(*keep_until),
            (Presence::Offline { .. } | Presence::Online { .. } | Presence::Leaving { .. }, _) => {
                None
            }
        }
    }
}
