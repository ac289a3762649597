//! The contract for consumers: a JSON Schema and an example per event, kept in `events/schemas/`.
//!
//! `CABRANK_BLESS=1 cargo test -p cabrank-events --test schemas` writes them anew after a change; without it a difference
//! fails, so a change of the contract is always seen in a review.

#[path = "schemas/asyncapi.rs"]
mod asyncapi;

use std::path::PathBuf;

use cabrank_events::command::{
    CancelledBy, ClaimRefusal, Growth, GrowthStep, Outcome, RefusedBecause,
};
use cabrank_events::event::*;
use cabrank_events::{
    ClassSet, CommandId, DriverId, Event, EventRecord, HoldId, IdempotencyKey, NodeName,
    PickupPoint, Place, QueuePlace, Reason, RideId, RiderId, SessionId, ShardId, Time,
    VehicleClass, ZoneName,
};
use cabrank_geo::Point;
use serde_json::{Value, json};

fn pickup_point() -> PickupPoint {
    PickupPoint {
        zone: ZoneName::new("Ferry Terminal").unwrap(),
        name: ZoneName::new("Door 2").unwrap(),
        at: place(37.7749, -122.4194),
        asked: place(37.7751, -122.4201),
    }
}

const AT: Time = Time(1_211_500_801_250);

fn ride() -> RideId {
    RideId {
        place: ShardId(3),
        minted_by: ShardId(5),
        offset: 1042,
    }
}

fn driver() -> DriverId {
    DriverId::new("d7").unwrap()
}

fn rider() -> RiderId {
    RiderId::new("ann").unwrap()
}

fn key() -> IdempotencyKey {
    IdempotencyKey::new("k1").unwrap()
}

fn place(lat: f64, lon: f64) -> Place {
    Place(Point::new(lat, lon).unwrap())
}

