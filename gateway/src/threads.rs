//! Which thread moves the bytes of which socket, and when does it look?
//!
//! A few threads share all WebSockets. Each waits for its sockets in one place (epoll), reads each ready one once into a
//! buffer that all share, and writes what came of it. Wake-ups are what sockets cost, so a thread looks at most every
//! `wait`: what arrives meanwhile is read together. Messages to phones do not wait: they wake the thread.
//!
//! Holds: whoever wakes a socket is heard, however it races with the thread going to sleep ([`Mailbox`]); a socket that
//! sends without pause takes turns with the others; a panic in one socket's handlers closes that socket, loudly.
//! Bounds: a socket is in the mailbox at most twice (as it arrives, and woken), in the timers once and for each earlier
//! deadline since; what a socket keeps is its own matter ([`Client`]).
//! Bytes pass in one place each way, a [`Wire`], with or without TLS.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::{self, ErrorKind, Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Wake, Waker};
use std::thread::{self, JoinHandle, Thread};
use std::time::Duration;

use bytes::Bytes;
use cabrank_matcher::heart::{Heart, Hearts, Wedged};
use mio::event::Event;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use rustls::ServerConnection;
use tokio::runtime::Handle;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use crate::frames::Flushed;
use crate::listener::Place;
use crate::tls::Wire;

/// What a thread reads of one socket at once, in bytes.
const READ_BYTES: usize = 64 * 1_024;
/// Sockets taken from one look.
const EVENTS_PER_LOOK: usize = 1_024;
/// ... and so many between two looks at what sockets are woken for.
const EVENTS_PER_WAKES: usize = 64;
/// How long a thread rests when its sockets cannot be waited for.
const LOOK_FAILED_PAUSE: Duration = Duration::from_millis(100);
/// Names the mailbox among the sockets.
const MAILBOX: Token = Token(usize::MAX);

/// One socket as its thread sees it. Every call is followed by [`Client::flush`].
pub trait Client: Send {
    /// It is on a thread now; `waker` calls for [`Client::handle_wake`].
    fn begin(&mut self, now: Instant, waker: Waker);
    /// Bytes have arrived; they may be changed. True when a wake is wanted.
    fn handle_bytes(&mut self, now: Instant, bytes: &mut [u8]) -> bool;
    /// No more bytes will come, or the connection is broken.
    fn handle_end(&mut self);
    /// Somebody has woken it. True when there is more to do once what it says now is written.
    fn handle_wake(&mut self, now: Instant, cx: &mut Context<'_>) -> bool;
    /// The deadline is here. True when a wake is wanted.
    fn handle_time(&mut self, now: Instant) -> bool;
    /// Writes what waits to be written.
    fn flush(&mut self, now: Instant, to: &mut dyn Write) -> Flushed;
    /// When [`Client::handle_time`] is wanted.
    fn poll_deadline(&self) -> Option<Instant>;
    /// Shall the connection be cut?
    fn is_over(&self) -> bool;
}

/// A socket on its way to a thread.
pub struct Arrived {
    pub tcp: std::net::TcpStream,
    /// What is between it and us.
    pub tls: Option<ServerConnection>,
    /// What was read of it already.
    pub first: Bytes,
    pub client: Box<dyn Client>,
    /// Its places among what is bounded, given back when it is cut.
    pub places: (OwnedSemaphorePermit, Place),
}

/// Names a socket of a thread; the number tells it from earlier ones in its slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    slot: u32,
    number: u32,
}

/// What others tell a thread.
#[derive(Default)]
struct Post {
    arrived: Vec<Arrived>,
    woken: Vec<Key>,
    /// Every socket is woken.
    all_woken: bool,
    /// The thread ends, or has ended. It stays so: nothing is taken any more.
    is_stopped: bool,
}

impl Post {
    fn is_empty(&self) -> bool {
        self.arrived.is_empty() && self.woken.is_empty() && !self.all_woken && !self.is_stopped
    }

    fn take(&mut self) -> Post {
        Post {
            arrived: std::mem::take(&mut self.arrived),
            woken: std::mem::take(&mut self.woken),
            all_woken: std::mem::take(&mut self.all_woken),
            is_stopped: self.is_stopped,
        }
    }
}

