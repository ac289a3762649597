//! A payment provider for tests and demos, since no real one can be reached: it keeps a ledger of its own, and misbehaves
//! as told.
//!
//! It honours idempotency keys, as providers do: the same key with the same body is done once and answered alike. Faults:
//! slow answers, no answer in time, 5xx before anything is done, the answer lost *after* it was done, and a call that
//! arrives twice. The ledger, one JSON line a movement, is what the audit believes.

use std::collections::{BTreeMap, HashMap};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{Path as InPath, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::payment::provider::{AmountBody, AuthoriseBody, ProviderAnswer};

/// Keys remembered at most; beyond it calls are refused with 503, which never happens in a run of hours.
pub const KEYS_MAX: usize = 10_000_000;

/// How it misbehaves. Chances are from 0 to 1.
#[derive(Clone, Debug, PartialEq)]
pub struct Faults {
    /// Shortest and longest time to an answer, ms.
    pub latency_ms: (u64, u64),
    /// Chance of a 503 with nothing done.
    pub error: f64,
    /// Chance that it is done and the answer is lost.
    pub lost: f64,
    /// Chance that it does nothing and hangs for `hang_ms`.
    pub hang: f64,
    /// How long a hanging call hangs, ms.
    pub hang_ms: u64,
    /// Chance that a call arrives twice.
    pub duplicate: f64,
    /// Share of means of payment that are refused; which ones follows from their token.
    pub decline: f64,
    /// Forget idempotency keys: what a broken provider, or a client without keys, would do. For tests of the tests.
    pub ignore_keys: bool,
}

impl Default for Faults {
    fn default() -> Faults {
        Faults {
            latency_ms: (5, 40),
            error: 0.0,
            lost: 0.0,
            hang: 0.0,
            hang_ms: 10_000,
            duplicate: 0.0,
            decline: 0.0,
            ignore_keys: false,
        }
    }
}

/// One movement in the ledger.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Movement {
    /// The provider's name of the hold.
    pub id: String,
    /// The caller's name for it: the ride.
    pub reference: String,
    /// `authorised`, `declined`, `captured`, `voided`, `refunded`.
    pub what: String,
    /// In the minor unit.
    pub amount_minor: i64,
    /// ISO 4217.
    pub currency: String,
    /// The idempotency key it was done under.
    pub key: String,
}

#[derive(Clone, Debug)]
struct Held {
    reference: String,
    currency: String,
    held: i64,
    captured: Option<i64>,
    refunded: i64,
    is_void: bool,
}

#[derive(Default)]
struct Ledger {
    /// Key, then the body it came with (empty: it was read back from the file) and the answer it got.
    keys: HashMap<String, (Vec<u8>, u16, ProviderAnswer)>,
    holds: BTreeMap<String, Held>,
    movements: Vec<Movement>,
    file: Option<File>,
}

/// What the ledger adds up to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sums {
    /// Holds made.
    pub authorised: u64,
    /// Holds refused.
    pub declined: u64,
    /// Holds neither captured nor let go.
    pub open: u64,
    /// Money taken, in the minor unit.
    pub captured_minor: i64,
    /// Captures.
    pub captured: u64,
    /// Holds let go.
    pub voided: u64,
    /// Money given back.
    pub refunded_minor: i64,
}

/// A running simulator.
#[derive(Clone)]
pub struct ProviderSim {
    ledger: Arc<Mutex<Ledger>>,
    random: Arc<Mutex<SmallRng>>,
    faults: Arc<Mutex<Faults>>,
}

/// Reads a ledger's file.
pub fn read_ledger(path: &Path) -> std::io::Result<Vec<Movement>> {
    let lines = BufReader::new(File::open(path)?).lines();
    lines
        .map(|line| serde_json::from_str(&line?).map_err(std::io::Error::other))
        .collect()
}

