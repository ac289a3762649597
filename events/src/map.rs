//! What does a map draw? A city cut into tiles, as bytes that a page reads (`docs/protocol.md`, "The map").
//!
//! [`Sketch`] gathers drivers and rides, [`Drawing`] is the finished one, of which a view is cut. Drawings one after another
//! are a [`Film`]. Pure bytes: who is where is said by the caller.
//!
//! Bounds: an answer holds at most what the caller allows; a film at most its bytes, and then every second of its drawings goes.

use std::collections::BTreeMap;

use cabrank_geo::Point;

use crate::wire::{RideStage, RideView};
use crate::{HoldId, RideId, Time};

/// The version of the layout, first byte of each drawing.
pub const LAYOUT: u8 = 1;
/// The side of a tile in units of 1e-7 degrees: 0.02 degrees, about 2 km. Places in a tile are 16-bit parts of it, 3 cm.
const TILE_E7: i32 = 200_000;
/// The view holds more than an answer may.
const FLAG_TOO_MANY: u8 = 1;
/// No driver, in a ride's record.
pub const NOBODY: u32 = u32::MAX;
/// Keys of drivers whom a film shows and the live map does not: from here on.
pub const FILM_KEYS_FROM: u32 = 1 << 31;
/// Set beside the state of a driver who should ping and does not.
const SILENT: u8 = 0x80;
/// A driver: key, place in the tile, state.
const DRIVER_BYTES: usize = 4 + 2 + 2 + 1;
/// A ride: id, stage, whether it has a drop-off, pickup, drop-off, the driver's key, the driver's place.
const RIDE_BYTES: usize = 2 + 2 + 8 + 1 + 1 + 8 + 8 + 4 + 8;
/// Layout, flags, tick, number, time, bounds, counts.
const HEAD_BYTES: usize = 1 + 1 + 2 + 4 + 8 + 16 + 44;

/// How a driver is drawn; the numbers are those of the drawing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Shown {
    /// Not at work.
    Offline = 0,
    /// Waiting for an offer.
    Free = 1,
    /// Kept for a ride, being asked.
    Held = 2,
    /// On the way to a pickup, or there.
    ToPickup = 3,
    /// With a rider.
    WithRider = 4,
}

impl Shown {
    /// How a driver is drawn who is online or not, holds a ride or none, which is where `stage` says.
    pub fn of(
        is_online: bool,
        hold: Option<HoldId>,
        stage: impl Fn(RideId) -> Option<RideStage>,
    ) -> Shown {
        match (is_online, hold) {
            (_, Some(hold)) => match stage(hold.ride) {
                Some(RideStage::EnRoute | RideStage::Arrived) => Shown::ToPickup,
                Some(RideStage::Started) => Shown::WithRider,
                _ => Shown::Held,
            },
            (true, None) => Shown::Free,
            (false, None) => Shown::Offline,
        }
    }
}

#[derive(Default)]
struct Tile {
    drivers: Vec<u8>,
    rides: Vec<u8>,
}

/// A part of Earth as a page sees it, degrees. West may be east of east: over the antimeridian.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct View {
    /// Its sides.
    pub south: f64,
    /// Its sides.
    pub west: f64,
    /// Its sides.
    pub north: f64,
    /// Its sides.
    pub east: f64,
}

impl View {
    /// All of Earth.
    pub const WHOLE: View = View {
        south: -90.0,
        west: -180.0,
        north: 90.0,
        east: 180.0,
    };

    /// Does a place lie in it, or at most `margin` degrees beside it?
    pub fn holds(&self, lat: f64, lon: f64, margin: f64) -> bool {
        let (west, east) = (self.west - margin, self.east + margin);
        let in_turn = if self.west <= self.east {
            (west..=east).contains(&lon)
        } else {
            // Over the antimeridian.
            lon >= west || lon <= east
        };
        in_turn && (self.south - margin..=self.north + margin).contains(&lat)
    }
}

fn tile_of(at: Point) -> (i16, i16) {
    // 90 degrees are 4,500 tiles and 180 are 9,000: both fit.
    let part = |e7: i32| i16::try_from(e7.div_euclid(TILE_E7)).unwrap_or(i16::MAX);
    (part(at.lat_e7()), part(at.lon_e7()))
}

/// The place within its tile.
fn within(e7: i32) -> u16 {
    let part = i64::from(e7.rem_euclid(TILE_E7)) * 65_536 / i64::from(TILE_E7);
    u16::try_from(part).unwrap_or(u16::MAX)
}

fn put_place(out: &mut Vec<u8>, at: Point) {
    out.extend(at.lat_e7().to_le_bytes());
    out.extend(at.lon_e7().to_le_bytes());
}

