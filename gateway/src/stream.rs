//! The event log as server-sent events, resumable by an opaque cursor.
//!
//! Each event's `id:` is the place after it, so a client that reconnects with `Last-Event-ID` misses nothing and sees
//! nothing twice. Reading happens off the sockets' threads, a batch at a time; a slow client is read for slowly.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;

use axum::extract::{ConnectInfo, State};
use axum::http::{HeaderMap, Uri};
use axum::response::sse::{Event as SentEvent, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use cabrank_matcher::api::{EventCursor, EventsUnreadable, ReadEvent};
use futures_util::stream;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{Instant, sleep_until};

use crate::access::Endpoint;
use crate::edge::Edge;
use crate::listener::{Busy, Conn};
use crate::problem::Problem;
use crate::query::{self, Asked};
use crate::token::{LIFE_MAX, Verified};

/// Events read before any of them is written.
const BATCH: usize = 256;
/// More partitions than any log has; a cursor that claims more is not ours.
const PARTITIONS_MAX: usize = 4_096;
/// First byte of a cursor: the version of its layout.
const CURSOR_VERSION: u8 = 1;

/// The cursor as text: version, then each topic's offsets with their count.
pub fn cursor_to_text(cursor: &EventCursor) -> String {
    let mut bytes = vec![CURSOR_VERSION];
    for offsets in [&cursor.ride_events, &cursor.person_events] {
        bytes.extend((offsets.len() as u16).to_le_bytes());
        offsets
            .iter()
            .for_each(|offset| bytes.extend(offset.to_le_bytes()));
    }
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Reads what [`cursor_to_text`] wrote; `None` for anything else.
pub fn cursor_from_text(text: &str) -> Option<EventCursor> {
    let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
    let rest = bytes.strip_prefix(&[CURSOR_VERSION])?;
    let (ride_events, rest) = take_offsets(rest)?;
    let (person_events, rest) = take_offsets(rest)?;
    rest.is_empty().then_some(EventCursor {
        ride_events,
        person_events,
    })
}

fn take_offsets(bytes: &[u8]) -> Option<(Vec<u64>, &[u8])> {
    let (count, rest) = bytes.split_first_chunk::<2>()?;
    let count = usize::from(u16::from_le_bytes(*count));
    if count > PARTITIONS_MAX {
        return None;
    }
    let (offsets, rest) = rest.split_at_checked(count * 8)?;
    Some((
        offsets
            .as_chunks::<8>()
            .0
            .iter()
            .map(|chunk| u64::from_le_bytes(*chunk))
            .collect(),
        rest,
    ))
}

/// Does `cursor` lie beyond `end`? No event given out here led there: it is another log's.
fn is_beyond(cursor: &EventCursor, end: &EventCursor) -> bool {
    let beyond = |cursor: &[u64], end: &[u64]| cursor.iter().zip(end).any(|(at, end)| at > end);
    beyond(&cursor.ride_events, &end.ride_events)
        || beyond(&cursor.person_events, &end.person_events)
}

/// `GET /v1/events`
pub async fn events(
    State(edge): State<Arc<Edge>>,
    ConnectInfo(conn): ConnectInfo<Conn>,
    headers: HeaderMap,
    uri: Uri,
) -> Result<Response, Problem> {
    let verified = edge.authorize(Endpoint::Events, &headers)?;
    let asked = Asked::of(&uri, &["cursor"])?;
    // A reconnecting client repeats its first URL; where it stands is in the header. A header that cannot be read must
    // not become the end: events would be lost.
    let header = headers.get("last-event-id");
    let seen = header.map(|id| ("Last-Event-ID", id.to_str().unwrap_or("?")));
    let cursor = match seen.or(asked.text("cursor").map(|text| ("cursor", text))) {
        None => edge.dispatch.events_end(),
        Some((_, "start")) => edge.dispatch.events_start(),
        Some((key, text)) => cursor_from_text(text).ok_or_else(|| {
            let remedy = "send the id of an event received here, start, or nothing for the end";
            query::bad(key, text, remedy)
        })?,
    };
    if is_beyond(&cursor, &edge.dispatch.events_end()) {
        let detail = "the cursor lies beyond the newest event, so it is not from this log: start again with cursor=start";
        return Err(cursor_gone(detail));
    }
    let permit = edge.admit()?;
    let mut tail = Tail {
        commits: edge.commits.subscribe(),
        cursor,
        batch: VecDeque::new(),
        expires: Instant::now() + verified.remaining().min(LIFE_MAX),
        revoked: edge.revocations.watch(),
        verified,
        _kept: (permit, conn.busy()),
        edge,
    };
    // The first read tells before the first byte whether the cursor is still good.
    tail.read().await.map_err(|error| match error {
        EventsUnreadable::Gone => cursor_gone(error.to_string()),
        EventsUnreadable::Failed(_) => Problem::busy("the event log cannot be read: retry later"),
    })?;
    let events = stream::unfold(tail, async |mut tail| {
        let event = tail.next().await?;
        Some((Ok::<_, Infallible>(event), tail))
    });
    Ok(Sse::new(events)
        .keep_alive(KeepAlive::default())
        .into_response())
}

fn cursor_gone(detail: impl Into<String>) -> Problem {
    Problem::new(410, "cursor_gone", "Not in what is kept", detail)
}

struct Tail {
    edge: Arc<Edge>,
    commits: watch::Receiver<u64>,
    cursor: EventCursor,
    batch: VecDeque<ReadEvent>,
    /// When the token is over.
    expires: Instant,
    /// Whose stream it is, and changes of who is shut out.
    verified: Verified,
    revoked: watch::Receiver<u64>,
    _kept: (OwnedSemaphorePermit, Busy),
}

impl Tail {
    /// The next event; `None` ends the stream (the gateway closes, the token is over, or the client fell out of what
    /// is kept): the client connects again and hears why.
    async fn next(&mut self) -> Option<SentEvent> {
        let closing = self.edge.closing.clone();
        loop {
            let is_revoked = self.edge.revocations.covers(&self.verified);
            if is_revoked || Instant::now() >= self.expires {
                return None;
            }
            if let Some(ReadEvent { json, after }) = self.batch.pop_front() {
                // CloudEvents JSON has no line breaks; should one appear, it is sent as white space.
                let text = String::from_utf8_lossy(&json).replace(['\r', '\n'], " ");
                return Some(SentEvent::default().id(cursor_to_text(&after)).data(text));
            }
            // Marked as seen before reading: a commit during the read wakes us again.
            self.commits.borrow_and_update();
            self.read().await.ok()?;
            if self.batch.is_empty() {
                tokio::select! {
                    () = closing.cancelled() => return None,
                    () = sleep_until(self.expires) => return None,
                    changed = self.commits.changed() => changed.ok()?,
                    changed = self.revoked.changed() => changed.ok()?,
                }
            }
        }
    }

    /// Reads a batch, each event with the cursor after it.
    async fn read(&mut self) -> Result<(), EventsUnreadable> {
        let dispatch = self.edge.dispatch.clone();
        let cursor = self.cursor.clone();
        let reading = tokio::task::spawn_blocking(move || dispatch.read_events(&cursor, BATCH));
        let failed = |error: tokio::task::JoinError| EventsUnreadable::Failed(error.to_string());
        self.batch = reading.await.map_err(failed)??.into();
        if let Some(last) = self.batch.back() {
            self.cursor = last.after.clone();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_reads_back_and_garbage_is_no_cursor() {
        let cursor = EventCursor {
            ride_events: vec![1, u64::MAX],
            person_events: vec![0, 7],
        };
        let text = cursor_to_text(&cursor);
        assert_eq!(cursor_from_text(&text), Some(cursor));
        let cut: String = text.chars().take(text.len() - 3).collect();
        for bad in ["", "x", "!!", "AQ", "AgAAAAA", "Af__AAA", cut.as_str()] {
            assert_eq!(cursor_from_text(bad), None, "{bad:?}");
        }
        assert_eq!(cursor_from_text(&format!("{text}AAAA")), None);
    }
}
