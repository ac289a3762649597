//! Cursors of the event stream: what is one is written the same again.
#![no_main]
use cabrank_gateway::{cursor_from_text, cursor_to_text};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Some(cursor) = cursor_from_text(text) {
        assert_eq!(cursor_to_text(&cursor), text);
    }
});