fn stage_number(stage: RideStage) -> Option<u8> {
    match stage {
        RideStage::Waiting => Some(0),
        RideStage::Offered => Some(1),
        RideStage::EnRoute => Some(2),
        RideStage::Arrived => Some(3),
        RideStage::Started => Some(4),
        RideStage::Completed | RideStage::Cancelled | RideStage::Unfulfilled => None,
    }
}

/// A drawing that is being made: all drivers and rides, in any order.
#[derive(Default)]
pub struct Sketch {
    counts: [u32; 11],
    tiles: BTreeMap<(i16, i16), Tile>,
    lats: Vec<i32>,
    lons: Vec<i32>,
}

impl Sketch {
    /// A driver; one whose place nobody knows is only counted.
    pub fn driver(&mut self, key: u32, shown: Shown, at: Option<Point>, is_silent: bool) {
        self.counts[shown as usize] += 1;
        let Some(at) = at else { return };
        self.lats.push(at.lat_e7());
        self.lons.push(at.lon_e7());
        let mut state = shown as u8;
        if is_silent && shown != Shown::Offline {
            state |= SILENT;
            self.counts[5] += 1;
        }
        let out = &mut self.tiles.entry(tile_of(at)).or_default().drivers;
        out.extend(key.to_le_bytes());
        out.extend(within(at.lat_e7()).to_le_bytes());
        out.extend(within(at.lon_e7()).to_le_bytes());
        out.push(state);
    }

    /// A ride, its driver's key and where the car is; an ended one is not drawn.
    pub fn ride(&mut self, ride: &RideView, driver: Option<u32>, car: Option<Point>) {
        let Some(stage) = stage_number(ride.stage) else {
            return;
        };
        self.counts[6 + usize::from(stage)] += 1;
        self.lats.push(ride.pickup.0.lat_e7());
        self.lons.push(ride.pickup.0.lon_e7());
        let record = ride_record(ride, stage, driver, car);
        // Where its car is, too: a page that sees the car sees where it goes.
        let here = tile_of(ride.pickup.0);
        self.tiles.entry(here).or_default().rides.extend(&record);
        if let Some(there) = car.map(tile_of).filter(|there| *there != here) {
            self.tiles.entry(there).or_default().rides.extend(&record);
        }
    }

    /// The drawing of `now`.
    pub fn finish(mut self, number: u32, tick_ms: u64, now: Time) -> Drawing {
        let mut head = Vec::with_capacity(HEAD_BYTES);
        head.extend([LAYOUT, 0]);
        head.extend(u16::try_from(tick_ms).unwrap_or(u16::MAX).to_le_bytes());
        head.extend(number.to_le_bytes());
        head.extend(now.0.to_le_bytes());
        let (south, north) = most_of(&mut self.lats);
        let (west, east) = most_of(&mut self.lons);
        for side in [south, west, north, east] {
            head.extend(side.to_le_bytes());
        }
        for count in self.counts {
            head.extend(count.to_le_bytes());
        }
        Drawing {
            head,
            tiles: self.tiles,
        }
    }
}

/// The city at one moment.
pub struct Drawing {
    head: Vec<u8>,
    tiles: BTreeMap<(i16, i16), Tile>,
}

impl Drawing {
    /// What a view shows; without one, or with more than `most` drivers or rides in it, only what holds for the whole city.
    pub fn cut(&self, view: Option<View>, most: usize) -> Vec<u8> {
        let side = f64::from(TILE_E7) / 1e7;
        let middle = |n: i16| (f64::from(n) + 0.5) * side;
        let is_seen = |(row, column): (i16, i16)| {
            view.is_some_and(|view| view.holds(middle(row), middle(column), side / 2.0))
        };
        let seen: Vec<_> = self
            .tiles
            .iter()
            .filter(|(place, _)| is_seen(**place))
            .collect();
        let drivers: usize = seen.iter().map(|(_, tile)| tile.drivers.len()).sum();
        let rides: usize = seen.iter().map(|(_, tile)| tile.rides.len()).sum();
        let is_too_many = drivers / DRIVER_BYTES > most || rides / RIDE_BYTES > most;
        let mut out = Vec::with_capacity(self.head.len() + seen.len() * 8 + drivers + rides + 8);
        out.extend(&self.head);
        if is_too_many {
            out[1] |= FLAG_TOO_MANY;
            out.extend([0; 8]);
            return out;
        }
        let count = |bytes: usize, each: usize| ((bytes / each) as u32).to_le_bytes();
        out.extend((seen.len() as u32).to_le_bytes());
        for ((row, column), tile) in &seen {
            out.extend(row.to_le_bytes());
            out.extend(column.to_le_bytes());
            out.extend(count(tile.drivers.len(), DRIVER_BYTES));
            out.extend(&tile.drivers);
        }
        out.extend(count(rides, RIDE_BYTES));
        seen.iter().for_each(|(_, tile)| out.extend(&tile.rides));
        out
    }
}

