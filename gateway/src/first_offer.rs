//! How long does a rider wait for the first offer? From the request's arrival at this gateway until the offer is
//! durable and on its way to a phone, on the gateway's own clock.
//!
//! Every gateway hears of all rides; each measures those asked for at itself, so the histograms of all add up.
//! Bounds: [`RIDES_MAX`] rides are watched at once; when full, further ones are not measured, and once a minute those
//! are let go that nothing was heard of for [`LONGEST`]. A ride leaves when it is offered or over.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use cabrank_events::{Event, IdempotencyKey, RideId, RiderId};
use dashmap::DashMap;

/// Rides that are watched at once.
const RIDES_MAX: usize = 65_536;
/// Longer than any search for a driver.
const LONGEST: Duration = Duration::from_secs(3_600);
/// How often a full table is looked through.
const SWEEP: Duration = Duration::from_secs(60);

/// The watched rides.
#[derive(Default)]
pub struct FirstOffers {
    /// Handed in, not known as rides yet.
    asked: DashMap<(RiderId, IdempotencyKey), Instant>,
    /// Requested, not offered yet.
    waiting: DashMap<RideId, Instant>,
    swept: Mutex<Option<Instant>>,
}

impl FirstOffers {
    /// A rider asks now. A repeated request goes on from its first one.
    pub fn ask(&self, rider: &RiderId, key: &IdempotencyKey) {
        if self.asked.len() + self.waiting.len() >= RIDES_MAX {
            self.sweep(Instant::now());
            return;
        }
        self.asked
            .entry((rider.clone(), key.clone()))
            .or_insert_with(Instant::now);
    }

    fn sweep(&self, now: Instant) {
        // A panic while holding it leaves an old time behind, which sweeps once more.
        let mut swept = self.swept.lock().unwrap_or_else(PoisonError::into_inner);
        if swept.is_none_or(|at| now.duration_since(at) >= SWEEP) {
            *swept = Some(now);
            self.asked.retain(|_, since| since.elapsed() < LONGEST);
            self.waiting.retain(|_, since| since.elapsed() < LONGEST);
        }
    }

    /// The request came to nothing new: it was refused, was already done, or its outcome is not known.
    pub fn forget(&self, rider: &RiderId, key: &IdempotencyKey) {
        self.asked.remove(&(rider.clone(), key.clone()));
    }

    /// Hears of a committed event. Returns the seconds a rider of this gateway waited, at the ride's first offer.
    pub fn hear(&self, event: &Event) -> Option<f64> {
        match event {
            Event::RideRequested(e) => {
                let (_, since) = self.asked.remove(&(e.rider.clone(), e.key.clone()))?;
                self.waiting.insert(e.ride, since);
                None
            }
            Event::OfferMade(e) => {
                let (_, since) = self.waiting.remove(&e.ride)?;
                Some(since.elapsed().as_secs_f64())
            }
            Event::RideCancelled(e) => self.drop_ride(e.ride),
            Event::RideUnfulfilled(e) => self.drop_ride(e.ride),
            _ => None,
        }
    }

    fn drop_ride(&self, ride: RideId) -> Option<f64> {
        self.waiting.remove(&ride);
        None
    }
}
