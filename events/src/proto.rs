//! The socket messages as Protobuf (`proto/cabrank.v1.proto`), to and from the types of [`crate::wire`].
//!
//! Encoding never fails. Decoding checks what JSON checks: ids, places, names; the error names the field. Holds: what
//! is encoded decodes to the same message.

use std::str::FromStr;

use bytes::Bytes;
use prost::Message;

use crate::command::{CancelledBy, RefusedBecause};
use crate::ids::{ClassSet, Place, Reason, RideId, SessionId, Time, VehicleClass};
use crate::wire;
use crate::zone::{PickupPoint, ZoneName};

/// The generated messages.
#[allow(
    missing_docs,
    reason = "generated; the .proto file says what they mean"
)]
#[allow(
    clippy::large_enum_variant,
    reason = "generated; a message lives for one encoding or decoding, none is kept in number"
)]
pub mod pb {
    include!(concat!(env!("OUT_DIR"), "/cabrank.v1.rs"));
}

/// Why bytes are no message. Nothing was changed by trying.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ProtoError {
    /// Not Protobuf, or a field of another kind.
    #[error("not a message of cabrank.v1.proto: {0}")]
    Malformed(#[from] prost::DecodeError),
    /// A field that must be there is not, or holds nothing of ours.
    #[error("{field} is missing or has an unknown value")]
    Missing {
        /// Which.
        field: &'static str,
    },
    /// A field's text or number is not allowed.
    #[error("{field}: {why}")]
    Bad {
        /// Which.
        field: &'static str,
        /// What is wrong.
        why: String,
    },
}

type Decoded<T> = Result<T, ProtoError>;

fn missing(field: &'static str) -> ProtoError {
    ProtoError::Missing { field }
}

fn parse<T: FromStr<Err = crate::BadId>>(field: &'static str, text: &str) -> Decoded<T> {
    text.parse().map_err(|error: crate::BadId| ProtoError::Bad {
        field,
        why: error.to_string(),
    })
}

/// An enumeration whose names stand in both contracts, as a table in the order of the contract.
macro_rules! names {
    ($encode:ident, $decode:ident, $ours:ty, $theirs:ident, $field:literal, $($one:ident = $other:ident),+ $(,)?) => {
        fn $encode(value: $ours) -> i32 {
            match value { $( <$ours>::$one => pb::$theirs::$other as i32, )+ }
        }
        fn $decode(value: i32) -> Decoded<$ours> {
            match pb::$theirs::try_from(value) {
                $( Ok(pb::$theirs::$other) => Ok(<$ours>::$one), )+
                Ok(pb::$theirs::Unspecified) | Err(_) => Err(missing($field)),
            }
        }
    };
}

