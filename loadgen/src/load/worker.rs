//! One thread of a generator: its share of the drivers, of the schedule and of the HTTP connections, in one event loop.
//!
//! The loop sends what is due, then looks at what is ready, then waits for whichever comes first. Nothing in it blocks;
//! so a message that leaves late does so because this thread had no time (that is [`Kind::Lateness`]) or because
//! the server did not take it (that is in the message's own latency). HTTP calls are in `calls`, the probe's car in `probe`.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use cabrank_events::DriverId;
use mio::{Events, Poll, Registry, Token};
use rand::SeedableRng;
use rand::rngs::SmallRng;

use super::cab::{Cab, Desk, Standing};
use super::clock::{TIMER, Waiter, now_ns};
use super::lane::Speech;
use super::place::{NoTrace, Places, Way};
use super::plan::{Plan, Target};
use super::schedule::Schedule;
use super::tally::{Kind, Tally};
use crate::client::{Mint, Role};

mod calls;
mod probe;

use calls::{Call, Pool, Wanted};
use probe::{Probe, probe_place};

/// Sockets of one thread that may be under construction at the same time.
const OPENING_MAX: usize = 48;
/// So many due messages are sent before readiness is looked at again.
const BURST_MAX: usize = 128;
/// Drivers that one write puts into a Redis.
const ADDED_AT_ONCE: usize = 500;
/// A loop that has nothing to do looks at the orders so often.
const LOOK_NS: u64 = 20_000_000;
/// How long open rides may take to end.
const DRAIN_NS: u64 = 10_000_000_000;
/// Quiet for so long is drained.
const QUIET_NS: u64 = 300_000_000;
/// Opening all sockets gives up after this.
const OPEN_WITHIN_NS: u64 = 180_000_000_000;

/// What the threads of a process are told, and tell.
///
/// All orderings are relaxed: each value stands for itself, and a thread that sees one a moment later is a moment late.
#[derive(Debug, Default)]
pub struct Control {
    /// When to begin, ns of the shared clock; 0: not yet.
    pub start: AtomicU64,
    /// Ends the run at once.
    pub stop: AtomicBool,
    /// Threads whose sockets are open.
    pub ready: AtomicU32,
    /// By thread.
    pub live: Vec<Live>,
}

/// How far one thread is.
#[derive(Debug, Default)]
pub struct Live {
    /// Pings sent.
    pub pings: AtomicU64,
    /// Searches answered.
    pub nearby: AtomicU64,
    /// Rides promised.
    pub rides: AtomicU64,
    /// Drivers that came online.
    pub online: AtomicU64,
}

/// Why a thread cannot work.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The system refuses sockets or timers.
    #[error("the generator's event loop: {0}")]
    Io(#[from] io::Error),
    /// A recorded day cannot be read.
    #[error(transparent)]
    Trace(#[from] NoTrace),
    /// No such server.
    #[error("{url}: {why}: is that the server's address?")]
    Url {
        /// What was given.
        url: String,
        /// What is wrong.
        why: String,
    },
    /// Not all sockets came to a session.
    #[error("{open} of {wanted} drivers came online in time; the first reason: {why}")]
    Open {
        /// Drivers with a session.
        open: usize,
        /// All of this thread.
        wanted: usize,
        /// The first complaint or refusal.
        why: String,
    },
}

struct Shared {
    plan: Arc<Plan>,
    mint: Mint,
    tally: Tally,
    rng: SmallRng,
    places: Places,
    registry: Registry,
    is_draining: bool,
}

impl Shared {
    fn desk(&mut self) -> Desk<'_> {
        Desk {
            plan: &self.plan,
            mint: &self.mint,
            registry: &self.registry,
            tally: &mut self.tally,
            rng: &mut self.rng,
            places: &self.places,
            is_draining: self.is_draining,
        }
    }
}

