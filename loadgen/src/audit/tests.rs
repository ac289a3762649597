//! A right log passes; each wrong one is told by its own violation.

use serde_json::{Value, json};

use super::{Audit, AuditOptions, AuditReport};

/// A log by hand: (topic, shard, seq, event name, data).
#[derive(Clone)]
struct Log {
    events: Vec<(&'static str, u16, u64, &'static str, Value)>,
    states: Vec<(u16, Value)>,
    acknowledged: Vec<&'static str>,
    options: AuditOptions,
}

/// Shard 1 holds rider and ride R, shard 2 the drivers: D is asked, gives up at the pickup; E brings the ride home.
fn right() -> Log {
    const R: &str = "1-1-10";
    let ride = |seq: u64, more: Value| {
        let mut data = json!({ "ride": R, "ride_seq": seq });
        data.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        data
    };
    let with = |driver: &str, attempt: u64| json!({ "driver": driver, "attempt": attempt });
    let numbered = |driver: &str, attempt: u64, number: u64| json!({ "driver": driver, "attempt": attempt, "hold_number": number });
    let hold = |driver: &str, seq: u64, attempt: u64, number: u64| json!({ "driver": driver, "driver_seq": seq, "ride": R, "attempt": attempt, "hold_number": number });
    let rider = |seq: u64, more: Value| {
        let mut data = json!({ "rider": "r1", "rider_seq": seq, "ride": R, "key": "k1" });
        data.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        data
    };
    let (rides, people) = ("ride-events", "person-events");
    let none = || json!({});
    let outcome = json!({ "command": "rider/r1/k1", "outcome": { "result": "done" }, "ride": R, "asked_rider": "r1" });
    Log {
        events: vec![
            (people, 1, 1, "rider.busy", rider(1, none())),
            (
                rides,
                1,
                2,
                "ride.requested",
                ride(1, json!({ "rider": "r1" })),
            ),
            (people, 1, 3, "rider.ride_opened", rider(2, none())),
            (people, 1, 4, "command.outcome", outcome),
            (rides, 1, 5, "ride.searched_in_vain", ride(2, none())),
            (rides, 1, 6, "ride.driver_claimed", ride(3, with("D", 1))),
            (rides, 1, 7, "ride.offer_made", ride(4, numbered("D", 1, 2))),
            (rides, 1, 8, "ride.offer_received", ride(5, with("D", 1))),
            (
                rides,
                1,
                9,
                "ride.driver_assigned",
                ride(6, numbered("D", 1, 2)),
            ),
            (rides, 1, 10, "ride.driver_arrived", ride(7, with("D", 1))),
            (rides, 1, 11, "ride.driver_lost", ride(8, with("D", 1))),
            (rides, 1, 12, "ride.driver_claimed", ride(9, with("E", 2))),
            (
                rides,
                1,
                13,
                "ride.offer_made",
                ride(10, numbered("E", 2, 6)),
            ),
            (
                rides,
                1,
                14,
                "ride.driver_assigned",
                ride(11, numbered("E", 2, 6)),
            ),
            (rides, 1, 15, "ride.started", ride(12, with("E", 2))),
            (rides, 1, 16, "ride.completed", ride(13, with("E", 2))),
            (
                people,
                1,
                17,
                "rider.free",
                rider(3, json!({ "end": "completed" })),
            ),
            (
                people,
                2,
                1,
                "driver.online",
                json!({ "driver": "D", "driver_seq": 1, "session": 7 }),
            ),
            (people, 2, 2, "driver.held", hold("D", 2, 1, 2)),
            (people, 2, 3, "driver.released", hold("D", 3, 1, 2)),
            (
                people,
                2,
                4,
                "driver.offline",
                json!({ "driver": "D", "driver_seq": 4, "session": 7 }),
            ),
            (
                people,
                2,
                5,
                "driver.online",
                json!({ "driver": "E", "driver_seq": 5, "session": 8 }),
            ),
            (people, 2, 6, "driver.held", hold("E", 6, 2, 6)),
            (people, 2, 7, "driver.released", hold("E", 7, 2, 6)),
        ],
        states: vec![
            (
                1,
                json!({ "entity": "ride", "id": R, "seq": 13, "stage": "ended", "end": "completed" }),
            ),
            (
                1,
                json!({ "entity": "rider", "id": "r1", "seq": 3, "active": null }),
            ),
            (
                2,
                json!({ "entity": "driver", "id": "D", "seq": 4, "session": 7, "presence": "offline", "held": null }),
            ),
            (
                2,
                json!({ "entity": "driver", "id": "E", "seq": 7, "session": 8, "presence": "online", "held": null }),
            ),
        ],
        acknowledged: vec![R],
        options: AuditOptions {
            complete: true,
            ..Default::default()
        },
    }
}

