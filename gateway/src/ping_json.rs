//! The one message that is nearly all messages: a ping in JSON, as phones write it.
//!
//! Reads `{"type":"ping",...}` without spaces, with plain decimal numbers, in one pass and without looking at a byte
//! twice. Whatever is written in another way gives `None` and is read by the general reader, which also says what is
//! wrong; so this file decides nothing. `tests` compare both on random and on damaged messages.

use cabrank_events::wire::Ping;

/// Powers of ten that a double holds exactly.
const POWERS: [f64; 23] = [
    1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16,
    1e17, 1e18, 1e19, 1e20, 1e21, 1e22,
];
/// Below this a double holds every whole number exactly.
const EXACT_BELOW: u64 = 1 << 53;
/// So many digits always fit into 64 bits.
const DIGITS_MAX: usize = 19;

/// A number as it stands there: `digits` with the point `decimals` places from the right.
struct Number {
    is_negative: bool,
    digits: u64,
    decimals: usize,
}

impl Number {
    /// The nearest double: one correctly rounded division of two that are exact (Clinger's fast path).
    fn float(&self) -> Option<f64> {
        let power = POWERS.get(self.decimals)?;
        let size = (self.digits < EXACT_BELOW).then(|| self.digits as f64 / power)?;
        Some(if self.is_negative { -size } else { size })
    }

    /// The nearest single: the double rounded once more. Half way between two singles the double may have been
    /// rounded to there, and rounding it again could go the wrong way; that is left to the general reader.
    fn single(&self) -> Option<f32> {
        const BELOW_SINGLE: u64 = (1 << 29) - 1;
        const HALF_WAY: u64 = 1 << 28;
        let double = self.float()?;
        (double.to_bits() & BELOW_SINGLE != HALF_WAY).then_some(double as f32)
    }

    fn whole(&self) -> Option<i64> {
        // `-0` and `1.0` are no whole numbers to the general reader.
        if self.decimals > 0 || (self.is_negative && self.digits == 0) {
            return None;
        }
        let size = i64::try_from(self.digits).ok()?;
        Some(if self.is_negative { -size } else { size })
    }
}

/// Reads a number that goes on to the first byte that belongs to none; what is behind it.
fn number(text: &[u8]) -> Option<(Number, &[u8])> {
    let (is_negative, text) = match text {
        [b'-', rest @ ..] => (true, rest),
        _ => (false, text),
    };
    let mut digits = 0_u64;
    let mut at = 0;
    let mut point = None;
    loop {
        match text.get(at) {
            Some(digit @ b'0'..=b'9') => {
                // More digits than fit are refused below; until then the value may be nonsense.
                digits = digits
                    .wrapping_mul(10)
                    .wrapping_add(u64::from(digit - b'0'));
            }
            Some(b'.') if point.is_none() => point = Some(at),
            // An exponent is left to the general reader.
            Some(b'e' | b'E' | b'.') | None => return None,
            Some(_) => break,
        }
        at += 1;
    }
    let whole = point.unwrap_or(at);
    let decimals = point.map_or(0, |point| at - point - 1);
    let has_leading_zero = whole > 1 && text[0] == b'0';
    if whole == 0 || whole + decimals > DIGITS_MAX || has_leading_zero {
        return None;
    }
    if point.is_some() && decimals == 0 {
        return None;
    }
    let number = Number {
        is_negative,
        digits,
        decimals,
    };
    Some((number, &text[at..]))
}

