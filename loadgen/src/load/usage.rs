//! What does a process cost, and what did the machine's host take? CPU time and memory from `/proc`; nothing where there is
//! none.

use serde::{Deserialize, Serialize};

/// One look at a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// CPU seconds since its start, all threads.
    pub cpu_s: f64,
    /// Memory held, MiB.
    pub memory_mib: f64,
    /// The most it held so far, MiB.
    pub memory_max_mib: f64,
}

/// Looks at a process; None if it is gone or the system does not tell.
pub fn of(pid: u32) -> Option<Usage> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in brackets may hold anything; the numbers begin behind it.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |n: usize| fields.get(n)?.parse::<f64>().ok();
    let per_second = rustix::param::clock_ticks_per_second() as f64;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let mib = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name));
        let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok());
        kib.unwrap_or(0.0) / 1024.0
    };
    Some(Usage {
        cpu_s: (ticks(11)? + ticks(12)?) / per_second,
        memory_mib: mib("VmRSS:"),
        memory_max_mib: mib("VmHWM:"),
    })
}

/// Adds up several processes; those that are gone count as nothing.
pub fn of_all(pids: &[u32]) -> Option<Usage> {
    let each: Vec<Usage> = pids.iter().filter_map(|pid| of(*pid)).collect();
    let sum = |field: fn(&Usage) -> f64| each.iter().map(field).sum();
    (!each.is_empty()).then(|| Usage {
        cpu_s: sum(|u| u.cpu_s),
        memory_mib: sum(|u| u.memory_mib),
        memory_max_mib: sum(|u| u.memory_max_mib),
    })
}

/// CPU seconds since its start that this machine wanted and its host gave to other guests, all cores together (`steal`
/// in Linux's `/proc/stat`); None where the system does not tell.
pub fn host_took_s() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/stat").ok()?;
    let steal = stat.lines().next()?.split_whitespace().nth(8)?;
    Some(steal.parse::<f64>().ok()? / rustix::param::clock_ticks_per_second() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_works_has_used_time_and_memory() {
        let before = of(std::process::id());
        if !std::path::Path::new("/proc/self/stat").exists() {
            assert_eq!(before, None);
            return;
        }
        let before = before.unwrap();
        assert!(before.memory_mib > 1.0 && before.memory_max_mib >= before.memory_mib);
        let mut sum = 0u64;
        let cpu = || of(std::process::id()).unwrap().cpu_s;
        while cpu() < before.cpu_s + 0.02 {
            sum = (0..1_000_000u64).fold(sum, u64::wrapping_add);
        }
        assert!(std::hint::black_box(sum) > 0);
        assert_eq!(of(u32::MAX), None);
    }
}
