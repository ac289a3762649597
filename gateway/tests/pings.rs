//! Every reason to refuse a ping, by name, over a real socket. Alone in its process, so `/metrics` is its own.

mod support;

use cabrank_events::wire::PingRefusal;
use cabrank_gateway::IngestSnapshot;
use cabrank_matcher::api::Dispatch;
use serde_json::{Value, json};
use support::{City, Socket, until};

/// Waits until the server has taken all pings in, then says what it counted: `/metrics` and the counters agree.
async fn counted(city: &City, sent: u64) -> IngestSnapshot {
    let pings = until("all pings to be counted", async || {
        let pings = city.counters.snapshot();
        let known = pings.accepted + pings.replaced + pings.refused_total();
        (pings.sent == sent && known == sent).then_some(pings)
    })
    .await;
    let metrics = city.metrics().await;
    let of = |name: &str| -> u64 {
        let line = metrics.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_else(|| panic!("no {name} in\n{metrics}"))
            .trim()
            .parse()
            .unwrap()
    };
    assert_eq!(of("cabrank_pings_sent_total"), sent);
    assert_eq!(
        of(r#"cabrank_pings_total{result="accepted",reason=""}"#),
        pings.accepted
    );
    assert_eq!(
        of(r#"cabrank_pings_total{result="replaced",reason=""}"#),
        pings.replaced
    );
    for why in PingRefusal::ALL {
        let name = format!(
            "cabrank_pings_total{{result=\"refused\",reason=\"{}\"}}",
            why.name()
        );
        assert_eq!(of(&name), pings.refused_for(why), "{name}");
    }
    pings
}

/// Reads `ping_refused` messages until they add up to `count`; the reasons in them.
async fn told(phone: &mut Socket, count: u64) -> Vec<String> {
    let (mut reasons, mut refused) = (Vec::new(), 0);
    while refused < count {
        let message = phone.hear("ping_refused").await;
        refused += message["refused"].as_u64().unwrap();
        reasons.push(message["reason"].as_str().unwrap().to_owned());
    }
    assert_eq!(refused, count);
    reasons
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_ping_spoils_itself_only_whatever_is_wrong_with_it() {
    use PingRefusal::*;
    let city = City::built(|knobs| knobs.node.drivers_max = 2).await;
    let mut phone = city.driver("d1").await;
    let now = city.node.now().0;
    let good = |ago_ms: i64, seq: u32| json!({"lat":37.77 + f64::from(seq) * 1e-5,"lon":-122.42,"time":now - ago_ms,"seq":seq});
    let but = |mut ping: Value, key: &str, value: Value| {
        ping[key] = value;
        ping
    };
    // Not at work: nothing is believed, and the phone is told why.
    let mut early = good(20_000, 0);
    early["type"] = json!("ping");
    phone.say(early).await;
    assert_eq!(told(&mut phone, 1).await, ["not_online"]);
    assert_eq!(counted(&city, 1).await.refused_for(NotOnline), 1);
    phone.online(&["economy"]).await;

    let frame = json!({"type":"pings","pings":[
        good(9_000, 1),
        but(good(8_900, 2), "lat", json!(90.5)),
        but(good(8_800, 3), "lon", json!(-180.5)),
        but(good(8_700, 4), "lat", Value::Null),
        json!({"seq":5}),
        json!("not even an object"),
        but(good(8_600, 6), "time", json!(now + 3_600_000)),
        but(good(8_500, 7), "time", json!(now - 3_600_000)),
        good(9_000, 1),
        good(9_500, 0),
        but(good(8_000, 8), "lat", json!(34.05)),
        but(good(7_500, 9), "accuracy", json!(90_000.0)),
        but(good(7_000, 10), "accuracy", json!(-1.0)),
        good(1_000, 11),
    ]});
    let sent = frame["pings"].as_array().unwrap().len() as u64;
    phone.say(frame).await;
    let refused = counted(&city, 1 + sent).await;
    let by_name: Vec<(&str, u64)> = PingRefusal::ALL
        .into_iter()
        .map(|why| (why.name(), refused.refused_for(why)))
        .filter(|(_, count)| *count > 0)
        .collect();
    assert_eq!(
        by_name,
        [
            ("bad_coordinates", 5),
            ("from_the_future", 1),
            ("too_old", 1),
            ("out_of_order", 2),
            ("impossible_speed", 1),
            ("bad_accuracy", 2),
            ("not_online", 1),
        ]
    );
    let reasons = told(&mut phone, 12).await;
    assert!(reasons.len() <= 3, "the phone is not flooded: {reasons:?}");
    let seen = city.cars("lat=37.77&lon=-122.42").await;
    let lat = seen[0]["at"]["lat"].as_f64().unwrap();
    assert!(
        (lat - 37.770_11).abs() < 1e-6,
        "the newest good one stands: {lat}"
    );

    // More than a burst at once: what is beyond it is refused, the rest is believed.
    let mut quick = city.driver("d2").await;
    quick.online(&["economy"]).await;
    let burst = u64::from(city.config.ingest.ping_burst);
    let many: Vec<Value> = (1..=burst + 7)
        .map(|n| good(5_000 - 10 * n as i64, n as u32))
        .collect();
    quick.say(json!({"type":"pings","pings":many})).await;
    let all = 1 + sent + burst + 7;
    assert_eq!(counted(&city, all).await.refused_for(TooMany), 7);
    assert_eq!(told(&mut quick, 7).await, ["too_many"]);

    // The index has room for two.
    let mut third = city.driver("d3").await;
    third.online(&["economy"]).await;
    third.ping(37.77, -122.42, 1).await;
    assert_eq!(told(&mut third, 1).await, ["index_full"]);
    assert_eq!(counted(&city, all + 1).await.refused_for(IndexFull), 1);

    // What is no frame of pings at all is not counted, and named.
    for (garbage, what) in [
        (json!({"type":"pings","pings":7}), "invalid type"),
        (json!({"type":"pings"}), "missing field"),
        (json!({"type":"ping","lat":null,"lon":0}), "invalid type"),
    ] {
        third.say(garbage).await;
        let error = third.hear("error").await;
        assert!(error["message"].as_str().unwrap().contains(what), "{error}");
    }
    counted(&city, all + 1).await;
    city.end().await;
}
