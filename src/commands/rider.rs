//! `cabrank rider`: a person plays a rider by hand.

use std::process::ExitCode;

use cabrank_events::VehicleClass;
use cabrank_loadgen::client::Role;
use clap::Args;
use reqwest::Method;
use serde_json::{Value, json};

use super::driver::run_name;
use super::hand::{Act, Call, Hand, HandArgs, place, place_of, play, refusal};
use crate::{AnyError, Common};

const HELP: &str = "\
quote FROM [TO] [CLASS]      when would a car be there? places are LAT,LON
request FROM [TO] [CLASS]    ask for a ride
cars LAT,LON                 free cars near
to LAT,LON                   be brought there instead, also on the way
cancel                       call the ride off, before it begins
status                       the ride as the server knows it
wait TEXT [SECONDS]          read no more lines until something told holds TEXT (60 s)
quit                         leave; an open ride goes on
";

/// Flags of `rider`.
#[derive(Args)]
#[command(after_help = HELP)]
pub struct RiderArgs {
    /// The rider's id, when no token is given.
    #[arg(long, default_value = "rider-by-hand")]
    id: String,
    #[command(flatten)]
    hand: HandArgs,
}

/// Plays.
pub fn run(common: &Common, args: RiderArgs) -> Result<ExitCode, AnyError> {
    let who = (Role::Rider, args.id.as_str());
    play(common, args.hand, who, Rider::new(&run_name()))
}

/// A rider and their phone.
struct Rider {
    run: String,
    wishes: u64,
    ride: Option<String>,
    /// The key of a request whose answer is not here yet.
    asked: Option<String>,
    stage: String,
}

fn tell(text: impl Into<String>) -> Act {
    Act::Tell(text.into())
}

/// From, perhaps to, perhaps a class.
fn wish(words: &[&str]) -> Result<Value, String> {
    let mut wish = json!({});
    let mut places = ["pickup", "dropoff"].into_iter();
    for word in words {
        if VehicleClass::ALL
            .into_iter()
            .any(|class| class.name() == *word)
        {
            wish["class"] = (*word).into();
        } else {
            let key = places
                .next()
                .ok_or(format!("{word:?}: give one place or two, and a class"))?;
            let at = place(word)?;
            wish[key] = json!({"lat":at.lat_deg(),"lon":at.lon_deg()});
        }
    }
    if wish["pickup"].is_null() {
        return Err("from where? write latitude,longitude, for example 37.77,-122.42".into());
    }
    Ok(wish)
}

/// `120 s`, or `4 min`.
fn minutes(seconds: &Value) -> String {
    match seconds.as_u64().unwrap_or(0) {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds => format!("{:.0} min", seconds as f64 / 60.0),
    }
}

fn moved(point: &Value) -> Option<String> {
    let (name, zone) = (point["name"].as_str()?, point["zone"].as_str()?);
    let at = place_of(&point["at"]).map(|at| at.to_string())?;
    Some(format!("you are fetched at {name} ({zone}), {at}"))
}

fn quoted(body: &Value) -> String {
    let cars = match body["cars_near"].as_u64().unwrap_or(0) {
        1 => "1 car near".to_owned(),
        cars => format!("{cars} cars near"),
    };
    let time = &body["pickup_time"];
    let when = if time.is_null() {
        "nobody can say when one would be there".to_owned()
    } else {
        let basis = match time["rides"].as_u64().unwrap_or(0) {
            0 => "a guess".to_owned(),
            rides => format!("learned from {rides} rides"),
        };
        let percent = time["share"].as_f64().unwrap_or(0.0) * 100.0;
        let (low, high) = (minutes(&time["low_s"]), minutes(&time["high_s"]));
        format!(
            "there in {}, {percent:.0} of 100 in {low} to {high} ({basis})",
            minutes(&time["likely_s"])
        )
    };
    let drive = &body["drive_s"];
    let drive = if drive.is_null() {
        String::new()
    } else {
        format!("; the drive takes {}", minutes(drive))
    };
    let point = moved(&body["pickup_point"]).map(|point| format!("; {point}"));
    format!("quote: {cars}, {when}{drive}{}", point.unwrap_or_default())
}

impl Rider {
    fn new(run: &str) -> Self {
        Self {
            run: run.into(),
            wishes: 0,
            ride: None,
            asked: None,
            stage: String::new(),
        }
    }

    fn request(&mut self, words: &[&str]) -> Vec<Act> {
        if self.asked.is_some() {
            return vec![tell(
                "the last request has no answer yet: wait, or cancel it",
            )];
        }
        match wish(words) {
            Err(why) => vec![tell(why)],
            Ok(body) => {
                self.wishes += 1;
                let key = format!("{}-{}", self.run, self.wishes);
                self.asked = Some(key.clone());
                vec![Act::Call(Call {
                    tag: "request",
                    method: Method::POST,
                    path: "/v1/rides".into(),
                    key: Some(key),
                    body: Some(body),
                })]
            }
        }
    }

