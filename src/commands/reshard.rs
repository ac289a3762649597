//! `cabrank reshard`: more shards for a city that goes on meanwhile.
//!
//! How far a growth is stands in the log, and every step may be taken again: a run that was killed is repeated.

use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use cabrank_engine::{Counters, Market};
use cabrank_eventlog::kafka::{KafkaConfig, KafkaLog, SHARDS_MAX, topics};
use cabrank_eventlog::{EventLog, EventTail, Topic};
use cabrank_events::command::{EntityId, Growth, GrowthStep, MARKET_SHARD, Outcome};
use cabrank_events::{Command, CommandId, CommandRecord, Event, EventRecord, Time};
use cabrank_matcher::market_in;
use clap::Args;

use crate::{AnyError, Brokers, Common, store};

/// Between two looks at what is waited for.
const LOOK: Duration = Duration::from_millis(100);
/// A node answers the market's commands within this, or none serves it.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);
/// Every client asks for new partitions every two seconds: after this long all know of those that a node serves.
const KNOWN_AFTER: Duration = Duration::from_secs(5);
/// Events read at once.
const READ_MAX: usize = 1_000;

/// Flags of `reshard`.
#[derive(Args)]
pub struct ReshardArgs {
    #[command(flatten)]
    brokers: Brokers,
    /// How many shards there are to be: more than now. Shards only grow.
    #[arg(long, value_name = "N")]
    to: u16,
    /// Give up waiting after so many seconds; what has begun goes on, and the same command looks again.
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    patience: u64,
}

/// Takes the steps that are left, and says each.
pub fn run(common: &Common, args: ReshardArgs) -> Result<ExitCode, AnyError> {
    let config = common
        .settings(|settings| args.brokers.apply(settings))?
        .kafka;
    let log = store::kafka(config.clone())?;
    let deadline = Instant::now() + Duration::from_secs(args.patience);
    let mut desk = Desk::open(&log, deadline)?;
    if let Some((growth, GrowthStep::Settled)) = desk.reached {
        // The market is through; whether all others are, a run that was killed has not seen.
        desk.wait_for_all(growth.to)?;
    }
    let now = match desk.reached {
        None => config.shards,
        Some((growth, GrowthStep::Announced)) => growth.from,
        Some((growth, _)) => growth.to,
    };
    let Some(growth) = wanted(desk.reached, now, args.to)? else {
        println!("the city has {now} shards: there is nothing to do");
        return Ok(ExitCode::SUCCESS);
    };
    desk.take(growth, &config)?;
    println!(
        "the city has {} shards; set kafka.shards = {0} for processes that start from now on",
        growth.to
    );
    Ok(ExitCode::SUCCESS)
}

/// Which growth there is to be, if any is; or why there is none.
fn wanted(
    reached: Option<(Growth, GrowthStep)>,
    now: u16,
    to: u16,
) -> Result<Option<Growth>, AnyError> {
    match reached {
        Some((growth, GrowthStep::Settled)) if growth.to == to => return Ok(None),
        Some((growth, GrowthStep::Announced | GrowthStep::Begun)) if growth.to == to => {
            return Ok(Some(growth));
        }
        Some((Growth { from, to: other }, GrowthStep::Announced | GrowthStep::Begun)) => {
            let why = format!(
                "the city grows from {from} to {other} shards already: finish that first, by --to {other}"
            );
            return Err(why.into());
        }
        _ => {}
    }
    if to <= now {
        return Err(format!("--to {to}: the city has {now} shards, and shards only grow").into());
    }
    if to > SHARDS_MAX {
        return Err(format!("--to {to}: a city has {SHARDS_MAX} shards at most").into());
    }
    Ok(Some(Growth { from: now, to }))
}

/// The way to the market's shard and back.
struct Desk<'a> {
    log: &'a KafkaLog,
    tail: Box<dyn EventTail + 'a>,
    /// The newest growth, and how far it is.
    reached: Option<(Growth, GrowthStep)>,
    deadline: Instant,
}

