//! The order service: what the business knows of rides, and the saga of their money.
//!
//! Reads the rides and what payment says; writes its read model (`orders`, `order_history`), which a rebuild makes anew
//! from the log, and its sagas, which remember what was asked of others and are never rebuilt. Both change in one
//! transaction with the inbox.

pub mod fare;
pub mod http;
pub mod model;
pub mod saga;
pub mod surge;

use std::collections::BTreeMap;
use std::sync::Arc;

use cabrank_events::business::{Business, ChargedFor, ReceiptLine};
use cabrank_events::{Event, RideId, Time};
use sqlx::any::AnyRow;
use sqlx::{AnyConnection, Row};
use tokio::sync::Notify;

use crate::consumer::{Message, Said, Service, Trouble, Work, placeholders, statement};
use crate::database::{Database, Step as Migration};
use model::{Order, Step, told};
use saga::{Action, Deadline, Ended, Hold, Policy, Saga, State};

/// The tables of this service.
pub const STEPS: &[Migration] = &[(2, "order", include_str!("../../migrations/order.sql"))];
/// Sagas whose deadline is over that are looked at in one transaction.
const DUE_MAX: i64 = 256;
/// The source of rides, under whichever home.
pub const RIDES: &str = "rides";

/// How dear a ride from here is now, in thousandths; 1000 without surge.
pub type Surge = Arc<dyn Fn(cabrank_geo::Point) -> i64 + Send + Sync>;

/// Consumes rides and payments.
pub struct OrderService {
    policy: Policy,
    surge: Surge,
    /// Rung when a ride is to be called off.
    cancels: Arc<Notify>,
    rings: bool,
}

impl OrderService {
    /// With these prices and patience.
    pub fn new(policy: Policy) -> OrderService {
        OrderService {
            policy,
            surge: Arc::new(|_| 1_000),
            cancels: Arc::default(),
            rings: false,
        }
    }

    /// The same with a surge factor, which the tariff bounds.
    pub fn with_surge(self, surge: Surge) -> OrderService {
        OrderService { surge, ..self }
    }

    /// Rung whenever [`cancels`] has something new.
    pub fn cancels(&self) -> Arc<Notify> {
        Arc::clone(&self.cancels)
    }

    async fn carry_out(
        &mut self,
        work: &mut Work,
        actions: Vec<Action>,
    ) -> Result<(), sqlx::Error> {
        for action in actions {
            match action {
                Action::Say(said) => work.say(said),
                Action::Cancel(ride, reason) => {
                    sqlx::query(
                        "INSERT INTO cancels (ride, reason) VALUES ($1, $2) ON CONFLICT DO NOTHING",
                    )
                    .bind(ride.to_string())
                    .bind(reason)
                    .execute(work.sql())
                    .await?;
                    self.rings = true;
                }
            }
        }
        Ok(())
    }
}

/// The ride a payment message is about.
fn paid_ride(said: &Business) -> Option<RideId> {
    match said {
        Business::Authorised(said) => Some(said.ride),
        Business::Refused(said) => Some(said.ride),
        Business::Captured(said) => Some(said.ride),
        Business::Voided(said) => Some(said.ride),
        _ => None,
    }
}

