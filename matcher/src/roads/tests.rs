//! Against a stub of an OSRM server that is right, slow, wrong or dead.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

use super::*;

const PATIENCE: Duration = Duration::from_secs(20);
/// Roads here are half as quick as straight lines.
const ROAD_MPS: f64 = 3.0;
const STRAIGHT: StraightLine = StraightLine { speed_mps: 6.0 };

/// What the stub does with a request.
enum Manner {
    Right,
    /// Answers rightly, but only once told to.
    Slow(Receiver<()>),
    /// Answers with this status and body.
    Says(u16, &'static str),
}

struct Stub {
    address: SocketAddr,
    manner: Arc<Mutex<Manner>>,
    /// Places of each request so far.
    asked: Arc<Mutex<Vec<usize>>>,
    is_over: Arc<AtomicBool>,
}

impl Stub {
    fn start(manner: Manner) -> Stub {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stub = Stub {
            address: listener.local_addr().unwrap(),
            manner: Arc::new(Mutex::new(manner)),
            asked: Arc::default(),
            is_over: Arc::default(),
        };
        let (manner, asked) = (Arc::clone(&stub.manner), Arc::clone(&stub.asked));
        let is_over = Arc::clone(&stub.is_over);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if is_over.load(Ordering::SeqCst) {
                    return;
                }
                // Whoever hangs up in the middle has had enough.
                let _ = answer(stream.unwrap(), &manner, &asked);
            }
        });
        stub
    }

    fn requests(&self) -> usize {
        self.asked.lock().unwrap().len()
    }

    fn is_now(&self, manner: Manner) {
        *self.manner.lock().unwrap() = manner;
    }

    fn roads(&self, change: impl FnOnce(&mut RoadsConfig)) -> Roads {
        let mut config = RoadsConfig {
            url: format!("http://{}/", self.address),
            wait_ms: 5_000,
            ..RoadsConfig::default()
        };
        change(&mut config);
        config.check().unwrap();
        Roads::start(config)
    }
}

impl Drop for Stub {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
    }
}

fn answer(
    mut stream: TcpStream,
    manner: &Mutex<Manner>,
    asked: &Mutex<Vec<usize>>,
) -> std::io::Result<()> {
    let mut head = Vec::new();
    let mut bytes = [0; 4_096];
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        let read = stream.read(&mut bytes)?;
        if read == 0 {
            return Ok(());
        }
        head.extend_from_slice(&bytes[..read]);
    }
    let head = String::from_utf8(head).unwrap();
    let path = head.split(' ').nth(1).unwrap();
    let (places, query) = path
        .strip_prefix("/table/v1/driving/")
        .and_then(|rest| rest.split_once('?'))
        .unwrap();
    let places: Vec<Point> = places.split(';').map(place).collect();
    asked.lock().unwrap().push(places.len());
    let numbers = |name: &str| -> Vec<usize> {
        let value = query.split('&').find_map(|part| part.strip_prefix(name));
        let numbers = value.unwrap().split(';');
        numbers.map(|number| number.parse().unwrap()).collect()
    };
    let seconds = |from: usize, to: usize| places[from].distance_m(places[to]) / ROAD_MPS;
    let row = |from: usize| -> Vec<f64> {
        let to = numbers("destinations=").into_iter();
        to.map(|to| seconds(from, to)).collect()
    };
    let rows: Vec<Vec<f64>> = numbers("sources=").into_iter().map(row).collect();
    let right = serde_json::json!({ "code": "Ok", "durations": rows }).to_string();
    let (status, body) = match &*manner.lock().unwrap() {
        Manner::Right => (200, right),
        Manner::Slow(go_on) => {
            let _ = go_on.recv_timeout(PATIENCE);
            (200, right)
        }
        Manner::Says(status, body) => (*status, (*body).to_owned()),
    };
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 {status} said\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
}

fn place(text: &str) -> Point {
    let (lon, lat) = text.split_once(',').unwrap();
    Point::new(lat.parse().unwrap(), lon.parse().unwrap()).unwrap()
}

/// `north` and `east` in steps of some hundred metres, in the middles of squares.
fn at(north: i32, east: i32) -> Point {
    let part = |start: f64, steps: i32| start + f64::from(steps) * SIDE_DEG + SIDE_DEG / 2.0;
    Point::new(part(37.77, north), part(-122.42, east)).unwrap()
}

/// Cars in a row, each to each of these pickups.
fn drives(cars: i32, pickups: i32) -> Vec<(Point, Point)> {
    let pairs = (0..cars).flat_map(|car| (0..pickups).map(move |pickup| (car, pickup)));
    pairs
        .map(|(car, pickup)| (at(car, 0), at(pickup, 20)))
        .collect()
}

fn by(speed_mps: f64, drives: &[(Point, Point)]) -> Vec<i64> {
    StraightLine { speed_mps }.drives_ms(drives)
}

/// As long as the roads say, to a rounded coordinate and a millisecond.
fn are_by_road(times: &[i64], drives: &[(Point, Point)]) -> bool {
    let pairs = times.iter().zip(by(ROAD_MPS, drives));
    times.len() == drives.len()
        && pairs
            .into_iter()
            .all(|(told, right)| (told - right).abs() <= 200)
}

