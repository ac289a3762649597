//! TLS on the edge: certificates that can be replaced while the gateway runs, and bytes that pass through rustls.
//!
//! One [`rustls::ServerConnection`] lives as long as its TCP connection. While HTTP is spoken a [`Stream`] drives it; when
//! the connection becomes a socket it goes along to the socket's thread, where a [`Wire`] drives it. TLS 1.2 and 1.3 with
//! ring's suites; older versions are refused by an alert. A handshake has the time of a connection that asks for nothing
//! (`timing.http_idle_ms`).
//! Bounds: rustls keeps at most 64 KiB to be sent and one record's worth of what came, and a [`Wire`] takes nothing new while
//! a record waits to be written.

use std::io::{self, ErrorKind, Read, Write};
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, PoisonError, RwLock};
use std::task::{Context, Poll, ready};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;
use tokio_rustls::{Accept, TlsAcceptor};

/// Plaintext that is taken for one record (RFC 8446, 5.1).
const RECORD_BYTES_MAX: usize = 16 * 1_024;

/// TLS on `listen`. Both files are read again when they have changed; what cannot be used changes nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TlsConfig {
    /// The server's certificate and those between it and the authority, in PEM, as a file; empty for plain HTTP.
    pub certificate_file: String,
    /// Its private key in PEM, as a file.
    pub key_file: String,
}

/// Why there is no TLS with these files.
#[derive(Debug, thiserror::Error)]
pub enum BadTls {
    /// Only one of them is named.
    #[error("set tls.certificate_file and tls.key_file, or neither")]
    OneFile,
    /// A file holds no PEM of its kind.
    #[error("{file} cannot be read: {why}")]
    Unreadable {
        /// Which.
        file: String,
        /// What the library says.
        why: String,
    },
    /// They do not belong together, or the key's kind is unknown.
    #[error("the certificate and the key cannot be used: {0}")]
    Unusable(#[from] rustls::Error),
}

impl TlsConfig {
    /// Can the files be used?
    pub fn check(&self) -> Result<(), BadTls> {
        self.load().map(|_| ())
    }

    /// Reads the files; none when there is to be no TLS.
    fn load(&self) -> Result<Option<Arc<ServerConfig>>, BadTls> {
        let (certificate, key) = (&self.certificate_file, &self.key_file);
        match (certificate.is_empty(), key.is_empty()) {
            (true, true) => return Ok(None),
            (false, false) => {}
            _ => return Err(BadTls::OneFile),
        }
        let unreadable = |file: &str| {
            let file = file.to_owned();
            move |why: rustls::pki_types::pem::Error| BadTls::Unreadable {
                file,
                why: why.to_string(),
            }
        };
        let chain: Result<Vec<_>, _> = CertificateDer::pem_file_iter(Path::new(certificate))
            .map_err(unreadable(certificate))?
            .collect();
        let chain = chain.map_err(unreadable(certificate))?;
        let key = PrivateKeyDer::from_pem_file(Path::new(key)).map_err(unreadable(key))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
            .with_no_client_auth()
            .with_single_cert(chain, key)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Some(Arc::new(config)))
    }
}

/// What new connections are greeted with.
pub struct Tls {
    files: TlsConfig,
    current: RwLock<Arc<ServerConfig>>,
}

impl Tls {
    /// Reads the files; none when there is to be no TLS.
    pub fn new(files: &TlsConfig) -> Result<Option<Self>, BadTls> {
        Ok(files.load()?.map(|config| Self {
            files: files.clone(),
            current: RwLock::new(config),
        }))
    }

    /// Reads the files again. Connections that are open stay as they are.
    pub fn reload(&self) -> Result<(), BadTls> {
        // The files' names have not changed, so there is a configuration.
        if let Some(config) = self.files.load()? {
            *self.current.write().unwrap_or_else(PoisonError::into_inner) = config;
        }
        Ok(())
    }

    fn acceptor(&self) -> TlsAcceptor {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        TlsAcceptor::from(current.clone())
    }
}

/// An accepted connection while HTTP is spoken on it.
pub enum Stream {
    /// Without TLS.
    Plain(TcpStream),
    /// The handshake goes on as the stream is read.
    Greeting(Box<Accept<TcpStream>>),
    /// With TLS.
    Tls(Box<TlsStream<TcpStream>>),
    /// The handshake failed.
    Broken,
}

impl Stream {
    /// A connection that was just accepted.
    pub fn new(tcp: TcpStream, tls: Option<&Tls>) -> Self {
        match tls {
            None => Self::Plain(tcp),
            Some(tls) => Self::Greeting(Box::new(tls.acceptor().accept(tcp))),
        }
    }

