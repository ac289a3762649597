//! What does the live map draw? The city cut into tiles, encoded once for all who look.
//!
//! A page asks `GET /v1/map` for its viewport a few times a second. The first who asks after a tick is over makes the next
//! snapshot; everybody else gets their tiles of the same one, copied together. So nobody looking costs nothing, and one
//! more map costs its bytes. Asking (instead of a stream) needs no state of a map here: a page that was away, a server
//! that starts anew and a token that is over are all plain answers to the next question.
//!
//! The answer's layout is in `docs/protocol.md`, "The map", and is read by `web/src/frame.ts`.
//! Bounds: an answer holds at most `map.drivers_max` drivers and rides; a view with more gets none and says so.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use cabrank_events::DriverId;
use cabrank_events::wire::{RideStage, RideView};
use cabrank_geo::Point;
use cabrank_matcher::api::Dispatch;
use h3o::{CellIndex, LatLng, Resolution};
use serde::Serialize;
use tokio::sync::Mutex;

use crate::access::Endpoint;
use crate::config::MapConfig;
use crate::edge::Edge;
use crate::http::{Shared, json};
use crate::problem::Problem;
use crate::pulse::Rates;
use crate::query::Asked;

/// The version of the layout, first byte of each answer.
const LAYOUT: u8 = 1;
/// The side of a tile in units of 1e-7 degrees: 0.02 degrees, about 2 km. Places in a tile are 16-bit parts of it, 3 cm.
const TILE_E7: i32 = 200_000;
/// The view holds more than an answer may.
const FLAG_TOO_MANY: u8 = 1;
/// No driver, in a ride's record.
const NOBODY: u32 = u32::MAX;
/// Cells and rates are made anew at most so often.
const AREA_EVERY: Duration = Duration::from_secs(2);

/// The sides of a view, as they are asked for.
pub const SIDES: [&str; 4] = ["south", "west", "north", "east"];

/// How a driver is drawn; the numbers are those of the answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
enum Shown {
    Offline = 0,
    Free = 1,
    /// Kept for a ride, being asked.
    Held = 2,
    ToPickup = 3,
    WithRider = 4,
}

/// Set beside the state of a driver who should ping and has not for `map.silent_ms`.
const SILENT: u8 = 0x80;

#[derive(Default)]
struct Tile {
    drivers: Vec<u8>,
    rides: Vec<u8>,
}

/// A part of Earth as a page sees it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct View {
    south: f64,
    west: f64,
    north: f64,
    east: f64,
}

impl View {
    pub fn holds(&self, lat: f64, lon: f64, margin: f64) -> bool {
        let (west, east) = (self.west - margin, self.east + margin);
        let in_turn = if self.west <= self.east {
            (west..=east).contains(&lon)
        } else {
            // Over the antimeridian.
            lon >= west || lon <= east
        };
        in_turn && (self.south - margin..=self.north + margin).contains(&lat)
    }
}

/// The city at one moment.
struct Snapshot {
    number: u32,
    made: Instant,
    head: Vec<u8>,
    tiles: BTreeMap<(i16, i16), Tile>,
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
}

/// What is kept between two questions.
#[derive(Default)]
pub struct Map {
    kept: Arc<Mutex<Kept>>,
    areas: Mutex<Option<Arc<Areas>>>,
}

fn tile_of(at: Point) -> (i16, i16) {
    // 90 degrees are 4,500 tiles and 180 are 9,000: both fit.
    let part = |e7: i32| i16::try_from(e7.div_euclid(TILE_E7)).unwrap_or(i16::MAX);
    (part(at.lat_e7()), part(at.lon_e7()))
}

/// The place within its tile.
fn within(e7: i32) -> u16 {
    let part = i64::from(e7.rem_euclid(TILE_E7)) * 65_536 / i64::from(TILE_E7);
    u16::try_from(part).unwrap_or(u16::MAX)
}

fn put_place(out: &mut Vec<u8>, at: Point) {
    out.extend(at.lat_e7().to_le_bytes());
    out.extend(at.lon_e7().to_le_bytes());
}

