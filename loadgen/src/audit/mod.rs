//! Does a log keep the promises? Invariants 1 to 5 of the design, judged without the engine's code.
//!
//! Feed records in any order ([`Audit::event`], [`Audit::state`], [`Audit::acknowledged`], [`Audit::pending`]), then
//! [`Audit::finish`]. The judge reads plain JSON and has its own small fold (`fold`), so that it shares no mistake with
//! the engine. Holds are ordered by their numbers and events by their shard's sequence: no clock is needed.
//!
//! | invariant | what is checked |
//! |---|---|
//! | 1 | a driver's `held` and `released` alternate, hold numbers grow; no two open rides have one driver; ride events carry the number of that very hold; nobody is held while suspended or for a blocked rider |
//! | 2 | every opened or acknowledged ride has exactly one end (open ones are counted; an error if the log is said to be complete) |
//! | 3 | nothing follows the end; `ride_seq`, `driver_seq`, `rider_seq` and each shard's sequence have no gap, no id is doubled, topics are in order |
//! | 4 | who is held is in an open ride, or a release is under way; who is in an open ride is held |
//! | 5 | every step is possible from the fold of the steps before it, and the fold equals `shard-state` |
//!
//! When the number of shards has grown, people go on in another shard: handed over there, taken over here, in one row of numbers, and
//! nobody lives in two.
//!
//! Costs some hundred bytes an event. Not here: where records come from (`source` for a running server; the root
//! binary for a store).

mod across;
mod fold;
mod homes;
mod source;
mod state;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use source::{AuditSourceError, read_over_http};

/// More events than this are not audited: the report says so as a violation.
pub const EVENTS_MAX: usize = 50_000_000;
/// Violations kept by name; more are only counted.
pub const VIOLATIONS_NAMED_MAX: usize = 1_000;

/// What is known about the log besides its records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AuditOptions {
    /// Nothing is under way any more: an open ride, or a hold without its ride, is a violation.
    pub complete: bool,
    /// The log was read while it was written, topic by topic: what stands at the very end of one shard may miss its
    /// counterpart in another, so checks across shards at the end only count.
    pub live: bool,
    /// All commands written but not yet consumed are handed in by [`Audit::pending`]: a release that is under way is
    /// believed only if it is among them.
    pub pending_known: bool,
}

/// What the audit found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditReport {
    /// Events read.
    pub events: u64,
    /// Events of types this program does not know (their sequence is checked all the same).
    pub unknown_events: u64,
    /// Rides seen.
    pub rides: u64,
    /// Drivers seen.
    pub drivers: u64,
    /// Riders seen.
    pub riders: u64,
    /// Rides without an end.
    pub open: u64,
    /// Rides by their end: completed, cancelled, unfulfilled.
    pub ends: BTreeMap<String, u64>,
    /// Rides the clients say were acknowledged.
    pub acknowledged: u64,
    /// Holds whose ride has moved on and whose release is not yet in the driver's events.
    pub releases_under_way: u64,
    /// `shard-state` entries compared with the fold.
    pub states: u64,
    /// All violations, those beyond [`VIOLATIONS_NAMED_MAX`] too.
    pub violations_total: u64,
    /// The broken promises.
    pub violations: Vec<Violation>,
}

/// A broken promise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Violation {
    /// Which invariant of the design, 1 to 5.
    pub invariant: u8,
    /// What is wrong.
    pub what: String,
    /// The ride concerned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ride: Option<String>,
    /// The driver concerned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    /// The shard concerned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shard: Option<u16>,
    /// Where in the log: `topic/shard@offset`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub offsets: Vec<String>,
}

impl AuditReport {
    /// Were all promises kept?
    pub fn is_clean(&self) -> bool {
        self.violations_total == 0
    }

    /// The three numbers of a run's report.
    pub fn summary(&self) -> crate::report::AuditSummary {
        crate::report::AuditSummary {
            events: self.events,
            rides: self.rides,
            violations: self.violations_total,
        }
    }
}

