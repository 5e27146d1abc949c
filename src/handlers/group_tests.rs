//! The group APIs as a client sees them, over real Raft groups of three nodes.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use drave_raft::{NodeConfig, RaftNode, ReplicaId};
use drave_storage::MemoryDisk;
use drave_storage::memory::Sync;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::join_group_request::JoinGroupRequestProtocol;
use kafka_protocol::messages::leave_group_request::MemberIdentity;
use kafka_protocol::messages::offset_commit_request::{
    OffsetCommitRequestPartition, OffsetCommitRequestTopic,
};
use kafka_protocol::messages::offset_delete_request::{
    OffsetDeleteRequestPartition, OffsetDeleteRequestTopic,
};
use kafka_protocol::messages::offset_fetch_request::{
    OffsetFetchRequestGroup, OffsetFetchRequestTopic, OffsetFetchRequestTopics,
};
use kafka_protocol::messages::sync_group_request::SyncGroupRequestAssignment;
use kafka_protocol::messages::*;
use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion, StrBytes};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::{control, group_admin, group_offsets, groups};
use crate::groups::{Groups, GroupsConfig};
use crate::metadata::image::{BrokerRegistration, COORDINATOR_GROUP_MIN, Image, Placement, Topic};
use crate::server::{Pending, Request, RequestHeader};

const GROUP: &str = "readers";
const LONG: Duration = Duration::from_secs(20);

struct Node {
    raft: Arc<RaftNode>,
    groups: Arc<Groups>,
}

struct Cluster {
    nodes: BTreeMap<u32, Node>,
    image: watch::Sender<Arc<Image>>,
}

fn replica(broker: u32) -> ReplicaId {
    ReplicaId {
        broker,
        directory: u128::from(broker),
    }
}

fn topic(id: u128) -> Topic {
    let placement = Placement::new(1024, Vec::new());
    let id = Uuid::from_u128(id);
    Topic {
        id,
        name: "orders".into(),
        partitions: vec![placement],
        configs: BTreeMap::new(),
    }
}

fn with_topic(image: &Image, topic: Topic) -> Image {
    let mut image = image.clone();
    image.applied_index += 1;
    image.topic_names = [(topic.id, topic.name.clone())].into();
    image.topics = [(topic.name.clone(), Arc::new(topic))].into();
    image
}

impl Cluster {
    async fn start(count: u32) -> Cluster {
        let mut listeners = BTreeMap::new();
        for broker in 1..=count {
            listeners.insert(broker, TcpListener::bind("127.0.0.1:0").await.unwrap());
        }
        let addresses: Vec<(u32, SocketAddr)> = listeners
            .iter()
            .map(|(id, listener)| (*id, listener.local_addr().unwrap()))
            .collect();
        let brokers = addresses.iter().map(|(id, address)| {
            let registration = BrokerRegistration {
                replica: replica(*id),
                incarnation: 1,
                host: format!("broker-{id}"),
                port: 9092,
                peer_address: *address,
                rack: None,
                fenced: false,
            };
            (*id, Arc::new(registration))
        });
        let voters: Vec<_> = (1..=count).map(replica).collect();
        let image = Image {
            brokers: brokers.collect(),
            coordinators: (COORDINATOR_GROUP_MIN..)
                .take(2)
                .map(|group| Placement::new(group, voters.clone()))
                .collect(),
            ..Image::default()
        };
        let (image, watched) = watch::channel(Arc::new(with_topic(&image, topic(1))));
        let mut nodes = BTreeMap::new();
        for (broker, listener) in listeners {
            let config = NodeConfig {
                replica: replica(broker),
                cluster_id: Some(7),
                peers: addresses.clone(),
                listener,
                peer_dead_after: Duration::from_millis(500),
            };
            let store = Arc::new(MemoryDisk::new(Sync::Always));
            let raft = RaftNode::start(config, store).await.unwrap();
            let (groups, _task) =
                Groups::start(raft.clone(), watched.clone(), GroupsConfig::default());
            nodes.insert(broker, Node { raft, groups });
        }
        Cluster { nodes, image }
    }

