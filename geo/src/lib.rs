//! Where drivers are, and who is near a place right now.
//!
//! Pure: no runtime, no clock, no socket, no random source. Time is an argument, in milliseconds since the
//! Unix epoch. Distances are metres on a sphere of the Earth's mean radius.
//!
//! - [`Point`]: a valid place on Earth; [`Cell`]: an ownership cell around it.
//! - [`LiveIndex`]: the newest position and status of every driver, lock-free to write and to ask.
//! - [`Polygon`]: a zone's outline; [`Zones`]: what all zones of a city say about a place.
//!
//! Not here: which shard owns a cell (`ring`), who gets a ride (`engine`).

mod buckets;
mod cell;
mod directory;
mod index;
mod patch;
mod point;
mod polygon;
mod readers;
mod reserved;
mod search;
mod slots;
mod sync;
mod zones;

pub use cell::{BadCell, BadResolution, Cell, Resolution, cells_within};
pub use index::{
    DriverKey, Filter, IndexConfig, IndexFull, LiveIndex, Near, Placed, Placement, Query, Seen,
    Slot, Status,
};
pub use point::{BadPoint, EARTH_RADIUS_M, Point};
pub use polygon::{BadPolygon, Polygon};
pub use zones::{Area, BadZones, Finding, HoleOutside, Spot, Zone, ZoneKind, Zones};

/// Asks the processor to fetch the cache line of a value that will be needed soon.
#[inline]
fn prefetch<T>(value: &T) {
    #[cfg(all(target_arch = "x86_64", not(loom)))]
    // SAFETY: a prefetch of any address is allowed and changes nothing; this one is of a live reference.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(value).cast());
    }
    #[cfg(not(all(target_arch = "x86_64", not(loom))))]
    let _ = value;
}