/// Where a thread is told of things, and how it is woken for them.
struct Mailbox {
    post: Mutex<Post>,
    /// The thread waits, or is about to wait, for its sockets: only `poll_waker` reaches it there.
    is_polling: AtomicBool,
    poll_waker: mio::Waker,
    thread: OnceLock<Thread>,
}

impl Mailbox {
    fn lock(&self) -> MutexGuard<'_, Post> {
        // A panic while holding it leaves plain lists behind, which are as good as before.
        self.post.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, put: impl FnOnce(&mut Post)) {
        put(&mut self.lock());
        // Relaxed: the lock orders it. The thread sets it and then looks at the post before it polls; it clears it and
        // then takes the post. So whoever put something in too late for that look reads `true`, and whoever put
        // something in too late to be taken after the poll reads `false`.
        if self.is_polling.load(Ordering::Relaxed) {
            // It fails only when the system has no more room for events, which one per thread cannot fill.
            let _ = self.poll_waker.wake();
        } else if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }
}

/// Wakes one socket.
struct SocketWaker {
    mailbox: Arc<Mailbox>,
    key: Key,
    /// It is in the post already.
    is_posted: AtomicBool,
}

impl Wake for SocketWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // Release, so that what was done before the wake is seen by the thread, whose clearing acquires it: also when
        // the key was in the post already.
        if !self.is_posted.swap(true, Ordering::AcqRel) {
            self.mailbox.tell(|post| post.woken.push(self.key));
        }
    }
}

/// The threads of a gateway.
pub struct Threads {
    mailboxes: Vec<Arc<Mailbox>>,
    joins: Mutex<Vec<JoinHandle<()>>>,
    turn: AtomicUsize,
    hearts: Hearts,
}

impl Threads {
    /// Starts `count` threads that look at their sockets at most every `wait`; handlers run inside `runtime`.
    /// Each has a heart, which must beat every `patience`.
    pub fn start(
        count: usize,
        wait: Duration,
        runtime: &Handle,
        patience: Duration,
    ) -> io::Result<Self> {
        let mut threads = Self {
            mailboxes: Vec::new(),
            joins: Mutex::default(),
            turn: AtomicUsize::new(0),
            hearts: Hearts::default(),
        };
        for number in 0..count {
            let poll = Poll::new()?;
            let mailbox = Arc::new(Mailbox {
                post: Mutex::default(),
                is_polling: AtomicBool::new(false),
                poll_waker: mio::Waker::new(poll.registry(), MAILBOX)?,
                thread: OnceLock::new(),
            });
            threads.mailboxes.push(mailbox.clone());
            let runtime = runtime.clone();
            let name = format!("sockets-{number}");
            let heart = threads.hearts.add(&name, patience);
            let join = thread::Builder::new().name(name).spawn(move || {
                let _entered = runtime.enter();
                let mut poll = poll;
                // Handlers' panics do not come so far. Should the loop itself panic, its sockets are cut as it unwinds,
                // and it begins anew: unwind safe, because nothing of it is kept but the empty poll.
                while catch_unwind(AssertUnwindSafe(|| {
                    SocketThread::new(mailbox.clone(), &mut poll, wait, &heart).run();
                }))
                .is_err()
                {
                    tracing::error!("a thread of sockets panicked: all of them were cut");
                }
            })?;
            let joins = threads.joins.get_mut();
            joins.unwrap_or_else(PoisonError::into_inner).push(join);
        }
        Ok(threads)
    }

    /// Gives a socket to a thread; each in turn. After [`Threads::stop`] it is cut.
    pub fn adopt(&self, arrived: Arrived) {
        // Relaxed: only the numbers matter.
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) % self.mailboxes.len();
        let mut arrived = Some(arrived);
        self.mailboxes[turn].tell(|post| {
            if !post.is_stopped {
                post.arrived.extend(arrived.take());
            }
        });
    }

    /// A thread that does not go round any more.
    pub fn wedged(&self) -> Option<Wedged> {
        self.hearts.wedged()
    }

    /// Wakes every socket.
    pub fn wake_all(&self) {
        for mailbox in &self.mailboxes {
            mailbox.tell(|post| post.all_woken = true);
        }
    }

    /// Ends the threads; sockets that are left are cut off.
    pub fn stop(&self) {
        for mailbox in &self.mailboxes {
            mailbox.tell(|post| post.is_stopped = true);
        }
    }

    /// Waits for the end of threads that were told to stop.
    pub fn join(&self) {
        let joins = std::mem::take(&mut *self.joins.lock().unwrap_or_else(PoisonError::into_inner));
        for join in joins {
            if join.join().is_err() {
                tracing::error!("a thread of sockets had panicked");
            }
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.stop();
    }
}

