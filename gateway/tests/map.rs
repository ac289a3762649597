//! The live map and the operator's desk: what is drawn, what is told, and that what the desk does is in the log.

mod support;

use cabrank_gateway::token::Role;
use reqwest::Method;
use serde_json::{Value, json};
use support::{City, OPS, Who, answered, refusal, until};

const ALICE: Who<'static> = Some((Role::Ops, "alice"));
const SAN_FRANCISCO: &str = "south=37.7&west=-122.52&north=37.83&east=-122.35";

/// What an answer of the map says, read as the page says it is written.
#[derive(Debug)]
struct Drawn {
    flags: u8,
    number: u32,
    counts: Vec<u32>,
    /// Key, latitude, longitude, state.
    drivers: Vec<(u32, f64, f64, u8)>,
    /// Id, stage, driver's key.
    rides: Vec<(String, u8, u32)>,
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (head, rest) = self.0.split_first_chunk().unwrap();
        self.0 = rest;
        *head
    }
    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }
    fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.take())
    }
    fn degrees(&mut self, tile: i16) -> f64 {
        (f64::from(tile) + f64::from(self.u16()) / 65_536.0) * 0.02
    }
}

fn read(bytes: &[u8]) -> Drawn {
    let mut r = Reader(bytes);
    let [layout, flags] = r.take();
    assert_eq!(layout, 1);
    assert_eq!(r.u16(), 100, "the tick");
    let number = r.u32();
    let _time: [u8; 8] = r.take();
    let _bounds: [u8; 16] = r.take();
    let counts = (0..11).map(|_| r.u32()).collect();
    let mut drivers = Vec::new();
    for _ in 0..r.u32() {
        let (row, column) = (i16::from_le_bytes(r.take()), i16::from_le_bytes(r.take()));
        for _ in 0..r.u32() {
            let key = r.u32();
            let (lat, lon) = (r.degrees(row), r.degrees(column));
            let [state] = r.take();
            drivers.push((key, lat, lon, state));
        }
    }
    let mut rides = Vec::new();
    for _ in 0..r.u32() {
        let (place, minted, offset) = (r.u16(), r.u16(), u64::from_le_bytes(r.take()));
        let [stage, _has_dropoff] = r.take();
        let _places: [u8; 16] = r.take();
        let key = r.u32();
        let _car: [u8; 8] = r.take();
        rides.push((format!("{place}-{minted}-{offset}"), stage, key));
    }
    rides.sort();
    rides.dedup();
    assert!(r.0.is_empty(), "nothing follows");
    Drawn {
        flags,
        number,
        counts,
        drivers,
        rides,
    }
}

async fn drawn(city: &City, query: &str) -> Drawn {
    let answer = city.get(&format!("/v1/map?{query}"), OPS).await;
    assert_eq!(answer.status(), 200);
    read(&answer.bytes().await.unwrap())
}

