//! Runs the generator processes of one load run together: start, progress, measured window, end.
//!
//! Blocking; give it a thread of its own. The processes share the machine's monotonic clock, so one moment starts all.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use super::clock::now_ns;
use super::part::{Far, Said, Told};
use super::plan::{Plan, Target};
use super::redis;
use super::tally::Tally;
use super::usage::{self, Usage};
use crate::client::counters::{PingCounts, ServerCounters};

/// Between the order to start and the start: enough for all to hear it.
const START_AFTER_NS: u64 = 300_000_000;
/// Sockets take their time: so long, then the run has failed.
const READY_WITHIN_NS: u64 = 200_000_000_000;
/// How long the processes may take after the end to drain and to report.
const END_WITHIN_NS: u64 = 60_000_000_000;
/// How long the server may take to count the last pings.
const COUNTED_WITHIN_NS: u64 = 10_000_000_000;
const SECOND_NS: u64 = 1_000_000_000;

/// Changes of the number of drivers online that a run remembers.
const ONLINE_MAX: usize = 100_000;

/// Who does the work, and where to look.
#[derive(Clone)]
pub struct Crew {
    /// The program that becomes a generator process,
    pub program: PathBuf,
    /// ... with these arguments.
    pub arguments: Vec<String>,
    /// The server's processes, as far as they run here.
    pub server_pids: Vec<u32>,
    /// Ends the run early.
    pub stop: Arc<AtomicBool>,
    /// Told about once a second.
    pub on_status: Arc<dyn Fn(&Status) + Send + Sync>,
}

/// A line of progress.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// What is going on.
    pub phase: &'static str,
    /// Seconds since the start; negative before.
    pub elapsed_s: f64,
    /// Totals.
    pub far: Far,
    /// Since the last line.
    pub pings_per_s: f64,
    /// Since the last line.
    pub nearby_per_s: f64,
    /// Since the last line.
    pub rides_per_s: f64,
    /// Cores the server used since the last line, if it runs here.
    pub server_cores: Option<f64>,
    /// Cores the generator used since the last line.
    pub generator_cores: f64,
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{}: {:.0} s, {} drivers",
            self.phase, self.elapsed_s, self.far.online
        )?;
        for (name, rate) in [
            ("pings", self.pings_per_s),
            ("searches", self.nearby_per_s),
            ("rides", self.rides_per_s),
        ] {
            if rate > 0.0 {
                write!(f, ", {rate:.0} {name}/s")?;
            }
        }
        if let Some(cores) = self.server_cores {
            write!(f, ", server {cores:.2} cores")?;
        }
        write!(f, ", generator {:.2} cores", self.generator_cores)
    }
}

/// A look at both sides.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sample {
    /// Seconds since the measured time began.
    pub at_s: f64,
    /// The server, if it runs here.
    pub server: Option<Usage>,
    /// All generator processes.
    pub generator: Usage,
    /// What the machine's host gave to other guests so far, CPU seconds.
    pub host_took_s: Option<f64>,
}

/// What a run brought.
#[derive(Debug, Default)]
pub struct Measured {
    /// All counts, merged.
    pub tally: Tally,
    /// Each second of the measured time, its beginning and its end included.
    pub samples: Vec<Sample>,
    /// What the server counted in the measured time; None if it has no `/metrics`.
    pub counted: Option<PingCounts>,
    /// What it counted in the whole run.
    pub counted_all: Option<PingCounts>,
    /// The server before the first socket, if it runs here.
    pub idle: Option<Usage>,
    /// Drivers online whenever that changed: seconds since the measured time began, how many.
    pub online: Vec<(f64, u64)>,
    /// The run was ended early.
    pub stopped: bool,
}

