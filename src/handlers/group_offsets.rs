//! OffsetCommit, OffsetFetch, OffsetDelete: how far consumer groups have read.
//!
//! Clients name topics, coordinators keep ids: the metadata of this broker is
//! what translates, so that offsets of a deleted topic never show up under a
//! topic that was created again by the same name.

use std::collections::BTreeMap;

use bytes::{Buf, Bytes};
use kafka_protocol::ResponseError;
use kafka_protocol::messages::offset_commit_request::{
    OffsetCommitRequestPartition, OffsetCommitRequestTopic,
};
use kafka_protocol::messages::offset_commit_response::{
    OffsetCommitResponsePartition, OffsetCommitResponseTopic,
};
use kafka_protocol::messages::offset_delete_response::{
    OffsetDeleteResponsePartition, OffsetDeleteResponseTopic,
};
use kafka_protocol::messages::offset_fetch_response::{
    OffsetFetchResponseGroup, OffsetFetchResponsePartition, OffsetFetchResponsePartitions,
    OffsetFetchResponseTopic, OffsetFetchResponseTopics,
};
use kafka_protocol::messages::{
    OffsetCommitRequest, OffsetCommitResponse, OffsetDeleteRequest, OffsetDeleteResponse,
    OffsetFetchRequest, OffsetFetchResponse, TopicName,
};
use kafka_protocol::protocol::StrBytes;
use uuid::Uuid;

use super::groups::{code, identity, text};
use crate::groups::Groups;
use crate::groups::command::{PartitionCommit, TopicCommit};
use crate::groups::coordinator::Description;
use crate::groups::machine::{CommittedOffset, GroupState};
use crate::metadata::image::Image;

/// OffsetCommit, versions 2 to 9.
pub async fn offset_commit(
    groups: &Groups,
    _version: i16,
    request: OffsetCommitRequest,
) -> OffsetCommitResponse {
    let image = groups.image();
    let metadata_bytes_max = groups.config().offset_metadata_bytes_max;
    let check = |topic: &OffsetCommitRequestTopic, partition: &OffsetCommitRequestPartition| {
        let metadata_bytes = partition
            .committed_metadata
            .as_ref()
            .map_or(0, |text| text.len());
        if !partition_exists(&image, &topic.name, partition.partition_index) {
            Err(ResponseError::UnknownTopicOrPartition)
        } else if metadata_bytes > metadata_bytes_max {
            Err(ResponseError::OffsetMetadataTooLarge)
        } else {
            Ok(())
        }
    };
    let topics = request.topics.iter().filter_map(|topic| {
        let good = topic
            .partitions
            .iter()
            .filter(|partition| check(topic, partition).is_ok());
        let partitions: Vec<_> = good.map(partition_commit).collect();
        let id = image.topics.get(topic.name.as_str())?.id;
        (!partitions.is_empty()).then(|| TopicCommit {
            id,
            name: topic.name.to_string(),
            metadata_index: image.applied_index,
            partitions,
        })
    });
    let topics: Vec<TopicCommit> = topics.collect();
    let member = identity(&request.member_id, request.group_instance_id.as_ref());
    let generation = request.generation_id_or_member_epoch;
    let committed = match groups.coordinator(&request.group_id) {
        Ok(coordinator) => {
            coordinator
                .commit(&request.group_id, &member, generation, topics)
                .await
        }
        Err(error) => Err(error),
    };
    let topics = request.topics.iter().map(|topic| {
        let partitions = topic.partitions.iter().map(|partition| {
            // What concerns the whole group comes before what is wrong with one partition.
            let result = committed.and_then(|()| check(topic, partition));
            OffsetCommitResponsePartition::default()
                .with_partition_index(partition.partition_index)
                .with_error_code(code(result))
        });
        OffsetCommitResponseTopic::default()
            .with_name(topic.name.clone())
            .with_partitions(partitions.collect())
    });
    OffsetCommitResponse::default().with_topics(topics.collect())
}

