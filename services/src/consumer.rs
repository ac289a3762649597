//! How does a service consume, exactly once in effect?
//!
//! One transaction of the service's own database holds everything a batch leads to: the ids of its events (inbox), the
//! change of state, what the service says because of it (outbox), and the positions to go on from. So after a crash at any
//! moment, and after any repetition, each event has had its effect once.
//!
//! - A database that fails is tried again, with exponential backoff and jitter, for as long as it takes; how far behind the
//!   service is meanwhile is said by its [`Gauges`].
//! - An event that cannot be applied is tried [`ATTEMPTS_MAX`] times, one that cannot even be read not at all; then it goes to
//!   the dead letters with the reason, and the rest of the batch goes on. `replay_dead` applies them again.
//! - Two processes on one database: the newer one fences the older by the generation, which every transaction checks.
//!
//! Not here: where messages come from (`source`), what is done with them (each [`Service`]).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use cabrank_events::business::{Business, BusinessRecord};
use cabrank_events::{EventRecord, Time};
use serde::Deserialize;
use sqlx::any::AnyArguments;
use sqlx::query::Query;
use sqlx::{Any, AnyConnection, AssertSqlSafe, Row, Transaction};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::database::Database;
use crate::gauges::{Gauges, Waits};
use crate::source::{Batch, Positions, Source, SourceError, backoff};
use crate::steps::Steps;

/// How often an event is tried before it is set aside.
pub const ATTEMPTS_MAX: u32 = 5;
/// Ids kept to recognise events that come again, by number. Positions alone would do; this is the second line.
pub const INBOX_KEPT: i64 = 200_000;
/// Own messages kept for readers, by number. A reader further behind is told that it is too late.
pub const OUTBOX_KEPT: i64 = 1_000_000;
/// Most dead letters applied again by one call.
pub const REPLAY_MAX: i64 = 10_000;
/// Batches between two clean-ups.
const TIDY_EVERY: u64 = 256;
/// How often deadlines are looked at.
const TICK: Duration = Duration::from_millis(200);
/// Where dead letters are told of.
pub const DEAD_LETTERS: &str = "dead-letters";

/// What was said, decoded.
#[derive(Clone, Debug, PartialEq)]
pub enum Said {
    /// By the engine.
    Ride(EventRecord),
    /// By a service.
    Business(BusinessRecord),
}

/// One message to apply.
#[derive(Clone, Debug)]
pub struct Message {
    /// Unique within its source.
    pub id: String,
    /// What it says.
    pub said: Said,
    /// As it came.
    pub body: Bytes,
}

impl Message {
    /// When it was said.
    pub fn time(&self) -> Time {
        match &self.said {
            Said::Ride(record) => record.time,
            Said::Business(record) => record.time,
        }
    }
}

/// Why a batch was not applied. Nothing of it was.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    /// The database failed: the batch is tried again as it is.
    #[error("the database failed: {0}")]
    Database(#[from] sqlx::Error),
    /// This one message cannot be applied: the others can.
    #[error("{id}: {reason}")]
    Poison {
        /// The message.
        id: String,
        /// Why, for a person.
        reason: String,
    },
}

impl Trouble {
    /// The message `id` cannot be applied.
    pub fn poison(id: &str, reason: impl Into<String>) -> Trouble {
        Trouble::Poison {
            id: id.to_owned(),
            reason: reason.into(),
        }
    }
}

/// Why a consumer ended.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A source cannot go on.
    #[error("source {source_name}: {why}")]
    Source {
        /// Which.
        source_name: String,
        /// Why.
        why: SourceError,
    },
    /// Another process has taken this database over.
    #[error("another process has taken this database over")]
    Replaced,
    /// The database failed where nothing can be tried again.
    #[error("the database failed: {0}")]
    Database(#[from] sqlx::Error),
    /// The outbox has dropped messages that no topic has.
    #[error(
        "messages {from} to {first} were dropped from the outbox before they were told to the topics: to go on without them delete the consumer group of this service's relay"
    )]
    Untold {
        /// The first that is missing.
        from: i64,
        /// The first that is there.
        first: i64,
    },
    /// The topics hold what another database said.
    #[error(
        "the topics hold {told} messages of this service and its database has said {last}: it is not the database that spoke there; use that one, or another kafka.prefix"
    )]
    AnotherPast {
        /// Told by whoever spoke before.
        told: i64,
        /// Said by this database.
        last: i64,
    },
}

