//! `cabrank simulate`: an evening under a policy, in virtual time.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use cabrank_engine::film::Camera;
use cabrank_events::Time;
use cabrank_events::map::Film;
use cabrank_loadgen::trace::Window;
use cabrank_simulate::calibrate::{self, Profile};
use cabrank_simulate::compare::{Comparison, Side};
use cabrank_simulate::contender::Contender;
use cabrank_simulate::dispatch::{NodeRules, Scope};
use cabrank_simulate::hindsight::bound;
use cabrank_simulate::html;
use cabrank_simulate::rounds::RoundRules;
use cabrank_simulate::scene::{Fleet, Scene, Source, read_shape};
use cabrank_simulate::tally::Outcome;
use cabrank_simulate::world::{Habits, Speeds, play_filmed};
use clap::{Args, Subcommand, ValueEnum};

use super::film;
use crate::settings::Preset;
use crate::{AnyError, Common};

/// Progress is shown this often.
const SHOW_EVERY: Duration = Duration::from_millis(500);
/// Characters of the progress bar.
const BAR_WIDTH: usize = 20;

/// Flags of `simulate`.
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct SimulateArgs {
    #[command(subcommand)]
    command: Option<SimulateCommand>,
    #[command(flatten)]
    one: OneArgs,
}

#[derive(Subcommand)]
enum SimulateCommand {
    /// Play the same days under several policies and print one table, with 95 % intervals over days, each the mean of its seeds.
    Compare(Box<CompareArgs>),
    /// Measure how fast cars are along straight lines, by the hour, on recorded rides; prints `hour,kmh` for --speeds.
    Calibrate(CalibrateArgs),
}

/// Flags of one run.
#[derive(Args)]
struct OneArgs {
    /// How rounds choose, `NAME[:GAIN_S][@ROUND_S]`: first_come, greedy, batched, rematch; e.g. rematch:120@10.
    #[arg(long, default_value = "batched")]
    policy: Contender,
    /// Write the report (cabrank.simulation/1 JSON) here.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Write a page with pictures here.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Write a film of the day here: `cabrank watch FILE` shows it on the map.
    #[arg(long, value_name = "FILE")]
    film: Option<PathBuf>,
    /// From drawing to drawing of the film, seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 10, requires = "film", value_parser = clap::value_parser!(u64).range(1..=600))]
    film_every_s: u64,
    /// Do not audit the events.
    #[arg(long)]
    no_audit: bool,
    /// Also tell how long riders must wait at least under any plan that knows all wishes beforehand and serves as many,
    /// with cars that stand until they set off for a rider.
    #[arg(long)]
    hindsight: bool,
    /// Repeats the run.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    #[command(flatten)]
    market: MarketArgs,
    /// Recorded demand (`sf_trips_*`, `nyc_*`, gzip or plain CSV).
    #[arg(long, value_name = "FILE", required = true)]
    trips: Option<PathBuf>,
    /// Recorded positions: cars begin where they first appear. Without it, where their first ride of the trips begins.
    #[arg(long, value_name = "FILE")]
    gps: Option<PathBuf>,
}

/// Flags of `simulate compare`.
#[derive(Args)]
pub struct CompareArgs {
    /// Policies, separated by commas; differences are told against the first.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "first_come,greedy,batched,rematch"
    )]
    policies: Vec<Contender>,
    /// How many seeds a day.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=1000))]
    seeds: u64,
    /// Recorded demand, one file a day, separated by commas.
    #[arg(long, value_name = "FILE,...", value_delimiter = ',', required = true)]
    trips: Vec<PathBuf>,
    /// Recorded positions of the same days, in the same order.
    #[arg(long, value_name = "FILE,...", value_delimiter = ',')]
    gps: Vec<PathBuf>,
    /// Write all runs (JSON) here.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Write a page with pictures here.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    #[command(flatten)]
    market: MarketArgs,
}

/// Flags of `simulate calibrate`.
#[derive(Args)]
pub struct CalibrateArgs {
    /// Recorded rides with drop-offs and durations, separated by commas.
    #[arg(long, value_name = "FILE,...", value_delimiter = ',', required = true)]
    trips: Vec<PathBuf>,
    #[command(flatten)]
    clock: LocalClock,
}

/// The clock that tells the hours of the day.
#[derive(Args)]
struct LocalClock {
    /// What the local clock of speeds by the hour is ahead of UTC, hours: San Francisco in May -7, New York in January -5.
    #[arg(
        long,
        value_name = "HOURS",
        default_value_t = 0,
        allow_negative_numbers = true
    )]
    clock_ahead_h: i64,
}

impl LocalClock {
    fn ahead_ms(&self) -> i64 {
        self.clock_ahead_h * 3_600_000
    }
}

