//! What a node does for rides that are traced.
//!
//! What comes out of a command carries that command's step on; what comes out of a round or a timer carries its ride's. An
//! offer is a step of its own, from the commit that makes it to the answer. The engine knows nothing of it.
//! Bound: [`RIDES_MAX`] rides at once; further ones are not followed beyond their request. A node that takes a shard over goes
//! on with a ride's trace at its next traced command. Costs nothing while no command comes with a trace.

use std::collections::BTreeMap;

use cabrank_engine::Batch;
use cabrank_events::command::EntityId;
use cabrank_events::{Command, CommandRecord, Event, RideId, TraceParent};
use cabrank_spans::{Side, Span, begin};

/// Traced rides a node follows at once.
const RIDES_MAX: usize = 10_000;

/// The steps under way.
#[derive(Default)]
pub(super) struct Steps {
    rides: BTreeMap<RideId, Traced>,
    /// Commands whose transaction is not durable yet.
    commands: Vec<Span>,
}

struct Traced {
    /// The step that brought it here.
    at: TraceParent,
    /// An offer that nobody has answered.
    offer: Option<Span>,
}

/// How much of a batch there was before a command.
pub(super) struct Mark {
    events: usize,
    messages: usize,
}

impl Mark {
    pub(super) fn of(batch: &Batch) -> Mark {
        Mark {
            events: batch.events.len(),
            messages: batch.messages.len(),
        }
    }
}

/// The command's name as the log has it.
fn name_of(command: &Command) -> String {
    let written = serde_json::to_value(command).unwrap_or_default();
    written["type"].as_str().unwrap_or("command").to_owned()
}

impl Steps {
    /// A command was handled; `mark` was the batch before it.
    pub(super) fn handled(&mut self, batch: &mut Batch, mark: &Mark, record: &CommandRecord) {
        let Some(parent) = record.traceparent else {
            return;
        };
        // Where this node does not trace, the trace goes on behind it.
        let span = cabrank_spans::is_on()
            .then(|| {
                let name = format!("node {}", name_of(&record.command));
                let mut span = begin(name, Side::Consumer, Some(parent))?;
                let caused = batch.events[mark.events..].iter();
                let mut concerned = std::iter::once(record.command.entity())
                    .chain(caused.map(|record| record.event.entity()));
                let ride = concerned.find_map(|entity| match entity {
                    EntityId::Ride(ride) => Some(ride),
                    EntityId::Driver(_) | EntityId::Rider(_) | EntityId::Market => None,
                });
                if let Some(ride) = ride {
                    span.set("ride", ride);
                }
                Some(span)
            })
            .flatten();
        let here = Some(span.as_ref().map_or(parent, Span::context));
        for event in &mut batch.events[mark.events..] {
            event.traceparent = here;
        }
        for message in &mut batch.messages[mark.messages..] {
            message.record.traceparent = here;
        }
        self.commands.extend(span);
    }

    /// Everything of the batch is decided: events of traced rides carry their ride's step, offers begin and end.
    pub(super) fn settle(&mut self, batch: &mut Batch) {
        if !cabrank_spans::is_on() {
            return;
        }
        for record in &mut batch.events {
            let EntityId::Ride(id) = record.event.entity() else {
                continue;
            };
            if let Some(at) = record.traceparent
                && !self.rides.contains_key(&id)
                && self.rides.len() < RIDES_MAX
            {
                self.rides.insert(id, Traced { at, offer: None });
            }
            let Some(ride) = self.rides.get_mut(&id) else {
                continue;
            };
            if let Event::OfferMade(made) = &record.event {
                ride.offer = begin("offer", Side::Internal, Some(ride.at));
                if let Some(offer) = &mut ride.offer {
                    offer.set("ride", id);
                    offer.set("driver", &made.driver);
                    offer.set("attempt", made.attempt);
                    record.traceparent = Some(offer.context());
                }
            } else if is_answered_by(&record.event)
                && let Some(mut offer) = ride.offer.take()
            {
                offer.set("ended_by", record.event.name());
            }
            let here = ride.offer.as_ref().map_or(ride.at, Span::context);
            record.traceparent.get_or_insert(here);
            if record.event.end().is_some() {
                self.rides.remove(&id);
            }
        }
    }

    /// The batch is durable: its commands are done.
    pub(super) fn committed(&mut self) {
        self.commands.clear();
    }

    /// Memory is read back: what was under way is done again.
    pub(super) fn forget(&mut self) {
        self.rides.clear();
        self.commands.clear();
    }
}

/// Does the event end an offer?
fn is_answered_by(event: &Event) -> bool {
    matches!(
        event,
        Event::DriverAssigned(_)
            | Event::OfferDeclined(_)
            | Event::OfferExpired(_)
            | Event::DriverLost(_)
            | Event::RideCancelled(_)
            | Event::RideUnfulfilled(_)
    )
}
