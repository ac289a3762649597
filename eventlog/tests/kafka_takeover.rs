//! Shards that change hands over a real Apache Kafka: what the rules of PROTOCOL 15 and 22 to 28 promise, and for each
//! rule that can be taken out, what happens without it.
//!
//! The node of these tests does as little as one can: for each command one event that repeats its text, and a count as
//! state. So a command that was carried out twice, or never, is seen in the events.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use cabrank_eventlog::kafka::testing::{broker, signal};
use cabrank_eventlog::kafka::{KafkaConfig, KafkaLog, KafkaOwner, Moment, Sabotage};
use cabrank_eventlog::{
    Append, CommitError, EventLog, Header, PollError, RecoverError, Recovered, ShardOwner,
    StateChange, Topic, Transaction,
};
use rdkafka::ClientConfig;
use rdkafka::message::{Header as KafkaHeader, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

const PATIENCE: Duration = Duration::from_secs(40);
const VICTIM: &str = "CABRANK_KAFKA_VICTIM";

fn logs() {
    // RUST_LOG=cabrank_eventlog=debug shows what the group and the brokers say.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_test_writer()
        .try_init();
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    i64::try_from(since.unwrap().as_millis()).unwrap()
}

/// Waits for a condition.
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

fn submit(log: &KafkaLog, shard: u16, text: &str) {
    let value = Bytes::copy_from_slice(text.as_bytes());
    log.submit(shard, Bytes::from_static(b"ride"), value)
        .unwrap();
}

fn events(log: &KafkaLog, shard: u16) -> Vec<String> {
    let records = log.read(Topic::RideEvents, shard, 0, 10_000).unwrap();
    let text = |value: &Bytes| String::from_utf8_lossy(value).into_owned();
    records.iter().map(|record| text(&record.value)).collect()
}

/// The decision about one command.
fn decision(shard: u16, offset: u64, text: &str, count: u64) -> Transaction {
    Transaction {
        events: vec![Append {
            topic: Topic::RideEvents,
            shard,
            key: Bytes::from_static(b"ride"),
            value: Bytes::copy_from_slice(text.as_bytes()),
        }],
        states: vec![StateChange {
            shard,
            key: Bytes::from_static(b"count"),
            value: Some(Bytes::from(count.to_string())),
        }],
        headers: vec![(
            shard,
            Header {
                next_input: offset + 1,
                ..Header::default()
            },
        )],
        ..Transaction::default()
    }
}

fn count_in(recovered: &Recovered) -> u64 {
    let count = recovered.states.iter().find(|(key, _)| key == "count");
    count.map_or(0, |(_, value)| {
        String::from_utf8_lossy(value).parse().unwrap()
    })
}

/// A node: an owner and what it knows of its shards.
struct Node {
    owner: KafkaOwner,
    counts: BTreeMap<u16, u64>,
    /// Handed out, not yet carried out.
    inbox: Vec<(u16, u64, String)>,
    moved: u64,
}

impl Node {
    fn new(log: &KafkaLog, name: &str) -> Node {
        Node {
            owner: log.own(name, &format!("{name}:1")).unwrap(),
            counts: BTreeMap::new(),
            inbox: Vec::new(),
            moved: 0,
        }
    }

    /// One poll; shards that come are recovered, if not at once, then later.
    fn look(&mut self) {
        for shard in self.owner.shards() {
            if !self.counts.contains_key(&shard) {
                self.recover(shard);
            }
        }
        let polled = match self.owner.poll(Duration::from_millis(20), 100) {
            Ok(polled) => polled,
            Err(PollError::NotRecovered(shard)) => {
                self.recover(shard);
                return;
            }
            Err(why) => panic!("{why}"),
        };
        for shard in polled.lost {
            self.counts.remove(&shard);
            self.inbox.retain(|(of, ..)| *of != shard);
            self.moved += 1;
        }
        for shard in polled.gained {
            self.recover(shard);
        }
        for (shard, record) in polled.commands {
            let text = String::from_utf8_lossy(&record.value).into_owned();
            self.inbox.push((shard, record.offset, text));
        }
    }

    fn recover(&mut self, shard: u16) {
        self.inbox.retain(|(of, ..)| *of != shard);
        self.counts.remove(&shard);
        match self.owner.recover(shard) {
            Ok(recovered) => {
                self.counts.insert(shard, count_in(&recovered));
            }
            Err(RecoverError::Unavailable(why)) => println!("shard {shard}, not yet: {why}"),
            Err(why) => panic!("shard {shard}: {why}"),
        }
    }

    fn owns(&self, shards: usize) -> bool {
        self.counts.len() == shards && self.owner.shards().len() == shards
    }

    /// Carries out what is at hand, one transaction for all.
    fn work(&mut self) -> Result<(), CommitError> {
        let mut tx = Transaction::default();
        for (shard, offset, text) in std::mem::take(&mut self.inbox) {
            let count = self.counts.get_mut(&shard).unwrap();
            *count += 1;
            let one = decision(shard, offset, &text, *count);
            tx.events.extend(one.events);
            tx.states.extend(one.states);
            tx.headers.retain(|(of, _)| *of != shard);
            tx.headers.extend(one.headers);
        }
        if tx.headers.is_empty() {
            return Ok(());
        }
        let done = self.owner.commit(&tx);
        if done.is_err() {
            for shard in self.owner.shards() {
                self.recover(shard);
            }
        }
        done
    }

    fn until_owns(&mut self, shards: usize) {
        until("the shards are here", || {
            self.look();
            self.owns(shards)
        });
        // Announced, so that whoever looks on sees it, too.
        self.look();
    }
}

/// A city of one shard whose nodes may hang for two seconds before their shards go to others.
fn impatient(config: KafkaConfig) -> KafkaConfig {
    KafkaConfig {
        max_poll_ms: 2_000,
        ..config
    }
}

/// Stops the world of the owner at the moment, until the returned sender is dropped or used; tells when it stops.
fn stop_at(owner: &mut KafkaOwner, moment: Moment) -> (mpsc::Receiver<()>, mpsc::SyncSender<()>) {
    let (stopped, is_stopped) = mpsc::sync_channel(1);
    let (go_on, may_go_on) = mpsc::sync_channel(1);
    let mut is_first = true;
    owner.at_moment(Box::new(move |at| {
        if at == moment && std::mem::take(&mut is_first) {
            stopped.send(()).unwrap();
            let _ = may_go_on.recv_timeout(PATIENCE);
        }
    }));
    (is_stopped, go_on)
}

/// A node falls asleep in the middle of a commit, when everything is written and the group has agreed; another takes its
/// shard and carries the command out; the sleeper wakes and commits. Gives what is committed in the end.
fn a_sleeper_commits_late(sabotage: Sabotage) -> (Result<(), CommitError>, Vec<String>) {
    let config = impatient(broker().unwrap().city(1));
    let log = KafkaLog::open(config).unwrap();
    let mut sleeper = Node::new(&log, "sleeper");
    sleeper.until_owns(1);
    submit(&log, 0, "pick up");
    until("the command came", || {
        sleeper.look();
        !sleeper.inbox.is_empty()
    });
    let (asleep, wake) = stop_at(&mut sleeper.owner, Moment::BeforeCommit);
    std::thread::scope(|scope| {
        let sleeping = scope.spawn(move || {
            let late = sleeper.work();
            (late, sleeper)
        });
        asleep.recv_timeout(PATIENCE).unwrap();
        let mut next = Node::new(&log, "next");
        next.owner.sabotage(sabotage);
        next.until_owns(1);
        until("the command came again", || {
            next.look();
            !next.inbox.is_empty()
        });
        // The successor's own work is held up by nothing that the sleeper does now.
        let done = next.work();
        wake.send(()).unwrap();
        let (late, _sleeper) = sleeping.join().unwrap();
        assert!(done.is_ok(), "{done:?}");
        // Until everything is decided nobody can read on.
        until("the events are stable", || {
            log.bounds(Topic::RideEvents, 0).unwrap().end >= 2
        });
        (late, events(&log, 0))
    })
}

#[test]
fn a_node_that_wakes_up_after_its_shard_was_taken_commits_nothing() {
    logs();
    if broker().is_none() {
        return;
    }
    let (late, events) = a_sleeper_commits_late(Sabotage::Nothing);
    assert!(late.is_err(), "fenced");
    assert_eq!(events, ["pick up"], "carried out once");
}

#[test]
fn without_fence_and_wait_the_sleeper_does_its_work_a_second_time() {
    logs();
    if broker().is_none() {
        return;
    }
    let (late, events) = a_sleeper_commits_late(Sabotage::NoFenceNoWait);
    assert!(late.is_ok(), "{late:?}");
    assert_eq!(
        events.len(),
        2,
        "the rule is what prevents this: {events:?}"
    );
}

/// The victim of the kill tests: takes one command, writes everything, asks the group, and hangs before the commit.
#[test]
fn victim() {
    let Ok(config) = std::env::var(VICTIM) else {
        return; // An ordinary test run: only the tests below start victims.
    };
    logs();
    let config: KafkaConfig = serde_json::from_str(&config).unwrap();
    let log = KafkaLog::open(config).unwrap();
    let mut node = Node::new(&log, "victim");
    node.until_owns(usize::from(log.shards()));
    println!("owns");
    node.owner.at_moment(Box::new(|moment| {
        if moment == Moment::BeforeCommit {
            println!("open");
            std::io::stdout().flush().unwrap();
            std::thread::park_timeout(PATIENCE);
        }
    }));
    until("killed", || {
        node.look();
        let _ = node.work();
        false
    });
}

/// Starts a victim and waits until it hangs in its transaction.
fn victim_in_an_open_transaction(log: &KafkaLog) -> std::process::Child {
    let mut victim = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "victim", "--nocapture"])
        .env(VICTIM, serde_json::to_string(log.config()).unwrap())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(victim.stdout.take().unwrap()).lines();
    for line in lines {
        match line.unwrap().as_str() {
            "owns" => submit(log, 0, "pick up"),
            "open" => return victim,
            _ => {}
        }
    }
    panic!("the victim ended by itself");
}