/// The thread.
pub struct Worker {
    shared: Shared,
    control: Arc<Control>,
    poll: Poll,
    waiter: Waiter,
    cabs: Vec<Cab>,
    /// Drivers without a socket of their own who have not reported yet, by number.
    visitors: VecDeque<u32>,
    visited: usize,
    /// Slots with a visitor that is not counted yet.
    visiting: [bool; OPENING_MAX],
    servers: Vec<(SocketAddr, Arc<str>)>,
    timers: BinaryHeap<Reverse<(u64, usize)>>,
    armed: Vec<u64>,
    searches: Pool,
    requests: Pool,
    /// The probe is the last cab, and looks on a lane of its own.
    probe: Option<Probe>,
    next_cab: usize,
    asked: u64,
    index: u32,
    thread: u32,
    ops_token: String,
}

/// The thread's share of `total`: what index `n` of `of` gets.
pub fn share(total: u32, n: u32, of: u32) -> u32 {
    total / of + u32::from(n < total % of)
}

impl Worker {
    /// Thread `thread` of the plan's process.
    pub fn new(
        plan: Arc<Plan>,
        mint: Mint,
        control: Arc<Control>,
        thread: u32,
    ) -> Result<Worker, WorkerError> {
        let (index, of) = (plan.part * plan.threads + thread, plan.parts * plan.threads);
        let poll = Poll::new()?;
        let waiter = Waiter::new(&poll)?;
        let servers = plan
            .urls
            .iter()
            .map(|url| resolve(url))
            .collect::<Result<Vec<_>, _>>()?;
        let mut rng = SmallRng::seed_from_u64(
            plan.seed ^ (u64::from(index) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15),
        );
        let places = Places::new(plan.area, plan.seed, &plan.traces)?;
        let speech = match plan.target {
            Target::Redis => Speech::Redis,
            Target::Cabrank | Target::Raw => Speech::Http,
        };
        let sockets = plan.connections.min(plan.drivers);
        let own = share(sockets, index, of);
        let cabs = (0..own).map(|n| {
            let number = n * of + index;
            new_cab(
                &plan, number, n as usize, &servers, &places, &mut rng, false,
            )
        });
        let mut cabs: Vec<Cab> = cabs.collect();
        let parked = (sockets..plan.drivers)
            .filter(|n| n % of == index)
            .collect();
        let probe_cab = (plan.probe && index == 0 && plan.target == Target::Cabrank).then(|| {
            let driver = DriverId::new("load-probe").expect("a constant that is an id");
            let (address, host) = servers[0].clone();
            let token = Token(cabs.len());
            cabs.push(Cab::new(
                driver,
                address,
                host,
                token,
                Way::standing(probe_place(0)),
                false,
            ));
            cabs.len() - 1
        });
        // Tokens: cabs, visitors, searches, requests, the probe's lane.
        let searches_from = cabs.len() + OPENING_MAX;
        let n_searches = share(plan.nearby_connections, index, of).max(1) as usize;
        let n_requests = share(plan.ride_connections, index, of).max(1) as usize;
        let searches = Pool::new(searches_from, n_searches, &servers, speech);
        let requests = Pool::new(searches_from + n_searches, n_requests, &servers, speech);
        let probe = probe_cab.map(|cab| Probe {
            cab,
            lane: Pool::new(searches_from + n_searches + n_requests, 1, &servers, speech),
            next: 0,
            step: 0,
        });
        let registry = poll.registry().try_clone()?;
        let armed = vec![u64::MAX; cabs.len() + OPENING_MAX];
        let ops_token = mint(Role::Ops, "loadgen");
        Ok(Worker {
            shared: Shared {
                plan,
                mint,
                tally: Tally::default(),
                rng,
                places,
                registry,
                is_draining: false,
            },
            control,
            poll,
            waiter,
            cabs,
            visitors: parked,
            visited: 0,
            visiting: [false; OPENING_MAX],
            servers,
            timers: BinaryHeap::new(),
            armed,
            searches,
            requests,
            probe,
            next_cab: 0,
            asked: 0,
            index,
            thread,
            ops_token,
        })
    }

