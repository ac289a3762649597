//! Which driver has which slot of the live index, and who has given no sign of life.
//!
//! A driver is known here from `driver.online` until `driver.forgotten`; pings of others are refused. Bounded by the
//! index's own bound. Status comes from committed driver events only, ordered by the driver's event number.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use cabrank_engine::driver::{Driver, Presence};
use cabrank_engine::queues::Queues;
use cabrank_events::{DriverId, SessionId, Time};
use cabrank_geo::{DriverKey, IndexConfig, LiveIndex, Placed, Placement, Slot, Status};
use dashmap::DashMap;

use crate::api::Pinged;
use crate::hints::Hints;
use crate::views::wait;

/// One known driver.
#[derive(Debug)]
pub(crate) struct Person {
    pub key: DriverKey,
    slot: Slot,
    /// The newest sign of life, domain ms.
    seen_ms: AtomicI64,
    /// The open session; 0 when offline.
    session: AtomicU64,
    /// The session a silence was reported for, so that it is reported once.
    silence_reported: AtomicU64,
    /// When its ping last had waiting rides looked at, domain ms.
    woken_ms: AtomicI64,
}

/// The drivers this node knows.
pub(crate) struct People {
    index: LiveIndex,
    by_id: DashMap<DriverId, Arc<Person>>,
    pub hints: Hints,
    /// Who waits at airports.
    pub queues: RwLock<Queues>,
    /// By key: the index speaks in keys, the engine in ids.
    names: RwLock<Names>,
    /// Pings that came before the news that their driver is online, which travels another way.
    early: Mutex<HashMap<DriverId, Placement>>,
    /// Cars that a message asks for which is under way to another node.
    claimed: RwLock<HashMap<DriverKey, Claimed>>,
}

/// A car that was free when a ride here asked for it.
#[derive(Clone, Copy, Debug)]
struct Claimed {
    /// The newest event of the driver that was known then.
    n: u64,
    /// As good as free again from then on, domain ms.
    until: Time,
}

/// Cars that are asked for and not answered, at most; beyond it they are found by other rides, too, and refused to them.
const CLAIMED_MAX: usize = 10_000;

/// A free car's pings have waiting rides looked at this often at most, domain ms: in between it does not get far.
const WAKE_EVERY_MS: i64 = 200;

/// In place of the last time: a look is noted and not yet done.
const WAKE_NOTED: i64 = i64::MAX;

/// Early pings that are kept; when there are more, all are dropped, and the drivers' next pings do.
const EARLY_MAX: usize = 10_000;

#[derive(Default)]
struct Names {
    by_key: Vec<Option<DriverId>>,
    unused: Vec<usize>,
}

/// What a ping came to, and whether the car could now serve somebody it could not before.
pub(crate) struct Heard {
    pub pinged: Pinged,
    pub may_serve: bool,
}

impl People {
    pub fn new(drivers_max: u32) -> People {
        People {
            index: LiveIndex::new(IndexConfig::city(drivers_max)),
            by_id: DashMap::new(),
            hints: Hints::default(),
            queues: RwLock::default(),
            names: RwLock::default(),
            early: Mutex::default(),
            claimed: RwLock::default(),
        }
    }

    pub fn index(&self) -> &LiveIndex {
        &self.index
    }

    /// Forgets who is not alive.
    pub fn keep(&self, alive: impl Fn(&DriverId) -> bool) {
        let known: Vec<DriverId> = self.by_id.iter().map(|entry| entry.key().clone()).collect();
        known
            .iter()
            .filter(|id| !alive(id))
            .for_each(|id| self.forget(id));
    }

    pub fn person(&self, id: &DriverId) -> Option<Arc<Person>> {
        self.by_id.get(id).map(|entry| Arc::clone(&entry))
    }

    pub fn name(&self, key: DriverKey) -> Option<DriverId> {
        let names = self.names.read().unwrap_or_else(PoisonError::into_inner);
        names
            .by_key
            .get(usize::try_from(key.0).ok()?)
            .cloned()
            .flatten()
    }

