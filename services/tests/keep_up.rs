//! How many rides a second can the services follow? Rides of every kind, as fast as they are taken, with the money of each.
//!
//! `cargo test --release -p cabrank-services --test keep_up -- --nocapture` prints the figures; the bound here is only one
//! that holds on a busy machine without optimisation.

mod support;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use cabrank_services::forecast::{self, ForecastService};
use cabrank_services::host::{self, Peers, Place};
use cabrank_services::order::{saga::Policy, saga_counts};
use cabrank_services::payment::{Config, open_calls, provider::HttpProvider};
use cabrank_services::provider_sim::{Faults, ProviderSim};
use cabrank_services::source::{FeedSource, Source, Token};
use cabrank_services::web::{Caller, Guard};
use support::{City, Script, until};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

const RIDES: usize = 1_000;
/// Rides a second that any machine manages.
const LEAST: f64 = 20.0;

#[tokio::test(flavor = "multi_thread")]
async fn the_services_follow_more_rides_a_second_than_a_city_has() {
    let dir = tempfile::tempdir().unwrap();
    let token: Token = Arc::new(|| "service".to_owned());
    let guard: Guard = Arc::new(|token| (token == "service").then_some(Caller::Service));
    let stop = CancellationToken::new();
    let faults = Faults {
        latency_ms: (5, 40),
        ..Faults::default()
    };
    let sim = ProviderSim::new(faults, 1, None).unwrap();
    let listener = async || TcpListener::bind("127.0.0.1:0").await.unwrap();
    let provider = listener().await;
    let provider_url = format!("http://{}", provider.local_addr().unwrap());
    tokio::spawn(sim.clone().serve(provider, CancellationToken::new()));
    let (for_order, for_payment) = (listener().await, listener().await);
    let feed = |name: &str, at: &TcpListener| -> Arc<dyn Source> {
        let url = format!("http://{}", at.local_addr().unwrap());
        Arc::new(FeedSource::new(name, &url, token.clone()))
    };
    let events = City::new(4).rides(RIDES);
    let rides = Script::of(events.clone(), 512);
    let to_order: Vec<Arc<dyn Source>> =
        vec![Arc::new(rides.clone()), feed("payment", &for_payment)];
    let to_payment = vec![feed("order", &for_order)];
    let place = |name: &str, listener| Place {
        database: dir.path().join(name).display().to_string(),
        listener,
        guard: guard.clone(),
        brokers: None,
        stop: stop.clone(),
    };
    let began = Instant::now();
    let order = place("order.db", for_order);
    let order = host::start_order(order, Policy::default(), to_order, Peers::default(), false);
    let order = order.await.unwrap();
    let patience = Duration::from_secs(2);
    let provider = Arc::new(HttpProvider::new(&provider_url, patience).unwrap());
    let payment = place("payment.db", for_payment);
    let payment = host::start_payment(payment, Config::default(), provider, to_payment);
    let (payment, _) = payment.await.unwrap();
    let service = ForecastService::new(forecast::Config::default()).unwrap();
    let to_forecast: Vec<Arc<dyn Source>> = vec![Arc::new(rides)];
    let forecast = place("forecast.db", listener().await);
    let forecast = host::start_forecast(forecast, service, to_forecast);
    let forecast = forecast.await.unwrap();
    let order_done = async {
        until("every ride is paid", || async {
            let counts = saga_counts(order.consumer.database.pool()).await.unwrap();
            let open = ["open", "cancelling", "capturing", "voiding"];
            let open: i64 = open.iter().filter_map(|state| counts.get(*state)).sum();
            let all: i64 = counts.values().sum();
            open == 0 && all == RIDES as i64
        })
        .await;
    };
    order_done.await;
    until("no call is under way", || async {
        open_calls(&payment.consumer.database).await.unwrap() == 0
    })
    .await;
    let took = began.elapsed().as_secs_f64();
    println!(
        "{RIDES} rides, {} events, all paid in {took:.1} s: {:.0} rides/s",
        events.len(),
        RIDES as f64 / took
    );
    for (name, service) in [
        ("order", &order),
        ("payment", &payment),
        ("forecast", &forecast),
    ] {
        // Relaxed: numbers to look at.
        let gauges = &service.consumer.gauges;
        let busy = gauges.busy_us.load(Ordering::Relaxed) as f64 / 1e6;
        let applied = gauges.applied.load(Ordering::Relaxed);
        println!(
            "{name}: {applied} events in {busy:.2} s of work, enough for {:.0} rides/s",
            RIDES as f64 / busy
        );
    }
    assert!(RIDES as f64 / took > LEAST, "{RIDES} rides took {took} s");
    stop.cancel();
}
