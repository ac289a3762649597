//! What commands do to drivers. Nothing else grants or ends a hold.

use cabrank_events::command::{
    ClaimRefusal, EntityId, Outcome, PlaceAfter, RefusedBecause, TransferAnswer,
};
use cabrank_events::event::{
    DriverForgotten, DriverHeld, DriverLeaving, DriverOffline, DriverOnline, DriverQueued,
    DriverReinstated, DriverReleased, DriverSuspended, DriverUnqueued, HeadingSet, LeaveReason,
    RiderBlocked, RiderUnblocked,
};
use cabrank_events::{
    ClassSet, Command, CommandId, DriverId, Event, HoldId, Place, QueuePlace, Reason, RiderId,
    SessionId, Time, VehicleClass, ZoneName,
};

use super::Shard;
use crate::driver::{Driver, Presence};
use crate::queues::AfterDecline;
use crate::sabotage::Sabotage;

impl Shard {
    pub(super) fn handle_for_driver(&mut self, id: Option<&CommandId>, command: &Command) {
        let asked = command.entity();
        if let (EntityId::Driver(driver), Some(command_id)) = (&asked, id)
            && !self.broken(Sabotage::ForgetOutcomes)
        {
            let before = self
                .drivers
                .get(driver)
                .and_then(|d| d.recent.outcome_of(command_id));
            if let Some(outcome) = before.cloned() {
                self.answer(id, &asked, outcome, None);
                return;
            }
        }
        let outcome = match command {
            Command::GoOnline {
                driver,
                session,
                classes,
            } => self.go_online(driver, *session, *classes),
            Command::GoOffline { driver, session } => {
                self.leave(driver, *session, LeaveReason::Offline)
            }
            Command::DriverSilent { driver, session } => {
                self.leave(driver, *session, LeaveReason::Silent)
            }
            Command::SuspendDriver { driver, reason } => self.suspend(driver, reason),
            Command::ReinstateDriver { driver } => self.reinstate(driver),
            Command::BlockRider { driver, rider } => self.block(driver, rider),
            Command::UnblockRider { driver, rider } => self.unblock(driver, rider),
            Command::SetHeading { driver, to } => self.set_heading(driver, *to),
            Command::EnterQueue {
                driver,
                session,
                airport,
            } => self.enter_queue(driver, *session, airport),
            Command::LeaveQueue {
                driver,
                session,
                airport,
            } => self.leave_queue(driver, *session, airport),
            Command::ClaimDriver {
                driver,
                hold,
                class,
                rider,
            } => {
                self.claim(driver, *hold, *class, rider.as_ref());
                return;
            }
            Command::TransferHold {
                driver,
                from,
                hold,
                class,
                rider,
            } => {
                self.transfer(driver, *from, *hold, *class, rider);
                return;
            }
            Command::ReleaseDriver {
                driver,
                hold,
                place,
            } => {
                self.release(driver, *hold, *place);
                return;
            }
            other => unreachable!("{other:?} is not for a driver"),
        };
        self.answer(id, &asked, outcome, None);
    }

    fn driver_seq(&self, driver: &DriverId) -> u64 {
        self.drivers
            .get(driver)
            .map_or_else(|| self.newest_number(), |known| known.seq)
            + 1
    }

    fn go_online(&mut self, driver: &DriverId, session: SessionId, classes: ClassSet) -> Outcome {
        let known = self.drivers.get(driver);
        if known.is_some_and(|d| d.suspended.is_some()) && !self.broken(Sabotage::SuspendedOnline) {
            return Outcome::Refused {
                why: RefusedBecause::Suspended,
            };
        }
        let newest = known.map_or(SessionId(0), |d| d.session);
        match known.map(|d| &d.presence) {
            Some(Presence::Online { classes: open }) if session == newest => {
                // The open session may change what the car serves; the next claim sees it.
                if *open == classes {
                    return Outcome::AlreadyDone;
                }
            }
            Some(Presence::Online { .. } | Presence::Leaving { .. } | Presence::Offline { .. })
            | None => {
                if session <= newest && !self.broken(Sabotage::OldSessions) {
                    return Outcome::Refused {
                        why: RefusedBecause::OldSession,
                    };
                }
            }
        }
        let driver_seq = self.driver_seq(driver);
        self.emit(DriverOnline {
            driver: driver.clone(),
            driver_seq,
            session,
            classes,
        });
        Outcome::Done
    }

