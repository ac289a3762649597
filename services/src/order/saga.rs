//! What is to happen with a ride's money?
//!
//! A state machine without clock or database: told what happened, it says what is to be asked of whom and until when it
//! waits. Dispatch never waits for it. What it may not do: end while money is held, or ask twice for different things.
//!
//! ```text
//! open ── completed ──► capturing ── captured ──► captured (receipt)
//!  │  └── cancelled, fee due ─┘  └── refused late ──► unpaid
//!  ├── cancelled, unfulfilled ──► voiding ── voided, or nothing was held ──► voided
//!  └── refused, or not authorised in time ──► cancelling ── cancelled ──► refused (or voiding, if something may be held)
//! ```

use cabrank_events::business::{
    AuthorisationAsked, Business, CaptureAsked, ChargedFor, LeftUnpaid, Money, Receipt,
    ReceiptLine, VoidAsked,
};
use cabrank_events::{RideId, RiderId, Time};
use serde::{Deserialize, Serialize};

use super::fare::{Fare, Tariff};
use super::model::Order;

/// What the market does about money.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// Prices.
    pub tariff: Tariff,
    /// What becomes of a ride whose money could not be authorised in time, because the provider is away.
    pub unauthorised: Unauthorised,
    /// How long the authorisation may take before that is decided, ms.
    pub authorise_within_ms: u64,
    /// How long a cancel may take before it is sent again, ms.
    pub cancel_within_ms: u64,
    /// How long a capture or a void may take before it is asked for again, ms.
    pub settle_within_ms: u64,
    /// How long a ride may take before somebody is told, ms. The engine ends every ride long before.
    pub ride_within_ms: u64,
}

/// While the provider is away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unauthorised {
    /// Rides go on, and are authorised when the provider is back.
    Accept,
    /// Rides are called off.
    Refuse,
}

impl Default for Policy {
    fn default() -> Policy {
        Policy {
            tariff: Tariff::default(),
            unauthorised: Unauthorised::Accept,
            authorise_within_ms: 30_000,
            cancel_within_ms: 5_000,
            settle_within_ms: 60_000,
            ride_within_ms: 43_200_000,
        }
    }
}

/// Where a saga is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// The ride is under way.
    Open,
    /// The ride is being called off, because its money was refused.
    Cancelling,
    /// What the ride costs is being collected.
    Capturing,
    /// What is held is being let go.
    Voiding,
    /// An end: paid.
    Captured,
    /// An end: nothing to pay, nothing held.
    Voided,
    /// An end: the money was refused and the ride was called off.
    Refused,
    /// An end: driven and not paid.
    Unpaid,
}

impl State {
    /// All of them.
    pub const ALL: [State; 8] = [
        State::Open,
        State::Cancelling,
        State::Capturing,
        State::Voiding,
        State::Captured,
        State::Voided,
        State::Refused,
        State::Unpaid,
    ];

    /// As stored and shown.
    pub fn name(self) -> &'static str {
        match self {
            State::Open => "open",
            State::Cancelling => "cancelling",
            State::Capturing => "capturing",
            State::Voiding => "voiding",
            State::Captured => "captured",
            State::Voided => "voided",
            State::Refused => "refused",
            State::Unpaid => "unpaid",
        }
    }

    /// Nothing more will happen.
    pub fn is_end(self) -> bool {
        matches!(
            self,
            State::Captured | State::Voided | State::Refused | State::Unpaid
        )
    }
}

/// What is known of the provider's hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// Asked for.
    Asked,
    /// There.
    Held,
    /// Not given.
    Refused,
}

impl Hold {
    /// All of them.
    pub const ALL: [Hold; 3] = [Hold::Asked, Hold::Held, Hold::Refused];

    /// As stored.
    pub fn name(self) -> &'static str {
        match self {
            Hold::Asked => "asked",
            Hold::Held => "held",
            Hold::Refused => "refused",
        }
    }
}

/// A saga's waiting, by name: what happens when it is over is in [`Saga::handle_deadline`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deadline {
    /// The authorisation's answer.
    AuthoriseBy,
    /// The ride's end.
    RideBy,
    /// The end of a ride that is being called off.
    CancelBy,
    /// The answer to a capture or a void.
    SettleBy,
}

impl Deadline {
    /// All of them.
    pub const ALL: [Deadline; 4] = [
        Deadline::AuthoriseBy,
        Deadline::RideBy,
        Deadline::CancelBy,
        Deadline::SettleBy,
    ];

    /// As stored and shown.
    pub fn name(self) -> &'static str {
        match self {
            Deadline::AuthoriseBy => "authorise_by",
            Deadline::RideBy => "ride_by",
            Deadline::CancelBy => "cancel_by",
            Deadline::SettleBy => "settle_by",
        }
    }
}

