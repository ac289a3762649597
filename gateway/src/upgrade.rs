//! From a request to a socket: the handshake's answer, and the TCP stream behind it.
//!
//! HTTP ends here: what is left is the bare stream, the first bytes the client may have sent behind its request, and
//! the connection's place among those that may be open. Not here: who may open a socket (`access`, `http`).

use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header, request};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use hyper_util::server::conn::auto::upgrade::downcast;
use rustls::ServerConnection;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::listener::{BoundedIo, Place};
use crate::problem::Problem;

/// A request that asks for a WebSocket in the right words.
pub struct Handshake {
    accept: HeaderValue,
    on_upgrade: OnUpgrade,
}

/// A connection that is a WebSocket from here on.
pub struct Raw {
    pub tcp: TcpStream,
    /// What is between it and us.
    pub tls: Option<ServerConnection>,
    /// What came behind the request.
    pub first: Bytes,
    /// Its place among the open connections.
    pub place: Place,
}

/// Does one of the comma-separated items of this header say `word`?
fn says(headers: &HeaderMap, name: HeaderName, word: &str) -> bool {
    let values = headers.get_all(name).into_iter();
    let texts = values.filter_map(|value| value.to_str().ok());
    let mut items = texts.flat_map(|text| text.split(','));
    items.any(|item| item.trim().eq_ignore_ascii_case(word))
}

impl Handshake {
    /// Checks the request (RFC 6455, 4.2.1).
    pub fn of(request: &mut request::Parts) -> Result<Self, Problem> {
        let headers = &request.headers;
        let bad = |why: &str| {
            let detail = format!("this is a WebSocket: open it as one ({why})");
            Err(Problem::bad_request(detail))
        };
        if request.method != Method::GET {
            return bad("the method must be GET");
        }
        if !says(headers, header::CONNECTION, "upgrade") {
            return bad("the header Connection must say upgrade");
        }
        if !says(headers, header::UPGRADE, "websocket") {
            return bad("the header Upgrade must say websocket");
        }
        if headers.get(header::SEC_WEBSOCKET_VERSION) != Some(&HeaderValue::from_static("13")) {
            return bad("the header Sec-WebSocket-Version must be 13");
        }
        let Some(key) = headers.get(header::SEC_WEBSOCKET_KEY) else {
            return bad("the header Sec-WebSocket-Key is missing");
        };
        let accept = HeaderValue::from_str(&derive_accept_key(key.as_bytes()));
        match (accept, request.extensions.remove::<OnUpgrade>()) {
            (Ok(accept), Some(on_upgrade)) => Ok(Self { accept, on_upgrade }),
            _ => bad("this connection cannot become one"),
        }
    }

    /// The answer to the request, and the stream once the answer is written.
    pub fn accept(
        self,
        protocol: Option<&'static str>,
    ) -> (Response, impl Future<Output = Option<Raw>> + Send) {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, self.accept);
        if let Some(protocol) = protocol {
            let protocol = HeaderValue::from_static(protocol);
            headers.insert(header::SEC_WEBSOCKET_PROTOCOL, protocol);
        }
        let answer = (StatusCode::SWITCHING_PROTOCOLS, headers).into_response();
        let on_upgrade = self.on_upgrade;
        // A client that has gone meanwhile needs nothing more.
        let raw = async move {
            let upgraded = on_upgrade.await.ok()?;
            let parts = downcast::<TokioIo<BoundedIo>>(upgraded).ok()?;
            let (stream, place) = parts.io.into_inner().into_parts();
            let (tcp, tls) = stream.into_parts()?;
            Some(Raw {
                tcp,
                tls,
                first: parts.read_buf,
                place,
            })
        };
        (answer, raw)
    }
}
