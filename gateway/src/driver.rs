//! A driver's phone: its pings, its answers, and what it is told.
//!
//! Holds: a phone hears of the end of every offer and every ride it was told of, once; pings are checked by the
//! driver's gate whatever socket they come by, and each is accounted for.

use std::sync::Arc;
use std::time::Duration;

use cabrank_events::wire::{FromDriver, Ping, PingRefusal, RideStage, RideView, ToDriver};
use cabrank_events::{
    Attempt, ClassSet, Command, CommandId, DriverId, HoldId, RideId, SessionId, Time, proto,
};
use serde::Deserialize;
use serde_json::Value;
use tokio::time::Instant;

use crate::edge::Edge;
use crate::news::DriverNews;
use crate::people::{DriverSlot, Link};
use crate::ping_json;
use crate::socket::{About, Answered, Codec, Desk, Person, check_message_id, outcome_message};
use crate::waiting::Waits;

/// Between two `ping_refused` messages on one socket.
const REFUSED_EVERY: Duration = Duration::from_secs(1);

/// What the phone was told it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Held {
    hold: HoldId,
    is_accepted: bool,
}

/// Refusals the phone was not told of yet.
#[derive(Clone, Copy)]
struct Unsaid {
    newest_seq: u32,
    why: PingRefusal,
    count: u32,
}

/// One driver's socket.
pub struct DriverSession {
    driver: DriverId,
    slot: Arc<DriverSlot<DriverNews>>,
    link: Arc<Link<DriverNews>>,
    held: Option<Held>,
    unsaid: Option<Unsaid>,
    /// When the next `ping_refused` may be sent.
    refused_at: Instant,
    sign_at: Instant,
    sign_every: Duration,
    /// Domain time of the last sign of life given to the node.
    signed: Time,
    is_heard_since_sign: bool,
    waits: Waits,
}

impl DriverSession {
    pub fn new(
        driver: DriverId,
        slot: Arc<DriverSlot<DriverNews>>,
        link: Arc<Link<DriverNews>>,
        sign_every: Duration,
    ) -> Self {
        let now = Instant::now();
        Self {
            driver,
            slot,
            link,
            held: None,
            unsaid: None,
            refused_at: now,
            sign_at: now + sign_every,
            sign_every,
            signed: Time(i64::MIN),
            is_heard_since_sign: true,
            waits: Waits::default(),
        }
    }

    fn handle_pings(&mut self, desk: &mut Desk<ToDriver>, pings: &[Ping]) {
        let unsaid = &mut self.unsaid;
        let refused = |seq, why| {
            let count = unsaid.map_or(0, |unsaid| unsaid.count).saturating_add(1);
            *unsaid = Some(Unsaid {
                newest_seq: seq,
                why,
                count,
            });
        };
        let edge = &desk.edge;
        match edge.take_pings(desk.heard, &self.driver, &self.slot, pings, refused) {
            Some(ping) => {
                let is_asked = self.is_asked();
                self.waits.handle_ping(desk, &self.driver, ping, is_asked);
            }
            // An accepted ping is a sign of life; a phone whose pings are refused lives, too.
            None => self.give_sign(&desk.edge),
        }
        self.say_refused(desk, desk.now);
    }

    /// Is an offer on the screen that nobody has answered?
    fn is_asked(&self) -> bool {
        self.held.is_some_and(|held| !held.is_accepted)
    }

    fn say_refused(&mut self, desk: &mut Desk<ToDriver>, now: Instant) {
        if now >= self.refused_at
            && let Some(Unsaid {
                newest_seq,
                why,
                count,
            }) = self.unsaid.take()
        {
            self.refused_at = now + REFUSED_EVERY;
            desk.say(ToDriver::PingRefused {
                seq: newest_seq,
                reason: why,
                refused: count,
            });
        }
    }