/// A transaction under way, and what is to be said once it is committed.
pub struct Work {
    tx: Transaction<'static, Any>,
    service: &'static str,
    now: Time,
    says: Vec<Business>,
    steps: Steps,
}

impl Work {
    /// For statements of the service's own tables.
    pub fn sql(&mut self) -> &mut AnyConnection {
        &mut self.tx
    }

    /// When this transaction began, on the wall clock.
    pub fn now(&self) -> Time {
        self.now
    }

    /// Says it to whoever reads this service's outbox, if the transaction commits.
    pub fn say(&mut self, said: impl Into<Business>) {
        self.says.push(said.into());
    }

    /// Commits. True: something was said.
    async fn commit(mut self) -> Result<bool, sqlx::Error> {
        let says = std::mem::take(&mut self.says);
        if !says.is_empty() {
            let first = next_number(&mut self.tx, "outbox", says.len()).await?;
            let (service, now) = (self.service, self.now);
            let rows = (first..).zip(says).map(|(seq, said)| {
                let record = BusinessRecord {
                    id: format!("{service}-{seq}"),
                    time: now,
                    traceparent: self.steps.of(&said.subject()),
                    said,
                };
                let body = String::from_utf8_lossy(&record.to_json()).into_owned();
                (
                    seq,
                    record.said.topic().to_owned(),
                    record.said.subject(),
                    body,
                )
            });
            put_out(&mut self.tx, rows.collect()).await?;
            self.tx.commit().await?;
            return Ok(true);
        }
        self.tx.commit().await?;
        Ok(false)
    }
}

async fn put_out(
    sql: &mut AnyConnection,
    rows: Vec<(i64, String, String, String)>,
) -> Result<(), sqlx::Error> {
    for rows in rows.chunks(256) {
        let text = format!(
            "INSERT INTO outbox (seq, topic, key, body) VALUES {}",
            placeholders(rows.len(), 4)
        );
        let mut query = statement(text);
        for (seq, topic, key, body) in rows {
            query = query.bind(*seq).bind(topic).bind(key).bind(body);
        }
        query.execute(&mut *sql).await?;
    }
    Ok(())
}

/// A statement made of parts of ours; values are bound, never written into it.
pub fn statement<'q>(text: String) -> Query<'q, Any, AnyArguments> {
    sqlx::query(AssertSqlSafe(text))
}

/// `($1,$2),($3,$4)` for two rows of two columns.
pub fn placeholders(rows: usize, columns: usize) -> String {
    let mut text = String::new();
    for row in 0..rows {
        text += if row == 0 { "(" } else { ",(" };
        for column in 0..columns {
            let number = row * columns + column + 1;
            text += &format!("{}${number}", if column == 0 { "" } else { "," });
        }
        text += ")";
    }
    text
}

/// Takes `count` numbers of a counter and returns the first. The row stays locked until the commit, so numbers appear in
/// the order of commits and a reader never sees a gap that is filled later.
async fn next_number(
    sql: &mut AnyConnection,
    counter: &'static str,
    count: usize,
) -> Result<i64, sqlx::Error> {
    let count = i64::try_from(count).unwrap_or(i64::MAX);
    let last: i64 = sqlx::query_scalar(
        "UPDATE counters SET value = value + $1 WHERE name = $2 RETURNING value",
    )
    .bind(count)
    .bind(counter)
    .fetch_one(&mut *sql)
    .await?;
    Ok(last - count + 1)
}

/// What one service does with messages. A call that fails has changed nothing: its transaction is rolled back.
pub trait Service: Send {
    /// Names its messages and metrics.
    fn name(&self) -> &'static str;

    /// Applies messages, none of which was applied before.
    fn apply(
        &mut self,
        work: &mut Work,
        messages: &[Message],
    ) -> impl Future<Output = Result<(), Trouble>> + Send;

    /// Is a deadline over, or other work of its own due? Asked several times a second, outside any transaction.
    fn is_due(
        &self,
        _database: &Database,
        _now: Time,
    ) -> impl Future<Output = Result<bool, sqlx::Error>> + Send {
        async { Ok(false) }
    }

    /// Does what is due.
    fn act(&mut self, _work: &mut Work) -> impl Future<Output = Result<(), Trouble>> + Send {
        async { Ok(()) }
    }

