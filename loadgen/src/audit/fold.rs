//! What do the events add up to, and was each step possible?
//!
//! A shard's events are taken in the order of its sequence; rides, drivers and riders each have a small fold of their own.
//! After that the folds are compared with each other across shards (`across`), and with `shard-state` (`state`).
//! A log whose oldest events were dropped by retention begins in the middle: then the first step of an entity is believed.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::homes::{Home, Life, arrived, first_new, movers, person_of};
use super::{Audit, AuditReport, Findings, Name, Names, Step, What, across, state};

/// Where a ride is in its life, as far as the events tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// The first event seen was not the first there was.
    Somewhere,
    Waiting,
    Offered,
    EnRoute,
    Arrived,
    Started,
    Completed,
    Cancelled,
    Unfulfilled,
}

impl Stage {
    pub(super) fn is_end(self) -> bool {
        matches!(
            self,
            Stage::Completed | Stage::Cancelled | Stage::Unfulfilled
        )
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Stage::Somewhere => "unknown",
            Stage::Waiting => "waiting",
            Stage::Offered => "offered",
            Stage::EnRoute => "en_route",
            Stage::Arrived => "arrived",
            Stage::Started => "started",
            Stage::Completed => "completed",
            Stage::Cancelled => "cancelled",
            Stage::Unfulfilled => "unfulfilled",
        }
    }
}

/// A driver and the ride's attempt that claims or holds them.
pub(super) type Hold = (Name, u64);

#[derive(Debug)]
pub(super) struct Ride {
    pub shard: u16,
    pub seq: u64,
    pub stage: Stage,
    pub claim: Option<Hold>,
    pub hold: Option<Hold>,
    /// A second hold, asked for or granted, of a ride with a driver on the way.
    pub incoming: Option<Hold>,
    /// The hold (ride, attempt) its driver may go to.
    pub asked_by: Option<(Name, u64)>,
    /// Its driver went there, and no other has come yet.
    pub is_moved: bool,
    pub rider: Option<Name>,
    pub attempts: u64,
    pub last_at: String,
}

/// A driver's numbers do not begin at 1: they go on from the shard's, so that one who comes back has larger ones.
#[derive(Debug)]
pub(super) struct Driver {
    pub shard: u16,
    pub seq: u64,
    /// Seen from its first event on.
    pub whole: bool,
    pub is_online: bool,
    pub session: u64,
    pub is_leaving: bool,
    pub is_forgotten: bool,
    pub is_suspended: bool,
    /// Riders kept apart from.
    pub blocked: BTreeSet<Name>,
    /// Handed over and not yet taken over.
    pub is_away: bool,
    /// Ride, attempt, number.
    pub hold: Option<(Name, u64, u64)>,
    pub holds: Option<u64>,
    pub last_at: String,
}

#[derive(Debug)]
pub(super) struct Rider {
    pub shard: u16,
    pub seq: u64,
    pub ride: Option<Name>,
    pub is_forgotten: bool,
    /// Handed over and not yet taken over.
    pub is_away: bool,
}

