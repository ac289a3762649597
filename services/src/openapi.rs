//! What calls do the services answer? The OpenAPI 3.1 description, made from the types that are sent.
//!
//! `docs/openapi-services.json` is this, kept equal by a test, which also asks each call. Every service answers it at
//! `/openapi.json`; the tag of a call says which service has it.

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

use cabrank_events::business::DemandForecast;

use crate::consumer::Replayed;
use crate::order::http::{Asked, OneOrder, Page};
use crate::payment::Payment;
use crate::payment::http::Refunding;
use crate::source::FeedPage;
use crate::web::{DeadLetters, FeedAsked};

type Shape = fn(&mut SchemaGenerator) -> Schema;

fn shape<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

/// Who may call.
const ALL: &str = "rider, driver, service, ops";
const INSIDERS: &str = "service, ops";
const DESK: &str = "ops";

struct Call {
    method: &'static str,
    path: &'static str,
    /// Which service: `order`, `payment`, `forecast`, `every`.
    tag: &'static str,
    summary: &'static str,
    /// Roles; none: open to everybody.
    roles: Option<&'static str>,
    /// What stands behind the `?`.
    query: Option<Shape>,
    /// The answer 200; none: plain text.
    answer: Option<Shape>,
    /// Refusals beside those that all have.
    refusals: &'static [u16],
}

fn call(
    method: &'static str,
    path: &'static str,
    tag: &'static str,
    summary: &'static str,
) -> Call {
    Call {
        method,
        path,
        tag,
        summary,
        roles: None,
        query: None,
        answer: None,
        refusals: &[],
    }
}

fn calls() -> Vec<Call> {
    vec![
        Call {
            roles: Some(ALL),
            query: Some(shape::<Asked>),
            answer: Some(shape::<Page>),
            refusals: &[400],
            ..call(
                "get",
                "/v1/orders",
                "order",
                "Orders, newest first; riders and drivers see their own",
            )
        },
        Call {
            roles: Some(ALL),
            answer: Some(shape::<OneOrder>),
            refusals: &[404],
            ..call(
                "get",
                "/v1/orders/{ride}",
                "order",
                "One order with its steps and its money; somebody else's looks like none",
            )
        },
        Call {
            roles: Some(INSIDERS),
            answer: Some(shape::<BTreeMap<String, i64>>),
            ..call(
                "get",
                "/v1/sagas",
                "order",
                "How many rides' money is in each state",
            )
        },
        Call {
            roles: Some(INSIDERS),
            answer: Some(shape::<Payment>),
            refusals: &[404],
            ..call(
                "get",
                "/v1/payments/{ride}",
                "payment",
                "What became of a ride's money",
            )
        },
        Call {
            roles: Some(DESK),
            answer: Some(shape::<Refunding>),
            refusals: &[400],
            ..call(
                "post",
                "/v1/payments/{ride}/refund",
                "payment",
                "Give back what was taken",
            )
        },
        call(
            "get",
            "/metrics/provider",
            "payment",
            "The way to the provider, for Prometheus: a part of /metrics",
        ),
        Call {
            roles: Some(ALL),
            answer: Some(shape::<Vec<DemandForecast>>),
            ..call(
                "get",
                "/v1/forecasts",
                "forecast",
                "The newest forecast of each cell",
            )
        },
        Call {
            roles: Some(INSIDERS),
            query: Some(shape::<FeedAsked>),
            answer: Some(shape::<FeedPage>),
            refusals: &[400, 410],
            ..call(
                "get",
                "/v1/feed",
                "every",
                "What the service says, in order; 410: older than what is kept",
            )
        },
        Call {
            roles: Some(INSIDERS),
            answer: Some(shape::<DeadLetters>),
            ..call(
                "get",
                "/v1/dead-letters",
                "every",
                "Events that were set aside",
            )
        },
        Call {
            roles: Some(DESK),
            answer: Some(shape::<Replayed>),
            ..call(
                "post",
                "/v1/dead-letters/replay",
                "every",
                "Apply them again",
            )
        },
        call("get", "/metrics", "every", "For Prometheus"),
        call("get", "/healthz", "every", "Whether it is there"),
        Call {
            answer: Some(shape::<Value>),
            ..call("get", "/openapi.json", "every", "This description")
        },
    ]
}

fn operation(call: &Call, generator: &mut SchemaGenerator) -> Value {
    let mut params = Vec::new();
    if call.path.contains("{ride}") {
        params.push(json!({ "name": "ride", "in": "path", "required": true, "description": "the ride", "schema": { "type": "string" } }));
    }
    if let Some(query) = call.query {
        // Its fields become parameters; the type itself is nobody's answer.
        let mut aside = SchemaSettings::draft2020_12().into_generator();
        let name = query(&mut aside);
        let definitions = aside.take_definitions(true);
        let name = name.as_value()["$ref"]
            .as_str()
            .and_then(|to| to.rsplit('/').next());
        let fields = name.and_then(|name| definitions[name]["properties"].as_object());
        for (name, field) in fields.into_iter().flatten() {
            let mut schema = field.clone();
            let about = schema
                .as_object_mut()
                .and_then(|schema| schema.remove("description"));
            params.push(json!({ "name": name, "in": "query", "required": false, "description": about, "schema": schema }));
        }
    }
    let content = match call.answer {
        Some(answer) => json!({ "application/json": { "schema": answer(generator) } }),
        None => json!({ "text/plain": { "schema": { "type": "string" } } }),
    };
    let lag = |what: &str| json!({ "description": what, "schema": { "type": "integer" } });
    let mut answers = json!({ "200": {
        "description": "found, or done",
        "content": content,
        "headers": {
            "cabrank-lag-ms": lag("age of the oldest event read and not applied; while none waits, how old the newest was when it was applied, for 15 s, then 0"),
            "cabrank-behind": lag("messages known to wait"),
        },
    } });
    let mut refusals = call.refusals.to_vec();
    refusals.push(503);
    if call.roles.is_some() {
        refusals.extend([401, 403]);
    }
    for status in refusals {
        answers[status.to_string()] = json!({ "$ref": "#/components/responses/Problem" });
    }
    let mut operation = json!({
        "tags": [call.tag],
        "summary": call.summary,
        "parameters": params,
        "responses": answers,
    });
    if let Some(roles) = call.roles {
        operation["description"] = json!(format!("For the roles: {roles}."));
        operation["security"] = json!([{ "token": [] }]);
    }
    operation
}

/// The description of all calls of all services.
pub fn openapi() -> Value {
    let settings = SchemaSettings::draft2020_12()
        .for_serialize()
        .with(|settings| {
            settings.definitions_path = "/components/schemas".into();
            settings.meta_schema = None;
        });
    let mut generator = settings.into_generator();
    let mut paths = Map::new();
    for call in calls() {
        let operation = operation(&call, &mut generator);
        let path = paths.entry(call.path).or_insert_with(|| json!({}));
        path[call.method] = operation;
    }
    let problem = generator.subschema_for::<cabrank_events::wire::Problem>();
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Cabrank's services",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Orders, payments and forecasts beside the engine. Each service answers the calls of its own tag and of `every`.",
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "paths": paths,
        "components": {
            "schemas": generator.take_definitions(true),
            "responses": { "Problem": {
                "description": "Why it was not done, and what to do about it (RFC 9457).",
                "content": { "application/problem+json": { "schema": problem } },
            } },
            "securitySchemes": { "token": { "type": "http", "scheme": "bearer", "bearerFormat": "JWT" } },
        },
    })
}
