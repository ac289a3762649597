//! What does a neighbour feel of somebody who means harm, and how much memory does the harm take?
//!
//! An honest neighbour looks for cars, and says something on a socket, every [`EVERY`] in turn, from a thread of its own. The
//! [`Stranger`] comes from another address, which is not exempt from the limits of an address, and works on a thread of the lowest
//! priority: what abuse costs the abuser is not the server's, but here they share the processors.
//!
//! Calm and abuse take turns, and the 99th of a hundred words of the quietest calm turn is compared with that of the quietest turn
//! beside the abuse: what else the machine does makes single turns worse, what the abuse does all of its. Up to
//! [`TURNS_MAX`] turns are taken before the bound counts as missed. Where other processes take much of the processors ([`BUSY`])
//! even the quietest turn is not quiet, and a wider bound holds; which it was is printed.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream as Blocking};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use cabrank_gateway::GatewayConfig;
use cabrank_gateway::token::{Role, mint};
use tokio::net::{TcpSocket, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio_tungstenite::MaybeTlsStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{Error as WsError, Message, WebSocket, client};

use crate::support::{City, PATIENCE, Socket, until};

/// The neighbour's 99th of a hundred may be so many times as long beside an abuse.
const FACTOR: f64 = 1.5;
/// And so much longer: what one wake-up may cost where server, stranger and neighbour share two processors.
const WAKE_UP: Duration = Duration::from_millis(1);
/// And so many times where others take more than [`BUSY`] of the processors' time: whoever uses more of it then waits more for it.
const FACTOR_BUSY: f64 = 5.0;
const BUSY: f64 = 0.15;
/// From word to word of the neighbour, calls and sockets in turn.
const EVERY: Duration = Duration::from_millis(2);
/// Words of one turn.
const WORDS: u32 = 400;
/// At least and at most so many turns of calm and abuse.
const TURNS_MIN: usize = 4;
const TURNS_MAX: usize = 30;
/// This process may grow so much by an abuse: server, abuser and neighbour together.
const MEMORY_MAX: u64 = 48 << 20;
/// Where strangers come from.
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 66);
/// An idle connection is cut after so long here.
pub const IDLE: Duration = Duration::from_millis(1_000);

/// One abuse at a time: this process's memory and the neighbour's words are measured.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

pub type Alone = tokio::sync::MutexGuard<'static, ()>;

/// A city to which strangers come. They are held to the limits of an address as they are configured, but for sockets and connections:
/// with those an abuse would be over too soon.
pub async fn city(change: impl FnOnce(&mut GatewayConfig)) -> (City, Alone) {
    let alone = ALONE.lock().await;
    let city = City::with(|gateway, _| {
        gateway.timing.outcome_timeout_ms = 900;
        gateway.timing.http_idle_ms = IDLE.as_millis() as u64;
        gateway.limits.exempt_addresses = vec!["127.0.0.1/32".parse().unwrap()];
        gateway.limits.address_connections_max = 1_500;
        gateway.limits.sockets_per_minute = 0;
        change(gateway);
    })
    .await;
    (city, alone)
}

/// This process's memory in bytes.
pub fn memory() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4_096
}

/// Somebody who means harm: one address, as many names as they like.
#[derive(Clone)]
pub struct Stranger {
    address: SocketAddr,
    secret: String,
    acts: Arc<AtomicU64>,
}

impl Stranger {
    pub fn of(city: &City) -> Self {
        Self {
            address: city.address,
            secret: city.config.keys.secret.clone(),
            acts: Arc::default(),
        }
    }

    /// One more piece of harm is done.
    pub fn did(&self) {
        self.acts.fetch_add(1, Ordering::Relaxed);
    }

    pub fn token(&self, role: Role, name: &str) -> String {
        mint(&self.secret, role, name, Duration::from_secs(600)).unwrap()
    }

    pub async fn connect(&self) -> std::io::Result<TcpStream> {
        self.connect_by(TcpSocket::new_v4()?).await
    }

    /// With next to no memory for what is not read at once.
    pub async fn connect_narrow(&self) -> std::io::Result<TcpStream> {
        let tcp = TcpSocket::new_v4()?;
        tcp.set_recv_buffer_size(4_096)?;
        self.connect_by(tcp).await
    }

    async fn connect_by(&self, tcp: TcpSocket) -> std::io::Result<TcpStream> {
        tcp.bind((ELSEWHERE, 0).into())?;
        tcp.connect(self.address).await
    }

