//! What a service does for rides that are traced: taking in what is said of them, and calls of the provider.
//!
//! What the service says later of a ride carries on the step that led to it: the ride's beginning or end, or what another
//! service said. Kept in memory: a ride that is under way while the service starts anew is not followed further. Bound:
//! `RIDES_MAX` rides; beyond it all are let go.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cabrank_events::{Event, TraceParent};
use cabrank_spans::{Side, Span, begin, is_on};

use crate::consumer::{Message, Said};

/// Traced rides a service follows at once.
const RIDES_MAX: usize = 10_000;

/// The newest step of each traced ride that may lead on, by the subject of what is said of it.
#[derive(Clone, Default)]
pub struct Steps(Arc<Mutex<HashMap<String, TraceParent>>>);

impl Steps {
    fn rides(&self) -> MutexGuard<'_, HashMap<String, TraceParent>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// These messages are taken in; the steps end when they are dropped.
    pub fn take_in(&self, service: &'static str, messages: &[Message]) -> Vec<Span> {
        if !is_on() {
            return Vec::new();
        }
        let mut spans = Vec::new();
        for message in messages {
            let (name, subject, parent, leads_on) = match &message.said {
                // What a gateway was answered is nothing that happened to the ride.
                Said::Ride(record) if matches!(record.event, Event::CommandOutcome(_)) => continue,
                Said::Ride(record) => (
                    record.event.name(),
                    record.event.entity().to_string(),
                    record.traceparent,
                    matches!(record.event, Event::RideRequested(_)) || record.event.end().is_some(),
                ),
                Said::Business(record) => (
                    record.said.name(),
                    record.said.subject(),
                    record.traceparent,
                    true,
                ),
            };
            let name = format!("{service} {name}");
            let Some(mut span) = begin(name, Side::Consumer, parent) else {
                continue;
            };
            span.set("subject", &subject);
            if leads_on {
                let mut rides = self.rides();
                if rides.len() >= RIDES_MAX {
                    rides.clear();
                }
                rides.insert(subject, span.context());
            }
            spans.push(span);
        }
        spans
    }

    /// The step that what is said of `subject` comes of.
    pub fn of(&self, subject: &str) -> Option<TraceParent> {
        if !is_on() {
            return None;
        }
        self.rides().get(subject).copied()
    }
}
