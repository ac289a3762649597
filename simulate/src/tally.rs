//! What a simulated day came to. Everything but [`Wall`] follows from scene and seed.

use std::collections::BTreeMap;

use cabrank_events::Time;
use cabrank_events::event::EndOfRide;
use cabrank_geo::{Cell, Point, Resolution};
use cabrank_loadgen::audit::AuditReport;
use cabrank_loadgen::report::{AuditSummary, RideReport};
use serde::{Deserialize, Serialize};

use crate::car::Meter;
use crate::hindsight::Bound;
use crate::rounds::RoundSize;
use crate::scene::Wish;

/// The value of [`Outcome::schema`].
pub const SCHEMA: &str = "cabrank.simulation/1";
/// Areas of the map: some 5 km² each.
const AREA_RESOLUTION: u8 = 7;
/// Width of a step of the distribution of waits, s.
pub const WAIT_STEP_S: u32 = 30;
/// Who was at work for less says nothing about fairness.
const FAIR_FROM_MS: i64 = 1_800_000;

/// A wish and what became of it.
#[derive(Clone, Debug, PartialEq)]
pub struct RideDay {
    /// When it was asked.
    pub asked: Time,
    /// Where.
    pub pickup: Point,
    /// Drivers asked.
    pub offers: u32,
    /// When a driver first took it.
    pub assigned: Option<Time>,
    /// When the rider got in.
    pub started: Option<Time>,
    /// Changes of driver on the way.
    pub swaps: u32,
    /// Its end.
    pub ended: Option<(Time, EndOfRide)>,
}

impl RideDay {
    /// Nothing happened yet.
    pub fn of(wish: &Wish) -> RideDay {
        RideDay {
            asked: wish.at,
            pickup: wish.pickup,
            offers: 0,
            assigned: None,
            started: None,
            swaps: 0,
            ended: None,
        }
    }

    /// From the wish to the rider getting in, s.
    pub fn wait_s(&self) -> Option<f64> {
        Some(self.started?.since(self.asked) as f64 / 1_000.0)
    }
}

/// A day that was played.
#[derive(Debug, Default)]
pub struct Day {
    /// The first thing that happened.
    pub begins: Time,
    /// The end of the last ride.
    pub ends: Time,
    /// In the order of the wishes.
    pub rides: Vec<RideDay>,
    /// In the order of the scene.
    pub cars: Vec<Meter>,
    /// All rounds.
    pub rounds: Vec<RoundSize>,
    /// Events of the engine.
    pub events: u64,
    /// Commands of people.
    pub commands: u64,
    /// The shortest time between two offers to one driver.
    pub offer_gap_min_ms: Option<i64>,
    /// What the audit found, if there was one.
    pub audit: Option<AuditReport>,
}

/// Points of a distribution.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// How many were measured; with 0 the others mean nothing.
    pub count: u64,
    /// The mean.
    pub mean: f64,
    /// Half were at most this.
    pub p50: f64,
    /// 95 in 100.
    pub p95: f64,
    /// 99 in 100.
    pub p99: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    /// Of these values, in any order.
    pub fn of(mut values: Vec<f64>) -> Spread {
        values.sort_by(f64::total_cmp);
        let Some(max) = values.last().copied() else {
            return Spread::default();
        };
        let at = |share: f64| values[((values.len() as f64 * share).ceil() as usize).max(1) - 1];
        Spread {
            count: values.len() as u64,
            mean: values.iter().sum::<f64>() / values.len() as f64,
            p50: at(0.5),
            p95: at(0.95),
            p99: at(0.99),
            max,
        }
    }
}

/// What happened in one area.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Area {
    /// Its H3 cell.
    pub cell: String,
    /// Its middle, degrees.
    pub lat: f64,
    /// Its middle, degrees.
    pub lon: f64,
    /// Wishes.
    pub asked: u64,
    /// Rides begun.
    pub served: u64,
    /// Mean wait of those, s.
    pub wait_mean_s: f64,
}

/// The rounds of a day. Times are in [`Wall`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Rounds {
    /// How many.
    pub count: u64,
    /// Rides in a round, those on the way included.
    pub rides_mean: f64,
    /// Rides in the largest.
    pub rides_max: u64,
    /// Cars in the largest.
    pub cars_max: u64,
    /// Rounds whose budget ended before the best was proven.
    pub exhausted: u64,
    /// Steps of the search in a round (`node.round_steps_max`).
    #[serde(default)]
    pub steps: Spread,
}