    /// Tells the node that the phone lives, no more often than wanted on either clock.
    fn give_sign(&mut self, edge: &Edge) {
        let now = edge.dispatch.now();
        let every_ms = i64::try_from(self.sign_every.as_millis()).unwrap_or(i64::MAX);
        // Half, so that two clocks that tick alike do not miss every other sign by a millisecond.
        if now.since(self.signed) < every_ms / 2 {
            return;
        }
        self.signed = now;
        self.is_heard_since_sign = false;
        if let Some(session) = edge
            .dispatch
            .driver(&self.driver)
            .and_then(|view| view.session)
        {
            edge.dispatch.sign_of_life(&self.driver, session);
        }
    }

    fn ask(
        &mut self,
        desk: &mut Desk<ToDriver>,
        message_id: String,
        ride: Option<RideId>,
        session: Option<SessionId>,
        command: Command,
    ) -> Result<(), String> {
        check_message_id(&message_id)?;
        let id = CommandId::new(&format!("driver/{}/{message_id}", self.driver))
            .map_err(|error| error.to_string())?;
        if let Some(unknown) = desk.ask(
            id,
            command,
            About {
                message_id,
                ride,
                session,
            },
        ) {
            self.handle_answer(desk, unknown);
        }
        Ok(())
    }

    fn ask_about(
        &mut self,
        desk: &mut Desk<ToDriver>,
        message_id: String,
        (ride, attempt): (RideId, Attempt),
        command: fn(HoldId, DriverId) -> Command,
    ) -> Result<(), String> {
        let command = command(HoldId { ride, attempt }, self.driver.clone());
        self.ask(desk, message_id, Some(ride), None, command)
    }

    fn go_online(
        &mut self,
        desk: &mut Desk<ToDriver>,
        id: String,
        session: Option<SessionId>,
        classes: ClassSet,
    ) -> Result<(), String> {
        let session = session.unwrap_or_else(|| self.slot.mint_session(desk.edge.dispatch.now()));
        let driver = self.driver.clone();
        self.ask(
            desk,
            id,
            None,
            Some(session),
            Command::GoOnline {
                driver,
                session,
                classes,
            },
        )
    }

    fn offer(&mut self, desk: &mut Desk<ToDriver>, ride: &RideView, attempt: Attempt) {
        // No times: the offer is over already, and the phone need not hear of it.
        let Some((receipt_by, answer_ms)) = desk.edge.dispatch.offer_times(ride.ride) else {
            return;
        };
        self.held = Some(Held {
            hold: HoldId {
                ride: ride.ride,
                attempt,
            },
            is_accepted: false,
        });
        desk.say(ToDriver::Offer {
            ride: ride.ride,
            attempt,
            pickup: ride.pickup,
            dropoff: ride.dropoff,
            class: ride.class,
            receipt_by,
            answer_ms,
        });
    }

    fn tell_ride(&mut self, desk: &mut Desk<ToDriver>, ride: &RideView) {
        // The view is the ride after the whole transaction: it may have moved on from this driver in it.
        let (Some(attempt), false) = (ride.attempt, ride.stage.is_end()) else {
            return;
        };
        if ride.driver.as_ref() == Some(&self.driver) {
            self.held = Some(Held {
                hold: HoldId {
                    ride: ride.ride,
                    attempt,
                },
                is_accepted: true,
            });
            desk.say(ToDriver::Ride(ride.clone()));
        }
    }

    fn tell_over(
        &mut self,
        desk: &mut Desk<ToDriver>,
        ride: RideId,
        attempt: Option<Attempt>,
        stage: Option<RideStage>,
    ) {
        let is_meant = |held: &mut Held| {
            held.hold.ride == ride && attempt.is_none_or(|n| n == held.hold.attempt)
        };
        let Some(Held { hold, is_accepted }) = self.held.take_if(is_meant) else {
            return;
        };
        if !is_accepted {
            return desk.say(ToDriver::Withdrawn {
                ride,
                attempt: hold.attempt,
            });
        }
        let stage = stage.or_else(|| desk.edge.dispatch.ride(ride).map(|ride| ride.stage));
        let stage = stage.unwrap_or(RideStage::Cancelled);
        desk.say(ToDriver::Released {
            ride,
            attempt: hold.attempt,
            stage,
        });
    }
}

