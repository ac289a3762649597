//! Shards come and go: reading back, showing, dropping, refusing.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use cabrank_engine::{EntityState, Shard};
use cabrank_eventlog::{RecoverError, Recovered};
use cabrank_events::command::{EntityId, MARKET_SHARD};
use cabrank_events::{ShardId, Time};
use tracing::{error, info, warn};

use super::{Loop, Pending, RETRY, show_driver};
use crate::heart::Heart;
use crate::node::{Failure, Holding, warm};
use crate::rings::market_in;
use crate::versions;

/// The log says what a new shard is for before there is one, but it may be read late.
const UNNAMED: Duration = Duration::from_secs(10);

impl Loop {
    /// Memory may be ahead of the log: every shard is to be read back.
    pub(super) fn throw_away(&mut self) {
        self.steps.forget();
        let ours = self.owner.shards();
        let here: Vec<u16> = self.host.shards().map(|shard| shard.id().0).collect();
        for shard in here {
            self.drop_memory(shard);
        }
        self.pending.clear();
        self.refused.retain(|shard, _| ours.contains(shard));
        for shard in ours {
            if !self.refused.contains_key(&shard) {
                self.gain(shard);
            }
        }
        self.settle_shards();
    }

    pub(super) fn gain(&mut self, shard: u16) {
        let now = Instant::now();
        self.refused.remove(&shard);
        self.drop_memory(shard);
        self.pending.insert(
            shard,
            Pending {
                since: now,
                next_try: now,
                is_told: false,
            },
        );
    }

    pub(super) fn lose(&mut self, shard: u16) {
        info!(shard, "a shard has left");
        self.pending.remove(&shard);
        self.refused.remove(&shard);
        self.drop_memory(shard);
        self.shared
            .views
            .keep(|entity| !self.shared.rings.is_only_home(entity, shard));
    }

    /// What the market's shard says of the ring, before any shard is made that goes by it. False: it is to stop.
    pub(super) fn read_market(&self, heart: &Heart) -> bool {
        while !self.is_stopping() {
            heart.beat();
            match self.shared.log.snapshot(MARKET_SHARD.0) {
                Ok(stored) => {
                    if let Some(market) = market_in(&stored) {
                        self.shared.heed(&market);
                    }
                    return true;
                }
                Err(why) => warn!(%why, "the market cannot be read yet"),
            }
            self.shared.bell.wait(RETRY);
        }
        false
    }

    /// When the ring grows there are to be more shards than the log knows of yet. Looking asks the brokers, so it is done beside
    /// the loop.
    pub(super) fn look_for_shards(&mut self) {
        let shards = self.shared.log.shards();
        if self.shards != shards {
            self.shards = shards;
            self.settle_shards();
        }
        // SeqCst: a flag that is set now and then.
        if self.shared.rings.shards() <= shards
            || self.shared.is_growing.swap(true, Ordering::SeqCst)
        {
            return;
        }
        let shared = Arc::clone(&self.shared);
        let looking = std::thread::Builder::new()
            .name("cabrank-grow".into())
            .spawn(move || {
                shared.log.look_for_shards();
                shared.is_growing.store(false, Ordering::SeqCst);
            });
        if let Err(why) = looking {
            warn!(%why, "nobody looks for new shards");
            self.shared.is_growing.store(false, Ordering::SeqCst);
        }
    }

    /// After shards came or went: whose drivers are to be followed, and is this node whole?
    pub(super) fn settle_shards(&self) {
        if self.waits_in_poll {
            let is_ours = |shard: &u16| {
                self.host.shard(ShardId(*shard)).is_some()
                    || self.pending.contains_key(shard)
                    || self.refused.contains_key(shard)
            };
            // Drivers of shards elsewhere may be near rides of ours.
            let others = (0..self.shared.log.shards()).filter(|shard| !is_ours(shard));
            let others: BTreeSet<u16> = others.collect();
            self.shared.foreign.set(others.clone());
            self.shared.elsewhere.keep(&others);
        }
        self.set_ready();
    }

    /// What is shown of the shard stays visible until it is replaced: nobody who asks meanwhile is told that a ride
    /// does not exist.
    fn drop_memory(&mut self, shard: u16) {
        let id = ShardId(shard);
        self.shared.table().remove(&shard);
        self.next_input.remove(&id);
        self.dirty.retain(|ride| ride.place != id);
        if let Some(gone) = self.host.remove(id) {
            gone.rides().for_each(|ride| self.reach.remove(ride.id));
        }
    }

