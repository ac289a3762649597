//! A gateway's way to one node.
//!
//! Holds: handing a ping over never waits. Of each driver only the newest ping waits for a node that is slow or gone;
//! what it replaced is counted. Bounded by [`LinkConfig::waiting_max`] drivers; beyond it the oldest makes room.
//! One task keeps one stream of batches open and opens it again when it breaks.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cabrank_events::{DriverId, SessionId};
use cabrank_geo::Placement;
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::Code;
use tonic::transport::{Channel, Endpoint};
use tracing::{debug, error, info};

use super::v1::node_client::NodeClient;
use super::{channel, v1};
use crate::tls::ClusterTls;
use crate::versions;

/// Batches handed to the stream and not yet written.
const BATCHES_UNDER_WAY: usize = 2;
/// After a stream broke, the next one is tried after this.
const RETRY: Duration = Duration::from_millis(100);
/// After a node refused to speak with this gateway: whoever takes its place is of another release.
const RETRY_REFUSED: Duration = Duration::from_secs(1);
/// A node whose connection is silent for so long is asked whether it lives, and has as long again to say so.
const KEEPALIVE: Duration = Duration::from_millis(1_000);

/// How pings travel to a node.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct LinkConfig {
    /// Drivers whose newest ping may wait.
    pub waiting_max: usize,
    /// Pings in a batch.
    pub batch_max: usize,
    /// A batch that is not full waits so long for more.
    pub flush: Duration,
    /// Longest wait for an answer.
    pub answer: Duration,
}

/// The way to one node. Dropping it ends its task.
pub(crate) struct NodeLink {
    pub address: String,
    client: NodeClient<Channel>,
    outbox: Arc<Outbox>,
    _task: DropGuard,
}

impl NodeLink {
    /// Connects when first needed, from tasks on `runtime`.
    pub fn new(
        address: &str,
        config: LinkConfig,
        tls: Option<&Arc<ClusterTls>>,
        runtime: &tokio::runtime::Handle,
    ) -> Result<Arc<NodeLink>, tonic::transport::Error> {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))?
            .user_agent(versions::user_agent())?
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE)
            .keep_alive_while_idle(true);
        // Only questions have a deadline: the stream of pings lives long.
        let streaming = endpoint.clone();
        let _inside = runtime.enter();
        let client = NodeClient::new(channel(endpoint.timeout(config.answer), address, tls));
        let outbox = Arc::new(Outbox::new(config));
        let stop = CancellationToken::new();
        let pump = pump(
            address.to_owned(),
            NodeClient::new(channel(streaming, address, tls)),
            Arc::clone(&outbox),
        );
        let until = stop.clone();
        runtime.spawn(async move { until.run_until_cancelled(pump).await });
        Ok(Arc::new(NodeLink {
            address: address.to_owned(),
            client,
            outbox,
            _task: stop.drop_guard(),
        }))
    }

    /// A client for questions; cheap to clone.
    pub fn client(&self) -> NodeClient<Channel> {
        self.client.clone()
    }

    /// Hands a ping over. Never waits.
    pub fn ping(&self, driver: &DriverId, placement: Placement) {
        self.outbox.put(driver, placement);
    }

    /// Hands a sign of life over. Never waits.
    pub fn sign(&self, driver: &DriverId, session: SessionId) {
        self.outbox.put_sign(driver, session);
    }
}

/// What waits for a node.
pub(crate) struct Outbox {
    config: LinkConfig,
    waiting: Mutex<Waiting>,
    some: Notify,
}

#[derive(Default)]
struct Waiting {
    pings: HashMap<DriverId, Placement>,
    /// Who waits, the longest first.
    order: VecDeque<DriverId>,
    signs: HashMap<DriverId, SessionId>,
}

