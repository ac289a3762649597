//! How many instructions does each hot path take, and is that more than it was?
//!
//! `cargo bench --bench instructions` runs every path once under callgrind, counts what happens inside it only, and compares
//! with `benches/instructions.toml`: more than a tenth above the reference fails, naming the path and both figures. Wall
//! times on shared machines say little; these counts repeat, because seeds, sizes and order are fixed,
//! one thread works, and the C library is told to use no wider vectors than every x86-64 has. What they do depend on is the
//! compiler: the reference names the one it was made with, and under another one the bound is three tenths until it is
//! renewed. It was made with the release profile's link-time optimisation.
//!
//! - `-- --renew` writes the reference anew, after a change that is meant.
//! - Without valgrind nothing is counted, and with `CI=true` that fails.
//! - Under `cargo test` each path runs once without valgrind, so that none rots.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use cabrank_engine::matching::{Batched, Policy};
use cabrank_events::proto;
use cabrank_gateway::ping_json;
use cabrank_geo::{Near, Placement, Query};
use cabrank_ring::{Kind, Ring};
use serde::{Deserialize, Serialize};

#[path = "../geo/tests/city/mod.rs"]
mod city;
#[path = "common/lifecycle.rs"]
mod lifecycle;
#[path = "common/pings.rs"]
mod pings;
#[path = "common/round.rs"]
mod round;

/// Above the reference by more than this share fails.
const GROWTH_MAX: f64 = 0.10;
/// Another compiler shifts counts by itself: only what no compiler explains fails then.
const GROWTH_MAX_OTHERWISE: f64 = 0.30;
/// Callgrind counts while this function runs; its name is looked for in the program.
const COUNTED: &str = "*cabrank_counted*";

/// A hot path: builds what it needs, then calls the given function once with its work.
struct HotPath {
    name: &'static str,
    /// What one operation is, and how many are counted.
    what: &'static str,
    operations: u64,
    run: fn(u64),
}

const PATHS: [HotPath; 8] = [
    HotPath {
        name: "index_update",
        what: "a ping into the index, 10,000 drivers",
        operations: 20_000,
        run: index_update,
    },
    HotPath {
        name: "index_nearest",
        what: "the 10 nearest free cars of a class, 10,000 drivers",
        operations: 1_000,
        run: index_nearest,
    },
    HotPath {
        name: "ping_json",
        what: "a ping read from JSON",
        operations: 4_096,
        run: ping_in_json,
    },
    HotPath {
        name: "ping_protobuf",
        what: "a ping read from Protobuf, ten a frame",
        operations: 4_096,
        run: ping_protobuf,
    },
    HotPath {
        name: "engine_ride",
        what: "a ride from request to completion in the engine",
        operations: 200,
        run: engine_ride,
    },
    HotPath {
        name: "ring_cell",
        what: "the shard of a cell",
        operations: 4_096,
        run: ring_cell,
    },
    HotPath {
        name: "ring_person",
        what: "the shard of a driver",
        operations: 4_096,
        run: ring_person,
    },
    HotPath {
        name: "round",
        what: "a round of 200 rides and 200 cars, batched",
        operations: 5,
        run: solve_round,
    },
];

/// The work that is counted. Never inlined and never renamed, so that callgrind finds where it begins and ends.
#[inline(never)]
fn cabrank_counted(work: &mut dyn FnMut()) {
    work();
    // Keeps the call above from becoming a jump out of this function.
    black_box(());
}

fn index_update(operations: u64) {
    let city = city::City::new(10_000, operations as usize);
    let (index, slots) = city.index();
    let mut moves = city.moves.iter().zip(1..);
    cabrank_counted(&mut || {
        for (one, time_ms) in moves.by_ref() {
            let ping = Placement {
                at: one.at,
                time_ms,
                seq: 0,
            };
            black_box(index.place(slots[one.driver as usize], ping));
        }
    });
}