    /// Opens everything, waits for the start, sends, drains; answers what was counted.
    pub fn run(mut self) -> Result<Tally, WorkerError> {
        let mut events = Events::with_capacity(1_024);
        self.open(&mut events)?;
        self.control.ready.fetch_add(1, Ordering::Relaxed);
        let start = loop {
            self.turn(&mut events, now_ns() + LOOK_NS)?;
            let start = self.control.start.load(Ordering::Relaxed);
            if start > 0 && now_ns() >= start {
                break start;
            }
            if self.control.stop.load(Ordering::Relaxed) {
                return Ok(self.shared.tally);
            }
        };
        let seconds = |s: f64| (s * 1e9) as u64;
        let began = start + seconds(self.shared.plan.warmup_s);
        let ends = began + seconds(self.shared.plan.seconds);
        let lost_before = self.shared.tally.sockets_lost;
        let fresh = Tally::new(began, ends - began);
        let opened = std::mem::replace(&mut self.shared.tally, fresh);
        // Pings of the opening count, since the server counts them, too.
        self.shared.tally.pings_sent = opened.pings_sent;
        self.shared.tally.rides = opened.rides;
        self.shared.tally.sockets_lost = lost_before;
        self.send(&mut events, start, ends)?;
        self.drain(&mut events)?;
        self.shared.tally.online = self
            .cabs
            .iter()
            .filter(|cab| cab.standing() == Standing::Ready)
            .count() as u64;
        self.cabs.iter_mut().for_each(Cab::hang_up);
        Ok(self.shared.tally)
    }

    fn open(&mut self, events: &mut Events) -> Result<(), WorkerError> {
        let deadline = now_ns() + OPEN_WITHIN_NS;
        let own = self.cabs.len();
        let parked = self.visitors.len();
        let mut begun = 0;
        loop {
            let count = |cabs: &[Cab], standing| {
                cabs.iter().filter(|cab| cab.standing() == standing).count()
            };
            let ready = count(&self.cabs[..own], Standing::Ready);
            let live = &self.control.live[self.thread as usize];
            live.online
                .store((ready + self.visited) as u64, Ordering::Relaxed);
            if ready == own && self.visited == parked {
                self.cabs.truncate(own);
                return Ok(());
            }
            if now_ns() > deadline || self.control.stop.load(Ordering::Relaxed) {
                let tally = &self.shared.tally;
                let refused = tally
                    .refused
                    .values()
                    .flatten()
                    .next()
                    .map(|(why, _)| why.clone());
                let why = refused
                    .or(tally.complaint.clone())
                    .unwrap_or_else(|| "no answer".into());
                return Err(WorkerError::Open {
                    open: ready + self.visited,
                    wanted: own + parked,
                    why,
                });
            }
            while begun < own && begun - ready.min(begun) < OPENING_MAX {
                self.touch(begun, |cab, desk| cab.handle_time(now_ns(), desk));
                begun += 1;
            }
            if self.shared.plan.target == Target::Redis {
                self.add_visitors();
            } else {
                self.open_visitors(own);
            }
            self.turn(events, now_ns() + LOOK_NS / 4)?;
        }
    }

    /// Towards a Redis the first connection reports for those without one.
    fn add_visitors(&mut self) {
        if !self.cabs[0].is_writable() {
            return;
        }
        let count = self.visitors.len().min(ADDED_AT_ONCE);
        let numbers: Vec<u32> = self.visitors.drain(..count).collect();
        let shared = &mut self.shared;
        let places = numbers.iter().map(|number| {
            let driver =
                DriverId::new(&format!("load-{number}")).expect("letters, digits and a dash");
            (
                driver,
                shared.places.wish(shared.plan.seed as i64, &mut shared.rng),
            )
        });
        let places: Vec<_> = places.collect();
        self.visited += count;
        if count > 0 {
            self.touch(0, |cab, desk| cab.add_all(&places, desk));
        }
    }

