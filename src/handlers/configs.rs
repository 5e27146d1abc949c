//! DescribeConfigs, AlterConfigs, IncrementalAlterConfigs.

use std::collections::BTreeSet;
use std::sync::Arc;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::alter_configs_response::AlterConfigsResourceResponse;
use kafka_protocol::messages::describe_configs_request::DescribeConfigsResource;
use kafka_protocol::messages::describe_configs_response::{
    DescribeConfigsResourceResult, DescribeConfigsResult, DescribeConfigsSynonym,
};
use kafka_protocol::messages::incremental_alter_configs_response as incremental;
use kafka_protocol::messages::{
    AlterConfigsRequest, AlterConfigsResponse, DescribeConfigsRequest, DescribeConfigsResponse,
    IncrementalAlterConfigsRequest, IncrementalAlterConfigsResponse,
};
use kafka_protocol::protocol::StrBytes;

use super::topics::settle;
use crate::config::SETTINGS;
use crate::metadata::command::{Command, ConfigResource, Refusal};
use crate::metadata::configs::{self, Kind, Source, Support, TOPIC_CONFIGS, TopicConfig};
use crate::metadata::image::Image;
use crate::metadata::placement;
use crate::node::Broker;
use crate::server::Connection;

/// Kafka's numbers of the kinds of resources.
const TOPIC: i8 = 2;
const BROKER: i8 = 4;
/// Kafka's numbers of what IncrementalAlterConfigs does to a config.
const SET: i8 = 0;
const DELETE: i8 = 1;
const APPEND: i8 = 2;
const SUBTRACT: i8 = 3;
/// Kafka's number of the type "string".
const TYPE_STRING: i8 = 2;

fn text(message: impl Into<String>) -> Option<StrBytes> {
    Some(StrBytes::from_string(message.into()))
}

fn invalid_request(message: impl Into<String>) -> Refusal {
    Refusal::new(ResponseError::InvalidRequest, message)
}

fn invalid_config(message: impl Into<String>) -> Refusal {
    Refusal::new(ResponseError::InvalidConfig, message)
}

/// DescribeConfigs.
pub async fn describe_configs(
    broker: &Arc<Broker>,
    _connection: &Arc<Connection>,
    _version: i16,
    request: DescribeConfigsRequest,
) -> DescribeConfigsResponse {
    let image = broker.metadata.image();
    let shown = Shown {
        broker,
        image: &image,
        synonyms: request.include_synonyms,
        documentation: request.include_documentation,
    };
    let results = request.resources.iter().map(|resource| {
        let result = DescribeConfigsResult::default()
            .with_resource_type(resource.resource_type)
            .with_resource_name(resource.resource_name.clone());
        match shown.describe(resource) {
            Ok(configs) => result.with_error_message(None).with_configs(configs),
            Err(refusal) => result
                .with_error_code(refusal.code)
                .with_error_message(text(refusal.message)),
        }
    });
    DescribeConfigsResponse::default().with_results(results.collect())
}

/// What is to be shown of configs.
struct Shown<'a> {
    broker: &'a Broker,
    image: &'a Image,
    synonyms: bool,
    documentation: bool,
}

