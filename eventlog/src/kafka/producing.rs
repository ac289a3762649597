//! Producers: whose records were taken, and when. One kind for submitted commands, one for transactions.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::consumer::ConsumerGroupMetadata;
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header as KafkaHeader, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer, ProducerContext};
use rdkafka::{ClientContext, Message, TopicPartitionList};
use tracing::warn;

use super::client;
use super::config::KafkaConfig;
use super::inbox::{NOTE, Words};
use super::names::Names;
use super::polled::Polled;
use crate::Topic;

/// What became of what was handed over.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Handed over.
    pub sent: u64,
    /// Acknowledged or failed.
    pub done: u64,
    /// Failed.
    pub failed: u64,
    /// The first failure not yet told to anybody.
    pub failure: Option<KafkaError>,
    /// Did the last delivery fail?
    pub is_failing: bool,
    places: BTreeMap<(Topic, u16), Place>,
    /// The brokers' clock when they appended the last one.
    appended_ms: Option<i64>,
}

/// The same of one partition, where deliveries come in the order of sending.
#[derive(Clone, Copy, Debug, Default)]
struct Place {
    sent: u64,
    done: u64,
    /// One past the last offset acknowledged.
    end: Option<u64>,
}

/// The client library reports deliveries here.
pub(super) struct Deliveries {
    names: Names,
    pub tally: Mutex<Tally>,
    changed: Condvar,
}

impl ClientContext for Deliveries {
    fn log(&self, level: rdkafka::config::RDKafkaLogLevel, facility: &str, message: &str) {
        Words.log(level, facility, message);
    }
    fn error(&self, error: KafkaError, reason: &str) {
        Words.error(error, reason);
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        let mut tally = self.tally();
        tally.done += 1;
        let message = match result {
            Ok(message) | Err((_, message)) => message,
        };
        let place = self
            .names
            .topic(message.topic())
            .zip(u16::try_from(message.partition()).ok())
            .map(|at| tally.places.entry(at).or_default());
        if let Some(place) = place {
            place.done += 1;
            if result.is_ok()
                && let Ok(offset) = u64::try_from(message.offset())
            {
                place.end = Some(offset + 1).max(place.end);
            }
        }
        match result {
            Ok(message) => {
                tally.is_failing = false;
                tally.appended_ms = message.timestamp().to_millis();
            }
            Err((why, _)) => {
                tally.failed += 1;
                tally.is_failing = true;
                tally.failure.get_or_insert_with(|| why.clone());
            }
        }
        if tally.done == tally.sent || tally.failure.is_some() {
            self.changed.notify_all();
        }
    }
}