/// What the market is like.
#[derive(Args)]
struct MarketArgs {
    /// So many of the cars, chosen by the seed.
    #[arg(long, value_name = "N", conflicts_with = "fleet_every")]
    fleet: Option<usize>,
    /// Only every n-th car in the order of first appearance.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    fleet_every: u32,
    /// Only every n-th ride.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    trips_every: u32,
    /// Leave out what is before this (Unix seconds).
    #[arg(long, value_name = "SECONDS")]
    from: Option<i64>,
    /// Leave out what is at or after this (Unix seconds).
    #[arg(long, value_name = "SECONDS")]
    to: Option<i64>,
    /// Cars stay until the end instead of going home with their last report.
    #[arg(long)]
    stay: bool,
    /// Move each wish by up to so many seconds, by the seed: the sources know when riders got in, not when they asked.
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    jitter_s: u64,
    /// Straight-line speed of cars, km/h.
    #[arg(long, default_value_t = 15.0)]
    speed_kmh: f64,
    /// Straight-line speeds by the hour, as `simulate calibrate` prints them, instead of --speed-kmh; the slowest hour
    /// counts for --pickup-max-s.
    #[arg(long, value_name = "FILE", conflicts_with = "speed_kmh")]
    speeds: Option<PathBuf>,
    #[command(flatten)]
    clock: LocalClock,
    /// A rider leaves who has no driver after so long, seconds; 0: as configured (`engine.ride_deadline_ms`).
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    patience_s: u64,
    /// No car is asked that needs longer to the pickup, seconds, from the first search on; 0: as configured
    /// (`engine.radius_*`).
    #[arg(long, value_name = "SECONDS", default_value_t = 900)]
    pickup_max_s: u64,
    /// How riders call off: lines `wait_s,share`, the share of riders who have gone after waiting so long for the pickup.
    #[arg(long, value_name = "FILE")]
    cancel_shape: Option<PathBuf>,
    /// Share of offers that drivers accept.
    #[arg(long, default_value_t = 1.0)]
    accept: f64,
    /// Mean time between an offer and its answer, seconds; spread by half of it.
    #[arg(long, default_value_t = 0.0)]
    answer_s: f64,
    /// From the arrival until the rider is in the car, seconds.
    #[arg(long, default_value_t = 0.0)]
    board_s: f64,
    /// Cars ping this often, seconds, and at every change.
    #[arg(long, default_value_t = 10.0)]
    ping_every_s: f64,
    /// Shards of the place.
    #[arg(long, default_value_t = 1)]
    shards: u16,
    /// H3 resolution of ownership cells; default as configured (`engine.ownership_resolution`).
    #[arg(long)]
    resolution: Option<u8>,
    /// Which rides one round decides for: those of the whole node, or of one shard, as if each were on a node of its own;
    /// `blind`: without looking at those of the others.
    #[arg(long, value_enum, default_value = "shard")]
    rounds: ScopeArg,
    /// How often rides on the way are looked at again, seconds (`engine.swaps.every_ms`).
    #[arg(long)]
    swap_every_s: Option<f64>,
    /// How often a ride may change its driver (`engine.swaps.swaps_max`).
    #[arg(long)]
    swaps_max: Option<u32>,
}

#[derive(Clone, Copy, ValueEnum)]
enum ScopeArg {
    Node,
    Shard,
    Blind,
}

/// Simulates; exit code 1 if the audit finds anything or a ride did not end.
pub fn run(common: &Common, args: SimulateArgs) -> Result<ExitCode, AnyError> {
    match args.command {
        Some(SimulateCommand::Compare(args)) => compare(common, &args),
        Some(SimulateCommand::Calibrate(args)) => calibrate(&args),
        None => one(common, &args.one),
    }
}

fn one(common: &Common, args: &OneArgs) -> Result<ExitCode, AnyError> {
    let trips = args.trips.as_ref().ok_or("--trips FILE is needed")?;
    let (rules, habits) = args.market.rules(common)?;
    let source = args.market.source(trips, args.gps.as_deref())?;
    let scene = Scene::read(&source, args.seed)?;
    let run = Run {
        scene: &scene,
        rules: &rules,
        habits: &habits,
        audited: !args.no_audit,
    };
    let mut camera = args.film.as_ref().map(|_| {
        let every_ms = args.film_every_s * 1_000;
        // Cars at work are always seen, so none is silent.
        Camera::new(scene.begins(), every_ms, u64::MAX, Film::BYTES_MAX)
    });
    let mut outcome = run.play(&args.policy, args.seed, "", camera.as_mut())?;
    if let (Some(file), Some(camera)) = (&args.film, camera) {
        film::write(file, &camera.finish())?;
    }
    if args.hindsight {
        let served = outcome.wait_s.count as usize;
        outcome.hindsight = Some(bound(&scene, habits.speeds.fastest_mps(), served));
    }
    if let Some(file) = &args.report {
        write("--report", file, &outcome.to_json())?;
    }
    if let Some(file) = &args.html {
        write("--html", file, &html::page(&outcome)?)?;
    }
    print!("{outcome}");
    Ok(if outcome.valid {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    })
}

