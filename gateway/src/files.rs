//! What is in files and may change while the gateway runs: looked at every `timing.files_ms`.
//!
//! A file that cannot be read, or holds nonsense, changes nothing and is told of once; what was read before stays.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::sleep;

use crate::edge::Edge;
use crate::jwks;

/// When a file was written, and its length: a change of either is a change of the file.
type Stamp = Option<(SystemTime, u64)>;

/// Files that belong together, and how they looked when they were read last.
pub struct Watched {
    paths: Vec<PathBuf>,
    seen: Vec<Stamp>,
}

impl Watched {
    /// As they are now; empty paths are left out.
    pub fn new(paths: &[&str]) -> Self {
        let paths = paths.iter().filter(|path| !path.is_empty());
        let paths: Vec<PathBuf> = paths.map(PathBuf::from).collect();
        let seen = Self::look(&paths);
        Self { paths, seen }
    }

    fn look(paths: &[PathBuf]) -> Vec<Stamp> {
        let look = |path: &PathBuf| {
            let about = std::fs::metadata(path).ok()?;
            Some((about.modified().ok()?, about.len()))
        };
        paths.iter().map(look).collect()
    }

    /// Has one of them changed since the last call?
    pub fn has_changed(&mut self) -> bool {
        let seen = Self::look(&self.paths);
        let has_changed = seen != self.seen;
        self.seen = seen;
        has_changed
    }
}

/// Looks until it is dropped.
pub async fn keep_read(edge: Arc<Edge>) {
    let keys = &edge.config.keys;
    let every = Duration::from_millis(edge.config.timing.files_ms);
    let mut jwks = Watched::new(&[&keys.jwks_file]);
    let mut certificate =
        Watched::new(&[&edge.config.tls.certificate_file, &edge.config.tls.key_file]);
    loop {
        sleep(every).await;
        if let Some(tls) = edge.tls.as_ref().filter(|_| certificate.has_changed()) {
            match tls.reload() {
                Ok(()) => tracing::info!("the certificate was read again"),
                Err(error) => tracing::error!(%error, "tls: the certificate stays as it was"),
            }
        }
        if jwks.has_changed() {
            match jwks::read_file(Path::new(&keys.jwks_file), &edge.verifier) {
                Ok(()) => tracing::info!("the set of keys was read again"),
                Err(error) => tracing::error!(%error, "keys.jwks_file: the keys stay as they were"),
            }
        }
        let edge = edge.clone();
        let read = move || {
            edge.revocations
                .read_file(|caller| edge.end_sessions(caller))
        };
        if let Ok(Err(error)) = tokio::task::spawn_blocking(read).await {
            tracing::error!(%error, "keys.revocations_file: the revocations stay as they were");
        }
    }
}
