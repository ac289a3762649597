//! A driver: at work or not, held by a ride or not. The only thing that can grant a hold.
//!
//! Lives by id. Every change is an event. `seq` begins at the shard's event number when the driver is first seen, so
//! that a driver who was forgotten and comes back has larger numbers than before (the index and rides' memories
//! compare them).
//!
//! Suspensions and block lists are marks: a driver who has one is never forgotten, and a suspended one is never
//! [`Presence::Online`], because a suspension ends the session as if the driver had left.

use std::collections::BTreeSet;

use cabrank_events::command::ClaimRefusal;
use cabrank_events::event::{DriverTakenOver, LeaveReason};
use cabrank_events::{
    ClassSet, DriverId, Event, HoldId, Place, QueuePlace, Reason, RiderId, SessionId, Time,
    VehicleClass,
};
use serde::{Deserialize, Serialize};

use crate::fold::parse_state;
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
    /// Kept from work, and why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspended: Option<Reason>,
    /// Riders whose rides this driver does not get.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub blocked: BTreeSet<RiderId>,
    /// Where the driver wants to go, said in the open session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heading: Option<Place>,
    /// The place in an airport's queue; of a held driver, the one that the hold interrupted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue: Option<QueuePlace>,
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
            // There is no session to remember: without a mark the driver is forgotten at once.
            presence: Presence::Offline {
                keep_until: Time(i64::MIN),
            },
            held: None,
            suspended: None,
            blocked: BTreeSet::new(),
            heading: None,
            queue: None,
            recent: Recent::default(),
        }
    }

    /// As another shard has given the driver to this one (PROTOCOL 30).
    pub fn taken_over(event: &DriverTakenOver) -> Driver {
        Driver {
            seq: event.driver_seq,
            ..parse_state(&event.state)
        }
    }

    /// Folds one event of this driver into its state.
    pub fn apply(&mut self, event: &Event, bounds: &Bounds) {
        match event {
            Event::DriverOnline(e) => {
                self.seq = e.driver_seq;
                if self.session != e.session {
                    self.heading = None;
                }
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
                self.queue = e.queue.clone();
            }
            Event::DriverLeaving(e) => {
                self.seq = e.driver_seq;
                self.queue = None;
                self.presence = Presence::Leaving { why: e.why };
            }
            Event::HeadingSet(e) => {
                self.seq = e.driver_seq;
                self.heading = e.to;
            }
            Event::DriverOffline(e) => {
                self.seq = e.driver_seq;
                self.heading = None;
                self.queue = None;
                self.presence = Presence::Offline {
                    keep_until: e.keep_until,
                };
            }
            Event::DriverQueued(e) => {
                self.seq = e.driver_seq;
                self.queue = Some(e.place.clone());
            }
            Event::DriverUnqueued(e) => {
                self.seq = e.driver_seq;
                self.queue = None;
            }
            Event::DriverSuspended(e) => {
                self.seq = e.driver_seq;
                self.suspended = Some(e.reason.clone());
            }
            Event::DriverReinstated(e) => {
                self.seq = e.driver_seq;
                self.suspended = None;
            }
            Event::RiderBlocked(e) => {
                self.seq = e.driver_seq;
                self.blocked.insert(e.rider.clone());
            }
            Event::RiderUnblocked(e) => {
                self.seq = e.driver_seq;
                self.blocked.remove(&e.rider);
            }
            Event::CommandOutcome(e) => self.recent.remember(e, bounds.outcomes_max),
            Event::DriverTakenOver(e) => *self = Driver::taken_over(e),
            Event::DriverForgotten(_) | Event::DriverHandedOver(_) => {}
            Event::RideRequested(_)
            | Event::DestinationChanged(_)
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
            | Event::SecondHoldGranted(_)
            | Event::SwapAsked(_)
            | Event::SwapAnswered(_)
            | Event::HoldAsked(_)
            | Event::HoldMoved(_)
            | Event::HoldKept(_)
            | Event::ReportWaits(_)
            | Event::DriverReassigned(_)
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
            | Event::RiderForgotten(_)
            | Event::DispatchSet(_)
            | Event::DrainAsked(_)
            | Event::RingGrows(_)
            | Event::RiderHandedOver(_)
            | Event::RiderTakenOver(_) => unreachable!("events are applied to their own entity"),
        }
    }

    /// May the driver take a ride of `class` from `holding`, the hold it may have? The hard conditions, checked again
    /// at each claim and each transfer (PROTOCOL 5, 6). Records of older versions name no rider.
    pub fn can_be_held(
        &self,
        holding: Option<HoldId>,
        class: VehicleClass,
        rider: Option<&RiderId>,
    ) -> Result<(), ClaimRefusal> {
        if self.suspended.is_some() {
            return Err(ClaimRefusal::Suspended);
        }
        match &self.presence {
            Presence::Offline { .. } => Err(ClaimRefusal::Offline),
            Presence::Leaving { .. } => Err(ClaimRefusal::Leaving),
            Presence::Online { .. } if self.held.map(|held| held.hold) != holding => {
                Err(ClaimRefusal::Held)
            }
            Presence::Online { classes } if !classes.contains(class) => {
                Err(ClaimRefusal::WrongClass)
            }
            Presence::Online { .. } if rider.is_some_and(|rider| self.blocked.contains(rider)) => {
                Err(ClaimRefusal::Blocked)
            }
            Presence::Online { .. } => Ok(()),
        }
    }

    /// Where the driver waits for an airport's riders: only who is at work and free does.
    pub fn waits_at(&self) -> Option<&QueuePlace> {
        let is_free = matches!(self.presence, Presence::Online { .. }) && self.held.is_none();
        self.queue.as_ref().filter(|_| is_free)
    }

    /// Suspended, or kept apart from somebody: not to be forgotten.
    pub fn is_marked(&self) -> bool {
        self.suspended.is_some() || !self.blocked.is_empty()
    }

    /// The open session, if at work.
    pub fn open_session(&self) -> Option<SessionId> {
        match self.presence {
            Presence::Online { .. } | Presence::Leaving { .. } => Some(self.session),
            Presence::Offline { .. } => None,
        }
    }

    /// When the driver is forgotten, if offline and without a mark.
    pub fn due(&self) -> Option<Time> {
        self.memory_ends().filter(|_| !self.is_marked())
    }

    /// Until when an offline driver's last session is remembered.
    pub fn memory_ends(&self) -> Option<Time> {
        match (&self.presence, self.held) {
            (Presence::Offline { keep_until }, None) => Some(*keep_until),
            (Presence::Offline { .. } | Presence::Online { .. } | Presence::Leaving { .. }, _) => {
                None
            }
        }
    }
}