    /// The broker that coordinates the group, as clients find it.
    async fn coordinator(&self) -> u32 {
        let asked = self.nodes.values().next().unwrap();
        let deadline = Instant::now() + LONG;
        loop {
            let request =
                FindCoordinatorRequest::default().with_coordinator_keys(vec![GROUP.into()]);
            let found = call(&asked.groups, 4, request).await.coordinators.remove(0);
            if found.error_code == 0 {
                let id = u32::try_from(found.node_id.0).unwrap();
                assert_eq!(&found.host[..], format!("broker-{id}"));
                let heartbeat = HeartbeatRequest::default().with_group_id(group());
                // The one that is named may have gone a moment ago.
                let ready = match self.nodes.get(&id) {
                    Some(node) => call(&node.groups, 4, heartbeat).await.error_code,
                    None => ResponseError::NotCoordinator.code(),
                };
                if ready == ResponseError::UnknownMemberId.code()
                    || ready == ResponseError::IllegalGeneration.code()
                {
                    return id;
                }
            } else {
                assert_eq!(
                    found.error_code,
                    ResponseError::CoordinatorNotAvailable.code()
                );
            }
            assert!(Instant::now() < deadline, "no coordinator");
            sleep(Duration::from_millis(20)).await;
        }
    }
}

fn group() -> GroupId {
    GroupId(StrBytes::from_static_str(GROUP))
}

fn orders() -> TopicName {
    TopicName(StrBytes::from_static_str("orders"))
}

/// What `handlers::dispatch` does with these APIs, without a whole broker around it.
fn begin(groups: &Arc<Groups>, request: Request) -> Pending {
    /// The handler, called with the groups.
    macro_rules! begin {
        ($handler:path) => {{
            let groups = groups.clone();
            control(request, move |version, body| async move {
                $handler(&groups, version, body).await
            })
        }};
    }
    match ApiKey::try_from(request.header.api_key).unwrap() {
        ApiKey::FindCoordinator => begin!(group_admin::find_coordinator),
        ApiKey::DescribeGroups => begin!(group_admin::describe_groups),
        ApiKey::ListGroups => begin!(group_admin::list_groups),
        ApiKey::DeleteGroups => begin!(group_admin::delete_groups),
        ApiKey::OffsetCommit => begin!(group_offsets::offset_commit),
        ApiKey::OffsetFetch => begin!(group_offsets::offset_fetch),
        ApiKey::OffsetDelete => begin!(group_offsets::offset_delete),
        ApiKey::SyncGroup => begin!(groups::sync_group),
        ApiKey::Heartbeat => begin!(groups::heartbeat),
        ApiKey::LeaveGroup => begin!(groups::leave_group),
        ApiKey::JoinGroup => {
            let client = groups::Client {
                id: request
                    .header
                    .client_id
                    .as_deref()
                    .unwrap_or_default()
                    .to_owned(),
                host: "/127.0.0.1".to_owned(),
            };
            let groups = groups.clone();
            control(request, move |version, body| async move {
                groups::join_group(&groups, client, version, body).await
            })
        }
        other => panic!("not a group API: {other:?}"),
    }
}

/// A request's whole way: encoded, dispatched, and its reply decoded.
async fn call<Req>(groups: &Arc<Groups>, version: i16, request: Req) -> Req::Response
where
    Req: kafka_protocol::protocol::Request + Encodable,
    Req::Response: Decodable + HeaderVersion,
{
    let mut body = BytesMut::new();
    request.encode(&mut body, version).unwrap();
    let header = RequestHeader {
        api_key: Req::KEY,
        api_version: version,
        correlation_id: 7,
        client_id: Some(StrBytes::from_static_str("client")),
    };
    let request = Request {
        header,
        body: body.freeze(),
    };
    let pending = begin(groups, request);
    let response = pending
        .await
        .expect("the connection stays open")
        .expect("a reply");
    let mut bytes = Bytes::from(response.chunks.concat());
    let header_version = Req::Response::header_version(version);
    let header = ResponseHeader::decode(&mut bytes, header_version).unwrap();
    assert_eq!(header.correlation_id, 7);
    let decoded = Req::Response::decode(&mut bytes, version).unwrap();
    assert!(bytes.is_empty(), "bytes after the reply");
    decoded
}