/// Reads a ping, or leaves it to the general reader.
pub fn read(text: &str) -> Option<Ping> {
    let mut rest = text.as_bytes().strip_prefix(br#"{"type":"ping","#)?;
    let (mut lat, mut lon, mut time, mut seq, mut accuracy) = (None, None, None, None, None);
    loop {
        let is_new = if let Some(after) = rest.strip_prefix(br#""lat":"#) {
            let (number, after) = number(after)?;
            rest = after;
            lat.replace(number.float()?).is_none()
        } else if let Some(after) = rest.strip_prefix(br#""lon":"#) {
            let (number, after) = number(after)?;
            rest = after;
            lon.replace(number.float()?).is_none()
        } else if let Some(after) = rest.strip_prefix(br#""time":"#) {
            let (number, after) = number(after)?;
            rest = after;
            time.replace(number.whole()?).is_none()
        } else if let Some(after) = rest.strip_prefix(br#""seq":"#) {
            let (number, after) = number(after)?;
            rest = after;
            seq.replace(u32::try_from(number.whole()?).ok()?).is_none()
        } else if let Some(after) = rest.strip_prefix(br#""accuracy":"#) {
            let (number, after) = number(after)?;
            rest = after;
            accuracy.replace(number.single()?).is_none()
        } else {
            return None;
        };
        match rest {
            [b',', after @ ..] if is_new => rest = after,
            [b'}'] if is_new => break,
            _ => return None,
        }
    }
    Some(Ping {
        lat: lat?,
        lon: lon?,
        time,
        seq: seq.unwrap_or(0),
        accuracy,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What this reader reads, the general one reads the same, to the last bit.
    fn check(text: &str) -> Option<Ping> {
        let read = read(text)?;
        let general: Ping = serde_json::from_str(text)
            .unwrap_or_else(|error| panic!("{text} was read, but: {error}"));
        let bits = |ping: &Ping| {
            let accuracy = ping.accuracy.map(f32::to_bits);
            (
                ping.lat.to_bits(),
                ping.lon.to_bits(),
                ping.time,
                ping.seq,
                accuracy,
            )
        };
        assert_eq!(bits(&read), bits(&general), "{text}");
        Some(read)
    }

    #[test]
    fn a_ping_as_phones_write_it_is_read_here() {
        for text in [
            r#"{"type":"ping","lat":37.7749,"lon":-122.4194,"time":1211500800000,"seq":1,"accuracy":8.0}"#,
            r#"{"type":"ping","lat":0,"lon":-0.0}"#,
            r#"{"type":"ping","seq":4294967295,"time":-5,"lon":179.99999999999,"lat":-89.1234567890123}"#,
        ] {
            assert!(check(text).is_some(), "{text}");
        }
    }

    #[test]
    fn what_is_written_in_another_way_is_left_to_the_general_reader() {
        for text in [
            r#"{"type":"ping","lat":37.7749,"lon":-122.4194,}"#,
            r#"{"type":"ping","lat":37.7749}"#,
            r#"{"type":"ping","lat":37.7749,"lon":1,"lat":2}"#,
            r#"{"type":"ping","lat":037.7,"lon":1}"#,
            r#"{"type":"ping","lat":37.,"lon":1}"#,
            r#"{"type":"ping","lat":.5,"lon":1}"#,
            r#"{"type":"ping","lat":-,"lon":1}"#,
            r#"{"type":"ping","lat":1.2.3,"lon":1}"#,
            r#"{"type":"ping","lat":1e1,"lon":1}"#,
            r#"{"type":"ping","lat":null,"lon":1}"#,
            r#"{"type":"ping","lat":1,"lon":1,"seq":-1}"#,
            r#"{"type":"ping","lat":1,"lon":1,"seq":4294967296}"#,
            r#"{"type":"ping","lat":1,"lon":1,"time":1.0}"#,
            r#"{"type":"ping","lat":1,"lon":1,"accuracy":16777217}"#,
            r#"{"type":"ping","lat":1,"lon":1,"accuracy":16777217.000000001}"#,
            r#"{"type":"ping","lat":1,"lon":1,"time":-0}"#,
            r#"{"type":"ping","lat":1,"lon":1,"time":9223372036854775808}"#,
            r#"{"type":"ping","lat":12345678901234567890,"lon":1}"#,
            r#"{"type":"ping","lat":-89.123456789012345,"lon":1}"#,
            r#"{"type":"ping","lat":1,"lon":1} "#,
            r#"{"type":"ping","lat":1,"lon":1"#,
            r#"{"type":"ping","lat":1,"lon":1}}"#,
            r#"{"type":"ping","lat": 1,"lon":1}"#,
            r#"{"type":"ping",}"#,
            r#"{"type":"ping""#,
            "",
        ] {
            assert_eq!(check(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_ping_is_read_as_the_general_reader_does(
            lat in -90.0..90.0_f64,
            lon in -180.0..180.0_f64,
            decimals in 0..17_usize,
            time in prop::option::of(any::<i64>()),
            seq in any::<u32>(),
            accuracy in prop::option::of(0.0..1e6_f32),
        ) {
            let mut text = format!(r#"{{"type":"ping","lat":{lat:.decimals$},"lon":{lon},"seq":{seq}"#);
            if let Some(time) = time {
                text += &format!(r#","time":{time}"#);
            }
            if let Some(accuracy) = accuracy {
                text += &format!(r#","accuracy":{accuracy}"#);
            }
            text += "}";
            check(&text);
        }

        #[test]
        fn a_damaged_ping_is_never_read_as_something_else(
            place in 0..90_usize,
            damage in prop::sample::select(br#"0123456789.-+eE,:{}[]" ntx"#.to_vec()),
            is_cut in any::<bool>(),
        ) {
            let mut text = br#"{"type":"ping","lat":37.774901,"lon":-122.419402,"time":1211500800000,"seq":17,"accuracy":8.5}"#.to_vec();
            if is_cut {
                text.remove(place);
            } else {
                text[place] = damage;
            }
            check(std::str::from_utf8(&text).unwrap());
        }
    }
}
