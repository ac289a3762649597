//! A way to the brokers that can be cut: for one node that shall not see them while everybody else does.
//!
//! A Kafka client is told by the brokers where the brokers are, so the answers are changed on their way: wherever one
//! names a broker's port behind 127.0.0.1, the port here is put, which is as long. While it is cut nothing passes in
//! either direction and nobody is told: connections stay, new ones are taken and stay silent, as behind a dead switch. What
//! had been sent arrives when it is mended.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::AnyError;

/// What brokers started here call themselves.
const HOST: &[u8] = b"127.0.0.1";
/// Answers longer than this carry records and name no brokers; they pass as they are.
const SEARCHED_MAX: usize = 64 << 10;
/// So much is passed on at once.
const CHUNK: usize = 64 << 10;

/// The way. Dropping it breaks all connections.
pub struct Proxy {
    brokers: String,
    cut: watch::Sender<bool>,
}

/// A broker's port and the one here that stands for it.
type Ports = Arc<Vec<(u16, u16)>>;

impl Proxy {
    /// Stands for the brokers of `bootstrap`, all of them on 127.0.0.1.
    pub async fn start(bootstrap: &str) -> Result<Proxy, AnyError> {
        let (mut listeners, mut ports) = (Vec::new(), Vec::new());
        for broker in bootstrap.split(',') {
            let broker: SocketAddr = broker.trim().parse()?;
            let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
            ports.push((broker.port(), listener.local_addr()?.port()));
            listeners.push((broker, listener));
        }
        let brokers: Vec<String> = ports
            .iter()
            .map(|(_, here)| format!("127.0.0.1:{here}"))
            .collect();
        let (cut, is_cut) = watch::channel(false);
        let ports = Arc::new(ports);
        for (broker, listener) in listeners {
            let (ports, is_cut) = (Arc::clone(&ports), is_cut.clone());
            tokio::spawn(take(listener, broker, ports, is_cut));
        }
        Ok(Proxy {
            brokers: brokers.join(","),
            cut,
        })
    }

    /// What a node behind it is given as brokers.
    pub fn brokers(&self) -> &str {
        &self.brokers
    }

    /// Nothing passes from now on.
    pub fn cut(&self) {
        self.cut.send_replace(true);
    }

    /// Everything passes again, what had waited first.
    pub fn mend(&self) {
        self.cut.send_replace(false);
    }
}

/// Waits until something may pass; false when the proxy is gone.
async fn passes(is_cut: &mut watch::Receiver<bool>) -> bool {
    is_cut.wait_for(|is_cut| !*is_cut).await.is_ok()
}

async fn take(
    listener: TcpListener,
    broker: SocketAddr,
    ports: Ports,
    mut is_cut: watch::Receiver<bool>,
) {
    loop {
        let client = tokio::select! {
            _ = is_cut.wait_for(|_| false) => return,
            taken = listener.accept() => match taken {
                Ok((client, _)) => client,
                Err(_) => return,
            },
        };
        let (ports, mut is_cut) = (Arc::clone(&ports), is_cut.clone());
        tokio::spawn(async move {
            if !passes(&mut is_cut).await {
                return;
            }
            let Ok(there) = TcpStream::connect(broker).await else {
                return; // the client sees a connection that ends, as it would without a proxy
            };
            // Latency is what the node would notice; a refusal only makes it slower.
            let _ = (client.set_nodelay(true), there.set_nodelay(true));
            let (from_client, to_client) = client.into_split();
            let (from_broker, to_broker) = there.into_split();
            let gone = is_cut.clone();
            // Whichever direction ends first ends both, as a broken connection does.
            tokio::select! {
                () = ask(from_client, to_broker, is_cut) => {}
                () = answer(from_broker, to_client, &ports, gone) => {}
            }
        });
    }
}

/// Requests, unchanged.
async fn ask(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut is_cut: watch::Receiver<bool>) {
    let mut chunk = vec![0; CHUNK];
    loop {
        let read = tokio::select! {
            read = from.read(&mut chunk) => read,
            _ = is_cut.wait_for(|_| false) => return,
        };
        let Ok(length @ 1..) = read else { return };
        if !passes(&mut is_cut).await || to.write_all(&chunk[..length]).await.is_err() {
            return;
        }
    }
}