impl Log {
    fn audit(&self) -> AuditReport {
        let mut audit = Audit::new(self.options);
        let mut offsets: std::collections::HashMap<(&str, u16), u64> = Default::default();
        for (topic, shard, seq, name, data) in &self.events {
            let event = json!({
                "specversion": "1.0", "id": format!("{shard}-{seq}"), "source": "/cabrank",
                "type": format!("cabrank.{name}.v1"), "time": "2008-05-23T00:00:01.250Z", "data": data,
            });
            let offset = offsets.entry((topic, *shard)).or_default();
            audit.event(topic, *shard, *offset, event.to_string().as_bytes());
            *offset += 1;
        }
        for (shard, state) in &self.states {
            audit.state(
                *shard,
                state["id"].as_str().unwrap(),
                state.to_string().as_bytes(),
            );
        }
        for ride in &self.acknowledged {
            audit.acknowledged(ride);
        }
        audit.finish()
    }

    fn at(&self, shard: u16, seq: u64) -> usize {
        self.events
            .iter()
            .position(|event| (event.1, event.2) == (shard, seq))
            .unwrap()
    }

    /// Takes an event out as if it had never been written: the sequences close up behind it.
    fn without(mut self, shard: u16, seq: u64) -> Log {
        self.events.remove(self.at(shard, seq));
        for event in self
            .events
            .iter_mut()
            .filter(|event| event.1 == shard && event.2 > seq)
        {
            event.2 -= 1;
        }
        self
    }

    fn set(mut self, shard: u16, seq: u64, field: &str, value: Value) -> Log {
        let at = self.at(shard, seq);
        self.events[at].4[field] = value;
        self
    }

    fn then(mut self, topic: &'static str, shard: u16, name: &'static str, data: Value) -> Log {
        let last = self
            .events
            .iter()
            .filter(|e| e.1 == shard)
            .map(|e| e.2)
            .max()
            .unwrap_or(0);
        self.events.push((topic, shard, last + 1, name, data));
        self
    }

    fn state(mut self, at: usize, field: &str, value: Value) -> Log {
        self.states[at].1[field] = value;
        self
    }

    fn no_states(mut self) -> Log {
        self.states.clear();
        self
    }

    /// The audit must find this, and name ride or driver or shard.
    fn fails(self, invariant: u8, what: &str) {
        let report = self.audit();
        let found = report.violations.iter().any(|violation| {
            violation.invariant == invariant
                && violation.what.contains(what)
                && (violation.ride.is_some()
                    || violation.driver.is_some()
                    || violation.shard.is_some())
        });
        assert!(
            found,
            "no violation of {invariant} with {what:?} in:\n{report}"
        );
        assert!(!report.is_clean());
    }
}

#[test]
fn a_right_log_passes() {
    let report = right().audit();
    assert!(report.is_clean(), "{report}");
    assert_eq!(
        (report.events, report.rides, report.drivers, report.riders),
        (24, 1, 2, 1)
    );
    assert_eq!(
        (report.open, report.states, report.ends["completed"]),
        (0, 4, 1)
    );
}

