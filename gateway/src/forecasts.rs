//! How many rides are expected where, as the forecast service says (`cabrank service forecast`).
//!
//! Each gateway asks it every `gateway.forecasts.ask_every_ms` and keeps the newest answer, for the live map and for advice to
//! idle drivers (`hints`). A service that does not answer changes nothing for [`FORGOTTEN_AFTER`]; then nothing is expected
//! anywhere, and the map shows none. Nothing that is decided depends on it.
//! Bounds: an answer of [`ANSWER_BYTES_MAX`], [`CELLS_MAX`] cells of it.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::Response;
use cabrank_events::business::{DemandForecast, Horizon};
use h3o::CellIndex;
use serde::{Deserialize, Serialize};
use tokio::time::sleep;

use crate::access::Endpoint;
use crate::edge::Edge;
use crate::fetch::{Fetcher, NotFetched};
use crate::http::{Shared, json};
use crate::map::{SIDES, view};
use crate::problem::Problem;
use crate::query::Asked;
use crate::token::{Role, mint};

/// The largest answer that is read; one cell takes some 350 bytes.
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// Cells kept: as many as the service publishes; of more, those with the most expected rides.
const CELLS_MAX: usize = 1_000;
/// Without an answer for so long nothing is expected.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(120);
/// How long a question's token is good.
const TOKEN_FOR: Duration = Duration::from_secs(60);

/// Forecasts as the configuration has them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ForecastsConfig {
    /// Where `cabrank service forecast` answers, e.g. `http://127.0.0.1:8093`; empty for no forecasts. It is called with a
    /// token by `gateway.keys.secret`.
    pub url: String,
    /// How often it is asked, in milliseconds (100 to 600,000). It says something new every hundred events or minute.
    pub ask_every_ms: u64,
}

impl Default for ForecastsConfig {
    fn default() -> Self {
        Self {
            url: String::new(),
            ask_every_ms: 5_000,
        }
    }
}

/// What is expected in a cell.
#[derive(Clone, Debug, Serialize, schemars::JsonSchema)]
pub struct ExpectedCell {
    /// The H3 cell.
    pub cell: String,
    /// Its corners, latitude and longitude.
    corners: Vec<[f64; 2]>,
    /// Rides asked for in the next 15, 30 and 60 minutes.
    predicted_demand: Vec<Horizon>,
    /// Free drivers last seen there when it was made.
    supply: u32,
    #[serde(skip)]
    pub index: CellIndex,
}

impl ExpectedCell {
    fn of(said: DemandForecast) -> Option<ExpectedCell> {
        let index: CellIndex = said.region_id.parse().ok()?;
        let is_good = |horizon: &Horizon| horizon.expected.is_finite() && horizon.expected >= 0.0;
        let is_usable =
            !said.predicted_demand.is_empty() && said.predicted_demand.iter().all(is_good);
        is_usable.then(|| ExpectedCell {
            cell: said.region_id,
            corners: index
                .boundary()
                .iter()
                .map(|corner| [corner.lat(), corner.lng()])
                .collect(),
            predicted_demand: said.predicted_demand,
            supply: said.supply,
            index,
        })
    }

    /// Rides expected in the next quarter hour.
    pub fn next(&self) -> f64 {
        self.predicted_demand
            .first()
            .map_or(0.0, |next| next.expected)
    }
}

/// Answer of `GET /v1/map/forecast`, whole; what is seen of it is cut out.
#[derive(Clone, Debug, Default, Serialize, schemars::JsonSchema)]
pub struct Expected {
    /// When it was made, RFC 3339, on the city's clock; absent: nothing is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    made: Option<String>,
    /// The probability that each interval claims, 0 to 1.
    confidence: f64,
    /// Busiest first.
    pub cells: Vec<ExpectedCell>,
}

impl Expected {
    /// Reads the service's answer; what is no cell with a forecast is left out.
    fn read(answer: &[u8]) -> Result<Expected, serde_json::Error> {
        let said: Vec<DemandForecast> = serde_json::from_slice(answer)?;
        let (made, confidence) = said.first().map_or((None, 0.0), |first| {
            (Some(first.timestamp.clone()), first.confidence)
        });
        let mut cells: Vec<ExpectedCell> = said.into_iter().filter_map(ExpectedCell::of).collect();
        cells.sort_by(|a, b| b.next().total_cmp(&a.next()));
        cells.truncate(CELLS_MAX);
        Ok(Expected {
            made,
            confidence,
            cells,
        })
    }
}

/// The newest forecasts.
#[derive(Default)]
pub struct Forecasts {
    newest: RwLock<Arc<Expected>>,
}

