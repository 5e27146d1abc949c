//! Topics: made, changed, deleted and made again, and what their configs do to records.

mod cluster;

use cluster::Cluster;
use cluster::batch::{self, Batch};
use cluster::kafka::{Kafka, code, eventually, text, topic_name};
use kafka_protocol::messages::create_partitions_request::CreatePartitionsTopic;
use kafka_protocol::messages::describe_configs_request::DescribeConfigsResource;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::incremental_alter_configs_request::{
    AlterConfigsResource, AlterableConfig,
};
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::{
    BrokerId, CreatePartitionsRequest, DescribeConfigsRequest, DescribeLogDirsRequest,
    FetchRequest, IncrementalAlterConfigsRequest, MetadataRequest,
};
use uuid::Uuid;

/// Resource type of a topic in the config APIs.
const TOPIC_RESOURCE: i8 = 2;

fn shared() -> Kafka {
    cluster::shared().kafka()
}

fn unique(name: &str) -> String {
    format!("{name}-{}", batch::now_ms())
}

fn one(value: &str) -> Vec<u8> {
    Batch::of(&[("k", value)]).encode()
}

#[test]
fn a_topic_made_again_has_a_new_id_and_nothing_of_the_old() {
    let kafka = shared();
    let topic = unique("again");
    let (producer_id, epoch) = kafka.producer_id().expect("a producer id");
    let batch = |sequence| {
        Batch::of(&[("a", "old"), ("b", "old")])
            .by(producer_id, epoch, sequence)
            .encode()
    };
    let old = kafka.create(&topic, 3, &[("max.message.bytes", "5000")]);
    assert_eq!(kafka.produce(&topic, 1, batch(0)).base_offset, 0);
    assert_eq!(kafka.produce(&topic, 1, batch(2)).base_offset, 2);
    assert_eq!(fetch_by_id(&kafka, old, &topic, 1), code::NONE);
    kafka.delete(&topic);

    let new = kafka.create(&topic, 2, &[]);
    assert_ne!(new, old);
    assert_ne!(new, Uuid::nil());
    assert_eq!((kafka.end(&topic, 0), kafka.end(&topic, 1)), (0, 0));
    assert_eq!(kafka.offset(&topic, 1, -2).offset, 0);
    assert_eq!(fetch_by_id(&kafka, new, &topic, 1), code::NONE);
    assert_eq!(fetch_by_id(&kafka, old, &topic, 1), code::UNKNOWN_TOPIC_ID);
    // The old limit is gone, and the old producer's batches are not taken for repeats.
    assert_eq!(
        kafka
            .produce(&topic, 1, one(&"x".repeat(6_000)))
            .base_offset,
        0
    );
    assert_eq!(kafka.produce(&topic, 1, batch(0)).base_offset, 1);
    assert_eq!(kafka.read_all(&topic, 1).len(), 3);
}

/// A consumer that joins a group right after the topic was made asks any broker for its partitions, once.
#[test]
fn what_is_confirmed_shows_on_every_broker_at_once() {
    let target = cluster::shared();
    let kafka = target.kafka();
    let brokers: Vec<Kafka> = target.bootstrap().split(',').map(Kafka::new).collect();
    let shown = |topic: &str| -> Vec<i16> {
        let metadata = brokers.iter().map(|broker| broker.metadata(&[topic]));
        metadata
            .map(|answer| answer.expect("metadata").topics[0].error_code)
            .collect()
    };
    for round in 0..30 {
        let topic = unique(&format!("at-once-{round}"));
        let (error, message) = kafka.try_create(&topic, 1, -1, &[]);
        assert_eq!(error, code::NONE, "{message}");
        assert_eq!(shown(&topic), vec![code::NONE; brokers.len()], "{topic}");
        kafka.delete(&topic);
        let gone = vec![code::UNKNOWN_TOPIC_OR_PARTITION; brokers.len()];
        assert_eq!(shown(&topic), gone, "{topic}");
    }
}

/// Error code of Fetch 13, which names topics by id.
fn fetch_by_id(kafka: &Kafka, id: Uuid, topic: &str, partition: i32) -> i16 {
    let wanted = FetchPartition::default()
        .with_partition(partition)
        .with_current_leader_epoch(-1)
        .with_partition_max_bytes(1 << 20);
    let request = FetchRequest::default()
        .with_replica_id(BrokerId(-1))
        .with_max_bytes(1 << 20)
        .with_session_epoch(-1)
        .with_topics(vec![
            FetchTopic::default()
                .with_topic_id(id)
                .with_partitions(vec![wanted]),
        ]);
    eventually("a leader to answer a fetch by id", || {
        let response = kafka
            .leader(topic, partition)
            .ok()?
            .call(13, &request)
            .expect("Fetch");
        let error = match response.error_code {
            code::NONE => response.responses[0].partitions[0].error_code,
            error => error,
        };
        (error != code::NOT_LEADER_OR_FOLLOWER).then_some(error)
    })
}

