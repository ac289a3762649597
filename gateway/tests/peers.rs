//! Mutual TLS between a gateway and a node, with authorities that are thrown away: who is refused, by whom and with which
//! words, while a neighbour with the right papers goes on; and what new papers change while both run.

mod support;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use cabrank_engine::EngineConfig;
use cabrank_eventlog::{
    Bounds, EventLog, LogError, OwnerRecord, ReadError, Record, Recovered, SubmitError, Topic,
};
use cabrank_matcher::clock::DomainClock;
use cabrank_matcher::rpc::v1::StatusRequest;
use cabrank_matcher::rpc::{self, in_words};
use cabrank_matcher::tls::{ClusterTls, ClusterTlsConfig};
use cabrank_matcher::{Node, NodeConfig, Remote, RemoteConfig, RemoteParts};
use cabrank_ring::Ring;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

use support::authority::Authority;
use support::{City, OPS, PATIENCE, answered, log, until};

/// Files of one process.
struct Papers {
    _dir: tempfile::TempDir,
    config: ClusterTlsConfig,
}

impl Papers {
    /// Shows what `shown` is, believes whom `believed` signed and who bears `name`.
    fn new(name: &str, shown: &(String, String), believed: &str) -> Papers {
        let dir = tempfile::tempdir().unwrap();
        let path = |file: &str| dir.path().join(file).display().to_string();
        let config = ClusterTlsConfig {
            certificate_file: path("cert.pem"),
            key_file: path("key.pem"),
            ca_file: path("ca.pem"),
            name: name.to_owned(),
            connection_age_max_ms: 1_000,
        };
        let papers = Papers { _dir: dir, config };
        papers.show(shown);
        papers.believe(believed);
        papers
    }

    fn show(&self, (certificate, key): &(String, String)) {
        std::fs::write(&self.config.key_file, key).unwrap();
        std::fs::write(&self.config.certificate_file, certificate).unwrap();
    }

    fn believe(&self, authorities: &str) {
        // As a whole or not at all: an authority cut in two is none.
        let half = PathBuf::from(format!("{}.half", self.config.ca_file));
        std::fs::write(&half, authorities).unwrap();
        std::fs::rename(half, &self.config.ca_file).unwrap();
    }

    fn tls(&self) -> Arc<ClusterTls> {
        ClusterTls::read(&self.config).unwrap().unwrap()
    }
}

/// Papers that open nothing where `ours` and `name` are asked for; what the refusal is called, and what to do.
fn wrong(ours: &Authority, name: &str) -> [((String, String), &'static str, &'static str); 3] {
    // Anybody can call an authority as we call ours.
    let strangers = Authority::new("ours");
    [
        (
            strangers.issue(name, false),
            "unknown_authority",
            "cluster.tls.ca_file",
        ),
        (ours.issue(name, true), "expired", "renew it"),
        (
            ours.issue("else.test", false),
            "wrong_name",
            "cluster.tls.name",
        ),
    ]
}

/// Lets `node` answer gateways; where, and until when.
async fn answering(node: &Node, tls: Option<Arc<ClusterTls>>) -> (SocketAddr, CancellationToken) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let serving = rpc::serve(node.clone(), "n1".into(), listener, tls, stop.clone());
    tokio::spawn(serving);
    (address, stop)
}

/// Asks a node how it is: its name, or why not.
async fn ask(address: SocketAddr, tls: Option<&Arc<ClusterTls>>) -> Result<String, String> {
    let asked = async {
        let client = rpc::connect(&address.to_string(), tls).await;
        let mut client = client.map_err(|why| in_words(&why))?;
        let answer = client.status(StatusRequest {}).await;
        let answer = answer.map_err(|why| in_words(&why))?;
        Ok(answer.into_inner().node)
    };
    let asked = tokio::time::timeout(PATIENCE, asked).await;
    asked.expect("an answer or a refusal")
}

/// Waits for a line of the log that has all of these words.
async fn logged(words: &[&str]) {
    until("words in the log", async || {
        let has_all = |line: &str| words.iter().all(|word| line.contains(word));
        log::log().lines().any(has_all).then_some(())
    })
    .await;
}