    /// After each commit: what was decided is durable now.
    fn committed(&mut self) {}
}

/// What a person at the desk asks of a running consumer.
pub enum Request {
    /// Apply the dead letters again; how many went through and how many did not.
    ReplayDead(oneshot::Sender<Replayed>),
}

/// What became of dead letters.
#[derive(
    Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema,
)]
pub struct Replayed {
    /// Applied now.
    pub applied: u64,
    /// Still there, each with its reason.
    pub left: Vec<(String, String)>,
}

/// A consumer's surroundings, shared with its HTTP side.
#[derive(Clone)]
pub struct Consumer {
    /// Its database.
    pub database: Database,
    /// What can be seen of it.
    pub gauges: Arc<Gauges>,
    /// Rung after each commit that said something.
    pub news: Arc<Notify>,
    /// Of rides that are traced.
    pub steps: Steps,
    generation: i64,
    service: &'static str,
}

/// The wall clock.
pub fn wall() -> Time {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    Time(since.map_or(0, |since| since.as_millis() as i64))
}

impl Consumer {
    /// Takes the database over: whoever used it before cannot commit any more.
    pub async fn take(database: Database, service: &'static str) -> Result<Consumer, sqlx::Error> {
        let mut tx = database.begin().await?;
        let generation = next_number(&mut tx, "generation", 1).await?;
        tx.commit().await?;
        Ok(Consumer {
            database,
            gauges: Arc::default(),
            news: Arc::default(),
            steps: Steps::default(),
            generation,
            service,
        })
    }