impl fmt::Display for AuditReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ends: Vec<_> = self
            .ends
            .iter()
            .map(|(end, count)| format!("{count} {end}"))
            .collect();
        let ends = if ends.is_empty() {
            String::new()
        } else {
            format!("{}, ", ends.join(", "))
        };
        writeln!(
            f,
            "{} events, {} rides ({ends}{} open), {} drivers, {} riders, {} states compared",
            self.events, self.rides, self.open, self.drivers, self.riders, self.states
        )?;
        if self.acknowledged > 0 {
            writeln!(f, "{} acknowledged rides looked up", self.acknowledged)?;
        }
        if self.releases_under_way > 0 {
            writeln!(f, "{} releases under way", self.releases_under_way)?;
        }
        if self.unknown_events > 0 {
            writeln!(f, "{} events of unknown types", self.unknown_events)?;
        }
        for violation in &self.violations {
            writeln!(f, "VIOLATION {violation}")?;
        }
        let named = self.violations.len() as u64;
        if self.violations_total > named {
            writeln!(
                f,
                "VIOLATION ... and {} more",
                self.violations_total - named
            )?;
        }
        writeln!(f, "{} violations", self.violations_total)
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "of invariant {}: {}", self.invariant, self.what)?;
        if let Some(ride) = &self.ride {
            write!(f, ", ride {ride}")?;
        }
        if let Some(driver) = &self.driver {
            write!(f, ", driver {driver}")?;
        }
        if let Some(shard) = self.shard {
            write!(f, ", shard {shard}")?;
        }
        if !self.offsets.is_empty() {
            write!(f, ", at {}", self.offsets.join(" "))?;
        }
        Ok(())
    }
}

/// The violations found so far.
#[derive(Debug, Default)]
struct Findings {
    total: u64,
    named: Vec<Violation>,
}

impl Findings {
    fn add(&mut self, invariant: u8, what: String) -> Finding<'_> {
        let violation = Violation {
            invariant,
            what,
            ride: None,
            driver: None,
            shard: None,
            offsets: Vec::new(),
        };
        Finding {
            findings: self,
            violation: Some(violation),
        }
    }
}

/// A violation being written down; it counts when this is dropped.
struct Finding<'a> {
    findings: &'a mut Findings,
    violation: Option<Violation>,
}

impl Finding<'_> {
    fn with(mut self, fill: impl FnOnce(&mut Violation)) -> Self {
        if let Some(violation) = &mut self.violation {
            fill(violation);
        }
        self
    }

    fn ride(self, ride: &str) -> Self {
        self.with(|v| v.ride = Some(ride.to_owned()))
    }

    fn driver(self, driver: &str) -> Self {
        self.with(|v| v.driver = Some(driver.to_owned()))
    }

    fn shard(self, shard: u16) -> Self {
        self.with(|v| v.shard = Some(shard))
    }

    fn at(self, offset: String) -> Self {
        self.with(|v| v.offsets.push(offset))
    }
}

impl Drop for Finding<'_> {
    fn drop(&mut self) {
        self.findings.total += 1;
        if let Some(violation) = self.violation.take()
            && self.findings.named.len() < VIOLATIONS_NAMED_MAX
        {
            self.findings.named.push(violation);
        }
    }
}

/// A name kept once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Name(u32);

#[derive(Debug, Default)]
struct Names {
    by_text: HashMap<String, Name>,
    texts: Vec<String>,
}

impl Names {
    fn of(&mut self, text: &str) -> Name {
        if let Some(name) = self.by_text.get(text) {
            return *name;
        }
        let name = Name(u32::try_from(self.texts.len()).unwrap_or(u32::MAX));
        self.by_text.insert(text.to_owned(), name);
        self.texts.push(text.to_owned());
        name
    }

    fn text(&self, name: Name) -> &str {
        &self.texts[name.0 as usize]
    }
}