/// Kills a node in an open transaction; gives how long until another has announced itself, and what is committed then.
fn killed_in_an_open_transaction(
    sabotage: Sabotage,
    session_timeout_ms: u32,
) -> (Duration, Vec<String>) {
    let config = KafkaConfig {
        session_timeout_ms,
        ..broker().unwrap().city(2)
    };
    let log = KafkaLog::open(config).unwrap();
    let mut victim = victim_in_an_open_transaction(&log);
    let mut next = Node::new(&log, "next");
    next.owner.sabotage(sabotage);
    victim.kill().unwrap();
    victim.wait().unwrap();
    let killed = Instant::now();
    next.until_owns(2);
    let taken = killed.elapsed();
    assert_eq!(events(&log, 0), Vec::<String>::new(), "nothing of the dead");
    until("the command came again", || {
        next.look();
        !next.inbox.is_empty()
    });
    next.work().unwrap();
    let owners = log.owners().unwrap();
    assert!(
        owners.iter().all(|owner| owner.node == "next"),
        "{owners:?}"
    );
    (taken, events(&log, 0))
}

#[test]
fn a_node_killed_in_an_open_transaction_is_fenced_and_not_waited_for() {
    logs();
    if broker().is_none() {
        return;
    }
    // Ours, and the least that a stock broker takes. Measured: 2.7 s and 6.7 s; the bound leaves room for a slow machine.
    for session_timeout_ms in [2_000, 6_000] {
        let (taken, events) = killed_in_an_open_transaction(Sabotage::Nothing, session_timeout_ms);
        assert_eq!(events, ["pick up"]);
        let taken_ms = taken.as_millis();
        println!("session {session_timeout_ms} ms: taken over {taken_ms} ms after kill -9");
        let most = Duration::from_millis(u64::from(session_timeout_ms) + 4_000);
        assert!(
            taken < most,
            "{taken:?} at a session of {session_timeout_ms} ms"
        );
    }
}

