//! What a generator counts: one [`Tally`] a thread, merged by whoever holds several.
//!
//! Times are nanoseconds of the machine's monotonic clock, which all processes share; so a ride asked for in one process
//! and offered to a phone in another is put together afterwards. Memory is bounded: seconds by [`SECONDS_MAX`], rides by
//! [`RIDES_MAX`]; what goes beyond is counted and makes the run invalid.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use cabrank_events::RideId;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Deserializer, Serializer, V2DeflateSerializer};
use serde::{Deserialize, Serialize};

/// Latencies above this are recorded as this (ten minutes).
const LATENCY_NS_MAX: u64 = 600_000_000_000;
/// Seconds a run has a time series of.
pub const SECONDS_MAX: usize = 7_200;
/// Rides one process may ask for or be offered.
pub const RIDES_MAX: usize = 4_000_000;

/// Ends the reason of a refusal that should say when to come again and does not.
pub const NO_RETRY_AFTER: &str = " without Retry-After";

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A ping, until the system has taken it for sending: what the server holds up is in it.
    Ping,
    /// The probe's ping, until a search answers with its place.
    PingToVisible,
    /// A search, until its answer is complete.
    Nearby,
    /// A ride request, until it is promised or refused.
    Request,
    /// A driver's message about a ride, until its committed outcome.
    Command,
    /// A ride request, until the first offer is on a phone.
    RequestToOffer,
    /// How late the generator itself looked at what was due.
    Lateness,
}

impl Kind {
    /// All of them, in the order of reports.
    pub const ALL: [Kind; 7] = [
        Kind::Ping,
        Kind::PingToVisible,
        Kind::Nearby,
        Kind::Request,
        Kind::RequestToOffer,
        Kind::Command,
        Kind::Lateness,
    ];

    /// The name in a report.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Ping => "ping",
            Kind::PingToVisible => "ping_to_visible",
            Kind::Nearby => "nearby",
            Kind::Request => "request",
            Kind::Command => "command",
            Kind::RequestToOffer => "request_to_offer",
            Kind::Lateness => "lateness",
        }
    }
}

/// A distribution of times, from a microsecond to ten minutes with three digits; its memory grows with what it holds.
#[derive(Clone, Debug, PartialEq)]
pub struct Times(Histogram<u64>);

impl Default for Times {
    fn default() -> Self {
        Times::with_digits(3)
    }
}

impl Times {
    fn with_digits(digits: u8) -> Times {
        let mut histogram = Histogram::new_with_bounds(1_000, 2_000_000, digits)
            .expect("constant bounds that are in order");
        histogram.auto(true);
        Times(histogram)
    }

    /// Takes `count` messages of one latency.
    pub fn record(&mut self, ns: u64, count: u64) {
        self.0
            .record_n(ns.min(LATENCY_NS_MAX), count)
            .expect("it grows up to the bound");
    }

    /// Adds what another one has.
    pub fn merge(&mut self, other: &Times) {
        self.0.add(&other.0).expect("it grows up to the bound");
    }

    /// How many were recorded.
    pub fn len(&self) -> u64 {
        self.0.len()
    }

    /// Was nothing recorded?
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The time that a share of all does not exceed, in ms.
    pub fn ms_at(&self, quantile: f64) -> f64 {
        if self.0.is_empty() {
            return 0.0;
        }
        self.0.value_at_quantile(quantile) as f64 / 1e6
    }

    /// The points every report shows.
    pub fn quantiles(&self) -> crate::report::Quantiles {
        crate::report::Quantiles {
            count: self.0.len(),
            p50: self.ms_at(0.5),
            p90: self.ms_at(0.9),
            p99: self.ms_at(0.99),
            p999: self.ms_at(0.999),
            max: self.ms_at(1.0),
        }
    }

    /// HdrHistogram's base64 V2 form, compressed; values are nanoseconds.
    pub fn to_base64(&self) -> String {
        let mut bytes = Vec::new();
        V2DeflateSerializer::new()
            .serialize(&self.0, &mut bytes)
            .expect("writing to memory does not fail");
        STANDARD.encode(bytes)
    }

