//! How dear is a ride from here now?
//!
//! Requests expected in the next quarter hour, over the cars that are free in the cell: up to `BALANCED` rides a car cost
//! what the tariff says, each further one adds `SLOPE_PERMILLE`, in steps of `STEP_PERMILLE` so that prices do not
//! flicker. The tariff bounds it (`surge_max_permille`, 1000 = off). Forecasts are asked of the forecast service now and
//! then; without an answer for `FORGOTTEN_AFTER` nothing is dear. The factor at the request holds for the ride.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use cabrank_events::business::DemandForecast;
use cabrank_geo::Point;
use h3o::{CellIndex, LatLng, Resolution};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Surge;
use crate::host::Peer;

/// Rides a free car can take in a quarter hour without anybody waiting longer.
const BALANCED: f64 = 1.0;
/// What each further ride for a free car adds to the price, in thousandths.
const SLOPE_PERMILLE: f64 = 250.0;
/// Factors are multiples of this.
const STEP_PERMILLE: i64 = 50;
/// How often forecasts are asked for.
const ASK_EVERY: Duration = Duration::from_secs(10);
/// Forecasts older than this are no reason for a price.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(120);

/// The factor of a cell, in thousandths, at least 1000.
pub fn factor(expected: f64, supply: u32) -> i64 {
    let each = expected / f64::from(supply.max(1));
    let above = (each - BALANCED).max(0.0) * SLOPE_PERMILLE;
    // A cast of a float saturates.
    1_000 + (above as i64 / STEP_PERMILLE) * STEP_PERMILLE
}

/// The newest factors, by cell.
#[derive(Clone, Default)]
pub struct Factors(Arc<RwLock<HashMap<CellIndex, i64>>>);

impl Factors {
    /// Replaces all of them.
    pub fn set(&self, forecasts: &[DemandForecast]) {
        let factors = forecasts.iter().filter_map(|forecast| {
            let next = forecast.predicted_demand.first()?;
            let cell = forecast.region_id.parse().ok()?;
            Some((cell, factor(next.expected, forecast.supply)))
        });
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = factors.collect();
    }

    /// The factor at `place`; 1000 where nothing is known.
    pub fn at(&self, place: Point) -> i64 {
        let factors = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let resolution = factors.keys().next().map(|cell| cell.resolution());
        let cell = |resolution: Resolution| {
            let place = LatLng::new(place.lat_deg(), place.lon_deg()).ok()?;
            Some(place.to_cell(resolution))
        };
        let cell = resolution.and_then(cell);
        cell.and_then(|cell| factors.get(&cell).copied())
            .unwrap_or(1_000)
    }

    /// For the order service.
    pub fn as_surge(&self) -> Surge {
        let factors = self.clone();
        Arc::new(move |place| factors.at(place))
    }
}

/// Keeps `factors` new until `stop`.
pub async fn keep_asking(factors: Factors, forecast: Peer, stop: CancellationToken) {
    let (http, url) = (
        reqwest::Client::new(),
        format!("{}/v1/forecasts", forecast.base.trim_end_matches('/')),
    );
    let mut answered = Instant::now();
    loop {
        let request = http
            .get(&url)
            .bearer_auth((forecast.token)())
            .timeout(ASK_EVERY);
        let answer = async {
            let answer = request.send().await?.error_for_status()?;
            answer.json::<Vec<DemandForecast>>().await
        };
        match answer.await {
            Ok(forecasts) => {
                factors.set(&forecasts);
                answered = Instant::now();
            }
            Err(why) if answered.elapsed() >= FORGOTTEN_AFTER => {
                tracing::warn!(%why, "no forecasts: no ride is dearer than the tariff");
                factors.set(&[]);
            }
            Err(_) => {}
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(ASK_EVERY) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use cabrank_events::business::Horizon;

    use super::*;

    #[test]
    fn a_cell_is_dear_where_more_rides_are_expected_than_cars_are_free() {
        assert_eq!(factor(0.0, 0), 1_000);
        assert_eq!(factor(4.0, 4), 1_000);
        assert_eq!(factor(8.0, 4), 1_250);
        assert_eq!(factor(8.9, 4), 1_300, "in steps");
        assert_eq!(factor(3.0, 0), 1_500, "no car counts as one");
        assert!(factor(1e9, 0) > 1_000_000, "the tariff bounds it, not this");
    }

    #[test]
    fn the_factor_of_a_place_is_its_cells_and_elsewhere_nothing_is_dear() {
        let here = Point::new(37.7749, -122.4194).unwrap();
        let cell = LatLng::new(37.7749, -122.4194)
            .unwrap()
            .to_cell(Resolution::Seven);
        let horizon = Horizon {
            minutes: 15,
            expected: 9.0,
            low: 2,
            high: 17,
        };
        let forecast = DemandForecast {
            region_id: cell.to_string(),
            timestamp: String::new(),
            predicted_demand: vec![horizon],
            confidence: 0.9,
            supply: 3,
        };
        let factors = Factors::default();
        assert_eq!(factors.at(here), 1_000);
        factors.set(&[forecast]);
        assert_eq!(factors.as_surge()(here), 1_500);
        assert_eq!(factors.at(Point::new(37.9, -122.0).unwrap()), 1_000);
        factors.set(&[]);
        assert_eq!(factors.at(here), 1_000);
    }
}
