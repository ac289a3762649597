//! Every answer of the index against a full scan of plain maps, under random histories.
//!
//! Repeat a failing history with `GEO_SEED=<seed> cargo test -p cabrank-geo --test oracle`.

use std::collections::BTreeMap;

use cabrank_geo::{
    Cell, DriverKey, Filter, IndexConfig, IndexFull, LiveIndex, Near, Placed, Placement, Point,
    Polygon, Query, Resolution, Slot, Status,
};
use rand::{Rng, SeedableRng, rngs::SmallRng};

/// One driver as plainly as it can be kept.
#[derive(Clone, Debug)]
struct Known {
    slot: Slot,
    ping: Option<Placement>,
    status: Status,
    classes: u8,
    n: u64,
}

/// Where a history takes place.
#[derive(Clone, Copy, Debug)]
enum Where {
    City,
    Antimeridian,
    NorthPole,
    SouthPole,
    /// Nearly everybody within some metres.
    Stadium,
    Everywhere,
}

struct History {
    rng: SmallRng,
    place: Where,
    now_ms: i64,
    index: LiveIndex,
    known: BTreeMap<u64, Known>,
    left: Vec<Slot>,
    drivers_max: u32,
}

impl History {
    fn new(seed: u64, place: Where, drivers_max: u32) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let patch_m = [120.0, 500.0, 2_000.0][rng.random_range(0..3)];
        Self {
            rng,
            place,
            now_ms: 1_000_000,
            index: LiveIndex::new(IndexConfig {
                drivers_max,
                patch_m,
            }),
            known: BTreeMap::new(),
            left: Vec::new(),
            drivers_max,
        }
    }

    fn somewhere(&mut self) -> Point {
        let rng = &mut self.rng;
        let around = |rng: &mut SmallRng, lat: f64, lon: f64, m: f64| {
            let (north, east) = (rng.random_range(-m..m), rng.random_range(-m..m));
            Point::new(lat, lon).unwrap().offset_m(north, east)
        };
        match self.place {
            Where::City => around(rng, 37.77, -122.42, 3_000.0),
            Where::Antimeridian => around(rng, -16.8, 180.0, 3_000.0),
            Where::NorthPole => Point::new(
                90.0 - rng.random_range(0.0..0.03),
                rng.random_range(-180.0..180.0),
            )
            .unwrap(),
            Where::SouthPole => Point::new(
                -90.0 + rng.random_range(0.0..0.03),
                rng.random_range(-180.0..180.0),
            )
            .unwrap(),
            Where::Stadium if rng.random_bool(0.9) => around(rng, 37.77, -122.38, 40.0),
            Where::Stadium => around(rng, 37.77, -122.38, 3_000.0),
            Where::Everywhere => Point::new(
                rng.random_range(-90.0..=90.0),
                rng.random_range(-180.0..=180.0),
            )
            .unwrap(),
        }
    }

    fn step(&mut self) {
        self.now_ms += self.rng.random_range(0..50);
        let key = self.rng.random_range(0..u64::from(self.drivers_max) + 3);
        match self.rng.random_range(0..100) {
            0..20 => self.enter(key),
            20..75 => self.ping(key),
            75..96 => self.status(key),
            96..98 => self.leave(key),
            _ => self.late_word_to_a_driver_that_left(),
        }
    }

    fn enter(&mut self, key: u64) {
        let entered = self.index.enter(DriverKey(key));
        let full = self.known.len() >= self.drivers_max as usize;
        match (self.known.get(&key), entered) {
            (Some(known), Ok(slot)) => {
                assert_eq!(known.slot, slot, "the same key twice is the same slot")
            }
            (None, Ok(slot)) => {
                assert!(!full);
                let fresh = Known {
                    slot,
                    ping: None,
                    status: Status::Offline,
                    classes: 0,
                    n: 0,
                };
                self.known.insert(key, fresh);
            }
            (None, Err(IndexFull { drivers_max })) => {
                assert!(
                    full && drivers_max == self.drivers_max,
                    "refused though there is room"
                );
            }
            (Some(_), Err(full)) => panic!("refused a known driver: {full}"),
        }
    }

    fn ping(&mut self, key: u64) {
        let at = self.somewhere();
        let nudge = (
            self.rng.random_range(-60.0..60.0),
            self.rng.random_range(-60.0..60.0),
        );
        let time_ms = self.now_ms - self.rng.random_range(0..400);
        let seq = self.rng.random_range(0..3);
        let hop = self.rng.random_bool(0.3);
        let Some(known) = self.known.get_mut(&key) else {
            return;
        };
        let at = match known.ping {
            Some(ping) if !hop => ping.at.offset_m(nudge.0, nudge.1),
            _ => at,
        };
        let ping = Placement { at, time_ms, seq };
        let placed = self.index.place(known.slot, ping);
        match known.ping {
            None => assert_eq!(placed, Placed::First),
            Some(old) if (old.time_ms, old.seq) < (time_ms, seq) => {
                assert!(matches!(placed, Placed::Moved { .. }), "{placed:?}");
            }
            Some(_) => {
                assert_eq!(placed, Placed::Stale);
                return;
            }
        }
        known.ping = Some(ping);
    }

    fn status(&mut self, key: u64) {
        let status = [Status::Offline, Status::Free, Status::Free, Status::Busy]
            [self.rng.random_range(0..4)];
        let classes = self.rng.random_range(0..8);
        let change: i64 = self.rng.random_range(-2..4);
        let Some(known) = self.known.get_mut(&key) else {
            return;
        };
        let n = known.n.saturating_add_signed(change);
        let newer = n > known.n;
        assert_eq!(self.index.set_status(known.slot, status, classes, n), newer);
        if newer {
            (known.status, known.classes, known.n) = (status, classes, n);
        }
    }

    fn leave(&mut self, key: u64) {
        if let Some(known) = self.known.remove(&key) {
            self.index.leave(known.slot);
            self.left.push(known.slot);
        }
    }

    fn late_word_to_a_driver_that_left(&mut self) {
        let at = self.somewhere();
        if let Some(&slot) = self.left.last() {
            let ping = Placement {
                at,
                time_ms: self.now_ms,
                seq: 9,
            };
            assert_eq!(self.index.place(slot, ping), Placed::Gone);
            assert!(!self.index.set_status(slot, Status::Free, 1, 1_000));
            assert_eq!(self.index.get(slot), None);
            self.index.leave(slot);
        }
    }

    fn check(&mut self) {
        assert_eq!(self.index.len(), self.known.len());
        for (&key, known) in &self.known {
            let seen = self.index.get(known.slot).expect("a known driver is there");
            assert_eq!((seen.key, seen.placement), (DriverKey(key), known.ping));
            assert_eq!(
                (seen.status, seen.classes, seen.n),
                (known.status, known.classes, known.n)
            );
            assert_eq!(self.index.slot_of(DriverKey(key)), Some(known.slot));
        }
        let at = self.somewhere();
        let radius_m: f64 =
            [30.0, 400.0, 2_500.0, 9_000.0, 400_000.0, 30_000_000.0][self.rng.random_range(0..6)];
        let k = [1, 3, 10, 63, 64, 65, 500][self.rng.random_range(0..7)];
        let filter = Filter {
            now_ms: self.now_ms,
            ping_ttl_ms: self.rng.random_range(0..3_000),
            status: [
                None,
                Some(Status::Free),
                Some(Status::Busy),
                Some(Status::Offline),
            ][self.rng.random_range(0..4)],
            classes: self.rng.random_range(0..4),
        };
        let refused = self.rng.random_range(0..10);
        let keep = |near: &Near| near.key.0 % 10 != refused;
        let mut want = self.scan(&filter);
        want.retain(keep);

        let mut out = Vec::new();
        self.index
            .inside_polygon(&around(at, radius_m.min(50_000.0)), &filter, keep, &mut out);
        let outline = around(at, radius_m.min(50_000.0));
        let inside: Vec<Near> = want
            .iter()
            .copied()
            .filter(|near| outline.contains(near.at))
            .collect();
        assert_eq!(out, inside, "inside {outline:?}");

        let res = Resolution::try_from(7).unwrap();
        let mut counts = Vec::new();
        self.index.count_per_cell(res, &filter, &mut counts);
        let mut cells = BTreeMap::new();
        for near in self.scan(&filter) {
            *cells.entry(Cell::at(near.at, res)).or_insert(0) += 1;
        }
        assert_eq!(counts, cells.into_iter().collect::<Vec<_>>());

        for near in &mut want {
            near.distance_m = at.distance_m(near.at);
        }
        want.retain(|near| near.distance_m <= radius_m);
        want.sort_by(|a, b| {
            a.distance_m
                .total_cmp(&b.distance_m)
                .then(a.key.cmp(&b.key))
        });
        self.index
            .within_radius(at, radius_m, &filter, keep, &mut out);
        assert_eq!(out, want, "within {radius_m} m of {at}");
        want.truncate(k);
        self.index.nearest(
            &Query {
                at,
                radius_m,
                k,
                filter,
            },
            keep,
            &mut out,
        );
        assert_eq!(out, want, "{k} nearest within {radius_m} m of {at}");
    }

    /// All that count, by key.
    fn scan(&self, filter: &Filter) -> Vec<Near> {
        let counts = |(&key, known): (&u64, &Known)| {
            let ping = known.ping?;
            let age_ms = filter.now_ms - ping.time_ms;
            let counts = known.status != Status::Offline
                && (filter.status.is_none() || filter.status == Some(known.status))
                && (filter.classes == 0 || known.classes & filter.classes != 0)
                && age_ms <= filter.ping_ttl_ms;
            counts.then_some(Near {
                key: DriverKey(key),
                at: ping.at,
                distance_m: 0.0,
                age_ms,
                time_ms: ping.time_ms,
                status: known.status,
                classes: known.classes,
                n: known.n,
            })
        };
        self.known.iter().filter_map(counts).collect()
    }
}

