//! Offsets of partitions, and those that a group has committed. A group's
//! offsets are read and written without joining it.

use std::collections::BTreeMap;
use std::time::Duration;

use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::offset_commit_request::{
    OffsetCommitRequestPartition, OffsetCommitRequestTopic,
};
use kafka_protocol::messages::offset_fetch_request::OffsetFetchRequestTopic;
use kafka_protocol::messages::{
    BrokerId, GroupId, ListOffsetsRequest, OffsetCommitRequest, OffsetFetchRequest,
};

use super::cluster::{Cluster, text, topic_name};
use super::error::{ClientError, check};

const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
const RETRY_WITHIN: Duration = Duration::from_secs(30);

/// The first offset that is still there.
pub const EARLIEST: i64 = -2;
/// The offset after the last record.
pub const LATEST: i64 = -1;

/// Offsets of all a topic's partitions: [`EARLIEST`], [`LATEST`] or by timestamp.
pub async fn list_offsets(
    cluster: &Cluster,
    topic: &str,
    timestamp: i64,
) -> Result<BTreeMap<i32, i64>, ClientError> {
    retry_list_offsets(cluster, topic, timestamp, false).await
}

/// Of each partition, the offset up to which a reader gets that wants committed records only.
pub async fn stable_offsets(
    cluster: &Cluster,
    topic: &str,
) -> Result<BTreeMap<i32, i64>, ClientError> {
    retry_list_offsets(cluster, topic, LATEST, true).await
}

async fn retry_list_offsets(
    cluster: &Cluster,
    topic: &str,
    timestamp: i64,
    committed_only: bool,
) -> Result<BTreeMap<i32, i64>, ClientError> {
    cluster
        .retry(RETRY_WITHIN, || {
            list_offsets_once(cluster, topic, timestamp, committed_only)
        })
        .await
}

async fn list_offsets_once(
    cluster: &Cluster,
    topic: &str,
    timestamp: i64,
    committed_only: bool,
) -> Result<BTreeMap<i32, i64>, ClientError> {
    let mut by_leader: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    for (partition, leader) in cluster.leaders(topic, false).await?.into_iter().enumerate() {
        let partition = partition as i32;
        if leader < 0 {
            return Err(ClientError::NoLeader {
                topic: topic.to_owned(),
                partition,
            });
        }
        by_leader.entry(leader).or_default().push(partition);
    }
    let mut offsets = BTreeMap::new();
    for (leader, partitions) in by_leader {
        let partitions = partitions.iter().map(|partition| {
            ListOffsetsPartition::default()
                .with_partition_index(*partition)
                .with_current_leader_epoch(-1)
                .with_timestamp(timestamp)
        });
        let asked = ListOffsetsTopic::default()
            .with_name(topic_name(topic))
            .with_partitions(partitions.collect());
        let request = ListOffsetsRequest::default()
            .with_replica_id(BrokerId(-1))
            .with_isolation_level(i8::from(committed_only))
            .with_timeout_ms(10_000)
            .with_topics(vec![asked]);
        let answer = cluster
            .broker(leader)
            .await?
            .call(&request, REQUEST_TIMEOUT)
            .await?;
        for partition in answer.topics.iter().flat_map(|topic| &topic.partitions) {
            let index = partition.partition_index;
            check(
                partition.error_code,
                || format!("offsets of {topic}-{index}"),
                None,
            )?;
            offsets.insert(index, partition.offset);
        }
    }
    Ok(offsets)
}

/// Committed offsets of a group; partitions without one are left out.
pub async fn committed_offsets(
    cluster: &Cluster,
    group: &str,
    topic: &str,
    partitions: usize,
) -> Result<BTreeMap<i32, i64>, ClientError> {
    let asked = OffsetFetchRequestTopic::default()
        .with_name(topic_name(topic))
        .with_partition_indexes((0..partitions as i32).collect());
    let request = OffsetFetchRequest::default()
        .with_group_id(GroupId(text(group)))
        .with_topics(Some(vec![asked]));
    cluster
        .retry(RETRY_WITHIN, || async {
            let coordinator = cluster.coordinator(group).await?;
            let answer = coordinator.call(&request, REQUEST_TIMEOUT).await?;
            check(
                answer.error_code,
                || format!("offsets of group {group}"),
                None,
            )?;
            let mut offsets = BTreeMap::new();
            for partition in answer.topics.iter().flat_map(|topic| &topic.partitions) {
                check(
                    partition.error_code,
                    || format!("offsets of group {group}"),
                    None,
                )?;
                if partition.committed_offset >= 0 {
                    offsets.insert(partition.partition_index, partition.committed_offset);
                }
            }
            Ok(offsets)
        })
        .await
}

/// Commits offsets for a group that nobody is a member of.
pub async fn commit_offsets(
    cluster: &Cluster,
    group: &str,
    topic: &str,
    offsets: &BTreeMap<i32, i64>,
) -> Result<(), ClientError> {
    let partitions = offsets.iter().map(|(partition, offset)| {
        OffsetCommitRequestPartition::default()
            .with_partition_index(*partition)
            .with_committed_offset(*offset)
            .with_committed_leader_epoch(-1)
            .with_committed_metadata(Some(text("")))
    });
    let named = OffsetCommitRequestTopic::default()
        .with_name(topic_name(topic))
        .with_partitions(partitions.collect());
    let request = OffsetCommitRequest::default()
        .with_group_id(GroupId(text(group)))
        .with_generation_id_or_member_epoch(-1)
        .with_retention_time_ms(-1)
        .with_topics(vec![named]);
    cluster
        .retry(RETRY_WITHIN, || async {
            let coordinator = cluster.coordinator(group).await?;
            let answer = coordinator.call(&request, REQUEST_TIMEOUT).await?;
            for partition in answer.topics.iter().flat_map(|topic| &topic.partitions) {
                check(
                    partition.error_code,
                    || format!("commit of group {group}"),
                    None,
                )?;
            }
            Ok(())
        })
        .await
}