async fn city() -> City {
    City::with(|gateway, _| {
        gateway.map.tick_ms = 100;
        gateway.map.drivers_max = 100;
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_map_shows_cars_by_state_and_the_ride_one_of_them_drives_to() {
    let city = city().await;
    let empty = drawn(&city, SAN_FRANCISCO).await;
    assert!(empty.drivers.is_empty() && empty.rides.is_empty());
    let (mut near, mut far) = (city.driver("near").await, city.driver("far").await);
    for (driver, lat) in [(&mut near, 37.7750), (&mut far, 37.8100)] {
        driver.online(&["economy"]).await;
        driver.ping(lat, -122.4190, 1).await;
    }
    until("both cars on the map", async || {
        let now = drawn(&city, SAN_FRANCISCO).await;
        (now.drivers.len() == 2 && now.counts[1] == 2).then_some(())
    })
    .await;
    let ride = city.ride("ann", "k1").await;
    let offer = near.hear("offer").await;
    near.reports(&["received", "accept"], &offer).await;
    let now = until("the ride on the map", async || {
        let now = drawn(&city, SAN_FRANCISCO).await;
        (now.rides.first()?.1 == 2).then_some(now)
    })
    .await;
    let (key, lat, lon, _) = *now.drivers.iter().find(|driver| driver.3 == 3).unwrap();
    assert!((lat - 37.7750).abs() < 1e-6 && (lon + 122.4190).abs() < 1e-6);
    assert_eq!(now.rides, [(ride, 2, key)]);
    assert_eq!(now.counts, [0, 1, 0, 1, 0, 0, 0, 0, 1, 0, 0]);
    assert_eq!(now.flags, 0);
    assert_ne!(now.number, empty.number);
    let name = answered(city.get(&format!("/v1/map/drivers/{key}"), OPS).await, 200).await;
    assert_eq!(name["driver"], "near");

    let elsewhere = drawn(&city, "south=10&west=10&north=11&east=11").await;
    assert!(elsewhere.drivers.is_empty() && elsewhere.rides.is_empty());
    assert_eq!(elsewhere.counts, now.counts, "counts are the whole city's");
    let whole = drawn(&city, "").await;
    assert_eq!((whole.drivers.len(), whole.counts), (0, now.counts));
    let area = answered(
        city.get(&format!("/v1/map/area?{SAN_FRANCISCO}"), OPS)
            .await,
        200,
    )
    .await;
    let sum = |name: &str| -> u64 {
        let cells = area["cells"].as_array().unwrap();
        cells.iter().map(|cell| cell[name].as_u64().unwrap()).sum()
    };
    assert_eq!((sum("free"), sum("waiting"), sum("asked")), (1, 0, 1));
    assert_eq!(
        (&area["rates"]["requested"], &area["rates"]["assigned"]),
        (&json!(1), &json!(1))
    );
    assert!(area["rates"]["offer_p99_ms"].is_u64());
    city.end().await;
}

/// The drawings of a film.
fn drawings(film: &[u8]) -> Vec<Drawn> {
    let mut rest = film.strip_prefix(b"CABFILM1").unwrap();
    let mut drawings = Vec::new();
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        let (drawing, after) = after.split_at(u32::from_le_bytes(*length) as usize);
        let mut as_live = drawing.to_vec();
        assert_eq!(
            as_live[2..4],
            5_000_u16.to_le_bytes(),
            "ms from drawing to drawing"
        );
        as_live[2..4].copy_from_slice(&100_u16.to_le_bytes());
        drawings.push(read(&as_live));
        rest = after;
    }
    drawings
}

#[tokio::test(flavor = "multi_thread")]
async fn who_opens_a_map_late_sees_the_minutes_before_from_the_log_and_cars_where_it_says_they_were()
 {
    let city = city().await;
    let mut near = city.driver("near").await;
    near.online(&["economy"]).await;
    near.ping(37.7750, -122.4190, 1).await;
    let ride = city.ride("ann", "k1").await;
    let offer = near.hear("offer").await;
    near.reports(&["received", "accept", "arrived"], &offer)
        .await;
    // Nobody has looked at a map so far.
    city.pass(11_000);
    near.reports(&["started"], &offer).await;
    city.pass(11_000);
    let film = async || {
        let answer = city.get("/v1/map/film", OPS).await;
        assert_eq!(answer.status(), 200);
        drawings(&answer.bytes().await.unwrap())
    };
    let seen = film().await;
    assert!(seen.len() > 100, "ten minutes: {} drawings", seen.len());
    let (before, now) = (&seen[0], &seen[seen.len() - 1]);
    assert!(before.drivers.is_empty() && before.rides.is_empty());
    assert_eq!(before.counts[0], 1, "known, and not at work yet");
    // At the pickup, then under way: the car is where the log last knows it was.
    let stages: Vec<u8> = seen
        .iter()
        .filter_map(|drawn| Some(drawn.rides.first()?.1))
        .collect();
    assert!(
        stages.is_sorted() && stages.contains(&3) && stages.ends_with(&[4]),
        "{stages:?}"
    );
    assert_eq!(now.rides[0].0, ride);
    let (key, _, _, state) = now.drivers[0];
    assert_eq!((now.rides[0].2, state & 0x7f), (key, 4));
    // The same driver as on the map.
    let live = drawn(&city, SAN_FRANCISCO).await;
    assert_eq!(live.drivers[0].0, key);
    let refused = refusal(city.get("/v1/map/film?minutes=5", OPS).await).await;
    refused.is(400, "bad_request", "this call knows");
    city.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_the_newest_drawing_gets_no_other_and_a_wrong_question_says_what_is_wrong() {
    let city = City::with(|gateway, _| gateway.map.tick_ms = 10_000).await;
    let answer = city.get("/v1/map", OPS).await;
    let bytes = answer.bytes().await.unwrap();
    let number = u32::from_le_bytes(bytes[4..8].try_into().unwrap());
    let again = city.get(&format!("/v1/map?after={number}"), OPS).await;
    assert_eq!(again.status(), 204);
    for (query, remedy) in [
        ("south=1", "west is missing: give all four sides"),
        ("south=91&west=1&north=1&east=1", "south is \"91\""),
        ("after=x", "give the number of the last answer"),
        ("zoom=3", "this call knows south, west, north, east, after"),
    ] {
        let refused = refusal(city.get(&format!("/v1/map?{query}"), OPS).await).await;
        refused.is(400, "bad_request", remedy);
    }
    let refused = refusal(city.get("/v1/map/drivers/77", OPS).await).await;
    refused.is(404, "unknown_driver", "in the newest answer");
    city.end().await;
}

/// Names of the commands and events of a history, commands marked, with who and why.
fn told(history: &Value) -> Vec<String> {
    let past = history["past"].as_array().unwrap();
    past.iter()
        .map(|past| {
            let record = &past["record"];
            let name = record["type"].as_str().unwrap().to_owned();
            match past["kind"].as_str().unwrap() {
                "command" => format!(
                    "> {name} by {} because {}",
                    record["id"].as_str().unwrap_or("nobody"),
                    record["reason"]
                ),
                _ => name,
            }
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_desk_dispatches_a_ride_anew_and_calls_it_off_and_the_log_says_who_and_why() {
    let city = city().await;
    let (mut near, mut far) = (city.driver("near").await, city.driver("far").await);
    for (driver, lat) in [(&mut near, 37.7750), (&mut far, 37.7800)] {
        driver.online(&["economy"]).await;
        driver.ping(lat, -122.4190, 1).await;
    }
    until("both cars", async || {
        (city.cars("lat=37.7749&lon=-122.4194").await.len() == 2).then_some(())
    })
    .await;
    let ride = city.ride("ann", "k1").await;
    let (redispatch, cancel) = (
        format!("/v1/rides/{ride}/redispatch"),
        format!("/v1/rides/{ride}/cancel"),
    );
    let why = json!({"reason":"the car broke down"});
    let offer = near.hear("offer").await;
    let early = refusal(city.post(&redispatch, ALICE, &why).await).await;
    early.is(
        409,
        "not_assigned",
        "only a ride whose driver is on the way",
    );
    near.reports(&["received", "accept"], &offer).await;
    let no_reason = refusal(city.post(&redispatch, ALICE, &json!({})).await).await;
    no_reason.is(422, "bad_body", "reason");
    let done = answered(city.post(&redispatch, ALICE, &why).await, 200).await;
    assert_eq!(done["result"], "done");
    assert_eq!(near.hear("released").await["ride"], ride.as_str());
    let second = far.hear("offer").await;
    assert_eq!(second["ride"], ride.as_str(), "another driver is asked");
    let why = json!({"reason":"the rider rang"});
    let done = answered(city.post(&cancel, ALICE, &why).await, 200).await;
    assert_eq!(done["result"], "done");

    let path = format!("/v1/rides/{ride}/history");
    let history = answered(city.get(&path, OPS).await, 200).await;
    assert_eq!(history["is_cut"], false);
    let told = told(&history);
    for (command, reason) in [
        ("give_back", "the car broke down"),
        ("cancel_ride", "the rider rang"),
    ] {
        let found = told
            .iter()
            .find(|line| line.starts_with(&format!("> {command} by ops/alice/")));
        let found = found.unwrap_or_else(|| panic!("no {command} in {told:#?}"));
        assert!(found.ends_with(&format!("because \"{reason}\"")), "{found}");
    }
    assert!(told[0].ends_with("ride.requested.v1"), "{told:#?}");
    assert!(
        told.iter()
            .any(|name| name.ends_with("ride.driver_lost.v1")),
        "{told:#?}"
    );
    city.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_desk_sees_a_suspended_driver_and_why_and_finds_people() {
    let city = city().await;
    let unknown = refusal(city.get("/v1/drivers/d1", OPS).await).await;
    unknown.is(404, "unknown_driver", "check the id");
    let mut driver = city.driver("d1").await;
    driver.online(&["economy"]).await;
    driver.ping(37.7750, -122.4190, 1).await;
    let at = until("the position", async || {
        let state = answered(city.get("/v1/drivers/d1", OPS).await, 200).await;
        state["at"].is_object().then_some(state)
    })
    .await;
    assert_eq!(
        (&at["online"], &at["at"]["lat"]),
        (&json!(true), &json!(37.775))
    );
    let why = json!({"reason":"complaint 4711"});
    answered(city.post("/v1/drivers/d1/suspend", ALICE, &why).await, 200).await;
    let state = answered(city.get("/v1/drivers/d1", OPS).await, 200).await;
    assert_eq!(
        (&state["online"], &state["suspended"]),
        (&json!(false), &json!("complaint 4711"))
    );
    let history = answered(city.get("/v1/drivers/d1/history", OPS).await, 200).await;
    let told = told(&history);
    assert!(
        told.iter()
            .any(|line| line.starts_with("> suspend_driver by ops/alice/")),
        "{told:#?}"
    );
    let ride = city.ride("ann", "k1").await;
    let rider = answered(city.get("/v1/riders/ann", OPS).await, 200).await;
    assert_eq!(rider, json!({"rider":"ann","ride":ride}));
    let history = answered(city.get("/v1/riders/ann/history", OPS).await, 200).await;
    assert!(!history["past"].as_array().unwrap().is_empty());
    city.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_comes_from_the_binary_and_may_fetch_from_nowhere_else() {
    let city = City::with(|gateway, _| {
        gateway.map.tile_url = "https://tiles.example/{z}/{x}/{y}.png".into();
        gateway.map.tile_credit = "\"><script>".into();
    })
    .await;
    for (path, kind) in [
        ("/", "text/html"),
        ("/map.js", "text/javascript"),
        ("/map.css", "text/css"),
        ("/api", "text/html"),
        ("/api.js", "text/javascript"),
        ("/openapi.json", "application/json"),
    ] {
        let answer = city.call(Method::GET, path, None).send().await.unwrap();
        let header = |name: &str| answer.headers()[name].to_str().unwrap().to_owned();
        assert_eq!(answer.status(), 200);
        assert!(header("content-type").starts_with(kind), "{path}");
        let policy = header("content-security-policy");
        assert!(
            policy.starts_with("default-src 'none'; script-src 'self'"),
            "{policy}"
        );
        assert_eq!(
            policy.contains("https://tiles.example;"),
            path == "/",
            "{policy}"
        );
        let text = answer.text().await.unwrap();
        assert!(!text.is_empty());
        if path == "/" {
            assert!(text.contains("content=\"https://tiles.example/{z}/{x}/{y}.png\""));
            assert!(text.contains("content=\"&quot;>&lt;script>") || text.contains("&quot;&gt;"));
        }
    }
    city.end().await;
}
