//! A recorded day against a running server: real reports and real demand through the real edge, one WebSocket a cab.
//!
//! The server runs on the trace's clock; what time it is there is heard from it, so a server that was killed and restarted
//! is simply followed. *Recorded*: every report is sent as it stands, at its time, good and bad (`cabbie` states the rule
//! by which a recorded cab serves our rides). *Dispatched*: a cab begins where and when it first appears, goes where it is
//! sent in straight lines, pings every minute and at every change, and goes home when its reports end. In both, wishes
//! are sent at the recorded times, every offer is accepted at once, and rides last as recorded.
//!
//! All is answered for: the server must have counted every ping that was sent, and every wish has its answer.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cabrank_events::codec::rfc3339;
use cabrank_events::wire::RideRequest;
use cabrank_events::{DriverId, IdempotencyKey, Place, Time, VehicleClass};
use cabrank_geo::Point;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::cabbie::{Cabbie, Manners, Movement, RideLength};
use crate::client::phone::{Phone, hear_clock};
use crate::client::rider::{self, Asked, Wish};
use crate::client::{Context, Mint};
use crate::demo::Outcome;
use crate::run::{OnStatus, Run, RunError, WISHES_IN_FLIGHT_MAX};
use crate::show::Show;
use crate::trace::{BadRow, Report, Reports, Trip, Trips, Window, by_cab};

/// A server whose clock is further from the trace's begin than this is in another time.
const CLOCK_OFF_MAX_MS: i64 = 24 * 3_600_000;
/// How long a wish is pursued, wall time: a restart of the server is survived.
const WISH_WITHIN: Duration = Duration::from_secs(120);
/// How long open rides may take to end once they are ended by hand.
const SETTLE_WITHIN: Duration = Duration::from_secs(30);
/// A cab connects this much earlier than its first report (wall time), so that the report leaves on time.
const CONNECT_EARLY: Duration = Duration::from_millis(500);

/// Who decides where the cars go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Drive {
    /// The trace.
    #[default]
    Recorded,
    /// The dispatcher.
    Dispatched,
}

/// What a replay does.
#[derive(Clone)]
pub struct ReplayOptions {
    /// The server, on the trace's clock.
    pub url: String,
    /// Tokens.
    pub mint: Mint,
    /// `sf_gps_*`.
    pub gps: PathBuf,
    /// `sf_trips_*` or `nyc_*`.
    pub trips: PathBuf,
    /// Domain seconds a second; the server's `--clock-speed`.
    pub speed: f64,
    /// Who drives.
    pub drive: Drive,
    /// Every n-th cab only; 1 = all.
    pub fleet_every: u32,
    /// Part of the trace.
    pub window: Window,
    /// Repeats the run.
    pub seed: u64,
    /// How fast cars go to a pickup (and on rides without a recorded length), metres a second as the crow flies.
    pub car_speed_m_s: f64,
    /// A ping every so many domain seconds (dispatched only).
    pub ping_every_s: u64,
    /// How long after the last recorded thing open rides may go on, domain seconds; then they are ended by hand.
    pub linger_s: u64,
    /// Show a progress bar on standard error.
    pub show: bool,
    /// Told once a second.
    pub on_status: Option<OnStatus>,
    /// For the report.
    pub arguments: Vec<String>,
}

impl ReplayOptions {
    /// The whole of both files at 60 times their speed, recorded.
    pub fn new(url: &str, mint: Mint, gps: PathBuf, trips: PathBuf) -> ReplayOptions {
        ReplayOptions {
            url: url.to_owned(),
            mint,
            gps,
            trips,
            speed: 60.0,
            drive: Drive::Recorded,
            fleet_every: 1,
            window: Window::default(),
            seed: 1,
            car_speed_m_s: 7.0,
            ping_every_s: 60,
            linger_s: 3_600,
            show: true,
            on_status: None,
            arguments: Vec::new(),
        }
    }

    /// When the first thing of the trace happens: what the server's `--clock-start` should be, if nothing else is wanted.
    pub fn begins_at(&self) -> Result<Time, RunError> {
        let report = Reports::open(&self.gps, self.window, self.fleet_every)?.next();
        let trip = Trips::open(&self.trips, self.window)?.next();
        let times = [report.map(|report| report.time), trip.map(|trip| trip.time)];
        times.into_iter().flatten().min().ok_or(RunError::Nothing)
    }
}

/// The day, read.
struct Day {
    cabs: BTreeMap<DriverId, Vec<Report>>,
    trips: Vec<Trip>,
    reports: u64,
    bad: u64,
    bad_rows: Vec<BadRow>,
    begins: Time,
    ends: Time,
}

