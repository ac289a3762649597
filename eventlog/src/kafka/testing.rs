//! A real Apache Kafka for tests, started from Maven artefacts.
//!
//! - [`broker`]: one broker, shared by all tests of a test binary. Each test takes a prefix of its own
//!   ([`Broker::config`]), so tests do not see each other's topics and groups.
//! - [`Broker::start`]: brokers of one's own, one or several, for tests that kill them.
//!
//! Needs a JDK (17 or later) and, the first time, Maven: `tests/kafka/pom.xml` names what is run, the jars are copied
//! into the target directory (`kafka-lib`). Without them a test says so in one line and counts as passed; with the
//! environment's `CI=true` it fails.
//!
//! Brokers never outlive the test: a watchdog process kills them and removes their data as soon as this process is
//! gone, however it ended.

mod secured;

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};

use self::secured::Door;
pub use self::secured::{MutualBroker, SecuredBroker};
use super::config::KafkaConfig;
use super::topics;
use crate::Topic;

/// Longest wait for brokers to start.
const START_PATIENCE: Duration = Duration::from_secs(90);
/// The group session timeout the brokers accept at least, in ms.
const SESSION_MIN_MS: u32 = 500;

/// The broker of this test binary. `None`, after saying so, where none can be started.
///
/// # Panics
/// With `CI=true` in the environment, where a test that did not run is a failure.
pub fn broker() -> Option<&'static Broker> {
    static SHARED: OnceLock<Option<Broker>> = OnceLock::new();
    SHARED.get_or_init(|| Broker::start(1)).as_ref()
}

fn is_ci() -> bool {
    std::env::var("CI").is_ok_and(|ci| ci == "true")
}

/// Says something past the test harness, which shows the words of failed tests only.
fn say(words: &str) {
    // Nobody can be told that standard error is closed.
    let _ = writeln!(std::io::stderr(), "{words}");
}

/// Says what became of a start.
fn report<T>(count: usize, started: Result<T, String>, broker: fn(&T) -> &Broker) -> Option<T> {
    match started {
        Ok(started) => {
            let Broker {
                bootstrap,
                started_in,
                ..
            } = broker(&started);
            let ms = started_in.as_millis();
            say(&format!(
                "Apache Kafka: {count} broker(s) at {bootstrap} after {ms} ms"
            ));
            Some(started)
        }
        Err(why) => {
            assert!(!is_ci(), "CI=true and the Kafka tests did not run: {why}");
            say(&format!("Kafka tests did not run: {why}"));
            None
        }
    }
}

/// One broker process.
struct Node {
    dir: PathBuf,
    process: Option<Child>,
}

/// Running brokers. Dropping it kills them and removes their data.
pub struct Broker {
    lib: PathBuf,
    bootstrap: String,
    nodes: Vec<Mutex<Node>>,
    started_in: Duration,
    prefixes: AtomicU32,
    /// Declared last: the watchdog removes the data when its standard input closes.
    watchdog: Mutex<Watchdog>,
}

struct Watchdog {
    process: Child,
    line: Option<ChildStdin>,
}

impl std::fmt::Debug for Broker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Broker")
            .field("bootstrap", &self.bootstrap)
            .field("nodes", &self.nodes.len())
            .field("started_in", &self.started_in)
            .finish_non_exhaustive()
    }
}

impl Broker {
    /// Starts `count` brokers (1 or 3), each also a controller, on free ports of 127.0.0.1. `None`, after saying why in
    /// one line, where that is not possible.
    ///
    /// # Panics
    /// Instead of `None` with `CI=true` in the environment.
    #[must_use]
    pub fn start(count: usize) -> Option<Broker> {
        report(count, Broker::try_start(count, None), |broker| broker)
    }

