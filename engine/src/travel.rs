//! How long does a drive take?
//!
//! A trait, because who knows roads may know better; by itself Cabrank knows a straight line at the speed of the hour. Pure:
//! what asks a road network over a socket lives in the node, and hands in numbers.

use cabrank_events::Time;
use cabrank_geo::Point;
use serde::{Deserialize, Serialize};

use crate::config::BadSetting;

/// Estimates driving times.
pub trait TravelTime: Send + Sync {
    /// Milliseconds of driving between two points.
    fn drive_ms(&self, from: Point, to: Point) -> i64;

    /// The same for many drives, in their order. Where an answer has to be fetched, all are fetched together.
    fn drives_ms(&self, drives: &[(Point, Point)]) -> Vec<i64> {
        let each = drives.iter().map(|(from, to)| self.drive_ms(*from, *to));
        each.collect()
    }
}

/// A straight line at constant speed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StraightLine {
    /// Metres a second along the straight line (streets wind, so it is less than a car's speed).
    pub speed_mps: f64,
}

impl StraightLine {
    /// The same for a distance that is known already.
    pub fn drive_ms_for(&self, distance_m: f64) -> i64 {
        (distance_m / self.speed_mps * 1_000.0) as i64
    }
}

impl TravelTime for StraightLine {
    fn drive_ms(&self, from: Point, to: Point) -> i64 {
        self.drive_ms_for(from.distance_m(to))
    }
}

/// How fast a city is at which hour.
///
/// San Francisco on 22 May 2008, 17,469 recorded rides of 500 m or more, straight line over time from pickup to drop-off by
/// local hour from midnight: 6.3 6.3 6.5 7.4 11.2 10.0 9.5 6.5 5.4 6.1 7.1 7.0 6.4 6.8 6.4 5.5 5.4 4.6 4.7 5.6 6.0 6.0 5.8 5.8
/// metres a second, all day together 6.1.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SpeedProfile {
    /// Speed along the straight line for each hour of the local day from midnight, metres a second, 0.5 to 60: 24 values, or
    /// none for one speed all day (`node.speed_mps`).
    pub by_hour_mps: Vec<f64>,
    /// How far local time is ahead of UTC, minutes, -840 to 840. Summer time is not known: a market that has it sets it anew.
    pub utc_offset_min: i32,
}

const HOUR_MS: i64 = 3_600_000;
const HOURS: usize = 24;

impl SpeedProfile {
    /// How long drives take at this moment; `all_day_mps` where the profile says nothing.
    pub fn at(&self, now: Time, all_day_mps: f64) -> StraightLine {
        let local_ms = now
            .0
            .saturating_add(i64::from(self.utc_offset_min) * 60_000);
        let hour = local_ms.div_euclid(HOUR_MS).rem_euclid(HOURS as i64) as usize;
        let speed_mps = self.by_hour_mps.get(hour).copied().unwrap_or(all_day_mps);
        StraightLine { speed_mps }
    }

    /// Checks ranges.
    pub fn check(&self) -> Result<(), BadSetting> {
        let bad = |key, value: String, remedy| Err(BadSetting { key, value, remedy });
        let speeds = &self.by_hour_mps;
        if !(speeds.is_empty() || speeds.len() == HOURS) {
            let remedy = "give 24 speeds, one for each hour from midnight, or none";
            return bad("node.speeds.by_hour_mps", format!("{speeds:?}"), remedy);
        }
        if !speeds.iter().all(|speed| (0.5..=60.0).contains(speed)) {
            let remedy = "choose 0.5 to 60 metres a second for each hour";
            return bad("node.speeds.by_hour_mps", format!("{speeds:?}"), remedy);
        }
        if !(-840..=840).contains(&self.utc_offset_min) {
            let value = self.utc_offset_min.to_string();
            return bad("node.speeds.utc_offset_min", value, "choose -840 to 840");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile() -> SpeedProfile {
        SpeedProfile {
            by_hour_mps: (0..24).map(|hour| 4.0 + f64::from(hour) / 10.0).collect(),
            utc_offset_min: -420,
        }
    }

    #[test]
    fn a_drive_takes_as_long_as_the_local_hour_says() {
        // 22 May 2008, 17:30 in San Francisco.
        let evening = Time(1_211_502_600_000);
        assert_eq!(profile().at(evening, 6.0).speed_mps, 5.7);
        assert_eq!(profile().at(evening.plus_ms(1_800_000), 6.0).speed_mps, 5.8);
        // The hour before 1970 is an hour like any other.
        assert_eq!(profile().at(Time(-1), 6.0).speed_mps, 5.6);
        assert_eq!(SpeedProfile::default().at(evening, 6.0).speed_mps, 6.0);
        let from = Point::new(37.77, -122.42).expect("on the map");
        let to = from.offset_m(570.0, 0.0);
        let drive_ms = profile().at(evening, 6.0).drive_ms(from, to);
        assert!((99_800..=100_200).contains(&drive_ms), "{drive_ms}");
    }

    #[test]
    fn a_profile_has_a_speed_for_each_hour_or_none() {
        profile().check().unwrap();
        SpeedProfile::default().check().unwrap();
        let check = |change: fn(&mut SpeedProfile)| {
            let mut changed = profile();
            change(&mut changed);
            changed.check().unwrap_err().key
        };
        assert_eq!(
            check(|p| _ = p.by_hour_mps.pop()),
            "node.speeds.by_hour_mps"
        );
        assert_eq!(
            check(|p| p.by_hour_mps[3] = f64::NAN),
            "node.speeds.by_hour_mps"
        );
        assert_eq!(
            check(|p| p.utc_offset_min = 900),
            "node.speeds.utc_offset_min"
        );
    }
}
