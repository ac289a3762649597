//! One driver's socket in a generator: moves, pings when told to, answers offers. Non-blocking; the thread owns the poll.
//!
//! The WebSocket is tungstenite's own, over a non-blocking stream. Commands go one at a time in order, as from a real
//! phone: the next one leaves when the outcome of the last is known. A lost socket is opened again after a spread pause,
//! resumes its session, and repeats what has no outcome. Towards a Redis it only pings, and counts replies.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;

use cabrank_events::wire::{FromDriver, Ping, ToDriver, WireResult};
use cabrank_events::{ClassSet, DriverId, HoldId, SessionId, VehicleClass, proto};
use cabrank_geo::Point;
use mio::net::TcpStream;
use mio::{Interest, Registry, Token};
use rand::Rng;
use rand::rngs::SmallRng;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::handshake::{
    HandshakeError, MidHandshake, client::ClientHandshake,
};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{self, Message, WebSocket, client::client_with_config};

use super::clock::{now_ns, wall_ms};
use super::place::{Places, Way};
use super::plan::{Frames, Plan, Target};
use super::redis;
use super::tally::{Kind, Tally};
use crate::client::{Mint, Role};

/// A command without an outcome is repeated after this.
const REPEAT_NS: u64 = 5_000_000_000;
/// ... and after the outcome `unknown` after this.
const REPEAT_UNKNOWN_NS: u64 = 300_000_000;
/// A lost socket is opened again after this, spread by half.
const RECONNECT_NS: u64 = 500_000_000;
/// What a server may ask for at most.
const AFTER_MS_MAX: u64 = 60_000;
/// Connecting, upgrade and session together.
const OPEN_WITHIN_NS: u64 = 15_000_000_000;
/// Writes that wait for a full socket; further ones are not sent.
const WAITING_WRITES_MAX: usize = 256;
/// Commands of one phone that wait.
const COMMANDS_MAX: usize = 64;

/// What a phone says about a ride.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Say {
    Received,
    Accept,
    Decline,
    Arrived,
    Started,
    Completed,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum What {
    Online,
    Say(Say, HoldId),
}

#[derive(Debug)]
struct Command {
    id: String,
    what: What,
    due: u64,
    repeat_at: Option<u64>,
}

/// What a driver has to do with an offer or a ride.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Duty {
    hold: HoldId,
    /// Said at that time; None while an outcome is awaited, or for an offer that is left unanswered.
    next: Option<(u64, Say)>,
}

enum Link {
    Down { again_at: u64 },
    Connecting(TcpStream),
    Shaking(Box<MidHandshake<ClientHandshake<TcpStream>>>),
    Open(Box<WebSocket<TcpStream>>),
    Redis(Box<RedisLink>),
}

/// A connection to a Redis: what is to be written, and what was read of a reply.
struct RedisLink {
    stream: TcpStream,
    out: Vec<u8>,
    written: usize,
    read: Vec<u8>,
    /// Replies that do not yet make up a write's pings.
    replied: u64,
}

impl RedisLink {
    fn new(stream: TcpStream) -> RedisLink {
        RedisLink {
            stream,
            out: Vec::new(),
            written: 0,
            read: Vec::new(),
            replied: 0,
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        while self.written < self.out.len() {
            match self.stream.write(&self.out[self.written..]) {
                Ok(n) => self.written += n,
                Err(why) if why.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(why) => return Err(why),
            }
        }
        self.out.clear();
        self.written = 0;
        Ok(())
    }

    /// Counts the replies that have come; errors of Redis end it.
    fn hear(&mut self) -> Result<(), String> {
        let mut chunk = [0u8; 4 * 1024];
        loop {
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err("the connection ended".into()),
                Ok(n) => self.read.extend_from_slice(&chunk[..n]),
                Err(why) if why.kind() == io::ErrorKind::WouldBlock => break,
                Err(why) => return Err(why.to_string()),
            }
        }
        let mut taken = 0;
        while let Some(reply) = redis::take_reply(&self.read[taken..])? {
            if reply.is_error {
                let text = &self.read[taken..taken + reply.length];
                return Err(String::from_utf8_lossy(text).trim().to_owned());
            }
            taken += reply.length;
            self.replied += 1;
        }
        self.read.drain(..taken);
        Ok(())
    }
}

