//! Do the folds of rides, drivers and riders agree with each other at the end of the log, whichever shards they stand in?
//!
//! [`agree`]: who holds whom (invariants 1 and 4). [`promises`]: what riders were told (invariant 2). What each entity's own
//! events say is `fold`'s.

use std::collections::{HashMap, HashSet};

use super::fold::{Folds, Stage};
use super::{Audit, AuditReport, Name};

/// Rides against drivers and riders, at the end of the log.
pub(super) fn agree(audit: &mut Audit, folds: &Folds, report: &mut AuditReport) {
    let Audit {
        options,
        names,
        findings,
        pending_releases,
        pending_claims_answered,
        ..
    } = audit;
    for (driver, number, hold, shard, at) in &folds.held_for {
        let said = folds.holds.get(&(*driver, *number));
        let whole = folds.drivers.get(driver).is_some_and(|driver| driver.whole);
        let wrong = match said {
            Some(said) => said != hold,
            None => whole || !folds.drivers.contains_key(driver),
        };
        let excused = folds.truncated.len() as u64 > 0 && said.is_none() || options.live;
        if wrong && !excused {
            let what = match said {
                Some((ride, attempt)) => {
                    format!("hold {number} was given to {}#{attempt}", names.text(*ride))
                }
                None => format!("hold {number} was never given by the driver"),
            };
            let finding = findings.add(1, what).ride(names.text(hold.0));
            drop(
                finding
                    .driver(names.text(*driver))
                    .shard(*shard)
                    .at(at.clone()),
            );
        }
    }
    for (driver, ride, blocked, shard, at) in &folds.kept_apart {
        let rider = folds.rides.get(ride).and_then(|ride| ride.rider);
        if let Some(rider) = rider.filter(|rider| blocked.contains(rider)) {
            let what = format!("held for rider {}, who is blocked", names.text(rider));
            let finding = findings.add(1, what).ride(names.text(*ride));
            drop(
                finding
                    .driver(names.text(*driver))
                    .shard(*shard)
                    .at(at.clone()),
            );
        }
    }
    let mut holder: HashMap<Name, Name> = HashMap::new();
    for (id, ride) in &folds.rides {
        let Some((driver, attempt)) = ride.hold.filter(|_| !ride.stage.is_end()) else {
            continue;
        };
        if let Some(other) = holder.insert(driver, *id) {
            let what = format!(
                "two open rides have this driver, the other is {}",
                names.text(other)
            );
            let finding = findings.add(1, what).ride(names.text(*id));
            drop(
                finding
                    .driver(names.text(driver))
                    .shard(ride.shard)
                    .at(ride.last_at.clone()),
            );
        }
        let held = folds.drivers.get(&driver).and_then(|driver| driver.hold);
        let agrees = held.is_some_and(|(of, at, _)| (of, at) == (*id, attempt));
        let unseen = folds
            .drivers
            .get(&driver)
            .is_none_or(|driver| !driver.whole)
            && held.is_none();
        // While a transfer is under way only the driver's side knows whose the driver is.
        let moving = ride.asked_by.is_some() && !options.complete;
        let excused = options.live || moving || unseen && !folds.truncated.is_empty();
        if !agrees && !excused {
            let what = format!(
                "the ride is {} with a driver who is not held",
                ride.stage.name()
            );
            let finding = findings.add(4, what).ride(names.text(*id));
            drop(
                finding
                    .driver(names.text(driver))
                    .shard(ride.shard)
                    .at(ride.last_at.clone()),
            );
        }
    }
    for (id, driver) in &folds.drivers {
        let Some((ride, attempt, number)) = driver.hold else {
            continue;
        };
        let this = Some((*id, attempt));
        let known = folds.rides.get(&ride);
        let in_ride = known.is_some_and(|ride| {
            !ride.stage.is_end()
                && (ride.hold == this || ride.claim == this || ride.incoming == this)
                || ride.stage == Stage::Somewhere
        });
        if in_ride || known.is_none() && !folds.truncated.is_empty() {
            continue;
        }
        let hold = (*id, ride, attempt);
        let under_way = pending_releases.contains(&hold) || pending_claims_answered.contains(&hold);
        let excused = under_way || !(options.complete || options.pending_known) || options.live;
        if excused && known.is_some() {
            report.releases_under_way += 1;
            continue;
        }
        let stage = known.map_or("not in the log", |ride| ride.stage.name());
        let what = format!("hold {number} stands, but its ride is {stage} and does not want it");
        let finding = findings
            .add(4, what)
            .ride(names.text(ride))
            .driver(names.text(*id));
        drop(finding.shard(driver.shard).at(driver.last_at.clone()));
    }
}

/// What was promised to riders.
pub(super) fn promises(audit: &mut Audit, folds: &Folds) {
    let Audit {
        options,
        names,
        findings,
        acknowledged,
        ..
    } = audit;
    for ride in acknowledged.iter() {
        let known = names
            .by_text
            .get(ride)
            .is_some_and(|name| folds.rides.contains_key(name));
        let gone = !folds.truncated.is_empty();
        if !known && !gone {
            let what = "an acknowledged ride is nowhere in the log".to_owned();
            drop(findings.add(2, what).ride(ride));
        }
    }
    let mut told: HashSet<Name> = HashSet::new();
    for (ride, why) in &folds.promised {
        let known = folds.rides.contains_key(ride);
        if !known && folds.truncated.is_empty() && !options.live && told.insert(*ride) {
            let what = format!("{why}, but it is nowhere in the log");
            drop(findings.add(2, what).ride(names.text(*ride)));
        }
    }
    for (ride, end) in &folds.freed {
        let Some(known) = folds.rides.get(ride) else {
            continue;
        };
        if known.stage != Stage::Somewhere
            && known.stage.name() != names.text(*end)
            && !options.live
        {
            let (found, end) = (known.stage.name(), names.text(*end));
            let what = format!("the rider was told {end}, but the ride is {found}");
            let finding = findings
                .add(2, what)
                .ride(names.text(*ride))
                .shard(known.shard);
            drop(finding.at(known.last_at.clone()));
        }
    }
    if !options.complete {
        return;
    }
    for (id, ride) in folds.rides.iter().filter(|(_, ride)| !ride.stage.is_end()) {
        let what = format!("the log is complete, but the ride is {}", ride.stage.name());
        let finding = findings
            .add(2, what)
            .ride(names.text(*id))
            .shard(ride.shard);
        drop(finding.at(ride.last_at.clone()));
    }
    for (id, rider) in &folds.riders {
        if let Some(ride) = rider.ride {
            let what = format!("rider {} was never freed of the ride", names.text(*id));
            drop(
                findings
                    .add(2, what)
                    .ride(names.text(ride))
                    .shard(rider.shard),
            );
        }
    }
}