fn ride_record(ride: &RideView, stage: u8, driver: Option<u32>, car: Option<Point>) -> Vec<u8> {
    let mut out = Vec::with_capacity(RIDE_BYTES);
    out.extend(ride.ride.place.0.to_le_bytes());
    out.extend(ride.ride.minted_by.0.to_le_bytes());
    out.extend(ride.ride.offset.to_le_bytes());
    out.push(stage);
    out.push(u8::from(ride.dropoff.is_some()));
    put_place(&mut out, ride.pickup.0);
    put_place(&mut out, ride.dropoff.unwrap_or(ride.pickup).0);
    // A car without a place has no line to be drawn.
    out.extend(
        driver
            .filter(|_| car.is_some())
            .unwrap_or(NOBODY)
            .to_le_bytes(),
    );
    put_place(&mut out, car.unwrap_or(ride.pickup.0));
    out
}

/// The least and the largest, when the hundredth part at each end is left out: one car far away must not make the city
/// a dot. 0 and 0 of none.
fn most_of(all: &mut [i32]) -> (i32, i32) {
    let out = all.len() / 100;
    let Some(last) = all.len().checked_sub(1 + out) else {
        return (0, 0);
    };
    let least = *all.select_nth_unstable(out).1;
    (least, *all.select_nth_unstable(last).1)
}

/// Drawings of a whole city one after another, which a page shows again.
///
/// The bytes: [`Film::MARK`], then each drawing behind its length as `u32`, little-endian. Every drawing carries its time.
pub struct Film {
    drawings: Vec<Vec<u8>>,
    bytes: usize,
    bytes_max: usize,
    /// Only each so many-th drawing is kept.
    each: u64,
    seen: u64,
}

/// Why bytes are no film.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadFilm {
    /// It does not begin as one.
    #[error(
        "this is no film: `cabrank simulate --film FILE` and `cabrank replay --film FILE` write films"
    )]
    NotOne,
    /// A drawing is cut off, or is no drawing.
    #[error(
        "drawing {number} is broken: the file was cut off, or is of another version of cabrank"
    )]
    Broken {
        /// The first that is, from 1.
        number: usize,
    },
    /// It shows nothing.
    #[error("the film is empty")]
    Empty,
}

impl Film {
    /// The first bytes of each.
    pub const MARK: [u8; 8] = *b"CABFILM1";
    /// The largest that is written: a page holds all of it.
    pub const BYTES_MAX: usize = 64 << 20;

    /// An empty one of at most so many bytes.
    pub fn new(bytes_max: usize) -> Film {
        Film {
            drawings: Vec::new(),
            bytes: 0,
            bytes_max: bytes_max.min(Self::BYTES_MAX),
            each: 1,
            seen: 0,
        }
    }

    /// The next drawing. When all is too large every second one is left out, from then on as well.
    pub fn add(&mut self, drawing: Vec<u8>) {
        let is_kept = self.seen.is_multiple_of(self.each);
        self.seen += 1;
        if !is_kept {
            return;
        }
        self.bytes += 4 + drawing.len();
        self.drawings.push(drawing);
        while Self::MARK.len() + self.bytes > self.bytes_max && self.drawings.len() > 1 {
            let mut n = 0;
            self.drawings.retain(|_| {
                n += 1;
                n % 2 == 1
            });
            self.each *= 2;
            self.bytes = self.drawings.iter().map(|drawing| 4 + drawing.len()).sum();
        }
    }

    /// How many drawings it has.
    pub fn len(&self) -> usize {
        self.drawings.len()
    }

    /// Nothing was added.
    pub fn is_empty(&self) -> bool {
        self.drawings.is_empty()
    }

