//! A node's disk: the store's model of one, with a time that a sync takes, and
//! the ways in which a broken build would use it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use drave_storage::memory::{MemoryDisk, Sync};
use drave_storage::{
    Checkpoint, Done, Entry, GroupId, GroupState, LogStore, StorageError, StoreActivity, Write,
};
use tokio::sync::Notify;
use tokio::time::sleep;
use tracing::debug;

/// What a build does wrong, to show that the oracle sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Breakage {
    /// Nothing.
    None,
    /// Writes are acknowledged when they are submitted, not when they are durable.
    AcknowledgesBeforeSync,
    /// Votes are never written down.
    ForgetsVotes,
}

impl Breakage {
    /// Every breakage and the name that `SIM_BREAK` knows it by.
    const NAMES: [(&str, Breakage); 3] = [
        ("none", Breakage::None),
        ("acknowledges-before-sync", Breakage::AcknowledgesBeforeSync),
        ("forgets-votes", Breakage::ForgetsVotes),
    ];

    pub(crate) fn name(self) -> &'static str {
        let named = Self::NAMES.iter().find(|(_, breakage)| *breakage == self);
        named.map_or("none", |(name, _)| name)
    }

    pub(crate) fn named(name: &str) -> Option<Breakage> {
        let named = Self::NAMES.iter().find(|(known, _)| *known == name);
        named.map(|(_, breakage)| *breakage)
    }
}

/// One node's disk; another one after each crash.
pub(crate) struct Disk {
    node: usize,
    memory: MemoryDisk,
    breakage: Breakage,
    written: Notify,
}

impl Disk {
    pub(crate) fn new(node: usize, breakage: Breakage) -> Disk {
        Disk {
            node,
            memory: MemoryDisk::new(Sync::Manual),
            breakage,
            written: Notify::new(),
        }
    }

    /// Syncs what was written, for as long as the node runs; `takes` says how long each sync takes.
    pub(crate) async fn run(self: Arc<Disk>, takes: impl Fn() -> Duration) {
        loop {
            self.written.notified().await;
            sleep(takes()).await;
            self.memory.sync();
        }
    }

    pub(crate) fn unsynced_count(&self) -> usize {
        self.memory.unsynced_count()
    }

    /// The disk as the next process finds it; see [`MemoryDisk::power_cut`].
    pub(crate) fn after_crash(&self, kept: usize) -> Disk {
        Disk {
            node: self.node,
            memory: self.memory.power_cut(kept),
            breakage: self.breakage,
            written: Notify::new(),
        }
    }
}

impl LogStore for Disk {
    fn submit(&self, group: GroupId, write: Write, done: Option<Done>) {
        log_write(self.node, group, &write);
        match self.breakage {
            Breakage::ForgetsVotes if matches!(write, Write::Vote(_)) => {
                if let Some(done) = done {
                    done(Ok(()));
                }
                return;
            }
            Breakage::AcknowledgesBeforeSync => {
                self.memory.submit(group, write, None);
                if let Some(done) = done {
                    done(Ok(()));
                }
            }
            Breakage::None | Breakage::ForgetsVotes => self.memory.submit(group, write, done),
        }
        self.written.notify_one();
    }

    fn open_group(&self, group: GroupId) -> Result<GroupState, StorageError> {
        let state = self.memory.open_group(group);
        debug!(target: "simulation", node = self.node, %group, ?state, "opened");
        state
    }

    fn groups(&self) -> Result<Vec<GroupId>, StorageError> {
        self.memory.groups()
    }

    fn read_tail(
        &self,
        group: GroupId,
        from: u64,
        to: u64,
        bytes_max: usize,
    ) -> Option<Vec<Entry>> {
        self.memory.read_tail(group, from, to, bytes_max)
    }

    fn read(
        &self,
        group: GroupId,
        from: u64,
        to: u64,
        bytes_max: usize,
    ) -> Result<Vec<Entry>, StorageError> {
        self.memory.read(group, from, to, bytes_max)
    }

    fn checkpoint(&self, group: GroupId, index: u64) -> Result<Option<Checkpoint>, StorageError> {
        self.memory.checkpoint(group, index)
    }

    fn get(&self, group: GroupId, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        self.memory.get(group, key)
    }

    fn get_at_or_before(
        &self,
        group: GroupId,
        prefix: &[u8],
        key: &[u8],
    ) -> Result<Option<(Bytes, Bytes)>, StorageError> {
        self.memory.get_at_or_before(group, prefix, key)
    }

    fn scan(
        &self,
        group: GroupId,
        from: &[u8],
        to: &[u8],
        count_max: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, StorageError> {
        self.memory.scan(group, from, to, count_max)
    }

    fn size_on_disk(&self, group: GroupId) -> u64 {
        self.memory.size_on_disk(group)
    }

    fn bytes_from(&self, group: GroupId, index: u64) -> Result<u64, StorageError> {
        self.memory.bytes_from(group, index)
    }

    fn last_sync_age_ms(&self) -> u64 {
        self.memory.last_sync_age_ms()
    }

    fn activity(&self) -> StoreActivity {
        self.memory.activity()
    }

    fn file_of(&self, group: GroupId, index: u64) -> Option<PathBuf> {
        self.memory.file_of(group, index)
    }

    fn never_blocks(&self) -> bool {
        self.memory.never_blocks()
    }

    fn flush(&self) -> Result<(), StorageError> {
        self.memory.flush()
    }
}

fn log_write(node: usize, group: GroupId, write: &Write) {
    match write {
        Write::Append(entries) => {
            let (first, last) = (entries.first(), entries.last());
            let (first, last) = (first.map(|e| e.index), last.map(|e| (e.index, e.term)));
            debug!(target: "simulation", node, %group, first, ?last, "append");
        }
        Write::Checkpoint { checkpoint, keep } => {
            debug!(target: "simulation", node, %group, at = checkpoint.index, ?keep, "checkpoint");
        }
        write => debug!(target: "simulation", node, %group, ?write, "write"),
    }
}
