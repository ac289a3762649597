//! What a round likes to know of a driver besides where the car is: idle since when, how often an offer was turned down,
//! where the driver wants to go, whose rides it does not get.
//!
//! Hints only (PROTOCOL 5): they price a pair, or spare a claim that the driver's entity would refuse. They are not in the
//! log: after a restart idle time counts from then on and nobody has turned anything down; answers to offers are seen by
//! the node of the ride only. As many as there are known drivers.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use cabrank_engine::driver::{Driver, Presence};
use cabrank_events::event::DeclinedBecause;
use cabrank_events::{DriverId, Event, Place, RiderId, Time};
use cabrank_geo::DriverKey;
use dashmap::DashMap;

use crate::people::People;

/// An answer to an offer counts this part of a driver's history, so that the last twenty or so decide.
const ANSWER_WEIGHT: u32 = 8;

/// What is known of one driver.
#[derive(Clone, Debug, Default)]
pub(crate) struct Hint {
    /// Free without a break since then; `None`: not free, or not known.
    pub free_since: Option<Time>,
    /// Offers out of 1,000 that were turned down, the newest counting most.
    pub declines_per_mille: u32,
    /// Where the driver wants to go.
    pub heading: Option<Place>,
    /// Riders whose rides this driver does not get.
    pub blocked: Arc<BTreeSet<RiderId>>,
}

/// The hints of all known drivers.
#[derive(Default)]
pub(crate) struct Hints {
    by_key: DashMap<DriverKey, Hint>,
    /// How many drivers block anybody: mostly nobody does, and then nobody need look.
    blocking: AtomicUsize,
}

impl Hints {
    /// A committed driver state.
    pub fn committed(&self, key: DriverKey, driver: &Driver, now: Time) {
        let is_free = matches!(driver.presence, Presence::Online { .. }) && driver.held.is_none();
        let mut hint = self.by_key.entry(key).or_default();
        hint.free_since = is_free.then(|| hint.free_since.unwrap_or(now));
        hint.heading = driver.heading;
        if *hint.blocked != driver.blocked {
            let (before, after) = (hint.blocked.is_empty(), driver.blocked.is_empty());
            hint.blocked = Arc::new(driver.blocked.clone());
            // Relaxed: a number that publishes nothing else; the map orders what it counts.
            match (before, after) {
                (true, false) => _ = self.blocking.fetch_add(1, Ordering::Relaxed),
                (false, true) => _ = self.blocking.fetch_sub(1, Ordering::Relaxed),
                (true, true) | (false, false) => {}
            }
        }
    }

    /// The driver's state is gone.
    pub fn forget(&self, key: DriverKey) {
        if let Some((_, hint)) = self.by_key.remove(&key)
            && !hint.blocked.is_empty()
        {
            self.blocking.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Does any driver block anybody?
    pub fn anybody_blocks(&self) -> bool {
        self.blocking.load(Ordering::Relaxed) > 0
    }

    /// What is known of this driver.
    pub fn of(&self, key: DriverKey) -> Hint {
        let known = self.by_key.get(&key);
        known.map(|hint| hint.clone()).unwrap_or_default()
    }

    fn answered(&self, key: DriverKey, is_declined: bool) {
        if let Some(mut hint) = self.by_key.get_mut(&key) {
            let before = hint.declines_per_mille;
            hint.declines_per_mille = match is_declined {
                true => before + (1_000 - before) / ANSWER_WEIGHT,
                false => before - before / ANSWER_WEIGHT,
            };
        }
    }
}

impl People {
    /// Takes note of how a driver answers an offer. Who goes home has not turned it down.
    pub fn hear(&self, event: &Event) {
        let answered = |driver: &DriverId, is_declined| {
            if let Some(person) = self.person(driver) {
                self.hints.answered(person.key, is_declined);
            }
        };
        match event {
            Event::DriverAssigned(e) => answered(&e.driver, false),
            Event::OfferDeclined(e) if e.why == DeclinedBecause::Declined => {
                answered(&e.driver, true);
            }
            Event::OfferExpired(e) => answered(&e.driver, true),
            _ => {}
        }
    }
}
