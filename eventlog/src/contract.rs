//! What every home of the log must do, as tests against the traits.
//!
//! A home is given by a [`Home`]; `contract_suite!(expression)` makes one `#[test]` per rule, each with a fresh home
//! of [`SHARDS`] shards. The tests wait for conditions with [`PATIENCE`], so they suit a broker that takes its time.

mod model;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::{
    Append, CommitError, EventLog, Header, PollError, READ_MAX, RECORD_MAX_BYTES, ReadError,
    Record, Recovered, ShardOwner, StateChange, SubmitError, Topic, Transaction,
};

pub use model::a_seeded_history_matches_a_plain_model;

/// Shards of the home under test.
pub const SHARDS: u16 = 3;
/// Longest wait for anything that must happen.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A log under test. Dropping it removes what it keeps.
pub trait Home {
    /// The log, [`SHARDS`] shards.
    fn log(&self) -> Arc<dyn EventLog>;
    /// A new owner, of all shards sooner or later; it fences the owners before.
    fn own(&self, name: &str) -> Box<dyn ShardOwner>;
    /// Closes the log in an orderly way and opens it again. Owners before are dropped by the caller.
    fn reopen(&mut self);
    /// After how many events in one partition trimming has surely begun, if their commits look after it often
    /// enough: a home of small bounds, for tests. Not below 2,000, so that the other tests lose nothing.
    fn trims_after(&self) -> u64;
    /// The domain clock, which appends are stamped with.
    fn now_ms(&self) -> i64;
}

/// One `#[test]` per rule of the contract. The argument makes a fresh [`Home`].
#[macro_export]
macro_rules! contract_suite {
    ($home:expr) => {
        $crate::contract_suite!(@each $home;
            a_transaction_is_seen_whole_while_it_is_written,
            an_invalid_transaction_changes_nothing,
            commands_keep_their_order_and_their_times_never_go_back,
            consumed_commands_never_come_again_and_others_always_do,
            a_refusal_moves_the_position_alone,
            a_new_owner_fences_the_old_one,
            headers_come_back_with_owner_and_epoch,
            the_last_state_wins_and_a_tombstone_removes,
            messages_between_shards_come_once_and_in_order,
            engine_time_moves_on_only_when_caught_up,
            reading_stops_at_the_end_and_knows_its_bounds,
            a_read_of_what_was_trimmed_says_where_to_start,
            what_is_too_large_or_nowhere_is_refused,
            a_tail_wakes_when_something_is_committed,
            synced_commands_are_readable_and_come_once,
            a_seeded_history_matches_a_plain_model,
        );
    };
    (@each $home:expr; $($name:ident,)*) => {
        $(
            #[test]
            fn $name() {
                $crate::contract::$name(&mut $home);
            }
        )*
    };
}

/// An owner with all its shards recovered, as a node has it.
struct Node {
    owner: Box<dyn ShardOwner>,
    shards: BTreeMap<u16, Recovered>,
    /// Commands that came while the shards were being gained.
    early: Vec<(u16, Record)>,
}

impl Node {
    fn start(home: &dyn Home, name: &str) -> Node {
        let mut node = Node {
            owner: home.own(name),
            shards: BTreeMap::new(),
            early: Vec::new(),
        };
        for shard in node.owner.shards() {
            node.recover(shard);
        }
        let deadline = Instant::now() + PATIENCE;
        while node.shards.len() < usize::from(SHARDS) {
            assert!(Instant::now() < deadline, "the node never got all shards");
            let polled = node.owner.poll(Duration::from_millis(50), 1_000).unwrap();
            node.early.extend(polled.commands);
            for shard in polled.gained {
                node.recover(shard);
            }
        }
        node
    }

    fn recover(&mut self, shard: u16) {
        let recovered = self.owner.recover(shard).unwrap();
        self.shards.insert(shard, recovered);
    }

    fn next_input(&self, shard: u16) -> u64 {
        self.shards[&shard]
            .header
            .as_ref()
            .map_or(0, |header| header.next_input)
    }

    /// After a commit with this position.
    fn moved_to(&mut self, shard: u16, next_input: u64) {
        let header = &mut self.shards.entry(shard).or_default().header;
        header.get_or_insert_default().next_input = next_input;
    }

