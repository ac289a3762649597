//! A rider's phone: the ride as it changes, the cars near while waiting, the driver on the way.
//!
//! Holds: views of one ride are sent in the order of their numbers, an older one never after a newer.

use std::sync::Arc;
use std::time::Duration;

use cabrank_events::command::CancelledBy;
use cabrank_events::wire::{FromRider, RideStage, RideView, ToRider};
use cabrank_events::{Command, CommandId, RiderId, proto};
use cabrank_matcher::api::{NearbyQuery, NotAnswered, Position, Soon};
use tokio::time::Instant;

use crate::edge::Edge;
use crate::news::RiderNews;
use crate::people::Link;
use crate::socket::{About, Answered, Codec, Desk, Person, check_message_id, outcome_message};

/// What is shown to the rider from time to time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Show {
    CarsNear,
    DriverAt,
}

/// One rider's socket.
pub struct RiderSession {
    rider: RiderId,
    link: Arc<Link<RiderNews>>,
    ride: Option<Arc<RideView>>,
    show: Option<(Show, Instant)>,
    /// An answer of a node elsewhere is under way.
    is_asking: bool,
    cars_near_every: Option<Duration>,
    driver_at_every: Option<Duration>,
}

fn every(ms: u64) -> Option<Duration> {
    (ms > 0).then(|| Duration::from_millis(ms))
}

impl RiderSession {
    pub fn new(rider: RiderId, link: Arc<Link<RiderNews>>, edge: &Edge) -> Self {
        let timing = &edge.config.timing;
        Self {
            rider,
            link,
            ride: None,
            show: None,
            is_asking: false,
            cars_near_every: every(timing.cars_near_ms),
            driver_at_every: every(timing.driver_at_ms),
        }
    }

    fn tell_ride(&mut self, desk: &mut Desk<ToRider>, ride: Arc<RideView>) {
        if ride.rider != self.rider {
            return;
        }
        match &self.ride {
            Some(known) if known.ride == ride.ride && known.ride_seq >= ride.ride_seq => return,
            // The end of an earlier ride: told, but the open one stays the one that is shown.
            Some(known)
                if known.ride != ride.ride && ride.stage.is_end() && !known.stage.is_end() => {}
            _ => {
                self.plan(&ride);
                self.ride = Some(ride.clone());
            }
        }
        desk.say(ToRider::Ride(RideView::clone(&ride)));
    }

    /// Decides what is shown from time to time in the ride's stage. What is shown already keeps its rhythm.
    fn plan(&mut self, ride: &RideView) {
        let (show, every) = match ride.stage {
            RideStage::Waiting | RideStage::Offered => (Show::CarsNear, self.cars_near_every),
            RideStage::EnRoute | RideStage::Arrived | RideStage::Started => {
                (Show::DriverAt, self.driver_at_every)
            }
            RideStage::Completed | RideStage::Cancelled | RideStage::Unfulfilled => {
                self.show = None;
                return;
            }
        };
        if every.is_none() {
            self.show = None;
        } else if self.show.is_none_or(|(shown, _)| shown != show) {
            self.show = Some((show, Instant::now()));
        }
    }

    fn show_cars_near(&mut self, desk: &mut Desk<ToRider>, ride: &RideView) {
        let query = NearbyQuery {
            at: ride.pickup,
            // The node draws it in to its search radius.
            radius_m: f64::MAX,
            k: desk.edge.config.limits.cars_near_max,
            class: Some(ride.class),
        };
        let ride = ride.ride;
        self.show_soon(desk, desk.edge.dispatch.nearby(&query), move |near| {
            // An answer nobody vouches for is not shown.
            let cars = (!near.unconfirmed).then_some(near.cars)?;
            Some(ToRider::CarsNear { ride, cars })
        });
    }

    fn show_driver_at(&mut self, desk: &mut Desk<ToRider>, ride: &RideView) {
        let Some(driver) = &ride.driver else { return };
        let target = match ride.stage {
            RideStage::Started => ride.dropoff,
            _ => Some(ride.pickup),
        };
        let (ride, edge) = (ride.ride, desk.edge.clone());
        self.show_soon(desk, desk.edge.dispatch.position(driver), move |position| {
            let Position { at, age_ms } = position?;
            let remaining_s = target
                // The cast saturates: no estimate can overflow it, and one that is not a number becomes 0.
                .map(|target| edge.dispatch.travel_time_s(at, target).ceil() as u32);
            Some(ToRider::DriverAt {
                ride,
                at,
                age_ms,
                remaining_s,
            })
        });
    }

