//! Groups in memory over the database: how a write changes both, and how a read joins them.
//!
//! A write takes effect in memory under its group's lock, before it is queued;
//! so memory is always ahead of the database, and what is not in a group's
//! tail is in the database.

use std::collections::HashMap;
use std::sync::{Arc, RwLock};

use bytes::Bytes;
use rocksdb::DB;

use crate::group_log::{GroupLog, Inner};
use crate::housekeeper::Housekeeper;
use crate::log::{Done, Entry, GroupId, StorageError, Write};
use crate::reader::Reader;
use crate::writer::{Change, Writer};

/// What the engine and its threads share.
pub(crate) struct Shared {
    pub(crate) db: DB,
    pub(crate) groups: RwLock<HashMap<GroupId, Arc<GroupLog>>>,
    pub(crate) writer: Writer,
    pub(crate) housekeeper: Housekeeper,
}

pub(crate) const POISONED: &str = "the map of groups is never left half changed";

impl Shared {
    /// A group, loaded when it is first asked for.
    pub(crate) fn group(&self, id: GroupId) -> Result<Arc<GroupLog>, StorageError> {
        if let Some(group) = self.groups.read().expect(POISONED).get(&id) {
            return Ok(group.clone());
        }
        let (state, end) = Reader::new(&self.db).group(id)?;
        let start = (state.last == state.purged).then_some(end);
        let group = GroupLog::new(id, state, start, end);
        let mut groups = self.groups.write().expect(POISONED);
        Ok(groups.entry(id).or_insert(group).clone())
    }

    /// A written purge or drop: its space can be freed.
    pub(crate) fn gone(&self, change: &Change) {
        match change.write {
            Write::Purge { index, .. } => {
                (self.housekeeper).purged(change.group.id, index, change.end);
            }
            _ => self.forget(change),
        }
    }

    /// A written drop: the group leaves memory unless it was written to again.
    fn forget(&self, change: &Change) {
        let mut groups = self.groups.write().expect(POISONED);
        let mut inner = change.group.lock();
        if inner.submission == change.submission {
            inner.gone = true;
            groups.remove(&change.group.id);
        }
        self.housekeeper.dropped(change.group.id, change.end);
    }

    pub(crate) fn submit(
        &self,
        id: GroupId,
        write: Write,
        done: Option<Done>,
    ) -> Result<(), StorageError> {
        let bytes = weight(&write);
        self.writer.reserve(bytes);
        loop {
            let group = self.group(id)?;
            let mut inner = group.lock();
            if inner.gone {
                continue;
            }
            let change = self.change(&group, &mut inner, write)?;
            let is_append = matches!(change.write, Write::Append(_));
            let ticket = self.writer.push(Some(change), done, bytes);
            if !is_append {
                inner.state_ticket = ticket;
            }
            return Ok(());
        }
    }

    /// Brings the group's memory to where it is after the write.
    fn change(
        &self,
        group: &Arc<GroupLog>,
        inner: &mut Inner,
        write: Write,
    ) -> Result<Change, StorageError> {
        let effects = inner.state.apply(group.id, &write);
        inner.submission += 1;
        let mut end = inner.end;
        let mut repairs = Vec::new();
        match &write {
            Write::Append(entries) => {
                for entry in entries {
                    inner.end += entry.payload.len() as u64;
                    inner.tail.push(entry.clone(), inner.end, inner.submission);
                }
            }
            Write::Truncate { .. } => {
                if let Some((next, _)) = effects.entries_gone {
                    inner.cuts += 1;
                    let first = inner.state.first_index();
                    if next > first {
                        inner.end = match self.position(group.id, inner, next - 1) {
                            Err(StorageError::Corrupt { .. }) => {
                                Reader::new(&self.db).end_about(group.id, next - 1, first)
                            }
                            position => position?.1,
                        };
                    } else {
                        inner.start = Some(inner.end);
                    }
                    inner.tail.cut_from(next);
                }
            }
            Write::Purge { index, .. } if effects.entries_gone.is_some() => {
                let entries = effects.entries_gone.map_or(0, |(from, to)| to - from);
                end = entries * (inner.end / inner.state.next_index().max(1));
                inner.tail.cut_to(*index);
                let empty = inner.state.last == inner.state.purged;
                inner.start = empty.then_some(inner.end);
            }
            Write::Repair(entries) => {
                // What is in memory may not be on disk yet.
                let cached = inner.tail.first_index().unwrap_or(u64::MAX);
                let stored = entries.partition_point(|entry| entry.index < cached);
                let reader = Reader::new(&self.db);
                repairs = reader.repairs(group.id, &inner.state, inner.end, &entries[..stored]);
            }
            Write::Drop => {
                inner.cuts += 1;
                inner.tail.clear();
                end -= inner.start.unwrap_or(0);
                inner.end = 0;
                inner.start = Some(0);
            }
            _ => {}
        }
        Ok(Change {
            group: group.clone(),
            write,
            effects,
            repairs,
            end,
            submission: inner.submission,
        })
    }

