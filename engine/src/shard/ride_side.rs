//! What commands, rounds and timers do to rides.

use cabrank_events::command::{
    CancelledBy, EntityId, OpenRide, Outcome, PlaceAfter, RefusedBecause,
};
use cabrank_events::event::{
    ClaimAbandoned, CompletedBecause, DeclinedBecause, DestinationChanged, DriverArrived,
    DriverAssigned, DriverLost, EndOfRide, ExpiredBecause, LostBecause, Move, OfferDeclined,
    OfferExpired, OfferMade, OfferReceived, RideCancelled, RideCompleted, RideReport,
    RideRequested, RideStarted, RideUnfulfilled, SearchWidened, SearchedInVain, SwapAnswer,
    UnfulfilledBecause,
};
use cabrank_events::{Command, CommandId, DriverId, HoldId, Place, Reason, RideId, RiderId, Time};

use super::Shard;
use crate::matching::{Pair, RoundResult};
use crate::ride::{Consent, Ending, Parting, Ride, Stage};
use crate::sabotage::Sabotage;

/// What an external command came to.
type Answer = Result<Outcome, RefusedBecause>;

/// What a driver may report of a hold.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Report {
    Received,
    Accepted,
    Declined,
    Arrived,
    Started,
    Completed,
    GivenBack,
}

impl From<RideReport> for Report {
    fn from(report: RideReport) -> Report {
        match report {
            RideReport::Arrived => Report::Arrived,
            RideReport::Started => Report::Started,
            RideReport::Completed => Report::Completed,
        }
    }
}

impl Shard {
    pub(super) fn handle_for_ride(&mut self, id: Option<&CommandId>, command: &Command) {
        let asked = command.entity();
        let EntityId::Ride(ride) = asked else {
            unreachable!("{command:?} is not for a ride")
        };
        if let Some(command_id) = id
            && !self.broken(Sabotage::ForgetOutcomes)
        {
            let before = self
                .rides
                .get(&ride)
                .and_then(|r| r.recent.outcome_of(command_id));
            if let Some(outcome) = before.cloned() {
                self.answer(id, &asked, outcome, Some(ride));
                return;
            }
        }
        let answer = match command {
            Command::OpenRide(open) => return self.open_ride(open),
            Command::ClaimGranted {
                hold,
                driver,
                hold_number,
            } => {
                return self.claim_granted(*hold, driver, *hold_number);
            }
            Command::ClaimRefused {
                hold,
                driver,
                why,
                driver_seq,
            } => return self.denied(*hold, driver, *why, *driver_seq),
            Command::TransferAnswered {
                driver,
                from,
                hold,
                answer,
            } => return self.transfer_answered(driver, *from, *hold, answer),
            Command::DriverLeft {
                hold,
                driver,
                why: _,
            } => return self.driver_left(*hold, driver),
            Command::CancelRide {
                by, rider, reason, ..
            } => self
                .not_a_strangers(ride, rider.as_ref())
                .and_then(|()| self.cancel(ride, *by, reason.as_ref())),
            Command::ChangeDestination { to, rider, .. } => self
                .not_a_strangers(ride, rider.as_ref())
                .and_then(|()| self.lead_to(ride, *to)),
            Command::ReceiveOffer { hold, driver } => self.report(Report::Received, *hold, driver),
            Command::AcceptOffer { hold, driver } => self.report(Report::Accepted, *hold, driver),
            Command::DeclineOffer { hold, driver } => self.report(Report::Declined, *hold, driver),
            Command::Arrive { hold, driver } => {
                match self.report_or_park(id, RideReport::Arrived, *hold, driver) {
                    Some(answer) => answer,
                    None => return,
                }
            }
            Command::StartRide { hold, driver } => {
                match self.report_or_park(id, RideReport::Started, *hold, driver) {
                    Some(answer) => answer,
                    None => return,
                }
            }
            Command::CompleteRide { hold, driver } => {
                match self.report_or_park(id, RideReport::Completed, *hold, driver) {
                    Some(answer) => answer,
                    None => return,
                }
            }
            Command::GiveBack { hold, driver } => self.report(Report::GivenBack, *hold, driver),
            other => unreachable!("{other:?} is not for a ride"),
        };
        let outcome = answer.unwrap_or_else(|why| Outcome::Refused { why });
        self.answer(id, &asked, outcome, Some(ride));
    }

