//! Where does a provider's set of keys come from, and how long is it good?
//!
//! A file is read when the gateway binds, and again when it has changed. A URL is fetched as soon as the gateway runs, then
//! every `jwks_refresh_s`, and sooner (but at most every `jwks_retry_s`) when a token names a key that is not there. A fetch
//! that fails, is slow, too large or not a set changes nothing: the last good set stays until it is `jwks_stale_s` old.
//! Tokens are then answered 503, and `/readyz` falls. Redirects are not followed.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::sleep;

use crate::fetch::{self, Fetcher};
use crate::keys::{BadSet, KeysConfig, read_set};
use crate::token::TokenVerifier;

/// The largest set that is read.
pub const SET_BYTES_MAX: usize = 256 * 1_024;

/// Why there is no new set.
#[derive(Debug, thiserror::Error)]
pub enum NotFetched {
    /// The file.
    #[error("the file cannot be read: {0}")]
    File(#[from] std::io::Error),
    /// The server.
    #[error(transparent)]
    Server(#[from] fetch::NotFetched),
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

/// One try.
pub async fn fetch_set(fetcher: &Fetcher, verifier: &TokenVerifier) -> Result<(), NotFetched> {
    // From its beginning: what the provider changes meanwhile is not in it.
    let at = Instant::now();
    let text = fetcher.fetch(None, SET_BYTES_MAX).await?;
    verifier.replace_set(read_set(&text)?, Some(at));
    Ok(())
}

/// Keeps the set of `jwks_url` fresh until it is dropped.
pub async fn keep_fresh(fetcher: Fetcher, keys: KeysConfig, verifier: Arc<TokenVerifier>) {
    let retry = Duration::from_secs(keys.jwks_retry_s);
    let refresh = Duration::from_secs(keys.jwks_refresh_s).max(retry);
    let stale = Duration::from_secs(keys.jwks_stale_s);
    loop {
        let fetched = fetch_set(&fetcher, &verifier).await;
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
