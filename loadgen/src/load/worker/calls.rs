//! A thread's HTTP calls: searches, ride requests, cancellations. What is due waits for an idle connection; its latency
//! counts from when it was due, so the wait is in it.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;

use cabrank_events::wire::{Problem, RideOpened, RideRequest};
use cabrank_events::{Place, Time, VehicleClass};
use cabrank_geo::Point;
use mio::Token;
use rand::Rng;

use super::super::clock::{now_ns, wall_ms};
use super::super::lane::{Answer, Heard, Lane, Speech};
use super::super::plan::Target;
use super::super::redis;
use super::super::tally::{Kind, NO_RETRY_AFTER};
use super::Worker;
use crate::client::Role;

/// Calls that wait for an idle connection; further ones are not sent, which makes the run invalid.
const CALLS_WAITING_MAX: usize = 100_000;

/// What a call on a lane is about.
pub(super) enum Call {
    Nearby {
        due: u64,
    },
    Ride {
        due: u64,
        rider: String,
        key: String,
    },
    Cancel,
    Probe {
        due: u64,
        place: Point,
    },
}

/// A call that waits for a connection.
pub(super) enum Wanted {
    Nearby { due: u64 },
    Ride { due: u64 },
    Cancel { ride: String, rider: String },
}

/// Connections for calls of one kind, and what waits for them.
pub(super) struct Pool {
    pub first_token: usize,
    pub lanes: Vec<Lane<Call>>,
    pub idle: Vec<usize>,
    pub waiting: VecDeque<Wanted>,
}

impl Pool {
    pub fn new(
        first_token: usize,
        count: usize,
        servers: &[(SocketAddr, Arc<str>)],
        speech: Speech,
    ) -> Pool {
        let address = |n: usize| servers[n % servers.len()].0;
        let lane = |n: usize| Lane::new(address(n), speech, Token(first_token + n));
        Pool {
            first_token,
            lanes: (0..count).map(lane).collect(),
            idle: (0..count).rev().collect(),
            waiting: VecDeque::new(),
        }
    }
}

impl Worker {
    pub(super) fn want(&mut self, is_search: bool, wanted: Wanted) {
        let pool = if is_search {
            &mut self.searches
        } else {
            &mut self.requests
        };
        if pool.waiting.len() >= CALLS_WAITING_MAX {
            self.shared.tally.overflowed += 1;
            return;
        }
        pool.waiting.push_back(wanted);
        self.pump(is_search);
    }

    /// Gives waiting calls to idle connections.
    fn pump(&mut self, is_search: bool) {
        loop {
            let pool = if is_search {
                &mut self.searches
            } else {
                &mut self.requests
            };
            if pool.idle.is_empty() {
                return;
            }
            let Some(wanted) = pool.waiting.pop_front() else {
                return;
            };
            let n = pool.idle.pop().expect("looked at above");
            let token = pool.first_token + n;
            let host = Arc::clone(&self.servers[n % self.servers.len()].1);
            let (request, call) = self.write_call(wanted, &host);
            let pool = if is_search {
                &mut self.searches
            } else {
                &mut self.requests
            };
            let heard = pool.lanes[n].call(&self.shared.registry, &request, call);
            self.handle_heard(token, heard);
        }
    }

    fn write_call(&mut self, wanted: Wanted, host: &str) -> (Vec<u8>, Call) {
        let shared = &mut self.shared;
        let now_ms = wall_ms();
        match wanted {
            Wanted::Nearby { due } => {
                let at = shared.places.wish(now_ms, &mut shared.rng);
                if shared.plan.target == Target::Redis {
                    let request = redis::geo_search(at, shared.plan.radius_m, shared.plan.k);
                    return (request, Call::Nearby { due });
                }
                let request = search(
                    host,
                    &self.ops_token,
                    at,
                    shared.plan.radius_m,
                    shared.plan.k,
                );
                (request, Call::Nearby { due })
            }
            Wanted::Ride { due } => {
                self.asked += 1;
                let key = format!("{}-{}-{}", shared.plan.run, self.index, self.asked);
                let rider = format!("rider-{key}");
                // Several threads share the recorded trips by taking each its own.
                let of = u64::from(shared.plan.parts * shared.plan.threads);
                let nth = (self.asked - 1) * of + u64::from(self.index);
                let (pickup, dropoff) = shared.places.trip(nth, now_ms, &mut shared.rng);
                let body = RideRequest {
                    pickup: Place(pickup),
                    dropoff: Some(Place(dropoff)),
                    class: VehicleClass::Economy,
                    issued_at: None::<Time>,
                };
                let body = serde_json::to_string(&body).unwrap_or_default();
                shared.tally.requested += 1;
                let token = (shared.mint)(Role::Rider, &rider);
                let request = post(
                    host,
                    "/v1/rides",
                    &token,
                    &format!("Idempotency-Key: {key}\r\n"),
                    &body,
                );
                (request, Call::Ride { due, rider, key })
            }
            Wanted::Cancel { ride, rider } => {
                let token = (shared.mint)(Role::Rider, &rider);
                (
                    post(host, &format!("/v1/rides/{ride}/cancel"), &token, "", ""),
                    Call::Cancel,
                )
            }
        }
    }