#[derive(Debug, Default)]
pub(super) struct Folds {
    pub rides: BTreeMap<Name, Ride>,
    pub drivers: BTreeMap<Name, Driver>,
    pub riders: BTreeMap<Name, Rider>,
    /// (driver, hold number) -> (ride, attempt), as the drivers' events say.
    pub holds: HashMap<(Name, u64), Hold>,
    /// The same as the rides' events say.
    pub held_for: Vec<(Name, u64, Hold, u16, String)>,
    /// Rides that held a driver who is kept apart from some riders, and from whom.
    pub kept_apart: Vec<(Name, Name, BTreeSet<Name>, u16, String)>,
    /// Rides that must exist, and why.
    pub promised: Vec<(Name, &'static str)>,
    /// Rides riders were freed of, and the end they were told.
    pub freed: Vec<(Name, Name)>,
    pub truncated: HashSet<u16>,
    /// The log was read while it was written, one partition after the other.
    pub reads_late: bool,
    /// The least shard that a growth has made: people move from any shard to this one or those after it, and nowhere else.
    pub first_new: Option<u16>,
    /// Those whom the log says to have gone from shard to shard, and whether each is a driver.
    pub moved: HashSet<(bool, Name)>,
}

impl Folds {
    /// Are the oldest events of this shard gone?
    pub(super) fn is_truncated(&self, shard: u16) -> bool {
        self.truncated.contains(&shard)
    }
}

pub(super) fn judge(audit: &mut Audit, report: &mut AuditReport) {
    let mut folds = Folds {
        reads_late: audit.options.live,
        ..Folds::default()
    };
    for (shard, state) in std::mem::take(&mut audit.bases) {
        state::preload(&mut folds, &mut audit.names, shard, &state);
    }
    let shards = std::mem::take(&mut audit.shards);
    folds.moved = movers(&shards);
    folds.first_new = first_new(&shards, &audit.states);
    let mut of_movers: Vec<(u16, Step)> = Vec::new();
    for (shard, mut steps) in shards {
        steps.sort_by_key(|step| (step.seq, step.offset));
        if sequence(shard, &steps, &audit.names, &mut audit.findings) {
            folds.truncated.insert(shard);
        }
        let mut last = 0;
        for step in &steps {
            let is_new = step.seq != last;
            last = step.seq;
            let person = person_of(step, &audit.names);
            if is_new && person.is_some_and(|one| folds.moved.contains(&one)) {
                of_movers.push((shard, step.clone()));
            } else if is_new {
                folds.take(shard, step, &audit.names, &mut audit.findings);
            }
        }
    }
    // Whose life goes on in another shard, by their own numbers, which know of no shard.
    of_movers.sort_by_key(|(shard, step)| (step.own_seq, *shard));
    for (shard, step) in &of_movers {
        folds.take(*shard, step, &audit.names, &mut audit.findings);
    }
    arrived(&folds, audit);
    across::agree(audit, &folds, report);
    across::promises(audit, &folds);
    state::compare(audit, &folds, report);
    report.rides = folds.rides.len() as u64;
    report.drivers = folds.drivers.len() as u64;
    report.riders = folds.riders.len() as u64;
    for ride in folds.rides.values() {
        if ride.stage.is_end() {
            *report.ends.entry(ride.stage.name().to_owned()).or_default() += 1;
        } else {
            report.open += 1;
        }
    }
}

fn at(names: &Names, shard: u16, step: &Step) -> String {
    format!("{}/{shard}@{}", names.text(step.topic), step.offset)
}

/// The shard's own sequence: no gap, no doubled id, topics in order. Answers whether the oldest events are gone.
fn sequence(shard: u16, steps: &[Step], names: &Names, findings: &mut Findings) -> bool {
    let mut first_of: HashMap<Name, (u64, u64)> = HashMap::new();
    for step in steps {
        let first = first_of
            .entry(step.topic)
            .or_insert((step.seq, step.offset));
        *first = (first.0.min(step.seq), first.1.min(step.offset));
    }
    // Topics may have been cut at different places: only from the latest cut on must all be there.
    let cut = first_of
        .values()
        .filter(|(_, offset)| *offset > 0)
        .map(|(seq, _)| *seq)
        .max();
    let Some(oldest) = steps.first() else {
        return false;
    };
    if cut.is_none() && oldest.seq != 1 {
        let what = format!("the shard's first event has number {}, not 1", oldest.seq);
        findings
            .add(3, what)
            .shard(shard)
            .at(at(names, shard, oldest));
    }
    let whole_from = cut.unwrap_or(1);
    let mut last_offset: HashMap<Name, u64> = HashMap::new();
    for (index, step) in steps.iter().enumerate() {
        let here = || at(names, shard, step);
        if let Some(before) = index.checked_sub(1).and_then(|before| steps.get(before)) {
            if before.seq == step.seq {
                let what = format!("event id {shard}-{} is doubled", step.seq);
                findings
                    .add(3, what)
                    .shard(shard)
                    .at(at(names, shard, before))
                    .at(here());
                continue;
            }
            if before.seq + 1 != step.seq && before.seq >= whole_from {
                let missing = format!("{} to {}", before.seq + 1, step.seq - 1);
                let what = format!("the shard's events {missing} are missing");
                findings
                    .add(3, what)
                    .shard(shard)
                    .at(at(names, shard, before))
                    .at(here());
            }
        }
        if last_offset
            .insert(step.topic, step.offset)
            .is_some_and(|last| last >= step.offset)
        {
            let what = format!("event {shard}-{} stands before an older one", step.seq);
            findings.add(3, what).shard(shard).at(here());
        }
    }
    oldest.seq != 1
}

/// Where a step stands, for violations.
pub(super) struct Here<'a> {
    pub shard: u16,
    pub step: &'a Step,
    pub names: &'a Names,
    truncated: bool,
}

