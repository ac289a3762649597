//! Who is calling? JSON Web Tokens: minted for development, verified on every session and call.
//!
//! Holds: a [`Caller`] was signed by a key that is believed now, is not over, not revoked, and its subject is an id.
//! Signatures are compared in constant time by the library; a token is looked up among those believed by a keyed hash of
//! its whole text, so that how long it takes tells nothing about any other token.
//! Not here: which keys (`keys`), where they come from (`jwks`), who was revoked (`revoke`), what a role may do (`http`,
//! `socket`), where the token stands in a request (`access`).

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use cabrank_events::{DriverId, RiderId};
use jsonwebtoken::{Algorithm, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::sync::Notify;

mod remembered;

use remembered::Remembered;

use crate::keys::Key;
pub use crate::keys::{
    BadKeys, DEVELOPMENT_SECRET, DevelopmentSecretExposed, KeysConfig, NamedKey, SECRET_BYTES_MIN,
};

/// Tokens that live longer end their socket or stream after this all the same: no clock overflows.
pub(crate) const LIFE_MAX: Duration = Duration::from_secs(365 * 24 * 3_600);

/// What a caller may be.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Speaks for one driver: itself.
    Driver,
    /// Speaks for one rider: itself.
    Rider,
    /// A system of the business: may speak for any rider.
    Service,
    /// A person at the operator's desk.
    Ops,
}

impl Role {
    /// All roles.
    pub const ALL: [Role; 4] = [Self::Driver, Self::Rider, Self::Service, Self::Ops];

    /// The name in the token.
    pub fn name(self) -> &'static str {
        match self {
            Self::Driver => "driver",
            Self::Rider => "rider",
            Self::Service => "service",
            Self::Ops => "ops",
        }
    }
}

impl std::str::FromStr for Role {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|role| role.name() == text);
        known.ok_or_else(|| format!("role {text:?} is unknown: use driver, rider, service or ops"))
    }
}

/// Who is calling, proven.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Caller {
    /// A driver.
    Driver(DriverId),
    /// A rider.
    Rider(RiderId),
    /// A system; its name.
    Service(RiderId),
    /// A person at the desk; their name.
    Ops(RiderId),
}

impl Caller {
    /// `subject` in `role`; the subject must be an id.
    pub fn new(role: Role, subject: &str) -> Result<Self, cabrank_events::BadId> {
        let name = || RiderId::new(subject);
        Ok(match role {
            Role::Driver => Self::Driver(DriverId::new(subject)?),
            Role::Rider => Self::Rider(name()?),
            Role::Service => Self::Service(name()?),
            Role::Ops => Self::Ops(name()?),
        })
    }

    /// The id in the token.
    pub fn subject(&self) -> &str {
        match self {
            Self::Driver(id) => id.as_str(),
            Self::Rider(id) | Self::Service(id) | Self::Ops(id) => id.as_str(),
        }
    }

    /// The caller's role.
    pub fn role(&self) -> Role {
        match self {
            Self::Driver(_) => Role::Driver,
            Self::Rider(_) => Role::Rider,
            Self::Service(_) => Role::Service,
            Self::Ops(_) => Role::Ops,
        }
    }
}

/// A believed token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Whose it is.
    pub caller: Caller,
    /// When it is over, leeway included, in seconds since the Unix epoch.
    pub good_until_s: u64,
    /// When it was issued, if it says so.
    pub issued_s: Option<u64>,
}

impl Verified {
    fn is_over(&self) -> bool {
        self.good_until_s < now_s()
    }

    /// How long the token is still good, leeway included.
    pub fn remaining(&self) -> Duration {
        Duration::from_secs(self.good_until_s.saturating_sub(now_s()))
    }
}

/// Why a token is not believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadToken {
    /// Over.
    #[error("the token is over: get a new one")]
    Over,
    /// Another key, another algorithm, damaged, or a claim is missing.
    #[error(
        "the token is not valid here ({0}): get one signed with this server's key, with sub, role and exp"
    )]
    NotValid(String),
    /// It may be valid: the keys are not here.
    #[error(
        "the keys that check tokens are being fetched: repeat the request after Retry-After seconds"
    )]
    KeysNotHere,
}

pub(crate) fn now_s() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

