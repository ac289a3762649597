//! Who is calling? JSON Web Tokens: minted for development, verified on every session and call.
//!
//! Holds: a [`Caller`] was signed by the configured key, is not over, and its subject is an id.
//! Not here: what a role may do (`http`, `socket`), where the token stands in a request (`access`).

use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cabrank_events::{DriverId, RiderId};
use dashmap::DashMap;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};

/// Known to everybody: for development on the own machine only.
pub const DEVELOPMENT_SECRET: &str = "cabrank development secret, known to everybody";
/// Shorter secrets can be guessed from one token.
pub const SECRET_BYTES_MIN: usize = 32;
/// Tokens that live longer end their socket or stream after this all the same: no clock overflows.
pub(crate) const LIFE_MAX: Duration = Duration::from_secs(365 * 24 * 3_600);
/// How far clocks of token issuers may be off.
const LEEWAY_S: u64 = 5;
/// Believed tokens that are remembered by their text; when there are more, all are forgotten and checked anew.
const TOKENS_REMEMBERED_MAX: usize = 32_768;
/// Longer ones are checked each time.
const TOKEN_BYTES_REMEMBERED_MAX: usize = 1_024;

/// Which tokens are believed: those signed with `secret` (HS256), or, if a public key is given, only those signed with
/// its private half.
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
    /// Accept the development secret on any address. Everybody can then be everybody.
    pub allow_development_secret: bool,
}

impl Default for KeysConfig {
    fn default() -> Self {
        Self {
            secret: DEVELOPMENT_SECRET.into(),
            public_key_pem: String::new(),
            public_key_algorithm: "RS256".into(),
            allow_development_secret: false,
        }
    }
}

/// The secret never reaches a log.
impl std::fmt::Debug for KeysConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeysConfig")
            .field("secret", &"(hidden)")
            .field("public_key_pem", &self.public_key_pem)
            .field("public_key_algorithm", &self.public_key_algorithm)
            .field("allow_development_secret", &self.allow_development_secret)
            .finish()
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
    ShortSecret { bytes: usize },
    /// Not one of ours.
    #[error("keys.public_key_algorithm is {found:?}: use RS256, ES256 or EdDSA")]
    UnknownAlgorithm { found: String },
    /// The PEM does not hold a public key of that algorithm.
    #[error("keys.public_key_pem does not hold a public key for {algorithm}: {why}")]
    BadPem { algorithm: String, why: String },
}

impl KeysConfig {
    /// Refuses the development secret on a listening address that is not loopback.
    pub fn check_listen(&self, listen: SocketAddr) -> Result<(), DevelopmentSecretExposed> {
        let known_to_all = self.public_key_pem.is_empty() && self.secret == DEVELOPMENT_SECRET;
        if known_to_all && !listen.ip().is_loopback() && !self.allow_development_secret {
            return Err(DevelopmentSecretExposed { listen });
        }
        Ok(())
    }
}

/// What a caller may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
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

#[derive(Serialize, Deserialize)]
struct Claims {
    sub: String,
    role: Role,
    exp: u64,
}

/// Who is calling, proven.
#[derive(Clone, Debug, PartialEq, Eq)]
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
    /// When it is over, in seconds since the Unix epoch.
    pub expires_s: u64,
}

impl Verified {
    fn is_over(&self) -> bool {
        self.expires_s.saturating_add(LEEWAY_S) < now_s()
    }

