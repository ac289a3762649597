//! Who waits for the outcome of which command?
//!
//! A waiter is registered before its command is handed in, so no outcome can pass it by. Several may wait for one id
//! (a repeated message). A waiter that is dropped is forgotten. Bounded: see [`Outcomes::new`].

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use cabrank_events::command::Outcome;
use cabrank_events::{CommandId, PickupPoint, RideId};
use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use tokio::sync::oneshot;

/// What became of a command, committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Done or not.
    pub outcome: Outcome,
    /// The ride it was about or made.
    pub ride: Option<RideId>,
    /// Where the rider is fetched instead of where they asked.
    pub pickup_point: Option<Box<PickupPoint>>,
}

struct Waiter {
    number: u64,
    since: Instant,
    answer: oneshot::Sender<Answer>,
}

/// All waiters of a gateway.
pub struct Outcomes {
    waiters: DashMap<CommandId, Vec<Waiter>>,
    count: AtomicUsize,
    numbers: AtomicU64,
    max: usize,
}

/// As many wait as allowed.
#[derive(Debug, PartialEq, Eq)]
pub struct TooManyWaiting;

impl Outcomes {
    /// At most `max` wait at once; more are turned away.
    pub fn new(max: usize) -> Self {
        Self {
            waiters: DashMap::new(),
            count: AtomicUsize::new(0),
            numbers: AtomicU64::new(0),
            max,
        }
    }

    /// Registers a waiter.
    pub fn wait_for(self: &Arc<Self>, id: CommandId) -> Result<Waiting, TooManyWaiting> {
        // Relaxed: a count for a bound and unique numbers; nothing else is published through them.
        if self.count.fetch_add(1, Ordering::Relaxed) >= self.max {
            self.count.fetch_sub(1, Ordering::Relaxed);
            return Err(TooManyWaiting);
        }
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let (answer, receiver) = oneshot::channel();
        self.waiters.entry(id.clone()).or_default().push(Waiter {
            number,
            since: Instant::now(),
            answer,
        });
        Ok(Waiting {
            outcomes: self.clone(),
            id,
            number,
            receiver,
        })
    }

    /// How many wait now.
    pub fn waiting(&self) -> usize {
        // Relaxed: a number to look at.
        self.count.load(Ordering::Relaxed)
    }

    /// Tells everybody who waits for `id`, and says how long the first of them has waited.
    pub fn resolve(&self, id: &CommandId, answer: Answer) -> Option<Duration> {
        let (_, waiters) = self.waiters.remove(id)?;
        let waited = waiters.first().map(|first| first.since.elapsed());
        for waiter in waiters {
            // Whoever has gone does not want to know.
            let _ = waiter.answer.send(answer.clone());
        }
        waited
    }

    fn forget(&self, id: &CommandId, number: u64) {
        self.count.fetch_sub(1, Ordering::Relaxed);
        if let Entry::Occupied(mut waiters) = self.waiters.entry(id.clone()) {
            waiters.get_mut().retain(|waiter| waiter.number != number);
            if waiters.get().is_empty() {
                waiters.remove();
            }
        }
    }
}

/// A registered waiter.
pub struct Waiting {
    outcomes: Arc<Outcomes>,
    id: CommandId,
    number: u64,
    receiver: oneshot::Receiver<Answer>,
}

impl Waiting {
    /// The command waited for.
    pub fn id(&self) -> &CommandId {
        &self.id
    }

    /// The answer, if it is here; the task hears of it when it comes. `None` when it will never come.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Answer>> {
        Pin::new(&mut self.receiver).poll(cx).map(Result::ok)
    }

    /// The answer, or `None` when there was none within `timeout`: the outcome is unknown then.
    pub async fn answer(mut self, timeout: Duration) -> Option<Answer> {
        tokio::time::timeout(timeout, &mut self.receiver)
            .await
            .ok()?
            .ok()
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.outcomes.forget(&self.id, self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> CommandId {
        CommandId::new(text).unwrap()
    }

    fn done() -> Answer {
        Answer {
            outcome: Outcome::Done,
            ride: None,
            pickup_point: None,
        }
    }

    #[tokio::test]
    async fn everybody_who_waits_for_a_command_hears_of_it_and_nobody_else() {
        let outcomes = Arc::new(Outcomes::new(8));
        let first = outcomes.wait_for(id("driver/d/1")).unwrap();
        let second = outcomes.wait_for(id("driver/d/1")).unwrap();
        let other = outcomes.wait_for(id("driver/d/2")).unwrap();
        outcomes.resolve(&id("driver/d/1"), done());
        let long = Duration::from_secs(10);
        assert_eq!(first.answer(long).await, Some(done()));
        assert_eq!(second.answer(long).await, Some(done()));
        assert_eq!(other.answer(Duration::from_millis(1)).await, None);
        assert!(outcomes.waiters.is_empty());
    }

    #[test]
    fn waiters_are_bounded_and_the_gone_make_room() {
        let outcomes = Arc::new(Outcomes::new(2));
        let first = outcomes.wait_for(id("a")).unwrap();
        let _second = outcomes.wait_for(id("a")).unwrap();
        assert_eq!(outcomes.wait_for(id("b")).err(), Some(TooManyWaiting));
        drop(first);
        assert!(outcomes.wait_for(id("b")).is_ok());
        assert_eq!(outcomes.waiters.len(), 1, "only the second waits");
    }
}