fn partition_commit(partition: &OffsetCommitRequestPartition) -> PartitionCommit {
    PartitionCommit {
        partition: partition.partition_index,
        offset: partition.committed_offset,
        leader_epoch: partition.committed_leader_epoch,
        metadata: partition
            .committed_metadata
            .as_ref()
            .map(|text| text.to_string())
            .unwrap_or_default(),
    }
}

fn partition_exists(image: &Image, topic: &str, partition: i32) -> bool {
    let topic = image.topics.get(topic);
    let count = topic.map_or(0, |topic| topic.partitions.len());
    usize::try_from(partition).is_ok_and(|partition| partition < count)
}

/// A topic and the partitions that are asked for; none of them: all that have an offset.
type Wanted = Option<Vec<(TopicName, Vec<i32>)>>;
/// What is answered: per topic, per partition, the offset if there is one.
type Found = Vec<(TopicName, Vec<(i32, Option<CommittedOffset>)>)>;

/// OffsetFetch, versions 1 to 9; from 8 on for several groups at once.
pub async fn offset_fetch(
    groups: &Groups,
    version: i16,
    request: OffsetFetchRequest,
) -> OffsetFetchResponse {
    if version >= 8 {
        let mut answers = Vec::with_capacity(request.groups.len());
        for asked in request.groups {
            let topics = asked.topics.map(|topics| {
                topics
                    .into_iter()
                    .map(|topic| (topic.name, topic.partition_indexes))
                    .collect()
            });
            let found = fetch(groups, &asked.group_id, topics).await;
            answers.push(group_response(asked.group_id.0, found));
        }
        return OffsetFetchResponse::default().with_groups(answers);
    }
    let topics: Wanted = request.topics.map(|topics| {
        topics
            .into_iter()
            .map(|topic| (topic.name, topic.partition_indexes))
            .collect()
    });
    let found = fetch(groups, &request.group_id, topics.clone()).await;
    let error_code = found.as_ref().map_or_else(|error| error.code(), |_| 0);
    // The first version has no place for an error but the partitions.
    let found = found.unwrap_or_else(|_| match version {
        1 => nothing_found(topics.unwrap_or_default()),
        _ => Vec::new(),
    });
    let topics = found.into_iter().map(|(name, partitions)| {
        let partitions = partitions.into_iter().map(|(partition, offset)| {
            let offset = offset.unwrap_or_else(no_offset);
            OffsetFetchResponsePartition::default()
                .with_partition_index(partition)
                .with_committed_offset(offset.offset)
                .with_committed_leader_epoch(offset.leader_epoch)
                .with_metadata(Some(text(offset.metadata)))
                .with_error_code(if version == 1 { error_code } else { 0 })
        });
        OffsetFetchResponseTopic::default()
            .with_name(name)
            .with_partitions(partitions.collect())
    });
    let response = OffsetFetchResponse::default().with_topics(topics.collect());
    if version == 1 {
        response
    } else {
        response.with_error_code(error_code)
    }
}

fn group_response(
    group: StrBytes,
    found: Result<Found, ResponseError>,
) -> OffsetFetchResponseGroup {
    let response = OffsetFetchResponseGroup::default().with_group_id(group.into());
    let found = match found {
        Ok(found) => found,
        Err(error) => return response.with_error_code(error.code()),
    };
    let topics = found.into_iter().map(|(name, partitions)| {
        let partitions = partitions.into_iter().map(|(partition, offset)| {
            let offset = offset.unwrap_or_else(no_offset);
            OffsetFetchResponsePartitions::default()
                .with_partition_index(partition)
                .with_committed_offset(offset.offset)
                .with_committed_leader_epoch(offset.leader_epoch)
                .with_metadata(Some(text(offset.metadata)))
        });
        OffsetFetchResponseTopics::default()
            .with_name(name)
            .with_partitions(partitions.collect())
    });
    response.with_topics(topics.collect())
}

