//! Exactly once in effect: repetition, crashes, poison, versions, two starters.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use cabrank_services::consumer::{
    ATTEMPTS_MAX, Consumer, Message, RunError, Service, Trouble, Work,
};
use cabrank_services::database::{Database, OpenError, Step};
use cabrank_services::source::{Batch, Positions};
use sqlx::Row;
use support::{City, Stores};
use tokio_util::sync::CancellationToken;

/// Counts events; one of them it may not like.
struct Tally {
    dislikes: Option<String>,
    fails_once: Arc<AtomicBool>,
}

impl Tally {
    fn new() -> Tally {
        Tally {
            dislikes: None,
            fails_once: Arc::default(),
        }
    }
}

const STEPS: &[Step] = &[(
    2,
    "tally",
    "CREATE TABLE tally (n BIGINT NOT NULL); INSERT INTO tally (n) VALUES (0);",
)];

impl Service for Tally {
    fn name(&self) -> &'static str {
        "tally"
    }

    async fn apply(&mut self, work: &mut Work, messages: &[Message]) -> Result<(), Trouble> {
        for message in messages {
            if self.dislikes.as_ref() == Some(&message.id) {
                return Err(Trouble::poison(&message.id, "not to my taste"));
            }
            sqlx::query("UPDATE tally SET n = n + 1")
                .execute(work.sql())
                .await?;
        }
        // SeqCst: a test's flag, its cost does not matter.
        if self.fails_once.swap(false, Ordering::SeqCst) {
            return Err(Trouble::Database(sqlx::Error::PoolTimedOut));
        }
        Ok(())
    }
}

async fn tally(database: &Database) -> i64 {
    sqlx::query_scalar("SELECT n FROM tally")
        .fetch_one(database.pool())
        .await
        .unwrap()
}