    /// As it is kept and sent.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(Self::MARK.len() + self.bytes);
        out.extend(Self::MARK);
        for drawing in &self.drawings {
            // A drawing is far smaller than 4 GiB: it is made in memory.
            out.extend((drawing.len() as u32).to_le_bytes());
            out.extend(drawing);
        }
        out
    }

    /// Are these bytes a film? How many drawings they hold.
    pub fn check(bytes: &[u8]) -> Result<usize, BadFilm> {
        let mut rest = bytes.strip_prefix(&Self::MARK).ok_or(BadFilm::NotOne)?;
        let mut number = 0;
        while !rest.is_empty() {
            number += 1;
            let broken = BadFilm::Broken { number };
            let (length, after) = rest.split_first_chunk().ok_or(broken)?;
            let length = u32::from_le_bytes(*length) as usize;
            let (drawing, after) = after.split_at_checked(length).ok_or(broken)?;
            if drawing.first() != Some(&LAYOUT) || drawing.len() < HEAD_BYTES + 8 {
                return Err(broken);
            }
            rest = after;
        }
        if number == 0 {
            Err(BadFilm::Empty)
        } else {
            Ok(number)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_found_again_from_its_tile_and_its_part_of_it() {
        for (lat, lon) in [
            (37.7749, -122.4194),
            (-0.00001, 0.00001),
            (-89.99, 179.99),
            (0.0, 0.0),
        ] {
            let at = Point::new(lat, lon).unwrap();
            let (row, column) = tile_of(at);
            let side = f64::from(TILE_E7) / 1e7;
            let back =
                |tile: i16, e7: i32| (f64::from(tile) + f64::from(within(e7)) / 65_536.0) * side;
            assert!((back(row, at.lat_e7()) - lat).abs() < 1e-6, "{lat}");
            assert!((back(column, at.lon_e7()) - lon).abs() < 1e-6, "{lon}");
        }
    }

    #[test]
    fn one_car_far_away_does_not_make_the_city_a_dot() {
        let mut all: Vec<i32> = (0..300).collect();
        all[7] = 1_000_000;
        assert_eq!(most_of(&mut all), (3, 297));
        assert_eq!(most_of(&mut [5, -2, 9]), (-2, 9));
        assert_eq!(most_of(&mut [4]), (4, 4));
        assert_eq!(most_of(&mut []), (0, 0));
    }

    #[test]
    fn a_view_over_the_antimeridian_sees_both_sides_of_it() {
        let fiji = View {
            south: -20.0,
            west: 177.0,
            north: -15.0,
            east: -178.0,
        };
        assert!(fiji.holds(-17.0, 179.9, 0.0) && fiji.holds(-17.0, -179.9, 0.0));
        assert!(!fiji.holds(-17.0, 0.0, 0.0) && !fiji.holds(0.0, 179.9, 0.0));
    }

    #[test]
    fn a_view_with_more_than_an_answer_may_hold_gets_none_and_says_so() {
        let mut tiles = BTreeMap::new();
        let tile = Tile {
            drivers: vec![0; 3 * DRIVER_BYTES],
            rides: Vec::new(),
        };
        tiles.insert((0, 0), tile);
        let head = vec![LAYOUT, 0];
        let snapshot = Drawing { head, tiles };
        let all = Some(View {
            south: -1.0,
            west: -1.0,
            north: 1.0,
            east: 1.0,
        });
        assert_eq!(snapshot.cut(all, 3).len(), 2 + 4 + 8 + 3 * DRIVER_BYTES + 4);
        let cut = snapshot.cut(all, 2);
        assert_eq!((cut[1], cut.len()), (FLAG_TOO_MANY, 2 + 8));
        assert_eq!(
            snapshot.cut(None, 3).len(),
            2 + 8,
            "without a view: the city as a whole"
        );
    }

    fn drawing(time: i64) -> Vec<u8> {
        let mut sketch = Sketch::default();
        let at = Point::new(37.77, -122.42).unwrap();
        sketch.driver(7, Shown::Free, Some(at), false);
        sketch.finish(1, 500, Time(time)).cut(Some(View::WHOLE), 10)
    }

    fn times(film: &[u8]) -> Vec<i64> {
        let mut rest = &film[Film::MARK.len()..];
        let mut times = Vec::new();
        while let Some((length, after)) = rest.split_first_chunk::<4>() {
            let (drawing, after) = after.split_at(u32::from_le_bytes(*length) as usize);
            times.push(i64::from_le_bytes(drawing[8..16].try_into().unwrap()));
            rest = after;
        }
        times
    }

    #[test]
    fn a_film_that_grows_too_large_keeps_every_second_drawing_from_beginning_to_end() {
        let one = 4 + drawing(0).len();
        let mut film = Film::new(Film::MARK.len() + 8 * one);
        (0..20).for_each(|time| film.add(drawing(time)));
        let bytes = film.to_bytes();
        assert!(bytes.len() <= Film::MARK.len() + 8 * one);
        assert_eq!(times(&bytes), [0, 4, 8, 12, 16]);
        assert_eq!(Film::check(&bytes), Ok(5));
    }

    #[test]
    fn what_is_no_film_is_told_apart_from_one_that_was_cut_off() {
        let mut film = Film::new(1 << 20);
        film.add(drawing(1));
        film.add(drawing(2));
        let bytes = film.to_bytes();
        assert_eq!(Film::check(&bytes), Ok(2));
        assert_eq!(Film::check(b"time,driver"), Err(BadFilm::NotOne));
        assert_eq!(Film::check(&Film::MARK), Err(BadFilm::Empty));
        for cut in 1..4 + drawing(2).len() {
            let broken = Film::check(&bytes[..bytes.len() - cut]);
            assert_eq!(broken, Err(BadFilm::Broken { number: 2 }), "{cut}");
        }
    }
}
