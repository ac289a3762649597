//! What does the live map draw? The city cut into tiles, encoded once for all who look.
//!
//! A page asks `GET /v1/map` for its viewport a few times a second. The first who asks after a tick is over makes the next
//! snapshot; everybody else gets their tiles of the same one, copied together. So nobody looking costs nothing, and one
//! more map costs its bytes. Asking (instead of a stream) needs no state of a map here: a page that was away, a server
//! that starts anew and a token that is over are all plain answers to the next question.
//!
//! The answer's layout is in `docs/protocol.md`, "The map", and is read by `web/src/frame.ts`.
//! Bounds: an answer holds at most `map.drivers_max` drivers and rides; a view with more gets none and says so.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use cabrank_events::DriverId;
use cabrank_events::map::{Drawing, FILM_KEYS_FROM, Shown, Sketch, View};
use cabrank_events::wire::{RideStage, RideView};
use cabrank_geo::Point;
use cabrank_matcher::api::{Dispatch, EventsUnreadable};
use h3o::{CellIndex, LatLng, Resolution};
use serde::Serialize;
use tokio::sync::Mutex;

use crate::access::Endpoint;
use crate::config::MapConfig;
use crate::edge::Edge;
use crate::film::{self, Track};
use crate::http::{Shared, json};
use crate::problem::Problem;
use crate::pulse::Rates;
use crate::query::Asked;

/// Cells and rates are made anew at most so often.
const AREA_EVERY: Duration = Duration::from_secs(2);
/// And the film of the last minutes: it costs a read of the log.
const FILM_EVERY: Duration = Duration::from_secs(5);

/// The sides of a view, as they are asked for.
pub const SIDES: [&str; 4] = ["south", "west", "north", "east"];

/// The city at one moment.
struct Snapshot {
    number: u32,
    made: Instant,
    drawing: Drawing,
    names: HashMap<u32, DriverId>,
}

#[derive(Serialize, schemars::JsonSchema, Clone)]
pub struct CellCounts {
    /// The H3 cell.
    cell: String,
    /// Its corners, latitude and longitude.
    corners: Vec<[f64; 2]>,
    /// Cars that are free.
    free: u32,
    /// Riders who wait.
    waiting: u32,
    /// Rides asked for here in the last five minutes.
    asked: u32,
}

/// Answer of `GET /v1/map/area`.
#[derive(Serialize, schemars::JsonSchema)]
pub struct Area {
    /// Demand and supply.
    cells: Vec<CellCounts>,
    /// The last minute of the whole city.
    rates: Rates,
}

struct Areas {
    made: Instant,
    cells: Vec<CellCounts>,
    rates: Rates,
    pings: u64,
}

#[derive(Default)]
struct Kept {
    newest: Option<Arc<Snapshot>>,
    /// Numbers for drivers that stay the same from one snapshot to the next.
    keys: HashMap<DriverId, u32>,
    next_key: u32,
    /// Where cars have been, for the film of the last minutes.
    track: Track,
}

/// What is kept between two questions.
#[derive(Default)]
pub struct Map {
    kept: Arc<Mutex<Kept>>,
    areas: Mutex<Option<Arc<Areas>>>,
    film: Arc<Mutex<Option<(Instant, Bytes)>>>,
}

impl Snapshot {
    fn make(dispatch: &dyn Dispatch, kept: &mut Kept, map: &MapConfig) -> Snapshot {
        let number = kept
            .newest
            .as_ref()
            .map_or_else(first_number, |last| last.number.wrapping_add(1));
        let mut rides: Vec<Arc<RideView>> = Vec::new();
        dispatch.each_ride(&mut |ride| {
            if !ride.stage.is_end() {
                rides.push(ride.clone());
            }
        });
        let stages: HashMap<_, _> = rides.iter().map(|ride| (ride.ride, ride.stage)).collect();
        let mut sketch = Sketch::default();
        let (mut keys, mut places) = (HashMap::with_capacity(kept.keys.len()), HashMap::new());
        let mut names = HashMap::with_capacity(kept.keys.len());
        dispatch.each_driver(&mut |driver| {
            let key = kept.keys.get(driver.id).copied().unwrap_or_else(|| {
                kept.next_key = (kept.next_key + 1) % FILM_KEYS_FROM;
                kept.next_key
            });
            keys.insert(driver.id.clone(), key);
            names.insert(key, driver.id.clone());
            let stage = |ride| stages.get(&ride).copied();
            let shown = Shown::of(driver.view.session.is_some(), driver.view.hold, stage);
            let silent = driver.at.is_some_and(|at| is_silent(at.age_ms, map));
            let at = driver.at.map(|position| position.at.0);
            places.extend(at.map(|at| (key, at)));
            sketch.driver(key, shown, at, silent);
        });
        for ride in &rides {
            let driver = ride.driver.as_ref().and_then(|id| keys.get(id)).copied();
            let car = driver.and_then(|key| places.get(&key).copied());
            sketch.ride(ride, driver, car);
        }
        kept.keys = keys;
        let now = dispatch.now();
        kept.track.note(now, places, map.film_s * 1_000);
        Snapshot {
            number,
            made: Instant::now(),
            drawing: sketch.finish(number, map.tick_ms, now),
            names,
        }
    }
}