    /// Exactly the next `count` commands, over all shards.
    fn take(&mut self, count: usize) -> Vec<(u16, Record)> {
        let deadline = Instant::now() + PATIENCE;
        let mut taken = std::mem::take(&mut self.early);
        while taken.len() < count {
            assert!(
                Instant::now() < deadline,
                "{} of {count} commands came",
                taken.len()
            );
            let left = count - taken.len();
            let polled = self.owner.poll(Duration::from_millis(50), left).unwrap();
            taken.extend(polled.commands);
        }
        assert_eq!(taken.len(), count);
        taken
    }

    /// Nothing comes any more: the log says so itself, by a clock that is not older than the question.
    fn nothing_comes(&mut self, home: &dyn Home) {
        assert_eq!(self.early, []);
        let asked_ms = home.now_ms();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let polled = self.owner.poll(Duration::from_millis(20), 1_000).unwrap();
            assert_eq!(polled.commands, []);
            if polled.clock_ms.is_some_and(|clock| clock >= asked_ms) {
                return;
            }
            assert!(Instant::now() < deadline, "never caught up");
        }
    }
}

fn bytes(text: impl AsRef<str>) -> Bytes {
    Bytes::copy_from_slice(text.as_ref().as_bytes())
}

fn append(topic: Topic, shard: u16, key: &str, value: &str) -> Append {
    Append {
        topic,
        shard,
        key: bytes(key),
        value: bytes(value),
    }
}

fn state(shard: u16, key: &str, value: Option<&str>) -> StateChange {
    StateChange {
        shard,
        key: bytes(key),
        value: value.map(bytes),
    }
}

fn header(next_input: u64, time_ms: i64, engine: &str) -> Header {
    Header {
        next_input,
        time_ms,
        engine: bytes(engine),
        ..Header::default()
    }
}

fn only_header(shard: u16, next_input: u64) -> Transaction {
    Transaction {
        headers: vec![(shard, header(next_input, 0, ""))],
        ..Transaction::default()
    }
}

fn submit(log: &dyn EventLog, shard: u16, value: &str) {
    log.submit(shard, bytes("entity"), bytes(value)).unwrap();
}

fn values(records: &[Record]) -> Vec<String> {
    records
        .iter()
        .map(|record| String::from_utf8_lossy(&record.value).into_owned())
        .collect()
}

/// All committed events of rides in a shard.
fn ride_events(log: &dyn EventLog, shard: u16) -> Vec<String> {
    values(&log.read(Topic::RideEvents, shard, 0, READ_MAX).unwrap())
}

/// Offsets rise and times do not go back.
fn in_order(records: &[Record]) -> bool {
    records
        .windows(2)
        .all(|w| w[0].offset < w[1].offset && w[0].time_ms <= w[1].time_ms)
}

fn of_shard(commands: &[(u16, Record)], shard: u16) -> Vec<Record> {
    commands
        .iter()
        .filter(|(of, _)| *of == shard)
        .map(|(_, record)| record.clone())
        .collect()
}

/// Atomicity while reading: each commit raises one number in two topics and a state of every shard; a reader on
/// another thread never finds a state without its events.
pub fn a_transaction_is_seen_whole_while_it_is_written(home: &mut dyn Home) {
    const COMMITS: u64 = 60;
    let log = home.log();
    let mut node = Node::start(home, "a");
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let deadline = Instant::now() + PATIENCE;
            let mut looks = 0_u64;
            loop {
                for shard in 0..SHARDS {
                    let seen = log.snapshot(shard).unwrap();
                    let number = seen.header.as_ref().map_or(0, |h| h.time_ms);
                    let in_state: i64 = seen.states.first().map_or(0, |(_, value)| {
                        String::from_utf8_lossy(value).parse().unwrap()
                    });
                    assert_eq!(in_state, number, "state and header of one moment");
                    for (topic, end) in &seen.event_ends {
                        let before = log.read(*topic, shard, 0, READ_MAX).unwrap();
                        let before = before.iter().filter(|event| event.offset < *end).count();
                        assert_eq!(before as i64, number, "{topic} of that moment");
                    }
                    looks += 1;
                }
                if ride_events(&*log, SHARDS - 1).len() as u64 == COMMITS {
                    return looks;
                }
                assert!(Instant::now() < deadline, "the commits never ended");
            }
        });
        for number in 1..=COMMITS {
            let text = number.to_string();
            let mut tx = Transaction::default();
            for shard in 0..SHARDS {
                tx.events
                    .push(append(Topic::RideEvents, shard, "ride", &text));
                tx.events
                    .push(append(Topic::PersonEvents, shard, "driver", &text));
                tx.states.push(state(shard, "driver", Some(&text)));
                tx.headers
                    .push((shard, header(0, number.cast_signed(), &text)));
            }
            node.owner.commit(&tx).unwrap();
        }
        assert!(reader.join().unwrap() >= u64::from(SHARDS));
    });
}

