//! The way of every ping into the city, whoever brings it: a phone's socket, or a partner who publishes to
//! `driver-pings`.
//!
//! Holds: sent = accepted + refused by reason + replaced; one gate judges all pings of a driver that come by this
//! gateway. Pings of the same driver at two gateways are ordered where they meet, in the index, by (time, sequence).

use std::sync::Arc;
use std::time::Instant;

use cabrank_engine::ingest::Checked;
use cabrank_events::wire::{Ping, PingRefusal};
use cabrank_events::{DriverId, Time};
use cabrank_matcher::api::Pinged;

use crate::edge::{Edge, refused};
use crate::news::DriverNews;
use crate::people::DriverSlot;

/// When pings were read, on both clocks. One look at the clocks serves all that was read together.
#[derive(Clone, Copy, Debug)]
pub struct Heard {
    at: Time,
    wall_ms: u64,
}

impl Edge {
    /// What was read now.
    pub fn heard(&self, now: Instant) -> Heard {
        Heard {
            at: self.dispatch.now(),
            wall_ms: self.wall_ms_at(now),
        }
    }

    /// Checks pings of one driver and places the newest good one. `refused` hears of each that was not believed. Returns
    /// the newest that passed the checks.
    pub fn take_pings(
        &self,
        heard: Heard,
        driver: &DriverId,
        slot: &DriverSlot<DriverNews>,
        pings: &[Ping],
        mut refused: impl FnMut(u32, PingRefusal),
    ) -> Option<Checked> {
        let mut refuse = |seq, why| {
            self.counters.add_refused(why);
            refused(seq, why);
        };
        self.counters.add_sent(pings.len());
        let mut newest = None;
        {
            let mut gate = slot.gate();
            for ping in pings {
                match gate.check(&self.config.ingest, heard.at, heard.wall_ms, ping) {
                    // Those that pass are each newer than the one before.
                    Ok(checked) => {
                        if newest.replace(checked).is_some() {
                            self.counters.add_replaced();
                        }
                    }
                    Err(why) => refuse(ping.seq, why),
                }
            }
        }
        let checked = newest?;
        let pinged = self
            .dispatch
            .ping(driver, checked.at, checked.time, checked.seq);
        match pinged {
            Pinged::Accepted => self.counters.add_accepted(),
            Pinged::OutOfOrder => refuse(checked.seq, PingRefusal::OutOfOrder),
            Pinged::NotOnline => refuse(checked.seq, self.why_unplaced(driver)),
            Pinged::IndexFull => refuse(checked.seq, PingRefusal::IndexFull),
        }
        Some(checked)
    }

    /// Why the index does not know this driver: one at work whom it had no room for is not at fault.
    fn why_unplaced(&self, driver: &DriverId) -> PingRefusal {
        let known = self.dispatch.driver(driver);
        match known.and_then(|view| view.session) {
            Some(_) => PingRefusal::IndexFull,
            None => PingRefusal::NotOnline,
        }
    }
}

/// The door for partners' pings; see [`Gateway::partner_pings`](crate::Gateway::partner_pings).
#[derive(Clone)]
pub struct PartnerPings {
    pub(crate) edge: Arc<Edge>,
}

impl PartnerPings {
    /// Takes a ping of a driver who may have no socket here. Nobody is told of a refusal; the counters are.
    pub fn take(&self, driver: &DriverId, ping: &Ping) {
        let edge = &*self.edge;
        let Ok(slot) = edge.drivers.slot(driver) else {
            refused("people_remembered");
            return;
        };
        let pings = std::slice::from_ref(ping);
        edge.take_pings(edge.heard(Instant::now()), driver, &slot, pings, |_, _| {});
        // No socket gives signs of life for this driver: the ping is one, wherever its place is.
        let view = edge.dispatch.driver(driver);
        if let Some(session) = view.and_then(|view| view.session) {
            edge.dispatch.sign_of_life(driver, session);
        }
    }
}
