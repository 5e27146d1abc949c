//! Every config of a topic: what it is, what drave does with it, and what a
//! topic's configs come to.
//!
//! Kafka has configs that drave acts on, some that can have no meaning here
//! (they are accepted, with the reason), and some of which only one value is
//! true here (any other is refused by name). A name that is in no row is
//! refused too. Checked before a change is proposed, never in `apply`.

use kafka_protocol::ResponseError;

use super::command::Refusal;
use super::image::{Image, Topic};
use crate::config::Config;
use crate::limits::FETCH_BYTES_MAX;

/// What values a config has.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// `true` or `false`.
    Boolean,
    /// A 32-bit integer in a range.
    Int(i64, i64),
    /// A 64-bit integer in a range.
    Long(i64, i64),
    /// A number in a range.
    Double(f64, f64),
    /// One of these words.
    Word(&'static [&'static str]),
    /// Words separated by commas.
    List,
}

impl Kind {
    /// Kafka's number for the type, as DescribeConfigs says it.
    pub fn number(self) -> i8 {
        match self {
            Kind::Boolean => 1,
            Kind::Word(_) => 2,
            Kind::Int(..) => 3,
            Kind::Long(..) => 5,
            Kind::Double(..) => 6,
            Kind::List => 7,
        }
    }

    /// What is wrong with a value, if anything is.
    fn fault(self, value: &str) -> Option<String> {
        let within = |min: i64, max: i64, bound_max: i64| match value.parse::<i64>() {
            Err(_) => Some("not an integer".to_owned()),
            Ok(number) if number < min => Some(format!("must be at least {min}")),
            Ok(number) if number > max.min(bound_max) => {
                Some(format!("must be at most {}", max.min(bound_max)))
            }
            Ok(_) => None,
        };
        match self {
            Kind::Boolean => {
                let known =
                    value.eq_ignore_ascii_case("true") || value.eq_ignore_ascii_case("false");
                (!known).then(|| "must be true or false".to_owned())
            }
            Kind::Int(min, max) => within(min, max, i64::from(i32::MAX)),
            Kind::Long(min, max) => within(min, max, i64::MAX),
            Kind::Double(min, max) => match value.parse::<f64>() {
                Ok(number) if (min..=max).contains(&number) => None,
                _ => Some(format!("must be a number from {min} to {max}")),
            },
            Kind::Word(words) => {
                (!words.contains(&value)).then(|| format!("must be one of {}", words.join(", ")))
            }
            Kind::List => None,
        }
    }
}

