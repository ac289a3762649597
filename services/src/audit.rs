//! Does the money fit the rides?
//!
//! Folds the ride log by itself (it shares neither the order service's fold nor its arithmetic), recomputes every hold, fare
//! and fee to the cent, and compares with three witnesses: the order service's database, the payment service's, and the
//! provider's own ledger.

use std::collections::BTreeMap;
use std::fmt;

use cabrank_events::business::{Business, BusinessRecord};
use cabrank_geo::Point;
use serde::Serialize;
use serde_json::Value;
use sqlx::Row;

use crate::database::Database;
use crate::order::fare::Tariff;
use crate::provider_sim::Movement;

/// Findings kept; more are counted.
const FINDINGS_MAX: usize = 50;

/// One ride as its events tell it.
#[derive(Clone, Debug, Default)]
struct Ride {
    pickup: Option<Point>,
    /// As it was asked for: what is held goes by it.
    asked: Option<Point>,
    /// As it was last: the fare goes by it.
    dropoff: Option<Point>,
    has_driver: bool,
    started_ms: Option<i64>,
    ended_ms: Option<i64>,
    end: Option<&'static str>,
    by: String,
    events: u64,
}

/// What the audit found.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ServicesReport {
    /// Rides in the log, and how many of them have ended.
    pub rides: u64,
    /// Ended ones.
    pub ended: u64,
    /// Orders in the read model.
    pub orders: u64,
    /// Holds in the provider's ledger.
    pub authorisations: u64,
    /// Means of payment that were declined.
    pub declined: u64,
    /// Captures in the ledger.
    pub captures: u64,
    /// Holds let go.
    pub voids: u64,
    /// Receipts that the order service wrote.
    pub receipts: u64,
    /// Money taken by the ledger, in the minor unit.
    pub captured_minor: i64,
    /// What the rides' events add up to; before all is settled, those of rides whose money was taken.
    pub expected_minor: i64,
    /// What riders owe.
    pub unpaid_minor: i64,
    /// Holds left open by rides that have ended.
    pub left_open: u64,
    /// Events set aside by the services.
    pub dead_letters: u64,
    /// Of what is wrong, the first ones.
    pub findings: Vec<String>,
    /// How much is wrong.
    pub violations: u64,
}

impl ServicesReport {
    /// Nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.violations == 0
    }

    fn find(&mut self, what: String) {
        self.violations += 1;
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(what);
        }
    }
}

impl fmt::Display for ServicesReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} rides ({} ended), {} orders, {} authorisations ({} declined), {} captures, {} voids, {} receipts",
            self.rides,
            self.ended,
            self.orders,
            self.authorisations,
            self.declined,
            self.captures,
            self.voids,
            self.receipts
        )?;
        writeln!(
            f,
            "money: {} captured, {} expected from the events, {} left unpaid; {} holds left open, {} dead letters",
            cents(self.captured_minor),
            cents(self.expected_minor),
            cents(self.unpaid_minor),
            self.left_open,
            self.dead_letters
        )?;
        for finding in &self.findings {
            writeln!(f, "violation: {finding}")?;
        }
        match self.violations {
            0 => writeln!(f, "orders and money fit the ride log to the cent"),
            more => writeln!(f, "{more} violations"),
        }
    }
}

/// `1234.56`
pub fn cents(minor: i64) -> String {
    format!(
        "{}{}.{:02}",
        if minor < 0 { "-" } else { "" },
        minor.abs() / 100,
        minor.abs() % 100
    )
}

/// The audit, fed with events.
#[derive(Default)]
pub struct ServicesAudit {
    rides: BTreeMap<String, Ride>,
    report: ServicesReport,
}

fn place(value: &Value) -> Option<Point> {
    Point::new(value.get("lat")?.as_f64()?, value.get("lon")?.as_f64()?).ok()
}

/// To the nearest whole, halves up.
fn nearest(top: i128, bottom: i128) -> i64 {
    i64::try_from((top * 2 + bottom).div_euclid(bottom * 2)).unwrap_or(i64::MAX)
}

fn price(tariff: &Tariff, from: Point, to: Option<Point>, ms: i64, surge: i64) -> i64 {
    let straight = to.map_or(0, |to| from.distance_m(to).round() as i64);
    let metres = nearest(
        i128::from(straight) * i128::from(tariff.detour_permille),
        1_000,
    );
    let way = nearest(i128::from(metres) * i128::from(tariff.per_km_minor), 1_000);
    let time = nearest(i128::from(ms) * i128::from(tariff.per_minute_minor), 60_000);
    let sum = tariff.base_minor + way + time;
    nearest(i128::from(sum) * i128::from(surge), 1_000).max(tariff.minimum_minor)
}

