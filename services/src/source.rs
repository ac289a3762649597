//! Where do messages come from?
//!
//! Every source delivers committed records only, in the order of each partition, from given positions on, and may deliver
//! one again (the inbox makes that harmless). Three homes: a log in this process or over Kafka ([`LogSource`], read
//! committed), a running server ([`StreamSource`]: `GET /v1/events`), and another service's outbox ([`FeedSource`]).
//! A source waits for its consumer: at most [`BATCHES_MAX`] batches of [`BATCH_MAX`] messages lie between them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use backon::{BackoffBuilder, ExponentialBuilder};
use bytes::Bytes;
use cabrank_eventlog::{EventLog, ReadError, Topic};
use eventsource_stream::Eventsource;
use futures_util::StreamExt;
use tokio::sync::mpsc;

/// Most messages of one batch, and so of one transaction.
pub const BATCH_MAX: usize = 512;
/// Batches read before they are applied.
pub const BATCHES_MAX: usize = 4;
/// How long a source waits for news before it looks whether anybody still listens.
const LOOK: Duration = Duration::from_millis(200);
/// How often it is looked whether the city has more shards.
const SHARDS_LOOK: Duration = Duration::from_secs(10);
/// How long a batch that is not full may grow: a transaction costs as much as some dozen events, so many small ones cost most.
const GATHER: Duration = Duration::from_millis(40);
/// How long a feed is asked to wait for news.
const FEED_WAIT_MS: u64 = 1_000;

/// Place of a partition (`ride-events/3`) and what to read next there, in the source's own words.
pub type Positions = BTreeMap<String, String>;

/// Where a token for calls comes from: asked before each connection, because tokens end.
pub type Token = Arc<dyn Fn() -> String + Send + Sync>;

/// Messages in order, and where to go on after them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// What was said: CloudEvents.
    pub messages: Vec<Bytes>,
    /// The positions that differ once all of them are applied.
    pub after: Positions,
    /// How many more are known to wait behind these, if the source knows.
    pub behind: Option<u64>,
}

/// Why a source ended. Everything that may get better by itself is tried again inside the source.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// What comes next was trimmed: events are lost to this service, a person must decide.
    #[error("{0} is older than what the log keeps: rebuild from a log that has it")]
    TooOld(String),
    /// Whoever was asked will not answer this caller.
    #[error("{0}")]
    Refused(String),
    /// What is stored is not what was written.
    #[error("{0}")]
    Corrupt(String),
}

/// What a source hands out.
pub type Batches = mpsc::Receiver<Result<Batch, SourceError>>;

/// A place messages come from.
pub trait Source: Send + Sync {
    /// Its name: positions and inbox are kept under it.
    fn name(&self) -> &str;

    /// Reads from `positions` on; a partition without one from its beginning. Ends when the receiver is dropped.
    fn open(&self, positions: Positions) -> Batches;
}

/// First retries after 50 ms, then up to 5 s apart, with jitter so that many do not return at once.
pub fn backoff() -> impl Iterator<Item = Duration> {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(50))
        .with_max_delay(Duration::from_secs(5))
        .with_jitter()
        .without_max_times()
        .build()
}

/// Events of a log that this process can read: the embedded one of this process, a stopped one, or Kafka.
pub struct LogSource {
    log: Arc<dyn EventLog>,
    topics: Vec<Topic>,
    /// A stopped log ends: the source ends with it.
    is_finite: bool,
}

impl LogSource {
    /// Follows `topics` of `log`; `is_finite`: until their present end only.
    pub fn new(log: Arc<dyn EventLog>, topics: &[Topic], is_finite: bool) -> LogSource {
        LogSource {
            log,
            topics: topics.to_vec(),
            is_finite,
        }
    }
}

impl Source for LogSource {
    fn name(&self) -> &str {
        "rides"
    }

    fn open(&self, positions: Positions) -> Batches {
        let (give, take) = mpsc::channel(BATCHES_MAX);
        let (log, topics, is_finite) = (Arc::clone(&self.log), self.topics.clone(), self.is_finite);
        // Reading a log blocks.
        std::thread::spawn(move || {
            if let Err(why) = follow(&*log, &topics, &positions, is_finite, &give) {
                // Nobody listens any more when the receiver is gone.
                let _ = give.blocking_send(Err(why));
            }
        });
        take
    }
}

fn place(topic: Topic, shard: u16) -> String {
    format!("{}/{shard}", topic.name())
}

