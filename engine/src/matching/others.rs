//! Rides that other nodes decide for, as a round of this node sees them.
//!
//! A car that is nearer to a rider of another node is left to that rider: both nodes see both rides, and each decides for
//! its own. A node cannot know why another one does not take a car, so what it has not done for a while it will not do:
//! no ride waits for ever beside a free car.

use std::collections::BTreeMap;

use cabrank_events::{RideId, Time};

/// At ownership cells of this resolution a city is nearly whole on one shard: rides of other shards want other cars.
const WHOLE_CITY: u8 = 5;
/// A pair that another node could have made for so long does not count any more: three rounds of 10 s.
const PATIENCE_MS: u64 = 30_000;
/// How long a ride is remembered that no round sees.
const MEMORY_MS: u64 = 60_000;

/// Do nodes look at each other's rides where ownership cells are of this resolution?
pub fn are_seen(ownership_resolution: u8) -> bool {
    ownership_resolution > WHOLE_CITY
}

/// Since when other nodes' rides are as they are. As many as rounds have seen within `MEMORY_MS`.
#[derive(Debug, Default)]
pub struct Others(BTreeMap<RideId, Known>);

#[derive(Debug)]
struct Known {
    version: u32,
    since: Time,
    seen: Time,
}

impl Others {
    /// Since when rounds have seen this ride with this version: from now on, if they have not.
    pub fn since(&mut self, ride: RideId, version: u32, now: Time) -> Time {
        let fresh = || Known {
            version,
            since: now,
            seen: now,
        };
        let known = self.0.entry(ride).or_insert_with(fresh);
        if known.version != version {
            *known = fresh();
        }
        known.seen = now;
        known.since
    }

    /// Forgets what no round has seen for a while.
    pub fn forget_old(&mut self, now: Time) {
        self.0
            .retain(|_, known| known.seen.plus_ms(MEMORY_MS) >= now);
    }
}

/// May a car that came free at `free_since` still be given to a ride of another node that is as it is since `since`?
pub fn may_come(since: Time, free_since: Time, now: Time) -> bool {
    since.max(free_since).plus_ms(PATIENCE_MS) >= now
}
