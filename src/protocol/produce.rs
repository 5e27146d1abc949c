//! Produce: the request's and the reply's own codec.
//!
//! The crate `kafka-protocol` allocates by counts it has not checked and copies
//! record bytes; this codec does neither. Record bytes of a request are slices
//! of the frame that carried them.

use bytes::Bytes;
use kafka_protocol::protocol::StrBytes;

use super::wire::{CurrentLeader, Malformed, NodeEndpoint, Reader, TopicRef, Writer};

/// The lowest version whose records may be appended: older ones carry message
/// sets of magic 0 and 1. Versions below it are advertised (some clients send
/// everything uncompressed otherwise), and one that comes closes its connection, as at Kafka.
pub const PRODUCE_VERSION_MIN_SERVED: i16 = 3;
/// The highest version served.
pub const PRODUCE_VERSION_MAX: i16 = 13;

const FLEXIBLE: i16 = 9;
const TOPIC_IDS: i16 = 13;
const LEADER_HINTS: i16 = 10;

/// A request to append record batches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProduceRequest {
    /// Set by transactional producers.
    pub transactional_id: Option<StrBytes>,
    /// 0: no reply; 1 and -1: after the quorum has synced.
    pub acks: i16,
    /// How long the client lets the append wait for its quorum.
    pub timeout_ms: i32,
    /// What to append, by topic.
    pub topics: Vec<ProduceTopic>,
}

/// The partitions of one topic in a [`ProduceRequest`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProduceTopic {
    /// By name up to version 12, by id from 13 on.
    pub topic: TopicRef,
    /// What to append, by partition.
    pub partitions: Vec<ProducePartition>,
}

/// What to append to one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProducePartition {
    /// The partition's number.
    pub index: i32,
    /// Record batches as the client sent them: a slice of the request's frame.
    pub records: Option<Bytes>,
}

/// The reply to a [`ProduceRequest`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProduceResponse {
    /// One per topic of the request, in its order.
    pub topics: Vec<ProduceTopicResponse>,
    /// How long the client should hold its next request back.
    pub throttle_time_ms: i32,
    /// Where the leaders named in `current_leader` listen (version 10 and later).
    pub node_endpoints: Vec<NodeEndpoint>,
}

/// The reply for one topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProduceTopicResponse {
    /// As in the request.
    pub topic: TopicRef,
    /// One per partition of the request.
    pub partitions: Vec<ProducePartitionResponse>,
}

/// The reply for one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProducePartitionResponse {
    /// The partition's number.
    pub index: i32,
    /// Kafka's error code; 0 when appended.
    pub error_code: i16,
    /// The offset of the first appended record; -1 with an error.
    pub base_offset: i64,
    /// The time given by the broker under LogAppendTime, else -1.
    pub log_append_time_ms: i64,
    /// The partition's first readable offset (version 5 and later).
    pub log_start_offset: i64,
    /// Why the batch was refused, in words (version 8 and later).
    pub error_message: Option<String>,
    /// The leader to turn to, with NOT_LEADER_OR_FOLLOWER (version 10 and later).
    pub current_leader: Option<CurrentLeader>,
}

impl ProducePartitionResponse {
    /// A refusal.
    pub fn refused(index: i32, error_code: i16, error_message: Option<String>) -> Self {
        Self {
            index,
            error_code,
            base_offset: -1,
            log_append_time_ms: -1,
            log_start_offset: -1,
            error_message,
            current_leader: None,
        }
    }

    /// An acknowledged append.
    pub fn appended(
        index: i32,
        base_offset: i64,
        log_append_time_ms: i64,
        log_start_offset: i64,
    ) -> Self {
        Self {
            index,
            error_code: 0,
            base_offset,
            log_append_time_ms,
            log_start_offset,
            error_message: None,
            current_leader: None,
        }
    }
}

impl ProduceRequest {
    /// Decodes a request's body.
    pub fn decode(body: &Bytes, version: i16) -> Result<Self, Malformed> {
        let mut reader = Reader::new(body, version >= FLEXIBLE);
        let transactional_id = reader.nullable_string()?;
        let acks = reader.i16()?;
        let timeout_ms = reader.i32()?;
        let topics = reader.array(|reader| {
            let topic = reader.topic(version >= TOPIC_IDS)?;
            let partitions = reader.array(|reader| {
                let index = reader.i32()?;
                let records = reader.nullable_bytes()?;
                reader.skip_tags()?;
                Ok(ProducePartition { index, records })
            })?;
            reader.skip_tags()?;
            Ok(ProduceTopic { topic, partitions })
        })?;
        reader.skip_tags()?;
        Ok(Self {
            transactional_id,
            acks,
            timeout_ms,
            topics,
        })
    }

