//! The contract of the services' messages, and what each consumer reads of anybody's.
//!
//! Schemas and examples are kept in `events/schemas/business/` (`CABRANK_BLESS=1 cargo test -p cabrank-events --test business`
//! writes them anew). Consumers keep examples of exactly what they read in `services/contracts/`; a producer whose message
//! no longer has one of these fields, or has it with another kind of value, fails here, and the consumer is named.

use std::path::{Path, PathBuf};

use cabrank_events::business::*;
use cabrank_events::{Event, RideId, RiderId, ShardId, Time};
use serde_json::{Value, json};

fn ride() -> RideId {
    RideId {
        place: ShardId(3),
        minted_by: ShardId(5),
        offset: 1042,
    }
}

fn money(minor: i64) -> Money {
    Money {
        minor,
        currency: "USD".to_owned(),
    }
}

/// One example of every message.
fn examples() -> Vec<Business> {
    let (ride, rider) = (ride(), RiderId::new("ann").unwrap());
    let line = |what: &str, minor| ReceiptLine {
        what: what.to_owned(),
        minor,
    };
    vec![
        AuthorisationAsked {
            ride,
            rider: rider.clone(),
            method: "tok_ann".to_owned(),
            amount: money(1_610),
        }
        .into(),
        CaptureAsked {
            ride,
            amount: money(1_073),
            charged_for: ChargedFor::Fare,
        }
        .into(),
        VoidAsked { ride }.into(),
        Receipt {
            ride,
            rider: rider.clone(),
            total: money(1_073),
            lines: vec![line("base", 350), line("distance", 429), line("time", 294)],
        }
        .into(),
        LeftUnpaid {
            ride,
            rider,
            amount: money(1_073),
            why: "the means of payment was declined".to_owned(),
        }
        .into(),
        Authorised {
            ride,
            authorisation: "auth-17".to_owned(),
            amount: money(1_610),
        }
        .into(),
        Refused {
            ride,
            why: "the means of payment was declined".to_owned(),
        }
        .into(),
        Captured {
            ride,
            amount: money(1_073),
        }
        .into(),
        Voided { ride }.into(),
        Refunded {
            ride,
            amount: money(1_073),
        }
        .into(),
        ProviderState {
            state: "open".to_owned(),
        }
        .into(),
        DemandForecast {
            region_id: "872830828ffffff".to_owned(),
            timestamp: "2008-05-23T00:00:01.250Z".to_owned(),
            predicted_demand: vec![Horizon {
                minutes: 15,
                expected: 7.25,
                low: 2,
                high: 13,
            }],
            confidence: 0.9,
            supply: 4,
        }
        .into(),
    ]
}

fn record(said: Business) -> BusinessRecord {
    let service = said
        .topic()
        .split('-')
        .next()
        .unwrap_or_default()
        .to_owned();
    BusinessRecord {
        traceparent: None,
        id: format!("{service}-17"),
        time: Time(1_211_500_801_250),
        said,
    }
}

fn here(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn kept(name: &str, now: &Value) -> Value {
    let path = here("schemas/business").join(name);
    if std::env::var_os("CABRANK_BLESS").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, format!("{now:#}\n")).unwrap();
    }
    let text = std::fs::read_to_string(&path).unwrap_or_else(|why| panic!("{name}: {why}"));
    serde_json::from_str(&text).unwrap()
}

#[test]
fn every_message_has_a_schema_and_an_example_that_match_the_code() {
    let examples = examples();
    let named: Vec<&str> = examples.iter().map(Business::name).collect();
    assert_eq!(named, Business::NAMES, "an example each, in order");
    for said in examples {
        let name = said.name();
        let schema = serde_json::to_value(Business::data_schema(name).unwrap()).unwrap();
        assert_eq!(
            kept(&format!("{name}.v1.json"), &schema),
            schema,
            "{name}: the schema has changed"
        );
        let record = record(said);
        let json: Value = serde_json::from_slice(&record.to_json()).unwrap();
        let example = kept(&format!("{name}.v1.example.json"), &json);
        assert_eq!(example, json, "{name}: the example has changed");
        let validator = jsonschema::validator_for(&schema).unwrap();
        assert!(validator.is_valid(&json["data"]), "{name}");
        assert_eq!(
            BusinessRecord::from_json(&record.to_json()).unwrap(),
            record,
            "{name}"
        );
        let mut richer = json.clone();
        richer["data"]["mood"] = json!("sunny");
        richer["traceparent"] = json!("00-0-0-00");
        let richer = BusinessRecord::from_json(richer.to_string().as_bytes()).unwrap();
        assert_eq!(richer, record, "{name}: unknown fields pass");
    }
}

