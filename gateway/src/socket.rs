//! The life of one WebSocket, whoever it belongs to.
//!
//! Pure of I/O: a [`Socket`] is handed bytes, wake-ups and the time, and keeps frames to be written; `threads` moves them.
//! It keeps the heartbeat, and closes with a code and a reason. What messages mean is the [`Person`]'s matter.
//! Bounds: the queue of news ([`Link`]), the outcomes waited for, the frame's size, the bytes waiting to be written, and
//! how long they may wait. While they wait nothing is read, and no news is taken.

use std::io::Write;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use cabrank_events::command::Outcome;
use cabrank_events::wire::{OutcomeMessage, WireResult};
use cabrank_events::{Command, CommandId, IdempotencyKey, RideId, SessionId, Time};
use tokio::time::Instant;

use crate::edge::{Edge, refused};
use crate::frames::{Broken, Flushed, Frame, Inbound, Outbound};
use crate::ingest::Heard;
use crate::outcomes::{Answer, Waiting};
use crate::people::{CloseCause, Link};
use crate::threads::Client;

/// How messages are written on a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// JSON in text frames.
    Json,
    /// Protobuf in binary frames.
    Proto,
}

/// Subprotocol of JSON text frames; also what a socket without a subprotocol speaks.
pub const JSON_PROTOCOL: &str = "cabrank.v1.json";
/// Subprotocol of Protobuf binary frames.
pub const PROTO_PROTOCOL: &str = "cabrank.v1.proto";

/// After a client broke the protocol nothing more can be read; the close frame gets so long to arrive before the
/// connection is cut.
const CLOSE_LINGER: Duration = Duration::from_millis(250);
/// News taken from the queue before what they gave is written.
const NEWS_PER_WRITE: usize = 32;
/// Answers to one read are written before more of it is handled when they are as many bytes as this.
const OUT_BYTES_MAX: usize = 32 * 1_024;
/// Longest text of an error message to a client.
const ERROR_CHARS_MAX: usize = 200;

/// What an outcome that is waited for was about.
pub struct About {
    /// The client's id of the message.
    pub message_id: String,
    /// The ride, if it was about one.
    pub ride: Option<RideId>,
    /// The session asked for, if it was an `online`.
    pub session: Option<SessionId>,
}

/// The end of waiting for an outcome; no answer means unknown.
pub struct Answered {
    pub about: About,
    pub answer: Option<Answer>,
}

/// A command whose outcome is waited for.
struct Asked {
    waiting: Waiting,
    about: About,
    kind: &'static str,
    since: Instant,
}

/// What a person's handlers work with: the shared edge, a place for messages to the phone, and commands.
pub struct Desk<Out> {
    pub edge: Arc<Edge>,
    /// The time of what is being handled.
    pub now: Instant,
    /// When what is being read came.
    pub heard: Heard,
    out: Vec<Out>,
    asked: Vec<Asked>,
}

impl<Out> Desk<Out> {
    fn new(edge: Arc<Edge>, now: Instant) -> Self {
        Self {
            heard: edge.heard(now.into_std()),
            edge,
            now,
            out: Vec::new(),
            asked: Vec::new(),
        }
    }

    /// Queues a message to the phone.
    pub fn say(&mut self, message: impl Into<Out>) {
        self.out.push(message.into());
    }

    /// Hands a command in whose outcome goes to [`Person::handle_answer`]; when there is no room, at once as unknown.
    pub fn ask(&mut self, id: CommandId, command: Command, about: About) -> Option<Answered> {
        let unknown = |about| {
            let answer = None;
            Some(Answered { about, answer })
        };
        if self.asked.len() >= self.edge.config.limits.session_waiting_max {
            refused("session_waiting");
            return unknown(about);
        }
        let kind = command_name(&command);
        let now: Time = self.edge.dispatch.now();
        let Ok(waiting) = self.edge.submit(id, now, command) else {
            count_command(kind, None);
            return unknown(about);
        };
        self.asked.push(Asked {
            waiting,
            about,
            kind,
            since: Instant::now(),
        });
        None
    }

    fn patience(&self) -> Duration {
        Duration::from_millis(self.edge.config.timing.outcome_timeout_ms)
    }

    /// A command whose outcome is here, or that was waited for long enough.
    fn poll_answered(&mut self, cx: &mut Context<'_>) -> Option<Answered> {
        let patience = self.patience();
        let (place, answer) = self
            .asked
            .iter_mut()
            .enumerate()
            .find_map(|(place, asked)| match asked.waiting.poll(cx) {
                Poll::Ready(answer) => Some((place, answer)),
                Poll::Pending => (self.now >= asked.since + patience).then_some((place, None)),
            })?;
        let Asked {
            about, kind, since, ..
        } = self.asked.remove(place);
        count_command(kind, answer.as_ref());
        metrics::histogram!("cabrank_command_ack_seconds").record(since.elapsed());
        Some(Answered { about, answer })
    }

