//! Who reads along: tails of many partitions, and clients that are not ours.

use std::time::{Duration, Instant};

use bytes::Bytes;
use cabrank_eventlog::kafka::testing::broker;
use cabrank_eventlog::kafka::{KafkaLog, KafkaOwner};
use cabrank_eventlog::{
    Append, EventLog, EventTail, Followed, Header, ReadError, ShardOwner, Topic, Transaction,
};
use rdkafka::consumer::{BaseConsumer, Consumer};

const PATIENCE: Duration = Duration::from_secs(30);

fn owner_of_all(log: &KafkaLog) -> KafkaOwner {
    let mut owner = log.own("node", "127.0.0.1:9").unwrap();
    let deadline = Instant::now() + PATIENCE;
    let mut gained = 0;
    while gained < log.shards() {
        assert!(Instant::now() < deadline, "{gained} shards came");
        for shard in owner.poll(Duration::from_millis(20), 1).unwrap().gained {
            owner.recover(shard).unwrap();
            gained += 1;
        }
    }
    owner
}

fn commit(owner: &mut KafkaOwner, shard: u16, texts: &[String]) {
    let append = |topic, text: &String| Append {
        topic,
        shard,
        key: Bytes::from_static(b"ride:1"),
        value: Bytes::from(text.clone()),
    };
    let events = texts
        .iter()
        .flat_map(|text| [Topic::RideEvents, Topic::PersonEvents].map(|topic| append(topic, text)));
    let tx = Transaction {
        events: events.collect(),
        headers: vec![(shard, Header::default())],
        ..Transaction::default()
    };
    owner.commit(&tx).unwrap();
}

/// What comes until there are `count`.
fn take(tail: &mut dyn EventTail, count: usize) -> Vec<Followed> {
    let deadline = Instant::now() + PATIENCE;
    let mut found = Vec::new();
    while found.len() < count {
        assert!(Instant::now() < deadline, "{} of {count} came", found.len());
        found.extend(
            tail.next(Duration::from_millis(100), count - found.len())
                .unwrap(),
        );
    }
    found
}

fn texts_of(found: &[Followed], topic: Topic, shard: u16) -> Vec<String> {
    found
        .iter()
        .filter(|found| (found.topic, found.shard) == (topic, shard))
        .map(|found| String::from_utf8_lossy(&found.record.value).into_owned())
        .collect()
}

#[test]
fn a_tail_follows_many_partitions_from_where_it_is_told() {
    let Some(broker) = broker() else { return };
    let log = KafkaLog::open(broker.city(3)).unwrap();
    let mut owner = owner_of_all(&log);
    let numbers: Vec<String> = (0..10).map(|n| n.to_string()).collect();
    for shard in 0..3 {
        numbers
            .iter()
            .for_each(|n| commit(&mut owner, shard, std::slice::from_ref(n)));
    }
    let mut tail = log.tail();
    assert_eq!(tail.next(Duration::from_millis(10), 10).unwrap(), []);
    tail.follow(Topic::RideEvents, 0, 0);
    tail.follow(Topic::PersonEvents, 2, 0);
    let found = take(&mut *tail, 20);
    assert_eq!(texts_of(&found, Topic::RideEvents, 0), numbers);
    assert_eq!(texts_of(&found, Topic::PersonEvents, 2), numbers);
    assert_eq!(tail.next(Duration::from_millis(50), 10).unwrap(), []);

    // New ones come by themselves, also while another partition is added; one that is left is silent.
    let half = texts_of(&found, Topic::RideEvents, 0).len() / 2;
    let places: Vec<u64> = log
        .read(Topic::RideEvents, 1, 0, 100)
        .unwrap()
        .iter()
        .map(|record| record.offset)
        .collect();
    tail.follow(Topic::RideEvents, 1, places[half]);
    tail.leave(Topic::PersonEvents, 2);
    commit(&mut owner, 0, &["new".into()]);
    commit(&mut owner, 2, &["unseen".into()]);
    let found = take(&mut *tail, half + 1);
    assert_eq!(texts_of(&found, Topic::RideEvents, 0), ["new"]);
    assert_eq!(texts_of(&found, Topic::RideEvents, 1), numbers[half..]);
    assert_eq!(tail.next(Duration::from_millis(50), 10).unwrap(), []);
}