    /// Visitors take turns on a few slots behind the cabs.
    fn open_visitors(&mut self, own: usize) {
        for slot in own..own + OPENING_MAX {
            if let Some(cab) = self.cabs.get(slot) {
                if cab.standing() != Standing::Gone {
                    continue;
                }
                if std::mem::take(&mut self.visiting[slot - own]) {
                    self.visited += 1;
                }
            }
            let Some(number) = self.visitors.pop_front() else {
                continue;
            };
            let shared = &mut self.shared;
            let cab = new_cab(
                &shared.plan,
                number,
                slot,
                &self.servers,
                &shared.places,
                &mut shared.rng,
                true,
            );
            match self.cabs.get_mut(slot) {
                Some(gone) => *gone = cab,
                None => self.cabs.push(cab),
            }
            self.visiting[slot - own] = true;
            self.touch(slot, |cab, desk| cab.handle_time(now_ns(), desk));
        }
    }

    fn send(&mut self, events: &mut Events, start: u64, ends: u64) -> Result<(), WorkerError> {
        let plan = Arc::clone(&self.shared.plan);
        let of = f64::from(plan.parts * plan.threads);
        let phase = f64::from(self.index) / of;
        let mut schedule = |rate: super::schedule::Rate, by: f64| {
            Schedule::new(
                rate.scaled(1.0 / of / by),
                plan.arrivals,
                phase,
                &mut self.shared.rng,
            )
        };
        let mut schedules = [
            (
                Kind::Ping,
                schedule(plan.pings, f64::from(plan.pings_per_write())),
            ),
            (Kind::Request, schedule(plan.rides, 1.0)),
            (Kind::Nearby, schedule(plan.nearby, 1.0)),
        ];
        if let Some(probe) = &mut self.probe {
            probe.next = start;
        }
        let mut looked = 0;
        loop {
            let now = now_ns();
            if self.control.stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            if now >= ends {
                self.own_up(&mut schedules, start, ends);
                return Ok(());
            }
            if now - looked > 100_000_000 {
                looked = now;
                self.tell();
            }
            let next = if plan.closed_loop.is_some() {
                // Nobody is free: whoever becomes so is heard of.
                if self.send_closed(now, ends) {
                    now
                } else {
                    now + LOOK_NS
                }
            } else {
                match self.send_due(&mut schedules, start, ends) {
                    Some(due) => due.max(now + plan.tick_us * 1_000),
                    None => now,
                }
            };
            let next = self.handle_probe(now).min(next).min(ends);
            self.turn(events, next)?;
        }
    }

    /// Sends what is due, in the order of due, whatever its kind; answers when the next is, or None if it has not come to
    /// the end of what is due now.
    fn send_due(
        &mut self,
        schedules: &mut [(Kind, Schedule); 3],
        start: u64,
        ends: u64,
    ) -> Option<u64> {
        for _ in 0..BURST_MAX {
            let Some((kind, schedule, due)) = earliest(schedules) else {
                return Some(ends);
            };
            let (now, due) = (now_ns(), start + due);
            if due > now || due >= ends {
                return Some(due);
            }
            schedule.advance(&mut self.shared.rng);
            self.shared.tally.offered(Kind::Lateness, due, 1);
            self.shared.tally.done(Kind::Lateness, due, now, 1);
            self.send_one(kind, due);
        }
        None
    }

    /// The end has come before all that was due was sent: it counts as offered, and as late.
    fn own_up(&mut self, schedules: &mut [(Kind, Schedule); 3], start: u64, ends: u64) {
        if self.shared.plan.closed_loop.is_some() {
            return;
        }
        let a_write = u64::from(self.shared.plan.pings_per_write());
        while let Some((kind, schedule, due)) = earliest(schedules) {
            let due = start + due;
            if due >= ends {
                return;
            }
            schedule.advance(&mut self.shared.rng);
            let count = if kind == Kind::Ping { a_write } else { 1 };
            let tally = &mut self.shared.tally;
            tally.offered(kind, due, count);
            tally.offered(Kind::Lateness, due, 1);
            tally.done(Kind::Lateness, due, ends, 1);
        }
    }

