//! How do rounds choose, and what has an operator changed of it while the market runs?
//!
//! The configuration says how a market begins. What the desk sets takes the place of parts of it, from the next round on and
//! on every node: it is the state of one entity in the log, [`Market`], so it survives restarts and takeovers, and whoever
//! comes later reads it back. Rides are not touched: a round's result is valid or not whatever policy made it (PROTOCOL 18).
//!
//! The engine checks rides by its own configuration: a swap beyond `engine.swaps.swaps_max` is not begun, whatever is set here.

use cabrank_events::command::{Growth, GrowthStep, Outcome};
use cabrank_events::{CommandId, Event, NodeName, Time};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::config::{BadSetting, EngineConfig};
use crate::matching::pace::PaceRules;
use crate::matching::price::Prices;
use crate::matching::{PolicyKind, SwapRules};
use crate::recent::Recent;
use crate::ride::Bounds;

/// How rounds choose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DispatchRules {
    /// Who gets which car: `node.policy`.
    pub policy: PolicyKind,
    /// When rides whose drivers are on the way may change them: `engine.swaps`.
    pub swaps: SwapRules,
    /// What a pair costs besides the drive: `engine.prices`.
    pub prices: Prices,
    /// How long rides wait for each other: `engine.pace`.
    pub pace: PaceRules,
}

/// Settings that are none; nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadRules {
    /// A key nobody knows, or a value of another kind.
    #[error("{0}; give some of policy, swaps, prices and pace, written as in the configuration")]
    Unreadable(String),
    /// A value outside its range.
    #[error(transparent)]
    OutOfRange(#[from] BadSetting),
}

impl DispatchRules {
    /// As configured.
    pub fn configured(policy: PolicyKind, config: &EngineConfig) -> DispatchRules {
        DispatchRules {
            policy,
            swaps: config.swaps,
            prices: config.prices,
            pace: config.pace,
        }
    }

    /// These with `settings` in the place of what they name: `{"policy": "rematch", "swaps": {"gain_min_ms": 60000}}`.
    pub fn with(&self, settings: &Value) -> Result<DispatchRules, BadRules> {
        if !settings.is_object() {
            return Err(BadRules::Unreadable("settings are an object".into()));
        }
        let unreadable = |why: serde_json::Error| BadRules::Unreadable(why.to_string());
        let mut whole = serde_json::to_value(self).map_err(unreadable)?;
        replace(&mut whole, settings);
        let rules: DispatchRules = serde_json::from_value(whole).map_err(unreadable)?;
        let config = EngineConfig {
            swaps: rules.swaps,
            prices: rules.prices,
            pace: rules.pace,
            ..EngineConfig::default()
        };
        config.check()?;
        Ok(rules)
    }
}

fn replace(whole: &mut Value, part: &Value) {
    match (whole, part) {
        (Value::Object(whole), Value::Object(part)) => {
            for (key, value) in part {
                replace(whole.entry(key).or_insert(Value::Null), value);
            }
        }
        (whole, part) => *whole = part.clone(),
    }
}

/// Nodes asked to leave that are remembered, so that one which follows the states sees it, too; the oldest is forgotten first.
pub const DRAINS_MAX: usize = 64;

/// A node is to leave.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drain {
    /// Its name.
    pub node: NodeName,
    /// When it was asked. A node that was started later is another one of the same name.
    pub asked_at: Time,
}

/// What the desk has set: the fold of the market's events.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Market {
    /// The number of its newest event, from 1.
    pub seq: u64,
    /// What differs from the configuration, written as there.
    pub settings: Value,
    /// Since when.
    pub since: Time,
    /// The nodes that were last asked to leave, at most [`DRAINS_MAX`]; states of before lack it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub drains: Vec<Drain>,
    /// The newest growth of the ring, and how far it is; absent: it is as it was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ring: Option<(Growth, GrowthStep)>,
    /// Outcomes of the newest commands.
    pub recent: Recent,
}

impl Default for Market {
    fn default() -> Self {
        Market {
            seq: 0,
            settings: Value::Object(serde_json::Map::new()),
            since: Time(0),
            drains: Vec::new(),
            ring: None,
            recent: Recent::default(),
        }
    }
}