    /// When the oldest command was waited for long enough.
    fn poll_deadline(&self) -> Option<Instant> {
        let oldest = self.asked.first()?;
        Some(oldest.since + self.patience())
    }
}

/// The name of an external command in metrics.
pub fn command_name(command: &Command) -> &'static str {
    match command {
        Command::RequestRide { .. } => "request_ride",
        Command::CancelByKey { .. } => "cancel_by_key",
        Command::CancelRide { .. } => "cancel_ride",
        Command::ChangeDestination { .. } => "change_destination",
        Command::ReceiveOffer { .. } => "receive_offer",
        Command::AcceptOffer { .. } => "accept_offer",
        Command::DeclineOffer { .. } => "decline_offer",
        Command::Arrive { .. } => "arrive",
        Command::StartRide { .. } => "start_ride",
        Command::CompleteRide { .. } => "complete_ride",
        Command::GiveBack { .. } => "give_back",
        Command::GoOnline { .. } => "go_online",
        Command::GoOffline { .. } => "go_offline",
        Command::SuspendDriver { .. } => "suspend_driver",
        Command::ReinstateDriver { .. } => "reinstate_driver",
        Command::BlockRider { .. } => "block_rider",
        Command::UnblockRider { .. } => "unblock_rider",
        Command::SetHeading { .. } => "set_heading",
        Command::SetDispatch { .. } => "set_dispatch",
        Command::EnterQueue { .. } => "enter_queue",
        Command::LeaveQueue { .. } => "leave_queue",
        Command::DrainNode { .. } => "drain_node",
        Command::GrowRing { .. } => "grow_ring",
        Command::RideOpened { .. }
        | Command::OpenRefused { .. }
        | Command::RideClosed { .. }
        | Command::OpenRide(_)
        | Command::ClaimGranted { .. }
        | Command::ClaimRefused { .. }
        | Command::DriverLeft { .. }
        | Command::DriverSilent { .. }
        | Command::ClaimDriver { .. }
        | Command::TransferHold { .. }
        | Command::TransferAnswered { .. }
        | Command::ReleaseDriver { .. }
        | Command::Ring { .. } => "internal",
    }
}

/// The outcome's name in metrics and traces.
pub fn outcome_name(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Done => "done",
        Outcome::AlreadyDone => "already_done",
        Outcome::Refused { .. } => "refused",
    }
}

/// Counts a command by type and outcome.
pub fn count_command(kind: &'static str, answer: Option<&Answer>) {
    let outcome = answer.map_or("unknown", |answer| outcome_name(&answer.outcome));
    metrics::counter!("cabrank_commands_total", "type" => kind, "outcome" => outcome).increment(1);
}

/// The outcome in the words of the sockets.
pub fn outcome_message(answered: Answered) -> OutcomeMessage {
    let Answered { about, answer } = answered;
    let (result, why) = match answer.as_ref().map(|answer| &answer.outcome) {
        None => (WireResult::Unknown, None),
        Some(Outcome::Done) => (WireResult::Done, None),
        Some(Outcome::AlreadyDone) => (WireResult::AlreadyDone, None),
        Some(Outcome::Refused { why }) => (WireResult::Refused, Some(*why)),
    };
    let ride = about.ride.or(answer.and_then(|answer| answer.ride));
    OutcomeMessage {
        id: about.message_id,
        result,
        why,
        ride,
        session: about.session,
    }
}

/// Checks a client's message id: 1 to 64 letters, digits or `. _ - : @`, so that joined ids cannot be confused.
pub fn check_message_id(id: &str) -> Result<(), String> {
    IdempotencyKey::new(id)
        .map(|_| ())
        .map_err(|error| format!("id: {error}"))
}