impl Shown<'_> {
    fn describe(
        &self,
        resource: &DescribeConfigsResource,
    ) -> Result<Vec<DescribeConfigsResourceResult>, Refusal> {
        let name = resource.resource_name.as_str();
        let mut configs = match resource.resource_type {
            TOPIC => self.topic(name)?,
            BROKER if name.is_empty() => self.cluster(),
            BROKER if name == self.broker.config.node_id.to_string() => self.this_broker(),
            BROKER => {
                return Err(invalid_request(format!(
                    "Unexpected broker id, expected {} or empty string, but received {name}",
                    self.broker.config.node_id
                )));
            }
            other => {
                return Err(invalid_request(format!(
                    "resource type {other} has no configs here"
                )));
            }
        };
        if let Some(keys) = resource
            .configuration_keys
            .as_ref()
            .filter(|keys| !keys.is_empty())
        {
            let keys: BTreeSet<&str> = keys.iter().map(|key| key.as_str()).collect();
            configs.retain(|config| keys.contains(config.name.as_str()));
        }
        Ok(configs)
    }

    fn topic(&self, name: &str) -> Result<Vec<DescribeConfigsResourceResult>, Refusal> {
        if let Some(fault) = crate::metadata::names::topic_name_fault(name) {
            return Err(Refusal::new(ResponseError::InvalidTopicException, fault));
        }
        let Some(topic) = self.image.topics.get(name) else {
            return Err(Refusal::new(
                ResponseError::UnknownTopicOrPartition,
                "This server does not host this topic-partition.",
            ));
        };
        let of = |row: &TopicConfig| {
            configs::topic_values(row, Some(topic), self.image, &self.broker.config)
        };
        Ok(TOPIC_CONFIGS
            .iter()
            .map(|row| self.row(row.name, row, of(row)))
            .collect())
    }

    /// Only what was set for all brokers while they ran.
    fn cluster(&self) -> Vec<DescribeConfigsResourceResult> {
        let Some(set) = self.image.broker_configs.get("") else {
            return Vec::new();
        };
        (set.iter())
            .filter_map(|(name, value)| {
                let row = configs::by_broker_name(name)?;
                let values = vec![(row.broker_name, value.clone(), Source::Cluster)];
                Some(self.row(row.broker_name, row, values))
            })
            .collect()
    }

    fn this_broker(&self) -> Vec<DescribeConfigsResourceResult> {
        let config = &self.broker.config;
        let defaults = crate::config::Config::default();
        let of = |row: &TopicConfig| configs::broker_values(row, self.image, config);
        let dynamic = TOPIC_CONFIGS
            .iter()
            .map(|row| self.row(row.broker_name, row, of(row)));
        let fixed = SETTINGS
            .iter()
            .filter(|s| configs::by_broker_name(s.key).is_none())
            .map(|s| {
                let value = s.value(config);
                let source = match value == s.value(&defaults) {
                    true => Source::Default,
                    false => Source::Static,
                };
                // Tools expect a count, not the rule that gives one.
                let value = match (s.key, value.as_str()) {
                    ("default.replication.factor", "0") => {
                        placement::replication_factor_default(self.image).to_string()
                    }
                    _ => value,
                };
                self.fixed(s.key, value, source, s.help)
            });
        let mut shown: Vec<_> = dynamic.chain(fixed).collect();
        // Under the names by which Kafka's tools look for them.
        for (name, value, doc) in [
            (
                "broker.id",
                config.node_id.to_string(),
                "Id of this broker.",
            ),
            ("node.id", config.node_id.to_string(), "Id of this broker."),
            (
                "broker.rack",
                config.rack.clone().unwrap_or_default(),
                "Rack of this broker.",
            ),
            (
                "log.dirs",
                config.data.display().to_string(),
                "The data directory.",
            ),
        ] {
            shown.push(self.fixed(name, value, Source::Static, doc));
        }
        shown.sort_by(|a, b| a.name.as_str().cmp(b.name.as_str()));
        shown
    }

    /// A config that is set at start and never changes.
    fn fixed(
        &self,
        name: &'static str,
        value: String,
        source: Source,
        doc: &'static str,
    ) -> DescribeConfigsResourceResult {
        let mut config = DescribeConfigsResourceResult::default()
            .with_name(StrBytes::from_static_str(name))
            .with_value(text(value.clone()))
            .with_read_only(true)
            .with_config_source(source as i8)
            .with_config_type(TYPE_STRING)
            .with_documentation(self.documentation.then(|| StrBytes::from_static_str(doc)));
        if self.synonyms {
            config.synonyms = vec![synonym(name, value, source)];
        }
        config
    }

    /// A config of the table; `values` has the one in force first.
    fn row(
        &self,
        name: &'static str,
        row: &TopicConfig,
        values: Vec<(&'static str, String, Source)>,
    ) -> DescribeConfigsResourceResult {
        let mut config = DescribeConfigsResourceResult::default()
            .with_name(StrBytes::from_static_str(name))
            .with_config_type(row.kind.number())
            .with_documentation(self.documentation.then(|| StrBytes::from_string(doc(row))));
        if let Some((_, value, source)) = values.first() {
            config = config
                .with_value(text(value.clone()))
                .with_config_source(*source as i8);
        }
        if self.synonyms {
            config.synonyms = values
                .into_iter()
                .map(|(name, value, from)| synonym(name, value, from))
                .collect();
        }
        config
    }
}

fn synonym(name: &'static str, value: String, source: Source) -> DescribeConfigsSynonym {
    DescribeConfigsSynonym::default()
        .with_name(StrBytes::from_static_str(name))
        .with_value(text(value))
        .with_source(source as i8)
}