/// Where a phone stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// On the way to its session.
    Opening,
    /// Its session is open.
    Ready,
    /// It has hung up for good.
    Gone,
}

/// What all phones of a thread use.
pub struct Desk<'a> {
    /// The order.
    pub plan: &'a Plan,
    /// Tokens.
    pub mint: &'a Mint,
    /// Readiness.
    pub registry: &'a Registry,
    /// Counts.
    pub tally: &'a mut Tally,
    /// Chance.
    pub rng: &'a mut SmallRng,
    /// Where people are.
    pub places: &'a Places,
    /// No new offers are left unanswered any more.
    pub is_draining: bool,
}

/// One driver.
pub struct Cab {
    /// Its name; fixed for the run.
    driver: DriverId,
    address: SocketAddr,
    host: Arc<str>,
    token: Token,
    /// Comes online, reports once and hangs up.
    is_visitor: bool,
    link: Link,
    way: Way,
    seq: u32,
    last_ping_ms: i64,
    /// Server's time minus ours, ms.
    ahead_ms: i64,
    /// The server goes down and asks not to come back earlier than this after the socket is lost.
    after_ms: u64,
    session: Option<SessionId>,
    is_online: bool,
    opening_since: u64,
    commands: VecDeque<Command>,
    said: u32,
    duty: Option<Duty>,
    /// Writes the socket has not taken: (due, pings).
    waiting: VecDeque<(u64, u64)>,
    /// Pings a second the server takes from one driver; 0 = no limit.
    pub pings_per_second: u32,
    gone: bool,
}

impl Cab {
    /// A driver who connects at the next [`Cab::handle_time`].
    pub fn new(
        driver: DriverId,
        address: SocketAddr,
        host: Arc<str>,
        token: Token,
        way: Way,
        is_visitor: bool,
    ) -> Cab {
        Cab {
            driver,
            address,
            host,
            token,
            is_visitor,
            link: Link::Down { again_at: 0 },
            way,
            seq: 0,
            last_ping_ms: 0,
            ahead_ms: 0,
            after_ms: 0,
            session: None,
            is_online: false,
            opening_since: 0,
            commands: VecDeque::new(),
            said: 0,
            duty: None,
            waiting: VecDeque::new(),
            pings_per_second: 0,
            gone: false,
        }
    }

    /// Where the phone stands.
    pub fn standing(&self) -> Standing {
        match (self.gone, self.is_online) {
            (true, _) => Standing::Gone,
            (false, true) => Standing::Ready,
            (false, false) => Standing::Opening,
        }
    }

    /// Has it a ride, an offer, a message without an outcome, or something its socket has not taken?
    pub fn is_busy(&self) -> bool {
        self.duty.is_some() || !self.commands.is_empty() || !self.waiting.is_empty()
    }

    /// Does the socket take more?
    pub fn is_writable(&self) -> bool {
        self.is_online && self.waiting.is_empty()
    }

    /// When [`Cab::handle_time`] has something to do.
    pub fn poll_time(&self) -> Option<u64> {
        if self.gone {
            return None;
        }
        if let Link::Down { again_at } = self.link {
            return Some(again_at);
        }
        let opening = (!self.is_online).then(|| self.opening_since + OPEN_WITHIN_NS);
        let repeat = self.commands.front().and_then(|command| command.repeat_at);
        let next = self.duty.and_then(|duty| duty.next).map(|(at, _)| at);
        [opening, repeat, next].into_iter().flatten().min()
    }

