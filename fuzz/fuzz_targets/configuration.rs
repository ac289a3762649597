//! The gateway's part of the configuration file. What is accepted is written and read back the same.
#![no_main]
use cabrank_gateway::GatewayConfig;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(config) = toml::from_str::<GatewayConfig>(text) {
        let _ = config.check();
        if let Ok(written) = toml::to_string(&config) {
            let again: GatewayConfig = toml::from_str(&written).expect("we wrote it");
            assert_eq!(toml::to_string(&again).expect("it was written before"), written);
        }
    }
});
