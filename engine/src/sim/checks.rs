//! What holds after every step, and what holds when everything has come to rest.

use std::collections::BTreeSet;

use cabrank_events::command::EntityId;
use cabrank_events::{Command, DriverId, Event, EventRecord, HoldId, RideId, ShardId, Time};

use super::model::WishFacts;
use super::world::{Input, States, World};
use crate::driver::Driver;
use crate::host::Host;
use crate::market::Market;
use crate::ride::{Bounds, Ride, Stage};
use crate::rider::Rider;
use crate::shard::EntityState;

impl World {
    pub(super) fn check(&mut self, host: usize, clock: bool) -> Result<(), String> {
        for at in self.shards_of(host) {
            let id = ShardId(at as u16);
            let Some(owner) = self.hosts[host].shard(id) else {
                continue;
            };
            let now = owner.time();
            self.times[at] = now;
            if let Some((appended_at, next)) = self.log[at].records.get(self.log[at].read)
                && now > *appended_at
            {
                return Err(format!("shard {at} is past the unread {:?}", next.command));
            }
            // No event tells that an ended ride is forgotten: only its time does.
            self.fold[at].retain(|_, state| match state {
                EntityState::Ride(Ride {
                    stage: Stage::Ended { keep_until, .. },
                    ..
                }) => *keep_until > now,
                _ => true,
            });
            let rides = owner.rides().map(|r| EntityState::Ride(r.clone()));
            let drivers = owner.drivers().map(|d| EntityState::Driver(d.clone()));
            let riders = owner.riders().map(|r| EntityState::Rider(r.clone()));
            let market = owner.market().map(|m| EntityState::Market(m.clone()));
            let memory: States = rides
                .chain(drivers)
                .chain(riders)
                .chain(market)
                .map(|s| (id_of(&s), s))
                .collect();
            differ("memory", &memory, &self.fold[at])?;
            differ("shard-state", &self.saved[at].parsed, &self.fold[at])?;
            // A hop never moves time, so it may leave a timer that is due at once to the next look at the clock; but
            // what was due before this host's clock moved must have fired.
            let rides = self.model.rides.iter().filter(|(ride, _)| ride.place == id);
            let due = rides.filter_map(|(ride, r)| Some((*ride, r.due(self.config.radius_max_m)?)));
            let due: BTreeSet<(RideId, Time)> = due.filter(|(_, due)| *due <= now).collect();
            if clock && let Some((ride, _)) = due.intersection(&self.overdue[at]).next() {
                return Err(format!(
                    "{ride} waits beyond its time: {:?}",
                    self.model.rides[ride]
                ));
            }
            self.overdue[at] = due;
        }
        self.check_messages()
    }

    /// Invariant 4 and its like for riders: what is not settled has a message under way that will settle it.
    fn check_messages(&self) -> Result<(), String> {
        let mut freeing: BTreeSet<(&DriverId, HoldId)> = BTreeSet::new();
        let mut closing: BTreeSet<RideId> = BTreeSet::new();
        let mut opening: BTreeSet<RideId> = BTreeSet::new();
        let mut moving: BTreeSet<HoldId> = BTreeSet::new();
        for record in self.unread() {
            // Messages between two shards are never reordered (PROTOCOL 1): an opening nobody has read yet cannot be
            // old news.
            if let Command::RideOpened { rider, key, ride } = &record.command
                && self.clean
                && self.model.wish(rider, key) != Some(WishFacts::Pending)
            {
                return Err(format!("a message has overtaken the opening of {ride}"));
            }
            match &record.command {
                Command::ClaimGranted { hold, driver, .. }
                | Command::ReleaseDriver { hold, driver, .. } => {
                    freeing.insert((driver, *hold));
                }
                Command::TransferHold {
                    driver, from, hold, ..
                } => {
                    freeing.insert((driver, *from));
                    moving.insert(*hold);
                }
                Command::TransferAnswered {
                    driver, from, hold, ..
                } => {
                    freeing.insert((driver, *from));
                    freeing.insert((driver, *hold));
                    moving.insert(*hold);
                }
                Command::RideClosed { ride, .. } => {
                    closing.insert(*ride);
                }
                Command::OpenRefused { ride, .. } | Command::RideOpened { ride, .. } => {
                    opening.insert(*ride);
                }
                Command::OpenRide(open) => {
                    opening.insert(open.ride);
                }
                _ => {}
            }
        }
        for (driver, facts) in &self.model.drivers {
            let Some((hold, _)) = facts.held else {
                continue;
            };
            let stands = self
                .model
                .rides
                .get(&hold.ride)
                .is_some_and(|r| r.lives_by(hold, driver) || r.has_second(hold, driver));
            if !stands && !freeing.contains(&(driver, hold)) {
                return Err(format!("{driver} is held for ever by {hold}"));
            }
        }
        for (id, facts) in &self.model.rides {
            if facts.end.is_some() {
                continue;
            }
            if let Some(to) = facts.out
                && !moving.contains(&to)
            {
                return Err(format!("{id} waits for ever for the answer about {to}"));
            }
            let Some(driver) = facts.driver.as_ref().filter(|_| facts.out.is_none()) else {
                continue;
            };
            let hold = HoldId {
                ride: *id,
                attempt: facts.held_by,
            };
            let held = self.model.drivers.get(driver).and_then(|d| d.held);
            let has = held.is_some_and(|(of, _)| of == hold);
            if facts.lives_by(hold, driver) && !has {
                return Err(format!("{id} counts on {driver}, who is held by {held:?}"));
            }
        }
        for (rider, ride) in &self.model.active {
            let open = self.model.rides.get(ride).map(|facts| facts.end.is_none());
            let settles = match open {
                Some(true) => true,
                Some(false) => closing.contains(ride),
                None => opening.contains(ride),
            };
            if !settles {
                return Err(format!("{rider} waits for ever for {ride}"));
            }
        }
        Ok(())
    }

