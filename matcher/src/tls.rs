//! Mutual TLS between gateways and nodes: who is believed, and certificates that are replaced while both run.
//!
//! Holds: either side shows a certificate and looks at the other's: signed by an authority of `ca_file`, valid now, bearing
//! `name`. Nobody speaks plain text on such a port. TLS 1.3 with ring's suites. No session is resumed, because nobody looks
//! at the certificate of a resumed one again. What was shown once counts as long as the connection lives, at most
//! `connection_age_max_ms`; files are read again when they have changed, and what cannot be used changes nothing.
//! Not here: the bytes (`wire`), why a peer is refused (`refusal`).

mod refusal;
mod wire;

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use cabrank_engine::BadSetting;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig,
    SignatureScheme,
};
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use tracing::{error, info, warn};

use refusal::Refusal;
pub(crate) use wire::{Caller, Connector, EndsAt};

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// Why peers are refused is written into the log so often at most, for each reason; every one is counted.
const TELL: Duration = Duration::from_secs(10);
/// How far it is looked ahead for the end of our certificate.
const YEARS_AHEAD_S: u64 = 100 * 365 * 86_400;

/// How gateways and nodes are with each other; the same for all processes of a city.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ClusterConfig {
    /// Mutual TLS between gateways and nodes. Off while its files are empty: then that network must be closed to others.
    pub tls: ClusterTlsConfig,
}

/// The papers of this process, and what it asks of others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ClusterTlsConfig {
    /// This process's certificate and those between it and the authority, in PEM, as a file. All three files or none; they are
    /// looked at every second and read again when they have changed.
    pub certificate_file: String,
    /// Its private key in PEM, as a file.
    pub key_file: String,
    /// The authorities that sign gateways' and nodes' certificates, in PEM, as a file; the system's count for nothing here.
    pub ca_file: String,
    /// The name that the other side's certificate must bear (a DNS name), wherever it is reached.
    pub name: String,
    /// A connection is ended after so long and made anew, with the certificates of then, ms (1,000 to 86,400,000). Longer:
    /// whoever was let in stays for longer after the authority or the name was changed.
    pub connection_age_max_ms: u64,
}

impl Default for ClusterTlsConfig {
    fn default() -> Self {
        Self {
            certificate_file: String::new(),
            key_file: String::new(),
            ca_file: String::new(),
            name: "cabrank.internal".into(),
            connection_age_max_ms: 600_000,
        }
    }
}

impl ClusterTlsConfig {
    /// Checks ranges and relations; reads no file.
    pub fn check(&self) -> Result<(), BadSetting> {
        let bad = |key, value: &dyn ToString, remedy| {
            let value = value.to_string();
            Err(BadSetting { key, value, remedy })
        };
        let given =
            [&self.certificate_file, &self.key_file, &self.ca_file].map(|file| file.is_empty());
        if given.contains(&true) && given.contains(&false) {
            let names = "set cluster.tls.certificate_file, key_file and ca_file, or none of them";
            return bad(
                "cluster.tls.certificate_file",
                &self.certificate_file,
                names,
            );
        }
        if ServerName::try_from(self.name.as_str()).is_err() {
            return bad(
                "cluster.tls.name",
                &self.name,
                "choose a DNS name, such as cabrank.internal",
            );
        }
        if !(1_000..=86_400_000).contains(&self.connection_age_max_ms) {
            let age = &self.connection_age_max_ms;
            return bad(
                "cluster.tls.connection_age_max_ms",
                age,
                "choose 1000 to 86400000",
            );
        }
        Ok(())
    }

    fn is_on(&self) -> bool {
        !self.certificate_file.is_empty()
    }
}

