//! DescribeCluster and DescribeLogDirs.

use std::collections::BTreeMap;
use std::sync::Arc;

use drave_raft::GroupId;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::describe_cluster_response::DescribeClusterBroker;
use kafka_protocol::messages::describe_log_dirs_response::{
    DescribeLogDirsPartition, DescribeLogDirsResult, DescribeLogDirsTopic,
};
use kafka_protocol::messages::{
    BrokerId, DescribeClusterRequest, DescribeClusterResponse, DescribeLogDirsRequest,
    DescribeLogDirsResponse, TopicName,
};
use kafka_protocol::protocol::StrBytes;

use super::metadata::kafka_uuid;
use super::topics::CLUSTER_OPERATIONS;
use crate::metadata::{progress, view::ClusterView};
use crate::node::Broker;
use crate::protocol::replica_progress;
use crate::server::Connection;

/// Kafka's number of the endpoints that brokers have; controllers have others, and here none.
const ENDPOINT_BROKERS: i8 = 1;

/// DescribeCluster.
pub async fn describe_cluster(
    broker: &Arc<Broker>,
    _connection: &Arc<Connection>,
    version: i16,
    request: DescribeClusterRequest,
) -> DescribeClusterResponse {
    if version >= 1 && request.endpoint_type != ENDPOINT_BROKERS {
        return DescribeClusterResponse::default()
            .with_error_code(ResponseError::MismatchedEndpointType.code())
            .with_error_message(Some(StrBytes::from_static_str(
                "The request was sent to an endpoint of type BROKERS, but we wanted another type.",
            )));
    }
    let view = ClusterView::now(broker.metadata.image(), &broker.raft);
    let fenced_too = version >= 2 && request.include_fenced_brokers;
    let brokers = (view.image.brokers.values())
        .filter(|broker| fenced_too || !broker.fenced)
        .map(|broker| {
            DescribeClusterBroker::default()
                .with_broker_id(BrokerId(broker.replica.broker as i32))
                .with_host(StrBytes::from_string(broker.host.clone()))
                .with_port(i32::from(broker.port))
                .with_rack(broker.rack.clone().map(StrBytes::from_string))
                .with_is_fenced(broker.fenced)
        })
        .collect();
    let mut response = DescribeClusterResponse::default()
        .with_error_message(None)
        .with_cluster_id(StrBytes::from_string(kafka_uuid(view.image.cluster_id)))
        .with_controller_id(BrokerId(view.controller()))
        .with_brokers(brokers);
    // Whoever wants to know of dead brokers looks after the cluster.
    if fenced_too && let Some(progress) = progress::of_this_broker(&view.image, &broker.raft) {
        let fields = &mut response.unknown_tagged_fields;
        fields.insert(replica_progress::TAG, progress.encode());
    }
    if request.include_cluster_authorized_operations {
        response.cluster_authorized_operations = CLUSTER_OPERATIONS;
    }
    response
}

/// DescribeLogDirs: the one data directory, what each partition takes up in it, and the room on its disk.
pub async fn describe_log_dirs(
    broker: &Arc<Broker>,
    _connection: &Arc<Connection>,
    _version: i16,
    request: DescribeLogDirsRequest,
) -> DescribeLogDirsResponse {
    let image = broker.metadata.image();
    let asked: Option<BTreeMap<String, Vec<i32>>> = request.topics.map(|topics| {
        topics
            .into_iter()
            .map(|topic| (topic.topic.to_string(), topic.partitions))
            .collect()
    });
    let wanted = |topic: &str, partition: i32| match &asked {
        None => true,
        Some(topics) => topics
            .get(topic)
            .is_some_and(|list| list.contains(&partition)),
    };
    let me = broker.raft.replica();
    let mut groups: Vec<(String, i32, GroupId)> = Vec::new();
    for topic in image.topics.values() {
        for (index, placement) in topic.partitions.iter().enumerate() {
            if placement.replicas.contains(&me) && wanted(&topic.name, index as i32) {
                groups.push((topic.name.clone(), index as i32, GroupId(placement.group)));
            }
        }
    }
    let store = broker.store.clone();
    let sizes = tokio::task::spawn_blocking(move || {
        let size = |group| i64::try_from(store.size_on_disk(group)).unwrap_or(i64::MAX);
        groups
            .into_iter()
            .map(|(topic, index, group)| (topic, index, size(group)))
            .collect()
    });
    let sizes: Vec<(String, i32, i64)> = match sizes.await {
        Ok(sizes) => sizes,
        Err(_) => {
            return DescribeLogDirsResponse::default()
                .with_error_code(ResponseError::UnknownServerError.code());
        }
    };
    let mut topics: BTreeMap<String, Vec<DescribeLogDirsPartition>> = BTreeMap::new();
    for (topic, index, size) in sizes {
        let partition = DescribeLogDirsPartition::default()
            .with_partition_index(index)
            .with_partition_size(size);
        topics.entry(topic).or_default().push(partition);
    }
    let topics = (topics.into_iter())
        .map(|(name, partitions)| {
            DescribeLogDirsTopic::default()
                .with_name(TopicName(StrBytes::from_string(name)))
                .with_partitions(partitions)
        })
        .collect();
    let directory = DescribeLogDirsResult::default()
        .with_log_dir(StrBytes::from_string(
            broker.config.data.display().to_string(),
        ))
        .with_topics(topics);
    let room = broker.partitions.disk.room();
    let bytes = |bytes| i64::try_from(bytes).unwrap_or(i64::MAX);
    let directory = directory
        .with_total_bytes(bytes(room.total))
        .with_usable_bytes(bytes(room.free));
    DescribeLogDirsResponse::default().with_results(vec![directory])
}
