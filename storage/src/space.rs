//! Giving the space of dropped groups and purged entries back to the file system.
//!
//! Compacting a group's range rewrites keys only and lets go of its payloads.
//! A blob file goes when nothing in it is live; but files are shared by all
//! groups that wrote at the time. So when much of them is garbage after a drop,
//! what is live is moved out, which is the only time that blob garbage
//! collection is on: retention frees whole files, oldest first, without it.

use std::collections::HashMap;

use rocksdb::{BottommostLevelCompaction, CompactOptions, DB, Error};

use crate::keys;
use crate::log::GroupId;
use crate::room::Room;

/// Drops wait until together they free this much.
const DUE_BYTES_MIN: u64 = 1 << 20;
/// Purges wait until together they free about this much.
const PURGED_BYTES_MIN: u64 = 16 << 20;
/// With so much, freeing does not wait for more: a replica that takes a snapshot
/// drops its log at once, and what takes its place comes faster than any producer writes.
const PURGED_BYTES_URGENT: u64 = 64 << 20;
/// Moving what is live must free at least this much,
const GARBAGE_BYTES_MIN: u64 = 8 << 20;
/// and this part of all blob files: a fifth, so four bytes move for each one freed at most.
const GARBAGE_SHARE_MIN: u64 = 5;

/// Dropped groups whose space was not yet freed.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Dropped {
    range: Option<(GroupId, GroupId)>,
    bytes: u64,
}

impl Dropped {
    pub(crate) fn add(&mut self, group: GroupId, bytes: u64) {
        let (first, last) = self.range.unwrap_or((group, group));
        self.range = Some((first.min(group), last.max(group)));
        self.bytes += bytes;
    }

    pub(crate) fn is_due(&self) -> bool {
        self.bytes >= DUE_BYTES_MIN
    }

    /// What is due, if it is; small drops stay and add up.
    pub(crate) fn take_due(&mut self) -> Dropped {
        if self.is_due() {
            std::mem::take(self)
        } else {
            Dropped::default()
        }
    }
}

/// Logs whose beginnings were purged and whose space was not yet freed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Purged {
    /// The last purged index of each.
    logs: HashMap<GroupId, u64>,
    bytes: u64,
}

impl Purged {
    pub(crate) fn add(&mut self, group: GroupId, index: u64, bytes: u64) {
        self.logs.insert(group, index);
        self.bytes += bytes;
    }

    pub(crate) fn is_due(&self) -> bool {
        self.bytes >= PURGED_BYTES_MIN
    }

    pub(crate) fn is_urgent(&self) -> bool {
        self.bytes >= PURGED_BYTES_URGENT
    }

    /// What is due, if it is; small purges stay and add up.
    pub(crate) fn take_due(&mut self) -> Purged {
        if self.is_due() {
            std::mem::take(self)
        } else {
            Purged::default()
        }
    }
}

/// Lets go of the purged beginnings of logs: their keys go, and with them every
/// blob file of which nothing is left. Nothing that is live moves.
pub(crate) fn free_purged(db: &DB, purged: &Purged) {
    let log = db.cf_handle(keys::LOG).expect("opened with it");
    for (&group, &index) in &purged.logs {
        let range = (
            keys::entry_bound(group, 0),
            keys::entry_bound(group, index + 1),
        );
        db.compact_range_cf(log, Some(range.0), Some(range.1));
    }
    if !purged.logs.is_empty() {
        let (logs, bytes) = (purged.logs.len(), purged.bytes);
        tracing::debug!(logs, bytes, "freed the space of purged entries");
    }
}

/// Frees what the dropped groups took up.
pub(crate) fn free(db: &DB, dropped: &Dropped) -> Result<(), Error> {
    let Some((first, last)) = dropped.range else {
        return Ok(());
    };
    let log = db.cf_handle(keys::LOG).expect("opened with it");
    let range = (keys::entry_bound(first, 0), keys::entries_end(last));
    db.compact_range_cf(log, Some(range.0), Some(range.1));
    let size = |name: &str| {
        let found = db.property_int_value_cf(log, name);
        found.map(Option::unwrap_or_default)
    };
    let all = size("rocksdb.live-blob-file-size")?;
    let garbage = size("rocksdb.live-blob-file-garbage-size")?;
    // What moves is there twice for a time.
    let room = Room::at(db.path()).is_ok_and(|room| room.free / 2 > all.saturating_sub(garbage));
    let worth = garbage >= GARBAGE_BYTES_MIN && garbage >= all / GARBAGE_SHARE_MIN;
    let moved = worth && room;
    if moved {
        let collect = |on: &str| {
            let age = ("blob_garbage_collection_age_cutoff", "1.0");
            db.set_options_cf(log, &[("enable_blob_garbage_collection", on), age])
        };
        let mut options = CompactOptions::default();
        options.set_bottommost_level_compaction(BottommostLevelCompaction::ForceOptimized);
        collect("true")?;
        db.compact_range_cf_opt(log, None::<&[u8]>, None::<&[u8]>, &options);
        collect("false")?;
    }
    tracing::info!(
        groups_first = first.0,
        groups_last = last.0,
        dropped_bytes = dropped.bytes,
        garbage_bytes = garbage,
        blob_bytes = all,
        moved,
        "freed the space of dropped groups"
    );
    Ok(())
}