impl<'a> Desk<'a> {
    fn open(log: &'a KafkaLog, deadline: Instant) -> Result<Desk<'a>, AnyError> {
        let mut tail = log.tail();
        // First from where to listen, then what was before.
        let end = log.bounds(Topic::PersonEvents, MARKET_SHARD.0)?.end;
        tail.follow(Topic::PersonEvents, MARKET_SHARD.0, end);
        let market: Option<Market> = market_in(&log.snapshot(MARKET_SHARD.0)?);
        Ok(Desk {
            log,
            tail,
            reached: market.and_then(|market| market.ring),
            deadline,
        })
    }

    fn has_reached(&self, growth: Growth, step: GrowthStep) -> bool {
        self.reached
            .is_some_and(|(known, reached)| known == growth && reached >= step)
    }

    fn in_time(&self, what: &str) -> Result<(), AnyError> {
        if Instant::now() < self.deadline {
            Ok(())
        } else {
            Err(format!("{what}: not within the patience; run the same command again").into())
        }
    }

    /// The market's events since the last look.
    fn news(&mut self) -> Result<Vec<Event>, AnyError> {
        let mut news = Vec::new();
        for found in self.tail.next(LOOK, READ_MAX)? {
            let event = EventRecord::from_json(&found.record.value)?.event;
            if let Event::RingGrows(grows) = &event {
                self.reached = Some((grows.growth, grows.step));
            }
            news.push(event);
        }
        Ok(news)
    }

    /// Hands a step to the market and waits for its outcome.
    fn say(&mut self, growth: Growth, step: GrowthStep) -> Result<(), AnyError> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
        let id = CommandId::new(&format!("reshard/{}/{}", growth.to, now.as_nanos()))?;
        let command = Command::GrowRing {
            to: growth.to,
            step,
        };
        let issued_at = Time(i64::try_from(now.as_millis())?);
        let record = CommandRecord::external(id.clone(), issued_at, command);
        let key = EntityId::Market.to_string().into();
        self.log.submit(MARKET_SHARD.0, key, record.to_json())?;
        self.log.sync()?;
        let asked = Instant::now();
        loop {
            for event in self.news()? {
                let Event::CommandOutcome(outcome) = event else {
                    continue;
                };
                match outcome.outcome {
                    _ if outcome.command != id => {}
                    Outcome::Done | Outcome::AlreadyDone => return Ok(()),
                    Outcome::Refused { why } => {
                        let why = format!(
                            "the city refuses to grow to {}: {why:?}; somebody else may be at it",
                            growth.to
                        );
                        return Err(why.into());
                    }
                }
            }
            if asked.elapsed() > ANSWER_WITHIN {
                return Err("no node answers for the market: is one running?".into());
            }
        }
    }

    fn take(&mut self, growth: Growth, config: &KafkaConfig) -> Result<(), AnyError> {
        let Growth { from, to } = growth;
        if !self.has_reached(growth, GrowthStep::Begun) {
            self.all_follow()?;
        }
        if !self.has_reached(growth, GrowthStep::Announced) {
            self.say(growth, GrowthStep::Announced)?;
        }
        println!("announced: from {from} to {to} shards");
        if !self.has_reached(growth, GrowthStep::Begun) {
            let grown = topics::grow(config, to)?;
            println!("partitions: {} topics have {to} now", grown.len());
            self.wait_for_owners(to)?;
            println!("served: nodes have the new shards, which are empty");
            self.all_follow()?;
            self.say(growth, GrowthStep::Begun)?;
        }
        println!("begun: people move to their new shards");
        while !self.has_reached(growth, GrowthStep::Settled) {
            self.news()?;
            self.in_time("people move")?;
        }
        self.wait_for_all(to)?;
        println!("settled: everybody lives where the new ring says");
        Ok(())
    }

    /// No node is of a release that would not follow. Gateways are not in the log, so nobody can say it of them.
    fn all_follow(&self) -> Result<(), AnyError> {
        let old = self.log.nodes_that_cannot_grow()?;
        if old.is_empty() {
            return Ok(());
        }
        let why = format!(
            "nodes of a release before `cabrank reshard` would not follow: {}; nobody has moved yet: upgrade them and all gateways \
             (which cannot be seen from here), then run the same command again",
            old.join("; ")
        );
        Err(why.into())
    }

    /// Somebody serves every shard, and everybody has had the time to hear of the new ones.
    fn wait_for_owners(&mut self, to: u16) -> Result<(), AnyError> {
        loop {
            let owners = self.log.owners()?;
            let missing = (0..to).find(|shard| !owners.iter().any(|owner| owner.shard == *shard));
            let Some(missing) = missing else { break };
            self.in_time(&format!("nobody serves shard {missing}"))?;
            std::thread::park_timeout(LOOK);
        }
        let all_know = Instant::now() + KNOWN_AFTER;
        while Instant::now() < all_know {
            std::thread::park_timeout(LOOK);
        }
        Ok(())
    }

    /// Every shard has heard that every old one has given everybody.
    fn wait_for_all(&mut self, to: u16) -> Result<(), AnyError> {
        self.log.look_for_shards();
        for shard in 0..to {
            loop {
                let header = self.log.snapshot(shard)?.header.unwrap_or_default();
                let counters = serde_json::from_slice::<Counters>(&header.engine);
                let is_through =
                    counters.is_ok_and(|of| of.ring == Some(to) && of.growing.is_none());
                if is_through {
                    break;
                }
                self.in_time(&format!("shard {shard} is not through"))?;
                std::thread::park_timeout(LOOK);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_only_grow_and_one_growth_is_finished_before_the_next() {
        let growth = Growth { from: 4, to: 8 };
        let why = |reached, now, to| wanted(reached, now, to).unwrap_err().to_string();
        assert_eq!(wanted(None, 4, 8).unwrap(), Some(growth));
        assert!(why(None, 4, 2).contains("shards only grow"));
        assert!(why(None, 4, 4).contains("shards only grow"));
        assert!(why(None, 4, 257).contains("256 shards at most"));
        for step in [GrowthStep::Announced, GrowthStep::Begun] {
            assert_eq!(wanted(Some((growth, step)), 4, 8).unwrap(), Some(growth));
            assert!(why(Some((growth, step)), 4, 16).contains("--to 8"));
        }
        let settled = Some((growth, GrowthStep::Settled));
        assert_eq!(wanted(settled, 8, 8).unwrap(), None);
        assert!(why(settled, 8, 4).contains("shards only grow"));
        assert_eq!(
            wanted(settled, 8, 9).unwrap(),
            Some(Growth { from: 8, to: 9 })
        );
    }
}
