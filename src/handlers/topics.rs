//! CreateTopics, DeleteTopics, CreatePartitions, and creation on first use.
//!
//! Configs are checked here, where this version's table is; the controller
//! checks everything else and places the replicas. A creation is answered when
//! this broker knows a leader of each new partition, so that the client's next
//! request finds one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use drave_raft::GroupId;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::create_partitions_request::CreatePartitionsTopic;
use kafka_protocol::messages::create_partitions_response::CreatePartitionsTopicResult;
use kafka_protocol::messages::create_topics_request::CreatableTopic;
use kafka_protocol::messages::create_topics_response::{
    CreatableTopicConfigs, CreatableTopicResult,
};
use kafka_protocol::messages::delete_topics_response::DeletableTopicResult;
use kafka_protocol::messages::{
    CreatePartitionsRequest, CreatePartitionsResponse, CreateTopicsRequest, CreateTopicsResponse,
    DeleteTopicsRequest, DeleteTopicsResponse, TopicName,
};
use kafka_protocol::protocol::StrBytes;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use crate::metadata::command::{Command, Refusal, Reply, TopicCreated};
use crate::metadata::configs::{self, TOPIC_CONFIGS};
use crate::metadata::image::Topic;
use crate::metadata::planning::{NewPartitions, NewTopic, Wanted};
use crate::node::Broker;
use crate::server::Connection;

/// Operations on a topic that a client may do: all of them, as in Kafka without an authorizer.
pub const TOPIC_OPERATIONS: i32 = 0b1101_1111_1000;
/// Operations on the cluster that a client may do.
pub const CLUSTER_OPERATIONS: i32 = 0b1_1111_1010_0000;

/// A request's time-out is kept within these bounds.
const TIMEOUT_MIN: Duration = Duration::from_secs(1);
const TIMEOUT_MAX: Duration = Duration::from_secs(60);
/// How often leadership of new partitions is looked at.
const LEADER_POLL: Duration = Duration::from_millis(10);

fn timeout(timeout_ms: i32) -> Duration {
    Duration::from_millis(timeout_ms.max(0) as u64).clamp(TIMEOUT_MIN, TIMEOUT_MAX)
}

fn text(message: &str) -> Option<StrBytes> {
    Some(StrBytes::from_string(message.to_owned()))
}

/// CreateTopics.
pub async fn create_topics(
    broker: &Arc<Broker>,
    _connection: &Arc<Connection>,
    version: i16,
    request: CreateTopicsRequest,
) -> CreateTopicsResponse {
    let timeout = timeout(request.timeout_ms);
    let deadline = Instant::now() + timeout;
    let duplicates = duplicates(request.topics.iter().map(|topic| topic.name.as_str()));
    let mut wanted = Vec::new();
    // Topics are answered in the order of the request; a name that occurs twice, once.
    let mut results: Vec<(TopicName, Option<Refusal>)> = Vec::new();
    for topic in request.topics {
        let name = topic.name.clone();
        if duplicates.contains(name.as_str()) {
            if !results.iter().any(|(seen, _)| *seen == name) {
                let message = "Duplicate topic name.";
                results.push((
                    name,
                    Some(Refusal::new(ResponseError::InvalidRequest, message)),
                ));
            }
            continue;
        }
        match new_topic(broker, topic) {
            Ok(topic) => {
                wanted.push(topic);
                results.push((name, None));
            }
            Err(refusal) => results.push((name, Some(refusal))),
        }
    }
    let configs: BTreeMap<String, Vec<(String, String)>> = wanted
        .iter()
        .map(|topic| (topic.name.clone(), topic.configs.clone()))
        .collect();
    let mut outcomes = create(broker, wanted, request.validate_only, timeout)
        .await
        .into_iter();
    let mut topics = Vec::with_capacity(results.len());
    for (name, refusal) in results {
        let outcome = match refusal {
            Some(refusal) => Err(refusal),
            None => outcomes.next().unwrap_or_else(|| {
                Err(Refusal::new(
                    ResponseError::UnknownServerError,
                    "no answer for this topic",
                ))
            }),
        };
        let own = configs.get(name.as_str()).map_or(&[][..], Vec::as_slice);
        topics.push(creation_result(broker, version, name, outcome, own));
    }
    if !request.validate_only {
        let created: Vec<String> = topics
            .iter()
            .filter(|t| t.error_code == 0)
            .map(|t| t.name.to_string())
            .collect();
        wait_for_leaders(broker, &created, deadline).await;
    }
    CreateTopicsResponse::default().with_topics(topics)
}