    pub(super) fn set_ready(&self) {
        let is_ready = !self.is_new_home() && self.pending.is_empty() && self.refused.is_empty();
        self.shared.ready.store(is_ready, Ordering::SeqCst);
        metrics::gauge!("cabrank_shards_refused").set(self.refused.len() as f64);
    }

    /// In a home where shards come by themselves, nothing is known before the first poll.
    fn is_new_home(&self) -> bool {
        self.waits_in_poll && self.is_new
    }

    /// Tries to read back what is pending. One shard that cannot be read does not keep the others from working.
    pub(super) fn recover_pending(&mut self) -> Result<(), Failure> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let now = Instant::now();
        let ours = self.owner.shards();
        // One that was given and taken again before it was read back.
        self.pending.retain(|shard, _| ours.contains(shard));
        let due = self.pending.iter().filter(|(_, p)| p.next_try <= now);
        let due: Vec<(u16, Instant)> = due.map(|(shard, p)| (*shard, p.since)).collect();
        if due.is_empty() {
            return Ok(());
        }
        let had = self.host.shards().count();
        for (number, since) in due {
            if number >= self.shared.rings.shards() {
                // It was added, and the news of what for has not come yet.
                self.put_off(number);
                if since.elapsed() > UNNAMED {
                    self.tell_unnamed(number);
                }
                continue;
            }
            match self.owner.recover(number) {
                Ok(recovered) => {
                    self.pending.remove(&number);
                    match self.restore(number, recovered) {
                        Ok(shard) => self.show_shard(shard, since),
                        Err(why) if self.waits_in_poll => self.refuse(number, &why),
                        Err(why) => return Err(why),
                    }
                }
                Err(RecoverError::Fenced { by }) if !self.waits_in_poll => {
                    return Err(Failure::Fenced { by });
                }
                Err(
                    why @ (RecoverError::DiskFull
                    | RecoverError::Unavailable(_)
                    | RecoverError::Fenced { .. }),
                ) => {
                    warn!(shard = number, %why, "a shard cannot be read back yet");
                    self.put_off(number);
                }
                Err(why) => {
                    self.pending.remove(&number);
                    self.refuse(number, &why);
                }
            }
        }
        self.settle_shards();
        if self.waits_in_poll && self.host.shards().count() > had {
            warm::begin(&self.shared);
        }
        Ok(())
    }

    fn put_off(&mut self, shard: u16) {
        if let Some(pending) = self.pending.get_mut(&shard) {
            pending.next_try = Instant::now() + RETRY;
        }
    }

    fn tell_unnamed(&mut self, shard: u16) {
        if let Some(pending) = self.pending.get_mut(&shard)
            && !std::mem::replace(&mut pending.is_told, true)
        {
            error!(
                shard,
                "somebody added partitions of which the city knows nothing: finish that by `cabrank reshard --to N`, N being how many there are"
            );
        }
    }

    /// PROTOCOL 9: a shard that makes no sense stops, loudly; taking the node down with it would carry the fault to the
    /// next node, and to the next.
    pub(super) fn refuse(&mut self, shard: u16, why: &dyn std::fmt::Display) {
        error!(shard, %why, "a shard is refused: an operator must look");
        self.refused.insert(shard, why.to_string());
    }

    fn restore(&mut self, number: u16, recovered: Recovered) -> Result<Shard, Failure> {
        let id = ShardId(number);
        let engine = Arc::clone(&self.shared.engine);
        let header = recovered.header.unwrap_or_default();
        self.next_input.insert(id, header.next_input);
        if header.engine.is_empty() {
            return Ok(Shard::new(id, engine, self.shared.rings.of(None)));
        }
        let broken = |what: &str, why: serde_json::Error| {
            Failure::Broken(format!("{what} of shard {number} does not parse: {why}"))
        };
        let counters = versions::read_header(&header.engine)
            .map_err(|why| Failure::Broken(format!("the header of shard {number}: {why}")))?;
        let states = recovered
            .states
            .iter()
            .map(|(key, value)| parse_state(key, value))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|why| broken("a state", why))?;
        let ring = self.shared.rings.of(Some(&counters));
        let time = Time(header.time_ms);
        self.shared.clock.raise_to(time);
        Ok(Shard::restore(id, engine, ring, time, counters, states))
    }

    /// Brings index and views to what was just read back, and takes the shard in.
    fn show_shard(&mut self, shard: Shard, since: Instant) {
        let now = self.shared.clock.now();
        let number = shard.id().0;
        let mut alive: BTreeSet<EntityId> = BTreeSet::new();
        let rides = shard.rides().map(|ride| EntityId::Ride(ride.id));
        let riders = shard
            .riders()
            .map(|rider| EntityId::Rider(rider.id.clone()));
        let drivers = shard
            .drivers()
            .map(|driver| EntityId::Driver(driver.id.clone()));
        for entity in rides.chain(riders).chain(drivers) {
            self.shared
                .views
                .committed(&entity, shard.state_of(&entity).as_ref());
            alive.insert(entity);
        }
        shard
            .market()
            .into_iter()
            .for_each(|set| self.shared.heed(set));
        for driver in shard.drivers() {
            show_driver(&self.shared.people, driver, now);
            // Signs of life went to the owner before: silence is counted from here.
            self.shared.people.sign_of_life(&driver.id, now);
        }
        let elsewhere = |entity: &EntityId| !self.shared.rings.is_only_home(entity, number);
        self.shared
            .views
            .keep(|entity| elsewhere(entity) || alive.contains(entity));
        self.shared.people.keep(|driver| {
            let entity = EntityId::Driver(driver.clone());
            elsewhere(&entity) || alive.contains(&entity)
        });
        self.dirty.extend(shard.waiting().map(|ride| ride.id));
        let took_ms = since.elapsed().as_millis() as u64;
        info!(
            shard = number,
            open_rides = shard.open_rides(),
            drivers = shard.drivers().count(),
            took_ms,
            "recovered"
        );
        metrics::histogram!("cabrank_takeover_seconds").record(since.elapsed().as_secs_f64());
        let holding = Holding {
            epoch: self.owner.epoch_of(number),
            next_input: self.next_input.get(&shard.id()).copied().unwrap_or(0),
            open_rides: shard.open_rides(),
            waiting_rides: shard.waiting_count(),
            taken_at: now,
            takeover_ms: took_ms,
        };
        self.host.add(shard);
        self.shared.table().insert(number, holding);
    }
}

