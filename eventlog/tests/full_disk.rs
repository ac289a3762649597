//! A real file system that is full, where this process may mount one; elsewhere the test says that it did not run.
//! The unit tests of the embedded store fill a disk at every single write and run everywhere.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use bytes::Bytes;
use cabrank_eventlog::{
    Append, CommitError, EmbeddedLog, EventLog, Header, Options, RecoverError, ShardOwner,
    SubmitError, Topic, Transaction,
};

/// A small file system in memory, unmounted when dropped.
struct Mounted(tempfile::TempDir);

impl Mounted {
    fn new(size: &str) -> Option<Mounted> {
        let dir = tempfile::tempdir().unwrap();
        run_mount(
            &["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"],
            dir.path(),
        )
        .then_some(Mounted(dir))
    }
    fn resize(&self, size: &str) {
        assert!(run_mount(
            &["-o", &format!("remount,size={size}")],
            self.0.path()
        ));
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

fn run_mount(args: &[&str], path: &Path) -> bool {
    Command::new("mount")
        .args(args)
        .arg(path)
        .output()
        .is_ok_and(|output| output.status.success())
}

#[test]
fn a_full_disk_refuses_commands_and_serves_reads() {
    let Some(disk) = Mounted::new("6m") else {
        println!("not run: no file system can be mounted here");
        return;
    };
    let options = Options {
        shards: 1,
        ..Options::default()
    };
    let log = EmbeddedLog::open(disk.0.path(), options).unwrap();
    let mut owner = log.own("node").unwrap();
    owner.recover(0).unwrap();
    let submit = |n: u64| {
        let value = Bytes::from(format!("{n} {}", "x".repeat(10_000)));
        log.submit(0, Bytes::new(), value)
    };
    let step = |owner: &mut dyn ShardOwner| -> Result<usize, CommitError> {
        let polled = owner.poll(Duration::ZERO, 20).unwrap();
        let Some((_, last)) = polled.commands.last() else {
            return Ok(0);
        };
        let header = Header {
            next_input: last.offset + 1,
            ..Header::default()
        };
        let events = polled.commands.iter().map(|(_, record)| Append {
            topic: Topic::RideEvents,
            shard: 0,
            key: record.key.clone(),
            value: record.value.clone(),
        });
        owner.commit(&Transaction {
            events: events.collect(),
            headers: vec![(0, header)],
            ..Transaction::default()
        })?;
        Ok(polled.commands.len())
    };
    let mut submitted = 0;
    let mut committed = 0;
    loop {
        for _ in 0..20 {
            submit(submitted).unwrap();
            submitted += 1;
        }
        match step(&mut owner) {
            Ok(count) => committed += count as u64,
            Err(CommitError::DiskFull) => break,
            Err(other) => panic!("{other}"),
        }
        assert!(submitted < 2_000, "the disk never filled up");
    }
    assert!(committed > 0);
    let readable = || {
        let events = log.read(Topic::RideEvents, 0, 0, 10_000).unwrap();
        for (n, event) in (0_u64..).zip(&events) {
            assert!(event.value.starts_with(format!("{n} ").as_bytes()));
        }
        events.len() as u64
    };
    assert_eq!(readable(), committed);
    assert_eq!(submit(submitted), Err(SubmitError::DiskFull));
    assert_eq!(owner.recover(0), Err(RecoverError::DiskFull));
    assert_eq!(readable(), committed);

    disk.resize("64m");
    owner.recover(0).unwrap();
    submit(submitted).unwrap();
    while step(&mut owner).unwrap() > 0 {}
    assert_eq!(readable(), submitted + 1, "every command, once");
    drop((owner, log));
}