/// One socket of a thread.
struct Conn {
    number: u32,
    wire: Wire,
    client: Box<dyn Client>,
    waker: Arc<SocketWaker>,
    /// A wake is not handled yet.
    is_woken: bool,
    /// There may be bytes to read.
    is_readable: bool,
    /// The client has said its last byte: read until that is reached.
    is_ending: bool,
    /// The earliest of its timers.
    due: Option<Instant>,
    _places: (OwnedSemaphorePermit, Place),
}

/// What a turn of a socket came to.
enum Turned {
    /// It waits for something to happen.
    Waits,
    /// There is more to read: it takes another turn after the others.
    Again,
    /// It is to be cut.
    Over,
}

impl Conn {
    /// Writes, does what it was woken for, and reads once. While it cannot write it does not read.
    fn turn(&mut self, now: Instant, buffer: &mut [u8]) -> Turned {
        let mut may_read = true;
        loop {
            if self.is_woken {
                let waker = Waker::from(self.waker.clone());
                self.is_woken = self
                    .client
                    .handle_wake(now, &mut Context::from_waker(&waker));
            }
            if self.client.flush(now, &mut self.wire) == Flushed::Blocked {
                return Turned::Waits;
            }
            // TLS has words of its own.
            if let Err(error) = self.wire.flush() {
                if error.kind() == ErrorKind::WouldBlock {
                    return Turned::Waits;
                }
                self.client.handle_end();
            }
            if self.client.is_over() {
                return Turned::Over;
            }
            if self.is_woken {
                continue;
            }
            if !self.is_readable {
                return Turned::Waits;
            }
            if !may_read {
                return Turned::Again;
            }
            may_read = false;
            self.read(now, buffer);
        }
    }

    fn read(&mut self, now: Instant, buffer: &mut [u8]) {
        match self.wire.read(buffer) {
            Ok(0) => {
                self.is_readable = false;
                self.client.handle_end();
            }
            Ok(read) => {
                // Less than there was room for was all there was: the next bytes are a new event.
                let has_more = self.is_ending || self.wire.has_ended;
                self.is_readable = read == buffer.len() || has_more;
                self.is_woken |= self.client.handle_bytes(now, &mut buffer[..read]);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => self.is_readable = false,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => {
                self.is_readable = false;
                self.client.handle_end();
            }
        }
    }
}

#[derive(Default)]
struct Slot {
    /// Counts the sockets that were here.
    number: u32,
    conn: Option<Conn>,
}

/// A thread and its sockets.
struct SocketThread<'a> {
    mailbox: Arc<Mailbox>,
    poll: &'a mut Poll,
    wait: Duration,
    slots: Vec<Slot>,
    unused: Vec<u32>,
    timers: BinaryHeap<Reverse<(Instant, Key)>>,
    /// Slots that have more to read.
    again: Vec<u32>,
    buffer: Vec<u8>,
    heart: &'a Heart,
}

impl<'a> SocketThread<'a> {
    fn new(mailbox: Arc<Mailbox>, poll: &'a mut Poll, wait: Duration, heart: &'a Heart) -> Self {
        Self {
            mailbox,
            poll,
            wait,
            slots: Vec::new(),
            unused: Vec::new(),
            timers: BinaryHeap::new(),
            again: Vec::new(),
            buffer: vec![0; READ_BYTES],
            heart,
        }
    }

