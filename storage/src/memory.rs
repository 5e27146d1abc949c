//! The disk of the simulation: it loses unsynced writes when the power goes.
//!
//! Writes show at once in a volatile view. A sync makes them part of the
//! durable view and then completes them; a power cut returns a disk that holds
//! the durable view only, and perhaps a prefix of what was not synced, as real
//! disks do. Completions that were pending at a power cut are forgotten: the
//! process that waited for them is gone. Completions run inside `sync`, or at
//! [`Sync::Always`] inside `submit`, with no lock held.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard};
use std::time::Instant;

use bytes::Bytes;

use crate::log::{
    Checkpoint, Done, Entry, GroupId, GroupState, LogStore, StorageError, StoreActivity, Write,
    wrong_checksum,
};

/// When a [`MemoryDisk`] syncs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sync {
    /// After every write.
    Always,
    /// When [`MemoryDisk::sync`] or [`LogStore::flush`] is called.
    Manual,
}

/// A [`LogStore`] in memory.
pub struct MemoryDisk {
    sync: Sync,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    volatile: View,
    durable: View,
    /// What `volatile` has and `durable` has not, in order.
    unsynced: Vec<(GroupId, Write)>,
    dones: Vec<Done>,
    synced_at: Option<Instant>,
    dead: bool,
}

#[derive(Clone, Default)]
struct View {
    groups: BTreeMap<GroupId, Group>,
}

#[derive(Clone, Default)]
struct Group {
    state: GroupState,
    entries: BTreeMap<u64, Entry>,
    checkpoints: BTreeMap<u64, Checkpoint>,
    keys: BTreeMap<Bytes, Bytes>,
}

impl View {
    fn apply(&mut self, id: GroupId, write: Write) {
        let group = self.groups.entry(id).or_default();
        let effects = group.state.apply(id, &write);
        if let Some((from, to)) = effects.entries_gone {
            group
                .entries
                .retain(|index, _| *index < from || *index >= to);
        }
        for index in effects.checkpoints_gone {
            group.checkpoints.remove(&index);
        }
        match write {
            Write::Append(entries) => {
                group
                    .entries
                    .extend(entries.into_iter().map(|entry| (entry.index, entry)));
            }
            Write::Checkpoint { checkpoint, .. } => {
                group.checkpoints.insert(checkpoint.index, checkpoint);
            }
            Write::Repair(entries) => {
                for entry in entries {
                    let held = group.entries.get_mut(&entry.index);
                    if let Some(held) = held.filter(|held| held.term == entry.term) {
                        *held = entry;
                    }
                }
            }
            Write::Keys(pairs) => {
                for (key, value) in pairs {
                    match value {
                        Some(value) => group.keys.insert(key, value),
                        None => group.keys.remove(&key),
                    };
                }
            }
            Write::Drop => {
                self.groups.remove(&id);
            }
            Write::Truncate { .. } | Write::Vote(_) | Write::Purge { .. } => {}
        }
    }
}

impl MemoryDisk {
    /// An empty disk.
    pub fn new(sync: Sync) -> MemoryDisk {
        MemoryDisk {
            sync,
            inner: Mutex::default(),
        }
    }

    /// Makes everything submitted so far durable, and completes it.
    pub fn sync(&self) {
        let dones = {
            let mut inner = self.lock();
            if inner.dead {
                return;
            }
            for (group, write) in std::mem::take(&mut inner.unsynced) {
                inner.durable.apply(group, write);
            }
            inner.synced_at = Some(Instant::now());
            std::mem::take(&mut inner.dones)
        };
        for done in dones {
            done(Ok(()));
        }
    }

    /// Writes that a power cut would lose.
    pub fn unsynced_count(&self) -> usize {
        self.lock().unsynced.len()
    }

