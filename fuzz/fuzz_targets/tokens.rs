//! Tokens and sets of keys. No bytes but those of the keys' owner are believed, and no set brings a shared secret.
#![no_main]
use std::sync::LazyLock;

use cabrank_gateway::fuzzing;
use cabrank_gateway::token::{KeysConfig, TokenVerifier};
use libfuzzer_sys::fuzz_target;

static VERIFIER: LazyLock<TokenVerifier> = LazyLock::new(|| {
    let keys = KeysConfig {
        secret: "only this process knows this secret of more than 32 bytes".into(),
        ..KeysConfig::default()
    };
    TokenVerifier::new(&keys).expect("a good secret")
});

fuzz_target!(|bytes: &[u8]| {
    if let Ok(text) = std::str::from_utf8(bytes) {
        assert!(VERIFIER.verify(text).is_err());
    }
    // The claims alone, as if their signature had been right.
    fuzzing::claims(bytes);
    fuzzing::set_of_keys(bytes);
    fuzzing::revocation(bytes);
});