/// The money of one ride.
#[derive(Clone, Debug, PartialEq)]
pub struct Saga {
    /// Which ride.
    pub ride: RideId,
    /// Who pays.
    pub rider: RiderId,
    /// Where it is.
    pub state: State,
    /// What the provider holds.
    pub hold: Hold,
    /// The most the ride can cost.
    pub hold_minor: i64,
    /// ISO 4217.
    pub currency: String,
    /// The surge factor at the request, in thousandths.
    pub surge_permille: i64,
    /// What is to be paid, once known.
    pub due_minor: i64,
    /// For what.
    pub charged_for: Option<ChargedFor>,
    /// How that sum came about.
    pub lines: Vec<ReceiptLine>,
    /// Why there is no money, in words for the rider.
    pub why: Option<String>,
    /// What is waited for, and until when.
    pub deadline: Option<(Deadline, Time)>,
}

/// What a saga wants done. Carried out once its new state is committed, each as often as needed: all are idempotent.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Say it to the other services.
    Say(Business),
    /// Call the ride off, with words for the rider.
    Cancel(RideId, String),
}

/// How a ride ended, as far as money is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Driven.
    Completed,
    /// Called off by the rider, or the rider did not come.
    CancelledByRider,
    /// Called off by the desk, or no driver was found.
    NobodysFault,
}

impl Saga {
    /// Begins with the ride.
    pub fn begin(
        ride: RideId,
        rider: RiderId,
        order: &Order,
        surge_permille: i64,
        policy: &Policy,
        now: Time,
    ) -> (Saga, Vec<Action>) {
        let hold_minor = policy
            .tariff
            .hold(order.pickup, order.dropoff, surge_permille);
        let saga = Saga {
            ride,
            rider: rider.clone(),
            state: State::Open,
            hold: Hold::Asked,
            hold_minor,
            currency: policy.tariff.currency.clone(),
            surge_permille,
            due_minor: 0,
            charged_for: None,
            lines: Vec::new(),
            why: None,
            deadline: Some((
                Deadline::AuthoriseBy,
                now.plus_ms(policy.authorise_within_ms),
            )),
        };
        let asked = saga.ask_authorisation();
        (saga, vec![asked])
    }

    fn money(&self, minor: i64) -> Money {
        Money {
            minor,
            currency: self.currency.clone(),
        }
    }

    fn ask_authorisation(&self) -> Action {
        Action::Say(
            AuthorisationAsked {
                ride: self.ride,
                rider: self.rider.clone(),
                // The provider's vault knows the rider's means of payment by this token; no number ever comes here.
                method: format!("tok_{}", self.rider),
                amount: self.money(self.hold_minor),
            }
            .into(),
        )
    }

    /// The provider holds the money.
    pub fn handle_authorised(&mut self, policy: &Policy, now: Time) -> Vec<Action> {
        self.hold = Hold::Held;
        match self.state {
            State::Open => {
                self.deadline = Some((Deadline::RideBy, now.plus_ms(policy.ride_within_ms)));
                Vec::new()
            }
            // The capture or void that was asked for follows the authorisation by itself.
            State::Cancelling | State::Capturing | State::Voiding => Vec::new(),
            State::Captured | State::Voided => Vec::new(),
            // Held after all, when all was believed over: it is let go.
            State::Refused | State::Unpaid => self.void(policy, now),
        }
    }

    /// The provider does not.
    pub fn handle_refused(&mut self, why: &str, policy: &Policy, now: Time) -> Vec<Action> {
        if self.hold == Hold::Held {
            return Vec::new();
        }
        self.hold = Hold::Refused;
        match self.state {
            State::Open => self.cancel(format!("payment refused: {why}"), policy, now),
            State::Capturing => self.leave_unpaid(why),
            State::Voiding => {
                self.close(State::Voided);
                Vec::new()
            }
            State::Cancelling
            | State::Captured
            | State::Voided
            | State::Refused
            | State::Unpaid => Vec::new(),
        }
    }

