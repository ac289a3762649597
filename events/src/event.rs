//! Facts. Every change of an entity's state is one of these (PROTOCOL 7), so state = fold of events.
//!
//! The list below is the whole contract for consumers: each event has a CloudEvents type `cabrank.<name>.v<version>`,
//! a JSON Schema and an example under `events/schemas/`. Ride events number themselves without a gap by `ride_seq`
//! and end with one of `ride.completed`, `ride.cancelled`, `ride.unfulfilled`; driver and rider events number
//! themselves by `driver_seq` and `rider_seq`. `command.outcome` answers a command and is no step of a ride's life,
//! so it carries no ride number and may follow a ride's end.

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};

use crate::command::{
    CancelledBy, ClaimRefusal, EntityId, Growth, GrowthStep, Outcome, RefusedBecause,
};
use crate::ids::{
    Attempt, ClassSet, CommandId, DriverId, HoldId, IdempotencyKey, NodeName, Place, Reason,
    RideId, RiderId, SessionId, ShardId, Time, VehicleClass,
};
use crate::traceparent::TraceParent;
use crate::zone::{PickupPoint, QueuePlace, ZoneName};

/// One event with its place in its shard's history.
#[derive(Clone, Debug, PartialEq)]
pub struct EventRecord {
    /// The shard that wrote it.
    pub shard: ShardId,
    /// Its number among the shard's events, over all topics, without a gap, from 1.
    pub seq: u64,
    /// Engine time of the shard when it happened.
    pub time: Time,
    /// The trace it belongs to, if that is recorded: the `traceparent` of CloudEvents' Distributed Tracing. Nothing depends
    /// on it.
    pub traceparent: Option<TraceParent>,
    /// What happened.
    pub event: Event,
}

/// How a ride ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum EndOfRide {
    /// The rider was brought where they wanted to go.
    Completed,
    /// Somebody called it off.
    Cancelled,
    /// No driver was found in time.
    Unfulfilled,
}

/// Why a driver stopped being at work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LeaveReason {
    /// The driver said so.
    Offline,
    /// No sign of life for too long.
    Silent,
    /// A person at the desk suspended the driver.
    Suspended,
}

/// Why an offer came back without an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ExpiredBecause {
    /// The phone never confirmed that it shows the offer.
    NoReceipt,
    /// The phone showed it and nobody answered.
    NoAnswer,
}

/// Why a driver who was offered a ride did not take it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DeclinedBecause {
    /// The driver said no.
    Declined,
    /// The driver went offline with the offer open.
    Left,
}

/// Why an assigned driver no longer comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LostBecause {
    /// The driver gave the ride back.
    GaveBack,
    /// The driver went offline or silent.
    Left,
    /// The driver did not arrive within the arrival limit.
    NeverArrived,
    /// The car went to another ride, and the one that was to come instead did not.
    Moved,
}

/// What a driver says of a ride that it has accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RideReport {
    /// At the pickup.
    Arrived,
    /// The rider is in the car.
    Started,
    /// The rider is out of the car.
    Completed,
}

/// What a driver says to giving the ride to another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SwapAnswer {
    /// The ride may go, if an exchange that pays comes about soon.
    Agreed,
    /// The driver keeps the ride.
    Declined,
    /// The driver did not answer, and keeps the ride.
    NoAnswer,
}

/// One step of a swap: a ride is to get this driver.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Move {
    /// Which ride.
    pub ride: RideId,
    /// The number of the ride's newest event this is valid for.
    pub version: u32,
    /// Its new driver.
    pub driver: DriverId,
    /// By how many seconds the rider is fetched sooner than by the driver on the way, as the round estimated it; negative:
    /// later, for other riders' sake. 0 for a ride that waits.
    #[serde(default)]
    pub gain_s: i64,
}

/// Keeps what happens seldom out of the records.
fn is_zero(count: &i64) -> bool {
    *count == 0
}

/// Why a ride found no driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum UnfulfilledBecause {
    /// The total deadline passed.
    Deadline,
    /// It lost its driver more often than allowed.
    RedispatchLimit,
    /// It was too old before anybody could look for a driver (the nodes were down).
    TooOld,
    /// As many drivers as allowed were asked and none came.
    EverybodyAsked,
}

