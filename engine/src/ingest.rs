//! Which pings are believed?
//!
//! One [`PingGate`] per driver checks each position report against the ones before it. A ping that is refused spoils
//! itself only: the gate stays as it was, save for what it remembers to recover from a wrong belief.
//! Cost: no allocation and no call of a library beyond one distance; refusing costs what accepting costs.
//! Not here: whether the driver is online and which of two nodes' pings is newer (the index), counters (the gateway).

use cabrank_events::wire::{Ping, PingRefusal};
use cabrank_events::{Place, Time};
use cabrank_geo::Point;
use serde::{Deserialize, Serialize};

/// What a ping must satisfy.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct IngestConfig {
    /// How far ahead of the server a phone's clock may be, in ms of domain time (0 to 60,000). Larger forgives bad
    /// clocks; but a ping from the future shuts out the true ones until its time has come.
    pub future_ms_max: u64,
    /// How old a ping may be on arrival, in ms of domain time (1,000 to 3,600,000). At least the index's `ping_ttl`
    /// is sensible; older positions would not be found anyway.
    pub age_ms_max: u64,
    /// The fastest a car is believed to drive, in metres a second (20 to 300).
    pub speed_mps_max: f64,
    /// How far a position may jump by measuring errors alone, in metres (0 to 10,000). Added to what the speed allows,
    /// so that two pings a millisecond apart may differ by a street.
    pub jump_m_max: f64,
    /// The largest radius of uncertainty a phone may report, in metres (10 to 100,000).
    pub accuracy_m_max: f32,
    /// After a refused jump: so many pings in a row that agree with each other are believed although they contradict
    /// the last believed one (2 to 100). Without it one wrong ping would lock its driver out.
    pub agreeing_pings: u32,
    /// Pings a second and driver, on the wall clock; 0 is no limit (a replay that runs fast needs that).
    pub pings_per_second: u32,
    /// How many pings may come at once after a silence (a tunnel), at least `pings_per_second`.
    pub ping_burst: u32,
}

impl IngestConfig {
    /// Phones that ping every few seconds (`ping_ttl` 30 s).
    pub fn phones() -> Self {
        Self {
            future_ms_max: 5_000,
            age_ms_max: 120_000,
            speed_mps_max: 70.0,
            jump_m_max: 150.0,
            accuracy_m_max: 500.0,
            agreeing_pings: 3,
            pings_per_second: 5,
            ping_burst: 20,
        }
    }

    /// Taxi feeds that ping about once a minute (`ping_ttl` 300 s).
    pub fn taxi_feed() -> Self {
        Self {
            age_ms_max: 300_000,
            jump_m_max: 500.0,
            ..Self::phones()
        }
    }

    /// The first value outside its range: its key and what to write instead.
    pub fn check(&self) -> Result<(), BadIngestConfig> {
        let bad = |key, remedy| Err(BadIngestConfig { key, remedy });
        if self.future_ms_max > 60_000 {
            return bad("future_ms_max", "0 to 60000");
        }
        if !(1_000..=3_600_000).contains(&self.age_ms_max) {
            return bad("age_ms_max", "1000 to 3600000");
        }
        if !(20.0..=300.0).contains(&self.speed_mps_max) {
            return bad("speed_mps_max", "20 to 300");
        }
        if !(0.0..=10_000.0).contains(&self.jump_m_max) {
            return bad("jump_m_max", "0 to 10000");
        }
        if !(10.0..=100_000.0).contains(&self.accuracy_m_max) {
            return bad("accuracy_m_max", "10 to 100000");
        }
        if !(2..=100).contains(&self.agreeing_pings) {
            return bad("agreeing_pings", "2 to 100");
        }
        if self.ping_burst < self.pings_per_second {
            return bad("ping_burst", "at least pings_per_second");
        }
        Ok(())
    }
}

impl Default for IngestConfig {
    fn default() -> Self {
        Self::phones()
    }
}

/// A value of the ingest configuration outside its range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("ingest.{key} is out of range: set {remedy}")]
pub struct BadIngestConfig {
    /// The key.
    pub key: &'static str,
    /// What to write instead.
    pub remedy: &'static str,
}

/// A ping that passed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Checked {
    /// Where the driver is.
    pub at: Place,
    /// When that was measured.
    pub time: Time,
    /// The phone's count.
    pub seq: u32,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    at: Point,
    time: Time,
    seq: u32,
}

