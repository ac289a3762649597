//! Rides of one place shard exchange cars (PROTOCOL 6).
//!
//! A ride with a driver on the way has one hold and at most one second one. A swap goes move by move: the first ride
//! claims a free car, or asks for the one the last ride has; once that is granted, the car it has goes to the next
//! ride, and so on. So all that a swap keeps is in the two rides of the move under way, and a ride that waits for its
//! turn knows nothing of it. When all of a ride is answered it keeps the second hold and gives the first back; with
//! none left it waits again, in its old place in the queue.
//!
//! Holds: while the first hold may be another ride's, arrival and start wait. If it was moved and its driver has said
//! so, the car is brought back by a transfer of its own, and then they apply: whoever is in the car stays in the car.
//! A ride that may lose no driver any more takes no part, nor one that has changed it `swaps_max` times. A ride that gives
//! its car up is asked for it like any other that lends one, and with none left it waits again.

use std::collections::BTreeSet;

use cabrank_events::command::{
    ClaimRefusal, EntityId, Outcome, PlaceAfter, RefusedBecause, TransferAnswer,
};
use cabrank_events::event::{
    ClaimAbandoned, ClaimDenied, DriverClaimed, DriverReassigned, HoldAsked, HoldKept, HoldMoved,
    LostBecause, Move, OfferMade, ReportWaits, RideReport, SecondHoldGranted, SwapAnswer,
    SwapAnswered, SwapAsked, UnfulfilledBecause,
};
use cabrank_events::{Command, CommandId, DriverId, HoldId, RideId};

use super::Shard;
use crate::config::SwapConsent;
use crate::matching::{GivesUp, SWAP_MOVES_MAX, Swap};
use crate::ride::{Consent, Ending, Outgoing, PARKED_MAX, Parked, Parting, Ride, Stage};
use crate::sabotage::Sabotage;

impl Shard {
    // -- a swap, move by move --------------------------------------------------------------------------------

    /// Begins a swap of a round, if every ride in it is as the round saw it.
    pub(super) fn begin_swap(&mut self, swap: &Swap) {
        let Some((first, rest)) = swap.moves.split_first() else {
            return;
        };
        if !self.fits(&swap.moves) {
            return;
        }
        let lender = match &swap.gives_up {
            Some(gives_up) if self.may_give_up(gives_up, swap) => self.rides.get(&gives_up.ride),
            Some(_) => return,
            None => {
                let last = swap.moves.last();
                last.and_then(|last| self.rides.get(&last.ride))
            }
        };
        let from = lender
            .filter(|ride| ride.driver() == Some(&first.driver))
            .map(Ride::hold);
        if self.all_agree(swap) {
            self.claim_for(first, from, rest);
        }
    }

    /// Is this ride as the round saw it, may it lose its car to the first ride of the swap, and does one that waits get a
    /// car for it?
    fn may_give_up(&self, gives_up: &GivesUp, swap: &Swap) -> bool {
        let gets = swap.moves.first().map(|first| &first.driver);
        let last = swap.moves.last();
        let one_waits = last
            .and_then(|last| self.rides.get(&last.ride))
            .is_some_and(|ride| matches!(ride.stage, Stage::Waiting));
        one_waits
            && self.rides.get(&gives_up.ride).is_some_and(|ride| {
                matches!(ride.stage, Stage::EnRoute { .. })
                    && ride.seq == gives_up.version
                    && ride.exchange.is_idle()
                    && ride.driver() == gets
                    && ride.may_lose_driver(&self.config)
                    && swap.moves.iter().all(|next| next.ride != ride.id)
            })
    }

    /// Have all drivers agreed whose rides would go to others? Who was not asked yet is asked now; the exchange is left
    /// to a later round, which knows better by then whether it still pays.
    fn all_agree(&mut self, swap: &Swap) -> bool {
        if self.config.swap_consent == SwapConsent::Tell || self.broken(Sabotage::NobodyAsked) {
            return true;
        }
        let now = self.time;
        let gives_up = swap.gives_up.iter().map(|gives_up| gives_up.ride);
        let lose = swap.moves.iter().map(|next| next.ride).chain(gives_up);
        let lacking = lose.filter_map(|ride| {
            let ride = self.rides.get(&ride)?;
            let agreed = matches!(ride.consent, Some(Consent::Agreed { until }) if until >= now);
            let driver = ride.driver().filter(|_| !agreed)?;
            Some((ride.hold(), driver.clone(), ride.consent))
        });
        let lacking: Vec<_> = lacking.collect();
        let gain_s = swap.moves.iter().map(|next| next.gain_s).sum();
        for (hold, driver, consent) in &lacking {
            if matches!(consent, Some(Consent::Asked { .. } | Consent::Kept)) {
                continue;
            }
            self.emit(SwapAsked {
                ride: hold.ride,
                ride_seq: self.ride_seq(hold.ride),
                driver: driver.clone(),
                attempt: hold.attempt,
                gain_s,
                answer_by: now.plus_ms(self.config.swap_answer_ms),
            });
            self.reindex(&EntityId::Ride(hold.ride));
        }
        lacking.is_empty()
    }

