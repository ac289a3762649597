//! `cabrank reshard` on a running city over a real Apache Kafka: from four shards to eight under load, the command killed at each of
//! its steps and run again, and nodes killed meanwhile.
//!
//! Without a JDK and Maven it says so in one line and counts as not run; with `CI=true` that is a failure.

#[allow(dead_code, reason = "each test binary uses its own part of this")]
mod support;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Lines};
use std::process::{Child, ChildStdout, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use cabrank_eventlog::kafka::testing::{self, Broker};
use cabrank_eventlog::kafka::{KafkaConfig, KafkaLog};
use cabrank_eventlog::{EventLog, Topic};
use cabrank_events::command::{GrowthStep, MARKET_SHARD, Outcome};
use cabrank_events::{
    Command as Wish, CommandId, CommandRecord, DriverId, Event, EventRecord, Reason, Time,
};
use cabrank_matcher::market_in;
use cabrank_ring::{Kind, Ring};
use serde_json::Value;

use support::{Demo, PATIENCE, cabrank, until};

const SHARDS: u16 = 4;
const GROWN: u16 = 8;
/// Between two questions to a shard.
const ASK_EVERY: Duration = Duration::from_millis(50);
/// The longest a shard may be silent here: what is asked of a city on machines of its own is 2 s, and this one is shared.
const SILENCE_MAX: Duration = Duration::from_secs(4);

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
                let is_ours = outcome.command.as_str().starts_with("probe/");
                assert!(!is_ours, "{} is answered twice", outcome.command);
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

/// Commands for drivers who move, until it is asked what became of them.
struct Probing {
    is_over: Arc<AtomicBool>,
    thread: JoinHandle<BTreeMap<u16, Answers>>,
}

impl Probing {
    fn start(config: KafkaConfig) -> Probing {
        let is_over = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&is_over);
        let thread = std::thread::spawn(move || probe(config, &stop));
        Probing { is_over, thread }
    }

    /// Each was done, once and in order. The longest silence of each new shard.
    fn ended(self) -> Vec<Duration> {
        self.is_over.store(true, Ordering::SeqCst);
        let answers = self.thread.join().unwrap();
        println!("{answers:#?}");
        for (shard, answers) in &answers {
            assert_eq!(answers.asked, answers.answered, "shard {shard}");
        }
        answers.values().map(|of| of.longest_silence).collect()
    }
}

/// `cabrank reshard` at work.
struct Reshard {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    said: Vec<String>,
}

impl Reshard {
    fn start(city: &[&str], to: u16) -> Reshard {
        let mut child = cabrank()
            .arg("reshard")
            .args(city)
            .args(["--to", &to.to_string()])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Reshard {
            child,
            lines,
            said: Vec::new(),
        }
    }

    /// Waits until it has said this step.
    fn says(&mut self, step: &str) {
        while !self.said.iter().any(|line| line.starts_with(step)) {
            let Some(Ok(line)) = self.lines.next() else {
                panic!("it never said {step:?}, but {:?}", self.said);
            };
            self.said.push(line);
        }
    }

