//! Which keys are believed, and how is a token read? What the configuration says, and sets of keys (JWKS, RFC 7517).
//!
//! Holds: a key is good for its own algorithms only, so that nobody signs with a public key as if it were a secret; a
//! set of keys that others publish never brings shared secrets. Not here: where a set comes from and how long it is
//! good (`jwks`), what is in a token (`token`).

use std::collections::BTreeMap;
use std::net::SocketAddr;

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use serde::{Deserialize, Serialize};

use crate::token::Role;

/// Known to everybody: for development on the own machine only.
pub const DEVELOPMENT_SECRET: &str = "cabrank development secret, known to everybody";
/// Shorter secrets can be guessed from one token.
pub const SECRET_BYTES_MIN: usize = 32;
/// Keys in one set; more are not looked at.
pub const SET_KEYS_MAX: usize = 64;

/// Which tokens are believed. The nameless key is `secret` (HS256) or, if given, `public_key_pem`. More keys have names
/// (`kid`): a token that names one is checked with that one alone. `jwks_file` or `jwks_url` brings the keys of an
/// OpenID Connect provider; then, and with a public key, `secret` is not believed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct KeysConfig {
    /// The shared secret of HS256, at least 32 bytes. The default is the development secret, which is refused on an
    /// address that others can reach.
    pub secret: String,
    /// A public key in PEM; empty for none. Takes precedence over `secret`.
    pub public_key_pem: String,
    /// How the public key's tokens are signed: `RS256`, `ES256` or `EdDSA`.
    pub public_key_algorithm: String,
    /// Keys with a name beside the nameless one, so that a new key can come while tokens of the old one are still about:
    /// `[{ kid = "2026-12", algorithm = "HS256", key = "a secret of 32 bytes, or a public key in PEM" }]`. At most 64.
    pub more: Vec<NamedKey>,
    /// A file with a set of public keys (JWKS); empty for none. Read again when it has changed.
    pub jwks_file: String,
    /// Where a set of public keys (JWKS) is fetched, `https://` (`http://` on the own machine only); empty for none.
    pub jwks_url: String,
    /// Certificates in PEM that the server of `jwks_url` is known by, as a file; empty takes the system's.
    pub jwks_ca_file: String,
    /// How often the set of `jwks_url` is fetched, seconds (10 to 86,400).
    pub jwks_refresh_s: u64,
    /// After a failed fetch, or when a token names a key that is not in the set, it is fetched again at most so often,
    /// seconds (1 to 3,600).
    pub jwks_retry_s: u64,
    /// How long a fetched set stays good while it cannot be fetched again, seconds (60 to 2,592,000). Longer lives through
    /// longer outages of the provider, shorter ends sooner what the provider has withdrawn.
    pub jwks_stale_s: u64,
    /// Whom tokens must come from (`iss`); empty does not look.
    pub issuer: String,
    /// Whom tokens must be for: one of these must be in `aud`; empty does not look.
    pub audience: Vec<String>,
    /// The claim that names the person, an id of 1 to 64 letters, digits or `. _ - : @`.
    pub subject_claim: String,
    /// The claim with the role, text or a list of texts: its name, or a path with dots (`realm_access.roles`). Exactly one
    /// of its texts must be a role.
    pub role_claim: String,
    /// How far the clocks of token issuers may be off, seconds (0 to 300).
    pub leeway_s: u64,
    /// Where revocations are kept, so that they outlive the process and reach all gateways that share the file; empty
    /// keeps them in memory.
    pub revocations_file: String,
    /// Accept the development secret on any address. Everybody can then be everybody.
    pub allow_development_secret: bool,
    /// What the provider calls our roles: `{ "fleet-driver" = "driver" }`. Empty takes our own names.
    pub role_names: BTreeMap<String, Role>,
}

/// A key with a name.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NamedKey {
    /// Its name in the header of tokens.
    pub kid: String,
    /// `HS256`, `RS256`, `ES256` or `EdDSA`.
    pub algorithm: String,
    /// The secret, or the public key in PEM.
    pub key: String,
}

