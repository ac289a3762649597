//! A ride is one trace: a receiver of OTLP is started, a ride is driven, and the tree of its steps is compared.

mod support;

use cabrank_gateway::token::Role;
use cabrank_spans::testing::{Collector, PROCESS, Span, attribute, tree};
use reqwest::Method;
use serde_json::{Value, json};
use support::{City, answered, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_ride_is_one_trace_from_the_riders_call_to_the_end_and_positions_are_in_none() {
    let collector = Collector::start(0.5, true).await;
    let city = City::start().await;
    let mut driver = city.driver("d7").await;
    driver.online(&["economy"]).await;
    for seq in 1..=20 {
        driver.ping(37.7749, -122.4194, seq).await;
    }
    until("the pings", async || {
        (city.counters.snapshot().accepted > 0).then_some(())
    })
    .await;
    // Half of the riders are traced: the first one is not.
    let untraced = city.ride("r1", "k1").await;
    let offer = driver.hear("offer").await;
    driver.reports(&["received", "decline"], &offer).await;
    let cancel = format!("/v1/rides/{untraced}/cancel");
    let who = Some((Role::Rider, "r1"));
    answered(city.post(&cancel, who, &json!({})).await, 200).await;

    let ride = city.ride("r2", "k2").await;
    let offer = driver.hear("offer").await;
    assert_eq!(offer["ride"], Value::from(&*ride));
    let reports = ["received", "accept", "arrived", "started", "completed"];
    driver.reports(&reports, &offer).await;

    let spans = collector.take().await;
    let of_one = |spans: &[Span]| {
        spans
            .windows(2)
            .all(|two| two[0].trace_id == two[1].trace_id)
    };
    assert!(of_one(&spans), "{spans:#?}");
    let shown = tree(&spans, &["driver", "attempt", "ended_by", "outcome"]);
    let expected = "\
POST /v1/rides
  gateway request_ride outcome=done
    node request_ride
      offer driver=d7 attempt=1 ended_by=ride.driver_assigned
        phone driver=d7
          gateway receive_offer outcome=done
            node receive_offer
          gateway accept_offer outcome=done
            node accept_offer
      gateway arrive outcome=done
        node arrive
      gateway start_ride outcome=done
        node start_ride
      gateway complete_ride outcome=done
        node complete_ride
";
    assert_eq!(shown, expected);
    for span in &spans {
        assert_eq!(attribute(span, "ride"), Some(&*ride), "{span:?}");
        assert!(span.end_time_unix_nano >= span.start_time_unix_nano);
        // Nobody's name but the driver's id, and no place.
        let known = [PROCESS, "ride", "driver", "attempt", "ended_by", "outcome"];
        let mut keys = span.attributes.iter().map(|found| found.key.as_str());
        assert!(keys.all(|key| known.contains(&key)), "{span:?}");
    }

    // Who is trusted says which trace it is part of; what makes no sense is no reason to refuse the ride.
    let known = "4bf92f3577b34da6a3ce929d0e0e4736";
    for (key, header, is_followed) in [
        ("k3", format!("00-{known}-00f067aa0ba902b7-01"), true),
        ("k4", "nonsense".to_owned(), false),
    ] {
        let call = city.call(Method::POST, "/v1/rides", Some((Role::Rider, key)));
        let call = call
            .header("Idempotency-Key", key)
            .header("traceparent", header);
        let wish = support::wish();
        answered(call.json(&wish).send().await.unwrap(), 201).await;
        let known = u128::from_str_radix(known, 16).unwrap().to_be_bytes();
        let spans = collector.take().await;
        let followed = spans.iter().filter(|span| span.trace_id == known).count();
        assert_eq!(followed >= 3, is_followed, "{spans:?}");
        assert!(is_followed || followed == 0);
    }
    city.end().await;
    collector.end().await;
    assert!(!cabrank_spans::is_on());
}
