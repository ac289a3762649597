//! A synthetic city against a running server: drivers and riders over loopback.
//!
//! Drivers wander to hot spots at 8 to 10 m/s and ping every 3 s; 5 % of the offers are declined, 2 % left unanswered, 1 % of
//! the accepted rides given back, and each driver is out of reach for some seconds now and then. Riders come at random,
//! independent of the server's answers (open loop); 3 % call their ride off. Everything but the network's timing follows
//! from the seed.

use std::sync::Arc;
use std::time::Duration;

use cabrank_events::wire::RideRequest;
use cabrank_events::{DriverId, IdempotencyKey, Place, RiderId, VehicleClass};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use crate::cabbie::{Cabbie, Manners, Movement};
use crate::city::{Arrivals, City};
use crate::client::phone::Phone;
use crate::client::rider::{self, Asked, Wish};
use crate::client::{Context, Mint};
use crate::probe::probe;
use crate::report::Report;
use crate::run::{OnStatus, Run, RunError, WISHES_IN_FLIGHT_MAX};
use crate::show::Show;

/// A ping every so often.
pub const PING_EVERY_MS: u64 = 3_000;
/// Share of riders who call their ride off.
const RIDERS_CANCEL: f64 = 0.03;
/// How long the fleet may take to come online before the run begins anyway.
const FLEET_WITHIN: Duration = Duration::from_secs(60);
/// How long a wish is pursued.
const WISH_WITHIN: Duration = Duration::from_secs(60);
/// How long open rides may take to end when the run is over.
const SETTLE_WITHIN: Duration = Duration::from_secs(30);

/// What a demo does.
#[derive(Clone)]
pub struct DemoOptions {
    /// The server, `http://127.0.0.1:8080`.
    pub url: String,
    /// Whose counters say what became of the pings: every gateway behind `url`.
    pub counted_at: Vec<String>,
    /// Tokens.
    pub mint: Mint,
    /// Drivers, from 1.
    pub drivers: u32,
    /// Wishes a minute, on average.
    pub requests_per_minute: f64,
    /// Ends by itself after so long; otherwise when told to.
    pub seconds: Option<u64>,
    /// Repeats the run.
    pub seed: u64,
    /// Measure how soon a ping is visible (costs a few calls a second).
    pub probe: bool,
    /// Show progress on standard error.
    pub show: bool,
    /// Told once a second.
    pub on_status: Option<OnStatus>,
    /// For the report.
    pub arguments: Vec<String>,
}

impl DemoOptions {
    /// The canonical city: 2,000 drivers, 300 wishes a minute.
    pub fn new(url: &str, mint: Mint) -> DemoOptions {
        DemoOptions {
            url: url.to_owned(),
            counted_at: vec![url.to_owned()],
            mint,
            drivers: 2_000,
            requests_per_minute: 300.0,
            seconds: None,
            seed: 1,
            probe: true,
            show: true,
            on_status: None,
            arguments: Vec::new(),
        }
    }
}

/// What the demo's drivers are like.
pub fn manners() -> Manners {
    Manners {
        decline: 0.05,
        ignore: 0.02,
        give_back: 0.01,
        think_ms: 500..=3_000,
        board_ms: 5_000..=15_000,
        lose_signal_every_ms: 900_000,
        lose_signal_ms: 2_000..=8_000,
        speed_m_s: 8.0..=10.0,
    }
}

/// What a run leaves behind: its report, and the rides the server promised, for the audit.
#[derive(Debug)]
pub struct Outcome {
    /// The numbers.
    pub report: Report,
    /// Acknowledged rides.
    pub acknowledged: Vec<String>,
}

/// Runs until `seconds` are over or `stop` says true, lets open rides end or calls them off, and reports.
pub async fn demo(
    options: DemoOptions,
    mut stop: watch::Receiver<bool>,
) -> Result<Outcome, RunError> {
    let context = Context::new(&options.url, Arc::clone(&options.mint), 1.0)?;
    let mut run = Run::begin(Arc::clone(&context), &options.counted_at).await?;
    let mut rng = SmallRng::seed_from_u64(options.seed);
    let city = Arc::new(City::new(&mut rng));
    hire_fleet(&mut run, &options, &city, &mut rng);
    wait_for_fleet(&context, options.drivers, &mut stop).await?;
    if options.probe {
        let (car, looker) = probe(&context);
        let driver = DriverId::new("probe").expect("a constant that is an id");
        run.hire(Phone::new(Arc::clone(&context), driver, car, options.seed));
        run.beside(looker);
    }
    let began = run.measure();
    let mut show = Show::spinner(options.show);
    let mut demand = Demand::new(&context, &options, city, rng, began);
    let ends_at = options
        .seconds
        .map(|seconds| began + Duration::from_secs(seconds));
    let mut next_status = began + Duration::from_secs(1);
    loop {
        let wish_at = demand.next_at();
        let next = [ends_at, wish_at]
            .into_iter()
            .flatten()
            .fold(next_status, Instant::min);
        tokio::select! {
            () = sleep_until(next) => {}
            // A dropped sender is a stop as well: nobody could say so any more.
            _ = stop.wait_for(|stop| *stop) => break,
        }
        let now = Instant::now();
        if ends_at.is_some_and(|end| end <= now) {
            break;
        }
        if wish_at.is_some_and(|at| at <= now) {
            demand.send();
        }
        if next_status <= now {
            next_status = now + Duration::from_secs(1);
            let status = run.status();
            show.status(&status);
            if let Some(on_status) = &options.on_status {
                on_status(&status);
            }
        }
    }
    show.message("ending open rides");
    demand.finish().await;
    run.settle(SETTLE_WITHIN).await;
    run.end().await;
    show.finish();
    let mut report = run.report(options.seed, options.arguments);
    if demand.unsent > 0 {
        report.invalidate(format!(
            "{} wishes were not sent: too many in flight",
            demand.unsent
        ));
    }
    let acknowledged = context.ledger.acknowledged_rides();
    Ok(Outcome {
        report,
        acknowledged: acknowledged.iter().map(ToString::to_string).collect(),
    })
}