/// Asks until the times are those of the roads.
fn until_by_road(roads: &Roads, drives: &[(Point, Point)]) {
    let deadline = Instant::now() + PATIENCE;
    while !are_by_road(&roads.at(STRAIGHT).drives_ms(drives), drives) {
        assert!(Instant::now() < deadline, "the roads' times never come");
        std::thread::yield_now();
    }
}

#[test]
fn a_round_asks_once_for_all_its_drives_and_not_again_for_what_it_knows() {
    let stub = Stub::start(Manner::Right);
    let roads = stub.roads(|_| {});
    let drives = drives(16, 3);
    assert!(are_by_road(&roads.at(STRAIGHT).drives_ms(&drives), &drives));
    assert_eq!(*stub.asked.lock().unwrap(), [16 + 3]);
    // From the next square on it is another drive; within one it is the same.
    let near = [(at(0, 0).offset_m(20.0, 20.0), at(0, 20))];
    assert!(roads.at(STRAIGHT).drives_ms(&near)[0] > by(STRAIGHT.speed_mps, &near)[0] * 3 / 2);
    assert_eq!(stub.requests(), 1);
    roads.at(STRAIGHT).drive_ms(at(40, 0), at(0, 20));
    assert_eq!(stub.requests(), 2);
}

#[test]
fn a_request_holds_no_more_places_than_the_server_takes() {
    let stub = Stub::start(Manner::Right);
    let roads = stub.roads(|config| config.places_max = 10);
    let drives = drives(35, 4);
    until_by_road(&roads, &drives);
    let asked = stub.asked.lock().unwrap().clone();
    assert!(asked.iter().all(|places| *places <= 10), "{asked:?}");
    assert!(asked.len() <= 4 * 35_usize.div_ceil(9), "{asked:?}");
}

#[test]
fn a_slow_server_is_not_waited_for_and_its_answer_serves_the_next_round() {
    let (go_on, told): (Sender<()>, _) = channel();
    let stub = Stub::start(Manner::Slow(told));
    let roads = stub.roads(|config| {
        config.wait_ms = 20;
        config.answer_ms = 20_000;
    });
    let drives = drives(5, 1);
    // The server has not answered, and does not until it is told to.
    let times = roads.at(STRAIGHT).drives_ms(&drives);
    assert_eq!(times, by(STRAIGHT.speed_mps, &drives));
    go_on.send(()).unwrap();
    stub.is_now(Manner::Right);
    until_by_road(&roads, &drives);
}

#[test]
fn what_cannot_be_true_is_not_believed_and_the_server_is_left_alone_for_a_while() {
    for (status, body) in [
        (200, "no table at all"),
        (200, r#"{"code":"NoTable"}"#),
        (200, r#"{"code":"Ok"}"#),
        (200, r#"{"code":"Ok","durations":[[100.0,100.0]]}"#),
        (200, r#"{"code":"Ok","durations":[[-1.0]]}"#),
        (200, r#"{"code":"Ok","durations":[[1e12]]}"#),
        // Six kilometres in no time.
        (200, r#"{"code":"Ok","durations":[[0.0]]}"#),
        (400, r#"{"code":"TooBig"}"#),
        (500, ""),
    ] {
        let stub = Stub::start(Manner::Says(status, body));
        let roads = stub.roads(|config| {
            config.failures_max = 2;
            config.pause_ms = 500;
        });
        let drive = [(at(0, 0), at(50, 40))];
        let straight = by(STRAIGHT.speed_mps, &drive);
        for _ in 0..20 {
            assert_eq!(roads.at(STRAIGHT).drives_ms(&drive), straight, "{body}");
        }
        assert!(
            stub.requests() <= 4,
            "{body}: asked {} times",
            stub.requests()
        );
        // It is well again: after the pause it is tried, and believed.
        stub.is_now(Manner::Right);
        until_by_road(&roads, &drive);
    }
}

#[test]
fn where_there_is_no_road_the_straight_line_counts() {
    let stub = Stub::start(Manner::Says(200, r#"{"code":"Ok","durations":[[null]]}"#));
    let roads = stub.roads(|_| {});
    let drive = [(at(0, 0), at(5, 5))];
    assert_eq!(
        roads.at(STRAIGHT).drives_ms(&drive),
        by(STRAIGHT.speed_mps, &drive)
    );
}

#[test]
fn a_dead_server_costs_no_round_its_time() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let roads = Roads::start(RoadsConfig {
        url: format!("http://{address}"),
        wait_ms: 5_000,
        pause_ms: 600_000,
        ..RoadsConfig::default()
    });
    let drives = drives(16, 2);
    let began = Instant::now();
    for _ in 0..1_000 {
        let times = roads.at(STRAIGHT).drives_ms(&drives);
        assert_eq!(times, by(STRAIGHT.speed_mps, &drives));
    }
    // A thousand rounds would wait for more than an hour.
    assert!(began.elapsed() < PATIENCE, "{:?}", began.elapsed());
}

#[test]
fn what_is_remembered_is_bounded_and_grows_old() {
    let mut known = Known::default();
    let now = Instant::now();
    for n in 0..10_000 {
        known.put(((n, 0), (0, 0)), now, 1, 1_000);
        assert!(known.newer.len() + known.older.len() <= 1_000);
    }
    let newest = ((9_999, 0), (0, 0));
    assert_eq!(known.get(&newest, Some(now)), Some(1));
    assert_eq!(known.get(&newest, Some(now + Duration::from_secs(1))), None);
    assert_eq!(known.get(&((0, 0), (0, 0)), None), None);
}
