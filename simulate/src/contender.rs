//! A policy with its rhythm, as it is written on the command line: `rematch:120@10`.
//!
//! `NAME[:GAIN_S][@ROUND_S]`: what a swap must save in seconds (only `rematch`), and the least time between two rounds in
//! seconds, 0 for at once. Without them: `first_come@0`, `greedy@2`, `batched@10`, `rematch:120@10`.

use std::fmt;
use std::str::FromStr;

use cabrank_engine::matching::{BadPolicy, PolicyKind};

use crate::dispatch::NodeRules;

/// A policy and its rhythm.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Contender {
    /// The policy.
    pub policy: PolicyKind,
    /// What a swap must save, s.
    pub gain_s: f64,
    /// Least time between two rounds, s.
    pub round_s: f64,
}

/// What is written is no contender.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadContender {
    /// The name.
    #[error(transparent)]
    Policy(#[from] BadPolicy),
    /// A number.
    #[error("{found:?} is no number of seconds from 0 to 3600: write for example rematch:120@10")]
    Seconds {
        /// What was written.
        found: String,
    },
}

impl Contender {
    /// A policy in its usual rhythm.
    pub fn usual(policy: PolicyKind) -> Contender {
        let round_s = match policy {
            PolicyKind::FirstCome => 0.0,
            PolicyKind::Greedy => 2.0,
            PolicyKind::Batched | PolicyKind::Rematch => 10.0,
        };
        Contender {
            policy,
            gain_s: 120.0,
            round_s,
        }
    }

    /// These rules with this policy.
    pub fn rules(&self, rules: &NodeRules) -> NodeRules {
        let mut rules = rules.clone();
        let ms = |seconds: f64| (seconds * 1_000.0) as u64;
        rules.rounds.policy = self.policy;
        rules.round_every_ms = ms(self.round_s);
        rules.engine.swaps.gain_min_ms = ms(self.gain_s);
        rules.rounds.swaps = rules.engine.swaps;
        rules
    }
}

impl fmt::Display for Contender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.policy)?;
        if self.policy == PolicyKind::Rematch {
            write!(f, ":{}", self.gain_s)?;
        }
        write!(f, "@{}", self.round_s)
    }
}

impl FromStr for Contender {
    type Err = BadContender;

    fn from_str(text: &str) -> Result<Contender, BadContender> {
        let seconds = |found: &str| {
            let number = found.parse::<f64>().ok();
            let fits = number.filter(|s| (0.0..=3_600.0).contains(s));
            fits.ok_or_else(|| BadContender::Seconds {
                found: found.to_owned(),
            })
        };
        let (rest, round) = match text.split_once('@') {
            Some((rest, round)) => (rest, Some(seconds(round)?)),
            None => (text, None),
        };
        let (name, gain) = match rest.split_once(':') {
            Some((name, gain)) => (name, Some(seconds(gain)?)),
            None => (rest, None),
        };
        let usual = Contender::usual(name.parse()?);
        Ok(Contender {
            gain_s: gain.unwrap_or(usual.gain_s),
            round_s: round.unwrap_or(usual.round_s),
            ..usual
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contenders_are_written_as_they_are_read() {
        for (text, told) in [
            ("first_come", "first_come@0"),
            ("batched@30", "batched@30"),
            ("rematch:60", "rematch:60@10"),
            ("rematch:60@2.5", "rematch:60@2.5"),
        ] {
            assert_eq!(text.parse::<Contender>().unwrap().to_string(), told);
        }
        for wrong in ["nearest", "batched@soon", "rematch:-1", "greedy@1e9", ""] {
            assert!(wrong.parse::<Contender>().is_err(), "{wrong:?}");
        }
    }
}
