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
        for shard in &before.0 {
            let label = shard.to_string();
            let gauge = |name: &'static str, value: f64| {
                metrics::gauge!(name, "shard" => label.clone()).set(value);
            };
            let held = table.get(shard);
            let serves = held.is_some() && holds;
            gauge("cabrank_shard_served", f64::from(u8::from(serves)));
            let waiting = held.map_or(0, |holding| holding.waiting_rides);
            gauge("cabrank_shard_waiting_rides", waiting as f64);
            match held.map(|holding| (holding, shared.log.bounds(Topic::RideCommands, *shard))) {
                Some((holding, Ok(bounds))) => {
                    let lag = bounds.end.saturating_sub(holding.next_input);
                    gauge("cabrank_shard_lag_commands", lag as f64);
                }
                Some((_, Err(_))) => {}
                None => gauge("cabrank_shard_lag_commands", 0.0),
            }
        }
    }
}