fn stage_number(stage: RideStage) -> u8 {
    match stage {
        RideStage::Waiting => 0,
        RideStage::Offered => 1,
        RideStage::EnRoute => 2,
        RideStage::Arrived => 3,
        RideStage::Started => 4,
        RideStage::Completed | RideStage::Cancelled | RideStage::Unfulfilled => 5,
    }
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
        let mut counts = [0u32; 11];
        let mut tiles: BTreeMap<(i16, i16), Tile> = BTreeMap::new();
        let (mut keys, mut places) = (HashMap::with_capacity(kept.keys.len()), HashMap::new());
        let mut names = HashMap::with_capacity(kept.keys.len());
        let (mut lats, mut lons) = (Vec::new(), Vec::new());
        dispatch.each_driver(&mut |driver| {
            let key = kept.keys.get(driver.id).copied().unwrap_or_else(|| {
                kept.next_key = (kept.next_key + 1) % NOBODY;
                kept.next_key
            });
            keys.insert(driver.id.clone(), key);
            names.insert(key, driver.id.clone());
            let shown = match (driver.view.session, driver.view.hold) {
                (_, Some(hold)) => match stages.get(&hold.ride) {
                    Some(RideStage::EnRoute | RideStage::Arrived) => Shown::ToPickup,
                    Some(RideStage::Started) => Shown::WithRider,
                    _ => Shown::Held,
                },
                (Some(_), None) => Shown::Free,
                (None, None) => Shown::Offline,
            };
            counts[shown as usize] += 1;
            let Some(position) = driver.at else { return };
            let at = position.at.0;
            places.insert(key, at);
            lats.push(at.lat_e7());
            lons.push(at.lon_e7());
            let mut state = shown as u8;
            if is_silent(position.age_ms, map) && shown != Shown::Offline {
                state |= SILENT;
                counts[5] += 1;
            }
            let out = &mut tiles.entry(tile_of(at)).or_default().drivers;
            out.extend(key.to_le_bytes());
            out.extend(within(at.lat_e7()).to_le_bytes());
            out.extend(within(at.lon_e7()).to_le_bytes());
            out.push(state);
        });
        for ride in &rides {
            let stage = stage_number(ride.stage);
            counts[6 + usize::from(stage)] += 1;
            lats.push(ride.pickup.0.lat_e7());
            lons.push(ride.pickup.0.lon_e7());
            let driver = ride.driver.as_ref().and_then(|id| keys.get(id)).copied();
            let car = driver.and_then(|key| places.get(&key).copied());
            let record = ride_record(ride, stage, driver, car);
            // Where its car is, too: a page that sees the car sees where it goes.
            let here = tile_of(ride.pickup.0);
            tiles.entry(here).or_default().rides.extend(&record);
            if let Some(there) = car.map(tile_of).filter(|there| *there != here) {
                tiles.entry(there).or_default().rides.extend(&record);
            }
        }
        kept.keys = keys;
        let mut head = vec![LAYOUT, 0];
        head.extend(u16::try_from(map.tick_ms).unwrap_or(u16::MAX).to_le_bytes());
        head.extend(number.to_le_bytes());
        head.extend(dispatch.now().0.to_le_bytes());
        let ((south, north), (west, east)) = (most_of(&mut lats), most_of(&mut lons));
        for side in [south, west, north, east] {
            head.extend(side.to_le_bytes());
        }
        for count in counts {
            head.extend(count.to_le_bytes());
        }
        Snapshot {
            number,
            made: Instant::now(),
            head,
            tiles,
            names,
        }
    }

    /// What a view shows; without one only what holds for the whole city.
    fn cut(&self, view: Option<View>, most: usize) -> Vec<u8> {
        let side = f64::from(TILE_E7) / 1e7;
        let middle = |n: i16| (f64::from(n) + 0.5) * side;
        let is_seen = |(row, column): (i16, i16)| {
            view.is_some_and(|view| view.holds(middle(row), middle(column), side / 2.0))
        };
        let seen: Vec<_> = self
            .tiles
            .iter()
            .filter(|(place, _)| is_seen(**place))
            .collect();
        let drivers: usize = seen.iter().map(|(_, tile)| tile.drivers.len()).sum();
        let rides: usize = seen.iter().map(|(_, tile)| tile.rides.len()).sum();
        let is_too_many = drivers / DRIVER_BYTES > most || rides / RIDE_BYTES > most;
        let mut out = Vec::with_capacity(self.head.len() + seen.len() * 8 + drivers + rides + 8);
        out.extend(&self.head);
        if is_too_many {
            out[1] |= FLAG_TOO_MANY;
            out.extend([0; 8]);
            return out;
        }
        let count = |bytes: usize, each: usize| ((bytes / each) as u32).to_le_bytes();
        out.extend((seen.len() as u32).to_le_bytes());
        for ((row, column), tile) in &seen {
            out.extend(row.to_le_bytes());
            out.extend(column.to_le_bytes());
            out.extend(count(tile.drivers.len(), DRIVER_BYTES));
            out.extend(&tile.drivers);
        }
        out.extend(count(rides, RIDE_BYTES));
        seen.iter().for_each(|(_, tile)| out.extend(&tile.rides));
        out
    }
}