    /// How long the token is still good, leeway included.
    pub fn remaining(&self) -> Duration {
        Duration::from_secs(
            self.expires_s
                .saturating_add(LEEWAY_S)
                .saturating_sub(now_s()),
        )
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
}

fn now_s() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

/// Mints an HS256 token for `subject` in `role`, good for `ttl` from now.
pub fn mint(secret: &str, role: Role, subject: &str, ttl: Duration) -> Result<String, BadToken> {
    let exp = now_s().saturating_add(ttl.as_secs());
    let claims = Claims {
        sub: subject.to_owned(),
        role,
        exp,
    };
    caller(&claims)?;
    jsonwebtoken::encode(
        &Header::new(Algorithm::HS256),
        &claims,
        &EncodingKey::from_secret(secret.as_bytes()),
    )
    .map_err(|error| BadToken::NotValid(error.to_string()))
}

fn caller(claims: &Claims) -> Result<Caller, BadToken> {
    let bad = |error: cabrank_events::BadId| BadToken::NotValid(format!("sub: {error}"));
    let name = || RiderId::new(&claims.sub).map_err(bad);
    Ok(match claims.role {
        Role::Driver => Caller::Driver(DriverId::new(&claims.sub).map_err(bad)?),
        Role::Rider => Caller::Rider(name()?),
        Role::Service => Caller::Service(name()?),
        Role::Ops => Caller::Ops(name()?),
    })
}

/// Believes tokens of one key.
///
/// A token that was believed is remembered, because whoever calls again brings the same one: looking it up
/// costs far less than checking its signature. Nothing takes a token back before it is over: the key is fixed for the life of the
/// process, and what a person may do is asked anew on each call.
pub struct TokenVerifier {
    key: DecodingKey,
    validation: Validation,
    believed: DashMap<Box<str>, Verified>,
}

impl TokenVerifier {
    /// A verifier for the configured key.
    pub fn new(keys: &KeysConfig) -> Result<Self, BadKeys> {
        let (key, algorithm) = if keys.public_key_pem.is_empty() {
            if keys.secret.len() < SECRET_BYTES_MIN {
                return Err(BadKeys::ShortSecret {
                    bytes: keys.secret.len(),
                });
            }
            (
                DecodingKey::from_secret(keys.secret.as_bytes()),
                Algorithm::HS256,
            )
        } else {
            public_key(keys)?
        };
        let mut validation = Validation::new(algorithm);
        validation.leeway = LEEWAY_S;
        validation.validate_aud = false;
        validation.set_required_spec_claims(&["exp", "sub"]);
        Ok(Self {
            key,
            validation,
            believed: DashMap::new(),
        })
    }

    /// Checks signature, algorithm and time, and reads who it is.
    pub fn verify(&self, token: &str) -> Result<Verified, BadToken> {
        if let Some(known) = self.believed.get(token) {
            return if known.is_over() {
                Err(BadToken::Over)
            } else {
                Ok(known.clone())
            };
        }
        let verified = self.check(token)?;
        if token.len() <= TOKEN_BYTES_REMEMBERED_MAX {
            if self.believed.len() >= TOKENS_REMEMBERED_MAX {
                self.believed.clear();
            }
            self.believed.insert(token.into(), verified.clone());
        }
        Ok(verified)
    }

    fn check(&self, token: &str) -> Result<Verified, BadToken> {
        use jsonwebtoken::errors::ErrorKind;
        let data = jsonwebtoken::decode::<Claims>(token, &self.key, &self.validation).map_err(
            |error| match error.kind() {
                ErrorKind::ExpiredSignature => BadToken::Over,
                _ => BadToken::NotValid(error.to_string()),
            },
        )?;
        Ok(Verified {
            caller: caller(&data.claims)?,
            expires_s: data.claims.exp,
        })
    }
}

fn public_key(keys: &KeysConfig) -> Result<(DecodingKey, Algorithm), BadKeys> {
    let pem = keys.public_key_pem.as_bytes();
    let (key, algorithm) = match keys.public_key_algorithm.as_str() {
        "RS256" => (DecodingKey::from_rsa_pem(pem), Algorithm::RS256),
        "ES256" => (DecodingKey::from_ec_pem(pem), Algorithm::ES256),
        "EdDSA" => (DecodingKey::from_ed_pem(pem), Algorithm::EdDSA),
        other => {
            return Err(BadKeys::UnknownAlgorithm {
                found: other.to_owned(),
            });
        }
    };
    let key = key.map_err(|error| BadKeys::BadPem {
        algorithm: keys.public_key_algorithm.clone(),
        why: error.to_string(),
    })?;
    Ok((key, algorithm))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3_600);

    fn verifier(secret: &str) -> TokenVerifier {
        TokenVerifier::new(&KeysConfig {
            secret: secret.into(),
            ..KeysConfig::default()
        })
        .unwrap()
    }

    #[test]
    fn a_minted_token_says_who_it_is() {
        let verifier = verifier(DEVELOPMENT_SECRET);
        for role in Role::ALL {
            let token = mint(DEVELOPMENT_SECRET, role, "p7", HOUR).unwrap();
            let verified = verifier.verify(&token).unwrap();
            assert_eq!(verified.caller.role(), role);
            assert!(verified.remaining() > Duration::from_secs(3_590));
        }
        assert!(mint(DEVELOPMENT_SECRET, Role::Driver, "no id", HOUR).is_err());
    }