impl Deliveries {
    pub(super) fn new(names: &Names) -> Deliveries {
        Deliveries {
            names: names.clone(),
            tally: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    pub(super) fn tally(&self) -> std::sync::MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until all that was handed over before is done. False if it took too long.
    pub(super) fn wait(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let mut tally = self.tally();
        let asked: Vec<((Topic, u16), u64)> = tally
            .places
            .iter()
            .map(|(at, place)| (*at, place.sent))
            .collect();
        let is_under_way = |tally: &Tally| {
            let done = |at| tally.places.get(at).map_or(0, |place| place.done);
            asked.iter().any(|(at, sent)| done(at) < *sent)
        };
        while is_under_way(&tally) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            // In slices: a delivery that is not the last one wakes nobody.
            tally = self
                .changed
                .wait_timeout(tally, left.min(Duration::from_millis(20)))
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        true
    }
}

/// A record on its way out.
pub(super) struct Outward<'a> {
    pub topic: Topic,
    pub partition: u16,
    pub key: &'a [u8],
    /// `None` is a tombstone.
    pub value: Option<&'a [u8]>,
    /// What goes into Kafka's header `cabrank`.
    pub note: Option<&'a [u8]>,
}

/// Kafka's header on every event.
const CLOUD_EVENT: (&str, &[u8]) = (
    "content-type",
    b"application/cloudevents+json; charset=UTF-8",
);

/// Hands a record to a producer and counts it.
pub(super) fn send(producer: &Polled, names: &Names, record: &Outward<'_>) -> KafkaResult<()> {
    let mut out: BaseRecord<'_, [u8], [u8], ()> = BaseRecord::to(names.of(record.topic))
        .partition(i32::from(record.partition))
        .key(record.key);
    if let Some(value) = record.value {
        out = out.payload(value);
    }
    let header = match (record.note, record.topic) {
        (Some(note), _) => Some((NOTE.to_str().unwrap_or_default(), note)),
        // CloudEvents over Kafka, structured mode: what tells consumers that the value is a whole event.
        (None, Topic::RideEvents | Topic::PersonEvents) => Some(CLOUD_EVENT),
        (None, _) => None,
    };
    if let Some((key, value)) = header {
        let value = Some(value);
        out = out.headers(OwnedHeaders::new().insert(KafkaHeader { key, value }));
    }
    let deliveries = producer.context();
    // Counted before: the delivery may be reported before `send` returns.
    deliveries.tally().count(record, true);
    producer.send(out).map_err(|(why, _)| {
        deliveries.tally().count(record, false);
        why
    })
}

impl Tally {
    /// A record was handed over, or was not after all.
    fn count(&mut self, record: &Outward<'_>, is_sent: bool) {
        let place = self
            .places
            .entry((record.topic, record.partition))
            .or_default();
        if is_sent {
            place.sent += 1;
            self.sent += 1;
        } else {
            place.sent -= 1;
            self.sent -= 1;
        }
    }
}

/// Longest wait for an abort.
const ABORT_PATIENCE: Duration = Duration::from_millis(500);
/// Longest wait for the group to take a transaction's offsets: a few ms, and some hundred after a broker came back.
const OFFSETS_PATIENCE: Duration = Duration::from_millis(2_500);
/// How much longer than that the client library is waited for, which should keep the time itself.
const OFFSETS_GRACE: Duration = Duration::from_millis(100);

/// A producer of transactions under one transactional id.
pub(super) struct Transactor {
    id: String,
    producer: Arc<Polled>,
    offsets: OnceLock<OffsetsDesk>,
    names: Names,
    patience: Duration,
}

type Offsets = (TopicPartitionList, Arc<ConsumerGroupMetadata>);

/// A thread that sends the offsets of a producer's transactions, because nobody can wait for the client library: it has
/// a time limit for this and does not keep it (librdkafka 2.12, its issues 5456 and 5511). A broker that goes away
/// between the two requests of which this consists, and comes back, is enough for a wait without end.
///
/// A thread that never comes back keeps its producer, since a client must not be closed under a call. That is a few
/// threads and connections for each outage at most, and they are released when the broker's state changes again.
struct OffsetsDesk {
    asks: SyncSender<Offsets>,
    answers: Mutex<Receiver<KafkaResult<()>>>,
}

impl OffsetsDesk {
    fn open(producer: &Arc<Polled>, patience: Duration) -> OffsetsDesk {
        let (asks, asked) = sync_channel::<Offsets>(1);
        let (gives, answers) = sync_channel(1);
        let producer = Arc::clone(producer);
        let send = move || {
            while let Ok((offsets, metadata)) = asked.recv() {
                let sent = producer.send_offsets_to_transaction(&offsets, &metadata, patience);
                if gives.send(sent).is_err() {
                    return;
                }
            }
        };
        // If no thread can be had nobody answers, which is what `send` then says.
        drop(std::thread::Builder::new().spawn(send));
        OffsetsDesk {
            asks,
            answers: Mutex::new(answers),
        }
    }

