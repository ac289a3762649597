//! What is refused, and does the remedy that the refusal states work? Each story follows it.

mod support;

use std::sync::{Arc, Mutex};

use cabrank_events::command::EntityId;
use cabrank_events::wire::{QueueView, RideView};
use cabrank_events::{CommandRecord, DriverId, Place, RideId, RiderId, SessionId, Time};
use cabrank_gateway::token::Role;
use cabrank_matcher::Node;
use cabrank_matcher::api::{
    CarsNear, Dispatch, DriverSeen, DriverView, EventCursor, EventsUnreadable, History, Listener,
    MarketView, NearbyQuery, NodeSeen, NotAnswered, NotTaken, Pinged, Position, ReadEvent, Soon,
};
use reqwest::{Method, Response};
use serde_json::{Value, json};
use support::{City, OPS, Who, answered, refusal, wish};

const ANN: Who<'static> = Some((Role::Rider, "ann"));
const NEW_KEY: &str = "with a new Idempotency-Key";

async fn cancel_key(city: &City, rider: &str, key: &str) -> Response {
    let rider: Who = Some((Role::Rider, rider));
    city.post("/v1/cancel", rider, &json!({"key":key})).await
}

async fn cancel(city: &City, who: Who<'_>, ride: &str) -> Response {
    let path = format!("/v1/rides/{ride}/cancel");
    city.post(&path, who, &json!({})).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_key_is_the_remedy_where_a_refusal_is_remembered() {
    let city = City::with(|_, engine| engine.rides_max = 1).await;
    let first = city.ride("ann", "k1").await;
    let second = refusal(city.ask("ann", "k2", &wish()).await).await;
    second.is(409, "already_riding", NEW_KEY);
    // One open ride is all the shard of this place has room for.
    let no_room = refusal(city.ask("bob", "k1", &wish()).await).await;
    no_room.is(503, "shard_full", NEW_KEY);
    assert!(no_room.retry_after_s.is_some_and(|seconds| seconds > 0));
    answered(cancel(&city, ANN, &first).await, 200).await;
    let third = city.ride("ann", "k3").await;
    answered(cancel(&city, ANN, &third).await, 200).await;
    city.ride("bob", "k2").await;
    answered(cancel_key(&city, "bob", "k2").await, 200).await;

    answered(cancel_key(&city, "cid", "k1").await, 200).await;
    let taken_back = refusal(city.ask("cid", "k1", &wish()).await).await;
    taken_back.is(410, "cancelled_before", NEW_KEY);
    let ride = city.ride("cid", "k2").await;
    for (field, value) in [
        ("pickup", json!({"lat":37.75,"lon":-122.4194})),
        ("dropoff", json!({"lat":37.75,"lon":-122.4194})),
        ("class", json!("xl")),
    ] {
        let mut other = wish();
        other[field] = value;
        let reused = refusal(city.ask("cid", "k2", &other).await).await;
        reused.is(422, "key_reused", "use a new Idempotency-Key");
    }
    let same = answered(city.ask("cid", "k2", &wish()).await, 200).await;
    assert_eq!(same["ride"], ride, "the first wish stands");
    city.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rider_has_so_many_keys_and_a_known_one_still_answers() {
    let city = City::with(|_, engine| engine.keys_max = 2).await;
    let first = city.ride("ann", "k1").await;
    answered(cancel_key(&city, "ann", "k1").await, 200).await;
    city.ride("ann", "k2").await;
    answered(cancel_key(&city, "ann", "k2").await, 200).await;
    let full = refusal(city.ask("ann", "k3", &wish()).await).await;
    full.is(429, "too_many_keys", "retry with the same key");
    assert!(full.retry_after_s.is_some_and(|seconds| seconds > 0));
    let full = refusal(cancel_key(&city, "ann", "k4").await).await;
    full.is(429, "too_many_keys", "wait until the oldest keys expire");
    let known = answered(city.ask("ann", "k1", &wish()).await, 200).await;
    assert_eq!(known["ride"], first);
    city.ride("bob", "k3").await;
    city.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wish_from_the_future_or_the_past_is_refused_and_a_near_one_is_not() {
    let city = City::start().await;
    let issued = |ms: i64| {
        let mut wish = wish();
        wish["issued_at"] = json!(city.node.now().0 + ms);
        wish
    };
    let future = refusal(city.ask("ann", "k1", &issued(60_000)).await).await;
    future.is(422, "issued_in_future", "leave it out or set the clock");
    let past = refusal(city.ask("ann", "k2", &issued(-3_600_000)).await).await;
    past.is(410, "too_old", "ask again with a new Idempotency-Key");
    for extreme in [i64::MAX, i64::MIN] {
        let mut wish = wish();
        wish["issued_at"] = json!(extreme);
        let status = refusal(city.ask("ann", "k3", &wish).await).await.status;
        assert_eq!(status, if extreme > 0 { 422 } else { 410 });
    }
    // The key that came from the future was not used up: nothing was handed in.
    answered(city.ask("ann", "k1", &issued(2_000)).await, 201).await;
    answered(city.ask("bob", "k1", &issued(-10_000)).await, 201).await;
    city.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rider_who_calls_too_often_waits_whoever_calls_for_them() {
    let city = City::with(|gateway, _| gateway.limits.requests_per_minute = 3).await;
    let ride = city.ride("ann", "k1").await;
    answered(cancel(&city, ANN, &ride).await, 200).await;
    answered(cancel_key(&city, "ann", "k1").await, 200).await;
    let refusals = [
        city.ask("ann", "k2", &wish()).await,
        cancel(&city, ANN, &ride).await,
        cancel_key(&city, "ann", "k2").await,
        city.get("/v1/nearby?lat=37.77&lon=-122.42", ANN).await,
        {
            let desk: Who = Some((Role::Service, "desk"));
            let call = city.call(Method::POST, "/v1/rides", desk).json(&wish());
            let call = call
                .header("X-Rider", "ann")
                .header("Idempotency-Key", "k2");
            call.send().await.unwrap()
        },
    ];
    for answer in refusals {
        let refused = refusal(answer).await;
        let seconds = refused.retry_after_s.unwrap();
        assert!((1..=20).contains(&seconds), "three a minute: {seconds}");
        let remedy = format!("repeat the same request after {seconds} seconds");
        refused.is(429, "too_many_requests", &remedy);
    }
    city.ride("bob", "k1").await;
    // Reading costs nothing, and an operator has no rider's limit.
    answered(city.get(&format!("/v1/rides/{ride}"), ANN).await, 200).await;
    answered(cancel(&city, OPS, &ride).await, 200).await;
    city.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_not_right_is_named_and_a_large_one_is_not_read() {
    let city = City::with(|gateway, _| gateway.limits.frame_bytes_max = 1_024).await;
    for (body, what) in [
        ("", "EOF"),
        ("{", "EOF"),
        ("[]", "RideRequest"),
        ("{}", "missing field `pickup`"),
        (r#"{"pickup":null}"#, "null"),
        (r#"{"pickup":{"lat":"north","lon":0}}"#, "north"),
        (r#"{"pickup":{"lat":91,"lon":0}}"#, "91"),
        (r#"{"pickup":{"lat":0,"lon":181}}"#, "181"),
        (r#"{"pickup":{"lat":0,"lon":0},"class":"tank"}"#, "economy"),
        (r#"{"pickup":{"lat":0,"lon":0},"issued_at":"noon"}"#, "noon"),
    ] {
        let call = city.call(Method::POST, "/v1/rides", ANN).body(body);
        let call = call.header("Idempotency-Key", "k1").send().await.unwrap();
        let refused = refusal(call).await;
        refused.is(422, "bad_body", "send the JSON that docs/protocol.md shows");
        assert!(refused.detail.contains(what), "no {what:?} in {refused:?}");
    }
    let none = city.post("/v1/rides", ANN, &wish()).await;
    refusal(none)
        .await
        .is(400, "bad_request", "send the header Idempotency-Key");
    for (key, remedy) in [
        ("a b", "use letters, digits"),
        ("a/b", "use letters, digits"),
        ("", "send 1 to 64 characters"),
        (&*"k".repeat(65), "send at most 64"),
    ] {
        let refused = refusal(city.ask("ann", key, &wish()).await).await;
        refused.is(400, "bad_request", remedy);
        assert!(
            refused.detail.starts_with("Idempotency-Key: "),
            "{refused:?}"
        );
    }
    let mut large = wish();
    large["note"] = json!("x".repeat(2_000));
    let refused = refusal(city.ask("ann", "k1", &large).await).await;
    refused.is(413, "bad_body", "at most 1024 bytes");
    let large = json!({"key":"k1","note":"x".repeat(2_000)});
    let refused = refusal(city.post("/v1/cancel", ANN, &large).await).await;
    refused.is(413, "bad_body", "at most 1024 bytes");
    let refused = refusal(city.post("/v1/cancel", ANN, &json!({"key":"a b"})).await).await;
    refused.is(422, "bad_body", "use letters, digits");
    // The longest names and keys there may be, and what this server does not know in a body, do no harm.
    let mut plain = wish();
    plain["note"] = json!("by the fountain");
    let (rider, key) = ("r".repeat(64), "k".repeat(64));
    answered(city.ask(&rider, &key, &plain).await, 201).await;
    answered(cancel_key(&city, &rider, &key).await, 200).await;
    let wrong = city.post("/v1/nearby", OPS, &json!({})).await;
    refusal(wrong)
        .await
        .is(405, "wrong_method", "docs/protocol.md");
    refusal(city.get("/v2", OPS).await)
        .await
        .is(404, "unknown_path", "docs/protocol.md");
    city.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ride_can_be_called_off_until_it_begins() {
    let city = City::start().await;
    let mut driver = city.driver("d1").await;
    driver.online(&["economy"]).await;
    driver.ping(37.7751, -122.4190, 1).await;
    let ride = city.ride("ann", "k1").await;
    let mut phone = city.rider("ann").await;
    let offer = driver.hear("offer").await;
    driver
        .reports(&["received", "accept", "arrived", "started"], &offer)
        .await;
    let path = format!("/v1/rides/{ride}");
    let drives = async |driver| city.get(&path, Some((Role::Driver, driver))).await;
    assert_eq!(answered(drives("d1").await, 200).await["stage"], "started");
    refusal(drives("d2").await)
        .await
        .is(404, "unknown_ride", "you see only your own rides");
    let begun = "a ride can be called off only before it begins";
    refusal(cancel(&city, ANN, &ride).await)
        .await
        .is(409, "already_started", begun);
    refusal(cancel(&city, OPS, &ride).await)
        .await
        .is(409, "already_started", begun);
    let by_key = cancel_key(&city, "ann", "k1").await;
    refusal(by_key).await.is(409, "already_started", begun);
    phone
        .say(json!({"type":"cancel","id":"c1","ride":ride}))
        .await;
    let outcome = phone.hear("outcome").await;
    assert_eq!(
        (&outcome["result"], &outcome["why"]),
        (&json!("refused"), &json!("already_started"))
    );
    driver.reports(&["completed"], &offer).await;
    let over = "nothing is left to do";
    let by_desk: Who = Some((Role::Service, "desk"));
    refusal(cancel(&city, by_desk, &ride).await)
        .await
        .is(409, "ended", over);
    // Another message than before, so not the same outcome again.
    phone
        .say(json!({"type":"cancel","id":"c2","ride":ride}))
        .await;
    assert_eq!(phone.hear("outcome").await["why"], "ended");

    let ride = city.ride("ann", "k2").await;
    answered(cancel_key(&city, "ann", "k2").await, 200).await;
    for answer in [
        cancel(&city, ANN, &ride).await,
        cancel(&city, OPS, &ride).await,
        cancel_key(&city, "ann", "k2").await,
    ] {
        assert_eq!(answered(answer, 200).await["result"], "already_done");
    }
    // Taken back before it came: the request that arrives late opens nothing.
    let early = answered(cancel_key(&city, "ann", "k3").await, 200).await;
    assert_eq!(
        (&early["result"], early.get("ride")),
        (&json!("done"), None)
    );
    let late = refusal(city.ask("ann", "k3", &wish()).await).await;
    late.is(410, "cancelled_before", NEW_KEY);
    let again = answered(cancel_key(&city, "ann", "k3").await, 200).await;
    assert_eq!(again["result"], "already_done");
    city.end().await;
}

/// What becomes of commands at the door.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Through,
    /// As many wait as allowed.
    Busy,
    /// The log takes nothing.
    Closed,
    /// Taken, and never heard of again.
    Lost,
}

/// A node behind a door that the test opens and shuts.
struct Door {
    node: Node,
    /// Who is said to serve the shards.
    nodes: Vec<&'static str>,
    way: Arc<Mutex<Way>>,
}

impl Dispatch for Door {
    fn submit(&self, record: CommandRecord) -> Result<(), NotTaken> {
        match *self.way.lock().unwrap() {
            Way::Through => self.node.submit(record),
            Way::Busy => Err(NotTaken::Busy),
            Way::Closed => Err(NotTaken::Closed),
            Way::Lost => Ok(()),
        }
    }
    fn now(&self) -> Time {
        self.node.now()
    }
    fn is_ready(&self) -> bool {
        self.node.is_ready()
    }
    fn ping(&self, driver: &DriverId, at: Place, time: Time, seq: u32) -> Pinged {
        self.node.ping(driver, at, time, seq)
    }
    fn sign_of_life(&self, driver: &DriverId, session: SessionId) {
        self.node.sign_of_life(driver, session);
    }
    fn nearby(&self, query: &NearbyQuery) -> Soon<Result<CarsNear, NotAnswered>> {
        self.node.nearby(query)
    }
    fn position(&self, driver: &DriverId) -> Soon<Result<Option<Position>, NotAnswered>> {
        self.node.position(driver)
    }
    fn ride(&self, ride: RideId) -> Option<Arc<RideView>> {
        self.node.ride(ride)
    }
    fn ride_of(&self, rider: &RiderId) -> Option<RideId> {
        self.node.ride_of(rider)
    }
    fn market(&self) -> MarketView {
        self.node.market()
    }
    fn driver(&self, driver: &DriverId) -> Option<DriverView> {
        self.node.driver(driver)
    }
    fn queue_place(&self, driver: &DriverId) -> Option<QueueView> {
        self.node.queue_place(driver)
    }
    fn offer_times(&self, ride: RideId) -> Option<(Time, u64)> {
        self.node.offer_times(ride)
    }
    fn each_driver(&self, see: &mut dyn FnMut(DriverSeen<'_>)) {
        self.node.each_driver(see);
    }
    fn each_ride(&self, see: &mut dyn FnMut(&Arc<RideView>)) {
        self.node.each_ride(see);
    }
    fn nodes(&self) -> Option<Vec<NodeSeen>> {
        let seen = |name: &&str| NodeSeen {
            name: (*name).to_owned(),
            address: "127.0.0.1:1".into(),
            shards: vec![0],
        };
        Some(self.nodes.iter().map(seen).collect())
    }
    fn history(&self, entity: &EntityId, max: usize) -> Result<History, EventsUnreadable> {
        self.node.history(entity, max)
    }
    fn listen(&self, listener: Listener) {
        self.node.listen(listener);
    }
    fn events_end(&self) -> EventCursor {
        self.node.events_end()
    }
    fn events_start(&self) -> EventCursor {
        self.node.events_start()
    }
    fn events_since(&self, time: Time, most: u64) -> EventCursor {
        self.node.events_since(time, most)
    }
    fn read_events(
        &self,
        cursor: &EventCursor,
        max: usize,
    ) -> Result<Vec<ReadEvent>, EventsUnreadable> {
        self.node.read_events(cursor, max)
    }
    fn travel_time_s(&self, from: Place, to: Place) -> f64 {
        self.node.travel_time_s(from, to)
    }
}

/// A city whose gateway hands commands in by a door.
async fn city_with_a_door(outcome_timeout_ms: u64) -> (City, Arc<Mutex<Way>>) {
    let way = Arc::new(Mutex::new(Way::Through));
    let handle = way.clone();
    let change = |knobs: &mut support::Knobs| {
        knobs.gateway.timing.outcome_timeout_ms = outcome_timeout_ms;
        knobs.gateway.limits.waiting_outcomes_max = 16;
        knobs.gateway.limits.waiting_requests_max = 8;
        knobs.gateway.limits.session_waiting_max = 1;
    };
    let city = City::behind(change, |node, _| {
        Arc::new(Door {
            node,
            nodes: vec!["node-1", "node-2"],
            way,
        })
    })
    .await;
    (city, handle)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_is_not_taken_is_repeated_with_the_same_key() {
    let (city, way) = city_with_a_door(300).await;
    let mut driver = city.driver("d1").await;
    let cases = [
        (
            Way::Busy,
            "busy",
            "nothing was done: repeat the same request (with the same key)",
        ),
        (
            Way::Closed,
            "busy",
            "nothing was done: repeat the same request (with the same key)",
        ),
        (
            Way::Lost,
            "unknown",
            "repeat the same request (with the same key), it cannot happen twice",
        ),
    ];
    for (n, (shut, name, remedy)) in cases.into_iter().enumerate() {
        let rider = format!("rider-{n}");
        *way.lock().unwrap() = shut;
        let refused = refusal(city.ask(&rider, "k1", &wish()).await).await;
        refused.is(503, name, remedy);
        assert!(refused.retry_after_s.is_some_and(|seconds| seconds > 0));
        let online = json!({"type":"online","id":format!("m{n}"),"classes":["economy"]});
        driver.say(online.clone()).await;
        let outcome = driver.hear("outcome").await;
        assert_eq!(
            (&outcome["id"], &outcome["result"]),
            (&online["id"], &json!("unknown"))
        );

        *way.lock().unwrap() = Way::Through;
        let ride = answered(city.ask(&rider, "k1", &wish()).await, 201).await["ride"].clone();
        let again = answered(city.ask(&rider, "k1", &wish()).await, 200).await;
        assert_eq!(again["ride"], ride, "no second ride");
        driver.say(online).await;
        assert!(
            ["done", "already_done"]
                .contains(&driver.hear("outcome").await["result"].as_str().unwrap())
        );
    }
    city.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn when_too_many_ask_for_rides_the_open_rides_go_on() {
    let (city, way) = city_with_a_door(2_000).await;
    let rooms = 8;
    let ride = city.ride("rider", "k1").await;
    *way.lock().unwrap() = Way::Lost;
    let city = Arc::new(city);
    let mut asked = tokio::task::JoinSet::new();
    for n in 0..=rooms {
        let city = city.clone();
        asked.spawn(
            async move { refusal(city.ask(&format!("rider-{n}"), "k1", &wish()).await).await },
        );
    }
    // The others are waiting for an outcome, the commands of open rides are not in their way.
    let refused = asked.join_next().await.unwrap().unwrap();
    refused.is(503, "busy", "repeat the same request (with the same key)");
    assert_eq!(refused.retry_after_s, Some(1));
    *way.lock().unwrap() = Way::Through;
    let path = format!("/v1/rides/{ride}/cancel");
    let (rider, nothing) = (Some((Role::Rider, "rider")), json!({}));
    let cancelled = city.post(&path, rider, &nothing);
    answered(cancelled.await, 200).await;
    // Whoever waited has given up; all rooms are free again.
    while let Some(refused) = asked.join_next().await {
        assert_eq!(refused.unwrap().name, "unknown");
    }
    city.ride("rider-0", "k1").await;
    Arc::into_inner(city).unwrap().end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_waiters_than_allowed_are_turned_away_at_once() {
    let (city, way) = city_with_a_door(5_000).await;
    *way.lock().unwrap() = Way::Lost;
    let mut driver = city.driver("d1").await;
    for id in ["m1", "m2"] {
        driver
            .say(json!({"type":"online","id":id,"classes":["economy"]}))
            .await;
    }
    let outcome = driver.hear("outcome").await;
    assert_eq!(
        (&outcome["id"], &outcome["result"]),
        (&json!("m2"), &json!("unknown")),
        "one may wait on this socket: the second is answered before the first"
    );
    let city = Arc::new(city);
    let mut asked = tokio::task::JoinSet::new();
    for n in 0..40 {
        let city = city.clone();
        asked.spawn(
            async move { refusal(city.ask(&format!("rider-{n}"), "k1", &wish()).await).await },
        );
    }
    let (mut busy, mut unknown) = (0, 0);
    while let Some(refused) = asked.join_next().await {
        match refused.unwrap().name.as_str() {
            "busy" => busy += 1,
            "unknown" => unknown += 1,
            other => panic!("{other}"),
        }
    }
    // Eight may wait; a place that is free again may be taken again.
    assert!(
        unknown >= 8 && busy >= 1,
        "{unknown} waited, {busy} were turned away"
    );
    *way.lock().unwrap() = Way::Through;
    for n in 0..40 {
        city.ride(&format!("rider-{n}"), "k1").await;
    }
    Arc::into_inner(city).unwrap().end().await;
}

/// Free cars at these metres north of the rider, each of a class.
async fn cars(city: &City, cars: &[(f64, &str)]) -> Vec<support::Socket> {
    let mut phones = Vec::new();
    for (n, (north_m, class)) in cars.iter().enumerate() {
        let mut phone = city.driver(&format!("d{n}")).await;
        phone.online(&[class]).await;
        phone.ping(37.77 + north_m / 111_195.0, -122.42, 1).await;
        phones.push(phone);
    }
    support::until("all cars to be seen", async || {
        let seen = city.cars("lat=37.77&lon=-122.42&radius=5000&k=100").await;
        (seen.len() == cars.len()).then_some(())
    })
    .await;
    phones
}

#[tokio::test(flavor = "multi_thread")]
async fn cars_near_are_the_nearest_first_as_many_as_asked_of_the_class_asked() {
    let city = City::start().await;
    let all = [
        (1_500.0, "economy"),
        (100.0, "economy"),
        (900.0, "xl"),
        (300.0, "economy"),
        (2_500.0, "economy"),
    ];
    let mut phones = cars(&city, &all).await;
    for (query, expected) in [
        ("", &[100.0, 300.0, 900.0, 1_500.0][..]),
        ("&k=2", &[100.0, 300.0]),
        ("&radius=500", &[100.0, 300.0]),
        ("&radius=3000", &[100.0, 300.0, 900.0, 1_500.0, 2_500.0]),
        ("&radius=99999999", &[100.0, 300.0, 900.0, 1_500.0, 2_500.0]),
        ("&radius=0.001", &[]),
        ("&class=xl", &[900.0]),
        ("&class=wheelchair", &[]),
        ("&class=economy&k=100&radius=1600", &[100.0, 300.0, 1_500.0]),
    ] {
        let found = city.cars(&format!("lat=37.77&lon=-122.42{query}")).await;
        let metres: Vec<f64> = found
            .iter()
            .map(|car| car["distance_m"].as_f64().unwrap())
            .collect();
        let agree = metres
            .iter()
            .zip(expected)
            .all(|(is, should)| (is - should).abs() < 0.01 * should);
        assert!(
            metres.len() == expected.len() && agree,
            "{query}: {metres:?}"
        );
        for car in &found {
            let fields: Vec<&String> = car.as_object().unwrap().keys().collect();
            assert_eq!(fields, ["age_ms", "at", "distance_m"], "cars, not people");
        }
    }
    // A car that is taken is not near any more.
    city.ride("ann", "k1").await;
    phones[3].hear("offer").await;
    assert_eq!(city.cars("lat=37.77&lon=-122.42").await.len(), 3);
    city.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_parameter_is_named_with_its_value_and_its_remedy() {
    let city = City::start().await;
    let (north, east) = (
        "give degrees north, -90 to 90",
        "give degrees east, -180 to 180",
    );
    let (metres, some) = ("give metres, more than 0", "ask for 1 to 100 cars");
    let cases = [
        ("lon=0", "lat is missing", north),
        ("lat=0", "lon is missing", east),
        ("", "lat is missing", north),
        ("lat=90.1&lon=0", "lat is \"90.1\"", north),
        ("lat=-91&lon=0", "lat is \"-91\"", north),
        ("lat=NaN&lon=0", "lat is \"NaN\"", north),
        ("lat=here&lon=0", "lat is \"here\"", north),
        ("lat=&lon=0", "lat is \"\"", north),
        ("lat=0&lon=180.5", "lon is \"180.5\"", east),
        ("lat=0&lon=inf", "lon is \"inf\"", east),
        ("lat=0&lon=0&radius=-1", "radius is \"-1\"", metres),
        ("lat=0&lon=0&radius=0", "radius is \"0\"", metres),
        ("lat=0&lon=0&radius=inf", "radius is \"inf\"", metres),
        ("lat=0&lon=0&radius=far", "radius is \"far\"", metres),
        ("lat=0&lon=0&k=0", "k is \"0\"", some),
        ("lat=0&lon=0&k=-1", "k is \"-1\"", some),
        ("lat=0&lon=0&k=101", "k is \"101\"", some),
        ("lat=0&lon=0&k=1.5", "k is \"1.5\"", some),
        ("lat=0&lon=0&k=99999999999999999999999", "k is \"9999", some),
        (
            "lat=0&lon=0&class=tank",
            "class is \"tank\"",
            "ask for economy, comfort, xl, wheelchair",
        ),
        (
            "lat=0&lon=0&raduis=5",
            "raduis is \"5\"",
            "this call knows lat, lon, radius, k, class",
        ),
        ("lat=0&lat=1&lon=0", "lat is \"1\"", "give it once"),
    ];
    for (query, what, remedy) in cases {
        let refused = refusal(city.get(&format!("/v1/nearby?{query}"), OPS).await).await;
        refused.is(400, "bad_request", remedy);
        assert!(
            refused.detail.starts_with(what),
            "no {what:?} in {refused:?}"
        );
    }
    for edge in [
        "lat=90&lon=180",
        "lat=-90&lon=-180&k=1",
        "lat=0&lon=0&k=100",
    ] {
        assert_eq!(city.cars(edge).await, Vec::<Value>::new());
    }
    city.end().await;
}

/// Who leaves is decided by whoever is named and reads it in the log (`tests/kafka_city.rs` of the whole): here, what is asked.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_asked_to_leave_if_there_is_one_and_others_stay() {
    let because = json!({"reason":"an update"});
    let (city, _) = city_with_a_door(10_000).await;
    let listed = answered(city.get("/v1/nodes", OPS).await, 200).await;
    assert_eq!(listed["one_process"], false);
    assert_eq!(
        listed["nodes"][1],
        json!({"node":"node-2","address":"127.0.0.1:1","shards":[0]})
    );
    let strange = city.post("/v1/nodes/node-3/drain", OPS, &because).await;
    refusal(strange)
        .await
        .is(404, "unknown_node", "see GET /v1/nodes");
    let asked = city.post("/v1/nodes/node-2/drain", OPS, &because).await;
    assert_eq!(answered(asked, 200).await, json!({"result":"done"}));
    let past = answered(city.get("/v1/dispatch/history", OPS).await, 200).await;
    let past = past["past"].as_array().unwrap();
    let named = past.iter().any(|told| {
        let record = &told["record"];
        let by = record["id"]
            .as_str()
            .unwrap_or_default()
            .starts_with("ops/o/");
        by && record["reason"] == "an update" && record["data"]["node"] == "node-2"
    });
    assert!(named, "who and why: {past:?}");
    let asked = past
        .iter()
        .any(|told| told["record"]["type"] == "cabrank.market.drain_asked.v1");
    assert!(asked, "{past:?}");
    let rules = answered(city.get("/v1/dispatch", OPS).await, 200).await;
    assert_eq!((&rules["settings"], rules.get("since")), (&json!({}), None));
    city.end().await;

    let alone = City::behind(
        |_| {},
        |node, _| {
            let (nodes, way) = (vec!["node-1"], Arc::new(Mutex::new(Way::Through)));
            Arc::new(Door { node, nodes, way })
        },
    );
    let city = alone.await;
    let last = city.post("/v1/nodes/node-1/drain", OPS, &because).await;
    refusal(last)
        .await
        .is(409, "last_node", "start another node first");
    city.end().await;
}
