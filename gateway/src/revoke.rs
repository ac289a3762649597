//! Who was shut out before their token was over?
//!
//! A revocation names a person and a moment: no token that was issued to that person until then (or that does not say when)
//! is believed any more, and open sockets and streams end. A new login works. With a file, revocations outlive the process
//! and reach every gateway that shares it: each reads what others have added. The file is also the record of who did it
//! and why; nothing of it is logged.
//! Bounds: people in it ([`REVOKED_MAX`]) and the file's size ([`FILE_BYTES_MAX`]); what is beyond is refused.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use cabrank_events::Reason;
use dashmap::DashMap;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::token::{Caller, Role, Verified};

/// People who are shut out at once.
pub const REVOKED_MAX: usize = 100_000;
/// The file's size.
pub const FILE_BYTES_MAX: u64 = 64 << 20;

/// One line of the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The person's role and id.
    role: Role,
    subject: String,
    /// Tokens issued until then are not believed, seconds since the Unix epoch; 0 lifts the revocation.
    until_s: u64,
    /// Who decided, as in a command's id.
    by: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    why: Option<Reason>,
}

impl Entry {
    /// All tokens of the person so far, or none any more (`until_s` 0).
    pub fn new(caller: &Caller, until_s: u64, by: String, why: Option<Reason>) -> Self {
        Self {
            role: caller.role(),
            subject: caller.subject().to_owned(),
            until_s,
            by,
            why,
        }
    }
}

/// Why a revocation was not taken.
#[derive(Debug, thiserror::Error)]
pub enum NotTaken {
    /// As many as there is room for.
    #[error("as many people are shut out as there is room for: lift revocations that are over")]
    Full,
    /// The file.
    #[error("the revocations cannot be kept: {0}")]
    File(#[from] io::Error),
}

/// All revocations of a gateway.
pub struct Revocations {
    until: DashMap<Caller, u64>,
    file: Option<Mutex<Kept>>,
    /// Counts changes, to end streams.
    changes: watch::Sender<u64>,
}

/// The file, and how far it was read.
struct Kept {
    path: PathBuf,
    read_to: u64,
}

impl Revocations {
    /// With the file at `path`, which is read at once, or in memory.
    pub fn open(path: &str) -> io::Result<Self> {
        let revocations = Self {
            until: DashMap::new(),
            file: (!path.is_empty()).then(|| {
                Mutex::new(Kept {
                    path: path.into(),
                    read_to: 0,
                })
            }),
            changes: watch::Sender::new(0),
        };
        if let Some(kept) = &revocations.file {
            let path = &kept.lock().unwrap_or_else(PoisonError::into_inner).path;
            OpenOptions::new().append(true).create(true).open(path)?;
        }
        revocations.read_file(|_| {})?;
        Ok(revocations)
    }

    /// Was this token issued before its owner was shut out?
    pub fn covers(&self, verified: &Verified) -> bool {
        if self.until.is_empty() {
            return false;
        }
        let until = self.until.get(&verified.caller);
        until.is_some_and(|until| verified.issued_s.is_none_or(|issued| issued <= *until))
    }

    /// Resolves to changes.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Keeps and applies an entry; `ended` hears of the person whose sessions are to end.
    pub fn add(&self, entry: &Entry, ended: impl FnMut(&Caller)) -> Result<(), NotTaken> {
        let Some(kept) = &self.file else {
            return self.apply(entry, ended);
        };
        if entry.until_s > 0 && self.until.len() >= REVOKED_MAX {
            return Err(NotTaken::Full);
        }
        {
            let kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
            let mut file = OpenOptions::new()
                .append(true)
                .create(true)
                .open(&kept.path)?;
            if file.metadata()?.len() >= FILE_BYTES_MAX {
                return Err(NotTaken::Full);
            }
            let mut line = serde_json::to_vec(entry).map_err(io::Error::other)?;
            line.push(b'\n');
            // One write: lines of several gateways do not mix.
            file.write_all(&line)?;
            file.sync_data()?;
        }
        Ok(self.read_file(ended)?)
    }

