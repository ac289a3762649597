//! The payment service: holds, takes and gives back money at a provider, each once.
//!
//! What the order service asks for becomes a row of `calls` in the transaction that consumes the asking. A worker makes the
//! calls: at most [`Config::calls_at_once`] at a time (bulkhead), each with a timeout, none while the circuit breaker is open.
//! An answer is written together with what is said about it. A crash between call and answer repeats the call under the same
//! idempotency key.
//!
//! Not here: when money is to move (`order::saga`), the provider's language (`provider`).

pub mod http;
pub mod provider;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use cabrank_events::RideId;
use cabrank_events::business::{
    Authorised, Business, Captured, Money, ProviderState, Refunded, Refused, Voided,
};
use cabrank_spans::{Side, begin};
use failsafe::backoff::EqualJittered;
use failsafe::failure_policy::{ConsecutiveFailures, consecutive_failures};
use failsafe::{Instrument, StateMachine};
use serde::{Deserialize, Serialize};
use sqlx::any::AnyRow;
use sqlx::{AnyConnection, Row};
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::consumer::{Consumer, Message, RunError, Said, Service, Trouble, Work, wall};
use crate::database::{Database, Step};
use provider::{Answer, Ask, NoAnswer, Provider};

/// The tables of this service.
pub const STEPS: &[Step] = &[(2, "payment", include_str!("../../migrations/payment.sql"))];
/// Answers written by one transaction.
const ANSWERS_MAX: usize = 256;
/// How often the worker looks for calls whose time has come.
const LOOK: Duration = Duration::from_millis(100);

/// How the provider is called.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Calls under way at once.
    pub calls_at_once: usize,
    /// A call without an answer is given up after this, ms.
    pub timeout_ms: u64,
    /// So many failures in a row open the breaker.
    pub failures_to_open: u32,
    /// How long the open breaker waits before it lets calls through again, in whole seconds; grows to the second number.
    pub open_s: (u64, u64),
    /// First and longest pause before the same call is repeated, ms.
    pub retry_ms: (u64, u64),
}

impl Default for Config {
    fn default() -> Config {
        Config {
            calls_at_once: 32,
            timeout_ms: 2_000,
            failures_to_open: 10,
            open_s: (1, 10),
            retry_ms: (100, 10_000),
        }
    }
}

/// The calls of a ride, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Authorise,
    Capture,
    Void,
    Refund,
}

impl Kind {
    const ALL: [Kind; 4] = [Kind::Authorise, Kind::Capture, Kind::Void, Kind::Refund];

    fn step(self) -> i64 {
        match self {
            Kind::Authorise => 1,
            Kind::Capture => 2,
            Kind::Void => 3,
            Kind::Refund => 4,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Kind::Authorise => "authorise",
            Kind::Capture => "capture",
            Kind::Void => "void",
            Kind::Refund => "refund",
        }
    }
}

/// Where a ride's money is, as stored.
mod state {
    pub const ASKED: &str = "asked";
    pub const HELD: &str = "held";
    pub const REFUSED: &str = "refused";
    pub const CAPTURED: &str = "captured";
    pub const VOIDED: &str = "voided";
}

/// Consumes what the order service asks for.
#[derive(Default)]
pub struct PaymentService {
    due: Arc<Notify>,
}

impl PaymentService {
    /// Rung when there is something to call the provider about.
    pub fn due(&self) -> Arc<Notify> {
        Arc::clone(&self.due)
    }
}

