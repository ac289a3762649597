//! `cabrank probe`: how soon could anybody answer over this Kafka? The floor that Cabrank's own latency is measured against.

use std::process::ExitCode;

use cabrank_eventlog::kafka::testing::Broker;
use cabrank_eventlog::kafka::{KafkaConfig, SecurityProtocol, topics};
use cabrank_loadgen::kafka_probe::{ProbePlan, ProbeReport, probe, remove};
use clap::Args;

use super::block_on;
use crate::{AnyError, Brokers, Common};

/// Flags of `probe`.
#[derive(Args)]
pub struct ProbeArgs {
    // Without --brokers a broker is started here (needs a JDK 17; Maven the first time).
    #[command(flatten)]
    brokers: Brokers,
    /// Rides asked for a second.
    #[arg(long, value_name = "RATE", default_value_t = 200.0)]
    rate: f64,
    /// Only requests: no reports of drivers beside them.
    #[arg(long)]
    only_requests: bool,
    /// Nodes that share the shards; with two or more, messages hop through the log.
    #[arg(long, default_value_t = 1)]
    nodes: u16,
    /// Measured time.
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// Time before it, under the same load. A broker that was just started needs 20.
    #[arg(long, value_name = "SECONDS", default_value_t = 5.0)]
    warmup: f64,
    /// Repeats moments and shards.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Print it as JSON.
    #[arg(long)]
    json: bool,
}

/// Probes and prints; exit code 1 if the broker could not take the rate.
pub fn run(common: &Common, args: ProbeArgs) -> Result<ExitCode, AnyError> {
    let (_broker, kafka) = broker_for(common, &args.brokers)?;
    let plan = ProbePlan {
        nodes: args.nodes,
        rides_per_second: args.rate,
        whole_rides: !args.only_requests,
        warmup_s: args.warmup,
        seconds: args.seconds,
        seed: args.seed,
        ..plan_of(&kafka)
    };
    let report = on_topics_of_its_own(&kafka, &plan)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{}", words(&report));
    }
    Ok(if report.lost == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    })
}

/// The brokers named, or one of our own that ends with what is returned; and the settings for it: 4 shards and one copy
/// unless said otherwise.
pub fn broker_for(
    common: &Common,
    brokers: &Brokers,
) -> Result<(Option<Broker>, KafkaConfig), AnyError> {
    let own = match brokers.brokers {
        Some(_) => None,
        None => Some(Broker::start(1).ok_or(
            "no broker: install a JDK 17 and Maven, or name one with --brokers HOST:PORT",
        )?),
    };
    let settings = common.settings(|settings| {
        let kafka = &mut settings.kafka;
        if let Some(broker) = &own {
            broker.bootstrap().clone_into(&mut kafka.brokers);
            (kafka.shards, kafka.replication) = (4, 1);
        }
        brokers.apply(settings);
    })?;
    Ok((own, settings.kafka))
}

/// A plan for these brokers and shards, with a prefix nobody has.
pub fn plan_of(kafka: &KafkaConfig) -> ProbePlan {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_millis());
    ProbePlan {
        brokers: kafka.brokers.clone(),
        prefix: format!("{}probe-{}-{now:x}-", kafka.prefix, std::process::id()),
        shards: kafka.shards,
        nodes: 1,
        rides_per_second: 200.0,
        whole_rides: true,
        warmup_s: 3.0,
        seconds: 10.0,
        seed: 1,
    }
}

/// Makes a city's topics under the plan's prefix, probes, and removes them.
pub fn on_topics_of_its_own(
    kafka: &KafkaConfig,
    plan: &ProbePlan,
) -> Result<ProbeReport, AnyError> {
    if kafka.security.protocol != SecurityProtocol::Plaintext {
        return Err("the probe speaks plaintext only".into());
    }
    plan.check()?;
    let kafka = KafkaConfig {
        prefix: plan.prefix.clone(),
        ..kafka.clone()
    };
    topics::create(&kafka)?;
    let report = probe(plan);
    let names: Vec<String> = topics::plan(&kafka)
        .into_iter()
        .map(|topic| topic.name)
        .collect();
    block_on(async { Ok(remove(plan, &names).await?) })?;
    Ok(report?)
}

/// The floor beside a load: five seconds at the same rate of rides, one node.
pub fn beside(kafka: &KafkaConfig, brokers: &str, rate: f64) -> Result<ProbeReport, AnyError> {
    let kafka = KafkaConfig {
        brokers: brokers.to_owned(),
        ..kafka.clone()
    };
    let plan = ProbePlan {
        rides_per_second: rate,
        seconds: 5.0,
        ..plan_of(&kafka)
    };
    on_topics_of_its_own(&kafka, &plan)
}

/// How a median of request to offer compares to the probes'.
pub fn note(probes: &[ProbeReport], p50_ms: f64) -> String {
    let p50s = probes.iter().map(|probe| probe.request_to_offer_ms.p50);
    let mean = p50s.sum::<f64>() / (probes.len() as f64).max(1.0);
    let lost: u64 = probes.iter().map(|probe| probe.lost).sum();
    format!(
        "request to offer took {:.2} times the probe's {mean:.1} ms (p50; {} probes, {lost} commands lost)",
        p50_ms / mean.max(0.001),
        probes.len(),
    )
}

/// For a person to read.
pub fn words(report: &ProbeReport) -> String {
    let (offer, transaction) = (&report.request_to_offer_ms, &report.transaction_ms);
    let mut text = format!(
        "probe: {} node(s), {} shards, {:.0} requests/s among {:.0} commands/s\n\
         request -> offer  p50 {:.1} ms, p99 {:.1}, max {:.1}\n\
         transactions      {:.0}/s of {:.1} commands, p50 {:.1} ms, p99 {:.1}\n",
        report.nodes,
        report.shards,
        report.requests_per_second,
        report.commands_per_second,
        offer.p50,
        offer.p99,
        offer.max,
        report.transactions_per_second,
        report.commands_per_transaction,
        transaction.p50,
        transaction.p99,
    );
    if report.lost > 0 {
        text += &format!("NOT VALID: {} commands were not answered\n", report.lost);
    }
    text
}