    /// Says what an answer comes to, now or when it is here; while one is under way nothing more is asked. Without an
    /// answer nothing is said: the next one comes soon.
    fn show_soon<T: Send + 'static>(
        &mut self,
        desk: &mut Desk<ToRider>,
        answer: Soon<Result<T, NotAnswered>>,
        say: impl FnOnce(T) -> Option<ToRider> + Send + 'static,
    ) {
        match answer {
            Soon::Now(answer) => {
                if let Some(message) = answer.into_inner().ok().and_then(say) {
                    desk.say(message);
                }
            }
            Soon::Later(answer) => {
                self.is_asking = true;
                let link = Arc::clone(&self.link);
                tokio::spawn(async move {
                    let shown = answer.await.ok().and_then(say).map(Box::new);
                    link.tell(RiderNews::Shown(shown));
                });
            }
        }
    }

    /// An answer that was under way. The ride may have moved on meanwhile: then it is shown no more.
    fn handle_shown(&mut self, desk: &mut Desk<ToRider>, shown: Option<ToRider>) {
        self.is_asking = false;
        let (Some(message), Some(ride)) = (shown, &self.ride) else {
            return;
        };
        let show = self.show.map(|(show, _)| show);
        let is_wanted = match &message {
            ToRider::CarsNear { ride: of, .. } => *of == ride.ride && show == Some(Show::CarsNear),
            ToRider::DriverAt { ride: of, .. } => *of == ride.ride && show == Some(Show::DriverAt),
            _ => false,
        };
        if is_wanted {
            desk.say(message);
        }
    }
}

impl Person for RiderSession {
    type In = FromRider;
    type Out = ToRider;
    type News = RiderNews;
    const ROLE: &'static str = "rider";

    fn read_json(text: &str) -> Result<FromRider, String> {
        serde_json::from_str(text).map_err(|error| error.to_string())
    }

    fn read_proto(bytes: &[u8]) -> Result<FromRider, String> {
        proto::decode_from_rider(bytes).map_err(|error| error.to_string())
    }

    fn write(codec: Codec, out: &ToRider) -> Vec<u8> {
        match codec {
            Codec::Json => serde_json::to_vec(out).unwrap_or_default(),
            Codec::Proto => proto::encode_to_rider(out).into(),
        }
    }

    fn error(message: String) -> ToRider {
        ToRider::Error { message }
    }

    fn moved(after_ms: u64) -> ToRider {
        ToRider::Move { after_ms }
    }

    fn greet(&mut self, desk: &mut Desk<ToRider>) {
        let edge = desk.edge.clone();
        desk.say(ToRider::Welcome {
            rider: self.rider.clone(),
            time: edge.dispatch.now(),
            heartbeat_s: edge.config.timing.heartbeat_ms.div_ceil(1_000) as u32,
        });
        let open = edge
            .dispatch
            .ride_of(&self.rider)
            .and_then(|ride| edge.dispatch.ride(ride));
        if let Some(ride) = open {
            self.tell_ride(desk, ride);
        }
    }

    fn handle_message(
        &mut self,
        desk: &mut Desk<ToRider>,
        message: FromRider,
    ) -> Result<(), String> {
        let FromRider::Cancel {
            id: message_id,
            ride,
        } = message;
        check_message_id(&message_id)?;
        let id = CommandId::new(&format!("rider/{}/c/{message_id}", self.rider))
            .map_err(|error| error.to_string())?;
        let rider = Some(self.rider.clone());
        let command = Command::CancelRide {
            ride,
            by: CancelledBy::Rider,
            reason: None,
            rider,
        };
        let about = About {
            message_id,
            ride: Some(ride),
            session: None,
        };
        if let Some(unknown) = desk.ask(id, command, about) {
            self.handle_answer(desk, unknown);
        }
        Ok(())
    }

    fn handle_news(&mut self, desk: &mut Desk<ToRider>, news: RiderNews) {
        match news {
            RiderNews::Ride(ride) => self.tell_ride(desk, ride),
            RiderNews::Shown(shown) => self.handle_shown(desk, shown.map(|shown| *shown)),
        }
    }

    fn handle_answer(&mut self, desk: &mut Desk<ToRider>, answered: Answered) {
        desk.say(ToRider::Outcome(outcome_message(answered)));
    }

    fn handle_deadline(&mut self, desk: &mut Desk<ToRider>, now: Instant) {
        let (Some((show, due)), Some(ride)) = (self.show, self.ride.clone()) else {
            return;
        };
        if now < due {
            return;
        }
        let every = match show {
            Show::CarsNear => self.cars_near_every,
            Show::DriverAt => self.driver_at_every,
        };
        if !self.is_asking {
            match show {
                Show::CarsNear => self.show_cars_near(desk, &ride),
                Show::DriverAt => self.show_driver_at(desk, &ride),
            }
        }
        self.show = every.map(|every| (show, now + every));
    }

    fn poll_deadline(&self) -> Option<Instant> {
        self.show.map(|(_, due)| due)
    }

    fn leave(&mut self, edge: &Edge) {
        edge.riders.disconnect(&self.rider, &self.link);
    }
}
