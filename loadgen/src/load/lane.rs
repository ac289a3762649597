//! One keep-alive connection with at most one call under way: HTTP/1.1, or a Redis' protocol.
//! Non-blocking; the caller owns the poll.

use std::io::{self, Read, Write};
use std::net::SocketAddr;

use mio::net::TcpStream;
use mio::{Interest, Registry, Token};

use super::redis;

/// A longer answer ends the connection.
const ANSWER_BYTES_MAX: usize = 1 << 20;
const HEADERS_MAX: usize = 32;

/// What came of a call.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// The body.
    pub body: Vec<u8>,
    /// There was a Retry-After.
    pub says_when: bool,
}

/// What is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speech {
    /// HTTP/1.1.
    Http,
    /// RESP2: an error is shown as status 500, anything else as 200.
    Redis,
}

/// The connection. `busy` is whatever the caller wants to know when the answer comes.
pub struct Lane<C> {
    address: SocketAddr,
    speech: Speech,
    token: Token,
    stream: Option<TcpStream>,
    out: Vec<u8>,
    written: usize,
    read: Vec<u8>,
    busy: Option<C>,
}

/// What a readiness brought.
pub enum Heard<C> {
    /// Nothing complete.
    Nothing,
    /// The call is answered.
    Answer(C, Answer),
    /// The connection broke with a call under way.
    Lost(C, String),
}

impl<C> Lane<C> {
    /// A lane that connects with its first call.
    pub fn new(address: SocketAddr, speech: Speech, token: Token) -> Lane<C> {
        Lane {
            address,
            speech,
            token,
            stream: None,
            out: Vec::new(),
            written: 0,
            read: Vec::new(),
            busy: None,
        }
    }

    /// May a call be begun?
    pub fn is_idle(&self) -> bool {
        self.busy.is_none()
    }

    /// Begins a call: `request` is the whole of it. Only on an idle lane.
    pub fn call(&mut self, registry: &Registry, request: &[u8], call: C) -> Heard<C> {
        self.out.clear();
        self.out.extend_from_slice(request);
        self.written = 0;
        self.read.clear();
        self.busy = Some(call);
        if self.stream.is_none() {
            let opened = TcpStream::connect(self.address).and_then(|mut stream| {
                registry.register(
                    &mut stream,
                    self.token,
                    Interest::READABLE | Interest::WRITABLE,
                )?;
                Ok(stream)
            });
            match opened {
                Ok(stream) => self.stream = Some(stream),
                Err(why) => return self.lose(why.to_string()),
            }
        }
        match self.write() {
            Ok(()) => Heard::Nothing,
            Err(why) => self.lose(why.to_string()),
        }
    }

    /// The socket is ready for something.
    pub fn handle_ready(&mut self) -> Heard<C> {
        if let Err(why) = self.write().and_then(|()| self.fill()) {
            return self.lose(why.to_string());
        }
        match self.take_answer() {
            Ok(Some((answer, call, keeps))) => {
                if !keeps {
                    self.stream = None;
                }
                Heard::Answer(call, answer)
            }
            Ok(None) => Heard::Nothing,
            Err(why) => self.lose(why),
        }
    }

    /// Ends the connection; the call that was under way, if any, stays without an answer.
    pub fn give_up(&mut self) -> Option<C> {
        self.stream = None;
        self.busy.take()
    }

    fn lose(&mut self, why: String) -> Heard<C> {
        self.stream = None;
        match self.busy.take() {
            Some(call) => Heard::Lost(call, why),
            None => Heard::Nothing,
        }
    }

    fn write(&mut self) -> io::Result<()> {
        let Some(stream) = &mut self.stream else {
            return Ok(());
        };
        while self.written < self.out.len() {
            match stream.write(&self.out[self.written..]) {
                Ok(n) => self.written += n,
                // Not connected yet looks like this, too.
                Err(why)
                    if matches!(
                        why.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::NotConnected
                    ) =>
                {
                    return Ok(());
                }
                Err(why) => return Err(why),
            }
            if self.written == self.out.len() {
                // Small calls on a warm connection: waiting for more to send would only add latency.
                stream.set_nodelay(true)?;
            }
        }
        Ok(())
    }

