//! `cabrank driver`: a person plays a driver by hand.

use std::collections::VecDeque;
use std::process::ExitCode;

use cabrank_events::VehicleClass;
use cabrank_geo::Point;
use cabrank_loadgen::client::Role;
use clap::Args;
use serde_json::{Value, json};

use super::hand::{Act, Hand, HandArgs, place, place_of, play};
use crate::{AnyError, Common};

/// Messages whose outcome is not known yet; more are refused.
const UNANSWERED_MAX: usize = 32;
/// Seconds between two pings.
const PING_EVERY: u32 = 2;
/// Metres a second of `drive`, unless it says otherwise.
const SPEED_M_S: f64 = 12.0;

const HELP: &str = "\
online [CLASS ...]     begin to work, with economy, comfort, xl, wheelchair; economy if none is named
offline                stop
at LAT,LON             be there; pings go out every 2 s from then on
drive LAT,LON [M/S]    drive there in a straight line, 12 m/s unless told otherwise
accept | decline       answer the offer; its receipt is confirmed by itself
arrived                at the pickup
started                the rider is in the car
completed              the rider is out of the car
cancel                 give the ride back before the pickup
status                 what this driver knows
wait TEXT [SECONDS]    read no more lines until something told holds TEXT (60 s)
quit                   leave; the session stays open for a while, `offline` ends it
";

/// Flags of `driver`.
#[derive(Args)]
#[command(after_help = HELP)]
pub struct DriverArgs {
    /// The driver's id, when no token is given.
    #[arg(long, default_value = "driver-by-hand")]
    id: String,
    /// Where the car stands at first, `37.77,-122.42`.
    #[arg(long, allow_hyphen_values = true, value_name = "LAT,LON")]
    at: Option<String>,
    #[command(flatten)]
    hand: HandArgs,
}

/// Plays.
pub fn run(common: &Common, args: DriverArgs) -> Result<ExitCode, AnyError> {
    let at = args.at.as_deref().map(place).transpose();
    let at = at.map_err(|why| format!("--at {why}"))?;
    let who = (Role::Driver, args.id.as_str());
    play(common, args.hand, who, Driver::new(at, &run_name()))
}

/// Begins the message ids of this run, so that they differ from those of runs before.
pub fn run_name() -> String {
    let number: u32 = rand::random();
    format!("hand-{number:08x}")
}

/// The ride a driver was asked for or has.
#[derive(Clone, Debug, PartialEq)]
struct Held {
    ride: String,
    attempt: u64,
    stage: String,
}

/// A driver and their phone.
struct Driver {
    run: String,
    said: u64,
    at: Option<Point>,
    /// Where to, and metres a second.
    way: Option<(Point, f64)>,
    seq: u64,
    ticks: u32,
    session: Option<i64>,
    classes: Vec<String>,
    held: Option<Held>,
    /// Messages whose outcome is not known, oldest first: said again when the socket is back.
    unanswered: VecDeque<Value>,
}

fn tell(text: impl Into<String>) -> Act {
    Act::Tell(text.into())
}

impl Driver {
    fn new(at: Option<Point>, run: &str) -> Self {
        Self {
            run: run.into(),
            said: 0,
            at,
            way: None,
            seq: 0,
            ticks: 0,
            session: None,
            classes: Vec::new(),
            held: None,
            unanswered: VecDeque::new(),
        }
    }

    /// A message with an id, kept until its outcome is known.
    fn ask(&mut self, message: Value) -> Vec<Act> {
        if self.unanswered.len() >= UNANSWERED_MAX {
            return vec![tell(
                "too many messages are unanswered: wait until the server is back",
            )];
        }
        let message = self.named(message);
        self.unanswered.push_back(message.clone());
        vec![Act::Say(message)]
    }

    /// The message with an id of its own.
    fn named(&mut self, mut message: Value) -> Value {
        self.said += 1;
        message["id"] = format!("{}-{}", self.run, self.said).into();
        message
    }