fn join(member_id: &StrBytes) -> JoinGroupRequest {
    let protocol = JoinGroupRequestProtocol::default()
        .with_name(StrBytes::from_static_str("range"))
        .with_metadata(Bytes::from_static(
            b"\0\x01\0\0\0\x01\0\x06orders\xff\xff\xff\xff",
        ));
    JoinGroupRequest::default()
        .with_group_id(group())
        .with_session_timeout_ms(10_000)
        .with_rebalance_timeout_ms(10_000)
        .with_member_id(member_id.clone())
        .with_protocol_type(StrBytes::from_static_str("consumer"))
        .with_protocols(vec![protocol])
}

fn commit(member_id: &StrBytes, generation: i32, offset: i64) -> OffsetCommitRequest {
    let partition = OffsetCommitRequestPartition::default()
        .with_committed_offset(offset)
        .with_committed_metadata(Some(StrBytes::from_static_str("mine")));
    let topic = OffsetCommitRequestTopic::default()
        .with_name(orders())
        .with_partitions(vec![partition]);
    OffsetCommitRequest::default()
        .with_group_id(group())
        .with_generation_id_or_member_epoch(generation)
        .with_member_id(member_id.clone())
        .with_topics(vec![topic])
}

async fn committed(groups: &Arc<Groups>, version: i16) -> (i64, String) {
    if version < 8 {
        let topic = OffsetFetchRequestTopic::default()
            .with_name(orders())
            .with_partition_indexes(vec![0]);
        let request = OffsetFetchRequest::default()
            .with_group_id(group())
            .with_topics(Some(vec![topic]));
        let response = call(groups, version, request).await;
        let partition = &response.topics[0].partitions[0];
        assert_eq!((response.error_code, partition.error_code), (0, 0));
        return (
            partition.committed_offset,
            partition.metadata.clone().unwrap().to_string(),
        );
    }
    let topic = OffsetFetchRequestTopics::default()
        .with_name(orders())
        .with_partition_indexes(vec![0]);
    let asked = OffsetFetchRequestGroup::default()
        .with_group_id(group())
        .with_topics(Some(vec![topic]));
    let request = OffsetFetchRequest::default().with_groups(vec![asked]);
    let response = call(groups, version, request).await;
    assert_eq!(response.groups[0].error_code, 0);
    let partition = &response.groups[0].topics[0].partitions[0];
    (
        partition.committed_offset,
        partition.metadata.clone().unwrap().to_string(),
    )
}

/// Joins as the only member and syncs: its id and generation.
async fn join_alone(groups: &Arc<Groups>, version: i16) -> (StrBytes, i32) {
    let mut joined = call(groups, version, join(&StrBytes::default())).await;
    if version >= 4 {
        assert_eq!(joined.error_code, ResponseError::MemberIdRequired.code());
        joined = call(groups, version, join(&joined.member_id)).await;
    }
    assert_eq!(joined.error_code, 0);
    assert_eq!(
        (&joined.leader, joined.members.len()),
        (&joined.member_id, 1)
    );
    let assignment = SyncGroupRequestAssignment::default()
        .with_member_id(joined.member_id.clone())
        .with_assignment(Bytes::from_static(b"work"));
    let sync = SyncGroupRequest::default()
        .with_group_id(group())
        .with_generation_id(joined.generation_id)
        .with_member_id(joined.member_id.clone())
        .with_assignments(vec![assignment]);
    let synced = call(groups, version.min(5), sync).await;
    assert_eq!(
        (synced.error_code, &synced.assignment[..]),
        (0, &b"work"[..])
    );
    (joined.member_id, joined.generation_id)
}

