//! Drivers and riders: where they live, what they do, and what becomes of riders' wishes.

use std::collections::BTreeSet;

use cabrank_events::command::EntityId;
use cabrank_events::{
    ClassSet, DriverId, Event, HoldId, IdempotencyKey, RiderId, SessionId, ShardId,
};

use super::Model;

/// What the events say of a driver.
#[derive(Debug)]
pub struct DriverFacts {
    pub seq: u64,
    pub session: SessionId,
    /// At work with these classes.
    pub online: Option<ClassSet>,
    pub leaving: bool,
    pub held: Option<(HoldId, u64)>,
    /// Released to be held by this, and nothing else may happen between.
    pub moving: Option<HoldId>,
    pub suspended: bool,
    pub blocked: BTreeSet<RiderId>,
    pub shard: ShardId,
    /// On the way to that shard.
    pub away: bool,
}

impl DriverFacts {
    fn is_marked(&self) -> bool {
        self.suspended || !self.blocked.is_empty()
    }
}

/// What became of a wish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WishFacts {
    Pending,
    Open,
    Settled,
}

impl Model {
    /// What happens to a driver.
    pub(super) fn take_driver(&mut self, event: &Event) -> Result<(), String> {
        match event {
            Event::DriverOnline(e) => {
                let known = self.drivers.get(&e.driver);
                if let Some(known) = known {
                    let open = known.online.is_some() && !known.leaving;
                    let anew = e.session > known.session;
                    demand!(
                        anew || open && e.session == known.session,
                        "{} online in an old session",
                        e.driver
                    );
                }
                let driver = self.driver_step(&e.driver, e.driver_seq)?;
                demand!(!driver.suspended, "{} is online and suspended", e.driver);
                driver.session = e.session;
                (driver.online, driver.leaving) = (Some(e.classes), false);
            }
            Event::DriverHeld(e) => {
                let hold = HoldId {
                    ride: e.ride,
                    attempt: e.attempt,
                };
                let class = self.rides.get(&e.ride).map(|ride| ride.class);
                let rider = self.rides.get(&e.ride).map(|ride| ride.rider.clone());
                let moving = self
                    .drivers
                    .get_mut(&e.driver)
                    .and_then(|d| d.moving.take());
                demand!(
                    moving.is_none_or(|to| to == hold),
                    "{} goes to {hold} and not to {moving:?}",
                    e.driver
                );
                let driver = self.driver_step(&e.driver, e.driver_seq)?;
                let apart = rider.is_some_and(|rider| driver.blocked.contains(&rider));
                demand!(!apart, "{} is held by {hold} of a blocked rider", e.driver);
                demand!(
                    !driver.suspended,
                    "{} is suspended and held by {hold}",
                    e.driver
                );
                demand!(
                    driver.held.is_none(),
                    "{} is held by {:?} and by {hold}",
                    e.driver,
                    driver.held
                );
                demand!(
                    !driver.leaving,
                    "{} is leaving and held by {hold}",
                    e.driver
                );
                let serves = driver
                    .online
                    .zip(class)
                    .is_some_and(|(all, one)| all.contains(one));
                demand!(serves, "{} does not serve the class of {hold}", e.driver);
                driver.held = Some((hold, e.hold_number));
                let number = (e.driver.clone(), e.hold_number);
                demand!(
                    self.holds.insert(number, hold).is_none(),
                    "a hold number is used twice"
                );
            }
            Event::DriverReleased(e) => {
                let hold = HoldId {
                    ride: e.ride,
                    attempt: e.attempt,
                };
                let driver = self.driver_step(&e.driver, e.driver_seq)?;
                demand!(
                    driver.held == Some((hold, e.hold_number)),
                    "{} released from {hold}",
                    e.driver
                );
                driver.held = None;
                let ride = self.rides.get(&e.ride);
                if let Some(ride) = ride.filter(|r| r.lives_by(hold, &e.driver)) {
                    demand!(
                        ride.out.is_some(),
                        "{} is released while {hold} stands",
                        e.driver
                    );
                    let to = ride.out;
                    self.driver_known(&e.driver)?.moving = to;
                }
            }
            Event::DriverSuspended(e) => {
                let driver = self.driver_step(&e.driver, e.driver_seq)?;
                demand!(!driver.suspended, "{} is suspended twice", e.driver);
                driver.suspended = true;
                self.marks_fit(&e.driver)?;
            }
            Event::DriverReinstated(e) => {
                let driver = self.driver_step(&e.driver, e.driver_seq)?;
                demand!(driver.suspended, "{} was not suspended", e.driver);
                driver.suspended = false;
            }
            Event::RiderBlocked(e) => {
                let most = self.config.blocks_max;
                let driver = self.driver_step(&e.driver, e.driver_seq)?;
                let new = driver.blocked.insert(e.rider.clone());
                demand!(new, "{} is blocked twice", e.rider);
                demand!(driver.blocked.len() <= most, "{} blocks too many", e.driver);
                self.marks_fit(&e.driver)?;
            }
            Event::RiderUnblocked(e) => {
                let driver = self.driver_step(&e.driver, e.driver_seq)?;
                let known = driver.blocked.remove(&e.rider);
                demand!(known, "{} was not blocked", e.rider);
            }
            Event::HeadingSet(e) => {
                let driver = self.driver_step(&e.driver, e.driver_seq)?;
                demand!(driver.online.is_some(), "{} heads away", e.driver);
            }
            // What they say of places is looked at in `queues`.
            Event::DriverQueued(e) => {
                let driver = self.driver_step(&e.driver, e.driver_seq)?;
                demand!(driver.online.is_some(), "{} waits offline", e.driver);
            }
            Event::DriverUnqueued(e) => {
                self.driver_step(&e.driver, e.driver_seq)?;
            }
            Event::DriverLeaving(e) => {
                let driver = self.driver_step(&e.driver, e.driver_seq)?;
                demand!(
                    driver.session == e.session,
                    "{} leaves another session",
                    e.driver
                );
                demand!(
                    driver.held.is_some(),
                    "{} is leaving but not held",
                    e.driver
                );
                driver.leaving = true;
            }
            Event::DriverOffline(e) => {
                let driver = self.driver_step(&e.driver, e.driver_seq)?;
                demand!(driver.held.is_none(), "{} is offline and held", e.driver);
                demand!(driver.online.is_some(), "{} is offline twice", e.driver);
                demand!(
                    driver.session == e.session,
                    "{} ends another session",
                    e.driver
                );
                (driver.online, driver.leaving) = (None, false);
            }
            Event::DriverForgotten(e) => {
                let driver = self.driver_step(&e.driver, e.driver_seq)?;
                demand!(driver.online.is_none(), "{} is forgotten at work", e.driver);
                demand!(
                    !driver.is_marked(),
                    "{} is forgotten although marked",
                    e.driver
                );
                self.drivers.remove(&e.driver);
            }
            Event::DriverHandedOver(e) => {
                let driver = self.driver_step(&e.driver, e.driver_seq)?;
                (driver.shard, driver.away) = (e.to, true);
            }
            Event::DriverTakenOver(e) => {
                let taking = self.taking;
                let driver = self.driver_known(&e.driver)?;
                let comes = driver.away && driver.shard == taking;
                demand!(comes, "{} is taken and was not given", e.driver);
                driver.away = false;
                if driver.is_marked() {
                    self.marks_came_to.insert(taking);
                }
                self.driver_step(&e.driver, e.driver_seq)?;
            }
            other => return Err(format!("{} is no event of a driver", other.name())),
        }
        Ok(())
    }