impl Day {
    fn read(options: &ReplayOptions) -> Result<Day, RunError> {
        let mut reports = Reports::open(&options.gps, options.window, options.fleet_every)?;
        let cabs = by_cab(reports.by_ref());
        let mut rows = Trips::open(&options.trips, options.window)?;
        let mut trips: Vec<Trip> = rows.by_ref().collect();
        trips.sort_by_key(|trip| trip.time);
        let (gps, demand) = (reports.tally(), rows.tally());
        let times = || {
            let of_cabs = cabs
                .values()
                .flat_map(|cab| [cab.first(), cab.last()])
                .flatten();
            of_cabs
                .map(|report| report.time)
                .chain(trips.iter().map(|trip| trip.time))
        };
        let (Some(begins), Some(ends)) = (times().min(), times().max()) else {
            return Err(RunError::Nothing);
        };
        Ok(Day {
            reports: gps.used,
            bad: gps.bad + demand.bad,
            bad_rows: gps
                .bad_rows
                .iter()
                .chain(&demand.bad_rows)
                .cloned()
                .collect(),
            begins,
            ends,
            cabs,
            trips,
        })
    }

    /// Rides last as recorded; they are known by their ends, because a phone learns nothing else of them.
    fn ride_length(&self) -> RideLength {
        let known: HashMap<(Place, Option<Place>), u64> = self
            .trips
            .iter()
            .filter_map(|trip| Some(((trip.pickup, trip.dropoff), trip.ride_ms?)))
            .collect();
        Arc::new(move |pickup, dropoff| known.get(&(pickup, dropoff)).copied())
    }
}

/// Plays the day until its end (and that of its rides), or until `stop` says true.
pub async fn replay(
    options: ReplayOptions,
    mut stop: watch::Receiver<bool>,
) -> Result<Outcome, RunError> {
    let reading = options.clone();
    let day = tokio::task::spawn_blocking(move || Day::read(&reading)).await;
    let day = day.unwrap_or(Err(RunError::Nothing))?;
    let context = Context::new(&options.url, Arc::clone(&options.mint), options.speed)?;
    hear_time(&context, &day, options.speed).await?;
    let mut run = Run::begin(Arc::clone(&context), std::slice::from_ref(&options.url)).await?;
    let mut rng = SmallRng::seed_from_u64(options.seed);
    let mut waiting = hire_cabs(&mut run, &day, &options, &mut rng);
    let length = u64::try_from(day.ends.since(day.begins)).unwrap_or(0) / 1000;
    let mut show = Show::bar(options.show, length);
    let mut riders = Riders::new(&context);
    let mut trips = day.trips.iter().peekable();
    let mut next_status = run.measure();
    let linger = Time(day.ends.0).plus_ms(options.linger_s.saturating_mul(1000));
    loop {
        let now = context.clock.now();
        while let Some(trip) = trips.next_if(|trip| trip.time <= now) {
            riders.send(trip);
        }
        while let Some(cab) = waiting.pop_if(|cab| context.clock.wall_of(cab.first) <= early()) {
            run.hire(cab.phone);
        }
        let all_said = trips.peek().is_none() && waiting.is_empty() && now >= day.ends;
        if all_said && riders.are_answered() {
            let nothing_left =
                all_reports_sent(&context, &day, &options) && run.context.ledger.open().is_empty();
            if nothing_left || now >= linger {
                break;
            }
        }
        if next_status <= Instant::now() {
            next_status = Instant::now() + Duration::from_secs(1);
            let status = run.status();
            show.position(u64::try_from(now.since(day.begins)).unwrap_or(0) / 1000);
            show.status(&status);
            if let Some(on_status) = &options.on_status {
                on_status(&status);
            }
        }
        let trip_at = trips.peek().map(|trip| context.clock.wall_of(trip.time));
        let cab_at = waiting
            .last()
            .and_then(|cab| context.clock.wall_of(cab.first).checked_sub(CONNECT_EARLY));
        let soon = Instant::now() + Duration::from_millis(200);
        let next = [trip_at, cab_at]
            .into_iter()
            .flatten()
            .fold(soon.min(next_status), Instant::min);
        tokio::select! {
            () = sleep_until(next) => {}
            _ = stop.wait_for(|stop| *stop) => break,
        }
    }
    show.message("ending open rides");
    riders.finish().await;
    run.settle(SETTLE_WITHIN).await;
    run.end().await;
    show.finish();
    let was_stopped = *stop.borrow();
    let mut report = run.report(options.seed, options.arguments.clone());
    let sent = report.pings.sent;
    report.notes.push(format!(
        "{} cabs, {} reports, {} trips",
        day.cabs.len(),
        day.reports,
        day.trips.len()
    ));
    if day.bad > 0 {
        report.notes.push(format!("{} bad rows", day.bad));
        report
            .notes
            .extend(day.bad_rows.iter().map(ToString::to_string));
    }
    if was_stopped {
        report.invalidate("the replay was stopped before the end of the trace".to_owned());
    } else if options.drive == Drive::Recorded && sent != day.reports {
        report.invalidate(format!("{sent} reports were sent of {}", day.reports));
    }
    if riders.unsent > 0 {
        report.invalidate(format!(
            "{} wishes were not sent: too many in flight",
            riders.unsent
        ));
    }
    let acknowledged = context.ledger.acknowledged_rides();
    Ok(Outcome {
        report,
        acknowledged: acknowledged.iter().map(ToString::to_string).collect(),
    })
}

