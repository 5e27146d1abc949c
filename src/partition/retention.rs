//! Deleting old records: by time, by size, or because a client asks for it.
//!
//! A leader decides how far its partition's log start offset moves and says so
//! in the log, so that all replicas agree. Every replica then purges its own
//! log up to the newest checkpoint before that offset, which is what frees
//! space. Of the newest 256 MiB there is a checkpoint every 16 MiB, of what is
//! older every 128 MiB: up to that much more than can be read stays on disk.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use drave_raft::ProposeError;
use drave_storage::Write;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tracing::{debug, warn};

use super::append::now_ms;
use super::index::{self, Position};
use super::read::{self, LogSource, ReadError, ReplicaLog};
use super::view::PartitionView;
use super::{Partition, Partitions, command, offsets};
use crate::metadata::configs::TopicSettings;

/// How often replicas purge what has been deleted.
const ROUND: Duration = Duration::from_millis(250);
/// In one round of so many, partitions that were written to are looked at by size.
const ROUNDS_BY_SIZE: u64 = 4;
/// In one round of so many all are, and records may have become too old; such a round looks by size too.
const ROUNDS_BY_TIME: u64 = 40;
/// A leader that finds something to delete waits so long for a quorum.
const TRIM_TIMEOUT: Duration = Duration::from_secs(10);
/// Deleting by size waits until this part of what is kept, or this much, is too much.
const EXCESS_SHARE: u64 = 32;
const EXCESS_MAX: u64 = 16 << 20;
/// Index points that are erased at once.
const POINTS_ERASED_MAX: usize = 4096;

/// How far retention has come with a replica.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// A deletion waits for a quorum; until it ends there is no other.
    trimming: AtomicBool,
    /// High watermark at the last look by size.
    sized_at: AtomicI64,
    /// Log start offset that the log was purged for.
    purged_for: AtomicI64,
    /// Index points before this offset are erased.
    erased_to: AtomicI64,
}

/// What a round looks for besides what has been deleted.
#[derive(Clone, Copy, Debug)]
struct Round {
    by_size: bool,
    by_time: bool,
}

impl Round {
    fn new(number: u64) -> Round {
        Round {
            by_size: number.is_multiple_of(ROUNDS_BY_SIZE),
            by_time: number.is_multiple_of(ROUNDS_BY_TIME),
        }
    }
}

/// Looks at every replica on this broker, for as long as it runs.
pub(super) async fn run(partitions: Arc<Partitions>) {
    // At most one for each replica. They end with this task.
    let mut trims = JoinSet::new();
    for round in 1.. {
        sleep(ROUND).await;
        while trims.try_join_next().is_some() {}
        let round = Round::new(round);
        for topic in partitions.registry().topics() {
            for slot in &topic.partitions {
                let Some(replica) = slot.replica() else {
                    continue;
                };
                match look(&partitions, &replica, &topic.settings, round).await {
                    Ok(Some(offset)) => {
                        trims.spawn(trim(replica, offset));
                    }
                    Ok(None) => {}
                    Err(error) => {
                        let (topic, partition) = (&replica.topic, replica.index);
                        warn!(topic, partition, %error, "old records can't be deleted now");
                    }
                }
            }
        }
    }
}

/// Purges what is deleted; the offset to [`trim`] to, if more is due.
async fn look(
    partitions: &Partitions,
    replica: &Arc<Partition>,
    settings: &TopicSettings,
    round: Round,
) -> Result<Option<i64>, ReadError> {
    let progress = &replica.retention;
    let (start, end) = (
        replica.view.log_start_offset(),
        replica.view.high_watermark(),
    );
    let moved = progress.purged_for.swap(start, Ordering::Relaxed) != start;
    if start > 0 && (moved || round.by_time) {
        purge(partitions, replica, start).await?;
    }
    let trimming = progress.trimming.load(Ordering::Relaxed);
    if start == end || trimming || !round.by_size || replica.serving_epoch().is_none() {
        return Ok(None);
    }
    let grown = progress.sized_at.swap(end, Ordering::Relaxed) != end;
    // The settings may have changed where nothing was written.
    let bytes = settings.retention_bytes.filter(|_| grown || round.by_time);
    let ms = settings.retention_ms.filter(|_| round.by_time);
    if bytes.is_none() && ms.is_none() {
        return Ok(None);
    }
    let looked = Arc::clone(replica);
    let due = partitions
        .blocking(move || due(&looked.view, &looked.log, bytes, ms))
        .await?;
    progress.trimming.store(due.is_some(), Ordering::Relaxed);
    Ok(due)
}

