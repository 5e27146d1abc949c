//! Requests that are malformed, oversized, truncated or unknown: the broker answers or closes the connection as Kafka
//! does, stays up, keeps its memory, and serves its other connections on.
//!
//! What is expected was taken from Kafka 4.3 by running this very test against it (`DRAVE_TEST_BOOTSTRAP`).

mod cluster;

use std::time::{Duration, Instant};

use bytes::Bytes;
use cluster::batch::{self, Batch};
use cluster::kafka::{self, Kafka, code};
use cluster::wire::{Wire, frame};
use cluster::{Cluster, Target};
use kafka_protocol::messages::{ApiKey, ApiVersionsRequest, ApiVersionsResponse, MetadataRequest};
use kafka_protocol::protocol::Decodable;

/// What a broker does with bytes.
#[derive(Debug, PartialEq, Clone, Copy)]
enum Does {
    /// It closes the connection without an answer.
    Closes,
    /// It answers and keeps the connection.
    Answers,
    /// It waits for more.
    Waits,
}
use Does::{Answers, Closes, Waits};

/// Memory that a broker may take on for all the bad requests together.
const GROWTH_BYTES_MAX: u64 = 96 << 20;

/// Sends bytes on a connection of their own.
fn observe(address: &str, bytes: &[u8]) -> (Does, Option<Bytes>) {
    let mut wire = Wire::connect(address).expect("the broker accepts");
    wire.set_patience(Duration::from_millis(700))
        .expect("a time-out");
    wire.send_bytes(bytes).ok(); // it may close before all is sent
    match wire.read_frame() {
        Ok(Some(frame)) => (Answers, Some(frame)),
        Ok(None) => (Closes, None),
        Err(_) => (Waits, None),
    }
}

/// A frame of just these bytes, with a length in front.
fn framed(payload: &[u8]) -> Vec<u8> {
    [&(payload.len() as i32).to_be_bytes(), payload].concat()
}

/// A body that starts with an array count of 2^31 - 1, `before` in front of it.
fn huge_count(api: ApiKey, version: i16, before: &[u8]) -> Vec<u8> {
    frame(
        api as i16,
        version,
        1,
        &[before, &[0x7f, 0xff, 0xff, 0xff]].concat(),
    )
}

/// The same with the count as an unsigned varint, as flexible versions have it.
fn huge_compact_count(api: ApiKey, version: i16, before: &[u8]) -> Vec<u8> {
    frame(
        api as i16,
        version,
        1,
        &[before, &[0xff, 0xff, 0xff, 0xff, 0x07]].concat(),
    )
}