names!(
    class_out,
    class_in,
    VehicleClass,
    VehicleClass,
    "class",
    Economy = Economy,
    Comfort = Comfort,
    Xl = Xl,
    Wheelchair = Wheelchair
);
names!(
    stage_out,
    stage_in,
    wire::RideStage,
    RideStage,
    "stage",
    Waiting = Waiting,
    Offered = Offered,
    EnRoute = EnRoute,
    Arrived = Arrived,
    Started = Started,
    Completed = Completed,
    Cancelled = Cancelled,
    Unfulfilled = Unfulfilled
);
names!(
    by_out,
    by_in,
    CancelledBy,
    CancelledBy,
    "cancelled_by",
    Rider = Rider,
    Ops = Ops,
    NoShow = NoShow
);
names!(
    result_out,
    result_in,
    wire::WireResult,
    Result,
    "result",
    Done = Done,
    AlreadyDone = AlreadyDone,
    Refused = Refused,
    Unknown = Unknown
);
names!(
    why_out,
    why_in,
    RefusedBecause,
    RefusedBecause,
    "why",
    AlreadyRiding = AlreadyRiding,
    KeyReused = KeyReused,
    TooManyKeys = TooManyKeys,
    TooOld = TooOld,
    ShardFull = ShardFull,
    CancelledBefore = CancelledBefore,
    OutOfArea = OutOfArea,
    UnknownRide = UnknownRide,
    NotYours = NotYours,
    Lapsed = Lapsed,
    Ended = Ended,
    AlreadyStarted = AlreadyStarted,
    NotStarted = NotStarted,
    NotAccepted = NotAccepted,
    AlreadyAccepted = AlreadyAccepted,
    OldSession = OldSession,
    NotOnline = NotOnline,
    Suspended = Suspended,
    TooManyBlocks = TooManyBlocks,
    TooManyMarked = TooManyMarked,
    InTransfer = InTransfer,
    BadSettings = BadSettings,
    HasRide = HasRide,
    QueueFull = QueueFull
);
names!(
    ping_why_out,
    ping_why_in,
    wire::PingRefusal,
    PingRefusal,
    "reason",
    BadCoordinates = PingBadCoordinates,
    FromTheFuture = PingFromTheFuture,
    TooOld = PingTooOld,
    OutOfOrder = PingOutOfOrder,
    ImpossibleSpeed = PingImpossibleSpeed,
    BadAccuracy = PingBadAccuracy,
    TooMany = PingTooMany,
    NotOnline = PingNotOnline,
    IndexFull = PingIndexFull
);

fn place_out(place: Place) -> pb::Place {
    pb::Place {
        lat: place.0.lat_deg(),
        lon: place.0.lon_deg(),
    }
}

fn place_in(field: &'static str, place: Option<pb::Place>) -> Decoded<Place> {
    place_opt_in(field, place)?.ok_or(missing(field))
}

fn place_opt_in(field: &'static str, place: Option<pb::Place>) -> Decoded<Option<Place>> {
    place
        .map(|at| {
            cabrank_geo::Point::new(at.lat, at.lon)
                .map(Place)
                .map_err(|error| ProtoError::Bad {
                    field,
                    why: error.to_string(),
                })
        })
        .transpose()
}

fn ping_out(ping: &wire::Ping) -> pb::Ping {
    let wire::Ping {
        lat,
        lon,
        time,
        seq,
        accuracy,
    } = *ping;
    pb::Ping {
        lat,
        lon,
        time,
        seq,
        accuracy,
    }
}

fn ping_in(ping: pb::Ping) -> wire::Ping {
    let pb::Ping {
        lat,
        lon,
        time,
        seq,
        accuracy,
    } = ping;
    wire::Ping {
        lat,
        lon,
        time,
        seq,
        accuracy,
    }
}

fn outcome_out(outcome: &wire::OutcomeMessage) -> pb::Outcome {
    pb::Outcome {
        id: outcome.id.clone(),
        result: result_out(outcome.result),
        why: outcome.why.map(why_out),
        ride: outcome.ride.map(|ride| ride.to_string()),
        session: outcome.session.map(|session| session.0),
    }
}

fn outcome_in(outcome: pb::Outcome) -> Decoded<wire::OutcomeMessage> {
    Ok(wire::OutcomeMessage {
        id: outcome.id,
        result: result_in(outcome.result)?,
        why: outcome.why.map(why_in).transpose()?,
        ride: outcome.ride.map(|ride| parse("ride", &ride)).transpose()?,
        session: outcome.session.map(SessionId),
    })
}

