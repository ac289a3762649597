//! The forecast service: demand and supply of each cell, published as it changes.
//!
//! Counts `ride.requested` by H3 cell and quarter hour of the events' own time (so a replayed evening is forecast as it
//! was), and follows drivers: a free driver counts where the last ride ended. Every [`Config::every_events`] events or
//! [`Config::every_ms`] of that time it says `demand.forecast` for each cell with demand.
//!
//! Not here: the mathematics (`model`), whether it is any good (`evaluate`).

pub mod evaluate;
pub mod model;

use std::collections::{BTreeMap, BTreeSet};

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use cabrank_events::business::{Business, DemandForecast, Horizon};
use cabrank_events::codec::rfc3339;
use cabrank_events::{Event, Time};
use cabrank_geo::Point;
use h3o::{CellIndex, LatLng, Resolution};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sqlx::{AnyConnection, Row};

use crate::consumer::{Message, Said, Service, Trouble, Work, placeholders, statement};
use crate::database::{Database, Step};
use crate::web::{Refusal, Web};
use model::{CONFIDENCE, HORIZONS, Model, QUARTER_MS};

/// The tables of this service.
pub const STEPS: &[Step] = &[(2, "forecast", include_str!("../../migrations/forecast.sql"))];
/// Most cells of one publication: the busiest.
pub const CELLS_PUBLISHED_MAX: usize = 1_000;
/// Rides and drivers remembered at most; beyond it the oldest ids go, and supply is a little low.
pub const PEOPLE_MAX: usize = 200_000;
/// Less than half a minute of counting is taken for half a minute.
const SHARE_MIN: f64 = 1.0 / 30.0;
/// A gap this long in the events is another day.
const GAP_QUARTERS: i64 = 8;

/// When and how finely it is forecast.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// H3 resolution of the cells, 0 to 15.
    pub resolution: u8,
    /// Published after so many events,
    pub every_events: u64,
    /// or after so long in the events' time, ms.
    pub every_ms: i64,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            resolution: 7,
            every_events: 100,
            every_ms: 60_000,
        }
    }
}

/// What it remembers, kept whole in the database.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Memory {
    model: Model,
    /// The quarter hour being counted, since the Unix epoch.
    quarter: Option<i64>,
    /// When counting began, or began again after a gap.
    #[serde(default)]
    began_ms: Option<i64>,
    counts: BTreeMap<u64, u32>,
    /// Where open rides will end.
    ends: BTreeMap<String, u64>,
    /// Where drivers were last seen.
    at: BTreeMap<String, u64>,
    /// Drivers at work without a ride.
    free: BTreeSet<String>,
    events: u64,
    published_ms: i64,
}

/// Consumes rides and drivers.
pub struct ForecastService {
    config: Config,
    resolution: Resolution,
    /// As committed. `None`: it is read back from the database before the next batch.
    memory: Option<Memory>,
    /// After the batch that is being committed.
    next: Option<Memory>,
}

impl ForecastService {
    /// With these settings; `None` if there is no such resolution.
    pub fn new(config: Config) -> Option<ForecastService> {
        let resolution = Resolution::try_from(config.resolution).ok()?;
        Some(ForecastService {
            config,
            resolution,
            memory: None,
            next: None,
        })
    }

    fn cell(&self, at: Point) -> Option<u64> {
        LatLng::new(at.lat_deg(), at.lon_deg())
            .ok()
            .map(|at| u64::from(at.to_cell(self.resolution)))
    }