    /// Elsewhere; each time a wish of its own.
    fn lead_to(&mut self, text: &str) -> Vec<Act> {
        match (place(text), &self.ride) {
            (Err(why), _) => vec![tell(why)],
            (Ok(_), None) => vec![tell("to: there is no ride")],
            (Ok(at), Some(ride)) => {
                self.wishes += 1;
                vec![Act::Call(Call {
                    tag: "to",
                    method: Method::PUT,
                    path: format!("/v1/rides/{ride}/destination"),
                    key: Some(format!("{}-{}", self.run, self.wishes)),
                    body: Some(json!({"to":{"lat":at.lat_deg(),"lon":at.lon_deg()}})),
                })]
            }
        }
    }

    fn cancel(&self) -> Vec<Act> {
        let (path, body) = match (&self.asked, &self.ride) {
            // Also takes back a wish whose answer never came.
            (Some(key), _) => ("/v1/cancel".to_owned(), Some(json!({"key":key}))),
            (None, Some(ride)) => (format!("/v1/rides/{ride}/cancel"), None),
            (None, None) => return vec![tell("cancel: there is no ride")],
        };
        vec![Act::Call(Call {
            tag: "cancel",
            method: Method::POST,
            path,
            key: None,
            body,
        })]
    }
}

fn get(tag: &'static str, path: String) -> Vec<Act> {
    vec![Act::Call(Call {
        tag,
        method: Method::GET,
        path,
        key: None,
        body: None,
    })]
}

impl Hand for Rider {
    const SOCKET: &'static str = "/v1/rider";
    const HELP: &'static str = HELP;

    fn handle_line(&mut self, words: &[&str]) -> Vec<Act> {
        match *words {
            ["request", ref words @ ..] => self.request(words),
            ["quote", ref words @ ..] => match wish(words) {
                Err(why) => vec![tell(why)],
                Ok(body) => vec![Act::Call(Call {
                    tag: "quote",
                    method: Method::POST,
                    path: "/v1/quote".into(),
                    key: None,
                    body: Some(body),
                })],
            },
            ["cars", text] => match place(text) {
                Err(why) => vec![tell(why)],
                Ok(at) => get(
                    "cars",
                    format!("/v1/nearby?lat={}&lon={}", at.lat_deg(), at.lon_deg()),
                ),
            },
            ["cancel"] => self.cancel(),
            ["to", text] => self.lead_to(text),
            ["status"] => match &self.ride {
                Some(ride) => get("status", format!("/v1/rides/{ride}")),
                None => vec![tell("no ride")],
            },
            _ => vec![tell(format!(
                "{:?} is no command: say help",
                words.join(" ")
            ))],
        }
    }

    fn handle_open(&mut self) -> Vec<Act> {
        // The server tells the open ride by itself.
        Vec::new()
    }

    fn handle_message(&mut self, message: &Value) -> Vec<Act> {
        let text = |key: &str| message[key].as_str().unwrap_or_default().to_owned();
        match message["type"].as_str().unwrap_or_default() {
            "welcome" => vec![tell(format!("connected as rider {}", text("rider")))],
            "ride" => {
                let (ride, stage) = (text("ride"), text("stage"));
                let is_over = ["completed", "cancelled", "unfulfilled"].contains(&stage.as_str());
                let is_news = self.stage != stage || self.ride.as_ref() != Some(&ride);
                self.ride = (!is_over).then_some(ride.clone());
                self.stage.clone_from(&stage);
                if !is_news {
                    return Vec::new();
                }
                let driver = match text("driver") {
                    driver if driver.is_empty() => String::new(),
                    driver => format!(", driver {driver}"),
                };
                let by = match text("cancelled_by") {
                    by if by.is_empty() => String::new(),
                    by => format!(" by {by}"),
                };
                let why = match text("reason") {
                    why if why.is_empty() => String::new(),
                    why => format!(" ({why})"),
                };
                vec![tell(format!("ride {ride}: {stage}{by}{why}{driver}"))]
            }
            "driver_at" => {
                let at = place_of(&message["at"])
                    .map(|at| at.to_string())
                    .unwrap_or_default();
                let left = &message["remaining_s"];
                let left = if left.is_null() {
                    String::new()
                } else {
                    format!(", {} to go", minutes(left))
                };
                vec![tell(format!("driver at {at}{left}"))]
            }
            "cars_near" => {
                let cars = message["cars"].as_array().map_or(0, Vec::len);
                vec![tell(format!("{cars} free cars near"))]
            }
            "move" => vec![tell(
                "this gateway goes down: connecting again when it has closed",
            )],
            "error" => vec![tell(format!("not understood: {}", text("message")))],
            // A later version of the protocol may say more.
            _ => Vec::new(),
        }
    }