fn doc(row: &TopicConfig) -> String {
    match row.support {
        Support::Acts => row.doc.to_owned(),
        Support::NoMeaning(reason) => format!("{} Changes nothing in drave: {reason}.", row.doc),
        Support::OnlyDefault(reason) => {
            format!("{} Always '{}' in drave: {reason}.", row.doc, row.default)
        }
    }
}

/// AlterConfigs: what is not named goes back to its default.
pub async fn alter_configs(
    broker: &Arc<Broker>,
    _connection: &Arc<Connection>,
    _version: i16,
    request: AlterConfigsRequest,
) -> AlterConfigsResponse {
    let keys = request
        .resources
        .iter()
        .map(|r| (r.resource_type, r.resource_name.to_string()));
    let duplicates = duplicates(keys);
    let mut responses = Vec::with_capacity(request.resources.len());
    for resource in &request.resources {
        let name = resource.resource_name.as_str();
        let operations: Vec<Operation<'_>> = (resource.configs.iter())
            .map(|c| Operation {
                name: &c.name,
                number: SET,
                value: c.value.as_deref(),
            })
            .collect();
        let outcome = match duplicates.contains(&(resource.resource_type, name.to_owned())) {
            true => Err(invalid_request("Each resource must appear at most once.")),
            false => {
                let kind = resource.resource_type;
                alter(broker, kind, name, &operations, true, request.validate_only).await
            }
        };
        let response = AlterConfigsResourceResponse::default()
            .with_resource_type(resource.resource_type)
            .with_resource_name(resource.resource_name.clone());
        responses.push(match outcome {
            Ok(()) => response.with_error_message(None),
            Err(refusal) => response
                .with_error_code(refusal.code)
                .with_error_message(text(refusal.message)),
        });
    }
    AlterConfigsResponse::default().with_responses(responses)
}

/// IncrementalAlterConfigs: what is not named stays.
pub async fn incremental_alter_configs(
    broker: &Arc<Broker>,
    _connection: &Arc<Connection>,
    _version: i16,
    request: IncrementalAlterConfigsRequest,
) -> IncrementalAlterConfigsResponse {
    let keys = request
        .resources
        .iter()
        .map(|r| (r.resource_type, r.resource_name.to_string()));
    let duplicates = duplicates(keys);
    let mut responses = Vec::with_capacity(request.resources.len());
    for resource in &request.resources {
        let name = resource.resource_name.as_str();
        let operations: Vec<Operation<'_>> = (resource.configs.iter())
            .map(|c| Operation {
                name: &c.name,
                number: c.config_operation,
                value: c.value.as_deref(),
            })
            .collect();
        let outcome = match duplicates.contains(&(resource.resource_type, name.to_owned())) {
            true => Err(invalid_request("Each resource must appear at most once.")),
            false => {
                let kind = resource.resource_type;
                alter(
                    broker,
                    kind,
                    name,
                    &operations,
                    false,
                    request.validate_only,
                )
                .await
            }
        };
        let response = incremental::AlterConfigsResourceResponse::default()
            .with_resource_type(resource.resource_type)
            .with_resource_name(resource.resource_name.clone());
        responses.push(match outcome {
            Ok(()) => response.with_error_message(None),
            Err(refusal) => response
                .with_error_code(refusal.code)
                .with_error_message(text(refusal.message)),
        });
    }
    IncrementalAlterConfigsResponse::default().with_responses(responses)
}

/// One change to one config, as it is asked for.
struct Operation<'a> {
    name: &'a str,
    number: i8,
    value: Option<&'a str>,
}

