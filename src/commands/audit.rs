//! `cabrank audit`: are the promises kept?

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use cabrank_eventlog::{EventLog, Topic};
use cabrank_loadgen::audit::{Audit, AuditOptions, AuditReport, read_over_http};
use cabrank_loadgen::client::Role;
use clap::Args;

use super::{block_on, service, service_beside, token::minter};
use crate::{AnyError, Common, Source, store};

/// Reading a running server's log gives up after this.
const READ_WITHIN: Duration = Duration::from_secs(600);

/// Flags of `audit`.
#[derive(Args)]
pub struct AuditArgs {
    #[command(flatten)]
    source: Source,
    /// Nothing may be under way any more: an open ride is a violation, too.
    #[arg(long)]
    complete: bool,
    /// Also audit orders and money against the rides: the order service's, the payment service's and the provider's files
    /// in this directory (`order.db`, `payment.db`, `ledger.jsonl`, as `demo --data-dir D` leaves them in D/services).
    #[arg(long, value_name = "DIR", conflicts_with = "url")]
    services: Option<PathBuf>,
    /// The services' settings, if not the defaults: prices matter.
    #[arg(long, value_name = "FILE", requires = "services")]
    settings: Option<PathBuf>,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

/// Audits and prints; exit code 1 on any violation.
pub fn run(common: &Common, args: AuditArgs) -> Result<ExitCode, AnyError> {
    let source = &args.source;
    let report = match (&source.data_dir, &source.url, &source.brokers) {
        (Some(dir), ..) => of_store(dir, args.complete, &[])?,
        (_, Some(url), _) => of_server(common, url, args.complete, &[])?,
        (.., Some(brokers)) => {
            let log = store::over_kafka(common, brokers)?;
            of_log(&log, !args.complete, args.complete, &[])?
        }
        (None, None, None) => return Err("give --data-dir, --url or --brokers".into()),
    };
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{report}");
    }
    let money_fits = match &args.services {
        None => true,
        Some(dir) => of_services(common, &args, dir)?,
    };
    Ok(if report.is_clean() && money_fits {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    })
}

fn of_services(common: &Common, args: &AuditArgs, dir: &Path) -> Result<bool, AnyError> {
    let log: Box<dyn EventLog> = match (&args.source.data_dir, &args.source.brokers) {
        (Some(dir), _) => Box::new(store::open(dir)?),
        (None, Some(brokers)) => Box::new(store::over_kafka(common, brokers)?),
        (None, None) => return Err("--services needs --data-dir or --brokers".into()),
    };
    let business = service::business(args.settings.as_deref())?;
    let files = service_beside::Files::in_dir(dir);
    let tariff = &business.policy.tariff;
    let report = block_on(service_beside::audit(&*log, &files, tariff, args.complete))?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("services: {report}");
    }
    Ok(report.is_clean())
}

/// Audits the store in `dir` with what clients were promised.
pub fn of_store(
    dir: &Path,
    complete: bool,
    acknowledged: &[String],
) -> Result<AuditReport, AnyError> {
    of_log(&store::open(dir)?, false, complete, acknowledged)
}

/// Audits a log with what clients were promised. `live`: others write to it meanwhile.
pub fn of_log(
    log: &dyn EventLog,
    live: bool,
    complete: bool,
    acknowledged: &[String],
) -> Result<AuditReport, AnyError> {
    let mut audit = Audit::new(AuditOptions {
        complete,
        live,
        pending_known: !live,
    });
    // Where retention has dropped events, the fold begins at the snapshot the log kept of that moment.
    let mut kept_from: Vec<Vec<(Topic, u64)>> = Vec::new();
    for shard in 0..log.shards() {
        let base = log.base(shard)?;
        for (key, value) in &base.states {
            audit.base(shard, &String::from_utf8_lossy(key), value);
        }
        kept_from.push(base.event_ends);
    }
    for topic in [Topic::RideEvents, Topic::PersonEvents] {
        let from = |shard: u16| {
            let ends = &kept_from[usize::from(shard)];
            ends.iter()
                .find(|(of, _)| *of == topic)
                .map(|(_, end)| *end)
        };
        store::read_all(log, topic, from, |shard, offset, value| {
            audit.event(topic.name(), shard, offset, value);
        })?;
    }
    let mut consumed = Vec::new();
    for shard in 0..log.shards() {
        let snapshot = log.snapshot(shard)?;
        consumed.push(snapshot.header.map_or(0, |header| header.next_input));
        for (key, value) in &snapshot.states {
            audit.state(shard, &String::from_utf8_lossy(key), value);
        }
    }
    let from = |shard: u16| consumed.get(usize::from(shard)).copied();
    store::read_all(log, Topic::RideCommands, from, |_, _, value| {
        audit.pending(value)
    })?;
    acknowledged
        .iter()
        .for_each(|ride| audit.acknowledged(ride));
    Ok(audit.finish())
}

/// Audits a running server's log with what clients were promised.
pub fn of_server(
    common: &Common,
    url: &str,
    complete: bool,
    acknowledged: &[String],
) -> Result<AuditReport, AnyError> {
    let token = minter(&common.settings(|_| {})?)(Role::Ops, "audit");
    let mut audit = Audit::new(AuditOptions {
        complete,
        live: true,
        pending_known: false,
    });
    block_on(async { Ok(read_over_http(&mut audit, url, &token, READ_WITHIN).await?) })?;
    acknowledged
        .iter()
        .for_each(|ride| audit.acknowledged(ride));
    Ok(audit.finish())
}
