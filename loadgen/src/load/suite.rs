//! What must be reached, row by row: which runs make a row, what is read off them, what was asked for, and the table.
//!
//! Pure: whoever carries the rows out hands in what each run said, as JSON. A *round* is one run of each of a row's
//! subjects, one after the other; ratios are taken inside a round, and medians over rounds.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::compare::median;

/// What stands in a row's arguments for the address of the Redis server.
pub const REDIS: &str = "{redis}";
/// ... for a share of the median an earlier row found: `{ping*0.7}`.
const SHARE_OPENS: char = '{';

/// One side of a row.
#[derive(Clone, Copy, Debug)]
pub struct Subject {
    /// `cabrank`, `raw`, `redis`, or what sets it apart.
    pub name: &'static str,
    /// Arguments of `cabrank load`, split at spaces.
    pub arguments: &'static str,
}

/// What the runs of one round said, by subject. A subject that was not run is absent.
pub type Round = BTreeMap<String, Value>;

/// One number of a row.
#[derive(Clone, Copy)]
pub struct Figure {
    /// What it is, with its unit.
    pub what: &'static str,
    /// Reads it off a round.
    pub of: fn(&Round) -> Option<f64>,
    /// What was asked for.
    pub bound: Bound,
}

/// What was asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bound {
    /// For orientation.
    Open,
    /// So much or more.
    AtLeast(f64),
    /// So much or less.
    AtMost(f64),
}

/// One row of the table.
#[derive(Clone, Copy)]
pub struct Row {
    /// How it is chosen.
    pub name: &'static str,
    /// The workload in words.
    pub what: &'static str,
    /// Its sides, in the order of running.
    pub subjects: &'static [Subject],
    /// Its numbers.
    pub figures: &'static [Figure],
    /// One bound that is kept is enough.
    pub any: bool,
    /// Rounds at most: what is no distribution is not repeated, what takes minutes not often.
    pub rounds_max: u32,
    /// Whether it is run when no rows are named.
    pub by_default: bool,
}

fn at(round: &Round, subject: &str, pointer: &str) -> Option<f64> {
    round.get(subject)?.pointer(pointer)?.as_f64()
}

fn ratio(round: &Round, above: &str, below: &str, pointer: &str) -> Option<f64> {
    let below = at(round, below, pointer).filter(|value| *value > 0.0)?;
    Some(at(round, above, pointer)? / below)
}

const TAKEN: &str = "/load/pings_taken_per_second";
const CORES: &str = "/load/server/cores";
const SEARCHES: &str = "/load/kinds/nearby/done_per_second";
const SEARCH_P99: &str = "/load/kinds/nearby/latency_ms/p99";
const VISIBLE_P50: &str = "/load/kinds/ping_to_visible/latency_ms/p50";
const VISIBLE_P99: &str = "/load/kinds/ping_to_visible/latency_ms/p99";
const OFFER_P50: &str = "/load/kinds/request_to_offer/latency_ms/p50";
const OFFER_P99: &str = "/load/kinds/request_to_offer/latency_ms/p99";
const COMMANDS: &str = "/load/kinds/command/done_per_second";
const MEMORY: &str = "/load/server/memory_end_mib";
const COMMAND_P99: &str = "/kinds/command/p99";
const HOST_TOOK: &str = "/load/host_took_cores";
const MEMORY_BEFORE: &str = "/load/server_memory_before_mib";
/// Received, accept, arrived, started, completed.
const COMMANDS_PER_RIDE: f64 = 5.0;

/// Microseconds of server CPU a ping.
fn cpu_per_ping(round: &Round, subject: &str) -> Option<f64> {
    let taken = at(round, subject, TAKEN).filter(|taken| *taken > 0.0)?;
    Some(at(round, subject, CORES)? * 1e6 / taken)
}

/// Conditions a run did not keep.
fn broken(round: &Round, subject: &str) -> Option<f64> {
    let conditions = round
        .get(subject)?
        .pointer("/load/conditions")?
        .as_array()?;
    let broken = conditions.iter().filter(|one| one["kept"] != true).count();
    (!conditions.is_empty()).then_some(broken as f64)
}

