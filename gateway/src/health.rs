//! Health and metrics of a process that has no other HTTP: a matcher node.

use std::future::IntoFuture;
use std::sync::Arc;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio_util::sync::CancellationToken;

/// Answers `/healthz`, `/readyz` and `/metrics` until `stop` is cancelled. `ready` says whether the process serves.
///
/// # Errors
/// When the listener fails.
pub async fn serve_health(
    listener: tokio::net::TcpListener,
    ready: Arc<dyn Fn() -> bool + Send + Sync>,
    stop: CancellationToken,
) -> std::io::Result<()> {
    crate::meters::recorder();
    let readyz = async move || {
        if ready() {
            (StatusCode::OK, "ready\n")
        } else {
            (
                StatusCode::SERVICE_UNAVAILABLE,
                "not ready: it has no shards yet or drains\n",
            )
        }
    };
    let metrics = async || {
        let content_type = [(header::CONTENT_TYPE, "text/plain; version=0.0.4")];
        (content_type, crate::meters::render()).into_response()
    };
    let router = Router::new()
        .route("/healthz", get(async || "alive\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics));
    axum::serve(listener, router)
        .with_graceful_shutdown(stop.cancelled_owned())
        .into_future()
        .await
}