    fn run(&mut self) {
        // Nobody else sets it.
        let _ = self.mailbox.thread.set(thread::current());
        let mut events = Events::with_capacity(EVENTS_PER_LOOK);
        let mut looked = Instant::now();
        loop {
            if self.handle_post() {
                return;
            }
            self.handle_timers();
            let now = Instant::now();
            let next = looked + self.wait;
            if now < next && self.again.is_empty() {
                self.pause(next - now);
                continue;
            }
            if let Err(error) = self.look(&mut events, now) {
                tracing::error!(%error, "waiting for sockets failed");
                self.pause(LOOK_FAILED_PAUSE);
            }
            looked = Instant::now();
            for slot in std::mem::take(&mut self.again) {
                self.turn(slot, looked);
            }
            for (n, event) in events.iter().enumerate() {
                // Answers do not wait for all who have something to say. Who arrives does: a slot that is given away
                // again would get an event of the socket that was there.
                if n % EVENTS_PER_WAKES == EVENTS_PER_WAKES - 1 {
                    let woken = std::mem::take(&mut self.mailbox.lock().woken);
                    self.handle_woken(woken, Instant::now());
                }
                self.handle_event(event, looked);
            }
        }
    }

    /// Waits for `pause` or until there is post.
    fn pause(&self, pause: Duration) {
        if self.mailbox.lock().is_empty() {
            // Post that comes before this has left a token that ends it at once.
            thread::park_timeout(pause);
        }
    }

    /// Waits until a socket is ready, there is post, or the next timer is due.
    fn look(&mut self, events: &mut Events, now: Instant) -> io::Result<()> {
        // Relaxed: see `Mailbox::tell`.
        self.mailbox.is_polling.store(true, Ordering::Relaxed);
        let has_work = !self.again.is_empty() || !self.mailbox.lock().is_empty();
        let timeout = match self.timers.peek() {
            _ if has_work => Some(Duration::ZERO),
            Some(Reverse((due, _))) => Some(due.saturating_duration_since(now)),
            None => None,
        };
        // Where nothing happens it sleeps for as long as that lasts.
        self.heart.rest();
        let polled = self.poll.poll(events, timeout);
        self.heart.beat();
        self.mailbox.is_polling.store(false, Ordering::Relaxed);
        match polled {
            Err(error) if error.kind() == ErrorKind::Interrupted => {
                events.clear();
                Ok(())
            }
            polled => polled,
        }
    }

    /// True when the thread is to end.
    fn handle_post(&mut self) -> bool {
        let post = self.mailbox.lock().take();
        if post.is_empty() {
            return false;
        }
        if post.is_stopped {
            for slot in 0..self.slots.len() as u32 {
                self.cut(slot);
            }
            return true;
        }
        let now = Instant::now();
        for arrived in post.arrived {
            self.adopt(arrived, now);
        }
        self.handle_woken(post.woken, now);
        if post.all_woken {
            for slot in 0..self.slots.len() as u32 {
                if let Some(conn) = &mut self.slots[slot as usize].conn {
                    conn.is_woken = true;
                    self.turn(slot, now);
                }
            }
        }
        false
    }

    fn handle_woken(&mut self, woken: Vec<Key>, now: Instant) {
        for key in woken {
            if self.wake(key) {
                self.turn(key.slot, now);
            }
        }
    }

    fn wake(&mut self, key: Key) -> bool {
        let Some(conn) = self.conn(key) else {
            return false;
        };
        // Acquire: see `SocketWaker::wake_by_ref`. Cleared before it is handled, so that nothing is missed.
        conn.waker.is_posted.swap(false, Ordering::AcqRel);
        conn.is_woken = true;
        true
    }

    fn conn(&mut self, key: Key) -> Option<&mut Conn> {
        let slot = self.slots.get_mut(key.slot as usize)?;
        slot.conn.as_mut().filter(|conn| conn.number == key.number)
    }

