//! What calls are there? The OpenAPI 3.1 description, made from the types that are sent and the table of who may call.
//!
//! `docs/openapi.json` is this, kept equal by a test, which also compares the paths with the table of
//! `docs/protocol.md` and calls each. The sockets are not in it: OpenAPI has no words for them.

use cabrank_events::wire;
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Map, Value, json};

use crate::access::Endpoint;
use crate::desk::{Because, DriverState, Histories, RiderState};
use crate::destination::Destination;
use crate::dispatch::{Rules, SetRules};
use crate::forecasts::Expected;
use crate::http::{ByKey, Changed, Why};
use crate::logging::LogLevel;
use crate::map::{Area, Named};
use crate::marks::{Block, Heading};
use crate::nodes::Nodes;
use crate::token::Role;

type Shape = fn(&mut SchemaGenerator) -> Schema;

fn shape<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

/// What comes in an answer that is no refusal.
enum Answer {
    Json(Shape),
    /// Anything else, by its media type.
    Other(&'static str),
    Nothing,
}

/// A parameter: where, name, type, whether it must be there, what it means.
struct Param(&'static str, &'static str, &'static str, bool, &'static str);

struct Call {
    method: &'static str,
    path: &'static str,
    /// None: open to everybody.
    endpoint: Option<Endpoint>,
    tag: &'static str,
    summary: &'static str,
    params: Vec<Param>,
    /// The body's shape, and whether there must be one.
    body: Option<(Shape, bool)>,
    answers: Vec<(u16, &'static str, Answer)>,
    /// Statuses of refusals beside those that all have.
    refusals: &'static [u16],
}

const RIDER: Param = Param(
    "header",
    "X-Rider",
    "string",
    false,
    "the rider a service or an operator speaks for",
);
const KEY: Param = Param(
    "header",
    "Idempotency-Key",
    "string",
    true,
    "1 to 64 characters, new for each wish, the same in each retry",
);

fn sides() -> Vec<Param> {
    let side = |name, what| Param("query", name, "number", false, what);
    vec![
        side("south", "degrees north; all four sides or none"),
        side("west", "degrees east"),
        side("north", "degrees north"),
        side("east", "degrees east"),
    ]
}

fn call(
    method: &'static str,
    path: &'static str,
    endpoint: Option<Endpoint>,
    tag: &'static str,
    summary: &'static str,
    answers: Vec<(u16, &'static str, Answer)>,
) -> Call {
    Call {
        method,
        path,
        endpoint,
        tag,
        summary,
        params: Vec::new(),
        body: None,
        answers,
        refusals: &[],
    }
}

fn done() -> Vec<(u16, &'static str, Answer)> {
    vec![(
        200,
        "it is done, or was done before",
        Answer::Json(shape::<Changed>),
    )]
}

fn found(shape: Shape) -> Vec<(u16, &'static str, Answer)> {
    vec![(200, "found", Answer::Json(shape))]
}

fn rides() -> Vec<Call> {
    let tag = "Rides";
    vec![
        Call {
            params: vec![KEY, RIDER],
            body: Some((shape::<wire::RideRequest>, true)),
            refusals: &[409, 410, 413, 422, 429],
            ..call(
                "post",
                "/v1/rides",
                Some(Endpoint::OpenRide),
                tag,
                "Ask for a ride. Acknowledged when it is durable; it then reaches exactly one end.",
                vec![
                    (
                        201,
                        "the ride is open",
                        Answer::Json(shape::<wire::RideOpened>),
                    ),
                    (
                        200,
                        "this key's ride, opened earlier",
                        Answer::Json(shape::<wire::RideOpened>),
                    ),
                ],
            )
        },
        Call {
            refusals: &[404],
            ..call(
                "get",
                "/v1/rides/{ride}",
                Some(Endpoint::ReadRide),
                tag,
                "A ride as its people see it.",
                found(shape::<wire::RideView>),
            )
        },
        Call {
            body: Some((shape::<Why>, false)),
            refusals: &[404, 409, 413, 422, 429],
            ..call(
                "post",
                "/v1/rides/{ride}/cancel",
                Some(Endpoint::CancelRide),
                tag,
                "Call a ride off, before it has begun.",
                done(),
            )
        },
        Call {
            params: vec![KEY],
            body: Some((shape::<Destination>, true)),
            refusals: &[404, 409, 413, 422, 429],
            ..call(
                "put",
                "/v1/rides/{ride}/destination",
                Some(Endpoint::ChangeDestination),
                tag,
                "Lead a ride elsewhere, as long as it has not ended. The driver's phone hears of it.",
                done(),
            )
        },
        Call {
            params: vec![RIDER],
            body: Some((shape::<ByKey>, true)),
            refusals: &[404, 409, 413, 422, 429],
            ..call(
                "post",
                "/v1/cancel",
                Some(Endpoint::CancelByKey),
                tag,
                "Take a wish back by its key, also one whose answer never came.",
                done(),
            )
        },
        Call {
            params: vec![
                Param("query", "lat", "number", true, "degrees north"),
                Param("query", "lon", "number", true, "degrees east"),
                Param(
                    "query",
                    "radius",
                    "number",
                    false,
                    "metres, 2,000 if left out",
                ),
                Param(
                    "query",
                    "k",
                    "integer",
                    false,
                    "how many at most, 10 if left out",
                ),
                Param("query", "class", "string", false, "only cars of this class"),
            ],
            refusals: &[429],
            ..call(
                "get",
                "/v1/nearby",
                Some(Endpoint::Nearby),
                tag,
                "Free cars near a place, nearest first.",
                found(shape::<wire::Nearby>),
            )
        },
        Call {
            body: Some((shape::<wire::QuoteRequest>, true)),
            refusals: &[413, 422, 429],
            ..call(
                "post",
                "/v1/quote",
                Some(Endpoint::Quote),
                tag,
                "When a car would be there, before asking for it: an interval, learned from rides of late.",
                found(shape::<wire::Quote>),
            )
        },
        call(
            "get",
            "/v1/zones",
            Some(Endpoint::Zones),
            tag,
            "Service areas, airports, pickup zones and points as GeoJSON.",
            vec![
                (200, "all zones", Answer::Other("application/geo+json")),
                (304, "as If-None-Match says", Answer::Nothing),
            ],
        ),
        Call {
            params: vec![
                Param(
                    "query",
                    "cursor",
                    "string",
                    false,
                    "start, or the id of an event",
                ),
                Param(
                    "header",
                    "Last-Event-ID",
                    "string",
                    false,
                    "wins over cursor",
                ),
            ],
            refusals: &[410],
            ..call(
                "get",
                "/v1/events",
                Some(Endpoint::Events),
                tag,
                "The event log, resumable: each id is an opaque cursor, each data one CloudEvent.",
                vec![(
                    200,
                    "events as they are committed",
                    Answer::Other("text/event-stream"),
                )],
            )
        },
    ]
}

fn desk() -> Vec<Call> {
    let tag = "The desk";
    let (mark, desk) = (Some(Endpoint::MarkDriver), Some(Endpoint::Desk));
    vec![
        Call {
            body: Some((shape::<Because>, true)),
            refusals: &[413, 422],
            ..call(
                "post",
                "/v1/drivers/{driver}/suspend",
                mark,
                tag,
                "Keep a driver from work until further notice.",
                done(),
            )
        },
        call(
            "post",
            "/v1/drivers/{driver}/reinstate",
            mark,
            tag,
            "Let a driver work again.",
            done(),
        ),
        Call {
            body: Some((shape::<Block>, true)),
            refusals: &[409, 413, 422],
            ..call(
                "post",
                "/v1/drivers/{driver}/blocks",
                mark,
                tag,
                "The driver gets no ride of a rider any more.",
                done(),
            )
        },
        call(
            "delete",
            "/v1/drivers/{driver}/blocks/{rider}",
            mark,
            tag,
            "The driver may get rides of a rider again.",
            done(),
        ),
        Call {
            body: Some((shape::<Heading>, true)),
            refusals: &[409, 413, 422],
            ..call(
                "put",
                "/v1/drivers/{driver}/heading",
                mark,
                tag,
                "The driver wants to go there: rides that lead there come first, if the market prices it.",
                done(),
            )
        },
        Call {
            refusals: &[409],
            ..call(
                "delete",
                "/v1/drivers/{driver}/heading",
                mark,
                tag,
                "The driver drives anywhere again.",
                done(),
            )
        },
        Call {
            body: Some((shape::<Because>, true)),
            refusals: &[404, 409, 413, 422],
            ..call(
                "post",
                "/v1/rides/{ride}/redispatch",
                desk,
                tag,
                "Take the driver on the way off a ride and look for another one.",
                done(),
            )
        },
        call(
            "get",
            "/v1/dispatch",
            Some(Endpoint::Dispatch),
            tag,
            "How rounds choose, and what of it was set.",
            found(shape::<Rules>),
        ),
        Call {
            body: Some((shape::<SetRules>, true)),
            refusals: &[413, 422],
            ..call(
                "put",
                "/v1/dispatch",
                Some(Endpoint::Dispatch),
                tag,
                "Change how rounds choose, on every node from its next round on.",
                done(),
            )
        },
        Call {
            refusals: &[409],
            ..call(
                "get",
                "/v1/log-level",
                Some(Endpoint::LogLevel),
                tag,
                "What the process that answers logs.",
                found(shape::<LogLevel>),
            )
        },
        Call {
            body: Some((shape::<LogLevel>, true)),
            refusals: &[409, 413, 422],
            ..call(
                "put",
                "/v1/log-level",
                Some(Endpoint::LogLevel),
                tag,
                "Change what the process that answers logs, until it ends.",
                found(shape::<LogLevel>),
            )
        },
        call(
            "get",
            "/v1/dispatch/history",
            desk,
            tag,
            "The newest commands and events of the market: settings, and nodes asked to leave.",
            found(shape::<Histories<'static>>),
        ),
        call(
            "get",
            "/v1/nodes",
            desk,
            tag,
            "The nodes that serve the city's shards.",
            found(shape::<Nodes>),
        ),
        Call {
            body: Some((shape::<Because>, true)),
            refusals: &[404, 409, 413, 422],
            ..call(
                "post",
                "/v1/nodes/{node}/drain",
                desk,
                tag,
                "Ask a node to hand its shards over and end.",
                done(),
            )
        },
        Call {
            refusals: &[404],
            ..call(
                "get",
                "/v1/drivers/{driver}",
                desk,
                tag,
                "A driver's state.",
                found(shape::<DriverState>),
            )
        },
        call(
            "get",
            "/v1/riders/{rider}",
            desk,
            tag,
            "A rider's open ride.",
            found(shape::<RiderState>),
        ),
        call(
            "get",
            "/v1/drivers/{driver}/history",
            desk,
            tag,
            "The newest commands and events of a driver.",
            found(shape::<Histories<'static>>),
        ),
        call(
            "get",
            "/v1/riders/{rider}/history",
            desk,
            tag,
            "The newest commands and events of a rider.",
            found(shape::<Histories<'static>>),
        ),
        Call {
            refusals: &[404],
            ..call(
                "get",
                "/v1/rides/{ride}/history",
                desk,
                tag,
                "The newest commands and events of a ride.",
                found(shape::<Histories<'static>>),
            )
        },
    ]
}

fn door() -> Vec<Call> {
    vec![
        Call {
            body: Some((shape::<crate::shutout::Revoke>, true)),
            refusals: &[413, 422],
            ..call(
                "post",
                "/v1/revocations",
                Some(Endpoint::Revoke),
                "The door",
                "No token a person has is believed any more, and their sessions end. A new login works.",
                found(shape::<crate::shutout::Revoked>),
            )
        },
        call(
            "delete",
            "/v1/revocations/{role}/{subject}",
            Some(Endpoint::Revoke),
            "The door",
            "A person's tokens are believed again as long as they last.",
            found(shape::<crate::shutout::Revoked>),
        ),
    ]
}

fn map() -> Vec<Call> {
    let (tag, desk) = ("The map", Some(Endpoint::Desk));
    let after = Param(
        "query",
        "after",
        "integer",
        false,
        "the number of the last answer",
    );
    vec![
        Call {
            params: sides().into_iter().chain([after]).collect(),
            ..call(
                "get",
                "/v1/map",
                desk,
                tag,
                "What lies in a view of the city; docs/protocol.md has the layout.",
                vec![
                    (
                        200,
                        "a new drawing",
                        Answer::Other("application/octet-stream"),
                    ),
                    (204, "the last one is still the newest", Answer::Nothing),
                ],
            )
        },
        Call {
            params: sides(),
            ..call(
                "get",
                "/v1/map/area",
                desk,
                tag,
                "Demand and supply by H3 cell, and the last minute.",
                found(shape::<Area>),
            )
        },
        call(
            "get",
            "/v1/map/film",
            desk,
            tag,
            "The last minutes, drawing by drawing, read back from the log; docs/protocol.md has the layout.",
            vec![(200, "a film", Answer::Other("application/octet-stream"))],
        ),
        Call {
            params: sides(),
            ..call(
                "get",
                "/v1/map/forecast",
                desk,
                tag,
                "How many rides are expected, by H3 cell.",
                found(shape::<Expected>),
            )
        },
        Call {
            refusals: &[404],
            ..call(
                "get",
                "/v1/map/drivers/{key}",
                desk,
                tag,
                "Who a driver on the map is.",
                found(shape::<Named>),
            )
        },
    ]
}

fn open() -> Vec<Call> {
    let tag = "Open";
    let page = |path, summary, kind| {
        call(
            "get",
            path,
            None,
            tag,
            summary,
            vec![(200, "it", Answer::Other(kind))],
        )
    };
    vec![
        Call {
            refusals: &[503],
            ..page(
                "/healthz",
                "The process lives, and its loops go round.",
                "text/plain",
            )
        },
        Call {
            refusals: &[503],
            ..page("/readyz", "It takes traffic.", "text/plain")
        },
        page("/metrics", "Metrics for Prometheus.", "text/plain"),
        page("/openapi.json", "This description.", "application/json"),
        page("/", "The live map.", "text/html"),
        page("/api", "This description for a person.", "text/html"),
    ]
}

/// Every status a call may refuse with.
fn refusals(call: &Call) -> Vec<u16> {
    let mut all = call.refusals.to_vec();
    if call.endpoint.is_some() {
        all.extend([400, 401, 403, 503]);
    }
    all.sort_unstable();
    all
}

fn operation(call: &Call, generator: &mut SchemaGenerator) -> Value {
    let mut params: Vec<Value> = Vec::new();
    for name in call
        .path
        .split('{')
        .skip(1)
        .filter_map(|rest| rest.split('}').next())
    {
        params.push(json!({"name":name,"in":"path","required":true,"schema":{"type":"string"}}));
    }
    for Param(place, name, kind, required, what) in &call.params {
        params.push(json!({"name":name,"in":place,"required":required,"description":what,"schema":{"type":kind}}));
    }
    let mut answers = Map::new();
    for (status, what, answer) in &call.answers {
        let mut shown = json!({"description":what});
        match answer {
            Answer::Json(shape) => {
                shown["content"] = json!({"application/json":{"schema":shape(generator)}});
            }
            Answer::Other(kind) => shown["content"] = json!({*kind:{}}),
            Answer::Nothing => {}
        }
        answers.insert(status.to_string(), shown);
    }
    for status in refusals(call) {
        answers.insert(
            status.to_string(),
            json!({"$ref":"#/components/responses/Problem"}),
        );
    }
    let mut operation = json!({"tags":[call.tag],"summary":call.summary,"responses":answers});
    if !params.is_empty() {
        operation["parameters"] = json!(params);
    }
    if let Some((shape, required)) = call.body {
        let content = json!({"application/json":{"schema":shape(generator)}});
        operation["requestBody"] = json!({"required":required,"content":content});
    }
    if let Some(endpoint) = call.endpoint {
        let roles = Role::ALL.into_iter().filter(|role| endpoint.allows(*role));
        let roles: Vec<&str> = roles.map(Role::name).collect();
        operation["description"] = json!(format!("For the roles: {}.", roles.join(", ")));
        operation["security"] = json!([{"token":[]}]);
    }
    operation
}

/// The description of all calls.
pub fn openapi() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.definitions_path = "/components/schemas".into();
        settings.meta_schema = None;
    });
    let mut generator = settings.into_generator();
    let mut paths = Map::new();
    for call in [rides(), desk(), door(), map(), open()]
        .into_iter()
        .flatten()
    {
        let operation = operation(&call, &mut generator);
        let path = paths.entry(call.path).or_insert_with(|| json!({}));
        path[call.method] = operation;
    }
    let problem = generator.subschema_for::<wire::Problem>();
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Cabrank",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "A real-time ride-dispatch engine. The sockets of drivers and riders, timers, limits and close codes are in docs/protocol.md.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"}
        },
        "paths": paths,
        "components": {
            "schemas": generator.take_definitions(true),
            "responses": {
                "Problem": {
                    "description": "Why it was not done, and what to do about it (RFC 9457).",
                    "content": {"application/problem+json": {"schema": problem}}
                }
            },
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}
            }
        }
    })
}