    /// It is (at least) that time.
    pub fn handle_time(&mut self, now: u64, desk: &mut Desk<'_>) {
        if self.gone {
            return;
        }
        if let Link::Down { again_at } = self.link {
            if again_at <= now {
                self.connect(now, desk);
            }
            return;
        }
        if !self.is_online && now >= self.opening_since + OPEN_WITHIN_NS {
            return self.lose(now, desk, "no session in time");
        }
        if let Some(Duty {
            hold,
            next: Some((at, say)),
        }) = self.duty
            && at <= now
        {
            self.duty = Some(Duty { hold, next: None });
            self.command(What::Say(say, hold), at, desk);
            if say == Say::Decline {
                self.duty = None;
            }
        }
        if self
            .commands
            .front()
            .and_then(|c| c.repeat_at)
            .is_some_and(|at| at <= now)
        {
            self.send_front(now, desk);
        }
    }

    /// The run is over: an offer that was being ignored is declined.
    pub fn handle_draining(&mut self, now: u64, desk: &mut Desk<'_>) {
        if let Some(Duty { hold, next: None }) = self.duty
            && self.commands.is_empty()
        {
            self.duty = None;
            self.command(What::Say(Say::Decline, hold), now, desk);
        }
    }

    /// The socket is ready for something.
    pub fn handle_ready(&mut self, now: u64, desk: &mut Desk<'_>) {
        self.go_on_opening(now, desk);
        self.flush(now, desk);
        self.read(desk);
    }

    /// Says goodbye. What was written is still delivered.
    pub fn hang_up(&mut self) {
        self.gone = true;
        if let Link::Open(socket) = &mut self.link {
            // A courtesy: nothing depends on the close frame's arrival.
            let _ = socket.close(None);
            let _ = socket.flush();
        }
    }

    /// Sends `frames` frames with `per_frame` pings each, which were due at `due`, in one write.
    pub fn ping(&mut self, due: u64, desk: &mut Desk<'_>) {
        let (frames, per_frame) = (desk.plan.frames_per_write, desk.plan.pings_per_frame);
        let pings = u64::from(frames * per_frame);
        desk.tally.offered(Kind::Ping, due, pings);
        if !self.is_online || self.waiting.len() >= WAITING_WRITES_MAX {
            desk.tally.pings_unsent += pings;
            return;
        }
        let now_ms = wall_ms() + self.ahead_ms;
        let since = (now_ms - self.last_ping_ms).clamp(0, 10_000);
        let total = frames * per_frame;
        if desk.plan.target == Target::Redis {
            for n in 1..=frames {
                let ping = self.position(now_ms, since, n, total, desk);
                if let (Link::Redis(link), Ok(at)) =
                    (&mut self.link, Point::new(ping.lat, ping.lon))
                {
                    redis::geo_add(&mut link.out, self.driver.as_str(), at);
                }
            }
            self.last_ping_ms = now_ms;
            self.waiting.push_back((due, pings));
            return self.flush(now_ns(), desk);
        }
        for frame in 0..frames {
            let message = if per_frame == 1 {
                let ping = self.position(now_ms, since, frame + 1, total, desk);
                FromDriver::Ping(ping)
            } else {
                let first = frame * per_frame;
                let pings =
                    (1..=per_frame).map(|n| self.position(now_ms, since, first + n, total, desk));
                FromDriver::Pings {
                    pings: pings.collect(),
                }
            };
            if !self.write(&message, desk) {
                desk.tally.pings_unsent += pings;
                return;
            }
        }
        self.last_ping_ms = now_ms;
        self.waiting.push_back((due, pings));
        self.flush(now_ns(), desk);
    }

    /// Towards a Redis: puts drivers without a connection of their own on the map.
    pub fn add_all(&mut self, drivers: &[(DriverId, Point)], desk: &mut Desk<'_>) {
        if let Link::Redis(link) = &mut self.link {
            for (driver, at) in drivers {
                redis::geo_add(&mut link.out, driver.as_str(), *at);
            }
            self.waiting.push_back((0, drivers.len() as u64));
            self.flush(now_ns(), desk);
        }
    }

    /// Reports exactly this place, now.
    pub fn ping_at(&mut self, place: Point, desk: &mut Desk<'_>) -> bool {
        self.seq += 1;
        let ping = ping_of(place, wall_ms() + self.ahead_ms, self.seq);
        let is_written = self.is_online && self.write(&FromDriver::Ping(ping), desk);
        if is_written {
            desk.tally.pings_sent += 1;
            self.flush(now_ns(), desk);
        }
        is_written
    }

