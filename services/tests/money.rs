//! Rides and their money, end to end: order, payment and a misbehaving provider; at the end the audit.

mod support;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::{Path, State};
use axum::routing::post;
use axum::{Json, Router};
use cabrank_events::command::CancelledBy;
use cabrank_events::event::RideCancelled;
use cabrank_events::{Event, EventRecord, ShardId, Time};
use cabrank_services::audit::{ServicesAudit, ServicesReport};
use cabrank_services::database::Database;
use cabrank_services::host::{self, Hosted, Peer, Peers, Place};
use cabrank_services::order::fare::Tariff;
use cabrank_services::order::saga::Policy;
use cabrank_services::order::{saga_counts, saga_of};
use cabrank_services::payment::provider::HttpProvider;
use cabrank_services::payment::{Config, open_calls};
use cabrank_services::provider_sim::{Faults, ProviderSim};
use cabrank_services::source::{FeedSource, Source, Token};
use cabrank_services::web::{Caller, Guard};
use support::{City, Script, until};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Tokens of tests say who they are: `ops`, `service`, `rider/r1`, `driver/d1`.
fn guard() -> Guard {
    Arc::new(|token| match token.split_once('/') {
        Some(("rider", id)) => Some(Caller::Rider(id.to_owned())),
        Some(("driver", id)) => Some(Caller::Driver(id.to_owned())),
        None if token == "ops" => Some(Caller::Ops),
        None if token == "service" => Some(Caller::Service),
        _ => None,
    })
}

fn token() -> Token {
    Arc::new(|| "service".to_owned())
}

/// Where a service answers. The port stays this test's while the service is away: nobody else gets it meanwhile.
#[derive(Clone)]
struct Door(Arc<std::net::TcpListener>);

impl Door {
    fn new() -> Door {
        let bound = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        bound.set_nonblocking(true).unwrap();
        Door(Arc::new(bound))
    }

    fn url(&self) -> String {
        format!("http://{}", self.0.local_addr().unwrap())
    }

    fn listener(&self) -> TcpListener {
        TcpListener::from_std(self.0.try_clone().unwrap()).unwrap()
    }
}

async fn provider(sim: &ProviderSim) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(sim.clone().serve(listener, CancellationToken::new()));
    url
}

type Cancels = Arc<Mutex<Vec<(String, String)>>>;

/// A gateway that only takes cancels.
async fn gateway() -> (Peer, Cancels) {
    let taken: Cancels = Arc::default();
    async fn take(
        State(taken): State<Cancels>,
        Path(ride): Path<String>,
        Json(body): Json<serde_json::Value>,
    ) -> Json<serde_json::Value> {
        let reason = body["reason"].as_str().unwrap_or_default().to_owned();
        taken.lock().unwrap().push((ride, reason));
        Json(serde_json::json!({}))
    }
    let router = Router::new()
        .route("/v1/rides/{ride}/cancel", post(take))
        .with_state(Arc::clone(&taken));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    (
        Peer {
            base,
            token: token(),
        },
        taken,
    )
}

/// Where the two services are.
#[derive(Clone)]
struct Town {
    order: Door,
    payment: Door,
    databases: (String, String),
    policy: Policy,
    config: Config,
}

impl Town {
    fn new(order: String, payment: String) -> Town {
        Town {
            order: Door::new(),
            payment: Door::new(),
            databases: (order, payment),
            policy: Policy {
                settle_within_ms: 2_000,
                ..Policy::default()
            },
            config: Config {
                timeout_ms: 300,
                retry_ms: (10, 100),
                open_s: (1, 2),
                ..Config::default()
            },
        }
    }