impl ProviderSim {
    /// Misbehaves as `faults` say, by `seed`. With a `file` the ledger goes on where it ended.
    pub fn new(faults: Faults, seed: u64, file: Option<PathBuf>) -> std::io::Result<ProviderSim> {
        let mut ledger = Ledger::default();
        if let Some(path) = file {
            if path.exists() {
                for movement in read_ledger(&path)? {
                    let (status, answer) = match movement.what.as_str() {
                        "declined" => (402, refused("the means of payment was declined")),
                        _ => done(&movement.id),
                    };
                    ledger
                        .keys
                        .insert(movement.key.clone(), (Vec::new(), status, answer));
                    ledger.replay(movement);
                }
            }
            ledger.file = Some(OpenOptions::new().create(true).append(true).open(path)?);
        }
        Ok(ProviderSim {
            ledger: Arc::new(Mutex::new(ledger)),
            random: Arc::new(Mutex::new(SmallRng::seed_from_u64(seed))),
            faults: Arc::new(Mutex::new(faults)),
        })
    }

    /// Misbehaves differently from now on.
    pub fn set_faults(&self, faults: Faults) {
        *self.faults.lock().unwrap_or_else(PoisonError::into_inner) = faults;
    }

    /// All movements so far.
    pub fn movements(&self) -> Vec<Movement> {
        self.lock().movements.clone()
    }

    /// What they add up to.
    pub fn sums(&self) -> Sums {
        let ledger = self.lock();
        let mut sums = Sums::default();
        for movement in &ledger.movements {
            match movement.what.as_str() {
                "authorised" => sums.authorised += 1,
                "declined" => sums.declined += 1,
                "captured" => {
                    sums.captured += 1;
                    sums.captured_minor += movement.amount_minor;
                }
                "voided" => sums.voided += 1,
                "refunded" => sums.refunded_minor += movement.amount_minor,
                _ => {}
            }
        }
        let open = ledger
            .holds
            .values()
            .filter(|held| held.captured.is_none() && !held.is_void);
        sums.open = open.count() as u64;
        sums
    }

    /// Serves until `stop`.
    pub async fn serve(
        self,
        listener: TcpListener,
        stop: CancellationToken,
    ) -> std::io::Result<()> {
        let router = Router::new()
            .route("/v1/authorisations", post(authorise))
            .route("/v1/authorisations/{id}/{what}", post(change))
            .route(
                "/ledger",
                get(|State(sim): State<ProviderSim>| async move { Json(sim.movements()) }),
            )
            .route(
                "/ledger/sums",
                get(|State(sim): State<ProviderSim>| async move { Json(sim.sums()) }),
            )
            .with_state(self);
        axum::serve(listener, router)
            .with_graceful_shutdown(async move { stop.cancelled().await })
            .await
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One call with its faults. `what` does it to the ledger.
    async fn answer(
        &self,
        headers: &HeaderMap,
        body: &[u8],
        what: impl Fn(&mut Ledger, &str, &Faults) -> (u16, ProviderAnswer),
    ) -> Response {
        let Some(key) = headers
            .get("idempotency-key")
            .and_then(|key| key.to_str().ok())
        else {
            return reply(422, &refused("send an Idempotency-Key"));
        };
        let faults = self
            .faults
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let (latency, is_error, is_lost, is_hanging, is_twice) = {
            let mut random = self.random.lock().unwrap_or_else(PoisonError::into_inner);
            let (least, most) = faults.latency_ms;
            (
                random.random_range(least..=most.max(least)),
                random.random_bool(faults.error),
                random.random_bool(faults.lost),
                random.random_bool(faults.hang),
                random.random_bool(faults.duplicate),
            )
        };
        tokio::time::sleep(Duration::from_millis(latency)).await;
        if is_hanging {
            tokio::time::sleep(Duration::from_millis(faults.hang_ms)).await;
            return reply(504, &refused("hung"));
        }
        if is_error {
            return reply(503, &refused("try again"));
        }
        let mut done = (503, refused("try again"));
        for _ in 0..if is_twice { 2 } else { 1 } {
            let mut ledger = self.lock();
            done = match ledger.keys.get(key) {
                Some((before, ..))
                    if !before.is_empty() && before != body && !faults.ignore_keys =>
                {
                    (422, refused("this key came with another body"))
                }
                Some((_, status, answer)) if !faults.ignore_keys => (*status, answer.clone()),
                _ if ledger.keys.len() >= KEYS_MAX => (503, refused("too many keys")),
                _ => {
                    let (status, answer) = what(&mut ledger, key, &faults);
                    ledger
                        .keys
                        .insert(key.to_owned(), (body.to_vec(), status, answer.clone()));
                    (status, answer)
                }
            };
        }
        if is_lost {
            return reply(504, &refused("the answer was lost"));
        }
        reply(done.0, &done.1)
    }
}

fn refused(why: &str) -> ProviderAnswer {
    ProviderAnswer {
        id: String::new(),
        refused: Some(why.to_owned()),
    }
}

fn done(id: &str) -> (u16, ProviderAnswer) {
    let answer = ProviderAnswer {
        id: id.to_owned(),
        refused: None,
    };
    (200, answer)
}

fn reply(status: u16, answer: &ProviderAnswer) -> Response {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (status, Json(answer)).into_response()
}

/// Where a token falls between 0 and 1, the same on every machine.
fn luck(token: &str) -> f64 {
    let hash = token.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    // The upper bits of FNV are poor for short texts; a multiplication mixes them.
    (hash.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 11) as f64 / (1_u64 << 53) as f64
}

impl Ledger {
    fn write(&mut self, movement: Movement) {
        if let Some(file) = &mut self.file {
            let line = serde_json::to_string(&movement).expect("plain structures become JSON");
            // A simulator whose disk is full goes on from memory; the audit will miss the line and say so.
            let _ = writeln!(file, "{line}");
        }
        self.replay(movement);
    }