#[test]
fn partitions_are_added_but_never_taken_away() {
    let kafka = shared();
    let topic = unique("grows");
    kafka.create(&topic, 2, &[]);
    kafka.produce(&topic, 1, one("kept"));
    assert_eq!(add_partitions(&kafka, &topic, 5), code::NONE);
    kafka.wait_leaders(&topic, 5);
    assert_eq!(kafka.produce(&topic, 4, one("new")).base_offset, 0);
    assert_eq!(kafka.read_all(&topic, 1)[0].value, b"kept");
    assert_eq!(add_partitions(&kafka, &topic, 5), code::INVALID_PARTITIONS);
    assert_eq!(add_partitions(&kafka, &topic, 3), code::INVALID_PARTITIONS);
    assert_eq!(
        add_partitions(&kafka, &unique("nobody"), 3),
        code::UNKNOWN_TOPIC_OR_PARTITION
    );
}

fn add_partitions(kafka: &Kafka, topic: &str, count: i32) -> i16 {
    let wanted = CreatePartitionsTopic::default()
        .with_name(topic_name(topic))
        .with_count(count)
        .with_assignments(None);
    let request = CreatePartitionsRequest::default()
        .with_topics(vec![wanted])
        .with_timeout_ms(30_000);
    kafka.any(3, &request).expect("CreatePartitions").results[0].error_code
}

#[test]
fn topics_that_cannot_be_are_refused() {
    let kafka = shared();
    let topic = unique("there");
    kafka.create(&topic, 1, &[]);
    let long = "x".repeat(250);
    let cases = [
        (topic.as_str(), 1, -1, code::TOPIC_ALREADY_EXISTS),
        ("", 1, -1, code::INVALID_TOPIC_EXCEPTION),
        (".", 1, -1, code::INVALID_TOPIC_EXCEPTION),
        ("..", 1, -1, code::INVALID_TOPIC_EXCEPTION),
        ("a/b", 1, -1, code::INVALID_TOPIC_EXCEPTION),
        ("späť", 1, -1, code::INVALID_TOPIC_EXCEPTION),
        (long.as_str(), 1, -1, code::INVALID_TOPIC_EXCEPTION),
        ("no-partition", 0, -1, code::INVALID_PARTITIONS),
        ("minus-two", -2, -1, code::INVALID_PARTITIONS),
        ("no-replica", 1, 0, code::INVALID_REPLICATION_FACTOR),
        ("too-many-replicas", 1, 4, code::INVALID_REPLICATION_FACTOR),
    ];
    for (name, partitions, replicas, expected) in cases {
        let (error, message) = kafka.try_create(name, partitions, replicas, &[]);
        assert_eq!(
            error, expected,
            "{name:?}, {partitions} partitions, {replicas} replicas: {message}"
        );
        assert!(!message.is_empty(), "{name:?}: a refusal says why");
    }
}

#[test]
fn configs_that_do_nothing_here_are_refused_by_name() {
    let kafka = shared();
    let topic = unique("configured");
    for (name, value) in [
        ("no.such.config", "1"),
        ("max.message.bytes", "many"),
        ("cleanup.policy", "burn"),
    ] {
        let (error, message) = kafka.try_create(&topic, 1, -1, &[(name, value)]);
        assert_eq!(error, code::INVALID_CONFIG, "{name}={value}: {message}");
        assert!(message.contains(name), "{name}: {message}");
    }
    kafka.create(
        &topic,
        1,
        &[("max.message.bytes", "3000"), ("segment.bytes", "1048576")],
    );
    assert_eq!(
        describe(&kafka, &topic, "max.message.bytes").as_deref(),
        Some("3000")
    );
    let (error, message) = alter(&kafka, &topic, "no.such.config", "1");
    assert_eq!(error, code::INVALID_CONFIG, "{message}");
    assert!(message.contains("no.such.config"), "{message}");

    assert_eq!(
        alter(&kafka, &topic, "max.message.bytes", "500").0,
        code::NONE
    );
    eventually("the new config to be shown", || {
        (describe(&kafka, &topic, "max.message.bytes")? == "500").then_some(())
    });
    eventually("the new limit to hold", || {
        (kafka.produce(&topic, 0, one(&"x".repeat(1_000))).error_code == code::MESSAGE_TOO_LARGE)
            .then_some(())
    });
}