fn expected_hold(tariff: &Tariff, ride: &Ride, surge: i64) -> Option<i64> {
    let (from, Some(to)) = (ride.pickup?, ride.asked) else {
        return Some(tariff.hold_unknown_minor);
    };
    let straight = from.distance_m(to).round() as i64;
    let metres = nearest(
        i128::from(straight) * i128::from(tariff.detour_permille),
        1_000,
    );
    let ms = nearest(
        i128::from(metres) * 60_000,
        i128::from(tariff.expected_m_per_minute),
    );
    let fare = price(tariff, from, Some(to), ms, surge);
    Some(
        nearest(
            i128::from(fare) * i128::from(tariff.hold_margin_permille),
            1_000,
        )
        .max(tariff.cancel_fee_minor),
    )
}

impl ServicesAudit {
    /// One record of `ride-events`.
    pub fn event(&mut self, json: &[u8]) {
        let Ok(event) = serde_json::from_slice::<Value>(json) else {
            return;
        };
        let (Some(kind), Some(data)) = (event["type"].as_str(), event.get("data")) else {
            return;
        };
        let Some(name) = kind
            .strip_prefix("cabrank.ride.")
            .and_then(|rest| rest.split('.').next())
        else {
            return;
        };
        let Some(id) = data["ride"].as_str() else {
            return;
        };
        let time = event["time"]
            .as_str()
            .and_then(|time| cabrank_events::codec::parse_rfc3339(time).ok());
        let at = time.map_or(0, |time| time.0);
        let ride = self.rides.entry(id.to_owned()).or_default();
        ride.events += 1;
        match name {
            "requested" => {
                (ride.pickup, ride.asked) = (place(&data["pickup"]), place(&data["dropoff"]));
                ride.dropoff = ride.asked;
            }
            "destination_changed" => ride.dropoff = place(&data["to"]),
            "driver_assigned" | "driver_reassigned" => ride.has_driver = true,
            "driver_lost" => ride.has_driver = false,
            "started" => ride.started_ms = Some(at),
            "completed" | "cancelled" | "unfulfilled" => {
                ride.ended_ms = Some(at);
                ride.end = ["completed", "cancelled", "unfulfilled"]
                    .into_iter()
                    .find(|end| *end == name);
                data["by"]
                    .as_str()
                    .unwrap_or_default()
                    .clone_into(&mut ride.by);
            }
            _ => {}
        }
    }

