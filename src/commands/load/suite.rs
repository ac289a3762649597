//! `cabrank load suite`: every row of the table of what must be reached, one after the other, each run a `cabrank load` of
//! its own. What the rows are and how they are read is `cabrank_loadgen::load::suite`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use cabrank_loadgen::load::clock::now_ns;
use cabrank_loadgen::load::compare::median;
use cabrank_loadgen::load::suite::{MeasuredRow, ROWS, Round, Row, filled, markdown, measured};
use cabrank_loadgen::report::Machine;
use clap::Args;
use serde_json::{Value, json};

use crate::{AnyError, Common};

/// A run may take so long beyond its measured seconds: sockets, drivers without one, the log's end and the audit.
const RUN_BEYOND: Duration = Duration::from_secs(240);
/// How long a Redis may take to listen.
const REDIS_WITHIN: Duration = Duration::from_secs(10);
/// How often a child is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// Flags of `load suite`.
#[derive(Args, Clone)]
pub struct SuiteArgs {
    /// Only these rows, by name; `--list` shows them.
    #[arg(long, value_delimiter = ',', value_name = "ROW,...")]
    rows: Vec<String>,
    /// Show the rows and end.
    #[arg(long)]
    list: bool,
    /// Runs of each side of a row, taken in turn; rows that take minutes have fewer.
    #[arg(long, default_value_t = 5)]
    runs: u32,
    /// Measured seconds of a run.
    #[arg(long, default_value_t = 4.0)]
    seconds: f64,
    /// Warm-up of a run, seconds.
    #[arg(long, default_value_t = 1.0)]
    warmup: f64,
    /// Also the highest rate that keeps a bound, and ten minutes at 70 % of it.
    #[arg(long)]
    soak: bool,
    /// A Redis to compare with, redis://HOST:PORT; `none`: without. Default: `redis-server` is started if there is one.
    #[arg(long, value_name = "URL")]
    redis: Option<String>,
    /// No run is begun after this; what is missing is said.
    #[arg(long, value_name = "MINUTES", default_value_t = 50.0)]
    within: f64,
    /// Generator's lateness (p99) beyond which a run does not count, ms.
    #[arg(long, value_name = "MS", default_value_t = 5.0)]
    lateness_p99_ms: f64,
    /// Where `suite.md`, `suite.json` and the reports of all runs are written.
    #[arg(long, value_name = "DIR", default_value = "performance")]
    out: PathBuf,
}

/// Measures the rows; exit code 1 if any was missed, not valid or not run.
pub fn run(common: &Common, args: SuiteArgs) -> Result<ExitCode, AnyError> {
    if args.list {
        for row in ROWS {
            println!("{:<12}{}", row.name, row.what);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let rows = chosen(&args)?;
    std::fs::create_dir_all(&args.out)?;
    let own = match args.redis.as_deref() {
        None => OwnRedis::start()?,
        Some(_) => None,
    };
    let redis = match args.redis.as_deref() {
        Some("none") => None,
        Some(url) => Some(url.to_owned()),
        None => own.as_ref().map(|own| own.url.clone()),
    };
    if redis.is_none() {
        eprintln!("there is no Redis to compare with: install redis-server or give --redis");
    }
    let began = now_ns();
    let mut suite = Suite {
        common,
        args: &args,
        redis,
        redis_pid: own.as_ref().map(|own| own.child.id()),
        ends: began.saturating_add((args.within * 60e9) as u64),
        found: BTreeMap::new(),
    };
    let mut done = Vec::new();
    for row in rows {
        done.push(suite.measure(row)?);
        // Written after each row: a suite that is ended early has not measured in vain.
        write(&args, &done, seconds_since(began))?;
    }
    println!("{}", page(&done, &args, seconds_since(began)));
    let is_met = |row: &MeasuredRow| {
        let verdicts = row.figures.iter().map(|figure| figure.verdict.as_str());
        !verdicts
            .into_iter()
            .any(|verdict| matches!(verdict, "MISSED" | "not valid" | "not run"))
    };
    Ok(if done.iter().all(is_met) {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    })
}

fn chosen(args: &SuiteArgs) -> Result<Vec<&'static Row>, AnyError> {
    if !(1..=20).contains(&args.runs) || !(0.5..=600.0).contains(&args.seconds) {
        return Err("--runs: choose 1 to 20; --seconds: 0.5 to 600".into());
    }
    if let Some(unknown) = args
        .rows
        .iter()
        .find(|name| !ROWS.iter().any(|row| row.name == **name))
    {
        let names: Vec<&str> = ROWS.iter().map(|row| row.name).collect();
        return Err(format!("--rows {unknown}: choose from {}", names.join(", ")).into());
    }
    let is_chosen = |row: &&Row| match args.rows.is_empty() {
        true => row.by_default || args.soak && ["highest", "soak"].contains(&row.name),
        false => args.rows.iter().any(|name| name == row.name),
    };
    Ok(ROWS.iter().filter(is_chosen).collect())
}

fn seconds_since(began: u64) -> f64 {
    now_ns().saturating_sub(began) as f64 / 1e9
}

struct Suite<'a> {
    common: &'a Common,
    args: &'a SuiteArgs,
    redis: Option<String>,
    redis_pid: Option<u32>,
    ends: u64,
    /// The first figure's median of the rows so far.
    found: BTreeMap<String, f64>,
}

