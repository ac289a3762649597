//! Which zones does this city have at the moment?
//!
//! They are GeoJSON files (`*.geojson`) of one directory, read before the port opens and looked at again every
//! `gateway.zones.reload_ms`: changed files are read anew, all or nothing. Files that make no sense keep a gateway from
//! starting; while it runs, the zones before stay in force and the complaint is logged and shown at the desk.
//! What was found for a request travels in its command, so that gateways which reload at different moments, and retries,
//! agree (`cabrank_events::zone`).
//! Not here: what a file may hold (`zone_file`), the lookup (`cabrank_geo::Zones`), what is done about it (`engine`).

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use cabrank_events::zone::ZoneFinding;
use cabrank_events::{PickupPoint, Place, ZoneName};
use cabrank_geo::{Area, Finding, Polygon, Zone, ZoneKind, Zones};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::access::Endpoint;
use crate::config::BadGatewayConfig;
use crate::edge::Edge;
use crate::http::Shared;
use crate::problem::Problem;
use crate::token::Role;
use crate::zone_file::{COMPLAINTS_MAX, zones_of};

/// Zone files in the directory, and how large one may be.
const FILES_MAX: usize = 64;
const FILE_BYTES_MAX: u64 = 4 << 20;

/// Zones as the configuration has them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ZonesConfig {
    /// The directory with the zones' files, `*.geojson`; empty for no zones. The format is in docs/protocol.md, "Zones".
    pub dir: String,
    /// How often the directory is looked at for changed files, in milliseconds (100 to 3,600,000). Costs a file lookup each.
    pub reload_ms: u64,
    /// Do free drivers at an airport wait in its queue, and its rides take them in order? (docs/dispatch.md)
    pub airport_queues: bool,
    /// A driver whose pings come from elsewhere for this long loses the place in an airport's queue, in milliseconds (0 to 3,600,000). Short: a bad
    /// fix costs the place; long: drivers who have driven off are called in vain.
    pub queue_grace_ms: u64,
}

impl Default for ZonesConfig {
    fn default() -> Self {
        Self {
            dir: String::new(),
            reload_ms: 2_000,
            airport_queues: true,
            queue_grace_ms: 60_000,
        }
    }
}

/// Why zones cannot be used: one line for each thing to mend.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct BadZoneFiles(pub Vec<String>);

/// Name, size and time of each file: when these are as before, so are the zones.
type Stamp = Vec<(PathBuf, u64, Option<SystemTime>)>;

/// The files of a directory in the order of their names.
fn stamp(dir: &Path) -> Result<Stamp, BadZoneFiles> {
    let unreadable = |error: std::io::Error| {
        BadZoneFiles(vec![format!(
            "{}: {error}: give a directory that can be read",
            dir.display()
        )])
    };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        if path.extension().is_none_or(|end| end != "geojson") {
            continue;
        }
        // What has just been taken away is gone.
        let Ok(about) = std::fs::metadata(&path) else {
            continue;
        };
        files.push((path, about.len(), about.modified().ok()));
        if files.len() > FILES_MAX {
            let why = format!("{}: at most {FILES_MAX} zone files", dir.display());
            return Err(BadZoneFiles(vec![why]));
        }
    }
    files.sort();
    Ok(files)
}

/// Reads all zones of a directory, or says what is wrong with them.
pub fn read_zones(dir: &Path) -> Result<Zones, BadZoneFiles> {
    read(&stamp(dir)?)
}

fn read(files: &Stamp) -> Result<Zones, BadZoneFiles> {
    let (mut zones, mut complaints) = (Vec::new(), Vec::new());
    for (path, bytes, _) in files {
        let file = path.display().to_string();
        if *bytes > FILE_BYTES_MAX {
            complaints.push(format!("{file}: at most {FILE_BYTES_MAX} bytes"));
            continue;
        }
        match std::fs::read_to_string(path) {
            Err(error) => complaints.push(format!("{file}: {error}")),
            Ok(text) => match zones_of(&file, &text) {
                Ok(more) => zones.extend(more),
                Err(bad) => complaints.extend(bad.iter().map(ToString::to_string)),
            },
        }
        if complaints.len() >= COMPLAINTS_MAX {
            break;
        }
    }
    if !complaints.is_empty() {
        return Err(BadZoneFiles(complaints));
    }
    Zones::new(zones).map_err(|bad| BadZoneFiles(vec![bad.to_string()]))
}

