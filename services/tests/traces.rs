//! A traced ride goes on in the services: what they take in, what they say to each other, and the provider's calls.

mod support;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cabrank_events::{Event, EventRecord, TraceParent};
use cabrank_services::host::{self, Peers, Place};
use cabrank_services::order::saga::Policy;
use cabrank_services::payment::Config;
use cabrank_services::payment::provider::HttpProvider;
use cabrank_services::provider_sim::{Faults, ProviderSim};
use cabrank_services::source::{FeedSource, Source, Token};
use cabrank_services::web::{Caller, Guard};
use cabrank_spans::testing::{Collector, Span, tree};
use support::{City, Script, until};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// The events of a ride that was driven to its end, as a node that traces it writes them.
fn traced_ride(parent: TraceParent) -> Vec<Bytes> {
    let mut city = City::new(3);
    loop {
        let events: Vec<EventRecord> = city
            .rides(1)
            .iter()
            .map(|event| EventRecord::from_json(event).unwrap())
            .collect();
        let is_driven = matches!(events.last().unwrap().event, Event::RideCompleted(_));
        let is_plain = !events
            .iter()
            .any(|record| matches!(record.event, Event::DestinationChanged(_)));
        if is_driven && is_plain {
            let traced = events.into_iter().map(|record| EventRecord {
                traceparent: Some(parent),
                ..record
            });
            return traced.map(|record| record.to_json()).collect();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_services_do_for_a_traced_ride_is_part_of_its_trace() {
    let collector = Collector::start(1.0, false).await;
    let dir = tempfile::tempdir().unwrap();
    let stop = CancellationToken::new();
    let guard: Guard = Arc::new(|_| Some(Caller::Service));
    let token: Token = Arc::new(|| "service".to_owned());
    let bound = async || TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (for_order, for_payment, for_provider) = (bound().await, bound().await, bound().await);
    let feed = |name: &str, of: &TcpListener| -> Arc<dyn Source> {
        let url = format!("http://{}", of.local_addr().unwrap());
        Arc::new(FeedSource::new(name, &url, token.clone()))
    };
    let sim = ProviderSim::new(Faults::default(), 1, None).unwrap();
    let provider = format!("http://{}", for_provider.local_addr().unwrap());
    tokio::spawn(sim.clone().serve(for_provider, stop.clone()));

    let parent: TraceParent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
        .parse()
        .unwrap();
    let events = traced_ride(parent);
    // One by one, each when the one before has led to what it leads to.
    let rides = Script::of(Vec::new(), 1);
    let sources = vec![
        Arc::new(rides.clone()) as Arc<dyn Source>,
        feed("payment", &for_payment),
    ];
    let from_order = vec![feed("order", &for_order)];
    let place = |name: &str, listener| Place {
        database: dir.path().join(name).display().to_string(),
        listener,
        guard: guard.clone(),
        brokers: None,
        stop: stop.clone(),
    };
    let peers = Peers {
        gateway: None,
        forecast: None,
    };
    let order = place("order.db", for_order);
    let order = host::start_order(order, Policy::default(), sources, peers, false)
        .await
        .unwrap();
    let provider = Arc::new(HttpProvider::new(&provider, Duration::from_secs(5)).unwrap());
    let payment = place("payment.db", for_payment);
    let (payment, _) = host::start_payment(payment, Config::default(), provider, from_order)
        .await
        .unwrap();

    let mut spans: Vec<Span> = Vec::new();
    let last = events.len() - 1;
    for (n, event) in events.into_iter().enumerate() {
        rides.push([event]);
        let awaited = match n {
            0 => "order payment.authorised",
            n if n == last => "order payment.captured",
            _ => continue,
        };
        let seen = tokio::sync::Mutex::new(&mut spans);
        until(awaited, || async {
            let mut seen = seen.lock().await;
            seen.extend(collector.take().await);
            seen.iter().any(|span| span.name == awaited)
        })
        .await;
    }
    let trace = parent.trace.get().to_be_bytes();
    assert!(spans.iter().all(|span| span.trace_id == trace), "{spans:?}");
    // The driver's way, and the receipt, which may come while this is read, cost nothing.
    let beside = [
        "order ride.driver_assigned",
        "order ride.driver_arrived",
        "order ride.started",
        "payment order.receipt",
    ];
    spans.retain(|span| !beside.contains(&&*span.name));
    assert_eq!(
        tree(&spans, &["answered"]),
        "\
order ride.requested
  payment order.authorisation_asked
    provider authorise answered=true
    order payment.authorised
order ride.completed
  payment order.capture_asked
    provider capture answered=true
    order payment.captured
"
    );
    stop.cancel();
    order.ended().await.unwrap();
    payment.ended().await.unwrap();
    collector.end().await;
}