/// Deletes what is due. It may wait for a quorum, and nobody else waits for it.
async fn trim(replica: Arc<Partition>, offset: i64) {
    match replica.delete_before(offset, TRIM_TIMEOUT).await {
        Ok(start) => debug!(group = %replica.group(), start, "deleted old records"),
        Err(error) => debug!(group = %replica.group(), %error, "not deleted now"),
    }
    replica.retention.trimming.store(false, Ordering::Relaxed);
}

/// The offset that the log is to start at, if records before it are too many or too old. Blocks.
fn due(
    view: &PartitionView,
    log: &ReplicaLog,
    bytes: Option<i64>,
    ms: Option<i64>,
) -> Result<Option<i64>, ReadError> {
    let start = view.log_start_offset();
    let mut wanted = start;
    if let Some(ms) = ms {
        wanted = wanted.max(expired(view, log, now_ms().saturating_sub(ms))?);
    }
    if let Some(bytes) = bytes {
        wanted = wanted.max(surplus(view, log, bytes as u64)?);
    }
    Ok(Some(wanted).filter(|wanted| *wanted > start))
}

/// All records before this offset are older than `cutoff`.
fn expired(view: &PartitionView, log: &ReplicaLog, cutoff: i64) -> Result<i64, ReadError> {
    let (latest, end) = {
        let shared = view.read();
        (shared.latest.timestamp, shared.next_offset)
    };
    match latest {
        // Records without a time don't age.
        ..0 => Ok(0),
        _ if latest < cutoff => Ok(end),
        _ => Ok(offsets::position_by_time(view, log, cutoff)?.base_offset),
    }
}

/// From this offset on there are at least `bytes`, and not much more.
fn surplus(view: &PartitionView, log: &ReplicaLog, bytes: u64) -> Result<i64, ReadError> {
    let (start, end) = (view.log_start_offset(), view.high_watermark());
    let size = |position: Position| log.group.bytes_from_blocking(position.index);
    let first = read::position(view, log, start)?;
    if size(first)? <= bytes + (bytes / EXCESS_SHARE).min(EXCESS_MAX) {
        return Ok(start);
    }
    let (mut enough, mut too_few) = (first.base_offset, end);
    while too_few - enough > 1 {
        let middle = enough + (too_few - enough) / 2;
        let position = read::position(view, log, middle)?;
        match size(position)? >= bytes {
            true => enough = middle,
            false => too_few = position.base_offset,
        }
    }
    Ok(read::position(view, log, enough)?.base_offset)
}

/// Purges this replica's log, and its index of what is gone.
async fn purge(
    partitions: &Partitions,
    replica: &Arc<Partition>,
    start: i64,
) -> Result<(), ReadError> {
    let looked = Arc::clone(replica);
    let first = partitions
        .blocking(move || read::position(&looked.view, &looked.log, start))
        .await?;
    if replica.log.group.purge_before(first.index).await {
        let erased = Arc::clone(replica);
        partitions
            .blocking(move || erase_points(&erased, first))
            .await?;
    }
    Ok(())
}

/// Erases what the index says of entries before `first`. Blocks.
fn erase_points(replica: &Partition, first: Position) -> Result<(), ReadError> {
    let (log, done) = (&replica.log, &replica.retention.erased_to);
    let mut from = index::offset_key(done.load(Ordering::Relaxed));
    let end = index::offset_key(first.base_offset);
    loop {
        let points = log.scan(&from, &end, POINTS_ERASED_MAX)?;
        let mut gone = Vec::with_capacity(points.len() * 2);
        for (key, value) in &points {
            let by_time = index::timestamp_key_of(key, value)?;
            gone.extend([(key.clone(), None), (by_time, None)]);
        }
        erase(log, gone);
        match points.last() {
            Some((last, _)) if points.len() == POINTS_ERASED_MAX => from = last.clone(),
            _ => break,
        }
    }
    done.store(first.base_offset, Ordering::Relaxed);
    let (from, end) = (index::dead_key(0), index::dead_key(first.index));
    let dead = log.scan(&from, &end, POINTS_ERASED_MAX)?;
    erase(log, dead.into_iter().map(|(key, _)| (key, None)).collect());
    Ok(())
}

fn erase(log: &ReplicaLog, gone: Vec<(Bytes, Option<Bytes>)>) {
    if !gone.is_empty() {
        log.store.submit(log.group.id(), Write::Keys(gone), None);
    }
}

impl Partition {
    /// Moves the log start offset up to `offset`, on all replicas; nothing
    /// before it can be read any more. Returns where the log starts then.
    pub async fn delete_before(&self, offset: i64, timeout: Duration) -> Result<i64, ProposeError> {
        let trim = command::trim_prefix(now_ms(), offset);
        let proposed = self.log.group.propose(trim, timeout).await?;
        let start = proposed.reply.downcast::<i64>();
        Ok(start.map_or_else(|_| self.view.log_start_offset(), |start| *start))
    }
}