    /// `None`: the report waits for the answer to a transfer, and so does its outcome.
    fn report_or_park(
        &mut self,
        id: Option<&CommandId>,
        report: RideReport,
        hold: HoldId,
        driver: &DriverId,
    ) -> Option<Answer> {
        match self.park(id, report, hold, driver) {
            None => Some(self.report(report.into(), hold, driver)),
            Some(Ok(())) => None,
            Some(Err(why)) => Some(Err(why)),
        }
    }

    pub(super) fn ride_seq(&self, ride: RideId) -> u32 {
        let skip = u32::from(self.broken(Sabotage::SkipSequence));
        self.rides.get(&ride).map_or(0, |known| known.seq) + 1 + skip
    }

    pub(super) fn is_claiming(&self, hold: HoldId, driver: &DriverId) -> bool {
        self.rides.get(&hold.ride).is_some_and(|ride| {
            ride.holds(hold, driver) && matches!(ride.stage, Stage::Claiming { .. })
        })
    }

    fn open_ride(&mut self, open: &OpenRide) {
        if self.rides.contains_key(&open.ride) {
            return; // opened before; the rider's shard heard of it
        }
        let (rider, key, ride) = (open.rider.clone(), open.key.clone(), open.ride);
        let too_old = open.issued_at.plus_ms(self.config.request_patience_ms) < self.time;
        let refused = if too_old && !self.broken(Sabotage::IgnoreAge) {
            Some(RefusedBecause::TooOld)
        } else if self.open_rides >= self.config.rides_max {
            Some(RefusedBecause::ShardFull)
        } else {
            None
        };
        if let Some(why) = refused {
            self.send(Command::OpenRefused {
                rider,
                key,
                ride,
                why,
            });
            return;
        }
        self.emit(RideRequested {
            ride,
            ride_seq: 1,
            rider: rider.clone(),
            key: key.clone(),
            pickup: open.pickup,
            dropoff: open.dropoff,
            class: open.class,
            issued_at: open.issued_at,
            deadline: open
                .issued_at
                .plus_ms(self.config.ride_deadline_ms)
                .max(self.time),
            radius_m: self.config.radius_first_m,
            widen_at: self.time.plus_ms(self.config.widen_every_ms),
            pickup_point: open.pickup_point.clone(),
            airport: open.airport.clone(),
        });
        self.send(Command::RideOpened { rider, key, ride });
    }

    // -- rounds ----------------------------------------------------------------------------------------------

    /// The result of a round. A pair counts only if its ride is as the round's snapshot saw it (PROTOCOL 18).
    pub fn handle_round(&mut self, result: &RoundResult) {
        for (ride, version) in &result.looked {
            self.looked_at(*ride, *version);
        }
        for pair in &result.pairs {
            self.claim_pair(pair);
        }
        for swap in &result.swaps {
            self.begin_swap(swap);
        }
        for (ride, version) in &result.looked {
            let in_vain = self
                .as_seen(*ride, *version)
                .is_some_and(|known| !known.looked);
            if in_vain {
                let ride_seq = self.ride_seq(*ride);
                self.emit(SearchedInVain {
                    ride: *ride,
                    ride_seq,
                });
                self.reindex(&EntityId::Ride(*ride));
            }
        }
    }

    /// The ride, if it still waits in the very state the round saw.
    fn as_seen(&self, ride: RideId, version: u32) -> Option<&Ride> {
        self.rides
            .get(&ride)
            .filter(|known| known.seq == version && matches!(known.stage, Stage::Waiting))
    }

