//! `cabrank cluster`: who owns what, and how it goes.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use cabrank_eventlog::EventLog;
use cabrank_eventlog::kafka::KafkaLog;
use cabrank_loadgen::client::Role;
use cabrank_matcher::rpc::v1::StatusRequest;
use cabrank_matcher::rpc::{self, in_words};
use cabrank_matcher::tls::ClusterTls;
use clap::{Args, Subcommand};
use reqwest::Method;
use serde::Serialize;
use serde_json::json;

use super::block_on;
use super::dispatch::ask as ask_desk;
use super::token::minter;
use crate::{AnyError, Brokers, Common, store};

/// Longest wait for one node.
const ANSWER: Duration = Duration::from_secs(2);

/// Flags of `cluster`.
#[derive(Args)]
pub struct ClusterArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Shards, owners, epochs, lag, last takeover. Exit code 1 when a shard is not served. Where nodes ask for certificates it
    /// shows that of `cluster.tls`.
    Status {
        #[command(flatten)]
        brokers: Brokers,
        /// Print it as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Ask a node to hand its shards over and end, as after SIGTERM. It is kept in the log, with who and why.
    ///
    /// Done means that the wish is in the log; the node is gone when `cluster status` does not name it any more. Exit code 1
    /// when it was refused: no such node, or nobody else would take its shards.
    Drain {
        /// Its name, as `cluster status` shows it.
        node: String,
        /// Why; kept in the log.
        #[arg(long)]
        reason: String,
        /// Address of any gateway of the city.
        #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8080")]
        url: String,
    },
}

/// A shard as announced in the log and as its node describes it.
#[derive(Serialize)]
struct ShardLine {
    shard: u16,
    node: Option<String>,
    address: Option<String>,
    epoch: Option<u64>,
    /// The node holds its lease: it answers for the shard.
    serving: bool,
    /// Commands not yet consumed (positions of transaction markers included).
    lag: Option<u64>,
    open_rides: Option<u64>,
    waiting_rides: Option<u64>,
    /// When its node took it over, Unix ms, and how long that took.
    taken_at_ms: Option<i64>,
    takeover_ms: Option<i64>,
}

#[derive(Serialize)]
struct NodeLine {
    node: String,
    address: String,
    ready: bool,
    drivers_known: Option<u64>,
    /// Which release it is of and what it speaks; absent from releases before versions were told.
    version: Option<String>,
    wire_version: Option<u32>,
    state_version: Option<u32>,
    /// Why it could not be asked.
    error: Option<String>,
}

#[derive(Serialize)]
struct Status {
    shards: Vec<ShardLine>,
    nodes: Vec<NodeLine>,
}

/// Asks the log, then each node.
pub fn run(common: &Common, args: ClusterArgs) -> Result<ExitCode, AnyError> {
    let (brokers, json) = match args.what {
        What::Status { brokers, json } => (brokers, json),
        What::Drain { node, reason, url } => {
            let token = minter(&common.settings(|_| {})?)(Role::Ops, "cluster");
            let path = format!("/v1/nodes/{node}/drain");
            let body = json!({ "reason": reason });
            let call = (Method::POST, path.as_str());
            return block_on(ask_desk("cluster", &url, call, &token, Some(body)));
        }
    };
    let settings = common.settings(|settings| brokers.apply(settings))?;
    let tls = ClusterTls::read(&settings.cluster.tls)?;
    let log = store::kafka(settings.kafka)?;
    let status = block_on(look(&log, tls.as_ref()))?;
    if json {
        println!("{}", serde_json::to_string_pretty(&status)?);
    } else {
        print(&status);
    }
    let all_served = status.shards.iter().all(|shard| shard.serving);
    Ok(if all_served {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    })
}