    /// Encodes a request for `version` ≥ 3 as chunks to be written one after
    /// the other; the records are not copied.
    pub fn encode(&self, writer: &mut Writer, version: i16) {
        writer.flexible(version >= FLEXIBLE);
        writer.nullable_string(self.transactional_id.as_deref());
        writer.i16(self.acks);
        writer.i32(self.timeout_ms);
        writer.array(&self.topics, |writer, topic| {
            writer.topic(&topic.topic, version >= TOPIC_IDS);
            writer.array(&topic.partitions, |writer, partition| {
                writer.i32(partition.index);
                writer.nullable_bytes(partition.records.as_ref().map(std::slice::from_ref));
                writer.no_tags();
            });
            writer.no_tags();
        });
        writer.no_tags();
    }
}

impl ProduceResponse {
    /// Encodes the body of a reply.
    pub fn encode(&self, writer: &mut Writer, version: i16) {
        writer.flexible(version >= FLEXIBLE);
        writer.array(&self.topics, |writer, topic| {
            writer.topic(&topic.topic, version >= TOPIC_IDS);
            writer.array(&topic.partitions, |writer, partition| {
                partition.encode(writer, version)
            });
            writer.no_tags();
        });
        if version >= 1 {
            writer.i32(self.throttle_time_ms);
        }
        if version >= LEADER_HINTS {
            writer.node_endpoints_tag(0, &self.node_endpoints);
        } else {
            writer.no_tags();
        }
    }

    /// Decodes the body of a reply.
    pub fn decode(body: &Bytes, version: i16) -> Result<Self, Malformed> {
        let mut reader = Reader::new(body, version >= FLEXIBLE);
        let topics = reader.array(|reader| {
            let topic = reader.topic(version >= TOPIC_IDS)?;
            let partitions =
                reader.array(|reader| ProducePartitionResponse::decode(reader, version))?;
            reader.skip_tags()?;
            Ok(ProduceTopicResponse { topic, partitions })
        })?;
        let throttle_time_ms = if version >= 1 { reader.i32()? } else { 0 };
        let mut node_endpoints = Vec::new();
        reader.tags(|tag, reader| {
            if tag == 0 && version >= LEADER_HINTS {
                node_endpoints = reader.node_endpoints()?;
            }
            Ok(())
        })?;
        Ok(Self {
            topics,
            throttle_time_ms,
            node_endpoints,
        })
    }
}

impl ProducePartitionResponse {
    fn encode(&self, writer: &mut Writer, version: i16) {
        writer.i32(self.index);
        writer.i16(self.error_code);
        writer.i64(self.base_offset);
        if version >= 2 {
            writer.i64(self.log_append_time_ms);
        }
        if version >= 5 {
            writer.i64(self.log_start_offset);
        }
        if version >= 8 {
            writer.array(&[] as &[()], |_, _| {});
            writer.nullable_string(self.error_message.as_deref());
        }
        match &self.current_leader {
            Some(leader) if version >= LEADER_HINTS => {
                writer.tag_count(1);
                writer.current_leader_tag(0, leader);
            }
            _ => writer.no_tags(),
        }
    }

    fn decode(reader: &mut Reader, version: i16) -> Result<Self, Malformed> {
        let index = reader.i32()?;
        let error_code = reader.i16()?;
        let base_offset = reader.i64()?;
        let log_append_time_ms = if version >= 2 { reader.i64()? } else { -1 };
        let log_start_offset = if version >= 5 { reader.i64()? } else { -1 };
        let mut error_message = None;
        if version >= 8 {
            reader.array(|reader| {
                reader.i32()?;
                reader.nullable_string()?;
                reader.skip_tags()
            })?;
            error_message = reader.nullable_string()?.map(|text| text.to_string());
        }
        let mut current_leader = None;
        reader.tags(|tag, reader| {
            if tag == 0 && version >= LEADER_HINTS {
                current_leader = Some(reader.current_leader()?);
            }
            Ok(())
        })?;
        Ok(Self {
            index,
            error_code,
            base_offset,
            log_append_time_ms,
            log_start_offset,
            error_message,
            current_leader,
        })
    }
}
