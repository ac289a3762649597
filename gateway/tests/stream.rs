//! The event stream: resuming, and what a cursor that cannot be gone on from is told.

mod support;

use std::collections::BTreeSet;
use std::time::Duration;

use cabrank_gateway::token::{Role, mint};
use cabrank_gateway::{cursor_from_text, cursor_to_text};
use reqwest::{Method, Response};
use serde_json::{Value, json};
use support::{City, OPS, PATIENCE, answered, refusal, until};

/// A stream that is being read.
struct Stream {
    answer: Response,
    text: String,
}

impl Stream {
    async fn open(city: &City, cursor: &str) -> Stream {
        let answer = city.get(&format!("/v1/events?cursor={cursor}"), OPS).await;
        assert_eq!(answer.status(), 200);
        Stream {
            answer,
            text: String::new(),
        }
    }

    /// The next event: its id and what it says. `None` at the end of the stream.
    async fn next(&mut self) -> Option<(String, Value)> {
        let reading = async {
            loop {
                while let Some((event, rest)) = self.text.split_once("\n\n") {
                    let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name));
                    let found = field("id:").zip(field("data:")).map(|(id, data)| {
                        (id.trim().to_owned(), serde_json::from_str(data).unwrap())
                    });
                    self.text = rest.to_owned();
                    if found.is_some() {
                        return found;
                    }
                }
                let chunk = self.answer.chunk().await.unwrap()?;
                self.text += std::str::from_utf8(&chunk).unwrap();
            }
        };
        tokio::time::timeout(PATIENCE, reading)
            .await
            .expect("no event came")
    }

    /// Reads until an event says `what`; its id.
    async fn find(&mut self, what: &str) -> String {
        loop {
            let (id, event) = self.next().await.expect("the stream ended");
            if event.to_string().contains(what) {
                return id;
            }
        }
    }
}

