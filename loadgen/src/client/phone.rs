//! A driver's phone: one WebSocket, whatever happens to it.
//!
//! What is said is decided by a [`Brain`], which knows no socket; what is done here is saying it for sure. Commands go one
//! at a time, in order: the next one leaves when the outcome of the last is known, and one without an outcome is repeated
//! with the same id, on the next socket too. A lost socket is replaced after a growing, spread pause; the session is
//! resumed first. Pings are never repeated: those that cannot be sent wait in a bounded queue.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use cabrank_events::command::RefusedBecause;
use cabrank_events::wire::{
    FromDriver, OutcomeMessage, Ping, RideStage, RideView, ToDriver, WireResult,
};
use cabrank_events::{ClassSet, DriverId, HoldId, Place, SessionId, Time};
use futures_util::{SinkExt, StreamExt};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async_with_config};

use super::{Context, Phase, Role};

/// Pings that wait for a socket or a session; beyond it the oldest are given up and counted.
pub const WAITING_PINGS_MAX: usize = 4_096;
/// Commands that wait; a brain that says more has a bug, and its phone gives up.
pub const WAITING_COMMANDS_MAX: usize = 256;
/// Pings in one frame after a time without a socket.
const PINGS_A_FRAME: usize = 20;
/// A command without an outcome is repeated after this.
const REPEAT_AFTER: Duration = Duration::from_secs(3);
/// ... and after the outcome `unknown` after this.
const REPEAT_AFTER_UNKNOWN: Duration = Duration::from_millis(300);
/// The pause before connecting again begins here and doubles,
const RECONNECT_FIRST: Duration = Duration::from_millis(100);
/// ... up to this.
const RECONNECT_LAST: Duration = Duration::from_secs(4);
/// A server that reads nothing for so long is lost.
const SEND_WITHIN: Duration = Duration::from_secs(5);
/// Connecting, the upgrade and the welcome together.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// The brain's next time is looked at again at least so often, since the clock may be set anew.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// A command a driver gives about a hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Say {
    /// The offer is on the screen.
    Received,
    /// Take it.
    Accept,
    /// Do not take it.
    Decline,
    /// At the pickup.
    Arrived,
    /// The rider is in.
    Started,
    /// The rider is out.
    Completed,
    /// Give the ride back.
    Cancel,
}

/// What a brain wants done.
#[derive(Clone, Debug, PartialEq)]
pub enum Do {
    /// Begin to work.
    Online,
    /// Stop working.
    Offline,
    /// Report a position.
    Ping(Ping),
    /// Say something about a hold.
    Say(Say, HoldId),
    /// Be out of reach until then.
    LoseSignal { until: Time },
    /// Hang up for good once all is said.
    HangUp,
}

/// What a phone tells its brain.
#[derive(Clone, Debug)]
pub enum Heard<'a> {
    /// There is a new socket after a lost one: what is still ours will be told before [`Heard::Online`].
    Reconnected,
    /// The session is open.
    Online,
    /// An offer.
    Offer {
        /// Its name.
        hold: HoldId,
        /// Where to fetch.
        pickup: Place,
        /// Where to, if told.
        dropoff: Option<Place>,
    },
    /// The hold is over: withdrawn or released.
    Over(HoldId),
    /// Another car comes for the rider instead. If this one is to fetch another rider in turn, that is said next.
    Swapped(HoldId),
    /// The ride as the server has it.
    Ride(&'a RideView),
    /// What was said is done (or had been).
    Done(Say, HoldId),
    /// What was said changed nothing.
    Refused(Say, HoldId, Option<RefusedBecause>),
}

/// Decides what a driver does. Knows domain time only; called with the time at hand, which steps back only
/// by what a server that was killed has lost of it.
pub trait Brain: Send + 'static {
    /// The first thing: called once, before anything else.
    fn begin(&mut self, now: Time, out: &mut Vec<Do>);
    /// The server or the phone says something.
    fn handle_heard(&mut self, now: Time, heard: Heard<'_>, out: &mut Vec<Do>);
    /// When [`Brain::handle_time`] wants to be called next.
    fn poll_time(&self) -> Option<Time>;
    /// It is (at least) that time.
    fn handle_time(&mut self, now: Time, out: &mut Vec<Do>);
    /// The run is over: bring what is open to an end at once.
    fn handle_ending(&mut self, now: Time, out: &mut Vec<Do>);
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Online,
    Offline,
    Say(Say, HoldId),
}

