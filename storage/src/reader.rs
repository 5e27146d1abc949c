//! Reading what the database holds: entries by iterator, and the loading of a group.

use std::path::Path;

use bytes::Bytes;
use rocksdb::{ColumnFamily, DB, DBRawIterator, ErrorKind, ReadOptions};

use crate::damage::{Found, is_of_a_table};
use crate::keys::{self, EntryKey, Kind};
use crate::log::{Entry, GroupId, GroupState, StorageError, wrong_checksum};

/// Cold reads are sequential: fetch ahead by this much.
const READ_AHEAD_BYTES: usize = 1 << 20;

/// A view of the database for reads. Cheap to make.
pub(crate) struct Reader<'a> {
    pub(crate) db: &'a DB,
    pub(crate) log: &'a ColumnFamily,
    state: &'a ColumnFamily,
}

/// A database error as this crate's.
pub(crate) fn io_error(path: &Path, doing: &'static str, error: rocksdb::Error) -> StorageError {
    match error.kind() {
        ErrorKind::Corruption => StorageError::Damaged {
            path: path.display().to_string(),
            reason: format!("{doing}: {error}"),
        },
        _ => StorageError::Io {
            doing,
            source: std::io::Error::other(error.into_string()),
        },
    }
}

impl<'a> Reader<'a> {
    pub(crate) fn new(db: &'a DB) -> Reader<'a> {
        Reader {
            db,
            log: db.cf_handle(keys::LOG).expect("opened with it"),
            state: db.cf_handle(keys::STATE).expect("opened with it"),
        }
    }

    pub(crate) fn iterate(
        &self,
        cf: &ColumnFamily,
        from: &[u8],
        to: &[u8],
        read_ahead: usize,
    ) -> DBRawIterator<'a> {
        let mut options = ReadOptions::default();
        options.set_iterate_lower_bound(from);
        options.set_iterate_upper_bound(to);
        options.fill_cache(read_ahead == 0);
        if read_ahead > 0 {
            options.set_readahead_size(read_ahead);
        }
        self.db.raw_iterator_cf_opt(cf, options)
    }

    fn failed(&self, doing: &'static str, error: rocksdb::Error) -> StorageError {
        io_error(self.db.path(), doing, error)
    }

    /// Adds entries of `from..to` to `out` until it weighs `bytes_max`, but at
    /// least one if `out` is empty. Stops before the first index that is missing,
    /// and before a damaged entry, which is an error only if `out` is empty.
    /// Says whether it is to be left at that.
    pub(crate) fn entries(
        &self,
        group: GroupId,
        from: u64,
        to: u64,
        bytes_max: usize,
        bytes: &mut usize,
        out: &mut Vec<Entry>,
    ) -> Result<bool, StorageError> {
        let (lower, upper) = (keys::entry_bound(group, from), keys::entry_bound(group, to));
        let mut iterator = self.iterate(self.log, &lower, &upper, READ_AHEAD_BYTES);
        iterator.seek_to_first();
        let mut next = from;
        while let Some((key, value)) = iterator.item() {
            let head = entry_key(group, key)?;
            if head.index != next {
                return Ok(false);
            }
            let weight = 64 + value.len();
            if !out.is_empty() && *bytes + weight > bytes_max {
                return Ok(true);
            }
            let found = crc32c::crc32c(value);
            if found != head.checksum {
                if !out.is_empty() {
                    return Ok(true);
                }
                let reason = wrong_checksum(found, head.checksum);
                return Err(self.damaged(group, head.index, reason));
            }
            *bytes += weight;
            out.push(Entry {
                index: head.index,
                term: head.term,
                tag: head.tag,
                stamp: head.stamp,
                checksum: head.checksum,
                payload: Bytes::copy_from_slice(value),
            });
            next += 1;
            iterator.next();
        }
        // An iterator ends at a payload that it can't read.
        match iterator.status() {
            Ok(()) => Ok(false),
            Err(_) if !out.is_empty() => Ok(true),
            Err(error) => Err(self.damaged(group, next, error.into_string())),
        }
    }

    /// Where the payload of an entry starts and ends in the log's bytes.
    pub(crate) fn position(
        &self,
        group: GroupId,
        index: u64,
    ) -> Result<Option<(u64, u64)>, StorageError> {
        match self.look(group, index) {
            Found::Nothing => Ok(None),
            Found::Sound { head, bytes } => Ok(Some((head.end.saturating_sub(bytes), head.end))),
            Found::Wrong { reason, .. } | Found::Unreadable { reason } => {
                Err(self.damaged(group, index, reason))
            }
        }
    }

