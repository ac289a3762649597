//! A node's knobs.

use cabrank_engine::BadSetting;
use cabrank_engine::matching::PolicyKind;
use cabrank_engine::travel::{SpeedProfile, StraightLine};
use cabrank_events::Time;
use serde::{Deserialize, Serialize};

use crate::roads::RoadsConfig;

/// Settings of a node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct NodeConfig {
    /// How rounds choose: `first_come`, `greedy`, `batched` or `rematch`.
    pub policy: PolicyKind,
    /// Least time between two rounds in domain ms; 0: a round starts as soon as a ride waits and a commit is free.
    pub round_every_ms: u64,
    /// Rounds of at most so many rides are solved inside the commit loop, so that a request and its offer share one
    /// transaction (some microseconds a ride); larger ones run beside it. 0: all run beside it.
    pub small_round_rides_max: usize,
    /// Cars looked at for each ride of a round.
    pub candidates_max: usize,
    /// Rides in one round; the others are in the next.
    pub rides_per_round_max: usize,
    /// Steps a round may take before the best answer so far is used.
    pub round_steps_max: u64,
    /// Positions older than this are no answer, domain ms (30,000 for phones, 300,000 for taxi feeds).
    pub ping_ttl_ms: i64,
    /// A driver without any sign of life for this long is taken offline, domain ms.
    pub silent_after_ms: i64,
    /// Drivers the index has room for; memory is reserved for them.
    pub drivers_max: u32,
    /// Speed along the straight line for travel times, metres a second, where `node.speeds` says nothing.
    pub speed_mps: f64,
    /// Speeds by the hour of the day.
    pub speeds: SpeedProfile,
    /// A road network that knows driving times better than a straight line.
    pub roads: RoadsConfig,
    /// Messages between shards that stay inside one transaction; 0 sends all through the log (a test mode).
    pub hops_max: usize,
    /// Commands in one transaction.
    pub batch_max: usize,
    /// A loop of the node that stands still for longer is wedged, and `/healthz` says so, ms; longer than a commit may take
    /// (`kafka.transaction_timeout_ms`).
    pub wedged_after_ms: u64,
}

impl Default for NodeConfig {
    fn default() -> Self {
        Self {
            policy: PolicyKind::Batched,
            round_every_ms: 0,
            small_round_rides_max: 16,
            candidates_max: 16,
            rides_per_round_max: 2_000,
            round_steps_max: 5_000_000,
            ping_ttl_ms: 30_000,
            silent_after_ms: 120_000,
            drivers_max: 100_000,
            speed_mps: 6.0,
            speeds: SpeedProfile::default(),
            roads: RoadsConfig::default(),
            hops_max: 10_000,
            batch_max: 1_000,
            wedged_after_ms: 30_000,
        }
    }
}

impl NodeConfig {
    /// How long drives take at this moment along the straight line.
    pub fn straight_line(&self, now: Time) -> StraightLine {
        self.speeds.at(now, self.speed_mps)
    }

    /// Checks ranges.
    pub fn check(&self) -> Result<(), BadSetting> {
        fn demand(
            ok: bool,
            key: &'static str,
            value: impl ToString,
            remedy: &'static str,
        ) -> Result<(), BadSetting> {
            if ok {
                Ok(())
            } else {
                Err(BadSetting {
                    key,
                    value: value.to_string(),
                    remedy,
                })
            }
        }
        demand(
            self.round_every_ms <= 60_000,
            "node.round_every_ms",
            self.round_every_ms,
            "choose 0 to 60000",
        )?;
        demand(
            self.small_round_rides_max <= 1_000,
            "node.small_round_rides_max",
            self.small_round_rides_max,
            "choose 0 to 1000",
        )?;
        demand(
            (1..=256).contains(&self.candidates_max),
            "node.candidates_max",
            self.candidates_max,
            "choose 1 to 256",
        )?;
        demand(
            (1..=100_000).contains(&self.rides_per_round_max),
            "node.rides_per_round_max",
            self.rides_per_round_max,
            "choose 1 to 100000",
        )?;
        demand(
            self.round_steps_max >= 1_000,
            "node.round_steps_max",
            self.round_steps_max,
            "choose at least 1000",
        )?;
        demand(
            (1_000..=3_600_000).contains(&self.ping_ttl_ms),
            "node.ping_ttl_ms",
            self.ping_ttl_ms,
            "choose 1000 to 3600000 (30000 for phones, 300000 for taxi feeds)",
        )?;
        demand(
            self.silent_after_ms >= self.ping_ttl_ms,
            "node.silent_after_ms",
            self.silent_after_ms,
            "choose at least node.ping_ttl_ms",
        )?;
        demand(
            (1..=10_000_000).contains(&self.drivers_max),
            "node.drivers_max",
            self.drivers_max,
            "choose 1 to 10000000",
        )?;
        demand(
            self.speed_mps.is_finite() && (0.5..=60.0).contains(&self.speed_mps),
            "node.speed_mps",
            self.speed_mps,
            "choose 0.5 to 60 metres a second",
        )?;
        demand(
            (500..=3_600_000).contains(&self.wedged_after_ms),
            "node.wedged_after_ms",
            self.wedged_after_ms,
            "choose 500 to 3600000",
        )?;
        self.speeds.check()?;
        self.roads.check()?;
        demand(
            (1..=10_000).contains(&self.batch_max),
            "node.batch_max",
            self.batch_max,
            "choose 1 to 10000",
        )
    }
}
