//! Whose keys are believed, and until when? A provider of keys that is slow, wrong, dead or has new keys; people who are
//! shut out.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use cabrank_gateway::token::Role;
use futures_util::StreamExt;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use rcgen::KeyPair;
use reqwest::{Method, Response};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::{City, OPS, answered, refusal, until};

/// A provider's key: signs tokens, and stands in its set.
struct ProviderKey {
    kid: &'static str,
    pair: KeyPair,
}

impl ProviderKey {
    fn new(kid: &'static str) -> Self {
        let pair = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        Self { kid, pair }
    }

    fn jwk(&self) -> Value {
        // An uncompressed point: 4, x, y.
        let point = self.pair.public_key_raw();
        let (x, y) = point[1..].split_at(32);
        let text = |bytes| URL_SAFE_NO_PAD.encode(bytes);
        json!({"kty":"EC","crv":"P-256","use":"sig","alg":"ES256","kid":self.kid,"x":text(x),"y":text(y)})
    }

    /// A token of an operator.
    fn token(&self) -> String {
        let exp = jsonwebtoken::get_current_timestamp() + 600;
        let claims = json!({"iss":"https://id.example","aud":"cabrank","sub":"o","roles":["desk"],"exp":exp,"iat":exp - 600});
        let header = Header {
            kid: Some(self.kid.into()),
            ..Header::new(Algorithm::ES256)
        };
        let key = EncodingKey::from_ec_pem(self.pair.serialize_pem().as_bytes()).unwrap();
        encode(&header, &claims, &key).unwrap()
    }
}

fn set(keys: &[&ProviderKey]) -> String {
    let keys: Vec<Value> = keys.iter().map(|key| key.jwk()).collect();
    json!({"keys":keys}).to_string()
}

/// What the provider answers.
#[derive(Clone)]
enum Says {
    Body(String),
    Status(&'static str),
    /// A header, and then nothing more.
    Nothing,
    /// A body without an end.
    Endless,
}

/// A provider's server.
struct Provider {
    url: String,
    says: Arc<Mutex<Says>>,
    asked: Arc<AtomicUsize>,
}

impl Provider {
    async fn start(says: Says) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/keys", listener.local_addr().unwrap());
        let (says, asked) = (Arc::new(Mutex::new(says)), Arc::new(AtomicUsize::new(0)));
        let (saying, asking) = (says.clone(), asked.clone());
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let says = saying.lock().unwrap().clone();
                asking.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(answer(tcp, says));
            }
        });
        Self { url, says, asked }
    }

    fn say(&self, says: Says) {
        *self.says.lock().unwrap() = says;
    }
}

async fn answer(mut tcp: TcpStream, says: Says) {
    let mut request = [0; 1_024];
    let _ = tcp.read(&mut request).await;
    let ok = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n";
    let head = match &says {
        Says::Body(body) => format!("{ok}content-length: {}\r\n\r\n{body}", body.len()),
        Says::Status(status) => format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n"),
        Says::Nothing => format!("{ok}content-length: 1000\r\n\r\n"),
        Says::Endless => format!("{ok}\r\n"),
    };
    let _ = tcp.write_all(head.as_bytes()).await;
    match says {
        Says::Nothing => {
            let _ = tcp.read(&mut request).await;
        }
        Says::Endless => while tcp.write_all(&[b' '; 65_536]).await.is_ok() {},
        Says::Body(_) | Says::Status(_) => {}
    }
}

async fn city_of(provider: &Provider) -> City {
    City::with(|gateway, _| {
        let keys = &mut gateway.keys;
        keys.jwks_url = provider.url.clone();
        (keys.jwks_refresh_s, keys.jwks_retry_s) = (10, 1);
        keys.issuer = "https://id.example".into();
        keys.audience = vec!["cabrank".into()];
        keys.role_claim = "roles".into();
        keys.role_names = [("desk".to_owned(), Role::Ops)].into();
    })
    .await
}

