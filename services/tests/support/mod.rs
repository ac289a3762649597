//! Rides by the dozen, a source that plays them, and databases to consume into.
#![allow(dead_code, reason = "each test file uses its own part")]

pub mod postgres;

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use cabrank_events::command::CancelledBy;
use cabrank_events::event::*;
use cabrank_events::{
    DriverId, Event, EventRecord, IdempotencyKey, Place, RideId, RiderId, ShardId, Time,
    VehicleClass,
};
use cabrank_geo::Point;
use cabrank_services::source::{Batch, Batches, Positions, Source};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::sync::{Notify, mpsc};

/// A log in memory that can grow while it is read.
#[derive(Clone, Default)]
pub struct Script {
    events: Arc<Mutex<Vec<Bytes>>>,
    news: Arc<Notify>,
    batch: usize,
    /// Each batch is delivered twice.
    repeats: bool,
}

impl Script {
    pub fn of(events: Vec<Bytes>, batch: usize) -> Script {
        Script {
            events: Arc::new(Mutex::new(events)),
            batch,
            ..Script::default()
        }
    }

    /// Delivers everything twice.
    pub fn repeating(self) -> Script {
        Script {
            repeats: true,
            ..self
        }
    }

    pub fn push(&self, events: impl IntoIterator<Item = Bytes>) {
        self.events
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(events);
        self.news.notify_waiters();
    }

