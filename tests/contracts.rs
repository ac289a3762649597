//! Does today's contract break whoever was written against the last release's?
//!
//! `docs/released/` holds the files of the last release (before the first one: of the day this test was made); whoever
//! releases copies `docs/asyncapi.json`, `docs/openapi.json` and `docs/openapi-services.json` there. What is said to others
//! may gain fields and lose none; what is heard from others may lose demands and gain none. Each break is named: topic or
//! call, message, field.

use std::path::Path;

use serde_json::{Value, json};

/// Depth at which schemas that refer to themselves are no longer followed.
const DEPTH_MAX: usize = 24;

fn read(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("docs")
        .join(name);
    let text = std::fs::read(&path).unwrap_or_else(|why| panic!("{}: {why}", path.display()));
    serde_json::from_slice(&text).unwrap()
}

/// Which way a schema's values go.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    /// We say it: what was there before must be there now.
    Said,
    /// We hear it: what was enough before must be enough now.
    Heard,
}

/// One contract in two editions.
struct Editions<'a> {
    before: &'a Value,
    now: &'a Value,
    broken: Vec<String>,
}

fn resolve<'a>(document: &'a Value, schema: &'a Value) -> &'a Value {
    let to = schema["$ref"].as_str().and_then(|to| to.strip_prefix('#'));
    to.and_then(|to| document.pointer(to)).unwrap_or(schema)
}

/// The kinds of value a schema allows; none: any.
fn kinds(schema: &Value) -> Vec<&str> {
    match &schema["type"] {
        Value::String(kind) => vec![kind],
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    }
}

fn required(schema: &Value) -> Vec<&str> {
    let names = schema["required"].as_array();
    names.map_or(Vec::new(), |names| {
        names.iter().filter_map(Value::as_str).collect()
    })
}