    fn send_one(&mut self, kind: Kind, due: u64) {
        match kind {
            Kind::Ping => {
                let own = self
                    .probe
                    .as_ref()
                    .map_or(self.cabs.len(), |probe| probe.cab);
                if own > 0 {
                    self.next_cab = (self.next_cab + 1) % own;
                    self.touch(self.next_cab, |cab, desk| cab.ping(due, desk));
                }
            }
            Kind::Nearby => {
                self.shared.tally.offered(Kind::Nearby, due, 1);
                self.want(true, Wanted::Nearby { due });
            }
            _ => {
                self.shared.tally.offered(Kind::Request, due, 1);
                self.want(false, Wanted::Ride { due });
            }
        }
    }

    /// Closed loop: whoever is free asks again. False: nobody was.
    fn send_closed(&mut self, now: u64, ends: u64) -> bool {
        let mut is_any = false;
        let plan = Arc::clone(&self.shared.plan);
        let of = plan.parts * plan.threads;
        let width = share(plan.closed_loop.unwrap_or(1), self.index, of).max(1) as usize;
        if !plan.nearby.is_zero() {
            let busy = self.searches.lanes.len() - self.searches.idle.len();
            for _ in busy..width.min(self.searches.lanes.len()) {
                is_any = true;
                self.send_one(Kind::Nearby, now);
            }
        }
        if !plan.rides.is_zero() {
            let busy = self.requests.lanes.len() - self.requests.idle.len();
            // A requester is a rider, who asks again when the ride is over.
            let tally = &self.shared.tally;
            let riding = tally.promised.saturating_sub(tally.completed) as usize;
            let free = width.saturating_sub(busy + riding);
            for _ in 0..free.min(self.requests.idle.len()) {
                is_any = true;
                self.send_one(Kind::Request, now);
            }
        }
        if !plan.pings.is_zero() {
            let own = self
                .probe
                .as_ref()
                .map_or(self.cabs.len(), |probe| probe.cab);
            let mut burst = 0;
            for _ in 0..width.min(own) {
                self.next_cab = (self.next_cab + 1) % width.min(own);
                if self.cabs[self.next_cab].is_writable() {
                    let due = now_ns();
                    if due >= ends {
                        return true;
                    }
                    self.touch(self.next_cab, |cab, desk| cab.ping(due, desk));
                    is_any = true;
                    burst += 1;
                    if burst >= BURST_MAX {
                        return true;
                    }
                }
            }
        }
        is_any
    }

    fn tell(&self) {
        let tally = &self.shared.tally;
        let done = |kind| tally.kinds.get(&kind).map_or(0, |count| count.done);
        let live = &self.control.live[self.thread as usize];
        live.pings.store(tally.pings_sent, Ordering::Relaxed);
        live.nearby.store(done(Kind::Nearby), Ordering::Relaxed);
        live.rides.store(done(Kind::Request), Ordering::Relaxed);
        let own = self
            .probe
            .as_ref()
            .map_or(self.cabs.len(), |probe| probe.cab);
        let is_ready = |cab: &&Cab| cab.standing() == Standing::Ready;
        let ready = self.cabs[..own].iter().filter(is_ready).count();
        live.online
            .store((ready + self.visited) as u64, Ordering::Relaxed);
    }

    /// Lets what is under way end.
    fn drain(&mut self, events: &mut Events) -> Result<(), WorkerError> {
        self.shared.is_draining = true;
        for n in 0..self.cabs.len() {
            self.touch(n, |cab, desk| cab.handle_draining(now_ns(), desk));
        }
        let deadline = now_ns() + DRAIN_NS;
        let mut quiet_since = None;
        loop {
            let now = now_ns();
            let lanes_idle = [&self.searches, &self.requests]
                .iter()
                .all(|pool| pool.waiting.is_empty() && pool.idle.len() == pool.lanes.len());
            let is_quiet = lanes_idle && !self.cabs.iter().any(Cab::is_busy);
            quiet_since = is_quiet.then(|| quiet_since.unwrap_or(now));
            if now > deadline || quiet_since.is_some_and(|since| now - since > QUIET_NS) {
                break;
            }
            self.turn(events, now + LOOK_NS)?;
        }
        // Requests nobody answered may have opened rides: their keys are called off by whoever holds all parts.
        for lane in &mut self.requests.lanes {
            if let Some(Call::Ride { rider, key, .. }) = lane.give_up() {
                self.shared.tally.unclear.push((rider, key));
            }
        }
        Ok(())
    }