fn index_nearest(operations: u64) {
    let city = city::City::new(10_000, 0);
    let (index, _slots) = city.index();
    let mut out: Vec<Near> = Vec::with_capacity(10);
    cabrank_counted(&mut || {
        for at in city.pickups.iter().take(operations as usize) {
            let query = Query {
                at: *at,
                radius_m: 5_000.0,
                k: 10,
                filter: city::filter(1),
            };
            index.nearest(&query, |_| true, &mut out);
            black_box(&out);
        }
    });
}

fn ping_in_json(operations: u64) {
    let texts = pings::frames(operations as usize, 1);
    let texts: Vec<String> = texts.iter().map(pings::json).collect();
    cabrank_counted(&mut || {
        for text in &texts {
            black_box(ping_json::read(black_box(text)).expect("a ping"));
        }
    });
}

fn ping_protobuf(operations: u64) {
    let frames = pings::frames(operations as usize / 10, 10);
    let frames: Vec<_> = frames.iter().map(proto::encode_from_driver).collect();
    cabrank_counted(&mut || {
        for frame in &frames {
            black_box(proto::decode_from_driver(black_box(frame)).expect("a frame"));
        }
    });
}

fn engine_ride(operations: u64) {
    let mut city = lifecycle::City::new(500);
    (0..100).for_each(|_| city.ride(|_, _| {}));
    cabrank_counted(&mut || {
        for _ in 0..operations {
            city.ride(|_, batch| {
                black_box(batch);
            });
        }
    });
}

fn ring_cell(operations: u64) {
    let ring = Ring::new(8).expect("a possible ring");
    cabrank_counted(&mut || {
        for n in 0..operations {
            black_box(ring.shard_of_cell(black_box(n.wrapping_mul(0x9e37_79b9_7f4a_7c15))));
        }
    });
}

fn ring_person(operations: u64) {
    let ring = Ring::new(8).expect("a possible ring");
    let ids: Vec<String> = (0..operations).map(|n| format!("driver-{n}")).collect();
    cabrank_counted(&mut || {
        for id in &ids {
            black_box(ring.shard_of_person(Kind::Driver, black_box(id)));
        }
    });
}

fn solve_round(operations: u64) {
    let round = round::city(200, 200);
    cabrank_counted(&mut || {
        for _ in 0..operations {
            black_box(Batched.solve(black_box(&round), u64::MAX));
        }
    });
}

/// `benches/instructions.toml`.
#[derive(Serialize, Deserialize)]
struct Reference {
    /// Counts under another compiler or other settings are not comparable.
    made_with: String,
    /// Instructions of one operation, by path.
    instructions: BTreeMap<String, f64>,
}

fn reference_file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/instructions.toml")
}

/// What the counts depend on beside the code.
fn made_with() -> String {
    let version = Command::new("rustc").arg("--version").output();
    let version = version.map(|out| String::from_utf8_lossy(&out.stdout).trim().to_owned());
    let version = version.unwrap_or_else(|_| "an unknown rustc".into());
    let (arch, system) = (std::env::consts::ARCH, std::env::consts::OS);
    format!("{version}, {arch}, {system}")
}

