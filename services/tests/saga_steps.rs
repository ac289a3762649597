//! Does a ride's money survive a restart at every step?
//!
//! Each message is consumed by a life of the service of its own: it opens the database, applies that one message, and is
//! gone. In each step where something is waited for, another life finds the deadline over, and asks for the same again.

mod support;

use std::path::Path;

use bytes::Bytes;
use cabrank_events::business::{
    Authorised, Business, BusinessRecord, Captured, Money, Refused, Voided,
};
use cabrank_events::command::CancelledBy;
use cabrank_events::event::{CompletedBecause, DriverAssigned};
use cabrank_events::event::{RideCancelled, RideCompleted, RideRequested, RideStarted};
use cabrank_events::{
    DriverId, Event, EventRecord, IdempotencyKey, Place, RideId, RiderId, ShardId, Time,
    VehicleClass,
};
use cabrank_geo::Point;
use cabrank_services::consumer::{Consumer, Service, wall};
use cabrank_services::database::Database;
use cabrank_services::order::saga::{Policy, Unauthorised};
use cabrank_services::order::{self, OrderService, saga_of};
use cabrank_services::source::{Batch, Positions};
use sqlx::Row;
use tokio_util::sync::CancellationToken;

const RIDE: RideId = RideId {
    place: ShardId(0),
    minted_by: ShardId(0),
    offset: 7,
};

/// Waits end at once, so that the next life finds each of them over.
fn impatient(unauthorised: Unauthorised) -> Policy {
    Policy {
        unauthorised,
        authorise_within_ms: 0,
        cancel_within_ms: 0,
        settle_within_ms: 0,
        ..Policy::default()
    }
}

/// What one life of the service is given.
enum Life {
    Of(&'static str, Bytes),
    /// Nothing comes; what was waited for is over.
    Deadline,
}

/// One ride's messages, numbered as they are made.
#[derive(Default)]
struct Story(Vec<(Life, &'static str, &'static str)>);

impl Story {
    fn ride(self, event: impl Into<Event>, state: &'static str, says: &'static str) -> Story {
        let seq = self.0.len() as u64 + 1;
        let record = EventRecord {
            traceparent: None,
            shard: ShardId(0),
            seq,
            time: Time(1_000_000 * seq as i64),
            event: event.into(),
        };
        self.then(Life::Of("rides", record.to_json()), state, says)
    }

    fn money(self, said: impl Into<Business>, state: &'static str, says: &'static str) -> Story {
        let id = format!("payment-{}", self.0.len() + 1);
        let record = BusinessRecord {
            traceparent: None,
            id,
            time: Time(5),
            said: said.into(),
        };
        self.then(Life::Of("payment", record.to_json()), state, says)
    }

    fn waits(self, state: &'static str, says: &'static str) -> Story {
        self.then(Life::Deadline, state, says)
    }

    fn then(mut self, life: Life, state: &'static str, says: &'static str) -> Story {
        self.0.push((life, state, says));
        self
    }

