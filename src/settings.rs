//! One configuration: a preset, one TOML file, the environment, flags; checked before any port opens.
//!
//! The knobs are the crates' own structs, and their doc comments are the comments `cabrank config` prints.

use std::path::{Path, PathBuf};

use cabrank_engine::EngineConfig;
use cabrank_eventlog::kafka::KafkaConfig;
use cabrank_gateway::{GatewayConfig, IngestConfig};
use cabrank_matcher::tls::ClusterConfig;
use cabrank_matcher::{NodeConfig, RemoteConfig};
use cabrank_spans::SpansConfig;
use figment::Figment;
use figment::providers::{Env, Format, Serialized, Toml};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Everything that can be set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// What kind of fleet the defaults suit: `phones` or `taxi_feed`.
    pub preset: Preset,
    /// The market: waits, radii, bounds of the engine.
    pub engine: EngineConfig,
    /// The node: rounds, index, transactions.
    pub node: NodeConfig,
    /// The edge: address, keys, limits, timing, ping checks.
    pub gateway: GatewayConfig,
    /// The embedded log: `serve`, `demo`, `replay`.
    pub store: StoreConfig,
    /// The log over Apache Kafka: `gateway`, `matcher`, `topics`, `cluster`.
    pub kafka: KafkaConfig,
    /// A gateway's way to matcher nodes.
    pub remote: RemoteConfig,
    /// How gateways and nodes are with each other.
    pub cluster: ClusterConfig,
    /// Traces of rides, for a collector of OpenTelemetry.
    pub spans: SpansConfig,
}

/// Kinds of fleets.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, clap::ValueEnum,
)]
#[serde(rename_all = "snake_case")]
#[clap(rename_all = "snake_case")]
pub enum Preset {
    /// Phones that ping every few seconds: a position is worth 30 s.
    #[default]
    Phones,
    /// Taxi feeds that ping about once a minute: a position is worth 300 s.
    TaxiFeed,
}

impl Preset {
    /// As written in configuration and flags.
    pub fn name(self) -> &'static str {
        match self {
            Preset::Phones => "phones",
            Preset::TaxiFeed => "taxi_feed",
        }
    }
}

/// The embedded log's knobs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct StoreConfig {
    /// Where the log lives. One process at a time.
    pub data_dir: PathBuf,
    /// Shards, 1 to 1024; fixed when the store is created. More spread work over more nodes later, but each one in a
    /// transaction costs time over Kafka.
    pub shards: u16,
    /// Commands that may wait for the log; beyond it clients get 503.
    pub queue_max: usize,
    /// Events kept per shard and topic, by count.
    pub retention_records: u64,
    /// Events kept per shard and topic, by bytes.
    pub retention_bytes: u64,
    /// Events kept per shard and topic, by age in ms of domain time.
    pub retention_age_ms: i64,
    /// Memory for pages of the file, bytes.
    pub cache_bytes: usize,
    /// The file never grows beyond this, bytes; then new commands are refused and reads go on.
    pub file_max_bytes: u64,
}

impl Default for StoreConfig {
    fn default() -> Self {
        let log = cabrank_eventlog::Options::default();
        StoreConfig {
            data_dir: PathBuf::from("data"),
            shards: log.shards,
            queue_max: 16_384,
            retention_records: log.retention.records,
            retention_bytes: log.retention.bytes,
            retention_age_ms: log.retention.age_ms,
            cache_bytes: log.cache_bytes,
            file_max_bytes: log.file_max_bytes,
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Settings::of(Preset::Phones)
    }
}

/// A configuration that cannot be used. Nothing was opened.
#[derive(Debug, thiserror::Error)]
pub enum BadSettings {
    /// The file is not there.
    #[error("the configuration file {0} cannot be read: check the path given with --config")]
    NoFile(PathBuf),
    /// A key or value that does not parse.
    #[error("{key}: {why} (from {source_name}); `cabrank config` lists every key with its default")]
    Unreadable {
        /// The key.
        key: String,
        /// What is wrong.
        why: String,
        /// File, environment or flag.
        source_name: String,
    },
    /// A value outside its range.
    #[error("{0}")]
    OutOfRange(String),
}

impl Settings {
    /// The defaults for a kind of fleet.
    pub fn of(preset: Preset) -> Settings {
        let mut settings = Settings {
            preset,
            engine: EngineConfig::default(),
            node: NodeConfig::default(),
            gateway: GatewayConfig::default(),
            store: StoreConfig::default(),
            kafka: KafkaConfig::default(),
            remote: RemoteConfig::default(),
            cluster: ClusterConfig::default(),
            spans: SpansConfig::default(),
        };
        match preset {
            Preset::Phones => {}
            Preset::TaxiFeed => {
                settings.node.ping_ttl_ms = 300_000;
                settings.node.silent_after_ms = 900_000;
                settings.gateway.ingest = IngestConfig::taxi_feed();
            }
        }
        settings
    }

