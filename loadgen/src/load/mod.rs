//! `cabrank load`: what can a server take, and how soon does it answer? Open loop, so that nothing is left out.
//!
//! - [`plan`]: what is offered. [`schedule`]: when. [`place`]: where.
//! - [`worker`]: one thread of sockets ([`cab`]: a driver's, [`lane`]: HTTP). [`part`]: one process of threads.
//! - [`conduct`]: the processes of a run. [`tally`]: what they count, merged.
//! - [`report`]: what a run showed, and whether it counts; [`words`]: the workload for a reader.
//! - [`clock`]: the clock they share. [`usage`]: CPU and memory.
//!
//! - [`html`], [`compare`]: reports for people. [`search`]: the highest rate. [`sink`]: the other side of a comparison.
//!   [`redis`]: another. [`ghosts`]: cars that are not there. [`conditions`]: what must be kept under overload. [`suite`]: the
//!   table of what must be reached.
//!
//! A thread and its sockets are one event loop without a runtime: what is measured is the server, and whatever the
//! generator spends is missing there when both share a machine.

pub mod cab;
pub mod clock;
pub mod compare;
pub mod conditions;
pub mod conduct;
pub mod ghosts;
pub mod html;
pub mod lane;
pub mod part;
pub mod place;
pub mod plan;
pub mod redis;
pub mod report;
pub mod schedule;
pub mod search;
pub mod sink;
pub mod suite;
pub mod tally;
pub mod usage;
pub mod words;
pub mod worker;
