//! A broker that is spoken to over TLS with a password, and the keys for it: made by the JDK's `keytool`, which is there
//! wherever a broker can be started, and thrown away with the broker. And one that asks its clients for certificates, by
//! papers that a test brings.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use super::{Broker, free_ports, report};
use crate::kafka::config::{KafkaConfig, Security, SecurityProtocol};

/// Who may connect.
const USER: &str = "cabrank";
const PASSWORD: &str = "open-sesame";
/// Of the key stores.
const STORE_PASSWORD: &str = "not-a-secret";

/// One more port that a broker listens on.
pub(super) struct Listener {
    pub name: String,
    pub protocol: &'static str,
    pub port: u16,
}

/// What a broker needs to listen on more ports, secured.
pub(super) struct Door {
    pub listeners: Vec<Listener>,
    /// Users that are made with the broker's storage, as `kafka.tools.StorageTool` wants them.
    pub users: Vec<String>,
    /// More settings of the broker.
    pub settings: Vec<(String, String)>,
}

/// One broker that speaks `SASL_SSL` (SCRAM-SHA-512 and PLAIN) on a port of its own.
#[derive(Debug)]
pub struct SecuredBroker {
    broker: Broker,
    port: u16,
    keys: TempDir,
}

impl SecuredBroker {
    /// Starts it. `None`, after saying why in one line, where that is not possible.
    ///
    /// # Panics
    /// Instead of `None` with `CI=true` in the environment.
    #[must_use]
    pub fn start() -> Option<SecuredBroker> {
        report(1, SecuredBroker::try_start(), |secured| &secured.broker)
    }

    fn try_start() -> Result<SecuredBroker, String> {
        let keys = TempDir::new().map_err(|why| why.to_string())?;
        let store = make_authority(keys.path(), "ours")?;
        make_authority(keys.path(), "stranger")?;
        std::fs::write(keys.path().join("password"), PASSWORD).map_err(|why| why.to_string())?;
        std::fs::write(keys.path().join("wrong-password"), "sesame?")
            .map_err(|why| why.to_string())?;
        let port = free_ports(1).map_err(|why| why.to_string())?[0];
        let plain = format!(
            "org.apache.kafka.common.security.plain.PlainLoginModule required user_{USER}=\"{PASSWORD}\";"
        );
        let scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;".to_owned();
        let settings = [
            ("ssl.keystore.type", "PKCS12".into()),
            ("ssl.keystore.location", store.display().to_string()),
            ("ssl.keystore.password", STORE_PASSWORD.into()),
            ("ssl.key.password", STORE_PASSWORD.into()),
            ("sasl.enabled.mechanisms", "SCRAM-SHA-512,PLAIN".into()),
            ("listener.name.sasl_ssl.plain.sasl.jaas.config", plain),
            (
                "listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config",
                scram,
            ),
        ];
        let door = Door {
            listeners: vec![Listener {
                name: "SASL_SSL".into(),
                protocol: "SASL_SSL",
                port,
            }],
            users: vec![format!("SCRAM-SHA-512=[name={USER},password={PASSWORD}]")],
            settings: settings.map(|(key, value)| (key.to_owned(), value)).into(),
        };
        Ok(SecuredBroker {
            broker: Broker::try_start(1, Some(&door))?,
            port,
            keys,
        })
    }

    /// Settings with which everything works, by SASL's `mechanism`.
    #[must_use]
    pub fn config(&self, shards: u16, mechanism: &str) -> KafkaConfig {
        KafkaConfig {
            brokers: format!("127.0.0.1:{}", self.port),
            security: Security {
                protocol: SecurityProtocol::SaslSsl,
                ca_file: Some(self.file("ours.pem")),
                sasl_mechanism: Some(mechanism.into()),
                username: Some(USER.into()),
                password_file: Some(self.file("password")),
                ..Security::default()
            },
            ..self.broker.config(shards)
        }
    }