    async fn start(
        &self,
        rides: &Script,
        gateway: &Peer,
        provider: &str,
        stop: &CancellationToken,
    ) -> (Hosted, Hosted) {
        let place = |database: &str, at: &Door| Place {
            database: database.to_owned(),
            listener: at.listener(),
            guard: guard(),
            brokers: None,
            stop: stop.clone(),
        };
        let feed = |name: &str, at: &Door| -> Arc<dyn Source> {
            Arc::new(FeedSource::new(name, &at.url(), token()))
        };
        let sources = vec![
            Arc::new(rides.clone()) as Arc<dyn Source>,
            feed("payment", &self.payment),
        ];
        let order = place(&self.databases.0, &self.order);
        let order = host::start_order(
            order,
            self.policy.clone(),
            sources,
            Peers {
                gateway: Some(gateway.clone()),
                forecast: None,
            },
            false,
        )
        .await
        .unwrap();
        let patience = Duration::from_millis(self.config.timeout_ms);
        let provider = Arc::new(HttpProvider::new(provider, patience).unwrap());
        let payment = place(&self.databases.1, &self.payment);
        let (payment, _) = host::start_payment(
            payment,
            self.config.clone(),
            provider,
            vec![feed("order", &self.order)],
        )
        .await
        .unwrap();
        (order, payment)
    }

    /// Every saga has ended and no call is under way.
    async fn settled(&self, order: &Database, payment: &Database, rides: i64) {
        until("every saga has ended", || async {
            let counts = saga_counts(order.pool()).await.unwrap();
            let open: i64 = ["open", "cancelling", "capturing", "voiding"]
                .iter()
                .filter_map(|state| counts.get(*state))
                .sum();
            open == 0
                && counts.values().sum::<i64>() == rides
                && open_calls(payment).await.unwrap() == 0
        })
        .await;
    }
}

async fn audit(rides: &Script, town: &Town, sim: &ProviderSim) -> ServicesReport {
    let order = Database::open_for_reading(&town.databases.0).await.unwrap();
    let payment = Database::open_for_reading(&town.databases.1).await.unwrap();
    let mut audit = ServicesAudit::default();
    rides.all().iter().for_each(|event| audit.event(event));
    audit
        .finish(&order, &payment, &sim.movements(), &Tariff::default(), true)
        .await
        .unwrap()
}

