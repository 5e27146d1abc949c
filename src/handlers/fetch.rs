//! Fetch: reads many partitions into one reply, and waits until there is enough.
//!
//! Records are never copied here. What replies hold is bounded for the whole
//! broker: a reply's bytes count from when they are read until they are sent.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use drave_storage::StorageError;
use kafka_protocol::ResponseError;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use tracing::error;

use super::named::{self, LeaderHints};
use crate::limits::{FETCH_BYTES_MAX, FETCH_HELD_BYTES_MAX};
use crate::partition::fetch_sessions::{Asked, Reading};
use crate::partition::read::{ReadError, Records, TailRead, Wanted};
use crate::partition::registry::Registry;
use crate::partition::view::PartitionView;
use crate::partition::wait::Wait;
use crate::partition::{Partition, Partitions};
use crate::protocol::fetch::{
    EpochEndOffset, FetchPartitionResponse, FetchRequest, FetchResponse, FetchTopicResponse,
};

/// The longest wait that a client may ask for.
const WAIT_MAX: Duration = Duration::from_secs(60 * 60);

/// Fetch, versions 4 to 18.
pub async fn fetch(
    partitions: &Arc<Partitions>,
    _version: i16,
    request: FetchRequest,
) -> FetchResponse {
    let reading = match partitions.fetch_sessions.open(&request) {
        Ok(reading) => reading,
        Err(error) => {
            return FetchResponse {
                error_code: error.code(),
                ..FetchResponse::default()
            };
        }
    };
    let wait = Duration::from_millis(request.max_wait_ms.max(0) as u64).min(WAIT_MAX);
    let deadline = Instant::now() + wait;
    let bytes_max = usize::try_from(request.max_bytes)
        .unwrap_or(0)
        .min(FETCH_BYTES_MAX);
    let bytes_min = usize::try_from(request.min_bytes)
        .unwrap_or(0)
        .min(bytes_max);
    let pass = loop {
        let pass = read_all(partitions, &reading, bytes_max).await;
        let enough = pass.bytes >= bytes_min || pass.urgent || pass.watched.is_empty();
        if enough || Instant::now() >= deadline {
            break pass;
        }
        let missing = (bytes_min - pass.bytes) as i64;
        let wait = Wait::register(pass.watched.clone(), missing);
        // Records are not held over the wait, but read again.
        let empty = Some(pass).filter(|pass| pass.bytes == 0);
        let woken = wait.until(deadline).await;
        if let Some(pass) = empty.filter(|pass| !woken && pass.is_current()) {
            break pass;
        }
    };
    reply(partitions, &reading, request.read_committed, pass)
}

/// What was found at one partition.
struct Read {
    replica: Arc<Partition>,
    records: Records,
    diverging: Option<EpochEndOffset>,
}

/// What one look at all partitions came to.
#[derive(Default)]
struct Pass {
    /// In the order of [`Reading::asked`]; `None` where the reply has no room.
    answers: Vec<Option<Result<Read, ResponseError>>>,
    bytes: usize,
    /// Not worth a wait: an error, or a log that parted from the client's.
    urgent: bool,
    /// The last partition that gave records.
    last: usize,
    watched: Vec<(Arc<PartitionView>, i64)>,
}

impl Pass {
    fn is_current(&self) -> bool {
        self.watched
            .iter()
            .all(|(view, seen)| view.high_watermark() == *seen)
    }
}

async fn read_all(partitions: &Arc<Partitions>, reading: &Reading, bytes_max: usize) -> Pass {
    let registry = partitions.registry();
    let mut pass = Pass::default();
    pass.answers.resize_with(reading.asked.len(), || None);
    for step in 0..reading.asked.len() {
        let place = (reading.first + step) % reading.asked.len();
        let asked = &reading.asked[place];
        let answer = read_one(partitions, &registry, asked, bytes_max, &mut pass).await;
        match &answer {
            Ok(read) => {
                pass.urgent |= read.diverging.is_some();
                if read.records.bytes > 0 {
                    pass.bytes += read.records.bytes;
                    pass.last = place;
                }
            }
            Err(_) => pass.urgent = true,
        }
        pass.answers[place] = Some(answer);
    }
    pass
}

async fn read_one(
    partitions: &Arc<Partitions>,
    registry: &Registry,
    asked: &Asked,
    bytes_max: usize,
    pass: &mut Pass,
) -> Result<Read, ResponseError> {
    let partition = &asked.partition;
    let topic = named::topic(registry, &asked.topic)?;
    let slot = topic
        .partition(partition.index)
        .ok_or(ResponseError::UnknownTopicOrPartition)?;
    let (replica, _) = named::serving_in(slot, partition.current_leader_epoch)?;
    let high_watermark = replica.view.high_watermark();
    pass.watched
        .push((Arc::clone(&replica.view), high_watermark));
    let diverging = diverging(
        &replica.view,
        partition.last_fetched_epoch,
        partition.fetch_offset,
    )?;
    if diverging.is_some() {
        return Ok(Read {
            replica,
            records: Records::default(),
            diverging,
        });
    }
    let left = bytes_max.saturating_sub(pass.bytes);
    let wanted = Wanted {
        offset: partition.fetch_offset,
        bytes_max: usize::try_from(partition.max_bytes).unwrap_or(0).min(left),
        at_least_one: pass.bytes == 0,
    };
    let records = match replica.read_tail(wanted) {
        Ok(TailRead::Records(records)) => held(partitions, records, pass.bytes == 0).await,
        Ok(TailRead::Stored) if wanted.bytes_max == 0 && !wanted.at_least_one => Records::default(),
        Ok(TailRead::Stored) => read_stored(partitions, &replica, wanted).await?,
        Err(error) => return Err(code_of(&replica, error)),
    };
    Ok(Read {
        replica,
        records,
        diverging: None,
    })
}

