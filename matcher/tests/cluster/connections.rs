//! Connections between a gateway and a node end, each at its age: nobody who asks is to feel it.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;

use super::*;

/// Types, flags and lengths of HTTP/2 (RFC 9113, sections 3.4, 4.1 and 6).
const PREFACE: usize = 24;
const FRAME_HEADER: usize = 9;
const DATA: u8 = 0;
const END_STREAM: u8 = 1;
/// GOAWAY: no stream was begun with, and there is no error.
const GO_AWAY: [u8; 17] = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

async fn frame(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let mut frame = vec![0; FRAME_HEADER];
    from.read_exact(&mut frame).await?;
    let length = u32::from_be_bytes([0, frame[0], frame[1], frame[2]]);
    frame.resize(FRAME_HEADER + length as usize, 0);
    from.read_exact(&mut frame[FRAME_HEADER..]).await?;
    Ok(frame)
}

async fn write(to: &Mutex<impl AsyncWrite + Unpin>, bytes: &[u8]) -> io::Result<()> {
    to.lock().await.write_all(bytes).await
}

/// Between a gateway and a node: the connection over which the first whole question comes ends in order, and the question
/// never arrives.
async fn between(listener: TcpListener, node: SocketAddr, has_ended: Arc<AtomicBool>) {
    while let Ok((gateway, _)) = listener.accept().await {
        let has_ended = Arc::clone(&has_ended);
        tokio::spawn(async move {
            let (mut said, answers) = gateway.into_split();
            let (mut answered, mut onward) = TcpStream::connect(node).await?.into_split();
            let answers = Arc::new(Mutex::new(answers));
            let back = Arc::clone(&answers);
            tokio::spawn(async move {
                loop {
                    write(&back, &frame(&mut answered).await?).await?;
                }
                #[allow(unreachable_code, reason = "names the type of the block")]
                io::Result::Ok(())
            });
            let mut preface = [0; PREFACE];
            said.read_exact(&mut preface).await?;
            onward.write_all(&preface).await?;
            loop {
                let frame = frame(&mut said).await?;
                let is_question = frame[3] == DATA && frame[4] & END_STREAM != 0;
                if is_question && !has_ended.swap(true, Ordering::SeqCst) {
                    return write(&answers, &GO_AWAY).await;
                }
                onward.write_all(&frame).await?;
            }
        });
    }
}

#[test]
fn a_search_on_its_way_when_the_connection_ends_is_asked_again_and_answered() {
    let mut cluster = Cluster::start(1, 0);
    let owners = until("the node has every shard", || {
        let owners = cluster.home.owners().unwrap();
        (owners.len() == usize::from(SHARDS)).then_some(owners)
    });
    let listening = TcpListener::bind("127.0.0.1:0");
    let listener = cluster.runtime.block_on(listening).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let has_ended = Arc::new(AtomicBool::new(false));
    let (node, ended) = (cluster.nodes[0].address, Arc::clone(&has_ended));
    cluster.runtime.spawn(between(listener, node, ended));
    for owner in owners {
        let address = address.clone();
        cluster.home.announce(OwnerRecord { address, ..owner });
    }
    cluster.add_gateway();
    let near = cluster.nearby(0, cluster.places()[0]);
    assert_eq!(near, Ok(vec![]), "nobody drives here");
    assert!(has_ended.load(Ordering::SeqCst), "a connection has ended");
    // The same of who asks where a driver is.
    has_ended.store(false, Ordering::SeqCst);
    let position = cluster.gateways[0].position(&driver(1));
    assert_eq!(cluster.runtime.block_on(position), Ok(None));
    assert!(has_ended.load(Ordering::SeqCst), "a connection has ended");
    cluster.stop();
}
