//! The engine's knobs: every wait with its length, everything that grows with its bound.

use serde::{Deserialize, Serialize};

use crate::matching::SwapRules;
use crate::matching::pace::PaceRules;
use crate::matching::price::Prices;
use crate::queues::QueueRules;

/// The most of `moving_kib_max`: half of a record of the log (1 MiB), so that a header that is full fits into one.
pub(crate) const MOVING_KIB_MOST: usize = 512;

/// Settings of one market. All times are domain milliseconds, all distances metres.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EngineConfig {
    /// H3 resolution of ownership cells, 4 to 8. Coarser: fewer halo copies; finer: demand spreads over more shards.
    pub ownership_resolution: u8,
    /// A request older than this is refused, and its age is looked at again before its first round.
    pub request_patience_ms: u64,
    /// From the first request to `unfulfilled` when nobody is found.
    pub ride_deadline_ms: u64,
    /// A claim without an answer is abandoned after this.
    pub claim_answer_ms: u64,
    /// A phone must confirm that it shows an offer within this.
    pub offer_receipt_ms: u64,
    /// A driver must answer within this, counted from the first receipt.
    pub offer_answer_ms: u64,
    /// A driver who has not arrived within this after the assignment counts as lost.
    pub arrival_ms: u64,
    /// A rider who is not in the car within this after the arrival counts as a no-show.
    pub no_show_ms: u64,
    /// A started ride that nobody ends is ended after this.
    pub longest_ride_ms: u64,
    /// A ride that lost its driver before the pickup gets at least this much longer to find another.
    pub redispatch_patience_ms: u64,
    /// How often a ride may lose its driver before it ends `unfulfilled`.
    pub redispatch_max: u32,
    /// How far the first search looks.
    pub radius_first_m: u32,
    /// By how much the search grows at a step.
    pub radius_step_m: u32,
    /// The largest search radius: the halo is as wide.
    pub radius_max_m: u32,
    /// Time between steps.
    pub widen_every_ms: u64,
    /// How many drivers one ride may ask.
    pub asked_max: usize,
    /// How long a rider's idempotency key is remembered; longer than `request_patience_ms`.
    pub key_memory_ms: u64,
    /// How many keys a rider may have in memory; beyond it 429.
    pub keys_max: usize,
    /// How long an ended ride answers late commands; at least `request_patience_ms`.
    pub ended_ride_memory_ms: u64,
    /// How long an offline driver's last session is remembered; at least `request_patience_ms`.
    pub driver_memory_ms: u64,
    /// How many command outcomes a driver and a ride remember each.
    pub outcomes_max: usize,
    /// Open rides of one shard; beyond it requests are refused with 503.
    pub rides_max: usize,
    /// Riders one driver may be kept apart from; beyond it a block is refused with 409.
    pub blocks_max: usize,
    /// Drivers of one shard who are suspended or kept apart from somebody: they are never forgotten. Beyond it
    /// suspensions and blocks of further drivers are refused with 503.
    pub marked_drivers_max: usize,
    /// While the number of shards grows: KiB that commands take which wait in one shard for people who are on their way to it. They
    /// are part of the shard's header, which is one record. People's commands may use half of it and are refused with 503 beyond
    /// it; messages between shards may use all, and take the way by the old shard beyond it.
    pub moving_kib_max: usize,
    /// When rides whose drivers are on the way may change them; for the policy `rematch`.
    pub swaps: SwapRules,
    /// Are drivers whose ride goes to another one told of it, or asked before?
    pub swap_consent: SwapConsent,
    /// For `swap_consent = "ask"`: a driver who does not answer within this keeps the ride.
    pub swap_answer_ms: u64,
    /// For `swap_consent = "ask"`: an agreement is good for exchanges that begin within this; longer than
    /// `swaps.every_ms`, because the next round begins it.
    pub swap_agreed_ms: u64,
    /// What a pair of ride and car costs besides the drive.
    pub prices: Prices,
    /// How long rides that want the same cars wait for each other.
    pub pace: PaceRules,
    /// Queues of drivers at airports.
    pub queues: QueueRules,
}

