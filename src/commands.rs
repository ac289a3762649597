//! One module a command.

pub mod audit;
pub mod chaos;
pub mod cluster;
pub mod demo;
pub mod dispatch;
pub mod events;
pub mod figures;
pub mod gateway;
pub mod load;
pub mod matcher;
pub mod probe;
pub mod provider_sim;
pub mod replay;
pub mod report;
pub mod ring;
pub mod serve;
pub mod service;
pub mod service_beside;
pub mod simulate;
pub mod token;
pub mod topics;

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