/// A command without an outcome so far.
#[derive(Debug)]
struct Command {
    id: String,
    what: What,
    /// When it should have left.
    due: Instant,
    repeat_at: Option<Instant>,
    tries: u32,
}

enum Parted {
    /// The phone hung up.
    Finished,
    /// The socket broke, or the server sent us away; wait at least so long.
    Lost(Duration),
    /// Out of reach until then.
    NoSignal(Time),
}

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// One driver's phone.
pub struct Phone<B> {
    context: Arc<Context>,
    driver: DriverId,
    classes: ClassSet,
    brain: B,
    rng: SmallRng,
    session: Option<SessionId>,
    commands: VecDeque<Command>,
    pings: VecDeque<Ping>,
    said: u64,
    /// The brain wants to work: pings wait for the session.
    is_working: bool,
    is_hanging_up: bool,
    no_signal: Option<Time>,
    was_told_of_the_end: bool,
    has_begun: bool,
    out: Vec<Do>,
}

impl<B: Brain> Phone<B> {
    /// A phone of `driver` with everything still to do.
    pub fn new(context: Arc<Context>, driver: DriverId, brain: B, seed: u64) -> Self {
        Phone {
            context,
            driver,
            classes: ClassSet::default(),
            brain,
            rng: SmallRng::seed_from_u64(seed),
            session: None,
            commands: VecDeque::new(),
            pings: VecDeque::new(),
            said: 0,
            is_working: false,
            is_hanging_up: false,
            no_signal: None,
            was_told_of_the_end: false,
            has_begun: false,
            out: Vec::new(),
        }
    }

    /// Lives until the brain hangs up or the run is over.
    pub async fn run(mut self, mut phase: watch::Receiver<Phase>) {
        let mut pause = RECONNECT_FIRST;
        loop {
            let parted = match self.connect(&mut phase).await {
                Ok(None) => return,
                Ok(Some(socket)) => {
                    pause = RECONNECT_FIRST;
                    self.talk(socket, &mut phase).await
                }
                Err(why) => {
                    self.context.counts().connects_failed += 1;
                    if let Some(give_up) = why {
                        self.context
                            .complain(format!("driver {}: {give_up}", self.driver));
                        return;
                    }
                    Parted::Lost(Duration::ZERO)
                }
            };
            let until = match parted {
                Parted::Finished => return,
                Parted::Lost(at_least) => {
                    let spread = pause.mul_f64(self.rng.random_range(0.2..1.0));
                    pause = (pause * 2).min(RECONNECT_LAST);
                    Instant::now() + at_least + spread
                }
                Parted::NoSignal(until) => self.context.clock.wall_of(until),
            };
            tokio::select! {
                () = sleep_until(until) => {}
                _ = phase.wait_for(|phase| *phase == Phase::Over) => return,
            }
            self.no_signal = None;
        }
    }

    /// `Ok(None)`: the run is over. `Err(Some)`: trying again will not help.
    async fn connect(
        &mut self,
        phase: &mut watch::Receiver<Phase>,
    ) -> Result<Option<Socket>, Option<String>> {
        let context = Arc::clone(&self.context);
        let _turn = context
            .connecting
            .acquire()
            .await
            .map_err(|why| Some(why.to_string()))?;
        let socket = tokio::select! {
            _ = phase.wait_for(|phase| *phase == Phase::Over) => return Ok(None),
            socket = timeout(CONNECT_WITHIN, shake_hands(&self.context, &self.driver)) => socket.map_err(|_| None)??,
        };
        Ok(Some(socket))
    }

    async fn talk(&mut self, mut socket: Socket, phase: &mut watch::Receiver<Phase>) -> Parted {
        self.context.counts().connected += 1;
        self.begin();
        let parted = self.converse(&mut socket, phase).await;
        {
            let mut counts = self.context.counts();
            counts.connected -= 1;
            match parted {
                Parted::Lost(_) => counts.sockets_lost += 1,
                Parted::NoSignal(_) => counts.signals_lost += 1,
                Parted::Finished => {}
            }
            if self.session.is_some() {
                counts.online -= 1;
            }
        }
        if matches!(parted, Parted::Finished) {
            // The close is a courtesy; the server reads what was sent before it.
            let _ = timeout(SEND_WITHIN, socket.close(None)).await;
            while let Ok(Some(Ok(_))) = timeout(SEND_WITHIN, socket.next()).await {}
        }
        parted
    }