#[test]
fn the_order_of_reading_does_not_matter() {
    let mut log = right();
    log.events.sort_by_key(|event| std::cmp::Reverse(event.1));
    assert!(log.audit().is_clean(), "{}", log.audit());
}

#[test]
fn a_log_cut_by_retention_passes() {
    let mut log = right().no_states();
    log.acknowledged.clear();
    log.events
        .retain(|(_, shard, seq, ..)| *shard != 1 || *seq > 6);
    log.events
        .retain(|(_, shard, seq, ..)| *shard != 2 || *seq > 2);
    let mut audit = Audit::new(AuditOptions::default());
    for (topic, shard, seq, name, data) in &log.events {
        let event = json!({ "id": format!("{shard}-{seq}"), "type": format!("cabrank.{name}.v1"), "data": data });
        audit.event(topic, *shard, seq + 100, event.to_string().as_bytes());
    }
    let report = audit.finish();
    assert!(report.is_clean(), "{report}");
}

/// The right log cut before event 7 of shard 1, with the ride as it was then.
fn cut_with_base(skip: u64) -> AuditReport {
    let mut log = right().no_states();
    log.acknowledged.clear();
    let mut audit = Audit::new(AuditOptions::default());
    let base = json!({ "entity": "ride", "id": "1-1-10", "seq": 3, "stage": "claiming", "driver": "D", "attempt": 1 });
    audit.base(1, "ride/1-1-10", base.to_string().as_bytes());
    log.events
        .retain(|(_, shard, seq, ..)| *shard != 1 || *seq > 6 + skip);
    for (topic, shard, seq, name, data) in &log.events {
        let event = json!({ "id": format!("{shard}-{seq}"), "type": format!("cabrank.{name}.v1"), "data": data });
        audit.event(topic, *shard, seq + 100, event.to_string().as_bytes());
    }
    audit.finish()
}

#[test]
fn a_log_cut_by_retention_is_judged_from_the_snapshot_it_kept() {
    assert!(cut_with_base(0).is_clean(), "{}", cut_with_base(0));
    let report = cut_with_base(1);
    let gap = |v: &super::Violation| v.what.contains("ride_seq is 5, expected 4");
    assert!(report.violations.iter().any(gap), "{report}");
}

/// The right log, and then driver E goes from shard 2 to shard 3, where they go offline.
fn grown() -> Log {
    let mut log = right().no_states();
    let of_e =
        |(_, shard, _, _, data): &&(_, u16, _, _, Value)| *shard == 2 && data["driver"] == "E";
    let last = log
        .events
        .iter()
        .filter(of_e)
        .map(|(.., data)| data["driver_seq"].as_u64());
    let last = last.max().flatten().expect("E has done something");
    let seq = log
        .events
        .iter()
        .filter(|(_, shard, ..)| *shard == 2)
        .map(|(_, _, seq, ..)| *seq);
    let seq = seq.max().expect("shard 2 has events");
    let e = |own: u64, more: Value| {
        let mut data = json!({ "driver": "E", "driver_seq": last + own });
        let more = more.as_object().unwrap().clone();
        data.as_object_mut().unwrap().extend(more);
        data
    };
    let people = "person-events";
    let state =
        json!({ "id": "E", "seq": last + 1, "presence": "online", "session": 1, "held": null });
    log.events.extend([
        (
            people,
            2,
            seq + 1,
            "driver.handed_over",
            e(1, json!({ "to": 3 })),
        ),
        (
            people,
            3,
            1,
            "driver.taken_over",
            e(2, json!({ "from": 2, "state": state })),
        ),
        (
            people,
            3,
            2,
            "driver.offline",
            e(
                3,
                json!({ "session": 1, "why": "offline", "keep_until": 9 }),
            ),
        ),
    ]);
    log
}

