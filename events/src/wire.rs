//! Messages between phones and gateways: the WebSocket frames and HTTP bodies of `docs/protocol.md`.
//!
//! JSON is the default; the Protobuf subprotocol carries the same messages. A text frame holds one message.

use serde::{Deserialize, Serialize};

use crate::command::{CancelledBy, RefusedBecause};
use crate::event::EndOfRide;
use crate::ids::{
    Attempt, ClassSet, DriverId, IdempotencyKey, Place, Reason, RideId, RiderId, SessionId, Time,
    VehicleClass,
};
use crate::zone::{PickupPoint, ZoneName};

/// Longest message id a client may choose, in bytes.
pub const MESSAGE_ID_BYTES_MAX: usize = 64;

/// One position report as a phone sends it. Raw numbers: the ingest pipeline checks them and says what is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Ping {
    /// Degrees north.
    pub lat: f64,
    /// Degrees east.
    pub lon: f64,
    /// When it was measured, ms since the Unix epoch; the gateway's time of receipt if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<i64>,
    /// Grows with each ping of a session; 0 where a phone does not count.
    #[serde(default)]
    pub seq: u32,
    /// Radius of the 68 % circle in metres, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<f32>,
}

/// What a driver's phone sends. `id` names the message: the same id always gets the same outcome.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FromDriver {
    /// A position; answered only when refused.
    Ping(Ping),
    /// Several positions, oldest first (after a tunnel).
    Pings { pings: Vec<Ping> },
    /// Begin to work, or resume session `session`.
    Online {
        id: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        session: Option<SessionId>,
        #[serde(default)]
        classes: ClassSet,
    },
    /// Stop working.
    Offline { id: String, session: SessionId },
    /// The offer is on the screen.
    Received {
        id: String,
        ride: RideId,
        attempt: Attempt,
    },
    /// Take the ride.
    Accept {
        id: String,
        ride: RideId,
        attempt: Attempt,
    },
    /// Do not take the ride.
    Decline {
        id: String,
        ride: RideId,
        attempt: Attempt,
    },
    /// At the pickup.
    Arrived {
        id: String,
        ride: RideId,
        attempt: Attempt,
    },
    /// The rider is in the car.
    Started {
        id: String,
        ride: RideId,
        attempt: Attempt,
    },
    /// The rider is out of the car.
    Completed {
        id: String,
        ride: RideId,
        attempt: Attempt,
    },
    /// Give the ride back before the pickup.
    Cancel {
        id: String,
        ride: RideId,
        attempt: Attempt,
    },
}

/// What became of a message of the client's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OutcomeMessage {
    /// The client's message id.
    pub id: String,
    /// `done`, `already_done`, `refused` or `unknown` (not known yet: repeat with the same id).
    pub result: WireResult,
    /// Why it was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<RefusedBecause>,
    /// The ride it was about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ride: Option<RideId>,
    /// The session that is now open (answer to `online`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionId>,
}

/// See [`OutcomeMessage::result`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WireResult {
    /// It changed what it meant to change, and that is committed.
    Done,
    /// An earlier message had done it.
    AlreadyDone,
    /// Nothing changed; see `why`.
    Refused,
    /// No outcome in time: repeat with the same id.
    Unknown,
}

/// Where a ride is in its life, as riders and drivers see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RideStage {
    /// A driver is being looked for.
    Waiting,
    /// A driver is being asked.
    Offered,
    /// The driver is on the way to the pickup.
    EnRoute,
    /// The driver is at the pickup.
    Arrived,
    /// The rider is in the car.
    Started,
    /// An end.
    Completed,
    /// An end.
    Cancelled,
    /// An end.
    Unfulfilled,
}

impl RideStage {
    /// Is it one of the three ends?
    pub fn is_end(self) -> bool {
        matches!(self, Self::Completed | Self::Cancelled | Self::Unfulfilled)
    }
}

impl From<EndOfRide> for RideStage {
    fn from(end: EndOfRide) -> Self {
        match end {
            EndOfRide::Completed => Self::Completed,
            EndOfRide::Cancelled => Self::Cancelled,
            EndOfRide::Unfulfilled => Self::Unfulfilled,
        }
    }
}

/// A question to the driver on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct SwapAskedView {
    /// How many seconds all riders of the exchange would wait less together.
    pub gain_s: i64,
    /// No answer by then: the driver keeps the ride.
    pub answer_by: Time,
}

