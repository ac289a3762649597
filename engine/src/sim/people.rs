//! What riders, drivers and their phones do: early, late, twice, never, and what nobody sane would.

use cabrank_events::command::CancelledBy;
use cabrank_events::{
    Attempt, ClassSet, Command, CommandId, CommandRecord, DriverId, Event, HoldId, IdempotencyKey,
    NodeName, PickupPoint, Reason, RideId, RiderId, SessionId, ShardId, Time, VehicleClass,
    ZoneFinding, ZoneName,
};
use rand::Rng;

use super::queues;
use super::world::World;

impl World {
    fn say_after(&mut self, most_ms: u64, issued_at: Time, command: Command) {
        self.number += 1;
        let id = CommandId::new(&format!("c{}", self.number)).expect("a good id");
        self.issued.insert(id.clone(), command.clone());
        let record = CommandRecord::external(id, issued_at, command);
        let copies = 1 + u32::from(self.chance(0.1));
        for _ in 0..copies {
            let after = self.rng.random_range(0..=most_ms);
            self.number += 1;
            self.agenda
                .insert((self.now.plus_ms(after), self.number), record.clone());
        }
    }

    fn say(&mut self, most_ms: u64, command: Command) {
        self.say_after(most_ms, self.now, command);
    }

    /// Somebody wants something by themselves.
    pub(super) fn wish(&mut self) {
        let mut rider = self.riders[self.rng.random_range(0..self.riders.len())].clone();
        let mut driver = self.drivers[self.rng.random_range(0..self.drivers.len())].clone();
        let what = self.rng.random_range(0..22);
        if self.busy && self.chance(0.7) {
            let idle = |r: &&RiderId| !self.model.active.contains_key(r);
            let away = |d: &&DriverId| self.model.drivers.get(d).is_none_or(|d| d.online.is_none());
            match what {
                0..6 => rider = self.riders.iter().find(idle).cloned().unwrap_or(rider),
                11..17 => driver = self.drivers.iter().find(away).cloned().unwrap_or(driver),
                // Who goes home does it in the middle of something.
                17 => return,
                18 => {
                    let held =
                        |d: &&DriverId| self.model.drivers.get(d).is_some_and(|d| d.held.is_some());
                    driver = self.drivers.iter().find(held).cloned().unwrap_or(driver);
                }
                _ => {}
            }
        }
        match what {
            0..6 => {
                let key = IdempotencyKey::new(&format!("k{}", self.number)).expect("a good key");
                let age = if self.chance(0.15) {
                    self.rng.random_range(0..40_000)
                } else {
                    0
                };
                let command = Command::RequestRide {
                    rider: rider.clone(),
                    key: key.clone(),
                    pickup: self.places[self.rng.random_range(0..self.places.len())],
                    dropoff: None,
                    class: self.class(),
                    zone: self.zone(),
                    airport: self.airport(),
                };
                let issued_at = Time(self.now.0 - age);
                if self.chance(0.1) {
                    self.say(3_000, Command::CancelByKey { rider, key });
                }
                self.say_after(500, issued_at, command);
                let id = CommandId::new(&format!("c{}", self.number)).ok();
                let request = self.agenda.values().next_back().cloned();
                if let Some(request) = request
                    .filter(|r| id.is_some() && matches!(r.command, Command::RequestRide { .. }))
                {
                    self.wishes.push(request);
                }
            }
            6..9 if !self.wishes.is_empty() => {
                // A retry, sometimes with another body, sometimes from long ago.
                let newest = self.wishes.len().saturating_sub(4);
                let request = self.wishes[self.rng.random_range(newest..self.wishes.len())].clone();
                let mut command = request.command;
                if self.chance(0.2)
                    && let Command::RequestRide { pickup, .. } = &mut command
                {
                    *pickup = self.places[self.rng.random_range(0..self.places.len())];
                }
                let found = self.zone();
                if let Command::RequestRide { zone, .. } = &mut command {
                    // Zones may have changed since.
                    *zone = found;
                }
                self.say_after(500, request.issued_at, command);
            }
            9..11 if !self.wishes.is_empty() => {
                let newest = self.wishes.len().saturating_sub(3);
                let request = &self.wishes[self.rng.random_range(newest..self.wishes.len())];
                if let Command::RequestRide { rider, key, .. } = request.command.clone() {
                    self.say(500, Command::CancelByKey { rider, key });
                }
            }
            11..17 => {
                self.sessions += 1;
                let old = if self.chance(0.2) {
                    self.rng.random_range(0..=self.sessions.min(4))
                } else {
                    0
                };
                let session = SessionId(self.sessions - old);
                let mut classes = vec![VehicleClass::Economy];
                if self.busy && self.chance(0.8) {
                    classes.push(VehicleClass::Xl);
                } else if !self.busy && self.chance(0.5) {
                    classes[0] = self.class();
                }
                let classes = ClassSet::of(&classes).expect("one class");
                self.say(
                    2_000,
                    Command::GoOnline {
                        driver,
                        session,
                        classes,
                    },
                );
            }
            17..19 => {
                let newest = self.model.drivers.get(&driver).map_or(0, |d| d.session.0);
                let old = if self.chance(0.3) {
                    self.rng.random_range(0..3)
                } else {
                    0
                };
                let session = SessionId(newest.saturating_sub(old));
                if self.chance(0.7) {
                    self.say(2_000, Command::GoOffline { driver, session });
                } else {
                    // The node of the driver's shard says this, not a person: no id, no outcome.
                    let silent = Command::DriverSilent { driver, session };
                    let record = CommandRecord::internal(ShardId(0), self.now, silent);
                    self.append(CommandRecord {
                        from: None,
                        ..record
                    });
                }
            }
            19..21 => {
                let known = self.model.drivers.get(&driver);
                let suspended = known.is_some_and(|d| d.suspended);
                let blocked = known.and_then(|d| d.blocked.first()).cloned();
                let rider = match blocked {
                    Some(blocked) if self.chance(0.5) => blocked,
                    Some(_) | None => rider,
                };
                let known = self.model.drivers.get(&driver);
                let blocks = known.is_some_and(|d| d.blocked.contains(&rider));
                let command = match (self.rng.random_range(0..10), suspended, blocks) {
                    (8, ..) if !self.number.is_multiple_of(3) => {
                        let session = known.map_or(SessionId(0), |d| d.session);
                        let airport = queues::airport(self.step as usize);
                        match self.number % 3 {
                            1 => Command::EnterQueue {
                                driver,
                                session,
                                airport,
                            },
                            _ => Command::LeaveQueue {
                                driver,
                                session,
                                airport,
                            },
                        }
                    }
                    (8, ..) => Command::SetHeading {
                        driver,
                        to: (self.step.is_multiple_of(2)).then(|| self.places[0]),
                    },
                    (9, ..) if self.number.is_multiple_of(3) => {
                        let name = format!("node-{}", self.number % 5);
                        let node = NodeName::new(&name).expect("a good name");
                        Command::DrainNode { node }
                    }
                    (9, ..) => {
                        let policy = if self.step.is_multiple_of(2) {
                            "greedy"
                        } else {
                            "rematch"
                        };
                        let settings = serde_json::json!({ "policy": policy });
                        Command::SetDispatch { settings }
                    }
                    (0..6, true, _) | (0..3, false, _) => Command::ReinstateDriver { driver },
                    (3..5, false, _) => {
                        let reason = Reason::new("a complaint").expect("a good reason");
                        Command::SuspendDriver { driver, reason }
                    }
                    (_, _, true) => Command::UnblockRider { driver, rider },
                    (_, _, false) => Command::BlockRider { driver, rider },
                };
                self.say(500, command);
            }
            _ => {
                let rides: Vec<RideId> = self.model.rides.keys().copied().collect();
                if rides.is_empty() {
                    return;
                }
                let ride = rides[self.rng.random_range(0..rides.len())];
                let hold = HoldId {
                    ride,
                    attempt: self.rng.random_range(0..4),
                };
                let command = match self.rng.random_range(0..6) {
                    0..6 if self.number % 8 == 1 => self.elsewhere(ride, rider),
                    0 => Command::AcceptOffer { hold, driver },
                    1 => Command::CompleteRide { hold, driver },
                    2 => Command::Arrive { hold, driver },
                    3 => Command::CancelRide {
                        ride,
                        by: CancelledBy::Rider,
                        rider: Some(rider),
                        reason: None,
                    },
                    4 => Command::CancelRide {
                        ride,
                        by: CancelledBy::Ops,
                        rider: None,
                        reason: Reason::fitted("payment refused").filter(|_| self.number % 2 == 1),
                    },
                    _ => Command::GiveBack { hold, driver },
                };
                self.say(500, command);
            }
        }
    }

