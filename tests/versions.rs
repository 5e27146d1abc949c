//! Every version of every API that a broker advertises is answered: without an error, and with neither a byte too many
//! nor one too few.

mod cluster;

use std::collections::BTreeMap;

use bytes::Bytes;
use cluster::batch::{self, Batch};
use cluster::kafka::{self, Kafka, code, eventually, text, topic_name};
use cluster::wire::Wire;
use kafka_protocol::messages::create_partitions_request::CreatePartitionsTopic;
use kafka_protocol::messages::create_topics_request::CreatableTopic;
use kafka_protocol::messages::delete_records_request::{
    DeleteRecordsPartition, DeleteRecordsTopic,
};
use kafka_protocol::messages::delete_topics_request::DeleteTopicState;
use kafka_protocol::messages::describe_configs_request::DescribeConfigsResource;
use kafka_protocol::messages::describe_topic_partitions_request::TopicRequest;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::join_group_request::JoinGroupRequestProtocol;
use kafka_protocol::messages::leave_group_request::MemberIdentity;
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::offset_commit_request::{
    OffsetCommitRequestPartition, OffsetCommitRequestTopic,
};
use kafka_protocol::messages::offset_fetch_request::{
    OffsetFetchRequestGroup, OffsetFetchRequestTopic, OffsetFetchRequestTopics,
};
use kafka_protocol::messages::offset_for_leader_epoch_request::{
    OffsetForLeaderPartition, OffsetForLeaderTopic,
};
use kafka_protocol::messages::sync_group_request::SyncGroupRequestAssignment;
use kafka_protocol::messages::*;
use kafka_protocol::protocol::Request;
use uuid::Uuid;

/// What a broker advertises.
struct Advertised(BTreeMap<i16, (i16, i16)>);

impl Advertised {
    fn by(kafka: &Kafka) -> Advertised {
        let response = kafka
            .any(0, &ApiVersionsRequest::default())
            .expect("ApiVersions");
        assert_eq!(response.error_code, code::NONE);
        Advertised(
            response
                .api_keys
                .iter()
                .map(|api| (api.api_key, (api.min_version, api.max_version)))
                .collect(),
        )
    }

    /// Advertised versions of an API that the tests can speak. Kafka's brokers must advertise all that are used here.
    fn of<R: Request>(&self) -> impl Iterator<Item = i16> + use<R> {
        let (min, max) = *self
            .0
            .get(&R::KEY)
            .unwrap_or_else(|| panic!("API {} is not advertised", R::KEY));
        min.max(R::VERSIONS.min)..=max.min(R::VERSIONS.max)
    }
}

/// A topic with one record, its id, and a connection to its leader.
fn topic(kafka: &Kafka, name: &str) -> (String, Uuid, Wire) {
    let topic = format!("{name}-{}", batch::now_ms());
    let id = kafka.create(&topic, 1, &[]);
    assert_eq!(
        kafka
            .produce(&topic, 0, Batch::of(&[("k", "v")]).encode())
            .error_code,
        code::NONE
    );
    let wire = kafka.leader(&topic, 0).expect("a leader");
    (topic, id, wire)
}

