//! What commands do to drivers. Nothing else grants or ends a hold.

use cabrank_events::command::{ClaimRefusal, EntityId, Outcome, RefusedBecause, TransferAnswer};
use cabrank_events::event::{
    DriverForgotten, DriverHeld, DriverLeaving, DriverOffline, DriverOnline, DriverReinstated,
    DriverReleased, DriverSuspended, HeadingSet, LeaveReason, RiderBlocked, RiderUnblocked,
};
use cabrank_events::{
    ClassSet, Command, CommandId, DriverId, Event, HoldId, Place, Reason, RiderId, SessionId,
    VehicleClass,
};

use super::Shard;
use crate::driver::{Driver, Presence};
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
            Command::ReleaseDriver { driver, hold } => {
                self.release(driver, *hold);
                return;
            }
            other => unreachable!("{other:?} is not for a driver"),
        };
        self.answer(id, &asked, outcome, None);
    }

    fn driver_seq(&self, driver: &DriverId) -> u64 {
        self.drivers
            .get(driver)
            .map_or(self.counters.seq, |known| known.seq)
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
    fn mark(&mut self, event: impl Into<Event>) {
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
                    .map_or(self.counters.seq, |d| d.seq);
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
                driver_seq: known.map_or(self.counters.seq, |d| d.seq),
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

    fn release(&mut self, driver: &DriverId, hold: HoldId) {
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
        let driver_seq = self.driver_seq(driver);
        self.emit(DriverReleased {
            driver: driver.clone(),
            driver_seq,
            ride: held.hold.ride,
            attempt: held.hold.attempt,
            hold_number: held.number,
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
        self.emit(DriverForgotten {
            driver: id.clone(),
            driver_seq,
        });
    }
}
