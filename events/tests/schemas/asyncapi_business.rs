//! The topics of the services beside the engine, for the same document: built from the schemas and examples that
//! `tests/business.rs` holds to the code.

use std::collections::BTreeSet;
use std::path::Path;

use cabrank_events::business::Business;
use serde_json::{Map, Value, json};

use super::{BINDING, CONTENT_TYPE, channel, message_name, share};

/// Topic, the channel's name, what it is.
const CHANNELS: [(&str, &str, &str); 3] = [
    (
        "order-events",
        "orderEvents",
        "What the order service asks of payment, and the receipts it writes.",
    ),
    (
        "payment-events",
        "paymentEvents",
        "What became of each ride's money, and the state of the way to the provider.",
    ),
    (
        "demand-forecasts",
        "demandForecasts",
        "Expected requests of each cell with demand, newest last. Kept for a short time.",
    ),
];

fn of_topic(topic: &str, name: &str) -> bool {
    match topic {
        "order-events" => name.starts_with("order."),
        "payment-events" => name.starts_with("payment."),
        _ => name.starts_with("demand."),
    }
}

fn message(name: &str, shared: &mut Map<String, Value>) -> Value {
    let file = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join(format!("schemas/business/{name}.v1.example.json"));
    let text = std::fs::read_to_string(&file).unwrap_or_else(|why| panic!("{name}: {why}"));
    let example: Value = serde_json::from_str(&text).unwrap();
    let data = Business::data_schema(name).expect("a name of the contract");
    let data = share(serde_json::to_value(data).unwrap(), shared);
    let subject = match name {
        "payment.provider_state" => "^provider$",
        "demand.forecast" => "^cell/",
        _ => "^ride/",
    };
    let key = json!({
        "type": "string",
        "pattern": subject,
        "description": "The same as the message's subject: all of one subject are in one partition, in order.",
    });
    let text = |what: &str| json!({ "type": "string", "description": what });
    json!({
        "name": example["type"],
        "title": example["type"],
        "summary": data["description"].clone(),
        "contentType": CONTENT_TYPE,
        "headers": { "$ref": "#/components/schemas/EventHeaders" },
        "payload": {
            "type": "object",
            "required": ["specversion", "id", "source", "type", "subject", "time", "datacontenttype", "data"],
            "properties": {
                "specversion": { "const": "1.0" },
                "id": text("Unique among all messages: the service and its number there, `payment-17`."),
                "source": text("/cabrank/services/ and the service."),
                "type": { "const": example["type"] },
                "subject": key,
                "time": { "type": "string", "format": "date-time", "description": "When it was said, UTC." },
                "datacontenttype": { "const": "application/json" },
                "data": data,
            },
        },
        "bindings": { "kafka": { "key": key, "bindingVersion": BINDING } },
        "examples": [{ "name": name, "headers": { "content-type": CONTENT_TYPE }, "payload": example }],
    })
}

fn dead_letter() -> Value {
    let text = |what: &str| json!({ "type": "string", "description": what });
    json!({
        "name": "DeadLetter",
        "title": "An event that a service could not apply",
        "summary": "The event as it came, who set it aside and why.",
        "contentType": "application/json",
        "payload": {
            "type": "object",
            "required": ["service", "source", "id", "reason", "event"],
            "properties": {
                "service": text("Who set it aside."),
                "source": text("Where it came from."),
                "id": text("The event's id."),
                "reason": text("Why, for a person."),
                "event": text("As it came."),
            },
        },
        "bindings": { "kafka": {
            "key": text("The event's id."),
            "bindingVersion": BINDING,
        } },
        "examples": [{ "name": "a newer version", "payload": {
            "service": "order", "source": "rides", "id": "3-17",
            "reason": "event has version 3, this program reads up to 2: upgrade it", "event": "{}",
        } }],
    })
}

/// Adds the services' messages, channels and operations.
pub fn add(
    schemas: &mut Map<String, Value>,
    messages: &mut Map<String, Value>,
    channels: &mut Value,
    operations: &mut Value,
) {
    for (topic, name, description) in CHANNELS {
        let said = Business::NAMES.iter().filter(|said| of_topic(topic, said));
        let said: BTreeSet<String> = said
            .map(|said| {
                messages.insert(message_name(said), message(said, schemas));
                message_name(said)
            })
            .collect();
        channels[name] = channel(topic, description, &said);
    }
    messages.insert("deadLetter".into(), dead_letter());
    channels["deadLetters"] = channel(
        "dead-letters",
        "Events that a service could not apply. The service keeps them, too: `cabrank service replay-dead`.",
        &BTreeSet::from(["deadLetter".to_owned()]),
    );
    for (operation, channel, who) in [
        ("tellOrderEvents", "orderEvents", "The order service"),
        ("tellPaymentEvents", "paymentEvents", "The payment service"),
        (
            "tellDemandForecasts",
            "demandForecasts",
            "The forecast service",
        ),
        ("tellDeadLetters", "deadLetters", "Every service"),
    ] {
        operations[operation] = json!({
            "action": "send",
            "channel": { "$ref": format!("#/channels/{channel}") },
            "summary": format!("{who} writes, anybody reads."),
        });
    }
}

#[test]
fn every_message_of_the_services_is_one_of_its_topic_and_its_example_fits() {
    let document = super::document();
    for name in Business::NAMES {
        let message_name = message_name(name);
        let (_, channel, _) = CHANNELS
            .into_iter()
            .find(|(topic, ..)| of_topic(topic, name))
            .unwrap();
        let message = &document["components"]["messages"][&message_name];
        assert!(
            document["channels"][channel]["messages"][&message_name].is_object(),
            "{name} is no message of {channel}"
        );
        let of = |part: &str| {
            let at = format!("/components/messages/{message_name}/{part}");
            super::validator_of(&document, &at)
        };
        let example = &message["examples"][0]["payload"];
        assert!(of("payload").is_valid(example), "{name}");
        assert!(
            of("bindings/kafka/key").is_valid(&example["subject"]),
            "{name}"
        );
        let mut other = example.clone();
        other["data"] = json!({});
        assert!(!of("payload").is_valid(&other), "{name}");
    }
}