impl Service for OrderService {
    fn name(&self) -> &'static str {
        "order"
    }

    async fn apply(&mut self, work: &mut Work, messages: &[Message]) -> Result<(), Trouble> {
        let mut rides: Vec<String> = messages
            .iter()
            .filter_map(|message| match &message.said {
                Said::Ride(record) => told(&record.event).map(|told| told.ride.to_string()),
                Said::Business(record) => paid_ride(&record.said).map(|ride| ride.to_string()),
            })
            .collect();
        rides.sort_unstable();
        rides.dedup();
        let known = model::load(work.sql(), &rides).await?;
        let mut orders: BTreeMap<String, Order> =
            known.into_iter().map(|o| (o.ride.clone(), o)).collect();
        let mut sagas = load_sagas(work.sql(), &rides).await?;
        let before = sagas.clone();
        let (mut changed, mut steps, mut actions) = (BTreeMap::new(), Vec::new(), Vec::new());
        let now = work.now();
        for message in messages {
            match &message.said {
                Said::Ride(record) => {
                    let Some(told) = told(&record.event) else {
                        continue;
                    };
                    let ride = told.ride.to_string();
                    if let Some(order) = Order::opened(&record.event, record.time) {
                        orders.entry(ride.clone()).or_insert(order);
                    }
                    let Some(order) = orders.get_mut(&ride) else {
                        let reason = format!(
                            "{} of ride {ride}, whose ride.requested was never seen",
                            record.event.name()
                        );
                        return Err(Trouble::poison(&message.id, reason));
                    };
                    order.fold(&record.event, record.time, &told);
                    changed.insert(ride.clone(), ());
                    steps.push((
                        ride.clone(),
                        Step {
                            ride_seq: told.seq,
                            name: record.event.name().to_owned(),
                            at_ms: record.time.0,
                            driver: told.driver.clone(),
                        },
                    ));
                    match (&record.event, sagas.get_mut(&ride)) {
                        (Event::RideRequested(asked), None) => {
                            let most = self.policy.tariff.surge_max_permille.max(1_000);
                            let surge = (self.surge)(asked.pickup.0).clamp(1_000, most);
                            let (saga, first) = Saga::begin(
                                asked.ride,
                                asked.rider.clone(),
                                order,
                                surge,
                                &self.policy,
                                now,
                            );
                            sagas.insert(ride, saga);
                            actions.extend(first);
                        }
                        (event, Some(saga)) => {
                            if let Some(ended) = how_it_ended(event) {
                                actions.extend(saga.handle_end(ended, order, &self.policy, now));
                            }
                        }
                        (_, None) => {}
                    }
                }
                Said::Business(record) => {
                    let Some(ride) = paid_ride(&record.said) else {
                        continue;
                    };
                    let Some(saga) = sagas.get_mut(&ride.to_string()) else {
                        return Err(Trouble::poison(
                            &message.id,
                            format!("nothing was asked for ride {ride}"),
                        ));
                    };
                    actions.extend(match &record.said {
                        Business::Authorised(_) => saga.handle_authorised(&self.policy, now),
                        Business::Refused(said) => {
                            saga.handle_refused(&said.why, &self.policy, now)
                        }
                        Business::Captured(_) => saga.handle_captured(),
                        Business::Voided(_) => saga.handle_voided(),
                        _ => Vec::new(),
                    });
                }
            }
        }
        let changed: Vec<&Order> = changed.keys().filter_map(|ride| orders.get(ride)).collect();
        model::store(work.sql(), &changed).await?;
        model::store_steps(work.sql(), &steps).await?;
        let touched = sagas
            .iter()
            .filter(|(ride, saga)| before.get(*ride) != Some(*saga));
        store_sagas(work.sql(), touched.map(|(_, saga)| saga)).await?;
        self.carry_out(work, actions).await?;
        Ok(())
    }

    async fn is_due(&self, database: &Database, now: Time) -> Result<bool, sqlx::Error> {
        let due: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM sagas WHERE deadline_ms <= $1")
            .bind(now.0)
            .fetch_one(database.pool())
            .await?;
        Ok(due > 0)
    }

    async fn act(&mut self, work: &mut Work) -> Result<(), Trouble> {
        let now = work.now();
        let rows = sqlx::query(
            "SELECT * FROM sagas WHERE deadline_ms <= $1 ORDER BY deadline_ms LIMIT $2",
        )
        .bind(now.0)
        .bind(DUE_MAX)
        .fetch_all(work.sql())
        .await?;
        let mut sagas = rows
            .iter()
            .map(saga_from_row)
            .collect::<Result<Vec<_>, _>>()?;
        let mut actions = Vec::new();
        for saga in &mut sagas {
            actions.extend(saga.handle_deadline(&self.policy, now));
        }
        store_sagas(work.sql(), sagas.iter()).await?;
        self.carry_out(work, actions).await?;
        Ok(())
    }

    fn committed(&mut self) {
        if std::mem::take(&mut self.rings) {
            self.cancels.notify_waiters();
        }
    }
}

fn how_it_ended(event: &Event) -> Option<Ended> {
    use cabrank_events::command::CancelledBy;
    match event {
        Event::RideCompleted(_) => Some(Ended::Completed),
        Event::RideCancelled(cancelled) => Some(match cancelled.by {
            CancelledBy::Rider | CancelledBy::NoShow => Ended::CancelledByRider,
            CancelledBy::Ops => Ended::NobodysFault,
        }),
        Event::RideUnfulfilled(_) => Some(Ended::NobodysFault),
        _ => None,
    }
}

/// The saga of one ride.
pub async fn saga_of(database: &sqlx::AnyPool, ride: &str) -> Result<Option<Saga>, sqlx::Error> {
    let row = sqlx::query("SELECT * FROM sagas WHERE ride = $1")
        .bind(ride)
        .fetch_optional(database)
        .await?;
    row.as_ref().map(saga_from_row).transpose()
}

/// How many sagas are in each state that occurs.
pub async fn saga_counts(database: &sqlx::AnyPool) -> Result<BTreeMap<String, i64>, sqlx::Error> {
    let rows = sqlx::query("SELECT state, COUNT(*) AS n FROM sagas GROUP BY state")
        .fetch_all(database)
        .await?;
    rows.iter()
        .map(|row| Ok((row.try_get("state")?, row.try_get("n")?)))
        .collect()
}

/// Empties the read model and begins anew with the rides; sagas stay as they are and ignore what they have seen.
pub async fn rebuild(
    consumer: &crate::consumer::Consumer,
) -> Result<(), crate::consumer::RunError> {
    let mut work = consumer.begin().await?;
    for text in ["DELETE FROM orders", "DELETE FROM order_history"] {
        sqlx::query(text).execute(work.sql()).await?;
    }
    consumer.begin_anew(&mut work, RIDES).await?;
    consumer.commit(work).await?;
    Ok(())
}