/// A transaction that breaks a rule is refused whole, and the owner goes on.
pub fn an_invalid_transaction_changes_nothing(home: &mut dyn Home) {
    let log = home.log();
    let mut node = Node::start(home, "a");
    submit(&*log, 0, "c0");
    node.take(1);
    let good = Transaction {
        events: vec![append(Topic::RideEvents, 0, "ride", "opened")],
        states: vec![state(0, "ride", Some("open"))],
        headers: vec![(0, header(1, 5, ""))],
        ..Transaction::default()
    };
    type Spoil = fn(&mut Transaction);
    let broken: [(&str, Spoil); 6] = [
        ("an event of a shard without its header", |tx| {
            tx.events.push(append(Topic::RideEvents, 1, "ride", "x"));
        }),
        ("a state of a shard without its header", |tx| {
            tx.states.push(state(1, "ride", None));
        }),
        ("a command among the events", |tx| {
            tx.events.push(append(Topic::RideCommands, 0, "ride", "x"));
        }),
        ("a message to a shard that does not exist", |tx| {
            tx.commands
                .push(append(Topic::RideCommands, SHARDS, "ride", "x"));
        }),
        ("a position beyond what was handed out", |tx| {
            tx.headers[0].1.next_input = 2;
        }),
        ("two headers of one shard", |tx| {
            tx.headers.push((0, header(1, 5, "")));
        }),
    ];
    for (what, spoil) in broken {
        let mut tx = good.clone();
        spoil(&mut tx);
        assert!(
            matches!(node.owner.commit(&tx), Err(CommitError::Invalid(_))),
            "{what} was taken"
        );
        assert_eq!(ride_events(&*log, 0), Vec::<String>::new(), "{what}");
        assert_eq!(log.snapshot(0).unwrap().states, [], "{what}");
    }
    node.owner.commit(&good).unwrap();
    assert_eq!(ride_events(&*log, 0), ["opened"]);
    let back = only_header(0, 0);
    assert!(matches!(
        node.owner.commit(&back),
        Err(CommitError::Invalid(_))
    ));
}

/// Order and time of a partition, also with several submitters at once.
pub fn commands_keep_their_order_and_their_times_never_go_back(home: &mut dyn Home) {
    const EACH: usize = 200;
    let log = home.log();
    let mut node = Node::start(home, "a");
    let earliest = home.now_ms();
    std::thread::scope(|scope| {
        for submitter in 0..3_u16 {
            let log = &log;
            scope.spawn(move || {
                for n in 0..EACH {
                    submit(&**log, submitter % SHARDS, &format!("{submitter}:{n}"));
                }
            });
        }
    });
    let commands = node.take(3 * EACH);
    for shard in 0..SHARDS {
        let records = of_shard(&commands, shard);
        let expected: Vec<String> = (0..EACH).map(|n| format!("{shard}:{n}")).collect();
        assert_eq!(values(&records), expected);
        assert!(in_order(&records));
        assert!(
            records
                .iter()
                .all(|r| r.time_ms >= earliest && r.time_ms <= home.now_ms())
        );
        let end = records.last().unwrap().offset + 1;
        node.owner.commit(&only_header(shard, end)).unwrap();
        let stored = log
            .read(Topic::RideCommands, shard, records[0].offset, 1_000)
            .unwrap();
        assert_eq!(stored, records, "as handed out, so stored");
    }
}