    /// The driver on the way says whether the ride may go to another one; `None`: nobody has asked.
    pub(super) fn answer_swap(
        &mut self,
        hold: HoldId,
        driver: &DriverId,
        answer: SwapAnswer,
    ) -> Option<()> {
        let ride = self.rides.get(&hold.ride)?;
        if !matches!(ride.consent, Some(Consent::Asked { .. })) {
            return None;
        }
        self.emit(SwapAnswered {
            ride: hold.ride,
            ride_seq: self.ride_seq(hold.ride),
            driver: driver.clone(),
            attempt: hold.attempt,
            answer,
            until: self.time.plus_ms(self.config.swap_agreed_ms),
        });
        Some(())
    }

    fn fits(&self, moves: &[Move]) -> bool {
        let mut seen: BTreeSet<RideId> = BTreeSet::new();
        let mut passed_on: Option<&DriverId> = None;
        let all_fit = moves.iter().enumerate().all(|(at, next)| {
            let Some(ride) = self.rides.get(&next.ride) else {
                return false;
            };
            let is_handed_on = at == 0 || passed_on == Some(&next.driver);
            passed_on = ride.driver();
            is_handed_on
                && seen.insert(next.ride)
                && ride.seq == next.version
                && ride.exchange.is_idle()
                && self.may_gain(ride, &next.driver)
        });
        all_fit && moves.len() <= SWAP_MOVES_MAX
    }

    /// Is this a ride that could get `driver` by a swap?
    fn may_gain(&self, ride: &Ride, driver: &DriverId) -> bool {
        let patience = self.config.request_patience_ms;
        let takes_part = match ride.stage {
            Stage::Waiting => ride.looked || ride.issued_at.plus_ms(patience) >= self.time,
            Stage::EnRoute { .. } => self.may_change_driver(ride),
            Stage::Claiming { .. }
            | Stage::Offered { .. }
            | Stage::Arrived { .. }
            | Stage::Started { .. }
            | Stage::Ended { .. } => false,
        };
        takes_part
            && ride.driver() != Some(driver)
            && !ride.asked.contains(driver)
            && ride.asked.len() < self.config.asked_max
    }

    /// A ride asks for a car: a free one, or the one that is held by `from`. `then` is what follows once it has both.
    pub(super) fn claim_for(&mut self, next: &Move, from: Option<HoldId>, then: &[Move]) {
        let (ride, driver) = (next.ride, next.driver.clone());
        let known = &self.rides[&ride];
        let brings_back = known.exchange.is_moved() && from.is_some() && then.is_empty();
        let attempt = match known.attempt {
            0 => 1,
            last if self.broken(Sabotage::ReuseAttempt) => last,
            last if brings_back && self.broken(Sabotage::ReuseCounterAttempt) => last,
            last => last + 1,
        };
        let hold = HoldId { ride, attempt };
        let (class, rider) = (known.class, known.rider.clone());
        let mut then = then.to_vec();
        if let Some(from) = from
            && self.has_now(from, &driver)
        {
            self.emit(HoldAsked {
                ride: from.ride,
                ride_seq: self.ride_seq(from.ride),
                driver: driver.clone(),
                attempt: from.attempt,
                by: hold,
            });
            // Its turn comes at the end of the circle; all that may happen to it before is that its hold has moved.
            let version = self.rides[&from.ride].seq + 1;
            let waits = then.iter_mut().filter(|later| later.ride == from.ride);
            waits.for_each(|later| later.version = version);
            self.reindex(&EntityId::Ride(from.ride));
        }
        self.emit(DriverClaimed {
            ride,
            ride_seq: self.ride_seq(ride),
            driver: driver.clone(),
            attempt,
            answer_by: self.time.plus_ms(self.config.claim_answer_ms),
            from,
            then,
            gain_s: next.gain_s,
        });
        self.send(match from {
            Some(from) => Command::TransferHold {
                driver,
                from,
                hold,
                class,
                rider,
            },
            None => Command::ClaimDriver {
                driver,
                hold,
                class,
                rider: Some(rider),
            },
        });
        self.reindex(&EntityId::Ride(ride));
    }

