//! Is `docs/protocol.md` true? Its examples are read from the file, go through both encodings, and are sent.
//!
//! Holds: every message a phone or a gateway can send has an example, every word of refusal and every close code a line. Which messages there are is asked of the types
//! themselves: a tag they do not know is refused with the list of those they know.

mod support;

use std::collections::BTreeSet;
use std::fmt::Debug;

use bytes::Bytes;
use cabrank_events::command::{CancelledBy, RefusedBecause};
use cabrank_events::proto;
use cabrank_events::wire::{
    FromDriver, FromRider, PingRefusal, RideStage, ToDriver, ToRider, WireResult,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use support::City;

const DOCUMENT: &str = include_str!("../../docs/protocol.md");

/// The lines from the heading `from` to the next heading of any level.
fn section(from: &str) -> impl Iterator<Item = &'static str> {
    let mut lines = DOCUMENT.lines();
    assert!(
        lines.any(|line| line.starts_with(from)),
        "docs/protocol.md has no heading {from}"
    );
    lines.take_while(|line| !line.starts_with('#'))
}

/// All examples of messages in a section, one a line.
fn examples(heading: &str) -> Vec<Value> {
    section(heading)
        .filter_map(|line| {
            let from = line.find(r#"{"type":"#)?;
            let to = line.rfind('}')?;
            let example = &line[from..=to];
            Some(serde_json::from_str(example).unwrap_or_else(|error| panic!("{example}: {error}")))
        })
        .collect()
}

/// The tags a type of messages knows.
fn tags<M: DeserializeOwned + Debug>() -> BTreeSet<String> {
    let error = serde_json::from_value::<M>(json!({"type": "no such message"}))
        .unwrap_err()
        .to_string();
    let (_, known) = error.split_once("expected").unwrap();
    known
        .split('`')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect()
}

/// Each example survives both encodings unchanged, and each kind of message is among them.
fn holds_for<M>(
    examples: &[Value],
    encode: fn(&M) -> Bytes,
    decode: impl Fn(&[u8]) -> Result<M, String>,
) where
    M: DeserializeOwned + Serialize + Debug + PartialEq,
{
    let mut seen = BTreeSet::new();
    for example in examples {
        let message: M = serde_json::from_value(example.clone())
            .unwrap_or_else(|error| panic!("{example}: {error}"));
        assert_eq!(
            &serde_json::to_value(&message).unwrap(),
            example,
            "written as JSON again"
        );
        assert_eq!(
            decode(&encode(&message)).as_ref(),
            Ok(&message),
            "by way of Protobuf"
        );
        seen.insert(example["type"].as_str().unwrap().to_owned());
    }
    assert_eq!(seen, tags::<M>(), "kinds of messages with an example");
}

#[test]
fn every_message_of_the_drivers_socket_has_an_example_that_is_true() {
    holds_for(
        &examples("### From the phone"),
        proto::encode_from_driver,
        |bytes| proto::decode_from_driver(bytes).map_err(|error| error.to_string()),
    );
    holds_for(
        &examples("### To the phone"),
        proto::encode_to_driver,
        |bytes| proto::decode_to_driver(bytes).map_err(|error| error.to_string()),
    );
}

#[test]
fn every_message_of_the_riders_socket_has_an_example_that_is_true() {
    let from_rider = |example: &Value| serde_json::from_value::<FromRider>(example.clone()).is_ok();
    let (from, to): (Vec<_>, Vec<_>) = examples("## The rider's socket")
        .into_iter()
        .partition(from_rider);
    holds_for(&from, proto::encode_from_rider, |bytes| {
        proto::decode_from_rider(bytes).map_err(|error| error.to_string())
    });
    holds_for(&to, proto::encode_to_rider, |bytes| {
        proto::decode_to_rider(bytes).map_err(|error| error.to_string())
    });
}

/// The values of an enumeration without fields, asked of it in the same way.
fn values<V: DeserializeOwned + Debug>() -> BTreeSet<String> {
    let error = serde_json::from_value::<V>(json!("no such value")).unwrap_err();
    let error = error.to_string();
    let (_, known) = error.split_once("expected").unwrap();
    let known = known.split('`').skip(1).step_by(2).map(str::to_owned);
    known.collect()
}

#[test]
fn every_word_a_client_may_be_told_stands_on_the_page() {
    let reasons = PingRefusal::ALL.iter().map(|why| why.name().to_owned());
    let words = values::<RefusedBecause>()
        .into_iter()
        .chain(values::<RideStage>())
        .chain(values::<WireResult>())
        .chain(values::<CancelledBy>())
        .chain(reasons);
    let is_said = |word: &String| {
        DOCUMENT.contains(&format!("`{word}`")) || DOCUMENT.contains(&format!("\"{word}\""))
    };
    let missing: Vec<String> = words.filter(|word| !is_said(word)).collect();
    assert!(
        missing.is_empty(),
        "docs/protocol.md says nothing of {missing:?}"
    );
}

#[test]
fn every_close_code_stands_on_the_page_with_what_to_do() {
    // There is no list to ask but the one in the source: lines as `Self::Silent => (4408, "silent"),`.
    let source = include_str!("../src/people.rs");
    let codes: BTreeSet<&str> = source
        .lines()
        .filter_map(|line| line.split_once("=> (")?.1.split(',').next())
        .filter(|code| code.len() == 4 && code.bytes().all(|b| b.is_ascii_digit()))
        .collect();
    assert!(
        codes.len() >= 11 && codes.contains("4408"),
        "the source has another form now: {codes:?}"
    );
    let said: BTreeSet<&str> = section("### Close codes")
        .filter_map(|line| line.strip_prefix("| ")?.split(' ').next())
        .filter(|code| code.bytes().all(|b| b.is_ascii_digit()))
        .collect();
    let missing: Vec<_> = codes.difference(&said).collect();
    assert!(
        missing.is_empty(),
        "docs/protocol.md has no line for {missing:?}"
    );
}

#[test]
fn the_list_of_known_messages_is_read_right() {
    assert_eq!(tags::<FromRider>(), BTreeSet::from(["cancel".to_owned()]));
    assert!(tags::<FromDriver>().contains("pings") && tags::<ToRider>().contains("cars_near"));
    assert!(tags::<ToDriver>().len() >= 9);
}

/// The server is alone in this process, so the process's metrics are its own.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_understands_every_example_and_counts_every_ping() {
    let city = City::start().await;
    let (mut driver, mut rider) = (city.driver("d7").await, city.rider("r1").await);
    let (mut pings, mut messages) = (0, 0);
    for example in examples("### From the phone") {
        match example["type"].as_str().unwrap() {
            "ping" => pings += 1,
            "pings" => pings += example["pings"].as_array().unwrap().len(),
            _ => messages += 1,
        }
        driver.say(example).await;
    }
    for _ in 0..messages {
        let answer = driver.hear_any(&["outcome", "error"]).await;
        assert_eq!(answer["type"], "outcome", "{answer}");
    }
    let cancel = examples("## The rider's socket").swap_remove(0);
    assert_eq!(cancel["type"], "cancel");
    rider.say(cancel).await;
    let answer = rider.hear_any(&["outcome", "error"]).await;
    assert_eq!(
        (&answer["result"], &answer["why"]),
        (&json!("refused"), &json!("unknown_ride"))
    );
    let metrics = city.metrics().await;
    let count = |name: &str| -> usize {
        let line = metrics.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_else(|| panic!("no {name} in\n{metrics}"))
            .trim()
            .parse()
            .unwrap()
    };
    let of = |result: &str, reason: &str| {
        count(&format!(
            "cabrank_pings_total{{result=\"{result}\",reason=\"{reason}\"}}"
        ))
    };
    assert_eq!(count("cabrank_pings_sent_total"), pings);
    assert_eq!(of("refused", "too_old"), pings, "they are from 2008");
    let refused: usize = PingRefusal::ALL
        .iter()
        .map(|why| of("refused", why.name()))
        .sum();
    assert_eq!(of("accepted", "") + of("replaced", "") + refused, pings);
    city.end().await;
}