    fn begin(&mut self) {
        let now = Instant::now();
        if !self.has_begun {
            self.has_begun = true;
            let time = self.context.clock.now();
            self.brain.begin(time, &mut self.out);
            self.take_orders(now);
        } else {
            let time = self.context.clock.now();
            self.brain
                .handle_heard(time, Heard::Reconnected, &mut self.out);
            self.take_orders(now);
        }
        for command in &mut self.commands {
            command.repeat_at = None;
        }
        let begins_with_online = self
            .commands
            .front()
            .is_some_and(|command| command.what == What::Online);
        if self.session.is_some() {
            self.context.counts().online += 1;
            if !begins_with_online {
                let resume = self.command(What::Online, now);
                self.commands.push_front(resume);
            }
        }
    }

    async fn converse(
        &mut self,
        socket: &mut Socket,
        phase: &mut watch::Receiver<Phase>,
    ) -> Parted {
        loop {
            if *phase.borrow() == Phase::Over {
                return Parted::Finished;
            }
            if *phase.borrow() == Phase::Ending && !self.was_told_of_the_end {
                self.was_told_of_the_end = true;
                let time = self.context.clock.now();
                self.brain.handle_ending(time, &mut self.out);
                self.take_orders(Instant::now());
            }
            if self.say(socket).await.is_err() {
                return Parted::Lost(Duration::ZERO);
            }
            if let Some(until) = self.no_signal {
                return Parted::NoSignal(until);
            }
            if self.is_hanging_up && self.commands.is_empty() && self.pings.is_empty() {
                return Parted::Finished;
            }
            let brain_at = self
                .brain
                .poll_time()
                .map(|time| self.context.clock.wall_of(time));
            let look_again = Instant::now() + LOOK_AGAIN;
            let repeat_at = self.commands.front().and_then(|command| command.repeat_at);
            let next = [brain_at, repeat_at]
                .into_iter()
                .flatten()
                .fold(look_again, Instant::min);
            tokio::select! {
                frame = socket.next() => match frame {
                    Some(Ok(frame)) => {
                        if let Some(parted) = self.handle_frame(frame) {
                            return parted;
                        }
                    }
                    Some(Err(_)) | None => return Parted::Lost(Duration::ZERO),
                },
                () = sleep_until(next) => self.wake(brain_at),
                _ = phase.changed() => {}
            }
        }
    }

    fn wake(&mut self, brain_at: Option<Instant>) {
        let time = self.context.clock.now();
        if self.brain.poll_time().is_some_and(|due| due <= time) {
            self.brain.handle_time(time, &mut self.out);
            let now = Instant::now();
            self.take_orders(brain_at.unwrap_or(now).min(now));
        }
    }

    /// Turns the brain's orders into messages; `due` is when they should leave.
    fn take_orders(&mut self, due: Instant) {
        for order in std::mem::take(&mut self.out) {
            let what = match order {
                Do::Ping(ping) => {
                    if self.pings.len() >= WAITING_PINGS_MAX {
                        self.pings.pop_front();
                        self.context.counts().pings_unsent += 1;
                    }
                    self.pings.push_back(ping);
                    continue;
                }
                Do::LoseSignal { until } => {
                    self.no_signal = Some(until);
                    continue;
                }
                Do::HangUp => {
                    self.is_hanging_up = true;
                    continue;
                }
                Do::Online => What::Online,
                Do::Offline => What::Offline,
                Do::Say(say, hold) => What::Say(say, hold),
            };
            match what {
                What::Online => self.is_working = true,
                What::Offline => self.is_working = false,
                What::Say(..) => {}
            }
            let command = self.command(what, due);
            if self.commands.len() < WAITING_COMMANDS_MAX {
                self.commands.push_back(command);
            } else {
                self.context
                    .complain(format!("driver {}: too many commands wait", self.driver));
            }
        }
    }

    fn command(&mut self, what: What, due: Instant) -> Command {
        self.said += 1;
        let id = format!("{}-{}", self.context.run, self.said);
        Command {
            id,
            what,
            due,
            repeat_at: None,
            tries: 0,
        }
    }