    /// Plays it. After each life the saga is in the state that is written beside it, and has said or asked for what is
    /// written there; a message that comes again in another life changes nothing.
    async fn plays(self, dir: &Path, name: &str, policy: &Policy) {
        let path = dir.join(name).display().to_string();
        for (number, (life, state, says)) in self.0.into_iter().enumerate() {
            let before = asked(&path).await;
            live(&path, policy, &life).await;
            let after = asked(&path).await;
            let new = after.0[before.0.len()..].iter();
            let cancels = after.1.iter().skip(before.1.len()).map(|_| "cancel");
            let new: Vec<&str> = new.map(String::as_str).chain(cancels).collect();
            assert_eq!(new.join(" "), says, "{name}, step {number}");
            if matches!(life, Life::Of(..)) {
                live(&path, policy, &life).await;
                assert_eq!(asked(&path).await, after, "{name}, step {number} again");
            }
            let database = Database::open_for_reading(&path).await.unwrap();
            let saga = saga_of(database.pool(), &RIDE.to_string())
                .await
                .unwrap()
                .unwrap();
            assert_eq!(saga.state.name(), state, "{name}, step {number}");
            assert_eq!(
                saga.deadline.is_none(),
                saga.state.is_end(),
                "{name}, step {number}: who waits has a deadline"
            );
            database.close().await;
        }
    }
}

/// A life of the service.
async fn live(path: &str, policy: &Policy, life: &Life) {
    let database = Database::open(path, order::STEPS).await.unwrap();
    let consumer = Consumer::take(database.clone(), "order").await.unwrap();
    let mut service = OrderService::new(policy.clone());
    match life {
        Life::Of(source, message) => {
            let batch = Batch {
                messages: vec![message.clone()],
                after: Positions::new(),
                behind: None,
            };
            let stop = CancellationToken::new();
            consumer
                .apply(&mut service, source, batch, &stop)
                .await
                .unwrap();
        }
        Life::Deadline => {
            assert!(
                service.is_due(&database, wall()).await.unwrap(),
                "a deadline is over"
            );
            let mut work = consumer.begin().await.unwrap();
            service.act(&mut work).await.unwrap();
            consumer.commit(work).await.unwrap();
        }
    }
    let dead: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM dead_letters")
        .fetch_one(database.pool())
        .await
        .unwrap();
    assert_eq!(dead, 0);
    database.close().await;
}

/// All that was said, and the rides to be called off.
async fn asked(path: &str) -> (Vec<String>, Vec<(String, String)>) {
    let Ok(database) = Database::open_for_reading(path).await else {
        return Default::default();
    };
    let rows = sqlx::query("SELECT body FROM outbox ORDER BY seq")
        .fetch_all(database.pool())
        .await
        .unwrap();
    let said = rows
        .iter()
        .map(|row| {
            let body: String = row.try_get("body").unwrap();
            BusinessRecord::from_json(body.as_bytes())
                .unwrap()
                .said
                .name()
                .to_owned()
        })
        .collect();
    let cancels = order::cancels(database.pool(), 10).await.unwrap();
    database.close().await;
    (said, cancels)
}

fn requested() -> RideRequested {
    let at = Point::new(37.7749, -122.4194).unwrap();
    RideRequested {
        ride: RIDE,
        ride_seq: 1,
        rider: RiderId::new("ann").unwrap(),
        key: IdempotencyKey::new("k").unwrap(),
        pickup: Place(at),
        dropoff: Some(Place(at.offset_m(3_000.0, 0.0))),
        class: VehicleClass::Economy,
        issued_at: Time(0),
        deadline: Time(0),
        radius_m: 2_000,
        widen_at: Time(0),
        pickup_point: None,
        airport: None,
    }
}

fn driver() -> DriverId {
    DriverId::new("d7").unwrap()
}

fn assigned() -> DriverAssigned {
    DriverAssigned {
        ride: RIDE,
        ride_seq: 2,
        driver: driver(),
        attempt: 1,
        hold_number: 1,
        arrive_by: Time(0),
    }
}

fn started() -> RideStarted {
    RideStarted {
        ride: RIDE,
        ride_seq: 3,
        driver: driver(),
        attempt: 1,
        complete_by: Time(0),
    }
}

fn completed() -> RideCompleted {
    let why = CompletedBecause::DriverReported;
    RideCompleted {
        ride: RIDE,
        ride_seq: 4,
        driver: driver(),
        attempt: 1,
        why,
        keep_until: Time(0),
    }
}

fn cancelled(by: CancelledBy, driver: Option<DriverId>) -> RideCancelled {
    RideCancelled {
        ride: RIDE,
        ride_seq: 4,
        by,
        driver,
        keep_until: Time(0),
        reason: None,
    }
}

fn money() -> Money {
    Money {
        minor: 1_000,
        currency: "USD".to_owned(),
    }
}

fn authorised() -> Authorised {
    Authorised {
        ride: RIDE,
        authorisation: "a1".to_owned(),
        amount: money(),
    }
}

fn captured() -> Captured {
    Captured {
        ride: RIDE,
        amount: money(),
    }
}

fn refused() -> Refused {
    Refused {
        ride: RIDE,
        why: "declined".to_owned(),
    }
}

#[tokio::test]
async fn a_ride_that_is_driven_is_paid_whatever_restarts() {
    let dir = tempfile::tempdir().unwrap();
    Story::default()
        .ride(requested(), "open", "order.authorisation_asked")
        .waits("open", "order.authorisation_asked")
        .ride(assigned(), "open", "")
        .money(authorised(), "open", "")
        .ride(started(), "open", "")
        .ride(completed(), "capturing", "order.capture_asked")
        .waits("capturing", "order.capture_asked")
        .waits("capturing", "order.capture_asked")
        .money(captured(), "captured", "order.receipt")
        .plays(dir.path(), "paid.db", &impatient(Unauthorised::Accept))
        .await;
}

#[tokio::test]
async fn a_ride_that_ends_before_its_money_is_known_is_paid_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    Story::default()
        .ride(requested(), "open", "order.authorisation_asked")
        .ride(assigned(), "open", "")
        .ride(started(), "open", "")
        .ride(completed(), "capturing", "order.capture_asked")
        .money(authorised(), "capturing", "")
        .waits("capturing", "order.capture_asked")
        .money(captured(), "captured", "order.receipt")
        .plays(dir.path(), "late.db", &impatient(Unauthorised::Accept))
        .await;
}