#[test]
fn without_the_fence_a_takeover_waits_for_the_transactions_time_out() {
    logs();
    if broker().is_none() {
        return;
    }
    let (taken, events) = killed_in_an_open_transaction(Sabotage::NoFence, 2_000);
    assert_eq!(events, ["pick up"], "slow, but right");
    assert!(
        taken > Duration::from_secs(7),
        "{taken:?} at a time-out of 10 s"
    );
}

/// A takeover looks at the partitions that the owner before wrote as an owner. A message is in another shard's commands:
/// a node that freezes when only that is written must not keep them from their owner until the broker's time-out.
#[test]
fn a_node_that_froze_with_only_a_message_written_holds_nobody_up() {
    logs();
    let Some(broker) = broker() else { return };
    let config = broker.city(1);
    let log = KafkaLog::open(config.clone()).unwrap();
    let mut owner = Node::new(&log, "owner");
    owner.until_owns(1);
    let frozen: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", &config.brokers)
        .set("transactional.id", "frozen")
        // Longer than this test waits for anything.
        .set("transaction.timeout.ms", "60000")
        .create()
        .unwrap();
    frozen.init_transactions(PATIENCE).unwrap();
    frozen.begin_transaction().unwrap();
    let commands = format!("{}ride-commands", config.prefix);
    let written_by = KafkaHeader {
        key: "cabrank",
        value: Some("frozen"),
    };
    let message = BaseRecord::<str, str>::to(&commands)
        .partition(0)
        .payload("half of what was decided")
        .headers(OwnedHeaders::new().insert(written_by));
    frozen.send(message).unwrap();
    frozen.flush(PATIENCE).unwrap();
    submit(&log, 0, "pick up");
    let asked = Instant::now();
    until("the command came", || {
        owner.look();
        !owner.inbox.is_empty()
    });
    println!("held up for {} ms", asked.elapsed().as_millis());
    owner.work().unwrap();
    assert!(frozen.commit_transaction(PATIENCE).is_err(), "it is fenced");
    until("it is carried out", || !events(&log, 0).is_empty());
    assert_eq!(events(&log, 0), ["pick up"]);
}

