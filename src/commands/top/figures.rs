//! From two looks at `/metrics` to what is shown.

use std::collections::BTreeMap;
use std::time::Instant;

/// A process's metrics: by name, each series with its labels as written.
pub type Metrics = BTreeMap<String, Vec<(String, f64)>>;

/// One look at a process.
pub struct Look {
    pub url: String,
    pub at: Instant,
    pub is_ready: bool,
    /// `None`: it did not answer.
    pub metrics: Option<Metrics>,
}

/// What is shown of a process.
#[derive(Debug, Default)]
pub struct Process {
    pub url: String,
    pub is_up: bool,
    pub is_ready: bool,
    pub version: String,
    pub positions: f64,
    pub commands: f64,
    /// From a command to its durable outcome, seconds.
    pub ack_p99: Option<f64>,
    pub commit_p99: Option<f64>,
    /// Taken and had.
    pub sockets: Option<(f64, f64)>,
    pub cores: f64,
    pub memory_bytes: f64,
}

/// What is shown of a shard.
#[derive(Debug, Default)]
pub struct Shard {
    /// Which process serves it.
    pub by: Option<String>,
    pub lag: f64,
    pub waiting: f64,
}

/// Everything that is shown.
#[derive(Debug, Default)]
pub struct View {
    pub rides: f64,
    pub offer_p50: Option<f64>,
    pub offer_p99: Option<f64>,
    pub positions: f64,
    pub refused: f64,
    pub open_rides: f64,
    pub waiting_rides: f64,
    pub drivers: f64,
    pub takeovers: f64,
    pub processes: Vec<Process>,
    pub shards: BTreeMap<u32, Shard>,
}

/// Reads Prometheus' text format; lines that are not understood are passed over.
pub fn read(text: &str) -> Metrics {
    let mut metrics = Metrics::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (series, value) = match line.rsplit_once(' ') {
            Some((series, value)) => (series, value.parse::<f64>()),
            None => continue,
        };
        let (name, labels) = match series.split_once('{') {
            Some((name, labels)) => (name, labels.trim_end_matches('}')),
            None => (series, ""),
        };
        if let Ok(value) = value {
            let of_name = metrics.entry(name.to_owned()).or_default();
            of_name.push((labels.to_owned(), value));
        }
    }
    metrics
}

/// The value of a label; ours hold no quotes.
fn label<'a>(labels: &'a str, name: &str) -> Option<&'a str> {
    labels.split(',').find_map(|label| {
        let (key, value) = label.split_once('=')?;
        (key == name).then(|| value.trim_matches('"'))
    })
}

/// The sum of a metric's series whose labels contain `with`.
fn sum(metrics: &Metrics, name: &str, with: &str) -> f64 {
    let series = metrics.get(name).into_iter().flatten();
    series
        .filter(|(labels, _)| labels.contains(with))
        .map(|(_, value)| value)
        .sum::<f64>()
        // The sum of nothing is minus zero.
        + 0.0
}

/// Two looks at one process.
struct Pair<'a> {
    before: Option<&'a Metrics>,
    now: &'a Metrics,
    seconds: f64,
}

impl Pair<'_> {
    /// How much a counter grew; one that is smaller than before has begun anew.
    fn grown(&self, name: &str, with: &str) -> f64 {
        let now = sum(self.now, name, with);
        let before = self.before.map_or(now, |before| sum(before, name, with));
        if now < before { now } else { now - before }
    }

    fn rate(&self, name: &str, with: &str) -> f64 {
        self.grown(name, with) / self.seconds
    }

    /// What fell into each bucket between the looks, cumulative, by upper end.
    fn buckets(&self, name: &str) -> Vec<(f64, f64)> {
        let name = format!("{name}_bucket");
        let series = self.now.get(&name).into_iter().flatten();
        let mut buckets: Vec<(f64, f64)> = Vec::new();
        for (labels, _) in series {
            let Some(end) = label(labels, "le").and_then(|le| le.parse().ok()) else {
                continue;
            };
            buckets.push((end, self.grown(&name, labels)));
        }
        buckets
    }
}

/// The value below which `part` of what fell into cumulative buckets lies, as Prometheus' `histogram_quantile` has it.
pub fn quantile(buckets: &[(f64, f64)], part: f64) -> Option<f64> {
    let mut by_end: Vec<(f64, f64)> = Vec::new();
    for &(end, count) in buckets {
        match by_end.iter_mut().find(|(known, _)| *known == end) {
            Some((_, sum)) => *sum += count,
            None => by_end.push((end, count)),
        }
    }
    by_end.sort_by(|a, b| a.0.total_cmp(&b.0));
    let total = by_end.last()?.1;
    if total <= 0.0 {
        return None;
    }
    let wanted = total * part;
    let (mut from, mut below) = (0.0, 0.0);
    for (end, count) in by_end {
        if count >= wanted {
            return Some(if end.is_infinite() || count == below {
                from
            } else {
                from + (end - from) * (wanted - below) / (count - below)
            });
        }
        (from, below) = (end, count);
    }
    None
}