/// One example of every event.
fn examples() -> Vec<Event> {
    let (attempt, hold_number, driver_seq, rider_seq) = (1, 42, 43, 7);
    let (ride, later) = (ride(), AT.plus_ms(15_000));
    let command = CommandId::new("rider/ann/k1").unwrap();
    let other_hold = HoldId {
        ride: RideId {
            offset: 977,
            ..ride
        },
        attempt: 1,
    };
    vec![
        RideRequested {
            ride,
            ride_seq: 1,
            rider: rider(),
            key: key(),
            pickup: place(37.7749, -122.4194),
            dropoff: Some(place(37.79, -122.4)),
            class: VehicleClass::Economy,
            issued_at: AT,
            deadline: AT.plus_ms(300_000),
            radius_m: 2_000,
            widen_at: AT.plus_ms(5_000),
            pickup_point: Some(Box::new(pickup_point())),
            airport: Some(airport()),
        }
        .into(),
        DestinationChanged {
            ride,
            ride_seq: 2,
            to: place(37.8, -122.41),
        }
        .into(),
        SearchedInVain { ride, ride_seq: 2 }.into(),
        SearchWidened {
            ride,
            ride_seq: 3,
            radius_m: 3_000,
            widen_at: later,
        }
        .into(),
        DriverClaimed {
            ride,
            ride_seq: 4,
            driver: driver(),
            attempt,
            answer_by: later,
            from: Some(other_hold),
            then: vec![Move {
                ride: other_hold.ride,
                version: 9,
                driver: DriverId::new("d9").unwrap(),
                gain_s: -20,
            }],
            gain_s: 140,
        }
        .into(),
        SecondHoldGranted {
            ride,
            ride_seq: 9,
            driver: driver(),
            attempt,
            hold_number,
        }
        .into(),
        SwapAsked {
            ride,
            ride_seq: 9,
            driver: driver(),
            attempt,
            gain_s: 180,
            answer_by: later,
        }
        .into(),
        SwapAnswered {
            ride,
            ride_seq: 10,
            driver: driver(),
            attempt,
            answer: SwapAnswer::Agreed,
            until: later,
        }
        .into(),
        HoldAsked {
            ride,
            ride_seq: 9,
            driver: driver(),
            attempt,
            by: other_hold,
        }
        .into(),
        HoldMoved {
            ride,
            ride_seq: 10,
            driver: driver(),
            attempt,
        }
        .into(),
        HoldKept {
            ride,
            ride_seq: 10,
            driver: driver(),
            attempt,
        }
        .into(),
        ReportWaits {
            ride,
            ride_seq: 10,
            driver: driver(),
            attempt,
            report: RideReport::Started,
            command: Some(CommandId::new("driver/d7/m5").unwrap()),
        }
        .into(),
        DriverReassigned {
            ride,
            ride_seq: 11,
            driver: driver(),
            attempt: 2,
            hold_number,
            before: DriverId::new("d9").unwrap(),
            arrive_by: later,
            gained_s: 140,
            instead_of: Some(other_hold.ride),
        }
        .into(),
        ClaimDenied {
            ride,
            ride_seq: 5,
            driver: driver(),
            attempt,
            why: ClaimRefusal::Held,
            driver_seq,
        }
        .into(),
        ClaimAbandoned {
            ride,
            ride_seq: 5,
            driver: driver(),
            attempt,
        }
        .into(),
        OfferMade {
            ride,
            ride_seq: 5,
            driver: driver(),
            attempt,
            hold_number,
            receipt_by: later,
        }
        .into(),
        OfferReceived {
            ride,
            ride_seq: 6,
            driver: driver(),
            attempt,
            answer_by: later,
        }
        .into(),
        OfferDeclined {
            ride,
            ride_seq: 7,
            driver: driver(),
            attempt,
            why: DeclinedBecause::Declined,
        }
        .into(),
        OfferExpired {
            ride,
            ride_seq: 7,
            driver: driver(),
            attempt,
            why: ExpiredBecause::NoAnswer,
        }
        .into(),
        DriverAssigned {
            ride,
            ride_seq: 7,
            driver: driver(),
            attempt,
            hold_number,
            arrive_by: later,
        }
        .into(),
        DriverLost {
            ride,
            ride_seq: 8,
            driver: driver(),
            attempt,
            why: LostBecause::GaveBack,
            deadline: later,
            redispatches: 1,
        }
        .into(),
        DriverArrived {
            ride,
            ride_seq: 8,
            driver: driver(),
            attempt,
            start_by: later,
        }
        .into(),
        RideStarted {
            ride,
            ride_seq: 9,
            driver: driver(),
            attempt,
            complete_by: later,
        }
        .into(),
        RideCompleted {
            ride,
            ride_seq: 10,
            driver: driver(),
            attempt,
            why: CompletedBecause::DriverReported,
            keep_until: later,
        }
        .into(),
        RideCancelled {
            ride,
            ride_seq: 8,
            by: CancelledBy::Rider,
            driver: Some(driver()),
            keep_until: later,
            reason: Reason::fitted("payment refused"),
        }
        .into(),
        RideUnfulfilled {
            ride,
            ride_seq: 8,
            why: UnfulfilledBecause::Deadline,
            keep_until: later,
        }
        .into(),
        DriverOnline {
            driver: driver(),
            driver_seq,
            session: SessionId(1_211_500_800_000),
            classes: ClassSet::of(&[VehicleClass::Economy, VehicleClass::Xl]).unwrap(),
        }
        .into(),
        DriverHeld {
            driver: driver(),
            driver_seq,
            ride,
            attempt,
            hold_number,
        }
        .into(),
        DriverReleased {
            driver: driver(),
            driver_seq,
            ride,
            attempt,
            hold_number,
            queue: None,
        }
        .into(),
        DriverLeaving {
            driver: driver(),
            driver_seq,
            session: SessionId(1_211_500_800_000),
            why: LeaveReason::Offline,
        }
        .into(),
        DriverOffline {
            driver: driver(),
            driver_seq,
            session: SessionId(1_211_500_800_000),
            why: LeaveReason::Silent,
            keep_until: later,
        }
        .into(),
        DriverSuspended {
            driver: driver(),
            driver_seq,
            reason: Reason::new("complaint 4711: dangerous driving").unwrap(),
        }
        .into(),
        DriverReinstated {
            driver: driver(),
            driver_seq,
        }
        .into(),
        RiderBlocked {
            driver: driver(),
            driver_seq,
            rider: rider(),
        }
        .into(),
        RiderUnblocked {
            driver: driver(),
            driver_seq,
            rider: rider(),
        }
        .into(),
        DriverForgotten {
            driver: driver(),
            driver_seq,
        }
        .into(),
        RiderBusy {
            rider: rider(),
            rider_seq,
            ride,
            key: key(),
            fingerprint: 5_212_987_179_472_747_544,
            command: command.clone(),
            expires_at: later,
            pickup_point: Some(Box::new(pickup_point())),
        }
        .into(),
        RideConfirmed {
            rider: rider(),
            rider_seq,
            ride,
            key: key(),
        }
        .into(),
        RideNotOpened {
            rider: rider(),
            rider_seq,
            ride,
            key: key(),
            why: RefusedBecause::ShardFull,
        }
        .into(),
        RiderFree {
            rider: rider(),
            rider_seq,
            ride,
            key: key(),
            end: EndOfRide::Completed,
        }
        .into(),
        RiderForgotten {
            rider: rider(),
            rider_seq,
        }
        .into(),
        RequestRefused {
            rider: rider(),
            rider_seq,
            key: key(),
            fingerprint: 1,
            why: RefusedBecause::AlreadyRiding,
            expires_at: later,
        }
        .into(),
        KeyCancelled {
            rider: rider(),
            rider_seq,
            key: key(),
            expires_at: later,
        }
        .into(),
        HeadingSet {
            driver: driver(),
            driver_seq,
            to: Some(place(37.79, -122.4)),
        }
        .into(),
        DriverQueued {
            driver: driver(),
            driver_seq,
            place: QueuePlace {
                airport: airport(),
                since: AT,
                number: 1042,
            },
        }
        .into(),
        DriverUnqueued {
            driver: driver(),
            driver_seq,
            airport: airport(),
        }
        .into(),
        DriverHandedOver {
            driver: driver(),
            driver_seq,
            to: ShardId(6),
        }
        .into(),
        DriverTakenOver {
            driver: driver(),
            driver_seq,
            from: ShardId(3),
            state: json!({ "id": "d7", "seq": 42 }),
        }
        .into(),
        RiderHandedOver {
            rider: rider(),
            rider_seq,
            to: ShardId(6),
        }
        .into(),
        RiderTakenOver {
            rider: rider(),
            rider_seq,
            from: ShardId(3),
            state: json!({ "id": "ann", "seq": 6 }),
        }
        .into(),
        RingGrows {
            market_seq: 3,
            growth: Growth { from: 4, to: 8 },
            step: GrowthStep::Begun,
        }
        .into(),
        DrainAsked {
            market_seq: 3,
            node: NodeName::new("node-1").unwrap(),
        }
        .into(),
        DispatchSet {
            market_seq: 3,
            settings: json!({ "policy": "rematch", "swaps": { "gain_min_ms": 60_000 } }),
        }
        .into(),
        CommandOutcome {
            command,
            outcome: Outcome::Refused {
                why: RefusedBecause::AlreadyRiding,
            },
            ride: Some(ride),
            asked_ride: None,
            asked_driver: None,
            asked_rider: Some(rider()),
            pickup_point: None,
        }
        .into(),
    ]
}

