//! Committed offsets: the calls that the tests make to the coordinator of a group.

use std::io;

use kafka_protocol::messages::offset_commit_request::{
    OffsetCommitRequestPartition, OffsetCommitRequestTopic,
};
use kafka_protocol::messages::offset_fetch_request::OffsetFetchRequestTopic;
use kafka_protocol::messages::{
    FindCoordinatorRequest, GroupId, OffsetCommitRequest, OffsetFetchRequest,
};

use super::kafka::{Kafka, code, eventually, text, topic_name};
use super::wire::Wire;

/// The broker that coordinates a group, as FindCoordinator gives it.
pub fn coordinator(kafka: &Kafka, group: &str) -> Option<(i32, String)> {
    let response = kafka
        .any(2, &FindCoordinatorRequest::default().with_key(text(group)))
        .ok()?;
    (response.error_code == code::NONE).then(|| {
        (
            response.node_id.0,
            format!("{}:{}", response.host, response.port),
        )
    })
}

/// Runs a call at the group's coordinator, which is asked for again until one answers.
pub fn at_coordinator<T>(
    kafka: &Kafka,
    group: &str,
    mut call: impl FnMut(&mut Wire) -> io::Result<(i16, T)>,
) -> T {
    eventually("the coordinator to answer", || {
        let (_, address) = coordinator(kafka, group)?;
        let (error, answer) = Wire::connect(&address)
            .and_then(|mut wire| call(&mut wire))
            .ok()?;
        let retriable = [
            code::COORDINATOR_LOAD_IN_PROGRESS,
            code::COORDINATOR_NOT_AVAILABLE,
            code::NOT_COORDINATOR,
            code::REQUEST_TIMED_OUT,
        ];
        assert!(
            error == code::NONE || retriable.contains(&error),
            "the coordinator answers with error {error}"
        );
        (error == code::NONE).then_some(answer)
    })
}

/// Commits an offset of partition 0 of a topic.
pub fn commit(kafka: &Kafka, topic: &str, group: &str, offset: i64, metadata: &str) {
    let partition = OffsetCommitRequestPartition::default()
        .with_partition_index(0)
        .with_committed_offset(offset)
        .with_committed_metadata(Some(text(metadata)));
    let request = OffsetCommitRequest::default()
        .with_group_id(GroupId(text(group)))
        .with_generation_id_or_member_epoch(-1)
        .with_group_instance_id(None)
        .with_topics(vec![
            OffsetCommitRequestTopic::default()
                .with_name(topic_name(topic))
                .with_partitions(vec![partition]),
        ]);
    at_coordinator(kafka, group, |wire| {
        Ok((
            wire.call(7, &request)?.topics[0].partitions[0].error_code,
            (),
        ))
    });
}

/// Committed offset of partition 0 of a topic, and its metadata; -1 where there is none.
pub fn committed(kafka: &Kafka, topic: &str, group: &str) -> (i64, String) {
    let topic = OffsetFetchRequestTopic::default()
        .with_name(topic_name(topic))
        .with_partition_indexes(vec![0]);
    let request = OffsetFetchRequest::default()
        .with_group_id(GroupId(text(group)))
        .with_topics(Some(vec![topic]));
    at_coordinator(kafka, group, |wire| {
        let response = wire.call(7, &request)?;
        // An error of the whole group comes without topics.
        let Some(found) = response.topics.first().map(|topic| &topic.partitions[0]) else {
            return Ok((response.error_code, (-1, String::new())));
        };
        let error = [response.error_code, found.error_code]
            .into_iter()
            .find(|error| *error != code::NONE);
        let metadata = found
            .metadata
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default();
        Ok((
            error.unwrap_or(code::NONE),
            (found.committed_offset, metadata),
        ))
    })
}