/// A lopsided outline about a place, not round a pole.
fn around(at: Point, reach_m: f64) -> Polygon {
    let at = if at.lat_deg().abs() > 80.0 {
        Point::new(at.lat_deg().clamp(-80.0, 80.0), at.lon_deg()).unwrap()
    } else {
        at
    };
    let corner = |north: f64, east: f64| at.offset_m(north * reach_m, east * reach_m);
    let corners = [
        corner(1.0, -0.7),
        corner(0.6, 0.9),
        corner(0.1, 0.2),
        corner(-0.8, 0.8),
        corner(-1.0, -1.0),
    ];
    Polygon::new(&corners).unwrap()
}

fn tell(place: Where, drivers_max: u32, steps: u32) {
    let seeds = match std::env::var("GEO_SEED") {
        Ok(seed) => vec![seed.parse().expect("GEO_SEED is a number")],
        Err(_) => (0..12).collect(),
    };
    for seed in seeds {
        let mut history = History::new(seed, place, drivers_max);
        for step in 0..steps {
            let told = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                history.step();
                if step % 50 == 49 {
                    history.check();
                }
            }));
            if let Err(why) = told {
                eprintln!("GEO_SEED={seed} place={place:?} step={step}");
                std::panic::resume_unwind(why);
            }
        }
    }
}

#[test]
fn a_city_agrees_with_a_full_scan() {
    tell(Where::City, 300, 6_000);
}

#[test]
fn the_antimeridian_agrees_with_a_full_scan() {
    tell(Where::Antimeridian, 300, 4_000);
}

#[test]
fn the_north_pole_agrees_with_a_full_scan() {
    tell(Where::NorthPole, 300, 4_000);
}

#[test]
fn the_south_pole_agrees_with_a_full_scan() {
    tell(Where::SouthPole, 300, 4_000);
}

#[test]
fn a_stadium_agrees_with_a_full_scan() {
    tell(Where::Stadium, 400, 6_000);
}

#[test]
fn the_whole_earth_agrees_with_a_full_scan() {
    tell(Where::Everywhere, 300, 4_000);
}

#[test]
fn a_tiny_index_that_is_often_full_agrees_with_a_full_scan() {
    tell(Where::City, 5, 6_000);
}
