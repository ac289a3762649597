//! What does the query of a call ask for?
//!
//! Holds: a refusal names the key, what stands there, and what to write instead. A key the call does not know is
//! refused, too: a typing error must not become a default.

use std::borrow::Cow;
use std::str::FromStr;

use axum::extract::Query;
use axum::http::Uri;

use crate::problem::Problem;

/// So much of a wrong value is repeated to the caller.
const VALUE_CHARS_SHOWN: usize = 64;

/// Key and value of a parameter.
type Pair<'a> = (Cow<'a, str>, Cow<'a, str>);

/// The parameters of one call.
pub struct Asked<'a>(Vec<Pair<'a>>);

/// The pairs of a query. Nearly all have nothing to decode, and are used where they stand.
fn pairs(uri: &Uri) -> Result<Vec<Pair<'_>>, Problem> {
    let query = uri.query().unwrap_or_default();
    if query.contains(['%', '+']) {
        let Query(decoded) = Query::<Vec<(String, String)>>::try_from_uri(uri)
            .map_err(|error| Problem::bad_request(format!("{error}: send key=value&key=value")))?;
        let owned = |(key, value): (String, String)| (key.into(), value.into());
        return Ok(decoded.into_iter().map(owned).collect());
    }
    let parts = query.split('&').filter(|part| !part.is_empty());
    Ok(parts
        .map(|part| part.split_once('=').unwrap_or((part, "")))
        .map(|(key, value)| (key.into(), value.into()))
        .collect())
}

impl<'a> Asked<'a> {
    /// The query of `uri`, whose keys must be among `known`, each at most once.
    pub fn of(uri: &'a Uri, known: &[&str]) -> Result<Self, Problem> {
        let pairs = pairs(uri)?;
        for (n, (key, value)) in pairs.iter().enumerate() {
            if !known.contains(&&**key) {
                let remedy = format!("this call knows {}", known.join(", "));
                return Err(bad(key, value, &remedy));
            }
            if pairs[..n].iter().any(|(earlier, _)| earlier == key) {
                return Err(bad(key, value, "give it once"));
            }
        }
        Ok(Self(pairs))
    }

    /// The text of a parameter.
    pub fn text(&self, key: &str) -> Option<&str> {
        let pair = self.0.iter().find(|(known, _)| known == key);
        pair.map(|(_, value)| &**value)
    }

    /// A parameter that may be left out; `remedy` says what is right.
    pub fn value<T: FromStr>(
        &self,
        key: &str,
        remedy: &str,
        is_right: impl FnOnce(&T) -> bool,
    ) -> Result<Option<T>, Problem> {
        let Some(text) = self.text(key) else {
            return Ok(None);
        };
        match text.parse().ok().filter(is_right) {
            None => Err(bad(key, text, remedy)),
            right => Ok(right),
        }
    }

    /// A parameter that must be there.
    pub fn needed<T: FromStr>(
        &self,
        key: &str,
        remedy: &str,
        is_right: impl FnOnce(&T) -> bool,
    ) -> Result<T, Problem> {
        let missing = || Problem::bad_request(format!("{key} is missing: {remedy}"));
        self.value(key, remedy, is_right)?.ok_or_else(missing)
    }
}

/// The problem of a parameter that is not right.
pub fn bad(key: &str, value: &str, remedy: &str) -> Problem {
    let shown: String = value.chars().take(VALUE_CHARS_SHOWN).collect();
    Problem::bad_request(format!("{key} is {shown:?}: {remedy}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_needs_no_decoding_is_read_as_what_does() {
        let plain = [
            "", "a=1", "a=1&b=", "a&b=2", "&&a=1&", "a=1=2", "=1", "a=b?c",
        ];
        for query in plain {
            let plain: Uri = format!("/x?{query}").parse().unwrap();
            let Query(decoded) = Query::<Vec<(String, String)>>::try_from_uri(&plain).unwrap();
            let read = pairs(&plain).unwrap();
            let read: Vec<(String, String)> = read
                .into_iter()
                .map(|(key, value)| (key.into(), value.into()))
                .collect();
            assert_eq!(read, decoded, "{query}");
        }
        let coded: Uri = "/x?lat=%31+2".parse().unwrap();
        let asked = Asked::of(&coded, &["lat"]);
        let asked = asked.unwrap_or_else(|_| panic!("it is well formed"));
        assert_eq!(asked.text("lat"), Some("1 2"));
    }
}