    fn leave(&mut self, driver: &DriverId, session: SessionId, why: LeaveReason) -> Outcome {
        let Some(known) = self.drivers.get(driver) else {
            return Outcome::Refused {
                why: RefusedBecause::NotOnline,
            };
        };
        if session != known.session && !self.broken(Sabotage::OldSessions) {
            return Outcome::Refused {
                why: RefusedBecause::OldSession,
            };
        }
        let held = known.held;
        match known.presence {
            Presence::Leaving { .. } | Presence::Offline { .. } => return Outcome::AlreadyDone,
            Presence::Online { .. } => {}
        }
        match held {
            Some(held) if !self.broken(Sabotage::OfflineWhileHeld) => {
                let driver_seq = self.driver_seq(driver);
                self.emit(DriverLeaving {
                    driver: driver.clone(),
                    driver_seq,
                    session,
                    why,
                });
                self.send(Command::DriverLeft {
                    hold: held.hold,
                    driver: driver.clone(),
                    why,
                });
            }
            Some(_) | None => self.driver_offline(driver, why),
        }
        Outcome::Done
    }

    fn set_heading(&mut self, driver: &DriverId, to: Option<Place>) -> Outcome {
        let known = self.drivers.get(driver);
        let Some(known) = known.filter(|known| known.open_session().is_some()) else {
            return Outcome::Refused {
                why: RefusedBecause::NotOnline,
            };
        };
        if known.heading == to {
            return Outcome::AlreadyDone;
        }
        let driver_seq = self.driver_seq(driver);
        self.emit(HeadingSet {
            driver: driver.clone(),
            driver_seq,
            to,
        });
        Outcome::Done
    }

    fn driver_offline(&mut self, driver: &DriverId, why: LeaveReason) {
        let driver_seq = self.driver_seq(driver);
        let session = self.drivers.get(driver).map_or(SessionId(0), |d| d.session);
        let keep_until = self.time.plus_ms(self.config.driver_memory_ms);
        self.emit(DriverOffline {
            driver: driver.clone(),
            driver_seq,
            session,
            why,
            keep_until,
        });
    }

    // -- airports ----------------------------------------------------------------------------------------------

    /// The end of the queue at `airport`, for a free driver. A place in another queue is given up: nobody has two.
    fn enter_queue(
        &mut self,
        driver: &DriverId,
        session: SessionId,
        airport: &ZoneName,
    ) -> Outcome {
        let refused = |why| Outcome::Refused { why };
        let known = match self.at_work(driver, session) {
            Ok(known) => known,
            Err(why) => return refused(why),
        };
        if known.held.is_some() {
            return refused(RefusedBecause::HasRide);
        }
        let queue = known.queue.as_ref();
        if queue.is_some_and(|place| place.airport == *airport) && !self.broken(Sabotage::PlaceAnew)
        {
            return Outcome::AlreadyDone;
        }
        if self.queues.waiting(airport) >= self.config.queues.drivers_max {
            return refused(RefusedBecause::QueueFull);
        }
        let (driver_seq, place) = (self.driver_seq(driver), self.place_at_end(airport));
        self.emit(DriverQueued {
            driver: driver.clone(),
            driver_seq,
            place,
        });
        Outcome::Done
    }

    /// Also for a driver whom a ride holds: the place is not there any more when the ride lets go.
    fn leave_queue(
        &mut self,
        driver: &DriverId,
        session: SessionId,
        airport: &ZoneName,
    ) -> Outcome {
        let known = match self.at_work(driver, session) {
            Ok(known) => known,
            Err(why) => return Outcome::Refused { why },
        };
        let queue = known.queue.as_ref();
        if queue.is_none_or(|place| place.airport != *airport) {
            return Outcome::AlreadyDone;
        }
        let driver_seq = self.driver_seq(driver);
        self.emit(DriverUnqueued {
            driver: driver.clone(),
            driver_seq,
            airport: airport.clone(),
        });
        Outcome::Done
    }

    fn at_work(&self, driver: &DriverId, session: SessionId) -> Result<&Driver, RefusedBecause> {
        let known = self.drivers.get(driver).ok_or(RefusedBecause::NotOnline)?;
        if known.session != session {
            return Err(RefusedBecause::OldSession);
        }
        match known.presence {
            Presence::Online { .. } => Ok(known),
            Presence::Leaving { .. } | Presence::Offline { .. } => Err(RefusedBecause::NotOnline),
        }
    }

    /// A place behind all that this shard has given: its number is that of the event which is published next.
    fn place_at_end(&self, airport: &ZoneName) -> QueuePlace {
        QueuePlace {
            airport: airport.clone(),
            since: match self.broken(Sabotage::JumpQueue) {
                true => Time(0),
                false => self.time,
            },
            number: self.counters.seq + 1,
        }
    }