fn hire_fleet(run: &mut Run, options: &DemoOptions, city: &Arc<City>, rng: &mut SmallRng) {
    for n in 0..options.drivers {
        // Two of three wait where the demand is, the others are on their way back from anywhere.
        let start = if n % 3 == 0 {
            city.anywhere(rng)
        } else {
            city.wish(0, rng)
        };
        let movement = Movement::Driven {
            start,
            city: Some(Arc::clone(city)),
            ping_every_ms: PING_EVERY_MS,
            ping_at_changes: false,
            until: None,
        };
        let seed = rng.random();
        let cabbie = Cabbie::new(manners(), movement, None, seed);
        let driver = DriverId::new(&format!("driver-{n}")).expect("letters, digits and a dash");
        run.hire(Phone::new(
            Arc::clone(&run.context),
            driver,
            cabbie,
            seed ^ 1,
        ));
    }
}

/// Waits until nearly the whole fleet is online, so that the run measures dispatch and not the coming of the drivers.
async fn wait_for_fleet(
    context: &Context,
    drivers: u32,
    stop: &mut watch::Receiver<bool>,
) -> Result<(), RunError> {
    let enough = u64::from(drivers) * 99 / 100;
    let deadline = Instant::now() + FLEET_WITHIN;
    while Instant::now() < deadline && !*stop.borrow() {
        let counts = context.counts().clone();
        if counts.online >= enough.max(1) {
            return Ok(());
        }
        if counts.connected == 0 && counts.errors >= u64::from(drivers).min(10) {
            let why = counts.first_error.unwrap_or_default();
            return Err(RunError::Connect {
                url: context.url.clone(),
                why,
            });
        }
        sleep(Duration::from_millis(50)).await;
    }
    if context.counts().online > 0 || *stop.borrow() {
        return Ok(());
    }
    let why = context.counts().first_error.clone();
    let why = why.unwrap_or_else(|| "no socket came to a session in time".to_owned());
    Err(RunError::Connect {
        url: context.url.clone(),
        why,
    })
}

/// The riders of a demo.
struct Demand {
    context: Arc<Context>,
    city: Arc<City>,
    rng: SmallRng,
    arrivals: Arrivals,
    began: Instant,
    next_ms: Option<i64>,
    asked: u64,
    unsent: u64,
    riders: JoinSet<()>,
    /// Says true when the run is over: nobody waits any longer to call off.
    over: watch::Sender<bool>,
}

impl Demand {
    fn new(
        context: &Arc<Context>,
        options: &DemoOptions,
        city: Arc<City>,
        mut rng: SmallRng,
        began: Instant,
    ) -> Demand {
        let mut arrivals = Arrivals::new(options.requests_per_minute, 0);
        let next_ms = arrivals.next_ms(&mut rng);
        Demand {
            context: Arc::clone(context),
            city,
            rng,
            arrivals,
            began,
            next_ms,
            asked: 0,
            unsent: 0,
            riders: JoinSet::new(),
            over: watch::Sender::new(false),
        }
    }

    /// When the next wish is due.
    fn next_at(&self) -> Option<Instant> {
        let ms = u64::try_from(self.next_ms?).ok()?;
        Some(self.began + Duration::from_millis(ms))
    }

    /// Sends the wish that is due.
    fn send(&mut self) {
        let (Some(due), Some(at_ms)) = (self.next_at(), self.next_ms) else {
            return;
        };
        self.next_ms = self.arrivals.next_ms(&mut self.rng);
        while self.riders.try_join_next().is_some() {}
        let domain = self.context.clock.now();
        let pickup = self.city.wish(at_ms, &mut self.rng);
        let dropoff = self.city.destination(pickup, &mut self.rng);
        let gives_up = self.rng.random_bool(RIDERS_CANCEL);
        let patience = Duration::from_millis(self.rng.random_range(500..40_000));
        self.asked += 1;
        if self.riders.len() >= WISHES_IN_FLIGHT_MAX || !self.context.ledger.has_room() {
            self.unsent += 1;
            return;
        }
        let name = format!("{}-{}", self.context.run, self.asked);
        let wish = Wish {
            rider: RiderId::new(&format!("rider-{name}")).expect("letters, digits and dashes"),
            key: IdempotencyKey::new(&name).expect("letters, digits and dashes"),
            request: RideRequest {
                pickup: Place(pickup),
                dropoff: Some(Place(dropoff)),
                class: VehicleClass::Economy,
                issued_at: Some(domain),
            },
            due,
            give_up: due + WISH_WITHIN,
        };
        let context = Arc::clone(&self.context);
        let mut over = self.over.subscribe();
        self.riders.spawn(async move {
            if let Asked::Opened(ride) = rider::ask(&context, &wish).await
                && gives_up
            {
                tokio::select! {
                    () = sleep(patience) => {}
                    _ = over.wait_for(|over| *over) => return,
                }
                let give_up = Instant::now() + WISH_WITHIN;
                if let Err(why) = rider::cancel(&context, &wish.rider, ride, give_up).await {
                    tracing::debug!(%why, %ride, "a rider could not call off");
                }
            }
        });
    }

    /// Waits until every wish has its answer.
    async fn finish(&mut self) {
        self.over.send_replace(true);
        while self.riders.join_next().await.is_some() {}
    }
}
