//! The tokens that were believed lately, by their text.
//!
//! Bound: [`TOKENS_MAX`]. They are kept in two halves; when the newer is full, or old enough, it becomes the older, and what
//! was in the older and was not asked for meanwhile is forgotten. So people who keep calling stay, and those who called once
//! are gone after two [`HALF_LIFE`]s.

use std::sync::{PoisonError, RwLock};
use std::time::{Duration, Instant};

use dashmap::DashMap;

/// Tokens remembered at once.
const TOKENS_MAX: usize = 32_768;
/// How long the newer half grows.
const HALF_LIFE: Duration = Duration::from_secs(60);
/// Longer ones are not remembered.
const TOKEN_BYTES_MAX: usize = 2_048;

type Half<Value> = DashMap<Box<str>, Value>;

/// What is known about each token.
pub struct Remembered<Value>(RwLock<Halves<Value>>);

struct Halves<Value> {
    newer: Half<Value>,
    older: Half<Value>,
    turned: Instant,
}

impl<Value: Clone> Remembered<Value> {
    pub fn new(now: Instant) -> Self {
        Self(RwLock::new(Halves {
            newer: DashMap::new(),
            older: DashMap::new(),
            turned: now,
        }))
    }

    /// What is known about it.
    pub fn get(&self, token: &str, now: Instant) -> Option<Value> {
        let halves = self.0.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = halves.newer.get(token) {
            return Some(known.clone());
        }
        let (token, known) = halves.older.remove(token)?;
        drop(halves);
        self.keep(token, known.clone(), now);
        Some(known)
    }

    /// From now on this is known about it.
    pub fn put(&self, token: &str, value: Value, now: Instant) {
        if token.len() <= TOKEN_BYTES_MAX {
            self.keep(token.into(), value, now);
        }
    }

    /// Into the newer half, which may become the older one by that.
    fn keep(&self, token: Box<str>, value: Value, now: Instant) {
        let halves = self.0.read().unwrap_or_else(PoisonError::into_inner);
        halves.newer.insert(token, value);
        let is_due = halves.is_due(now);
        drop(halves);
        if is_due {
            let mut halves = self.0.write().unwrap_or_else(PoisonError::into_inner);
            // Unless a neighbour has just done it.
            if halves.is_due(now) {
                halves.older = std::mem::take(&mut halves.newer);
                halves.turned = now;
            }
        }
    }

    /// Forgets all.
    pub fn clear(&self) {
        let halves = self.0.read().unwrap_or_else(PoisonError::into_inner);
        halves.newer.clear();
        halves.older.clear();
    }
}

impl<Value> Halves<Value> {
    fn is_due(&self, now: Instant) -> bool {
        self.newer.len() >= TOKENS_MAX / 2
            || now.saturating_duration_since(self.turned) >= HALF_LIFE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl<Value: Clone> Remembered<Value> {
        pub fn len(&self) -> usize {
            let halves = self.0.read().unwrap();
            halves.newer.len() + halves.older.len()
        }
    }

    #[test]
    fn who_keeps_calling_is_remembered_and_who_called_once_is_forgotten_after_a_while() {
        let mut now = Instant::now();
        let tokens = Remembered::new(now);
        tokens.put("regular", 1, now);
        tokens.put("once", 2, now);
        for minute in 0..5 {
            now += HALF_LIFE;
            assert_eq!(tokens.get("regular", now), Some(1), "minute {minute}");
            tokens.put(&format!("passer-by of minute {minute}"), 3, now);
        }
        assert_eq!(tokens.get("once", now), None);
        assert!(tokens.len() <= 4, "{} are left", tokens.len());
    }

    #[test]
    fn a_crowd_is_not_remembered_beyond_the_bound() {
        let now = Instant::now();
        let tokens = Remembered::new(now);
        for n in 0..3 * TOKENS_MAX {
            tokens.put(&n.to_string(), n, now);
            assert!(n % 1_000 > 0 || tokens.len() <= TOKENS_MAX);
        }
        let newest = 3 * TOKENS_MAX - 1;
        assert_eq!(tokens.get(&newest.to_string(), now), Some(newest));
        tokens.put(&"long".repeat(TOKEN_BYTES_MAX), 0, now);
        assert_eq!(tokens.get(&"long".repeat(TOKEN_BYTES_MAX), now), None);
    }

    #[test]
    fn a_crowd_that_keeps_calling_is_not_remembered_beyond_the_bound() {
        let now = Instant::now();
        let tokens = Remembered::new(now);
        for round in 0..4 {
            for n in 0..TOKENS_MAX / 2 {
                tokens.put(&format!("{round}/{n}"), n, now);
                assert!(n % 1_000 > 0 || tokens.len() <= TOKENS_MAX);
            }
            for n in 0..TOKENS_MAX / 2 {
                tokens.get(&format!("{round}/{n}"), now);
                assert!(n % 1_000 > 0 || tokens.len() <= TOKENS_MAX);
            }
        }
    }
}