async fn look(log: &KafkaLog, tls: Option<&Arc<ClusterTls>>) -> Result<Status, AnyError> {
    let owners = log.owners()?;
    let mut shards: Vec<ShardLine> = (0..log.shards())
        .map(|shard| {
            let owner = owners.iter().find(|owner| owner.shard == shard);
            ShardLine {
                shard,
                node: owner.map(|owner| owner.node.clone()),
                address: owner.map(|owner| owner.address.clone()),
                epoch: owner.map(|owner| owner.epoch),
                serving: false,
                lag: None,
                open_rides: None,
                waiting_rides: None,
                taken_at_ms: None,
                takeover_ms: None,
            }
        })
        .collect();
    // Nodes that own nothing are known to the group only.
    let members = log.members()?.into_iter();
    let names: BTreeMap<String, String> = owners
        .iter()
        .map(|owner| (owner.address.clone(), owner.node.clone()))
        .chain(members.map(|(node, address)| (address, node)))
        .collect();
    let mut nodes = Vec::new();
    for (address, node) in names {
        let mut line = NodeLine {
            node,
            address: address.clone(),
            ready: false,
            drivers_known: None,
            version: None,
            wire_version: None,
            state_version: None,
            error: None,
        };
        match ask(&address, tls).await {
            Ok(answer) => {
                line.ready = answer.ready;
                line.drivers_known = Some(answer.drivers_known);
                if !answer.version.is_empty() {
                    line.version = Some(answer.version);
                    line.wire_version = Some(answer.wire_version);
                    line.state_version = Some(answer.state_version);
                }
                for said in answer.shards {
                    // An older owner that does not know of its successor yet is not believed.
                    let of_now = shards.iter_mut().find(|line| {
                        u32::from(line.shard) == said.shard && line.epoch == Some(said.epoch)
                    });
                    if let Some(shard) = of_now {
                        shard.serving = said.lease;
                        shard.lag = Some(said.input_end.saturating_sub(said.next_input));
                        shard.open_rides = Some(said.open_rides);
                        shard.waiting_rides = Some(said.waiting_rides);
                        shard.taken_at_ms = Some(said.taken_at_ms);
                        shard.takeover_ms = Some(said.takeover_ms);
                    }
                }
            }
            Err(why) => line.error = Some(in_words(&*why)),
        }
        nodes.push(line);
    }
    Ok(Status { shards, nodes })
}

async fn ask(
    address: &str,
    tls: Option<&Arc<ClusterTls>>,
) -> Result<rpc::v1::StatusAnswer, AnyError> {
    let asking = async {
        let mut client = rpc::connect(address, tls).await?;
        Ok::<_, AnyError>(client.status(StatusRequest {}).await?.into_inner())
    };
    tokio::time::timeout(ANSWER, asking)
        .await
        .map_err(|_| format!("no answer within {ANSWER:?}"))?
}

fn print(status: &Status) {
    let number = |value: Option<u64>| value.map_or("-".to_owned(), |value| value.to_string());
    println!(
        "{:>5}  {:<20} {:>6}  {:<8} {:>6} {:>6} {:>8} {:>12}",
        "shard", "owner", "epoch", "serving", "lag", "rides", "waiting", "takeover ms"
    );
    for shard in &status.shards {
        println!(
            "{:>5}  {:<20} {:>6}  {:<8} {:>6} {:>6} {:>8} {:>12}",
            shard.shard,
            shard.node.as_deref().unwrap_or("nobody yet"),
            number(shard.epoch),
            if shard.serving { "yes" } else { "no" },
            number(shard.lag),
            number(shard.open_rides),
            number(shard.waiting_rides),
            shard
                .takeover_ms
                .map_or("-".to_owned(), |ms| ms.to_string()),
        );
    }
    let owns = |node: &str| {
        let mut owners = status
            .shards
            .iter()
            .filter_map(|shard| shard.node.as_deref());
        owners.any(|owner| owner == node)
    };
    for node in &status.nodes {
        match &node.error {
            Some(why) => println!("{} at {}: not reached ({why})", node.node, node.address),
            None => println!(
                "{} at {}: {}{}, {} drivers known, {}",
                node.node,
                node.address,
                if node.ready { "ready" } else { "not ready" },
                if owns(&node.node) {
                    ""
                } else {
                    ", owns no shard"
                },
                number(node.drivers_known),
                match (&node.version, node.wire_version, node.state_version) {
                    (Some(version), Some(wire), Some(state)) =>
                        format!("cabrank {version} (wire {wire}, state {state})"),
                    _ => "of a release that does not tell its version".to_owned(),
                }
            ),
        }
    }
}
