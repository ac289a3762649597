//! What a Redis is asked for the same work: GEOADD for a ping, GEOSEARCH for a search, in RESP2 as every client speaks it.
//!
//! Each ping is acknowledged by Redis, so its latency ends with the reply; a Cabrank acknowledges no ping.

use cabrank_geo::Point;
use redis_protocol::resp2::decode::decode;
use redis_protocol::resp2::types::OwnedFrame;

/// Where the drivers are.
const KEY: &str = "drivers";

/// A whole reply at the beginning of what was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Bytes of it.
    pub length: usize,
    /// It is an error.
    pub is_error: bool,
}

/// The first reply in `bytes`; None: not all there yet.
pub fn take_reply(bytes: &[u8]) -> Result<Option<Reply>, String> {
    let decoded = decode(bytes).map_err(|why| format!("not a reply of Redis: {why}"))?;
    Ok(decoded.map(|(frame, length)| Reply {
        length,
        is_error: matches!(frame, OwnedFrame::Error(_)),
    }))
}

/// Appends a command: an array of bulk strings.
fn command(out: &mut Vec<u8>, parts: &[&str]) {
    out.extend_from_slice(format!("*{}\r\n", parts.len()).as_bytes());
    for part in parts {
        out.extend_from_slice(format!("${}\r\n{part}\r\n", part.len()).as_bytes());
    }
}

/// Appends a ping.
pub fn geo_add(out: &mut Vec<u8>, driver: &str, at: Point) {
    let (lon, lat) = (at.lon_deg().to_string(), at.lat_deg().to_string());
    command(out, &["GEOADD", KEY, &lon, &lat, driver]);
}

/// A search for the `k` nearest, with their distances and places, as `GET /v1/nearby` answers them.
pub fn geo_search(at: Point, radius_m: f64, k: u32) -> Vec<u8> {
    let (lon, lat) = (at.lon_deg().to_string(), at.lat_deg().to_string());
    let (radius, count) = (radius_m.to_string(), k.to_string());
    let mut out = Vec::new();
    let parts = [
        "GEOSEARCH",
        KEY,
        "FROMLONLAT",
        &lon,
        &lat,
        "BYRADIUS",
        &radius,
        "m",
        "ASC",
        "COUNT",
        &count,
        "WITHDIST",
        "WITHCOORD",
    ];
    command(&mut out, &parts);
    out
}

/// GEOADD calls a Redis has served so far, of what `INFO commandstats` says.
pub fn geo_adds(info: &str) -> Option<u64> {
    let Some((_, rest)) = info.split_once("cmdstat_geoadd:calls=") else {
        return info.contains("# Commandstats").then_some(0);
    };
    rest.split(',').next()?.parse().ok()
}

/// Asks a running Redis that, at `redis://host:port`.
pub fn read_geo_adds(url: &str) -> Option<u64> {
    use std::io::{Read, Write};
    use std::time::Duration;
    let mut stream = std::net::TcpStream::connect(url.strip_prefix("redis://")?).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    let mut ask = Vec::new();
    command(&mut ask, &["INFO", "commandstats"]);
    stream.write_all(&ask).ok()?;
    let (mut said, mut chunk) = (Vec::new(), [0u8; 4_096]);
    while take_reply(&said).ok()?.is_none() {
        let read = stream.read(&mut chunk).ok().filter(|read| *read > 0)?;
        said.extend_from_slice(&chunk[..read]);
    }
    geo_adds(&String::from_utf8_lossy(&said))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_arrays_of_strings_and_replies_are_taken_when_complete() {
        let mut out = Vec::new();
        geo_add(&mut out, "d-1", Point::new(37.5, -122.25).unwrap());
        let text = String::from_utf8(out).unwrap();
        assert_eq!(
            text,
            "*5\r\n$6\r\nGEOADD\r\n$7\r\ndrivers\r\n$7\r\n-122.25\r\n$4\r\n37.5\r\n$3\r\nd-1\r\n"
        );
        let two = b":1\r\n-ERR no\r\n";
        let first = take_reply(two).unwrap().unwrap();
        assert_eq!((first.length, first.is_error), (4, false));
        assert!(take_reply(&two[4..]).unwrap().unwrap().is_error);
        assert_eq!(take_reply(b"*2\r\n$1\r\na\r\n").unwrap(), None);
        assert!(take_reply(b"what?\r\n").is_err());
    }

    #[test]
    fn calls_are_read_off_the_statistics() {
        let info =
            "$60\r\n# Commandstats\r\ncmdstat_geoadd:calls=417,usec=3,usec_per_call=0.10\r\n";
        assert_eq!(geo_adds(info), Some(417));
        assert_eq!(geo_adds("# Commandstats\r\n"), Some(0));
        assert_eq!(geo_adds("-NOAUTH"), None);
    }
}