    /// A ride too old at its first look is not dispatched: its rider has given up on us (PROTOCOL 12).
    fn looked_at(&mut self, ride: RideId, version: u32) {
        let patience = self.config.request_patience_ms;
        let too_old = self
            .as_seen(ride, version)
            .is_some_and(|known| !known.looked && known.issued_at.plus_ms(patience) < self.time);
        if too_old && !self.broken(Sabotage::IgnoreAge) {
            self.finish(ride, Ending::Unfulfilled(UnfulfilledBecause::TooOld));
            self.reindex(&EntityId::Ride(ride));
        }
    }

    fn claim_pair(&mut self, pair: &Pair) {
        let Some(known) = self.as_seen(pair.ride, pair.version) else {
            return;
        };
        if known.asked.contains(&pair.driver) && !self.broken(Sabotage::AskAgain) {
            return;
        }
        let claim = Move {
            ride: pair.ride,
            version: pair.version,
            driver: pair.driver.clone(),
            gain_s: 0,
        };
        self.claim_for(&claim, None, &[]);
    }

    // -- answers of the driver's shard -----------------------------------------------------------------------

    fn claim_granted(&mut self, hold: HoldId, driver: &DriverId, hold_number: u64) {
        let ride = hold.ride;
        if self.gained(hold, driver, hold_number) {
            return;
        }
        // The hold went to another ride, which let the driver go, and then an old claim was read a second time: nobody
        // else would give this grant back, because the answer to the transfer is still to come.
        let is_of_old = self.rides.get(&ride).is_some_and(|known| {
            let its = match known.stage {
                Stage::EnRoute { hold_number, .. } => Some(hold_number),
                _ => None,
            };
            known.exchange.is_asked() && known.holds(hold, driver) && its != Some(hold_number)
        });
        if is_of_old {
            self.send(Command::ReleaseDriver {
                driver: driver.clone(),
                hold,
                place: PlaceAfter::Kept,
            });
            return;
        }
        if self.broken(Sabotage::BelieveAnyGrant)
            && self
                .rides
                .get(&ride)
                .is_some_and(|r| matches!(r.stage, Stage::Claiming { .. }))
        {
            self.emit(OfferMade {
                ride,
                ride_seq: self.ride_seq(ride),
                driver: driver.clone(),
                attempt: hold.attempt,
                hold_number,
                receipt_by: self.time.plus_ms(self.config.offer_receipt_ms),
            });
            return;
        }
        self.give_back_unwanted(hold, driver, PlaceAfter::Kept);
    }

    fn driver_left(&mut self, hold: HoldId, driver: &DriverId) {
        let ride = hold.ride;
        let known = self.rides.get(&ride);
        if known.is_some_and(|r| r.exchange.has_incoming(hold.attempt, driver)) {
            self.abandon_incoming(ride);
            self.settle(ride);
            return;
        }
        let held = known.filter(|r| r.holds(hold, driver));
        if held.is_some_and(|r| r.exchange.is_asked()) {
            return; // the answer to the transfer says so, too, and then it is known who is in the car
        }
        match held.map(|r| &r.stage) {
            None | Some(Stage::Waiting | Stage::Ended { .. }) => {
                self.send(Command::ReleaseDriver {
                    driver: driver.clone(),
                    hold,
                    place: PlaceAfter::Gone,
                });
            }
            Some(Stage::Claiming { .. }) => self.abandon_claim(ride),
            Some(Stage::Offered { .. }) => {
                self.part(ride, Parting::Declined(DeclinedBecause::Left));
            }
            Some(Stage::EnRoute { .. } | Stage::Arrived { .. }) => {
                self.part(ride, Parting::Lost(LostBecause::Left));
            }
            Some(Stage::Started { .. }) => {} // released at the end of the ride
        }
    }

    // -- what people say -------------------------------------------------------------------------------------

    /// A rider speaks only of their own ride; the desk, which names no rider, of all.
    fn not_a_strangers(&self, ride: RideId, rider: Option<&RiderId>) -> Result<(), RefusedBecause> {
        let stranger = match (self.rides.get(&ride), rider) {
            (Some(known), Some(rider)) => known.rider != *rider,
            (Some(_), None) | (None, _) => false,
        };
        if stranger && !self.broken(Sabotage::ObeyStrangers) {
            return Err(RefusedBecause::NotYours);
        }
        Ok(())
    }