impl Forecasts {
    /// What is expected, as far as is known.
    pub fn newest(&self) -> Arc<Expected> {
        // Nothing panics while it is written: an assignment.
        self.newest
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn set(&self, expected: Expected) {
        *self.newest.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(expected);
    }
}

/// The way to the configured service; `None` without one.
pub fn fetcher(config: &ForecastsConfig) -> Result<Option<Fetcher>, NotFetched> {
    match config.url.trim_end_matches('/') {
        "" => Ok(None),
        url => Fetcher::new(&format!("{url}/v1/forecasts"), "").map(Some),
    }
}

/// Why there is nothing new.
#[derive(Debug, thiserror::Error)]
enum NothingNew {
    #[error(transparent)]
    Server(#[from] NotFetched),
    #[error("the answer is no list of forecasts: {0}")]
    Answer(#[from] serde_json::Error),
    #[error("no token can be made by gateway.keys.secret: {0}")]
    Token(#[from] crate::token::BadToken),
}

/// Asks until it is dropped.
pub async fn keep_asking(edge: Arc<Edge>, service: Fetcher) {
    let every = Duration::from_millis(edge.config.forecasts.ask_every_ms);
    let mut answered = Instant::now();
    let mut is_told = false;
    loop {
        let ask = async {
            let secret = &edge.config.keys.secret;
            let token = mint(secret, Role::Service, "gateway", TOKEN_FOR)?;
            let answer = service.fetch(Some(&token), ANSWER_BYTES_MAX).await?;
            Ok::<_, NothingNew>(Expected::read(&answer)?)
        };
        let asked = ask.await;
        let result = if asked.is_ok() { "done" } else { "failed" };
        metrics::counter!("cabrank_forecasts_asked_total", "result" => result).increment(1);
        match asked {
            Ok(expected) => {
                edge.forecasts.set(expected);
                (answered, is_told) = (Instant::now(), false);
            }
            Err(why) if answered.elapsed() >= FORGOTTEN_AFTER && !is_told => {
                tracing::warn!(%why, "no forecasts: nothing is expected anywhere");
                edge.forecasts.set(Expected::default());
                is_told = true;
            }
            Err(why) => tracing::debug!(%why, "the forecast service gave no forecasts"),
        }
        sleep(every).await;
    }
}

/// `GET /v1/map/forecast`
pub async fn forecast(
    State(edge): Shared,
    headers: HeaderMap,
    uri: Uri,
) -> Result<Response, Problem> {
    edge.authorize(Endpoint::Desk, &headers)?;
    let view = view(&Asked::of(&uri, &SIDES)?)?;
    let newest = edge.forecasts.newest();
    let is_seen = |cell: &&ExpectedCell| {
        view.is_none_or(|view| {
            let mut corners = cell.corners.iter();
            corners.any(|[lat, lon]| view.holds(*lat, *lon, 0.0))
        })
    };
    Ok(json(
        StatusCode::OK,
        &Expected {
            made: newest.made.clone(),
            confidence: newest.confidence,
            cells: newest.cells.iter().filter(is_seen).cloned().collect(),
        },
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn said(cell: &str, expected: f64) -> serde_json::Value {
        json!({"region_id":cell,"timestamp":"2008-05-22T17:00:00.000Z","confidence":0.9,"supply":3,
            "predicted_demand":[{"minutes":15,"expected":expected,"low":0,"high":9}]})
    }

    #[test]
    fn the_busiest_cells_come_first_and_what_is_no_forecast_is_left_out() {
        let answer = json!([
            said("872830828ffffff", 2.5),
            said("no cell", 9.0),
            said("87283082affffff", 7.0),
            said("87283082effffff", -1.0),
        ]);
        let expected = Expected::read(answer.to_string().as_bytes()).unwrap();
        let cells: Vec<_> = expected
            .cells
            .iter()
            .map(|cell| (&*cell.cell, cell.next()))
            .collect();
        assert_eq!(cells, [("87283082affffff", 7.0), ("872830828ffffff", 2.5)]);
        assert!(expected.cells[0].corners.len() >= 5);
        assert!(Expected::read(b"{}").is_err());
        assert!(Expected::read(b"[]").unwrap().made.is_none());
    }

    #[test]
    fn there_are_never_more_cells_than_the_bound() {
        let many: Vec<_> = (0..=CELLS_MAX)
            .map(|n| said("872830828ffffff", n as f64))
            .collect();
        let answer = serde_json::to_vec(&many).unwrap();
        assert!(answer.len() < ANSWER_BYTES_MAX, "a full answer is read");
        let kept = Expected::read(&answer).unwrap().cells;
        assert_eq!((kept.len(), kept[CELLS_MAX - 1].next()), (CELLS_MAX, 1.0));
    }
}