/// The first number is another one at each start, so that a page never takes an answer of a new server for the old one's.
fn first_number() -> u32 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0) as u32
}

fn is_silent(age_ms: i64, map: &MapConfig) -> bool {
    u64::try_from(age_ms).is_ok_and(|age_ms| age_ms > map.silent_ms)
}

impl Edge {
    /// The newest snapshot, at most a tick old.
    async fn snapshot(self: &Arc<Self>) -> Result<Arc<Snapshot>, Problem> {
        let mut kept = self.map.kept.clone().lock_owned().await;
        let tick = Duration::from_millis(self.config.map.tick_ms);
        let newest = kept.newest.as_ref();
        if let Some(fresh) = newest.filter(|newest| newest.made.elapsed() < tick) {
            return Ok(fresh.clone());
        }
        let edge = self.clone();
        // What is kept goes along: a page that goes away meanwhile must not leave it half changed.
        let made = tokio::task::spawn_blocking(move || {
            let made = Snapshot::make(&*edge.dispatch, &mut kept, &edge.config.map);
            kept.newest.insert(Arc::new(made)).clone()
        });
        made.await
            .map_err(|_| Problem::busy("the map could not be drawn: ask again"))
    }

    /// The last minutes, some seconds old at most. One is made at a time, whoever asks.
    async fn film(self: &Arc<Self>) -> Result<Bytes, Problem> {
        let mut kept = self.map.film.clone().lock_owned().await;
        if let Some((_, fresh)) = kept
            .as_ref()
            .filter(|(made, _)| made.elapsed() < FILM_EVERY)
        {
            return Ok(fresh.clone());
        }
        // Also notes where the cars are now.
        self.snapshot().await?;
        let known = {
            let map = self.map.kept.lock().await;
            (map.keys.clone(), map.track.clone())
        };
        let edge = self.clone();
        // What is kept goes along: who asks meanwhile waits for this one, also when the first has gone away.
        let made = tokio::task::spawn_blocking(move || {
            let (keys, track) = known;
            let bytes = Bytes::from(film::make(&*edge.dispatch, &edge.config.map, keys, &track)?);
            *kept = Some((Instant::now(), bytes.clone()));
            Ok(bytes)
        });
        let made = made.await.unwrap_or(Err(EventsUnreadable::Gone));
        made.map_err(|why| {
            tracing::warn!(%why, "the last minutes cannot be shown");
            Problem::busy("the log cannot be read: ask again")
        })
    }

    /// Cells and rates, some seconds old at most.
    async fn areas(self: &Arc<Self>) -> Result<Arc<Areas>, Problem> {
        let mut kept = self.map.areas.lock().await;
        if let Some(fresh) = kept
            .as_ref()
            .filter(|areas| areas.made.elapsed() < AREA_EVERY)
        {
            return Ok(fresh.clone());
        }
        let (edge, before) = (self.clone(), kept.clone());
        let made =
            tokio::task::spawn_blocking(move || Arc::new(Areas::make(&edge, before.as_deref())));
        let made = made
            .await
            .map_err(|_| Problem::busy("the map could not be drawn: ask again"))?;
        *kept = Some(made.clone());
        Ok(made)
    }
}

/// Asked for, free, waiting.
type Tally = (u32, u32, u32);

