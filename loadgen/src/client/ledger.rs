//! What became of every ride? One follower of `GET /v1/events` for the whole run.
//!
//! Riders and drivers tell what they sent and heard, the event stream tells what happened; two reports about one ride may
//! come in either order. The stream is resumed by its cursor after a loss; rides whose end it should have brought and
//! did not are asked for one by one ([`settle_by_asking`]).

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cabrank_events::RideId;
use cabrank_events::codec::parse_rfc3339;
use cabrank_events::wire::{PickupTime, RideStage, RideView};
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::Instant;

use super::phone::hear_clock;
use super::{CALL_WITHIN, Context, Phase};
use crate::report::{LatencyHistogram, QuoteReport, RideReport, SpanHistogram};
use crate::sse::{EventStream, StreamError};

/// A run follows at most this many rides; further wishes are not sent.
pub const RIDES_MAX: usize = 2_000_000;
/// Pause before the stream is opened again.
const REOPEN_AFTER: Duration = Duration::from_millis(200);

/// One ride, as far as the run has seen it.
#[derive(Clone, Debug, Default)]
struct Ride {
    due: Option<Instant>,
    is_acknowledged: bool,
    offered: Option<Instant>,
    assigned: Option<Instant>,
    /// Domain times.
    requested_at: Option<i64>,
    assigned_at: Option<i64>,
    /// When a car came first.
    arrived_at: Option<i64>,
    /// What was said before it was asked for.
    quote: Option<PickupTime>,
    was_assigned: bool,
    has_driver: bool,
    end: Option<RideStage>,
    offer_measured: bool,
    assignment_measured: bool,
}

#[derive(Debug, Default)]
struct Book {
    rides: HashMap<RideId, Ride>,
    requested: u64,
    refused: BTreeMap<String, u64>,
    unknown: u64,
    first_unknown: Option<String>,
    events: u64,
    /// By shard: the first and the last number seen, and how many.
    seen: HashMap<u16, (u64, u64, u64)>,
    breaks: u64,
    request_to_offer: LatencyHistogram,
    request_to_assigned: LatencyHistogram,
    wait: SpanHistogram,
    pickup: SpanHistogram,
    quotes: QuoteReport,
}

/// The rides of a run.
#[derive(Debug, Default)]
pub struct Ledger(Mutex<Book>);

/// The ledger in numbers.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    /// Counts.
    pub rides: RideReport,
    /// Refusals by kind.
    pub refused: BTreeMap<String, u64>,
    /// Why a wish stayed unknown, once.
    pub first_unknown: Option<String>,
    /// Events seen.
    pub events: u64,
    /// Events whose numbers lie between others that were seen, and that never came.
    pub skipped: u64,
    /// How often the stream broke.
    pub breaks: u64,
    /// Latencies and waits.
    pub request_to_offer: LatencyHistogram,
    /// See the report.
    pub request_to_assigned: LatencyHistogram,
    /// See the report.
    pub wait: SpanHistogram,
    /// See the report.
    pub pickup: SpanHistogram,
    /// See the report.
    pub quotes: QuoteReport,
}

impl Ledger {
    fn book(&self) -> MutexGuard<'_, Book> {
        // Each change is complete in itself; a panic elsewhere leaves nothing half-written.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// May another wish be sent?
    pub fn has_room(&self) -> bool {
        self.book().rides.len() < RIDES_MAX
    }

    /// A wish is being sent.
    pub fn requested(&self) {
        self.book().requested += 1;
    }

    /// The server promised this ride; its request should have left at `due`.
    pub fn acknowledged(&self, ride: RideId, due: Instant) {
        let mut book = self.book();
        let entry = book.rides.entry(ride).or_default();
        entry.is_acknowledged = true;
        entry.due = Some(due);
        book.measure(ride);
    }

    /// A rider asked for a quote.
    pub fn quoted(&self, quote: Option<&PickupTime>) {
        let quotes = &mut self.book().quotes;
        quotes.asked += 1;
        if let Some(quote) = quote {
            quotes.with_interval += 1;
            quotes.share = quote.share;
        }
    }

    /// The ride that came of a wish with this quote.
    pub fn quote_was_of(&self, ride: RideId, quote: PickupTime) {
        let mut book = self.book();
        book.rides.entry(ride).or_default().quote = Some(quote);
        book.measure(ride);
    }