    /// Sends what may be sent now.
    async fn say(&mut self, socket: &mut Socket) -> Result<(), ()> {
        self.say_pings(socket).await?;
        let now = Instant::now();
        if self.session.is_none() {
            // There is nothing to end.
            while self
                .commands
                .front()
                .is_some_and(|command| command.what == What::Offline)
            {
                self.commands.pop_front();
            }
        }
        let Some(command) = self.commands.front_mut() else {
            return Ok(());
        };
        if command.repeat_at.is_some_and(|at| at > now) {
            return Ok(());
        }
        command.repeat_at = Some(now + REPEAT_AFTER);
        command.tries += 1;
        if command.tries > 1 {
            self.context.counts().repeated += 1;
        }
        let id = command.id.clone();
        let message = match command.what {
            What::Online => FromDriver::Online {
                id,
                session: self.session,
                classes: self.classes,
            },
            What::Offline => match self.session {
                Some(session) => FromDriver::Offline { id, session },
                None => return Ok(()),
            },
            What::Say(say, HoldId { ride, attempt }) => match say {
                Say::Received => FromDriver::Received { id, ride, attempt },
                Say::Accept => FromDriver::Accept { id, ride, attempt },
                Say::Decline => FromDriver::Decline { id, ride, attempt },
                Say::Arrived => FromDriver::Arrived { id, ride, attempt },
                Say::Started => FromDriver::Started { id, ride, attempt },
                Say::Completed => FromDriver::Completed { id, ride, attempt },
                Say::Cancel => FromDriver::Cancel { id, ride, attempt },
            },
        };
        send(socket, &message).await
    }

    async fn say_pings(&mut self, socket: &mut Socket) -> Result<(), ()> {
        // Before the session is open they would be refused.
        while !self.pings.is_empty() && (self.session.is_some() || !self.is_working) {
            let count = self.pings.len().min(PINGS_A_FRAME);
            let pings: Vec<Ping> = self.pings.drain(..count).collect();
            let message = match pings.as_slice() {
                [ping] => FromDriver::Ping(*ping),
                _ => FromDriver::Pings { pings },
            };
            send(socket, &message).await?;
            self.context.counts().pings_sent += count as u64;
        }
        Ok(())
    }

    /// Answers how to part if the server wants it so.
    fn handle_frame(&mut self, frame: Message) -> Option<Parted> {
        let text = match frame {
            Message::Text(text) => text,
            Message::Close(close) => {
                // Somebody else speaks for this driver, or the server is full: no reason to hurry.
                let code = close.map_or(0, |close| u16::from(close.code));
                let slow = code == 4410 || code == 4409;
                return Some(Parted::Lost(if slow {
                    RECONNECT_LAST
                } else {
                    Duration::ZERO
                }));
            }
            Message::Binary(_) | Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {
                return None;
            }
        };
        let read_at = Instant::now();
        let message = match serde_json::from_str::<ToDriver>(&text) {
            Ok(message) => message,
            Err(why) => {
                self.context
                    .complain(format!("a message of the server does not parse: {why}"));
                return None;
            }
        };
        let time = self.context.clock.now();
        let heard = match &message {
            ToDriver::Welcome { time, .. } => {
                self.context.clock.hear(*time, read_at);
                return None;
            }
            ToDriver::Outcome(outcome) => {
                self.handle_outcome(outcome, read_at);
                return None;
            }
            ToDriver::Offer {
                ride,
                attempt,
                pickup,
                dropoff,
                ..
            } => {
                self.context.counts().offers += 1;
                self.context.ledger.offered(*ride, read_at);
                let hold = HoldId {
                    ride: *ride,
                    attempt: *attempt,
                };
                Heard::Offer {
                    hold,
                    pickup: *pickup,
                    dropoff: *dropoff,
                }
            }
            ToDriver::Released {
                ride,
                attempt,
                stage: RideStage::EnRoute,
            } => Heard::Swapped(HoldId {
                ride: *ride,
                attempt: *attempt,
            }),
            ToDriver::Withdrawn { ride, attempt } | ToDriver::Released { ride, attempt, .. } => {
                Heard::Over(HoldId {
                    ride: *ride,
                    attempt: *attempt,
                })
            }
            ToDriver::Ride(view) => Heard::Ride(view),
            // What is advice is not followed.
            ToDriver::PingRefused { .. } | ToDriver::Queue(_) | ToDriver::HeadTo(_) => return None,
            ToDriver::Move { after_ms } => {
                return Some(Parted::Lost(
                    Duration::from_millis(*after_ms).min(RECONNECT_LAST),
                ));
            }
            ToDriver::Error { message } => {
                self.context
                    .complain(format!("the server does not understand: {message}"));
                return None;
            }
        };
        self.brain.handle_heard(time, heard, &mut self.out);
        self.take_orders(read_at);
        None
    }

