//! Where a running server's log is read for the audit and for people.

use std::time::Duration;

use super::Audit;
use crate::sse::{EventStream, StreamError};

/// After this long without an event the end is taken to be reached. A gateway that reads a log of before from busy brokers may be
/// silent for seconds; who ends too early finds promised rides nowhere.
const CAUGHT_UP_AFTER: Duration = Duration::from_secs(5);

/// Why the log could not be read to its end.
#[derive(Debug, thiserror::Error)]
pub enum AuditSourceError {
    /// The stream failed.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// The log grew faster than it was read.
    #[error("not at the end of the log after {0:?}: it is being written faster than it is read")]
    NeverCaughtUp(Duration),
}

/// Reads the log of the server at `url` from its oldest event to its end into `audit`; answers the number of events.
///
/// The stream does not tell offsets, so an event's place is its number in its shard. Give the audit
/// [`super::AuditOptions::live`] unless the server is idle: the log may grow while it is read.
pub async fn read_over_http(
    audit: &mut Audit,
    url: &str,
    token: &str,
    within: Duration,
) -> Result<u64, AuditSourceError> {
    let http = reqwest::Client::new();
    let url = url.trim_end_matches('/');
    let mut stream = EventStream::open(&http, url, token, Some("start")).await?;
    let deadline = tokio::time::Instant::now() + within;
    let mut events = 0;
    loop {
        let next = tokio::time::timeout(CAUGHT_UP_AFTER, stream.next());
        match tokio::time::timeout_at(deadline, next).await {
            Err(_) => return Err(AuditSourceError::NeverCaughtUp(within)),
            Ok(Err(_)) => return Ok(events),
            Ok(Ok(sent)) => {
                take(audit, &sent?.data);
                events += 1;
            }
        }
    }
}

fn take(audit: &mut Audit, json: &str) {
    let event = serde_json::from_str::<serde_json::Value>(json).ok();
    let id = event
        .as_ref()
        .and_then(|event| event["id"].as_str()?.split_once('-'));
    let (shard, seq) = id.map_or((0, 1), |(shard, seq)| {
        (shard.parse().unwrap_or(0), seq.parse().unwrap_or(1))
    });
    audit.event("events", shard, seq.max(1) - 1, json.as_bytes());
}
