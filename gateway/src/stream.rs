//! The event log as server-sent events, resumable by an opaque cursor.
//!
//! Each event's `id:` is the place after it, so a client that reconnects with `Last-Event-ID` misses nothing and sees
//! nothing twice. Reading happens off the sockets' threads, a batch at a time; a slow client is read for slowly.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;

use axum::extract::rejection::QueryRejection;
use axum::extract::{ConnectInfo, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::sse::{Event as SentEvent, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use cabrank_matcher::api::{EventCursor, EventsUnreadable, ReadEvent};
use futures_util::stream;
use serde::Deserialize;
use tokio::sync::{OwnedSemaphorePermit, watch};

use crate::access::Endpoint;
use crate::edge::Edge;
use crate::listener::{Busy, Conn};
use crate::problem::Problem;

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

#[derive(Deserialize)]
pub struct EventsAsked {
    cursor: Option<String>,
}

/// `GET /v1/events`
pub async fn events(
    State(edge): State<Arc<Edge>>,
    ConnectInfo(conn): ConnectInfo<Conn>,
    headers: HeaderMap,
    asked: Result<Query<EventsAsked>, QueryRejection>,
) -> Result<Response, Problem> {
    edge.authorize(Endpoint::Events, &headers)?;
    let Query(asked) = asked.map_err(|rejection| Problem::bad_request(rejection.body_text()))?;
    // A reconnecting client repeats its first URL; where it stands is in the header.
    let seen = headers
        .get("last-event-id")
        .and_then(|id| id.to_str().ok())
        .map(str::to_owned);
    let cursor = match seen.or(asked.cursor).as_deref() {
        None => edge.dispatch.events_end(),
        Some("start") => edge.dispatch.events_start(),
        Some(text) => cursor_from_text(text).ok_or_else(|| {
            Problem::bad_request(
                "cursor: send an id of an event received here, start, or nothing for the end",
            )
        })?,
    };
    let permit = edge.admit()?;
    let mut tail = Tail {
        commits: edge.commits.subscribe(),
        edge,
        cursor,
        batch: VecDeque::new(),
        _kept: (permit, conn.busy()),
    };
    // The first read tells before the first byte whether the cursor is still good.
    tail.read().await.map_err(|error| match error {
        EventsUnreadable::Gone => Problem::new(
            StatusCode::GONE,
            "cursor_gone",
            "Older than what is kept",
            error.to_string(),
        ),
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

struct Tail {
    edge: Arc<Edge>,
    commits: watch::Receiver<u64>,
    cursor: EventCursor,
    batch: VecDeque<ReadEvent>,
    _kept: (OwnedSemaphorePermit, Busy),
}

impl Tail {
    /// The next event; `None` ends the stream (the gateway closes, or the client fell out of what is kept).
    async fn next(&mut self) -> Option<SentEvent> {
        let closing = self.edge.closing.clone();
        loop {
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
                    changed = self.commits.changed() => changed.ok()?,
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
