//! Finding offsets by time. Everything here may block, and runs as
//! [`Partitions::blocking`] does.

use std::ops::ControlFlow;
use std::sync::Arc;

use super::index::{self, Position};
use super::read::{self, LiveBatch, LogSource, ReadError};
use super::record_times;
use super::view::PartitionView;
use super::{Partition, Partitions};

/// A record found by its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its offset.
    pub offset: i64,
    /// Its timestamp.
    pub timestamp: i64,
    /// The epoch of the leader that appended it.
    pub leader_epoch: i32,
}

impl Partitions {
    /// The first record that is not earlier than `timestamp`.
    pub async fn first_at(
        &self,
        partition: Arc<Partition>,
        timestamp: i64,
    ) -> Result<Option<Found>, ReadError> {
        self.blocking(move || first_at(&partition.view, &partition.log, timestamp))
            .await
    }

    /// The first record with the latest timestamp.
    pub async fn latest(&self, partition: Arc<Partition>) -> Result<Option<Found>, ReadError> {
        self.blocking(move || latest(&partition.view, &partition.log))
            .await
    }
}

/// See [`Partitions::first_at`].
pub fn first_at(
    view: &PartitionView,
    log: &impl LogSource,
    timestamp: i64,
) -> Result<Option<Found>, ReadError> {
    if view.read().latest.timestamp < timestamp {
        return Ok(None);
    }
    let position = position_by_time(view, log, timestamp)?;
    let log_start_offset = view.log_start_offset();
    let mut found = None;
    read::scan_from(view, log, position, |live| {
        let end = live.base_offset + live.batch.offset_count();
        if live.batch.timestamp_max() < timestamp || end <= log_start_offset {
            return ControlFlow::Continue(());
        }
        found = record_in(&live, timestamp, log_start_offset);
        if found.is_some() {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    })?;
    Ok(found)
}

/// See [`Partitions::latest`].
pub fn latest(view: &PartitionView, log: &impl LogSource) -> Result<Option<Found>, ReadError> {
    let latest = view.read().latest;
    if latest.timestamp < 0 || latest.base_offset < view.log_start_offset() {
        return Ok(None);
    }
    let mut found = None;
    read::scan_from(view, log, latest.position, |live| {
        if live.base_offset < latest.base_offset {
            return ControlFlow::Continue(());
        }
        found = record_in(&live, latest.timestamp, live.base_offset);
        ControlFlow::Break(())
    })?;
    Ok(found)
}

/// A position in the log before which no record is as late as `timestamp`. Blocks.
pub fn position_by_time(
    view: &PartitionView,
    log: &impl LogSource,
    timestamp: i64,
) -> Result<Position, ReadError> {
    let known = view.read().index.position_by_time(timestamp);
    let position = match known {
        Some(position) => position,
        None => stored_position(log, timestamp)?,
    };
    let log_start_offset = view.log_start_offset();
    if position.base_offset < log_start_offset {
        return read::position(view, log, log_start_offset);
    }
    Ok(position)
}

fn record_in(live: &LiveBatch<'_>, timestamp: i64, offset_min: i64) -> Option<Found> {
    let (delta, timestamp) =
        record_times::first_at(live.batch.bytes, timestamp, offset_min - live.base_offset)?;
    let leader_epoch = i32::try_from(live.entry.term).unwrap_or(i32::MAX);
    Some(Found {
        offset: live.base_offset + delta,
        timestamp,
        leader_epoch,
    })
}

/// The last position that the store knows before which no record is as late as `timestamp`.
fn stored_position(log: &impl LogSource, timestamp: i64) -> Result<Position, ReadError> {
    let key = index::timestamp_key(timestamp.saturating_sub(1), i64::MAX);
    match log.key_at_or_before(index::BY_TIMESTAMP, &key)? {
        Some((key, value)) => Ok(index::position_by_timestamp(&key, &value)?),
        None => Ok(Position {
            index: 0,
            base_offset: 0,
        }),
    }
}