    fn take_in(&self, memory: &mut Memory, event: &Event, time: Time) {
        memory.events += 1;
        match event {
            Event::RideRequested(asked) => {
                memory.move_on(time);
                if let Some(cell) = self.cell(asked.pickup.0) {
                    // One that comes late is counted now: its own quarter hour is over and learned.
                    *memory.counts.entry(cell).or_insert(0) += 1;
                }
                if let Some(cell) = asked.dropoff.and_then(|place| self.cell(place.0)) {
                    memory.ends.insert(asked.ride.to_string(), cell);
                }
            }
            Event::RideCompleted(done) => {
                if let Some(cell) = memory.ends.remove(&done.ride.to_string()) {
                    memory.at.insert(done.driver.to_string(), cell);
                }
            }
            Event::RideCancelled(ended) => {
                memory.ends.remove(&ended.ride.to_string());
            }
            Event::RideUnfulfilled(ended) => {
                memory.ends.remove(&ended.ride.to_string());
            }
            Event::DriverOnline(online) => {
                memory.free.insert(online.driver.to_string());
            }
            Event::DriverReleased(released) => {
                memory.free.insert(released.driver.to_string());
            }
            Event::DriverHeld(held) => {
                memory.free.remove(held.driver.as_str());
            }
            Event::DriverOffline(offline) => {
                memory.free.remove(offline.driver.as_str());
                memory.at.remove(offline.driver.as_str());
            }
            _ => {}
        }
        for map in [&mut memory.ends, &mut memory.at] {
            while map.len() > PEOPLE_MAX {
                map.pop_first();
            }
        }
        while memory.free.len() > PEOPLE_MAX {
            memory.free.pop_first();
        }
    }

    fn forecasts(&self, memory: &Memory, now: Time) -> Vec<DemandForecast> {
        let mut supply: BTreeMap<u64, u32> = BTreeMap::new();
        for cell in memory
            .free
            .iter()
            .filter_map(|driver| memory.at.get(driver))
        {
            *supply.entry(*cell).or_insert(0) += 1;
        }
        let mut cells: Vec<(u64, _)> = if memory.model.is_new() {
            let share = memory.share_counted(now);
            let counted = memory.counts.iter();
            counted
                .map(|(id, count)| (*id, Model::guess(*count, share)))
                .collect()
        } else {
            let known = memory.model.cells();
            known.map(|id| (id, memory.model.expect(id))).collect()
        };
        cells.sort_by(|a, b| b.1[0].mean.total_cmp(&a.1[0].mean));
        cells.truncate(CELLS_PUBLISHED_MAX);
        let round = |value: f64| (value * 100.0).round() / 100.0;
        cells
            .into_iter()
            .filter_map(|(id, expected)| {
                let horizons = HORIZONS.iter().zip(expected).map(|(quarters, expected)| {
                    let (low, high) = expected.interval();
                    Horizon {
                        minutes: *quarters as u32 * 15,
                        expected: round(expected.mean),
                        low,
                        high,
                    }
                });
                Some(DemandForecast {
                    region_id: CellIndex::try_from(id).ok()?.to_string(),
                    timestamp: rfc3339(now),
                    predicted_demand: horizons.collect(),
                    confidence: CONFIDENCE,
                    supply: supply.get(&id).copied().unwrap_or(0),
                })
            })
            .collect()
    }
}

impl Memory {
    /// How much of a quarter hour has been counted by `now`, at least [`SHARE_MIN`], at most 1.
    fn share_counted(&self, now: Time) -> f64 {
        let ms = self.began_ms.map_or(0, |began| now.0 - began);
        (ms as f64 / QUARTER_MS as f64).clamp(SHARE_MIN, 1.0)
    }

    /// The quarter hours before that of `now` are over.
    fn move_on(&mut self, now: Time) {
        let quarter = now.0.div_euclid(QUARTER_MS);
        let Some(current) = self.quarter else {
            (self.quarter, self.began_ms) = (Some(quarter), Some(now.0));
            return;
        };
        if quarter <= current {
            return;
        }
        let mut counts = std::mem::take(&mut self.counts);
        if self.model.is_new() {
            // Counting began in the middle of it: the whole of it had so many more.
            let share = self.share_counted(Time((current + 1) * QUARTER_MS));
            for count in counts.values_mut() {
                *count = (f64::from(*count) / share).round() as u32;
            }
        }
        self.model.learn(&counts);
        if quarter - current > GAP_QUARTERS {
            self.model.forget_level();
            self.began_ms = Some(now.0);
        } else {
            // Quarter hours without any request are counts as well.
            (current + 1..quarter).for_each(|_| self.model.learn(&BTreeMap::new()));
        }
        self.quarter = Some(quarter);
    }
}