fn ride_out(ride: &wire::RideView) -> pb::Ride {
    pb::Ride {
        ride: ride.ride.to_string(),
        ride_seq: ride.ride_seq,
        stage: stage_out(ride.stage),
        rider: ride.rider.to_string(),
        pickup: Some(place_out(ride.pickup)),
        dropoff: ride.dropoff.map(place_out),
        class: class_out(ride.class),
        requested_at: ride.requested_at.0,
        driver: ride.driver.as_ref().map(|driver| driver.to_string()),
        attempt: ride.attempt,
        cancelled_by: ride.cancelled_by.map(by_out),
        reason: ride.reason.as_ref().map(|why| why.as_str().to_owned()),
        swap_asked: ride.swap_asked.as_deref().map(|asked| pb::SwapAsked {
            gain_s: asked.gain_s,
            answer_by: asked.answer_by.0,
        }),
        swap: ride.swap.as_ref().map(|swap| pb::Swap {
            before: swap.before.to_string(),
            gained_s: swap.gained_s,
            instead_of: swap.instead_of.map(|ride| ride.to_string()),
        }),
        pickup_point: ride.pickup_point.as_ref().map(|point| pb::PickupPoint {
            zone: point.zone.to_string(),
            name: point.name.to_string(),
            at: Some(place_out(point.at)),
            asked: Some(place_out(point.asked)),
        }),
    }
}

fn ride_in(ride: pb::Ride) -> Decoded<wire::RideView> {
    Ok(wire::RideView {
        ride: parse("ride", &ride.ride)?,
        ride_seq: ride.ride_seq,
        stage: stage_in(ride.stage)?,
        rider: parse("rider", &ride.rider)?,
        pickup: place_in("pickup", ride.pickup)?,
        dropoff: place_opt_in("dropoff", ride.dropoff)?,
        class: class_in(ride.class)?,
        requested_at: Time(ride.requested_at),
        driver: ride
            .driver
            .map(|driver| parse("driver", &driver))
            .transpose()?,
        attempt: ride.attempt,
        cancelled_by: ride.cancelled_by.map(by_in).transpose()?,
        reason: ride.reason.map(reason_in).transpose()?,
        swap: ride.swap.map(swap_in).transpose()?,
        swap_asked: ride.swap_asked.map(|asked| {
            Box::new(wire::SwapAskedView {
                gain_s: asked.gain_s,
                answer_by: Time(asked.answer_by),
            })
        }),
        pickup_point: ride.pickup_point.map(pickup_point_in).transpose()?,
    })
}

fn reason_in(text: String) -> Decoded<Reason> {
    Reason::new(&text).map_err(|error| ProtoError::Bad {
        field: "reason",
        why: error.to_string(),
    })
}

fn pickup_point_in(point: pb::PickupPoint) -> Decoded<PickupPoint> {
    let name = |field, text: String| {
        ZoneName::try_from(text).map_err(|error| ProtoError::Bad {
            field,
            why: error.to_string(),
        })
    };
    Ok(PickupPoint {
        zone: name("zone", point.zone)?,
        name: name("name", point.name)?,
        at: place_in("at", point.at)?,
        asked: place_in("asked", point.asked)?,
    })
}

fn swap_in(swap: pb::Swap) -> Decoded<wire::SwapView> {
    let instead_of = swap.instead_of.map(|ride| parse("instead_of", &ride));
    Ok(wire::SwapView {
        before: parse("before", &swap.before)?,
        gained_s: swap.gained_s,
        instead_of: instead_of.transpose()?,
    })
}