/// What depends on the machine.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Wall {
    /// The whole run, s.
    pub run_s: f64,
    /// Candidates and solution of a round, ms.
    pub round_ms: Spread,
}

/// Shares of the fleet's day.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FleetDay {
    /// Cars that were at work.
    pub cars: u64,
    /// Hours at work, all cars.
    pub online_h: f64,
    /// Of these, without a ride, %.
    pub idle_percent: f64,
    /// Of these, on the way to pickups, %.
    pub fetching_percent: f64,
    /// Ways to pickups, km of straight line, those given up included.
    pub empty_km: f64,
    /// Ways with riders, km of straight line.
    pub paid_km: f64,
    /// Gini coefficient of drivers' paid km an hour at work: 0 all the same, 1 one has all.
    pub income_gini: f64,
    /// Gini coefficient of drivers' idle share.
    pub idle_gini: f64,
    /// The shortest time between two offers to one driver, s.
    pub offer_gap_min_s: f64,
}

/// A simulated day in numbers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// `cabrank.simulation/1`.
    pub schema: String,
    /// How rounds chose, as given.
    pub policy: String,
    /// The engine kept its promises, as far as they were audited, and every ride has ended.
    pub valid: bool,
    /// Why not.
    pub invalid_because: Vec<String>,
    /// What a reader should know.
    pub notes: Vec<String>,
    /// Virtual time, s.
    pub lasted_s: f64,
    /// As in `cabrank.report/1`.
    pub rides: RideReport,
    /// Rides begun of rides asked for, %.
    pub served_percent: f64,
    /// From the wish to the rider getting in, s, rides that began.
    pub wait_s: Spread,
    /// Rides that began by their wait, in steps of 30 s.
    pub wait_steps: Vec<u64>,
    /// From the wish to the first driver's yes, s.
    pub assigned_s: Spread,
    /// From the first driver's yes to the rider getting in, s.
    pub pickup_s: Spread,
    /// Changes of driver on the way, for each ride begun.
    pub swaps_a_ride: f64,
    /// The most of one ride.
    pub swaps_most: u32,
    /// Drivers asked, for each ride asked for.
    pub offers_a_ride: f64,
    /// What the fleet did.
    pub fleet: FleetDay,
    /// Rounds.
    pub rounds: Rounds,
    /// By area, most wishes first.
    pub areas: Vec<Area>,
    /// Events of the engine.
    pub events: u64,
    /// What the audit found, if there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audit: Option<AuditSummary>,
    /// How far from perfect, if that was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hindsight: Option<Bound>,
    /// What depends on the machine.
    pub wall: Wall,
    /// Repeats the day.
    pub seed: u64,
    /// The command line or its equal.
    pub arguments: Vec<String>,
    /// Version of the program.
    pub version: String,
}

