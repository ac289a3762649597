//! The services as processes: killed with -9 at random moments while a city works, then audited against its log.
//!
//! Over the embedded log and over a real Apache Kafka. `CABRANK_KILLS=90 cargo test --test services` is a longer run.

#[allow(dead_code, reason = "each test binary uses its own part of this")]
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use cabrank_eventlog::kafka::KafkaConfig;
use cabrank_eventlog::kafka::testing;
use cabrank_eventlog::{EmbeddedLog, EventLog, Options, Topic};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::{Message, Offset, TopicPartitionList};
use serde_json::Value;

use support::{PATIENCE, until};

const PROGRAM: &str = env!("CARGO_BIN_EXE_cabrank");
const NAMES: [&str; 3] = ["order", "payment", "forecast"];
/// A process that is killed when dropped. What it prints to standard error is kept in a file.
struct Process {
    child: Child,
    out: BufReader<ChildStdout>,
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Process {
    fn kill(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// The next line it prints.
    fn says(&mut self) -> String {
        let mut line = String::new();
        self.out.read_line(&mut line).expect("it prints a line");
        line.trim().to_owned()
    }
}

fn free_address() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("it is bound").to_string()
}

fn kills() -> u64 {
    std::env::var("CABRANK_KILLS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(30)
}

/// A city, its services, a provider that loses answers; all their files lie in one directory.
struct Town {
    dir: tempfile::TempDir,
    addresses: [String; 3],
    provider: String,
    /// The city's log, if it is not in the directory.
    brokers: Option<KafkaConfig>,
}

impl Town {
    fn new(brokers: Option<KafkaConfig>) -> (Town, Process) {
        let dir = tempfile::tempdir().expect("a scratch directory");
        for name in ["services", "logs"] {
            std::fs::create_dir_all(dir.path().join(name)).expect("a directory");
        }
        let mut town = Town {
            dir,
            addresses: std::array::from_fn(|_| free_address()),
            provider: String::new(),
            brokers,
        };
        let ledger = town.file("services/ledger.jsonl");
        let faults = [
            ["--lost", "0.1"],
            ["--errors", "0.05"],
            ["--duplicates", "0.1"],
            ["--declines", "0.05"],
        ];
        let mut arguments = vec!["provider-sim", "--ledger", &ledger];
        arguments.extend(faults.as_flattened());
        let mut provider = town.start(&arguments);
        town.provider = provider.says();
        (town, provider)
    }

    fn file(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        command.args(arguments).stdin(Stdio::null());
        if let Some(kafka) = &self.brokers {
            command
                .env("CABRANK_KAFKA__PREFIX", &kafka.prefix)
                .env("CABRANK_KAFKA__SHARDS", kafka.shards.to_string())
                .env("CABRANK_KAFKA__REPLICATION", "1");
        }
        command
    }

    fn start(&self, arguments: &[&str]) -> Process {
        let name = arguments[..2].join("-").replace('/', "_");
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.dir.path().join("logs").join(name))
            .expect("a log file");
        let mut child = self
            .command(arguments)
            .args(["--log", "cabrank_services=debug,cabrank_gateway=info,warn"])
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .expect("the program starts");
        let out = BufReader::new(child.stdout.take().expect("stdout is a pipe"));
        Process { child, out }
    }

    fn output(&self, arguments: &[&str]) -> (bool, String) {
        let out = self.command(arguments).output().expect("the program runs");
        let said = String::from_utf8_lossy(&out.stdout).into_owned();
        let why = String::from_utf8_lossy(&out.stderr).into_owned();
        (out.status.success(), said + &why)
    }

    /// A server of the city, and clients.
    fn city(&self) -> Process {
        let (data, at) = (self.file("data"), free_address());
        let shards = self
            .brokers
            .as_ref()
            .map(|kafka| kafka.shards.to_string())
            .unwrap_or_default();
        let mut arguments = vec!["demo", "--without-services", "--drivers", "60"];
        arguments.extend(["--requests-per-minute", "400", "--listen", &at]);
        match &self.brokers {
            None => arguments.extend(["--data-dir", &data]),
            Some(kafka) => arguments.extend([
                "--brokers",
                &kafka.brokers,
                "--nodes",
                "2",
                "--gateways",
                "1",
                "--prefix",
                &kafka.prefix,
                "--shards",
                &shards,
            ]),
        }
        self.start(&arguments)
    }

    /// A service, while the city is at `url` or when it has gone.
    fn service(&self, which: usize, url: Option<&str>) -> Process {
        let of = |which: usize| format!("http://{}", self.addresses[which]);
        let (name, data) = (NAMES[which], self.file("data"));
        let database = self.file(&format!("services/{name}.db"));
        let (order, payment) = (of(0), of(1));
        let mut arguments = vec!["service", name, "--database", &database];
        arguments.extend(["--listen", &self.addresses[which]]);
        let is_payment = which == 1;
        match (&self.brokers, url) {
            (Some(kafka), _) => arguments.extend(["--brokers", &kafka.brokers]),
            (None, _) if is_payment => arguments.extend(["--order", &order]),
            (None, Some(url)) => arguments.extend(["--url", url]),
            (None, None) => arguments.extend(["--data-dir", &data]),
        }
        match (&self.brokers, url, which) {
            (Some(_), Some(url), 0) => arguments.extend(["--gateway", url]),
            (None, _, 0) => arguments.extend(["--payment", &payment]),
            (_, _, 1) => arguments.extend(["--provider", &self.provider]),
            _ => {}
        }
        self.start(&arguments)
    }

    /// What a service answers; `None` while it does not.
    fn ask(&self, which: usize, path: &str) -> Option<Value> {
        let (_, token) = self.output(&["token", "--role", "ops"]);
        let url = format!("http://{}{path}", self.addresses[which]);
        let request = reqwest::blocking::Client::new()
            .get(url)
            .bearer_auth(token.trim());
        let answer = request.send().ok()?.error_for_status().ok()?;
        answer.json().ok()
    }

    fn open_sagas(&self) -> Option<i64> {
        let counts = self.ask(0, "/v1/sagas")?;
        let of = |state: &str| counts[state].as_i64().unwrap_or(0);
        let open = ["open", "cancelling", "capturing", "voiding"];
        Some(open.into_iter().map(of).sum())
    }

    fn audit(&self) -> String {
        let services = self.file("services");
        let data = self.file("data");
        let mut arguments = vec!["audit", "--complete", "--services", &services];
        match &self.brokers {
            None => arguments.extend(["--data-dir", &data]),
            Some(kafka) => arguments.extend(["--brokers", &kafka.brokers]),
        }
        let (is_clean, report) = self.output(&arguments);
        assert!(is_clean, "{report}");
        assert!(
            report.contains("orders and money fit the ride log to the cent"),
            "{report}"
        );
        report
    }

    /// All that any process wrote anywhere.
    fn all_files(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut dirs = vec![self.dir.path().to_path_buf()];
        while let Some(dir) = dirs.pop() {
            for entry in std::fs::read_dir(dir).expect("a directory of ours") {
                let path = entry.expect("an entry").path();
                if path.is_dir() {
                    dirs.push(path);
                } else {
                    found.push(path);
                }
            }
        }
        found
    }
}

/// Kills services at random moments until there were enough, ends the city, lets the money come to rest, and audits.
fn kill_and_audit(brokers: Option<KafkaConfig>) -> (Town, [Process; 3]) {
    let (town, provider) = Town::new(brokers);
    let mut city = town.city();
    let url = city.says();
    let kills = kills();
    let mut random = SmallRng::seed_from_u64(kills);
    let mut running: [Process; 3] = std::array::from_fn(|which| town.service(which, Some(&url)));
    let mut killed = [0; 3];
    for _ in 0..kills {
        std::thread::park_timeout(Duration::from_millis(random.random_range(20..800)));
        let which = random.random_range(0..3);
        // The new one is started when the old one is gone: a SQLite file belongs to one process.
        running[which].kill();
        running[which] = town.service(which, Some(&url));
        killed[which] += 1;
    }
    testing::signal(city.child.id(), "TERM");
    let mut rest = String::new();
    city.out
        .read_to_string(&mut rest)
        .expect("it prints its end");
    let ended = city.child.wait().expect("it is ours");
    assert!(ended.success(), "{ended}: {rest}");
    if town.brokers.is_none() {
        // The city is gone. Whose events came by its stream reads its log to the end; one process at a time can.
        running.iter_mut().for_each(Process::kill);
        running[1] = town.service(1, None);
        running[0] = town.service(0, None);
    }
    // Nothing open several times in a row: the end of the log has been read.
    let mut quiet = 0;
    until("the money comes to rest", || {
        quiet = if town.open_sagas() == Some(0) {
            quiet + 1
        } else {
            0
        };
        (quiet == 20).then_some(())
    });
    if town.brokers.is_none() {
        running.iter_mut().for_each(Process::kill);
    }
    let report = town.audit();
    println!("kills of {NAMES:?}: {killed:?}\n{report}");
    drop(provider);
    (town, running)
}

#[test]
fn services_killed_at_random_moments_lose_and_double_nothing() {
    let (town, running) = kill_and_audit(None);
    drop(running);
    no_card_data(&town.all_files());
    let report = town.audit();
    let before = report.split(" declined").next().unwrap_or_default();
    let declined = before
        .rsplit('(')
        .next()
        .and_then(|count| count.parse().ok());
    let declined: u32 = declined.unwrap_or_else(|| panic!("{report}"));
    // What the saga calls off says why, for the rider to read; the rides that the city calls off at its end do not.
    let log = EmbeddedLog::open(&town.dir.path().join("data"), Options::default()).expect("a log");
    let mut called_off = 0;
    for shard in 0..log.shards() {
        let mut next = 0;
        while let records = log
            .read(Topic::RideEvents, shard, next, 1_000)
            .expect("events")
            && let Some(last) = records.last()
        {
            next = last.offset + 1;
            for record in records {
                let event: Value = serde_json::from_slice(&record.value).expect("an event");
                if let Some(why) = event["data"]["reason"].as_str() {
                    assert_eq!(event["type"], "cabrank.ride.cancelled.v1", "{event}");
                    assert!(why.starts_with("payment "), "{event}");
                    called_off += 1;
                }
            }
        }
    }
    println!("{declined} payments were declined, {called_off} rides called off for it");
    // A ride may be over before it is known.
    assert!(called_off > 0 || declined < 5, "{report}");
}

#[test]
fn over_kafka_killed_services_lose_and_double_nothing_and_say_everything_once() {
    let Some(broker) = testing::broker() else {
        return;
    };
    let kafka = broker.config(3);
    let (town, _running) = kill_and_audit(Some(kafka.clone()));
    // What the services say is in the topics: each message once, each key's in the order of saying.
    for (which, topic) in ["order-events", "payment-events", "demand-forecasts"]
        .into_iter()
        .enumerate()
    {
        let said = until("a feed", || feed(&town, which));
        assert!(said.len() > 50, "{topic}: {} messages", said.len());
        let told = until("all that was said is in the topic", || {
            let told = read_topic(&kafka, topic);
            (told.len() >= said.len()).then_some(told)
        });
        let ids: BTreeSet<&str> = told.iter().map(|told| told.id.as_str()).collect();
        assert_eq!(ids.len(), told.len(), "{topic}: something was told twice");
        let said: BTreeSet<&str> = said.iter().map(String::as_str).collect();
        assert_eq!(ids, said, "{topic}");
        let number = |told: &Told| -> u64 {
            let number = told.id.rsplit('-').next().expect("an id ends in a number");
            number.parse().expect("an id ends in a number")
        };
        let mut last = BTreeMap::new();
        for told in &told {
            let before = last.insert(&told.key, number(told)).unwrap_or(0);
            assert!(before < number(told), "{topic}: {} after {before}", told.id);
            assert_eq!(card_number(&told.body), None, "{}", told.body);
        }
    }
    no_card_data(&town.all_files());
}

/// The ids of all that a service has said so far, from its outbox.
fn feed(town: &Town, which: usize) -> Option<Vec<String>> {
    let (mut ids, mut next) = (Vec::new(), 1);
    loop {
        let page = town.ask(which, &format!("/v1/feed?from={next}"))?;
        let messages = page["messages"].as_array()?;
        ids.extend(
            messages
                .iter()
                .filter_map(|said| Some(said["id"].as_str()?.to_owned())),
        );
        next = page["next"].as_i64()?;
        if page["behind"].as_u64()? == 0 {
            return Some(ids);
        }
    }
}

/// A message of a topic.
struct Told {
    id: String,
    key: String,
    body: String,
}

/// All committed messages of a topic, in the order of each partition, by a plain client.
fn read_topic(kafka: &KafkaConfig, topic: &str) -> Vec<Told> {
    let name = format!("{}{topic}", kafka.prefix);
    let consumer: BaseConsumer = kafka
        .client()
        .set("group.id", "a-stranger")
        .set("isolation.level", "read_committed")
        .set("enable.partition.eof", "true")
        .create()
        .expect("a client");
    let mut all = TopicPartitionList::new();
    for partition in 0..i32::from(kafka.shards) {
        all.add_partition_offset(&name, partition, Offset::Beginning)
            .expect("an offset");
    }
    consumer.assign(&all).expect("partitions to read");
    let (mut told, mut ends) = (Vec::new(), BTreeSet::new());
    let deadline = Instant::now() + PATIENCE;
    while ends.len() < usize::from(kafka.shards) {
        assert!(Instant::now() < deadline, "the end of {name}");
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => {
                let text = |bytes: Option<&[u8]>| {
                    String::from_utf8_lossy(bytes.expect("key and value")).into_owned()
                };
                let body = text(message.payload());
                let event: Value = serde_json::from_str(&body).expect("a CloudEvent");
                assert_eq!(event["specversion"], "1.0", "{body}");
                let (id, key) = (event["id"].as_str(), text(message.key()));
                assert_eq!(event["subject"], *key, "{body}");
                let id = id.expect("an id").to_owned();
                told.push(Told { id, key, body });
            }
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                ends.insert(partition);
            }
            Some(Err(why)) => panic!("{name}: {why}"),
            None => {}
        }
    }
    told
}