/// The median of a second's value over the seconds from `from` to `to` (negative: from the end).
fn over_seconds(round: &Round, subject: &str, pointer: &str, from: i64, to: i64) -> Option<f64> {
    let series = round.get(subject)?.pointer("/load/series")?.as_array()?;
    let length = series.len() as i64;
    let place = |n: i64| (if n < 0 { length + n } else { n }).clamp(0, length) as usize;
    let part = series.get(place(from)..place(to))?;
    let values: Vec<f64> = part
        .iter()
        .filter_map(|second| second.pointer(pointer)?.as_f64())
        .collect();
    (!values.is_empty()).then(|| median(&values))
}

const fn open(what: &'static str, of: fn(&Round) -> Option<f64>) -> Figure {
    Figure {
        what,
        of,
        bound: Bound::Open,
    }
}

const fn at_least(what: &'static str, least: f64, of: fn(&Round) -> Option<f64>) -> Figure {
    Figure {
        what,
        of,
        bound: Bound::AtLeast(least),
    }
}

const fn at_most(what: &'static str, most: f64, of: fn(&Round) -> Option<f64>) -> Figure {
    Figure {
        what,
        of,
        bound: Bound::AtMost(most),
    }
}

const fn subject(name: &'static str, arguments: &'static str) -> Subject {
    Subject { name, arguments }
}

