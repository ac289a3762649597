//! Zones as riders, operators and files see them: refused outside, moved to a pickup point, reloaded while running; and the
//! quote before a ride.

mod support;

use std::path::Path;

use cabrank_gateway::token::Role;
use serde_json::{Value, json};
use support::{City, OPS, Socket, answered, refusal, until, wish};

fn square(south: f64, west: f64, north: f64, east: f64) -> Value {
    let ring = json!([
        [west, south],
        [east, south],
        [east, north],
        [west, north],
        [west, south]
    ]);
    json!({"type":"Polygon","coordinates":[ring]})
}

fn feature(kind: &str, name: &str, zone: Option<&str>, geometry: &Value) -> Value {
    let mut properties = json!({"kind":kind,"name":name});
    if let Some(zone) = zone {
        properties["zone"] = zone.into();
    }
    json!({"type":"Feature","properties":properties,"geometry":geometry})
}

fn point(lat: f64, lon: f64) -> Value {
    json!({"type":"Point","coordinates":[lon, lat]})
}

/// A city with a station, whose door is where riders in it are fetched.
fn city_with_a_station() -> Vec<Value> {
    vec![
        feature(
            "service_area",
            "City",
            None,
            &square(37.6, -122.6, 37.9, -122.3),
        ),
        feature(
            "pickup_zone",
            "Station",
            None,
            &square(37.774, -122.42, 37.776, -122.418),
        ),
        feature(
            "pickup_point",
            "North door",
            Some("Station"),
            &point(37.7765, -122.419),
        ),
    ]
}

fn draw(dir: &Path, features: &[Value]) {
    let text = json!({"type":"FeatureCollection","features":features}).to_string();
    // In one step, so that nobody reads half a file.
    std::fs::write(dir.join("city.new"), text).unwrap();
    std::fs::rename(dir.join("city.new"), dir.join("city.geojson")).unwrap();
}

async fn city_of(dir: &Path) -> City {
    City::with(|gateway, _| {
        gateway.zones.dir = dir.display().to_string();
        gateway.zones.reload_ms = 100;
    })
    .await
}

async fn names(city: &City) -> Vec<String> {
    let zones = answered(city.get("/v1/zones", OPS).await, 200).await;
    let features = zones["features"].as_array().unwrap();
    let name = |feature: &Value| feature["properties"]["name"].as_str().unwrap().to_owned();
    features.iter().map(name).collect()
}

