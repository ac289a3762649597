//! One generator process: gets a plan, opens its sockets, starts when told, and hands back what it counted.
//!
//! It speaks lines of JSON over its standard streams. In: the plan, then `{"start":ns}`, perhaps `{"stop":true}`; the
//! end of the stream is a stop, so that nobody is left behind when the conductor dies. Out: [`Said`].

use std::io::{BufRead, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::plan::Plan;
use super::tally::Tally;
use super::worker::{Control, Live, Worker};
use crate::client::Mint;

/// Between two lines about how far it is.
const TELL_EVERY: Duration = Duration::from_millis(250);

/// What a generator process says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Said {
    /// All sockets are open.
    Ready,
    /// How far it is.
    Far(Far),
    /// What it counted; the last line.
    Tally(Box<Tally>),
    /// It could not do its work; the last line.
    Failed(String),
}

/// How far a process is: totals since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Far {
    /// Drivers that came online.
    pub online: u64,
    /// Pings sent.
    pub pings: u64,
    /// Searches answered, measured time only.
    pub nearby: u64,
    /// Rides promised, measured time only.
    pub rides: u64,
}

impl Far {
    /// Adds another process's.
    pub fn add(&mut self, other: Far) {
        self.online += other.online;
        self.pings += other.pings;
        self.nearby += other.nearby;
        self.rides += other.rides;
    }
}

/// What a generator process is told after its plan.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Told {
    /// Begin at this moment, ns of the shared clock.
    Start(u64),
    /// End at once.
    Stop(bool),
}

/// Works until done. `minter` makes tokens from the plan's secret.
pub fn run_part(
    mut input: impl BufRead + Send + 'static,
    mut output: impl Write,
    minter: impl Fn(&str) -> Mint,
) -> std::io::Result<()> {
    let mut line = String::new();
    input.read_line(&mut line)?;
    let plan: Plan = serde_json::from_str(&line)?;
    let control = Arc::new(Control {
        live: (0..plan.threads).map(|_| Live::default()).collect(),
        ..Control::default()
    });
    let mint = minter(&plan.secret);
    let plan = Arc::new(plan);
    let listening = Arc::clone(&control);
    // Never joined: it ends with the process, or with the stream.
    std::thread::spawn(move || listen(input, &listening));
    let workers: Vec<_> = (0..plan.threads)
        .map(|thread| {
            let (plan, mint, control) =
                (Arc::clone(&plan), Arc::clone(&mint), Arc::clone(&control));
            let work = move || Worker::new(plan, mint, control, thread)?.run();
            std::thread::Builder::new()
                .name(format!("load-{thread}"))
                .spawn(work)
        })
        .collect::<Result<_, _>>()?;
    let mut is_ready = false;
    while !workers.iter().all(|worker| worker.is_finished()) {
        std::thread::park_timeout(TELL_EVERY);
        if !is_ready && control.ready.load(Ordering::Relaxed) == plan.threads {
            is_ready = true;
            say(&mut output, &Said::Ready)?;
        }
        say(&mut output, &Said::Far(far(&control)))?;
        if workers.iter().any(|worker| worker.is_finished()) && !is_ready {
            // One that failed to open ends them all.
            control.stop.store(true, Ordering::Relaxed);
        }
    }
    let mut whole = Tally::default();
    for worker in workers {
        match worker.join() {
            Ok(Ok(tally)) => whole.merge(tally),
            Ok(Err(why)) => return say(&mut output, &Said::Failed(why.to_string())),
            Err(_) => {
                return say(
                    &mut output,
                    &Said::Failed("a thread of the generator panicked".into()),
                );
            }
        }
    }
    say(&mut output, &Said::Tally(Box::new(whole)))
}

fn listen(mut input: impl BufRead, control: &Control) {
    let mut line = String::new();
    loop {
        line.clear();
        let told = match input.read_line(&mut line) {
            Ok(n) if n > 0 => serde_json::from_str(&line),
            _ => Ok(Told::Stop(true)),
        };
        match told {
            Ok(Told::Start(at)) => control.start.store(at, Ordering::Relaxed),
            Ok(Told::Stop(_)) => return control.stop.store(true, Ordering::Relaxed),
            Err(why) => tracing::warn!(%why, "an order that is none"),
        }
    }
}

fn far(control: &Control) -> Far {
    let mut far = Far::default();
    for live in &control.live {
        far.add(Far {
            online: live.online.load(Ordering::Relaxed),
            pings: live.pings.load(Ordering::Relaxed),
            nearby: live.nearby.load(Ordering::Relaxed),
            rides: live.rides.load(Ordering::Relaxed),
        });
    }
    far
}

fn say(output: &mut impl Write, said: &Said) -> std::io::Result<()> {
    serde_json::to_writer(&mut *output, said)?;
    output.write_all(b"\n")?;
    output.flush()
}
