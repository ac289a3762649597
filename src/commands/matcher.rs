//! `cabrank matcher`: a node of a city over Kafka.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use cabrank_eventlog::kafka::KafkaOpenError;
use cabrank_gateway::{Health, keep_beating, start_health};
use cabrank_matcher::api::Dispatch;
use cabrank_matcher::clock::DomainClock;
use cabrank_matcher::heart::Hearts;
use cabrank_matcher::tls::ClusterTls;
use cabrank_matcher::{Node, Parts, Stopped, rpc};
use cabrank_ring::Ring;
use clap::Args;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::{block_on, host_name, keep_measuring, shutdown_signal};
use crate::{AnyError, Brokers, Common, store};

/// Flags of `matcher`.
#[derive(Args)]
pub struct MatcherArgs {
    #[command(flatten)]
    brokers: Brokers,
    /// This node's name, one for each living node; shown in `cluster status`. The host's name by default.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Where it answers gateways; port 0 takes a free one.
    #[arg(long, value_name = "ADDRESS", default_value_t = SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))]
    listen: SocketAddr,
    /// What gateways are told to connect to, where that is not the address it listens on.
    #[arg(long, value_name = "HOST:PORT")]
    advertise: Option<String>,
    /// Where it answers /healthz, /readyz, /metrics and /v1/log-level; port 0 takes a free one.
    #[arg(long, value_name = "ADDRESS", default_value_t = SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))]
    ops_listen: SocketAddr,
}

/// Serves until told to stop.
pub fn run(common: &Common, args: MatcherArgs) -> Result<ExitCode, AnyError> {
    let settings = common.settings(|settings| args.brokers.apply(settings))?;
    let name = args.name.unwrap_or_else(host_name);
    let tls = ClusterTls::read(&settings.cluster.tls)?;
    let _sending = cabrank_spans::start(&settings.spans, "matcher", &name)?;
    block_on(async move {
        let shutdown = shutdown_signal()?;
        let listener = TcpListener::bind(args.listen)
            .await
            .map_err(|why| format!("--listen {}: {why}", args.listen))?;
        let ops = std::net::TcpListener::bind(args.ops_listen)
            .map_err(|why| format!("--ops-listen {}: {why}", args.ops_listen))?;
        let address = args.advertise.unwrap_or(listener.local_addr()?.to_string());
        let ops_address = ops.local_addr()?;
        let config = settings.kafka.clone();
        let (node_name, node_address) = (name.clone(), address.clone());
        let (log, owner) = tokio::task::spawn_blocking(move || {
            let log = store::kafka(config)?;
            let owner = log.own(&node_name, &node_address)?;
            Ok::<_, KafkaOpenError>((log, owner))
        })
        .await??;
        let failed = CancellationToken::new();
        let on_stop = failed.clone();
        let node = Node::start(
            Parts {
                log: Arc::new(log),
                owner: Box::new(owner),
                ring: Arc::new(Ring::new(settings.kafka.shards)?),
                clock: DomainClock::wall(),
                config: settings.node.clone(),
                engine: settings.engine.clone(),
            },
            move |_: &Stopped| on_stop.cancel(),
        );
        let asked = CancellationToken::new();
        let leave = asked.clone();
        node.on_drain(&name, move || leave.cancel());
        let stop = CancellationToken::new();
        let answering = tokio::spawn(rpc::serve(
            node.clone(),
            name.clone(),
            listener,
            tls,
            stop.clone(),
        ));
        let hearts = Hearts::default();
        let patience = Duration::from_millis(settings.node.wedged_after_ms);
        let beating = tokio::spawn(keep_beating(hearts.add("the runtime", patience)));
        let (ready, going_round) = (node.clone(), node.clone());
        let health = Health {
            ready: Arc::new(move || ready.is_ready()),
            wedged: Arc::new(move || going_round.wedged().or_else(|| hearts.wedged())),
            keys: settings.gateway.keys.clone(),
        };
        let health = start_health(ops, health, stop.clone())?;
        let measuring = tokio::spawn(keep_measuring(node.clone()));
        println!(
            "{name} answers gateways at {address}, health and metrics at http://{ops_address}"
        );
        tokio::select! {
            () = shutdown.cancelled() => eprintln!("draining"),
            () = asked.cancelled() => eprintln!("draining: the desk asks for it"),
            () = failed.cancelled() => {}
        }
        measuring.abort();
        node.drain();
        // The shards go first, so that others take over while gateways are still answered "not here".
        let stopping = node.clone();
        let stopped = tokio::task::spawn_blocking(move || stopping.stop()).await?;
        stop.cancel();
        answering.await??;
        beating.abort();
        // It ends with `stop`.
        health
            .join()
            .map_err(|_| "the thread that answers for health panicked")??;
        info!("stopped");
        match stopped {
            Ok(()) => Ok(ExitCode::SUCCESS),
            Err(why) => Err(format!("the node stopped: {why}").into()),
        }
    })
}
