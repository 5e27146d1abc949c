//! Clients that commit offsets for the same few groups, which nobody is a member of, and fetch them.

use std::time::Duration;

use drave_durability::operation::{Answer, Asked, Object, Operation};
use kafka_protocol::ResponseError;
use kafka_protocol::messages::offset_commit_request::{
    OffsetCommitRequestPartition, OffsetCommitRequestTopic,
};
use kafka_protocol::messages::offset_fetch_request::OffsetFetchRequestTopic;
use kafka_protocol::messages::{
    DeleteGroupsRequest, FindCoordinatorRequest, GroupId, OffsetCommitRequest,
    OffsetCommitResponse, OffsetFetchRequest, OffsetFetchResponse,
};
use rand::RngExt;

use super::caller::{ANSWER_WITHIN, Caller, empty};
use crate::client::{ClientError, Cluster, Connection, check, text, topic_name};

/// Groups that clients contend for.
const GROUPS: usize = 2;
/// The partition that offsets are committed of.
const PARTITION: i32 = 0;
/// A coordinator is looked for again after so many operations, or when it did not do what it was asked.
const OPERATIONS_PER_SEARCH: u32 = 8;
/// Offsets of a client are so far apart; its number makes them its own.
const CLIENTS_MAX: i64 = 1_000;
/// How long a cluster may take to make its first coordinators.
const COORDINATED_WITHIN: Duration = Duration::from_secs(60);
/// How long the groups may take to go in the end.
const REMOVED_WITHIN: Duration = Duration::from_secs(10);

/// The groups, named after the topic.
fn groups(topic: &str) -> Vec<String> {
    (1..=GROUPS)
        .map(|n| format!("{topic}-readers-{n}"))
        .collect()
}

/// Commits and fetches until told to stop.
pub(super) async fn commit(mut caller: Caller, topic: String) -> Vec<Operation> {
    let groups = groups(&topic);
    let mut coordinators: Vec<Option<i32>> = vec![None; groups.len()];
    let mut committed = 0;
    while caller.turn().await {
        let which = caller.rng.random_range(0..groups.len());
        let (group, known) = (&groups[which], &mut coordinators[which]);
        if caller.rng.random_ratio(1, OPERATIONS_PER_SEARCH) {
            *known = None;
        }
        if known.is_none() {
            *known = find(&mut caller, group).await;
        }
        let Some(coordinator) = *known else { continue };
        let Some(connection) = caller.broker(coordinator).await else {
            *known = None;
            continue;
        };
        let answer = if caller.rng.random_bool(0.5) {
            committed += 1;
            let offset = committed * CLIENTS_MAX + i64::from(caller.client());
            store(&mut caller, &connection, &topic, group, offset).await
        } else {
            fetch(&mut caller, &connection, &topic, group).await
        };
        if matches!(answer, Answer::Unknown(_)) {
            *known = None;
        }
    }
    caller.operations()
}

/// Who coordinates a group, as any broker says.
async fn find(caller: &mut Caller, group: &str) -> Option<i32> {
    let (_, connection) = caller.any().await?;
    let request = FindCoordinatorRequest::default()
        .with_key(text(group))
        .with_key_type(0);
    let answer = connection.call(&request, ANSWER_WITHIN).await.ok()?;
    (answer.error_code == 0).then_some(*answer.node_id)
}

fn object(group: &str) -> Object {
    Object::CommittedOffset {
        group: group.to_owned(),
        partition: PARTITION as u32,
    }
}

async fn store(
    caller: &mut Caller,
    connection: &Connection,
    topic: &str,
    group: &str,
    offset: i64,
) -> Answer {
    let partition = OffsetCommitRequestPartition::default()
        .with_partition_index(PARTITION)
        .with_committed_offset(offset)
        .with_committed_leader_epoch(-1)
        .with_committed_metadata(Some(text("")));
    let named = OffsetCommitRequestTopic::default()
        .with_name(topic_name(topic))
        .with_partitions(vec![partition]);
    let request = OffsetCommitRequest::default()
        .with_group_id(GroupId(text(group)))
        .with_generation_id_or_member_epoch(-1)
        .with_retention_time_ms(-1)
        .with_topics(vec![named]);
    let told = |answer: OffsetCommitResponse| {
        let mut partitions = answer.topics.iter().flat_map(|topic| &topic.partitions);
        let stored = partitions.next().ok_or_else(|| empty(connection))?;
        check(stored.error_code, || group.to_owned(), None).map(|()| Answer::Done)
    };
    let asked = Asked::CommitOffset(offset);
    caller
        .ask(connection, &request, &object(group), asked, told)
        .await
}

async fn fetch(caller: &mut Caller, connection: &Connection, topic: &str, group: &str) -> Answer {
    let named = OffsetFetchRequestTopic::default()
        .with_name(topic_name(topic))
        .with_partition_indexes(vec![PARTITION]);
    let request = OffsetFetchRequest::default()
        .with_group_id(GroupId(text(group)))
        .with_topics(Some(vec![named]));
    let told = |answer: OffsetFetchResponse| {
        check(answer.error_code, || group.to_owned(), None)?;
        let mut partitions = answer.topics.iter().flat_map(|topic| &topic.partitions);
        let found = partitions.next().ok_or_else(|| empty(connection))?;
        check(found.error_code, || group.to_owned(), None)?;
        let offset = Some(found.committed_offset).filter(|offset| *offset >= 0);
        Ok(Answer::Offset(offset))
    };
    caller
        .ask(
            connection,
            &request,
            &object(group),
            Asked::FetchOffset,
            told,
        )
        .await
}

/// Waits until the groups have coordinators: a cluster may make them on first use.
pub(super) async fn prepare(cluster: &Cluster, topic: &str) -> Result<(), ClientError> {
    for group in groups(topic) {
        let attempt = || async { cluster.coordinator(&group).await.map(drop) };
        cluster.retry(COORDINATED_WITHIN, attempt).await?;
    }
    Ok(())
}

/// Deletes the groups.
pub(super) async fn remove(cluster: &Cluster, topic: &str) -> Result<(), ClientError> {
    for group in groups(topic) {
        let request = DeleteGroupsRequest::default().with_groups_names(vec![GroupId(text(&group))]);
        let attempt = || async {
            let coordinator = cluster.coordinator(&group).await?;
            let answer = coordinator.call(&request, ANSWER_WITHIN).await?;
            for gone in answer.results {
                if gone.error_code != ResponseError::GroupIdNotFound.code() {
                    check(gone.error_code, || format!("group {group}"), None)?;
                }
            }
            Ok(())
        };
        cluster.retry(REMOVED_WITHIN, attempt).await?;
    }
    Ok(())
}