impl Default for KeysConfig {
    fn default() -> Self {
        Self {
            secret: DEVELOPMENT_SECRET.into(),
            public_key_pem: String::new(),
            public_key_algorithm: "RS256".into(),
            more: Vec::new(),
            jwks_file: String::new(),
            jwks_url: String::new(),
            jwks_ca_file: String::new(),
            jwks_refresh_s: 300,
            jwks_retry_s: 5,
            jwks_stale_s: 86_400,
            issuer: String::new(),
            audience: Vec::new(),
            subject_claim: "sub".into(),
            role_claim: "role".into(),
            leeway_s: 5,
            revocations_file: String::new(),
            allow_development_secret: false,
            role_names: BTreeMap::new(),
        }
    }
}

const HIDDEN: &str = "(hidden)";

/// The secrets never reach a log.
impl std::fmt::Debug for KeysConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kids: Vec<&str> = self.more.iter().map(|key| key.kid.as_str()).collect();
        f.debug_struct("KeysConfig")
            .field("secret", &HIDDEN)
            .field("public_key_pem", &self.public_key_pem)
            .field("public_key_algorithm", &self.public_key_algorithm)
            .field("more", &kids)
            .field("jwks_file", &self.jwks_file)
            .field("jwks_url", &self.jwks_url)
            .field("issuer", &self.issuer)
            .field("audience", &self.audience)
            .field("allow_development_secret", &self.allow_development_secret)
            .finish_non_exhaustive()
    }
}

/// The development secret on an address others can reach.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{listen} can be reached by others and keys.secret is the development secret, which everybody knows: set \
     keys.secret to at least 32 random bytes (or keys.public_key_pem), listen on 127.0.0.1, or set \
     keys.allow_development_secret"
)]
pub struct DevelopmentSecretExposed {
    /// The address.
    pub listen: SocketAddr,
}

/// Why no verifier can be made from the configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadKeys {
    /// A short secret is no secret.
    #[error("keys.secret has {bytes} bytes: use at least 32 random ones")]
    ShortSecret {
        /// How many it has.
        bytes: usize,
    },
    /// Not one of ours.
    #[error("keys.public_key_algorithm is {found:?}: use RS256, ES256 or EdDSA")]
    UnknownAlgorithm {
        /// What stands there.
        found: String,
    },
    /// The PEM does not hold a public key of that algorithm.
    #[error("keys.public_key_pem does not hold a public key for {algorithm}: {why}")]
    BadPem {
        /// Of which algorithm.
        algorithm: String,
        /// What the library says.
        why: String,
    },
    /// One of the named keys.
    #[error("keys.more, kid {kid:?}: {why}")]
    BadNamedKey {
        /// Which.
        kid: String,
        /// What is wrong, and what to write instead.
        why: String,
    },
    /// Any other of the knobs.
    #[error("keys.{key} is {value}: {remedy}")]
    BadValue {
        /// Which knob.
        key: &'static str,
        /// What stands there.
        value: String,
        /// What to write instead.
        remedy: String,
    },
}

/// Why a text is no set of keys.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadSet {
    /// Not JSON, or not `{"keys":[...]}`.
    #[error("it is no JSON Web Key Set: {0}")]
    NotASet(String),
    /// Nothing in it can check a token.
    #[error(
        "it holds no public key of a known kind (RSA, EC P-256 or P-384, Ed25519) for signatures"
    )]
    Empty,
}

/// A key and what it is good for.
pub struct Key {
    /// Its name.
    pub kid: Option<String>,
    /// The key.
    pub key: DecodingKey,
    /// The only algorithms it checks.
    pub algorithms: Vec<Algorithm>,
}

impl KeysConfig {
    /// Is a set of keys fetched or read?
    pub fn has_set(&self) -> bool {
        !self.jwks_file.is_empty() || !self.jwks_url.is_empty()
    }

    /// Is `secret` believed?
    pub fn believes_secret(&self) -> bool {
        self.public_key_pem.is_empty() && !self.has_set()
    }

    /// The same with every secret hidden, to be shown.
    pub fn hidden(&self) -> Self {
        let mut shown = self.clone();
        if shown.secret != DEVELOPMENT_SECRET {
            shown.secret = HIDDEN.into();
        }
        for named in &mut shown.more {
            if named.algorithm == "HS256" {
                named.key = HIDDEN.into();
            }
        }
        shown
    }