#[test]
fn when_there_are_more_shards_people_go_on_in_another_one() {
    let report = grown().audit();
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.unknown_events, 0);
}

#[test]
fn nobody_lives_in_two_shards_or_comes_from_nowhere_or_is_lost_on_the_way() {
    let given = grown().events.len() - 3;
    let mut log = grown();
    log.events.remove(given);
    log.fails(3, "of a driver whom nobody has handed over");
    let mut log = grown();
    log.events[given + 1].3 = "driver.heading_set";
    log.fails(3, "on the way to another shard");
    let mut log = grown();
    log.events.truncate(given);
    log.events.push((
        "person-events",
        3,
        1,
        "driver.offline",
        grown().events[given + 2].4.clone(),
    ));
    log.fails(3, "stands in another shard than the driver");
    let mut log = grown();
    log.events.truncate(given + 1);
    log.options.complete = true;
    log.fails(5, "was handed over and never came");
}

/// Live: shards are read one after the other, so what stands in one may miss its counterpart in another. That excuses who moves,
/// and nobody else.
#[test]
fn an_event_in_the_wrong_shard_is_found_also_while_the_city_runs() {
    let live = |mut log: Log| {
        log = log.no_states();
        log.options = AuditOptions {
            live: true,
            ..AuditOptions::default()
        };
        log
    };
    let heads = |driver: &str, seq: u64| json!({ "driver": driver, "driver_seq": seq });
    let stray =
        |log: Log, shard| log.then("person-events", shard, "driver.heading_set", heads("E", 8));
    stray(live(right()), 3).fails(3, "stands in another shard than the driver");
    let rider = json!({ "rider": "r1", "rider_seq": 4, "key": "k1", "why": "too_old" });
    live(right())
        .then("person-events", 3, "rider.request_refused", rider)
        .fails(3, "stands in another shard than the rider");
    // From four shards to five: people go to the new one only.
    let growth = json!({ "market_seq": 1, "growth": { "from": 4, "to": 5 }, "step": "begun" });
    let grows = || live(right()).then("person-events", 0, "market.ring_grows", growth.clone());
    stray(grows(), 3).fails(3, "stands in another shard than the driver");
    stray(grows(), 1).fails(3, "stands in another shard than the driver");
    let report = stray(grows(), 4).audit();
    assert!(report.is_clean(), "forgotten there, unread: {report}");
}

#[test]
fn a_growth_under_way_is_no_finding_in_a_log_that_is_read_meanwhile() {
    // What shard 2 said last was written after it had been read: E's release and handover, or only the handover.
    for unread in [1, 2] {
        let mut log = grown();
        log.options = AuditOptions {
            live: true,
            ..AuditOptions::default()
        };
        let newest = |log: &Log| log.events.iter().filter(|e| e.1 == 2).map(|e| e.2).max();
        for _ in 0..unread {
            let newest = newest(&log);
            log.events.retain(|e| e.1 != 2 || Some(e.2) != newest);
        }
        let report = log.clone().audit();
        assert!(report.is_clean(), "{unread} unread: {report}");
        log.options.live = false;
        log.fails(3, "of a driver whom nobody has handed over");
    }
}

/// Rider r1 moves, too: from shard 1 to shard 3.
fn grown_with_rider() -> Log {
    let rider = |seq: u64, more: Value| {
        let mut data = json!({ "rider": "r1", "rider_seq": seq });
        data.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        data
    };
    let state = json!({ "entity": "rider", "id": "r1", "seq": 4, "active": null });
    let people = "person-events";
    let comes = json!({ "from": 1, "state": state });
    grown()
        .then(people, 1, "rider.handed_over", rider(4, json!({ "to": 3 })))
        .then(people, 3, "rider.taken_over", rider(5, comes))
}

