//! Fetch: the request's and the reply's own codec.
//!
//! The records of a reply are never copied: [`FetchResponse::encode`] writes
//! the fields around them and passes the chunks through.

use bytes::Bytes;
use kafka_protocol::protocol::StrBytes;

use super::wire::{CurrentLeader, Malformed, NodeEndpoint, Reader, TopicRef, Writer};

/// The lowest version served: older ones ask for message sets.
pub const FETCH_VERSION_MIN: i16 = 4;
/// The highest version served.
pub const FETCH_VERSION_MAX: i16 = 18;

const FLEXIBLE: i16 = 12;
const TOPIC_IDS: i16 = 13;

/// A request for records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchRequest {
    /// -1 from a consumer. Brokers of a cluster don't replicate by Fetch here.
    pub replica_id: i32,
    /// How long the reply may wait for `min_bytes`.
    pub max_wait_ms: i32,
    /// How many bytes to gather before replying early.
    pub min_bytes: i32,
    /// How many bytes the reply may hold; one batch may exceed it.
    pub max_bytes: i32,
    /// True: only committed transactions.
    pub read_committed: bool,
    /// The fetch session, 0 for none (version 7 and later).
    pub session_id: i32,
    /// 0 opens a session, -1 is a fetch without (or closing) one, else the next in the session.
    pub session_epoch: i32,
    /// What to read, by topic; within a session, what has changed.
    pub topics: Vec<FetchTopic>,
    /// What to drop from the session (version 7 and later).
    pub forgotten_topics: Vec<ForgottenTopic>,
    /// The consumer's rack (version 11 and later), empty when unknown.
    pub rack_id: StrBytes,
}

/// The partitions of one topic in a [`FetchRequest`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchTopic {
    /// By name up to version 12, by id from 13 on.
    pub topic: TopicRef,
    /// What to read, by partition.
    pub partitions: Vec<FetchPartition>,
}

/// What to read from one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchPartition {
    /// The partition's number.
    pub index: i32,
    /// The epoch that the client believes the leader to be in, -1 for unknown.
    pub current_leader_epoch: i32,
    /// Where to begin.
    pub fetch_offset: i64,
    /// The epoch of the last record fetched, -1 for none (version 12 and later).
    pub last_fetched_epoch: i32,
    /// Meaningful between Kafka's brokers only; -1 from consumers.
    pub log_start_offset: i64,
    /// How many bytes to reply with for this partition; one batch may exceed it.
    pub max_bytes: i32,
}

/// Partitions to be dropped from a fetch session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForgottenTopic {
    /// By name up to version 12, by id from 13 on.
    pub topic: TopicRef,
    /// The partitions' numbers.
    pub partitions: Vec<i32>,
}

/// The reply to a [`FetchRequest`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FetchResponse {
    /// How long the client should hold its next request back.
    pub throttle_time_ms: i32,
    /// An error of the whole request, such as of its session (version 7 and later).
    pub error_code: i16,
    /// The session, 0 for none (version 7 and later).
    pub session_id: i32,
    /// The records, by topic.
    pub topics: Vec<FetchTopicResponse>,
    /// Where the leaders named in `current_leader` listen (version 16 and later).
    pub node_endpoints: Vec<NodeEndpoint>,
}

/// The reply for one topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchTopicResponse {
    /// As in the request.
    pub topic: TopicRef,
    /// The records, by partition.
    pub partitions: Vec<FetchPartitionResponse>,
}

/// The reply for one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchPartitionResponse {
    /// The partition's number.
    pub index: i32,
    /// Kafka's error code.
    pub error_code: i16,
    /// The offset after the last committed record; -1 with an error.
    pub high_watermark: i64,
    /// The offset below which every transaction has ended; -1 with an error.
    pub last_stable_offset: i64,
    /// The first readable offset (version 5 and later).
    pub log_start_offset: i64,
    /// Where the client's log and the leader's part (version 12 and later).
    pub diverging_epoch: Option<EpochEndOffset>,
    /// The leader to turn to, with NOT_LEADER_OR_FOLLOWER and FENCED_LEADER_EPOCH (version 12 and later).
    pub current_leader: Option<CurrentLeader>,
    /// For read_committed only: transactions whose records the client drops. `None` is sent as null.
    pub aborted_transactions: Option<Vec<AbortedTransaction>>,
    /// A replica that would serve this consumer better, -1 for none (version 11 and later).
    pub preferred_read_replica: i32,
    /// Record batches, ready for the wire, in chunks.
    pub records: Vec<Bytes>,
}

impl FetchPartitionResponse {
    /// A reply without records.
    pub fn refused(index: i32, error_code: i16) -> Self {
        Self {
            index,
            error_code,
            high_watermark: -1,
            last_stable_offset: -1,
            log_start_offset: -1,
            diverging_epoch: None,
            current_leader: None,
            aborted_transactions: None,
            preferred_read_replica: -1,
            records: Vec::new(),
        }
    }

