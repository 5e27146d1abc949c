//! What a partition's machine shows to everybody else.
//!
//! The machine is the only writer. Readers never wait for long: the lock is
//! held per entry, for some index look-ups.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::epochs::Epochs;
use super::index::{DeadRange, OffsetIndex, Position};
use super::wait::Waiters;
use crate::planted;

/// The batch with the latest timestamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Latest {
    /// The latest timestamp of all records; -1 if there is none.
    pub timestamp: i64,
    /// The base offset of the first batch that has it.
    pub base_offset: i64,
    /// Where the entry with that batch starts.
    pub position: Position,
}

impl Default for Latest {
    fn default() -> Latest {
        Latest {
            timestamp: -1,
            base_offset: -1,
            position: Position {
                index: 0,
                base_offset: 0,
            },
        }
    }
}

/// The part under the lock.
#[derive(Debug, Default)]
pub struct Shared {
    /// Offsets to entries.
    pub index: OffsetIndex,
    /// Leader epochs.
    pub epochs: Epochs,
    /// The latest record.
    pub latest: Latest,
    /// The next offset: all before it are committed.
    pub next_offset: i64,
    /// The first offset that may be read.
    pub log_start_offset: i64,
    /// The index after the last applied entry.
    pub applied_end: u64,
}

/// Where a reader of an offset starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    /// An entry at or before the one that holds the offset; `None`: ask the store.
    pub position: Option<Position>,
    /// Entries from here on may not be read yet.
    pub applied_end: u64,
    /// The high watermark that goes with it.
    pub high_watermark: i64,
}

/// A partition as its readers see it.
#[derive(Debug, Default)]
pub struct PartitionView {
    shared: RwLock<Shared>,
    high_watermark: AtomicI64,
    log_start_offset: AtomicI64,
    /// Who waits for more.
    pub waiters: Waiters,
}

impl PartitionView {
    /// The offset after the last committed record.
    pub fn high_watermark(&self) -> i64 {
        self.high_watermark.load(Ordering::SeqCst)
    }

    /// The first offset that can be read.
    pub fn log_start_offset(&self) -> i64 {
        self.log_start_offset.load(Ordering::SeqCst)
    }

    /// Reads what is under the lock; never held across a wait.
    pub fn read(&self) -> RwLockReadGuard<'_, Shared> {
        self.shared.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// For the machine.
    pub(super) fn write(&self) -> RwLockWriteGuard<'_, Shared> {
        self.shared.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// For the machine: shows the offsets that `shared` now has.
    pub(super) fn publish(&self, shared: &Shared) {
        self.high_watermark
            .store(shared.next_offset, Ordering::SeqCst);
        self.log_start_offset
            .store(shared.log_start_offset, Ordering::SeqCst);
    }

    /// Where to start reading `offset`.
    pub fn start(&self, offset: i64) -> Start {
        let shared = self.read();
        let (mut applied_end, mut high_watermark) = (shared.applied_end, shared.next_offset);
        if planted::READ_UNCOMMITTED.is_planted() {
            (applied_end, high_watermark) = (u64::MAX, i64::MAX);
        }
        Start {
            position: shared.index.position(offset),
            applied_end,
            high_watermark,
        }
    }

    /// The dead batches of the entries `from..to`.
    pub fn dead(&self, from: u64, to: u64) -> DeadRange {
        self.read().index.dead(from, to)
    }
}
