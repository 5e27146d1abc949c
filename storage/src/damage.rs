//! Damaged entries: what is still known of them, and what mends them.
//!
//! The head of an entry is in its key, in a table; its payload is in a blob
//! file. RocksDB's iterator ends at a payload that it can't read and then gives
//! no key either; what the key was follows from the neighbours and from the
//! same entry of another replica.

use bytes::Bytes;

use crate::keys::{self, EntryKey};
use crate::log::{Entry, GroupId, GroupState, StorageError, wrong_checksum};
use crate::reader::Reader;

/// What is on disk at an index.
#[derive(Debug)]
pub(crate) enum Found {
    /// No entry.
    Nothing,
    /// A sound entry with so many bytes of payload.
    Sound { head: EntryKey, bytes: u64 },
    /// An entry whose payload is not what was written.
    Wrong { head: EntryKey, reason: String },
    /// An entry whose payload can't be read, and with it neither can its head.
    Unreadable { reason: String },
}

/// Whether an error is about a table, which holds the keys of many entries; a
/// blob file holds payloads only.
pub(crate) fn is_of_a_table(reason: &str) -> bool {
    reason.contains(".sst")
}

/// An entry that is to be written again.
pub(crate) struct Repair {
    pub(crate) key: EntryKey,
    pub(crate) payload: Bytes,
    /// The key on disk may be another one: whatever is at this index goes first.
    pub(crate) replaces: bool,
}

impl Reader<'_> {
    /// What to say of an entry that can't be served.
    pub(crate) fn damaged(&self, group: GroupId, index: u64, reason: String) -> StorageError {
        let file = self.db.path().display().to_string();
        if is_of_a_table(&reason) {
            return StorageError::Damaged { path: file, reason };
        }
        StorageError::Corrupt {
            group,
            index,
            file,
            reason,
        }
    }

    /// Looks at one entry.
    pub(crate) fn look(&self, group: GroupId, index: u64) -> Found {
        let lower = keys::entry_bound(group, index);
        let upper = keys::entry_bound(group, index + 1);
        let mut iterator = self.iterate(self.log, &lower, &upper, 0);
        iterator.seek_to_first();
        let Some((key, value)) = iterator.item() else {
            return match iterator.status() {
                Ok(()) => Found::Nothing,
                Err(error) => Found::Unreadable {
                    reason: error.into_string(),
                },
            };
        };
        let Some(head) = EntryKey::decode(key) else {
            return Found::Unreadable {
                reason: "its key makes no sense".to_owned(),
            };
        };
        match crc32c::crc32c(value) {
            sum if sum == head.checksum => Found::Sound {
                head,
                bytes: value.len() as u64,
            },
            sum => Found::Wrong {
                head,
                reason: wrong_checksum(sum, head.checksum),
            },
        }
    }

    /// Whether an entry has exactly this key, its payload readable or not.
    pub(crate) fn has_key(&self, key: &EntryKey) -> bool {
        !matches!(self.db.get_pinned_cf(self.log, key.encode()), Ok(None))
    }

    /// Where an entry ends in the log's bytes, also if it is damaged: then it
    /// may be a little less, by as much as there are damaged entries before it.
    pub(crate) fn end_about(&self, group: GroupId, index: u64, first: u64) -> u64 {
        if let Found::Sound { head, bytes } = self.look(group, index + 1) {
            return head.end.saturating_sub(bytes);
        }
        let ends = (first..=index)
            .rev()
            .find_map(|index| match self.look(group, index) {
                Found::Sound { head, .. } | Found::Wrong { head, .. } => Some(head.end),
                Found::Nothing | Found::Unreadable { .. } => None,
            });
        ends.unwrap_or(0)
    }

    /// The last entry of a log whose key can't be read because its payload
    /// can't: some entry is found at or after every index up to it.
    pub(crate) fn last_unreadable(
        &self,
        group: GroupId,
        state: &GroupState,
    ) -> Result<(u64, u64), StorageError> {
        let holds = |index: u64| {
            let lower = keys::entry_bound(group, index);
            let mut iterator = self.iterate(self.log, &lower, &keys::entries_end(group), 0);
            iterator.seek_to_first();
            iterator.valid() || iterator.status().is_err()
        };
        let newest = state.term_starts.last().ok_or(StorageError::Format {
            group,
            what: "term start",
        })?;
        let (mut held, mut step) = (newest.index, 1);
        while holds(held.saturating_add(step).min(keys::INDEX_MAX)) {
            held += step;
            step *= 2;
        }
        let mut beyond = held.saturating_add(step);
        while beyond - held > 1 {
            let middle = held + (beyond - held) / 2;
            match holds(middle) {
                true => held = middle,
                false => beyond = middle,
            }
        }
        Ok((held, newest.term))
    }

    /// What to write so that those of `entries` are sound that are held in
    /// their term and are damaged. Where one lies in the log's bytes may not be
    /// found out; then it is put at `log_end`, their end: a log that seems
    /// smaller than it is keeps more, one that seems larger would be deleted.
    pub(crate) fn repairs(
        &self,
        group: GroupId,
        state: &GroupState,
        log_end: u64,
        entries: &[Entry],
    ) -> Vec<Repair> {
        let mut repairs: Vec<Repair> = Vec::new();
        // Where the entry before the next one ends, if that is known.
        let mut before: Option<(u64, u64)> = None;
        for (place, entry) in entries.iter().enumerate() {
            let sound = crc32c::crc32c(&entry.payload) == entry.checksum;
            if !sound
                || state.term_at(entry.index) != Some(entry.term)
                || entry.index < state.first_index()
            {
                continue;
            }
            let key = match self.look(group, entry.index) {
                Found::Nothing => continue,
                Found::Sound { head, .. } => {
                    before = Some((head.index, head.end));
                    continue;
                }
                Found::Wrong { head, .. } => {
                    before = Some((head.index, head.end));
                    if EntryKey::of(group, entry, head.end) == head {
                        repairs.push(Repair {
                            key: head,
                            payload: entry.payload.clone(),
                            replaces: false,
                        });
                    }
                    continue;
                }
                Found::Unreadable { .. } => {
                    let known = before.filter(|(index, _)| index + 1 == entry.index);
                    let start = known
                        .map(|(_, end)| end)
                        .or_else(|| self.start_of(group, state, &entries[place..]))
                        .unwrap_or(log_end);
                    let end = start.saturating_add(entry.payload.len() as u64);
                    EntryKey::of(group, entry, end)
                }
            };
            before = Some((key.index, key.end));
            repairs.push(Repair {
                key,
                payload: entry.payload.clone(),
                replaces: !self.has_key(&key),
            });
        }
        repairs
    }

    /// Where the first of `entries`, which can't be read, starts in the log's
    /// bytes: where the one before it ends, or as far before the next readable
    /// one as the entries up to there are long.
    fn start_of(&self, group: GroupId, state: &GroupState, entries: &[Entry]) -> Option<u64> {
        let first = entries.first()?.index;
        if first == 0 {
            return Some(0);
        }
        if first > state.first_index()
            && let Found::Sound { head, .. } | Found::Wrong { head, .. } =
                self.look(group, first - 1)
        {
            return Some(head.end);
        }
        let mut between = 0;
        for (index, entry) in (first..).zip(entries) {
            if entry.index != index {
                return None;
            }
            between += entry.payload.len() as u64;
            if let Found::Sound { head, bytes } = self.look(group, index + 1) {
                return head.end.checked_sub(bytes)?.checked_sub(between);
            }
        }
        None
    }
}
