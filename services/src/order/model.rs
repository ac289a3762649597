//! What is known of a ride, folded from its events.
//!
//! Each event fills what it alone knows, and the newest by the ride's own number says the state; so an event that comes
//! late (a dead letter applied again) still finds its place. Same events, same row: the rebuilt model equals the live one.

use cabrank_events::command::CancelledBy;
use cabrank_events::{Event, Place, RideId, Time};
use cabrank_geo::Point;
use serde::Serialize;
use sqlx::any::AnyRow;
use sqlx::{AnyConnection, Row};

use crate::consumer::{placeholders, statement};

/// One ride as the business sees it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Order {
    /// Which.
    pub ride: String,
    /// Who rides.
    pub rider: String,
    /// What car.
    pub class: String,
    /// Where from.
    #[serde(serialize_with = "as_place")]
    pub pickup: Point,
    /// Where to, if said.
    #[serde(
        serialize_with = "as_maybe_place",
        skip_serializing_if = "Option::is_none"
    )]
    pub dropoff: Option<Point>,
    /// `searching`, `offered`, `assigned`, `arrived`, `started`, `completed`, `cancelled`, `unfulfilled`.
    pub state: String,
    /// Who drives, once assigned and as long as nobody else does.
    pub driver: Option<String>,
    /// When it was opened, ms since the Unix epoch; so are the others.
    pub requested_ms: i64,
    /// When a driver took it first.
    pub assigned_ms: Option<i64>,
    /// When the driver was at the pickup.
    pub arrived_ms: Option<i64>,
    /// When the rider was in the car.
    pub started_ms: Option<i64>,
    /// When it was over.
    pub ended_ms: Option<i64>,
    /// Who or what ended it.
    pub ended_by: Option<String>,
    /// The number of its newest event.
    #[serde(skip)]
    pub last_seq: i64,
}

fn as_place<S: serde::Serializer>(point: &Point, to: S) -> Result<S::Ok, S::Error> {
    Place(*point).serialize(to)
}

fn as_maybe_place<S: serde::Serializer>(point: &Option<Point>, to: S) -> Result<S::Ok, S::Error> {
    point.map(Place).serialize(to)
}

/// A step of a ride's life, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    /// Its number.
    pub ride_seq: i64,
    /// What happened: `ride.started`.
    pub name: String,
    /// When, ms since the Unix epoch.
    pub at_ms: i64,
    /// Who drove.
    pub driver: Option<String>,
}

/// What an event tells about its ride; `None`: it is no step of a ride's life.
pub struct Told {
    /// Which.
    pub ride: RideId,
    /// The ride's own number of it.
    pub seq: i64,
    /// The driver it names.
    pub driver: Option<String>,
    /// The state it brings, if it brings one.
    state: Option<&'static str>,
}

/// Reads the parts that matter of every ride event.
pub fn told(event: &Event) -> Option<Told> {
    macro_rules! of {
        ($event:expr, $state:expr) => {
            Told {
                ride: $event.ride,
                seq: i64::from($event.ride_seq),
                driver: None,
                state: $state,
            }
        };
        ($event:expr, $state:expr, driver) => {
            Told {
                driver: Some($event.driver.to_string()),
                ..of!($event, $state)
            }
        };
    }
    use Event::*;
    Some(match event {
        RideRequested(e) => of!(e, Some("searching")),
        DestinationChanged(e) => of!(e, None),
        SearchedInVain(e) => of!(e, None),
        SearchWidened(e) => of!(e, None),
        DriverClaimed(e) => of!(e, None, driver),
        SecondHoldGranted(e) => of!(e, None, driver),
        HoldAsked(e) => of!(e, None, driver),
        HoldMoved(e) => of!(e, None, driver),
        HoldKept(e) => of!(e, None, driver),
        ReportWaits(e) => of!(e, None, driver),
        SwapAsked(e) => of!(e, None, driver),
        SwapAnswered(e) => of!(e, None, driver),
        DriverReassigned(e) => of!(e, Some("assigned"), driver),
        ClaimDenied(e) => of!(e, None, driver),
        ClaimAbandoned(e) => of!(e, None, driver),
        OfferMade(e) => of!(e, None, driver),
        OfferReceived(e) => of!(e, None, driver),
        OfferDeclined(e) => of!(e, None, driver),
        OfferExpired(e) => of!(e, None, driver),
        DriverAssigned(e) => of!(e, Some("assigned"), driver),
        DriverLost(e) => of!(e, Some("searching"), driver),
        DriverArrived(e) => of!(e, Some("arrived"), driver),
        RideStarted(e) => of!(e, Some("started"), driver),
        RideCompleted(e) => of!(e, Some("completed"), driver),
        RideCancelled(e) => Told {
            driver: e.driver.as_ref().map(ToString::to_string),
            ..of!(e, Some("cancelled"))
        },
        RideUnfulfilled(e) => of!(e, Some("unfulfilled")),
        _ => return None,
    })
}