/// A ride as the people in it see it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct RideView {
    /// The ride.
    pub ride: RideId,
    /// Its newest event's number: a view with a lower one is older.
    pub ride_seq: u32,
    /// Where it is in its life.
    pub stage: RideStage,
    /// Who rides.
    pub rider: RiderId,
    /// Where to be fetched.
    pub pickup: Place,
    /// Where to, if told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dropoff: Option<Place>,
    /// What car.
    pub class: VehicleClass,
    /// When the rider first asked.
    pub requested_at: Time,
    /// The driver, once assigned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver: Option<DriverId>,
    /// The hold's attempt, once a driver is held: drivers repeat it in every message about the ride.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<Attempt>,
    /// Who called it off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cancelled_by: Option<CancelledBy>,
    /// Why, in the words of the service that called it off: for the rider to read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// The newest exchange of drivers, while the driver it brought has not arrived.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub swap: Option<SwapView>,
    /// The driver is asked whether the ride may go to another one: `accept` or `decline` it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub swap_asked: Option<Box<SwapAskedView>>,
    /// The pickup point of a zone, when that and not the place asked for is the pickup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pickup_point: Option<PickupPoint>,
}

/// Another driver comes than the one that was promised, and why that is good.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct SwapView {
    /// Who was on the way before.
    pub before: DriverId,
    /// By how many seconds the rider is fetched sooner, as estimated; negative: later, for other riders' sake.
    pub gained_s: i64,
    /// The ride that the driver who comes now was on the way to: this one takes its place. Absent: the driver was free.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instead_of: Option<RideId>,
}

/// What a gateway sends to a driver's phone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToDriver {
    /// First message of a session.
    Welcome {
        driver: DriverId,
        /// Domain time of the server.
        time: Time,
        /// The server pings the socket this often, in seconds; a socket that stays silent for longer is closed (4408).
        heartbeat_s: u32,
        /// More pings a second than this are refused.
        pings_per_second: u32,
    },
    /// What became of a message.
    Outcome(OutcomeMessage),
    /// Will you take this ride? Confirm with `received` at once, then `accept` or `decline`.
    Offer {
        ride: RideId,
        attempt: Attempt,
        pickup: Place,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        dropoff: Option<Place>,
        class: VehicleClass,
        /// Domain time by which `received` must be in.
        receipt_by: Time,
        /// Time to answer after the receipt, in ms.
        answer_ms: u64,
    },
    /// The offer is over; forget it.
    Withdrawn { ride: RideId, attempt: Attempt },
    /// The ride you hold has changed (also sent when a session resumes).
    Ride(RideView),
    /// The ride you held is over or somebody else's.
    Released {
        ride: RideId,
        attempt: Attempt,
        stage: RideStage,
    },
    /// A ping was refused; `refused` counts those since the last such message (sent at most once a second).
    PingRefused {
        seq: u32,
        reason: PingRefusal,
        refused: u32,
    },
    /// Your place in an airport's queue, when it has changed.
    Queue(QueueView),
    /// Advice while you have no ride: more rides are expected there than cars are free. Nothing depends on whether you go.
    HeadTo(HeadToView),
    /// This gateway is going down: connect again, after `after_ms` at the earliest.
    Move { after_ms: u64 },
    /// The message could not be understood; the session goes on.
    Error { message: String },
}

/// Where more rides are expected than cars are free.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeadToView {
    /// The middle of the cell.
    pub to: Place,
    /// The H3 cell.
    pub cell: String,
    /// Rides expected to be asked for there in the next quarter hour.
    pub expected: f64,
    /// Cars that are free there.
    pub free: u32,
    /// Until when it is meant, on the domain clock; no other comes before.
    pub until: Time,
}

/// A driver's place in an airport's queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueView {
    /// The airport.
    pub airport: ZoneName,
    /// 1: the next to be asked. Absent: no place, or none any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<u32>,
    /// How many drivers wait there.
    pub waiting: u32,
    /// There is no place because as many wait as allowed; the gateway tries again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_full: bool,
}

/// What a rider's phone sends on its socket. Asking for a ride is HTTP (`POST /v1/rides`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FromRider {
    /// Call the ride off.
    Cancel { id: String, ride: RideId },
}

/// What a gateway sends to a rider's phone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToRider {
    /// First message of a session.
    Welcome {
        rider: RiderId,
        /// Domain time of the server.
        time: Time,
        /// The server pings the socket this often, in seconds; a socket that stays silent for longer is closed (4408).
        heartbeat_s: u32,
    },
    /// What became of a message.
    Outcome(OutcomeMessage),
    /// Your ride has changed (also sent when a session resumes).
    Ride(RideView),
    /// Free cars near the pickup while you wait.
    CarsNear { ride: RideId, cars: Vec<NearCar> },
    /// Where your driver is.
    DriverAt {
        ride: RideId,
        at: Place,
        /// Age of the position in ms.
        age_ms: i64,
        /// Estimated time to the pickup (before the start) or to the drop-off (after), in seconds.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        remaining_s: Option<u32>,
    },
    /// This gateway is going down: connect again, after `after_ms` at the earliest.
    Move { after_ms: u64 },
    /// The message could not be understood; the session goes on.
    Error { message: String },
}