/// Rides to be called off, oldest first.
pub async fn cancels(
    database: &sqlx::AnyPool,
    max: i64,
) -> Result<Vec<(String, String)>, sqlx::Error> {
    let rows = sqlx::query("SELECT ride, reason FROM cancels ORDER BY ride LIMIT $1")
        .bind(max)
        .fetch_all(database)
        .await?;
    rows.iter()
        .map(|row| Ok((row.try_get("ride")?, row.try_get("reason")?)))
        .collect()
}

async fn load_sagas(
    sql: &mut AnyConnection,
    rides: &[String],
) -> Result<BTreeMap<String, Saga>, sqlx::Error> {
    let mut found = BTreeMap::new();
    for rides in rides.chunks(128) {
        let mut query = statement(format!(
            "SELECT * FROM sagas WHERE ride IN {}",
            placeholders(1, rides.len())
        ));
        for ride in rides {
            query = query.bind(ride);
        }
        for row in query.fetch_all(&mut *sql).await? {
            let saga = saga_from_row(&row)?;
            found.insert(saga.ride.to_string(), saga);
        }
    }
    Ok(found)
}

fn charged_name(charged_for: ChargedFor) -> &'static str {
    match charged_for {
        ChargedFor::Fare => "fare",
        ChargedFor::CancelFee => "cancel_fee",
    }
}

fn saga_from_row(row: &AnyRow) -> Result<Saga, sqlx::Error> {
    let bad = |what: &str| sqlx::Error::Decode(format!("a saga with {what}").into());
    let text = |name: &str| row.try_get::<String, _>(name);
    let maybe = |name: &str| row.try_get::<Option<String>, _>(name);
    let (state, hold, charged_for) = (text("state")?, text("hold")?, maybe("charged_for")?);
    let lines: Vec<ReceiptLine> =
        serde_json::from_str(&text("lines")?).map_err(|why| bad(&why.to_string()))?;
    let deadline = match (
        maybe("deadline")?,
        row.try_get::<Option<i64>, _>("deadline_ms")?,
    ) {
        (Some(name), Some(ms)) => {
            let deadline = Deadline::ALL
                .into_iter()
                .find(|deadline| deadline.name() == name);
            Some((deadline.ok_or_else(|| bad(&name))?, Time(ms)))
        }
        _ => None,
    };
    Ok(Saga {
        ride: text("ride")?.parse().map_err(|_| bad("no ride"))?,
        rider: text("rider")?.parse().map_err(|_| bad("no rider"))?,
        state: State::ALL
            .into_iter()
            .find(|known| known.name() == state)
            .ok_or_else(|| bad(&state))?,
        hold: Hold::ALL
            .into_iter()
            .find(|known| known.name() == hold)
            .ok_or_else(|| bad(&hold))?,
        hold_minor: row.try_get("hold_minor")?,
        currency: text("currency")?,
        surge_permille: row.try_get("surge_permille")?,
        due_minor: row.try_get("due_minor")?,
        charged_for: match charged_for.as_deref() {
            None => None,
            Some("fare") => Some(ChargedFor::Fare),
            Some("cancel_fee") => Some(ChargedFor::CancelFee),
            Some(other) => return Err(bad(other)),
        },
        lines,
        why: maybe("why")?,
        deadline,
    })
}

async fn store_sagas(
    sql: &mut AnyConnection,
    sagas: impl Iterator<Item = &Saga>,
) -> Result<(), sqlx::Error> {
    let sagas: Vec<&Saga> = sagas.collect();
    for sagas in sagas.chunks(128) {
        let text = format!(
            "INSERT INTO sagas (ride, rider, state, hold, hold_minor, currency, surge_permille, due_minor, charged_for, lines, \
             why, deadline, deadline_ms) VALUES {} ON CONFLICT (ride) DO UPDATE SET state = excluded.state, \
             hold = excluded.hold, due_minor = excluded.due_minor, charged_for = excluded.charged_for, \
             lines = excluded.lines, why = excluded.why, deadline = excluded.deadline, deadline_ms = excluded.deadline_ms",
            placeholders(sagas.len(), 13)
        );
        let mut query = statement(text);
        for saga in sagas {
            query = query
                .bind(saga.ride.to_string())
                .bind(saga.rider.to_string())
                .bind(saga.state.name())
                .bind(saga.hold.name())
                .bind(saga.hold_minor)
                .bind(&saga.currency)
                .bind(saga.surge_permille)
                .bind(saga.due_minor)
                .bind(saga.charged_for.map(charged_name))
                .bind(serde_json::to_string(&saga.lines).expect("plain structures become JSON"))
                .bind(&saga.why)
                .bind(saga.deadline.map(|(deadline, _)| deadline.name()))
                .bind(saga.deadline.map(|(_, at)| at.0));
        }
        query.execute(&mut *sql).await?;
    }
    Ok(())
}