    fn send(&self, offsets: Offsets, patience: Duration) -> KafkaResult<()> {
        let gone = KafkaError::Global(RDKafkaErrorCode::OperationTimedOut);
        // Full while an earlier call is under way: then this producer is of no use any more.
        if self.asks.try_send(offsets).is_err() {
            return Err(gone);
        }
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        match answers.recv_timeout(patience) {
            Ok(sent) => sent,
            Err(RecvTimeoutError::Timeout) => {
                warn!(
                    "the client library does not come back from sending offsets: its producer is given up"
                );
                Err(gone)
            }
            Err(RecvTimeoutError::Disconnected) => Err(gone),
        }
    }
}

impl Transactor {
    /// Makes it and fences whoever had this id before: what it left open is ended when this returns.
    pub(super) fn start(config: &KafkaConfig, names: &Names, id: &str) -> KafkaResult<Transactor> {
        // Whoever waits here does not poll: half of what the group allows between two polls.
        let patience = config.transaction_timeout_ms.min(config.max_poll_ms / 2);
        let patience = Duration::from_millis(u64::from(patience));
        let producer = Polled::start(&client::transactional(config, id), Deliveries::new(names))?;
        // With a broker already connected the coordinator is found at once; without, after a fixed half second or more.
        producer
            .client()
            .fetch_metadata(Some(names.of(Topic::ShardState)), patience)?;
        producer.init_transactions(patience)?;
        Ok(Transactor {
            id: id.to_owned(),
            producer: Arc::new(producer),
            offsets: OnceLock::new(),
            names: names.clone(),
            patience,
        })
    }

    /// The transactional id.
    pub(super) fn id(&self) -> &str {
        &self.id
    }

    pub(super) fn begin(&self) -> KafkaResult<()> {
        let deliveries = self.producer.context();
        *deliveries.tally() = Tally::default();
        self.producer.begin_transaction()
    }

    pub(super) fn send(&self, record: &Outward<'_>) -> KafkaResult<()> {
        send(&self.producer, &self.names, record)
    }

    /// Waits until everything sent is acknowledged; gives one past the last offset of each partition written to.
    pub(super) fn acknowledged(&self) -> KafkaResult<BTreeMap<(Topic, u16), u64>> {
        let deliveries = self.producer.context();
        let in_time = deliveries.wait(self.patience);
        let mut tally = deliveries.tally();
        if let Some(why) = tally.failure.take() {
            return Err(why);
        }
        if !in_time {
            return Err(KafkaError::Flush(RDKafkaErrorCode::OperationTimedOut));
        }
        let ends = tally.places.iter();
        Ok(ends
            .filter_map(|(at, place)| Some((*at, place.end?)))
            .collect())
    }

    /// The brokers' clock when they appended the last record that was acknowledged.
    pub(super) fn appended_ms(&self) -> Option<i64> {
        self.producer.context().tally().appended_ms
    }

    /// The group agrees that these are the offsets, or the transaction must not be committed and nothing more be done
    /// with this producer: whether they were taken is not known after a time-out.
    pub(super) fn send_offsets(
        &self,
        offsets: TopicPartitionList,
        metadata: &Arc<ConsumerGroupMetadata>,
    ) -> KafkaResult<()> {
        let patience = self.patience.min(OFFSETS_PATIENCE);
        self.offsets
            .get_or_init(|| OffsetsDesk::open(&self.producer, patience))
            .send((offsets, Arc::clone(metadata)), patience + OFFSETS_GRACE)
    }

    pub(super) fn commit(&self) -> KafkaResult<()> {
        // A commit that finds deliveries still under way waits a fixed 100 ms for them; the last report is taken out of
        // the client's books just after it was handed to us.
        let deadline = Instant::now() + self.patience;
        while self.producer.in_flight_count() > 0 && Instant::now() < deadline {
            std::thread::yield_now();
        }
        self.producer.commit_transaction(self.patience)
    }

    /// Ends the transaction without effect. If that fails, too, a successor's fence or the broker's time-out does it;
    /// so it is waited for only as long as a broker takes that is there.
    pub(super) fn abort(&self) -> KafkaResult<()> {
        self.producer
            .abort_transaction(self.patience.min(ABORT_PATIENCE))
    }
}

/// Two producers that take turns, still one transaction at a time: a broker refuses, for 20 ms, a transaction begun by
/// the producer that has just ended one.
pub(super) struct Pair {
    two: [Transactor; 2],
    turn: usize,
    pub ids: Vec<String>,
}

impl Pair {
    /// `name` must be one that no producer ever had: fencing the past must never hit the living (PROTOCOL 28).
    pub(super) fn start(config: &KafkaConfig, names: &Names, name: &str) -> KafkaResult<Pair> {
        let ids = [format!("{name}.0"), format!("{name}.1")];
        let (first, second) = std::thread::scope(|scope| {
            let first = scope.spawn(|| Transactor::start(config, names, &ids[0]));
            let second = Transactor::start(config, names, &ids[1]);
            let gone = || KafkaError::Canceled;
            (first.join().unwrap_or_else(|_| Err(gone())), second)
        });
        Ok(Pair {
            two: [first?, second?],
            turn: 0,
            ids: ids.to_vec(),
        })
    }

