//! The life of one WebSocket, whoever it belongs to.
//!
//! One task per socket: it reads frames, writes what is queued, keeps the heartbeat, and closes with a code and a
//! reason. What messages mean is the [`Person`]'s matter. Bounds: the outbound queue ([`Link`]), the outcomes waited
//! for, the frame's size, and how long a write may take. While a write is blocked nothing is read.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, WebSocket};
use cabrank_events::command::Outcome;
use cabrank_events::wire::{OutcomeMessage, WireResult};
use cabrank_events::{Command, CommandId, IdempotencyKey, RideId, SessionId, Time};
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{SinkExt, StreamExt};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_tungstenite::tungstenite::Error as WsError;
use tokio_tungstenite::tungstenite::error::ProtocolError;

use crate::edge::{Edge, refused};
use crate::outcomes::Answer;
use crate::people::{CloseCause, Link};

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

/// After a message that was too large nothing more can be read; the close frame gets so long to arrive before the
/// connection is cut.
const CLOSE_LINGER_MS: u64 = 250;
/// News taken from the queue before what they gave is written.
const NEWS_PER_WRITE: usize = 32;
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

/// What a person's handlers work with: the shared edge, a place for messages to the phone, and commands.
pub struct Desk<Out> {
    pub edge: Arc<Edge>,
    pub out: VecDeque<Out>,
    waiting: FuturesUnordered<BoxFuture<'static, Answered>>,
}

impl<Out> Desk<Out> {
    fn new(edge: Arc<Edge>) -> Self {
        Self {
            edge,
            out: VecDeque::new(),
            waiting: FuturesUnordered::new(),
        }
    }

    /// Queues a message to the phone.
    pub fn say(&mut self, message: impl Into<Out>) {
        self.out.push_back(message.into());
    }

    /// Hands a command in whose outcome goes to [`Person::handle_answer`]; when there is no room, at once as unknown.
    pub fn ask(&mut self, id: CommandId, command: Command, about: About) -> Option<Answered> {
        if self.waiting.len() >= self.edge.config.limits.session_waiting_max {
            refused("session_waiting");
            return Some(Answered {
                about,
                answer: None,
            });
        }
        let kind = command_name(&command);
        let now: Time = self.edge.dispatch.now();
        let Ok(waiting) = self.edge.submit(id, now, command) else {
            count_command(kind, None);
            return Some(Answered {
                about,
                answer: None,
            });
        };
        let patience = Duration::from_millis(self.edge.config.timing.outcome_timeout_ms);
        self.waiting.push(Box::pin(async move {
            let since = Instant::now();
            let answer = waiting.answer(patience).await;
            count_command(kind, answer.as_ref());
            metrics::histogram!("cabrank_command_ack_seconds").record(since.elapsed());
            Answered { about, answer }
        }));
        None
    }
}

/// The name of an external command in metrics.
pub fn command_name(command: &Command) -> &'static str {
    match command {
        Command::RequestRide { .. } => "request_ride",
        Command::CancelByKey { .. } => "cancel_by_key",
        Command::CancelRide { .. } => "cancel_ride",
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
        | Command::ReleaseDriver { .. } => "internal",
    }
}

