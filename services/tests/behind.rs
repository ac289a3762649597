//! How far behind is a service that can apply nothing? Its database goes away and comes back, and what it shows grows and
//! falls; the service itself goes on. (`CabrankServiceBehind` looks at this.)

mod support;

use std::sync::Arc;

use cabrank_services::consumer::wall;
use cabrank_services::database::Database;
use cabrank_services::host::{self, Hosted, Peers, Place};
use cabrank_services::order::saga::Policy;
use cabrank_services::source::Source;
use cabrank_services::web::Guard;
use sqlx::{Any, Transaction};
use support::postgres::Server;
use support::{City, Script, until};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// A database that can be out of reach.
enum Home {
    /// A file that somebody else writes to without an end.
    File(String, Option<Transaction<'static, Any>>),
    /// A server that is stopped.
    Server(String, Server),
}

impl Home {
    fn url(&self) -> &str {
        match self {
            Home::File(url, _) | Home::Server(url, _) => url,
        }
    }

    async fn away(&mut self) {
        match self {
            Home::File(url, held) => {
                let neighbour = Database::open_for_reading(url).await.unwrap();
                *held = Some(neighbour.begin().await.unwrap());
            }
            Home::Server(_, server) => server.away(),
        }
    }

    async fn back(&mut self) {
        match self {
            Home::File(_, held) => held.take().unwrap().rollback().await.unwrap(),
            Home::Server(_, server) => server.back(),
        }
    }
}

/// What the order service shows at `/metrics`, which asks no database.
async fn shows(order: &Hosted, gauge: &str) -> f64 {
    let answer = reqwest::get(format!("{}/metrics", order.url())).await;
    let text = answer.unwrap().text().await.unwrap();
    let name = format!("cabrank_service_{gauge}{{service=\"order\"}} ");
    let value = text.lines().find_map(|line| line.strip_prefix(&name));
    value.expect("it is shown").parse().unwrap()
}

async fn a_database_goes_away_and_comes_back(mut home: Home) {
    let guard: Guard = Arc::new(|_| None);
    let stop = CancellationToken::new();
    let place = Place {
        database: home.url().to_owned(),
        listener: TcpListener::bind("127.0.0.1:0").await.unwrap(),
        guard,
        brokers: None,
        stop: stop.clone(),
    };
    let (mut city, rides) = (City::new(7), Script::of(Vec::new(), 16));
    let mut somebody_asks = || {
        city.now = wall().0;
        rides.push([city.rides(1)[0].clone()]);
    };
    let sources: Vec<Arc<dyn Source>> = vec![Arc::new(rides.clone())];
    let order = host::start_order(place, Policy::default(), sources, Peers::default(), false);
    let order = order.await.unwrap();
    let applied = async |count: f64| {
        until("the rides are applied", || async {
            shows(&order, "events_applied_total").await == count
        })
        .await;
    };
    somebody_asks();
    applied(1.0).await;

    home.away().await;
    somebody_asks();
    until("what waits is a second old", || async {
        shows(&order, "lag_seconds").await >= 1.0
    })
    .await;
    let then = shows(&order, "lag_seconds").await;
    until("what waits grows older", || async {
        shows(&order, "lag_seconds").await >= then + 1.0
    })
    .await;
    assert!(shows(&order, "behind").await >= 1.0);
    let health = reqwest::get(format!("{}/healthz", order.url())).await;
    let said = health.unwrap().headers()["cabrank-lag-ms"].clone();
    let said: f64 = said.to_str().unwrap().parse().unwrap();
    assert!(said >= 1e3 * (then + 1.0), "{said} ms in each answer");

    home.back().await;
    applied(2.0).await;
    somebody_asks();
    applied(3.0).await;
    until("it is in time again", || async {
        shows(&order, "lag_seconds").await < 1.0
    })
    .await;
    assert_eq!(shows(&order, "behind").await, 0.0);
    let most = shows(&order, "lag_max_seconds").await;
    assert!(most > then, "{most} s at most, and it was {then} s");
    stop.cancel();
    order.ended().await.expect("it has gone on");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_whose_file_is_held_by_another_says_how_far_behind_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let url = dir.path().join("order.db").display().to_string();
    a_database_goes_away_and_comes_back(Home::File(url, None)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_whose_server_is_away_says_how_far_behind_it_is() {
    let Some(server) = Server::start() else {
        return;
    };
    let url = server.maker()("behind");
    a_database_goes_away_and_comes_back(Home::Server(url, server)).await;
}
