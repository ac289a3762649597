//! Pings that partners publish go the same way as a phone's.

mod support;

use cabrank_events::DriverId;
use cabrank_events::wire::{Ping, PingRefusal};
use cabrank_matcher::api::{Dispatch, Soon};
use support::{City, until};

fn ping(lat: f64, time: i64, seq: u32) -> Ping {
    Ping {
        lat,
        lon: -122.4190,
        time: Some(time),
        seq,
        accuracy: None,
    }
}

fn latitude(city: &City, driver: &DriverId) -> Option<f64> {
    match city.node.position(driver) {
        Soon::Now(answer) => Some(answer.into_inner().ok()??.at.0.lat_deg()),
        Soon::Later(_) => None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partners_ping_and_a_phones_are_one_sequence() {
    let city = City::start().await;
    let driver = DriverId::new("d1").unwrap();
    let now = city.node.now().0;
    // Nobody at work: refused and counted like a phone's.
    city.partners.take(&driver, &ping(37.7700, now - 10, 1));
    let pings = city.counters.snapshot();
    assert_eq!(pings.refused_for(PingRefusal::NotOnline), 1);
    let mut phone = city.driver("d1").await;
    phone.online(&["economy"]).await;
    city.partners.take(&driver, &ping(37.7710, now, 2));
    assert_eq!(latitude(&city, &driver), Some(37.7710));
    // The phone's is newer, the partner's next one is older than that, and a wild one is not believed.
    phone.ping(37.7712, -122.4190, 3).await;
    until("the phone's ping", async || {
        (latitude(&city, &driver) == Some(37.7712)).then_some(())
    })
    .await;
    city.partners.take(&driver, &ping(37.7714, now, 3));
    city.partners.take(&driver, &ping(95.0, now + 2, 4));
    assert_eq!(latitude(&city, &driver), Some(37.7712));
    let pings = city.counters.snapshot();
    assert_eq!(pings.refused_for(PingRefusal::OutOfOrder), 1);
    assert_eq!(pings.refused_for(PingRefusal::BadCoordinates), 1);
    assert_eq!((pings.sent, pings.accepted), (5, 2));
    city.end().await;
}