/// A call that only an operator may make.
async fn call(city: &City, token: &str) -> Response {
    let near = city.call(Method::GET, "/v1/nearby?lat=37.77&lon=-122.42", None);
    near.bearer_auth(token).send().await.unwrap()
}

async fn status(city: &City, token: &str) -> u16 {
    call(city, token).await.status().as_u16()
}

async fn believed(city: &City, token: &str) {
    until("the token to be believed", async || {
        (status(city, token).await == 200).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_is_dead_slow_or_wrong_changes_nothing_and_new_keys_come_by_themselves() {
    let (old, new, other) = (
        ProviderKey::new("old"),
        ProviderKey::new("new"),
        ProviderKey::new("other"),
    );
    let provider = Provider::start(Says::Status("500 Broken")).await;
    let city = city_of(&provider).await;
    let (by_old, by_new, by_other) = (old.token(), new.token(), other.token());
    let waiting = refusal(call(&city, &by_old).await).await;
    waiting.is(503, "keys_not_here", "repeat the request after Retry-After");
    assert_eq!(waiting.retry_after_s, Some(1));
    assert_eq!(city.get("/readyz", None).await.status(), 503);

    provider.say(Says::Body(set(&[&old])));
    believed(&city, &by_old).await;
    assert_eq!(city.get("/readyz", None).await.status(), 200);

    let wrong = [
        Says::Status("500 Broken"),
        Says::Status("302 Found\r\nlocation: http://127.0.0.1:1/"),
        Says::Body("<html>".into()),
        Says::Body(r#"{"keys":[]}"#.into()),
        Says::Body(r#"{"keys":[{"kty":"oct","kid":"old","k":"c2VjcmV0"}]}"#.into()),
        Says::Nothing,
        Says::Endless,
    ];
    for says in wrong {
        provider.say(says);
        let before = provider.asked.load(Ordering::SeqCst);
        until("the provider to be asked twice", async || {
            // A key nobody knows makes the gateway ask; never more than once a second, whatever callers do.
            status(&city, &by_other).await;
            let began = Instant::now();
            assert_eq!(status(&city, &by_old).await, 200);
            assert!(
                began.elapsed() < Duration::from_secs(4),
                "no call waits for a fetch"
            );
            (provider.asked.load(Ordering::SeqCst) >= before + 2).then_some(())
        })
        .await;
    }

    provider.say(Says::Body(set(&[&old, &new])));
    believed(&city, &by_new).await;
    assert_eq!(status(&city, &by_old).await, 200);
    provider.say(Says::Body(set(&[&new])));
    until("the old key to be withdrawn", async || {
        status(&city, &by_other).await;
        (status(&city, &by_old).await == 401).then_some(())
    })
    .await;
    assert_eq!(status(&city, &by_new).await, 200);
    // The secret of the configuration counts for nothing beside a provider's keys.
    let minted = city.token(Role::Ops, "o");
    assert_eq!(status(&city, &minted).await, 401);
    city.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_keys_is_read_again_and_nonsense_in_it_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("keys.json");
    let (old, new) = (ProviderKey::new("old"), ProviderKey::new("new"));
    std::fs::write(&file, set(&[&old])).unwrap();
    let city = City::with(|gateway, _| {
        gateway.keys.jwks_file = file.display().to_string();
        gateway.keys.role_claim = "roles".into();
        gateway.keys.role_names = [("desk".to_owned(), Role::Ops)].into();
        gateway.timing.files_ms = 100;
    })
    .await;
    let (by_old, by_new) = (old.token(), new.token());
    assert_eq!(
        (status(&city, &by_old).await, status(&city, &by_new).await),
        (200, 401)
    );
    std::fs::write(&file, "{\"keys\":").unwrap();
    let deadline = Instant::now() + Duration::from_millis(500);
    until("some looks at the file", async || {
        assert_eq!(status(&city, &by_old).await, 200);
        (Instant::now() > deadline).then_some(())
    })
    .await;
    std::fs::write(&file, set(&[&new])).unwrap();
    believed(&city, &by_new).await;
    assert_eq!(status(&city, &by_old).await, 401);
    city.end().await;
}

async fn city_with_file(file: &Path) -> City {
    City::with(|gateway, _| {
        gateway.keys.revocations_file = file.display().to_string();
        gateway.timing.files_ms = 100;
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_shut_out_loses_session_and_token_at_every_gateway_until_the_next_login() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("revoked");
    let (city, other) = (city_with_file(&file).await, city_with_file(&file).await);
    let (mut d1, mut d2) = (city.driver("d1").await, city.driver("d2").await);
    let mut ann = other.rider("ann").await;
    let stolen = city.token(Role::Driver, "d1");
    let of_ann = other.token(Role::Rider, "ann");
    let service = Some((Role::Service, "partner"));
    let mut stream = city.get("/v1/events", service).await.bytes_stream();

    let revoke = async |role: &str, subject: &str| {
        let body = json!({"role":role,"subject":subject,"reason":"a lost phone"});
        answered(city.post("/v1/revocations", OPS, &body).await, 200).await
    };
    assert!(revoke("driver", "d1").await["until_s"].as_u64() > Some(1_700_000_000));
    assert_eq!(d1.closed().await.0, 4403);
    revoke("rider", "ann").await;
    assert_eq!(
        ann.closed().await.0,
        4403,
        "her socket is at another gateway"
    );
    revoke("service", "partner").await;
    while let Some(Ok(_)) = stream.next().await {}
    for gateway in [&city, &other] {
        until("the token to be refused", async || {
            let refused = gateway.socket("/v1/driver", Some(&stolen), None).await;
            refused.is_err().then_some(())
        })
        .await;
    }
    let near = city.call(Method::GET, "/v1/nearby?lat=37.77&lon=-122.42", None);
    let refused = near.bearer_auth(&of_ann).send().await.unwrap();
    refusal(refused)
        .await
        .is(401, "unauthorized", "log in again");
    // Nobody else is hurt, and a new login works: its token is issued in a later second.
    d2.online(&["economy"]).await;
    until("a new login", async || {
        let token = city.token(Role::Driver, "d1");
        city.socket("/v1/driver", Some(&token), None).await.ok()
    })
    .await;
    // The record says who and why; the old token comes back to life only when an operator says so.
    let record = std::fs::read_to_string(&file).unwrap();
    assert!(
        record.contains(r#""by":"ops/o","why":"a lost phone""#),
        "{record}"
    );
    let lift = city.call(Method::DELETE, "/v1/revocations/driver/d1", OPS);
    answered(lift.send().await.unwrap(), 200).await;
    city.socket("/v1/driver", Some(&stolen), None)
        .await
        .unwrap();

    let nobody = json!({"role":"king","subject":"d1","reason":"x"});
    refusal(city.post("/v1/revocations", OPS, &nobody).await)
        .await
        .is(422, "bad_body", "king");
    let nobody = json!({"role":"driver","subject":"a b","reason":"x"});
    refusal(city.post("/v1/revocations", OPS, &nobody).await)
        .await
        .is(400, "bad_request", "driver id");
    city.end().await;
    other.end().await;
    // A gateway that begins later knows it, too.
    let late = city_with_file(&file).await;
    let near = late.call(Method::GET, "/v1/nearby?lat=37.77&lon=-122.42", None);
    let issued_before = near.bearer_auth(stolen_rider(&late)).send().await.unwrap();
    assert_eq!(issued_before.status(), 401);
    late.end().await;
}

/// A token of ann's that does not say when it was issued.
fn stolen_rider(city: &City) -> String {
    let exp = jsonwebtoken::get_current_timestamp() + 600;
    let key = EncodingKey::from_secret(city.config.keys.secret.as_bytes());
    encode(
        &Header::default(),
        &json!({"sub":"ann","role":"rider","exp":exp}),
        &key,
    )
    .unwrap()
}