impl Day {
    /// The day in numbers.
    pub fn outcome(&self, policy: &str, seed: u64, run_s: f64) -> Outcome {
        let count = |end: EndOfRide| {
            let ended = self.rides.iter().filter_map(|ride| ride.ended);
            ended.filter(|(_, found)| *found == end).count() as u64
        };
        let asked = self.rides.len() as u64;
        let started = self.rides.iter().filter(|ride| ride.started.is_some());
        let served = started.clone().count() as u64;
        let seconds = |from: Time, to: Time| to.since(from) as f64 / 1_000.0;
        let waits: Vec<f64> = self.rides.iter().filter_map(RideDay::wait_s).collect();
        let mut wait_steps = Vec::new();
        for wait in &waits {
            let step = (*wait / f64::from(WAIT_STEP_S)) as usize;
            wait_steps.resize(wait_steps.len().max(step + 1), 0);
            wait_steps[step] += 1;
        }
        let rides = RideReport {
            requested: asked,
            acknowledged: asked,
            assigned: self.rides.iter().filter(|r| r.assigned.is_some()).count() as u64,
            completed: count(EndOfRide::Completed),
            cancelled: count(EndOfRide::Cancelled),
            unfulfilled: count(EndOfRide::Unfulfilled),
            open: self.rides.iter().filter(|r| r.ended.is_none()).count() as u64,
            ..RideReport::default()
        };
        let mut invalid_because = Vec::new();
        if rides.open > 0 {
            invalid_because.push(format!("{} rides did not reach an end", rides.open));
        }
        let audit = self.audit.as_ref().map(AuditReport::summary);
        if let Some(audit) = audit.as_ref().filter(|audit| audit.violations > 0) {
            invalid_because.push(format!("the audit found {} violations", audit.violations));
        }
        let swaps: u32 = self.rides.iter().map(|ride| ride.swaps).sum();
        let offers: u32 = self.rides.iter().map(|ride| ride.offers).sum();
        let of_rides = |span: &dyn Fn(&RideDay) -> Option<f64>| {
            Spread::of(self.rides.iter().filter_map(span).collect())
        };
        Outcome {
            schema: SCHEMA.to_owned(),
            policy: policy.to_owned(),
            valid: invalid_because.is_empty(),
            invalid_because,
            notes: Vec::new(),
            lasted_s: seconds(self.begins, self.ends),
            rides,
            served_percent: share(served as f64, asked as f64) * 100.0,
            wait_s: Spread::of(waits),
            wait_steps,
            assigned_s: of_rides(&|ride| Some(seconds(ride.asked, ride.assigned?))),
            pickup_s: of_rides(&|ride| Some(seconds(ride.assigned?, ride.started?))),
            swaps_a_ride: share(f64::from(swaps), served as f64),
            swaps_most: self.rides.iter().map(|ride| ride.swaps).max().unwrap_or(0),
            offers_a_ride: share(f64::from(offers), asked as f64),
            fleet: self.fleet(),
            rounds: self.rounds(),
            areas: self.areas(),
            events: self.events,
            audit,
            hindsight: None,
            wall: Wall {
                run_s,
                round_ms: Spread::of(
                    self.rounds
                        .iter()
                        .map(|round| round.took.as_secs_f64() * 1_000.0)
                        .collect(),
                ),
            },
            seed,
            arguments: Vec::new(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    fn fleet(&self) -> FleetDay {
        let sum = |of: fn(&Meter) -> f64| self.cars.iter().map(of).sum::<f64>();
        let online_ms = sum(|car| car.online_ms() as f64);
        let percent = |ms: f64| share(ms, online_ms) * 100.0;
        let long = || {
            self.cars
                .iter()
                .filter(|car| car.online_ms() >= FAIR_FROM_MS)
        };
        FleetDay {
            cars: self.cars.iter().filter(|car| car.online_ms() > 0).count() as u64,
            online_h: online_ms / 3_600_000.0,
            idle_percent: percent(sum(|car| car.idle_ms as f64)),
            fetching_percent: percent(sum(|car| car.fetching_ms as f64)),
            empty_km: sum(|car| car.empty_m) / 1_000.0,
            paid_km: sum(|car| car.paid_m) / 1_000.0,
            income_gini: gini(
                long()
                    .map(|car| car.paid_m / car.online_ms() as f64)
                    .collect(),
            ),
            idle_gini: gini(
                long()
                    .map(|car| car.idle_ms as f64 / car.online_ms() as f64)
                    .collect(),
            ),
            offer_gap_min_s: self.offer_gap_min_ms.unwrap_or(0) as f64 / 1_000.0,
        }
    }

    fn rounds(&self) -> Rounds {
        let rides: usize = self.rounds.iter().map(|round| round.rides).sum();
        let most = |of: fn(&RoundSize) -> usize| self.rounds.iter().map(of).max().unwrap_or(0);
        Rounds {
            count: self.rounds.len() as u64,
            rides_mean: share(rides as f64, self.rounds.len() as f64),
            rides_max: most(|round| round.rides) as u64,
            cars_max: most(|round| round.cars) as u64,
            exhausted: self.rounds.iter().filter(|round| round.exhausted).count() as u64,
            steps: Spread::of(self.rounds.iter().map(|round| round.steps as f64).collect()),
        }
    }

    fn areas(&self) -> Vec<Area> {
        let resolution = Resolution::try_from(AREA_RESOLUTION).expect("a constant within 0 to 15");
        let mut areas: BTreeMap<u64, (Point, u64, Vec<f64>)> = BTreeMap::new();
        for ride in &self.rides {
            let cell = Cell::at(ride.pickup, resolution);
            let area = areas
                .entry(cell.into())
                .or_insert((cell.center(), 0, Vec::new()));
            area.1 += 1;
            area.2.extend(ride.wait_s());
        }
        let mut areas: Vec<Area> = areas
            .into_iter()
            .map(|(cell, (center, asked, waits))| Area {
                cell: format!("{cell:x}"),
                lat: center.lat_deg(),
                lon: center.lon_deg(),
                asked,
                served: waits.len() as u64,
                wait_mean_s: share(waits.iter().sum(), waits.len() as f64),
            })
            .collect();
        areas.sort_by(|a, b| (b.asked, &a.cell).cmp(&(a.asked, &b.cell)));
        areas
    }
}

fn share(part: f64, of: f64) -> f64 {
    if of == 0.0 { 0.0 } else { part / of }
}

/// The Gini coefficient: half the mean difference between two, relative to the mean.
pub fn gini(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let n = values.len() as f64;
    let total: f64 = values.iter().sum();
    let weighted: f64 = (1..).zip(&values).map(|(i, v)| f64::from(i) * v).sum();
    if total == 0.0 {
        return 0.0;
    }
    2.0 * weighted / (n * total) - (n + 1.0) / n
}

impl Outcome {
    /// The report as it is written to a file.
    pub fn to_json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("only JSON's own kinds");
        text.push('\n');
        text
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (rides, wait, fleet) = (&self.rides, &self.wait_s, &self.fleet);
        writeln!(
            f,
            "{}: {} rides asked for, {:.1} % served ({} completed, {} unfulfilled, {} cancelled), {} cars, {:.1} h simulated in {:.1} s",
            self.policy,
            rides.requested,
            self.served_percent,
            rides.completed,
            rides.unfulfilled,
            rides.cancelled,
            fleet.cars,
            self.lasted_s / 3_600.0,
            self.wall.run_s
        )?;
        writeln!(
            f,
            "wait      mean {:.0} s, p50 {:.0}, p95 {:.0}, max {:.0}; to a driver's yes {:.0} s, pickup {:.0} s",
            wait.mean, wait.p50, wait.p95, wait.max, self.assigned_s.mean, self.pickup_s.mean
        )?;
        writeln!(
            f,
            "swaps     {:.2} a ride, at most {}; offers {:.2} a ride, two to one driver at least {:.0} s apart",
            self.swaps_a_ride, self.swaps_most, self.offers_a_ride, fleet.offer_gap_min_s
        )?;
        writeln!(
            f,
            "fleet     idle {:.1} %, on the way {:.1} %, {:.0} km empty, {:.0} km paid; Gini of income {:.3}, of idle time {:.3}",
            fleet.idle_percent,
            fleet.fetching_percent,
            fleet.empty_km,
            fleet.paid_km,
            fleet.income_gini,
            fleet.idle_gini
        )?;
        writeln!(
            f,
            "rounds    {}, of {:.1} rides (at most {}, {} cars), {:.2} ms (p99 {:.2}, max {:.1}), {:.0} steps (p99 {:.0}, max {:.0}), {} out of budget",
            self.rounds.count,
            self.rounds.rides_mean,
            self.rounds.rides_max,
            self.rounds.cars_max,
            self.wall.round_ms.mean,
            self.wall.round_ms.p99,
            self.wall.round_ms.max,
            self.rounds.steps.mean,
            self.rounds.steps.p99,
            self.rounds.steps.max,
            self.rounds.exhausted
        )?;
        if let Some(audit) = &self.audit {
            writeln!(
                f,
                "audit     {} events, {} rides, {} violations",
                audit.events, audit.rides, audit.violations
            )?;
        }
        if let Some(hindsight) = &self.hindsight {
            writeln!(f, "hindsight {hindsight}")?;
        }
        for note in &self.notes {
            writeln!(f, "note      {note}")?;
        }
        for why in &self.invalid_because {
            writeln!(f, "INVALID   {why}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gini_is_none_for_equals_and_nearly_one_where_one_has_all() {
        assert!(gini(vec![3.0; 50]).abs() < 1e-12);
        let one_has_all: Vec<f64> = (0..100).map(|n| if n == 7 { 5.0 } else { 0.0 }).collect();
        assert!((gini(one_has_all) - 0.99).abs() < 1e-12);
        assert!((gini(vec![1.0, 3.0]) - 0.25).abs() < 1e-12);
        assert_eq!(gini(vec![0.0, 0.0]), 0.0);
    }

    #[test]
    fn a_spread_names_values_that_were_measured() {
        let spread = Spread::of((1..=100).rev().map(f64::from).collect());
        let (p50, p95, p99) = (spread.p50, spread.p95, spread.p99);
        assert_eq!((p50, p95, p99, spread.max), (50.0, 95.0, 99.0, 100.0));
        assert_eq!((spread.count, spread.mean), (100, 50.5));
        assert_eq!(Spread::of(Vec::new()), Spread::default());
    }
}