/// Why there is no mutual TLS with these files.
#[derive(Debug, thiserror::Error)]
pub enum BadClusterTls {
    /// Out of range, or not all of them.
    #[error(transparent)]
    Setting(#[from] BadSetting),
    /// A file is not there, or holds no PEM of its kind.
    #[error("cluster.tls.{key} = {file}: {why}")]
    Unreadable {
        /// The setting.
        key: &'static str,
        /// The file.
        file: String,
        /// What is wrong with it.
        why: String,
    },
    /// Certificate and key do not belong together, or the key's kind is unknown.
    #[error("cluster.tls: the certificate and the key cannot be used: {0}")]
    Unusable(#[from] rustls::Error),
}

/// The files as they were read.
#[derive(PartialEq, Eq)]
struct Files {
    certificate: Vec<u8>,
    key: Vec<u8>,
    ca: Vec<u8>,
}

fn unreadable(key: &'static str, file: &str, why: &dyn ToString) -> BadClusterTls {
    BadClusterTls::Unreadable {
        key,
        file: file.to_owned(),
        why: why.to_string(),
    }
}

impl Files {
    fn read(config: &ClusterTlsConfig) -> Result<Files, BadClusterTls> {
        let read =
            |key, file: &String| std::fs::read(file).map_err(|why| unreadable(key, file, &why));
        Ok(Files {
            certificate: read("certificate_file", &config.certificate_file)?,
            key: read("key_file", &config.key_file)?,
            ca: read("ca_file", &config.ca_file)?,
        })
    }
}

/// Certificates of a file; at least one.
fn certificates(
    key: &'static str,
    file: &str,
    pem: &[u8],
) -> Result<Vec<CertificateDer<'static>>, BadClusterTls> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let found = found.map_err(|why| unreadable(key, file, &why))?;
    if found.is_empty() {
        return Err(unreadable(key, file, &"no certificate is in it"));
    }
    Ok(found)
}

/// What new connections are greeted with.
struct Papers {
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
    /// Until when our certificate is believed, in seconds since 1970; 0: it is not.
    until: u64,
}

impl Papers {
    fn of(config: &ClusterTlsConfig, files: &Files) -> Result<Papers, BadClusterTls> {
        let chain = certificates(
            "certificate_file",
            &config.certificate_file,
            &files.certificate,
        )?;
        let key = PrivateKeyDer::from_pem_slice(&files.key)
            .map_err(|why| unreadable("key_file", &config.key_file, &why))?;
        let mut roots = RootCertStore::empty();
        for authority in certificates("ca_file", &config.ca_file, &files.ca)? {
            let added = roots.add(authority);
            added.map_err(|why| unreadable("ca_file", &config.ca_file, &why))?;
        }
        let roots = Arc::new(roots);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let signed =
            WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone()).build();
        let signed = signed.map_err(|why| unreadable("ca_file", &config.ca_file, &why))?;
        let name = ServerName::try_from(config.name.clone());
        let name = name.map_err(|why| unreadable("name", &config.name, &why))?;
        let until = believed_until(&*signed, &roots, &provider, &name, &chain);
        let versions = &[&rustls::version::TLS13];
        let mut server = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(versions)?
            .with_client_cert_verifier(Arc::new(Named { signed, name }))
            .with_single_cert(chain.clone(), key.clone_key())?;
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)?;
        client.resumption = Resumption::disabled();
        server.alpn_protocols = vec![b"h2".to_vec()];
        client.alpn_protocols = server.alpn_protocols.clone();
        Ok(Papers {
            server: Arc::new(server),
            client: Arc::new(client),
            until,
        })
    }
}

/// Until when others with the same authorities and the same name believe our certificate; that they do not is told at once.
fn believed_until(
    signed: &dyn ClientCertVerifier,
    roots: &RootCertStore,
    provider: &CryptoProvider,
    name: &ServerName<'static>,
    chain: &[CertificateDer<'static>],
) -> u64 {
    let is_named =
        ParsedCertificate::try_from(&chain[0]).and_then(|own| verify_server_name(&own, name));
    let holds_at = |seconds: u64| {
        let at = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        let (own, between) = (&chain[0], &chain[1..]);
        // A certificate may be for clients only, as a gateway's, or for servers only.
        let as_client = signed.verify_client_cert(own, between, at);
        as_client.map(|_| ()).or_else(|why| {
            let own = ParsedCertificate::try_from(own)?;
            let algorithms = provider.signature_verification_algorithms.all;
            let as_server =
                verify_server_cert_signed_by_trust_anchor(&own, roots, between, at, algorithms);
            as_server.map_err(|_| why)
        })
    };
    let now = UnixTime::now().as_secs();
    match is_named.and_then(|()| holds_at(now)) {
        Ok(()) => {
            let (mut good, mut over) = (now, now + YEARS_AHEAD_S);
            while over - good > 1 {
                let middle = good + (over - good) / 2;
                match holds_at(middle) {
                    Ok(()) => good = middle,
                    Err(_) => over = middle,
                }
            }
            good
        }
        Err(why) => {
            let remedy = match Refusal::of_tls(&why) {
                Refusal::WrongName => {
                    "have it issued with the DNS name of cluster.tls.name, or set that name"
                }
                Refusal::UnknownAuthority => "see that it and cluster.tls.ca_file belong together",
                Refusal::NotNow => "renew it, and compare the clocks",
                _ => "have it issued anew, and look at cluster.tls",
            };
            warn!(name = &*name.to_str(), %why, "cluster.tls: others will refuse our certificate: {remedy}");
            0
        }
    }
}

/// Believes a client's certificate as the library does, if it also bears the name.
#[derive(Debug)]
struct Named {
    signed: Arc<dyn ClientCertVerifier>,
    name: ServerName<'static>,
}

impl ClientCertVerifier for Named {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.signed.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self
            .signed
            .verify_client_cert(end_entity, intermediates, now)?;
        verify_server_name(&ParsedCertificate::try_from(end_entity)?, &self.name)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.signed.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.signed.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.signed.supported_verify_schemes()
    }
}

/// Which side of a connection this process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Side {
    /// It connects to nodes.
    Gateway,
    /// Gateways connect to it.
    Node,
}

impl Side {
    fn label(self) -> &'static str {
        match self {
            Side::Gateway => "gateway",
            Side::Node => "node",
        }
    }
}