/// Writes what a driver's phone sends.
pub fn encode_from_driver(message: &wire::FromDriver) -> Bytes {
    use pb::from_driver::Message as Out;
    use wire::FromDriver as In;
    let about = |id: &String, ride: &RideId, attempt: &u32| pb::AboutHold {
        id: id.clone(),
        ride: ride.to_string(),
        attempt: *attempt,
    };
    let out = match message {
        In::Ping(ping) => Out::Ping(ping_out(ping)),
        In::Pings { pings } => Out::Pings(pb::Pings {
            pings: pings.iter().map(ping_out).collect(),
        }),
        In::Online {
            id,
            session,
            classes,
        } => Out::Online(pb::Online {
            id: id.clone(),
            session: session.map(|session| session.0),
            classes: classes.classes().into_iter().map(class_out).collect(),
        }),
        In::Offline { id, session } => Out::Offline(pb::Offline {
            id: id.clone(),
            session: session.0,
        }),
        In::Received { id, ride, attempt } => Out::Received(about(id, ride, attempt)),
        In::Accept { id, ride, attempt } => Out::Accept(about(id, ride, attempt)),
        In::Decline { id, ride, attempt } => Out::Decline(about(id, ride, attempt)),
        In::Arrived { id, ride, attempt } => Out::Arrived(about(id, ride, attempt)),
        In::Started { id, ride, attempt } => Out::Started(about(id, ride, attempt)),
        In::Completed { id, ride, attempt } => Out::Completed(about(id, ride, attempt)),
        In::Cancel { id, ride, attempt } => Out::Cancel(about(id, ride, attempt)),
    };
    pb::FromDriver { message: Some(out) }.encode_to_vec().into()
}

/// Reads what a driver's phone sent.
pub fn decode_from_driver(bytes: &[u8]) -> Decoded<wire::FromDriver> {
    use pb::from_driver::Message as In;
    use wire::FromDriver as Out;
    let ride = |about: &pb::AboutHold| parse("ride", &about.ride);
    Ok(
        match pb::FromDriver::decode(bytes)?
            .message
            .ok_or(missing("message"))?
        {
            In::Ping(ping) => Out::Ping(ping_in(ping)),
            In::Pings(pings) => Out::Pings {
                pings: pings.pings.into_iter().map(ping_in).collect(),
            },
            In::Online(online) => {
                let classes: Vec<VehicleClass> = online
                    .classes
                    .into_iter()
                    .map(class_in)
                    .collect::<Decoded<_>>()?;
                Out::Online {
                    id: online.id,
                    session: online.session.map(SessionId),
                    classes: ClassSet::of(&classes).unwrap_or_default(),
                }
            }
            In::Offline(offline) => Out::Offline {
                id: offline.id,
                session: SessionId(offline.session),
            },
            In::Received(a) => Out::Received {
                ride: ride(&a)?,
                id: a.id,
                attempt: a.attempt,
            },
            In::Accept(a) => Out::Accept {
                ride: ride(&a)?,
                id: a.id,
                attempt: a.attempt,
            },
            In::Decline(a) => Out::Decline {
                ride: ride(&a)?,
                id: a.id,
                attempt: a.attempt,
            },
            In::Arrived(a) => Out::Arrived {
                ride: ride(&a)?,
                id: a.id,
                attempt: a.attempt,
            },
            In::Started(a) => Out::Started {
                ride: ride(&a)?,
                id: a.id,
                attempt: a.attempt,
            },
            In::Completed(a) => Out::Completed {
                ride: ride(&a)?,
                id: a.id,
                attempt: a.attempt,
            },
            In::Cancel(a) => Out::Cancel {
                ride: ride(&a)?,
                id: a.id,
                attempt: a.attempt,
            },
        },
    )
}