    /// A message about the offer or ride.
    fn report(&mut self, kind: &str) -> Vec<Act> {
        match self.held.clone() {
            None => vec![tell(format!("{kind}: there is no offer and no ride"))],
            Some(Held { ride, attempt, .. }) => {
                self.ask(json!({"type":kind,"ride":ride,"attempt":attempt}))
            }
        }
    }

    fn online(&mut self, classes: &[&str]) -> Vec<Act> {
        let known = VehicleClass::ALL.map(VehicleClass::name);
        if let Some(bad) = classes.iter().find(|class| !known.contains(class)) {
            return vec![tell(format!("online {bad}: choose {}", known.join(", ")))];
        }
        self.classes = classes.iter().map(|class| class.to_string()).collect();
        if self.classes.is_empty() {
            self.classes.push("economy".into());
        }
        let mut acts = self.ask(json!({"type":"online","classes":self.classes}));
        acts.extend(self.ping());
        acts
    }

    fn ping(&mut self) -> Option<Act> {
        let at = self.at?;
        self.seq += 1;
        let ping = json!({"type":"ping","lat":at.lat_deg(),"lon":at.lon_deg(),"seq":self.seq});
        Some(Act::Say(ping))
    }

    /// A second of driving.
    fn drive(&mut self) -> Option<Act> {
        let ((to, speed_m_s), at) = (self.way?, self.at?);
        let left_m = at.distance_m(to);
        if left_m <= speed_m_s {
            (self.at, self.way) = (Some(to), None);
            return Some(tell(format!("there: {to}")));
        }
        let part = speed_m_s / left_m;
        let between = |from: f64, to: f64| from + (to - from) * part;
        let next = Point::new(
            between(at.lat_deg(), to.lat_deg()),
            between(at.lon_deg(), to.lon_deg()),
        );
        self.at = next.ok().or(self.at);
        None
    }

    fn status(&self) -> String {
        let session = if self.session.is_some() {
            "online"
        } else {
            "offline"
        };
        let at = self
            .at
            .map_or("nowhere: say `at LAT,LON`".into(), |at| at.to_string());
        let ride = match &self.held {
            None => "no ride".into(),
            Some(held) => format!("ride {} ({})", held.ride, held.stage),
        };
        let way = self
            .way
            .map_or(String::new(), |(to, _)| format!(", on the way to {to}"));
        format!(
            "{session}, at {at}{way}, {ride}, {} unanswered",
            self.unanswered.len()
        )
    }

    fn how_far(&self, pickup: &Value) -> String {
        let Some(to) = place_of(pickup) else {
            return String::new();
        };
        let far = self
            .at
            .map(|at| format!(", {:.0} m away", at.distance_m(to)));
        format!("{to}{}", far.unwrap_or_default())
    }

    fn handle_outcome(&mut self, message: &Value) -> Vec<Act> {
        let id = &message["id"];
        let Some(at) = self.unanswered.iter().position(|said| said["id"] == *id) else {
            return Vec::new();
        };
        let result = message["result"].as_str().unwrap_or_default();
        if result == "unknown" {
            // The same message again gets the same outcome, so it cannot do harm.
            return vec![Act::Say(self.unanswered[at].clone())];
        }
        let said = self.unanswered.remove(at).unwrap_or_default();
        let kind = said["type"].as_str().unwrap_or_default();
        if kind == "online" && result != "refused" {
            self.session = message["session"].as_i64();
        }
        if kind == "offline" && result != "refused" {
            self.session = None;
        }
        if kind == "received" {
            return Vec::new();
        }
        let why = message["why"].as_str().map(|why| format!(": {why}"));
        vec![tell(format!("{kind}: {result}{}", why.unwrap_or_default()))]
    }
}

impl Hand for Driver {
    const SOCKET: &'static str = "/v1/driver";
    const HELP: &'static str = HELP;