/// Mutual TLS with the newest papers.
pub struct ClusterTls {
    config: ClusterTlsConfig,
    papers: RwLock<Papers>,
    /// What was looked at last; none: it could not be read.
    seen: Mutex<Option<Files>>,
    told: Mutex<BTreeMap<(Side, Refusal), Instant>>,
}

impl ClusterTls {
    /// Reads the files; none when there is to be no TLS.
    pub fn read(config: &ClusterTlsConfig) -> Result<Option<Arc<ClusterTls>>, BadClusterTls> {
        config.check()?;
        if !config.is_on() {
            return Ok(None);
        }
        let files = Files::read(config)?;
        Ok(Some(Arc::new(ClusterTls {
            papers: RwLock::new(Papers::of(config, &files)?),
            seen: Mutex::new(Some(files)),
            config: config.clone(),
            told: Mutex::default(),
        })))
    }

    /// Keeps looking at the files, from a task on `runtime`, until nobody has this any more.
    pub(crate) fn watch(self: &Arc<Self>, side: Side, runtime: &Handle) {
        let watched = Arc::downgrade(self);
        runtime.spawn(async move {
            loop {
                tokio::time::sleep(LOOK).await;
                let Some(tls) = watched.upgrade() else { return };
                // The disk may be slow. A look that panics is the last but for this: the next one tries again.
                let _ = tokio::task::spawn_blocking(move || {
                    tls.look();
                    tls.measure(side);
                })
                .await;
            }
        });
    }

    /// Takes new files as they are; connections that are open stay as they were.
    fn look(&self) {
        let name = self.config.name.as_str();
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let files = match Files::read(&self.config) {
            Ok(files) => files,
            Err(why) => {
                if seen.take().is_some() {
                    error!(name, %why, "cluster.tls: the certificates stay as they were");
                }
                return;
            }
        };
        if seen.as_ref() == Some(&files) {
            return;
        }
        match Papers::of(&self.config, &files) {
            Ok(papers) => {
                *self.papers.write().unwrap_or_else(PoisonError::into_inner) = papers;
                info!(name, "cluster.tls: the certificates were read again");
            }
            // Half of them may have been replaced: the next look sees the rest.
            Err(why) => error!(name, %why, "cluster.tls: the certificates stay as they were"),
        }
        *seen = Some(files);
    }

    /// Until when others believe the certificate that we show now, in seconds since 1970; 0: they do not.
    pub fn believed_until(&self) -> u64 {
        let papers = self.papers.read().unwrap_or_else(PoisonError::into_inner);
        papers.until
    }

    /// What is counted from the start, again and again, because metrics may be kept only later. A refusal that never came is 0,
    /// not unknown: alerts look at its growth.
    fn measure(&self, side: Side) {
        for refusal in Refusal::ALL {
            handshakes(side, refusal.label()).increment(0);
        }
        metrics::gauge!("cabrank_cluster_certificate_until_timestamp_seconds")
            .set(self.believed_until() as f64);
    }

    fn server(&self) -> Arc<ServerConfig> {
        let papers = self.papers.read().unwrap_or_else(PoisonError::into_inner);
        papers.server.clone()
    }

    fn client(&self) -> Arc<ClientConfig> {
        let papers = self.papers.read().unwrap_or_else(PoisonError::into_inner);
        papers.client.clone()
    }

    /// The longest life of a connection.
    pub(crate) fn connection_age_max(&self) -> Duration {
        Duration::from_millis(self.config.connection_age_max_ms)
    }

    fn greeted(side: Side) {
        handshakes(side, "done").increment(1);
    }

    /// Counts and tells why there is no connection with `peer`; gives what is to be done about it.
    fn refused(&self, side: Side, peer: &str, why: &io::Error, refusal: Refusal) -> &'static str {
        handshakes(side, refusal.label()).increment(1);
        let now = Instant::now();
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let is_news = told
            .get(&(side, refusal))
            .is_none_or(|then| now.duration_since(*then) >= TELL);
        if is_news {
            told.insert((side, refusal), now);
            warn!(
                side = side.label(),
                peer,
                reason = refusal.label(),
                name = self.config.name,
                %why,
                "no TLS with a peer: {}",
                refusal.remedy()
            );
        }
        refusal.remedy()
    }
}

fn handshakes(side: Side, result: &'static str) -> metrics::Counter {
    let side = side.label();
    metrics::counter!("cabrank_cluster_handshakes_total", "side" => side, "result" => result)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_files_or_none_a_name_and_an_age_within_bounds() {
        let why = |change: &dyn Fn(&mut ClusterTlsConfig)| {
            let mut config = ClusterTlsConfig::default();
            change(&mut config);
            config.check().unwrap_err().to_string()
        };
        ClusterTlsConfig::default().check().unwrap();
        assert!(why(&|tls| tls.ca_file = "ca.pem".into()).contains("or none of them"));
        assert!(
            why(&|tls| tls.name = "not a name".into()).contains("cluster.tls.name = not a name")
        );
        assert!(why(&|tls| tls.connection_age_max_ms = 5).contains("choose 1000 to 86400000"));
        assert!(
            ClusterTls::read(&ClusterTlsConfig::default())
                .unwrap()
                .is_none()
        );
    }
}