/// Writes what a gateway sends to a driver.
pub fn encode_to_driver(message: &wire::ToDriver) -> Bytes {
    use pb::to_driver::Message as Out;
    use wire::ToDriver as In;
    let out = match message {
        In::Welcome {
            driver,
            time,
            heartbeat_s,
            pings_per_second,
        } => Out::Welcome(pb::WelcomeDriver {
            driver: driver.to_string(),
            time: time.0,
            heartbeat_s: *heartbeat_s,
            pings_per_second: *pings_per_second,
        }),
        In::Outcome(outcome) => Out::Outcome(outcome_out(outcome)),
        In::Offer {
            ride,
            attempt,
            pickup,
            dropoff,
            class,
            receipt_by,
            answer_ms,
        } => Out::Offer(pb::Offer {
            ride: ride.to_string(),
            attempt: *attempt,
            pickup: Some(place_out(*pickup)),
            dropoff: dropoff.map(place_out),
            class: class_out(*class),
            receipt_by: receipt_by.0,
            answer_ms: *answer_ms,
        }),
        In::Withdrawn { ride, attempt } => Out::Withdrawn(pb::Withdrawn {
            ride: ride.to_string(),
            attempt: *attempt,
        }),
        In::Ride(ride) => Out::Ride(ride_out(ride)),
        In::Released {
            ride,
            attempt,
            stage,
        } => Out::Released(pb::Released {
            ride: ride.to_string(),
            attempt: *attempt,
            stage: stage_out(*stage),
        }),
        In::PingRefused {
            seq,
            reason,
            refused,
        } => Out::PingRefused(pb::PingRefused {
            seq: *seq,
            reason: ping_why_out(*reason),
            refused: *refused,
        }),
        In::HeadTo(hint) => Out::HeadTo(pb::HeadTo {
            to: Some(place_out(hint.to)),
            cell: hint.cell.clone(),
            expected: hint.expected,
            free: hint.free,
            until: hint.until.0,
        }),
        In::Queue(queue) => Out::Queue(pb::Queue {
            airport: queue.airport.to_string(),
            position: queue.position,
            waiting: queue.waiting,
            is_full: queue.is_full,
        }),
        In::Move { after_ms } => Out::Move(pb::Move {
            after_ms: *after_ms,
        }),
        In::Error { message } => Out::Error(pb::Error {
            message: message.clone(),
        }),
    };
    pb::ToDriver { message: Some(out) }.encode_to_vec().into()
}

/// Reads what a gateway sent to a driver.
pub fn decode_to_driver(bytes: &[u8]) -> Decoded<wire::ToDriver> {
    use pb::to_driver::Message as In;
    use wire::ToDriver as Out;
    Ok(
        match pb::ToDriver::decode(bytes)?
            .message
            .ok_or(missing("message"))?
        {
            In::Welcome(m) => Out::Welcome {
                driver: parse("driver", &m.driver)?,
                time: Time(m.time),
                heartbeat_s: m.heartbeat_s,
                pings_per_second: m.pings_per_second,
            },
            In::Outcome(m) => Out::Outcome(outcome_in(m)?),
            In::Offer(m) => Out::Offer {
                ride: parse("ride", &m.ride)?,
                attempt: m.attempt,
                pickup: place_in("pickup", m.pickup)?,
                dropoff: place_opt_in("dropoff", m.dropoff)?,
                class: class_in(m.class)?,
                receipt_by: Time(m.receipt_by),
                answer_ms: m.answer_ms,
            },
            In::Withdrawn(m) => Out::Withdrawn {
                ride: parse("ride", &m.ride)?,
                attempt: m.attempt,
            },
            In::Ride(m) => Out::Ride(ride_in(m)?),
            In::Released(m) => Out::Released {
                ride: parse("ride", &m.ride)?,
                attempt: m.attempt,
                stage: stage_in(m.stage)?,
            },
            In::PingRefused(m) => Out::PingRefused {
                seq: m.seq,
                reason: ping_why_in(m.reason)?,
                refused: m.refused,
            },
            In::HeadTo(hint) => Out::HeadTo(wire::HeadToView {
                to: place_in("to", hint.to)?,
                cell: hint.cell,
                expected: hint.expected,
                free: hint.free,
                until: Time(hint.until),
            }),
            In::Queue(queue) => Out::Queue(wire::QueueView {
                airport: ZoneName::try_from(queue.airport).map_err(|error| ProtoError::Bad {
                    field: "airport",
                    why: error.to_string(),
                })?,
                position: queue.position,
                waiting: queue.waiting,
                is_full: queue.is_full,
            }),
            In::Move(m) => Out::Move {
                after_ms: m.after_ms,
            },
            In::Error(m) => Out::Error { message: m.message },
        },
    )
}

