//! Where does a provider's set of keys come from, and how long is it good?
//!
//! A file is read when the gateway binds, and again when it has changed. A URL is fetched as soon as the gateway runs, then
//! every `jwks_refresh_s`, and sooner (but at most every `jwks_retry_s`) when a token names a key that is not there. A fetch
//! that fails, is slow, too large or not a set changes nothing: the last good set stays until it is `jwks_stale_s` old.
//! Tokens are then answered 503, and `/readyz` falls. Redirects are not followed.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_rustls::{ConfigBuilderExt, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::time::{sleep, timeout};

use crate::keys::{BadSet, KeysConfig, read_set};
use crate::token::TokenVerifier;

/// The largest set that is read.
pub const SET_BYTES_MAX: usize = 256 * 1_024;
/// A fetch takes at most so long.
const FETCH_PATIENCE: Duration = Duration::from_secs(5);

/// Why there is no new set.
#[derive(Debug, thiserror::Error)]
pub enum NotFetched {
    /// The file.
    #[error("the file cannot be read: {0}")]
    File(#[from] std::io::Error),
    /// It cannot be asked.
    #[error("the server cannot be asked: {0}")]
    Client(String),
    /// It answered something else than 200.
    #[error("the server answered {0}")]
    Status(u16),
    /// It is too slow.
    #[error("the server took more than 5 s")]
    Slow,
    /// More than [`SET_BYTES_MAX`].
    #[error("the file is larger than 256 KiB")]
    Large,
    /// What came is no set.
    #[error(transparent)]
    Set(#[from] BadSet),
}

/// Reads the set in a file.
pub fn read_file(path: &Path, verifier: &TokenVerifier) -> Result<(), NotFetched> {
    let text = std::fs::read(path)?;
    if text.len() > SET_BYTES_MAX {
        return Err(NotFetched::Large);
    }
    verifier.replace_set(read_set(&text)?, Some(Instant::now()));
    Ok(())
}

/// The way to the provider.
pub struct Fetcher {
    client: Client<HttpsConnector<HttpConnector>, Empty<Bytes>>,
    url: hyper::Uri,
}

impl Fetcher {
    /// A client that believes the certificates in `jwks_ca_file`, or the system's.
    pub fn new(keys: &KeysConfig) -> Result<Self, NotFetched> {
        let client = |error: &dyn std::fmt::Display| NotFetched::Client(error.to_string());
        let url: hyper::Uri = keys.jwks_url.parse().map_err(|error| client(&error))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| client(&error))?;
        let config = if url.scheme_str() == Some("http") {
            builder
                .with_root_certificates(RootCertStore::empty())
                .with_no_client_auth()
        } else if keys.jwks_ca_file.is_empty() {
            builder.with_native_roots()?.with_no_client_auth()
        } else {
            let mut roots = RootCertStore::empty();
            let certificates = CertificateDer::pem_file_iter(&keys.jwks_ca_file);
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
        // Nothing is kept open between fetches.
        let client = Client::builder(TokioExecutor::new())
            .pool_max_idle_per_host(0)
            .build(connector);
        Ok(Self { client, url })
    }

    async fn fetch(&self, verifier: &TokenVerifier) -> Result<(), NotFetched> {
        // From its beginning: what the provider changes meanwhile is not in it.
        let at = Instant::now();
        let fetching = async {
            let answer = self.client.get(self.url.clone()).await;
            let answer = answer.map_err(|error| NotFetched::Client(error.to_string()))?;
            if answer.status() != hyper::StatusCode::OK {
                return Err(NotFetched::Status(answer.status().as_u16()));
            }
            let body = Limited::new(answer.into_body(), SET_BYTES_MAX)
                .collect()
                .await;
            let body = body.map_err(|error| NotFetched::Client(error.to_string()))?;
            Ok(read_set(&body.to_bytes())?)
        };
        let set = timeout(FETCH_PATIENCE, fetching).await;
        verifier.replace_set(set.map_err(|_| NotFetched::Slow)??, Some(at));
        Ok(())
    }
}

/// Keeps the set of `jwks_url` fresh until it is dropped.
pub async fn keep_fresh(fetcher: Fetcher, keys: KeysConfig, verifier: Arc<TokenVerifier>) {
    let retry = Duration::from_secs(keys.jwks_retry_s);
    let refresh = Duration::from_secs(keys.jwks_refresh_s).max(retry);
    let stale = Duration::from_secs(keys.jwks_stale_s);
    loop {
        let fetched = fetcher.fetch(&verifier).await;
        let result = if fetched.is_ok() { "done" } else { "failed" };
        metrics::counter!("cabrank_jwks_fetches_total", "result" => result).increment(1);
        let Err(error) = fetched else {
            sleep(retry).await;
            tokio::select! {
                () = sleep(refresh - retry) => {}
                () = verifier.wanted() => {}
            }
            continue;
        };
        tracing::warn!(%error, "the set of keys could not be fetched");
        if verifier
            .fetched_at()
            .is_some_and(|at| at.elapsed() >= stale)
        {
            tracing::error!("the set of keys is too old: no token of it is believed any more");
            verifier.replace_set(Vec::new(), None);
        }
        sleep(retry).await;
    }
}
