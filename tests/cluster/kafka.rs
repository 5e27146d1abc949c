//! The calls that the tests make, at fixed versions, each on a connection of its own to the broker that it concerns.

use std::collections::BTreeMap;
use std::io;
use std::time::{Duration, Instant};

use bytes::Bytes;
use kafka_protocol::messages::create_topics_request::{CreatableTopic, CreatableTopicConfig};
use kafka_protocol::messages::delete_records_request::{
    DeleteRecordsPartition, DeleteRecordsTopic,
};
use kafka_protocol::messages::delete_topics_request::DeleteTopicState;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::{
    BrokerId, CreateTopicsRequest, DeleteRecordsRequest, DeleteTopicsRequest, FetchRequest,
    InitProducerIdRequest, ListOffsetsRequest, MetadataRequest, MetadataResponse, ProduceRequest,
    TopicName, fetch_response, list_offsets_response, produce_response,
};
use kafka_protocol::protocol::{Request, StrBytes};
use uuid::Uuid;

use super::batch;
use super::wire::Wire;

/// What Kafka's error codes are called where the tests name them.
pub mod code {
    pub const NONE: i16 = 0;
    pub const OFFSET_OUT_OF_RANGE: i16 = 1;
    pub const CORRUPT_MESSAGE: i16 = 2;
    pub const UNKNOWN_TOPIC_OR_PARTITION: i16 = 3;
    pub const NOT_LEADER_OR_FOLLOWER: i16 = 6;
    pub const MESSAGE_TOO_LARGE: i16 = 10;
    pub const REQUEST_TIMED_OUT: i16 = 7;
    pub const NOT_COORDINATOR: i16 = 16;
    pub const COORDINATOR_LOAD_IN_PROGRESS: i16 = 14;
    pub const COORDINATOR_NOT_AVAILABLE: i16 = 15;
    pub const INVALID_TOPIC_EXCEPTION: i16 = 17;
    pub const INVALID_REQUIRED_ACKS: i16 = 21;
    pub const INVALID_TIMESTAMP: i16 = 32;
    pub const UNSUPPORTED_VERSION: i16 = 35;
    pub const TOPIC_ALREADY_EXISTS: i16 = 36;
    pub const INVALID_PARTITIONS: i16 = 37;
    pub const INVALID_REPLICATION_FACTOR: i16 = 38;
    pub const INVALID_CONFIG: i16 = 40;
    pub const UNSUPPORTED_FOR_MESSAGE_FORMAT: i16 = 43;
    pub const OUT_OF_ORDER_SEQUENCE_NUMBER: i16 = 45;
    pub const UNKNOWN_MEMBER_ID: i16 = 25;
    pub const FETCH_SESSION_ID_NOT_FOUND: i16 = 70;
    pub const INVALID_FETCH_SESSION_EPOCH: i16 = 71;
    pub const MEMBER_ID_REQUIRED: i16 = 79;
    pub const KAFKA_STORAGE_ERROR: i16 = 56;
    pub const UNSUPPORTED_COMPRESSION_TYPE: i16 = 76;
    pub const OFFSET_NOT_AVAILABLE: i16 = 78;
    pub const INVALID_PRODUCER_EPOCH: i16 = 47;
    pub const INVALID_REQUEST: i16 = 42;
    pub const INVALID_RECORD: i16 = 87;
    pub const UNKNOWN_TOPIC_ID: i16 = 100;
    /// What a producer may get while leaders change: unknown topic, no leader yet, not the leader, timed out,
    /// network, coordinator loading, too few replicas (before, after the append), storage, fenced and unknown epoch.
    pub const RETRIABLE: [i16; 11] = [3, 5, 6, 7, 13, 14, 19, 20, 56, 74, 75];
}

/// A client of a cluster, for tests that ask one thing at a time.
pub struct Kafka {
    bootstrap: Vec<String>,
}

/// A topic's name as the protocol wants it.
pub fn topic_name(name: &str) -> TopicName {
    TopicName(text(name))
}