impl Outbox {
    fn new(config: LinkConfig) -> Outbox {
        Outbox {
            config,
            waiting: Mutex::default(),
            some: Notify::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, driver: &DriverId, placement: Placement) {
        let mut waiting = self.lock();
        let Waiting { pings, order, .. } = &mut *waiting;
        let is_replaced = match pings.entry(driver.clone()) {
            Entry::Occupied(mut entry) => {
                entry.insert(placement);
                true
            }
            Entry::Vacant(entry) => {
                entry.insert(placement);
                order.push_back(driver.clone());
                if order.len() > self.config.waiting_max
                    && let Some(oldest) = order.pop_front()
                {
                    pings.remove(&oldest);
                    true
                } else {
                    false
                }
            }
        };
        let wake = order.len() == 1 || order.len() == self.config.batch_max;
        drop(waiting);
        if is_replaced {
            metrics::counter!("cabrank_pings_replaced_total").increment(1);
        }
        if wake {
            self.some.notify_one();
        }
    }

    fn put_sign(&self, driver: &DriverId, session: SessionId) {
        let mut waiting = self.lock();
        // Signs are sparse and come again; as many as pings may wait.
        if waiting.signs.len() < self.config.waiting_max {
            waiting.signs.insert(driver.clone(), session);
        }
        drop(waiting);
        self.some.notify_one();
    }

    fn has_full_batch(&self) -> bool {
        self.lock().order.len() >= self.config.batch_max
    }

    /// The next batch, those first who have waited longest; `None` when nobody waits.
    fn take(&self) -> Option<v1::PingBatch> {
        let mut waiting = self.lock();
        if waiting.order.is_empty() && waiting.signs.is_empty() {
            return None;
        }
        let many = waiting.order.len().min(self.config.batch_max);
        let mut pings = Vec::with_capacity(many);
        for _ in 0..many {
            let Waiting {
                pings: map, order, ..
            } = &mut *waiting;
            let Some((driver, at)) = order.pop_front().and_then(|id| map.remove_entry(&id)) else {
                break;
            };
            pings.push(v1::Ping {
                driver: driver.as_str().to_owned(),
                lat_e7: at.at.lat_e7(),
                lon_e7: at.at.lon_e7(),
                time_ms: at.time_ms,
                seq: at.seq,
            });
        }
        let many = self.config.batch_max;
        let some: Vec<DriverId> = waiting.signs.keys().take(many).cloned().collect();
        let signs = some.into_iter().filter_map(|driver| {
            let session = waiting.signs.remove(&driver)?;
            Some(v1::SignOfLife {
                driver: driver.as_str().to_owned(),
                session: session.0,
            })
        });
        let signs = signs.collect();
        Some(v1::PingBatch { pings, signs })
    }
}

/// Keeps a stream to the node open and writes what waits.
async fn pump(address: String, mut client: NodeClient<Channel>, outbox: Arc<Outbox>) {
    loop {
        let (batches, stream) = mpsc::channel::<v1::PingBatch>(BATCHES_UNDER_WAY);
        // Opened with the first batch, not before: an idle gateway needs no stream.
        let feed = feed(&outbox, batches);
        let call = client.pings(ReceiverStream::new(stream));
        let ended = tokio::select! {
            ended = call => ended,
            () = feed => return,
        };
        match ended {
            Ok(_) => info!(node = %address, "the node ended the stream of pings"),
            Err(why) if why.code() == Code::Unimplemented => {
                metrics::counter!("cabrank_releases_apart_total").increment(1);
                error!(node = %address, why = why.message(), "the node is of a release that does not speak with this one");
                tokio::time::sleep(RETRY_REFUSED).await;
            }
            Err(why) => debug!(node = %address, %why, "the stream of pings broke"),
        }
        metrics::counter!("cabrank_ping_streams_ended_total").increment(1);
        tokio::time::sleep(RETRY).await;
    }
}

/// Moves batches into the stream, as fast as it takes them. Ends only when the stream does not exist any more.
async fn feed(outbox: &Outbox, batches: mpsc::Sender<v1::PingBatch>) {
    loop {
        // Room first, so that what waits stays the newest until it can be written.
        let Ok(room) = batches.reserve().await else {
            // The call has ended; `pump` hears of it from the call itself.
            return std::future::pending().await;
        };
        let batch = loop {
            if !outbox.has_full_batch() {
                // Few at once: wait for company, a little.
                if outbox.is_empty() {
                    outbox.some.notified().await;
                }
                tokio::time::sleep(outbox.config.flush).await;
            }
            if let Some(batch) = outbox.take() {
                break batch;
            }
        };
        room.send(batch);
    }
}

impl Outbox {
    fn is_empty(&self) -> bool {
        let waiting = self.lock();
        waiting.order.is_empty() && waiting.signs.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cabrank_geo::Point;

    fn outbox(waiting_max: usize) -> Outbox {
        Outbox::new(LinkConfig {
            waiting_max,
            batch_max: 2,
            flush: Duration::ZERO,
            answer: Duration::from_secs(1),
        })
    }

    fn driver(n: u32) -> DriverId {
        DriverId::new(&format!("d{n}")).unwrap()
    }

    fn at(time_ms: i64) -> Placement {
        Placement {
            at: Point::new(37.0, -122.0).unwrap(),
            time_ms,
            seq: 0,
        }
    }

    fn taken(outbox: &Outbox) -> Vec<(String, i64)> {
        let batch = outbox.take();
        let pings = batch.into_iter().flat_map(|batch| batch.pings);
        pings.map(|ping| (ping.driver, ping.time_ms)).collect()
    }

    #[test]
    fn only_the_newest_ping_of_a_driver_waits_and_keeps_its_place_in_the_queue() {
        let outbox = outbox(10);
        outbox.put(&driver(1), at(1));
        outbox.put(&driver(2), at(2));
        outbox.put(&driver(3), at(3));
        outbox.put(&driver(1), at(4));
        assert_eq!(taken(&outbox), [("d1".into(), 4), ("d2".into(), 2)]);
        assert_eq!(taken(&outbox), [("d3".into(), 3)]);
        assert!(outbox.take().is_none());
    }

    #[test]
    fn when_all_room_is_taken_the_oldest_makes_room() {
        let outbox = outbox(2);
        (1..=3).for_each(|n| outbox.put(&driver(n), at(i64::from(n))));
        assert_eq!(taken(&outbox), [("d2".into(), 2), ("d3".into(), 3)]);
    }

    #[test]
    fn a_sign_of_life_needs_no_ping() {
        let outbox = outbox(2);
        outbox.put_sign(&driver(1), SessionId(7));
        let batch = outbox.take().unwrap();
        assert_eq!((batch.pings.len(), batch.signs.len()), (0, 1));
        assert_eq!(batch.signs[0].session, 7);
    }
}
