//! A person plays a driver or a rider in a terminal: lines in, lines out, over a socket that comes back by itself.
//!
//! Who is played is a [`Hand`]: pure, it turns lines, messages, answers and the passing of time into [`Act`]s. This file does
//! the rest: the socket, the calls, the terminal. Input may be a pipe: `wait` holds the next lines back until something was
//! said, so that a script plays a whole ride. Bounds: [`LINES_MAX`] lines read ahead, [`CALLS_MAX`] calls under way.

use std::collections::VecDeque;
use std::io::{BufRead, Write};
use std::process::ExitCode;
use std::time::Duration;

use cabrank_geo::Point;
use clap::Args;
use futures_util::{SinkExt, StreamExt};
use reqwest::Method;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use super::{block_on, shutdown_signal, token};
use crate::{AnyError, Common};
use cabrank_loadgen::client::Role;

/// Lines of input that wait to be handled.
const LINES_MAX: usize = 64;
/// What was told lately, for `wait`.
const TOLD_MAX: usize = 64;
/// Calls under way; more are refused.
const CALLS_MAX: usize = 8;
/// A lost socket is opened again after this, then after twice as long, and so on.
const AGAIN_FIRST: Duration = Duration::from_millis(200);
/// ... up to this.
const AGAIN_LAST: Duration = Duration::from_secs(5);
/// A server that does not answer in this time is not there.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// The socket must open in this time.
const OPEN_WITHIN: Duration = Duration::from_secs(5);
/// How long `wait` waits unless it says otherwise.
const WAIT: Duration = Duration::from_secs(60);
/// Input that has ended is followed by this much listening, so that the answers to the last lines are seen.
const LINGER: Duration = Duration::from_millis(500);
/// Time passes in steps of this.
pub const TICK: Duration = Duration::from_secs(1);

/// Who plays, and where.
#[derive(Args)]
pub struct HandArgs {
    /// The server.
    #[arg(long, default_value = "http://127.0.0.1:8080", value_name = "URL")]
    url: String,
    /// The token; without one a development token is made with the secret of the configuration.
    #[arg(long, env = "CABRANK_TOKEN", hide_env_values = true)]
    token: Option<String>,
}

/// What a line, a message, an answer or the time leads to.
#[derive(Debug, PartialEq)]
pub enum Act {
    /// Tell the person.
    Tell(String),
    /// Say something on the socket; lost when there is none: the hand says it again when it is back.
    Say(Value),
    /// Call the server; the answer comes back with the tag.
    Call(Call),
    /// The person has had enough.
    Quit,
}

/// A call to the server.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// Tells its answer from others'.
    pub tag: &'static str,
    /// How.
    pub method: Method,
    /// What.
    pub path: String,
    /// `Idempotency-Key`: with one the call is tried again until its outcome is known.
    pub key: Option<String>,
    /// The body.
    pub body: Option<Value>,
}