    pub fn all(&self) -> Vec<Bytes> {
        self.events
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Source for Script {
    fn name(&self) -> &str {
        "rides"
    }

    fn open(&self, positions: Positions) -> Batches {
        let (give, take) = mpsc::channel(1);
        let script = self.clone();
        let mut next: usize = positions.get("all").map_or(0, |next| next.parse().unwrap());
        tokio::spawn(async move {
            while !give.is_closed() {
                let news = script.news.notified();
                let messages: Vec<Bytes> = script
                    .all()
                    .into_iter()
                    .skip(next)
                    .take(script.batch)
                    .collect();
                if messages.is_empty() {
                    tokio::select! { () = news => {}, () = give.closed() => return }
                    continue;
                }
                next += messages.len();
                let batch = Batch {
                    messages,
                    after: Positions::from([("all".to_owned(), next.to_string())]),
                    behind: None,
                };
                for _ in 0..if script.repeats { 2 } else { 1 } {
                    if give.send(Ok(batch.clone())).await.is_err() {
                        return;
                    }
                }
            }
        });
        take
    }
}

/// Rides of one shard with every kind of life there is, their events interleaved as they would be.
pub struct City {
    random: SmallRng,
    seq: u64,
    rides: u64,
    /// When the next event happens, ms.
    pub now: i64,
}

impl City {
    pub fn new(seed: u64) -> City {
        City {
            random: SmallRng::seed_from_u64(seed),
            seq: 0,
            rides: 0,
            now: 1_211_500_800_000,
        }
    }

    fn record(&mut self, event: Event) -> Bytes {
        self.seq += 1;
        let record = EventRecord {
            traceparent: None,
            shard: ShardId(0),
            seq: self.seq,
            time: Time(self.now),
            event,
        };
        self.now += self.random.random_range(1..2_000);
        record.to_json()
    }

    /// `count` rides, at most some dozens of them at once.
    pub fn rides(&mut self, count: usize) -> Vec<Bytes> {
        let mut waiting: Vec<Vec<Event>> = (0..count).map(|_| self.life()).collect();
        waiting.iter_mut().for_each(|life| life.reverse());
        let mut all = Vec::new();
        while !waiting.is_empty() {
            let most = waiting.len().min(24);
            let which = self.random.random_range(0..most);
            let event = waiting[which].pop().unwrap();
            all.push(self.record(event));
            if waiting[which].is_empty() {
                waiting.remove(which);
            }
        }
        all
    }

    /// One ride's events, without times.
    pub fn life(&mut self) -> Vec<Event> {
        self.rides += 1;
        let ride = RideId {
            place: ShardId(0),
            minted_by: ShardId(0),
            offset: self.rides,
        };
        let driver = DriverId::new(&format!("d{}", self.rides % 7)).unwrap();
        let at = Point::new(37.7749, -122.4194).unwrap();
        let drop = at.offset_m(
            self.random.random_range(300.0..9_000.0),
            self.random.random_range(-4_000.0..4_000.0),
        );
        let dropoff = self.random.random_bool(0.9).then_some(Place(drop));
        let later = Time(self.now + 1_000_000);
        let mut seq = 0;
        let mut next = || {
            seq += 1;
            seq
        };
        let mut life: Vec<Event> = vec![
            RideRequested {
                ride,
                ride_seq: next(),
                rider: RiderId::new(&format!("r{}", self.rides)).unwrap(),
                key: IdempotencyKey::new(&format!("k{}", self.rides)).unwrap(),
                pickup: Place(at),
                dropoff,
                class: VehicleClass::Economy,
                issued_at: Time(self.now),
                deadline: later,
                radius_m: 2_000,
                widen_at: later,
                pickup_point: None,
                airport: None,
            }
            .into(),
        ];
        if self.rides.is_multiple_of(5) {
            let to = Place(at.offset_m(-2_000.0, 6_000.0));
            life.push(
                DestinationChanged {
                    ride,
                    ride_seq: next(),
                    to,
                }
                .into(),
            );
        }
        let (attempt, hold_number) = (1, 1);
        let cancelled = |ride_seq, by, driver| -> Event {
            RideCancelled {
                ride,
                ride_seq,
                by,
                driver,
                keep_until: later,
                reason: None,
            }
            .into()
        };
        let fate = self.random.random_range(0..10);
        if fate == 0 {
            let why = UnfulfilledBecause::Deadline;
            life.push(
                RideUnfulfilled {
                    ride,
                    ride_seq: next(),
                    why,
                    keep_until: later,
                }
                .into(),
            );
            return life;
        }
        if fate == 1 {
            life.push(cancelled(next(), CancelledBy::Rider, None));
            return life;
        }
        life.push(
            DriverAssigned {
                ride,
                ride_seq: next(),
                driver: driver.clone(),
                attempt,
                hold_number,
                arrive_by: later,
            }
            .into(),
        );
        if fate == 2 {
            life.push(cancelled(next(), CancelledBy::Rider, Some(driver)));
            return life;
        }
        if fate == 3 {
            let (why, deadline) = (LostBecause::GaveBack, later);
            life.push(
                DriverLost {
                    ride,
                    ride_seq: next(),
                    driver,
                    attempt,
                    why,
                    deadline,
                    redispatches: 1,
                }
                .into(),
            );
            life.push(cancelled(next(), CancelledBy::Rider, None));
            return life;
        }
        life.push(
            DriverArrived {
                ride,
                ride_seq: next(),
                driver: driver.clone(),
                attempt,
                start_by: later,
            }
            .into(),
        );
        if fate == 4 {
            let by = if self.rides.is_multiple_of(2) {
                CancelledBy::NoShow
            } else {
                CancelledBy::Ops
            };
            life.push(cancelled(next(), by, Some(driver)));
            return life;
        }
        life.push(
            RideStarted {
                ride,
                ride_seq: next(),
                driver: driver.clone(),
                attempt,
                complete_by: later,
            }
            .into(),
        );
        let why = CompletedBecause::DriverReported;
        life.push(
            RideCompleted {
                ride,
                ride_seq: next(),
                driver,
                attempt,
                why,
                keep_until: later,
            }
            .into(),
        );
        life
    }
}

/// Waits for `what`, at most half a minute.
pub async fn until<F: Future<Output = bool>>(what: &str, mut is_so: impl FnMut() -> F) {
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(30);
    while !is_so().await {
        assert!(
            tokio::time::Instant::now() < deadline,
            "waited in vain: {what}"
        );
        // Between two looks at the condition; the deadline is above.
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

/// Databases to run a story on: always SQLite, and PostgreSQL where a server is installed (said when not; CI must have it).
pub struct Stores {
    dir: tempfile::TempDir,
    postgres: Option<postgres::Server>,
}

impl Stores {
    pub fn new() -> Stores {
        Stores {
            dir: tempfile::tempdir().unwrap(),
            postgres: postgres::Server::start(),
        }
    }

    /// Calls `story` with (which, address of an empty database for each name).
    pub async fn each<F: Future<Output = ()>>(
        &self,
        mut story: impl FnMut(Box<dyn Fn(&str) -> String>) -> F,
    ) {
        let dir = self.dir.path().to_path_buf();
        story(Box::new(move |name| {
            dir.join(format!("{name}.db")).display().to_string()
        }))
        .await;
        if let Some(server) = &self.postgres {
            let make = server.maker();
            story(Box::new(move |name| make(name))).await;
        }
    }
}