#[test]
fn who_moves_keeps_their_hold_and_their_ride() {
    let log = grown_with_rider();
    let report = log.audit();
    assert!(report.is_clean(), "{report}");
    let place = |log: &Log, name: &str| log.events.iter().position(|e| e.3 == name).unwrap();
    let (driver, rider) = (
        place(&log, "driver.taken_over"),
        place(&log, "rider.taken_over"),
    );
    // Somebody gives E a hold on the way.
    let mut wrong = log.clone();
    let hold = json!({ "hold": { "ride": "1-1-10", "attempt": 2 }, "number": 6 });
    wrong.events[driver].4["state"]["held"] = hold;
    wrong.fails(1, "comes with another hold");
    // It takes E's hold away: the release is still to come when E goes.
    let mut wrong = log.clone();
    let released = place(&log, "driver.handed_over") - 1;
    let released = (0..=released)
        .rfind(|at| log.events[*at].3 == "driver.released")
        .unwrap();
    assert_eq!(log.events[released].4["driver"], "E");
    wrong.events[released].3 = "driver.heading_set";
    wrong.fails(1, "comes with another hold");
    let mut wrong = log.clone();
    wrong.events[rider].4["state"]["active"] = json!("1-1-10");
    wrong.fails(5, "comes with another ride");
    let mut wrong = log.clone();
    let free = place(&log, "rider.free");
    wrong.events[free].3 = "rider.request_refused";
    wrong.fails(5, "comes with another ride");
    // And comes from somewhere.
    let mut wrong = log.clone();
    wrong.events.remove(place(&log, "rider.handed_over"));
    wrong.fails(3, "of a rider whom nobody has handed over");
}

#[test]
fn a_dropped_event_is_found() {
    let mut log = right();
    log.events.remove(log.at(1, 8));
    log.clone()
        .fails(3, "the shard's events 8 to 8 are missing");
    log.fails(3, "ride_seq is 6, expected 5");
    let mut log = right();
    log.events.remove(log.at(2, 1));
    log.fails(3, "first event has number 2, not 1");
    right()
        .without(2, 3)
        .fails(3, "driver_seq is 4, expected 3");
    right().without(1, 3).fails(3, "rider_seq is 3, expected 2");
}

#[test]
fn a_doubled_id_is_found() {
    let mut log = right();
    let again = log.events[log.at(1, 9)].clone();
    log.events.push(again);
    log.fails(3, "event id 1-9 is doubled");
}

#[test]
fn events_out_of_order_are_found() {
    let mut log = right();
    let (a, b) = (log.at(1, 8), log.at(1, 9));
    log.events.swap(a, b);
    log.fails(3, "stands before an older one");
}

#[test]
fn an_event_after_the_end_is_found() {
    let after =
        json!({ "ride": "1-1-10", "ride_seq": 14, "driver": "D", "attempt": 3, "hold_number": 9 });
    right()
        .then("ride-events", 1, "ride.driver_assigned", after.clone())
        .fails(3, "follows the end (completed)");
    right()
        .then("ride-events", 1, "ride.cancelled", after)
        .fails(2, "ride.cancelled follows the end");
}

#[test]
fn a_double_hold_is_found() {
    let other =
        json!({ "driver": "E", "driver_seq": 7, "ride": "3-3-3", "attempt": 1, "hold_number": 7 });
    let mut log = right().no_states();
    log.events.truncate(log.events.len() - 1);
    log.then("person-events", 2, "driver.held", other)
        .fails(1, "held again while hold 6");
    right().set(2, 6, "hold_number", json!(2)).fails(1, "hold");
    right()
        .set(2, 7, "attempt", json!(9))
        .fails(1, "released that did not stand");
}