/// The state under this key. The key says of what kind it is, which is then read at once: as one of all kinds, told apart
/// by the tag inside, it takes twice as long, and a shard waits for it that has just moved here.
fn parse_state(key: &[u8], json: &[u8]) -> serde_json::Result<EntityState> {
    match key.split(|byte| *byte == b'/').next() {
        Some(b"ride") => serde_json::from_slice(json).map(EntityState::Ride),
        Some(b"driver") => serde_json::from_slice(json).map(EntityState::Driver),
        Some(b"rider") => serde_json::from_slice(json).map(EntityState::Rider),
        _ => serde_json::from_slice(json),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_the_same_whether_its_key_or_its_tag_says_what_it_is() {
        let ride = r#"{"entity":"ride","id":"0-0-298","seq":8,"rider":"rider-1","key":"k","pickup":{"lat":37.7,
            "lon":-122.4},"dropoff":{"lat":37.75,"lon":-122.45},"class":"economy","issued_at":1,"deadline":300001,
            "radius_m":2000,"widen_at":5002,"looked":true,"attempt":1,"redispatches":0,"asked":[],"avoid":{},
            "stage":"ended","end":"completed","by":null,"driver":"driver-764","keep_until":240089,"recent":[]}"#;
        let rider = r#"{"entity":"rider","id":"rider-1","seq":599,"active":null,"keys":{"k":{"fingerprint":14,
            "expires_at":9,"wish":"ended","ride":"0-0-298","end":"completed"}}}"#;
        for (key, json) in [("ride/0-0-298", ride), ("rider/rider-1", rider)] {
            let by_key = parse_state(key.as_bytes(), json.as_bytes()).unwrap();
            let by_tag: EntityState = serde_json::from_str(json).unwrap();
            assert_eq!(by_key, by_tag);
        }
        assert!(
            parse_state(b"ride/0-0-298", rider.as_bytes()).is_err(),
            "another's"
        );
    }
}
