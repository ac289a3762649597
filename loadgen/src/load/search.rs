//! What is the highest rate that keeps a bound? Doubling, then halving the gap; pure, so that it is tested without load.

/// The gap at which the search is content: 5 %.
const CLOSE_ENOUGH: f64 = 1.05;
/// Trials of one search.
pub const TRIALS_MAX: u32 = 16;

/// A search under way: try [`Search::rate`], say how it went with [`Search::handle`], until it is `None`.
#[derive(Clone, Debug)]
pub struct Search {
    kept: Option<f64>,
    broken: Option<f64>,
    next: Option<f64>,
    trials: u32,
}

impl Search {
    /// A search that begins with `first`.
    pub fn new(first: f64) -> Search {
        Search {
            kept: None,
            broken: None,
            next: Some(first),
            trials: 0,
        }
    }

    /// The rate to be tried next.
    pub fn rate(&self) -> Option<f64> {
        self.next
    }

    /// The highest rate that kept the bound.
    pub fn best(&self) -> Option<f64> {
        self.kept
    }

    /// The rate was tried.
    pub fn handle(&mut self, kept: bool) {
        let Some(tried) = self.next else { return };
        self.trials += 1;
        if kept {
            self.kept = Some(self.kept.unwrap_or(0.0).max(tried));
        } else {
            self.broken = Some(self.broken.unwrap_or(f64::INFINITY).min(tried));
        }
        self.next = match (self.kept, self.broken) {
            _ if self.trials >= TRIALS_MAX => None,
            (Some(kept), None) => Some(kept * 2.0),
            (None, Some(broken)) => (broken > 2.0).then_some(broken / 2.0),
            (Some(kept), Some(broken)) => {
                (broken / kept > CLOSE_ENOUGH).then_some((kept * broken).sqrt())
            }
            (None, None) => None,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_rate_is_found_from_below_and_from_above() {
        for first in [100.0, 50_000.0, 3_000_000.0] {
            for limit in [700.0, 31_415.0, 400_000.0] {
                let mut search = Search::new(first);
                while let Some(rate) = search.rate() {
                    search.handle(rate <= limit);
                }
                let best = search.best().unwrap_or(0.0);
                assert!(best <= limit, "{best} from {first}");
                // A start far away may use up the trials before the last halving.
                assert!(best > limit / 1.3, "{best} of {limit} from {first}");
            }
        }
    }

    #[test]
    fn a_bound_nobody_keeps_ends_the_search() {
        let mut search = Search::new(1_000.0);
        while search.rate().is_some() {
            search.handle(false);
        }
        assert_eq!(search.best(), None);
    }
}
