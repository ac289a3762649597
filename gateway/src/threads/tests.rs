//! Sockets that echo, panic, flood and stop reading.

use super::*;
use std::net::{TcpListener, TcpStream as StdStream};
use std::sync::atomic::AtomicU32;
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;

/// How long a thread may stand still.
const WEDGED_AFTER: Duration = Duration::from_millis(300);
/// Nothing here takes this long unless it is broken.
const PATIENCE: Duration = Duration::from_secs(20);

/// Sends back what it hears, and on a wake what `wakes` shows; told of a bug it has one.
#[derive(Default)]
struct Echo {
    out: Vec<u8>,
    wakes: Arc<AtomicU32>,
    waker: Arc<OnceLock<Waker>>,
    is_over: bool,
    /// Told to stand, it stands still until this is free.
    gate: Arc<Mutex<()>>,
}

impl Client for Echo {
    fn begin(&mut self, _: Instant, waker: Waker) {
        let _ = self.waker.set(waker);
    }

    fn handle_bytes(&mut self, _: Instant, bytes: &mut [u8]) -> bool {
        assert!(bytes != b"a bug", "as asked for");
        if bytes == b"stand" {
            let gate = self.gate.lock().unwrap();
            drop(gate);
        }
        self.out.extend_from_slice(bytes);
        false
    }

    fn handle_end(&mut self) {
        self.is_over = true;
    }

    fn handle_wake(&mut self, _: Instant, _: &mut Context<'_>) -> bool {
        let wakes = self.wakes.load(Ordering::SeqCst);
        self.out.extend_from_slice(&wakes.to_be_bytes());
        false
    }

    fn handle_time(&mut self, _: Instant) -> bool {
        false
    }

    fn flush(&mut self, _: Instant, to: &mut dyn Write) -> Flushed {
        while !self.out.is_empty() {
            match to.write(&self.out) {
                Ok(written) => drop(self.out.drain(..written)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Flushed::Blocked,
                Err(_) => {
                    self.is_over = true;
                    return Flushed::All;
                }
            }
        }
        Flushed::All
    }

    fn poll_deadline(&self) -> Option<Instant> {
        None
    }

    fn is_over(&self) -> bool {
        self.is_over
    }
}

/// Threads, and a way to connect to them.
struct Town {
    threads: Arc<Threads>,
    listener: TcpListener,
    places: Arc<Semaphore>,
    _runtime: Runtime,
}

impl Town {
    fn new(wait: Duration) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let threads = Threads::start(1, wait, runtime.handle(), WEDGED_AFTER).unwrap();
        Self {
            threads: Arc::new(threads),
            listener: TcpListener::bind("127.0.0.1:0").unwrap(),
            places: Arc::new(Semaphore::new(10_000)),
            _runtime: runtime,
        }
    }

    fn arrive(&self, client: Echo) -> StdStream {
        let phone = StdStream::connect(self.listener.local_addr().unwrap()).unwrap();
        phone.set_read_timeout(Some(PATIENCE)).unwrap();
        let (tcp, _) = self.listener.accept().unwrap();
        tcp.set_nonblocking(true).unwrap();
        let place = || self.places.clone().try_acquire_owned().unwrap();
        self.threads.adopt(Arrived {
            tcp,
            tls: None,
            first: Bytes::new(),
            client: Box::new(client),
            places: (place(), Place::new(place(), None)),
        });
        phone
    }

    fn connect(&self, client: Echo) -> StdStream {
        let phone = self.arrive(client);
        // A socket begins with a wake.
        assert_eq!(heard::<4>(&phone), [0; 4]);
        phone
    }

    fn end(self) {
        self.threads.stop();
        self.threads.join();
        assert_eq!(self.places.available_permits(), 10_000);
    }
}

fn heard<const N: usize>(mut phone: &StdStream) -> [u8; N] {
    let mut bytes = [0; N];
    phone.read_exact(&mut bytes).unwrap();
    bytes
}

fn is_cut(mut phone: &StdStream) -> bool {
    matches!(phone.read(&mut [0]), Ok(0))
        || phone
            .take_error()
            .is_ok_and(|error| error.is_none_or(|e| e.kind() == ErrorKind::ConnectionReset))
}

fn say(mut phone: &StdStream, bytes: &[u8]) {
    phone.write_all(bytes).unwrap();
}

#[test]
fn a_panic_cuts_its_socket_and_no_other() {
    let town = Town::new(Duration::ZERO);
    let (one, other) = (town.connect(Echo::default()), town.connect(Echo::default()));
    say(&one, b"a bug");
    assert!(is_cut(&one));
    say(&other, b"fine");
    assert_eq!(heard(&other), *b"fine");
    // Its slot is somebody else's now.
    let third = town.connect(Echo::default());
    say(&third, b"fine");
    assert_eq!(heard(&third), *b"fine");
    town.end();
}

#[test]
fn a_wake_does_not_wait_for_the_next_look() {
    // Having looked, the thread would rest for longer than anybody here has patience.
    let town = Town::new(PATIENCE * 10);
    let waker = Arc::<OnceLock<Waker>>::default();
    let wakes = Arc::<AtomicU32>::default();
    let phone = town.connect(Echo {
        waker: waker.clone(),
        wakes: wakes.clone(),
        ..Echo::default()
    });
    for wake in 1..=100_u32 {
        wakes.store(wake, Ordering::SeqCst);
        waker.get().unwrap().wake_by_ref();
        assert_eq!(heard(&phone), wake.to_be_bytes());
    }
    town.end();
}

