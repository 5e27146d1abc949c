//! Produce: validates record batches and queues them on their partitions.
//!
//! Everything that fixes the order of appends happens before the future is
//! returned, so a connection may begin its next request at once. acks=1 and
//! acks=all are answered alike, when a quorum has synced.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::ResponseError;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use super::named::{self, LeaderHints};
use super::records::Produced;
use crate::metadata::configs::{TimestampType, TopicSettings};
use crate::partition::Partitions;
use crate::partition::append::{AppendError, AppendResult, now_ms};
use crate::partition::producers::Refusal;
use crate::partition::registry::{PartitionSlot, TopicHandle};
use crate::protocol::produce::{
    ProducePartition, ProducePartitionResponse, ProduceRequest, ProduceResponse,
    ProduceTopicResponse,
};
use crate::protocol::record_batch::{self, BatchError};
use crate::protocol::wire::TopicRef;
use crate::server::CloseConnection;

const ACKS_NONE: i16 = 0;
const ACKS_ALL: i16 = -1;

/// Why a batch was not queued.
struct Refused {
    code: i16,
    message: Option<String>,
}

impl Refused {
    fn because(error: ResponseError, message: impl Into<String>) -> Refused {
        Refused {
            code: error.code(),
            message: Some(message.into()),
        }
    }
}

impl From<ResponseError> for Refused {
    fn from(error: ResponseError) -> Refused {
        Refused {
            code: error.code(),
            message: None,
        }
    }
}

impl From<BatchError> for Refused {
    fn from(error: BatchError) -> Refused {
        Refused {
            code: error.code(),
            message: Some(error.to_string()),
        }
    }
}

impl From<AppendError> for Refused {
    fn from(error: AppendError) -> Refused {
        let code = match error {
            AppendError::NotLeader => ResponseError::NotLeaderOrFollower,
            AppendError::TimedOut | AppendError::Overloaded => ResponseError::RequestTimedOut,
            AppendError::Refused(Refusal::OutOfOrderSequence) => {
                ResponseError::OutOfOrderSequenceNumber
            }
            AppendError::Refused(Refusal::InvalidProducerEpoch) => {
                ResponseError::InvalidProducerEpoch
            }
            AppendError::Refused(Refusal::Malformed) => ResponseError::CorruptMessage,
        };
        Refused {
            code: code.code(),
            message: Some(error.to_string()),
        }
    }
}

/// A batch on its way.
struct Queued {
    /// The broker's time that it carries.
    log_append_time: Option<i64>,
    outcome: Option<oneshot::Receiver<AppendResult>>,
}

struct Partition {
    index: i32,
    slot: Option<Arc<PartitionSlot>>,
    queued: Result<Queued, Refused>,
}

struct Topic {
    topic: TopicRef,
    partitions: Vec<Partition>,
}

/// Produce, versions 3 to 13.
pub fn produce(
    partitions: &Arc<Partitions>,
    version: i16,
    request: ProduceRequest,
) -> impl Future<Output = Produced> + Send + use<> {
    let partitions = Arc::clone(partitions);
    let acks = request.acks;
    let timeout = Duration::from_millis(request.timeout_ms.max(1) as u64);
    let topics = queue(&partitions, version, request);
    let deadline = Instant::now() + timeout;
    async move {
        if acks == ACKS_NONE {
            return silent(&topics);
        }
        Ok(Some(answer(&partitions, topics, deadline).await))
    }
}

/// Queues every batch that may be appended.
fn queue(partitions: &Partitions, version: i16, request: ProduceRequest) -> Vec<Topic> {
    let fault = fault(&request);
    let (acks, registry) = (request.acks, partitions.registry());
    let one_topic = |topic: crate::protocol::produce::ProduceTopic| {
        let handle = named::topic(&registry, &topic.topic);
        let one_partition = |asked: ProducePartition| {
            let slot = handle.ok().and_then(|handle| handle.partition(asked.index));
            let index = asked.index;
            let queued = match (&fault, handle, slot) {
                (Some((error, message)), _, _) => Err(Refused::because(*error, *message)),
                (None, Err(error), _) => Err(error.into()),
                (None, Ok(_), None) => Err(ResponseError::UnknownTopicOrPartition.into()),
                (None, Ok(handle), Some(slot)) => {
                    queue_one(partitions, handle, slot, version, acks, asked)
                }
            };
            Partition {
                index,
                slot: slot.cloned(),
                queued,
            }
        };
        let answers = topic.partitions.into_iter().map(one_partition).collect();
        Topic {
            topic: topic.topic,
            partitions: answers,
        }
    };
    request.topics.into_iter().map(one_topic).collect()
}

