//! One whole broker over a disk in memory, and what its clients send.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use drave_raft::{NodeConfig, RaftNode, ReplicaId};
use drave_storage::{MemoryDisk, SharedStore};
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::{ListOffsetsRequest, TopicName};
use kafka_protocol::protocol::StrBytes;
use kafka_protocol::records::{
    Compression, Record, RecordBatchEncoder, RecordEncodeOptions, TimestampType,
};
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

use crate::config::Config;
use crate::disk::Disk;
use crate::handlers::{fetch, offsets, produce};
use crate::metadata::planning::{NewTopic, Wanted};
use crate::metadata::{Metadata, Settings};
use crate::partition::Partitions;
use crate::protocol::fetch::{
    FetchPartition, FetchPartitionResponse, FetchRequest, FetchResponse, FetchTopic,
};
use crate::protocol::produce::{
    ProducePartition, ProducePartitionResponse, ProduceRequest, ProduceTopic,
};
use crate::protocol::record_batch::BatchHeader;
use crate::protocol::wire::TopicRef;

pub(super) const PRODUCE: i16 = 11;
pub(super) const FETCH: i16 = 12;

pub(super) struct Cluster {
    pub(super) raft: Arc<RaftNode>,
    pub(super) metadata: Arc<Metadata>,
    pub(super) partitions: Arc<Partitions>,
}

pub(super) fn name(topic: &str) -> TopicRef {
    TopicRef::Name(StrBytes::from_string(topic.to_owned()))
}

impl Cluster {
    pub(super) async fn start() -> Cluster {
        Cluster::start_on(Arc::new(MemoryDisk::new(
            drave_storage::memory::Sync::Always,
        )))
        .await
    }

    pub(super) async fn start_on(store: SharedStore) -> Cluster {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let peer_address = listener.local_addr().expect("bound");
        let node = NodeConfig {
            replica: ReplicaId {
                broker: 1,
                directory: 7,
            },
            cluster_id: None,
            peers: vec![(1, peer_address)],
            listener,
            peer_dead_after: Duration::from_secs(1),
        };
        let raft = RaftNode::start(node, Arc::clone(&store))
            .await
            .expect("a node");
        let settings = Settings {
            advertised: ("localhost".into(), 9092),
            peer_address,
            rack: None,
            peers: vec![(1, peer_address)],
            coordinator_groups: 1,
        };
        let formed = Box::new(|_| Ok(()));
        let metadata = Metadata::start(settings, Arc::clone(&raft), Arc::clone(&store), formed)
            .await
            .expect("metadata");
        let config = Arc::new(Config::default());
        let disk = Disk::new(&std::env::temp_dir(), 1, Some(0)).expect("a disk");
        let partitions = Partitions::start(
            config,
            Arc::clone(&raft),
            store,
            Arc::clone(&metadata),
            disk,
        );
        Cluster {
            raft,
            metadata,
            partitions,
        }
    }

    pub(super) async fn create(&self, topic: &str, partitions: u32, configs: &[(&str, &str)]) {
        let configs = configs
            .iter()
            .map(|(key, value)| ((*key).into(), (*value).into()));
        let new = NewTopic {
            name: topic.into(),
            id: Uuid::new_v4(),
            partitions: Wanted::Count {
                partitions,
                replication_factor: 1,
            },
            configs: configs.collect(),
        };
        let deadline = Instant::now() + Duration::from_secs(30);
        while !self.metadata.image().topics.contains_key(topic) {
            assert!(Instant::now() < deadline, "no controller");
            let topics = vec![new.clone()];
            drop(
                self.metadata
                    .create_topics(topics, false, Duration::from_secs(5))
                    .await,
            );
            sleep(Duration::from_millis(20)).await;
        }
        self.led(topic, partitions).await;
    }

    pub(super) async fn led(&self, topic: &str, partitions: u32) {
        let led = |index| {
            let replica = self.partitions.partition(topic, index as i32);
            replica.is_some_and(|replica| replica.serving_epoch().is_some())
        };
        let deadline = Instant::now() + Duration::from_secs(30);
        while !(0..partitions).all(led) {
            assert!(Instant::now() < deadline, "no leader");
            sleep(Duration::from_millis(10)).await;
        }
    }