/// Checks what this broker checks, and fills in its defaults.
fn new_topic(broker: &Broker, topic: CreatableTopic) -> Result<NewTopic, Refusal> {
    let mut configs = BTreeMap::new();
    for config in &topic.configs {
        let name = config.name.as_str();
        let Some(value) = &config.value else {
            return Err(Refusal::new(
                ResponseError::InvalidConfig,
                format!("Null value not supported for topic configs: {name}"),
            ));
        };
        configs::check_topic_config(name, value.as_str())?;
        configs.insert(name.to_owned(), value.to_string());
    }
    Ok(NewTopic {
        partitions: wanted_partitions(broker, &topic)?,
        name: topic.name.to_string(),
        id: Uuid::new_v4(),
        configs: configs.into_iter().collect(),
    })
}

fn wanted_partitions(broker: &Broker, topic: &CreatableTopic) -> Result<Wanted, Refusal> {
    if topic.assignments.is_empty() {
        let partitions = match topic.num_partitions {
            -1 => broker.config.num_partitions,
            count if count > 0 => count as u32,
            _ => {
                return Err(Refusal::new(
                    ResponseError::InvalidPartitions,
                    "Number of partitions was set to an invalid non-positive value.",
                ));
            }
        };
        let replication_factor = match topic.replication_factor {
            -1 => broker.config.default_replication_factor,
            count if count > 0 => count as u16,
            _ => {
                return Err(Refusal::new(
                    ResponseError::InvalidReplicationFactor,
                    "Replication factor must be larger than 0, or -1 to use the default value.",
                ));
            }
        };
        return Ok(Wanted::Count {
            partitions,
            replication_factor,
        });
    }
    if topic.num_partitions != -1 || topic.replication_factor != -1 {
        return Err(Refusal::new(
            ResponseError::InvalidRequest,
            "Both numPartitions or replicationFactor and replicasAssignments were set. Both \
             cannot be used at the same time.",
        ));
    }
    let mut by_index = BTreeMap::new();
    for assignment in &topic.assignments {
        let brokers = brokers(assignment.broker_ids.iter().map(|id| id.0))?;
        if by_index
            .insert(assignment.partition_index, brokers)
            .is_some()
        {
            return Err(Refusal::new(
                ResponseError::InvalidReplicaAssignment,
                "Found multiple manual partition assignments for one partition",
            ));
        }
    }
    if by_index.keys().copied().ne(0..by_index.len() as i32) {
        return Err(Refusal::new(
            ResponseError::InvalidReplicaAssignment,
            "partitions should be a consecutive 0-based integer sequence",
        ));
    }
    Ok(Wanted::Assigned(by_index.into_values().collect()))
}

fn brokers(ids: impl Iterator<Item = i32>) -> Result<Vec<u32>, Refusal> {
    ids.map(|id| {
        u32::try_from(id).map_err(|_| {
            let message = format!("there is no broker {id}");
            Refusal::new(ResponseError::InvalidReplicaAssignment, message)
        })
    })
    .collect()
}

/// Asks the controller; one outcome for each topic.
async fn create(
    broker: &Broker,
    topics: Vec<NewTopic>,
    validate_only: bool,
    timeout: Duration,
) -> Vec<Result<TopicCreated, Refusal>> {
    let count = topics.len();
    if count == 0 {
        return Vec::new();
    }
    let refusal = match broker
        .metadata
        .create_topics(topics, validate_only, timeout)
        .await
    {
        Ok(Reply::Topics(outcomes)) if outcomes.len() == count => return outcomes,
        Ok(Reply::Refused(refusal)) => refusal,
        Ok(other) => Refusal::unexpected(&other),
        Err(error) => error.refusal(),
    };
    vec![Err(refusal); count]
}

fn creation_result(
    broker: &Broker,
    version: i16,
    name: TopicName,
    outcome: Result<TopicCreated, Refusal>,
    own_configs: &[(String, String)],
) -> CreatableTopicResult {
    let result = CreatableTopicResult::default().with_name(name.clone());
    match outcome {
        Err(refusal) => result
            .with_error_code(refusal.code)
            .with_error_message(text(&refusal.message))
            .with_num_partitions(-1)
            .with_replication_factor(-1)
            .with_configs(Some(Vec::new())),
        Ok(created) => {
            let result = result.with_error_message(None);
            if version < 5 {
                return result;
            }
            let topic = Topic {
                id: created.id,
                name: name.to_string(),
                partitions: Vec::new(),
                configs: own_configs.iter().cloned().collect(),
            };
            result
                .with_topic_id(created.id)
                .with_num_partitions(created.partitions as i32)
                .with_replication_factor(created.replication_factor as i16)
                .with_configs(Some(topic_configs(broker, &topic)))
        }
    }
}