#[test]
fn every_advertised_version_of_produce_and_fetch_is_answered() {
    let kafka = cluster::shared().kafka();
    let advertised = Advertised::by(&kafka);
    let (topic, id, mut wire) = topic(&kafka, "data");
    let mut count = 1;
    for version in advertised.of::<ProduceRequest>() {
        let mut request = kafka::produce_request(&topic, 0, -1, Batch::of(&[("k", "v")]).encode());
        if version >= 13 {
            request.topic_data[0].name = topic_name("");
            request.topic_data[0].topic_id = id;
        }
        let response = wire
            .call(version, &request)
            .unwrap_or_else(|error| panic!("Produce {version}: {error}"));
        let answer = &response.responses[0].partition_responses[0];
        assert_eq!(
            (answer.error_code, answer.base_offset),
            (code::NONE, count),
            "Produce {version}"
        );
        count += 1;
    }
    for version in advertised.of::<FetchRequest>() {
        let wanted = FetchPartition::default()
            .with_current_leader_epoch(-1)
            .with_last_fetched_epoch(-1)
            .with_log_start_offset(-1)
            .with_partition_max_bytes(1 << 20);
        let mut wanted_topic = FetchTopic::default().with_partitions(vec![wanted]);
        match version >= 13 {
            true => wanted_topic.topic_id = id,
            false => wanted_topic.topic = topic_name(&topic),
        }
        let mut request = FetchRequest::default()
            .with_max_bytes(1 << 20)
            .with_session_epoch(-1)
            .with_topics(vec![wanted_topic]);
        if version < 15 {
            request.replica_id = BrokerId(-1);
        }
        let response = wire
            .call(version, &request)
            .unwrap_or_else(|error| panic!("Fetch {version}: {error}"));
        let data = &response.responses[0].partitions[0];
        assert_eq!(
            (response.error_code, data.error_code, data.high_watermark),
            (code::NONE, code::NONE, count),
            "Fetch {version}"
        );
        let records = batch::records(data.records.as_deref().unwrap_or_default());
        assert_eq!(records.len() as i64, count, "Fetch {version}");
    }
    for version in advertised.of::<ListOffsetsRequest>() {
        let wanted = ListOffsetsPartition::default()
            .with_timestamp(-1)
            .with_current_leader_epoch(-1);
        let wanted = ListOffsetsTopic::default()
            .with_name(topic_name(&topic))
            .with_partitions(vec![wanted]);
        let request = ListOffsetsRequest::default()
            .with_replica_id(BrokerId(-1))
            .with_topics(vec![wanted]);
        let response = wire
            .call(version, &request)
            .unwrap_or_else(|error| panic!("ListOffsets {version}: {error}"));
        let answer = &response.topics[0].partitions[0];
        assert_eq!(
            (answer.error_code, answer.offset),
            (code::NONE, count),
            "ListOffsets {version}"
        );
    }
    let epoch = kafka.metadata(&[&topic]).expect("metadata").topics[0].partitions[0].leader_epoch;
    for version in advertised.of::<OffsetForLeaderEpochRequest>() {
        let wanted = OffsetForLeaderPartition::default()
            .with_current_leader_epoch(-1)
            .with_leader_epoch(epoch);
        let wanted = OffsetForLeaderTopic::default()
            .with_topic(topic_name(&topic))
            .with_partitions(vec![wanted]);
        let mut request = OffsetForLeaderEpochRequest::default().with_topics(vec![wanted]);
        if version >= 3 {
            request.replica_id = BrokerId(-1);
        }
        let response = wire
            .call(version, &request)
            .unwrap_or_else(|error| panic!("OffsetForLeaderEpoch {version}: {error}"));
        let answer = &response.topics[0].partitions[0];
        assert_eq!(
            (answer.error_code, answer.end_offset),
            (code::NONE, count),
            "OffsetForLeaderEpoch {version}"
        );
    }
    for version in advertised.of::<DeleteRecordsRequest>() {
        let start = i64::from(version) + 1;
        let wanted = DeleteRecordsPartition::default().with_offset(start);
        let wanted = DeleteRecordsTopic::default()
            .with_name(topic_name(&topic))
            .with_partitions(vec![wanted]);
        let request = DeleteRecordsRequest::default()
            .with_topics(vec![wanted])
            .with_timeout_ms(10_000);
        let response = wire
            .call(version, &request)
            .unwrap_or_else(|error| panic!("DeleteRecords {version}: {error}"));
        let answer = &response.topics[0].partitions[0];
        assert_eq!(
            (answer.error_code, answer.low_watermark),
            (code::NONE, start),
            "DeleteRecords {version}"
        );
    }
}

