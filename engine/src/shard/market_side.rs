//! What commands do to the market: its settings, which nodes are to leave, how many shards there are.

use cabrank_events::command::{EntityId, GrowthStep, MARKET_SHARD, Outcome, RefusedBecause};
use cabrank_events::event::{DispatchSet, DrainAsked};
use cabrank_events::{CommandId, NodeName};
use serde_json::Value;

use super::Shard;
use crate::market::DispatchRules;
use crate::matching::PolicyKind;

impl Shard {
    /// The newest settings take the place of all that was set before; the same again changes nothing.
    pub(super) fn set_dispatch(&mut self, id: Option<&CommandId>, settings: &Value) {
        let before = self.market_outcome_of(id);
        let outcome = before.unwrap_or_else(|| self.dispatch_outcome(settings));
        self.answer(id, &EntityId::Market, outcome, None);
    }

    /// Whether there is such a node the engine does not know: the node that is named like this leaves when it hears of it.
    pub(super) fn drain_node(&mut self, id: Option<&CommandId>, node: &NodeName) {
        let outcome = self.market_outcome_of(id).unwrap_or_else(|| {
            self.emit(DrainAsked {
                market_seq: self.market.as_ref().map_or(0, |market| market.seq) + 1,
                node: node.clone(),
            });
            Outcome::Done
        });
        self.answer(id, &EntityId::Market, outcome, None);
    }

    /// Whether the partitions are there the engine does not know: whoever asks looks first.
    pub(super) fn grow_ring(&mut self, id: Option<&CommandId>, to: u16, step: GrowthStep) {
        let before = self.market_outcome_of(id);
        let outcome = before.unwrap_or_else(|| self.growth_outcome(to, step));
        self.answer(id, &EntityId::Market, outcome, None);
    }

    fn market_outcome_of(&self, id: Option<&CommandId>) -> Option<Outcome> {
        id.and_then(|id| self.market.as_ref()?.outcome_of(id))
            .cloned()
    }

    fn dispatch_outcome(&mut self, settings: &Value) -> Outcome {
        // Which policy the nodes begin with makes no difference to what may be set.
        let rules = DispatchRules::configured(PolicyKind::default(), &self.config);
        if self.id != MARKET_SHARD || rules.with(settings).is_err() {
            return Outcome::Refused {
                why: RefusedBecause::BadSettings,
            };
        }
        let known = self.market.as_ref();
        let is_same = known.map_or(
            settings.as_object().is_some_and(serde_json::Map::is_empty),
            |market| market.settings == *settings,
        );
        if is_same {
            return Outcome::AlreadyDone;
        }
        self.emit(DispatchSet {
            market_seq: known.map_or(0, |market| market.seq) + 1,
            settings: settings.clone(),
        });
        Outcome::Done
    }
}