fn bad_day() -> Faults {
    Faults {
        latency_ms: (0, 10),
        error: 0.1,
        lost: 0.15,
        hang: 0.03,
        hang_ms: 2_000,
        duplicate: 0.2,
        decline: 0.1,
        ignore_keys: false,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_ride_is_paid_once_on_a_providers_bad_day() {
    let stores = support::Stores::new();
    stores
        .each(|make| async move {
            let town = Town::new(make("order"), make("payment"));
            let sim = ProviderSim::new(bad_day(), 7, None).unwrap();
            let (url, (gateway, _)) = (provider(&sim).await, gateway().await);
            let rides = Script::of(City::new(11).rides(300), 64).repeating();
            let stop = CancellationToken::new();
            let (order, payment) = town.start(&rides, &gateway, &url, &stop).await;
            town.settled(&order.consumer.database, &payment.consumer.database, 300)
                .await;
            let report = audit(&rides, &town, &sim).await;
            assert!(report.is_clean(), "{report}");
            assert_eq!(
                (report.rides, report.orders, report.left_open),
                (300, 300, 0)
            );
            assert!(
                report.captures > 100 && report.declined > 10 && report.voids > 10,
                "{report}"
            );
            assert_eq!(report.receipts, report.captures);
            stop.cancel();
            order.ended().await.unwrap();
            payment.ended().await.unwrap();
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_forgets_keys_charges_twice_and_the_audit_sees_it() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let town = Town::new(at("order.db"), at("payment.db"));
    let faults = Faults {
        ignore_keys: true,
        ..bad_day()
    };
    let sim = ProviderSim::new(faults, 7, None).unwrap();
    let (url, (gateway, _)) = (provider(&sim).await, gateway().await);
    let rides = Script::of(City::new(11).rides(60), 64);
    let stop = CancellationToken::new();
    let (order, payment) = town.start(&rides, &gateway, &url, &stop).await;
    town.settled(&order.consumer.database, &payment.consumer.database, 60)
        .await;
    let report = audit(&rides, &town, &sim).await;
    assert!(
        report
            .findings
            .iter()
            .any(|finding| finding.contains("charged twice")),
        "{report}"
    );
    stop.cancel();
    order.ended().await.unwrap();
    payment.ended().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_payment_calls_the_ride_off_and_the_rider_sees_why() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let town = Town::new(at("order.db"), at("payment.db"));
    let sim = ProviderSim::new(
        Faults {
            decline: 1.0,
            ..Faults::default()
        },
        1,
        None,
    )
    .unwrap();
    let (url, (gateway, cancels)) = (provider(&sim).await, gateway().await);
    let mut city = City::new(5);
    let opened = city.rides(1)[0].clone();
    let Event::RideRequested(asked) = EventRecord::from_json(&opened).unwrap().event else {
        panic!("rides begin so")
    };
    let rides = Script::of(vec![opened], 64);
    let stop = CancellationToken::new();
    let (order, payment) = town.start(&rides, &gateway, &url, &stop).await;
    until("the gateway is asked to call the ride off", || async {
        !cancels.lock().unwrap().is_empty()
    })
    .await;
    let (ride, reason) = cancels.lock().unwrap()[0].clone();
    assert_eq!(ride, asked.ride.to_string());
    assert_eq!(reason, "payment refused: the means of payment was declined");
    // The engine does it, and says so.
    let cancelled = RideCancelled {
        ride: asked.ride,
        ride_seq: 2,
        by: CancelledBy::Ops,
        driver: None,
        keep_until: Time(0),
        reason: None,
    };
    let record = EventRecord {
        traceparent: None,
        shard: ShardId(0),
        seq: 900,
        time: Time(city.now),
        event: cancelled.into(),
    };
    rides.push([record.to_json()]);
    town.settled(&order.consumer.database, &payment.consumer.database, 1)
        .await;
    let saga = saga_of(order.consumer.database.pool(), &ride)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(saga.state.name(), "refused");

    let http = reqwest::Client::new();
    let see = |token: String| {
        let request = http
            .get(format!("{}/v1/orders/{ride}", order.url()))
            .bearer_auth(token);
        async move { request.send().await.unwrap() }
    };
    let answer = see(format!("rider/{}", asked.rider)).await;
    assert!(answer.headers().contains_key("cabrank-lag-ms"));
    let seen: serde_json::Value = answer.json().await.unwrap();
    assert_eq!(
        seen["payment"]["why"],
        "payment refused: the means of payment was declined"
    );
    assert_eq!(seen["state"], "cancelled");
    assert_eq!(see("rider/somebody-else".to_owned()).await.status(), 404);
    assert_eq!(see("nobody".to_owned()).await.status(), 401);
    stop.cancel();
    order.ended().await.unwrap();
    payment.ended().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_come_in_pages_newest_first_and_only_to_whom_they_concern() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let town = Town::new(at("order.db"), at("payment.db"));
    let sim = ProviderSim::new(Faults::default(), 1, None).unwrap();
    let (url, (gateway, _)) = (provider(&sim).await, gateway().await);
    let rides = Script::of(City::new(6).rides(57), 16);
    let stop = CancellationToken::new();
    let (order, payment) = town.start(&rides, &gateway, &url, &stop).await;
    town.settled(&order.consumer.database, &payment.consumer.database, 57)
        .await;
    let http = reqwest::Client::new();
    let ask = |query: String, token: &str| {
        let request = http
            .get(format!("{}/v1/orders?{query}", order.url()))
            .bearer_auth(token);
        async move { request.send().await.unwrap() }
    };
    let (mut seen, mut cursor) = (Vec::new(), String::new());
    loop {
        let page: serde_json::Value = ask(format!("limit=10{cursor}"), "ops")
            .await
            .json()
            .await
            .unwrap();
        let orders = page["orders"].as_array().unwrap().clone();
        seen.extend(orders.iter().map(|order| {
            (
                order["requested_ms"].as_i64().unwrap(),
                order["ride"].to_string(),
            )
        }));
        match page["next"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(seen.len(), 57);
    assert!(seen.is_sorted_by(|a, b| a > b), "newest first, none twice");
    let mine: serde_json::Value = ask(String::new(), "rider/r5").await.json().await.unwrap();
    assert_eq!(mine["orders"].as_array().unwrap().len(), 1);
    assert_eq!(ask("rider=r6".to_owned(), "rider/r5").await.status(), 403);
    assert_eq!(
        ask("cursor=nonsense!".to_owned(), "ops").await.status(),
        400
    );
    assert_eq!(ask("limit=100000".to_owned(), "ops").await.status(), 400);
    stop.cancel();
    order.ended().await.unwrap();
    payment.ended().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rebuilt_read_model_equals_the_live_one_and_asks_for_no_money_again() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let town = Town::new(at("order.db"), at("payment.db"));
    let sim = ProviderSim::new(Faults::default(), 1, None).unwrap();
    let (url, (gateway, _)) = (provider(&sim).await, gateway().await);
    let rides = Script::of(City::new(8).rides(80), 32);
    let stop = CancellationToken::new();
    let (order, payment) = town.start(&rides, &gateway, &url, &stop).await;
    town.settled(&order.consumer.database, &payment.consumer.database, 80)
        .await;
    let live = dump(&order.consumer.database).await;
    let movements = sim.movements().len();
    stop.cancel();
    order.ended().await.unwrap();
    payment.ended().await.unwrap();

    let stop = CancellationToken::new();
    let listener = town.order.listener();
    let place = Place {
        database: town.databases.0.clone(),
        listener,
        guard: guard(),
        brokers: None,
        stop: stop.clone(),
    };
    let sources: Vec<Arc<dyn Source>> = vec![Arc::new(rides.clone())];
    let again = host::start_order(place, town.policy.clone(), sources, Peers::default(), true)
        .await
        .unwrap();
    until("the model is rebuilt", || async {
        dump(&again.consumer.database).await == live
    })
    .await;
    assert_eq!(sim.movements().len(), movements);
    let report = audit(&rides, &town, &sim).await;
    assert!(report.is_clean(), "{report}");
    stop.cancel();
    again.ended().await.unwrap();
}

/// Both tables of the read model, whole.
async fn dump(database: &Database) -> Vec<String> {
    use sqlx::Row;
    let mut rows = Vec::new();
    let orders = sqlx::query(
        "SELECT ride || '|' || rider || '|' || state || '|' || COALESCE(driver, '') || '|' || COALESCE(ended_by, '') \
         || '|' || last_seq || '|' || requested_ms || '|' || COALESCE(assigned_ms, 0) || '|' || COALESCE(ended_ms, 0) AS r \
         FROM orders ORDER BY ride",
    );
    let steps = sqlx::query(
        "SELECT ride || '|' || ride_seq || '|' || name || '|' || at_ms AS r FROM order_history ORDER BY ride, ride_seq",
    );
    for query in [orders, steps] {
        rows.extend(
            query
                .fetch_all(database.pool())
                .await
                .unwrap()
                .iter()
                .map(|row| row.get::<String, _>("r")),
        );
    }
    rows
}

/// Thirty crashes at random moments: the runtime is torn down wherever it is, transactions and calls under way with it.
#[test]
fn services_that_crash_at_any_moment_lose_and_double_nothing() {
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let town = Town::new(at("order.db"), at("payment.db"));
    let beside = tokio::runtime::Runtime::new().unwrap();
    let sim = ProviderSim::new(bad_day(), 3, None).unwrap();
    let (url, (gateway, _)) = beside.block_on(async { (provider(&sim).await, gateway().await) });
    let (mut city, mut random) = (City::new(21), SmallRng::seed_from_u64(21));
    let rides = Script::of(Vec::new(), 16).repeating();
    for _ in 0..30 {
        rides.push(city.rides(8));
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let crash_after = Duration::from_millis(random.random_range(5..150));
        runtime.block_on(async {
            let stop = CancellationToken::new();
            let (order, payment) = town.start(&rides, &gateway, &url, &stop).await;
            // The moment of the crash is what is drawn at random: there is no condition to wait for.
            tokio::time::sleep(crash_after).await;
            // Nothing is told to stop: both are dropped as they are.
            drop((order, payment));
        });
        runtime.shutdown_timeout(Duration::from_secs(10));
    }
    beside.block_on(async {
        let stop = CancellationToken::new();
        let (order, payment) = town.start(&rides, &gateway, &url, &stop).await;
        town.settled(&order.consumer.database, &payment.consumer.database, 240)
            .await;
        let report = audit(&rides, &town, &sim).await;
        assert!(report.is_clean(), "{report}");
        assert_eq!(report.rides, 240);
        stop.cancel();
        order.ended().await.unwrap();
        payment.ended().await.unwrap();
    });
}