/// The fields of a `pings` frame, read without the detour of a tagged enumeration.
#[derive(Deserialize)]
struct Pings {
    pings: Vec<Ping>,
}

/// A frame in which some pings cannot be read (JSON writes a number that is none as `null`). Each of those becomes a
/// ping without a place, which the gate refuses by name: it spoils itself, not the frame.
fn read_spoiled(text: &str) -> Option<FromDriver> {
    #[derive(Deserialize)]
    struct Frame {
        #[serde(rename = "type")]
        kind: String,
        pings: Vec<Value>,
    }
    let frame: Frame = serde_json::from_str(text).ok()?;
    let read = |ping: Value| {
        let seq = ping["seq"].as_u64().and_then(|seq| seq.try_into().ok());
        let unreadable = Ping {
            lat: f64::NAN,
            lon: f64::NAN,
            time: None,
            seq: seq.unwrap_or(0),
            accuracy: None,
        };
        serde_json::from_value(ping).unwrap_or(unreadable)
    };
    let pings = frame.pings.into_iter().map(read).collect();
    (frame.kind == "pings").then_some(FromDriver::Pings { pings })
}

impl Person for DriverSession {
    type In = FromDriver;
    type Out = ToDriver;
    type News = DriverNews;
    const ROLE: &'static str = "driver";

    fn read_json(text: &str) -> Result<FromDriver, String> {
        // Nearly all frames are pings.
        if let Some(ping) = ping_json::read(text) {
            return Ok(FromDriver::Ping(ping));
        }
        // Read straight into place when the type stands first.
        let message = if text.starts_with(r#"{"type":"ping","#) {
            serde_json::from_str(text).map(FromDriver::Ping)
        } else if text.starts_with(r#"{"type":"pings","#) {
            serde_json::from_str(text).map(|Pings { pings }| FromDriver::Pings { pings })
        } else {
            serde_json::from_str(text)
        };
        message.or_else(|error| read_spoiled(text).ok_or_else(|| error.to_string()))
    }

    fn read_proto(bytes: &[u8]) -> Result<FromDriver, String> {
        proto::decode_from_driver(bytes).map_err(|error| error.to_string())
    }

    fn write(codec: Codec, out: &ToDriver) -> Vec<u8> {
        match codec {
            Codec::Json => serde_json::to_vec(out).unwrap_or_default(),
            Codec::Proto => proto::encode_to_driver(out).into(),
        }
    }

    fn error(message: String) -> ToDriver {
        ToDriver::Error { message }
    }

    fn moved(after_ms: u64) -> ToDriver {
        ToDriver::Move { after_ms }
    }

    fn greet(&mut self, desk: &mut Desk<ToDriver>) {
        let edge = desk.edge.clone();
        desk.say(ToDriver::Welcome {
            driver: self.driver.clone(),
            time: edge.dispatch.now(),
            heartbeat_s: edge.config.timing.heartbeat_ms.div_ceil(1_000) as u32,
            pings_per_second: edge.config.ingest.pings_per_second,
        });
        self.give_sign(&edge);
        self.waits.tell(desk, &self.driver, false);
        let Some(hold) = edge
            .dispatch
            .driver(&self.driver)
            .and_then(|view| view.hold)
        else {
            return;
        };
        let Some(ride) = edge.dispatch.ride(hold.ride) else {
            return;
        };
        match ride.stage {
            RideStage::Offered => self.offer(desk, &ride, hold.attempt),
            RideStage::EnRoute | RideStage::Arrived | RideStage::Started => {
                self.tell_ride(desk, &ride)
            }
            RideStage::Waiting
            | RideStage::Completed
            | RideStage::Cancelled
            | RideStage::Unfulfilled => {}
        }
    }