    // -- the end ---------------------------------------------------------------------------------------------------------

    /// Everybody falls silent, the log delivers what it has, all timers run out. Then nothing may be left open.
    pub fn quiesce(&mut self) -> Result<(), String> {
        self.agenda.clear();
        self.rounds.clear();
        for (_, to, record) in std::mem::take(&mut self.late) {
            self.append_to(to, record);
        }
        for _ in 0..1_000 {
            self.step += 1;
            for host in 0..self.hosts.len() {
                let mut inputs = Vec::new();
                for shard in self.shards_of(host) {
                    let partition = &self.log[shard];
                    for (offset, (time, record)) in
                        partition.records.iter().enumerate().skip(partition.read)
                    {
                        inputs.push(Input::Command(
                            ShardId(shard as u16),
                            offset as u64,
                            *time,
                            record.clone(),
                        ));
                    }
                }
                inputs.push(Input::Clock(Time(self.now.0 - 500)));
                self.transaction(host, &inputs)?;
            }
            self.agenda.clear();
            for (_, to, record) in std::mem::take(&mut self.late) {
                self.append_to(to, record);
            }
            if self.unread().next().is_some() {
                continue;
            }
            let Some(due) = self.hosts.iter().filter_map(Host::poll_deadline).min() else {
                return self.check_end();
            };
            self.now = self.now.max(due).plus_ms(1_000);
        }
        Err("it never comes to rest".to_string())
    }

    fn check_end(&self) -> Result<(), String> {
        if let Some((ride, facts)) = self
            .model
            .rides
            .iter()
            .find(|(_, facts)| facts.end.is_none())
        {
            return Err(format!("{ride} has no end: {facts:?}"));
        }
        if let Some((driver, _)) = self.model.drivers.iter().find(|(_, d)| d.held.is_some()) {
            return Err(format!("{driver} is held for ever"));
        }
        if let Some((rider, ride)) = self.model.active.first_key_value() {
            return Err(format!("{rider} is never free of {ride}"));
        }
        if let Some((id, owed)) = self.outcomes.owed.iter().find(|(_, owed)| **owed != 0) {
            return Err(format!("{id} lacks {owed} outcomes"));
        }
        for shard in self.hosts.iter().flat_map(Host::shards) {
            let idle = shard.rides().next().is_none()
                && shard.riders().next().is_none()
                && shard.open_rides() == 0
                && shard.waiting_count() == 0
                && shard
                    .drivers()
                    .all(|d| (d.open_session().is_some() || d.is_marked()) && d.held.is_none());
            if !idle {
                return Err(format!("shard {} still remembers somebody", shard.id()));
            }
            for other in self
                .hosts
                .iter()
                .flat_map(Host::shards)
                .filter(|_| self.clean)
            {
                let sent = shard.counters().sent.get(usize::from(other.id().0));
                let received = other.counters().received.get(usize::from(shard.id().0));
                // Of one another they may never have heard.
                let (sent, received) = (sent.unwrap_or(&0), received.unwrap_or(&0));
                if sent != received {
                    return Err(format!(
                        "{sent} sent and {received} received from {} to {}",
                        shard.id(),
                        other.id()
                    ));
                }
            }
        }
        self.check_growth()
    }
}

/// Invariant 5: the fold of a shard's events, by the entities' own `apply`, into fresh maps.
pub(super) fn fold(states: &mut States, record: &EventRecord, bounds: &Bounds) {
    let entity = record.event.entity();
    match &record.event {
        Event::RideRequested(e) => {
            states.insert(entity, EntityState::Ride(Ride::opened(e)));
            return;
        }
        Event::DriverForgotten(_)
        | Event::RiderForgotten(_)
        | Event::DriverHandedOver(_)
        | Event::RiderHandedOver(_) => {
            states.remove(&entity);
            return;
        }
        Event::CommandOutcome(_) if !states.contains_key(&entity) && entity != EntityId::Market => {
            return;
        }
        _ => {}
    }
    let state = states
        .entry(entity.clone())
        .or_insert_with(|| match &entity {
            EntityId::Rider(id) => EntityState::Rider(Rider::unseen(id.clone(), record.seq)),
            EntityId::Driver(id) => EntityState::Driver(Driver::unseen(id.clone(), record.seq)),
            EntityId::Market => EntityState::Market(Market::default()),
            EntityId::Ride(id) => unreachable!("{id} was never opened"),
        });
    match state {
        EntityState::Ride(ride) => ride.apply(&record.event, bounds),
        EntityState::Driver(driver) => driver.apply(&record.event, bounds),
        EntityState::Rider(rider) => rider.apply(&record.event, record.time),
        EntityState::Market(market) => market.apply(&record.event, record.time, bounds),
    }
}

fn id_of(state: &EntityState) -> EntityId {
    match state {
        EntityState::Ride(ride) => EntityId::Ride(ride.id),
        EntityState::Driver(driver) => EntityId::Driver(driver.id.clone()),
        EntityState::Rider(rider) => EntityId::Rider(rider.id.clone()),
        EntityState::Market(_) => EntityId::Market,
    }
}

fn differ(what: &str, states: &States, fold: &States) -> Result<(), String> {
    if states == fold {
        return Ok(());
    }
    let entities: BTreeSet<&EntityId> = states.keys().chain(fold.keys()).collect();
    let differing = entities
        .into_iter()
        .find(|entity| states.get(entity) != fold.get(entity));
    let Some(entity) = differing else {
        return Ok(());
    };
    Err(format!(
        "{what} has {:?} and the events give {:?}",
        states.get(entity),
        fold.get(entity)
    ))
}
