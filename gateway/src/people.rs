//! Who is connected, and how is a person's socket reached?
//!
//! Holds: at most one socket per person; a newer one closes the older. What judges a driver's pings outlives the
//! socket, so that reconnecting washes nothing away. Messages wait in a bounded queue; a full one closes the socket.
//! Not here: the sockets themselves (`socket`), what is said to whom (`news`).

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::Waker;

use cabrank_engine::ingest::PingGate;
use cabrank_events::{DriverId, RiderId, SessionId, Time};
use dashmap::DashMap;
use dashmap::mapref::entry::Entry;

/// Why the server closes a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CloseCause {
    /// The client said goodbye, or the connection broke.
    Gone,
    /// The gateway goes down.
    GoingDown,
    /// The client broke the WebSocket protocol.
    Protocol,
    /// Too many messages in a row were not understood.
    Misunderstood,
    /// A message was larger than allowed.
    TooLarge,
    /// The token is over.
    TokenOver,
    /// Nothing was heard for too long.
    Silent,
    /// The client does not read.
    SlowReader,
    /// The same person has connected again.
    Replaced,
    /// The person was shut out.
    Revoked,
    /// More frames in a second than allowed.
    TooMany,
}

impl CloseCause {
    /// Close code and reason as in `docs/protocol.md`.
    pub fn code(self) -> (u16, &'static str) {
        match self {
            Self::Gone => (1000, ""),
            Self::GoingDown => (1012, "going down: connect again"),
            Self::Protocol => (1002, "not the WebSocket protocol"),
            Self::Misunderstood => (1007, "too many messages that are not understood"),
            Self::TooLarge => (1009, "message too large"),
            Self::TokenOver => (4401, "token over"),
            Self::Silent => (4408, "silent"),
            Self::SlowReader => (4409, "slow reader"),
            Self::Replaced => (4410, "replaced"),
            Self::Revoked => (4403, "revoked: log in again"),
            Self::TooMany => (4429, "too many messages in a second"),
        }
    }

    /// The name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gone => "gone",
            Self::GoingDown => "going_down",
            Self::Protocol => "protocol",
            Self::Misunderstood => "misunderstood",
            Self::TooLarge => "too_large",
            Self::TokenOver => "token_over",
            Self::Silent => "silent",
            Self::SlowReader => "slow_reader",
            Self::Replaced => "replaced",
            Self::Revoked => "revoked",
            Self::TooMany => "too_many",
        }
    }
}

/// The way to one open socket.
pub struct Link<News> {
    number: u64,
    queue: Mutex<VecDeque<News>>,
    queue_max: usize,
    cause: OnceLock<CloseCause>,
    /// Tells the socket's thread that there is something here.
    waker: OnceLock<Waker>,
}

impl<News> Link<News> {
    fn new(number: u64, queue_max: usize) -> Arc<Self> {
        Arc::new(Self {
            number,
            queue: Mutex::default(),
            queue_max,
            cause: OnceLock::new(),
            waker: OnceLock::new(),
        })
    }

    /// From now on `waker` is told of news and of a wish to close. What came before must be looked for.
    pub fn listen(&self, waker: Waker) {
        // A socket listens once.
        let _ = self.waker.set(waker);
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.get() {
            waker.wake_by_ref();
        }
    }

    /// Queues `news` without waiting. A full queue means the client does not read: the socket is closed.
    pub fn tell(&self, news: News) {
        let is_taken = {
            let mut queue = lock(&self.queue);
            let has_room = queue.len() < self.queue_max;
            if has_room {
                queue.push_back(news);
            }
            has_room
        };
        if is_taken {
            self.wake();
        } else {
            self.close(CloseCause::SlowReader);
        }
    }

    /// The oldest news. The memory goes back with the last: idle sockets are many.
    pub fn take_news(&self) -> Option<News> {
        let mut queue = lock(&self.queue);
        let news = queue.pop_front();
        if queue.is_empty() {
            *queue = VecDeque::new();
        }
        news
    }

    /// Asks the socket to close; the first cause stays.
    pub fn close(&self, cause: CloseCause) {
        let _ = self.cause.set(cause);
        self.wake();
    }

    /// Why it was asked to close, if it was.
    pub fn cause(&self) -> Option<CloseCause> {
        self.cause.get().copied()
    }
}