/// Somebody a person plays.
pub trait Hand {
    /// The path of the socket.
    const SOCKET: &'static str;
    /// What `help` shows.
    const HELP: &'static str;
    /// A line that was typed.
    fn handle_line(&mut self, words: &[&str]) -> Vec<Act>;
    /// The socket is open, perhaps again.
    fn handle_open(&mut self) -> Vec<Act>;
    /// A message of the server.
    fn handle_message(&mut self, message: &Value) -> Vec<Act>;
    /// The answer to a call: status and body.
    fn handle_answer(&mut self, tag: &'static str, status: u16, body: &Value) -> Vec<Act>;
    /// A second has passed.
    fn handle_tick(&mut self) -> Vec<Act>;
}

/// A place as people write it: `37.77,-122.42`, latitude first.
pub fn place(text: &str) -> Result<Point, String> {
    let hint = "write latitude,longitude, for example 37.77,-122.42";
    let (lat, lon) = text.split_once(',').ok_or(format!("{text:?}: {hint}"))?;
    let degrees = |text: &str| text.trim().parse::<f64>();
    let (Ok(lat), Ok(lon)) = (degrees(lat), degrees(lon)) else {
        return Err(format!("{text:?}: {hint}"));
    };
    Point::new(lat, lon).map_err(|error| format!("{error}: {hint}"))
}

/// A place in a message.
pub fn place_of(value: &Value) -> Option<Point> {
    Point::new(value["lat"].as_f64()?, value["lon"].as_f64()?).ok()
}

/// A refusal in words: what it is and what to do.
pub fn refusal(status: u16, body: &Value) -> String {
    let text = |key: &str| body[key].as_str().unwrap_or_default();
    match (text("title"), text("detail")) {
        ("", "") => format!("refused with status {status}"),
        (title, detail) => format!("refused: {title}: {detail}"),
    }
}

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// What came in.
enum In {
    Line(String),
    /// No more lines.
    End,
    Answer(&'static str, u16, Value),
    Message(Value),
    Lost(String),
    Tick,
    /// Held lines may go on.
    WaitOver,
    Stop,
}

/// Why a socket did not open.
enum NotOpen {
    /// Another try may help.
    Later(String),
    /// It will not.
    Never(String),
}

struct Table<H> {
    hand: H,
    url: String,
    token: String,
    http: reqwest::Client,
    answers: mpsc::Sender<(&'static str, u16, Value)>,
    calls: usize,
    /// Until this is told, no line is read; and when that fails.
    wait: Option<(String, Instant)>,
    /// What was told since the last line that was no `wait`, newest last: who waits for it has it already.
    told: VecDeque<String>,
    has_ended: bool,
}

/// Plays until the person quits, the input ends or the token is no good.
pub fn play<H: Hand>(
    common: &Common,
    args: HandArgs,
    (role, id): (Role, &str),
    hand: H,
) -> Result<ExitCode, AnyError> {
    let url = args.url.trim_end_matches('/').to_owned();
    if !url.starts_with("http://") {
        return Err(format!(
            "--url {url}: this command speaks http:// only; behind TLS give it the plain address"
        )
        .into());
    }
    let token = match args.token {
        Some(token) => token,
        None => token::minter(&common.settings(|_| {})?)(role, id),
    };
    block_on(async move {
        let stop = shutdown_signal()?;
        let (answers, mut answered) = mpsc::channel(CALLS_MAX);
        let mut lines = lines();
        let mut table = Table {
            hand,
            url,
            token,
            http: reqwest::Client::new(),
            answers,
            calls: 0,
            wait: None,
            told: VecDeque::new(),
            has_ended: false,
        };
        let mut socket: Option<Socket> = None;
        let (mut pause, mut open_at) = (AGAIN_FIRST, Instant::now());
        let mut was_told = false;
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut end_at: Option<Instant> = None;
        loop {
            if socket.is_none() && Instant::now() >= open_at {
                match table.open(H::SOCKET).await {
                    Ok(opened) => {
                        socket = Some(opened);
                        (pause, was_told) = (AGAIN_FIRST, false);
                        let acts = table.hand.handle_open();
                        if table.act(acts, &mut socket).await {
                            break;
                        }
                    }
                    Err(NotOpen::Never(why)) => return Err(why.into()),
                    Err(NotOpen::Later(why)) => {
                        if !std::mem::replace(&mut was_told, true) {
                            say(&format!("cannot reach {}: {why}; trying again", table.url));
                        }
                        open_at = Instant::now() + pause;
                        pause = (pause * 2).min(AGAIN_LAST);
                    }
                }
            }
            let wait_until = table.wait.as_ref().map(|(_, until)| *until);
            let came = tokio::select! {
                // In this order, so that what was heard is handled before the next line.
                biased;
                () = stop.cancelled() => In::Stop,
                message = hear(&mut socket) => message,
                Some((tag, status, body)) = answered.recv() => In::Answer(tag, status, body),
                line = lines.recv(), if table.takes_lines() => line.map_or(In::End, In::Line),
                () = sleep_until(wait_until.unwrap_or_else(Instant::now)), if wait_until.is_some() => In::WaitOver,
                () = sleep_until(open_at), if socket.is_none() => continue,
                () = sleep_until(end_at.unwrap_or_else(Instant::now)), if end_at.is_some() => In::Stop,
                _ = ticks.tick() => In::Tick,
            };
            let acts = match came {
                In::Stop => break,
                In::End => {
                    table.has_ended = true;
                    end_at = Some(Instant::now() + LINGER);
                    continue;
                }
                In::Line(line) => table.handle_line(&line),
                In::Message(message) => table.hand.handle_message(&message),
                In::Answer(tag, status, body) => {
                    table.calls -= 1;
                    table.hand.handle_answer(tag, status, &body)
                }
                In::Tick => table.hand.handle_tick(),
                In::WaitOver => {
                    let what = table.wait.take().map(|(what, _)| what);
                    return Err(format!("waited in vain for {:?}", what.unwrap_or_default()).into());
                }
                In::Lost(why) => {
                    socket = None;
                    open_at = Instant::now() + pause;
                    if why.starts_with("4401") {
                        return Err("the token is over: give a new one with --token".into());
                    }
                    vec![Act::Tell(format!(
                        "connection lost ({why}); connecting again"
                    ))]
                }
            };
            if table.act(acts, &mut socket).await {
                break;
            }
            // With nothing more to come, whatever is under way may still be answered.
            if table.has_ended && table.calls > 0 {
                end_at = Some(Instant::now() + LINGER);
            }
        }
        if let Some(mut socket) = socket {
            let _ = timeout(OPEN_WITHIN, socket.close(None)).await;
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// One line to the person. A terminal that has gone away ends nothing.
fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{text}");
    let _ = out.flush();
}

/// What is typed, line by line. The thread ends with the input, or with the process: a read cannot be called off.
fn lines() -> mpsc::Receiver<String> {
    let (send, lines) = mpsc::channel(LINES_MAX);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            let Ok(line) = line else { return };
            if send.blocking_send(line).is_err() {
                return;
            }
        }
    });
    lines
}

/// The next message; pings of the library are answered while it waits. Without a socket nothing comes.
async fn hear(socket: &mut Option<Socket>) -> In {
    let Some(open) = socket else {
        return std::future::pending().await;
    };
    loop {
        match open.next().await {
            Some(Ok(Message::Text(text))) => {
                if let Ok(message) = serde_json::from_str(&text) {
                    return In::Message(message);
                }
            }
            Some(Ok(Message::Close(Some(close)))) => {
                return In::Lost(format!("{} {}", u16::from(close.code), close.reason));
            }
            Some(Ok(_)) => {}
            Some(Err(why)) => return In::Lost(why.to_string()),
            None => return In::Lost("closed".into()),
        }
    }
}

impl<H: Hand> Table<H> {
    fn takes_lines(&self) -> bool {
        self.wait.is_none() && !self.has_ended
    }