    /// The number of record bytes in this reply.
    pub fn record_bytes(&self) -> usize {
        self.records.iter().map(Bytes::len).sum()
    }
}

/// The end of an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EpochEndOffset {
    /// The epoch.
    pub epoch: i32,
    /// The offset after its last record.
    pub end_offset: i64,
}

/// A transaction that was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AbortedTransaction {
    /// Its producer.
    pub producer_id: i64,
    /// The offset of its first record.
    pub first_offset: i64,
}

impl FetchRequest {
    /// Decodes a request's body.
    pub fn decode(body: &Bytes, version: i16) -> Result<Self, Malformed> {
        let mut reader = Reader::new(body, version >= FLEXIBLE);
        let mut replica_id = if version <= 14 { reader.i32()? } else { -1 };
        let max_wait_ms = reader.i32()?;
        let min_bytes = reader.i32()?;
        let max_bytes = reader.i32()?;
        let read_committed = reader.i8()? == 1;
        let (session_id, session_epoch) = if version >= 7 {
            (reader.i32()?, reader.i32()?)
        } else {
            (0, -1)
        };
        let topics = reader.array(|reader| {
            let topic = reader.topic(version >= TOPIC_IDS)?;
            let partitions = reader.array(|reader| FetchPartition::decode(reader, version))?;
            reader.skip_tags()?;
            Ok(FetchTopic { topic, partitions })
        })?;
        let mut forgotten_topics = Vec::new();
        if version >= 7 {
            forgotten_topics = reader.array(|reader| {
                let topic = reader.topic(version >= TOPIC_IDS)?;
                let partitions = reader.array(Reader::i32)?;
                reader.skip_tags()?;
                Ok(ForgottenTopic { topic, partitions })
            })?;
        }
        let rack_id = if version >= 11 {
            reader.string()?
        } else {
            StrBytes::default()
        };
        reader.tags(|tag, reader| {
            if tag == 1 && version >= 15 {
                replica_id = reader.i32()?;
            }
            Ok(())
        })?;
        Ok(Self {
            replica_id,
            max_wait_ms,
            min_bytes,
            max_bytes,
            read_committed,
            session_id,
            session_epoch,
            topics,
            forgotten_topics,
            rack_id,
        })
    }

    /// Encodes a request's body, as a consumer does.
    pub fn encode(&self, writer: &mut Writer, version: i16) {
        writer.flexible(version >= FLEXIBLE);
        if version <= 14 {
            writer.i32(self.replica_id);
        }
        writer.i32(self.max_wait_ms);
        writer.i32(self.min_bytes);
        writer.i32(self.max_bytes);
        writer.i8(i8::from(self.read_committed));
        if version >= 7 {
            writer.i32(self.session_id);
            writer.i32(self.session_epoch);
        }
        writer.array(&self.topics, |writer, topic| {
            writer.topic(&topic.topic, version >= TOPIC_IDS);
            writer.array(&topic.partitions, |writer, partition| {
                partition.encode(writer, version)
            });
            writer.no_tags();
        });
        if version >= 7 {
            writer.array(&self.forgotten_topics, |writer, topic| {
                writer.topic(&topic.topic, version >= TOPIC_IDS);
                writer.array(&topic.partitions, |writer, index| writer.i32(*index));
                writer.no_tags();
            });
        }
        if version >= 11 {
            writer.string(&self.rack_id);
        }
        writer.no_tags();
    }
}

impl FetchPartition {
    fn decode(reader: &mut Reader, version: i16) -> Result<Self, Malformed> {
        let index = reader.i32()?;
        let current_leader_epoch = if version >= 9 { reader.i32()? } else { -1 };
        let fetch_offset = reader.i64()?;
        let last_fetched_epoch = if version >= 12 { reader.i32()? } else { -1 };
        let log_start_offset = if version >= 5 { reader.i64()? } else { -1 };
        let max_bytes = reader.i32()?;
        reader.skip_tags()?;
        Ok(Self {
            index,
            current_leader_epoch,
            fetch_offset,
            last_fetched_epoch,
            log_start_offset,
            max_bytes,
        })
    }

    fn encode(&self, writer: &mut Writer, version: i16) {
        writer.i32(self.index);
        if version >= 9 {
            writer.i32(self.current_leader_epoch);
        }
        writer.i64(self.fetch_offset);
        if version >= 12 {
            writer.i32(self.last_fetched_epoch);
        }
        if version >= 5 {
            writer.i64(self.log_start_offset);
        }
        writer.i32(self.max_bytes);
        writer.no_tags();
    }
}