/// Counts a command by type and outcome.
pub fn count_command(kind: &'static str, answer: Option<&Answer>) {
    let outcome = match answer.map(|answer| &answer.outcome) {
        None => "unknown",
        Some(Outcome::Done) => "done",
        Some(Outcome::AlreadyDone) => "already_done",
        Some(Outcome::Refused { .. }) => "refused",
    };
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
    /// Writes a frame.
    fn write(codec: Codec, out: &Self::Out) -> Message;
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

/// What a socket is run with.
pub struct Session<P: Person> {
    pub edge: Arc<Edge>,
    pub codec: Codec,
    pub person: P,
    pub link: Arc<Link<P::News>>,
    pub queue: mpsc::Receiver<P::News>,
    /// When the token is over.
    pub expires: Instant,
}

/// Runs a socket to its end.
pub async fn run<P: Person>(mut session: Session<P>, mut ws: WebSocket) {
    metrics::gauge!("cabrank_sockets_open", "role" => P::ROLE).increment(1.0);
    let cause = session.talk(&mut ws).await;
    let edge = session.edge.clone();
    session.person.leave(&edge);
    metrics::counter!("cabrank_sockets_closed_total", "role" => P::ROLE, "cause" => cause.name())
        .increment(1);
    close(
        &mut ws,
        cause,
        Duration::from_millis(edge.config.timing.close_ms),
    )
    .await;
    metrics::gauge!("cabrank_sockets_open", "role" => P::ROLE).decrement(1.0);
}

/// Closes a socket for whose person there is no room.
pub async fn turn_away(ws: &mut WebSocket) {
    let reason = "no room: connect again later".into();
    let _ = ws
        .send(Message::Close(Some(CloseFrame { code: 1013, reason })))
        .await;
}

/// Says why and waits, not for long, until the client has heard it.
async fn close(ws: &mut WebSocket, cause: CloseCause, patience: Duration) {
    let (code, reason) = cause.code();
    let frame = Message::Close(Some(CloseFrame {
        code,
        reason: reason.into(),
    }));
    let goodbye = async {
        let said = ws.send(frame).await;
        while said.is_ok() && matches!(ws.next().await, Some(Ok(_))) {}
        if matches!(
            cause,
            CloseCause::TooLarge | CloseCause::Protocol | CloseCause::Misunderstood
        ) {
            sleep(Duration::from_millis(CLOSE_LINGER_MS)).await;
        }
    };
    // A client that does not answer is cut off.
    let _ = timeout(patience, goodbye).await;
}

/// What the loop does next.
enum Step<News> {
    Close(CloseCause),
    Time,
    Drain,
    Answered(Answered),
    News(News),
    Frame(Option<Result<Message, axum::Error>>),
}

impl<P: Person> Session<P> {
    async fn talk(&mut self, ws: &mut WebSocket) -> CloseCause {
        let (edge, link) = (self.edge.clone(), self.link.clone());
        let timing = &edge.config.timing;
        let heartbeat = Duration::from_millis(timing.heartbeat_ms);
        let silence = Duration::from_millis(timing.silence_ms);
        let mut closed = pin!(link.closed.cancelled());
        let mut closing = pin!(edge.closing.cancelled());
        let mut draining = pin!(edge.draining.cancelled());
        let mut has_moved = false;
        let mut misunderstood = 0;
        let mut heard = Instant::now();
        let mut beat = heard + heartbeat;
        let mut desk = Desk::new(edge.clone());
        self.person.greet(&mut desk);
        let mut timer = pin!(sleep_until(beat));
        loop {
            if !desk.out.is_empty() {
                let writing = write_all::<P>(ws, self.codec, &mut desk.out);
                let written = tokio::select! {
                    biased;
                    written = writing => written,
                    () = &mut closed => Err(link.cause()),
                    () = &mut closing => Err(CloseCause::GoingDown),
                    () = sleep(silence) => Err(CloseCause::SlowReader),
                };
                if let Err(cause) = written {
                    return cause;
                }
            }
            let due = [
                Some(beat),
                Some(heard + silence),
                Some(self.expires),
                self.person.poll_deadline(),
            ]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(beat);
            if due < timer.deadline() || timer.is_elapsed() {
                timer.as_mut().reset(due);
            }
            let step = tokio::select! {
                biased;
                () = &mut closed => Step::Close(link.cause()),
                () = &mut closing => Step::Close(CloseCause::GoingDown),
                () = timer.as_mut() => Step::Time,
                () = &mut draining, if !has_moved => Step::Drain,
                Some(answered) = desk.waiting.next(), if !desk.waiting.is_empty() => Step::Answered(answered),
                Some(news) = self.queue.recv() => Step::News(news),
                frame = ws.next() => Step::Frame(frame),
            };
            match step {
                Step::Close(cause) => return cause,
                Step::Time => {
                    let now = Instant::now();
                    if now >= self.expires {
                        return CloseCause::TokenOver;
                    }
                    if now >= heard + silence {
                        return CloseCause::Silent;
                    }
                    if now >= beat {
                        beat = now + heartbeat;
                        let ping = ws.send(Message::Ping(axum::body::Bytes::new()));
                        if let Err(cause) =
                            unless_stuck(ping, closed.as_mut(), &link, silence).await
                        {
                            return cause;
                        }
                    }
                    self.person.handle_deadline(&mut desk, now);
                }
                Step::Drain => {
                    has_moved = true;
                    desk.out.push_back(P::moved(timing.move_ms));
                }
                Step::Answered(answered) => self.person.handle_answer(&mut desk, answered),
                Step::News(news) => {
                    self.person.handle_news(&mut desk, news);
                    for _ in 1..NEWS_PER_WRITE {
                        let Ok(news) = self.queue.try_recv() else {
                            break;
                        };
                        self.person.handle_news(&mut desk, news);
                    }
                }
                Step::Frame(Some(Ok(frame))) => {
                    heard = Instant::now();
                    match self.handle_frame(&mut desk, frame) {
                        Handled::Understood => misunderstood = 0,
                        Handled::Neutral => {}
                        Handled::Goodbye => return CloseCause::Gone,
                        Handled::Misunderstood(why) => {
                            misunderstood += 1;
                            metrics::counter!("cabrank_misunderstood_total", "role" => P::ROLE)
                                .increment(1);
                            desk.out.push_back(P::error(shorten(why)));
                            if misunderstood >= edge.config.limits.misunderstood_max {
                                let last = write_all::<P>(ws, self.codec, &mut desk.out);
                                let _ = unless_stuck(last, closed.as_mut(), &link, silence).await;
                                return CloseCause::Misunderstood;
                            }
                        }
                    }
                }
                Step::Frame(Some(Err(error))) => return cause_of(error),
                Step::Frame(None) => return CloseCause::Gone,
            }
        }
    }

    fn handle_frame(&mut self, desk: &mut Desk<P::Out>, frame: Message) -> Handled {
        let message = match (self.codec, frame) {
            (Codec::Json, Message::Text(text)) => P::read_json(text.as_str()),
            (Codec::Proto, Message::Binary(bytes)) => P::read_proto(&bytes),
            (Codec::Json, Message::Binary(_)) => Err(format!(
                "send JSON text frames, or ask for {PROTO_PROTOCOL}"
            )),
            (Codec::Proto, Message::Text(_)) => Err("send Protobuf binary frames".to_owned()),
            (_, Message::Ping(_) | Message::Pong(_)) => return Handled::Neutral,
            (_, Message::Close(_)) => return Handled::Goodbye,
        };
        match message.and_then(|message| self.person.handle_message(desk, message)) {
            Ok(()) => Handled::Understood,
            Err(why) => Handled::Misunderstood(why),
        }
    }
}

enum Handled {
    Understood,
    Neutral,
    Goodbye,
    Misunderstood(String),
}

async fn write_all<P: Person>(
    ws: &mut WebSocket,
    codec: Codec,
    out: &mut VecDeque<P::Out>,
) -> Result<(), CloseCause> {
    while let Some(message) = out.pop_front() {
        ws.feed(P::write(codec, &message))
            .await
            .map_err(|_| CloseCause::Gone)?;
    }
    ws.flush().await.map_err(|_| CloseCause::Gone)
}

/// A write that gives up when the socket shall close, or when it is stuck for as long as a silent socket lives.
async fn unless_stuck<News, E>(
    write: impl Future<Output = Result<(), E>>,
    closed: Pin<&mut impl Future<Output = ()>>,
    link: &Link<News>,
    silence: Duration,
) -> Result<(), CloseCause> {
    tokio::select! {
        biased;
        written = write => written.map_err(|_| CloseCause::Gone),
        () = closed => Err(link.cause()),
        () = sleep(silence) => Err(CloseCause::SlowReader),
    }
}

fn cause_of(error: axum::Error) -> CloseCause {
    let inner = error.into_inner();
    match inner.downcast_ref::<WsError>() {
        Some(WsError::Capacity(_)) => {
            refused("frame_size");
            CloseCause::TooLarge
        }
        Some(WsError::Utf8(_)) => CloseCause::Misunderstood,
        Some(WsError::Protocol(ProtocolError::ResetWithoutClosingHandshake)) => CloseCause::Gone,
        Some(WsError::Protocol(_)) => CloseCause::Protocol,
        _ => CloseCause::Gone,
    }
}

fn shorten(mut why: String) -> String {
    if let Some((end, _)) = why.char_indices().nth(ERROR_CHARS_MAX) {
        why.truncate(end);
    }
    why
}
