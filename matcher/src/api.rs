//! What a gateway may ask of the nodes, whether they live in its process or elsewhere.
//!
//! A gateway decides nothing: it hands in commands and pings, and hears what was committed.

use std::future::{Future, Ready, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use cabrank_engine::{DispatchRules, Market};
use cabrank_events::command::EntityId;
use cabrank_events::wire::{NearCar, QueueView, RideView};
use cabrank_events::{
    CommandRecord, DriverId, EventRecord, HoldId, Place, Reason, RideId, RiderId, SessionId, Time,
    VehicleClass,
};

use crate::heart::Wedged;

/// A committed event, as gateways hear of it. Never sent before the commit is durable.
#[derive(Clone, Debug)]
pub struct Committed {
    /// The event.
    pub record: EventRecord,
    /// The same as the CloudEvents JSON in the log.
    pub json: Bytes,
    /// For ride events: the ride after the transaction that held the event.
    pub ride: Option<Arc<RideView>>,
}

/// Told of every commit, in order, on the node's thread: it must be quick and must not block.
pub type Listener = Box<dyn Fn(&[Committed]) + Send + Sync>;

/// Why a command was not taken. It has not been and will not be executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotTaken {
    /// As many commands wait for the log as allowed.
    #[error("too many commands wait for the log: retry after a second")]
    Busy,
    /// The log takes nothing at the moment (disk full, shutting down).
    #[error("the log takes no commands: retry after some seconds")]
    Closed,
}

/// Why a question about places got no answer. Asking again after a second may help.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAnswered {
    /// No node is known to own the place, or the one that is has no right to answer for it now: it is being taken over.
    #[error("no node answers for this place just now: retry after a second")]
    NoOwner,
    /// The node did not answer in time or cannot be reached.
    #[error("the node of this place did not answer: retry after a second")]
    NodeSilent,
}

/// An answer that is here already, as from a node in this process, or one that is under way.
pub enum Soon<T> {
    /// Here.
    Now(Ready<T>),
    /// Under way.
    Later(Pin<Box<dyn Future<Output = T> + Send>>),
}

impl<T> Soon<T> {
    /// An answer that is here.
    pub fn now(answer: T) -> Self {
        Soon::Now(ready(answer))
    }

    /// An answer that is under way.
    pub fn later(answer: impl Future<Output = T> + Send + 'static) -> Self {
        Soon::Later(Box::pin(answer))
    }
}

impl<T> Future for Soon<T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        match self.get_mut() {
            Soon::Now(ready) => Pin::new(ready).poll(cx),
            Soon::Later(future) => future.as_mut().poll(cx),
        }
    }
}

/// What became of a ping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pinged {
    /// It is the driver's position now.
    Accepted,
    /// A newer one is there already.
    OutOfOrder,
    /// The driver is not online.
    NotOnline,
    /// The index holds as many drivers as allowed.
    IndexFull,
}

/// A driver as the node knows them after the last commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DriverView {
    /// The open session, when online.
    pub session: Option<SessionId>,
    /// The hold, if any: an offer or a ride.
    pub hold: Option<HoldId>,
    /// Kept from work, and why.
    pub suspended: Option<Reason>,
}

/// A driver as a map shows it.
#[derive(Clone, Copy, Debug)]
pub struct DriverSeen<'a> {
    /// Who.
    pub id: &'a DriverId,
    /// As of the last commit.
    pub view: &'a DriverView,
    /// The newest position known here.
    pub at: Option<Position>,
}

/// How rounds choose, and what of it an operator has set.
#[derive(Clone, Debug, PartialEq)]
pub struct MarketView {
    /// The number of the market's newest event.
    pub seq: u64,
    /// What differs from the configuration, written as there.
    pub settings: serde_json::Value,
    /// Since when; `None`: all is as configured and always was.
    pub since: Option<Time>,
    /// The configuration of the process that answers.
    pub configured: DispatchRules,
    /// What was set, over that.
    pub rules: DispatchRules,
}

impl MarketView {
    /// `set` over what is configured. Settings that this program cannot read (a newer one wrote them) leave the
    /// configuration as it is.
    pub(crate) fn of(set: Option<Market>, configured: &DispatchRules) -> MarketView {
        let since = set.as_ref().map(|set| set.since);
        let since = since.filter(|since| *since > Market::default().since);
        let Market { seq, settings, .. } = set.unwrap_or_default();
        let rules = configured.with(&settings).unwrap_or(*configured);
        MarketView {
            seq,
            settings,
            since,
            configured: *configured,
            rules,
        }
    }
}

/// One thing an entity was told, or one that happened to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Past {
    /// When it entered the log.
    pub time: Time,
    /// A command as it was handed in; else an event.
    pub is_command: bool,
    /// The command record's JSON, or the event's CloudEvents JSON.
    pub json: Bytes,
}

/// What made an entity what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct History {
    /// Oldest first.
    pub past: Vec<Past>,
    /// There may have been more before: it is no longer kept, or was not looked for.
    pub is_cut: bool,
}

/// A node of the city.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeSeen {
    /// Its name.
    pub name: String,
    /// Where it answers gateways.
    pub address: String,
    /// Its shards, in order. None: it stands by, or has just come.
    pub shards: Vec<u16>,
}

/// Where a driver is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Position {
    /// The place.
    pub at: Place,
    /// Age in ms.
    pub age_ms: i64,
}