#[test]
fn no_wake_is_lost_however_many_wake_at_once() {
    const EACH: u32 = 5_000;
    let town = Town::new(Duration::from_micros(50));
    let waker = Arc::<OnceLock<Waker>>::default();
    let wakes = Arc::<AtomicU32>::default();
    let phone = town.connect(Echo {
        waker: waker.clone(),
        wakes: wakes.clone(),
        ..Echo::default()
    });
    let wakers: Vec<_> = (0..4)
        .map(|_| {
            let (waker, wakes) = (waker.clone(), wakes.clone());
            thread::spawn(move || {
                for _ in 0..EACH {
                    wakes.fetch_add(1, Ordering::SeqCst);
                    waker.get().unwrap().wake_by_ref();
                }
            })
        })
        .collect();
    // The last wake shows the last number; were it lost, the read would end with a timeout.
    while u32::from_be_bytes(heard(&phone)) < 4 * EACH {}
    for waker in wakers {
        waker.join().unwrap();
    }
    town.end();
}

#[test]
fn a_thousand_sockets_are_served_by_one_thread_and_one_that_never_rests_takes_turns() {
    let town = Town::new(Duration::from_millis(1));
    let greedy = town.connect(Echo::default());
    let (stop, stopping) = (
        Arc::new(AtomicBool::new(false)),
        greedy.try_clone().unwrap(),
    );
    let (reading, stopped) = (greedy.try_clone().unwrap(), stop.clone());
    let flood = thread::spawn(move || {
        while !stopped.load(Ordering::SeqCst) && (&stopping).write_all(&[b'x'; 65_536]).is_ok() {}
    });
    let drain = thread::spawn(move || {
        let mut bytes = vec![0; 65_536];
        while matches!((&reading).read(&mut bytes), Ok(1..)) {}
    });
    let phones: Vec<_> = (0..1_000).map(|_| town.connect(Echo::default())).collect();
    for round in 0..3_u32 {
        for (n, phone) in phones.iter().enumerate() {
            say(phone, &(n as u32 + round).to_be_bytes());
        }
        for (n, phone) in phones.iter().enumerate() {
            assert_eq!(heard(phone), (n as u32 + round).to_be_bytes());
        }
    }
    stop.store(true, Ordering::SeqCst);
    // Those who hang up make room.
    drop(phones);
    flood.join().unwrap();
    greedy.shutdown(std::net::Shutdown::Write).unwrap();
    drain.join().unwrap();
    town.end();
}

#[test]
fn who_does_not_read_is_not_read_and_what_it_is_owed_arrives_in_order() {
    let town = Town::new(Duration::ZERO);
    let slow = town.connect(Echo::default());
    let other = town.connect(Echo::default());
    // More than fits between the two, so that the echo is stuck. Byte n of the stream is n modulo a prime.
    let pattern: Vec<u8> = (0..251 * 1_024).map(|n| (n % 251) as u8).collect();
    slow.set_nonblocking(true).unwrap();
    let (mut sent, mut blocked) = (0, 0);
    while blocked < 50 {
        match (&slow).write(&pattern[sent % 251..]) {
            Ok(written) => (sent, blocked) = (sent + written, 0),
            Err(_) => {
                blocked += 1;
                // Meanwhile the other is served.
                say(&other, b"fine");
                assert_eq!(heard(&other), *b"fine");
            }
        }
    }
    slow.set_nonblocking(false).unwrap();
    let mut bytes = vec![0; 251 * 1_024];
    let mut read = 0;
    while read < sent {
        let n = (&slow).read(&mut bytes).unwrap();
        let wanted = &pattern[read % 251..];
        let same = n.min(wanted.len());
        assert!(n > 0 && bytes[..same] == wanted[..same], "after {read}");
        assert!(bytes[same..n].iter().zip(&pattern).all(|(a, b)| a == b));
        read += n;
    }
    assert_eq!(read, sent);
    town.end();
}

#[test]
fn stopping_cuts_everybody_and_whoever_comes_later() {
    let town = Town::new(PATIENCE);
    let mut phones: Vec<_> = (0..10).map(|_| town.connect(Echo::default())).collect();
    town.threads.stop();
    town.threads.join();
    phones.push(town.arrive(Echo::default()));
    assert!(phones.iter().all(is_cut));
    town.end();
}

#[test]
fn a_thread_that_a_handler_holds_up_is_wedged_until_it_goes_on() {
    let town = Town::new(Duration::ZERO);
    let gate = Arc::new(Mutex::new(()));
    let wedged = || town.threads.wedged().map(|wedged| wedged.name);
    let becomes = |wanted: Option<&str>| {
        let until = Instant::now() + PATIENCE;
        while wedged().as_deref() != wanted {
            assert!(Instant::now() < until, "it stays {:?}", wedged());
            thread::yield_now();
        }
    };
    let held = gate.lock().unwrap();
    let phone = town.connect(Echo {
        gate: gate.clone(),
        ..Echo::default()
    });
    say(&phone, b"stand");
    becomes(Some("sockets-0"));
    drop(held);
    becomes(None);
    assert_eq!(heard(&phone), *b"stand");
    drop(phone);
    town.end();
}