/// Instructions of one operation of a path, counted in a process of its own.
fn count(path: &HotPath) -> Result<f64, String> {
    let myself = std::env::current_exe().map_err(|why| why.to_string())?;
    let out = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(format!("--toggle-collect={COUNTED}"))
        .arg(myself)
        .arg(format!("--path={}", path.name))
        // The C library picks its copy loops by processor; these are what every x86-64 has. Unknown names are passed over.
        .env(
            "GLIBC_TUNABLES",
            "glibc.cpu.hwcaps=-AVX512F,-AVX512VL,-AVX512BW,-AVX2,-AVX2_Usable,-AVX,-AVX_Usable,-ERMS,-FSRM",
        )
        .output()
        .map_err(|why| format!("valgrind: {why}"))?;
    let said = String::from_utf8_lossy(&out.stderr);
    let collected = said
        .lines()
        .find_map(|line| line.split_once("Collected :"))
        .and_then(|(_, count)| count.trim().parse::<u64>().ok());
    match collected.filter(|count| *count > 0 && out.status.success()) {
        Some(count) => Ok(count as f64 / path.operations as f64),
        None => Err(format!("{} was not counted: {said}", path.name)),
    }
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let Some(name) = args.iter().find_map(|arg| arg.strip_prefix("--path=")) {
        let path = PATHS.iter().find(|path| path.name == name);
        return path.map_or(ExitCode::FAILURE, |path| {
            (path.run)(path.operations);
            ExitCode::SUCCESS
        });
    }
    let has = |flag: &str| args.iter().any(|arg| arg == flag);
    if !has("--bench") {
        PATHS
            .iter()
            .for_each(|path| (path.run)(path.operations.min(20)));
        println!("each path ran once; cargo bench --bench instructions counts");
        return ExitCode::SUCCESS;
    }
    let is_ci = std::env::var("CI").is_ok_and(|ci| ci == "true");
    if Command::new("valgrind").arg("--version").output().is_err() {
        println!("instructions are not counted: install valgrind (apt-get install valgrind)");
        return if is_ci {
            ExitCode::FAILURE
        } else {
            ExitCode::SUCCESS
        };
    }
    match judge(has("--renew")) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            println!("{why}");
            ExitCode::FAILURE
        }
    }
}

fn judge(renew: bool) -> Result<(), String> {
    const HOW: &str = "cargo bench --bench instructions -- --renew";
    let file = reference_file();
    let text = std::fs::read_to_string(&file).unwrap_or_default();
    let reference: Option<Reference> = toml::from_str(&text).ok();
    let is_same = reference
        .as_ref()
        .is_none_or(|known| known.made_with == made_with());
    let growth_max = if is_same {
        GROWTH_MAX
    } else {
        println!(
            "the reference was made with another compiler; this is {}",
            made_with()
        );
        GROWTH_MAX_OTHERWISE
    };
    let mut counts = BTreeMap::new();
    let mut grown = String::new();
    println!("instructions of one operation, by callgrind");
    for path in &PATHS {
        let now = count(path)?;
        let before = reference
            .as_ref()
            .and_then(|known| known.instructions.get(path.name));
        let change = before.map(|before| now / before - 1.0);
        let shown = change.map_or("new".into(), |change| format!("{:+.1} %", change * 100.0));
        println!("{:<15} {now:>12.1}  {shown:>8}  {}", path.name, path.what);
        if let (Some(before), Some(change)) = (before, change)
            && change > growth_max
        {
            grown += &format!(
                "{}: {now:.1} instructions where the reference has {before:.1} ({shown})\n",
                path.name
            );
        } else if before.is_none() {
            grown += &format!("{} has no reference\n", path.name);
        }
        counts.insert(path.name.to_owned(), (now * 10.0).round() / 10.0);
    }
    if renew {
        let reference = Reference {
            made_with: made_with(),
            instructions: counts,
        };
        let head = format!("# Instructions of one operation of each hot path. Renewed by: {HOW}\n");
        let text = toml::to_string(&reference).map_err(|why| why.to_string())?;
        std::fs::write(&file, head + &text).map_err(|why| format!("{}: {why}", file.display()))?;
        println!("{} is renewed", file.display());
        return Ok(());
    }
    if reference.is_none() {
        return Err(format!(
            "{} cannot be read: renew it with {HOW}",
            file.display()
        ));
    }
    if grown.is_empty() {
        return Ok(());
    }
    Err(format!(
        "{grown}more than {:.0} % above {}: find out why, or, if it is meant, renew it with {HOW}",
        growth_max * 100.0,
        file.display()
    ))
}