/// Mints an HS256 token for `subject` in `role`, good for `ttl` from now.
pub fn mint(secret: &str, role: Role, subject: &str, ttl: Duration) -> Result<String, BadToken> {
    let keys = KeysConfig {
        secret: secret.into(),
        ..KeysConfig::default()
    };
    mint_for(&keys, None, role, subject, ttl)
}

/// Mints a token that a server with these keys believes: with the named secret, or with the nameless one, and with the
/// claims it asks for.
pub fn mint_for(
    keys: &KeysConfig,
    kid: Option<&str>,
    role: Role,
    subject: &str,
    ttl: Duration,
) -> Result<String, BadToken> {
    let cannot = |why: &str| Err(BadToken::NotValid(why.to_owned()));
    Caller::new(role, subject).map_err(|error| BadToken::NotValid(format!("sub: {error}")))?;
    let secret = match kid {
        None if keys.believes_secret() => &keys.secret,
        None => {
            return cannot(
                "keys.secret is not believed beside public keys: name a key of keys.more",
            );
        }
        Some(kid) => {
            let named = keys.more.iter().find(|key| key.kid == kid);
            match named.filter(|key| key.algorithm == "HS256") {
                Some(named) => &named.key,
                None => return cannot("keys.more has no such key with the algorithm HS256"),
            }
        }
    };
    let now = now_s();
    let name = |ours: Role| {
        let known = keys.role_names.iter().find(|(_, role)| **role == ours);
        known.map_or(ours.name(), |(theirs, _)| theirs.as_str())
    };
    let mut claims = Map::new();
    let mut put = |key: &str, value: Value| claims.insert(key.to_owned(), value);
    put(&keys.subject_claim, subject.into());
    put(&keys.role_claim, name(role).into());
    put("iat", now.into());
    put("exp", now.saturating_add(ttl.as_secs()).into());
    if !keys.issuer.is_empty() {
        put("iss", keys.issuer.clone().into());
    }
    if let Some(audience) = keys.audience.first() {
        put("aud", audience.clone().into());
    }
    let header = Header {
        kid: kid.map(str::to_owned),
        ..Header::new(Algorithm::HS256)
    };
    jsonwebtoken::encode(
        &header,
        &claims,
        &EncodingKey::from_secret(secret.as_bytes()),
    )
    .map_err(|error| BadToken::NotValid(error.to_string()))
}

/// What [`TokenVerifier`] reads in a token's claims.
pub(crate) struct Reading {
    validation: Validation,
    subject_claim: String,
    role_claim: String,
    role_names: Vec<(String, Role)>,
    leeway_s: u64,
}

impl Reading {
    pub(crate) fn new(keys: &KeysConfig) -> Self {
        let mut validation = Validation::new(Algorithm::HS256);
        validation.leeway = keys.leeway_s;
        validation.validate_nbf = true;
        let mut required = vec!["exp"];
        if !keys.issuer.is_empty() {
            validation.set_issuer(&[&keys.issuer]);
            required.push("iss");
        }
        validation.validate_aud = !keys.audience.is_empty();
        if validation.validate_aud {
            validation.set_audience(&keys.audience);
            required.push("aud");
        }
        validation.set_required_spec_claims(&required);
        let ours = || {
            Role::ALL
                .into_iter()
                .map(|role| (role.name().to_owned(), role))
        };
        let theirs = keys
            .role_names
            .iter()
            .map(|(name, role)| (name.clone(), *role));
        let role_names = if keys.role_names.is_empty() {
            ours().collect()
        } else {
            theirs.collect()
        };
        Self {
            validation,
            subject_claim: keys.subject_claim.clone(),
            role_claim: keys.role_claim.clone(),
            role_names,
            leeway_s: keys.leeway_s,
        }
    }

    pub(crate) fn verified(&self, claims: &Map<String, Value>) -> Result<Verified, BadToken> {
        let bad = |why: String| BadToken::NotValid(why);
        let subject = claims.get(&self.subject_claim).and_then(Value::as_str);
        let subject = subject.ok_or_else(|| bad(format!("no claim {}", self.subject_claim)))?;
        let caller = Caller::new(self.role(claims)?, subject);
        let seconds = |name: &str| {
            claims
                .get(name)
                .and_then(Value::as_f64)
                .map(|s| s.max(0.0) as u64)
        };
        let expires_s = seconds("exp").ok_or_else(|| bad("no claim exp".into()))?;
        Ok(Verified {
            caller: caller.map_err(|error| bad(format!("{}: {error}", self.subject_claim)))?,
            good_until_s: expires_s.saturating_add(self.leeway_s),
            issued_s: seconds("iat"),
        })
    }

