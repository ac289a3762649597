//! Topics over a real broker: made once, checked always, refused by name when wrong.

use cabrank_eventlog::kafka::KafkaConfig;
use cabrank_eventlog::kafka::testing::broker;
use cabrank_eventlog::kafka::topics::{self, Problem, TopicsError};

#[test]
fn topics_are_made_once_and_are_as_they_must_be() {
    let Some(broker) = broker() else { return };
    let config = broker.config(4);
    let before = topics::check(&config).unwrap();
    assert_eq!(before.problems.len(), 8, "{:?}", before.problems);
    assert!(matches!(before.problems[0], Problem::Missing { .. }));
    assert_eq!(topics::create(&config).unwrap().len(), 8);
    assert_eq!(topics::create(&config).unwrap(), Vec::<String>::new());
    let report = topics::check(&config).unwrap();
    assert_eq!(report.problems, []);
    assert_eq!(report.brokers, 1);
    assert_eq!(report.session_timeout_min_ms, Some(500));
    assert_eq!(report.min_insync_replicas, Some(1));
}

#[test]
fn a_wrong_topic_is_named_with_its_remedy() {
    let Some(broker) = broker() else { return };
    let made = broker.city(2);
    let other = KafkaConfig {
        shards: 3,
        events_retention_ms: 3_600_000,
        replication: 2,
        session_timeout_ms: 500,
        heartbeat_ms: 100,
        ..made.clone()
    };
    let report = topics::check(&other).unwrap();
    let partitions = |p: &Problem| {
        matches!(
            p,
            Problem::Partitions {
                found: 2,
                wanted: 3,
                ..
            }
        )
    };
    assert_eq!(report.problems.iter().filter(|p| partitions(p)).count(), 7);
    let copies = |p: &Problem| {
        matches!(
            p,
            Problem::Replication {
                found: 1,
                wanted: 2,
                ..
            }
        )
    };
    assert_eq!(report.problems.iter().filter(|p| copies(p)).count(), 8);
    let retention = report.problems.iter().filter(|p| {
        matches!(
            p,
            Problem::Setting {
                key: "retention.ms",
                ..
            }
        )
    });
    let words: Vec<String> = retention.map(ToString::to_string).collect();
    assert_eq!(words.len(), 2, "{words:?}");
    assert!(
        words[0].contains("--add-config retention.ms=3600000"),
        "{words:?}"
    );
    let short = KafkaConfig {
        session_timeout_ms: 499,
        ..made
    };
    assert!(matches!(
        topics::check(&short),
        Err(TopicsError::Setting(_))
    ));
}

#[test]
fn a_broker_that_is_not_there_is_named() {
    let config = KafkaConfig {
        brokers: "127.0.0.1:1".into(),
        ..KafkaConfig::default()
    };
    let Err(why @ TopicsError::Unreachable { .. }) = topics::check(&config) else {
        panic!("there is no broker");
    };
    assert!(why.to_string().contains("127.0.0.1:1"), "{why}");
}