/// Exactly-once resume over a new owner and over a reopened log.
pub fn consumed_commands_never_come_again_and_others_always_do(home: &mut dyn Home) {
    let log = home.log();
    let mut node = Node::start(home, "a");
    for n in 0..5 {
        submit(&*log, 0, &format!("c{n}"));
    }
    let taken = node.take(5);
    let second = taken[1].1.offset;
    node.owner.commit(&only_header(0, second + 1)).unwrap();

    node = Node::start(home, "b");
    assert_eq!(node.next_input(0), second + 1);
    let again = node.take(3);
    assert_eq!(values(&of_shard(&again, 0)), ["c2", "c3", "c4"]);
    assert_eq!(again, taken[2..], "same offsets, same times");
    node.owner.commit(&only_header(0, second + 2)).unwrap();
    node.nothing_comes(home);
    drop(node);
    drop(log);

    home.reopen();
    let log = home.log();
    let mut node = Node::start(home, "c");
    assert_eq!(node.next_input(0), second + 2);
    submit(&*log, 0, "c5");
    assert_eq!(values(&of_shard(&node.take(3), 0)), ["c3", "c4", "c5"]);
}

/// A transaction of a header alone is a transaction.
pub fn a_refusal_moves_the_position_alone(home: &mut dyn Home) {
    let log = home.log();
    let mut node = Node::start(home, "a");
    submit(&*log, 2, "nonsense");
    let next = node.take(1)[0].1.offset + 1;
    node.owner.commit(&only_header(2, next)).unwrap();
    assert_eq!(log.snapshot(2).unwrap().header.unwrap().next_input, next);
    assert_eq!(ride_events(&*log, 2), Vec::<String>::new());
    let mut node = Node::start(home, "b");
    node.nothing_comes(home);
}

/// The older owner is refused from the moment the newer one has its shards, and nothing of it is seen.
pub fn a_new_owner_fences_the_old_one(home: &mut dyn Home) {
    let log = home.log();
    let mut old = Node::start(home, "old");
    submit(&*log, 0, "c0");
    let next = old.take(1)[0].1.offset + 1;
    let decision = Transaction {
        events: vec![append(Topic::RideEvents, 0, "ride", "opened")],
        states: vec![state(0, "ride", Some("open"))],
        headers: vec![(0, header(next, 1, ""))],
        ..Transaction::default()
    };

    let mut new = Node::start(home, "new");
    assert!(new.owner.epoch() > old.owner.epoch());
    assert!(matches!(
        old.owner.commit(&decision),
        Err(CommitError::Fenced { .. })
    ));
    assert_eq!(ride_events(&*log, 0), Vec::<String>::new());
    assert_eq!(log.snapshot(0).unwrap().states, []);
    assert!(matches!(
        old.owner.poll(Duration::ZERO, 1),
        Err(PollError::Fenced { .. })
    ));
    assert!(matches!(
        old.owner.commit(&decision),
        Err(CommitError::Fenced { .. })
    ));

    assert_eq!(values(&of_shard(&new.take(1), 0)), ["c0"]);
    new.owner.commit(&decision).unwrap();
    assert_eq!(ride_events(&*log, 0), ["opened"]);
}

/// The engine's part of a header is the engine's; owner and epoch are the log's.
pub fn headers_come_back_with_owner_and_epoch(home: &mut dyn Home) {
    let mut node = Node::start(home, "node-7");
    assert_eq!(node.shards[&1].header, None);
    let epoch = node.owner.epoch();
    let written = Header {
        next_input: 0,
        time_ms: 1_234,
        epoch: 99,
        owner: "liar".into(),
        engine: Bytes::from_static(b"\0seq=5\xff"),
    };
    let expected = Header {
        epoch,
        owner: "node-7".into(),
        ..written.clone()
    };
    node.owner
        .commit(&Transaction {
            headers: vec![(1, written)],
            ..Transaction::default()
        })
        .unwrap();
    drop(node);
    home.reopen();
    let node = Node::start(home, "node-8");
    assert_eq!(node.shards[&1].header.as_ref(), Some(&expected));
    assert_eq!(node.shards[&0].header, None);
    assert!(node.owner.epoch() > epoch);
}