    /// The bare connection and what is between it and us; none when no handshake came about.
    pub fn into_parts(self) -> Option<(TcpStream, Option<ServerConnection>)> {
        match self {
            Self::Plain(tcp) => Some((tcp, None)),
            Self::Tls(stream) => {
                let (tcp, connection) = stream.into_inner();
                Some((tcp, Some(connection)))
            }
            Self::Greeting(_) | Self::Broken => None,
        }
    }

    /// Ready when the handshake is over.
    fn poll_greeted(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self::Greeting(accept) = self else {
            return Poll::Ready(Ok(()));
        };
        let greeted = ready!(Pin::new(accept).poll(cx));
        let result = if greeted.is_ok() { "done" } else { "failed" };
        metrics::counter!("cabrank_tls_handshakes_total", "result" => result).increment(1);
        match greeted {
            Ok(stream) => {
                *self = Self::Tls(Box::new(stream));
                Poll::Ready(Ok(()))
            }
            Err(error) => {
                *self = Self::Broken;
                Poll::Ready(Err(error))
            }
        }
    }
}

/// Does the same with whichever stream there is.
macro_rules! with_stream {
    ($self:ident, $cx:ident, $stream:ident => $work:expr) => {{
        ready!($self.poll_greeted($cx))?;
        match &mut *$self {
            Stream::Plain($stream) => $work,
            Stream::Tls($stream) => $work,
            Stream::Greeting(_) | Stream::Broken => {
                Poll::Ready(Err(ErrorKind::NotConnected.into()))
            }
        }
    }};
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        with_stream!(self, cx, stream => Pin::new(stream).poll_read(cx, buf))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        with_stream!(self, cx, stream => Pin::new(stream).poll_write(cx, buf))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        with_stream!(self, cx, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Whoever has not greeted yet needs no goodbye.
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Greeting(_) | Self::Broken => Poll::Ready(Ok(())),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        with_stream!(self, cx, stream => Pin::new(stream).poll_write_vectored(cx, slices))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
            Self::Greeting(_) | Self::Broken => false,
        }
    }
}

/// A socket's bytes on its thread, which waits for nothing: [`ErrorKind::WouldBlock`] says when to come back.
///
/// Reading gives all there is, up to the room given: less means that the next bytes are a new event. Nothing counts as
/// written before [`Write::flush`] says so.
pub struct Wire<T = mio::net::TcpStream> {
    pub tcp: T,
    tls: Option<Box<ServerConnection>>,
    /// The client has said that no more will come.
    pub has_ended: bool,
}

impl<T: Read + Write> Wire<T> {
    pub fn new(tcp: T, tls: Option<ServerConnection>) -> Self {
        Self {
            tcp,
            tls: tls.map(Box::new),
            has_ended: false,
        }
    }

    /// Says goodbye in TLS, as far as that can be written at once.
    pub fn end(&mut self) {
        if let Some(tls) = &mut self.tls {
            tls.send_close_notify();
            let _ = push(tls, &mut self.tcp);
        }
    }
}

/// Writes the records that wait.
fn push(tls: &mut ServerConnection, tcp: &mut impl Write) -> io::Result<()> {
    while tls.wants_write() {
        match tls.write_tls(tcp) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

impl<T: Read + Write> Read for Wire<T> {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else {
            return self.tcp.read(room);
        };
        let mut filled = 0;
        while filled < room.len() {
            match tls.reader().read(&mut room[filled..]) {
                Ok(0) => {
                    self.has_ended = true;
                    return Ok(filled);
                }
                Ok(read) => {
                    filled += read;
                    continue;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                // The connection ended without a word; what came before it counts.
                Err(error) if filled == 0 => return Err(error),
                Err(_) => {
                    self.has_ended = true;
                    return Ok(filled);
                }
            }
            match tls.read_tls(&mut self.tcp) {
                // The end: the reader says which.
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if filled == 0 => return Err(error),
                Err(error) => {
                    // What came before counts; the next read tells of a broken connection.
                    self.has_ended = error.kind() != ErrorKind::WouldBlock;
                    return Ok(filled);
                }
            }
            if let Err(error) = tls.process_new_packets() {
                // The client is told what is wrong, if there is room.
                let _ = push(tls, &mut self.tcp);
                return Err(io::Error::new(ErrorKind::InvalidData, error));
            }
        }
        Ok(filled)
    }
}

impl<T: Read + Write> Write for Wire<T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else {
            return self.tcp.write(bytes);
        };
        push(tls, &mut self.tcp)?;
        let some = &bytes[..bytes.len().min(RECORD_BYTES_MAX)];
        tls.writer().write(some)
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.tls {
            None => Ok(()),
            Some(tls) => push(tls, &mut self.tcp),
        }
    }
}