    /// Reads what [`Times::to_base64`] wrote.
    pub fn from_base64(text: &str) -> Result<Times, String> {
        let bytes = STANDARD.decode(text).map_err(|why| why.to_string())?;
        let read: Histogram<u64> = Deserializer::new()
            .deserialize(&mut bytes.as_slice())
            .map_err(|why| format!("not a V2 histogram: {why:?}"))?;
        let mut times = Times::with_digits(read.sigfig());
        times.0.add(&read).map_err(|why| why.to_string())?;
        Ok(times)
    }
}

impl Serialize for Times {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.to_base64())
    }
}

impl<'de> Deserialize<'de> for Times {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Times::from_base64(&text).map_err(serde::de::Error::custom)
    }
}

/// One kind in one second, or over the whole run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Count {
    /// Due in that time.
    pub offered: u64,
    /// Due in that time and done.
    pub done: u64,
    /// Their latencies.
    pub times: Times,
}

impl Count {
    /// For a second of a series: two digits are enough for a picture, and there are many seconds.
    fn coarse() -> Count {
        Count {
            times: Times::with_digits(2),
            ..Count::default()
        }
    }
}

/// One second of the measured time.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Second {
    /// By kind; kinds without a message are absent.
    pub kinds: BTreeMap<Kind, Count>,
}

/// One ride, as one process saw it. Times are ns of the shared clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RideSeen {
    /// When its request should have left, if it left from here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub due: Option<u64>,
    /// When it was promised.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub promised: Option<u64>,
    /// When the first offer was on a phone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offered: Option<u64>,
    /// A phone of ours was told that its accept counts.
    #[serde(default)]
    pub assigned: bool,
    /// A phone of ours was told that the ride is completed.
    #[serde(default)]
    pub completed: bool,
    /// The rider called it off.
    #[serde(default)]
    pub cancelled: bool,
}

impl RideSeen {
    fn merge(&mut self, other: &RideSeen) {
        let first = |a: Option<u64>, b: Option<u64>| match (a, b) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        self.due = first(self.due, other.due);
        self.promised = first(self.promised, other.promised);
        self.offered = first(self.offered, other.offered);
        self.assigned |= other.assigned;
        self.completed |= other.completed;
        self.cancelled |= other.cancelled;
    }
}

/// Everything counted in one thread, one process or a whole run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Tally {
    /// When the measured time began, ns of the shared clock.
    pub began: u64,
    /// How long it lasts, ns.
    pub lasts: u64,
    /// By kind, measured time only.
    pub kinds: BTreeMap<Kind, Count>,
    /// The same, second by second.
    pub seconds: Vec<Second>,
    /// Refusals by kind and reason, the whole time.
    pub refused: BTreeMap<Kind, BTreeMap<String, u64>>,
    /// Pings handed to the system, the whole time.
    pub pings_sent: u64,
    /// Pings not written because their socket was full or gone.
    pub pings_unsent: u64,
    /// Wishes sent, the whole time.
    pub requested: u64,
    /// Wishes promised, the whole time.
    #[serde(default)]
    pub promised: u64,
    /// Rides that ended with a phone of ours, the whole time.
    #[serde(default)]
    pub completed: u64,
    /// Wishes without a clear answer: their keys, to be called off.
    pub unclear: Vec<(String, String)>,
    /// Rides by id.
    #[serde(with = "as_pairs")]
    pub rides: BTreeMap<RideId, RideSeen>,
    /// Messages that could not be sent at all because a bound of the generator was reached.
    pub overflowed: u64,
    /// Sockets lost against our will.
    pub sockets_lost: u64,
    /// Drivers with a session at the end.
    pub online: u64,
    /// The first complaint about our own behaviour.
    pub complaint: Option<String>,
    /// How many complaints.
    pub complaints: u64,
}

