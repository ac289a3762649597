//! Asking another server over HTTP: one answer, bounded in size and time. Redirects are not followed.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::header::AUTHORIZATION;
use hyper_rustls::{ConfigBuilderExt, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::time::timeout;

/// An answer takes at most so long.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum NotFetched {
    /// It cannot be asked.
    #[error("the server cannot be asked: {0}")]
    Client(String),
    /// It answered something else than 200.
    #[error("the server answered {0}")]
    Status(u16),
    /// It is too slow.
    #[error("the server took more than 5 s")]
    Slow,
}

/// The way to a server.
pub struct Fetcher {
    client: Client<HttpsConnector<HttpConnector>, Empty<Bytes>>,
    url: hyper::Uri,
}

impl Fetcher {
    /// A client of `url` that believes the certificates in the file `ca_file`, or the system's if that is empty.
    pub fn new(url: &str, ca_file: &str) -> Result<Self, NotFetched> {
        let client = |error: &dyn std::fmt::Display| NotFetched::Client(error.to_string());
        let url: hyper::Uri = url.parse().map_err(|error| client(&error))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| client(&error))?;
        let config = if url.scheme_str() == Some("http") {
            builder
                .with_root_certificates(RootCertStore::empty())
                .with_no_client_auth()
        } else if ca_file.is_empty() {
            let builder = builder.with_native_roots();
            builder
                .map_err(|error| client(&error))?
                .with_no_client_auth()
        } else {
            let mut roots = RootCertStore::empty();
            let certificates = CertificateDer::pem_file_iter(ca_file);
            for certificate in certificates.map_err(|error| client(&error))? {
                let certificate = certificate.map_err(|error| client(&error))?;
                roots.add(certificate).map_err(|error| client(&error))?;
            }
            builder.with_root_certificates(roots).with_no_client_auth()
        };
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(config)
            .https_or_http()
            .enable_http1()
            .build();
        // Nothing is kept open between questions.
        let client = Client::builder(TokioExecutor::new())
            .pool_max_idle_per_host(0)
            .build(connector);
        Ok(Self { client, url })
    }

    /// What it answers, of at most `bytes_max` bytes, to whoever carries `token`.
    pub async fn fetch(&self, token: Option<&str>, bytes_max: usize) -> Result<Bytes, NotFetched> {
        let client = |error: &dyn std::fmt::Display| NotFetched::Client(error.to_string());
        let mut request = hyper::Request::get(self.url.clone());
        if let Some(token) = token {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        let request = request.body(Empty::new()).map_err(|error| client(&error))?;
        let asking = async {
            let answer = self.client.request(request).await;
            let answer = answer.map_err(|error| client(&error))?;
            if answer.status() != hyper::StatusCode::OK {
                return Err(NotFetched::Status(answer.status().as_u16()));
            }
            let body = Limited::new(answer.into_body(), bytes_max).collect().await;
            Ok(body.map_err(|error| client(&error))?.to_bytes())
        };
        timeout(PATIENCE, asking)
            .await
            .map_err(|_| NotFetched::Slow)?
    }
}
