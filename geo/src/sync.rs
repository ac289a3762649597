//! The atomics of the index, from one place: the standard library's, or loom's when its models run.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p cabrank-geo --release --test loom_index` swaps them. Under loom the
//! capacities shrink too, so that the models reach the full and the reused.

#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering, fence};

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering, fence};