#[rustfmt::skip] // a case a line
fn cases() -> Vec<(&'static str, Does, Vec<u8>)> {
    let metadata = ApiKey::Metadata as i16;
    vec![
        ("a length of 2 GiB", Closes, i32::MAX.to_be_bytes().to_vec()),
        ("a length above socket.request.max.bytes", Closes, 104_857_601i32.to_be_bytes().to_vec()),
        ("a length within it and nothing more", Waits, 104_857_600i32.to_be_bytes().to_vec()),
        ("a length of -1", Closes, (-1i32).to_be_bytes().to_vec()),
        ("a length of -2 GiB", Closes, i32::MIN.to_be_bytes().to_vec()),
        ("a length of 0", Closes, vec![0; 4]),
        ("a frame of 3 bytes", Closes, framed(&[0, 3, 0])),
        ("a header that ends in the client id", Closes, framed(&[0, 3, 0, 1, 0, 0, 0, 1, 0, 50, b'x'])),
        ("half a frame", Waits, frame(metadata, 1, 1, &[0; 4])[..9].to_vec()),
        ("an HTTP request", Closes, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec()),
        ("a TLS greeting", Closes, vec![0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01, 0xfc, 0x03, 0x03, 0x10]),
        ("an unknown API key", Closes, frame(9_999, 0, 1, &[])),
        ("a negative API key", Closes, frame(-1, 0, 1, &[])),
        ("an unknown version", Closes, frame(metadata, 99, 1, &[0; 4])),
        ("a negative version", Closes, frame(metadata, -1, 1, &[0; 4])),
        ("a Produce version older than record batches", Closes, frame(0, 2, 1, &[0; 10])),
        ("an API between brokers", Closes, frame(ApiKey::Vote as i16, 0, 1, &[0; 16])),
        ("an empty body", Closes, frame(metadata, 1, 1, &[])),
        ("a body that ends early", Closes, frame(metadata, 1, 1, &[0, 0, 0, 1, 0, 9, b'x'])),
        ("bytes after the body", Answers, frame(metadata, 1, 1, &[0, 0, 0, 0, 1, 2, 3, 4])),
        ("a negative count", Closes, frame(ApiKey::DeleteTopics as i16, 1, 1, &[0xff, 0xff, 0xff, 0xfe, 0, 0, 0, 0])),
        ("a count that is null where it can't be", Closes, frame(ApiKey::DeleteTopics as i16, 1, 1, &[0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0])),
        ("a name that is null where it can't be", Closes, frame(ApiKey::Metadata as i16, 1, 1, &[0, 0, 0, 1, 0xff, 0xff])),
        ("2^31 topics in Metadata", Closes, huge_count(ApiKey::Metadata, 1, &[])),
        ("2^31 topics in Metadata 12", Closes, huge_compact_count(ApiKey::Metadata, 12, &[])),
        ("2^31 topics in Produce", Closes, huge_count(ApiKey::Produce, 3, &[0xff, 0xff, 0, 1, 0, 0, 1, 0])),
        ("2^31 topics in Produce 9", Closes, huge_compact_count(ApiKey::Produce, 9, &[0, 0, 1, 0, 0, 1, 0])),
        ("2^31 partitions in Produce", Closes, huge_count(ApiKey::Produce, 3, &[0xff, 0xff, 0, 1, 0, 0, 1, 0, 0, 0, 0, 1, 0, 1, b't'])),
        ("2 GiB of records in Produce", Closes, huge_count(ApiKey::Produce, 3, &[0xff, 0xff, 0, 1, 0, 0, 1, 0, 0, 0, 0, 1, 0, 1, b't', 0, 0, 0, 1, 0, 0, 0, 0])),
        ("2^31 topics in Fetch", Closes, huge_count(ApiKey::Fetch, 4, &[0xff, 0xff, 0xff, 0xff, 0, 0, 0, 9, 0, 0, 0, 1, 0, 0, 1, 0, 0])),
        ("2^31 topics in Fetch 12", Closes, huge_compact_count(ApiKey::Fetch, 12, &[0xff, 0xff, 0xff, 0xff, 0, 0, 0, 9, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff])),
        ("2^31 topics in ListOffsets", Closes, huge_count(ApiKey::ListOffsets, 1, &[0xff, 0xff, 0xff, 0xff])),
        ("2^31 topics in CreateTopics", Closes, huge_count(ApiKey::CreateTopics, 2, &[])),
        ("2^31 topics in CreateTopics 7", Closes, huge_compact_count(ApiKey::CreateTopics, 7, &[])),
        ("2^31 assignments in CreateTopics", Closes, huge_count(ApiKey::CreateTopics, 2, &[0, 0, 0, 1, 0, 1, b't', 0, 0, 0, 1, 0, 1])),
        ("2^31 topics in DeleteTopics", Closes, huge_count(ApiKey::DeleteTopics, 1, &[])),
        ("2^31 topics in CreatePartitions", Closes, huge_count(ApiKey::CreatePartitions, 0, &[])),
        ("2^31 resources in DescribeConfigs", Closes, huge_count(ApiKey::DescribeConfigs, 1, &[])),
        ("2^31 resources in IncrementalAlterConfigs", Closes, huge_count(ApiKey::IncrementalAlterConfigs, 0, &[])),
        ("2^31 topics in OffsetForLeaderEpoch", Closes, huge_count(ApiKey::OffsetForLeaderEpoch, 2, &[])),
        ("2^31 topics in OffsetCommit", Closes, huge_count(ApiKey::OffsetCommit, 2, &[0, 1, b'g', 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])),
        ("2^31 topics in OffsetFetch", Closes, huge_count(ApiKey::OffsetFetch, 1, &[0, 1, b'g'])),
        ("2^31 groups in OffsetFetch 8", Closes, huge_compact_count(ApiKey::OffsetFetch, 8, &[])),
        ("2^31 keys in FindCoordinator 4", Closes, huge_compact_count(ApiKey::FindCoordinator, 4, &[0])),
        ("2^31 protocols in JoinGroup", Closes, huge_count(ApiKey::JoinGroup, 0, &[0, 1, b'g', 0, 0, 1, 0, 0, 0, 0, 8, b'c', b'o', b'n', b's', b'u', b'm', b'e', b'r'])),
        ("2^31 assignments in SyncGroup", Closes, huge_count(ApiKey::SyncGroup, 0, &[0, 1, b'g', 0, 0, 0, 1, 0, 0])),
        ("2^31 topics in DescribeLogDirs", Closes, huge_count(ApiKey::DescribeLogDirs, 1, &[])),
        ("2^31 topics in DescribeTopicPartitions", Closes, huge_compact_count(ApiKey::DescribeTopicPartitions, 0, &[])),
        ("2^31 tagged fields", Closes, huge_compact_count(ApiKey::Metadata, 12, &[1, 0, 0])),
        ("a varint without an end", Closes, frame(metadata, 12, 1, &[0xff; 12])),
        ("a cut varint", Closes, frame(metadata, 12, 1, &[0x80])),
    ]
}

