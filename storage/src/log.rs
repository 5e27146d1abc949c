//! The interface of the store: what a replicated log asks of a disk.
//!
//! Writes are submitted, not awaited. The store puts appended entries into its
//! tail cache before `submit` returns, so that they can be read at once; the
//! completion runs when they are durable. Completions of one group run in the
//! order of their submission, from the store's own threads.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;

use crate::durations::DurationCounts;

/// Names one replicated log on this node. Never reused, also not after a delete.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId(pub u64);

impl fmt::Display for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "g{}", self.0)
    }
}

/// One entry of a log.
///
/// `tag` and `stamp` belong to whoever proposed the entry (a kind, and that
/// node's clock in milliseconds since 1970); the store only keeps them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Position in the log; the first entry has index 0.
    pub index: u64,
    /// Term in which the entry was proposed.
    pub term: u64,
    /// Kind of the entry.
    pub tag: u8,
    /// Clock of the proposer, milliseconds since 1970.
    pub stamp: i64,
    /// CRC-32C of `payload`, computed where the payload was first received.
    pub checksum: u32,
    /// The bytes.
    pub payload: Bytes,
}

impl Entry {
    /// Bytes that this entry is counted with against every bound.
    pub fn weight(&self) -> usize {
        64 + self.payload.len()
    }
}

/// The first index that a term wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TermStart {
    /// The term.
    pub term: u64,
    /// Index of its first entry in this log.
    pub index: u64,
}

/// The state of a group's state machine after applying everything up to `index`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Last applied index that the state contains.
    pub index: u64,
    /// Term of that entry.
    pub term: u64,
    /// Opaque, versioned by its owner.
    pub bytes: Bytes,
}

/// What the store holds of a group when it is opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupState {
    /// Index and term of the last purged entry, if any was purged.
    pub purged: Option<(u64, u64)>,
    /// Index and term of the last entry; `purged` if the log is empty.
    pub last: Option<(u64, u64)>,
    /// The vote record as last submitted.
    pub vote: Option<Bytes>,
    /// The first index of every term in the log, ascending. The term that
    /// contains the first entry after a purge counts as starting there.
    pub term_starts: Vec<TermStart>,
    /// Indexes of the checkpoints held, ascending.
    pub checkpoints: Vec<u64>,
}

/// Called exactly once when a write is durable, or with the error that ends the store.
pub type Done = Box<dyn FnOnce(io::Result<()>) + Send>;

/// One change to one group. Changes of a group take effect in submission order.
#[derive(Clone, Debug)]
pub enum Write {
    /// Adds entries at the end. The first index must follow the last one held.
    Append(Vec<Entry>),
    /// Forgets every entry with an index above `last`; `None` forgets all.
    Truncate {
        /// Last index to keep.
        last: Option<u64>,
    },
    /// Replaces the vote record.
    Vote(Bytes),
    /// Forgets entries up to and including `index`, and checkpoints below it.
    /// Also moves an empty or shorter log forward to start after `index`.
    Purge {
        /// Last index to forget.
        index: u64,
        /// Term of that entry.
        term: u64,
    },
    /// Keeps a checkpoint. Every older one above the purge point goes unless
    /// its index is in `keep`.
    Checkpoint {
        /// The state to keep.
        checkpoint: Checkpoint,
        /// Indexes of older checkpoints that stay.
        keep: Vec<u64>,
    },
    /// Puts (`Some`) and deletes (`None`) in the group's own key space, which
    /// belongs to its state machine.
    Keys(Vec<(Bytes, Option<Bytes>)>),
    /// Writes again the payloads of entries whose bytes on disk are damaged;
    /// leaves alone what is sound, what is no longer held, and what is held in
    /// another term. The entries come from another replica: index and term make
    /// them the same.
    Repair(Vec<Entry>),
    /// Forgets the group and everything it holds, and frees its space.
    Drop,
}

