//! Where the drivers of this gateway are, and which shards want their pings.
//!
//! H3 is asked only when a driver has moved [`SLACK_M`] since it was last asked: the shards are those within the halo plus
//! that much. Bounded by the drivers online: a driver who goes offline is dropped.

use std::sync::Arc;

use cabrank_events::{DriverId, Place};
use cabrank_geo::{Placement, Point, Resolution, cells_within};
use dashmap::DashMap;

use crate::rings::Rings;
use crate::route;

/// How far a driver moves before the cells around are looked up again, in metres.
pub(crate) const SLACK_M: f64 = 500.0;

#[derive(Debug)]
struct Track {
    last: Placement,
    asked_at: Point,
    /// The shard of the place itself, as of `asked_at`.
    home: u16,
    shards: Arc<[u16]>,
    /// The ring has grown since.
    is_stale: bool,
}

/// What a ping comes to.
#[derive(Debug, PartialEq)]
pub(crate) struct Tracked {
    /// The shard of the place (of one at most [`SLACK_M`] away).
    pub home: u16,
    /// Everybody who wants the ping.
    pub shards: Arc<[u16]>,
}

/// The drivers that ping here.
pub(crate) struct Tracks {
    by_driver: DashMap<DriverId, Track>,
    rings: Arc<Rings>,
    resolution: Resolution,
    halo_m: f64,
}

impl Tracks {
    pub fn new(rings: Arc<Rings>, resolution: Resolution, halo_m: f64) -> Tracks {
        Tracks {
            by_driver: DashMap::new(),
            rings,
            resolution,
            halo_m,
        }
    }

    /// Takes a ping in; `None` when a newer one came before.
    pub fn take(&self, driver: &DriverId, ping: Placement) -> Option<Tracked> {
        if let Some(mut track) = self.by_driver.get_mut(driver) {
            if !ping.is_newer_than(&track.last) {
                return None;
            }
            track.last = ping;
            if track.asked_at.distance_m(ping.at) <= SLACK_M && !track.is_stale {
                return Some(Tracked {
                    home: track.home,
                    shards: Arc::clone(&track.shards),
                });
            }
            // Who wanted the last ping hears of this one, too: else the car would stay where it left, until it ages.
            let shards = self.shards_around(ping.at);
            let mut both = shards.to_vec();
            both.extend(track.shards.iter().filter(|shard| !shards.contains(shard)));
            (track.asked_at, track.is_stale) = (ping.at, false);
            track.home = self.home_of(ping.at);
            track.shards = shards;
            return Some(Tracked {
                home: track.home,
                shards: both.into(),
            });
        }
        let (home, shards) = (self.home_of(ping.at), self.shards_around(ping.at));
        let track = Track {
            last: ping,
            asked_at: ping.at,
            home,
            shards: Arc::clone(&shards),
            is_stale: false,
        };
        self.by_driver.insert(driver.clone(), track);
        Some(Tracked { home, shards })
    }

    /// The last ping of a driver, if it came here.
    pub fn last(&self, driver: &DriverId) -> Option<Placement> {
        self.by_driver.get(driver).map(|track| track.last)
    }

    /// The ring has grown: who wants a ping is asked anew with the next one of each driver. Who wanted the last one hears of that one, too.
    pub fn look_again(&self) {
        for mut track in self.by_driver.iter_mut() {
            track.is_stale = true;
        }
    }

    /// The driver is not at work any more.
    pub fn forget(&self, driver: &DriverId) {
        self.by_driver.remove(driver);
    }

    /// Keeps those who are at work.
    pub fn keep(&self, is_at_work: impl Fn(&DriverId) -> bool) {
        self.by_driver.retain(|driver, _| is_at_work(driver));
    }

    fn home_of(&self, at: Point) -> u16 {
        route::shard_of_place(&self.rings.now(), self.resolution, Place(at))
    }

    fn shards_around(&self, at: Point) -> Arc<[u16]> {
        let mut cells = Vec::new();
        cells_within(at, self.halo_m + SLACK_M, self.resolution, &mut cells);
        let ring = self.rings.now();
        let mut shards: Vec<u16> = cells
            .into_iter()
            .map(|cell| ring.shard_of_cell(cell.into()))
            .collect();
        shards.sort_unstable();
        shards.dedup();
        shards.into()
    }
}

#[cfg(test)]
mod tests {
    use cabrank_ring::Ring;

    use super::*;

    const HALO_M: f64 = 5_000.0;

    fn tracks() -> Tracks {
        let ring = Arc::new(Ring::new(8).unwrap());
        Tracks::new(
            Arc::new(Rings::new(ring)),
            Resolution::try_from(6).unwrap(),
            HALO_M,
        )
    }

    fn ping(at: Point, time_ms: i64) -> Placement {
        Placement {
            at,
            time_ms,
            seq: 0,
        }
    }

    #[test]
    fn wherever_a_driver_drives_every_shard_within_the_halo_hears_of_it() {
        let tracks = tracks();
        let driver = DriverId::new("d1").unwrap();
        let start = Point::new(37.7, -122.5).unwrap();
        let mut crossings = 0;
        for step in 0..400 {
            let at = start.offset_m(f64::from(step) * 130.0, f64::from(step) * 70.0);
            let told = tracks.take(&driver, ping(at, i64::from(step))).unwrap();
            let mut cells = Vec::new();
            cells_within(at, HALO_M, tracks.resolution, &mut cells);
            for cell in cells {
                let shard = tracks.rings.now().shard_of_cell(cell.into());
                assert!(told.shards.contains(&shard), "step {step}: {shard}");
            }
            crossings += i32::from(tracks.home_of(at) != told.home);
        }
        assert!(
            crossings < 80,
            "the home is that of a place nearby: {crossings}"
        );
    }

    #[test]
    fn those_who_are_left_behind_hear_of_the_ping_that_left() {
        let tracks = tracks();
        let driver = DriverId::new("d1").unwrap();
        let here = Point::new(37.7, -122.5).unwrap();
        let there = here.offset_m(200_000.0, 0.0);
        let before = tracks.take(&driver, ping(here, 1)).unwrap();
        let leaving = tracks.take(&driver, ping(there, 2)).unwrap();
        assert!(
            before
                .shards
                .iter()
                .all(|shard| leaving.shards.contains(shard))
        );
        let after = tracks.take(&driver, ping(there, 3)).unwrap();
        assert_eq!(after.shards, tracks.shards_around(there));
    }

    #[test]
    fn an_older_ping_moves_nobody() {
        let tracks = tracks();
        let driver = DriverId::new("d1").unwrap();
        let here = Point::new(37.7, -122.5).unwrap();
        assert!(tracks.take(&driver, ping(here, 2)).is_some());
        assert_eq!(tracks.take(&driver, ping(here, 1)), None);
        assert_eq!(tracks.take(&driver, ping(here, 2)), None);
        assert_eq!(tracks.last(&driver), Some(ping(here, 2)));
    }
}
