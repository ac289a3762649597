//! What does the process log, and how is that changed while it runs?
//!
//! A process has one log; the first [`start_logging`] starts it. Written to standard error, as lines for a person or as JSON.
//! What is wanted is `LEVEL` or `TARGET=LEVEL`, several with commas; anything else is refused with what to write, because
//! `tracing` takes a misspelt level for a target and says nothing.
//! At INFO nobody is named (`tests/door/quiet.rs`); DEBUG and TRACE name people, so they are for a short while.

use std::sync::{Mutex, OnceLock, PoisonError};

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::http::StatusCode;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, fmt, reload};

use crate::http::{body_of, json};
use crate::problem::Problem;
use crate::token::Caller;

/// Longest text of what is wanted.
const WANTED_BYTES_MAX: usize = 1_024;
/// Levels by their names.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// Why the log is as it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadLog {
    /// It does not say what to log.
    #[error(
        "{0:?} is neither LEVEL nor TARGET=LEVEL: write for example info,cabrank_matcher=debug; levels are off, error, warn, info, debug and trace"
    )]
    Directive(String),
    /// It is too long.
    #[error("{0} bytes: write at most {WANTED_BYTES_MAX}")]
    TooLong(usize),
    /// The program around it logs by itself, or there are two that start it.
    #[error("this process's log was not started by cabrank: change it where it was started")]
    NotOurs,
}

/// The log that was started.
struct Started {
    filter: reload::Handle<EnvFilter, Registry>,
    wanted: Mutex<String>,
}

static STARTED: OnceLock<Started> = OnceLock::new();

/// Body of `PUT /v1/log-level`, and the answer.
#[derive(Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LogLevel {
    /// What is logged: `LEVEL` or `TARGET=LEVEL`, several with commas, e.g. `info,cabrank_matcher=debug`.
    log: String,
}

fn parse(wanted: &str) -> Result<EnvFilter, BadLog> {
    if wanted.len() > WANTED_BYTES_MAX {
        return Err(BadLog::TooLong(wanted.len()));
    }
    let is_level = |text: &str| LEVELS.contains(&text.to_ascii_lowercase().as_str());
    let is_target = |text: &str| {
        let of = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
        !text.is_empty() && text.chars().all(of)
    };
    for directive in wanted.split(',').map(str::trim) {
        let is_good = match directive.split_once('=') {
            Some((target, level)) => is_target(target) && is_level(level),
            None => is_level(directive),
        };
        if !is_good {
            return Err(BadLog::Directive(directive.into()));
        }
    }
    EnvFilter::try_new(wanted).map_err(|_| BadLog::Directive(wanted.into()))
}

/// Starts the process's log.
///
/// # Errors
/// When `wanted` does not say what to log, or there is a log already.
pub fn start_logging(wanted: &str, is_json: bool) -> Result<(), BadLog> {
    let (filter, handle) = reload::Layer::new(parse(wanted)?);
    let json = is_json.then(|| {
        fmt::layer()
            .with_writer(std::io::stderr)
            .with_target(false)
            .json()
    });
    let plain = (!is_json).then(|| fmt::layer().with_writer(std::io::stderr).with_target(false));
    tracing_subscriber::registry()
        .with(filter)
        .with(json)
        .with(plain)
        .try_init()
        .map_err(|_| BadLog::NotOurs)?;
    let started = Started {
        filter: handle,
        wanted: Mutex::new(wanted.into()),
    };
    STARTED.set(started).map_err(|_| BadLog::NotOurs)
}

impl Started {
    fn wanted(&self) -> String {
        let wanted = self.wanted.lock();
        wanted.unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, wanted: &str, by: &str) -> Result<(), BadLog> {
        let filter = parse(wanted)?;
        let mut before = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        // Said before and after: one of the two may not be wanted.
        tracing::info!(from = *before, to = wanted, by, "what is logged changes");
        self.filter.reload(filter).map_err(|_| BadLog::NotOurs)?;
        tracing::info!(
            from = *before,
            to = wanted,
            by,
            "what is logged has changed"
        );
        wanted.clone_into(&mut before);
        Ok(())
    }
}

fn started() -> Result<&'static Started, Problem> {
    STARTED.get().ok_or_else(|| problem(&BadLog::NotOurs))
}

fn problem(why: &BadLog) -> Problem {
    let (status, name, title) = match why {
        BadLog::Directive(_) | BadLog::TooLong(_) => (422, "bad_log_level", "This is no log level"),
        BadLog::NotOurs => (409, "foreign_log", "Somebody else's log"),
    };
    Problem::new(status, name, title, why.to_string())
}

/// The answer of `GET /v1/log-level`.
pub fn show() -> Result<Response, Problem> {
    let log = started()?.wanted();
    Ok(json(StatusCode::OK, &LogLevel { log }))
}

/// The answer of `PUT /v1/log-level`: at once, until the next call or the process's end.
pub fn change(
    who: &Caller,
    bytes: Result<Bytes, BytesRejection>,
    bytes_max: usize,
) -> Result<Response, Problem> {
    let LogLevel { log } = body_of(bytes, bytes_max)?;
    let started = started()?;
    started
        .set(&log, who.role().name())
        .map_err(|why| problem(&why))?;
    show()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_tracing_would_take_for_a_target_is_refused_with_what_to_write() {
        for good in [
            "info",
            "WARN",
            "off",
            "info,cabrank_matcher=debug",
            "a::b=trace, error",
        ] {
            assert!(parse(good).is_ok(), "{good}");
        }
        for (bad, named) in [
            ("inof", "inof"),
            ("", ""),
            ("info,", ""),
            ("info,cabrank_matcher=loud", "cabrank_matcher=loud"),
            ("[a{b=c}]=info", "[a{b=c}]=info"),
            ("cabrank_matcher", "cabrank_matcher"),
        ] {
            let Err(BadLog::Directive(said)) = parse(bad) else {
                panic!("{bad} was taken");
            };
            assert_eq!(said, named);
        }
        let long = "info,".repeat(1_000);
        assert_eq!(parse(&long).unwrap_err(), BadLog::TooLong(5_000));
    }
}