/// What an event did, as far as the audit cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Requested,
    Searched,
    /// The ride leads elsewhere; whose car it is does not change by it.
    Redirected,
    Claimed,
    ClaimOver,
    OfferMade,
    OfferReceived,
    OfferOver,
    Assigned,
    /// The driver on the way is asked about an exchange, or has answered.
    Consulted,
    SecondHeld,
    HoldAsked,
    HoldMoved,
    HoldKept,
    ReportWaits,
    Reassigned,
    Lost,
    Arrived,
    Started,
    Completed,
    Cancelled,
    Unfulfilled,
    Online,
    Held,
    Released,
    Leaving,
    Offline,
    Suspended,
    Reinstated,
    Blocked,
    Unblocked,
    DriverForgotten,
    Busy,
    Opened,
    NotOpened,
    Refused,
    KeyCancelled,
    Free,
    RiderForgotten,
    Outcome,
    /// Somebody goes to another shard, because there are more.
    HandedOver,
    /// And has come there.
    TakenOver,
    /// There are to be more shards, or there are.
    RingGrows,
    /// A wish of a driver or of the desk: nothing is promised by it.
    Wished,
    Unknown,
}

impl What {
    fn of(name: &str) -> What {
        match name {
            "ride.requested" => What::Requested,
            "ride.destination_changed" => What::Redirected,
            "ride.searched_in_vain" | "ride.search_widened" => What::Searched,
            "ride.driver_claimed" => What::Claimed,
            "ride.claim_refused" | "ride.claim_abandoned" => What::ClaimOver,
            "ride.offer_made" => What::OfferMade,
            "ride.offer_received" => What::OfferReceived,
            "ride.offer_declined" | "ride.offer_expired" => What::OfferOver,
            "ride.driver_assigned" => What::Assigned,
            "ride.swap_asked" | "ride.swap_answered" => What::Consulted,
            "ride.second_hold_granted" => What::SecondHeld,
            "ride.hold_asked" => What::HoldAsked,
            "ride.hold_moved" => What::HoldMoved,
            "ride.hold_kept" => What::HoldKept,
            "ride.report_waits" => What::ReportWaits,
            "ride.driver_reassigned" => What::Reassigned,
            "ride.driver_lost" => What::Lost,
            "ride.driver_arrived" => What::Arrived,
            "ride.started" => What::Started,
            "ride.completed" => What::Completed,
            "ride.cancelled" => What::Cancelled,
            "ride.unfulfilled" => What::Unfulfilled,
            "driver.online" => What::Online,
            "driver.held" => What::Held,
            "driver.released" => What::Released,
            "driver.leaving" => What::Leaving,
            "driver.offline" => What::Offline,
            "driver.suspended" => What::Suspended,
            "driver.reinstated" => What::Reinstated,
            "driver.rider_blocked" => What::Blocked,
            "driver.rider_unblocked" => What::Unblocked,
            "driver.forgotten" => What::DriverForgotten,
            "rider.busy" => What::Busy,
            "rider.ride_opened" => What::Opened,
            "rider.ride_refused" => What::NotOpened,
            "rider.request_refused" => What::Refused,
            "rider.key_cancelled" => What::KeyCancelled,
            "rider.free" => What::Free,
            "rider.forgotten" => What::RiderForgotten,
            "command.outcome" => What::Outcome,
            "driver.handed_over" | "rider.handed_over" => What::HandedOver,
            "driver.taken_over" | "rider.taken_over" => What::TakenOver,
            "driver.heading_set"
            | "driver.queued"
            | "driver.unqueued"
            | "market.dispatch_set"
            | "market.drain_asked" => What::Wished,
            "market.ring_grows" => What::RingGrows,
            _ => What::Unknown,
        }
    }
}

/// One event, as small as the checks allow.
#[derive(Clone, Debug)]
struct Step {
    seq: u64,
    topic: Name,
    offset: u64,
    what: What,
    /// `ride.driver_assigned`, for messages.
    name: Name,
    /// `ride_seq`, `driver_seq` or `rider_seq`; 0 where there is none.
    own_seq: u64,
    ride: Option<Name>,
    driver: Option<Name>,
    rider: Option<Name>,
    attempt: u64,
    /// `ride.hold_asked`: the hold (ride, attempt) that the car may go to.
    by: Option<(Name, u64)>,
    /// The hold number; on driver.online and offline the session; on an outcome 1 if it says done; of a growth the shards before.
    number: u64,
    /// `rider.free`: how the ride ended, by name. `rider.busy` and its followers: the key.
    text: Option<Name>,
}

