//! One module a command.

pub mod audit;
pub mod chaos;
pub mod cluster;
pub mod demo;
pub mod dispatch;
pub mod events;
pub mod figures;
pub mod film;
pub mod gateway;
pub mod health;
pub mod load;
pub mod log_level;
pub mod matcher;
pub mod own_broker;
pub mod probe;
pub mod provider_sim;
pub mod replay;
pub mod report;
pub mod reshard;
pub mod ring;
pub mod serve;
pub mod service;
pub mod service_beside;
pub mod simulate;
pub mod token;
pub mod top;
pub mod topics;

// Played by hand, and what is drawn by hand.
pub mod driver;
pub mod hand;
pub mod rider;
pub mod zones;

use std::future::Future;

use tokio_util::sync::CancellationToken;

use crate::AnyError;

/// Runs `future` on a runtime of its own.
pub fn block_on<T>(future: impl Future<Output = Result<T, AnyError>>) -> Result<T, AnyError> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(future)
}

/// Names this process among those of a city.
pub fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = if name.trim().is_empty() {
        "node"
    } else {
        name.trim()
    };
    format!("{name}-{}", std::process::id())
}

/// How often a node's queues are measured for `/metrics`.
const MEASURE_EVERY: std::time::Duration = std::time::Duration::from_secs(5);

/// Measures the node until the task is aborted.
pub async fn keep_measuring(node: cabrank_matcher::Node) {
    let mut measured = cabrank_matcher::Measured::default();
    let mut every = tokio::time::interval(MEASURE_EVERY);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        let node = node.clone();
        // The log's ends may take a look into a file or to a broker.
        let done = tokio::task::spawn_blocking(move || {
            node.measure(&mut measured);
            measured
        });
        let Ok(back) = done.await else { return };
        measured = back;
    }
}

/// Cancelled at SIGTERM or Ctrl-C. A second signal ends the process at once.
pub fn shutdown_signal() -> Result<CancellationToken, AnyError> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let token = CancellationToken::new();
    let cancelled = token.clone();
    tokio::spawn(async move {
        for last in [false, true] {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if last {
                std::process::exit(130);
            }
            cancelled.cancel();
        }
    });
    Ok(token)
}
