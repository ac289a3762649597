//! Who may open a store, and what it says to those who may not.

use std::io::Read;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use bytes::Bytes;

use super::{EmbeddedLog, OpenError, Options, STORE_FILE, codec};
use crate::{
    EventLog, FORMAT_VERSION, Header, ShardOwner, StateChange, SubmitError, Topic, Transaction,
};

const HOLDER_DIR: &str = "CABRANK_EVENTLOG_HOLDER";

fn options(shards: u16) -> Options {
    Options {
        shards,
        ..Options::default()
    }
}

/// Holds a store until its input ends; started by the test below.
#[test]
fn holder() {
    let Some(dir) = std::env::var_os(HOLDER_DIR).map(PathBuf::from) else {
        return; // An ordinary test run.
    };
    let log = EmbeddedLog::open(&dir, options(1)).unwrap();
    println!("holding");
    let _ = std::io::stdin().read(&mut [0]);
    drop(log);
}

#[test]
fn a_store_in_use_names_the_process_that_has_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut holder = Command::new(std::env::current_exe().unwrap())
        .args(["embedded::opening::holder", "--exact", "--nocapture"])
        .env(HOLDER_DIR, dir.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    let mut out = holder.stdout.take().unwrap();
    while !said.contains("holding") {
        let mut byte = [0];
        assert_eq!(out.read(&mut byte).unwrap(), 1, "the holder ended: {said}");
        said.push(char::from(byte[0]));
    }
    let error = EmbeddedLog::open(dir.path(), options(1)).unwrap_err();
    let text = error.to_string();
    let OpenError::Locked { pid, command, .. } = error else {
        panic!("{text}");
    };
    assert_eq!(pid, Some(holder.id()));
    assert!(command.contains("embedded::opening::holder"), "{command}");
    assert!(text.contains(&holder.id().to_string()), "{text}");
    assert!(text.contains("--url"), "the remedy: {text}");

    holder.kill().unwrap();
    holder.wait().unwrap();
    EmbeddedLog::open(dir.path(), options(1)).expect("a killed holder leaves no lock");
}

fn with_version(version: u64) -> OpenError {
    let dir = tempfile::tempdir().unwrap();
    drop(EmbeddedLog::open(dir.path(), options(1)).unwrap());
    let path = dir.path().join(STORE_FILE);
    let db = redb::Database::open(&path).unwrap();
    let tx = db.begin_write().unwrap();
    {
        let meta: redb::TableDefinition<&str, &[u8]> = redb::TableDefinition::new("meta");
        let stored = codec::encode_number("format version", version);
        tx.open_table(meta)
            .unwrap()
            .insert("format version", stored.as_slice())
            .unwrap();
    }
    tx.commit().unwrap();
    drop(db);
    EmbeddedLog::open(dir.path(), options(1)).unwrap_err()
}

#[test]
fn another_format_version_is_refused_with_the_remedy() {
    let newer = with_version(FORMAT_VERSION + 1);
    assert!(
        matches!(newer, OpenError::Newer { found: 2, .. }),
        "{newer}"
    );
    assert!(newer.to_string().contains("use the newer program"));
    let older = with_version(FORMAT_VERSION - 1);
    assert!(
        matches!(older, OpenError::Older { found: 0, .. }),
        "{older}"
    );
    assert!(older.to_string().contains("start with an empty directory"));
}

#[test]
fn the_number_of_shards_is_fixed_and_options_are_checked() {
    let dir = tempfile::tempdir().unwrap();
    drop(EmbeddedLog::open(dir.path(), options(3)).unwrap());
    let error = EmbeddedLog::open(dir.path(), options(4)).unwrap_err();
    assert!(matches!(
        error,
        OpenError::Shards {
            found: 3,
            asked: 4,
            ..
        }
    ));
    for shards in [0, 1_025] {
        let error = EmbeddedLog::open(dir.path(), options(shards)).unwrap_err();
        assert!(matches!(error, OpenError::BadOption(_)), "{error}");
    }
    let log = EmbeddedLog::open(dir.path(), options(3)).unwrap();
    assert_eq!(log.shards(), 3);
}

#[test]
fn what_an_interrupted_creation_left_behind_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("cabrank.new"), "half a store").unwrap();
    std::fs::write(dir.path().join(STORE_FILE), "").unwrap();
    let log = EmbeddedLog::open(dir.path(), options(1)).unwrap();
    assert_eq!(log.bounds(Topic::RideCommands, 0).unwrap().end, 0);
    assert!(!dir.path().join("cabrank.new").exists());
}

#[test]
fn a_large_and_mostly_empty_file_is_compacted_when_opened() {
    let dir = tempfile::tempdir().unwrap();
    let len = || {
        std::fs::metadata(dir.path().join(STORE_FILE))
            .unwrap()
            .len()
    };
    let log = EmbeddedLog::open(dir.path(), options(1)).unwrap();
    let mut owner = log.own("node").unwrap();
    owner.recover(0).unwrap();
    let mut set = |entities: &mut dyn Iterator<Item = u32>, value: Option<Bytes>| {
        let states = entities.map(|n| StateChange {
            shard: 0,
            key: format!("entity-{n:06}").into(),
            value: value.clone(),
        });
        owner
            .commit(&Transaction {
                states: states.collect(),
                headers: vec![(0, Header::default())],
                ..Transaction::default()
            })
            .unwrap();
    };
    for batch in 0..40 {
        let state = Bytes::from(vec![7; 20_000]);
        set(&mut (batch * 100..(batch + 1) * 100), Some(state));
    }
    // All end but each hundredth, which stay scattered over the file.
    set(&mut (0..4_000).filter(|n| n % 100 != 0), None);
    drop((owner, log));
    let before = len();
    assert!(before > 64 << 20, "{before} bytes");
    let log = EmbeddedLog::open(dir.path(), options(1)).unwrap();
    assert_eq!(log.snapshot(0).unwrap().states.len(), 40);
    drop(log);
    assert!(len() < 16 << 20, "{} bytes of {before} are left", len());
}

#[test]
fn a_stopped_store_can_be_read_without_touching_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(STORE_FILE);
    let missing = EmbeddedLog::open_read_only(dir.path()).unwrap_err();
    assert!(matches!(missing, OpenError::Io { .. }), "{missing}");
    assert!(!path.exists(), "looking for a store does not make one");

    let log = EmbeddedLog::open(dir.path(), options(2)).unwrap();
    log.submit(1, Bytes::new(), Bytes::from_static(b"command"))
        .unwrap();
    log.sync().unwrap();
    let busy = EmbeddedLog::open_read_only(dir.path()).unwrap_err();
    assert!(matches!(busy, OpenError::Locked { .. }), "{busy}");
    drop(log);

    let before = std::fs::read(&path).unwrap();
    let log = EmbeddedLog::open_read_only(dir.path()).unwrap();
    assert_eq!(log.shards(), 2);
    assert_eq!(log.bounds(Topic::RideCommands, 1).unwrap().end, 1);
    assert!(matches!(
        log.submit(1, Bytes::new(), Bytes::new()),
        Err(SubmitError::Unavailable(_))
    ));
    assert!(log.own("node").is_err());
    drop(log);
    assert!(std::fs::read(&path).unwrap() == before);
}