/// Collects a log, then judges it.
#[derive(Debug, Default)]
pub struct Audit {
    options: AuditOptions,
    names: Names,
    shards: BTreeMap<u16, Vec<Step>>,
    states: Vec<(u16, String, Value)>,
    /// States before the oldest event that is kept.
    bases: Vec<(u16, Value)>,
    acknowledged: Vec<String>,
    /// Holds whose release is in the log, unread: (driver, ride, attempt).
    pending_releases: Vec<(Name, Name, u64)>,
    pending_claims_answered: Vec<(Name, Name, u64)>,
    findings: Findings,
    events: u64,
    unknown_events: u64,
}

impl Audit {
    /// An empty audit.
    pub fn new(options: AuditOptions) -> Self {
        Self {
            options,
            ..Self::default()
        }
    }

    /// Takes one event: the CloudEvents JSON found in `topic` (`ride-events`, `person-events`), partition `shard`,
    /// at `offset`. The order of calls does not matter.
    pub fn event(&mut self, topic: &str, shard: u16, offset: u64, json: &[u8]) {
        self.events += 1;
        let at = format!("{topic}/{shard}@{offset}");
        if self.events as usize > EVENTS_MAX {
            if self.events as usize == EVENTS_MAX + 1 {
                let what = format!("more than {EVENTS_MAX} events: the rest was not audited");
                self.findings.add(3, what).shard(shard).at(at);
            }
            return;
        }
        match self.parse(topic, shard, offset, json) {
            Ok(step) => {
                self.unknown_events += u64::from(step.what == What::Unknown);
                self.shards.entry(shard).or_default().push(step);
            }
            Err(why) => {
                self.findings
                    .add(3, format!("unreadable event: {why}"))
                    .shard(shard)
                    .at(at);
            }
        }
    }

    /// Takes the last state of one live entity: `key` as in the topic, `json` the record's value.
    pub fn state(&mut self, shard: u16, key: &str, json: &[u8]) {
        match serde_json::from_slice(json) {
            Ok(value) => self.states.push((shard, key.to_owned(), value)),
            Err(why) => {
                let what = format!("unreadable shard-state of {key}: {why}");
                self.findings.add(5, what).shard(shard);
            }
        }
    }

    /// Takes one state of the snapshot the log kept when it dropped older events: the fold begins there. Hand in only
    /// events after that snapshot.
    pub fn base(&mut self, shard: u16, key: &str, json: &[u8]) {
        match serde_json::from_slice(json) {
            Ok(value) => self.bases.push((shard, value)),
            Err(why) => {
                let what = format!("unreadable base state of {key}: {why}");
                self.findings.add(5, what).shard(shard);
            }
        }
    }

    /// Takes a ride a client was promised (201 or 200).
    pub fn acknowledged(&mut self, ride: &str) {
        self.acknowledged.push(ride.to_owned());
    }

    /// Takes a command that is in the log and not yet consumed, as JSON. See [`AuditOptions::pending_known`].
    pub fn pending(&mut self, json: &[u8]) {
        let Ok(command) = serde_json::from_slice::<Value>(json) else {
            return;
        };
        let data = &command["data"];
        let hold = &data["hold"];
        let (Some(driver), Some(ride), Some(attempt)) = (
            data["driver"].as_str(),
            hold["ride"].as_str(),
            hold["attempt"].as_u64(),
        ) else {
            return;
        };
        let hold = (self.names.of(driver), self.names.of(ride), attempt);
        // A transfer under way settles the hold it begins with, too.
        let from = &data["from"];
        if let (Some(ride), Some(attempt)) = (from["ride"].as_str(), from["attempt"].as_u64()) {
            self.pending_releases
                .push((hold.0, self.names.of(ride), attempt));
        }
        match command["type"].as_str() {
            Some("release_driver") => self.pending_releases.push(hold),
            Some("claim_granted" | "transfer_answered") => self.pending_claims_answered.push(hold),
            _ => {}
        }
    }