    /// What happens to a rider.
    pub(super) fn take_rider(&mut self, event: &Event) -> Result<(), String> {
        self.rider_step(event)?;
        match event {
            Event::RiderBusy(e) => {
                let wish = (e.rider.clone(), e.key.clone());
                demand!(
                    self.taken_up.insert(wish.clone()),
                    "key {} was taken up twice",
                    e.key
                );
                let before = self.active.insert(e.rider.clone(), e.ride);
                demand!(
                    before.is_none(),
                    "{} is in {before:?} and in {}",
                    e.rider,
                    e.ride
                );
                self.wishes.insert(wish, WishFacts::Pending);
            }
            Event::RideConfirmed(e) => {
                demand!(
                    self.rides.contains_key(&e.ride),
                    "{} confirmed, never opened",
                    e.ride
                );
                demand!(
                    self.active.get(&e.rider) == Some(&e.ride),
                    "{} is in another ride",
                    e.rider
                );
                self.wishes
                    .insert((e.rider.clone(), e.key.clone()), WishFacts::Open);
            }
            Event::RideNotOpened(e) => {
                demand!(
                    !self.rides.contains_key(&e.ride),
                    "{} refused, but open",
                    e.ride
                );
                demand!(
                    self.active.remove(&e.rider) == Some(e.ride),
                    "{} is in another ride",
                    e.rider
                );
                self.wishes
                    .insert((e.rider.clone(), e.key.clone()), WishFacts::Settled);
            }
            Event::RequestRefused(e) => self.settle(&e.rider, &e.key)?,
            Event::KeyCancelled(e) => {
                // Also a key that was forgotten since: a late copy of its request is too old by then.
                self.wishes
                    .insert((e.rider.clone(), e.key.clone()), WishFacts::Settled);
            }
            Event::RiderFree(e) => {
                let end = self.rides.get(&e.ride).and_then(|ride| ride.end);
                demand!(
                    end == Some(e.end),
                    "{} is free of {} which ended {end:?}",
                    e.rider,
                    e.ride
                );
                demand!(
                    self.active.remove(&e.rider) == Some(e.ride),
                    "{} is in another ride",
                    e.rider
                );
                self.wishes
                    .insert((e.rider.clone(), e.key.clone()), WishFacts::Settled);
            }
            Event::RiderHandedOver(_) | Event::RiderTakenOver(_) => {}
            Event::RiderForgotten(e) => {
                demand!(
                    !self.active.contains_key(&e.rider),
                    "{} is forgotten in a ride",
                    e.rider
                );
                self.wishes.retain(|(rider, _), _| *rider != e.rider);
            }
            other => return Err(format!("{} is no event of a rider", other.name())),
        }
        Ok(())
    }