    /// The n-th of `total` positions since the last write, `since` ms ago.
    fn position(
        &mut self,
        now_ms: i64,
        since: i64,
        n: u32,
        total: u32,
        desk: &mut Desk<'_>,
    ) -> Ping {
        let at_ms = now_ms - since * i64::from(total - n) / i64::from(total);
        self.seq = self.seq.wrapping_add(1);
        ping_of(self.way.at(at_ms, desk.places, desk.rng), at_ms, self.seq)
    }

    /// Hands a message to the socket's buffer. False: the buffer is full or the socket is gone.
    fn write(&mut self, message: &FromDriver, desk: &mut Desk<'_>) -> bool {
        let Link::Open(socket) = &mut self.link else {
            return false;
        };
        let frame = match desk.plan.frames {
            Frames::Json => match serde_json::to_string(message) {
                Ok(text) => Message::text(text),
                Err(why) => {
                    desk.tally
                        .complain(|| format!("a message cannot be written: {why}"));
                    return false;
                }
            },
            Frames::Protobuf => Message::Binary(proto::encode_from_driver(message)),
        };
        match socket.write(frame) {
            Ok(()) => true,
            Err(tungstenite::Error::Io(why)) if why.kind() == io::ErrorKind::WouldBlock => true,
            Err(tungstenite::Error::WriteBufferFull(_)) => false,
            Err(why) => {
                self.lose(now_ns(), desk, &why.to_string());
                false
            }
        }
    }

    fn flush(&mut self, now: u64, desk: &mut Desk<'_>) {
        if let Link::Redis(link) = &mut self.link
            && let Err(why) = link.flush()
        {
            return self.lose(now, desk, &why.to_string());
        }
        let Link::Open(socket) = &mut self.link else {
            return;
        };
        match socket.flush() {
            Ok(()) => {
                if !self.waiting.is_empty() {
                    let done = now_ns();
                    for (due, pings) in self.waiting.drain(..) {
                        desk.tally.done(Kind::Ping, due, done, pings);
                        desk.tally.pings_sent += pings;
                    }
                }
            }
            Err(tungstenite::Error::Io(why)) if why.kind() == io::ErrorKind::WouldBlock => {}
            Err(why) => self.lose(now, desk, &why.to_string()),
        }
    }

    fn connect(&mut self, now: u64, desk: &mut Desk<'_>) {
        self.opening_since = now;
        let opened = TcpStream::connect(self.address).and_then(|mut stream| {
            let interest = Interest::READABLE | Interest::WRITABLE;
            desk.registry.register(&mut stream, self.token, interest)?;
            Ok(stream)
        });
        match opened {
            Ok(stream) => self.link = Link::Connecting(stream),
            Err(why) => self.lose(now, desk, &why.to_string()),
        }
    }

    fn go_on_opening(&mut self, now: u64, desk: &mut Desk<'_>) {
        let link = std::mem::replace(&mut self.link, Link::Down { again_at: now });
        let shaken = match link {
            Link::Connecting(stream) => {
                if let Err(why) | Ok(Some(why)) = stream.take_error() {
                    return self.lose(now, desk, &why.to_string());
                }
                if stream.peer_addr().is_err() {
                    self.link = Link::Connecting(stream);
                    return;
                }
                if desk.plan.target == Target::Redis {
                    if let Err(why) = stream.set_nodelay(true) {
                        return self.lose(now, desk, &why.to_string());
                    }
                    self.link = Link::Redis(Box::new(RedisLink::new(stream)));
                    self.is_online = true;
                    return;
                }
                match self.begin_handshake(stream, desk) {
                    Ok(shaken) => shaken,
                    Err(why) => return self.lose(now, desk, &why),
                }
            }
            Link::Shaking(mid) => mid.handshake(),
            other => {
                self.link = other;
                return;
            }
        };
        match shaken {
            Ok((socket, _)) => {
                self.link = Link::Open(Box::new(socket));
                if desk.plan.target == Target::Raw {
                    self.is_online = true;
                }
            }
            Err(HandshakeError::Interrupted(mid)) => self.link = Link::Shaking(Box::new(mid)),
            Err(HandshakeError::Failure(tungstenite::Error::Http(response))) => {
                let status = response.status();
                desk.tally
                    .refuse(Kind::Command, &format!("socket refused with {status}"));
                self.lose(now, desk, "refused");
            }
            Err(HandshakeError::Failure(why)) => self.lose(now, desk, &why.to_string()),
        }
    }