/// A node hangs; its shards go to another, who works; the node comes back, is given its shards again, and commits what it
/// had decided before. Gives what is committed in the end.
fn old_memory_under_a_new_generation(sabotage: Sabotage) -> (Result<(), CommitError>, Vec<String>) {
    let config = impatient(broker().unwrap().city(1));
    let log = KafkaLog::open(config).unwrap();
    let mut old = Node::new(&log, "old");
    old.owner.sabotage(sabotage);
    old.until_owns(1);
    submit(&log, 0, "pick up");
    until("the command came", || {
        old.look();
        !old.inbox.is_empty()
    });
    let (_, offset, text) = old.inbox[0].clone();
    let decided = decision(0, offset, &text, 1);
    {
        // Nobody polls `old` meanwhile.
        let mut other = Node::new(&log, "other");
        other.until_owns(1);
        until("the other did the work", || {
            other.look();
            other.work().unwrap();
            events(&log, 0).len() == 1
        });
    }
    // Polling again, it finds its shards lost and, now that the other has left, gained.
    until("the shard is back", || {
        let polled = old.owner.poll(Duration::from_millis(20), 1).unwrap();
        polled.gained == [0]
    });
    let late = old.owner.commit(&decided);
    (late, events(&log, 0))
}

#[test]
fn what_was_decided_under_an_older_assignment_is_never_committed() {
    logs();
    if broker().is_none() {
        return;
    }
    let (late, events) = old_memory_under_a_new_generation(Sabotage::Nothing);
    assert!(
        matches!(late, Err(CommitError::NotRecovered(0))),
        "{late:?}"
    );
    assert_eq!(events, ["pick up"]);
}

