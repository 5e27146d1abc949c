//! Produce and Fetch against kafka-protocol's own codec, in every version.

use bytes::{Bytes, BytesMut};
use kafka_protocol::messages::fetch_request as kf;
use kafka_protocol::messages::fetch_response as kfr;
use kafka_protocol::messages::produce_request as kp;
use kafka_protocol::messages::produce_response as kpr;
use kafka_protocol::messages::{BrokerId, ProducerId, TopicName, TransactionalId};
use kafka_protocol::protocol::{Decodable, Encodable, StrBytes};
use proptest::prelude::*;
use uuid::Uuid;

use super::fetch::*;
use super::produce::*;
use super::wire::*;

const ID: Uuid = Uuid::from_u128(0x0123_4567_89ab_cdef_0011_2233_4455_6677);

fn theirs(message: &impl Encodable, version: i16) -> Bytes {
    let mut buffer = BytesMut::new();
    message.encode(&mut buffer, version).unwrap();
    buffer.freeze()
}

/// The body of a Produce request of that version.
pub(crate) fn produce_body(version: i16) -> Bytes {
    theirs(&produce_request(version).1, version)
}

/// The body of a Fetch request of that version.
pub(crate) fn fetch_body(version: i16) -> Bytes {
    theirs(&fetch_request(version).1, version)
}

fn ours(encode: impl FnOnce(&mut Writer)) -> Bytes {
    let mut writer = Writer::new();
    encode(&mut writer);
    Bytes::from(writer.into_chunks().concat())
}

fn decode_theirs<T: Decodable>(mut body: Bytes, version: i16) -> T {
    let message = T::decode(&mut body, version).unwrap();
    assert!(body.is_empty(), "bytes left over in v{version}");
    message
}

fn topic(by_id: bool) -> TopicRef {
    if by_id {
        TopicRef::Id(ID)
    } else {
        TopicRef::Name(StrBytes::from_static_str("orders"))
    }
}

fn endpoints() -> Vec<NodeEndpoint> {
    vec![NodeEndpoint {
        node_id: 3,
        host: "broker3".into(),
        port: 9092,
        rack: Some("r".into()),
    }]
}

fn their_name(by_id: bool) -> TopicName {
    TopicName(StrBytes::from_static_str(if by_id { "" } else { "orders" }))
}

fn their_id(by_id: bool) -> Uuid {
    if by_id { ID } else { Uuid::nil() }
}

fn produce_request(version: i16) -> (ProduceRequest, kp::ProduceRequest) {
    let by_id = version >= 13;
    let records = Bytes::from(vec![7; 1000]);
    let partition = |index, records| ProducePartition { index, records };
    let partitions = vec![partition(0, Some(records.clone())), partition(5, None)];
    let our = ProduceRequest {
        transactional_id: Some(StrBytes::from_static_str("tx")),
        acks: -1,
        timeout_ms: 1500,
        topics: vec![ProduceTopic {
            topic: topic(by_id),
            partitions,
        }],
    };
    let partition = |index, records| {
        kp::PartitionProduceData::default()
            .with_index(index)
            .with_records(records)
    };
    let their = kp::ProduceRequest::default()
        .with_transactional_id(Some(TransactionalId(StrBytes::from_static_str("tx"))))
        .with_acks(-1)
        .with_timeout_ms(1500)
        .with_topic_data(vec![
            kp::TopicProduceData::default()
                .with_name(their_name(by_id))
                .with_topic_id(their_id(by_id))
                .with_partition_data(vec![partition(0, Some(records)), partition(5, None)]),
        ]);
    (our, their)
}

#[test]
fn produce_requests_agree_in_every_version() {
    for version in PRODUCE_VERSION_MIN_SERVED..=PRODUCE_VERSION_MAX {
        let (our, their) = produce_request(version);
        let bytes = theirs(&their, version);
        assert_eq!(
            ours(|writer| our.encode(writer, version)),
            bytes,
            "v{version}"
        );
        assert_eq!(
            ProduceRequest::decode(&bytes, version),
            Ok(our),
            "v{version}"
        );
    }
}

