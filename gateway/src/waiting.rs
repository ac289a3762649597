//! A driver at an airport, as their socket sees it: into the queue, out of it, and what the phone is told of it.
//!
//! Pings are not in the log, so the gateway that sees a car at an airport says so with a command, and the place is the driver's
//! own state from then on (`cabrank_engine::queues`). What is kept here is only since when the car has been elsewhere: a bad ping
//! or a hole under a roof costs nobody the place, `gateway.zones.queue_grace_ms` elsewhere do. A phone that
//! comes back to another gateway begins that grace anew. Who falls silent goes offline (`node.silent_after_ms`), and the place with them.

use std::time::Duration;

use cabrank_engine::ingest::Checked;
use cabrank_events::command::{Outcome, RefusedBecause};
use cabrank_events::wire::{QueueView, ToDriver};
use cabrank_events::{Command, CommandId, DriverId, Time, ZoneName};
use tokio::time::Instant;

use crate::socket::{About, Answered, Desk};

/// Between two commands of one socket about its driver's place.
const ASK_EVERY: Duration = Duration::from_secs(2);
/// The same while the queue is full.
const FULL_EVERY: Duration = Duration::from_secs(30);
/// Begins the ids of what the gateway asks in the driver's name; no phone can choose such an id.
const OURS: &str = "queue/";

/// What one socket knows of its driver's waiting.
#[derive(Default)]
pub(crate) struct Waits {
    /// What the phone was told last, while it has a place.
    told: Option<QueueView>,
    /// Since when good pings have come from elsewhere.
    elsewhere: Option<Time>,
    asked: Option<Instant>,
    /// The queue that was asked for and is full.
    full: Option<ZoneName>,
    seeks: Option<ZoneName>,
}

impl Waits {
    /// The driver is at `ping` and believed. `is_asked`: an offer is on the screen.
    pub fn handle_ping(
        &mut self,
        desk: &mut Desk<ToDriver>,
        driver: &DriverId,
        ping: Checked,
        is_asked: bool,
    ) {
        if !desk.edge.zones.has_queues() {
            if self.told.is_some() {
                self.tell(desk, driver, is_asked);
            }
            return;
        }
        let here = desk.edge.zones.queue_at(ping.at);
        let place = desk.edge.dispatch.queue_place(driver);
        let place = place.map(|place| place.airport);
        let is_elsewhere = place.is_some() && place != here;
        if is_elsewhere {
            let since = *self.elsewhere.get_or_insert(ping.time);
            let grace_ms = desk.edge.config.zones.queue_grace_ms;
            if ping.time >= since.plus_ms(grace_ms) {
                self.ask(desk, driver, here, place);
            }
        } else {
            self.elsewhere = None;
            if here.is_some() && place.is_none() {
                self.ask(desk, driver, here, None);
            }
        }
        self.tell(desk, driver, is_asked);
    }

    /// Into the queue at `here`, or only out of the one at `place`.
    fn ask(
        &mut self,
        desk: &mut Desk<ToDriver>,
        driver: &DriverId,
        here: Option<ZoneName>,
        place: Option<ZoneName>,
    ) {
        let now = desk.now;
        let view = desk.edge.dispatch.driver(driver);
        let Some((session, None)) = view.and_then(|view| Some((view.session?, view.hold))) else {
            return; // Not at work, or with a ride: it is looked at again with the next ping.
        };
        let is_full = here.is_some() && here == self.full;
        let every = if is_full { FULL_EVERY } else { ASK_EVERY };
        if self.asked.is_some_and(|asked| now < asked + every) {
            return;
        }
        let driver = driver.clone();
        self.seeks = here.clone();
        let id = format!(
            "{OURS}{driver}/{}/{}",
            session.0,
            desk.edge.dispatch.now().0
        );
        let command = match (here, place) {
            (Some(airport), _) => Command::EnterQueue {
                driver,
                session,
                airport,
            },
            (None, Some(airport)) => Command::LeaveQueue {
                driver,
                session,
                airport,
            },
            (None, None) => return,
        };
        self.asked = Some(now);
        let Ok(id) = CommandId::new(&id) else { return };
        let about = About {
            message_id: OURS.into(),
            ride: None,
            session: None,
        };
        // What could not be handed in is asked again.
        let _ = desk.ask(id, command, about);
    }

    /// Is this the answer to something that was asked here? Then it is dealt with.
    pub fn handle_answer(
        &mut self,
        desk: &mut Desk<ToDriver>,
        driver: &DriverId,
        answered: &Answered,
    ) -> bool {
        if answered.about.message_id != OURS {
            return false;
        }
        let outcome = answered.answer.as_ref().map(|answer| &answer.outcome);
        let why = RefusedBecause::QueueFull;
        let full = self
            .seeks
            .take()
            .filter(|_| outcome == Some(&Outcome::Refused { why }));
        if let Some(airport) = full.clone().filter(|_| full != self.full) {
            desk.say(ToDriver::Queue(QueueView {
                airport,
                position: None,
                waiting: 0,
                is_full: true,
            }));
        }
        self.full = full;
        self.tell(desk, driver, false);
        true
    }

    /// Tells the phone its place, if that is not what it was told last. While an offer is on the screen nothing is said: the
    /// place waits for the answer.
    pub fn tell(&mut self, desk: &mut Desk<ToDriver>, driver: &DriverId, is_asked: bool) {
        if is_asked {
            return;
        }
        let now = desk.edge.dispatch.queue_place(driver);
        let is_over = now.is_none();
        let Some(said) = now.clone().or_else(|| self.told.clone()) else {
            return;
        };
        if is_over {
            desk.say(ToDriver::Queue(QueueView {
                position: None,
                waiting: 0,
                ..said
            }));
        } else if self.told.as_ref() != Some(&said) {
            desk.say(ToDriver::Queue(said));
        }
        self.told = now;
    }
}