fn early() -> Instant {
    Instant::now() + CONNECT_EARLY
}

async fn hear_time(context: &Arc<Context>, day: &Day, speed: f64) -> Result<(), RunError> {
    let heard = hear_clock(context).await;
    heard.map_err(|why| RunError::Connect {
        url: context.url.clone(),
        why,
    })?;
    let server = context.clock.now();
    if server.since(day.begins).abs() > CLOCK_OFF_MAX_MS {
        let (server, trace) = (rfc3339(server), rfc3339(day.begins));
        return Err(RunError::Clock {
            server,
            trace,
            speed,
        });
    }
    Ok(())
}

fn all_reports_sent(context: &Context, day: &Day, options: &ReplayOptions) -> bool {
    options.drive == Drive::Dispatched || context.counts().pings_sent >= day.reports
}

/// A cab whose first report is still to come.
struct Waiting {
    first: Time,
    phone: Phone<Cabbie>,
}

/// Makes a phone for each cab, in the opposite order of their first reports: the next one is the last.
fn hire_cabs(
    run: &mut Run,
    day: &Day,
    options: &ReplayOptions,
    rng: &mut SmallRng,
) -> Vec<Waiting> {
    let ride_length = day.ride_length();
    let mut waiting = Vec::new();
    for (driver, reports) in &day.cabs {
        let (Some(first), Some(last)) = (reports.first(), reports.last()) else {
            continue;
        };
        let movement = match options.drive {
            Drive::Recorded => Movement::Recorded {
                reports: reports.clone(),
            },
            Drive::Dispatched => {
                let place = reports.iter().find_map(|r| Point::new(r.lat, r.lon).ok());
                let Some(start) = place else { continue };
                Movement::Driven {
                    start,
                    city: None,
                    ping_every_ms: options.ping_every_s.max(1) * 1000,
                    ping_at_changes: true,
                    until: Some(last.time),
                }
            }
        };
        let manners = Manners::obliging(options.car_speed_m_s);
        let seed = rng.random();
        let cabbie = Cabbie::new(manners, movement, Some(Arc::clone(&ride_length)), seed);
        let phone = Phone::new(Arc::clone(&run.context), driver.clone(), cabbie, seed ^ 1);
        waiting.push(Waiting {
            first: first.time,
            phone,
        });
    }
    waiting.sort_by_key(|cab| std::cmp::Reverse(cab.first));
    waiting
}

/// The riders of a replay.
struct Riders {
    context: Arc<Context>,
    asking: JoinSet<()>,
    unsent: u64,
}

impl Riders {
    fn new(context: &Arc<Context>) -> Riders {
        Riders {
            context: Arc::clone(context),
            asking: JoinSet::new(),
            unsent: 0,
        }
    }

    fn send(&mut self, trip: &Trip) {
        while self.asking.try_join_next().is_some() {}
        if self.asking.len() >= WISHES_IN_FLIGHT_MAX || !self.context.ledger.has_room() {
            self.unsent += 1;
            return;
        }
        let due = self.context.clock.wall_of(trip.time).min(Instant::now());
        let key = format!("{}-{}", self.context.run, trip.rider);
        let Ok(key) = IdempotencyKey::new(&key) else {
            self.unsent += 1;
            return;
        };
        let mut wish = Wish {
            rider: trip.rider.clone(),
            key,
            request: RideRequest {
                pickup: trip.pickup,
                dropoff: trip.dropoff,
                class: VehicleClass::Economy,
                issued_at: Some(trip.time),
            },
            due,
            give_up: Instant::now() + WISH_WITHIN,
        };
        let context = Arc::clone(&self.context);
        self.asking.spawn(async move {
            let looked = Instant::now();
            let quote = rider::quote(&context, &wish).await;
            // The request leaves when the rider has looked.
            wish.due += looked.elapsed();
            let asked = rider::ask(&context, &wish).await;
            if let (Asked::Opened(ride), Some(quote)) = (asked, quote) {
                context.ledger.quote_was_of(ride, quote);
            }
        });
    }

    fn are_answered(&mut self) -> bool {
        while self.asking.try_join_next().is_some() {}
        self.asking.is_empty()
    }

    async fn finish(&mut self) {
        while self.asking.join_next().await.is_some() {}
    }
}