fn compare(common: &Common, args: &CompareArgs) -> Result<ExitCode, AnyError> {
    if !args.gps.is_empty() && args.gps.len() != args.trips.len() {
        return Err("--gps: give as many files as --trips, in the same order".into());
    }
    let (rules, habits) = args.market.rules(common)?;
    let mut comparison = Comparison {
        schema: "cabrank.simulation_comparison/1".to_owned(),
        sides: args
            .policies
            .iter()
            .map(|policy| Side {
                policy: policy.to_string(),
                days: Vec::new(),
            })
            .collect(),
        arguments: std::env::args().skip(1).collect(),
    };
    for (day, trips) in args.trips.iter().enumerate() {
        let source = args
            .market
            .source(trips, args.gps.get(day).map(PathBuf::as_path))?;
        for seed in 1..=args.seeds {
            let scene = Scene::read(&source, seed)?;
            let run = Run {
                scene: &scene,
                rules: &rules,
                habits: &habits,
                audited: false,
            };
            for (policy, side) in args.policies.iter().zip(&mut comparison.sides) {
                let name = format!("day {} of {}, seed {seed}: ", day + 1, args.trips.len());
                side.days.push(run.play(policy, seed, &name, None)?);
            }
        }
    }
    if let Some(file) = &args.report {
        write("--report", file, &comparison.to_json())?;
    }
    if let Some(file) = &args.html {
        write("--html", file, &html::compared(&comparison)?)?;
    }
    print!("{}", comparison.table());
    let mut days = comparison.sides.iter().flat_map(|side| &side.days);
    Ok(match days.find(|day| !day.valid) {
        None => ExitCode::SUCCESS,
        Some(day) => {
            println!(
                "INVALID {} seed {}: {:?}",
                day.policy, day.seed, day.invalid_because
            );
            ExitCode::from(1)
        }
    })
}

fn calibrate(args: &CalibrateArgs) -> Result<ExitCode, AnyError> {
    let profile = Profile::measure(&args.trips, args.clock.ahead_ms())?;
    for (hour, seen) in profile.hours.iter().enumerate() {
        eprintln!("{hour:2} h: {} rides", seen.rides);
    }
    eprintln!("all: {:.2} km/h", profile.mean_mps() * 3.6);
    print!("{}", calibrate::to_csv(&profile.speeds()));
    Ok(ExitCode::SUCCESS)
}

struct Run<'a> {
    scene: &'a Scene,
    rules: &'a NodeRules,
    habits: &'a Habits,
    audited: bool,
}

impl Run<'_> {
    fn play(
        &self,
        policy: &Contender,
        seed: u64,
        name: &str,
        camera: Option<&mut Camera>,
    ) -> Result<Outcome, AnyError> {
        let (begins, ends) = (self.scene.begins(), self.scene.ends());
        let began = Instant::now();
        let mut shown = began;
        let is_terminal = std::io::stderr().is_terminal();
        let mut progress = |now: Time, asked: usize| {
            if !is_terminal || shown.elapsed() < SHOW_EVERY {
                return;
            }
            shown = Instant::now();
            let part = now.since(begins) as f64 / ends.since(begins).max(1) as f64;
            eprint!("\r{name}{policy} {}\x1b[K", bar(part, asked));
        };
        let rules = policy.rules(self.rules);
        let day = play_filmed(
            self.scene,
            rules,
            self.habits,
            seed,
            self.audited,
            &mut progress,
            camera,
        )?;
        if is_terminal {
            eprint!("\r\x1b[K");
        }
        let mut outcome = day.outcome(&policy.to_string(), seed, began.elapsed().as_secs_f64());
        if self.scene.bad_rows > 0 {
            let note = format!("{} bad rows were left out", self.scene.bad_rows);
            outcome.notes.push(note);
        }
        outcome.arguments = std::env::args().skip(1).collect();
        Ok(outcome)
    }
}

