//! `cabrank reshard` on a running city over a real Apache Kafka: from four shards to eight under load, the command killed at each of
//! its steps and run again.
//!
//! Without a JDK and Maven it says so in one line and counts as not run; with `CI=true` that is a failure.

#[allow(dead_code, reason = "each test binary uses its own part of this")]
mod support;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use cabrank_eventlog::kafka::{KafkaConfig, KafkaLog, testing};
use cabrank_eventlog::{EventLog, Topic};
use cabrank_events::command::Outcome;
use cabrank_events::{
    Command as Wish, CommandId, CommandRecord, DriverId, Event, EventRecord, Reason, Time,
};
use cabrank_ring::{Kind, Ring};
use serde_json::Value;

use support::{Demo, PATIENCE, cabrank};

const SHARDS: u16 = 4;
const GROWN: u16 = 8;
/// Between two questions to a shard.
const ASK_EVERY: Duration = Duration::from_millis(50);
/// The longest a shard may be silent here: what is asked of a city on machines of its own is 2 s, and this one is shared.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// What became of the questions to the drivers who move to one new shard.
#[derive(Debug, Default)]
struct Answers {
    asked: usize,
    answered: usize,
    longest_silence: Duration,
    slowest: Duration,
}

/// Suspends and reinstates, in turn, a driver of each new shard, always by the way of the old ring, as a gateway does that never
/// hears of the new one. Each is done once and in order, or the state was lost on the way.
fn probe(config: KafkaConfig, is_over: &AtomicBool) -> BTreeMap<u16, Answers> {
    let log = KafkaLog::open(config).unwrap();
    let (before, after) = (Ring::new(SHARDS).unwrap(), Ring::new(GROWN).unwrap());
    let of_shard = |shard: u16| {
        let ids = (0..).map(|n| format!("probe-{n}"));
        let mut ids = ids.filter(|id| after.shard_of_person(Kind::Driver, id) == shard);
        DriverId::new(&ids.next().unwrap()).unwrap()
    };
    let drivers: Vec<(u16, DriverId)> = (SHARDS..GROWN).map(|s| (s, of_shard(s))).collect();
    let mut tail = log.tail();
    let mut followed = 0;
    let mut answers: BTreeMap<u16, Answers> = BTreeMap::new();
    let mut open: BTreeMap<CommandId, (u16, Instant)> = BTreeMap::new();
    let mut last: BTreeMap<u16, Instant> = BTreeMap::new();
    let mut looked = Instant::now();
    let (mut next, mut round) = (Instant::now(), 0_u64);
    let mut deadline = None;
    loop {
        let stop = is_over.load(Ordering::SeqCst);
        let until = *deadline.get_or_insert_with(|| Instant::now() + PATIENCE);
        if !stop {
            deadline = None;
        } else if open.is_empty() || Instant::now() > until {
            assert!(open.is_empty(), "never answered: {open:?}");
            return answers;
        }
        if looked.elapsed() > Duration::from_millis(500) || followed == 0 {
            looked = Instant::now();
            let shards = log.look_for_shards();
            for shard in followed..shards {
                let bounds = log.bounds(Topic::PersonEvents, shard).unwrap();
                let from = if shard < SHARDS { bounds.end } else { 0 };
                tail.follow(Topic::PersonEvents, shard, from);
            }
            followed = shards;
        }
        if !stop && Instant::now() >= next {
            next += ASK_EVERY;
            round += 1;
            for (shard, driver) in &drivers {
                let id = CommandId::new(&format!("probe/{shard}/{round}")).unwrap();
                let driver = driver.clone();
                let old = before.shard_of_person(Kind::Driver, driver.as_str());
                let wish = match round % 2 {
                    1 => Wish::SuspendDriver {
                        driver: driver.clone(),
                        reason: Reason::new("a probe").unwrap(),
                    },
                    _ => Wish::ReinstateDriver {
                        driver: driver.clone(),
                    },
                };
                let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
                let now = Time(now.unwrap().as_millis() as i64);
                let record = CommandRecord::external(id.clone(), now, wish);
                let key = Bytes::from(format!("driver/{driver}"));
                log.submit(old, key, record.to_json()).unwrap();
                open.insert(id, (*shard, Instant::now()));
                answers.entry(*shard).or_default().asked += 1;
            }
        }
        let Ok(found) = tail.next(Duration::from_millis(5), 1_000) else {
            continue;
        };
        for event in found {
            let event = EventRecord::from_json(&event.record.value).unwrap().event;
            let Event::CommandOutcome(outcome) = event else {
                continue;
            };
            let Some((shard, asked)) = open.remove(&outcome.command) else {
                continue;
            };
            assert_eq!(outcome.outcome, Outcome::Done, "{}", outcome.command);
            let answers = answers.entry(shard).or_default();
            answers.answered += 1;
            answers.slowest = answers.slowest.max(asked.elapsed());
            if let Some(before) = last.insert(shard, Instant::now()) {
                answers.longest_silence = answers.longest_silence.max(before.elapsed());
            }
        }
    }
}