/// The zones in force, and what browsers draw of them.
struct Held {
    zones: Zones,
    /// As GeoJSON.
    drawn: Arc<str>,
    /// Tells this drawing from others.
    tag: String,
    has_airports: bool,
}

impl Held {
    fn new(zones: Zones) -> Self {
        use std::hash::{DefaultHasher, Hash, Hasher};
        let drawn = drawing(&zones).to_string();
        // Whoever asks compares for equality only; what hashes alike by chance is drawn with the next change.
        let mut hasher = DefaultHasher::new();
        drawn.hash(&mut hasher);
        Self {
            has_airports: zones
                .all()
                .iter()
                .any(|zone| zone.kind == ZoneKind::Airport),
            zones,
            tag: format!("\"{:016x}\"", hasher.finish()),
            drawn: drawn.into(),
        }
    }
}

/// What the files in the directory are, seen at one moment.
#[derive(Default)]
struct Looked {
    stamp: Stamp,
    /// Why what is there now is not in force.
    complaint: Option<String>,
}

/// The zones of a running gateway.
pub struct ZoneBook {
    held: RwLock<Arc<Held>>,
    looked: RwLock<Looked>,
    airport_queues: bool,
}

impl ZoneBook {
    /// Reads the zones as configured; the complaint is one of the configuration.
    pub fn open(config: &ZonesConfig) -> Result<Self, BadGatewayConfig> {
        let bad = |why: BadZoneFiles| BadGatewayConfig {
            key: "zones.dir".into(),
            value: format!("{:?}", config.dir),
            remedy: why.to_string(),
        };
        let files = match &*config.dir {
            "" => Stamp::new(),
            dir => stamp(Path::new(dir)).map_err(bad)?,
        };
        let zones = read(&files).map_err(bad)?;
        tell(&zones, &config.dir);
        Ok(Self {
            held: RwLock::new(Arc::new(Held::new(zones))),
            looked: RwLock::new(Looked {
                stamp: files,
                complaint: None,
            }),
            airport_queues: config.airport_queues,
        })
    }

    fn held(&self) -> Arc<Held> {
        // Nothing panics while it is written: an assignment.
        self.held
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// What the zones say about a place where somebody wants to be fetched; nothing most of the time.
    pub fn finding(&self, asked: Place) -> Option<Box<ZoneFinding>> {
        let held = self.held();
        match held.zones.find(asked.0) {
            Finding::OutOfArea => Some(Box::new(ZoneFinding::OutOfArea)),
            Finding::Served { .. } => None,
            Finding::Snapped { zone, spot } => {
                // Names were checked when the file was read.
                let point = PickupPoint {
                    zone: ZoneName::new(&zone.name).ok()?,
                    name: ZoneName::new(&spot.name).ok()?,
                    at: Place(spot.at),
                    asked,
                };
                Some(Box::new(ZoneFinding::At(point)))
            }
        }
    }

    /// The airport a place lies at.
    pub fn airport(&self, at: Place) -> Option<ZoneName> {
        let held = self.held();
        let airports = held
            .zones
            .around(at.0)
            .filter(|zone| zone.kind == ZoneKind::Airport);
        // Zones come in no order, and all gateways must say the same.
        let first = airports.min_by(|one, other| one.name.cmp(&other.name));
        first.and_then(|zone| ZoneName::new(&zone.name).ok())
    }

    /// Is there an airport where drivers wait in a queue?
    pub fn has_queues(&self) -> bool {
        self.airport_queues && self.held().has_airports
    }

    /// The airport at a place whose rides take its drivers in order.
    pub fn queue_at(&self, at: Place) -> Option<ZoneName> {
        self.airport(at).filter(|_| self.airport_queues)
    }

    /// Looks at the directory, and reads it anew if something has changed. Blocks on the disk.
    fn look(&self, dir: &str) {
        let mut looked = self.looked.write().unwrap_or_else(PoisonError::into_inner);
        let files = match stamp(Path::new(dir)) {
            Ok(files) if files == looked.stamp => return,
            Ok(files) => files,
            Err(why) => {
                // Read anew when the directory is back.
                self.complain(&mut looked, Stamp::new(), why.to_string());
                return;
            }
        };
        match read(&files) {
            Ok(zones) => {
                tell(&zones, dir);
                let held = Arc::new(Held::new(zones));
                *self.held.write().unwrap_or_else(PoisonError::into_inner) = held;
                *looked = Looked {
                    stamp: files,
                    complaint: None,
                };
            }
            Err(why) => self.complain(&mut looked, files, why.to_string()),
        }
    }

    fn complain(&self, looked: &mut Looked, stamp: Stamp, why: String) {
        if looked.complaint.as_ref() != Some(&why) {
            tracing::error!(
                why,
                "the zones' files are not used: the zones before stay in force"
            );
            metrics::counter!("cabrank_zones_refused_total").increment(1);
        }
        *looked = Looked {
            stamp,
            complaint: Some(why),
        };
    }

    fn complaint(&self) -> Option<String> {
        let looked = self.looked.read().unwrap_or_else(PoisonError::into_inner);
        looked.complaint.clone()
    }
}

fn tell(zones: &Zones, dir: &str) {
    let all = zones.all();
    for kind in ZoneKind::ALL {
        let count = all.iter().filter(|zone| zone.kind == kind).count();
        metrics::gauge!("cabrank_zones", "kind" => kind.name()).set(count as f64);
    }
    if !dir.is_empty() {
        let spots: usize = all.iter().map(|zone| zone.spots.len()).sum();
        tracing::info!(
            dir,
            zones = all.len(),
            pickup_points = spots,
            "zones are in force"
        );
    }
}

/// Looks for changed files until the gateway ends.
pub async fn watch(edge: Arc<Edge>, stop: CancellationToken) {
    let config = edge.config.zones.clone();
    if config.dir.is_empty() {
        return;
    }
    let mut ticks = tokio::time::interval(Duration::from_millis(config.reload_ms));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let (edge, dir) = (edge.clone(), config.dir.clone());
        if let Err(failed) = tokio::task::spawn_blocking(move || edge.zones.look(&dir)).await {
            tracing::error!(%failed, "looking at the zones' files failed");
        }
    }
}