    /// The one role the token names. With several nobody knows which was meant.
    fn role(&self, claims: &Map<String, Value>) -> Result<Role, BadToken> {
        let claim = &self.role_claim;
        let bad = |why: &str| Err(BadToken::NotValid(format!("claim {claim}: {why}")));
        let mut parts = claim.split('.');
        // Providers put dots into names, too (`https://id.example/role`): the whole name comes first.
        let value = claims.get(claim).or_else(|| {
            let first = claims.get(parts.next()?)?;
            parts.try_fold(first, |value, part| value.get(part))
        });
        let texts: Vec<&str> = match value {
            None => return bad("it is missing"),
            Some(Value::Array(list)) => list.iter().filter_map(Value::as_str).collect(),
            Some(value) => value.as_str().into_iter().collect(),
        };
        let known = self.role_names.iter();
        let mut roles = known
            .filter(|(name, _)| texts.contains(&name.as_str()))
            .map(|(_, role)| *role);
        let Some(role) = roles.next() else {
            return bad("it names none of our roles");
        };
        if roles.any(|other| other != role) {
            return bad("it names more than one of our roles");
        }
        Ok(role)
    }
}

/// The keys of a set that somebody else publishes.
#[derive(Default)]
struct Fetched {
    keys: Vec<Key>,
    /// When they were fetched; none before the first time, and again after they have become stale.
    at: Option<Instant>,
}

/// Believes tokens of the keys that are good now.
///
/// A token that was believed is remembered, because whoever calls again brings the same one: looking it up
/// costs far less than checking its signature. It is checked anew when the set of keys has changed; who is revoked and what
/// a person may do is asked on each call.
pub struct TokenVerifier {
    own: Vec<Key>,
    has_set: bool,
    /// A set younger than this is not fetched again for the sake of one token.
    retry: Duration,
    fetched: RwLock<Fetched>,
    /// Counts the changes of `fetched`.
    generation: AtomicU64,
    /// A token named a key that is not here.
    wanted: Notify,
    reading: Reading,
    /// With the `generation` it was checked in.
    believed: Remembered<(u64, Verified)>,
}

impl TokenVerifier {
    /// A verifier for the configured keys. Those of a set come by `replace_set`.
    pub fn new(keys: &KeysConfig) -> Result<Self, BadKeys> {
        Ok(Self {
            own: keys.own_keys()?,
            has_set: keys.has_set(),
            retry: Duration::from_secs(keys.jwks_retry_s),
            fetched: RwLock::default(),
            generation: AtomicU64::new(0),
            wanted: Notify::new(),
            reading: Reading::new(keys),
            believed: Remembered::new(Instant::now()),
        })
    }

    /// Is there a key to check tokens with?
    pub fn is_ready(&self) -> bool {
        !self.has_set || !self.own.is_empty() || self.fetched_at().is_some()
    }

    /// When the set of keys in use was fetched.
    pub(crate) fn fetched_at(&self) -> Option<Instant> {
        self.fetched
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .at
    }

    /// From now on these keys are believed, and those of the set before are not. Tokens that were believed are checked
    /// anew. With `at` none it is known that there are none.
    pub(crate) fn replace_set(&self, keys: Vec<Key>, at: Option<Instant>) {
        let mut fetched = self.fetched.write().unwrap_or_else(PoisonError::into_inner);
        *fetched = Fetched { keys, at };
        // Within the lock: whoever checks a token with the new keys reads the new number. Relaxed: the lock orders it.
        self.generation.fetch_add(1, Ordering::Relaxed);
        drop(fetched);
        self.believed.clear();
    }

    /// Resolves when a token has named a key that is not in the set.
    pub(crate) async fn wanted(&self) {
        self.wanted.notified().await;
    }

    /// Checks signature, algorithm and time, and reads who it is.
    pub fn verify(&self, token: &str) -> Result<Verified, BadToken> {
        // Relaxed: a change that comes at the same time may count as later.
        let generation = self.generation.load(Ordering::Relaxed);
        if let Some((checked_in, known)) = self.believed.get(token, Instant::now())
            && checked_in == generation
        {
            return if known.is_over() {
                Err(BadToken::Over)
            } else {
                Ok(known)
            };
        }
        let (generation, verified) = self.check(token)?;
        let known = (generation, verified.clone());
        self.believed.put(token, known, Instant::now());
        Ok(verified)
    }

