//! The forecast: judged on recorded demand, and as a service.
//!
//! Recorded demand is looked for in `CABRANK_TRACES` (default `../shared/data` beside the workspace). Without it the test says
//! in one line that it did not run; with `CABRANK_REQUIRE_TRACES=1` that is a failure.

mod support;

use std::path::{Path, PathBuf};

use cabrank_services::consumer::Consumer;
use cabrank_services::database::Database;
use cabrank_services::forecast::evaluate::{Judged, Table, choose, evaluate};
use cabrank_services::forecast::model::{CONFIDENCE, Weights};
use cabrank_services::forecast::{Config, ForecastService, STEPS, newest};
use cabrank_services::source::{Batch, Positions};
use h3o::Resolution;
use support::City;
use tokio_util::sync::CancellationToken;

/// Evenings on which the model's weights were chosen.
const CHOSEN_ON: [&str; 3] = [
    "sf_trips_2008-05-19_17-22.csv.gz",
    "sf_trips_2008-05-20_17-22.csv.gz",
    "sf_trips_2008-05-21_17-22.csv.gz",
];
/// Demand that it is judged on: other days, and another city.
const JUDGED_ON: [&str; 4] = [
    "sf_trips_2008-05-22_00-24.csv.gz",
    "sf_trips_2008-05-23_17-22.csv.gz",
    "nyc_taxi_sample_2011-02-01_16-24.csv.gz",
    "nyc_uber_2014-04-10.csv.gz",
];

fn traces() -> Option<PathBuf> {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data");
    let dir = std::env::var_os("CABRANK_TRACES").map_or_else(beside, PathBuf::from);
    if dir.join(CHOSEN_ON[0]).is_file() {
        return Some(dir);
    }
    let dir = dir.display();
    assert!(
        std::env::var_os("CABRANK_REQUIRE_TRACES").is_none(),
        "no recorded demand in {dir}"
    );
    eprintln!("NOT RUN: no recorded demand in {dir}");
    None
}

fn files(dir: &Path, names: &[&str]) -> Vec<PathBuf> {
    names.iter().map(|name| dir.join(name)).collect()
}

#[test]
fn the_weights_are_the_best_of_those_compared_on_three_evenings() {
    let Some(dir) = traces() else { return };
    let files = files(&dir, &CHOSEN_ON);
    let files: Vec<&Path> = files.iter().map(PathBuf::as_path).collect();
    let (tried, learned) = choose(&files, Resolution::Seven).unwrap();
    for candidate in tried.iter().take(5) {
        println!("{:.4} {:?}", candidate.error, candidate.weights);
    }
    println!("{learned:.2?}");
    assert_eq!(tried[0].weights, Weights::default(), "{tried:?}");
}

#[test]
fn on_other_days_the_forecast_beats_the_best_baseline_and_its_intervals_hold_what_they_claim() {
    let Some(dir) = traces() else { return };
    let files = files(&dir, &JUDGED_ON);
    let files: Vec<&Path> = files.iter().map(PathBuf::as_path).collect();
    let judged = evaluate(&files, Resolution::Seven, 1).unwrap();
    println!("{}", Table(&judged));
    let all: &Judged = judged.last().unwrap();
    assert_eq!(all.name, "all");
    let (mean, _, high) = all.gain;
    assert!(
        mean < 0.0 && high < 0.0,
        "better than the best baseline, beyond chance: {:?}",
        all.gain
    );
    for (coverage, minutes) in all.coverage.into_iter().zip([15, 30, 60]) {
        assert!(
            coverage >= CONFIDENCE,
            "{minutes} min: {coverage} of the counts are inside"
        );
    }
    assert!(
        all.pit_distance() < 0.1,
        "the PIT is off by {}",
        all.pit_distance()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn forecasts_are_published_and_a_restart_goes_on_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let events = City::new(9).rides(400);
    let forecast_of = async |name: &str, parts: Vec<&[bytes::Bytes]>| {
        let path = dir.path().join(name).display().to_string();
        for part in parts {
            // Each part by a process of its own: nothing is kept but the database.
            let database = Database::open(&path, STEPS).await.unwrap();
            let consumer = Consumer::take(database.clone(), "forecast").await.unwrap();
            let mut service = ForecastService::new(Config::default()).unwrap();
            for messages in part.chunks(64) {
                let batch = Batch {
                    messages: messages.to_vec(),
                    after: Positions::new(),
                    behind: None,
                };
                consumer
                    .apply(&mut service, "rides", batch, &CancellationToken::new())
                    .await
                    .unwrap();
            }
            database.close().await;
        }
        let database = Database::open(&path, STEPS).await.unwrap();
        let said: i64 =
            sqlx::query_scalar("SELECT COUNT(*) FROM outbox WHERE topic = 'demand-forecasts'")
                .fetch_one(database.pool())
                .await
                .unwrap();
        assert!(said > 0, "something was published");
        newest(&database).await.unwrap()
    };
    let at_once = forecast_of("whole.db", vec![&events]).await;
    let middle = events.len() / 128 * 64;
    let restarted = forecast_of("restarted.db", vec![&events[..middle], &events[middle..]]).await;
    assert_eq!(at_once, restarted);
    assert!(at_once[0].contains("predicted_demand"), "{}", at_once[0]);
}
