//! Is `docs/openapi-services.json` what the code says, and does each call answer?

mod support;

use std::sync::Arc;

use cabrank_services::forecast;
use cabrank_services::host::{self, Hosted, Peers, Place};
use cabrank_services::openapi::openapi;
use cabrank_services::order::saga::Policy;
use cabrank_services::payment::{Config, provider::HttpProvider};
use cabrank_services::source::Source;
use cabrank_services::web::{Caller, Guard};
use support::Script;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// `CABRANK_BLESS=1 cargo test -p cabrank-services --test openapi` writes it anew.
#[test]
fn the_description_is_what_the_code_says() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/openapi-services.json");
    let made = serde_json::to_string_pretty(&openapi()).unwrap() + "\n";
    if std::env::var_os("CABRANK_BLESS").is_some() {
        std::fs::write(path, &made).unwrap();
    }
    let kept = std::fs::read_to_string(path).unwrap();
    assert!(
        kept == made,
        "docs/openapi-services.json is not what the code says: write it anew with CABRANK_BLESS=1"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn every_call_that_is_described_answers_where_it_is_said_to() {
    let dir = tempfile::tempdir().unwrap();
    let guard: Guard = Arc::new(|token| (token == "ops").then_some(Caller::Ops));
    let stop = CancellationToken::new();
    // A service ends with its sources: this one says nothing and goes on.
    let quiet = || -> Vec<Arc<dyn Source>> { vec![Arc::new(Script::of(Vec::new(), 1))] };
    let place = async |name: &str| Place {
        database: dir.path().join(name).display().to_string(),
        listener: TcpListener::bind("127.0.0.1:0").await.unwrap(),
        guard: guard.clone(),
        brokers: None,
        stop: stop.clone(),
    };
    let order = host::start_order(
        place("order.db").await,
        Policy::default(),
        quiet(),
        Peers::default(),
        false,
    );
    let order = order.await.unwrap();
    let patience = std::time::Duration::from_secs(1);
    let provider = Arc::new(HttpProvider::new("http://127.0.0.1:1", patience).unwrap());
    let payment = host::start_payment(
        place("payment.db").await,
        Config::default(),
        provider,
        quiet(),
    );
    let (payment, _) = payment.await.unwrap();
    let service = forecast::ForecastService::new(forecast::Config::default()).unwrap();
    let forecast = host::start_forecast(place("forecast.db").await, service, quiet())
        .await
        .unwrap();
    let document = openapi();
    let http = reqwest::Client::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, call) in methods.as_object().unwrap() {
            let (tag, answers) = (call["tags"][0].as_str().unwrap(), &call["responses"]);
            for (name, service) in [
                ("order", &order),
                ("payment", &payment),
                ("forecast", &forecast),
            ] {
                let url = format!("{}{}", service.url(), path.replace("{ride}", "3-5-1042"));
                let method = method.to_uppercase().parse().unwrap();
                let asked = http
                    .request(method, url)
                    .bearer_auth("ops")
                    .send()
                    .await
                    .unwrap();
                let status = asked.status().as_u16();
                let is_json = asked
                    .headers()
                    .get("content-type")
                    .is_some_and(|kind| kind == "application/json");
                if tag == "every" || tag == name {
                    assert!(
                        answers[status.to_string()].is_object(),
                        "{name} {path}: {status}"
                    );
                    if status == 200 && answers["200"]["content"]["application/json"].is_object() {
                        assert!(is_json, "{name} {path}");
                    }
                } else {
                    assert_eq!(
                        status, 404,
                        "{name} answers {path}, which is said to be {tag}'s"
                    );
                }
            }
        }
    }
    // The way to the provider is the payment service's alone, and told once: the call of its own is a part of all.
    let metrics = async |service: &Hosted, path: &str| {
        let asked = http.get(format!("{}{path}", service.url())).send().await;
        asked.unwrap().text().await.unwrap()
    };
    let own = metrics(&payment, "/metrics/provider").await;
    assert!(own.contains("\ncabrank_provider_breaker 0\n"), "{own}");
    assert!(metrics(&payment, "/metrics").await.ends_with(&own));
    let orders = metrics(&order, "/metrics").await;
    assert!(!orders.contains("provider"), "{orders}");
    stop.cancel();
}