    fn adopt(&mut self, arrived: Arrived, now: Instant) {
        let slot = self.unused.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            // Fewer sockets than files: a slot's number has room in 32 bits.
            (self.slots.len() - 1) as u32
        });
        let place = &mut self.slots[slot as usize];
        place.number = place.number.wrapping_add(1);
        let key = Key {
            slot,
            number: place.number,
        };
        let waker = Arc::new(SocketWaker {
            mailbox: self.mailbox.clone(),
            key,
            is_posted: AtomicBool::new(false),
        });
        let mut tcp = TcpStream::from_std(arrived.tcp);
        let both = Interest::READABLE | Interest::WRITABLE;
        let token = Token(slot as usize);
        let registered = self.poll.registry().register(&mut tcp, token, both);
        let mut conn = Conn {
            number: key.number,
            wire: Wire::new(tcp, arrived.tls),
            client: arrived.client,
            waker: waker.clone(),
            // News may have come before anybody listened for it.
            is_woken: true,
            is_readable: true,
            is_ending: false,
            due: None,
            _places: arrived.places,
        };
        if let Err(error) = registered {
            tracing::error!(%error, "a socket could not be watched");
            conn.client.handle_end();
        }
        place.conn = Some(conn);
        let mut first = arrived.first.to_vec();
        self.guarded(slot, |conn, buffer| {
            conn.client.begin(now, waker.into());
            if !first.is_empty() {
                conn.is_woken |= conn.client.handle_bytes(now, &mut first);
            }
            conn.turn(now, buffer)
        });
    }

    fn handle_event(&mut self, event: &Event, now: Instant) {
        let slot = event.token();
        if slot == MAILBOX {
            return;
        }
        if let Some(conn) = self
            .slots
            .get_mut(slot.0)
            .and_then(|slot| slot.conn.as_mut())
        {
            conn.is_readable |= event.is_readable();
            if event.is_read_closed() || event.is_error() {
                (conn.is_readable, conn.is_ending) = (true, true);
            }
            self.turn(slot.0 as u32, now);
        }
    }

    fn handle_timers(&mut self) {
        if self.timers.is_empty() {
            return;
        }
        let now = Instant::now();
        while let Some(Reverse((due, key))) = self.timers.peek().copied()
            && due <= now
        {
            self.timers.pop();
            let Some(conn) = self.conn(key) else {
                continue;
            };
            // A later timer was replaced by an earlier one, which has come since.
            if conn.due != Some(due) {
                continue;
            }
            conn.due = None;
            self.guarded(key.slot, |conn, buffer| {
                if conn.client.poll_deadline().is_some_and(|due| due <= now) {
                    conn.is_woken |= conn.client.handle_time(now);
                }
                conn.turn(now, buffer)
            });
        }
    }

    fn turn(&mut self, slot: u32, now: Instant) {
        self.guarded(slot, |conn, buffer| conn.turn(now, buffer));
    }

    /// Works on a socket. If that panics, the socket is cut, and nobody else's.
    fn guarded(&mut self, slot: u32, work: impl FnOnce(&mut Conn, &mut [u8]) -> Turned) {
        let place = &mut self.slots[slot as usize];
        let Some(conn) = &mut place.conn else { return };
        let buffer = &mut self.buffer;
        // Unwind safe: the socket is not used any more, the buffer's content means nothing between two turns, and what
        // is shared is as good after a panic as before (see `people::lock`).
        let turned = catch_unwind(AssertUnwindSafe(|| work(conn, buffer)));
        match turned {
            Ok(Turned::Waits) => self.plan(slot),
            Ok(Turned::Again) => {
                self.again.push(slot);
                self.plan(slot);
            }
            Ok(Turned::Over) => self.cut(slot),
            Err(_) => {
                tracing::error!("a socket's handler panicked: its connection is cut");
                metrics::counter!("cabrank_socket_panics_total").increment(1);
                self.cut(slot);
            }
        }
    }

    fn cut(&mut self, slot: u32) {
        let place = &mut self.slots[slot as usize];
        if let Some(mut conn) = place.conn.take() {
            conn.wire.end();
            // Its drop tells who else must know; should that panic, too, the thread goes on.
            if catch_unwind(AssertUnwindSafe(|| drop(conn))).is_err() {
                tracing::error!("leaving a socket panicked");
            }
            self.unused.push(slot);
        }
    }

    /// Sets a timer if the socket wants to be called earlier than planned.
    fn plan(&mut self, slot: u32) {
        let Some(conn) = &mut self.slots[slot as usize].conn else {
            return;
        };
        let Some(due) = conn.client.poll_deadline() else {
            return;
        };
        if conn.due.is_none_or(|planned| due < planned) {
            conn.due = Some(due);
            let number = conn.number;
            self.timers.push(Reverse((due, Key { slot, number })));
        }
    }
}

#[cfg(test)]
mod tests;
