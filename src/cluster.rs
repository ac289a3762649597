//! A city over Kafka on one machine: matcher nodes and gateways as processes of their own, one address in front.
//!
//! What a deployment does with containers and a load balancer, for `demo --brokers`, `chaos` and tests.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use cabrank_eventlog::kafka::KafkaConfig;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};

use crate::{AnyError, Common};

/// A process that has not said where it listens by then has failed.
const START_WITHIN: Duration = Duration::from_secs(60);
/// After SIGTERM a process may take so long.
const LEAVE_WITHIN: Duration = Duration::from_secs(40);
/// How often a process that was told to leave is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// How the processes are started.
#[derive(Clone)]
pub struct Launch {
    /// The same for all of them.
    pub kafka: KafkaConfig,
    /// Flags of this process that the others get, too.
    pub passed_on: Vec<String>,
    /// Settings by their variable, e.g. `CABRANK_NODE__HOPS_MAX`.
    pub variables: Vec<(&'static str, String)>,
}

impl Launch {
    /// Passes on what this process was told.
    pub fn new(common: &Common, kafka: KafkaConfig) -> Launch {
        let mut passed_on = vec!["--log".to_owned(), common.log.clone()];
        if let Some(config) = &common.config {
            passed_on.extend(["--config".to_owned(), config.display().to_string()]);
        }
        if let Some(preset) = common.preset {
            passed_on.extend(["--preset".to_owned(), preset.name().to_owned()]);
        }
        let variables = vec![
            (
                "CABRANK_KAFKA__SESSION_TIMEOUT_MS",
                kafka.session_timeout_ms.to_string(),
            ),
            (
                "CABRANK_KAFKA__HEARTBEAT_MS",
                kafka.heartbeat_ms.to_string(),
            ),
        ];
        Launch {
            kafka,
            passed_on,
            variables,
        }
    }

    fn start(&self, role: Role, name: &str, brokers: &str) -> Result<Process, AnyError> {
        let kafka = &self.kafka;
        let mut command = Command::new(std::env::current_exe()?);
        command
            .args(&self.passed_on)
            .arg(role.command())
            .args(["--brokers", brokers, "--prefix", &kafka.prefix])
            .args(["--shards", &kafka.shards.to_string()])
            .args(["--replication", &kafka.replication.to_string()])
            .args(["--listen", "127.0.0.1:0"])
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        if matches!(role, Role::Matcher) {
            command.args(["--name", name]);
        }
        let mut child = command.spawn()?;
        let Some(out) = child.stdout.take() else {
            return Err("a child without the output that was asked for".into());
        };
        let mut process = Process {
            role,
            name: name.to_owned(),
            child,
            said: String::new(),
        };
        let (tell, said) = std::sync::mpsc::sync_channel(1);
        std::thread::spawn(move || {
            let mut out = BufReader::new(out);
            let mut line = String::new();
            // An empty line says that the process has ended; nobody may be waiting any more.
            let _ = out.read_line(&mut line);
            let _ = tell.send(line);
            let _ = std::io::copy(&mut out, &mut std::io::sink());
        });
        process.said = said
            .recv_timeout(START_WITHIN)
            .map_err(|_| format!("{name} did not start within {START_WITHIN:?}"))?
            .trim()
            .to_owned();
        if process.said.is_empty() {
            return Err(format!("{name} did not start: see above").into());
        }
        Ok(process)
    }

    /// Starts a matcher node.
    pub fn matcher(&self, name: &str) -> Result<Process, AnyError> {
        self.matcher_by(name, &self.kafka.brokers)
    }

    /// Starts a matcher node that looks for the brokers elsewhere than all others do.
    pub fn matcher_by(&self, name: &str, brokers: &str) -> Result<Process, AnyError> {
        self.start(Role::Matcher, name, brokers)
    }

    /// Starts a gateway.
    pub fn gateway(&self, name: &str) -> Result<Process, AnyError> {
        self.start(Role::Gateway, name, &self.kafka.brokers)
    }
}

/// What a process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Owns shards.
    Matcher,
    /// Talks to phones.
    Gateway,
}