    fn handle_outcome(&mut self, outcome: &OutcomeMessage, read_at: Instant) {
        let spread = self.rng.random_range(0.5..1.5);
        let Some(command) = self.commands.front_mut().filter(|c| c.id == outcome.id) else {
            return; // an answer to a try whose command has been answered before
        };
        if outcome.result == WireResult::Unknown {
            command.repeat_at = Some(read_at + REPEAT_AFTER_UNKNOWN.mul_f64(spread));
            return;
        }
        let (what, due) = (command.what, command.due);
        self.commands.pop_front();
        let is_done = outcome.result != WireResult::Refused;
        {
            let mut counts = self.context.counts();
            if counts.is_measuring {
                counts
                    .command_ack
                    .record(read_at.saturating_duration_since(due));
            }
            counts.commands_refused += u64::from(!is_done);
        }
        let time = self.context.clock.now();
        match what {
            What::Online => self.handle_online(outcome, is_done, time),
            What::Offline => {
                if self.session.take().is_some() {
                    self.context.counts().online -= 1;
                }
            }
            What::Say(say, hold) => {
                let heard = if is_done {
                    Heard::Done(say, hold)
                } else {
                    Heard::Refused(say, hold, outcome.why)
                };
                self.brain.handle_heard(time, heard, &mut self.out);
            }
        }
        self.take_orders(read_at);
    }

    fn handle_online(&mut self, outcome: &OutcomeMessage, is_done: bool, time: Time) {
        let had = self.session.is_some();
        if is_done {
            self.session = outcome.session.or(self.session);
            if !had && self.session.is_some() {
                self.context.counts().online += 1;
            }
            self.brain.handle_heard(time, Heard::Online, &mut self.out);
        } else if had {
            // That session is over: begin a new one, unless the brain has stopped meanwhile.
            self.session = None;
            self.context.counts().online -= 1;
            if self.is_working {
                let again = self.command(What::Online, Instant::now());
                self.commands.push_front(again);
            }
        } else {
            self.is_working = false;
            self.context.complain(format!(
                "driver {} may not go online: {:?}",
                self.driver, outcome.why
            ));
        }
    }
}

/// Is this view of a ride about a driver's work that goes on?
pub fn is_under_way(view: &RideView) -> bool {
    matches!(
        view.stage,
        RideStage::EnRoute | RideStage::Arrived | RideStage::Started
    )
}

/// Hears the server's time on a short connection of a driver nobody knows.
pub async fn hear_clock(context: &Context) -> Result<(), String> {
    let scout = DriverId::new("loadgen-scout").map_err(|why| why.to_string())?;
    match timeout(CONNECT_WITHIN, shake_hands(context, &scout)).await {
        Ok(Ok(mut socket)) => {
            // The reading is what counts; how the socket ends does not matter.
            let _ = timeout(SEND_WITHIN, socket.close(None)).await;
            Ok(())
        }
        Ok(Err(why)) => Err(why.unwrap_or_else(|| "the connection failed".to_owned())),
        Err(_) => Err("no welcome in time".to_owned()),
    }
}

/// Connects and reads the welcome. `Err(Some)`: trying again will not help.
async fn shake_hands(context: &Context, driver: &DriverId) -> Result<Socket, Option<String>> {
    let url = format!("ws{}/v1/driver", &context.url["http".len()..]);
    let mut request = url
        .into_client_request()
        .map_err(|why| Some(why.to_string()))?;
    let token = (context.mint)(Role::Driver, driver.as_str());
    let bearer = format!("Bearer {token}")
        .parse()
        .map_err(|_| Some("bad token".to_owned()))?;
    request.headers_mut().insert("Authorization", bearer);
    // Small buffers: there are thousands of phones in one process.
    let mut config = WebSocketConfig::default();
    config.read_buffer_size = 4 << 10;
    config.write_buffer_size = 0;
    let connected = connect_async_with_config(request, Some(config), true).await;
    let (mut socket, _) = match connected {
        Ok(connected) => connected,
        Err(tungstenite::Error::Http(response)) if response.status().is_client_error() => {
            let retry = response.status().as_u16() == 429;
            return Err((!retry).then(|| format!("refused with {}", response.status())));
        }
        Err(_) => return Err(None),
    };
    while let Some(frame) = socket.next().await {
        let Ok(Message::Text(text)) = frame else {
            continue;
        };
        if let Ok(ToDriver::Welcome { time, .. }) = serde_json::from_str(&text) {
            context.clock.hear(time, Instant::now());
            return Ok(socket);
        }
    }
    Err(None)
}

async fn send(socket: &mut Socket, message: &FromDriver) -> Result<(), ()> {
    let text = serde_json::to_string(message).map_err(|_| ())?;
    match timeout(SEND_WITHIN, socket.send(Message::text(text))).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) | Err(_) => Err(()),
    }
}