/// A rider asks for a ride and calls it off: a dozen events.
async fn trip(city: &City, rider: &str, key: &str) {
    city.ride(rider, key).await;
    let rider = Some((Role::Rider, rider));
    answered(
        city.post("/v1/cancel", rider, &json!({"key":key})).await,
        200,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cursor_whose_events_are_trimmed_is_gone_and_start_goes_on_with_what_is_kept() {
    let city = City::built(|knobs| {
        knobs.log.shards = 1;
        knobs.log.retention.records = 64;
        knobs.gateway.limits.requests_per_minute = 0;
    })
    .await;
    trip(&city, "first", "k1").await;
    let oldest = Stream::open(&city, "start").await.find("first").await;
    let path = format!("/v1/events?cursor={oldest}");
    let mut trips = 0;
    let gone = until("the first events to be trimmed", async || {
        trips += 1;
        trip(&city, &format!("rider-{trips}"), "k1").await;
        let answer = city.get(&path, OPS).await;
        (answer.status() != 200).then_some(answer)
    })
    .await;
    refusal(gone)
        .await
        .is(410, "cursor_gone", "start again with cursor=start");
    // The header wins over the query, also when it is the one that is too old.
    let both = city.call(Method::GET, "/v1/events?cursor=start", OPS);
    let both = both.header("Last-Event-ID", &oldest).send().await.unwrap();
    refusal(both)
        .await
        .is(410, "cursor_gone", "start again with cursor=start");

    let mut kept = Stream::open(&city, "start").await;
    let (id, event) = kept.next().await.unwrap();
    assert!(!event.to_string().contains("\"first\""), "{event}");
    let last = format!("rider-{trips}\"");
    kept.find(&last).await;
    // From an event that is still kept the stream goes on as before.
    let (after, event) = Stream::open(&city, &id).await.next().await.unwrap();
    assert_ne!(after, id, "{event}");
    city.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cursor_that_never_was_is_refused_rather_than_waited_for() {
    let city = City::start().await;
    trip(&city, "ann", "k1").await;
    let here = Stream::open(&city, "start").await.find("ann").await;
    for topic in ["ride", "person"] {
        let mut beyond = cursor_from_text(&here).unwrap();
        let offsets = match topic {
            "ride" => &mut beyond.ride_events,
            _ => &mut beyond.person_events,
        };
        *offsets.last_mut().unwrap() = 1_000_000;
        let path = format!("/v1/events?cursor={}", cursor_to_text(&beyond));
        let refused = refusal(city.get(&path, OPS).await).await;
        refused.is(
            410,
            "cursor_gone",
            "not from this log: start again with cursor=start",
        );
    }
    // Of a log with more partitions than this one.
    let mut other = cursor_from_text(&here).unwrap();
    other.ride_events.push(0);
    let path = format!("/v1/events?cursor={}", cursor_to_text(&other));
    refusal(city.get(&path, OPS).await).await.is(
        410,
        "cursor_gone",
        "start again with cursor=start",
    );
    let remedy = "send the id of an event received here, start, or nothing for the end";
    for garbage in ["nonsense", "AQ", "", "START", "0"] {
        let refused = refusal(city.get(&format!("/v1/events?cursor={garbage}"), OPS).await).await;
        refused.is(400, "bad_request", remedy);
        assert!(
            refused
                .detail
                .starts_with(&format!("cursor is {garbage:?}")),
            "{refused:?}"
        );
    }
    // An id that cannot be read must not become the end of the log: events would be missed without a word.
    for garbage in [&b"nonsense"[..], b"\xff\xfe"] {
        let call = city.call(Method::GET, "/v1/events", OPS);
        let call = call.header("Last-Event-ID", garbage).send().await.unwrap();
        let refused = refusal(call).await;
        refused.is(400, "bad_request", remedy);
        assert!(
            refused.detail.starts_with("Last-Event-ID is"),
            "{refused:?}"
        );
    }
    let unknown = refusal(city.get("/v1/events?from=start", OPS).await).await;
    unknown.is(400, "bad_request", "this call knows cursor");
    city.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_with_its_token_and_goes_on_with_another() {
    let city = City::start().await;
    let short = mint(
        &city.config.keys.secret,
        Role::Ops,
        "o",
        Duration::from_secs(1),
    )
    .unwrap();
    let call = city
        .call(Method::GET, "/v1/events", None)
        .bearer_auth(short);
    let mut stream = Stream {
        answer: call.send().await.unwrap(),
        text: String::new(),
    };
    trip(&city, "ann", "k1").await;
    let mut last = None;
    while let Some((id, _)) = stream.next().await {
        last = Some(id);
    }
    trip(&city, "bob", "k1").await;
    let last = last.expect("events came before the end");
    Stream::open(&city, &last).await.find("bob").await;
    city.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_stream_resumes_anywhere_and_repeats_nothing() {
    let city = City::start().await;
    for rider in 0..20 {
        city.ride(&format!("rider-{rider}"), "k1").await;
    }
    // Opened, looked at in vain, busy, confirmed, answered: five events a ride.
    let mut stream = Stream::open(&city, "start").await;
    let mut all = Vec::new();
    while all.len() < 100 {
        all.push(stream.next().await.unwrap());
    }
    let ids: BTreeSet<&str> = all
        .iter()
        .map(|(_, event)| event["id"].as_str().unwrap())
        .collect();
    assert_eq!(ids.len(), all.len(), "no event twice");
    for at in [0, 1, 17, 63, 98] {
        let mut rest = Stream::open(&city, &all[at].0).await;
        for (n, expected) in all.iter().enumerate().skip(at + 1) {
            assert_eq!(
                rest.next().await.as_ref(),
                Some(expected),
                "event {n} after event {at}"
            );
        }
    }
    // A client that reconnects repeats its first URL; where it stands is in the header.
    let tail = city.call(Method::GET, "/v1/events?cursor=start", OPS);
    let answer = tail
        .header("Last-Event-ID", &all[99].0)
        .send()
        .await
        .unwrap();
    let text = String::new();
    let mut tail = Stream { answer, text };
    city.ride("late-rider", "k1").await;
    let (_, first) = tail.next().await.unwrap();
    assert!(first.to_string().contains("late-rider"), "{first}");
    city.end().await;
}