/// Answers: a length of four bytes, then as much.
async fn answer(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    ports: &[(u16, u16)],
    mut is_cut: watch::Receiver<bool>,
) {
    let mut buffer = vec![0; SEARCHED_MAX.max(CHUNK)];
    loop {
        let head = tokio::select! {
            head = from.read_u32() => head,
            _ = is_cut.wait_for(|_| false) => return,
        };
        let Ok(head) = head else { return };
        let mut left = usize::try_from(head).unwrap_or(usize::MAX);
        let is_searched = left <= SEARCHED_MAX;
        if !passes(&mut is_cut).await || to.write_u32(head).await.is_err() {
            return;
        }
        while left > 0 {
            let part = &mut buffer[..left.min(CHUNK)];
            if from.read_exact(part).await.is_err() {
                return;
            }
            if is_searched {
                rename(part, ports);
            }
            left -= part.len();
            if !passes(&mut is_cut).await || to.write_all(part).await.is_err() {
                return;
            }
        }
    }
}

/// Puts the ports here for the brokers' wherever they stand as Kafka writes them: the host, then four bytes.
fn rename(answer: &mut [u8], ports: &[(u16, u16)]) {
    let length = HOST.len() + 4;
    let mut at = 0;
    while at + length <= answer.len() {
        let (host, port) = answer[at..at + length].split_at_mut(HOST.len());
        if host != HOST {
            at += 1;
            continue;
        }
        let there = |there: u16| u32::from(there).to_be_bytes();
        if let Some((_, here)) = ports.iter().find(|(broker, _)| *port == there(*broker)) {
            port.copy_from_slice(&there(*here));
        }
        at += length;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const PATIENCE: Duration = Duration::from_secs(10);

    fn named(port: u16) -> Vec<u8> {
        [&[10_u8][..], HOST, &u32::from(port).to_be_bytes(), &[0, 0]].concat()
    }

    #[test]
    fn brokers_are_renamed_and_nothing_else_is_touched() {
        let mut answer = [
            named(9092),
            named(9093),
            named(80),
            b"127.0.0.1:9092".to_vec(),
        ]
        .concat();
        rename(&mut answer, &[(9092, 40_000), (9093, 40_001)]);
        let wanted = [
            named(40_000),
            named(40_001),
            named(80),
            b"127.0.0.1:9092".to_vec(),
        ]
        .concat();
        assert_eq!(answer, wanted);
        rename(&mut [1, 2, 3], &[(1, 2)]);
    }

    /// One answer of a broker that says back what it was asked, with its own port behind it.
    async fn broker(listener: TcpListener) {
        let port = listener.local_addr().unwrap().port();
        while let Ok((mut client, _)) = listener.accept().await {
            tokio::spawn(async move {
                while let Ok(asked) = client.read_u8().await {
                    let body = [&[asked][..], named(port).as_slice()].concat();
                    client.write_u32(body.len() as u32).await.unwrap();
                    client.write_all(&body).await.unwrap();
                }
            });
        }
    }

    async fn hear(client: &mut TcpStream) -> Vec<u8> {
        let length = client.read_u32().await.unwrap();
        let mut body = vec![0; length as usize];
        client.read_exact(&mut body).await.unwrap();
        body
    }

    #[tokio::test]
    async fn while_it_is_cut_nothing_passes_and_nobody_is_told_and_then_all_of_it_does() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let there = listener.local_addr().unwrap();
        tokio::spawn(broker(listener));
        let proxy = Proxy::start(&there.to_string()).await.unwrap();
        let here: SocketAddr = proxy.brokers().parse().unwrap();
        let mut client = TcpStream::connect(here).await.unwrap();
        client.write_u8(1).await.unwrap();
        let answer = |asked: u8| [&[asked][..], named(here.port()).as_slice()].concat();
        assert_eq!(hear(&mut client).await, answer(1));
        proxy.cut();
        client.write_u8(2).await.unwrap();
        let mut late = TcpStream::connect(here).await.unwrap();
        late.write_u8(3).await.unwrap();
        let short = Duration::from_millis(200);
        assert!(
            tokio::time::timeout(short, hear(&mut client))
                .await
                .is_err()
        );
        assert!(tokio::time::timeout(short, hear(&mut late)).await.is_err());
        proxy.mend();
        let heard = async { (hear(&mut client).await, hear(&mut late).await) };
        let heard = tokio::time::timeout(PATIENCE, heard).await.unwrap();
        assert_eq!(heard, (answer(2), answer(3)));
    }
}