#[test]
fn a_version_far_ahead_is_refused_by_name() {
    let json =
        String::from_utf8(record(Voided { ride: ride() }.into()).to_json().to_vec()).unwrap();
    let next = BusinessRecord::from_json(json.replace(".v1\"", ".v2\"").as_bytes());
    assert!(next.is_ok(), "{next:?}");
    let far = BusinessRecord::from_json(json.replace(".v1\"", ".v3\"").as_bytes())
        .unwrap_err()
        .to_string();
    assert!(
        far.contains("version 3") && far.contains("upgrade"),
        "{far}"
    );
}

#[test]
fn no_message_has_a_field_for_card_data() {
    for said in examples() {
        let schema = serde_json::to_string(&Business::data_schema(said.name()).unwrap())
            .unwrap()
            .to_lowercase();
        for word in ["\"card", "\"pan\"", "\"cvv", "\"cvc", "\"expiry"] {
            assert!(!schema.contains(word), "{}: {word}", said.name());
        }
    }
}

/// What of `read` is not in `said`.
fn missing(read: &Value, said: &Value, at: &str, into: &mut Vec<String>) {
    match (read, said) {
        (Value::Object(read), Value::Object(said)) => {
            for (key, value) in read {
                match said.get(key) {
                    Some(other) => missing(value, other, &format!("{at}.{key}"), into),
                    None => into.push(format!("{at}.{key} is gone")),
                }
            }
        }
        (Value::String(_), Value::String(_))
        | (Value::Number(_), Value::Number(_))
        | (Value::Bool(_), Value::Bool(_)) => {}
        (Value::Array(_), Value::Array(_)) | (Value::Null, _) => {}
        (_, said) => into.push(format!("{at} is now {said}")),
    }
}

/// What consumers miss in what producers say.
fn broken(said: impl Fn(&str) -> Option<Value>) -> Vec<String> {
    let mut broken = Vec::new();
    let mut contracts: Vec<_> = std::fs::read_dir(here("../services/contracts"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    contracts.sort();
    assert!(contracts.len() >= 3, "{contracts:?}");
    for path in contracts {
        let contract: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let consumer = contract["consumer"]
            .as_str()
            .expect("a contract names its consumer");
        for (name, read) in contract["reads"].as_object().expect("and what it reads") {
            let mut found = Vec::new();
            match said(name) {
                Some(said) => missing(read, &said["data"], "data", &mut found),
                None => found.push("nobody says it any more".to_owned()),
            }
            broken.extend(
                found
                    .into_iter()
                    .map(|what| format!("this breaks the consumer {consumer}: {name}: {what}")),
            );
        }
    }
    broken
}

/// What the code says today: for the engine's events the examples that its own test holds to the code.
fn producers(name: &str) -> Option<Value> {
    if let Some(said) = examples().into_iter().find(|said| said.name() == name) {
        return serde_json::from_slice(&record(said).to_json()).ok();
    }
    Event::NAMES.contains(&name).then(|| {
        let path = here("schemas").join(format!("{name}.v1.example.json"));
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    })
}

#[test]
fn producers_still_say_what_each_consumer_reads() {
    let broken = broken(producers);
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn a_producer_that_drops_a_field_hears_which_consumer_it_breaks() {
    let broken = broken(|name| {
        let mut said = producers(name)?;
        if name == "ride.completed" {
            said["data"].as_object_mut()?.remove("driver");
        }
        if name == "order.void_asked" {
            said["data"]["ride"] = json!(7);
        }
        Some(said)
    });
    assert_eq!(
        broken,
        [
            "this breaks the consumer forecast: ride.completed: data.driver is gone",
            "this breaks the consumer order: ride.completed: data.driver is gone",
            "this breaks the consumer payment: order.void_asked: data.ride is now 7",
        ]
    );
}
