//! The outcomes an entity remembers, so that a repeated command id gets the same outcome (PROTOCOL 11, 14).

use std::collections::VecDeque;

use cabrank_events::CommandId;
use cabrank_events::command::Outcome;
use cabrank_events::event::CommandOutcome;
use serde::{Deserialize, Serialize};

/// The newest outcomes, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Recent(VecDeque<(CommandId, Outcome)>);

impl Recent {
    /// Keeps one more outcome and forgets the oldest beyond `most`. A repeated id keeps its place.
    pub fn remember(&mut self, event: &CommandOutcome, most: usize) {
        if self.outcome_of(&event.command).is_some() {
            return;
        }
        while self.0.len() >= most {
            self.0.pop_front();
        }
        self.0
            .push_back((event.command.clone(), event.outcome.clone()));
    }

    /// What became of `command`, if it is remembered.
    pub fn outcome_of(&self, command: &CommandId) -> Option<&Outcome> {
        self.0
            .iter()
            .find(|(id, _)| id == command)
            .map(|(_, outcome)| outcome)
    }
}
