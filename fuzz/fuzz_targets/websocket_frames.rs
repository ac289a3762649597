//! RFC 6455 without I/O. Frames are the same however the bytes are cut; the first byte says where.
#![no_main]
use cabrank_gateway::fuzzing;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((cut, bytes)) = bytes.split_first() else { return };
    let whole = fuzzing::websocket_frames(bytes, usize::MAX);
    assert_eq!(fuzzing::websocket_frames(bytes, usize::from(*cut).max(1)), whole);
});