#[test]
fn with_the_fresh_generation_old_memory_is_committed() {
    logs();
    if broker().is_none() {
        return;
    }
    let (late, events) = old_memory_under_a_new_generation(Sabotage::FreshGeneration);
    assert!(late.is_ok(), "{late:?}");
    assert_eq!(
        events.len(),
        2,
        "the rule is what prevents this: {events:?}"
    );
}

/// A node hangs, its shard goes to another, and it commits what it had computed. Gives what came of it.
fn a_node_that_hangs_commits(sabotage: Sabotage) -> (KafkaLog, Node, Result<(), CommitError>) {
    let log = KafkaLog::open(impatient(broker().unwrap().city(1))).unwrap();
    let mut old = Node::new(&log, "old");
    old.until_owns(1);
    submit(&log, 0, "pick up");
    until("the command came", || {
        old.look();
        !old.inbox.is_empty()
    });
    let mut other = Node::new(&log, "other");
    other.until_owns(1);
    // It has not polled, so it does not know: the brokers do.
    old.owner.sabotage(sabotage);
    let late = old.work();
    (log, other, late)
}

#[test]
fn a_node_that_hangs_may_not_commit_what_it_computed() {
    logs();
    if broker().is_none() {
        return;
    }
    let (log, mut other, late) = a_node_that_hangs_commits(Sabotage::Nothing);
    assert!(matches!(late, Err(CommitError::Moved(_))), "{late:?}");
    assert_eq!(events(&log, 0), Vec::<String>::new());
    until("the other did the work", || {
        other.look();
        other.work().unwrap();
        events(&log, 0) == ["pick up"]
    });
}

#[test]
fn metadata_without_generation_and_member_are_not_checked_by_the_broker() {
    logs();
    if broker().is_none() {
        return;
    }
    let (log, mut other, late) = a_node_that_hangs_commits(Sabotage::NoMembership);
    assert!(late.is_ok(), "{late:?}");
    until("both did the work", || {
        other.look();
        other.work().unwrap();
        events(&log, 0) == ["pick up", "pick up"]
    });
}

/// A node hangs while another waits for its shards. Gives when its lease ended and when the other had the shards.
fn lease_of_a_node_that_hangs(sabotage: Sabotage) -> (Option<Instant>, Instant) {
    let log = KafkaLog::open(impatient(broker().unwrap().city(1))).unwrap();
    let mut old = Node::new(&log, "old");
    old.owner.sabotage(sabotage);
    old.until_owns(1);
    let lease = old.owner.lease();
    until("the lease began", || {
        old.look();
        lease()
    });
    let mut other = Node::new(&log, "other");
    let mut ended = None;
    until("the other has the shard", || {
        other.look();
        if !lease() {
            ended.get_or_insert_with(Instant::now);
        }
        other.owns(1)
    });
    let taken = Instant::now();
    let lease = other.owner.lease();
    until("the other's lease began", || {
        other.look();
        lease()
    });
    (ended, taken)
}

#[test]
fn the_lease_ends_before_another_has_the_shards() {
    logs();
    if broker().is_none() {
        return;
    }
    let (ended, taken) = lease_of_a_node_that_hangs(Sabotage::Nothing);
    assert!(ended.expect("it ended") < taken);
    let (ended, _) = lease_of_a_node_that_hangs(Sabotage::EndlessLease);
    assert_eq!(ended, None, "the rule is what prevents two that answer");
}

