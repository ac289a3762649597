//! Days of a driver, without socket or clock.

use cabrank_events::DriverId;
use cabrank_events::command::RefusedBecause;

use super::*;

fn point(lat: f64, lon: f64) -> Point {
    Point::new(lat, lon).unwrap()
}

fn hold(attempt: u32) -> HoldId {
    HoldId {
        ride: "1-2-3".parse().unwrap(),
        attempt,
    }
}

fn offer(attempt: u32, pickup: Point) -> Heard<'static> {
    Heard::Offer {
        hold: hold(attempt),
        pickup: Place(pickup),
        dropoff: Some(Place(point(37.78, -122.40))),
    }
}

fn driven(manners: Manners, until: Option<i64>) -> Cabbie {
    let movement = Movement::Driven {
        start: point(37.77, -122.42),
        city: None,
        ping_every_ms: 60_000,
        ping_at_changes: true,
        until: until.map(Time),
    };
    let recorded: RideLength = Arc::new(|_, _| Some(300_000));
    Cabbie::new(manners, movement, Some(recorded), 7)
}

/// What a brain said, in short: pings as `ping@time`, commands by name.
fn said(out: &mut Vec<Do>) -> Vec<String> {
    let short = |order| match order {
        Do::Ping(ping) => format!("ping@{}", ping.time.unwrap()),
        Do::Say(say, hold) => format!("{say:?} {}", hold.attempt),
        Do::LoseSignal { until } => format!("lost until {}", until.0),
        other => format!("{other:?}"),
    };
    out.drain(..).map(short).collect()
}

/// Lets time pass up to `to`, calling the brain whenever it asked for it.
fn pass(brain: &mut Cabbie, to: i64, out: &mut Vec<Do>) {
    while let Some(at) = brain.poll_time().filter(|at| at.0 <= to) {
        brain.handle_time(at, out);
        assert!(
            brain.poll_time() != Some(at),
            "the brain wants {at:?} again and again"
        );
    }
}

fn commands(out: &mut Vec<Do>) -> Vec<String> {
    said(out)
        .into_iter()
        .filter(|line| !line.starts_with("ping"))
        .collect()
}

#[test]
fn a_dispatched_cab_drives_there_and_the_ride_lasts_as_recorded() {
    let mut cab = driven(Manners::obliging(7.0), Some(10_000_000));
    let mut out = Vec::new();
    cab.begin(Time(0), &mut out);
    assert_eq!(said(&mut out), ["Online", "ping@0"]);
    let pickup = point(37.77, -122.42).offset_m(700.0, 0.0);
    cab.handle_heard(Time(1_000), offer(1, pickup), &mut out);
    assert_eq!(commands(&mut out), ["Received 1", "Accept 1"]);
    cab.handle_heard(Time(2_000), Heard::Done(Say::Accept, hold(1)), &mut out);
    assert_eq!(said(&mut out), ["ping@2000"], "a meter tells each change");
    pass(&mut cab, 101_900, &mut out);
    assert_eq!(
        commands(&mut out),
        Vec::<String>::new(),
        "700 m at 7 m/s take 100 s"
    );
    pass(&mut cab, 102_100, &mut out);
    assert_eq!(commands(&mut out), ["Arrived 1", "Started 1"]);
    assert!(cab.leg.at(102_100).distance_m(pickup) < 1.0);
    pass(&mut cab, 401_800, &mut out);
    assert_eq!(commands(&mut out), Vec::<String>::new());
    pass(&mut cab, 402_200, &mut out);
    assert_eq!(commands(&mut out), ["Completed 1"]);
    assert!(cab.leg.at(402_200).distance_m(point(37.78, -122.40)) < 1.0);
    pass(&mut cab, 10_000_000, &mut out);
    assert_eq!(commands(&mut out), ["Offline", "HangUp"]);
}

fn report(time: i64, occupied: bool) -> Report {
    let vehicle = DriverId::new("abc").unwrap();
    Report {
        vehicle,
        time: Time(time),
        lat: 37.77,
        lon: -122.42,
        occupied,
    }
}

