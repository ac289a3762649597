//! A broker that wants TLS and a password: with the right ones everything works, with wrong ones the error says which.
//!
//! `cargo test -p cabrank-eventlog --features kafka-testing,kafka-tls --test kafka_tls`

use std::time::{Duration, Instant};

use bytes::Bytes;
use cabrank_eventlog::kafka::testing::SecuredBroker;
use cabrank_eventlog::kafka::{KafkaConfig, KafkaLog, SecurityProtocol, topics};
use cabrank_eventlog::{Append, EventLog, Header, ShardOwner, Topic, Transaction};

const PATIENCE: Duration = Duration::from_secs(40);

/// A command goes in, and its event and position come out: submitter, member, transactions and readers, all secured.
fn a_command_is_carried_out(config: KafkaConfig) {
    topics::create(&config).unwrap();
    let log = KafkaLog::open(config).unwrap();
    let text = Bytes::from_static(b"take me home");
    log.submit(0, Bytes::from_static(b"rider"), text.clone())
        .unwrap();
    let mut owner = log.own("node", "").unwrap();
    let deadline = Instant::now() + PATIENCE;
    let command = loop {
        assert!(Instant::now() < deadline, "no command within {PATIENCE:?}");
        let polled = owner.poll(Duration::from_millis(50), 10).unwrap();
        for shard in polled.gained {
            while owner.recover(shard).is_err() {
                assert!(Instant::now() < deadline, "not here within {PATIENCE:?}");
            }
        }
        if let Some((_, command)) = polled.commands.into_iter().next() {
            break command;
        }
    };
    assert_eq!(command.value, text);
    let header = Header {
        next_input: command.offset + 1,
        ..Header::default()
    };
    owner
        .commit(&Transaction {
            events: vec![Append {
                topic: Topic::RideEvents,
                shard: 0,
                key: Bytes::from_static(b"ride"),
                value: text.clone(),
            }],
            headers: vec![(0, header)],
            ..Transaction::default()
        })
        .unwrap();
    let events = log.read(Topic::RideEvents, 0, 0, 10).unwrap();
    assert_eq!(events.len(), 1);
    assert_eq!(events[0].value, text);
}

/// Why the log cannot be opened.
fn refusal(config: KafkaConfig) -> String {
    let why = KafkaLog::open(config).map(|_| ()).unwrap_err().to_string();
    println!("{why}");
    why
}

#[test]
fn a_city_over_tls_with_a_password_works_and_what_is_wrong_is_named() {
    let Some(broker) = SecuredBroker::start() else {
        return;
    };
    for mechanism in ["SCRAM-SHA-512", "PLAIN"] {
        a_command_is_carried_out(broker.config(1, mechanism));
    }

    let right = broker.config(1, "SCRAM-SHA-512");
    let mut wrong = right.clone();
    wrong.security.ca_file = Some(broker.strangers_ca());
    let why = refusal(wrong);
    assert!(why.contains("kafka.security.ca_file"), "{why}");
    assert!(why.contains("certificate"), "{why}");

    for mechanism in ["SCRAM-SHA-512", "PLAIN"] {
        let mut wrong = broker.config(1, mechanism);
        wrong.security.password_file = Some(broker.wrong_password());
        let why = refusal(wrong);
        assert!(why.contains("password_file"), "{why}");
    }

    let mut wrong = right;
    wrong.security.protocol = SecurityProtocol::Plaintext;
    let why = refusal(wrong);
    assert!(why.contains("kafka.security.protocol"), "{why}");
}
