//! What does the server say happened? The client side of `GET /v1/events`.
//!
//! One connection; the caller keeps the last id and opens another one after a loss. Memory is bounded by one event.

use std::time::Duration;

use bytes_of::Chunks;
use futures_util::StreamExt;

/// A longer event ends the stream: ours have some hundred bytes.
pub const EVENT_BYTES_MAX: usize = 1 << 20;
/// How long the server may take to begin its answer.
const HEADERS_WITHIN: Duration = Duration::from_secs(10);

/// Why there is no (further) event.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// Connecting or reading failed: connect again with the last id.
    #[error("the event stream broke: {0}")]
    Broken(String),
    /// The cursor is older than what the server keeps.
    #[error("the cursor is older than what is kept (410): begin with cursor=start")]
    TooOld,
    /// The server will not serve it; trying again will not help.
    #[error("the server refused the event stream with status {status}: {body}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// The beginning of its answer.
        body: String,
    },
}

/// One server-sent event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// The cursor to resume after, if it had one.
    pub id: Option<String>,
    /// One CloudEvent.
    pub data: String,
}

/// An open stream.
pub struct EventStream {
    chunks: Chunks,
    parser: Parser,
}

mod bytes_of {
    //! Names the byte stream of a response without naming its chunk type, which belongs to the HTTP client.
    use futures_util::{Stream, StreamExt};
    use std::pin::Pin;

    pub type Chunks = Pin<Box<dyn Stream<Item = Result<Vec<u8>, String>> + Send>>;

    pub fn chunks(response: reqwest::Response) -> Chunks {
        let chunks = response.bytes_stream();
        Box::pin(chunks.map(|chunk| chunk.map(|c| c.to_vec()).map_err(|why| why.to_string())))
    }
}

impl EventStream {
    /// Connects. Without a cursor the stream begins at the log's end as of the answer to this call.
    pub async fn open(
        http: &reqwest::Client,
        base: &str,
        token: &str,
        cursor: Option<&str>,
    ) -> Result<EventStream, StreamError> {
        let mut request = http.get(format!("{base}/v1/events")).bearer_auth(token);
        if let Some(cursor) = cursor {
            request = request.query(&[("cursor", cursor)]);
        }
        let broken = |why: String| StreamError::Broken(why);
        let response = tokio::time::timeout(HEADERS_WITHIN, request.send())
            .await
            .map_err(|_| broken("no answer in time".into()))?
            .map_err(|why| broken(why.to_string()))?;
        match response.status().as_u16() {
            200 => Ok(EventStream {
                chunks: bytes_of::chunks(response),
                parser: Parser::default(),
            }),
            410 => Err(StreamError::TooOld),
            status @ (429 | 500..=599) => Err(broken(format!("status {status}"))),
            status => {
                let body = response.text().await.unwrap_or_default();
                Err(StreamError::Refused {
                    status,
                    body: body.chars().take(300).collect(),
                })
            }
        }
    }

    /// The next event. May be dropped and called again without losing any.
    pub async fn next(&mut self) -> Result<Sent, StreamError> {
        loop {
            if let Some(sent) = self.parser.take_event()? {
                return Ok(sent);
            }
            match self.chunks.next().await {
                Some(Ok(chunk)) => self.parser.handle_bytes(&chunk),
                Some(Err(why)) => return Err(StreamError::Broken(why)),
                None => return Err(StreamError::Broken("the server closed it".into())),
            }
        }
    }
}

/// Lines into events.
#[derive(Debug, Default)]
struct Parser {
    buffer: Vec<u8>,
    /// Bytes of `buffer` already turned into `event`.
    read: usize,
    event: Sent,
}

impl Parser {
    fn handle_bytes(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.read);
        self.read = 0;
        self.buffer.extend_from_slice(bytes);
    }

    fn take_event(&mut self) -> Result<Option<Sent>, StreamError> {
        while let Some(length) = self.buffer[self.read..]
            .iter()
            .position(|byte| *byte == b'\n')
        {
            let line = &self.buffer[self.read..self.read + length];
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            let line = String::from_utf8_lossy(line).into_owned();
            self.read += length + 1;
            if line.is_empty() {
                let event = std::mem::take(&mut self.event);
                if !event.data.is_empty() {
                    return Ok(Some(event));
                }
            } else if let Some(id) = line.strip_prefix("id:") {
                self.event.id = Some(id.trim_start().to_owned());
            } else if let Some(data) = line.strip_prefix("data:") {
                if !self.event.data.is_empty() {
                    self.event.data.push('\n');
                }
                self.event
                    .data
                    .push_str(data.strip_prefix(' ').unwrap_or(data));
            }
        }
        let waiting = self.buffer.len() - self.read + self.event.data.len();
        if waiting > EVENT_BYTES_MAX {
            return Err(StreamError::Broken(format!(
                "an event is longer than {EVENT_BYTES_MAX}"
            )));
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_put_together_however_the_bytes_arrive() {
        let text = b": hello\n\nid: c1\ndata: {\"a\":1}\n\nevent: x\r\nid:c2\r\ndata:b\r\ndata: c\r\n\r\nid: c3\n\n";
        for step in 1..text.len() {
            let mut parser = Parser::default();
            let mut events = Vec::new();
            for chunk in text.chunks(step) {
                parser.handle_bytes(chunk);
                while let Some(event) = parser.take_event().unwrap() {
                    events.push(event);
                }
            }
            let sent = |id: &str, data: &str| Sent {
                id: Some(id.into()),
                data: data.into(),
            };
            assert_eq!(
                events,
                [sent("c1", "{\"a\":1}"), sent("c2", "b\nc")],
                "chunks of {step}"
            );
        }
    }

    #[test]
    fn an_endless_event_is_refused() {
        let mut parser = Parser::default();
        parser.handle_bytes(b"data: ");
        parser.handle_bytes(&vec![b'x'; EVENT_BYTES_MAX + 10]);
        assert!(parser.take_event().is_err());
    }
}
