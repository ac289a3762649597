//! What a gateway does for rides that are traced: the calls and messages of phones, and the time an offer is at one.
//!
//! A rider's request begins a trace, if it is sampled; commands of phones about a traced ride go on with it, as the ride's
//! events say ([`TraceParent`]). Bound: [`RIDES_MAX`] rides and commands at once; beyond it all are let go, and their later steps
//! are missing. While nothing is traced in the process, each call here is one load.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use cabrank_events::command::EntityId;
use cabrank_events::{Command, CommandId, Event, RideId, TraceParent};
use cabrank_matcher::api::Committed;
use cabrank_spans::{Side, Span, begin, is_on};

use crate::outcomes::{Answer, Waiting};
use crate::socket::command_name;

/// Traced rides, and commands of theirs, a gateway follows at once.
const RIDES_MAX: usize = 10_000;

#[derive(Default)]
struct Known {
    rides: BTreeMap<RideId, Traced>,
    asked: BTreeMap<CommandId, Asked>,
}

/// A command whose outcome is not known yet.
struct Asked {
    span: Span,
    names_ride: bool,
}

struct Traced {
    /// The step that made the ride.
    at: TraceParent,
    /// An offer at a phone of this gateway.
    phone: Option<Span>,
}

/// The steps under way.
#[derive(Default)]
pub struct Steps(Mutex<Known>);

impl Steps {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A command is handed in, because of `parent` or of what is known of its ride. What it carries on.
    pub fn ask(
        &self,
        id: &CommandId,
        command: &Command,
        parent: Option<TraceParent>,
    ) -> Option<TraceParent> {
        if !is_on() {
            return None;
        }
        let mut known = self.known();
        let ride = match command.entity() {
            EntityId::Ride(ride) => Some(ride),
            EntityId::Driver(_) | EntityId::Rider(_) | EntityId::Market => None,
        };
        let of_ride = || {
            let ride = known.rides.get(&ride?)?;
            Some(ride.phone.as_ref().map_or(ride.at, Span::context))
        };
        let parent = parent.or_else(of_ride)?;
        let name = format!("gateway {}", command_name(command));
        let mut span = begin(name, Side::Client, Some(parent))?;
        if let Some(ride) = ride {
            span.set("ride", ride);
        }
        let here = span.context();
        if known.asked.len() >= RIDES_MAX {
            known.asked.clear();
        }
        let names_ride = ride.is_some();
        known.asked.insert(id.clone(), Asked { span, names_ride });
        Some(here)
    }

    /// A command was not taken.
    pub fn withdraw(&self, waiting: &Waiting) {
        if is_on() {
            self.known().asked.remove(waiting.id());
        }
    }

    /// A command's outcome is durable.
    pub fn answered(&self, id: &CommandId, answer: &Answer) {
        if !is_on() {
            return;
        }
        if let Some(Asked {
            mut span,
            names_ride,
        }) = self.known().asked.remove(id)
        {
            span.set("outcome", crate::socket::outcome_name(&answer.outcome));
            if let Some(ride) = answer.ride.filter(|_| !names_ride) {
                span.set("ride", ride);
            }
        }
    }

    /// The offer goes to a phone of this gateway.
    pub fn shown(&self, committed: &Committed) {
        if !is_on() {
            return;
        }
        let Event::OfferMade(made) = &committed.record.event else {
            return;
        };
        let Some(mut span) = begin("phone", Side::Client, committed.record.traceparent) else {
            return;
        };
        span.set("ride", made.ride);
        span.set("driver", &made.driver);
        if let Some(ride) = self.known().rides.get_mut(&made.ride) {
            ride.phone = Some(span);
        }
    }

    /// Something was committed; before the people concerned are told.
    pub fn hear(&self, committed: &Committed) {
        if !is_on() {
            return;
        }
        let record = &committed.record;
        let EntityId::Ride(id) = record.event.entity() else {
            return;
        };
        let mut known = self.known();
        if record.event.end().is_some() {
            known.rides.remove(&id);
            return;
        }
        if let Some(at) = record.traceparent
            && !known.rides.contains_key(&id)
        {
            if known.rides.len() >= RIDES_MAX {
                known.rides.clear();
            }
            known.rides.insert(id, Traced { at, phone: None });
        }
        let is_over = matches!(
            record.event,
            Event::DriverAssigned(_)
                | Event::OfferDeclined(_)
                | Event::OfferExpired(_)
                | Event::DriverLost(_)
        );
        if is_over && let Some(ride) = known.rides.get_mut(&id) {
            ride.phone = None;
        }
    }
}