    /// The place a driver has once let go.
    fn place_after(&self, known: &Driver, place: PlaceAfter) -> Option<QueuePlace> {
        let before = known.queue.as_ref()?;
        match (place, self.config.queues.after_decline) {
            (PlaceAfter::Gone, _) if self.broken(Sabotage::KeepPlace) => Some(before.clone()),
            (PlaceAfter::Gone, _) => None,
            (PlaceAfter::Kept, _) | (PlaceAfter::TurnedDown, AfterDecline::Keep) => {
                Some(before.clone())
            }
            (PlaceAfter::TurnedDown, AfterDecline::End) => Some(self.place_at_end(&before.airport)),
        }
    }

    // -- what the desk says ----------------------------------------------------------------------------------

    /// A suspension is a mark, and ends an open session as if the driver had left: before the pickup the ride looks
    /// for another driver, after it the driver is gone at the end (PROTOCOL 21).
    fn suspend(&mut self, driver: &DriverId, reason: &Reason) -> Outcome {
        let known = self.drivers.get(driver);
        if known.is_some_and(|d| d.suspended.is_some()) {
            return Outcome::AlreadyDone;
        }
        if let Some(why) = self.no_room_for_mark(driver) {
            return Outcome::Refused { why };
        }
        let open = known.map_or(SessionId(0), |d| d.session);
        let driver_seq = self.driver_seq(driver);
        self.mark(DriverSuspended {
            driver: driver.clone(),
            driver_seq,
            reason: reason.clone(),
        });
        self.leave(driver, open, LeaveReason::Suspended);
        Outcome::Done
    }

    fn reinstate(&mut self, driver: &DriverId) -> Outcome {
        let known = self.drivers.get(driver);
        if known.is_none_or(|d| d.suspended.is_none()) {
            return Outcome::AlreadyDone;
        }
        let driver_seq = self.driver_seq(driver);
        self.mark(DriverReinstated {
            driver: driver.clone(),
            driver_seq,
        });
        Outcome::Done
    }

    /// Counts from the next claim on: a ride of this rider that holds the driver goes on.
    fn block(&mut self, driver: &DriverId, rider: &RiderId) -> Outcome {
        let known = self.drivers.get(driver);
        if known.is_some_and(|d| d.blocked.contains(rider)) {
            return Outcome::AlreadyDone;
        }
        if known.is_some_and(|d| d.blocked.len() >= self.config.blocks_max) {
            let why = RefusedBecause::TooManyBlocks;
            return Outcome::Refused { why };
        }
        if let Some(why) = self.no_room_for_mark(driver) {
            return Outcome::Refused { why };
        }
        let driver_seq = self.driver_seq(driver);
        self.mark(RiderBlocked {
            driver: driver.clone(),
            driver_seq,
            rider: rider.clone(),
        });
        Outcome::Done
    }

    fn unblock(&mut self, driver: &DriverId, rider: &RiderId) -> Outcome {
        let known = self.drivers.get(driver);
        if known.is_none_or(|d| !d.blocked.contains(rider)) {
            return Outcome::AlreadyDone;
        }
        let driver_seq = self.driver_seq(driver);
        self.mark(RiderUnblocked {
            driver: driver.clone(),
            driver_seq,
            rider: rider.clone(),
        });
        Outcome::Done
    }

    fn is_marked(&self, driver: &DriverId) -> bool {
        self.drivers.get(driver).is_some_and(Driver::is_marked)
    }

    fn no_room_for_mark(&self, driver: &DriverId) -> Option<RefusedBecause> {
        let is_full = self.marked_drivers >= self.config.marked_drivers_max;
        (is_full && !self.is_marked(driver)).then_some(RefusedBecause::TooManyMarked)
    }

    /// Publishes a change of a driver's marks, and counts the drivers who have any.
    pub(super) fn mark(&mut self, event: impl Into<Event>) {
        let event = event.into();
        let EntityId::Driver(driver) = event.entity() else {
            unreachable!("only drivers have marks")
        };
        let before = usize::from(self.is_marked(&driver));
        self.emit(event);
        self.marked_drivers += usize::from(self.is_marked(&driver));
        self.marked_drivers -= before;
    }

    // -- what rides say --------------------------------------------------------------------------------------