impl Role {
    fn command(self) -> &'static str {
        match self {
            Role::Matcher => "matcher",
            Role::Gateway => "gateway",
        }
    }
}

/// A child process; killed when dropped.
pub struct Process {
    role: Role,
    /// Its name.
    pub name: String,
    child: Child,
    said: String,
}

impl Process {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where a gateway listens, or where a node answers gateways.
    pub fn address(&self) -> Result<SocketAddr, AnyError> {
        let address = match self.role {
            Role::Gateway => self.said.strip_prefix("http://"),
            Role::Matcher => self
                .said
                .split_once(" at ")
                .and_then(|(_, rest)| rest.split(',').next()),
        };
        Ok(address
            .ok_or_else(|| format!("{} said {:?} at its start", self.name, self.said))?
            .parse()?)
    }

    /// Sends a signal by name, e.g. `STOP`.
    pub fn signal(&self, name: &str) -> Result<(), AnyError> {
        let sent = Command::new("kill")
            .args([format!("-{name}"), self.pid().to_string()])
            .status()?;
        if sent.success() {
            Ok(())
        } else {
            Err(format!("kill -{name} {} failed", self.pid()).into())
        }
    }

    /// kill -9.
    pub fn kill(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// SIGTERM, then waits for the end.
    pub async fn leave(&mut self) -> Result<(), AnyError> {
        self.signal("TERM")?;
        let deadline = Instant::now() + LEAVE_WITHIN;
        loop {
            if let Some(ended) = self.child.try_wait()? {
                return if ended.success() {
                    Ok(())
                } else {
                    Err(format!("{} ended with {ended}", self.name).into())
                };
            }
            if Instant::now() > deadline {
                return Err(format!("{} did not leave within {LEAVE_WITHIN:?}", self.name).into());
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Has it ended?
    pub fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// One address in front of several gateways, as a load balancer is: connections go round in turn, past those that do
/// not answer.
#[derive(Clone)]
pub struct Balancer {
    address: SocketAddr,
    behind: Arc<Mutex<Behind>>,
}

#[derive(Default)]
struct Behind {
    gateways: Vec<SocketAddr>,
    turn: usize,
}

impl Balancer {
    /// Listens; connections are refused while no gateway is set.
    pub async fn start(listen: SocketAddr) -> Result<Balancer, AnyError> {
        let listener = TcpListener::bind(listen).await.map_err(|why| {
            format!("cannot listen on {listen}: {why}; choose another with --listen")
        })?;
        let balancer = Balancer {
            address: listener.local_addr()?,
            behind: Arc::default(),
        };
        let behind = Arc::clone(&balancer.behind);
        tokio::spawn(async move {
            while let Ok((phone, _)) = listener.accept().await {
                tokio::spawn(pass(phone, Arc::clone(&behind)));
            }
        });
        Ok(balancer)
    }

    /// Where it listens.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// New connections go to these from now on.
    pub fn set(&self, gateways: Vec<SocketAddr>) {
        let mut behind = self.behind.lock().unwrap_or_else(PoisonError::into_inner);
        behind.gateways = gateways;
    }
}

async fn pass(mut phone: TcpStream, behind: Arc<Mutex<Behind>>) {
    let candidates = {
        let mut behind = behind.lock().unwrap_or_else(PoisonError::into_inner);
        behind.turn = behind.turn.wrapping_add(1);
        let mut gateways = behind.gateways.clone();
        if !gateways.is_empty() {
            let first = behind.turn % gateways.len();
            gateways.rotate_left(first);
        }
        gateways
    };
    for gateway in candidates {
        if let Ok(mut there) = TcpStream::connect(gateway).await {
            // Latency is what is measured here; a refusal only makes it slower.
            let _ = phone.set_nodelay(true);
            let _ = there.set_nodelay(true);
            // Either side hanging up ends it; both see that.
            let _ = copy_bidirectional(&mut phone, &mut there).await;
            return;
        }
    }
}
