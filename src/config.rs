//! The broker's configuration: one struct, one table of settings.
//!
//! A setting's row in `settings!` below is the only place that names it: from
//! the row come the struct's field, the key in the file, the `DRAVE_*` variable,
//! the flag and its help. File < environment < flag; an unknown key in the file
//! is an error. Keys are compared with `.` and `-` read as `_`, so Kafka's own
//! spelling (`num.partitions`) works in the file too.

mod value;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use self::value::Value;
pub use self::value::{HostPort, Peers};

/// A setting's row in the table: everything but its type.
pub struct Setting {
    /// Key in the file, as the documents write it.
    pub key: &'static str,
    /// What it means, as `--help` and the documents say.
    pub help: &'static str,
    /// Parses a text into the field.
    set: fn(&mut Config, &str) -> Result<(), String>,
    /// The field as a text that `set` reads back.
    show: fn(&Config) -> String,
}

impl Setting {
    /// The flag without its dashes.
    pub fn flag(&self) -> String {
        self.key.replace(['.', '_'], "-")
    }

    /// The environment variable.
    pub fn variable(&self) -> String {
        format!("DRAVE_{}", canonical(self.key).to_uppercase())
    }

    /// Its value in a configuration.
    pub fn value(&self, config: &Config) -> String {
        (self.show)(config)
    }
}