/// What drave does with a config.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Support {
    /// What Kafka does.
    Acts,
    /// It is kept and shown, and changes nothing, for this reason.
    NoMeaning(&'static str),
    /// Only the default is true here; anything else is refused, for this reason.
    OnlyDefault(&'static str),
}

/// A row of the table.
#[derive(Clone, Copy, Debug)]
pub struct TopicConfig {
    /// Its name on a topic.
    pub name: &'static str,
    /// The broker config that is its default.
    pub broker_name: &'static str,
    /// Its values.
    pub kind: Kind,
    /// Its value when nobody set one.
    pub default: &'static str,
    /// What drave does with it.
    pub support: Support,
    /// What it means.
    pub doc: &'static str,
}

const NO_FILES: &str = "a partition's log is entries in the broker's one store, not files";
const ALWAYS_SYNCED: &str = "every acknowledged record is synced to disk on a majority";
const VERBATIM: &str = "batches are stored and served as they were sent, never compressed again";
const NOT_COMPACTED: &str = "it acts on compacted topics only, and cleanup.policy is always delete";
const NO_TIERS: &str = "there is no remote storage";
const NO_THROTTLE: &str = "replication is not throttled by replica";

const fn row(
    name: &'static str,
    broker_name: &'static str,
    kind: Kind,
    default: &'static str,
    support: Support,
    doc: &'static str,
) -> TopicConfig {
    TopicConfig {
        name,
        broker_name,
        kind,
        default,
        support,
        doc,
    }
}

const LONG_MAX: &str = "9223372036854775807";

/// Every topic config that Kafka has, by name.
#[rustfmt::skip]
pub const TOPIC_CONFIGS: &[TopicConfig] = {
    use Kind::*;
    use Support::*;
    &[
        row("cleanup.policy", "log.cleanup.policy", List, "delete",
            OnlyDefault("compaction is not implemented"),
            "What happens to old records."),
        row("compression.gzip.level", "compression.gzip.level", Int(-1, 9), "-1",
            NoMeaning(VERBATIM), "Level of gzip."),
        row("compression.lz4.level", "compression.lz4.level", Int(1, 17), "9",
            NoMeaning(VERBATIM), "Level of lz4."),
        row("compression.type", "compression.type",
            Word(&["producer", "uncompressed", "gzip", "snappy", "lz4", "zstd"]), "producer",
            OnlyDefault(VERBATIM),
            "Compression of stored batches; producer: as they were sent."),
        row("compression.zstd.level", "compression.zstd.level", Int(-131_072, 22), "3",
            NoMeaning(VERBATIM), "Level of zstd."),
        row("delete.retention.ms", "log.cleaner.delete.retention.ms", Long(0, i64::MAX),
            "86400000", NoMeaning(NOT_COMPACTED), "How long tombstones stay."),
        row("file.delete.delay.ms", "log.segment.delete.delay.ms", Long(0, i64::MAX), "60000",
            NoMeaning(NO_FILES), "How long a deleted file stays."),
        row("flush.messages", "log.flush.interval.messages", Long(1, i64::MAX), LONG_MAX,
            NoMeaning(ALWAYS_SYNCED), "Records after which the log is synced."),
        row("flush.ms", "log.flush.interval.ms", Long(0, i64::MAX), LONG_MAX,
            NoMeaning(ALWAYS_SYNCED), "Time after which the log is synced."),
        row("follower.replication.throttled.replicas", "follower.replication.throttled.replicas",
            List, "", OnlyDefault(NO_THROTTLE), "Followers whose replication is throttled."),
        row("index.interval.bytes", "log.index.interval.bytes", Int(0, i64::MAX), "4096",
            NoMeaning(NO_FILES), "Bytes between entries of the offset index."),
        row("leader.replication.throttled.replicas", "leader.replication.throttled.replicas",
            List, "", OnlyDefault(NO_THROTTLE), "Leaders whose replication is throttled."),
        row("local.retention.bytes", "log.local.retention.bytes", Long(-2, i64::MAX), "-2",
            NoMeaning(NO_TIERS), "Bytes kept locally once they are in remote storage."),
        row("local.retention.ms", "log.local.retention.ms", Long(-2, i64::MAX), "-2",
            NoMeaning(NO_TIERS), "How long records stay local once they are in remote storage."),
        row("max.compaction.lag.ms", "log.cleaner.max.compaction.lag.ms", Long(1, i64::MAX),
            LONG_MAX, NoMeaning(NOT_COMPACTED), "How long a record may stay uncompacted."),
        row("max.message.bytes", "message.max.bytes", Int(0, FETCH_BYTES_MAX as i64), "1048588",
            Acts, "Largest record batch accepted, as it was sent (compressed)."),
        row("message.timestamp.after.max.ms", "log.message.timestamp.after.max.ms",
            Long(0, i64::MAX), "3600000", Acts,
            "How far a record's time may lie after the broker's; not for LogAppendTime."),
        row("message.timestamp.before.max.ms", "log.message.timestamp.before.max.ms",
            Long(0, i64::MAX), LONG_MAX, Acts,
            "How far a record's time may lie before the broker's; not for LogAppendTime."),
        row("message.timestamp.type", "log.message.timestamp.type",
            Word(&["CreateTime", "LogAppendTime"]), "CreateTime", Acts,
            "Whether records keep the producer's time or get the broker's."),
        row("min.cleanable.dirty.ratio", "log.cleaner.min.cleanable.ratio", Double(0.0, 1.0),
            "0.5", NoMeaning(NOT_COMPACTED), "Share of the log that is dirty before it is compacted."),
        row("min.compaction.lag.ms", "log.cleaner.min.compaction.lag.ms", Long(0, i64::MAX), "0",
            NoMeaning(NOT_COMPACTED), "How long a record stays uncompacted at least."),
        row("min.insync.replicas", "min.insync.replicas", Int(1, i64::MAX), "1", Acts,
            "Replicas that must be alive for acks=all to be accepted; a majority always must."),
        row("preallocate", "log.preallocate", Boolean, "false", NoMeaning(NO_FILES),
            "Whether files are allocated ahead."),
        row("remote.log.copy.disable", "remote.log.copy.disable", Boolean, "false",
            OnlyDefault(NO_TIERS), "Whether nothing more is copied to remote storage."),
        row("remote.log.delete.on.disable", "remote.log.delete.on.disable", Boolean, "false",
            OnlyDefault(NO_TIERS), "Whether remote data goes when remote storage is disabled."),
        row("remote.storage.enable", "remote.storage.enable", Boolean, "false",
            OnlyDefault(NO_TIERS), "Whether old records go to remote storage."),
        row("retention.bytes", "log.retention.bytes", Long(-1, i64::MAX), "-1", Acts,
            "Bytes a partition keeps, -1: no bound."),
        row("retention.ms", "log.retention.ms", Long(-1, i64::MAX), "604800000", Acts,
            "How long records are kept, -1: forever."),
        row("segment.bytes", "log.segment.bytes", Int(14, i64::MAX), "1073741824",
            NoMeaning(NO_FILES), "Size of a file of the log."),
        row("segment.index.bytes", "log.index.size.max.bytes", Int(4, i64::MAX), "10485760",
            NoMeaning(NO_FILES), "Size of an index file."),
        row("segment.jitter.ms", "log.roll.jitter.ms", Long(0, i64::MAX), "0",
            NoMeaning(NO_FILES), "Spread of the time after which a new file is begun."),
        row("segment.ms", "log.roll.ms", Long(1, i64::MAX), "604800000",
            NoMeaning(NO_FILES), "Time after which a new file is begun."),
        row("unclean.leader.election.enable", "unclean.leader.election.enable", Boolean, "false",
            OnlyDefault("a replica that lacks acknowledged records never leads"),
            "Whether a replica that lacks acknowledged records may lead."),
    ]
};

/// The row of a topic config.
pub fn topic_config(name: &str) -> Option<&'static TopicConfig> {
    TOPIC_CONFIGS.iter().find(|config| config.name == name)
}