fn handshakes(side: &str, result: &str) -> String {
    // As the exporter writes them: in the order they were given.
    format!("cabrank_cluster_handshakes_total{{side=\"{side}\",result=\"{result}\"}}")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_refuses_strangers_the_expired_wrong_names_the_nameless_and_plain_text() {
    log::listen();
    let name = "refused-by-nodes.test";
    let ours = Authority::new("ours");
    let city = City::start().await;
    let papers = Papers::new(name, &ours.issue(name, false), &ours.pem);
    let (node, stop) = answering(&city.node, Some(papers.tls())).await;
    let neighbour = papers.tls();
    // Who begins and goes silent is cut, whoever else comes meanwhile.
    let mut silent = TcpStream::connect(node).await.unwrap();
    silent.write_all(&[22, 3, 1, 2]).await.unwrap();

    for (shown, reason, remedy) in wrong(&ours, name) {
        let before = city.counter(&handshakes("node", reason)).await;
        let caller = Papers::new(name, &shown, &ours.pem).tls();
        let refusal = ask(node, Some(&caller)).await.unwrap_err();
        assert!(refusal.contains("its log says"), "{refusal}");
        logged(&[name, "side=\"node\"", reason, remedy]).await;
        assert!(city.counter(&handshakes("node", reason)).await > before);
        assert_eq!(ask(node, Some(&neighbour)).await.as_deref(), Ok("n1"));
    }

    let before = city.counter(&handshakes("node", "plain_text")).await;
    ask(node, None).await.unwrap_err();
    logged(&[name, "side=\"node\"", "plain_text", "set cluster.tls"]).await;
    assert!(city.counter(&handshakes("node", "plain_text")).await > before);
    assert_eq!(ask(node, Some(&neighbour)).await.as_deref(), Ok("n1"));

    let mut roots = RootCertStore::empty();
    roots.add(ours.root.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let tcp = TcpStream::connect(node).await.unwrap();
    let greeting =
        TlsConnector::from(Arc::new(config)).connect(ServerName::try_from(name).unwrap(), tcp);
    let mut nameless = greeting.await.unwrap();
    let mut heard = Vec::new();
    let read = tokio::time::timeout(PATIENCE, nameless.read_to_end(&mut heard));
    let refusal = read.await.expect("the connection is cut").unwrap_err();
    assert!(
        refusal.to_string().contains("CertificateRequired"),
        "{refusal}"
    );
    assert!(heard.is_empty(), "{heard:?}");
    logged(&[
        name,
        "side=\"node\"",
        "no_certificate",
        "certificate_file and key_file",
    ])
    .await;
    assert_eq!(ask(node, Some(&neighbour)).await.as_deref(), Ok("n1"));

    let mut heard = Vec::new();
    let read = tokio::time::timeout(PATIENCE, silent.read_to_end(&mut heard));
    let _ = read.await.expect("the connection is cut");
    logged(&[name, "side=\"node\"", "timed_out"]).await;
    stop.cancel();
    city.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_refuses_nodes_with_wrong_papers_or_in_plain_text_and_says_what_to_do() {
    log::listen();
    let name = "refused-by-gateways.test";
    let ours = Authority::new("ours");
    let city = City::start().await;
    let papers = Papers::new(name, &ours.issue(name, false), &ours.pem);
    let (neighbour, goes_on) = answering(&city.node, Some(papers.tls())).await;
    let gateway = papers.tls();
    for (shown, reason, remedy) in wrong(&ours, name) {
        let before = city.counter(&handshakes("gateway", reason)).await;
        let bad = Papers::new(name, &shown, &ours.pem).tls();
        let (node, stop) = answering(&city.node, Some(bad)).await;
        let refusal = ask(node, Some(&gateway)).await.unwrap_err();
        assert!(refusal.contains(remedy), "{refusal}");
        logged(&[name, "side=\"gateway\"", &node.to_string(), reason, remedy]).await;
        assert!(city.counter(&handshakes("gateway", reason)).await > before);
        assert_eq!(ask(neighbour, Some(&gateway)).await.as_deref(), Ok("n1"));
        stop.cancel();
    }
    // Somebody takes the connection and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = silent.local_addr().unwrap();
    ask(address, Some(&gateway)).await.unwrap_err();
    logged(&[name, "side=\"gateway\"", &address.to_string(), "timed_out"]).await;

    let (plain, stop) = answering(&city.node, None).await;
    let refusal = ask(plain, Some(&gateway)).await.unwrap_err();
    assert!(refusal.contains("speaks plain text"), "{refusal}");
    logged(&[
        name,
        "side=\"gateway\"",
        &plain.to_string(),
        "speaks plain text",
    ])
    .await;
    assert_eq!(ask(plain, None).await.as_deref(), Ok("n1"));
    assert_eq!(ask(neighbour, Some(&gateway)).await.as_deref(), Ok("n1"));
    stop.cancel();
    goes_on.cancel();
    city.end().await;
}

/// The log of a node, which also says that this node has all shards, and where it answers.
struct Announced {
    log: Arc<dyn EventLog>,
    address: SocketAddr,
}

impl EventLog for Announced {
    fn shards(&self) -> u16 {
        self.log.shards()
    }

    fn submit(&self, shard: u16, key: Bytes, value: Bytes) -> Result<(), SubmitError> {
        self.log.submit(shard, key, value)
    }

    fn sync(&self) -> Result<(), LogError> {
        self.log.sync()
    }

    fn read(
        &self,
        topic: Topic,
        shard: u16,
        from: u64,
        max: usize,
    ) -> Result<Vec<Record>, ReadError> {
        self.log.read(topic, shard, from, max)
    }

    fn bounds(&self, topic: Topic, shard: u16) -> Result<Bounds, ReadError> {
        self.log.bounds(topic, shard)
    }

    fn snapshot(&self, shard: u16) -> Result<Recovered, ReadError> {
        self.log.snapshot(shard)
    }

    fn base(&self, shard: u16) -> Result<Recovered, ReadError> {
        self.log.base(shard)
    }

    fn wait_committed(&self, seen: u64, timeout: Duration) -> u64 {
        self.log.wait_committed(seen, timeout)
    }

    fn owners(&self) -> Result<Vec<OwnerRecord>, ReadError> {
        let owner = |shard| OwnerRecord {
            shard,
            epoch: 1,
            node: "n1".into(),
            address: self.address.to_string(),
        };
        Ok((0..self.shards()).map(owner).collect())
    }
}

/// A city whose gateway reaches its node over mutual TLS alone, as it does where they are processes of their own.
async fn apart(gateway: &Papers, node: &Papers) -> (City, SocketAddr, CancellationToken) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let (tls, node_tls, until_stop) = (gateway.tls(), node.tls(), stop.clone());
    let city = City::behind(
        |_| {},
        |node, log| {
            let (ring, serving) = (Ring::new(log.shards()).unwrap(), node);
            let serving = rpc::serve(serving, "n1".into(), listener, Some(node_tls), until_stop);
            tokio::spawn(serving);
            let parts = RemoteParts {
                log: Arc::new(Announced { log, address }),
                ring: Arc::new(ring),
                clock: DomainClock::wall(),
                engine: EngineConfig::default(),
                node: NodeConfig::default(),
                config: RemoteConfig::default(),
                tls: Some(tls),
                runtime: Handle::current(),
            };
            Arc::new(Remote::start(parts, |why| {
                panic!("the gateway failed: {why}")
            }))
        },
    )
    .await;
    until("the gateway's readiness", async || {
        (city.get("/readyz", None).await.status() == 200).then_some(())
    })
    .await;
    (city, address, stop)
}

/// A driver comes, pings at a place, is seen there by the node, and drives the rider who asks.
async fn a_whole_ride(city: &City, driver: &str, rider: &str, lat: f64) {
    let mut phone = city.driver(driver).await;
    let session = phone.online(&["economy"]).await;
    let mut seq = 0;
    // Pings may be lost, and a driver must be known to the node before the first one counts.
    until("the node sees the car", async || {
        seq += 1;
        phone.ping(lat, -122.4190, seq).await;
        let near = format!("lat={lat}&lon=-122.4190&radius=20");
        (city.cars(&near).await.len() == 1).then_some(())
    })
    .await;
    city.ride(rider, "k1").await;
    let offer = phone.hear("offer").await;
    let all = ["received", "accept", "arrived", "started", "completed"];
    phone.reports(&all, &offer).await;
    let home = serde_json::json!({"type":"offline","id":"home","session":session});
    phone.say(home).await;
    phone.hear("outcome").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rides_go_on_over_mutual_tls_while_the_authority_and_all_papers_are_replaced() {
    log::listen();
    let name = "replaced.test";
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    let gateway = Papers::new(name, &old.issue(name, false), &old.pem);
    let node = Papers::new(name, &old.issue(name, false), &old.pem);
    let (city, address, stop) = apart(&gateway, &node).await;
    let city = Arc::new(city);
    a_whole_ride(&city, "d1", "ann", 37.7751).await;
    assert!(city.counter(&handshakes("gateway", "done")).await > 0);
    assert!(city.counter(&handshakes("node", "done")).await > 0);

    // From now on somebody asks all the time, and is answered all the time.
    let (asker, is_over) = (city.clone(), Arc::new(AtomicBool::new(false)));
    let until_over = is_over.clone();
    let asking = tokio::spawn(async move {
        let mut answers = 0;
        let mut ticks = tokio::time::interval(Duration::from_millis(5));
        while !until_over.load(Ordering::SeqCst) {
            ticks.tick().await;
            let near = asker
                .get("/v1/nearby?lat=37.7751&lon=-122.419&radius=20", OPS)
                .await;
            let near = answered(near, 200).await;
            assert_eq!(near.get("unconfirmed"), None, "{near}");
            answers += 1;
        }
        answers
    });
    let read_again = |times: usize| async move {
        until("both have read their files again", async || {
            let said = log::log();
            let again = said
                .lines()
                .filter(|line| line.contains("read again") && line.contains(name));
            (again.count() >= times).then_some(())
        })
        .await;
    };
    // Somebody with papers of the old authority, who believes both.
    let both = format!("{}{}", old.pem, new.pem);
    let before = Papers::new(name, &old.issue(name, false), &both).tls();
    // It stays connected as long as it may.
    let mut let_in = rpc::connect(&address.to_string(), Some(&before))
        .await
        .unwrap();
    let_in.status(StatusRequest {}).await.unwrap();

    // Nonsense changes nothing.
    let good = std::fs::read_to_string(&node.config.certificate_file).unwrap();
    std::fs::write(&node.config.certificate_file, "no certificate").unwrap();
    logged(&[name, "stay as they were"]).await;
    assert_eq!(ask(address, Some(&before)).await.as_deref(), Ok("n1"));
    std::fs::write(&node.config.certificate_file, good).unwrap();
    read_again(1).await;

    // First everybody believes both authorities, then shows what the new one signed, then believes the new one alone.
    [&gateway, &node]
        .iter()
        .for_each(|papers| papers.believe(&both));
    read_again(3).await;
    [&gateway, &node]
        .iter()
        .for_each(|papers| papers.show(&new.issue(name, false)));
    read_again(5).await;
    let now = Papers::new(name, &new.issue(name, false), &new.pem).tls();
    assert_eq!(ask(address, Some(&now)).await.as_deref(), Ok("n1"));
    [&gateway, &node]
        .iter()
        .for_each(|papers| papers.believe(&new.pem));
    read_again(7).await;
    // The old papers open nothing any more, also to whoever was let in with them.
    ask(address, Some(&before)).await.unwrap_err();
    until("the connection's age", async || {
        let_in.status(StatusRequest {}).await.is_err().then_some(())
    })
    .await;
    a_whole_ride(&city, "d2", "bob", 37.7755).await;
    is_over.store(true, Ordering::SeqCst);
    assert!(asking.await.unwrap() > 100);
    let city = Arc::into_inner(city).expect("nobody asks any more");
    city.end().await;
    stop.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_shows_papers_that_others_refuse_knows_it_before_they_tell() {
    log::listen();
    let name = "knows-itself.test";
    let (ours, strangers) = (Authority::new("ours"), Authority::new("strangers"));
    let city = City::start().await;
    let papers = Papers::new(name, &ours.issue(name, false), &ours.pem);
    let tls = papers.tls();
    let (node, stop) = answering(&city.node, Some(tls.clone())).await;
    let gateway = Papers::new(name, &ours.issue(name, false), &ours.pem).tls();
    let becomes = async |is_believed: bool| {
        until("the papers are read again", async || {
            ((tls.believed_until() > 0) == is_believed).then_some(())
        })
        .await;
    };
    for (renewed, remedy) in [
        (ours.issue("else.test", false), "of cluster.tls.name"),
        (ours.issue(name, true), "renew it"),
        (strangers.issue(name, false), "cluster.tls.ca_file belong"),
    ] {
        becomes(true).await;
        assert_eq!(ask(node, Some(&gateway)).await.as_deref(), Ok("n1"));
        papers.show(&renewed);
        // What `/metrics` says of the certificate's end: nobody believes it.
        becomes(false).await;
        logged(&["WARN", name, "others will refuse our", remedy]).await;
        ask(node, Some(&gateway)).await.unwrap_err();
        papers.show(&ours.issue(name, false));
    }
    becomes(true).await;
    stop.cancel();
    city.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn papers_that_cannot_be_used_are_named_before_a_port_opens() {
    let name = "unusable.test";
    let ours = Authority::new("ours");
    let (good, other) = (ours.issue(name, false), ours.issue(name, false));
    let said = |shown: (&str, &str), believed: &str| {
        let shown = (shown.0.to_owned(), shown.1.to_owned());
        let papers = Papers::new(name, &shown, believed);
        ClusterTls::read(&papers.config)
            .map(|_| ())
            .unwrap_err()
            .to_string()
    };
    let why = said((&good.0, &other.1), &ours.pem);
    assert!(
        why.contains("certificate and the key cannot be used"),
        "{why}"
    );
    let why = said((&good.0, "no key"), &ours.pem);
    assert!(why.contains("cluster.tls.key_file"), "{why}");
    let why = said((&good.0, &good.1), "nobody");
    assert!(
        why.contains("cluster.tls.ca_file") && why.contains("no certificate is in it"),
        "{why}"
    );
    let mut config = Papers::new(name, &good, &ours.pem).config.clone();
    config.certificate_file = "/nowhere/cert.pem".into();
    let why = ClusterTls::read(&config)
        .map(|_| ())
        .unwrap_err()
        .to_string();
    assert!(
        why.contains("cluster.tls.certificate_file = /nowhere/cert.pem"),
        "{why}"
    );
}
