//! Text frames of phones. The reader of the usual ping agrees with the general one wherever it says anything; what is read
//! is written and read as the same.
#![no_main]
use cabrank_events::wire::{FromDriver, FromRider};
use cabrank_gateway::ping_json;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let driver = serde_json::from_str::<FromDriver>(text);
    let _ = serde_json::from_str::<FromRider>(text);
    if let Some(ping) = ping_json::read(text) {
        assert_eq!(driver.expect("both read it"), FromDriver::Ping(ping));
    } else if let Ok(message) = driver
        && can_be_written(&message)
    {
        let again = serde_json::to_string(&message).expect("it was read");
        assert_eq!(serde_json::from_str::<FromDriver>(&again).expect("we wrote it"), message);
    }
});

/// JSON has no infinite numbers, and a radius of 1e39 m is one for a single. (The ingest pipeline refuses it.)
fn can_be_written(message: &FromDriver) -> bool {
    let pings = match message {
        FromDriver::Ping(ping) => std::slice::from_ref(ping),
        FromDriver::Pings { pings } => pings,
        _ => &[],
    };
    pings.iter().all(|ping| ping.accuracy.is_none_or(f32::is_finite))
}