    #[expect(clippy::type_complexity, reason = "the handshake's own result")]
    fn begin_handshake(
        &mut self,
        stream: TcpStream,
        desk: &Desk<'_>,
    ) -> Result<
        Result<
            (
                WebSocket<TcpStream>,
                tungstenite::handshake::client::Response,
            ),
            HandshakeError<ClientHandshake<TcpStream>>,
        >,
        String,
    > {
        stream.set_nodelay(true).map_err(|why| why.to_string())?;
        let url = format!("ws://{}/v1/driver", self.host);
        let mut request = url.into_client_request().map_err(|why| why.to_string())?;
        let token = (desk.mint)(Role::Driver, self.driver.as_str());
        let bearer = format!("Bearer {token}")
            .parse()
            .map_err(|_| "bad token".to_owned())?;
        request.headers_mut().insert("Authorization", bearer);
        if desk.plan.frames == Frames::Protobuf {
            let protocol = "cabrank.v1.proto"
                .parse()
                .map_err(|_| "bad protocol".to_owned())?;
            request
                .headers_mut()
                .insert("Sec-WebSocket-Protocol", protocol);
        }
        // Small to read, since little comes; large enough to hold what one write carries.
        let mut config = WebSocketConfig::default();
        config.read_buffer_size = 2 << 10;
        config.write_buffer_size = 256 << 10;
        config.max_write_buffer_size = 1 << 20;
        Ok(client_with_config(request, stream, Some(config)))
    }

    fn lose(&mut self, now: u64, desk: &mut Desk<'_>, why: &str) {
        tracing::debug!(driver = %self.driver, why, "socket lost");
        if self.gone {
            return;
        }
        if self.is_online {
            desk.tally.sockets_lost += 1;
        }
        desk.tally.pings_unsent += self.waiting.drain(..).map(|(_, pings)| pings).sum::<u64>();
        self.is_online = false;
        // What the server asked for, spread by as much again: a fleet must not come back in one breath.
        let asked = std::mem::take(&mut self.after_ms) * 1_000_000;
        let spread = asked.max(RECONNECT_NS);
        let pause = asked.max(RECONNECT_NS / 2) + desk.rng.random_range(0..spread);
        self.link = Link::Down {
            again_at: now + pause,
        };
        for command in &mut self.commands {
            command.repeat_at = None;
        }
        self.commands.retain(|command| command.what != What::Online);
    }

    fn read(&mut self, desk: &mut Desk<'_>) {
        if let Link::Redis(link) = &mut self.link {
            if let Err(why) = link.hear() {
                desk.tally.complain(|| format!("Redis: {why}"));
                return self.lose(now_ns(), desk, &why);
            }
            let done = now_ns();
            while let Some((due, pings)) = self.waiting.front().copied()
                && link.replied >= pings
            {
                link.replied -= pings;
                self.waiting.pop_front();
                desk.tally.done(Kind::Ping, due, done, pings);
                desk.tally.pings_sent += pings;
            }
            return;
        }
        loop {
            let Link::Open(socket) = &mut self.link else {
                return;
            };
            let message = match socket.read() {
                Ok(Message::Text(text)) => {
                    serde_json::from_str::<ToDriver>(&text).map_err(|why| why.to_string())
                }
                Ok(Message::Binary(bytes)) => {
                    proto::decode_to_driver(&bytes).map_err(|why| why.to_string())
                }
                Ok(Message::Close(frame)) => {
                    let why = frame.map_or(String::new(), |f| format!("{} {}", f.code, f.reason));
                    desk.tally
                        .refuse(Kind::Command, &format!("socket closed: {why}"));
                    return self.lose(now_ns(), desk, &why);
                }
                Ok(_) => continue,
                Err(tungstenite::Error::Io(why)) if why.kind() == io::ErrorKind::WouldBlock => {
                    return;
                }
                Err(why) => return self.lose(now_ns(), desk, &why.to_string()),
            };
            match message {
                Ok(message) => self.handle_message(message, desk),
                Err(why) => desk
                    .tally
                    .complain(|| format!("a message of the server does not parse: {why}")),
            }
        }
    }