    /// A wish was refused for good.
    pub fn refused(&self, kind: &str) {
        *self.book().refused.entry(kind.to_owned()).or_default() += 1;
    }

    /// A wish's fate stayed unknown.
    pub fn unknown(&self, why: &str) {
        let mut book = self.book();
        book.unknown += 1;
        book.first_unknown.get_or_insert_with(|| why.to_owned());
    }

    /// An offer for this ride reached a phone.
    pub fn offered(&self, ride: RideId, at: Instant) {
        let mut book = self.book();
        book.rides
            .entry(ride)
            .or_default()
            .offered
            .get_or_insert(at);
        book.measure(ride);
    }

    /// One event of the stream, read at `at`.
    pub fn handle_event(&self, json: &str, at: Instant) {
        let Ok(event) = serde_json::from_str::<Value>(json) else {
            return;
        };
        let mut book = self.book();
        book.events += 1;
        let id = event["id"].as_str().and_then(|id| id.split_once('-'));
        let id = id.and_then(|(shard, seq)| Some((shard.parse().ok()?, seq.parse::<u64>().ok()?)));
        if let Some((shard, seq)) = id {
            let seen = book.seen.entry(shard).or_insert((seq, seq, 0));
            *seen = (seen.0.min(seq), seen.1.max(seq), seen.2 + 1);
        }
        let name = event["type"].as_str().unwrap_or_default();
        let Some(name) = name.strip_prefix("cabrank.ride.") else {
            return;
        };
        let Some(ride) = event["data"]["ride"]
            .as_str()
            .and_then(|text| text.parse().ok())
        else {
            return;
        };
        let time = event["time"]
            .as_str()
            .and_then(|text| parse_rfc3339(text).ok());
        let time = time.map_or(0, |time| time.0);
        let name = name.rsplit_once(".v").map_or(name, |(name, _)| name);
        let entry = book.rides.entry(ride).or_default();
        match name {
            "requested" => {
                entry.requested_at = Some(event["data"]["issued_at"].as_i64().unwrap_or(time));
            }
            "driver_assigned" => {
                entry.was_assigned = true;
                entry.has_driver = true;
                entry.assigned.get_or_insert(at);
                entry.assigned_at = Some(time);
            }
            "driver_lost" => entry.has_driver = false,
            "driver_arrived" => {
                entry.arrived_at.get_or_insert(time);
                if let Some(assigned_at) = entry.assigned_at {
                    book.pickup.record_ms(time - assigned_at);
                }
            }
            "started" => {
                // A driver may report the start alone.
                entry.arrived_at.get_or_insert(time);
                if let Some(requested_at) = entry.requested_at {
                    book.wait.record_ms(time - requested_at);
                }
            }
            "completed" => entry.end = Some(RideStage::Completed),
            "cancelled" => entry.end = Some(RideStage::Cancelled),
            "unfulfilled" => entry.end = Some(RideStage::Unfulfilled),
            _ => {}
        }
        book.measure(ride);
    }

    /// Rides promised or seen, without an end so far.
    pub fn open(&self) -> Vec<RideId> {
        let book = self.book();
        book.rides
            .iter()
            .filter(|(_, ride)| ride.end.is_none())
            .map(|(id, _)| *id)
            .collect()
    }

    /// Open rides that have no driver now, as far as the stream tells.
    pub fn open_without_driver(&self) -> Vec<RideId> {
        let book = self.book();
        let open = book
            .rides
            .iter()
            .filter(|(_, ride)| ride.end.is_none() && !ride.has_driver);
        open.map(|(id, _)| *id).collect()
    }

    /// Rides the server promised: what the audit must find.
    pub fn acknowledged_rides(&self) -> Vec<RideId> {
        let book = self.book();
        book.rides
            .iter()
            .filter(|(_, ride)| ride.is_acknowledged)
            .map(|(id, _)| *id)
            .collect()
    }

    /// Says how a ride ended, as its view told.
    fn ended(&self, ride: RideId, end: RideStage) {
        self.book()
            .rides
            .entry(ride)
            .or_default()
            .end
            .get_or_insert(end);
    }

    /// Events the stream has overtaken or left out.
    pub fn skipped(&self) -> u64 {
        self.book().skipped()
    }