/// What a driver on the way has to say to an exchange.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum SwapConsent {
    /// The exchange happens, and both phones are told.
    #[default]
    Tell,
    /// Nothing happens before each driver who would give up a ride has agreed. Who does not answer keeps it.
    Ask,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            ownership_resolution: 5,
            request_patience_ms: 60_000,
            ride_deadline_ms: 300_000,
            claim_answer_ms: 5_000,
            offer_receipt_ms: 5_000,
            offer_answer_ms: 15_000,
            arrival_ms: 1_800_000,
            no_show_ms: 300_000,
            longest_ride_ms: 4 * 3_600_000,
            redispatch_patience_ms: 180_000,
            redispatch_max: 3,
            radius_first_m: 2_000,
            radius_step_m: 1_000,
            radius_max_m: 5_000,
            widen_every_ms: 5_000,
            asked_max: 128,
            key_memory_ms: 600_000,
            keys_max: 32,
            ended_ride_memory_ms: 120_000,
            driver_memory_ms: 600_000,
            outcomes_max: 16,
            rides_max: 100_000,
            blocks_max: 256,
            marked_drivers_max: 20_000,
            moving_kib_max: MOVING_KIB_MOST,
            swaps: SwapRules::default(),
            swap_consent: SwapConsent::default(),
            swap_answer_ms: 15_000,
            swap_agreed_ms: 30_000,
            prices: Prices::default(),
            pace: PaceRules::default(),
            queues: QueueRules::default(),
        }
    }
}

/// A knob that cannot be turned so.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key} = {value}: {remedy}")]
pub struct BadSetting {
    /// The knob.
    pub key: &'static str,
    /// What it was set to.
    pub value: String,
    /// What to set instead.
    pub remedy: &'static str,
}