/// The right log, but that E brings the ride home as the second of two: D is swapped for E on the way to the pickup.
/// Ride 1-1-20 of another rider then asks for E, and does not get it.
fn swapped() -> Log {
    const R: &str = "1-1-10";
    let mut log = right().no_states();
    log.events
        .retain(|(_, shard, seq, ..)| !(*shard == 1 && (10..=14).contains(seq)));
    log.events.retain(|(_, shard, ..)| *shard != 2);
    let at = log.at(1, 15);
    let tail = log.events.split_off(at);
    let ride = |seq: u64, more: Value| {
        let mut data = json!({ "ride": R, "ride_seq": seq });
        data.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        data
    };
    let rides = "ride-events";
    let second = json!({ "driver": "E", "attempt": 2, "hold_number": 6 });
    let change = json!({ "driver": "E", "attempt": 2, "hold_number": 6, "before": "D" });
    let by = json!({ "driver": "E", "attempt": 2, "by": { "ride": "1-1-20", "attempt": 1 } });
    let with = |driver: &str, attempt: u64| json!({ "driver": driver, "attempt": attempt });
    log = log
        .then(rides, 1, "ride.driver_claimed", ride(7, with("E", 2)))
        .then(rides, 1, "ride.second_hold_granted", ride(8, second))
        .then(rides, 1, "ride.driver_reassigned", ride(9, change))
        .then(rides, 1, "ride.hold_asked", ride(10, by))
        .then(rides, 1, "ride.report_waits", ride(11, with("E", 2)))
        .then(rides, 1, "ride.hold_kept", ride(12, with("E", 2)));
    for (topic, shard, _, name, mut data) in tail {
        match name {
            "ride.started" => data["ride_seq"] = json!(13),
            "ride.completed" => data["ride_seq"] = json!(14),
            _ => {}
        }
        log = log.then(topic, shard, name, data);
    }
    let hold = |driver: &str, seq: u64, attempt: u64, number: u64| json!({ "driver": driver, "driver_seq": seq, "ride": R, "attempt": attempt, "hold_number": number });
    let driver = |driver: &str, seq: u64| json!({ "driver": driver, "driver_seq": seq, "session": 1, "rider": "r9", "reason": "x" });
    let people = "person-events";
    log.then(people, 2, "driver.online", driver("D", 1))
        .then(people, 2, "driver.held", hold("D", 2, 1, 2))
        .then(people, 2, "driver.rider_blocked", driver("E", 3))
        .then(people, 2, "driver.rider_unblocked", driver("E", 4))
        .then(people, 2, "driver.online", driver("E", 5))
        .then(people, 2, "driver.held", hold("E", 6, 2, 6))
        .then(people, 2, "driver.released", hold("D", 3, 1, 2))
        .then(people, 2, "driver.suspended", driver("D", 4))
        .then(people, 2, "driver.offline", driver("D", 5))
        .then(people, 2, "driver.reinstated", driver("D", 6))
        .then(people, 2, "driver.released", hold("E", 7, 2, 6))
}

#[test]
fn rides_may_exchange_their_cars_as_long_as_every_hold_has_one_ride() {
    let report = swapped().audit();
    assert!(report.is_clean(), "{report}");
    let seq = |name: &str| {
        let log = swapped();
        let found = log.events.iter().find(|event| event.3 == name).unwrap();
        (found.1, found.2)
    };
    let without = |name: &str| {
        let (shard, seq) = seq(name);
        swapped().without(shard, seq)
    };
    let (shard, reassigned) = seq("ride.driver_reassigned");
    swapped()
        .set(shard, reassigned, "driver", json!("F"))
        .fails(5, "another hold than the second one");
    swapped()
        .set(shard, reassigned, "hold_number", json!(5))
        .fails(1, "hold 5 was never given");
    without("ride.hold_kept").fails(5, "may yet be another ride's");
    without("ride.hold_asked").fails(5, "nothing to wait for");
    without("ride.second_hold_granted").fails(3, "ride_seq");
    without("driver.released").fails(4, "does not want it");
}