    /// A committed driver state. `Err` when the index is full: the driver is then not found by rounds, and counted.
    pub fn committed(&self, driver: &Driver, now: Time) -> Result<(), cabrank_geo::IndexFull> {
        let person = match self.person(&driver.id) {
            Some(person) => person,
            // Suspensions and block lists are remembered for longer than anybody looks for the car.
            None if matches!(driver.presence, Presence::Offline { .. }) => return Ok(()),
            None => self.enter(&driver.id, now)?,
        };
        let is_old = |seen: cabrank_geo::Seen| seen.n > driver.seq;
        if self.index.get(person.slot).is_some_and(is_old) {
            // Of a shard that has given the driver to another one, and is heard later than that.
            return Ok(());
        }
        let (status, classes, session) = match (&driver.presence, driver.held) {
            (Presence::Online { classes }, None) => (Status::Free, classes.bits(), driver.session),
            (Presence::Online { classes }, Some(_)) => {
                (Status::Busy, classes.bits(), driver.session)
            }
            (Presence::Leaving { .. }, _) => (Status::Busy, 0, driver.session),
            (Presence::Offline { .. }, _) => (Status::Offline, 0, SessionId(0)),
        };
        // Relaxed throughout: single numbers that publish nothing else; the index orders its own.
        if person.session.swap(session.0, Ordering::Relaxed) != session.0 {
            person.seen_ms.fetch_max(now.0, Ordering::Relaxed);
        }
        self.hints.committed(person.key, driver, now);
        wait(&self.queues, &driver.id, Some(driver));
        self.index
            .set_status(person.slot, status, classes, driver.seq);
        if session.0 != 0 {
            self.place_early(&driver.id, now);
        }
        Ok(())
    }

    fn early(&self) -> MutexGuard<'_, HashMap<DriverId, Placement>> {
        self.early.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A ping that came by another way than the news of its driver: kept until they are here, if they are not yet.
    pub fn ping_from_afar(&self, id: &DriverId, placement: Placement, now: Time) -> Heard {
        let heard = self.ping(id, placement, now);
        if heard.pinged != Pinged::NotOnline {
            return heard;
        }
        let mut early = self.early();
        if early.len() >= EARLY_MAX {
            early.clear();
        }
        let kept = early.entry(id.clone()).or_insert(placement);
        if placement.is_newer_than(kept) {
            *kept = placement;
        }
        drop(early);
        // The news may have come in between.
        let is_online = self
            .person(id)
            .is_some_and(|person| person.session.load(Ordering::Relaxed) != 0);
        if is_online {
            self.place_early(id, now)
        } else {
            heard
        }
    }

    fn place_early(&self, id: &DriverId, now: Time) -> Heard {
        let kept = self.early().remove(id);
        kept.map_or(
            Heard {
                pinged: Pinged::NotOnline,
                may_serve: false,
            },
            |placement| self.ping(id, placement, now),
        )
    }

    fn enter(&self, id: &DriverId, now: Time) -> Result<Arc<Person>, cabrank_geo::IndexFull> {
        let mut names = self.names.write().unwrap_or_else(PoisonError::into_inner);
        let place = names.unused.pop().unwrap_or_else(|| {
            names.by_key.push(None);
            names.by_key.len() - 1
        });
        let key = DriverKey(place as u64);
        let slot = match self.index.enter(key) {
            Ok(slot) => slot,
            Err(full) => {
                names.unused.push(place);
                return Err(full);
            }
        };
        names.by_key[place] = Some(id.clone());
        let person = Arc::new(Person {
            key,
            slot,
            seen_ms: AtomicI64::new(now.0),
            session: AtomicU64::new(0),
            silence_reported: AtomicU64::new(0),
            woken_ms: AtomicI64::new(i64::MIN),
        });
        self.by_id.insert(id.clone(), Arc::clone(&person));
        Ok(person)
    }

    /// The driver's state is gone from the log.
    pub fn forget(&self, id: &DriverId) {
        wait(&self.queues, id, None);
        if let Some((_, person)) = self.by_id.remove(id) {
            self.index.leave(person.slot);
            self.hints.forget(person.key);
            let mut names = self.names.write().unwrap_or_else(PoisonError::into_inner);
            let place = person.key.0 as usize;
            names.by_key[place] = None;
            names.unused.push(place);
        }
    }

    pub fn ping(&self, id: &DriverId, placement: Placement, now: Time) -> Heard {
        let refused = |pinged| Heard {
            pinged,
            may_serve: false,
        };
        let Some(person) = self.by_id.get(id) else {
            return refused(Pinged::NotOnline);
        };
        if person.session.load(Ordering::Relaxed) == 0 {
            return refused(Pinged::NotOnline);
        }
        person.seen_ms.fetch_max(now.0, Ordering::Relaxed);
        match self.index.place(person.slot, placement) {
            Placed::First | Placed::Moved { .. } | Placed::HandedOver => Heard {
                pinged: Pinged::Accepted,
                may_serve: true,
            },
            Placed::Stale => refused(Pinged::OutOfOrder),
            Placed::Gone => refused(Pinged::NotOnline),
        }
    }

    pub fn sign_of_life(&self, id: &DriverId, now: Time) {
        if let Some(person) = self.by_id.get(id) {
            person.seen_ms.fetch_max(now.0, Ordering::Relaxed);
        }
    }

    /// The log has taken the news of this silence.
    pub fn silence_is_reported(&self, id: &DriverId, session: SessionId) {
        if let Some(person) = self.by_id.get(id) {
            person.silence_reported.store(session.0, Ordering::Relaxed);
        }
    }