fn heartbeat(member_id: &StrBytes, generation: i32) -> HeartbeatRequest {
    HeartbeatRequest::default()
        .with_group_id(group())
        .with_member_id(member_id.clone())
        .with_generation_id(generation)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_goes_on_where_it_was_after_its_coordinator_is_gone() {
    let mut cluster = Cluster::start(3).await;
    let first = cluster.coordinator().await;
    let groups = cluster.nodes[&first].groups.clone();
    let (member, generation) = join_alone(&groups, 9).await;
    let response = call(&groups, 9, commit(&member, generation, 42)).await;
    assert_eq!(response.topics[0].partitions[0].error_code, 0);
    let elsewhere = cluster
        .nodes
        .iter()
        .find(|(id, _)| **id != first)
        .unwrap()
        .1;
    let refused = call(&elsewhere.groups, 4, heartbeat(&member, generation)).await;
    assert_eq!(refused.error_code, ResponseError::NotCoordinator.code());

    let gone = cluster.nodes.remove(&first).unwrap();
    gone.raft.shutdown().await;
    let second = cluster.coordinator().await;
    assert_ne!(first, second);
    let groups = cluster.nodes[&second].groups.clone();
    assert_eq!(
        call(&groups, 4, heartbeat(&member, generation))
            .await
            .error_code,
        0
    );
    assert_eq!(committed(&groups, 9).await, (42, "mine".to_string()));
    let response = call(&groups, 9, commit(&member, generation, 43)).await;
    assert_eq!(response.topics[0].partitions[0].error_code, 0);
    assert_eq!(committed(&groups, 9).await.0, 43);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_version_of_the_group_apis_serves_a_whole_life() {
    let cluster = Cluster::start(1).await;
    let groups = cluster.nodes[&cluster.coordinator().await].groups.clone();
    for version in 0..=9 {
        let find = match version {
            0..=3 => FindCoordinatorRequest::default().with_key(GROUP.into()),
            _ => FindCoordinatorRequest::default().with_coordinator_keys(vec![GROUP.into()]),
        };
        let found = call(&groups, version.min(6), find).await;
        assert_eq!(found.error_code, 0);

        let (member, generation) = join_alone(&groups, version).await;
        let alive = call(&groups, version.min(4), heartbeat(&member, generation)).await;
        assert_eq!(alive.error_code, 0);
        let offset = i64::from(version) + 100;
        let response = call(&groups, version.max(2), commit(&member, generation, offset)).await;
        assert_eq!(response.topics[0].partitions[0].error_code, 0);
        let stale = call(&groups, version.max(2), commit(&member, generation - 1, 0)).await;
        let illegal = ResponseError::IllegalGeneration.code();
        assert_eq!(stale.topics[0].partitions[0].error_code, illegal);
        assert_eq!(
            committed(&groups, version.max(1)).await,
            (offset, "mine".to_string())
        );

        let describe = DescribeGroupsRequest::default().with_groups(vec![group()]);
        let described = call(&groups, version.min(6), describe)
            .await
            .groups
            .remove(0);
        assert_eq!(&described.group_state[..], "Stable");
        assert_eq!(&described.members[0].client_id[..], "client");
        assert_eq!(&described.members[0].client_host[..], "/127.0.0.1");
        assert_eq!(&described.members[0].member_assignment[..], b"work");
        let listed = call(&groups, version.min(5), ListGroupsRequest::default()).await;
        assert_eq!(listed.groups[0].group_id, group());

        let delete = DeleteGroupsRequest::default().with_groups_names(vec![group()]);
        let refused = call(&groups, version.min(2), delete.clone()).await;
        assert_eq!(
            refused.results[0].error_code,
            ResponseError::NonEmptyGroup.code()
        );
        let leave = match version {
            0..=2 => LeaveGroupRequest::default().with_member_id(member),
            _ => LeaveGroupRequest::default()
                .with_members(vec![MemberIdentity::default().with_member_id(member)]),
        };
        let left = call(&groups, version.min(5), leave.with_group_id(group())).await;
        assert_eq!(left.error_code, 0);
        assert!(left.members.iter().all(|member| member.error_code == 0));
        let deleted = call(&groups, version.min(2), delete).await;
        assert_eq!(deleted.results[0].error_code, 0);
        assert_eq!(committed(&groups, version.max(1)).await.0, -1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_can_be_encoded_in_every_version() {
    let cluster = Cluster::start(1).await;
    let groups = cluster.nodes[&cluster.coordinator().await].groups.clone();
    let unknown = ResponseError::UnknownMemberId.code();
    let nobody = StrBytes::from_static_str("nobody");
    for version in 0..=9 {
        let joined = call(&groups, version, join(&nobody)).await;
        assert_eq!((joined.error_code, joined.generation_id), (unknown, -1));
        let no_group = JoinGroupRequest::default();
        let refused = call(&groups, version, no_group).await;
        assert_eq!(refused.error_code, ResponseError::InvalidGroupId.code());
        let hasty = join(&nobody).with_session_timeout_ms(5);
        let refused = call(&groups, version, hasty).await;
        assert_eq!(
            refused.error_code,
            ResponseError::InvalidSessionTimeout.code()
        );
        let sync = SyncGroupRequest::default()
            .with_group_id(group())
            .with_member_id(nobody.clone());
        assert_eq!(
            call(&groups, version.min(5), sync).await.error_code,
            unknown
        );
        let describe = DescribeGroupsRequest::default().with_groups(vec![group()]);
        let described = call(&groups, version.min(6), describe)
            .await
            .groups
            .remove(0);
        assert_eq!(&described.group_state[..], "Dead");
        let find = FindCoordinatorRequest::default().with_key_type(1);
        let find = match version {
            1..=3 => find.with_key("transaction".into()),
            4.. => find.with_coordinator_keys(vec!["transaction".into()]),
            _ => continue,
        };
        let found = call(&groups, version.min(6), find).await;
        let code = found
            .coordinators
            .first()
            .map_or(found.error_code, |found| found.error_code);
        assert_eq!(code, ResponseError::CoordinatorNotAvailable.code());
    }
    let mut request = commit(&StrBytes::default(), -1, 1);
    let partition = &mut request.topics[0].partitions[0];
    partition.committed_metadata = Some(StrBytes::from_string("x".repeat(4097)));
    let response = call(&groups, 9, request.clone()).await;
    let too_large = ResponseError::OffsetMetadataTooLarge.code();
    assert_eq!(response.topics[0].partitions[0].error_code, too_large);
    request.topics[0].partitions[0].partition_index = 1;
    let response = call(&groups, 9, request).await;
    let no_partition = ResponseError::UnknownTopicOrPartition.code();
    assert_eq!(response.topics[0].partitions[0].error_code, no_partition);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commits_of_a_deleted_topic_are_dropped_and_never_those_of_its_successor() {
    let cluster = Cluster::start(1).await;
    let groups = cluster.nodes[&cluster.coordinator().await].groups.clone();
    let nobody = StrBytes::default();
    call(&groups, 9, commit(&nobody, -1, 42)).await;
    assert_eq!(committed(&groups, 9).await.0, 42);
    let recreated = with_topic(&cluster.image.borrow(), topic(2));
    cluster.image.send(Arc::new(recreated)).unwrap();
    assert_eq!(committed(&groups, 9).await.0, -1);
    call(&groups, 9, commit(&nobody, -1, 7)).await;
    let coordinator = groups.coordinator(GROUP).unwrap();
    let deadline = Instant::now() + LONG;
    loop {
        let topics = coordinator
            .read(GROUP, |state| {
                state.map(|state| state.topics.keys().copied().collect::<Vec<_>>())
            })
            .await
            .unwrap();
        if topics.as_deref() == Some(&[Uuid::from_u128(2)]) {
            break;
        }
        assert!(Instant::now() < deadline, "still there: {topics:?}");
        sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(committed(&groups, 9).await.0, 7);
    let partition = OffsetDeleteRequestPartition::default();
    let topic = OffsetDeleteRequestTopic::default()
        .with_name(orders())
        .with_partitions(vec![partition]);
    let delete = OffsetDeleteRequest::default()
        .with_group_id(group())
        .with_topics(vec![topic]);
    let deleted = call(&groups, 0, delete).await;
    assert_eq!(
        (
            deleted.error_code,
            deleted.topics[0].partitions[0].error_code
        ),
        (0, 0)
    );
    assert_eq!(committed(&groups, 9).await.0, -1);
}