/// The row of the topic config whose default is this broker config.
pub fn by_broker_name(name: &str) -> Option<&'static TopicConfig> {
    TOPIC_CONFIGS
        .iter()
        .find(|config| config.broker_name == name)
}

/// Whether a topic may have this config with this value.
pub fn check_topic_config(name: &str, value: &str) -> Result<(), Refusal> {
    match topic_config(name) {
        Some(row) => check(row, name, value),
        None => Err(invalid(format!("Unknown topic config name: {name}"))),
    }
}

/// Whether a broker config may be changed to this value while brokers run:
/// those can that are a topic config's default.
pub fn check_broker_config(name: &str, value: &str) -> Result<(), Refusal> {
    match by_broker_name(name) {
        Some(row) => check(row, name, value),
        None => Err(not_dynamic(name)),
    }
}

/// A broker config that can't be changed while brokers run, or that does not exist.
pub fn not_dynamic(name: &str) -> Refusal {
    match crate::config::SETTINGS
        .iter()
        .any(|setting| setting.key == name)
    {
        true => invalid(format!(
            "Cannot update {name} dynamically: it is read from the broker's configuration at start"
        )),
        false => invalid(format!("Unknown broker config name: {name}")),
    }
}

fn check(row: &TopicConfig, name: &str, value: &str) -> Result<(), Refusal> {
    if let Some(fault) = row.kind.fault(value) {
        return Err(invalid(format!(
            "Invalid value {value} for configuration {name}: {fault}"
        )));
    }
    match row.support {
        Support::OnlyDefault(reason) if !value.eq_ignore_ascii_case(row.default) => {
            Err(invalid(format!(
                "Configuration {name} can only be '{}' in drave, not '{value}': {reason}",
                row.default
            )))
        }
        _ => Ok(()),
    }
}

fn invalid(message: String) -> Refusal {
    Refusal::new(ResponseError::InvalidConfig, message)
}