impl Editions<'_> {
    fn schema(&mut self, way: Way, before: &Value, now: &Value, at: &str, depth: usize) {
        let (before, now) = (resolve(self.before, before), resolve(self.now, now));
        if depth > DEPTH_MAX {
            return;
        }
        let (were, are) = (kinds(before), kinds(now));
        let (few, many) = match way {
            Way::Said => (&are, &were),
            Way::Heard => (&were, &are),
        };
        let fits =
            |kind: &&str| many.contains(kind) || *kind == "integer" && many.contains(&"number");
        if !many.is_empty() && (few.is_empty() || !few.iter().all(fits)) {
            self.broken
                .push(format!("{at} was {were:?} and is {are:?}"));
        }
        if before["const"] != now["const"] && (way == Way::Said || !now["const"].is_null()) {
            let (was, is) = (&before["const"], &now["const"]);
            self.broken.push(format!("{at} was {was} and is {is}"));
        }
        if let (Way::Heard, Some(was), Some(is)) =
            (way, before["enum"].as_array(), now["enum"].as_array())
        {
            for value in was.iter().filter(|value| !is.contains(value)) {
                self.broken.push(format!("{at} may no longer be {value}"));
            }
        }
        for name in required(before) {
            if way == Way::Said && !required(now).contains(&name) {
                let is_there = now["properties"].get(name).is_some();
                let how = if is_there {
                    "may be missing"
                } else {
                    "is gone"
                };
                self.broken.push(format!("{at}.{name} {how}"));
            }
        }
        for name in required(now) {
            if way == Way::Heard && !required(before).contains(&name) {
                self.broken.push(format!("{at}.{name} must be there now"));
            }
        }
        if let Some(fields) = before["properties"].as_object() {
            for (name, was) in fields {
                match now["properties"].get(name) {
                    Some(is) => self.schema(way, was, is, &format!("{at}.{name}"), depth + 1),
                    // A field that had to be there was named above.
                    None if way == Way::Said && !required(before).contains(&name.as_str()) => {
                        self.broken.push(format!("{at}.{name} is gone"));
                    }
                    None => {}
                }
            }
        }
        if before["items"].is_object() {
            let at = format!("{at}[]");
            self.schema(way, &before["items"], &now["items"], &at, depth + 1);
        }
        for key in ["anyOf", "oneOf", "allOf"] {
            for (n, was) in before[key].as_array().into_iter().flatten().enumerate() {
                match now[key].get(n) {
                    Some(is) => self.schema(way, was, is, at, depth + 1),
                    None => self.broken.push(format!("{at} has lost a choice")),
                }
            }
        }
    }

    fn topics(&mut self) {
        let (before, now) = (self.before, self.now);
        for operation in before["operations"].as_object().into_iter().flatten() {
            let (name, was) = operation;
            let way = match was["action"].as_str() {
                Some("receive") => Way::Heard,
                _ => Way::Said,
            };
            if now["operations"][name]["action"] != was["action"] {
                self.broken.push(format!("{name} is gone"));
                continue;
            }
            let (was, is) = (
                resolve(before, &was["channel"]),
                resolve(now, &now["operations"][name]["channel"]),
            );
            let topic = was["title"].as_str().unwrap_or(name);
            if was["address"] != is["address"] {
                self.broken
                    .push(format!("topic {topic} is now {}", is["address"]));
            }
            for (message, was) in was["messages"].as_object().into_iter().flatten() {
                let at = format!("topic {topic}, {message}: value");
                let Some(is) = is["messages"].get(message) else {
                    self.broken
                        .push(format!("topic {topic}: {message} is gone"));
                    continue;
                };
                let (was, is) = (resolve(before, was), resolve(now, is));
                self.schema(way, &was["payload"], &is["payload"], &at, 0);
                let at = format!("topic {topic}, {message}: key");
                let key = "/bindings/kafka/key";
                let nothing = json!({});
                let (was, is) = (was.pointer(key), is.pointer(key));
                let (was, is) = (was.unwrap_or(&nothing), is.unwrap_or(&nothing));
                self.schema(way, was, is, &at, 0);
                if was["pattern"] != is["pattern"] {
                    self.broken.push(format!("{at} is of another form"));
                }
            }
        }
    }

    fn calls(&mut self) {
        let (before, now) = (self.before, self.now);
        for (path, methods) in before["paths"].as_object().into_iter().flatten() {
            for (method, was) in methods.as_object().into_iter().flatten() {
                let call = format!("{} {path}", method.to_uppercase());
                let is = &now["paths"][path][method];
                if is.is_null() {
                    self.broken.push(format!("{call} is gone"));
                    continue;
                }
                self.call(&call, was, is);
            }
        }
    }

    fn call(&mut self, call: &str, was: &Value, is: &Value) {
        let params = |of: &Value| of["parameters"].as_array().cloned().unwrap_or_default();
        for param in params(is) {
            let same =
                |other: &&Value| other["name"] == param["name"] && other["in"] == param["in"];
            let were = params(was);
            let was = were.iter().find(same);
            let was_needed = was.is_some_and(|was| was["required"] == true);
            if param["required"] == true && !was_needed {
                self.broken
                    .push(format!("{call}: {} must be there now", param["name"]));
            }
            if let Some(was) = was {
                let at = format!("{call}: {}", param["name"]);
                self.schema(Way::Heard, &was["schema"], &param["schema"], &at, 0);
            }
        }
        if is["requestBody"]["required"] == true && was["requestBody"]["required"] != true {
            self.broken
                .push(format!("{call}: a body must be there now"));
        }
        let media = |of: &Value| of["content"].as_object().cloned().unwrap_or_default();
        for (kind, was) in media(&was["requestBody"]) {
            let at = format!("{call}: body");
            match media(&is["requestBody"]).get(&kind) {
                Some(is) => self.schema(Way::Heard, &was["schema"], &is["schema"], &at, 0),
                None => self
                    .broken
                    .push(format!("{at} is no longer taken as {kind}")),
            }
        }
        for (status, was) in was["responses"].as_object().into_iter().flatten() {
            let is = &is["responses"][status];
            if is.is_null() {
                self.broken
                    .push(format!("{call}: never answers {status} now"));
                continue;
            }
            let (before, now) = (self.before, self.now);
            let (was, is) = (resolve(before, was), resolve(now, is));
            for (kind, was) in media(was) {
                let at = format!("{call}: answer {status}");
                match media(is).get(&kind) {
                    Some(is) => self.schema(Way::Said, &was["schema"], &is["schema"], &at, 0),
                    None => self.broken.push(format!("{at} is no longer {kind}")),
                }
            }
        }
    }
}

