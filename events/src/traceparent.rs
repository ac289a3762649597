//! Which trace does a record belong to? W3C Trace Context, carried by commands and events and looked at by nobody here.

use std::fmt;
use std::num::{NonZeroU64, NonZeroU128};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A span of a trace that is recorded: what comes of it are its children. Written as the header `traceparent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TraceParent {
    /// The trace.
    pub trace: NonZeroU128,
    /// The span.
    pub span: NonZeroU64,
}

/// The text is no `traceparent`, or its trace is not recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no traceparent of a recorded trace")]
pub struct NotTraced;

/// The bit of the flags that says that the trace is recorded.
const SAMPLED: u8 = 1;

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{SAMPLED:02x}", self.trace, self.span)
    }
}

impl FromStr for TraceParent {
    type Err = NotTraced;

    fn from_str(text: &str) -> Result<Self, NotTraced> {
        let hex = |part: &str, digits: usize| {
            let is_lower_hex = |c: u8| matches!(c, b'0'..=b'9' | b'a'..=b'f');
            let is_hex = part.len() == digits && part.bytes().all(is_lower_hex);
            is_hex
                .then(|| u128::from_str_radix(part, 16).ok())
                .flatten()
        };
        let mut parts = text.split('-');
        let mut next = |digits| parts.next().and_then(|part| hex(part, digits));
        let (version, trace, span, flags) = (next(2), next(32), next(16), next(2));
        // Versions to come may say more behind the flags; this one must not, and ff is none.
        let may_go_on = version.is_some_and(|version| (1..0xff).contains(&version));
        let is_whole = version == Some(0) && parts.next().is_none() || may_go_on;
        let is_sampled = flags.is_some_and(|flags| flags & u128::from(SAMPLED) != 0);
        let span = span.and_then(|span| u64::try_from(span).ok());
        match (
            trace.and_then(NonZeroU128::new),
            span.and_then(NonZeroU64::new),
        ) {
            (Some(trace), Some(span)) if is_whole && is_sampled => Ok(Self { trace, span }),
            _ => Err(NotTraced),
        }
    }
}

impl Serialize for TraceParent {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

/// Reads an optional one; what cannot be read is none, because nothing depends on it.
pub(crate) fn lenient<'de, D: Deserializer<'de>>(from: D) -> Result<Option<TraceParent>, D::Error> {
    let text = Option::<serde_json::Value>::deserialize(from)?;
    Ok(text.and_then(|text| text.as_str()?.parse().ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_of_the_standard_is_read_and_written_and_what_is_not_recorded_is_none() {
        let text = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let parent: TraceParent = text.parse().unwrap();
        assert_eq!(parent.to_string(), text);
        let next = "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-03-more";
        assert_eq!(next.parse(), Ok(parent));
        for none in [
            "",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01",
        ] {
            assert_eq!(none.parse::<TraceParent>(), Err(NotTraced), "{none}");
        }
    }
}
