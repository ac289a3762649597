//! Inputs of the engine. Each command names the entity it is for; [`Command::entity`] gives it.
//!
//! External commands come from people and carry a [`CommandId`], which gets exactly one outcome. Internal ones
//! travel between shards in the log (or hop inside one transaction) and carry the shard they come from.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::event::{EndOfRide, LeaveReason};
use crate::ids::{
    ClassSet, CommandId, DriverId, HoldId, IdempotencyKey, NodeName, Place, Reason, RideId,
    RiderId, SessionId, ShardId, Time, VehicleClass,
};
use crate::traceparent::TraceParent;
use crate::zone::{PickupPoint, ZoneFinding, ZoneName};

/// The version of the command records this code writes. It reads one below and one above (PROTOCOL 9).
pub const COMMAND_VERSION: u16 = 1;

/// A command as it stands in the log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CommandRecord {
    /// Version of the record's layout.
    pub v: u16,
    /// Who waits for the outcome; present on external commands only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<CommandId>,
    /// When the issuer first tried, on the domain clock; the same in every retry.
    pub issued_at: Time,
    /// The sending shard, on internal commands that went through the log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<ShardId>,
    /// Why a person at the desk wants it, in their own words; older records lack it. Nothing depends on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// The trace it belongs to, if that is recorded. Nothing depends on it.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "crate::traceparent::lenient"
    )]
    pub traceparent: Option<TraceParent>,
    /// What is asked.
    #[serde(flatten)]
    pub command: Command,
}

impl CommandRecord {
    /// An external command.
    pub fn external(id: CommandId, issued_at: Time, command: Command) -> Self {
        Self {
            v: COMMAND_VERSION,
            id: Some(id),
            issued_at,
            from: None,
            reason: None,
            traceparent: None,
            command,
        }
    }

    /// The same, as part of a trace.
    pub fn traced(self, traceparent: Option<TraceParent>) -> Self {
        Self {
            traceparent,
            ..self
        }
    }

    /// The same, and why it is wanted.
    pub fn because(self, reason: Option<Reason>) -> Self {
        Self { reason, ..self }
    }

    /// A message from one shard to another through the log.
    pub fn internal(from: ShardId, at: Time, command: Command) -> Self {
        Self {
            v: COMMAND_VERSION,
            id: None,
            issued_at: at,
            from: Some(from),
            reason: None,
            traceparent: None,
            command,
        }
    }
}

/// The state machine a command is for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EntityId {
    /// Lives in its place shard.
    Ride(RideId),
    /// Lives by id.
    Driver(DriverId),
    /// Lives by id.
    Rider(RiderId),
    /// What an operator has set for the market while it runs: one for each log, on [`MARKET_SHARD`].
    Market,
}

/// Where the market's own state lives. Every node hears its events, whichever shards are its own.
pub const MARKET_SHARD: ShardId = ShardId(0);

impl std::fmt::Display for EntityId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            EntityId::Ride(ride) => write!(f, "ride/{ride}"),
            EntityId::Driver(driver) => write!(f, "driver/{driver}"),
            EntityId::Rider(rider) => write!(f, "rider/{rider}"),
            EntityId::Market => f.write_str("market"),
        }
    }
}

impl std::str::FromStr for EntityId {
    type Err = crate::ids::BadId;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('/') {
            Some(("ride", id)) => Ok(EntityId::Ride(id.parse()?)),
            Some(("driver", id)) => Ok(EntityId::Driver(id.parse()?)),
            Some(("rider", id)) => Ok(EntityId::Rider(id.parse()?)),
            None if text == "market" => Ok(EntityId::Market),
            _ => Err(crate::ids::BadId::Malformed {
                what: "entity",
                found: text.chars().take(crate::ids::ID_BYTES_MAX).collect(),
                expected: "ride/…, driver/…, rider/… or market",
            }),
        }
    }
}

/// Who cancels a ride.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CancelledBy {
    /// The rider.
    Rider,
    /// A person at the operator's desk.
    Ops,
    /// The driver waited at the pickup until the no-show time was over.
    NoShow,
}

/// Why a driver's entity did not grant a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ClaimRefusal {
    /// Another ride (or another attempt of this one) holds the driver.
    Held,
    /// The driver is not online.
    Offline,
    /// The driver is held and has said they are going home.
    Leaving,
    /// The driver may not be offered rides.
    Suspended,
    /// The driver's car is not of the class asked for.
    WrongClass,
    /// The driver is kept apart from this rider.
    Blocked,
}

/// What a driver's entity says to a transfer (PROTOCOL 6).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum TransferAnswer {
    /// The new hold stands, the old one is over.
    Moved { hold_number: u64 },
    /// The new hold was not given; `stands` says whether the old one is as it was.
    Refused {
        why: ClaimRefusal,
        driver_seq: u64,
        stands: bool,
    },
}