    /// Judges what was handed in.
    pub fn finish(mut self) -> AuditReport {
        let mut report = AuditReport {
            events: self.events,
            unknown_events: self.unknown_events,
            acknowledged: self.acknowledged.len() as u64,
            ..AuditReport::default()
        };
        fold::judge(&mut self, &mut report);
        report.violations_total = self.findings.total;
        report.violations = std::mem::take(&mut self.findings.named);
        report
    }

    fn parse(&mut self, topic: &str, shard: u16, offset: u64, json: &[u8]) -> Result<Step, String> {
        let event: Value = serde_json::from_slice(json).map_err(|why| why.to_string())?;
        let text = |field: &str| event[field].as_str().ok_or(format!("no {field}"));
        let (id, kind) = (text("id")?, text("type")?);
        let (of, seq) = id
            .split_once('-')
            .and_then(|(of, seq)| Some((of.parse::<u16>().ok()?, seq.parse::<u64>().ok()?)))
            .ok_or_else(|| format!("id {id:?} is not shard-number"))?;
        if of != shard {
            return Err(format!(
                "id {id:?} names shard {of}, but it stands in shard {shard}"
            ));
        }
        let name = kind
            .strip_prefix("cabrank.")
            .and_then(|rest| Some(rest.rsplit_once(".v")?.0))
            .ok_or_else(|| format!("type {kind:?} is not ours"))?;
        let what = What::of(name);
        let data = &event["data"];
        let mut named = |field: &str| data[field].as_str().map(|text| self.names.of(text));
        let (mut ride, driver, rider) = (named("ride"), named("driver"), named("rider"));
        let text = match what {
            What::Free => named("end"),
            What::Busy | What::Opened | What::NotOpened => named("key"),
            What::Outcome => named("asked_rider"),
            _ => None,
        };
        // Who comes from another shard comes with the ride they have.
        let held = &data["state"]["held"];
        if what == What::TakenOver {
            let active = data["state"]["active"].as_str();
            let active = active.or_else(|| held["hold"]["ride"].as_str());
            ride = active.map(|ride| self.names.of(ride));
        }
        let prefix = name.split('.').next().unwrap_or_default();
        let own_seq = data[format!("{prefix}_seq")].as_u64().unwrap_or(0);
        let entity = match prefix {
            "ride" => ride,
            "driver" => driver,
            "rider" => rider,
            _ => None,
        };
        if !matches!(
            what,
            What::Outcome | What::Wished | What::RingGrows | What::Unknown
        ) && (entity.is_none() || own_seq == 0)
        {
            return Err(format!("{name} lacks its {prefix} or {prefix}_seq"));
        }
        let by = data["by"]["ride"].as_str().map(|ride| {
            let attempt = data["by"]["attempt"].as_u64().unwrap_or(0);
            (self.names.of(ride), attempt)
        });
        let number = match what {
            What::Outcome => u64::from(data["outcome"]["result"] == "done"),
            What::Online | What::Offline | What::Leaving => data["session"].as_u64().unwrap_or(0),
            What::TakenOver => held["number"].as_u64().unwrap_or(0),
            What::RingGrows => data["growth"]["from"].as_u64().unwrap_or(0),
            _ => data["hold_number"].as_u64().unwrap_or(0),
        };
        let attempt = match what {
            What::TakenOver => &held["hold"]["attempt"],
            _ => &data["attempt"],
        };
        Ok(Step {
            seq,
            topic: self.names.of(topic),
            offset,
            what,
            name: self.names.of(name),
            own_seq,
            ride,
            driver,
            rider,
            attempt: attempt.as_u64().unwrap_or(0),
            by,
            number,
            text,
        })
    }
}