impl MarketArgs {
    fn source(&self, trips: &Path, gps: Option<&Path>) -> Result<Source, AnyError> {
        let seconds = |given: Option<i64>| given.map(|s| Time(s.saturating_mul(1_000)));
        let shape = self.cancel_shape.as_deref().map(read_shape).transpose()?;
        Ok(Source {
            trips: trips.to_owned(),
            gps: gps.map(Path::to_owned),
            window: Window {
                from: seconds(self.from),
                to: seconds(self.to),
            },
            fleet: match (self.fleet, self.fleet_every) {
                (Some(count), _) => Fleet::Choice(count),
                (None, 1) => Fleet::Whole,
                (None, n) => Fleet::Every(n),
            },
            stay: self.stay,
            wishes_every: self.trips_every,
            jitter_ms: self.jitter_s * 1_000,
            cancel_shape: shape.unwrap_or_default(),
        })
    }

    fn rules(&self, common: &Common) -> Result<(NodeRules, Habits), AnyError> {
        let within = |value: f64, range: std::ops::RangeInclusive<f64>, key: &str| {
            if range.contains(&value) {
                return Ok(());
            }
            Err(format!(
                "{key} {value}: choose {} to {}",
                range.start(),
                range.end()
            ))
        };
        within(self.speed_kmh, 2.0..=200.0, "--speed-kmh")?;
        within(self.accept, 0.0..=1.0, "--accept")?;
        within(self.answer_s, 0.0..=3_600.0, "--answer-s")?;
        within(self.board_s, 0.0..=3_600.0, "--board-s")?;
        within(self.ping_every_s, 1.0..=3_600.0, "--ping-every-s")?;
        let ms = |seconds: f64| (seconds * 1_000.0) as u64;
        let speeds = match &self.speeds {
            Some(file) => calibrate::read_csv(file, self.clock.ahead_ms())?,
            None => Speeds::constant(self.speed_kmh / 3.6),
        };
        let common = Common {
            preset: common.preset.or(Some(Preset::TaxiFeed)),
            ..common.clone()
        };
        let settings = common.settings(|settings| {
            let engine = &mut settings.engine;
            if self.patience_s > 0 {
                engine.ride_deadline_ms = self.patience_s * 1_000;
            }
            if self.pickup_max_s > 0 {
                let radius_m = (self.pickup_max_s as f64 * speeds.slowest_mps()) as u32;
                engine.radius_first_m = radius_m;
                engine.radius_max_m = radius_m;
            }
            if let Some(resolution) = self.resolution {
                engine.ownership_resolution = resolution;
            }
            if let Some(every) = self.swap_every_s {
                engine.swaps.every_ms = ms(every);
            }
            if let Some(most) = self.swaps_max {
                engine.swaps.swaps_max = most;
            }
        })?;
        let node = &settings.node;
        let ping_ttl_ms = node.ping_ttl_ms.max(3 * ms(self.ping_every_s) as i64);
        let rules = NodeRules {
            rounds: RoundRules {
                policy: node.policy,
                swaps: settings.engine.swaps,
                candidates_max: node.candidates_max,
                steps_max: node.round_steps_max,
                ping_ttl_ms,
            },
            round_every_ms: node.round_every_ms,
            rides_per_round_max: node.rides_per_round_max,
            hops_max: node.hops_max,
            shards: self.shards,
            scope: match self.rounds {
                ScopeArg::Node => Scope::Node,
                ScopeArg::Shard => Scope::Shard,
                ScopeArg::Blind => Scope::Blind,
            },
            engine: settings.engine,
        };
        let habits = Habits {
            accept: self.accept,
            answer_ms: ms(self.answer_s),
            board_ms: ms(self.board_s),
            ping_every_ms: ms(self.ping_every_s),
            speeds,
        };
        Ok((rules, habits))
    }
}

/// How far a run is: `[=====>              ]  25 %, 1402 rides asked for`.
fn bar(part: f64, asked: usize) -> String {
    let part = part.clamp(0.0, 1.0);
    let done = (part * BAR_WIDTH as f64) as usize;
    let head = if done < BAR_WIDTH { ">" } else { "" };
    let percent = (part * 100.0) as u32;
    let line = format!("{}{head}", "=".repeat(done));
    format!("[{line:BAR_WIDTH$}] {percent:3} %, {asked} rides asked for")
}

fn write(flag: &str, file: &Path, text: &str) -> Result<(), AnyError> {
    Ok(std::fs::write(file, text).map_err(|why| format!("{flag} {}: {why}", file.display()))?)
}

#[cfg(test)]
mod tests {
    use super::bar;

    #[test]
    fn the_progress_bar_fills_from_left_to_right() {
        assert_eq!(
            bar(0.0, 0),
            "[>                   ]   0 %, 0 rides asked for"
        );
        assert_eq!(
            bar(0.25, 1_402),
            "[=====>              ]  25 %, 1402 rides asked for"
        );
        // The last rides end after the last wish.
        assert_eq!(
            bar(1.2, 5_640),
            "[====================] 100 %, 5640 rides asked for"
        );
    }
}