impl Order {
    /// The order a `ride.requested` opens; `None` for every other event.
    pub fn opened(event: &Event, time: Time) -> Option<Order> {
        let Event::RideRequested(asked) = event else {
            return None;
        };
        Some(Order {
            ride: asked.ride.to_string(),
            rider: asked.rider.to_string(),
            class: asked.class.name().to_owned(),
            pickup: asked.pickup.0,
            dropoff: asked.dropoff.map(|place| place.0),
            state: "searching".to_owned(),
            driver: None,
            requested_ms: time.0,
            assigned_ms: None,
            arrived_ms: None,
            started_ms: None,
            ended_ms: None,
            ended_by: None,
            last_seq: i64::from(asked.ride_seq),
        })
    }

    /// Takes in one more event of this ride.
    pub fn fold(&mut self, event: &Event, time: Time, told: &Told) {
        match event {
            Event::DriverAssigned(_) if self.assigned_ms.is_none() => {
                self.assigned_ms = Some(time.0)
            }
            Event::DriverArrived(_) => self.arrived_ms = Some(time.0),
            Event::RideStarted(_) => self.started_ms = Some(time.0),
            // The fare goes by the last one; what is held was asked for by the first.
            Event::DestinationChanged(e) => self.dropoff = Some(e.to.0),
            Event::RideCompleted(_) => self.end(time, "driver"),
            Event::RideCancelled(e) => self.end(
                time,
                match e.by {
                    CancelledBy::Rider => "rider",
                    CancelledBy::Ops => "desk",
                    CancelledBy::NoShow => "no_show",
                },
            ),
            Event::RideUnfulfilled(_) => self.end(time, "nobody"),
            _ => {}
        }
        if told.seq <= self.last_seq {
            return;
        }
        self.last_seq = told.seq;
        if let Some(state) = told.state {
            self.state = state.to_owned();
        }
        match event {
            Event::DriverAssigned(_) | Event::DriverReassigned(_) => {
                self.driver.clone_from(&told.driver)
            }
            Event::DriverLost(_) => self.driver = None,
            _ => {}
        }
    }

    fn end(&mut self, time: Time, by: &str) {
        self.ended_ms = Some(time.0);
        self.ended_by = Some(by.to_owned());
    }

    fn from_row(row: &AnyRow) -> Result<Order, sqlx::Error> {
        let number = |name: &str| row.try_get::<Option<i64>, _>(name);
        let point = |lat: &str, lon: &str| -> Result<Option<Point>, sqlx::Error> {
            let (Some(lat), Some(lon)) = (number(lat)?, number(lon)?) else {
                return Ok(None);
            };
            let bad = || sqlx::Error::Decode("a place that is none".into());
            let (lat, lon) = (
                i32::try_from(lat).map_err(|_| bad())?,
                i32::try_from(lon).map_err(|_| bad())?,
            );
            Point::from_e7(lat, lon).map(Some).map_err(|_| bad())
        };
        let pickup = point("pickup_lat_e7", "pickup_lon_e7")?;
        Ok(Order {
            ride: row.try_get("ride")?,
            rider: row.try_get("rider")?,
            class: row.try_get("class")?,
            pickup: pickup
                .ok_or_else(|| sqlx::Error::Decode("an order without a pickup".into()))?,
            dropoff: point("dropoff_lat_e7", "dropoff_lon_e7")?,
            state: row.try_get("state")?,
            driver: row.try_get("driver")?,
            requested_ms: row.try_get("requested_ms")?,
            assigned_ms: number("assigned_ms")?,
            arrived_ms: number("arrived_ms")?,
            started_ms: number("started_ms")?,
            ended_ms: number("ended_ms")?,
            ended_by: row.try_get("ended_by")?,
            last_seq: row.try_get("last_seq")?,
        })
    }
}

/// Most orders one statement writes (of 16 values each).
const ROWS: usize = 128;

/// The orders of these rides that are known.
pub async fn load(sql: &mut AnyConnection, rides: &[String]) -> Result<Vec<Order>, sqlx::Error> {
    let mut found = Vec::with_capacity(rides.len());
    for rides in rides.chunks(ROWS) {
        let text = format!(
            "SELECT * FROM orders WHERE ride IN {}",
            placeholders(1, rides.len())
        );
        let mut query = statement(text);
        for ride in rides {
            query = query.bind(ride);
        }
        for row in query.fetch_all(&mut *sql).await? {
            found.push(Order::from_row(&row)?);
        }
    }
    Ok(found)
}

