//! Which releases can work beside each other?
//!
//! Two numbers say it. The *wire version* is what gateways ask nodes and how ([`crate::rpc`]); each call carries it. The
//! *state version* is what nodes leave for each other in the log besides commands and events, which carry versions of
//! their own; each shard's header carries it. A process speaks its own version, one below and one above: so a release and
//! the next one work side by side, on the way forward and back. What is further away is refused with both numbers, and
//! counted; nobody guesses (PROTOCOL 9).
//!
//! A field that may be missing needs no new version: who does not know it passes over it (and drops it from a state it
//! writes). A new kind of command, message or stage does, and is written by the release after the one that reads it, or
//! when an operator asks for it, never by itself.

use bytes::Bytes;
use cabrank_engine::Counters;
use serde::{Deserialize, Serialize};

/// Between gateways and nodes.
pub const WIRE_VERSION: u16 = 1;
/// Of the states in `shard-state` and the messages between shards.
pub const STATE_VERSION: u16 = 1;
/// Of everybody who does not say: releases before there was a number.
const UNSAID: u16 = 1;

/// Somebody is more than one version away. Nothing was read or changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{what} version {found}, and this program is at {own} and speaks one below and one above: go from release to release and leave none out"
)]
pub struct NotSpoken {
    what: &'static str,
    found: u16,
    own: u16,
}

fn check(what: &'static str, own: u16, found: u16) -> Result<(), NotSpoken> {
    if own.abs_diff(found) <= 1 {
        Ok(())
    } else {
        Err(NotSpoken { what, found, own })
    }
}

/// What a caller says of itself: `user-agent` of each call to a node.
pub fn user_agent() -> String {
    format!(
        "cabrank/{} wire/{WIRE_VERSION} state/{STATE_VERSION}",
        env!("CARGO_PKG_VERSION")
    )
}

/// Is a caller who says this of itself understood?
pub(crate) fn check_caller(user_agent: Option<&str>) -> Result<(), NotSpoken> {
    let words = user_agent.unwrap_or_default().split_whitespace();
    let said = words.filter_map(|word| word.strip_prefix("wire/")).next();
    let found = said.map_or(UNSAID, |number| number.parse().unwrap_or(u16::MAX));
    check("the caller speaks wire", WIRE_VERSION, found)
}

/// Why a shard's header was not taken in.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BadHeader {
    #[error(transparent)]
    NotSpoken(#[from] NotSpoken),
    #[error("it does not parse: {0}")]
    Malformed(#[from] serde_json::Error),
}

/// The engine's part of a shard's header.
pub(crate) fn write_header(counters: &Counters) -> Bytes {
    #[derive(Serialize)]
    struct Stored<'a> {
        state_version: u16,
        #[serde(flatten)]
        counters: &'a Counters,
    }
    let stored = Stored {
        state_version: STATE_VERSION,
        counters,
    };
    Bytes::from(serde_json::to_vec(&stored).expect("counters hold only JSON's own kinds"))
}

/// Reads what [`write_header`] of this version, the one before or the next one wrote.
pub(crate) fn read_header(json: &[u8]) -> Result<Counters, BadHeader> {
    #[derive(Deserialize)]
    struct Version {
        state_version: Option<u16>,
    }
    // The version alone first: what else is in there is for those who speak it.
    let version: Version = serde_json::from_slice(json)?;
    let found = version.state_version.unwrap_or(UNSAID);
    check("it was written in state", STATE_VERSION, found)?;
    Ok(serde_json::from_slice(json)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_version_away_is_spoken_two_are_not() {
        assert!(check("x", 4, 3).is_ok() && check("x", 4, 4).is_ok() && check("x", 4, 5).is_ok());
        assert!(check("x", 4, 2).is_err() && check("x", 4, 6).is_err());
    }

    #[test]
    fn a_caller_who_says_nothing_is_of_the_first_version_and_one_who_says_nonsense_of_none() {
        assert_eq!(check_caller(Some(&user_agent())), Ok(()));
        assert_eq!(check_caller(None), Ok(()));
        assert_eq!(check_caller(Some("tonic/0.14.9")), Ok(()));
        assert!(check_caller(Some("cabrank/9.0.0 wire/many")).is_err());
        let far = check_caller(Some("cabrank/9.0.0 wire/9 tonic/0.14.9")).unwrap_err();
        let said = far.to_string();
        assert!(
            said.contains("wire version 9") && said.contains("at 1"),
            "{said}"
        );
    }

    #[test]
    fn a_header_of_before_versions_and_one_of_the_next_are_read_and_what_the_next_adds_is_passed_over()
     {
        let counters = Counters {
            seq: 7,
            sent: vec![1, 2],
            received: vec![3],
            ..Counters::default()
        };
        assert_eq!(read_header(&write_header(&counters)).unwrap(), counters);
        let first = serde_json::to_vec(&counters).unwrap();
        assert_eq!(read_header(&first).unwrap(), counters);
        let next = br#"{"state_version":2,"seq":7,"sent":[1,2],"received":[3],"rings":{"of":9}}"#;
        assert_eq!(read_header(next).unwrap(), counters);
        // An older program, which knows no versions, reads what this one writes.
        let older: Counters = serde_json::from_slice(&write_header(&counters)).unwrap();
        assert_eq!(older, counters);
    }

    #[test]
    fn a_header_of_a_far_release_is_refused_by_its_version_whatever_else_is_in_it() {
        let why = read_header(br#"{"state_version":3,"counters":"elsewhere"}"#).unwrap_err();
        assert!(why.to_string().contains("state version 3"), "{why}");
        let why = read_header(br#"{"state_version":"three"}"#).unwrap_err();
        assert!(matches!(why, BadHeader::Malformed(_)), "{why}");
    }
}