    /// Is `hold` the one its ride has now?
    fn has_now(&self, hold: HoldId, driver: &DriverId) -> bool {
        self.rides
            .get(&hold.ride)
            .is_some_and(|ride| ride.holds(hold, driver))
    }

    /// A second hold that is asked for and not answered.
    fn is_asking(&self, hold: HoldId, driver: &DriverId) -> bool {
        self.rides.get(&hold.ride).is_some_and(|ride| {
            let incoming = ride.exchange.incoming.as_ref();
            ride.exchange.has_incoming(hold.attempt, driver)
                && incoming.is_some_and(|incoming| incoming.granted.is_none())
        })
    }

    // -- answers ---------------------------------------------------------------------------------------------

    /// A claim or a transfer was granted: does its ride take it?
    pub(super) fn gained(&mut self, hold: HoldId, driver: &DriverId, hold_number: u64) -> bool {
        let ride = hold.ride;
        if self.is_claiming(hold, driver) {
            self.emit(OfferMade {
                ride,
                ride_seq: self.ride_seq(ride),
                driver: driver.clone(),
                attempt: hold.attempt,
                hold_number,
                receipt_by: self.time.plus_ms(self.config.offer_receipt_ms),
            });
        } else if self.is_asking(hold, driver) {
            self.emit(SecondHoldGranted {
                ride,
                ride_seq: self.ride_seq(ride),
                driver: driver.clone(),
                attempt: hold.attempt,
                hold_number,
            });
            match self.next_move(ride) {
                Some((next, rest)) => {
                    let from = Some(self.rides[&ride].hold());
                    self.claim_for(&next, from, &rest);
                }
                None => self.settle(ride),
            }
        } else {
            return false;
        }
        self.reindex(&EntityId::Ride(ride));
        true
    }

    /// Who gets the car this ride has now, if that still fits.
    fn next_move(&self, ride: RideId) -> Option<(Move, Vec<Move>)> {
        let known = self.rides.get(&ride)?;
        let (next, rest) = known.exchange.incoming.as_ref()?.then.split_first()?;
        let gets = self.rides.get(&next.ride)?;
        let fits = matches!(known.stage, Stage::EnRoute { .. })
            && known.exchange.outgoing.is_none()
            && known.driver() == Some(&next.driver)
            && gets.seq == next.version
            && gets.exchange.incoming.is_none()
            && !gets.exchange.is_asked()
            && self.may_gain(gets, &next.driver);
        fits.then(|| (next.clone(), rest.to_vec()))
    }

    /// A claim or a transfer was refused.
    pub(super) fn denied(
        &mut self,
        hold: HoldId,
        driver: &DriverId,
        why: ClaimRefusal,
        driver_seq: u64,
    ) {
        if !self.is_claiming(hold, driver) && !self.is_asking(hold, driver) {
            return;
        }
        let ride = hold.ride;
        self.emit(ClaimDenied {
            ride,
            ride_seq: self.ride_seq(ride),
            driver: driver.clone(),
            attempt: hold.attempt,
            why,
            driver_seq,
        });
        let known = &self.rides[&ride];
        if matches!(known.stage, Stage::Waiting) && known.asked.len() >= self.config.asked_max {
            // Those who are kept apart from the rider count as asked.
            let ending = Ending::Unfulfilled(UnfulfilledBecause::EverybodyAsked);
            self.finish(ride, ending);
        }
        self.settle(ride);
        self.reindex(&EntityId::Ride(ride));
    }

