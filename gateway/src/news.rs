//! Which committed event concerns whom?
//!
//! Runs on the node's thread for every commit: it looks up the people concerned and queues for their sockets, no more.
//! Not here: how it is worded for a phone (`driver`, `rider`).

use std::sync::Arc;

use cabrank_events::wire::{HeadToView, RideStage, RideView, ToRider};
use cabrank_events::{Attempt, DriverId, Event, RideId};
use cabrank_matcher::api::Committed;

use crate::edge::Edge;
use crate::outcomes::Answer;

/// What a driver's socket hears of.
#[derive(Clone, Debug)]
pub enum DriverNews {
    /// The driver is asked.
    Offered {
        ride: Arc<RideView>,
        attempt: Attempt,
    },
    /// The ride the driver holds has changed.
    Ride(Arc<RideView>),
    /// An offer or a ride is over for this driver. Without an attempt, whichever there was.
    Over {
        ride: RideId,
        attempt: Option<Attempt>,
        stage: Option<RideStage>,
    },
    /// The driver has said no; the phone knows.
    Declined { ride: RideId, attempt: Attempt },
    /// Cars are missing elsewhere.
    HeadTo(Box<HeadToView>),
}

/// What a rider's socket hears of.
#[derive(Clone, Debug)]
pub enum RiderNews {
    /// The ride has changed.
    Ride(Arc<RideView>),
    /// The answer to what this socket asked of a node elsewhere: nothing when there was none.
    Shown(Option<Box<ToRider>>),
}

impl Edge {
    /// Takes a commit in.
    pub fn hear(&self, commits: &[Committed]) {
        for committed in commits {
            if let Some(waited_s) = self.first_offers.hear(&committed.record.event) {
                metrics::histogram!("cabrank_offer_seconds").record(waited_s);
            }
            self.steps.hear(committed);
            self.hear_for_drivers(committed);
            if let Some(ride) = &committed.ride {
                self.riders
                    .tell(&ride.rider, || RiderNews::Ride(ride.clone()));
            }
        }
        self.quotes.hear(commits);
        self.pulse
            .hear(commits, self.dispatch.now(), self.wall_ms());
        self.commits
            .send_modify(|count| *count = count.wrapping_add(1));
    }

    fn hear_for_drivers(&self, committed: &Committed) {
        let stage = committed.ride.as_ref().map(|ride| ride.stage);
        let over = |driver: &DriverId, ride, attempt| {
            self.drivers.tell(driver, || DriverNews::Over {
                ride,
                attempt,
                stage,
            });
        };
        let changed = |driver: &DriverId| {
            if let Some(ride) = &committed.ride {
                self.drivers.tell(driver, || DriverNews::Ride(ride.clone()));
            }
        };
        match &committed.record.event {
            Event::CommandOutcome(e) => {
                let answer = Answer {
                    outcome: e.outcome.clone(),
                    ride: e.ride,
                    pickup_point: e.pickup_point.clone(),
                };
                self.steps.answered(&e.command, &answer);
                if let Some(waited) = self.outcomes.resolve(&e.command, answer) {
                    self.admission.answered(waited);
                }
            }
            Event::OfferMade(e) => {
                if let Some(ride) = &committed.ride {
                    let attempt = e.attempt;
                    self.drivers.tell(&e.driver, || {
                        self.steps.shown(committed);
                        DriverNews::Offered {
                            ride: ride.clone(),
                            attempt,
                        }
                    });
                }
            }
            Event::OfferDeclined(e) => {
                let (ride, attempt) = (e.ride, e.attempt);
                self.drivers
                    .tell(&e.driver, || DriverNews::Declined { ride, attempt });
            }
            Event::OfferExpired(e) => over(&e.driver, e.ride, Some(e.attempt)),
            Event::DriverLost(e) => over(&e.driver, e.ride, Some(e.attempt)),
            Event::RideCompleted(e) => over(&e.driver, e.ride, Some(e.attempt)),
            Event::DriverReleased(e) => over(&e.driver, e.ride, Some(e.attempt)),
            Event::RideCancelled(e) => {
                if let Some(driver) = &e.driver {
                    over(driver, e.ride, None);
                }
            }
            Event::DriverAssigned(e) => changed(&e.driver),
            // Who was on the way before hears of it by the release of the hold.
            Event::DriverReassigned(e) => changed(&e.driver),
            Event::SwapAsked(e) => changed(&e.driver),
            Event::SwapAnswered(e) => changed(&e.driver),
            Event::DriverArrived(e) => changed(&e.driver),
            Event::RideStarted(e) => changed(&e.driver),
            Event::DestinationChanged(_) => {
                let told = committed.ride.as_ref();
                match told.and_then(|ride| ride.driver.clone().zip(ride.attempt)) {
                    // The offer on the screen shows another destination: it is made again.
                    Some((driver, attempt)) if stage == Some(RideStage::Offered) => {
                        if let Some(ride) = told {
                            self.drivers.tell(&driver, || DriverNews::Offered {
                                ride: ride.clone(),
                                attempt,
                            });
                        }
                    }
                    Some((driver, _)) => changed(&driver),
                    None => {}
                }
            }
            // The rider hears of these by the ride's view; no driver's phone is concerned.
            Event::RideRequested(_)
            | Event::SearchedInVain(_)
            | Event::SearchWidened(_)
            | Event::DriverClaimed(_)
            | Event::ClaimDenied(_)
            | Event::ClaimAbandoned(_)
            | Event::OfferReceived(_)
            | Event::SecondHoldGranted(_)
            | Event::HoldAsked(_)
            | Event::HoldMoved(_)
            | Event::HoldKept(_)
            | Event::ReportWaits(_)
            | Event::RideUnfulfilled(_) => {}
            // States of people: what follows for a phone comes with the ride's events and the outcomes.
            Event::DriverOnline(_)
            | Event::DriverHeld(_)
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
            | Event::RiderTakenOver(_) => {}
        }
    }
}