impl Areas {
    fn make(edge: &Edge, before: Option<&Areas>) -> Areas {
        let wall_ms = edge.wall_ms();
        // Checked with the configuration.
        let res =
            Resolution::try_from(edge.config.map.cell_resolution).unwrap_or(Resolution::Eight);
        let mut cells: HashMap<CellIndex, Tally> = HashMap::new();
        let mut add = |at: Point, to: fn(&mut Tally) -> &mut u32| {
            if let Ok(at) = LatLng::new(at.lat_deg(), at.lon_deg()) {
                *to(cells.entry(at.to_cell(res)).or_default()) += 1;
            }
        };
        edge.pulse
            .each_wish(wall_ms, |at| add(at, |tally| &mut tally.0));
        edge.dispatch.each_driver(&mut |driver| {
            let is_free = driver.view.session.is_some() && driver.view.hold.is_none();
            if let Some(position) = driver
                .at
                .filter(|at| is_free && !is_silent(at.age_ms, &edge.config.map))
            {
                add(position.at.0, |tally| &mut tally.1);
            }
        });
        edge.dispatch.each_ride(&mut |ride| {
            if matches!(ride.stage, RideStage::Waiting | RideStage::Offered) {
                add(ride.pickup.0, |tally| &mut tally.2);
            }
        });
        let cells = cells
            .into_iter()
            .map(|(cell, (asked, free, waiting))| CellCounts {
                cell: cell.to_string(),
                corners: cell
                    .boundary()
                    .iter()
                    .map(|corner| [corner.lat(), corner.lng()])
                    .collect(),
                free,
                waiting,
                asked,
            });
        let made = Instant::now();
        let pings = edge.counters.snapshot().accepted;
        let mut rates = edge.pulse.rates(wall_ms);
        if let Some(before) = before {
            let seconds = made.duration_since(before.made).as_secs_f64();
            rates.pings_per_second = pings.saturating_sub(before.pings) as f64 / seconds.max(1e-3);
        }
        Areas {
            made,
            cells: cells.collect(),
            rates,
            pings,
        }
    }
}

pub fn view(asked: &Asked<'_>) -> Result<Option<View>, Problem> {
    if SIDES.iter().all(|side| asked.text(side).is_none()) {
        return Ok(None);
    }
    let degrees = |most: f64| move |value: &f64| (-most..=most).contains(value);
    let lat = |side| {
        asked.needed(
            side,
            "give all four sides; degrees north, -90 to 90",
            degrees(90.0),
        )
    };
    let lon = |side| {
        asked.needed(
            side,
            "give all four sides; degrees east, -180 to 180",
            degrees(180.0),
        )
    };
    Ok(Some(View {
        south: lat("south")?,
        west: lon("west")?,
        north: lat("north")?,
        east: lon("east")?,
    }))
}

/// `GET /v1/map`
pub async fn map(State(edge): Shared, headers: HeaderMap, uri: Uri) -> Result<Response, Problem> {
    edge.authorize(Endpoint::Desk, &headers)?;
    let asked = Asked::of(&uri, &["south", "west", "north", "east", "after"])?;
    let view = view(&asked)?;
    let after: Option<u32> =
        asked.value("after", "give the number of the last answer", |_| true)?;
    let snapshot = edge.snapshot().await?;
    if after == Some(snapshot.number) {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let content_type = [
        (header::CONTENT_TYPE, "application/octet-stream"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    Ok((
        content_type,
        snapshot.drawing.cut(view, edge.config.map.drivers_max),
    )
        .into_response())
}

/// `GET /v1/map/film`
pub async fn film(State(edge): Shared, headers: HeaderMap, uri: Uri) -> Result<Response, Problem> {
    edge.authorize(Endpoint::Desk, &headers)?;
    Asked::of(&uri, &[])?;
    let content_type = [
        (header::CONTENT_TYPE, "application/octet-stream"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    Ok((content_type, edge.film().await?).into_response())
}

/// `GET /v1/map/area`
pub async fn area(State(edge): Shared, headers: HeaderMap, uri: Uri) -> Result<Response, Problem> {
    edge.authorize(Endpoint::Desk, &headers)?;
    let view = view(&Asked::of(&uri, &SIDES)?)?;
    let areas = edge.areas().await?;
    let is_seen = |cell: &&CellCounts| {
        let seen = |view: View| {
            cell.corners
                .iter()
                .any(|[lat, lon]| view.holds(*lat, *lon, 0.0))
        };
        view.is_none_or(seen)
    };
    Ok(json(
        StatusCode::OK,
        &Area {
            cells: areas
                .cells
                .iter()
                .filter(is_seen)
                .take(edge.config.map.drivers_max)
                .cloned()
                .collect(),
            rates: areas.rates.clone(),
        },
    ))
}

/// Answer of `GET /v1/map/drivers/{key}`.
#[derive(Serialize, schemars::JsonSchema)]
pub struct Named {
    /// Who it is.
    driver: DriverId,
}

/// `GET /v1/map/drivers/{key}`
pub async fn name(
    State(edge): Shared,
    headers: HeaderMap,
    Path(key): Path<String>,
) -> Result<Response, Problem> {
    edge.authorize(Endpoint::Desk, &headers)?;
    let snapshot = edge.snapshot().await?;
    let driver = key
        .parse()
        .ok()
        .and_then(|key: u32| snapshot.names.get(&key));
    let driver = driver.cloned().ok_or_else(|| {
        let detail = "give the number of a driver in the newest answer of GET /v1/map";
        Problem::new(404, "unknown_driver", "No such driver", detail)
    })?;
    Ok(json(StatusCode::OK, &Named { driver }))
}
