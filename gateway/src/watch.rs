//! The map's page over a film instead of a city: no token, no log, no cars but those that were drawn.
//!
//! Meant for loopback. A request that names another host is refused, so that no page of elsewhere reads the film by a name
//! that it has bent to this machine.

use std::future::Future;
use std::io;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::Bytes;
use tokio::net::TcpListener;

use crate::page;

/// Serves the page and the film until `shutdown`.
pub async fn serve(
    listener: TcpListener,
    film: Vec<u8>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let router = Router::new()
        .route("/", get(async || page::over_film()))
        .route("/map.js", get(page::script))
        .route("/map.css", get(page::style))
        .route("/film", get(send))
        .layer(from_fn(only_here))
        .with_state(Bytes::from(film));
    axum::serve(listener, router)
        .with_graceful_shutdown(shutdown)
        .await
}

async fn send(State(film): State<Bytes>) -> Response {
    ([(header::CONTENT_TYPE, "application/octet-stream")], film).into_response()
}

async fn only_here(request: Request, next: Next) -> Response {
    let host = request
        .headers()
        .get(header::HOST)
        .and_then(|host| host.to_str().ok());
    let name = host.map(|host| host.rsplit_once(':').map_or(host, |(name, _)| name));
    if matches!(name, Some("127.0.0.1" | "localhost" | "[::1]")) {
        return next.run(request).await;
    }
    (StatusCode::FORBIDDEN, "ask by 127.0.0.1 or localhost\n").into_response()
}
