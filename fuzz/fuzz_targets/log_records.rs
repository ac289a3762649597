//! Records of the log: events and commands. What is read is written and read back the same.
#![no_main]
use cabrank_events::{CommandRecord, EventRecord};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(record) = EventRecord::from_json(bytes) {
        let written = record.to_json();
        assert_eq!(EventRecord::from_json(&written).expect("we wrote it").to_json(), written);
    }
    if let Ok(record) = CommandRecord::from_json(bytes) {
        let written = record.to_json();
        assert_eq!(CommandRecord::from_json(&written).expect("we wrote it").to_json(), written);
    }
});