    fn handle_line(&mut self, line: &str) -> Vec<Act> {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            [] => Vec::new(),
            ["#", ..] => Vec::new(),
            ["help"] => vec![Act::Tell(H::HELP.trim_end().into())],
            ["quit"] => vec![Act::Quit],
            ["wait", ref what @ .., seconds]
                if !what.is_empty() && seconds.parse::<u32>().is_ok() =>
            {
                let seconds = seconds.parse().unwrap_or(0);
                self.wait_for(what.join(" "), Duration::from_secs(seconds));
                Vec::new()
            }
            ["wait", ref what @ ..] if !what.is_empty() => {
                self.wait_for(what.join(" "), WAIT);
                Vec::new()
            }
            _ => {
                self.told.clear();
                self.hand.handle_line(&words)
            }
        }
    }

    fn wait_for(&mut self, what: String, within: Duration) {
        match self.told.iter().position(|told| told.contains(&what)) {
            Some(at) => drop(self.told.drain(..=at)),
            None => {
                self.told.clear();
                self.wait = Some((what, Instant::now() + within));
            }
        }
    }

    /// Does what was decided; whether the person has had enough.
    async fn act(&mut self, acts: Vec<Act>, socket: &mut Option<Socket>) -> bool {
        for act in acts {
            match act {
                Act::Quit => return true,
                Act::Tell(text) => {
                    say(&text);
                    match &self.wait {
                        Some((what, _)) if text.contains(what.as_str()) => self.wait = None,
                        Some(_) => {}
                        None => {
                            if self.told.len() >= TOLD_MAX {
                                self.told.pop_front();
                            }
                            self.told.push_back(text);
                        }
                    }
                }
                Act::Say(message) => {
                    if let Some(open) = socket {
                        // A failure is heard of by the next read.
                        let _ = open.send(Message::text(message.to_string())).await;
                    }
                }
                Act::Call(call) if self.calls >= CALLS_MAX => {
                    say(&format!(
                        "{}: too many calls are under way, wait for their answers",
                        call.tag
                    ));
                }
                Act::Call(call) => {
                    self.calls += 1;
                    let request = Request {
                        http: self.http.clone(),
                        url: format!("{}{}", self.url, call.path),
                        token: self.token.clone(),
                        call,
                    };
                    let answers = self.answers.clone();
                    tokio::spawn(async move {
                        let tag = request.call.tag;
                        let (status, body) = request.send().await;
                        // Nobody listens any more when the game is over.
                        let _ = answers.send((tag, status, body)).await;
                    });
                }
            }
        }
        false
    }

