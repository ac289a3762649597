//! A disk that fills up, or breaks, at any write: commands are refused, reads go on, and nothing is lost or doubled when there
//! is room again.

use std::time::Duration;

use bytes::Bytes;

use super::{EmbeddedLog, EmbeddedOwner, Options};
use crate::{
    Append, CommitError, EventLog, Header, LogError, PollError, Record, RecoverError, ShardOwner,
    StateChange, SubmitError, Topic, Transaction,
};

const SHARDS: u16 = 2;

fn submit(log: &EmbeddedLog, n: u64) -> Result<(), SubmitError> {
    let value = Bytes::from(format!("{n} {}", "x".repeat(3_000)));
    log.submit(0, Bytes::from_static(b"counter"), value)
}

/// One event per command, and the number of commands as the only state.
fn answer(commands: &[(u16, Record)]) -> Transaction {
    let next_input = commands.last().map_or(0, |(_, record)| record.offset + 1);
    let mut tx = Transaction {
        states: vec![StateChange {
            shard: 0,
            key: Bytes::from_static(b"counter"),
            value: Some(Bytes::from(next_input.to_string())),
        }],
        ..Transaction::default()
    };
    for (_, record) in commands {
        tx.events.push(Append {
            topic: Topic::RideEvents,
            shard: 0,
            key: record.key.clone(),
            value: record.value.clone(),
        });
    }
    tx.headers.push((
        0,
        Header {
            next_input,
            ..Header::default()
        },
    ));
    tx
}

fn step(owner: &mut EmbeddedOwner) -> Result<usize, CommitError> {
    let polled = owner.poll(Duration::ZERO, 100).expect("polling goes on");
    if !polled.commands.is_empty() {
        owner.commit(&answer(&polled.commands))?;
    }
    Ok(polled.commands.len())
}

fn recover(owner: &mut EmbeddedOwner) -> Result<(), RecoverError> {
    (0..SHARDS).try_for_each(|shard| owner.recover(shard).map(drop))
}

/// Commands, events, state and header all tell the same number of answered commands, which is returned.
fn check(log: &EmbeddedLog) -> u64 {
    let seen = log.snapshot(0).expect("states can be read");
    let answered = seen.header.map_or(0, |header| header.next_input);
    let commands = log
        .read(Topic::RideCommands, 0, 0, 10_000)
        .expect("readable");
    let events = log.read(Topic::RideEvents, 0, 0, 10_000).expect("readable");
    assert_eq!(events.len() as u64, answered);
    for (n, event) in (0_u64..).zip(&events) {
        assert!(event.value.starts_with(format!("{n} ").as_bytes()));
        assert_eq!(event.value, commands[event.offset as usize].value);
    }
    if answered > 0 {
        assert_eq!(seen.states[0].1, answered.to_string());
    }
    answered
}

#[test]
fn a_disk_that_fills_up_at_any_write_loses_nothing() {
    let mut filled = 0;
    for writes in 0..40 {
        let dir = tempfile::tempdir().unwrap();
        let options = Options {
            shards: SHARDS,
            ..Options::default()
        };
        let log = EmbeddedLog::open(dir.path(), options).unwrap();
        let mut owner = log.own("node").unwrap();
        recover(&mut owner).unwrap();
        for n in 0..10 {
            submit(&log, n).unwrap();
        }
        assert_eq!(step(&mut owner), Ok(10));

        log.shared.disk.set_writes_left(writes);
        for n in 10..13 {
            submit(&log, n).unwrap();
        }
        let full = loop {
            match step(&mut owner) {
                Ok(0) => break false,
                Ok(_) => {}
                Err(CommitError::DiskFull) => break true,
                Err(other) => panic!("after {writes} writes: {other}"),
            }
        };
        if full {
            filled += 1;
            let answered = check(&log);
            assert!(answered == 10 || answered == 13, "whole or not at all");
            assert_eq!(submit(&log, 13), Err(SubmitError::DiskFull));
            assert_eq!(log.sync(), Err(LogError::DiskFull));
            assert_eq!(owner.recover(0), Err(RecoverError::DiskFull));
            assert_eq!(check(&log), answered, "reading after a vain recovery");

            // Room for the probe beside the store, and for some writes in it, but not for enough.
            log.shared.disk.set_writes_left(writes % 12);
            if owner.recover(0).is_err() {
                assert_eq!(submit(&log, 13), Err(SubmitError::DiskFull));
            }
            assert_eq!(check(&log), answered, "reading after half a recovery");

            log.shared.disk.set_writes_left(u64::MAX);
            recover(&mut owner).unwrap();
            assert_eq!(check(&log), answered);
        }
        log.shared.disk.set_writes_left(u64::MAX);
        submit(&log, 13).unwrap();
        while step(&mut owner).unwrap() > 0 {}
        assert_eq!(check(&log), 14, "each command once, after {writes} writes");
        drop((owner, log));
        let options = Options {
            shards: SHARDS,
            ..Options::default()
        };
        let log = EmbeddedLog::open(dir.path(), options).unwrap();
        assert_eq!(check(&log), 14);
    }
    // A commit is some 18 writes: each of them met a full disk, and the last disks were large enough.
    assert!((10..40).contains(&filled), "{filled} of 40 disks filled up");
}

