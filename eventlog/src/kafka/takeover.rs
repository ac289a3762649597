//! Taking over shards (PROTOCOL 27, 28): whoever had them can change nothing any more, and everything he did is read.
//!
//! 1. Ask where the shards' partitions end (high watermark) and how far they are decided (last stable offset).
//! 2. Where they differ, somebody's transaction is open: fence him, by `init_transactions` under his transactional ids.
//!    They stand in the committed header, and in headers beyond the stable offset that nobody has committed. Without
//!    that a node that was only asleep could still commit, and one that died would hold the shard for the broker's
//!    transaction time-out. A fence that fails is tried again. What the coordinator calls decided needs none (`hanging`).
//! 3. Wait until everything up to the high watermark is decided. A fence works when the broker has taken it; its answer
//!    comes half a second later and is not waited for.
//! 4. Read the states to there, on from what this node has read of them before (`images`); the header among them says
//!    where to go on.
//!
//! The generation is checked when a transaction's offsets are sent, and headers are acknowledged before that. So a
//! transaction of an older generation either has its header below the high watermark of step 1, or never commits.
//!
//! All shards of an assignment at once, on threads of their own: the owner goes on polling, so that it stays in the
//! group however long this takes. A transaction that nobody ends although its producer is fenced is looked at by
//! `hanging`.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::consumer::ConsumerGroupMetadata;
use tracing::{info, warn};

use super::client::Isolation;
use super::hanging;
use super::log::Shared;
use super::owner::Sabotage;
use super::producing::{Transactor, retire};
use super::reader::LOOK;
use super::stored::{EVENTS, ShardImage, note_in};
use crate::{ReadError, RecoverError, Topic};

/// Shards read side by side.
pub(super) const READERS: usize = 4;
/// Partitions of a shard that a transaction of its owner writes.
const TOUCHED: usize = 3;
/// Before a fence that failed is tried again.
const FENCE_AGAIN: Duration = Duration::from_millis(200);
/// A transaction that is still open this long after its producer was fenced is one that the brokers have lost.
const HANGS_AFTER: Duration = Duration::from_millis(1_000);
/// Between two words about a takeover that waits.
const SAY_EVERY: Duration = Duration::from_secs(2);

/// A shard that is nobody else's any more.
pub(super) struct Taken {
    pub image: ShardImage,
    /// First command not yet consumed.
    pub next_input: u64,
}

type Outcome = Result<Taken, RecoverError>;

/// Shards on their way here. Dropping it gives them up.
pub(super) struct Takeover {
    began: Instant,
    /// Asked for, not handed over yet.
    shards: BTreeSet<u16>,
    came: Receiver<(u16, Outcome)>,
    /// Came, not handed over yet.
    ready: BTreeMap<u16, Outcome>,
    is_given_up: Arc<AtomicBool>,
}

impl Drop for Takeover {
    fn drop(&mut self) {
        // Relaxed: it only ends the work sooner.
        self.is_given_up.store(true, Ordering::Relaxed);
    }
}

impl Takeover {
    /// Begins. `metadata` is that of the assignment which gave the shards.
    pub(super) fn begin(
        shared: &Arc<Shared>,
        shards: BTreeSet<u16>,
        metadata: Option<Arc<ConsumerGroupMetadata>>,
        sabotage: Sabotage,
    ) -> Takeover {
        let (outcomes, came) = sync_channel(shards.len());
        let is_given_up = Arc::new(AtomicBool::new(false));
        let work = Work {
            began: Instant::now(),
            shared: Arc::clone(shared),
            metadata,
            sabotage,
            outcomes,
            is_given_up: Arc::clone(&is_given_up),
        };
        let asked: Vec<u16> = shards.iter().copied().collect();
        // If no thread can be had nothing comes, which is what `take` then says.
        drop(std::thread::Builder::new().spawn(move || work.run(&asked)));
        Takeover {
            began: Instant::now(),
            shards,
            came,
            ready: BTreeMap::new(),
            is_given_up,
        }
    }

    /// Is the shard on its way with this?
    pub(super) fn has(&self, shard: u16) -> bool {
        self.shards.contains(&shard)
    }

    /// Was everything handed over?
    pub(super) fn is_over(&self) -> bool {
        self.shards.is_empty()
    }

    /// How long it has been under way.
    pub(super) fn age(&self) -> Duration {
        self.began.elapsed()
    }