    /// Where an entry that is held lies in the log's bytes.
    pub(crate) fn position(
        &self,
        id: GroupId,
        inner: &Inner,
        index: u64,
    ) -> Result<(u64, u64), StorageError> {
        if let Some(position) = inner.tail.position(index) {
            return Ok(position);
        }
        // What is not in the tail is written.
        let found = Reader::new(&self.db).position(id, index)?;
        found.ok_or(StorageError::Format {
            group: id,
            what: "log (an entry is missing)",
        })
    }

    pub(crate) fn read(
        &self,
        id: GroupId,
        from: u64,
        to: u64,
        bytes_max: usize,
    ) -> Result<Vec<Entry>, StorageError> {
        let group = self.group(id)?;
        let mut out = Vec::new();
        let mut bytes = 0;
        let mut cuts = group.lock().cuts;
        let mut next = from;
        loop {
            let disk_end;
            {
                let inner = group.lock();
                if inner.cuts != cuts {
                    // Entries were replaced meanwhile.
                    (cuts, next, bytes) = (inner.cuts, from, 0);
                    out.clear();
                }
                let end = to.min(inner.state.next_index());
                if next >= end || next < inner.state.first_index() {
                    return Ok(out);
                }
                if inner.tail.read(next, end, bytes_max, &mut bytes, &mut out) {
                    return Ok(out);
                }
                disk_end = inner.tail.first_index().map_or(end, |first| first.min(end));
            }
            let reader = Reader::new(&self.db);
            let full = reader.entries(id, next, disk_end, bytes_max, &mut bytes, &mut out)?;
            let reached = out.last().map_or(from, |entry| entry.index + 1);
            let inner = group.lock();
            if inner.cuts != cuts {
                continue;
            }
            if full {
                return Ok(out);
            }
            if reached == next {
                if next < inner.state.first_index() {
                    // A purge came in between.
                    return Ok(out);
                }
                return Err(StorageError::Format {
                    group: id,
                    what: "log (an entry is missing)",
                });
            }
            next = reached;
        }
    }

    /// Waits until the group's records, its entries aside, are in the database.
    pub(crate) fn settle(&self, id: GroupId) -> Result<(), StorageError> {
        let ticket = self.group(id)?.lock().state_ticket;
        self.writer.wait_written(ticket);
        Ok(())
    }
}

/// What a write is counted with while it is queued.
fn weight(write: &Write) -> usize {
    64 + match write {
        Write::Append(entries) | Write::Repair(entries) => entries.iter().map(Entry::weight).sum(),
        Write::Vote(vote) => vote.len(),
        Write::Checkpoint { checkpoint, .. } => checkpoint.bytes.len(),
        Write::Keys(pairs) => pairs
            .iter()
            .map(|(key, value)| 64 + key.len() + value.as_ref().map_or(0, Bytes::len))
            .sum(),
        Write::Truncate { .. } | Write::Purge { .. } | Write::Drop => 0,
    }
}