#[test]
fn a_node_that_was_stopped_knows_at_once_that_its_lease_is_over() {
    logs();
    let Some(broker) = broker() else { return };
    let log = KafkaLog::open(broker.city(1)).unwrap();
    let mut sleeper = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "answerer", "--nocapture"])
        .env(VICTIM, serde_json::to_string(log.config()).unwrap())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(sleeper.stdout.take().unwrap()).lines();
    let answered_at = move || {
        for line in &mut lines {
            if let Some(at) = line.unwrap().strip_prefix("answered at ") {
                return at.parse::<i64>().unwrap();
            }
        }
        panic!("it ended by itself");
    };
    let answered_at = std::cell::RefCell::new(answered_at);
    (answered_at.borrow_mut())();
    signal(sleeper.id(), "STOP");
    let mut other = Node::new(&log, "other");
    other.until_owns(1);
    let taken = now_ms();
    signal(sleeper.id(), "CONT");
    until("it has woken", || {
        other.look();
        now_ms() > taken + 30 || !other.owns(1)
    });
    let given_up = now_ms();
    drop(other);
    // It is given its shard again and answers again; what it answered between is what it must not have.
    let after_stop = loop {
        let at = (answered_at.borrow_mut())();
        if at > taken {
            break at;
        }
    };
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
    assert!(
        after_stop >= given_up,
        "it answered {} ms after it was woken, while the shard was another's",
        after_stop - taken
    );
}

/// Says again and again that it answers, as long as its lease holds.
#[test]
fn answerer() {
    let Ok(config) = std::env::var(VICTIM) else {
        return; // An ordinary test run: only the test above starts it.
    };
    let log = KafkaLog::open(serde_json::from_str(&config).unwrap()).unwrap();
    let mut node = Node::new(&log, "answerer");
    let lease = node.owner.lease();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Longer than the test above waits for anything: its patience begins later, and more than once.
            let deadline = Instant::now() + 3 * PATIENCE;
            while Instant::now() < deadline {
                if lease() {
                    println!("answered at {}", now_ms());
                }
                std::thread::park_timeout(Duration::from_millis(1));
            }
            std::process::exit(1);
        });
        // Until it is killed, or the thread above has had enough.
        loop {
            node.look();
        }
    });
}

#[test]
fn commands_that_waited_are_never_behind_the_clock() {
    logs();
    let Some(broker) = broker() else { return };
    /// Gives how many commands were older than a clock that was given before them.
    fn late_commands(log: &KafkaLog, name: &str, sabotage: Sabotage) -> usize {
        let mut node = Node::new(log, name);
        node.owner.sabotage(sabotage);
        let (mut clock, mut seen, mut late) = (None, 0, 0);
        until("all commands came", || {
            let polled = node.owner.poll(Duration::from_millis(20), 100).unwrap();
            polled.gained.iter().for_each(|shard| node.recover(*shard));
            let is_late = |time: i64| clock.is_some_and(|clock| time < clock);
            late += polled
                .commands
                .iter()
                .filter(|(_, record)| is_late(record.time_ms))
                .count();
            seen += polled.commands.len();
            clock = clock.max(polled.clock_ms);
            seen == 2_000
        });
        late
    }
    let log = KafkaLog::open(broker.city(1)).unwrap();
    (0..2_000).for_each(|n| submit(&log, 0, &n.to_string()));
    log.sync().unwrap();
    // Older than the margin, so that a clock of now would be wrong.
    let written = now_ms();
    until("they are old", || now_ms() > written + 800);
    assert_eq!(late_commands(&log, "careful", Sabotage::Nothing), 0);
    assert!(late_commands(&log, "careless", Sabotage::ClockWithoutEnd) > 0);
}

