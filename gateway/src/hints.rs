//! Where might an idle driver go? Advice to phones, from what the forecast service expects.
//!
//! Every `look_every_ms` the gateway compares, cell by cell, the rides expected in the next quarter hour with the free cars that
//! are there now. Where a car or more is missing, the nearest idle drivers out of cells that can spare one hear `head_to`.
//! Holds: nobody is sent where cars enough are or already go; no cell is left with less than it needs itself; a driver hears at
//! most one hint in `driver_every_ms`, whether it was followed or not; who has a ride, an offer or a place in an airport's
//! queue hears none. It is advice: no state of the city changes by it, and nothing looks whether it is followed.
//! Gateways do not talk to each other: each makes up for the part of a shortage that its drivers are of all idle ones.
//! Bounds: [`CELLS_MAX`] cells a look, those that miss most; the drivers told are a part of those remembered.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use cabrank_events::wire::HeadToView;
use cabrank_events::{DriverId, Place};
use cabrank_geo::Point;
use h3o::{CellIndex, LatLng};
use serde::{Deserialize, Serialize};
use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::edge::Edge;
use crate::news::DriverNews;

/// Cells that are looked after at once.
const CELLS_MAX: usize = 64;
/// So soon the nodes have told where all cars are.
const ASKED_FOR: Duration = Duration::from_secs(1);

/// Advice as the configuration has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct HintsConfig {
    /// Are idle drivers told where more rides are expected than cars are free? Needs `gateway.forecasts.url`.
    pub head_to: bool,
    /// How often it is looked where cars are missing, in milliseconds (100 to 3,600,000). Costs a walk over all drivers.
    pub look_every_ms: u64,
    /// A driver hears at most one hint in this time, in milliseconds (1,000 to 86,400,000). So long one who was told counts as on
    /// the way there.
    pub driver_every_ms: u64,
    /// Nobody is sent farther than this, in metres (100 to 100,000).
    pub distance_m_max: u32,
}

impl Default for HintsConfig {
    fn default() -> Self {
        Self {
            head_to: false,
            look_every_ms: 30_000,
            driver_every_ms: 600_000,
            distance_m_max: 5_000,
        }
    }
}

/// A driver at work without a ride.
#[derive(Clone, Debug)]
struct Idle {
    driver: DriverId,
    at: Point,
    cell: CellIndex,
    /// Has a socket here.
    is_ours: bool,
    /// And may be told something now.
    may_be_told: bool,
    /// Was told to go elsewhere, and has not come there.
    is_leaving: bool,
}

/// Which idle driver (by its place in the list) goes to which cell.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Move {
    who: usize,
    to: CellIndex,
    expected: f64,
    free: u32,
}

/// Who hears what. `going`: how many were told lately to go to a cell, and are not there yet.
fn choose(
    expected: &[(CellIndex, f64)],
    idle: &[Idle],
    going: &HashMap<CellIndex, u32>,
    distance_m_max: u32,
) -> Vec<Move> {
    let mut free: HashMap<CellIndex, u32> = HashMap::new();
    for one in idle.iter().filter(|one| !one.is_leaving) {
        *free.entry(one.cell).or_default() += 1;
    }
    let free_in = |cell| free.get(&cell).copied().unwrap_or(0);
    let needs: HashMap<CellIndex, f64> = expected.iter().copied().collect();
    // A cast of a float saturates; expectations are finite and not below 0.
    let mut spare: HashMap<CellIndex, u32> = HashMap::new();
    for (cell, cars) in &free {
        let needed = needs.get(cell).copied().unwrap_or(0.0).ceil() as u32;
        spare.insert(*cell, cars.saturating_sub(needed));
    }
    let mut short: Vec<(CellIndex, f64, u32)> = expected
        .iter()
        .map(|(cell, rides)| {
            (
                *cell,
                *rides,
                (rides - f64::from(free_in(*cell))).max(0.0) as u32,
            )
        })
        .filter(|(.., missing)| *missing > 0)
        .collect();
    short.sort_by(|a, b| b.2.cmp(&a.2).then(a.0.cmp(&b.0)));
    short.truncate(CELLS_MAX);
    let ours = idle.iter().filter(|one| one.is_ours).count() as u64;
    let all = idle.len().max(1) as u64;
    let mut is_taken = vec![false; idle.len()];
    let mut moves = Vec::new();
    for (cell, rides, missing) in short {
        let part = (u64::from(missing) * ours).div_ceil(all);
        let on_the_way = going.get(&cell).copied().unwrap_or(0);
        let wanted = part.saturating_sub(u64::from(on_the_way));
        let middle = LatLng::from(cell);
        let Ok(middle) = Point::new(middle.lat(), middle.lng()) else {
            continue;
        };
        let mut near: Vec<(f64, usize)> = idle
            .iter()
            .enumerate()
            .filter(|(who, one)| one.may_be_told && !is_taken[*who] && one.cell != cell)
            .map(|(who, one)| (one.at.distance_m(middle), who))
            .filter(|(metres, _)| *metres <= f64::from(distance_m_max))
            .collect();
        near.sort_by(|a, b| {
            a.0.total_cmp(&b.0)
                .then_with(|| idle[a.1].driver.cmp(&idle[b.1].driver))
        });
        let mut sent = 0;
        for (_, who) in near {
            let left = spare.entry(idle[who].cell).or_default();
            if sent == wanted {
                break;
            }
            if *left > 0 {
                *left -= 1;
                sent += 1;
                is_taken[who] = true;
                moves.push(Move {
                    who,
                    to: cell,
                    expected: rides,
                    free: free_in(cell),
                });
            }
        }
    }
    moves
}