    pub(super) fn begin(
        &self,
        topic: &str,
        index: i32,
        acks: i16,
        records: Bytes,
    ) -> impl Future<Output = Option<ProducePartitionResponse>> + use<> {
        let partitions = vec![ProducePartition {
            index,
            records: Some(records),
        }];
        let topics = vec![ProduceTopic {
            topic: name(topic),
            partitions,
        }];
        let request = ProduceRequest {
            transactional_id: None,
            acks,
            timeout_ms: 10_000,
            topics,
        };
        let produced = produce::produce(&self.partitions, PRODUCE, request);
        async move {
            let response = produced.await.expect("the connection stays")?;
            Some(response.topics[0].partitions[0].clone())
        }
    }

    pub(super) async fn produce(&self, topic: &str, records: Bytes) -> ProducePartitionResponse {
        self.begin(topic, 0, -1, records).await.expect("answered")
    }

    pub(super) async fn fetch(&self, request: FetchRequest) -> FetchResponse {
        timeout(
            Duration::from_secs(60),
            fetch::fetch(&self.partitions, FETCH, request),
        )
        .await
        .expect("answered in time")
    }

    pub(super) async fn fetch_one(&self, topic: &str, offset: i64) -> FetchPartitionResponse {
        let response = self.fetch(from(topic, 0, offset)).await;
        response.topics[0].partitions[0].clone()
    }

    pub(super) async fn offset(
        &self,
        topic: &str,
        version: i16,
        timestamp: i64,
    ) -> (i16, i64, i64) {
        let asked = ListOffsetsPartition::default()
            .with_timestamp(timestamp)
            .with_current_leader_epoch(-1);
        let topic = ListOffsetsTopic::default()
            .with_name(TopicName(StrBytes::from_string(topic.to_owned())))
            .with_partitions(vec![asked]);
        let request = ListOffsetsRequest::default().with_topics(vec![topic]);
        let response = offsets::list_offsets(&self.partitions, version, request).await;
        let found = &response.topics[0].partitions[0];
        (found.error_code, found.offset, found.timestamp)
    }
}

pub(super) fn from(topic: &str, index: i32, fetch_offset: i64) -> FetchRequest {
    let partition = FetchPartition {
        index,
        current_leader_epoch: -1,
        fetch_offset,
        last_fetched_epoch: -1,
        log_start_offset: -1,
        max_bytes: 1 << 20,
    };
    FetchRequest {
        replica_id: -1,
        max_wait_ms: 0,
        min_bytes: 1,
        max_bytes: 50 << 20,
        read_committed: false,
        session_id: 0,
        session_epoch: -1,
        topics: vec![FetchTopic {
            topic: name(topic),
            partitions: vec![partition],
        }],
        forgotten_topics: Vec::new(),
        rack_id: StrBytes::default(),
    }
}

#[derive(Clone, Copy)]
pub(super) struct Sent {
    pub(super) producer: i64,
    pub(super) sequence: i32,
    pub(super) timestamp: i64,
    pub(super) count: usize,
    pub(super) compression: Compression,
}

pub(super) fn plain(timestamp: i64, count: usize) -> Sent {
    Sent {
        producer: -1,
        sequence: -1,
        timestamp,
        count,
        compression: Compression::None,
    }
}

/// A batch whose records are a millisecond apart.
pub(super) fn batch(sent: Sent) -> Bytes {
    let records = (0..sent.count as i64).map(|at| Record {
        transactional: false,
        control: false,
        delete_horizon: false,
        partition_leader_epoch: -1,
        producer_id: sent.producer,
        producer_epoch: if sent.producer < 0 { -1 } else { 0 },
        timestamp_type: TimestampType::Creation,
        offset: at,
        // Counts on, or the encoder would begin another batch.
        sequence: sent.sequence + at as i32,
        timestamp: sent.timestamp + at,
        key: None,
        value: Some(Bytes::from(vec![b'v'; 100])),
        headers: Default::default(),
    });
    let records: Vec<Record> = records.collect();
    let mut encoded = BytesMut::new();
    let options = RecordEncodeOptions {
        version: 2,
        compression: sent.compression,
    };
    RecordBatchEncoder::encode(&mut encoded, records.iter(), &options).expect("encoded");
    encoded.freeze()
}

pub(super) fn base_offsets(response: &FetchPartitionResponse) -> Vec<i64> {
    let bytes = response.records.concat();
    let mut rest = &bytes[..];
    let mut found = Vec::new();
    while let Some(header) = BatchHeader::parse(rest) {
        found.push(header.base_offset);
        rest = &rest[header.size().expect("a size")..];
    }
    found
}
