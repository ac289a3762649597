//! Connections between gateways and nodes while TLS is between them.
//!
//! A node's side ([`Caller`]) greets while it is read, so nobody waits for a slow greeting but its own connection; it has
//! [`GREETING`] for it, and its whole life is bounded. A gateway's side comes from a [`Connector`].

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::BytesMut;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep_until, timeout};
use tokio_rustls::{Accept, TlsAcceptor, TlsConnector, client, server};
use tonic::codegen::Service;
use tonic::codegen::http::Uri;
use tonic::transport::server::Connected;

use super::refusal::Refusal;
use super::{ClusterTls, Side};
use crate::rpc::CONNECT;

/// A greeting has so long.
const GREETING: Duration = Duration::from_secs(5);
/// A connection that is told to end has so long for what it is doing.
const GOODBYE: Duration = Duration::from_secs(5);
/// What is read of a node's first words.
const FIRST_WORDS: usize = 1_024;

/// When a gateway's connection is asked to end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EndsAt(pub Instant);

/// A gateway's connection, at the node.
pub(crate) struct Caller {
    stage: Stage,
    tls: Arc<ClusterTls>,
    peer: SocketAddr,
    ends_at: Instant,
    /// First the end of the greeting's time, then of the connection's.
    until: Pin<Box<Sleep>>,
}

enum Stage {
    Greeting(Box<Accept<TcpStream>>),
    Greeted(Box<server::TlsStream<TcpStream>>),
    Broken,
}

impl Caller {
    pub fn new(tcp: TcpStream, tls: &Arc<ClusterTls>) -> io::Result<Caller> {
        tcp.set_nodelay(true)?;
        let now = Instant::now();
        Ok(Caller {
            peer: tcp.peer_addr()?,
            stage: Stage::Greeting(Box::new(TlsAcceptor::from(tls.server()).accept(tcp))),
            tls: tls.clone(),
            ends_at: now + tls.connection_age_max(),
            until: Box::pin(sleep_until(now + GREETING)),
        })
    }

    /// Ready when the greeting is over.
    fn poll_stream(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<&mut server::TlsStream<TcpStream>>> {
        let failed = match &mut self.stage {
            Stage::Greeting(accept) => match Pin::new(accept.as_mut()).poll(cx) {
                Poll::Pending => None,
                Poll::Ready(Err(why)) => Some(why),
                Poll::Ready(Ok(stream)) => {
                    ClusterTls::greeted(Side::Node);
                    self.stage = Stage::Greeted(Box::new(stream));
                    self.until.as_mut().reset(self.ends_at + GOODBYE);
                    None
                }
            },
            Stage::Greeted(_) => None,
            Stage::Broken => return Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        };
        let failed = match failed {
            None if self.until.as_mut().poll(cx).is_ready() => Some(io::ErrorKind::TimedOut.into()),
            failed => failed,
        };
        if let Some(why) = failed {
            if matches!(self.stage, Stage::Greeting(_)) {
                let refusal = Refusal::of(&why);
                let peer = self.peer.to_string();
                self.tls.refused(Side::Node, &peer, &why, refusal);
            }
            self.stage = Stage::Broken;
            return Poll::Ready(Err(why));
        }
        match &mut self.stage {
            Stage::Greeted(stream) => Poll::Ready(Ok(&mut **stream)),
            Stage::Greeting(_) | Stage::Broken => Poll::Pending,
        }
    }
}

impl Connected for Caller {
    type ConnectInfo = EndsAt;

    fn connect_info(&self) -> EndsAt {
        EndsAt(self.ends_at)
    }
}

impl AsyncRead for Caller {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let stream = ready!(self.poll_stream(cx))?;
        Pin::new(stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Caller {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let stream = ready!(self.poll_stream(cx))?;
        Pin::new(stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let stream = ready!(self.poll_stream(cx))?;
        Pin::new(stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Who has not greeted needs no goodbye.
        if !matches!(self.stage, Stage::Greeted(_)) {
            return Poll::Ready(Ok(()));
        }
        let stream = ready!(self.poll_stream(cx))?;
        Pin::new(stream).poll_shutdown(cx)
    }
}

/// Makes a gateway's connections to one node.
#[derive(Clone)]
pub(crate) struct Connector {
    address: Arc<str>,
    tls: Arc<ClusterTls>,
}

impl Connector {
    pub fn new(address: &str, tls: &Arc<ClusterTls>) -> Connector {
        Connector {
            address: address.into(),
            tls: tls.clone(),
        }
    }

    async fn connect(self) -> io::Result<TokioIo<Called>> {
        let tcp = timeout(CONNECT, TcpStream::connect(&*self.address)).await??;
        tcp.set_nodelay(true)?;
        let greeting = timeout(GREETING, self.greet(tcp)).await;
        let greeted = greeting.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        let greeted = greeted.map_err(|why| {
            let refusal = Refusal::of(&why);
            let remedy = self
                .tls
                .refused(Side::Gateway, &self.address, &why, refusal);
            io::Error::new(why.kind(), format!("{why}; {remedy}"))
        })?;
        ClusterTls::greeted(Side::Gateway);
        Ok(TokioIo::new(greeted))
    }

    /// In TLS 1.3 a gateway is done before the node has looked at its certificate. A node speaks first (HTTP/2's settings), so
    /// its first words say that it has, and believes us.
    async fn greet(&self, tcp: TcpStream) -> io::Result<Called> {
        let name = ServerName::try_from(self.tls.config.name.clone()).map_err(io::Error::other)?;
        let connector = TlsConnector::from(self.tls.client());
        let mut stream = connector.connect(name, tcp).await?;
        let mut first = BytesMut::with_capacity(FIRST_WORDS);
        if stream.read_buf(&mut first).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(Called { stream, first })
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Called>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<TokioIo<Called>>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        Box::pin(self.clone().connect())
    }
}

/// A connection to a node, at the gateway.
pub(crate) struct Called {
    stream: client::TlsStream<TcpStream>,
    /// What was read and not yet handed out.
    first: BytesMut,
}

impl AsyncRead for Called {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.first.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        let many = self.first.len().min(buf.remaining());
        buf.put_slice(&self.first.split_to(many));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Called {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