#[test]
fn malformed_requests_end_as_in_kafka_and_leave_the_broker_as_it_was() {
    let target = cluster::shared();
    let address = target.address();
    let topic = format!("bystander-{}", batch::now_ms());
    let kafka = target.kafka();
    kafka.create(&topic, 1, &[]);
    let mut bystander = kafka.leader(&topic, 0).expect("a leader");
    let before = resident(target);

    let mut wrong = Vec::new();
    for (what, expected, bytes) in cases() {
        let (does, _) = observe(&address, &bytes);
        if does != expected {
            wrong.push(format!("{what}: {does:?} where Kafka {expected:?}"));
        }
        let answer = kafka::produce(
            &mut bystander,
            &topic,
            0,
            Batch::of(&[("k", what)]).encode(),
        );
        let error = answer
            .unwrap_or_else(|error| panic!("after {what}: {error}"))
            .error_code;
        assert_eq!(error, code::NONE, "after {what}");
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    assert_eq!(
        kafka.read_all(&topic, 0).len(),
        cases().len(),
        "the bystander's records are all there"
    );
    assert_no_growth(target, &before);
}

#[test]
fn requests_of_random_bytes_do_no_harm() {
    let target = cluster::shared();
    let address = target.address();
    let before = resident(target);
    let seed = 0x5eed_u64;
    let mut random = Random(seed);
    let keys: Vec<i16> = (0..92)
        .filter(|key| ApiKey::try_from(*key).is_ok())
        .collect();
    // ControlledShutdown and the like would be Kafka's own business: only what clients send.
    for round in 0..1_500 {
        let key = keys[random.below(keys.len())];
        let version = random.below(14) as i16;
        let mut body: Vec<u8> = (0..random.below(200)).map(|_| random.byte()).collect();
        // Plausible bytes reach deeper than noise does.
        for byte in &mut body {
            if random.below(3) > 0 {
                *byte = [0, 0, 0, 1, 2, 3, 0x7f, 0xff][random.below(8)];
            }
        }
        let Ok(mut wire) = Wire::connect(&address) else {
            panic!("round {round} of seed {seed:#x}: the broker accepts no connection");
        };
        wire.send_bytes(&frame(key, version, 1, &body)).ok();
        if round % 10 == 0 {
            wire.set_patience(Duration::from_millis(100))
                .expect("a time-out");
            wire.read_frame().ok();
        }
    }
    let metadata = target
        .kafka()
        .metadata(&[])
        .expect("the broker still answers");
    assert!(!metadata.brokers.is_empty());
    assert_no_growth(target, &before);
}

#[test]
fn an_api_versions_request_from_the_future_is_answered_in_version_0_with_error_35() {
    let target = cluster::shared();
    let kafka = target.kafka();
    let address = target.address();
    let (does, reply) = observe(
        &address,
        &frame(ApiKey::ApiVersions as i16, 99, 77, &[1, 2, 3]),
    );
    assert_eq!(does, Answers);
    let mut reply = reply.expect("a reply");
    assert_eq!(
        reply.split_to(4).as_ref(),
        77i32.to_be_bytes(),
        "correlation id, and a header of version 0"
    );
    let response = ApiVersionsResponse::decode(&mut reply, 0).expect("a body of version 0");
    assert_eq!(response.error_code, code::UNSUPPORTED_VERSION);
    let keys: Vec<_> = response.api_keys.iter().map(|api| api.api_key).collect();
    assert_eq!(keys, [ApiKey::ApiVersions as i16]);

    let nameless = kafka
        .any(3, &ApiVersionsRequest::default())
        .expect("a reply");
    assert_eq!(
        nameless.error_code,
        code::INVALID_REQUEST,
        "a client without a name"
    );
    let named = ApiVersionsRequest::default()
        .with_client_software_name(kafka::text("drave-tests"))
        .with_client_software_version(kafka::text("1"));
    let versions = kafka.any(3, &named).expect("a reply");
    assert_eq!(versions.error_code, code::NONE);
    let produce = versions
        .api_keys
        .iter()
        .find(|api| api.api_key == 0)
        .expect("Produce");
    assert_eq!(
        produce.min_version, 0,
        "with more, librdkafka sends gzip, snappy and lz4 uncompressed"
    );
}

#[test]
fn connections_that_send_half_a_frame_and_stay_take_no_memory_from_the_others() {
    let target = cluster::shared();
    if target.is_given() {
        return; // Kafka sets it all aside, and is no more
    }
    let address = target.address();
    let before = resident(target);
    // Each announces 100 MB; were it set aside for all of them, it would be 10 GB.
    let idle: Vec<_> = (0..100)
        .map(|_| {
            let mut wire = Wire::connect(&address).expect("the broker accepts");
            wire.send_bytes(&104_000_000i32.to_be_bytes())
                .expect("sent");
            wire.send_bytes(&[0; 16]).expect("sent");
            wire
        })
        .collect();
    let kafka = Kafka::new(&address);
    kafka
        .any(1, &MetadataRequest::default().with_topics(None))
        .expect("the broker still answers");
    assert_no_growth(target, &before);
    drop(idle);
}

#[test]
fn connections_that_send_half_a_frame_leave_room_for_requests_and_are_closed_in_the_end() {
    if std::env::var_os("DRAVE_TEST_BOOTSTRAP").is_some() {
        return; // the settings are our own broker's
    }
    let room = [
        "--socket-request-max-bytes=8388608",
        "--request-bytes-in-flight-max=16777216",
    ];
    let cluster = Cluster::start_with(1, &room);
    let kafka = cluster.kafka();
    kafka.create("bystander", 1, &[]);
    let mut bystander = kafka.leader("bystander", 0).expect("a leader");
    // Together they announce a hundred times the bytes that requests may take.
    let mut slow: Vec<_> = (0..200)
        .map(|_| {
            let mut wire = Wire::connect(&cluster.address(1)).expect("the broker accepts");
            let begin = [&8_000_000i32.to_be_bytes()[..], &[0; 20_000]].concat();
            wire.send_bytes(&begin).expect("sent");
            wire
        })
        .collect();
    let begun = Instant::now();
    for _ in 0..5 {
        let records = Batch::of(&[("k", &"v".repeat(500_000))]).encode();
        let answer = kafka::produce(&mut bystander, "bystander", 0, records);
        assert_eq!(answer.expect("an answer").error_code, code::NONE);
    }
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "{:?}",
        begun.elapsed()
    );
    for wire in &mut slow {
        wire.set_patience(Duration::from_secs(20))
            .expect("a time-out");
        assert!(
            matches!(wire.read_frame(), Ok(None)),
            "a client that sends no more is closed"
        );
    }
}