/// What reading can run into.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The disk or the database failed. The store does not go on after this.
    #[error("storage failed while {doing}: {source}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// The payload of an entry can't be read, or differs from what was written.
    /// The rest of the log is sound, so [`Write::Repair`] mends it.
    #[error("{group} entry {index} is damaged in {file}: {reason}")]
    Corrupt {
        /// The log.
        group: GroupId,
        /// The entry.
        index: u64,
        /// The file, or where the files are.
        file: String,
        /// What was found.
        reason: String,
    },
    /// More than payloads of entries is damaged: nothing here can be trusted.
    #[error(
        "the database in {path} is damaged: {reason}; remove the data directory of this broker and start it again: \
         the other replicas fill a new one"
    )]
    Damaged {
        /// The database.
        path: String,
        /// What was found, with the file's name if that is known.
        reason: String,
    },
    /// The data directory belongs to someone else, or was written by a newer version.
    #[error("data directory {path}: {reason}")]
    Directory {
        /// Its path.
        path: String,
        /// What is wrong and what to do.
        reason: String,
    },
    /// A record of the store can't be decoded.
    #[error("{group}: unreadable {what} record")]
    Format {
        /// The log.
        group: GroupId,
        /// Which record.
        what: &'static str,
    },
}

/// What is said of a payload whose checksum is not the one kept with the entry.
pub(crate) fn wrong_checksum(found: u32, expected: u32) -> String {
    format!("its checksum is {found:08x}, not {expected:08x}")
}

/// What a store is busy with.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StoreActivity {
    /// How long each sync took.
    pub syncs: DurationCounts,
    /// Bytes that wait to be written, or for room in the queue.
    pub queued_bytes: usize,
    /// Bytes that are written and wait for a sync.
    pub unsynced_bytes: usize,
    /// Bytes in memory that will be written once more, to files of their own.
    pub unflushed_bytes: u64,
}

/// A disk for many logs.
///
/// `read_tail` never touches the disk and may be called from async code;
/// `read`, `checkpoint`, `keys_*` and `open_group` may block.
pub trait LogStore: Send + Sync + 'static {
    /// Loads what is held of a group. A group never seen is empty.
    fn open_group(&self, group: GroupId) -> Result<GroupState, StorageError>;

    /// Every group that holds anything.
    fn groups(&self) -> Result<Vec<GroupId>, StorageError>;

    /// Queues a write. Waits while the queue is full (bounded in bytes).
    fn submit(&self, group: GroupId, write: Write, done: Option<Done>);

    /// Entries of `from..to` from memory, at most `bytes_max` of weight but at
    /// least one. `None` when `from` is no longer in memory.
    fn read_tail(&self, group: GroupId, from: u64, to: u64, bytes_max: usize)
    -> Option<Vec<Entry>>;

    /// Entries of `from..to`, from memory or disk, at most `bytes_max` of weight
    /// but at least one. Ends early at the end of the log, at a purged index, or
    /// before a damaged entry; an error if the first one is damaged.
    fn read(
        &self,
        group: GroupId,
        from: u64,
        to: u64,
        bytes_max: usize,
    ) -> Result<Vec<Entry>, StorageError>;

    /// The checkpoint at exactly `index`.
    fn checkpoint(&self, group: GroupId, index: u64) -> Result<Option<Checkpoint>, StorageError>;

    /// The value of `key` in the group's own key space.
    fn get(&self, group: GroupId, key: &[u8]) -> Result<Option<Bytes>, StorageError>;

    /// The last pair with a key `<= key` that starts with `prefix`.
    fn get_at_or_before(
        &self,
        group: GroupId,
        prefix: &[u8],
        key: &[u8],
    ) -> Result<Option<(Bytes, Bytes)>, StorageError>;

    /// Pairs with `from <= key < to`, ascending, at most `count_max`.
    fn scan(
        &self,
        group: GroupId,
        from: &[u8],
        to: &[u8],
        count_max: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, StorageError>;

    /// The file that holds the payload of an entry, if that can be found out in
    /// a bounded time. May block.
    fn file_of(&self, group: GroupId, index: u64) -> Option<PathBuf>;

    /// Bytes that the group's entries take up on disk, approximately.
    fn size_on_disk(&self, group: GroupId) -> u64;

    /// Payload bytes of the group's entries from `index` on. May block.
    fn bytes_from(&self, group: GroupId, index: u64) -> Result<u64, StorageError>;

    /// Milliseconds since the last completed sync; what a peer's liveness carries.
    fn last_sync_age_ms(&self) -> u64;

    /// What is queued and how long syncs take, for those who watch the broker.
    fn activity(&self) -> StoreActivity;

    /// Whether every call returns without waiting for a device or another thread,
    /// so that callers need no thread of their own for those that may block.
    fn never_blocks(&self) -> bool {
        false
    }

    /// Waits until everything submitted so far is durable.
    fn flush(&self) -> Result<(), StorageError>;
}

/// A store shared by all groups of a node.
pub type SharedStore = Arc<dyn LogStore>;