impl Seen {
    fn is_before(&self, later: &Seen) -> bool {
        (self.time, self.seq) < (later.time, later.seq)
    }

    /// Could a car have come from here to `later`, allowing for errors of measuring?
    fn reaches(&self, later: &Seen, config: &IngestConfig) -> bool {
        let seconds = later.time.since(self.time).max(0) as f64 / 1_000.0;
        self.at.distance_m(later.at) <= config.speed_mps_max * seconds + config.jump_m_max
    }
}

/// Pings that contradict the belief but agree with each other.
#[derive(Clone, Copy, Debug)]
struct Suspicion {
    newest: Seen,
    agreeing: u32,
}

/// What one ping costs in a bucket that gains `pings_per_second` each millisecond.
const PING_COST: u64 = 1_000;

/// What is remembered of one driver to judge the next ping. Survives a reconnection: keep it by driver, not by socket.
#[derive(Clone, Copy, Debug, Default)]
pub struct PingGate {
    believed: Option<Seen>,
    suspicion: Option<Suspicion>,
    /// What is left of the bucket, and when that was; `None` is a full bucket.
    bucket: Option<(u64, u64)>,
}

impl PingGate {
    /// A driver never heard of.
    pub fn new() -> Self {
        Self::default()
    }

    /// Judges one ping. `now` is domain time (it is also the ping's time if the phone gave none); `wall_ms` is any
    /// monotonic count of wall-clock milliseconds, for the rate.
    pub fn check(
        &mut self,
        config: &IngestConfig,
        now: Time,
        wall_ms: u64,
        ping: &Ping,
    ) -> Result<Checked, PingRefusal> {
        self.take_from_bucket(config, wall_ms)?;
        let at = Point::new(ping.lat, ping.lon).map_err(|_| PingRefusal::BadCoordinates)?;
        // Written so that a NaN is refused.
        if ping
            .accuracy
            .is_some_and(|radius| !(0.0..=config.accuracy_m_max).contains(&radius))
        {
            return Err(PingRefusal::BadAccuracy);
        }
        let seen = Seen {
            at,
            time: ping.time.map_or(now, Time),
            seq: ping.seq,
        };
        if seen.time > now.plus_ms(config.future_ms_max) {
            return Err(PingRefusal::FromTheFuture);
        }
        if seen.time.plus_ms(config.age_ms_max) < now {
            return Err(PingRefusal::TooOld);
        }
        if self
            .believed
            .is_some_and(|believed| !believed.is_before(&seen))
        {
            return Err(PingRefusal::OutOfOrder);
        }
        if self
            .believed
            .is_some_and(|believed| !believed.reaches(&seen, config))
            && !self.is_convinced_by(&seen, config)
        {
            return Err(PingRefusal::ImpossibleSpeed);
        }
        self.believed = Some(seen);
        self.suspicion = None;
        Ok(Checked {
            at: Place(at),
            time: seen.time,
            seq: seen.seq,
        })
    }

    /// Counts a ping that jumped; true when enough of them agree. A repeated or older one proves nothing new.
    fn is_convinced_by(&mut self, seen: &Seen, config: &IngestConfig) -> bool {
        let agreeing = match self.suspicion {
            Some(before) if !before.newest.is_before(seen) => return false,
            Some(before) if before.newest.reaches(seen, config) => before.agreeing + 1,
            _ => 1,
        };
        self.suspicion = Some(Suspicion {
            newest: *seen,
            agreeing,
        });
        agreeing >= config.agreeing_pings
    }

