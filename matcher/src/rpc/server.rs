//! A node answers gateways: pings in, cars and positions out, and how it is.
//!
//! Holds: about places the node answers only for shards it owns, only under a lease (PROTOCOL 23), and every such answer
//! carries the epoch. Pings are taken without one: they only feed the index. With TLS a connection is asked to end at its
//! age, its stream of pings with it, and questions under way are answered.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use cabrank_events::{DriverId, Place, SessionId, Time};
use cabrank_geo::{Placement, Point, Resolution};
use tokio::net::TcpListener;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};
use tracing::warn;

use super::v1;
use super::v1::node_server::{Node as NodeRpc, NodeServer};
use crate::api::{Dispatch, Pinged};
use crate::node::Node;
use crate::tls::{Caller, ClusterTls, EndsAt, Side};
use crate::{route, versions};

/// A connection that does not answer for so long is dead.
const KEEPALIVE: Duration = Duration::from_secs(5);
/// How long gateways have to hang up when the node goes.
const GOODBYE: Duration = Duration::from_secs(1);
/// Questions of one gateway under way at once.
const QUESTIONS_MAX: u32 = 1_024;
/// Drivers in one part of an answer that may hold very many: some 80 KB.
const CARS_PER_PART: usize = 2_000;
/// Largest message taken, in bytes.
const MESSAGE_MAX: usize = 1 << 20;

/// Answers gateways for `node`, named `name`, until `stop` is cancelled; with `tls` only those that show a certificate.
pub async fn serve(
    node: Node,
    name: String,
    listener: TcpListener,
    tls: Option<Arc<ClusterTls>>,
    stop: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let service = Service {
        node,
        name,
        stop: stop.clone(),
    };
    let leaving = stop.clone();
    let mut server = Server::builder()
        .tcp_nodelay(true)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .max_concurrent_streams(QUESTIONS_MAX);
    if let Some(tls) = &tls {
        tls.watch(Side::Node, &tokio::runtime::Handle::current());
        server = server.max_connection_age(tls.connection_age_max());
    }
    let serving =
        server.add_service(NodeServer::new(service).max_decoding_message_size(MESSAGE_MAX));
    let incoming = TcpListenerStream::new(listener);
    let serving = async {
        let leaving = stop.cancelled_owned();
        match tls {
            None => {
                serving
                    .serve_with_incoming_shutdown(incoming, leaving)
                    .await
            }
            Some(tls) => {
                let incoming = incoming.map(move |tcp| Caller::new(tcp?, &tls));
                serving
                    .serve_with_incoming_shutdown(incoming, leaving)
                    .await
            }
        }
    };
    tokio::select! {
        served = serving => served,
        // Who has not hung up by then is cut off.
        () = async { leaving.cancelled().await; tokio::time::sleep(GOODBYE).await } => Ok(()),
    }
}

struct Service {
    node: Node,
    name: String,
    stop: CancellationToken,
}

/// Refuses a gateway that speaks another language.
fn admit<T>(request: &Request<T>) -> Result<(), Status> {
    let said = request.metadata().get("user-agent");
    versions::check_caller(said.and_then(|said| said.to_str().ok())).map_err(|why| {
        metrics::counter!("cabrank_releases_apart_total").increment(1);
        Status::unimplemented(why.to_string())
    })
}

fn point(lat_e7: i32, lon_e7: i32) -> Result<Point, Status> {
    Point::from_e7(lat_e7, lon_e7).map_err(|why| Status::invalid_argument(why.to_string()))
}

impl Service {
    /// The epoch under which the node answers for the shard.
    fn epoch_of(&self, shard: u16) -> Result<u64, Status> {
        let shared = self.node.shared();
        let epoch = shared.table().get(&shard).map(|holding| holding.epoch);
        let epoch =
            epoch.ok_or_else(|| Status::failed_precondition("the shard lives elsewhere"))?;
        if (shared.lease)() {
            Ok(epoch)
        } else {
            Err(Status::failed_precondition(
                "no lease on the shard just now",
            ))
        }
    }

