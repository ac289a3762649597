//! How many connections, and for how long without a request, or with an answer that is not read?
//!
//! A connection that asks for nothing (none yet, half a header, or idle between two requests) is cut after a while. One
//! that is being answered, streamed to, or is a socket, lives by its own rules. One that sends more than a request's head
//! and a body may have, and no request comes of it, is cut, too: hyper alone would gather and look through 400 KiB. When as many are open as files allow,
//! new ones wait in the system's backlog; whoever has as many open as one address may is cut at once.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::{Instant, Sleep, sleep, sleep_until};

pub use crate::addresses::Place;
use crate::addresses::{Addresses, Peer};
use crate::tls::{Stream, Tls};

/// After the system refuses to accept (no files left), the next try waits so long.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a request's line and headers may take, in bytes; as much as Node.js lets them.
const HEAD_MAX: usize = 16 * 1024;

/// A TCP listener with a bound on what is open.
pub struct BoundedListener {
    listener: TcpListener,
    body_max: usize,
    open: Arc<Semaphore>,
    addresses: Arc<Addresses>,
    tls: Option<Arc<Tls>>,
    idle: Duration,
}

impl BoundedListener {
    pub fn new(
        listener: TcpListener,
        connections_max: usize,
        addresses: Arc<Addresses>,
        tls: Option<Arc<Tls>>,
        idle: Duration,
        body_max: usize,
    ) -> Self {
        Self {
            listener,
            body_max,
            open: Arc::new(Semaphore::new(connections_max)),
            addresses,
            tls,
            idle,
        }
    }
}

impl Listener for BoundedListener {
    type Io = BoundedIo;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (BoundedIo, SocketAddr) {
        loop {
            let Ok(among_all) = self.open.clone().acquire_owned().await else {
                // The semaphore is never closed; should it be, nothing more is accepted.
                return std::future::pending().await;
            };
            match self.listener.accept().await {
                Ok((tcp, from)) => {
                    let peer = self.addresses.of(from.ip());
                    let of_address = match peer {
                        Peer::Counted(address) => match self.addresses.admit(address) {
                            Ok(of_address) => Some(of_address),
                            Err(_) => continue,
                        },
                        Peer::Proxy | Peer::Exempt => None,
                    };
                    // Small messages go at once; a socket that refuses the option still works.
                    let _ = tcp.set_nodelay(true);
                    let idle_at = Box::pin(sleep_until(Instant::now() + self.idle));
                    let conn = Conn::new(peer);
                    let place = Place::new(among_all, of_address);
                    let io = BoundedIo {
                        stream: Stream::new(tcp, self.tls.as_deref()),
                        conn,
                        idle: self.idle,
                        idle_at,
                        body_max: self.body_max,
                        unanswered: (0, 0),
                        stuck_until: None,
                        place,
                    };
                    return (io, from);
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// What a connection is used for, as its handlers know it.
#[derive(Clone, Debug)]
pub struct Conn(Arc<ConnState>);

#[derive(Debug)]
struct ConnState {
    /// Whose it is.
    peer: Peer,
    born: Instant,
    /// Sockets and streams on it: while there are any, it is never idle.
    long_lived: AtomicUsize,
    /// When the last request began, in ms after birth.
    requested_ms: AtomicU64,
    /// How many have begun.
    requests: AtomicU64,
}

impl Connected<IncomingStream<'_, BoundedListener>> for Conn {
    fn connect_info(stream: IncomingStream<'_, BoundedListener>) -> Self {
        stream.io().conn.clone()
    }
}

/// As long as it lives, its connection is not idle.
pub struct Busy(Conn);

// All orderings here are relaxed: hints to a timer that looks again.
impl Conn {
    fn new(peer: Peer) -> Self {
        let born = Instant::now();
        Self(Arc::new(ConnState {
            peer,
            born,
            long_lived: AtomicUsize::new(0),
            requested_ms: AtomicU64::new(0),
            requests: AtomicU64::new(0),
        }))
    }

    /// Whose it is.
    pub fn peer(&self) -> Peer {
        self.0.peer
    }

    /// A request began.
    pub fn begins(&self) {
        self.0.requests.fetch_add(1, Ordering::Relaxed);
        self.touch();
    }

    fn touch(&self) {
        let ms = self.0.born.elapsed().as_millis() as u64;
        self.0.requested_ms.store(ms, Ordering::Relaxed);
    }

    /// A socket or a stream begins.
    pub fn busy(&self) -> Busy {
        self.0.long_lived.fetch_add(1, Ordering::Relaxed);
        Busy(self.clone())
    }

    /// When it counts as idle if nothing more happens.
    fn idle_at(&self, idle: Duration) -> Instant {
        if self.0.long_lived.load(Ordering::Relaxed) > 0 {
            return Instant::now() + idle;
        }
        self.0.born + Duration::from_millis(self.0.requested_ms.load(Ordering::Relaxed)) + idle
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.touch();
        self.0.0.long_lived.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An accepted connection.
pub struct BoundedIo {
    stream: Stream,
    conn: Conn,
    idle: Duration,
    /// When to look whether it is idle.
    idle_at: Pin<Box<Sleep>>,
    body_max: usize,
    /// How many requests there were, and what was read since the last of them began.
    unanswered: (u64, usize),
    /// Until when what is written now must go on its way: the client does not read.
    stuck_until: Option<Pin<Box<Sleep>>>,
    place: Place,
}

impl BoundedIo {
    /// The stream and its place among the open connections, for who goes on without HTTP.
    pub fn into_parts(self) -> (Stream, Place) {
        (self.stream, self.place)
    }
}

impl BoundedIo {
    /// Gives a write up that has waited for the client too long.
    fn with_patience<T>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stuck_until = None;
            return written;
        }
        let idle = self.idle;
        let until = self
            .stuck_until
            .get_or_insert_with(|| Box::pin(sleep(idle)));
        match until.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncRead for BoundedIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        while this.idle_at.as_mut().poll(cx).is_ready() {
            let idle_at = this.conn.idle_at(this.idle);
            if idle_at <= Instant::now() {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            this.idle_at.as_mut().reset(idle_at);
        }
        let before = buf.filled().len();
        let read = Pin::new(&mut this.stream).poll_read(cx, buf);
        let requests = this.conn.0.requests.load(Ordering::Relaxed);
        if this.unanswered.0 != requests {
            this.unanswered = (requests, 0);
        }
        this.unanswered.1 += buf.filled().len() - before;
        // The last request's body comes before the next one's head.
        let body_max = if requests > 0 { this.body_max } else { 0 };
        if this.unanswered.1 > HEAD_MAX + body_max {
            return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
        }
        read
    }
}

impl AsyncWrite for BoundedIo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.with_patience(cx, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.with_patience(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.with_patience(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