#[test]
fn every_advertised_version_of_the_cluster_apis_is_answered() {
    let kafka = cluster::shared().kafka();
    let advertised = Advertised::by(&kafka);
    let (topic, id, _) = topic(&kafka, "admin");
    let brokers = kafka.metadata(&[]).expect("metadata").brokers.len();
    for version in advertised.of::<ApiVersionsRequest>() {
        let mut request = ApiVersionsRequest::default();
        if version >= 3 {
            request = request
                .with_client_software_name(text("tests"))
                .with_client_software_version(text("1"));
        }
        let response = kafka
            .any(version, &request)
            .unwrap_or_else(|error| panic!("ApiVersions {version}: {error}"));
        assert_eq!(
            (response.error_code, response.api_keys.len()),
            (code::NONE, advertised.0.len()),
            "ApiVersions {version}"
        );
    }
    for version in advertised.of::<MetadataRequest>() {
        let mut request = MetadataRequest::default().with_topics(Some(vec![
            MetadataRequestTopic::default().with_name(Some(topic_name(&topic))),
        ]));
        request.allow_auto_topic_creation = true;
        let response = kafka
            .any(version, &request)
            .unwrap_or_else(|error| panic!("Metadata {version}: {error}"));
        assert_eq!(
            (response.topics[0].error_code, response.brokers.len()),
            (code::NONE, brokers),
            "Metadata {version}"
        );
        if version >= 10 {
            assert_eq!(response.topics[0].topic_id, id, "Metadata {version}");
        }
        // All topics: none named in version 0, a null array later.
        let all = if version == 0 { Some(Vec::new()) } else { None };
        let response = kafka
            .any(version, &request.with_topics(all))
            .expect("Metadata of all topics");
        assert!(
            response
                .topics
                .iter()
                .any(|found| found.name == Some(topic_name(&topic))),
            "Metadata {version} of all"
        );
    }
    for version in advertised.of::<DescribeClusterRequest>() {
        let mut request = DescribeClusterRequest::default();
        request.endpoint_type = 1;
        let response = kafka
            .any(version, &request)
            .unwrap_or_else(|error| panic!("DescribeCluster {version}: {error}"));
        assert_eq!(
            (response.error_code, response.brokers.len()),
            (code::NONE, brokers),
            "DescribeCluster {version}"
        );
        assert!(!response.cluster_id.is_empty());
    }
    for version in advertised.of::<DescribeTopicPartitionsRequest>() {
        let request = DescribeTopicPartitionsRequest::default()
            .with_topics(vec![TopicRequest::default().with_name(topic_name(&topic))])
            .with_response_partition_limit(100);
        let response = kafka
            .any(version, &request)
            .unwrap_or_else(|error| panic!("DescribeTopicPartitions {version}: {error}"));
        assert_eq!(
            (response.topics[0].error_code, response.topics[0].topic_id),
            (code::NONE, id)
        );
        assert_eq!(response.topics[0].partitions.len(), 1);
    }
    for version in advertised.of::<DescribeConfigsRequest>() {
        let resource = DescribeConfigsResource::default()
            .with_resource_type(2)
            .with_resource_name(text(&topic))
            .with_configuration_keys(None);
        let request = DescribeConfigsRequest::default().with_resources(vec![resource]);
        let response = kafka
            .any(version, &request)
            .unwrap_or_else(|error| panic!("DescribeConfigs {version}: {error}"));
        let result = &response.results[0];
        assert_eq!(result.error_code, code::NONE, "DescribeConfigs {version}");
        assert!(
            result
                .configs
                .iter()
                .any(|config| config.name.as_str() == "max.message.bytes")
        );
    }
    for version in advertised.of::<DescribeLogDirsRequest>() {
        let request = DescribeLogDirsRequest::default().with_topics(None);
        let response = kafka
            .any(version, &request)
            .unwrap_or_else(|error| panic!("DescribeLogDirs {version}: {error}"));
        assert_eq!(
            response.results[0].error_code,
            code::NONE,
            "DescribeLogDirs {version}"
        );
    }
    for version in advertised.of::<InitProducerIdRequest>() {
        let mut request = InitProducerIdRequest::default()
            .with_transactional_id(None)
            .with_transaction_timeout_ms(60_000);
        if version >= 3 {
            request = request
                .with_producer_id(ProducerId(-1))
                .with_producer_epoch(-1);
        }
        let response = kafka
            .any(version, &request)
            .unwrap_or_else(|error| panic!("InitProducerId {version}: {error}"));
        assert_eq!(response.error_code, code::NONE, "InitProducerId {version}");
    }
}

