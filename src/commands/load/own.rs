//! The processes a load run starts: a server on a free port, the bare sink, the generator's parts. All end with their
//! standard input, so nothing is left behind by a run that was killed.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;

use cabrank_loadgen::load::part::run_part;
use cabrank_loadgen::load::sink::{Sink, serve};
use cabrank_matcher::clock::DomainClock;
use clap::Args;

use super::super::{block_on, shutdown_signal};
use cabrank_loadgen::load::plan::Target;

use super::{LoadArgs, minter};
use crate::server::Server;
use crate::{AnyError, Common};

/// More sockets than this, and the limit derived from the file limit is set aside: all of them are wanted.
const SOCKETS_PLENTY: usize = 10_000;
/// Room beside them: searches, rides, the probe.
const SOCKETS_SPARE: usize = 256;
/// A server of our own may take so long to say where it listens.
const SERVER_WITHIN: Duration = Duration::from_secs(30);
/// ... and so long to close its store.
const STOP_WITHIN: Duration = Duration::from_secs(60);
/// A server as a process of its own, on a free port.
pub struct OwnServer {
    /// The process.
    pub child: Child,
    /// Where it listens.
    pub url: String,
}

impl OwnServer {
    /// Starts it; `listen` is where a former one listened, if this one takes its place.
    pub fn start(
        common: &Common,
        args: &LoadArgs,
        data_dir: Option<&Path>,
        listen: Option<&str>,
    ) -> Result<OwnServer, AnyError> {
        let program = std::env::current_exe()?;
        let mut command = match args.server_nice {
            0 => Command::new(program),
            // It becomes the program, so the process is the server's.
            nice => {
                let mut command = Command::new("nice");
                command.args(["-n", &nice.to_string()]).arg(program);
                command
            }
        };
        if let Some(config) = &common.config {
            command.arg("--config").arg(config);
        }
        let target = args.target();
        match target {
            Target::Raw | Target::Redis => command
                .arg("raw-sink")
                .arg("--pings-per-frame")
                .arg(args.pings_per_frame.to_string()),
            Target::Cabrank => command.arg("load-server"),
        };
        if args.decode {
            command.arg("--decode");
        }
        if let (Target::Cabrank, Some(dir)) = (target, data_dir) {
            command.arg("--data-dir").arg(dir);
            let sockets = args.connections.unwrap_or(args.drivers);
            command.arg("--sockets").arg(sockets.to_string());
            if let Some(address) = listen {
                command.arg("--listen").arg(address);
            }
            if args
                .connections
                .is_some_and(|sockets| sockets < args.drivers)
            {
                command.arg("--parked");
            }
        }
        command
            .arg("--log")
            .arg(&common.log)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        #[cfg(unix)]
        {
            use std::os::unix::process::CommandExt;
            // Ctrl-C ends the generator first; the server is stopped by closing its standard input.
            command.process_group(0);
        }
        let mut child = command.spawn()?;
        let output = child.stdout.take().ok_or("the server has no output")?;
        let (tell, said) = std::sync::mpsc::sync_channel(1);
        std::thread::spawn(move || {
            let mut line = String::new();
            // An error is an empty line: no address.
            let _ = BufReader::new(output).read_line(&mut line);
            let _ = tell.send(line);
        });
        let url = said
            .recv_timeout(SERVER_WITHIN)
            .unwrap_or_default()
            .trim()
            .to_owned();
        let server = OwnServer { child, url };
        if !server.url.starts_with("http://") {
            return Err("the server did not start; its reason is above".into());
        }
        Ok(server)
    }

    /// Closes its store and waits for its end.
    pub fn stop(mut self) -> Result<(), AnyError> {
        drop(self.child.stdin.take());
        let deadline = std::time::Instant::now() + STOP_WITHIN;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return if status.success() {
                    Ok(())
                } else {
                    Err(format!("the server ended with {status}").into())
                };
            }
            if std::time::Instant::now() > deadline {
                return Err("the server does not end".into());
            }
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }
}

impl Drop for OwnServer {
    fn drop(&mut self) {
        // Already over in the ordinary case; then both do nothing.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Flags of the hidden `load-server`.
#[derive(Args)]
pub struct ServerArgs {
    #[arg(long)]
    data_dir: PathBuf,
    /// Drivers without a socket stay on the map.
    #[arg(long)]
    parked: bool,
    /// Drivers' sockets there will be: room for as many, as far as the file limit goes.
    #[arg(long, default_value_t = 0)]
    sockets: usize,
    /// Where to listen; default: a free port.
    #[arg(long)]
    listen: Option<std::net::SocketAddr>,
}

/// A server for a load run: no limits that speak of single people, ends with its standard input.
pub fn run_server(common: &Common, args: ServerArgs) -> Result<ExitCode, AnyError> {
    let settings = common.settings(|settings| {
        let anywhere = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
        settings.gateway.listen = args.listen.unwrap_or(anywhere);
        if args.sockets > SOCKETS_PLENTY {
            settings.gateway.limits.connections_max = args.sockets + SOCKETS_SPARE;
        }
        settings.store.data_dir = args.data_dir.clone();
        // A fleet of a thousand sockets stands for a larger one: each may say more than a phone would.
        settings.gateway.ingest.pings_per_second = 0;
        settings.gateway.limits.requests_per_minute = 0;
        settings.gateway.limits.frames_per_second = 0;
        if args.parked {
            settings.node.ping_ttl_ms = 3_600_000;
            settings.node.silent_after_ms = 3_600_000;
        }
    })?;
    block_on(async move {
        let shutdown = shutdown_signal()?;
        let server = Server::start(&settings, DomainClock::wall()).await?;
        println!("http://{}", server.address());
        let failed = server.failed();
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = failed.cancelled() => {}
            () = input_closed() => {}
        }
        server.stop().await?;
        Ok(ExitCode::SUCCESS)
    })
}

/// Resolves when whoever started this process has let go of it.
async fn input_closed() {
    let (tell, closed) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let mut line = String::new();
        while std::io::stdin()
            .lock()
            .read_line(&mut line)
            .is_ok_and(|n| n > 0)
        {
            line.clear();
        }
        // Nobody waits any more if the process ends otherwise.
        let _ = tell.send(());
    });
    // A dropped sender is a closed input as well.
    let _ = closed.await;
}

/// The hidden `load-part`: one generator process.
pub fn run_load_part() -> Result<ExitCode, AnyError> {
    run_part(
        BufReader::new(std::io::stdin()),
        std::io::stdout().lock(),
        minter,
    )?;
    Ok(ExitCode::SUCCESS)
}

/// Flags of the hidden `raw-sink`.
#[derive(Args)]
pub struct SinkArgs {
    /// Parse each frame.
    #[arg(long)]
    decode: bool,
    /// Pings counted for a frame that is not parsed.
    #[arg(long, default_value_t = 1)]
    pings_per_frame: u32,
}

/// The hidden `raw-sink`: a bare WebSocket server that ends with its standard input.
pub fn run_raw_sink(args: SinkArgs) -> Result<ExitCode, AnyError> {
    let sink = Arc::new(Sink::new(args.decode, u64::from(args.pings_per_frame)));
    block_on(async move {
        let shutdown = shutdown_signal()?;
        tokio::select! {
            served = serve(sink, |address| println!("http://{address}")) => served?,
            () = shutdown.cancelled() => {}
            () = input_closed() => {}
        }
        Ok(ExitCode::SUCCESS)
    })
}