impl Here<'_> {
    fn at(&self) -> String {
        at(self.names, self.shard, self.step)
    }

    pub(super) fn name(&self) -> &str {
        self.names.text(self.step.name)
    }

    pub(super) fn bad(&self, findings: &mut Findings, invariant: u8, what: String) {
        let mut finding = findings
            .add(invariant, what)
            .shard(self.shard)
            .at(self.at());
        if let Some(ride) = self.step.ride {
            finding = finding.ride(self.names.text(ride));
        }
        if let Some(driver) = self.step.driver {
            drop(finding.driver(self.names.text(driver)));
        }
    }

    /// Checks an entity's own number against the last one seen.
    fn gapless(&self, findings: &mut Findings, of: &str, last: u64) {
        let (found, expected) = (self.step.own_seq, last + 1);
        if found != expected {
            let what = format!("{}: {of}_seq is {found}, expected {expected}", self.name());
            self.bad(findings, 3, what);
        }
    }

    /// People's numbers go on from the shard's when they are first seen: never back.
    fn person_gapless(&self, findings: &mut Findings, of: &str, known: Option<(u64, bool)>) {
        match known {
            Some((last, false)) => self.gapless(findings, of, last),
            Some((last, true)) if self.step.own_seq <= last => {
                let found = self.step.own_seq;
                let what = format!("{}: {of}_seq is {found} after {last}", self.name());
                self.bad(findings, 3, what);
            }
            Some((_, true)) | None => {}
        }
    }
}

impl Folds {
    fn take(&mut self, shard: u16, step: &Step, names: &Names, findings: &mut Findings) {
        let truncated = self.truncated.contains(&shard);
        let here = Here {
            shard,
            step,
            names,
            truncated,
        };
        match names.text(step.name).split('.').next() {
            Some("ride") => self.take_ride(&here, findings),
            Some("driver") => self.take_driver(&here, findings),
            Some("rider") => self.take_rider(&here, findings),
            _ => self.take_outcome(step),
        }
    }

    fn take_outcome(&mut self, step: &Step) {
        // A request's outcome names the rider who was asked for and the ride that is promised.
        if let (What::Outcome, 1, Some(_), Some(ride)) =
            (step.what, step.number, step.text, step.ride)
        {
            self.promised.push((ride, "a request was answered with it"));
        }
    }

    fn take_ride(&mut self, here: &Here<'_>, findings: &mut Findings) {
        let step = here.step;
        let Some(id) = step.ride else { return };
        let known = self.rides.get(&id).map(|ride| ride.seq);
        if known.is_none() && step.what != What::Requested && !here.truncated {
            here.bad(findings, 3, format!("a ride begins with {}", here.name()));
        }
        let ride = self.rides.entry(id).or_insert_with(|| Ride {
            shard: here.shard,
            seq: 0,
            stage: Stage::Somewhere,
            claim: None,
            hold: None,
            incoming: None,
            asked_by: None,
            is_moved: false,
            rider: None,
            attempts: 0,
            last_at: String::new(),
        });
        if ride.shard != here.shard {
            let what = format!("{} stands in another shard than the ride", here.name());
            here.bad(findings, 3, what);
            return;
        }
        if let Some(last) = known.or((!here.truncated).then_some(0)) {
            here.gapless(findings, "ride", last);
        }
        ride.seq = step.own_seq;
        if ride.stage.is_end() {
            let invariant = if matches!(
                step.what,
                What::Completed | What::Cancelled | What::Unfulfilled
            ) {
                2
            } else {
                3
            };
            let what = format!("{} follows the end ({})", here.name(), ride.stage.name());
            here.bad(findings, invariant, what);
            return;
        }
        if let Err(why) = ride.step(step) {
            here.bad(findings, 5, format!("{} is impossible: {why}", here.name()));
        }
        ride.last_at = here.at();
        let has_number = matches!(
            step.what,
            What::OfferMade | What::Assigned | What::SecondHeld | What::Reassigned
        );
        if let (true, Some(driver)) = (has_number, step.driver) {
            let hold = (id, step.attempt);
            self.held_for
                .push((driver, step.number, hold, here.shard, here.at()));
        }
    }

