//! The city that is broken: its processes, and what is done to them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cabrank_eventlog::kafka::KafkaLog;
use cabrank_eventlog::kafka::testing::Broker;
use cabrank_loadgen::client::counters::PingCounts;
use rand::Rng;
use rand::rngs::SmallRng;

use super::fault::Fault;
use super::owners::{Owners, Watch};
use super::probes::Probes;
use super::proxy::Proxy;
use super::transactions::{Look, Moment};
use crate::AnyError;
use crate::cluster::{Balancer, Launch, Process};

/// A city must answer for every shard this soon after a fault is over, or the run stops as failed.
const HEAL_WITHIN: Duration = Duration::from_secs(90);
/// How long a process is stopped, a node cut off, or a broker away.
const AWAY: Duration = Duration::from_secs(10);
/// A node that was hit has nothing under way with the brokers after this.
const QUIET: Duration = Duration::from_millis(150);
/// A hit comes up to this much later than the dice say, so that it falls anywhere between two commits.
const COMMIT_MS: u64 = 50;
/// Longest wait for a gateway's counters.
const ANSWER: Duration = Duration::from_secs(2);
/// Between two looks whether the city has healed.
const LOOK: Duration = Duration::from_millis(20);

struct Node {
    process: Process,
    /// Sees the brokers through the proxy.
    is_behind_proxy: bool,
    _watch: Watch,
}

/// What a fault did, beside the gaps.
pub struct Suffered {
    /// Who it was done to.
    pub to: String,
    /// How long there were not enough brokers to work with.
    pub away: Duration,
    /// In which moment of a transaction a node was hit.
    pub moment: Option<Moment>,
}

/// The running city.
pub struct City {
    launch: Launch,
    /// The one address of all gateways.
    pub front: Balancer,
    nodes: Vec<Node>,
    gateways: Vec<Process>,
    started: u32,
    brokers: Option<Arc<Broker>>,
    brokers_count: usize,
    proxy: Option<Proxy>,
    owners: Owners,
    log: Arc<KafkaLog>,
    look: Arc<Look>,
}

impl City {
    /// Starts nothing yet. `brokers`: those that were started here, and how many.
    pub async fn new(
        launch: Launch,
        brokers: Option<(Arc<Broker>, usize)>,
        owners: Owners,
    ) -> Result<City, AnyError> {
        let config = launch.kafka.clone();
        let open =
            move || Ok::<_, AnyError>((KafkaLog::open(config.clone())?, Look::new(&config)?));
        let (log, look) = tokio::task::spawn_blocking(open).await??;
        let proxy = match &brokers {
            Some((brokers, _)) => Some(Proxy::start(brokers.bootstrap()).await?),
            None => None,
        };
        let (brokers, brokers_count) = brokers.unzip();
        Ok(City {
            launch,
            front: Balancer::start(([127, 0, 0, 1], 0).into()).await?,
            nodes: Vec::new(),
            gateways: Vec::new(),
            started: 0,
            brokers,
            brokers_count: brokers_count.unwrap_or(0),
            proxy,
            owners,
            log: Arc::new(log),
            look: Arc::new(look),
        })
    }

    fn new_name(&mut self, what: &str) -> String {
        self.started += 1;
        format!("{what}-{}", self.started)
    }

    /// One of the nodes is always behind the proxy, if there is one.
    pub fn add_node(&mut self) -> Result<(), AnyError> {
        let name = self.new_name("node");
        let proxy = self.proxy.as_ref();
        let proxy = proxy.filter(|_| !self.nodes.iter().any(|node| node.is_behind_proxy));
        let process = match proxy {
            Some(proxy) => self.launch.matcher_by(&name, proxy.brokers())?,
            None => self.launch.matcher(&name)?,
        };
        self.nodes.push(Node {
            is_behind_proxy: proxy.is_some(),
            _watch: self.owners.watch(&process.address()?.to_string())?,
            process,
        });
        Ok(())
    }

    /// Phones reach it from now on.
    pub fn add_gateway(&mut self) -> Result<(), AnyError> {
        let name = self.new_name("gateway");
        let gateway = self.launch.gateway(&name)?;
        self.gateways.push(gateway);
        let addresses: Result<Vec<_>, _> = self.gateways.iter().map(Process::address).collect();
        self.front.set(addresses?);
        Ok(())
    }

    /// A process that nobody has hurt must live.
    fn check_alive(&mut self) -> Result<(), AnyError> {
        let nodes = self.nodes.iter_mut().map(|node| &mut node.process);
        let dead: Vec<String> = nodes
            .chain(&mut self.gateways)
            .filter_map(|process| process.has_ended().then(|| process.name.clone()))
            .collect();
        if dead.is_empty() {
            Ok(())
        } else {
            Err(format!("{} ended by itself", dead.join(", ")).into())
        }
    }

    /// Waits until every shard answers commands and searches.
    pub async fn healed(&self, probes: &Probes) -> Result<(), AnyError> {
        let then = Instant::now();
        for (what, gaps) in [
            ("commands", probes.commands()),
            ("searches", probes.searches()),
        ] {
            while !gaps.all_since(then) {
                if then.elapsed() > HEAL_WITHIN {
                    let (shard, _) = gaps.worst();
                    return Err(format!(
                        "shard {shard} did not answer {what} within {HEAL_WITHIN:?}"
                    )
                    .into());
                }
                tokio::time::sleep(LOOK).await;
            }
        }
        Ok(())
    }

    async fn shards_of(&self, node: &str) -> Result<Vec<u16>, AnyError> {
        let log = Arc::clone(&self.log);
        let owners = tokio::task::spawn_blocking(move || {
            use cabrank_eventlog::EventLog;
            log.owners()
        })
        .await??;
        let of_node = owners.iter().filter(|owner| owner.node == node);
        Ok(of_node.map(|owner| owner.shard).collect())
    }

