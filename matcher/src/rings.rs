//! Where things live, while the ring may grow (PROTOCOL 30): the newest ring that the market's events name.
//!
//! A hint, like everything outside of the engine: who goes by an old ring asks a shard that sends it on.

use std::sync::{Arc, PoisonError, RwLock};

use cabrank_engine::{Counters, EntityState, Market};
use cabrank_eventlog::{EventLog, Recovered};
use cabrank_events::command::{EntityId, Growth, GrowthStep};
use cabrank_ring::Ring;
use tracing::{error, info};

use crate::route;

/// What the desk has set, and how far the ring has grown, as stored in the market's shard.
pub fn market_in(stored: &Recovered) -> Option<Market> {
    let key = EntityId::Market.to_string();
    let (_, value) = stored.states.iter().find(|(of, _)| *of == key.as_bytes())?;
    match serde_json::from_slice(value) {
        Ok(EntityState::Market(market)) => Some(market),
        _ => None,
    }
}

/// The rings of one process.
pub(crate) struct Rings(RwLock<Known>);

struct Known {
    now: Arc<Ring>,
    /// Of before the newest growth.
    before: Arc<Ring>,
    growth: Option<(Growth, GrowthStep)>,
}

impl Rings {
    /// `made`: the one the city was made with, or that of now; the market says which.
    pub fn new(made: Arc<Ring>) -> Rings {
        Rings(RwLock::new(Known {
            before: Arc::clone(&made),
            now: made,
            growth: None,
        }))
    }

    fn known(&self) -> std::sync::RwLockReadGuard<'_, Known> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The newest ring.
    pub fn now(&self) -> Arc<Ring> {
        Arc::clone(&self.known().now)
    }

    /// How many shards there are, or are to be.
    pub fn shards(&self) -> u16 {
        let known = self.known();
        let to = known.growth.map_or(0, |(growth, _)| growth.to);
        to.max(known.now.shards())
    }

    /// The ring to make or restore a shard with: the one its header names, or that of before, until it hears of the newest.
    pub fn of(&self, counters: Option<&Counters>) -> Arc<Ring> {
        let known = self.known();
        let named = counters.and_then(|counters| counters.ring);
        if named == Some(known.now.shards()) {
            Arc::clone(&known.now)
        } else {
            Arc::clone(&known.before)
        }
    }

    /// What the market says. It may come late and twice: the newest counts. True when there is another ring than before.
    pub fn heed(&self, market: &Market) -> bool {
        let Some((growth, step)) = market.ring else {
            return false;
        };
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let is_news = known
            .growth
            .is_none_or(|(before, reached)| (growth.to, step) > (before.to, reached));
        if !is_news {
            return false;
        }
        let made = |shards: u16| Ring::new(shards).map(Arc::new);
        let (Ok(from), Ok(to)) = (made(growth.from), made(growth.to)) else {
            error!(?growth, "these rings are not possible");
            return false;
        };
        let now = if step == GrowthStep::Announced {
            Arc::clone(&from)
        } else {
            to
        };
        let is_other = now.shards() != known.now.shards();
        *known = Known {
            before: from,
            now,
            growth: Some((growth, step)),
        };
        info!(?growth, ?step, "the ring grows");
        is_other
    }

    /// The entity's home by the newest ring.
    pub fn home(&self, entity: &EntityId) -> u16 {
        route::shard_of(&self.known().now, entity)
    }

    /// Where the entity lives, and where it lived before the newest growth, of the shards that there are: a ride id from outside may
    /// name one that never was.
    pub fn homes(&self, log: &dyn EventLog, entity: &EntityId) -> Vec<u16> {
        let known = self.known();
        let rings = [&known.before, &known.now];
        let mut homes = rings
            .map(|ring| route::shard_in(log, ring, entity))
            .to_vec();
        homes.dedup();
        homes
    }

    /// Whatever ring one goes by: is this shard the entity's only home?
    pub fn is_only_home(&self, entity: &EntityId, shard: u16) -> bool {
        let known = self.known();
        let is_home = |ring: &Ring| route::shard_of(ring, entity) == shard;
        let moves = matches!(known.growth, Some((_, GrowthStep::Begun)));
        is_home(&known.now) && (!moves || is_home(&known.before))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(from: u16, to: u16, step: GrowthStep) -> Market {
        Market {
            ring: Some((Growth { from, to }, step)),
            ..Market::default()
        }
    }

    #[test]
    fn the_newest_word_counts_and_an_announcement_moves_nobody() {
        let rings = Rings::new(Arc::new(Ring::new(4).unwrap()));
        assert!(!rings.heed(&Market::default()));
        assert!(!rings.heed(&told(4, 8, GrowthStep::Announced)));
        assert_eq!((rings.now().shards(), rings.shards()), (4, 8));
        assert!(rings.heed(&told(4, 8, GrowthStep::Begun)));
        assert!(!rings.heed(&told(4, 8, GrowthStep::Announced)), "late");
        assert_eq!(rings.now().shards(), 8);
        assert_eq!(
            rings.of(None).shards(),
            4,
            "a shard that has not heard of it"
        );
        assert!(!rings.heed(&told(4, 8, GrowthStep::Settled)));
        assert!(!rings.heed(&told(8, 9, GrowthStep::Announced)));
        assert_eq!((rings.now().shards(), rings.of(None).shards()), (8, 8));
    }

    #[test]
    fn a_program_that_was_told_the_new_number_too_early_goes_by_the_log() {
        let rings = Rings::new(Arc::new(Ring::new(8).unwrap()));
        assert!(rings.heed(&told(4, 8, GrowthStep::Announced)));
        assert_eq!(rings.now().shards(), 4);
    }
}
