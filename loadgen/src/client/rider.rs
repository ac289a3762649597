//! A rider's phone: asks until the answer is known.
//!
//! The wish has one key for all its tries, so a try whose answer was lost cannot make a second ride.

use std::time::Duration;

use cabrank_events::wire::{PickupTime, Problem, Quote, QuoteRequest, RideOpened, RideRequest};
use cabrank_events::{IdempotencyKey, RideId, RiderId};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::time::Instant;

use super::{CALL_WITHIN, Context, Role};

/// Waiting after a failed try begins here and doubles.
const RETRY_FIRST: Duration = Duration::from_millis(100);
/// ... up to this.
const RETRY_LAST: Duration = Duration::from_secs(3);
/// A server that names a longer pause is asked again after this.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(10);

/// A wish to ride.
#[derive(Clone, Debug)]
pub struct Wish {
    /// Who asks.
    pub rider: RiderId,
    /// The same in every try.
    pub key: IdempotencyKey,
    /// What is asked; `issued_at` is the first try's.
    pub request: RideRequest,
    /// When the first try should leave: latencies count from here.
    pub due: Instant,
    /// When to give up finding out.
    pub give_up: Instant,
}

/// What became of a wish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// The ride is open.
    Opened(RideId),
    /// Refused for good; the kind of the problem.
    Refused(String),
    /// Not known when the time was over.
    Unknown(String),
}

/// Asks until the answer is known or `give_up` is reached. Counts into the ledger.
pub async fn ask(context: &Context, wish: &Wish) -> Asked {
    context.ledger.requested();
    // The seed only spreads retries; it is taken from the key so that a run repeats.
    let seed = wish.key.as_str().bytes().fold(7u64, |seed, byte| {
        seed.wrapping_mul(31).wrapping_add(u64::from(byte))
    });
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut pause = RETRY_FIRST;
    let token = (context.mint)(Role::Rider, wish.rider.as_str());
    let asked = loop {
        let (why, after) = match attempt(context, wish, &token).await {
            Ok(asked) => break asked,
            Err(failed) => failed,
        };
        let wait = after.map_or(pause, |after| after.min(RETRY_AFTER_MAX));
        let wait = wait.mul_f64(rng.random_range(0.5..1.0));
        pause = (pause * 2).min(RETRY_LAST);
        if Instant::now() + wait > wish.give_up {
            break Asked::Unknown(why);
        }
        tokio::time::sleep(wait).await;
    };
    match &asked {
        Asked::Opened(ride) => context.ledger.acknowledged(*ride, wish.due),
        Asked::Refused(kind) => context.ledger.refused(kind),
        Asked::Unknown(why) => context.ledger.unknown(why),
    }
    asked
}

/// Asks when a car would be there, once; counts into the ledger. Without an answer the rider goes on without.
pub async fn quote(context: &Context, wish: &Wish) -> Option<PickupTime> {
    let request = QuoteRequest {
        pickup: wish.request.pickup,
        dropoff: wish.request.dropoff,
        class: wish.request.class,
    };
    let call = context
        .http
        .post(format!("{}/v1/quote", context.url))
        .bearer_auth((context.mint)(Role::Rider, wish.rider.as_str()))
        .timeout(CALL_WITHIN)
        .json(&request);
    let quote: Quote = call.send().await.ok()?.json().await.ok()?;
    context.ledger.quoted(quote.pickup_time.as_ref());
    quote.pickup_time
}

/// One try. An error says why nothing is known, and how long the server wants to be left alone.
async fn attempt(
    context: &Context,
    wish: &Wish,
    token: &str,
) -> Result<Asked, (String, Option<Duration>)> {
    let call = context
        .http
        .post(format!("{}/v1/rides", context.url))
        .bearer_auth(token)
        .header("Idempotency-Key", wish.key.as_str())
        .timeout(CALL_WITHIN)
        .json(&wish.request);
    let response = call.send().await.map_err(|why| (why.to_string(), None))?;
    let status = response.status().as_u16();
    let after = response
        .headers()
        .get("retry-after")
        .and_then(|value| value.to_str().ok());
    let after = after
        .and_then(|text| text.parse().ok())
        .map(Duration::from_secs);
    let body = response
        .bytes()
        .await
        .map_err(|why| (why.to_string(), None))?;
    match status {
        200 | 201 => match serde_json::from_slice::<RideOpened>(&body) {
            Ok(opened) => Ok(Asked::Opened(opened.ride)),
            Err(why) => Ok(Asked::Refused(format!("answer does not parse: {why}"))),
        },
        429 | 500..=599 => Err((format!("status {status}"), after)),
        _ => {
            let problem = serde_json::from_slice::<Problem>(&body).ok();
            let kind = problem.map_or(format!("status {status}"), |problem| {
                problem
                    .kind
                    .rsplit(':')
                    .next()
                    .unwrap_or_default()
                    .to_owned()
            });
            Ok(Asked::Refused(kind))
        }
    }
}

/// Calls a ride off; retried until `give_up`. Answers whether it was called off (and not already over or begun).
pub async fn cancel(
    context: &Context,
    rider: &RiderId,
    ride: RideId,
    give_up: Instant,
) -> Result<bool, String> {
    let token = (context.mint)(Role::Rider, rider.as_str());
    call_off(context, &token, ride, give_up).await
}

/// Calls a ride off from the operator's desk, as [`cancel`].
pub async fn cancel_as_ops(
    context: &Context,
    ride: RideId,
    give_up: Instant,
) -> Result<bool, String> {
    call_off(context, &context.ops_token(), ride, give_up).await
}

async fn call_off(
    context: &Context,
    token: &str,
    ride: RideId,
    give_up: Instant,
) -> Result<bool, String> {
    let url = format!("{}/v1/rides/{ride}/cancel", context.url);
    let mut pause = RETRY_FIRST;
    loop {
        let sent = context
            .http
            .post(&url)
            .bearer_auth(token)
            .timeout(CALL_WITHIN)
            .send()
            .await;
        let why = match sent {
            Ok(response) => match response.status().as_u16() {
                200 => return Ok(true),
                404 | 409 | 410 => return Ok(false),
                status @ (429 | 500..=599) => format!("status {status}"),
                status => return Err(format!("status {status}")),
            },
            Err(why) => why.to_string(),
        };
        if Instant::now() + pause > give_up {
            return Err(why);
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RETRY_LAST);
    }
}