/// What is wrong with the whole request.
fn fault(request: &ProduceRequest) -> Option<(ResponseError, &'static str)> {
    if !(-1..=1).contains(&request.acks) {
        return Some((
            ResponseError::InvalidRequiredAcks,
            "acks is neither 0, 1 nor all",
        ));
    }
    let transactional = request.transactional_id.is_some();
    transactional.then_some((
        ResponseError::InvalidTxnState,
        "transactions are not supported",
    ))
}

fn queue_one(
    partitions: &Partitions,
    topic: &TopicHandle,
    slot: &PartitionSlot,
    version: i16,
    acks: i16,
    asked: ProducePartition,
) -> Result<Queued, Refused> {
    let (replica, _) = named::serving(slot)?;
    let settings = &topic.settings;
    let alive = partitions.alive(&slot.replicas);
    let needed = if acks == ACKS_ALL {
        settings.min_insync_replicas
    } else {
        1
    };
    if alive < needed.max(slot.replicas.len() / 2 + 1) {
        return Err(ResponseError::NotEnoughReplicas.into());
    }
    let (batch, log_append_time) = checked(settings, version, asked.records.unwrap_or_default())?;
    let accepted = partitions.disk.accept(batch.len());
    accepted.map_err(|reason| Refused::because(ResponseError::KafkaStorageError, reason))?;
    if acks == ACKS_NONE {
        replica.append(batch, None)?;
        return Ok(Queued {
            log_append_time,
            outcome: None,
        });
    }
    let (reply, outcome) = oneshot::channel();
    replica.append(batch, Some(reply))?;
    Ok(Queued {
        log_append_time,
        outcome: Some(outcome),
    })
}

/// The batch as it is to be appended, and the broker's time if it carries that.
fn checked(
    settings: &TopicSettings,
    version: i16,
    records: Bytes,
) -> Result<(Bytes, Option<i64>), Refused> {
    let batch = record_batch::validate(&records, version, settings.max_message_bytes)?;
    if batch.header.is_transactional() {
        let message = "transactions are not supported";
        return Err(Refused::because(ResponseError::InvalidTxnState, message));
    }
    let now = now_ms();
    if settings.timestamp_type == TimestampType::LogAppendTime {
        return Ok((record_batch::with_log_append_time(&records, now), Some(now)));
    }
    batch.header.check_timestamps(
        now,
        settings.timestamp_before_max_ms,
        settings.timestamp_after_max_ms,
    )?;
    Ok((records, None))
}

/// acks=0 has no reply that could carry an error: as in Kafka, the connection
/// is closed, so that the client looks for the leader.
fn silent(topics: &[Topic]) -> Produced {
    let mut partitions = topics.iter().flat_map(|topic| &topic.partitions);
    match partitions.find_map(|partition| partition.queued.as_ref().err()) {
        Some(Refused { code, message }) => Err(CloseConnection::because(format_args!(
            "a batch sent with acks=0 was refused with error {code}: {}",
            message
                .as_deref()
                .unwrap_or("the partition is not led here"),
        ))),
        None => Ok(None),
    }
}

async fn answer(partitions: &Partitions, topics: Vec<Topic>, deadline: Instant) -> ProduceResponse {
    let mut hints = LeaderHints::new(partitions);
    let mut response = ProduceResponse::default();
    for topic in topics {
        let mut answers = Vec::with_capacity(topic.partitions.len());
        for Partition {
            index,
            slot,
            queued,
        } in topic.partitions
        {
            let appended = match queued {
                Ok(queued) => outcome(queued, deadline).await,
                Err(refused) => Err(refused),
            };
            answers.push(match appended {
                Ok((base_offset, time, log_start_offset)) => {
                    ProducePartitionResponse::appended(index, base_offset, time, log_start_offset)
                }
                Err(Refused { code, message }) => {
                    let mut refused = ProducePartitionResponse::refused(index, code, message);
                    refused.current_leader = slot.and_then(|slot| hints.of(&slot, code));
                    refused
                }
            });
        }
        response.topics.push(ProduceTopicResponse {
            topic: topic.topic,
            partitions: answers,
        });
    }
    response.node_endpoints = hints.endpoints;
    response
}

/// Base offset, time given by the broker or -1, and log start offset.
async fn outcome(queued: Queued, deadline: Instant) -> Result<(i64, i64, i64), Refused> {
    let Some(outcome) = queued.outcome else {
        return Ok((-1, -1, -1));
    };
    let appended = match timeout_at(deadline, outcome).await {
        Ok(Ok(result)) => result?,
        Ok(Err(_)) => return Err(AppendError::NotLeader.into()),
        Err(_) => return Err(AppendError::TimedOut.into()),
    };
    let time = match (queued.log_append_time, appended.duplicate_of) {
        (Some(_), Some(first_time)) => first_time,
        (Some(now), None) => now,
        (None, _) => -1,
    };
    Ok((appended.base_offset, time, appended.log_start_offset))
}