    /// Refuses the development secret on a listening address that is not loopback.
    pub fn check_listen(&self, listen: SocketAddr) -> Result<(), DevelopmentSecretExposed> {
        let is_named = self.more.iter().any(|key| key.key == DEVELOPMENT_SECRET);
        let is_nameless = self.believes_secret() && self.secret == DEVELOPMENT_SECRET;
        let known_to_all = is_named || is_nameless;
        if known_to_all && !listen.ip().is_loopback() && !self.allow_development_secret {
            return Err(DevelopmentSecretExposed { listen });
        }
        Ok(())
    }

    /// The nameless key and the named ones.
    pub fn own_keys(&self) -> Result<Vec<Key>, BadKeys> {
        self.check()?;
        let mut keys = Vec::new();
        if !self.public_key_pem.is_empty() {
            let (key, algorithm) = public_key(&self.public_key_pem, &self.public_key_algorithm)
                .map_err(|bad| match bad {
                    BadKey::Algorithm => BadKeys::UnknownAlgorithm {
                        found: self.public_key_algorithm.clone(),
                    },
                    BadKey::Pem(why) => BadKeys::BadPem {
                        algorithm: self.public_key_algorithm.clone(),
                        why,
                    },
                })?;
            keys.push(Key::new(None, key, algorithm));
        } else if self.believes_secret() {
            if self.secret.len() < SECRET_BYTES_MIN {
                return Err(BadKeys::ShortSecret {
                    bytes: self.secret.len(),
                });
            }
            let key = DecodingKey::from_secret(self.secret.as_bytes());
            keys.push(Key::new(None, key, Algorithm::HS256));
        }
        for named in &self.more {
            keys.push(named.read()?);
        }
        Ok(keys)
    }

    fn check(&self) -> Result<(), BadKeys> {
        let bad = |key, value: String, remedy: &str| {
            let remedy = remedy.to_owned();
            Err(BadKeys::BadValue { key, value, remedy })
        };
        if !self.jwks_file.is_empty() && !self.jwks_url.is_empty() {
            return bad(
                "jwks_url",
                self.jwks_url.clone(),
                "set it or jwks_file, not both",
            );
        }
        if !self.jwks_url.is_empty() && !is_fetchable(&self.jwks_url) {
            let remedy = "set https://..., or http:// with a loopback address";
            return bad("jwks_url", self.jwks_url.clone(), remedy);
        }
        if self.more.len() > SET_KEYS_MAX {
            return bad("more", self.more.len().to_string(), "name at most 64 keys");
        }
        for (key, claim) in [
            ("subject_claim", &self.subject_claim),
            ("role_claim", &self.role_claim),
        ] {
            if claim.is_empty() {
                return bad(key, "empty".into(), "name a claim");
            }
        }
        let ranges = [
            ("jwks_refresh_s", self.jwks_refresh_s, 10, 86_400),
            ("jwks_retry_s", self.jwks_retry_s, 1, 3_600),
            ("jwks_stale_s", self.jwks_stale_s, 60, 2_592_000),
            ("leeway_s", self.leeway_s, 0, 300),
        ];
        for (key, value, least, most) in ranges {
            if !(least..=most).contains(&value) {
                return bad(key, value.to_string(), &format!("set {least} to {most}"));
            }
        }
        Ok(())
    }
}

/// Keys must not come over a wire that others can write on.
fn is_fetchable(url: &str) -> bool {
    let Ok(url) = url.parse::<hyper::Uri>() else {
        return false;
    };
    let host = url.host().unwrap_or_default();
    let is_own_machine = host == "localhost"
        || host
            .trim_matches(['[', ']'])
            .parse::<std::net::IpAddr>()
            .is_ok_and(|ip| ip.is_loopback());
    match url.scheme_str() {
        Some("https") => !host.is_empty(),
        Some("http") => is_own_machine,
        _ => false,
    }
}

impl NamedKey {
    fn read(&self) -> Result<Key, BadKeys> {
        let bad = |why: String| BadKeys::BadNamedKey {
            kid: self.kid.clone(),
            why,
        };
        if self.kid.is_empty() {
            return Err(bad("give it a name".into()));
        }
        let kid = Some(self.kid.clone());
        if self.algorithm == "HS256" {
            if self.key.len() < SECRET_BYTES_MIN {
                let bytes = self.key.len();
                return Err(bad(format!(
                    "the secret has {bytes} bytes: use at least 32 random ones"
                )));
            }
            let key = DecodingKey::from_secret(self.key.as_bytes());
            return Ok(Key::new(kid, key, Algorithm::HS256));
        }
        match public_key(&self.key, &self.algorithm) {
            Ok((key, algorithm)) => Ok(Key::new(kid, key, algorithm)),
            Err(BadKey::Algorithm) => Err(bad(format!(
                "the algorithm is {:?}: use HS256, RS256, ES256 or EdDSA",
                self.algorithm
            ))),
            Err(BadKey::Pem(why)) => {
                Err(bad(format!("no public key for {}: {why}", self.algorithm)))
            }
        }
    }
}