#[test]
fn a_recorded_cab_is_available_as_its_reports_say_and_sends_every_one() {
    let flags = [
        (0, false),
        (60, false),
        (120, true),
        (180, true),
        (240, false),
    ];
    let reports = flags
        .map(|(s, occupied)| report(s * 1000, occupied))
        .to_vec();
    let mut cab = Cabbie::new(
        Manners::obliging(7.0),
        Movement::Recorded { reports },
        None,
        7,
    );
    let mut out = Vec::new();
    cab.begin(Time(0), &mut out);
    pass(&mut cab, 239_999, &mut out);
    assert_eq!(
        said(&mut out),
        [
            "Online",
            "ping@0",
            "ping@60000",
            "ping@120000",
            "Offline",
            "ping@180000"
        ]
    );
    cab.handle_time(Time(240_000), &mut out);
    assert_eq!(
        said(&mut out),
        ["Online", "ping@240000", "Offline", "HangUp"]
    );
}

#[test]
fn a_recorded_cab_with_a_ride_of_ours_ignores_its_flag_until_the_end() {
    let flags = [
        (0, false),
        (10, true),
        (20, false),
        (30, true),
        (5_000, false),
    ];
    let reports = flags
        .map(|(s, occupied)| report(s * 1000, occupied))
        .to_vec();
    let mut cab = Cabbie::new(
        Manners::obliging(7.0),
        Movement::Recorded { reports },
        None,
        7,
    );
    let mut out = Vec::new();
    cab.begin(Time(0), &mut out);
    cab.handle_heard(Time(1_000), offer(1, point(37.77, -122.42)), &mut out);
    cab.handle_heard(Time(1_500), Heard::Done(Say::Accept, hold(1)), &mut out);
    said(&mut out);
    pass(&mut cab, 4_000_000, &mut out);
    let all = said(&mut out);
    let offline = all.iter().position(|line| line == "Offline").unwrap();
    let completed = all.iter().position(|line| line == "Completed 1").unwrap();
    assert_eq!(
        offline,
        completed + 1,
        "offline as soon as the ride is over: {all:?}"
    );
    assert_eq!(
        all.iter().filter(|line| line.starts_with("ping")).count(),
        3
    );
}

#[test]
fn whatever_is_refused_or_taken_back_sets_the_driver_free() {
    for taken_back in [
        Heard::Refused(Say::Accept, hold(1), Some(RefusedBecause::Lapsed)),
        Heard::Over(hold(1)),
    ] {
        let mut cab = driven(Manners::obliging(7.0), None);
        let mut out = Vec::new();
        cab.begin(Time(0), &mut out);
        cab.handle_heard(Time(1), offer(1, point(37.8, -122.4)), &mut out);
        cab.handle_heard(Time(2), taken_back, &mut out);
        out.clear();
        cab.handle_heard(Time(3), Heard::Done(Say::Accept, hold(1)), &mut out);
        assert_eq!(
            commands(&mut out),
            Vec::<String>::new(),
            "a late yes to a hold that is over"
        );
        cab.handle_heard(Time(4), offer(2, point(37.8, -122.4)), &mut out);
        assert_eq!(commands(&mut out), ["Received 2", "Accept 2"]);
    }
}

#[test]
fn an_unanswered_offer_that_is_not_told_again_on_a_new_socket_is_over() {
    let slow = Manners {
        think_ms: 5_000..=5_000,
        ..Manners::obliging(7.0)
    };
    let mut cab = driven(slow, None);
    let mut out = Vec::new();
    cab.begin(Time(0), &mut out);
    cab.handle_heard(Time(1), offer(1, point(37.8, -122.4)), &mut out);
    cab.handle_heard(Time(2), Heard::Reconnected, &mut out);
    cab.handle_heard(Time(3), offer(1, point(37.8, -122.4)), &mut out);
    cab.handle_heard(Time(4), Heard::Online, &mut out);
    assert!(cab.work().is_some(), "the offer was told again");
    cab.handle_heard(Time(5), Heard::Reconnected, &mut out);
    cab.handle_heard(Time(6), Heard::Online, &mut out);
    assert_eq!(cab.work(), None);
}

#[test]
fn the_end_of_a_run_ends_what_is_open_at_once() {
    let mut cab = driven(Manners::obliging(7.0), None);
    let mut out = Vec::new();
    cab.begin(Time(0), &mut out);
    cab.handle_heard(Time(1), offer(1, point(37.9, -122.4)), &mut out);
    cab.handle_heard(Time(2), Heard::Done(Say::Accept, hold(1)), &mut out);
    out.clear();
    cab.handle_ending(Time(3), &mut out);
    assert_eq!(said(&mut out), ["Arrived 1", "Started 1", "Completed 1"]);
    assert_eq!(cab.poll_time(), None);
    cab.handle_heard(Time(4), offer(2, point(37.9, -122.4)), &mut out);
    assert_eq!(said(&mut out), ["Received 2", "Decline 2"]);
}