    /// The numbers so far.
    pub fn totals(&self) -> Totals {
        let book = self.book();
        let mut rides = RideReport {
            requested: book.requested,
            refused: book.refused.values().sum(),
            unknown: book.unknown,
            ..RideReport::default()
        };
        for ride in book.rides.values() {
            rides.acknowledged += u64::from(ride.is_acknowledged);
            rides.assigned += u64::from(ride.was_assigned);
            match ride.end {
                Some(RideStage::Completed) => rides.completed += 1,
                Some(RideStage::Cancelled) => rides.cancelled += 1,
                Some(_) => rides.unfulfilled += 1,
                None => rides.open += 1,
            }
        }
        Totals {
            rides,
            refused: book.refused.clone(),
            first_unknown: book.first_unknown.clone(),
            events: book.events,
            skipped: book.skipped(),
            breaks: book.breaks,
            request_to_offer: book.request_to_offer.clone(),
            request_to_assigned: book.request_to_assigned.clone(),
            wait: book.wait.clone(),
            pickup: book.pickup.clone(),
            quotes: book.quotes(),
        }
    }
}

impl QuoteReport {
    /// A car came so many seconds after the request. The three last fields are sums until the report is made.
    fn came(&mut self, quote: &PickupTime, took_s: f64) {
        let (low_s, high_s) = (f64::from(quote.low_s), f64::from(quote.high_s));
        // The server says whole seconds.
        let is_sooner = took_s < low_s - 0.5;
        let is_later = took_s > high_s + 0.5;
        self.pickups += 1;
        self.sooner += u64::from(is_sooner);
        self.later += u64::from(is_later);
        if quote.rides > 0 {
            self.learned_pickups += 1;
            self.learned_coverage += if is_sooner || is_later { 0.0 } else { 1.0 };
            self.learned_length_s += high_s - low_s;
            self.learned_error_s += (took_s - f64::from(quote.likely_s)).abs();
        }
    }
}

impl Book {
    fn quotes(&self) -> QuoteReport {
        let sums = &self.quotes;
        let mean = |sum: f64, of: u64| if of == 0 { 0.0 } else { sum / of as f64 };
        let within = sums.pickups - sums.sooner - sums.later;
        QuoteReport {
            within,
            coverage: mean(within as f64, sums.pickups),
            learned_coverage: mean(sums.learned_coverage, sums.learned_pickups),
            learned_length_s: mean(sums.learned_length_s, sums.learned_pickups),
            learned_error_s: mean(sums.learned_error_s, sums.learned_pickups),
            ..sums.clone()
        }
    }

    fn skipped(&self) -> u64 {
        let skipped = self.seen.values().map(|(first, last, count)| {
            let expected = last - first + 1;
            expected.saturating_sub(*count)
        });
        skipped.sum()
    }

    /// Records what has become measurable: offer and acknowledgement come in either order.
    fn measure(&mut self, ride: RideId) {
        let Some(entry) = self.rides.get_mut(&ride) else {
            return;
        };
        if let (Some(requested_at), Some(arrived_at)) = (entry.requested_at, entry.arrived_at)
            && let Some(quote) = entry.quote.take()
        {
            self.quotes
                .came(&quote, (arrived_at - requested_at) as f64 / 1_000.0);
        }
        let Some(due) = entry.due else { return };
        if let (Some(offered), false) = (entry.offered, entry.offer_measured) {
            entry.offer_measured = true;
            self.request_to_offer
                .record(offered.saturating_duration_since(due));
        }
        if let (Some(assigned), false) = (entry.assigned, entry.assignment_measured) {
            entry.assignment_measured = true;
            self.request_to_assigned
                .record(assigned.saturating_duration_since(due));
        }
    }
}

/// Opens the event stream, then follows it in the background until the run is over. Returns once it is open, so that
/// nothing after that is missed.
pub async fn follow(
    context: std::sync::Arc<Context>,
    mut phase: watch::Receiver<Phase>,
) -> Result<tokio::task::JoinHandle<()>, StreamError> {
    let token = context.ops_token();
    let mut stream = EventStream::open(&context.http, &context.url, &token, None).await?;
    Ok(tokio::spawn(async move {
        let mut cursor: Option<String> = None;
        loop {
            let over = phase.wait_for(|phase| *phase == Phase::Over);
            let next = tokio::select! {
                _ = over => return,
                next = stream.next() => next,
            };
            match next {
                Ok(sent) => {
                    context.ledger.handle_event(&sent.data, Instant::now());
                    cursor = sent.id.or(cursor);
                }
                Err(why) => {
                    tracing::debug!(%why, "event stream broke");
                    context.ledger.book().breaks += 1;
                    context.clock.stop();
                    let over = phase.wait_for(|phase| *phase == Phase::Over);
                    tokio::select! {
                        _ = over => return,
                        reopened = reopen(&context, &token, &mut cursor) => stream = reopened,
                    }
                }
            }
        }
    }))
}