/// Runs the command; with `until` it is killed as soon as it has said that step.
fn reshard(arguments: &[&str], to: u16, until: Option<&str>) -> Output {
    let mut child = cabrank()
        .arg("reshard")
        .args(arguments)
        .args(["--to", &to.to_string()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    if let Some(step) = until {
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let said = lines
            .map_while(Result::ok)
            .any(|line| line.starts_with(step));
        assert!(said, "it never said {step:?}");
        child.kill().unwrap();
    }
    child.wait_with_output().unwrap()
}

fn said(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    format!(
        "{}{}",
        String::from_utf8_lossy(out),
        String::from_utf8_lossy(err)
    )
}

#[test]
fn a_city_under_load_gets_more_shards_although_the_command_is_killed_at_each_step() {
    let Some(broker) = testing::broker() else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let report = dir.path().join("demo.json");
    let report = report.to_str().unwrap();
    let shards = SHARDS.to_string();
    let demo = ["--nodes", "3", "--shards", &shards, "--drivers", "60"];
    let requests = ["--requests-per-minute", "180", "--seconds", "75"];
    let rest = ["--without-services", "--report", report];
    let demo = [&demo[..], &requests, &rest].concat();
    let demo = Demo::start(broker.bootstrap(), &demo);
    let city = demo.city();
    let prefix = city[city.iter().position(|word| *word == "--prefix").unwrap() + 1];
    let config = KafkaConfig {
        prefix: prefix.to_owned(),
        ..broker.config(SHARDS)
    };
    for fewer in [SHARDS, SHARDS - 1] {
        let output = reshard(&city, fewer, None);
        assert_eq!(output.status.code(), Some(2), "{}", said(&output));
        assert!(
            said(&output).contains("shards only grow"),
            "{}",
            said(&output)
        );
    }
    let is_over = Arc::new(AtomicBool::new(false));
    let stop = Arc::clone(&is_over);
    let probing = std::thread::spawn(move || probe(config, &stop));
    for step in ["announced", "partitions", "served", "begun"] {
        reshard(&city, GROWN, Some(step));
    }
    let output = reshard(&city, GROWN, None);
    assert!(output.status.success(), "{}", said(&output));
    let again = reshard(&city, GROWN, None);
    assert!(said(&again).contains("nothing to do"), "{}", said(&again));
    assert_eq!(reshard(&city, SHARDS, None).status.code(), Some(2));
    // Whoever starts from now on finds the city grown, whatever it was told.
    let status = cabrank()
        .args(["cluster", "status", "--json"])
        .args(&city)
        .output()
        .unwrap();
    let shown: Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!(
        shown["shards"].as_array().map(Vec::len),
        Some(usize::from(GROWN))
    );
    is_over.store(true, Ordering::SeqCst);
    let answers = probing.join().unwrap();
    println!("{answers:#?}");
    for (shard, answers) in &answers {
        assert_eq!(answers.asked, answers.answered, "shard {shard}");
        assert!(
            answers.longest_silence < SILENCE_MAX,
            "shard {shard}: {answers:?}"
        );
    }
    demo.ended();
    let report: Value = serde_json::from_slice(&std::fs::read(report).unwrap()).unwrap();
    let acknowledged = report["rides"]["acknowledged"].as_u64();
    assert!(acknowledged > Some(10), "{acknowledged:?} rides");
}