/// All rows, in the order of running.
pub const ROWS: &[Row] = &[
    Row {
        name: "ping",
        what: "ping ingest as phones do it: JSON, every ping a write of its own, 1,000 connections",
        subjects: &[
            subject(
                "cabrank",
                "--closed-loop 1000 --pings-per-second 1 --drivers 1000 --no-probe",
            ),
            subject(
                "raw",
                "--target raw --closed-loop 1000 --pings-per-second 1 --drivers 1000 --no-probe",
            ),
            subject(
                "redis",
                "--target {redis} --closed-loop 1000 --pings-per-second 1 --drivers 1000 --no-probe",
            ),
        ],
        figures: &[
            open("pings/s", |r| at(r, "cabrank", TAKEN)),
            open("raw sink: pings/s", |r| at(r, "raw", TAKEN)),
            open("Redis GEOADD/s, each awaited", |r| at(r, "redis", TAKEN)),
            at_least("times the raw sink", 1.0, |r| {
                ratio(r, "cabrank", "raw", TAKEN)
            }),
            at_least("times Redis", 1.0, |r| ratio(r, "cabrank", "redis", TAKEN)),
            open("server CPU a ping, us", |r| cpu_per_ping(r, "cabrank")),
            open("raw sink: CPU a ping, us", |r| cpu_per_ping(r, "raw")),
            open("Redis: CPU a ping, us", |r| cpu_per_ping(r, "redis")),
        ],
        any: false,
        rounds_max: 20,
        by_default: true,
    },
    Row {
        name: "ping16",
        what: "ping ingest, coalesced: JSON, 16 frames a write, 1,000 connections",
        subjects: &[
            subject(
                "cabrank",
                "--closed-loop 1000 --pings-per-second 1 --frames-per-write 16 --drivers 1000 --no-probe",
            ),
            subject(
                "raw",
                "--target raw --closed-loop 1000 --pings-per-second 1 --frames-per-write 16 --drivers 1000 --no-probe",
            ),
            subject(
                "redis",
                "--target {redis} --closed-loop 1000 --pings-per-second 1 --frames-per-write 16 --drivers 1000 --no-probe",
            ),
        ],
        figures: &[
            open("pings/s", |r| at(r, "cabrank", TAKEN)),
            open("raw sink: pings/s", |r| at(r, "raw", TAKEN)),
            open("Redis GEOADD/s, pipelined by 16", |r| at(r, "redis", TAKEN)),
            at_least("times the raw sink", 0.6, |r| {
                ratio(r, "cabrank", "raw", TAKEN)
            }),
            open("times Redis", |r| ratio(r, "cabrank", "redis", TAKEN)),
        ],
        any: false,
        rounds_max: 20,
        by_default: true,
    },
    Row {
        name: "proto10",
        what: "ping ingest: Protobuf, 10 pings a frame, 1,000 connections",
        subjects: &[
            subject(
                "cabrank",
                "--closed-loop 1000 --pings-per-second 1 --threads 2 --frames protobuf --pings-per-frame 10 --drivers 1000 --no-probe",
            ),
            subject(
                "raw",
                "--target raw --decode --closed-loop 1000 --pings-per-second 1 --threads 2 --frames protobuf --pings-per-frame 10 --drivers 1000 --no-probe",
            ),
        ],
        figures: &[
            at_least("pings/s", 1_000_000.0, |r| at(r, "cabrank", TAKEN)),
            open("decoding sink: pings/s", |r| at(r, "raw", TAKEN)),
            at_least("times the decoding sink", 0.6, |r| {
                ratio(r, "cabrank", "raw", TAKEN)
            }),
        ],
        any: true,
        rounds_max: 20,
        by_default: true,
    },
    Row {
        name: "visible",
        what: "a ping until a search shows it, 50,000 pings/s offered, 1,000 connections",
        subjects: &[subject(
            "cabrank",
            "--pings-per-second 50000 --drivers 1000",
        )],
        figures: &[
            open("p50 ms", |r| at(r, "cabrank", VISIBLE_P50)),
            at_most("p99 ms", 2.0, |r| at(r, "cabrank", VISIBLE_P99)),
        ],
        any: false,
        rounds_max: 20,
        by_default: true,
    },
    Row {
        name: "cpu",
        what: "server CPU at 50,000 pings/s offered, one ping a write, 1,000 connections",
        subjects: &[
            subject(
                "cabrank",
                "--pings-per-second 50000 --drivers 1000 --no-probe",
            ),
            subject(
                "raw",
                "--target raw --pings-per-second 50000 --drivers 1000 --no-probe",
            ),
        ],
        figures: &[
            open("cores", |r| at(r, "cabrank", CORES)),
            open("raw sink: cores", |r| at(r, "raw", CORES)),
            at_most("times the raw sink", 0.5, |r| {
                ratio(r, "cabrank", "raw", CORES)
            }),
        ],
        any: false,
        rounds_max: 20,
        by_default: true,
    },
    Row {
        name: "mixed",
        what: "50,000 pings/s and 1,500 searches/s, open loop, 1,000 drivers over 39 x 34 km, 2 km, k = 10",
        subjects: &[
            subject(
                "cabrank",
                "--pings-per-second 50000 --nearby-per-second 1500 --drivers 1000 --area-km 39x34 --no-probe",
            ),
            subject(
                "redis",
                "--target {redis} --pings-per-second 50000 --nearby-per-second 1500 --drivers 1000 --area-km 39x34 --no-probe",
            ),
        ],
        figures: &[
            at_most("search p99 ms", 2.0, |r| at(r, "cabrank", SEARCH_P99)),
            open("Redis: search p99 ms", |r| at(r, "redis", SEARCH_P99)),
        ],
        any: false,
        rounds_max: 20,
        by_default: true,
    },
    Row {
        name: "rides-200",
        what: "whole rides, embedded log, fsync on, 200/s offered",
        subjects: &[subject(
            "cabrank",
            "--rides-per-second 200 --drivers 1000 --no-probe",
        )],
        figures: &[
            at_most("request to offer p50 ms", 3.0, |r| {
                at(r, "cabrank", OFFER_P50)
            }),
            at_most("request to offer p99 ms", 15.0, |r| {
                at(r, "cabrank", OFFER_P99)
            }),
        ],
        any: false,
        rounds_max: 20,
        by_default: true,
    },
    Row {
        name: "rides",
        what: "whole rides (request, offer, receipt, accept, arrive, start, complete), embedded log, fsync on, closed loop",
        subjects: &[subject(
            "cabrank",
            "--closed-loop 256 --rides-per-second 1 --drivers 1000 --no-probe",
        )],
        figures: &[at_least("rides/s", 2_000.0, |r| {
            Some(at(r, "cabrank", COMMANDS)? / COMMANDS_PER_RIDE)
        })],
        any: false,
        rounds_max: 20,
        by_default: true,
    },
    Row {
        name: "ghosts",
        what: "all drivers move 5 km; all go offline",
        subjects: &[subject(
            "cabrank",
            "--ghosts --nearby-per-second 10 --drivers 1000 --connections 10 --no-probe",
        )],
        figures: &[
            at_most("stale cars after the move", 0.0, |r| {
                at(r, "cabrank", "/load/ghosts/stale_after_move")
            }),
            at_most("stale cars after going offline", 0.0, |r| {
                at(r, "cabrank", "/load/ghosts/stale_after_offline")
            }),
        ],
        any: false,
        rounds_max: 5,
        by_default: true,
    },
    Row {
        name: "index",
        what: "the index alone: 10 nearest of a class, moves of 50 m, 100,000 drivers on 39 x 34 km, other sizes as dense",
        subjects: &[
            subject("10k", "index --drivers 10000"),
            subject("100k", "index --drivers 100000"),
            subject("1M", "index --drivers 1000000"),
        ],
        figures: &[
            at_most("bytes a driver at 1 M", 200.0, |r| {
                at(r, "1M", "/bytes_per_driver")
            }),
            open("search at 10 k, us", |r| at(r, "10k", "/search_us")),
            open("search at 100 k, us", |r| at(r, "100k", "/search_us")),
            open("search at 1 M, us", |r| at(r, "1M", "/search_us")),
            at_most("search, 1 M to 100 k", 1.5, |r| {
                ratio(r, "1M", "100k", "/search_us")
            }),
            open("ping at 10 k, ns", |r| at(r, "10k", "/ping_ns")),
            open("ping at 1 M, ns", |r| at(r, "1M", "/ping_ns")),
            at_most("ping to a bare random store, 10 k", 2.0, |r| {
                Some(at(r, "10k", "/ping_ns")? / at(r, "10k", "/store_ns")?)
            }),
            at_most("ping to a bare random store, 1 M", 2.0, |r| {
                Some(at(r, "1M", "/ping_ns")? / at(r, "1M", "/store_ns")?)
            }),
        ],
        any: false,
        rounds_max: 5,
        by_default: true,
    },
    Row {
        name: "sockets",
        what: "15,000 idle drivers' sockets, beside the same drivers hung up",
        subjects: &[
            subject(
                "open",
                "--nearby-per-second 10 --drivers 15000 --connections 15000 --processes 4 --no-probe",
            ),
            subject(
                "hung-up",
                "--nearby-per-second 10 --drivers 15000 --connections 100 --no-probe",
            ),
        ],
        figures: &[
            at_most("server memory a socket, KiB", 10.0, |r| {
                Some((at(r, "open", MEMORY)? - at(r, "hung-up", MEMORY)?) * 1_024.0 / 14_900.0)
            }),
            open(
                "server memory a driver with a socket and a session, KiB",
                |r| {
                    Some(
                        (at(r, "open", MEMORY)? - at(r, "open", MEMORY_BEFORE)?) * 1_024.0
                            / 15_000.0,
                    )
                },
            ),
        ],
        any: false,
        rounds_max: 5,
        by_default: true,
    },
    Row {
        name: "nearby",
        what: "GET /v1/nearby over 8 keep-alive connections, closed loop, drivers over 39 x 34 km, 2 km, k = 10",
        subjects: &[
            subject(
                "50k",
                "--closed-loop 8 --nearby-per-second 1 --drivers 50000 --connections 8 --area-km 39x34 --no-probe",
            ),
            subject(
                "100k",
                "--closed-loop 8 --nearby-per-second 1 --drivers 100000 --connections 8 --area-km 39x34 --no-probe",
            ),
            subject(
                "redis-50k",
                "--target {redis} --closed-loop 8 --nearby-per-second 1 --drivers 50000 --connections 8 --area-km 39x34 --no-probe",
            ),
            subject(
                "redis-100k",
                "--target {redis} --closed-loop 8 --nearby-per-second 1 --drivers 100000 --connections 8 --area-km 39x34 --no-probe",
            ),
        ],
        figures: &[
            at_least("searches/s among 50,000", 30_000.0, |r| {
                at(r, "50k", SEARCHES)
            }),
            at_most("p99 ms among 50,000", 2.0, |r| at(r, "50k", SEARCH_P99)),
            open("searches/s among 100,000", |r| at(r, "100k", SEARCHES)),
            at_least("100,000 to 50,000", 0.8, |r| {
                ratio(r, "100k", "50k", SEARCHES)
            }),
            open("Redis: searches/s among 50,000", |r| {
                at(r, "redis-50k", SEARCHES)
            }),
            open("Redis: p99 ms among 50,000", |r| {
                at(r, "redis-50k", SEARCH_P99)
            }),
            open("Redis: searches/s among 100,000", |r| {
                at(r, "redis-100k", SEARCHES)
            }),
            open("times Redis among 50,000", |r| {
                ratio(r, "50k", "redis-50k", SEARCHES)
            }),
        ],
        any: false,
        rounds_max: 5,
        by_default: true,
    },
    Row {
        name: "overload",
        what: "30 s of twice the highest rate of rides (row `rides`) and 80,000 pings/s; a quarter of that for 10 s before and 15 s after",
        // The generator goes before the server: beside it, it was seconds late by itself, and what it measured was that.
        subjects: &[subject(
            "cabrank",
            "--overload --rides-per-second {rides*1} --ride-connections 2000 --pings-per-second 40000 --drivers 5000 --think-ms 300 --step-ms 300 --seconds 10 --warmup 3 --server-nice 10",
        )],
        figures: &[
            at_most("broken conditions", 0.0, |r| broken(r, "cabrank")),
            open("rides' commands, normally: p99 ms, median second", |r| {
                over_seconds(r, "cabrank", COMMAND_P99, 0, 10)
            }),
            at_most("the same in the overload, times normal", 3.0, |r| {
                let normal = over_seconds(r, "cabrank", COMMAND_P99, 0, 10)?;
                Some(over_seconds(r, "cabrank", COMMAND_P99, 10, 40)? / normal)
            }),
            at_most("the same 5 s after it, times normal", 3.0, |r| {
                let normal = over_seconds(r, "cabrank", COMMAND_P99, 0, 10)?;
                Some(over_seconds(r, "cabrank", COMMAND_P99, 45, 55)? / normal)
            }),
        ],
        any: false,
        rounds_max: 5,
        by_default: true,
    },
    Row {
        name: "storm",
        what: "15,000 sockets at once after a restart of the server",
        subjects: &[subject(
            "cabrank",
            "--storm --pings-per-second 3000 --drivers 15000 --processes 4 --no-probe --seconds 45",
        )],
        figures: &[
            at_most("broken conditions", 0.0, |r| broken(r, "cabrank")),
            open("all back after, s", |r| {
                at(r, "cabrank", "/load/storm/back_after_s")
            }),
        ],
        any: false,
        rounds_max: 5,
        by_default: true,
    },
    Row {
        name: "highest",
        what: "the highest rate of pings, open loop, that keeps 99 of 100 visible within 20 ms, with 100 searches/s and 20 rides/s",
        subjects: &[subject(
            "cabrank",
            "--find-max pings --p99-below 20ms --pings-per-second 60000 --nearby-per-second 100 --rides-per-second 20 --drivers 1000 --threads 2 --seconds 10",
        )],
        figures: &[open("pings/s", |r| at(r, "cabrank", TAKEN))],
        any: false,
        rounds_max: 3,
        by_default: false,
    },
    Row {
        name: "soak",
        // What the server remembers of ended rides and drivers it remembers for ten minutes, so in ten minutes it
        // must grow: with 90 s, and a cache that is soon full, the second minute has what the last has.
        what: "10 minutes at 70 % of the highest rate of pings (row `highest`), with 100 searches/s and 20 rides/s",
        subjects: &[subject(
            "cabrank",
            "CABRANK_ENGINE__KEY_MEMORY_MS=90000 CABRANK_ENGINE__DRIVER_MEMORY_MS=90000 CABRANK_STORE__CACHE_BYTES=16777216 \
             --pings-per-second {highest*0.7} --nearby-per-second 100 --rides-per-second 20 --drivers 1000 --threads 2 --seconds 600",
        )],
        figures: &[
            at_most("p99 until visible, last minute to the second", 1.2, |r| {
                let pointer = "/kinds/ping_to_visible/p99";
                let second = over_seconds(r, "cabrank", pointer, 60, 120)?;
                Some(over_seconds(r, "cabrank", pointer, -60, i64::MAX)? / second)
            }),
            at_most("memory, last minute to the second", 1.05, |r| {
                let second = over_seconds(r, "cabrank", "/server_memory_mib", 60, 120)?;
                Some(over_seconds(r, "cabrank", "/server_memory_mib", -60, i64::MAX)? / second)
            }),
        ],
        any: false,
        rounds_max: 1,
        by_default: false,
    },
];