/// Where a value comes from, by Kafka's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i8)]
pub enum Source {
    /// Set on the topic.
    Topic = 1,
    /// Set on the broker while it ran.
    Broker = 2,
    /// Set for all brokers while they ran.
    Cluster = 3,
    /// From the broker's configuration.
    Static = 4,
    /// Nobody set it.
    Default = 5,
}

/// Every value of a topic config that anybody set, with the one in force first.
pub fn topic_values(
    row: &TopicConfig,
    topic: Option<&Topic>,
    image: &Image,
    config: &Config,
) -> Vec<(&'static str, String, Source)> {
    let mut values = Vec::new();
    if let Some(value) = topic.and_then(|topic| topic.configs.get(row.name)) {
        values.push((row.name, value.clone(), Source::Topic));
    }
    values.extend(broker_values(row, image, config));
    values
}

/// The same of the broker config that is the topic config's default.
pub fn broker_values(
    row: &TopicConfig,
    image: &Image,
    config: &Config,
) -> Vec<(&'static str, String, Source)> {
    let name = row.broker_name;
    let mut values = Vec::new();
    if !image.broker_configs.is_empty() {
        for (of, source) in [
            (config.node_id.to_string(), Source::Broker),
            (String::new(), Source::Cluster),
        ] {
            if let Some(value) = image.broker_configs.get(&of).and_then(|set| set.get(name)) {
                values.push((name, value.clone(), source));
            }
        }
    }
    if let Some(value) = static_value(row, config)
        && value != row.default
    {
        values.push((name, value, Source::Static));
    }
    values.push((name, row.default.to_owned(), Source::Default));
    values
}

/// What the broker's own configuration says.
fn static_value(row: &TopicConfig, config: &Config) -> Option<String> {
    (row.name == "max.message.bytes").then(|| config.message_max_bytes.to_string())
}

/// Whose time records have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimestampType {
    /// The producer's.
    CreateTime,
    /// The broker's, when it appended them.
    LogAppendTime,
}

/// What a topic's configs come to. Cheap to make, and to be kept as long as
/// neither the topic nor the brokers' configs change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicSettings {
    /// Largest record batch accepted.
    pub max_message_bytes: usize,
    /// Whose time records have.
    pub timestamp_type: TimestampType,
    /// How far a record's time may lie before the broker's, ms.
    pub timestamp_before_max_ms: i64,
    /// How far a record's time may lie after the broker's, ms.
    pub timestamp_after_max_ms: i64,
    /// How long records are kept, ms; `None`: forever.
    pub retention_ms: Option<i64>,
    /// Bytes that a partition keeps; `None`: no bound.
    pub retention_bytes: Option<i64>,
    /// Replicas that must be alive for acks=all.
    pub min_insync_replicas: usize,
}