#[test]
fn every_advertised_version_that_makes_and_deletes_topics_is_answered() {
    let kafka = cluster::shared().kafka();
    let advertised = Advertised::by(&kafka);
    let mut made = Vec::new();
    for version in advertised.of::<CreateTopicsRequest>() {
        let name = format!("made-{version}-{}", batch::now_ms());
        // "As many as usual" came with version 4.
        let (partitions, replicas) = if version < 4 { (2, 1) } else { (-1, -1) };
        let wanted = CreatableTopic::default()
            .with_name(topic_name(&name))
            .with_num_partitions(partitions)
            .with_replication_factor(replicas);
        let mut request = CreateTopicsRequest::default()
            .with_topics(vec![wanted])
            .with_timeout_ms(10_000)
            .with_validate_only(true);
        for validate_only in [true, false] {
            request.validate_only = validate_only;
            let response = kafka
                .any(version, &request)
                .unwrap_or_else(|error| panic!("CreateTopics {version}: {error}"));
            assert_eq!(
                response.topics[0].error_code,
                code::NONE,
                "CreateTopics {version}, validate only: {validate_only}"
            );
        }
        kafka.wait_leaders(&name, if version < 4 { 2 } else { 1 });
        made.push(name);
    }
    for version in advertised.of::<CreatePartitionsRequest>() {
        let wanted = CreatePartitionsTopic::default()
            .with_name(topic_name(&made[0]))
            .with_count(3 + i32::from(version))
            .with_assignments(None);
        let request = CreatePartitionsRequest::default()
            .with_topics(vec![wanted])
            .with_timeout_ms(10_000);
        let response = kafka
            .any(version, &request)
            .unwrap_or_else(|error| panic!("CreatePartitions {version}: {error}"));
        assert_eq!(
            response.results[0].error_code,
            code::NONE,
            "CreatePartitions {version}"
        );
        kafka.wait_leaders(&made[0], 3 + usize::from(version as u16));
    }
    for version in advertised.of::<DeleteTopicsRequest>() {
        let name = format!("unmade-{version}-{}", batch::now_ms());
        kafka.create(&name, 1, &[]);
        let mut request = DeleteTopicsRequest::default().with_timeout_ms(10_000);
        match version >= 6 {
            true => {
                request.topics =
                    vec![DeleteTopicState::default().with_name(Some(topic_name(&name)))]
            }
            false => request.topic_names = vec![topic_name(&name)],
        }
        let response = kafka
            .any(version, &request)
            .unwrap_or_else(|error| panic!("DeleteTopics {version}: {error}"));
        assert_eq!(
            response.responses[0].error_code,
            code::NONE,
            "DeleteTopics {version}"
        );
        let again = eventually("the topic to be gone", || {
            let error = kafka.any(version, &request).ok()?.responses[0].error_code;
            (error != code::NONE).then_some(error)
        });
        assert_eq!(
            again,
            code::UNKNOWN_TOPIC_OR_PARTITION,
            "DeleteTopics {version} again"
        );
    }
}

#[test]
fn every_advertised_version_of_the_group_apis_is_answered() {
    let kafka = cluster::shared().kafka();
    let advertised = Advertised::by(&kafka);
    let (topic, _, _) = topic(&kafka, "grouped");
    let group = format!("versions-{}", batch::now_ms());
    let id = GroupId(text(&group));
    let mut wire = eventually("a coordinator", || {
        let response = kafka
            .any(2, &FindCoordinatorRequest::default().with_key(text(&group)))
            .ok()?;
        (response.error_code == code::NONE)
            .then(|| Wire::connect(&format!("{}:{}", response.host, response.port)).ok())?
    });
    for version in advertised.of::<FindCoordinatorRequest>() {
        let error = match version >= 4 {
            true => {
                let request =
                    FindCoordinatorRequest::default().with_coordinator_keys(vec![text(&group)]);
                kafka
                    .any(version, &request)
                    .map(|response| response.coordinators[0].error_code)
            }
            false => kafka
                .any(
                    version,
                    &FindCoordinatorRequest::default().with_key(text(&group)),
                )
                .map(|response| response.error_code),
        };
        assert_eq!(
            error.unwrap_or_else(|error| panic!("FindCoordinator {version}: {error}")),
            code::NONE
        );
    }
    for version in advertised.of::<OffsetCommitRequest>() {
        let partition = OffsetCommitRequestPartition::default()
            .with_committed_offset(1)
            .with_committed_metadata(Some(text("m")));
        let request = OffsetCommitRequest::default()
            .with_group_id(id.clone())
            .with_generation_id_or_member_epoch(-1)
            .with_group_instance_id(None)
            .with_topics(vec![
                OffsetCommitRequestTopic::default()
                    .with_name(topic_name(&topic))
                    .with_partitions(vec![partition]),
            ]);
        let error = eventually("the coordinator to be there", || {
            let response = wire
                .call(version, &request)
                .unwrap_or_else(|error| panic!("OffsetCommit {version}: {error}"));
            let error = response.topics[0].partitions[0].error_code;
            (![
                code::COORDINATOR_LOAD_IN_PROGRESS,
                code::COORDINATOR_NOT_AVAILABLE,
            ]
            .contains(&error))
            .then_some(error)
        });
        assert_eq!(error, code::NONE, "OffsetCommit {version}");
    }
    for version in advertised.of::<OffsetFetchRequest>() {
        let mut request = OffsetFetchRequest::default();
        let topics = OffsetFetchRequestTopics::default()
            .with_name(topic_name(&topic))
            .with_partition_indexes(vec![0]);
        match version >= 8 {
            true => {
                let mut wanted = OffsetFetchRequestGroup::default()
                    .with_group_id(id.clone())
                    .with_topics(Some(vec![topics]));
                wanted.member_id = None;
                if version >= 9 {
                    wanted.member_epoch = -1;
                }
                request.groups = vec![wanted];
            }
            false => {
                request.group_id = id.clone();
                let topics = OffsetFetchRequestTopic::default()
                    .with_name(topic_name(&topic))
                    .with_partition_indexes(vec![0]);
                request.topics = Some(vec![topics]);
            }
        }
        let response = wire
            .call(version, &request)
            .unwrap_or_else(|error| panic!("OffsetFetch {version}: {error}"));
        let offset = match version >= 8 {
            true => response.groups[0].topics[0].partitions[0].committed_offset,
            false => response.topics[0].partitions[0].committed_offset,
        };
        assert_eq!(offset, 1, "OffsetFetch {version}");
    }
    for version in advertised.of::<JoinGroupRequest>() {
        join_sync_beat_and_leave(&advertised, &mut wire, &id, version);
    }
}