#[test]
fn a_tail_sees_nothing_of_a_transaction_that_is_not_committed() {
    let Some(broker) = broker() else { return };
    let log = KafkaLog::open(broker.city(1)).unwrap();
    let mut owner = owner_of_all(&log);
    // One look at each moment of a commit; more of them than this would fail loudly.
    let (sees, seen) = std::sync::mpsc::sync_channel(64);
    let reading = log.clone();
    owner.at_moment(Box::new(move |_| {
        let mut tail = reading.tail();
        tail.follow(Topic::RideEvents, 0, 0);
        sees.try_send(tail.next(Duration::from_millis(300), 10).unwrap().len())
            .unwrap();
    }));
    owner.poll(Duration::ZERO, 1).unwrap();
    commit(&mut owner, 0, &["one".into(), "two".into()]);
    let seen: Vec<usize> = seen.try_iter().collect();
    assert!(!seen.is_empty(), "it looked while the transaction was open");
    assert!(seen.iter().all(|count| *count == 0), "{seen:?}");
    let mut tail = log.tail();
    tail.follow(Topic::RideEvents, 0, 0);
    let found = take(&mut *tail, 2);
    assert_eq!(texts_of(&found, Topic::RideEvents, 0), ["one", "two"]);
}

#[test]
fn a_tail_whose_place_was_trimmed_is_told_and_the_others_go_on() {
    let Some(broker) = broker() else { return };
    let config = broker.city(2);
    broker.keep_little(&config, Topic::RideEvents, 64 * 1_024);
    let log = KafkaLog::open(config).unwrap();
    let mut owner = owner_of_all(&log);
    commit(&mut owner, 1, &["kept".into()]);
    let many: Vec<String> = (0..500).map(|n| format!("an event, number {n}")).collect();
    let deadline = Instant::now() + PATIENCE;
    while log.bounds(Topic::RideEvents, 0).unwrap().first == 0 {
        assert!(Instant::now() < deadline, "nothing was trimmed");
        commit(&mut owner, 0, &many);
    }
    let mut tail = log.tail();
    tail.follow(Topic::RideEvents, 0, 0);
    tail.follow(Topic::RideEvents, 1, 0);
    let mut found = Vec::new();
    let error = loop {
        assert!(Instant::now() < deadline, "never told");
        match tail.next(Duration::from_millis(100), 10) {
            Ok(more) => found.extend(more),
            Err(error) => break error,
        }
    };
    assert_eq!((error.topic, error.shard), (Topic::RideEvents, 0));
    let ReadError::TooOld { first } = error.why else {
        panic!("{error}");
    };
    if found.is_empty() {
        found = take(&mut *tail, 1);
    }
    assert_eq!(texts_of(&found, Topic::RideEvents, 1), ["kept"]);
    tail.follow(Topic::RideEvents, 0, first);
    assert!(!take(&mut *tail, 1).is_empty());
}

#[test]
fn published_pings_can_be_read_by_whoever_takes_over() {
    let Some(broker) = broker() else { return };
    let log = KafkaLog::open(broker.city(2)).unwrap();
    let ping = Bytes::from_static(b"here");
    assert!(log.publish(
        Topic::DriverLocations,
        1,
        Bytes::from_static(b"driver"),
        ping.clone()
    ));
    let deadline = Instant::now() + PATIENCE;
    let read = || log.read(Topic::DriverLocations, 1, 0, 10).unwrap();
    while read().is_empty() {
        assert!(Instant::now() < deadline, "it never came");
    }
    assert_eq!(read()[0].value, ping);
}

#[test]
fn kafkas_own_console_consumer_reads_committed_events() {
    let Some(broker) = broker() else { return };
    let log = KafkaLog::open(broker.city(1)).unwrap();
    let mut owner = owner_of_all(&log);
    commit(&mut owner, 0, &["{\"specversion\":\"1.0\"}".into()]);
    let printed = broker.console_consumer(log.config(), Topic::RideEvents, 1);
    assert!(
        printed.contains("content-type:application/cloudevents+json"),
        "{printed}"
    );
    assert!(printed.contains("ride:1"), "{printed}");
    assert!(printed.contains("{\"specversion\":\"1.0\"}"), "{printed}");
}

#[test]
fn a_node_of_an_older_release_is_found_by_what_it_does_not_say() {
    let Some(broker) = broker() else { return };
    let config = broker.city(2);
    let log = KafkaLog::open(config.clone()).unwrap();
    let mut owner = owner_of_all(&log);
    assert_eq!(log.nodes_that_cannot_grow().unwrap(), [""; 0]);
    // As those joined that said nothing of themselves.
    let older: BaseConsumer = config
        .client()
        .set("group.id", format!("{}{}", config.prefix, config.group))
        .set("partition.assignment.strategy", "range")
        .create()
        .unwrap();
    let commands = format!("{}ride-commands", config.prefix);
    older.subscribe(&[&commands]).unwrap();
    let deadline = Instant::now() + PATIENCE;
    let found = loop {
        assert!(Instant::now() < deadline, "it is not found");
        // Both must ask, or the group does not come together; what they get does not matter here.
        let _ = owner.poll(Duration::from_millis(20), 1);
        let _ = older.poll(Duration::ZERO);
        let found = log.nodes_that_cannot_grow().unwrap();
        if !found.is_empty() {
            break found;
        }
    };
    assert_eq!(found, ["1 without name and shards, at 127.0.0.1"]);
}
