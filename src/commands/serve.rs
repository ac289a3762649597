//! `cabrank serve`: the server without the synthetic city.

use std::process::ExitCode;

use cabrank_events::Time;
use cabrank_matcher::clock::DomainClock;
use clap::{Args, ValueEnum};

use super::{block_on, host_name, shutdown_signal};
use crate::server::Server;
use crate::{AnyError, Common, Place};

/// Flags of `serve`.
#[derive(Args)]
pub struct ServeArgs {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    clock: ClockArgs,
}

/// Which clock time-outs, ping ages and waits run on. Sockets and latencies always run on the wall clock.
#[derive(Args, Clone)]
pub struct ClockArgs {
    /// `wall`, or `trace`: a clock that starts in the past and may run faster.
    #[arg(long, value_enum, default_value = "wall")]
    clock: ClockKind,
    /// Where a trace's clock starts, Unix seconds. After a restart it goes on where the log ended.
    #[arg(long, value_name = "SECONDS", required_if_eq("clock", "trace"))]
    clock_start: Option<i64>,
    /// How much faster than the wall clock a trace's clock runs (0.1 to 1000).
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0)]
    clock_speed: f64,
}

#[derive(Clone, Copy, ValueEnum, PartialEq, Eq)]
enum ClockKind {
    Wall,
    Trace,
}

impl ClockArgs {
    fn build(&self) -> Result<DomainClock, AnyError> {
        if !(0.1..=1_000.0).contains(&self.clock_speed) {
            return Err(format!("--clock-speed {}: choose 0.1 to 1000", self.clock_speed).into());
        }
        Ok(match (self.clock, self.clock_start) {
            (ClockKind::Trace, Some(start)) => {
                DomainClock::trace(Time(start.saturating_mul(1_000)), self.clock_speed)
            }
            (ClockKind::Trace, None) => return Err("--clock trace needs --clock-start".into()),
            (ClockKind::Wall, _) => DomainClock::wall(),
        })
    }
}

/// Serves until told to stop.
pub fn run(common: &Common, args: ServeArgs) -> Result<ExitCode, AnyError> {
    let settings = common.settings(|settings| args.place.apply(settings))?;
    let clock = args.clock.build()?;
    let _sending = cabrank_spans::start(&settings.spans, "serve", &host_name())?;
    block_on(async move {
        let shutdown = shutdown_signal()?;
        let server = Server::start(&settings, clock).await?;
        println!("http://{}", server.address());
        let failed = server.failed();
        tokio::select! {
            () = shutdown.cancelled() => eprintln!("draining"),
            () = failed.cancelled() => {}
        }
        server.stop().await?;
        Ok(ExitCode::SUCCESS)
    })
}