    fn take(&self, batch: &v1::PingBatch) {
        let mut counts = [0_u64; 4];
        for ping in &batch.pings {
            let (Ok(driver), Ok(at)) =
                (DriverId::new(&ping.driver), point(ping.lat_e7, ping.lon_e7))
            else {
                continue;
            };
            let placement = Placement {
                at,
                time_ms: ping.time_ms,
                seq: ping.seq,
            };
            let pinged = self.node.shared().ping_from_afar(&driver, placement);
            counts[match pinged {
                Pinged::Accepted => 0,
                Pinged::OutOfOrder => 1,
                Pinged::NotOnline => 2,
                Pinged::IndexFull => 3,
            }] += 1;
        }
        for (result, count) in ["placed", "out_of_order", "not_online", "index_full"]
            .into_iter()
            .zip(counts)
        {
            if count > 0 {
                metrics::counter!("cabrank_node_pings_total", "result" => result).increment(count);
            }
        }
        for sign in &batch.signs {
            if let Ok(driver) = DriverId::new(&sign.driver) {
                self.node.sign_of_life(&driver, SessionId(sign.session));
            }
        }
    }
}

#[tonic::async_trait]
impl NodeRpc for Service {
    async fn pings(
        &self,
        request: Request<Streaming<v1::PingBatch>>,
    ) -> Result<Response<v1::PingsTaken>, Status> {
        // A gateway opens this again and again, questions come by the thousand: it is said here.
        admit(&request).inspect_err(|why| {
            let gateway = request.remote_addr();
            warn!(?gateway, why = why.message(), "a gateway is refused");
        })?;
        let ends_at = request.extensions().get::<EndsAt>().copied();
        let over = async {
            match ends_at {
                Some(EndsAt(at)) => tokio::time::sleep_until(at).await,
                None => pending().await,
            }
        };
        tokio::pin!(over);
        let mut stream = request.into_inner();
        let mut batches = 0;
        loop {
            let batch = tokio::select! {
                () = self.stop.cancelled() => break,
                () = &mut over => break,
                batch = stream.message() => batch?,
            };
            let Some(batch) = batch else { break };
            self.take(&batch);
            batches += 1;
        }
        Ok(Response::new(v1::PingsTaken { batches }))
    }

    async fn nearby(
        &self,
        request: Request<v1::NearbyRequest>,
    ) -> Result<Response<v1::NearbyAnswer>, Status> {
        admit(&request)?;
        let asked = request.into_inner();
        let shard = u16::try_from(asked.shard).map_err(|_| Status::invalid_argument("shard"))?;
        let at = point(asked.lat_e7, asked.lon_e7)?;
        let k = usize::try_from(asked.k).unwrap_or(usize::MAX);
        let classes = u8::try_from(asked.classes).unwrap_or(0);
        let cars = self
            .node
            .shared()
            .cars_near(Place(at), asked.radius_m, k, classes);
        // Asked after looking: if the shard is still ours now, it was while we looked.
        let (epoch, unconfirmed) = match self.epoch_of(shard) {
            Ok(epoch) => (epoch, false),
            Err(_) if asked.unconfirmed_will_do => (0, true),
            Err(why) => return Err(why),
        };
        let cars = cars.into_iter().map(|car| v1::Car {
            lat_e7: car.at.0.lat_e7(),
            lon_e7: car.at.0.lon_e7(),
            age_ms: car.age_ms,
            distance_m: car.distance_m,
        });
        Ok(Response::new(v1::NearbyAnswer {
            epoch,
            cars: cars.collect(),
            unconfirmed,
        }))
    }

