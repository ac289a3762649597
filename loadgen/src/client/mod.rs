//! The phones: what drivers' and riders' apps do, over real sockets.
//!
//! - [`clock`]: what time the server has.
//! - [`phone`]: a driver's socket: connects, repeats, resumes. What it says is decided by a [`phone::Brain`].
//! - [`rider`]: asks for rides over HTTP until the answer is known.
//! - [`ledger`]: follows every ride on the event stream, and measures.
//! - [`counters`]: what the server says it did with the pings.

pub mod clock;
pub mod counters;
pub mod ledger;
pub mod phone;
pub mod rider;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::report::LatencyHistogram;
use clock::DomainClock;
use ledger::Ledger;

/// Who a token is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A driver's phone.
    Driver,
    /// A rider's phone.
    Rider,
    /// The run itself: event stream, counters, nearby.
    Ops,
}

impl Role {
    /// The name in the token's `role` claim.
    pub fn name(self) -> &'static str {
        match self {
            Role::Driver => "driver",
            Role::Rider => "rider",
            Role::Ops => "ops",
        }
    }
}

/// Mints a token for a role and a subject.
pub type Mint = Arc<dyn Fn(Role, &str) -> String + Send + Sync>;

/// Where a run stands; phones follow it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Work as told.
    Running,
    /// The run is over: bring open rides to their end at once.
    Ending,
    /// Hang up.
    Over,
}

/// What the phones count, together.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// Phones with an open socket and a welcome.
    pub connected: u64,
    /// Drivers with an open session.
    pub online: u64,
    /// Pings put on the wire.
    pub pings_sent: u64,
    /// Pings given up because too many were waiting for a socket.
    pub pings_unsent: u64,
    /// Sockets that were lost against the phone's will.
    pub sockets_lost: u64,
    /// Sockets the phone itself let go (lost signal).
    pub signals_lost: u64,
    /// Attempts to connect that failed.
    pub connects_failed: u64,
    /// Messages that had to be repeated.
    pub repeated: u64,
    /// Offers that reached a phone.
    pub offers: u64,
    /// Commands refused for good.
    pub commands_refused: u64,
    /// Complaints of the server about a message of ours: there should be none.
    pub errors: u64,
    /// The first such complaint, or the first reason a phone gave up.
    pub first_error: Option<String>,
    /// Set while latencies count: not while the fleet comes, nor while it is sent home in one breath.
    pub is_measuring: bool,
    /// Latency of commands.
    pub command_ack: LatencyHistogram,
    /// Latency from a ping to its car in `nearby`.
    pub ping_to_visible: LatencyHistogram,
}

/// What every client of a run shares.
pub struct Context {
    /// `http://127.0.0.1:8080`, without a slash at the end.
    pub url: String,
    /// Names this run, so that message ids and keys of two runs differ.
    pub run: String,
    /// For all calls.
    pub http: reqwest::Client,
    /// Tokens.
    pub mint: Mint,
    /// The server's time.
    pub clock: DomainClock,
    /// The rides.
    pub ledger: Ledger,
    counts: Mutex<Counts>,
    /// So that thousands of phones do not connect in the same instant.
    connecting: tokio::sync::Semaphore,
}

/// Sockets that may be under construction at the same time.
const CONNECTING_MAX: usize = 64;
/// Longest time for one HTTP call.
pub const CALL_WITHIN: Duration = Duration::from_secs(10);

impl Context {
    /// A context for a run against the server at `url` (`http://...`), whose domain clock runs `speed` times as fast
    /// as the wall clock.
    pub fn new(url: &str, mint: Mint, speed: f64) -> Result<Arc<Context>, ContextError> {
        let url = url.trim_end_matches('/').to_owned();
        if !url.starts_with("http://") {
            return Err(ContextError::Url(url));
        }
        let http = reqwest::Client::builder()
            .connect_timeout(Duration::from_secs(3))
            .pool_max_idle_per_host(256)
            .build()
            .map_err(|why| ContextError::Http(why.to_string()))?;
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let run = format!("{:x}", since.map_or(0, |since| since.as_millis()));
        Ok(Arc::new(Context {
            url,
            run,
            http,
            mint,
            clock: DomainClock::new(speed),
            ledger: Ledger::default(),
            counts: Mutex::default(),
            connecting: tokio::sync::Semaphore::new(CONNECTING_MAX),
        }))
    }

    /// The counters, locked for a moment.
    pub fn counts(&self) -> MutexGuard<'_, Counts> {
        // A panic elsewhere cannot leave plain counters half-written in a way that matters.
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The token of the run itself.
    pub fn ops_token(&self) -> String {
        (self.mint)(Role::Ops, "loadgen")
    }

    fn complain(&self, what: String) {
        let mut counts = self.counts();
        counts.errors += 1;
        counts.first_error.get_or_insert(what);
    }
}

/// Why a run cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    /// Not a URL we speak to.
    #[error("the server's URL is {0:?}: give http://host:port (loopback; there is no TLS here)")]
    Url(String),
    /// The HTTP client cannot be built.
    #[error("no HTTP client: {0}")]
    Http(String),
}
