//! Metadata and DescribeTopicPartitions: who the brokers are and who leads what.
//! Answered from this broker's own image.

use std::sync::Arc;
use std::time::Duration;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::describe_topic_partitions_response::{
    Cursor, DescribeTopicPartitionsResponsePartition, DescribeTopicPartitionsResponseTopic,
};
use kafka_protocol::messages::metadata_response::{
    MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
};
use kafka_protocol::messages::{
    BrokerId, DescribeTopicPartitionsRequest, DescribeTopicPartitionsResponse, MetadataRequest,
    MetadataResponse, TopicName,
};
use kafka_protocol::protocol::StrBytes;
use uuid::Uuid;

use super::topics::{self, CLUSTER_OPERATIONS, TOPIC_OPERATIONS};
use crate::metadata::image::Topic;
use crate::metadata::view::{ClusterView, PartitionView};
use crate::node::Broker;
use crate::server::Connection;

/// How long a request waits for topics that it creates to have leaders.
const AUTO_CREATE_TIMEOUT: Duration = Duration::from_secs(5);
/// Partitions in one DescribeTopicPartitions reply, as Kafka's
/// `max.request.partition.size.limit`.
const DESCRIBE_PARTITIONS_MAX: i32 = 2_000;

/// A UUID as Kafka writes cluster ids: 22 characters of URL-safe base64.
pub fn kafka_uuid(id: Uuid) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    // 128 bits and four zero bits to fill the last character.
    let bits = id.as_u128();
    (0..22)
        .map(|at| match at {
            21 => (bits << 4) & 63,
            at => (bits >> (122 - 6 * at)) & 63,
        })
        .map(|index| char::from(ALPHABET[index as usize]))
        .collect()
}

fn broker_ids(ids: &[i32]) -> Vec<BrokerId> {
    ids.iter().map(|&id| BrokerId(id)).collect()
}

fn leader_fields(partition: &PartitionView) -> (i16, BrokerId, i32) {
    match partition.leader {
        Some((broker, epoch)) => (0, BrokerId(broker as i32), epoch),
        None => (ResponseError::LeaderNotAvailable.code(), BrokerId(-1), -1),
    }
}

/// What a client asks for: by name, by id, or everything.
enum Asked {
    Name(TopicName),
    Id(Uuid),
}

/// Metadata.
pub async fn metadata(
    broker: &Arc<Broker>,
    _connection: &Arc<Connection>,
    version: i16,
    request: MetadataRequest,
) -> MetadataResponse {
    // An empty list means every topic in version 0, and none later.
    let all = match &request.topics {
        None => true,
        Some(topics) => topics.is_empty() && version == 0,
    };
    let asked: Vec<Asked> = (request.topics.unwrap_or_default().into_iter())
        .map(|topic| match topic.name {
            Some(name) if topic.topic_id.is_nil() || !name.is_empty() => Asked::Name(name),
            _ => Asked::Id(topic.topic_id),
        })
        .collect();
    let mut refused = Vec::new();
    if request.allow_auto_topic_creation && broker.config.auto_create_topics_enable {
        let image = broker.metadata.image();
        let missing: Vec<TopicName> = (asked.iter())
            .filter_map(|asked| match asked {
                Asked::Name(name) if !image.topics.contains_key(name.as_str()) => {
                    Some(name.clone())
                }
                _ => None,
            })
            .collect();
        if !missing.is_empty() {
            refused = topics::create_on_first_use(broker, missing, AUTO_CREATE_TIMEOUT).await;
        }
    }
    let view = ClusterView::now(broker.metadata.image(), &broker.raft);
    let operations = request.include_topic_authorized_operations;
    let describe = |topic: &Topic| describe_topic(&view, topic, operations);
    let topics = match all {
        true => view
            .image
            .topics
            .values()
            .map(|topic| describe(topic))
            .collect(),
        false => (asked.into_iter())
            .map(|asked| match asked {
                Asked::Name(name) => match view.image.topics.get(name.as_str()) {
                    Some(topic) => describe(topic),
                    None => {
                        let code = refused.iter().find(|(refused, _)| *refused == name);
                        let code = code.map_or_else(|| missing_topic(&name), |(_, code)| *code);
                        MetadataResponseTopic::default()
                            .with_error_code(code)
                            .with_name(Some(name))
                    }
                },
                Asked::Id(id) => match view.image.topic_names.get(&id) {
                    Some(name) => describe(&view.image.topics[name]),
                    None => MetadataResponseTopic::default()
                        .with_error_code(ResponseError::UnknownTopicId.code())
                        .with_topic_id(id)
                        .with_name((version < 12).then(TopicName::default)),
                },
            })
            .collect(),
    };
    let mut response = MetadataResponse::default()
        .with_brokers(view.brokers().map(describe_broker).collect())
        .with_cluster_id(Some(StrBytes::from_string(kafka_uuid(
            view.image.cluster_id,
        ))))
        .with_controller_id(BrokerId(view.controller()))
        .with_topics(topics);
    if request.include_cluster_authorized_operations && (8..=10).contains(&version) {
        response.cluster_authorized_operations = CLUSTER_OPERATIONS;
    }
    response
}