    /// Whose it is.
    pub fn service(&self) -> &'static str {
        self.service
    }

    /// A transaction that commits only while nobody has taken over.
    pub async fn begin(&self) -> Result<Work, RunError> {
        let mut tx = self.database.begin().await?;
        let kept = sqlx::query(
            "UPDATE counters SET value = value WHERE name = 'generation' AND value = $1",
        )
        .bind(self.generation)
        .execute(&mut *tx)
        .await?;
        if kept.rows_affected() != 1 {
            return Err(RunError::Replaced);
        }
        Ok(Work {
            tx,
            service: self.service,
            now: wall(),
            says: Vec::new(),
            steps: self.steps.clone(),
        })
    }

    /// Commits and wakes readers.
    pub async fn commit(&self, work: Work) -> Result<(), sqlx::Error> {
        if work.commit().await? {
            self.news.notify_waiters();
        }
        Ok(())
    }

    async fn positions(&self, source: &str) -> Result<Positions, sqlx::Error> {
        let rows = sqlx::query("SELECT place, next FROM positions WHERE source = $1")
            .bind(source)
            .fetch_all(self.database.pool())
            .await?;
        rows.iter()
            .map(|row| Ok((row.try_get("place")?, row.try_get("next")?)))
            .collect()
    }

    /// Consumes until `stop`, or until every source has ended.
    pub async fn run<S: Service>(
        &self,
        service: &mut S,
        sources: &[Arc<dyn Source>],
        mut requests: mpsc::Receiver<Request>,
        stop: CancellationToken,
    ) -> Result<(), RunError> {
        let (give, mut take) = mpsc::channel(1);
        for (number, source) in sources.iter().enumerate() {
            let mut batches = source.open(self.positions(source.name()).await?);
            let (give, gauges) = (give.clone(), Arc::clone(&self.gauges));
            tokio::spawn(async move {
                while let Some(batch) = batches.recv().await {
                    let batch = batch.map(|batch| ReadBatch::of(batch, &gauges));
                    if give.send((number, batch)).await.is_err() {
                        break;
                    }
                }
            });
        }
        drop(give);
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut batches = 0_u64;
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                next = take.recv() => {
                    let Some((number, batch)) = next else { return Ok(()) };
                    let source = sources[number].name();
                    let batch = batch.map_err(|why| RunError::Source {
                        source_name: source.to_owned(),
                        why,
                    })?;
                    self.apply_read(service, source, batch, &stop).await?;
                    batches += 1;
                    if batches.is_multiple_of(TIDY_EVERY) {
                        self.unless_away(self.tidy().await)?;
                    }
                }
                _ = tick.tick() => {
                    let acted = self.act(service).await;
                    self.unless_away(acted)?;
                }
                Some(Request::ReplayDead(answer)) = requests.recv() => {
                    let replayed = self.replay_dead(service).await;
                    if let Some(replayed) = self.unless_away(replayed)? {
                        // Whoever asked may have gone.
                        let _ = answer.send(replayed);
                    }
                }
            }
        }
    }

    /// What a database that is away has kept from being done is due again later: it ends no service.
    fn unless_away<T>(&self, outcome: Result<T, RunError>) -> Result<Option<T>, RunError> {
        match outcome {
            Ok(done) => Ok(Some(done)),
            Err(RunError::Database(why)) => {
                warn!(service = self.service, %why, "the database fails: it is tried again");
                Ok(None)
            }
            Err(why) => Err(why),
        }
    }

    async fn act<S: Service>(&self, service: &mut S) -> Result<(), RunError> {
        // What fails here is due again at the next tick.
        if !service
            .is_due(&self.database, wall())
            .await
            .unwrap_or(false)
        {
            return Ok(());
        }
        let mut work = self.begin().await?;
        match service.act(&mut work).await {
            Ok(()) => {
                self.commit(work).await?;
                service.committed();
            }
            Err(why) => warn!(service = self.service, %why, "what was due is tried again"),
        }
        Ok(())
    }

    /// Applies one batch, whatever it takes.
    pub async fn apply<S: Service>(
        &self,
        service: &mut S,
        source: &str,
        batch: Batch,
        stop: &CancellationToken,
    ) -> Result<(), RunError> {
        let read = ReadBatch::of(batch, &self.gauges);
        self.apply_read(service, source, read, stop).await
    }

    async fn apply_read<S: Service>(
        &self,
        service: &mut S,
        source: &str,
        batch: ReadBatch,
        stop: &CancellationToken,
    ) -> Result<(), RunError> {
        let began = std::time::Instant::now();
        let ReadBatch {
            messages,
            mut dead,
            after,
            waits: _waits,
        } = batch;
        // They end when the batch is applied.
        let _steps = self.steps.take_in(self.service, &messages);
        let mut attempts: HashMap<String, u32> = HashMap::new();
        let mut retries = backoff();
        loop {
            match self
                .try_apply(service, source, &messages, &dead, &after)
                .await
            {
                Ok(applied) => {
                    service.committed();
                    let repeated = messages.len() + dead.len() - applied;
                    Gauges::add(&self.gauges.applied, applied.saturating_sub(dead.len()));
                    Gauges::add(&self.gauges.repeated, repeated);
                    Gauges::add(&self.gauges.dead, dead.len());
                    let busy = began.elapsed().as_micros();
                    Gauges::add(&self.gauges.busy_us, busy as usize);
                    if let Some(newest) = messages.iter().map(Message::time).max() {
                        self.gauges.committed(newest, wall());
                    }
                    return Ok(());
                }
                Err(Failed::Trouble(Trouble::Poison { id, reason })) => {
                    let tried = attempts.entry(id.clone()).or_insert(0);
                    *tried += 1;
                    if *tried >= ATTEMPTS_MAX {
                        warn!(service = self.service, %id, %reason, "set aside");
                        let body = messages.iter().find(|message| message.id == id);
                        let body = body.map(|message| message.body.clone()).unwrap_or_default();
                        dead.push(Dead { id, reason, body });
                        retries = backoff();
                        continue;
                    }
                }
                Err(Failed::Trouble(Trouble::Database(why))) => {
                    warn!(service = self.service, %why, "the batch is tried again");
                }
                Err(Failed::Ends(why)) => return Err(why),
            }
            Gauges::add(&self.gauges.retries, 1);
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(retries.next().unwrap_or(TICK)) => {}
            }
        }
    }

    /// How many were new.
    async fn try_apply<S: Service>(
        &self,
        service: &mut S,
        source: &str,
        messages: &[Message],
        dead: &[Dead],
        after: &Positions,
    ) -> Result<usize, Failed> {
        let mut work = match self.begin().await {
            Err(RunError::Database(why)) => return Err(Failed::Trouble(why.into())),
            begun => begun.map_err(Failed::Ends)?,
        };
        let set_aside: HashSet<&str> = dead.iter().map(|dead| dead.id.as_str()).collect();
        let ids = messages.iter().map(|message| message.id.as_str());
        let undecoded = dead.iter().map(|dead| dead.id.as_str());
        let ids: Vec<&str> = ids.chain(undecoded).collect();
        let new = note_new(&mut work.tx, source, &ids)
            .await
            .map_err(Trouble::from)?;
        // An id twice in one batch is new once.
        let mut seen = HashSet::new();
        let due: Vec<Message> = messages
            .iter()
            .filter(|message| {
                new.contains(&message.id)
                    && !set_aside.contains(message.id.as_str())
                    && seen.insert(message.id.as_str())
            })
            .cloned()
            .collect();
        if !due.is_empty() {
            service.apply(&mut work, &due).await?;
        }
        for dead in dead.iter().filter(|dead| new.contains(&dead.id)) {
            bury(&mut work, source, dead).await.map_err(Trouble::from)?;
        }
        for (place, next) in after {
            sqlx::query(
                "INSERT INTO positions (source, place, next) VALUES ($1, $2, $3) \
                 ON CONFLICT (source, place) DO UPDATE SET next = excluded.next",
            )
            .bind(source)
            .bind(place)
            .bind(next)
            .execute(&mut *work.tx)
            .await
            .map_err(Trouble::from)?;
        }
        self.commit(work).await.map_err(Trouble::from)?;
        Ok(new.len())
    }

    /// Applies the dead letters again, one by one, oldest first; what still fails stays with its newest reason.
    pub async fn replay_dead<S: Service>(&self, service: &mut S) -> Result<Replayed, RunError> {
        let rows = sqlx::query(
            "SELECT source, id, body FROM dead_letters ORDER BY set_aside_ms, source, id LIMIT $1",
        )
        .bind(REPLAY_MAX)
        .fetch_all(self.database.pool())
        .await?;
        let mut replayed = Replayed::default();
        for row in rows {
            let (source, id): (String, String) = (row.try_get("source")?, row.try_get("id")?);
            let body: String = row.try_get("body")?;
            let (messages, undecoded) = decode(&[Bytes::from(body)]);
            let mut work = self.begin().await?;
            let outcome = match (messages.as_slice(), undecoded.first()) {
                ([_], None) => service.apply(&mut work, &messages).await,
                (_, dead) => {
                    let reason = dead.map_or("nothing to read", |dead| dead.reason.as_str());
                    Err(Trouble::poison(&id, reason))
                }
            };
            match outcome {
                Ok(()) => {
                    sqlx::query("DELETE FROM dead_letters WHERE source = $1 AND id = $2")
                        .bind(&source)
                        .bind(&id)
                        .execute(&mut *work.tx)
                        .await?;
                    self.commit(work).await?;
                    service.committed();
                    info!(service = self.service, %id, "a dead letter was applied");
                    replayed.applied += 1;
                }
                Err(Trouble::Poison { reason, .. }) => replayed.left.push((id, reason)),
                Err(Trouble::Database(why)) => return Err(why.into()),
            }
        }
        Ok(replayed)
    }

    /// Forgets positions and inbox of `source`: everything is consumed anew. The caller has emptied what is to be
    /// rebuilt, in the same transaction.
    pub async fn begin_anew(&self, work: &mut Work, source: &str) -> Result<(), sqlx::Error> {
        for text in [
            "DELETE FROM positions WHERE source = $1",
            "DELETE FROM inbox WHERE source = $1",
        ] {
            sqlx::query(text)
                .bind(source)
                .execute(&mut *work.tx)
                .await?;
        }
        Ok(())
    }

    async fn tidy(&self) -> Result<(), RunError> {
        let mut work = self.begin().await?;
        for text in [
            "DELETE FROM inbox WHERE seen <= (SELECT value FROM counters WHERE name = 'inbox') - $1",
            "DELETE FROM outbox WHERE seq <= (SELECT value FROM counters WHERE name = 'outbox') - $1",
        ] {
            let kept = if text.contains("inbox") {
                INBOX_KEPT
            } else {
                OUTBOX_KEPT
            };
            sqlx::query(text).bind(kept).execute(&mut *work.tx).await?;
        }
        work.tx.commit().await?;
        Ok(())
    }
}