/// Zones as a GeoJSON FeatureCollection, as their files have them.
fn drawing(zones: &Zones) -> Value {
    let at = |point: cabrank_geo::Point| json!([point.lon_deg(), point.lat_deg()]);
    let ring = |polygon: &Polygon| {
        let mut corners: Vec<Value> = polygon.corners().map(at).collect();
        corners.extend(corners.first().cloned());
        Value::Array(corners)
    };
    let rings = |area: &Area| {
        let holes = area.holes().iter().map(ring);
        Value::Array(std::iter::once(ring(area.outer())).chain(holes).collect())
    };
    let features = |zone: &Zone| {
        let areas: Vec<Value> = zone.areas.iter().map(rings).collect();
        let mut features = vec![json!({
            "type": "Feature",
            "properties": {"kind": zone.kind.name(), "name": zone.name},
            "geometry": {"type": "MultiPolygon", "coordinates": areas},
        })];
        features.extend(zone.spots.iter().map(|spot| {
            json!({
                "type": "Feature",
                "properties": {"kind": "pickup_point", "name": spot.name, "zone": zone.name},
                "geometry": {"type": "Point", "coordinates": at(spot.at)},
            })
        }));
        features
    };
    let features: Vec<Value> = zones.all().iter().flat_map(features).collect();
    json!({"type": "FeatureCollection", "features": features})
}

/// `GET /v1/zones`
pub async fn zones(State(edge): Shared, headers: HeaderMap) -> Result<Response, Problem> {
    let verified = edge.authorize(Endpoint::Zones, &headers)?;
    let held = edge.zones.held();
    let is_ops = verified.caller.role() == Role::Ops;
    // Only whoever can mend the files is told what is wrong with them.
    let complaint = is_ops.then(|| edge.zones.complaint()).flatten();
    let mut answer = [
        (header::CONTENT_TYPE, "application/geo+json"),
        (header::CACHE_CONTROL, "no-cache"),
    ]
    .into_response();
    let tag = match complaint {
        None => held.tag.clone(),
        Some(_) => format!("{}-refused\"", held.tag.trim_end_matches('"')),
    };
    let known = headers.get(header::IF_NONE_MATCH);
    if known.is_some_and(|known| known.as_bytes() == tag.as_bytes()) {
        *answer.status_mut() = StatusCode::NOT_MODIFIED;
    } else {
        let mut text = held.drawn.to_string();
        if let Some(why) = complaint {
            // A foreign member beside the features (RFC 7946, 6.1).
            text.truncate(text.trim_end_matches('}').len());
            text.push_str(&format!(",\"refused\":{}}}", Value::String(why)));
        }
        *answer.body_mut() = text.into();
    }
    if let Ok(tag) = tag.parse() {
        answer.headers_mut().insert(header::ETAG, tag);
    }
    Ok(answer)
}
