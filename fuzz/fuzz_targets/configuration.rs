//! The engine's, node's and gateway's parts of the configuration file. What is accepted is written and read back the same.
#![no_main]
use cabrank_engine::EngineConfig;
use cabrank_gateway::GatewayConfig;
use cabrank_matcher::NodeConfig;
use libfuzzer_sys::fuzz_target;
use serde::Serialize;
use serde::de::DeserializeOwned;

fn read<C: DeserializeOwned + Serialize, E>(text: &str, check: impl Fn(&C) -> Result<(), E>) {
    let Ok(config) = toml::from_str::<C>(text) else { return };
    let _ = check(&config);
    if let Ok(written) = toml::to_string(&config) {
        let again: C = toml::from_str(&written).expect("we wrote it");
        assert_eq!(toml::to_string(&again).expect("it was written before"), written);
    }
}

fuzz_target!(|text: &str| {
    read(text, GatewayConfig::check);
    read(text, NodeConfig::check);
    read(text, EngineConfig::check);
});
