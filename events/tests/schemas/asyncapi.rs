//! The same contract as one AsyncAPI 3 document, `docs/asyncapi.json`: which topic, which key and header, which body.
//!
//! Built from the schemas and examples beside this file and kept in the same way (`CABRANK_BLESS=1`).

#[path = "asyncapi_business.rs"]
mod business;

use std::collections::BTreeSet;

use cabrank_events::command::{EntityId, Outcome};
use cabrank_events::event::CommandOutcome;
use cabrank_events::wire::Ping;
use cabrank_events::{CommandId, Event, EventRecord};
use schemars::JsonSchema as _;
use serde_json::{Map, Value, json};

use super::{driver, example, kept_at, schema};

const CONTENT_TYPE: &str = "application/cloudevents+json; charset=UTF-8";
/// Version of the Kafka bindings.
const BINDING: &str = "0.5.0";

/// The message's name: the CloudEvent's type without what all begin with.
fn message_name(name: &str) -> String {
    format!("{name}.v1")
}

/// Which channels an event travels on. An outcome is its entity's, so it may come on both.
fn channels(name: &str) -> &'static [&'static str] {
    match name.split_once('.') {
        Some(("ride", _)) => &["rideEvents"],
        Some(("driver" | "rider" | "market", _)) => &["personEvents"],
        Some(("command", _)) => &["rideEvents", "personEvents"],
        _ => panic!("{name}: say which topic it belongs to"),
    }
}

/// Moves a schema's own definitions into `shared` and points to them there.
fn share(mut schema: Value, shared: &mut Map<String, Value>) -> Value {
    let object = schema.as_object_mut().expect("a schema is an object");
    object.remove("$schema");
    if let Some(Value::Object(definitions)) = object.remove("$defs") {
        for (name, definition) in definitions {
            let definition = point(definition);
            let before = shared.insert(name.clone(), definition.clone());
            assert!(
                before.is_none_or(|before| before == definition),
                "{name} means two things"
            );
        }
    }
    point(schema)
}

/// The same with its references to definitions as references into the document.
fn point(value: Value) -> Value {
    match value {
        Value::Object(object) => Value::Object(
            object
                .into_iter()
                .map(|(key, value)| match value {
                    Value::String(to) if key == "$ref" => {
                        let to = to.replace("#/$defs/", "#/components/schemas/");
                        (key, Value::String(to))
                    }
                    value => (key, point(value)),
                })
                .collect(),
        ),
        Value::Array(values) => Value::Array(values.into_iter().map(point).collect()),
        plain => plain,
    }
}

fn key_of(name: &str) -> Value {
    let (what, pattern) = match name.split_once('.') {
        Some(("ride", _)) => ("The ride", "^ride/"),
        Some(("driver", _)) => ("The driver", "^driver/"),
        Some(("rider", _)) => ("The rider", "^rider/"),
        Some(("market", _)) => ("The market", "^market$"),
        _ => ("Who was asked", "^((ride|driver|rider)/|market$)"),
    };
    json!({
        "type": "string",
        "pattern": pattern,
        "description": format!("{what}, the same as the event's subject: all events of one entity are in one partition, in order."),
    })
}

fn event_message(name: &str, shared: &mut Map<String, Value>) -> Value {
    let record = example(name);
    let whole = schema(&record);
    let summary = whole["properties"]["data"]["description"].clone();
    let body: Value = serde_json::from_slice(&record.to_json()).unwrap();
    json!({
        "name": record.cloud_type(),
        "title": record.cloud_type(),
        "summary": summary,
        "contentType": CONTENT_TYPE,
        "headers": { "$ref": "#/components/schemas/EventHeaders" },
        "payload": share(whole, shared),
        "bindings": { "kafka": { "key": key_of(name), "bindingVersion": BINDING } },
        "examples": [{ "name": name, "headers": { "content-type": CONTENT_TYPE }, "payload": body }],
    })
}

fn ping() -> Ping {
    Ping {
        lat: 37.7749,
        lon: -122.4194,
        time: Some(1_211_500_801_250),
        seq: 17,
        accuracy: Some(8.5),
    }
}

fn ping_message(shared: &mut Map<String, Value>) -> Value {
    let schema = schemars::generate::SchemaSettings::draft2020_12()
        .into_generator()
        .into_root_schema_for::<Ping>();
    let schema = share(serde_json::to_value(schema).unwrap(), shared);
    json!({
        "name": Ping::schema_name(),
        "title": "A position of a driver who has no socket",
        "summary": schema["description"].clone(),
        "contentType": "application/json",
        "payload": schema,
        "bindings": { "kafka": {
            "key": { "type": "string", "minLength": 1, "maxLength": 64, "description": "The driver's id." },
            "bindingVersion": BINDING,
        } },
        "examples": [{ "name": "ping", "payload": ping() }],
    })
}