#[test]
fn two_nodes_share_the_shards_and_the_one_that_stays_gets_all() {
    logs();
    let Some(broker) = broker() else { return };
    const SHARDS: u16 = 4;
    const EACH: u64 = 150;
    let log = KafkaLog::open(broker.city(SHARDS)).unwrap();
    let done = AtomicBool::new(false);
    let leaves = AtomicBool::new(false);
    let sent = AtomicU64::new(0);
    let run = |mut node: Node, leaves: Option<&AtomicBool>| {
        while !done.load(Ordering::SeqCst)
            && !leaves.is_some_and(|leaves: &AtomicBool| leaves.load(Ordering::SeqCst))
        {
            node.look();
            // A commit that fails because shards move is ordinary: they are recovered.
            let _ = node.work();
        }
        node.moved
    };
    /// Ends the nodes' loops also when the test fails.
    struct End<'a>(&'a AtomicBool);
    impl Drop for End<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
    std::thread::scope(|scope| {
        let end = End(&done);
        let first = Node::new(&log, "first");
        let stays = scope.spawn(|| run(first, None));
        scope.spawn(|| {
            for number in 0..EACH {
                for shard in 0..SHARDS {
                    submit(&log, shard, &number.to_string());
                }
                sent.fetch_add(1, Ordering::SeqCst);
                std::thread::park_timeout(Duration::from_millis(20));
            }
        });
        until("it runs", || sent.load(Ordering::SeqCst) > 20);
        let second = Node::new(&log, "second");
        let goes = scope.spawn(|| run(second, Some(&leaves)));
        until("both own some", || {
            let owners = log.owners().unwrap();
            let count = |name: &str| owners.iter().filter(|owner| owner.node == name).count();
            count("first") == 2 && count("second") == 2
        });
        until("it runs on", || sent.load(Ordering::SeqCst) > 90);
        leaves.store(true, Ordering::SeqCst);
        goes.join().unwrap();
        let all: Vec<String> = (0..EACH).map(|number| number.to_string()).collect();
        for shard in 0..SHARDS {
            until("all is carried out", || {
                events(&log, shard).len() >= all.len()
            });
            assert_eq!(events(&log, shard), all, "once each, in order");
            let snapshot = log.snapshot(shard).unwrap();
            assert_eq!(count_in(&snapshot), EACH, "as the events say");
        }
        let owners = log.owners().unwrap();
        assert_eq!(owners.len(), usize::from(SHARDS));
        for owner in owners {
            assert_eq!((&*owner.node, &*owner.address), ("first", "first:1"));
        }
        drop(end);
        assert!(stays.join().unwrap() > 0, "its shards moved");
    });
}

/// Why a shard cannot be recovered whose first commands are gone. `is_begun`: somebody had handled the first of all.
fn refusal_of_a_log_that_begins_late(is_begun: bool) -> Option<String> {
    logs();
    let broker = broker()?;
    let config = broker.city(1);
    broker.keep_little(&config, Topic::RideCommands, 16 * 1_024);
    let log = KafkaLog::open(config).unwrap();
    if is_begun {
        submit(&log, 0, "the first");
        let mut node = Node::new(&log, "before");
        node.until_owns(1);
        until("it is carried out", || {
            node.look();
            node.work().is_ok() && events(&log, 0) == ["the first"]
        });
    }
    until("old commands are gone", || {
        (0..200).for_each(|_| submit(&log, 0, "a command that nobody will ever carry out"));
        log.sync().unwrap();
        log.bounds(Topic::RideCommands, 0).unwrap().first > 1
    });
    let mut owner = log.own("node", "").unwrap();
    until("the shard came", || {
        owner.poll(Duration::from_millis(20), 1).unwrap().gained == [0]
    });
    match owner.recover(0) {
        Err(RecoverError::Inconsistent(why)) => Some(why),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_log_that_begins_late_without_a_header_is_refused() {
    let Some(why) = refusal_of_a_log_that_begins_late(false) else {
        return;
    };
    assert!(why.contains("has no header"), "{why}");
}

#[test]
fn a_log_that_begins_behind_its_header_is_refused() {
    let Some(why) = refusal_of_a_log_that_begins_late(true) else {
        return;
    };
    assert!(why.contains("go on at command 1,"), "{why}");
    assert!(why.contains("lost to retention"), "{why}");
}