    /// In which moment the owner of `shards` was hit.
    async fn moment(&self, shards: Vec<u16>) -> Result<Moment, AnyError> {
        tokio::time::sleep(QUIET).await;
        let look = Arc::clone(&self.look);
        tokio::task::spawn_blocking(move || look.moment(&shards)).await?
    }

    async fn remove(&mut self, victim: usize) -> Result<(), AnyError> {
        self.nodes.remove(victim).process.leave().await
    }

    /// Does it to somebody and waits until the city is whole and answers again.
    pub async fn suffer(
        &mut self,
        fault: Fault,
        dice: &mut SmallRng,
        probes: &Probes,
    ) -> Result<Suffered, AnyError> {
        let victim = dice.random_range(0..self.nodes.len());
        let name = self.nodes[victim].process.name.clone();
        let later = Duration::from_millis(dice.random_range(0..COMMIT_MS));
        let mut suffered = Suffered {
            to: name.clone(),
            away: Duration::ZERO,
            moment: None,
        };
        match fault {
            Fault::KillNode => {
                let shards = self.shards_of(&name).await?;
                tokio::time::sleep(later).await;
                self.nodes[victim].process.kill();
                self.nodes.remove(victim);
                suffered.moment = Some(self.moment(shards).await?);
                self.healed(probes).await?;
                self.add_node()?;
            }
            Fault::FreezeNode => {
                let shards = self.shards_of(&name).await?;
                tokio::time::sleep(later).await;
                self.nodes[victim].process.signal("STOP")?;
                let thawed = Instant::now() + AWAY;
                suffered.moment = Some(self.moment(shards).await?);
                tokio::time::sleep_until(thawed.into()).await;
                self.nodes[victim].process.signal("CONT")?;
            }
            Fault::ReplaceNode => {
                self.remove(victim).await?;
                self.healed(probes).await?;
                self.add_node()?;
            }
            Fault::OneThreeTwo => {
                let before = self.nodes.len();
                while self.nodes.len() > 1 {
                    self.remove(0).await?;
                    self.healed(probes).await?;
                }
                self.add_node()?;
                self.add_node()?;
                self.healed(probes).await?;
                self.remove(0).await?;
                self.healed(probes).await?;
                while self.nodes.len() < before {
                    self.add_node()?;
                    self.healed(probes).await?;
                }
                suffered.to = "the nodes".to_owned();
            }
            Fault::KillGateway => {
                let victim = dice.random_range(0..self.gateways.len());
                let mut gateway = self.gateways.remove(victim);
                gateway.kill();
                self.add_gateway()?;
                suffered.to = gateway.name.clone();
            }
            Fault::CutOffNode => {
                let behind = self.nodes.iter().find(|node| node.is_behind_proxy);
                let (Some(behind), Some(proxy)) = (behind, &self.proxy) else {
                    return Err("there is no node behind the proxy".into());
                };
                suffered.to = behind.process.name.clone();
                if self.shards_of(&suffered.to).await?.is_empty() {
                    return Err(
                        "the node to be cut off owns no shard: choose fewer nodes or more shards"
                            .into(),
                    );
                }
                proxy.cut();
                tokio::time::sleep(AWAY).await;
                proxy.mend();
            }
            Fault::RestartBroker | Fault::KillBroker => {
                self.hurt_broker(fault, dice, probes, &mut suffered).await?;
            }
        }
        self.healed(probes).await?;
        self.check_alive()?;
        Ok(suffered)
    }

    async fn hurt_broker(
        &self,
        fault: Fault,
        dice: &mut SmallRng,
        probes: &Probes,
        suffered: &mut Suffered,
    ) -> Result<(), AnyError> {
        let brokers = self.brokers.as_ref().ok_or("the brokers are not ours")?;
        let victim = dice.random_range(0..self.brokers_count);
        let is_only_one = self.brokers_count == 1;
        suffered.to = if is_only_one {
            "the broker".to_owned()
        } else {
            format!("broker {} of {}", victim + 1, self.brokers_count)
        };
        let on_broker = |act: fn(&Broker, usize)| {
            let brokers = Arc::clone(brokers);
            tokio::task::spawn_blocking(move || act(&brokers, victim))
        };
        let began = Instant::now();
        if fault == Fault::RestartBroker {
            on_broker(Broker::stop).await?;
        } else {
            on_broker(Broker::kill).await?;
            if is_only_one {
                tokio::time::sleep(AWAY).await;
            } else {
                self.healed(probes).await?;
            }
        }
        on_broker(Broker::start_again).await?;
        if is_only_one {
            suffered.away = began.elapsed();
        }
        Ok(())
    }

    /// Pings that the gateways believed since each was started.
    pub async fn pings_accepted(&self, http: &reqwest::Client) -> u64 {
        let mut accepted = 0;
        for gateway in &self.gateways {
            let Ok(address) = gateway.address() else {
                continue;
            };
            let call = http
                .get(format!("http://{address}/metrics"))
                .timeout(ANSWER);
            if let Ok(answer) = call.send().await
                && let Ok(text) = answer.text().await
            {
                accepted += PingCounts::parse(&text).accepted;
            }
        }
        accepted
    }

    /// Everybody leaves in order, gateways first. Answers why somebody did not.
    pub async fn leave(self) -> Option<String> {
        let mut failed = None;
        let nodes = self.nodes.into_iter().map(|node| node.process);
        for mut process in self.gateways.into_iter().chain(nodes) {
            if let Err(why) = process.leave().await {
                failed.get_or_insert(why.to_string());
            }
        }
        failed
    }
}
