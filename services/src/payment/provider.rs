//! How is the payment provider called?
//!
//! Behind a trait, because there are many providers. Every call carries an idempotency key made from the ride and the
//! step, so a call whose answer was lost is repeated without anybody being charged twice.

use std::pin::Pin;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What is asked of a provider.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Hold this much.
    Authorise {
        /// The provider's token of a means of payment.
        method: String,
        /// In the minor unit.
        amount_minor: i64,
        /// ISO 4217.
        currency: String,
        /// Our name for it.
        reference: String,
    },
    /// Take this much of what is held and let the rest go.
    Capture {
        /// The provider's name of the hold.
        authorisation: String,
        /// In the minor unit.
        amount_minor: i64,
    },
    /// Let all go.
    Void {
        /// The provider's name of the hold.
        authorisation: String,
    },
    /// Give this much back.
    Refund {
        /// The provider's name of the hold.
        authorisation: String,
        /// In the minor unit.
        amount_minor: i64,
    },
}

/// A provider's final answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Done; the provider's name of the hold.
    Done(String),
    /// It will not be done, however often it is asked.
    Refused(String),
}

/// No answer, or none that says anything: the same call may be repeated.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the provider gave no answer: {0}")]
pub struct NoAnswer(pub String);

/// A call under way.
pub type Calling<'a> = Pin<Box<dyn Future<Output = Result<Answer, NoAnswer>> + Send + 'a>>;

/// Somebody who moves money.
pub trait Provider: Send + Sync {
    /// Asks; the same `key` with the same ask is done once, however often it is sent.
    fn call<'a>(&'a self, key: &'a str, ask: &'a Ask) -> Calling<'a>;
}

/// A provider over HTTP, as `cabrank provider-sim` speaks it.
pub struct HttpProvider {
    http: reqwest::Client,
    base: String,
}

impl HttpProvider {
    /// At `base`; a call without an answer is given up after `timeout`.
    pub fn new(base: &str, timeout: Duration) -> Result<HttpProvider, reqwest::Error> {
        Ok(HttpProvider {
            http: reqwest::Client::builder().timeout(timeout).build()?,
            base: base.trim_end_matches('/').to_owned(),
        })
    }
}

/// What is sent to make a hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthoriseBody {
    /// Token of a means of payment.
    pub method: String,
    /// In the minor unit.
    pub amount_minor: i64,
    /// ISO 4217.
    pub currency: String,
    /// The caller's name for it.
    pub reference: String,
}

/// What is sent to capture or refund.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AmountBody {
    /// In the minor unit.
    pub amount_minor: i64,
}

/// What comes back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProviderAnswer {
    /// The provider's name of the hold.
    #[serde(default)]
    pub id: String,
    /// Why not, if not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

impl Provider for HttpProvider {
    fn call<'a>(&'a self, key: &'a str, ask: &'a Ask) -> Calling<'a> {
        Box::pin(async move {
            let of = |authorisation: &str, what: &str| {
                self.http.post(format!(
                    "{}/v1/authorisations/{authorisation}/{what}",
                    self.base
                ))
            };
            let request = match ask {
                Ask::Authorise {
                    method,
                    amount_minor,
                    currency,
                    reference,
                } => self
                    .http
                    .post(format!("{}/v1/authorisations", self.base))
                    .json(&AuthoriseBody {
                        method: method.clone(),
                        amount_minor: *amount_minor,
                        currency: currency.clone(),
                        reference: reference.clone(),
                    }),
                Ask::Capture {
                    authorisation,
                    amount_minor,
                } => of(authorisation, "capture").json(&AmountBody {
                    amount_minor: *amount_minor,
                }),
                Ask::Void { authorisation } => of(authorisation, "void"),
                Ask::Refund {
                    authorisation,
                    amount_minor,
                } => of(authorisation, "refund").json(&AmountBody {
                    amount_minor: *amount_minor,
                }),
            };
            let nothing = |why: reqwest::Error| NoAnswer(why.without_url().to_string());
            let answer = request
                .header("idempotency-key", key)
                .send()
                .await
                .map_err(nothing)?;
            let status = answer.status().as_u16();
            match status {
                200..=299 => {
                    let body: ProviderAnswer = answer.json().await.map_err(nothing)?;
                    Ok(Answer::Done(body.id))
                }
                // What the provider will not do whatever happens. 408 and 429 are about the moment.
                402 | 404 | 409 | 422 => {
                    let body: ProviderAnswer = answer.json().await.map_err(nothing)?;
                    Ok(Answer::Refused(
                        body.refused.unwrap_or_else(|| format!("status {status}")),
                    ))
                }
                status => Err(NoAnswer(format!("status {status}"))),
            }
        })
    }
}