/// A car without its driver's name: riders may see cars, not people.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct NearCar {
    /// Where.
    pub at: Place,
    /// Age of the position in ms.
    pub age_ms: i64,
    /// Straight-line distance in metres.
    pub distance_m: f64,
}

/// Why a ping changed nothing. It spoils itself only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PingRefusal {
    /// Latitude or longitude outside its range, or not a number.
    BadCoordinates,
    /// Its time lies further ahead than clocks may differ.
    FromTheFuture,
    /// Its time lies further back than a position is worth anything.
    TooOld,
    /// Older than, or the same as, the newest ping of this driver.
    OutOfOrder,
    /// The distance from the last position would need an impossible speed.
    ImpossibleSpeed,
    /// The phone itself does not know where it is.
    BadAccuracy,
    /// More pings a second than allowed.
    TooMany,
    /// The driver is not online.
    NotOnline,
    /// The index holds as many drivers as allowed.
    IndexFull,
}

impl PingRefusal {
    /// All reasons, in the order of their counters.
    pub const ALL: [PingRefusal; 9] = [
        Self::BadCoordinates,
        Self::FromTheFuture,
        Self::TooOld,
        Self::OutOfOrder,
        Self::ImpossibleSpeed,
        Self::BadAccuracy,
        Self::TooMany,
        Self::NotOnline,
        Self::IndexFull,
    ];

    /// The name used in messages, metrics and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::BadCoordinates => "bad_coordinates",
            Self::FromTheFuture => "from_the_future",
            Self::TooOld => "too_old",
            Self::OutOfOrder => "out_of_order",
            Self::ImpossibleSpeed => "impossible_speed",
            Self::BadAccuracy => "bad_accuracy",
            Self::TooMany => "too_many",
            Self::NotOnline => "not_online",
            Self::IndexFull => "index_full",
        }
    }
}

/// Body of `POST /v1/rides`; the key comes in the header `Idempotency-Key`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct RideRequest {
    /// Where to be fetched.
    pub pickup: Place,
    /// Where to, if known.
    #[serde(default)]
    pub dropoff: Option<Place>,
    /// What car.
    #[serde(default)]
    pub class: VehicleClass,
    /// When the rider first tried (domain time): a client that retries repeats it.
    #[serde(default)]
    pub issued_at: Option<Time>,
}

/// Answer to `POST /v1/rides` (201: new; 200: this key's ride, opened earlier).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct RideOpened {
    /// The ride.
    pub ride: RideId,
    /// The key it was asked with.
    pub key: IdempotencyKey,
    /// Where the rider is fetched instead, when the place they asked for lies in a zone with pickup points.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pickup_point: Option<PickupPoint>,
}

/// Body of `POST /v1/quote`: a ride somebody thinks of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct QuoteRequest {
    /// Where to be fetched.
    pub pickup: Place,
    /// Where to, if known.
    #[serde(default)]
    pub dropoff: Option<Place>,
    /// What car.
    #[serde(default)]
    pub class: VehicleClass,
}

/// Answer of `POST /v1/quote`. Nothing is promised by it and nothing kept for the rider.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Quote {
    /// Where the rider would be fetched.
    pub pickup: Place,
    /// That is the pickup point of a zone and not the place asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pickup_point: Option<PickupPoint>,
    /// The airport it lies at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub airport: Option<ZoneName>,
    /// Free cars near, at most 20 are counted.
    pub cars_near: u32,
    /// Seconds until a car would be there; absent when nothing honest can be said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pickup_time: Option<PickupTime>,
    /// Estimated seconds of the drive to the drop-off, if that was told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drive_s: Option<u32>,
    /// When this was true (domain time).
    pub at: Time,
}

/// How long until a car is there, counted from the request.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct PickupTime {
    /// As many come sooner as later.
    pub likely_s: u32,
    /// Between this
    pub low_s: u32,
    /// and this lies `share` of the pickups, of rides that are fetched at all.
    pub high_s: u32,
    /// The share that `low_s` to `high_s` is to hold.
    pub share: f64,
    /// How many rides of late this was learned from; 0: a wide guess, nothing is known yet.
    pub rides: u32,
    /// The part of those rides that was fetched; the others were called off or found no driver.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fetched: Option<f64>,
}

/// Every HTTP error's body (RFC 9457 shape, `application/problem+json`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Problem {
    /// Machine-readable name, `urn:cabrank:problem:already_riding`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The same in words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What to do about it.
    pub detail: String,
}

/// Answer of `GET /v1/nearby`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Nearby {
    /// Nearest first.
    pub cars: Vec<NearCar>,
    /// Present and true while the log cannot be reached: nobody can vouch for the answer, and no car can be asked for.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unconfirmed: bool,
}
