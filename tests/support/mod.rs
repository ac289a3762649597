//! The program as these tests run it.

pub mod quiet;

use std::io::{BufRead, BufReader, Lines};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use cabrank_eventlog::kafka::testing;

/// Longest wait for anything.
pub const PATIENCE: Duration = Duration::from_secs(120);

pub fn cabrank() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cabrank"));
    command.stdin(Stdio::null());
    command
}

/// Looks again and again until `found` says something.
#[track_caller]
pub fn until<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(
            Instant::now() < deadline,
            "{what} did not happen within {PATIENCE:?}"
        );
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

/// A demo that ends with the test: its nodes and gateways are its children, and SIGTERM makes it end them.
pub struct Demo {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    /// What it said until the city lived.
    pub said: Vec<String>,
}

impl Demo {
    /// Starts one over these brokers and waits until its city lives.
    pub fn start(brokers: &str, arguments: &[&str]) -> Demo {
        Self::by(cabrank(), brokers, arguments)
    }

    /// The same by a command that says where its log goes.
    pub fn by(mut command: Command, brokers: &str, arguments: &[&str]) -> Demo {
        let mut child = command
            .args(["demo", "--brokers", brokers, "--listen", "127.0.0.1:0"])
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // Whatever it says later fits into the pipe until somebody reads it.
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut demo = Demo {
            child,
            lines,
            said: Vec::new(),
        };
        while !demo
            .said
            .iter()
            .any(|line| line.starts_with("look at it: "))
        {
            let line = demo.lines.next().expect("the demo ended at its start");
            demo.said.push(line.unwrap());
        }
        demo
    }

    fn line(&self, begin: &str) -> &str {
        let mut rests = self.said.iter().filter_map(|line| line.strip_prefix(begin));
        rests
            .next()
            .unwrap_or_else(|| panic!("no {begin:?} in {:?}", self.said))
    }

    /// What `cabrank cluster status` needs to find the city.
    pub fn city(&self) -> Vec<&str> {
        let look = self.line("look at it: cabrank cluster status ");
        look.split(' ').collect()
    }

    /// Where its gateways answer.
    pub fn url(&self) -> &str {
        let (url, _token) = self.line("the city, live: ").split_once("/#").unwrap();
        url
    }

    /// The process of a node.
    pub fn pid(&self, node: &str) -> u32 {
        self.line(&format!("{node}: process ")).parse().unwrap()
    }

    /// Asks it to end, audit and all.
    pub fn stop(&self) {
        testing::signal(self.child.id(), "TERM");
    }

    /// Waits until it has ended well; what it said since the city lived.
    pub fn ended(mut self) -> Vec<String> {
        let rest: Vec<String> = self.lines.by_ref().map_while(Result::ok).collect();
        let ended = self.child.wait().unwrap();
        assert!(ended.success(), "{ended}: {}", rest.join("\n"));
        rest
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.stop();
            // Nothing depends on how it ends.
            let _ = self.child.wait();
        }
    }
}
