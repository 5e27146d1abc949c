//! ListOffsets and OffsetForLeaderEpoch: where a partition's log starts and
//! ends, and what offset belongs to a time or an epoch.

use std::collections::HashSet;
use std::sync::Arc;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::list_offsets_request::ListOffsetsPartition;
use kafka_protocol::messages::list_offsets_response::{
    ListOffsetsPartitionResponse, ListOffsetsTopicResponse,
};
use kafka_protocol::messages::offset_for_leader_epoch_request::OffsetForLeaderPartition;
use kafka_protocol::messages::offset_for_leader_epoch_response::{
    EpochEndOffset, OffsetForLeaderTopicResult,
};
use kafka_protocol::messages::{
    ListOffsetsRequest, ListOffsetsResponse, OffsetForLeaderEpochRequest,
    OffsetForLeaderEpochResponse, TopicName,
};
use tracing::error;

use super::named;
use crate::partition::offsets::Found;
use crate::partition::read::ReadError;
use crate::partition::registry::{PartitionSlot, Registry};
use crate::partition::{Partition, Partitions};

const LATEST: i64 = -1;
const EARLIEST: i64 = -2;
const MAX_TIMESTAMP: i64 = -3;
const EARLIEST_LOCAL: i64 = -4;
const LATEST_TIERED: i64 = -5;

/// What is answered when there is no such record.
const NOTHING: Found = Found {
    offset: -1,
    timestamp: -1,
    leader_epoch: -1,
};

/// ListOffsets, versions 1 to 10.
pub async fn list_offsets(
    partitions: &Arc<Partitions>,
    version: i16,
    request: ListOffsetsRequest,
) -> ListOffsetsResponse {
    let registry = partitions.registry();
    let repeated = repeated(&request);
    let mut topics = Vec::with_capacity(request.topics.len());
    for topic in request.topics {
        let mut answers = Vec::with_capacity(topic.partitions.len());
        for asked in &topic.partitions {
            let index = asked.partition_index;
            let found = if repeated.contains(&(topic.name.clone(), index)) {
                Err(ResponseError::InvalidRequest)
            } else {
                find(partitions, &registry, &topic.name, version, asked).await
            };
            let answer = ListOffsetsPartitionResponse::default().with_partition_index(index);
            answers.push(match found {
                Ok(found) => answer
                    .with_offset(found.offset)
                    .with_timestamp(found.timestamp)
                    .with_leader_epoch(if version >= 4 { found.leader_epoch } else { -1 }),
                Err(error) => answer
                    .with_error_code(error.code())
                    .with_offset(-1)
                    .with_timestamp(-1)
                    .with_leader_epoch(-1),
            });
        }
        topics.push(
            ListOffsetsTopicResponse::default()
                .with_name(topic.name)
                .with_partitions(answers),
        );
    }
    ListOffsetsResponse::default().with_topics(topics)
}

/// Partitions that a request names more than once.
fn repeated(request: &ListOffsetsRequest) -> HashSet<(TopicName, i32)> {
    let mut seen = HashSet::new();
    let named = request.topics.iter().flat_map(|topic| {
        topic
            .partitions
            .iter()
            .map(|asked| (topic.name.clone(), asked.partition_index))
    });
    named.filter(|key| !seen.insert(key.clone())).collect()
}

fn slot<'a>(
    registry: &'a Registry,
    topic: &str,
    index: i32,
) -> Result<&'a Arc<PartitionSlot>, ResponseError> {
    let topic = registry.by_name(topic);
    let slot = topic.and_then(|topic| topic.partition(index));
    slot.ok_or(ResponseError::UnknownTopicOrPartition)
}

async fn find(
    partitions: &Arc<Partitions>,
    registry: &Registry,
    topic: &str,
    version: i16,
    asked: &ListOffsetsPartition,
) -> Result<Found, ResponseError> {
    if !is_supported(version, asked.timestamp) {
        return Err(ResponseError::UnsupportedVersion);
    }
    let slot = slot(registry, topic, asked.partition_index)?;
    let (replica, epoch) = named::serving_in(slot, asked.current_leader_epoch)?;
    let at = |offset, leader_epoch| Found {
        offset,
        timestamp: -1,
        leader_epoch,
    };
    let found = match asked.timestamp {
        LATEST => Ok(Some(at(replica.view.high_watermark(), epoch))),
        EARLIEST | EARLIEST_LOCAL => {
            let shared = replica.view.read();
            let start = shared.log_start_offset;
            Ok(Some(at(start, shared.epochs.at(start))))
        }
        LATEST_TIERED => Ok(None),
        MAX_TIMESTAMP => partitions.latest(Arc::clone(&replica)).await,
        timestamp => partitions.first_at(Arc::clone(&replica), timestamp).await,
    };
    found
        .map(|found| found.unwrap_or(NOTHING))
        .map_err(|error| code_of(&replica, &error))
}

/// Whether the version of ListOffsets knows this timestamp, or word for one.
fn is_supported(version: i16, timestamp: i64) -> bool {
    match timestamp {
        MAX_TIMESTAMP => version >= 7,
        EARLIEST_LOCAL => version >= 8,
        LATEST_TIERED => version >= 9,
        timestamp => timestamp >= EARLIEST,
    }
}

fn code_of(replica: &Partition, error: &ReadError) -> ResponseError {
    match error {
        ReadError::Stopping => ResponseError::NotLeaderOrFollower,
        error => {
            let (topic, partition) = (&replica.topic, replica.index);
            error!(topic, partition, %error, "an offset can't be looked up");
            ResponseError::KafkaStorageError
        }
    }
}

/// OffsetForLeaderEpoch, versions 2 to 4.
pub async fn offset_for_leader_epoch(
    partitions: &Arc<Partitions>,
    _version: i16,
    request: OffsetForLeaderEpochRequest,
) -> OffsetForLeaderEpochResponse {
    let registry = partitions.registry();
    let one_topic =
        |topic: kafka_protocol::messages::offset_for_leader_epoch_request::OffsetForLeaderTopic| {
            let ends = topic.partitions.iter().map(|asked| {
                let answer = EpochEndOffset::default().with_partition(asked.partition);
                match end_of(&registry, &topic.topic, asked) {
                    Ok((epoch, offset)) => answer.with_leader_epoch(epoch).with_end_offset(offset),
                    Err(error) => answer
                        .with_error_code(error.code())
                        .with_leader_epoch(-1)
                        .with_end_offset(-1),
                }
            });
            let ends = ends.collect();
            OffsetForLeaderTopicResult::default()
                .with_topic(topic.topic)
                .with_partitions(ends)
        };
    let topics = request.topics.into_iter().map(one_topic).collect();
    OffsetForLeaderEpochResponse::default().with_topics(topics)
}

fn end_of(
    registry: &Registry,
    topic: &str,
    asked: &OffsetForLeaderPartition,
) -> Result<(i32, i64), ResponseError> {
    let slot = slot(registry, topic, asked.partition)?;
    let (replica, _) = named::serving_in(slot, asked.current_leader_epoch)?;
    let shared = replica.view.read();
    Ok(shared.epochs.end_of(asked.leader_epoch, shared.next_offset))
}