#[test]
fn produced_records_are_a_slice_of_the_frame() {
    let bytes = theirs(&produce_request(9).1, 9);
    let request = ProduceRequest::decode(&bytes, 9).unwrap();
    let records = request.topics[0].partitions[0].records.clone().unwrap();
    assert!(bytes.as_ptr_range().contains(&records.as_ptr()));
}

#[test]
fn produce_replies_agree_in_every_version() {
    for version in PRODUCE_VERSION_MIN_SERVED..=PRODUCE_VERSION_MAX {
        let by_id = version >= 13;
        let hints = version >= 10;
        let mut our = ProducePartitionResponse::appended(4, 77, 1234, -1);
        let mut their = kpr::PartitionProduceResponse::default()
            .with_index(4)
            .with_base_offset(77)
            .with_log_append_time_ms(1234);
        if version >= 5 {
            our.log_start_offset = 11;
            their.log_start_offset = 11;
        }
        if version >= 8 {
            our.error_message = Some("why".into());
            their.error_message = Some(StrBytes::from_static_str("why"));
        }
        if hints {
            our.current_leader = Some(CurrentLeader {
                leader_id: 3,
                leader_epoch: 9,
            });
            their.current_leader = kpr::LeaderIdAndEpoch::default()
                .with_leader_id(BrokerId(3))
                .with_leader_epoch(9);
        }
        let our = ProduceResponse {
            topics: vec![ProduceTopicResponse {
                topic: topic(by_id),
                partitions: vec![our, ProducePartitionResponse::refused(5, 6, None)],
            }],
            throttle_time_ms: 21,
            node_endpoints: if hints { endpoints() } else { Vec::new() },
        };
        let refused = kpr::PartitionProduceResponse::default()
            .with_index(5)
            .with_error_code(6)
            .with_base_offset(-1);
        let their = kpr::ProduceResponse::default()
            .with_responses(vec![
                kpr::TopicProduceResponse::default()
                    .with_name(their_name(by_id))
                    .with_topic_id(their_id(by_id))
                    .with_partition_responses(vec![their, refused]),
            ])
            .with_throttle_time_ms(21)
            .with_node_endpoints(if hints {
                vec![
                    kpr::NodeEndpoint::default()
                        .with_node_id(BrokerId(3))
                        .with_host(StrBytes::from_static_str("broker3"))
                        .with_port(9092)
                        .with_rack(Some(StrBytes::from_static_str("r"))),
                ]
            } else {
                Vec::new()
            });
        let bytes = ours(|writer| our.encode(writer, version));
        assert_eq!(
            decode_theirs::<kpr::ProduceResponse>(bytes.clone(), version),
            their,
            "v{version}"
        );
        assert_eq!(bytes, theirs(&their, version), "v{version}");
        assert_eq!(
            ProduceResponse::decode(&bytes, version),
            Ok(our),
            "v{version}"
        );
    }
}

fn fetch_request(version: i16) -> (FetchRequest, kf::FetchRequest) {
    let by_id = version >= 13;
    let if_since = |from: i16, value: i32| if version >= from { value } else { -1 };
    let our = FetchRequest {
        replica_id: -1,
        max_wait_ms: 500,
        min_bytes: 1,
        max_bytes: 52_428_800,
        read_committed: true,
        session_id: if version >= 7 { 12 } else { 0 },
        session_epoch: if_since(7, 3),
        topics: vec![FetchTopic {
            topic: topic(by_id),
            partitions: vec![FetchPartition {
                index: 2,
                current_leader_epoch: if_since(9, 8),
                fetch_offset: 1 << 40,
                last_fetched_epoch: if_since(12, 7),
                log_start_offset: i64::from(if_since(5, 17)),
                max_bytes: 1 << 20,
            }],
        }],
        forgotten_topics: if version >= 7 {
            vec![ForgottenTopic {
                topic: topic(by_id),
                partitions: vec![1, 9],
            }]
        } else {
            Vec::new()
        },
        rack_id: StrBytes::from_static_str(if version >= 11 { "rack" } else { "" }),
    };
    let partition = kf::FetchPartition::default()
        .with_partition(2)
        .with_current_leader_epoch(if_since(9, 8))
        .with_fetch_offset(1 << 40)
        .with_last_fetched_epoch(if_since(12, 7))
        .with_log_start_offset(i64::from(if_since(5, 17)))
        .with_partition_max_bytes(1 << 20);
    let forgotten = kf::ForgottenTopic::default()
        .with_topic(their_name(by_id))
        .with_topic_id(their_id(by_id))
        .with_partitions(vec![1, 9]);
    let their = kf::FetchRequest::default()
        .with_max_wait_ms(500)
        .with_min_bytes(1)
        .with_max_bytes(52_428_800)
        .with_isolation_level(1)
        .with_session_id(our.session_id)
        .with_session_epoch(our.session_epoch)
        .with_topics(vec![
            kf::FetchTopic::default()
                .with_topic(their_name(by_id))
                .with_topic_id(their_id(by_id))
                .with_partitions(vec![partition]),
        ])
        .with_forgotten_topics_data(if version >= 7 {
            vec![forgotten]
        } else {
            Vec::new()
        })
        .with_rack_id(our.rack_id.clone());
    (our, their)
}

