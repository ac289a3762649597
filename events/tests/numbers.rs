//! What a node reads back is what was written, to the last bit: else two nodes that read the same log would differ.

use cabrank_events::Place;
use cabrank_events::wire::{FromDriver, Ping};

/// Random finite numbers of every size (xorshift64; Marsaglia 2003).
fn numbers() -> impl Iterator<Item = f64> {
    let mut bits = 0x9E37_79B9_7F4A_7C15_u64;
    std::iter::repeat_with(move || {
        bits ^= bits << 13;
        bits ^= bits >> 7;
        bits ^= bits << 17;
        f64::from_bits(bits)
    })
    .filter(|number| number.is_finite())
}

#[test]
fn a_position_is_read_as_it_was_written() {
    for (lat, lon) in numbers().zip(numbers().skip(1)).take(20_000) {
        let written = FromDriver::Ping(Ping {
            lat,
            lon,
            time: None,
            seq: 0,
            accuracy: None,
        });
        let text = serde_json::to_string(&written).unwrap();
        assert_eq!(
            serde_json::from_str::<FromDriver>(&text).unwrap(),
            written,
            "{text}"
        );
    }
}

#[test]
fn a_place_in_an_event_is_read_as_it_was_written() {
    for micros in numbers().take(20_000) {
        let share = (micros.to_bits() >> 11) as f64 / (1_u64 << 53) as f64;
        let text = format!("{{\"lat\":{},\"lon\":{}}}", 90.0 * share, -180.0 * share);
        let place: Place = serde_json::from_str(&text).unwrap();
        let again = serde_json::to_string(&place).unwrap();
        assert_eq!(
            serde_json::from_str::<Place>(&again).unwrap(),
            place,
            "{text}"
        );
    }
}

/// Found by the fuzzer.
#[test]
fn even_a_nonsensical_longitude_is_read_as_it_was_written() {
    let text = r#"{"type":"ping","lat":37.7749,"lon":-123333333333333333333333333333333333333333333333332.4194}"#;
    let read: FromDriver = serde_json::from_str(text).unwrap();
    let again = serde_json::to_string(&read).unwrap();
    assert_eq!(serde_json::from_str::<FromDriver>(&again).unwrap(), read);
}