/// How a ride came to be completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CompletedBecause {
    /// The driver said so.
    DriverReported,
    /// The limit for the longest ride passed without a word from the driver.
    LongestRide,
}

macro_rules! events {
    ($(
        $(#[$doc:meta])*
        $kind:ident $name:literal $variant:ident { $( $(#[$fdoc:meta])* $field:ident : $type:ty ),* $(,)? }
    )*) => {
        $( events!(@body $kind $(#[$doc])* $variant { $( $(#[$fdoc])* pub $field : $type ),* }); )*

        /// A fact.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Event {
            $( $(#[$doc])* $variant($variant), )*
        }

        impl Event {
            /// The type without prefix and version: `ride.requested`.
            pub fn name(&self) -> &'static str {
                match self { $( Event::$variant(_) => $name, )* }
            }

            /// The entity it changed (for an outcome: the one that was asked).
            pub fn entity(&self) -> EntityId {
                match self { $( Event::$variant(e) => e.entity(), )* }
            }

            /// Every name there is, in the order of the contract.
            pub const NAMES: &[&str] = &[$( $name, )*];

            /// JSON Schema of the data of the event called `name`.
            pub fn data_schema(name: &str) -> Option<Schema> {
                let generator = SchemaGenerator::default();
                match name {
                    $( $name => Some(generator.into_root_schema_for::<$variant>()), )*
                    _ => None,
                }
            }

            pub(crate) fn serialize_data<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                match self { $( Event::$variant(e) => e.serialize(s), )* }
            }

            pub(crate) fn from_data(name: &str, data: &str) -> Option<Result<Event, serde_json::Error>> {
                match name {
                    $( $name => Some(serde_json::from_str::<$variant>(data).map(Event::$variant)), )*
                    _ => None,
                }
            }
        }

        $( impl From<$variant> for Event {
            fn from(event: $variant) -> Event { Event::$variant(event) }
        } )*
    };
    (@body ride $(#[$doc:meta])* $variant:ident { $($fields:tt)* }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
        pub struct $variant {
            /// The ride.
            pub ride: RideId,
            /// Its number among the ride's events, from 1, without a gap.
            pub ride_seq: u32,
            $($fields)*
        }
        impl $variant { fn entity(&self) -> EntityId { EntityId::Ride(self.ride) } }
    };
    (@body driver $(#[$doc:meta])* $variant:ident { $($fields:tt)* }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
        pub struct $variant {
            /// The driver.
            pub driver: DriverId,
            /// Its number among the driver's events, without a gap while the driver is remembered.
            pub driver_seq: u64,
            $($fields)*
        }
        impl $variant { fn entity(&self) -> EntityId { EntityId::Driver(self.driver.clone()) } }
    };
    (@body rider $(#[$doc:meta])* $variant:ident { $($fields:tt)* }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
        pub struct $variant {
            /// The rider.
            pub rider: RiderId,
            /// Its number among the rider's events, without a gap while the rider is remembered.
            pub rider_seq: u64,
            $($fields)*
        }
        impl $variant { fn entity(&self) -> EntityId { EntityId::Rider(self.rider.clone()) } }
    };
    (@body market $(#[$doc:meta])* $variant:ident { $($fields:tt)* }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
        pub struct $variant {
            /// Its number among the market's events, from 1, without a gap.
            pub market_seq: u64,
            $($fields)*
        }
        impl $variant { fn entity(&self) -> EntityId { EntityId::Market } }
    };
    (@body outcome $(#[$doc:meta])* $variant:ident { $($fields:tt)* }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
        pub struct $variant { $($fields)* }
        impl $variant {
            fn entity(&self) -> EntityId {
                match (&self.asked_ride, &self.asked_driver, &self.asked_rider) {
                    (Some(ride), _, _) => EntityId::Ride(*ride),
                    (None, Some(driver), _) => EntityId::Driver(driver.clone()),
                    (None, None, Some(rider)) => EntityId::Rider(rider.clone()),
                    (None, None, None) => EntityId::Market,
                }
            }
        }
    };
}

events! {
    /// The ride was opened: from here on it reaches exactly one end.
    ride "ride.requested" RideRequested {
        /// Who rides.
        rider: RiderId,
        /// The idempotency key of the request.
        key: IdempotencyKey,
        /// Where to be fetched.
        pickup: Place,
        /// Where to, if told.
        dropoff: Option<Place>,
        /// What car.
        class: VehicleClass,
        /// When the rider first asked.
        issued_at: Time,
        /// When the search ends without a driver.
        deadline: Time,
        /// How far the first search looks, in metres.
        radius_m: u32,
        /// When the search grows by a step.
        widen_at: Time,
        /// The pickup point of a zone that the rider was moved to; absent: fetched where they asked.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pickup_point: Option<Box<PickupPoint>>,
        /// The airport it begins at: its queue of drivers comes first.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        airport: Option<ZoneName>,
    }
    /// The ride leads elsewhere from now on. The driver's phone hears of it; nothing else about the ride changes.
    ride "ride.destination_changed" DestinationChanged {
        /// Where to.
        to: Place,
    }
    /// A round looked at the ride for the first time and had no car for it.
    ride "ride.searched_in_vain" SearchedInVain {}
    /// The search grew.
    ride "ride.search_widened" SearchWidened {
        /// How far it looks now, in metres.
        radius_m: u32,
        /// When it grows again.
        widen_at: Time,
    }
    /// A round chose a driver; the driver's entity is asked to hold. A ride with a driver on the way keeps that one
    /// until the answer.
    ride "ride.driver_claimed" DriverClaimed {
        /// The driver.
        driver: DriverId,
        /// This claim's number.
        attempt: Attempt,
        /// When an unanswered claim is abandoned.
        answer_by: Time,
        /// The hold of another ride that is to move here; absent for a free car.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        from: Option<HoldId>,
        /// Who gets the car this ride has now, and so on: the rest of the swap.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        then: Vec<Move>,
        /// What the swap gains for this ride: [`Move::gain_s`].
        #[serde(default, skip_serializing_if = "is_zero")]
        gain_s: i64,
    }
    /// The claim of a ride that has a driver on the way was granted: it holds two until the swap goes on or settles.
    ride "ride.second_hold_granted" SecondHoldGranted {
        /// The second driver.
        driver: DriverId,
        /// The second hold's attempt.
        attempt: Attempt,
        /// The second driver's hold number.
        hold_number: u64,
    }
    /// Another ride asks for this ride's car; until the answer, arrival and start wait.
    ride "ride.hold_asked" HoldAsked {
        /// The driver.
        driver: DriverId,
        /// The attempt of the hold that may move.
        attempt: Attempt,
        /// The hold it is to become.
        by: HoldId,
    }
    /// The car went to the other ride.
    ride "ride.hold_moved" HoldMoved {
        /// The driver.
        driver: DriverId,
        /// The attempt of the hold that is over.
        attempt: Attempt,
    }
    /// The car did not go to the other ride: the hold is as it was.
    ride "ride.hold_kept" HoldKept {
        /// The driver.
        driver: DriverId,
        /// The hold's attempt.
        attempt: Attempt,
    }
    /// The driver reported something while the hold may move; its outcome comes with the answer.
    ride "ride.report_waits" ReportWaits {
        /// The driver.
        driver: DriverId,
        /// The attempt of the hold that may move.
        attempt: Attempt,
        /// What was reported.
        report: RideReport,
        /// The command that waits for its outcome.
        command: Option<CommandId>,
    }
    /// Another driver comes instead of the one on the way.
    ride "ride.driver_reassigned" DriverReassigned {
        /// The new driver.
        driver: DriverId,
        /// The new hold's attempt.
        attempt: Attempt,
        /// The new driver's hold number.
        hold_number: u64,
        /// The driver who was on the way before.
        before: DriverId,
        /// When a driver who has not arrived counts as lost.
        arrive_by: Time,
        /// By how many seconds the rider is fetched sooner, as the round estimated it; negative: later, for other riders'
        /// sake. The gains of a swap's rides add up to what it saves.
        #[serde(default)]
        gained_s: i64,
        /// The ride the new driver was on the way to until now; absent: the driver was free.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        instead_of: Option<RideId>,
    }
    /// The driver on the way is asked whether this ride may go to another one. Until they agree, nothing changes.
    ride "ride.swap_asked" SwapAsked {
        /// The driver.
        driver: DriverId,
        /// The attempt of the hold they would give up.
        attempt: Attempt,
        /// How many seconds all riders of the exchange would wait less together.
        gain_s: i64,
        /// No answer by then: the driver keeps the ride.
        answer_by: Time,
    }
    /// What came of it. Who keeps the ride is not asked again for it.
    ride "ride.swap_answered" SwapAnswered {
        /// The driver.
        driver: DriverId,
        /// The hold's attempt.
        attempt: Attempt,
        /// Agreed, declined, or not answered.
        answer: SwapAnswer,
        /// How long an agreement is good for.
        until: Time,
    }
    /// The driver's entity said no.
    ride "ride.claim_refused" ClaimDenied {
        /// The driver.
        driver: DriverId,
        /// The claim.
        attempt: Attempt,
        /// Why.
        why: ClaimRefusal,
        /// The driver's event number at the refusal.
        driver_seq: u64,
    }
    /// No answer to the claim in time.
    ride "ride.claim_abandoned" ClaimAbandoned {
        /// The driver.
        driver: DriverId,
        /// The claim.
        attempt: Attempt,
    }
    /// The held driver is asked.
    ride "ride.offer_made" OfferMade {
        /// The driver.
        driver: DriverId,
        /// The hold's attempt.
        attempt: Attempt,
        /// The driver's hold number (orders a driver's holds without a clock).
        hold_number: u64,
        /// When the phone must have confirmed that it shows the offer.
        receipt_by: Time,
    }
    /// The phone shows the offer; the clock of the answer runs.
    ride "ride.offer_received" OfferReceived {
        /// The driver.
        driver: DriverId,
        /// The hold's attempt.
        attempt: Attempt,
        /// When the offer expires.
        answer_by: Time,
    }
    /// The driver does not come.
    ride "ride.offer_declined" OfferDeclined {
        /// The driver.
        driver: DriverId,
        /// The hold's attempt.
        attempt: Attempt,
        /// Why.
        why: DeclinedBecause,
    }
    /// The offer ran out.
    ride "ride.offer_expired" OfferExpired {
        /// The driver.
        driver: DriverId,
        /// The hold's attempt.
        attempt: Attempt,
        /// Which clock ran out.
        why: ExpiredBecause,
    }
    /// The driver took the ride and is on the way.
    ride "ride.driver_assigned" DriverAssigned {
        /// The driver.
        driver: DriverId,
        /// The hold's attempt.
        attempt: Attempt,
        /// The driver's hold number.
        hold_number: u64,
        /// When a driver who has not arrived counts as lost.
        arrive_by: Time,
    }
    /// The assigned driver no longer comes; the ride waits again, in its old place in the queue.
    ride "ride.driver_lost" DriverLost {
        /// The driver.
        driver: DriverId,
        /// The hold's attempt.
        attempt: Attempt,
        /// Why.
        why: LostBecause,
        /// The new total deadline.
        deadline: Time,
        /// How often the ride has lost a driver now.
        redispatches: u32,
    }
    /// The driver is at the pickup.
    ride "ride.driver_arrived" DriverArrived {
        /// The driver.
        driver: DriverId,
        /// The hold's attempt.
        attempt: Attempt,
        /// When a rider who has not come counts as a no-show.
        start_by: Time,
    }
    /// The rider is in the car.
    ride "ride.started" RideStarted {
        /// The driver.
        driver: DriverId,
        /// The hold's attempt.
        attempt: Attempt,
        /// When a ride nobody ended is ended.
        complete_by: Time,
    }
    /// An end: the rider was brought there.
    ride "ride.completed" RideCompleted {
        /// The driver.
        driver: DriverId,
        /// The hold's attempt.
        attempt: Attempt,
        /// Said by the driver, or by the clock.
        why: CompletedBecause,
        /// Until when the ended ride is remembered for late commands.
        keep_until: Time,
    }
    /// An end: called off before it began.
    ride "ride.cancelled" RideCancelled {
        /// By whom.
        by: CancelledBy,
        /// The driver who was held for it, if any.
        driver: Option<DriverId>,
        /// Until when the ended ride is remembered for late commands.
        keep_until: Time,
        /// What the rider is told: the words of the service that called it off, if one did.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<Reason>,
    }
    /// An end: no driver was found in time.
    ride "ride.unfulfilled" RideUnfulfilled {
        /// Why.
        why: UnfulfilledBecause,
        /// Until when the ended ride is remembered for late commands.
        keep_until: Time,
    }

    /// The driver is at work and may be offered rides.
    driver "driver.online" DriverOnline {
        /// The session that began.
        session: SessionId,
        /// What the car serves.
        classes: ClassSet,
    }
    /// The driver is kept for one ride.
    driver "driver.held" DriverHeld {
        /// The ride.
        ride: RideId,
        /// The ride's attempt.
        attempt: Attempt,
        /// Grows with each hold of the driver: the `driver_seq` of this event.
        hold_number: u64,
    }
    /// The hold is over.
    driver "driver.released" DriverReleased {
        /// The ride.
        ride: RideId,
        /// The ride's attempt.
        attempt: Attempt,
        /// The hold's number.
        hold_number: u64,
        /// The place in an airport's queue that the driver has now: the one from before the hold, or another one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        queue: Option<QueuePlace>,
    }
    /// A held driver will be offline once released.
    driver "driver.leaving" DriverLeaving {
        /// The session that ends.
        session: SessionId,
        /// Why.
        why: LeaveReason,
    }
    /// The driver is not at work.
    driver "driver.offline" DriverOffline {
        /// The session that ended.
        session: SessionId,
        /// Why.
        why: LeaveReason,
        /// Until when the session's number is remembered.
        keep_until: Time,
    }
    /// The driver may not work until reinstated. A session that is open ends with it, as if the driver had left.
    driver "driver.suspended" DriverSuspended {
        /// Why, in the words of who did it.
        reason: Reason,
    }
    /// The driver may work again, from the next `online`.
    driver "driver.reinstated" DriverReinstated {}
    /// The driver gets no ride of this rider any more; one that is held goes on.
    driver "driver.rider_blocked" RiderBlocked {
        /// The rider.
        rider: RiderId,
    }
    /// The driver may get rides of this rider again.
    driver "driver.rider_unblocked" RiderUnblocked {
        /// The rider.
        rider: RiderId,
    }
    /// The driver has said where they want to go; rides there come first if the market prices it. Until the session ends.
    driver "driver.heading_set" HeadingSet {
        /// Where; absent: anywhere.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        to: Option<Place>,
    }
    /// The driver waits at an airport. A place in another queue is given up by it. Being held interrupts the waiting, and the
    /// release says whether the place is the driver's again.
    driver "driver.queued" DriverQueued {
        /// The place.
        place: QueuePlace,
    }
    /// The driver waits at that airport no more: left it, or said so.
    driver "driver.unqueued" DriverUnqueued {
        /// The airport.
        airport: ZoneName,
    }
    /// The driver lives in another shard from now on: the ring has grown (PROTOCOL 30). Goes on with `driver.taken_over` there.
    driver "driver.handed_over" DriverHandedOver {
        /// Where to.
        to: ShardId,
    }
    /// The driver lives in this shard from now on, with all that was known of them: hold, session, place in a queue, marks.
    driver "driver.taken_over" DriverTakenOver {
        /// Where from.
        from: ShardId,
        /// The state as it was there, as stored. What it looks like is nobody's contract.
        state: serde_json::Value,
    }
    /// The driver's state is dropped after long absence.
    driver "driver.forgotten" DriverForgotten {}

    /// The rider's wish was taken up; a ride is being opened.
    rider "rider.busy" RiderBusy {
        /// The ride.
        ride: RideId,
        /// The request's key.
        key: IdempotencyKey,
        /// A digest of the request: the same key with another one is refused.
        fingerprint: u64,
        /// The command that waits for the outcome.
        command: CommandId,
        /// Until when the key is remembered.
        expires_at: Time,
        /// The pickup point the rider is moved to, repeated to whoever asks again.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pickup_point: Option<Box<PickupPoint>>,
    }
    /// The ride is open.
    rider "rider.ride_opened" RideConfirmed {
        /// The ride.
        ride: RideId,
        /// The request's key.
        key: IdempotencyKey,
    }
    /// The ride was not opened; the rider is free.
    rider "rider.ride_refused" RideNotOpened {
        /// The ride that never was.
        ride: RideId,
        /// The request's key.
        key: IdempotencyKey,
        /// Why.
        why: RefusedBecause,
    }
    /// The rider's own shard refused the wish; its key remembers that, so that a late copy is refused, too.
    rider "rider.request_refused" RequestRefused {
        /// The request's key.
        key: IdempotencyKey,
        /// A digest of the request.
        fingerprint: u64,
        /// Why.
        why: RefusedBecause,
        /// Until when the key is remembered.
        expires_at: Time,
    }
    /// A wish was taken back before it arrived.
    rider "rider.key_cancelled" KeyCancelled {
        /// The key.
        key: IdempotencyKey,
        /// Until when the key is remembered.
        expires_at: Time,
    }
    /// The ride has ended; the rider may ask again.
    rider "rider.free" RiderFree {
        /// The ride.
        ride: RideId,
        /// The request's key.
        key: IdempotencyKey,
        /// How it ended.
        end: EndOfRide,
    }
    /// The rider lives in another shard from now on: the ring has grown (PROTOCOL 30). Goes on with `rider.taken_over` there.
    rider "rider.handed_over" RiderHandedOver {
        /// Where to.
        to: ShardId,
    }
    /// The rider lives in this shard from now on, with all that was known of them.
    rider "rider.taken_over" RiderTakenOver {
        /// Where from.
        from: ShardId,
        /// The state as it was there, as stored. What it looks like is nobody's contract.
        state: serde_json::Value,
    }
    /// The rider's state is dropped after the last key expired.
    rider "rider.forgotten" RiderForgotten {}

    /// An operator has changed how rounds choose.
    market "market.dispatch_set" DispatchSet {
        /// What differs from the configuration from now on, written as there; nothing: all is as configured.
        settings: serde_json::Value,
    }
    /// An operator wants a node to leave: it hands its shards over and ends, as after SIGTERM, if it lived before this.
    market "market.drain_asked" DrainAsked {
        /// The node's name.
        node: NodeName,
    }
    /// The ring grows: more shards (PROTOCOL 30).
    market "market.ring_grows" RingGrows {
        /// From how many shards to how many.
        growth: Growth,
        /// How far that is.
        step: GrowthStep,
    }

    /// What became of an external command. One that names nobody who was asked was for the market.
    outcome "command.outcome" CommandOutcome {
        /// The command.
        command: CommandId,
        /// What became of it.
        outcome: Outcome,
        /// The ride it was about or that it made, if there is one.
        ride: Option<RideId>,
        /// The ride that was asked, if it was a ride.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        asked_ride: Option<RideId>,
        /// The driver who was asked, if it was a driver.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        asked_driver: Option<DriverId>,
        /// The rider who was asked, if it was a rider.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        asked_rider: Option<RiderId>,
        /// Where the rider is fetched instead, if the request was moved to a pickup point.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pickup_point: Option<Box<PickupPoint>>,
    }
}

impl Event {
    /// The topic it belongs to: `ride-events` or `person-events`.
    pub fn is_ride_event(&self) -> bool {
        matches!(self.entity(), EntityId::Ride(_))
    }

    /// The end this event brings, if it is one of the three.
    pub fn end(&self) -> Option<EndOfRide> {
        match self {
            Event::RideCompleted(_) => Some(EndOfRide::Completed),
            Event::RideCancelled(_) => Some(EndOfRide::Cancelled),
            Event::RideUnfulfilled(_) => Some(EndOfRide::Unfulfilled),
            _ => None,
        }
    }
}