/// Reads all that was written, and finds no number of a card and no word for its secret.
fn no_card_data(files: &[PathBuf]) {
    // The eye is good enough to find one.
    let seen = card_number("paid with 4111 1111 1111 1111, thanks");
    assert_eq!(seen.as_deref(), Some("4111111111111111"));
    assert!(card_number("{\"pan\":\"5500000000000004\"}").is_some());
    assert_eq!(card_number("1,-122.41111111111111 3-5-1042"), None);
    let mut bytes = 0;
    for file in files {
        let text = std::fs::read(file).expect("a file of ours");
        bytes += text.len();
        let text = String::from_utf8_lossy(&text);
        let found = card_number(&text);
        assert_eq!(found, None, "in {}", file.display());
        for word in ["card_number", "cardnumber", "security_code"] {
            let is_said = text.to_lowercase().contains(word);
            assert!(!is_said, "{word} in {}", file.display());
        }
    }
    assert!(bytes > 1 << 20, "only {bytes} bytes were written");
}

/// The first run of digits, perhaps in groups of four, that could be the number of a card: a length and beginning that
/// issuers use, and a check digit that fits. Fractions are not looked at.
fn card_number(text: &str) -> Option<String> {
    let bytes = text.as_bytes();
    let is_digit = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_digit);
    let mut at = 0;
    while at < bytes.len() {
        if !is_digit(at) {
            at += 1;
            continue;
        }
        let begin = at;
        while is_digit(at) {
            at += 1;
        }
        let before = begin.checked_sub(1).map(|before| bytes[before]);
        let joined =
            matches!(before, Some(b'.' | b'_')) || before.is_some_and(|b| b.is_ascii_alphabetic());
        if joined {
            continue;
        }
        let mut digits = text[begin..at].to_owned();
        // 4111 1111 1111 1111, 4111-1111-1111-1111
        let mut end = at;
        while digits.len() < 16
            && at - begin == 4
            && matches!(bytes.get(end), Some(b' ' | b'-'))
            && (1..=4).all(|n| is_digit(end + n))
            && !is_digit(end + 5)
        {
            digits += &text[end + 1..end + 5];
            end += 5;
        }
        if is_card(&digits) {
            return Some(digits);
        }
    }
    None
}

fn is_card(digits: &str) -> bool {
    let begins = |with: &[&str]| with.iter().any(|with| digits.starts_with(with));
    let is_issued = match digits.len() {
        13 => begins(&["4"]),
        14 => begins(&["30", "36", "38"]),
        15 => begins(&["34", "37"]),
        16 => begins(&["4", "51", "52", "53", "54", "55", "6011", "65"]),
        _ => false,
    };
    let sum: u32 = digits
        .bytes()
        .rev()
        .enumerate()
        .map(|(n, digit)| {
            let digit = u32::from(digit - b'0');
            let twice = if n % 2 == 1 { 2 * digit } else { digit };
            twice / 10 + twice % 10
        })
        .sum();
    is_issued && sum.is_multiple_of(10)
}