/// One side of the protocol: what a driver's or a rider's messages mean.
pub trait Person: Send + 'static {
    /// A message from the phone.
    type In: Send;
    /// A message to the phone.
    type Out: Send;
    /// What the node says about this person.
    type News: Send;
    /// The name in metrics.
    const ROLE: &'static str;

    /// Reads a JSON text frame.
    fn read_json(text: &str) -> Result<Self::In, String>;
    /// Reads a Protobuf binary frame.
    fn read_proto(bytes: &[u8]) -> Result<Self::In, String>;
    /// Writes a message.
    fn write(codec: Codec, out: &Self::Out) -> Vec<u8>;
    /// A message that says what was not understood.
    fn error(message: String) -> Self::Out;
    /// A message that asks the phone to connect elsewhere.
    fn moved(after_ms: u64) -> Self::Out;

    /// The first messages: a welcome, and what was missed.
    fn greet(&mut self, desk: &mut Desk<Self::Out>);
    /// A message from the phone; the error says what is wrong with it.
    fn handle_message(
        &mut self,
        desk: &mut Desk<Self::Out>,
        message: Self::In,
    ) -> Result<(), String>;
    /// News from the node.
    fn handle_news(&mut self, desk: &mut Desk<Self::Out>, news: Self::News);
    /// The outcome of a command of this socket.
    fn handle_answer(&mut self, desk: &mut Desk<Self::Out>, answered: Answered);
    /// Time has come to `now`.
    fn handle_deadline(&mut self, desk: &mut Desk<Self::Out>, now: Instant);
    /// When `handle_deadline` is wanted.
    fn poll_deadline(&self) -> Option<Instant>;
    /// The socket is closed.
    fn leave(&mut self, edge: &Edge);
}

/// Where a socket is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Open,
    /// The goodbye is said; at `until` the connection is cut.
    Closing {
        until: Instant,
        hears: Hears,
    },
    Over,
}

/// What is listened to after the goodbye.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hears {
    /// The client's goodbye, which ends it.
    Goodbye,
    /// Nothing: the end of what was written ends it.
    Written,
    /// Nothing: what comes is thrown away, so that the close frame is not lost to a reset.
    Noise,
}

/// One WebSocket.
pub struct Socket<P: Person> {
    desk: Desk<P::Out>,
    codec: Codec,
    person: P,
    link: Arc<Link<P::News>>,
    inbound: Inbound,
    outbound: Outbound,
    phase: Phase,
    /// When the token is over.
    expires: Instant,
    heard: Instant,
    beat: Instant,
    /// Since when the client's window has been full.
    stuck: Option<Instant>,
    /// Messages in a row that were not understood.
    misunderstood: u32,
    /// Frames since `second` began.
    frames: u32,
    second: Instant,
    has_moved: bool,
    /// Frames are here that wait until the answers to earlier ones are written.
    is_behind: bool,
}

impl<P: Person> Socket<P> {
    /// A socket that is about to begin.
    pub fn new(
        edge: Arc<Edge>,
        codec: Codec,
        person: P,
        link: Arc<Link<P::News>>,
        expires: Instant,
    ) -> Self {
        metrics::gauge!("cabrank_sockets_open", "role" => P::ROLE).increment(1.0);
        let now = Instant::now();
        let beat = now + Duration::from_millis(edge.config.timing.heartbeat_ms);
        let inbound = Inbound::new(edge.config.limits.frame_bytes_max);
        Self {
            desk: Desk::new(edge, now),
            codec,
            person,
            link,
            inbound,
            outbound: Outbound::default(),
            phase: Phase::Open,
            expires,
            heard: now,
            beat,
            stuck: None,
            misunderstood: 0,
            frames: 0,
            second: now,
            has_moved: false,
            is_behind: false,
        }
    }

    fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    fn silence(&self) -> Duration {
        Duration::from_millis(self.desk.edge.config.timing.silence_ms)
    }

    fn write_out(&mut self) {
        if self.desk.out.is_empty() {
            return;
        }
        for message in std::mem::take(&mut self.desk.out) {
            self.write(&message);
        }
    }

    fn write(&mut self, message: &P::Out) {
        let bytes = P::write(self.codec, message);
        match self.codec {
            Codec::Json => self.outbound.text(&bytes),
            Codec::Proto => self.outbound.binary(&bytes),
        }
    }

    /// Says goodbye; the person is not here any more.
    fn close(&mut self, cause: CloseCause, now: Instant) {
        if self.leave(cause) {
            let (code, reason) = cause.code();
            self.outbound.close(code, reason);
            let patience = Duration::from_millis(self.desk.edge.config.timing.close_ms);
            let (hears, patience) = match cause {
                CloseCause::Gone => (Hears::Written, patience),
                CloseCause::TooLarge
                | CloseCause::TooMany
                | CloseCause::Protocol
                | CloseCause::Misunderstood => (Hears::Noise, patience.min(CLOSE_LINGER)),
                CloseCause::GoingDown
                | CloseCause::TokenOver
                | CloseCause::Silent
                | CloseCause::SlowReader
                | CloseCause::Replaced
                | CloseCause::Revoked => (Hears::Goodbye, patience),
            };
            let until = now + patience;
            self.phase = Phase::Closing { until, hears };
        }
    }

