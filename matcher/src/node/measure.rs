//! How much work lies before each shard of this node?
//!
//! Asked now and then beside the commit loop, because the log's ends may take a look at a broker.

use std::collections::BTreeSet;

use cabrank_eventlog::Topic;

use super::Node;

/// What one process has measured before: a shard that has left is shown as not served, once it was here.
#[derive(Default)]
pub struct Measured(BTreeSet<u16>);

impl Node {
    /// Sets the gauges of the shards. Takes as long as the log needs to say where its commands end, or to give up; a
    /// shard whose end is not told keeps its last lag.
    pub fn measure(&self, before: &mut Measured) {
        let shared = self.shared();
        let table = shared.table().clone();
        let holds = (shared.lease)();
        metrics::gauge!("cabrank_lease_held").set(f64::from(u8::from(holds)));
        metrics::gauge!("cabrank_shards").set(f64::from(shared.log.shards()));
        metrics::gauge!("cabrank_drivers_max").set(f64::from(shared.config.drivers_max));
        before.0.extend(table.keys());
        let gauge = |name: &'static str, shard: u16, value: f64| {
            metrics::gauge!(name, "shard" => shard.to_string()).set(value);
        };
        for shard in &before.0 {
            let held = table.get(shard);
            let serves = held.is_some() && holds;
            let waiting = held.map_or(0, |holding| holding.waiting_rides);
            gauge("cabrank_shard_served", *shard, f64::from(u8::from(serves)));
            gauge("cabrank_shard_waiting_rides", *shard, waiting as f64);
            if held.is_none() {
                gauge("cabrank_shard_lag_commands", *shard, 0.0);
            }
        }
        for (shard, holding) in table {
            let Ok(bounds) = shared.log.bounds(Topic::RideCommands, shard) else {
                // Where one end is not told, waiting for the others would make all of this old.
                return;
            };
            let lag = bounds.end.saturating_sub(holding.next_input);
            gauge("cabrank_shard_lag_commands", shard, lag as f64);
        }
    }
}