    /// Loads a group: its state, and the log's bytes up to its end.
    pub(crate) fn group(&self, group: GroupId) -> Result<(GroupState, u64), StorageError> {
        let format = |what| StorageError::Format { group, what };
        let mut state = GroupState::default();
        let from = keys::state_start(group);
        // The group's own key space comes last and is not read.
        let to = keys::kind_start(group, Kind::Own);
        let mut iterator = self.iterate(self.state, &from, &to, 0);
        iterator.seek_to_first();
        while let Some((key, value)) = iterator.item() {
            match key.get(8) {
                Some(kind) if *kind == Kind::Vote as u8 => {
                    state.vote = Some(Bytes::copy_from_slice(value));
                }
                Some(kind) if *kind == Kind::Purged as u8 => {
                    state.purged = Some(keys::decode_purged(value).ok_or(format("purge"))?);
                }
                Some(kind) if *kind == Kind::TermStart as u8 => {
                    let start = keys::decode_term_start(key, value).ok_or(format("term start"))?;
                    state.term_starts.push(start);
                }
                Some(kind) if *kind == Kind::Checkpoint as u8 => {
                    let index = keys::number_of(key).ok_or(format("checkpoint"))?;
                    state.checkpoints.push(index);
                }
                _ => return Err(format("state")),
            }
            iterator.next();
        }
        iterator
            .status()
            .map_err(|error| self.failed("reading a group's state", error))?;

        let lower = keys::entry_bound(group, state.first_index());
        let mut iterator = self.iterate(self.log, &lower, &keys::entries_end(group), 0);
        iterator.seek_to_last();
        let mut end = 0;
        state.last = match (iterator.key(), iterator.status()) {
            (Some(key), _) => {
                let head = entry_key(group, key)?;
                end = head.end;
                Some((head.index, head.term))
            }
            (None, Ok(())) => state.purged,
            (None, Err(error)) => {
                let reason = error.into_string();
                if is_of_a_table(&reason) {
                    return Err(self.damaged(group, 0, reason));
                }
                let last = self.last_unreadable(group, &state)?;
                end = self.end_about(group, last.0, state.first_index());
                Some(last)
            }
        };
        let newest = state.term_starts.last().map(|start| start.term);
        let expected = (state.last != state.purged)
            .then_some(state.last)
            .flatten()
            .map(|(_, term)| term);
        if newest != expected {
            return Err(format("term start"));
        }
        Ok((state, end))
    }

    /// Bytes of what is in memory and in the write-ahead log only.
    pub(crate) fn unflushed_bytes(&self) -> u64 {
        let of = |family| {
            let found = (self.db).property_int_value_cf(family, "rocksdb.cur-size-all-mem-tables");
            found.ok().flatten().unwrap_or(0)
        };
        of(self.log) + of(self.state)
    }

    /// Every group with a state record; a group with entries has one.
    pub(crate) fn groups(&self) -> Result<Vec<GroupId>, StorageError> {
        let mut iterator = self.db.raw_iterator_cf(self.state);
        let mut groups = Vec::new();
        iterator.seek_to_first();
        while let Some(key) = iterator.key() {
            let group = keys::group_of(key).ok_or(StorageError::Format {
                group: GroupId(0),
                what: "state key",
            })?;
            groups.push(group);
            iterator.seek(keys::state_end(group));
        }
        iterator
            .status()
            .map_err(|error| self.failed("listing groups", error))?;
        Ok(groups)
    }

    /// A record of the state column family.
    pub(crate) fn state(&self, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        let value = self
            .db
            .get_pinned_cf(self.state, key)
            .map_err(|error| self.failed("reading a state record", error))?;
        Ok(value.map(|value| Bytes::copy_from_slice(&value)))
    }

    /// The last pair of the group's own key space at or before `key`, and not
    /// before `prefix`.
    pub(crate) fn own_at_or_before(
        &self,
        group: GroupId,
        prefix: &[u8],
        key: &[u8],
    ) -> Result<Option<(Bytes, Bytes)>, StorageError> {
        let from = keys::own(group, prefix);
        let to = keys::kind_end(group, Kind::Own);
        let mut iterator = self.iterate(self.state, &from, &to, 0);
        iterator.seek_for_prev(keys::own(group, key));
        let found = iterator
            .item()
            .filter(|(found, _)| found.starts_with(&from))
            .map(own_pair);
        iterator
            .status()
            .map_err(|error| self.failed("reading a key", error))?;
        Ok(found)
    }

    /// Pairs of the group's own key space with `from <= key < to`.
    pub(crate) fn own_scan(
        &self,
        group: GroupId,
        from: &[u8],
        to: &[u8],
        count_max: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, StorageError> {
        let mut pairs = Vec::new();
        if from >= to {
            return Ok(pairs);
        }
        let (from, to) = (keys::own(group, from), keys::own(group, to));
        let mut iterator = self.iterate(self.state, &from, &to, 0);
        iterator.seek_to_first();
        while pairs.len() < count_max
            && let Some(item) = iterator.item()
        {
            pairs.push(own_pair(item));
            iterator.next();
        }
        iterator
            .status()
            .map_err(|error| self.failed("scanning keys", error))?;
        Ok(pairs)
    }
}

fn own_pair((key, value): (&[u8], &[u8])) -> (Bytes, Bytes) {
    (
        Bytes::copy_from_slice(key.get(9..).unwrap_or_default()),
        Bytes::copy_from_slice(value),
    )
}

fn entry_key(group: GroupId, key: &[u8]) -> Result<EntryKey, StorageError> {
    EntryKey::decode(key).ok_or(StorageError::Format {
        group,
        what: "entry key",
    })
}