    /// Compares. `is_settled`: everything has come to rest, so no ride that has ended may still be waiting for money.
    pub async fn finish(
        mut self,
        order: &Database,
        payment: &Database,
        ledger: &[Movement],
        tariff: &Tariff,
        is_settled: bool,
    ) -> Result<ServicesReport, sqlx::Error> {
        let mut report = std::mem::take(&mut self.report);
        report.rides = self.rides.len() as u64;
        let mut orders: BTreeMap<String, (String, i64)> = BTreeMap::new();
        let rows = sqlx::query(
            "SELECT o.ride AS ride, o.state AS state, (SELECT COUNT(*) FROM order_history h WHERE h.ride = o.ride) AS n \
             FROM orders o",
        )
        .fetch_all(order.pool())
        .await?;
        for row in rows {
            orders.insert(
                row.try_get("ride")?,
                (row.try_get("state")?, row.try_get("n")?),
            );
        }
        report.orders = orders.len() as u64;
        let mut sagas = BTreeMap::new();
        let rows =
            sqlx::query("SELECT ride, state, hold_minor, due_minor, surge_permille FROM sagas")
                .fetch_all(order.pool());
        for row in rows.await? {
            let (ride, state): (String, String) = (row.try_get("ride")?, row.try_get("state")?);
            let numbers: (i64, i64, i64) = (
                row.try_get("hold_minor")?,
                row.try_get("due_minor")?,
                row.try_get("surge_permille")?,
            );
            sagas.insert(ride, (state, numbers));
        }
        let receipts = receipts(order, &mut report).await?;
        let mut taken: BTreeMap<String, i64> = BTreeMap::new();
        for row in sqlx::query("SELECT ride, captured_minor FROM payments")
            .fetch_all(payment.pool())
            .await?
        {
            taken.insert(row.try_get("ride")?, row.try_get("captured_minor")?);
        }
        for database in [order, payment] {
            let dead: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM dead_letters")
                .fetch_one(database.pool())
                .await?;
            report.dead_letters += dead as u64;
        }
        if report.dead_letters > 0 {
            let dead = report.dead_letters;
            report.find(format!(
                "{dead} events were set aside: see GET /v1/dead-letters"
            ));
        }
        let mut moved: BTreeMap<&str, Vec<&Movement>> = BTreeMap::new();
        for movement in ledger {
            moved.entry(&movement.reference).or_default().push(movement);
            match movement.what.as_str() {
                "authorised" => report.authorisations += 1,
                "declined" => report.declined += 1,
                "captured" => {
                    report.captures += 1;
                    report.captured_minor += movement.amount_minor;
                }
                "voided" => report.voids += 1,
                _ => {}
            }
        }
        for reference in moved
            .keys()
            .filter(|reference| !self.rides.contains_key(**reference))
        {
            report.find(format!(
                "the provider has movements for {reference}, which is no ride of the log"
            ));
        }
        for ride in orders.keys().filter(|ride| !self.rides.contains_key(*ride)) {
            report.find(format!("order {ride} is no ride of the log"));
        }
        for (id, ride) in &self.rides {
            let movements = moved.get(id.as_str()).map_or(&[][..], Vec::as_slice);
            let of = |what: &str| {
                movements
                    .iter()
                    .filter(|movement| movement.what == what)
                    .collect::<Vec<_>>()
            };
            let captured: i64 = of("captured")
                .iter()
                .map(|movement| movement.amount_minor)
                .sum();
            let (authorised, voided) = (of("authorised").len(), of("voided").len());
            if authorised > 1 || of("captured").len() > 1 {
                report.find(format!(
                    "ride {id} was charged twice: {authorised} holds, {captured} taken"
                ));
            }
            match orders.get(id) {
                None => report.find(format!("ride {id} has no order")),
                Some((state, steps)) if is_settled => {
                    if ride.end.is_some_and(|end| end != state) {
                        report.find(format!("order {id} is {state}, its ride {:?}", ride.end));
                    }
                    if *steps as u64 != ride.events {
                        report.find(format!(
                            "order {id} has {steps} steps, its ride {} events",
                            ride.events
                        ));
                    }
                }
                Some(_) => {}
            }
            let Some((state, (hold, due, surge))) = sagas.get(id) else {
                report.find(format!("nobody looks after the money of ride {id}"));
                continue;
            };
            if !(1_000..=tariff.surge_max_permille.max(1_000)).contains(surge) {
                report.find(format!("ride {id} has a surge factor of {surge}"));
            }
            let expected_hold = expected_hold(tariff, ride, *surge);
            if expected_hold != Some(*hold) {
                report.find(format!(
                    "ride {id}: {hold} were to be held, its events say {expected_hold:?}"
                ));
            }
            let (Some(end), Some(from)) = (ride.end, ride.pickup) else {
                continue;
            };
            report.ended += 1;
            let owed = match (end, ride.by.as_str()) {
                ("completed", _) => {
                    let ms = ride
                        .started_ms
                        .zip(ride.ended_ms)
                        .map_or(0, |(from, to)| to - from);
                    price(tariff, from, ride.dropoff, ms, *surge).min(*hold)
                }
                ("cancelled", "rider" | "no_show") if ride.has_driver => {
                    tariff.cancel_fee_minor.min(*hold)
                }
                _ => 0,
            };
            let was_declined = !of("declined").is_empty();
            if !is_settled {
                // What is not taken yet may still be.
                if captured != 0 {
                    report.expected_minor += owed;
                }
                if captured != 0 && captured != owed {
                    report.find(format!("ride {id}: {captured} taken, {owed} owed"));
                }
                continue;
            }
            if authorised > of("captured").len() + voided {
                report.left_open += 1;
                report.find(format!(
                    "ride {id} has ended ({end}) and money is still held; its saga is {state}"
                ));
            }
            let to_be_taken = if was_declined && authorised == 0 {
                0
            } else {
                owed
            };
            report.expected_minor += to_be_taken;
            if captured != to_be_taken {
                report.find(format!(
                    "ride {id} ({end}): {captured} taken, {to_be_taken} owed; its saga is {state}"
                ));
            }
            if state == "unpaid" {
                report.unpaid_minor += owed;
            }
            let fits = match state.as_str() {
                "captured" => {
                    captured > 0 && *due == captured && receipts.get(id) == Some(&(1, captured))
                }
                "voided" => captured == 0,
                "refused" => was_declined && captured == 0,
                "unpaid" => was_declined && captured == 0 && *due == owed,
                _ => false,
            };
            if !fits {
                report.find(format!(
                    "ride {id} ({end}): its saga is {state} with {due} due, {captured} were taken, receipts {:?}",
                    receipts.get(id)
                ));
            }
            if taken.get(id).copied().unwrap_or(0) != captured {
                report.find(format!(
                    "ride {id}: the payment service believes {:?}, the provider {captured}",
                    taken.get(id)
                ));
            }
        }
        Ok(report)
    }
}

/// How many receipts each ride has, and their sum.
async fn receipts(
    order: &Database,
    report: &mut ServicesReport,
) -> Result<BTreeMap<String, (u64, i64)>, sqlx::Error> {
    let mut found: BTreeMap<String, (u64, i64)> = BTreeMap::new();
    let rows = sqlx::query("SELECT body FROM outbox WHERE topic = 'order-events'")
        .fetch_all(order.pool())
        .await?;
    for row in rows {
        let body: String = row.try_get("body")?;
        if let Ok(BusinessRecord {
            said: Business::Receipt(receipt),
            ..
        }) = BusinessRecord::from_json(body.as_bytes())
        {
            report.receipts += 1;
            let of = found.entry(receipt.ride.to_string()).or_default();
            *of = (of.0 + 1, of.1 + receipt.total.minor);
            if receipt.lines.iter().map(|line| line.minor).sum::<i64>() != receipt.total.minor {
                report.find(format!(
                    "the lines of ride {}'s receipt do not add up",
                    receipt.ride
                ));
            }
        }
    }
    Ok(found)
}