impl EngineConfig {
    /// Checks ranges and the relations between knobs.
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
        const HOUR: u64 = 3_600_000;
        demand(
            (4..=8).contains(&self.ownership_resolution),
            "engine.ownership_resolution",
            self.ownership_resolution,
            "choose 4 to 8 (see `cabrank ring`)",
        )?;
        for (key, value) in [
            ("engine.request_patience_ms", self.request_patience_ms),
            ("engine.ride_deadline_ms", self.ride_deadline_ms),
            ("engine.claim_answer_ms", self.claim_answer_ms),
            ("engine.offer_receipt_ms", self.offer_receipt_ms),
            ("engine.offer_answer_ms", self.offer_answer_ms),
            ("engine.arrival_ms", self.arrival_ms),
            ("engine.no_show_ms", self.no_show_ms),
            ("engine.longest_ride_ms", self.longest_ride_ms),
            ("engine.redispatch_patience_ms", self.redispatch_patience_ms),
            ("engine.widen_every_ms", self.widen_every_ms),
            ("engine.key_memory_ms", self.key_memory_ms),
            ("engine.ended_ride_memory_ms", self.ended_ride_memory_ms),
            ("engine.driver_memory_ms", self.driver_memory_ms),
            ("engine.swap_answer_ms", self.swap_answer_ms),
            ("engine.swap_agreed_ms", self.swap_agreed_ms),
        ] {
            demand(
                (100..=48 * HOUR).contains(&value),
                key,
                value,
                "choose 100 ms to 48 hours",
            )?;
        }
        demand(
            self.radius_first_m >= 100 && self.radius_first_m <= self.radius_max_m,
            "engine.radius_first_m",
            self.radius_first_m,
            "choose 100 m up to engine.radius_max_m",
        )?;
        demand(
            self.radius_max_m <= 50_000,
            "engine.radius_max_m",
            self.radius_max_m,
            "choose at most 50000 m: every ping is copied to each shard within it",
        )?;
        demand(
            self.radius_step_m >= 1,
            "engine.radius_step_m",
            self.radius_step_m,
            "choose at least 1 m",
        )?;
        demand(
            self.key_memory_ms > self.request_patience_ms,
            "engine.key_memory_ms",
            self.key_memory_ms,
            "must be longer than engine.request_patience_ms, or a late retry makes a second ride",
        )?;
        demand(
            self.ended_ride_memory_ms >= self.request_patience_ms,
            "engine.ended_ride_memory_ms",
            self.ended_ride_memory_ms,
            "must be at least engine.request_patience_ms",
        )?;
        demand(
            self.driver_memory_ms >= self.request_patience_ms,
            "engine.driver_memory_ms",
            self.driver_memory_ms,
            "must be at least engine.request_patience_ms",
        )?;
        for (key, value, most) in [
            ("engine.asked_max", self.asked_max, 10_000),
            ("engine.keys_max", self.keys_max, 1_000),
            ("engine.outcomes_max", self.outcomes_max, 1_000),
            ("engine.rides_max", self.rides_max, 10_000_000),
            ("engine.blocks_max", self.blocks_max, 10_000),
            (
                "engine.marked_drivers_max",
                self.marked_drivers_max,
                10_000_000,
            ),
            (
                "engine.moving_kib_max",
                self.moving_kib_max,
                MOVING_KIB_MOST,
            ),
            (
                "engine.queues.drivers_max",
                self.queues.drivers_max,
                100_000,
            ),
        ] {
            demand(
                (1..=most).contains(&value),
                key,
                value,
                "choose at least 1 (and at most what the docs say)",
            )?;
        }
        for (key, value) in [
            ("engine.swaps.gain_min_ms", self.swaps.gain_min_ms),
            ("engine.swaps.worsen_max_ms", self.swaps.worsen_max_ms),
            ("engine.swaps.close_ms", self.swaps.close_ms),
            ("engine.swaps.give_up_from_ms", self.swaps.give_up_from_ms),
            ("engine.swaps.late_ms", self.swaps.late_ms),
            ("engine.swaps.give_up_gain_ms", self.swaps.give_up_gain_ms),
        ] {
            demand(value <= HOUR, key, value, "choose 0 to 3600000")?;
        }
        for (key, value) in [
            ("engine.prices.age_per_mille", self.prices.age_per_mille),
            ("engine.prices.idle_per_mille", self.prices.idle_per_mille),
            ("engine.prices.idle_max_s", self.prices.idle_max_s),
            ("engine.prices.decline_s", self.prices.decline_s),
            ("engine.prices.upgrade_s", self.prices.upgrade_s),
            ("engine.prices.homewards_s", self.prices.homewards_s),
            ("engine.prices.forward_s", self.prices.forward_s),
            (
                "engine.prices.scarce_drive_max_s",
                self.prices.scarce_drive_max_s,
            ),
        ] {
            demand(value <= 100_000, key, value, "choose 0 to 100000")?;
        }
        demand(
            self.pace.most_ms <= 60_000,
            "engine.pace.most_ms",
            self.pace.most_ms,
            "choose 0 to 60000: riders wait that long before anybody looks for a car",
        )?;
        demand(
            self.pace.most_ms < self.request_patience_ms,
            "engine.pace.most_ms",
            self.pace.most_ms,
            "must be shorter than engine.request_patience_ms, or a request may be too old at its first look",
        )?;
        demand(
            self.pace.least_ms <= self.pace.most_ms,
            "engine.pace.least_ms",
            self.pace.least_ms,
            "choose at most engine.pace.most_ms",
        )?;
        demand(
            (1_000..=600_000).contains(&self.swaps.every_ms),
            "engine.swaps.every_ms",
            self.swaps.every_ms,
            "choose 1000 to 600000",
        )?;
        demand(
            self.swaps.swaps_max <= 100,
            "engine.swaps.swaps_max",
            self.swaps.swaps_max,
            "choose at most 100",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_sound_and_a_bad_knob_is_named() {
        EngineConfig::default().check().unwrap();
        let bad = EngineConfig {
            key_memory_ms: 1_000,
            ..EngineConfig::default()
        };
        let why = bad.check().unwrap_err();
        assert_eq!(
            (why.key, why.value.as_str()),
            ("engine.key_memory_ms", "1000")
        );
        let far = EngineConfig {
            radius_first_m: 9_000,
            ..EngineConfig::default()
        };
        assert_eq!(far.check().unwrap_err().key, "engine.radius_first_m");
        let slow = EngineConfig {
            pace: PaceRules {
                most_ms: 60_000,
                ..PaceRules::default()
            },
            ..EngineConfig::default()
        };
        assert_eq!(slow.check().unwrap_err().key, "engine.pace.most_ms");
    }
}
