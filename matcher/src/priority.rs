//! Which threads of a server go first when there is not enough processor for all?
//!
//! Those that read sockets. Every command of a phone comes by one, behind the pings of thousands of others, so what waits
//! there is late before anybody can judge it; what waits behind them is seen, and new rides are turned away for it. Measured
//! in `docs/performance.md` (overload).

/// How much less of a busy processor the calling thread, and those it starts, get than the threads of sockets: a third
/// (`nice`; each step is a factor of 1.25). Where there is room for all it changes nothing.
#[cfg(target_os = "linux")]
const STEPS: i32 = 5;

/// Lets the threads of sockets go before the calling one. Elsewhere than on Linux, where threads of a process have no
/// priorities of their own, nothing happens.
pub fn after_sockets() {
    // It is a wish: where it is not granted all threads are equal, as they were.
    #[cfg(target_os = "linux")]
    let _ = rustix::process::nice(STEPS);
}