/// The arguments with the addresses and the rates found so far put in. None: a Redis is wanted and there is none.
pub fn filled(
    arguments: &str,
    redis: Option<&str>,
    found: &BTreeMap<String, f64>,
) -> Option<Vec<String>> {
    let one = |argument: &str| {
        if argument == REDIS {
            return redis.map(str::to_owned);
        }
        let inner = argument
            .strip_prefix(SHARE_OPENS)
            .and_then(|rest| rest.strip_suffix('}'));
        let Some((row, share)) = inner.and_then(|inner| inner.split_once('*')) else {
            return Some(argument.to_owned());
        };
        let rate = found.get(row).copied().unwrap_or(1_000.0);
        Some(format!("{:.0}", rate * share.parse::<f64>().unwrap_or(1.0)))
    };
    arguments.split_whitespace().map(one).collect()
}

/// One number of a measured row.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MeasuredFigure {
    /// What it is.
    pub what: String,
    /// One a round.
    pub values: Vec<f64>,
    /// Their middle.
    pub median: f64,
    /// The least.
    pub least: f64,
    /// The most.
    pub most: f64,
    /// What was asked for, in words; empty if nothing.
    pub asked: String,
    /// `met`, `MISSED`, `not valid`, `not run`; empty if nothing was asked for.
    pub verdict: String,
}

