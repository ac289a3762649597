//! Does a search show cars that are not there? All drivers of a place move 5 km, then all go offline.
//!
//! Drivers stand together in crowds of `CROWD`, as many as one answer can show, each crowd far from the others. A jump of
//! 5 km is no car's, so each driver repeats the new place until the server must believe it. What a search around a place
//! all have left still shows is stale, and so is any car once all are offline.

use std::time::Duration;

use cabrank_events::wire::{FromDriver, Nearby, Ping, ToDriver, WireResult};
use cabrank_events::{ClassSet, SessionId};
use cabrank_geo::Point;
use futures_util::{SinkExt, StreamExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use super::report::Ghosts;
use crate::client::{CALL_WITHIN, Context, Role};

/// Drivers that stand together.
const CROWD: u32 = 100;
/// Between two crowds, metres.
const APART_M: f64 = 20_000.0;
/// How far all move.
const MOVE_M: f64 = 5_000.0;
/// The new place is repeated so often.
const REPEATS: u32 = 5;
/// Searches around a place that should be empty.
const SEARCHES: u32 = 20;
/// How long a crowd may take to be seen, and one answer of the server to come.
const WITHIN: Duration = Duration::from_secs(10);
/// Drivers spoken to at the same time.
const AT_ONCE: usize = 32;

struct Car {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    session: SessionId,
    place: Point,
    seq: u32,
}

/// Tries it with `drivers` drivers; an error says what did not even work.
pub async fn ghosts(context: &Context, drivers: u32) -> Result<Ghosts, String> {
    let mut found = Ghosts::default();
    let crowds = drivers.div_ceil(CROWD);
    for crowd in 0..crowds {
        let count = CROWD.min(drivers - crowd * CROWD);
        try_crowd(context, crowd, count, &mut found).await?;
    }
    Ok(found)
}

async fn try_crowd(
    context: &Context,
    crowd: u32,
    count: u32,
    found: &mut Ghosts,
) -> Result<(), String> {
    let start = Point::new(20.0, -140.0).expect("a constant inside the ranges");
    let here = start.offset_m(
        f64::from(crowd / 50) * APART_M,
        f64::from(crowd % 50) * APART_M,
    );
    let there = here.offset_m(0.0, MOVE_M);
    let open = (0..count).map(|n| {
        let name = format!("ghost-{}-{crowd}-{n}", context.run);
        // A few metres apart, so that each is a place of its own.
        let place = here.offset_m(f64::from(n / 10) * 5.0, f64::from(n % 10) * 5.0);
        Car::open(context, name, place)
    });
    let opened: Vec<_> = futures_util::stream::iter(open)
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    let mut cars = opened.into_iter().collect::<Result<Vec<Car>, String>>()?;
    wait_seen(context, here, count).await?;
    for car in &mut cars {
        car.place = car.place.offset_m(0.0, MOVE_M);
        for _ in 0..REPEATS {
            car.ping().await?;
        }
    }
    wait_seen(context, there, count).await?;
    for _ in 0..SEARCHES {
        found.searches_after_move += 1;
        found.stale_after_move += look(context, here).await?;
    }
    let close = cars.into_iter().map(Car::go_offline);
    let closed: Vec<_> = futures_util::stream::iter(close)
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    closed.into_iter().collect::<Result<Vec<()>, String>>()?;
    for _ in 0..SEARCHES {
        found.searches_after_offline += 1;
        found.stale_after_offline += look(context, there).await?;
    }
    Ok(())
}

async fn wait_seen(context: &Context, at: Point, count: u32) -> Result<(), String> {
    let deadline = Instant::now() + WITHIN;
    loop {
        let seen = look(context, at).await?;
        if seen >= u64::from(count) {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(format!(
                "only {seen} of {count} drivers showed at {at} within {WITHIN:?}"
            ));
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// Cars shown within 2 km.
async fn look(context: &Context, at: Point) -> Result<u64, String> {
    let call = context
        .http
        .get(format!("{}/v1/nearby", context.url))
        .query(&[
            ("lat", at.lat_deg()),
            ("lon", at.lon_deg()),
            ("radius", 2_000.0),
        ])
        .query(&[("k", CROWD)])
        .bearer_auth(context.ops_token())
        .timeout(CALL_WITHIN);
    let answer = call
        .send()
        .await
        .and_then(reqwest::Response::error_for_status);
    let answer = answer.map_err(|why| why.to_string())?;
    let nearby = answer
        .json::<Nearby>()
        .await
        .map_err(|why| why.to_string())?;
    Ok(nearby.cars.len() as u64)
}

impl Car {
    async fn open(context: &Context, name: String, place: Point) -> Result<Car, String> {
        let url = format!("ws{}/v1/driver", &context.url["http".len()..]);
        let mut request = url.into_client_request().map_err(|why| why.to_string())?;
        let bearer = format!("Bearer {}", (context.mint)(Role::Driver, &name));
        let bearer = bearer.parse().map_err(|_| "bad token".to_owned())?;
        request.headers_mut().insert("Authorization", bearer);
        let connected = timeout(WITHIN, connect_async(request)).await;
        let (socket, _) = connected
            .map_err(|_| "no connection in time")?
            .map_err(|why| why.to_string())?;
        let mut car = Car {
            socket,
            session: SessionId(0),
            place,
            seq: 0,
        };
        let online = FromDriver::Online {
            id: "on".into(),
            session: None,
            classes: ClassSet::default(),
        };
        car.say(&online).await?;
        car.session = car
            .outcome("on")
            .await?
            .ok_or("an outcome without a session")?;
        car.ping().await?;
        Ok(car)
    }

    async fn say(&mut self, message: &FromDriver) -> Result<(), String> {
        let text = serde_json::to_string(message).map_err(|why| why.to_string())?;
        self.socket
            .send(Message::text(text))
            .await
            .map_err(|why| why.to_string())
    }

    async fn ping(&mut self) -> Result<(), String> {
        self.seq += 1;
        let ping = Ping {
            lat: self.place.lat_deg(),
            lon: self.place.lon_deg(),
            time: None,
            seq: self.seq,
            accuracy: None,
        };
        self.say(&FromDriver::Ping(ping)).await
    }

    async fn outcome(&mut self, id: &str) -> Result<Option<SessionId>, String> {
        let wait = async {
            while let Some(frame) = self.socket.next().await {
                let Ok(Message::Text(text)) = frame else {
                    continue;
                };
                if let Ok(ToDriver::Outcome(outcome)) = serde_json::from_str(&text)
                    && outcome.id == id
                {
                    return match outcome.result {
                        WireResult::Done | WireResult::AlreadyDone => Ok(outcome.session),
                        WireResult::Refused | WireResult::Unknown => {
                            Err(format!("{id}: {outcome:?}"))
                        }
                    };
                }
            }
            Err("the socket ended".to_owned())
        };
        timeout(WITHIN, wait)
            .await
            .map_err(|_| format!("no outcome of {id} in time"))?
    }

    async fn go_offline(mut self) -> Result<(), String> {
        let offline = FromDriver::Offline {
            id: "off".into(),
            session: self.session,
        };
        self.say(&offline).await?;
        self.outcome("off").await?;
        Ok(())
    }
}