/// Maps with keys that are not text, as lists of pairs.
mod as_pairs {
    use super::*;

    pub fn serialize<S: serde::Serializer>(
        map: &BTreeMap<RideId, RideSeen>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(map)
    }

    pub fn deserialize<'de, D: serde::Deserializer<'de>>(
        deserializer: D,
    ) -> Result<BTreeMap<RideId, RideSeen>, D::Error> {
        Ok(Vec::<(RideId, RideSeen)>::deserialize(deserializer)?
            .into_iter()
            .collect())
    }
}

impl Tally {
    /// An empty one for `lasts` ns from `began` on.
    pub fn new(began: u64, lasts: u64) -> Tally {
        Tally {
            began,
            lasts,
            ..Tally::default()
        }
    }

    fn place(&mut self, due: u64) -> Option<usize> {
        let since = due
            .checked_sub(self.began)
            .filter(|since| *since < self.lasts)?;
        let second = (since / 1_000_000_000) as usize;
        if second >= SECONDS_MAX {
            return None;
        }
        if self.seconds.len() <= second {
            self.seconds.resize_with(second + 1, Second::default);
        }
        Some(second)
    }

    /// `count` messages were due at `due`.
    pub fn offered(&mut self, kind: Kind, due: u64, count: u64) {
        if let Some(second) = self.place(due) {
            self.kinds.entry(kind).or_default().offered += count;
            let kinds = &mut self.seconds[second].kinds;
            kinds.entry(kind).or_insert_with(Count::coarse).offered += count;
        }
    }

    /// `count` messages that were due at `due` are done at `now`.
    pub fn done(&mut self, kind: Kind, due: u64, now: u64, count: u64) {
        if let Some(second) = self.place(due) {
            let took = now.saturating_sub(due);
            let whole = self.kinds.entry(kind).or_default();
            let kinds = &mut self.seconds[second].kinds;
            for place in [whole, kinds.entry(kind).or_insert_with(Count::coarse)] {
                place.done += count;
                place.times.record(took, count);
            }
        }
    }

    /// A message was refused.
    pub fn refuse(&mut self, kind: Kind, reason: &str) {
        let reasons = self.refused.entry(kind).or_default();
        match reasons.get_mut(reason) {
            Some(count) => *count += 1,
            None => {
                reasons.insert(reason.to_owned(), 1);
            }
        }
    }

    /// Something that should not happen.
    pub fn complain(&mut self, what: impl FnOnce() -> String) {
        self.complaints += 1;
        self.complaint.get_or_insert_with(what);
    }

    /// The ride's entry, unless there are too many.
    pub fn ride(&mut self, ride: RideId) -> Option<&mut RideSeen> {
        if self.rides.len() >= RIDES_MAX && !self.rides.contains_key(&ride) {
            self.overflowed += 1;
            return None;
        }
        Some(self.rides.entry(ride).or_default())
    }

    /// Adds what another thread or process counted in the same time.
    pub fn merge(&mut self, other: Tally) {
        if self.lasts == 0 {
            (self.began, self.lasts) = (other.began, other.lasts);
        }
        merge_kinds(&mut self.kinds, &other.kinds, Count::default);
        if self.seconds.len() < other.seconds.len() {
            self.seconds
                .resize_with(other.seconds.len(), Second::default);
        }
        for (ours, theirs) in self.seconds.iter_mut().zip(&other.seconds) {
            merge_kinds(&mut ours.kinds, &theirs.kinds, Count::coarse);
        }
        for (kind, reasons) in other.refused {
            let ours = self.refused.entry(kind).or_default();
            for (reason, count) in reasons {
                *ours.entry(reason).or_default() += count;
            }
        }
        self.pings_sent += other.pings_sent;
        self.pings_unsent += other.pings_unsent;
        self.requested += other.requested;
        self.promised += other.promised;
        self.completed += other.completed;
        self.unclear.extend(other.unclear);
        for (ride, seen) in other.rides {
            self.rides.entry(ride).or_default().merge(&seen);
        }
        self.overflowed += other.overflowed;
        self.sockets_lost += other.sockets_lost;
        self.online += other.online;
        self.complaints += other.complaints;
        self.complaint = self.complaint.take().or(other.complaint);
    }