async fn read_stored(
    partitions: &Arc<Partitions>,
    replica: &Arc<Partition>,
    wanted: Wanted,
) -> Result<Records, ResponseError> {
    let first = wanted.at_least_one;
    let Some(permit) = permit(partitions, wanted.bytes_max, first).await else {
        return Ok(Records::default());
    };
    let read = partitions.read_stored(Arc::clone(replica), wanted).await;
    match read {
        Ok(mut records) => {
            hold(&mut records, permit);
            Ok(records)
        }
        Err(error) => Err(code_of(replica, error)),
    }
}

/// The records, counted against what all replies may hold; none if there is no
/// room and the reply has some already.
async fn held(partitions: &Partitions, mut records: Records, first: bool) -> Records {
    if records.bytes == 0 {
        return records;
    }
    match permit(partitions, records.bytes, first).await {
        Some(permit) => {
            hold(&mut records, permit);
            records
        }
        None => Records::default(),
    }
}

/// Leave to hold so many bytes. Only who holds none yet may wait for it: two
/// replies that wait for each other's would wait for ever.
async fn permit(partitions: &Partitions, bytes: usize, wait: bool) -> Option<OwnedSemaphorePermit> {
    let kib = (bytes.min(FETCH_HELD_BYTES_MAX - 1024) / 1024 + 1) as u32;
    let budget = Arc::clone(&partitions.fetch_budget);
    match Arc::clone(&budget).try_acquire_many_owned(kib) {
        Ok(permit) => Some(permit),
        Err(_) if wait => budget.acquire_many_owned(kib).await.ok(),
        Err(_) => None,
    }
}

/// Bytes that give their leave back when they have been sent.
struct Held {
    bytes: Bytes,
    _permit: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Ties the leave to the last chunk, which is sent last.
fn hold(records: &mut Records, permit: OwnedSemaphorePermit) {
    if let Some(last) = records.chunks.last_mut() {
        let bytes = std::mem::take(last);
        *last = Bytes::from_owner(Held {
            bytes,
            _permit: permit,
        });
    }
}

/// Where the client's log left this one, if it did (KIP-595).
fn diverging(
    view: &PartitionView,
    last_fetched_epoch: i32,
    fetch_offset: i64,
) -> Result<Option<EpochEndOffset>, ResponseError> {
    if last_fetched_epoch < 0 {
        return Ok(None);
    }
    let shared = view.read();
    let (epoch, end_offset) = shared.epochs.end_of(last_fetched_epoch, shared.next_offset);
    if epoch < 0 {
        return Err(ResponseError::OffsetOutOfRange);
    }
    let parted = epoch < last_fetched_epoch || end_offset < fetch_offset;
    Ok(parted.then_some(EpochEndOffset { epoch, end_offset }))
}

fn code_of(replica: &Partition, error: ReadError) -> ResponseError {
    match error {
        ReadError::OutOfRange { .. } => ResponseError::OffsetOutOfRange,
        ReadError::Stopping => ResponseError::NotLeaderOrFollower,
        // Spoken of once, where it is healed.
        ReadError::Storage(StorageError::Corrupt { .. }) => ResponseError::KafkaStorageError,
        error => {
            let (topic, partition) = (&replica.topic, replica.index);
            error!(topic, partition, %error, "records can't be read");
            ResponseError::KafkaStorageError
        }
    }
}

/// The reply; within a session, only of the partitions that have news.
fn reply(
    partitions: &Partitions,
    reading: &Reading,
    read_committed: bool,
    pass: Pass,
) -> FetchResponse {
    let registry = partitions.registry();
    let mut hints = LeaderHints::new(partitions);
    let mut response = FetchResponse {
        session_id: reading.session_id,
        ..FetchResponse::default()
    };
    let mut told = Vec::new();
    for (place, answer) in pass.answers.into_iter().enumerate() {
        let Some(answer) = answer else { continue };
        let asked = &reading.asked[place];
        let index = asked.partition.index;
        let answer = match answer {
            Ok(read) => {
                let view = &read.replica.view;
                let now = (view.high_watermark(), view.log_start_offset());
                let news = read.records.bytes > 0 || read.diverging.is_some();
                if !news && asked.told == Some(now) {
                    continue;
                }
                told.push((place, Some(now)));
                FetchPartitionResponse {
                    error_code: 0,
                    high_watermark: now.0,
                    last_stable_offset: now.0,
                    log_start_offset: now.1,
                    diverging_epoch: read.diverging,
                    aborted_transactions: read_committed.then(Vec::new),
                    records: read.records.chunks,
                    ..FetchPartitionResponse::refused(index, 0)
                }
            }
            Err(error) => {
                told.push((place, None));
                let mut refused = FetchPartitionResponse::refused(index, error.code());
                let topic = named::topic(&registry, &asked.topic).ok();
                let slot = topic.and_then(|topic| topic.partition(index));
                refused.current_leader = slot.and_then(|slot| hints.of(slot, error.code()));
                refused
            }
        };
        match response
            .topics
            .last_mut()
            .filter(|last| last.topic == asked.topic)
        {
            Some(last) => last.partitions.push(answer),
            None => response.topics.push(FetchTopicResponse {
                topic: asked.topic.clone(),
                partitions: vec![answer],
            }),
        }
    }
    response.node_endpoints = hints.endpoints;
    let next = if pass.bytes > 0 {
        pass.last + 1
    } else {
        reading.first
    };
    partitions
        .fetch_sessions
        .told(reading, &told, next % reading.asked.len().max(1));
    response
}
