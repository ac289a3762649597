//! Frames as phones send them: coordinates and times drawn with a fixed seed.

#![allow(dead_code, reason = "each bench uses its part of it")]

use cabrank_events::wire::{FromDriver, Ping};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

const SEED: u64 = 20_080_522;

fn ping(random: &mut SmallRng, seq: u32) -> Ping {
    // Phones give six digits, about a decimetre.
    let degrees = |value: f64| (value * 1e6).round() / 1e6;
    Ping {
        lat: degrees(random.random_range(37.5..37.8)),
        lon: degrees(random.random_range(-122.6..-122.2)),
        time: Some(1_211_504_400_000 + i64::from(seq) * 250),
        seq,
        accuracy: Some(random.random_range(3_u8..40).into()),
    }
}

/// So many frames of so many pings each.
pub fn frames(count: usize, pings: usize) -> Vec<FromDriver> {
    let mut random = SmallRng::seed_from_u64(SEED);
    let mut next = 0;
    let mut one = || {
        next += 1;
        ping(&mut random, next)
    };
    let frame = |_| match pings {
        1 => FromDriver::Ping(one()),
        many => FromDriver::Pings {
            pings: (0..many).map(|_| one()).collect(),
        },
    };
    (0..count).map(frame).collect()
}

/// A frame as JSON text.
pub fn json(frame: &FromDriver) -> String {
    serde_json::to_string(frame).expect("pings are JSON")
}