/// What a driver was told last.
#[derive(Clone, Copy)]
struct Told {
    to: CellIndex,
    at_ms: u64,
}

/// Gives advice until it is dropped.
pub async fn keep_advising(edge: Arc<Edge>) {
    let mut told = HashMap::new();
    let mut looks = interval(Duration::from_millis(edge.config.hints.look_every_ms));
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        if edge.dispatch.nodes().is_some() {
            // A gateway process asks the nodes for cars that ping elsewhere from the first look on.
            edge.dispatch.each_driver(&mut |_| {});
            sleep(ASKED_FOR).await;
        }
        let (looking, mut before) = (edge.clone(), std::mem::take(&mut told));
        // Over all drivers: not for a thread that serves calls.
        let looked = tokio::task::spawn_blocking(move || {
            looking.advise(&mut before);
            before
        });
        match looked.await {
            Ok(now) => told = now,
            Err(why) => return tracing::error!(%why, "no more hints"),
        }
        metrics::counter!("cabrank_hint_looks_total").increment(1);
    }
}

impl Edge {
    fn advise(&self, told: &mut HashMap<DriverId, Told>) {
        let config = &self.config.hints;
        let now_ms = self.wall_ms();
        told.retain(|_, told| now_ms < told.at_ms.saturating_add(config.driver_every_ms));
        let forecast = self.forecasts.newest();
        let Some(resolution) = forecast.cells.first().map(|cell| cell.index.resolution()) else {
            return;
        };
        let expected: Vec<_> = forecast
            .cells
            .iter()
            .map(|cell| (cell.index, cell.next()))
            .collect();
        let mut idle = Vec::new();
        self.dispatch.each_driver(&mut |driver| {
            let is_idle = driver.view.session.is_some() && driver.view.hold.is_none();
            let is_seen =
                |age_ms: i64| u64::try_from(age_ms).unwrap_or(0) <= self.config.map.silent_ms;
            let at = driver.at.filter(|at| is_idle && is_seen(at.age_ms));
            let place = at.and_then(|at| {
                let Place(at) = at.at;
                let cell = LatLng::new(at.lat_deg(), at.lon_deg())
                    .ok()?
                    .to_cell(resolution);
                Some((at, cell))
            });
            if let Some((at, cell)) = place {
                idle.push(Idle {
                    driver: driver.id.clone(),
                    at,
                    cell,
                    is_ours: false,
                    may_be_told: false,
                    is_leaving: false,
                });
            }
        });
        let mut going: HashMap<CellIndex, u32> = HashMap::new();
        for one in &mut idle {
            let last = told.get(&one.driver);
            if let Some(last) = last.filter(|last| last.to != one.cell) {
                *going.entry(last.to).or_default() += 1;
                one.is_leaving = true;
            }
            one.is_ours = self.drivers.is_connected(&one.driver);
            let is_free_to_go = || self.dispatch.queue_place(&one.driver).is_none();
            one.may_be_told = one.is_ours && last.is_none() && is_free_to_go();
        }
        let until = self.dispatch.now().plus_ms(config.driver_every_ms);
        for chosen in choose(&expected, &idle, &going, config.distance_m_max) {
            let driver = &idle[chosen.who].driver;
            let to = LatLng::from(chosen.to);
            let Ok(to) = Point::new(to.lat(), to.lng()) else {
                continue;
            };
            let hint = HeadToView {
                to: Place(to),
                cell: chosen.to.to_string(),
                expected: chosen.expected,
                free: chosen.free,
                until,
            };
            self.drivers
                .tell(driver, || DriverNews::HeadTo(Box::new(hint)));
            metrics::counter!("cabrank_hints_total").increment(1);
            let (to, at_ms) = (chosen.to, now_ms);
            told.insert(driver.clone(), Told { to, at_ms });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A cell and its neighbours, some 2.3 km apart.
    fn cells() -> Vec<CellIndex> {
        let middle = LatLng::new(37.7749, -122.4194).unwrap();
        middle.to_cell(h3o::Resolution::Seven).grid_disk(1)
    }

    fn idle(cell: CellIndex, number: usize, is_ours: bool) -> Idle {
        let at = LatLng::from(cell);
        Idle {
            driver: DriverId::new(&format!("d{number}")).unwrap(),
            at: Point::new(at.lat(), at.lng()).unwrap(),
            cell,
            is_ours,
            may_be_told: is_ours,
            is_leaving: false,
        }
    }

    /// How many go to each cell.
    fn sent(moves: &[Move]) -> HashMap<CellIndex, usize> {
        let mut sent = HashMap::new();
        for one in moves {
            *sent.entry(one.to).or_default() += 1;
        }
        sent
    }

    #[test]
    fn as_many_go_as_are_missing_and_no_cell_gives_what_it_needs() {
        let cells = cells();
        let expected = [(cells[0], 3.9), (cells[1], 2.0), (cells[2], 1.0)];
        let drivers = |counts: [usize; 4]| {
            let each = counts.iter().zip(&cells);
            let each = each.flat_map(|(count, cell)| std::iter::repeat_n(*cell, *count));
            each.enumerate()
                .map(|(n, cell)| idle(cell, n, true))
                .collect::<Vec<_>>()
        };
        let none = HashMap::new();
        let moves = choose(&expected, &drivers([1, 4, 1, 0]), &none, 5_000);
        assert_eq!(sent(&moves), [(cells[0], 2)].into(), "two are missing");
        assert!(
            moves
                .iter()
                .all(|one| (1..5).contains(&one.who) && one.free == 1)
        );
        let moves = choose(&expected, &drivers([4, 4, 1, 9]), &none, 5_000);
        assert_eq!(moves, [], "cars enough everywhere");
        let moves = choose(&expected, &drivers([1, 2, 1, 0]), &none, 5_000);
        assert_eq!(moves, [], "nobody has one to spare");
        let moves = choose(&expected, &drivers([1, 4, 1, 9]), &none, 100);
        assert_eq!(moves, [], "everybody is too far away");
        let going = [(cells[0], 2)].into();
        let moves = choose(&expected, &drivers([1, 4, 1, 9]), &going, 5_000);
        assert_eq!(moves, [], "two go there already");
        let mut some = drivers([1, 5, 1, 0]);
        for one in some.iter_mut().filter(|one| one.cell == cells[1]).take(2) {
            (one.is_leaving, one.may_be_told) = (true, false);
        }
        let moves = choose(&[(cells[0], 9.0), expected[1]], &some, &none, 5_000);
        let from = |cell| {
            moves
                .iter()
                .filter(|one| some[one.who].cell == cell)
                .count()
        };
        assert_eq!(
            from(cells[1]),
            1,
            "two of the five leave already, and two are needed"
        );
    }

    #[test]
    fn gateways_that_do_not_talk_share_a_shortage_by_their_drivers() {
        let cells = cells();
        let expected = [(cells[0], 8.0)];
        let sent_by = |is_ours: fn(usize) -> bool| {
            let idle: Vec<_> = (0..12)
                .map(|n| idle(cells[1 + n % 3], n, is_ours(n)))
                .collect();
            choose(&expected, &idle, &HashMap::new(), 5_000).len()
        };
        assert_eq!(sent_by(|n| n < 3), 2);
        assert_eq!(sent_by(|n| n >= 3), 6);
    }
}