/// From the ring of so many shards to that of more (PROTOCOL 30). Shards only grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub struct Growth {
    /// Shards before.
    pub from: u16,
    /// Shards after.
    pub to: u16,
}

// Ordered: what comes first is the least.
/// How far a growth is.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum GrowthStep {
    /// Partitions may be added; nothing goes to them yet.
    Announced,
    /// The new ring is in force, and people move to their new shards.
    Begun,
    /// Everybody lives where the new ring says.
    Settled,
}

/// What shards say to each other while the ring grows. Only through the log, never by a hop.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "word", rename_all = "snake_case")]
pub enum RingWord {
    /// The market's shard to all: messages go by the new ring from now on.
    Adopt,
    /// A shard of the old ring to each of them: nothing more comes from me by the old ring.
    Adopted,
    /// An old shard to a new one: everybody has said so; ask when you want to.
    MayGive,
    /// A new shard to an old one: give me those who are to live here; I send you none of their commands any more.
    Give,
    /// An old shard to itself: go on giving to this one.
    GiveOn { to: ShardId },
    /// Some of those who move, as their states. Parts are numbered from 0.
    People {
        part: u32,
        people: Vec<serde_json::Value>,
    },
    /// They were all, in so many parts. People the old shard has never heard of begin above `number` (PROTOCOL 4).
    Given { parts: u32, number: u64 },
    /// An old shard to all: it has given everybody.
    Finished,
}

/// What becomes of the place that a driver had in an airport's queue when a ride came, now that the ride lets the driver go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PlaceAfter {
    /// The driver had taken the ride: the place is gone.
    #[default]
    Gone,
    /// Nothing came of it, and not for the driver's sake: as it was.
    Kept,
    /// The driver said no, or nothing: as `engine.queues.after_decline` says.
    TurnedDown,
}

impl PlaceAfter {
    fn is_gone(&self) -> bool {
        *self == PlaceAfter::Gone
    }
}

/// What a rider's shard tells the place shard of a ride to open.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OpenRide {
    /// Minted by the rider's shard.
    pub ride: RideId,
    /// Who rides.
    pub rider: RiderId,
    /// The wish it came from.
    pub key: IdempotencyKey,
    /// Where to be fetched.
    pub pickup: Place,
    /// Where to, if told.
    pub dropoff: Option<Place>,
    /// What car.
    pub class: VehicleClass,
    /// When the rider first asked.
    pub issued_at: Time,
    /// The pickup point it was moved to; older records lack it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pickup_point: Option<Box<PickupPoint>>,
    /// The airport it begins at; older records lack it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub airport: Option<ZoneName>,
}

/// An input of the engine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", content = "data", rename_all = "snake_case")]
pub enum Command {
    // -- for a rider -------------------------------------------------------------------------------------
    /// A rider asks for a ride (external).
    RequestRide {
        rider: RiderId,
        key: IdempotencyKey,
        /// As the rider asked; the ride's pickup may be another one by `zone`.
        pickup: Place,
        dropoff: Option<Place>,
        class: VehicleClass,
        /// What the zones say about the pickup; no part of what a retry is compared by. Older records lack it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        zone: Option<Box<ZoneFinding>>,
        /// The airport the pickup lies at; no part of what a retry is compared by, either. Older records lack it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        airport: Option<ZoneName>,
    },
    /// A rider takes back a wish, by its key, whether or not it was seen before (external).
    CancelByKey { rider: RiderId, key: IdempotencyKey },
    /// The place shard opened the ride.
    RideOpened {
        rider: RiderId,
        key: IdempotencyKey,
        ride: RideId,
    },
    /// The place shard did not open the ride.
    OpenRefused {
        rider: RiderId,
        key: IdempotencyKey,
        ride: RideId,
        why: RefusedBecause,
    },
    /// The ride came to its end; the rider is free.
    RideClosed {
        rider: RiderId,
        key: IdempotencyKey,
        ride: RideId,
        end: EndOfRide,
    },