/// Writes orders as they are now.
pub async fn store(sql: &mut AnyConnection, orders: &[&Order]) -> Result<(), sqlx::Error> {
    for orders in orders.chunks(ROWS) {
        let text = format!(
            "INSERT INTO orders (ride, rider, class, pickup_lat_e7, pickup_lon_e7, dropoff_lat_e7, dropoff_lon_e7, state, \
             driver, requested_ms, assigned_ms, arrived_ms, started_ms, ended_ms, ended_by, last_seq) VALUES {} \
             ON CONFLICT (ride) DO UPDATE SET state = excluded.state, driver = excluded.driver, \
             dropoff_lat_e7 = excluded.dropoff_lat_e7, dropoff_lon_e7 = excluded.dropoff_lon_e7, \
             assigned_ms = excluded.assigned_ms, arrived_ms = excluded.arrived_ms, started_ms = excluded.started_ms, \
             ended_ms = excluded.ended_ms, ended_by = excluded.ended_by, last_seq = excluded.last_seq",
            placeholders(orders.len(), 16)
        );
        let mut query = statement(text);
        for order in orders {
            query = query
                .bind(&order.ride)
                .bind(&order.rider)
                .bind(&order.class)
                .bind(i64::from(order.pickup.lat_e7()))
                .bind(i64::from(order.pickup.lon_e7()))
                .bind(order.dropoff.map(|at| i64::from(at.lat_e7())))
                .bind(order.dropoff.map(|at| i64::from(at.lon_e7())))
                .bind(&order.state)
                .bind(&order.driver)
                .bind(order.requested_ms)
                .bind(order.assigned_ms)
                .bind(order.arrived_ms)
                .bind(order.started_ms)
                .bind(order.ended_ms)
                .bind(&order.ended_by)
                .bind(order.last_seq);
        }
        query.execute(&mut *sql).await?;
    }
    Ok(())
}

/// Notes steps of rides; one that is known already stays as it is.
pub async fn store_steps(
    sql: &mut AnyConnection,
    steps: &[(String, Step)],
) -> Result<(), sqlx::Error> {
    for steps in steps.chunks(256) {
        let text = format!(
            "INSERT INTO order_history (ride, ride_seq, name, at_ms, driver) VALUES {} ON CONFLICT DO NOTHING",
            placeholders(steps.len(), 5)
        );
        let mut query = statement(text);
        for (ride, step) in steps {
            query = query
                .bind(ride)
                .bind(step.ride_seq)
                .bind(&step.name)
                .bind(step.at_ms)
                .bind(&step.driver);
        }
        query.execute(&mut *sql).await?;
    }
    Ok(())
}

/// A ride's steps in order.
pub async fn steps(database: &sqlx::AnyPool, ride: &str) -> Result<Vec<Step>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT ride_seq, name, at_ms, driver FROM order_history WHERE ride = $1 ORDER BY ride_seq",
    )
    .bind(ride)
    .fetch_all(database)
    .await?;
    rows.iter()
        .map(|row| {
            Ok(Step {
                ride_seq: row.try_get("ride_seq")?,
                name: row.try_get("name")?,
                at_ms: row.try_get("at_ms")?,
                driver: row.try_get("driver")?,
            })
        })
        .collect()
}

/// Whose orders, and which.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Of this rider only.
    pub rider: Option<String>,
    /// Of this driver only.
    pub driver: Option<String>,
    /// In this state only.
    pub state: Option<String>,
    /// Requested at or after, ms since the Unix epoch.
    pub from_ms: Option<i64>,
    /// Requested before.
    pub to_ms: Option<i64>,
    /// Only what comes after this one: its time and ride.
    pub after: Option<(i64, String)>,
}

/// At most `limit` orders, newest first.
pub async fn find(
    database: &sqlx::AnyPool,
    wanted: &Wanted,
    limit: i64,
) -> Result<Vec<Order>, sqlx::Error> {
    let mut text = "SELECT * FROM orders WHERE requested_ms >= $1 AND requested_ms < $2 \
                    AND (requested_ms < $3 OR (requested_ms = $3 AND ride < $4))"
        .to_owned();
    let conditions = [
        ("rider", &wanted.rider),
        ("driver", &wanted.driver),
        ("state", &wanted.state),
    ];
    let given: Vec<(&str, &String)> = conditions
        .into_iter()
        .filter_map(|(column, value)| Some((column, value.as_ref()?)))
        .collect();
    for (number, (column, _)) in (5..).zip(&given) {
        text += &format!(" AND {column} = ${number}");
    }
    text += &format!(" ORDER BY requested_ms DESC, ride DESC LIMIT {limit}");
    let mut query = statement(text)
        .bind(wanted.from_ms.unwrap_or(i64::MIN))
        .bind(wanted.to_ms.unwrap_or(i64::MAX))
        .bind(wanted.after.as_ref().map_or(i64::MAX, |(ms, _)| *ms))
        .bind(
            wanted
                .after
                .as_ref()
                .map_or(String::new(), |(_, ride)| ride.clone()),
        );
    for (_, value) in given {
        query = query.bind(value.clone());
    }
    let rows = query.fetch_all(database).await?;
    rows.iter().map(Order::from_row).collect()
}