/// IncrementalAlterConfigs: sets one config of a topic.
fn alter(kafka: &Kafka, topic: &str, name: &str, value: &str) -> (i16, String) {
    let config = AlterableConfig::default()
        .with_name(text(name))
        .with_value(Some(text(value)));
    let resource = AlterConfigsResource::default()
        .with_resource_type(TOPIC_RESOURCE)
        .with_resource_name(text(topic))
        .with_configs(vec![config]);
    let response = kafka
        .any(
            1,
            &IncrementalAlterConfigsRequest::default().with_resources(vec![resource]),
        )
        .expect("AlterConfigs");
    let answer = &response.responses[0];
    (
        answer.error_code,
        answer
            .error_message
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default(),
    )
}

/// DescribeConfigs: one config of a topic.
fn describe(kafka: &Kafka, topic: &str, name: &str) -> Option<String> {
    let resource = DescribeConfigsResource::default()
        .with_resource_type(TOPIC_RESOURCE)
        .with_resource_name(text(topic))
        .with_configuration_keys(None);
    let response = kafka
        .any(
            4,
            &DescribeConfigsRequest::default().with_resources(vec![resource]),
        )
        .expect("DescribeConfigs");
    let config = response.results[0]
        .configs
        .iter()
        .find(|config| config.name.as_str() == name)?;
    config.value.as_ref().map(ToString::to_string)
}

#[test]
fn a_topic_is_created_on_first_use_unless_the_client_or_the_broker_says_no() {
    let kafka = shared();
    let topic = unique("first-use");
    assert_eq!(
        kafka.metadata(&[&topic]).expect("metadata").topics[0].error_code,
        code::UNKNOWN_TOPIC_OR_PARTITION
    );
    eventually("the topic to be created", || {
        (ask_for(&kafka, &topic)? == code::NONE).then_some(())
    });
    kafka.wait_leaders(&topic, 1);
    assert_eq!(kafka.produce(&topic, 0, one("v")).error_code, code::NONE);
    assert_eq!(
        ask_for(&kafka, "not a name"),
        Some(code::INVALID_TOPIC_EXCEPTION)
    );
}

#[test]
fn a_broker_with_auto_creation_off_creates_nothing() {
    if cluster::shared().is_given() {
        return; // the cluster given has its own configuration
    }
    let cluster = Cluster::start_with(1, &["--auto-create-topics-enable=false"]);
    let kafka = cluster.kafka();
    assert_eq!(
        ask_for(&kafka, "nothing"),
        Some(code::UNKNOWN_TOPIC_OR_PARTITION)
    );
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert_eq!(
        ask_for(&kafka, "nothing"),
        Some(code::UNKNOWN_TOPIC_OR_PARTITION)
    );
    kafka.create("something", 1, &[]);
    assert_eq!(
        kafka.produce("something", 0, one("v")).error_code,
        code::NONE,
        "one broker is a cluster too"
    );
}

/// Metadata that lets the broker create the topic; the error code it gets.
fn ask_for(kafka: &Kafka, topic: &str) -> Option<i16> {
    let wanted = MetadataRequestTopic::default().with_name(Some(topic_name(topic)));
    let request = MetadataRequest::default()
        .with_topics(Some(vec![wanted]))
        .with_allow_auto_topic_creation(true);
    Some(kafka.any(12, &request).ok()?.topics[0].error_code)
}

#[test]
fn log_append_time_replaces_what_the_producer_wrote() {
    let kafka = shared();
    let topic = unique("append-time");
    kafka.create(&topic, 1, &[("message.timestamp.type", "LogAppendTime")]);
    let before = batch::now_ms();
    let mut old = Batch::of(&[("a", "1"), ("b", "2")]);
    old.base_timestamp = 1_000;
    let answer = kafka.produce(&topic, 0, old.encode());
    assert_eq!(answer.error_code, code::NONE);
    assert!(
        (before..=batch::now_ms()).contains(&answer.log_append_time_ms),
        "{}",
        answer.log_append_time_ms
    );
    let records = kafka.read_all(&topic, 0); // the checksum is checked on the way
    assert!(
        records
            .iter()
            .all(|record| record.timestamp == answer.log_append_time_ms),
        "{records:?}"
    );
    assert_eq!(kafka.offset(&topic, 0, before).offset, 0);
    assert_eq!(kafka.offset(&topic, 0, batch::now_ms() + 1_000).offset, -1);

    let topic = unique("create-time");
    kafka.create(&topic, 1, &[]);
    old.base_timestamp = before - 5_000;
    assert_eq!(
        kafka.produce(&topic, 0, old.encode()).log_append_time_ms,
        -1
    );
    assert_eq!(kafka.read_all(&topic, 0)[1].timestamp, before - 4_999);
}

