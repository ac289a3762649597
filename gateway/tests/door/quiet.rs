//! What is written into logs at INFO: nothing that names a person, a place or a token. All tests of this binary write
//! into one log, so what abuse makes the server say is looked at, too.

use cabrank_gateway::token::Role;
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::support::log::{listen, log};
use crate::support::{City, OPS, answered, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_run_names_nobody_and_no_place_in_its_log() {
    listen();
    tracing::info!("the log is kept");
    let dir = tempfile::tempdir().unwrap();
    let city = City::with(|gateway, _| {
        gateway.keys.revocations_file = dir.path().join("revoked").display().to_string();
    })
    .await;
    // A ride of people and places whose names stand nowhere else.
    let (driver_name, rider_name) = ("zebra-driver-4711", "zebra-rider-4712");
    let mut driver = city.driver(driver_name).await;
    driver.online(&["economy"]).await;
    driver.ping(37.512_345, -122.412_345, 1).await;
    until("the ping", async || {
        (city.counters.snapshot().accepted > 0).then_some(())
    })
    .await;
    let wish = json!({"pickup":{"lat":37.512_346,"lon":-122.412_346},"dropoff":{"lat":37.52,"lon":-122.42}});
    let opened = answered(city.ask(rider_name, "zebra-key", &wish).await, 201).await;
    let offer = driver.hear("offer").await;
    driver
        .reports(
            &["received", "accept", "arrived", "started", "completed"],
            &offer,
        )
        .await;
    // What is wrong is often what is logged: bad messages, bad tokens, a bad place, an operator's words, a broken socket.
    driver
        .say(json!({"type":"zebra","id":"zebra-message"}))
        .await;
    driver.hear("error").await;
    driver.ping(91.512_345, -122.412_345, 2).await;
    driver.hear("ping_refused").await;
    let token = city.token(Role::Driver, driver_name);
    let (head, _) = token.rsplit_once('.').unwrap();
    let forged = format!("{head}.zebraforged");
    assert!(
        city.socket("/v1/driver", Some(&forged), None)
            .await
            .is_err()
    );
    let body = json!({"reason":"zebra reason"});
    let path = format!("/v1/drivers/{driver_name}/suspend");
    answered(city.post(&path, OPS, &body).await, 200).await;
    let body = json!({"role":"driver","subject":driver_name,"reason":"zebra reason"});
    answered(city.post("/v1/revocations", OPS, &body).await, 200).await;
    assert_eq!(driver.closed().await.0, 4403);
    let mut tcp = TcpStream::connect(city.address).await.unwrap();
    tcp.write_all(
        format!("GET /zebra?lat=37.512345 HTTP/1.1\r\nauthorization: {token}\r\n\u{0}\r\n\r\n")
            .as_bytes(),
    )
    .await
    .unwrap();
    drop(tcp);
    let ride = opened["ride"].as_str().unwrap().to_owned();
    city.end().await;

    let log = log();
    assert!(
        log.contains("the log is kept") && log.contains("a revocation"),
        "{log}"
    );
    for secret in [
        "zebra",
        "37.51234",
        "122.41234",
        "eyJ",
        "Bearer",
        &ride,
        cabrank_gateway::token::DEVELOPMENT_SECRET,
    ] {
        let line = log.lines().find(|line| line.contains(secret));
        assert_eq!(line, None, "{secret:?} is in the log");
    }
}
