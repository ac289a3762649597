//! A PostgreSQL of a test's own, where the programs are installed: a cluster in a scratch directory, on loopback.
//!
//! Needs Debian's `postgresql` or another installation below `/usr/lib/postgresql`; nothing of it need run. Without it a test
//! says in one line that it did not run; with the environment's `CI=true` it fails.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

pub struct Server {
    dir: tempfile::TempDir,
    programs: PathBuf,
    port: u16,
    user: Option<&'static str>,
    options: String,
    is_secured: bool,
}

/// What a server shows and whom it believes, in PEM.
pub struct Papers {
    pub certificate: String,
    pub key: String,
    pub authority: String,
}

fn programs() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?;
    let mut found: Vec<PathBuf> = versions
        .flatten()
        .map(|entry| entry.path().join("bin"))
        .collect();
    found.retain(|dir| dir.join("initdb").is_file());
    found.sort();
    found.pop()
}

impl Server {
    /// `None`, after saying so, where it is not installed.
    ///
    /// # Panics
    /// With `CI=true` in the environment, where a test that did not run is a failure.
    pub fn start() -> Option<Server> {
        Self::start_with(None)
    }

    /// One that speaks TLS alone, and believes whoever shows a certificate in the user's name.
    pub fn secured(papers: &Papers) -> Option<Server> {
        Self::start_with(Some(papers))
    }

    fn start_with(papers: Option<&Papers>) -> Option<Server> {
        let Some(programs) = programs() else {
            let why = "no PostgreSQL server below /usr/lib/postgresql";
            let is_ci = std::env::var("CI").is_ok_and(|ci| ci == "true");
            assert!(!is_ci, "CI=true and a test did not run: {why}");
            // Past the test harness, which shows the words of failed tests only. Nobody can be told that it is closed.
            let _ = writeln!(std::io::stderr(), "NOT RUN on PostgreSQL: {why}");
            return None;
        };
        let dir = tempfile::tempdir().unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        // PostgreSQL refuses to run as root; its own user comes with the package.
        let is_root = std::fs::metadata("/proc/self").is_ok_and(|about| {
            use std::os::unix::fs::MetadataExt;
            about.uid() == 0
        });
        let mut server = Server {
            options: format!(
                "-c listen_addresses=127.0.0.1 -p {port} -k {} -c fsync=off",
                dir.path().display()
            ),
            dir,
            programs,
            port,
            user: is_root.then_some("postgres"),
            is_secured: papers.is_some(),
        };
        if is_root {
            let owned = Command::new("chown")
                .arg("postgres")
                .arg(server.dir.path())
                .status();
            assert!(
                owned.is_ok_and(|status| status.success()),
                "the scratch directory has a new owner"
            );
        }
        let data = server.data();
        server.run(
            "initdb",
            &[
                "-D",
                &data,
                "-U",
                "cabrank",
                "--auth=trust",
                "-E",
                "UTF8",
                "--no-sync",
            ],
        );
        if let Some(papers) = papers {
            server.put(papers);
            let rules = "local all all trust\nhostssl all all 127.0.0.1/32 cert\n";
            std::fs::write(server.dir.path().join("data/pg_hba.conf"), rules).unwrap();
            let dir = server.dir.path().display();
            server.options += &format!(
                " -c ssl=on -c ssl_cert_file={dir}/server.crt -c ssl_key_file={dir}/server.key -c ssl_ca_file={dir}/ca.crt"
            );
        }
        server.back();
        Some(server)
    }

    /// Lets it answer, with all that it knew before it went away.
    pub fn back(&self) {
        let log = self.dir.path().join("log").display().to_string();
        let data = self.data();
        let how = ["-D", &data, "-w", "-t", "30", "-l", &log];
        self.run(
            "pg_ctl",
            &[&how[..], &["-o", &self.options, "start"]].concat(),
        );
    }

    /// It goes away as if killed: connections end, and nobody gets in.
    pub fn away(&self) {
        self.run("pg_ctl", &["-D", &self.data(), "-m", "immediate", "stop"]);
    }

    fn put(&self, papers: &Papers) {
        let files = [
            ("server.crt", &papers.certificate),
            ("server.key", &papers.key),
            ("ca.crt", &papers.authority),
        ];
        for (name, text) in files {
            let path = self.dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            use std::os::unix::fs::PermissionsExt;
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
            if let Some(user) = self.user {
                let owned = Command::new("chown").arg(user).arg(&path).status();
                assert!(
                    owned.is_ok_and(|status| status.success()),
                    "{name} has a new owner"
                );
            }
        }
    }

    /// Other papers for new connections.
    pub fn show(&self, papers: &Papers) {
        self.put(papers);
        self.run("pg_ctl", &["-D", &self.data(), "reload"]);
    }

    fn data(&self) -> String {
        self.dir.path().join("data").display().to_string()
    }

    fn run(&self, program: &str, arguments: &[&str]) {
        run(&self.programs, self.user, program, arguments);
    }

    /// Makes an empty database and gives its address.
    pub fn maker(&self) -> impl Fn(&str) -> String + 'static {
        let (programs, user, port) = (self.programs.clone(), self.user, self.port.to_string());
        // Whoever makes databases comes by the socket, where no certificate is asked for.
        let host = match self.is_secured {
            true => self.dir.path().display().to_string(),
            false => "127.0.0.1".to_owned(),
        };
        move |name| {
            let name = name.replace(['-', '.'], "_");
            run(
                &programs,
                user,
                "createdb",
                &["-h", &host, "-p", &port, "-U", "cabrank", &name],
            );
            format!("postgres://cabrank@127.0.0.1:{port}/{name}")
        }
    }
}

fn run(programs: &Path, user: Option<&str>, program: &str, arguments: &[&str]) {
    let is_done = ran(programs, user, program, arguments);
    assert!(is_done, "{program} {arguments:?}");
}

fn ran(programs: &Path, user: Option<&str>, program: &str, arguments: &[&str]) -> bool {
    let path = programs.join(program);
    let mut command = match user {
        Some(user) => {
            let mut command = Command::new("runuser");
            command.args(["-u", user, "--"]).arg(path);
            command
        }
        None => Command::new(path),
    };
    let status = command
        .args(arguments)
        .current_dir("/")
        .stdout(Stdio::null())
        .status();
    status.is_ok_and(|status| status.success())
}

impl Drop for Server {
    fn drop(&mut self) {
        let data = self.data();
        let stop = ["-D", &data, "-m", "immediate", "stop"];
        let is_gone = ran(&self.programs, self.user, "pg_ctl", &stop);
        // A test that failed may have left it away.
        assert!(is_gone || std::thread::panicking(), "it does not stop");
    }
}