    fn take_driver(&mut self, here: &Here<'_>, findings: &mut Findings) {
        let step = here.step;
        let Some(id) = step.driver else { return };
        let home = self.drivers.get(&id).map(|driver| Home {
            shard: driver.shard,
            is_away: driver.is_away,
            is_forgotten: driver.is_forgotten,
        });
        let life = self.life(here, findings, home);
        match life {
            Life::GoesOn => {}
            Life::Anew => drop(self.drivers.remove(&id)),
            Life::Elsewhere => return,
        }
        let known = self.drivers.get(&id);
        let known = known.map(|driver| (driver.seq, driver.is_forgotten));
        let is_late = life == Life::Anew;
        let driver = self.drivers.entry(id).or_insert_with(|| Driver {
            shard: here.shard,
            seq: 0,
            whole: !here.truncated && !is_late,
            is_online: here.truncated || is_late,
            session: 0,
            is_leaving: false,
            is_forgotten: false,
            is_suspended: false,
            blocked: BTreeSet::new(),
            is_away: false,
            hold: None,
            holds: (!here.truncated && !is_late).then_some(0),
            last_at: String::new(),
        });
        if step.what == What::TakenOver {
            let hold = step.ride.map(|ride| (ride, step.attempt, step.number));
            let believed = is_late || driver.hold.is_none() && driver.holds.is_none();
            if !believed && driver.hold != hold {
                let what = "the driver comes with another hold than they went with".to_owned();
                here.bad(findings, 1, what);
            }
            driver.hold = hold;
        }
        here.person_gapless(findings, "driver", known);
        driver.shard = here.shard;
        driver.seq = step.own_seq;
        driver.is_forgotten = false;
        driver.is_away = step.what == What::HandedOver;
        driver.step(here, findings);
        driver.last_at = here.at();
        if let (What::Held, Some(ride), false) = (step.what, step.ride, driver.blocked.is_empty()) {
            let blocked = driver.blocked.clone();
            self.kept_apart
                .push((id, ride, blocked, here.shard, here.at()));
        }
        if let (What::Held, Some(ride)) = (step.what, step.ride) {
            let hold = (ride, step.attempt);
            if let Some(other) = self.holds.insert((id, step.number), hold)
                && driver.whole
                && other != hold
            {
                let what = format!("hold number {} was given twice", step.number);
                here.bad(findings, 1, what);
            }
        }
    }

    fn take_rider(&mut self, here: &Here<'_>, findings: &mut Findings) {
        let step = here.step;
        let Some(id) = step.rider else { return };
        let home = self.riders.get(&id).map(|rider| Home {
            shard: rider.shard,
            is_away: rider.is_away,
            is_forgotten: rider.is_forgotten,
        });
        let life = self.life(here, findings, home);
        match life {
            Life::GoesOn => {}
            Life::Anew => drop(self.riders.remove(&id)),
            Life::Elsewhere => return,
        }
        let known = self.riders.get(&id);
        let known = known.map(|rider| (rider.seq, rider.is_forgotten));
        let is_late = life == Life::Anew;
        // Before the first event seen the rider may have had a ride.
        let had = step
            .ride
            .filter(|_| (here.truncated || is_late) && step.what != What::Busy);
        let is_cut = !self.truncated.is_empty();
        let rider = self.riders.entry(id).or_insert_with(|| Rider {
            shard: here.shard,
            seq: 0,
            ride: had,
            is_forgotten: false,
            is_away: false,
        });
        here.person_gapless(findings, "rider", known);
        rider.shard = here.shard;
        rider.seq = step.own_seq;
        rider.is_forgotten = false;
        rider.is_away = step.what == What::HandedOver;
        let stray = rider.ride != step.ride;
        match step.what {
            What::Busy => {
                if rider.ride.is_some() {
                    let what = "the rider has a ride already".to_owned();
                    here.bad(findings, 5, what);
                }
                rider.ride = step.ride;
            }
            What::Opened | What::NotOpened | What::Free if stray => {
                here.bad(
                    findings,
                    5,
                    format!("{} names another ride than the rider's", here.name()),
                );
            }
            What::TakenOver => {
                // In a log that is cut the rider may have had a ride before the first event seen.
                if stray && !(is_cut && rider.ride.is_none()) {
                    let what = "the rider comes with another ride than they went with".to_owned();
                    here.bad(findings, 5, what);
                }
                rider.ride = step.ride;
            }
            What::Opened => self
                .promised
                .extend(step.ride.map(|ride| (ride, "it was opened"))),
            What::NotOpened => rider.ride = None,
            What::Free => {
                rider.ride = None;
                self.freed.extend(step.ride.zip(step.text));
            }
            What::RiderForgotten => rider.is_forgotten = true,
            _ => {}
        }
    }
}

