//! The embedded home keeps the contract of the log.

use std::path::Path;
use std::sync::Arc;

use cabrank_eventlog::contract::{Home, SHARDS};
use cabrank_eventlog::{EmbeddedLog, EventLog, Options, Retention, ShardOwner, contract_suite};

const TRIMS_AFTER: u64 = 6_000;

struct Embedded {
    dir: tempfile::TempDir,
    log: Option<EmbeddedLog>,
}

fn open(dir: &Path) -> EmbeddedLog {
    EmbeddedLog::open(
        dir,
        Options {
            shards: SHARDS,
            retention: Retention {
                records: TRIMS_AFTER / 2,
                ..Retention::default()
            },
            ..Options::default()
        },
    )
    .unwrap()
}

impl Embedded {
    fn fresh() -> Embedded {
        let dir = tempfile::tempdir().unwrap();
        let log = Some(open(dir.path()));
        Embedded { dir, log }
    }

    fn open(&self) -> &EmbeddedLog {
        self.log.as_ref().unwrap()
    }
}

impl Home for Embedded {
    fn log(&self) -> Arc<dyn EventLog> {
        Arc::new(self.open().clone())
    }

    fn own(&self, name: &str) -> Box<dyn ShardOwner> {
        Box::new(self.open().own(name).unwrap())
    }

    fn reopen(&mut self) {
        drop(self.log.take());
        self.log = Some(open(self.dir.path()));
    }

    fn trims_after(&self) -> u64 {
        TRIMS_AFTER
    }

    fn now_ms(&self) -> i64 {
        let clock = Options::default().clock;
        clock()
    }
}

contract_suite!(Embedded::fresh());
