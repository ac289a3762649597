//! `--storm`: the server is told to end and started again on its address and its log, under load, and every socket comes back
//! at once.
//!
//! The restart has a thread of its own, because the run goes on meanwhile. A server that does not end or does not start
//! again ends the run with its reason. What the server costs is told only up to the restart.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use cabrank_loadgen::load::conduct::Status;
use cabrank_loadgen::load::plan::Plan;

use super::own::OwnServer;
use super::{LoadArgs, Ran};
use crate::{AnyError, Common};

/// All sockets may take so long to open before the measured time; without it there is no restart.
const BEGIN_WITHIN: Duration = Duration::from_secs(300);

/// A run with a restart in it; also the server that came after.
pub fn run(
    common: &Common,
    args: &LoadArgs,
    plan: &Plan,
    pids: &[u32],
    own: OwnServer,
    data_dir: Option<&Path>,
) -> Result<(Ran, Option<OwnServer>), AnyError> {
    let (tell, measuring) = sync_channel(1);
    let is_told = AtomicBool::new(false);
    let after_s = plan.warmup_s + plan.seconds / 3.0;
    let on_status = move |status: &Status| {
        eprintln!("{status}");
        // Relaxed: told once, by the one thread that conducts.
        let is_time = status.phase == "measuring" && status.elapsed_s >= after_s;
        if is_time && !is_told.swap(true, Ordering::Relaxed) {
            // Nobody waits any more if the restart has failed.
            let _ = tell.send(());
        }
    };
    std::thread::scope(|scope| {
        let restart = scope.spawn(move || -> Result<OwnServer, String> {
            measuring
                .recv_timeout(BEGIN_WITHIN)
                .map_err(|_| "the run did not come to its restart".to_owned())?;
            let address = own.url.trim_start_matches("http://").to_owned();
            own.stop().map_err(|why| why.to_string())?;
            OwnServer::start(common, args, data_dir, Some(&address)).map_err(|why| why.to_string())
        });
        let ran = Ran::of(args, plan, pids, Arc::new(on_status));
        let next = restart
            .join()
            .map_err(|_| "the restart panicked".to_owned())
            .flatten();
        Ok((ran?, Some(next.map_err(|why| format!("--storm: {why}"))?)))
    })
}