async fn alter(
    broker: &Broker,
    resource_type: i8,
    name: &str,
    operations: &[Operation<'_>],
    replace_all: bool,
    validate_only: bool,
) -> Result<(), Refusal> {
    let image = broker.metadata.image();
    let resource = match resource_type {
        TOPIC => match image.topics.get(name) {
            Some(topic) => ConfigResource::Topic(topic.id),
            None => {
                return Err(Refusal::new(
                    ResponseError::UnknownTopicOrPartition,
                    format!("The topic '{name}' does not exist."),
                ));
            }
        },
        BROKER => match name.parse::<u32>() {
            Ok(id) if image.brokers.contains_key(&id) => ConfigResource::Broker(id.to_string()),
            _ if name.is_empty() => ConfigResource::Broker(String::new()),
            _ => return Err(invalid_request(format!("there is no broker '{name}'"))),
        },
        other => {
            return Err(invalid_request(format!(
                "resource type {other} has no configs here"
            )));
        }
    };
    let current = |key: &str| match &resource {
        ConfigResource::Topic(_) => image.topics.get(name).and_then(|t| t.configs.get(key)),
        ConfigResource::Broker(id) => image.broker_configs.get(id).and_then(|set| set.get(key)),
    };
    let mut names = BTreeSet::new();
    let mut changes = Vec::with_capacity(operations.len());
    for operation in operations {
        if !names.insert(operation.name) {
            return Err(invalid_request(format!(
                "{} is altered twice",
                operation.name
            )));
        }
        let topic_config = matches!(resource, ConfigResource::Topic(_));
        let change = change(topic_config, operation, current(operation.name))?;
        changes.push((operation.name.to_owned(), change));
    }
    if validate_only {
        return Ok(());
    }
    let command = Command::AlterConfigs {
        resource,
        changes,
        replace_all,
    };
    settle(broker.metadata.submit(command).await)
}

/// The new value of a config, `None` for its default.
fn change(
    topic_config: bool,
    operation: &Operation<'_>,
    current: Option<&String>,
) -> Result<Option<String>, Refusal> {
    let name = operation.name;
    let row = match topic_config {
        true => configs::topic_config(name),
        false => configs::by_broker_name(name),
    };
    let value = match (operation.number, operation.value) {
        (DELETE, _) if row.is_some() => return Ok(None),
        (DELETE, _) => String::new(),
        (SET | APPEND | SUBTRACT, None) => {
            return Err(invalid_config(format!(
                "Null value not supported for {name}"
            )));
        }
        (SET, Some(value)) => value.to_owned(),
        (APPEND | SUBTRACT, Some(value)) => {
            let Some(row) = row.filter(|row| row.kind == Kind::List) else {
                return Err(invalid_config(format!(
                    "Config value append is not allowed for config key: {name}"
                )));
            };
            let current = current.map_or(row.default, String::as_str);
            merge_list(current, value, operation.number == APPEND)
        }
        (other, _) => return Err(invalid_request(format!("unknown config operation {other}"))),
    };
    match topic_config {
        true => configs::check_topic_config(name, &value)?,
        false => configs::check_broker_config(name, &value)?,
    }
    Ok(Some(value))
}

/// A list with words added or taken out.
fn merge_list(current: &str, words: &str, add: bool) -> String {
    let split = |list: &str| -> Vec<String> {
        list.split(',')
            .map(|w| w.trim().to_owned())
            .filter(|w| !w.is_empty())
            .collect()
    };
    let mut list = split(current);
    for word in split(words) {
        match add {
            true if !list.contains(&word) => list.push(word),
            true => {}
            false => list.retain(|known| *known != word),
        }
    }
    list.join(",")
}

/// Resources that occur more than once.
fn duplicates(keys: impl Iterator<Item = (i8, String)>) -> BTreeSet<(i8, String)> {
    let mut seen = BTreeSet::new();
    keys.filter(|key| !seen.insert(key.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(name: &str, number: i8, value: Option<&str>) -> Result<Option<String>, i16> {
        change(
            true,
            &Operation {
                name,
                number,
                value,
            },
            None,
        )
        .map_err(|refusal| refusal.code)
    }

    #[test]
    fn each_operation_gives_the_value_that_kafka_would_store() {
        let invalid = Err(ResponseError::InvalidConfig.code());
        assert_eq!(
            changed("retention.ms", SET, Some("5")),
            Ok(Some("5".into()))
        );
        assert_eq!(changed("retention.ms", DELETE, None), Ok(None));
        assert_eq!(changed("retention.ms", SET, None), invalid);
        assert_eq!(changed("retention.ms", APPEND, Some("5")), invalid);
        assert_eq!(changed("bogus", DELETE, None), invalid);
        assert_eq!(
            changed("cleanup.policy", APPEND, Some("delete")),
            Ok(Some("delete".into()))
        );
        assert_eq!(changed("cleanup.policy", APPEND, Some("compact")), invalid);
        assert_eq!(changed("cleanup.policy", SUBTRACT, Some("delete")), invalid);
        let unknown = Err(ResponseError::InvalidRequest.code());
        assert_eq!(changed("retention.ms", 9, Some("5")), unknown);
    }

    #[test]
    fn lists_grow_and_shrink() {
        assert_eq!(merge_list("a,b", "c,a", true), "a,b,c");
        assert_eq!(merge_list("a, b", "b", false), "a");
        assert_eq!(merge_list("", "x", true), "x");
    }
}