#[test]
fn fetch_requests_agree_in_every_version() {
    for version in FETCH_VERSION_MIN..=FETCH_VERSION_MAX {
        let (our, their) = fetch_request(version);
        let bytes = theirs(&their, version);
        assert_eq!(
            ours(|writer| our.encode(writer, version)),
            bytes,
            "v{version}"
        );
        assert_eq!(FetchRequest::decode(&bytes, version), Ok(our), "v{version}");
    }
}

#[test]
fn tagged_fields_of_a_fetch_request_are_read_or_stepped_over() {
    let (mut our, their) = fetch_request(18);
    our.replica_id = 6;
    let mut their = their
        .with_cluster_id(Some(StrBytes::from_static_str("cluster")))
        .with_replica_state(kf::ReplicaState::default().with_replica_id(BrokerId(6)))
        .with_unknown_tagged_field(99, Bytes::from_static(b"later"));
    their.topics[0].partitions[0].replica_directory_id = ID;
    their.topics[0].partitions[0].high_watermark = 5;
    assert_eq!(FetchRequest::decode(&theirs(&their, 18), 18), Ok(our));
}

fn fetch_response(version: i16) -> (FetchResponse, kfr::FetchResponse) {
    let by_id = version >= 13;
    let flexible = version >= 12;
    let records = Bytes::from(vec![9; 700]);
    let mut our = FetchPartitionResponse::refused(2, 6);
    our.high_watermark = 100;
    our.last_stable_offset = 90;
    our.aborted_transactions = Some(vec![AbortedTransaction {
        producer_id: 5,
        first_offset: 80,
    }]);
    our.records = vec![records.clone()];
    let mut their = kfr::PartitionData::default()
        .with_partition_index(2)
        .with_error_code(6)
        .with_high_watermark(100)
        .with_last_stable_offset(90)
        .with_aborted_transactions(Some(vec![
            kfr::AbortedTransaction::default()
                .with_producer_id(ProducerId(5))
                .with_first_offset(80),
        ]))
        .with_records(Some(records));
    if version >= 5 {
        (our.log_start_offset, their.log_start_offset) = (10, 10);
    }
    if version >= 11 {
        (our.preferred_read_replica, their.preferred_read_replica) = (1, BrokerId(1));
    }
    if flexible {
        our.diverging_epoch = Some(EpochEndOffset {
            epoch: 4,
            end_offset: 44,
        });
        their.diverging_epoch = kfr::EpochEndOffset::default()
            .with_epoch(4)
            .with_end_offset(44);
        our.current_leader = Some(CurrentLeader {
            leader_id: 3,
            leader_epoch: 9,
        });
        their.current_leader = kfr::LeaderIdAndEpoch::default()
            .with_leader_id(BrokerId(3))
            .with_leader_epoch(9);
    }
    let empty = FetchPartitionResponse::refused(3, 3);
    let their_empty = kfr::PartitionData::default()
        .with_partition_index(3)
        .with_error_code(3)
        .with_high_watermark(-1)
        .with_last_stable_offset(-1)
        .with_aborted_transactions(None)
        .with_records(Some(Bytes::new()));
    let our = FetchResponse {
        throttle_time_ms: 1,
        error_code: if version >= 7 { 70 } else { 0 },
        session_id: if version >= 7 { 71 } else { 0 },
        topics: vec![FetchTopicResponse {
            topic: topic(by_id),
            partitions: vec![our, empty],
        }],
        node_endpoints: if version >= 16 {
            endpoints()
        } else {
            Vec::new()
        },
    };
    let their = kfr::FetchResponse::default()
        .with_throttle_time_ms(1)
        .with_error_code(our.error_code)
        .with_session_id(our.session_id)
        .with_responses(vec![
            kfr::FetchableTopicResponse::default()
                .with_topic(their_name(by_id))
                .with_topic_id(their_id(by_id))
                .with_partitions(vec![their, their_empty]),
        ])
        .with_node_endpoints(if version >= 16 {
            vec![
                kfr::NodeEndpoint::default()
                    .with_node_id(BrokerId(3))
                    .with_host(StrBytes::from_static_str("broker3"))
                    .with_port(9092)
                    .with_rack(Some(StrBytes::from_static_str("r"))),
            ]
        } else {
            Vec::new()
        });
    (our, their)
}