#[test]
fn who_is_suspended_or_kept_apart_is_not_held() {
    let swap = |from: &str, to: &'static str| {
        let mut log = swapped();
        let at = log.events.iter().position(|e| e.3 == from).unwrap();
        log.events[at].3 = to;
        log
    };
    // E is suspended and goes online, D is never reinstated and forgotten: neither may be.
    swap("driver.rider_blocked", "driver.suspended").fails(1, "held while suspended");
    swap("driver.rider_blocked", "driver.suspended").fails(5, "online while suspended");
    swap("driver.reinstated", "driver.forgotten").fails(5, "forgotten with a suspension");
    let mut log = swapped();
    let blocked = log
        .events
        .iter()
        .position(|e| e.3 == "driver.rider_blocked");
    let unblocked = log
        .events
        .iter()
        .position(|e| e.3 == "driver.rider_unblocked");
    log.events[blocked.unwrap()].4["rider"] = json!("r1");
    log.events[unblocked.unwrap()].4["rider"] = json!("r2");
    log.fails(1, "held for rider r1, who is blocked");
}

#[test]
fn ride_and_driver_must_speak_of_the_same_hold() {
    right()
        .set(1, 14, "hold_number", json!(5))
        .fails(1, "hold 5 was never given");
    right()
        .set(1, 7, "hold_number", json!(6))
        .fails(1, "hold 6");
}

#[test]
fn two_open_rides_with_one_driver_are_found() {
    let mut log = right().no_states();
    log.options.complete = false;
    log.events.truncate(log.at(1, 15));
    log.acknowledged.clear();
    for (shard, ride) in [(1u16, "1-1-20"), (3, "3-1-21")] {
        let data = |seq: u64| json!({ "ride": ride, "ride_seq": seq, "driver": "E", "attempt": 1, "hold_number": 6 });
        log = log.then("ride-events", shard, "ride.requested", data(1));
        log = log.then("ride-events", shard, "ride.driver_claimed", data(2));
        log = log.then("ride-events", shard, "ride.offer_made", data(3));
    }
    log.fails(1, "two open rides have this driver");
}

#[test]
fn a_ride_without_an_end_is_open_and_wrong_only_in_a_complete_log() {
    let mut log = right().no_states();
    log.events
        .retain(|(_, shard, seq, ..)| !(*shard == 1 && *seq > 15 || *shard == 2 && *seq > 6));
    log.options.complete = false;
    let report = log.audit();
    assert!(report.is_clean() && report.open == 1, "{report}");
    log.options.complete = true;
    log.clone()
        .fails(2, "the log is complete, but the ride is started");
    log.fails(2, "rider r1 was never freed");
}

#[test]
fn a_promise_without_a_ride_is_found() {
    let mut log = right();
    log.acknowledged.push("1-1-99");
    log.fails(2, "an acknowledged ride is nowhere in the log");
    let mut log = right();
    for seq in [1, 3, 17] {
        log = log.set(1, seq, "ride", json!("1-1-99"));
    }
    log.fails(2, "it was opened, but it is nowhere");
    right()
        .set(1, 4, "ride", json!("1-1-99"))
        .fails(2, "a request was answered with it");
    right()
        .set(1, 17, "end", json!("cancelled"))
        .fails(2, "the rider was told cancelled, but the ride is completed");
}

