//! Films of the map: how `replay` takes them, and `cabrank watch`, which shows them.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use cabrank_events::map::Film;
use cabrank_gateway::watch;
use clap::Args;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::{block_on, shutdown_signal};
use crate::AnyError;

/// All of Earth, as the map is asked for it.
const WHOLE: &str = "south=-90&west=-180&north=90&east=180";
/// One question at a running server.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// Set in a drawing that left its cars out.
const FLAG_TOO_MANY: u8 = 1;

/// Flags of `watch`.
#[derive(Args)]
pub struct WatchArgs {
    /// The film (`cabrank simulate --film FILE`, `cabrank replay --film FILE`).
    file: PathBuf,
    /// Where the page is served: an address of this machine only, because a film shows where people were and asks for no
    /// token. Port 0 takes a free one.
    #[arg(long, value_name = "ADDRESS", default_value_t = SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))]
    listen: SocketAddr,
}

/// Serves the page over a film until SIGTERM or Ctrl-C.
pub fn run(args: &WatchArgs) -> Result<ExitCode, AnyError> {
    if !args.listen.ip().is_loopback() {
        return Err(format!("--listen {}: choose a loopback address", args.listen).into());
    }
    let named = |why: String| format!("{}: {why}", args.file.display());
    let size = std::fs::metadata(&args.file)
        .map_err(|why| named(why.to_string()))?
        .len();
    if size > Film::BYTES_MAX as u64 {
        let most = Film::BYTES_MAX >> 20;
        return Err(named(format!("larger than the {most} MiB a film may have")).into());
    }
    let bytes = std::fs::read(&args.file).map_err(|why| named(why.to_string()))?;
    let drawings = Film::check(&bytes).map_err(|why| named(why.to_string()))?;
    block_on(async {
        let shutdown = shutdown_signal()?;
        let listener = TcpListener::bind(args.listen).await?;
        println!("{drawings} drawings: http://{}/", listener.local_addr()?);
        Ok(watch::serve(listener, bytes, shutdown.cancelled_owned()).await?)
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Writes a film and says how long it is.
pub fn write(file: &Path, film: &Film) -> Result<(), AnyError> {
    if film.is_empty() {
        return Err(format!("--film {}: nothing was seen", file.display()).into());
    }
    let bytes = film.to_bytes();
    std::fs::write(file, &bytes).map_err(|why| format!("--film {}: {why}", file.display()))?;
    let mib = bytes.len() as f64 / f64::from(1 << 20);
    eprintln!(
        "{} drawings, {mib:.1} MiB: cabrank watch {}",
        film.len(),
        file.display()
    );
    Ok(())
}

/// A running server's map, drawing by drawing.
pub struct Filming {
    stop: CancellationToken,
    task: JoinHandle<Result<Film, String>>,
}

impl Filming {
    /// Begins. A server that is silent for a while is filmed again when it is back.
    pub fn begin(url: &str, token: String, every: Duration) -> Filming {
        let stop = CancellationToken::new();
        let (stopped, url) = (stop.clone(), format!("{url}/v1/map?{WHOLE}"));
        let task = tokio::spawn(async move {
            let http = reqwest::Client::builder().timeout(ANSWER_WITHIN).build();
            let http = http.map_err(|why| why.to_string())?;
            let mut film = Film::new(Film::BYTES_MAX);
            let mut every = interval(every);
            every.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    () = stopped.cancelled() => return Ok(film),
                    _ = every.tick() => {}
                }
                let Ok(answer) = http.get(&url).bearer_auth(&token).send().await else {
                    continue;
                };
                if !answer.status().is_success() {
                    continue;
                }
                let Ok(drawing) = answer.bytes().await else {
                    continue;
                };
                if drawing
                    .get(1)
                    .is_some_and(|flags| flags & FLAG_TOO_MANY != 0)
                {
                    return Err("the city has more drivers than gateway.map.drivers_max".to_owned());
                }
                film.add(drawing.to_vec());
            }
        });
        Filming { stop, task }
    }

    /// What was filmed.
    pub async fn finish(self) -> Result<Film, AnyError> {
        self.stop.cancel();
        Ok(self.task.await?.map_err(|why| format!("--film: {why}"))?)
    }
}