impl Key {
    fn new(kid: Option<String>, key: DecodingKey, algorithm: Algorithm) -> Self {
        Self {
            kid,
            key,
            algorithms: vec![algorithm],
        }
    }
}

enum BadKey {
    Algorithm,
    Pem(String),
}

fn public_key(pem: &str, algorithm: &str) -> Result<(DecodingKey, Algorithm), BadKey> {
    let pem = pem.as_bytes();
    let (key, algorithm) = match algorithm {
        "RS256" => (DecodingKey::from_rsa_pem(pem), Algorithm::RS256),
        "ES256" => (DecodingKey::from_ec_pem(pem), Algorithm::ES256),
        "EdDSA" => (DecodingKey::from_ed_pem(pem), Algorithm::EdDSA),
        _ => return Err(BadKey::Algorithm),
    };
    Ok((
        key.map_err(|error| BadKey::Pem(error.to_string()))?,
        algorithm,
    ))
}

/// A set before its keys are looked at, one by one: a key of a new kind does not spoil the others.
#[derive(Deserialize)]
struct Set {
    keys: Vec<serde_json::Value>,
}

/// Reads a JSON Web Key Set. Keys of unknown kinds, for other uses than signatures, and shared secrets are passed over.
pub fn read_set(text: &[u8]) -> Result<Vec<Key>, BadSet> {
    let set: Set =
        serde_json::from_slice(text).map_err(|error| BadSet::NotASet(error.to_string()))?;
    let mut keys = Vec::new();
    let known = |jwk| serde_json::from_value::<Jwk>(jwk).ok();
    for jwk in set.keys.into_iter().take(SET_KEYS_MAX).filter_map(known) {
        let kinds: &[Algorithm] = match &jwk.algorithm {
            AlgorithmParameters::RSA(_) => &[
                Algorithm::RS256,
                Algorithm::RS384,
                Algorithm::RS512,
                Algorithm::PS256,
                Algorithm::PS384,
                Algorithm::PS512,
            ],
            AlgorithmParameters::EllipticCurve(params) => match params.curve {
                EllipticCurve::P256 => &[Algorithm::ES256],
                EllipticCurve::P384 => &[Algorithm::ES384],
                _ => continue,
            },
            AlgorithmParameters::OctetKeyPair(params) if params.curve == EllipticCurve::Ed25519 => {
                &[Algorithm::EdDSA]
            }
            _ => continue,
        };
        let common = &jwk.common;
        if common
            .public_key_use
            .as_ref()
            .is_some_and(|using| *using != PublicKeyUse::Signature)
        {
            continue;
        }
        let algorithms: Vec<Algorithm> = match common.key_algorithm.map(Algorithm::try_from) {
            None => kinds.to_vec(),
            Some(Ok(named)) if kinds.contains(&named) => vec![named],
            Some(_) => continue,
        };
        if let Ok(key) = DecodingKey::from_jwk(&jwk) {
            let kid = common.key_id.clone();
            keys.push(Key {
                kid,
                key,
                algorithms,
            });
        }
    }
    if keys.is_empty() {
        return Err(BadSet::Empty);
    }
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A key pair made for this test alone.
    pub const PUBLIC: &str = "-----BEGIN PUBLIC KEY-----\n\
        MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----\n";

    fn refused(keys: KeysConfig) -> BadKeys {
        keys.own_keys().err().expect("they are refused")
    }

    #[test]
    fn bad_keys_are_named() {
        let short = KeysConfig {
            secret: "short".into(),
            ..KeysConfig::default()
        };
        assert_eq!(refused(short), BadKeys::ShortSecret { bytes: 5 });
        let garbage = KeysConfig {
            public_key_pem: "x".into(),
            ..KeysConfig::default()
        };
        assert!(matches!(refused(garbage), BadKeys::BadPem { .. }));
        let unknown = KeysConfig {
            public_key_pem: PUBLIC.into(),
            public_key_algorithm: "none".into(),
            ..KeysConfig::default()
        };
        assert!(matches!(refused(unknown), BadKeys::UnknownAlgorithm { .. }));
        for (kid, algorithm, key, remedy) in [
            ("", "HS256", "s", "give it a name"),
            ("a", "HS256", "s", "at least 32"),
            ("a", "none", "s", "use HS256"),
            ("a", "EdDSA", "s", "no public key"),
        ] {
            let named = KeysConfig {
                more: vec![NamedKey {
                    kid: kid.into(),
                    algorithm: algorithm.into(),
                    key: key.into(),
                }],
                ..KeysConfig::default()
            };
            let said = refused(named).to_string();
            assert!(said.contains(remedy), "{said}");
        }
    }

    #[test]
    fn a_set_comes_over_tls_or_from_the_own_machine() {
        for (url, is_good) in [
            ("https://id.example/keys", true),
            ("http://127.0.0.1:9/keys", true),
            ("http://[::1]:9/keys", true),
            ("http://localhost/keys", true),
            ("http://id.example/keys", false),
            ("http://127.0.0.1.id.example/keys", false),
            ("ftp://127.0.0.1/keys", false),
            ("keys", false),
        ] {
            let keys = KeysConfig {
                jwks_url: url.into(),
                ..KeysConfig::default()
            };
            assert_eq!(keys.own_keys().is_ok(), is_good, "{url}");
        }
    }

    #[test]
    fn the_development_secret_stays_on_the_own_machine() {
        let keys = KeysConfig::default();
        assert!(keys.check_listen("127.0.0.1:80".parse().unwrap()).is_ok());
        assert!(keys.check_listen("[::1]:80".parse().unwrap()).is_ok());
        let everywhere = "0.0.0.0:80".parse().unwrap();
        let exposed = keys.check_listen(everywhere).unwrap_err();
        assert!(exposed.to_string().contains("keys.secret"));
        let own = KeysConfig {
            secret: "x".repeat(32),
            ..KeysConfig::default()
        };
        assert!(own.check_listen(everywhere).is_ok());
        let by_name = KeysConfig {
            more: vec![NamedKey {
                kid: "k".into(),
                algorithm: "HS256".into(),
                key: DEVELOPMENT_SECRET.into(),
            }],
            ..own
        };
        assert!(by_name.check_listen(everywhere).is_err());
        let provider = KeysConfig {
            jwks_url: "https://id.example/keys".into(),
            ..KeysConfig::default()
        };
        assert!(
            provider.check_listen(everywhere).is_ok(),
            "the secret is not believed beside a provider's keys"
        );
        assert!(provider.own_keys().unwrap().is_empty());
    }

    #[test]
    fn a_set_brings_public_keys_for_signatures_each_for_its_own_algorithms() {
        let set = r#"{"keys":[
            {"kty":"oct","kid":"secret","k":"c2VjcmV0IHNlY3JldCBzZWNyZXQgc2VjcmV0IHNlY3JldA"},
            {"kty":"OKP","kid":"ed","crv":"Ed25519","x":"Gb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE"},
            {"kty":"OKP","kid":"enc","use":"enc","crv":"Ed25519","x":"Gb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE"},
            {"kty":"OKP","kid":"lie","alg":"HS256","crv":"Ed25519","x":"Gb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE"},
            {"kty":"RSA","kid":"rsa","n":"0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMs","e":"AQAB"},
            {"kty":"new","kid":"unknown"}]}"#;
        let keys = read_set(set.as_bytes()).unwrap();
        let named: Vec<&str> = keys.iter().filter_map(|key| key.kid.as_deref()).collect();
        assert_eq!(named, ["ed", "rsa"]);
        assert_eq!(keys[0].algorithms, [Algorithm::EdDSA]);
        assert!(!keys[1].algorithms.contains(&Algorithm::HS256));
        assert_eq!(read_set(br#"{"keys":[]}"#).err(), Some(BadSet::Empty));
        for bad in ["", "[]", "{}", "{\"keys\":7}"] {
            assert!(
                matches!(read_set(bad.as_bytes()), Err(BadSet::NotASet(_))),
                "{bad}"
            );
        }
    }
}