fn channel(topic: &str, description: &str, messages: &BTreeSet<String>) -> Value {
    let messages: Map<String, Value> = messages
        .iter()
        .map(|name| {
            let to = format!("#/components/messages/{name}");
            (name.clone(), json!({ "$ref": to }))
        })
        .collect();
    json!({
        "address": format!("{{prefix}}{topic}"),
        "title": topic,
        "description": description,
        "servers": [{ "$ref": "#/servers/brokers" }],
        "parameters": { "prefix": { "$ref": "#/components/parameters/prefix" } },
        "messages": messages,
        "bindings": { "kafka": { "bindingVersion": BINDING } },
    })
}

fn document() -> Value {
    let mut schemas = Map::new();
    schemas.insert(
        "EventHeaders".into(),
        json!({
            "type": "object",
            "description": "CloudEvents over Kafka in structured mode: the header says that the value is a whole event.",
            "required": ["content-type"],
            "properties": { "content-type": { "type": "string", "const": CONTENT_TYPE } },
        }),
    );
    let mut messages = Map::new();
    let [mut of_rides, mut of_people] = [BTreeSet::new(), BTreeSet::new()];
    for name in Event::NAMES {
        let message = message_name(name);
        for channel in channels(name) {
            match *channel {
                "rideEvents" => of_rides.insert(message.clone()),
                _ => of_people.insert(message.clone()),
            };
        }
        messages.insert(message, event_message(name, &mut schemas));
    }
    messages.insert("ping".into(), ping_message(&mut schemas));
    let pings = BTreeSet::from(["ping".to_owned()]);
    let operation = |action: &str, channel: &str, summary: &str| {
        json!({
            "action": action,
            "channel": { "$ref": format!("#/channels/{channel}") },
            "summary": summary,
        })
    };
    let mut channels = json!({
        "rideEvents": channel("ride-events", "The life of rides: from ride.requested to exactly one of ride.completed, ride.cancelled, ride.unfulfilled, numbered without a gap.", &of_rides),
        "personEvents": channel("person-events", "The life of drivers and riders.", &of_people),
        "driverLocations": channel("driver-locations", "Accepted positions, of sockets and of partners, in the background: some may be missing. Kept for a short time.", &pings),
        "driverPings": channel("driver-pings", "Positions from partners. They enter the same checks as a phone's; of one driver the newest by (time, seq) counts, whichever way it came.", &pings),
    });
    let mut operations = json!({
        "tellRideEvents": operation("send", "rideEvents", "Cabrank writes, anybody reads."),
        "tellPersonEvents": operation("send", "personEvents", "Cabrank writes, anybody reads."),
        "tellDriverLocations": operation("send", "driverLocations", "Gateways write, anybody reads."),
        "hearDriverPings": operation("receive", "driverPings", "Partners write, gateways read."),
    });
    business::add(&mut schemas, &mut messages, &mut channels, &mut operations);
    json!({
        "asyncapi": "3.0.0",
        "info": {
            "title": "Cabrank's events",
            "version": "1.0.0",
            "description": "What a city over Apache Kafka tells anybody, and what partners may tell it. Read with isolation.level=read_committed: offsets have gaps where transactions ended. An event comes once in the log; de-duplicate by `id` where your own reading repeats. Events of one shard carry one number (`id` = shard-number) over both event topics. New optional fields and new types of events may come at any time: pass over what you do not know. A changed meaning is a new version in the type.",
            "license": { "name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0" },
        },
        "defaultContentType": CONTENT_TYPE,
        "servers": { "brokers": {
            "host": "{broker}",
            "protocol": "kafka",
            "description": "Any of the city's brokers.",
            "variables": { "broker": { "default": "127.0.0.1:9092", "description": "host:port" } },
        } },
        "channels": channels,
        "operations": operations,
        "components": {
            "schemas": schemas,
            "messages": messages,
            "parameters": { "prefix": {
                "default": "",
                "description": "What the city's topics begin with (`kafka.prefix`).",
            } },
        },
    })
}

/// The document with one of its parts as the schema of everything.
fn validator_of(document: &Value, part: &str) -> jsonschema::Validator {
    // AsyncAPI's own schema objects are a superset of draft 7.
    let schema = json!({
        "$schema": "http://json-schema.org/draft-07/schema#",
        "allOf": [{ "$ref": format!("#{part}") }],
        "components": document["components"],
    });
    jsonschema::validator_for(&schema).unwrap_or_else(|why| panic!("{part}: {why}"))
}