/// Defines [`Config`] and [`SETTINGS`] from one table.
macro_rules! settings {
    ($($(#[doc = $doc:literal])+ $key:literal $field:ident: $type:ty = $default:expr;)+) => {
        /// A broker's settings, after file, environment and flags.
        #[derive(Clone, Debug, PartialEq)]
        pub struct Config { $($(#[doc = $doc])+ pub $field: $type,)+ }

        impl Default for Config {
            fn default() -> Self {
                Config { $($field: $default,)+ }
            }
        }

        /// Every setting.
        pub const SETTINGS: &[Setting] = &[$(Setting {
            key: $key,
            help: concat!($($doc),+),
            set: |config, text| {
                config.$field = Value::parse(text)?;
                Ok(())
            },
            show: |config| config.$field.show(),
        },)+];
    };
}

settings! {
    /// Id of this broker, unique in the cluster.
    "node_id" node_id: u32 = 1;
    /// Where Kafka clients connect (IP:PORT). Loopback unless set.
    "listen" listen: SocketAddr = loopback(9092);
    /// What clients are told to connect to (HOST:PORT); default: the listen address.
    "advertise" advertise: Option<HostPort> = None;
    /// Where the other brokers connect (IP:PORT). Loopback unless set.
    "peer_listen" peer_listen: SocketAddr = loopback(9093);
    /// Where /health and /metrics are served (IP:PORT). Loopback unless set.
    "http_listen" http_listen: SocketAddr = loopback(9644);
    /// Every broker of the cluster, this one too: ID@IP:PORT of its peer listener,
    /// separated by commas; default: this broker alone.
    "peers" peers: Peers = Peers(Vec::new());
    /// Data directory; an empty one is formatted at the first start.
    "data" data: PathBuf = PathBuf::from("drave-data");
    /// Bytes kept free on the disk of the data directory: below, producers are refused with an error that they retry;
    /// default: 1 GiB, or a twentieth of the disk if that is less.
    "disk.reserve.bytes" disk_reserve_bytes: Option<u64> = None;
    /// Rack of this broker; replicas of a partition are spread over racks.
    "rack" rack: Option<String> = None;
    /// Whether a topic is created when a client first uses it.
    "auto.create.topics.enable" auto_create_topics_enable: bool = true;
    /// Partitions of a topic that is created without saying how many.
    "num.partitions" num_partitions: u32 = 1;
    /// Replicas of a topic that is created without saying how many; 0: three, or as many as there are brokers.
    "default.replication.factor" default_replication_factor: u16 = 0;
    /// Largest record batch accepted, unless the topic's max.message.bytes says otherwise.
    "message.max.bytes" message_max_bytes: u32 = 1_048_588;
    /// Coordinator groups that a new cluster is formed with; they hold consumer groups and their offsets.
    "coordinator_groups" coordinator_groups: u32 = 8;
    /// Largest request accepted from a client.
    "socket.request.max.bytes" socket_request_max_bytes: u32 = 104_857_600;
    /// Client connections accepted at the same time.
    "max.connections" max_connections: u32 = 10_000;
    /// Client connections accepted at the same time from one address.
    "max.connections.per.ip" max_connections_per_ip: u32 = 5_000;
    /// A client connection is closed after being idle for this long.
    "connections.max.idle.ms" connections_max_idle_ms: u64 = 600_000;
    /// Bytes of requests held at the same time; beyond it, sockets are not read.
    "request_bytes_in_flight_max" request_bytes_in_flight_max: u64 = 256 << 20;
    /// Bytes of recent records kept in memory for readers.
    "tail_cache_bytes" tail_cache_bytes: u64 = 128 << 20;
    /// A broker that is silent for this long is taken for dead.
    "peer_dead_after_ms" peer_dead_after_ms: u64 = 1_000;
    /// A replica that has not caught up for this long is out of sync.
    "replica.lag.time.max.ms" replica_lag_time_max_ms: u64 = 30_000;
    /// How long an empty consumer group waits for more members before its first rebalance.
    "group.initial.rebalance.delay.ms" group_initial_rebalance_delay_ms: u64 = 3_000;
    /// How long offsets of an empty consumer group are kept.
    "offsets.retention.minutes" offsets_retention_minutes: u64 = 10_080;
    /// What is logged to standard error: error, warn, info, debug, trace, or a filter such as info,drave_raft=debug.
    "log" log: String = "info,openraft=error".to_owned();
}

/// Why a configuration is refused; its text is the one line a user sees.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("config file {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("config file {}: line {line}: {message}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Line of the fault, from 1.
        line: usize,
        /// What is wrong.
        message: String,
    },
    /// The file names a setting that does not exist.
    #[error("config file {}: unknown key `{key}`{hint}", path.display())]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// The nearest key there is, as a sentence.
        hint: String,
    },
    /// A value can't be understood.
    #[error("{origin}: `{text}` is no value of {key}: {reason}")]
    BadValue {
        /// The file, flag or variable it came from.
        origin: String,
        /// The setting.
        key: &'static str,
        /// The value.
        text: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The values don't fit together.
    #[error("configuration: {0}")]
    Invalid(String),
}

impl Config {
    /// File, then environment and flags over it, then [`Config::validate`].
    pub fn load(file: Option<&Path>, overrides: &Overrides) -> Result<Config, ConfigError> {
        let mut config = Config::default();
        if let Some(path) = file {
            config.apply_file(path)?;
        }
        for (setting, text, origin) in &overrides.0 {
            config.apply(setting, text, origin)?;
        }
        config.validate()?;
        Ok(config)
    }

    /// Refuses what can't work, with the reason.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let invalid = |reason: String| Err(ConfigError::Invalid(reason));
        if self.node_id > i32::MAX as u32 {
            return invalid(format!("node_id must be at most {}", i32::MAX));
        }
        if self.listen.ip().is_unspecified() && self.advertise.is_none() {
            return invalid(format!(
                "advertise must be set when listen is {}: clients can't connect to that",
                self.listen
            ));
        }
        let mut ids = BTreeSet::new();
        let mut addresses = BTreeSet::new();
        for (id, address) in &self.peers.0 {
            if !ids.insert(*id) {
                return invalid(format!("peers names broker {id} twice"));
            }
            if !addresses.insert(*address) {
                return invalid(format!("peers names {address} twice"));
            }
        }
        if !self.peers.0.is_empty() && !ids.contains(&self.node_id) {
            return invalid(format!(
                "peers must name this broker, {}, too",
                self.node_id
            ));
        }
        let listeners = [self.listen, self.peer_listen, self.http_listen];
        for (position, address) in listeners.iter().enumerate() {
            if address.port() != 0 && listeners[..position].contains(address) {
                return invalid(format!("{address} is given to two listeners"));
            }
        }
        for (name, value, min) in [
            ("num.partitions", u64::from(self.num_partitions), 1),
            ("message.max.bytes", u64::from(self.message_max_bytes), 1024),
            ("coordinator_groups", u64::from(self.coordinator_groups), 1),
            ("max.connections", u64::from(self.max_connections), 1),
            (
                "max.connections.per.ip",
                u64::from(self.max_connections_per_ip),
                1,
            ),
            ("connections.max.idle.ms", self.connections_max_idle_ms, 1),
            ("peer_dead_after_ms", self.peer_dead_after_ms, 100),
            (
                "offsets.retention.minutes",
                self.offsets_retention_minutes,
                1,
            ),
        ] {
            if value < min {
                return invalid(format!("{name} must be at least {min}"));
            }
        }
        if self.socket_request_max_bytes > i32::MAX as u32 {
            return invalid(format!(
                "socket.request.max.bytes must be at most {}",
                i32::MAX
            ));
        }
        if self.message_max_bytes > self.socket_request_max_bytes {
            return invalid("message.max.bytes is larger than socket.request.max.bytes".to_owned());
        }
        if u64::from(self.socket_request_max_bytes) > self.request_bytes_in_flight_max {
            return invalid(
                "request_bytes_in_flight_max is smaller than socket.request.max.bytes: \
                 the largest request could never be read"
                    .to_owned(),
            );
        }
        if self.coordinator_groups > 1_000 {
            return invalid("coordinator_groups must be at most 1000".to_owned());
        }
        Ok(())
    }

    /// Brokers of the static configuration, this one included.
    pub fn brokers(&self) -> Vec<(u32, SocketAddr)> {
        match self.peers.0.is_empty() {
            true => vec![(self.node_id, self.peer_listen)],
            false => self.peers.0.clone(),
        }
    }

    /// What clients are told, given the address that was bound.
    pub fn advertised(&self, bound: SocketAddr) -> (String, u16) {
        match &self.advertise {
            Some(HostPort { host, port }) => (host.clone(), *port),
            None => (bound.ip().to_string(), bound.port()),
        }
    }

    fn apply(
        &mut self,
        setting: &'static Setting,
        text: &str,
        origin: &str,
    ) -> Result<(), ConfigError> {
        (setting.set)(self, text.trim()).map_err(|reason| ConfigError::BadValue {
            origin: origin.to_owned(),
            key: setting.key,
            text: text.to_owned(),
            reason,
        })
    }

    fn apply_file(&mut self, path: &Path) -> Result<(), ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Unreadable {
            path: path.to_owned(),
            source,
        })?;
        let table: toml::Table = toml::from_str(&text).map_err(|error| ConfigError::Malformed {
            path: path.to_owned(),
            line: error
                .span()
                .map_or(1, |span| text[..span.start].matches('\n').count() + 1),
            message: error.message().lines().collect::<Vec<_>>().join(" "),
        })?;
        let origin = format!("config file {}", path.display());
        let mut seen = BTreeSet::new();
        for (key, value) in flatten(&table) {
            let Some(setting) = find(&key) else {
                let hint = nearest(&key)
                    .map_or_else(String::new, |near| format!(" (did you mean `{near}`?)"));
                return Err(ConfigError::UnknownKey {
                    path: path.to_owned(),
                    key,
                    hint,
                });
            };
            if !seen.insert(setting.key) {
                return Err(ConfigError::Invalid(format!(
                    "{origin}: {} is given twice",
                    setting.key
                )));
            }
            let text = match value {
                toml::Value::String(text) => text.clone(),
                toml::Value::Array(items) => items.iter().map(plain).collect::<Vec<_>>().join(","),
                other => plain(other),
            };
            self.apply(setting, &text, &origin)?;
        }
        Ok(())
    }
}