fn airport() -> ZoneName {
    ZoneName::new("SFO").expect("a good name")
}

fn example(name: &str) -> EventRecord {
    let event = examples().into_iter().find(|event| event.name() == name);
    let event = event.unwrap_or_else(|| panic!("{name} has no example"));
    EventRecord {
        traceparent: None,
        shard: ShardId(3),
        seq: 1042,
        time: AT,
        event,
    }
}

/// The schema of the whole CloudEvent.
fn schema(record: &EventRecord) -> Value {
    let data = Event::data_schema(record.event.name()).expect("the name came from the contract");
    let mut data = serde_json::to_value(data).unwrap();
    let definitions = data
        .as_object_mut()
        .unwrap()
        .remove("$defs")
        .unwrap_or(json!({}));
    data.as_object_mut().unwrap().remove("$schema");
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": record.cloud_type(),
        "type": "object",
        "required": ["specversion", "id", "source", "type", "subject", "time", "datacontenttype", "data"],
        "properties": {
            "specversion": { "const": "1.0" },
            "id": { "type": "string", "pattern": "^[0-9]+-[0-9]+$", "description": "Shard and number: unique, for de-duplication." },
            "source": { "type": "string", "pattern": "^/cabrank/shards/[0-9]+$" },
            "type": { "const": record.cloud_type() },
            "subject": { "type": "string", "description": "The entity it changed." },
            "time": { "type": "string", "format": "date-time" },
            "datacontenttype": { "const": "application/json" },
            "data": data,
        },
        "$defs": definitions,
    })
}