#[test]
fn one_address_gets_no_more_connections_than_its_share() {
    if std::env::var_os("DRAVE_TEST_BOOTSTRAP").is_some() {
        return; // the settings are our own broker's
    }
    let cluster = Cluster::start_with(1, &["--max-connections-per-ip=20"]);
    let metadata = MetadataRequest::default().with_topics(None);
    let connect = || {
        let mut wire = Wire::connect(&cluster.address(1)).expect("the system accepts");
        wire.call(1, &metadata).map(|_| wire)
    };
    // Those that watched the start may have a few places yet.
    let held: Vec<_> = (0..40).map_while(|_| connect().ok()).collect();
    assert!(
        (10..=20).contains(&held.len()),
        "{} connections",
        held.len()
    );
    drop(held);
    let deadline = Instant::now() + Duration::from_secs(10);
    while connect().is_err() {
        assert!(Instant::now() < deadline, "no place becomes free");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Resident bytes of our brokers; none of a cluster that isn't ours.
fn resident(target: &Target) -> Vec<u64> {
    match target {
        Target::Own(cluster) => ids(cluster)
            .map(|id| cluster.node(id).resident_bytes())
            .collect(),
        Target::Given(_) => Vec::new(),
    }
}

fn ids(cluster: &Cluster) -> impl Iterator<Item = i32> {
    1..=cluster.bootstrap().split(',').count() as i32
}

/// The brokers are up and no larger than before, but for a bound. Panics are logged, and there must be none.
fn assert_no_growth(target: &Target, before: &[u64]) {
    let Target::Own(cluster) = target else { return };
    for (id, (before, after)) in ids(cluster).zip(before.iter().zip(resident(target))) {
        let growth = after.saturating_sub(*before);
        assert!(
            growth <= GROWTH_BYTES_MAX,
            "broker {id} grew by {} MiB",
            growth >> 20
        );
        let log = std::fs::read_to_string(cluster.node(id).log()).expect("the broker's log");
        assert!(!log.contains("panicked at"), "broker {id} panicked");
    }
}

/// A small generator of repeatable numbers (xorshift).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn byte(&mut self) -> u8 {
        self.next() as u8
    }
}