impl Suite<'_> {
    /// All rounds of a row, its sides in turn.
    fn measure(&mut self, row: &Row) -> Result<MeasuredRow, AnyError> {
        let began = now_ns();
        let mut rounds = Vec::new();
        let mut commands = Vec::new();
        for n in 0..self.args.runs.min(row.rounds_max) {
            let mut round = Round::new();
            for subject in row.subjects {
                let filled = filled(subject.arguments, self.redis.as_deref(), &self.found);
                let Some(arguments) = filled else { continue };
                let mut arguments = self.completed(arguments);
                if n == 0 {
                    // The port and the process of the Redis started here mean nothing to a reader.
                    let shown: Vec<&str> = arguments
                        .iter()
                        .map(|one| {
                            if one.starts_with("redis://") {
                                "redis://127.0.0.1:6379"
                            } else {
                                one
                            }
                        })
                        .collect();
                    let (settings, flags) = shown.split_at(settings_of(&arguments));
                    let words = [settings, &["cabrank", "load"], flags].concat();
                    commands.push(words.join(" "));
                }
                if now_ns() > self.ends {
                    eprintln!("{}: no time left for round {}", row.name, n + 1);
                    continue;
                }
                eprintln!("{}, {}, round {}", row.name, subject.name, n + 1);
                let file =
                    self.args
                        .out
                        .join(format!("{}-{}-{}.json", row.name, subject.name, n + 1));
                self.add_redis_pid(&mut arguments);
                round.insert(subject.name.to_owned(), self.run_one(&arguments, &file)?);
            }
            if !round.is_empty() {
                rounds.push(round);
            }
        }
        let measured = measured(row, &rounds, commands, seconds_since(began));
        if let Some(first) = measured.figures.first().filter(|f| !f.values.is_empty()) {
            self.found
                .insert(row.name.to_owned(), median(&first.values));
        }
        Ok(measured)
    }

    /// With the length of the run and what a run that counts must keep, where the row does not say.
    fn completed(&self, mut arguments: Vec<String>) -> Vec<String> {
        if arguments.first().is_some_and(|first| first == "index") {
            return arguments;
        }
        let args = self.args;
        for (name, value) in [
            ("--seconds", args.seconds),
            ("--warmup", args.warmup),
            ("--lateness-p99-ms", args.lateness_p99_ms),
        ] {
            if !arguments.iter().any(|given| given == name) {
                arguments.extend([name.to_owned(), value.to_string()]);
            }
        }
        arguments
    }

    fn add_redis_pid(&self, arguments: &mut Vec<String>) {
        let is_redis = arguments.iter().any(|given| given.starts_with("redis://"));
        if let (true, Some(pid)) = (is_redis, self.redis_pid) {
            arguments.extend(["--server-pid".to_owned(), pid.to_string()]);
        }
    }

    /// One run; what it said, or why it said nothing.
    fn run_one(&self, arguments: &[String], file: &Path) -> Result<Value, AnyError> {
        let mut command = Command::new(std::env::current_exe()?);
        if let Some(config) = &self.common.config {
            command.arg("--config").arg(config);
        }
        let log_file = std::fs::File::create(file.with_extension("log"))?;
        let (settings, flags) = arguments.split_at(settings_of(arguments));
        command
            .envs(settings.iter().filter_map(|one| one.split_once('=')))
            .arg("load")
            .args(flags)
            .arg("--report")
            .arg(file)
            .stdin(Stdio::null())
            .stdout(log_file.try_clone()?)
            .stderr(log_file);
        // A report of an earlier suite in this directory would be taken for this run's.
        match std::fs::remove_file(file) {
            Err(why) if why.kind() != std::io::ErrorKind::NotFound => return Err(why.into()),
            _ => {}
        }
        let seconds = arguments
            .iter()
            .skip_while(|given| *given != "--seconds")
            .nth(1)
            .and_then(|text| text.parse().ok())
            .unwrap_or(0.0);
        let mut child = Ended(command.spawn()?);
        let patience = Duration::from_secs_f64(seconds) + RUN_BEYOND;
        let invalid = |why: String| json!({ "valid": false, "invalid_because": [why] });
        let Some(status) = wait(&mut child.0, patience)? else {
            return Ok(invalid(format!("not over after {} s", patience.as_secs())));
        };
        let Ok(text) = std::fs::read_to_string(file) else {
            let log = std::fs::read_to_string(file.with_extension("log")).unwrap_or_default();
            let last = log.lines().last().unwrap_or("").to_owned();
            return Ok(invalid(format!("it ended with {status}: {last}")));
        };
        Ok(serde_json::from_str(&text)?)
    }
}