    fn handle_line(&mut self, words: &[&str]) -> Vec<Act> {
        match *words {
            ["online", ref classes @ ..] => self.online(classes),
            ["offline"] => match self.session {
                Some(session) => self.ask(json!({"type":"offline","session":session})),
                None => vec![tell("offline: this driver is not online")],
            },
            ["at", text] => match place(text) {
                Err(why) => vec![tell(why)],
                Ok(at) => {
                    (self.at, self.way) = (Some(at), None);
                    self.ping().into_iter().collect()
                }
            },
            ["drive", text] | ["drive", text, _] if self.at.is_none() => {
                vec![tell(format!(
                    "drive {text}: from where? say `at LAT,LON` first"
                ))]
            }
            ["drive", text, ref speed @ ..] if speed.len() <= 1 => {
                let speed = speed.first().map_or(Ok(SPEED_M_S), |speed| speed.parse());
                match (place(text), speed) {
                    (Ok(to), Ok(speed)) if speed > 0.0 && speed <= 60.0 => {
                        self.way = Some((to, speed));
                        Vec::new()
                    }
                    (Err(why), _) => vec![tell(why)],
                    (Ok(_), _) => {
                        vec![tell("drive: give metres a second, more than 0, at most 60")]
                    }
                }
            }
            [kind @ ("accept" | "decline" | "arrived" | "started" | "completed" | "cancel")] => {
                self.report(kind)
            }
            ["status"] => vec![tell(self.status())],
            _ => vec![tell(format!(
                "{:?} is no command: say help",
                words.join(" ")
            ))],
        }
    }

    fn handle_open(&mut self) -> Vec<Act> {
        let mut acts = Vec::new();
        // Resumed first: what follows belongs to the session.
        if let Some(session) = self.session {
            let resume = json!({"type":"online","session":session,"classes":self.classes});
            self.unanswered
                .retain(|said| said["session"] != session || said["type"] != "online");
            let resume = self.named(resume);
            self.unanswered.push_front(resume);
        }
        acts.extend(self.unanswered.iter().cloned().map(Act::Say));
        acts.extend(self.ping());
        acts
    }

    fn handle_message(&mut self, message: &Value) -> Vec<Act> {
        let text = |key: &str| message[key].as_str().unwrap_or_default().to_owned();
        let held = |stage: &str| Held {
            ride: text("ride"),
            attempt: message["attempt"].as_u64().unwrap_or(0),
            stage: stage.into(),
        };
        match message["type"].as_str().unwrap_or_default() {
            "welcome" => vec![tell(format!("connected as driver {}", text("driver")))],
            "outcome" => self.handle_outcome(message),
            "offer" => {
                self.held = Some(held("offered"));
                let seconds = message["answer_ms"].as_u64().unwrap_or(0) / 1_000;
                let pickup = self.how_far(&message["pickup"]);
                let offer = format!(
                    "offer: ride {}, pickup {pickup}, {seconds} s to answer: accept or decline",
                    text("ride")
                );
                let mut acts = vec![tell(offer)];
                acts.extend(self.report("received"));
                acts
            }
            "withdrawn" => {
                let is_ours = self.held.as_ref().is_some_and(|held| {
                    held.ride == text("ride") && Some(held.attempt) == message["attempt"].as_u64()
                });
                if is_ours {
                    self.held = None;
                }
                vec![tell(format!(
                    "withdrawn: the offer of ride {} is over",
                    text("ride")
                ))]
            }
            "ride" => {
                let stage = text("stage");
                self.held = Some(held(&stage));
                let point = message["pickup_point"]["name"].as_str();
                let point = point.map(|name| format!(" ({name})")).unwrap_or_default();
                let pickup = self.how_far(&message["pickup"]);
                let to = place_of(&message["dropoff"]);
                let to = to.map(|to| format!(", to {to}")).unwrap_or_default();
                vec![tell(format!(
                    "ride {}: {stage}, pickup {pickup}{point}{to}",
                    text("ride")
                ))]
            }
            "released" => {
                let is_ours = self
                    .held
                    .as_ref()
                    .is_some_and(|held| held.ride == text("ride"));
                if is_ours {
                    self.held = None;
                }
                vec![tell(format!(
                    "released: ride {} is {}",
                    text("ride"),
                    text("stage")
                ))]
            }
            "ping_refused" => vec![tell(format!("a ping was refused: {}", text("reason")))],
            "move" => vec![tell(
                "this gateway goes down: connecting again when it has closed",
            )],
            "error" => vec![tell(format!("not understood: {}", text("message")))],
            // A later version of the protocol may say more.
            _ => Vec::new(),
        }
    }