/// `shard-state` is compacted: one state per living entity and shard, in the order of their keys.
pub fn the_last_state_wins_and_a_tombstone_removes(home: &mut dyn Home) {
    let mut node = Node::start(home, "a");
    let headers = vec![(0, header(0, 1, "")), (1, header(0, 1, ""))];
    let commit = |node: &mut Node, states| {
        node.owner
            .commit(&Transaction {
                states,
                headers: headers.clone(),
                ..Transaction::default()
            })
            .unwrap();
    };
    commit(
        &mut node,
        vec![
            state(0, "d2", Some("free")),
            state(0, "d1", Some("free")),
            state(0, "d1", Some("held")),
            state(0, "gone", None),
            state(1, "d1", Some("elsewhere")),
            state(0, "r1", Some("open")),
        ],
    );
    commit(
        &mut node,
        vec![state(0, "r1", None), state(0, "d2", Some("offline"))],
    );
    drop(node);
    home.reopen();
    let node = Node::start(home, "b");
    assert_eq!(
        node.shards[&0].states,
        [
            (bytes("d1"), bytes("held")),
            (bytes("d2"), bytes("offline"))
        ]
    );
    assert_eq!(node.shards[&1].states, [(bytes("d1"), bytes("elsewhere"))]);
    assert_eq!(node.shards[&2].states, []);
    assert_eq!(home.log().snapshot(0).unwrap(), node.shards[&0]);
}

/// Hops through the log: in the same transaction as their cause, in order among the commands from outside.
pub fn messages_between_shards_come_once_and_in_order(home: &mut dyn Home) {
    let log = home.log();
    let mut node = Node::start(home, "a");
    submit(&*log, 0, "request");
    let next = node.take(1)[0].1.offset + 1;
    // These wait while the hops are written, and must come after them or before them, never lost between.
    submit(&*log, 1, "outside");
    node.owner
        .commit(&Transaction {
            commands: vec![
                append(Topic::RideCommands, 1, "ride", "hop 1"),
                append(Topic::RideCommands, 0, "ride", "hop to myself"),
                append(Topic::RideCommands, 1, "ride", "hop 2"),
            ],
            headers: vec![(0, header(next, 1, ""))],
            ..Transaction::default()
        })
        .unwrap();
    let commands = node.take(4);
    assert_eq!(values(&of_shard(&commands, 0)), ["hop to myself"]);
    let to_one = of_shard(&commands, 1);
    let hops: Vec<String> = values(&to_one)
        .into_iter()
        .filter(|value| value.starts_with("hop"))
        .collect();
    assert_eq!(hops, ["hop 1", "hop 2"]);
    assert!(in_order(&to_one));

    drop(node);
    let mut node = Node::start(home, "b");
    let again = node.take(4);
    assert_eq!(of_shard(&again, 1), to_one, "the same to the next owner");
    let end = to_one.last().unwrap().offset + 1;
    node.owner.commit(&only_header(1, end)).unwrap();
    node.owner
        .commit(&only_header(0, of_shard(&again, 0)[0].offset + 1))
        .unwrap();
    let mut node = Node::start(home, "c");
    node.nothing_comes(home);
}

/// PROTOCOL 15: when there is a clock, nothing earlier comes after it, also while more is waiting.
pub fn engine_time_moves_on_only_when_caught_up(home: &mut dyn Home) {
    const COMMANDS: usize = 10;
    let log = home.log();
    let mut node = Node::start(home, "a");
    for n in 0..COMMANDS {
        submit(&*log, 0, &format!("c{n}"));
    }
    let deadline = Instant::now() + PATIENCE;
    let mut newest: Option<i64> = None;
    let mut seen = 0;
    let mut look = |node: &mut Node| {
        let polled = node.owner.poll(Duration::from_millis(20), 4).unwrap();
        for (_, command) in &polled.commands {
            assert!(
                newest.is_none_or(|clock| command.time_ms >= clock),
                "appended at {}, after the clock said {newest:?}",
                command.time_ms
            );
        }
        assert!(polled.clock_ms.is_none_or(|clock| clock <= home.now_ms()));
        newest = newest.max(polled.clock_ms);
        (polled.commands.len(), newest)
    };
    while seen < COMMANDS {
        assert!(Instant::now() < deadline, "{seen} of {COMMANDS} came");
        seen += look(&mut node).0;
    }
    let all_came_ms = home.now_ms();
    while look(&mut node).1.is_none_or(|clock| clock < all_came_ms) {
        assert!(Instant::now() < deadline, "the clock stands still");
    }
    submit(&*log, 0, "later");
    while look(&mut node).0 == 0 {
        assert!(Instant::now() < deadline, "the last one never came");
    }
}