    // -- for a ride --------------------------------------------------------------------------------------
    /// The rider's shard asks the place shard to open a ride.
    OpenRide(OpenRide),
    /// Rider or operator calls the ride off (external, or by key through the rider's shard).
    CancelRide {
        ride: RideId,
        by: CancelledBy,
        rider: Option<RiderId>,
        /// What the rider is told, if anything; older records lack it. Nothing depends on it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<Reason>,
    },
    /// The rider, or somebody for them, wants to be brought elsewhere (external).
    ChangeDestination {
        ride: RideId,
        to: Place,
        /// The rider who asks; absent: the desk.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        rider: Option<RiderId>,
    },
    /// The phone shows the offer: the clock of the answer starts (external).
    ReceiveOffer { hold: HoldId, driver: DriverId },
    /// The driver takes the ride (external).
    AcceptOffer { hold: HoldId, driver: DriverId },
    /// The driver does not want the ride (external).
    DeclineOffer { hold: HoldId, driver: DriverId },
    /// The driver is at the pickup (external).
    Arrive { hold: HoldId, driver: DriverId },
    /// The rider is in the car (external).
    StartRide { hold: HoldId, driver: DriverId },
    /// The rider is out of the car (external).
    CompleteRide { hold: HoldId, driver: DriverId },
    /// The driver gives the ride back before the pickup (external).
    GiveBack { hold: HoldId, driver: DriverId },
    /// The driver's shard grants a claim.
    ClaimGranted {
        hold: HoldId,
        driver: DriverId,
        hold_number: u64,
    },
    /// The driver's shard refuses a claim; `driver_seq` is the driver's event number then (PROTOCOL 4).
    ClaimRefused {
        hold: HoldId,
        driver: DriverId,
        why: ClaimRefusal,
        driver_seq: u64,
    },
    /// The driver's shard answers a transfer of `from` to `hold`; both rides live in this place shard.
    TransferAnswered {
        driver: DriverId,
        from: HoldId,
        hold: HoldId,
        answer: TransferAnswer,
    },
    /// A held driver went offline; the ride alone releases (PROTOCOL 21).
    DriverLeft {
        hold: HoldId,
        driver: DriverId,
        why: LeaveReason,
    },

    // -- for a driver ------------------------------------------------------------------------------------
    /// A driver begins to work (external).
    GoOnline {
        driver: DriverId,
        session: SessionId,
        classes: ClassSet,
    },
    /// A driver stops (external).
    GoOffline {
        driver: DriverId,
        session: SessionId,
    },
    /// The node of the driver's shard has seen no sign of life for long.
    DriverSilent {
        driver: DriverId,
        session: SessionId,
    },
    /// A ride asks to hold the driver.
    ClaimDriver {
        driver: DriverId,
        hold: HoldId,
        class: VehicleClass,
        /// Who rides, for the driver's block list; older records lack it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        rider: Option<RiderId>,
    },
    /// A ride asks for the car that another ride of its place shard holds: only while the driver is held by `from`.
    TransferHold {
        driver: DriverId,
        from: HoldId,
        /// The new hold.
        hold: HoldId,
        class: VehicleClass,
        rider: RiderId,
    },
    /// A person at the desk keeps the driver from work until further notice (external).
    SuspendDriver { driver: DriverId, reason: Reason },
    /// A person at the desk lets the driver work again (external).
    ReinstateDriver { driver: DriverId },
    /// The driver gets no ride of this rider any more (external).
    BlockRider { driver: DriverId, rider: RiderId },
    /// The driver may get rides of this rider again (external).
    UnblockRider { driver: DriverId, rider: RiderId },
    /// The driver wants to go there, or anywhere again (external). For the open session.
    SetHeading { driver: DriverId, to: Option<Place> },
    /// A ride gives a hold back, or takes back a claim whose answer it no longer wants.
    ReleaseDriver {
        driver: DriverId,
        hold: HoldId,
        /// Older records lack it.
        #[serde(default, skip_serializing_if = "PlaceAfter::is_gone")]
        place: PlaceAfter,
    },
    /// The driver waits at an airport for its riders (external). For the open session.
    EnterQueue {
        driver: DriverId,
        session: SessionId,
        airport: ZoneName,
    },
    /// The driver does not wait at that airport any more (external).
    LeaveQueue {
        driver: DriverId,
        session: SessionId,
        airport: ZoneName,
    },

    // -- for the market ----------------------------------------------------------------------------------
    /// A person at the desk changes how rounds choose from now on (external). It takes the place of what was set before;
    /// what it leaves out is as configured.
    SetDispatch {
        /// Written as in the configuration: `{"policy": "rematch", "swaps": {"gain_min_ms": 60000}}`.
        settings: serde_json::Value,
    },
    /// A person at the desk wants a node to hand its shards over and end (external).
    DrainNode { node: NodeName },
    /// An operator wants more shards (external): announced first, and begun once the new partitions are there and served.
    GrowRing { to: u16, step: GrowthStep },

    // -- between shards ----------------------------------------------------------------------------------
    /// The ring grows. Addressed to a shard, whatever entity it concerns.
    Ring { growth: Growth, said: RingWord },
}

