//! `cabrank own-broker`: an Apache Kafka to try things with.

use std::process::ExitCode;

use cabrank_eventlog::kafka::testing::Broker;

use super::{block_on, shutdown_signal};
use crate::AnyError;

/// Starts one broker on free ports of 127.0.0.1, prints its address, and removes it with its data at SIGTERM or Ctrl-C.
pub fn run() -> Result<ExitCode, AnyError> {
    let broker = Broker::start(1).ok_or("no broker: it needs a JDK 17 and Maven")?;
    println!("{}", broker.bootstrap());
    block_on(async {
        shutdown_signal()?.cancelled().await;
        Ok(())
    })?;
    Ok(ExitCode::SUCCESS)
}