async fn load(sql: &mut AnyConnection) -> Result<Memory, sqlx::Error> {
    let row = sqlx::query("SELECT state FROM forecast WHERE name = 'city'")
        .fetch_optional(sql)
        .await?;
    match row {
        None => Ok(Memory::default()),
        Some(row) => {
            let text: String = row.try_get("state")?;
            // What an older program learned is learned again within the hour.
            Ok(serde_json::from_str(&text).unwrap_or_else(|why| {
                tracing::warn!(%why, "what was learned cannot be read: the forecast begins anew");
                Memory::default()
            }))
        }
    }
}

impl Service for ForecastService {
    fn name(&self) -> &'static str {
        "forecast"
    }

    async fn apply(&mut self, work: &mut Work, messages: &[Message]) -> Result<(), Trouble> {
        // Whatever becomes of this batch: unless it is committed, what the database has is read back.
        let mut memory = match self.memory.take() {
            Some(memory) => memory,
            None => load(work.sql()).await?,
        };
        let mut says = Vec::new();
        for message in messages {
            let Said::Ride(record) = &message.said else {
                continue;
            };
            self.take_in(&mut memory, &record.event, record.time);
            let is_due = memory.events >= self.config.every_events
                || record.time.0 - memory.published_ms >= self.config.every_ms;
            if is_due && memory.quarter.is_some() {
                // Of several publications in one batch only the last is news.
                says = self.forecasts(&memory, record.time);
                (memory.events, memory.published_ms) = (0, record.time.0);
            }
        }
        for rows in says.chunks(256) {
            let text = format!(
                "INSERT INTO forecasts (cell, made_ms, body) VALUES {} ON CONFLICT (cell) DO UPDATE SET \
                 made_ms = excluded.made_ms, body = excluded.body",
                placeholders(rows.len(), 3)
            );
            let mut query = statement(text);
            for row in rows {
                let body = serde_json::to_string(row).expect("plain structures become JSON");
                query = query
                    .bind(&row.region_id)
                    .bind(memory.published_ms)
                    .bind(body);
            }
            query.execute(work.sql()).await?;
        }
        says.into_iter()
            .for_each(|said| work.say(Business::DemandForecast(said)));
        let state = serde_json::to_string(&memory).expect("plain structures become JSON");
        sqlx::query("INSERT INTO forecast (name, state) VALUES ('city', $1) ON CONFLICT (name) DO UPDATE SET state = excluded.state")
            .bind(state)
            .execute(work.sql())
            .await?;
        self.next = Some(memory);
        Ok(())
    }

    fn committed(&mut self) {
        if let Some(memory) = self.next.take() {
            self.memory = Some(memory);
        }
    }
}

/// The calls of the forecast service.
pub fn routes() -> Router<Web> {
    Router::new().route("/v1/forecasts", get(forecasts))
}

/// `GET /v1/forecasts`: the newest of each cell.
async fn forecasts(State(web): State<Web>, headers: HeaderMap) -> Result<Response, Refusal> {
    web.caller(&headers)?;
    let rows = newest(&web.consumer.database).await?;
    let shown: Result<Vec<Box<RawValue>>, _> =
        rows.into_iter().map(RawValue::from_string).collect();
    Ok(Json(shown.map_err(|_| Refusal::Busy)?).into_response())
}

/// The newest forecast of each cell, as JSON.
pub async fn newest(database: &Database) -> Result<Vec<String>, sqlx::Error> {
    let rows = sqlx::query("SELECT body FROM forecasts WHERE made_ms = (SELECT MAX(made_ms) FROM forecasts) ORDER BY cell")
        .fetch_all(database.pool())
        .await?;
    rows.iter().map(|row| row.try_get("body")).collect()
}