impl Command {
    /// The entity that handles this command.
    pub fn entity(&self) -> EntityId {
        use Command::*;
        match self {
            RequestRide { rider, .. }
            | CancelByKey { rider, .. }
            | RideOpened { rider, .. }
            | OpenRefused { rider, .. }
            | RideClosed { rider, .. } => EntityId::Rider(rider.clone()),
            OpenRide(open) => EntityId::Ride(open.ride),
            CancelRide { ride, .. } | ChangeDestination { ride, .. } => EntityId::Ride(*ride),
            ReceiveOffer { hold, .. }
            | AcceptOffer { hold, .. }
            | DeclineOffer { hold, .. }
            | Arrive { hold, .. }
            | StartRide { hold, .. }
            | CompleteRide { hold, .. }
            | GiveBack { hold, .. }
            | ClaimGranted { hold, .. }
            | ClaimRefused { hold, .. }
            | TransferAnswered { hold, .. }
            | DriverLeft { hold, .. } => EntityId::Ride(hold.ride),
            GoOnline { driver, .. }
            | GoOffline { driver, .. }
            | DriverSilent { driver, .. }
            | ClaimDriver { driver, .. }
            | TransferHold { driver, .. }
            | SuspendDriver { driver, .. }
            | ReinstateDriver { driver }
            | BlockRider { driver, .. }
            | UnblockRider { driver, .. }
            | SetHeading { driver, .. }
            | EnterQueue { driver, .. }
            | LeaveQueue { driver, .. }
            | ReleaseDriver { driver, .. } => EntityId::Driver(driver.clone()),
            SetDispatch { .. } | DrainNode { .. } | GrowRing { .. } | Ring { .. } => {
                EntityId::Market
            }
        }
    }

    /// May a person issue it? Internal commands never come from outside.
    pub fn is_external(&self) -> bool {
        use Command::*;
        match self {
            RequestRide { .. }
            | CancelByKey { .. }
            | CancelRide { .. }
            | ChangeDestination { .. }
            | ReceiveOffer { .. }
            | AcceptOffer { .. }
            | DeclineOffer { .. }
            | Arrive { .. }
            | StartRide { .. }
            | CompleteRide { .. }
            | GiveBack { .. }
            | GoOnline { .. }
            | GoOffline { .. }
            | SuspendDriver { .. }
            | ReinstateDriver { .. }
            | BlockRider { .. }
            | UnblockRider { .. }
            | SetHeading { .. }
            | EnterQueue { .. }
            | LeaveQueue { .. }
            | SetDispatch { .. }
            | DrainNode { .. }
            | GrowRing { .. } => true,
            RideOpened { .. }
            | OpenRefused { .. }
            | RideClosed { .. }
            | OpenRide(_)
            | ClaimGranted { .. }
            | ClaimRefused { .. }
            | DriverLeft { .. }
            | DriverSilent { .. }
            | ClaimDriver { .. }
            | TransferHold { .. }
            | TransferAnswered { .. }
            | ReleaseDriver { .. }
            | Ring { .. } => false,
        }
    }
}

/// What became of an external command. Committed before anybody is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "result", rename_all = "snake_case")]
pub enum Outcome {
    /// It changed what it meant to change.
    Done,
    /// An earlier command had done it; nothing changed.
    AlreadyDone,
    /// Nothing changed, and this is why.
    Refused { why: RefusedBecause },
}

/// Why an external command changed nothing. The entity is exactly as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RefusedBecause {
    /// The rider has an active ride; one at a time.
    AlreadyRiding,
    /// The idempotency key was used before with another request.
    KeyReused,
    /// The pickup lies outside of every service area.
    OutOfArea,
    /// The rider has as many remembered keys as allowed; wait until some expire.
    TooManyKeys,
    /// The request is older than the configured patience.
    TooOld,
    /// The shard has as many open rides as allowed, or, while people move to other shards, as many commands that wait for
    /// them; try again later.
    ShardFull,
    /// The key was cancelled before the request came.
    CancelledBefore,
    /// No such ride (or it ended long ago).
    UnknownRide,
    /// The ride belongs to somebody else, or the driver holds no offer for it.
    NotYours,
    /// The offer is over: answered too late, withdrawn, or the hold has moved on.
    Lapsed,
    /// The ride has come to its end.
    Ended,
    /// The ride has begun; what was asked is possible only before.
    AlreadyStarted,
    /// The ride has not begun yet.
    NotStarted,
    /// The offer must be accepted first.
    NotAccepted,
    /// The offer was accepted already; to give the ride back is another message.
    AlreadyAccepted,
    /// A newer session of the driver exists, or that one has ended.
    OldSession,
    /// No such driver is online.
    NotOnline,
    /// The driver is suspended.
    Suspended,
    /// The driver is kept apart from as many riders as allowed; unblock one first.
    TooManyBlocks,
    /// The shard keeps suspensions and block lists of as many drivers as allowed.
    TooManyMarked,
    /// The car is being exchanged with another ride, and as many reports wait for that as allowed; repeat it.
    InTransfer,
    /// The settings hold a key or a value that is none; or shards are to grow in a way they do not.
    BadSettings,
    /// A ride holds the driver: nobody with a ride or an offer waits in a queue.
    HasRide,
    /// The airport's queue holds as many drivers as allowed.
    QueueFull,
}