    /// The rider wants to be brought to `to` instead, as long as they are not there. A claim, an offer and a swap go on; a round
    /// that is under way looks at the ride again, because it saw the old destination.
    fn lead_to(&mut self, ride: RideId, to: Place) -> Answer {
        let known = self.rides.get(&ride).ok_or(RefusedBecause::UnknownRide)?;
        match known.stage {
            Stage::Ended { .. } if !self.broken(Sabotage::LeadTheEnded) => {
                Err(RefusedBecause::Ended)
            }
            Stage::Waiting
            | Stage::Claiming { .. }
            | Stage::Offered { .. }
            | Stage::EnRoute { .. }
            | Stage::Arrived { .. }
            | Stage::Started { .. }
            | Stage::Ended { .. } => {
                if known.dropoff == Some(to) {
                    return Ok(Outcome::AlreadyDone);
                }
                self.emit(DestinationChanged {
                    ride,
                    ride_seq: self.ride_seq(ride),
                    to,
                });
                Ok(Outcome::Done)
            }
        }
    }

    fn cancel(&mut self, ride: RideId, by: CancelledBy, reason: Option<&Reason>) -> Answer {
        let known = self.rides.get(&ride).ok_or(RefusedBecause::UnknownRide)?;
        match known.stage {
            Stage::Waiting
            | Stage::Claiming { .. }
            | Stage::Offered { .. }
            | Stage::EnRoute { .. }
            | Stage::Arrived { .. } => {
                self.finish(ride, Ending::Cancelled(by, reason.cloned()));
                Ok(Outcome::Done)
            }
            Stage::Started { .. } => Err(RefusedBecause::AlreadyStarted),
            Stage::Ended {
                end: EndOfRide::Cancelled,
                ..
            } => Ok(Outcome::AlreadyDone),
            Stage::Ended {
                end: EndOfRide::Completed | EndOfRide::Unfulfilled,
                ..
            } => Err(RefusedBecause::Ended),
        }
    }

    pub(super) fn report(&mut self, report: Report, hold: HoldId, driver: &DriverId) -> Answer {
        let ride = hold.ride;
        let known = self.rides.get(&ride).ok_or(RefusedBecause::UnknownRide)?;
        if let Stage::Ended {
            end, driver: last, ..
        } = &known.stage
        {
            let theirs = last.as_ref() == Some(driver) && known.hold() == hold;
            let completed = *end == EndOfRide::Completed;
            if self.broken(Sabotage::AssignAfterCancel) && report == Report::Accepted {
                self.assign(ride, driver, hold, 0);
                return Ok(Outcome::Done);
            }
            return match report {
                Report::Received
                | Report::Accepted
                | Report::Arrived
                | Report::Started
                | Report::Completed
                    if theirs && completed =>
                {
                    Ok(Outcome::AlreadyDone)
                }
                _ => Err(RefusedBecause::Ended),
            };
        }
        if !known.holds(hold, driver) {
            let was_theirs = known.asked.contains(driver) || known.driver() == Some(driver);
            return Err(if was_theirs {
                RefusedBecause::Lapsed
            } else {
                RefusedBecause::NotYours
            });
        }
        match known.stage {
            Stage::Waiting | Stage::Claiming { .. } => Err(RefusedBecause::NotYours),
            Stage::Offered {
                received,
                hold_number,
                ..
            } => self.report_on_offer(report, hold, driver, received, hold_number),
            Stage::EnRoute { .. } => self.report_before_start(report, ride, driver, false),
            Stage::Arrived { .. } => self.report_before_start(report, ride, driver, true),
            Stage::Started { .. } => match report {
                Report::Received | Report::Accepted | Report::Arrived | Report::Started => {
                    Ok(Outcome::AlreadyDone)
                }
                Report::Declined => Err(RefusedBecause::AlreadyAccepted),
                Report::GivenBack => Err(RefusedBecause::AlreadyStarted),
                Report::Completed => {
                    self.finish(ride, Ending::Completed(CompletedBecause::DriverReported));
                    Ok(Outcome::Done)
                }
            },
            Stage::Ended { .. } => Err(RefusedBecause::Ended),
        }
    }

