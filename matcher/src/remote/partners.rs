//! Pings of partners without a socket: read from `driver-pings`, handed to whoever checks pings.
//!
//! A record's key is the driver, its value the JSON of a ping as on a socket. Pings are perishable: reading begins at the
//! end, and what was missed is missed. Each partition is read by one gateway, which its configuration says.

use std::time::Duration;

use cabrank_eventlog::{EventLog, ReadError, Record, Topic};
use cabrank_events::DriverId;
use cabrank_events::wire::Ping;
use tracing::{info, warn};

/// Longest wait for pings; also how soon the end is noticed.
const WAIT: Duration = Duration::from_millis(200);
/// Pings taken at once.
const READ_MAX: usize = 1_000;

/// Reads until `is_over`.
pub(super) fn read(
    log: &dyn EventLog,
    partitions: &[u16],
    is_over: impl Fn() -> bool,
    mut hear: impl FnMut(&DriverId, &Ping),
) {
    let mut tail = log.tail();
    let mut to_find: Vec<u16> = partitions.to_vec();
    while !is_over() {
        to_find.retain(|shard| match log.bounds(Topic::DriverPings, *shard) {
            Ok(bounds) => {
                info!(shard, "reading partners' pings");
                tail.follow(Topic::DriverPings, *shard, bounds.end);
                false
            }
            Err(why @ ReadError::NoSuchPartition { .. }) => {
                warn!(shard, %why, "partners' pings are not read there");
                false
            }
            Err(_) => true,
        });
        match tail.next(WAIT, READ_MAX) {
            Ok(found) => {
                for followed in found {
                    match parse(&followed.record) {
                        Some((driver, ping)) => hear(&driver, &ping),
                        None => {
                            metrics::counter!("cabrank_partner_pings_unreadable_total")
                                .increment(1);
                        }
                    }
                }
            }
            Err(error) => {
                warn!(%error, "the place among partners' pings is gone: on from the end");
                tail.leave(error.topic, error.shard);
                to_find.push(error.shard);
            }
        }
    }
}

fn parse(record: &Record) -> Option<(DriverId, Ping)> {
    let driver = DriverId::new(std::str::from_utf8(&record.key).ok()?).ok()?;
    let mut ping: Ping = serde_json::from_slice(&record.value).ok()?;
    // Without its own time it was measured when it was written, not when it is read.
    ping.time = ping.time.or(Some(record.time_ms));
    Some((driver, ping))
}
