//! A node that has just taken a shard over learns where the cars were a moment ago (PROTOCOL 20).
//!
//! Gateways publish accepted pings to `driver-locations`. Its newest records, at most [`WARM_MAX`] of each partition and
//! none older than `ping_ttl`, are put into the index like pings: the newest wins, so what comes live meanwhile stays.
//! All partitions are read: the cars of the halo are in those of the neighbours, and the ring puts neighbours anywhere.
//! Beside the commit loop: commands do not wait for it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use cabrank_eventlog::{Record, Topic};
use cabrank_events::wire::Ping;
use cabrank_events::{DriverId, Time};
use cabrank_geo::{Placement, Point};
use tracing::{info, warn};

use super::Shared;

/// Records read of one partition.
const WARM_MAX: u64 = 50_000;
/// Records read at once.
const READ_MAX: usize = 10_000;

/// Begins to warm the index; when that is under way, it is done once more after it.
pub(super) fn begin(shared: &Arc<Shared>) {
    // SeqCst: two flags that must be seen in one order, once a takeover.
    shared.warm_again.store(true, Ordering::SeqCst);
    if shared.is_warming.swap(true, Ordering::SeqCst) {
        return;
    }
    let warming = Arc::clone(shared);
    let spawned = std::thread::Builder::new()
        .name("cabrank-warm".into())
        .spawn(move || {
            loop {
                while warming.warm_again.swap(false, Ordering::SeqCst) {
                    warm(&warming);
                }
                warming.is_warming.store(false, Ordering::SeqCst);
                // A takeover between the two: whoever sees it first goes on.
                let is_over = !warming.warm_again.load(Ordering::SeqCst)
                    || warming.is_warming.swap(true, Ordering::SeqCst);
                if is_over {
                    return;
                }
            }
        });
    if let Err(why) = spawned {
        warn!(%why, "the index is not warmed: cars come back with their next pings");
        shared.is_warming.store(false, Ordering::SeqCst);
    }
}

fn warm(shared: &Shared) {
    let oldest = shared.clock.now().0 - shared.config.ping_ttl_ms;
    let mut placed = 0_u64;
    for shard in 0..shared.log.shards() {
        let Ok(bounds) = shared.log.bounds(Topic::DriverLocations, shard) else {
            continue;
        };
        let mut next = bounds.first.max(bounds.end.saturating_sub(WARM_MAX));
        while next < bounds.end && !shared.stopping.load(Ordering::SeqCst) {
            let read = shared
                .log
                .read(Topic::DriverLocations, shard, next, READ_MAX);
            let records = match read {
                Ok(records) => records,
                Err(why) => {
                    warn!(shard, %why, "the last positions cannot be read");
                    break;
                }
            };
            let Some(last) = records.last() else { break };
            next = last.offset + 1;
            for record in &records {
                if let Some((driver, placement)) = position(record)
                    && placement.time_ms >= oldest
                {
                    shared.ping_from_afar(&driver, placement);
                    placed += 1;
                }
            }
        }
    }
    metrics::counter!("cabrank_warmed_positions_total").increment(placed);
    info!(placed, "the index was warmed");
}

/// A record of `driver-locations`: the driver is its key. Others may write there, so what is not a position is passed over.
fn position(record: &Record) -> Option<(DriverId, Placement)> {
    let driver = DriverId::new(std::str::from_utf8(&record.key).ok()?).ok()?;
    let ping: Ping = serde_json::from_slice(&record.value).ok()?;
    let placement = Placement {
        at: Point::new(ping.lat, ping.lon).ok()?,
        time_ms: Time(ping.time?).0,
        seq: ping.seq,
    };
    Some((driver, placement))
}