    fn report_on_offer(
        &mut self,
        report: Report,
        hold: HoldId,
        driver: &DriverId,
        received: bool,
        hold_number: u64,
    ) -> Answer {
        let ride = hold.ride;
        match report {
            Report::Received if received || self.broken(Sabotage::NoHandshake) => {
                return Ok(Outcome::AlreadyDone);
            }
            Report::Received => self.emit(OfferReceived {
                ride,
                ride_seq: self.ride_seq(ride),
                driver: driver.clone(),
                attempt: hold.attempt,
                answer_by: self.time.plus_ms(self.config.offer_answer_ms),
            }),
            Report::Accepted => self.assign(ride, driver, hold, hold_number),
            Report::Declined | Report::GivenBack => {
                self.part(ride, Parting::Declined(DeclinedBecause::Declined));
            }
            Report::Arrived | Report::Started | Report::Completed => {
                return Err(RefusedBecause::NotAccepted);
            }
        }
        Ok(Outcome::Done)
    }

    fn assign(&mut self, ride: RideId, driver: &DriverId, hold: HoldId, hold_number: u64) {
        self.emit(DriverAssigned {
            ride,
            ride_seq: self.ride_seq(ride),
            driver: driver.clone(),
            attempt: hold.attempt,
            hold_number,
            arrive_by: self.time.plus_ms(self.config.arrival_ms),
        });
    }

    fn report_before_start(
        &mut self,
        report: Report,
        ride: RideId,
        driver: &DriverId,
        arrived: bool,
    ) -> Answer {
        let known = &self.rides[&ride];
        let (hold, attempt) = (known.hold(), known.hold().attempt);
        // While the driver is asked whether the ride may go to another one, this is the answer.
        let answer = match report {
            Report::Accepted => Some(SwapAnswer::Agreed),
            Report::Declined => Some(SwapAnswer::Declined),
            Report::Received
            | Report::GivenBack
            | Report::Arrived
            | Report::Started
            | Report::Completed => None,
        };
        if let Some(answer) = answer
            && self.answer_swap(hold, driver, answer).is_some()
        {
            return Ok(Outcome::Done);
        }
        let known = &self.rides[&ride];
        match report {
            Report::Received | Report::Accepted => return Ok(Outcome::AlreadyDone),
            Report::GivenBack if known.is_start_parked() => {
                return Err(RefusedBecause::AlreadyStarted);
            }
            Report::Arrived | Report::Started => self.abandon_incoming(ride),
            Report::Declined | Report::Completed | Report::GivenBack => {}
        }
        match report {
            Report::Received | Report::Accepted => return Ok(Outcome::AlreadyDone),
            Report::Arrived if arrived => return Ok(Outcome::AlreadyDone),
            Report::Declined => return Err(RefusedBecause::AlreadyAccepted),
            Report::Completed => return Err(RefusedBecause::NotStarted),
            Report::Arrived => self.emit(DriverArrived {
                ride,
                ride_seq: self.ride_seq(ride),
                driver: driver.clone(),
                attempt,
                start_by: self.time.plus_ms(self.config.no_show_ms),
            }),
            Report::Started => self.emit(RideStarted {
                ride,
                ride_seq: self.ride_seq(ride),
                driver: driver.clone(),
                attempt,
                complete_by: self.time.plus_ms(self.config.longest_ride_ms),
            }),
            Report::GivenBack => self.part(ride, Parting::Lost(LostBecause::GaveBack)),
        }
        Ok(Outcome::Done)
    }

    // -- partings and ends: the only places that give a hold back -----------------------------------------------