#[test]
fn list_offsets_finds_both_ends_and_times_between() {
    let kafka = shared();
    let topic = unique("times");
    kafka.create(&topic, 1, &[]);
    let of = |timestamp| {
        let answer = kafka.offset(&topic, 0, timestamp);
        assert_eq!(answer.error_code, code::NONE);
        (answer.offset, answer.timestamp)
    };
    let (latest, earliest, max_timestamp) = (-1, -2, -3);
    assert_eq!(
        (of(latest), of(earliest), of(max_timestamp)),
        ((0, -1), (0, -1), (-1, -1))
    );
    let start = batch::now_ms() - 100_000;
    // Three records a batch, a millisecond apart; the last batch is older than the one before.
    for base_timestamp in [start, start + 1_000, start + 2_000, start + 500] {
        let mut batch = Batch::of(&[("a", "1"), ("b", "2"), ("c", "3")]);
        batch.base_timestamp = base_timestamp;
        assert_eq!(
            kafka.produce(&topic, 0, batch.encode()).error_code,
            code::NONE
        );
    }
    assert_eq!((of(latest).0, of(earliest).0), (12, 0));
    assert_eq!(of(max_timestamp), (8, start + 2_002));
    assert_eq!(of(0), (0, start));
    assert_eq!(of(start + 1), (1, start + 1), "in the middle of a batch");
    assert_eq!(of(start + 3), (3, start + 1_000), "between two batches");
    assert_eq!(of(start + 2_002), (8, start + 2_002));
    assert_eq!(of(start + 2_003), (-1, -1), "after the last");
}

#[test]
fn deleting_a_topic_frees_its_space() {
    if cluster::shared().is_given() {
        return; // the data directories of the cluster given are not ours
    }
    // More than the write-ahead log keeps for use again, which is a fixed amount however much was written.
    const CHUNKS: i32 = 300;
    const WRITTEN_BYTES: u64 = 3 * CHUNKS as u64 * 900_000;
    let cluster = Cluster::start();
    let kafka = cluster.kafka();
    let topic = unique("large");
    kafka.create(&topic, 3, &[]);
    let mut noise = 1u64;
    let mut chunk = || {
        let value: String = (0..900_000)
            .map(|_| {
                noise = noise
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                char::from(33 + (noise >> 58) as u8)
            })
            .collect();
        one(&value)
    };
    for n in 0..CHUNKS {
        assert_eq!(kafka.produce(&topic, n % 3, chunk()).error_code, code::NONE);
    }
    let full = used_bytes(&cluster);
    assert!(
        full > WRITTEN_BYTES,
        "{full} bytes on three disks for {WRITTEN_BYTES}"
    );
    let shown = eventually("the size to be shown", || {
        Some(log_dir_bytes(&kafka, &topic) as u64).filter(|size| *size > WRITTEN_BYTES / 3)
    });
    assert!(
        shown < WRITTEN_BYTES / 2,
        "DescribeLogDirs of one broker shows {shown}"
    );
    kafka.delete(&topic);
    assert_eq!(log_dir_bytes(&kafka, &topic), 0);
    eventually("most of the space to be freed", || {
        (used_bytes(&cluster) < full - WRITTEN_BYTES / 10 * 7).then_some(())
    });
}

/// Bytes in the data directories of all brokers.
fn used_bytes(cluster: &Cluster) -> u64 {
    fn under(path: &std::path::Path) -> u64 {
        let Ok(entries) = std::fs::read_dir(path) else {
            return 0;
        };
        let size = |entry: std::fs::DirEntry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => under(&entry.path()),
            Ok(metadata) => metadata
                .len()
                .min(std::os::unix::fs::MetadataExt::blocks(&metadata) * 512),
            Err(_) => 0, // deleted just now
        };
        entries.flatten().map(size).sum()
    }
    (1..=3).map(|id| under(&cluster.node(id).data())).sum()
}

/// What DescribeLogDirs of the first broker says of a topic.
fn log_dir_bytes(kafka: &Kafka, topic: &str) -> i64 {
    let response = kafka
        .any(4, &DescribeLogDirsRequest::default().with_topics(None))
        .expect("DescribeLogDirs");
    let topics = response.results.iter().flat_map(|dir| &dir.topics);
    let partitions = topics
        .filter(|found| found.name.as_str() == topic)
        .flat_map(|found| &found.partitions);
    partitions.map(|partition| partition.partition_size).sum()
}