/// What Kafka answers for a partition without a committed offset.
fn no_offset() -> CommittedOffset {
    CommittedOffset {
        offset: -1,
        leader_epoch: -1,
        ..CommittedOffset::default()
    }
}

async fn fetch(groups: &Groups, group: &str, wanted: Wanted) -> Result<Found, ResponseError> {
    let coordinator = groups.coordinator(group)?;
    coordinator
        .read(group, |state| find(&groups.image(), state, wanted))
        .await
}

/// Offsets of topics as they exist now.
fn find(image: &Image, state: Option<&GroupState>, wanted: Wanted) -> Found {
    let Some(wanted) = wanted else {
        let topics = state.into_iter().flat_map(|state| &state.topics);
        let existing = topics.filter_map(|(id, topic)| {
            let name = image.topic_names.get(id)?.clone();
            let partitions = topic.partitions.iter();
            let offsets = partitions.map(|(partition, offset)| (*partition, Some(offset.clone())));
            Some((TopicName(text(name)), offsets.collect()))
        });
        return existing.collect();
    };
    let lookup = |topic: &TopicName, partition: i32| -> Option<CommittedOffset> {
        let id = image.topics.get(topic.as_str())?.id;
        state?.topics.get(&id)?.partitions.get(&partition).cloned()
    };
    let with_offsets = |(name, partitions): (TopicName, Vec<i32>)| {
        let offsets = partitions
            .iter()
            .map(|partition| (*partition, lookup(&name, *partition)));
        let offsets = offsets.collect();
        (name, offsets)
    };
    wanted.into_iter().map(with_offsets).collect()
}

fn nothing_found(wanted: Vec<(TopicName, Vec<i32>)>) -> Found {
    let nothing = |(name, partitions): (TopicName, Vec<i32>)| {
        (
            name,
            partitions
                .into_iter()
                .map(|partition| (partition, None))
                .collect(),
        )
    };
    wanted.into_iter().map(nothing).collect()
}

/// OffsetDelete, version 0: only of topics that no member is subscribed to.
pub async fn offset_delete(
    groups: &Groups,
    _version: i16,
    request: OffsetDeleteRequest,
) -> OffsetDeleteResponse {
    let refused =
        |error: ResponseError| OffsetDeleteResponse::default().with_error_code(error.code());
    let coordinator = match groups.coordinator(&request.group_id) {
        Ok(coordinator) => coordinator,
        Err(error) => return refused(error),
    };
    let description = match coordinator.describe(&request.group_id) {
        Ok(Some(description)) => description,
        Ok(None) => return refused(ResponseError::GroupIdNotFound),
        Err(error) => return refused(error),
    };
    let empty = description.members.is_empty();
    if !empty && description.protocol_type != "consumer" {
        return refused(ResponseError::NonEmptyGroup);
    }
    let image = groups.image();
    let mut doomed: BTreeMap<Uuid, Vec<i32>> = BTreeMap::new();
    let mut topics = Vec::with_capacity(request.topics.len());
    for topic in request.topics {
        let in_use = subscribes(&description, &topic.name);
        let mut partitions = Vec::with_capacity(topic.partitions.len());
        for partition in topic
            .partitions
            .into_iter()
            .map(|partition| partition.partition_index)
        {
            let result = match image.topics.get(topic.name.as_str()) {
                _ if in_use => Err(ResponseError::GroupSubscribedToTopic),
                Some(known) if partition_exists(&image, &topic.name, partition) => {
                    doomed.entry(known.id).or_default().push(partition);
                    Ok(())
                }
                _ => Err(ResponseError::UnknownTopicOrPartition),
            };
            partitions.push(
                OffsetDeleteResponsePartition::default()
                    .with_partition_index(partition)
                    .with_error_code(code(result)),
            );
        }
        topics.push(
            OffsetDeleteResponseTopic::default()
                .with_name(topic.name)
                .with_partitions(partitions),
        );
    }
    if !doomed.is_empty()
        && let Err(error) = coordinator
            .delete_offsets(&request.group_id, doomed.into_iter().collect())
            .await
    {
        return refused(error);
    }
    OffsetDeleteResponse::default().with_topics(topics)
}