/// What `GET /v1/nearby` asks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NearbyQuery {
    /// Around where.
    pub at: Place,
    /// How far, in metres; at most the configured search radius.
    pub radius_m: f64,
    /// How many at most.
    pub k: usize,
    /// Only cars of this class.
    pub class: Option<VehicleClass>,
}

/// One position in the event log: the next offset to read in every partition of both event topics.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct EventCursor {
    /// Per shard: next offset in `ride-events`.
    pub ride_events: Vec<u64>,
    /// Per shard: next offset in `person-events`.
    pub person_events: Vec<u64>,
}

/// A committed event read from the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadEvent {
    /// The CloudEvents JSON.
    pub json: Bytes,
    /// The place after it: reading from there goes on with the next event, nothing left out and nothing twice.
    pub after: EventCursor,
}

/// Why events could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EventsUnreadable {
    /// The cursor points before the oldest kept event, or beyond the end.
    #[error("the cursor is older than the events that are kept: start again with cursor=start")]
    Gone,
    /// The log failed.
    #[error("the event log cannot be read: {0}")]
    Failed(String),
}

/// Free cars near a place.
#[derive(Clone, Debug, PartialEq)]
pub struct CarsNear {
    /// Nearest first.
    pub cars: Vec<NearCar>,
    /// The log cannot be reached, so nobody can say that the node which answered still owns the place: these are the cars
    /// it knows of.
    pub unconfirmed: bool,
}

/// Everything the edge needs of the nodes.
pub trait Dispatch: Send + Sync + 'static {
    /// Domain time.
    fn now(&self) -> Time;
    /// Does it serve? False until recovered, while draining, without the right to answer for its shards, and while the log is
    /// out of reach of a gateway for long.
    fn is_ready(&self) -> bool;
    /// A loop of it that does not go round any more.
    fn wedged(&self) -> Option<Wedged> {
        None
    }
    /// Hands a command to the log. Its outcome comes as a `command.outcome` event with the record's id.
    fn submit(&self, record: CommandRecord) -> Result<(), NotTaken>;
    /// Hands over a checked position. Never waits.
    fn ping(&self, driver: &DriverId, at: Place, time: Time, seq: u32) -> Pinged;
    /// A sign of life of a driver's socket (pings count as one, too).
    fn sign_of_life(&self, driver: &DriverId, session: SessionId);
    /// Free cars near a place. They go on to be found while the log cannot be reached, and say so.
    fn nearby(&self, query: &NearbyQuery) -> Soon<Result<CarsNear, NotAnswered>>;
    /// The newest position of a driver, if there is one.
    fn position(&self, driver: &DriverId) -> Soon<Result<Option<Position>, NotAnswered>>;
    /// A ride after the last commit; `None` when unknown or long over.
    fn ride(&self, ride: RideId) -> Option<Arc<RideView>>;
    /// The rider's open ride, if any.
    fn ride_of(&self, rider: &RiderId) -> Option<RideId>;
    /// A driver after the last commit.
    fn driver(&self, driver: &DriverId) -> Option<DriverView>;
    /// The driver's place in an airport's queue, while they wait in one.
    fn queue_place(&self, driver: &DriverId) -> Option<QueueView>;
    /// When the offer a driver holds must be confirmed and how long the answer may take: `(receipt_by, answer_ms)`.
    fn offer_times(&self, ride: RideId) -> Option<(Time, u64)>;
    /// Shows every driver known here, in no order. `see` must be quick and must not ask this node anything: it is called
    /// while parts of what it would ask are locked. A gateway process of its own asks the nodes for the positions of those
    /// who ping elsewhere, from the first call on: they are there half a second later.
    fn each_driver(&self, see: &mut dyn FnMut(DriverSeen<'_>));
    /// Shows every ride as of the last commit, those lately ended among them, under the same terms.
    fn each_ride(&self, see: &mut dyn FnMut(&Arc<RideView>));
    /// How rounds choose, as far as is known here: `set_dispatch` changes it, and every node follows.
    fn market(&self) -> MarketView;
    /// The nodes, by name, as far as is known here; `None`: this process is the whole city. May ask the brokers: not for a
    /// thread that must not block.
    fn nodes(&self) -> Option<Vec<NodeSeen>> {
        None
    }
    /// The newest commands and events of an entity, at most `max`. Reads the log: not for a thread that must not block.
    fn history(&self, entity: &EntityId, max: usize) -> Result<History, EventsUnreadable>;
    /// Adds a listener; it hears every commit from now on.
    fn listen(&self, listener: Listener);
    /// The end of the event log: where a tail starts.
    fn events_end(&self) -> EventCursor;
    /// The oldest kept place of the event log.
    fn events_start(&self) -> EventCursor;
    /// Where to begin reading to hear all that was committed since `time` (append time), but no more than the newest `most`
    /// events. Some of what lies before may be read, too.
    fn events_since(&self, time: Time, most: u64) -> EventCursor;
    /// Reads up to `max` committed events after `cursor`, each with the place after it. Empty at the end. A call costs
    /// a read of every partition, however small `max` is.
    fn read_events(
        &self,
        cursor: &EventCursor,
        max: usize,
    ) -> Result<Vec<ReadEvent>, EventsUnreadable>;
    /// Estimated seconds of driving between two places (the market's speed profile).
    fn travel_time_s(&self, from: Place, to: Place) -> f64;
}
