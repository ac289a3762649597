//! `cabrank events`: the log for a person to read.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use cabrank_eventlog::{EventLog, Topic};
use cabrank_events::EventRecord;
use cabrank_loadgen::client::Role;
use cabrank_loadgen::sse::EventStream;
use cabrank_loadgen::tail::{TailFilter, line};
use clap::Args;
use tokio::time::timeout;

use super::{block_on, shutdown_signal, token::minter};
use crate::{AnyError, Common, Source, store};

/// Without `--follow`, a server that sends nothing for this long has sent everything.
const QUIET: Duration = Duration::from_millis(1_500);

/// Flags of `events`.
#[derive(Args)]
pub struct EventsArgs {
    #[command(flatten)]
    source: Source,
    /// Go on with new events (needs --url).
    #[arg(long, requires = "url")]
    follow: bool,
    /// Only events that name this ride.
    #[arg(long)]
    ride: Option<String>,
    /// Only events that name this driver.
    #[arg(long)]
    driver: Option<String>,
}

/// Prints one line an event.
pub fn run(common: &Common, args: EventsArgs) -> Result<ExitCode, AnyError> {
    let filter = TailFilter {
        ride: args.ride.clone(),
        driver: args.driver.clone(),
    };
    let source = &args.source;
    let log: Option<Box<dyn EventLog>> = match (&source.data_dir, &source.brokers) {
        (Some(dir), _) => Some(Box::new(store::open(dir)?)),
        (None, Some(brokers)) => Some(Box::new(store::over_kafka(common, brokers)?)),
        (None, None) => None,
    };
    match (log, &source.url) {
        (Some(log), _) => {
            let mut found = Vec::new();
            for topic in [Topic::RideEvents, Topic::PersonEvents] {
                store::read_all(
                    &*log,
                    topic,
                    |_| None,
                    |_, _, json| {
                        if let Some(line) = line(json, &filter) {
                            let order = EventRecord::from_json(json)
                                .map_or((i64::MAX, 0, 0), |event| {
                                    (event.time.0, event.shard.0, event.seq)
                                });
                            found.push((order, line));
                        }
                    },
                )?;
            }
            found.sort();
            let mut out = std::io::stdout().lock();
            for (_, line) in found {
                if writeln!(out, "{line}").is_err() {
                    break; // whoever read along has closed the pipe
                }
            }
        }
        (None, Some(url)) => {
            let token = minter(&common.settings(|_| {})?)(Role::Ops, "events");
            block_on(tail(
                url.trim_end_matches('/'),
                &token,
                &filter,
                args.follow,
            ))?;
        }
        (None, None) => return Err("give --data-dir, --url or --brokers".into()),
    }
    Ok(ExitCode::SUCCESS)
}

async fn tail(url: &str, token: &str, filter: &TailFilter, follow: bool) -> Result<(), AnyError> {
    let shutdown = shutdown_signal()?;
    let http = reqwest::Client::new();
    let mut stream = EventStream::open(&http, url, token, Some("start")).await?;
    loop {
        let next = async {
            if follow {
                Ok(stream.next().await)
            } else {
                timeout(QUIET, stream.next()).await
            }
        };
        let sent = tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            sent = next => sent,
        };
        let Ok(sent) = sent else { return Ok(()) };
        if let Some(line) = line(sent?.data.as_bytes(), filter)
            && writeln!(std::io::stdout(), "{line}").is_err()
        {
            return Ok(());
        }
    }
}