    /// The shard, if it is here.
    pub(super) fn take(&mut self, shard: u16) -> Option<Outcome> {
        use std::sync::mpsc::TryRecvError;
        loop {
            match self.came.try_recv() {
                Ok((came, outcome)) => drop(self.ready.insert(came, outcome)),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => {
                    for shard in &self.shards {
                        self.ready.entry(*shard).or_insert_with(|| {
                            Err(RecoverError::Unavailable("the takeover ended".into()))
                        });
                    }
                    break;
                }
            }
        }
        let outcome = self.ready.remove(&shard)?;
        self.shards.remove(&shard);
        Some(outcome)
    }
}

/// A shard as far as it is read.
struct Course {
    shard: u16,
    high: [u64; TOUCHED],
    read_to: u64,
    image: ShardImage,
    /// How long the states took that were there before anything was decided.
    image_took: Duration,
}

fn touched(shard: u16) -> [(Topic, u16); TOUCHED] {
    [
        (Topic::ShardState, shard),
        (EVENTS[0], shard),
        (EVENTS[1], shard),
    ]
}

struct Work {
    began: Instant,
    shared: Arc<Shared>,
    metadata: Option<Arc<ConsumerGroupMetadata>>,
    sabotage: Sabotage,
    outcomes: SyncSender<(u16, Outcome)>,
    is_given_up: Arc<AtomicBool>,
}

impl Work {
    fn is_given_up(&self) -> bool {
        self.is_given_up.load(Ordering::Relaxed)
    }

    fn say(&self, shard: u16, outcome: Outcome) {
        // Nobody listens after the takeover was given up.
        let _ = self.outcomes.send((shard, outcome));
    }

    fn run(&self, shards: &[u16]) {
        let (high, stable) = match self.ends(shards, true).and_then(|high| {
            let stable = self.ends(shards, false)?;
            Ok((high, stable))
        }) {
            Ok(ends) => ends,
            Err(why) => {
                for shard in shards {
                    self.say(*shard, Err(why.clone()));
                }
                return;
            }
        };
        let courses = shards.iter().zip(high).zip(stable);
        let courses = courses.map(|((shard, high), stable)| {
            let course = Course {
                shard: *shard,
                high,
                read_to: 0,
                image: ShardImage::default(),
                image_took: Duration::ZERO,
            };
            (course, stable)
        });
        let waits = self.sabotage != Sabotage::NoFenceNoWait;
        let open = self.side_by_side(courses.collect(), |(mut course, stable)| {
            let to = stable[0].min(course.high[0]);
            let asked = Instant::now();
            match self.shared.image_to(course.shard, to).map_err(failed) {
                Ok(read) => {
                    (course.image, course.read_to) = read;
                    course.image_took = asked.elapsed();
                }
                Err(why) => {
                    self.say(course.shard, Err(why));
                    return None;
                }
            }
            if waits && is_open(&stable, &course.high) {
                return Some(course);
            }
            self.finish(course);
            None
        });
        if !open.is_empty() {
            self.decide(open);
        }
    }

    /// High watermarks, or stable ends, of what the shards' owners write.
    fn ends(&self, shards: &[u16], is_high: bool) -> Result<Vec<[u64; TOUCHED]>, RecoverError> {
        let isolation = if is_high {
            Isolation::Everything
        } else {
            Isolation::Committed
        };
        let partitions: Vec<(Topic, u16)> =
            shards.iter().flat_map(|shard| touched(*shard)).collect();
        let ends = self
            .shared
            .reader
            .ends(isolation, &partitions)
            .map_err(failed)?;
        Ok(ends.as_chunks::<TOUCHED>().0.to_vec())
    }

    /// Does `each` for all, at most [`READERS`] at once, and gathers what it gives.
    fn side_by_side<T: Send, R: Send>(
        &self,
        all: Vec<T>,
        each: impl Fn(T) -> Option<R> + Sync,
    ) -> Vec<R> {
        let left = Mutex::new(all);
        let given = Mutex::new(Vec::new());
        let next = || left.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let readers = left.lock().map_or(1, |left| left.len().min(READERS));
        std::thread::scope(|scope| {
            for _ in 0..readers {
                scope.spawn(|| {
                    while !self.is_given_up()
                        && let Some(one) = next()
                    {
                        let gave = each(one);
                        given
                            .lock()
                            .unwrap_or_else(PoisonError::into_inner)
                            .extend(gave);
                    }
                });
            }
        });
        given.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self, course: &mut Course, to: u64) -> Result<(), RecoverError> {
        let from = course.read_to;
        course.read_to = to;
        self.shared
            .read_image(course.shard, from, to, &mut course.image)
            .map_err(failed)
    }