    /// What a gateway's zones say about a place: mostly nothing.
    fn zone(&self) -> Option<Box<ZoneFinding>> {
        // By the number and not by chance, so that the runs of known seeds stay what they were.
        let name = |text| ZoneName::new(text).expect("a good name");
        let place = |number: u32| self.places[number as usize % self.places.len()];
        match self.number % 29 {
            3 => Some(Box::new(ZoneFinding::OutOfArea)),
            5..9 => Some(Box::new(ZoneFinding::At(PickupPoint {
                zone: name("Station"),
                name: name("North"),
                at: place(self.number / 29),
                asked: place(self.number),
            }))),
            _ => None,
        }
    }

    /// The airport a request begins at, if at one.
    fn airport(&self) -> Option<ZoneName> {
        // Rides of airports exchange no cars, and a busy city is there to exchange some.
        match self.number % if self.busy { 24 } else { 8 } {
            1 => Some(queues::airport(0)),
            4 => Some(queues::airport(1)),
            _ => None,
        }
    }

    /// A rider, or the desk for one, wants to be brought elsewhere. By the number and not by chance, as for zones.
    fn elsewhere(&self, ride: RideId, rider: RiderId) -> Command {
        Command::ChangeDestination {
            ride,
            to: self.places[(self.number / 8) as usize % self.places.len()],
            rider: (!self.number.is_multiple_of(5)).then_some(rider),
        }
    }