/// A member's life, with the newest of the other APIs' versions that is not above the one of JoinGroup.
fn join_sync_beat_and_leave(
    advertised: &Advertised,
    wire: &mut Wire,
    group: &GroupId,
    version: i16,
) {
    let protocol = JoinGroupRequestProtocol::default()
        .with_name(text("range"))
        .with_metadata(Bytes::from_static(b"wishes"));
    let mut join = JoinGroupRequest::default()
        .with_group_id(group.clone())
        .with_session_timeout_ms(10_000)
        .with_group_instance_id(None)
        .with_protocol_type(text("tests"))
        .with_protocols(vec![protocol]);
    if version >= 1 {
        join.rebalance_timeout_ms = 10_000;
    }
    let mut joined = wire
        .call(version, &join)
        .unwrap_or_else(|error| panic!("JoinGroup {version}: {error}"));
    // From version 4 on a member is given its id first.
    if joined.error_code == code::MEMBER_ID_REQUIRED && version >= 4 {
        join.member_id = joined.member_id;
        joined = wire.call(version, &join).expect("JoinGroup");
    }
    assert_eq!(joined.error_code, code::NONE, "JoinGroup {version}");
    assert_eq!(
        (&joined.leader, joined.members.len()),
        (&joined.member_id, 1),
        "JoinGroup {version}"
    );
    assert_eq!(
        joined.members[0].metadata.as_ref(),
        b"wishes",
        "JoinGroup {version}"
    );

    let newest = |versions: &mut dyn Iterator<Item = i16>| {
        versions.filter(|each| *each <= version).last().unwrap_or(0)
    };
    let sync_version = newest(&mut advertised.of::<SyncGroupRequest>());
    let assignment = SyncGroupRequestAssignment::default()
        .with_member_id(joined.member_id.clone())
        .with_assignment(Bytes::from_static(b"yours"));
    let mut sync = SyncGroupRequest::default()
        .with_group_id(group.clone())
        .with_generation_id(joined.generation_id)
        .with_member_id(joined.member_id.clone())
        .with_group_instance_id(None)
        .with_assignments(vec![assignment]);
    if sync_version >= 5 {
        sync = sync
            .with_protocol_type(Some(text("tests")))
            .with_protocol_name(Some(text("range")));
    }
    let synced = wire
        .call(sync_version, &sync)
        .unwrap_or_else(|error| panic!("SyncGroup {sync_version}: {error}"));
    assert_eq!(
        (synced.error_code, synced.assignment.as_ref()),
        (code::NONE, &b"yours"[..]),
        "SyncGroup {sync_version}"
    );

    let beat_version = newest(&mut advertised.of::<HeartbeatRequest>());
    let beat = HeartbeatRequest::default()
        .with_group_id(group.clone())
        .with_generation_id(joined.generation_id)
        .with_member_id(joined.member_id.clone())
        .with_group_instance_id(None);
    let beaten = wire
        .call(beat_version, &beat)
        .unwrap_or_else(|error| panic!("Heartbeat {beat_version}: {error}"));
    assert_eq!(beaten.error_code, code::NONE, "Heartbeat {beat_version}");

    let leave_version = newest(&mut advertised.of::<LeaveGroupRequest>());
    let mut leave = LeaveGroupRequest::default().with_group_id(group.clone());
    match leave_version >= 3 {
        true => {
            leave.members = vec![
                MemberIdentity::default()
                    .with_member_id(joined.member_id.clone())
                    .with_group_instance_id(None),
            ];
        }
        false => leave.member_id = joined.member_id.clone(),
    }
    let left = wire
        .call(leave_version, &leave)
        .unwrap_or_else(|error| panic!("LeaveGroup {leave_version}: {error}"));
    assert_eq!(left.error_code, code::NONE, "LeaveGroup {leave_version}");
    let gone = wire.call(beat_version, &beat).expect("Heartbeat");
    assert_eq!(
        gone.error_code,
        code::UNKNOWN_MEMBER_ID,
        "a heartbeat after leaving"
    );
}