async fn reopen(context: &Context, token: &str, cursor: &mut Option<String>) -> EventStream {
    loop {
        tokio::time::sleep(REOPEN_AFTER).await;
        // Without any event seen so far, the oldest kept one is the only safe place to begin.
        let from = cursor.as_deref().unwrap_or("start");
        match EventStream::open(&context.http, &context.url, token, Some(from)).await {
            Ok(stream) => {
                // The clock may have stood still with the server, or only the stream was lost: one reading tells.
                if let Err(why) = hear_clock(context).await {
                    tracing::debug!(%why, "the clock was not heard");
                }
                return stream;
            }
            Err(StreamError::TooOld) => *cursor = None,
            Err(why) => tracing::debug!(%why, "event stream not open yet"),
        }
    }
}

/// Asks the server for each ride the ledger believes open, and takes note of those that have ended.
pub async fn settle_by_asking(context: &Context) {
    let token = context.ops_token();
    for ride in context.ledger.open() {
        let url = format!("{}/v1/rides/{ride}", context.url);
        let call = context
            .http
            .get(url)
            .bearer_auth(&token)
            .timeout(CALL_WITHIN)
            .send()
            .await;
        let Ok(response) = call else { continue };
        if let Ok(view) = response.json::<RideView>().await
            && view.stage.is_end()
        {
            context.ledger.ended(ride, view.stage);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: &str, at: &str, more: &str) -> String {
        format!(
            r#"{{"id":"1-1","type":"cabrank.ride.{kind}.v1","time":"2008-05-23T00:{at}Z","data":{{"ride":"1-2-3"{more}}}}}"#
        )
    }

    #[tokio::test]
    async fn a_ride_is_followed_and_measured_whatever_comes_first() {
        let ledger = Ledger::default();
        let due = Instant::now();
        let later = |ms| due + Duration::from_millis(ms);
        let ride = "1-2-3".parse().unwrap();
        ledger.requested();
        ledger.handle_event(
            &event("requested", "00:10.000", r#","issued_at":1211500809000"#),
            later(1),
        );
        ledger.offered(ride, later(4));
        assert_eq!(
            ledger.totals().request_to_offer.quantiles().count,
            0,
            "not acknowledged yet"
        );
        ledger.acknowledged(ride, due);
        ledger.offered(ride, later(900));
        ledger.handle_event(&event("driver_assigned", "00:12.000", ""), later(50));
        ledger.handle_event(&event("driver_arrived", "01:12.000", ""), later(60));
        ledger.handle_event(&event("started", "01:19.000", ""), later(70));
        assert_eq!(ledger.open(), [ride]);
        ledger.handle_event(&event("completed", "09:00.000", ""), later(80));
        let totals = ledger.totals();
        assert_eq!(
            (
                totals.rides.assigned,
                totals.rides.completed,
                totals.rides.open
            ),
            (1, 1, 0)
        );
        let offer = totals.request_to_offer.quantiles();
        assert!(
            offer.count == 1 && (offer.max - 4.0).abs() < 0.1,
            "{offer:?}"
        );
        assert!((totals.request_to_assigned.quantiles().max - 50.0).abs() < 0.1);
        assert!((totals.pickup.report().mean - 60.0).abs() < 0.1);
        assert!((totals.wait.report().mean - 70.0).abs() < 0.1);
    }

    #[test]
    fn an_event_the_stream_skips_is_noticed() {
        let ledger = Ledger::default();
        let at = Instant::now();
        for seq in [5, 7, 6, 9] {
            let json = format!(r#"{{"id":"3-{seq}","type":"cabrank.rider.free.v1","data":{{}}}}"#);
            ledger.handle_event(&json, at);
        }
        assert_eq!(ledger.totals().skipped, 1, "8 never came");
    }
}