    /// The client said goodbye first: it gets the same back.
    fn handle_goodbye(&mut self, payload: &[u8], now: Instant) {
        if self.leave(CloseCause::Gone) {
            self.outbound.close_like(payload);
            let until = now + Duration::from_millis(self.desk.edge.config.timing.close_ms);
            let hears = Hears::Written;
            self.phase = Phase::Closing { until, hears };
        }
    }

    /// Nobody is reached here any more. False when that was so before.
    fn leave(&mut self, cause: CloseCause) -> bool {
        let is_open = self.is_open();
        if is_open {
            self.phase = Phase::Over;
            self.person.leave(&self.desk.edge);
            metrics::counter!("cabrank_sockets_closed_total", "role" => P::ROLE, "cause" => cause.name())
                .increment(1);
        }
        is_open
    }

    /// Handles frames until the answers are to be written first.
    fn read(&mut self, bytes: &mut [u8]) {
        let mut inbound = std::mem::take(&mut self.inbound);
        self.is_behind = false;
        let read = inbound.take(bytes, |frame| self.handle_frame(frame));
        self.inbound = inbound;
        if let Err(broken) = read {
            let cause = match broken {
                Broken::Protocol => CloseCause::Protocol,
                Broken::NotUtf8 => CloseCause::Misunderstood,
                Broken::TooLarge => {
                    refused("frame_size");
                    CloseCause::TooLarge
                }
            };
            self.close(cause, self.desk.now);
        }
    }

    fn handle_frame(&mut self, frame: Frame<'_>) -> ControlFlow<()> {
        if let Phase::Closing { hears, .. } = self.phase {
            if matches!((hears, frame), (Hears::Goodbye, Frame::Close(_))) {
                self.phase = Phase::Over;
            }
            return ControlFlow::Continue(());
        }
        if self.is_too_many() {
            refused("frames");
            self.close(CloseCause::TooMany, self.desk.now);
            return ControlFlow::Break(());
        }
        let message = match (self.codec, frame) {
            (Codec::Json, Frame::Text(text)) => P::read_json(text),
            (Codec::Proto, Frame::Binary(bytes)) => P::read_proto(bytes),
            (Codec::Json, Frame::Binary(_)) => Err(format!(
                "send JSON text frames, or ask for {PROTO_PROTOCOL}"
            )),
            (Codec::Proto, Frame::Text(_)) => Err("send Protobuf binary frames".to_owned()),
            (_, Frame::Ping(payload)) => {
                self.outbound.pong(payload);
                return self.after_frame();
            }
            (_, Frame::Pong) => return ControlFlow::Continue(()),
            (_, Frame::Close(payload)) => {
                self.handle_goodbye(payload, self.desk.now);
                return ControlFlow::Break(());
            }
        };
        let handled =
            message.and_then(|message| self.person.handle_message(&mut self.desk, message));
        match handled {
            Ok(()) => self.misunderstood = 0,
            Err(why) => self.handle_nonsense(why),
        }
        self.write_out();
        self.after_frame()
    }

    /// Counts a frame of any kind.
    fn is_too_many(&mut self) -> bool {
        let now = self.desk.now;
        if now >= self.second + Duration::from_secs(1) {
            (self.second, self.frames) = (now, 0);
        }
        self.frames = self.frames.saturating_add(1);
        let most = self.desk.edge.config.limits.frames_per_second;
        most > 0 && self.frames > most
    }

    fn after_frame(&mut self) -> ControlFlow<()> {
        if self.outbound.len() < OUT_BYTES_MAX {
            return ControlFlow::Continue(());
        }
        self.is_behind = true;
        ControlFlow::Break(())
    }

    fn handle_nonsense(&mut self, why: String) {
        self.misunderstood += 1;
        metrics::counter!("cabrank_misunderstood_total", "role" => P::ROLE).increment(1);
        self.write(&P::error(shorten(why)));
        if self.misunderstood >= self.desk.edge.config.limits.misunderstood_max {
            self.close(CloseCause::Misunderstood, self.desk.now);
        }
    }

    /// Takes answers and some news; false when there were none.
    fn take_news(&mut self, cx: &mut Context<'_>) -> bool {
        let mut is_told = false;
        while let Some(answered) = self.desk.poll_answered(cx) {
            self.person.handle_answer(&mut self.desk, answered);
            is_told = true;
        }
        for _ in 0..NEWS_PER_WRITE {
            let Some(news) = self.link.take_news() else {
                break;
            };
            self.person.handle_news(&mut self.desk, news);
            is_told = true;
        }
        self.write_out();
        is_told
    }
}