/// A free car of an economy driver.
async fn free_car(city: &City, id: &str, lat: f64, lon: f64) -> Socket {
    let mut driver = city.driver(id).await;
    driver.online(&["economy"]).await;
    driver.ping(lat, lon, 1).await;
    let at = format!("lat={lat}&lon={lon}&radius=50");
    until("the car to be found", async || {
        (!city.cars(&at).await.is_empty()).then_some(())
    })
    .await;
    driver
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rider_at_the_station_is_fetched_at_its_door_and_everybody_is_told() {
    let dir = tempfile::tempdir().unwrap();
    draw(dir.path(), &city_with_a_station());
    let city = city_of(dir.path()).await;
    let mut phone = city.rider("ann").await;
    let opened = answered(
        city.ask("ann", "k1", &wish_at(37.775, -122.4195)).await,
        201,
    )
    .await;
    let told = json!({
        "zone":"Station","name":"North door",
        "at":{"lat":37.7765,"lon":-122.419},"asked":{"lat":37.775,"lon":-122.4195}
    });
    assert_eq!(opened["pickup_point"], told);
    let ride = phone.hear("ride").await;
    assert_eq!(
        (&ride["pickup"], &ride["pickup_point"]),
        (&told["at"], &told)
    );
    let mut driver = free_car(&city, "d1", 37.7766, -122.419).await;
    assert_eq!(driver.hear("offer").await["pickup"], told["at"]);
    let path = format!("/v1/rides/{}/history", opened["ride"].as_str().unwrap());
    let past = answered(city.get(&path, OPS).await, 200).await;
    let requested = past["past"].as_array().unwrap().iter();
    let mut requested =
        requested.filter(|past| past["record"]["type"] == "cabrank.ride.requested.v1");
    assert_eq!(
        requested.next().unwrap()["record"]["data"]["pickup_point"],
        told
    );

    // The zones change; the retry's answer does not.
    draw(dir.path(), &city_with_a_station()[..1]);
    until("the new zones", async || {
        (names(&city).await.len() == 1).then_some(())
    })
    .await;
    let again = answered(
        city.ask("ann", "k1", &wish_at(37.775, -122.4195)).await,
        200,
    )
    .await;
    assert_eq!(again, opened);
    city.end().await;
}

fn wish_at(lat: f64, lon: f64) -> Value {
    let mut wish = wish();
    wish["pickup"] = json!({"lat":lat,"lon":lon});
    wish
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_from_outside_is_refused_and_stays_refused_with_its_key() {
    let dir = tempfile::tempdir().unwrap();
    draw(dir.path(), &city_with_a_station());
    let city = city_of(dir.path()).await;
    let outside = wish_at(38.5, -122.4);
    let first = refusal(city.ask("bob", "k1", &outside).await).await;
    first.is(422, "out_of_area", "GET /v1/zones");
    let quote = city
        .post("/v1/quote", Some((Role::Rider, "bob")), &outside)
        .await;
    refusal(quote).await.is(422, "out_of_area", "service_area");

    let mut wider = city_with_a_station();
    wider[0] = feature(
        "service_area",
        "City",
        None,
        &square(37.6, -122.6, 39.0, -122.3),
    );
    wider.push(feature(
        "airport",
        "Field",
        None,
        &square(38.49, -122.41, 38.51, -122.39),
    ));
    draw(dir.path(), &wider);
    until("the new zones", async || {
        (names(&city).await.len() == 4).then_some(())
    })
    .await;
    let again = refusal(city.ask("bob", "k1", &outside).await).await;
    again.is(422, "out_of_area", "new Idempotency-Key");
    let opened = answered(city.ask("bob", "k2", &outside).await, 201).await;
    assert_eq!(opened["pickup_point"], Value::Null);
    // Zones say where rides begin, not where they lead.
    let path = format!("/v1/rides/{}/destination", opened["ride"].as_str().unwrap());
    let far = city.call(reqwest::Method::PUT, &path, Some((Role::Rider, "bob")));
    let far = far.header("Idempotency-Key", "c1");
    let far = far.json(&json!({"to":{"lat":40.0,"lon":-120.0}}));
    answered(far.send().await.unwrap(), 200).await;
    city.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_files_keep_a_gateway_from_starting_but_not_a_running_one_from_serving() {
    let dir = tempfile::tempdir().unwrap();
    draw(dir.path(), &city_with_a_station());
    let city = city_of(dir.path()).await;
    let tag = async |who| {
        let answer = city.get("/v1/zones", Some(who)).await;
        answer.headers()["etag"].to_str().unwrap().to_owned()
    };
    let (ops, rider) = ((Role::Ops, "o"), (Role::Rider, "ann"));
    let before = tag(rider).await;
    let mut open = city_with_a_station();
    let ring = open[0]["geometry"]["coordinates"][0]
        .as_array_mut()
        .unwrap();
    ring.pop();
    draw(dir.path(), &open);
    let refused = until("the complaint", async || {
        let zones = answered(city.get("/v1/zones", Some(ops)).await, 200).await;
        zones["refused"].as_str().map(str::to_owned)
    })
    .await;
    assert!(
        refused.contains("city.geojson: feature 1 (\"City\"): ring 1 is open: its last position"),
        "{refused}"
    );
    // Riders see the zones in force, and nothing of the complaint.
    assert_eq!(tag(rider).await, before);
    assert_ne!(tag(ops).await, before);
    let zones = answered(city.get("/v1/zones", Some(rider)).await, 200).await;
    assert_eq!(
        (
            zones["features"].as_array().unwrap().len(),
            &zones["refused"]
        ),
        (3, &Value::Null)
    );
    let again = city.call(reqwest::Method::GET, "/v1/zones", Some(rider));
    let again = again.header("if-none-match", &before).send().await.unwrap();
    assert_eq!(again.status(), 304);

    let config = city.config.clone();
    let node = city.node.clone();
    let failed = cabrank_gateway::Gateway::bind(config, std::sync::Arc::new(node)).await;
    let why = failed.err().unwrap().to_string();
    assert!(
        why.starts_with("gateway.zones.dir is") && why.contains("ring 1 is open"),
        "{why}"
    );
    draw(dir.path(), &city_with_a_station());
    until("the files to be right again", async || {
        (tag(ops).await == before).then_some(())
    })
    .await;
    city.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sample_zones_are_right() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/zones");
    let zones = cabrank_gateway::read_zones(Path::new(dir)).unwrap();
    assert_eq!(zones.all().len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quote_says_when_a_car_would_be_there_and_learns_from_rides() {
    let city = City::with(|gateway, _| gateway.limits.requests_per_minute = 10_000).await;
    let rider = Some((Role::Rider, "ann"));
    let nobody = answered(city.post("/v1/quote", rider, &wish()).await, 200).await;
    assert_eq!(
        (&nobody["cars_near"], &nobody["pickup_time"]),
        (&json!(0), &Value::Null)
    );
    assert!(nobody["drive_s"].as_u64().unwrap() > 60, "{nobody}");

    let mut driver = free_car(&city, "d1", 37.776, -122.4194).await;
    let guess = answered(city.post("/v1/quote", rider, &wish()).await, 200).await;
    assert_eq!(
        (&guess["cars_near"], &guess["pickup_time"]["rides"]),
        (&json!(1), &json!(0))
    );
    let of = |quote: &Value, key: &str| quote["pickup_time"][key].as_u64().unwrap();
    assert!(
        of(&guess, "low_s") < of(&guess, "likely_s")
            && of(&guess, "likely_s") < of(&guess, "high_s")
    );

    // Thirty rides whose car is there within moments.
    for number in 0..30 {
        // Each ride has an estimate before it is asked for only if the gateway looked in time: a second holds enough.
        let asked = city.ask(&format!("r{number}"), "k", &wish()).await;
        assert_eq!(asked.status(), 201);
        let offer = driver.hear("offer").await;
        driver
            .reports(
                &["received", "accept", "arrived", "started", "completed"],
                &offer,
            )
            .await;
        driver.ping(37.776, -122.4194, 2 + number).await;
    }
    let learned = until("thirty rides to be learned from", async || {
        let quote = answered(city.post("/v1/quote", rider, &wish()).await, 200).await;
        (quote["pickup_time"]["rides"].as_u64()? >= 30).then_some(quote)
    });
    let learned = tokio::select! {
        learned = learned => learned,
        // More rides until enough were looked at: at most so many a second are.
        () = async {
            for number in 30..10_000 {
                city.ask(&format!("r{number}"), "k", &wish()).await;
                let offer = driver.hear("offer").await;
                driver.reports(&["received", "accept", "arrived", "started", "completed"], &offer).await;
                driver.ping(37.776, -122.4194, 2 + number).await;
            }
        } => panic!("nothing was learned of thousands of rides"),
    };
    assert!(of(&learned, "high_s") < of(&guess, "high_s"), "{learned}");
    assert_eq!(learned["pickup_time"]["fetched"], 1.0);
    let checked = "cabrank_quotes_checked_total{within=\"yes\",basis=\"guess\"}";
    let metrics = city.metrics().await;
    assert!(
        metrics.contains("cabrank_quotes_checked_total"),
        "{checked} in {metrics}"
    );
    city.end().await;
}