fn follow(
    log: &dyn EventLog,
    topics: &[Topic],
    positions: &Positions,
    is_finite: bool,
    give: &mpsc::Sender<Result<Batch, SourceError>>,
) -> Result<(), SourceError> {
    let mut tail = log.tail();
    let mut ends: BTreeMap<String, u64> = BTreeMap::new();
    let mut at: BTreeMap<String, u64> = BTreeMap::new();
    for &topic in topics {
        for shard in 0..log.shards() {
            let place = place(topic, shard);
            let known = positions.get(&place).and_then(|next| next.parse().ok());
            let from: u64 = known.unwrap_or(0);
            at.insert(place, from);
            tail.follow(topic, shard, from);
        }
    }
    let mut retries = backoff();
    let (mut shards, mut looked) = (log.shards(), Instant::now());
    loop {
        if give.is_closed() {
            return Ok(());
        }
        if !is_finite && looked.elapsed() > SHARDS_LOOK {
            // A city may get more of them, and what is said there is heard from its beginning.
            looked = Instant::now();
            let found = log.look_for_shards().max(shards);
            for shard in std::mem::replace(&mut shards, found)..found {
                for &topic in topics {
                    let place = place(topic, shard);
                    let known = positions.get(&place).and_then(|next| next.parse().ok());
                    let from: u64 = known.unwrap_or(0);
                    at.insert(place, from);
                    tail.follow(topic, shard, from);
                }
            }
        }
        let found = match tail.next(LOOK, BATCH_MAX) {
            Ok(found) => found,
            Err(error) => match error.why {
                ReadError::TooOld { .. } | ReadError::NoSuchPartition { .. } => {
                    return Err(SourceError::TooOld(error.to_string()));
                }
                ReadError::Corrupt(why) => return Err(SourceError::Corrupt(why)),
                ReadError::Unavailable(_) => {
                    // The tail has let the partition go; it is followed again from where it stood.
                    std::thread::park_timeout(retries.next().unwrap_or(LOOK));
                    let from = at.get(&place(error.topic, error.shard)).copied();
                    tail.follow(error.topic, error.shard, from.unwrap_or(0));
                    continue;
                }
            },
        };
        if found.is_empty() {
            if is_finite {
                return Ok(());
            }
            continue;
        }
        retries = backoff();
        let mut batch = Batch::default();
        for followed in found {
            let place = place(followed.topic, followed.shard);
            let next = followed.record.offset + 1;
            at.insert(place.clone(), next);
            batch.after.insert(place, next.to_string());
            if !followed.record.value.is_empty() {
                batch.messages.push(followed.record.value);
            }
        }
        // Asked once a full batch came: only then can more be waiting that is worth a question.
        if batch.messages.len() >= BATCH_MAX {
            for &topic in topics {
                for shard in 0..log.shards() {
                    if let Ok(bounds) = log.bounds(topic, shard) {
                        ends.insert(place(topic, shard), bounds.end);
                    }
                }
            }
            let behind = ends
                .iter()
                .map(|(place, end)| end.saturating_sub(at.get(place).copied().unwrap_or(*end)));
            batch.behind = Some(behind.sum());
        }
        let is_full = batch.messages.len() >= BATCH_MAX;
        if give.blocking_send(Ok(batch)).is_err() {
            return Ok(());
        }
        if !is_full && !is_finite {
            std::thread::park_timeout(GATHER);
        }
    }
}

/// Events of a running server, by `GET /v1/events`; the position is its cursor.
pub struct StreamSource {
    http: reqwest::Client,
    base: String,
    token: Token,
}

impl StreamSource {
    /// Follows the server at `base`, e.g. `http://127.0.0.1:8080`.
    pub fn new(base: &str, token: Token) -> StreamSource {
        StreamSource {
            http: reqwest::Client::new(),
            base: base.trim_end_matches('/').to_owned(),
            token,
        }
    }
}

/// The one place of a stream and of a feed.
const WHOLE: &str = "all";

impl Source for StreamSource {
    fn name(&self) -> &str {
        "rides"
    }

    fn open(&self, positions: Positions) -> Batches {
        let (give, take) = mpsc::channel(BATCHES_MAX);
        let (http, url) = (self.http.clone(), format!("{}/v1/events", self.base));
        let token = Arc::clone(&self.token);
        let mut cursor = positions.get(WHOLE).cloned();
        tokio::spawn(async move {
            let mut retries = backoff();
            while !give.is_closed() {
                let from = cursor.clone().unwrap_or_else(|| "start".to_owned());
                let request = http
                    .get(&url)
                    .bearer_auth(token())
                    .query(&[("cursor", from)]);
                match request.send().await {
                    Ok(answer) if answer.status().is_success() => {
                        retries = backoff();
                        pass_on(answer, &mut cursor, &give).await;
                    }
                    Ok(answer) if answer.status().as_u16() == 410 => {
                        let gone = SourceError::TooOld("the server's event stream".to_owned());
                        // Nobody listens any more when the receiver is gone.
                        let _ = give.send(Err(gone)).await;
                        return;
                    }
                    Ok(answer) if matches!(answer.status().as_u16(), 400..=428) => {
                        let why = format!("the event stream was refused: {}", answer.status());
                        let _ = give.send(Err(SourceError::Refused(why))).await;
                        return;
                    }
                    Ok(_) | Err(_) => {}
                }
                tokio::time::sleep(retries.next().unwrap_or(LOOK)).await;
            }
        });
        take
    }
}