fn batch(messages: &[Bytes], next: usize) -> Batch {
    Batch {
        messages: messages.to_vec(),
        after: Positions::from([("all".to_owned(), next.to_string())]),
        behind: None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_has_its_effect_once_however_often_it_comes() {
    let stores = Stores::new();
    stores
        .each(|make| async move {
            let events = City::new(1).rides(20);
            let database = Database::open(&make("once"), STEPS).await.unwrap();
            let consumer = Consumer::take(database.clone(), "tally").await.unwrap();
            let (mut service, stop) = (Tally::new(), CancellationToken::new());
            for part in [
                &events[..7],
                &events[3..20],
                &events[..20],
                &[events[5].clone(), events[5].clone()][..],
            ] {
                consumer
                    .apply(&mut service, "rides", batch(part, 20), &stop)
                    .await
                    .unwrap();
            }
            assert_eq!(tally(&database).await, 20);
            // A failure of the database repeats the whole batch, not half of it.
            service.fails_once.store(true, Ordering::SeqCst);
            consumer
                .apply(&mut service, "rides", batch(&events[20..40], 40), &stop)
                .await
                .unwrap();
            assert_eq!(tally(&database).await, 40);
            database.close().await;
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poisoned_event_is_set_aside_with_its_reason_and_the_rest_goes_on() {
    let stores = Stores::new();
    stores
        .each(|make| async move {
            let events = City::new(2).rides(10);
            let database = Database::open(&make("poison"), STEPS).await.unwrap();
            let consumer = Consumer::take(database.clone(), "tally").await.unwrap();
            let (mut service, stop) = (Tally::new(), CancellationToken::new());
            service.dislikes = Some("0-4".to_owned());
            consumer
                .apply(&mut service, "rides", batch(&events[..10], 10), &stop)
                .await
                .unwrap();
            assert_eq!(tally(&database).await, 9);
            let row = sqlx::query("SELECT id, reason FROM dead_letters")
                .fetch_one(database.pool())
                .await
                .unwrap();
            assert_eq!(row.get::<String, _>("id"), "0-4");
            assert_eq!(row.get::<String, _>("reason"), "not to my taste");
            let told: String =
                sqlx::query_scalar("SELECT body FROM outbox WHERE topic = 'dead-letters'")
                    .fetch_one(database.pool())
                    .await
                    .unwrap();
            assert!(told.contains("not to my taste"), "{told}");
            let retries = consumer.gauges.retries.load(Ordering::Relaxed);
            assert_eq!(
                retries,
                u64::from(ATTEMPTS_MAX) - 1,
                "tried so often before it was given up"
            );

            let replayed = consumer.replay_dead(&mut service).await.unwrap();
            assert_eq!(
                (replayed.applied, replayed.left.len()),
                (0, 1),
                "still not to its taste"
            );
            service.dislikes = None;
            let replayed = consumer.replay_dead(&mut service).await.unwrap();
            assert_eq!((replayed.applied, replayed.left.len()), (1, 0));
            assert_eq!(tally(&database).await, 10);
            // The event itself coming again changes nothing.
            consumer
                .apply(&mut service, "rides", batch(&events[..10], 10), &stop)
                .await
                .unwrap();
            assert_eq!(tally(&database).await, 10);
            database.close().await;
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_fields_pass_and_a_newer_version_is_set_aside_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let database = Database::open(&dir.path().join("v.db").display().to_string(), STEPS)
        .await
        .unwrap();
    let consumer = Consumer::take(database.clone(), "tally").await.unwrap();
    let event = String::from_utf8(City::new(3).rides(1)[0].to_vec()).unwrap();
    let with_more = event
        .replace("\"data\":{", "\"data\":{\"mood\":\"sunny\",")
        .replace("0-1\"", "0-101\"");
    let too_new = event
        .replace(".v1\"", ".v9\"")
        .replace("\"id\":\"0-1\"", "\"id\":\"0-102\"");
    let messages = [with_more, too_new, "neither JSON".to_owned()].map(Bytes::from);
    let stop = CancellationToken::new();
    consumer
        .apply(&mut Tally::new(), "rides", batch(&messages, 3), &stop)
        .await
        .unwrap();
    assert_eq!(tally(&database).await, 1);
    let rows = sqlx::query("SELECT reason FROM dead_letters ORDER BY id")
        .fetch_all(database.pool())
        .await
        .unwrap();
    let reasons: Vec<String> = rows.iter().map(|row| row.get("reason")).collect();
    assert_eq!(reasons.len(), 2, "{reasons:?}");
    assert!(
        reasons[0].contains("version 9") && reasons[0].contains("upgrade this program"),
        "{reasons:?}"
    );
    assert!(reasons[1].contains("not a CloudEvent"), "{reasons:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_starters_do_not_meet() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("two.db").display().to_string();
    let first = Database::open(&path, STEPS).await.unwrap();
    assert!(matches!(
        Database::open(&path, STEPS).await,
        Err(OpenError::InUse(_))
    ));
    first.close().await;
    drop(first);
    Database::open(&path, STEPS).await.expect("free again");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_takes_the_database_over_fences_the_one_before() {
    let stores = Stores::new();
    stores
        .each(|make| async move {
            let events = City::new(4).rides(10);
            // On PostgreSQL both run the migrations at once.
            let database = Database::open(&make("fence"), STEPS).await.unwrap();
            let old = Consumer::take(database.clone(), "tally").await.unwrap();
            let new = Consumer::take(database.clone(), "tally").await.unwrap();
            let stop = CancellationToken::new();
            let late = old
                .apply(&mut Tally::new(), "rides", batch(&events[..5], 5), &stop)
                .await;
            assert!(matches!(late, Err(RunError::Replaced)), "{late:?}");
            assert_eq!(tally(&database).await, 0);
            new.apply(&mut Tally::new(), "rides", batch(&events[..5], 5), &stop)
                .await
                .unwrap();
            assert_eq!(tally(&database).await, 5);
            database.close().await;
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_starters_on_postgres_run_each_migration_once() {
    let Some(server) = support::postgres::Server::start() else {
        return;
    };
    let url = server.maker()("starters");
    let (one, two) = tokio::join!(Database::open(&url, STEPS), Database::open(&url, STEPS));
    let (one, two) = (one.unwrap(), two.unwrap());
    assert_eq!(tally(&one).await, 0);
    two.close().await;
    one.close().await;
}