    /// A ride here asks for this car, and the answer comes from another node. Until the car's next event is known here, no
    /// other ride of this node need ask for it: it would be refused two hops later. Only a hint (PROTOCOL 5): the claim
    /// decides.
    pub fn claim(&self, id: &DriverId, now: Time, until: Time) {
        let Some(seen) = self.seen(id) else { return };
        let mut claimed = self.claimed.write().unwrap_or_else(PoisonError::into_inner);
        if claimed.len() >= CLAIMED_MAX {
            claimed.retain(|_, claimed| claimed.until > now);
        }
        if claimed.len() < CLAIMED_MAX {
            claimed.insert(seen.key, Claimed { n: seen.n, until });
        }
    }

    /// Is this car, whose newest event here is `n`, asked for by a ride of this node?
    pub fn is_claimed(&self, key: DriverKey, n: u64, now: Time) -> bool {
        let claimed = self.claimed.read().unwrap_or_else(PoisonError::into_inner);
        claimed
            .get(&key)
            .is_some_and(|claimed| n <= claimed.n && now < claimed.until)
    }

    /// Drivers at work without a sign of life since `before`, unless it was reported for their session.
    pub fn newly_silent(&self, before: Time) -> Vec<(DriverId, SessionId)> {
        self.by_id
            .iter()
            .filter_map(|entry| {
                let session = entry.session.load(Ordering::Relaxed);
                let silent = session != 0 && entry.seen_ms.load(Ordering::Relaxed) < before.0;
                let fresh = silent && entry.silence_reported.load(Ordering::Relaxed) != session;
                fresh.then(|| (entry.key().clone(), SessionId(session)))
            })
            .collect()
    }

    pub fn seen(&self, id: &DriverId) -> Option<cabrank_geo::Seen> {
        let slot = self.by_id.get(id)?.slot;
        self.index.get(slot)
    }

    /// Is this a free car whose pings have not had waiting rides looked at for [`WAKE_EVERY_MS`]? It is noted, and until
    /// [`People::end_wake`] it is not asked for again: a node that falls behind has each car to look at once, however many pings came.
    pub fn begin_wake(&self, id: &DriverId, now: Time) -> bool {
        let Some(person) = self.by_id.get(id) else {
            return false;
        };
        // Relaxed: it only makes looks rarer; what they see is in the index.
        let last_ms = person.woken_ms.load(Ordering::Relaxed);
        last_ms != WAKE_NOTED
            && now.0 >= last_ms.saturating_add(WAKE_EVERY_MS)
            && self
                .index
                .get(person.slot)
                .is_some_and(|seen| seen.status == Status::Free)
            && person
                .woken_ms
                .compare_exchange(last_ms, WAKE_NOTED, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }

    /// The rides a noted car may serve are looked at now, or the note was lost.
    pub fn end_wake(&self, id: &DriverId, now: Time) {
        if let Some(person) = self.by_id.get(id) {
            // Relaxed: as in `begin_wake`.
            person.woken_ms.store(now.0, Ordering::Relaxed);
        }
    }

    /// How many wait at airports.
    pub fn queued(&self) -> usize {
        let queues = self.queues.read().unwrap_or_else(PoisonError::into_inner);
        queues.len()
    }

    pub fn len(&self) -> usize {
        self.by_id.len()
    }
}

#[cfg(test)]
mod tests {
    use cabrank_events::ClassSet;
    use cabrank_geo::Point;

    use super::*;

    #[test]
    fn a_car_that_is_asked_for_is_left_alone_until_its_next_event_or_the_end_of_the_claim() {
        let people = People::new(10);
        let mut driver = Driver::unseen(DriverId::new("d").expect("a good id"), 4);
        driver.session = SessionId(1);
        driver.presence = Presence::Online {
            classes: ClassSet::default(),
        };
        people.committed(&driver, Time(0)).expect("room for it");
        let placement = Placement {
            at: Point::new(37.77, -122.42).expect("on the map"),
            time_ms: 0,
            seq: 1,
        };
        people.ping(&driver.id, placement, Time(0));
        let seen = people.seen(&driver.id).expect("it is known");
        assert!(!people.is_claimed(seen.key, seen.n, Time(0)));

        people.claim(&driver.id, Time(10), Time(5_010));
        assert!(people.is_claimed(seen.key, seen.n, Time(5_000)));
        assert!(
            !people.is_claimed(seen.key, seen.n, Time(5_010)),
            "nobody answers any more"
        );
        // It was held and is free again: whoever asks for it now has a chance.
        driver.seq += 2;
        people.committed(&driver, Time(20)).expect("room for it");
        let seen = people.seen(&driver.id).expect("it is known");
        assert!(!people.is_claimed(seen.key, seen.n, Time(30)));
    }
}