enum Failed {
    Trouble(Trouble),
    Ends(RunError),
}

impl From<Trouble> for Failed {
    fn from(trouble: Trouble) -> Failed {
        Failed::Trouble(trouble)
    }
}

/// One event that is set aside.
struct Dead {
    id: String,
    reason: String,
    body: Bytes,
}

/// A batch that was read and waits to be applied.
struct ReadBatch {
    messages: Vec<Message>,
    dead: Vec<Dead>,
    after: Positions,
    waits: Waits,
}

impl ReadBatch {
    fn of(batch: Batch, gauges: &Arc<Gauges>) -> ReadBatch {
        let (messages, dead) = decode(&batch.messages);
        let oldest = messages.iter().map(Message::time).min();
        ReadBatch {
            waits: gauges.read(batch.messages.len(), oldest, batch.behind.unwrap_or(0)),
            messages,
            dead,
            after: batch.after,
        }
    }
}

/// What can be read, and what cannot with the reason.
fn decode(bodies: &[Bytes]) -> (Vec<Message>, Vec<Dead>) {
    #[derive(Deserialize)]
    struct Peek {
        id: String,
        #[serde(rename = "type")]
        kind: String,
    }
    let (mut messages, mut dead) = (Vec::with_capacity(bodies.len()), Vec::new());
    for body in bodies {
        let peek = match serde_json::from_slice::<Peek>(body) {
            Ok(peek) => peek,
            Err(why) => {
                // Without an id of its own it is known by what it holds.
                let id = format!("unreadable-{:08x}", fingerprint(body));
                let reason = format!("not a CloudEvent: {why}");
                dead.push(Dead {
                    id,
                    reason,
                    body: body.clone(),
                });
                continue;
            }
        };
        let is_business = ["cabrank.order.", "cabrank.payment.", "cabrank.demand."]
            .iter()
            .any(|begins| peek.kind.starts_with(begins));
        let said = if is_business {
            BusinessRecord::from_json(body).map(Said::Business)
        } else {
            EventRecord::from_json(body).map(Said::Ride)
        };
        match said {
            Ok(said) => messages.push(Message {
                id: peek.id,
                said,
                body: body.clone(),
            }),
            Err(why) => dead.push(Dead {
                id: peek.id,
                reason: why.to_string(),
                body: body.clone(),
            }),
        }
    }
    (messages, dead)
}