#[test]
fn manners_are_kept_in_the_long_run() {
    let manners = Manners {
        decline: 0.05,
        ignore: 0.02,
        give_back: 0.01,
        ..crate::demo::manners()
    };
    let mut counts = std::collections::BTreeMap::<&str, u32>::new();
    for seed in 0..20_000 {
        let movement = Movement::Driven {
            start: point(37.77, -122.42),
            city: None,
            ping_every_ms: 1_000_000_000,
            ping_at_changes: false,
            until: None,
        };
        let manners = Manners {
            lose_signal_every_ms: 0,
            ..manners.clone()
        };
        let mut cab = Cabbie::new(manners, movement, None, seed);
        let mut out = Vec::new();
        cab.begin(Time(0), &mut out);
        cab.handle_heard(Time(0), offer(1, point(37.8, -122.4)), &mut out);
        pass(&mut cab, 10_000, &mut out);
        cab.handle_heard(Time(10_000), Heard::Done(Say::Accept, hold(1)), &mut out);
        pass(&mut cab, 40_000, &mut out);
        let all = commands(&mut out);
        let has = |what: &str| all.iter().any(|line| line == what);
        *counts.entry("declined").or_default() += u32::from(has("Decline 1"));
        *counts.entry("given back").or_default() += u32::from(has("Cancel 1"));
        let silent = !has("Decline 1") && !has("Accept 1");
        *counts.entry("ignored").or_default() += u32::from(silent);
    }
    let near = |what: &str, expected: f64| {
        let found = f64::from(counts[what]);
        assert!(
            (found - expected).abs() < 0.2 * expected,
            "{what}: {found}, expected {expected}"
        );
    };
    near("declined", 1_000.0);
    near("ignored", 400.0);
    near("given back", 186.0);
}

#[test]
fn who_is_asked_on_the_way_lets_another_driver_have_the_ride() {
    let mut cab = driven(Manners::obliging(7.0), Some(10_000_000));
    let mut out = Vec::new();
    cab.begin(Time(0), &mut out);
    cab.handle_heard(Time(1_000), offer(1, point(37.8, -122.4)), &mut out);
    cab.handle_heard(Time(2_000), Heard::Done(Say::Accept, hold(1)), &mut out);
    out.clear();
    let view = |attempt: u32, asked: serde_json::Value| {
        let mut view = serde_json::json!({
            "ride": "1-2-3", "ride_seq": 6, "stage": "en_route", "rider": "r1", "class": "economy",
            "pickup": { "lat": 37.8, "lon": -122.4 }, "requested_at": 0, "driver": "d7", "attempt": attempt,
        });
        if asked.is_object() {
            view["swap_asked"] = asked;
        }
        serde_json::from_value(view).unwrap()
    };
    let question = serde_json::json!({ "gain_s": 140, "answer_by": 20_000 });
    let asked = view(1, question.clone());
    cab.handle_heard(Time(3_000), Heard::Ride(&asked), &mut out);
    assert_eq!(commands(&mut out), ["Accept 1"]);
    let answered = view(1, serde_json::Value::Null);
    cab.handle_heard(Time(4_000), Heard::Done(Say::Accept, hold(1)), &mut out);
    cab.handle_heard(Time(4_000), Heard::Ride(&answered), &mut out);
    let another = view(2, question);
    cab.handle_heard(Time(5_000), Heard::Ride(&another), &mut out);
    assert_eq!(commands(&mut out), Vec::<String>::new(), "nothing is asked");
}

fn en_route(ride: &str, attempt: u32) -> cabrank_events::wire::RideView {
    serde_json::from_value(serde_json::json!({
        "ride": ride, "ride_seq": 6, "stage": "en_route", "rider": "r1", "class": "economy",
        "pickup": { "lat": 37.8, "lon": -122.4 }, "requested_at": 0, "driver": "d7", "attempt": attempt,
    }))
    .unwrap()
}

