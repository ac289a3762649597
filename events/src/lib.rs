//! The contract: what goes into the log, what comes out of it, and what travels on the sockets.
//!
//! - [`command`]: inputs of the engine. They may be refused. Internal ones travel between shards.
//! - [`event`]: facts, published as CloudEvents 1.0 JSON for everybody. Never refused.
//! - [`business`]: what the services beside the engine say: orders, payments, forecasts.
//! - [`wire`]: messages between phones and gateways (`docs/protocol.md`).
//! - [`map`]: what a live map draws, and films of it.
//! - [`proto`]: the same messages as Protobuf.
//! - [`zone`]: what zones have to do with a request.
//! - [`TraceParent`]: which trace a record belongs to.
//! - [`ids`]: who and what is meant. Holding an id proves it is well formed.
//!
//! Pure: no clock, no socket. Not here: what a command *does* (`engine`), where records are kept (`eventlog`).

#![forbid(unsafe_code)]

pub mod business;
pub mod codec;
pub mod command;
pub mod event;
pub mod ids;
pub mod map;
pub mod proto;
mod traceparent;
pub mod wire;
pub mod zone;

pub use codec::DecodeError;
pub use command::{Command, CommandRecord};
pub use event::{Event, EventRecord};
pub use ids::{
    Attempt, BadId, ClassSet, CommandId, DriverId, HoldId, IdempotencyKey, NodeName, Place, Reason,
    RideId, RiderId, SessionId, ShardId, Time, VehicleClass,
};
pub use traceparent::{NotTraced, TraceParent};
pub use zone::{PickupPoint, QueuePlace, ZoneFinding, ZoneName};