#[test]
fn a_hold_without_its_ride_is_found() {
    let mut log = right().no_states();
    log.events.pop();
    log.clone().fails(4, "does not want it");
    log.options.complete = false;
    assert_eq!(log.audit().releases_under_way, 1);
    assert!(log.audit().is_clean());
    log.options.pending_known = true;
    log.clone().fails(4, "does not want it");
    let mut audit = Audit::new(log.options);
    audit.pending(br#"{"v":1,"type":"release_driver","data":{"driver":"E","hold":{"ride":"1-1-10","attempt":2}}}"#);
    for (at, (topic, shard, seq, name, data)) in log.events.iter().enumerate() {
        let event = json!({ "id": format!("{shard}-{seq}"), "type": format!("cabrank.{name}.v1"), "data": data });
        audit.event(topic, *shard, at as u64, event.to_string().as_bytes());
    }
    let report = audit.finish();
    assert!(
        report.violations.iter().all(|v| v.invariant != 4),
        "{report}"
    );
}

#[test]
fn a_ride_whose_driver_is_not_held_is_found() {
    let mut log = right().no_states();
    log.options.complete = false;
    log.events
        .retain(|(_, shard, seq, ..)| *shard != 1 || *seq <= 15);
    log.fails(4, "the ride is started with a driver who is not held");
    let offline = json!({ "driver": "E", "driver_seq": 7, "session": 8 });
    let mut log = right().no_states();
    log.events.pop();
    log.then("person-events", 2, "driver.offline", offline)
        .fails(4, "a held driver went offline");
}

#[test]
fn an_impossible_step_is_found() {
    right()
        .set(1, 12, "attempt", json!(1))
        .fails(5, "attempt 1 was used before");
    right()
        .set(1, 8, "driver", json!("X"))
        .fails(5, "it names another hold");
    right()
        .without(1, 9)
        .set(1, 9, "ride_seq", json!(6))
        .fails(5, "ride.driver_arrived is impossible");
    let busy = json!({ "rider": "r1", "rider_seq": 3, "ride": "1-1-30", "key": "k2" });
    let mut log = right().no_states();
    log.events
        .retain(|(_, shard, seq, ..)| *shard != 1 || *seq < 17);
    log.then("person-events", 1, "rider.busy", busy)
        .fails(5, "the rider has a ride already");
}

#[test]
fn a_state_that_is_not_the_fold_is_found() {
    right()
        .state(0, "seq", json!(12))
        .fails(5, "seq is 12, the events say 13");
    right()
        .state(0, "end", json!("cancelled"))
        .fails(5, "stage is cancelled, the events say completed");
    right()
        .state(1, "active", json!("1-1-10"))
        .fails(5, "active ride is 1-1-10, the events say nothing");
    right()
        .state(2, "presence", json!("online"))
        .fails(5, "presence is online, the events say offline");
    right()
        .state(3, "session", json!(9))
        .fails(5, "session is 9");
    let held = json!({ "hold": { "ride": "1-1-10", "attempt": 2 }, "number": 6 });
    right()
        .state(3, "held", held)
        .fails(5, "hold is 1-1-10#2 (6), the events say nothing");
    let mut log = right();
    log.states.remove(3);
    log.fails(5, "a remembered driver has no state");
    let mut log = right();
    log.states.push((
        1,
        json!({ "entity": "ride", "id": "1-1-77", "seq": 1, "stage": "waiting" }),
    ));
    log.fails(5, "it has a state but no event");
}

#[test]
fn unreadable_and_misplaced_events_are_found() {
    let mut audit = Audit::new(AuditOptions::default());
    audit.event("ride-events", 0, 0, b"garbage");
    audit.event(
        "ride-events",
        0,
        1,
        br#"{"id":"1-1","type":"cabrank.ride.requested.v1","data":{}}"#,
    );
    audit.event(
        "ride-events",
        0,
        2,
        br#"{"id":"0-1","type":"cabrank.ride.requested.v1","data":{}}"#,
    );
    let report = audit.finish();
    assert_eq!(report.violations_total, 3, "{report}");
    assert!(
        report.to_string().contains("at ride-events/0@0"),
        "{report}"
    );
    assert!(
        report
            .to_string()
            .contains("names shard 1, but it stands in shard 0"),
        "{report}"
    );
}

#[test]
fn the_report_reads_back_from_json() {
    let mut log = right();
    log.events.remove(3);
    let report = log.audit();
    let text = serde_json::to_string(&report).unwrap();
    assert_eq!(serde_json::from_str::<AuditReport>(&text).unwrap(), report);
}