#[test]
fn who_loses_a_ride_by_an_exchange_after_the_shift_still_fetches_the_other_rider() {
    let hold_of_the_other = HoldId {
        ride: "1-2-9".parse().unwrap(),
        attempt: 4,
    };
    let shift_ends_at_10_s = || driven(Manners::obliging(7.0), Some(10_000));
    let seen_last_at_10_s = || {
        let reports = vec![report(0, false), report(10_000, true)];
        let movement = Movement::Recorded { reports };
        Cabbie::new(Manners::obliging(7.0), movement, None, 7)
    };
    for mut cab in [shift_ends_at_10_s(), seen_last_at_10_s()] {
        let mut out = Vec::new();
        cab.begin(Time(0), &mut out);
        cab.handle_heard(Time(1_000), offer(1, point(37.8, -122.4)), &mut out);
        cab.handle_heard(Time(2_000), Heard::Done(Say::Accept, hold(1)), &mut out);
        pass(&mut cab, 20_000, &mut out);
        out.clear();
        cab.handle_heard(Time(20_000), Heard::Swapped(hold(1)), &mut out);
        pass(&mut cab, 22_000, &mut out);
        assert_eq!(commands(&mut out), Vec::<String>::new(), "not gone yet");
        let other = en_route("1-2-9", 4);
        cab.handle_heard(Time(22_000), Heard::Ride(&other), &mut out);
        assert_eq!(cab.work().map(|work| work.hold), Some(hold_of_the_other));
        pass(&mut cab, 10_000_000, &mut out);
        let all = commands(&mut out);
        let expected = ["Arrived 4", "Started 4", "Completed 4", "Offline", "HangUp"];
        assert_eq!(all, expected);
    }
    for mut cab in [shift_ends_at_10_s(), seen_last_at_10_s()] {
        let mut out = Vec::new();
        cab.begin(Time(0), &mut out);
        cab.handle_heard(Time(1_000), offer(1, point(37.8, -122.4)), &mut out);
        cab.handle_heard(Time(2_000), Heard::Done(Say::Accept, hold(1)), &mut out);
        pass(&mut cab, 20_000, &mut out);
        out.clear();
        cab.handle_heard(Time(20_000), Heard::Swapped(hold(1)), &mut out);
        pass(&mut cab, 20_000 + SWAP_NEWS_MS, &mut out);
        assert_eq!(commands(&mut out), ["Offline", "HangUp"], "nothing came");
    }
}

#[test]
fn a_rider_who_wants_to_go_elsewhere_is_brought_there() {
    let mut cab = driven(Manners::obliging(7.0), Some(10_000_000));
    let mut out = Vec::new();
    cab.begin(Time(0), &mut out);
    let pickup = point(37.77, -122.42);
    let led_to = |stage: &str, to: Point| -> cabrank_events::wire::RideView {
        let place = |at: Point| serde_json::json!({ "lat": at.lat_deg(), "lon": at.lon_deg() });
        serde_json::from_value(serde_json::json!({
            "ride": "1-2-3", "ride_seq": 6, "stage": stage, "rider": "r1", "class": "economy",
            "pickup": place(pickup), "dropoff": place(to), "requested_at": 0, "driver": "d7", "attempt": 1,
        }))
        .unwrap()
    };
    // Made again with another end while it is on the screen, changed on the way, and once more with the rider in the car.
    cab.handle_heard(Time(1_000), offer(1, pickup), &mut out);
    cab.handle_heard(Time(2_000), Heard::Done(Say::Accept, hold(1)), &mut out);
    let first = led_to("en_route", pickup.offset_m(7_000.0, 0.0));
    cab.handle_heard(Time(2_000), Heard::Ride(&first), &mut out);
    pass(&mut cab, 2_500, &mut out);
    out.clear();
    let north = pickup.offset_m(1_400.0, 0.0);
    cab.handle_heard(
        Time(3_000),
        Heard::Ride(&led_to("started", north)),
        &mut out,
    );
    pass(&mut cab, 199_000, &mut out);
    let early = commands(&mut out);
    assert_eq!(early, Vec::<String>::new(), "1,377 m were left, at 7 m/s");
    pass(&mut cab, 200_500, &mut out);
    assert_eq!(commands(&mut out), ["Completed 1"]);
    assert!(cab.leg.at(200_500).distance_m(north) < 1.0);
}