fn topic_configs(broker: &Broker, topic: &Topic) -> Vec<CreatableTopicConfigs> {
    let image = broker.metadata.image();
    (TOPIC_CONFIGS.iter())
        .filter_map(|row| {
            let values = configs::topic_values(row, Some(topic), &image, &broker.config);
            let (_, value, source) = values.into_iter().next()?;
            let config = CreatableTopicConfigs::default()
                .with_name(StrBytes::from_static_str(row.name))
                .with_value(Some(StrBytes::from_string(value)))
                .with_config_source(source as i8);
            Some(config)
        })
        .collect()
}

/// Waits until this broker knows a leader of every partition of these topics.
async fn wait_for_leaders(broker: &Broker, topics: &[String], deadline: Instant) {
    let image = broker.metadata.image();
    let groups: Vec<GroupId> = topics
        .iter()
        .filter_map(|name| image.topics.get(name))
        .flat_map(|topic| {
            topic
                .partitions
                .iter()
                .map(|partition| GroupId(partition.group))
        })
        .collect();
    for group in groups {
        while broker.raft.leadership(group).is_none() {
            if Instant::now() >= deadline {
                return;
            }
            sleep(LEADER_POLL).await;
        }
    }
}

/// Creates topics that a client uses for the first time, and waits a little for
/// leaders. Returns those that could not be created, with what to answer.
pub async fn create_on_first_use(
    broker: &Arc<Broker>,
    names: Vec<TopicName>,
    timeout: Duration,
) -> Vec<(TopicName, i16)> {
    let deadline = Instant::now() + timeout;
    let names: BTreeSet<TopicName> = names.into_iter().collect();
    let topics = (names.iter())
        .map(|name| NewTopic {
            name: name.to_string(),
            id: Uuid::new_v4(),
            partitions: Wanted::Count {
                partitions: broker.config.num_partitions,
                replication_factor: broker.config.default_replication_factor,
            },
            configs: Vec::new(),
        })
        .collect();
    let outcomes = create(broker, topics, false, timeout).await;
    let mut refused = Vec::new();
    let mut created = Vec::new();
    for (name, outcome) in names.into_iter().zip(outcomes) {
        match outcome {
            Ok(_) => created.push(name.to_string()),
            // Another client was first.
            Err(r) if r.code == ResponseError::TopicAlreadyExists.code() => {
                created.push(name.to_string());
                refused.push((name, ResponseError::LeaderNotAvailable.code()));
            }
            // The client comes again, by itself.
            Err(r)
                if r.code == ResponseError::NotController.code()
                    || r.code == ResponseError::RequestTimedOut.code() =>
            {
                refused.push((name, ResponseError::LeaderNotAvailable.code()));
            }
            Err(refusal) => refused.push((name, refusal.code)),
        }
    }
    wait_for_leaders(broker, &created, deadline).await;
    refused
}

/// DeleteTopics.
pub async fn delete_topics(
    broker: &Arc<Broker>,
    _connection: &Arc<Connection>,
    version: i16,
    request: DeleteTopicsRequest,
) -> DeleteTopicsResponse {
    let asked: Vec<(Option<TopicName>, Uuid)> = match version {
        0..=5 => request
            .topic_names
            .into_iter()
            .map(|name| (Some(name), Uuid::nil()))
            .collect(),
        _ => request
            .topics
            .into_iter()
            .map(|topic| (topic.name, topic.topic_id))
            .collect(),
    };
    let timeout = timeout(request.timeout_ms);
    let mut seen = BTreeSet::new();
    let mut responses = Vec::with_capacity(asked.len());
    for (name, id) in asked {
        let result = DeletableTopicResult::default()
            .with_name(name.clone())
            .with_topic_id(id);
        let outcome = delete_asked(broker, name.as_ref(), id, &mut seen, timeout).await;
        responses.push(match outcome {
            Ok((name, id)) => result.with_name(name).with_topic_id(id),
            Err(refusal) => result
                .with_error_code(refusal.code)
                .with_error_message(text(&refusal.message)),
        });
    }
    DeleteTopicsResponse::default().with_responses(responses)
}

