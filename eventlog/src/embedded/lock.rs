//! Which process has the store, and how far it got.
//!
//! The lock file is locked by the operating system for as long as the process lives, so a killed process leaves no
//! stale lock. Its text is for people and for one check: the first line is the number of commits made, written after
//! each commit and never synced. It is never ahead of the store, so a store that is behind it has lost commits: redb
//! falls back to the commit before when the newest one is damaged, which must not pass as the truth.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

/// Length of the first line, newline included: the rest may be of any length.
const COMMITS_LINE: usize = 46;
/// Longest command line kept.
const COMMAND_MAX: usize = 400;

/// The process that has a store, as far as its lock file tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Holder {
    pub pid: Option<u32>,
    pub command: String,
}

pub(super) enum LockFailure {
    Held(Holder),
    Io(io::Error),
}

/// A store that is this process's until dropped.
#[derive(Debug)]
pub(super) struct StoreLock {
    file: File,
}

impl StoreLock {
    /// Locks and returns the number of commits noted by the last holder, if it can be read.
    pub(super) fn take(path: &Path) -> Result<(StoreLock, Option<u64>), LockFailure> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(LockFailure::Io)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(LockFailure::Held(parse_holder(&read_text(&mut file))));
            }
            Err(TryLockError::Error(e)) => return Err(LockFailure::Io(e)),
        }
        let commits = parse_commits(&read_text(&mut file));
        let mut lock = StoreLock { file };
        lock.note_holder().map_err(LockFailure::Io)?;
        Ok((lock, commits))
    }

    fn note_holder(&mut self) -> io::Result<()> {
        let mut command: String = std::env::args().collect::<Vec<_>>().join(" ");
        command.retain(|c| !c.is_control());
        let command: String = command.chars().take(COMMAND_MAX).collect();
        let text = format!("pid {}\n{command}\n", std::process::id());
        self.file.seek(SeekFrom::Start(COMMITS_LINE as u64))?;
        self.file.write_all(text.as_bytes())?;
        self.file.set_len(COMMITS_LINE as u64 + text.len() as u64)
    }

    /// Notes the number of commits. A failure is ignored: the check it serves is then weaker, nothing else.
    pub(super) fn note_commits(&mut self, commits: u64) {
        let line = commits_line(commits);
        let _ = self
            .file
            .seek(SeekFrom::Start(0))
            .and_then(|_| self.file.write_all(line.as_bytes()));
    }
}

fn commits_line(commits: u64) -> String {
    let sum = crc32c::crc32c(&commits.to_le_bytes());
    let line = format!("commits {commits:020} sum {sum:08x}");
    format!("{line:<width$}\n", width = COMMITS_LINE - 1)
}

fn read_text(file: &mut File) -> String {
    let mut bytes = Vec::new();
    let limit = (COMMITS_LINE + 2 * COMMAND_MAX) as u64 * 4;
    let _ = file.take(limit).read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

fn parse_commits(text: &str) -> Option<u64> {
    let mut words = text.lines().next()?.split_whitespace();
    let commits: u64 = match (words.next()?, words.next()?) {
        ("commits", number) => number.parse().ok()?,
        _ => return None,
    };
    (commits_line(commits).trim_end() == text.lines().next()?.trim_end()).then_some(commits)
}

fn parse_holder(text: &str) -> Holder {
    let mut lines = text.lines().skip(1);
    Holder {
        pid: lines
            .next()
            .and_then(|line| line.strip_prefix("pid "))
            .and_then(|pid| pid.parse().ok()),
        command: lines.next().unwrap_or("unknown").to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_commits_is_believed_only_with_its_sum() {
        let line = commits_line(42);
        assert_eq!(line.len(), COMMITS_LINE);
        assert_eq!(parse_commits(&line), Some(42));
        assert_eq!(parse_commits(&line.replace("42", "43")), None);
        assert_eq!(parse_commits(""), None);
        assert_eq!(parse_commits(&line[..20]), None);
    }
}