    fn handle_answer(&mut self, tag: &'static str, status: u16, body: &Value) -> Vec<Act> {
        let is_done = (200..300).contains(&status);
        if tag == "request" {
            self.asked = None;
        }
        if !is_done {
            return vec![tell(format!("{tag}: {}", refusal(status, body)))];
        }
        let told = match tag {
            "request" => {
                let ride = body["ride"].as_str().unwrap_or_default();
                let point = moved(&body["pickup_point"]).map(|point| format!("; {point}"));
                // The socket may have told of the ride already, even of its end.
                if self.ride.is_none() && self.stage.is_empty() {
                    self.ride = Some(ride.to_owned());
                }
                format!("request: ride {ride}{}", point.unwrap_or_default())
            }
            "quote" => quoted(body),
            "cars" => {
                let cars = body["cars"]
                    .as_array()
                    .map(Vec::as_slice)
                    .unwrap_or_default();
                let metres =
                    |car: &Value| format!("{:.0} m", car["distance_m"].as_f64().unwrap_or(0.0));
                let far: Vec<String> = cars.iter().map(metres).collect();
                format!("cars: {} near, at {}", cars.len(), far.join(", "))
            }
            "status" => {
                let text = |key: &str| body[key].as_str().unwrap_or_default();
                format!("status: ride {}: {}", text("ride"), text("stage"))
            }
            _ => format!("{tag}: {}", body["result"].as_str().unwrap_or("done")),
        };
        vec![tell(told)]
    }

    fn handle_tick(&mut self) -> Vec<Act> {
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(rider: &mut Rider, line: &str) -> Vec<Act> {
        let words: Vec<&str> = line.split_whitespace().collect();
        rider.handle_line(&words)
    }

    #[test]
    fn one_wish_at_a_time_and_one_whose_answer_never_came_is_taken_back_by_its_key() {
        let mut rider = Rider::new("t");
        let asked = typed(&mut rider, "request 37.77,-122.42 37.79,-122.40 xl");
        let [Act::Call(call)] = &asked[..] else {
            panic!("{asked:?}");
        };
        assert_eq!(call.key.as_deref(), Some("t-1"));
        assert_eq!(call.body.as_ref().unwrap()["class"], "xl");
        let again = typed(&mut rider, "request 37.77,-122.42");
        assert_eq!(
            again,
            [tell(
                "the last request has no answer yet: wait, or cancel it"
            )]
        );
        let cancel = typed(&mut rider, "cancel");
        let [Act::Call(call)] = &cancel[..] else {
            panic!("{cancel:?}");
        };
        assert_eq!(
            (&*call.path, &call.body),
            ("/v1/cancel", &Some(json!({"key":"t-1"})))
        );
    }

    #[test]
    fn a_ride_is_led_elsewhere_with_a_key_of_its_own_each_time() {
        let mut rider = Rider::new("t");
        assert_eq!(
            typed(&mut rider, "to 37.8,-122.4"),
            [tell("to: there is no ride")]
        );
        rider.handle_message(&json!({"type":"ride","ride":"0-0-1","stage":"started"}));
        for key in ["t-1", "t-2"] {
            let asked = typed(&mut rider, "to 37.8,-122.4");
            let [Act::Call(call)] = &asked[..] else {
                panic!("{asked:?}");
            };
            assert_eq!(
                (&call.method, &*call.path),
                (&Method::PUT, "/v1/rides/0-0-1/destination")
            );
            assert_eq!(call.key.as_deref(), Some(key));
            assert_eq!(
                call.body.as_ref().unwrap()["to"],
                json!({"lat":37.8,"lon":-122.4})
            );
        }
    }

    #[test]
    fn a_quote_and_a_refusal_are_told_in_words() {
        let quote = json!({"cars_near":3,"pickup_time":{"likely_s":90,"low_s":60,"high_s":240,"share":0.8,"rides":120},"drive_s":600});
        let told = Rider::new("t").handle_answer("quote", 200, &quote);
        assert_eq!(
            told,
            [tell(
                "quote: 3 cars near, there in 90 s, 80 of 100 in 60 s to 4 min (learned from 120 rides); the drive takes 10 min"
            )]
        );
        let problem = json!({"title":"One ride at a time","detail":"end or cancel the open ride"});
        let told = Rider::new("t").handle_answer("request", 409, &problem);
        assert_eq!(
            told,
            [tell(
                "request: refused: One ride at a time: end or cancel the open ride"
            )]
        );
        let nothing = typed(&mut Rider::new("t"), "request");
        assert!(matches!(&nothing[..], [Act::Tell(why)] if why.contains("from where?")));
    }
}