    fn handle_message(&mut self, message: ToDriver, desk: &mut Desk<'_>) {
        let now = now_ns();
        match message {
            ToDriver::Welcome {
                time,
                pings_per_second,
                ..
            } => {
                self.ahead_ms = time.0 - wall_ms();
                self.pings_per_second = pings_per_second;
                self.said += 1;
                let id = format!("{}-{}", desk.plan.run, self.said);
                let online = Command {
                    id,
                    what: What::Online,
                    due: now,
                    repeat_at: None,
                };
                self.commands.push_front(online);
                self.send_front(now, desk);
            }
            ToDriver::Outcome(outcome) => {
                let Some(front) = self.commands.front_mut().filter(|c| c.id == outcome.id) else {
                    return;
                };
                if outcome.result == WireResult::Unknown {
                    desk.tally.refuse(Kind::Command, "unknown, repeated");
                    front.repeat_at = Some(now + REPEAT_UNKNOWN_NS);
                    return;
                }
                let command = self.commands.pop_front().expect("looked at above");
                let is_done = outcome.result != WireResult::Refused;
                if let What::Say(..) = command.what {
                    desk.tally.done(Kind::Command, command.due, now, 1);
                }
                if !is_done {
                    let why = outcome.why.and_then(|why| serde_json::to_value(why).ok());
                    let why = why
                        .as_ref()
                        .and_then(|why| why.as_str())
                        .unwrap_or("refused");
                    desk.tally.refuse(Kind::Command, why);
                }
                self.handle_outcome(command.what, is_done, outcome.session, now, desk);
                self.send_front(now, desk);
            }
            ToDriver::Offer { ride, attempt, .. } => {
                if let Some(seen) = desk.tally.ride(ride) {
                    seen.offered.get_or_insert(now);
                }
                let hold = HoldId { ride, attempt };
                if self.duty.is_some_and(|duty| duty.hold == hold) {
                    return; // told again on a new socket
                }
                self.duty = Some(Duty { hold, next: None });
                self.command(What::Say(Say::Received, hold), now, desk);
            }
            ToDriver::Withdrawn { ride, attempt } | ToDriver::Released { ride, attempt, .. } => {
                self.forget(HoldId { ride, attempt });
            }
            ToDriver::PingRefused { reason, .. } => {
                tracing::debug!(driver = %self.driver, ?reason, "ping refused");
            }
            // What is advice is not followed.
            ToDriver::Ride(_) | ToDriver::Queue(_) | ToDriver::HeadTo(_) => {}
            ToDriver::Move { after_ms } => self.after_ms = after_ms.min(AFTER_MS_MAX),
            ToDriver::Error { message } => {
                desk.tally
                    .complain(|| format!("the server does not understand: {message}"));
            }
        }
    }

    fn forget(&mut self, hold: HoldId) {
        if self.duty.is_some_and(|duty| duty.hold == hold) {
            self.duty = None;
        }
        // What has been sent still gets its outcome; what has not is pointless now.
        let mut n = 0;
        self.commands.retain(|command| {
            n += 1;
            n == 1 || !matches!(command.what, What::Say(_, of) if of == hold)
        });
    }