async fn pass_on(
    answer: reqwest::Response,
    cursor: &mut Option<String>,
    give: &mpsc::Sender<Result<Batch, SourceError>>,
) {
    let mut events = answer.bytes_stream().eventsource();
    loop {
        let mut batch = Batch::default();
        let first = tokio::select! {
            first = events.next() => first,
            () = give.closed() => return,
        };
        let Some(Ok(first)) = first else { return };
        let mut newest = first.id;
        batch.messages.push(Bytes::from(first.data));
        let until = tokio::time::Instant::now() + GATHER;
        let mut is_over = false;
        while batch.messages.len() < BATCH_MAX {
            match tokio::time::timeout_at(until, events.next()).await {
                Ok(Some(Ok(event))) => {
                    newest = event.id;
                    batch.messages.push(Bytes::from(event.data));
                }
                Ok(_) => {
                    is_over = true;
                    break;
                }
                Err(_) => break,
            }
        }
        batch.after.insert(WHOLE.to_owned(), newest.clone());
        *cursor = Some(newest);
        if give.send(Ok(batch)).await.is_err() || is_over {
            return;
        }
    }
}

/// What another service says, by `GET /v1/feed` of it; the position is the number of the next message.
pub struct FeedSource {
    http: reqwest::Client,
    name: String,
    base: String,
    token: Token,
}

impl FeedSource {
    /// Follows the service at `base` under the name `name`.
    pub fn new(name: &str, base: &str, token: Token) -> FeedSource {
        FeedSource {
            http: reqwest::Client::new(),
            name: name.to_owned(),
            base: base.trim_end_matches('/').to_owned(),
            token,
        }
    }
}

/// What a feed answers.
#[derive(Debug, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
pub struct FeedPage {
    /// CloudEvents, in order.
    #[schemars(with = "Vec<serde_json::Value>")]
    pub messages: Vec<Box<serde_json::value::RawValue>>,
    /// Ask from here on.
    pub next: i64,
    /// How many more there are.
    pub behind: u64,
}

impl Source for FeedSource {
    fn name(&self) -> &str {
        &self.name
    }

    fn open(&self, positions: Positions) -> Batches {
        let (give, take) = mpsc::channel(BATCHES_MAX);
        let (http, url) = (self.http.clone(), format!("{}/v1/feed", self.base));
        let token = Arc::clone(&self.token);
        let known = positions.get(WHOLE).and_then(|next| next.parse().ok());
        let mut next: i64 = known.unwrap_or(1);
        tokio::spawn(async move {
            let mut retries = backoff();
            while !give.is_closed() {
                let query = [
                    ("from", next.to_string()),
                    ("max", BATCH_MAX.to_string()),
                    ("wait_ms", FEED_WAIT_MS.to_string()),
                ];
                let request = http.get(&url).bearer_auth(token()).query(&query);
                let page = async {
                    let answer = request.send().await?.error_for_status()?;
                    answer.json::<FeedPage>().await
                };
                match page.await {
                    Ok(page) => {
                        retries = backoff();
                        next = page.next;
                        if page.messages.is_empty() {
                            continue;
                        }
                        let messages = page.messages.into_iter();
                        let batch = Batch {
                            messages: messages
                                .map(|body| Bytes::from(body.get().to_owned()))
                                .collect(),
                            after: Positions::from([(WHOLE.to_owned(), next.to_string())]),
                            behind: Some(page.behind),
                        };
                        let is_full = batch.messages.len() >= BATCH_MAX;
                        if give.send(Ok(batch)).await.is_err() {
                            return;
                        }
                        if !is_full {
                            tokio::time::sleep(GATHER).await;
                        }
                    }
                    Err(why)
                        if why
                            .status()
                            .is_some_and(|s| matches!(s.as_u16(), 400..=428)) =>
                    {
                        let refused = SourceError::Refused(format!("the feed was refused: {why}"));
                        // Nobody listens any more when the receiver is gone.
                        let _ = give.send(Err(refused)).await;
                        return;
                    }
                    Err(_) => tokio::time::sleep(retries.next().unwrap_or(LOOK)).await,
                }
            }
        });
        take
    }
}