impl TopicSettings {
    /// The topic's own configs over the brokers' over the defaults.
    pub fn of(topic: &Topic, image: &Image, config: &Config) -> Self {
        let text = |name: &str| {
            let row = topic_config(name).expect("a config of the table");
            let values = topic_values(row, Some(topic), image, config);
            values
                .into_iter()
                .find(|(_, value, _)| row.kind.fault(value).is_none())
        };
        let number = |name: &str| -> i64 {
            text(name)
                .and_then(|(_, value, _)| value.parse().ok())
                .unwrap_or_default()
        };
        let append_time =
            text("message.timestamp.type").is_some_and(|(_, value, _)| value == "LogAppendTime");
        Self {
            max_message_bytes: number("max.message.bytes") as usize,
            timestamp_type: match append_time {
                true => TimestampType::LogAppendTime,
                false => TimestampType::CreateTime,
            },
            timestamp_before_max_ms: number("message.timestamp.before.max.ms"),
            timestamp_after_max_ms: number("message.timestamp.after.max.ms"),
            retention_ms: Some(number("retention.ms")).filter(|&ms| ms >= 0),
            retention_bytes: Some(number("retention.bytes")).filter(|&bytes| bytes >= 0),
            min_insync_replicas: number("min.insync.replicas") as usize,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use uuid::Uuid;

    use super::*;

    fn topic(configs: &[(&str, &str)]) -> Topic {
        let configs = configs
            .iter()
            .map(|(k, v)| (k.to_string(), v.to_string()))
            .collect();
        Topic {
            id: Uuid::nil(),
            name: "t".into(),
            partitions: vec![],
            configs,
        }
    }

    #[test]
    fn every_default_is_a_value_that_is_accepted_and_names_are_sorted_and_unique() {
        for row in TOPIC_CONFIGS {
            assert_eq!(
                check_topic_config(row.name, row.default),
                Ok(()),
                "{}",
                row.name
            );
            assert_eq!(check_broker_config(row.broker_name, row.default), Ok(()));
        }
        assert!(
            TOPIC_CONFIGS
                .windows(2)
                .all(|pair| pair[0].name < pair[1].name)
        );
    }

    #[test]
    fn what_drave_does_not_do_is_refused_by_name() {
        for (name, value) in [
            ("cleanup.policy", "compact"),
            ("cleanup.policy", "delete,compact"),
            ("compression.type", "gzip"),
            ("unclean.leader.election.enable", "true"),
            ("remote.storage.enable", "true"),
            ("follower.replication.throttled.replicas", "*"),
            ("no.such.config", "1"),
            ("retention.ms", "soon"),
            ("retention.ms", "-2"),
            ("max.message.bytes", "2147483647"),
            ("message.timestamp.type", "createtime"),
            ("min.insync.replicas", "0"),
            ("preallocate", "yes"),
            ("min.cleanable.dirty.ratio", "NaN"),
        ] {
            let refusal = check_topic_config(name, value).expect_err(name);
            assert_eq!(refusal.code, ResponseError::InvalidConfig.code());
            assert!(refusal.message.contains(name), "{}", refusal.message);
        }
        for (name, value) in [
            ("segment.bytes", "1048576"),
            ("compression.type", "producer"),
            ("unclean.leader.election.enable", "FALSE"),
            ("retention.bytes", "-1"),
        ] {
            assert_eq!(check_topic_config(name, value), Ok(()));
        }
    }

    #[test]
    fn brokers_take_only_dynamic_configs() {
        assert_eq!(check_broker_config("log.retention.ms", "5"), Ok(()));
        let read_only = check_broker_config("num.partitions", "5").unwrap_err();
        assert!(read_only.message.contains("dynamically"));
        assert!(
            check_broker_config("bogus", "5")
                .unwrap_err()
                .message
                .contains("Unknown")
        );
    }

    #[test]
    fn a_topic_overrides_its_broker_overrides_the_cluster_overrides_the_file() {
        let mut config = Config {
            node_id: 1,
            ..Config::default()
        };
        let mut image = Image::default();
        let defaults = TopicSettings::of(&topic(&[]), &image, &config);
        assert_eq!(
            defaults,
            TopicSettings {
                max_message_bytes: 1_048_588,
                timestamp_type: TimestampType::CreateTime,
                timestamp_before_max_ms: i64::MAX,
                timestamp_after_max_ms: 3_600_000,
                retention_ms: Some(604_800_000),
                retention_bytes: None,
                min_insync_replicas: 1,
            }
        );
        let largest = |topic: &Topic, image: &Image, config: &Config| {
            TopicSettings::of(topic, image, config).max_message_bytes
        };
        config.message_max_bytes = 2_000;
        assert_eq!(largest(&topic(&[]), &image, &config), 2_000);
        for (of, value) in [("", "3000"), ("2", "1"), ("1", "4000")] {
            let set = BTreeMap::from([("message.max.bytes".to_string(), value.to_string())]);
            image.broker_configs.insert(of.into(), set);
            let expected = if of == "1" { 4_000 } else { 3_000 };
            assert_eq!(largest(&topic(&[]), &image, &config), expected);
        }
        let own = topic(&[
            ("max.message.bytes", "5000"),
            ("message.timestamp.type", "LogAppendTime"),
        ]);
        assert_eq!(largest(&own, &image, &config), 5_000);
        let settings = TopicSettings::of(&own, &image, &config);
        assert_eq!(settings.timestamp_type, TimestampType::LogAppendTime);
    }
}