/// How many of a row's words, the first ones, are settings of the server (`CABRANK_...=...`).
fn settings_of(words: &[String]) -> usize {
    let is_setting = |word: &&String| word.starts_with("CABRANK_");
    words.iter().take_while(is_setting).count()
}

/// A child that does not outlive its owner.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // Already over in the ordinary case; then both do nothing.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn wait(
    child: &mut Child,
    patience: Duration,
) -> Result<Option<std::process::ExitStatus>, AnyError> {
    let deadline = now_ns() + patience.as_nanos() as u64;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if now_ns() > deadline {
            return Ok(None);
        }
        std::thread::park_timeout(LOOK);
    }
}

/// A Redis on a free port of loopback that keeps nothing.
pub struct OwnRedis {
    child: Child,
    /// Its address.
    pub url: String,
    _dir: tempfile::TempDir,
}

impl OwnRedis {
    /// None: there is no `redis-server` here.
    pub fn start() -> Result<Option<OwnRedis>, AnyError> {
        let dir = tempfile::tempdir()?;
        // Free a moment ago; Redis does not take port 0 for "any".
        let port = std::net::TcpListener::bind(("127.0.0.1", 0))?
            .local_addr()?
            .port();
        let spawned = Command::new("redis-server")
            .args(["--bind", "127.0.0.1", "--port", &port.to_string()])
            .args(["--save", "", "--appendonly", "no", "--dir"])
            .arg(dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let child = match spawned {
            Ok(child) => child,
            Err(why) if why.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(why) => return Err(format!("redis-server: {why}").into()),
        };
        let own = OwnRedis {
            child,
            url: format!("redis://127.0.0.1:{port}"),
            _dir: dir,
        };
        let deadline = now_ns() + REDIS_WITHIN.as_nanos() as u64;
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            if now_ns() > deadline {
                return Err("redis-server does not listen".into());
            }
            std::thread::park_timeout(LOOK);
        }
        Ok(Some(own))
    }
}

impl Drop for OwnRedis {
    fn drop(&mut self) {
        // Nothing of it is kept, so there is nothing to end in order.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The pasteable page: machine, command, table.
fn page(rows: &[MeasuredRow], args: &SuiteArgs, took_s: f64) -> String {
    let machine = Machine::here();
    let command: Vec<String> = std::env::args().skip(1).collect();
    format!(
        "Machine: {}, {} cores shared by server and clients, {} MiB, {}. Cabrank {}. `cabrank {}`, {:.0} minutes; {} runs a side \
         where not said otherwise, the sides of a row in turn.\n\n{}",
        machine.cpu,
        machine.cores,
        machine.memory_mib,
        machine.system,
        env!("CARGO_PKG_VERSION"),
        command.join(" "),
        took_s / 60.0,
        args.runs,
        markdown(rows)
    )
}

fn write(args: &SuiteArgs, rows: &[MeasuredRow], took_s: f64) -> Result<(), AnyError> {
    let all = json!({
        "schema": "cabrank.suite/1",
        "version": env!("CARGO_PKG_VERSION"),
        "machine": Machine::here(),
        "arguments": std::env::args().skip(1).collect::<Vec<_>>(),
        "took_s": took_s,
        "rows": rows,
    });
    std::fs::write(args.out.join("suite.json"), format!("{all:#}\n"))?;
    std::fs::write(args.out.join("suite.md"), page(rows, args, took_s))?;
    Ok(())
}
