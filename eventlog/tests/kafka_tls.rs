//! A broker that wants TLS and a password, or a certificate: with the right ones everything works, with wrong ones the error
//! says which.
//!
//! `cargo test -p cabrank-eventlog --features kafka-testing,kafka-tls --test kafka_tls`

#[allow(dead_code, reason = "each crate uses its own part of this")]
#[path = "../../tests/support/authority.rs"]
mod authority;

use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use cabrank_eventlog::kafka::testing::{MutualBroker, SecuredBroker};
use cabrank_eventlog::kafka::{KafkaConfig, KafkaLog, SecurityProtocol, topics};
use cabrank_eventlog::{Append, EventLog, Header, ShardOwner, Topic, Transaction};

use authority::Authority;

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

#[test]
fn a_city_by_certificates_works_and_wrong_ones_on_either_side_are_named() {
    let (ours, strangers) = (Authority::new("ours"), Authority::new("strangers"));
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let shown = [
        ours.issue("127.0.0.1", false),
        ours.issue("else.test", false),
        ours.issue("127.0.0.1", true),
    ];
    let shown: Vec<_> = (0..)
        .zip(&shown)
        .map(|(number, (certificate, key))| {
            file(
                &format!("broker-{number}.pem"),
                &format!("{key}{certificate}"),
            )
        })
        .collect();
    let believed = file("ours.pem", &ours.pem);
    let Some(broker) = MutualBroker::start(&shown, &believed) else {
        return;
    };
    let with = |number: usize, believed: &Path, (certificate, key): &(String, String)| {
        let mut config = broker.config(1, number);
        config.security.ca_file = Some(believed.to_owned());
        config.security.certificate_file = Some(file("client.pem", certificate));
        config.security.key_file = Some(file("client.key", key));
        config
    };
    let right = ours.issue("cabrank", false);
    let over = ours.issue("cabrank", true);
    a_command_is_carried_out(with(0, &believed, &right));

    // What the broker refuses: nobody's certificate, a stranger's, one that is over.
    let mut nobody = with(0, &believed, &right);
    nobody.security.certificate_file = None;
    nobody.security.key_file = None;
    let why = refusal(nobody);
    assert!(why.contains("kafka.security.certificate_file"), "{why}");
    for shown in [&strangers.issue("cabrank", false), &over] {
        let why = refusal(with(0, &believed, shown));
        assert!(why.contains("kafka.security.certificate_file"), "{why}");
    }
    // What we refuse: an unknown authority, another name, a certificate that is over.
    for (number, believed) in [
        (0, file("strangers.pem", &strangers.pem)),
        (1, believed.clone()),
        (2, believed.clone()),
    ] {
        let why = refusal(with(number, &believed, &right));
        assert!(
            why.contains("kafka.security.ca_file") && why.contains("is kafka.brokers a name"),
            "{why}"
        );
    }

    // Files are read when a client is made: what runs goes on with what it had, whoever starts gets what is there.
    let config = with(0, &believed, &right);
    topics::create(&config).unwrap();
    let log = KafkaLog::open(config.clone()).unwrap();
    let submit = |text: &'static [u8]| {
        log.submit(0, Bytes::from_static(b"rider"), Bytes::from_static(text))
            .unwrap();
        log.sync().unwrap();
    };
    submit(b"before");
    with(0, &believed, &over);
    let why = refusal(config.clone());
    assert!(why.contains("kafka.security.certificate_file"), "{why}");
    submit(b"with what it had");
    with(0, &believed, &right);
    KafkaLog::open(config).unwrap();
}