/// A measured row.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MeasuredRow {
    /// Its name.
    pub name: String,
    /// The workload.
    pub what: String,
    /// Rounds that were run.
    pub rounds: usize,
    /// Its numbers.
    pub figures: Vec<MeasuredFigure>,
    /// Why runs do not count, by subject.
    pub invalid: Vec<String>,
    /// Cores this machine's host gave to other guests, by run.
    #[serde(default)]
    pub host_took_cores: Vec<f64>,
    /// The commands, as they can be repeated.
    pub commands: Vec<String>,
    /// Seconds it took.
    pub took_s: f64,
}

fn is_valid(said: &Value) -> bool {
    said["valid"] != Value::Bool(false)
}

/// Reads a row off its rounds. Runs that do not count are left out; where that leaves nothing, they are shown and marked.
pub fn measured(row: &Row, rounds: &[Round], commands: Vec<String>, took_s: f64) -> MeasuredRow {
    let mut invalid = Vec::new();
    let mut sound: Vec<Round> = Vec::new();
    for (n, round) in rounds.iter().enumerate() {
        let mut kept = Round::new();
        for (name, said) in round {
            if is_valid(said) {
                kept.insert(name.clone(), said.clone());
            } else {
                let why = said.pointer("/invalid_because/0").and_then(Value::as_str);
                invalid.push(format!("{name}, round {}: {}", n + 1, why.unwrap_or("?")));
            }
        }
        sound.push(kept);
    }
    let figure = |figure: &Figure| {
        let read = |rounds: &[Round]| -> Vec<f64> { rounds.iter().filter_map(figure.of).collect() };
        let good = read(&sound);
        let (values, counts) = if good.is_empty() {
            (read(rounds), false)
        } else {
            (good, true)
        };
        let middle = if values.is_empty() {
            0.0
        } else {
            median(&values)
        };
        let (asked, kept) = match figure.bound {
            Bound::Open => (String::new(), true),
            Bound::AtLeast(least) => (format!(">= {}", number(least)), middle >= least),
            Bound::AtMost(most) => (format!("<= {}", number(most)), middle <= most),
        };
        let verdict = match (values.is_empty(), counts, kept) {
            (true, ..) => "not run",
            (_, false, _) => "not valid",
            _ if figure.bound == Bound::Open => "",
            (_, _, true) => "met",
            (_, _, false) => "MISSED",
        };
        MeasuredFigure {
            what: figure.what.to_owned(),
            median: middle,
            least: values.iter().copied().reduce(f64::min).unwrap_or(0.0),
            most: values.iter().copied().reduce(f64::max).unwrap_or(0.0),
            values,
            asked,
            verdict: verdict.to_owned(),
        }
    };
    let mut figures: Vec<MeasuredFigure> = row.figures.iter().map(figure).collect();
    if row.any && figures.iter().any(|figure| figure.verdict == "met") {
        for figure in figures
            .iter_mut()
            .filter(|figure| figure.verdict == "MISSED")
        {
            figure.verdict = "the other one is met".to_owned();
        }
    }
    let took = |said: &Value| said.pointer(HOST_TOOK).and_then(Value::as_f64);
    MeasuredRow {
        host_took_cores: rounds
            .iter()
            .flat_map(BTreeMap::values)
            .filter_map(took)
            .collect(),
        name: row.name.to_owned(),
        what: row.what.to_owned(),
        rounds: rounds.len(),
        figures,
        invalid,
        commands,
        took_s,
    }
}

