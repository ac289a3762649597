//! What does the query of a call ask for?
//!
//! Holds: a refusal names the key, what stands there, and what to write instead. A key the call does not know is
//! refused, too: a typing error must not become a default.

use std::str::FromStr;

use axum::extract::Query;
use axum::http::Uri;

use crate::problem::Problem;

/// So much of a wrong value is repeated to the caller.
const VALUE_CHARS_SHOWN: usize = 64;

/// The parameters of one call.
pub struct Asked(Vec<(String, String)>);

impl Asked {
    /// The query of `uri`, whose keys must be among `known`, each at most once.
    pub fn of(uri: &Uri, known: &[&str]) -> Result<Self, Problem> {
        let Query(pairs) = Query::<Vec<(String, String)>>::try_from_uri(uri)
            .map_err(|error| Problem::bad_request(format!("{error}: send key=value&key=value")))?;
        for (n, (key, value)) in pairs.iter().enumerate() {
            if !known.contains(&key.as_str()) {
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
        pair.map(|(_, value)| value.as_str())
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
