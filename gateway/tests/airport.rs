//! Drivers wait at an airport: first come, first asked; told their place; not put out by one bad ping, nor by a lost socket.

mod support;

use std::path::Path;
use std::time::Duration;

use cabrank_engine::queues::{AfterDecline, QueueRules};
use cabrank_gateway::token::Role;
use serde_json::{Value, json};
use support::{City, Socket, answered, until};

const ANN: support::Who<'static> = Some((Role::Rider, "ann"));
/// In the middle of the field, and some kilometres off it.
const FIELD: (f64, f64) = (37.62, -122.38);
const TOWN: (f64, f64) = (37.66, -122.38);

fn draw(dir: &Path) {
    let (south, north, west, east) = (37.61, 37.63, -122.39, -122.37);
    let ring = json!([
        [west, south],
        [east, south],
        [east, north],
        [west, north],
        [west, south]
    ]);
    let field = json!({
        "type":"Feature",
        "properties":{"kind":"airport","name":"SFO"},
        "geometry":{"type":"Polygon","coordinates":[ring]}
    });
    let all = json!({"type":"FeatureCollection","features":[field]});
    std::fs::write(dir.join("city.geojson"), all.to_string()).unwrap();
}

struct Field {
    city: City,
    seq: u32,
    _dir: tempfile::TempDir,
}

impl Field {
    async fn new(rules: QueueRules, grace_ms: u64) -> Field {
        let dir = tempfile::tempdir().unwrap();
        draw(dir.path());
        let city = City::with(|gateway, engine| {
            gateway.zones.dir = dir.path().display().to_string();
            gateway.zones.queue_grace_ms = grace_ms;
            // Cars of these tests are where they are wanted at once.
            gateway.ingest.jump_m_max = 10_000.0;
            gateway.ingest.pings_per_second = 0;
            gateway.limits.frames_per_second = 0;
            engine.queues = rules;
        })
        .await;
        Field {
            city,
            seq: 0,
            _dir: dir,
        }
    }

    async fn ping(&mut self, driver: &mut Socket, (lat, lon): (f64, f64)) {
        self.seq += 1;
        driver.ping(lat, lon, self.seq).await;
    }

    /// A free driver who has come to the field, and the place the phone is told.
    async fn comes(&mut self, id: &str) -> (Socket, u64) {
        let mut driver = self.city.driver(id).await;
        driver.online(&["economy"]).await;
        self.ping(&mut driver, FIELD).await;
        let told = driver.hear("queue").await;
        assert_eq!(told["airport"], "SFO");
        (driver, told["position"].as_u64().unwrap())
    }

    /// Pings until the phone is told another place.
    async fn told(&mut self, driver: &mut Socket, at: (f64, f64)) -> Value {
        let mut pause = tokio::time::interval(Duration::from_millis(20));
        loop {
            self.ping(driver, at).await;
            tokio::select! {
                told = driver.hear("queue") => return told,
                _ = async { pause.tick().await; pause.tick().await } => {}
            }
        }
    }

    async fn ride_from(&self, (lat, lon): (f64, f64), rider: &str) -> String {
        let wish = json!({"pickup":{"lat":lat,"lon":lon}});
        let opened = answered(self.city.ask(rider, "k", &wish).await, 201).await;
        opened["ride"].as_str().unwrap().to_owned()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_came_first_is_asked_first_and_everybody_is_told_their_place() {
    let mut field = Field::new(QueueRules::default(), 60_000).await;
    let (mut first, one) = field.comes("d9").await;
    let (mut second, two) = field.comes("d8").await;
    let (mut third, three) = field.comes("d1").await;
    assert_eq!((one, two, three), (1, 2, 3));
    // The third stands at the rider's feet; the turn is the first one's.
    let ride = field.ride_from(FIELD, "ann").await;
    let offer = first.hear("offer").await;
    assert_eq!(offer["ride"], ride);
    let told = field.told(&mut second, FIELD).await;
    assert_eq!(
        (&told["position"], &told["waiting"]),
        (&json!(1), &json!(2))
    );

    // Who declines goes to the end; the next is asked.
    first.report("received", &offer).await;
    first.report("decline", &offer).await;
    let offer = second.hear("offer").await;
    assert_eq!(offer["ride"], ride);
    let told = field.told(&mut first, FIELD).await;
    assert_eq!(told["position"], 2, "behind the third: {told}");
    second.reports(&["received", "accept"], &offer).await;
    let told = field.told(&mut second, FIELD).await;
    assert_eq!(
        told,
        json!({"type":"queue","airport":"SFO","waiting":0}),
        "a ride was taken"
    );

    // The rider calls it off: the second has the place from before.
    let body = json!({"key":"k"});
    answered(field.city.post("/v1/cancel", ANN, &body).await, 200).await;
    let told = field.told(&mut second, FIELD).await;
    assert_eq!(told["position"], 1);
    let told = field.told(&mut third, FIELD).await;
    assert_eq!(told["position"], 2);
    field.city.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_ping_from_elsewhere_or_a_lost_socket_costs_nothing_and_driving_off_does() {
    let mut field = Field::new(QueueRules::default(), 300).await;
    let (mut first, _) = field.comes("d1").await;
    let (mut second, _) = field.comes("d2").await;
    for _ in 0..5 {
        field.ping(&mut first, TOWN).await;
        field.ping(&mut first, FIELD).await;
    }
    drop(first);
    let mut first = field.city.driver("d1").await;
    let told = first.hear("queue").await;
    assert_eq!(
        (&told["position"], &told["waiting"]),
        (&json!(1), &json!(2))
    );
    // For longer than the grace.
    let told = field.told(&mut first, TOWN).await;
    assert_eq!(told, json!({"type":"queue","airport":"SFO","waiting":0}));
    let told = field.told(&mut second, FIELD).await;
    assert_eq!(
        (&told["position"], &told["waiting"]),
        (&json!(1), &json!(1))
    );
    let told = field.told(&mut first, FIELD).await;
    assert_eq!(told["position"], 2, "come back, but last: {told}");
    field.city.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_is_told_and_where_nobody_waits_the_nearest_car_comes() {
    let rules = QueueRules {
        after_decline: AfterDecline::Keep,
        drivers_max: 1,
    };
    let mut field = Field::new(rules, 60_000).await;
    // Drivers of one shard: the bound is each shard's own.
    let ring = cabrank_ring::Ring::new(8).unwrap();
    let home = |id: &str| ring.shard_of_person(cabrank_ring::Kind::Driver, id);
    let other = (0..)
        .map(|n| format!("e{n}"))
        .find(|id| home(id) == home("d1"));
    let (mut first, _) = field.comes("d1").await;
    let mut late = field.city.driver(&other.unwrap()).await;
    late.online(&["economy"]).await;
    let told = field.told(&mut late, FIELD).await;
    assert_eq!(
        told,
        json!({"type":"queue","airport":"SFO","waiting":0,"is_full":true})
    );

    let ride = field.ride_from(FIELD, "ann").await;
    let offer = first.hear("offer").await;
    first.report("received", &offer).await;
    first.report("decline", &offer).await;
    // Nobody else waits in the queue: the ride is matched like any other.
    assert_eq!(late.hear("offer").await["ride"], ride);
    let kept = until("the place to be the driver's again", async || {
        let id = cabrank_events::DriverId::new("d1").unwrap();
        cabrank_matcher::api::Dispatch::queue_place(&field.city.node, &id)
    })
    .await;
    assert_eq!(kept.position, Some(1));
    field.city.end().await;
}