#[test]
fn a_sync_without_room_keeps_the_commands() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options {
        shards: SHARDS,
        ..Options::default()
    };
    let log = EmbeddedLog::open(dir.path(), options).unwrap();
    let mut owner = log.own("node").unwrap();
    recover(&mut owner).unwrap();
    submit(&log, 0).unwrap();
    log.shared.disk.set_writes_left(0);
    assert_eq!(log.sync(), Err(LogError::DiskFull));
    log.shared.disk.set_writes_left(u64::MAX);
    recover(&mut owner).unwrap();
    assert_eq!(step(&mut owner), Ok(1));
    assert_eq!(check(&log), 1);
}

#[test]
fn the_bound_of_the_file_is_a_full_disk_until_it_is_raised() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options {
        shards: SHARDS,
        file_max_bytes: 4 << 20,
        ..Options::default()
    };
    let log = EmbeddedLog::open(dir.path(), options).unwrap();
    let mut owner = log.own("node").unwrap();
    recover(&mut owner).unwrap();
    let mut submitted = 0;
    loop {
        for _ in 0..50 {
            submit(&log, submitted).unwrap();
            submitted += 1;
        }
        match step(&mut owner) {
            Ok(_) => assert!(submitted < 5_000, "the bound was never met"),
            Err(CommitError::DiskFull) => break,
            Err(other) => panic!("{other}"),
        }
    }
    assert_eq!(check(&log), submitted - 50);
    assert_eq!(submit(&log, submitted), Err(SubmitError::DiskFull));
    log.set_file_max_bytes(64 << 20);
    recover(&mut owner).unwrap();
    while step(&mut owner).unwrap() > 0 {}
    assert_eq!(check(&log), submitted);
}

#[test]
fn a_disk_that_breaks_at_any_write_leaves_the_outcome_open_until_recovered() {
    let mut broken = 0;
    for writes in 0..30 {
        let dir = tempfile::tempdir().unwrap();
        let options = Options {
            shards: SHARDS,
            ..Options::default()
        };
        let log = EmbeddedLog::open(dir.path(), options).unwrap();
        let mut owner = log.own("node").unwrap();
        recover(&mut owner).unwrap();
        (0..10).for_each(|n| submit(&log, n).unwrap());
        assert_eq!(step(&mut owner), Ok(10));

        (10..13).for_each(|n| submit(&log, n).unwrap());
        log.shared.disk.set_breaks();
        log.shared.disk.set_writes_left(writes);
        match step(&mut owner) {
            Ok(_) => {}
            Err(CommitError::Ambiguous(_)) => {
                broken += 1;
                let answered = check(&log);
                assert!(answered == 10 || answered == 13, "whole or not at all");
                let refused = submit(&log, 13);
                assert!(matches!(refused, Err(SubmitError::Unavailable(_))));
                let unpolled = owner.poll(Duration::ZERO, 1);
                assert!(matches!(unpolled, Err(PollError::NotRecovered(0))));
                let vain = owner.recover(0);
                assert!(matches!(vain, Err(RecoverError::Unavailable(_))));
                assert_eq!(check(&log), answered);
            }
            Err(other) => panic!("after {writes} writes: {other}"),
        }
        log.shared.disk.set_writes_left(u64::MAX);
        recover(&mut owner).unwrap();
        while step(&mut owner).unwrap() > 0 {}
        assert_eq!(check(&log), 13, "each command once, after {writes} writes");
    }
    assert!((10..30).contains(&broken), "{broken} of 30 disks broke");
}