/// Why a run gave nothing.
#[derive(Debug, thiserror::Error)]
pub enum ConductError {
    /// A process could not be started or spoken to.
    #[error("a generator process: {0}")]
    Io(#[from] std::io::Error),
    /// One said why.
    #[error("{0}")]
    Failed(String),
    /// One ended without a word.
    #[error("a generator process ended without a result")]
    Gone,
    /// They did not come to an end.
    #[error("the generator processes did not {0} in time")]
    Late(&'static str),
}

struct Part {
    child: Child,
    orders: ChildStdin,
    far: Far,
    is_ready: bool,
    tally: Option<Box<Tally>>,
}

impl Drop for Part {
    fn drop(&mut self) {
        // Already over in the ordinary case; then both do nothing.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Troupe {
    parts: Vec<Part>,
    said: Receiver<(usize, Option<Said>)>,
    crew: Crew,
    began: u64,
    last: (u64, Far, Option<Usage>, Usage),
    online: Vec<(f64, u64)>,
    measured_from: u64,
}

/// Carries out `plan`; its `parts` says with how many processes.
pub fn conduct(plan: &Plan, crew: &Crew) -> Result<Measured, ConductError> {
    let http = reqwest::blocking::Client::builder()
        .timeout(Duration::from_secs(5))
        .build();
    let http = http.map_err(|why| ConductError::Failed(why.to_string()))?;
    let read = || read_counters(&http, plan);
    let mut counters = ServerCounters::default();
    let has_counters = read()
        .map(|reading| counters.handle_reading(reading))
        .is_some();
    let idle = usage::of_all(&crew.server_pids);
    let mut troupe = Troupe::hire(plan, crew)?;
    troupe.wait_ready()?;
    let start = now_ns() + START_AFTER_NS;
    troupe.began = start;
    troupe.order(&Told::Start(start))?;
    let measured_from = start + (plan.warmup_s * 1e9) as u64;
    let ends = measured_from + (plan.seconds * 1e9) as u64;
    troupe.measured_from = measured_from;
    let mut measured = Measured {
        idle,
        ..Measured::default()
    };
    troupe.run_until("warming up", measured_from)?;
    let before = has_counters.then(&read).flatten();
    let mut next = measured_from;
    while next < ends && !crew.stop.load(Ordering::Relaxed) {
        measured.samples.push(troupe.sample(measured_from));
        next = (next + SECOND_NS).min(ends);
        troupe.run_until("measuring", next)?;
    }
    measured.samples.push(troupe.sample(measured_from));
    if let (Some(before), Some(after)) = (before, has_counters.then(&read).flatten()) {
        measured.counted = Some(after.less(&before));
    }
    if crew.stop.load(Ordering::Relaxed) {
        measured.stopped = true;
        troupe.order(&Told::Stop(true))?;
    }
    measured.online = std::mem::take(&mut troupe.online);
    for tally in troupe.wait_tallies()? {
        measured.tally.merge(tally);
    }
    measured.tally.match_offers();
    if has_counters {
        measured.counted_all = Some(wait_counted(&mut counters, measured.tally.pings_sent, read));
    }
    Ok(measured)
}

/// Waits until the server has counted what was sent, or does not go on counting.
fn wait_counted(
    counters: &mut ServerCounters,
    sent: u64,
    read: impl Fn() -> Option<PingCounts>,
) -> PingCounts {
    let deadline = now_ns() + COUNTED_WITHIN_NS;
    loop {
        if let Some(reading) = read() {
            counters.handle_reading(reading);
        }
        let counted = counters.counted();
        if counted.total() >= sent || now_ns() > deadline {
            return counted;
        }
        std::thread::park_timeout(Duration::from_millis(50));
    }
}

fn read_counters(http: &reqwest::blocking::Client, plan: &Plan) -> Option<PingCounts> {
    let mut all = PingCounts::default();
    for url in &plan.urls {
        if plan.target == Target::Redis {
            all.accepted += redis::read_geo_adds(url)?;
            continue;
        }
        let answer = http
            .get(format!("{url}/metrics"))
            .send()
            .ok()?
            .error_for_status()
            .ok()?;
        all.add(&PingCounts::parse(&answer.text().ok()?));
    }
    Some(all)
}

impl Troupe {
    fn hire(plan: &Plan, crew: &Crew) -> Result<Troupe, ConductError> {
        let (tell, said) = sync_channel(1_024);
        let mut parts = Vec::new();
        for part in 0..plan.parts {
            let mut command = Command::new(&crew.program);
            command
                .args(&crew.arguments)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped());
            #[cfg(unix)]
            {
                use std::os::unix::process::CommandExt;
                // Ctrl-C reaches the conductor only, who ends the run in order.
                command.process_group(0);
            }
            let mut child = command.spawn()?;
            let (Some(mut orders), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
                return Err(ConductError::Gone);
            };
            let own = Plan {
                part,
                ..plan.clone()
            };
            serde_json::to_writer(&mut orders, &own).map_err(std::io::Error::from)?;
            orders.write_all(b"\n")?;
            let tell = tell.clone();
            std::thread::spawn(move || listen(part as usize, BufReader::new(output), &tell));
            parts.push(Part {
                child,
                orders,
                far: Far::default(),
                is_ready: false,
                tally: None,
            });
        }
        let now = now_ns();
        let mut troupe = Troupe {
            parts,
            said,
            crew: crew.clone(),
            began: now,
            last: (now, Far::default(), None, Usage::default()),
            online: Vec::new(),
            measured_from: u64::MAX,
        };
        troupe.status("connecting");
        Ok(troupe)
    }

    fn order(&mut self, told: &Told) -> Result<(), ConductError> {
        for part in &mut self.parts {
            serde_json::to_writer(&mut part.orders, told).map_err(std::io::Error::from)?;
            part.orders.write_all(b"\n")?;
        }
        Ok(())
    }

    /// Takes one line, waiting up to `until`; false: nothing came.
    fn hear(&mut self, until: u64) -> Result<bool, ConductError> {
        let left = Duration::from_nanos(until.saturating_sub(now_ns()));
        match self.said.recv_timeout(left) {
            Ok((n, Some(Said::Far(far)))) => {
                self.parts[n].far = far;
                self.note_online();
            }
            Ok((n, Some(Said::Ready))) => self.parts[n].is_ready = true,
            Ok((n, Some(Said::Tally(tally)))) => self.parts[n].tally = Some(tally),
            Ok((_, Some(Said::Failed(why)))) => return Err(ConductError::Failed(why)),
            Ok((n, None)) if self.parts[n].tally.is_none() => return Err(ConductError::Gone),
            Ok((_, None)) => {}
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return Ok(false),
        }
        Ok(true)
    }

    fn note_online(&mut self) {
        let Some(since) = now_ns().checked_sub(self.measured_from) else {
            return;
        };
        let online = self.parts.iter().map(|part| part.far.online).sum();
        let is_news = self.online.last().is_none_or(|(_, last)| *last != online);
        if is_news && self.online.len() < ONLINE_MAX {
            self.online.push((since as f64 / 1e9, online));
        }
    }

    fn wait_ready(&mut self) -> Result<(), ConductError> {
        let deadline = now_ns() + READY_WITHIN_NS;
        while !self.parts.iter().all(|part| part.is_ready) {
            if now_ns() > deadline {
                return Err(ConductError::Late("come online"));
            }
            if self.crew.stop.load(Ordering::Relaxed) {
                return Err(ConductError::Failed("stopped before it began".into()));
            }
            self.hear(now_ns() + SECOND_NS / 10)?;
            if now_ns() > self.last.0 + SECOND_NS {
                self.status("connecting");
            }
        }
        Ok(())
    }

    fn run_until(&mut self, phase: &'static str, until: u64) -> Result<(), ConductError> {
        while now_ns() < until && !self.crew.stop.load(Ordering::Relaxed) {
            self.hear(until.min(now_ns() + SECOND_NS / 10))?;
            if now_ns() > self.last.0 + SECOND_NS {
                self.status(phase);
            }
        }
        Ok(())
    }

    fn wait_tallies(&mut self) -> Result<Vec<Tally>, ConductError> {
        let deadline = now_ns() + END_WITHIN_NS;
        self.status("ending");
        while self.parts.iter().any(|part| part.tally.is_none()) {
            if now_ns() > deadline {
                return Err(ConductError::Late("report"));
            }
            self.hear(now_ns() + SECOND_NS / 10)?;
        }
        Ok(self
            .parts
            .iter_mut()
            .filter_map(|part| part.tally.take().map(|tally| *tally))
            .collect())
    }

    fn pids(&self) -> Vec<u32> {
        self.parts.iter().map(|part| part.child.id()).collect()
    }

    fn sample(&self, measured_from: u64) -> Sample {
        Sample {
            at_s: now_ns().saturating_sub(measured_from) as f64 / 1e9,
            server: usage::of_all(&self.crew.server_pids),
            generator: usage::of_all(&self.pids()).unwrap_or_default(),
            host_took_s: usage::host_took_s(),
        }
    }

    fn status(&mut self, phase: &'static str) {
        let now = now_ns();
        let mut far = Far::default();
        self.parts.iter().for_each(|part| far.add(part.far));
        let server = usage::of_all(&self.crew.server_pids);
        let generator = usage::of_all(&self.pids()).unwrap_or_default();
        let (at, before, server_before, generator_before) = self.last;
        let since = (now.saturating_sub(at) as f64 / 1e9).max(0.001);
        let rate = |now: u64, before: u64| now.saturating_sub(before) as f64 / since;
        let status = Status {
            phase,
            elapsed_s: (now as f64 - self.began as f64) / 1e9,
            far,
            pings_per_s: rate(far.pings, before.pings),
            nearby_per_s: rate(far.nearby, before.nearby),
            rides_per_s: rate(far.rides, before.rides),
            server_cores: server
                .map(|now| (now.cpu_s - server_before.map_or(now.cpu_s, |b| b.cpu_s)) / since),
            generator_cores: ((generator.cpu_s - generator_before.cpu_s) / since).max(0.0),
        };
        self.last = (now, far, server, generator);
        (self.crew.on_status)(&status);
    }
}

fn listen(part: usize, output: impl BufRead, tell: &SyncSender<(usize, Option<Said>)>) {
    for line in output.lines() {
        let Ok(line) = line else { break };
        match serde_json::from_str(&line) {
            // Nobody listens any more when the run has failed elsewhere.
            Ok(said) => drop(tell.send((part, Some(said)))),
            Err(why) => tracing::warn!(%why, "a generator process said something else"),
        }
    }
    drop(tell.send((part, None)));
}
