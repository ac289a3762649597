//! How many bytes does a driver take, and does a query allocate?

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use cabrank_geo::{Placement, Query};

mod city;

struct Counting;

// Relaxed throughout: the tests below read the counts from the thread that allocates.
static BYTES: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// Calls of this thread only: the harness allocates on its own.
    static CALLS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call goes to the system's allocator unchanged; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        BYTES.fetch_add(layout.size() as u64, Ordering::Relaxed);
        CALLS.set(CALLS.get() + 1);
        // SAFETY: the caller's promise about the layout is handed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        BYTES.fetch_sub(layout.size() as u64, Ordering::Relaxed);
        // SAFETY: the caller's promise about pointer and layout is handed on.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The counts are the whole process's: one test at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

const BYTES_PER_DRIVER_MAX: u64 = 200;

#[test]
fn a_driver_takes_at_most_200_bytes() {
    let _alone = ONE_AT_A_TIME.lock();
    // 70,000 is unlucky: just above a power of two of buckets.
    for drivers in [70_000, 100_000, 130_000] {
        let city = city::City::new(drivers, 0);
        let before = BYTES.load(Ordering::Relaxed);
        let (index, slots) = city.index();
        let handles = (slots.capacity() * size_of_val(&slots[0])) as u64;
        let bytes = (BYTES.load(Ordering::Relaxed) - before - handles) / u64::from(drivers);
        println!("{drivers} drivers: {bytes} bytes each");
        assert!(
            bytes <= BYTES_PER_DRIVER_MAX,
            "{drivers} drivers: {bytes} bytes each"
        );
        assert_eq!(index.len(), drivers as usize);
    }
}

#[test]
fn neither_a_query_nor_an_update_allocates() {
    let _alone = ONE_AT_A_TIME.lock();
    let city = city::City::new(5_000, 20_000);
    let (index, slots) = city.index();
    let mut out = Vec::with_capacity(5_000);
    let filter = city::filter(1);
    let before = CALLS.get();
    for (turn, one) in city.moves.iter().enumerate() {
        let ping = Placement {
            at: one.at,
            time_ms: turn as i64 + 1,
            seq: 0,
        };
        index.place(slots[one.driver as usize], ping);
    }
    for &at in &city.pickups {
        index.nearest(
            &Query {
                at,
                radius_m: 5_000.0,
                k: 10,
                filter,
            },
            |_| true,
            &mut out,
        );
        assert_eq!(out.len(), 10);
        index.within_radius(at, 1_000.0, &filter, |_| true, &mut out);
    }
    assert_eq!(CALLS.get() - before, 0);
}