    async fn open(&self, path: &str) -> Result<Socket, NotOpen> {
        let url = format!("{}{path}", self.url.replacen("http", "ws", 1));
        let mut request = url
            .into_client_request()
            .map_err(|error| NotOpen::Never(format!("--url {}: {error}", self.url)))?;
        let bearer = format!("Bearer {}", self.token).parse();
        let bearer = bearer.map_err(|_| NotOpen::Never("--token: this is no token".into()))?;
        request.headers_mut().insert("authorization", bearer);
        let opening = tokio_tungstenite::connect_async(request);
        match timeout(OPEN_WITHIN, opening).await {
            Ok(Ok((socket, _))) => Ok(socket),
            Ok(Err(Error::Http(answer))) => {
                let status = answer.status().as_u16();
                let body = answer.body().as_deref().unwrap_or_default();
                let body: Value = serde_json::from_slice(body).unwrap_or_default();
                let why = refusal(status, &body);
                Err(match status {
                    429 | 500.. => NotOpen::Later(why),
                    _ => NotOpen::Never(why),
                })
            }
            Ok(Err(why)) => Err(NotOpen::Later(why.to_string())),
            Err(_) => Err(NotOpen::Later("no answer".into())),
        }
    }
}

/// A call and all it needs.
struct Request {
    http: reqwest::Client,
    url: String,
    token: String,
    call: Call,
}

impl Request {
    /// The answer. A call with a key is harmless to repeat: it is, until its outcome is known or half a minute is over.
    async fn send(&self) -> (u16, Value) {
        let give_up = Instant::now() + Duration::from_secs(30);
        loop {
            let (status, body) = self.once().await;
            let is_open = matches!(status, 0 | 429 | 500..);
            if !is_open || self.call.key.is_none() || Instant::now() > give_up {
                return (status, body);
            }
            sleep(Duration::from_secs(1)).await;
        }
    }

    async fn once(&self) -> (u16, Value) {
        let call = &self.call;
        let mut request = self
            .http
            .request(call.method.clone(), &self.url)
            .bearer_auth(&self.token)
            .timeout(ANSWER_WITHIN);
        if let Some(key) = &call.key {
            request = request.header("Idempotency-Key", key);
        }
        if let Some(body) = &call.body {
            request = request.json(body);
        }
        match request.send().await {
            Err(why) => (
                0,
                serde_json::json!({"title":"no answer","detail":why.to_string()}),
            ),
            Ok(answer) => {
                let status = answer.status().as_u16();
                (status, answer.json().await.unwrap_or_default())
            }
        }
    }
}