    /// Puts requests and offers together. Call once, after all parts are merged.
    pub fn match_offers(&mut self) {
        let pairs: Vec<(u64, Option<u64>)> = self
            .rides
            .values()
            .filter_map(|ride| Some((ride.due?, ride.offered)))
            .collect();
        for (due, offered) in pairs {
            self.offered(Kind::RequestToOffer, due, 1);
            if let Some(offered) = offered {
                self.done(Kind::RequestToOffer, due, offered, 1);
            }
        }
    }
}

fn merge_kinds(
    ours: &mut BTreeMap<Kind, Count>,
    theirs: &BTreeMap<Kind, Count>,
    empty: fn() -> Count,
) {
    for (kind, count) in theirs {
        let place = ours.entry(*kind).or_insert_with(empty);
        place.offered += count.offered;
        place.done += count.done;
        place.times.merge(&count.times);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn two_parts_merge_to_what_one_would_have_counted() {
        let mut parts = [
            Tally::new(SECOND, 3 * SECOND),
            Tally::new(SECOND, 3 * SECOND),
        ];
        let mut whole = Tally::new(SECOND, 3 * SECOND);
        for n in 0..10_000u64 {
            let due = n * SECOND / 2_000;
            let took = (n * 7_919) % 50_000_000;
            for tally in [&mut parts[(n % 2) as usize], &mut whole] {
                tally.offered(Kind::Nearby, due, 1);
                tally.done(Kind::Nearby, due, due + took, 1);
                if n % 100 == 0 {
                    tally.refuse(Kind::Request, "busy");
                }
            }
        }
        let [mut merged, other] = parts;
        merged.merge(serde_json::from_str(&serde_json::to_string(&other).unwrap()).unwrap());
        assert_eq!(merged, whole);
        assert_eq!(
            merged.kinds[&Kind::Nearby].offered,
            6_000,
            "only what was due in the measured time"
        );
        assert_eq!(merged.seconds.len(), 3);
        assert_eq!(merged.refused[&Kind::Request]["busy"], 100);
    }

    #[test]
    fn a_histogram_survives_its_base64_form() {
        let mut times = Times::default();
        for n in 1..=100_000 {
            times.record(n * 1_000, 1);
        }
        let text = times.to_base64();
        assert!(
            text.starts_with("HISTF"),
            "the compressed V2 form begins so: {}",
            &text[..8]
        );
        let read = Times::from_base64(&text).unwrap();
        assert_eq!(read, times);
        assert!((read.ms_at(0.5) - 50.0).abs() < 0.1 && (read.ms_at(0.99) - 99.0).abs() < 0.2);
        assert!(Times::from_base64("HISTFAAA").is_err());
    }

    #[test]
    fn a_ride_asked_for_here_and_offered_there_is_one_ride() {
        let ride: RideId = "1-2-3".parse().unwrap();
        let mut here = Tally::new(0, 9 * SECOND);
        *here.ride(ride).unwrap() = RideSeen {
            due: Some(SECOND),
            promised: Some(SECOND + 5_000_000),
            ..RideSeen::default()
        };
        let mut there = Tally::new(0, 9 * SECOND);
        *there.ride(ride).unwrap() = RideSeen {
            offered: Some(SECOND + 7_000_000),
            completed: true,
            ..RideSeen::default()
        };
        here.merge(there);
        here.match_offers();
        let offer = &here.kinds[&Kind::RequestToOffer];
        assert_eq!((offer.offered, offer.done), (1, 1));
        assert!((offer.times.ms_at(1.0) - 7.0).abs() < 0.01);
        assert!(here.rides[&ride].completed);
    }
}
