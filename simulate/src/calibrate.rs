//! How fast are cars along straight lines, by the hour? Measured on recorded rides.
//!
//! Of each ride the straight line from pick-up to drop-off and how long it took count: the speed of an hour is all metres
//! over all seconds of the rides that began in it, so long rides weigh more. Only rides as long as ways to pickups are
//! ([`WAYS_M`]) count, because longer ones use faster roads. An hour with few rides ([`RIDES_LEAST`]) gets the mean of the day.
//!
//! Holds: what is written is read back the same. Not here: roads, directions, traffic of the day.

use std::fmt::Write;
use std::ops::Range;
use std::path::Path;

use cabrank_loadgen::trace::{TraceError, Trips, Window};

use crate::world::Speeds;

/// Straight lines that count, metres.
pub const WAYS_M: Range<f64> = 500.0..4_000.0;

/// An hour with fewer rides says nothing.
pub const RIDES_LEAST: u64 = 30;

const HOUR_MS: i64 = 3_600_000;

/// What one hour of the day showed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct HourOfDay {
    /// Rides that counted.
    pub rides: u64,
    /// Their straight lines, metres.
    pub metres: f64,
    /// What they took, s.
    pub seconds: f64,
}

impl HourOfDay {
    fn mps(&self) -> f64 {
        self.metres / self.seconds
    }
}

/// A day's hours.
#[derive(Clone, Debug, PartialEq)]
pub struct Profile {
    /// From 0 to 23 h of the local clock.
    pub hours: [HourOfDay; 24],
    /// What the local clock is ahead of UTC, ms.
    pub clock_ahead_ms: i64,
}

/// A file of speeds cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BadSpeeds {
    /// A file of trips.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// No ride counted.
    #[error(
        "no ride of 500 m to 4 km with a drop-off and a duration: nothing to measure speeds on"
    )]
    Nothing,
    /// The file itself.
    #[error(
        "--speeds {path}: {why}: expected are lines `hour,kmh`, 0 to 23, each once, 2 to 200 km/h"
    )]
    File {
        /// Which.
        path: String,
        /// What is wrong.
        why: String,
    },
}

impl Profile {
    /// Measures on these files of trips.
    pub fn measure(trips: &[impl AsRef<Path>], clock_ahead_ms: i64) -> Result<Profile, BadSpeeds> {
        let mut hours = [HourOfDay::default(); 24];
        for file in trips {
            for trip in Trips::open(file.as_ref(), Window::default())? {
                let (Some(to), Some(ms)) = (trip.dropoff, trip.ride_ms) else {
                    continue;
                };
                let metres = trip.pickup.0.distance_m(to.0);
                if ms > 0 && WAYS_M.contains(&metres) {
                    let hour = (trip.time.0 + clock_ahead_ms)
                        .div_euclid(HOUR_MS)
                        .rem_euclid(24);
                    let hour = &mut hours[hour as usize];
                    hour.rides += 1;
                    hour.metres += metres;
                    hour.seconds += ms as f64 / 1_000.0;
                }
            }
        }
        if hours.iter().all(|hour| hour.rides == 0) {
            return Err(BadSpeeds::Nothing);
        }
        Ok(Profile {
            hours,
            clock_ahead_ms,
        })
    }

    /// All hours together, m/s.
    pub fn mean_mps(&self) -> f64 {
        let metres: f64 = self.hours.iter().map(|hour| hour.metres).sum();
        let seconds: f64 = self.hours.iter().map(|hour| hour.seconds).sum();
        metres / seconds
    }

    /// As the simulation uses it.
    pub fn speeds(&self) -> Speeds {
        let of = |hour: &HourOfDay| match hour.rides >= RIDES_LEAST {
            true => hour.mps(),
            false => self.mean_mps(),
        };
        Speeds {
            by_hour_mps: self.hours.each_ref().map(of),
            clock_ahead_ms: self.clock_ahead_ms,
        }
    }
}

/// Lines `hour,kmh` with a header.
pub fn to_csv(speeds: &Speeds) -> String {
    let mut text = String::from("hour,kmh\n");
    for (hour, mps) in speeds.by_hour_mps.iter().enumerate() {
        let _ = writeln!(text, "{hour},{:.2}", mps * 3.6);
    }
    text
}

/// Reads what [`to_csv`] writes.
pub fn read_csv(path: &Path, clock_ahead_ms: i64) -> Result<Speeds, BadSpeeds> {
    let bad = |why: String| BadSpeeds::File {
        path: path.display().to_string(),
        why,
    };
    let text = std::fs::read_to_string(path).map_err(|why| bad(why.to_string()))?;
    let mut kmh = [None; 24];
    for line in text.lines().skip(1).filter(|line| !line.trim().is_empty()) {
        let read = line.split_once(',').and_then(|(hour, speed)| {
            let hour = hour.trim().parse::<usize>().ok()?;
            let speed = speed.trim().parse::<f64>().ok()?;
            (hour < 24 && (2.0..=200.0).contains(&speed)).then_some((hour, speed))
        });
        match read {
            Some((hour, speed)) if kmh[hour].is_none() => kmh[hour] = Some(speed),
            _ => return Err(bad(format!("{line:?}"))),
        }
    }
    let mut by_hour_mps = [0.0; 24];
    for (hour, kmh) in kmh.iter().enumerate() {
        by_hour_mps[hour] = kmh.ok_or_else(|| bad(format!("hour {hour} is missing")))? / 3.6;
    }
    Ok(Speeds {
        by_hour_mps,
        clock_ahead_ms,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hours_with_enough_rides_have_a_speed_of_their_own_and_a_file_keeps_them() {
        let mut hours = [HourOfDay::default(); 24];
        let of = |rides, mps: f64| HourOfDay {
            rides,
            metres: mps * 1_000.0,
            seconds: 1_000.0,
        };
        hours[8] = of(RIDES_LEAST, 4.0);
        hours[3] = of(RIDES_LEAST - 1, 8.0);
        let profile = Profile {
            hours,
            clock_ahead_ms: -7 * HOUR_MS,
        };
        let speeds = profile.speeds();
        assert_eq!(speeds.by_hour_mps[8], 4.0);
        assert_eq!(speeds.by_hour_mps[3], 6.0);
        assert_eq!(speeds.by_hour_mps[0], 6.0);

        let file = std::env::temp_dir().join(format!("cabrank-speeds-{}", std::process::id()));
        std::fs::write(&file, to_csv(&speeds)).unwrap();
        let read = read_csv(&file, -7 * HOUR_MS).unwrap();
        for (read, was) in read.by_hour_mps.iter().zip(speeds.by_hour_mps) {
            assert!((read - was).abs() < 0.002, "{read} {was}");
        }
        std::fs::write(&file, "hour,kmh\n0,15\n0,16\n").unwrap();
        let why = read_csv(&file, 0).unwrap_err().to_string();
        assert!(why.contains("0,16"), "{why}");
        std::fs::remove_file(&file).unwrap();
    }
}
