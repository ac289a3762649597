//! Traces of taxis and trips as `cabrank replay` reads them, plain or packed.
#![no_main]
use std::io::Write;

use libfuzzer_sys::fuzz_target;
use trace::{Reports, Trips, Window};

#[path = "../../loadgen/src/trace.rs"]
#[allow(dead_code, reason = "a part of it is enough here")]
mod trace;

fuzz_target!(|bytes: &[u8]| {
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    file.write_all(bytes).expect("room");
    let window = || Window::default();
    if let Ok(rows) = Reports::open(file.path(), window(), 1) {
        rows.take(10_000).for_each(drop);
    }
    if let Ok(rows) = Trips::open(file.path(), window()) {
        rows.take(10_000).for_each(drop);
    }
});