impl<P: Person> Client for Socket<P> {
    fn begin(&mut self, now: Instant, waker: Waker) {
        self.link.listen(waker);
        self.desk.now = now;
        self.person.greet(&mut self.desk);
        self.write_out();
    }

    fn handle_bytes(&mut self, now: Instant, bytes: &mut [u8]) -> bool {
        self.desk.now = now;
        match self.phase {
            Phase::Open => {
                self.heard = now;
                self.desk.heard = self.desk.edge.heard(now.into_std());
            }
            Phase::Closing { hears, .. } if hears != Hears::Goodbye => return false,
            Phase::Closing { .. } => {}
            Phase::Over => return false,
        }
        self.read(bytes);
        self.is_behind || !self.desk.asked.is_empty()
    }

    fn handle_end(&mut self) {
        self.leave(CloseCause::Gone);
        self.phase = Phase::Over;
    }

    fn handle_wake(&mut self, now: Instant, cx: &mut Context<'_>) -> bool {
        if !self.is_open() {
            return false;
        }
        self.desk.now = now;
        if let Some(cause) = self.link.cause() {
            self.close(cause, now);
            return false;
        }
        let edge = &self.desk.edge;
        if edge.closing.is_cancelled() {
            self.close(CloseCause::GoingDown, now);
            return false;
        }
        if !self.has_moved && edge.draining.is_cancelled() {
            self.has_moved = true;
            self.write(&P::moved(self.desk.edge.config.timing.move_ms));
        }
        if !self.outbound.is_empty() {
            return true;
        }
        if self.is_behind {
            self.read(&mut []);
        }
        self.is_open() && (self.take_news(cx) || self.is_behind)
    }

    fn handle_time(&mut self, now: Instant) -> bool {
        self.desk.now = now;
        match self.phase {
            Phase::Open if now >= self.expires => self.close(CloseCause::TokenOver, now),
            Phase::Open => match self.stuck {
                Some(since) if now >= since + self.silence() => {
                    self.close(CloseCause::SlowReader, now);
                }
                Some(_) => {}
                None if now >= self.heard + self.silence() => self.close(CloseCause::Silent, now),
                None => {
                    if now >= self.beat {
                        let timing = &self.desk.edge.config.timing;
                        self.beat = now + Duration::from_millis(timing.heartbeat_ms);
                        self.outbound.ping();
                    }
                    self.person.handle_deadline(&mut self.desk, now);
                    self.write_out();
                }
            },
            Phase::Closing { until, .. } if now >= until => self.phase = Phase::Over,
            Phase::Closing { .. } | Phase::Over => {}
        }
        // Commands that were waited for long enough.
        self.desk.poll_deadline().is_some_and(|due| now >= due)
    }

    fn flush(&mut self, now: Instant, to: &mut dyn Write) -> Flushed {
        if self.outbound.is_empty() && self.stuck.is_none() {
            return Flushed::All;
        }
        match self.outbound.flush(to) {
            Ok(Flushed::Blocked) => {
                self.stuck.get_or_insert(now);
                Flushed::Blocked
            }
            Ok(Flushed::All) => {
                if self.stuck.take().is_some() {
                    // Nothing was read meanwhile; but whoever reads lives.
                    self.heard = now;
                }
                let hears = Hears::Written;
                if matches!(self.phase, Phase::Closing { hears: this, .. } if this == hears) {
                    self.phase = Phase::Over;
                }
                Flushed::All
            }
            Err(_) => {
                self.handle_end();
                Flushed::All
            }
        }
    }

    fn poll_deadline(&self) -> Option<Instant> {
        match self.phase {
            Phase::Open => {
                let due = match self.stuck {
                    Some(since) => since + self.silence(),
                    None => {
                        let due = self.beat.min(self.heard + self.silence());
                        let others = [self.person.poll_deadline(), self.desk.poll_deadline()];
                        others.into_iter().flatten().fold(due, Instant::min)
                    }
                };
                Some(due.min(self.expires))
            }
            Phase::Closing { until, .. } => Some(until),
            Phase::Over => None,
        }
    }

    fn is_over(&self) -> bool {
        self.phase == Phase::Over
    }
}

impl<P: Person> Drop for Socket<P> {
    fn drop(&mut self) {
        // Still open only when its thread was stopped or had to give it up.
        self.leave(CloseCause::GoingDown);
        metrics::gauge!("cabrank_sockets_open", "role" => P::ROLE).decrement(1.0);
    }
}

fn shorten(mut why: String) -> String {
    if let Some((end, _)) = why.char_indices().nth(ERROR_CHARS_MAX) {
        why.truncate(end);
    }
    why
}