#[test]
fn fetch_replies_agree_in_every_version() {
    for version in FETCH_VERSION_MIN..=FETCH_VERSION_MAX {
        let (our, their) = fetch_response(version);
        let bytes = ours(|writer| our.encode(writer, version));
        assert_eq!(bytes, theirs(&their, version), "v{version}");
        assert_eq!(
            FetchResponse::decode(&bytes, version),
            Ok(our),
            "v{version}"
        );
    }
}

#[test]
fn fetched_records_are_passed_through_uncopied() {
    let (our, _) = fetch_response(16);
    let mut writer = Writer::new();
    our.encode(&mut writer, 16);
    let records = our.topics[0].partitions[0].records[0].as_ptr();
    assert!(
        writer
            .into_chunks()
            .iter()
            .any(|chunk| chunk.as_ptr() == records)
    );
}

#[test]
fn huge_counts_are_refused_before_anything_is_allocated() {
    let produce = Bytes::from_static(&[0xff, 0xff, 0, 1, 0, 0, 0, 1, 0x7f, 0xff, 0xff, 0xff]);
    assert_eq!(
        ProduceRequest::decode(&produce, 3),
        Err(Malformed::Truncated)
    );
    let mut fetch = vec![0; 17];
    fetch.extend([0x7f, 0xff, 0xff, 0xff]);
    assert_eq!(
        FetchRequest::decode(&fetch.into(), 4),
        Err(Malformed::Truncated)
    );
}

proptest! {
    #[test]
    fn mutated_requests_are_judged_without_panic(
        version in 3i16..=18, at: prop::sample::Index, bytes in prop::collection::vec(any::<u8>(), 1..6)
    ) {
        let mutate = |body: Bytes| {
            let mut body = BytesMut::from(&body[..]);
            let at = at.index(body.len());
            let end = body.len().min(at + bytes.len());
            body[at..end].copy_from_slice(&bytes[..end - at]);
            body.freeze()
        };
        if version <= PRODUCE_VERSION_MAX {
            drop(ProduceRequest::decode(&mutate(theirs(&produce_request(version).1, version)), version));
        }
        if version >= FETCH_VERSION_MIN {
            drop(FetchRequest::decode(&mutate(theirs(&fetch_request(version).1, version)), version));
        }
    }

    #[test]
    fn random_bytes_are_judged_without_panic(
        version in 3i16..=18, bytes in prop::collection::vec(any::<u8>(), 0..200)
    ) {
        let body = Bytes::from(bytes);
        drop(ProduceRequest::decode(&body, version.min(PRODUCE_VERSION_MAX)));
        drop(FetchRequest::decode(&body, version.max(FETCH_VERSION_MIN)));
        drop(super::header::decode(&body));
    }
}
