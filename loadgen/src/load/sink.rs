//! The other side of a comparison: a bare tokio-tungstenite server that reads frames and does nothing with them.
//!
//! It speaks the handshake Cabrank does, takes no tokens, and counts. `GET /metrics` tells the count under the name
//! Cabrank uses, so that a load run reads both the same way. With `decode` it also parses each frame, which is the least
//! that anybody must do who wants to know what a phone said.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cabrank_events::proto;
use cabrank_events::wire::FromDriver;
use futures_util::StreamExt;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::accept_hdr_async;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};

/// Connections at once; more wait in the system's queue.
const CONNECTIONS_MAX: usize = 60_000;

/// What the sink does and counts.
#[derive(Debug, Default)]
pub struct Sink {
    /// Parse each frame.
    pub decode: bool,
    /// Pings counted for a frame that is not parsed.
    pub pings_per_frame: u64,
    /// Only ever added to; each value stands for itself, so its ordering is relaxed.
    pings: AtomicU64,
    misunderstood: AtomicU64,
}

impl Sink {
    /// A sink that has counted nothing.
    pub fn new(decode: bool, pings_per_frame: u64) -> Sink {
        Sink {
            decode,
            pings_per_frame,
            ..Sink::default()
        }
    }

    /// Pings read so far.
    pub fn pings(&self) -> u64 {
        self.pings.load(Ordering::Relaxed)
    }

    fn take(&self, message: &Message) {
        let parsed = match message {
            Message::Text(_) | Message::Binary(_) if !self.decode => {
                self.pings
                    .fetch_add(self.pings_per_frame, Ordering::Relaxed);
                return;
            }
            Message::Text(text) => serde_json::from_str(text).ok(),
            Message::Binary(bytes) => proto::decode_from_driver(bytes).ok(),
            _ => return,
        };
        match parsed {
            Some(FromDriver::Ping(_)) => self.pings.fetch_add(1, Ordering::Relaxed),
            Some(FromDriver::Pings { pings }) => {
                self.pings.fetch_add(pings.len() as u64, Ordering::Relaxed)
            }
            _ => self.misunderstood.fetch_add(1, Ordering::Relaxed),
        };
    }

    fn metrics(&self) -> String {
        let misunderstood = self.misunderstood.load(Ordering::Relaxed);
        format!(
            "cabrank_pings_total{{result=\"accepted\",reason=\"\"}} {}\n\
             cabrank_pings_total{{result=\"refused\",reason=\"misunderstood\"}} {misunderstood}\n",
            self.pings()
        )
    }
}

/// Serves on a free port of loopback until dropped; `on_address` is told where.
pub async fn serve(sink: Arc<Sink>, on_address: impl FnOnce(SocketAddr)) -> io::Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    on_address(listener.local_addr()?);
    let room = Arc::new(tokio::sync::Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else {
            return Ok(());
        };
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let sink = Arc::clone(&sink);
        tokio::spawn(async move {
            if let Err(why) = talk(&sink, stream).await {
                tracing::debug!(%why, "a socket of the sink ended");
            }
            drop(permit);
        });
    }
}

async fn talk(
    sink: &Sink,
    mut stream: TcpStream,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let mut start = [0u8; 12];
    let seen = stream.peek(&mut start).await?;
    if &start[..seen] == b"GET /metrics" {
        let body = sink.metrics();
        let answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(answer.as_bytes()).await?;
        stream.shutdown().await?;
        return Ok(());
    }
    let mut socket = accept_hdr_async(stream, choose_protocol).await?;
    while let Some(message) = socket.next().await {
        sink.take(&message?);
    }
    Ok(())
}

#[expect(
    clippy::result_large_err,
    reason = "the callback's type is the library's"
)]
fn choose_protocol(request: &Request, mut response: Response) -> Result<Response, ErrorResponse> {
    if let Some(protocol) = request.headers().get("sec-websocket-protocol") {
        let protocol = protocol.clone();
        response
            .headers_mut()
            .insert("sec-websocket-protocol", protocol);
    }
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sink_counts_what_it_read_and_a_decoding_one_what_it_understood() {
        let text = |text: &str| Message::text(text.to_owned());
        let ping = r#"{"type":"ping","lat":1.0,"lon":2.0,"seq":1}"#;
        let bare = Sink::new(false, 3);
        bare.take(&text(ping));
        bare.take(&text("anything"));
        assert_eq!(bare.pings(), 6);
        let decoding = Sink::new(true, 1);
        decoding.take(&text(ping));
        decoding.take(&text("anything"));
        decoding.take(&Message::Binary(proto::encode_from_driver(
            &serde_json::from_str(ping).unwrap(),
        )));
        assert_eq!(decoding.pings(), 2);
        let counted = crate::client::counters::PingCounts::parse(&decoding.metrics());
        assert_eq!((counted.accepted, counted.refused["misunderstood"]), (2, 1));
    }
}