#[tokio::test]
async fn a_refused_payment_calls_the_ride_off_whatever_restarts() {
    let dir = tempfile::tempdir().unwrap();
    Story::default()
        .ride(requested(), "open", "order.authorisation_asked")
        .money(refused(), "cancelling", "cancel")
        // Not taken yet: it is still to be called off, once.
        .waits("cancelling", "")
        .ride(cancelled(CancelledBy::Ops, None), "refused", "")
        .plays(dir.path(), "refused.db", &impatient(Unauthorised::Accept))
        .await;
}

#[tokio::test]
async fn a_payment_that_nobody_answers_calls_the_ride_off_where_the_policy_says_so() {
    let dir = tempfile::tempdir().unwrap();
    Story::default()
        .ride(requested(), "open", "order.authorisation_asked")
        .waits("cancelling", "cancel")
        .waits("cancelling", "")
        // Something may be held by now: it is let go before it is over.
        .ride(
            cancelled(CancelledBy::Ops, None),
            "voiding",
            "order.void_asked",
        )
        .waits("voiding", "order.void_asked")
        .money(Voided { ride: RIDE }, "voided", "")
        .plays(dir.path(), "silent.db", &impatient(Unauthorised::Refuse))
        .await;
}

#[tokio::test]
async fn a_cancel_before_a_driver_was_found_lets_the_hold_go() {
    let dir = tempfile::tempdir().unwrap();
    Story::default()
        .ride(requested(), "open", "order.authorisation_asked")
        .money(authorised(), "open", "")
        .ride(
            cancelled(CancelledBy::Rider, None),
            "voiding",
            "order.void_asked",
        )
        .waits("voiding", "order.void_asked")
        .money(Voided { ride: RIDE }, "voided", "")
        .plays(dir.path(), "voided.db", &impatient(Unauthorised::Accept))
        .await;
}

#[tokio::test]
async fn a_cancel_after_it_costs_the_fee() {
    let dir = tempfile::tempdir().unwrap();
    Story::default()
        .ride(requested(), "open", "order.authorisation_asked")
        .money(authorised(), "open", "")
        .ride(assigned(), "open", "")
        .ride(
            cancelled(CancelledBy::Rider, Some(driver())),
            "capturing",
            "order.capture_asked",
        )
        .waits("capturing", "order.capture_asked")
        .money(captured(), "captured", "order.receipt")
        .plays(dir.path(), "fee.db", &impatient(Unauthorised::Accept))
        .await;
}

#[tokio::test]
async fn a_ride_that_was_driven_and_refused_late_is_left_unpaid() {
    let dir = tempfile::tempdir().unwrap();
    Story::default()
        .ride(requested(), "open", "order.authorisation_asked")
        .ride(assigned(), "open", "")
        .ride(started(), "open", "")
        .ride(completed(), "capturing", "order.capture_asked")
        .money(refused(), "unpaid", "order.left_unpaid")
        .plays(dir.path(), "unpaid.db", &impatient(Unauthorised::Accept))
        .await;
}
