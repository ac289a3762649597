//! Doors for `fuzz/` to parsers of outside bytes that are private otherwise. Nothing else uses this.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use cabrank_engine::matching::PolicyKind;
use cabrank_engine::{DispatchRules, EngineConfig};
use cabrank_geo::{Point, Zones};

use crate::desk::Because;
use crate::destination::Destination;
use crate::dispatch::SetRules;
use crate::frames::{Broken, Inbound};
use crate::http::{ByKey, Why};
use crate::keys::{KeysConfig, read_set};
use crate::marks::{Block, Heading};
use crate::query::Asked;
use crate::revoke::Entry;
use crate::shutout::Revoke;
use crate::token::Reading;
use crate::zone_file::zones_of;

/// The largest message, small enough that a fuzzer reaches it.
const MESSAGE_BYTES_MAX: usize = 2_048;

/// The frames in `bytes` when they come in pieces of `piece`, as text, and how it ended.
pub fn websocket_frames(bytes: &[u8], piece: usize) -> (Vec<String>, Option<Broken>) {
    let mut inbound = Inbound::new(MESSAGE_BYTES_MAX);
    let mut frames = Vec::new();
    for piece in bytes.chunks(piece.min(bytes.len().max(1))) {
        let taken = inbound.take(&mut piece.to_vec(), |frame| {
            frames.push(format!("{frame:?}"));
            ControlFlow::Continue(())
        });
        if let Err(broken) = taken {
            return (frames, Some(broken));
        }
    }
    (frames, None)
}

/// Every body a call has.
pub fn http_bodies(bytes: &[u8]) {
    let _ = serde_json::from_slice::<cabrank_events::wire::RideRequest>(bytes);
    let _ = serde_json::from_slice::<ByKey>(bytes);
    let _ = serde_json::from_slice::<Why>(bytes);
    let _ = serde_json::from_slice::<Because>(bytes);
    let _ = serde_json::from_slice::<Block>(bytes);
    let _ = serde_json::from_slice::<Heading>(bytes);
    let _ = serde_json::from_slice::<Destination>(bytes);
    let _ = serde_json::from_slice::<Revoke>(bytes);
    let _ = serde_json::from_slice::<cabrank_events::wire::QuoteRequest>(bytes);
    let _ = serde_json::from_slice::<SetRules>(bytes);
    if let Ok(settings) = serde_json::from_slice(bytes) {
        let configured = DispatchRules::configured(PolicyKind::Batched, &EngineConfig::default());
        let _ = configured.with(&settings);
    }
}

/// A file of zones: what it draws, drawn up and looked into.
pub fn zones(text: &str) {
    let Ok(zones) = zones_of("fuzz.geojson", text) else {
        return;
    };
    let corners: Vec<Point> = zones
        .iter()
        .flat_map(|zone| &zone.areas)
        .flat_map(|area| area.outer().corners().take(8))
        .collect();
    let plain = zones.clone();
    let Ok(found) = Zones::new(zones) else {
        return;
    };
    for at in corners {
        // The tree finds what a look at each zone finds.
        let around: BTreeSet<&str> = found.around(at).map(|zone| &*zone.name).collect();
        let inside = plain.iter().filter(|zone| zone.contains(at));
        assert_eq!(around, inside.map(|zone| &*zone.name).collect());
        let _ = found.find(at);
    }
}

/// A query of a call.
pub fn query(text: &str) {
    let Ok(uri) = format!("/v1/nearby?{text}").parse() else {
        return;
    };
    if let Ok(asked) = Asked::of(&uri, &["lat", "lon", "k"]) {
        let _ = asked.value("lat", "", |value: &f64| value.is_finite());
        let _ = asked.value("k", "", |value: &usize| *value > 0);
        let _ = asked.text("lon");
    }
}

/// The claims of a token whose signature was right.
pub fn claims(bytes: &[u8]) {
    let keys = KeysConfig {
        role_claim: "a.b".into(),
        ..KeysConfig::default()
    };
    for keys in [KeysConfig::default(), keys] {
        if let Ok(claims) = serde_json::from_slice(bytes) {
            let _ = Reading::new(&keys).verified(&claims);
        }
    }
}

/// A JSON Web Key Set.
pub fn set_of_keys(bytes: &[u8]) {
    if let Ok(keys) = read_set(bytes) {
        let secret = jsonwebtoken::Algorithm::HS256;
        assert!(keys.iter().all(|key| !key.algorithms.contains(&secret)));
    }
}

/// A line of the revocations file.
pub fn revocation(bytes: &[u8]) {
    let _ = serde_json::from_slice::<Entry>(bytes);
}