    fn killed(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Its exit code, and all it said.
    fn ended(mut self) -> (Option<i32>, String) {
        self.said.extend(self.lines.by_ref().map_while(Result::ok));
        let output = self.child.wait_with_output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        self.said.push(errors);
        (output.status.code(), self.said.join("\n"))
    }
}

fn reshard(city: &[&str], to: u16) -> (Option<i32>, String) {
    Reshard::start(city, to).ended()
}

fn config_of(broker: &Broker, city: &[&str]) -> KafkaConfig {
    let prefix = city.iter().position(|word| *word == "--prefix").unwrap() + 1;
    KafkaConfig {
        prefix: city[prefix].to_owned(),
        ..broker.config(SHARDS)
    }
}

/// Two cities at once would measure each other.
static ALONE: Mutex<()> = Mutex::new(());

#[test]
fn a_city_under_load_gets_more_shards_although_the_command_is_killed_at_each_step() {
    let Some(broker) = testing::broker() else {
        return;
    };
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
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
    for fewer in [SHARDS, SHARDS - 1] {
        let (code, said) = reshard(&city, fewer);
        assert_eq!(code, Some(2), "{said}");
        assert!(said.contains("shards only grow"), "{said}");
    }
    let probing = Probing::start(config_of(broker, &city));
    for step in ["announced", "partitions", "served", "begun"] {
        let mut reshard = Reshard::start(&city, GROWN);
        reshard.says(step);
        reshard.killed();
    }
    let (code, said) = reshard(&city, GROWN);
    assert_eq!(code, Some(0), "{said}");
    let (_, again) = reshard(&city, GROWN);
    assert!(again.contains("nothing to do"), "{again}");
    assert_eq!(reshard(&city, SHARDS).0, Some(2));
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
    for silence in probing.ended() {
        assert!(silence < SILENCE_MAX, "{silence:?}");
    }
    demo.ended();
    let report: Value = serde_json::from_slice(&std::fs::read(report).unwrap()).unwrap();
    let acknowledged = report["rides"]["acknowledged"].as_u64();
    assert!(acknowledged > Some(100), "{acknowledged:?} rides");
}

/// A node that the test may kill.
struct Victim(Child);

impl Victim {
    /// Joins the city, and owns a share of its shards as soon as this returns.
    fn join(log: &KafkaLog, city: &[&str], name: &str) -> Victim {
        let child = cabrank()
            .args(["matcher", "--name", name])
            .args(city)
            .env("CABRANK_KAFKA__SESSION_TIMEOUT_MS", "3000")
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let victim = Victim(child);
        until("it owns a shard", || {
            (!owned_by(log, name).is_empty()).then_some(())
        });
        victim
    }

    fn kill(&mut self) {
        // It may have ended by itself, which the story will notice.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The shards whose newest owner is this node.
fn owned_by(log: &KafkaLog, name: &str) -> Vec<u16> {
    let owners = log.owners().unwrap_or_default().into_iter();
    let own = owners.filter(|owner| owner.node == name);
    own.map(|owner| owner.shard).collect()
}

#[test]
fn a_city_grows_although_nodes_that_give_and_take_people_are_killed_meanwhile() {
    let Some(broker) = testing::broker() else {
        return;
    };
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let shards = SHARDS.to_string();
    let demo = ["--nodes", "2", "--shards", &shards, "--drivers", "60"];
    let requests = ["--requests-per-minute", "180", "--without-services"];
    let demo = Demo::start(broker.bootstrap(), &[&demo[..], &requests].concat());
    let city = demo.city();
    let config = config_of(broker, &city);
    let log = KafkaLog::open(config.clone()).unwrap();
    let probing = Probing::start(config);
    // The command is killed with the node, before the new shards are there and after.
    for (step, name) in [("announced", "node-0"), ("partitions", "node-9")] {
        let mut victim = Victim::join(&log, &city, name);
        let mut reshard = Reshard::start(&city, GROWN);
        reshard.says(step);
        victim.kill();
        reshard.killed();
        until("others take its shards over", || {
            owned_by(&log, name).is_empty().then_some(())
        });
    }
    // In the middle of the moves it goes on. Names give shards out: this node is the second of three.
    let name = "node-1b";
    let mut victim = Victim::join(&log, &city, name);
    let mut reshard = Reshard::start(&city, GROWN);
    reshard.says("begun");
    victim.kill();
    let owned = owned_by(&log, name);
    log.look_for_shards();
    let market = market_in(&log.snapshot(MARKET_SHARD.0).unwrap());
    let reached = market.and_then(|market| market.ring).map(|(_, step)| step);
    assert_eq!(
        reached,
        Some(GrowthStep::Begun),
        "killed too late to matter"
    );
    let gives = owned.iter().any(|shard| *shard < SHARDS);
    let takes = owned.iter().any(|shard| *shard >= SHARDS);
    assert!(gives && takes, "it owned {owned:?}");
    let (code, said) = reshard.ended();
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(owned_by(&log, name), [0; 0]);
    probing.ended();
    // Its audit is its end: nothing is lost, doubled or left open.
    demo.stop();
    demo.ended();
}
