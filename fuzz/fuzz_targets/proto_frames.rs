//! Binary frames of phones. What is read is written the same again.
#![no_main]
use cabrank_events::proto;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    // Bytes are compared, because what is not a number does not equal itself.
    if let Ok(message) = proto::decode_from_driver(bytes) {
        let written = proto::encode_from_driver(&message);
        let again = proto::decode_from_driver(&written).expect("we wrote it");
        assert_eq!(proto::encode_from_driver(&again), written);
    }
    if let Ok(message) = proto::decode_from_rider(bytes) {
        let written = proto::encode_from_rider(&message);
        assert_eq!(proto::decode_from_rider(&written).ok(), Some(message));
    }
    let _ = proto::decode_to_driver(bytes);
    let _ = proto::decode_to_rider(bytes);
});
