//! What the forecast service expects, as a gateway passes it on.

mod support;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::get;
use axum::{Json, Router};
use cabrank_gateway::token::{Caller, KeysConfig, TokenVerifier};
use h3o::{CellIndex, LatLng, Resolution};
use serde_json::{Value, json};
use support::{City, OPS, Socket, answered, until};

const SAN_FRANCISCO: &str = "south=37.6&west=-122.6&north=37.9&east=-122.3";
const MARKET_STREET: (f64, f64) = (37.7749, -122.4194);
const OAKLAND: (f64, f64) = (37.8044, -122.2712);

fn cell((lat, lon): (f64, f64)) -> CellIndex {
    LatLng::new(lat, lon).unwrap().to_cell(Resolution::Seven)
}

/// What the service says of a cell.
fn said(place: (f64, f64), expected: f64, supply: u32) -> Value {
    let horizon = |minutes: u32| {
        let expected = expected * f64::from(minutes) / 15.0;
        json!({"minutes":minutes,"expected":expected,"low":0,"high":20})
    };
    json!({"region_id":cell(place).to_string(),"timestamp":"2008-05-22T17:00:00.000Z","confidence":0.9,"supply":supply,
        "predicted_demand":[horizon(15), horizon(30), horizon(60)]})
}

/// A forecast service that says what it was given, to a service's token only. `None`: it is out of order.
#[derive(Clone, Default)]
struct Service {
    says: Arc<Mutex<Option<Value>>>,
    answers: Arc<AtomicU64>,
}

impl Service {
    async fn start(says: Value) -> (Service, SocketAddr) {
        let service = Service::default();
        service.says(says);
        let router = Router::new()
            .route("/v1/forecasts", get(Service::answer))
            .with_state(service.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await });
        (service, address)
    }

    fn says(&self, says: Value) {
        *self.says.lock().unwrap() = Some(says);
    }

    async fn answer(
        State(service): State<Service>,
        headers: HeaderMap,
    ) -> Result<Json<Value>, StatusCode> {
        let token = headers["authorization"].to_str().unwrap();
        let token = token.strip_prefix("Bearer ").unwrap();
        let verifier = TokenVerifier::new(&KeysConfig::default()).unwrap();
        let caller = verifier.verify(token).unwrap().caller;
        assert!(matches!(caller, Caller::Service(_)), "{caller:?}");
        service.answers.fetch_add(1, Ordering::Relaxed);
        let says = service.says.lock().unwrap().clone();
        says.map(Json).ok_or(StatusCode::SERVICE_UNAVAILABLE)
    }
}

async fn city_with(service: SocketAddr) -> City {
    City::with(|gateway, _| {
        gateway.forecasts.url = format!("http://{service}/");
        gateway.forecasts.ask_every_ms = 100;
    })
    .await
}

async fn on_the_map(city: &City, view: &str) -> Value {
    let path = format!("/v1/map/forecast?{view}");
    answered(city.get(&path, OPS).await, 200).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_map_shows_what_the_service_expects_in_its_view_and_keeps_it_while_the_service_is_out_of_order()
 {
    let says = json!([said(OAKLAND, 9.0, 4), said(MARKET_STREET, 2.5, 3)]);
    let (service, address) = Service::start(says).await;
    let city = city_with(address).await;
    let whole = until("a forecast", async || {
        let whole = on_the_map(&city, "").await;
        whole["made"].is_string().then_some(whole)
    })
    .await;
    let cells = whole["cells"].as_array().unwrap();
    assert_eq!((cells.len(), &whole["confidence"]), (2, &json!(0.9)));
    assert_eq!(cells[0]["cell"], cell(OAKLAND).to_string(), "busiest first");
    let seen = on_the_map(&city, SAN_FRANCISCO).await;
    let seen = seen["cells"].as_array().unwrap();
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0]["cell"], cell(MARKET_STREET).to_string());
    assert_eq!(seen[0]["predicted_demand"][0]["expected"], 2.5);
    assert_eq!(seen[0]["supply"], 3);
    assert!(seen[0]["corners"].as_array().unwrap().len() >= 5);

    let failures = "cabrank_forecasts_asked_total{result=\"failed\"}";
    let before = city.counter(failures).await;
    *service.says.lock().unwrap() = None;
    until("questions in vain", async || {
        (city.counter(failures).await > before + 1).then_some(())
    })
    .await;
    assert_eq!(on_the_map(&city, "").await, whole);
    service.says(json!([said(MARKET_STREET, 4.0, 3)]));
    until("the newer forecast", async || {
        let seen = on_the_map(&city, "").await;
        (seen["cells"][0]["predicted_demand"][0]["expected"] == 4.0).then_some(())
    })
    .await;
    city.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_service_nothing_is_expected_and_the_map_says_so() {
    let city = City::start().await;
    let nothing = on_the_map(&city, SAN_FRANCISCO).await;
    assert_eq!(nothing, json!({"confidence":0.0,"cells":[]}));
    city.end().await;
}