/// A number with as many digits as it deserves.
pub fn number(value: f64) -> String {
    match value.abs() {
        large if large >= 10_000.0 => {
            let digits = format!("{value:.0}");
            let mut text = String::new();
            for (n, digit) in digits.chars().enumerate() {
                if n > 0 && (digits.len() - n).is_multiple_of(3) && digits.as_bytes()[n - 1] != b'-'
                {
                    text.push(',');
                }
                text.push(digit);
            }
            text
        }
        large if large >= 100.0 => format!("{value:.0}"),
        middle if middle >= 10.0 => format!("{value:.1}"),
        small if small == 0.0 || small.fract() == 0.0 => format!("{value:.0}"),
        _ => format!("{value:.2}"),
    }
}

/// The table and the commands in Markdown, ready to be pasted.
pub fn markdown(rows: &[MeasuredRow]) -> String {
    let mut text = String::new();
    let _ = writeln!(
        text,
        "| row | figure | median | least to most | runs | asked for | |"
    );
    let _ = writeln!(text, "|---|---|---|---|---|---|---|");
    for row in rows {
        for (n, figure) in row.figures.iter().enumerate() {
            let name = if n == 0 {
                format!("`{}`: {}", row.name, row.what)
            } else {
                String::new()
            };
            let shown = if figure.values.is_empty() {
                ("-".to_owned(), "-".to_owned())
            } else {
                let span = format!("{} to {}", number(figure.least), number(figure.most));
                (number(figure.median), span)
            };
            let verdict = match figure.verdict.as_str() {
                "MISSED" | "not valid" => format!("**{}**", figure.verdict),
                other => other.to_owned(),
            };
            let _ = writeln!(
                text,
                "| {name} | {} | {} | {} | {} | {} | {verdict} |",
                figure.what,
                shown.0,
                shown.1,
                figure.values.len(),
                figure.asked
            );
        }
    }
    let _ = writeln!(text, "\nEach run again by hand:\n\n```");
    for row in rows {
        for command in &row.commands {
            let _ = writeln!(text, "{command}");
        }
    }
    let _ = writeln!(text, "```");
    let invalid: Vec<String> = rows
        .iter()
        .flat_map(|row| {
            row.invalid
                .iter()
                .map(|why| format!("- `{}`, {why}", row.name))
        })
        .collect();
    if !invalid.is_empty() {
        let _ = writeln!(text, "\nRuns that do not count:\n\n{}", invalid.join("\n"));
    }
    let took: Vec<f64> = rows
        .iter()
        .flat_map(|row| row.host_took_cores.clone())
        .collect();
    if let Some(most) = took.iter().copied().reduce(f64::max) {
        let _ = writeln!(
            text,
            "\nMeanwhile this machine's host gave {:.2} of its cores to other guests in the median run, {most:.2} at most.",
            median(&took)
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn row(name: &str) -> &'static Row {
        ROWS.iter().find(|row| row.name == name).unwrap()
    }

    fn said(taken: f64, valid: bool) -> Value {
        json!({
            "valid": valid,
            "invalid_because": ["the generator itself was the limit"],
            "load": { "pings_taken_per_second": taken, "server": { "cores": 0.5 } },
        })
    }

    fn round(cabrank: Value, raw: Value) -> Round {
        [("cabrank".to_owned(), cabrank), ("raw".to_owned(), raw)].into()
    }

    #[test]
    fn a_ratio_is_taken_inside_a_round_and_runs_that_do_not_count_are_left_out() {
        let rounds = [
            round(said(100.0, true), said(200.0, true)),
            round(said(900.0, true), said(1_000.0, true)),
            round(said(70.0, true), said(100.0, true)),
            round(said(1.0, true), said(100.0, false)),
        ];
        let found = measured(row("ping16"), &rounds, Vec::new(), 1.0);
        let times = found
            .figures
            .iter()
            .find(|f| f.what == "times the raw sink")
            .unwrap();
        assert_eq!(times.values, [0.5, 0.9, 0.7]);
        assert_eq!((times.median, times.verdict.as_str()), (0.7, "met"));
        assert_eq!(found.invalid.len(), 1);
        let redis = &found.figures[2];
        assert_eq!(redis.verdict, "not run");
    }

    #[test]
    fn a_row_without_a_sound_run_is_shown_and_marked() {
        let rounds = [round(said(50.0, false), said(100.0, true))];
        let found = measured(row("ping16"), &rounds, vec!["cabrank load".into()], 1.0);
        assert_eq!(
            (found.figures[0].median, found.figures[0].verdict.as_str()),
            (50.0, "not valid")
        );
        let text = markdown(&[found]);
        assert!(
            text.contains("**not valid**") && text.contains("generator itself"),
            "{text}"
        );
    }

    #[test]
    fn one_of_two_bounds_is_enough_where_the_row_says_so() {
        let rounds = [round(said(700.0, true), said(1_000.0, true))];
        let found = measured(row("proto10"), &rounds, Vec::new(), 1.0);
        let verdicts: Vec<&str> = found.figures.iter().map(|f| f.verdict.as_str()).collect();
        assert_eq!(verdicts, ["the other one is met", "", "met"]);
    }

    #[test]
    fn names_are_unique_and_placeholders_are_filled() {
        let mut names: Vec<&str> = ROWS.iter().map(|row| row.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ROWS.len());
        let found = [("highest".to_owned(), 100_000.0)].into();
        let soak = row("soak").subjects[0].arguments;
        let arguments = filled(soak, None, &found).unwrap();
        assert!(arguments.contains(&"70000".to_owned()), "{arguments:?}");
        assert_eq!(filled("--target {redis}", None, &found), None);
        let filled = filled("--target {redis}", Some("redis://127.0.0.1:1"), &found);
        assert_eq!(filled.unwrap()[1], "redis://127.0.0.1:1");
    }

    #[test]
    fn numbers_are_written_for_people() {
        let shown = [1_234_567.0, 432.1, 12.34, 0.456, 0.0].map(number);
        assert_eq!(shown, ["1,234,567", "432", "12.3", "0.46", "0"]);
    }
}
