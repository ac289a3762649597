//! What did the server do with the pings? Its Prometheus counters, read from outside.
//!
//! A server that was killed begins to count at 0 again: a counter that falls means another life, and the lives are added
//! up. What the old life counted after the last look is lost, which is why it is looked often.

use std::collections::BTreeMap;

use super::{CALL_WITHIN, Context};

/// The series: label `result` is `accepted`, `refused` or `replaced`, label `reason` says why it was refused.
pub const PINGS: &str = "cabrank_pings_total";

/// What was counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PingCounts {
    /// Believed.
    pub accepted: u64,
    /// Refused, by reason.
    pub refused: BTreeMap<String, u64>,
    /// Overtaken.
    pub replaced: u64,
}

impl PingCounts {
    /// Reads the text of `/metrics`. Counters that are absent count as 0.
    pub fn parse(text: &str) -> PingCounts {
        let mut counts = PingCounts::default();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let Some((series, value)) = line.rsplit_once(' ') else {
                continue;
            };
            let Ok(value) = value.parse::<f64>() else {
                continue;
            };
            let value = value as u64;
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            if name.trim() != PINGS {
                continue;
            }
            match label(labels, "result") {
                Some("accepted") => counts.accepted += value,
                Some("replaced") => counts.replaced += value,
                Some("refused") => {
                    let reason = label(labels, "reason").unwrap_or("unknown");
                    *counts.refused.entry(reason.to_owned()).or_default() += value;
                }
                _ => {}
            }
        }
        counts
    }

    /// All of them.
    pub fn total(&self) -> u64 {
        self.accepted + self.replaced + self.refused.values().sum::<u64>()
    }

    /// Adds what another server, or another life of this one, counted.
    pub fn add(&mut self, other: &PingCounts) {
        self.accepted += other.accepted;
        self.replaced += other.replaced;
        for (reason, count) in &other.refused {
            *self.refused.entry(reason.clone()).or_default() += count;
        }
    }

    /// What was counted since `other`.
    pub fn less(&self, other: &PingCounts) -> PingCounts {
        let refused = self.refused.iter().map(|(reason, count)| {
            let before = other.refused.get(reason).copied().unwrap_or(0);
            (reason.clone(), count.saturating_sub(before))
        });
        PingCounts {
            accepted: self.accepted.saturating_sub(other.accepted),
            refused: refused.collect(),
            replaced: self.replaced.saturating_sub(other.replaced),
        }
    }

    fn has_fallen_below(&self, other: &PingCounts) -> bool {
        self.accepted < other.accepted
            || self.replaced < other.replaced
            || other
                .refused
                .iter()
                .any(|(reason, count)| self.refused.get(reason).copied().unwrap_or(0) < *count)
    }
}

/// The value of one label; our values hold no quotes.
fn label<'a>(labels: &'a str, name: &str) -> Option<&'a str> {
    let start = labels.find(&format!("{name}=\""))? + name.len() + 2;
    Some(labels[start..].split_once('"')?.0)
}

/// The counters of a run, over the lives of the server.
#[derive(Clone, Debug, Default)]
pub struct ServerCounters {
    /// What was counted before the run began.
    baseline: PingCounts,
    /// What former lives counted in this run.
    past: PingCounts,
    latest: PingCounts,
    begun: bool,
    /// Lives of the server seen in this run.
    pub lives: u32,
}

impl ServerCounters {
    /// Takes one reading.
    pub fn handle_reading(&mut self, reading: PingCounts) {
        if !self.begun {
            self.begun = true;
            self.lives = 1;
            self.baseline = reading.clone();
        } else if reading.has_fallen_below(&self.latest) {
            self.past.add(&self.latest.less(&self.baseline));
            self.baseline = PingCounts::default();
            self.lives += 1;
        }
        self.latest = reading;
    }

    /// What was counted in this run so far.
    pub fn counted(&self) -> PingCounts {
        let mut counted = self.past.clone();
        counted.add(&self.latest.less(&self.baseline));
        counted
    }
}

/// The counters of every gateway of a run.
#[derive(Clone, Debug)]
pub struct GatewayCounters(Vec<One>);

#[derive(Clone, Debug)]
struct One {
    url: String,
    counters: ServerCounters,
    is_silent: bool,
}

