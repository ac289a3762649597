//! The log over a real Apache Kafka keeps the contract of the log.
//!
//! An owner of the suite takes all shards from the owner before at once. Over Kafka that is what static membership does:
//! all owners of a test have the same instance name, so the newer one takes the older one's place in the group, and the
//! broker refuses the older from then on. How shards move between nodes of different names is in `kafka_takeover`.

use std::sync::Arc;
use std::time::SystemTime;

use cabrank_eventlog::contract::{Home, SHARDS};
use cabrank_eventlog::kafka::testing::{Broker, broker};
use cabrank_eventlog::kafka::{KafkaConfig, KafkaLog};
use cabrank_eventlog::{EventLog, ShardOwner, Topic, contract_suite};

struct OverKafka {
    config: KafkaConfig,
    log: Option<KafkaLog>,
}

impl OverKafka {
    fn fresh(broker: &Broker) -> OverKafka {
        // RUST_LOG=cabrank_eventlog=debug shows what the group and the brokers say.
        let _ = tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .with_test_writer()
            .try_init();
        let config = KafkaConfig {
            instance: Some("the-one-node".into()),
            ..broker.city(SHARDS)
        };
        // Some thousand events of a few bytes are to be trimmed within the test.
        broker.keep_little(&config, Topic::RideEvents, 64 * 1_024);
        let log = Some(KafkaLog::open(config.clone()).unwrap());
        OverKafka { config, log }
    }

    fn open(&self) -> &KafkaLog {
        self.log.as_ref().unwrap()
    }
}

impl Home for OverKafka {
    fn log(&self) -> Arc<dyn EventLog> {
        Arc::new(self.open().clone())
    }

    fn own(&self, name: &str) -> Box<dyn ShardOwner> {
        Box::new(self.open().own(name, "").unwrap())
    }

    fn reopen(&mut self) {
        drop(self.log.take());
        self.log = Some(KafkaLog::open(self.config.clone()).unwrap());
    }

    fn trims_after(&self) -> u64 {
        20_000
    }

    fn now_ms(&self) -> i64 {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        i64::try_from(since.unwrap().as_millis()).unwrap()
    }
}

contract_suite!(match broker() {
    Some(broker) => OverKafka::fresh(broker),
    None => return,
});