    fn claim(
        &mut self,
        driver: &DriverId,
        hold: HoldId,
        class: VehicleClass,
        rider: Option<&RiderId>,
    ) {
        let known = self.drivers.get(driver);
        if known
            .and_then(|d| d.held)
            .is_some_and(|held| held.hold == hold)
        {
            return; // granted before; the ride heard of it
        }
        let asked = |d: &Driver| d.can_be_held(None, class, rider);
        let verdict = match known.map_or(Err(ClaimRefusal::Offline), asked) {
            Err(ClaimRefusal::Suspended) if self.broken(Sabotage::SuspendedGrants) => Ok(()),
            Err(ClaimRefusal::Blocked) if self.broken(Sabotage::IgnoreBlocks) => Ok(()),
            Err(ClaimRefusal::Held) if self.broken(Sabotage::GrantTwice) => Ok(()),
            Err(ClaimRefusal::WrongClass) if self.broken(Sabotage::AnyClass) => Ok(()),
            verdict => verdict,
        };
        let driver = driver.clone();
        match verdict {
            Ok(()) => {
                let driver_seq = self.driver_seq(&driver);
                self.emit(DriverHeld {
                    driver: driver.clone(),
                    driver_seq,
                    ride: hold.ride,
                    attempt: hold.attempt,
                    hold_number: driver_seq,
                });
                self.send(Command::ClaimGranted {
                    hold,
                    driver,
                    hold_number: driver_seq,
                });
            }
            Err(why) => {
                if self.broken(Sabotage::SilentChange)
                    && let Some(known) = self.drivers.get_mut(&driver)
                {
                    known.seq += 1;
                }
                let driver_seq = self
                    .drivers
                    .get(&driver)
                    .map_or_else(|| self.newest_number(), |d| d.seq);
                self.send(Command::ClaimRefused {
                    hold,
                    driver,
                    why,
                    driver_seq,
                });
            }
        }
    }

    /// The driver goes from one ride to another: the old hold is over and the new one stands, or nothing changes.
    fn transfer(
        &mut self,
        driver: &DriverId,
        from: HoldId,
        hold: HoldId,
        class: VehicleClass,
        rider: &RiderId,
    ) {
        let known = self.drivers.get(driver);
        let held = known.and_then(|d| d.held);
        if held.is_some_and(|held| held.hold == hold) {
            return; // moved before; the rides heard of it
        }
        let asked = |d: &Driver| d.can_be_held(Some(from), class, Some(rider));
        let verdict = match (known.map_or(Err(ClaimRefusal::Offline), asked), held) {
            (Err(ClaimRefusal::Held), Some(held)) if self.broken(Sabotage::TransferAnyHold) => {
                Ok(held)
            }
            (Err(ClaimRefusal::Leaving), Some(held)) if self.broken(Sabotage::LeavingMoves) => {
                Ok(held)
            }
            (Ok(()), Some(held)) => Ok(held),
            (Ok(()), None) => Err(ClaimRefusal::Offline),
            (Err(why), _) => Err(why),
        };
        let answer = match verdict {
            Ok(old) => {
                let driver_seq = self.driver_seq(driver);
                self.emit(DriverReleased {
                    driver: driver.clone(),
                    driver_seq,
                    ride: old.hold.ride,
                    attempt: old.hold.attempt,
                    hold_number: old.number,
                    queue: None,
                });
                let hold_number = self.driver_seq(driver);
                self.emit(DriverHeld {
                    driver: driver.clone(),
                    driver_seq: hold_number,
                    ride: hold.ride,
                    attempt: hold.attempt,
                    hold_number,
                });
                TransferAnswer::Moved { hold_number }
            }
            Err(why) => TransferAnswer::Refused {
                why,
                driver_seq: known.map_or_else(|| self.newest_number(), |d| d.seq),
                stands: held.is_some_and(|held| held.hold == from),
            },
        };
        self.send(Command::TransferAnswered {
            driver: driver.clone(),
            from,
            hold,
            answer,
        });
    }

    fn release(&mut self, driver: &DriverId, hold: HoldId, place: PlaceAfter) {
        let Some(known) = self.drivers.get(driver) else {
            return;
        };
        let Some(held) = known.held else { return };
        if held.hold != hold && !self.broken(Sabotage::ReleaseAnyHold) {
            return; // an older hold's release: this one stands
        }
        let leaving = match known.presence {
            Presence::Leaving { why } => Some(why),
            Presence::Online { .. } | Presence::Offline { .. } => None,
        };
        let queue = self.place_after(known, place);
        let driver_seq = self.driver_seq(driver);
        self.emit(DriverReleased {
            driver: driver.clone(),
            driver_seq,
            ride: held.hold.ride,
            attempt: held.hold.attempt,
            hold_number: held.number,
            queue,
        });
        if let Some(why) = leaving {
            self.driver_offline(driver, why);
        }
    }

    pub(super) fn driver_timer(&mut self, id: &DriverId) {
        if self
            .drivers
            .get(id)
            .and_then(|d| self.due_of_driver(d))
            .is_none()
        {
            return;
        }
        let driver_seq = self.driver_seq(id);
        self.remember_number(driver_seq);
        self.emit(DriverForgotten {
            driver: id.clone(),
            driver_seq,
        });
    }
}
