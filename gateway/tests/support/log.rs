//! What is written into the log of a test binary, all its tests together.

use std::io::Write;
use std::sync::{LazyLock, Mutex, Once, PoisonError};

use tracing_subscriber::fmt::MakeWriter;

static LOG: LazyLock<Mutex<Vec<u8>>> = LazyLock::new(Mutex::default);

struct IntoLog;

impl Write for IntoLog {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let mut log = LOG.lock().unwrap_or_else(PoisonError::into_inner);
        log.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for IntoLog {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        Self
    }
}

/// From now on everything at INFO and above is kept.
pub fn listen() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let log = tracing_subscriber::fmt().with_max_level(tracing::Level::INFO);
        log.with_ansi(false).with_writer(IntoLog).init();
    });
}

pub fn log() -> String {
    let log = LOG.lock().unwrap_or_else(PoisonError::into_inner);
    String::from_utf8_lossy(&log).into_owned()
}