fn broken_topics(before: &Value, now: &Value) -> Vec<String> {
    let mut editions = Editions {
        before,
        now,
        broken: Vec::new(),
    };
    editions.topics();
    editions.broken
}

fn broken_calls(before: &Value, now: &Value) -> Vec<String> {
    let mut editions = Editions {
        before,
        now,
        broken: Vec::new(),
    };
    editions.calls();
    editions.broken
}

#[test]
fn the_topics_still_say_and_hear_what_the_last_release_did() {
    let broken = broken_topics(&read("released/asyncapi.json"), &read("asyncapi.json"));
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn the_calls_still_take_and_answer_what_the_last_release_did() {
    for name in ["openapi.json", "openapi-services.json"] {
        let broken = broken_calls(&read(&format!("released/{name}")), &read(name));
        assert!(broken.is_empty(), "{name}: {broken:#?}");
    }
}

#[test]
fn a_break_is_named_and_what_is_added_is_none() {
    let released = read("released/asyncapi.json");
    let mut now = released.clone();
    let data = |message: &str| format!("/components/messages/{message}/payload/properties/data");
    let completed = now.pointer_mut(&data("ride.completed.v1")).unwrap();
    completed["properties"]
        .as_object_mut()
        .unwrap()
        .remove("driver");
    completed["required"] = json!(["ride", "ride_seq", "why", "attempt", "keep_until"]);
    completed["properties"]["mood"] = json!({ "type": "string" });
    let started = now.pointer_mut(&data("ride.started.v1")).unwrap();
    started["properties"]["ride_seq"] = json!({ "type": "string" });
    let messages = now["channels"]["rideEvents"]["messages"]
        .as_object_mut()
        .unwrap();
    messages.remove("ride.unfulfilled.v1");
    messages.insert("ride.sung.v1".into(), json!({}));
    // Also said, in driver-locations: there it breaks nobody.
    now["components"]["messages"]["ping"]["payload"]["required"] = json!(["lat", "lon", "seq"]);
    let broken = broken_topics(&released, &now);
    assert_eq!(
        broken,
        [
            "topic driver-pings, ping: value.seq must be there now",
            "topic ride-events, ride.completed.v1: value.data.driver is gone",
            "topic ride-events, ride.started.v1: value.data.ride_seq was [\"integer\"] and is [\"string\"]",
            "topic ride-events: ride.unfulfilled.v1 is gone",
        ]
    );
}

#[test]
fn a_call_that_asks_for_more_or_answers_less_is_named() {
    let released = read("released/openapi.json");
    let mut now = released.clone();
    let rides = &mut now["paths"]["/v1/rides"]["post"];
    let needed = json!({ "name": "X-Mood", "in": "header", "required": true, "schema": { "type": "string" } });
    rides["parameters"].as_array_mut().unwrap().push(needed);
    rides["responses"].as_object_mut().unwrap().remove("409");
    now["paths"].as_object_mut().unwrap().remove("/v1/quote");
    let broken = broken_calls(&released, &now);
    assert_eq!(
        broken,
        [
            "POST /v1/quote is gone",
            "POST /v1/rides: \"X-Mood\" must be there now",
            "POST /v1/rides: never answers 409 now",
        ]
    );
}