impl GatewayCounters {
    /// Of the gateways at these addresses (`http://...`).
    pub fn at(urls: &[String]) -> GatewayCounters {
        let one = |url: &String| One {
            url: url.trim_end_matches('/').to_owned(),
            counters: ServerCounters::default(),
            is_silent: false,
        };
        GatewayCounters(urls.iter().map(one).collect())
    }

    /// Their addresses.
    pub fn urls(&self) -> Vec<String> {
        self.0.iter().map(|one| one.url.clone()).collect()
    }

    /// Takes one reading of each, in the order of [`GatewayCounters::urls`].
    pub fn handle_readings(&mut self, readings: Vec<Result<PingCounts, String>>) {
        for (one, reading) in self.0.iter_mut().zip(readings) {
            one.is_silent = reading.is_err();
            if let Ok(reading) = reading {
                one.counters.handle_reading(reading);
            }
        }
    }

    /// What all of them counted in this run so far.
    pub fn counted(&self) -> PingCounts {
        let mut counted = PingCounts::default();
        for one in &self.0 {
            counted.add(&one.counters.counted());
        }
        counted
    }

    /// Lives of the server: one, and one more for each gateway that began anew or is gone.
    pub fn lives(&self) -> u32 {
        let ended = self
            .0
            .iter()
            .map(|one| one.counters.lives.saturating_sub(1) + u32::from(one.is_silent));
        1 + ended.sum::<u32>()
    }
}

/// Reads the counters of each address once.
pub async fn read(context: &Context, urls: &[String]) -> Vec<Result<PingCounts, String>> {
    let mut readings = Vec::new();
    for url in urls {
        readings.push(read_one(context, url).await);
    }
    readings
}

async fn read_one(context: &Context, url: &str) -> Result<PingCounts, String> {
    let call = context
        .http
        .get(format!("{url}/metrics"))
        .timeout(CALL_WITHIN);
    let response = call.send().await.map_err(|why| why.to_string())?;
    if !response.status().is_success() {
        return Err(format!("/metrics answered {}", response.status()));
    }
    Ok(PingCounts::parse(
        &response.text().await.map_err(|why| why.to_string())?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(accepted: u64, too_old: u64) -> PingCounts {
        PingCounts::parse(&format!(
            "# HELP cabrank_pings_total x\n# TYPE cabrank_pings_total counter\n\
             cabrank_pings_total{{result=\"accepted\",reason=\"\"}} {accepted}\n\
             cabrank_pings_total{{result=\"refused\",reason=\"too_old\"}} {too_old}\n\
             cabrank_pings_total{{result=\"refused\",reason=\"too_many\"}} 1\n\
             cabrank_pings_total{{result=\"replaced\",reason=\"\"}} 2\n\
             cabrank_pings_sent_total 9\n"
        ))
    }

    #[test]
    fn counters_are_read_by_reason() {
        let counts = reading(7, 3);
        assert_eq!(
            (counts.accepted, counts.replaced, counts.total()),
            (7, 2, 13)
        );
        assert_eq!(counts.refused["too_old"], 3);
        assert_eq!(counts.refused["too_many"], 1);
    }

    #[test]
    fn lives_of_the_server_are_added_up() {
        let mut counters = ServerCounters::default();
        for (accepted, too_old) in [(100, 5), (150, 6), (160, 6), (10, 0), (30, 1)] {
            counters.handle_reading(reading(accepted, too_old));
        }
        let counted = counters.counted();
        assert_eq!(counters.lives, 2);
        assert_eq!(counted.accepted, 60 + 30);
        assert_eq!(counted.refused["too_old"], 1 + 1);
    }

    #[test]
    fn gateways_are_added_up_and_one_that_is_gone_is_a_life_less() {
        let urls = ["http://a/".to_owned(), "http://b".to_owned()];
        let mut counters = GatewayCounters::at(&urls);
        assert_eq!(counters.urls(), ["http://a", "http://b"]);
        counters.handle_readings(vec![Ok(reading(10, 0)), Ok(reading(100, 0))]);
        counters.handle_readings(vec![Ok(reading(15, 0)), Ok(reading(130, 2))]);
        assert_eq!((counters.counted().accepted, counters.lives()), (35, 1));
        counters.handle_readings(vec![Ok(reading(20, 0)), Err("refused".into())]);
        assert_eq!((counters.counted().accepted, counters.lives()), (40, 2));
        assert_eq!(counters.counted().refused["too_old"], 2);
    }
}
