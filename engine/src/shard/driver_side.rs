//! What commands do to drivers. Nothing else grants or ends a hold.

use cabrank_events::command::{ClaimRefusal, EntityId, Outcome, RefusedBecause};
use cabrank_events::event::{
    DriverForgotten, DriverHeld, DriverLeaving, DriverOffline, DriverOnline, DriverReleased,
    LeaveReason,
};
use cabrank_events::{ClassSet, Command, CommandId, DriverId, HoldId, SessionId, VehicleClass};

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
            Command::ClaimDriver {
                driver,
                hold,
                class,
            } => {
                self.claim(driver, *hold, *class);
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

    fn claim(&mut self, driver: &DriverId, hold: HoldId, class: VehicleClass) {
        let known = self.drivers.get(driver);
        if known
            .and_then(|d| d.held)
            .is_some_and(|held| held.hold == hold)
        {
            return; // granted before; the ride heard of it
        }
        let verdict = match known.map_or(Err(ClaimRefusal::Offline), |d| d.can_be_held(class)) {
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
        if self.drivers.get(id).and_then(Driver::due).is_none() {
            return;
        }
        let driver_seq = self.driver_seq(id);
        self.emit(DriverForgotten {
            driver: id.clone(),
            driver_seq,
        });
    }
}