    fn handle_message(
        &mut self,
        desk: &mut Desk<ToDriver>,
        message: FromDriver,
    ) -> Result<(), String> {
        self.is_heard_since_sign = true;
        match message {
            FromDriver::Ping(ping) => {
                self.handle_pings(desk, std::slice::from_ref(&ping));
                Ok(())
            }
            FromDriver::Pings { pings } => {
                self.handle_pings(desk, &pings);
                Ok(())
            }
            FromDriver::Online {
                id,
                session,
                classes,
            } => self.go_online(desk, id, session, classes),
            FromDriver::Offline { id, session } => {
                let driver = self.driver.clone();
                self.ask(desk, id, None, None, Command::GoOffline { driver, session })
            }
            FromDriver::Received { id, ride, attempt } => {
                self.ask_about(desk, id, (ride, attempt), |hold, driver| {
                    Command::ReceiveOffer { hold, driver }
                })
            }
            FromDriver::Accept { id, ride, attempt } => {
                self.ask_about(desk, id, (ride, attempt), |hold, driver| {
                    Command::AcceptOffer { hold, driver }
                })
            }
            FromDriver::Decline { id, ride, attempt } => {
                self.ask_about(desk, id, (ride, attempt), |hold, driver| {
                    Command::DeclineOffer { hold, driver }
                })
            }
            FromDriver::Arrived { id, ride, attempt } => {
                self.ask_about(desk, id, (ride, attempt), |hold, driver| Command::Arrive {
                    hold,
                    driver,
                })
            }
            FromDriver::Started { id, ride, attempt } => {
                self.ask_about(desk, id, (ride, attempt), |hold, driver| {
                    Command::StartRide { hold, driver }
                })
            }
            FromDriver::Completed { id, ride, attempt } => {
                self.ask_about(desk, id, (ride, attempt), |hold, driver| {
                    Command::CompleteRide { hold, driver }
                })
            }
            FromDriver::Cancel { id, ride, attempt } => {
                self.ask_about(desk, id, (ride, attempt), |hold, driver| {
                    Command::GiveBack { hold, driver }
                })
            }
        }
    }

    fn handle_news(&mut self, desk: &mut Desk<ToDriver>, news: DriverNews) {
        match news {
            DriverNews::Offered { ride, attempt } => self.offer(desk, &ride, attempt),
            DriverNews::Ride(ride) => self.tell_ride(desk, &ride),
            DriverNews::Over {
                ride,
                attempt,
                stage,
            } => self.tell_over(desk, ride, attempt, stage),
            DriverNews::Declined { ride, attempt } => {
                self.held
                    .take_if(|held| held.hold == HoldId { ride, attempt });
            }
            // Whoever got an offer meanwhile has something better.
            DriverNews::HeadTo(_) if self.held.is_some() => {}
            DriverNews::HeadTo(hint) => desk.say(ToDriver::HeadTo(*hint)),
        }
    }

    fn handle_answer(&mut self, desk: &mut Desk<ToDriver>, answered: Answered) {
        if self.waits.handle_answer(desk, &self.driver, &answered) {
            return;
        }
        let mut message = outcome_message(answered);
        // A repeated `online` may have minted another number than the first, which is the one that counts.
        if message.session.is_some() && message.result != cabrank_events::wire::WireResult::Unknown
        {
            let open = desk
                .edge
                .dispatch
                .driver(&self.driver)
                .and_then(|view| view.session);
            message.session = open.or(message.session);
        }
        desk.say(ToDriver::Outcome(message));
    }

    fn handle_deadline(&mut self, desk: &mut Desk<ToDriver>, now: Instant) {
        self.say_refused(desk, now);
        if now >= self.sign_at {
            self.sign_at = now + self.sign_every;
            if self.is_heard_since_sign {
                let edge = desk.edge.clone();
                self.give_sign(&edge);
            }
        }
    }

    fn poll_deadline(&self) -> Option<Instant> {
        let refused_at = self.unsaid.map(|_| self.refused_at);
        Some(refused_at.map_or(self.sign_at, |at| at.min(self.sign_at)))
    }

    fn leave(&mut self, edge: &Edge) {
        edge.drivers.disconnect(&self.slot, &self.link);
    }
}