impl FetchResponse {
    /// The number of record bytes in this reply.
    pub fn record_bytes(&self) -> usize {
        let partitions = self.topics.iter().flat_map(|topic| &topic.partitions);
        partitions.map(FetchPartitionResponse::record_bytes).sum()
    }

    /// Encodes the body of a reply; its records pass through uncopied.
    pub fn encode(&self, writer: &mut Writer, version: i16) {
        writer.flexible(version >= FLEXIBLE);
        writer.i32(self.throttle_time_ms);
        if version >= 7 {
            writer.i16(self.error_code);
            writer.i32(self.session_id);
        }
        writer.array(&self.topics, |writer, topic| {
            writer.topic(&topic.topic, version >= TOPIC_IDS);
            writer.array(&topic.partitions, |writer, partition| {
                partition.encode(writer, version)
            });
            writer.no_tags();
        });
        if version >= 16 {
            writer.node_endpoints_tag(0, &self.node_endpoints);
        } else {
            writer.no_tags();
        }
    }

    /// Decodes the body of a reply.
    pub fn decode(body: &Bytes, version: i16) -> Result<Self, Malformed> {
        let mut reader = Reader::new(body, version >= FLEXIBLE);
        let throttle_time_ms = reader.i32()?;
        let (error_code, session_id) = if version >= 7 {
            (reader.i16()?, reader.i32()?)
        } else {
            (0, 0)
        };
        let topics = reader.array(|reader| {
            let topic = reader.topic(version >= TOPIC_IDS)?;
            let partitions =
                reader.array(|reader| FetchPartitionResponse::decode(reader, version))?;
            reader.skip_tags()?;
            Ok(FetchTopicResponse { topic, partitions })
        })?;
        let mut node_endpoints = Vec::new();
        reader.tags(|tag, reader| {
            if tag == 0 && version >= 16 {
                node_endpoints = reader.node_endpoints()?;
            }
            Ok(())
        })?;
        Ok(Self {
            throttle_time_ms,
            error_code,
            session_id,
            topics,
            node_endpoints,
        })
    }
}

impl FetchPartitionResponse {
    fn encode(&self, writer: &mut Writer, version: i16) {
        writer.i32(self.index);
        writer.i16(self.error_code);
        writer.i64(self.high_watermark);
        writer.i64(self.last_stable_offset);
        if version >= 5 {
            writer.i64(self.log_start_offset);
        }
        writer.nullable_array(self.aborted_transactions.as_deref(), |writer, aborted| {
            writer.i64(aborted.producer_id);
            writer.i64(aborted.first_offset);
            writer.no_tags();
        });
        if version >= 11 {
            writer.i32(self.preferred_read_replica);
        }
        writer.nullable_bytes(Some(&self.records));
        if version < FLEXIBLE {
            return;
        }
        let tags = usize::from(self.diverging_epoch.is_some())
            + usize::from(self.current_leader.is_some());
        writer.tag_count(tags);
        if let Some(diverging) = &self.diverging_epoch {
            writer.tag_header(0, 4 + 8 + 1);
            writer.i32(diverging.epoch);
            writer.i64(diverging.end_offset);
            writer.no_tags();
        }
        if let Some(leader) = &self.current_leader {
            writer.current_leader_tag(1, leader);
        }
    }

    fn decode(reader: &mut Reader, version: i16) -> Result<Self, Malformed> {
        let index = reader.i32()?;
        let error_code = reader.i16()?;
        let high_watermark = reader.i64()?;
        let last_stable_offset = reader.i64()?;
        let log_start_offset = if version >= 5 { reader.i64()? } else { -1 };
        let aborted_transactions = reader.nullable_array(|reader| {
            let producer_id = reader.i64()?;
            let first_offset = reader.i64()?;
            reader.skip_tags()?;
            Ok(AbortedTransaction {
                producer_id,
                first_offset,
            })
        })?;
        let preferred_read_replica = if version >= 11 { reader.i32()? } else { -1 };
        let records = reader.nullable_bytes()?;
        let mut diverging_epoch = None;
        let mut current_leader = None;
        reader.tags(|tag, reader| {
            match tag {
                0 => {
                    let epoch = reader.i32()?;
                    let end_offset = reader.i64()?;
                    reader.skip_tags()?;
                    diverging_epoch = Some(EpochEndOffset { epoch, end_offset });
                }
                1 => current_leader = Some(reader.current_leader()?),
                _ => {}
            }
            Ok(())
        })?;
        Ok(Self {
            index,
            error_code,
            high_watermark,
            last_stable_offset,
            log_start_offset,
            diverging_epoch,
            current_leader,
            aborted_transactions,
            preferred_read_replica,
            records: records
                .filter(|records| !records.is_empty())
                .into_iter()
                .collect(),
        })
    }
}