/// A string as the protocol wants it.
pub fn text(value: &str) -> StrBytes {
    StrBytes::from_string(value.to_owned())
}

impl Kafka {
    /// A client that knows the brokers at `bootstrap` (`HOST:PORT,…`).
    pub fn new(bootstrap: &str) -> Kafka {
        Kafka {
            bootstrap: bootstrap.split(',').map(str::to_owned).collect(),
        }
    }

    /// Asks the first broker that answers.
    pub fn any<R: Request>(&self, version: i16, request: &R) -> io::Result<R::Response> {
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        for address in &self.bootstrap {
            match Wire::connect(address).and_then(|mut wire| wire.call(version, request)) {
                Ok(response) => return Ok(response),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Metadata of the named topics, which are not created by asking; all brokers come with it.
    pub fn metadata(&self, topics: &[&str]) -> io::Result<MetadataResponse> {
        let topics = topics
            .iter()
            .map(|name| MetadataRequestTopic::default().with_name(Some(topic_name(name))))
            .collect();
        self.any(
            12,
            &MetadataRequest::default()
                .with_topics(Some(topics))
                .with_allow_auto_topic_creation(false),
        )
    }

    /// Creates a topic, waits until every partition has a leader, and returns its id.
    pub fn create(&self, topic: &str, partitions: i32, configs: &[(&str, &str)]) -> Uuid {
        let (error, message) = self.try_create(topic, partitions, -1, configs);
        assert_eq!(error, code::NONE, "create {topic}: {message}");
        self.wait_leaders(topic, partitions as usize)
    }

    /// Asks for a topic; error code and message.
    pub fn try_create(
        &self,
        topic: &str,
        partitions: i32,
        replicas: i16,
        configs: &[(&str, &str)],
    ) -> (i16, String) {
        let configs = configs.iter().map(|(name, value)| {
            CreatableTopicConfig::default()
                .with_name(text(name))
                .with_value(Some(text(value)))
        });
        let wanted = CreatableTopic::default()
            .with_name(topic_name(topic))
            .with_num_partitions(partitions)
            .with_replication_factor(replicas)
            .with_configs(configs.collect());
        let request = CreateTopicsRequest::default()
            .with_topics(vec![wanted])
            .with_timeout_ms(30_000);
        let response = self.any(7, &request).expect("CreateTopics");
        let result = &response.topics[0];
        (
            result.error_code,
            result
                .error_message
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default(),
        )
    }

    /// Deletes a topic; with the answer, no broker shows it any more.
    pub fn delete(&self, topic: &str) {
        let wanted = DeleteTopicState::default().with_name(Some(topic_name(topic)));
        let request = DeleteTopicsRequest::default()
            .with_topics(vec![wanted])
            .with_timeout_ms(30_000);
        let response = self.any(6, &request).expect("DeleteTopics");
        assert_eq!(
            response.responses[0].error_code,
            code::NONE,
            "delete {topic}: {:?}",
            response.responses[0]
        );
    }

    /// Waits until every broker shows `partitions` partitions of the topic, each with a leader; the topic's id.
    pub fn wait_leaders(&self, topic: &str, partitions: usize) -> Uuid {
        let mut id = Uuid::nil();
        for address in &self.bootstrap {
            id = eventually("leaders of every partition", || {
                let metadata = Kafka::new(address).metadata(&[topic]).ok()?;
                let found = &metadata.topics[0];
                let led = found
                    .partitions
                    .iter()
                    .filter(|partition| partition.error_code == 0 && partition.leader_id.0 >= 0);
                (found.error_code == 0 && led.count() == partitions).then_some(found.topic_id)
            });
        }
        id
    }

    /// Leader of each partition of a topic, as far as there is one.
    pub fn leaders(&self, topic: &str) -> io::Result<BTreeMap<i32, i32>> {
        let metadata = self.metadata(&[topic])?;
        let led = metadata.topics[0]
            .partitions
            .iter()
            .filter(|partition| partition.leader_id.0 >= 0);
        Ok(led
            .map(|partition| (partition.partition_index, partition.leader_id.0))
            .collect())
    }

    /// A connection to the leader of a partition.
    pub fn leader(&self, topic: &str, partition: i32) -> io::Result<Wire> {
        let metadata = self.metadata(&[topic])?;
        let found = metadata.topics[0]
            .partitions
            .iter()
            .find(|each| each.partition_index == partition);
        let leader = found
            .ok_or_else(|| io::Error::other("no such partition"))?
            .leader_id;
        let broker = metadata
            .brokers
            .iter()
            .find(|broker| broker.node_id == leader);
        let broker = broker.ok_or_else(|| io::Error::other("no leader"))?;
        Wire::connect(&format!("{}:{}", broker.host, broker.port))
    }

    /// Appends a batch with acks=all and waits for the answer; a new leader is asked until it leads.
    pub fn produce(
        &self,
        topic: &str,
        partition: i32,
        batch: Vec<u8>,
    ) -> produce_response::PartitionProduceResponse {
        eventually("a leader to take a batch", || {
            let mut wire = self.leader(topic, partition).ok()?;
            let answer = produce(&mut wire, topic, partition, batch.clone()).expect("Produce");
            (answer.error_code != code::NOT_LEADER_OR_FOLLOWER).then_some(answer)
        })
    }

    /// Error code and offset that ListOffsets gives for a timestamp (-1: latest, -2: earliest, -3: max timestamp).
    pub fn offset(
        &self,
        topic: &str,
        partition: i32,
        timestamp: i64,
    ) -> list_offsets_response::ListOffsetsPartitionResponse {
        let wanted = ListOffsetsPartition::default()
            .with_partition_index(partition)
            .with_timestamp(timestamp)
            .with_current_leader_epoch(-1);
        let topics = vec![
            ListOffsetsTopic::default()
                .with_name(topic_name(topic))
                .with_partitions(vec![wanted]),
        ];
        let request = ListOffsetsRequest::default()
            .with_replica_id(BrokerId(-1))
            .with_topics(topics);
        eventually("a leader to say its offsets", || {
            let mut response = self
                .leader(topic, partition)
                .ok()?
                .call(7, &request)
                .expect("ListOffsets");
            let answer = response.topics.remove(0).partitions.remove(0);
            (![code::NOT_LEADER_OR_FOLLOWER, code::OFFSET_NOT_AVAILABLE]
                .contains(&answer.error_code))
            .then_some(answer)
        })
    }

    /// Offset after the last record.
    pub fn end(&self, topic: &str, partition: i32) -> i64 {
        let found = self.offset(topic, partition, -1);
        assert_eq!(
            found.error_code,
            code::NONE,
            "ListOffsets of {topic} {partition}"
        );
        found.offset
    }

    /// Deletes the records of partition 0 before an offset, -1: all; error code and where the log starts then.
    pub fn delete_before(&self, topic: &str, offset: i64) -> (i16, i64) {
        let partition = DeleteRecordsPartition::default()
            .with_partition_index(0)
            .with_offset(offset);
        let wanted = DeleteRecordsTopic::default()
            .with_name(topic_name(topic))
            .with_partitions(vec![partition]);
        let request = DeleteRecordsRequest::default()
            .with_topics(vec![wanted])
            .with_timeout_ms(10_000);
        let mut leader = self.leader(topic, 0).expect("a leader");
        let response = leader.call(2, &request).expect("DeleteRecords");
        let result = &response.topics[0].partitions[0];
        (result.error_code, result.low_watermark)
    }

    /// Reads what there is from an offset on; waits a second for something to come.
    pub fn fetch(&self, topic: &str, partition: i32, offset: i64) -> fetch_response::PartitionData {
        let mut wire = self.leader(topic, partition).expect("a leader");
        fetch(&mut wire, topic, partition, offset, 1 << 20).expect("Fetch")
    }

    /// Reads a whole partition of uncompressed batches, from its start to the end that ListOffsets gives.
    pub fn read_all(&self, topic: &str, partition: i32) -> Vec<batch::Record> {
        let end = self.end(topic, partition);
        let mut wire = self.leader(topic, partition).expect("a leader");
        let mut records: Vec<batch::Record> = Vec::new();
        let mut next = self.offset(topic, partition, -2).offset;
        let deadline = Instant::now() + Duration::from_secs(60);
        while next < end {
            assert!(
                Instant::now() < deadline,
                "{topic} {partition}: stuck at offset {next} of {end}"
            );
            let data = fetch(&mut wire, topic, partition, next, 8 << 20).expect("Fetch");
            assert_eq!(
                data.error_code,
                code::NONE,
                "Fetch of {topic} {partition} at {next}"
            );
            for record in batch::records(data.records.as_deref().unwrap_or_default()) {
                if record.offset >= next {
                    assert_eq!(
                        record.offset, next,
                        "{topic} {partition}: a gap in the offsets"
                    );
                    next += 1;
                    records.push(record);
                }
            }
        }
        records
    }

    /// A new producer id and its epoch.
    pub fn producer_id(&self) -> io::Result<(i64, i16)> {
        let request = InitProducerIdRequest::default()
            .with_transactional_id(None)
            .with_transaction_timeout_ms(60_000)
            .with_producer_id((-1).into())
            .with_producer_epoch(-1);
        let response = eventually("a coordinator", || match self.any(4, &request) {
            Ok(response)
                if [
                    code::COORDINATOR_LOAD_IN_PROGRESS,
                    code::COORDINATOR_NOT_AVAILABLE,
                ]
                .contains(&response.error_code) =>
            {
                None
            }
            other => Some(other),
        })?;
        match response.error_code {
            code::NONE => Ok((response.producer_id.0, response.producer_epoch)),
            error => Err(io::Error::other(format!("InitProducerId: error {error}"))),
        }
    }
}

/// Appends a batch with acks=all, by Produce 9.
pub fn produce(
    wire: &mut Wire,
    topic: &str,
    partition: i32,
    batch: Vec<u8>,
) -> io::Result<produce_response::PartitionProduceResponse> {
    let mut response = wire.call(9, &produce_request(topic, partition, -1, batch))?;
    Ok(response.responses.remove(0).partition_responses.remove(0))
}

/// A Produce request with one batch.
pub fn produce_request(topic: &str, partition: i32, acks: i16, batch: Vec<u8>) -> ProduceRequest {
    let data = PartitionProduceData::default()
        .with_index(partition)
        .with_records(Some(Bytes::from(batch)));
    let topics = vec![
        TopicProduceData::default()
            .with_name(topic_name(topic))
            .with_partition_data(vec![data]),
    ];
    ProduceRequest::default()
        .with_transactional_id(None)
        .with_acks(acks)
        .with_timeout_ms(10_000)
        .with_topic_data(topics)
}

/// Reads from one partition, by Fetch 12.
pub fn fetch(
    wire: &mut Wire,
    topic: &str,
    partition: i32,
    offset: i64,
    max_bytes: i32,
) -> io::Result<fetch_response::PartitionData> {
    let wanted = FetchPartition::default()
        .with_partition(partition)
        .with_fetch_offset(offset)
        .with_current_leader_epoch(-1)
        .with_last_fetched_epoch(-1)
        .with_log_start_offset(-1)
        .with_partition_max_bytes(max_bytes);
    let topics = vec![
        FetchTopic::default()
            .with_topic(topic_name(topic))
            .with_partitions(vec![wanted]),
    ];
    let request = FetchRequest::default()
        .with_replica_id(BrokerId(-1))
        .with_max_wait_ms(1_000)
        .with_min_bytes(1)
        .with_max_bytes(max_bytes)
        .with_session_epoch(-1)
        .with_topics(topics);
    let mut response = wire.call(12, &request)?;
    if response.error_code != code::NONE || response.responses.is_empty() {
        return Err(io::Error::other(format!(
            "Fetch: error {}, {} topics",
            response.error_code,
            response.responses.len()
        )));
    }
    Ok(response.responses.remove(0).partitions.remove(0))
}

/// Asks again and again for half a minute.
pub fn eventually<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "waited 30 s in vain for {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
