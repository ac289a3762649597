//! Where do people live, while shards grow and afterwards?
//!
//! In one shard each; they go to another one only if a growth made it, handed over there and taken over here. A log that is read while
//! it is written, or whose oldest events are gone, may lack a part of that: it excuses those who move, and nobody else.

use std::collections::{BTreeMap, HashSet};

use serde_json::Value;

use super::fold::{Folds, Here};
use super::{Audit, Findings, Name, Names, Step, What};

/// Where a person lives, as far as the events tell.
#[derive(Clone, Copy)]
pub(super) struct Home {
    pub shard: u16,
    /// Handed over and not yet taken over.
    pub is_away: bool,
    pub is_forgotten: bool,
}

/// What a step is in the life of its person.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Life {
    /// The next of the steps before it, or the first there is.
    GoesOn,
    /// The first that is known, because of those before it some are not.
    Anew,
    /// No step of theirs.
    Elsewhere,
}

impl Folds {
    /// Can somebody who lived in one shard live in the other now?
    fn leads(&self, from: u16, to: u16) -> bool {
        from < to && self.first_new.is_some_and(|first| first <= to)
    }

    /// Does a person live in the shard of this step? `home`: as the steps before say.
    pub(super) fn life(
        &self,
        here: &Here<'_>,
        findings: &mut Findings,
        home: Option<Home>,
    ) -> Life {
        let step = here.step;
        let comes = step.what == What::TakenOver;
        let (name, person) = (here.name(), person_of(step, here.names));
        let is_driver = person.is_some_and(|(is_driver, _)| is_driver);
        let of = if is_driver { "driver" } else { "rider" };
        // What was before may not be kept, or not have been read yet: of those who have moved, or can have.
        let may_be_unseen = self.reads_late || !self.truncated.is_empty();
        let has_moved = person.is_some_and(|person| self.moved.contains(&person));
        let moves = |home: Home| has_moved || self.leads(home.shard, here.shard);
        let what = match home {
            Some(home) if home.is_away && comes => return Life::GoesOn,
            Some(home) if !home.is_away && !comes && home.shard == here.shard => {
                return Life::GoesOn;
            }
            None if !comes => return Life::GoesOn,
            // Whoever comes back begins where they belong now.
            Some(home) if !home.is_away && !comes && home.is_forgotten && moves(home) => {
                return Life::GoesOn;
            }
            None if may_be_unseen => return Life::Anew,
            Some(home) if may_be_unseen && moves(home) => return Life::Anew,
            Some(home) if home.is_away => {
                format!("{name} of a {of} who is on the way to another shard")
            }
            _ if comes => format!("{name} of a {of} whom nobody has handed over"),
            _ => format!("{name} stands in another shard than the {of}"),
        };
        here.bad(findings, 3, what);
        Life::Elsewhere
    }
}

/// The person a step is about, and whether that is a driver.
pub(super) fn person_of(step: &Step, names: &Names) -> Option<(bool, Name)> {
    match names.text(step.name).split('.').next() {
        Some("driver") => step.driver.map(|id| (true, id)),
        Some("rider") => step.rider.map(|id| (false, id)),
        _ => None,
    }
}

/// Those who have gone from shard to shard.
pub(super) fn movers(shards: &BTreeMap<u16, Vec<Step>>) -> HashSet<(bool, Name)> {
    let steps = shards.values().flatten();
    let moves = steps.filter(|step| matches!(step.what, What::HandedOver | What::TakenOver));
    moves
        .flat_map(|step| {
            let driver = step.driver.map(|id| (true, id));
            driver.or_else(|| step.rider.map(|id| (false, id)))
        })
        .collect()
}

/// The least shard that people have come to, or could. The market's state remembers the newest growth when its events are gone.
pub(super) fn first_new(
    shards: &BTreeMap<u16, Vec<Step>>,
    states: &[(u16, String, Value)],
) -> Option<u16> {
    let all = shards
        .iter()
        .flat_map(|(shard, steps)| steps.iter().map(|step| (*shard, step)));
    let new = all.filter_map(|(shard, step)| match step.what {
        What::TakenOver => Some(shard),
        What::RingGrows => u16::try_from(step.number).ok(),
        _ => None,
    });
    let markets = states
        .iter()
        .filter(|(_, _, state)| state["entity"] == "market");
    let known = markets.filter_map(|(_, _, market)| market["ring"][0]["from"].as_u64());
    new.chain(known.filter_map(|from| u16::try_from(from).ok()))
        .min()
}

/// In a log that is complete nobody is on the way.
pub(super) fn arrived(folds: &Folds, audit: &mut Audit) {
    if !audit.options.complete {
        return;
    }
    let drivers = folds.drivers.iter().filter(|(_, driver)| driver.is_away);
    let riders = folds.riders.iter().filter(|(_, rider)| rider.is_away);
    let away = drivers.map(|(name, driver)| (name, driver.shard));
    let away = away.chain(riders.map(|(name, rider)| (name, rider.shard)));
    for (name, shard) in away {
        let what = format!("{} was handed over and never came", audit.names.text(*name));
        drop(audit.findings.add(5, what).shard(shard));
    }
}