/// Settings given by the environment and by flags, flags winning.
#[derive(Default)]
pub struct Overrides(Vec<(&'static Setting, String, String)>);

impl clap::Args for Overrides {
    fn augment_args(command: clap::Command) -> clap::Command {
        SETTINGS.iter().fold(command, |command, setting| {
            let flag = setting.flag();
            let default = setting.value(&Config::default());
            let help = match default.is_empty() {
                true => setting.help.trim().to_owned(),
                false => format!("{} [default: {default}]", setting.help.trim()),
            };
            command.arg(
                clap::Arg::new(setting.key)
                    .value_name("VALUE")
                    .env(setting.variable())
                    .hide_env_values(true)
                    .help(help)
                    .long(flag),
            )
        })
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl clap::FromArgMatches for Overrides {
    fn from_arg_matches(matches: &clap::ArgMatches) -> Result<Self, clap::Error> {
        let mut overrides = Vec::new();
        for setting in SETTINGS {
            let Some(text) = matches.get_one::<String>(setting.key) else {
                continue;
            };
            let origin = match matches.value_source(setting.key) {
                Some(clap::parser::ValueSource::EnvVariable) => setting.variable(),
                _ => format!("--{}", setting.flag()),
            };
            overrides.push((setting, text.clone(), origin));
        }
        Ok(Overrides(overrides))
    }

    fn update_from_arg_matches(&mut self, matches: &clap::ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

const fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

fn canonical(key: &str) -> String {
    key.replace(['.', '-'], "_")
}

fn find(key: &str) -> Option<&'static Setting> {
    SETTINGS
        .iter()
        .find(|setting| canonical(setting.key) == canonical(key))
}

/// The key that shares the longest beginning with a mistyped one.
fn nearest(key: &str) -> Option<&'static str> {
    let key = canonical(key);
    let shared = |setting: &&Setting| {
        let pairs = canonical(setting.key)
            .into_bytes()
            .into_iter()
            .zip(key.bytes());
        pairs.take_while(|(a, b)| a == b).count()
    };
    SETTINGS
        .iter()
        .max_by_key(shared)
        .filter(|setting| shared(setting) >= 3)
        .map(|setting| setting.key)
}

/// TOML reads `num.partitions` as a table in a table; here it is a key again.
fn flatten(table: &toml::Table) -> Vec<(String, &toml::Value)> {
    let mut flat = Vec::new();
    for (key, value) in table {
        match value {
            toml::Value::Table(inner) => flat.extend(
                flatten(inner)
                    .into_iter()
                    .map(|(rest, value)| (format!("{key}.{rest}"), value)),
            ),
            value => flat.push((key.clone(), value)),
        }
    }
    flat
}

fn plain(value: &toml::Value) -> String {
    match value {
        toml::Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use clap::{Args, FromArgMatches};

    use super::*;

    fn load(file: Option<&str>, flags: &[&str]) -> Result<Config, ConfigError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("node.toml");
        if let Some(text) = file {
            std::fs::write(&path, text).unwrap();
        }
        let command = Overrides::augment_args(clap::Command::new("server"));
        let matches = command.get_matches_from([&["server"], flags].concat());
        let overrides = Overrides::from_arg_matches(&matches).unwrap();
        Config::load(file.map(|_| path.as_path()), &overrides)
    }

    #[test]
    fn a_flag_beats_the_file_and_the_file_beats_the_default() {
        let file = "node_id = 2\nnum.partitions = 3\nauto_create_topics_enable = false";
        let config = load(Some(file), &["--num-partitions", "5"]).unwrap();
        assert_eq!((config.node_id, config.num_partitions), (2, 5));
        assert!(!config.auto_create_topics_enable);
        assert_eq!(config.message_max_bytes, 1_048_588);
    }

    #[test]
    fn every_default_reads_back_as_itself() {
        for setting in SETTINGS {
            let mut config = Config::default();
            let text = setting.value(&config);
            if !(text.is_empty() && setting.key == "peers") {
                (setting.set)(&mut config, &text).unwrap();
            }
            assert_eq!(config, Config::default(), "{}", setting.key);
        }
        Config::default().validate().unwrap();
    }

    #[test]
    fn an_unknown_key_is_refused_by_name_in_one_line() {
        let error = load(Some("node_id = 1\nnum.partition = 3\n"), &[])
            .unwrap_err()
            .to_string();
        assert!(error.contains("unknown key `num.partition`"), "{error}");
        assert!(error.contains("did you mean `num.partitions`?"), "{error}");
        assert_eq!(error.lines().count(), 1);
    }

    #[test]
    fn a_malformed_file_is_refused_with_its_line() {
        let error = load(Some("node_id = 1\nlisten = = 3\n"), &[])
            .unwrap_err()
            .to_string();
        assert!(error.contains("line 2"), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }

    #[test]
    fn a_bad_value_names_where_it_came_from() {
        let error = load(None, &["--listen", "localhost"])
            .unwrap_err()
            .to_string();
        assert_eq!(
            error,
            "--listen: `localhost` is no value of listen: IP:PORT is expected"
        );
    }

    #[test]
    fn peers_must_name_this_broker_and_nobody_twice() {
        let refused = |peers: &str| load(None, &["--peers", peers]).unwrap_err().to_string();
        assert!(refused("2@127.0.0.1:1,3@127.0.0.1:2").contains("must name this broker"));
        assert!(refused("1@127.0.0.1:1,1@127.0.0.1:2").contains("broker 1 twice"));
        assert!(refused("1@127.0.0.1:1,2@127.0.0.1:1").contains("127.0.0.1:1 twice"));
        assert!(refused("1@localhost:1").contains("ID@IP:PORT"));
    }

    #[test]
    fn every_listener_is_on_loopback_unless_told_otherwise() {
        let config = Config::default();
        for address in [config.listen, config.peer_listen, config.http_listen] {
            assert!(address.ip().is_loopback());
        }
        let error = load(None, &["--listen", "0.0.0.0:9092"])
            .unwrap_err()
            .to_string();
        assert!(error.contains("advertise must be set"), "{error}");
    }

    #[test]
    fn alone_a_broker_is_its_own_only_peer() {
        let config = load(None, &["--node-id", "7"]).unwrap();
        assert_eq!(config.brokers(), vec![(7, loopback(9093))]);
    }
}