    async fn position(
        &self,
        request: Request<v1::PositionRequest>,
    ) -> Result<Response<v1::PositionAnswer>, Status> {
        admit(&request)?;
        let driver = DriverId::new(&request.into_inner().driver)
            .map_err(|why| Status::invalid_argument(why.to_string()))?;
        let shared = self.node.shared();
        let found = shared.placement(&driver).and_then(|placement| {
            let resolution = Resolution::try_from(shared.engine.ownership_resolution).ok()?;
            let shard = route::shard_of_place(&shared.rings.now(), resolution, Place(placement.at));
            Some(v1::position_answer::Found {
                shard: u32::from(shard),
                epoch: self.epoch_of(shard).ok()?,
                lat_e7: placement.at.lat_e7(),
                lon_e7: placement.at.lon_e7(),
                time_ms: placement.time_ms,
                age_ms: shared.age_ms(Time(placement.time_ms)),
            })
        });
        Ok(Response::new(v1::PositionAnswer { found }))
    }

    type CarsStream = tokio_stream::Iter<std::vec::IntoIter<Result<v1::CarsPart, Status>>>;

    async fn cars(
        &self,
        request: Request<v1::CarsRequest>,
    ) -> Result<Response<Self::CarsStream>, Status> {
        admit(&request)?;
        let after_ms = request.into_inner().after_ms;
        let node = self.node.clone();
        // A walk over all drivers: some milliseconds of a large city.
        let cars = tokio::task::spawn_blocking(move || cars_since(&node, after_ms)).await;
        let cars = cars.map_err(|why| Status::internal(why.to_string()))?;
        if !(self.node.shared().lease)() {
            return Err(Status::failed_precondition("no lease just now"));
        }
        let parts: Vec<_> = cars
            .chunks(CARS_PER_PART)
            .map(|cars| {
                Ok(v1::CarsPart {
                    cars: cars.to_vec(),
                })
            })
            .collect();
        Ok(Response::new(tokio_stream::iter(parts)))
    }

    async fn status(
        &self,
        _: Request<v1::StatusRequest>,
    ) -> Result<Response<v1::StatusAnswer>, Status> {
        let (node, name) = (self.node.clone(), self.name.clone());
        // The log's ends may take a look into a file or to a broker.
        let status = tokio::task::spawn_blocking(move || status_of(&node, name)).await;
        status
            .map(Response::new)
            .map_err(|why| Status::internal(why.to_string()))
    }
}

/// Drivers at work whose position is newer than `after_ms`.
fn cars_since(node: &Node, after_ms: i64) -> Vec<v1::Ping> {
    let mut cars = Vec::new();
    node.shared().each_place(|driver, place| {
        if place.time_ms > after_ms {
            cars.push(v1::Ping {
                driver: driver.as_str().to_owned(),
                lat_e7: place.at.lat_e7(),
                lon_e7: place.at.lon_e7(),
                time_ms: place.time_ms,
                seq: place.seq,
            });
        }
    });
    cars
}

fn status_of(node: &Node, name: String) -> v1::StatusAnswer {
    let shared = node.shared();
    let table = shared.table().clone();
    let shards = table.into_iter().map(|(shard, holding)| v1::ShardStatus {
        shard: u32::from(shard),
        epoch: holding.epoch,
        lease: (shared.lease)(),
        next_input: holding.next_input,
        input_end: shared
            .log
            .bounds(cabrank_eventlog::Topic::RideCommands, shard)
            .map_or(holding.next_input, |bounds| bounds.end),
        open_rides: holding.open_rides as u64,
        waiting_rides: holding.waiting_rides as u64,
        taken_at_ms: holding.taken_at.0,
        takeover_ms: i64::try_from(holding.takeover_ms).unwrap_or(i64::MAX),
    });
    v1::StatusAnswer {
        node: name,
        ready: node.is_ready(),
        shards: shards.collect(),
        drivers_known: node.drivers() as u64,
        follower_behind_ms: match shared.foreign.complete_ms() {
            0 => 0,
            complete_ms => shared.age_ms(Time(complete_ms)),
        },
        version: env!("CARGO_PKG_VERSION").to_owned(),
        wire_version: u32::from(versions::WIRE_VERSION),
        state_version: u32::from(versions::STATE_VERSION),
    }
}