/// Idle at a place, `north` of it by some metres.
async fn idle(city: &City, name: &str, (lat, lon): (f64, f64), north: u32) -> Socket {
    let mut driver = city.driver(name).await;
    driver.online(&["economy"]).await;
    let seen = city.counters.snapshot().accepted;
    driver.ping(lat + f64::from(north) * 9e-6, lon, 1).await;
    until("the ping", async || {
        (city.counters.snapshot().accepted > seen).then_some(())
    })
    .await;
    driver
}

/// Waits until it was looked `looks` times more who might go elsewhere, and what was said of it has been heard.
async fn after_looks(city: &City, looks: u64) {
    let name = "cabrank_hint_looks_total";
    let before = city.counter(name).await;
    until("looks", async || {
        (city.counter(name).await > before + looks).then_some(())
    })
    .await;
}

/// Everything that was said to the driver until now, by type: an answer comes after what was said before it.
async fn said_to(driver: &mut Socket, id: &str) -> Vec<Value> {
    driver
        .say(json!({"type":"offline","id":id,"session":0}))
        .await;
    let mut said = Vec::new();
    loop {
        let message = driver.hear_any(&["head_to", "offer", "outcome"]).await;
        if message["type"] == "outcome" {
            return said;
        }
        said.push(message);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_drivers_hear_where_cars_are_missing_once_and_nobody_is_sent_where_there_are_enough() {
    // Two rides are expected where no car is, one where one is, and none where three are.
    const NORTH_BEACH: (f64, f64) = (37.8015, -122.4090);
    const MISSION: (f64, f64) = (37.7580, -122.4180);
    assert_eq!(
        [MARKET_STREET, NORTH_BEACH, MISSION]
            .map(cell)
            .iter()
            .collect::<std::collections::HashSet<_>>()
            .len(),
        3
    );
    let (service, address) = Service::start(json!([])).await;
    let city = City::with(|gateway, _| {
        gateway.forecasts.url = format!("http://{address}");
        gateway.forecasts.ask_every_ms = 100;
        gateway.hints.head_to = true;
        gateway.hints.look_every_ms = 100;
        gateway.hints.driver_every_ms = 3_600_000;
    })
    .await;
    let mut near = Vec::new();
    for (n, name) in ["d1", "d2", "d3"].into_iter().enumerate() {
        near.push(idle(&city, name, MARKET_STREET, 10 * n as u32).await);
    }
    let mut alone = idle(&city, "alone", MISSION, 0).await;
    service.says(json!([said(NORTH_BEACH, 2.2, 0), said(MISSION, 1.0, 1)]));
    // The two that are nearer, each once.
    for driver in &mut near[1..] {
        let hint = driver.hear("head_to").await;
        assert_eq!(hint["cell"], cell(NORTH_BEACH).to_string());
        assert_eq!((&hint["expected"], &hint["free"]), (&json!(2.2), &json!(0)));
        let to = (
            hint["to"]["lat"].as_f64().unwrap(),
            hint["to"]["lon"].as_f64().unwrap(),
        );
        assert_eq!(cell(to), cell(NORTH_BEACH));
    }
    after_looks(&city, 5).await;
    for (n, driver) in near.iter_mut().chain([&mut alone]).enumerate() {
        assert_eq!(
            said_to(driver, &format!("o{n}")).await,
            [] as [Value; 0],
            "driver {n}"
        );
    }
    // More are missing: the third may still be told. Who is alone where one ride is expected stays.
    service.says(json!([said(NORTH_BEACH, 9.0, 0), said(MISSION, 1.0, 1)]));
    assert_eq!(near[0].hear("head_to").await["expected"], 9.0);
    after_looks(&city, 5).await;
    assert_eq!(said_to(&mut alone, "o9").await, [] as [Value; 0]);
    // It was advice: the nearest car gets the next ride, wherever it was told to go.
    let ride = city.ride("ann", "k1").await;
    let offers = [&mut near[0]];
    for driver in offers {
        assert_eq!(driver.hear("offer").await["ride"], ride);
    }
    city.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn by_default_nobody_hears_a_hint() {
    let (service, address) = Service::start(json!([said(OAKLAND, 9.0, 0)])).await;
    let city = City::with(|gateway, _| {
        gateway.forecasts.url = format!("http://{address}");
        gateway.forecasts.ask_every_ms = 100;
        // Looked at all the time, and far enough, if it were on.
        gateway.hints.look_every_ms = 100;
        gateway.hints.distance_m_max = 100_000;
    })
    .await;
    let mut driver = idle(&city, "d1", MARKET_STREET, 0).await;
    until("some forecasts", async || {
        (service.answers.load(Ordering::Relaxed) > 5).then_some(())
    })
    .await;
    assert!(on_the_map(&city, "").await["made"].is_string());
    assert_eq!(said_to(&mut driver, "o1").await, [] as [Value; 0]);
    city.end().await;
}