    fn handle_outcome(
        &mut self,
        what: What,
        is_done: bool,
        session: Option<SessionId>,
        now: u64,
        desk: &mut Desk<'_>,
    ) {
        let (say, hold) = match what {
            What::Online if is_done => {
                self.session = session.or(self.session);
                self.is_online = true;
                let now_ms = wall_ms() + self.ahead_ms;
                let place = self.way.at(now_ms, desk.places, desk.rng);
                self.ping_at(place, desk);
                if self.is_visitor {
                    self.hang_up();
                }
                return;
            }
            What::Online => {
                if self.session.take().is_none() {
                    desk.tally
                        .complain(|| "a driver may not go online".to_owned());
                }
                return self.lose(now, desk, "no session");
            }
            What::Say(say, hold) => (say, hold),
        };
        if !is_done {
            return self.forget(hold);
        }
        let ours = self.duty.is_some_and(|duty| duty.hold == hold);
        let (think, step) = (desk.plan.think_ms, desk.plan.step_ms);
        let next = match say {
            Say::Received if ours => {
                let chance: f64 = desk.rng.random_range(0.0..1.0);
                let shares = desk.plan.shares;
                let answers = chance >= shares.ignore || desk.is_draining;
                let declines = chance < shares.ignore + shares.decline;
                answers.then_some((think, if declines { Say::Decline } else { Say::Accept }))
            }
            Say::Accept => {
                if let Some(seen) = desk.tally.ride(hold.ride) {
                    seen.assigned = true;
                }
                Some((step, Say::Arrived))
            }
            Say::Arrived => Some((step, Say::Started)),
            Say::Started => Some((step, Say::Completed)),
            Say::Completed => {
                desk.tally.completed += 1;
                if let Some(seen) = desk.tally.ride(hold.ride) {
                    seen.completed = true;
                }
                if ours {
                    self.duty = None;
                }
                None
            }
            Say::Received | Say::Decline => None,
        };
        if let (true, Some((after_ms, say))) = (ours, next) {
            let at = now + after_ms * 1_000_000;
            self.duty = Some(Duty {
                hold,
                next: Some((at, say)),
            });
            if after_ms == 0 {
                self.handle_time(now, desk);
            }
        }
    }

    fn command(&mut self, what: What, due: u64, desk: &mut Desk<'_>) {
        if self.commands.len() >= COMMANDS_MAX {
            desk.tally.overflowed += 1;
            return;
        }
        if let What::Say(..) = what {
            desk.tally.offered(Kind::Command, due, 1);
        }
        self.said += 1;
        let id = format!("{}-{}", desk.plan.run, self.said);
        self.commands.push_back(Command {
            id,
            what,
            due,
            repeat_at: None,
        });
        if self.commands.len() == 1 {
            self.send_front(due, desk);
        }
    }

    /// Sends the first command, again or for the first time; nothing if there is none or it is under way.
    fn send_front(&mut self, now: u64, desk: &mut Desk<'_>) {
        let session = self.session;
        let is_visitor = self.is_visitor;
        let Some(front) = self.commands.front_mut() else {
            return;
        };
        let is_under_way = front.repeat_at.is_some_and(|at| at > now);
        if is_under_way || !(self.is_online || front.what == What::Online) {
            return;
        }
        front.repeat_at = Some(now + REPEAT_NS);
        let id = front.id.clone();
        let message = match front.what {
            What::Online => FromDriver::Online {
                id,
                session,
                classes: classes(is_visitor),
            },
            What::Say(say, HoldId { ride, attempt }) => match say {
                Say::Received => FromDriver::Received { id, ride, attempt },
                Say::Accept => FromDriver::Accept { id, ride, attempt },
                Say::Decline => FromDriver::Decline { id, ride, attempt },
                Say::Arrived => FromDriver::Arrived { id, ride, attempt },
                Say::Started => FromDriver::Started { id, ride, attempt },
                Say::Completed => FromDriver::Completed { id, ride, attempt },
            },
        };
        if self.write(&message, desk) {
            self.flush(now, desk);
        }
    }
}

/// Drivers without a socket are there to be found, not to be asked: rides want another class.
fn classes(is_visitor: bool) -> ClassSet {
    if is_visitor {
        ClassSet::of(&[VehicleClass::Wheelchair]).unwrap_or_default()
    } else {
        ClassSet::default()
    }
}

fn ping_of(place: Point, time: i64, seq: u32) -> Ping {
    Ping {
        lat: place.lat_deg(),
        lon: place.lon_deg(),
        time: Some(time),
        seq,
        accuracy: None,
    }
}