    fn try_start(count: usize, door: Option<&Door>) -> Result<Broker, String> {
        let lib = jars()?;
        let began = Instant::now();
        let dir = tempfile::Builder::new()
            .prefix("cabrank-kafka-")
            .tempdir()
            .map_err(|why| format!("no temporary directory: {why}"))?
            .keep();
        let watchdog = Watchdog::over(&dir)?;
        let ports = free_ports(2 * count).map_err(|why| format!("no free ports: {why}"))?;
        let (clients, controllers) = ports.split_at(count);
        let mut nodes = Vec::new();
        for index in 0..count {
            let node = dir.join(index.to_string());
            fs::create_dir_all(&node).map_err(|why| why.to_string())?;
            let properties = properties(index, clients, controllers, &node, door);
            fs::write(node.join("server.properties"), properties).map_err(|why| why.to_string())?;
            fs::write(node.join("log4j2.properties"), LOG4J).map_err(|why| why.to_string())?;
            nodes.push(node);
        }
        format_storage(&lib, &nodes, door)?;
        let addresses: Vec<String> = clients
            .iter()
            .map(|port| format!("127.0.0.1:{port}"))
            .collect();
        let mut broker = Broker {
            lib,
            bootstrap: addresses.join(","),
            nodes: nodes
                .into_iter()
                .map(|dir| Mutex::new(Node { dir, process: None }))
                .collect(),
            started_in: Duration::ZERO,
            prefixes: AtomicU32::new(0),
            watchdog: Mutex::new(watchdog),
        };
        (0..count).try_for_each(|index| broker.launch(index))?;
        broker.wait_for(count)?;
        broker.started_in = began.elapsed();
        Ok(broker)
    }

    /// `host:port` of every broker.
    #[must_use]
    pub fn bootstrap(&self) -> &str {
        &self.bootstrap
    }

    /// How long all of them took to answer.
    #[must_use]
    pub fn started_in(&self) -> Duration {
        self.started_in
    }

    /// Settings for one test: a prefix of its own, a session timeout of 2 s, as many copies as there are brokers.
    #[must_use]
    pub fn config(&self, shards: u16) -> KafkaConfig {
        // Relaxed: only the number counts.
        let number = self.prefixes.fetch_add(1, Ordering::Relaxed);
        KafkaConfig {
            brokers: self.bootstrap.clone(),
            prefix: format!("t{}-{number}.", std::process::id()),
            shards,
            session_timeout_ms: 2_000,
            heartbeat_ms: 300,
            replication: if self.nodes.len() >= 3 { 3 } else { 1 },
            ..KafkaConfig::default()
        }
    }

    /// As [`Broker::config`], with the topics made.
    ///
    /// # Panics
    /// If they cannot be made.
    #[must_use]
    pub fn city(&self, shards: u16) -> KafkaConfig {
        let config = self.config(shards);
        topics::create(&config).expect("a fresh prefix has no topics");
        config
    }

    /// Makes a topic drop its oldest records beyond some `bytes`, in segments of that size.
    ///
    /// # Panics
    /// If the broker refuses.
    pub fn keep_little(&self, config: &KafkaConfig, topic: Topic, bytes: u32) {
        topics::alter(
            config,
            topic,
            &[
                ("retention.bytes", bytes.to_string()),
                ("internal.segment.bytes", bytes.to_string()),
            ],
        )
        .expect("the topic was made a moment ago");
    }

    /// What Kafka's own console consumer prints of the first `count` committed records of a topic: headers, key, value.
    ///
    /// # Panics
    /// If it cannot be run.
    #[must_use]
    pub fn console_consumer(&self, config: &KafkaConfig, topic: Topic, count: usize) -> String {
        let done = java(&self.lib)
            .arg("org.apache.kafka.tools.consumer.ConsoleConsumer")
            .args(["--bootstrap-server", &self.bootstrap])
            .args(["--topic", &format!("{}{topic}", config.prefix)])
            .args(["--from-beginning", "--isolation-level", "read_committed"])
            .args(["--max-messages", &count.to_string()])
            .args(["--timeout-ms", "20000"])
            .args(["--formatter-property", "print.headers=true"])
            .args(["--formatter-property", "print.key=true"])
            .stdin(Stdio::null())
            .output()
            .expect("java started the broker");
        let mut printed = String::from_utf8_lossy(&done.stdout).into_owned();
        if !done.status.success() {
            printed += &String::from_utf8_lossy(&done.stderr);
        }
        printed
    }