fn missing_topic(name: &TopicName) -> i16 {
    match crate::metadata::names::topic_name_fault(name.as_str()) {
        Some(_) => ResponseError::InvalidTopicException.code(),
        None => ResponseError::UnknownTopicOrPartition.code(),
    }
}

fn describe_broker(broker: &crate::metadata::image::BrokerRegistration) -> MetadataResponseBroker {
    MetadataResponseBroker::default()
        .with_node_id(BrokerId(broker.replica.broker as i32))
        .with_host(StrBytes::from_string(broker.host.clone()))
        .with_port(i32::from(broker.port))
        .with_rack(broker.rack.clone().map(StrBytes::from_string))
}

fn describe_topic(
    view: &ClusterView<'_>,
    topic: &Topic,
    operations: bool,
) -> MetadataResponseTopic {
    let partitions = (topic.partitions.iter().enumerate())
        .map(|(index, placement)| {
            let partition = view.partition(placement);
            let (error, leader, epoch) = leader_fields(&partition);
            MetadataResponsePartition::default()
                .with_error_code(error)
                .with_partition_index(index as i32)
                .with_leader_id(leader)
                .with_leader_epoch(epoch)
                .with_replica_nodes(broker_ids(&partition.replicas))
                .with_isr_nodes(broker_ids(&partition.in_sync))
                .with_offline_replicas(broker_ids(&partition.offline))
        })
        .collect();
    let mut described = MetadataResponseTopic::default()
        .with_name(Some(TopicName(StrBytes::from_string(topic.name.clone()))))
        .with_topic_id(topic.id)
        .with_partitions(partitions);
    if operations {
        described.topic_authorized_operations = TOPIC_OPERATIONS;
    }
    described
}

/// DescribeTopicPartitions: topics in order of name, at most so many partitions
/// a reply; the cursor says where the next reply begins.
pub async fn describe_topic_partitions(
    broker: &Arc<Broker>,
    _connection: &Arc<Connection>,
    _version: i16,
    request: DescribeTopicPartitionsRequest,
) -> DescribeTopicPartitionsResponse {
    let view = ClusterView::now(broker.metadata.image(), &broker.raft);
    let mut names: Vec<String> = match request.topics.is_empty() {
        true => view.image.topics.keys().cloned().collect(),
        false => request
            .topics
            .iter()
            .map(|topic| topic.name.to_string())
            .collect(),
    };
    names.sort();
    names.dedup();
    let (first_name, first_partition) = match &request.cursor {
        Some(cursor) => (
            cursor.topic_name.to_string(),
            cursor.partition_index.max(0) as usize,
        ),
        None => (String::new(), 0),
    };
    let mut left = match request.response_partition_limit {
        limit if limit > 0 => limit.min(DESCRIBE_PARTITIONS_MAX) as usize,
        _ => DESCRIBE_PARTITIONS_MAX as usize,
    };
    let mut response = DescribeTopicPartitionsResponse::default();
    for name in names.into_iter().filter(|name| *name >= first_name) {
        let wire_name = TopicName(StrBytes::from_string(name.clone()));
        let start = if name == first_name {
            first_partition
        } else {
            0
        };
        let topic = view.image.topics.get(&name);
        if left == 0 {
            let cursor = Cursor::default()
                .with_topic_name(wire_name)
                .with_partition_index(start as i32);
            response.next_cursor = Some(cursor);
            break;
        }
        let Some(topic) = topic else {
            response.topics.push(
                DescribeTopicPartitionsResponseTopic::default()
                    .with_error_code(missing_topic(&wire_name))
                    .with_name(Some(wire_name)),
            );
            continue;
        };
        let partitions: Vec<_> = (topic.partitions.iter().enumerate())
            .skip(start)
            .take(left)
            .map(|(index, placement)| describe_partition(index, &view.partition(placement)))
            .collect();
        left -= partitions.len();
        let next = start + partitions.len();
        response.topics.push(
            DescribeTopicPartitionsResponseTopic::default()
                .with_name(Some(wire_name.clone()))
                .with_topic_id(topic.id)
                .with_topic_authorized_operations(TOPIC_OPERATIONS)
                .with_partitions(partitions),
        );
        if next < topic.partitions.len() {
            let cursor = Cursor::default()
                .with_topic_name(wire_name)
                .with_partition_index(next as i32);
            response.next_cursor = Some(cursor);
            break;
        }
    }
    response
}

fn describe_partition(
    index: usize,
    partition: &PartitionView,
) -> DescribeTopicPartitionsResponsePartition {
    let (error, leader, epoch) = leader_fields(partition);
    DescribeTopicPartitionsResponsePartition::default()
        .with_error_code(error)
        .with_partition_index(index as i32)
        .with_leader_id(leader)
        .with_leader_epoch(epoch)
        .with_replica_nodes(broker_ids(&partition.replicas))
        .with_isr_nodes(broker_ids(&partition.in_sync))
        .with_eligible_leader_replicas(Some(Vec::new()))
        .with_last_known_elr(Some(Vec::new()))
        .with_offline_replicas(broker_ids(&partition.offline))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cluster_ids_look_as_kafka_writes_them() {
        assert_eq!(kafka_uuid(Uuid::nil()), "A".repeat(22));
        let id = Uuid::from_u128(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff);
        assert_eq!(kafka_uuid(id), "ABEiM0RVZneImaq7zN3u_w");
    }
}