impl View {
    /// What happened between two looks at the same processes.
    pub fn between(before: &[Look], now: &[Look]) -> View {
        let mut view = View::default();
        let mut offers = Vec::new();
        for (earlier, look) in before.iter().zip(now) {
            let Some(metrics) = &look.metrics else {
                view.processes.push(Process {
                    url: look.url.clone(),
                    ..Process::default()
                });
                continue;
            };
            let seconds = look.at.duration_since(earlier.at).as_secs_f64();
            let pair = Pair {
                before: earlier.metrics.as_ref(),
                now: metrics,
                seconds: seconds.max(0.001),
            };
            let process = Process::of(look, &pair);
            view.positions += process.positions;
            view.refused += pair.rate("cabrank_pings_total", "result=\"refused\"");
            view.rides += pair.rate("cabrank_commands_total", "type=\"request_ride\"");
            view.open_rides += sum(metrics, "cabrank_open_rides", "");
            view.waiting_rides += sum(metrics, "cabrank_waiting_rides", "");
            // Every node knows the drivers of the others, too.
            view.drivers = view.drivers.max(sum(metrics, "cabrank_drivers_known", ""));
            view.takeovers += sum(metrics, "cabrank_takeover_seconds_count", "");
            offers.extend(pair.buckets("cabrank_offer_seconds"));
            view.add_shards(look, metrics);
            view.processes.push(process);
        }
        view.offer_p50 = quantile(&offers, 0.5);
        view.offer_p99 = quantile(&offers, 0.99);
        view
    }

    /// Commands that wait in all shards.
    pub fn lag(&self) -> f64 {
        self.shards.values().map(|shard| shard.lag).sum::<f64>() + 0.0
    }

    fn add_shards(&mut self, look: &Look, metrics: &Metrics) {
        let shards = sum(metrics, "cabrank_shards", "");
        // As many as a city may have.
        for number in 0..(shards.clamp(0.0, 1_024.0) as u32) {
            self.shards.entry(number).or_default();
        }
        for (name, take) in [
            (
                "cabrank_shard_lag_commands",
                (|shard: &mut Shard, value| shard.lag += value) as fn(&mut Shard, f64),
            ),
            ("cabrank_shard_waiting_rides", |shard, value| {
                shard.waiting += value;
            }),
        ] {
            for (labels, value) in metrics.get(name).into_iter().flatten() {
                if let Some(number) = label(labels, "shard").and_then(|n| n.parse().ok()) {
                    take(self.shards.entry(number).or_default(), *value);
                }
            }
        }
        for (labels, served) in metrics.get("cabrank_shard_served").into_iter().flatten() {
            if let Some(number) = label(labels, "shard").and_then(|n| n.parse().ok())
                && *served > 0.0
            {
                let shard = self.shards.entry(number).or_default();
                shard.by = Some(look.url.clone());
            }
        }
    }
}

impl Process {
    fn of(look: &Look, pair: &Pair<'_>) -> Process {
        let metrics = pair.now;
        let version = metrics.get("cabrank_build_info").and_then(|series| {
            let (labels, _) = series.first()?;
            label(labels, "version")
        });
        let sockets_max = sum(metrics, "cabrank_sockets_max", "");
        let accepted = "result=\"accepted\"";
        // Over Kafka a position is counted by its gateway, and again by each node that takes it.
        let at_gateway = pair.rate("cabrank_pings_total", accepted);
        Process {
            url: look.url.clone(),
            is_up: true,
            is_ready: look.is_ready,
            version: version.unwrap_or("?").to_owned(),
            positions: at_gateway,
            commands: pair.rate("cabrank_commands_total", ""),
            ack_p99: quantile(&pair.buckets("cabrank_command_ack_seconds"), 0.99),
            commit_p99: quantile(&pair.buckets("cabrank_commit_seconds"), 0.99),
            sockets: (sockets_max > 0.0)
                .then(|| (sum(metrics, "cabrank_sockets_used", ""), sockets_max)),
            cores: pair.rate("process_cpu_seconds_total", ""),
            memory_bytes: sum(metrics, "process_resident_memory_bytes", ""),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_lies_where_prometheus_says_it_does() {
        let buckets = [
            (0.1, 50.0),
            (0.5, 90.0),
            (1.0, 100.0),
            (f64::INFINITY, 100.0),
        ];
        assert_eq!(quantile(&buckets, 0.5), Some(0.1));
        let between = quantile(&buckets, 0.7).unwrap();
        assert!((between - 0.3).abs() < 1e-9, "{between}");
        assert_eq!(quantile(&buckets, 0.95), Some(0.75));
        let beyond = [(0.1, 0.0), (f64::INFINITY, 10.0)];
        assert_eq!(quantile(&beyond, 0.99), Some(0.1));
        assert_eq!(quantile(&[(0.1, 0.0), (f64::INFINITY, 0.0)], 0.5), None);
        // Two processes: their buckets are added.
        let both = [
            (0.1, 1.0),
            (f64::INFINITY, 1.0),
            (0.1, 0.0),
            (f64::INFINITY, 1.0),
        ];
        assert_eq!(quantile(&both, 0.5), Some(0.1));
    }
}