/// Reads are of committed records only and stop at the end.
pub fn reading_stops_at_the_end_and_knows_its_bounds(home: &mut dyn Home) {
    let log = home.log();
    let mut node = Node::start(home, "a");
    assert_eq!(log.read(Topic::RideEvents, 0, 0, 10).unwrap(), []);
    let before = home.now_ms();
    let events = (0..25)
        .map(|n| append(Topic::RideEvents, 0, "ride", &format!("e{n}")))
        .collect();
    node.owner
        .commit(&Transaction {
            events,
            headers: vec![(0, header(0, 1, ""))],
            ..Transaction::default()
        })
        .unwrap();
    let bounds = log.bounds(Topic::RideEvents, 0).unwrap();
    assert_eq!(bounds.first, 0);
    let mut all: Vec<Record> = Vec::new();
    loop {
        let next = all.last().map_or(0, |record| record.offset + 1);
        let page = log.read(Topic::RideEvents, 0, next, 10).unwrap();
        if page.is_empty() {
            break;
        }
        assert!(page.len() <= 10);
        all.extend(page);
    }
    assert_eq!(all.len(), 25);
    assert!(in_order(&all) && all[24].offset < bounds.end);
    let times: Vec<i64> = all.iter().map(|record| record.time_ms).collect();
    assert!(times.is_sorted() && times[0] >= before && times[24] <= home.now_ms());
    assert_eq!(values(&all)[24], "e24");
    assert_eq!(all[3].key, bytes("ride"));
    assert_eq!(log.read(Topic::RideEvents, 0, bounds.end, 10).unwrap(), []);
    assert_eq!(log.read(Topic::RideEvents, 0, 99, 10).unwrap(), []);
    assert_eq!(log.read(Topic::RideEvents, 0, 0, 0).unwrap(), []);
    assert_eq!(log.read(Topic::RideEvents, 1, 0, 10).unwrap(), []);
    assert!(matches!(
        log.read(Topic::RideEvents, SHARDS, 0, 10),
        Err(ReadError::NoSuchPartition { .. })
    ));
    assert!(matches!(
        log.bounds(Topic::ShardState, 0),
        Err(ReadError::NoSuchPartition { .. })
    ));
}

/// Retention: old events go, the reader is told where to go on, and the base snapshot fits what is left. Commands not
/// yet consumed stay, however old.
pub fn a_read_of_what_was_trimmed_says_where_to_start(home: &mut dyn Home) {
    const BATCH: u64 = 200;
    let log = home.log();
    let mut node = Node::start(home, "a");
    submit(&*log, 0, "never consumed");
    log.sync().unwrap();
    let mut number = 0;
    while number < home.trims_after() {
        let mut tx = Transaction::default();
        for _ in 0..BATCH {
            number += 1;
            let text = number.to_string();
            tx.events.push(append(Topic::RideEvents, 0, "n", &text));
            tx.states.push(state(0, "n", Some(&text)));
        }
        tx.headers.push((0, header(0, 0, "")));
        node.owner.commit(&tx).unwrap();
    }
    let deadline = Instant::now() + PATIENCE;
    let first = loop {
        let bounds = log.bounds(Topic::RideEvents, 0).unwrap();
        if bounds.first > 0 {
            break bounds.first;
        }
        assert!(Instant::now() < deadline, "nothing was trimmed");
        node.owner.commit(&only_header(0, 0)).unwrap();
    };
    let Err(ReadError::TooOld { first: told }) = log.read(Topic::RideEvents, 0, 0, 10) else {
        panic!("a read of trimmed records gave something");
    };
    assert!(told >= first);
    let base = log.base(0).unwrap();
    let (_, base_end) = base.event_ends[0];
    assert!(base_end >= told);
    let [(_, in_base)] = &base.states[..] else {
        panic!("one entity, not {:?}", base.states);
    };
    let in_base: u64 = String::from_utf8_lossy(in_base).parse().unwrap();
    // A home may keep no older snapshot than the newest: then the next event is one yet to come.
    let text = (number + 1).to_string();
    node.owner
        .commit(&Transaction {
            events: vec![append(Topic::RideEvents, 0, "n", &text)],
            states: vec![state(0, "n", Some(&text))],
            headers: vec![(0, header(0, 0, ""))],
            ..Transaction::default()
        })
        .unwrap();
    let next = log.read(Topic::RideEvents, 0, base_end, 1).unwrap();
    assert_eq!(values(&next), [(in_base + 1).to_string()]);
    assert_eq!(
        values(&log.read(Topic::RideCommands, 0, 0, 10).unwrap()),
        ["never consumed"]
    );
}