    /// kill -9. Its data stays for [`Broker::start_again`].
    pub fn kill(&self, index: usize) {
        let mut node = self.node(index);
        if let Some(mut process) = node.process.take() {
            // It may have died by itself; either way it is gone after the wait.
            let _ = process.kill();
            let _ = process.wait();
        }
        let _ = fs::remove_file(node.dir.join("pid"));
    }

    /// SIGTERM, and waits until it has ended.
    pub fn stop(&self, index: usize) {
        let mut node = self.node(index);
        if let Some(mut process) = node.process.take() {
            signal(process.id(), "TERM");
            let _ = process.wait();
        }
        let _ = fs::remove_file(node.dir.join("pid"));
    }

    /// SIGSTOP: it is there and does not answer.
    pub fn pause(&self, index: usize) {
        if let Some(process) = &self.node(index).process {
            signal(process.id(), "STOP");
        }
    }

    /// SIGCONT.
    pub fn resume(&self, index: usize) {
        if let Some(process) = &self.node(index).process {
            signal(process.id(), "CONT");
        }
    }

    /// Starts a killed or stopped broker with its data, and returns when all that should run answer.
    ///
    /// # Panics
    /// If they do not within the patience for a start.
    pub fn start_again(&self, index: usize) {
        self.launch(index).expect("it started before");
        let running = (0..self.nodes.len())
            .filter(|index| self.node(*index).process.is_some())
            .count();
        self.wait_for(running).expect("it started before");
    }