impl Ride {
    /// Moves on by one event. On an error the event's end state is taken all the same, so that one mistake is told once.
    fn step(&mut self, step: &Step) -> Result<(), String> {
        let hold = step.driver.map(|driver| (driver, step.attempt));
        let open = self.stage == Stage::Somewhere;
        let (before, held, claim) = (self.stage, self.hold, self.claim);
        let from = |stages: &[Stage]| {
            let fits = open || stages.contains(&before);
            if fits {
                Ok(())
            } else {
                Err(format!("the ride is {}", before.name()))
            }
        };
        let this_hold = || {
            let fits = open || held == hold;
            if fits {
                Ok(())
            } else {
                Err("it names another hold than the ride's".to_owned())
            }
        };
        use Stage::{Arrived, EnRoute, Offered, Somewhere, Started, Waiting};
        match step.what {
            What::Requested => {
                self.stage = Waiting;
                self.rider = step.rider;
                if self.seq == 1 {
                    Ok(())
                } else {
                    Err("it is not the first event".to_owned())
                }
            }
            What::Searched => from(&[Waiting]),
            What::Redirected => from(&[Waiting, Offered, EnRoute, Arrived, Started]),
            What::Claimed if before == EnRoute => {
                let reused = step.attempt <= self.attempts;
                let doubled = self.incoming.is_some();
                self.attempts = self.attempts.max(step.attempt);
                self.incoming = hold;
                match (reused, doubled) {
                    (true, _) => Err(format!("attempt {} was used before", step.attempt)),
                    (_, true) => Err("another claim is open".to_owned()),
                    _ => Ok(()),
                }
            }
            What::SecondHeld => {
                from(&[EnRoute])?;
                let fits = open || self.incoming == hold;
                if fits {
                    Ok(())
                } else {
                    Err("there is no such claim".to_owned())
                }
            }
            What::Consulted => from(&[EnRoute]).and_then(|()| this_hold()),
            What::HoldAsked => {
                let doubled = self.asked_by.is_some();
                self.asked_by = step.by;
                from(&[EnRoute]).and_then(|()| this_hold())?;
                if doubled {
                    Err("another ride has asked already".to_owned())
                } else {
                    Ok(())
                }
            }
            What::HoldMoved | What::HoldKept => {
                let asked = self.asked_by.take().is_some();
                if step.what == What::HoldMoved {
                    (self.hold, self.is_moved) = (None, true);
                }
                from(&[EnRoute]).and_then(|()| this_hold())?;
                if asked || open {
                    Ok(())
                } else {
                    Err("no other ride had asked".to_owned())
                }
            }
            What::ReportWaits => {
                let waits = self.asked_by.is_some() || self.is_moved || open;
                from(&[EnRoute])?;
                if waits {
                    Ok(())
                } else {
                    Err("there is nothing to wait for".to_owned())
                }
            }
            What::Reassigned => {
                let second = self.incoming.take();
                let asked = self.asked_by.take().is_some();
                (self.hold, self.is_moved) = (hold, false);
                from(&[EnRoute])?;
                match (open || second == hold, asked) {
                    (false, _) => Err("it names another hold than the second one".to_owned()),
                    (_, true) => Err("its old car may yet be another ride's".to_owned()),
                    _ => Ok(()),
                }
            }
            What::Claimed => {
                let reused = step.attempt <= self.attempts;
                let doubled = self.claim.is_some();
                self.attempts = self.attempts.max(step.attempt);
                self.claim = hold;
                from(&[Waiting])?;
                match (reused, doubled) {
                    (true, _) => Err(format!("attempt {} was used before", step.attempt)),
                    (_, true) => Err("another claim is open".to_owned()),
                    _ => Ok(()),
                }
            }
            What::ClaimOver if self.incoming.is_some() && self.incoming == hold => {
                self.incoming = None;
                Ok(())
            }
            What::ClaimOver => {
                self.claim = None;
                let fits = open || claim == hold;
                if fits {
                    Ok(())
                } else {
                    Err("there is no such claim".to_owned())
                }
            }
            What::OfferMade => {
                self.claim = None;
                self.hold = hold;
                self.stage = Offered;
                from(&[Waiting])?;
                let fits = open || claim == hold;
                if fits {
                    Ok(())
                } else {
                    Err("there is no such claim".to_owned())
                }
            }
            What::OfferReceived => from(&[Offered]).and_then(|()| this_hold()),
            What::OfferOver => {
                (self.stage, self.hold) = (Waiting, None);
                from(&[Offered]).and_then(|()| this_hold())
            }
            What::Assigned => {
                (self.stage, self.hold) = (EnRoute, hold);
                from(&[Offered]).and_then(|()| this_hold())
            }
            What::Lost => {
                let moved = self.is_moved;
                (self.stage, self.hold) = (Waiting, None);
                self.exchange_is_over();
                from(&[EnRoute, Arrived])?;
                if moved { Ok(()) } else { this_hold() }
            }
            What::Arrived | What::Started => {
                let settled = self.asked_by.is_none() && self.incoming.is_none();
                self.exchange_is_over();
                self.hold = hold;
                if step.what == What::Arrived {
                    self.stage = Arrived;
                    from(&[EnRoute])?;
                } else {
                    self.stage = Started;
                    from(&[EnRoute, Arrived])?;
                }
                this_hold()?;
                if settled || open {
                    Ok(())
                } else {
                    Err("its car may yet be another ride's".to_owned())
                }
            }
            What::Completed => {
                self.exchange_is_over();
                (self.stage, self.hold) = (Stage::Completed, None);
                from(&[EnRoute, Arrived, Started]).and_then(|()| this_hold())
            }
            What::Cancelled => {
                (self.stage, self.hold, self.claim) = (Stage::Cancelled, None, None);
                self.exchange_is_over();
                from(&[Waiting, Offered, EnRoute, Arrived])?;
                let holder = held.or(claim).map(|(driver, _)| driver);
                let fits = open || step.driver.is_none() || step.driver == holder;
                if fits {
                    Ok(())
                } else {
                    Err("it names another driver than the ride's".to_owned())
                }
            }
            What::Unfulfilled => {
                (self.stage, self.hold, self.claim) = (Stage::Unfulfilled, None, None);
                from(&[Waiting, Offered, Somewhere])
            }
            _ => Ok(()),
        }
    }
}