impl Service for PaymentService {
    fn name(&self) -> &'static str {
        "payment"
    }

    async fn apply(&mut self, work: &mut Work, messages: &[Message]) -> Result<(), Trouble> {
        for message in messages {
            let Said::Business(record) = &message.said else {
                continue;
            };
            match &record.said {
                Business::AuthorisationAsked(asked) => {
                    let money = check(&message.id, &asked.amount)?;
                    sqlx::query(
                        "INSERT INTO payments (ride, rider, method, held_minor, currency, state, captured_minor, \
                         refunded_minor) VALUES ($1, $2, $3, $4, $5, $6, 0, 0) ON CONFLICT DO NOTHING",
                    )
                    .bind(asked.ride.to_string())
                    .bind(asked.rider.to_string())
                    .bind(&asked.method)
                    .bind(money.minor)
                    .bind(&money.currency)
                    .bind(state::ASKED)
                    .execute(work.sql())
                    .await?;
                    ask(work, asked.ride, Kind::Authorise, money.minor).await?;
                }
                Business::CaptureAsked(asked) => {
                    let money = check(&message.id, &asked.amount)?;
                    known(work, &message.id, asked.ride).await?;
                    ask(work, asked.ride, Kind::Capture, money.minor).await?;
                }
                Business::VoidAsked(asked) => {
                    known(work, &message.id, asked.ride).await?;
                    ask(work, asked.ride, Kind::Void, 0).await?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn committed(&mut self) {
        self.due.notify_one();
    }
}

fn check<'a>(id: &str, money: &'a Money) -> Result<&'a Money, Trouble> {
    if money.minor <= 0 {
        return Err(Trouble::poison(id, format!("an amount of {}", money.minor)));
    }
    Ok(money)
}

async fn known(work: &mut Work, id: &str, ride: RideId) -> Result<(), Trouble> {
    match load(work.sql(), &ride.to_string()).await? {
        Some(_) => Ok(()),
        None => Err(Trouble::poison(
            id,
            format!("no authorisation was asked for ride {ride}"),
        )),
    }
}

/// Notes a call; one that was made already says again what became of it.
async fn ask(work: &mut Work, ride: RideId, kind: Kind, amount_minor: i64) -> Result<(), Trouble> {
    let (text, now) = (ride.to_string(), work.now());
    let done = sqlx::query(
        "INSERT INTO calls (ride, step, amount_minor, is_done, attempts, next_ms) VALUES ($1, $2, $3, 0, 0, $4) \
         ON CONFLICT (ride, step) DO UPDATE SET amount_minor = calls.amount_minor RETURNING is_done",
    )
    .bind(&text)
    .bind(kind.step())
    .bind(amount_minor)
    .bind(now.0)
    .fetch_one(work.sql())
    .await?;
    if done.try_get::<i64, _>("is_done")? == 1
        && let Some(payment) = load(work.sql(), &text).await?
    {
        say(work, ride, &payment);
    }
    Ok(())
}

/// A row of `payments`.
#[derive(Clone, Debug, PartialEq, Serialize, schemars::JsonSchema)]
pub struct Payment {
    /// The ride.
    pub ride: String,
    /// `asked`, `held`, `refused`, `captured`, `voided`.
    pub state: String,
    /// What was asked to be held.
    pub held_minor: i64,
    /// ISO 4217.
    pub currency: String,
    /// What was taken.
    pub captured_minor: i64,
    /// What was given back.
    pub refunded_minor: i64,
    /// Why not.
    pub why: Option<String>,
    #[serde(skip)]
    method: String,
    #[serde(skip)]
    authorisation: Option<String>,
}

fn from_row(row: &AnyRow) -> Result<Payment, sqlx::Error> {
    Ok(Payment {
        ride: row.try_get("ride")?,
        state: row.try_get("state")?,
        held_minor: row.try_get("held_minor")?,
        currency: row.try_get("currency")?,
        captured_minor: row.try_get("captured_minor")?,
        refunded_minor: row.try_get("refunded_minor")?,
        why: row.try_get("why")?,
        method: row.try_get("method")?,
        authorisation: row.try_get("authorisation")?,
    })
}

/// What is known of a ride's money.
pub async fn load(sql: &mut AnyConnection, ride: &str) -> Result<Option<Payment>, sqlx::Error> {
    let row = sqlx::query("SELECT * FROM payments WHERE ride = $1")
        .bind(ride)
        .fetch_optional(sql)
        .await?;
    row.as_ref().map(from_row).transpose()
}

/// Says where a ride's money is.
fn say(work: &mut Work, ride: RideId, payment: &Payment) {
    let money = |minor| Money {
        minor,
        currency: payment.currency.clone(),
    };
    match payment.state.as_str() {
        state::HELD => work.say(Authorised {
            ride,
            authorisation: payment.authorisation.clone().unwrap_or_default(),
            amount: money(payment.held_minor),
        }),
        state::REFUSED => work.say(Refused {
            ride,
            why: payment.why.clone().unwrap_or_default(),
        }),
        state::CAPTURED if payment.refunded_minor > 0 => {
            work.say(Refunded {
                ride,
                amount: money(payment.refunded_minor),
            });
        }
        state::CAPTURED => work.say(Captured {
            ride,
            amount: money(payment.captured_minor),
        }),
        state::VOIDED => work.say(Voided { ride }),
        _ => {}
    }
}

/// What can be seen of the calls.
#[derive(Debug, Default)]
pub struct ProviderGauges {
    /// Calls made.
    pub calls: AtomicU64,
    /// Calls without an answer.
    pub failures: AtomicU64,
    /// Times that the breaker kept a call back.
    pub kept_back: AtomicU64,
    /// 0 closed, 1 half open, 2 open.
    pub breaker: AtomicI64,
    changes: std::sync::Mutex<Vec<&'static str>>,
}

// Orderings: Relaxed, numbers for people to look at.
impl ProviderGauges {
    /// In the words of Prometheus.
    pub fn to_prometheus(&self) -> String {
        format!(
            "# HELP cabrank_provider_calls_total Calls to the payment provider.\n\
             # TYPE cabrank_provider_calls_total counter\ncabrank_provider_calls_total {}\n\
             # HELP cabrank_provider_failures_total Calls without an answer.\n\
             # TYPE cabrank_provider_failures_total counter\ncabrank_provider_failures_total {}\n\
             # HELP cabrank_provider_kept_back_total Calls the breaker kept back.\n\
             # TYPE cabrank_provider_kept_back_total counter\ncabrank_provider_kept_back_total {}\n\
             # HELP cabrank_provider_breaker 0 closed, 1 half open, 2 open.\n\
             # TYPE cabrank_provider_breaker gauge\ncabrank_provider_breaker {}\n",
            self.calls.load(Ordering::Relaxed),
            self.failures.load(Ordering::Relaxed),
            self.kept_back.load(Ordering::Relaxed),
            self.breaker.load(Ordering::Relaxed),
        )
    }

    fn change(&self, number: i64, name: &'static str) {
        self.breaker.store(number, Ordering::Relaxed);
        self.lock().push(name);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<&'static str>> {
        self.changes
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Hears the breaker.
struct Ear(Arc<ProviderGauges>);

impl Instrument for Ear {
    fn on_call_rejected(&self) {
        self.0.kept_back.fetch_add(1, Ordering::Relaxed);
    }

    fn on_open(&self) {
        self.0.change(2, "open");
    }

    fn on_half_open(&self) {
        self.0.change(1, "half_open");
    }

    fn on_closed(&self) {
        self.0.change(0, "closed");
    }
}

type Breaker = StateMachine<ConsecutiveFailures<EqualJittered>, Ear>;

/// A call that is to be made.
struct Due {
    payment: Payment,
    kind: Kind,
    amount_minor: i64,
    attempts: i64,
}

/// Makes the calls.
pub struct Worker {
    consumer: Consumer,
    provider: Arc<dyn Provider>,
    config: Config,
    breaker: Arc<Breaker>,
    gauges: Arc<ProviderGauges>,
    bulkhead: Arc<Semaphore>,
    due: Arc<Notify>,
}

type Heard = (Due, Result<Answer, NoAnswer>);

impl Worker {
    /// Calls `provider` for what `consumer`'s service was asked.
    pub fn new(
        consumer: Consumer,
        provider: Arc<dyn Provider>,
        config: Config,
        due: Arc<Notify>,
    ) -> Worker {
        let gauges: Arc<ProviderGauges> = Arc::default();
        let (first, longest) = config.open_s;
        // The library wants at least a second, and a longest pause above the first.
        let first = first.max(1);
        let pause = failsafe::backoff::equal_jittered(
            Duration::from_secs(first),
            Duration::from_secs(longest.max(first + 1)),
        );
        let policy = consecutive_failures(config.failures_to_open.max(1), pause);
        Worker {
            consumer,
            provider,
            breaker: Arc::new(StateMachine::new(policy, Ear(Arc::clone(&gauges)))),
            gauges,
            bulkhead: Arc::new(Semaphore::new(config.calls_at_once.max(1))),
            config,
            due,
        }
    }

    /// What can be seen of the calls.
    pub fn gauges(&self) -> Arc<ProviderGauges> {
        Arc::clone(&self.gauges)
    }

    /// Works until `stop`. Calls under way then are repeated by the next start.
    pub async fn run(self, stop: CancellationToken) -> Result<(), RunError> {
        let (heard, mut answers) = mpsc::channel::<Heard>(self.config.calls_at_once.max(1));
        let mut under_way: HashSet<(String, i64)> = HashSet::new();
        loop {
            // What fails here is found again by the next look.
            if let Err(why) = self.start_calls(&heard, &mut under_way).await {
                warn!(%why, "no calls could be read");
            }
            let mut batch = Vec::new();
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = self.due.notified() => {}
                () = tokio::time::sleep(LOOK) => {}
                _ = answers.recv_many(&mut batch, ANSWERS_MAX) => {}
            }
            let changes = std::mem::take(&mut *self.gauges.lock());
            if batch.is_empty() && changes.is_empty() {
                continue;
            }
            match self.write(&batch, &changes).await {
                Ok(()) => {}
                Err(RunError::Database(why)) => {
                    // The calls are still due: they are repeated under their keys.
                    warn!(%why, "answers could not be written");
                    tokio::time::sleep(LOOK).await;
                }
                Err(why) => return Err(why),
            }
            for (due, _) in &batch {
                under_way.remove(&(due.payment.ride.clone(), due.kind.step()));
            }
        }
    }

    async fn start_calls(
        &self,
        heard: &mpsc::Sender<Heard>,
        under_way: &mut HashSet<(String, i64)>,
    ) -> Result<(), sqlx::Error> {
        let free = self.bulkhead.available_permits();
        if free == 0 {
            return Ok(());
        }
        // Those under way are still due in the table; so many more are read that free ones are found behind them.
        let most = (free + under_way.len()) as i64;
        let rows = sqlx::query(
            "SELECT p.*, c.step AS step, c.amount_minor AS amount_minor, c.attempts AS attempts FROM calls c \
             JOIN payments p ON p.ride = c.ride WHERE c.is_done = 0 AND c.next_ms <= $1 AND NOT EXISTS \
             (SELECT 1 FROM calls e WHERE e.ride = c.ride AND e.is_done = 0 AND e.step < c.step) \
             ORDER BY c.next_ms LIMIT $2",
        )
        .bind(wall().0)
        .bind(most)
        .fetch_all(self.consumer.database.pool())
        .await?;
        for row in rows {
            let (payment, step): (Payment, i64) = (from_row(&row)?, row.try_get("step")?);
            let Some(kind) = Kind::ALL.into_iter().find(|kind| kind.step() == step) else {
                continue;
            };
            if under_way.contains(&(payment.ride.clone(), step)) {
                continue;
            }
            let due = Due {
                payment,
                kind,
                amount_minor: row.try_get("amount_minor")?,
                attempts: row.try_get("attempts")?,
            };
            let needless = match (kind, due.payment.authorisation.is_some()) {
                (Kind::Authorise, _) | (_, true) => false,
                // Nothing is held: there is nothing to take, let go or give back.
                (_, false) => true,
            };
            let Ok(permit) = Arc::clone(&self.bulkhead).try_acquire_owned() else {
                break;
            };
            if !needless && !self.breaker.is_call_permitted() {
                break;
            }
            under_way.insert((due.payment.ride.clone(), step));
            let (provider, breaker) = (Arc::clone(&self.provider), Arc::clone(&self.breaker));
            let (gauges, heard) = (Arc::clone(&self.gauges), heard.clone());
            let patience = Duration::from_millis(self.config.timeout_ms);
            let subject = format!("ride/{}", due.payment.ride);
            let parent = self.consumer.steps.of(&subject);
            tokio::spawn(async move {
                let answer = if needless {
                    Ok(Answer::Refused("nothing is held".to_owned()))
                } else {
                    let name = format!("provider {}", due.kind.name());
                    let mut span = begin(name, Side::Client, parent);
                    let answer = call(&*provider, &due, patience).await;
                    if let Some(span) = &mut span {
                        span.set("answered", answer.is_ok());
                    }
                    drop(span);
                    gauges.calls.fetch_add(1, Ordering::Relaxed);
                    match &answer {
                        Ok(_) => breaker.on_success(),
                        Err(_) => {
                            gauges.failures.fetch_add(1, Ordering::Relaxed);
                            breaker.on_error();
                        }
                    }
                    answer
                };
                drop(permit);
                // The worker has stopped: the call is repeated by the next one.
                let _ = heard.send((due, answer)).await;
            });
        }
        Ok(())
    }

    /// Writes answers, and what is said about them, in one transaction.
    async fn write(&self, batch: &[Heard], changes: &[&'static str]) -> Result<(), RunError> {
        let mut work = self.consumer.begin().await?;
        for (due, answer) in batch {
            match answer {
                Ok(answer) => conclude(&mut work, due, answer).await?,
                Err(why) => {
                    tracing::debug!(ride = due.payment.ride, call = due.kind.name(), %why, "to be repeated");
                    let (first, longest) = self.config.retry_ms;
                    let pause = first
                        .saturating_mul(1 << due.attempts.clamp(0, 20))
                        .min(longest);
                    let jitter = rand::random_range(pause / 2..=pause.max(1));
                    let next = work.now().plus_ms(jitter);
                    sqlx::query("UPDATE calls SET attempts = attempts + 1, next_ms = $1 WHERE ride = $2 AND step = $3")
                        .bind(next.0)
                        .bind(&due.payment.ride)
                        .bind(due.kind.step())
                        .execute(work.sql())
                        .await?;
                }
            }
        }
        for state in changes {
            work.say(ProviderState {
                state: (*state).to_owned(),
            });
        }
        self.consumer.commit(work).await?;
        Ok(())
    }
}

async fn call(provider: &dyn Provider, due: &Due, patience: Duration) -> Result<Answer, NoAnswer> {
    let payment = &due.payment;
    let authorisation = payment.authorisation.clone().unwrap_or_default();
    let ask = match due.kind {
        Kind::Authorise => Ask::Authorise {
            method: payment.method.clone(),
            amount_minor: due.amount_minor,
            currency: payment.currency.clone(),
            reference: payment.ride.clone(),
        },
        Kind::Capture => Ask::Capture {
            authorisation,
            amount_minor: due.amount_minor,
        },
        Kind::Void => Ask::Void { authorisation },
        Kind::Refund => Ask::Refund {
            authorisation,
            amount_minor: due.amount_minor,
        },
    };
    let key = format!("{}-{}", payment.ride, due.kind.name());
    tokio::time::timeout(patience, provider.call(&key, &ask))
        .await
        .unwrap_or_else(|_| Err(NoAnswer(format!("none within {} ms", patience.as_millis()))))
}

/// A final answer: the call is done, and where the money is now is said.
async fn conclude(work: &mut Work, due: &Due, answer: &Answer) -> Result<(), RunError> {
    let ride = &due.payment.ride;
    let mut payment = load(work.sql(), ride)
        .await?
        .unwrap_or_else(|| due.payment.clone());
    match (due.kind, answer) {
        (Kind::Authorise, Answer::Done(id)) => {
            payment.state = state::HELD.to_owned();
            payment.authorisation = Some(id.clone());
        }
        (Kind::Authorise, Answer::Refused(why)) => {
            payment.state = state::REFUSED.to_owned();
            payment.why = Some(why.clone());
        }
        (Kind::Capture, Answer::Done(_)) => {
            payment.state = state::CAPTURED.to_owned();
            payment.captured_minor = due.amount_minor;
        }
        // Refused before: it is said again, so that whoever waits for the capture hears it.
        (Kind::Capture, Answer::Refused(why)) => {
            payment.state = state::REFUSED.to_owned();
            payment.why.get_or_insert_with(|| why.clone());
        }
        // Refused before: nothing was ever held.
        (Kind::Void, Answer::Refused(_)) if payment.authorisation.is_none() => {
            if let Ok(ride) = ride.parse() {
                work.say(Voided { ride });
            }
        }
        (Kind::Void, Answer::Done(_)) => payment.state = state::VOIDED.to_owned(),
        (Kind::Void, Answer::Refused(why)) => payment.why = Some(why.clone()),
        (Kind::Refund, Answer::Done(_)) => payment.refunded_minor = due.amount_minor,
        (Kind::Refund, Answer::Refused(why)) => payment.why = Some(why.clone()),
    }
    sqlx::query("UPDATE calls SET is_done = 1 WHERE ride = $1 AND step = $2")
        .bind(ride)
        .bind(due.kind.step())
        .execute(work.sql())
        .await?;
    sqlx::query(
        "UPDATE payments SET state = $1, authorisation = $2, captured_minor = $3, refunded_minor = $4, why = $5 \
         WHERE ride = $6",
    )
    .bind(&payment.state)
    .bind(&payment.authorisation)
    .bind(payment.captured_minor)
    .bind(payment.refunded_minor)
    .bind(&payment.why)
    .bind(ride)
    .execute(work.sql())
    .await?;
    if let Ok(ride) = ride.parse() {
        say(work, ride, &payment);
    }
    Ok(())
}

/// Asks for money to be given back: all that was captured and not yet refunded. Said through the outbox once it is done.
pub async fn refund(consumer: &Consumer, ride: &str) -> Result<Option<i64>, RunError> {
    let mut work = consumer.begin().await?;
    let Some(payment) = load(work.sql(), ride).await? else {
        return Ok(None);
    };
    let (left, Ok(id)) = (
        payment.captured_minor - payment.refunded_minor,
        ride.parse(),
    ) else {
        return Ok(None);
    };
    if left <= 0 {
        return Ok(None);
    }
    match ask(&mut work, id, Kind::Refund, left).await {
        Ok(()) => {}
        Err(Trouble::Database(why)) => return Err(why.into()),
        Err(Trouble::Poison { .. }) => return Ok(None),
    }
    consumer.commit(work).await?;
    Ok(Some(left))
}

/// How many rides' money is in each state, and sums: (state, rides, held, captured, refunded).
pub async fn sums(database: &Database) -> Result<Vec<(String, i64, i64, i64)>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT state, COUNT(*) AS n, CAST(SUM(captured_minor) AS BIGINT) AS captured, \
         CAST(SUM(refunded_minor) AS BIGINT) AS refunded FROM payments GROUP BY state ORDER BY state",
    )
    .fetch_all(database.pool())
    .await?;
    rows.iter()
        .map(|row| {
            Ok((
                row.try_get("state")?,
                row.try_get("n")?,
                row.try_get("captured")?,
                row.try_get("refunded")?,
            ))
        })
        .collect()
}

/// The sweep: rides whose calls are not all done, or whose money is held with nothing asked about it.
pub async fn open_calls(database: &Database) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar("SELECT COUNT(*) FROM calls WHERE is_done = 0")
        .fetch_one(database.pool())
        .await
}