    fn check(&self, token: &str) -> Result<(u64, Verified), BadToken> {
        let not_valid = |error: jsonwebtoken::errors::Error| BadToken::NotValid(error.to_string());
        let header = jsonwebtoken::decode_header(token).map_err(not_valid)?;
        let named = |key: &&Key| header.kid.is_some() && key.kid == header.kid;
        if let Some(own) = self.own.iter().find(named) {
            let generation = self.generation.load(Ordering::Relaxed);
            return Ok((generation, self.check_with(own, token)?));
        }
        if self.has_set {
            let fetched = self.fetched.read().unwrap_or_else(PoisonError::into_inner);
            let generation = self.generation.load(Ordering::Relaxed);
            let found = match &header.kid {
                Some(_) => fetched.keys.iter().find(named),
                // Without a name only a set of one leaves no doubt.
                None => fetched.keys.first().filter(|_| fetched.keys.len() == 1),
            };
            if let Some(key) = found {
                return Ok((generation, self.check_with(key, token)?));
            }
            let Some(at) = fetched.at else {
                self.wanted.notify_one();
                return Err(BadToken::KeysNotHere);
            };
            if header.kid.is_some() && at.elapsed() >= self.retry {
                // Perhaps the provider has a new key.
                self.wanted.notify_one();
                return Err(BadToken::KeysNotHere);
            }
        }
        // A name nobody knows is ignored where there is a nameless key: issuers name keys that we need no names for.
        let nameless = self.own.iter().find(|key| key.kid.is_none());
        let why = || BadToken::NotValid("it is signed with a key that is not known here".into());
        let verified = self.check_with(nameless.ok_or_else(why)?, token)?;
        Ok((self.generation.load(Ordering::Relaxed), verified))
    }

