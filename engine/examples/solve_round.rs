//! Solves a round given as text and says what it is worth and how long that took: for comparisons with other solvers
//! (`benches/compare_assignment.py`).
//!
//! The file: a line "rides cars", then a line for each ride, `car:milliseconds` for each of its candidates. The answer:
//! rides served, their cost in all, and the least time of five solves in milliseconds, from the round to its result.

use std::time::Instant;

use cabrank_engine::matching::{Batched, Candidate, Policy, RideAsk, Round};
use cabrank_events::{DriverId, RideId, ShardId, Time};

#[expect(
    clippy::disallowed_methods,
    reason = "an example that measures is no part of the engine, to which time is an argument"
)]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args()
        .nth(1)
        .ok_or("name the file with the round")?;
    let round = read(&std::fs::read_to_string(path)?)?;
    let mut best_ms = f64::MAX;
    for _ in 0..5 {
        let began = Instant::now();
        let result = Batched.solve(&round, u64::MAX);
        best_ms = best_ms.min(began.elapsed().as_secs_f64() * 1_000.0);
        assert!(!result.exhausted, "no budget was set");
    }
    let result = Batched.solve(&round, u64::MAX);
    let cost: i64 = result.pairs.iter().map(|pair| pair.cost_ms).sum();
    println!("{} {cost} {best_ms:.3}", result.pairs.len());
    Ok(())
}

fn read(text: &str) -> Result<Round, Box<dyn std::error::Error>> {
    let mut lines = text.lines();
    let (rides, cars) = lines
        .next()
        .and_then(|line| line.split_once(' '))
        .ok_or("the first line says how many rides and cars")?;
    let (rides, cars): (usize, usize) = (rides.parse()?, cars.parse()?);
    let mut round = Round::default();
    for n in 0..cars {
        round.drivers.push(DriverId::new(&format!("d{n:08}"))?);
    }
    for (n, line) in lines.take(rides).enumerate() {
        let mut row = Vec::new();
        for pair in line.split_whitespace() {
            let (driver, cost) = pair.split_once(':').ok_or("a candidate is car:ms")?;
            row.push(Candidate {
                driver: driver.parse()?,
                cost: cost.parse()?,
            });
        }
        round.candidates.push(row);
        round.rides.push(RideAsk {
            ride: RideId {
                place: ShardId(0),
                minted_by: ShardId(0),
                offset: n as u64,
            },
            version: 1,
            since: Time(n as i64),
        });
    }
    Ok(round)
}