/// Deletes a topic by its name or its id, and says which one that was. What
/// this broker does not know, or knows no more, is only refused when its image
/// shows what the controller knows.
async fn delete_asked(
    broker: &Broker,
    name: Option<&TopicName>,
    id: Uuid,
    seen: &mut BTreeSet<Uuid>,
    timeout: Duration,
) -> Result<(Option<TopicName>, Uuid), Refusal> {
    let invalid = |message| Refusal::new(ResponseError::InvalidRequest, message);
    if name.is_some() && !id.is_nil() {
        return Err(invalid("You may not specify both topic name and topic id."));
    }
    let mut is_current = false;
    loop {
        let image = broker.metadata.image();
        let found = match name {
            Some(name) => image.topics.get(name.as_str()).map(|topic| topic.id),
            None => Some(id).filter(|id| image.topic_names.contains_key(id)),
        };
        if let Some(found) = found {
            if !seen.insert(found) {
                return Err(invalid("Duplicate topic id."));
            }
            match delete(broker, found).await {
                Ok(()) => {
                    let known = image.topic_names.get(&found).cloned();
                    let known = known.map(|name| TopicName(StrBytes::from_string(name)));
                    return Ok((name.cloned().or(known), found));
                }
                // Somebody else was first; there may be another one of this name by now.
                Err(refusal) if refusal.code == ResponseError::UnknownTopicId.code() => {}
                Err(refusal) => return Err(refusal),
            }
        }
        if is_current {
            return Err(match name {
                Some(_) => Refusal::new(
                    ResponseError::UnknownTopicOrPartition,
                    "This server does not host this topic-partition.",
                ),
                None => Refusal::new(
                    ResponseError::UnknownTopicId,
                    "This server does not host this topic ID.",
                ),
            });
        }
        let caught_up = broker.metadata.catch_up(timeout).await;
        caught_up.map_err(|error| error.refusal())?;
        is_current = true;
    }
}

async fn delete(broker: &Broker, id: Uuid) -> Result<(), Refusal> {
    settle(broker.metadata.submit(Command::DeleteTopic { id }).await)
}

/// Done, or why not.
pub fn settle(outcome: Result<Reply, crate::metadata::SubmitError>) -> Result<(), Refusal> {
    match outcome {
        Ok(Reply::Done) => Ok(()),
        Ok(Reply::Refused(refusal)) => Err(refusal),
        Ok(other) => Err(Refusal::unexpected(&other)),
        Err(error) => Err(error.refusal()),
    }
}

/// CreatePartitions.
pub async fn create_partitions(
    broker: &Arc<Broker>,
    _connection: &Arc<Connection>,
    _version: i16,
    request: CreatePartitionsRequest,
) -> CreatePartitionsResponse {
    let timeout = timeout(request.timeout_ms);
    let deadline = Instant::now() + timeout;
    let duplicates = duplicates(request.topics.iter().map(|topic| topic.name.as_str()));
    let mut results: Vec<CreatePartitionsTopicResult> = Vec::with_capacity(request.topics.len());
    let mut grown = Vec::new();
    for topic in request.topics {
        let result = CreatePartitionsTopicResult::default().with_name(topic.name.clone());
        let name = topic.name.to_string();
        let outcome = if !duplicates.contains(name.as_str()) {
            add_partitions(broker, topic, request.validate_only, timeout).await
        } else if results.iter().any(|seen| seen.name == topic.name) {
            continue;
        } else {
            Err(Refusal::new(
                ResponseError::InvalidRequest,
                "Duplicate topic name.",
            ))
        };
        results.push(match outcome {
            Ok(()) => {
                grown.push(name);
                result.with_error_message(None)
            }
            Err(refusal) => result
                .with_error_code(refusal.code)
                .with_error_message(text(&refusal.message)),
        });
    }
    if !request.validate_only {
        wait_for_leaders(broker, &grown, deadline).await;
    }
    CreatePartitionsResponse::default().with_results(results)
}

async fn add_partitions(
    broker: &Broker,
    topic: CreatePartitionsTopic,
    validate_only: bool,
    timeout: Duration,
) -> Result<(), Refusal> {
    let image = broker.metadata.image();
    let Some(known) = image.topics.get(topic.name.as_str()) else {
        return Err(Refusal::new(
            ResponseError::UnknownTopicOrPartition,
            "This server does not host this topic-partition.",
        ));
    };
    let Ok(total) = u32::try_from(topic.count) else {
        return Err(Refusal::new(
            ResponseError::InvalidPartitions,
            "The number of partitions must be larger than 0.",
        ));
    };
    let assigned = match &topic.assignments {
        None => None,
        Some(assignments) => Some(
            (assignments.iter())
                .map(|assignment| brokers(assignment.broker_ids.iter().map(|id| id.0)))
                .collect::<Result<Vec<_>, _>>()?,
        ),
    };
    let partitions = NewPartitions {
        topic: known.id,
        total,
        assigned,
    };
    settle(
        broker
            .metadata
            .create_partitions(partitions, validate_only, timeout)
            .await,
    )
}

/// Names that occur more than once.
fn duplicates<'a>(names: impl Iterator<Item = &'a str>) -> BTreeSet<String> {
    let mut seen = BTreeSet::new();
    names
        .filter(|name| !seen.insert(*name))
        .map(str::to_owned)
        .collect()
}
