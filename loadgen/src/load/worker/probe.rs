//! How soon does a search show a ping? One car alone over the sea moves, pings, and is looked for until it is there.

use cabrank_events::wire::Nearby;
use cabrank_geo::Point;

use super::super::lane::{Answer, Heard};
use super::super::tally::Kind;
use super::Worker;
use super::calls::{Call, Pool, search};

/// The probe pings so often, ns; slower where the server's limit is the default one.
const PROBE_EVERY_NS: u64 = 10_000_000;
const PROBE_EVERY_LIMITED_NS: u64 = 330_000_000;
/// A ping that no search shows after this counts as this.
const PROBE_GIVE_UP_NS: u64 = 2_000_000_000;
/// Steps of the probe's car, and how near is the same place.
const PROBE_STEP_M: f64 = 2.0;
const PROBE_SAME_M: f64 = 0.7;

pub(super) struct Probe {
    pub cab: usize,
    pub lane: Pool,
    pub next: u64,
    pub step: u32,
}

impl Worker {
    /// Sends the probe's ping if it is due; answers when to look again.
    pub(super) fn handle_probe(&mut self, now: u64) -> u64 {
        let Some(probe) = &mut self.probe else {
            return u64::MAX;
        };
        if now < probe.next || !probe.lane.lanes[0].is_idle() {
            return if probe.lane.lanes[0].is_idle() {
                probe.next
            } else {
                u64::MAX
            };
        }
        let cab = &mut self.cabs[probe.cab];
        let every = if cab.pings_per_second == 0 {
            PROBE_EVERY_NS
        } else {
            PROBE_EVERY_LIMITED_NS
        };
        let due = probe.next;
        // A search that took longer than the pause has used up the pings between.
        probe.next = due + every * ((now - due) / every + 1);
        probe.step += 1;
        let place = probe_place(probe.step);
        let mut desk = self.shared.desk();
        if cab.ping_at(place, &mut desk) {
            self.look(due, place);
        }
        self.probe.as_ref().map_or(u64::MAX, |probe| probe.next)
    }

    fn look(&mut self, due: u64, place: Point) {
        let Some(probe) = &mut self.probe else { return };
        let request = search(&self.servers[0].1, &self.ops_token, place, 200.0, 5);
        let call = Call::Probe { due, place };
        let heard = probe.lane.lanes[0].call(&self.shared.registry, &request, call);
        if let Heard::Lost(_, why) = heard {
            self.shared.tally.refuse(Kind::PingToVisible, &why);
        }
    }

    pub(super) fn handle_probe_answer(
        &mut self,
        due: u64,
        place: Point,
        answer: Result<Answer, String>,
        now: u64,
    ) {
        let cars = answer.ok().filter(|answer| answer.status == 200);
        let cars = cars.and_then(|answer| serde_json::from_slice::<Nearby>(&answer.body).ok());
        let is_seen = cars.is_some_and(|near| {
            near.cars
                .iter()
                .any(|car| car.at.0.distance_m(place) < PROBE_SAME_M)
        });
        if is_seen || now - due > PROBE_GIVE_UP_NS || self.shared.is_draining {
            self.shared.tally.offered(Kind::PingToVisible, due, 1);
            self.shared.tally.done(Kind::PingToVisible, due, now, 1);
        } else {
            self.look(due, place);
        }
    }
}

/// The probe drives alone over the sea, to and fro.
pub(super) fn probe_place(step: u32) -> Point {
    let start = Point::new(36.2, -124.5).expect("a constant inside the ranges");
    let n = step % 1_000;
    let east = if n < 500 { n } else { 1_000 - n };
    start.offset_m(0.0, f64::from(east) * PROBE_STEP_M)
}