/// Whether a member of the group is subscribed to the topic. A subscription
/// that can't be read may be to anything.
fn subscribes(description: &Description, topic: &str) -> bool {
    let subscriptions = description
        .members
        .iter()
        .flat_map(|member| &member.protocols);
    subscriptions.into_iter().any(|(_, metadata)| {
        subscribed_topics(metadata.clone()).is_none_or(|topics| topics.iter().any(|t| t == topic))
    })
}

/// Topics of a consumer's subscription: a version, a count, and names with 16-bit lengths.
fn subscribed_topics(mut metadata: Bytes) -> Option<Vec<String>> {
    metadata.try_get_i16().ok()?;
    let count = usize::try_from(metadata.try_get_i32().ok()?).ok()?;
    let mut topics = Vec::new();
    for _ in 0..count {
        let length = usize::from(metadata.try_get_u16().ok()?);
        if length > metadata.remaining() {
            return None;
        }
        topics.push(String::from_utf8(metadata.split_to(length).to_vec()).ok()?);
    }
    Some(topics)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::groups::machine::TopicOffsets;
    use crate::metadata::image::Topic;

    fn image(topic: &str, id: u128) -> Image {
        let id = Uuid::from_u128(id);
        let mut image = Image::default();
        let topic = Topic {
            id,
            name: topic.into(),
            partitions: Vec::new(),
            configs: BTreeMap::default(),
        };
        image.topic_names.insert(id, topic.name.clone());
        image.topics.insert(topic.name.clone(), Arc::new(topic));
        image
    }

    fn committed(topic: u128) -> GroupState {
        let offset = CommittedOffset {
            offset: 42,
            metadata: "mine".into(),
            ..no_offset()
        };
        let topic_offsets = TopicOffsets {
            partitions: [(0, offset)].into(),
            ..TopicOffsets::default()
        };
        GroupState {
            topics: [(Uuid::from_u128(topic), topic_offsets)].into(),
            ..GroupState::default()
        }
    }

    fn orders() -> TopicName {
        TopicName(StrBytes::from_static_str("orders"))
    }

    #[test]
    fn a_commit_to_a_topic_is_not_returned_for_one_recreated_under_its_name() {
        let state = committed(1);
        let wanted = || Some(vec![(orders(), vec![0, 1])]);
        let found = find(&image("orders", 1), Some(&state), wanted());
        assert_eq!(
            found[0].1[0].1.as_ref().map(|offset| offset.offset),
            Some(42)
        );
        assert_eq!(found[0].1[1], (1, None));
        let found = find(&image("orders", 2), Some(&state), wanted());
        assert_eq!(found[0].1, [(0, None), (1, None)]);
        assert!(find(&image("orders", 2), Some(&state), None).is_empty());
    }

    #[test]
    fn everything_committed_is_returned_when_no_topic_is_named() {
        let found = find(&image("orders", 1), Some(&committed(1)), None);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].0, orders());
        assert_eq!(
            found[0].1[0].1.as_ref().map(|offset| &offset.metadata[..]),
            Some("mine")
        );
        assert!(find(&image("orders", 1), None, None).is_empty());
    }

    #[test]
    fn a_subscription_is_read_and_a_damaged_one_counts_as_any() {
        let metadata = Bytes::from_static(b"\0\x01\0\0\0\x01\0\x06orders\xff\xff\xff\xff");
        assert_eq!(
            subscribed_topics(metadata),
            Some(vec!["orders".to_string()])
        );
        let huge = Bytes::from_static(b"\0\x01\x7f\xff\xff\xff\0\x06ord");
        assert_eq!(subscribed_topics(huge), None);
        assert_eq!(subscribed_topics(Bytes::new()), None);
    }
}