    /// The certificate of an authority that has nothing to do with the broker.
    #[must_use]
    pub fn strangers_ca(&self) -> PathBuf {
        self.file("stranger.pem")
    }

    /// A file with another password.
    #[must_use]
    pub fn wrong_password(&self) -> PathBuf {
        self.file("wrong-password")
    }

    fn file(&self, name: &str) -> PathBuf {
        self.keys.path().join(name)
    }
}

/// One broker that speaks TLS on ports of their own, one for each certificate it is given, and asks its clients for theirs.
#[derive(Debug)]
pub struct MutualBroker {
    broker: Broker,
    ports: Vec<u16>,
}

impl MutualBroker {
    /// Starts it. `shown`: files with a key and its certificate each, in PEM; `believed`: a file with the authorities of its
    /// clients. `None`, after saying why in one line, where that is not possible.
    ///
    /// # Panics
    /// Instead of `None` with `CI=true` in the environment.
    #[must_use]
    pub fn start(shown: &[PathBuf], believed: &Path) -> Option<MutualBroker> {
        let started = MutualBroker::try_start(shown, believed);
        report(1, started, |mutual| &mutual.broker)
    }

    fn try_start(shown: &[PathBuf], believed: &Path) -> Result<MutualBroker, String> {
        let ports = free_ports(shown.len()).map_err(|why| why.to_string())?;
        let mut settings = Vec::new();
        let mut listeners = Vec::new();
        for (number, (port, papers)) in ports.iter().zip(shown).enumerate() {
            let own = |key: &str, value: String| {
                (format!("listener.name.mutual{number}.ssl.{key}"), value)
            };
            settings.extend([
                own("keystore.type", "PEM".into()),
                own("keystore.location", papers.display().to_string()),
                own("truststore.type", "PEM".into()),
                own("truststore.location", believed.display().to_string()),
                own("client.auth", "required".into()),
            ]);
            listeners.push(Listener {
                name: format!("MUTUAL{number}"),
                protocol: "SSL",
                port: *port,
            });
        }
        let door = Door {
            listeners,
            users: Vec::new(),
            settings,
        };
        Ok(MutualBroker {
            broker: Broker::try_start(1, Some(&door))?,
            ports,
        })
    }

    /// Settings for the port where it shows the certificate of this number, without any papers of the client's own.
    #[must_use]
    pub fn config(&self, shards: u16, number: usize) -> KafkaConfig {
        KafkaConfig {
            brokers: format!("127.0.0.1:{}", self.ports[number]),
            security: Security {
                protocol: SecurityProtocol::Ssl,
                ..Security::default()
            },
            ..self.broker.config(shards)
        }
    }
}

/// A key for 127.0.0.1 that is its own authority: `<name>.p12` for the broker, `<name>.pem` for clients. Gives the first.
fn make_authority(dir: &Path, name: &str) -> Result<PathBuf, String> {
    let store = dir.join(format!("{name}.p12"));
    let keytool = |args: &[&str]| {
        let done = Command::new("keytool")
            .args(args)
            .args(["-alias", name, "-storepass", STORE_PASSWORD, "-keystore"])
            .arg(&store)
            .stdin(Stdio::null())
            .output()
            .map_err(|why| format!("keytool (of the JDK): {why}"))?;
        if done.status.success() {
            Ok(())
        } else {
            let said = String::from_utf8_lossy(&done.stdout);
            Err(format!("keytool: {}", said.trim()))
        }
    };
    let subject = format!("CN={name}");
    keytool(&[
        "-genkeypair",
        "-keyalg",
        "EC",
        "-storetype",
        "PKCS12",
        "-validity",
        "2",
        "-dname",
        &subject,
        "-ext",
        "san=ip:127.0.0.1",
        "-ext",
        "bc=ca:true",
    ])?;
    let pem = dir.join(format!("{name}.pem")).display().to_string();
    keytool(&["-exportcert", "-rfc", "-file", &pem])?;
    Ok(store)
}