    /// Cuts the power: returns the disk as it is found afterwards, with the
    /// first `kept` of the unsynced writes. Writes to the old disk go nowhere.
    pub fn power_cut(&self, kept: usize) -> MemoryDisk {
        let mut inner = self.lock();
        inner.dead = true;
        inner.dones.clear();
        let mut durable = std::mem::take(&mut inner.durable);
        for (group, write) in std::mem::take(&mut inner.unsynced).into_iter().take(kept) {
            durable.apply(group, write);
        }
        MemoryDisk {
            sync: self.sync,
            inner: Mutex::new(Inner {
                volatile: durable.clone(),
                durable,
                ..Inner::default()
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner
            .lock()
            .expect("an invariant of the disk was broken")
    }

    fn with<T: Default>(&self, group: GroupId, read: impl FnOnce(&Group) -> T) -> T {
        self.lock()
            .volatile
            .groups
            .get(&group)
            .map(read)
            .unwrap_or_default()
    }
}

impl LogStore for MemoryDisk {
    fn open_group(&self, group: GroupId) -> Result<GroupState, StorageError> {
        Ok(self.with(group, |group| group.state.clone()))
    }

    fn groups(&self) -> Result<Vec<GroupId>, StorageError> {
        Ok(self.lock().volatile.groups.keys().copied().collect())
    }

    fn submit(&self, group: GroupId, write: Write, done: Option<Done>) {
        {
            let mut inner = self.lock();
            if inner.dead {
                return;
            }
            inner.volatile.apply(group, write.clone());
            inner.unsynced.push((group, write));
            inner.dones.extend(done);
        }
        if self.sync == Sync::Always {
            self.sync();
        }
    }

    fn read_tail(
        &self,
        group: GroupId,
        from: u64,
        to: u64,
        bytes_max: usize,
    ) -> Option<Vec<Entry>> {
        let inner = self.lock();
        let group = inner.volatile.groups.get(&group)?;
        if from < to && from < group.state.first_index() {
            return None;
        }
        Some(read(group, from, to, bytes_max))
    }

    fn read(
        &self,
        group: GroupId,
        from: u64,
        to: u64,
        bytes_max: usize,
    ) -> Result<Vec<Entry>, StorageError> {
        let mut entries = self.with(group, |group| read(group, from, to, bytes_max));
        let sound = |entry: &Entry| crc32c::crc32c(&entry.payload) == entry.checksum;
        let first_damaged = entries.iter().position(|entry| !sound(entry));
        if let Some(place) = first_damaged {
            if place == 0 {
                let (entry, found) = (&entries[0], crc32c::crc32c(&entries[0].payload));
                return Err(StorageError::Corrupt {
                    group,
                    index: entry.index,
                    file: "memory".to_owned(),
                    reason: wrong_checksum(found, entry.checksum),
                });
            }
            entries.truncate(place);
        }
        Ok(entries)
    }

    fn checkpoint(&self, group: GroupId, index: u64) -> Result<Option<Checkpoint>, StorageError> {
        Ok(self.with(group, |group| group.checkpoints.get(&index).cloned()))
    }

    fn get(&self, group: GroupId, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        Ok(self.with(group, |group| group.keys.get(key).cloned()))
    }

    fn get_at_or_before(
        &self,
        group: GroupId,
        prefix: &[u8],
        key: &[u8],
    ) -> Result<Option<(Bytes, Bytes)>, StorageError> {
        Ok(self.with(group, |group| {
            let key = Bytes::copy_from_slice(key);
            let (found, value) = group.keys.range(..=key).next_back()?;
            found
                .starts_with(prefix)
                .then(|| (found.clone(), value.clone()))
        }))
    }

    fn scan(
        &self,
        group: GroupId,
        from: &[u8],
        to: &[u8],
        count_max: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, StorageError> {
        if from >= to {
            return Ok(Vec::new());
        }
        Ok(self.with(group, |group| {
            group
                .keys
                .range(Bytes::copy_from_slice(from)..Bytes::copy_from_slice(to))
                .take(count_max)
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect()
        }))
    }

    fn file_of(&self, _: GroupId, _: u64) -> Option<PathBuf> {
        None
    }

    fn size_on_disk(&self, group: GroupId) -> u64 {
        self.with(group, |group| {
            let lengths = group
                .entries
                .values()
                .map(|entry| entry.payload.len() as u64);
            lengths.sum()
        })
    }

    fn bytes_from(&self, group: GroupId, index: u64) -> Result<u64, StorageError> {
        Ok(self.with(group, |group| {
            let from = group.entries.range(index..);
            from.map(|(_, entry)| entry.payload.len() as u64).sum()
        }))
    }

    fn last_sync_age_ms(&self) -> u64 {
        self.lock().synced_at.map_or(0, |at| {
            u64::try_from(at.elapsed().as_millis()).unwrap_or(u64::MAX)
        })
    }

    /// Nothing waits to be written here, and no sync takes time.
    fn activity(&self) -> StoreActivity {
        StoreActivity::default()
    }

    fn never_blocks(&self) -> bool {
        true
    }

    fn flush(&self) -> Result<(), StorageError> {
        self.sync();
        Ok(())
    }
}

fn read(group: &Group, from: u64, to: u64, bytes_max: usize) -> Vec<Entry> {
    let mut out: Vec<Entry> = Vec::new();
    if from >= to || from < group.state.first_index() {
        return out;
    }
    let mut bytes = 0;
    for entry in group.entries.range(from..to).map(|(_, entry)| entry) {
        if !out.is_empty() && bytes + entry.weight() > bytes_max {
            break;
        }
        bytes += entry.weight();
        out.push(entry.clone());
    }
    out
}