    /// A driver's socket on this connection.
    pub async fn driver_on(&self, tcp: TcpStream, name: &str) -> Result<Socket, WsError> {
        let mut request = format!("ws://{}/v1/driver", self.address).into_client_request()?;
        let token = format!("Bearer {}", self.token(Role::Driver, name));
        request
            .headers_mut()
            .insert("authorization", token.parse().unwrap());
        let tcp = MaybeTlsStream::Plain(tcp);
        let (stream, _) = tokio_tungstenite::client_async(request, tcp).await?;
        Ok(Socket { stream })
    }

    pub async fn driver(&self, name: &str) -> Result<Socket, WsError> {
        self.driver_on(self.connect().await?, name).await
    }
}

/// How long the neighbour's words of a turn took, or of the quietest turns: the 99th of a hundred and the middle.
#[derive(Clone, Copy, Debug)]
struct Felt {
    call: (Duration, Duration),
    pong: (Duration, Duration),
}

impl Felt {
    const NOTHING: Felt = Felt {
        call: (Duration::MAX, Duration::MAX),
        pong: (Duration::MAX, Duration::MAX),
    };

    fn quieter(self, other: Felt) -> Felt {
        Felt {
            call: self.call.min(other.call),
            pong: self.pong.min(other.pong),
        }
    }

    /// Is the 99th beside an abuse, which this is, at most so many times as long?
    fn is_within(self, factor: f64, calm: Felt) -> bool {
        let is_within = |beside: (Duration, Duration), calm: (Duration, Duration)| {
            beside.0 <= calm.0.mul_f64(factor) + WAKE_UP
        };
        is_within(self.call, calm.call) && is_within(self.pong, calm.pong)
    }
}

fn of_a_turn(mut took: Vec<Duration>) -> (Duration, Duration) {
    took.sort_unstable();
    (took[took.len() * 99 / 100], took[took.len() / 2])
}

/// The honest one, who has nothing to do with the runtime of the server.
struct Neighbour {
    http: Blocking,
    request: String,
    phone: WebSocket<Blocking>,
}

impl Neighbour {
    fn new(address: SocketAddr, ops: &str, driver: &str) -> Self {
        let connect = || {
            let tcp = Blocking::connect(address).unwrap();
            tcp.set_nodelay(true).unwrap();
            tcp.set_read_timeout(Some(PATIENCE)).unwrap();
            tcp
        };
        let mut request = format!("ws://{address}/v1/driver")
            .into_client_request()
            .unwrap();
        let bearer = format!("Bearer {driver}").parse().unwrap();
        request.headers_mut().insert("authorization", bearer);
        let (phone, _) = client(request, connect()).expect("a socket");
        Self {
            http: connect(),
            request: format!(
                "GET /v1/nearby?lat=37.77&lon=-122.42 HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {ops}\r\n\r\n"
            ),
            phone,
        }
    }

    /// Looks for cars.
    fn call(&mut self) {
        self.http.write_all(self.request.as_bytes()).unwrap();
        let (mut answer, mut piece) = (Vec::new(), [0; 4_096]);
        while !is_whole(&answer) {
            let read = self.http.read(&mut piece).expect("an answer");
            assert!(read > 0, "cut off: {}", String::from_utf8_lossy(&answer));
            answer.extend_from_slice(&piece[..read]);
        }
        assert!(answer.starts_with(b"HTTP/1.1 200"));
    }

    /// Says something that is answered.
    fn ping(&mut self) {
        self.phone.send(Message::Ping("well?".into())).unwrap();
        while !matches!(self.phone.read().expect("a pong"), Message::Pong(_)) {}
    }

    /// All words of a turn, each counted from when it was due if the one before it was late.
    fn turn(&mut self) -> Felt {
        let (mut calls, mut pongs) = (Vec::new(), Vec::new());
        // What only the first word of a connection costs is not what is asked.
        self.call();
        self.ping();
        let begun = Instant::now();
        for word in 0..WORDS {
            let mut from = begun + EVERY * word;
            while Instant::now() < from {
                std::thread::park_timeout(from - Instant::now());
                from = from.max(Instant::now());
            }
            if word % 2 == 0 {
                self.call();
                calls.push(from.elapsed());
            } else {
                self.ping();
                pongs.push(from.elapsed());
            }
        }
        Felt {
            call: of_a_turn(calls),
            pong: of_a_turn(pongs),
        }
    }
}

/// Are head and body of an answer here?
fn is_whole(answer: &[u8]) -> bool {
    let text = String::from_utf8_lossy(answer).to_lowercase();
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return false;
    };
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "));
    body.len() >= length.expect("a length").parse().unwrap()
}

async fn turn(city: &City) -> Felt {
    let address = city.address;
    let ops = city.token(Role::Ops, "neighbour");
    let driver = city.token(Role::Driver, "neighbour");
    let turn = move || Neighbour::new(address, &ops, &driver).turn();
    tokio::task::spawn_blocking(turn).await.unwrap()
}