    fn handle_answer(&mut self, _: &'static str, _: u16, _: &Value) -> Vec<Act> {
        Vec::new()
    }

    fn handle_tick(&mut self) -> Vec<Act> {
        self.ticks = self.ticks.wrapping_add(1);
        let mut acts: Vec<Act> = self.drive().into_iter().collect();
        if self.session.is_some() && self.ticks.is_multiple_of(PING_EVERY) {
            acts.extend(self.ping());
        }
        acts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(acts: &[Act]) -> Vec<&Value> {
        let said = acts.iter().filter_map(|act| match act {
            Act::Say(message) => Some(message),
            Act::Tell(_) | Act::Call(_) | Act::Quit => None,
        });
        said.collect()
    }

    fn typed(driver: &mut Driver, line: &str) -> Vec<Act> {
        let words: Vec<&str> = line.split_whitespace().collect();
        driver.handle_line(&words)
    }

    #[test]
    fn what_was_not_answered_is_said_again_after_the_session_is_resumed() {
        let mut driver = Driver::new(None, "t");
        let online = typed(&mut driver, "online xl");
        assert_eq!(said(&online)[0]["classes"], json!(["xl"]));
        let outcome = json!({"type":"outcome","id":"t-1","result":"done","session":7});
        assert_eq!(driver.handle_message(&outcome), [tell("online: done")]);
        driver.handle_message(&json!({"type":"offer","ride":"0-0-1","attempt":1,"pickup":{"lat":1.0,"lon":1.0},"answer_ms":15_000}));
        let accept = typed(&mut driver, "accept");
        assert_eq!(said(&accept)[0]["type"], "accept");

        let again = driver.handle_open();
        let kinds: Vec<&Value> = said(&again)
            .iter()
            .map(|message| &message["type"])
            .collect();
        assert_eq!(kinds, ["online", "received", "accept"]);
        assert_eq!(said(&again)[0]["session"], 7);
        assert_eq!(
            said(&again)[2],
            said(&accept)[0],
            "the same id: it is the same message"
        );
    }

    #[test]
    fn a_car_drives_second_by_second_and_is_there_in_the_end() {
        let mut driver = Driver::new(Some(place("37.77,-122.42").unwrap()), "t");
        let to = place("37.771,-122.42").unwrap();
        typed(&mut driver, "drive 37.771,-122.42 20");
        let mut seconds = 0;
        while driver.way.is_some() {
            driver.handle_tick();
            seconds += 1;
        }
        // 111 m at 20 m/s.
        assert_eq!((driver.at, seconds), (Some(to), 6));
    }

    #[test]
    fn a_line_that_makes_no_sense_is_answered_with_what_does() {
        let mut driver = Driver::new(None, "t");
        for (line, says) in [
            ("accept", "accept: there is no offer and no ride"),
            ("fly", "\"fly\" is no command: say help"),
            (
                "at home",
                "\"home\": write latitude,longitude, for example 37.77,-122.42",
            ),
            (
                "at 97.7,-122.4",
                "latitude 97.7 is not within -90 to 90 degrees: write latitude,longitude, for example 37.77,-122.42",
            ),
            (
                "drive 37.7,-122.4",
                "drive 37.7,-122.4: from where? say `at LAT,LON` first",
            ),
            (
                "online bike",
                "online bike: choose economy, comfort, xl, wheelchair",
            ),
            ("offline", "offline: this driver is not online"),
        ] {
            assert_eq!(typed(&mut driver, line), [tell(says)]);
        }
    }
}