/// FNV-1a: short, the same everywhere.
fn fingerprint(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Notes the ids and returns those never seen before.
async fn note_new(
    sql: &mut AnyConnection,
    source: &str,
    ids: &[&str],
) -> Result<HashSet<String>, sqlx::Error> {
    let mut new = HashSet::with_capacity(ids.len());
    // Each id once: a statement must not meet its own row.
    let unique: BTreeMap<&str, ()> = ids.iter().map(|id| (*id, ())).collect();
    let unique: Vec<&str> = unique.into_keys().collect();
    if unique.is_empty() {
        return Ok(new);
    }
    let first = next_number(sql, "inbox", unique.len()).await?;
    for (chunk, ids) in unique.chunks(256).enumerate() {
        let text = format!(
            "INSERT INTO inbox (source, id, seen) VALUES {} ON CONFLICT DO NOTHING RETURNING id",
            placeholders(ids.len(), 3)
        );
        let mut query = statement(text);
        for (number, id) in (first + chunk as i64 * 256..).zip(ids) {
            query = query.bind(source).bind(*id).bind(number);
        }
        for row in query.fetch_all(&mut *sql).await? {
            new.insert(row.try_get("id")?);
        }
    }
    Ok(new)
}

/// Sets an event aside, and says so on the dead-letter topic.
async fn bury(work: &mut Work, source: &str, dead: &Dead) -> Result<(), sqlx::Error> {
    let body = String::from_utf8_lossy(&dead.body).into_owned();
    sqlx::query(
        "INSERT INTO dead_letters (source, id, reason, body, set_aside_ms) VALUES ($1, $2, $3, $4, $5) \
         ON CONFLICT (source, id) DO UPDATE SET reason = excluded.reason",
    )
    .bind(source)
    .bind(&dead.id)
    .bind(&dead.reason)
    .bind(&body)
    .bind(work.now.0)
    .execute(&mut *work.tx)
    .await?;
    let told = serde_json::json!({
        "service": work.service, "source": source, "id": dead.id, "reason": dead.reason, "event": body,
    });
    let seq = next_number(&mut work.tx, "outbox", 1).await?;
    let row = (
        seq,
        DEAD_LETTERS.to_owned(),
        dead.id.clone(),
        told.to_string(),
    );
    put_out(&mut work.tx, vec![row]).await
}