    /// The driver's entity has answered a transfer from one ride of this shard to another.
    pub(super) fn transfer_answered(
        &mut self,
        driver: &DriverId,
        from: HoldId,
        hold: HoldId,
        answer: &TransferAnswer,
    ) {
        let asked = self.rides.get(&from.ride).is_some_and(|lender| {
            lender.holds(from, driver)
                && lender.exchange.outgoing == Some(Outgoing::Asked { by: hold })
        });
        match *answer {
            TransferAnswer::Moved { hold_number } => {
                if asked && self.has_moved(from, driver) {
                    self.bring_back(from.ride, driver, hold);
                    return;
                }
                if !self.gained(hold, driver, hold_number) {
                    self.give_back_unwanted(hold, driver, PlaceAfter::Gone);
                }
                if asked {
                    self.settle(from.ride);
                }
            }
            TransferAnswer::Refused {
                why,
                driver_seq,
                stands,
            } => {
                self.denied(hold, driver, why, driver_seq);
                match (asked, stands) {
                    (true, true) => self.keeps(from, driver, why),
                    (true, false) => {
                        self.has_moved(from, driver);
                        self.settle(from.ride);
                    }
                    (false, true) if !self.broken(Sabotage::KeepStrayHold) => {
                        self.give_back_unwanted(from, driver, PlaceAfter::Gone);
                    }
                    (false, _) => {}
                }
            }
        }
        self.reindex(&EntityId::Ride(from.ride));
    }

    /// The hold is another ride's now. Has its driver reported something meanwhile?
    fn has_moved(&mut self, from: HoldId, driver: &DriverId) -> bool {
        self.emit(HoldMoved {
            ride: from.ride,
            ride_seq: self.ride_seq(from.ride),
            driver: driver.clone(),
            attempt: from.attempt,
        });
        !self.rides[&from.ride].exchange.parked.is_empty() && !self.broken(Sabotage::NeverBringBack)
    }

    /// Nobody wants this hold, else the driver would be held for ever (PROTOCOL 3).
    pub(super) fn give_back_unwanted(
        &mut self,
        hold: HoldId,
        driver: &DriverId,
        place: PlaceAfter,
    ) {
        let wanted = self
            .rides
            .get(&hold.ride)
            .is_some_and(|ride| ride.wants(hold, driver));
        if !wanted && !self.broken(Sabotage::KeepUnwantedGrant) {
            self.send(Command::ReleaseDriver {
                driver: driver.clone(),
                hold,
                place,
            });
        }
    }

    /// Undoes a move: the driver says that this ride's rider is there, so the car that has just become `hold` of the
    /// other ride is asked back. The other ride goes on with what it has.
    fn bring_back(&mut self, ride: RideId, driver: &DriverId, hold: HoldId) {
        if self.is_claiming(hold, driver) || self.is_asking(hold, driver) {
            self.emit(ClaimAbandoned {
                ride: hold.ride,
                ride_seq: self.ride_seq(hold.ride),
                driver: driver.clone(),
                attempt: hold.attempt,
            });
        }
        self.abandon_incoming(ride);
        let back = Move {
            ride,
            version: self.rides[&ride].seq,
            driver: driver.clone(),
            gain_s: 0,
        };
        self.claim_for(&back, Some(hold), &[]);
        self.settle(hold.ride);
        self.reindex(&EntityId::Ride(hold.ride));
    }

    /// The hold that was asked for stays. What waited for that applies.
    fn keeps(&mut self, hold: HoldId, driver: &DriverId, why: ClaimRefusal) {
        let ride = hold.ride;
        let parked = self.rides[&ride].exchange.parked.clone();
        if !parked.is_empty() {
            self.abandon_incoming(ride);
        }
        self.emit(HoldKept {
            ride,
            ride_seq: self.ride_seq(ride),
            driver: driver.clone(),
            attempt: hold.attempt,
        });
        self.apply_parked(ride, parked);
        let goes_home = matches!(why, ClaimRefusal::Leaving | ClaimRefusal::Suspended);
        let known = &self.rides[&ride];
        let is_before_start = matches!(known.stage, Stage::EnRoute { .. } | Stage::Arrived { .. });
        if goes_home && is_before_start && known.exchange.incoming.is_none() {
            self.part(ride, Parting::Lost(LostBecause::Left));
        } else {
            self.settle(ride);
        }
    }