/// Writes what a rider's phone sends.
pub fn encode_from_rider(message: &wire::FromRider) -> Bytes {
    use pb::from_rider::Message as Out;
    let wire::FromRider::Cancel { id, ride } = message;
    let out = Out::Cancel(pb::CancelRide {
        id: id.clone(),
        ride: ride.to_string(),
    });
    pb::FromRider { message: Some(out) }.encode_to_vec().into()
}

/// Reads what a rider's phone sent.
pub fn decode_from_rider(bytes: &[u8]) -> Decoded<wire::FromRider> {
    use pb::from_rider::Message as In;
    Ok(
        match pb::FromRider::decode(bytes)?
            .message
            .ok_or(missing("message"))?
        {
            In::Cancel(m) => wire::FromRider::Cancel {
                ride: parse("ride", &m.ride)?,
                id: m.id,
            },
        },
    )
}

/// Writes what a gateway sends to a rider.
pub fn encode_to_rider(message: &wire::ToRider) -> Bytes {
    use pb::to_rider::Message as Out;
    use wire::ToRider as In;
    let out = match message {
        In::Welcome {
            rider,
            time,
            heartbeat_s,
        } => Out::Welcome(pb::WelcomeRider {
            rider: rider.to_string(),
            time: time.0,
            heartbeat_s: *heartbeat_s,
        }),
        In::Outcome(outcome) => Out::Outcome(outcome_out(outcome)),
        In::Ride(ride) => Out::Ride(ride_out(ride)),
        In::CarsNear { ride, cars } => Out::CarsNear(pb::CarsNear {
            ride: ride.to_string(),
            cars: cars.iter().map(car_out).collect(),
        }),
        In::DriverAt {
            ride,
            at,
            age_ms,
            remaining_s,
        } => Out::DriverAt(pb::DriverAt {
            ride: ride.to_string(),
            at: Some(place_out(*at)),
            age_ms: *age_ms,
            remaining_s: *remaining_s,
        }),
        In::Move { after_ms } => Out::Move(pb::Move {
            after_ms: *after_ms,
        }),
        In::Error { message } => Out::Error(pb::Error {
            message: message.clone(),
        }),
    };
    pb::ToRider { message: Some(out) }.encode_to_vec().into()
}

/// Reads what a gateway sent to a rider.
pub fn decode_to_rider(bytes: &[u8]) -> Decoded<wire::ToRider> {
    use pb::to_rider::Message as In;
    use wire::ToRider as Out;
    Ok(
        match pb::ToRider::decode(bytes)?
            .message
            .ok_or(missing("message"))?
        {
            In::Welcome(m) => Out::Welcome {
                rider: parse("rider", &m.rider)?,
                time: Time(m.time),
                heartbeat_s: m.heartbeat_s,
            },
            In::Outcome(m) => Out::Outcome(outcome_in(m)?),
            In::Ride(m) => Out::Ride(ride_in(m)?),
            In::CarsNear(m) => Out::CarsNear {
                ride: parse("ride", &m.ride)?,
                cars: m.cars.into_iter().map(car_in).collect::<Decoded<_>>()?,
            },
            In::DriverAt(m) => Out::DriverAt {
                ride: parse("ride", &m.ride)?,
                at: place_in("at", m.at)?,
                age_ms: m.age_ms,
                remaining_s: m.remaining_s,
            },
            In::Move(m) => Out::Move {
                after_ms: m.after_ms,
            },
            In::Error(m) => Out::Error { message: m.message },
        },
    )
}

fn car_out(car: &wire::NearCar) -> pb::NearCar {
    pb::NearCar {
        at: Some(place_out(car.at)),
        age_ms: car.age_ms,
        distance_m: car.distance_m,
    }
}

fn car_in(car: pb::NearCar) -> Decoded<wire::NearCar> {
    Ok(wire::NearCar {
        at: place_in("at", car.at)?,
        age_ms: car.age_ms,
        distance_m: car.distance_m,
    })
}