    fn node(&self, index: usize) -> std::sync::MutexGuard<'_, Node> {
        self.nodes[index]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn launch(&self, index: usize) -> Result<(), String> {
        let mut node = self.node(index);
        let text = |why: std::io::Error| format!("the broker cannot be started: {why}");
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(node.dir.join("server.log"))
            .map_err(text)?;
        let process = java(&self.lib)
            // Half of the heap for what is young: under load a collection stops the broker for 25 to 40 ms, and with the
            // default third of a small heap there is one each second.
            .args(["-Xms512m", "-Xmx512m", "-Xmn256m", "-XX:+UseSerialGC"])
            .arg(format!(
                "-Dlog4j2.configurationFile={}",
                node.dir.join("log4j2.properties").display()
            ))
            .arg("kafka.Kafka")
            .arg(node.dir.join("server.properties"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(text)?)
            .stderr(log)
            .spawn()
            .map_err(text)?;
        fs::write(node.dir.join("pid"), process.id().to_string()).map_err(text)?;
        node.process = Some(process);
        Ok(())
    }

    fn wait_for(&self, count: usize) -> Result<(), String> {
        let deadline = Instant::now() + START_PATIENCE;
        let asker: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", &self.bootstrap)
            .set("broker.address.family", "v4")
            .set("reconnect.backoff.ms", "50")
            .set("reconnect.backoff.max.ms", "200")
            .set("log_level", "0")
            .create()
            .map_err(|why| why.to_string())?;
        loop {
            let seen = asker
                .fetch_metadata(Some("no-such-topic"), Duration::from_secs(1))
                .map_or(0, |metadata| metadata.brokers().len());
            if seen >= count {
                return Ok(());
            }
            for index in 0..self.nodes.len() {
                let mut node = self.node(index);
                let ended = node.process.as_mut().map(Child::try_wait);
                if let Some(Ok(Some(status))) = ended {
                    let log = fs::read_to_string(node.dir.join("server.log")).unwrap_or_default();
                    let tail: Vec<&str> = log.lines().rev().take(5).collect();
                    return Err(format!("the broker ended ({status}): {}", tail.join(" | ")));
                }
            }
            if Instant::now() > deadline {
                return Err(format!(
                    "{seen} of {count} brokers answer after {START_PATIENCE:?}"
                ));
            }
        }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        (0..self.nodes.len()).for_each(|index| self.kill(index));
        let watchdog = self
            .watchdog
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        drop(watchdog.line.take());
        let _ = watchdog.process.wait();
    }
}

impl Watchdog {
    /// Waits for this process's end by reading a pipe that only this process holds open.
    fn over(dir: &Path) -> Result<Watchdog, String> {
        const SCRIPT: &str = r#"
            trap '' INT TERM HUP
            read -r _
            for pid in "$1"/*/pid; do
                [ -f "$pid" ] && kill -9 "$(cat "$pid")" 2>/dev/null
            done
            for _ in 1 2 3 4 5 6 7 8 9 10; do
                rm -rf "$1" 2>/dev/null && exit 0
                sleep 0.2
            done
        "#;
        let mut process = Command::new("sh")
            .args(["-c", SCRIPT, "cabrank-kafka-watchdog"])
            .arg(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|why| format!("no shell: {why}"))?;
        let line = process.stdin.take();
        Ok(Watchdog { process, line })
    }
}

/// Sends a signal by the command of that name, which needs no unsafe code.
pub fn signal(pid: u32, name: &str) {
    let _ = Command::new("kill")
        .arg(format!("-{name}"))
        .arg(pid.to_string())
        .status();
}

fn java(lib: &Path) -> Command {
    let mut java = Command::new("java");
    java.args(["-XX:TieredStopAtLevel=1", "-cp"])
        .arg(lib.join("*"));
    java
}

/// The directory of the broker's jars, filled by Maven the first time.
fn jars() -> Result<PathBuf, String> {
    // Tests of one binary start brokers side by side: the first one fetches, the others wait for it.
    static FETCHING: Mutex<()> = Mutex::new(());
    let _one_at_a_time = FETCHING.lock().unwrap_or_else(PoisonError::into_inner);
    let answers = |program: &str| {
        Command::new(program)
            .arg("-version")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    };
    if !answers("java") {
        return Err("there is no java (JDK 17 or later) on the PATH".into());
    }
    let lib = target_dir().join("kafka-lib");
    let pom = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/kafka/pom.xml");
    let wanted = fs::read(&pom).map_err(|why| format!("{}: {why}", pom.display()))?;
    // The copy of the POM beside the jars says what they are.
    let is_there = || fs::read(lib.join("pom.xml")).is_ok_and(|there| there == wanted);
    if is_there() {
        return Ok(lib);
    }
    if !answers("mvn") {
        return Err("there is no mvn (Maven) on the PATH to fetch Apache Kafka with".into());
    }
    let fresh = lib.with_extension(std::process::id().to_string());
    let fetched = Command::new("mvn")
        .args(["-q", "-B", "dependency:copy-dependencies"])
        .arg("-DincludeScope=runtime")
        .arg(format!("-DoutputDirectory={}", fresh.display()))
        .arg("-f")
        .arg(&pom)
        .stdin(Stdio::null())
        .output()
        .map_err(|why| format!("mvn: {why}"))?;
    if !fetched.status.success() {
        let _ = fs::remove_dir_all(&fresh);
        let said = String::from_utf8_lossy(&fetched.stdout);
        let line = said.lines().find(|line| line.contains("ERROR"));
        return Err(format!("mvn failed: {}", line.unwrap_or("no reason given")));
    }
    fs::write(fresh.join("pom.xml"), &wanted).map_err(|why| why.to_string())?;
    if !is_there() {
        let _ = fs::remove_dir_all(&lib);
    }
    // Another test binary may have been quicker: its jars are the same.
    if fs::rename(&fresh, &lib).is_err() {
        let _ = fs::remove_dir_all(&fresh);
    }
    if is_there() {
        Ok(lib)
    } else {
        Err(format!("{} cannot be written", lib.display()))
    }
}

/// Where cargo builds: the directory above this program that carries its mark.
fn target_dir() -> PathBuf {
    std::env::current_exe()
        .ok()
        .and_then(|program| {
            program
                .ancestors()
                .find(|dir| dir.join("CACHEDIR.TAG").is_file())
                .map(Path::to_path_buf)
        })
        .unwrap_or_else(std::env::temp_dir)
}

fn free_ports(count: usize) -> std::io::Result<Vec<u16>> {
    // All are held until the last is found, so that they differ.
    let held: Vec<TcpListener> = (0..count)
        .map(|_| TcpListener::bind(("127.0.0.1", 0)))
        .collect::<std::io::Result<_>>()?;
    held.iter()
        .map(|listener| Ok(listener.local_addr()?.port()))
        .collect()
}

fn format_storage(lib: &Path, nodes: &[PathBuf], door: Option<&Door>) -> Result<(), String> {
    let users = door.map(|door| door.users.as_slice()).unwrap_or_default();
    let formatting: Vec<_> = nodes
        .iter()
        .map(|node| {
            java(lib)
                .arg(format!(
                    "-Dlog4j2.configurationFile={}",
                    node.join("log4j2.properties").display()
                ))
                .args(["kafka.tools.StorageTool", "format", "--ignore-formatted"])
                .args(["-t", "Y2FicmFuay10ZXN0czAwMA", "-c"])
                .arg(node.join("server.properties"))
                .args(users.iter().flat_map(|user| ["--add-scram", user]))
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
        })
        .collect();
    for formatting in formatting {
        let done = formatting
            .and_then(Child::wait_with_output)
            .map_err(|why| format!("java: {why}"))?;
        if !done.status.success() {
            let said = String::from_utf8_lossy(&done.stderr);
            return Err(format!("the broker's storage: {}", said.trim()));
        }
    }
    Ok(())
}

fn properties(
    index: usize,
    clients: &[u16],
    controllers: &[u16],
    dir: &Path,
    door: Option<&Door>,
) -> String {
    let mut secured = String::new();
    let mut protocols = "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT".to_owned();
    for listener in door.iter().flat_map(|door| &door.listeners) {
        let _ = write!(secured, ",{}://127.0.0.1:{}", listener.name, listener.port);
        let _ = write!(protocols, ",{}:{}", listener.name, listener.protocol);
    }
    let id = |index: usize| index + 1;
    let voters: Vec<String> = controllers
        .iter()
        .enumerate()
        .map(|(index, port)| format!("{}@127.0.0.1:{port}", id(index)))
        .collect();
    let copies = if clients.len() >= 3 { 3 } else { 1 };
    let in_sync = if copies == 3 { 2 } else { 1 };
    let mut text = String::new();
    let lines = [
        ("process.roles", "broker,controller".to_owned()),
        ("node.id", id(index).to_string()),
        ("controller.quorum.voters", voters.join(",")),
        (
            "listeners",
            format!(
                "PLAINTEXT://127.0.0.1:{},CONTROLLER://127.0.0.1:{}{secured}",
                clients[index], controllers[index]
            ),
        ),
        (
            "advertised.listeners",
            format!("PLAINTEXT://127.0.0.1:{}{secured}", clients[index]),
        ),
        ("listener.security.protocol.map", protocols),
        ("controller.listener.names", "CONTROLLER".into()),
        ("log.dirs", dir.join("data").display().to_string()),
        ("auto.create.topics.enable", "false".into()),
        ("num.network.threads", "2".into()),
        ("num.io.threads", "4".into()),
        ("offsets.topic.replication.factor", copies.to_string()),
        ("offsets.topic.num.partitions", "4".into()),
        (
            "transaction.state.log.replication.factor",
            copies.to_string(),
        ),
        ("transaction.state.log.min.isr", in_sync.to_string()),
        ("transaction.state.log.num.partitions", "4".into()),
        ("min.insync.replicas", in_sync.to_string()),
        ("group.initial.rebalance.delay.ms", "0".into()),
        ("group.min.session.timeout.ms", SESSION_MIN_MS.to_string()),
        (
            "transaction.abort.timed.out.transaction.cleanup.interval.ms",
            "500".into(),
        ),
        ("log.cleaner.dedupe.buffer.size", "33554432".into()),
        // Trimming is waited for by a test.
        ("log.retention.check.interval.ms", "500".into()),
        ("log.initial.task.delay.ms", "500".into()),
        ("log.segment.delete.delay.ms", "1000".into()),
    ];
    let settings = door
        .map(|door| door.settings.as_slice())
        .unwrap_or_default();
    let lines = lines.iter().map(|(key, value)| (*key, value));
    let settings = settings.iter().map(|(key, value)| (key.as_str(), value));
    for (key, value) in lines.chain(settings) {
        let _ = writeln!(text, "{key}={value}");
    }
    text
}

const LOG4J: &str = "\
rootLogger.level = WARN
rootLogger.appenderRef.out.ref = OUT
appender.out.type = Console
appender.out.name = OUT
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = %d %p %c{1} %m%n
";