    fn finish(&self, course: Course) {
        let Course {
            shard,
            image,
            read_to,
            image_took,
            ..
        } = course;
        // For whoever wonders why a takeover took long.
        let (image_ms, read_ms) = (image_took.as_millis(), self.began.elapsed().as_millis());
        let outcome = where_to_go_on(&self.shared, shard, &image).map(|next_input| {
            let took_ms = self.began.elapsed().as_millis();
            info!(
                shard,
                next_input, read_to, image_ms, read_ms, took_ms, "shard read"
            );
            Taken { image, next_input }
        });
        self.say(shard, outcome);
    }

    /// Fences, and waits until everything is decided.
    fn decide(&self, mut open: Vec<Course>) {
        let mut ids = BTreeSet::new();
        open.retain(|course| match self.ids_of(course) {
            Ok(found) => {
                ids.extend(found);
                true
            }
            Err(why) => {
                self.say(course.shard, Err(why));
                false
            }
        });
        let fences = self.fence(&ids);
        let limit = Duration::from_millis(u64::from(self.shared.config.transaction_timeout_ms) * 2);
        let began = Instant::now();
        let mut said = began;
        while !open.is_empty() && !self.is_given_up() {
            let shards: Vec<u16> = open.iter().map(|course| course.shard).collect();
            // A broker that does not answer now is asked again until the time is over.
            let stable = self.ends(&shards, false);
            let mut still_open = Vec::new();
            let mut decided = Vec::new();
            for (index, course) in open.into_iter().enumerate() {
                let is_decided = stable
                    .as_ref()
                    .is_ok_and(|stable| !is_open(&stable[index], &course.high));
                if is_decided {
                    decided.push(course);
                } else {
                    still_open.push(course);
                }
            }
            self.side_by_side(decided, |mut course| -> Option<()> {
                let to = course.high[0];
                match self.read(&mut course, to) {
                    Ok(()) => self.finish(course),
                    Err(why) => self.say(course.shard, Err(why)),
                }
                None
            });
            open = still_open;
            if !open.is_empty() && said.elapsed() > SAY_EVERY {
                said = Instant::now();
                self.say_what_is_open(&open, fences.as_deref(), began.elapsed());
            }
            if began.elapsed() > limit {
                for course in &open {
                    let why = format!(
                        "a transaction on shard {} is still open after {limit:?}",
                        course.shard
                    );
                    self.say(course.shard, Err(RecoverError::Unavailable(why)));
                }
                return;
            }
            let is_fenced = fences
                .as_ref()
                .is_some_and(|fences| fences.all_since().is_some_and(|at| at > HANGS_AFTER));
            if !open.is_empty() && is_fenced {
                let shards: BTreeSet<u16> = open.iter().map(|course| course.shard).collect();
                for id in &ids {
                    hanging::end(&self.shared, id, &shards, self.metadata.as_ref());
                }
                if let Some(fences) = &fences {
                    fences.wait_anew();
                }
            }
            std::thread::park_timeout(LOOK);
        }
    }

    /// For the operator: which partitions keep shards away, and for what they wait.
    fn say_what_is_open(&self, open: &[Course], fences: Option<&Fences>, since: Duration) {
        let shards: Vec<u16> = open.iter().map(|course| course.shard).collect();
        let unfenced = fences.map_or(0, Fences::left);
        let stable = match self.ends(&shards, false) {
            Ok(stable) => stable,
            Err(why) => {
                return warn!(?shards, unfenced, ?since, %why, "a takeover waits: no broker says where the shards end");
            }
        };
        let partitions: Vec<String> = open
            .iter()
            .zip(stable)
            .flat_map(|(course, stable)| {
                let ends = course.high.into_iter().zip(stable);
                touched(course.shard)
                    .into_iter()
                    .zip(ends)
                    .filter(|(_, (high, stable))| stable < high)
                    .map(|((topic, shard), (high, stable))| {
                        format!("{topic}-{shard}: decided to {stable} of {high}")
                    })
            })
            .collect();
        warn!(
            ?partitions,
            unfenced,
            ?since,
            "a takeover waits for the end of transactions of the owner before (unfenced: those not yet fenced)"
        );
    }