    /// Reads and checks. Later sources win: preset, file, environment (`CABRANK_ENGINE__RIDE_DEADLINE_MS`), then what
    /// the caller sets from flags.
    pub fn load(
        file: Option<&Path>,
        preset: Option<Preset>,
        flags: impl FnOnce(&mut Settings),
    ) -> Result<Settings, BadSettings> {
        if let Some(file) = file
            && !file.is_file()
        {
            return Err(BadSettings::NoFile(file.to_path_buf()));
        }
        let environment = || {
            Env::prefixed("CABRANK_")
                .filter(|key| key.as_str().contains("__") || key == "preset")
                .split("__")
        };
        let given = |base: Figment| {
            let base = match file {
                Some(file) => base.merge(Toml::file(file)),
                None => base,
            };
            base.merge(environment())
        };
        let chosen = match preset {
            Some(preset) => preset,
            None => given(Figment::from(Serialized::defaults(Settings::default())))
                .extract_inner("preset")
                .map_err(unreadable)?,
        };
        let base = Figment::from(Serialized::defaults(Settings::of(chosen)));
        let mut settings: Settings = given(base).extract().map_err(unreadable)?;
        settings.preset = chosen;
        flags(&mut settings);
        settings.check()?;
        Ok(settings)
    }

    /// Checks every range and relation.
    pub fn check(&self) -> Result<(), BadSettings> {
        let out = |why: &dyn std::fmt::Display| BadSettings::OutOfRange(why.to_string());
        self.engine.check().map_err(|why| out(&why))?;
        self.node.check().map_err(|why| out(&why))?;
        self.gateway.check().map_err(|why| out(&why))?;
        self.kafka.check().map_err(|why| out(&why))?;
        self.remote.check().map_err(|why| out(&why))?;
        self.cluster.tls.check().map_err(|why| out(&why))?;
        self.spans.check().map_err(|why| out(&why))?;
        let store = &self.store;
        let ranges = [
            ("store.shards", u64::from(store.shards), 1, 1_024),
            ("store.queue_max", store.queue_max as u64, 16, 10_000_000),
            (
                "store.retention_records",
                store.retention_records,
                1_000,
                u64::MAX,
            ),
            (
                "store.retention_bytes",
                store.retention_bytes,
                1 << 20,
                u64::MAX,
            ),
            (
                "store.retention_age_ms",
                store.retention_age_ms.max(0) as u64,
                60_000,
                u64::MAX,
            ),
            (
                "store.cache_bytes",
                store.cache_bytes as u64,
                1 << 20,
                1 << 40,
            ),
            (
                "store.file_max_bytes",
                store.file_max_bytes,
                16 << 20,
                u64::MAX,
            ),
        ];
        for (key, value, least, most) in ranges {
            if !(least..=most).contains(&value) {
                return Err(BadSettings::OutOfRange(format!(
                    "{key} = {value}: choose {least} to {most}"
                )));
            }
        }
        Ok(())
    }

    /// The configuration as a TOML file with a comment per knob.
    pub fn to_commented_toml(&self) -> String {
        let mut shown = self.clone();
        shown.gateway.keys = shown.gateway.keys.hidden();
        let values = toml::Value::try_from(&shown).expect("settings are plain tables and numbers");
        let schema =
            serde_json::to_value(schemars::schema_for!(Settings)).expect("a schema is plain JSON");
        let mut text = String::from(
            "# The effective configuration of cabrank. Every key can stand in the file given with --config, or in the\n\
             # environment as CABRANK_<TABLE>__<KEY> (CABRANK_ENGINE__RIDE_DEADLINE_MS=240000).\n",
        );
        write_table(&mut text, "", &values, &schema, &schema);
        text
    }
}

fn unreadable(error: figment::Error) -> BadSettings {
    BadSettings::Unreadable {
        key: error.path.join("."),
        why: error.kind.to_string(),
        source_name: error
            .metadata
            .as_ref()
            .map_or("defaults".into(), |from| from.name.to_string()),
    }
}

/// Follows `$ref` (also inside `allOf`) to the definition it names.
fn resolve<'a>(
    schema: &'a serde_json::Value,
    root: &'a serde_json::Value,
) -> &'a serde_json::Value {
    match schema["$ref"]
        .as_str()
        .and_then(|path| path.strip_prefix('#'))
    {
        Some(path) => root.pointer(path).unwrap_or(schema),
        None => schema,
    }
}