impl Ride {
    fn exchange_is_over(&mut self) {
        (self.incoming, self.asked_by, self.is_moved) = (None, None, false);
    }
}

impl Driver {
    fn step(&mut self, here: &Here<'_>, findings: &mut Findings) {
        let step = here.step;
        match step.what {
            What::Suspended => self.is_suspended = true,
            What::Reinstated => self.is_suspended = false,
            What::Blocked => {
                self.blocked.extend(step.rider);
            }
            What::Unblocked => {
                if let Some(rider) = step.rider {
                    self.blocked.remove(&rider);
                }
            }
            What::Online => {
                if self.is_suspended {
                    here.bad(findings, 5, "online while suspended".to_owned());
                }
                self.is_online = true;
                self.is_leaving = false;
                self.session = step.number;
            }
            What::Leaving => self.is_leaving = true,
            What::Offline => {
                if self.hold.is_some() {
                    here.bad(findings, 4, "a held driver went offline".to_owned());
                }
                self.is_online = false;
                self.is_leaving = false;
            }
            What::DriverForgotten => {
                if self.is_suspended || !self.blocked.is_empty() {
                    let what = "forgotten with a suspension or a block list";
                    here.bad(findings, 5, what.to_owned());
                }
                self.is_forgotten = true;
                self.is_online = false;
            }
            What::Held => {
                if let Some((ride, attempt, number)) = self.hold {
                    let other = here.names.text(ride);
                    let what = format!("held again while hold {number} ({other}#{attempt}) stands");
                    here.bad(findings, 1, what);
                } else if !self.is_online && self.whole {
                    here.bad(findings, 5, "held while offline".to_owned());
                }
                if self.is_suspended || self.is_leaving {
                    let what = if self.is_suspended {
                        "suspended"
                    } else {
                        "leaving"
                    };
                    here.bad(findings, 1, format!("held while {what}"));
                }
                if let Some(last) = self.holds
                    && step.number <= last
                {
                    let what = format!("hold number is {} after {last}", step.number);
                    here.bad(findings, 1, what);
                }
                self.holds = Some(step.number);
                self.hold = step.ride.map(|ride| (ride, step.attempt, step.number));
            }
            What::Released => {
                let released = step.ride.map(|ride| (ride, step.attempt, step.number));
                let believed = self.hold.is_none() && self.holds.is_none();
                if !believed && self.hold != released {
                    let what = "a hold was released that did not stand".to_owned();
                    here.bad(findings, 1, what);
                }
                self.hold = None;
                self.holds = Some(step.number);
            }
            _ => {}
        }
    }
}
