//! A producer whose deliveries are reported on a thread of its own, which sleeps while there are none.
//!
//! The client crate's own (`ThreadedProducer`, rdkafka 0.39) polls for 100 ms at a time and spins through the last
//! millisecond of each, because what is left of it is rounded down to no wait: one per cent of a core for each producer,
//! and an idle node has five. Here a poll lasts [`POLL`], so that the same rounding costs a tenth of that.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::producer::{BaseProducer, Producer, PurgeConfig};

use super::producing::Deliveries;

/// One wait for deliveries, and how long a producer that was dropped may stay connected.
const POLL: Duration = Duration::from_secs(1);

/// The producer. Dropping it takes back what was not sent and does not wait: the client is closed by its thread.
pub(super) struct Polled {
    producer: Arc<BaseProducer<Deliveries>>,
    is_over: Arc<AtomicBool>,
}

impl Polled {
    pub(super) fn start(config: &ClientConfig, deliveries: Deliveries) -> KafkaResult<Polled> {
        let producer = Arc::new(BaseProducer::from_config_and_context(config, deliveries)?);
        let is_over = Arc::new(AtomicBool::new(false));
        let (polled, over) = (Arc::clone(&producer), Arc::clone(&is_over));
        std::thread::Builder::new()
            .name("cabrank-acks".into())
            .spawn(move || {
                // Relaxed: it only ends the thread; nothing else is read by it.
                while !over.load(Ordering::Relaxed) {
                    polled.poll(POLL);
                }
            })
            .map_err(|why| KafkaError::ClientCreation(why.to_string()))?;
        Ok(Polled { producer, is_over })
    }
}

impl Deref for Polled {
    type Target = BaseProducer<Deliveries>;

    fn deref(&self) -> &Self::Target {
        &self.producer
    }
}

impl Drop for Polled {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        self.producer
            .purge(PurgeConfig::default().queue().inflight());
    }
}