/// A driver: key, place in the tile, state.
const DRIVER_BYTES: usize = 4 + 2 + 2 + 1;
/// A ride: id, stage, whether it has a drop-off, pickup, drop-off, the driver's key, the driver's place.
const RIDE_BYTES: usize = 2 + 2 + 8 + 1 + 1 + 8 + 8 + 4 + 8;

/// The first number is another one at each start, so that a page never takes an answer of a new server for the old one's.
fn first_number() -> u32 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0) as u32
}

fn ride_record(ride: &RideView, stage: u8, driver: Option<u32>, car: Option<Point>) -> Vec<u8> {
    let mut out = Vec::with_capacity(RIDE_BYTES);
    out.extend(ride.ride.place.0.to_le_bytes());
    out.extend(ride.ride.minted_by.0.to_le_bytes());
    out.extend(ride.ride.offset.to_le_bytes());
    out.push(stage);
    out.push(u8::from(ride.dropoff.is_some()));
    put_place(&mut out, ride.pickup.0);
    put_place(&mut out, ride.dropoff.unwrap_or(ride.pickup).0);
    // A car without a place has no line to be drawn.
    out.extend(
        driver
            .filter(|_| car.is_some())
            .unwrap_or(NOBODY)
            .to_le_bytes(),
    );
    put_place(&mut out, car.unwrap_or(ride.pickup.0));
    out
}

fn is_silent(age_ms: i64, map: &MapConfig) -> bool {
    u64::try_from(age_ms).is_ok_and(|age_ms| age_ms > map.silent_ms)
}

/// The least and the largest, when the hundredth part at each end is left out: one car far away must not make the city
/// a dot. 0 and 0 of none.
fn most_of(all: &mut [i32]) -> (i32, i32) {
    let out = all.len() / 100;
    let Some(last) = all.len().checked_sub(1 + out) else {
        return (0, 0);
    };
    let least = *all.select_nth_unstable(out).1;
    (least, *all.select_nth_unstable(last).1)
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
        snapshot.cut(view, edge.config.map.drivers_max),
    )
        .into_response())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_found_again_from_its_tile_and_its_part_of_it() {
        for (lat, lon) in [
            (37.7749, -122.4194),
            (-0.00001, 0.00001),
            (-89.99, 179.99),
            (0.0, 0.0),
        ] {
            let at = Point::new(lat, lon).unwrap();
            let (row, column) = tile_of(at);
            let side = f64::from(TILE_E7) / 1e7;
            let back =
                |tile: i16, e7: i32| (f64::from(tile) + f64::from(within(e7)) / 65_536.0) * side;
            assert!((back(row, at.lat_e7()) - lat).abs() < 1e-6, "{lat}");
            assert!((back(column, at.lon_e7()) - lon).abs() < 1e-6, "{lon}");
        }
    }

    #[test]
    fn one_car_far_away_does_not_make_the_city_a_dot() {
        let mut all: Vec<i32> = (0..300).collect();
        all[7] = 1_000_000;
        assert_eq!(most_of(&mut all), (3, 297));
        assert_eq!(most_of(&mut [5, -2, 9]), (-2, 9));
        assert_eq!(most_of(&mut [4]), (4, 4));
        assert_eq!(most_of(&mut []), (0, 0));
    }

    #[test]
    fn a_view_over_the_antimeridian_sees_both_sides_of_it() {
        let fiji = View {
            south: -20.0,
            west: 177.0,
            north: -15.0,
            east: -178.0,
        };
        assert!(fiji.holds(-17.0, 179.9, 0.0) && fiji.holds(-17.0, -179.9, 0.0));
        assert!(!fiji.holds(-17.0, 0.0, 0.0) && !fiji.holds(0.0, 179.9, 0.0));
    }

    #[test]
    fn a_view_with_more_than_an_answer_may_hold_gets_none_and_says_so() {
        let mut tiles = BTreeMap::new();
        let tile = Tile {
            drivers: vec![0; 3 * DRIVER_BYTES],
            rides: Vec::new(),
        };
        tiles.insert((0, 0), tile);
        let head = vec![LAYOUT, 0];
        let snapshot = Snapshot {
            number: 1,
            made: Instant::now(),
            head,
            tiles,
            names: HashMap::new(),
        };
        let all = Some(View {
            south: -1.0,
            west: -1.0,
            north: 1.0,
            east: 1.0,
        });
        assert_eq!(snapshot.cut(all, 3).len(), 2 + 4 + 8 + 3 * DRIVER_BYTES + 4);
        let cut = snapshot.cut(all, 2);
        assert_eq!((cut[1], cut.len()), (FLAG_TOO_MANY, 2 + 8));
        assert_eq!(
            snapshot.cut(None, 3).len(),
            2 + 8,
            "without a view: the city as a whole"
        );
    }
}