    /// Waits up to `until` for readiness and timers, and handles both.
    fn turn(&mut self, events: &mut Events, until: u64) -> Result<(), WorkerError> {
        let timer = self.timers.peek().map_or(u64::MAX, |Reverse((at, _))| *at);
        self.waiter.wait(&mut self.poll, events, until.min(timer))?;
        for event in events.iter() {
            let Token(n) = event.token();
            if event.token() == TIMER {
                continue;
            }
            if n < self.cabs.len() {
                self.touch(n, |cab, desk| cab.handle_ready(now_ns(), desk));
            } else if n >= self.searches.first_token {
                self.handle_lane(n);
            }
        }
        let now = now_ns();
        while let Some(Reverse((at, n))) = self
            .timers
            .peek()
            .copied()
            .filter(|Reverse((at, _))| *at <= now)
        {
            self.timers.pop();
            if n < self.cabs.len() && self.armed[n] == at {
                self.armed[n] = u64::MAX;
                self.touch(n, |cab, desk| cab.handle_time(now, desk));
            }
        }
        Ok(())
    }

    fn touch(&mut self, n: usize, act: impl FnOnce(&mut Cab, &mut Desk<'_>)) {
        let mut desk = self.shared.desk();
        act(&mut self.cabs[n], &mut desk);
        // A time at or before now would be handled in a tight loop: one tick later is soon enough.
        if let Some(at) = self.cabs[n].poll_time().filter(|at| *at > 0)
            && at < self.armed[n]
        {
            self.armed[n] = at;
            self.timers.push(Reverse((at, n)));
        }
    }
}

/// The schedule whose next message is due first.
fn earliest(schedules: &mut [(Kind, Schedule); 3]) -> Option<(Kind, &mut Schedule, u64)> {
    let all = schedules.iter_mut();
    all.filter_map(|(kind, schedule)| schedule.due().map(|due| (*kind, schedule, due)))
        .min_by_key(|(_, _, due)| *due)
}

fn new_cab(
    plan: &Plan,
    number: u32,
    slot: usize,
    servers: &[(SocketAddr, Arc<str>)],
    places: &Places,
    rng: &mut SmallRng,
    is_visitor: bool,
) -> Cab {
    let driver = DriverId::new(&format!("load-{number}")).expect("letters, digits and a dash");
    let (address, host) = servers[number as usize % servers.len()].clone();
    let way = places.way(number, plan.seed as i64, rng);
    Cab::new(driver, address, host, Token(slot), way, is_visitor)
}

fn resolve(url: &str) -> Result<(SocketAddr, Arc<str>), WorkerError> {
    let bad = |why: String| WorkerError::Url {
        url: url.to_owned(),
        why,
    };
    let host = url
        .strip_prefix("http://")
        .or(url.strip_prefix("redis://"))
        .unwrap_or(url)
        .trim_end_matches('/');
    let mut addresses = host.to_socket_addrs().map_err(|why| bad(why.to_string()))?;
    let address = addresses.next().ok_or_else(|| bad("no address".into()))?;
    Ok((address, host.into()))
}

#[cfg(test)]
mod tests {
    use super::share;

    #[test]
    fn shares_add_up() {
        for (total, of) in [(1_000, 3), (2, 5), (0, 4), (7, 7)] {
            assert_eq!((0..of).map(|n| share(total, n, of)).sum::<u32>(), total);
        }
    }
}
