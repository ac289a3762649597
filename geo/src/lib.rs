//! Where drivers are, and who is near a place right now.
//!
//! Pure: no runtime, no clock, no socket, no random source. Time is an argument, in milliseconds since the
//! Unix epoch. Distances are metres on a sphere of the Earth's mean radius.
//!
//! - [`Point`]: a valid place on Earth; [`Cell`]: an ownership cell around it.
//! - [`LiveIndex`]: the newest position and status of every driver, lock-free to write and to ask.
//! - [`Polygon`]: a zone's outline.
//!
//! Not here: which shard owns a cell (`ring`), who gets a ride (`engine`).

mod cell;
mod index;
#[cfg_attr(
    not(loom),
    expect(dead_code, reason = "the lock-free index comes next")
)]
mod point;
#[cfg_attr(
    not(loom),
    expect(dead_code, reason = "the lock-free index comes next")
)]
mod polygon;

pub use cell::{BadCell, BadResolution, Cell, Resolution, cells_within};
pub use index::{
    DriverKey, Filter, IndexConfig, IndexFull, LiveIndex, Near, Placed, Placement, Query, Seen,
    Slot, Status,
};
pub use point::{BadPoint, EARTH_RADIUS_M, Point};
pub use polygon::{BadPolygon, Polygon};