    pub(super) fn handle_lane(&mut self, token: usize) {
        let is_search = token < self.requests.first_token;
        let is_probe = self
            .probe
            .as_ref()
            .is_some_and(|probe| token >= probe.lane.first_token);
        let pool = match &mut self.probe {
            Some(probe) if is_probe => &mut probe.lane,
            _ if is_search => &mut self.searches,
            _ => &mut self.requests,
        };
        let Some(lane) = pool.lanes.get_mut(token - pool.first_token) else {
            return;
        };
        let heard = lane.handle_ready();
        self.handle_heard(token, heard);
        if !is_probe {
            self.pump(is_search);
        }
    }

    fn handle_heard(&mut self, token: usize, heard: Heard<Call>) {
        let (call, answer) = match heard {
            Heard::Nothing => return,
            Heard::Answer(call, answer) => (call, Ok(answer)),
            Heard::Lost(call, why) => (call, Err(why)),
        };
        let now = now_ns();
        if let Call::Probe { due, place } = call {
            return self.handle_probe_answer(due, place, answer, now);
        }
        let is_search = token < self.requests.first_token;
        let pool = if is_search {
            &mut self.searches
        } else {
            &mut self.requests
        };
        pool.idle.push(token - pool.first_token);
        match call {
            Call::Nearby { due } => {
                let tally = &mut self.shared.tally;
                match answer {
                    Ok(answer) if answer.status == 200 => tally.done(Kind::Nearby, due, now, 1),
                    Ok(answer) => tally.refuse(Kind::Nearby, &reason(&answer)),
                    Err(why) => tally.refuse(Kind::Nearby, &format!("connection lost: {why}")),
                }
            }
            Call::Ride { due, rider, key } => self.handle_ride_answer(due, rider, key, answer, now),
            Call::Cancel | Call::Probe { .. } => {}
        }
    }

    fn handle_ride_answer(
        &mut self,
        due: u64,
        rider: String,
        key: String,
        answer: Result<Answer, String>,
        now: u64,
    ) {
        let shared = &mut self.shared;
        let tally = &mut shared.tally;
        let answer = match answer {
            Ok(answer) => answer,
            Err(why) => {
                tally.refuse(Kind::Request, &format!("connection lost: {why}"));
                tally.unclear.push((rider, key));
                return;
            }
        };
        if !matches!(answer.status, 200 | 201) {
            tally.refuse(Kind::Request, &reason(&answer));
            if answer.status >= 500 {
                tally.unclear.push((rider, key));
            }
            return;
        }
        match serde_json::from_slice::<RideOpened>(&answer.body) {
            Ok(opened) => {
                tally.done(Kind::Request, due, now, 1);
                tally.promised += 1;
                let cancels = shared
                    .rng
                    .random_bool(shared.plan.shares.cancel.clamp(0.0, 1.0));
                if let Some(seen) = tally.ride(opened.ride) {
                    seen.due = Some(due);
                    seen.promised = Some(now);
                    seen.cancelled = cancels;
                }
                if cancels {
                    let ride = opened.ride.to_string();
                    self.requests
                        .waiting
                        .push_front(Wanted::Cancel { ride, rider });
                }
            }
            Err(why) => tally.complain(|| format!("an answer does not parse: {why}")),
        }
    }
}

pub(super) fn search(host: &str, token: &str, at: Point, radius_m: f64, k: u32) -> Vec<u8> {
    format!(
        "GET /v1/nearby?lat={}&lon={}&radius={radius_m}&k={k} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\n\r\n",
        at.lat_deg(),
        at.lon_deg()
    )
    .into_bytes()
}

fn post(host: &str, path: &str, token: &str, headers: &str, body: &str) -> Vec<u8> {
    format!(
        "POST {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\n{headers}Content-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// Why a call was refused, in one word.
fn reason(answer: &Answer) -> String {
    let problem = serde_json::from_slice::<Problem>(&answer.body).ok();
    let kind = problem.and_then(|problem| problem.kind.rsplit(':').next().map(str::to_owned));
    let when = match answer.status {
        429 | 503 if !answer.says_when => NO_RETRY_AFTER,
        _ => "",
    };
    match kind {
        Some(kind) if !kind.is_empty() => format!("{} {kind}{when}", answer.status),
        _ => format!("{}{when}", answer.status),
    }
}