    /// The other one, for the next transaction.
    pub(super) fn next(&mut self) -> &Transactor {
        self.turn = (self.turn + 1) % self.two.len();
        self.current()
    }

    /// The one whose turn it is.
    pub(super) fn current(&self) -> &Transactor {
        &self.two[self.turn]
    }
}

/// What a failed transaction means for its owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// Another node has this node's place in the group (static membership): stop.
    Replaced,
    /// The group gave the shards to others, or is about to.
    Moved,
    /// The brokers, or what was sent.
    Trouble,
}

/// Reads an error of a transaction.
pub(super) fn meaning(why: &KafkaError) -> Meaning {
    use RDKafkaErrorCode as E;
    let code = match why {
        KafkaError::Transaction(why) => Some(why.code()),
        other => other.rdkafka_error_code(),
    };
    match code {
        Some(E::FencedInstanceId) => Meaning::Replaced,
        Some(E::IllegalGeneration | E::UnknownMemberId | E::RebalanceInProgress) => Meaning::Moved,
        _ => Meaning::Trouble,
    }
}

/// Closes a client elsewhere: it takes up to a tenth of a second, and nobody waits for it.
pub(super) fn retire<T: Send + 'static>(client: T) {
    // If no thread can be had, the closure, and the client with it, is dropped here.
    drop(std::thread::Builder::new().spawn(move || drop(client)));
}

#[cfg(test)]
mod tests {
    use rdkafka::consumer::Consumer;
    use rdkafka::mocking::{MockCluster, MockCoordinator};

    use super::super::inbox::Inbox;
    use super::*;

    /// What a restarted broker does by chance, done on purpose: it is away between the two requests.
    #[test]
    fn offsets_that_the_client_library_never_comes_back_from_are_not_waited_for() {
        let brokers = MockCluster::new(2).unwrap();
        let config = KafkaConfig {
            brokers: brokers.bootstrap_servers(),
            ..KafkaConfig::default()
        };
        let names = Names::new("");
        let commands = names.of(Topic::RideCommands);
        brokers.create_topic(commands, 1, 2).unwrap();
        brokers
            .create_topic(names.of(Topic::ShardState), 1, 2)
            .unwrap();
        let of = |kind: fn(String) -> MockCoordinator, key: &str, broker| {
            brokers.coordinator(kind(key.to_owned()), broker).unwrap();
        };
        of(MockCoordinator::Transaction, "id", 1);
        of(MockCoordinator::Group, &config.group, 2);
        brokers
            .partition_leader(commands, 0, Some(1))
            .and_then(|()| brokers.partition_leader(names.of(Topic::ShardState), 0, Some(1)))
            .unwrap();

        let producer = Transactor::start(&config, &names, "id").unwrap();
        producer.begin().unwrap();
        brokers.broker_down(2).unwrap();
        let stranger = Inbox::new(&client::member(&config), &names).unwrap();
        let metadata = Arc::new(stranger.consumer().group_metadata().unwrap());
        let mut offsets = TopicPartitionList::new();
        offsets
            .add_partition_offset(commands, 0, rdkafka::Offset::Offset(1))
            .unwrap();
        let asked = Instant::now();
        let sent = producer.send_offsets(offsets.clone(), &metadata);
        assert!(sent.is_err(), "nobody can have taken them");
        let waited = asked.elapsed();
        assert!(waited < OFFSETS_PATIENCE * 2, "{waited:?}");
        // And whoever goes on with this producer is told at once.
        let asked = Instant::now();
        assert!(producer.send_offsets(offsets, &metadata).is_err());
        assert!(producer.abort().is_err());
        assert!(asked.elapsed() < OFFSETS_PATIENCE * 2);
        // It lets go when the broker is there again.
        brokers.broker_up(2).unwrap();
        drop(producer);
    }
}
