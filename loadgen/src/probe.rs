//! How soon does a ping show in the answers? One car far from everybody, and somebody who looks for it.
//!
//! The probe drives alone over the sea, so that its own pings are all that is measured. Each ping is a new place; the
//! looker asks `GET /v1/nearby` until a car stands there.

use std::sync::Arc;
use std::time::Duration;

use cabrank_events::Time;
use cabrank_events::wire::{Nearby, Ping};
use cabrank_geo::Point;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::client::phone::{Brain, Do, Heard, Say};
use crate::client::{CALL_WITHIN, Context};

/// The probe pings so often (wall time): below the limit of pings a second.
const EVERY: Duration = Duration::from_millis(330);
/// A step between two pings: no car is that fast to be impossible, and no index so coarse as to blur it.
const STEP_M: f64 = 4.0;
/// Steps before it turns back to the start.
const STEPS: u32 = 500;
/// A ping that is not seen after this counts as this.
const GIVE_UP: Duration = Duration::from_secs(2);
/// A car this near to the place pinged is the one.
const SAME_PLACE_M: f64 = 1.0;

/// The probe's driver.
pub(crate) struct Probe {
    context: Arc<Context>,
    sent: mpsc::Sender<(Instant, Point)>,
    next: Option<Time>,
    seq: u32,
}

/// The probe and what looks for it.
pub(crate) fn probe(context: &Arc<Context>) -> (Probe, impl Future<Output = ()> + Send + use<>) {
    let (sent, pinged) = mpsc::channel(1);
    let probe = Probe {
        context: Arc::clone(context),
        sent,
        next: None,
        seq: 0,
    };
    (probe, look(Arc::clone(context), pinged))
}

impl Probe {
    fn place(&self) -> Point {
        let start = Point::new(36.2, -124.5).expect("a constant inside the ranges");
        let step = self.seq % (2 * STEPS);
        let east = if step < STEPS { step } else { 2 * STEPS - step };
        start.offset_m(0.0, f64::from(east) * STEP_M)
    }
}

impl Brain for Probe {
    fn begin(&mut self, now: Time, out: &mut Vec<Do>) {
        out.push(Do::Online);
        self.next = Some(now.plus_ms(1000));
    }

    fn handle_heard(&mut self, _now: Time, heard: Heard<'_>, out: &mut Vec<Do>) {
        if let Heard::Offer { hold, .. } = heard {
            out.push(Do::Say(Say::Received, hold));
            out.push(Do::Say(Say::Decline, hold));
        }
    }

    fn poll_time(&self) -> Option<Time> {
        self.next
    }

    fn handle_time(&mut self, now: Time, out: &mut Vec<Do>) {
        let due = self.next.unwrap_or(now);
        let every = EVERY.as_millis() as f64 * self.context.clock.speed();
        self.next = Some(now.plus_ms(every as u64));
        self.seq += 1;
        let place = self.place();
        out.push(Do::Ping(Ping {
            lat: place.lat_deg(),
            lon: place.lon_deg(),
            time: Some(now.0),
            seq: self.seq,
            accuracy: None,
        }));
        // While the last ping is still being looked for, this one is not measured.
        let _ = self.sent.try_send((self.context.clock.wall_of(due), place));
    }

    fn handle_ending(&mut self, _now: Time, _out: &mut Vec<Do>) {
        self.next = None;
    }
}

async fn look(context: Arc<Context>, mut pinged: mpsc::Receiver<(Instant, Point)>) {
    let token = context.ops_token();
    while let Some((due, place)) = pinged.recv().await {
        let query = [
            ("lat", place.lat_deg()),
            ("lon", place.lon_deg()),
            ("radius", 200.0),
        ];
        loop {
            let call = context
                .http
                .get(format!("{}/v1/nearby", context.url))
                .query(&query)
                .query(&[("k", 5)])
                .bearer_auth(&token)
                .timeout(CALL_WITHIN);
            let seen = match call.send().await {
                Ok(response) if response.status().is_success() => {
                    let nearby = response.json::<Nearby>().await.unwrap_or(Nearby {
                        cars: vec![],
                        unconfirmed: false,
                    });
                    nearby
                        .cars
                        .iter()
                        .any(|car| car.at.0.distance_m(place) < SAME_PLACE_M)
                }
                _ => false,
            };
            let waited = Instant::now().saturating_duration_since(due);
            if seen || waited > GIVE_UP {
                context.counts().ping_to_visible.record(waited.min(GIVE_UP));
                break;
            }
        }
    }
}