    fn check_with(&self, key: &Key, token: &str) -> Result<Verified, BadToken> {
        use jsonwebtoken::errors::ErrorKind;
        let mut validation = self.reading.validation.clone();
        validation.algorithms.clone_from(&key.algorithms);
        let decoded = jsonwebtoken::decode::<Map<String, Value>>(token, &key.key, &validation);
        let data = decoded.map_err(|error| match error.kind() {
            ErrorKind::ExpiredSignature => BadToken::Over,
            _ => BadToken::NotValid(error.to_string()),
        })?;
        self.reading.verified(&data.claims)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const HOUR: Duration = Duration::from_secs(3_600);

    fn verifier(secret: &str) -> TokenVerifier {
        TokenVerifier::new(&KeysConfig {
            secret: secret.into(),
            ..KeysConfig::default()
        })
        .unwrap()
    }

    /// A token with just these claims, signed with the development secret.
    fn token(claims: &Value, kid: Option<&str>) -> String {
        let header = Header {
            kid: kid.map(str::to_owned),
            ..Header::new(Algorithm::HS256)
        };
        let key = EncodingKey::from_secret(DEVELOPMENT_SECRET.as_bytes());
        jsonwebtoken::encode(&header, claims, &key).unwrap()
    }

    #[track_caller]
    fn not_valid(verified: Result<Verified, BadToken>, why: &str) {
        match verified {
            Err(BadToken::NotValid(said)) => assert!(said.contains(why), "{said}"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_minted_token_says_who_it_is() {
        let verifier = verifier(DEVELOPMENT_SECRET);
        for role in Role::ALL {
            let token = mint(DEVELOPMENT_SECRET, role, "p7", HOUR).unwrap();
            let verified = verifier.verify(&token).unwrap();
            assert_eq!(verified.caller.role(), role);
            assert!(verified.remaining() > Duration::from_secs(3_590));
            assert!(verified.issued_s.is_some());
        }
        assert!(mint(DEVELOPMENT_SECRET, Role::Driver, "no id", HOUR).is_err());
    }

    #[test]
    fn another_secret_another_algorithm_and_an_old_token_are_not_believed() {
        let verifier = verifier(DEVELOPMENT_SECRET);
        let other = mint("another secret of more than 32 bytes", Role::Ops, "o", HOUR).unwrap();
        not_valid(verifier.verify(&other), "InvalidSignature");
        // {"alg":"none"} . {"sub":"o","role":"ops","exp":9999999999} without a signature.
        let none = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJvIiwicm9sZSI6Im9wcyIsImV4cCI6OTk5OTk5OTk5OX0.";
        not_valid(verifier.verify(none), "");
        let old = token(&json!({"sub":"o","role":"ops","exp":now_s() - 60}), None);
        assert_eq!(verifier.verify(&old), Err(BadToken::Over));
        not_valid(verifier.verify(""), "");
    }

    #[test]
    fn clocks_may_differ_by_the_leeway_and_no_more() {
        let keys = KeysConfig {
            leeway_s: 30,
            ..KeysConfig::default()
        };
        let verifier = TokenVerifier::new(&keys).unwrap();
        let at = |exp: u64, nbf: u64| {
            let claims = json!({"sub":"o","role":"ops","exp":exp,"nbf":nbf});
            verifier.verify(&token(&claims, None))
        };
        let now = now_s();
        assert!(at(now - 20, now - 60).is_ok(), "just over, by their clock");
        assert_eq!(at(now - 40, now - 60), Err(BadToken::Over));
        assert!(at(now + 60, now + 20).is_ok(), "not yet good, by our clock");
        not_valid(at(now + 90, now + 60), "ImmatureSignature");
    }

    #[test]
    fn a_remembered_token_is_believed_until_it_is_over_and_no_other_with_it() {
        let verifier = verifier(DEVELOPMENT_SECRET);
        let token = mint(DEVELOPMENT_SECRET, Role::Rider, "r1", HOUR).unwrap();
        let first = verifier.verify(&token).unwrap();
        assert_eq!(verifier.verify(&token), Ok(first));
        assert_eq!(verifier.believed.len(), 1);
        let forged = format!("{}x", &token[..token.len() - 1]);
        not_valid(verifier.verify(&forged), "");
        let known = verifier.believed.len();
        assert_eq!(known, 1, "what is not believed is not kept");
        let (generation, mut kept) = verifier.believed.get(&token, Instant::now()).unwrap();
        kept.good_until_s = now_s() - 1;
        verifier
            .believed
            .put(&token, (generation, kept), Instant::now());
        assert_eq!(verifier.verify(&token), Err(BadToken::Over));
    }

    #[test]
    fn with_a_public_key_a_token_signed_with_the_key_as_a_secret_is_not_believed() {
        let public = "-----BEGIN PUBLIC KEY-----\n\
            MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----\n";
        let keys = KeysConfig {
            public_key_pem: public.into(),
            public_key_algorithm: "EdDSA".into(),
            ..KeysConfig::default()
        };
        let verifier = TokenVerifier::new(&keys).unwrap();
        for secret in [public, DEVELOPMENT_SECRET] {
            let forged = mint(secret, Role::Ops, "o", HOUR).unwrap();
            not_valid(verifier.verify(&forged), "");
        }
    }

    #[test]
    fn a_new_key_comes_while_tokens_of_the_old_one_are_still_about() {
        let named = |kid: &str, key: &str| NamedKey {
            kid: kid.into(),
            algorithm: "HS256".into(),
            key: key.into(),
        };
        let (old, new) = (
            "the old secret of more than 32 bytes",
            "the new secret of more than 32 bytes",
        );
        let both = KeysConfig {
            more: vec![named("old", old), named("new", new)],
            ..KeysConfig::default()
        };
        let only_new = KeysConfig {
            more: vec![named("new", new)],
            ..KeysConfig::default()
        };
        let of =
            |keys: &KeysConfig, kid: &str| mint_for(keys, Some(kid), Role::Ops, "o", HOUR).unwrap();
        let (by_old, by_new) = (of(&both, "old"), of(&both, "new"));
        let verifier = TokenVerifier::new(&both).unwrap();
        assert!(verifier.verify(&by_old).is_ok() && verifier.verify(&by_new).is_ok());
        let verifier = TokenVerifier::new(&only_new).unwrap();
        assert!(verifier.verify(&by_new).is_ok());
        not_valid(verifier.verify(&by_old), "InvalidSignature");
        // A name is a promise: another key's signature under it counts for nothing.
        let borrowed = token(
            &json!({"sub":"o","role":"ops","exp":now_s() + 60}),
            Some("new"),
        );
        not_valid(verifier.verify(&borrowed), "InvalidSignature");
        assert!(mint_for(&both, Some("none"), Role::Ops, "o", HOUR).is_err());
    }

    #[test]
    fn a_providers_claims_are_read_as_configured() {
        let keys = KeysConfig {
            issuer: "https://id.example/".into(),
            audience: vec!["cabrank".into(), "fleet".into()],
            subject_claim: "driver_id".into(),
            role_claim: "realm_access.roles".into(),
            role_names: [
                ("fleet-driver".to_owned(), Role::Driver),
                ("desk".to_owned(), Role::Ops),
            ]
            .into(),
            ..KeysConfig::default()
        };
        let verifier = TokenVerifier::new(&keys).unwrap();
        let good = json!({"iss":"https://id.example/","aud":["fleet","else"],"sub":"idp|4711","driver_id":"d7",
            "realm_access":{"roles":["offline_access","fleet-driver"]},"exp":now_s() + 60,"iat":now_s()});
        let verified = verifier.verify(&token(&good, None)).unwrap();
        assert_eq!(verified.caller, Caller::new(Role::Driver, "d7").unwrap());
        let changed = |change: &dyn Fn(&mut Value)| {
            let mut claims = good.clone();
            change(&mut claims);
            verifier.verify(&token(&claims, None))
        };
        not_valid(
            changed(&|claims| claims["iss"] = json!("https://id.example.evil/")),
            "InvalidIssuer",
        );
        not_valid(changed(&|claims| claims["iss"] = json!(null)), "iss");
        not_valid(
            changed(&|claims| claims["aud"] = json!("else")),
            "InvalidAudience",
        );
        not_valid(changed(&|claims| claims["aud"] = json!(null)), "aud");
        not_valid(
            changed(&|claims| claims["driver_id"] = json!(7)),
            "driver_id",
        );
        not_valid(
            changed(&|claims| claims["driver_id"] = json!("a b")),
            "driver_id",
        );
        let roles =
            |roles: Value| changed(&move |claims| claims["realm_access"]["roles"] = roles.clone());
        not_valid(roles(json!(["driver", "ops"])), "names none of our roles");
        not_valid(roles(json!(["fleet-driver", "desk"])), "more than one");
        assert_eq!(roles(json!("desk")).unwrap().caller.role(), Role::Ops);
        not_valid(
            changed(&|claims| claims["realm_access"] = json!([])),
            "missing",
        );
        // What we mint for such a server it believes.
        let flat = KeysConfig {
            role_claim: "https://id.example/role".into(),
            ..keys
        };
        let minted = mint_for(&flat, None, Role::Driver, "d7", HOUR).unwrap();
        let verified = TokenVerifier::new(&flat).unwrap().verify(&minted).unwrap();
        assert_eq!(verified.caller.role(), Role::Driver);
    }

    #[test]
    fn a_set_that_changes_takes_belief_back() {
        let keys = KeysConfig {
            jwks_file: "keys.json".into(),
            ..KeysConfig::default()
        };
        let verifier = TokenVerifier::new(&keys).unwrap();
        let token = |kid| token(&json!({"sub":"o","role":"ops","exp":now_s() + 60}), kid);
        let key = |kid: &str| Key {
            kid: Some(kid.into()),
            key: jsonwebtoken::DecodingKey::from_secret(DEVELOPMENT_SECRET.as_bytes()),
            algorithms: vec![Algorithm::HS256],
        };
        assert!(!verifier.is_ready());
        assert_eq!(
            verifier.verify(&token(Some("a"))),
            Err(BadToken::KeysNotHere)
        );
        let now = Some(Instant::now());
        verifier.replace_set(vec![key("a"), key("b")], now);
        assert!(verifier.is_ready() && verifier.verify(&token(Some("a"))).is_ok());
        not_valid(verifier.verify(&token(None)), "not known here");
        not_valid(verifier.verify(&token(Some("c"))), "not known here");
        verifier.replace_set(vec![key("b")], now);
        not_valid(verifier.verify(&token(Some("a"))), "not known here");
        assert!(
            verifier.verify(&token(None)).is_ok(),
            "the only one needs no name"
        );
        // A set that is not quite fresh may lack the provider's newest key.
        let earlier = Instant::now().checked_sub(verifier.retry);
        verifier.replace_set(vec![key("b")], earlier);
        assert_eq!(
            verifier.verify(&token(Some("c"))),
            Err(BadToken::KeysNotHere)
        );
        verifier.replace_set(Vec::new(), None);
        assert_eq!(
            verifier.verify(&token(Some("b"))),
            Err(BadToken::KeysNotHere)
        );
    }
}