    /// Gives the hold or claim back, if the ride has one; `place` is what becomes of its driver's place in a queue.
    fn let_go(&mut self, ride: RideId, place: PlaceAfter) {
        let Some(known) = self.rides.get(&ride) else {
            return;
        };
        let first = known
            .driver()
            .filter(|_| !known.exchange.is_moved() && !self.broken(Sabotage::DropRelease))
            .map(|driver| (driver.clone(), known.hold(), place));
        let second = known
            .exchange
            .incoming
            .as_ref()
            .filter(|_| !self.broken(Sabotage::KeepIncoming))
            .map(|incoming| {
                let attempt = incoming.attempt;
                let hold = HoldId { ride, attempt };
                (incoming.driver.clone(), hold, PlaceAfter::Kept)
            });
        for (driver, hold, place) in first.into_iter().chain(second) {
            self.send(Command::ReleaseDriver {
                driver,
                hold,
                place,
            });
        }
    }

    fn abandon_claim(&mut self, ride: RideId) {
        self.let_go(ride, PlaceAfter::Kept);
        let known = &self.rides[&ride];
        if let Some(driver) = known.driver().cloned() {
            let (attempt, ride_seq) = (known.attempt, self.ride_seq(ride));
            self.emit(ClaimAbandoned {
                ride,
                ride_seq,
                driver,
                attempt,
            });
        }
    }

    /// The ride goes back to waiting, or ends when it has lost or asked too many.
    pub(super) fn part(&mut self, ride: RideId, parting: Parting) {
        let known = &self.rides[&ride];
        let Some(driver) = known.driver().cloned() else {
            return;
        };
        let (attempt, ride_seq) = (known.hold().attempt, self.ride_seq(ride));
        let (deadline, redispatches) = (known.deadline, known.redispatches + 1);
        let parked = known.exchange.parked.clone();
        let place = match parting {
            Parting::Lost(_) => PlaceAfter::Gone,
            Parting::Declined(_) | Parting::Expired(_) if known.airport.is_some() => {
                PlaceAfter::TurnedDown
            }
            Parting::Declined(_) | Parting::Expired(_) => PlaceAfter::Kept,
        };
        self.let_go(ride, place);
        match parting {
            Parting::Declined(why) => {
                self.emit(OfferDeclined {
                    ride,
                    ride_seq,
                    driver,
                    attempt,
                    why,
                });
            }
            Parting::Expired(why) => self.emit(OfferExpired {
                ride,
                ride_seq,
                driver,
                attempt,
                why,
            }),
            Parting::Lost(why) => {
                let patience = self.time.plus_ms(self.config.redispatch_patience_ms);
                let deadline = deadline.max(patience);
                let lost = DriverLost {
                    ride,
                    ride_seq,
                    driver,
                    attempt,
                    why,
                    deadline,
                    redispatches,
                };
                self.emit(lost);
                self.turn_away(ride, parked, RefusedBecause::Lapsed);
                if redispatches > self.config.redispatch_max {
                    self.finish(
                        ride,
                        Ending::Unfulfilled(UnfulfilledBecause::RedispatchLimit),
                    );
                    return;
                }
            }
        }
        if self.rides[&ride].asked.len() >= self.config.asked_max {
            self.finish(
                ride,
                Ending::Unfulfilled(UnfulfilledBecause::EverybodyAsked),
            );
        }
    }

    /// The ride comes to its end; its driver and its rider are free.
    pub(super) fn finish(&mut self, ride: RideId, ending: Ending) {
        let known = &self.rides[&ride];
        let ride_seq = self.ride_seq(ride);
        let driver = known.driver().filter(|_| !known.exchange.is_moved());
        let (attempt, driver) = (known.hold().attempt, driver.cloned());
        let parked = known.exchange.parked.clone();
        let (rider, key) = (known.rider.clone(), known.key.clone());
        let keep_until = self.time.plus_ms(self.config.ended_ride_memory_ms);
        let is_taken = match known.stage {
            Stage::Waiting | Stage::Claiming { .. } | Stage::Offered { .. } => false,
            Stage::EnRoute { .. }
            | Stage::Arrived { .. }
            | Stage::Started { .. }
            | Stage::Ended { .. } => true,
        };
        // Who took an airport's ride and whose rider does not come is where they were before.
        let is_called_off = matches!(ending, Ending::Cancelled(..)) && known.airport.is_some();
        let place = match is_taken && !is_called_off {
            true => PlaceAfter::Gone,
            false => PlaceAfter::Kept,
        };
        self.let_go(ride, place);
        let end = match (ending, driver) {
            (Ending::Completed(why), Some(driver)) => {
                self.emit(RideCompleted {
                    ride,
                    ride_seq,
                    driver,
                    attempt,
                    why,
                    keep_until,
                });
                EndOfRide::Completed
            }
            (Ending::Completed(_), None) => unreachable!("only a started ride is completed"),
            (Ending::Cancelled(by, reason), driver) => {
                self.emit(RideCancelled {
                    ride,
                    ride_seq,
                    by,
                    driver,
                    keep_until,
                    reason,
                });
                EndOfRide::Cancelled
            }
            (Ending::Unfulfilled(why), _) => {
                self.emit(RideUnfulfilled {
                    ride,
                    ride_seq,
                    why,
                    keep_until,
                });
                EndOfRide::Unfulfilled
            }
        };
        self.turn_away(ride, parked, RefusedBecause::Ended);
        if !self.broken(Sabotage::ForgetToFreeRider) {
            self.send(Command::RideClosed {
                rider,
                key,
                ride,
                end,
            });
        }
    }