    fn class(&mut self) -> VehicleClass {
        if self.chance(0.7) {
            VehicleClass::Economy
        } else {
            VehicleClass::Xl
        }
    }

    /// What phones do when they hear of an event: early, late, twice or never.
    pub(super) fn phones(&mut self, event: &Event) {
        match event {
            Event::SwapAsked(e) => {
                let (ride, attempt, driver) = (e.ride, e.attempt, e.driver.clone());
                let hold = HoldId { ride, attempt };
                match self.rng.random_range(0..8) {
                    0 => self.say(6_000, Command::DeclineOffer { hold, driver }),
                    1 => {}
                    _ => self.say(2_000, Command::AcceptOffer { hold, driver }),
                }
            }
            Event::OfferMade(e) => {
                let hold = HoldId {
                    ride: e.ride,
                    attempt: e.attempt,
                };
                let driver = e.driver.clone();
                if self.chance(0.85) {
                    self.say(
                        4_000,
                        Command::ReceiveOffer {
                            hold,
                            driver: driver.clone(),
                        },
                    );
                }
                if self.busy || self.chance(0.75) {
                    self.say(
                        9_000,
                        Command::AcceptOffer {
                            hold,
                            driver: driver.clone(),
                        },
                    );
                }
                if !self.busy && self.chance(0.2) {
                    self.say(16_000, Command::DeclineOffer { hold, driver });
                }
            }
            // The gateway sees the car at an airport, and asks again after a ride.
            Event::DriverOnline(e) if e.session.0.is_multiple_of(2) => {
                let (driver, session) = (e.driver.clone(), e.session);
                let airport = queues::airport(session.0 as usize / 2);
                self.say(
                    1_000,
                    Command::EnterQueue {
                        driver,
                        session,
                        airport,
                    },
                );
            }
            Event::DriverReleased(e) if e.queue.is_none() && e.hold_number.is_multiple_of(3) => {
                let session = self.model.drivers.get(&e.driver).map(|d| d.session);
                let (driver, session) = (e.driver.clone(), session.unwrap_or(SessionId(0)));
                let airport = queues::airport(e.hold_number as usize);
                self.say(
                    1_000,
                    Command::EnterQueue {
                        driver,
                        session,
                        airport,
                    },
                );
            }
            Event::DriverAssigned(e) => self.drives(e.ride, e.attempt, &e.driver),
            Event::DriverReassigned(e) => self.drives(e.ride, e.attempt, &e.driver),
            // Just when the car may become another ride's, the driver says that the rider is there.
            Event::HoldAsked(e) if self.chance(0.5) => {
                let hold = HoldId {
                    ride: e.ride,
                    attempt: e.attempt,
                };
                let driver = e.driver.clone();
                let command = match self.rng.random_range(0..4) {
                    0 => Command::CompleteRide { hold, driver },
                    1 => Command::Arrive { hold, driver },
                    _ => Command::StartRide { hold, driver },
                };
                self.say(300, command);
            }
            Event::RideStarted(e) if self.chance(0.8) => {
                let hold = HoldId {
                    ride: e.ride,
                    attempt: e.attempt,
                };
                self.say(
                    15_000,
                    Command::CompleteRide {
                        hold,
                        driver: e.driver.clone(),
                    },
                );
            }
            Event::RideRequested(e) if self.chance(0.25) => {
                let (ride, rider) = (e.ride, e.rider.clone());
                let by_ride = Command::CancelRide {
                    ride,
                    by: CancelledBy::Rider,
                    rider: Some(rider.clone()),
                    reason: None,
                };
                let elsewhere = self.elsewhere(ride, rider.clone());
                let by_key = Command::CancelByKey {
                    rider,
                    key: e.key.clone(),
                };
                let command = match self.chance(0.5) {
                    _ if self.number % 4 == 1 => elsewhere,
                    true => by_ride,
                    false => by_key,
                };
                self.say(30_000, command);
            }
            Event::RideCancelled(e) if e.driver.is_some() && self.chance(0.3) => {
                // The phone has not heard of the cancel yet.
                let attempt = self.model.rides.get(&e.ride).map_or(1, |ride| ride.attempt);
                let (hold, driver) = (
                    HoldId {
                        ride: e.ride,
                        attempt,
                    },
                    e.driver.clone(),
                );
                let driver = driver.unwrap_or_else(|| self.drivers[0].clone());
                self.say(3_000, Command::AcceptOffer { hold, driver });
            }
            // And falls out with the rider.
            Event::ReportWaits(e) if self.chance(0.3) => {
                let rider = self.model.rides.get(&e.ride).map(|r| r.rider.clone());
                let driver = e.driver.clone();
                if let Some(rider) = rider {
                    self.say(300, Command::BlockRider { driver, rider });
                }
            }
            _ => {}
        }
    }

    /// A driver on the way to a pickup.
    fn drives(&mut self, ride: RideId, attempt: Attempt, driver: &DriverId) {
        let hold = HoldId { ride, attempt };
        let driver = driver.clone();
        let slow = if self.busy { 4 } else { 1 };
        if self.chance(0.7) {
            self.say(
                8_000 * slow,
                Command::Arrive {
                    hold,
                    driver: driver.clone(),
                },
            );
        }
        if self.chance(0.7) {
            self.say(
                15_000 * slow,
                Command::StartRide {
                    hold,
                    driver: driver.clone(),
                },
            );
        }
        if self.chance(0.2) {
            self.say(30_000, Command::GiveBack { hold, driver });
        }
    }
}