/// Makes links with numbers of their own.
#[derive(Default)]
struct Links {
    numbers: AtomicU64,
}

impl Links {
    fn link<News>(&self, queue_max: usize) -> Arc<Link<News>> {
        // Relaxed: only uniqueness matters.
        Link::new(self.numbers.fetch_add(1, Ordering::Relaxed), queue_max)
    }
}

/// What is kept of one driver.
pub struct DriverSlot<News> {
    gate: Mutex<PingGate>,
    link: Mutex<Option<Arc<Link<News>>>>,
    last_session: AtomicU64,
}

/// A panic while holding one of these locks leaves plain values behind, which are as good as before.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<News> DriverSlot<News> {
    fn new(link: Option<Arc<Link<News>>>) -> Self {
        Self {
            gate: Mutex::new(PingGate::new()),
            link: Mutex::new(link),
            last_session: AtomicU64::new(0),
        }
    }

    /// What judges this driver's pings.
    pub fn gate(&self) -> MutexGuard<'_, PingGate> {
        lock(&self.gate)
    }

    /// A session number for a driver who begins to work: domain time, but never the same twice.
    pub fn mint_session(&self, now: Time) -> SessionId {
        let now = u64::try_from(now.0).unwrap_or(0);
        // Relaxed: the number itself is all that is shared. The closure always gives a value.
        let step = |last: u64| Some(now.max(last.saturating_add(1)));
        let last = self
            .last_session
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, step);
        SessionId(step(last.unwrap_or_else(|last| last)).unwrap_or(now))
    }
}

/// All drivers of this gateway, with or without a socket.
pub struct Drivers<News> {
    slots: DashMap<DriverId, Arc<DriverSlot<News>>>,
    links: Links,
    max: usize,
}

/// What is kept of a driver, and the way to the new socket.
type Connected<News> = (Arc<DriverSlot<News>>, Arc<Link<News>>);

/// As many drivers are connected as can be remembered.
#[derive(Debug, PartialEq, Eq)]
pub struct TooManyPeople;

impl<News> Drivers<News> {
    /// Remembers at most `max`.
    pub fn new(max: usize) -> Self {
        Self {
            slots: DashMap::new(),
            links: Links::default(),
            max,
        }
    }

    /// Registers a socket; an older one of the same driver is closed.
    pub fn connect(
        &self,
        driver: &DriverId,
        queue_max: usize,
    ) -> Result<Connected<News>, TooManyPeople> {
        self.make_room(driver)?;
        let link = self.links.link(queue_max);
        // The entry stays locked until the link is in its slot, so that making room cannot forget it in between.
        let slot = match self.slots.entry(driver.clone()) {
            Entry::Occupied(slot) => {
                if let Some(older) = lock(&slot.get().link).replace(link.clone()) {
                    older.close(CloseCause::Replaced);
                }
                slot.get().clone()
            }
            Entry::Vacant(vacant) => vacant
                .insert(Arc::new(DriverSlot::new(Some(link.clone()))))
                .clone(),
        };
        Ok((slot, link))
    }

    /// What is kept of a driver, with or without a socket.
    pub fn slot(&self, driver: &DriverId) -> Result<Arc<DriverSlot<News>>, TooManyPeople> {
        if let Some(slot) = self.slots.get(driver) {
            return Ok(slot.clone());
        }
        self.make_room(driver)?;
        let slot = self.slots.entry(driver.clone());
        Ok(slot
            .or_insert_with(|| Arc::new(DriverSlot::new(None)))
            .clone())
    }

    /// Forgets drivers without a socket when there is no room for one more.
    fn make_room(&self, driver: &DriverId) -> Result<(), TooManyPeople> {
        if self.slots.len() >= self.max && !self.slots.contains_key(driver) {
            self.slots.retain(|_, slot| lock(&slot.link).is_some());
            if self.slots.len() >= self.max {
                return Err(TooManyPeople);
            }
        }
        Ok(())
    }

    /// The socket is closed. A newer one of the same driver stays.
    pub fn disconnect(&self, slot: &DriverSlot<News>, link: &Link<News>) {
        lock(&slot.link).take_if(|current| current.number == link.number);
    }

    /// Asks the driver's socket to close, if there is one.
    pub fn close(&self, driver: &DriverId, cause: CloseCause) {
        if let Some(slot) = self.slots.get(driver)
            && let Some(link) = lock(&slot.link).as_ref()
        {
            link.close(cause);
        }
    }

