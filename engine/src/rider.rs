//! A rider: one active ride at a time, and the keys of the wishes seen lately.
//!
//! Lives by id. A key is remembered longer than any retry may be late (PROTOCOL 13); then the rider ends by a timer.

use std::collections::BTreeMap;

use cabrank_events::command::RefusedBecause;
use cabrank_events::event::{EndOfRide, RiderTakenOver};
use cabrank_events::{CommandId, Event, IdempotencyKey, PickupPoint, RideId, RiderId, Time};
use serde::{Deserialize, Serialize};

use crate::fold::parse_state;

/// What became of one wish.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "wish", rename_all = "snake_case")]
pub enum Wish {
    /// The place shard has not answered yet; `command` waits for the outcome.
    Pending { ride: RideId, command: CommandId },
    /// The ride is open.
    Open { ride: RideId },
    /// The ride has ended.
    Ended { ride: RideId, end: EndOfRide },
    /// There was no ride.
    Refused { why: RefusedBecause },
    /// Taken back before it arrived.
    Cancelled,
}

/// A remembered key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Key {
    /// Digest of the request; 0 when only a cancel was seen.
    pub fingerprint: u64,
    /// Forgotten after this.
    pub expires_at: Time,
    /// The pickup point the rider is moved to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pickup_point: Option<Box<PickupPoint>>,
    /// What became of it.
    #[serde(flatten)]
    pub wish: Wish,
}

/// A rider's state: the fold of its events.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rider {
    /// Its id.
    pub id: RiderId,
    /// The number of its newest event.
    pub seq: u64,
    /// The ride the rider is in or waits for.
    pub active: Option<RideId>,
    /// Wishes by key.
    pub keys: BTreeMap<IdempotencyKey, Key>,
}

impl Rider {
    /// A rider nobody has seen before, `seq` being the shard's newest event number.
    pub fn unseen(id: RiderId, seq: u64) -> Rider {
        Rider {
            id,
            seq,
            active: None,
            keys: BTreeMap::new(),
        }
    }

    /// As another shard has given the rider to this one (PROTOCOL 30).
    pub fn taken_over(event: &RiderTakenOver) -> Rider {
        Rider {
            seq: event.rider_seq,
            ..parse_state(&event.state)
        }
    }

    /// Folds one event of this rider into its state; `at` is the event's time.
    pub fn apply(&mut self, event: &Event, at: Time) {
        match event {
            Event::RiderBusy(e) => {
                self.seq = e.rider_seq;
                self.evict_expired(at);
                self.active = Some(e.ride);
                let wish = Wish::Pending {
                    ride: e.ride,
                    command: e.command.clone(),
                };
                self.put(&e.key, e.fingerprint, e.expires_at, wish);
                if let Some(known) = self.keys.get_mut(&e.key) {
                    known.pickup_point = e.pickup_point.clone();
                }
            }
            Event::RequestRefused(e) => {
                self.seq = e.rider_seq;
                self.evict_expired(at);
                self.put(
                    &e.key,
                    e.fingerprint,
                    e.expires_at,
                    Wish::Refused { why: e.why },
                );
            }
            Event::KeyCancelled(e) => {
                self.seq = e.rider_seq;
                self.evict_expired(at);
                self.put(&e.key, 0, e.expires_at, Wish::Cancelled);
            }
            Event::RideConfirmed(e) => {
                self.seq = e.rider_seq;
                self.set_wish(&e.key, Wish::Open { ride: e.ride });
            }
            Event::RideNotOpened(e) => {
                self.seq = e.rider_seq;
                self.active = None;
                self.set_wish(&e.key, Wish::Refused { why: e.why });
            }
            Event::RiderFree(e) => {
                self.seq = e.rider_seq;
                self.active = None;
                self.set_wish(
                    &e.key,
                    Wish::Ended {
                        ride: e.ride,
                        end: e.end,
                    },
                );
            }
            Event::RiderTakenOver(e) => *self = Rider::taken_over(e),
            Event::CommandOutcome(_) | Event::RiderForgotten(_) | Event::RiderHandedOver(_) => {}
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
            | Event::DriverOnline(_)
            | Event::DriverHeld(_)
            | Event::DriverReleased(_)
            | Event::DriverLeaving(_)
            | Event::DriverOffline(_)
            | Event::DriverSuspended(_)
            | Event::DriverReinstated(_)
            | Event::RiderBlocked(_)
            | Event::RiderUnblocked(_)
            | Event::DriverForgotten(_)
            | Event::HeadingSet(_)
            | Event::DriverQueued(_)
            | Event::DriverUnqueued(_)
            | Event::DispatchSet(_)
            | Event::DrainAsked(_)
            | Event::RingGrows(_)
            | Event::DriverHandedOver(_)
            | Event::DriverTakenOver(_) => unreachable!("events are applied to their own entity"),
        }
    }

    fn put(&mut self, key: &IdempotencyKey, fingerprint: u64, expires_at: Time, wish: Wish) {
        self.keys.insert(
            key.clone(),
            Key {
                fingerprint,
                expires_at,
                pickup_point: None,
                wish,
            },
        );
    }

    fn set_wish(&mut self, key: &IdempotencyKey, wish: Wish) {
        if let Some(known) = self.keys.get_mut(key) {
            known.wish = wish;
        }
    }

    fn is_settled(key: &Key) -> bool {
        match key.wish {
            Wish::Pending { .. } | Wish::Open { .. } => false,
            Wish::Ended { .. } | Wish::Refused { .. } | Wish::Cancelled => true,
        }
    }

    fn evict_expired(&mut self, at: Time) {
        self.keys
            .retain(|_, key| key.expires_at > at || !Self::is_settled(key));
    }

    /// How many keys would still be remembered at `at`.
    pub fn keys_at(&self, at: Time) -> usize {
        self.keys
            .values()
            .filter(|key| key.expires_at > at || !Self::is_settled(key))
            .count()
    }

    /// When the rider is forgotten: after the last key, and never during a ride.
    pub fn due(&self) -> Option<Time> {
        match self.active {
            Some(_) => None,
            None => self.keys.values().map(|key| key.expires_at).max(),
        }
    }
}