impl Market {
    /// Folds one of the market's events into its state.
    pub fn apply(&mut self, event: &Event, time: Time, bounds: &Bounds) {
        match event {
            Event::DispatchSet(e) => {
                self.seq = e.market_seq;
                self.settings = e.settings.clone();
                self.since = time;
            }
            Event::DrainAsked(e) => {
                self.seq = e.market_seq;
                self.drains.retain(|drain| drain.node != e.node);
                if self.drains.len() >= DRAINS_MAX {
                    self.drains.remove(0);
                }
                self.drains.push(Drain {
                    node: e.node.clone(),
                    asked_at: time,
                });
            }
            Event::RingGrows(e) => {
                self.seq = e.market_seq;
                self.ring = Some((e.growth, e.step));
            }
            Event::CommandOutcome(e) => self.recent.remember(e, bounds.outcomes_max),
            other => unreachable!("{} is no event of the market", other.name()),
        }
    }

    /// When the node of this name was last asked to leave, if that is remembered.
    pub fn drain_of(&self, node: &str) -> Option<Time> {
        let mut drains = self.drains.iter();
        let found = drains.find(|drain| drain.node.as_str() == node);
        found.map(|drain| drain.asked_at)
    }

    /// What became of a command, if it is remembered.
    pub fn outcome_of(&self, command: &CommandId) -> Option<&Outcome> {
        self.recent.outcome_of(command)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn configured() -> DispatchRules {
        DispatchRules::configured(PolicyKind::Batched, &EngineConfig::default())
    }

    #[test]
    fn what_is_left_out_is_as_configured() {
        assert_eq!(configured().with(&json!({})), Ok(configured()));
        let set = json!({ "policy": "rematch", "swaps": { "gain_min_ms": 60_000 } });
        let rules = configured().with(&set).unwrap();
        assert_eq!(rules.policy, PolicyKind::Rematch);
        assert_eq!(rules.swaps.gain_min_ms, 60_000);
        let same = SwapRules {
            gain_min_ms: 60_000,
            ..configured().swaps
        };
        assert_eq!(
            (rules.swaps, rules.prices, rules.pace),
            (same, configured().prices, configured().pace)
        );
    }

    #[test]
    fn what_is_no_setting_is_named() {
        for (bad, named) in [
            (json!({ "policy": "psychic" }), "psychic"),
            (json!({ "swaps": { "gain_max_ms": 1 } }), "gain_max_ms"),
            (json!({ "radius_m": 1 }), "radius_m"),
            (json!({ "prices": null }), "null"),
            (
                json!({ "pace": { "most_ms": 600_000 } }),
                "engine.pace.most_ms",
            ),
            (json!("rematch"), "object"),
        ] {
            let why = configured().with(&bad).unwrap_err().to_string();
            assert!(why.contains(named), "{bad}: {why}");
        }
    }

    #[test]
    fn as_many_drains_are_remembered_as_there_is_room_for_each_node_once() {
        let bounds = Bounds {
            asked_max: 1,
            outcomes_max: 1,
        };
        let mut market = Market::default();
        let mut ask = |n: u64, time: i64| {
            let node = NodeName::new(&format!("node-{n}")).unwrap();
            let market_seq = market.seq + 1;
            let asked = cabrank_events::event::DrainAsked { market_seq, node };
            market.apply(&asked.into(), Time(time), &bounds);
            market.clone()
        };
        for n in 0..100 {
            ask(n, 1_000);
        }
        let market = ask(99, 2_000);
        assert_eq!(market.drains.len(), DRAINS_MAX);
        assert_eq!(market.drain_of("node-99"), Some(Time(2_000)));
        assert_eq!(market.drain_of("node-98"), Some(Time(1_000)));
        assert_eq!(market.drain_of("node-1"), None);
        // States that were written before there were drains are read.
        let before = r#"{"seq":1,"settings":{},"since":7,"recent":[]}"#;
        let read: Market = serde_json::from_str(before).unwrap();
        assert_eq!((read.since, read.drains.len()), (Time(7), 0));
    }
}