    /// Has the driver a socket here?
    pub fn is_connected(&self, driver: &DriverId) -> bool {
        let slot = self.slots.get(driver);
        slot.is_some_and(|slot| lock(&slot.link).is_some())
    }

    /// Tells the driver, if connected here.
    pub fn tell(&self, driver: &DriverId, news: impl FnOnce() -> News) {
        if let Some(slot) = self.slots.get(driver)
            && let Some(link) = lock(&slot.link).as_ref()
        {
            link.tell(news());
        }
    }
}

/// The connected riders.
pub struct Riders<News> {
    links: DashMap<RiderId, Arc<Link<News>>>,
    numbers: Links,
}

impl<News> Default for Riders<News> {
    fn default() -> Self {
        Self {
            links: DashMap::new(),
            numbers: Links::default(),
        }
    }
}

impl<News> Riders<News> {
    /// Registers a socket; an older one of the same rider is closed.
    pub fn connect(&self, rider: &RiderId, queue_max: usize) -> Arc<Link<News>> {
        let link = self.numbers.link(queue_max);
        if let Some(older) = self.links.insert(rider.clone(), link.clone()) {
            older.close(CloseCause::Replaced);
        }
        link
    }

    /// The socket is closed. A newer one of the same rider stays.
    pub fn disconnect(&self, rider: &RiderId, link: &Link<News>) {
        self.links
            .remove_if(rider, |_, current| current.number == link.number);
    }

    /// Asks the rider's socket to close, if there is one.
    pub fn close(&self, rider: &RiderId, cause: CloseCause) {
        if let Some(link) = self.links.get(rider) {
            link.close(cause);
        }
    }

    /// Tells the rider, if connected here.
    pub fn tell(&self, rider: &RiderId, news: impl FnOnce() -> News) {
        if let Some(link) = self.links.get(rider) {
            link.tell(news());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn driver(n: usize) -> DriverId {
        DriverId::new(&format!("d{n}")).unwrap()
    }

    #[test]
    fn the_newest_socket_of_a_person_wins_and_the_older_one_does_not_remove_it() {
        let drivers = Drivers::<u32>::new(10);
        let (slot, older) = drivers.connect(&driver(1), 8).unwrap();
        let (_, newer) = drivers.connect(&driver(1), 8).unwrap();
        assert_eq!(older.cause(), Some(CloseCause::Replaced));
        drivers.disconnect(&slot, &older);
        drivers.tell(&driver(1), || 7);
        assert_eq!((newer.take_news(), newer.take_news()), (Some(7), None));
        drivers.disconnect(&slot, &newer);
        drivers.tell(&driver(1), || unreachable!("nobody is connected"));
    }

    #[test]
    fn a_full_queue_closes_the_socket_and_never_blocks() {
        let riders = Riders::<u32>::default();
        let rider = RiderId::new("r1").unwrap();
        let link = riders.connect(&rider, 2);
        for n in 0..2 {
            riders.tell(&rider, || n);
        }
        assert_eq!(link.cause(), None);
        riders.tell(&rider, || 2);
        assert_eq!(link.cause(), Some(CloseCause::SlowReader));
    }

    #[test]
    fn drivers_without_a_socket_are_forgotten_when_room_is_needed() {
        let drivers = Drivers::<u32>::new(2);
        let (gone, link) = drivers.connect(&driver(1), 8).unwrap();
        drivers.disconnect(&gone, &link);
        let _two = drivers.connect(&driver(2), 8).unwrap();
        let _three = drivers.connect(&driver(3), 8).unwrap();
        assert_eq!(drivers.connect(&driver(4), 8).err(), Some(TooManyPeople));
        assert!(
            drivers.connect(&driver(3), 8).is_ok(),
            "who is known may always come back"
        );
    }

    #[test]
    fn sessions_grow_even_within_one_millisecond() {
        let drivers = Drivers::<u32>::new(2);
        let (slot, ..) = drivers.connect(&driver(1), 8).unwrap();
        assert_eq!(slot.mint_session(Time(1_000)), SessionId(1_000));
        assert_eq!(slot.mint_session(Time(1_000)), SessionId(1_001));
        assert_eq!(slot.mint_session(Time(-5)), SessionId(1_002));
    }
}