    fn take_from_bucket(&mut self, config: &IngestConfig, wall_ms: u64) -> Result<(), PingRefusal> {
        if config.pings_per_second == 0 {
            return Ok(());
        }
        let full = u64::from(config.ping_burst.max(1)) * PING_COST;
        let level = match self.bucket {
            None => full,
            Some((level, at)) => {
                let gained = wall_ms
                    .saturating_sub(at)
                    .saturating_mul(u64::from(config.pings_per_second));
                level.saturating_add(gained).min(full)
            }
        };
        let left = level.checked_sub(PING_COST);
        self.bucket = Some((left.unwrap_or(level), wall_ms));
        left.map(|_| ()).ok_or(PingRefusal::TooMany)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOON: Time = Time(1_211_500_800_000);

    /// A phone at work: pings are given as seconds after noon and metres north and east of the start.
    struct Phone {
        gate: PingGate,
        config: IngestConfig,
        seq: u32,
    }

    fn phone() -> Phone {
        let config = IngestConfig {
            pings_per_second: 0,
            ..IngestConfig::phones()
        };
        Phone {
            gate: PingGate::new(),
            config,
            seq: 0,
        }
    }

    fn ping_at(second: f64, metres: (f64, f64), seq: u32) -> Ping {
        let at = Point::new(37.77, -122.42)
            .unwrap()
            .offset_m(metres.0, metres.1);
        let time = Some(NOON.0 + (second * 1_000.0) as i64);
        Ping {
            lat: at.lat_deg(),
            lon: at.lon_deg(),
            time,
            seq,
            accuracy: None,
        }
    }

    impl Phone {
        fn hears(&mut self, second: f64, ping: Ping) -> Result<(), PingRefusal> {
            let now = NOON.plus_ms((second * 1_000.0) as u64);
            self.gate
                .check(&self.config, now, (second * 1_000.0) as u64, &ping)
                .map(|_| ())
        }

        fn drives(&mut self, second: f64, metres: (f64, f64)) -> Result<(), PingRefusal> {
            self.seq += 1;
            self.hears(second, ping_at(second, metres, self.seq))
        }
    }

    #[test]
    fn a_driving_car_is_believed() {
        let mut phone = phone();
        for second in 0..100 {
            phone
                .drives(f64::from(second), (f64::from(second) * 20.0, 0.0))
                .unwrap();
        }
    }

    #[test]
    fn each_fault_has_its_reason() {
        let good = ping_at(0.0, (0.0, 0.0), 1);
        let time = |ms: i64| Ping {
            time: Some(NOON.0 + ms),
            ..good
        };
        let cases = [
            (Ping { lat: 90.1, ..good }, PingRefusal::BadCoordinates),
            (
                Ping {
                    lat: f64::NAN,
                    ..good
                },
                PingRefusal::BadCoordinates,
            ),
            (
                Ping {
                    lon: f64::INFINITY,
                    ..good
                },
                PingRefusal::BadCoordinates,
            ),
            (
                Ping {
                    accuracy: Some(500.5),
                    ..good
                },
                PingRefusal::BadAccuracy,
            ),
            (
                Ping {
                    accuracy: Some(f32::NAN),
                    ..good
                },
                PingRefusal::BadAccuracy,
            ),
            (
                Ping {
                    accuracy: Some(-1.0),
                    ..good
                },
                PingRefusal::BadAccuracy,
            ),
            (time(5_001), PingRefusal::FromTheFuture),
            (time(i64::MAX - NOON.0), PingRefusal::FromTheFuture),
            (time(-120_001), PingRefusal::TooOld),
            (time(i64::MIN + NOON.0), PingRefusal::TooOld),
        ];
        for (ping, why) in cases {
            let mut phone = phone();
            assert_eq!(phone.hears(0.0, ping), Err(why), "{ping:?}");
            assert_eq!(
                phone.hears(0.0, good),
                Ok(()),
                "a refused ping must not spoil the next: {ping:?}"
            );
        }
        for edge in [
            time(5_000),
            time(-120_000),
            Ping {
                accuracy: Some(500.0),
                ..good
            },
        ] {
            assert_eq!(phone().hears(0.0, edge), Ok(()), "{edge:?} is within");
        }
    }

    #[test]
    fn order_is_by_time_and_then_by_count_and_a_repetition_is_out_of_order() {
        let mut phone = phone();
        phone.hears(10.0, ping_at(10.0, (0.0, 0.0), 5)).unwrap();
        let refused = Err(PingRefusal::OutOfOrder);
        assert_eq!(phone.hears(10.0, ping_at(10.0, (0.0, 0.0), 5)), refused);
        assert_eq!(phone.hears(10.0, ping_at(10.0, (0.0, 0.0), 4)), refused);
        assert_eq!(phone.hears(10.0, ping_at(9.0, (0.0, 0.0), 6)), refused);
        assert_eq!(phone.hears(10.0, ping_at(10.0, (0.0, 0.0), 6)), Ok(()));
        assert_eq!(phone.hears(11.0, ping_at(11.0, (0.0, 0.0), 0)), Ok(()));
    }

    #[test]
    fn a_ping_without_a_time_was_measured_now() {
        let mut phone = phone();
        let ping = Ping {
            time: None,
            ..ping_at(0.0, (0.0, 0.0), 0)
        };
        let checked = phone.gate.check(&phone.config, NOON, 0, &ping).unwrap();
        assert_eq!(checked.time, NOON);
        assert_eq!(phone.hears(0.0, ping), Err(PingRefusal::OutOfOrder));
        assert_eq!(phone.hears(0.001, ping), Ok(()));
    }

    #[test]
    fn one_wild_ping_is_refused_and_forgotten() {
        let mut phone = phone();
        phone.drives(0.0, (0.0, 0.0)).unwrap();
        assert_eq!(
            phone.drives(5.0, (50_000.0, 0.0)),
            Err(PingRefusal::ImpossibleSpeed)
        );
        for second in [10.0, 15.0, 20.0] {
            phone.drives(second, (second, 0.0)).unwrap();
        }
        // Two wild ones apart in time do not add up to agreement.
        assert_eq!(
            phone.drives(25.0, (50_000.0, 0.0)),
            Err(PingRefusal::ImpossibleSpeed)
        );
        phone.drives(30.0, (30.0, 0.0)).unwrap();
        assert_eq!(
            phone.drives(35.0, (50_000.0, 0.0)),
            Err(PingRefusal::ImpossibleSpeed)
        );
        assert_eq!(
            phone.drives(40.0, (50_000.0, 0.0)),
            Err(PingRefusal::ImpossibleSpeed)
        );
    }

    #[test]
    fn a_wrong_first_ping_does_not_lock_the_driver_out() {
        let mut phone = phone();
        phone.drives(0.0, (300_000.0, 0.0)).unwrap();
        assert_eq!(
            phone.drives(5.0, (0.0, 0.0)),
            Err(PingRefusal::ImpossibleSpeed)
        );
        assert_eq!(
            phone.drives(10.0, (50.0, 0.0)),
            Err(PingRefusal::ImpossibleSpeed)
        );
        assert_eq!(
            phone.drives(15.0, (100.0, 0.0)),
            Ok(()),
            "three pings agree"
        );
        assert_eq!(phone.drives(20.0, (150.0, 0.0)), Ok(()));
    }

    #[test]
    fn repeating_a_wild_ping_convinces_nobody() {
        let mut phone = phone();
        phone.drives(0.0, (0.0, 0.0)).unwrap();
        let wild = ping_at(5.0, (50_000.0, 0.0), 9);
        for _ in 0..10 {
            assert_eq!(phone.hears(5.0, wild), Err(PingRefusal::ImpossibleSpeed));
        }
    }

    #[test]
    fn pings_that_scatter_do_not_agree() {
        let mut phone = phone();
        phone.drives(0.0, (0.0, 0.0)).unwrap();
        for turn in 1..20 {
            let side = if turn % 2 == 0 { 60_000.0 } else { -60_000.0 };
            let scattered = phone.drives(f64::from(turn), (side, 0.0));
            assert_eq!(scattered, Err(PingRefusal::ImpossibleSpeed));
        }
    }

    #[test]
    fn a_long_silence_allows_a_long_way() {
        let mut phone = phone();
        phone.drives(0.0, (0.0, 0.0)).unwrap();
        assert_eq!(phone.drives(600.0, (30_000.0, 0.0)), Ok(()));
    }

    #[test]
    fn the_rate_is_kept_over_a_long_time_and_a_burst_is_allowed() {
        let config = IngestConfig {
            pings_per_second: 5,
            ping_burst: 20,
            ..IngestConfig::phones()
        };
        let mut gate = PingGate::new();
        let mut passed_in = |from_ms: u64, to_ms: u64| {
            let all = (from_ms..to_ms).map(|ms| {
                let ping = Ping {
                    time: Some(NOON.0 + ms as i64),
                    ..ping_at(0.0, (0.0, 0.0), 0)
                };
                gate.check(&config, NOON.plus_ms(ms), ms, &ping)
            });
            all.filter(|result| {
                assert!(matches!(result, Ok(_) | Err(PingRefusal::TooMany)));
                result.is_ok()
            })
            .count()
        };
        assert_eq!(passed_in(0, 1), 1);
        assert_eq!(passed_in(1, 20), 19, "the burst");
        assert_eq!(passed_in(20, 10_020), 50, "then five a second");
        assert_eq!(passed_in(60_000, 60_040), 20, "full again after a silence");
    }

    #[test]
    fn a_bad_value_is_named() {
        let bad = IngestConfig {
            agreeing_pings: 1,
            ..IngestConfig::phones()
        };
        assert_eq!(bad.check().unwrap_err().key, "agreeing_pings");
        assert_eq!(IngestConfig::taxi_feed().check(), Ok(()));
    }
}
