//! `cabrank topics`: make and check what a city needs at its brokers.

use std::process::ExitCode;

use cabrank_eventlog::EventLog;
use cabrank_eventlog::kafka::topics::{Problem, check, create, plan};
use cabrank_services::kafka::create_topics as create_service_topics;
use clap::{Args, Subcommand};

use super::block_on;
use crate::{AnyError, Brokers, Common, store};

/// Flags of `topics`.
#[derive(Args)]
pub struct TopicsArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Make the topics that are missing, then check all of them.
    Create(Brokers),
    /// Check partitions, compaction, retention, copies, and what the brokers allow. Exit code 1 when something is wrong.
    Check(Brokers),
}

/// Makes or checks, prints what there is and what is wrong.
pub fn run(common: &Common, args: TopicsArgs) -> Result<ExitCode, AnyError> {
    let (brokers, make) = match &args.what {
        What::Create(brokers) => (brokers, true),
        What::Check(brokers) => (brokers, false),
    };
    let config = common.settings(|settings| brokers.apply(settings))?.kafka;
    if make {
        for name in create(&config)? {
            println!("made {name}");
        }
        // What the services say, where they run beside the city.
        for name in block_on(async { Ok(create_service_topics(&config).await?) })? {
            println!("made {name}");
        }
    }
    let mut report = check(&config)?;
    for topic in plan(&config) {
        let settings: Vec<String> = topic
            .settings
            .iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        println!(
            "{}: {} partitions, {}",
            topic.name,
            topic.partitions,
            settings.join(", ")
        );
    }
    for note in &report.notes {
        println!("note: {note}");
    }
    let wanted = config.shards;
    let is_more = |problem: &Problem| matches!(problem, Problem::Partitions { found, .. } if *found > usize::from(wanted));
    if !report.problems.is_empty() && report.problems.iter().all(is_more) {
        // That is right where the city's log says so.
        if let Ok(log) = store::kafka(config) {
            let shards = log.shards();
            println!(
                "note: the city has grown to {shards} shards: set kafka.shards to that number"
            );
            report.problems.clear();
        }
    }
    for problem in &report.problems {
        eprintln!("wrong: {problem}");
    }
    if report.problems.is_empty() {
        println!("the topics are as they must be");
        Ok(ExitCode::SUCCESS)
    } else {
        Ok(ExitCode::from(1))
    }
}
