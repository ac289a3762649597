//! `cabrank gateway`: one of the doors of a city over Kafka.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use cabrank_gateway::Gateway;
use cabrank_matcher::api::Dispatch;
use cabrank_matcher::clock::DomainClock;
use cabrank_matcher::tls::ClusterTls;
use cabrank_matcher::{Remote, RemoteParts};
use cabrank_ring::Ring;
use clap::Args;
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::{block_on, host_name, shutdown_signal};
use crate::{AnyError, Brokers, Common, store};

/// How often a starting gateway looks whether the city was read.
const READY_LOOK: Duration = Duration::from_millis(5);

/// Flags of `gateway`.
#[derive(Args)]
pub struct GatewayArgs {
    #[command(flatten)]
    brokers: Brokers,
    /// Address to listen on; port 0 takes a free one.
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
}

/// Serves until told to stop.
pub fn run(common: &Common, args: GatewayArgs) -> Result<ExitCode, AnyError> {
    let settings = common.settings(|settings| {
        args.brokers.apply(settings);
        settings.gateway.listen = args.listen.unwrap_or(settings.gateway.listen);
    })?;
    let tls = ClusterTls::read(&settings.cluster.tls)?;
    let _sending = cabrank_spans::start(&settings.spans, "gateway", &host_name())?;
    block_on(async move {
        let shutdown = shutdown_signal()?;
        let config = settings.kafka.clone();
        let log = tokio::task::spawn_blocking(move || store::kafka(config)).await??;
        let failed = CancellationToken::new();
        let on_failure = failed.clone();
        let remote = Remote::start(
            RemoteParts {
                log: Arc::new(log),
                ring: Arc::new(Ring::new(settings.kafka.shards)?),
                clock: DomainClock::wall(),
                engine: settings.engine.clone(),
                node: settings.node.clone(),
                config: settings.remote.clone(),
                tls,
                runtime: tokio::runtime::Handle::current(),
            },
            move |_| on_failure.cancel(),
        );
        // A phone that resumes before the city is read would be told that its ride is over.
        while !remote.is_ready() && !failed.is_cancelled() && !shutdown.is_cancelled() {
            tokio::time::sleep(READY_LOOK).await;
        }
        let gateway = Gateway::bind(settings.gateway.clone(), Arc::new(remote.clone())).await?;
        println!("http://{}", gateway.local_addr());
        let partners = gateway.partner_pings();
        remote.read_partner_pings(move |driver, ping| partners.take(driver, ping));
        let stop = CancellationToken::new();
        let serving = tokio::spawn(gateway.run(stop.clone()));
        tokio::select! {
            () = shutdown.cancelled() => eprintln!("draining"),
            () = failed.cancelled() => eprintln!("the log cannot be followed any more: draining"),
        }
        remote.drain();
        stop.cancel();
        let served = serving.await??;
        let following = remote.clone();
        tokio::task::spawn_blocking(move || following.stop()).await?;
        info!(cut_off = served.cut_off, "stopped");
        Ok(if failed.is_cancelled() {
            ExitCode::from(1)
        } else {
            ExitCode::SUCCESS
        })
    })
}
