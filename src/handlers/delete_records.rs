//! DeleteRecords: moves the start of partitions' logs.

use std::sync::Arc;
use std::time::Duration;

use drave_raft::ProposeError;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::delete_records_request::DeleteRecordsPartition;
use kafka_protocol::messages::delete_records_response::{
    DeleteRecordsPartitionResult, DeleteRecordsTopicResult,
};
use kafka_protocol::messages::{DeleteRecordsRequest, DeleteRecordsResponse};

use super::named;
use crate::partition::Partitions;
use crate::partition::registry::Registry;

/// Asks for everything up to the high watermark.
const ALL: i64 = -1;
/// A request's time-out is kept within these bounds.
const TIMEOUT_MIN_MS: i32 = 1_000;
const TIMEOUT_MAX_MS: i32 = 60_000;

/// DeleteRecords, versions 0 to 2.
pub async fn delete_records(
    partitions: &Arc<Partitions>,
    _version: i16,
    request: DeleteRecordsRequest,
) -> DeleteRecordsResponse {
    let registry = partitions.registry();
    let timeout_ms = request.timeout_ms.clamp(TIMEOUT_MIN_MS, TIMEOUT_MAX_MS);
    let timeout = Duration::from_millis(timeout_ms as u64);
    let mut topics = Vec::with_capacity(request.topics.len());
    for topic in request.topics {
        let mut results = Vec::with_capacity(topic.partitions.len());
        for asked in &topic.partitions {
            let result =
                DeleteRecordsPartitionResult::default().with_partition_index(asked.partition_index);
            results.push(match delete(&registry, &topic.name, asked, timeout).await {
                Ok(start) => result.with_low_watermark(start),
                Err(error) => result.with_low_watermark(-1).with_error_code(error.code()),
            });
        }
        topics.push(
            DeleteRecordsTopicResult::default()
                .with_name(topic.name)
                .with_partitions(results),
        );
    }
    DeleteRecordsResponse::default().with_topics(topics)
}

async fn delete(
    registry: &Registry,
    topic: &str,
    asked: &DeleteRecordsPartition,
    timeout: Duration,
) -> Result<i64, ResponseError> {
    let topic = registry.by_name(topic);
    let slot = topic.and_then(|topic| topic.partition(asked.partition_index));
    let slot = slot.ok_or(ResponseError::UnknownTopicOrPartition)?;
    let (replica, _) = named::serving(slot)?;
    let end = replica.view.high_watermark();
    let offset = match asked.offset {
        ALL => end,
        offset if (0..=end).contains(&offset) => offset,
        _ => return Err(ResponseError::OffsetOutOfRange),
    };
    if offset <= replica.view.log_start_offset() {
        return Ok(replica.view.log_start_offset());
    }
    let deleted = replica.delete_before(offset, timeout).await;
    deleted.map_err(|error| match error {
        ProposeError::Unknown => ResponseError::RequestTimedOut,
        ProposeError::NotLeader { .. } | ProposeError::Closed => ResponseError::NotLeaderOrFollower,
    })
}