fn comment(text: &mut String, schema: &serde_json::Value) {
    let description = schema["description"].as_str().unwrap_or("");
    for line in description.lines() {
        text.push_str(&format!("# {}\n", line.trim()));
    }
}

fn write_table(
    text: &mut String,
    path: &str,
    values: &toml::Value,
    schema: &serde_json::Value,
    root: &serde_json::Value,
) {
    let Some(table) = values.as_table() else {
        return;
    };
    let about = |key: &str| &schema["properties"][key];
    for (key, value) in table.iter().filter(|(_, value)| !value.is_table()) {
        comment(text, about(key));
        text.push_str(&format!("{key} = {value}\n"));
    }
    for (key, value) in table.iter().filter(|(_, value)| value.is_table()) {
        let path = if path.is_empty() {
            key.clone()
        } else {
            format!("{path}.{key}")
        };
        text.push('\n');
        comment(text, about(key));
        text.push_str(&format!("[{path}]\n"));
        write_table(text, &path, value, resolve(about(key), root), root);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    fn load(text: &str) -> Result<Settings, BadSettings> {
        Settings::load(Some(file(text).path()), None, |_| {})
    }

    #[test]
    fn a_file_changes_what_it_names_and_nothing_else() {
        let settings = load("[engine]\nride_deadline_ms = 240000\n").unwrap();
        assert_eq!(settings.engine.ride_deadline_ms, 240_000);
        assert_eq!(settings.node, NodeConfig::default());
    }

    #[test]
    fn a_preset_is_the_base_and_the_file_still_wins() {
        let settings = load("preset = \"taxi_feed\"\n[node]\nsilent_after_ms = 600000\n").unwrap();
        assert_eq!(
            (settings.node.ping_ttl_ms, settings.node.silent_after_ms),
            (300_000, 600_000)
        );
        assert_eq!(settings.gateway.ingest, IngestConfig::taxi_feed());
    }

    #[test]
    fn a_bad_value_names_key_value_and_remedy() {
        let said = |text: &str| load(text).unwrap_err().to_string();
        let unknown = said("[engine]\nride_dedline_ms = 5\n");
        assert!(
            unknown.contains("engine") && unknown.contains("ride_dedline_ms"),
            "{unknown}"
        );
        let kind = said("[node]\nping_ttl_ms = \"soon\"\n");
        assert!(
            kind.contains("node.ping_ttl_ms") && kind.contains("soon"),
            "{kind}"
        );
        let range = said("[node]\nping_ttl_ms = 5\n");
        assert!(
            range.contains("node.ping_ttl_ms = 5") && range.contains("choose"),
            "{range}"
        );
        let store = said("[store]\nshards = 0\n");
        assert!(
            store.contains("store.shards = 0: choose 1 to 1024"),
            "{store}"
        );
        let policy = said("[node]\npolicy = \"magic\"\n");
        assert!(
            policy.contains("node.policy") && policy.contains("magic"),
            "{policy}"
        );
    }

    #[test]
    fn what_config_prints_reads_back_and_explains_every_knob() {
        let text = Settings::default().to_commented_toml();
        assert_eq!(load(&text).unwrap(), Settings::default());
        let mut explained = false;
        for line in text.lines() {
            if line.contains(" = ") && !line.starts_with('#') {
                assert!(explained, "{line} has no comment");
            }
            explained = line.starts_with('#');
        }
    }

    #[test]
    fn a_secret_of_ones_own_is_not_printed() {
        let mut settings = Settings::default();
        settings.gateway.keys.secret = "a very long secret that nobody may read".into();
        assert!(!settings.to_commented_toml().contains("nobody may read"));
    }
}