    fn replay(&mut self, movement: Movement) {
        match movement.what.as_str() {
            "authorised" => {
                let held = Held {
                    reference: movement.reference.clone(),
                    currency: movement.currency.clone(),
                    held: movement.amount_minor,
                    captured: None,
                    refunded: 0,
                    is_void: false,
                };
                self.holds.insert(movement.id.clone(), held);
            }
            what => {
                if let Some(held) = self.holds.get_mut(&movement.id) {
                    match what {
                        "captured" => {
                            held.captured = Some(held.captured.unwrap_or(0) + movement.amount_minor)
                        }
                        "voided" => held.is_void = true,
                        "refunded" => held.refunded += movement.amount_minor,
                        _ => {}
                    }
                }
            }
        }
        self.movements.push(movement);
    }
}

async fn authorise(State(sim): State<ProviderSim>, headers: HeaderMap, body: Bytes) -> Response {
    let Ok(asked) = serde_json::from_slice::<AuthoriseBody>(&body) else {
        return reply(422, &refused("not an authorisation"));
    };
    let act = |ledger: &mut Ledger, key: &str, faults: &Faults| {
        let id = format!("auth-{}", ledger.movements.len() + 1);
        let declines = luck(&asked.method) < faults.decline;
        ledger.write(Movement {
            id: id.clone(),
            reference: asked.reference.clone(),
            what: if declines { "declined" } else { "authorised" }.to_owned(),
            amount_minor: asked.amount_minor,
            currency: asked.currency.clone(),
            key: key.to_owned(),
        });
        if declines {
            (402, refused("the means of payment was declined"))
        } else {
            done(&id)
        }
    };
    sim.answer(&headers, &body, act).await
}

async fn change(
    State(sim): State<ProviderSim>,
    InPath((id, what)): InPath<(String, String)>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let amount = serde_json::from_slice::<AmountBody>(&body).map(|body| body.amount_minor);
    let act = |ledger: &mut Ledger, key: &str, faults: &Faults| {
        let Some(held) = ledger.holds.get(&id).cloned() else {
            return (404, refused("no such authorisation"));
        };
        let is_open = held.captured.is_none() && !held.is_void;
        if what == "void" && held.is_void {
            // Nothing is held, which is what was asked for.
            return done(&id);
        }
        let (what, amount_minor) = match (what.as_str(), &amount) {
            // A careless provider takes it as often as it is asked.
            ("capture", Ok(amount)) if is_open || faults.ignore_keys => {
                if *amount > held.held {
                    return (422, refused("more than is held"));
                }
                ("captured", *amount)
            }
            ("void", _) if is_open => ("voided", held.held),
            ("refund", Ok(amount)) if held.captured.unwrap_or(0) - held.refunded >= *amount => {
                ("refunded", *amount)
            }
            ("capture" | "void" | "refund", _) => return (409, refused("not in this state")),
            _ => return (404, refused("no such call")),
        };
        ledger.write(Movement {
            id: id.clone(),
            reference: held.reference,
            what: what.to_owned(),
            amount_minor,
            currency: held.currency,
            key: key.to_owned(),
        });
        done(&id)
    };
    sim.answer(&headers, &body, act).await
}