    /// The ride is over.
    pub fn handle_end(
        &mut self,
        ended: Ended,
        order: &Order,
        policy: &Policy,
        now: Time,
    ) -> Vec<Action> {
        if !matches!(self.state, State::Open | State::Cancelling) {
            return Vec::new();
        }
        let tariff = &policy.tariff;
        let fare = match ended {
            Ended::Completed => {
                let ms = match (order.started_ms, order.ended_ms) {
                    (Some(started), Some(ended)) => ended - started,
                    _ => 0,
                };
                Some((
                    ChargedFor::Fare,
                    tariff.fare(
                        order.pickup,
                        order.dropoff,
                        ms,
                        self.surge_permille,
                        self.hold_minor,
                    ),
                ))
            }
            // A driver was on the way: the order still names them.
            Ended::CancelledByRider if order.driver.is_some() => {
                Some((ChargedFor::CancelFee, tariff.cancel_fee(self.hold_minor)))
            }
            Ended::CancelledByRider | Ended::NobodysFault => None,
        };
        match fare {
            Some((charged_for, Fare { total_minor, lines })) if total_minor > 0 => {
                (self.due_minor, self.charged_for, self.lines) =
                    (total_minor, Some(charged_for), lines);
                match (self.hold, charged_for) {
                    (Hold::Refused, ChargedFor::Fare) => self.leave_unpaid("payment refused"),
                    (Hold::Refused, ChargedFor::CancelFee) => {
                        self.due_minor = 0;
                        self.close(State::Refused);
                        Vec::new()
                    }
                    (Hold::Asked | Hold::Held, _) => self.capture(policy, now),
                }
            }
            _ if self.hold == Hold::Refused => {
                self.close(State::Refused);
                Vec::new()
            }
            _ => self.void(policy, now),
        }
    }

    /// The money is ours.
    pub fn handle_captured(&mut self) -> Vec<Action> {
        if self.state != State::Capturing {
            return Vec::new();
        }
        self.close(State::Captured);
        vec![Action::Say(
            Receipt {
                ride: self.ride,
                rider: self.rider.clone(),
                total: self.money(self.due_minor),
                lines: self.lines.clone(),
            }
            .into(),
        )]
    }

    /// Nothing is held.
    pub fn handle_voided(&mut self) -> Vec<Action> {
        if self.state == State::Voiding {
            self.close(State::Voided);
        }
        Vec::new()
    }

    /// What was waited for did not come in time.
    pub fn handle_deadline(&mut self, policy: &Policy, now: Time) -> Vec<Action> {
        let Some((deadline, due)) = self.deadline else {
            return Vec::new();
        };
        if now < due {
            return Vec::new();
        }
        match (deadline, self.state) {
            (Deadline::AuthoriseBy, State::Open) => match policy.unauthorised {
                Unauthorised::Refuse => self.cancel(
                    "payment could not be authorised in time".to_owned(),
                    policy,
                    now,
                ),
                Unauthorised::Accept => {
                    self.deadline = Some((Deadline::RideBy, now.plus_ms(policy.ride_within_ms)));
                    vec![self.ask_authorisation()]
                }
            },
            (Deadline::CancelBy, State::Cancelling) => {
                let why = self.why.clone().unwrap_or_default();
                self.cancel(why, policy, now)
            }
            (Deadline::SettleBy, State::Capturing) => self.capture(policy, now),
            (Deadline::SettleBy, State::Voiding) => self.void(policy, now),
            // The engine ends every ride; until its event is here nothing can be decided.
            (Deadline::RideBy, State::Open) => {
                self.deadline = Some((Deadline::RideBy, now.plus_ms(policy.ride_within_ms)));
                Vec::new()
            }
            // A deadline of another state was left behind: nothing is waited for.
            (_, State::Open | State::Cancelling | State::Capturing | State::Voiding) => {
                self.deadline = Some((Deadline::SettleBy, now.plus_ms(policy.settle_within_ms)));
                Vec::new()
            }
            (_, State::Captured | State::Voided | State::Refused | State::Unpaid) => {
                self.deadline = None;
                Vec::new()
            }
        }
    }

    fn cancel(&mut self, why: String, policy: &Policy, now: Time) -> Vec<Action> {
        self.state = State::Cancelling;
        self.deadline = Some((Deadline::CancelBy, now.plus_ms(policy.cancel_within_ms)));
        self.why = Some(why.clone());
        vec![Action::Cancel(self.ride, why)]
    }

    fn capture(&mut self, policy: &Policy, now: Time) -> Vec<Action> {
        self.state = State::Capturing;
        self.deadline = Some((Deadline::SettleBy, now.plus_ms(policy.settle_within_ms)));
        vec![Action::Say(
            CaptureAsked {
                ride: self.ride,
                amount: self.money(self.due_minor),
                charged_for: self.charged_for.unwrap_or(ChargedFor::Fare),
            }
            .into(),
        )]
    }

    fn void(&mut self, policy: &Policy, now: Time) -> Vec<Action> {
        self.state = State::Voiding;
        self.deadline = Some((Deadline::SettleBy, now.plus_ms(policy.settle_within_ms)));
        vec![Action::Say(VoidAsked { ride: self.ride }.into())]
    }

    fn leave_unpaid(&mut self, why: &str) -> Vec<Action> {
        self.close(State::Unpaid);
        self.why = Some(why.to_owned());
        vec![Action::Say(
            LeftUnpaid {
                ride: self.ride,
                rider: self.rider.clone(),
                amount: self.money(self.due_minor),
                why: why.to_owned(),
            }
            .into(),
        )]
    }

    fn close(&mut self, end: State) {
        self.state = end;
        self.deadline = None;
    }
}
