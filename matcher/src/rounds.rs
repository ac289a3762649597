//! Rounds: the candidates of waiting rides from the live index, priced and solved beside the commit loop.
//!
//! A round is data (PROTOCOL 18): a job goes out with the rides as they are, a result comes back, and the engine takes
//! from it what still holds.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Instant;

use cabrank_engine::matching::{Candidate, Policy, RideAsk, Round, RoundResult};
use cabrank_engine::ride::Ride;
use cabrank_engine::travel::StraightLine;
use cabrank_events::{DriverId, RideId, Time, VehicleClass};
use cabrank_geo::{DriverKey, Filter, Near, Point, Query, Status};

use crate::config::NodeConfig;
use crate::people::People;

/// A ride as a round sees it.
#[derive(Debug)]
pub(crate) struct Asking {
    ask: RideAsk,
    pickup: Point,
    radius_m: u32,
    class: VehicleClass,
    asked: BTreeSet<DriverId>,
    avoid: BTreeMap<DriverId, u64>,
}

impl Asking {
    pub fn of(ride: &Ride) -> Asking {
        Asking {
            ask: RideAsk {
                ride: ride.id,
                version: ride.seq,
                since: ride.issued_at,
            },
            pickup: ride.pickup.0,
            radius_m: ride.radius_m,
            class: ride.class,
            asked: ride.asked.clone(),
            avoid: ride.avoid.clone(),
        }
    }

    fn may_ask(&self, driver: &DriverId, driver_seq: u64) -> bool {
        !self.asked.contains(driver) && self.avoid.get(driver).is_none_or(|at| driver_seq > *at)
    }
}

/// What the solver is given.
pub(crate) struct Job {
    pub now: Time,
    pub rides: Vec<Asking>,
}

/// What comes back.
pub(crate) struct Solved {
    pub result: RoundResult,
    pub rides: Vec<RideId>,
    pub took_s: f64,
}

/// Finds candidates and solves.
pub(crate) struct Solver {
    pub people: Arc<People>,
    pub config: NodeConfig,
    pub policy: &'static dyn Policy,
}

impl Solver {
    pub fn solve(&self, job: Job) -> Solved {
        // Only for the metric: what a round decides never depends on how long it takes.
        let began = Instant::now();
        let mut drivers: Vec<DriverId> = Vec::new();
        let mut places: HashMap<DriverKey, Option<u32>> = HashMap::new();
        let mut near: Vec<Near> = Vec::with_capacity(self.config.candidates_max);
        let mut candidates = Vec::with_capacity(job.rides.len());
        let travel = StraightLine {
            speed_mps: self.config.speed_mps,
        };
        for asking in &job.rides {
            self.find(asking, job.now, &mut near);
            let mut row = Vec::with_capacity(near.len());
            for car in &near {
                let place = places.entry(car.key).or_insert_with(|| {
                    self.people.name(car.key).map(|id| {
                        drivers.push(id);
                        (drivers.len() - 1) as u32
                    })
                });
                if let Some(driver) = *place {
                    row.push(Candidate {
                        driver,
                        cost: travel.drive_ms_for(car.distance_m),
                    });
                }
            }
            candidates.push(row);
        }
        let rides: Vec<RideId> = job.rides.iter().map(|asking| asking.ask.ride).collect();
        let asks = job.rides.into_iter().map(|asking| asking.ask).collect();
        let round = Round {
            rides: asks,
            drivers,
            candidates,
            ..Round::default()
        };
        let result = self.policy.solve(&round, self.config.round_steps_max);
        Solved {
            result,
            rides,
            took_s: began.elapsed().as_secs_f64(),
        }
    }

    fn find(&self, asking: &Asking, now: Time, near: &mut Vec<Near>) {
        let query = Query {
            at: asking.pickup,
            radius_m: f64::from(asking.radius_m),
            k: self.config.candidates_max,
            filter: Filter {
                now_ms: now.0,
                ping_ttl_ms: self.config.ping_ttl_ms,
                status: Some(Status::Free),
                classes: asking.class.bit(),
            },
        };
        near.clear();
        let anybody = asking.asked.is_empty() && asking.avoid.is_empty();
        let may_ask = |car: &Near| {
            anybody
                || self
                    .people
                    .name(car.key)
                    .is_some_and(|id| asking.may_ask(&id, car.n))
        };
        self.people.index().nearest(&query, may_ask, near);
    }
}