    /// A rider lives in one shard.
    fn rider_step(&mut self, event: &Event) -> Result<(), String> {
        let EntityId::Rider(rider) = event.entity() else {
            return Ok(());
        };
        if matches!(event, Event::CommandOutcome(_)) {
            return Ok(());
        }
        let taking = self.taking;
        let (home, away) = self.riders.entry(rider.clone()).or_insert((taking, false));
        demand!(*home == taking, "{rider} lives in {home} and in {taking}");
        let comes = matches!(event, Event::RiderTakenOver(_));
        demand!(*away == comes, "{rider} is on the way to {home}");
        *away = false;
        match event {
            Event::RiderHandedOver(e) => (*home, *away) = (e.to, true),
            Event::RiderForgotten(_) => drop(self.riders.remove(&rider)),
            _ => {}
        }
        Ok(())
    }

    /// No shard keeps the marks of more drivers than allowed, unless a growth has brought them there.
    fn marks_fit(&self, last: &DriverId) -> Result<(), String> {
        let Some(shard) = self.drivers.get(last).map(|d| d.shard) else {
            return Ok(());
        };
        if self.marks_came_to.contains(&shard) {
            return Ok(());
        }
        let marked = |d: &&DriverFacts| d.shard == shard && !d.away && d.is_marked();
        let count = self.drivers.values().filter(marked).count();
        let most = self.config.marked_drivers_max;
        demand!(count <= most, "{count} drivers of a shard are marked");
        Ok(())
    }

    fn settle(&mut self, rider: &RiderId, key: &IdempotencyKey) -> Result<(), String> {
        let wish = (rider.clone(), key.clone());
        demand!(
            !self.taken_up.contains(&wish),
            "key {key} was taken up before"
        );
        self.wishes.insert(wish, WishFacts::Settled);
        Ok(())
    }

    fn driver_step(&mut self, id: &DriverId, seq: u64) -> Result<&mut DriverFacts, String> {
        let shard = self.taking;
        let last = self.last_seq.insert(id.clone(), seq).unwrap_or(0);
        demand!(seq > last, "event {seq} of {id} after {last}");
        let driver = self.drivers.entry(id.clone()).or_insert(DriverFacts {
            seq: seq - 1,
            session: SessionId(0),
            online: None,
            leaving: false,
            held: None,
            moving: None,
            suspended: false,
            blocked: BTreeSet::new(),
            shard,
            away: false,
        });
        let home = driver.shard;
        demand!(home == shard, "{id} lives in {home} and in {shard}");
        demand!(!driver.away, "{id} is on the way to {home}");
        demand!(
            driver.moving.is_none(),
            "{id} is on the way to {:?}",
            driver.moving
        );
        demand!(
            seq == driver.seq + 1,
            "event {seq} of {id} after {}",
            driver.seq
        );
        driver.seq = seq;
        Ok(driver)
    }

    fn driver_known(&mut self, id: &DriverId) -> Result<&mut DriverFacts, String> {
        let known = self.drivers.get_mut(id);
        known.ok_or_else(|| format!("nobody knows {id}"))
    }

    /// Is a request of this wish waiting for its place shard?
    pub fn wish(&self, rider: &RiderId, key: &IdempotencyKey) -> Option<WishFacts> {
        self.wishes.get(&(rider.clone(), key.clone())).copied()
    }
}
