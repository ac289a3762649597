//! What would a market's evening be like under another policy? The real engine in virtual time, no sockets.
//!
//! The engine's shards, their messages and its policies are those of a node; riders, drivers and their cars are played
//! from recorded days, as crudely as stated: straight lines at a speed by the hour. Same scene and seed, same day.
//!
//! - [`scene`]: who asks and which cars there are. [`car`]: a car and its phone. [`world`]: plays a scene.
//! - [`dispatch`]: a node without threads. [`rounds`]: what a round looks at.
//! - [`tally`]: a day in numbers. [`contender`]: a policy with its rhythm. [`compare`]: several of them side by side. [`html`]: pictures.
//!
//! Not here: the command line (the root binary), real sockets (`loadgen`'s replay).

#![forbid(unsafe_code)]

pub mod calibrate;
pub mod car;
pub mod compare;
pub mod contender;
pub mod dispatch;
pub mod hindsight;
pub mod html;
pub mod rounds;
pub mod scene;
pub mod tally;
pub mod world;
