//! Prints the table an ownership resolution is chosen from, for recorded rides and pings:
//! `cargo run --release -p cabrank-ring --example ownership_table -- TRIPS.csv.gz GPS.csv.gz [SHARDS [HALO_M]]`.

use std::error::Error;
use std::fs::File;

use cabrank_geo::Point;
use cabrank_ring::{Ring, table};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(trips), Some(gps)) = (arguments.next(), arguments.next()) else {
        return Err("give a file of trips and one of pings".into());
    };
    let shards = arguments.next().map_or(Ok(8), |shards| shards.parse())?;
    let halo_m = arguments.next().map_or(Ok(5_000.0), |halo| halo.parse())?;
    let rows = table::ownership_table(
        &Ring::new(shards)?,
        points(&trips, "pickup_lat", "pickup_lon")?,
        points(&gps, "lat", "lon")?,
        halo_m,
    );
    print!("{}", table::render(&rows));
    Ok(())
}

/// The valid points of two columns.
fn points(file: &str, lat: &str, lon: &str) -> Result<Vec<Point>, Box<dyn Error>> {
    let mut rows = csv::Reader::from_reader(flate2::read::GzDecoder::new(File::open(file)?));
    let headers = rows.headers()?;
    let column = |name| {
        headers
            .iter()
            .position(|header| header == name)
            .ok_or("no such column")
    };
    let (lat, lon) = (column(lat)?, column(lon)?);
    let mut points = Vec::new();
    for row in rows.records() {
        let row = row?;
        points.extend(Point::new(row[lat].parse()?, row[lon].parse()?).ok());
    }
    Ok(points)
}