    /// Reads what the file has grown by; `ended` hears of the people in it.
    pub fn read_file(&self, mut ended: impl FnMut(&Caller)) -> io::Result<()> {
        let Some(kept) = &self.file else {
            return Ok(());
        };
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        let mut file = File::open(&kept.path)?;
        let length = file.metadata()?.len();
        if length < kept.read_to {
            // Somebody has put a shorter one in its place: all of it is read.
            kept.read_to = 0;
            self.until.clear();
        }
        if length == kept.read_to {
            return Ok(());
        }
        file.seek(SeekFrom::Start(kept.read_to))?;
        let mut text = Vec::new();
        file.take(FILE_BYTES_MAX).read_to_end(&mut text)?;
        // A line that is being written is read next time.
        let whole = text
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |at| at + 1);
        kept.read_to += whole as u64;
        for line in text[..whole]
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
        {
            match serde_json::from_slice::<Entry>(line) {
                Ok(entry) => {
                    if self.apply(&entry, &mut ended).is_err() {
                        tracing::error!("more people are shut out than there is room for");
                    }
                }
                // What it says is not repeated: it names people.
                Err(_) => tracing::error!("a line of the revocations file cannot be read"),
            }
        }
        Ok(())
    }

    fn apply(&self, entry: &Entry, mut ended: impl FnMut(&Caller)) -> Result<(), NotTaken> {
        let Ok(caller) = Caller::new(entry.role, &entry.subject) else {
            tracing::error!("a revocation names nobody");
            return Ok(());
        };
        if entry.until_s == 0 {
            self.until.remove(&caller);
            return Ok(());
        }
        if self.until.len() >= REVOKED_MAX && !self.until.contains_key(&caller) {
            return Err(NotTaken::Full);
        }
        self.until.insert(caller.clone(), entry.until_s);
        ended(&caller);
        self.changes.send_modify(|changes| *changes += 1);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(name: &str, issued_s: Option<u64>) -> Verified {
        Verified {
            caller: Caller::new(Role::Driver, name).unwrap(),
            good_until_s: u64::MAX,
            issued_s,
        }
    }

    fn entry(name: &str, until_s: u64) -> Entry {
        let caller = Caller::new(Role::Driver, name).unwrap();
        let why = Reason::new("a lost phone").unwrap();
        Entry::new(&caller, until_s, "ops/o".into(), Some(why))
    }

    #[test]
    fn older_tokens_are_not_believed_newer_ones_and_others_are() {
        let revocations = Revocations::open("").unwrap();
        let mut ended = Vec::new();
        revocations
            .add(&entry("d1", 100), |caller| ended.push(caller.clone()))
            .unwrap();
        assert_eq!(ended, [Caller::new(Role::Driver, "d1").unwrap()]);
        for (token, is_covered) in [
            (token("d1", Some(99)), true),
            (token("d1", Some(100)), true),
            (token("d1", None), true),
            (token("d1", Some(101)), false),
            (token("d2", Some(99)), false),
        ] {
            assert_eq!(revocations.covers(&token), is_covered, "{token:?}");
        }
        revocations.add(&entry("d1", 0), |_| {}).unwrap();
        assert!(!revocations.covers(&token("d1", None)), "lifted");
    }

    #[test]
    fn gateways_that_share_a_file_hear_of_each_others_and_a_restart_forgets_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("revoked").display().to_string();
        let (one, two) = (
            Revocations::open(&path).unwrap(),
            Revocations::open(&path).unwrap(),
        );
        one.add(&entry("d1", 100), |_| {}).unwrap();
        assert!(!two.covers(&token("d1", Some(1))));
        let mut ended = 0;
        two.read_file(|_| ended += 1).unwrap();
        two.read_file(|_| ended += 1).unwrap();
        assert!(
            two.covers(&token("d1", Some(1))) && ended == 1,
            "once, not twice"
        );
        // Half a line and nonsense spoil nothing.
        let append = |text: &[u8]| {
            let mut file = OpenOptions::new().append(true).open(&path).unwrap();
            file.write_all(text).unwrap();
        };
        append(b"{\"role\":\"fly\"}\n\n{\"role\":\"driver\",\"subject\":\"d2\"");
        one.read_file(|_| {}).unwrap();
        append(b",\"until_s\":100,\"by\":\"ops/o\"}\n");
        one.read_file(|_| {}).unwrap();
        let again = Revocations::open(&path).unwrap();
        for known in [&one, &again] {
            assert!(known.covers(&token("d1", Some(1))) && known.covers(&token("d2", Some(1))));
        }
        assert!(Revocations::open("/nowhere/at/all").is_err());
    }
}