/// Records have a bound, shards a number.
pub fn what_is_too_large_or_nowhere_is_refused(home: &mut dyn Home) {
    let log = home.log();
    assert_eq!(log.shards(), SHARDS);
    assert!(matches!(
        log.submit(SHARDS, bytes("k"), bytes("v")),
        Err(SubmitError::NoSuchShard { .. })
    ));
    let large = Bytes::from(vec![7; RECORD_MAX_BYTES + 1]);
    assert!(matches!(
        log.submit(0, Bytes::new(), large),
        Err(SubmitError::TooLarge { .. })
    ));
    let mut node = Node::start(home, "a");
    let largest = Bytes::from(vec![7; RECORD_MAX_BYTES]);
    log.submit(0, Bytes::new(), largest.clone()).unwrap();
    assert_eq!(node.take(1)[0].1.value, largest);
}

/// Tails sleep until there is something to read.
pub fn a_tail_wakes_when_something_is_committed(home: &mut dyn Home) {
    let log = home.log();
    let mut node = Node::start(home, "a");
    let seen = log.wait_committed(u64::MAX, Duration::ZERO);
    assert_eq!(log.wait_committed(seen, Duration::from_millis(1)), seen);
    std::thread::scope(|scope| {
        let tail = scope.spawn(|| {
            let now = log.wait_committed(seen, PATIENCE);
            (now, ride_events(&*log, 0))
        });
        node.owner
            .commit(&Transaction {
                events: vec![append(Topic::RideEvents, 0, "ride", "opened")],
                headers: vec![(0, header(0, 1, ""))],
                ..Transaction::default()
            })
            .unwrap();
        let (now, events) = tail.join().unwrap();
        assert!(now > seen);
        assert_eq!(events, ["opened"]);
    });
}

/// `sync` stores without consuming.
pub fn synced_commands_are_readable_and_come_once(home: &mut dyn Home) {
    let log = home.log();
    submit(&*log, 1, "before any owner");
    log.sync().unwrap();
    assert_eq!(
        values(&log.read(Topic::RideCommands, 1, 0, 10).unwrap()),
        ["before any owner"]
    );
    let mut node = Node::start(home, "a");
    submit(&*log, 1, "polled");
    let first = node.take(2);
    log.sync().unwrap();
    submit(&*log, 1, "waiting");
    log.sync().unwrap();
    log.sync().unwrap();
    let second = node.take(1);
    let all: Vec<(u16, Record)> = first.into_iter().chain(second).collect();
    assert_eq!(
        values(&of_shard(&all, 1)),
        ["before any owner", "polled", "waiting"]
    );
    let end = all[2].1.offset + 1;
    node.owner.commit(&only_header(1, end)).unwrap();
    node.nothing_comes(home);
    drop(node);
    drop(log);
    home.reopen();
    assert_eq!(
        values(&home.log().read(Topic::RideCommands, 1, 0, 10).unwrap()),
        ["before any owner", "polled", "waiting"]
    );
}
