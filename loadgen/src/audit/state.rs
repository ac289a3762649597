//! Is `shard-state` what the events add up to?
//!
//! Compared by content, whatever the record's key: every state must be in the fold with the same numbers, and whatever
//! the fold keeps alive must have a state. Values of entities this program does not know are passed over.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use super::fold::{Driver, Folds, Ride, Rider, Stage};
use super::{Audit, AuditReport, Name, Names};

/// What differs, in words; empty if nothing.
type Differences = Vec<String>;

pub(super) fn compare(audit: &mut Audit, folds: &Folds, report: &mut AuditReport) {
    let states = std::mem::take(&mut audit.states);
    let with_states: HashSet<u16> = states.iter().map(|(shard, ..)| *shard).collect();
    let mut seen: HashMap<(&'static str, Name), u16> = HashMap::new();
    for (shard, key, value) in &states {
        let kind = match value["entity"].as_str() {
            Some("ride") => "ride",
            Some("driver") => "driver",
            Some("rider") => "rider",
            _ => continue,
        };
        report.states += 1;
        let id = value["id"].as_str().unwrap_or_default();
        let name = audit.names.of(id);
        if seen.insert((kind, name), *shard).is_some() {
            let what = format!("{kind} {id} has two states");
            drop(audit.findings.add(5, what).shard(*shard));
            continue;
        }
        let found = match kind {
            "ride" => folds
                .rides
                .get(&name)
                .map(|fold| ride(&audit.names, fold, value)),
            "driver" => folds
                .drivers
                .get(&name)
                .map(|fold| driver(&audit.names, fold, value)),
            _ => folds
                .riders
                .get(&name)
                .map(|fold| rider(&audit.names, fold, value)),
        };
        let differences = match found {
            Some(differences) => differences,
            // Its events may have been dropped by retention.
            None if folds.is_truncated(*shard) => continue,
            // Somebody was asked, refused, and left only the memory of the refusal.
            None if value["seq"] == 0 || is_only_memory(kind, value) => continue,
            None => vec!["it has a state but no event".to_owned()],
        };
        for difference in differences {
            let what = format!("state of {kind} {id} (key {key}): {difference}");
            let finding = audit.findings.add(5, what).shard(*shard);
            match kind {
                "ride" => drop(finding.ride(id)),
                "driver" => drop(finding.driver(id)),
                _ => drop(finding),
            }
        }
    }
    missing(audit, folds, &with_states, &seen);
}

/// Puts an entity of a retained snapshot into the fold, as if its events had been seen.
pub(super) fn preload(folds: &mut Folds, names: &mut Names, shard: u16, value: &Value) {
    let id = names.of(text(&value["id"]));
    let number = |field: &str| value[field].as_u64().unwrap_or(0);
    let seq = number("seq");
    let last_at = format!("shard-state/{shard}@base");
    match value["entity"].as_str() {
        Some("ride") => {
            let attempts = number("attempt");
            let current = value["current"].as_u64().unwrap_or(attempts);
            let driver = value["driver"]
                .as_str()
                .map(|driver| (names.of(driver), current));
            let exchange = &value["exchange"];
            let incoming = exchange["incoming"]["driver"].as_str().map(|driver| {
                let attempt = exchange["incoming"]["attempt"].as_u64().unwrap_or(0);
                (names.of(driver), attempt)
            });
            let by = &exchange["outgoing"]["asked"]["by"];
            let asked_by = by["ride"]
                .as_str()
                .map(|ride| (names.of(ride), by["attempt"].as_u64().unwrap_or(0)));
            let is_moved = exchange["outgoing"] == "moved";
            let (stage, claim, hold) = match text(&value["stage"]) {
                "claiming" => (Stage::Waiting, driver, None),
                "waiting" => (Stage::Waiting, None, None),
                "offered" => (Stage::Offered, None, driver),
                "en_route" => (Stage::EnRoute, None, driver),
                "arrived" => (Stage::Arrived, None, driver),
                "started" => (Stage::Started, None, driver),
                _ => match text(&value["end"]) {
                    "completed" => (Stage::Completed, None, None),
                    "cancelled" => (Stage::Cancelled, None, None),
                    "unfulfilled" => (Stage::Unfulfilled, None, None),
                    _ => (Stage::Somewhere, None, None),
                },
            };
            let ride = Ride {
                shard,
                seq,
                stage,
                claim,
                hold: hold.filter(|_| !is_moved),
                incoming,
                asked_by,
                is_moved,
                rider: value["rider"].as_str().map(|rider| names.of(rider)),
                attempts,
                last_at,
            };
            folds.rides.insert(id, ride);
        }
        Some("driver") if !is_only_memory("driver", value) => {
            let held = &value["held"];
            let hold = held["hold"]["ride"].as_str().map(|ride| {
                let attempt = held["hold"]["attempt"].as_u64().unwrap_or(0);
                (
                    names.of(ride),
                    attempt,
                    held["number"].as_u64().unwrap_or(0),
                )
            });
            let driver = Driver {
                shard,
                seq,
                whole: true,
                is_online: text(&value["presence"]) != "offline",
                session: number("session"),
                is_leaving: text(&value["presence"]) == "leaving",
                is_forgotten: false,
                is_suspended: !value["suspended"].is_null(),
                blocked: value["blocked"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .map(|rider| names.of(text(rider)))
                    .collect(),
                is_away: false,
                hold,
                holds: hold.map(|(_, _, number)| number),
                last_at,
            };
            folds.drivers.insert(id, driver);
        }
        Some("rider") if !is_only_memory("rider", value) => {
            let ride = value["active"].as_str().map(|ride| names.of(ride));
            folds.riders.insert(
                id,
                Rider {
                    shard,
                    seq,
                    ride,
                    is_forgotten: false,
                    is_away: false,
                },
            );
        }
        _ => {}
    }
}

fn is_only_memory(kind: &str, value: &Value) -> bool {
    match kind {
        "driver" => {
            value["session"] == 0
                && value["held"].is_null()
                && value["suspended"].is_null()
                && value["blocked"].is_null()
        }
        "rider" => value["active"].is_null(),
        _ => false,
    }
}

/// What lives in the fold must live in the state of a shard whose states were handed in.
fn missing(
    audit: &mut Audit,
    folds: &Folds,
    with_states: &HashSet<u16>,
    seen: &HashMap<(&'static str, Name), u16>,
) {
    let Audit {
        names, findings, ..
    } = audit;
    let lacks = |kind: &'static str, name: Name, shard: u16| {
        with_states.contains(&shard) && !seen.contains_key(&(kind, name))
    };
    for (name, ride) in folds.rides.iter().filter(|(_, ride)| !ride.stage.is_end()) {
        if lacks("ride", *name, ride.shard) {
            let what = "an open ride has no state".to_owned();
            drop(
                findings
                    .add(5, what)
                    .ride(names.text(*name))
                    .shard(ride.shard),
            );
        }
    }
    for (name, driver) in folds
        .drivers
        .iter()
        .filter(|(_, driver)| !driver.is_forgotten && !driver.is_away)
    {
        if lacks("driver", *name, driver.shard) {
            let what = "a remembered driver has no state".to_owned();
            drop(
                findings
                    .add(5, what)
                    .driver(names.text(*name))
                    .shard(driver.shard),
            );
        }
    }
    for (name, rider) in folds
        .riders
        .iter()
        .filter(|(_, rider)| !rider.is_forgotten && !rider.is_away)
    {
        if lacks("rider", *name, rider.shard) {
            let what = format!("remembered rider {} has no state", names.text(*name));
            drop(findings.add(5, what).shard(rider.shard));
        }
    }
}

fn differ(found: &mut Differences, field: &str, state: impl ToString, fold: impl ToString) {
    let (state, fold) = (state.to_string(), fold.to_string());
    if state != fold {
        found.push(format!("{field} is {state}, the events say {fold}"));
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("nothing")
}

fn ride(names: &Names, fold: &Ride, state: &Value) -> Differences {
    let mut found = Vec::new();
    differ(&mut found, "seq", &state["seq"], fold.seq);
    if fold.stage == super::fold::Stage::Somewhere {
        return found;
    }
    let stage = match text(&state["stage"]) {
        // A claim under way is no stage of its own for the people in the ride.
        "claiming" => "waiting",
        "ended" => text(&state["end"]),
        other => other,
    };
    differ(&mut found, "stage", stage, fold.stage.name());
    if !fold.stage.is_end() {
        let with = fold.hold.or(fold.claim);
        let driver = with.map_or("nothing", |(driver, _)| names.text(driver));
        if !fold.is_moved {
            differ(&mut found, "driver", text(&state["driver"]), driver);
        }
        let second = fold
            .incoming
            .map_or("nothing", |(driver, _)| names.text(driver));
        let in_state = text(&state["exchange"]["incoming"]["driver"]);
        differ(&mut found, "second driver", in_state, second);
        differ(&mut found, "attempt", &state["attempt"], fold.attempts);
    }
    found
}

fn driver(names: &Names, fold: &Driver, state: &Value) -> Differences {
    let mut found = Vec::new();
    differ(&mut found, "seq", &state["seq"], fold.seq);
    if !fold.whole {
        return found;
    }
    let presence = match (fold.is_online, fold.is_leaving) {
        (_, true) => "leaving",
        (true, false) => "online",
        (false, false) => "offline",
    };
    differ(&mut found, "presence", text(&state["presence"]), presence);
    differ(&mut found, "session", &state["session"], fold.session);
    let held = &state["held"];
    let hold = |ride: &str, attempt: String, number: String| format!("{ride}#{attempt} ({number})");
    let in_state = if held.is_null() {
        "nothing".to_owned()
    } else {
        let of = &held["hold"];
        hold(
            text(&of["ride"]),
            of["attempt"].to_string(),
            held["number"].to_string(),
        )
    };
    let in_fold = fold
        .hold
        .map_or("nothing".to_owned(), |(ride, attempt, number)| {
            hold(names.text(ride), attempt.to_string(), number.to_string())
        });
    differ(&mut found, "hold", in_state, in_fold);
    let suspended = !state["suspended"].is_null();
    differ(&mut found, "suspended", suspended, fold.is_suspended);
    let blocked = state["blocked"].as_array().map_or(0, Vec::len);
    differ(&mut found, "blocked riders", blocked, fold.blocked.len());
    found
}

fn rider(names: &Names, fold: &Rider, state: &Value) -> Differences {
    let mut found = Vec::new();
    differ(&mut found, "seq", &state["seq"], fold.seq);
    let active = fold.ride.map_or("nothing", |ride| names.text(ride));
    differ(&mut found, "active ride", text(&state["active"]), active);
    found
}
