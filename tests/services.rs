//! The services as processes: killed with -9 at random moments while a city works, then audited against its log.
//!
//! `CABRANK_KILLS=300 CABRANK_KILL_SECONDS=200 cargo test --test services` is the long run.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

const PROGRAM: &str = env!("CARGO_BIN_EXE_cabrank");

/// A process that is killed when dropped.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Process {
    fn start(arguments: &[&str]) -> Process {
        let child = Command::new(PROGRAM)
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn();
        Process(child.expect("the program starts"))
    }

    /// The first line it prints.
    fn says(&mut self) -> String {
        let mut line = String::new();
        let out = self.0.stdout.as_mut().expect("stdout is a pipe");
        BufReader::new(out)
            .read_line(&mut line)
            .expect("it prints its address");
        line.trim().to_owned()
    }
}

fn free_address() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("it is bound").to_string()
}

fn from_environment(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}

struct Town {
    services: String,
    addresses: [String; 3],
    provider: String,
}

impl Town {
    fn start(&self, which: usize, rides: [&str; 2]) -> Process {
        let database = |name: &str| format!("{}/{name}.db", self.services);
        let url = |of: usize| format!("http://{}", self.addresses[of]);
        let own = &self.addresses[which];
        let name = ["order", "payment", "forecast"][which];
        let database = database(name);
        let mut arguments = vec!["service", name, "--database", &database, "--listen", own];
        let (order, payment) = (url(0), url(1));
        match which {
            0 => arguments.extend(rides.into_iter().chain(["--payment", &payment])),
            1 => arguments.extend(["--order", &order, "--provider", &self.provider]),
            _ => arguments.extend(rides),
        }
        Process::start(&arguments)
    }

    /// Sagas that have not ended; `None` while the order service does not answer.
    fn open_sagas(&self, http: &reqwest::blocking::Client, token: &str) -> Option<i64> {
        let request = http
            .get(format!("http://{}/v1/sagas", self.addresses[0]))
            .bearer_auth(token);
        let counts: serde_json::Value = request.send().ok()?.json().ok()?;
        let of = |state: &str| counts[state].as_i64().unwrap_or(0);
        Some(
            ["open", "cancelling", "capturing", "voiding"]
                .into_iter()
                .map(of)
                .sum(),
        )
    }
}

fn output(arguments: &[&str]) -> (bool, String) {
    let out = Command::new(PROGRAM)
        .args(arguments)
        .output()
        .expect("the program runs");
    (
        out.status.success(),
        String::from_utf8_lossy(&out.stdout).into_owned(),
    )
}

#[test]
fn services_killed_at_random_moments_lose_and_double_nothing() {
    let kills = from_environment("CABRANK_KILLS", 30);
    let seconds = from_environment("CABRANK_KILL_SECONDS", 20).to_string();
    let dir = tempfile::tempdir().expect("a scratch directory");
    let data = dir.path().join("data").display().to_string();
    let services = dir.path().join("services").display().to_string();
    std::fs::create_dir_all(Path::new(&services)).expect("a directory");
    let ledger = format!("{services}/ledger.jsonl");
    let mut provider = Process::start(&[
        "provider-sim",
        "--ledger",
        &ledger,
        "--lost",
        "0.1",
        "--errors",
        "0.05",
        "--duplicates",
        "0.1",
        "--declines",
        "0.05",
    ]);
    let at = free_address();
    let mut city = Process::start(&[
        "demo",
        "--seconds",
        &seconds,
        "--drivers",
        "60",
        "--requests-per-minute",
        "400",
        "--data-dir",
        &data,
        "--listen",
        &at,
    ]);
    let url = city.says();
    let town = Town {
        services: services.clone(),
        addresses: std::array::from_fn(|_| free_address()),
        provider: provider.says(),
    };
    let mut random = SmallRng::seed_from_u64(kills);
    let mut running: [Process; 3] = std::array::from_fn(|which| town.start(which, ["--url", &url]));
    let mut killed = 0;
    while city.0.try_wait().expect("it is ours").is_none() {
        if killed < kills {
            let pause = Duration::from_millis(random.random_range(20..900));
            std::thread::park_timeout(pause);
            let which = random.random_range(0..3);
            // The new one is started when the old one is gone: SQLite belongs to one process.
            running[which].0.kill().expect("it is ours");
            running[which].0.wait().expect("it is ours");
            running[which] = town.start(which, ["--url", &url]);
            killed += 1;
        } else {
            std::thread::park_timeout(Duration::from_millis(100));
        }
    }
    assert!(killed >= kills.min(10), "only {killed} kills");
    drop(running);
    // The city is gone; its log is read to the end.
    let _order = town.start(0, ["--data-dir", &data]);
    let _payment = town.start(1, ["--data-dir", &data]);
    let (_, token) = output(&["token", "--role", "ops"]);
    let http = reqwest::blocking::Client::new();
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut quiet = 0;
    // Nothing open several times in a row: the end of the log has been read.
    while quiet < 20 {
        assert!(Instant::now() < deadline, "money is still under way");
        quiet = if town.open_sagas(&http, token.trim()) == Some(0) {
            quiet + 1
        } else {
            0
        };
        std::thread::park_timeout(Duration::from_millis(100));
    }
    let (is_clean, report) = output(&[
        "audit",
        "--data-dir",
        &data,
        "--complete",
        "--services",
        &services,
    ]);
    assert!(is_clean, "after {killed} kills:\n{report}");
    assert!(
        report.contains("orders and money fit the ride log to the cent"),
        "{report}"
    );
    println!("{killed} kills; {report}");
}