    // -- timers ----------------------------------------------------------------------------------------------

    pub(super) fn ride_timer(&mut self, id: RideId) {
        let now = self.time;
        let Some(ride) = self.rides.get(&id) else {
            return;
        };
        let past_deadline = ride.deadline <= now;
        match ride.stage {
            Stage::Waiting if past_deadline => {
                self.finish(id, Ending::Unfulfilled(UnfulfilledBecause::Deadline));
            }
            Stage::Waiting => self.widen(id),
            Stage::Claiming { .. } | Stage::Offered { .. } if past_deadline => {
                self.finish(id, Ending::Unfulfilled(UnfulfilledBecause::Deadline));
            }
            Stage::Claiming { .. } => self.abandon_claim(id),
            Stage::Offered {
                received: false, ..
            } => {
                self.part(id, Parting::Expired(ExpiredBecause::NoReceipt));
            }
            Stage::Offered { received: true, .. } => {
                self.part(id, Parting::Expired(ExpiredBecause::NoAnswer));
            }
            Stage::EnRoute { until, .. } if until <= now => {
                self.part(id, Parting::Lost(LostBecause::NeverArrived));
            }
            Stage::EnRoute { .. } => {
                let asked = match ride.consent {
                    Some(Consent::Asked { until, .. }) => until <= now,
                    Some(Consent::Agreed { .. } | Consent::Kept) | None => false,
                };
                if let (true, Some(driver)) = (asked, ride.driver().cloned()) {
                    let _ = self.answer_swap(ride.hold(), &driver, SwapAnswer::NoAnswer);
                    return;
                }
                self.abandon_incoming(id);
                self.settle(id);
            }
            Stage::Arrived { .. } => self.finish(id, Ending::Cancelled(CancelledBy::NoShow, None)),
            Stage::Started { .. } => {
                self.finish(id, Ending::Completed(CompletedBecause::LongestRide));
            }
            Stage::Ended { .. } => {
                // Forgetting an ended ride changes nothing anybody can see: no event follows the end.
                self.rides.remove(&id);
                self.effects.changed.insert(EntityId::Ride(id));
            }
        }
    }

    fn widen(&mut self, ride: RideId) {
        let known = &self.rides[&ride];
        let (step, most) = (self.config.radius_step_m, self.config.radius_max_m);
        let most = if self.broken(Sabotage::WidenForEver) {
            u32::MAX
        } else {
            most
        };
        let radius_m = known.radius_m.saturating_add(step).min(most);
        let widen_at = next_after(known.widen_at, self.config.widen_every_ms, self.time);
        self.emit(SearchWidened {
            ride,
            ride_seq: self.ride_seq(ride),
            radius_m,
            widen_at,
        });
    }
}

/// The first instant after `now` on the grid that starts at `from`.
fn next_after(from: Time, every_ms: u64, now: Time) -> Time {
    let late_ms = u64::try_from(now.since(from)).unwrap_or(0);
    from.plus_ms((late_ms / every_ms + 1) * every_ms)
}
