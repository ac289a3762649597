//! A PostgreSQL that speaks TLS alone and asks for certificates: the right ones open it, wrong ones on either side are named,
//! and new ones count without a restart. Where no server is installed it says that it did not run (`CI=true`: it fails).

#[allow(dead_code, reason = "each crate uses its own part of this")]
#[path = "../../tests/support/authority.rs"]
mod authority;
mod support;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use authority::Authority;
use cabrank_services::database::{Database, Step};
use support::postgres::{Papers, Server};

const STEPS: &[Step] = &[(
    2,
    "tally",
    "CREATE TABLE tally (n BIGINT NOT NULL); INSERT INTO tally (n) VALUES (7);",
)];
const PATIENCE: Duration = Duration::from_secs(20);

/// What a server shows that believes whom this authority signed.
fn server(authority: &Authority, (certificate, key): (String, String)) -> Papers {
    Papers {
        certificate,
        key,
        authority: authority.pem.clone(),
    }
}

fn at_home(authority: &Authority) -> Papers {
    server(authority, authority.issue("127.0.0.1", false))
}

/// The files of a client.
struct Client {
    dir: tempfile::TempDir,
}

impl Client {
    fn new(believed: &Authority, shown: &(String, String)) -> Client {
        let dir = tempfile::tempdir().unwrap();
        let client = Client { dir };
        client.put(believed, shown);
        client
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn put(&self, believed: &Authority, (certificate, key): &(String, String)) {
        std::fs::write(self.file("ca.pem"), &believed.pem).unwrap();
        std::fs::write(self.file("client.pem"), certificate).unwrap();
        std::fs::write(self.file("client.key"), key).unwrap();
    }

    /// How it comes to the database at `url`.
    fn to(&self, url: &str) -> String {
        let file = |name| self.file(name).display().to_string();
        format!(
            "{url}?sslmode=verify-full&sslrootcert={}&sslcert={}&sslkey={}",
            file("ca.pem"),
            file("client.pem"),
            file("client.key")
        )
    }
}

async fn tally(database: &Database) -> i64 {
    let query = sqlx::query_scalar("SELECT n FROM tally");
    query.fetch_one(database.pool()).await.unwrap()
}

/// Opens it, or says why not; nothing of it stays open.
async fn opens(url: &str) -> Result<(), String> {
    let opened = tokio::time::timeout(PATIENCE, Database::open(url, STEPS)).await;
    match opened.expect("an answer") {
        Ok(database) => {
            database.close().await;
            Ok(())
        }
        Err(why) => Err(why.to_string()),
    }
}

/// Why it does not open; every such refusal says where to look.
async fn refusal(url: &str) -> String {
    let why = opens(url).await.expect_err("it opens");
    assert!(why.contains("look at sslmode, sslrootcert"), "{why}");
    why
}

/// The server has been told to read its files again; until it has, it lets in. Then the refusal has this word.
async fn refused_at_last(url: &str, word: &str) {
    let deadline = Instant::now() + PATIENCE;
    while opens(url).await.is_ok() {
        assert!(Instant::now() < deadline, "{word}: it still lets in");
    }
    let why = refusal(url).await;
    assert!(why.contains(word), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn right_papers_open_the_database_and_wrong_ones_on_either_side_are_named() {
    let (ours, strangers) = (Authority::new("ours"), Authority::new("strangers"));
    let Some(server) = Server::secured(&at_home(&ours)) else {
        return;
    };
    let url = server.maker()("secured");
    let shown = ours.issue("cabrank", false);
    let client = Client::new(&ours, &shown);
    let neighbour = Database::open(&client.to(&url), STEPS).await.unwrap();
    assert_eq!(tally(&neighbour).await, 7);

    // The client's side: no TLS, no certificate, a stranger's, one that is over, somebody else's.
    let why = refusal(&format!("{url}?sslmode=disable")).await;
    assert!(why.contains("no encryption"), "{why}");
    let believes = format!(
        "{url}?sslmode=verify-full&sslrootcert={}",
        client.file("ca.pem").display()
    );
    let why = refusal(&believes).await;
    assert!(why.contains("certificate"), "{why}");
    for shown in [
        strangers.issue("cabrank", false),
        ours.issue("cabrank", true),
        ours.issue("somebody", false),
    ] {
        refusal(&Client::new(&ours, &shown).to(&url)).await;
    }
    // The server's side: an authority that is not believed, another name, a certificate that is over.
    let why = refusal(&Client::new(&strangers, &shown).to(&url)).await;
    assert!(why.contains("UnknownIssuer"), "{why}");
    for (papers, word) in [
        (ours.issue("else.test", false), "not valid for name"),
        (ours.issue("127.0.0.1", true), "expired"),
    ] {
        server.show(&self::server(&ours, papers));
        refused_at_last(&client.to(&url), word).await;
    }
    // Who was let in before is served all the while.
    assert_eq!(tally(&neighbour).await, 7);
    neighbour.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn new_connections_of_an_open_database_show_and_believe_new_papers() {
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    let Some(server) = Server::secured(&at_home(&old)) else {
        return;
    };
    let url = server.maker()("renewed");
    let client = Client::new(&old, &old.issue("cabrank", false));
    let database = Database::open(&client.to(&url), STEPS).await.unwrap();
    // All connections that the pool has are taken, so that the next one is new.
    let mut taken = Vec::new();
    while database.pool().size() > u32::try_from(taken.len()).unwrap() {
        taken.push(database.pool().acquire().await.unwrap());
    }
    assert!(!taken.is_empty());
    server.show(&at_home(&new));
    client.put(&new, &new.issue("cabrank", false));
    // Whoever still has the old papers does not get in.
    let late = Client::new(&old, &old.issue("cabrank", false));
    refused_at_last(&late.to(&url), "UnknownIssuer").await;
    let mut fresh = database.pool().acquire().await.unwrap();
    let ask = |sql: &'static str| sqlx::query_scalar::<_, i64>(sql);
    assert_eq!(
        ask("SELECT n FROM tally")
            .fetch_one(&mut *fresh)
            .await
            .unwrap(),
        7
    );
    // What was open stays as it was.
    let open = &mut **taken.last_mut().unwrap();
    assert_eq!(ask("SELECT n FROM tally").fetch_one(open).await.unwrap(), 7);
    drop((fresh, taken));
    database.close().await;
}