    fn fill(&mut self) -> io::Result<()> {
        let Some(stream) = &mut self.stream else {
            return Ok(());
        };
        let mut chunk = [0u8; 16 * 1024];
        loop {
            match stream.read(&mut chunk) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => {
                    self.read.extend_from_slice(&chunk[..n]);
                    if self.read.len() > ANSWER_BYTES_MAX {
                        return Err(io::Error::other("an answer of more than 1 MiB"));
                    }
                    if n < chunk.len() {
                        return Ok(()); // the rest, if any, is a new edge
                    }
                }
                Err(why)
                    if matches!(
                        why.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::NotConnected
                    ) =>
                {
                    return Ok(());
                }
                Err(why) => return Err(why),
            }
        }
    }

    fn take_answer(&mut self) -> Result<Option<(Answer, C, bool)>, String> {
        if self.busy.is_none() || self.read.is_empty() {
            return Ok(None);
        }
        let (answer, keeps) = match self.speech {
            Speech::Redis => {
                let Some(reply) = redis::take_reply(&self.read)? else {
                    return Ok(None);
                };
                let status = if reply.is_error { 500 } else { 200 };
                let body = self.read[..reply.length].to_vec();
                let answer = Answer {
                    status,
                    body,
                    says_when: false,
                };
                (answer, true)
            }
            Speech::Http => {
                let Some(head) = head(&self.read)? else {
                    return Ok(None);
                };
                let Some(body) = self.read.get(head.begins..head.begins + head.length) else {
                    return Ok(None);
                };
                let answer = Answer {
                    status: head.status,
                    body: body.to_vec(),
                    says_when: head.says_when,
                };
                (answer, head.keeps)
            }
        };
        self.read.clear();
        let call = self.busy.take().expect("looked at above");
        Ok(Some((answer, call, keeps)))
    }
}

/// The first lines of an answer.
#[derive(Debug, PartialEq, Eq)]
struct Head {
    status: u16,
    /// Where the body begins.
    begins: usize,
    length: usize,
    /// The connection stays.
    keeps: bool,
    says_when: bool,
}

/// None: not all there yet.
fn head(bytes: &[u8]) -> Result<Option<Head>, String> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut headers);
    let parsed = response.parse(bytes).map_err(|why| why.to_string())?;
    let httparse::Status::Complete(begins) = parsed else {
        return Ok(None);
    };
    let status = response.code.unwrap_or(0);
    let value = |name: &str| {
        let header = response
            .headers
            .iter()
            .find(|h| h.name.eq_ignore_ascii_case(name));
        header.and_then(|header| std::str::from_utf8(header.value).ok())
    };
    let length = value("content-length").and_then(|text| text.parse::<usize>().ok());
    let length = match length {
        Some(length) if length <= ANSWER_BYTES_MAX => length,
        Some(_) => return Err("an answer of more than 1 MiB".into()),
        None if status == 204 || status == 304 => 0,
        None => return Err("an answer without a length".into()),
    };
    let keeps = !value("connection").is_some_and(|v| v.eq_ignore_ascii_case("close"));
    Ok(Some(Head {
        status,
        begins,
        length,
        keeps,
        says_when: value("retry-after").is_some(),
    }))
}

#[cfg(test)]
mod tests {
    use super::{Head, head};

    #[test]
    fn an_answer_is_taken_when_it_is_complete() {
        let text = b"HTTP/1.1 201 Created\r\nContent-Type: application/json\r\nContent-Length: 4\r\n\r\nbody";
        let whole = Head {
            status: 201,
            begins: text.len() - 4,
            length: 4,
            keeps: true,
            says_when: false,
        };
        assert_eq!(head(text).unwrap(), Some(whole));
        assert_eq!(head(&text[..40]).unwrap(), None);
        let closing =
            b"HTTP/1.1 503 x\r\nconnection: close\r\nretry-after: 1\r\ncontent-length: 0\r\n\r\n";
        let head_of_it = head(closing).unwrap().unwrap();
        assert!(head_of_it.status == 503 && !head_of_it.keeps && head_of_it.says_when);
        assert!(
            head(b"HTTP/1.1 200 OK\r\n\r\n").is_err(),
            "no length: the end would never be known"
        );
        assert!(head(b"HTTP/1.1 200 OK\r\ncontent-length: 99999999\r\n\r\n").is_err());
    }
}