    #[test]
    fn another_secret_another_algorithm_and_an_old_token_are_not_believed() {
        let verifier = verifier(DEVELOPMENT_SECRET);
        let other = mint("another secret of more than 32 bytes", Role::Ops, "o", HOUR).unwrap();
        assert!(matches!(
            verifier.verify(&other),
            Err(BadToken::NotValid(_))
        ));
        // {"alg":"none"} . {"sub":"o","role":"ops","exp":9999999999} without a signature.
        let none = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJvIiwicm9sZSI6Im9wcyIsImV4cCI6OTk5OTk5OTk5OX0.";
        assert!(matches!(verifier.verify(none), Err(BadToken::NotValid(_))));
        let claims = Claims {
            sub: "o".into(),
            role: Role::Ops,
            exp: now_s() - 60,
        };
        let key = EncodingKey::from_secret(DEVELOPMENT_SECRET.as_bytes());
        let old = jsonwebtoken::encode(&Header::default(), &claims, &key).unwrap();
        assert_eq!(verifier.verify(&old), Err(BadToken::Over));
        assert!(matches!(verifier.verify(""), Err(BadToken::NotValid(_))));
    }

    #[test]
    fn a_remembered_token_is_believed_until_it_is_over_and_no_other_with_it() {
        let verifier = verifier(DEVELOPMENT_SECRET);
        let token = mint(DEVELOPMENT_SECRET, Role::Rider, "r1", HOUR).unwrap();
        let first = verifier.verify(&token).unwrap();
        assert_eq!(verifier.verify(&token), Ok(first));
        assert_eq!(verifier.believed.len(), 1);
        let forged = format!("{}x", &token[..token.len() - 1]);
        assert!(matches!(
            verifier.verify(&forged),
            Err(BadToken::NotValid(_))
        ));
        assert_eq!(
            verifier.believed.len(),
            1,
            "what is not believed is not kept"
        );
        verifier.believed.get_mut(token.as_str()).unwrap().expires_s = now_s() - LEEWAY_S - 1;
        assert_eq!(verifier.verify(&token), Err(BadToken::Over));
    }

    /// A key pair made for this test alone.
    const PUBLIC: &str = "-----BEGIN PUBLIC KEY-----\n\
        MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----\n";

    #[test]
    fn with_a_public_key_a_token_signed_with_the_key_as_a_secret_is_not_believed() {
        let keys = KeysConfig {
            public_key_pem: PUBLIC.into(),
            public_key_algorithm: "EdDSA".into(),
            ..KeysConfig::default()
        };
        let verifier = TokenVerifier::new(&keys).unwrap();
        for secret in [PUBLIC, DEVELOPMENT_SECRET] {
            let forged = mint(secret, Role::Ops, "o", HOUR).unwrap();
            assert!(matches!(
                verifier.verify(&forged),
                Err(BadToken::NotValid(_))
            ));
        }
    }

    #[test]
    fn bad_keys_are_named() {
        let of = |keys: KeysConfig| TokenVerifier::new(&keys).err().unwrap();
        let short = KeysConfig {
            secret: "short".into(),
            ..KeysConfig::default()
        };
        assert_eq!(of(short), BadKeys::ShortSecret { bytes: 5 });
        let garbage = KeysConfig {
            public_key_pem: "x".into(),
            ..KeysConfig::default()
        };
        assert!(matches!(of(garbage), BadKeys::BadPem { .. }));
        let unknown = KeysConfig {
            public_key_pem: PUBLIC.into(),
            public_key_algorithm: "none".into(),
            ..KeysConfig::default()
        };
        assert!(matches!(of(unknown), BadKeys::UnknownAlgorithm { .. }));
    }

    #[test]
    fn the_development_secret_stays_on_the_own_machine() {
        let keys = KeysConfig::default();
        assert!(keys.check_listen("127.0.0.1:80".parse().unwrap()).is_ok());
        assert!(keys.check_listen("[::1]:80".parse().unwrap()).is_ok());
        let exposed = keys
            .check_listen("0.0.0.0:80".parse().unwrap())
            .unwrap_err();
        assert!(exposed.to_string().contains("keys.secret"));
        let own = KeysConfig {
            secret: "x".repeat(32),
            ..KeysConfig::default()
        };
        assert!(own.check_listen("0.0.0.0:80".parse().unwrap()).is_ok());
    }
}