fn kept(file: &str, now: &Value) -> Value {
    kept_at(&format!("schemas/{file}"), now)
}

fn kept_at(file: &str, now: &Value) -> Value {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(file);
    if std::env::var_os("CABRANK_BLESS").is_some() {
        std::fs::write(&path, format!("{now:#}\n")).unwrap();
    }
    let text = std::fs::read_to_string(&path).unwrap_or_else(|why| panic!("{file}: {why}"));
    serde_json::from_str(&text).unwrap()
}

#[test]
fn every_event_has_a_schema_and_an_example_that_match_the_code() {
    for name in Event::NAMES {
        let record = example(name);
        let schema = schema(&record);
        assert_eq!(
            kept(&format!("{name}.v1.json"), &schema),
            schema,
            "{name}: the schema has changed"
        );
        let json: Value = serde_json::from_slice(&record.to_json()).unwrap();
        let example = kept(&format!("{name}.v1.example.json"), &json);
        assert_eq!(example, json, "{name}: the example has changed");
        let validator = jsonschema::validator_for(&schema).unwrap();
        assert!(
            validator.is_valid(&example),
            "{name}: the example does not match its schema"
        );
        assert_eq!(
            EventRecord::from_json(example.to_string().as_bytes()).unwrap(),
            record
        );
    }
}

#[test]
fn a_schema_refuses_what_is_not_its_event() {
    for name in Event::NAMES {
        let record = example(name);
        let validator = jsonschema::validator_for(&schema(&record)).unwrap();
        let whole: Value = serde_json::from_slice(&record.to_json()).unwrap();
        let required: Vec<String> = whole["data"]
            .as_object()
            .unwrap()
            .keys()
            .filter(|key| *key != "dropoff")
            .cloned()
            .collect();
        let mut missed = 0;
        for key in &required {
            let mut cut = whole.clone();
            cut["data"].as_object_mut().unwrap().remove(key);
            missed += usize::from(validator.is_valid(&cut));
        }
        // Optional fields may be absent: the driver of a cancelled ride and why it was, whom an outcome asked, and its ride,
        // the swap a claim belongs to and what it gains, the command of a report without one, the heading of a driver who
        // has none.
        let optional = match *name {
            "ride.report_waits" | "driver.heading_set" => 1,
            "ride.cancelled" | "command.outcome" | "ride.driver_reassigned" => 2,
            "ride.driver_claimed" => 3,
            // The pickup point, which most requests have none of.
            "rider.busy" => 1,
            // And the airport, which most do not begin at.
            "ride.requested" => 2,
            _ => 0,
        };
        assert_eq!(missed, optional, "{name}");
        let mut other = whole.clone();
        other["type"] = json!("cabrank.ride.teleported.v1");
        assert!(!validator.is_valid(&other), "{name}");
    }
}