/// Where strangers work.
fn elsewhere() -> Runtime {
    let mut builder = Builder::new_multi_thread();
    builder.worker_threads(1).enable_all();
    builder.on_thread_start(|| {
        // Of this thread alone; where it is not allowed, they work like everybody.
        let _ = rustix::process::nice(19);
    });
    builder.build().unwrap()
}

/// An honest neighbour is served as before, and memory stays small, while `abuse` goes on without an end.
pub async fn unhurt<F>(city: &City, abuse: impl Fn(Stranger) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let elsewhere = elsewhere();
    let (mut calm, mut beside) = (Felt::NOTHING, Felt::NOTHING);
    let (mut grown, mut acts) = (0, 0);
    // Before the first turn nothing is as it will be.
    turn(city).await;
    let (before, work) = (memory(), Work::until_now());
    for taken in 1.. {
        calm = calm.quieter(turn(city).await);
        let stranger = Stranger::of(city);
        let doing = elsewhere.spawn(abuse(stranger.clone()));
        until("the abuse", async || {
            (stranger.acts.load(Ordering::Relaxed) > 0 || doing.is_finished()).then_some(())
        })
        .await;
        beside = beside.quieter(turn(city).await);
        grown = grown.max(memory().saturating_sub(before));
        acts += stranger.acts.load(Ordering::Relaxed);
        if doing.is_finished() {
            doing.await.unwrap();
            panic!("the abuse is over before its time");
        }
        doing.abort();
        // It ends by that alone.
        let _ = doing.await;
        nobody_is_left(city).await;

        let others = work.of_others();
        let factor = if others > BUSY { FACTOR_BUSY } else { FACTOR };
        let is_unhurt = beside.is_within(factor, calm);
        if taken < TURNS_MIN || !is_unhurt && taken < TURNS_MAX {
            continue;
        }
        // Shown with `--nocapture`: the figures of docs/security.md.
        let name = std::thread::current().name().map(str::to_owned);
        let mib = grown as f64 / f64::from(1 << 20);
        println!(
            "{name:?}: {acts} acts in {taken} turns, {mib:.1} MiB; others took {others:.2} of the processors"
        );
        println!("p99 and middle: {calm:?}");
        println!("    beside it:  {beside:?}");
        assert!(
            is_unhurt,
            "{calm:?}, beside the abuse {beside:?}, more than {factor} times; others took {others:.2} of the processors"
        );
        assert!(grown < MEMORY_MAX, "grown by {grown} bytes");
        break;
    }
    elsewhere.shutdown_background();
}

/// What the processors have done since the start of the machine, and this process of it, in the system's ticks.
struct Work {
    all: f64,
    idle: f64,
    ours: f64,
}

impl Work {
    fn until_now() -> Self {
        let numbers = |text: &str| -> Vec<f64> {
            let words = text.split_whitespace();
            words.filter_map(|word| word.parse().ok()).collect()
        };
        let stat = std::fs::read_to_string("/proc/stat").unwrap();
        // user, nice, system, idle, waiting for disks, two kinds of interrupts, stolen by another machine.
        let of_all = numbers(stat.lines().next().unwrap());
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
        // Behind the name and the state; the eleventh and twelfth from there are user and system.
        let of_ours = numbers(stat.rsplit_once(')').unwrap().1);
        Self {
            all: of_all[..8].iter().sum(),
            idle: of_all[3] + of_all[4],
            ours: of_ours[10] + of_ours[11],
        }
    }

    /// The part of all processors' time since then that others took.
    fn of_others(&self) -> f64 {
        let now = Self::until_now();
        let all = (now.all - self.all).max(1.0);
        (all - (now.idle - self.idle) - (now.ours - self.ours)) / all
    }
}

/// The server has closed what strangers left open: what comes next is calm.
async fn nobody_is_left(city: &City) {
    let strange = u32::from_le_bytes(ELSEWHERE.octets());
    let (ours, theirs) = (
        format!(":{:04X}", city.address.port()),
        format!("{strange:08X}:"),
    );
    // As the system writes it; a connection that only waits for its number to be forgotten is over.
    const FORGOTTEN: &str = "06";
    until("the strangers to be gone", async || {
        let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
        let mut lines = table.lines().map(|line| line.split_whitespace().skip(1));
        let is_left = lines.any(|mut line| {
            let (at, from, state) = (line.next(), line.next(), line.next());
            at.is_some_and(|at| at.ends_with(&ours))
                && from.is_some_and(|from| from.starts_with(&theirs))
                && state != Some(FORGOTTEN)
        });
        (!is_left).then_some(())
    })
    .await;
}