/// Message by message, as the page lists them: on the other role's socket it is not understood, and about somebody else's offer or ride it
/// changes nothing.
#[tokio::test(flavor = "multi_thread")]
async fn each_message_counts_only_from_whose_it_is() {
    let city = City::start().await;
    let mut driver = city.driver("d1").await;
    let session = driver.online(&["economy"]).await;
    driver.ping(37.7751, -122.4190, 1).await;
    let ride = city.ride("ann", "k1").await;
    let offer = driver.hear("offer").await;
    // The page's examples, about this very ride and session.
    let about = |mut example: Value| {
        for (field, value) in [
            ("ride", json!(ride)),
            ("attempt", offer["attempt"].clone()),
            ("session", session.clone()),
        ] {
            if example.get(field).is_some() {
                example[field] = value;
            }
        }
        example
    };
    let from_driver: Vec<Value> = examples("### From the phone")
        .into_iter()
        .map(about)
        .collect();
    let from_rider = about(examples("## The rider's socket").swap_remove(0));

    let mut bob = city.rider("bob").await;
    for message in &from_driver {
        bob.say(message.clone()).await;
        let answer = bob.hear_any(&["error", "outcome"]).await;
        // A rider's message is named like it, and has only fields that this one has, too.
        let is_known = message["type"] == from_rider["type"];
        assert_eq!(answer["type"] == "error", !is_known, "{message}: {answer}");
        assert!(
            !is_known || answer["why"] == "not_yours",
            "{message}: {answer}"
        );
    }
    let mut stranger = city.driver("d2").await;
    stranger.say(from_rider.clone()).await;
    stranger.hear("error").await;
    stranger.online(&["economy"]).await;
    for message in from_driver
        .iter()
        .filter(|message| message.get("attempt").is_some())
    {
        stranger.say(message.clone()).await;
        let outcome = stranger.hear("outcome").await;
        assert_eq!(
            (&outcome["result"], &outcome["why"]),
            (&json!("refused"), &json!("not_yours")),
            "{message}"
        );
    }
    let offline = from_driver
        .iter()
        .find(|message| message["type"] == "offline");
    stranger.say(offline.unwrap().clone()).await;
    assert_eq!(stranger.hear("outcome").await["result"], "refused");
    // All of it changed nothing.
    driver
        .reports(
            &["received", "accept", "arrived", "started", "completed"],
            &offer,
        )
        .await;
    city.end().await;
}