    /// When all of a ride is answered it keeps one hold and gives back the other; with none it waits again.
    pub(super) fn settle(&mut self, ride: RideId) {
        let Some(known) = self.rides.get(&ride) else {
            return;
        };
        let Stage::EnRoute { driver: before, .. } = known.stage.clone() else {
            return;
        };
        let exchange = known.exchange.clone();
        let granted = exchange
            .incoming
            .as_ref()
            .and_then(|incoming| Some((incoming, incoming.granted?)));
        match (exchange.outgoing, granted) {
            (Some(Outgoing::Asked { .. }), _) => {}
            (_, Some((incoming, hold_number))) => {
                if !exchange.is_moved() && !self.broken(Sabotage::KeepBoth) {
                    let (hold, driver) = (known.hold(), before.clone());
                    let place = PlaceAfter::Gone;
                    self.send(Command::ReleaseDriver {
                        driver,
                        hold,
                        place,
                    });
                }
                self.emit(DriverReassigned {
                    ride,
                    ride_seq: self.ride_seq(ride),
                    driver: incoming.driver.clone(),
                    attempt: incoming.attempt,
                    hold_number,
                    before,
                    arrive_by: self.time.plus_ms(self.config.arrival_ms),
                    gained_s: incoming.gain_s,
                    instead_of: incoming.instead_of,
                });
                self.apply_parked(ride, exchange.parked);
            }
            (Some(Outgoing::Moved), None) if exchange.incoming.is_none() => {
                self.part(ride, Parting::Lost(LostBecause::Moved));
            }
            (Some(Outgoing::Moved) | None, None) => {}
        }
    }

    /// The second hold, or the claim for it, is given back.
    pub(super) fn abandon_incoming(&mut self, ride: RideId) {
        let Some(incoming) = self
            .rides
            .get(&ride)
            .and_then(|r| r.exchange.incoming.clone())
        else {
            return;
        };
        let (driver, attempt) = (incoming.driver.clone(), incoming.attempt);
        self.send(Command::ReleaseDriver {
            driver: driver.clone(),
            hold: HoldId { ride, attempt },
            place: PlaceAfter::Kept,
        });
        self.emit(ClaimAbandoned {
            ride,
            ride_seq: self.ride_seq(ride),
            driver,
            attempt,
        });
    }

    // -- reports that wait -----------------------------------------------------------------------------------

    /// Puts a report aside while its hold may be another ride's. `None`: it need not wait.
    pub(super) fn park(
        &mut self,
        id: Option<&CommandId>,
        report: RideReport,
        hold: HoldId,
        driver: &DriverId,
    ) -> Option<Result<(), RefusedBecause>> {
        let known = self.rides.get(&hold.ride)?;
        let parked = &known.exchange.parked;
        // It may go, or it went and is being brought back.
        let waits = known.exchange.is_asked() || known.exchange.is_moved() && !parked.is_empty();
        let is_theirs = known.hold() == hold && known.driver() == Some(driver);
        if !waits || !is_theirs || self.broken(Sabotage::ReportInTransfer) {
            return None;
        }
        if id.is_some() && parked.iter().any(|earlier| earlier.command.as_ref() == id) {
            return Some(Ok(())); // the outcome resolves this repeat, too
        }
        if report == RideReport::Completed && !known.is_start_parked() {
            return Some(Err(RefusedBecause::NotStarted));
        }
        if parked.len() >= PARKED_MAX {
            return Some(Err(RefusedBecause::InTransfer));
        }
        self.emit(ReportWaits {
            ride: hold.ride,
            ride_seq: self.ride_seq(hold.ride),
            driver: driver.clone(),
            attempt: hold.attempt,
            report,
            command: id.cloned(),
        });
        Some(Ok(()))
    }

    fn apply_parked(&mut self, ride: RideId, parked: Vec<Parked>) {
        if self.broken(Sabotage::ForgetParked) {
            return;
        }
        for Parked {
            driver,
            report,
            command,
        } in parked
        {
            let hold = self.rides[&ride].hold();
            let answer = self.report(report.into(), hold, &driver);
            let outcome = answer.unwrap_or_else(|why| Outcome::Refused { why });
            self.answer(command.as_ref(), &EntityId::Ride(ride), outcome, Some(ride));
        }
    }

    /// What waited comes to nothing: the ride is over, or no longer this driver's.
    pub(super) fn turn_away(&mut self, ride: RideId, parked: Vec<Parked>, why: RefusedBecause) {
        if self.broken(Sabotage::ForgetParked) {
            return;
        }
        for Parked { command, .. } in parked {
            let outcome = Outcome::Refused { why };
            self.answer(command.as_ref(), &EntityId::Ride(ride), outcome, Some(ride));
        }
    }
}
