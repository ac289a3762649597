//! Bodies and queries of calls.
#![no_main]
use cabrank_gateway::fuzzing;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    fuzzing::http_bodies(bytes);
    if let Ok(text) = std::str::from_utf8(bytes) {
        fuzzing::query(text);
    }
});