/// Every `$ref` below, examples' bodies left out.
fn references<'a>(value: &'a Value, into: &mut Vec<&'a str>) {
    match value {
        Value::Object(object) => {
            for (key, value) in object {
                match value {
                    Value::String(to) if key == "$ref" => into.push(to),
                    _ if key == "examples" => {}
                    value => references(value, into),
                }
            }
        }
        Value::Array(values) => values.iter().for_each(|value| references(value, into)),
        _ => {}
    }
}

#[test]
fn the_asyncapi_document_is_what_the_code_says() {
    let now = document();
    assert_eq!(
        kept_at("../docs/asyncapi.json", &now),
        now,
        "docs/asyncapi.json: the contract has changed"
    );
}

#[test]
fn every_reference_of_the_asyncapi_document_leads_somewhere() {
    let document = document();
    let mut found = Vec::new();
    references(&document, &mut found);
    assert!(found.len() > Event::NAMES.len(), "{}", found.len());
    for reference in found {
        let pointer = reference.strip_prefix('#').expect("references are local");
        assert!(document.pointer(pointer).is_some(), "{reference}");
    }
}

#[test]
fn every_event_is_a_message_of_its_topic_and_its_example_fits() {
    let document = document();
    for name in Event::NAMES {
        let message_name = message_name(name);
        let record = example(name);
        let message = &document["components"]["messages"][&message_name];
        // Where the node puts it is where the document says it is.
        let is_ride = matches!(record.event.entity(), EntityId::Ride(_));
        let channel = if is_ride {
            "rideEvents"
        } else {
            "personEvents"
        };
        assert!(
            document["channels"][channel]["messages"][&message_name].is_object(),
            "{name} is no message of {channel}"
        );
        let of = |part: &str| {
            validator_of(
                &document,
                &format!("/components/messages/{message_name}/{part}"),
            )
        };
        let example = &message["examples"][0];
        let (payload, headers) = (of("payload"), of("headers"));
        assert!(payload.is_valid(&example["payload"]), "{name}");
        assert!(headers.is_valid(&example["headers"]), "{name}");
        let key = of("bindings/kafka/key");
        assert!(key.is_valid(&example["payload"]["subject"]), "{name}");
        // And what is not such a message is refused.
        let mut other = example["payload"].clone();
        other["type"] = json!("cabrank.ride.teleported.v1");
        assert!(!payload.is_valid(&other), "{name}");
        assert!(!headers.is_valid(&json!({})), "{name}");
        assert!(!key.is_valid(&json!("nobody/1")), "{name}");
    }
}

#[test]
fn an_outcome_may_come_on_both_topics() {
    let outcome = |of_ride: bool| {
        let example = example("command.outcome");
        let Event::CommandOutcome(outcome) = example.event else {
            panic!("another event under this name");
        };
        let event = CommandOutcome {
            command: CommandId::new("driver/d7/m5").unwrap(),
            outcome: Outcome::Done,
            asked_ride: of_ride.then(super::ride),
            asked_driver: (!of_ride).then(driver),
            asked_rider: None,
            ..outcome
        };
        EventRecord {
            event: event.into(),
            ..super::example("command.outcome")
        }
    };
    let document = document();
    for (channel, of_ride) in [("rideEvents", true), ("personEvents", false)] {
        assert_eq!(outcome(of_ride).event.is_ride_event(), of_ride);
        assert!(document["channels"][channel]["messages"]["command.outcome.v1"].is_object());
        let body: Value = serde_json::from_slice(&outcome(of_ride).to_json()).unwrap();
        let payload = validator_of(&document, "/components/messages/command.outcome.v1/payload");
        assert!(payload.is_valid(&body), "{body}");
    }
}

#[test]
fn a_partners_ping_is_what_the_gateway_reads() {
    let document = document();
    let payload = validator_of(&document, "/components/messages/ping/payload");
    let example = &document["components"]["messages"]["ping"]["examples"][0]["payload"];
    assert!(payload.is_valid(example));
    assert_eq!(
        serde_json::from_value::<Ping>(example.clone()).unwrap(),
        ping()
    );
    let least = json!({ "lat": 37.0, "lon": -122.0 });
    assert!(payload.is_valid(&least) && serde_json::from_value::<Ping>(least).is_ok());
    assert!(!payload.is_valid(&json!({ "lat": 37.0 })));
}