    /// Under which transactional ids the shard may have been written.
    fn ids_of(&self, course: &Course) -> Result<BTreeSet<String>, RecoverError> {
        let mut ids: BTreeSet<String> = BTreeSet::new();
        ids.extend(
            course
                .image
                .note
                .iter()
                .flat_map(|note| note.ids.iter().cloned()),
        );
        let mut broken = None;
        self.shared
            .reader
            .scan(
                Isolation::Everything,
                (Topic::ShardState, course.shard),
                course.read_to,
                course.high[0],
                |inward| {
                    match note_in(&inward) {
                        Some(Ok(note)) => ids.extend(note.ids),
                        Some(Err(why)) => broken = Some(why),
                        None => {}
                    }
                    ControlFlow::Continue(())
                },
            )
            .map_err(failed)?;
        match broken {
            Some(why) => Err(RecoverError::Corrupt(format!(
                "shard {}: {why}",
                course.shard
            ))),
            None => Ok(ids),
        }
    }

    /// Side by side, each until it succeeds or this takeover is over.
    fn fence(&self, ids: &BTreeSet<String>) -> Option<Arc<Fences>> {
        if self.sabotage == Sabotage::NoFence {
            return None;
        }
        let fences = Arc::new(Fences {
            left: Mutex::new((ids.len(), Instant::now())),
        });
        for id in ids {
            let shared = Arc::clone(&self.shared);
            let is_given_up = Arc::clone(&self.is_given_up);
            let fences = Arc::clone(&fences);
            let id = id.clone();
            let fence = move || {
                // Relaxed: it only ends the work sooner.
                while !is_given_up.load(Ordering::Relaxed) {
                    if !hanging::may_be_fenced(&shared, &id) {
                        info!(id, "decided: not fenced");
                        return fences.one_more();
                    }
                    match Transactor::start(&shared.config, &shared.names, &id) {
                        Ok(fence) => {
                            info!(id, "fenced");
                            fences.one_more();
                            return retire(fence);
                        }
                        // Whatever it left open may still end by the broker's time-out.
                        Err(why) => warn!(id, %why, "could not fence"),
                    }
                    std::thread::park_timeout(FENCE_AGAIN);
                }
            };
            if let Err(why) = std::thread::Builder::new().spawn(fence) {
                warn!(%why, "no thread for a fence");
            }
        }
        Some(fences)
    }
}

/// Fences under way.
struct Fences {
    /// How many, and since when that is so.
    left: Mutex<(usize, Instant)>,
}

impl Fences {
    fn one_more(&self) {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        *left = (left.0.saturating_sub(1), Instant::now());
    }

    /// How many have not been answered.
    fn left(&self) -> usize {
        let left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        left.0
    }

    /// How long all of them have been answered.
    fn all_since(&self) -> Option<Duration> {
        let left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        (left.0 == 0).then(|| left.1.elapsed())
    }

    fn wait_anew(&self) {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        left.1 = Instant::now();
    }
}

fn is_open(stable: &[u64; TOUCHED], high: &[u64; TOUCHED]) -> bool {
    stable.iter().zip(high).any(|(stable, high)| stable < high)
}

/// PROTOCOL 27: the header and the commands must fit together.
fn where_to_go_on(shared: &Shared, shard: u16, image: &ShardImage) -> Result<u64, RecoverError> {
    let first = shared
        .reader
        .first(Topic::RideCommands, shard)
        .map_err(failed)?;
    let high = shared
        .reader
        .ends(Isolation::Everything, &[(Topic::RideCommands, shard)])
        .map_err(failed)?[0];
    let committed = image.note.as_ref().and_then(|note| note.committed.as_ref());
    let inconsistent = |why: String| Err(RecoverError::Inconsistent(why));
    match committed {
        None if first > 0 => inconsistent(format!(
            "shard {shard} has no header, but its commands begin at offset {first}: its states are lost, or the topics belong to different cities"
        )),
        None => Ok(0),
        Some(at) if at.next_input < first => inconsistent(format!(
            "shard {shard} is to go on at command {}, but the log begins at {first}: commands were lost to retention before they were handled",
            at.next_input
        )),
        Some(at) if at.next_input > high => inconsistent(format!(
            "shard {shard} is to go on at command {}, but the log ends at {high}: commands were lost, or the topics belong to different cities",
            at.next_input
        )),
        Some(at) => Ok(at.next_input),
    }
}

fn failed(why: ReadError) -> RecoverError {
    match why {
        ReadError::Corrupt(why) => RecoverError::Corrupt(why),
        other => RecoverError::Unavailable(other.to_string()),
    }
}
