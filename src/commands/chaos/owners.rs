//! Does a node answer for a shard after a newer owner of it has answered? (PROTOCOL 23)
//!
//! Every node is asked directly, over and over, for cars near a place of every shard. An answer carries the epoch under
//! which the node owns the shard. What breaks the promise: a question that was sent after the answer of a newer owner had
//! arrived, and was answered by an older one.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cabrank_matcher::rpc;
use cabrank_matcher::rpc::v1::NearbyRequest;
use cabrank_matcher::tls::ClusterTls;
use tokio::task::JoinHandle;

use crate::AnyError;

/// Between two rounds of questions to a node.
const ASK_EVERY: Duration = Duration::from_millis(40);
/// Longest wait for an answer.
const ANSWER: Duration = Duration::from_secs(1);
/// Where the question is about; a node answers by the shard that is named.
const PLACE_E7: (i32, i32) = (377_650_000, -1_224_350_000);

/// The answers under one epoch of a shard.
#[derive(Clone, Copy)]
struct Reign {
    first_answer: Instant,
    last_answer: Instant,
    /// When the last question that was answered had been sent.
    last_question: Instant,
}

/// Who answered when, by shard and epoch.
#[derive(Clone)]
pub struct Owners {
    shards: Arc<Mutex<Vec<BTreeMap<u64, Reign>>>>,
    tls: Option<Arc<ClusterTls>>,
}

impl Owners {
    /// Nobody has answered yet.
    pub fn new(shards: u16, tls: Option<Arc<ClusterTls>>) -> Owners {
        Owners {
            shards: Arc::new(Mutex::new(vec![BTreeMap::new(); usize::from(shards)])),
            tls,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<BTreeMap<u64, Reign>>> {
        self.shards.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answered(&self, shard: usize, epoch: u64, sent: Instant, received: Instant) {
        let mut shards = self.lock();
        let reign = shards[shard].entry(epoch).or_insert(Reign {
            first_answer: received,
            last_answer: received,
            last_question: sent,
        });
        reign.first_answer = reign.first_answer.min(received);
        reign.last_answer = reign.last_answer.max(received);
        reign.last_question = reign.last_question.max(sent);
    }

    /// Every shard of which two owners answered in the wrong order, in words.
    pub fn violations(&self) -> Vec<String> {
        let mut found = Vec::new();
        for (shard, reigns) in self.lock().iter().enumerate() {
            for (older, newer) in reigns.iter().zip(reigns.iter().skip(1)) {
                let late = older
                    .1
                    .last_question
                    .checked_duration_since(newer.1.first_answer);
                if let Some(late) = late.filter(|late| !late.is_zero()) {
                    found.push(format!(
                        "shard {shard}: the owner of epoch {} answered a question that was sent {late:?} after epoch {} had answered",
                        older.0, newer.0
                    ));
                }
            }
        }
        found
    }

    /// The shortest time between an older owner's last answer and a newer one's first, of the changes since `then`; negative
    /// if they overlap.
    pub fn margin_ms(&self, then: Instant) -> Option<i64> {
        let shards = self.lock();
        let changes = shards
            .iter()
            .flat_map(|reigns| reigns.values().zip(reigns.values().skip(1)));
        let margins =
            changes
                .filter(|(_, newer)| newer.first_answer > then)
                .map(|(older, newer)| {
                    let ms = |time: Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
                    match newer.first_answer.checked_duration_since(older.last_answer) {
                        Some(margin) => ms(margin),
                        None => -ms(older.last_answer - newer.first_answer),
                    }
                });
        margins.min()
    }

    /// How many times a shard has a newer owner since `then`.
    pub fn changes(&self, then: Instant) -> usize {
        let shards = self.lock();
        let reigns = shards.iter().flat_map(|reigns| reigns.values().skip(1));
        reigns.filter(|reign| reign.first_answer > then).count()
    }

    /// Asks the node at `address` until the result is dropped.
    pub fn watch(&self, address: &str) -> Result<Watch, AnyError> {
        let mut client = rpc::connect_lazy(address, self.tls.as_ref())?;
        let owners = self.clone();
        let count = self.lock().len();
        Ok(Watch(tokio::spawn(async move {
            loop {
                for shard in 0..count {
                    let question = NearbyRequest {
                        shard: u32::try_from(shard).unwrap_or(u32::MAX),
                        lat_e7: PLACE_E7.0,
                        lon_e7: PLACE_E7.1,
                        radius_m: 1.0,
                        k: 1,
                        classes: 0,
                        // What nobody vouches for is no answer for a shard.
                        unconfirmed_will_do: false,
                    };
                    let sent = Instant::now();
                    let answer = tokio::time::timeout(ANSWER, client.nearby(question)).await;
                    if let Ok(Ok(answer)) = answer {
                        owners.answered(shard, answer.get_ref().epoch, sent, Instant::now());
                    }
                }
                tokio::time::sleep(ASK_EVERY).await;
            }
        })))
    }
}

/// Questions to one node; they end with it.
pub struct Watch(JoinHandle<()>);

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_owner_may_be_late_with_an_answer_but_not_take_a_question() {
        let owners = Owners::new(1, None);
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        owners.answered(0, 1, at(0), at(1));
        owners.answered(0, 2, at(100), at(110));
        assert_eq!(owners.violations(), Vec::<String>::new());
        assert_eq!(owners.margin_ms(at(50)), Some(109));
        assert_eq!((owners.changes(at(50)), owners.changes(at(200))), (1, 0));
        // Asked before the new one answered, answered after: nobody can say that it was wrong.
        owners.answered(0, 1, at(105), at(120));
        assert_eq!(owners.violations(), Vec::<String>::new());
        owners.answered(0, 1, at(111), at(112));
        assert_eq!(owners.violations().len(), 1);
        assert!(owners.margin_ms(at(50)) < Some(0));
    }
}
